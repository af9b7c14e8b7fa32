//! Who is there.

use std::sync::Arc;

use replica::{ActiveNode, PresenceEvent};
use tokio::sync::broadcast;

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

    /// Arrivals, changes and departures of other nodes from now on.
    pub fn changes(&self) -> PresenceChanges {
        PresenceChanges {
            receiver: self.shared.presence.subscribe(),
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
