//! The vocabulary of the core: what goes in, what comes out.
//!
//! Effects are to be carried out in order. Three of them reach outside consensus: `Persist` (the
//! disk), `Broadcast`/`Send` (the broker) and `Apply`/`Restore` (the state machine). A message
//! that speaks of a write is withheld by the core until [`Input::Persisted`] confirms that
//! write, so that no executor can send it too early (design point 1).

use std::time::Duration;

use bytes::Bytes;

use crate::configuration::{ChangeError, MemberChange, Settings};
use crate::entry::{Command, Entry, HardState, Snapshot};
use crate::id::{
    ChangeId, ClientId, Index, NodeKey, PersistSeq, ReadId, RequestNumber, SessionId, Term,
};
use crate::message::Message;
use crate::sessions::Sessions;

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
    /// An operator wants other members, other settings, or both at once.
    Reconfigure {
        /// The number to answer by.
        id: ChangeId,
        /// The steps of the change.
        members: Vec<MemberChange>,
        /// The settings from then on; `None` leaves them.
        settings: Option<Settings>,
    },
    /// The lead is to go to this voter. From here on this leader makes no exclusive claim.
    Transfer {
        /// Who is to lead next.
        to: NodeKey,
        /// How long to wait at most for [`Input::Relinquished`].
        patience: Duration,
    },
    /// Whatever this node did as the only leader, it does no longer: its lease may be released.
    Relinquished,
    /// All writes up to this one are durable.
    Persisted(PersistSeq),
    /// The state machine has saved itself as of an applied index: the log up to there may go.
    Compact {
        /// The last entry whose effect is in `data`.
        through: Index,
        /// The state machine's own encoding.
        data: Bytes,
    },
    /// This node's own connections, one for each broker that is reached: a fresh id at each connect,
    /// none while no broker is reachable (design point 7).
    Sessions(Sessions),
    /// A Last Will said that this session ended. A hint, never a command, and none before every
    /// session that the leader announced has ended (design point 4).
    LeaderGone {
        /// The session that ended.
        session: SessionId,
    },
    /// How long something took to the broker and back. δ is twice what that takes at worst, but no less
    /// than [`crate::Options::rank_delay`] and no more than an eighth of the election timeout.
    RoundTrip(Duration),
    /// This node's place among the live voters, best metric first: decides when it campaigns,
    /// never whether (design points 3 and 5).
    Rank(u32),
    /// The voters that are there, as far as is known: whom this node asks if it has to ask at all.
    /// A hint; where there is none, the configuration's voters are tried.
    Sources(Vec<NodeKey>),
    /// The log has outgrown its snapshot, and this node has no state to save: it fetches another
    /// node's snapshot.
    FetchSnapshot,
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
    /// A change was carried through: the configuration in force is committed, and no longer joint.
    ChangeDone {
        /// Which change.
        id: ChangeId,
    },
    /// A change was not begun, or [`ChangeRefusal::Deposed`]: not seen through by this node.
    ChangeRefused {
        /// Which change.
        id: ChangeId,
        /// Why.
        refusal: ChangeRefusal,
    },
    /// The lead is not handed over, or the node that was to take it did not in time.
    TransferRefused {
        /// Who was to lead.
        to: NodeKey,
        /// Why.
        refusal: TransferRefusal,
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

/// Why a change of the configuration was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeRefusal {
    /// Ask the leader, where one is known.
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<NodeKey>,
    },
    /// The leader has not yet committed an entry of its own term, or its lease wait is not over
    /// and the change is one of settings: try again soon.
    TooEarly,
    /// Another change, or a transfer of the lead, is under way: try again soon.
    InProgress,
    /// No majority of the voters, as they are or as they would be, is being heard.
    NoQuorum,
    /// A learner that is to vote is still being brought up to date, or is not heard.
    NotCaughtUp(NodeKey),
    /// The leader itself would go: the lead is to be transferred first.
    Leader,
    /// The change does not fit the configuration.
    Invalid(ChangeError),
    /// This node lost the lead meanwhile: whether the change is carried through, the next leader
    /// knows.
    Deposed,
}

/// Why the lead was not handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferRefusal {
    /// Ask the leader, where one is known.
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<NodeKey>,
    },
    /// It leads already.
    Leader,
    /// It is no voter that could lead.
    NotAVoter,
    /// It was not heard within the election timeout.
    NotHeard,
    /// A change or another transfer is under way.
    InProgress,
    /// It was asked, and did not take over within the election timeout.
    TimedOut,
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
    /// A term further ahead than elections could have led.
    TermTooFar {
        /// The term.
        term: Term,
    },
    /// A configuration in which nobody votes, which no cluster could ever leave.
    NoVoters,
}
