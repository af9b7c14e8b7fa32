//! Leading: one publish per append, commit by quorum, reads by round, a lease by the clock.
//!
//! Every append, empty or not, is a *round*. A follower's answer echoes the newest round it has
//! heard, so one answer tells three things: what the follower holds (commit), that it still
//! followed when that round was sent (CheckQuorum and the lease, by the round's send time), and
//! that no newer leader had its promise then (ReadIndex, by the round's number).
//!
//! How much may be under way is bounded by what a *quorum* has not acknowledged yet: while the
//! window is full, proposals gather in the log and leave together, and one slow follower slows
//! nobody.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::catch_up::Streams;
use crate::configuration::{Configuration, Settings};
use crate::effect::{ChangeRefusal, Effect, Refusal, Rejection};
use crate::entry::{Command, Entry, Payload};
use crate::id::{ChangeId, Index, LeaseEpoch, NodeKey, ReadId, Round, StreamId, Time};
use crate::message::{Acknowledge, Append, Body};
use crate::raft::{Lease, Raft, State};
use crate::round_trip::RoundTrip;
use crate::steer::Transfer;

/// How many rounds' send times are remembered; an echo of an older one confirms nothing.
const MAX_ROUNDS: usize = 4_096;

/// The shortest time between two heartbeats.
const MIN_HEARTBEAT_INTERVAL: Duration = Duration::from_millis(1);

/// How many reads wait for their round.
const MAX_READS: usize = 65_536;

/// What a leader knows while it leads.
#[derive(Debug)]
pub(crate) struct Leadership {
    won_at: Time,
    /// The no-op that opened this term: nothing counts as committed before it.
    pub(crate) opened: Index,
    /// The newest lease epoch of this leadership, and the entry that opened it.
    pub(crate) epoch: LeaseEpoch,
    pub(crate) epoch_opened: Index,
    /// Every older leader's lease has ended by then.
    pub(crate) exclusive_from: Time,
    /// The lead is being handed over: no claim is made any more.
    pub(crate) withdrawn: bool,
    pub(crate) transfer: Option<Transfer>,
    /// Who did not take over when it was asked last.
    pub(crate) asked_in_vain: Option<NodeKey>,
    /// Who waits for the configuration to be committed.
    pub(crate) change: Option<ChangeId>,
    progress: BTreeMap<NodeKey, Progress>,
    /// The newest round that a quorum has confirmed, where this node itself counts as ahead of all.
    quorum: Option<(Round, Time)>,
    /// The log has been broadcast up to here.
    pub(crate) sent: Index,
    /// Broadcast appends that no quorum has acknowledged, by their last index.
    in_flight: VecDeque<Index>,
    /// The newest round, and when each remembered one was sent, ascending.
    pub(crate) round: Round,
    sent_at: VecDeque<(Round, Time)>,
    /// The newest round that went to all; the others went to one node each.
    broadcast: Round,
    /// The last one that went to all twice: its answers may be to either.
    repeated: Round,
    heartbeat_at: Time,
    /// When to ask for overdue acknowledgements.
    probe_at: Option<Time>,
    probes: u32,
    round_trip: RoundTrip,
    /// When to tell the followers of the commit.
    tell_commit_at: Option<Time>,
    /// Commands in the log that are not known to be committed, whoever proposed them: if only this
    /// leader's own counted, leader after leader could add as much.
    uncommitted_bytes: usize,
    reads: VecDeque<Read>,
    pub(crate) streams: Streams,
}

/// What a leader knows of one other member.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// The member's disk holds the leader's log up to here.
    match_index: Index,
    /// The newest round that it echoed, and when that was sent.
    confirmed: Option<(Round, Time)>,
    /// Its own clock when it last acknowledged.
    clock: Time,
}

/// A read and the round that must be confirmed before it is answered.
#[derive(Debug)]
struct Read {
    id: ReadId,
    round: Round,
    index: Index,
}

impl Raft {
    // Taking and leaving the lead.

    /// Takes the lead; `released` names the lease epoch that need not be waited out.
    pub(crate) fn become_leader(&mut self, released: Option<LeaseEpoch>) {
        self.following.heard_at = None;
        let last = self.log.last().index;
        // A release speaks of one epoch. If another was opened since, its leader may be exclusive.
        let wait = match released {
            Some(epoch) if epoch == self.log.epoch() => Duration::ZERO,
            _ => self.lease_wait(),
        };
        let (term, number) = (self.term(), 0);
        let inherited = self.log.range(self.commit_index + 1, last);
        let leadership = Leadership {
            won_at: self.now,
            opened: last + 1,
            epoch: LeaseEpoch { term, number },
            epoch_opened: last + 1,
            exclusive_from: self.now + wait,
            withdrawn: false,
            transfer: None,
            asked_in_vain: None,
            change: None,
            progress: BTreeMap::new(),
            quorum: None,
            sent: last,
            in_flight: VecDeque::new(),
            round: Round(0),
            sent_at: VecDeque::new(),
            broadcast: Round(0),
            repeated: Round(0),
            heartbeat_at: self.now,
            probe_at: None,
            probes: 0,
            round_trip: RoundTrip::default(),
            tell_commit_at: None,
            uncommitted_bytes: inherited.map(command_bytes).sum(),
            reads: VecDeque::new(),
            streams: Streams::default(),
        };
        self.state = State::Leader(Box::new(leadership));
        self.election_succeeded();
        self.append_as_leader(vec![Payload::Noop]);
        self.advance_commit();
    }

    /// What depended on leading is given up.
    pub(crate) fn leave_leadership(&mut self) {
        let State::Leader(leadership) = &mut self.state else {
            return;
        };
        let reads = std::mem::take(&mut leadership.reads);
        let change = leadership.change.take();
        self.state = State::Follower;
        if let Some(id) = change {
            let refusal = ChangeRefusal::Deposed;
            self.emit(Effect::ChangeRefused { id, refusal });
        }
        let refusal = self.not_leader();
        for read in reads {
            self.emit(Effect::ReadRefused {
                id: read.id,
                refusal,
            });
        }
    }

    // Proposals.

    pub(crate) fn on_propose(&mut self, commands: Vec<Command>) {
        let mut payloads = Vec::with_capacity(commands.len());
        let mut admitted = 0;
        for command in commands {
            match self.admit(&command, admitted) {
                Ok(()) => {
                    admitted += command.size();
                    payloads.push(Payload::Command(command));
                }
                Err(refusal) => {
                    let Command {
                        client, request, ..
                    } = command;
                    self.emit(Effect::ProposalRefused {
                        client,
                        request,
                        refusal,
                    });
                }
            }
        }
        if !payloads.is_empty() {
            self.append_as_leader(payloads);
            self.advance_commit();
        }
    }

    /// Whether `command` is taken after `admitted` bytes of the same proposal.
    fn admit(&mut self, command: &Command, admitted: usize) -> Result<(), Refusal> {
        let limit = self.options.max_command_bytes;
        let bound = self.options.max_uncommitted_bytes;
        // Others may commit what this node's own disk has not: the budget alone does not bound
        // what waits for the disk.
        let unpersisted = self.options.max_unpersisted_bytes;
        let disk_has_room = self.backlog.has_room(admitted, command.size(), unpersisted);
        let refusal = self.not_leader();
        let witness = self.is_witness();
        let State::Leader(leadership) = &mut self.state else {
            return Err(refusal);
        };
        if self.sessions.is_empty() || witness {
            return Err(Refusal::NotLeader { leader: None });
        }
        if command.data.len() > limit {
            return Err(Refusal::TooLarge { limit });
        }
        // Alone, a command of any permitted size is taken: otherwise none would ever take it.
        let held = leadership.uncommitted_bytes;
        let leaving = leadership.transfer.as_ref().is_some_and(Transfer::is_due);
        if leaving || (held > 0 && held + command.size() > bound) || !disk_has_room {
            return Err(Refusal::Busy);
        }
        leadership.uncommitted_bytes += command.size();
        Ok(())
    }

    pub(crate) fn append_as_leader(&mut self, payloads: Vec<Payload>) {
        let term = self.term();
        let first = self.log.last().index.0 + 1;
        let entries = payloads
            .into_iter()
            .zip(first..)
            .map(|(payload, index)| Entry {
                index: Index(index),
                term,
                payload,
            })
            .collect();
        self.append_entries(entries);
        self.count_quorum();
        self.broadcast_entries();
    }

    // Publishing.

    /// Broadcasts what the window has room for.
    fn broadcast_entries(&mut self) {
        let last = self.log.last().index;
        loop {
            let State::Leader(leadership) = &mut self.state else {
                return;
            };
            if leadership.sent >= last || leadership.in_flight.len() >= self.options.max_in_flight {
                return;
            }
            let sent = leadership.sent;
            let entries = self
                .log
                .slice(sent + 1, last, self.options.max_append_bytes);
            let through = entries
                .last()
                .expect("the log goes beyond what was sent")
                .index;
            self.broadcast_append(sent, entries);
            let commit_index = self.commit_index;
            let State::Leader(leadership) = &mut self.state else {
                return;
            };
            leadership.sent = through;
            // A single voter commits before it sends: such entries wait for nobody.
            if through > commit_index {
                leadership.in_flight.push_back(through);
            }
            leadership.probes = 0;
            self.schedule_probe();
        }
    }

    /// Broadcasts an empty append that is answered: a heartbeat, a probe or a read's round.
    pub(crate) fn broadcast_round(&mut self) {
        let State::Leader(leadership) = &self.state else {
            return;
        };
        self.broadcast_append(leadership.sent, Vec::new());
    }

    /// Broadcasts news of a commit and nothing else: the newest round once more. Whoever has heard
    /// that has answered it, so this costs no acknowledgements; nor does it put off a heartbeat.
    fn broadcast_commit(&mut self) {
        let State::Leader(leadership) = &mut self.state else {
            return;
        };
        leadership.tell_commit_at = None;
        leadership.repeated = leadership.broadcast;
        let (round, sent) = (leadership.broadcast, leadership.sent);
        let append = self.append_of(round, StreamId(0), sent, Vec::new());
        self.broadcast(Body::Append(append));
    }

    fn broadcast_append(&mut self, prev: Index, entries: Vec<Entry>) {
        let append = self.next_append(StreamId(0), prev, entries);
        let round = append.round;
        self.broadcast(Body::Append(append));
        let interval = self.heartbeat_interval();
        let now = self.now;
        let State::Leader(leadership) = &mut self.state else {
            return;
        };
        leadership.broadcast = round;
        leadership.heartbeat_at = now + interval;
        leadership.tell_commit_at = None;
    }

    /// The next round's append.
    pub(crate) fn next_append(
        &mut self,
        stream: StreamId,
        prev: Index,
        entries: Vec<Entry>,
    ) -> Append {
        let round = self.next_round();
        self.append_of(round, stream, prev, entries)
    }

    fn append_of(
        &self,
        round: Round,
        stream: StreamId,
        prev: Index,
        entries: Vec<Entry>,
    ) -> Append {
        let prev = self
            .log
            .position_at(prev)
            .expect("what precedes an append is in the log");
        Append {
            round,
            sessions: self.sessions,
            stream,
            prev,
            commit_index: self.commit_index,
            entries,
        }
    }

    pub(crate) fn next_round(&mut self) -> Round {
        let now = self.now;
        let State::Leader(leadership) = &mut self.state else {
            return Round(0);
        };
        leadership.round = leadership.round.next();
        leadership.sent_at.push_back((leadership.round, now));
        if leadership.sent_at.len() > MAX_ROUNDS {
            leadership.sent_at.pop_front();
        }
        leadership.round
    }

    /// No longer than a third of the lease, so that two lost heartbeats do not end it; but not
    /// without pause, whatever lease the configuration names.
    fn heartbeat_interval(&self) -> Duration {
        self.options
            .heartbeat_interval
            .min(self.lease_claim() / 3)
            .max(MIN_HEARTBEAT_INTERVAL)
    }

    // While settings change it is not known which of them a successor will go by: what is claimed
    // is the least of them, what is waited out the most (design point 6).

    fn possible_settings(&self) -> impl Iterator<Item = Settings> {
        self.possible_configurations()
            .map(|configuration| configuration.settings)
    }

    fn lease_claim(&self) -> Duration {
        let leases = self.possible_settings().map(Settings::lease);
        leases.min().unwrap_or_default()
    }

    fn lease_wait(&self) -> Duration {
        let waits = self.possible_settings().map(Settings::lease_wait);
        waits.max().unwrap_or_default()
    }

    fn lease_reads_are_on(&self) -> bool {
        self.possible_settings()
            .all(|settings| settings.lease_reads)
    }

    /// Whether an older leader may still answer reads by its lease: what is committed meanwhile
    /// would be missing from them.
    fn must_let_leases_end(&self, leadership: &Leadership) -> bool {
        self.now < leadership.exclusive_from
            && self
                .possible_settings()
                .any(|settings| settings.lease_reads)
    }

    /// A leader that reconnected, or lost one of its brokers, announces its sessions, so that the will
    /// of an old one is known for what it is.
    pub(crate) fn announce_sessions(&mut self) {
        self.broadcast_round();
    }

    // Answers.

    pub(crate) fn on_acknowledge(&mut self, from: NodeKey, acknowledge: Acknowledge) {
        let State::Leader(leadership) = &self.state else {
            return;
        };
        if acknowledge.match_index > leadership.sent {
            let match_index = acknowledge.match_index;
            return self.reject_peer(from, Rejection::AcknowledgedTooMuch { match_index });
        }
        if self.configuration().is_member(from) {
            self.confirm_round(from, acknowledge.round);
            self.note_clock(from, acknowledge.round, acknowledge.clock);
            self.advance_match(from, acknowledge.match_index);
        }
        self.advance_stream(from, acknowledge.stream, acknowledge.match_index);
    }

    /// Takes note that `from` still followed when `round` was sent.
    pub(crate) fn confirm_round(&mut self, from: NodeKey, round: Round) {
        let now = self.now;
        let is_member = self.configuration().is_member(from);
        let State::Leader(leadership) = &mut self.state else {
            return;
        };
        let Some(sent_at) = leadership.time_of(round).filter(|_| is_member) else {
            return;
        };
        let progress = leadership.progress.entry(from).or_default();
        if progress
            .confirmed
            .is_none_or(|(confirmed, _)| confirmed < round)
        {
            progress.confirmed = Some((round, sent_at));
            if round != leadership.repeated {
                leadership.round_trip.sample(now.since(sent_at));
            }
            self.count_quorum();
            self.answer_reads();
        }
    }

    /// The newest answer tells a member's clock, not the greatest: a machine that was started anew
    /// counts from zero again.
    fn note_clock(&mut self, from: NodeKey, round: Round, clock: Time) {
        let State::Leader(leadership) = &mut self.state else {
            return;
        };
        let progress = leadership.progress.entry(from).or_default();
        if progress.confirmed.is_none_or(|(newest, _)| newest <= round) {
            progress.clock = clock;
        }
    }

    fn advance_match(&mut self, from: NodeKey, match_index: Index) {
        let State::Leader(leadership) = &mut self.state else {
            return;
        };
        let progress = leadership.progress.entry(from).or_default();
        if match_index > progress.match_index {
            progress.match_index = match_index;
            self.advance_commit();
        }
    }

    /// Commits what a quorum holds on disk, if it is of this term (Raft §5.4.2), and makes use
    /// of the room.
    pub(crate) fn advance_commit(&mut self) {
        let (me, own) = (self.me, self.log.persisted());
        let State::Leader(leadership) = &self.state else {
            return;
        };
        if self.must_let_leases_end(leadership) {
            return;
        }
        let held = |key| match key == me {
            true => Some(own),
            false => leadership
                .progress
                .get(&key)
                .map(|progress| progress.match_index),
        };
        let Some(index) = self.configuration().quorum_value(held) else {
            return;
        };
        if index > self.commit_index && self.log.term_at(index) == Some(self.term()) {
            self.settle(index);
            self.commit_to(index);
            self.schedule_commit_notice();
            self.broadcast_entries();
            self.answer_reads();
        }
    }

    /// Frees the window and the budget of what is about to be committed.
    fn settle(&mut self, index: Index) {
        let committed = self.log.range(self.commit_index + 1, index);
        let bytes: usize = committed.map(command_bytes).sum();
        let State::Leader(leadership) = &mut self.state else {
            return;
        };
        leadership.uncommitted_bytes -= bytes;
        while leadership
            .in_flight
            .pop_front_if(|through| *through <= index)
            .is_some()
        {}
        leadership.probes = 0;
        self.schedule_probe();
    }

    // Time.

    pub(crate) fn lead(&mut self) {
        if self.has_lost_quorum() {
            return self.become_follower();
        }
        let State::Leader(leadership) = &mut self.state else {
            return;
        };
        let heartbeat_due = self.now >= leadership.heartbeat_at;
        let probe_due = leadership.probe_is_due(self.now);
        let commit_due = leadership.tell_commit_at.is_some_and(|at| self.now >= at);
        if probe_due {
            leadership.probes = leadership.probes.saturating_add(1);
        }
        if heartbeat_due || probe_due {
            self.broadcast_round();
        } else if commit_due {
            self.broadcast_commit();
        }
        if probe_due {
            self.schedule_probe();
        }
        self.resume_stalled_streams();
        self.advance_commit();
        self.answer_reads();
        self.steer();
    }

    pub(crate) fn leader_deadline(&self, leadership: &Leadership) -> Time {
        let quorum_ends = self.quorum_confirmed_at(leadership) + self.options.election_timeout;
        let waits = self.must_let_leases_end(leadership);
        let optional = [
            leadership.probe_at,
            leadership.tell_commit_at,
            leadership.streams.deadline(),
            leadership.transfer.as_ref().map(Transfer::deadline),
            waits.then_some(leadership.exclusive_from),
        ];
        let required = [leadership.heartbeat_at, quorum_ends];
        let earliest = required
            .into_iter()
            .chain(optional.into_iter().flatten())
            .min();
        earliest.unwrap_or(leadership.heartbeat_at)
    }

    /// Acknowledgements that are overdue are asked for with an empty append, ever less often;
    /// the heartbeat takes over in the end.
    fn schedule_probe(&mut self) {
        let (now, min, max) = (self.now, self.options.min_probe, self.heartbeat_interval());
        let State::Leader(leadership) = &mut self.state else {
            return;
        };
        let overdue = leadership.round_trip.overdue_after().max(min);
        let wait = overdue
            .saturating_mul(1 << leadership.probes.min(10))
            .min(max);
        let waits_for_quorum = !leadership.in_flight.is_empty() || !leadership.reads.is_empty();
        leadership.probe_at = waits_for_quorum.then(|| now + wait);
    }

    /// The patience with a stream's receiver.
    pub(crate) fn stream_patience(&self) -> Duration {
        let State::Leader(leadership) = &self.state else {
            return Duration::ZERO;
        };
        let overdue = 2 * leadership.round_trip.overdue_after();
        overdue
            .max(4 * self.options.min_probe)
            .min(self.heartbeat_interval())
    }

    fn schedule_commit_notice(&mut self) {
        let at = self.now + self.options.commit_notice;
        let State::Leader(leadership) = &mut self.state else {
            return;
        };
        leadership.tell_commit_at.get_or_insert(at);
    }

    /// CheckQuorum: a leader that no quorum has confirmed for T steps down.
    fn has_lost_quorum(&self) -> bool {
        let State::Leader(leadership) = &self.state else {
            return false;
        };
        self.now >= self.quorum_confirmed_at(leadership) + self.options.election_timeout
    }

    /// When the newest round that a quorum has confirmed was sent; at least the election itself.
    fn quorum_confirmed_at(&self, leadership: &Leadership) -> Time {
        self.quorum_round(leadership)
            .map_or(leadership.won_at, |(_, at)| at.max(leadership.won_at))
    }

    /// The newest round that a quorum has confirmed, and when it was sent. This node confirms any.
    fn quorum_round(&self, leadership: &Leadership) -> Option<(Round, Time)> {
        let own = (leadership.round, self.now);
        leadership.quorum.map(|quorum| quorum.min(own))
    }

    /// Counts again, after an answer or with another configuration.
    fn count_quorum(&mut self) {
        let own = (Round(u64::MAX), Time(u64::MAX));
        let (me, configuration) = (self.me, self.log.configuration());
        let State::Leader(leadership) = &mut self.state else {
            return;
        };
        let progress = &leadership.progress;
        let confirmed = |key| match key == me {
            true => Some(own),
            false => progress.get(&key)?.confirmed,
        };
        leadership.quorum = configuration.quorum_value(confirmed);
    }

    /// Whether a member was heard lately: within the time for which it follows nobody else.
    pub(crate) fn is_heard(&self, leadership: &Leadership, key: NodeKey) -> bool {
        let confirmed = leadership.progress.get(&key).and_then(|p| p.confirmed);
        let lately = |at: Time| self.now < at + self.options.election_timeout;
        key == self.me || confirmed.is_some_and(|(_, at)| lately(at))
    }

    /// Whether the broadcast reaches a member that is to count from now on: what it holds reaches
    /// to the configuration in force at least, and no stream is needed to bring it further.
    pub(crate) fn is_caught_up(&self, leadership: &Leadership, key: NodeKey) -> bool {
        let holds = leadership.match_index(key) >= self.log.configured_at();
        holds && self.is_heard(leadership, key) && !leadership.streams.is_open(key)
    }

    /// Whether a majority of every set that counts in `configuration` was heard lately.
    pub(crate) fn is_live(&self, leadership: &Leadership, configuration: &Configuration) -> bool {
        configuration.has_quorum(|key| self.is_heard(leadership, key))
    }

    /// The time in which this leader is the only one, as a quorum last confirmed it; `None`
    /// while it does not lead, hands the lead over, has not committed the entry that opened its
    /// lease epoch, reaches no broker, is a witness, or is about to lose its vote.
    ///
    /// The claim holds at any reading of the clock in `from..until`. Why two leaders' claims
    /// never overlap: a quorum heard the old leader's round no earlier than it was sent, and a
    /// member of it voted for the new leader after that, so the new leader won after the old
    /// one's lease began; waiting out the lease at the worst clock rates covers the rest.
    pub fn lease(&self) -> Option<Lease> {
        let State::Leader(leadership) = &self.state else {
            return None;
        };
        let opened = self.commit_index >= leadership.epoch_opened;
        if self.sessions.is_empty() || leadership.withdrawn || !opened {
            return None;
        }
        let configuration = self.configuration();
        if configuration.is_witness(self.me) || !configuration.voters.contains_key(&self.me) {
            return None;
        }
        let (_, confirmed_at) = self.quorum_round(leadership)?;
        Some(Lease {
            epoch: leadership.epoch,
            from: leadership.exclusive_from,
            until: confirmed_at + self.lease_claim(),
        })
    }

    /// Whether the lease holds at this moment.
    pub(crate) fn is_exclusive(&self) -> bool {
        let holds = |lease: Lease| lease.from <= self.now && self.now < lease.until;
        self.lease().is_some_and(holds)
    }

    // Reads.

    /// ReadIndex (Raft thesis §6.4): what is committed now may be read once a quorum confirms
    /// that no newer leader had been elected by then.
    pub(crate) fn on_read(&mut self, id: ReadId) {
        let refusal = self.not_leader();
        let commit_index = self.commit_index;
        let connected = !self.sessions.is_empty() && !self.is_witness();
        if self.lease_reads_are_on() && self.is_exclusive() {
            let index = commit_index;
            return self.emit(Effect::ReadReady { id, index });
        }
        let State::Leader(leadership) = &mut self.state else {
            return self.emit(Effect::ReadRefused { id, refusal });
        };
        if !connected || leadership.reads.len() >= MAX_READS {
            let refusal = match connected {
                true => Refusal::Busy,
                false => Refusal::NotLeader { leader: None },
            };
            return self.emit(Effect::ReadRefused { id, refusal });
        }
        // A leader does not know what is committed before its own first entry is.
        let index = commit_index.max(leadership.opened);
        let round = leadership.round.next();
        let first = leadership.reads.is_empty();
        leadership.reads.push_back(Read { id, round, index });
        if first {
            self.broadcast_round();
            self.schedule_probe();
        }
        self.answer_reads();
    }

    /// Answers the reads whose round a quorum has confirmed; those that came meanwhile get one
    /// round together.
    pub(crate) fn answer_reads(&mut self) {
        let commit_index = self.commit_index;
        let State::Leader(leadership) = &self.state else {
            return;
        };
        if leadership.reads.is_empty() {
            return;
        }
        let Some((confirmed, _)) = self.quorum_round(leadership) else {
            return;
        };
        let State::Leader(leadership) = &mut self.state else {
            return;
        };
        let ready = |read: &mut Read| read.round <= confirmed && read.index <= commit_index;
        let mut answers = Vec::new();
        while let Some(read) = leadership.reads.pop_front_if(ready) {
            answers.push(Effect::ReadReady {
                id: read.id,
                index: read.index,
            });
        }
        let unasked = leadership
            .reads
            .front()
            .is_some_and(|read| read.round > leadership.round);
        answers.into_iter().for_each(|answer| self.emit(answer));
        if unasked {
            self.broadcast_round();
            self.schedule_probe();
            self.answer_reads();
        }
    }
}

fn command_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        Payload::Command(command) => command.size(),
        Payload::Noop | Payload::Configuration(_) | Payload::LeaseEpoch(_) => 0,
    }
}

impl Leadership {
    /// How far a member's disk is known to hold this leader's log.
    pub(crate) fn match_index(&self, key: NodeKey) -> Index {
        self.progress.get(&key).map_or(Index(0), |p| p.match_index)
    }

    /// A member's clock, as it last told it.
    pub(crate) fn clock(&self, key: NodeKey) -> Time {
        self.progress.get(&key).map_or(Time(0), |p| p.clock)
    }

    /// Whether overdue acknowledgements are to be asked for now.
    fn probe_is_due(&mut self, now: Time) -> bool {
        if self.in_flight.is_empty() && self.reads.is_empty() {
            self.probe_at = None;
        }
        self.probe_at.is_some_and(|at| now >= at)
    }

    fn time_of(&self, round: Round) -> Option<Time> {
        let first = self.sent_at.front()?.0;
        let offset = usize::try_from(round.0.checked_sub(first.0)?).ok()?;
        self.sent_at.get(offset).map(|(_, at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::effect::{Durable, Input};
    use crate::fixture::formed;
    use crate::id::{ClientId, PersistSeq, RequestNumber, SessionId, Term};
    use crate::message::{Message, PreVote, Vote};
    use crate::raft::{Options, Role};
    use crate::sessions::Sessions;

    const ME: NodeKey = NodeKey(1);
    const PEER: NodeKey = NodeKey(2);
    const MS: Duration = Duration::from_millis(1);

    /// The leader of three in term 2, elected by `PEER`; nothing was acknowledged yet.
    fn leader() -> Raft {
        elected(formed(3))
    }

    fn elected(durable: Durable) -> Raft {
        let mut raft = Raft::new(ME, Options::default(), 7, durable, Time(0));
        raft.step(Input::Sessions(Sessions::of(SessionId(1))), Time(0));
        let now = raft.next_deadline().expect("a voter campaigns");
        raft.step(Input::Tick, now);
        let granted = true;
        let proposed_term = Term(2);
        let pre_vote = PreVote {
            proposed_term,
            granted,
        };
        hear(&mut raft, Term(1), Body::PreVote(pre_vote));
        persist(&mut raft);
        hear(&mut raft, Term(2), Body::Vote(Vote { granted }));
        assert_eq!(raft.role(), Role::Leader);
        persist(&mut raft);
        raft
    }

    fn hear(raft: &mut Raft, term: Term, body: Body) -> Vec<Effect> {
        let message = Message { term, body };
        let from = PEER;
        raft.step(Input::Message { from, message }, raft.now)
    }

    /// All that was written is on the disk.
    fn persist(raft: &mut Raft) {
        let writes = (1..).map(PersistSeq).take(9);
        writes.for_each(|seq| {
            if raft.is_writing() {
                raft.step(Input::Persisted(seq), raft.now);
            }
        });
        assert!(!raft.is_writing(), "the disk has nothing left to do");
    }

    fn acknowledge(raft: &mut Raft, round: u64, match_index: u64) {
        let acknowledge = Acknowledge {
            round: Round(round),
            stream: StreamId(0),
            match_index: Index(match_index),
            clock: Time(0),
        };
        hear(raft, Term(2), Body::Acknowledge(acknowledge));
    }

    fn propose(raft: &mut Raft) {
        let command = Command {
            client: ClientId(1),
            request: RequestNumber(1),
            data: Bytes::new(),
        };
        raft.step(Input::Propose(vec![command]), raft.now);
    }

    fn leadership(raft: &mut Raft) -> &mut Leadership {
        match &mut raft.state {
            State::Leader(leadership) => leadership,
            _ => panic!("it leads"),
        }
    }

    /// A release spares the wait if it names the newest epoch in the log, and no other does.
    #[test]
    fn a_release_of_another_epoch_spares_nothing() {
        let epoch = |term, number| LeaseEpoch {
            term: Term(term),
            number,
        };
        let wait = Settings::default().lease_wait();
        let cases = [
            (None, wait),
            (Some(epoch(2, 0)), Duration::ZERO),
            (Some(epoch(1, 0)), wait),
            (Some(epoch(2, 1)), wait),
            (Some(epoch(3, 0)), wait),
        ];
        for (released, expected) in cases {
            let mut raft = leader();
            raft.leave_leadership();
            assert_eq!(
                raft.lease_epoch(),
                epoch(2, 0),
                "its own no-op is the newest"
            );
            raft.become_leader(released);
            let leadership = leadership(&mut raft);
            let waits = leadership.exclusive_from.since(leadership.won_at);
            assert_eq!(waits, expected, "{released:?}");
        }
    }

    /// How long it was from one broadcast to the next, up to the loss of the quorum.
    fn pauses(raft: &mut Raft) -> Vec<Duration> {
        let (mut last, mut pauses) = (raft.now, Vec::new());
        for _ in 0..1_000 {
            if raft.role() != Role::Leader {
                return pauses;
            }
            let now = raft.next_deadline().expect("leaders have one");
            let effects = raft.step(Input::Tick, now);
            if effects.iter().any(|e| matches!(e, Effect::Broadcast(_))) {
                pauses.push(now.since(last));
                last = now;
            }
        }
        panic!("it leads for ever: {pauses:?}");
    }

    /// An acknowledgement that does not come is asked for after 3 ms, then after twice as long
    /// each time, and in the end by the heartbeats.
    #[test]
    fn probes_are_ever_further_apart() {
        let mut raft = leader();
        let pauses: Vec<u128> = pauses(&mut raft).iter().map(Duration::as_millis).collect();
        assert_eq!(pauses, [3, 6, 12, 24, 48, 96, 192, 250, 250]);
    }

    /// With a round trip known, what is overdue is judged by it.
    #[test]
    fn probes_wait_for_the_round_trip() {
        let mut raft = leader();
        let round = leadership(&mut raft).round.0;
        raft.now = raft.now + 8 * MS;
        acknowledge(&mut raft, round, 2);
        assert_eq!(raft.commit_index(), Index(2));
        propose(&mut raft);
        let pauses: Vec<u128> = pauses(&mut raft).iter().map(Duration::as_millis).collect();
        assert_eq!(pauses[..5], [24, 48, 96, 192, 250]);
    }

    /// A read with nothing else under way is a round that may be lost like any other.
    #[test]
    fn a_read_is_probed_for() {
        let mut raft = leader();
        let round = leadership(&mut raft).round.0;
        acknowledge(&mut raft, round, 2);
        raft.step(Input::Read(ReadId(1)), raft.now);
        let pauses: Vec<u128> = pauses(&mut raft).iter().map(Duration::as_millis).collect();
        assert_eq!(pauses[..4], [3, 6, 12, 24]);
    }

    /// Headway ends the patience that was lost before it.
    #[test]
    fn a_commit_makes_probes_quick_again() {
        let mut raft = leader();
        for _ in 0..5 {
            let now = raft.next_deadline().expect("leaders have one");
            raft.step(Input::Tick, now);
        }
        propose(&mut raft);
        let probe_at = leadership(&mut raft).probe_at;
        assert_eq!(probe_at, Some(raft.now + 3 * MS), "it was just sent");
        raft.now = raft.now + MS;
        acknowledge(&mut raft, 0, 2);
        assert_eq!(raft.commit_index(), Index(2));
        let probe_at = leadership(&mut raft).probe_at;
        assert_eq!(probe_at, Some(raft.now + 3 * MS), "one is still under way");
    }

    /// A voter whose machine was started anew counts time from zero again. What it is asked with
    /// echoes the clock it has now: with the one it had, every request to take over would be inert.
    #[test]
    fn a_clock_that_starts_anew_is_believed() {
        let mut raft = leader();
        let tell = |raft: &mut Raft, round: Round, clock: u64| {
            let acknowledge = Acknowledge {
                round,
                stream: StreamId(0),
                match_index: Index(2),
                clock: Time(clock),
            };
            hear(raft, Term(2), Body::Acknowledge(acknowledge));
            leadership(raft).clock(PEER)
        };
        let before = leadership(&mut raft).round;
        assert_eq!(tell(&mut raft, before, 9_000_000), Time(9_000_000));
        let after = raft.next_round();
        assert_eq!(tell(&mut raft, after, 7), Time(7));
        let overtaken = tell(&mut raft, before, 9_000_000);
        assert_eq!(overtaken, Time(7), "an older answer tells an older time");
    }

    /// A doubled acknowledgement is no second round trip.
    #[test]
    fn an_echo_is_measured_once() {
        let mut raft = leader();
        let round = leadership(&mut raft).round.0;
        raft.now = raft.now + 4 * MS;
        acknowledge(&mut raft, round, 2);
        let overdue = leadership(&mut raft).round_trip.overdue_after();
        assert_eq!(overdue, 12 * MS);
        raft.now = raft.now + 400 * MS;
        acknowledge(&mut raft, round, 2);
        let overdue = leadership(&mut raft).round_trip.overdue_after();
        assert_eq!(overdue, 12 * MS);
    }

    /// A stream's receiver has two round trips' time, but never longer than a heartbeat.
    #[test]
    fn streams_are_patient_by_the_round_trip() {
        let mut raft = leader();
        assert_eq!(raft.stream_patience(), 4 * raft.options.min_probe);
        leadership(&mut raft).round_trip.sample(5 * MS);
        assert_eq!(raft.stream_patience(), 2 * (5 + 4 * 5 / 2) * MS);
        leadership(&mut raft).round_trip.sample(900 * MS);
        assert_eq!(raft.stream_patience(), 250 * MS);
        raft.become_follower();
        assert_eq!(
            raft.stream_patience(),
            Duration::ZERO,
            "who leads nobody waits for nobody"
        );
    }

    /// The send times of 4,096 rounds are remembered, and no more.
    #[test]
    fn an_echo_of_a_forgotten_round_confirms_nothing() {
        let mut raft = leader();
        let first = leadership(&mut raft).round;
        for _ in 1..MAX_ROUNDS {
            raft.next_round();
        }
        assert!(leadership(&mut raft).time_of(first).is_some());
        let newest = raft.next_round();
        assert_eq!(leadership(&mut raft).time_of(first), None);
        assert!(leadership(&mut raft).time_of(first.next()).is_some());
        assert!(leadership(&mut raft).time_of(newest).is_some());
        assert_eq!(leadership(&mut raft).time_of(newest.next()), None);
        assert_eq!(leadership(&mut raft).sent_at.len(), MAX_ROUNDS);
    }

    /// Beyond 65,536 waiting reads the leader is busy.
    #[test]
    fn reads_that_wait_are_bounded() {
        let mut raft = leader();
        let refused = |effects: Vec<Effect>| {
            effects.into_iter().find_map(|effect| match effect {
                Effect::ReadRefused { refusal, .. } => Some(refusal),
                _ => None,
            })
        };
        for id in 0..MAX_READS as u64 {
            let effects = raft.step(Input::Read(ReadId(id)), raft.now);
            assert_eq!(refused(effects), None);
        }
        let effects = raft.step(Input::Read(ReadId(u64::MAX)), raft.now);
        assert_eq!(refused(effects), Some(Refusal::Busy));
    }
    /// A leader follows nobody in its own term.
    #[test]
    fn a_leader_hears_no_leader_of_its_term() {
        let mut raft = leader();
        let append = raft.next_append(StreamId(0), Index(2), Vec::new());
        let effects = hear(&mut raft, Term(2), Body::Append(append));
        let (from, reason) = (PEER, Rejection::SecondLeader { term: Term(2) });
        assert!(effects.contains(&Effect::Rejected { from, reason }));
        assert_eq!(raft.role(), Role::Leader);
    }

    /// A witness is never the only leader, also while nobody takes the lead from it.
    #[test]
    fn a_witness_makes_no_claim() {
        let claims = |witness: bool| {
            let mut durable = formed(3);
            if let Payload::Configuration(formed) = &mut durable.entries[0].payload
                && witness
            {
                formed.witnesses.insert(ME);
            }
            let mut raft = elected(durable);
            (0..300).any(|_| {
                raft.now = raft.now + 10 * MS;
                let round = leadership(&mut raft).round.0;
                let last = raft.last_index().0;
                acknowledge(&mut raft, round, last);
                if raft.is_writing() {
                    persist(&mut raft);
                }
                raft.lease().is_some()
            })
        };
        assert!(!claims(true));
        assert!(claims(false));
    }

    /// A release spares the wait only if nobody has opened another lease epoch since.
    #[test]
    fn a_release_is_worth_something_for_the_newest_epoch_alone() {
        let waits = |number| {
            let mut raft = leader();
            raft.become_follower();
            let term = raft.term();
            raft.become_leader(Some(LeaseEpoch { term, number }));
            leadership(&mut raft).exclusive_from.since(raft.now)
        };
        assert_eq!(waits(0), Duration::ZERO);
        assert!(waits(1) > Duration::from_secs(1));
    }
}
