//! What a node tells of itself, readable at any time from any thread.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use raft::{Lease, Role};
use replica::{ActiveNode, PresenceEvent};
use tokio::sync::{Notify, broadcast, watch};

use crate::clock;
use crate::presence::AgreedMembers;

/// How many changes of presence a slow reader may be behind before it misses some.
const PRESENCE_BACKLOG: usize = 1_024;

/// How a node is. Every change is seen through [`crate::RaftNode::watch_status`].
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Status {
    /// Whether the node has a session with its broker, or with one of several.
    pub connected: bool,
    /// Its brokers, in the order in which they were given.
    pub brokers: Vec<Broker>,
    /// Its role in consensus; `None` while the cluster is not formed.
    pub role: Option<Role>,
    /// Whether it was started as a witness.
    pub witness: bool,
    /// The newest term that it has taken part in.
    pub term: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<String>,
    /// Its metric.
    pub metric: f64,
    /// The leader's metric, as it last said.
    pub leader_metric: Option<f64>,
    /// Whether this node was the only leader for certain when the status was made. For the answer
    /// at this moment ask [`crate::RaftNode::is_leader`].
    pub is_leader: bool,
    /// Where the node's log ends.
    pub last_index: u64,
    /// How far the node knows the log to be committed.
    pub commit_index: u64,
    /// How far its state has come.
    pub applied_index: u64,
    /// A checksum over all that it has applied: equal on nodes with equal `applied_index`.
    pub applied_digest: u32,
    /// The voters of the cluster it is of.
    pub voters: Vec<String>,
    /// The voters it still waits for before the cluster can be formed.
    pub missing_voters: Vec<String>,
    /// What an operator has to look at, in words; `None` while all is well.
    pub trouble: Option<String>,
    /// The legacy fleet, where the node was started to keep one: [`crate::NodeBuilder::legacy`].
    pub legacy: Option<LegacyStatus>,
}

/// One of a node's brokers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Broker {
    /// Its URL, without the password.
    pub url: String,
    /// Whether the node has a session with it.
    pub connected: bool,
}

/// A fleet of node-raft-over-mqtt 1.2.1 as this node sees it.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LegacyStatus {
    /// How many of its nodes were heard in the last 9 s.
    pub nodes: usize,
    /// Whether none of them stood for election or led in the last 10 s.
    pub follows: bool,
    /// Who of them led last, as far as this process has heard; `None`: nobody.
    pub leader: Option<LegacyLed>,
}

/// A node of a legacy fleet that led it.
#[derive(Clone, Debug, PartialEq)]
pub struct LegacyLed {
    /// Its name.
    pub node: String,
    /// When it was last heard to lead, to the second.
    pub heard_at: SystemTime,
}

/// What driver and handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    lease: Mutex<Option<Lease>>,
    leases: watch::Sender<Option<Lease>>,
    /// How many act on the lease.
    holders: Mutex<usize>,
    let_go: Notify,
    nodes: Mutex<Vec<ActiveNode>>,
    agreed: Mutex<Arc<AgreedMembers>>,
    rejections: Mutex<BTreeMap<String, u64>>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) presence: broadcast::Sender<PresenceEvent>,
}

impl Shared {
    pub(crate) fn new() -> Arc<Shared> {
        Arc::new(Shared {
            lease: Mutex::new(None),
            leases: watch::Sender::new(None),
            holders: Mutex::new(0),
            let_go: Notify::new(),
            nodes: Mutex::new(Vec::new()),
            agreed: Mutex::default(),
            rejections: Mutex::new(BTreeMap::new()),
            status: watch::Sender::new(Status::default()),
            presence: broadcast::Sender::new(PRESENCE_BACKLOG),
        })
    }

    pub(crate) fn set_lease(&self, lease: Option<Lease>) {
        *lock(&self.lease) = lease;
        self.leases.send_if_modified(|shown| {
            let changed = *shown != lease;
            *shown = lease;
            changed
        });
    }

    /// Every change of the lease.
    pub(crate) fn leases(&self) -> watch::Receiver<Option<Lease>> {
        self.leases.subscribe()
    }

    /// Counts somebody who acts on the lease.
    pub(crate) fn hold(self: &Arc<Shared>) -> Holder {
        *lock(&self.holders) += 1;
        Holder(Arc::clone(self))
    }

    /// Whether somebody acts on the lease.
    pub(crate) fn is_held(&self) -> bool {
        *lock(&self.holders) > 0
    }

    /// Waits until somebody has stopped acting on the lease.
    pub(crate) async fn let_go(&self) {
        self.let_go.notified().await;
    }

    /// The lease, if the clock at this moment lies within it.
    pub(crate) fn current_lease(&self) -> Option<Lease> {
        let lease = *lock(&self.lease);
        // The clock is read last: a process that was stopped before it may not claim what has
        // run out meanwhile.
        lease.filter(|lease| {
            let now = clock::now();
            lease.from <= now && now < lease.until
        })
    }

    pub(crate) fn set_nodes(&self, nodes: Vec<ActiveNode>) {
        *lock(&self.nodes) = nodes;
    }

    pub(crate) fn set_agreed(&self, agreed: AgreedMembers) {
        *lock(&self.agreed) = Arc::new(agreed);
    }

    pub(crate) fn agreed(&self) -> Arc<AgreedMembers> {
        Arc::clone(&lock(&self.agreed))
    }

    pub(crate) fn nodes(&self) -> Vec<ActiveNode> {
        lock(&self.nodes).clone()
    }

    pub(crate) fn node_count(&self) -> usize {
        lock(&self.nodes).len()
    }

    pub(crate) fn count_rejection(&self, kind: String) {
        *lock(&self.rejections).entry(kind).or_default() += 1;
    }

    pub(crate) fn rejections(&self) -> BTreeMap<String, u64> {
        lock(&self.rejections).clone()
    }
}

/// Somebody who acts on the lease, until it is dropped.
#[derive(Debug)]
pub(crate) struct Holder(Arc<Shared>);

impl Drop for Holder {
    fn drop(&mut self) {
        *lock(&self.0.holders) -= 1;
        self.0.let_go.notify_one();
    }
}

/// None of these locks is held across anything that can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
