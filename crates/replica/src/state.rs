//! What may be asked of the replicated state, and what it answers. CBOR as in `wire.rs`.

use std::ops::Bound;

use bytes::Bytes;
use minicbor::{Decode, Encode};

use crate::wire::Value;

/// What keys that belong to the cluster itself begin with: presence, locks, elections. A range that
/// does not begin so does not hold them, however wide it is.
pub const RESERVED: &[u8] = b"_/";

/// Under which the leader keeps who is there.
pub const NODES: &[u8] = b"_/node/";

/// How many conditions, and how many actions in either branch, a transaction may have.
pub const MAX_ACTIONS: usize = 128;

/// How many keys one transaction deletes at most.
pub const MAX_DELETED: usize = 10_000;

/// How many keys one transaction goes through at most, to delete, to read or to find the oldest of them.
pub const MAX_LOOKED_AT: usize = 100_000;

/// How many bytes of keys and values one transaction reads at most, 64 B a pair added: its answer is kept
/// for a retry, and fits a frame.
pub const MAX_TRANSACTION_READ: usize = 16 << 10;

/// How many bytes of keys and values one answer to a range or a watch has, where the first pair
/// alone is not longer.
pub const MAX_ANSWER_BYTES: usize = 64 << 10;

/// The bounds of a lease's time to live, in milliseconds.
pub const LEASE_TTL_MS: std::ops::RangeInclusive<u64> = 100..=31_536_000_000;

/// A lease: keys that are attached to it go when it ends. 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct LeaseId(#[n(0)] pub u64);

impl LeaseId {
    /// No lease.
    pub const NONE: LeaseId = LeaseId(0);
}

impl std::fmt::Display for LeaseId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Which keys.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum KeyRange {
    /// This one.
    #[n(0)]
    Key(#[cbor(n(0), with = "raft::codec")] Bytes),
    /// Those that begin so.
    #[n(1)]
    Prefix(#[cbor(n(0), with = "raft::codec")] Bytes),
    /// From one on, up to another that is no longer meant.
    #[n(2)]
    Interval {
        /// The first.
        #[cbor(n(0), with = "raft::codec")]
        from: Bytes,
        /// The first beyond; `None`: all that follow.
        #[n(1)]
        to: Option<Value>,
    },
}

impl KeyRange {
    /// The least key that may be in it.
    pub fn start(&self) -> &Bytes {
        match self {
            KeyRange::Key(start) | KeyRange::Prefix(start) => start,
            KeyRange::Interval { from, .. } => from,
        }
    }

    /// Whether `key` is meant.
    pub fn contains(&self, key: &[u8]) -> bool {
        if key.starts_with(RESERVED) && !self.start().starts_with(RESERVED) {
            return false;
        }
        match self {
            KeyRange::Key(only) => key == only,
            KeyRange::Prefix(prefix) => key.starts_with(prefix),
            KeyRange::Interval { from, to } => {
                from <= key && to.as_ref().is_none_or(|to| key < to.0)
            }
        }
    }

    /// Where to look for it in an ordered map; what is found there may still not be meant.
    pub(crate) fn bounds(&self) -> (Bound<Bytes>, Bound<Bytes>) {
        match self {
            KeyRange::Key(key) => (Bound::Included(key.clone()), Bound::Included(key.clone())),
            KeyRange::Prefix(prefix) => {
                let beyond = beyond_prefix(prefix).map_or(Bound::Unbounded, Bound::Excluded);
                (Bound::Included(prefix.clone()), beyond)
            }
            // A map refuses bounds that are the wrong way round.
            KeyRange::Interval { from, to: Some(to) } if to.0 <= *from => {
                (Bound::Included(from.clone()), Bound::Excluded(from.clone()))
            }
            KeyRange::Interval { from, to } => {
                let beyond = to.as_ref().map(|to| Bound::Excluded(to.0.clone()));
                let from = Bound::Included(from.clone());
                (from, beyond.unwrap_or(Bound::Unbounded))
            }
        }
    }

    pub(crate) fn keys_fit(&self, max: usize) -> bool {
        let to_fits = match self {
            KeyRange::Interval { to: Some(to), .. } => to.0.len() <= max,
            _ => true,
        };
        self.start().len() <= max && to_fits
    }
}

/// The first key beyond all that begin with `prefix`.
fn beyond_prefix(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut beyond = prefix[..=last].to_vec();
    beyond[last] += 1;
    Some(beyond.into())
}

/// A key as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct KeyValue {
    /// The key.
    #[cbor(n(0), with = "raft::codec")]
    pub key: Bytes,
    /// Its value; empty where only keys were asked for.
    #[cbor(n(1), with = "raft::codec")]
    pub value: Bytes,
    /// The revision at which it came to be.
    #[n(2)]
    pub created: u64,
    /// The revision that last changed it.
    #[n(3)]
    pub modified: u64,
    /// How often it was set since it came to be; from 1.
    #[n(4)]
    pub version: u64,
    /// The lease with which it goes.
    #[cbor(n(5), with = "raft::codec::unless_default", has_nil)]
    pub lease: LeaseId,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum KeyEvent {
    /// It was set; `modified` is the revision.
    #[n(0)]
    Put(#[n(0)] KeyValue),
    /// It was removed.
    #[n(1)]
    Delete {
        /// The key.
        #[cbor(n(0), with = "raft::codec")]
        key: Bytes,
        /// The revision.
        #[n(1)]
        revision: u64,
    },
}

impl KeyEvent {
    /// Which key.
    pub fn key(&self) -> &Bytes {
        match self {
            KeyEvent::Put(KeyValue { key, .. }) | KeyEvent::Delete { key, .. } => key,
        }
    }

    /// At which revision.
    pub fn revision(&self) -> u64 {
        match self {
            KeyEvent::Put(KeyValue { modified, .. }) => *modified,
            KeyEvent::Delete { revision, .. } => *revision,
        }
    }

    /// Its key and value, in bytes.
    pub(crate) fn size(&self) -> usize {
        match self {
            KeyEvent::Put(KeyValue { key, value, .. }) => key.len() + value.len(),
            KeyEvent::Delete { key, .. } => key.len(),
        }
    }
}

// Transactions.

/// If all conditions hold, one list of actions is carried out, else another: all of it at one
/// revision, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Transaction {
    /// What must hold; with none, it holds.
    #[n(0)]
    pub conditions: Vec<Condition>,
    /// What is done if all hold, in order: each sees what those before it did.
    #[n(1)]
    pub then: Vec<Action>,
    /// What is done if one does not.
    #[n(2)]
    pub otherwise: Vec<Action>,
}

impl Transaction {
    pub(crate) fn actions(&self) -> impl Iterator<Item = &Action> {
        self.then.iter().chain(&self.otherwise)
    }
}

/// Something that must hold of one key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Condition {
    /// The key.
    #[cbor(n(0), with = "raft::codec")]
    pub key: Bytes,
    /// What is compared.
    #[n(1)]
    pub target: Target,
    /// How it must compare.
    #[n(2)]
    pub comparison: Comparison,
}

/// What of a key is compared, with what. Of an absent key every number is 0, and its value is equal
/// to none, neither less nor greater.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Target {
    /// Its value, by bytes.
    #[n(0)]
    Value(#[cbor(n(0), with = "raft::codec")] Bytes),
    /// How often it was set since it came to be.
    #[n(1)]
    Version(#[n(0)] u64),
    /// The revision at which it came to be.
    #[n(2)]
    Created(#[n(0)] u64),
    /// The revision that last changed it.
    #[n(3)]
    Modified(#[n(0)] u64),
    /// Its lease.
    #[n(4)]
    Lease(#[n(0)] LeaseId),
}

/// How two things compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Comparison {
    /// The key's is equal.
    #[n(0)]
    Equal,
    /// It is not.
    #[n(1)]
    NotEqual,
    /// The key's is less.
    #[n(2)]
    Less,
    /// The key's is greater.
    #[n(3)]
    Greater,
}

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Action {
    /// Sets a key.
    #[n(0)]
    Put {
        /// The key.
        #[cbor(n(0), with = "raft::codec")]
        key: Bytes,
        /// Its new value.
        #[cbor(n(1), with = "raft::codec")]
        value: Bytes,
        /// With which it goes.
        #[n(2)]
        lease: Option<LeaseId>,
    },
    /// Removes keys, at most [`MAX_DELETED`].
    #[n(1)]
    Delete(#[n(0)] KeyRange),
    /// Reads keys; all reads of a transaction together at most [`MAX_TRANSACTION_READ`] bytes.
    #[n(2)]
    Get {
        /// Which.
        #[n(0)]
        range: KeyRange,
        /// How many at most, those that came to be first; 0: all.
        #[n(1)]
        oldest: u32,
    },
    /// Adds to a key whose value is a decimal number, or sets it if it is absent.
    #[n(3)]
    Add {
        /// The key.
        #[cbor(n(0), with = "raft::codec")]
        key: Bytes,
        /// How much.
        #[n(1)]
        delta: i64,
    },
}

/// What a transaction did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Transacted {
    /// The state's revision after it.
    #[n(0)]
    pub revision: u64,
    /// Whether the conditions held.
    #[n(1)]
    pub succeeded: bool,
    /// What each action of the branch did.
    #[n(2)]
    pub results: Vec<ActionResult>,
    /// The leader's term when it was logged: who orders by it and by revision orders as the log.
    #[n(3)]
    pub term: u64,
}

/// What one action did.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum ActionResult {
    /// It set a key.
    #[n(0)]
    Put,
    /// It removed so many.
    #[n(1)]
    Deleted(#[n(0)] u64),
    /// It read these; oldest first where a number was asked for, else in the order of keys.
    #[n(2)]
    Got(#[n(0)] Vec<KeyValue>),
    /// The number that stands there now.
    #[n(3)]
    Sum(#[n(0)] i64),
}

// Reads.

/// Asks for keys and values.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RangeRequest {
    /// Which.
    #[n(0)]
    pub range: KeyRange,
    /// Only those after this key: how one goes on where there was more.
    #[n(1)]
    pub after: Option<Value>,
    /// How many at most; 0: as many as one answer holds.
    #[n(2)]
    pub limit: u32,
    /// Without values.
    #[n(3)]
    pub keys_only: bool,
    /// Nothing but how many there are.
    #[n(4)]
    pub count_only: bool,
}

impl RangeRequest {
    /// All of `range`, from its beginning.
    pub fn all(range: KeyRange) -> RangeRequest {
        RangeRequest {
            range,
            after: None,
            limit: 0,
            keys_only: false,
            count_only: false,
        }
    }
}

/// Keys and values, in the order of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct RangeReading {
    /// The state's revision at which they were read.
    #[n(0)]
    pub revision: u64,
    /// The pairs.
    #[n(1)]
    pub pairs: Vec<KeyValue>,
    /// There are more after the last.
    #[n(2)]
    pub more: bool,
    /// How many there are; only where that was asked for.
    #[n(3)]
    pub count: Option<u64>,
}

// Leases.

/// A lease as it was granted or kept alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LeaseGrant {
    /// Which.
    #[n(0)]
    pub lease: LeaseId,
    /// How long it lives at least from when this was asked for, on a perfect clock.
    #[n(1)]
    pub ttl_ms: u64,
    /// The cluster's bound on how far any clock drifts, in parts per million.
    #[n(2)]
    pub drift_ppm: u32,
}

impl LeaseGrant {
    /// For how long after it was asked for the lease certainly lives, measured on a clock that keeps
    /// the drift bound, whatever the leader's clock does within that bound.
    pub fn certain(&self) -> std::time::Duration {
        let drift = u128::from(self.drift_ppm.min(99_999));
        let micros = u128::from(self.ttl_ms) * 1_000 * (1_000_000 - drift) / (1_000_000 + drift);
        std::time::Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }
}

/// How a lease stands.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LeaseStatus {
    /// Which.
    #[n(0)]
    pub lease: LeaseId,
    /// Its time to live, in milliseconds.
    #[n(1)]
    pub ttl_ms: u64,
    /// How long it lives yet at most, in milliseconds, by the leader's clock.
    #[n(2)]
    pub remaining_ms: u64,
    /// How many keys go with it.
    #[n(3)]
    pub keys: u64,
}

// Watches.

/// From where on changes are wanted: from this revision, without so many of its first changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Cursor {
    /// The revision.
    #[n(0)]
    pub revision: u64,
    /// How many changes of that revision have been seen or passed over.
    #[cbor(n(1), with = "raft::codec::unless_default", has_nil)]
    pub skip: u32,
}

impl Cursor {
    /// All changes from `revision` on, itself included.
    pub fn from(revision: u64) -> Cursor {
        Cursor { revision, skip: 0 }
    }
}

/// What a watch has seen.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Watched {
    /// Every change from the cursor up to `next`, in order; perhaps none.
    #[n(0)]
    Events {
        /// The changes.
        #[n(0)]
        events: Vec<KeyEvent>,
        /// Where to go on.
        #[n(1)]
        next: Cursor,
    },
    /// Changes from there on are no longer kept: read anew, and watch from the reading's revision.
    #[n(1)]
    Compacted {
        /// The first revision that is still kept.
        #[n(0)]
        oldest: u64,
    },
    /// This node holds no state: ask another.
    #[n(2)]
    Unavailable,
}
