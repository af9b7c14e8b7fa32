//! Changes of members and of the leader that something comes in between.

use std::time::Duration;

use raft::{Durable, NodeKey};

use super::world::{World, cluster_key, name};
use crate::keys::KeyRing;
use crate::name::Metric;
use crate::replica::{Config, Event, Input, StopReason};
use crate::requests::{Done, RequestError};
use crate::wire::{Change, MemberOperation, Operation, Transfer, Write};

const SECOND: Duration = Duration::from_secs(1);

/// How long a frame takes, and a little more.
const HOP: Duration = Duration::from_micros(150);

/// `a` leads, `b` would be next, and so on.
fn led_by_a(names: &[&str]) -> World {
    let mut world = World::formed(names);
    for (n, who) in names.iter().enumerate() {
        let metric = Metric::new(n as f64).expect("a number");
        world.step(&name(who), vec![Input::SetMetric(metric)]);
    }
    world.run(SECOND);
    if world.leader() != Some(name("a")) {
        let leader = world.leader().expect("a leader").to_string();
        transfer(&mut world, &leader, "a");
    }
    assert_eq!(world.leader(), Some(name("a")));
    world
}

fn to_lead(to: &str) -> Operation {
    let (to, from) = (Some(to.to_owned()), None);
    Operation::Transfer(Transfer { to, from })
}

fn transfer(world: &mut World, asks: &str, to: &str) {
    let operation = to_lead(to);
    let done = world.ask(asks, operation, 5 * SECOND);
    assert_eq!(done, Ok(Done::Transferred(to.to_owned())));
}

/// An observer, under a key of its own.
fn observe(world: &mut World, who: &str) {
    let voters = ["a", "b", "c"].map(name).to_vec();
    let config = Config {
        ring: KeyRing::of(cluster_key(7)),
        ..Config::new(name(who), NodeKey(9 << 100), name("plant"), voters)
    };
    world.start(config, None, Durable::default());
    world.run(3 * SECOND);
}

fn change(step: MemberOperation) -> Operation {
    let (members, settings) = (vec![step], None);
    Operation::Change(Change { members, settings })
}

fn add(who: &str) -> Operation {
    let (who, witness) = (who.to_owned(), false);
    change(MemberOperation::Add { who, witness })
}

fn has_stopped(world: &World, who: &str) -> bool {
    let removed = Event::Stop(StopReason::Removed);
    world.node(who).events.contains(&removed)
}

/// The target asks for votes and ends, and who handed over leads again: whoever waits for the
/// hand-over hears that it came to nothing, and the next one goes ahead.
#[test]
fn a_target_that_does_not_win_leaves_room_for_the_next() {
    let mut world = led_by_a(&["a", "b", "c"]);
    let operation = to_lead("b");
    let token = world.submit("a", operation, 4 * SECOND);
    world.run(HOP);
    assert_eq!(world.node("b").replica.status().role, "candidate");
    world.vanish("b");
    world.run(5 * SECOND);
    assert_eq!(world.leader(), Some(name("a")), "it leads again");
    let answer = world.answer("a", token);
    let Some(Err(RequestError::NotYet(why))) = answer else {
        panic!("it ended well: {answer:?}");
    };
    assert!(why.contains("b "), "{why}");
    transfer(&mut world, "a", "c");
}

/// A leader adds an observer and ends before anyone else holds that. The next leader's log says
/// nothing of it: the observer was never a member, and goes on.
#[test]
fn an_observer_whose_admission_is_undone_goes_on() {
    let mut world = led_by_a(&["a", "b", "c"]);
    observe(&mut world, "o");
    let key = "k".into();
    let value = "v".into();
    let write = Operation::Write(Write::Put {
        key,
        value,
        lease: None,
    });
    world.submit("a", write, SECOND);
    world.run(HOP);
    world.run(HOP);
    let commit_index = |world: &World, who: &str| world.node(who).replica.status().commit_index;
    assert!(commit_index(&world, "a") > commit_index(&world, "o"));
    world.vanish("b");
    world.vanish("c");
    world.submit("a", add("o"), SECOND);
    world.run(HOP);
    assert_eq!(commit_index(&world, "a"), commit_index(&world, "o"));
    let raft = world.node("o").replica.raft().expect("it follows");
    let learners = &raft.configuration().learners;
    assert!(learners.contains_key(&NodeKey(9 << 100)), "{learners:?}");
    world.vanish("a");
    world.restart("b");
    world.restart("c");
    world.run(10 * SECOND);
    world.assert_alive("b");
    world.run(SECOND);
    assert_eq!(commit_index(&world, "b"), commit_index(&world, "o"));
    assert!(!has_stopped(&world, "o"), "it was no member");
}

/// A leader that finishes a change by which it goes itself: the others hear that it is committed, and
/// one of them leads at once, without an election timeout.
#[test]
fn a_leader_that_lets_itself_go_names_the_next() {
    let mut world = led_by_a(&["a", "b", "c", "d"]);
    let remove = MemberOperation::Remove("b".to_owned());
    world.submit("a", change(remove), SECOND);
    world.run(HOP);
    world.vanish("a");
    let steps = || std::iter::repeat_n(SECOND / 50, 500);
    assert!(
        steps().any(|step| {
            world.run(step);
            has_stopped(&world, "b")
        }),
        "b leads, finishes the change and goes"
    );
    world.vanish("b");
    world.run(SECOND / 10);
    let leader = world.leader().expect("a leader, well before an election");
    assert!(["c", "d"].contains(&leader.as_str()), "{leader}");
}
