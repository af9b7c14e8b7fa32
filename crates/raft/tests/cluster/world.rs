//! A world for the core to live in: nodes, their disks and clocks, and a judge.
//!
//! A node's write is durable when the world says so, never before, and a crash keeps exactly
//! that. The judge ([`Facts`]) sees every effect and state of every node, which no node does, and
//! panics at the first one that breaks a promise. How messages travel is left to the caller.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use raft::message::{Acknowledge, Body, Fetched};
use raft::{
    ChangeId, ClientId, Command, Configuration, Durable, Effect, Entry, HardState, Index, Input,
    LeaseEpoch, LogPosition, MemberChange, Members, Message, NodeKey, Options, Payload, Persist,
    PersistSeq, Raft, ReadId, RequestNumber, Role, SaveSnapshot, SessionId, Sessions, Settings,
    Snapshot, Term, Time,
};

/// Nodes, disks and clocks under one true time.
pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) nodes: BTreeMap<NodeKey, Node>,
    pub(crate) options: Options,
    configuration: Configuration,
    seed: u64,
    pub(crate) facts: Facts,
    next_request: u64,
    next_read: u64,
    next_change: u64,
}

/// One node: a process that may be down, and a disk that remembers.
pub(crate) struct Node {
    /// `None` while the node is down.
    pub(crate) raft: Option<Raft>,
    pub(crate) disk: Durable,
    /// Writes asked for and not yet on the disk.
    pub(crate) writes: VecDeque<Persist>,
    pub(crate) connected: Sessions,
    sessions: u64,
    pub(crate) starts: u64,
    pub(crate) rank: u32,
    /// What the state machine has applied.
    pub(crate) applied: Index,
    pub(crate) clock: Clock,
}

/// A node's own clock: begins anywhere and runs a little fast or slow.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock {
    pub(crate) begins_at: u64,
    pub(crate) drift_ppm: i64,
}

impl Clock {
    pub(crate) fn read(self, now: Time) -> Time {
        let rate = (1_000_000 + self.drift_ppm) as u128;
        Time(self.begins_at + (u128::from(now.0) * rate / 1_000_000) as u64)
    }

    /// The earliest true time at which the clock reads at least `reading`.
    pub(crate) fn true_time(self, reading: Time) -> Time {
        let elapsed = u128::from(reading.0.saturating_sub(self.begins_at));
        let rate = (1_000_000 + self.drift_ppm) as u128;
        Time((elapsed * 1_000_000).div_ceil(rate) as u64)
    }
}

impl World {
    /// `voters` nodes that hold the formation record, and `observers` with empty disks.
    pub(crate) fn new(
        voters: u128,
        observers: u128,
        options: Options,
        settings: Settings,
        seed: u64,
    ) -> World {
        let members: Members = (1..=voters)
            .map(|n| (NodeKey(n), format!("n{n}")))
            .collect();
        let configuration = Configuration::of(members, settings);
        let formed = Durable {
            hard_state: HardState {
                term: Term(1),
                voted_for: None,
            },
            snapshot: None,
            entries: vec![Entry {
                index: Index(1),
                term: Term(1),
                payload: Payload::Configuration(configuration.clone()),
            }],
        };
        let mut world = World {
            now: Time(0),
            nodes: BTreeMap::new(),
            options,
            configuration,
            seed,
            facts: Facts::default(),
            next_request: 0,
            next_read: 0,
            next_change: 0,
        };
        for n in 1..=voters + observers {
            let disk = match n <= voters {
                true => formed.clone(),
                false => Durable::default(),
            };
            world.add(NodeKey(n), disk);
        }
        world
    }

    fn add(&mut self, key: NodeKey, disk: Durable) {
        self.facts.learn_log(&disk);
        let node = Node {
            raft: None,
            disk,
            writes: VecDeque::new(),
            connected: Sessions::default(),
            sessions: 0,
            starts: 0,
            rank: key.0 as u32 - 1,
            applied: Index(0),
            clock: Clock::default(),
        };
        self.nodes.insert(key, node);
    }

    pub(crate) fn node(&self, key: NodeKey) -> &Node {
        &self.nodes[&key]
    }

    pub(crate) fn raft(&self, key: NodeKey) -> Option<&Raft> {
        self.nodes[&key].raft.as_ref()
    }

    pub(crate) fn live(&self) -> impl Iterator<Item = (NodeKey, &Raft)> {
        self.nodes
            .iter()
            .filter_map(|(key, node)| Some((*key, node.raft.as_ref()?)))
    }

    pub(crate) fn leaders(&self) -> impl Iterator<Item = (NodeKey, &Raft)> {
        self.live().filter(|(_, raft)| raft.role() == Role::Leader)
    }

    /// Makes a voter of the formation a witness, before anyone starts.
    pub(crate) fn make_witness(&mut self, key: NodeKey) {
        self.configuration.witnesses.insert(key);
        let formation = Payload::Configuration(self.configuration.clone());
        for node in self.nodes.values_mut() {
            if let Some(first) = node.disk.entries.first_mut() {
                first.payload = formation.clone();
            }
        }
        let disks: Vec<Durable> = self.nodes.values().map(|node| node.disk.clone()).collect();
        self.facts.entries.clear();
        disks.iter().for_each(|disk| self.facts.learn_log(disk));
    }

    /// Every configuration that some node may still go by: what is committed last, and whatever any
    /// disk or log holds after it.
    pub(crate) fn configurations(&self) -> Vec<Configuration> {
        let set = |entry: &Entry| match &entry.payload {
            Payload::Configuration(configuration) => Some((entry.index, configuration.clone())),
            _ => None,
        };
        let applied = self.facts.applied.iter().map(|committed| &committed.entry);
        let last = applied.filter_map(set).last();
        let since = last.as_ref().map_or(Index(1), |(index, _)| *index);
        let disks = self.nodes.values();
        let held = disks.flat_map(|node| node.disk.entries.iter().cloned());
        let logs = self
            .live()
            .flat_map(|(_, raft)| raft.entries(raft.first_index() + 1));
        let later = held.chain(logs).filter(|entry| entry.index >= since);
        let later = later.filter_map(|entry| set(&entry));
        last.into_iter()
            .chain(later)
            .map(|(_, configuration)| configuration)
            .collect()
    }

    #[cfg(test)]
    pub(crate) fn heartbeat_ms(&self) -> u64 {
        let leader = self.leaders().max_by_key(|(_, raft)| raft.term());
        let configuration = leader.map_or(&self.configuration, |(_, raft)| raft.configuration());
        let third = configuration.settings.lease() / 3;
        self.options.heartbeat_interval.min(third).as_millis() as u64
    }

    // Life and death.

    /// Starts a node that is down from what its disk holds, connected.
    pub(crate) fn start(&mut self, key: NodeKey) -> Vec<Effect> {
        let now = self.now;
        let (options, seed) = (self.options, self.seed);
        let node = self.nodes.get_mut(&key).expect("known");
        assert!(node.raft.is_none(), "{key} runs already");
        node.starts += 1;
        let seed = seed ^ (key.0 as u64) << 32 ^ node.starts;
        let disk = node.disk.clone();
        node.applied = disk
            .snapshot
            .as_ref()
            .map_or(Index(0), |s| s.meta.last.index);
        node.raft = Some(Raft::new(key, options, seed, disk, node.clock.read(now)));
        let rank = node.rank;
        let mut effects = self.step(key, Input::Rank(rank));
        effects.extend(self.connect(key));
        effects
    }

    /// The process ends; of its writes the first `written` reached the disk unnoticed.
    pub(crate) fn crash(&mut self, key: NodeKey, written: usize) {
        for _ in 0..written {
            self.write(key);
        }
        let node = self.nodes.get_mut(&key).expect("known");
        node.raft = None;
        node.connected = Sessions::default();
        node.writes.clear();
    }

    /// A crashed node comes back with an empty disk and therefore under a new key. The judge
    /// keeps the old disk: what was promised once stays promised.
    pub(crate) fn wipe(&mut self, key: NodeKey) -> NodeKey {
        self.crash(key, 0);
        let new = NodeKey(key.0 + 100);
        self.add(new, Durable::default());
        self.nodes.get_mut(&new).expect("added").rank = 0;
        new
    }

    /// Gives a node another past.
    pub(crate) fn preset(&mut self, key: NodeKey, hard_state: HardState, terms: &[Term]) {
        self.crash(key, 0);
        let formation = Payload::Configuration(self.configuration.clone());
        let entries = terms.iter().zip(1..).map(|(term, index)| Entry {
            index: Index(index),
            term: *term,
            payload: match index {
                1 => formation.clone(),
                _ => Payload::Command(self::command(0, 0, "")),
            },
        });
        let disk = Durable {
            hard_state,
            snapshot: None,
            entries: entries.collect(),
        };
        self.facts.learn_log(&disk);
        self.nodes.get_mut(&key).expect("known").disk = disk;
    }

    /// Under one new session, whatever there was before.
    pub(crate) fn connect(&mut self, key: NodeKey) -> Vec<Effect> {
        self.nodes.get_mut(&key).expect("known").connected = Sessions::default();
        self.connect_too(key)
    }

    /// To one broker more.
    pub(crate) fn connect_too(&mut self, key: NodeKey) -> Vec<Effect> {
        let node = self.nodes.get_mut(&key).expect("known");
        node.sessions += 1;
        let session = SessionId((key.0 as u64) * 1_000 + node.sessions);
        node.connected.insert(session);
        self.tell_sessions(key)
    }

    pub(crate) fn disconnect(&mut self, key: NodeKey) -> Vec<Effect> {
        self.nodes.get_mut(&key).expect("known").connected = Sessions::default();
        self.tell_sessions(key)
    }

    /// From one of its brokers.
    pub(crate) fn disconnect_from(&mut self, key: NodeKey, session: SessionId) -> Vec<Effect> {
        let node = self.nodes.get_mut(&key).expect("known");
        let others = node.connected.iter().filter(|other| *other != session);
        node.connected = others.collect();
        self.tell_sessions(key)
    }

    fn tell_sessions(&mut self, key: NodeKey) -> Vec<Effect> {
        let connected = self.node(key).connected;
        self.step(key, Input::Sessions(connected))
    }

    // The disk.

    /// The oldest write reaches the disk. The node is not told yet.
    pub(crate) fn write(&mut self, key: NodeKey) -> Option<PersistSeq> {
        let node = self.nodes.get_mut(&key).expect("known");
        let write = node.writes.pop_front()?;
        let seq = write.seq;
        write_to(&mut node.disk, write);
        Some(seq)
    }

    /// The oldest write reaches the disk and the node is told.
    pub(crate) fn persist(&mut self, key: NodeKey) -> Option<Vec<Effect>> {
        let seq = self.write(key)?;
        Some(self.step(key, Input::Persisted(seq)))
    }

    // Inputs.

    /// Steps a live node. Every effect passes the judge.
    pub(crate) fn step(&mut self, key: NodeKey, input: Input) -> Vec<Effect> {
        let now = self.now;
        let node = self.nodes.get_mut(&key).expect("known");
        let at = node.clock.read(now);
        let raft = node.raft.as_mut().expect("it lives");
        let effects = raft.step(input, at);
        self.observe_leadership(key);
        for effect in &effects {
            self.observe(key, effect);
        }
        self.check_backlog(key);
        self.check_lease(key);
        effects
    }

    /// When a node wants to be ticked, in true time.
    pub(crate) fn deadline(&self, key: NodeKey) -> Option<Time> {
        let node = &self.nodes[&key];
        let deadline = node.raft.as_ref()?.next_deadline()?;
        Some(node.clock.true_time(deadline))
    }

    /// Ticks a node; at its deadline that must lead somewhere.
    pub(crate) fn tick(&mut self, key: NodeKey) -> Vec<Effect> {
        let at = self.nodes[&key].clock.read(self.now);
        let effects = self.step(key, Input::Tick);
        let next = self.raft(key).and_then(Raft::next_deadline);
        assert!(
            next.is_none_or(|next| next > at) || !effects.is_empty(),
            "{key} idles: ticked at {at:?}, wants another tick at {next:?}"
        );
        effects
    }

    pub(crate) fn propose(&mut self, key: NodeKey, data: &[String]) -> Vec<Effect> {
        let mut commands = Vec::new();
        for data in data {
            self.next_request += 1;
            commands.push(command(1, self.next_request, data));
        }
        self.step(key, Input::Propose(commands))
    }

    pub(crate) fn read(&mut self, key: NodeKey) -> (ReadId, Vec<Effect>) {
        self.next_read += 1;
        let id = ReadId(self.next_read);
        let committed = self.facts.committed();
        self.facts.reads.insert(id, committed);
        (id, self.step(key, Input::Read(id)))
    }

    pub(crate) fn reconfigure(
        &mut self,
        key: NodeKey,
        members: Vec<MemberChange>,
        settings: Option<Settings>,
    ) -> Vec<Effect> {
        self.next_change += 1;
        let id = ChangeId(self.next_change);
        self.step(
            key,
            Input::Reconfigure {
                id,
                members,
                settings,
            },
        )
    }

    pub(crate) fn compact(&mut self, key: NodeKey, through: Index) -> Vec<Effect> {
        assert!(
            through <= self.node(key).applied,
            "only applied state can be saved"
        );
        let data = self.facts.state_at(through);
        self.step(key, Input::Compact { through, data })
    }

    // The judge's eyes.

    fn observe(&mut self, key: NodeKey, effect: &Effect) {
        match effect {
            Effect::Persist(write) => {
                let raft = self.nodes[&key].raft.as_ref();
                self.facts.learn_entries(raft, &write.entries);
                self.nodes
                    .get_mut(&key)
                    .expect("known")
                    .writes
                    .push_back(write.clone());
            }
            Effect::Broadcast(message) => self.observe_message(key, None, message),
            Effect::Send { to, message } => self.observe_message(key, Some(*to), message),
            Effect::Apply(entries) => self.observe_apply(key, entries),
            Effect::Restore(snapshot) => self.observe_restore(key, snapshot),
            Effect::ReadReady { id, index } => {
                let floor = self
                    .facts
                    .reads
                    .remove(id)
                    .expect("asked for, answered once");
                assert!(
                    *index >= floor,
                    "read {id} at {index}, though {floor} was committed before it was asked"
                );
            }
            Effect::ReadRefused { id, .. } => {
                self.facts
                    .reads
                    .remove(id)
                    .expect("asked for, answered once");
            }
            Effect::ProposalRefused { .. }
            | Effect::ChangeDone { .. }
            | Effect::ChangeRefused { .. }
            | Effect::TransferRefused { .. }
            | Effect::StatusChanged
            | Effect::Rejected { .. } => {}
        }
    }

    fn observe_message(&mut self, key: NodeKey, to: Option<NodeKey>, message: &Message) {
        let held = self.node(key).disk.hard_state;
        let term = message.term;
        // A pre-vote request promises nothing; all else speaks for the term it carries.
        if !matches!(message.body, Body::RequestPreVote(_)) {
            assert!(
                held.term >= term,
                "{key} speaks in term {term}, its disk holds {held:?}: {message:?}"
            );
        }
        if matches!(message.body, Body::Acknowledge(_) | Body::Reject(_)) {
            let was_member = self.facts.members.contains(&key);
            assert!(was_member, "{key} observes, and says {message:?}");
        }
        match &message.body {
            Body::RequestVote(_) => {
                self.facts.vote(key, term, key);
                assert!(
                    held.term == term && held.voted_for == Some(key),
                    "{key} asks before its own vote is on disk: {held:?}"
                );
            }
            Body::Vote(vote) if vote.granted => {
                let to = to.expect("votes go to one");
                self.facts.vote(key, term, to);
                assert!(
                    held.term > term || held.voted_for == Some(to),
                    "{key} votes for {to} in {term}, its disk holds {held:?}"
                );
            }
            Body::Append(_) | Body::SnapshotChunk(_) => {
                let leader = self.facts.leaders.get(&term);
                assert_eq!(
                    leader,
                    Some(&key),
                    "{key} appends in a term it does not lead"
                );
            }
            Body::Fetched(fetched) => {
                assert!(
                    self.facts.leaders.contains_key(&term),
                    "{key} answers in a term without a leader"
                );
                self.facts.check_fetched(key, fetched);
            }
            Body::Acknowledge(acknowledge) => {
                self.observe_acknowledge(key, to.expect("to one"), term, *acknowledge);
            }
            _ => {}
        }
    }

    /// What is acknowledged is on the disk and equal to the leader's log.
    fn observe_acknowledge(&self, key: NodeKey, to: NodeKey, term: Term, said: Acknowledge) {
        assert_eq!(
            self.facts.leaders.get(&term),
            Some(&to),
            "acknowledged to the leader"
        );
        let index = said.match_index;
        let disk = &self.node(key).disk;
        let snapshot = disk
            .snapshot
            .as_ref()
            .map_or(Index(0), |s| s.meta.last.index);
        if index <= snapshot {
            return;
        }
        let held = position_on(disk, index);
        assert!(
            held.is_some(),
            "{key} acknowledges {index}, its disk ends before"
        );
        let leader = self
            .raft(to)
            .filter(|raft| raft.term() == term && raft.role() == Role::Leader);
        if let Some(leader) = leader
            && index > leader.first_index()
        {
            assert_eq!(
                held,
                position_in(leader, index),
                "{key} acknowledges what {to} has not"
            );
        }
    }

    fn observe_apply(&mut self, key: NodeKey, entries: &[Entry]) {
        let term = self.raft(key).expect("it lives").term();
        for entry in entries {
            let node = self.nodes.get_mut(&key).expect("known");
            assert_eq!(entry.index, node.applied + 1, "{key} skips or repeats");
            node.applied = entry.index;
            let first = self.facts.apply(entry, term);
            if first {
                self.check_committed(key, entry.position());
            }
        }
    }

    /// A committed entry is on the disks of a quorum and in the log of every later leader.
    fn check_committed(&self, by: NodeKey, position: LogPosition) {
        let durable = |key: NodeKey| {
            let disk = &self.nodes[&key].disk;
            let snapshot = disk
                .snapshot
                .as_ref()
                .map_or(Index(0), |s| s.meta.last.index);
            snapshot >= position.index || position_on(disk, position.index) == Some(position)
        };
        // Whoever commits first leads, and counts by the newest configuration in its log.
        let configuration = self.raft(by).expect("it lives").configuration();
        assert!(
            configuration.has_quorum(durable),
            "{by} committed {position:?} before a quorum had it on disk"
        );
        let term = self.raft(by).expect("it lives").term();
        for (key, leader) in self.leaders().filter(|(_, leader)| leader.term() > term) {
            assert!(
                leader.first_index() >= position.index
                    || position_in(leader, position.index) == Some(position),
                "{key} leads without the committed {position:?}"
            );
        }
    }

    fn observe_restore(&mut self, key: NodeKey, snapshot: &Snapshot) {
        let last = snapshot.meta.last.index;
        let node = self.nodes.get_mut(&key).expect("known");
        assert!(last > node.applied, "{key} goes back to {last}");
        assert!(
            node.writes.iter().all(|write| write.snapshot.is_none()),
            "{key} has two snapshots waiting for its disk"
        );
        node.applied = last;
        assert!(
            last <= self.facts.committed(),
            "a snapshot of what no one committed"
        );
        assert_eq!(
            snapshot.data,
            self.facts.state_at(last),
            "{key} restores another state"
        );
    }

    fn observe_leadership(&mut self, key: NodeKey) {
        let Some(raft) = self.nodes[&key].raft.as_ref() else {
            return;
        };
        if raft.role() != Role::Leader {
            return;
        }
        let term = raft.term();
        let known = *self.facts.leaders.entry(term).or_insert(key);
        assert_eq!(known, key, "two leaders in term {term}");
        if self.facts.complete_leaders.insert(term) {
            self.check_leader_complete(key);
        }
    }

    /// What was committed in an earlier term is in this leader's log. (A node that slept may
    /// well find old votes and lead a term that others have left; it commits nothing.)
    fn check_leader_complete(&self, key: NodeKey) {
        let raft = self.raft(key).expect("it lives");
        let committed = self.facts.committed_before(raft.term());
        assert!(
            raft.last_index() >= committed,
            "{key} leads without what is committed"
        );
        for entry in raft.entries(raft.first_index() + 1) {
            if entry.index <= committed {
                assert!(
                    self.facts.is_committed(&entry),
                    "{key} leads with {entry:?}"
                );
            }
        }
    }

    /// What waits for a disk is bounded, however slow the disk: by bytes, or it is one write. What a
    /// leader says of itself and of the members is little, and not counted.
    fn check_backlog(&self, key: NodeKey) {
        let writes = &self.node(key).writes;
        let bytes = writes.iter().map(|write| {
            let entries = write.entries.iter();
            let commands = entries.filter(|entry| matches!(entry.payload, Payload::Command(_)));
            commands.map(Entry::size).sum::<usize>()
        });
        let waiting: Vec<usize> = bytes.filter(|bytes| *bytes > 0).collect();
        let bound = self.options.max_unpersisted_bytes;
        assert!(
            waiting.len() < 2 || waiting.iter().sum::<usize>() <= bound,
            "{key} has writes of {waiting:?} bytes waiting, of which {bound} may"
        );
    }

    /// No two leaders may ever both claim to be the only one, by the one true time.
    fn check_lease(&mut self, key: NodeKey) {
        let node = &self.nodes[&key];
        let Some(lease) = node.raft.as_ref().and_then(Raft::lease) else {
            return self.facts.claim_ends(key, self.now);
        };
        let from = node.clock.true_time(lease.from).max(self.now);
        let until = node.clock.true_time(lease.until);
        if from < until {
            self.facts.claim(key, lease.epoch, from, until, self.now);
        }
    }
}

/// All that any node ever said or did, in one place.
#[derive(Default)]
pub(crate) struct Facts {
    pub(crate) leaders: BTreeMap<Term, NodeKey>,
    complete_leaders: BTreeSet<Term>,
    votes: BTreeMap<(NodeKey, Term), NodeKey>,
    /// Every entry ever written, with the term of the one before it. By induction, two logs that
    /// agree on one position agree on all before it (Raft §5.3, log matching).
    entries: BTreeMap<(Index, Term), (Payload, Term)>,
    /// Who was ever a member, if only by an entry that came to nothing.
    members: BTreeSet<NodeKey>,
    /// What is committed, from index 1.
    applied: Vec<Committed>,
    /// Reads not yet answered and what was committed when they were asked.
    reads: BTreeMap<ReadId, Index>,
    /// When which term's leader could claim to be the only one.
    claims: Vec<Claim>,
}

/// From when to when a leader could claim to be the only one, as far as it knew.
struct Claim {
    by: NodeKey,
    epoch: LeaseEpoch,
    from: Time,
    until: Time,
}

struct Committed {
    entry: Entry,
    /// The state of the state machine after it.
    state: u64,
    /// The term whose leader committed it.
    by: Term,
}

impl Facts {
    fn committed_before(&self, term: Term) -> Index {
        let count = self
            .applied
            .partition_point(|committed| committed.by < term);
        Index(count as u64)
    }

    pub(crate) fn committed(&self) -> Index {
        Index(self.applied.len() as u64)
    }

    fn is_committed(&self, entry: &Entry) -> bool {
        self.applied
            .get(entry.index.0 as usize - 1)
            .is_some_and(|committed| committed.entry == *entry)
    }

    /// What is fetched is committed, all of it.
    fn check_fetched(&self, by: NodeKey, fetched: &Fetched) {
        match fetched {
            Fetched::Nothing => {}
            Fetched::Entries(said) => {
                for entry in &said.entries {
                    assert!(self.is_committed(entry), "{by} serves {entry:?}");
                }
            }
            Fetched::Snapshot(piece) => {
                let last = piece.meta.last.index;
                assert!(last <= self.committed(), "{by} serves a snapshot of {last}");
                let state = self.state_at(last);
                let (from, end) = (piece.offset as usize, piece.data.len());
                assert_eq!(piece.data, state.slice(from..from + end));
            }
        }
    }

    fn vote(&mut self, voter: NodeKey, term: Term, candidate: NodeKey) {
        let known = *self.votes.entry((voter, term)).or_insert(candidate);
        assert_eq!(known, candidate, "{voter} votes twice in term {term}");
    }

    fn learn_log(&mut self, disk: &Durable) {
        let mut previous = Term(0);
        for entry in &disk.entries {
            self.learn_members(entry);
            self.learn(entry, previous);
            previous = entry.term;
        }
    }

    fn learn_entries(&mut self, raft: Option<&Raft>, entries: &[Entry]) {
        let Some(first) = entries.first() else {
            return;
        };
        // The entry before may be the log's base, whose term is not shown; then nothing is lost:
        // a base is committed, and committed entries are compared by themselves.
        let before = raft.and_then(|raft| position_in(raft, first.index.previous()));
        let mut previous = before.map(|position| position.term);
        for entry in entries {
            self.learn_members(entry);
            match previous {
                Some(previous) => self.learn(entry, previous),
                None if first.index == Index(1) => self.learn(entry, Term(0)),
                None => {}
            }
            previous = Some(entry.term);
        }
    }

    fn learn_members(&mut self, entry: &Entry) {
        if let Payload::Configuration(configuration) = &entry.payload {
            self.members.extend(configuration.all_members());
        }
    }

    fn learn(&mut self, entry: &Entry, previous: Term) {
        let known = self
            .entries
            .entry((entry.index, entry.term))
            .or_insert_with(|| (entry.payload.clone(), previous));
        assert_eq!(
            (&known.0, known.1),
            (&entry.payload, previous),
            "two logs differ at or before {:?}",
            entry.position()
        );
    }

    /// Takes note of an applied entry; true if it is the first node to apply it.
    fn apply(&mut self, entry: &Entry, by: Term) -> bool {
        if entry.index <= self.committed() {
            assert!(
                self.is_committed(entry),
                "applied {entry:?}, elsewhere {:?}",
                self.applied[entry.index.0 as usize - 1].entry
            );
            return false;
        }
        assert_eq!(
            entry.index,
            self.committed() + 1,
            "applied beyond what is committed"
        );
        let before = self.applied.last().map_or(0, |committed| committed.state);
        self.applied.push(Committed {
            entry: entry.clone(),
            state: state_after(before, entry),
            by,
        });
        true
    }

    /// The state machine's snapshot as of an index: a digest of all entries, and some bulk.
    fn state_at(&self, index: Index) -> Bytes {
        let state = self.applied[index.0 as usize - 1].state;
        let bulk = (state % 97) as usize;
        let mut data = state.to_be_bytes().to_vec();
        data.extend((0..bulk).map(|n| n as u8));
        Bytes::from(data)
    }

    /// Claims of different epochs never overlap, and later ones have greater tokens.
    fn claim(&mut self, by: NodeKey, epoch: LeaseEpoch, from: Time, until: Time, now: Time) {
        for claim in self.claims.iter().filter(|claim| claim.epoch != epoch) {
            let (other, start, end) = (claim.epoch, claim.from, claim.until);
            assert!(
                until <= start || end <= from,
                "the leaders of {other} ({start:?}..{end:?}) and {epoch} ({from:?}..{until:?}) both claim to be the only one"
            );
            assert_eq!(
                start < from,
                other.token() < epoch.token(),
                "{by} claims {epoch} from {from:?} on, {other} was claimed from {start:?} on"
            );
        }
        match self.claims.iter_mut().find(|claim| claim.epoch == epoch) {
            // A shorter lease takes the place of a longer one that it has not used up.
            Some(claim) => claim.until = until.max(claim.until.min(now)),
            None => self.claims.push(Claim {
                by,
                epoch,
                from,
                until,
            }),
        }
    }

    /// A node that makes no claim any more has stopped acting on the last one.
    fn claim_ends(&mut self, by: NodeKey, now: Time) {
        if let Some(claim) = self.claims.iter_mut().rfind(|claim| claim.by == by) {
            claim.until = claim.until.min(now).max(claim.from);
        }
    }

    pub(crate) fn leases_claimed(&self) -> usize {
        self.claims.len()
    }
}

pub(crate) fn command(client: u64, request: u64, data: &str) -> Command {
    Command {
        client: ClientId(client),
        request: RequestNumber(request),
        data: Bytes::copy_from_slice(data.as_bytes()),
    }
}

/// Carries out a write as `Persist` is documented.
fn write_to(disk: &mut Durable, write: Persist) {
    if let Some(hard_state) = write.hard_state {
        assert!(
            hard_state.term >= disk.hard_state.term,
            "the disk's term goes back"
        );
        disk.hard_state = hard_state;
    }
    if let Some(SaveSnapshot {
        snapshot,
        discard_log,
    }) = write.snapshot
    {
        let last = snapshot.meta.last.index;
        if discard_log {
            disk.entries.clear();
        } else {
            let end = disk.entries.last().map_or(Index(0), |entry| entry.index);
            assert!(
                end >= last,
                "a snapshot up to {last} on a log that ends at {end}"
            );
        }
        disk.entries.retain(|entry| entry.index > last);
        disk.snapshot = Some(snapshot);
    }
    if let Some(first) = write.entries.first() {
        let base = disk
            .snapshot
            .as_ref()
            .map_or(Index(0), |s| s.meta.last.index);
        assert!(first.index > base, "a write below the snapshot");
        disk.entries.retain(|entry| entry.index < first.index);
        let end = disk.entries.last().map_or(base, |entry| entry.index);
        assert_eq!(first.index, end + 1, "a write leaves a hole in the log");
        disk.entries.extend(write.entries);
    }
}

fn position_on(disk: &Durable, index: Index) -> Option<LogPosition> {
    let first = disk.entries.first()?.index;
    let offset = index.0.checked_sub(first.0)?;
    disk.entries.get(offset as usize).map(Entry::position)
}

fn position_in(raft: &Raft, index: Index) -> Option<LogPosition> {
    if index <= raft.first_index() {
        return None;
    }
    raft.entries(index).first().map(Entry::position)
}

fn state_after(before: u64, entry: &Entry) -> u64 {
    let mut digest = before ^ entry.index.0.rotate_left(32) ^ entry.term.0;
    if let Payload::Command(command) = &entry.payload {
        for byte in &command.data {
            digest = (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        digest ^= command.request.0;
    }
    digest.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17)
}
