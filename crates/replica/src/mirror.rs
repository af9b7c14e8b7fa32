//! Chosen keys as retained messages, for clients that only subscribe: docs/mqtt-api.md.
//!
//! Two maps are held against each other: what the state holds and what the broker was last heard to
//! hold. A change is published at once. Whatever else differs, since it was deleted while nobody
//! mirrored, or somebody else published there, or a message was lost, is mended a little later. So a
//! new leader publishes only what has changed, and needs no memory of what the last one did.
//!
//! No node reads the mirror: it is a hint, and as trustworthy as the broker and its ACL.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raft::Time;

use crate::allowance::{Allowance, Bucket};
use crate::state::{KeyEvent, KeyRange, KeyValue, RESERVED};

/// How long what was published has to come back, and what is retained to arrive.
const SETTLE: Duration = Duration::from_secs(1);

/// How long a slow broker is waited for at most before what it has not delivered counts as absent.
const MAX_SYNC: Duration = Duration::from_secs(30);

/// A broker that does not keep what it is given is asked less and less often: at most so many times
/// [`SETTLE`] is doubled.
const MAX_DOUBLINGS: u32 = 8;

/// How fast the mirror is brought up to date: messages a second, and at once.
const PACE: Allowance = Allowance::new(1_000, 1_000);

/// A message counts once more for each so many bytes: 4 MiB a second at the above pace.
const BYTES_OF_ONE: usize = 4 << 10;

/// How many topics that are none of ours are removed at a time; more stay until these are gone.
const MAX_FOREIGN: usize = 65_536;

/// AWS IoT takes no more in a topic.
const MAX_SLASHES: usize = 7;

/// The mirror of one cluster, kept by whoever leads.
#[derive(Debug)]
pub struct Mirror {
    /// `<prefix>/<cluster>/kv/`.
    root: String,
    prefixes: Vec<Bytes>,
    /// Which of the prefixes have been read.
    listed: BTreeSet<usize>,
    topics: BTreeMap<Arc<str>, Mirrored>,
    foreign: usize,
    due: BTreeSet<(Time, Arc<str>)>,
    sync: Sync,
    pace: Bucket,
}

#[derive(Debug, Default)]
struct Mirrored {
    wanted: Option<Bytes>,
    /// What the broker last delivered.
    seen: Option<Sum>,
    /// It changed and was not published since.
    changed: bool,
    due: Option<Time>,
    /// How often it was published in vain.
    vain: u32,
}

/// What a value is recognised by: no value is kept twice, and the mirror is a hint.
type Sum = (usize, u32);

/// How far a session has come.
#[derive(Clone, Copy, Debug)]
enum Sync {
    /// There is none.
    Down,
    /// What is retained is arriving.
    Arriving { since: Time, until: Time },
    /// Whatever has not arrived is not there.
    Done,
}

/// A retained message to publish, at QoS 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retain {
    /// Its topic.
    pub topic: Arc<str>,
    /// The value; empty: it is to go.
    pub payload: Bytes,
}

impl Mirror {
    /// A mirror of the keys below these prefixes, as topics below `root`; an empty prefix is all keys
    /// but the cluster's own.
    pub fn new(root: &str, prefixes: impl IntoIterator<Item = impl Into<String>>) -> Mirror {
        // Texts, since what begins with half a character has another topic than it seems to.
        let prefixes: BTreeSet<String> = prefixes.into_iter().map(Into::into).collect();
        let mut least: Vec<Bytes> = Vec::new();
        // In order, so that whatever covers a prefix comes before it.
        for prefix in prefixes.into_iter().map(Bytes::from) {
            let covers = |least: &Bytes| KeyRange::Prefix(least.clone()).contains(&prefix);
            if !least.iter().any(covers) {
                least.push(prefix);
            }
        }
        Mirror {
            root: format!("{root}/kv/"),
            prefixes: least,
            listed: BTreeSet::new(),
            topics: BTreeMap::new(),
            foreign: 0,
            due: BTreeSet::new(),
            sync: Sync::Down,
            pace: Bucket::new(PACE),
        }
    }

    /// What is to be read and watched; [`Mirror::on_listed`] takes the number of each.
    pub fn ranges(&self) -> impl Iterator<Item = KeyRange> {
        self.prefixes.iter().cloned().map(KeyRange::Prefix)
    }

    /// The topic filter of all that is mirrored.
    pub fn filter(&self) -> String {
        format!("{}#", self.root)
    }

    /// A session is up, and what is retained is about to arrive.
    pub fn on_connected(&mut self, now: Time) {
        self.on_disconnected();
        self.sync = Sync::Arriving {
            since: now,
            until: now + SETTLE,
        };
    }

    /// The session is gone, and with it all knowledge of what the broker holds.
    pub fn on_disconnected(&mut self) {
        self.sync = Sync::Down;
        self.due.clear();
        self.topics.retain(|_, mirrored| {
            mirrored.seen = None;
            mirrored.changed = false;
            mirrored.due = None;
            mirrored.vain = 0;
            mirrored.wanted.is_some()
        });
        self.foreign = 0;
    }

    /// The keys of a range as they stand; changes from there on follow.
    pub fn on_listed(&mut self, range: usize, pairs: Vec<KeyValue>, now: Time) {
        let Some(prefix) = self.prefixes.get(range) else {
            return;
        };
        let topic = |key: &Bytes| -> Arc<str> { topic_of(&self.root, key).into() };
        let listed = pairs.into_iter().map(|pair| (topic(&pair.key), pair.value));
        let mut listed: BTreeMap<Arc<str>, Bytes> = listed.collect();
        // Escaped or not, what begins alike has topics that begin alike.
        let below: Arc<str> = topic(prefix);
        let known = self.topics.range(Arc::clone(&below)..);
        let known = known.take_while(|(topic, _)| topic.starts_with(&*below));
        let own = topic(&Bytes::from_static(RESERVED));
        let own = |topic: &str| topic.starts_with(&*own) && !below.starts_with(&*own);
        let known = known.filter(|(topic, _)| !own(topic));
        for (topic, mirrored) in known {
            if mirrored.wanted.is_some() && !listed.contains_key(topic) {
                listed.insert(Arc::clone(topic), Bytes::new());
            }
        }
        for (topic, value) in listed {
            self.want(topic, value, false, now);
        }
        self.listed.insert(range);
        self.look_at_all(now);
    }

    /// A key has changed.
    pub fn on_change(&mut self, event: &KeyEvent, now: Time) {
        let topic = topic_of(&self.root, event.key()).into();
        let value = match event {
            KeyEvent::Put(pair) => pair.value.clone(),
            KeyEvent::Delete { .. } => Bytes::new(),
        };
        self.want(topic, value, true, now);
    }

    fn want(&mut self, topic: Arc<str>, value: Bytes, changed: bool, now: Time) {
        let mirrored = self.topics.entry(Arc::clone(&topic)).or_default();
        let was_foreign = mirrored.wanted.is_none() && mirrored.seen.is_some();
        self.foreign -= usize::from(was_foreign && self.foreign > 0);
        // To MQTT an empty value is none.
        mirrored.wanted = (!value.is_empty()).then_some(value);
        if changed {
            mirrored.changed = true;
            mirrored.vain = 0;
            self.schedule(&topic, now);
        } else if matches!(self.sync, Sync::Done) {
            self.schedule(&topic, now + SETTLE);
        }
    }

    /// Takes a message of the broker; false if its topic is none of the mirror's.
    pub fn on_delivered(&mut self, topic: &str, payload: &[u8], retained: bool, now: Time) -> bool {
        if !topic.starts_with(&self.root) {
            return false;
        }
        if let (true, Sync::Arriving { since, until }) = (retained, &mut self.sync) {
            *until = (now + SETTLE).min(*since + MAX_SYNC);
        }
        let seen = sum_of(payload);
        let known = self.topics.contains_key(topic);
        if !known && (seen.is_none() || self.foreign >= MAX_FOREIGN) {
            return true;
        }
        self.foreign += usize::from(!known);
        let topic: Arc<str> = topic.into();
        let mirrored = self.topics.entry(Arc::clone(&topic)).or_default();
        mirrored.seen = seen;
        let differs = mirrored.differs();
        if differs && mirrored.due.is_none() && matches!(self.sync, Sync::Done) {
            // What we published last may be on its way back still.
            self.schedule(&topic, now + SETTLE);
        }
        true
    }

    /// What is to be published now.
    pub fn step(&mut self, now: Time) -> Vec<Retain> {
        if let Sync::Arriving { until, .. } = self.sync
            && until <= now
        {
            self.sync = Sync::Done;
            self.look_at_all(now);
        }
        let mut publishes = Vec::new();
        while let Some((at, topic)) = self.due.first().cloned()
            && at <= now
        {
            let cost = self.topics.get(&topic).map_or(1, Mirrored::cost);
            if !self.pace.take(cost, now) {
                break;
            }
            self.due.pop_first();
            publishes.extend(self.attend(topic, now));
        }
        publishes
    }

    /// Sees to one topic whose time has come.
    fn attend(&mut self, topic: Arc<str>, now: Time) -> Option<Retain> {
        let all_listed = self.listed.len() == self.prefixes.len();
        let mirrored = self.topics.get_mut(&topic)?;
        mirrored.due = None;
        if !mirrored.changed && !mirrored.differs() {
            mirrored.vain = 0;
            if mirrored.wanted.is_none() {
                self.topics.remove(&topic);
            }
            return None;
        }
        // Before everything was read there is no telling what is to go.
        if mirrored.wanted.is_none() && !mirrored.changed && !all_listed {
            return None;
        }
        mirrored.changed = false;
        let again = now + SETTLE * (1 << mirrored.vain.min(MAX_DOUBLINGS));
        mirrored.vain += 1;
        let payload = mirrored.wanted.clone().unwrap_or_default();
        self.schedule(&topic, again);
        Some(Retain { topic, payload })
    }

    /// It could not be published: the queue towards the broker is full.
    pub fn on_full(&mut self, topic: &Arc<str>, now: Time) {
        if let Some(mirrored) = self.topics.get_mut(topic) {
            mirrored.changed = true;
            mirrored.vain = 0;
            self.schedule(topic, now + SETTLE / 10);
        }
    }

    /// When [`Mirror::step`] has something to do.
    pub fn next_deadline(&self) -> Option<Time> {
        let sync = match self.sync {
            Sync::Down => return None,
            Sync::Arriving { until, .. } => Some(until),
            Sync::Done => None,
        };
        let due = self.due.first().map(|(at, topic)| {
            let cost = self.topics.get(topic).map_or(1, Mirrored::cost);
            (*at).max(self.pace.ready_at(cost))
        });
        sync.into_iter().chain(due).min()
    }

    fn look_at_all(&mut self, now: Time) {
        if !matches!(self.sync, Sync::Done) {
            return;
        }
        let differ = self.topics.iter().filter(|(_, m)| m.differs());
        let differ: Vec<_> = differ.map(|(topic, _)| Arc::clone(topic)).collect();
        for topic in differ {
            self.schedule(&topic, now);
        }
    }

    fn schedule(&mut self, topic: &Arc<str>, at: Time) {
        if matches!(self.sync, Sync::Down) {
            return;
        }
        if let Some(mirrored) = self.topics.get_mut(topic)
            && mirrored.due.is_none_or(|due| due > at)
        {
            if let Some(due) = mirrored.due.replace(at) {
                self.due.remove(&(due, Arc::clone(topic)));
            }
            self.due.insert((at, Arc::clone(topic)));
        }
    }
}

impl Mirrored {
    fn differs(&self) -> bool {
        self.seen != self.wanted.as_deref().and_then(sum_of)
    }

    fn cost(&self) -> u32 {
        let bytes = self.wanted.as_ref().map_or(0, Bytes::len);
        u32::try_from(bytes.div_ceil(BYTES_OF_ONE).max(1)).unwrap_or(u32::MAX)
    }
}

fn sum_of(payload: &[u8]) -> Option<Sum> {
    (!payload.is_empty()).then(|| (payload.len(), crc32fast::hash(payload)))
}

/// The topic of a key: the key itself, but percent-encoded where it is no text, or a character is a
/// wildcard, a control or one that MQTT advises against, or a slash too many. `%` is written `%25`, so
/// decoding gives the key back, and no two keys share a topic.
fn topic_of(root: &str, key: &[u8]) -> String {
    let mut topic = String::with_capacity(root.len() + key.len());
    topic.push_str(root);
    let mut slashes = root.matches('/').count();
    for chunk in key.utf8_chunks() {
        for c in chunk.valid().chars() {
            slashes += usize::from(c == '/');
            if is_plain(c) && (c != '/' || slashes <= MAX_SLASHES) {
                topic.push(c);
            } else {
                escape(c.encode_utf8(&mut [0; 4]).as_bytes(), &mut topic);
            }
        }
        escape(chunk.invalid(), &mut topic);
    }
    topic
}

fn is_plain(c: char) -> bool {
    let noncharacter = matches!(c, '\u{FDD0}'..='\u{FDEF}') || u32::from(c) & 0xFFFE == 0xFFFE;
    !(matches!(c, '%' | '+' | '#') || c.is_control() || noncharacter)
}

fn escape(bytes: &[u8], topic: &mut String) {
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(topic, "%{byte:02X}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::LeaseId;

    const ROOT: &str = "raft/plant-a";
    const START: Time = Time(1_000_000_000);

    fn pair(key: &str, value: &str) -> KeyValue {
        KeyValue {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            created: 1,
            modified: 1,
            version: 1,
            lease: LeaseId::NONE,
        }
    }

    fn put(key: &str, value: &str) -> KeyEvent {
        KeyEvent::Put(pair(key, value))
    }

    fn delete(key: &str) -> KeyEvent {
        KeyEvent::Delete {
            key: key.to_owned().into(),
            revision: 2,
        }
    }

    /// A mirror, and a broker that keeps what it is given and says it back.
    struct Bench {
        mirror: Mirror,
        broker: BTreeMap<String, Bytes>,
        published: Vec<String>,
        now: Time,
        deaf: bool,
    }

    impl Bench {
        fn new(prefixes: &[&'static str]) -> Bench {
            Bench {
                mirror: Mirror::new(ROOT, prefixes.iter().copied()),
                broker: BTreeMap::new(),
                published: Vec::new(),
                now: START,
                deaf: false,
            }
        }

        fn connect(&mut self) {
            self.mirror.on_connected(self.now);
            for (topic, payload) in &self.broker {
                assert!(self.mirror.on_delivered(topic, payload, true, self.now));
            }
        }

        /// Somebody publishes.
        fn retain(&mut self, topic: &str, payload: Bytes) {
            match payload.is_empty() {
                true => drop(self.broker.remove(topic)),
                false => drop(self.broker.insert(topic.to_owned(), payload.clone())),
            }
            self.mirror.on_delivered(topic, &payload, false, self.now);
        }

        /// Lets time pass, deadline by deadline.
        fn run(&mut self, span: Duration) {
            let until = self.now + span;
            loop {
                for Retain { topic, payload } in self.mirror.step(self.now) {
                    let value = String::from_utf8_lossy(&payload).into_owned();
                    let topic = topic.strip_prefix("raft/plant-a/kv/").unwrap().to_owned();
                    self.published.push(format!("{topic}={value}"));
                    if !self.deaf {
                        self.retain(&format!("raft/plant-a/kv/{topic}"), payload);
                    }
                }
                match self.mirror.next_deadline() {
                    Some(at) if at <= until => self.now = self.now.max(at),
                    _ => break,
                }
            }
            self.now = until;
        }

        fn published(&mut self) -> Vec<String> {
            std::mem::take(&mut self.published)
        }

        fn holds(&self) -> Vec<String> {
            let held = self.broker.iter();
            let held = held.map(|(topic, value)| {
                let topic = topic.strip_prefix("raft/plant-a/kv/").unwrap();
                format!("{topic}={}", String::from_utf8_lossy(value))
            });
            held.collect()
        }
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_change_is_published_at_once_and_once() {
        let mut bench = Bench::new(&["door/"]);
        bench.connect();
        bench
            .mirror
            .on_listed(0, vec![pair("door/1", "open")], bench.now);
        bench.run(MINUTE);
        assert_eq!(bench.published(), ["door/1=open"]);
        bench.mirror.on_change(&put("door/1", "closed"), bench.now);
        bench.mirror.on_change(&put("door/2", "open"), bench.now);
        bench.run(Duration::ZERO);
        assert_eq!(bench.published(), ["door/1=closed", "door/2=open"]);
        bench.mirror.on_change(&delete("door/1"), bench.now);
        bench.run(MINUTE);
        assert_eq!(bench.published(), ["door/1="]);
        assert_eq!(bench.holds(), ["door/2=open"]);
        assert_eq!(bench.mirror.next_deadline(), None, "all is quiet");
    }

    #[test]
    fn a_new_leader_publishes_only_what_has_changed_and_removes_what_is_gone() {
        let mut bench = Bench::new(&["door/"]);
        for (key, value) in [("door/1", "open"), ("door/2", "old"), ("door/3", "gone")] {
            let topic = format!("raft/plant-a/kv/{key}");
            bench.broker.insert(topic, value.into());
        }
        bench.connect();
        let pairs = vec![
            pair("door/1", "open"),
            pair("door/2", "new"),
            pair("door/4", "came"),
        ];
        bench.mirror.on_listed(0, pairs, bench.now);
        bench.run(MINUTE);
        assert_eq!(bench.published(), ["door/2=new", "door/3=", "door/4=came"]);
        assert_eq!(bench.holds(), ["door/1=open", "door/2=new", "door/4=came"]);
        assert_eq!(bench.mirror.topics.len(), 3);
    }

    #[test]
    fn nothing_is_removed_before_all_was_read() {
        let mut bench = Bench::new(&["door/", "lamp/"]);
        bench
            .broker
            .insert("raft/plant-a/kv/lamp/1".to_owned(), "on".into());
        bench.connect();
        bench.mirror.on_listed(0, Vec::new(), bench.now);
        bench.run(MINUTE);
        assert_eq!(bench.published(), [""; 0]);
        bench.mirror.on_listed(1, Vec::new(), bench.now);
        bench.run(MINUTE);
        assert_eq!(bench.published(), ["lamp/1="]);
    }

    #[test]
    fn what_somebody_else_publishes_is_put_right_a_little_later() {
        let mut bench = Bench::new(&["door/"]);
        bench.connect();
        bench
            .mirror
            .on_listed(0, vec![pair("door/1", "open")], bench.now);
        bench.run(MINUTE);
        bench.published();
        bench.retain("raft/plant-a/kv/door/1", "forged".into());
        bench.retain("raft/plant-a/kv/never", "forged".into());
        bench.run(Duration::ZERO);
        assert_eq!(bench.published(), [""; 0]);
        bench.run(MINUTE);
        assert_eq!(bench.published(), ["door/1=open", "never="]);
        assert_eq!(bench.holds(), ["door/1=open"]);
        assert!(
            !bench
                .mirror
                .on_delivered("raft/plant-a/leader", b"{}", true, bench.now)
        );
    }

    /// Echoes of what was overtaken are on their way when the newest is published.
    #[test]
    fn an_old_echo_is_no_reason_to_publish_again() {
        let mut bench = Bench::new(&[""]);
        bench.connect();
        bench.mirror.on_listed(0, Vec::new(), bench.now);
        bench.run(MINUTE);
        bench.deaf = true;
        for value in ["1", "2", "3"] {
            bench.mirror.on_change(&put("a", value), bench.now);
            bench.run(Duration::from_millis(10));
        }
        assert_eq!(bench.published(), ["a=1", "a=2", "a=3"]);
        bench.deaf = false;
        for value in ["1", "2", "3"] {
            bench.retain("raft/plant-a/kv/a", value.into());
            bench.run(Duration::from_millis(10));
        }
        bench.run(MINUTE);
        assert_eq!(bench.published(), [""; 0]);
    }

    #[test]
    fn a_broker_that_lost_everything_is_given_it_again() {
        let mut bench = Bench::new(&[""]);
        bench.connect();
        bench
            .mirror
            .on_listed(0, vec![pair("a", "1"), pair("b", "2")], bench.now);
        bench.run(MINUTE);
        bench.mirror.on_disconnected();
        bench.mirror.on_change(&put("c", "3"), bench.now);
        bench.run(MINUTE);
        assert_eq!(bench.published().len(), 2);
        bench.broker.clear();
        bench.connect();
        bench.run(MINUTE);
        assert_eq!(bench.published(), ["a=1", "b=2", "c=3"]);
    }

    #[test]
    fn a_list_read_anew_removes_what_its_changes_did_not_tell() {
        let mut bench = Bench::new(&["a", "b"]);
        bench.connect();
        bench
            .mirror
            .on_listed(0, vec![pair("a1", "1"), pair("a2", "2")], bench.now);
        bench.mirror.on_listed(1, vec![pair("b1", "1")], bench.now);
        bench.run(MINUTE);
        bench.mirror.on_listed(0, vec![pair("a2", "3")], bench.now);
        bench.run(MINUTE);
        assert_eq!(bench.holds(), ["a2=3", "b1=1"]);
    }

    /// All keys are all but the cluster's own, which stand below the same topic.
    #[test]
    fn a_list_of_all_keys_says_nothing_of_the_clusters_own() {
        let mut bench = Bench::new(&["", "_/node/"]);
        bench.connect();
        bench
            .mirror
            .on_listed(1, vec![pair("_/node/gw-1", "here")], bench.now);
        bench.mirror.on_listed(0, vec![pair("a", "1")], bench.now);
        bench.mirror.on_listed(0, Vec::new(), bench.now);
        bench.run(MINUTE);
        assert_eq!(bench.holds(), ["_/node/gw-1=here"]);
    }

    #[test]
    fn a_broker_that_keeps_nothing_is_asked_less_and_less() {
        let mut bench = Bench::new(&[""]);
        bench.deaf = true;
        bench.connect();
        bench.mirror.on_listed(0, vec![pair("a", "1")], bench.now);
        bench.run(Duration::from_secs(3_600));
        let published = bench.published().len();
        assert!((10..30).contains(&published), "{published}");
    }

    #[test]
    fn a_large_mirror_is_brought_up_to_date_at_a_pace() {
        let mut bench = Bench::new(&[""]);
        bench.connect();
        let pairs = (0..5_000).map(|number| pair(&format!("{number:04}"), "x"));
        bench.mirror.on_listed(0, pairs.collect(), bench.now);
        bench.run(Duration::from_secs(1));
        assert_eq!(bench.published().len(), 1_000, "what may come at once");
        bench.run(Duration::from_secs(1));
        assert!((900..=1_100).contains(&bench.published().len()));
        bench.run(Duration::from_secs(10));
        assert_eq!(bench.broker.len(), 5_000);
    }

    /// Whoever may publish below `kv/` must not fill our memory.
    #[test]
    fn foreign_topics_are_bounded() {
        let mut bench = Bench::new(&[""]);
        bench.connect();
        bench.mirror.on_listed(0, Vec::new(), bench.now);
        for number in 0..MAX_FOREIGN + 1_000 {
            let topic = format!("raft/plant-a/kv/{number}");
            bench.mirror.on_delivered(&topic, b"x", false, bench.now);
        }
        assert_eq!(bench.mirror.topics.len(), MAX_FOREIGN);
    }

    #[test]
    fn a_full_queue_is_tried_again() {
        let mut bench = Bench::new(&[""]);
        bench.connect();
        bench.mirror.on_listed(0, vec![pair("a", "1")], bench.now);
        bench.now = bench.now + SETTLE;
        let refused = bench.mirror.step(bench.now);
        assert_eq!(refused.len(), 1);
        bench.mirror.on_full(&refused[0].topic, bench.now);
        bench.run(Duration::from_millis(500));
        assert_eq!(bench.published(), ["a=1"]);
    }

    #[test]
    fn a_prefix_within_another_is_no_second_one() {
        let mirror = Mirror::new(ROOT, ["door/1/", "lamp/", "door/", "lamp/", "_/node/"]);
        let ranges: Vec<_> = mirror.ranges().collect();
        let expected = ["_/node/", "door/", "lamp/"].map(|prefix| KeyRange::Prefix(prefix.into()));
        assert_eq!(ranges, expected);
        // All keys are not the cluster's own.
        assert_eq!(Mirror::new(ROOT, ["", "a", "_/node/"]).ranges().count(), 2);
        assert_eq!(mirror.filter(), "raft/plant-a/kv/#");
    }

    #[test]
    fn topics_of_keys() {
        let table: [(&[u8], &str); 10] = [
            (b"door/1", "door/1"),
            (b"", ""),
            (b"/a//b/", "/a//b/"),
            (b"50%", "50%25"),
            (b"a+b#c", "a%2Bb%23c"),
            (b"nul\0", "nul%00"),
            ("tür\u{7F}\u{85}".as_bytes(), "tür%7F%C2%85"),
            (&[b'x', 0xFF, 0xC3], "x%FF%C3"),
            ("\u{FFFE}\u{FDD0}".as_bytes(), "%EF%BF%BE%EF%B7%90"),
            (b"1/2/3/4/5/6", "1/2/3/4/5%2F6"),
        ];
        for (key, topic) in table {
            assert_eq!(
                topic_of("raft/plant-a/kv/", key),
                format!("raft/plant-a/kv/{topic}")
            );
        }
    }

    fn decoded(topic: &str) -> Vec<u8> {
        let (mut key, mut rest) = (Vec::new(), topic.as_bytes());
        while let Some((first, more)) = rest.split_first() {
            rest = more;
            if *first == b'%' {
                let hex = std::str::from_utf8(&more[..2]).unwrap();
                key.push(u8::from_str_radix(hex, 16).unwrap());
                rest = &more[2..];
            } else {
                key.push(*first);
            }
        }
        key
    }

    proptest! {
        #[test]
        fn a_topic_gives_its_key_back(key in prop::collection::vec(any::<u8>(), 0..40)) {
            let topic = topic_of("r/kv/", &key);
            prop_assert_eq!(decoded(topic.strip_prefix("r/kv/").unwrap()), key);
            prop_assert!(topic.matches('/').count() <= MAX_SLASHES);
            prop_assert!(!topic.contains(['+', '#', '\0']));
        }

        /// Changes, other people's messages, lost echoes and lost sessions in any order: a minute
        /// later the broker holds what the state holds.
        #[test]
        fn the_mirror_comes_right(steps in prop::collection::vec((0..6_u8, 0..4_usize, 0..3_u8), 0..60)) {
            let mut bench = Bench::new(&["k"]);
            let mut state: BTreeMap<String, String> = BTreeMap::new();
            bench.connect();
            bench.mirror.on_listed(0, Vec::new(), bench.now);
            for (step, key, value) in steps {
                let (key, value) = (format!("k{key}"), value.to_string());
                match step {
                    0 | 1 => {
                        bench.mirror.on_change(&put(&key, &value), bench.now);
                        state.insert(key, value);
                    }
                    2 => {
                        bench.mirror.on_change(&delete(&key), bench.now);
                        state.remove(&key);
                    }
                    3 => bench.retain(&format!("raft/plant-a/kv/{key}"), value.into()),
                    4 => bench.connect(),
                    _ => bench.run(Duration::from_millis(400)),
                }
            }
            bench.run(Duration::from_secs(2_000));
            let expected: Vec<_> = state.iter().map(|(key, value)| format!("{key}={value}")).collect();
            prop_assert_eq!(bench.holds(), expected);
            prop_assert_eq!(bench.mirror.topics.len(), state.len());
        }
    }
}
