//! Frames that are no frames, or not fresh, and statuses that are none: tried on nodes directly,
//! where they must change nothing.

use bytes::Bytes;
use raft::{HardState, Index, Lease, NodeKey, Role};
use replica::{
    Client, ClientEffect, ClientInput, ClusterKey, Effect, Input, KeyRing, Name, Publish,
};

use crate::broker::Recorded;
use crate::faults::Fault;
use crate::node::Process;
use crate::world::World;

/// What of a node an intruder must not change.
#[derive(Debug, PartialEq)]
struct Fingerprint {
    role: Option<Role>,
    hard_state: Option<HardState>,
    leader: Option<Name>,
    commit: Option<Index>,
    last: Option<Index>,
    applied: Index,
    digest: u32,
    lease: Option<Lease>,
    active: Vec<(Name, NodeKey, String, u64)>,
}

impl World {
    fn fingerprint(&self, host: usize) -> Option<Fingerprint> {
        let replica = self.hosts[host].replica()?;
        let raft = replica.raft();
        let active = replica.active_nodes().into_iter();
        Some(Fingerprint {
            role: replica.role(),
            hard_state: raft.map(raft::Raft::hard_state),
            leader: replica.leader(),
            commit: raft.map(raft::Raft::commit_index),
            last: raft.map(raft::Raft::last_index),
            applied: replica.store().applied(),
            digest: replica.store().digest(),
            lease: replica.lease(),
            active: active
                .map(|node| (node.name, node.key, node.role, node.term))
                .collect(),
        })
    }

    /// Shows a message to a node and checks that nothing follows, at most an answer where
    /// `may_answer`. False if the node takes nothing at all.
    fn intrude(&mut self, host: usize, topic: &str, payload: &Bytes, may_answer: bool) -> bool {
        let inputs = std::mem::take(&mut self.hosts[host].inbox);
        self.step(host, inputs);
        if self.hosts[host].process.is_none() || self.hosts[host].paused {
            return false;
        }
        let now = self.hosts[host].clock.read(self.now);
        let Some(Process::Node(replica, _)) = &mut self.hosts[host].process else {
            return false;
        };
        // What is due by now is done first, so that the intruder is not blamed for it.
        let mut due = replica.step([Input::Tick], now);
        let before = self.fingerprint(host);
        let Some(Process::Node(replica, _)) = &mut self.hosts[host].process else {
            return false;
        };
        let input = Input::Received {
            over: replica::Link::FIRST,
            topic: topic.to_owned(),
            payload: payload.clone(),
            retained: false,
        };
        let effects = replica.step([input], now);
        let after = self.fingerprint(host);
        assert_eq!(before, after, "{topic}: an intruder had an effect");
        for effect in &effects {
            let harmless = match effect {
                Effect::Event(replica::Event::Refused { .. }) => true,
                // A status of ours that was replaced is put back.
                Effect::Publish(publish) | Effect::PublishOver(_, publish) if publish.retain => {
                    publish.topic == topic
                }
                Effect::Publish(_) | Effect::PublishOver(..) => may_answer,
                Effect::Event(_)
                | Effect::Persist(_)
                | Effect::SaveFormation(_)
                | Effect::Done { .. }
                | Effect::Watched { .. } => false,
            };
            assert!(harmless, "{topic}: an intruder caused {effect:?}");
        }
        due.extend(effects);
        self.carry_out_all(host, due);
        true
    }

    fn frames(&self) -> Vec<Recorded> {
        let frames = self.brokers.recorded.iter();
        let frames = frames.filter(|r| r.publish.topic.contains("/rpc/"));
        frames.cloned().collect()
    }

    /// Plays a frame back: a dead sender's to a node that started later, or a second time.
    pub(crate) fn replay(&mut self, node: usize) -> Option<bool> {
        let frames = self.frames();
        let recorded = self.rng.pick(&frames).cloned()?;
        let Publish { topic, payload, .. } = recorded.publish;
        let sender = &self.hosts[recorded.from];
        let died_before = sender.life != recorded.life
            && sender
                .died_at
                .is_some_and(|at| at < self.hosts[node].started_at);
        self.trace(node, || {
            format!("an old frame of {} again", self.hosts[recorded.from].name)
        });
        if !died_before {
            // It may be the first copy that comes through.
            let input = Input::Received {
                over: replica::Link::FIRST,
                topic: topic.clone(),
                payload: payload.clone(),
                retained: false,
            };
            self.step(node, vec![input]);
            if self.hosts[node].process.is_none() {
                return Some(true);
            }
        }
        Some(self.intrude(node, &topic, &payload, true))
    }

    /// Plays an old birth or will back, to all.
    pub(crate) fn replay_status(&mut self) -> Option<bool> {
        let births = self.brokers.recorded.iter().filter(|r| r.publish.retain);
        let births: Vec<Publish> = births.map(|r| r.publish.clone()).collect();
        let publish = self.rng.pick(&births).cloned()?;
        let broker = self.draw_broker();
        self.route(broker, &publish);
        Some(true)
    }

    pub(crate) fn mangle(&mut self, node: usize, fault: Fault) -> Option<bool> {
        let frames = self.frames();
        let recorded = self.rng.pick(&frames).cloned()?;
        let mut payload = recorded.publish.payload.to_vec();
        match fault {
            Fault::Truncate => payload.truncate(self.rng.below(payload.len() as u64) as usize),
            Fault::Oversize => payload.resize(replica::MAX_FRAME + 1, 0),
            _ => {
                let at = self.rng.below(payload.len() as u64) as usize;
                payload[at] ^= 1 << self.rng.below(8);
            }
        }
        Some(self.intrude(node, &recorded.publish.topic, &payload.into(), false))
    }

    pub(crate) fn garbage(&mut self, node: usize) -> bool {
        let length = self.rng.below(300);
        let payload: Vec<u8> = (0..length).map(|_| self.rng.next() as u8).collect();
        let mut payload = payload;
        if let (Some(version), true) = (payload.first_mut(), self.rng.chance(0.5)) {
            *version = replica::VERSION;
        }
        let name = self.hosts[node].name.clone();
        let topics = [
            format!("raft/{}/rpc/all/n1", self.plan.profile.cluster()),
            format!("raft/{}/rpc/{name}/n1", self.plan.profile.cluster()),
            format!("raft/{}/nodes/n1/status", self.plan.profile.cluster()),
            "raft".to_owned(),
        ];
        let topic = self.rng.pick(&topics).expect("four").clone();
        !payload.is_empty() && self.intrude(node, &topic, &payload.into(), false)
    }

    /// What an outsider says: the first question of a client.
    fn outsider(&mut self, cluster: &Name, ring: KeyRing) -> Publish {
        let now = self.hosts[0].clock.read(self.now);
        let seed = self.rng.bytes();
        let client = Client::new("raft", cluster, ring, seed, now);
        let effects = client
            .expect("a good prefix")
            .step([ClientInput::Connected], now);
        let publish = effects.into_iter().find_map(|effect| match effect {
            ClientEffect::Publish(publish) => Some(publish),
            ClientEffect::Done { .. } | ClientEffect::Watched { .. } | ClientEffect::Event(_) => {
                None
            }
        });
        publish.expect("a client asks who is there")
    }

    pub(crate) fn foreign(&mut self, node: usize) -> bool {
        let cluster = Name::new("elsewhere").expect("a name");
        let publish = self.outsider(&cluster, self.ring.clone());
        let topic = publish
            .topic
            .replace("elsewhere", self.plan.profile.cluster().as_str());
        // Sealed with our key under another cluster's id: its sender is asked who it is.
        self.intrude(node, &topic, &publish.payload, true)
    }

    pub(crate) fn forge(&mut self, node: usize) -> bool {
        let ring = KeyRing::of(ClusterKey::from_bytes(self.rng.bytes()));
        let cluster = self.plan.profile.cluster();
        let publish = self.outsider(&cluster, ring);
        self.intrude(node, &publish.topic, &publish.payload, false)
    }

    /// Something that is no status stands where a status should.
    pub(crate) fn wrong_status(&mut self, node: usize, fault: Fault) {
        let name = self.hosts[node].name.clone();
        let texts = [
            "{}".to_owned(),
            "offline".to_owned(),
            format!(r#"{{"v":1,"state":"offline","node":"{name}"}}"#),
            format!(
                r#"{{"v":1,"state":"online","node":"{name}","key":"00","incarnation":"00","epoch":1,"session":"0","tag":"00"}}"#
            ),
        ];
        let text = match fault {
            Fault::ClearStatus => String::new(),
            _ => self.rng.pick(&texts).expect("four").clone(),
        };
        let publish = Publish {
            topic: format!("raft/{}/nodes/{name}/status", self.plan.profile.cluster()),
            payload: text.into_bytes().into(),
            retain: true,
        };
        let broker = self.draw_broker();
        self.route(broker, &publish);
    }
}
