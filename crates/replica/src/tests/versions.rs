//! A cluster whose nodes are of two builds: one that knows frame version 1 alone, and this one.

use std::time::Duration;

use raft::{Durable, Entry, Index, Payload, Term, Time};

use super::world::{World, name};
use crate::frame::{FrameError, OLDEST, VERSION};
use crate::replica::{Config, Input, Replica, StartError};
use crate::requests::{Done, RequestError};
use crate::wire::{Body, Change, MemberOperation, Operation, SaveRequest, Transfer, to_vec};
use crate::{ClusterId, Event, Metric, Refused};

const SHORT: Duration = Duration::from_millis(500);

/// Voters a, b and c in the order of their metrics, so that a leads; `old` know version 1 alone.
fn mixed(old: &[&str]) -> World {
    World::with(&["a", "b", "c"], |voter, key, voters| {
        let rank = voters.iter().position(|other| *other == voter);
        Config {
            frame_version: match old.contains(&voter.as_str()) {
                true => OLDEST,
                false => VERSION,
            },
            metric: Metric::new(rank.unwrap_or_default() as f64).unwrap(),
            hand_over: None,
            relinquish_timeout: Duration::ZERO,
            ..Config::new(voter, key, name("plant"), voters)
        }
    })
}

fn upgrade(world: &mut World, who: &str) {
    let node = world.nodes.get_mut(&name(who)).unwrap();
    node.config.frame_version = VERSION;
    world.restart(who);
    world.run(Duration::from_secs(3));
}

fn demote(who: &str) -> Operation {
    Operation::Change(Change {
        members: vec![MemberOperation::Demote(who.to_owned())],
        settings: None,
    })
}

fn transfer(to: &str) -> Operation {
    Operation::Transfer(Transfer {
        to: Some(to.to_owned()),
        from: None,
    })
}

#[track_caller]
fn assert_waits_for(result: &Result<Done, RequestError>, who: &str) {
    match result {
        Err(RequestError::NotYet(why)) => {
            assert!(why.starts_with(who) && why.contains("older"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

/// The versions of the frames published since the last call, lobby not counted.
fn versions(world: &mut World) -> Vec<u8> {
    let lobby = ClusterId::new("raft/plant", None);
    let frames = std::mem::take(&mut world.captured);
    let cluster = frames.iter().filter(|p| p.payload[2..10] != lobby.0);
    let mut versions: Vec<u8> = cluster.map(|p| p.payload[0]).collect();
    versions.sort_unstable();
    versions.dedup();
    versions
}

/// Upgraded node by node, a cluster works all the way, in frames that each receiver reads. What only
/// the newer version has waits for the last node, and says for which.
#[test]
fn what_is_new_waits_for_the_last_upgrade() {
    let mut world = mixed(&["a", "b", "c"]);
    assert_eq!(versions(&mut world), [1]);
    upgrade(&mut world, "a");
    upgrade(&mut world, "b");
    assert_eq!(world.leader(), Some(name("a")));
    // What goes to b alone is of version 2 by now, and c has refused nothing.
    versions(&mut world);
    world.assert_alive("b");
    world.assert_alive("c");
    assert_eq!(versions(&mut world), [1, 2]);
    assert!(!refuses_versions(&world, "c"));
    for who in ["a", "b", "c"] {
        for operation in [demote("c"), transfer("c")] {
            let result = world.ask(who, operation, SHORT);
            assert!(matches!(result, Err(RequestError::NotYet(_))), "{result:?}");
        }
    }
    upgrade(&mut world, "c");
    versions(&mut world);
    let leader = world.leader().unwrap();
    world.run(Duration::from_secs(1));
    assert_eq!(versions(&mut world), [2]);
    let other = if leader == name("c") { "b" } else { "c" };
    let result = world.ask("a", transfer(other), Duration::from_secs(5));
    assert_eq!(result, Ok(Done::Transferred(other.to_owned())));
    let result = world.ask("b", demote("a"), Duration::from_secs(5));
    assert!(matches!(result, Ok(Done::Members(_))), "{result:?}");
}

/// Each reason names the node that has to be upgraded, whoever is asked and whoever leads.
#[test]
fn the_older_node_is_named() {
    let mut world = mixed(&["b"]);
    assert_eq!(world.leader(), Some(name("a")));
    for who in ["a", "c"] {
        assert_waits_for(&world.ask(who, demote("c"), SHORT), "b");
        assert_waits_for(&world.ask(who, transfer("c"), SHORT), "b");
    }
    // The older node cannot even say what is wanted.
    assert_waits_for(&world.ask("b", transfer("c"), SHORT), "b");
    let mut world = mixed(&["a"]);
    assert_waits_for(&world.ask("c", transfer("c"), SHORT), "a");
    assert_waits_for(&world.ask("a", demote("c"), SHORT), "a");
}

/// An older node that is gone holds up nothing; that it was a member is no reason to wait for ever.
#[test]
fn an_older_node_that_is_gone_holds_up_nothing() {
    let mut world = mixed(&["b"]);
    world.kill("b");
    world.run(Duration::from_secs(3));
    let result = world.ask("a", demote("b"), Duration::from_secs(5));
    assert!(matches!(result, Ok(Done::Members(_))), "{result:?}");
}

/// A leader beside an older node stops as it always did: nobody is asked to take over at once, and no
/// lease is released.
#[test]
fn beside_an_older_node_a_leader_just_stops() {
    for (old, at_once) in [(&["b"][..], true), (&[], false)] {
        let mut world = mixed(old);
        world.step(&name("a"), vec![Input::Leave]);
        assert_eq!(world.node("a").replica.has_stopped(), at_once, "{old:?}");
        world.run(Duration::from_millis(100));
        assert!(world.node("a").replica.has_stopped());
        world.run(Duration::from_secs(3));
        let leader = world.leader().expect("a successor");
        assert_ne!(leader, name("a"));
    }
}

/// A node that is told to speak version 1 alone reads nothing newer: refused, counted, and named.
#[test]
fn a_newer_frame_is_a_counted_refusal() {
    let mut world = mixed(&["b"]);
    let request = Body::SaveRequest(SaveRequest { revision: 0 });
    world.admit_member("z");
    let outcome = world.say("b", &request);
    let expected = Refused::Frame(FrameError::Version(VERSION, OLDEST));
    assert_eq!(outcome.refused(), Some(expected));
    assert_eq!(world.say("a", &request).refused(), None);
    world.assert_alive("b");
}

/// What only version 2 has does not pass in a frame of version 1.
#[test]
fn an_old_frame_says_nothing_new() {
    let mut world = mixed(&[]);
    world.admit_member("z");
    let body = to_vec(&Body::SaveRequest(SaveRequest { revision: 0 }));
    let outcome = world.say_bytes_in(OLDEST, "b", &body);
    assert_eq!(outcome.refused(), Some(Refused::Body));
    assert_eq!(world.say_bytes("b", &body).refused(), None);
}

/// An older build does not take over a disk that holds what it does not know.
#[test]
fn there_is_no_way_back_from_what_is_new() {
    // As long as one is of the older build nothing new is written.
    let world = mixed(&["c"]);
    let node = world.node("a");
    let mut durable: Durable = node.durable.clone();
    let index = Index(durable.entries.last().map_or(0, |entry| entry.index.0) + 1);
    let mut start = |frame_version, payload: Option<Payload>| {
        let config = Config {
            frame_version,
            ..node.config.clone()
        };
        durable.entries.extend(payload.map(|payload| Entry {
            index,
            term: Term(9),
            payload,
        }));
        let formation = node.formation.as_deref();
        Replica::new(config, formation, durable.clone(), [9; 32], Time(0))
    };
    assert!(start(OLDEST, None).is_ok());
    assert!(start(VERSION, Some(Payload::LeaseEpoch(1))).is_ok());
    let refused = start(OLDEST, None).err();
    assert!(
        matches!(refused, Some(StartError::FrameVersion(1))),
        "{refused:?}"
    );
}

fn refuses_versions(world: &World, who: &str) -> bool {
    let newer = |event: &Event| {
        let Event::Refused { reason, .. } = event else {
            return false;
        };
        matches!(
            reason,
            Refused::Frame(FrameError::Version(..)) | Refused::Body
        )
    };
    world.node(who).events.iter().any(newer)
}
