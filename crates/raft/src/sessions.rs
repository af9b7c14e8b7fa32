//! The sessions in which a process can be heard: one for each broker that it uses at once.

use std::fmt;

use minicbor::decode::{Decode, Decoder, Error as DecodeError};
use minicbor::encode::{Encode, Encoder, Error as EncodeError, Write};

use crate::id::SessionId;

/// A small set of sessions. Empty: no broker is reachable.
///
/// One session stands on the wire as its number, several as an array.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Sessions {
    /// Ascending; those beyond `count` are zero.
    ids: [SessionId; Sessions::MAX],
    count: u8,
}

impl Sessions {
    /// As many sessions as a process has at most.
    pub const MAX: usize = 4;

    /// One session.
    pub fn of(session: SessionId) -> Sessions {
        Sessions::from_iter([session])
    }

    /// Adds a session. False, and nothing is changed, if the set is full.
    pub fn insert(&mut self, session: SessionId) -> bool {
        let count = usize::from(self.count);
        match self.as_slice().binary_search(&session) {
            Ok(_) => true,
            Err(_) if count == Sessions::MAX => false,
            Err(at) => {
                self.ids.copy_within(at..count, at + 1);
                self.ids[at] = session;
                self.count += 1;
                true
            }
        }
    }

    /// Whether it is one of them.
    pub fn contains(&self, session: SessionId) -> bool {
        self.as_slice().binary_search(&session).is_ok()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether each of these is among `others`.
    pub fn are_all_in(&self, others: &Sessions) -> bool {
        self.iter().all(|session| others.contains(session))
    }

    /// Those that are in both.
    #[must_use]
    pub fn that_are_in(&self, others: &Sessions) -> Sessions {
        self.iter()
            .filter(|session| others.contains(*session))
            .collect()
    }

    /// The sessions in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = SessionId> + '_ {
        self.as_slice().iter().copied()
    }

    fn as_slice(&self) -> &[SessionId] {
        &self.ids[..self.count.into()]
    }
}

/// The first [`Sessions::MAX`] of them.
impl FromIterator<SessionId> for Sessions {
    fn from_iter<I: IntoIterator<Item = SessionId>>(sessions: I) -> Sessions {
        let mut set = Sessions::default();
        for session in sessions {
            set.insert(session);
        }
        set
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl<C> Encode<C> for Sessions {
    fn encode<W: Write>(
        &self,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        if let [session] = self.as_slice() {
            return session.encode(e, ctx);
        }
        e.array(self.count.into())?;
        self.iter().try_for_each(|session| session.encode(e, ctx))
    }
}

impl<'b, C> Decode<'b, C> for Sessions {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Sessions, DecodeError> {
        if d.datatype()? != minicbor::data::Type::Array {
            return Ok(Sessions::of(SessionId::decode(d, ctx)?));
        }
        let count = d.array()?;
        if count.is_none_or(|count| count > Sessions::MAX as u64) {
            return Err(DecodeError::message("more sessions than there can be"));
        }
        let mut sessions = Sessions::default();
        for _ in 0..count.unwrap_or_default() {
            sessions.insert(SessionId::decode(d, ctx)?);
        }
        Ok(sessions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: impl IntoIterator<Item = u64>) -> Sessions {
        ids.into_iter().map(SessionId).collect()
    }

    #[test]
    fn a_set_is_small_and_sorted() {
        let mut sessions = set([3, 1, 2, 3]);
        assert_eq!(sessions, set([1, 2, 3]));
        assert!(sessions.are_all_in(&set([1, 2, 3, 4])));
        assert!(!sessions.are_all_in(&set([1, 3])));
        assert_eq!(sessions.that_are_in(&set([3, 4])), set([3]));
        assert!(sessions.insert(SessionId(4)));
        assert!(!sessions.insert(SessionId(9)), "it is full");
        assert!(sessions.insert(SessionId(4)), "it is there");
        assert_eq!(sessions, set(1..=4));
    }

    #[test]
    fn what_is_written_is_read() {
        for count in [0, 1, 2, 4] {
            let sessions = set(1..=count);
            let bytes = minicbor::to_vec(sessions).expect("plain data");
            assert_eq!(
                minicbor::decode::<Sessions>(&bytes).expect("just written"),
                sessions
            );
        }
        assert_eq!(
            minicbor::to_vec(set([5])).expect("plain data"),
            [5],
            "one is its number"
        );
        let many = minicbor::to_vec([1_u64; 5]).expect("plain data");
        assert!(minicbor::decode::<Sessions>(&many).is_err());
        assert!(
            minicbor::decode::<Sessions>(&[0x9f, 0xff]).is_err(),
            "of no stated length"
        );
    }
}
