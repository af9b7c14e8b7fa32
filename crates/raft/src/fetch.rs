//! Pulling what is committed: by whoever the leader does not look after.
//!
//! An *observer*, a node that is a member of no set, follows the broadcast without a word. What it
//! misses it asks for, of a voter that is not the leader where there is one, so that the leader
//! does and sends nothing for it, however many there are. A *witness* does the same for a snapshot:
//! it has no state to make one of.
//!
//! ```text
//! leader            observer                        another voter
//!    │── append (gap) ─►│                                 │
//!    │                  │── Fetch { after: commit } ─────►│  keeps nothing of it
//!    │── append (gap) ─►│  held                           │
//!    │                  │◄── Fetched { entries } × window─│  committed ones alone
//!    │                  │── Fetch … ─────────────────────►│
//!    │                  │◄── Fetched, ends ───────────────│  now what was held fits
//! ```
//!
//! **Why any voter's answer may be trusted.** Who answers sends nothing but what it knows to be
//! committed, and there is only one committed sequence. It says so in its present term, and only if
//! it has heard that term's leader L, so L was elected; the asker takes the answer in that term,
//! which it enters if it is new, and in no other. Whatever the sender knows to be committed was
//! committed by L or before L was elected, so L's log holds it (leader completeness). Hence
//!
//! - what an answer contains is *verified*: it equals the log of the asker's term's leader;
//! - it contradicts nothing that was verified before, and nothing that is committed here: where it
//!   does, someone lies ([`Rejection::ConflictBelowCommit`]);
//! - what it contradicts beyond that is a tail that an older leader left here and that is committed
//!   nowhere: that goes, as it does when an append contradicts it.
//!
//! An observer enters no term but one that is known to have had a leader. Nobody hears an observer:
//! one that had followed a mere candidate into a term could neither follow the leader that goes on
//! nor depose it.
//!
//! Under load the broadcast is always ahead of what is committed. So entries that do not fit yet
//! are held, as many as one answer has, and tried again after each answer.
//!
//! Who answers keeps no state but when it answered whom within the last [`WINDOW`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::effect::Rejection;
use crate::entry::{Entry, Snapshot};
use crate::follow::{Incoming, Misfit, Received, has_no_voters, terms_ascend};
use crate::id::{Index, LogPosition, NodeKey, StreamId, Time};
use crate::log::Fit;
use crate::message::{Body, CommittedEntries, Fetch, Fetched, SnapshotPart, SnapshotPiece};
use crate::raft::{Raft, State};

/// The time over which answers are counted.
const WINDOW: Duration = Duration::from_millis(10);

/// How many askers get something within it: each at most `max_in_flight` messages of
/// `max_append_bytes`. The others are told to come again.
const MAX_SERVED: usize = 4;

/// How many get any answer at all within it.
const MAX_ANSWERED: usize = 64;

/// How much of the window lies between two answers to one asker, at least.
const ASKER_SHARE: u32 = 8;

/// How often a node is asked in vain before another is: a question or its answer may be lost, and a
/// part of a snapshot is of no use with another node.
const TIMES: usize = 2;

/// After how many answers without anything new another node is asked.
const PATIENT_ANSWERS: u32 = 3;

/// A broadcast append, as an observer sees it.
#[derive(Clone, Debug)]
pub(crate) struct Broadcast {
    pub(crate) prev: LogPosition,
    pub(crate) commit_index: Index,
    pub(crate) entries: Vec<Entry>,
}

impl Broadcast {
    fn size(&self) -> usize {
        self.entries.iter().map(Entry::size).sum()
    }
}

/// What an observer has heard of this term's leader and cannot place yet.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// By where they belong.
    appends: BTreeMap<Index, Broadcast>,
    bytes: usize,
    /// The leader's log reaches at least to here; `None` while nothing is missing.
    missing: Option<Index>,
    /// How far the leader has said that its log is committed.
    committed: Index,
}

impl Held {
    /// Keeps `append`, in place of the oldest ones where there is no room.
    fn push(&mut self, append: Broadcast, bound: usize) {
        self.missing = self.missing.max(Some(append.prev.index));
        self.committed = self.committed.max(append.commit_index);
        if append.entries.is_empty() {
            return;
        }
        self.bytes += append.size();
        if let Some(older) = self.appends.insert(append.prev.index, append) {
            self.bytes -= older.size();
        }
        while self.bytes > bound
            && let Some((_, oldest)) = self.appends.pop_first()
        {
            self.bytes -= oldest.size();
        }
    }

    /// The first one, if it may follow on a log that ends at `last`.
    fn pop(&mut self, last: Index) -> Option<Broadcast> {
        let first = self.appends.first_entry().filter(|e| *e.key() <= last)?;
        let append = first.remove();
        self.bytes -= append.size();
        Some(append)
    }
}

/// Whom this node asks, and when.
#[derive(Debug, Default)]
pub(crate) struct Fetching {
    /// Voters that are there, as far as is known.
    sources: Vec<NodeKey>,
    /// A snapshot is wanted in place of the log's beginning.
    snapshot: bool,
    /// Who was asked last.
    asked: Option<NodeKey>,
    asked_at: Time,
    ask_at: Time,
    /// Questions without an answer since the last one that had something new.
    silent: u32,
    /// Answers since then that had not, though there is more.
    behind: u32,
    /// Where among the sources this node begins, so that not all ask the same.
    offset: Option<usize>,
    incoming: Option<Incoming>,
}

/// Whom this node has answered within the last [`WINDOW`], and whether with more than a word.
#[derive(Debug, Default)]
pub(crate) struct Serving(VecDeque<(Time, NodeKey, bool)>);

impl Serving {
    /// Whether `from` may be answered at all at `now`, and with more than a word.
    fn admit(&mut self, from: NodeKey, now: Time) -> Option<bool> {
        while self
            .0
            .pop_front_if(|(at, ..)| *at + WINDOW <= now)
            .is_some()
        {}
        let gap = WINDOW / ASKER_SHARE;
        let lately = |(at, key, _): &(Time, NodeKey, bool)| *key == from && now < *at + gap;
        if self.0.len() >= MAX_ANSWERED || self.0.iter().any(lately) {
            return None;
        }
        let served = self.0.iter().filter(|(.., served)| *served).count();
        Some(served < MAX_SERVED)
    }
}

impl Raft {
    /// Whether more is committed, by what the leader has said in this term, than this node has: what it
    /// knows of the cluster may be long past.
    pub fn is_behind(&self) -> bool {
        self.following.held.missing.is_some() || self.following.held.committed > self.commit_index
    }

    // Observing.

    /// Takes a broadcast append, or finds that something before it is missing.
    pub(crate) fn observe(&mut self, from: NodeKey, append: Broadcast) {
        if self.log.fit(append.prev, &append.entries) == Fit::Mismatch {
            return self.miss(append);
        }
        self.place(from, append);
        self.place_held(from);
    }

    fn miss(&mut self, append: Broadcast) {
        let bound = self.answer_bytes();
        if self.following.held.missing.is_none() {
            self.fetching.ask_at = self.soonest();
        }
        self.following.held.push(append, bound);
    }

    fn place(&mut self, from: NodeKey, append: Broadcast) {
        let Broadcast {
            prev,
            commit_index,
            entries,
        } = append;
        let through = entries.last().map_or(prev.index, |entry| entry.index);
        match self.try_append(prev, entries) {
            Ok(()) => {
                self.following.verified = self.following.verified.max(through);
                self.commit_to(commit_index.min(self.following.verified));
            }
            // The disk is behind: what was left is missing by the next append.
            Err(Misfit::Gap | Misfit::NoRoom) => {}
            Err(Misfit::BelowCommit(index)) => {
                self.reject_peer(from, Rejection::ConflictBelowCommit { index });
            }
        }
    }

    /// Tries again what did not fit before, and sees whether anything is missing still.
    fn place_held(&mut self, leader: NodeKey) {
        while let Some(append) = self.following.held.pop(self.log.last().index) {
            self.place(leader, append);
        }
        let verified = self.following.verified;
        let held = &mut self.following.held;
        if held.appends.is_empty() && held.missing.is_some_and(|index| index <= verified) {
            held.missing = None;
            self.fetching.asked = None;
        }
    }

    // Asking.

    pub(crate) fn on_sources(&mut self, sources: Vec<NodeKey>) {
        if sources != self.fetching.sources {
            if self.fetching.asked == self.following.leader {
                self.fetching.asked = None;
            }
            self.fetching.sources = sources;
            self.fetching.silent = 0;
            self.fetching.behind = 0;
        }
    }

    pub(crate) fn on_fetch_snapshot(&mut self) {
        if !self.fetching.snapshot {
            self.fetching.snapshot = true;
            self.fetching.ask_at = self.soonest();
        }
    }

    /// When to ask, if anything is missing and there is a leader without whom nobody answers.
    pub(crate) fn fetch_deadline(&self) -> Option<Time> {
        let follows = matches!(self.state, State::Follower) && !self.sessions.is_empty();
        let wants = self.following.held.missing.is_some() || self.fetching.snapshot;
        let wants = wants && !self.disk_is_full();
        let led = self.following.live_leader().is_some();
        (follows && wants && led).then_some(self.fetching.ask_at)
    }

    pub(crate) fn fetch_if_due(&mut self) {
        if self.fetch_deadline().is_some_and(|at| self.now >= at) {
            self.ask_for_committed();
        }
    }

    fn ask_for_committed(&mut self) {
        let (source, rounds) = self.source();
        let patience = self.patience(rounds);
        let fetching = &mut self.fetching;
        fetching.asked_at = self.now;
        fetching.ask_at = self.now + patience;
        fetching.silent = fetching.silent.saturating_add(1);
        fetching.asked = source;
        let Some(to) = source else {
            return; // Only the leader is known: give the others time to show themselves.
        };
        let incoming = fetching.incoming.as_ref();
        let part = incoming.and_then(|incoming| incoming.part_from(to));
        let snapshot = self.following.held.missing.is_none();
        let after = match snapshot {
            true => self.snapshot_index(),
            false => self.commit_index,
        };
        let request = Fetch {
            after,
            part,
            snapshot,
        };
        self.send_when_durable(to, Body::Fetch(request));
    }

    /// Whom to ask: who answered last, otherwise each of the others in turn, and then the leader.
    /// And how often all of them were asked in vain.
    fn source(&mut self) -> (Option<NodeKey>, u32) {
        let leader = self.following.live_leader();
        let configuration = self.configuration();
        let mut others: Vec<NodeKey> = match self.fetching.sources.is_empty() {
            true => configuration.voters.keys().copied().collect(),
            false => self.fetching.sources.clone(),
        };
        others.retain(|key| *key != self.me && Some(*key) != leader);
        // Who has answered that it has nothing is not asked as often as who may not have heard.
        let passed = (self.fetching.behind / PATIENT_ANSWERS) as usize * TIMES;
        let turn = self.fetching.silent as usize + passed;
        let answered = self.fetching.asked;
        if turn == 0 && (answered == leader || answered.is_some_and(|key| others.contains(&key))) {
            return (answered, 0);
        }
        let drawn = self.rng.below(Duration::from_micros(1 << 16)).as_micros() as usize;
        let offset = *self.fetching.offset.get_or_insert(drawn);
        // With nobody else to ask, as long is waited: the others may show themselves.
        let count = others.len().max(1);
        let round = TIMES * count + 1;
        let source = match turn % round / TIMES {
            n if n == count => leader,
            n => others.get((offset + n) % count).copied(),
        };
        (source, (turn / round) as u32)
    }

    /// Not before the last question's answer could be followed by another.
    fn soonest(&self) -> Time {
        let pace = self.options.min_probe.max(WINDOW / ASKER_SHARE * 2);
        self.now.max(self.fetching.asked_at + pace)
    }

    /// How long to wait for an answer, or for news, after so many times in vain: δ is a round
    /// trip at least.
    fn patience(&mut self, times: u32) -> Duration {
        let base = 4 * self.rank_delay();
        let wait = base.saturating_mul(1 << times.min(10));
        let wait = wait.min(self.options.election_timeout);
        wait + self.rng.below(wait / 4)
    }

    fn snapshot_index(&self) -> Index {
        let held = self.snapshot.as_ref();
        held.map_or(Index(0), |held| held.meta.last.index)
    }

    /// The most that one answer has.
    fn answer_bytes(&self) -> usize {
        self.options.max_append_bytes * self.options.max_in_flight
    }

    pub(crate) fn on_fetched(&mut self, from: NodeKey, fetched: Fetched) {
        let follows = matches!(self.state, State::Follower);
        if !follows || self.fetching.asked != Some(from) {
            return; // Nobody asked, or asks any more.
        }
        match fetched {
            Fetched::Nothing => self.on_nothing(),
            Fetched::Entries(committed) => self.on_committed(from, committed),
            Fetched::Snapshot(piece) => self.on_piece(from, piece),
        }
        if let Some(leader) = self.following.leader {
            self.place_held(leader);
        }
    }

    /// Whether there is more, only the leader knows, and whoever answered may be busy.
    fn on_nothing(&mut self) {
        let more = self.following.held.committed > self.commit_index || self.fetching.snapshot;
        let longest = self.options.election_timeout;
        // Without entries that are missing this node is behind; without a snapshot it only holds
        // more than it needs to, and perhaps nobody has one yet.
        let hurries = self.following.held.missing.is_some();
        let fetching = &mut self.fetching;
        fetching.silent = 0;
        // Quick at first with each, and slower once many have been asked: those that were members
        // once and those that are new may all wait for the leader alone (simulator, seed 133).
        let many = fetching.behind / (4 * PATIENT_ANSWERS);
        let doublings = fetching.behind % PATIENT_ANSWERS + many.min(8);
        let wait = self.options.commit_notice.saturating_mul(1 << doublings);
        let (wait, answers) = match hurries {
            true => (wait.min(longest), 1),
            false => (longest, PATIENT_ANSWERS),
        };
        fetching.behind = match more {
            true => fetching.behind.saturating_add(answers),
            false => 1,
        };
        fetching.ask_at = self.now + wait + self.rng.below(wait / 2);
    }

    /// An answer had something new.
    fn on_headway(&mut self, ends: bool) {
        self.fetching.silent = 0;
        self.fetching.behind = 0;
        self.fetching.ask_at = match ends {
            true => self.soonest(),
            false => self.now + self.patience(0),
        };
    }

    fn on_committed(&mut self, from: NodeKey, committed: CommittedEntries) {
        let CommittedEntries {
            prev,
            ends,
            entries,
        } = committed;
        if !terms_ascend(prev.term, &entries, self.term()) {
            return self.reject_peer(from, Rejection::DisorderedEntries);
        }
        if entries.iter().any(has_no_voters) {
            return self.reject_peer(from, Rejection::NoVoters);
        }
        let through = entries.last().map_or(prev.index, |entry| entry.index);
        if through <= self.commit_index {
            return;
        }
        match self.try_append(prev, entries) {
            Ok(()) => {
                self.following.verified = self.following.verified.max(through);
                self.commit_to(through);
                self.on_headway(ends);
            }
            Err(Misfit::Gap) if prev.index <= self.commit_index => {
                let index = prev.index;
                self.reject_peer(from, Rejection::ConflictBelowCommit { index });
            }
            // A part of the answer was lost: asked for again.
            Err(Misfit::Gap) => {}
            // The rest is asked for as soon as the disk has room.
            Err(Misfit::NoRoom) => self.fetching.ask_at = self.soonest(),
            Err(Misfit::BelowCommit(index)) => {
                self.reject_peer(from, Rejection::ConflictBelowCommit { index });
            }
        }
    }

    fn on_piece(&mut self, from: NodeKey, piece: SnapshotPiece) {
        let (last, ends) = (piece.meta.last, piece.ends);
        let replaces = self.fetching.snapshot && last.index > self.snapshot_index();
        if last.index <= self.commit_index && !replaces {
            return;
        }
        if let Err(reason) = self.check_snapshot(&piece.meta) {
            return self.reject_peer(from, reason);
        }
        if !self.disk_takes_snapshot() {
            return;
        }
        let held = self.fetching.incoming.take();
        let is_same = |part: SnapshotPart| part.last == last;
        let mut incoming = held.filter(|held| held.part_from(from).is_some_and(is_same));
        let before = part_of(&incoming, from);
        let received = self.receive(&mut incoming, (from, StreamId(0)), piece);
        let after = part_of(&incoming, from);
        self.fetching.incoming = incoming;
        match received {
            Ok(Received::Partly(_)) if after > before => self.on_headway(ends),
            Ok(Received::Partly(_)) => {}
            Ok(Received::Whole(snapshot)) => self.on_snapshot_fetched(snapshot),
            Err(reason) => self.reject_peer(from, reason),
        }
    }

    fn on_snapshot_fetched(&mut self, snapshot: Snapshot) {
        self.fetching.snapshot = false;
        self.on_headway(true);
        match snapshot.meta.last.index > self.commit_index {
            true => self.install(snapshot),
            false => self.keep_snapshot(snapshot),
        }
    }

    // Answering.

    pub(crate) fn on_fetch(&mut self, from: NodeKey, request: Fetch) {
        let leads = matches!(self.state, State::Leader(_));
        // In a term without a leader the asker would wait for one that may never be.
        if self.sessions.is_empty() || (!leads && self.following.leader.is_none()) {
            return;
        }
        let Some(serves) = self.serving.admit(from, self.now) else {
            return;
        };
        let answers = match serves {
            true => self.answers(request),
            false => Vec::new(),
        };
        let served = !answers.is_empty();
        self.serving.0.push_back((self.now, from, served));
        if !served {
            return self.send_when_durable(from, Body::Fetched(Fetched::Nothing));
        }
        for answer in answers {
            self.send_when_durable(from, Body::Fetched(answer));
        }
    }

    /// What there is for the asker, as much as one answer has.
    fn answers(&self, request: Fetch) -> Vec<Fetched> {
        if request.snapshot || request.after < self.log.base().index {
            return self.pieces(request);
        }
        let mut answers = Vec::new();
        let mut after = request.after;
        while answers.len() < self.options.max_in_flight {
            let (bytes, commit) = (self.options.max_append_bytes, self.commit_index);
            let Some(prev) = self.log.position_at(after).filter(|_| after < commit) else {
                break;
            };
            let entries = self.log.slice(after + 1, commit, bytes);
            after = entries.last().map_or(commit, |entry| entry.index);
            let ends = after >= commit || answers.len() + 1 == self.options.max_in_flight;
            answers.push(Fetched::Entries(CommittedEntries {
                prev,
                ends,
                entries,
            }));
        }
        answers
    }

    /// Pieces of the newest snapshot, if the asker wants it.
    fn pieces(&self, request: Fetch) -> Vec<Fetched> {
        let held = self.snapshot.as_ref();
        let Some(snapshot) = held.filter(|held| held.meta.last.index > request.after) else {
            return Vec::new();
        };
        let Snapshot { meta, data } = snapshot;
        let length = data.len() as u64;
        let same = |part: &SnapshotPart| part.last == meta.last && part.offset < length;
        let mut offset = request.part.filter(same).map_or(0, |part| part.offset);
        let mut answers = Vec::new();
        while answers.len() < self.options.max_in_flight {
            let end = (offset + self.options.max_append_bytes as u64).min(length);
            let ends = end == length || answers.len() + 1 == self.options.max_in_flight;
            answers.push(Fetched::Snapshot(SnapshotPiece {
                meta: meta.clone(),
                length,
                offset,
                data: data.slice(offset as usize..end as usize),
                ends,
            }));
            offset = end;
            if end == length {
                break;
            }
        }
        answers
    }
}

fn part_of(incoming: &Option<Incoming>, from: NodeKey) -> Option<u64> {
    let part = incoming.as_ref()?.part_from(from)?;
    Some(part.offset)
}
