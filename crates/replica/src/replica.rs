//! One node: what arrives from broker, disk and callers goes in, what is to be done comes out.
//!
//! ```text
//! topic, payload ─► endpoint ─► Body ─┬ Consensus ► raft ─┬ Persist ► Effect::Persist
//!                                     ├ Hello ► lobby     ├ Broadcast/Send ► endpoint ► Effect::Publish
//!                                     ├ Request ► serve   └ Apply ► store ► answers
//!                  presence ◄ status  └ Reply ► requests ► Effect::Done
//! ```
//!
//! A node passes three phases. It *waits* for a broker, *probes* whether its name is free, and
//! then *runs*: forms or joins its cluster, and takes part. Nothing of it speaks for the node
//! before it runs.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use raft::{
    ClientId, Durable, HardState, Lease, NodeKey, Persist, PersistSeq, Raft, ReadId, Refusal,
    RequestNumber, Role, Settings, Term, Time,
};

use crate::endpoint::{Endpoint, Incoming, Publish, Refused};
use crate::formation::{Lobby, Step, Trouble};
use crate::keys::{ClusterKey, Incarnation, KeyRing, Nonces};
use crate::kv::{self, Store};
use crate::name::{Metric, Name};
use crate::presence::{
    ActiveNode, Condition, Meaning, Presence, PresenceEvent, Speaker, Status, session_id,
};
use crate::requests::{Done, RequestError, Requests, Token, fits};
use crate::topic::{PrefixError, Topic, Topics};
use crate::wire::{
    Answer, Body, Formation, Holds, MAX_VALUE, NodeStatus, Occupied, Operation, Reply, Request,
    Stale, StaleRead, from_slice, name, to_vec,
};

/// How long a starting node waits for whoever has its name, at least.
const PROBE_TIME: Duration = Duration::from_millis(100);

/// How long it waits if not even its own probe comes back.
const PROBE_GIVEN_UP: Duration = Duration::from_secs(2);

/// How often a status is published at most.
const STATUS_GAP: Duration = Duration::from_millis(100);

/// How often a status is put back at most, where someone else keeps replacing it.
const MAX_STATUS_GAP: Duration = Duration::from_secs(30);

/// How many requests a leader has under way for others.
const MAX_WAITING: usize = 65_536;

/// How many bytes of applied entries call for a snapshot, at least.
const SNAPSHOT_BYTES: usize = 4 << 20;

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name.
    pub name: Name,
    /// Its key: persisted, drawn when its data directory was made.
    pub key: NodeKey,
    /// What stands before the cluster's name in every topic.
    pub prefix: String,
    /// The cluster's name.
    pub cluster: Name,
    /// The voters that form the cluster; empty for an observer.
    pub voters: Vec<Name>,
    /// The node's metric at start.
    pub metric: Metric,
    /// What the cluster is formed with, if it is formed now.
    pub settings: Settings,
    /// The node's own timing and bounds.
    pub raft: raft::Options,
    /// The cluster keys.
    pub ring: KeyRing,
    /// The program's version, shown in its status.
    pub version: String,
}

impl Config {
    /// A node that runs in insecure mode until a key is given.
    pub fn new(name: Name, key: NodeKey, cluster: Name, voters: Vec<Name>) -> Config {
        Config {
            name,
            key,
            prefix: "raft".to_owned(),
            cluster,
            voters,
            metric: Metric::default(),
            settings: Settings::default(),
            raft: raft::Options::default(),
            ring: KeyRing::insecure(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Seals frames with `key`.
    pub fn with_key(self, key: ClusterKey) -> Config {
        Config {
            ring: KeyRing::of(key),
            ..self
        }
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A session with the broker is up and subscribed. `epoch` grows with each.
    Connected {
        /// Which session of this process.
        epoch: u64,
    },
    /// The session is gone.
    Disconnected,
    /// The broker delivered a message.
    Received {
        /// Its topic.
        topic: String,
        /// Its payload.
        payload: Bytes,
        /// Whether the broker had kept it from before.
        retained: bool,
    },
    /// All writes up to this one are durable.
    Persisted(PersistSeq),
    /// What [`Effect::SaveFormation`] asked for is durable.
    FormationSaved,
    /// A caller in this process wants something.
    Request {
        /// The caller's mark, given back with the result.
        token: Token,
        /// What it wants.
        operation: Operation,
        /// How long it will wait.
        timeout: Duration,
    },
    /// The node's metric changed.
    SetMetric(Metric),
    /// The node is to stop: it says farewell.
    Shutdown,
    /// Time has passed.
    Tick,
}

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Publish this.
    Publish(Publish),
    /// Make this durable, then say [`Input::Persisted`].
    Persist(Persist),
    /// Make the formation record durable, then say [`Input::FormationSaved`].
    SaveFormation(Bytes),
    /// A caller's request has come to an end.
    Done {
        /// The caller's mark.
        token: Token,
        /// What came of it.
        result: Result<Done, RequestError>,
    },
    /// Tell whoever watches.
    Event(Event),
}

/// Something worth telling.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Role, term, leader or lease changed; read them from the node.
    StatusChanged,
    /// Someone came, changed or went.
    Presence(PresenceEvent),
    /// A message was not taken.
    Refused {
        /// The topic it came on.
        topic: String,
        /// Why.
        reason: Refused,
    },
    /// A member said what no correct member says.
    Rejected {
        /// Who.
        from: String,
        /// What was wrong.
        reason: raft::Rejection,
    },
    /// The cluster does not come to be; an operator has to look.
    Trouble(Trouble),
    /// The node is now of a formed cluster.
    Joined {
        /// Its voters by name.
        voters: Vec<String>,
        /// Whether this node is one of them.
        voter: bool,
    },
    /// The node must stop.
    Stop(StopReason),
}

/// Why a node must stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// Another process runs under its name.
    #[error(
        "another process is running as {0}: give this node another --id, or stop the other one"
    )]
    NameTaken(Name),
    /// A snapshot that this build cannot read.
    #[error("the leader's snapshot cannot be read: {0}; is this node older than the leader?")]
    Snapshot(String),
}

/// What a new session with the broker needs; the same for each but for its epoch.
#[derive(Clone, Debug)]
pub struct SessionPlan {
    name: Name,
    key: NodeKey,
    incarnation: Incarnation,
    topics: Topics,
    ring: KeyRing,
}

impl SessionPlan {
    /// The MQTT client id: no two sessions share one, so that no broker ever takes a session
    /// over (a takeover can suppress a will).
    pub fn client_id(&self, epoch: u64) -> String {
        let incarnation = self.incarnation.to_string();
        format!("{}-{}-{epoch}", self.name, &incarnation[..8])
    }

    /// The Last Will.
    pub fn will(&self, epoch: u64) -> Publish {
        let SessionPlan {
            name,
            key,
            incarnation,
            topics,
            ring,
        } = self;
        let speaker = Speaker {
            root: topics.root(),
            name,
            key: *key,
            incarnation: *incarnation,
            epoch,
        };
        let payload = Status::offline(ring, speaker);
        Publish {
            topic: topics.status(name),
            payload,
            retain: true,
        }
    }

    /// The topic filters to subscribe to.
    pub fn subscriptions(&self) -> [String; 3] {
        self.topics.subscriptions(&self.name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Probing { since: Time, until: Time },
    Running,
    Stopped,
}

/// One node. Its module draws how it works.
pub struct Replica {
    endpoint: Endpoint,
    lobby: Lobby,
    presence: Presence,
    requests: Requests,
    store: Store,
    raft: Option<Raft>,
    phase: Phase,
    /// The present session; `None` while no broker is reachable.
    epoch: Option<u64>,
    /// A session came up lately: whoever has our name may still answer.
    reprobing: Option<Time>,
    metric: Metric,
    options: raft::Options,
    version: String,
    /// What the disk gave back, until consensus starts.
    durable: Option<Durable>,
    saving: Option<Holds>,
    /// Who waits for which write and which read.
    waiting: BTreeMap<(ClientId, RequestNumber), Origin>,
    reads: BTreeMap<ReadId, WaitingRead>,
    last_read: ReadId,
    proposals: Vec<raft::Command>,
    bytes_since_snapshot: usize,
    snapshot_bytes: usize,
    published: Option<Condition>,
    status_at: Time,
    status_gap: Duration,
    status_wrong: bool,
    rank_is_stale: bool,
    last_leader: Option<NodeKey>,
    now: Time,
    effects: VecDeque<Effect>,
}

/// Where an answer goes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Local,
    Remote(Name),
}

struct WaitingRead {
    origin: Origin,
    client: ClientId,
    number: RequestNumber,
    key: Bytes,
}

impl Replica {
    /// A node with what its disk gave back. `seed` must be unpredictable: the incarnation and
    /// every challenge come from it.
    ///
    /// # Errors
    /// When the prefix cannot stand in a topic, or the formation record cannot be read.
    pub fn new(
        config: Config,
        formation: Option<&[u8]>,
        durable: Durable,
        seed: [u8; 32],
        now: Time,
    ) -> Result<Replica, StartError> {
        let topics = Topics::new(&config.prefix, &config.cluster)?;
        let holds = match formation {
            Some(record) => from_slice(record).map_err(|e| StartError::Formation(e.to_string()))?,
            None => Holds::Nothing,
        };
        let Config {
            name,
            key,
            voters,
            metric,
            settings,
            raft: options,
            ring,
            version,
            ..
        } = config;
        let mut nonces = Nonces::new(&seed);
        let mut incarnation = [0; 16];
        incarnation[..8].copy_from_slice(&nonces.draw().to_be_bytes());
        incarnation[8..].copy_from_slice(&nonces.draw().to_be_bytes());
        let client = ClientId(nonces.draw());
        let incarnation = Incarnation(incarnation);
        let endpoint = Endpoint::new(name.clone(), key, incarnation, topics, ring, nonces);
        Ok(Replica {
            endpoint,
            lobby: Lobby::new(name, key, voters, settings, holds),
            presence: Presence::default(),
            requests: Requests::new(client),
            store: Store::default(),
            raft: None,
            phase: Phase::Waiting,
            epoch: None,
            reprobing: None,
            metric,
            options,
            version,
            durable: Some(durable),
            saving: None,
            waiting: BTreeMap::new(),
            reads: BTreeMap::new(),
            last_read: ReadId(0),
            proposals: Vec::new(),
            bytes_since_snapshot: 0,
            snapshot_bytes: SNAPSHOT_BYTES,
            published: None,
            status_at: Time(0),
            status_gap: STATUS_GAP,
            status_wrong: false,
            rank_is_stale: true,
            last_leader: None,
            now,
            effects: VecDeque::new(),
        })
    }

    /// What each session with the broker needs.
    pub fn session_plan(&self) -> SessionPlan {
        let Endpoint {
            name,
            key,
            incarnation,
            topics,
            ring,
            ..
        } = &self.endpoint;
        SessionPlan {
            name: name.clone(),
            key: *key,
            incarnation: *incarnation,
            topics: topics.clone(),
            ring: ring.clone(),
        }
    }

    /// Takes what has happened by `now`, all at once, and returns what is to be done, in order.
    /// Inputs that come together are answered together: one append, one write, one publish.
    pub fn step(&mut self, inputs: impl IntoIterator<Item = Input>, now: Time) -> Vec<Effect> {
        self.now = self.now.max(now);
        for input in inputs {
            self.take(input);
        }
        self.settle();
        self.effects.drain(..).collect()
    }

    /// When to step with [`Input::Tick`] if nothing happens before.
    pub fn next_deadline(&self) -> Option<Time> {
        let running = self.phase == Phase::Running;
        let probing = match self.phase {
            Phase::Probing { until, .. } => Some(until),
            Phase::Waiting | Phase::Running | Phase::Stopped => None,
        };
        let lobby = self
            .lobby
            .deadline()
            .filter(|_| running && self.epoch.is_some());
        let status = self.status_is_due().then_some(self.status_at);
        let deadlines = [
            probing,
            lobby,
            status,
            self.raft.as_ref().and_then(Raft::next_deadline),
            self.presence
                .deadline()
                .filter(|_| running && self.epoch.is_some()),
            self.requests.deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    // What can be seen.

    /// The node's name.
    pub fn name(&self) -> &Name {
        &self.endpoint.name
    }

    /// What the node is in consensus; `None` while its cluster is not formed.
    pub fn role(&self) -> Option<Role> {
        self.raft.as_ref().map(Raft::role)
    }

    /// The newest term that the node has taken part in.
    pub fn term(&self) -> Term {
        self.raft.as_ref().map(Raft::term).unwrap_or_default()
    }

    /// Who leads, as far as this node knows.
    pub fn leader(&self) -> Option<Name> {
        let raft = self.raft.as_ref()?;
        self.name_of(raft.leader()?)
    }

    /// The time in which this node is the only leader for certain.
    pub fn lease(&self) -> Option<Lease> {
        self.raft.as_ref().and_then(Raft::lease)
    }

    /// The node's metric.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// The leader's metric, as it last said.
    pub fn leader_metric(&self) -> Option<Metric> {
        let leader = self.leader()?;
        if leader == self.endpoint.name {
            return Some(self.metric);
        }
        self.presence.get(&leader).map(|node| node.metric)
    }

    /// The replicated state as it stands here; may be behind the leader's.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Everyone that is there, ourselves among them, by name.
    pub fn active_nodes(&self) -> Vec<ActiveNode> {
        let mut nodes: Vec<ActiveNode> = self.presence.active().cloned().collect();
        if self.phase == Phase::Running && self.epoch.is_some() {
            let condition = self.condition();
            nodes.push(ActiveNode {
                name: self.endpoint.name.clone(),
                key: self.endpoint.key,
                role: condition.role.to_owned(),
                term: condition.term,
                metric: self.metric,
            });
        }
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        nodes
    }

    /// The voters that this node still waits for to form its cluster.
    pub fn missing_voters(&self) -> Vec<Name> {
        match self.lobby.formation() {
            Some(_) => Vec::new(),
            None => self.lobby.missing(),
        }
    }

    /// Consensus, for inspection by tests and the simulator.
    pub fn raft(&self) -> Option<&Raft> {
        self.raft.as_ref()
    }

    /// The process.
    pub fn incarnation(&self) -> Incarnation {
        self.endpoint.incarnation
    }

    #[cfg(test)]
    pub(crate) fn peers(&self) -> &crate::peers::Peers {
        &self.endpoint.peers
    }

    /// How the node is.
    pub fn status(&self) -> NodeStatus {
        let raft = self.raft.as_ref();
        let voters = raft.map(|raft| raft.configuration().voters.values().cloned().collect());
        NodeStatus {
            node: self.endpoint.name.to_string(),
            key: self.endpoint.key,
            role: self.condition().role.to_owned(),
            term: self.term().0,
            leader: self.leader().map(|name| name.to_string()),
            metric: self.metric.value(),
            last_index: raft.map_or(0, |raft| raft.last_index().0),
            commit_index: raft.map_or(0, |raft| raft.commit_index().0),
            applied_index: self.store.applied().0,
            applied_digest: self.store.digest(),
            revision: self.store.revision(),
            voters: voters.unwrap_or_default(),
            is_leader: self.is_leader_at(self.now),
            version: self.version.clone(),
            incarnation: self.endpoint.incarnation.0,
        }
    }

    fn is_leader_at(&self, now: Time) -> bool {
        self.lease()
            .is_some_and(|lease| lease.from <= now && now < lease.until)
    }

    // In.

    fn take(&mut self, input: Input) {
        if self.phase == Phase::Stopped {
            return self.refuse_when_stopped(input);
        }
        match input {
            Input::Connected { epoch } => self.on_connected(epoch),
            Input::Disconnected => self.on_disconnected(),
            Input::Received {
                topic,
                payload,
                retained,
            } => {
                if let Err(reason) = self.on_received(&topic, &payload, retained) {
                    self.event(Event::Refused { topic, reason });
                }
            }
            Input::Persisted(seq) => self.on_persisted(seq),
            Input::FormationSaved => self.on_formation_saved(),
            Input::Request {
                token,
                operation,
                timeout,
            } => {
                let submitted = self.requests.submit(token, operation, timeout, self.now);
                if let Err(error) = submitted {
                    self.effects.push_back(Effect::Done {
                        token,
                        result: Err(error),
                    });
                }
            }
            Input::SetMetric(metric) => {
                self.metric = metric;
                self.rank_is_stale = true;
            }
            Input::Shutdown => self.shut_down(),
            Input::Tick => {}
        }
    }

    fn refuse_when_stopped(&mut self, input: Input) {
        if let Input::Request { token, .. } = input {
            self.effects.push_back(Effect::Done {
                token,
                result: Err(RequestError::TimedOut),
            });
        }
    }

    fn on_connected(&mut self, epoch: u64) {
        self.epoch = Some(epoch);
        self.published = None;
        self.status_at = self.now;
        let me = self.endpoint.name.clone();
        self.endpoint.send_in_lobby(&me, &Body::Probe);
        if self.phase == Phase::Running {
            self.reprobing = Some(self.now + PROBE_GIVEN_UP);
            self.presence.on_reconnected(self.now);
            self.announce_session();
        } else {
            let until = self.now + PROBE_GIVEN_UP;
            self.phase = Phase::Probing {
                since: self.now,
                until,
            };
        }
    }

    fn on_disconnected(&mut self) {
        self.epoch = None;
        if self.phase != Phase::Running {
            self.phase = Phase::Waiting;
        }
        self.consensus(raft::Input::Session(None));
    }

    fn announce_session(&mut self) {
        if let Some(epoch) = self.epoch {
            let session = session_id(self.endpoint.incarnation, epoch);
            self.consensus(raft::Input::Session(Some(session)));
        }
    }

    fn on_received(&mut self, topic: &str, payload: &Bytes, retained: bool) -> Result<(), Refused> {
        let topic = self.endpoint.topics.parse(topic).ok_or(Refused::Topic)?;
        if let Topic::Status { node } = &topic {
            return self.on_status(node, payload, retained);
        }
        for incoming in self.endpoint.receive(&topic, payload, self.now)? {
            self.on_incoming(incoming)?;
        }
        for (name, key, incarnation) in self.endpoint.take_admitted() {
            self.presence.on_admitted(&name, key, incarnation);
            self.rank_is_stale |= self.is_voter(key);
        }
        Ok(())
    }

    fn on_status(&mut self, node: &Name, payload: &[u8], retained: bool) -> Result<(), Refused> {
        let Endpoint {
            name,
            key,
            incarnation,
            topics,
            ring,
            peers,
            ..
        } = &self.endpoint;
        if payload.is_empty() {
            // Someone removed a retained status: if it was ours, it is put back.
            if node == name {
                self.put_status_back();
            }
            return Ok(());
        }
        let root = topics.root();
        let claim = match Status::parse(ring, root, node, payload) {
            Ok(claim) => claim,
            Err(refused) => {
                // Whatever stands in our status's place hides us from who comes later.
                if node == name {
                    self.put_status_back();
                }
                return Err(refused);
            }
        };
        let of_voter = self.is_voter(claim.node.key);
        let epoch = self.epoch.unwrap_or_default();
        let me = Speaker {
            root,
            name,
            key: *key,
            incarnation: *incarnation,
            epoch,
        };
        let is_admitted = |key, incarnation| peers.is_admitted(key, incarnation);
        let meaning = self
            .presence
            .on_claim(me, claim, retained, is_admitted, self.now);
        self.rank_is_stale |= of_voter;
        match meaning {
            Meaning::OursIsWrong => self.put_status_back(),
            Meaning::SessionEnded(session) if !retained => {
                // Who is gone no longer stands before us in the succession.
                self.update_rank();
                self.consensus(raft::Input::LeaderGone { session });
            }
            Meaning::Noted | Meaning::SessionEnded(_) => {}
        }
        Ok(())
    }

    fn on_incoming(&mut self, incoming: Incoming) -> Result<(), Refused> {
        let Incoming {
            from,
            key,
            incarnation,
            lobby,
            body,
        } = incoming;
        self.presence.on_heard(&from, key, incarnation);
        match (body, lobby) {
            (Body::Probe, true) => self.on_probe(&from, incarnation),
            (Body::Occupied(occupied), true) => self.on_occupied(&from, occupied),
            (Body::StatusRequest, _) => self.answer_status_request(&from, lobby),
            (Body::StaleRead(read), _) => self.answer_stale_read(&from, read, lobby),
            (Body::Status(_) | Body::Stale(_), _) => {}
            _ if self.phase != Phase::Running => {}
            (Body::Hello(hello), true) => {
                let wants_answer =
                    hello.question && (self.endpoint.has_joined() || hello.voters.is_empty());
                let step = self.lobby.on_hello(&from, key, hello, self.now);
                self.form(step);
                if wants_answer {
                    let answer = self.lobby.hello(false);
                    self.endpoint.send_in_lobby(&from, &Body::Hello(answer));
                }
            }
            (Body::Consensus(message), false) => {
                self.consensus(raft::Input::Message { from: key, message });
            }
            (Body::Request(request), false) => self.serve(request, Origin::Remote(from)),
            (Body::Reply(reply), false) => self.on_reply(reply),
            _ => return Err(Refused::Misplaced),
        }
        Ok(())
    }

    fn answer_status_request(&mut self, from: &Name, lobby: bool) {
        let status = Body::Status(self.status());
        self.answer_where_asked(from, lobby, &status);
    }

    /// Tells what our own copy says; before there is a cluster it would say nothing.
    fn answer_stale_read(&mut self, from: &Name, read: StaleRead, lobby: bool) {
        if self.raft.is_none() {
            return;
        }
        let reading = self.store.get(&read.key);
        let key = read.key;
        self.answer_where_asked(from, lobby, &Body::Stale(Stale { key, reading }));
    }

    fn answer_where_asked(&mut self, from: &Name, lobby: bool, answer: &Body) {
        match lobby {
            true => self.endpoint.send_in_lobby(from, answer),
            false => self.endpoint.send(from, answer),
        }
    }

    // Is our name free?

    fn on_probe(&mut self, from: &Name, incarnation: Incarnation) {
        if *from != self.endpoint.name {
            return;
        }
        let ours = self.endpoint.incarnation;
        if incarnation == ours {
            self.on_own_probe();
            return;
        }
        // Of two that start at once the lower incarnation stays.
        let here_first = self.phase == Phase::Running && self.reprobing.is_none();
        if here_first || ours < incarnation {
            let occupied = Occupied {
                incarnation: incarnation.0,
            };
            let me = self.endpoint.name.clone();
            self.endpoint.send_in_lobby(&me, &Body::Occupied(occupied));
        }
    }

    /// Our own probe came back: a round trip to the broker, and whoever else is called so has
    /// it as well.
    fn on_own_probe(&mut self) {
        // The first copy tells; a broker may bring it back as often as it likes.
        if let Phase::Probing { since, until } = self.phase
            && until == since + PROBE_GIVEN_UP
        {
            let round_trip = self.now.since(since);
            let until = self.now + PROBE_TIME.max(3 * round_trip);
            self.phase = Phase::Probing { since, until };
            // Ranks must differ by more than it takes to hear of each other (design point 5).
            self.options.rank_delay = self.options.rank_delay.max(2 * round_trip);
        }
    }

    fn on_occupied(&mut self, from: &Name, occupied: Occupied) {
        let meant =
            *from == self.endpoint.name && occupied.incarnation == self.endpoint.incarnation.0;
        let starting = matches!(self.phase, Phase::Probing { .. });
        let reconnected = self.reprobing.is_some_and(|until| self.now < until);
        if meant && (starting || reconnected) {
            self.stop(StopReason::NameTaken(from.clone()));
        }
    }

    fn stop(&mut self, reason: StopReason) {
        self.phase = Phase::Stopped;
        self.event(Event::Stop(reason));
    }

    fn run(&mut self) {
        self.phase = Phase::Running;
        if let Some(formation) = self.lobby.formation().cloned() {
            self.start_consensus(&formation);
        } else {
            let step = self.lobby.alone();
            self.form(step);
        }
    }

    fn shut_down(&mut self) {
        for (token, error) in self.requests.abandon() {
            self.effects.push_back(Effect::Done {
                token,
                result: Err(error),
            });
        }
        if self.phase == Phase::Running
            && let Some(epoch) = self.epoch
        {
            let will = self.session_plan().will(epoch);
            self.effects.push_back(Effect::Publish(will));
        }
        self.phase = Phase::Stopped;
    }

    // Forming.

    fn form(&mut self, step: Option<Step>) {
        match step {
            None => {}
            Some(Step::Trouble(trouble)) => self.event(Event::Trouble(trouble)),
            Some(Step::Save(_)) if self.saving.is_some() => {}
            Some(Step::Save(holds)) => {
                let record = to_vec(&holds).into();
                self.saving = Some(holds);
                self.effects.push_back(Effect::SaveFormation(record));
            }
        }
    }

    fn on_formation_saved(&mut self) {
        let Some(holds) = self.saving.take() else {
            return;
        };
        let step = self.lobby.saved(holds, self.now);
        self.form(step);
        if let Some(formation) = self.lobby.formation().cloned() {
            // The others may be waiting for our word.
            let hello = self.lobby.hello(true);
            self.endpoint.broadcast_in_lobby(&Body::Hello(hello));
            if self.phase == Phase::Running {
                self.start_consensus(&formation);
            }
        }
    }

    fn start_consensus(&mut self, formation: &Formation) {
        let Some(mut durable) = self.durable.take() else {
            return;
        };
        self.endpoint.join(formation);
        let (key, now) = (self.endpoint.key, self.now);
        let voter = formation.voters.contains_key(&key);
        let empty = durable.entries.is_empty() && durable.snapshot.is_none();
        if voter && empty {
            let hard_state = HardState {
                term: Term(1),
                voted_for: None,
            };
            durable = Durable {
                hard_state,
                snapshot: None,
                entries: vec![formation.first_entry()],
            };
            self.effects.push_back(Effect::Persist(Persist {
                seq: PersistSeq(0),
                hard_state: Some(hard_state),
                snapshot: None,
                entries: durable.entries.clone(),
            }));
        }
        if let Some(snapshot) = &durable.snapshot {
            self.restore(&snapshot.clone());
        }
        let seed = self.endpoint.nonces.draw();
        self.raft = Some(Raft::new(key, self.options, seed, durable, now));
        self.rank_is_stale = true;
        let voters = formation.voters.values().cloned().collect();
        self.event(Event::Joined { voters, voter });
        self.update_rank();
        self.announce_session();
    }

    // Consensus.

    fn on_persisted(&mut self, seq: PersistSeq) {
        if seq > PersistSeq(0) {
            self.consensus(raft::Input::Persisted(seq));
        }
    }

    /// Steps consensus and carries out what it asks for.
    fn consensus(&mut self, input: raft::Input) {
        let Some(raft) = &mut self.raft else { return };
        for effect in raft.step(input, self.now) {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: raft::Effect) {
        match effect {
            raft::Effect::Persist(persist) => {
                self.flush_publishes();
                self.effects.push_back(Effect::Persist(persist));
            }
            raft::Effect::Broadcast(message) => self.endpoint.broadcast(&Body::Consensus(message)),
            raft::Effect::Send { to, message } => {
                if let Some(name) = self.name_of(to) {
                    self.endpoint.send(&name, &Body::Consensus(message));
                }
            }
            raft::Effect::Apply(entries) => entries.iter().for_each(|entry| self.apply(entry)),
            raft::Effect::Restore(snapshot) => self.restore(&snapshot),
            raft::Effect::ReadReady { id, .. } => self.answer_read(id),
            raft::Effect::ReadRefused { id, refusal } => self.refuse_read(id, refusal),
            raft::Effect::ProposalRefused {
                client,
                request,
                refusal,
            } => {
                let answer = self.refusal(refusal);
                self.answer_write(client, request, answer);
            }
            raft::Effect::StatusChanged => self.on_status_changed(),
            raft::Effect::Rejected { from, reason } => {
                let from = self
                    .name_of(from)
                    .map_or_else(|| from.to_string(), |n| n.to_string());
                self.event(Event::Rejected { from, reason });
            }
        }
    }

    fn apply(&mut self, entry: &raft::Entry) {
        self.bytes_since_snapshot += entry.size();
        if let Some(applied) = self.store.apply(entry) {
            self.answer_write(applied.client, applied.request, applied.answer);
        }
    }

    fn restore(&mut self, snapshot: &raft::Snapshot) {
        let last = snapshot.meta.last.index;
        match Store::restore(&snapshot.data) {
            Ok(store) if store.applied() != last => {
                let applied = store.applied();
                let mismatch = format!("it is of index {applied} and claims to be of {last}");
                self.stop(StopReason::Snapshot(mismatch));
            }
            Ok(store) => {
                self.store = store;
                self.bytes_since_snapshot = 0;
            }
            Err(error) => self.stop(StopReason::Snapshot(error.to_string())),
        }
    }

    /// Saves the state once the log has outgrown it.
    fn compact(&mut self) {
        if self.bytes_since_snapshot < self.snapshot_bytes || self.raft.is_none() {
            return;
        }
        let data = self.store.snapshot();
        self.bytes_since_snapshot = 0;
        self.snapshot_bytes = SNAPSHOT_BYTES.max(data.len());
        self.consensus(raft::Input::Compact {
            through: self.store.applied(),
            data,
        });
    }

    fn on_status_changed(&mut self) {
        let leader = self.raft.as_ref().and_then(Raft::leader);
        if leader != self.last_leader {
            self.last_leader = leader;
            self.requests.on_new_leader(self.now);
        }
        if self.role() == Some(Role::Leader) {
            self.publish_leader();
        } else {
            // Whoever waited here asks the next leader.
            self.waiting.clear();
        }
        self.event(Event::StatusChanged);
    }

    // Requests.

    /// Answers a request, or sees to it that it will be answered.
    fn serve(&mut self, request: Request, origin: Origin) {
        let Request {
            client,
            number,
            settled,
            operation,
        } = request;
        if self.role() != Some(Role::Leader) {
            let leader = self.leader().map(|name| name.to_string());
            return self.answer(
                &origin,
                Reply {
                    client,
                    number,
                    answer: Answer::NotLeader(leader),
                },
            );
        }
        if !fits(&operation) {
            let answer = Answer::TooLarge(MAX_VALUE as u64);
            return self.answer(
                &origin,
                Reply {
                    client,
                    number,
                    answer,
                },
            );
        }
        if self.waiting.len() + self.reads.len() >= MAX_WAITING {
            return self.answer(
                &origin,
                Reply {
                    client,
                    number,
                    answer: Answer::Busy,
                },
            );
        }
        match operation {
            Operation::Write(write) => {
                // A retry of what is under way waits with it.
                if self.waiting.insert((client, number), origin).is_none() {
                    self.proposals
                        .push(kv::command(client, number, settled, write));
                }
            }
            Operation::Get(key) => {
                self.last_read = self.last_read.next();
                let id = self.last_read;
                self.reads.insert(
                    id,
                    WaitingRead {
                        origin,
                        client,
                        number,
                        key,
                    },
                );
                self.consensus(raft::Input::Read(id));
            }
        }
    }

    fn answer_write(&mut self, client: ClientId, number: RequestNumber, answer: Answer) {
        if let Some(origin) = self.waiting.remove(&(client, number)) {
            self.answer(
                &origin,
                Reply {
                    client,
                    number,
                    answer,
                },
            );
        }
    }

    fn answer_read(&mut self, id: ReadId) {
        let Some(read) = self.reads.remove(&id) else {
            return;
        };
        let answer = Answer::Read(self.store.get(&read.key));
        self.answer(
            &read.origin,
            Reply {
                client: read.client,
                number: read.number,
                answer,
            },
        );
    }

    fn refuse_read(&mut self, id: ReadId, refusal: Refusal) {
        let Some(read) = self.reads.remove(&id) else {
            return;
        };
        let answer = self.refusal(refusal);
        self.answer(
            &read.origin,
            Reply {
                client: read.client,
                number: read.number,
                answer,
            },
        );
    }

    fn refusal(&self, refusal: Refusal) -> Answer {
        match refusal {
            Refusal::Busy => Answer::Busy,
            Refusal::TooLarge { limit } => Answer::TooLarge(limit as u64),
            Refusal::NotLeader { leader } => {
                let name = leader.and_then(|key| self.name_of(key));
                Answer::NotLeader(name.map(|name| name.to_string()))
            }
        }
    }

    fn answer(&mut self, origin: &Origin, reply: Reply) {
        match origin {
            Origin::Local => self.on_reply(reply),
            Origin::Remote(name) => self.endpoint.send(name, &Body::Reply(reply)),
        }
    }

    fn on_reply(&mut self, reply: Reply) {
        if let Some((token, result)) = self.requests.on_reply(reply, self.now) {
            self.effects.push_back(Effect::Done { token, result });
        }
    }

    fn send_requests(&mut self) {
        for (token, error) in self.requests.expire(self.now) {
            self.effects.push_back(Effect::Done {
                token,
                result: Err(error),
            });
        }
        for request in self.requests.due(self.now) {
            match self.leader() {
                Some(leader) if leader == self.endpoint.name => self.serve(request, Origin::Local),
                Some(leader) => self.endpoint.send(&leader, &Body::Request(request)),
                None => {}
            }
        }
    }

    // What follows from everything that came in.

    fn settle(&mut self) {
        self.pass_time();
        self.send_requests();
        let proposals = std::mem::take(&mut self.proposals);
        match proposals.is_empty() {
            false => self.consensus(raft::Input::Propose(proposals)),
            true => self.consensus(raft::Input::Tick),
        }
        self.compact();
        for event in self.presence.take_events() {
            self.rank_is_stale |= self.is_voter(event.node().key);
            self.event(Event::Presence(event));
        }
        self.update_rank();
        self.publish_status();
        self.flush_publishes();
    }

    fn pass_time(&mut self) {
        if let Phase::Probing { until, .. } = self.phase
            && self.now >= until
        {
            self.run();
        }
        self.reprobing = self.reprobing.filter(|until| self.now < *until);
        if self.phase != Phase::Running || self.epoch.is_none() {
            return;
        }
        if let Some(hello) = self.lobby.due(self.now) {
            self.endpoint.broadcast_in_lobby(&Body::Hello(hello));
        }
        for name in self.presence.due(self.now) {
            self.endpoint.send_in_lobby(&name, &Body::StatusRequest);
        }
    }

    fn is_voter(&self, key: NodeKey) -> bool {
        let raft = self.raft.as_ref();
        raft.is_some_and(|raft| raft.configuration().is_voter(key))
    }

    /// Our place among the live voters, best metric first.
    fn update_rank(&mut self) {
        if !std::mem::take(&mut self.rank_is_stale) {
            return;
        }
        let Some(raft) = &self.raft else { return };
        let own = (self.metric, &self.endpoint.name);
        let is_voter = |node: &&ActiveNode| raft.configuration().is_voter(node.key);
        let others = self.presence.active().filter(is_voter);
        let better = others
            .filter(|node| (node.metric, &node.name) < own)
            .count();
        // Whoever lies that many names share a voter's key does not make us wait for ever.
        let rank = better.min(raft.configuration().all_voters().count());
        self.consensus(raft::Input::Rank(rank as u32));
    }

    // Status.

    fn condition(&self) -> Condition {
        let role = match self.role() {
            None => "starting",
            Some(Role::Learner) => "learner",
            Some(Role::Follower) => "follower",
            Some(Role::PreCandidate) => "pre-candidate",
            Some(Role::Candidate) => "candidate",
            Some(Role::Leader) => "leader",
        };
        Condition {
            role,
            term: self.term().0,
            metric: self.metric,
        }
    }

    fn status_is_due(&self) -> bool {
        let running = self.phase == Phase::Running && self.epoch.is_some();
        running && (self.status_wrong || self.published.as_ref() != Some(&self.condition()))
    }

    /// Someone else replaced our status: put it back, less often each time it happens again.
    fn put_status_back(&mut self) {
        let quiet = self.now.since(self.status_at) > 2 * MAX_STATUS_GAP;
        self.status_gap = if quiet {
            STATUS_GAP
        } else {
            (2 * self.status_gap).min(MAX_STATUS_GAP)
        };
        self.status_wrong = true;
    }

    fn publish_status(&mut self) {
        if !self.status_is_due() || self.now < self.status_at {
            return;
        }
        let gap = if self.status_wrong {
            self.status_gap
        } else {
            STATUS_GAP
        };
        self.status_at = self.now + gap;
        self.status_wrong = false;
        let condition = self.condition();
        let Endpoint {
            name,
            key,
            incarnation,
            topics,
            ring,
            ..
        } = &self.endpoint;
        let epoch = self.epoch.unwrap_or_default();
        let speaker = Speaker {
            root: topics.root(),
            name,
            key: *key,
            incarnation: *incarnation,
            epoch,
        };
        let payload = Status::online(ring, speaker, &condition);
        let topic = topics.status(name);
        self.published = Some(condition);
        self.effects.push_back(Effect::Publish(Publish {
            topic,
            payload,
            retain: true,
        }));
    }

    /// Tells any MQTT client who leads: a hint that no node reads.
    fn publish_leader(&mut self) {
        let hint = serde_json::json!({
            "v": 1,
            "leader": self.endpoint.name.as_str(),
            "term": self.term().0,
            "metric": self.metric.value(),
        });
        let payload = hint.to_string().into_bytes().into();
        let topic = self.endpoint.topics.leader();
        self.effects.push_back(Effect::Publish(Publish {
            topic,
            payload,
            retain: true,
        }));
    }

    // Out.

    fn flush_publishes(&mut self) {
        for publish in self.endpoint.take_out() {
            self.effects.push_back(Effect::Publish(publish));
        }
    }

    fn event(&mut self, event: Event) {
        self.effects.push_back(Effect::Event(event));
    }

    fn name_of(&self, key: NodeKey) -> Option<Name> {
        if key == self.endpoint.key {
            return Some(self.endpoint.name.clone());
        }
        let configured = self
            .raft
            .as_ref()
            .and_then(|raft| raft.configuration().name(key));
        configured
            .and_then(name)
            .or_else(|| self.endpoint.peers.name(key).cloned())
    }
}

/// Why a node cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The prefix cannot stand in a topic.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// The formation record on disk cannot be read.
    #[error("the formation record in the data directory cannot be read: {0}")]
    Formation(String),
}
