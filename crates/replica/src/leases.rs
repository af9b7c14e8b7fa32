//! Leases as all nodes agree on them: which there are, how long each lives, and what goes with it.
//! When one ends is for the leader's clock to say (`replica/leases.rs`); that it has ended, the log.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft::Index;

use crate::state::LeaseId;

/// How many leases there may be.
pub const MAX_LEASES: usize = 65_536;

/// How many keys one lease may hold.
pub const MAX_LEASE_KEYS: usize = 10_000;

/// All leases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leases(BTreeMap<LeaseId, Lease>);

/// One lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) ttl_ms: u64,
    /// What goes with it.
    pub(crate) keys: BTreeSet<Bytes>,
}

impl Leases {
    pub(crate) fn get(&self, lease: LeaseId) -> Option<&Lease> {
        self.0.get(&lease)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (LeaseId, &Lease)> {
        self.0.iter().map(|(id, lease)| (*id, lease))
    }

    /// Those after `after`, in order.
    pub(crate) fn after(&self, after: LeaseId) -> impl Iterator<Item = (LeaseId, &Lease)> {
        let beyond = LeaseId(after.0.saturating_add(1));
        self.0.range(beyond..).map(|(id, lease)| (*id, lease))
    }

    /// A new one, called by the entry that grants it; `None` if there are too many.
    pub(crate) fn grant(&mut self, at: Index, ttl_ms: u64) -> Option<LeaseId> {
        if self.0.len() >= MAX_LEASES {
            return None;
        }
        let lease = LeaseId(at.0);
        self.insert(lease, ttl_ms);
        Some(lease)
    }

    pub(crate) fn insert(&mut self, lease: LeaseId, ttl_ms: u64) {
        let keys = BTreeSet::new();
        self.0.insert(lease, Lease { ttl_ms, keys });
    }

    pub(crate) fn remove(&mut self, lease: LeaseId) -> Option<Lease> {
        self.0.remove(&lease)
    }

    /// `key` goes with `to` from now on, and no longer with `from`.
    pub(crate) fn attach(&mut self, key: &Bytes, from: LeaseId, to: LeaseId) {
        if from == to {
            return;
        }
        if let Some(lease) = self.0.get_mut(&from) {
            lease.keys.remove(key);
        }
        if let Some(lease) = self.0.get_mut(&to) {
            lease.keys.insert(key.clone());
        }
    }
}
