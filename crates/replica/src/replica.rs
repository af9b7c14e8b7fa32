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

mod autopilot;
mod consensus;
mod export;
mod hand_over;
mod interface;
mod leases;
mod meeting;
mod name;
pub(crate) mod roll_call;
mod serve;
mod status;
mod steer;
mod versions;
mod watches;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use raft::{
    ClientId, Durable, HardState, Lease, NodeKey, Persist, PersistSeq, Raft, ReadId, Refusal,
    RequestNumber, Role, Settings, Term, Time,
};

use crate::endpoint::{Endpoint, Incoming, Publish, Refused};
use crate::formation::{Lobby, Plan, Step, Trouble};
use crate::frame::FrameError;
use crate::keys::{ClusterKey, Incarnation, KeyRing, Nonces};
use crate::kv::{self, Store};
use crate::link::{Link, Live, Session};
use crate::name::{Metric, Name};
use crate::presence::{
    ActiveNode, Claim, Condition, Meaning, Presence, PresenceEvent, Read, Speaker, Status,
};
use crate::requests::{Done, RequestError, Requests, Token, fits, older_leader};
use crate::state::{LeaseId, RangeRequest};
use crate::strangers::Strangers;
use crate::tags::Tags;
use crate::topic::{PrefixError, Topic, Topics};
use crate::wire::{
    Answer, Body, Change, Formation, Holds, MAX_VALUE, NodeStatus, Occupied, Operation, Reply,
    Request, Stale, StaleRead, from_slice, name, payload_version, snapshot_version, to_vec,
};

pub use autopilot::Autopilot;
pub use hand_over::HandOver;
pub use interface::{Config, Effect, Event, Input, SessionPlan, StartError, StopReason};

use autopilot::AutopilotState;
use hand_over::HandOverState;
use meeting::Meeting;
use status::Hint;
use steer::Steering;

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

/// How many voters are known to an observer: as many as there can be while they change.
const MAX_SOURCES: usize = 2 * raft::Configuration::MAX_VOTERS;

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
    roll_call: roll_call::RollCall,
    meeting: Meeting,
    requests: Requests,
    store: Store,
    raft: Option<Raft>,
    phase: Phase,
    /// The present sessions; none while no broker is reachable.
    live: Live,
    /// Those that a birth of this node was published in.
    born: Live,
    /// How many births it has published, each with something new.
    statuses: u64,
    /// It has had sessions with several brokers: each frame comes that often.
    has_several: bool,
    /// A probe is under way since then.
    probed_at: Option<Time>,
    /// When to measure the round trip again.
    probe_at: Time,
    /// Measured, and consensus has yet to be told.
    round_trip: Option<Duration>,
    /// A session came up lately: whoever has our name may still answer.
    reprobing: Option<Time>,
    /// It was out of reach of every broker until a moment ago: until then whoever asks for its name may
    /// have been there first.
    yields_until: Option<Time>,
    metric: Metric,
    tags: Tags,
    options: raft::Options,
    version: String,
    /// What the disk gave back, until consensus starts.
    durable: Option<Durable>,
    saving: Option<Holds>,
    /// Who waits for which write and which read.
    waiting: BTreeMap<(ClientId, RequestNumber), Origin>,
    reads: BTreeMap<ReadId, WaitingRead>,
    /// A copy of the state that someone fetches.
    exported: Option<export::Exported>,
    last_read: ReadId,
    /// The number of the newest command of our own as leader.
    last_own: RequestNumber,
    lease_clock: leases::LeaseClock,
    watches: watches::Watches,
    proposals: Vec<raft::Command>,
    steering: Steering,
    hand_over: HandOverState,
    autopilot: AutopilotState,
    relinquish_timeout: Duration,
    bytes_since_snapshot: usize,
    snapshot_bytes: usize,
    published: Option<Condition>,
    /// What stands in the topic `leader`, while it is ours.
    hint: Option<Hint>,
    /// The last term that this node led, and when that began in unix seconds.
    led_since: (Term, Option<u64>),
    /// What the wall clock shows when `now` is zero, in microseconds; `None`: there is none.
    wall_clock: Option<i128>,
    status_at: Time,
    status_gap: Duration,
    status_wrong: bool,
    rank_is_stale: bool,
    versions_are_stale: bool,
    /// Someone there may run an older build.
    mixed: bool,
    sources_are_stale: bool,
    last_leader: Option<NodeKey>,
    /// It holds the log for others and applies nothing.
    witness: bool,
    /// How many brokers it uses.
    brokers: usize,
    now: Time,
    /// Whether consensus has seen this step's time.
    ticked: bool,
    effects: Vec<Effect>,
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
    what: Wanted,
}

enum Wanted {
    Key(Bytes),
    Members,
    Range(RangeRequest),
    KeepAlive(LeaseId),
    Lease(LeaseId),
    Leases(LeaseId),
}

/// A request whose answer takes its time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    origin: Origin,
    client: ClientId,
    number: RequestNumber,
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
        let empty = durable.entries.is_empty() && durable.snapshot.is_none();
        if !empty && !matches!(holds, Holds::Formed(_)) {
            return Err(StartError::Unfinished);
        }
        let Config {
            name,
            key,
            plan,
            metric,
            tags,
            settings,
            raft: options,
            ring,
            version,
            hand_over,
            autopilot,
            relinquish_timeout,
            frame_version,
            witness,
            brokers,
            bounds,
            ..
        } = config;
        if let Holds::Accepted(record) = &holds
            && record.voters.contains_key(&key)
            && record.witnesses.contains(&key) != witness
        {
            return Err(StartError::Witness);
        }
        if Replica::beyond(&durable, frame_version) {
            return Err(StartError::FrameVersion(frame_version));
        }
        let mut nonces = Nonces::new(&seed);
        let mut incarnation = [0; 16];
        incarnation[..8].copy_from_slice(&nonces.draw().to_be_bytes());
        incarnation[8..].copy_from_slice(&nonces.draw().to_be_bytes());
        let client = ClientId(nonces.draw());
        let incarnation = Incarnation(incarnation);
        let endpoint = Endpoint::new(name.clone(), key, incarnation, topics, ring, nonces)
            .speaking(frame_version);
        Ok(Replica {
            endpoint,
            lobby: Lobby::new(name, key, plan, settings, witness, holds),
            presence: Presence::default(),
            roll_call: roll_call::RollCall::default(),
            meeting: Meeting::default(),
            requests: Requests::new(client),
            store: Store::default().bounded(bounds),
            raft: None,
            phase: Phase::Waiting,
            live: Live::default(),
            born: Live::default(),
            statuses: 0,
            has_several: false,
            probed_at: None,
            probe_at: now,
            round_trip: None,
            reprobing: None,
            yields_until: None,
            metric,
            tags,
            options,
            version,
            durable: Some(durable),
            saving: None,
            waiting: BTreeMap::new(),
            reads: BTreeMap::new(),
            exported: None,
            last_read: ReadId(0),
            last_own: RequestNumber(0),
            lease_clock: leases::LeaseClock::default(),
            watches: watches::Watches::default(),
            proposals: Vec::new(),
            steering: Steering::default(),
            hand_over: HandOverState::new(hand_over),
            autopilot: AutopilotState::new(autopilot),
            relinquish_timeout,
            bytes_since_snapshot: 0,
            snapshot_bytes: bounds.log_bytes,
            published: None,
            hint: None,
            led_since: (Term(0), None),
            wall_clock: None,
            status_at: Time(0),
            status_gap: STATUS_GAP,
            status_wrong: false,
            rank_is_stale: true,
            versions_are_stale: true,
            mixed: true,
            sources_are_stale: true,
            last_leader: None,
            witness,
            brokers,
            now,
            ticked: false,
            effects: Vec::new(),
        })
    }

    /// What each session with the broker needs.
    pub fn session_plan(&self) -> SessionPlan {
        SessionPlan::of(&self.endpoint)
    }

    /// Takes what has happened by `now`, all at once, and returns what is to be done, in order.
    /// Inputs that come together are answered together: one append, one write, one publish.
    pub fn step(&mut self, inputs: impl IntoIterator<Item = Input>, now: Time) -> Vec<Effect> {
        self.now = self.now.max(now);
        self.ticked = false;
        for input in inputs {
            self.take(input);
        }
        self.settle();
        std::mem::take(&mut self.effects)
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
            .filter(|_| running && !self.live.is_empty());
        let status = self.status_is_due().then_some(self.status_at);
        let deadlines = [
            probing,
            lobby,
            status,
            self.raft.as_ref().and_then(Raft::next_deadline),
            self.roll_call_deadline()
                .filter(|_| running && !self.live.is_empty()),
            self.meeting_deadline()
                .filter(|_| running && !self.live.is_empty()),
            match self.leader() {
                Some(_) => self.requests.deadline(),
                None => self.requests.expiry(),
            },
            self.probe_deadline(),
            self.steering_deadline(),
            self.leases_deadline(),
            self.watches_deadline(),
            self.ledger_deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    // In.

    fn take(&mut self, input: Input) {
        if self.phase == Phase::Stopped {
            return self.refuse_when_stopped(input);
        }
        match input {
            Input::Connected(session) => self.on_connected(session),
            Input::Disconnected(link) => self.on_disconnected(link),
            Input::Received {
                over,
                topic,
                payload,
                retained,
            } => {
                if let Err(reason) = self.on_received(over, &topic, &payload, retained) {
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
                    self.effects.push(Effect::Done {
                        token,
                        result: Err(error),
                    });
                }
            }
            Input::Watch { token, range, from } => self.watch(token, range, from),
            Input::Unwatch(token) => self.unwatch(token),
            Input::SetMetric(metric) => {
                self.metric = metric;
                self.rank_is_stale = true;
            }
            Input::Relinquished => self.consensus(raft::Input::Relinquished),
            Input::Leave => self.leave(),
            Input::SetKeys(ring) => {
                self.endpoint.set_ring(ring);
                // The birth that stands on the broker is to be read under the new key.
                self.published = None;
            }
            Input::Shutdown => self.shut_down(),
            Input::Tick => {}
        }
    }

    fn refuse_when_stopped(&mut self, input: Input) {
        match input {
            Input::Request { token, .. } => self.effects.push(Effect::Done {
                token,
                result: Err(RequestError::TimedOut),
            }),
            Input::Watch { token, .. } => self.effects.push(Effect::Watched {
                token,
                watched: crate::state::Watched::Unavailable,
            }),
            _ => {}
        }
    }

    fn on_connected(&mut self, session: Session) {
        let was_cut_off = self.live.is_empty();
        self.live.open(session);
        self.has_several |= session.link != Link::FIRST;
        self.hint = None;
        self.status_at = self.now;
        self.probe();
        if self.phase == Phase::Running {
            self.reprobing = Some(self.now + PROBE_GIVEN_UP);
            if was_cut_off {
                self.yields_until = self.reprobing;
            }
            if was_cut_off {
                self.doubt_everyone();
                self.meeting.strangers.on_reconnected(self.now);
            }
            self.announce_sessions();
        } else if was_cut_off {
            let until = self.now + PROBE_GIVEN_UP;
            self.phase = Phase::Probing {
                since: self.now,
                until,
            };
        }
    }

    fn on_disconnected(&mut self, link: Link) {
        self.born.close(link);
        if !self.live.close(link) {
            return;
        }
        if !self.live.is_empty() {
            self.doubt_link(link);
            self.measure_anew();
        } else if self.phase != Phase::Running {
            self.phase = Phase::Waiting;
        }
        self.announce_sessions();
    }

    fn announce_sessions(&mut self) {
        let sessions = self.live.ids(self.endpoint.incarnation);
        self.consensus(raft::Input::Sessions(sessions));
    }

    fn on_received(
        &mut self,
        over: Link,
        topic: &str,
        payload: &Bytes,
        retained: bool,
    ) -> Result<(), Refused> {
        let topic = self.endpoint.parse(topic).ok_or(Refused::Topic)?;
        if let Topic::Status { node } = &topic {
            return self.on_status(over, node, payload, retained);
        }
        if let Topic::Roll { .. } = &topic {
            return self.on_roll(&topic, payload);
        }
        let received = self.endpoint.receive(&topic, payload, self.now);
        if let Err(Refused::Frame(FrameError::ForeignCluster)) = &received {
            self.on_foreign_frame(&topic, payload);
        }
        if let Err(Refused::Replayed) = &received
            && self.has_several
        {
            return Ok(()); // It came by another broker before.
        }
        for incoming in received? {
            self.on_incoming(incoming)?;
        }
        for (name, key, incarnation) in self.endpoint.take_admitted() {
            if key == self.endpoint.key {
                self.on_twin_lives(&name, incarnation);
            }
            // It had to ask who we are first, and has forgotten what we wanted meanwhile.
            if self.leader().as_ref() == Some(&name) {
                self.requests.on_new_leader(self.now);
            }
            self.presence.on_admitted(&name, key, incarnation);
            let node = self.presence.get(&name);
            self.sources_are_stale |= node.is_some_and(|node| self.says_that_it_votes(node));
            self.rank_is_stale |= self.is_voter(key);
            self.versions_are_stale = true;
        }
        Ok(())
    }

    fn on_status(
        &mut self,
        over: Link,
        node: &Name,
        payload: &[u8],
        retained: bool,
    ) -> Result<(), Refused> {
        let ours = *node == self.endpoint.name;
        if payload.is_empty() {
            // Someone removed a retained status: if it was ours, it is put back.
            if ours {
                self.put_status_back();
            }
            return Ok(());
        }
        let Endpoint { topics, ring, .. } = &self.endpoint;
        let claim = match Status::parse(ring, topics.root(), node, payload) {
            Ok(claim) => claim,
            Err(refused) => {
                // Whatever stands in our status's place hides us from who comes later.
                if ours {
                    self.put_status_back();
                } else if self.was_tagged_before(node, payload) {
                    self.presence.doubt(node, self.now);
                }
                return Err(refused);
            }
        };
        self.on_sign(&claim);
        let of_voter = self.is_voter(claim.node.key);
        let (key, incarnation) = claim.process();
        if ours {
            // What the broker kept from before is replaced by our birth anyway. Brokers may pass on to
            // each other what we said to one of them.
            let is_live =
                self.endpoint.incarnation == incarnation && self.live.contains(claim.session());
            if !(claim.is_online() && (is_live || retained)) {
                self.put_status_back();
            }
            self.rank_is_stale |= of_voter;
            return Ok(());
        }
        let read = Read {
            over,
            retained,
            proved: self.endpoint.peers.is_admitted(key, incarnation),
            watched: self.watching().watches(&claim.node),
        };
        let meaning = self.presence.on_claim(claim, read, self.now);
        self.rank_is_stale |= of_voter;
        match meaning {
            Meaning::SessionEnded(session) if !retained => {
                // Who is gone no longer stands before us in the succession.
                self.update_rank();
                self.consensus(raft::Input::LeaderGone { session });
            }
            Meaning::Noted | Meaning::SessionEnded(_) => {}
        }
        Ok(())
    }

    /// Whether it is under the key that was replaced: a will that was left before. It is not believed,
    /// since others may have that key by now, but its node can be asked.
    fn was_tagged_before(&self, node: &Name, payload: &[u8]) -> bool {
        let Endpoint {
            topics, retired, ..
        } = &self.endpoint;
        !retired.is_insecure() && Status::parse(retired, topics.root(), node, payload).is_ok()
    }

    fn on_incoming(&mut self, incoming: Incoming) -> Result<(), Refused> {
        let Incoming {
            from,
            key,
            incarnation,
            lobby,
            body,
        } = incoming;
        if self.endpoint.peers.is_admitted(key, incarnation) {
            self.presence.on_heard(&from, key, incarnation);
            self.on_same(&from, key, incarnation);
        }
        match (body, lobby) {
            (Body::Probe, true) => self.on_probe(&from, incarnation),
            (Body::Occupied(occupied), true) => self.on_occupied(&from, occupied),
            (Body::StatusRequest, _) => self.answer_status_request(&from, lobby),
            (Body::StaleRead(read), _) => self.answer_stale_read(&from, read, lobby),
            (Body::Status(_) | Body::Stale(_), _) => {}
            _ if self.phase != Phase::Running => {}
            (Body::Twin(twin), true) if key == self.endpoint.key => {
                self.on_twin(&from, incarnation, twin);
            }
            (Body::Hello(hello), true) => {
                if self.lobby.is_foreign(&hello) {
                    self.on_stranger(&from, key);
                }
                let is_client = hello.voters.is_empty() && hello.expect.is_none();
                let wants_answer = hello.question && (self.endpoint.has_joined() || is_client);
                let step = self.lobby.on_hello(&from, key, hello, self.now);
                self.form(step);
                if wants_answer {
                    let answer = self.lobby.hello(false);
                    self.endpoint.send_in_lobby(&from, &Body::Hello(answer));
                }
            }
            (Body::Consensus(_, Some(to)), false) if to != self.endpoint.key => {}
            (Body::Consensus(..), false) if self.is_silent() => {}
            (Body::Consensus(message, _), false) => {
                self.consensus(raft::Input::Message { from: key, message });
            }
            (Body::Request(request), false) => self.serve(request, Origin::Remote(from)),
            (Body::Reply(reply), false) => {
                self.requests.answered_by(reply.number, &from, key);
                self.on_reply(reply);
            }
            (Body::Watch(request), false) => self.on_watch(&from, request),
            (Body::SaveRequest(request), false) => self.on_save_request(&from, request),
            (Body::ChunkRequest(request), false) => self.on_chunk_request(&from, request),
            _ => return Err(Refused::Misplaced),
        }
        Ok(())
    }

    fn answer_status_request(&mut self, from: &Name, lobby: bool) {
        let status = Body::Status(self.status());
        self.answer_where_asked(from, lobby, &status);
    }

    /// Tells what our own copy says; before anything is applied, it would deny what is there.
    fn answer_stale_read(&mut self, from: &Name, read: StaleRead, lobby: bool) {
        if self.raft.is_none() || self.store.applied() == raft::Index(0) {
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

    // What follows from everything that came in.

    fn settle(&mut self) {
        self.pass_time();
        self.send_requests();
        self.end_leases();
        self.keep_ledger();
        let proposals = std::mem::take(&mut self.proposals);
        match proposals.is_empty() {
            false => self.consensus(raft::Input::Propose(proposals)),
            true if self.ticked => {}
            true => self.consensus(raft::Input::Tick),
        }
        self.compact();
        self.serve_watches();
        self.forget_export();
        self.steer();
        self.follow_agreed();
        for event in self.presence.take_events() {
            self.rank_is_stale |= self.is_voter(event.node().key);
            // Observers come and go by the thousand, and each look goes through all of them.
            self.sources_are_stale |= self.says_that_it_votes(event.node());
            if self.watching().watches(event.node()) {
                self.event(Event::Presence(event));
            }
        }
        self.update_rank();
        self.update_broadcast_version();
        self.update_sources();
        self.publish_status();
        self.publish_leader();
        self.flush_publishes();
        self.check_membership();
    }

    fn pass_time(&mut self) {
        if let Phase::Probing { until, .. } = self.phase
            && self.now >= until
        {
            self.run();
        }
        self.reprobing = self.reprobing.filter(|until| self.now < *until);
        if self.phase != Phase::Running || self.live.is_empty() {
            return;
        }
        self.measure();
        let step = self.lobby.on_time(self.now);
        self.form(step);
        if self.lobby.formation().is_none() {
            let step = self.lobby.alone(self.now);
            self.form(step);
        }
        if let Some(hello) = self.lobby.due(self.now) {
            self.endpoint.broadcast_in_lobby(&Body::Hello(hello));
        }
        self.meet_on_time();
        self.call_the_roll();
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
        let configuration = raft.configuration();
        let is_voter = |node: &&ActiveNode| {
            configuration.is_voter(node.key) && !configuration.is_witness(node.key)
        };
        let others = self.presence.active().filter(is_voter);
        let better = others
            .filter(|node| (node.metric, &node.name) < own)
            .count();
        // Whoever lies that many names share a voter's key does not make us wait for ever.
        let rank = better.min(raft.configuration().all_voters().count());
        self.consensus(raft::Input::Rank(rank as u32));
    }

    /// The voters that are there: whoever is known to vote, and whoever says that it does. An
    /// observer that has nothing yet knows no other way.
    fn update_sources(&mut self) {
        if !self.sources_are_stale {
            return;
        }
        if self.raft.is_none() {
            return;
        }
        self.sources_are_stale = false;
        let votes = |node: &&ActiveNode| {
            let reads = self
                .endpoint
                .peers
                .speaks(node.key)
                .is_none_or(|speaks| speaks > 1);
            reads && self.says_that_it_votes(node)
        };
        let mut sources: Vec<NodeKey> = self
            .presence
            .active()
            .filter(votes)
            .map(|n| n.key)
            .collect();
        sources.truncate(MAX_SOURCES);
        self.consensus(raft::Input::Sources(sources));
    }

    fn says_that_it_votes(&self, node: &ActiveNode) -> bool {
        self.is_voter(node.key) || status::SOURCES.contains(&node.role.as_str())
    }

    // Out.

    fn flush_publishes(&mut self) {
        for publish in self.endpoint.take_out() {
            self.effects.push(Effect::Publish(publish));
        }
    }

    fn event(&mut self, event: Event) {
        self.effects.push(Effect::Event(event));
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
