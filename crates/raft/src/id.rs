//! The numbers that consensus speaks in, each a type of its own so that none is mistaken for another.
//!
//! All of them are plain values: where they come from (a clock, a random source, a broker) is the
//! caller's business.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use minicbor::decode::{Decode, Decoder, Error as DecodeError};
use minicbor::encode::{Encode, Encoder, Error as EncodeError, Write};

/// A reading of a monotonic clock in microseconds, supplied by the caller with each input.
///
/// Only differences mean anything. In production it counts suspended time too
/// (`CLOCK_BOOTTIME` on Linux), since a lease runs out while a machine sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// The time that has passed since `earlier`; zero when `earlier` is later.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl<C> Encode<C> for Time {
    fn encode<W: Write>(
        &self,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        self.0.encode(e, ctx)
    }
}

impl<'b, C> Decode<'b, C> for Time {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Time, DecodeError> {
        u64::decode(d, ctx).map(Time)
    }
}

impl Add<Duration> for Time {
    type Output = Time;
    fn add(self, duration: Duration) -> Time {
        Time(
            self.0
                .saturating_add(duration.as_micros().try_into().unwrap_or(u64::MAX)),
        )
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, minicbor::Encode, minicbor::Decode,
        )]
        #[cbor(transparent)]
        pub struct $name(#[n(0)] pub u64);

        impl $name {
            /// The value after this one. Sixty-four bits outlast any cluster.
            pub fn next(self) -> $name {
                $name(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter! {
    /// A Raft term: at most one leader each (Raft §5.2). Term 1 belongs to the formation record;
    /// elections start at 2.
    Term
}
counter! {
    /// A position in the log. Entries start at 1; 0 stands before the first.
    Index
}
counter! {
    /// Counts the appends and heartbeats of one leadership. An acknowledgement echoes the newest
    /// round heard, which tells the leader how recently that follower still followed.
    Round
}
counter! {
    /// Numbers the catch-up streams of one leadership. Messages of an older stream are inert.
    /// Zero stands for the broadcast.
    StreamId
}
counter! {
    /// One connection of one process to its brokers: what a Last Will speaks of (design point 4).
    /// Drawn at random by the owner at each connect, never reused.
    SessionId
}
counter! {
    /// Orders the writes of one node; [`crate::Input::Persisted`] confirms all up to its number.
    PersistSeq
}
counter! {
    /// A linearizable read that waits for its index.
    ReadId
}
counter! {
    /// A change of the configuration that waits to be carried through.
    ChangeId
}
counter! {
    /// Who asks for a write: drawn at random once per client process.
    ClientId
}
counter! {
    /// Numbers one client's requests, so that a retry is recognised.
    RequestNumber
}

impl Add<u64> for Index {
    type Output = Index;
    fn add(self, n: u64) -> Index {
        Index(self.0.saturating_add(n))
    }
}

impl Sub<Index> for Index {
    type Output = u64;
    fn sub(self, other: Index) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

impl Index {
    /// The position before this one; zero has none before it and stays.
    pub fn previous(self) -> Index {
        Index(self.0.saturating_sub(1))
    }
}

/// A node's identity in consensus: 128 random bits drawn when its data directory was made.
///
/// Votes and acknowledgements count by key, never by name: a node that lost its disk comes back
/// under a new key and cannot vote as its former self (design point 9).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKey(pub u128);

impl NodeKey {
    /// The key as it stands on the wire and on disk: 16 bytes, big-endian.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The key that `bytes` spell.
    pub fn from_bytes(bytes: [u8; 16]) -> NodeKey {
        NodeKey(u128::from_be_bytes(bytes))
    }
}

impl fmt::Display for NodeKey {
    /// The first eight hex digits for real keys; small numbers (tests) in full.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1 << 32 {
            write!(f, "n{}", self.0)
        } else {
            write!(f, "{:08x}", self.0 >> 96)
        }
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<C> Encode<C> for NodeKey {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.bytes(&self.to_bytes())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for NodeKey {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<NodeKey, DecodeError> {
        let bytes = d
            .bytes()?
            .try_into()
            .map_err(|_| DecodeError::message("node key length"))?;
        Ok(NodeKey::from_bytes(bytes))
    }
}

/// The index and term of one entry: what two logs compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, minicbor::Encode, minicbor::Decode)]
pub struct LogPosition {
    /// Where the entry stands.
    #[n(0)]
    pub index: Index,
    /// The term in which a leader appended it.
    #[n(1)]
    pub term: Term,
}

impl LogPosition {
    /// Whether a log that ends here is at least as up to date as one that ends at `other`
    /// (Raft §5.4.1).
    pub fn is_up_to_date_with(self, other: LogPosition) -> bool {
        (self.term, self.index) >= (other.term, other.index)
    }
}

/// A stretch of leadership that can be exclusive as a whole, and released as a whole (design point
/// 6). A term's no-op opens number 0; a leader whose transfer failed after it had released one opens
/// the next.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    minicbor::Encode,
    minicbor::Decode,
)]
pub struct LeaseEpoch {
    /// The leader's term.
    #[n(0)]
    pub term: Term,
    /// Which of that term's, from 0.
    #[n(1)]
    pub number: u64,
}

impl LeaseEpoch {
    /// The last number of a term: whoever would open one more leaves the lead instead.
    pub const LAST: u64 = (1 << LeaseEpoch::NUMBER_BITS) - 1;

    const NUMBER_BITS: u32 = 16;

    /// The epoch after this one, in the same term.
    pub fn next(self) -> Option<LeaseEpoch> {
        let number = self.number.checked_add(1)?;
        let term = self.term;
        (number <= LeaseEpoch::LAST).then_some(LeaseEpoch { term, number })
    }

    /// What a resource that the leader acts on is to be shown.
    pub fn token(self) -> LeadershipToken {
        let term = self.term.0.saturating_mul(1 << LeaseEpoch::NUMBER_BITS);
        LeadershipToken(term | self.number.min(LeaseEpoch::LAST))
    }
}

impl fmt::Display for LeaseEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.number)
    }
}

/// The fencing token of an exclusive leadership: greater than that of every earlier one. The term
/// times 65,536, plus the number of the lease epoch.
///
/// A resource that remembers the greatest token it was shown, and refuses whoever shows a smaller
/// one, is safe even from a leader that was paused and does not know yet that its time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeadershipToken(pub u64);

impl fmt::Display for LeadershipToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Real keys are told by their first half, small ones in full.
    #[test]
    fn keys_as_people_read_them() {
        let cases = [
            (7, "n7"),
            ((1 << 32) - 1, "n4294967295"),
            (1 << 32, "00000000"),
            (0xdead_beef_0000_0000_0000_0000_0000_0001, "deadbeef"),
        ];
        for (key, told) in cases {
            assert_eq!(NodeKey(key).to_string(), told);
            assert_eq!(format!("{:?}", NodeKey(key)), told);
        }
    }

    /// Time and indexes stop at their ends instead of going round.
    #[test]
    fn arithmetic_saturates() {
        let second = Duration::from_secs(1);
        assert_eq!(Time(5) + second, Time(1_000_005));
        assert_eq!(Time(u64::MAX) + second, Time(u64::MAX));
        assert_eq!(Time(1_000_005).since(Time(5)), second);
        assert_eq!(Time(5).since(Time(6)), Duration::ZERO);
        assert_eq!((Index(5) - Index(3), Index(3) - Index(5)), (2, 0));
        assert_eq!(Index(u64::MAX) + 1, Index(u64::MAX));
        assert_eq!(
            (Index(7).previous(), Index(0).previous()),
            (Index(6), Index(0))
        );
    }

    /// Tokens are ordered as the epochs are, to the last of a term.
    #[test]
    fn tokens_follow_the_epochs() {
        let epoch = |term, number| LeaseEpoch {
            term: Term(term),
            number,
        };
        assert_eq!(epoch(3, 7).token(), LeadershipToken(3 * 65_536 + 7));
        assert!(epoch(3, LeaseEpoch::LAST).token() < epoch(4, 0).token());
        assert_eq!(epoch(3, 7).next(), Some(epoch(3, 8)));
        assert_eq!(epoch(3, LeaseEpoch::LAST).next(), None);
        assert_eq!(epoch(3, 7).to_string(), "3.7");
    }

    /// The later term wins, then the longer log (Raft §5.4.1).
    #[test]
    fn up_to_date_logs() {
        let at = |index, term| LogPosition {
            index: Index(index),
            term: Term(term),
        };
        assert!(at(1, 3).is_up_to_date_with(at(9, 2)));
        assert!(!at(9, 2).is_up_to_date_with(at(1, 3)));
        assert!(at(5, 2).is_up_to_date_with(at(5, 2)));
        assert!(at(6, 2).is_up_to_date_with(at(5, 2)));
        assert!(!at(4, 2).is_up_to_date_with(at(5, 2)));
    }
}
