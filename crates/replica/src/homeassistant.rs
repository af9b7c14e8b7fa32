//! The cluster as one device in Home Assistant: MQTT discovery.
//!
//! ```text
//! <prefix>/device/<id>/config   retained: the device, its three entities and where they read; by the leader
//! <prefix>/status               `online` when Home Assistant starts: the device is announced again
//! <root>/health                 retained: what the entities read
//! <root>/nodes/<voter>/status   retained, births and wills: the device is available while one is online
//! ```
//!
//! The leader keeps both up to date, the health also every 30 s, so that it expires where nobody does.
//! Where there is no leader for 10 s, a voter says that instead; the others hear it and stay silent.
//!
//! Whoever empties the device's topic, `mqraft homeassistant remove` or an operator who deletes the
//! device in Home Assistant, is obeyed: every node that hears it publishes nothing of this any more
//! until it is started again. Nothing here is authentic, and nothing of ours rests on it. Pure, as
//! [`crate::Replica`].

use std::time::Duration;

use bytes::Bytes;
use raft::Time;
use serde_json::{Value, json};

use crate::dice::Dice;
use crate::endpoint::Publish;
use crate::keys::{hex, sha256};
use crate::name::Name;
use crate::topic::{OtherPrefixError, Topics, check_other_prefix};

/// How often the health is published although it has not changed.
const REFRESH: Duration = Duration::from_secs(30);

/// After how many seconds without it the entities are unavailable: two may be lost.
const EXPIRE_AFTER: u64 = 90;

/// How often the health is published at most.
const HEALTH_GAP: Duration = Duration::from_secs(1);

/// How often the device is announced at most, and the health put back that somebody else replaced.
const ANNOUNCE_GAP: Duration = Duration::from_secs(5);

/// For how long there has been no leader before that is said: an election takes less.
const LEADERLESS: Duration = Duration::from_secs(10);

/// The voters do not say it all at once.
const LEADERLESS_SPREAD: Duration = Duration::from_secs(2);

/// The longest health that is read.
const MAX_HEALTH: usize = 4_096;

/// What Home Assistant is told of the cluster, by one of its nodes.
pub struct HomeAssistant {
    device: Device,
    /// `<prefix>/status`.
    birth: String,
    dice: Dice,
    connected: bool,
    view: HomeView,
    /// Somebody removed the device.
    withdrawn: bool,
    /// The voters that the device was announced with in this leadership and session.
    announced: Option<Vec<String>>,
    announce_at: Time,
    /// What this node last published as the cluster's health.
    shown: Option<Bytes>,
    health_at: Time,
    refresh_at: Time,
    /// When to say that there is no leader.
    leaderless_at: Option<Time>,
    effects: Vec<Publish>,
}

/// The cluster as the node sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HomeView {
    /// This node has a vote in a formed cluster.
    pub votes: bool,
    /// This node leads.
    pub leads: bool,
    /// Who leads.
    pub leader: Option<Name>,
    /// The newest term.
    pub term: u64,
    /// How many nodes are there.
    pub online: usize,
    /// The voters' names.
    pub voters: Vec<String>,
    /// How many of them are there.
    pub voters_online: usize,
    /// What an operator has to look at.
    pub trouble: Option<String>,
}

/// What removes a cluster from Home Assistant: empty retained messages.
pub struct Withdrawal;

impl Withdrawal {
    /// The messages that remove the cluster of `topics`, announced below `prefix`.
    ///
    /// # Errors
    /// When the prefix cannot stand in a topic.
    pub fn of(prefix: &str, topics: &Topics) -> Result<[Publish; 2], OtherPrefixError> {
        let device = Device::of(prefix, topics, "")?;
        Ok([empty(device.topic), empty(device.health)])
    }
}

/// What does not change.
struct Device {
    /// `<prefix>/device/<id>/config`.
    topic: String,
    id: String,
    topics: Topics,
    /// `<root>/health`.
    health: String,
    version: String,
}

impl HomeAssistant {
    /// The cluster of `topics` as Home Assistant finds it below `prefix`, its discovery prefix.
    /// `version` is the program's; `seed` spreads our nodes in time.
    ///
    /// # Errors
    /// When the prefix cannot stand in a topic.
    pub fn new(
        prefix: &str,
        topics: &Topics,
        version: &str,
        seed: u64,
        now: Time,
    ) -> Result<HomeAssistant, OtherPrefixError> {
        Ok(HomeAssistant {
            device: Device::of(prefix, topics, version)?,
            birth: format!("{prefix}/status"),
            dice: Dice(seed),
            connected: false,
            view: HomeView::default(),
            withdrawn: false,
            announced: None,
            announce_at: now,
            shown: None,
            health_at: now,
            refresh_at: now,
            leaderless_at: None,
            effects: Vec::new(),
        })
    }

    /// The topics to subscribe to, at QoS 1.
    pub fn subscriptions(&self) -> [String; 3] {
        let Device { topic, health, .. } = &self.device;
        [self.birth.clone(), topic.clone(), health.clone()]
    }

    /// A session with the broker is up, which may have lost what it retained.
    pub fn on_connected(&mut self) {
        self.connected = true;
        self.announced = None;
        self.shown = None;
    }

    /// The session is gone.
    pub fn on_disconnected(&mut self) {
        self.connected = false;
    }

    /// Takes a message; false if its topic is none of these.
    pub fn on_message(&mut self, topic: &str, payload: &Bytes, retained: bool, now: Time) -> bool {
        if topic == self.birth {
            if &payload[..] == b"online" {
                self.announced = None;
            }
        } else if topic == self.device.topic {
            if payload.is_empty() && !retained {
                self.withdraw();
            }
        } else if topic == self.device.health {
            self.on_health(payload, now);
        } else {
            return false;
        }
        true
    }

    /// Takes how the cluster is by `now`, and returns what to publish, retained, at QoS 1.
    pub fn step(&mut self, view: HomeView, now: Time) -> Vec<Publish> {
        if view.leads != self.view.leads {
            self.announced = None;
            self.shown = None;
        }
        if view.leader.is_some() || !view.votes {
            self.leaderless_at = None;
        } else if self.leaderless_at.is_none() {
            let spread = self.dice.below(LEADERLESS_SPREAD);
            self.leaderless_at = Some(now + LEADERLESS + spread);
        }
        self.view = view;
        if self.connected && !self.withdrawn {
            match self.view.leads {
                true => self.lead(now),
                false => self.miss_leader(now),
            }
        }
        std::mem::take(&mut self.effects)
    }

    /// When to step if nothing happens before.
    pub fn next_deadline(&self) -> Option<Time> {
        if !self.connected || self.withdrawn {
            return None;
        }
        if !self.view.leads {
            return self.leaderless_at;
        }
        let due = self.announced.as_ref() != Some(&self.view.voters);
        let announce = due.then_some(self.announce_at);
        let changed = self.shown.as_ref() != Some(&health(&self.view));
        let health = if changed {
            self.health_at
        } else {
            self.refresh_at
        };
        announce.into_iter().chain([health]).min()
    }

    /// Whether somebody has removed the device.
    pub fn is_withdrawn(&self) -> bool {
        self.withdrawn
    }

    fn lead(&mut self, now: Time) {
        if self.announced.as_ref() != Some(&self.view.voters) && self.announce_at <= now {
            self.announced = Some(self.view.voters.clone());
            self.announce_at = now + ANNOUNCE_GAP;
            let payload = self.device.announcement(&self.view.voters);
            self.publish(self.device.topic.clone(), payload);
        }
        let health = health(&self.view);
        let changed = self.shown.as_ref() != Some(&health) && self.health_at <= now;
        if changed || self.refresh_at <= now {
            self.show(health, now);
        }
    }

    /// There is no leader, and so nobody else to say it.
    fn miss_leader(&mut self, now: Time) {
        if self.leaderless_at.is_some_and(|at| at <= now) {
            self.leaderless_at = Some(now + REFRESH);
            self.show(health(&self.view), now);
        }
    }

    fn show(&mut self, health: Bytes, now: Time) {
        self.shown = Some(health.clone());
        self.health_at = now + HEALTH_GAP;
        self.refresh_at = now + REFRESH;
        self.publish(self.device.health.clone(), health);
    }

    fn publish(&mut self, topic: String, payload: Bytes) {
        self.effects.push(Publish {
            topic,
            payload,
            retain: true,
        });
    }

    fn on_health(&mut self, payload: &Bytes, now: Time) {
        if payload.len() > MAX_HEALTH {
            return;
        }
        if self.view.leads {
            // What is our own comes back too.
            if self.shown.is_some() && self.shown.as_ref() != Some(payload) {
                self.shown = None;
                self.health_at = self.health_at.max(now + ANNOUNCE_GAP);
            }
            return;
        }
        let said: Value = serde_json::from_slice(payload).unwrap_or_default();
        if said.get("leader").is_some_and(Value::is_null) && self.leaderless_at.is_some() {
            let spread = self.dice.below(LEADERLESS_SPREAD);
            self.leaderless_at = Some(now + REFRESH + spread);
        }
    }

    fn withdraw(&mut self) {
        if !self.withdrawn && self.view.leads {
            self.effects.push(empty(self.device.health.clone()));
        }
        self.withdrawn = true;
    }
}

impl Device {
    fn of(prefix: &str, topics: &Topics, version: &str) -> Result<Device, OtherPrefixError> {
        check_other_prefix(prefix, 3)?;
        let root = topics.root();
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let near: String = root
            .chars()
            .map(|c| if allowed(c) { c } else { '-' })
            .collect();
        // The names that are near are not all different.
        let id = format!("{near}-{}", &hex(&sha256(root.as_bytes()))[..8]);
        Ok(Device {
            topic: format!("{prefix}/device/{id}/config"),
            id,
            topics: topics.clone(),
            health: topics.health(),
            version: version.to_owned(),
        })
    }

    /// What Home Assistant makes a device of.
    fn announcement(&self, voters: &[String]) -> Bytes {
        let Device {
            id,
            topics,
            health,
            version,
            ..
        } = self;
        let (_, cluster) = topics.root().rsplit_once('/').unwrap_or_default();
        let names = voters.iter().filter_map(|voter| Name::new(voter).ok());
        let availability = names.map(|voter| {
            json!({
                "topic": topics.status(&voter),
                "value_template": "{{ value_json.state }}",
                "payload_available": "online",
                "payload_not_available": "offline",
            })
        });
        let entity = |key: &str, platform: &str, name: &str, template: &str| {
            json!({
                "platform": platform,
                "unique_id": format!("{id}-{key}"),
                "name": name,
                "state_topic": health,
                "value_template": template,
                "expire_after": EXPIRE_AFTER,
            })
        };
        let mut leader = entity(
            "leader",
            "sensor",
            "Leader",
            "{{ value_json.leader or 'none' }}",
        );
        leader["icon"] = "mdi:crown".into();
        leader["json_attributes_topic"] = topics.leader().into();
        let mut members = entity("members", "sensor", "Members", "{{ value_json.online }}");
        members["icon"] = "mdi:server-network".into();
        members["state_class"] = "measurement".into();
        let mut problem = entity(
            "health",
            "binary_sensor",
            "Health",
            "{{ 'ON' if value_json.problem else 'OFF' }}",
        );
        problem["device_class"] = "problem".into();
        problem["json_attributes_topic"] = health.as_str().into();
        let device = json!({
            "device": {
                "identifiers": [id],
                "name": cluster,
                "manufacturer": "raft-over-mqtt",
                "model": "Cluster",
                "sw_version": version,
            },
            "origin": { "name": "raft-over-mqtt", "sw_version": version },
            "availability": availability.collect::<Value>(),
            "availability_mode": "any",
            "components": { "leader": leader, "members": members, "health": problem },
        });
        device.to_string().into_bytes().into()
    }
}

/// The cluster's health as the entities read it.
fn health(view: &HomeView) -> Bytes {
    let leader = view.leader.as_ref().map(Name::as_str);
    let missing = view.voters.len().saturating_sub(view.voters_online);
    let trouble = match (&view.trouble, leader) {
        (trouble, Some(_)) => trouble.clone(),
        (Some(trouble), None) => Some(format!("no leader; also, {trouble}")),
        (None, None) => Some("no leader".to_owned()),
    };
    let health = json!({
        "v": 1,
        "leader": leader,
        "term": view.term,
        "online": view.online,
        "voters": view.voters.len(),
        "voters_online": view.voters_online,
        "problem": missing > 0 || trouble.is_some(),
        "trouble": trouble,
    });
    health.to_string().into_bytes().into()
}

fn empty(topic: String) -> Publish {
    Publish {
        topic,
        payload: Bytes::new(),
        retain: true,
    }
}
