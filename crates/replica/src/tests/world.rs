//! Nodes around one simulated broker that also keeps every frame for later mischief.
//!
//! Frames take a tenth of a millisecond, disks none at all. An enemy puts messages in by
//! [`World::inject`]; a [`Member`] is an enemy that holds the cluster key.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use raft::{Durable, NodeKey, Persist, Time};

use crate::endpoint::Endpoint;
use crate::frame::{Destination, Header, Sealer, VERSION};
use crate::keys::{ClusterId, ClusterKey, Incarnation, KEY_BYTES, KeyRing, Nonces};
use crate::link::{Link, Session};
use crate::name::Name;
use crate::replica::{Config, Effect, Event, Input, Replica, StopReason};
use crate::requests::{Done, RequestError, Token};
use crate::state::Watched;
use crate::topic::{Topic, Topics};
use crate::wire::{Body, Formation, Holds, Operation, Write, from_slice};
use crate::{Publish, Refused};

const HOP: Duration = Duration::from_micros(100);

pub(super) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(super) fn cluster_key(byte: u8) -> ClusterKey {
    ClusterKey::from_bytes([byte; KEY_BYTES])
}

pub(super) struct World {
    pub(super) now: Time,
    pub(super) nodes: BTreeMap<Name, Node>,
    /// A process with the cluster key that says what the test wants.
    pub(super) member: Option<Member>,
    /// Everything not retained that was ever published.
    pub(super) captured: Vec<Publish>,
    pub(super) statuses: Vec<Publish>,
    retained: BTreeMap<String, Bytes>,
    queue: VecDeque<(Time, Publish)>,
    seeds: u16,
    tokens: u64,
}

pub(super) struct Node {
    pub(super) config: Config,
    pub(super) replica: Replica,
    pub(super) formation: Option<Bytes>,
    /// A formation record on its way to a slow disk.
    saving: Option<Bytes>,
    slow: bool,
    pub(super) durable: Durable,
    pub(super) events: Vec<Event>,
    done: BTreeMap<Token, Result<Done, RequestError>>,
    watched: BTreeMap<Token, Watched>,
    epoch: u64,
    /// Somebody acts on its lease and does not stop.
    pub(super) holds_on: bool,
    /// Its process has ended.
    pub(super) down: bool,
}

pub(super) struct Member {
    pub(super) endpoint: Endpoint,
    /// The challenges of others are answered.
    topics: Topics,
}

impl World {
    /// `names` as voters of cluster `plant`, sealed under the test key, running and formed.
    pub(super) fn formed(names: &[&str]) -> World {
        World::of("raft", "plant", names, KeyRing::of(cluster_key(7)))
    }

    pub(super) fn of(prefix: &str, cluster: &str, names: &[&str], ring: KeyRing) -> World {
        World::with(names, |voter, key, voters| Config {
            prefix: prefix.to_owned(),
            ring: ring.clone(),
            ..Config::new(voter, key, name(cluster), voters)
        })
    }

    /// `names` as voters, each with its own configuration, running and formed.
    pub(super) fn with(
        names: &[&str],
        configure: impl Fn(Name, NodeKey, Vec<Name>) -> Config,
    ) -> World {
        let mut world = World::empty();
        let voters: Vec<Name> = names.iter().map(|text| name(text)).collect();
        for (n, voter) in voters.iter().enumerate() {
            let key = NodeKey((n as u128 + 1) << 100);
            let config = configure(voter.clone(), key, voters.clone());
            world.start(config, None, Durable::default());
        }
        world.run(Duration::from_secs(4));
        assert!(world.leader().is_some(), "a cluster forms");
        world
    }

    pub(super) fn empty() -> World {
        World {
            now: Time(1_000_000),
            nodes: BTreeMap::new(),
            member: None,
            captured: Vec::new(),
            statuses: Vec::new(),
            retained: BTreeMap::new(),
            queue: VecDeque::new(),
            seeds: 0,
            tokens: 0,
        }
    }

    /// A second world beside another one: nothing drawn in it is drawn there.
    pub(super) fn second() -> World {
        World {
            seeds: 100,
            ..World::empty()
        }
    }

    /// What another broker brings over.
    pub(super) fn bring(&mut self, publish: Publish) {
        if publish.retain {
            self.retained
                .insert(publish.topic.clone(), publish.payload.clone());
        }
        self.queue.push_back((self.now + HOP, publish));
    }

    /// What the broker keeps.
    pub(super) fn retained(&self) -> Vec<Publish> {
        let kept = self.retained.iter().map(|(topic, payload)| Publish {
            topic: topic.clone(),
            payload: payload.clone(),
            retain: true,
        });
        kept.collect()
    }

    pub(super) fn start(&mut self, config: Config, formation: Option<Bytes>, durable: Durable) {
        self.seeds += 1;
        let [high, low] = self.seeds.to_be_bytes();
        let mut seed = [low; 32];
        seed[31] ^= high;
        let who = config.name.clone();
        let held = formation.as_deref();
        let replica =
            Replica::new(config.clone(), held, durable.clone(), seed, self.now).expect("starts");
        let node = Node {
            config,
            replica,
            formation,
            saving: None,
            slow: false,
            durable,
            events: Vec::new(),
            done: BTreeMap::new(),
            watched: BTreeMap::new(),
            epoch: 0,
            holds_on: false,
            down: false,
        };
        self.nodes.insert(who.clone(), node);
        self.connect(&who);
    }

    /// A new session, with what the broker retains.
    pub(super) fn connect(&mut self, who: &Name) {
        let node = self.nodes.get_mut(who).unwrap();
        node.epoch += 1;
        let epoch = node.epoch;
        let mut inputs = vec![Input::Connected(Session::first(epoch))];
        for (topic, payload) in &self.retained {
            inputs.push(Input::Received {
                over: Link::FIRST,
                topic: topic.clone(),
                payload: payload.clone(),
                retained: true,
            });
        }
        self.step(who, inputs);
    }

    /// Ends the process without a farewell; its will comes out.
    pub(super) fn kill(&mut self, who: &str) {
        let node = self.nodes.get_mut(&name(who)).unwrap();
        node.down = true;
        let will = node.replica.session_plan().will(Session::first(node.epoch));
        self.publish(will);
    }

    /// Ends the process together with the broker that should have published its will.
    pub(super) fn vanish(&mut self, who: &str) {
        self.nodes.get_mut(&name(who)).unwrap().down = true;
    }

    /// The broker restarts without what it had retained.
    pub(super) fn forget_retained(&mut self) {
        self.retained.clear();
    }

    /// Ends the process and starts another one on the same disk.
    pub(super) fn restart(&mut self, who: &str) {
        self.kill(who);
        let node = self.nodes.remove(&name(who)).unwrap();
        self.start(node.config, node.formation, node.durable);
    }

    /// From now on a formation record of this node waits for [`World::save_formation`].
    pub(super) fn slow(&mut self, who: &str) {
        self.nodes.get_mut(&name(who)).unwrap().slow = true;
    }

    /// The record that waited is on the disk.
    pub(super) fn save_formation(&mut self, who: &str) {
        let node = self.nodes.get_mut(&name(who)).unwrap();
        node.slow = false;
        node.formation = Some(node.saving.take().expect("a record under way"));
        self.step(&name(who), vec![Input::FormationSaved]);
    }

    /// Carries time and messages forward.
    pub(super) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let running = self.nodes.values().filter(|node| !node.down);
            let deadlines = running.filter_map(|node| node.replica.next_deadline());
            let delivery = self.queue.front().map(|(at, _)| *at);
            let next = deadlines.chain(delivery).min().unwrap_or(end);
            if next > end {
                break;
            }
            self.now = self.now.max(next).max(Time(self.now.0 + 1));
            while let Some((_, publish)) = self.queue.pop_front_if(|(at, _)| *at <= self.now) {
                self.deliver(&publish);
            }
            let due: Vec<Name> = self.nodes.keys().cloned().collect();
            for who in due {
                let deadline = self.nodes[&who].replica.next_deadline();
                if deadline.is_some_and(|at| at <= self.now) {
                    self.step(&who, vec![Input::Tick]);
                }
            }
            if self.now >= end {
                break;
            }
        }
        self.now = self.now.max(end);
    }

    fn deliver(&mut self, publish: &Publish) {
        for who in self.receivers(&publish.topic) {
            self.inject(who.as_str(), &publish.topic, &publish.payload);
        }
        let Some(mut member) = self.member.take() else {
            return;
        };
        let answers = member.hear(publish, self.now);
        self.member = Some(member);
        answers.into_iter().for_each(|answer| self.publish(answer));
    }

    fn receivers(&self, topic: &str) -> Vec<Name> {
        let level: Vec<&str> = topic.split('/').collect();
        let meant = |who: &&Name| match level.as_slice() {
            [.., "rpc" | "roll", "all", _] | [.., "nodes", _, "status"] => true,
            [.., "rpc" | "roll", to, _] => *to == who.as_str(),
            _ => false,
        };
        self.nodes.keys().filter(meant).cloned().collect()
    }

    /// Delivers a message to one node, whoever made it, and tells what the node made of it.
    pub(super) fn inject(&mut self, who: &str, topic: &str, payload: &[u8]) -> Outcome {
        self.inject_as(who, topic, payload, false)
    }

    pub(super) fn inject_as(
        &mut self,
        who: &str,
        topic: &str,
        payload: &[u8],
        retained: bool,
    ) -> Outcome {
        let input = Input::Received {
            over: Link::FIRST,
            topic: topic.to_owned(),
            payload: Bytes::copy_from_slice(payload),
            retained,
        };
        let who = name(who);
        let before = self.nodes[&who].events.len();
        let published = self.step(&who, vec![input]);
        let events = self.nodes[&who].events[before..].to_vec();
        Outcome { events, published }
    }

    /// Publishes to everyone, as the broker does.
    pub(super) fn publish(&mut self, publish: Publish) {
        if publish.retain {
            self.statuses.push(publish.clone());
            self.retained
                .insert(publish.topic.clone(), publish.payload.clone());
        } else {
            self.captured.push(publish.clone());
        }
        self.queue.push_back((self.now + HOP, publish));
    }

    /// Steps one node and carries out what it asks for. Tells what it published.
    pub(super) fn step(&mut self, who: &Name, inputs: Vec<Input>) -> Vec<Publish> {
        let mut published = Vec::new();
        let mut inputs = inputs;
        while !inputs.is_empty() {
            let node = self.nodes.get_mut(who).unwrap();
            if node.down {
                break;
            }
            let effects = node.replica.step(std::mem::take(&mut inputs), self.now);
            let removed = Effect::Event(Event::Stop(StopReason::Removed));
            let stopped_at = effects.iter().position(|effect| *effect == removed);
            let is_last = stopped_at.is_none_or(|at| at + 1 == effects.len());
            assert!(
                is_last,
                "whoever is told to stop takes no more: {effects:?}"
            );
            for effect in effects {
                match effect {
                    Effect::Publish(publish) | Effect::PublishOver(_, publish) => {
                        published.push(publish);
                    }
                    Effect::Persist(persist) => {
                        let seq = persist.seq;
                        save(&mut node.durable, persist);
                        inputs.push(Input::Persisted(seq));
                    }
                    Effect::SaveFormation(record) if node.slow => node.saving = Some(record),
                    Effect::SaveFormation(record) => {
                        node.formation = Some(record);
                        inputs.push(Input::FormationSaved);
                    }
                    Effect::Done { token, result } => {
                        node.done.insert(token, result);
                    }
                    Effect::Watched { token, watched } => {
                        node.watched.insert(token, watched);
                    }
                    Effect::Event(event) => {
                        if event == Event::Relinquish && !node.holds_on {
                            inputs.push(Input::Relinquished);
                        }
                        node.events.push(event);
                    }
                }
            }
        }
        for publish in &published {
            self.publish(publish.clone());
        }
        published
    }

    pub(super) fn node(&self, who: &str) -> &Node {
        &self.nodes[&name(who)]
    }

    pub(super) fn leader(&self) -> Option<Name> {
        let leads = |node: &&Node| node.replica.status().role == "leader" && !node.down;
        let leader = self.nodes.values().find(leads);
        leader.map(|node| node.config.name.clone())
    }

    /// The cluster goes on: a write at `who` is answered within some seconds.
    pub(super) fn assert_alive(&mut self, who: &str) {
        let operation = Operation::Write(Write::Put {
            key: "alive".into(),
            value: self.tokens.to_be_bytes().to_vec().into(),
            lease: None,
        });
        let result = self.ask(who, operation, Duration::from_secs(20));
        assert!(matches!(result, Ok(Done::Written(_))), "{result:?}");
        // Everyone learns of it.
        self.run(Duration::from_millis(500));
    }

    /// What comes of a request at `who` within `timeout`.
    pub(super) fn ask(
        &mut self,
        who: &str,
        operation: Operation,
        timeout: Duration,
    ) -> Result<Done, RequestError> {
        let token = self.submit(who, operation, timeout);
        let end = self.now + timeout + Duration::from_secs(1);
        while self.now < end {
            self.run(Duration::from_millis(1));
            if let Some(result) = self.answer(who, token) {
                return result.clone();
            }
        }
        panic!("{who} gets no answer, not even that there is none");
    }

    /// Makes a request at `who`, for [`World::answer`] to ask after.
    pub(super) fn submit(&mut self, who: &str, operation: Operation, timeout: Duration) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        let request = Input::Request {
            token,
            operation,
            timeout,
        };
        self.step(&name(who), vec![request]);
        token
    }

    pub(super) fn answer(&self, who: &str, token: Token) -> Option<&Result<Done, RequestError>> {
        self.node(who).done.get(&token)
    }

    /// The newest captured frame from `from` on the topic of `to` (`all`: broadcast).
    pub(super) fn frame(&self, from: &str, to: &str) -> Publish {
        let end = format!("/rpc/{to}/{from}");
        let found = self.captured.iter().rev().find(|p| p.topic.ends_with(&end));
        found.unwrap_or_else(|| panic!("a frame on {end}")).clone()
    }

    /// Lets a process with the cluster key in, known to everyone.
    pub(super) fn admit_member(&mut self, who: &str) {
        let config = self.nodes.values().next().unwrap().config.clone();
        let mut member = Member::new(&config, who, NodeKey(0xbad << 100), 99);
        member.endpoint.join(&self.formation());
        member.endpoint.broadcast_in_lobby(&Body::StatusRequest);
        let out = member.endpoint.take_out();
        self.member = Some(member);
        out.into_iter().for_each(|publish| self.publish(publish));
        self.run(Duration::from_millis(300));
    }

    /// The record that the first node has on disk.
    pub(super) fn formation(&self) -> Formation {
        let node = self.nodes.values().next().unwrap();
        match from_slice(node.formation.as_ref().expect("a record")) {
            Ok(Holds::Formed(formation)) => formation,
            other => panic!("not formed: {other:?}"),
        }
    }

    /// The member says `body` in the formed cluster to one node.
    pub(super) fn say(&mut self, to: &str, body: &Body) -> Outcome {
        let member = self.member.as_mut().expect("a member");
        member.endpoint.send(&name(to), body);
        let publish = member.endpoint.take_out().swap_remove(0);
        self.inject(to, &publish.topic, &publish.payload)
    }

    /// The member seals any bytes at all, in the formed cluster, to one node.
    pub(super) fn say_bytes(&mut self, to: &str, bytes: &[u8]) -> Outcome {
        self.say_bytes_in(VERSION, to, bytes)
    }

    pub(super) fn say_bytes_in(&mut self, version: u8, to: &str, bytes: &[u8]) -> Outcome {
        let formation = self.formation();
        let member = self.member.as_mut().expect("a member");
        let publish = member.seal(&formation, version, to, bytes);
        self.inject(to, &publish.topic, &publish.payload)
    }
}

/// What a node made of one message.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) events: Vec<Event>,
    pub(super) published: Vec<Publish>,
}

impl Outcome {
    pub(super) fn refused(&self) -> Option<Refused> {
        self.events.iter().find_map(|event| match event {
            Event::Refused { reason, .. } => Some(*reason),
            _ => None,
        })
    }

    pub(super) fn rejected(&self) -> Option<raft::Rejection> {
        self.events.iter().find_map(|event| match event {
            Event::Rejected { reason, .. } => Some(*reason),
            _ => None,
        })
    }
}

impl Member {
    pub(super) fn new(config: &Config, who: &str, key: NodeKey, seed: u8) -> Member {
        let topics = Topics::new(&config.prefix, &config.cluster).unwrap();
        let mut nonces = Nonces::new(&[seed; 32]);
        let mut incarnation = [0; 16];
        incarnation[..8].copy_from_slice(&nonces.draw().to_be_bytes());
        let endpoint = Endpoint::new(
            name(who),
            key,
            Incarnation(incarnation),
            topics.clone(),
            config.ring.clone(),
            nonces,
        );
        Member { endpoint, topics }
    }

    fn seal(&mut self, formation: &Formation, version: u8, to: &str, bytes: &[u8]) -> Publish {
        // Draws a sequence number that is not used otherwise.
        self.endpoint.broadcast_in_lobby(&Body::Probe);
        let drawn = self.endpoint.take_out().swap_remove(0);
        let sequence = Header::parse(&drawn.payload, VERSION).unwrap().sequence;
        let Endpoint {
            name: from,
            key,
            incarnation,
            topics,
            ring,
            ..
        } = &self.endpoint;
        let cluster = ClusterId::new(topics.root(), Some(&formation.digest()));
        let sealer = Sealer::new(ring, cluster, from.clone(), *key, *incarnation);
        let to = name(to);
        let payload = sealer.seal(version, sequence, Destination::One(&to), |out| {
            out.extend(bytes)
        });
        let topic = topics.unicast(&to, from);
        Publish {
            topic,
            payload,
            retain: false,
        }
    }

    /// Hears a message as any process would, and answers handshakes.
    pub(super) fn hear(&mut self, publish: &Publish, now: Time) -> Vec<Publish> {
        if let Some(topic @ (Topic::Broadcast { .. } | Topic::Unicast { .. })) =
            self.topics.parse(&publish.topic)
        {
            let _ = self.endpoint.receive(&topic, &publish.payload, now);
        }
        self.endpoint.take_out()
    }
}

/// What a disk does with a write.
pub(super) fn save(disk: &mut Durable, persist: Persist) {
    if let Some(hard_state) = persist.hard_state {
        disk.hard_state = hard_state;
    }
    if let Some(save) = persist.snapshot {
        let last = save.snapshot.meta.last.index;
        if save.discard_log {
            disk.entries.clear();
        }
        disk.entries.retain(|entry| entry.index > last);
        disk.snapshot = Some(save.snapshot);
    }
    if let Some(first) = persist.entries.first().map(|entry| entry.index) {
        disk.entries.retain(|entry| entry.index < first);
        disk.entries.extend(persist.entries);
    }
}
