//! Who is there.

use std::sync::Arc;

use replica::{ActiveNode, AgreedNode, KeyEvent, KeyRange, Name, PresenceEvent};
use tokio::sync::broadcast;

use crate::error::Result;
use crate::kv::{Kv, Watch};
use crate::status::Shared;

/// Who is there, from births, wills and answers: see [`crate::RaftNode::presence_manager`].
///
/// A node counts as active from the birth that proved fresh until its session ended, or until it
/// no longer answered.
#[derive(Clone)]
pub struct PresenceManager {
    pub(crate) shared: Arc<Shared>,
}

impl PresenceManager {
    /// Everyone that is there, this node among them, by name; also the nodes of a legacy fleet that
    /// this node keeps, in the role [`crate::LEGACY_ROLE`].
    pub fn active_nodes(&self) -> Vec<ActiveNode> {
        self.shared.nodes()
    }

    /// How many are there, this node and a legacy fleet's included.
    pub fn active_nodes_count(&self) -> usize {
        self.shared.node_count()
    }

    /// Everyone that is there as the cluster has agreed, by this node's copy of the state: the same on
    /// every node at the same revision. Empty at a witness, which has no copy, and before any leader
    /// has written who is there. To follow it: [`AgreedMembers::watch`].
    pub fn agreed(&self) -> Arc<AgreedMembers> {
        self.shared.agreed()
    }

    /// Arrivals, changes and departures of other nodes from now on.
    pub fn changes(&self) -> PresenceChanges {
        PresenceChanges {
            receiver: self.shared.presence.subscribe(),
        }
    }
}

/// Everyone that is there, as the cluster has agreed at one revision.
///
/// The leader writes who came once it has proved that it lives, and who went: at once where its
/// session ended, else when it has been asked in vain. A node that was cut off for a while may go and
/// come again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgreedMembers {
    /// The revision of the state.
    pub revision: u64,
    /// By name, each with its role, metric and tags.
    pub nodes: Vec<AgreedNode>,
}

impl AgreedMembers {
    /// Reads it from the leader, linearizably, and every change from then on. With some hundreds of
    /// nodes and more it takes several answers, between which one may change: the changes tell.
    ///
    /// # Errors
    /// As [`Kv::get`].
    pub async fn watch(kv: &Kv) -> Result<(AgreedMembers, AgreedChanges)> {
        let nodes = KeyRange::Prefix(replica::NODES.into());
        let list = kv.list(nodes.clone()).await?;
        let read = |pair: &replica::KeyValue| AgreedNode::read(&pair.key, &pair.value);
        let members = AgreedMembers {
            revision: list.revision,
            nodes: list.pairs.iter().filter_map(read).collect(),
        };
        let watch = kv.watch(nodes, list.revision + 1);
        Ok((members, AgreedChanges { watch }))
    }
}

/// One change of who is there.
#[derive(Clone, Debug, PartialEq)]
pub struct AgreedChange {
    /// The revision at which it happened; several may share it.
    pub revision: u64,
    /// Who.
    pub name: Name,
    /// How it is from then on; `None`: it is gone.
    pub node: Option<AgreedNode>,
    /// Whether its name was not there before.
    pub arrived: bool,
}

/// Changes of who is there, in the order of revisions, none left out and none told twice.
#[derive(Debug)]
pub struct AgreedChanges {
    watch: Watch,
}

impl AgreedChanges {
    /// The next change. Safe to cancel.
    ///
    /// # Errors
    /// As [`Watch::next`]: [`crate::Error::Compacted`] calls for [`AgreedMembers::watch`] anew.
    pub async fn next(&mut self) -> Result<AgreedChange> {
        loop {
            let event = self.watch.next().await?;
            let Some(name) = AgreedNode::name_in(event.key()) else {
                continue;
            };
            let revision = event.revision();
            let (node, arrived) = match &event {
                KeyEvent::Put(put) => {
                    let node = AgreedNode::read(&put.key, &put.value);
                    if node.is_none() {
                        continue; // Of a newer build.
                    }
                    (node, put.version == 1)
                }
                KeyEvent::Delete { .. } => (None, false),
            };
            return Ok(AgreedChange {
                revision,
                name,
                node,
                arrived,
            });
        }
    }
}

/// A stream of changes of presence.
pub struct PresenceChanges {
    receiver: broadcast::Receiver<PresenceEvent>,
}

/// What [`PresenceChanges::next`] yields.
#[derive(Clone, Debug, PartialEq)]
pub enum PresenceChange {
    /// Someone came, changed or went.
    Event(PresenceEvent),
    /// The reader was too slow and missed this many: read [`PresenceManager::active_nodes`] anew.
    Missed(u64),
}

impl PresenceChanges {
    /// The next change; `None` once the node has stopped. Safe to cancel.
    pub async fn next(&mut self) -> Option<PresenceChange> {
        match self.receiver.recv().await {
            Ok(event) => Some(PresenceChange::Event(event)),
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                Some(PresenceChange::Missed(missed))
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
