//! The door: one node's state, how inputs reach it, and what must hold after each.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use crate::configuration::Configuration;
use crate::effect::{Durable, Effect, Input, Persist, Refusal, Rejection, SaveSnapshot};
use crate::election::{Candidacy, Election};
use crate::entry::{Entry, HardState, Payload, Snapshot, SnapshotMeta};
use crate::fetch::{Fetching, Serving};
use crate::follow::Following;
use crate::id::{Index, LeaseEpoch, NodeKey, PersistSeq, Term, Time};
use crate::lead::Leadership;
use crate::log::Log;
use crate::message::{Body, Message};
use crate::rng::Rng;
use crate::round_trip::RoundTrip;
use crate::sessions::Sessions;

/// One node's own settings. None of them bears on safety: nodes may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long a voter that has heard its leader refuses to vote, and the base of the time
    /// after which it campaigns. Source: Raft §5.2, §9.3; docs/timing.md.
    pub election_timeout: Duration,
    /// How long a leader stays silent at most. Below a third of `election_timeout`, so that one
    /// lost publish deposes nobody; a leader never exceeds a third of the lease either.
    pub heartbeat_interval: Duration,
    /// δ: how much later each rank campaigns, at least: see [`Input::RoundTrip`].
    pub rank_delay: Duration,
    /// The shortest time after which missing acknowledgements are asked for again.
    pub min_probe: Duration,
    /// How long a leader with nothing more to say waits before it tells the followers of a
    /// commit.
    pub commit_notice: Duration,
    /// About how many bytes of entries or snapshot go into one message.
    pub max_append_bytes: usize,
    /// How many appends may be unacknowledged by a quorum, and how many messages by the
    /// receiver of a stream.
    pub max_in_flight: usize,
    /// How many bytes of uncommitted proposals a leader holds, its predecessors' among them, before
    /// it answers [`Refusal::Busy`]. One proposal is taken whatever its size, up to `max_command_bytes`.
    pub max_uncommitted_bytes: usize,
    /// How many bytes of entries may wait for this node's own disk.
    ///
    /// Beyond it a leader answers [`Refusal::Busy`], and a follower takes an append for the
    /// heartbeat that it also is: it confirms the round, leaves the entries, and asks for them
    /// once its disk is through with half of these bytes. Any number: while no entry waits, one
    /// append or proposal is taken whatever its size. 8 MiB by default, as much as a leader holds
    /// uncommitted, so that only a disk slower than a quorum's comes to it.
    pub max_unpersisted_bytes: usize,
    /// The largest command. An append always has room for one.
    pub max_command_bytes: usize,
    /// The largest snapshot that is accepted from a leader.
    pub max_snapshot_bytes: u64,
    /// How many entries stay in memory behind a snapshot, so that a follower that is a little
    /// behind does not need the snapshot.
    pub trailing_entries: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            election_timeout: Duration::from_millis(1_000),
            heartbeat_interval: Duration::from_millis(250),
            rank_delay: Duration::from_millis(20),
            min_probe: Duration::from_millis(3),
            commit_notice: Duration::from_millis(20),
            max_append_bytes: 64 << 10,
            max_in_flight: 4,
            max_uncommitted_bytes: 8 << 20,
            max_unpersisted_bytes: 8 << 20,
            max_command_bytes: 96 << 10,
            max_snapshot_bytes: 256 << 20,
            trailing_entries: 1_000,
        }
    }
}

/// How far ahead of ours a term may be. Each term takes an election, so no correct peer is ever
/// that far ahead; without the bound one lie could use up all terms there are.
const MAX_TERM_LEAP: u64 = 1 << 32;

/// δ grows with the measured round trip to at most this share of the election timeout.
const MAX_RANK_DELAY_SHARE: u32 = 8;

/// How many messages wait for the disk. Beyond it the newest are not sent: whoever asked asks
/// again.
const MAX_WITHHELD: usize = 1_024;

/// What a node is in consensus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Holds the log without a vote: not, or not yet, among the voters.
    Learner,
    /// Follows a leader or waits for one.
    Follower,
    /// Asks whether it would win.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads its term. Not yet a claim to be the only one: that is [`Raft::lease`].
    Leader,
}

/// The time in which a leader is certainly the only one that acts (design point 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Which stretch of leadership this is; its [`LeaseEpoch::token`] is the fencing token.
    pub epoch: LeaseEpoch,
    /// Not before this: every older lease has ended by then.
    pub from: Time,
    /// Not at or after this, unless a quorum confirms again.
    pub until: Time,
}

/// How a member is doing, as its leader knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follower {
    /// Its disk holds the leader's log up to here.
    pub match_index: Index,
    /// It answered a round that is no older than the election timeout.
    pub is_heard: bool,
    /// The broadcast reaches it: no stream is needed to bring it further.
    pub is_caught_up: bool,
}

/// One node's part in consensus. See the [crate] documentation.
#[derive(Debug)]
pub struct Raft {
    pub(crate) me: NodeKey,
    pub(crate) options: Options,
    pub(crate) rng: Rng,
    /// The newest time seen; never goes back.
    pub(crate) now: Time,
    /// Ahead of the disk while `hard_state_seq` is not yet durable.
    pub(crate) hard_state: HardState,
    hard_state_seq: PersistSeq,
    pub(crate) log: Log,
    pub(crate) snapshot: Option<Snapshot>,
    /// Never goes back while the process lives.
    pub(crate) commit_index: Index,
    pub(crate) state: State,
    /// What this node knows of its term's leader.
    pub(crate) following: Following,
    pub(crate) election: Election,
    pub(crate) fetching: Fetching,
    pub(crate) serving: Serving,
    /// This node's own connection.
    pub(crate) sessions: Sessions,
    /// To the broker and back, as last measured.
    pub(crate) broker: RoundTrip,
    pub(crate) rank: u32,
    /// The write that this step has gathered; goes out at its end.
    pending: Persist,
    /// The last write handed out.
    written: PersistSeq,
    /// The last write confirmed.
    durable: PersistSeq,
    /// Messages that speak of writes not yet durable, by write, ascending.
    withheld: VecDeque<(PersistSeq, Effect)>,
    pub(crate) backlog: Backlog,
    effects: Vec<Effect>,
}

/// What the disk has been given and has not confirmed. Counted by write, not by what the log
/// holds: entries that a truncation removed wait for the disk all the same.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    /// The bytes of entries in each write that has any, ascending.
    writes: VecDeque<(PersistSeq, usize)>,
    /// All of these together.
    bytes: usize,
    /// The newest write of a snapshot.
    snapshot: PersistSeq,
    /// Entries were left for want of room: no more are taken before half of it is free.
    full: bool,
}

impl Backlog {
    fn begin(&mut self, write: &Persist, of_leader: bool) {
        if write.snapshot.is_some() {
            self.snapshot = write.seq;
        }
        // What a leader itself adds to its log is a few entries for each term, and never refused.
        let is_counted =
            |entry: &&Entry| !of_leader || matches!(entry.payload, Payload::Command(_));
        let bytes = write
            .entries
            .iter()
            .filter(is_counted)
            .map(Entry::size)
            .sum();
        if bytes > 0 {
            self.writes.push_back((write.seq, bytes));
            self.bytes += bytes;
        }
    }

    fn done(&mut self, seq: PersistSeq, bound: usize) {
        while let Some((_, bytes)) = self.writes.pop_front_if(|(begun, _)| *begun <= seq) {
            self.bytes -= bytes;
        }
        self.full &= self.bytes > bound / 2;
    }

    /// Whether `bytes` may be added after `before` others. Alone, any number may: otherwise what
    /// exceeds the bound by itself would never be taken.
    pub(crate) fn has_room(&self, before: usize, bytes: usize, bound: usize) -> bool {
        let held = self.bytes + before;
        held == 0 || held + bytes <= bound
    }
}

/// What differs between roles.
#[derive(Debug)]
pub(crate) enum State {
    Follower,
    Candidate(Candidacy),
    Leader(Box<Leadership>),
}

impl Raft {
    /// The node `me` with what its disk gave back. The seed spreads its elections.
    pub fn new(me: NodeKey, options: Options, seed: u64, durable: Durable, now: Time) -> Raft {
        let log = Log::recover(&durable);
        let mut raft = Raft {
            me,
            options,
            rng: Rng::new(seed),
            now,
            hard_state: durable.hard_state,
            hard_state_seq: PersistSeq(0),
            commit_index: log.base().index,
            log,
            snapshot: durable.snapshot,
            state: State::Follower,
            following: Following::default(),
            election: Election::default(),
            fetching: Fetching::default(),
            serving: Serving::default(),
            sessions: Sessions::default(),
            broker: RoundTrip::default(),
            rank: 0,
            pending: Persist::default(),
            written: PersistSeq(0),
            durable: PersistSeq(0),
            withheld: VecDeque::new(),
            backlog: Backlog::default(),
            effects: Vec::new(),
        };
        raft.following.verified = raft.commit_index;
        raft.schedule_first_election();
        raft
    }

    /// Takes one input at time `now` and returns what is to be done, in order.
    pub fn step(&mut self, input: Input, now: Time) -> Vec<Effect> {
        self.now = self.now.max(now);
        let before = (self.term(), self.commit_index, self.role(), self.leader());
        match input {
            Input::Tick => {}
            Input::Message { from, message } => self.on_message(from, message),
            Input::Propose(commands) => self.on_propose(commands),
            Input::Reconfigure {
                id,
                members,
                settings,
            } => self.on_reconfigure(id, &members, settings),
            Input::Transfer { to, patience } => self.on_transfer(to, patience),
            Input::Relinquished => self.on_relinquished(),
            Input::Read(id) => self.on_read(id),
            Input::Persisted(seq) => self.on_persisted(seq),
            Input::Compact { through, data } => self.on_compact(through, data),
            Input::Sessions(sessions) => self.on_sessions(sessions),
            Input::RoundTrip(took) => self.broker.sample(took),
            Input::LeaderGone { session } => self.on_leader_gone(session),
            Input::Rank(rank) => self.on_rank(rank),
            Input::Sources(sources) => self.on_sources(sources),
            Input::FetchSnapshot => self.on_fetch_snapshot(),
        }
        self.tick();
        self.flush_pending();
        self.check(before.0, before.1);
        if (before.0, before.2, before.3) != (self.term(), self.role(), self.leader()) {
            self.effects.push(Effect::StatusChanged);
        }
        std::mem::take(&mut self.effects)
    }

    /// When to step with [`Input::Tick`] if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Time> {
        match &self.state {
            State::Leader(leadership) => Some(self.leader_deadline(leadership)),
            State::Follower | State::Candidate(_) => self.election_deadline(),
        }
    }

    /// This node's key.
    pub fn me(&self) -> NodeKey {
        self.me
    }

    /// How many campaign before this node when the leader is gone, as far as it knows: 0 for none.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// What this node is.
    pub fn role(&self) -> Role {
        match &self.state {
            State::Leader(_) => Role::Leader,
            State::Candidate(candidacy) if candidacy.pre_vote => Role::PreCandidate,
            State::Candidate(_) => Role::Candidate,
            State::Follower if self.may_campaign() => Role::Follower,
            State::Follower => Role::Learner,
        }
    }

    /// Whether this node leads its term: its role is [`Role::Leader`].
    pub fn leads(&self) -> bool {
        matches!(self.state, State::Leader(_))
    }

    /// The newest term this node has taken part in.
    pub fn term(&self) -> Term {
        self.hard_state.term
    }

    /// Term and vote as they are, or are about to be, on disk.
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// Who leads, as far as this node knows.
    pub fn leader(&self) -> Option<NodeKey> {
        match &self.state {
            State::Leader(_) => Some(self.me),
            State::Candidate(_) => None,
            State::Follower => self.following.live_leader(),
        }
    }

    /// How far this node knows the log to be committed.
    pub fn commit_index(&self) -> Index {
        self.commit_index
    }

    /// Where this node's log ends.
    pub fn last_index(&self) -> Index {
        self.log.last().index
    }

    /// Where the entries held in memory begin: the index before the first.
    pub fn first_index(&self) -> Index {
        self.log.base().index
    }

    /// Everything up to here is on this node's disk.
    pub fn persisted_index(&self) -> Index {
        self.log.persisted()
    }

    /// Entries held in memory from `from` on; for inspection.
    pub fn entries(&self, from: Index) -> Vec<Entry> {
        self.log.slice(from, self.log.last().index, usize::MAX)
    }

    /// Entries held in memory from `from` to at most `through`; for inspection.
    pub fn entries_through(&self, from: Index, through: Index) -> Vec<Entry> {
        self.log.slice(from, through, usize::MAX)
    }

    /// Whether a write is under way.
    pub fn is_writing(&self) -> bool {
        self.durable < self.written
    }

    /// The configuration in force.
    pub fn configuration(&self) -> &Configuration {
        self.log.configuration()
    }

    /// Where the configuration in force stands in the log.
    pub fn configuration_index(&self) -> Index {
        self.log.configured_at()
    }

    /// The configuration that is committed, as far as this node knows; `None` before the first.
    pub fn committed_configuration(&self) -> Option<&Configuration> {
        let configuration = self.log.configuration_at(self.commit_index);
        (!configuration.voters.is_empty()).then_some(configuration)
    }

    /// How another member is doing, as the leader knows it; `None` where this node does not lead.
    pub fn follower(&self, key: NodeKey) -> Option<Follower> {
        let State::Leader(leadership) = &self.state else {
            return None;
        };
        Some(Follower {
            match_index: match key == self.me {
                true => self.log.persisted(),
                false => leadership.match_index(key),
            },
            is_heard: self.is_heard(leadership, key),
            is_caught_up: key == self.me || self.is_caught_up(leadership, key),
        })
    }

    /// The node's own settings.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Whether this node holds the log for others and applies nothing.
    pub fn is_witness(&self) -> bool {
        self.configuration().is_witness(self.me)
    }

    /// The newest lease epoch in the log.
    pub fn lease_epoch(&self) -> LeaseEpoch {
        self.log.epoch()
    }

    /// Those configurations of which one is the cluster's, as far as this node can tell: the one
    /// that is committed, and all that came after.
    pub(crate) fn possible_configurations(&self) -> impl Iterator<Item = &Configuration> {
        self.log.configurations_from(self.commit_index)
    }

    /// Whether this node's vote may still be needed. A voter that sees itself gone from an entry
    /// that is not committed yet may be the only one that can elect, or be, the leader who commits
    /// it (Raft thesis §4.2.2).
    pub(crate) fn may_campaign(&self) -> bool {
        self.possible_configurations()
            .any(|configuration| configuration.is_voter(self.me))
    }

    /// Whether whoever asks this node for its vote may need it. A learner may have become a voter
    /// without having heard of it.
    pub(crate) fn may_vote(&self) -> bool {
        self.possible_configurations()
            .any(|configuration| configuration.is_member(self.me))
    }

    // The door: the term is checked here, once.

    pub(crate) fn on_message(&mut self, from: NodeKey, message: Message) {
        if from == self.me {
            return;
        }
        let Message { term, body } = message;
        match body {
            // Pre-votes speak of a term that may never be; they change none here.
            Body::RequestPreVote(request) => return self.on_request_pre_vote(from, term, request),
            Body::PreVote(reply) if reply.granted => return self.on_pre_vote(from, reply),
            // Nor does a question for what is committed.
            Body::Fetch(request) => return self.on_fetch(from, request),
            _ => {}
        }
        if term < self.term() {
            return self.on_message_of_older_term(from, &body);
        }
        if term.0 - self.term().0 > MAX_TERM_LEAP {
            return self.reject_peer(from, Rejection::TermTooFar { term });
        }
        if term > self.term() {
            if !self.may_vote() && !shows_a_leader(&body) {
                return;
            }
            if let Body::RequestVote(request) = body
                && self.believes_leader_alive()
                && !request.transfer
            {
                return self.hold_vote_request(from, term, request);
            }
            self.become_follower_in(term);
        }
        self.on_message_of_this_term(from, body);
    }

    fn on_message_of_this_term(&mut self, from: NodeKey, body: Body) {
        match body {
            Body::RequestVote(request) => self.on_request_vote(from, request),
            Body::Vote(vote) => self.on_vote(from, vote),
            Body::Append(append) => self.on_append(from, append),
            Body::SnapshotChunk(chunk) => self.on_snapshot_chunk(from, *chunk),
            Body::Acknowledge(acknowledge) => self.on_acknowledge(from, acknowledge),
            Body::Reject(reject) => self.on_reject(from, reject),
            Body::SnapshotProgress(progress) => self.on_snapshot_progress(from, progress),
            Body::TimeoutNow(request) => self.on_timeout_now(from, request),
            Body::Fetched(fetched) => self.on_fetched(from, fetched),
            // A refused pre-vote carries the refuser's term, which was taken above.
            Body::RequestPreVote(_) | Body::PreVote(_) | Body::Fetch(_) => {}
        }
    }

    /// A leader or candidate of an older term must learn that its time is over, or a node that
    /// was cut off with a newer term could never come back.
    fn on_message_of_older_term(&mut self, from: NodeKey, body: &Body) {
        match body {
            Body::Append(_) | Body::SnapshotChunk(_) if self.may_vote() => {
                self.reject_older_leader(from);
            }
            Body::RequestVote(_) if self.may_vote() => self.refuse_vote(from),
            Body::Append(_)
            | Body::SnapshotChunk(_)
            | Body::RequestVote(_)
            | Body::RequestPreVote(_)
            | Body::PreVote(_)
            | Body::Vote(_)
            | Body::Acknowledge(_)
            | Body::Reject(_)
            | Body::SnapshotProgress(_)
            | Body::TimeoutNow(_)
            | Body::Fetch(_)
            | Body::Fetched(_) => {}
        }
    }

    fn tick(&mut self) {
        match &self.state {
            State::Leader(_) => self.lead(),
            State::Follower | State::Candidate(_) => self.seek_leader(),
        }
    }

    fn on_sessions(&mut self, sessions: Sessions) {
        let before = std::mem::replace(&mut self.sessions, sessions);
        if before != sessions && !sessions.is_empty() {
            self.announce_sessions();
        }
    }

    /// δ: by how much ranks are apart. More than it takes to hear of each other, as lately measured,
    /// but one slow moment must not make an election slow (design point 5).
    pub fn rank_delay(&self) -> Duration {
        let Options {
            rank_delay,
            election_timeout,
            ..
        } = self.options;
        let longest = election_timeout / MAX_RANK_DELAY_SHARE;
        rank_delay.max((2 * self.broker.overdue_after()).min(longest))
    }

    // Writing: gathered through a step, handed out at its end, confirmed later.

    /// The write that will make everything of this step durable.
    fn pending_seq(&self) -> PersistSeq {
        self.written.next()
    }

    /// Enters `term` or a vote; durable with this step's write.
    pub(crate) fn set_hard_state(&mut self, hard_state: HardState) {
        assert!(
            hard_state.term >= self.hard_state.term,
            "terms never go back"
        );
        self.hard_state = hard_state;
        self.hard_state_seq = self.pending_seq();
        self.pending.hard_state = Some(hard_state);
    }

    /// Whether term and vote are on disk as they stand.
    pub(crate) fn hard_state_is_durable(&self) -> bool {
        self.hard_state_seq <= self.durable
    }

    /// Appends to the log; durable with this step's write.
    pub(crate) fn append_entries(&mut self, entries: Vec<Entry>) {
        if let (Some(first), Some(held)) = (entries.first(), self.pending.entries.last()) {
            assert_eq!(
                first.index,
                held.index + 1,
                "one step writes consecutive entries"
            );
        }
        self.log.extend(entries.iter().cloned());
        self.pending.entries.extend(entries);
    }

    /// Saves a snapshot; durable with this step's write.
    pub(crate) fn save_snapshot(&mut self, snapshot: Snapshot, discard_log: bool) {
        self.snapshot = Some(snapshot.clone());
        self.pending.snapshot = Some(SaveSnapshot {
            snapshot,
            discard_log,
        });
    }

    /// Whether the disk has room for these entries. Once it had none, followers leave all entries
    /// until half of it is free: asking for one append at a time would cost a rejection for each.
    pub(crate) fn disk_takes(&mut self, entries: &[Entry]) -> bool {
        let size = |entries: &[Entry]| entries.iter().map(Entry::size).sum();
        let (before, bytes) = (size(&self.pending.entries), size(entries));
        let bound = self.options.max_unpersisted_bytes;
        self.backlog.full |= !self.backlog.has_room(before, bytes, bound);
        !self.backlog.full
    }

    /// Whether entries were left that the disk had no room for, and it still has none.
    pub(crate) fn disk_is_full(&self) -> bool {
        self.backlog.full
    }

    /// Whether a leader's snapshot may be handed to the disk: one at a time, and none while it
    /// has no room for entries.
    pub(crate) fn disk_takes_snapshot(&self) -> bool {
        self.backlog.snapshot <= self.durable && !self.backlog.full
    }

    fn flush_pending(&mut self) {
        let pending = &self.pending;
        if pending.hard_state.is_none() && pending.snapshot.is_none() && pending.entries.is_empty()
        {
            return;
        }
        let seq = self.pending_seq();
        self.written = seq;
        self.log.write_begun(seq);
        let write = std::mem::take(&mut self.pending);
        let write = Persist { seq, ..write };
        let leads = matches!(self.state, State::Leader(_));
        self.backlog.begin(&write, leads);
        self.effects.push(Effect::Persist(write));
    }

    /// Sends at once if everything so far is durable, otherwise as soon as it is.
    pub(crate) fn send_when_durable(&mut self, to: NodeKey, body: Body) {
        let effect = Effect::Send {
            to,
            message: self.message(body),
        };
        let needed = self.hard_state_seq;
        if needed <= self.durable {
            self.effects.push(effect);
        } else if self.withheld.len() < MAX_WITHHELD {
            self.withheld.push_back((needed, effect));
        }
    }

    fn on_persisted(&mut self, seq: PersistSeq) {
        assert!(
            seq <= self.written,
            "write {seq} was confirmed but never asked for"
        );
        self.durable = self.durable.max(seq);
        self.log.write_done(seq);
        self.backlog.done(seq, self.options.max_unpersisted_bytes);
        while let Some((_, effect)) = self.withheld.pop_front_if(|(needed, _)| *needed <= seq) {
            self.effects.push(effect);
        }
        match &self.state {
            State::Leader(_) => self.advance_commit(),
            State::Candidate(_) => self.on_candidacy_persisted(),
            State::Follower => self.acknowledge_persisted(),
        }
    }

    // What every role does.

    pub(crate) fn message(&self, body: Body) -> Message {
        Message {
            term: self.term(),
            body,
        }
    }

    pub(crate) fn send(&mut self, to: NodeKey, body: Body) {
        let message = self.message(body);
        self.effects.push(Effect::Send { to, message });
    }

    pub(crate) fn broadcast(&mut self, body: Body) {
        let message = self.message(body);
        self.effects.push(Effect::Broadcast(message));
    }

    pub(crate) fn emit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(crate) fn reject_peer(&mut self, from: NodeKey, reason: Rejection) {
        self.effects.push(Effect::Rejected { from, reason });
    }

    pub(crate) fn not_leader(&self) -> Refusal {
        Refusal::NotLeader {
            leader: self.leader(),
        }
    }

    /// Commits up to `index` and hands the entries to the state machine.
    pub(crate) fn commit_to(&mut self, index: Index) {
        if index <= self.commit_index {
            return;
        }
        assert!(
            index <= self.log.last().index,
            "what is committed is in the log"
        );
        let entries = self.log.slice(self.commit_index + 1, index, usize::MAX);
        self.commit_index = index;
        self.effects.push(Effect::Apply(entries));
    }

    /// The state machine saved itself: keep that and let the log's beginning go.
    fn on_compact(&mut self, through: Index, data: Bytes) {
        let Some(last) = self.log.position_at(through) else {
            return;
        };
        let older = self
            .snapshot
            .as_ref()
            .is_some_and(|held| held.meta.last.index >= through);
        if older || through > self.commit_index {
            return;
        }
        let meta = SnapshotMeta {
            last,
            configuration: self.log.configuration_at(through).clone(),
            epoch: self.log.epoch_at(through),
        };
        self.keep_snapshot(Snapshot { meta, data });
    }

    /// Keeps a snapshot of what is committed here, and lets the log's beginning go.
    pub(crate) fn keep_snapshot(&mut self, snapshot: Snapshot) {
        let last = snapshot.meta.last.index;
        self.save_snapshot(snapshot, false);
        let through = last.0.saturating_sub(self.options.trailing_entries);
        self.log.compact(Index(through));
    }

    /// What must hold after every step, whatever came in.
    fn check(&self, term: Term, commit_index: Index) {
        assert!(self.term() >= term, "terms never go back");
        assert!(
            self.commit_index >= commit_index,
            "a commit is never undone"
        );
        assert!(
            self.commit_index <= self.log.last().index,
            "a commit lies within the log"
        );
        assert!(
            self.log.persisted() <= self.log.last().index,
            "the disk is never ahead"
        );
        assert!(
            self.log.base().index <= self.commit_index,
            "only the committed is compacted"
        );
        let Backlog {
            writes,
            bytes,
            full,
            ..
        } = &self.backlog;
        assert!(
            writes.len() < 2 || *bytes <= self.options.max_unpersisted_bytes,
            "what waits for the disk is bounded"
        );
        assert!(
            !full || *bytes > 0,
            "whoever waits for the disk has asked it for something"
        );
        if let State::Leader(leadership) = &self.state {
            assert_eq!(
                self.hard_state.voted_for,
                Some(self.me),
                "a leader voted for itself"
            );
            assert!(
                self.hard_state_is_durable(),
                "a leader's own vote is on disk"
            );
            assert!(
                leadership.sent <= self.log.last().index,
                "only the log is sent"
            );
        }
    }
}

/// Whether who sends this follows an elected leader, or is one. Only such a term does an observer
/// enter: one that a candidate alone has entered may never have a leader, and an observer, whom
/// nobody hears, could not bring the others there.
fn shows_a_leader(body: &Body) -> bool {
    matches!(
        body,
        Body::Append(_) | Body::SnapshotChunk(_) | Body::Fetched(_)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::Settings;
    use crate::id::SessionId;
    use crate::id::{LogPosition, Round, StreamId};
    use crate::message::{Append, VoteRequest};

    const ME: NodeKey = NodeKey(1);
    const PEER: NodeKey = NodeKey(2);

    /// A voter in term 1 with `length` entries of it, of which the first is the formation record.
    fn voter(length: u64) -> Raft {
        let voters = (1..=3).map(|n| (NodeKey(n), format!("n{n}"))).collect();
        let configuration = Configuration::of(voters, Settings::default());
        let entry = |index| Entry {
            index: Index(index),
            term: Term(1),
            payload: match index {
                1 => Payload::Configuration(configuration.clone()),
                _ => Payload::Noop,
            },
        };
        let durable = Durable {
            hard_state: HardState {
                term: Term(1),
                voted_for: None,
            },
            snapshot: None,
            entries: (1..=length).map(entry).collect(),
        };
        Raft::new(ME, Options::default(), 7, durable, Time(0))
    }

    fn hear(raft: &mut Raft, term: u64, body: Body) -> Vec<Effect> {
        let message = Message {
            term: Term(term),
            body,
        };
        let from = PEER;
        raft.step(Input::Message { from, message }, raft.now)
    }

    fn heartbeat(prev: u64, commit: u64) -> Body {
        Body::Append(Append {
            round: Round(1),
            sessions: Sessions::of(SessionId(1)),
            stream: StreamId(0),
            prev: LogPosition {
                index: Index(prev),
                term: Term(1),
            },
            commit_index: Index(commit),
            entries: Vec::new(),
        })
    }

    fn request(term: u64) -> Body {
        let (index, term) = (Index(9), Term(term));
        Body::RequestVote(VoteRequest {
            last: LogPosition { index, term },
            transfer: false,
        })
    }

    fn sends(effects: &[Effect]) -> usize {
        let send = |effect: &&Effect| matches!(effect, Effect::Send { .. });
        effects.iter().filter(send).count()
    }

    /// A term may be 2³² ahead of ours, which is further than any peer can be, and not one more.
    #[test]
    fn terms_leap_so_far_and_no_further() {
        let mut raft = voter(1);
        let far = 1 + MAX_TERM_LEAP;
        hear(&mut raft, far, heartbeat(1, 0));
        assert_eq!(raft.term(), Term(far));
        let effects = hear(&mut raft, far + MAX_TERM_LEAP + 1, heartbeat(1, 0));
        assert_eq!(raft.term(), Term(far), "{effects:?}");
    }

    /// Of what waits for the disk 1,024 messages are kept, the oldest.
    #[test]
    fn messages_that_wait_are_bounded() {
        let mut raft = voter(1);
        for _ in 0..2 * MAX_WITHHELD {
            let effects = hear(&mut raft, 2, request(1));
            assert_eq!(sends(&effects), 0, "the vote is not on disk");
        }
        assert!(raft.is_writing());
        let effects = raft.step(Input::Persisted(PersistSeq(1)), raft.now);
        assert_eq!(sends(&effects), MAX_WITHHELD);
        assert!(!raft.is_writing());
        assert_eq!(raft.hard_state().voted_for, Some(PEER));
        assert_eq!(
            sends(&hear(&mut raft, 2, request(1))),
            1,
            "nothing waits now"
        );
    }

    /// What the state machine saved is kept if it is newer than what is kept, and committed.
    #[test]
    fn compaction_goes_forward_alone() {
        let mut raft = voter(5);
        raft.options.trailing_entries = 1;
        hear(&mut raft, 1, heartbeat(4, 4));
        let mut compact = |through| {
            let (through, data) = (Index(through), Bytes::from_static(b"state"));
            raft.step(Input::Compact { through, data }, raft.now);
            let saved = raft.snapshot.as_ref().map(|s| s.meta.last.index.0);
            (saved, raft.first_index().0)
        };
        assert_eq!(compact(5), (None, 0), "it is not committed");
        assert_eq!(compact(3), (Some(3), 2), "all but one before it went");
        assert_eq!(compact(2), (Some(3), 2), "it is older");
        assert_eq!(compact(1), (Some(3), 2), "it is gone");
        assert_eq!(compact(3), (Some(3), 2), "it is the same");
        assert_eq!(compact(4), (Some(4), 3), "the last that is committed");
    }

    /// Whoever holds no vote tells no candidate of an older term about the newer: it is not asked.
    #[test]
    fn who_has_no_vote_refuses_none() {
        let mut raft = Raft::new(ME, Options::default(), 7, Durable::default(), Time(0));
        assert_eq!(raft.role(), Role::Learner);
        hear(&mut raft, 3, heartbeat(9, 0));
        raft.step(Input::Persisted(PersistSeq(1)), raft.now);
        assert_eq!(hear(&mut raft, 2, request(1)), []);
        let mut raft = voter(1);
        hear(&mut raft, 3, heartbeat(1, 0));
        raft.step(Input::Persisted(PersistSeq(1)), raft.now);
        assert_eq!(sends(&hear(&mut raft, 2, request(1))), 1);
    }
    /// What the check after a step that began in `term` with `commit` says of this state.
    fn complaint(raft: &Raft, term: u64, commit: u64) -> Option<String> {
        let check = || raft.check(Term(term), Index(commit));
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).err()?;
        let literal = panic.downcast_ref::<&str>().map(|said| said.to_string());
        literal.or_else(|| panic.downcast_ref::<String>().cloned())
    }

    /// What must hold after every step is looked at after every step: each is broken here, and
    /// noticed.
    #[test]
    fn a_broken_promise_ends_the_node() {
        type Break = fn(&mut Raft);
        let breaks: [(&str, Break); 4] = [
            ("a commit lies within the log", |raft| {
                raft.commit_index = Index(9)
            }),
            ("only the committed is compacted", |raft| {
                raft.log.compact(Index(3));
                raft.commit_index = Index(1);
            }),
            ("a leader's own vote is on disk", |raft| {
                raft.become_leader(None);
                raft.set_hard_state(HardState {
                    voted_for: Some(ME),
                    ..raft.hard_state
                });
            }),
            ("only the log is sent", |raft| {
                raft.become_leader(None);
                if let State::Leader(leadership) = &mut raft.state {
                    leadership.sent = Index(9);
                }
            }),
        ];
        for (promise, broken) in breaks {
            let mut raft = voter(3);
            raft.hard_state.voted_for = Some(ME);
            broken(&mut raft);
            assert_eq!(complaint(&raft, 1, 0).as_deref(), Some(promise));
        }
        let mut raft = voter(3);
        assert_eq!(complaint(&raft, 1, 0), None);
        let promise = Some("terms never go back");
        assert_eq!(complaint(&raft, 2, 0).as_deref(), promise);
        let promise = Some("a commit is never undone");
        assert_eq!(complaint(&raft, 1, 1).as_deref(), promise);
        raft.become_leader(None);
        let promise = complaint(&raft, 1, 0).unwrap_or_default();
        assert!(promise.contains("a leader voted for itself"), "{promise}");
    }
}
