//! What a node does beside its cluster, for MQTT clients that know nothing of it: the legacy fleet and
//! Home Assistant.
//!
//! It sees of the node who leads and little else, and the node sees nothing of it: whatever goes
//! wrong out there, consensus does not hear of it.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use mqtt::Qos;
use raft::{Role, Time};
use replica::{
    ActiveNode, HomeAssistant, HomeView, Legacy, LegacyEffect, LegacyEvent, LegacyView,
    PresenceEvent, Publish, Replica,
};

use crate::clock;
use crate::links::Links;
use crate::log::Log;
use crate::status::{LegacyLed, LegacyStatus, Shared};

/// How often it is looked who is there, at most: observers come and go by the thousand.
const LOOK_GAP: Duration = Duration::from_millis(500);

/// What a node has to do with others than its cluster.
#[derive(Default)]
pub(crate) struct Beside {
    legacy: Option<Legacy>,
    home: Option<HomeAssistant>,
    /// Something happened that it has not seen yet.
    stale: bool,
    /// Who is there has changed since it looked.
    look: bool,
    looked_at: Time,
    told_withdrawn: bool,
}

impl Beside {
    pub(crate) fn new(legacy: Option<Legacy>, home: Option<HomeAssistant>) -> Beside {
        Beside {
            legacy,
            home,
            ..Beside::default()
        }
    }

    /// What to subscribe to beside the node's own topics.
    pub(crate) fn subscriptions(&self) -> Vec<(String, Qos)> {
        let legacy = self.legacy.iter().flat_map(Legacy::subscriptions);
        let home = self.home.iter().flat_map(HomeAssistant::subscriptions);
        let topics = legacy.chain(home);
        topics.map(|topic| (topic, Qos::AtLeastOnce)).collect()
    }

    pub(crate) fn on_connected(&mut self) {
        self.stale = true;
        if let Some(legacy) = &mut self.legacy {
            legacy.on_connected(clock::now());
        }
        if let Some(home) = &mut self.home {
            home.on_connected();
        }
    }

    pub(crate) fn on_disconnected(&mut self) {
        if let Some(legacy) = &mut self.legacy {
            legacy.on_disconnected();
        }
        if let Some(home) = &mut self.home {
            home.on_disconnected();
        }
    }

    /// Takes a message; false if it is the node's.
    pub(crate) fn on_message(&mut self, message: &mqtt::Incoming) -> bool {
        let mqtt::Incoming {
            topic,
            payload,
            retained,
            properties: _,
        } = message;
        let now = clock::now();
        let legacy = self.legacy.as_mut();
        let home = self.home.as_mut();
        let taken = legacy.is_some_and(|l| l.on_message(topic, payload, *retained, now))
            || home.is_some_and(|h| h.on_message(topic, payload, *retained, now));
        self.stale |= taken;
        taken
    }

    /// The node is not what it was.
    pub(crate) fn on_node_changed(&mut self) {
        self.stale = true;
    }

    /// Somebody came, changed or went.
    pub(crate) fn on_presence(&mut self) {
        self.look = self.home.is_some();
    }

    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let legacy = self.legacy.as_ref().and_then(Legacy::next_deadline);
        let home = self.home.as_ref().and_then(HomeAssistant::next_deadline);
        let look = self.look.then(|| self.looked_at + LOOK_GAP);
        [legacy, home, look].into_iter().flatten().min()
    }

    /// Does what is due. True if who is there, or how the fleet is, has changed.
    pub(crate) fn step(
        &mut self,
        replica: &Replica,
        links: &Links,
        shared: &Shared,
        log: &Log,
    ) -> bool {
        let now = clock::now();
        let due = self.next_deadline().is_some_and(|at| at <= now);
        if !std::mem::take(&mut self.stale) && !due {
            return false;
        }
        let publish = |topic: String, payload: Bytes, retain: bool| {
            if let Err(error) = links.publish(topic, &payload, Qos::AtLeastOnce, retain) {
                shared.count_rejection(format!("not published: {error}"));
            }
        };
        if let Some(home) = &mut self.home {
            (self.look, self.looked_at) = (false, now);
            for Publish {
                topic,
                payload,
                retain,
            } in home.step(home_view(replica), now)
            {
                publish(topic, payload, retain);
            }
            if home.is_withdrawn() && !std::mem::replace(&mut self.told_withdrawn, true) {
                log.info("the device was removed from Home Assistant: it is not announced again before this node is started anew");
            }
        }
        let Some(legacy) = &mut self.legacy else {
            return false;
        };
        let view = LegacyView {
            formed: replica.role().is_some(),
            leader: replica.leader(),
            leads: replica.role() == Some(Role::Leader),
        };
        for effect in legacy.step(view, now) {
            match effect {
                LegacyEffect::Publish { topic, payload } => publish(topic, payload, false),
                LegacyEffect::Event(event) => tell(event, shared, log),
            }
        }
        true
    }

    /// The fleet's nodes that are there.
    pub(crate) fn active_nodes(&self) -> impl Iterator<Item = ActiveNode> {
        self.legacy.iter().flat_map(Legacy::active_nodes)
    }

    pub(crate) fn legacy_status(&self, shown: Option<&LegacyStatus>) -> Option<LegacyStatus> {
        let legacy = self.legacy.as_ref()?;
        let leader = legacy.leader().map(|led| LegacyLed {
            node: led.node.clone(),
            heard_at: wall_clock(led.heard_at, shown),
        });
        Some(LegacyStatus {
            nodes: legacy.nodes().len(),
            follows: !legacy.is_unruly(),
            leader,
        })
    }
}

/// The cluster as Home Assistant is told of it.
fn home_view(replica: &Replica) -> HomeView {
    let status = replica.status();
    let nodes = replica.active_nodes();
    let there = |voter: &&String| {
        nodes
            .iter()
            .any(|node| node.name.as_str() == voter.as_str())
    };
    let voters_online = status.voters.iter().filter(there).count();
    HomeView {
        votes: status.voters.contains(&status.node),
        leads: replica.role() == Some(Role::Leader),
        leader: replica.leader(),
        term: status.term,
        online: nodes.len(),
        voters_online,
        voters: status.voters,
        trouble: status.trouble,
    }
}

/// What the wall clock showed then, to the second; what was shown for about that time stays.
fn wall_clock(at: Time, shown: Option<&LegacyStatus>) -> SystemTime {
    let ago = clock::now().since(at);
    let then = SystemTime::now()
        .checked_sub(ago)
        .unwrap_or(SystemTime::UNIX_EPOCH);
    let since = then
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs());
    let near = |shown: &SystemTime| {
        let apart = then
            .duration_since(*shown)
            .or_else(|_| shown.duration_since(then));
        apart.is_ok_and(|apart| apart <= Duration::from_secs(1))
    };
    let shown = shown.and_then(|status| status.leader.as_ref());
    shown.map(|led| led.heard_at).filter(near).unwrap_or(then)
}

fn tell(event: LegacyEvent, shared: &Shared, log: &Log) {
    match event {
        LegacyEvent::Presence(change) => {
            match &change {
                PresenceEvent::Arrived(node) => tracing::debug!("legacy node {} is there", node.name),
                PresenceEvent::Departed(node) => tracing::debug!("legacy node {} is gone", node.name),
                PresenceEvent::Changed(_) => {}
            }
            // Without anyone listening there is no one to tell.
            let _ = shared.presence.send(change);
        }
        LegacyEvent::Led(node) => log.warn(&format!(
            "the legacy node {node:?} leads its fleet: it did not hear this cluster for 8 s; it is told to follow"
        )),
        LegacyEvent::Stood(node) => log.info(&format!(
            "the legacy node {node:?} asks its fleet for votes; it is told to follow"
        )),
        LegacyEvent::Follows => log.info("the legacy fleet follows"),
        LegacyEvent::AbsurdTerm => log.warn(
            "a legacy term that nobody can have counted to: somebody made it up; the fleet is kept without one from now on",
        ),
        LegacyEvent::Rival(cluster) => log.warn(&format!(
            "the cluster {cluster} keeps the same legacy fleet: give the legacy prefix to one cluster only"
        )),
    }
}
