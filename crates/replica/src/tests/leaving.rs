//! A leader that is told to stop hands over first.

use std::time::Duration;

use super::world::{World, name};
use crate::KeyRing;
use crate::replica::{Event, Input};

/// Of two voters the one that stops has to vote for its successor; it used to be gone by then, and the
/// other waited for an election that it could not win. So in the rolling upgrade on real brokers, where
/// a cluster of two voters took up to two seconds instead of a hand-over.
#[test]
fn who_hands_over_stays_to_vote() {
    for names in [&["a", "b"][..], &["a", "b", "c"]] {
        let mut world = World::of("raft", "plant", names, KeyRing::insecure());
        world.run(Duration::from_secs(3));
        let old = world.leader().unwrap();
        world.step(&old, vec![Input::Leave]);
        let told = |world: &World| world.node(old.as_str()).events.contains(&Event::Relinquish);
        assert!(told(&world), "whoever acts on the lead is told first");
        world.step(&old, vec![Input::Relinquished]);
        world.run(Duration::from_millis(20));
        let new = world.leader().expect("a successor");
        assert_ne!(new, old);
        assert!(world.node(old.as_str()).replica.has_stopped());
        let now = world.now;
        let lease = world.node(new.as_str()).replica.lease();
        let claims = lease.is_some_and(|lease| lease.from <= now && now < lease.until);
        assert_eq!(
            claims,
            names.len() > 2,
            "a lone voter has no quorum for a lease"
        );
    }
    // Nobody is there to take over: it stops all the same.
    let mut world = World::of("raft", "plant", &["a", "b"], KeyRing::insecure());
    let old = world.leader().unwrap();
    let other = if old == name("a") { "b" } else { "a" };
    world.kill(other);
    world.step(&old, vec![Input::Leave, Input::Relinquished]);
    world.run(Duration::from_secs(5));
    assert!(world.node(old.as_str()).replica.has_stopped());
}
