//! The vocabulary of the core: what goes in, what comes out.
//!
//! Effects are to be carried out in order. Three of them reach outside consensus: `Persist` (the
//! disk), `Broadcast`/`Send` (the broker) and `Apply`/`Restore` (the state machine). A message
//! that speaks of a write is withheld by the core until [`Input::Persisted`] confirms that
//! write, so that no executor can send it too early (design point 1).

use bytes::Bytes;

use crate::entry::{Command, Entry, HardState, Snapshot};
use crate::id::{ClientId, Index, NodeKey, PersistSeq, ReadId, RequestNumber, SessionId, Term};
use crate::message::Message;

/// What happened, as the core is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time has passed: [`crate::Raft::next_deadline`] is due. Harmless when early.
    Tick,
    /// An authenticated message arrived.
    Message {
        /// The sender, as the sealed frame proves it.
        from: NodeKey,
        /// What it says.
        message: Message,
    },
    /// Clients want these commands in the log, in this order.
    Propose(Vec<Command>),
    /// A client wants to know an index at which a read is linearizable.
    Read(ReadId),
    /// All writes up to this one are durable.
    Persisted(PersistSeq),
    /// The state machine has saved itself as of an applied index: the log up to there may go.
    Compact {
        /// The last entry whose effect is in `data`.
        through: Index,
        /// The state machine's own encoding.
        data: Bytes,
    },
    /// This node's own connection: a fresh id at each connect, `None` while no broker is
    /// reachable (design point 7).
    Session(Option<SessionId>),
    /// A Last Will said that this session ended. A hint, never a command (design point 4).
    LeaderGone {
        /// The session that ended.
        session: SessionId,
    },
    /// This node's place among the live voters, best metric first: decides when it campaigns,
    /// never whether (design points 3 and 5).
    Rank(u32),
}

/// What is to be done, as the core asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make these durable, then say [`Input::Persisted`].
    Persist(Persist),
    /// Publish once, to every node.
    Broadcast(Message),
    /// Publish to one node.
    Send {
        /// The receiver.
        to: NodeKey,
        /// What to say.
        message: Message,
    },
    /// These entries are committed: hand them to the state machine.
    Apply(Vec<Entry>),
    /// Replace the state machine's state by this.
    Restore(Snapshot),
    /// The state machine may answer this read once it has applied up to `index`.
    ReadReady {
        /// Which read.
        id: ReadId,
        /// The index to have applied.
        index: Index,
    },
    /// A read cannot be answered here now.
    ReadRefused {
        /// Which read.
        id: ReadId,
        /// Why.
        refusal: Refusal,
    },
    /// A command was not taken into the log.
    ProposalRefused {
        /// Who asked.
        client: ClientId,
        /// Which of its requests.
        request: RequestNumber,
        /// Why.
        refusal: Refusal,
    },
    /// Role, term or leader changed; read them from the core.
    StatusChanged,
    /// A peer said what no correct peer says. Counted and logged, never obeyed.
    Rejected {
        /// Who said it.
        from: NodeKey,
        /// What was wrong.
        reason: Rejection,
    },
}

/// A write: hard state first, then snapshot, then entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Persist {
    /// The number to confirm it by.
    pub seq: PersistSeq,
    /// Term and vote, where they changed.
    pub hard_state: Option<HardState>,
    /// A snapshot to keep in place of the log's beginning.
    pub snapshot: Option<SaveSnapshot>,
    /// Consecutive entries. Any that the log already holds from the first one's index on are
    /// replaced.
    pub entries: Vec<Entry>,
}

/// A snapshot to be made durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveSnapshot {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// True when the log holds no entry that matches the snapshot's last one: then the whole
    /// log goes with it. False: entries beyond the snapshot stay.
    pub discard_log: bool,
}

/// What the disk gave back at start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durable {
    /// Term and vote.
    pub hard_state: HardState,
    /// The newest snapshot.
    pub snapshot: Option<Snapshot>,
    /// The entries after it, consecutive.
    pub entries: Vec<Entry>,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Ask the leader, where one is known.
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<NodeKey>,
    },
    /// The leader holds as many uncommitted bytes as it may, or as many wait for its disk: try
    /// again later.
    Busy,
    /// The command is larger than one append may be.
    TooLarge {
        /// The largest command in bytes.
        limit: usize,
    },
}

/// What a peer said that no correct peer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Two leaders claim one term.
    SecondLeader {
        /// The term.
        term: Term,
    },
    /// An append or snapshot contradicts an entry that is committed here, or that the same
    /// leader has sent before.
    ConflictBelowCommit {
        /// Where.
        index: Index,
    },
    /// Entries whose terms go back or lie beyond the message's own.
    DisorderedEntries,
    /// An acknowledgement of entries that were never sent.
    AcknowledgedTooMuch {
        /// What it claimed to hold.
        match_index: Index,
    },
    /// A snapshot larger than this node accepts, or chunks that contradict each other.
    BadSnapshot,
    /// A vote or acknowledgement from a node without a vote.
    NotAMember,
    /// A term further ahead than elections could have led.
    TermTooFar {
        /// The term.
        term: Term,
    },
    /// A configuration in which nobody votes, which no cluster could ever leave.
    NoVoters,
}
