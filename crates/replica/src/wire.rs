//! What stands inside a frame: CBOR, every field and variant numbered, only ever added to.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use minicbor::{Decode, Encode};
use raft::{Configuration, Entry, Index, NodeKey, Payload, RequestNumber, Settings, Term};

use crate::frame::MAX_BODY;
use crate::keys::{Incarnation, sha256};
use crate::kv::command_version;
use crate::name::Name;
use crate::saved::SavedMeta;
use crate::state::{
    Action, Cursor, KeyRange, LeaseGrant, LeaseId, LeaseStatus, RangeReading, RangeRequest,
    Transacted, Transaction, Watched,
};

/// The body of a frame.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[cbor(flat)]
pub(crate) enum Body {
    /// Between members of one formed cluster: to all, or to the node with this key. A name alone
    /// does not tell apart two processes that share it.
    #[n(0)]
    Consensus(#[n(0)] raft::Message, #[n(1)] Option<NodeKey>),
    /// Proves that both sides live now; see `peers.rs`.
    #[n(1)]
    Handshake(#[n(0)] Handshake),
    /// Who is there and what it holds; spoken in the lobby.
    #[n(2)]
    Hello(#[n(0)] Hello),
    /// From a client to the leader.
    #[n(3)]
    Request(#[n(0)] Request),
    /// The answer.
    #[n(4)]
    Reply(#[n(0)] Reply),
    /// "Is anyone else called as I am?", on one's own unicast topic, in the lobby.
    #[n(5)]
    Probe,
    /// "Yes: I was here before you."
    #[n(6)]
    Occupied(#[n(0)] Occupied),
    /// "Tell me how you are."
    #[n(7)]
    StatusRequest,
    /// The answer.
    #[n(8)]
    Status(#[n(0)] NodeStatus),
    /// "What does your own copy say of this key?"
    #[n(9)]
    StaleRead(#[n(0)] StaleRead),
    /// The answer, perhaps behind the leader's.
    #[n(10)]
    Stale(#[n(0)] Stale),
    /// "Give me a copy of your state."
    #[n(20)]
    SaveRequest(#[n(0)] SaveRequest),
    /// The answer.
    #[n(21)]
    Save(#[n(0)] Save),
    /// "Give me this part of the copy."
    #[n(22)]
    ChunkRequest(#[n(0)] ChunkRequest),
    /// The answer.
    #[n(23)]
    Chunk(#[n(0)] Chunk),
    /// "Tell me of changes."
    #[n(24)]
    Watch(#[n(0)] WatchRequest),
    /// The answer, when there is one.
    #[n(25)]
    Watched(#[n(0)] WatchReply),
    /// "Your node key is mine as well", between two processes under one key.
    #[n(30)]
    Twin(#[n(0)] Twin),
    /// "Say that you are there, at a moment of your own."
    #[n(31)]
    RollCall(#[n(0)] RollCall),
    /// The answer.
    #[n(32)]
    Present(#[n(0)] Present),
}

/// Asks one node, or all, to prove that they live; see `replica/roll_call.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct RollCall {
    /// A number that the answer is to contain.
    #[n(0)]
    pub(crate) challenge: u64,
    /// Within how many milliseconds to answer, at a random moment.
    #[n(1)]
    pub(crate) window_ms: u32,
}

/// Proves that a node lives, and repeats what it last said of itself.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Present {
    /// The number that was asked for.
    #[n(0)]
    pub(crate) echo: u64,
    /// Its birth, as it stands under `nodes/`.
    #[cbor(n(1), with = "raft::codec")]
    pub(crate) birth: Bytes,
}

/// What decides which of two processes under one key goes on; see `replica/meeting.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Twin {
    /// It has known a leader for long.
    #[n(0)]
    pub(crate) stood: bool,
}

impl Body {
    /// The lowest frame version in which this may be said: who reads no newer one would refuse it,
    /// or, worse, take it for something else.
    ///
    /// Fields that an older build may skip without harm raise nothing.
    pub(crate) fn version(&self) -> u8 {
        match self {
            Body::Consensus(message, _) => message_version(&message.body),
            Body::Request(request) => match &request.operation {
                Operation::Write(write) => write.version(),
                Operation::Get(_) => 1,
                Operation::Change(_)
                | Operation::Transfer(_)
                | Operation::Members
                | Operation::Range(_)
                | Operation::KeepAlive(_)
                | Operation::Lease(_)
                | Operation::Leases(_) => 2,
            },
            Body::Reply(reply) => match &reply.answer {
                Answer::Written(_)
                | Answer::Read(_)
                | Answer::NotLeader(_)
                | Answer::Busy
                | Answer::TooLarge(_)
                | Answer::SessionExpired => 1,
                Answer::SessionForgotten(_)
                | Answer::Transacted(_)
                | Answer::Granted(_)
                | Answer::NoSuchLease
                | Answer::Full(_)
                | Answer::Range(_)
                | Answer::Lease(_)
                | Answer::Leases(_)
                | Answer::Members(_)
                | Answer::NotYet(_)
                | Answer::Refused(_)
                | Answer::Transferred(_) => 2,
            },
            // An older build would form a cluster in which the witness is a voter like any other.
            Body::Hello(hello) if hello.witness || hello.holds.has_witnesses() => 2,
            Body::Handshake(_)
            | Body::Hello(_)
            | Body::Probe
            | Body::Occupied(_)
            | Body::StatusRequest
            | Body::Status(_)
            | Body::StaleRead(_)
            | Body::Stale(_) => 1,
            Body::SaveRequest(_)
            | Body::Save(_)
            | Body::ChunkRequest(_)
            | Body::Chunk(_)
            | Body::Watch(_)
            | Body::Watched(_)
            | Body::Twin(_)
            | Body::RollCall(_)
            | Body::Present(_) => 2,
        }
    }
}

fn message_version(message: &raft::message::Body) -> u8 {
    use raft::message::Body as Raft;
    match message {
        Raft::Append(append) => {
            let payloads = append
                .entries
                .iter()
                .map(|entry| payload_version(&entry.payload));
            payloads.max().unwrap_or(1)
        }
        Raft::SnapshotChunk(chunk) => snapshot_version(&chunk.meta),
        // Who does not know that the leader asked for this would not vote.
        Raft::RequestVote(request) if request.transfer => 2,
        Raft::RequestPreVote(_)
        | Raft::PreVote(_)
        | Raft::RequestVote(_)
        | Raft::Vote(_)
        | Raft::Acknowledge(_)
        | Raft::Reject(_)
        | Raft::SnapshotProgress(_) => 1,
        Raft::TimeoutNow(_) | Raft::Fetch(_) | Raft::Fetched(_) => 2,
    }
}

/// The lowest frame version that has this log entry.
pub(crate) fn payload_version(payload: &Payload) -> u8 {
    match payload {
        Payload::Noop => 1,
        Payload::Command(command) => command_version(command),
        Payload::Configuration(configuration) => configuration_version(configuration),
        Payload::LeaseEpoch(_) => 2,
    }
}

/// The lowest frame version that has all that this snapshot says of the log.
pub(crate) fn snapshot_version(meta: &raft::SnapshotMeta) -> u8 {
    let released = meta.epoch.number > 0;
    configuration_version(&meta.configuration).max(if released { 2 } else { 1 })
}

/// An older build takes a witness for a voter like any other, and does not wait before it commits
/// where leases are read.
fn configuration_version(configuration: &Configuration) -> u8 {
    let newer = !configuration.witnesses.is_empty() || configuration.settings.lease_reads;
    if newer { 2 } else { 1 }
}

/// Asks a node for a copy of its state, to be fetched in chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct SaveRequest {
    /// The revision that the state must have reached.
    #[n(0)]
    pub(crate) revision: u64,
}

/// What a node says to `SaveRequest`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Save {
    /// It keeps a copy, for as long as chunks of it are asked for.
    #[n(0)]
    Ready(#[n(0)] Box<Export>),
    /// Its state is behind: it has reached this revision.
    #[n(1)]
    Behind(#[n(0)] u64),
    /// It keeps a copy for someone else; one at a time.
    #[n(2)]
    Busy,
    /// It keeps no such copy any more.
    #[n(3)]
    Gone(#[n(0)] u64),
}

/// A copy of a node's state.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Export {
    /// Which copy.
    #[n(0)]
    pub id: u64,
    /// How many bytes it has.
    #[n(1)]
    pub size: u64,
    /// What it is a copy of.
    #[n(2)]
    pub meta: SavedMeta,
}

/// Asks for a part of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ChunkRequest {
    /// Of which copy.
    #[n(0)]
    pub(crate) id: u64,
    /// From which byte on.
    #[n(1)]
    pub(crate) offset: u64,
}

/// A part of a copy.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Chunk {
    /// Of which copy.
    #[n(0)]
    pub(crate) id: u64,
    /// From which byte on.
    #[n(1)]
    pub(crate) offset: u64,
    /// The bytes.
    #[cbor(n(2), with = "raft::codec")]
    pub(crate) data: Bytes,
}

/// A read that any node answers by itself.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StaleRead {
    /// Of which key.
    #[cbor(n(0), with = "raft::codec")]
    pub(crate) key: Bytes,
}

/// What a node's own copy says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Stale {
    /// Of which key.
    #[cbor(n(0), with = "raft::codec")]
    pub(crate) key: Bytes,
    /// What it says.
    #[n(1)]
    pub(crate) reading: Reading,
}

/// Challenges the receiver and answers its challenge, either or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Handshake {
    /// A number that the receiver is to send back.
    #[n(0)]
    pub(crate) challenge: Option<u64>,
    /// The number that the receiver sent.
    #[n(1)]
    pub(crate) echo: Option<u64>,
    /// The newest frame version that the sender speaks; `None`: 1.
    #[n(2)]
    pub(crate) speaks: Option<u8>,
}

/// What a node says of itself in the lobby.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Hello {
    /// An answer is wanted.
    #[n(0)]
    pub(crate) question: bool,
    /// What the sender's disk holds.
    #[n(1)]
    pub(crate) holds: Holds,
    /// The voters that it was started with, sorted; empty for an observer.
    #[n(2)]
    pub(crate) voters: Vec<String>,
    /// The settings that it would form the cluster with.
    #[n(3)]
    pub(crate) settings: Settings,
    /// The keys it has heard of those voters that are as empty as itself.
    #[n(4)]
    pub(crate) heard: BTreeMap<String, NodeKey>,
    /// Instead of naming voters it would form the cluster with so many of those that say the
    /// same; `heard` then holds whom it would choose.
    #[n(5)]
    pub(crate) expect: Option<u32>,
    /// It would be a witness.
    #[cbor(n(6), with = "raft::codec::unless_default", has_nil)]
    pub(crate) witness: bool,
}

/// How far a node has come in forming the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Holds {
    /// Nothing: a fresh or a wiped disk, or a client.
    #[n(0)]
    Nothing,
    /// It has promised to form this cluster and no other.
    #[n(1)]
    Accepted(#[n(0)] Formation),
    /// It is of this cluster.
    #[n(2)]
    Formed(#[n(0)] Formation),
}

impl Holds {
    fn has_witnesses(&self) -> bool {
        match self {
            Holds::Nothing => false,
            Holds::Accepted(formation) | Holds::Formed(formation) => {
                !formation.witnesses.is_empty()
            }
        }
    }
}

/// Who formed the cluster: log entry 1, the same on every node, and by its digest part of every
/// frame's cluster id (design point 9).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Formation {
    /// The first voters by key.
    #[n(0)]
    pub voters: BTreeMap<NodeKey, String>,
    /// What they settled.
    #[n(1)]
    pub settings: Settings,
    /// Where the state came from that the cluster began with; `None`: it began empty.
    #[n(2)]
    pub origin: Option<Origin>,
    /// Those of the voters that hold the log for others and apply nothing.
    #[cbor(n(3), with = "raft::codec::unless_default", has_nil)]
    pub witnesses: BTreeSet<NodeKey>,
}

/// Which cluster a restored or recovered one goes back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Origin {
    /// The digest of that cluster's formation record.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub formation: [u8; 32],
    /// Drawn for the new one: what is restored twice makes two clusters.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub nonce: [u8; 16],
}

impl Formation {
    /// SHA-256 of the record as it stands on the wire.
    pub fn digest(&self) -> [u8; 32] {
        sha256(&to_vec(self))
    }

    /// The key of the voter called `name`.
    pub fn key_of(&self, name: &str) -> Option<NodeKey> {
        self.voters
            .iter()
            .find(|(_, voter)| *voter == name)
            .map(|(key, _)| *key)
    }

    /// Whether no key is in both.
    pub(crate) fn is_disjoint(&self, other: &Formation) -> bool {
        !self.voters.keys().any(|key| other.voters.contains_key(key))
    }

    /// Log entry 1, of term 1, which no election reaches.
    pub fn first_entry(&self) -> Entry {
        let configuration = Configuration {
            witnesses: self.witnesses.clone(),
            ..Configuration::of(self.voters.clone(), self.settings)
        };
        Entry {
            index: Index(1),
            term: Term(1),
            payload: Payload::Configuration(configuration),
        }
    }
}

/// Tells a starting node that its name is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Occupied {
    /// Whom this answers: of all that is called so, only that process stops.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub(crate) incarnation: [u8; 16],
}

/// A client's request, answered by the leader.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Request {
    /// Who asks; see [`raft::ClientId`].
    #[n(0)]
    pub client: raft::ClientId,
    /// Which of its requests; from 1.
    #[n(1)]
    pub number: RequestNumber,
    /// All requests below this one are settled: their answers will not be asked for again.
    /// `None` while none of the client's writes has been answered: its session may be new.
    #[n(2)]
    pub settled: Option<RequestNumber>,
    /// What is asked.
    #[n(3)]
    pub operation: Operation,
    /// How far the log had come before the client's first write under this id: a session that was
    /// forgotten is told from one that is new by it.
    #[n(4)]
    pub begun: Option<Index>,
}

/// What a client may ask for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Operation {
    /// Change the state.
    #[n(0)]
    Write(#[n(0)] Write),
    /// Read a key, linearizably.
    #[n(1)]
    Get(#[cbor(n(0), with = "raft::codec")] Bytes),
    /// Change who is a member, the settings, or both at once.
    #[n(2)]
    Change(#[n(0)] Change),
    /// Hand the lead over.
    #[n(3)]
    Transfer(#[n(0)] Transfer),
    /// Tell who is a member, linearizably.
    #[n(4)]
    Members,
    /// Read keys, linearizably.
    #[n(5)]
    Range(#[n(0)] RangeRequest),
    /// Let a lease live for its whole time to live from now on.
    #[n(6)]
    KeepAlive(#[n(0)] LeaseId),
    /// Tell how a lease stands.
    #[n(7)]
    Lease(#[n(0)] LeaseId),
    /// Tell which leases there are after this one, in order, as many as one answer holds.
    #[n(8)]
    Leases(#[n(0)] LeaseId),
}

/// A change of the replicated state.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Write {
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
    /// Removes a key.
    #[n(1)]
    Delete {
        /// The key.
        #[cbor(n(0), with = "raft::codec")]
        key: Bytes,
    },
    /// Sets or removes a key if it has the expected value.
    #[n(2)]
    CompareAndSwap {
        /// The key.
        #[cbor(n(0), with = "raft::codec")]
        key: Bytes,
        /// The value it must have; `None`: it must be absent.
        #[n(1)]
        expected: Option<Value>,
        /// Its new value; `None`: remove it.
        #[n(2)]
        value: Option<Value>,
    },
    /// Does several things at once, if something holds.
    #[n(3)]
    Transaction(#[n(0)] Transaction),
    /// Begins a lease.
    #[n(4)]
    Grant {
        /// How long it lives without being kept alive, in milliseconds; what is beyond
        /// [`LEASE_TTL_MS`](crate::LEASE_TTL_MS) is taken for its nearer end.
        #[n(0)]
        ttl_ms: u64,
    },
    /// Ends a lease and removes what goes with it.
    #[n(5)]
    Revoke(#[n(0)] LeaseId),
    /// Ends leases that were not kept alive. The leader's own, never a client's.
    #[n(6)]
    Expire(#[n(0)] Vec<LeaseId>),
    /// What the leader writes about the cluster. Never a client's.
    #[n(7)]
    Own(#[n(0)] Vec<Action>),
}

impl Write {
    /// Sets a key.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Write {
        Write::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        }
    }

    /// Sets a key, or removes it for a `value` of `None`, if it has the expected value, where `None`
    /// expects it to be absent.
    pub fn compare_and_swap(
        key: impl Into<Bytes>,
        expected: Option<Bytes>,
        value: Option<Bytes>,
    ) -> Write {
        Write::CompareAndSwap {
            key: key.into(),
            expected: expected.map(Value),
            value: value.map(Value),
        }
    }

    /// Whether it is for the leader alone to log.
    pub(crate) fn is_own(&self) -> bool {
        matches!(self, Write::Expire(_) | Write::Own(_))
    }

    /// The lowest frame version that has it.
    pub(crate) fn version(&self) -> u8 {
        match self {
            Write::Put { lease, .. } if lease.is_some() => 2,
            Write::Put { .. } | Write::Delete { .. } | Write::CompareAndSwap { .. } => 1,
            Write::Transaction(_)
            | Write::Grant { .. }
            | Write::Revoke(_)
            | Write::Expire(_)
            | Write::Own(_) => 2,
        }
    }
}

/// Asks a node for changes of the state, now or as soon as there are any.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct WatchRequest {
    /// The asker's mark; asked again under the same, it replaces what was asked before.
    #[n(0)]
    pub(crate) id: u64,
    /// Of which keys.
    #[n(1)]
    pub(crate) range: KeyRange,
    /// From where on.
    #[n(2)]
    pub(crate) from: Cursor,
    /// How long to wait for a change before saying that there is none, in milliseconds.
    #[n(3)]
    pub(crate) hold_ms: u32,
}

/// What a node says to it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct WatchReply {
    /// The asker's mark.
    #[n(0)]
    pub(crate) id: u64,
    /// From where on was asked for.
    #[n(1)]
    pub(crate) from: Cursor,
    /// What there is.
    #[n(2)]
    pub(crate) watched: Watched,
}

/// To whom the lead is to go.
///
/// Asked for again after it was done, it does nothing and is answered as done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Transfer {
    /// To this node; `None`: to the best there is.
    #[n(0)]
    pub to: Option<String>,
    /// If this node leads; `None`: whoever leads. A retry that reaches the successor of the node
    /// that was meant is known by it.
    #[n(1)]
    pub from: Option<String>,
}

/// A change of members and settings, all of it or nothing.
///
/// Asked for again after it was made, it changes nothing and is answered as done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Change {
    /// Who comes, goes, gets or loses a vote.
    #[n(0)]
    pub members: Vec<MemberOperation>,
    /// The settings from then on; `None` leaves them.
    #[n(1)]
    pub settings: Option<Settings>,
}

/// One step of a [`Change`]. A member is meant by its name or, where two share one, by its name, `#`
/// and the beginning of its key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum MemberOperation {
    /// Has a node that runs hold the log, without a vote.
    #[n(0)]
    Add {
        /// Who.
        #[n(0)]
        who: String,
        /// Whether it is a witness.
        #[n(1)]
        witness: bool,
    },
    /// Gives a learner a vote.
    #[n(1)]
    Promote(#[n(0)] String),
    /// Takes a voter's vote.
    #[n(2)]
    Demote(#[n(0)] String),
    /// Lets a member go.
    #[n(3)]
    Remove(#[n(0)] String),
}

/// Who belongs to the cluster, as its leader knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Members {
    /// Everyone, in the order of their names.
    #[n(0)]
    pub members: Vec<Member>,
    /// What the cluster has settled.
    #[n(1)]
    pub settings: Settings,
    /// The log entry that says so.
    #[n(2)]
    pub index: u64,
    /// Who leads.
    #[n(3)]
    pub leader: String,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Member {
    /// Its name.
    #[n(0)]
    pub name: String,
    /// Its key.
    #[n(1)]
    pub key: NodeKey,
    /// It votes.
    #[n(2)]
    pub voter: bool,
    /// It holds the log for others and applies nothing.
    #[n(3)]
    pub witness: bool,
    /// It is being let go, or loses its vote: a change is under way.
    #[n(4)]
    pub leaving: bool,
    /// The leader heard it within the election timeout.
    #[n(5)]
    pub heard: bool,
    /// The leader's broadcast reaches it: it is not being brought up to date.
    #[n(6)]
    pub caught_up: bool,
    /// Its disk holds the log up to here.
    #[n(7)]
    pub match_index: u64,
}

/// A value where it may be absent.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct Value(#[cbor(n(0), with = "raft::codec")] pub Bytes);

/// The leader's answer, or another node's that is asked in its place.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Reply {
    /// Which request.
    #[n(0)]
    pub number: RequestNumber,
    /// Who asked.
    #[n(1)]
    pub client: raft::ClientId,
    /// The answer.
    #[n(2)]
    pub answer: Answer,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Answer {
    /// The write was applied. `revision`: the store's, after it.
    #[n(0)]
    Written(#[n(0)] Written),
    /// The value that was read.
    #[n(1)]
    Read(#[n(0)] Reading),
    /// Ask this node, or whoever leads next.
    #[n(2)]
    NotLeader(#[n(0)] Option<String>),
    /// The leader has too much under way.
    #[n(3)]
    Busy,
    /// Key or value is too large.
    #[n(4)]
    TooLarge(#[n(0)] u64),
    /// The client's session is no longer known, so that a retry could apply twice: the outcome
    /// stays unknown.
    #[n(5)]
    SessionExpired,
    /// The members, after the change where one was asked for.
    #[n(6)]
    Members(#[n(0)] Members),
    /// Not now, for this reason: ask again.
    #[n(7)]
    NotYet(#[n(0)] String),
    /// Never, for this reason.
    #[n(8)]
    Refused(#[n(0)] String),
    /// This node leads now.
    #[n(9)]
    Transferred(#[n(0)] String),
    /// What a transaction did.
    #[n(10)]
    Transacted(#[n(0)] Box<Transacted>),
    /// The lease lives, from when this was asked for.
    #[n(11)]
    Granted(#[n(0)] LeaseGrant),
    /// There is no such lease, or none any more: nothing was changed.
    #[n(12)]
    NoSuchLease,
    /// The state, or the number of leases, is at this bound: nothing was changed.
    #[n(13)]
    Full(#[n(0)] u64),
    /// The keys that were read.
    #[n(14)]
    Range(#[n(0)] RangeReading),
    /// How a lease stands.
    #[n(15)]
    Lease(#[n(0)] LeaseStatus),
    /// Which leases there are, in order.
    #[n(16)]
    Leases(#[n(0)] Vec<LeaseId>),
    /// The client's session is no longer known, and this copy of the request did nothing. How far the
    /// log has come: who begins anew begins here.
    #[n(17)]
    SessionForgotten(#[n(0)] Index),
}

/// The effect of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Written {
    /// The store's revision after it.
    #[n(0)]
    pub revision: u64,
    /// Whether it changed anything: false for a delete of an absent key and a compare-and-swap
    /// that found another value.
    #[n(1)]
    pub applied: bool,
}

/// The result of a read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Reading {
    /// The store's revision at which it was read.
    #[n(0)]
    pub revision: u64,
    /// The key's value; `None` where it has none.
    #[n(1)]
    pub value: Option<Value>,
    /// The revision that last changed the key; 0 where it has no value.
    #[n(2)]
    pub modified: u64,
}

/// How a node is, as it says itself.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct NodeStatus {
    /// Its name.
    #[n(0)]
    pub node: String,
    /// Its key.
    #[n(1)]
    pub key: NodeKey,
    /// Its role, as `status` JSON spells it.
    #[n(2)]
    pub role: String,
    /// Its term.
    #[n(3)]
    pub term: u64,
    /// Whom it follows.
    #[n(4)]
    pub leader: Option<String>,
    /// Its metric.
    #[n(5)]
    pub metric: f64,
    /// Where its log ends.
    #[n(6)]
    pub last_index: u64,
    /// How far it knows the log to be committed.
    #[n(7)]
    pub commit_index: u64,
    /// How far its state machine has come.
    #[n(8)]
    pub applied_index: u64,
    /// A checksum over everything that it has applied.
    #[n(9)]
    pub applied_digest: u32,
    /// The store's revision.
    #[n(10)]
    pub revision: u64,
    /// The names of the voters it knows.
    #[n(11)]
    pub voters: Vec<String>,
    /// Whether it is the only leader for certain, at the moment of answering.
    #[n(12)]
    pub is_leader: bool,
    /// The version of the program.
    #[n(13)]
    pub version: String,
    /// Its process.
    #[cbor(n(14), with = "minicbor::bytes")]
    pub incarnation: [u8; 16],
    /// What an operator has to look at, in words.
    #[n(15)]
    pub trouble: Option<String>,
    /// The ids of the cluster keys that it accepts; the first is the one that it seals with. None:
    /// insecure, or of a version that does not say.
    #[n(20)]
    pub keys: Option<Vec<u8>>,
}

impl NodeStatus {
    /// Its process.
    pub fn process(&self) -> Incarnation {
        Incarnation(self.incarnation)
    }
}

/// The CBOR of `value`.
pub(crate) fn to_vec<T: Encode<()>>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    append_to(value, &mut bytes);
    bytes
}

/// Appends the CBOR of `value` to `bytes`.
pub(crate) fn append_to<T: Encode<()>>(value: &T, bytes: &mut Vec<u8>) {
    let Ok(()) = minicbor::encode(value, bytes).map_err(|_| ()) else {
        unreachable!("writing to a vector does not fail");
    };
}

/// Reads a value that must fill `bytes` entirely.
pub(crate) fn from_slice<'b, T: Decode<'b, ()>>(
    bytes: &'b [u8],
) -> Result<T, minicbor::decode::Error> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let value = decoder.decode()?;
    if decoder.position() != bytes.len() {
        return Err(minicbor::decode::Error::message("trailing bytes"));
    }
    Ok(value)
}

/// The name in a wire field, where it is one.
pub(crate) fn name(text: &str) -> Option<Name> {
    Name::new(text).ok()
}

/// The largest key, in bytes.
pub const MAX_KEY: usize = 1 << 10;

/// The largest value, in bytes.
pub const MAX_VALUE: usize = 64 << 10;

const _: () = assert!(
    MAX_VALUE + MAX_KEY + 1_024 <= MAX_BODY,
    "a command fits a frame"
);
