//! One process's end of the sealed conversation: seals what goes out, opens and admits what
//! comes in, and answers handshakes by itself.
//!
//! Nodes and clients share it. It knows two clusters: the *lobby*, where everyone with the
//! cluster's name and key may speak, and the *formed* cluster, once that is known.

use std::collections::BTreeMap;

use bytes::Bytes;
use raft::{NodeKey, Time};

use crate::frame::{Destination, FrameError, Header, OLDEST, Opener, Sealer, VERSION};
use crate::keys::{ClusterId, Incarnation, KeyRing, Nonces};
use crate::link::Session;
use crate::name::Name;
use crate::peers::{Echo, Envelope, Peers, Received};
use crate::presence::Speaker;
use crate::topic::{Topic, Topics};
use crate::wire::{Body, Formation, Handshake, append_to, from_slice};

/// Something to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Where.
    pub topic: String,
    /// What.
    pub payload: Bytes,
    /// Whether the broker is to keep it; retained messages go at QoS 1, all others at QoS 0.
    pub retain: bool,
}

/// A frame that is authentic and fresh.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) from: Name,
    pub(crate) key: NodeKey,
    pub(crate) incarnation: Incarnation,
    pub(crate) lobby: bool,
    pub(crate) body: Body,
}

/// What one frame brings.
#[derive(Debug, Default)]
pub(crate) struct Delivery {
    /// What was kept of its sender until this frame admitted it.
    pub(crate) kept: Vec<Incoming>,
    /// What the frame itself says.
    pub(crate) incoming: Option<Incoming>,
}

impl From<Incoming> for Delivery {
    fn from(incoming: Incoming) -> Delivery {
        Delivery {
            kept: Vec::new(),
            incoming: Some(incoming),
        }
    }
}

impl IntoIterator for Delivery {
    type Item = Incoming;
    type IntoIter = std::iter::Chain<std::vec::IntoIter<Incoming>, std::option::IntoIter<Incoming>>;

    fn into_iter(self) -> Self::IntoIter {
        self.kept.into_iter().chain(self.incoming)
    }
}

/// How many topics are remembered as they were read. Beyond it all are forgotten: whoever
/// publishes under ever new names costs time, not memory.
const MAX_PARSED: usize = 1_024;

/// Why a received message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Refused {
    /// Not one of our topics.
    #[error("a topic that is none of ours")]
    Topic,
    /// No frame for us.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame that was seen before, or of a process that another has replaced.
    #[error("replayed")]
    Replayed,
    /// A sealed body that is not understood, or does not belong in a frame of its version: written
    /// by a newer build.
    #[error("not understood: written by a newer version?")]
    Body,
    /// A body that has no place where it was sent.
    #[error("out of place")]
    Misplaced,
    /// A status that is no status.
    #[error("malformed status")]
    Status,
    /// A status without a valid tag: forged, or of a node with another key.
    #[error("status with a wrong tag: forged, or a node with another cluster key")]
    Tag,
}

/// One process's end of the conversation.
pub(crate) struct Endpoint {
    pub(crate) name: Name,
    pub(crate) key: NodeKey,
    pub(crate) incarnation: Incarnation,
    pub(crate) topics: Topics,
    pub(crate) ring: KeyRing,
    /// The keys that were accepted last and are no more; empty where none was replaced.
    pub(crate) retired: KeyRing,
    pub(crate) nonces: Nonces,
    pub(crate) peers: Peers,
    /// The newest frame version that this process speaks.
    newest: u8,
    /// The frame version that everyone reads who is to read broadcasts.
    broadcast_version: u8,
    broadcast_topic: String,
    parsed: BTreeMap<Box<str>, Topic>,
    lobby: (ClusterId, Sealer),
    formed: Option<(ClusterId, Sealer)>,
    /// Hellos to all are for others, who vote: each observer that joins would have to be admitted by
    /// each other one.
    pub(crate) observes: bool,
    /// Nor is anything else for it that is said to all in the lobby: there are too many to answer.
    pub(crate) deaf_to_lobby: bool,
    /// Never repeats within an incarnation, whatever the cluster: with the frame key it makes
    /// every nonce unique.
    sequence: u64,
    out: Vec<Publish>,
    admitted: Vec<(Name, NodeKey, Incarnation)>,
}

impl Endpoint {
    pub(crate) fn new(
        name: Name,
        key: NodeKey,
        incarnation: Incarnation,
        topics: Topics,
        ring: KeyRing,
        nonces: Nonces,
    ) -> Endpoint {
        let cluster = ClusterId::new(topics.root(), None);
        let sealer = Sealer::new(&ring, cluster, name.clone(), key, incarnation);
        Endpoint {
            broadcast_topic: topics.broadcast(&name),
            parsed: BTreeMap::new(),
            name,
            key,
            incarnation,
            topics,
            ring,
            retired: KeyRing::default(),
            nonces,
            peers: Peers::default(),
            newest: VERSION,
            broadcast_version: OLDEST,
            lobby: (cluster, sealer),
            formed: None,
            observes: false,
            deaf_to_lobby: false,
            sequence: 0,
            out: Vec::new(),
            admitted: Vec::new(),
        }
    }

    /// From now on frames are sealed under the first of these keys and opened under any. Processes
    /// that were admitted stay so: they proved that they live, and their frames still show who they
    /// are.
    pub(crate) fn set_ring(&mut self, ring: KeyRing) {
        let sealer = |cluster| {
            Sealer::new(
                &ring,
                cluster,
                self.name.clone(),
                self.key,
                self.incarnation,
            )
        };
        self.lobby.1 = sealer(self.lobby.0);
        self.formed = self
            .formed
            .take()
            .map(|(cluster, _)| (cluster, sealer(cluster)));
        let gone = self.ring.without(&ring);
        if !gone.is_insecure() {
            self.retired = gone;
        }
        self.ring = ring;
        self.peers.forget_openers();
    }

    /// Speaks no newer frame version than this one.
    pub(crate) fn speaking(self, newest: u8) -> Endpoint {
        let newest = newest.clamp(OLDEST, VERSION);
        Endpoint { newest, ..self }
    }

    /// The newest frame version that this process speaks.
    pub(crate) fn speaks(&self) -> u8 {
        self.newest
    }

    /// From now on broadcasts go in this version, where they can and we speak it.
    pub(crate) fn set_broadcast_version(&mut self, version: u8) {
        self.broadcast_version = version.min(self.newest);
    }

    /// Whether the process that was last admitted as `to`, or this one, is too old for this.
    /// Whoever is not known is not.
    pub(crate) fn is_too_old(&self, to: &Name, body: &Body) -> bool {
        let needed = body.version();
        let speaks = self.peers.speaks_as(to);
        needed > self.newest || speaks.is_some_and(|speaks| needed > speaks)
    }

    /// From now on this endpoint is of the cluster that `formation` formed.
    pub(crate) fn join(&mut self, formation: &Formation) {
        let cluster = ClusterId::new(self.topics.root(), Some(&formation.digest()));
        let name = self.name.clone();
        let sealer = Sealer::new(&self.ring, cluster, name, self.key, self.incarnation);
        self.formed = Some((cluster, sealer));
    }

    pub(crate) fn has_joined(&self) -> bool {
        self.formed.is_some()
    }

    /// This process in one of its sessions, as its statuses name it.
    pub(crate) fn speaker(&self, session: Session) -> Speaker<'_> {
        Speaker {
            root: self.topics.root(),
            name: &self.name,
            key: self.key,
            incarnation: self.incarnation,
            session,
        }
    }

    /// What is to be published since the last call.
    pub(crate) fn take_out(&mut self) -> Vec<Publish> {
        std::mem::take(&mut self.out)
    }

    /// The processes admitted since the last call.
    pub(crate) fn take_admitted(&mut self) -> Vec<(Name, NodeKey, Incarnation)> {
        std::mem::take(&mut self.admitted)
    }

    // Out.

    /// To every node of the formed cluster; nothing before there is one.
    pub(crate) fn broadcast(&mut self, body: &Body) {
        let topic = self.broadcast_topic.clone();
        self.seal_formed(topic, Destination::All, self.broadcast_version, body);
    }

    /// To one process of the formed cluster, in the newest version that both speak.
    pub(crate) fn send(&mut self, to: &Name, body: &Body) {
        let topic = self.topics.unicast(to, &self.name);
        let version = self.peers.speaks_as(to).unwrap_or(OLDEST).min(self.newest);
        self.seal_formed(topic, Destination::One(to), version, body);
    }

    /// To everyone in the lobby.
    pub(crate) fn broadcast_in_lobby(&mut self, body: &Body) {
        let topic = self.broadcast_topic.clone();
        self.seal_lobby(topic, Destination::All, body);
    }

    /// To one process in the lobby.
    pub(crate) fn send_in_lobby(&mut self, to: &Name, body: &Body) {
        let topic = self.topics.unicast(to, &self.name);
        self.seal_lobby(topic, Destination::One(to), body);
    }

    /// A question who is there, or an answer, to one process or to all.
    pub(crate) fn call(&mut self, to: Option<&Name>, body: &Body) {
        let topic = self.topics.roll(to, &self.name);
        let destination = to.map_or(Destination::All, Destination::One);
        self.seal_lobby(topic, destination, body);
    }

    /// What `version` does not have goes in the version that has it: who does not read that is
    /// told so by its own log, and nobody else misses it.
    fn seal_formed(&mut self, topic: String, to: Destination<'_>, version: u8, body: &Body) {
        let version = version.max(body.version());
        if version > self.newest {
            return;
        }
        let sequence = self.next_sequence();
        if let Some((_, sealer)) = &self.formed {
            let payload = sealer.seal(version, sequence, to, |bytes| append_to(body, bytes));
            self.out.push(Publish {
                topic,
                payload,
                retain: false,
            });
        }
    }

    /// In the lobby nobody knows what the others speak: everything goes in the oldest version that
    /// has it.
    fn seal_lobby(&mut self, topic: String, to: Destination<'_>, body: &Body) {
        let version = body.version();
        if version > self.newest {
            return;
        }
        let sequence = self.next_sequence();
        let sealer = &self.lobby.1;
        let payload = sealer.seal(version, sequence, to, |bytes| append_to(body, bytes));
        self.out.push(Publish {
            topic,
            payload,
            retain: false,
        });
    }

    fn next_sequence(&mut self) -> u64 {
        let sequence = self.sequence;
        self.sequence = sequence.checked_add(1).expect("2^64 frames are never sent");
        sequence
    }

    // In.

    /// Reads a topic; `None` for any that is none of ours.
    pub(crate) fn parse(&mut self, topic: &str) -> Option<Topic> {
        if let Some(parsed) = self.parsed.get(topic) {
            return Some(parsed.clone());
        }
        let parsed = self.topics.parse(topic)?;
        if self.parsed.len() >= MAX_PARSED {
            self.parsed.clear();
        }
        self.parsed.insert(topic.into(), parsed.clone());
        Some(parsed)
    }

    /// Opens one received frame: what it says, and what was kept of its sender until now.
    pub(crate) fn receive(
        &mut self,
        topic: &Topic,
        payload: &Bytes,
        now: Time,
    ) -> Result<Delivery, Refused> {
        let (from, to) = match topic {
            Topic::Broadcast { from } => (from, Destination::All),
            Topic::Unicast { to, from } if *to == self.name => (from, Destination::One(to)),
            Topic::Unicast { .. } | Topic::Roll { .. } | Topic::Status { .. } => {
                return Err(Refused::Topic);
            }
        };
        let header = Header::parse(payload, self.newest)?;
        let lobby = self.is_lobby(header.cluster)?;
        let ours = (header.node_key, header.incarnation) == (self.key, self.incarnation);
        if ours && *from == self.name {
            return self.own(payload, &header, lobby, to);
        }
        let to_all = matches!(to, Destination::All);
        if self.deaf_to_lobby && lobby && to_all {
            return Ok(Delivery::default());
        }
        let envelope = Envelope {
            header: &header,
            from,
            to,
        };
        match self.peers.receive(&self.ring, envelope, payload, now)? {
            Received::Replayed => Err(Refused::Replayed),
            Received::Fresh(bytes) => {
                let incoming = self.incoming(from, &header, lobby, &bytes)?;
                if to_all && self.is_for_voters(&incoming.body) {
                    return Ok(Delivery::default());
                }
                Ok(self.admit_or_deliver(incoming, &header, to, now))
            }
            Received::Kept(bytes) => {
                let incoming = self.incoming(from, &header, lobby, &bytes)?;
                if to_all && self.is_for_voters(&incoming.body) {
                    return Ok(Delivery::default());
                }
                let delivery = self.admit_or_deliver(incoming, &header, to, now);
                if !self.peers.is_admitted(header.node_key, header.incarnation) {
                    self.challenge(header.node_key, from, now);
                    let speaks_for_itself =
                        |i: &Incoming| matches!(i.body, Body::Probe | Body::Occupied(_));
                    let incoming = delivery.incoming.filter(speaks_for_itself);
                    let kept = Vec::new();
                    return Ok(Delivery { kept, incoming });
                }
                Ok(delivery)
            }
        }
    }

    /// Opens a question who is there, or an answer. Their challenge makes them fresh: nobody is
    /// admitted by them, and nothing is kept of who sent them. `None` for our own.
    pub(crate) fn receive_call(
        &self,
        topic: &Topic,
        payload: &Bytes,
    ) -> Result<Option<Incoming>, Refused> {
        let (from, to) = match topic {
            Topic::Roll { to: None, from } => (from, Destination::All),
            Topic::Roll { to: Some(to), from } if *to == self.name => (from, Destination::One(to)),
            _ => return Err(Refused::Topic),
        };
        let header = Header::parse(payload, self.newest)?;
        if (header.node_key, header.incarnation) == (self.key, self.incarnation) {
            return Ok(None);
        }
        if !self.is_lobby(header.cluster)? {
            return Err(Refused::Misplaced);
        }
        let (_, bytes) = Opener::find(&self.ring, &header, from, to, payload)?;
        let incoming = self.incoming(from, &header, true, &bytes)?;
        Ok(Some(incoming))
    }

    /// Who sealed a frame of another cluster, if it holds our key. It may be long gone.
    pub(crate) fn foreign_sender(&self, topic: &Topic, payload: &Bytes) -> Option<(Name, NodeKey)> {
        let (from, to) = match topic {
            Topic::Broadcast { from } => (from, Destination::All),
            Topic::Unicast { to, from } => (from, Destination::One(to)),
            Topic::Roll { .. } | Topic::Status { .. } => return None,
        };
        let header = Header::parse(payload, self.newest).ok()?;
        Opener::find(&self.ring, &header, from, to, payload).ok()?;
        Some((from.clone(), header.node_key))
    }

    fn is_for_voters(&self, body: &Body) -> bool {
        self.observes && matches!(body, Body::Hello(_))
    }

    fn is_lobby(&self, cluster: ClusterId) -> Result<bool, FrameError> {
        match &self.formed {
            _ if cluster == self.lobby.0 => Ok(true),
            Some((formed, _)) if cluster == *formed => Ok(false),
            _ => Err(FrameError::ForeignCluster),
        }
    }

    fn incoming(
        &self,
        from: &Name,
        header: &Header,
        lobby: bool,
        bytes: &[u8],
    ) -> Result<Incoming, Refused> {
        let body: Body = from_slice(bytes).map_err(|_| Refused::Body)?;
        if body.version() > header.version {
            return Err(Refused::Body);
        }
        let (key, incarnation) = (header.node_key, header.incarnation);
        Ok(Incoming {
            from: from.clone(),
            key,
            incarnation,
            lobby,
            body,
        })
    }

    /// The broker brings back what we publish ourselves; only the probe is of use.
    fn own(
        &self,
        payload: &Bytes,
        header: &Header,
        lobby: bool,
        to: Destination<'_>,
    ) -> Result<Delivery, Refused> {
        if !lobby || !matches!(to, Destination::One(_)) {
            return Ok(Delivery::default());
        }
        let (_, bytes) = Opener::find(&self.ring, header, &self.name, to, payload)?;
        let incoming = self.incoming(&self.name, header, lobby, &bytes)?;
        let is_probe = incoming.body == Body::Probe;
        let incoming = is_probe.then_some(incoming);
        Ok(Delivery {
            kept: Vec::new(),
            incoming,
        })
    }

    fn admit_or_deliver(
        &mut self,
        incoming: Incoming,
        header: &Header,
        to: Destination<'_>,
        now: Time,
    ) -> Delivery {
        let Body::Handshake(handshake) = incoming.body else {
            return incoming.into();
        };
        let mut kept = Vec::new();
        if let Some(echo) = handshake.echo {
            let speaks = handshake.speaks.unwrap_or(OLDEST).max(OLDEST);
            kept = self.admit(header, &incoming.from, Echo { echo, speaks }, now);
        }
        if let (Some(challenge), Destination::One(_)) = (handshake.challenge, to) {
            let admitted = self.peers.is_admitted(header.node_key, header.incarnation);
            let own = match admitted {
                true => None,
                false => self.peers.challenge(&self.nonces, header.node_key, now),
            };
            let answer = Handshake {
                challenge: own,
                echo: Some(challenge),
                speaks: self.says_it_speaks(),
            };
            self.send_in_lobby(&incoming.from, &Body::Handshake(answer));
        }
        Delivery {
            kept,
            incoming: None,
        }
    }

    /// Admits the sender if its echo fits, and takes what was kept of it.
    fn admit(&mut self, header: &Header, from: &Name, echo: Echo, now: Time) -> Vec<Incoming> {
        let before = self.peers.incarnation(header.node_key);
        let kept = self.peers.admit(&self.nonces, header, from, echo, now);
        if self.peers.incarnation(header.node_key) != before {
            let process = (from.clone(), header.node_key, header.incarnation);
            self.admitted.push(process);
        }
        let mut delivered = Vec::new();
        for (header, payload) in kept {
            for to in [Destination::All, Destination::One(&self.name.clone())] {
                let envelope = Envelope {
                    header: &header,
                    from,
                    to,
                };
                let received = self.peers.receive(&self.ring, envelope, &payload, now);
                if let Ok(Received::Fresh(bytes)) = received
                    && let Ok(lobby) = self.is_lobby(header.cluster)
                    && let Ok(incoming) = self.incoming(from, &header, lobby, &bytes)
                    && !matches!(
                        incoming.body,
                        Body::Handshake(_) | Body::Probe | Body::Occupied(_) | Body::Request(_)
                    )
                {
                    delivered.push(incoming);
                }
            }
        }
        delivered
    }

    fn challenge(&mut self, key: NodeKey, name: &Name, now: Time) {
        if let Some(challenge) = self.peers.challenge(&self.nonces, key, now) {
            let handshake = Handshake {
                challenge: Some(challenge),
                echo: None,
                speaks: self.says_it_speaks(),
            };
            self.send_in_lobby(name, &Body::Handshake(handshake));
        }
    }

    /// Nothing where an older build would say nothing.
    fn says_it_speaks(&self) -> Option<u8> {
        Some(self.newest).filter(|newest| *newest > OLDEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(node: &str, key: u128, incarnation: u8) -> Endpoint {
        let name = |text| Name::new(text).expect("a name");
        let topics = Topics::new("raft", &name("plant")).expect("a good prefix");
        Endpoint::new(
            name(node),
            NodeKey(key),
            Incarnation([incarnation; 16]),
            topics,
            KeyRing::insecure(),
            Nonces::new(&[incarnation; 32]),
        )
    }

    /// Hands on what `from` has to say; what follows stays with `to`.
    fn tell(from: &mut Endpoint, to: &mut Endpoint, at_ms: u64) -> Vec<Result<usize, Refused>> {
        let publishes = from.take_out();
        let told = publishes.into_iter().map(|publish| {
            let topic = to.topics.parse(&publish.topic).expect("one of ours");
            let taken = to.receive(&topic, &publish.payload, Time(at_ms * 1_000));
            taken.map(|delivery| delivery.into_iter().count())
        });
        told.collect()
    }

    /// Simulator, seed 666: a process echoed a challenge and died; its successor was admitted;
    /// then the echo arrived, and the dead one's admission shut the living one out for good.
    #[test]
    fn a_late_echo_of_the_dead_ends_nobody() {
        let mut me = process("a", 1, 1);
        let (mut old, mut new) = (process("b", 2, 2), process("b", 2, 3));
        let a = me.name.clone();
        old.send_in_lobby(&a, &Body::StatusRequest);
        tell(&mut old, &mut me, 0);
        tell(&mut me, &mut old, 1);
        // The old one's echo is under way when it dies, and the new one is faster.
        new.send_in_lobby(&a, &Body::StatusRequest);
        tell(&mut new, &mut me, 200);
        tell(&mut me, &mut new, 201);
        tell(&mut new, &mut me, 202);
        assert!(me.peers.is_admitted(new.key, new.incarnation));
        tell(&mut old, &mut me, 300);
        new.take_out();
        new.send_in_lobby(&a, &Body::StatusRequest);
        assert_eq!(tell(&mut new, &mut me, 301), [Ok(1)]);
    }

    /// Two processes of one key do not take turns; but the one that stays, when the other has given
    /// way, is heard again.
    #[test]
    fn a_process_that_was_displaced_proves_itself_again_after_the_other() {
        let mut me = process("a", 1, 1);
        let (mut original, mut copy) = (process("b", 2, 2), process("b", 2, 3));
        let a = me.name.clone();
        let greet = |who: &mut Endpoint, me: &mut Endpoint, at_ms| {
            who.take_out();
            who.send_in_lobby(&a, &Body::StatusRequest);
            let told = tell(who, me, at_ms);
            tell(me, who, at_ms + 1);
            tell(who, me, at_ms + 2);
            told
        };
        greet(&mut original, &mut me, 0);
        greet(&mut copy, &mut me, 200);
        assert!(me.peers.is_admitted(copy.key, copy.incarnation));
        let refused = greet(&mut original, &mut me, 60_000);
        assert_eq!(refused, [Err(Refused::Replayed)]);
        me.peers.on_end(original.key, original.incarnation);
        let refused = greet(&mut original, &mut me, 61_000);
        assert_eq!(refused, [Err(Refused::Replayed)], "not by its own end");
        me.peers.on_end(copy.key, copy.incarnation);
        greet(&mut original, &mut me, 62_000);
        assert!(me.peers.is_admitted(original.key, original.incarnation));
    }
}
