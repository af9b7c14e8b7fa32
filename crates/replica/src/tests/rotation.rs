//! The cluster key is replaced while the cluster runs.

use std::time::Duration;

use raft::{Durable, NodeKey};

use super::world::{World, cluster_key, name};
use crate::frame::FrameError;
use crate::link::Session;
use crate::wire::Body;
use crate::{Config, Event, Input, KeyRing, Name, Refused};

const NODES: [&str; 3] = ["a", "b", "c"];

/// The rings that each node goes through, one after the other: old, both, both, new.
fn rings() -> [KeyRing; 3] {
    let (old, new) = (cluster_key(7), cluster_key(8));
    [
        KeyRing::of(old.clone()).also(new.clone()),
        KeyRing::of(new.clone()).also(old),
        KeyRing::of(new),
    ]
}

fn set_ring(world: &mut World, who: &str, ring: &KeyRing) {
    world.step(&name(who), vec![Input::SetKeys(ring.clone())]);
}

fn refusals(world: &World) -> Vec<&Event> {
    let events = NODES.iter().flat_map(|who| &world.node(who).events);
    let refused = |event: &&Event| matches!(event, Event::Refused { .. });
    events.filter(refused).collect()
}

/// Between the steps every node has made the one before, and within a step they go one by one: no
/// frame is refused, nobody is challenged again, and writes are answered all the while.
#[test]
fn no_frame_is_lost_while_the_key_is_replaced() {
    let mut world = World::formed(&NODES);
    world.run(Duration::from_secs(5));
    let leader = world.leader().expect("one leads");
    for ring in rings() {
        for who in NODES {
            set_ring(&mut world, who, &ring);
            world.assert_alive("b");
        }
        world.run(Duration::from_secs(2));
    }
    assert_eq!(refusals(&world), Vec::<&Event>::new());
    assert_eq!(world.leader(), Some(leader), "no election either");
    for who in NODES {
        let active = world.node(who).replica.active_nodes().len();
        assert_eq!(active, 3, "{who} sees everyone");
    }
}

/// In the end the old key opens nothing, also of a process that was admitted under it.
#[test]
fn who_has_the_old_key_only_is_refused_in_the_end() {
    let mut world = World::formed(&NODES);
    world.admit_member("z");
    assert_eq!(world.say("b", &Body::StatusRequest).refused(), None);
    let [both, promoted, new] = rings();
    for ring in [both, promoted] {
        NODES
            .iter()
            .for_each(|who| set_ring(&mut world, who, &ring));
        world.run(Duration::from_secs(1));
        assert_eq!(world.say("b", &Body::StatusRequest).refused(), None);
    }
    NODES.iter().for_each(|who| set_ring(&mut world, who, &new));
    let refused = world.say("b", &Body::StatusRequest).refused();
    assert_eq!(refused, Some(Refused::Frame(FrameError::UnknownKey)));
    world.assert_alive("c");
}

/// A will that was left under the old key counts as long as that is accepted. Afterwards it is not
/// believed, but makes the others ask: the dead node is missed within seconds all the same.
#[test]
fn a_will_under_the_old_key_is_not_believed_but_noticed() {
    for (steps, believed) in [(2, true), (3, false)] {
        let mut world = World::formed(&NODES);
        world.run(Duration::from_secs(5));
        let leader = world.leader().expect("one leads");
        let will = world
            .node(leader.as_str())
            .replica
            .session_plan()
            .will(Session::first(1));
        for ring in &rings()[..steps] {
            NODES.iter().for_each(|who| set_ring(&mut world, who, ring));
            world.run(Duration::from_secs(1));
        }
        world.vanish(leader.as_str());
        world.publish(will);
        let other = NODES
            .iter()
            .find(|who| **who != leader.as_str())
            .expect("another");
        world.run(Duration::from_millis(300));
        let sees = |world: &World| {
            let nodes = world.node(other).replica.active_nodes();
            nodes.iter().any(|node| node.name == leader)
        };
        assert_eq!(sees(&world), !believed, "after {steps} steps");
        let next = |world: &World| world.leader().filter(|next| *next != leader);
        assert_eq!(next(&world).is_some(), believed, "a hint saves the timeout");
        world.run(Duration::from_secs(6));
        assert!(!sees(&world), "who does not answer is gone");
        assert!(next(&world).is_some());
        world.assert_alive(other);
    }
}

/// Two keys whose ids are equal by chance are told apart by trying.
#[test]
fn keys_that_share_an_id_are_rotated_like_others() {
    let id = |byte: u8| cluster_key(byte).id();
    let pair = (0..=255u8).flat_map(|a| (0..a).map(move |b| (a, b)));
    let (a, b) = pair
        .into_iter()
        .find(|(a, b)| id(*a) == id(*b))
        .expect("256 keys, 255 ids");
    let (old, new) = (cluster_key(a), cluster_key(b));
    let mut world = World::of("raft", "plant", &NODES, KeyRing::of(old.clone()));
    let both = KeyRing::of(old.clone()).also(new.clone());
    let promoted = KeyRing::of(new.clone()).also(old);
    for ring in [both, promoted, KeyRing::of(new)] {
        for who in NODES {
            set_ring(&mut world, who, &ring);
            world.assert_alive("a");
        }
    }
    assert_eq!(refusals(&world), Vec::<&Event>::new());
}

/// A session that begins after the change leaves its will under the new key.
#[test]
fn the_next_session_has_a_will_under_the_new_key() {
    let mut world = World::formed(&NODES);
    let [_, promoted, new] = rings();
    set_ring(&mut world, "a", &promoted);
    let who: Name = name("a");
    world.connect(&who);
    for other in ["b", "c"] {
        set_ring(&mut world, other, &promoted);
        set_ring(&mut world, other, &new);
    }
    set_ring(&mut world, "a", &new);
    world.run(Duration::from_secs(3));
    world.kill("a");
    world.run(Duration::from_millis(50));
    let nodes = world.node("b").replica.active_nodes();
    assert!(nodes.iter().all(|node| node.name != who), "{nodes:?}");
}

/// The births that the broker keeps are under the key that seals: who comes after the rotation, with
/// the new key alone, reads all of them.
#[test]
fn who_comes_after_a_rotation_sees_everyone() {
    let mut world = World::formed(&NODES);
    for ring in rings() {
        NODES
            .iter()
            .for_each(|who| set_ring(&mut world, who, &ring));
        world.run(Duration::from_secs(1));
    }
    let [.., new] = rings();
    let config = Config {
        ring: new,
        ..Config::new(name("d"), NodeKey(9 << 100), name("plant"), Vec::new())
    };
    world.start(config, None, Durable::default());
    world.run(Duration::from_secs(3));
    assert_eq!(world.node("d").replica.active_nodes().len(), 4);
    let refused =
        |event: &Event| matches!(event, Event::Refused { reason, .. } if *reason == Refused::Tag);
    assert!(!world.node("d").events.iter().any(refused));
}
