//! A fleet of node-raft-over-mqtt 1.2.1 beside our cluster, kept as followers of our leader.
//!
//! Its nodes elect whoever they are in earshot of, twice over where a network is cut. They stay
//! followers as long as they hear a heartbeat of a term that is not behind theirs and of a metric that
//! is not worse than theirs; so that is what we publish.
//!
//! ```text
//! <CN>/raft/presence    node-1                       every 3 s, gone after 9 s
//! <CN>/raft/election    term:candidate:metric
//! <CN>/raft/vote        term:voter:candidate
//! <CN>/raft/heartbeat   term:leader:metric           every 2 s; without one for 8 to 12 s they elect
//! <CN>/raft/heartbeat   term:leader:-Infinity:<prefix>/<cluster>/<publisher>          ours
//! ```
//!
//! - **Who publishes.** Our leader, every 2 s. Where no heartbeat of ours was heard for 3 to 5 s,
//!   whoever is first goes on in the last leader's name, every 2 s, as long as it hears that the last
//!   heartbeat was its own: one publisher, however many nodes we are.
//! - **Which term.** The highest heard. A candidate or a leader among them is answered at once with a
//!   higher one. Terms that no count can have reached are not repeated, which would hand them to the
//!   rest of the fleet: there our heartbeat has no number for a term, which 1.2.1 never finds behind.
//! - **Which metric.** `-Infinity`: none is better.
//! - **What is ours.** The fourth field, which 1.2.1 does not read, tells a heartbeat of ours from the
//!   fleet's, and whose it is. Nothing here is authentic, and nothing of ours rests on it.
//!
//! The fleet's nodes are counted and listed, and are nothing else to our cluster: this module knows
//! nothing of consensus, and consensus nothing of it. Like [`crate::Replica`] it is pure: time is an
//! argument, and what it wants published comes back.

mod said;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raft::{NodeKey, Time};

use crate::dice::Dice;
use crate::keys::sha256;
use crate::name::{MAX_NAME, Metric, Name};
use crate::presence::{ActiveNode, PresenceEvent};
use crate::tags::Tags;
use crate::topic::{OtherPrefixError, check_other_prefix};
use said::{Said, Term};

/// The role of the fleet's nodes in a list of who is there.
pub const LEGACY_ROLE: &str = "legacy";

/// How many of the fleet's nodes are tracked. Beyond it, who is new is passed over until others go.
pub const MAX_LEGACY_NODES: usize = 4_096;

/// The highest term that we say: half of where JavaScript stops counting, so that the fleet can go on
/// counting without us. An election a second takes 140 million years to get here.
pub const MAX_LEGACY_TERM: u64 = 1 << 52;

/// The longest name of one of the fleet's nodes; whoever has a longer one is not listed.
const MAX_ID: usize = 128;

/// The longest message that is read.
const MAX_MESSAGE: usize = 1_024;

/// How often a heartbeat is published, as 1.2.1 does.
const BEAT: Duration = Duration::from_secs(2);

/// For how long nobody's heartbeat was heard before another node begins: the leader may be late,
const TAKE_OVER: Duration = Duration::from_secs(3);

/// and the others do not begin all at once. Both together leave 3 s to the shortest election timeout.
const TAKE_OVER_SPREAD: Duration = Duration::from_secs(2);

/// How long others leave the answer to a candidate to our leader,
const ANSWER: Duration = Duration::from_millis(300);

/// and to each other.
const ANSWER_SPREAD: Duration = Duration::from_millis(700);

/// How often a node answers at most.
const ANSWER_GAP: Duration = Duration::from_millis(500);

/// For how long a silent node counts as there: three of its intervals.
const GONE: Duration = Duration::from_secs(9);

/// How long nobody of the fleet has stood or led before it counts as following again.
const QUIET: Duration = Duration::from_secs(10);

/// The metric that none is better than.
const BEST: &str = "-Infinity";

/// A term that is no number, and so never behind.
const NO_NUMBER: &str = "NaN";

/// The fleet as one of our nodes sees it.
pub struct Legacy {
    /// `<CN>/raft/`.
    topics: String,
    /// `<prefix>/<cluster>/`: how our cluster's heartbeats are marked.
    cluster: String,
    me: Name,
    dice: Dice,
    connected: bool,
    nodes: BTreeMap<Arc<str>, Time>,
    /// Nobody is gone before this.
    forget_at: Option<Time>,
    /// The highest term heard or said.
    term: u64,
    /// A term was heard that we do not follow.
    beyond: bool,
    view: View,
    /// Whose name our heartbeats carry while nobody leads.
    last_leader: Option<Name>,
    /// The last heartbeat of ours that was heard was published by this node.
    keeper: bool,
    /// When to publish unless somebody does before.
    beat_at: Time,
    challenge: Option<Challenge>,
    answered_at: Option<Time>,
    led: Option<LegacyLeader>,
    unruly: Option<Unruly>,
    /// Which other cluster of ours was heard, while that is told of.
    rival: Option<(String, Time)>,
    effects: Vec<LegacyEffect>,
}

/// A candidate or a leader of the fleet, to be brought back under.
#[derive(Clone, Copy, Debug)]
struct Challenge {
    /// The highest term then: an answer has a higher one.
    term: u64,
    at: Time,
}

/// The fleet has candidates or leaders, or had until lately.
#[derive(Clone, Copy, Debug)]
struct Unruly {
    /// The last time.
    at: Time,
    /// It was told that one leads.
    told: bool,
}

/// What our cluster is, as this node sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// The node is of a formed cluster. Before that it leaves the fleet alone.
    pub formed: bool,
    /// Who leads.
    pub leader: Option<Name>,
    /// It is this node.
    pub leads: bool,
}

/// A node of the fleet that led.
#[derive(Clone, Debug, PartialEq)]
pub struct LegacyLeader {
    /// Its name.
    pub node: String,
    /// When it was last heard to lead.
    pub heard_at: Time,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum LegacyEffect {
    /// Publish this at QoS 1, not retained.
    Publish {
        /// The topic.
        topic: String,
        /// The payload.
        payload: Bytes,
    },
    /// Tell whoever watches.
    Event(LegacyEvent),
}

/// Something worth telling.
#[derive(Clone, Debug, PartialEq)]
pub enum LegacyEvent {
    /// A node of the fleet came or went.
    Presence(PresenceEvent),
    /// This node of the fleet leads it, and is told to follow. Not told again before
    /// [`LegacyEvent::Follows`].
    Led(String),
    /// This node of the fleet asks for votes, and is told to follow. As [`LegacyEvent::Led`].
    Stood(String),
    /// Nobody of the fleet has stood or led for 10 s.
    Follows,
    /// A term was heard that no count can have reached: somebody made it up. The fleet is kept by
    /// heartbeats without a number from now on, until the process ends.
    AbsurdTerm,
    /// Another cluster, `<prefix>/<cluster>`, keeps the same fleet. Told once in 10 s.
    Rival(String),
}

impl Legacy {
    /// The fleet whose certificates have the common name `prefix`, seen by the node `me` of the cluster
    /// whose topics begin with `root`. `seed` spreads our nodes in time.
    ///
    /// # Errors
    /// When the prefix cannot stand in a topic.
    pub fn new(
        prefix: &str,
        root: &str,
        me: Name,
        seed: u64,
        now: Time,
    ) -> Result<Legacy, OtherPrefixError> {
        check_other_prefix(prefix, 2)?;
        Ok(Legacy {
            topics: format!("{prefix}/raft/"),
            cluster: format!("{root}/"),
            me,
            dice: Dice(seed),
            connected: false,
            nodes: BTreeMap::new(),
            forget_at: None,
            term: 1,
            beyond: false,
            view: View::default(),
            last_leader: None,
            keeper: false,
            beat_at: now,
            challenge: None,
            answered_at: None,
            led: None,
            unruly: None,
            rival: None,
            effects: Vec::new(),
        })
    }

    /// The topics to subscribe to, at QoS 1.
    pub fn subscriptions(&self) -> [String; 4] {
        ["presence", "election", "vote", "heartbeat"].map(|kind| format!("{}{kind}", self.topics))
    }

    /// A session with the broker is up: somebody else may be keeping the fleet.
    pub fn on_connected(&mut self, now: Time) {
        self.connected = true;
        self.keeper = false;
        self.beat_at = match self.view.leads {
            true => now,
            false => self.take_over_at(now),
        };
    }

    /// The session is gone. Whoever was there is gone too unless it is heard again in time.
    pub fn on_disconnected(&mut self) {
        self.connected = false;
        self.keeper = false;
        self.challenge = None;
    }

    /// Takes a message; false if its topic is none of the fleet's.
    pub fn on_message(&mut self, topic: &str, payload: &[u8], retained: bool, now: Time) -> bool {
        let Some(kind) = topic.strip_prefix(&self.topics) else {
            return false;
        };
        if !matches!(kind, "presence" | "election" | "vote" | "heartbeat") {
            return false;
        }
        if payload.len() > MAX_MESSAGE {
            return true;
        }
        let text = String::from_utf8_lossy(payload);
        let said = Said::read(&text);
        // Whatever its topic, 1.2.1 takes what has a colon for a term and a sender.
        if said.sender.is_some() {
            self.hear_term(said.term);
        }
        match kind {
            // Nothing of the fleet is retained: what is says nothing of now.
            _ if retained => {}
            "presence" => self.on_presence(&text, now),
            "election" => self.on_election(&said, now),
            "heartbeat" => self.on_heartbeat(&said, now),
            _ => {}
        }
        true
    }

    /// Takes how our cluster is by `now`, and returns what is to be done.
    pub fn step(&mut self, view: View, now: Time) -> Vec<LegacyEffect> {
        if view.leader.is_some() {
            self.last_leader = view.leader.clone();
        }
        if view.leads && !self.view.leads {
            // The fleet is to know its leader at once.
            self.beat_at = now;
        } else if view.formed && !self.view.formed {
            self.beat_at = self.take_over_at(now);
        }
        self.view = view;
        self.forget(now);
        if self.may_publish() {
            self.answer(now);
            self.beat(now);
        }
        std::mem::take(&mut self.effects)
    }

    /// When to step if nothing happens before.
    pub fn next_deadline(&self) -> Option<Time> {
        let publishing = self.may_publish();
        let deadlines = [
            Some(self.beat_at).filter(|_| publishing),
            self.challenge.map(|c| c.at).filter(|_| publishing),
            self.forget_at,
            self.unruly.map(|unruly| unruly.at + QUIET),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// The nodes of the fleet that are there, by name.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &str> {
        self.nodes.keys().map(|id| &**id)
    }

    /// The same as a list of who is there shows them: in the role [`LEGACY_ROLE`], under the nearest
    /// name that a node of ours could have, and a key of their own.
    pub fn active_nodes(&self) -> impl Iterator<Item = ActiveNode> {
        self.nodes.keys().map(|id| listed(id))
    }

    /// Who of the fleet led it last, as far as this process knows.
    pub fn leader(&self) -> Option<&LegacyLeader> {
        self.led.as_ref()
    }

    /// Whether a node of the fleet stood or led in the last 10 s.
    pub fn is_unruly(&self) -> bool {
        self.unruly.is_some()
    }

    // What came in.

    fn hear_term(&mut self, text: &str) {
        match Term::read(text, MAX_LEGACY_TERM) {
            Term::Counted(term) => self.term = self.term.max(term),
            Term::Nothing => {}
            Term::Beyond if self.beyond => {}
            Term::Beyond => {
                self.beyond = true;
                self.event(LegacyEvent::AbsurdTerm);
            }
        }
    }

    fn on_presence(&mut self, id: &str, now: Time) {
        if let Some(heard) = self.nodes.get_mut(id) {
            *heard = now;
        } else if !id.is_empty() && id.len() <= MAX_ID && self.nodes.len() < MAX_LEGACY_NODES {
            self.nodes.insert(id.into(), now);
            self.forget_at.get_or_insert(now + GONE);
            let node = listed(id);
            self.event(LegacyEvent::Presence(PresenceEvent::Arrived(node)));
        }
    }

    fn on_election(&mut self, said: &Said<'_>, now: Time) {
        let Some(candidate) = said.sender else { return };
        if self.unruly.is_none() {
            self.event(LegacyEvent::Stood(shortened(candidate)));
        }
        self.challenge(now, false);
    }

    fn on_heartbeat(&mut self, said: &Said<'_>, now: Time) {
        let Some(leader) = said.sender else { return };
        match self.origin(said) {
            Origin::Cluster(publisher) => self.on_kept(leader, publisher, said, now),
            Origin::OtherCluster(root) => self.on_rival(root, now),
            Origin::Fleet => {
                if !self.unruly.is_some_and(|unruly| unruly.told) {
                    self.event(LegacyEvent::Led(shortened(leader)));
                }
                self.led = Some(LegacyLeader {
                    node: shortened(leader),
                    heard_at: now,
                });
                self.challenge(now, true);
            }
        }
    }

    /// Only what keeps the fleet counts as one of ours, whoever published it: a forgery can do no more
    /// than we do ourselves.
    fn origin<'a>(&self, said: &Said<'a>) -> Origin<'a> {
        let Some(mark) = said.mark.filter(|_| said.metric == Some(BEST)) else {
            return Origin::Fleet;
        };
        if let Some(publisher) = mark.strip_prefix(&self.cluster) {
            return Name::new(publisher).map_or(Origin::Fleet, Origin::Cluster);
        }
        let names = mark.split('/').all(|level| Name::new(level).is_ok());
        match mark.rsplit_once('/') {
            Some((root, _)) if names && root.contains('/') => Origin::OtherCluster(root),
            _ => Origin::Fleet,
        }
    }

    /// One of us keeps the fleet.
    fn on_kept(&mut self, leader: &str, publisher: Name, said: &Said<'_>, now: Time) {
        let term = match Term::read(said.term, MAX_LEGACY_TERM) {
            Term::Counted(term) => term,
            // Without a number: never behind.
            Term::Nothing if said.term == NO_NUMBER => u64::MAX,
            Term::Nothing | Term::Beyond => return,
        };
        if term < self.term {
            return; // It has not heard what we have: the fleet does not take it.
        }
        if let Some(challenge) = self.challenge
            && term > challenge.term
        {
            self.challenge = None;
        }
        if self.view.leader.is_none() && self.last_leader.is_none() {
            self.last_leader = Name::new(leader).ok();
        }
        self.keeper = publisher == self.me;
        if !self.view.leads {
            self.beat_at = match self.keeper {
                true => now + BEAT,
                false => self.take_over_at(now),
            };
        }
    }

    fn on_rival(&mut self, root: &str, now: Time) {
        let told = self.rival.as_ref();
        if told.is_some_and(|(_, at)| now.since(*at) < QUIET) {
            return;
        }
        self.rival = Some((root.to_owned(), now));
        self.event(LegacyEvent::Rival(root.to_owned()));
    }

    /// Somebody of the fleet stands or leads: our leader answers at once, the others unless it does.
    fn challenge(&mut self, now: Time, leads: bool) {
        let told = leads || self.unruly.is_some_and(|unruly| unruly.told);
        self.unruly = Some(Unruly { at: now, told });
        if !self.may_publish() {
            return;
        }
        let first = self.view.leads || (self.keeper && self.view.leader.is_none());
        let wished = match first {
            true => now,
            false => now + ANSWER + self.dice.below(ANSWER_SPREAD),
        };
        let allowed = self.answered_at.map_or(now, |at| at + ANSWER_GAP);
        let at = self.challenge.map_or(wished, |c| c.at.min(wished));
        self.challenge = Some(Challenge {
            term: self.term,
            at: at.max(allowed),
        });
    }

    // What goes out.

    fn may_publish(&self) -> bool {
        self.connected && self.view.formed
    }

    fn answer(&mut self, now: Time) {
        let Some(challenge) = self.challenge.filter(|c| c.at <= now) else {
            return;
        };
        self.challenge = None;
        self.answered_at = Some(now);
        self.term = (challenge.term.max(self.term) + 1).min(MAX_LEGACY_TERM);
        self.publish(&self.term.to_string());
        if self.beyond {
            self.publish(NO_NUMBER);
        }
        self.beat_at = now + BEAT;
    }

    fn beat(&mut self, now: Time) {
        if now < self.beat_at {
            return;
        }
        let term = match self.beyond {
            true => NO_NUMBER.to_owned(),
            false => self.term.to_string(),
        };
        self.publish(&term);
        self.beat_at = now + BEAT;
    }

    fn publish(&mut self, term: &str) {
        let (leader, cluster, me) = (self.leader_name(), &self.cluster, &self.me);
        let payload = format!("{term}:{leader}:{BEST}:{cluster}{me}");
        self.effects.push(LegacyEffect::Publish {
            topic: format!("{}heartbeat", self.topics),
            payload: payload.into_bytes().into(),
        });
    }

    /// Whose name our heartbeats carry. A node of the fleet takes what carries its own name for its own
    /// and passes it over, so a name that it shares with our leader gets a mark.
    fn leader_name(&self) -> String {
        let leader = self.view.leader.as_ref().or(self.last_leader.as_ref());
        let mut name = leader.unwrap_or(&self.me).to_string();
        while self.nodes.contains_key(&*name) {
            name.push('~');
        }
        name
    }

    fn take_over_at(&mut self, now: Time) -> Time {
        now + TAKE_OVER + self.dice.below(TAKE_OVER_SPREAD)
    }

    fn forget(&mut self, now: Time) {
        if self.forget_at.is_some_and(|at| at <= now) {
            self.forget_nodes(now);
        }
        if self
            .unruly
            .is_some_and(|unruly| now.since(unruly.at) >= QUIET)
        {
            self.unruly = None;
            self.event(LegacyEvent::Follows);
        }
    }

    fn forget_nodes(&mut self, now: Time) {
        let gone = |heard: &Time| now.since(*heard) >= GONE;
        let silent: Vec<Arc<str>> = self
            .nodes
            .iter()
            .filter(|(_, heard)| gone(heard))
            .map(|(id, _)| Arc::clone(id))
            .collect();
        for id in silent {
            self.nodes.remove(&id);
            let node = listed(&id);
            self.event(LegacyEvent::Presence(PresenceEvent::Departed(node)));
        }
        self.forget_at = self.nodes.values().min().map(|heard| *heard + GONE);
    }

    fn event(&mut self, event: LegacyEvent) {
        self.effects.push(LegacyEffect::Event(event));
    }
}

/// Who published a heartbeat.
enum Origin<'a> {
    Cluster(Name),
    OtherCluster(&'a str),
    Fleet,
}

/// A node of the fleet as a list of who is there shows it.
fn listed(id: &str) -> ActiveNode {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let mut near: String = id
        .chars()
        .take(MAX_NAME)
        .map(|c| if allowed(c) { c } else { '_' })
        .collect();
    if !near.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        near = format!("x{}", &near[..near.len().min(MAX_NAME - 1)]);
    }
    let name = Name::new(&near).or_else(|_| Name::new(&format!("{near}_")));
    let digest = sha256(format!("{LEGACY_ROLE}\n{id}").as_bytes());
    let key = digest[..16].try_into().expect("sixteen of 32 bytes");
    ActiveNode {
        name: name.expect("made of what a name may hold"),
        key: NodeKey::from_bytes(key),
        role: LEGACY_ROLE.to_owned(),
        term: 0,
        metric: Metric::default(),
        tags: Tags::default(),
    }
}

/// A name to tell of, whoever made it up.
fn shortened(id: &str) -> String {
    id.chars().take(MAX_NAME).collect()
}
