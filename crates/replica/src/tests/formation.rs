//! Forming a cluster with disks that are slow, lost or too old.

use std::time::Duration;

use raft::{Durable, NodeKey};

use super::world::{World, name};
use crate::Trouble;
use crate::replica::{Config, Event};
use crate::wire::{Holds, from_slice};

const SECOND: Duration = Duration::from_secs(1);

fn config(who: &str, key: u128) -> Config {
    let voters = ["a", "b", "c"].map(name).to_vec();
    Config::new(name(who), NodeKey(key << 100), name("plant"), voters)
}

/// Three voters with empty disks; what `c` saves takes until the test says so.
fn with_slow_c() -> World {
    let mut world = World::empty();
    for (who, key) in [("a", 1), ("b", 2), ("c", 3)] {
        world.start(config(who, key), None, Durable::default());
    }
    world.slow("c");
    world.run(3 * SECOND);
    world
}

fn accepted(world: &World, who: &str) -> bool {
    let record = world.node(who).formation.as_deref();
    record.is_some_and(|record| matches!(from_slice(record), Ok(Holds::Accepted(_))))
}

fn is_told(world: &World, who: &str, trouble: impl Fn(&Trouble) -> bool) -> bool {
    let told = |event: &Event| matches!(event, Event::Trouble(what) if trouble(what));
    world.node(who).events.iter().any(told)
}

/// Two of three have accepted, and the third says nothing of what it is still writing: if it died
/// now it would be free for another record, so this one must not be formed yet.
#[test]
fn nothing_is_formed_before_the_last_acceptance_is_on_disk() {
    let mut world = with_slow_c();
    for who in ["a", "b"] {
        assert!(accepted(&world, who), "{who} has accepted");
    }
    assert_eq!(world.node("c").formation, None);
    for who in ["a", "b", "c"] {
        let role = world.node(who).replica.role();
        assert_eq!(role, None, "{who} waits for c's acceptance");
    }
    world.save_formation("c");
    world.run(3 * SECOND);
    assert!(world.leader().is_some());
}

/// A voter that has promised itself to one record stays with it, though another voter of it lost
/// its disk and comes under a new key: an operator has to look.
#[test]
fn a_promise_outlives_the_disk_of_another() {
    let mut world = with_slow_c();
    let promised = world.node("a").formation.clone();
    world.kill("b");
    world.start(config("b", 4), None, Durable::default());
    world.run(3 * SECOND);
    world.save_formation("c");
    world.run(3 * SECOND);
    for who in ["a", "c"] {
        assert_eq!(world.node(who).formation, promised, "{who}'s promise");
        let lost = |what: &Trouble| matches!(what, Trouble::LostVoter { .. });
        assert!(is_told(&world, who, lost), "{who} says what is lost");
    }
    assert_eq!(world.leader(), None);
}

/// A voter whose disk knows less than the cluster knows of it has forgotten its votes: it takes no
/// part.
#[test]
fn a_voter_from_an_old_copy_of_its_disk_stays_out() {
    let mut world = World::empty();
    for (who, key) in [("a", 1), ("b", 2), ("c", 3)] {
        world.start(config(who, key), None, Durable::default());
    }
    world.run(3 * SECOND);
    world.assert_alive("a");
    world.kill("c");
    world.start(config("c", 3), None, Durable::default());
    world.run(3 * SECOND);
    let old = |what: &Trouble| matches!(what, Trouble::OldDisk);
    assert!(is_told(&world, "c", old), "c says what is wrong");
    assert_eq!(world.node("c").replica.role(), None);
    assert_eq!(world.node("c").formation, None);
}
