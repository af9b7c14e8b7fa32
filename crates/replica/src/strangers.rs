//! Nodes of another cluster under our name and key: noticed when they speak, asked whether they are
//! still there.
//!
//! Two clusters come to meet when brokers are bridged on which each was formed, or when a cluster
//! was formed anew and a node of the old one comes back. Each is sound by itself, but "the only
//! leader" of one means nothing to whoever deals with both. So while a node of another cluster is
//! there, no node of ours makes an exclusive claim.
//!
//! ```text
//! a (ours)                                     x (theirs)
//!   │ ◄──── frame of another cluster id ─────────│  a sign: shows who wrote it, not when
//!   │ ───── Hello { question, our record } ─────►│  after a handshake x knows of us, and that we live
//!   │ ◄──── Hello { their record } ──────────────│  and a of x
//! ```
//!
//! Nothing is sent before there is a sign. A leader is heard by everyone several times a lease, so
//! everyone gets the sign of a cluster that has a leader, and one without makes no claims. Who was
//! met is asked again every few seconds, until it is gone:
//!
//! - its status says that its session ended: a hint, which an older session's will may give too,
//!   so it is asked at once and given up after [`ENDED`] without an answer;
//! - it did not answer for [`SILENT`].

use std::collections::BTreeMap;
use std::time::Duration;

use raft::{NodeKey, Time};

use crate::name::Name;

/// How many nodes of other clusters are remembered. Any further one is met again by its frames
/// when those are gone.
const MAX_STRANGERS: usize = 8;

/// How often one that was met is asked whether it is still there.
const ASK_INTERVAL: Duration = Duration::from_secs(5);

/// How often at the end, and whoever is not known yet: an answer takes a handshake, two round trips.
const ASK_GAP: Duration = Duration::from_secs(1);

/// How often a frame of another cluster is opened to see whether our key sealed it.
const LOOK_GAP: Duration = Duration::from_millis(50);

/// How long one that was met counts without an answer. Longer than a broker takes to publish the
/// will of a silent session (10 s at a keepalive of 5 s, measured), so that what died is gone by
/// its will, and only what was cut off by this; and six questions, so that no lossy bridge makes
/// claims come and go.
const SILENT: Duration = Duration::from_secs(30);

/// How long after its session is said to have ended: three questions.
const ENDED: Duration = Duration::from_secs(3);

/// The nodes of other clusters that are there.
#[derive(Default)]
pub(crate) struct Strangers {
    met: BTreeMap<NodeKey, Stranger>,
    look_at: Time,
    ask_at: Time,
}

struct Stranger {
    name: Name,
    ask_at: Time,
    gone_at: Time,
}

impl Strangers {
    /// The first by name, while any is there.
    pub(crate) fn first(&self) -> Option<&Name> {
        self.met.values().map(|stranger| &stranger.name).min()
    }

    /// Whether a sign is worth opening.
    pub(crate) fn may_look(&mut self, now: Time) -> bool {
        let may = now >= self.look_at && self.met.len() < MAX_STRANGERS;
        if may {
            self.look_at = now + LOOK_GAP;
        }
        may
    }

    /// Whether a node that gave a sign is to be asked who it is.
    pub(crate) fn may_ask(&mut self, key: NodeKey, now: Time) -> bool {
        let room = self.met.len() < MAX_STRANGERS && !self.met.contains_key(&key);
        let may = now >= self.ask_at && room;
        if may {
            self.ask_at = now + ASK_GAP;
        }
        may
    }

    /// It said itself, just now, that it is of another cluster. Whether it is the first there.
    pub(crate) fn meet(&mut self, name: &Name, key: NodeKey, now: Time) -> bool {
        let first = self.met.is_empty();
        if self.met.len() >= MAX_STRANGERS && !self.met.contains_key(&key) {
            return false;
        }
        let stranger = Stranger {
            name: name.clone(),
            ask_at: now + ASK_INTERVAL,
            gone_at: now + SILENT,
        };
        self.met.insert(key, stranger);
        first
    }

    /// Its session is said to have ended.
    pub(crate) fn on_end(&mut self, key: NodeKey, now: Time) {
        if let Some(stranger) = self.met.get_mut(&key) {
            stranger.ask_at = now;
            stranger.gone_at = stranger.gone_at.min(now + ENDED);
        }
    }

    /// We were cut off: nobody could have answered.
    pub(crate) fn on_reconnected(&mut self, now: Time) {
        for stranger in self.met.values_mut() {
            stranger.ask_at = now;
            stranger.gone_at = now + SILENT;
        }
    }

    /// Forgets who is gone. Gives back the last of them if nobody is left.
    pub(crate) fn expire(&mut self, now: Time) -> Option<Name> {
        let last = self.first().cloned();
        self.met.retain(|_, stranger| now < stranger.gone_at);
        last.filter(|_| self.met.is_empty())
    }

    /// Whom to ask now whether it is still there.
    pub(crate) fn due(&mut self, now: Time) -> Vec<Name> {
        let mut due = Vec::new();
        for stranger in self.met.values_mut().filter(|s| now >= s.ask_at) {
            let hurry = stranger.gone_at.since(now) <= ENDED;
            stranger.ask_at = now + if hurry { ASK_GAP } else { ASK_INTERVAL };
            due.push(stranger.name.clone());
        }
        due
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        let next = |stranger: &Stranger| stranger.ask_at.min(stranger.gone_at);
        self.met.values().map(next).min()
    }
}
