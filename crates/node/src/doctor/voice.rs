//! What is said on a cluster's topics without anybody minding.
//!
//! Every message here is one that running nodes take without a word in their logs and without a change
//! in what they do:
//!
//! | on | what | who hears it, and does |
//! |---|---|---|
//! | `rpc/<id>/<id>` | the probe with which a node starts | whoever runs under this name says so |
//! | the same, for measuring | a *quiet* frame | takes it for an echo of its own, and passes it over unread |
//! | `rpc/all/<id>` | the hello of a node that is to follow without a vote | answered, and forgotten: who greets is never admitted |
//! | `nodes/<id>/status` | an authentic will of a process that nobody has met | noted |
//! | `leader` | what stands there, once more | as before |
//!
//! Probe, hello and will come out of [`Replica`] itself, so they are what a node says by construction.

use std::time::Duration;

use bytes::Bytes;
use mqtt::{Qos, Will};
use raft::{Durable, NodeKey};
use replica::{
    Config, Effect, Event, HEADER, Input, KeyRing, Link, Name, Publish, Replica, Session,
    SessionPlan, StopReason, Topics,
};

use crate::clock;
use crate::error::{Error, Result};
use crate::node::random;

/// Longer than a starting node waits for its own probe.
const PROBED: Duration = Duration::from_secs(3);

/// The frame version that every node reads.
const OLDEST: u8 = 1;

/// Where a frame's header has the cluster it is of, and where the process (docs/wire.md).
const CLUSTER: std::ops::Range<usize> = 2..10;
const NODE_KEY: std::ops::Range<usize> = 10..26;
const INCARNATION: std::ops::Range<usize> = 26..42;
const SEQUENCE: std::ops::Range<usize> = 42..HEADER;

pub(super) struct Voice {
    pub(super) topics: Topics,
    pub(super) plan: SessionPlan,
    me: Name,
    /// Stays where a node is before it knows whether its name is free.
    asker: Replica,
    pub(super) probe: Publish,
    pub(super) hello: Option<Publish>,
    sessions: u64,
    quiet: [u8; HEADER],
    next_quiet: u64,
}

impl Voice {
    pub(super) fn new(prefix: &str, cluster: Name, me: Name, ring: KeyRing) -> Result<Voice> {
        let topics = Topics::new(prefix, &cluster)?;
        let start = || -> Result<Replica> {
            let key = NodeKey(u128::from_be_bytes(random()?));
            let config = Config {
                prefix: prefix.to_owned(),
                ring: ring.clone(),
                ..Config::new(me.clone(), key, cluster.clone(), Vec::new())
            };
            Replica::new(config, None, Durable::default(), random()?, clock::now())
                .map_err(Error::of_start)
        };
        let (mut asker, mut greeter) = (start()?, start()?);
        let own = topics.unicast(&me, &me);
        let probe = said_on(&own, asker.step([connected()], clock::now()));
        let probe = probe.expect("a node that connects asks whether its name is free");
        // Each has a key of its own, so that no sequence number is used for two frames.
        greeter.step([connected()], clock::now());
        let mut hello = None;
        for _ in 0..2 {
            let later = clock::now() + PROBED;
            let effects = greeter.step([Input::Tick], later);
            hello = hello.or(said_on(&topics.broadcast(&me), effects));
        }
        let mut quiet = [0; HEADER];
        quiet[0] = OLDEST;
        quiet[NODE_KEY].copy_from_slice(&random::<16>()?);
        quiet[INCARNATION].copy_from_slice(&random::<16>()?);
        Ok(Voice {
            plan: asker.session_plan(),
            topics,
            me,
            asker,
            probe,
            hello,
            sessions: 0,
            quiet,
            next_quiet: 0,
        })
    }

    /// To this node alone.
    pub(super) fn own_topic(&self) -> String {
        self.topics.unicast(&self.me, &self.me)
    }

    pub(super) fn status_topic(&self) -> String {
        self.topics.status(&self.me)
    }

    /// A client id as a node's, and a session's number.
    pub(super) fn session(&mut self) -> (String, u64) {
        self.sessions += 1;
        (
            self.plan.client_id(Session::first(self.sessions)),
            self.sessions,
        )
    }

    /// The will of that session, as a node leaves it.
    pub(super) fn will(&mut self, session: u64) -> Will {
        let Publish { topic, payload, .. } = self.plan.will(Session::first(session));
        Will {
            topic,
            payload,
            qos: Qos::AtLeastOnce,
            retain: true,
        }
    }

    /// Whether this, heard on [`Voice::own_topic`], is the word of a process that has our name.
    pub(super) fn is_taken_by(&mut self, payload: Bytes) -> bool {
        let topic = self.own_topic();
        let heard = Input::Received {
            over: Link::FIRST,
            topic,
            payload,
            retained: false,
        };
        let effects = self.asker.step([heard], clock::now());
        let taken = |effect: &Effect| {
            matches!(effect, Effect::Event(Event::Stop(StopReason::NameTaken(_))))
        };
        effects.iter().any(taken)
    }

    /// From now on quiet frames read as if this process had sent them: it passes over what comes back
    /// of its own. `frame` is any of its formed cluster's; false if this one is of none.
    pub(super) fn imitate(&mut self, frame: &[u8], key: [u8; 16], incarnation: [u8; 16]) -> bool {
        if !self.is_of_a_formed_cluster(frame) {
            return false;
        }
        self.quiet[CLUSTER].copy_from_slice(&frame[CLUSTER]);
        self.quiet[NODE_KEY].copy_from_slice(&key);
        self.quiet[INCARNATION].copy_from_slice(&incarnation);
        true
    }

    /// Whether this frame is of a formed cluster; else it is of the lobby, or no frame.
    pub(super) fn is_of_a_formed_cluster(&self, frame: &[u8]) -> bool {
        let lobby = &self.probe.payload[CLUSTER];
        frame.len() >= HEADER && frame[CLUSTER] != *lobby
    }

    /// Bytes of this size, at least a frame's header, that no node acts upon; never the same twice.
    pub(super) fn quiet(&mut self, size: usize) -> Bytes {
        self.next_quiet += 1;
        self.quiet[SEQUENCE].copy_from_slice(&self.next_quiet.to_be_bytes());
        let mut frame = self.quiet.to_vec();
        frame.resize(size.max(HEADER), 0);
        frame.into()
    }
}

/// Who sealed a frame, as its header says: the node's key and the process's incarnation.
pub(super) fn process_of(frame: &[u8]) -> Option<([u8; 16], [u8; 16])> {
    let sixteen = |range: std::ops::Range<usize>| frame.get(range)?.try_into().ok();
    Some((sixteen(NODE_KEY)?, sixteen(INCARNATION)?))
}

fn connected() -> Input {
    Input::Connected(Session::first(1))
}

fn said_on(topic: &str, effects: Vec<Effect>) -> Option<Publish> {
    effects.into_iter().find_map(|effect| match effect {
        Effect::Publish(publish) if publish.topic == topic && !publish.retain => Some(publish),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voice() -> Voice {
        let name = |text| Name::new(text).expect("a name");
        Voice::new("raft", name("plant"), name("gw-1"), KeyRing::insecure()).expect("a voice")
    }

    #[test]
    fn a_probe_and_a_hello_come_from_the_node_itself() {
        let voice = voice();
        assert_eq!(voice.probe.topic, "raft/plant/rpc/gw-1/gw-1");
        let hello = voice.hello.expect("whoever joins says hello");
        assert_eq!(hello.topic, "raft/plant/rpc/all/gw-1");
        assert_ne!(voice.probe.payload[NODE_KEY], hello.payload[NODE_KEY]);
    }

    #[test]
    fn our_own_probe_is_nobody_else() {
        let mut voice = voice();
        let probe = voice.probe.payload.clone();
        assert!(!voice.is_taken_by(probe));
        let noise = voice.quiet(500);
        assert!(!voice.is_taken_by(noise));
    }

    #[test]
    fn a_running_node_answers_our_probe_and_passes_over_quiet_frames() {
        let mut voice = voice();
        let name = |text| Name::new(text).expect("a name");
        let config = Config::new(name("gw-1"), NodeKey(7), name("plant"), vec![name("gw-1")]);
        let mut node = Replica::new(config, None, Durable::default(), [3; 32], raft::Time(0))
            .expect("a good prefix");
        let at = raft::Time;
        node.step([connected()], at(0));
        node.step([Input::Tick], at(3_000_000));
        let heard = |payload: Bytes| Input::Received {
            over: Link::FIRST,
            topic: "raft/plant/rpc/gw-1/gw-1".to_owned(),
            payload,
            retained: false,
        };
        let probe = voice.probe.payload.clone();
        let effects = node.step([heard(probe)], at(3_100_000));
        let answers = effects.into_iter().filter_map(|effect| match effect {
            Effect::Publish(publish) if publish.topic == voice.own_topic() => Some(publish),
            _ => None,
        });
        let answers: Vec<Publish> = answers.collect();
        let answer = answers
            .into_iter()
            .find(|answer| voice.is_taken_by(answer.payload.clone()))
            .expect("the name is taken");
        // The answer's header shows who it is; a lobby frame does not show the formed cluster.
        let (key, incarnation) = process_of(&answer.payload).expect("a whole frame");
        assert!(!voice.imitate(&answer.payload, key, incarnation));
        let mut formed = answer.payload.to_vec();
        formed[CLUSTER].fill(9);
        assert!(voice.imitate(&formed, key, incarnation));
    }
}
