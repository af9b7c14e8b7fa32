//! A process that is no node: it finds the cluster in the lobby, asks the leader, and leaves.
//!
//! A client holds the cluster key like a node does and proves its freshness the same way. It has
//! no disk, no presence and no vote.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use raft::{ClientId, Index, NodeKey, Time};

use crate::endpoint::{Endpoint, Incoming, Publish, Refused};
use crate::following::Following;
use crate::keys::{Incarnation, KeyRing, Nonces};
use crate::link::{Link, Session};
use crate::name::Name;
use crate::requests::{Done, RequestError, Requests, Token, older_leader};
use crate::state::{Cursor, KeyRange, Watched};
use crate::topic::{Topic, Topics};
use crate::wire::{
    Answer, Body, Chunk, ChunkRequest, Hello, Holds, NodeStatus, Operation, Reading, Reply,
    Request, Save, SaveRequest, Stale, StaleRead, name,
};

/// How soon a client asks again who is there; doubled while the answers name no leader.
const ASK_INTERVAL: Duration = Duration::from_millis(200);

/// How often that is doubled.
const MAX_UNHEARD: u32 = 3;

/// What happened.
#[derive(Clone, Debug)]
pub enum ClientInput {
    /// A session with the broker is up and subscribed.
    Connected,
    /// The session is gone.
    Disconnected,
    /// The broker delivered a message.
    Received {
        /// Its topic.
        topic: String,
        /// Its payload.
        payload: Bytes,
    },
    /// The caller wants something of the leader.
    Request {
        /// The caller's mark.
        token: Token,
        /// What it wants.
        operation: Operation,
        /// How long it will wait.
        timeout: Duration,
    },
    /// The caller wants to know of changes of the state.
    Watch {
        /// The caller's mark.
        token: Token,
        /// Of which keys.
        range: KeyRange,
        /// From where on.
        from: Cursor,
    },
    /// It no longer wants to.
    Unwatch(Token),
    /// Ask every node how it is.
    AskStatus,
    /// Ask one node, or every node, what its own copy says of a key.
    AskStale {
        /// The key.
        key: Bytes,
        /// Whom.
        node: Option<Name>,
    },
    /// Ask a node for a copy of its state.
    AskSnapshot {
        /// Whom.
        node: Name,
        /// The revision that the state must have reached.
        revision: u64,
    },
    /// Ask a node for a part of the copy.
    AskChunk {
        /// Whom.
        node: Name,
        /// Which copy.
        id: u64,
        /// From which byte on.
        offset: u64,
    },
    /// The cluster keys changed: the first seals, all are accepted.
    SetKeys(KeyRing),
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientEffect {
    /// Publish this.
    Publish(Publish),
    /// A request has come to an end.
    Done {
        /// The caller's mark.
        token: Token,
        /// What came of it.
        result: Result<Done, RequestError>,
    },
    /// What a watch has seen; the caller asks again for what follows.
    Watched {
        /// The caller's mark.
        token: Token,
        /// What there is; never nothing.
        watched: Watched,
    },
    /// Tell the caller.
    Event(ClientEvent),
}

/// Something worth telling.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientEvent {
    /// A node said how it is.
    Status(NodeStatus),
    /// A node said what its own copy says of a key; it may be behind.
    Stale {
        /// Which node.
        node: Name,
        /// The key.
        key: Bytes,
        /// What it says.
        reading: Reading,
    },
    /// A node answered the question for a copy of its state.
    Save {
        /// Which node.
        node: Name,
        /// What it said.
        answer: Save,
    },
    /// A part of a copy.
    Chunk {
        /// Of which copy.
        id: u64,
        /// From which byte on.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// A message was not taken.
    Refused {
        /// The topic it came on.
        topic: String,
        /// Why.
        reason: Refused,
    },
    /// A node answered whose cluster is not formed yet.
    NotFormed {
        /// Who answered.
        node: Name,
        /// Whom it waits for: voters by name, or how many more nodes.
        missing: Vec<String>,
    },
}

/// What a client's session with the broker needs.
#[derive(Clone, Debug)]
pub struct ClientPlan {
    name: Name,
    topics: Topics,
}

impl ClientPlan {
    /// The MQTT client id.
    pub fn client_id(&self, session: Session) -> String {
        let Session { link, epoch } = session;
        match link {
            Link::FIRST => format!("{}-{epoch}", self.name),
            link => format!("{}-{link}-{epoch}", self.name),
        }
    }

    /// What is sent to this client alone.
    pub fn subscription(&self) -> String {
        format!("{}/rpc/{}/+", self.topics.root(), self.name)
    }

    /// The retained statuses, for those that watch presence.
    pub fn status_subscription(&self) -> String {
        format!("{}/nodes/+/status", self.topics.root())
    }

    /// The retained hint at who leads: with it, a client finds a new leader without asking.
    pub fn leader_topic(&self) -> String {
        self.topics.leader()
    }
}

/// A client. Its module draws how it works.
pub struct Client {
    endpoint: Endpoint,
    requests: Requests,
    following: Following,
    connected: bool,
    leader: Option<Name>,
    ask_at: Time,
    asks_status: bool,
    /// How often in a row it was asked in vain who leads.
    unheard: u32,
    now: Time,
    effects: Vec<ClientEffect>,
}

impl Client {
    /// A client of `cluster`. `seed` must be unpredictable.
    ///
    /// # Errors
    /// When the prefix cannot stand in a topic.
    pub fn new(
        prefix: &str,
        cluster: &Name,
        ring: KeyRing,
        seed: [u8; 32],
        now: Time,
    ) -> Result<Client, crate::PrefixError> {
        let topics = Topics::new(prefix, cluster)?;
        let mut nonces = Nonces::new(&seed);
        let mut sixteen = || {
            let (high, low) = (nonces.draw(), nonces.draw());
            (u128::from(high) << 64) | u128::from(low)
        };
        let (key, incarnation) = (NodeKey(sixteen()), Incarnation(sixteen().to_be_bytes()));
        let client = ClientId(nonces.draw());
        let name = Name::new(&format!("client-{:016x}", nonces.draw())).expect("hex is a name");
        Ok(Client {
            endpoint: Endpoint::new(name, key, incarnation, topics, ring, nonces),
            requests: Requests::new(client),
            following: Following::default(),
            connected: false,
            leader: None,
            ask_at: now,
            asks_status: false,
            unheard: 0,
            now,
            effects: Vec::new(),
        })
    }

    /// What each session with the broker needs.
    pub fn plan(&self) -> ClientPlan {
        let Endpoint { name, topics, .. } = &self.endpoint;
        ClientPlan {
            name: name.clone(),
            topics: topics.clone(),
        }
    }

    /// Who leads, as far as it has heard.
    pub fn leader(&self) -> Option<&Name> {
        self.leader.as_ref()
    }

    /// Takes what has happened by `now` and returns what is to be done, in order.
    pub fn step(
        &mut self,
        inputs: impl IntoIterator<Item = ClientInput>,
        now: Time,
    ) -> Vec<ClientEffect> {
        self.now = self.now.max(now);
        for input in inputs {
            self.take(input);
        }
        self.settle();
        std::mem::take(&mut self.effects)
    }

    /// When to step with [`ClientInput::Tick`] if nothing happens before.
    pub fn next_deadline(&self) -> Option<Time> {
        let ask = (self.connected && self.wants_nodes()).then_some(self.ask_at);
        // What cannot be sent yet is due no earlier than it is given up.
        let requests = match self.connected && self.knows_leader() {
            true => self.requests.deadline(),
            false => self.requests.expiry(),
        };
        let watches = (self.connected && self.knows_leader())
            .then(|| self.following.deadline())
            .flatten();
        [ask, requests, watches].into_iter().flatten().min()
    }

    fn knows_leader(&self) -> bool {
        self.leader.is_some() && self.endpoint.has_joined() && self.requests.may_begin()
    }

    fn take(&mut self, input: ClientInput) {
        match input {
            ClientInput::Connected => {
                self.connected = true;
                self.unheard = 0;
                self.ask_at = self.now;
                // What was heard may have been answered while nothing could be.
                self.following.ask_again(self.now);
            }
            ClientInput::Disconnected => self.connected = false,
            ClientInput::Received { topic, payload } => {
                if let Err(reason) = self.on_received(&topic, &payload) {
                    self.event(ClientEvent::Refused { topic, reason });
                }
            }
            ClientInput::Request {
                token,
                operation,
                timeout,
            } => {
                if let Err(error) = self.requests.submit(token, operation, timeout, self.now) {
                    self.effects.push(ClientEffect::Done {
                        token,
                        result: Err(error),
                    });
                }
            }
            ClientInput::Watch { token, range, from } => {
                self.following.ask(token, range, from, self.now);
            }
            ClientInput::Unwatch(token) => self.following.forget(token),
            ClientInput::AskStatus => {
                self.asks_status = true;
                self.ask_at = self.now;
            }
            ClientInput::AskStale { key, node } => {
                let read = Body::StaleRead(StaleRead { key });
                match node {
                    Some(node) => self.endpoint.send_in_lobby(&node, &read),
                    None => self.endpoint.broadcast_in_lobby(&read),
                }
            }
            ClientInput::AskSnapshot { node, revision } => {
                let request = Body::SaveRequest(SaveRequest { revision });
                self.endpoint.send(&node, &request);
            }
            ClientInput::AskChunk { node, id, offset } => {
                let request = Body::ChunkRequest(ChunkRequest { id, offset });
                self.endpoint.send(&node, &request);
            }
            ClientInput::SetKeys(ring) => self.endpoint.set_ring(ring),
            ClientInput::Tick => {}
        }
    }

    fn on_received(&mut self, topic: &str, payload: &Bytes) -> Result<(), Refused> {
        if topic == self.endpoint.topics.leader() {
            self.on_leader_hint(payload);
            return Ok(());
        }
        let topic = self.endpoint.topics.parse(topic).ok_or(Refused::Topic)?;
        if matches!(topic, Topic::Status { .. }) {
            return Ok(()); // Shown by whoever subscribed to it; not ours to judge.
        }
        for incoming in self.endpoint.receive(&topic, payload, self.now)? {
            self.on_incoming(incoming)?;
        }
        for (name, ..) in self.endpoint.take_admitted() {
            // It had to ask who we are first, and has forgotten what we wanted meanwhile.
            if self.leader.as_ref() == Some(&name) {
                self.requests.on_new_leader(self.now);
                self.following.ask_again(self.now);
            }
        }
        Ok(())
    }

    /// Whoever leads says so for anyone to read. It is a hint whom to ask and nothing more: a node
    /// that does not lead says who does. Before the first answer of a node it may be long outdated.
    fn on_leader_hint(&mut self, payload: &[u8]) {
        let hint: Option<serde_json::Value> = serde_json::from_slice(payload).ok();
        let leader = hint.as_ref().and_then(|hint| hint["leader"].as_str());
        if let Some(leader) = leader.and_then(name)
            && self.endpoint.has_joined()
        {
            self.turn_to(Some(leader));
        }
    }

    fn on_incoming(&mut self, incoming: Incoming) -> Result<(), Refused> {
        let Incoming {
            from,
            key,
            lobby,
            body,
            ..
        } = incoming;
        match (body, lobby) {
            (Body::Hello(hello), true) => self.on_hello(from, hello),
            (Body::Status(status), _) => self.on_status(from, status),
            (Body::Stale(Stale { key, reading }), _) => {
                self.event(ClientEvent::Stale {
                    node: from,
                    key,
                    reading,
                });
            }
            (Body::Reply(reply), false) => {
                self.requests.answered_by(reply.number, &from, key);
                if let Answer::NotLeader(leader) = &reply.answer {
                    let leader = leader.as_deref().and_then(name);
                    self.turn_to(leader.filter(|leader| *leader != from));
                }
                if let Some((token, result)) = self.requests.on_reply(reply, self.now) {
                    self.effects.push(ClientEffect::Done { token, result });
                }
            }
            (Body::Watched(reply), false) => {
                if let Some((token, watched)) = self.following.on_reply(reply, self.now) {
                    self.effects.push(ClientEffect::Watched { token, watched });
                }
            }
            (Body::Save(answer), false) => {
                self.event(ClientEvent::Save { node: from, answer });
            }
            (Body::Chunk(Chunk { id, offset, data }), false) => {
                self.event(ClientEvent::Chunk { id, offset, data });
            }
            _ => return Err(Refused::Misplaced),
        }
        Ok(())
    }

    fn on_hello(&mut self, from: Name, hello: Hello) {
        let Holds::Formed(formation) = &hello.holds else {
            let missing = missing(&hello);
            return self.event(ClientEvent::NotFormed {
                node: from,
                missing,
            });
        };
        if !self.endpoint.has_joined() {
            self.endpoint.join(formation);
        }
    }

    fn on_status(&mut self, from: Name, status: NodeStatus) {
        if status.node == from.as_str() {
            self.requests.learn(Index(status.commit_index));
        }
        if let Some(leader) = status.leader.as_deref().and_then(name) {
            self.turn_to(Some(leader));
        }
        if status.node == from.as_str() {
            self.event(ClientEvent::Status(status));
        }
    }

    fn turn_to(&mut self, leader: Option<Name>) {
        if leader != self.leader {
            self.leader = leader;
            self.unheard = 0;
            if self.leader.is_some() {
                self.requests.on_new_leader(self.now);
                self.following.ask_again(self.now);
            }
        }
    }

    fn wants_nodes(&self) -> bool {
        self.asks_status || !self.knows_leader()
    }

    fn settle(&mut self) {
        for (token, error) in self.requests.expire(self.now) {
            self.effects.push(ClientEffect::Done {
                token,
                result: Err(error),
            });
        }
        if self.connected {
            self.ask();
            self.send_requests();
        }
        for publish in self.endpoint.take_out() {
            self.effects.push(ClientEffect::Publish(publish));
        }
    }

    /// Asks who is there and how they are: the hello brings the cluster's id, the status its
    /// leader.
    fn ask(&mut self) {
        if !self.wants_nodes() || self.now < self.ask_at {
            return;
        }
        self.ask_at = self.now + ASK_INTERVAL.saturating_mul(1 << self.unheard.min(MAX_UNHEARD));
        self.unheard = match self.knows_leader() {
            true => 0,
            false => self.unheard + 1,
        };
        self.asks_status = false;
        if !self.endpoint.has_joined() {
            let hello = Hello {
                question: true,
                holds: Holds::Nothing,
                voters: Vec::new(),
                settings: raft::Settings::default(),
                heard: BTreeMap::new(),
                expect: None,
                witness: false,
            };
            self.endpoint.broadcast_in_lobby(&Body::Hello(hello));
        }
        self.endpoint.broadcast_in_lobby(&Body::StatusRequest);
    }

    fn send_requests(&mut self) {
        let Some(leader) = self.leader.clone().filter(|_| self.knows_leader()) else {
            return;
        };
        let (watches, unheard) = self.following.due(self.now);
        for request in watches {
            self.endpoint.send(&leader, &Body::Watch(request));
        }
        let due = self.requests.due(self.now);
        let resent = due
            .iter()
            .any(|request| self.requests.was_sent_before(request.number));
        for request in due {
            self.send_request(&leader, request);
        }
        if resent || unheard {
            // No answer: someone else may lead by now.
            self.asks_status = true;
        }
    }

    fn send_request(&mut self, leader: &Name, request: Request) {
        let (client, number) = (request.client, request.number);
        let request = Body::Request(request);
        if !self.endpoint.is_too_old(leader, &request) {
            return self.endpoint.send(leader, &request);
        }
        let reply = Reply {
            number,
            client,
            answer: Answer::NotYet(older_leader(leader)),
        };
        if let Some((token, result)) = self.requests.on_reply(reply, self.now) {
            self.effects.push(ClientEffect::Done { token, result });
        }
    }

    fn event(&mut self, event: ClientEvent) {
        self.effects.push(ClientEffect::Event(event));
    }
}

/// Whom the sender of a hello waits for.
fn missing(hello: &Hello) -> Vec<String> {
    if let Some(expect) = hello.expect {
        let more = (expect as usize).saturating_sub(hello.heard.len());
        let nodes = format!("{more} more of {expect} nodes");
        return Vec::from_iter((more > 0).then_some(nodes));
    }
    let unheard = |voter: &&String| !hello.heard.contains_key(*voter);
    hello.voters.iter().filter(unheard).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Formation, WatchReply};

    /// A node had heard the question, and its answer went to a session that was gone: the next session
    /// asks again, rather than when the node's time to hold the question is over.
    #[test]
    fn a_client_that_reconnects_asks_again_for_what_it_watches() {
        let name = |text: &str| Name::new(text).expect("a name");
        let mut now = Time(0);
        let client = Client::new("raft", &name("plant-a"), KeyRing::from(None), [1; 32], now);
        let mut client = client.expect("a prefix");
        client.endpoint.join(&Formation {
            voters: BTreeMap::from([(NodeKey(1), "gw-1".to_owned())]),
            settings: raft::Settings::default(),
            witnesses: std::collections::BTreeSet::new(),
            origin: None,
        });
        client.requests.learn(Index(1));
        client.leader = Some(name("gw-1"));
        let watch = ClientInput::Watch {
            token: Token(1),
            range: KeyRange::Prefix(Bytes::new()),
            from: Cursor::from(1),
        };
        assert_eq!(client.step([ClientInput::Connected, watch], now).len(), 1);
        let heard = WatchReply {
            id: 1,
            from: Cursor::from(1),
            watched: Watched::Events {
                events: Vec::new(),
                next: Cursor::from(1),
            },
        };
        assert_eq!(client.following.on_reply(heard, now), None);
        now = now + Duration::from_secs(5);
        assert_eq!(client.step([ClientInput::Disconnected], now), []);
        assert_eq!(client.step([ClientInput::Connected], now).len(), 1);
    }
}
