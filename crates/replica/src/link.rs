//! The sessions of a process: one with each broker that it uses at once.
//!
//! Brokers know nothing of each other, and two processes may list them in different orders. So a
//! link is a process's own number for a broker; a session is named by its process, link and epoch.

use std::collections::BTreeMap;
use std::fmt;

use raft::{SessionId, Sessions};

use crate::keys::{Incarnation, sha256};

/// One of the brokers that a process uses, by its place in the process's own list: 0 for the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link(u8);

impl Link {
    /// The only broker, or the first of several.
    pub const FIRST: Link = Link(0);

    /// How many brokers a process uses at most.
    pub const MAX: usize = Sessions::MAX;

    /// The broker at this place; `None` beyond [`Link::MAX`].
    pub fn new(place: usize) -> Option<Link> {
        let place = u8::try_from(place).ok()?;
        (usize::from(place) < Link::MAX).then_some(Link(place))
    }

    /// Its place in the list.
    pub fn place(self) -> usize {
        self.0.into()
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One session of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session {
    /// With which broker.
    pub link: Link,
    /// Which of its sessions with it; later ones are greater.
    pub epoch: u64,
}

impl Session {
    /// A session with the only broker, or the first of several.
    pub fn first(epoch: u64) -> Session {
        Session {
            link: Link::FIRST,
            epoch,
        }
    }

    /// The session of this process as wills and leaders name it.
    pub fn id(self, incarnation: Incarnation) -> SessionId {
        let Session { link, epoch } = self;
        let mut bytes = incarnation.0.to_vec();
        bytes.extend(epoch.to_be_bytes());
        if link != Link::FIRST {
            bytes.push(link.0);
        }
        let digest = sha256(&bytes);
        SessionId(u64::from_be_bytes(
            digest[..8].try_into().expect("eight of 32 bytes"),
        ))
    }
}

/// As a status spells it: the epoch, and the link if it is not the first.
impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.link {
            Link::FIRST => self.epoch.fmt(f),
            link => write!(f, "{}/{link}", self.epoch),
        }
    }
}

/// The sessions of a process that are up.
#[derive(Debug, Default)]
pub(crate) struct Live(BTreeMap<Link, u64>);

impl Live {
    /// A session came up, in place of any other with that broker.
    pub(crate) fn open(&mut self, session: Session) {
        self.0.insert(session.link, session.epoch);
    }

    /// The session with that broker is gone. False if there was none.
    pub(crate) fn close(&mut self, link: Link) -> bool {
        self.0.remove(&link).is_some()
    }

    /// No broker is reachable.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn contains(&self, session: Session) -> bool {
        self.0.get(&session.link) == Some(&session.epoch)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Session> + '_ {
        let session = |(link, epoch): (&Link, &u64)| Session {
            link: *link,
            epoch: *epoch,
        };
        self.0.iter().map(session)
    }

    /// Any of them; before the first, one that never was.
    pub(crate) fn any(&self) -> Session {
        self.iter().next().unwrap_or_default()
    }

    pub(crate) fn ids(&self, incarnation: Incarnation) -> Sessions {
        self.iter().map(|session| session.id(incarnation)).collect()
    }
}
