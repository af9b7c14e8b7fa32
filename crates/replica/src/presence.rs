//! Who is there: births and wills, taken as claims and checked.
//!
//! Each node keeps a retained status on the broker and leaves a will that replaces it. Both are
//! only hints: a retained birth outlives its node when the broker dies with it, and a will of an
//! old session can arrive after the birth of a new one. So
//!
//! - every status names the process and the session (`incarnation`, `epoch`) it speaks of, and
//!   carries a tag under the cluster key, of this prefix and cluster; one that does not verify is
//!   counted, never believed;
//! - an "offline" ends only the session that it names;
//! - a tag shows who said it, not when: whoever is born without having proved that it lives (see
//!   `peers.rs`), and every node after a reconnect of ours, is asked to; who stays silent three
//!   times is gone, until it answers a later question. A birth just published counts meanwhile, one that the broker kept does not;
//! - a birth of another process never takes the place of one that is there before it is proved
//!   or the other has ended.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use raft::{NodeKey, SessionId, Time};
use serde::{Deserialize, Serialize};

use crate::endpoint::Refused;
use crate::keys::{Incarnation, KeyRing, hex, hex_decode, sha256};
use crate::name::{Metric, Name};

/// How many nodes are tracked.
pub const MAX_NODES: usize = 65_536;

/// How often a node in doubt is asked.
const CHECKS: u32 = 3;

/// How long it has to answer.
const CHECK_INTERVAL: Duration = Duration::from_millis(1_000);

/// Who did not answer is gone, but its status may stand there still and it may only have been
/// out of reach: it is asked again, ever less often, at most at this interval,
const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// and forgotten after so many.
const MAX_CHECKS: u32 = 24;

/// How often it is looked for nodes to ask, at most.
const CHECK_GAP: Duration = Duration::from_millis(50);

/// A status is a few hundred bytes.
const MAX_STATUS: usize = 2_048;

/// One node that is there.
#[derive(Clone, Debug, PartialEq)]
pub struct ActiveNode {
    /// Its name.
    pub name: Name,
    /// Its key.
    pub key: NodeKey,
    /// Its role as it last said, as `status` JSON spells it.
    pub role: String,
    /// Its term as it last said.
    pub term: u64,
    /// Its metric.
    pub metric: Metric,
}

/// A change of presence.
#[derive(Clone, Debug, PartialEq)]
pub enum PresenceEvent {
    /// A node is there.
    Arrived(ActiveNode),
    /// A node changed its role or metric.
    Changed(ActiveNode),
    /// A node is gone.
    Departed(ActiveNode),
}

impl PresenceEvent {
    /// Whose presence changed.
    pub fn node(&self) -> &ActiveNode {
        match self {
            PresenceEvent::Arrived(node)
            | PresenceEvent::Changed(node)
            | PresenceEvent::Departed(node) => node,
        }
    }
}

/// A node's status as it stands on the broker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    v: u32,
    state: State,
    node: String,
    key: String,
    incarnation: String,
    /// Which connection of the process.
    epoch: u64,
    /// The connection as wills and births name it: derived from process and epoch.
    session: String,
    #[serde(default)]
    role: String,
    #[serde(default)]
    term: u64,
    #[serde(default)]
    metric: f64,
    tag: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Online,
    Offline,
}

/// What a status says of its node beside being there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Condition {
    pub(crate) role: &'static str,
    pub(crate) term: u64,
    pub(crate) metric: Metric,
}

/// The session that connection `epoch` of a process is.
pub fn session_id(incarnation: Incarnation, epoch: u64) -> SessionId {
    let mut bytes = [0; 24];
    bytes[..16].copy_from_slice(&incarnation.0);
    bytes[16..].copy_from_slice(&epoch.to_be_bytes());
    SessionId(u64::from_be_bytes(
        sha256(&bytes)[..8].try_into().expect("eight of 32 bytes"),
    ))
}

/// Who a status speaks of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Speaker<'a> {
    /// The cluster's topics begin with this.
    pub(crate) root: &'a str,
    pub(crate) name: &'a Name,
    pub(crate) key: NodeKey,
    pub(crate) incarnation: Incarnation,
    pub(crate) epoch: u64,
}

impl Status {
    /// The birth, or the news, of a node.
    pub(crate) fn online(ring: &KeyRing, speaker: Speaker<'_>, condition: &Condition) -> Bytes {
        Status::sign(ring, speaker, State::Online, condition)
    }

    /// The will, or the farewell, of a node.
    pub(crate) fn offline(ring: &KeyRing, speaker: Speaker<'_>) -> Bytes {
        let condition = Condition {
            role: "",
            term: 0,
            metric: Metric::default(),
        };
        Status::sign(ring, speaker, State::Offline, &condition)
    }

    fn sign(ring: &KeyRing, speaker: Speaker<'_>, state: State, condition: &Condition) -> Bytes {
        let Speaker {
            root,
            name,
            key,
            incarnation,
            epoch,
        } = speaker;
        let mut status = Status {
            v: 1,
            state,
            node: name.to_string(),
            key: hex(&key.to_bytes()),
            incarnation: incarnation.to_string(),
            epoch,
            session: format!("{:016x}", session_id(incarnation, epoch).0),
            role: condition.role.to_owned(),
            term: condition.term,
            metric: condition.metric.value(),
            tag: String::new(),
        };
        status.tag = ring.tag(&status.tagged(root));
        serde_json::to_vec(&status)
            .expect("a status is plain data")
            .into()
    }

    /// What the tag covers: the cluster and every field, between bytes that none of them holds.
    fn tagged(&self, root: &str) -> Vec<u8> {
        let Status {
            v,
            state,
            node,
            key,
            incarnation,
            epoch,
            session,
            role,
            term,
            metric,
            ..
        } = self;
        let metric = metric.to_bits();
        format!(
            "{root}\n{v}\n{state:?}\n{node}\n{key}\n{incarnation}\n{epoch}\n{session}\n{role}\n\
             {term}\n{metric}"
        )
        .into_bytes()
    }

    /// Reads a status from the topic of `node` below `root`.
    pub(crate) fn parse(
        ring: &KeyRing,
        root: &str,
        node: &Name,
        payload: &[u8],
    ) -> Result<Claim, Refused> {
        if payload.len() > MAX_STATUS {
            return Err(Refused::Status);
        }
        let status: Status = serde_json::from_slice(payload).map_err(|_| Refused::Status)?;
        if status.v != 1 || status.node != node.as_str() {
            return Err(Refused::Status);
        }
        if !ring.verify(&status.tagged(root), &status.tag) {
            return Err(Refused::Tag);
        }
        let sixteen = |digits: &str| -> Option<[u8; 16]> { hex_decode(digits)?.try_into().ok() };
        let key = sixteen(&status.key).ok_or(Refused::Status)?;
        let incarnation = Incarnation(sixteen(&status.incarnation).ok_or(Refused::Status)?);
        Ok(Claim {
            online: status.state == State::Online,
            incarnation,
            epoch: status.epoch,
            node: ActiveNode {
                name: node.clone(),
                key: NodeKey::from_bytes(key),
                role: status.role,
                term: status.term,
                metric: Metric::new(status.metric).map_err(|_| Refused::Status)?,
            },
        })
    }
}

/// A status whose tag verified.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    online: bool,
    incarnation: Incarnation,
    epoch: u64,
    pub(crate) node: ActiveNode,
}

impl Claim {
    pub(crate) fn is_online(&self) -> bool {
        self.online
    }

    /// Whose process it speaks of.
    pub(crate) fn process(&self) -> (NodeKey, Incarnation) {
        (self.node.key, self.incarnation)
    }

    fn is_of_process(&self, other: &Claim) -> bool {
        self.process() == other.process()
    }

    /// Whether `other` is an older word of the same process.
    fn is_newer_than(&self, other: &Claim) -> bool {
        let order = |claim: &Claim| (claim.epoch, claim.node.term);
        self.is_of_process(other) && order(other) < order(self)
    }

    /// Whether this end is the end of `claim`, rather than of an older session.
    fn ends(&self, claim: &Claim) -> bool {
        self.is_of_process(claim) && claim.epoch <= self.epoch
    }
}

/// Everyone that claims to be there.
#[derive(Default)]
pub(crate) struct Presence {
    nodes: BTreeMap<Name, Tracked>,
    events: Vec<PresenceEvent>,
    /// No check is due before this.
    check_at: Option<Time>,
}

struct Tracked {
    claim: Claim,
    /// Counted as there.
    active: bool,
    check: Option<Check>,
    /// A birth of another process, unproved, while this one is there.
    rival: Option<Claim>,
}

struct Check {
    asked: u32,
    at: Time,
}

/// What a status means to the node that reads it.
#[derive(Debug, PartialEq)]
pub(crate) enum Meaning {
    /// Nothing beyond presence.
    Noted,
    /// Someone declares us offline, or an old status of ours stands on the broker.
    OursIsWrong,
    /// This session ended, or so its will says.
    SessionEnded(SessionId),
}

impl Presence {
    /// Everyone that is there, by name, without ourselves.
    pub(crate) fn active(&self) -> impl Iterator<Item = &ActiveNode> + Clone {
        self.nodes
            .values()
            .filter(|tracked| tracked.active)
            .map(|tracked| &tracked.claim.node)
    }

    pub(crate) fn get<N>(&self, name: &N) -> Option<&ActiveNode>
    where
        N: Ord + ?Sized,
        Name: Borrow<N>,
    {
        self.nodes
            .get(name)
            .filter(|tracked| tracked.active)
            .map(|tracked| &tracked.claim.node)
    }

    pub(crate) fn take_events(&mut self) -> Vec<PresenceEvent> {
        std::mem::take(&mut self.events)
    }

    /// Takes a claim that arrived from the topic of a node. `is_admitted` tells whether a
    /// process is known to live.
    pub(crate) fn on_claim(
        &mut self,
        me: Speaker<'_>,
        claim: Claim,
        retained: bool,
        is_admitted: impl Fn(NodeKey, Incarnation) -> bool,
        now: Time,
    ) -> Meaning {
        if claim.node.name == *me.name {
            // What the broker kept from before is replaced by our birth anyway.
            let ours = claim.incarnation == me.incarnation && claim.epoch == me.epoch;
            let stands = claim.online && (ours || retained);
            return if stands {
                Meaning::Noted
            } else {
                Meaning::OursIsWrong
            };
        }
        if claim.online {
            let proved = is_admitted(claim.node.key, claim.incarnation);
            self.on_birth(claim, retained, proved, now);
            return Meaning::Noted;
        }
        let session = session_id(claim.incarnation, claim.epoch);
        self.on_end(&claim, now);
        Meaning::SessionEnded(session)
    }

    fn on_birth(&mut self, claim: Claim, retained: bool, proved: bool, now: Time) {
        let name = claim.node.name.clone();
        let has_room = self.nodes.len() < MAX_NODES;
        match self.nodes.get_mut(&name) {
            Some(known) if known.claim.is_newer_than(&claim) => return,
            Some(known) if known.active && !proved && !known.claim.is_of_process(&claim) => {
                known.rival = Some(claim);
                return self.ask(&name, now);
            }
            Some(_) => self.replace(&name, claim),
            None if has_room => {
                let tracked = Tracked {
                    claim,
                    active: false,
                    check: None,
                    rival: None,
                };
                self.nodes.insert(name.clone(), tracked);
            }
            None => return,
        }
        match (retained, proved) {
            // Whoever proved once that it lived may have died with the broker that kept this.
            (true, _) => self.ask(&name, now),
            (false, true) => self.confirm(&name),
            (false, false) => self.arrive(&name, now),
        }
    }

    /// Takes a newer claim of a known node.
    fn replace(&mut self, name: &Name, claim: Claim) {
        let Some(known) = self.nodes.get_mut(name) else {
            return;
        };
        let changed = known.active && known.claim.node != claim.node;
        known.claim = claim;
        if changed {
            let node = known.claim.node.clone();
            self.events.push(PresenceEvent::Changed(node));
        }
    }

    /// A session ended: its node is gone, unless a newer session has been born.
    fn on_end(&mut self, end: &Claim, now: Time) {
        let name = &end.node.name;
        let Some(known) = self.nodes.get_mut(name) else {
            return;
        };
        known.rival.take_if(|rival| end.ends(rival));
        if !end.ends(&known.claim) {
            return;
        }
        match known.rival.take() {
            None => self.remove(name),
            Some(rival) => {
                self.replace(name, rival);
                self.ask(name, now);
            }
        }
    }

    /// A node was born just now; that it lives is still to be proved, unless it is known.
    fn arrive(&mut self, name: &Name, now: Time) {
        let known = self.nodes.get(name).is_some_and(|tracked| tracked.active);
        if !known {
            self.confirm(name);
            self.ask(name, now + CHECK_INTERVAL);
        }
    }

    /// Something was said of a node that is not to be believed: if it is there, it can answer.
    pub(crate) fn doubt(&mut self, name: &Name, now: Time) {
        if self.nodes.get(name).is_some_and(|tracked| tracked.active) {
            self.ask(name, now);
        }
    }

    /// Asks a node to prove that it lives, from `at` on, unless it is being asked.
    fn ask(&mut self, name: &Name, at: Time) {
        let Some(tracked) = self.nodes.get_mut(name) else {
            return;
        };
        let check = tracked.check.get_or_insert(Check { asked: 0, at });
        let at = check.at;
        self.check_at = Some(self.check_at.map_or(at, |first| first.min(at)));
    }

    fn confirm(&mut self, name: &Name) {
        let Some(tracked) = self.nodes.get_mut(name) else {
            return;
        };
        tracked.check = None;
        if !std::mem::replace(&mut tracked.active, true) {
            self.events
                .push(PresenceEvent::Arrived(tracked.claim.node.clone()));
        }
    }

    fn remove(&mut self, name: &Name) {
        if let Some(tracked) = self.nodes.remove(name).filter(|tracked| tracked.active) {
            self.events
                .push(PresenceEvent::Departed(tracked.claim.node));
        }
    }

    /// The process of that name has proved that it lives.
    pub(crate) fn on_admitted(&mut self, name: &Name, key: NodeKey, incarnation: Incarnation) {
        let proved = |claim: &Claim| (claim.node.key, claim.incarnation) == (key, incarnation);
        let Some(tracked) = self.nodes.get_mut(name) else {
            return;
        };
        if let Some(rival) = tracked.rival.take_if(|rival| proved(rival)) {
            self.replace(name, rival);
            self.confirm(name);
        } else if proved(&tracked.claim) {
            self.confirm(name);
        }
    }

    /// Something fresh was heard of this process: no need to ask it.
    pub(crate) fn on_heard(&mut self, name: &Name, key: NodeKey, incarnation: Incarnation) {
        let tracked = self.nodes.get(name);
        let asked = tracked.is_some_and(|t| {
            t.check.is_some() && (t.claim.node.key, t.claim.incarnation) == (key, incarnation)
        });
        if asked {
            self.confirm(name);
        }
    }

    /// We were cut off: nobody's end would have reached us, so everyone is asked after a while.
    pub(crate) fn on_reconnected(&mut self, now: Time) {
        for tracked in self.nodes.values_mut() {
            tracked.check = Some(Check {
                asked: 0,
                at: now + CHECK_INTERVAL,
            });
        }
        self.schedule_check();
    }

    /// Whom to ask now; those who did not answer are given up.
    pub(crate) fn due(&mut self, now: Time) -> Vec<Name> {
        let mut ask = Vec::new();
        if self.check_at.is_none_or(|at| now < at) {
            return ask;
        }
        let mut silent = Vec::new();
        for (name, tracked) in &mut self.nodes {
            let Some(check) = tracked.check.as_mut().filter(|check| now >= check.at) else {
                continue;
            };
            if check.asked == CHECKS && std::mem::take(&mut tracked.active) {
                let node = tracked.claim.node.clone();
                self.events.push(PresenceEvent::Departed(node));
                // Whoever claims its place may be slow to prove that it lives: it is asked anew.
                if let Some(rival) = tracked.rival.take() {
                    tracked.claim = rival;
                    check.asked = 0;
                }
            }
            if check.asked >= MAX_CHECKS {
                silent.push(name.clone());
                continue;
            }
            let wait =
                CHECK_INTERVAL.saturating_mul(1 << check.asked.saturating_sub(CHECKS).min(8));
            check.asked += 1;
            check.at = now + wait.min(MAX_CHECK_INTERVAL);
            ask.push(name.clone());
        }
        silent.iter().for_each(|name| self.remove(name));
        self.schedule_check();
        // Looking through everyone costs more the more there are: not for each of them alone.
        self.check_at = self.check_at.map(|at| at.max(now + CHECK_GAP));
        ask
    }

    fn schedule_check(&mut self) {
        let checks = self
            .nodes
            .values()
            .filter_map(|tracked| tracked.check.as_ref());
        self.check_at = checks.map(|check| check.at).min();
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.check_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).expect("a name")
    }

    /// Fuzzing, `frames`: a JSON reader that rounds its last digit changes what the tag covers, and
    /// a node with such a metric was refused by all others, and by itself.
    #[test]
    fn a_status_with_any_metric_is_read_as_it_was_signed() {
        let (name, ring) = (name("b"), KeyRing::insecure());
        let speaker = Speaker {
            root: "raft/plant",
            name: &name,
            key: NodeKey(2),
            incarnation: Incarnation([2; 16]),
            epoch: 1,
        };
        let drawn = (1..10_000u64).map(|n| f64::from_bits(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        for metric in drawn.chain([1.0 / 3.0, 1e23, f64::MIN_POSITIVE, f64::MAX, -0.0]) {
            let Ok(metric) = Metric::new(metric) else {
                continue;
            };
            let condition = Condition {
                role: "follower",
                term: 1,
                metric,
            };
            let birth = Status::online(&ring, speaker, &condition);
            let claim = Status::parse(&ring, speaker.root, &name, &birth);
            let claim = claim.unwrap_or_else(|refused| panic!("{}: {refused}", metric.value()));
            assert_eq!(claim.node.metric, metric);
        }
    }

    /// Simulator, seed 2764: three questions or their answers were lost to a node that had just
    /// started; it never saw the other again, whose kept birth nobody repeats.
    #[test]
    fn who_was_given_up_is_asked_again() {
        let (me, incarnation) = (name("a"), Incarnation([1; 16]));
        let me = Speaker {
            root: "raft/plant",
            name: &me,
            key: NodeKey(1),
            incarnation,
            epoch: 1,
        };
        let other = Speaker {
            name: &name("b"),
            key: NodeKey(2),
            incarnation: Incarnation([2; 16]),
            ..me
        };
        let ring = KeyRing::insecure();
        let condition = Condition {
            role: "follower",
            term: 1,
            metric: Metric::default(),
        };
        let birth = Status::online(&ring, other, &condition);
        let claim = Status::parse(&ring, me.root, other.name, &birth).expect("its own birth");
        let mut presence = Presence::default();
        presence.on_claim(me, claim, true, |_, _| false, Time(0));
        let mut asked = 0;
        for second in 0..60 {
            asked += presence.due(Time(second * 1_000_000)).len();
            assert_eq!(presence.active().count(), 0, "nothing is proved");
        }
        assert!((6..12).contains(&asked), "asked {asked} times in a minute");
        presence.on_heard(other.name, other.key, other.incarnation);
        assert_eq!(presence.active().count(), 1);
        let later = presence.due(Time(3_600_000_000));
        assert_eq!(later, [], "who has answered is left alone");
    }

    /// Simulator, seed 218: a process died unnoticed; while it was asked whether it lived, its
    /// successor's birth came and was forgotten with it. Nobody repeats a birth.
    #[test]
    fn a_successor_is_not_forgotten_with_its_predecessor() {
        let (me, other) = (name("a"), name("b"));
        let me = Speaker {
            root: "raft/plant",
            name: &me,
            key: NodeKey(1),
            incarnation: Incarnation([1; 16]),
            epoch: 1,
        };
        let [old, new] = [2, 3].map(|n| Speaker {
            name: &other,
            key: NodeKey(2),
            incarnation: Incarnation([n; 16]),
            ..me
        });
        let ring = KeyRing::insecure();
        let condition = Condition {
            role: "follower",
            term: 1,
            metric: Metric::default(),
        };
        let birth = |of: Speaker<'_>| {
            let birth = Status::online(&ring, of, &condition);
            Status::parse(&ring, me.root, &other, &birth).expect("its own birth")
        };
        let mut presence = Presence::default();
        presence.on_claim(me, birth(old), false, |_, _| true, Time(0));
        assert_eq!(presence.active().count(), 1);
        presence.on_claim(me, birth(new), false, |_, _| false, Time(0));
        let mut at = Time(0);
        while presence.active().count() > 0 {
            presence.due(at);
            at = at + CHECK_INTERVAL;
        }
        presence.on_admitted(&other, new.key, new.incarnation);
        assert_eq!(presence.active().count(), 1);
    }
}
