//! What a log holds, and what stands in for its beginning once that was compacted.

use bytes::Bytes;

use crate::configuration::Configuration;
use crate::id::{ClientId, Index, LeaseEpoch, LogPosition, NodeKey, RequestNumber, Term};

/// One entry of the log.
///
/// On the wire and on disk the index is not repeated for each: entries are consecutive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where the entry stands.
    pub index: Index,
    /// The term in which a leader appended it.
    pub term: Term,
    /// What it says.
    pub payload: Payload,
}

impl Entry {
    /// The entry's index and term.
    pub fn position(&self) -> LogPosition {
        LogPosition {
            index: self.index,
            term: self.term,
        }
    }

    /// The lease epoch that the entry opens.
    pub fn opens(&self) -> Option<LeaseEpoch> {
        let number = match self.payload {
            Payload::Noop => 0,
            Payload::LeaseEpoch(number) => number,
            Payload::Configuration(_) | Payload::Command(_) => return None,
        };
        let term = self.term;
        Some(LeaseEpoch { term, number })
    }

    /// Roughly the bytes that the entry takes in a frame or on disk; used for bounds only.
    pub fn size(&self) -> usize {
        match &self.payload {
            Payload::Noop | Payload::LeaseEpoch(_) => OVERHEAD,
            Payload::Command(command) => command.size(),
            Payload::Configuration(configuration) => OVERHEAD + configuration.member_count() * 64,
        }
    }
}

/// About what an entry takes beside its data.
const OVERHEAD: usize = 32;

/// What an entry says. Variants are only ever added: the numbers stand on disks.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(flat)]
pub enum Payload {
    /// Opens a term, so that its leader can commit (Raft §5.4.2), and its lease epoch 0.
    #[n(0)]
    Noop,
    /// Who counts from here on.
    #[n(1)]
    Configuration(#[n(0)] Configuration),
    /// A client's command for the state machine.
    #[n(2)]
    Command(#[n(0)] Command),
    /// Opens another lease epoch of its term, since the one before was released in vain.
    #[n(3)]
    LeaseEpoch(#[n(0)] u64),
}

/// A command as the log carries it: opaque to consensus, numbered so that the state machine
/// recognises a retry.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Command {
    /// Who asked.
    #[n(0)]
    pub client: ClientId,
    /// Which of its requests this is.
    #[n(1)]
    pub request: RequestNumber,
    /// What the state machine is to do.
    #[cbor(n(2), with = "crate::codec")]
    pub data: Bytes,
}

impl Command {
    /// Roughly the bytes that it takes as an entry; used for bounds only.
    pub fn size(&self) -> usize {
        OVERHEAD + self.data.len()
    }
}

/// Term and vote: what a node may never forget (Raft §5.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct HardState {
    /// The newest term that this node has taken part in.
    #[n(0)]
    pub term: Term,
    /// Whom it voted for in that term.
    #[n(1)]
    pub voted_for: Option<NodeKey>,
}

/// The state as of one applied entry, in place of all entries up to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What the snapshot stands for.
    pub meta: SnapshotMeta,
    /// The state machine's own encoding of its state.
    pub data: Bytes,
}

/// What a snapshot stands for: position and configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct SnapshotMeta {
    /// The last entry whose effect the snapshot contains.
    #[n(0)]
    pub last: LogPosition,
    /// The configuration in force there: the entry that set it is gone with the log.
    #[n(1)]
    pub configuration: Configuration,
    /// The newest lease epoch opened by then.
    #[cbor(n(2), with = "crate::codec::unless_default", has_nil)]
    pub epoch: LeaseEpoch,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::Settings;

    fn entry(payload: Payload) -> Entry {
        Entry {
            index: Index(1),
            term: Term(1),
            payload,
        }
    }

    /// What an entry weighs when windows and budgets are filled.
    #[test]
    fn sizes() {
        let command = Command {
            client: ClientId(1),
            request: RequestNumber(1),
            data: Bytes::from_static(b"1234567"),
        };
        let members = (1..=3).map(|n| (NodeKey(n), String::new())).collect();
        let configuration = Configuration::of(members, Settings::default());
        assert_eq!(entry(Payload::Noop).size(), 32);
        assert_eq!(entry(Payload::LeaseEpoch(1)).size(), 32);
        assert_eq!(entry(Payload::Command(command)).size(), 39);
        assert_eq!(entry(Payload::Configuration(configuration)).size(), 224);
    }
}
