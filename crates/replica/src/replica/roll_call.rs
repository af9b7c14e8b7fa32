//! Who is there, agreed: the leader confirms what nodes claim, and commits who came and who went as
//! keys of the state, so that every node sees the same membership at the same revision.
//!
//! ```text
//! birth ──► presence ── proved? ──► ledger ── Write::Own ──► log ──► _/node/<name> on every node
//!             ▲   │ not yet
//!             │   └─► RollCall { challenge, window } ──► one node, or all by one word
//!             └────── Present { echo, birth } ◄── each at a random moment of the window
//! ```
//!
//! - Nobody is written who has not proved that it lives: by a handshake, by any fresh frame, or by
//!   an answer with the challenge of a question to it. A birth that a broker kept proves nothing.
//! - Whoever wins an election takes over what was agreed, and asks those that it has no proof of. So
//!   does a leader that was cut off, when the broker restarted for example. They stay until they have
//!   been asked in vain; so an election or a restart removes nobody who lives.
//! - One word asks all where most are in doubt. The window in which they answer grows with their
//!   number, so that it is 1,000 answers a second at most.
//! - The end of a session that was heard of is written at once. If it was not the end, the node reads
//!   it on its own status topic, and says that it is there.
//! - A metric is written at most once in [`METRIC_INTERVAL`], and [`METRICS`] of them in one entry.
//!
//! The challenge makes the pair of frames fresh without a handshake: so they have a topic of their
//! own, and nothing is kept of who sends on it.
//!
//! Only the leader asks everyone. The others ask those who say that they vote: on them rests who
//! stands next, and whom an observer fetches from.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::agreed::{Agreed, AgreedNode, AgreedRole};
use crate::presence::{Asks, Standing};
use crate::state::{Action, KeyRange};
use crate::wire::{Present, RollCall as Call, Write};

/// How many records one entry writes, and how many bytes of them.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 48 << 10;

/// How often an entry is written: what comes meanwhile goes into the next.
const GAP: Duration = Duration::from_millis(100);

/// How often the metric of one node is written.
const METRIC_INTERVAL: Duration = Duration::from_secs(10);

/// How many records one entry writes whose metric alone has changed.
const METRICS: usize = 16;

/// The longest window in which to answer.
const MAX_WINDOW: Duration = Duration::from_secs(120);

/// How many answers wait for their moment.
const MAX_ANSWERS: usize = 4;

/// Up to so many nodes also those without a vote answer who asks all.
const FEW: usize = 64;

/// What a node knows of who is there, beside what it sees itself.
#[derive(Default)]
pub(super) struct RollCall {
    pub(super) agreed: Agreed,
    /// The term of the entry applied last.
    pub(super) applied_term: Term,
    /// While this node leads, and has applied an entry of its own term.
    ledger: Option<Ledger>,
    /// Everyone is for us to ask.
    watches_all: bool,
    /// To whom, and with what.
    answers: Vec<(Time, Name, u64)>,
    /// The latest questions: each comes by every broker that both use, and is answered once.
    called: VecDeque<(Name, u64)>,
}

/// What a leader is about to write.
#[derive(Default)]
struct Ledger {
    term: Term,
    configuration: raft::Index,
    metric: Metric,
    /// Whose record may have to change.
    dirty: BTreeSet<Name>,
    /// Under way into the log, by which command.
    pending: Vec<(Name, Option<Bytes>)>,
    proposed: RequestNumber,
    /// Nothing is written before.
    next_at: Time,
    /// Whose metric was written when.
    metric_at: BTreeMap<Name, Time>,
    /// Whose metric is to be written, from when on.
    swings: BTreeSet<(Time, Name)>,
}

/// Who is for a node to ask whether it lives.
#[derive(Clone, Copy)]
pub(super) struct Watching<'a> {
    all: bool,
    raft: Option<&'a Raft>,
}

impl Watching<'_> {
    pub(super) fn watches(self, node: &ActiveNode) -> bool {
        let configuration = self.raft.map(Raft::configuration);
        self.all
            || configuration.is_some_and(|configuration| configuration.is_voter(node.key))
            || status::SOURCES.contains(&node.role.as_str())
    }
}

impl Replica {
    /// Who is there, as the cluster has agreed, by this node's copy of the state. Empty at a witness,
    /// which has none, and as long as a member runs a build that knows nothing of it.
    pub fn agreed(&self) -> &Agreed {
        &self.roll_call.agreed
    }

    pub(super) fn watching(&self) -> Watching<'_> {
        Watching {
            all: self.roll_call.watches_all,
            raft: self.raft.as_ref(),
        }
    }

    /// The leader asks everyone; so does a voter that has nobody's word for it.
    fn is_to_watch_all(&self) -> bool {
        let nobody = || self.is_voter(self.endpoint.key) && self.roll_call.agreed.is_empty();
        self.role() == Some(Role::Leader) || self.witness || nobody()
    }

    /// Whether a question to everyone is for this node to answer: ten thousand answers are too many.
    fn answers_all(&self) -> bool {
        !self.observes() || self.roll_call.agreed.len() <= FEW
    }

    fn observes(&self) -> bool {
        match self.raft {
            None => self.lobby.observes(),
            Some(_) => !self.is_voter(self.endpoint.key),
        }
    }

    /// We were cut off from one broker of several.
    pub(super) fn doubt_link(&mut self, link: Link) {
        let watching = watching(self.roll_call.watches_all, &self.raft);
        self.presence
            .on_link_lost(link, |node| watching.watches(node), self.now);
    }

    /// We were cut off.
    pub(super) fn doubt_everyone(&mut self) {
        let watching = watching(self.roll_call.watches_all, &self.raft);
        self.presence
            .on_reconnected(|node| watching.watches(node), self.now);
    }

    // Asking and answering.

    /// Asks who is due, and answers whoever asked.
    pub(super) fn call_the_roll(&mut self) {
        if self.presence.deadline().is_some_and(|at| at <= self.now) {
            let challenge = self.endpoint.nonces.draw();
            let asks = self.presence.due(challenge, self.now);
            self.ask_roll(challenge, asks);
        }
        let (due, later) = std::mem::take(&mut self.roll_call.answers)
            .into_iter()
            .partition(|(at, ..)| *at <= self.now);
        self.roll_call.answers = later;
        let due: Vec<(Time, Name, u64)> = due;
        for (_, to, echo) in due {
            let birth = self.birth();
            let present = Body::Present(Present { echo, birth });
            self.endpoint.call(Some(&to), &present);
        }
    }

    fn ask_roll(&mut self, challenge: u64, asks: Asks) {
        let call = |window: Duration| {
            Body::RollCall(Call {
                challenge,
                window_ms: window.as_millis() as u32,
            })
        };
        if let Some(window) = asks.everyone {
            let window = window.min(MAX_WINDOW);
            return self.endpoint.call(None, &call(window));
        }
        for (name, asked) in asks.names {
            // An older build knows nothing of roll calls, but says how it is.
            if asked % 2 == 0 {
                self.endpoint.call(Some(&name), &call(Duration::ZERO));
            }
            if asked % 2 == 1 || self.is_called_by_status(&name) {
                self.endpoint.send_in_lobby(&name, &Body::StatusRequest);
            }
        }
    }

    /// Whether a node is to be asked by a frame that it has to answer in person: those of whom
    /// consensus is to hear are admitted by it.
    fn is_called_by_status(&self, name: &Name) -> bool {
        let node = self.presence.get(name);
        node.is_none_or(|node| self.says_that_it_votes(node) || self.is_voter(node.key))
    }

    pub(super) fn on_roll(&mut self, topic: &Topic, payload: &Bytes) -> Result<(), Refused> {
        if self.endpoint.speaks() < 2 {
            return Ok(()); // It knows nothing of this, and is asked otherwise.
        }
        let Some(Incoming {
            from,
            key,
            incarnation,
            body,
            ..
        }) = self.endpoint.receive_call(topic, payload)?
        else {
            return Ok(());
        };
        match body {
            Body::RollCall(call) => self.on_call(from, call),
            Body::Present(present) => {
                let Endpoint { topics, ring, .. } = &self.endpoint;
                let claim = Status::parse(ring, topics.root(), &from, &present.birth)?;
                if claim.process() != (key, incarnation) {
                    return Err(Refused::Misplaced);
                }
                // What comes too late is no offence.
                self.presence.on_answer(claim, present.echo);
                self.rank_is_stale |= self.is_voter(key);
            }
            _ => return Err(Refused::Misplaced),
        }
        Ok(())
    }

    fn on_call(&mut self, from: Name, call: Call) {
        let running = self.phase == Phase::Running && !self.live.is_empty();
        if !running || self.roll_call.answers.len() >= MAX_ANSWERS {
            return;
        }
        let question = (from.clone(), call.challenge);
        if self.roll_call.called.contains(&question) {
            return;
        }
        if self.roll_call.called.len() == MAX_ANSWERS {
            self.roll_call.called.pop_front();
        }
        self.roll_call.called.push_back(question);
        let at = self.now + draw_in(&mut self.endpoint.nonces, call.window_ms);
        self.roll_call.answers.push((at, from, call.challenge));
    }

    pub(super) fn roll_call_deadline(&self) -> Option<Time> {
        let answers = self.roll_call.answers.iter().map(|(at, ..)| *at).min();
        [answers, self.presence.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    // Agreeing.

    /// Begins, goes on with or ends the ledger, and proposes what is to be written.
    pub(super) fn keep_ledger(&mut self) {
        let all = self.is_to_watch_all();
        if std::mem::replace(&mut self.roll_call.watches_all, all) != all {
            let (watching, now) = (watching(all, &self.raft), self.now);
            self.presence.watch(|node| watching.watches(node), now);
        }
        self.endpoint.observes = self.observes();
        self.endpoint.deaf_to_lobby = !self.answers_all();
        let term = self.term();
        let leads = self.role() == Some(Role::Leader) && self.roll_call.applied_term == term;
        if !leads || self.phase != Phase::Running {
            self.roll_call.ledger = None;
            self.presence.take_touched();
            return;
        }
        if self.roll_call.ledger.as_ref().map(|ledger| ledger.term) != Some(term) {
            self.begin_ledger(term);
        }
        self.note_changes();
        if self.live.is_empty() || self.is_mixed() {
            return;
        }
        let batch = self.next_batch();
        if !batch.is_empty() {
            let actions = batch.into_iter().map(|(name, record)| {
                let key = AgreedNode::state_key(&name);
                match record {
                    Some(value) => Action::Put {
                        key,
                        value,
                        lease: None,
                    },
                    None => Action::Delete(KeyRange::Key(key)),
                }
            });
            let number = self.propose_own(Write::Own(actions.collect()));
            if let Some(ledger) = &mut self.roll_call.ledger {
                ledger.proposed = number;
            }
        }
    }

    /// Takes over what was agreed: it counts until those that we have no proof of are asked in vain.
    fn begin_ledger(&mut self, term: Term) {
        self.follow_agreed();
        for node in self.roll_call.agreed.nodes() {
            if node.name != self.endpoint.name {
                self.presence.adopt(node, self.now);
            }
        }
        self.rank_is_stale = true;
        self.roll_call.ledger = Some(Ledger {
            term,
            ..Ledger::default()
        });
    }

    /// Whose record may have to change.
    fn note_changes(&mut self) {
        let configuration = self.raft.as_ref().map(Raft::configuration_index);
        let configuration = configuration.unwrap_or_default();
        let RollCall { agreed, ledger, .. } = &mut self.roll_call;
        let Some(ledger) = ledger else { return };
        ledger.dirty.append(&mut self.presence.take_touched());
        // Also right after it begins: no entry has index 0.
        if std::mem::replace(&mut ledger.configuration, configuration) != configuration {
            let agreed = agreed.nodes().map(|node| &node.name);
            let names = agreed.chain(self.presence.names());
            ledger.dirty.extend(names.cloned());
            ledger.dirty.insert(self.endpoint.name.clone());
        }
        if std::mem::replace(&mut ledger.metric, self.metric) != self.metric {
            ledger.dirty.insert(self.endpoint.name.clone());
        }
        let written = |(name, record): &(Name, Option<Bytes>)| {
            agreed.get(name).map(AgreedNode::to_json) == *record
        };
        // All of an entry is written, or nothing.
        if ledger.pending.first().is_some_and(written) {
            ledger.pending.clear();
        }
    }

    /// What to write now; it is under way from then on.
    fn next_batch(&mut self) -> Vec<(Name, Option<Bytes>)> {
        let Some(mut ledger) = self.roll_call.ledger.take() else {
            return Vec::new();
        };
        let mut batch = Vec::new();
        if ledger.pending.is_empty() && self.now >= ledger.next_at {
            batch = self.batch(&mut ledger);
        }
        if !batch.is_empty() {
            ledger.pending.clone_from(&batch);
            ledger.next_at = self.now + GAP;
        }
        self.roll_call.ledger = Some(ledger);
        batch
    }

    fn batch(&self, ledger: &mut Ledger) -> Vec<(Name, Option<Bytes>)> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut take = |name: Name, record: Option<Bytes>| {
            bytes += name.as_str().len() + record.as_ref().map_or(0, Bytes::len);
            batch.push((name, record));
            batch.len() < BATCH && bytes < BATCH_BYTES
        };
        let mut more = true;
        while more && let Some(name) = ledger.dirty.pop_first() {
            let before = self.roll_call.agreed.get(&name);
            match (self.present_record(&name), before) {
                (None, _) => {}
                (Some(after), before) if after.as_ref() == before => {}
                (Some(Some(after)), Some(before)) if after.differs_by_metric(before) => {
                    let last = ledger.metric_at.get(&name);
                    let at = last.map_or(self.now, |at| *at + METRIC_INTERVAL);
                    if ledger.swings.iter().all(|(_, swings)| *swings != name) {
                        ledger.swings.insert((at.max(self.now), name));
                    }
                }
                (Some(after), _) => {
                    if after.is_none() {
                        ledger.metric_at.remove(&name);
                    }
                    more = take(name, after.as_ref().map(AgreedNode::to_json));
                }
            }
        }
        let mut metrics = 0;
        while more
            && metrics < METRICS
            && let Some((_, name)) = ledger.swings.first().filter(|(at, _)| *at <= self.now)
        {
            let name = name.clone();
            ledger.swings.pop_first();
            if let Some(Some(after)) = self.present_record(&name)
                && self.roll_call.agreed.get(&name) != Some(&after)
            {
                metrics += 1;
                ledger.metric_at.insert(name.clone(), self.now);
                more = take(name, Some(after.to_json()));
            }
        }
        batch
    }

    /// What the record of a node should say; `None` while that is in doubt, `Some(None)` if there
    /// should be none.
    fn present_record(&self, name: &Name) -> Option<Option<AgreedNode>> {
        if *name == self.endpoint.name {
            let Endpoint {
                key, incarnation, ..
            } = self.endpoint;
            return Some(Some(AgreedNode {
                name: name.clone(),
                key,
                incarnation,
                role: self.agreed_role(key),
                metric: self.metric,
                tags: self.tags.clone(),
            }));
        }
        match self.presence.standing(name) {
            Standing::There(node, incarnation) => Some(Some(AgreedNode {
                name: name.clone(),
                key: node.key,
                incarnation,
                role: self.agreed_role(node.key),
                metric: node.metric,
                tags: node.tags.clone(),
            })),
            Standing::Doubtful => None,
            Standing::Gone => Some(None),
        }
    }

    fn agreed_role(&self, key: NodeKey) -> AgreedRole {
        let Some(raft) = &self.raft else {
            return AgreedRole::Observer;
        };
        let configuration = raft.configuration();
        match key {
            key if configuration.is_witness(key) => AgreedRole::Witness,
            key if configuration.is_voter(key) => AgreedRole::Voter,
            key if configuration.is_member(key) => AgreedRole::Learner,
            _ => AgreedRole::Observer,
        }
    }

    /// What was to be written did not get into the log: it is worked out anew.
    pub(super) fn on_record_refused(&mut self, number: RequestNumber) {
        if let Some(ledger) = &mut self.roll_call.ledger
            && ledger.proposed == number
        {
            let names = ledger.pending.drain(..).map(|(name, _)| name);
            ledger.dirty.extend(names);
            ledger.next_at = self.now + GAP;
        }
    }

    pub(super) fn ledger_deadline(&self) -> Option<Time> {
        let ledger = self.roll_call.ledger.as_ref()?;
        if !ledger.pending.is_empty() || self.live.is_empty() || self.mixed {
            return None;
        }
        let now = (!ledger.dirty.is_empty()).then_some(ledger.next_at);
        let swing = ledger.swings.first().map(|(at, _)| *at);
        let swing = swing.map(|at| at.max(ledger.next_at));
        [now, swing].into_iter().flatten().min()
    }

    // Following.

    /// Follows the state, and tells of those whom we do not see ourselves.
    pub(super) fn follow_agreed(&mut self) {
        if self.witness {
            return;
        }
        self.roll_call.agreed.follow(&self.store);
        let changes = self.roll_call.agreed.take_changes();
        if changes.is_empty() {
            return;
        }
        for (name, before) in changes {
            let after = self.roll_call.agreed.get(&name);
            let Some(node) = after.or(before.as_ref()).map(|node| self.listed(node)) else {
                continue;
            };
            if after.is_some() {
                self.presence.forget_end(&name);
            }
            if name == self.endpoint.name || self.watching().watches(&node) {
                continue;
            }
            if let (Some(before), None) = (&before, after) {
                self.presence.agreed_gone(before);
            }
            let event = match (before.is_some(), after.is_some()) {
                (false, _) => PresenceEvent::Arrived(node),
                (true, true) => PresenceEvent::Changed(node),
                (true, false) => PresenceEvent::Departed(node),
            };
            self.event(Event::Presence(event));
        }
        self.event(Event::Agreed);
    }

    /// An agreed node as a list of who is there has it: by its own last word, if we have that.
    fn listed(&self, agreed: &AgreedNode) -> ActiveNode {
        let seen = self.presence.get(&agreed.name);
        match seen.filter(|seen| seen.key == agreed.key) {
            Some(seen) => seen.clone(),
            None => ActiveNode {
                name: agreed.name.clone(),
                key: agreed.key,
                role: agreed.role.as_str().to_owned(),
                term: 0,
                metric: agreed.metric,
                tags: agreed.tags.clone(),
            },
        }
    }

    /// Everyone that is there but ourselves: as the cluster has agreed, but for those of whom we know
    /// better, and those who are for us to watch as we see them.
    pub(super) fn others_there(&self) -> Vec<ActiveNode> {
        let watching = self.watching();
        let agreed = self.roll_call.agreed.nodes();
        let agreed = agreed.filter(|node| node.name != self.endpoint.name);
        let agreed = agreed.filter(|node| !self.presence.denies(node));
        let agreed = agreed.map(|node| self.listed(node));
        // Before anything is agreed there is only what each says itself.
        let unknown = self.roll_call.agreed.is_empty();
        let seen = self.presence.active().filter(|node| {
            let counts = unknown || watching.watches(node);
            counts && self.roll_call.agreed.get(&node.name).is_none()
        });
        agreed.chain(seen.cloned()).collect()
    }
}

fn watching(all: bool, raft: &Option<Raft>) -> Watching<'_> {
    let raft = raft.as_ref();
    Watching { all, raft }
}

/// A random moment of a window.
pub(crate) fn draw_in(nonces: &mut Nonces, window_ms: u32) -> Duration {
    let window = MAX_WINDOW.min(Duration::from_millis(window_ms.into()));
    let micros = window.as_micros() as u64;
    Duration::from_micros(nonces.draw() % (micros + 1))
}
