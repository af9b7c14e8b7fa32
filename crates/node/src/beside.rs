//! What a node does beside its cluster, for MQTT clients that know nothing of it: the legacy fleet.
//!
//! It sees of the node who leads and little else, and the node sees nothing of it: whatever goes
//! wrong out there, consensus does not hear of it.

use std::time::{Duration, SystemTime};

use mqtt::{Publisher, Qos};
use raft::{Role, Time};
use replica::{ActiveNode, Legacy, LegacyEffect, LegacyEvent, LegacyView, PresenceEvent, Replica};

use crate::clock;
use crate::log::Log;
use crate::status::{LegacyLed, LegacyStatus, Shared};

/// What a node has to do with others than its cluster.
#[derive(Default)]
pub(crate) struct Beside {
    pub(crate) legacy: Option<Legacy>,
    /// Something happened that it has not seen yet.
    stale: bool,
}

impl Beside {
    pub(crate) fn new(legacy: Option<Legacy>) -> Beside {
        Beside {
            legacy,
            stale: false,
        }
    }

    /// What to subscribe to beside the node's own topics.
    pub(crate) fn subscriptions(&self) -> Vec<(String, Qos)> {
        let legacy = self.legacy.iter().flat_map(Legacy::subscriptions);
        legacy.map(|topic| (topic, Qos::AtLeastOnce)).collect()
    }

    pub(crate) fn on_connected(&mut self) {
        self.stale = true;
        if let Some(legacy) = &mut self.legacy {
            legacy.on_connected(clock::now());
        }
    }

    pub(crate) fn on_disconnected(&mut self) {
        if let Some(legacy) = &mut self.legacy {
            legacy.on_disconnected();
        }
    }

    /// Takes a message; false if it is the node's.
    pub(crate) fn on_message(&mut self, message: &mqtt::Incoming) -> bool {
        let mqtt::Incoming {
            topic,
            payload,
            retained,
        } = message;
        let now = clock::now();
        let legacy = self.legacy.as_mut();
        let taken = legacy.is_some_and(|l| l.on_message(topic, payload, *retained, now));
        self.stale |= taken;
        taken
    }

    /// The node is not what it was.
    pub(crate) fn on_node_changed(&mut self) {
        self.stale = true;
    }

    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.legacy.as_ref().and_then(Legacy::next_deadline)
    }

    /// Does what is due. True if who is there, or how the fleet is, has changed.
    pub(crate) fn step(
        &mut self,
        replica: &Replica,
        publisher: &Publisher,
        shared: &Shared,
        log: &Log,
    ) -> bool {
        let now = clock::now();
        let due = self.next_deadline().is_some_and(|at| at <= now);
        if !std::mem::take(&mut self.stale) && !due {
            return false;
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
                LegacyEffect::Publish { topic, payload } => {
                    if let Err(error) = publisher.publish(topic, payload, Qos::AtLeastOnce, false) {
                        shared.count_rejection(format!("not published: {error}"));
                    }
                }
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
