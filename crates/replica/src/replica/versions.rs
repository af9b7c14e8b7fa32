//! Which frame version the others speak, and what has to wait until all of them speak the newest.
//!
//! A cluster is upgraded node by node. As long as a member that is there runs an older build, nothing
//! is begun that it would not understand: no change of members or settings, and no transfer of the
//! lead. Whoever is not there holds up nothing: it may never come back, and if it comes back as it
//! was, it refuses what it cannot read and says so.

use super::*;
use crate::frame::{OLDEST, VERSION};

impl Replica {
    /// Why what only the newest frame version has cannot be used now.
    pub(super) fn older_build(&self) -> Option<String> {
        if self.endpoint.speaks() < VERSION {
            let me = &self.endpoint.name;
            return Some(format!("{me} is kept at an older frame version"));
        }
        let raft = self.raft.as_ref()?;
        let members = raft.configuration().all_members();
        let others = members.filter(|key| *key != self.endpoint.key);
        others.into_iter().find_map(|key| self.older_build_of(key))
    }

    /// The same for one node.
    pub(super) fn older_build_of(&self, key: NodeKey) -> Option<String> {
        if !self.is_there(key) {
            return None;
        }
        let name = self.called(key);
        match self.endpoint.peers.speaks(key) {
            Some(speaks) if speaks >= VERSION => None,
            Some(_) => Some(format!("{name} runs an older build: upgrade it first")),
            None => Some(format!("{name} has not said yet which build it runs")),
        }
    }

    /// Whether someone there would not understand all that we can log. Asked for each write: one look at
    /// everyone tells for as long as nobody comes or says anew what it speaks.
    pub(super) fn is_mixed(&self) -> bool {
        self.mixed && self.older_build().is_some()
    }

    fn is_there(&self, key: NodeKey) -> bool {
        let follower = self.raft.as_ref().and_then(|raft| raft.follower(key));
        follower.is_some_and(|follower| follower.is_heard) || self.presence.has_spoken(key)
    }

    /// Broadcasts go in a version that everyone reads who may follow them: all members, and
    /// whoever else was admitted.
    pub(super) fn update_broadcast_version(&mut self) {
        if !std::mem::take(&mut self.versions_are_stale) {
            return;
        }
        let Some(raft) = &self.raft else { return };
        let members = raft.configuration().all_members();
        let peers = &self.endpoint.peers;
        let spoken = members
            .filter(|key| *key != self.endpoint.key)
            .map(|key| peers.speaks(key).unwrap_or(OLDEST))
            .chain(peers.all_speak());
        let lowest = spoken.min().unwrap_or(VERSION);
        self.endpoint.set_broadcast_version(lowest);
        self.mixed = self.older_build().is_some();
    }

    /// What this disk holds and only a newer frame version has.
    pub(super) fn beyond(durable: &Durable, newest: u8) -> bool {
        let snapshot = durable.snapshot.iter();
        let snapshot = snapshot.map(|snapshot| snapshot_version(&snapshot.meta));
        let entries = durable.entries.iter();
        let entries = entries.map(|entry| payload_version(&entry.payload));
        snapshot.chain(entries).any(|version| version > newest)
    }
}
