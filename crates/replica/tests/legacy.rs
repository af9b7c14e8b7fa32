//! A fleet of node-raft-over-mqtt 1.2.1 beside our nodes, in virtual time.
//!
//! The fleet's nodes are `testkit::LegacyNode`; ours are [`Legacy`] with a [`LegacyView`] that the test
//! sets. One broker delivers everything to everyone, its sender included, 5 ms later; who is on the
//! other side of a cut hears and is heard only there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raft::Time;
use replica::{
    LEGACY_ROLE, Legacy, LegacyEffect, LegacyEvent, LegacyView, MAX_LEGACY_NODES, MAX_LEGACY_TERM,
    Name, PresenceEvent,
};
use testkit::{DEFAULT_METRIC, LegacyNode, LegacyState};

const DELAY: Duration = Duration::from_millis(5);
const HEARTBEAT: &str = "plant/raft/heartbeat";

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

#[derive(Default)]
struct World {
    now: Duration,
    sent: u64,
    /// On the way, in order of arrival.
    wire: BTreeMap<(Duration, u64), Message>,
    fleet: BTreeMap<String, (LegacyNode, Side)>,
    ours: BTreeMap<String, Ours>,
    /// How often each of ours published.
    published: BTreeMap<String, u64>,
    /// Everything that ours published, with its time.
    said: Vec<(Duration, String)>,
    events: Vec<(Duration, String, LegacyEvent)>,
    /// When a node of the fleet was seen to lead.
    led: Vec<(Duration, String)>,
}

struct Ours {
    legacy: Legacy,
    view: LegacyView,
    side: Side,
}

/// Which part of a cut network.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Here,
    There,
}

struct Message {
    from: Side,
    topic: String,
    payload: Vec<u8>,
}

impl World {
    /// Nodes of the fleet, each with a metric of its own, that have just started.
    fn with_fleet(ids: impl IntoIterator<Item = (String, f64)>) -> World {
        let mut world = World::default();
        for (id, metric) in ids {
            world.start(&id, metric);
        }
        world
    }

    fn start(&mut self, id: &str, metric: f64) {
        let seed = 1 + self.fleet.len() as u64;
        let node = LegacyNode::new(id, metric, seed, self.now);
        self.fleet.insert(id.to_owned(), (node, Side::Here));
    }

    fn join(&mut self, root: &str, id: &str) {
        let now = Time(0) + self.now;
        let seed = 100 + self.ours.len() as u64;
        let mut legacy = Legacy::new("plant", root, name(id), seed, now).expect("a prefix");
        legacy.on_connected(now);
        let view = LegacyView {
            formed: true,
            ..LegacyView::default()
        };
        let side = Side::Here;
        let ours = Ours { legacy, view, side };
        self.ours.insert(id.to_owned(), ours);
    }

    /// Everyone of ours that is there follows this one, or nobody.
    fn elect(&mut self, leader: Option<&str>) {
        for (id, ours) in &mut self.ours {
            ours.view.leader = leader.map(name);
            ours.view.leads = leader == Some(id.as_str());
        }
    }

    fn publish(&mut self, from: Side, topic: &str, payload: impl Into<Vec<u8>>) {
        self.sent += 1;
        let message = Message {
            from,
            topic: topic.to_owned(),
            payload: payload.into(),
        };
        self.wire.insert((self.now + DELAY, self.sent), message);
    }

    /// Lets this much time pass, event by event.
    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.let_ours_act();
            let wire = self.wire.keys().next().map(|(at, _)| *at);
            let fleet = self.fleet.values().map(|(node, _)| node.deadline());
            let ours = self.ours.values();
            let ours = ours.filter_map(|o| o.legacy.next_deadline());
            let ours = ours.map(|at| at.since(Time(0)));
            let next = wire.into_iter().chain(fleet).chain(ours).min();
            let next = next.unwrap_or(end).max(self.now);
            if next >= end {
                self.now = end;
                return;
            }
            self.now = next;
            self.deliver();
            self.let_fleet_act();
        }
    }

    fn deliver(&mut self) {
        while let Some(entry) = self.wire.first_entry() {
            if entry.key().0 > self.now {
                return;
            }
            let message = entry.remove();
            let mut said = Vec::new();
            let kind = message.topic.rsplit('/').next().expect("a level");
            for (node, side) in self.fleet.values_mut() {
                if *side == message.from {
                    let out = node.on_message(kind, &message.payload, self.now);
                    said.extend(out.into_iter().map(|out| (*side, out)));
                }
            }
            let now = Time(0) + self.now;
            for ours in self.ours.values_mut().filter(|o| o.side == message.from) {
                let (topic, payload) = (&message.topic, &message.payload);
                assert!(ours.legacy.on_message(topic, payload, false, now));
            }
            self.send_all(said);
            self.let_ours_act();
        }
    }

    fn let_fleet_act(&mut self) {
        let mut said = Vec::new();
        for (node, side) in self.fleet.values_mut() {
            let out = node.on_time(self.now);
            said.extend(out.into_iter().map(|out| (*side, out)));
            if node.state() == LegacyState::Leader {
                self.led.push((self.now, node.id().to_owned()));
            }
        }
        self.send_all(said);
    }

    fn send_all(&mut self, said: Vec<(Side, (&'static str, String))>) {
        for (side, (kind, payload)) in said {
            self.publish(side, &format!("plant/raft/{kind}"), payload);
        }
    }

    fn let_ours_act(&mut self) {
        let mut said = Vec::new();
        for (id, ours) in &mut self.ours {
            for effect in ours.legacy.step(ours.view.clone(), Time(0) + self.now) {
                match effect {
                    LegacyEffect::Publish { topic, payload } => {
                        assert_eq!(topic, HEARTBEAT);
                        *self.published.entry(id.clone()).or_default() += 1;
                        let text = String::from_utf8(payload.to_vec()).expect("text");
                        said.push((ours.side, text));
                    }
                    LegacyEffect::Event(event) => {
                        self.events.push((self.now, id.clone(), event));
                    }
                }
            }
        }
        for (side, text) in said {
            self.said.push((self.now, text.clone()));
            self.publish(side, HEARTBEAT, text);
        }
    }

    fn leaders(&self) -> Vec<&str> {
        let leads = |node: &&LegacyNode| node.state() == LegacyState::Leader;
        let nodes = self.fleet.values().map(|(node, _)| node);
        nodes.filter(leads).map(LegacyNode::id).collect()
    }

    /// The first time after `since` that a node of the fleet led, and which.
    fn led_since(&self, since: Duration) -> Option<&(Duration, String)> {
        self.led.iter().find(|(at, _)| *at > since)
    }

    fn forget(&mut self) {
        self.published.clear();
        self.said.clear();
        self.events.clear();
        self.led.clear();
    }

    fn told(&self, id: &str, wanted: impl Fn(&LegacyEvent) -> bool) -> usize {
        let of = |(_, who, event): &&(Duration, String, LegacyEvent)| who == id && wanted(event);
        self.events.iter().filter(of).count()
    }

    fn last_said(&self) -> &str {
        &self.said.last().expect("something was said").1
    }
}

/// Metrics as an operator might give them: usual, equal, none, better than ours could be.
fn fleet(size: usize) -> Vec<(String, f64)> {
    let metrics = [DEFAULT_METRIC, 10.0, 10.0, 0.0, -3.5, -1e300];
    let node = |at: usize| (format!("node-{at}"), metrics[at % metrics.len()]);
    (1..=size).map(node).collect()
}

/// A fleet of twelve with its own leader, and three of ours with none yet.
fn established() -> World {
    let mut world = World::with_fleet(fleet(12));
    world.run(seconds(60));
    assert!(!world.leaders().is_empty(), "the fleet leads itself");
    for id in ["gw-1", "gw-2", "gw-3"] {
        world.join("raft/plant-a", id);
    }
    world
}

/// While our cluster has not formed, the fleet is left alone. From our first leader's first heartbeat
/// on, which is at once, no node of the fleet leads any more, whatever its metric.
#[test]
fn the_fleet_follows_our_leader_at_once() {
    let mut world = established();
    for ours in world.ours.values_mut() {
        ours.view.formed = false;
    }
    world.forget();
    world.run(seconds(60));
    assert!(world.said.is_empty(), "{:?}", world.said);
    assert!(!world.leaders().is_empty());

    for ours in world.ours.values_mut() {
        ours.view.formed = true;
    }
    world.elect(Some("gw-1"));
    let joined = world.now;
    world.run(seconds(1_800));
    let late = world.led_since(joined + Duration::from_millis(20));
    assert_eq!(late, None, "leads although ours does");
    let mut metrics = world.fleet.values().map(|(node, _)| node.leader_metric());
    assert!(metrics.all(|metric| metric == Some(f64::NEG_INFINITY)));
    // Every 2 s, and by nobody else.
    let publishers: Vec<&String> = world.published.keys().collect();
    assert_eq!(publishers, ["gw-1"]);
    let said = world.published["gw-1"];
    assert!((900..=902).contains(&said), "{said}");
    let form = ":gw-1:-Infinity:raft/plant-a/gw-1";
    assert!(world.said.iter().all(|(_, text)| text.ends_with(form)));
}

/// Our leader dies, the next is elected minutes later: in between one of the others goes on in the last
/// one's name, and when that one dies too, another. The fleet notices nothing.
#[test]
fn the_fleet_is_kept_while_we_have_no_leader() {
    let mut world = established();
    world.elect(Some("gw-1"));
    world.run(seconds(10));
    world.forget();

    let died = world.now;
    world.ours.remove("gw-1");
    world.elect(None);
    world.run(seconds(300));
    let keepers: Vec<String> = world.published.keys().cloned().collect();
    assert_eq!(keepers.len(), 1, "{:?}", world.published);
    let last_name = world.said.iter().all(|(_, text)| text.contains(":gw-1:"));
    assert!(last_name, "its name stays");
    world.ours.remove(&keepers[0]);
    world.run(seconds(300));
    assert_eq!(world.published.len(), 2, "the last one goes on");

    let last = world.ours.keys().next().expect("one").clone();
    let elected = world.now;
    world.elect(Some(&last));
    world.run(seconds(60));
    assert_eq!(world.led_since(died), None, "a node of the fleet led");
    let named = format!(":{last}:");
    let first = world.said.iter().find(|(_, text)| text.contains(&named));
    assert_eq!(first.expect("its name").0, elected, "at once");
}

/// Thirty of ours without a leader publish hardly more often than one leader would: the first to go on
/// is heard by all others. Once a minute, five times, the one that goes on dies.
#[test]
fn thirty_nodes_are_not_thirty_publishers() {
    let mut world = World::with_fleet(fleet(12));
    for id in 0..30 {
        world.join("raft/plant-a", &format!("gw-{id}"));
    }
    world.elect(Some("gw-0"));
    world.run(seconds(10));
    world.forget();
    world.ours.remove("gw-0");
    world.elect(None);
    let began = world.now;
    for _ in 0..5 {
        world.run(seconds(60));
        let keeper = world.last_said().rsplit('/').next().expect("a publisher");
        let keeper = keeper.to_owned();
        world.ours.remove(&keeper).expect("one of ours");
    }
    world.run(seconds(2_700));
    let total: u64 = world.published.values().sum();
    let rate = total as f64 / (world.now - began).as_secs_f64();
    println!("{rate:.3} publishes a second by 29 to 24 nodes without a leader");
    assert!((0.45..0.55).contains(&rate), "{rate}");
    assert_eq!(world.led_since(began), None);
    // Some begin in the same instant as another.
    assert!(world.published.len() <= 12, "{:?}", world.published);
}

/// A part of the fleet that hears none of ours for 8 s elects its own: that is what it does. On contact
/// it is brought back under by the first heartbeat of its leader that we hear, which is 2 s at most, and
/// it is told once who led.
#[test]
fn a_part_that_was_cut_off_comes_back_under() {
    let mut world = established();
    world.elect(Some("gw-1"));
    world.run(seconds(60));
    let part = ["node-3", "node-4", "node-5", "node-6"];
    for (node, side) in world.fleet.values_mut() {
        if part.contains(&node.id()) {
            *side = Side::There;
        }
    }
    let cut = world.now;
    // Our last heartbeat may have come up to 2 s before the cut.
    world.run(seconds(8 - 2));
    assert_eq!(world.led_since(cut), None, "not before 8 s");
    world.run(seconds(600));
    let there = world.leaders();
    assert!(!there.is_empty(), "the part elects its own");
    assert!(there.iter().all(|id| part.contains(id)), "{there:?}");
    let unruly = |world: &World| world.ours["gw-1"].legacy.is_unruly();
    assert!(!unruly(&world), "unheard");

    world.forget();
    let healed = world.now;
    let sides = world.fleet.values_mut().map(|(_, side)| side);
    sides.for_each(|side| *side = Side::Here);
    world.run(seconds(3));
    assert!(world.leaders().is_empty(), "{:?}", world.leaders());
    assert_eq!(world.led_since(healed + seconds(2) + 3 * DELAY), None);
    assert!(unruly(&world));
    world.run(seconds(300));
    assert_eq!(world.led_since(healed + seconds(3)), None);
    let led = world.ours["gw-1"].legacy.leader().expect("one led").clone();
    assert!(led.heard_at <= Time(0) + healed + seconds(3), "{led:?}");
    for id in ["gw-1", "gw-2", "gw-3"] {
        let led = world.told(id, |event| matches!(event, LegacyEvent::Led(_)));
        let follows = world.told(id, |event| *event == LegacyEvent::Follows);
        assert_eq!((led, follows), (1, 1), "{id}");
    }
    // The others leave the answer to our leader.
    let publishers: Vec<&String> = world.published.keys().collect();
    assert_eq!(publishers, ["gw-1"]);
}

/// Terms that nobody counted to, on each topic of the fleet. Whoever took them for its own still
/// follows; we never repeat them, so that who did not hear them is not led astray, and say so once.
#[test]
fn absurd_terms_neither_win_nor_spread() {
    let digits = "9".repeat(400);
    let zeros = format!("1{}", "0".repeat(21));
    let terms = [
        "4503599627370497",
        "9007199254740991",
        "9007199254740992",
        "9007199254740993",
        "18446744073709551616",
        "1e21",
        "1e400",
        "Infinity",
        "NaN",
        "7x",
        "-1",
        "-1e400",
        "",
        " ",
        "6.5",
        "1e3",
        "0x7f",
        "007",
        &zeros,
        &digits,
    ];
    for kind in ["election", "vote", "heartbeat", "presence"] {
        for term in terms {
            let mut world = established();
            world.elect(Some("gw-2"));
            world.run(seconds(10));
            // One half of the fleet hears it, by itself.
            for (at, (_, side)) in world.fleet.values_mut().enumerate() {
                *side = [Side::There, Side::Here][at % 2];
            }
            let bad = format!("{term}:ghost:0");
            world.publish(Side::There, &format!("plant/raft/{kind}"), bad);
            world.run(seconds(60));
            let sides = world.fleet.values_mut().map(|(_, side)| side);
            sides.for_each(|side| *side = Side::Here);
            // Whoever took the term and lost its leader has 12 s to say so.
            world.run(seconds(30));
            let since = world.now;
            world.run(seconds(600));
            assert_eq!(world.led_since(since), None, "{kind} {term:?}");
            // Nor does one try: they all take our heartbeat.
            let unruly =
                |event: &LegacyEvent| matches!(event, LegacyEvent::Stood(_) | LegacyEvent::Led(_));
            let late = world.events.iter().filter(|(at, ..)| *at > since);
            let late: Vec<_> = late.filter(|(.., event)| unruly(event)).collect();
            assert!(late.is_empty(), "{kind} {term:?}: {late:?}");
            for (_, text) in &world.said {
                let said = text.split(':').next().expect("a term");
                let counted = said.parse().is_ok_and(|t: u64| t <= MAX_LEGACY_TERM);
                assert!(counted || said == "NaN", "{text} after {kind} {term:?}");
            }
            let told = world.told("gw-2", |e| *e == LegacyEvent::AbsurdTerm);
            assert!(told <= 1, "{kind} {term:?}");
        }
    }
}

/// At 2⁵², the highest term that we say, the fleet is still kept.
#[test]
fn at_the_highest_term_the_fleet_is_still_kept() {
    let mut world = established();
    world.elect(Some("gw-1"));
    let highest = format!("{MAX_LEGACY_TERM}:node-1:-1e301");
    world.publish(Side::Here, HEARTBEAT, highest);
    world.run(seconds(10));
    let since = world.now;
    world.run(seconds(600));
    assert_eq!(world.led_since(since), None);
    world.start("node-99", -1e300);
    world.run(seconds(600));
    assert_eq!(world.led_since(since), None);
    let said = world.last_said();
    assert!(said.starts_with("4503599627370496:gw-1:"), "{said}");
}

/// What we publish comes back to us, and to our other nodes; another cluster of ours may keep the same
/// fleet by mistake. Neither is a leader of the fleet, terms stay as they are, and the mistake is told.
#[test]
fn we_do_not_answer_ourselves() {
    let mut world = World::with_fleet(fleet(6));
    world.join("raft/plant-a", "gw-1");
    world.join("raft/plant-a", "gw-2");
    world.elect(Some("gw-1"));
    world.run(seconds(600));
    let mut events = world.events.iter().map(|(_, _, event)| event);
    assert!(events.all(|event| matches!(event, LegacyEvent::Presence(_))));
    let first_term = |world: &World| world.said.iter().all(|(_, text)| text.starts_with("1:"));
    assert!(first_term(&world), "{:?}", world.said);

    world.join("raft/plant-b", "gw-7");
    let view = &mut world.ours.get_mut("gw-7").expect("joined").view;
    view.leader = Some(name("gw-7"));
    view.leads = true;
    world.forget();
    world.run(seconds(600));
    assert!(first_term(&world), "{:?}", world.said);
    let rival = LegacyEvent::Rival("raft/plant-b".to_owned());
    let told = world.told("gw-2", |event| *event == rival);
    assert!((50..=61).contains(&told), "{told}: once in 10 s");
    let led = world.told("gw-2", |event| matches!(event, LegacyEvent::Led(_)));
    assert_eq!(led, 0);
    assert_eq!(world.led_since(seconds(600)), None);
}

/// A heartbeat counts as one of ours only if the fleet is kept by it. A forgery that it does not take
/// silences nobody.
#[test]
fn a_forged_heartbeat_of_ours_silences_nobody() {
    for forged in [
        "9:gw-1:5:raft/plant-a/gw-1",
        "8:gw-1:-Infinity:raft/plant-a/gw-1",
        "0:gw-1:-Infinity:raft/plant-a/gw-1",
        "-9:gw-1:-Infinity:raft/plant-a/gw-1",
        "9x:gw-1:-Infinity:raft/plant-a/gw-1",
        "9007199254740993:gw-1:-Infinity:raft/plant-a/gw-1",
        "9:gw-1:-Infinity:raft/plant-a/",
        "9:gw-1:-Infinity:raft/plant-a/all",
    ] {
        let mut world = World::with_fleet(fleet(1));
        world.join("raft/plant-a", "gw-2");
        world.elect(None);
        world.publish(Side::Here, "plant/raft/vote", "9:node-7:node-8");
        for _ in 0..30 {
            world.publish(Side::Here, HEARTBEAT, forged);
            world.run(seconds(1));
        }
        let said = world.published.get("gw-2").copied().unwrap_or_default();
        assert!(said >= 10, "{said} after {forged}");
    }
}

/// The machine's old process and its new one may share a name. What carries its own name is nothing to
/// a node of the fleet, so our leader goes by another while the two are there together.
#[test]
fn a_node_of_the_fleet_with_our_leaders_name_follows_too() {
    let fleet = [("gw-1".to_owned(), 10.0), ("gw-1~".to_owned(), 20.0)];
    let mut world = World::with_fleet(fleet);
    world.join("raft/plant-a", "gw-1");
    world.elect(Some("gw-1"));
    world.run(seconds(600));
    assert_eq!(world.led_since(Duration::ZERO), None);
    let said = world.last_said();
    assert!(said.starts_with("1:gw-1~~:"), "{said}");
    world.fleet.clear();
    world.run(seconds(20));
    let said = world.last_said();
    assert!(said.starts_with("1:gw-1:"), "{said}: the old one is gone");
}

/// However fast candidates come, we answer twice a second at most, and each answer is one term higher.
#[test]
fn a_flood_of_candidates_is_answered_at_a_rate() {
    let mut world = World::with_fleet(fleet(1));
    world.join("raft/plant-a", "gw-1");
    world.elect(Some("gw-1"));
    world.run(seconds(1));
    world.forget();
    for millis in 0..10_000 {
        let ghost = format!("1:ghost-{millis}:0");
        world.publish(Side::Here, "plant/raft/election", ghost);
        world.run(Duration::from_millis(1));
    }
    let said = world.published["gw-1"];
    assert!((19..=22).contains(&said), "{said} in 10 s");
    let term = world.last_said().split(':').next().expect("a term");
    assert!(term.parse::<u64>().is_ok_and(|term| term <= 23), "{term}");
    let told = world.told("gw-1", |event| !matches!(event, LegacyEvent::Presence(_)));
    assert_eq!(told, 1, "told once");
}

/// A candidate that our leader cannot hear is answered by one other of ours within a second.
#[test]
fn a_candidate_is_answered_where_our_leader_does_not() {
    let mut world = World::default();
    for id in ["gw-1", "gw-2", "gw-3"] {
        world.join("raft/plant-a", id);
    }
    world.elect(Some("gw-1"));
    world.run(seconds(5));
    world.forget();
    world.ours.get_mut("gw-1").expect("ours").side = Side::There;
    let stood = world.now;
    world.publish(Side::Here, "plant/raft/election", "9:node-1:10");
    world.run(seconds(1) + 2 * DELAY);
    let answers = world
        .said
        .iter()
        .filter(|(_, text)| text.starts_with("10:"));
    let answers: Vec<_> = answers.collect();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert!(answers[0].0 - stood <= seconds(1) + DELAY);
}

/// Who of the fleet is there is counted and listed, under a name as near as ours can be, as an observer
/// without a vote; gone after 9 s of silence. What is retained says nothing of now.
#[test]
fn the_fleets_nodes_are_listed_while_they_are_heard() {
    let mut world = World::with_fleet(fleet(3));
    world.join("raft/plant-a", "gw-1");
    for id in ["plant 7/pump:ü", "all", "-"] {
        world.start(id, 10.0);
    }
    world.run(seconds(4));
    let legacy = &world.ours["gw-1"].legacy;
    let ids: Vec<&str> = legacy.nodes().collect();
    let exact = ["-", "all", "node-1", "node-2", "node-3", "plant 7/pump:ü"];
    assert_eq!(ids, exact);
    let listed: Vec<_> = legacy.active_nodes().collect();
    let names: Vec<&str> = listed.iter().map(|node| node.name.as_str()).collect();
    let near = ["x-", "all_", "node-1", "node-2", "node-3", "plant_7_pump__"];
    assert_eq!(names, near);
    assert!(listed.iter().all(|node| node.role == LEGACY_ROLE));
    let keys: BTreeSet<_> = listed.iter().map(|node| node.key).collect();
    assert_eq!(keys.len(), 6);

    world.fleet.retain(|id, _| id == "node-2");
    let silent = world.now;
    world.run(seconds(12));
    let left: Vec<&str> = world.ours["gw-1"].legacy.nodes().collect();
    assert_eq!(left, ["node-2"]);
    let gone = |(_, _, event): &&(Duration, String, LegacyEvent)| {
        matches!(event, LegacyEvent::Presence(PresenceEvent::Departed(_)))
    };
    let gone = world.events.iter().filter(gone).map(|(at, ..)| *at);
    let gone: Vec<Duration> = gone.collect();
    assert_eq!(gone.len(), 5);
    let in_time = silent + seconds(5)..=silent + seconds(9);
    assert!(gone.iter().all(|at| in_time.contains(at)), "{gone:?}");

    let now = Time(0) + world.now;
    let legacy = &mut world.ours.get_mut("gw-1").expect("ours").legacy;
    legacy.on_message("plant/raft/presence", b"node-9", true, now);
    legacy.on_message(HEARTBEAT, b"3:node-9:10", true, now);
    assert_eq!(legacy.nodes().len(), 1);
    assert_eq!(legacy.leader(), None);

    // Its nodes take a name with a colon for a term, and so do we.
    world.elect(Some("gw-1"));
    world.publish(Side::Here, "plant/raft/presence", "9:pump");
    world.run(seconds(3));
    let said = world.last_said();
    assert!(said.starts_with("9:gw-1:"), "{said}");
}

/// Whatever is published there: nothing panics, and no more is kept than the bound.
#[test]
fn a_hostile_fleet_stays_within_bounds() {
    let me = name("gw-1");
    let mut legacy = Legacy::new("plant", "raft/plant-a", me.clone(), 1, Time(0)).unwrap();
    legacy.on_connected(Time(0));
    let view = LegacyView {
        formed: true,
        leader: Some(me),
        leads: true,
    };
    let mut state = 1_u64;
    let mut draw = |bound: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % bound
    };
    let words: [&[u8]; 14] = [
        b":",
        b"::",
        b"9007199254740993",
        b"-1",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"raft/plant-a/",
        b"gw-1",
        b"\xff\xfe",
        b"\0",
        b"1e999",
        b"\xf0\x9f\x92\xa5",
        b"/",
    ];
    let mut published = 0;
    for step in 0..200_000_u64 {
        let kind = ["presence", "election", "vote", "heartbeat"][draw(4) as usize];
        let mut payload = Vec::new();
        for _ in 0..draw(8) {
            payload.extend_from_slice(words[draw(14) as usize]);
        }
        payload.extend_from_slice(draw(100_000).to_string().as_bytes());
        match draw(1_000) {
            0 => payload.resize(100_000, b'9'),
            1..=20 => payload.resize(600, b'9'),
            _ => {}
        }
        // 200,000 messages in 4 s: nobody is silent for long enough to be forgotten.
        let now = Time(step * 20);
        let topic = format!("plant/raft/{kind}");
        assert!(legacy.on_message(&topic, &payload, draw(10) == 0, now));
        let effects = legacy.step(view.clone(), now);
        let publishes = |effect: &&LegacyEffect| matches!(effect, LegacyEffect::Publish { .. });
        published += effects.iter().filter(publishes).count();
    }
    assert_eq!(legacy.nodes().len(), MAX_LEGACY_NODES);
    assert!(legacy.nodes().all(|id| id.len() <= 128));
    // An answer is two heartbeats once there was an absurd term.
    assert!(published <= 2 * 9, "{published} in 4 s");

    let me = name("gw-1");
    let mut legacy = Legacy::new("plant", "raft/plant-a", me, 1, Time(0)).unwrap();
    let long = format!("{}:node-1:10", "9".repeat(1_100));
    assert!(legacy.on_message(HEARTBEAT, long.as_bytes(), false, Time(0)));
    assert!(legacy.step(view, Time(0)).is_empty(), "too long to be read");
    let foreign = [
        "plant/raft",
        "plant/raft/",
        "plant/raft/presence/x",
        "other/raft/presence",
        "",
    ];
    for topic in foreign {
        let taken = legacy.on_message(topic, b"1:x:1", false, Time(0));
        assert!(!taken, "{topic}");
    }
}

/// What cannot stand in a topic that is published on is refused at the start.
#[test]
fn a_prefix_is_what_a_topic_can_begin_with() {
    let open = |prefix: &str| {
        let legacy = Legacy::new(prefix, "raft/a", name("gw-1"), 1, Time(0));
        legacy.map(|legacy| legacy.subscriptions())
    };
    let [presence, .., heartbeat] = open("*.plant.example").expect("a wildcard certificate");
    assert_eq!(presence, "*.plant.example/raft/presence");
    assert_eq!(heartbeat, "*.plant.example/raft/heartbeat");
    assert!(open("Acme, Plant 7/a/b/c/d/e").is_ok());
    let long = "x".repeat(129);
    let bad = [
        "",
        "a/+/b",
        "#",
        "$SYS",
        "a\0b",
        "a\nb",
        "a/b/c/d/e/f/g",
        &long,
    ];
    for prefix in bad {
        assert!(open(prefix).is_err(), "{prefix:?}");
    }
}
