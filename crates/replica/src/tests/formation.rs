//! Forming a cluster with disks that are slow, lost or too old.

use std::time::Duration;

use raft::{Durable, NodeKey, Role, Settings};

use super::world::{World, name};
use crate::replica::{Config, Event};
use crate::wire::{Formation, Holds, from_slice, to_vec};
use crate::{Plan, Trouble};

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

// Voters that are chosen: `--expect N`.

fn expecting(who: &str, key: u128, expect: u32) -> Config {
    Config {
        plan: Plan::Expect(expect),
        ..config(who, key)
    }
}

/// These nodes, with keys from 1 on in this order, each expecting `expect`.
fn start_expecting(world: &mut World, names: &[&str], expect: u32) {
    for (who, key) in names.iter().zip(1..) {
        world.start(expecting(who, key, expect), None, Durable::default());
    }
}

fn voters(world: &World, who: &str) -> Vec<String> {
    let mut voters = world.node(who).replica.status().voters;
    voters.sort();
    voters
}

fn role(world: &World, who: &str) -> &'static str {
    match world.node(who).replica.role() {
        None => "starting",
        Some(Role::Learner) => "learner",
        Some(_) => "voter",
    }
}

/// As many as are expected, and no list: they find each other and form one cluster.
#[test]
fn the_expected_number_forms_a_cluster() {
    let mut world = World::empty();
    start_expecting(&mut world, &["c", "a", "b"], 3);
    world.run(4 * SECOND);
    for who in ["a", "b", "c"] {
        assert_eq!(role(&world, who), "voter");
        assert_eq!(voters(&world, who), ["a", "b", "c"]);
    }
    world.assert_alive("b");
}

/// One node that expects nobody else is a cluster, once it has listened for a second.
#[test]
fn one_expected_node_is_a_cluster() {
    let mut world = World::empty();
    start_expecting(&mut world, &["a"], 1);
    world.run(Duration::from_millis(900));
    assert_eq!(role(&world, "a"), "starting");
    world.run(2 * SECOND);
    world.assert_alive("a");
}

/// With fewer than are expected nothing is accepted, however long it takes.
#[test]
fn fewer_than_expected_wait() {
    let mut world = World::empty();
    start_expecting(&mut world, &["a", "b"], 3);
    world.run(60 * SECOND);
    for who in ["a", "b"] {
        assert_eq!(world.node(who).formation, None);
        assert_eq!(role(&world, who), "starting");
    }
    world.start(expecting("c", 3, 3), None, Durable::default());
    world.run(4 * SECOND);
    world.assert_alive("c");
}

/// Of more than are expected the smallest names vote; the others follow, also those that come
/// later with smaller names.
#[test]
fn more_than_expected_follow() {
    let mut world = World::empty();
    start_expecting(&mut world, &["e", "d", "c", "b", "x"], 3);
    world.run(4 * SECOND);
    world.start(expecting("a", 9, 3), None, Durable::default());
    world.run(4 * SECOND);
    for who in ["b", "c", "d"] {
        assert_eq!(role(&world, who), "voter", "{who}");
    }
    for who in ["a", "e", "x"] {
        assert_eq!(role(&world, who), "learner", "{who}");
        assert_eq!(voters(&world, who), ["b", "c", "d"], "{who}");
    }
}

/// A node with a smaller name that starts while the others wait is chosen, and the wait begins
/// anew: nobody accepts a choice that has just changed.
#[test]
fn a_node_that_starts_during_the_wait_is_chosen() {
    let mut world = World::empty();
    start_expecting(&mut world, &["b", "c", "d"], 3);
    world.run(Duration::from_millis(900));
    world.start(expecting("a", 9, 3), None, Durable::default());
    world.run(Duration::from_millis(900));
    for who in ["a", "b", "c", "d"] {
        assert_eq!(world.node(who).formation, None, "{who}");
    }
    world.run(4 * SECOND);
    for who in ["a", "b", "c"] {
        assert_eq!(voters(&world, who), ["a", "b", "c"], "{who}");
    }
    assert_eq!(role(&world, "d"), "learner");
}

/// Once one node has accepted a choice, those in it accept that one, though a smaller name has
/// come meanwhile: `b` and `c` are slow to learn of it.
#[test]
fn an_accepted_choice_is_not_left_for_a_newer_one() {
    let mut world = World::empty();
    start_expecting(&mut world, &["b", "c", "d"], 3);
    world.slow("c");
    world.run(2 * SECOND);
    assert!(accepted(&world, "b") && accepted(&world, "d"));
    world.start(expecting("a", 9, 3), None, Durable::default());
    world.run(3 * SECOND);
    assert_eq!(world.node("a").formation, None);
    world.save_formation("c");
    world.run(4 * SECOND);
    for who in ["a", "b", "c", "d"] {
        assert_eq!(voters(&world, who), ["b", "c", "d"], "{who}");
    }
}

/// A chosen node that lost its disk after others had accepted it is another node: the others say
/// what is lost, and form nothing.
#[test]
fn a_chosen_node_that_lost_its_promise_is_missed() {
    let mut world = World::empty();
    start_expecting(&mut world, &["a", "b", "c"], 3);
    world.slow("c");
    world.run(2 * SECOND);
    let promised = world.node("a").formation.clone();
    assert!(accepted(&world, "a") && accepted(&world, "b"));
    world.kill("b");
    world.start(expecting("b", 4, 3), None, Durable::default());
    world.run(3 * SECOND);
    world.save_formation("c");
    world.run(3 * SECOND);
    for who in ["a", "c"] {
        assert_eq!(world.node(who).formation, promised, "{who}'s promise");
        let lost =
            |what: &Trouble| matches!(what, Trouble::LostVoter { other } if *other == name("b"));
        assert!(is_told(&world, who, lost), "{who} says what is lost");
    }
    assert_eq!(world.leader(), None);
    assert_eq!(world.node("b").formation, None);
}

/// Promises that exclude each other: nothing can be formed, and whoever promised says so.
#[test]
fn promises_that_exclude_each_other_are_told() {
    let record = |names: [(&str, u128); 3]| {
        let voters = names.map(|(who, key)| (NodeKey(key << 100), who.to_owned()));
        to_vec(&Holds::Accepted(Formation {
            voters: voters.into(),
            settings: Settings::default(),
            witnesses: std::collections::BTreeSet::new(),
            origin: None,
        }))
    };
    let one = record([("a", 1), ("b", 2), ("c", 3)]);
    let other = record([("a", 1), ("b", 2), ("d", 4)]);
    let mut world = World::empty();
    for (who, key, held) in [
        ("a", 1, Some(&one)),
        ("b", 2, Some(&other)),
        ("c", 3, None),
        ("d", 4, None),
    ] {
        let held = held.map(|record| record.clone().into());
        world.start(expecting(who, key, 3), held, Durable::default());
    }
    world.run(10 * SECOND);
    for who in ["a", "b"] {
        let conflict = |what: &Trouble| matches!(what, Trouble::Conflict { .. });
        assert!(is_told(&world, who, conflict), "{who}");
    }
    for who in ["a", "b", "c", "d"] {
        assert_eq!(role(&world, who), "starting", "{who}");
    }
}

/// A promise that was overtaken binds nobody: a node named in a formed cluster together with us
/// promised itself to that one, so ours will never be formed and we may follow.
#[test]
fn who_promised_itself_to_what_cannot_be_formed_follows() {
    let mut world = World::empty();
    start_expecting(&mut world, &["a", "b", "c"], 3);
    world.run(4 * SECOND);
    world.assert_alive("a");
    let voters = [("a", 1), ("b", 2), ("d", 4)];
    let voters = voters.map(|(who, key)| (NodeKey(key << 100), who.to_owned()));
    let stale = to_vec(&Holds::Accepted(Formation {
        voters: voters.into(),
        settings: Settings::default(),
        witnesses: std::collections::BTreeSet::new(),
        origin: None,
    }));
    world.start(expecting("d", 4, 3), Some(stale.into()), Durable::default());
    world.run(4 * SECOND);
    assert_eq!(role(&world, "d"), "learner");
}

/// One is told the voters, another is to choose them: neither goes on, and both say why, until the
/// odd one is gone.
#[test]
fn a_list_and_a_number_do_not_mix() {
    let mut world = World::empty();
    let list = |who: &str, key| Config {
        plan: Plan::Voters(vec![name("a"), name("b")]),
        ..config(who, key)
    };
    world.start(list("a", 1), None, Durable::default());
    world.start(expecting("b", 2, 2), None, Durable::default());
    world.start(expecting("c", 3, 2), None, Durable::default());
    world.run(5 * SECOND);
    for who in ["a", "b", "c"] {
        assert_eq!(world.node(who).formation, None, "{who}");
        assert!(
            is_told(&world, who, |what| matches!(what, Trouble::Mixed { .. })),
            "{who}"
        );
    }
    world.kill("a");
    world.run(5 * SECOND);
    assert_eq!(voters(&world, "b"), ["b", "c"]);
}

/// Nodes that expect different numbers form nothing and say so.
#[test]
fn different_numbers_are_told() {
    let mut world = World::empty();
    for (who, key, expect) in [("a", 1, 2), ("b", 2, 2), ("c", 3, 3)] {
        world.start(expecting(who, key, expect), None, Durable::default());
    }
    world.run(5 * SECOND);
    for who in ["a", "b", "c"] {
        assert_eq!(world.node(who).formation, None, "{who}");
        assert!(
            is_told(&world, who, |what| matches!(what, Trouble::Expect { .. })),
            "{who}"
        );
    }
    world.kill("c");
    world.start(expecting("c", 3, 2), None, Durable::default());
    world.run(5 * SECOND);
    assert_eq!(voters(&world, "c"), ["a", "b"]);
}
