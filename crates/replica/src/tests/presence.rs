//! Who is there, when wills come late, speak of an older session, or never come.

use std::time::Duration;

use bytes::Bytes;
use raft::{Durable, NodeKey};

use super::world::{World, cluster_key, name};
use crate::Publish;
use crate::agreed::{AgreedNode, AgreedRole};
use crate::keys::KeyRing;
use crate::link::{Link, Session};
use crate::name::{Metric, Name};
use crate::replica::{Config, Input};
use crate::requests::Done;
use crate::state::{Cursor, KeyEvent, KeyRange, KeyValue, NODES, RangeRequest, Watched};
use crate::tags::Tags;
use crate::wire::{Change, MemberOperation, Operation};

const SECOND: Duration = Duration::from_secs(1);

fn sees(world: &World, who: &str, of: &str) -> bool {
    let active = world.node(who).replica.active_nodes();
    active.iter().any(|node| node.name == name(of))
}

/// The will of a session that has a successor ends nobody, however late it comes.
#[test]
fn the_will_of_an_older_session_ends_nobody() {
    let mut world = World::formed(&["a", "b", "c"]);
    let old = world
        .node("c")
        .replica
        .session_plan()
        .will(Session::first(1));
    world.connect(&name("c"));
    world.run(SECOND);
    world.inject("b", &old.topic, &old.payload);
    assert!(sees(&world, "b", "c"));
}

/// A node that reads on the broker that it has ended says once more that it is there: whoever
/// subscribes later would not see it.
#[test]
fn a_node_puts_its_own_will_right() {
    let mut world = World::formed(&["a", "b", "c"]);
    let will = world
        .node("c")
        .replica
        .session_plan()
        .will(Session::first(1));
    world.publish(will.clone());
    world.run(SECOND);
    let last = world.statuses.iter().rfind(|s| s.topic == will.topic);
    let last = last.expect("its statuses");
    assert_ne!(last.payload, will.payload, "its birth stands there again");
    assert!(sees(&world, "b", "c"));
}

/// A node that was cut off has not heard who went meanwhile: it asks everyone.
#[test]
fn who_went_during_an_outage_is_missed_after_it() {
    let mut world = World::formed(&["a", "b", "c"]);
    assert!(sees(&world, "b", "c"));
    world.step(&name("b"), vec![Input::Disconnected(Link::FIRST)]);
    world.vanish("c");
    world.forget_retained();
    world.run(SECOND);
    world.connect(&name("b"));
    world.run(8 * SECOND);
    assert!(!sees(&world, "b", "c"), "it gave no answer");
    assert!(sees(&world, "b", "a"), "and this one did");
}

/// The same where the broker kept its birth: that it proved to live once is no proof for now.
#[test]
fn a_kept_birth_does_not_stand_for_who_went_during_an_outage() {
    let mut world = World::formed(&["a", "b", "c"]);
    world.step(&name("b"), vec![Input::Disconnected(Link::FIRST)]);
    world.vanish("c");
    world.run(SECOND);
    world.connect(&name("b"));
    world.run(8 * SECOND);
    assert!(!sees(&world, "b", "c"), "it gave no answer");
    assert!(sees(&world, "b", "a"), "and this one did");
}

// As the cluster has agreed.

/// What the state of a node says, by name, with the revision at which each was written.
fn records(world: &World, who: &str) -> Vec<(AgreedNode, u64)> {
    let store = world.node(who).replica.store();
    let nodes = KeyRange::Prefix(Bytes::from_static(NODES));
    let pairs = store.range(&RangeRequest::all(nodes)).pairs.into_iter();
    let read = |pair: KeyValue| {
        let node = AgreedNode::read(&pair.key, &pair.value).expect("a record");
        (node, pair.modified)
    };
    pairs.map(read).collect()
}

fn agreed(world: &World, who: &str) -> Vec<String> {
    let nodes = world.node(who).replica.agreed().nodes();
    nodes.map(|node| node.name.to_string()).collect()
}

/// Every change of who is there that the state of a node still tells of.
fn changes(world: &World, who: &str) -> Vec<KeyEvent> {
    let store = world.node(who).replica.store();
    let nodes = KeyRange::Prefix(Bytes::from_static(NODES));
    match store.changes(&nodes, Cursor::from(store.compacted() + 1)) {
        Watched::Events { events, .. } => events,
        other => panic!("{other:?}"),
    }
}

fn departures(world: &World, who: &str) -> Vec<String> {
    let gone = changes(world, who)
        .into_iter()
        .filter_map(|event| match event {
            KeyEvent::Delete { key, .. } => {
                Some(AgreedNode::name_in(&key).expect("a name").to_string())
            }
            KeyEvent::Put(_) => None,
        });
    gone.collect()
}

fn observer(world: &mut World, who: &str, n: u128, tags: Tags) {
    let voters = vec![name("a"), name("b"), name("c")];
    let config = Config {
        tags,
        ring: KeyRing::of(cluster_key(7)),
        ..Config::new(name(who), NodeKey((n + 100) << 100), name("plant"), voters)
    };
    world.start(config, None, Durable::default());
}

/// Births, deaths and a restart: at the end every node has the same records, written at the same
/// revisions, and has seen the same changes in the same order.
#[test]
fn every_node_sees_the_same_members_at_the_same_revision() {
    let mut world = World::formed(&["a", "b", "c"]);
    let tags = Tags::new([("zone", "north")]).unwrap();
    observer(&mut world, "o", 1, tags.clone());
    observer(&mut world, "p", 2, Tags::default());
    world.run(3 * SECOND);
    world.kill("p");
    world.restart("o");
    world.run(3 * SECOND);
    for who in ["a", "b", "c", "o"] {
        assert_eq!(agreed(&world, who), ["a", "b", "c", "o"], "{who}");
        assert_eq!(records(&world, who), records(&world, "a"), "{who}");
        let same = changes(&world, who).ends_with(&changes(&world, "o"));
        assert!(same, "{who} and o tell of different changes");
        let listed = world.node(who).replica.active_nodes().len();
        assert_eq!(
            listed, 4,
            "{who} lists whom it sees or the cluster has agreed on"
        );
    }
    assert_eq!(departures(&world, "a"), ["p", "o"]);
    let (node, _) = records(&world, "b").pop().expect("o");
    assert_eq!((node.role, node.tags), (AgreedRole::Observer, tags));
    assert_eq!(node.incarnation, world.node("o").replica.incarnation());
    let roles = records(&world, "b").into_iter().map(|(node, _)| node.role);
    let voters = roles.filter(|role| *role == AgreedRole::Voter).count();
    assert_eq!(voters, 3);
}

/// The broker restarts with all that it had retained, and a node died with it: nobody else is written
/// off, however long the others take to come back, and the dead one is.
#[test]
fn a_broker_restart_removes_nobody_who_lives() {
    let mut world = World::formed(&["a", "b", "c"]);
    for n in 1..=20 {
        observer(&mut world, &format!("o{n}"), n, Tags::default());
    }
    world.run(5 * SECOND);
    assert_eq!(agreed(&world, "b").len(), 23);
    let names: Vec<Name> = world.nodes.keys().cloned().collect();
    for who in &names {
        world.step(who, vec![Input::Disconnected(Link::FIRST)]);
    }
    world.vanish("o7");
    // One after the other, as their pauses between two attempts end.
    for (n, who) in names.iter().filter(|who| **who != name("o7")).enumerate() {
        if n % 5 == 4 {
            world.run(SECOND);
        }
        world.connect(who);
    }
    world.run(20 * SECOND);
    let leader = world.leader().expect("elected").to_string();
    assert_eq!(departures(&world, &leader), ["o7"]);
    assert_eq!(agreed(&world, &leader).len(), 22);
    assert_eq!(records(&world, "o1"), records(&world, &leader));
}

/// A retained birth of a node that died with the broker is no arrival for a cluster that starts
/// afterwards, nor for a leader that comes to know of it.
#[test]
fn a_stale_birth_is_nobodys_arrival() {
    let mut world = World::formed(&["a", "b", "c"]);
    observer(&mut world, "o", 1, Tags::default());
    world.run(2 * SECOND);
    world.vanish("o");
    let kept = world.retained();
    let mut later = World::second();
    kept.into_iter().for_each(|publish| later.bring(publish));
    later.nodes = std::mem::take(&mut world.nodes);
    later.nodes.remove(&name("o"));
    later.now = world.now;
    for who in ["a", "b", "c"] {
        later.restart(who);
    }
    later.run(20 * SECOND);
    let leader = later.leader().expect("elected").to_string();
    assert_eq!(agreed(&later, &leader), ["a", "b", "c"]);
    assert_eq!(
        departures(&later, &leader).last().map(String::as_str),
        Some("o")
    );
    let arrived = changes(&later, &leader)
        .into_iter()
        .filter(|event| matches!(event, KeyEvent::Put(_)) && event.key().ends_with(b"/o"));
    assert_eq!(arrived.count(), 1, "once, while it lived");
}

/// A leader that just won has heard of few itself. It takes over what was agreed, and writes off
/// the dead leader at once, since it heard its session end, and nobody else.
#[test]
fn a_new_leader_takes_over_who_is_there() {
    let mut world = World::formed(&["a", "b", "c"]);
    for n in 1..=10 {
        observer(&mut world, &format!("o{n}"), n, Tags::default());
    }
    world.run(3 * SECOND);
    let first = world.leader().expect("elected").to_string();
    world.kill(&first);
    world.run(20 * SECOND);
    let next = world.leader().expect("elected").to_string();
    assert_ne!(next, first);
    assert_eq!(departures(&world, &next), [first]);
    assert_eq!(agreed(&world, &next).len(), 12);
}

/// All voters restart, and the broker has lost what it had retained: whoever leads knows of the observers
/// by what was agreed alone. It asks them, and writes off the one that died meanwhile and no other.
#[test]
fn a_leader_that_has_heard_nobody_asks_before_it_writes_off() {
    let mut world = World::formed(&["a", "b", "c"]);
    for n in 1..=5 {
        observer(&mut world, &format!("o{n}"), n, Tags::default());
    }
    world.run(3 * SECOND);
    world.vanish("o3");
    for who in ["a", "b", "c"] {
        world.forget_retained();
        world.restart(who);
    }
    world.run(20 * SECOND);
    let leader = world.leader().expect("elected").to_string();
    let mut gone = departures(&world, &leader);
    gone.retain(|who| who.starts_with('o'));
    assert_eq!(gone, ["o3"]);
    assert_eq!(agreed(&world, &leader).len(), 7);
}

/// A session that ended while nobody led is not forgotten until someone does.
#[test]
fn who_died_while_nobody_led_is_missed() {
    let mut world = World::formed(&["a", "b", "c"]);
    observer(&mut world, "o", 1, Tags::default());
    observer(&mut world, "p", 2, Tags::default());
    world.run(3 * SECOND);
    let first = world.leader().expect("elected").to_string();
    world.kill(&first);
    world.kill("o");
    world.run(SECOND);
    let next = world.leader().expect("elected").to_string();
    assert_eq!(departures(&world, &next), [first.as_str(), "o"]);
    assert_eq!(agreed(&world, "p"), agreed(&world, &next));
}

/// A false will is put right by the node itself; a late one, of an older session, is not heard.
#[test]
fn a_false_will_is_put_right() {
    let mut world = World::formed(&["a", "b", "c"]);
    observer(&mut world, "o", 1, Tags::default());
    world.run(3 * SECOND);
    let will = world
        .node("o")
        .replica
        .session_plan()
        .will(Session::first(1));
    world.publish(will.clone());
    world.run(3 * SECOND);
    let leader = world.leader().expect("elected").to_string();
    assert_eq!(departures(&world, &leader), ["o"]);
    assert!(agreed(&world, &leader).contains(&"o".to_owned()), "again");
    world.connect(&name("o"));
    world.run(SECOND);
    world.inject(&leader, &will.topic, &will.payload);
    world.run(3 * SECOND);
    assert_eq!(departures(&world, &leader), ["o"], "not once more");
}

/// A birth that is played back after its session ended is no arrival, though its process had proved that
/// it lives.
#[test]
fn a_birth_played_back_after_the_end_raises_no_ghost() {
    let mut world = World::formed(&["a", "b", "c"]);
    observer(&mut world, "o", 1, Tags::default());
    world.run(3 * SECOND);
    let birth = world
        .retained()
        .into_iter()
        .find(|p| p.topic.contains("/o/"));
    let birth = birth.expect("its birth");
    world.kill("o");
    world.run(SECOND);
    world.publish(birth);
    world.run(10 * SECOND);
    let leader = world.leader().expect("elected").to_string();
    let told = changes(&world, &leader).into_iter();
    let of_it = told.filter(|event| event.key().ends_with(b"/o"));
    assert_eq!(of_it.count(), 2, "it came and went");
    assert!(!sees(&world, &leader, "o"));
}

/// A question comes by each broker: every node answered it as often, by each of them, so that a leader
/// got four times the answers that it asked for where there were two.
#[test]
fn a_question_that_comes_by_several_brokers_is_answered_once() {
    let mut world = World::formed(&["a", "b", "c"]);
    observer(&mut world, "o", 1, Tags::default());
    world.run(3 * SECOND);
    // A false will, so that it is asked.
    let plan = world.node("o").replica.session_plan();
    world.publish(plan.will(Session::first(1)));
    world.run(3 * SECOND);
    let leader = world.leader().expect("elected");
    let asked = |p: &&Publish| p.topic == format!("raft/plant/roll/o/{leader}");
    let questions: Vec<Publish> = world.captured.iter().filter(asked).cloned().collect();
    let answers = |world: &World| {
        let answer = |p: &&Publish| p.topic.contains("/roll/") && p.topic.ends_with("/o");
        world.captured.iter().filter(answer).count()
    };
    let before = answers(&world);
    assert!(before > 0, "it has answered");
    for question in questions {
        world.inject("o", &question.topic, &question.payload);
        world.run(SECOND / 10);
    }
    assert_eq!(answers(&world), before, "once");
}

/// Of two brokers the quick one is lost: how long the other takes is measured at once, since the ranks of
/// the next election are apart by that.
#[test]
fn the_round_trip_is_measured_anew_without_a_broker() {
    let mut world = World::formed(&["a", "b", "c"]);
    let second = Session {
        link: Link::new(1).expect("a second broker"),
        epoch: 1,
    };
    let a = Name::new("a").expect("a name");
    world.step(&a, vec![Input::Connected(second)]);
    world.run(SECOND);
    let probes = |published: Vec<Publish>| {
        let own = |p: &&Publish| p.topic == "raft/plant/rpc/a/a";
        published.iter().filter(own).count()
    };
    assert_eq!(probes(world.step(&a, vec![Input::Tick])), 0);
    assert_eq!(
        probes(world.step(&a, vec![Input::Disconnected(second.link)])),
        1
    );
}

/// A metric that swings is written at most every ten seconds, its last value in the end.
#[test]
fn a_swinging_metric_does_not_fill_the_log() {
    let mut world = World::formed(&["a", "b", "c"]);
    observer(&mut world, "o", 1, Tags::default());
    world.run(3 * SECOND);
    let leader = world.leader().expect("elected").to_string();
    let before = changes(&world, &leader).len();
    let set = |world: &mut World, metric: u32| {
        let metric = Metric::new(metric.into()).unwrap();
        world.step(&name("o"), vec![Input::SetMetric(metric)]);
        world.run(Duration::from_millis(500));
    };
    (0..60).for_each(|n| set(&mut world, 1 + n % 7));
    set(&mut world, 42);
    world.run(12 * SECOND);
    let written = changes(&world, &leader).len() - before;
    assert!((2..=5).contains(&written), "{written} in 42 s");
    let record = world.node("a").replica.agreed().get(&name("o")).cloned();
    assert_eq!(
        record.expect("it is there").metric,
        Metric::new(42.0).unwrap()
    );
}

/// A witness is written as one, and so is what a member becomes.
#[test]
fn a_record_says_what_its_node_is_to_the_cluster() {
    let mut world = World::with(&["a", "b", "w"], |voter, key, voters| Config {
        witness: voter == name("w"),
        ring: KeyRing::of(cluster_key(7)),
        ..Config::new(voter, key, name("plant"), voters)
    });
    observer(&mut world, "o", 1, Tags::default());
    world.run(3 * SECOND);
    let role = |world: &World, who: &str| {
        let node = world.node("a").replica.agreed().get(&name(who)).cloned();
        node.expect("it is there").role
    };
    assert_eq!(role(&world, "w"), AgreedRole::Witness);
    assert_eq!(role(&world, "o"), AgreedRole::Observer);
    let change = Change {
        members: vec![MemberOperation::Add {
            who: "o".to_owned(),
            witness: false,
        }],
        settings: None,
    };
    let result = world.ask("a", Operation::Change(change), 10 * SECOND);
    assert!(matches!(result, Ok(Done::Members(_))), "{result:?}");
    world.run(SECOND);
    assert_eq!(role(&world, "o"), AgreedRole::Learner);
    let seen = world.node("w").replica.active_nodes().len();
    assert_eq!(seen, 4, "a witness has no state, and looks for itself");
}

/// Two hundred observers come at once, and after an outage again. What they publish is a few messages
/// each, what the leader publishes grows with their number and no faster, and nothing is published
/// for each of them once all is quiet.
#[test]
fn many_observers_cost_a_few_messages_each() {
    const MANY: u128 = 200;
    let mut world = World::formed(&["a", "b", "c"]);
    let published = |world: &World, from: usize| {
        let said = world.captured[from..].iter();
        let observers = said.filter(|p| {
            p.topic
                .rsplit('/')
                .next()
                .is_some_and(|f| f.starts_with('o'))
        });
        (observers.count(), world.captured.len() - from)
    };
    let start = world.captured.len();
    for n in 1..=MANY {
        observer(&mut world, &format!("o{n}"), n, Tags::default());
        world.run(Duration::from_millis(4));
    }
    world.run(10 * SECOND);
    let leader = world.leader().expect("elected").to_string();
    assert_eq!(agreed(&world, &leader).len(), MANY as usize + 3);
    assert_eq!(agreed(&world, "o150"), agreed(&world, &leader));
    let (theirs, all) = published(&world, start);
    assert!(
        theirs < 20 * MANY as usize,
        "{theirs} by observers that join"
    );
    assert!(all < 35 * MANY as usize, "{all} altogether");
    let quiet = world.captured.len();
    world.run(30 * SECOND);
    let (theirs, all) = published(&world, quiet);
    assert_eq!(theirs, 0, "an observer has nothing to say");
    assert!(all < 1_000, "{all} messages in 30 s: the voters' own");
    let restart = world.captured.len();
    let names: Vec<Name> = world.nodes.keys().cloned().collect();
    for who in &names {
        world.step(who, vec![Input::Disconnected(Link::FIRST)]);
    }
    for who in &names {
        world.connect(who);
    }
    world.run(30 * SECOND);
    assert_eq!(
        departures(&world, &world.leader().expect("elected").to_string()),
        [""; 0]
    );
    let (theirs, all) = published(&world, restart);
    assert!(
        theirs < 30 * MANY as usize,
        "{theirs} by observers that come back"
    );
    assert!(all < 60 * MANY as usize, "{all} altogether");
}
