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
//!
//! Not everyone asks everyone: the leader asks all, the others only those who say that they vote
//! (`replica/roll_call.rs`), and take the rest from what the cluster has agreed (`agreed.rs`).

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use raft::{NodeKey, SessionId, Time};
use serde::{Deserialize, Serialize};

use crate::agreed::AgreedNode;
use crate::endpoint::Refused;
use crate::keys::{Incarnation, KeyRing, hex, hex_decode};
use crate::link::{Link, Session};
use crate::name::{Metric, Name};
use crate::tags::Tags;

/// How many nodes are tracked.
pub const MAX_NODES: usize = 65_536;

/// How often a node in doubt is asked.
const CHECKS: u32 = 3;

/// How long it has to answer.
const CHECK_INTERVAL: Duration = Duration::from_millis(1_000);

/// How long after a reconnect of ours: when the broker restarted everyone connects anew, and pauses up
/// to 5 s between two attempts.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(2_000);

/// Who did not answer is gone, but its status may stand there still and it may only have been
/// out of reach: it is asked again, ever less often, at most at this interval,
const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// and forgotten after so many.
const MAX_CHECKS: u32 = 24;

/// How often it is looked for nodes to ask, at most.
const CHECK_GAP: Duration = Duration::from_millis(50);

/// How many are asked at once, one by one.
const ASKED_AT_ONCE: usize = 256;

/// If there are more to ask than this, and more than half of all, everyone is asked by one word.
const ROLL_CALL: usize = 64;

/// How many a second are to answer such a word: each waits for a moment of its own.
const ANSWERS_A_SECOND: u32 = 1_000;

/// The role of whoever is there and nothing more.
pub(crate) const OBSERVER: &str = "observer";

/// In place of a session's epoch, which begin at 1.
const ADOPTED: u64 = 0;

/// A status is a few hundred bytes, and as much again as its tags have, were every character one to
/// escape.
const MAX_STATUS: usize = 12 << 10;

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
    /// Its tags.
    pub tags: Tags,
}

fn is_zero(link: &u8) -> bool {
    *link == 0
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
    /// Which connection of the process with this broker,
    epoch: u64,
    /// and which of the brokers that it uses this is, by its own count.
    #[serde(default, skip_serializing_if = "is_zero")]
    link: u8,
    /// The connection as wills and leaders name it: derived from process, link and epoch.
    session: String,
    /// Which of the statuses of this process it is: later ones are greater. A will is 0.
    #[serde(default)]
    count: u64,
    #[serde(default)]
    role: String,
    #[serde(default)]
    term: u64,
    #[serde(default)]
    metric: f64,
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    tags: Tags,
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
    pub(crate) tags: Tags,
}

/// Who a status speaks of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Speaker<'a> {
    /// The cluster's topics begin with this.
    pub(crate) root: &'a str,
    pub(crate) name: &'a Name,
    pub(crate) key: NodeKey,
    pub(crate) incarnation: Incarnation,
    pub(crate) session: Session,
}

impl Status {
    /// The birth, or the news, of a node.
    pub(crate) fn online(
        ring: &KeyRing,
        speaker: Speaker<'_>,
        count: u64,
        condition: &Condition,
    ) -> Bytes {
        Status::sign(ring, speaker, State::Online, count, condition)
    }

    /// The will, or the farewell, of a node.
    pub(crate) fn offline(ring: &KeyRing, speaker: Speaker<'_>) -> Bytes {
        let condition = Condition {
            role: "",
            term: 0,
            metric: Metric::default(),
            tags: Tags::default(),
        };
        Status::sign(ring, speaker, State::Offline, 0, &condition)
    }

    fn sign(
        ring: &KeyRing,
        speaker: Speaker<'_>,
        state: State,
        count: u64,
        condition: &Condition,
    ) -> Bytes {
        let Speaker {
            root,
            name,
            key,
            incarnation,
            session,
        } = speaker;
        let mut status = Status {
            v: 1,
            state,
            node: name.to_string(),
            key: hex(&key.to_bytes()),
            incarnation: incarnation.to_string(),
            epoch: session.epoch,
            link: session.link.place() as u8,
            session: format!("{:016x}", session.id(incarnation).0),
            count,
            role: condition.role.to_owned(),
            term: condition.term,
            metric: condition.metric.value(),
            tags: condition.tags.clone(),
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
            link,
            session,
            count,
            role,
            term,
            metric,
            tags,
            ..
        } = self;
        let metric = metric.to_bits();
        let mut tagged = format!(
            "{root}\n{v}\n{state:?}\n{node}\n{key}\n{incarnation}\n{epoch}\n{link}\n{session}\n\
             {count}\n{role}\n{term}\n{metric}"
        )
        .into_bytes();
        // A build that knows no tags reads a status without any.
        if !tags.is_empty() {
            tagged.push(b'\n');
            serde_json::to_writer(&mut tagged, tags).expect("tags are plain data");
        }
        tagged
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
            session: Session {
                link: Link::new(status.link.into()).ok_or(Refused::Status)?,
                epoch: status.epoch,
            },
            count: status.count,
            node: ActiveNode {
                name: node.clone(),
                key: NodeKey::from_bytes(key),
                role: status.role,
                term: status.term,
                metric: Metric::new(status.metric).map_err(|_| Refused::Status)?,
                tags: status.tags,
            },
        })
    }
}

/// A status whose tag verified.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    online: bool,
    incarnation: Incarnation,
    session: Session,
    count: u64,
    pub(crate) node: ActiveNode,
}

impl Claim {
    /// The claim that a record of the cluster amounts to: which session it was of is not known.
    fn adopted(agreed: &AgreedNode) -> Claim {
        Claim {
            online: true,
            incarnation: agreed.incarnation,
            session: Session::first(ADOPTED),
            count: 0,
            node: ActiveNode {
                name: agreed.name.clone(),
                key: agreed.key,
                role: agreed.role.as_str().to_owned(),
                term: 0,
                metric: agreed.metric,
                tags: agreed.tags.clone(),
            },
        }
    }

    pub(crate) fn is_online(&self) -> bool {
        self.online
    }

    /// The session that it speaks of.
    pub(crate) fn session(&self) -> Session {
        self.session
    }

    fn is_adopted(&self) -> bool {
        self.session.epoch == ADOPTED
    }

    /// Whose process it speaks of.
    pub(crate) fn process(&self) -> (NodeKey, Incarnation) {
        (self.node.key, self.incarnation)
    }

    fn is_of_process(&self, other: &Claim) -> bool {
        self.process() == other.process()
    }

    /// Whether `other` is an older word of the same process, whichever broker brings it.
    fn is_newer_than(&self, other: &Claim) -> bool {
        self.is_of_process(other) && other.count < self.count
    }

    /// Whether this end is the end of `claim`, rather than of an older session or of one with another
    /// broker.
    fn ends(&self, claim: &Claim) -> bool {
        let (session, ended) = (claim.session, self.session);
        self.is_of_process(claim) && session.link == ended.link && session.epoch <= ended.epoch
    }
}

/// Everyone that claims to be there.
#[derive(Default)]
pub(crate) struct Presence {
    nodes: BTreeMap<Name, Tracked>,
    events: Vec<PresenceEvent>,
    /// Whom to ask, by when.
    checks: BTreeSet<(Time, Name)>,
    /// They are looked at no sooner than this.
    look_at: Time,
    /// Whose standing has changed since a leader last looked.
    touched: BTreeSet<Name>,
    /// The last sessions of those who have gone, until another is born under their name.
    ended: BTreeMap<Name, Ended>,
}

/// A process that has gone.
struct Ended {
    process: (NodeKey, Incarnation),
    /// The last session on each of its links that was heard of.
    epochs: BTreeMap<Link, u64>,
}

impl Ended {
    /// Whether this birth is of a session that may be over: a slow broker, a bridge or a broker that was
    /// down brings births of any of its sessions, and also of those that nobody heard of.
    fn covers(&self, birth: &Claim) -> bool {
        let Session { link, epoch } = birth.session;
        let last = self.epochs.get(&link);
        self.process == birth.process() && last.is_none_or(|last| epoch <= *last)
    }
}

struct Tracked {
    said: Said,
    /// Counted as there.
    active: bool,
    /// It has proved that it lives since we were last cut off.
    proved: bool,
    /// This process has proved it at some time.
    was_proved: bool,
    check: Option<Check>,
    /// Another process was born, unproved, while this one is there.
    rival: Option<Said>,
}

/// What a process said of itself.
struct Said {
    claim: Claim,
    /// Its sessions that were heard of, by its own links.
    sessions: BTreeMap<Link, Heard>,
}

impl Tracked {
    fn of(claim: Claim) -> Tracked {
        Tracked {
            said: Said::of(claim),
            active: false,
            proved: false,
            was_proved: false,
            check: None,
            rival: None,
        }
    }
}

impl Tracked {
    /// Another process claims this one's place.
    fn challenge(&mut self, claim: Claim, over: Link) {
        let session = claim.session;
        let is_same = |rival: &Said| rival.claim.is_of_process(&claim);
        let rival = match self.rival.take().filter(is_same) {
            Some(rival) if rival.claim.is_newer_than(&claim) => rival,
            Some(rival) => Said { claim, ..rival },
            None => Said::of(claim),
        };
        self.rival.insert(rival).hear(session, over);
    }

    /// We no longer hear over this link, or over any.
    fn lose(&mut self, link: Option<Link>) {
        self.said.lose(link);
        if let Some(rival) = &mut self.rival {
            rival.lose(link);
        }
    }

    /// It was asked in vain.
    fn is_given_up(&self) -> bool {
        let asked = self.check.as_ref().map_or(0, |check| check.asked);
        !self.active && asked > CHECKS
    }
}

/// One session of a node, as we hear of it.
struct Heard {
    epoch: u64,
    /// Our own links that would bring its end. None: it has ended, or we have lost them.
    over: BTreeSet<Link>,
}

impl Said {
    fn of(claim: Claim) -> Said {
        Said {
            claim,
            sessions: BTreeMap::new(),
        }
    }

    /// A birth of this session came over this link of ours.
    fn hear(&mut self, Session { link, epoch }: Session, over: Link) {
        let heard = self.sessions.entry(link).or_insert(Heard {
            epoch,
            over: BTreeSet::new(),
        });
        if heard.epoch < epoch {
            heard.epoch = epoch;
            heard.over.clear();
        }
        if heard.epoch == epoch {
            heard.over.insert(over);
        }
    }

    /// Whether no session as late as this one was heard of.
    fn is_new(&self, Session { link, epoch }: Session) -> bool {
        let heard = self.sessions.get(&link);
        heard.is_none_or(|heard| heard.epoch < epoch)
    }

    /// Whether a later session than this one was heard of.
    fn is_later_than(&self, Session { link, epoch }: Session) -> bool {
        let heard = self.sessions.get(&link);
        heard.is_some_and(|heard| epoch < heard.epoch)
    }

    /// This session has ended. False if it was not known to be there.
    fn end(&mut self, session: Session) -> bool {
        let heard = self.sessions.get_mut(&session.link);
        heard.is_some_and(|heard| !std::mem::take(&mut heard.over).is_empty())
    }

    /// Whether any session is there whose end we would hear of.
    fn is_heard(&self) -> bool {
        self.sessions.values().any(|heard| !heard.over.is_empty())
    }

    /// Whether this is the end of the last of its sessions that we hear of.
    fn ends_with(&mut self, end: &Claim) -> bool {
        end.is_of_process(&self.claim) && self.end(end.session) && !self.is_heard()
    }

    /// We no longer hear over this link, or over any.
    fn lose(&mut self, link: Option<Link>) {
        for heard in self.sessions.values_mut() {
            heard
                .over
                .retain(|over| link.is_some_and(|link| link != *over));
        }
    }
}

struct Check {
    asked: u32,
    at: Time,
    interval: Duration,
    /// What an answer echoes: of the last question, and of the one before it.
    challenges: [Option<u64>; 2],
}

/// Who is asked now.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Asks {
    /// These, one by one, and how often each was asked before.
    pub(crate) names: Vec<(Name, u32)>,
    /// Everyone instead, each to answer within this time.
    pub(crate) everyone: Option<Duration>,
}

/// What a leader knows of a node.
#[derive(Debug)]
pub(crate) enum Standing<'a> {
    /// It has proved that it lives.
    There(&'a ActiveNode, Incarnation),
    /// It is being asked, or was born and is yet to be asked.
    Doubtful,
    /// Its session ended, it was asked in vain, or nobody is called so.
    Gone,
}

/// What a status means to the node that reads it.
#[derive(Debug, PartialEq)]
pub(crate) enum Meaning {
    /// Nothing beyond presence.
    Noted,
    /// This session ended, or so its will says.
    SessionEnded(SessionId),
}

/// What the reader of a claim knows beside it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    /// Which of our own links brought it.
    pub(crate) over: Link,
    /// The broker had kept it.
    pub(crate) retained: bool,
    /// Its process is known to live.
    pub(crate) proved: bool,
    /// It is for us to ask whether it lives.
    pub(crate) watched: bool,
}

impl Presence {
    /// Everyone that is there, by name, without ourselves.
    pub(crate) fn active(&self) -> impl Iterator<Item = &ActiveNode> + Clone {
        self.nodes
            .values()
            .filter(|tracked| tracked.active)
            .map(|tracked| &tracked.said.claim.node)
    }

    /// Whether a node is there by its own word, rather than by the cluster's alone.
    pub(crate) fn has_spoken(&self, key: NodeKey) -> bool {
        let spoken = |tracked: &Tracked| tracked.active && !tracked.said.claim.is_adopted();
        let mut nodes = self.nodes.values();
        nodes.any(|tracked| tracked.said.claim.node.key == key && spoken(tracked))
    }

    pub(crate) fn get<N>(&self, name: &N) -> Option<&ActiveNode>
    where
        N: Ord + ?Sized,
        Name: Borrow<N>,
    {
        self.nodes
            .get(name)
            .filter(|tracked| tracked.active)
            .map(|tracked| &tracked.said.claim.node)
    }

    /// What is known of a node, to whoever is to tell all others.
    pub(crate) fn standing(&self, name: &Name) -> Standing<'_> {
        match self.nodes.get(name).filter(|tracked| tracked.active) {
            None => Standing::Gone,
            Some(tracked) if tracked.proved => {
                Standing::There(&tracked.said.claim.node, tracked.said.claim.incarnation)
            }
            Some(_) => Standing::Doubtful,
        }
    }

    /// Whether we have heard this process end, or have asked it in vain.
    pub(crate) fn denies(&self, agreed: &AgreedNode) -> bool {
        let process = (agreed.key, agreed.incarnation);
        self.has_ended(&agreed.name, process)
            || self.nodes.get(&agreed.name).is_some_and(|tracked| {
                tracked.is_given_up() && tracked.said.claim.process() == process
            })
    }

    fn has_ended(&self, name: &Name, process: (NodeKey, Incarnation)) -> bool {
        let end = self.ended.get(name);
        end.is_some_and(|end| end.process == process)
    }

    /// Everyone that is tracked.
    pub(crate) fn names(&self) -> impl Iterator<Item = &Name> {
        self.nodes.keys()
    }

    pub(crate) fn take_events(&mut self) -> Vec<PresenceEvent> {
        std::mem::take(&mut self.events)
    }

    /// Whose standing has changed since the last call.
    pub(crate) fn take_touched(&mut self) -> BTreeSet<Name> {
        std::mem::take(&mut self.touched)
    }

    /// Takes a claim that arrived from the topic of another node.
    pub(crate) fn on_claim(&mut self, claim: Claim, read: Read, now: Time) -> Meaning {
        if claim.online {
            self.on_birth(claim, read, now);
            return Meaning::Noted;
        }
        let session = claim.session.id(claim.incarnation);
        self.on_end(&claim, now);
        Meaning::SessionEnded(session)
    }

    fn on_birth(&mut self, claim: Claim, read: Read, now: Time) {
        let name = claim.node.name.clone();
        let has_room = self.nodes.len() < MAX_NODES;
        let Read {
            over,
            mut retained,
            mut proved,
            watched,
        } = read;
        let session = claim.session;
        if self.ended.get(&name).is_some_and(|end| end.covers(&claim)) {
            // It is late, or played back, or puts a false end right: who lives answers.
            (retained, proved) = (true, false);
        } else {
            self.ended.remove(&name);
        }
        match self.nodes.get_mut(&name) {
            Some(known) if known.said.claim.is_newer_than(&claim) => {
                // Its news are old, but that session was not known to be there.
                known.said.hear(session, over);
                return;
            }
            Some(known) if known.active && !known.said.claim.is_of_process(&claim) => {
                if !proved && watched {
                    known.challenge(claim, over);
                    return self.ask(&name, now);
                }
                self.replace(&name, claim);
            }
            Some(known) => {
                // A new session of a process that has proved itself before: as fresh as a frame.
                let same = known.said.claim.is_of_process(&claim) && known.was_proved;
                proved |= same && known.said.is_new(session);
                // As good as a frame: another session, which would have told its end, stands for it.
                retained &= !(same && known.proved && known.said.is_heard());
                self.replace(&name, claim);
            }
            None if has_room => {
                self.nodes.insert(name.clone(), Tracked::of(claim));
            }
            None => return,
        }
        if let Some(known) = self.nodes.get_mut(&name) {
            known.said.hear(session, over);
        }
        match (retained, proved) {
            // Whoever proved once that it lived may have died with the broker that kept this.
            (true, _) if watched => self.ask(&name, now),
            (true, _) => {}
            (false, true) => self.confirm(&name),
            (false, false) => self.arrive(&name, watched, now),
        }
    }

    /// Takes a newer claim of a known node.
    fn replace(&mut self, name: &Name, claim: Claim) {
        let Some(known) = self.nodes.get_mut(name) else {
            return;
        };
        let changed = known.active && known.said.claim.node != claim.node;
        if known.said.claim.is_of_process(&claim) {
            known.said.claim = claim;
        } else {
            known.proved = false;
            known.was_proved = false;
            known.said = Said::of(claim);
        }
        self.replaced(name, changed);
    }

    /// Another process has taken a known node's place.
    fn succeed(&mut self, name: &Name, rival: Said) {
        let sessions = rival.sessions;
        self.replace(name, rival.claim);
        if let Some(known) = self.nodes.get_mut(name) {
            known.said.sessions = sessions;
        }
    }

    fn replaced(&mut self, name: &Name, changed: bool) {
        let Some(known) = self.nodes.get(name) else {
            return;
        };
        if changed {
            let node = known.said.claim.node.clone();
            self.events.push(PresenceEvent::Changed(node));
        }
        self.touched.insert(name.clone());
    }

    /// A session ended: its node is gone, unless a newer session has been born.
    fn on_end(&mut self, end: &Claim, now: Time) {
        let name = &end.node.name;
        let Some(known) = self.nodes.get_mut(name) else {
            return self.note_end(end, &BTreeMap::new());
        };
        known.rival.take_if(|rival| rival.ends_with(end));
        if !end.is_of_process(&known.said.claim) || known.said.is_later_than(end.session) {
            return;
        }
        let heard = known.said.end(end.session);
        if known.said.is_heard() {
            // It may live on in another session. If it ended with a broker that could not say so, it
            // will not answer.
            return self.ask(name, now + CHECK_INTERVAL);
        }
        if !heard && !end.ends(&known.said.claim) {
            return self.ask(name, now);
        }
        match known.rival.take() {
            // Which session it is in now was never heard: perhaps a later one.
            None if known.said.claim.is_adopted() => self.ask(name, now),
            None => {
                let sessions = std::mem::take(&mut known.said.sessions);
                self.remove(name);
                self.note_end(end, &sessions);
            }
            Some(rival) => {
                let sessions = std::mem::take(&mut known.said.sessions);
                self.succeed(name, rival);
                self.ask(name, now);
                // Whatever becomes of the rival: this process has ended (simulator, seed 56).
                self.note_end(end, &sessions);
            }
        }
    }

    /// A process has ended with this session, having had those.
    fn note_end(&mut self, end: &Claim, sessions: &BTreeMap<Link, Heard>) {
        let name = &end.node.name;
        if self.ended.len() >= MAX_NODES && !self.ended.contains_key(name) {
            return;
        }
        let process = end.process();
        let is_same = |before: &Ended| before.process == process;
        let before = self.ended.remove(name).filter(is_same);
        let mut ended = before.unwrap_or(Ended {
            process,
            epochs: BTreeMap::new(),
        });
        let heard = sessions.iter().map(|(link, heard)| (*link, heard.epoch));
        for (link, epoch) in heard.chain([(end.session.link, end.session.epoch)]) {
            let last = ended.epochs.entry(link).or_insert(epoch);
            *last = epoch.max(*last);
        }
        self.ended.insert(name.clone(), ended);
    }

    /// The cluster has agreed anew that this node is there: whoever said so knows of a later session.
    pub(crate) fn forget_end(&mut self, name: &Name) {
        self.ended.remove(name);
    }

    /// The cluster has agreed that this process is gone, and it is not for us to ask. Should it be
    /// later, its kept birth counts for nothing until it answers.
    pub(crate) fn agreed_gone(&mut self, agreed: &AgreedNode) {
        let process = (agreed.key, agreed.incarnation);
        if let Some(tracked) = self.nodes.get_mut(&agreed.name)
            && tracked.said.claim.process() == process
        {
            (tracked.active, tracked.proved) = (false, false);
        }
    }

    /// A node was born just now; that it lives is still to be proved, unless it is known.
    fn arrive(&mut self, name: &Name, watched: bool, now: Time) {
        let Some(tracked) = self.nodes.get_mut(name) else {
            return;
        };
        let was_there = self::arrived(tracked, &mut self.events);
        self.touched.insert(name.clone());
        if !was_there && watched {
            // A node proves itself as it joins; one that only says that it is there waits to be asked.
            let at = match tracked.said.claim.node.role == OBSERVER {
                true => now,
                false => now + CHECK_INTERVAL,
            };
            self.ask(name, at);
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
        let asked = self.nodes.get(name).is_some_and(|t| t.check.is_some());
        if !asked {
            self.check(name, Some(Check::from(at, CHECK_INTERVAL)));
        }
    }

    fn check(&mut self, name: &Name, check: Option<Check>) {
        let Some(tracked) = self.nodes.get_mut(name) else {
            return;
        };
        let at = check.as_ref().map(|check| check.at);
        if let Some(before) = std::mem::replace(&mut tracked.check, check) {
            self.checks.remove(&(before.at, name.clone()));
        }
        if let Some(at) = at {
            self.checks.insert((at, name.clone()));
        }
    }

    fn confirm(&mut self, name: &Name) {
        self.check(name, None);
        self.ended.remove(name);
        let Some(tracked) = self.nodes.get_mut(name) else {
            return;
        };
        let was_there = arrived(tracked, &mut self.events);
        tracked.was_proved = true;
        if !std::mem::replace(&mut tracked.proved, true) || !was_there {
            self.touched.insert(name.clone());
        }
    }

    fn remove(&mut self, name: &Name) {
        self.check(name, None);
        let Some(tracked) = self.nodes.remove(name) else {
            return;
        };
        self.touched.insert(name.clone());
        if tracked.active {
            self.events
                .push(PresenceEvent::Departed(tracked.said.claim.node));
        }
    }

    /// The process of that name has proved that it lives.
    pub(crate) fn on_admitted(&mut self, name: &Name, key: NodeKey, incarnation: Incarnation) {
        let proved = |claim: &Claim| claim.process() == (key, incarnation);
        let Some(tracked) = self.nodes.get_mut(name) else {
            return;
        };
        if let Some(rival) = tracked.rival.take_if(|rival| proved(&rival.claim)) {
            self.succeed(name, rival);
            self.confirm(name);
        } else if proved(&tracked.said.claim) {
            self.confirm(name);
        }
    }

    /// Something fresh was heard of this process: no need to ask it.
    pub(crate) fn on_heard(&mut self, name: &Name, key: NodeKey, incarnation: Incarnation) {
        let tracked = self.nodes.get(name);
        let in_doubt = tracked.is_some_and(|tracked| {
            (tracked.check.is_some() || !tracked.proved)
                && tracked.said.claim.process() == (key, incarnation)
        });
        if in_doubt {
            self.confirm(name);
        }
    }

    /// A process answered, with its birth, a question that it was asked to prove itself. False where
    /// nobody asks, or asked otherwise.
    pub(crate) fn on_answer(&mut self, claim: Claim, echo: u64) -> bool {
        let name = claim.node.name.clone();
        let tracked = self.nodes.get_mut(&name);
        let check = tracked.as_ref().and_then(|tracked| tracked.check.as_ref());
        let fits = check.is_some_and(|check| check.challenges.contains(&Some(echo)));
        let Some(tracked) = tracked.filter(|_| fits && claim.online) else {
            return false;
        };
        let is_rival = |rival: &mut Said| rival.claim.is_of_process(&claim);
        if let Some(rival) = tracked.rival.take_if(is_rival) {
            self.succeed(&name, rival);
        }
        let tracked = &self.nodes[&name];
        if !tracked.said.claim.is_newer_than(&claim) {
            self.replace(&name, claim);
        }
        self.confirm(&name);
        true
    }

    /// We were cut off: nobody's end would have reached us, so everyone is asked after a while who is
    /// for us to ask.
    pub(crate) fn on_reconnected(&mut self, watched: impl Fn(&ActiveNode) -> bool, now: Time) {
        let at = now + CHECK_INTERVAL;
        self.checks.clear();
        for (name, tracked) in &mut self.nodes {
            tracked.proved = false;
            tracked.lose(None);
            let asks = watched(&tracked.said.claim.node);
            tracked.check = asks.then(|| Check::from(at, RECONNECT_INTERVAL));
            if asks {
                self.checks.insert((at, name.clone()));
            }
        }
    }

    /// We are cut off from one of our brokers, and others are left: whoever is there by that broker alone
    /// is asked after a while, if it is for us to ask.
    pub(crate) fn on_link_lost(
        &mut self,
        link: Link,
        watched: impl Fn(&ActiveNode) -> bool,
        now: Time,
    ) {
        let lost = |tracked: &mut Tracked| {
            let was_heard = tracked.said.is_heard();
            tracked.lose(Some(link));
            was_heard && !tracked.said.is_heard() && watched(&tracked.said.claim.node)
        };
        let nodes = self.nodes.iter_mut();
        let lost = nodes.filter_map(|(name, tracked)| lost(tracked).then(|| name.clone()));
        for name in lost.collect::<Vec<Name>>() {
            self.ask(&name, now + CHECK_INTERVAL);
        }
    }

    /// Who is for us to ask has changed.
    pub(crate) fn watch(&mut self, watched: impl Fn(&ActiveNode) -> bool, now: Time) {
        let names: Vec<Name> = self.nodes.keys().cloned().collect();
        for name in names {
            let tracked = &self.nodes[&name];
            match watched(&tracked.said.claim.node) {
                true if !tracked.proved || tracked.rival.is_some() => self.ask(&name, now),
                true => {}
                false => self.check(&name, None),
            }
        }
    }

    /// The cluster has agreed that this node is there. It counts until we have asked it in vain, or
    /// have heard that it ended.
    pub(crate) fn adopt(&mut self, agreed: &AgreedNode, now: Time) {
        let claim = Claim::adopted(agreed);
        let name = &agreed.name;
        let has_room = self.nodes.len() < MAX_NODES;
        if self.has_ended(name, claim.process()) {
            return;
        }
        match self.nodes.get_mut(name) {
            Some(known) if known.active => return,
            Some(known) if known.said.claim.is_of_process(&claim) => {
                if known.is_given_up() {
                    return;
                }
            }
            Some(known) => known.rival = Some(std::mem::replace(&mut known.said, Said::of(claim))),
            None if has_room => {
                self.nodes.insert(name.clone(), Tracked::of(claim));
            }
            None => return,
        }
        if let Some(tracked) = self.nodes.get_mut(name) {
            arrived(tracked, &mut self.events);
            self.check(name, Some(Check::from(now, CHECK_INTERVAL)));
        }
    }

    /// Whom to ask now, for `challenge` as an answer; those who did not answer are given up.
    pub(crate) fn due(&mut self, challenge: u64, now: Time) -> Asks {
        let mut asks = Asks::default();
        if now < self.look_at {
            return asks;
        }
        let due = self.checks.iter().take_while(|(at, _)| *at <= now);
        let due: Vec<Name> = due.map(|(_, name)| name.clone()).collect();
        if due.is_empty() {
            return asks;
        }
        // Looking costs more the more there are: not for each of them alone.
        self.look_at = now + CHECK_GAP;
        if due.len() > ROLL_CALL && 2 * due.len() > self.nodes.len() {
            let all = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
            asks.everyone = Some(Duration::from_secs(all.into()) / ANSWERS_A_SECOND);
        }
        let window = asks.everyone.unwrap_or_default();
        let at_once = match asks.everyone {
            Some(_) => due.len(),
            None => ASKED_AT_ONCE,
        };
        for name in due.into_iter().take(at_once) {
            if let Some(asked) = self.ask_again(&name, challenge, window, now)
                && asks.everyone.is_none()
            {
                asks.names.push((name, asked));
            }
        }
        asks
    }

    /// How often a node was asked before, if it is asked once more.
    fn ask_again(
        &mut self,
        name: &Name,
        challenge: u64,
        window: Duration,
        now: Time,
    ) -> Option<u32> {
        let tracked = self.nodes.get_mut(name)?;
        let mut check = tracked.check.take()?;
        self.checks.remove(&(check.at, name.clone()));
        if check.asked == CHECKS && std::mem::take(&mut tracked.active) {
            let node = tracked.said.claim.node.clone();
            self.events.push(PresenceEvent::Departed(node));
            self.touched.insert(name.clone());
            // Whoever claims its place may be slow to prove that it lives: it is asked anew.
            tracked.proved = false;
            if let Some(rival) = tracked.rival.take() {
                let given_up = std::mem::replace(&mut tracked.said, rival);
                tracked.was_proved = false;
                check.asked = 0;
                // The cluster may still have it that this process is there.
                self.note_end(&given_up.claim, &given_up.sessions);
            }
        }
        let asked = check.asked;
        if asked >= MAX_CHECKS {
            self.remove(name);
            return None;
        }
        let doublings = asked.saturating_sub(CHECKS).min(8);
        let wait = check.interval.saturating_mul(1 << doublings);
        check.asked += 1;
        check.at = now + wait.min(MAX_CHECK_INTERVAL) + window;
        check.challenges = [Some(challenge), check.challenges[0]];
        self.check(name, Some(check));
        Some(asked)
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.checks.first().map(|(at, _)| (*at).max(self.look_at))
    }
}

impl Check {
    fn from(at: Time, interval: Duration) -> Check {
        Check {
            asked: 0,
            at,
            interval,
            challenges: [None, None],
        }
    }
}

/// Counts a node as there; whether it was before.
fn arrived(tracked: &mut Tracked, events: &mut Vec<PresenceEvent>) -> bool {
    let was_there = std::mem::replace(&mut tracked.active, true);
    if !was_there {
        events.push(PresenceEvent::Arrived(tracked.said.claim.node.clone()));
    }
    was_there
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
            session: Session::first(1),
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
                tags: Tags::default(),
            };
            let birth = Status::online(&ring, speaker, 1, &condition);
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
            session: Session::first(1),
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
            tags: Tags::default(),
        };
        let birth = Status::online(&ring, other, 1, &condition);
        let claim = Status::parse(&ring, me.root, other.name, &birth).expect("its own birth");
        let mut presence = Presence::default();
        let read = |retained, proved| Read {
            over: Link::FIRST,
            retained,
            proved,
            watched: true,
        };
        presence.on_claim(claim, read(true, false), Time(0));
        let mut asked = 0;
        for second in 0..60 {
            asked += presence.due(0, Time(second * 1_000_000)).names.len();
            assert_eq!(presence.active().count(), 0, "nothing is proved");
        }
        assert!((6..12).contains(&asked), "asked {asked} times in a minute");
        presence.on_heard(other.name, other.key, other.incarnation);
        assert_eq!(presence.active().count(), 1);
        let later = presence.due(0, Time(3_600_000_000));
        assert_eq!(later, Asks::default(), "who has answered is left alone");
    }

    /// Simulator, seeds 157, 167, 286: a node died with the broker, which kept its birth. All others
    /// agreed that it was gone; whoever led next, and had not asked it before, saw it there again for
    /// three seconds.
    #[test]
    fn who_is_agreed_to_be_gone_is_not_there_again_for_the_next_leader() {
        let other = name("b");
        let (key, incarnation) = (NodeKey(2), Incarnation([2; 16]));
        let speaker = Speaker {
            root: "raft/plant",
            name: &other,
            key,
            incarnation,
            session: Session::first(1),
        };
        let ring = KeyRing::insecure();
        let condition = Condition {
            role: "learner",
            term: 1,
            metric: Metric::default(),
            tags: Tags::default(),
        };
        let birth = Status::online(&ring, speaker, 1, &condition);
        let birth = Status::parse(&ring, speaker.root, &other, &birth).expect("its own birth");
        let mut presence = Presence::default();
        let read = Read {
            over: Link::FIRST,
            retained: false,
            proved: false,
            watched: false,
        };
        presence.on_claim(birth, read, Time(0));
        assert_eq!(presence.active().count(), 1);
        presence.agreed_gone(&AgreedNode {
            name: other.clone(),
            key,
            incarnation,
            role: crate::agreed::AgreedRole::Learner,
            metric: Metric::default(),
            tags: Tags::default(),
        });
        presence.watch(|_| true, Time(1));
        assert_eq!(
            presence.active().count(),
            0,
            "nothing but its old birth says so"
        );
        let asked = presence.due(7, Time(1));
        assert_eq!(asked.names, [(other.clone(), 0)], "it may live after all");
        presence.on_heard(&other, key, incarnation);
        assert_eq!(presence.active().count(), 1, "and then it is there");
    }

    /// Simulator, seed 359: the only voter died with the broker, so that nobody could agree on its end.
    /// Who had asked it in vain asked the process of an old birth next, and with that forgot what it
    /// knew of the first: it was there again.
    #[test]
    fn who_was_asked_in_vain_is_denied_whoever_claims_its_place() {
        let other = name("b");
        let ring = KeyRing::insecure();
        let condition = Condition {
            role: "leader",
            term: 1,
            metric: Metric::default(),
            tags: Tags::default(),
        };
        let birth = |n: u8| {
            let speaker = Speaker {
                root: "raft/plant",
                name: &other,
                key: NodeKey(2),
                incarnation: Incarnation([n; 16]),
                session: Session::first(1),
            };
            let birth = Status::online(&ring, speaker, 1, &condition);
            Status::parse(&ring, speaker.root, &other, &birth).expect("its own birth")
        };
        let mut presence = Presence::default();
        let read = |proved| Read {
            over: Link::FIRST,
            retained: false,
            proved,
            watched: true,
        };
        presence.on_claim(birth(2), read(true), Time(0));
        presence.on_claim(birth(1), read(false), Time(0));
        let mut at = Time(0);
        while presence.active().count() > 0 {
            presence.due(0, at);
            at = at + CHECK_INTERVAL;
        }
        let agreed = AgreedNode {
            name: other.clone(),
            key: NodeKey(2),
            incarnation: Incarnation([2; 16]),
            role: crate::agreed::AgreedRole::Voter,
            metric: Metric::default(),
            tags: Tags::default(),
        };
        assert!(presence.denies(&agreed));
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
            session: Session::first(1),
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
            tags: Tags::default(),
        };
        let birth = |of: Speaker<'_>| {
            let birth = Status::online(&ring, of, 1, &condition);
            Status::parse(&ring, me.root, &other, &birth).expect("its own birth")
        };
        let mut presence = Presence::default();
        let read = |proved| Read {
            over: Link::FIRST,
            retained: false,
            proved,
            watched: true,
        };
        presence.on_claim(birth(old), read(true), Time(0));
        assert_eq!(presence.active().count(), 1);
        presence.on_claim(birth(new), read(false), Time(0));
        let mut at = Time(0);
        while presence.active().count() > 0 {
            presence.due(0, at);
            at = at + CHECK_INTERVAL;
        }
        presence.on_admitted(&other, new.key, new.incarnation);
        assert_eq!(presence.active().count(), 1);
    }

    /// Two brokers' view of one other node, `b`, as node `a` has it.
    struct Seen {
        presence: Presence,
        ring: KeyRing,
        now: Time,
    }

    const A: Link = Link::FIRST;

    impl Seen {
        fn new() -> Seen {
            Seen {
                presence: Presence::default(),
                ring: KeyRing::insecure(),
                now: Time(0),
            }
        }

        fn other(link: Link, epoch: u64) -> Session {
            Session { link, epoch }
        }

        fn claim(&self, process: u8, session: Session, news: Option<(u64, &'static str)>) -> Claim {
            let name = name("b");
            let speaker = Speaker {
                root: "raft/plant",
                name: &name,
                key: NodeKey(2),
                incarnation: Incarnation([process; 16]),
                session,
            };
            let status = match news {
                None => Status::offline(&self.ring, speaker),
                Some((count, role)) => {
                    let condition = Condition {
                        role,
                        term: 1,
                        metric: Metric::default(),
                        tags: Tags::default(),
                    };
                    Status::online(&self.ring, speaker, count, &condition)
                }
            };
            Status::parse(&self.ring, "raft/plant", &name, &status).expect("its own")
        }

        fn hear(&mut self, over: Link, claim: Claim) {
            let read = Read {
                over,
                retained: false,
                proved: true,
                watched: true,
            };
            self.presence.on_claim(claim, read, self.now);
        }

        fn is_there(&self) -> bool {
            self.presence.get("b").is_some()
        }

        /// How often it is asked in so many seconds, while it does not answer.
        fn asked(&mut self, seconds: u64) -> usize {
            let mut asked = 0;
            for _ in 0..10 * seconds {
                self.now = self.now + Duration::from_millis(100);
                asked += self.presence.due(0, self.now).names.len();
            }
            asked
        }
    }

    fn b() -> Link {
        Link::new(1).expect("a second broker")
    }

    #[test]
    fn a_node_is_gone_when_its_last_session_ends() {
        let mut seen = Seen::new();
        let sessions = [Seen::other(A, 1), Seen::other(b(), 1)];
        seen.hear(A, seen.claim(1, sessions[0], Some((1, "follower"))));
        seen.hear(b(), seen.claim(1, sessions[1], Some((1, "follower"))));
        seen.hear(A, seen.claim(1, sessions[0], None));
        assert!(seen.is_there(), "by its other broker");
        seen.hear(b(), seen.claim(1, sessions[1], None));
        assert!(!seen.is_there(), "at once");
    }

    /// A broker that died with it does not say that it ended; the other one does.
    #[test]
    fn a_node_whose_other_end_nobody_tells_is_asked() {
        let mut seen = Seen::new();
        let sessions = [Seen::other(A, 1), Seen::other(b(), 1)];
        seen.hear(A, seen.claim(1, sessions[0], Some((1, "follower"))));
        seen.hear(b(), seen.claim(1, sessions[1], Some((1, "follower"))));
        seen.hear(A, seen.claim(1, sessions[0], None));
        assert!(seen.asked(10) >= CHECKS as usize);
        assert!(!seen.is_there(), "it did not answer");
    }

    #[test]
    fn a_broker_that_we_lost_is_not_waited_for() {
        let mut seen = Seen::new();
        let sessions = [Seen::other(A, 1), Seen::other(b(), 1)];
        seen.hear(A, seen.claim(1, sessions[0], Some((1, "follower"))));
        seen.hear(b(), seen.claim(1, sessions[1], Some((1, "follower"))));
        seen.presence.on_link_lost(A, |_| true, seen.now);
        assert_eq!(seen.asked(10), 0, "the other broker tells its end");
        seen.hear(b(), seen.claim(1, sessions[1], None));
        assert!(!seen.is_there());

        // Who is there by the lost broker alone is asked.
        let mut seen = Seen::new();
        seen.hear(A, seen.claim(1, sessions[0], Some((1, "follower"))));
        seen.presence.on_link_lost(A, |_| true, seen.now);
        assert!(seen.asked(10) >= CHECKS as usize);
        assert!(!seen.is_there());
    }

    /// The slower broker's news are old; its session counts all the same.
    #[test]
    fn old_news_by_a_slow_broker_are_no_news() {
        let mut seen = Seen::new();
        let sessions = [Seen::other(A, 7), Seen::other(b(), 1)];
        seen.hear(A, seen.claim(1, sessions[0], Some((3, "leader"))));
        seen.hear(b(), seen.claim(1, sessions[1], Some((2, "candidate"))));
        let role = |seen: &Seen| seen.presence.get("b").map(|node| node.role.clone());
        assert_eq!(role(&seen).as_deref(), Some("leader"));
        seen.hear(b(), seen.claim(1, sessions[1], Some((4, "follower"))));
        assert_eq!(
            role(&seen).as_deref(),
            Some("follower"),
            "whatever the epochs"
        );
        seen.hear(A, seen.claim(1, sessions[0], None));
        assert!(seen.is_there(), "by the slow one");
    }

    /// A broker was down while a node died, and comes back with the birth that it kept. A bridge brings
    /// that as if it were said now: the node was there again for all, though its process was known to
    /// have ended in its last session.
    #[test]
    fn a_late_birth_of_any_session_does_not_raise_the_dead() {
        let mut seen = Seen::new();
        let sessions = [Seen::other(A, 1), Seen::other(b(), 1)];
        seen.hear(A, seen.claim(1, sessions[0], Some((1, "follower"))));
        seen.hear(b(), seen.claim(1, sessions[1], Some((1, "follower"))));
        seen.presence.on_link_lost(A, |_| true, seen.now);
        seen.hear(b(), seen.claim(1, sessions[1], None));
        assert!(!seen.is_there());
        seen.hear(b(), seen.claim(1, sessions[0], Some((1, "follower"))));
        assert!(!seen.is_there(), "it is dead");
        assert!(seen.asked(10) >= CHECKS as usize, "it might not be");
        assert!(!seen.is_there());

        // One that no session of this process was heard of yet is late as well.
        let c = Link::new(2).expect("a third broker");
        let mut seen = Seen::new();
        seen.hear(A, seen.claim(1, sessions[0], Some((1, "follower"))));
        seen.hear(A, seen.claim(1, sessions[0], None));
        seen.hear(b(), seen.claim(1, Seen::other(c, 1), Some((1, "follower"))));
        assert!(!seen.is_there());

        // A later session is as good as ever.
        seen.hear(A, seen.claim(1, Seen::other(A, 2), Some((2, "follower"))));
        assert!(seen.is_there());
    }

    /// The will of a session that was replaced, as a slow broker or a bridge may bring it.
    #[test]
    fn the_end_of_a_replaced_session_ends_nothing() {
        let mut seen = Seen::new();
        seen.hear(A, seen.claim(1, Seen::other(A, 1), Some((1, "follower"))));
        seen.hear(A, seen.claim(1, Seen::other(A, 2), Some((1, "follower"))));
        seen.hear(b(), seen.claim(1, Seen::other(A, 1), None));
        assert!(seen.is_there());
        assert_eq!(seen.asked(5), 0);
        // Of a link that was never heard of: perhaps all that is left, so it is asked no more than that.
        seen.hear(b(), seen.claim(1, Seen::other(b(), 1), None));
        assert!(seen.is_there());
    }

    /// Both sessions of a successor are known before it takes its predecessor's place.
    #[test]
    fn a_rival_brings_its_sessions_along() {
        let mut seen = Seen::new();
        let read = |over| Read {
            over,
            retained: false,
            proved: false,
            watched: true,
        };
        seen.hear(A, seen.claim(1, Seen::other(A, 1), Some((1, "follower"))));
        let births = [
            seen.claim(2, Seen::other(A, 1), Some((1, "follower"))),
            seen.claim(2, Seen::other(b(), 1), Some((1, "follower"))),
        ];
        let [first, second] = births;
        seen.presence.on_claim(first, read(A), seen.now);
        seen.presence.on_claim(second, read(b()), seen.now);
        seen.presence
            .on_admitted(&name("b"), NodeKey(2), Incarnation([2; 16]));
        seen.hear(A, seen.claim(2, Seen::other(A, 1), None));
        assert!(seen.is_there(), "by its other broker");
        seen.hear(b(), seen.claim(2, Seen::other(b(), 1), None));
        assert!(!seen.is_there());
    }
}
