//! Two nodes that hold the state, and a witness: what it holds, what it refuses, and that any one of
//! the three may go.

use std::time::Duration;

use raft::{Durable, NodeKey};

use super::world::{World, cluster_key, name};
use crate::keys::KeyRing;
use crate::replica::{Config, Event, Replica, StartError, StopReason};
use crate::requests::{Done, RequestError};
use crate::wire::{
    Body, Change, Formation, Holds, MemberOperation, Operation, StaleRead, Value, Write,
    from_slice, to_vec,
};

const SECOND: Duration = Duration::from_secs(1);

fn config(who: &str, n: u128, voters: &[&str], witness: bool) -> Config {
    let voters = voters.iter().map(|voter| name(voter)).collect();
    Config {
        ring: KeyRing::of(cluster_key(7)),
        witness,
        ..Config::new(name(who), NodeKey(n << 100), name("plant"), voters)
    }
}

/// Nodes a and b, and w, a witness.
fn site() -> World {
    let mut world = World::empty();
    for (n, who) in ["a", "b", "w"].iter().enumerate() {
        let config = config(who, n as u128 + 1, &["a", "b", "w"], *who == "w");
        world.start(config, None, Durable::default());
    }
    world.run(4 * SECOND);
    assert!(leader(&world) != "w", "a site forms");
    world
}

/// Who leads, if that is not the witness, whose status says no such thing.
fn leader(world: &World) -> String {
    world.leader().expect("somebody leads").to_string()
}

fn put(world: &mut World, who: &str, key: &str, bytes: usize) -> Result<Done, RequestError> {
    let write = Write::Put {
        key: key.to_owned().into(),
        value: vec![b'v'; bytes].into(),
        lease: None,
    };
    world.ask(who, Operation::Write(write), 10 * SECOND)
}

fn value(world: &mut World, who: &str, key: &str) -> Option<Value> {
    match world.ask(who, Operation::Get(key.to_owned().into()), 10 * SECOND) {
        Ok(Done::Read(reading)) => reading.value,
        other => panic!("{other:?}"),
    }
}

fn stopped(world: &World, who: &str) -> Option<StopReason> {
    let events = &world.node(who).events;
    events.iter().find_map(|event| match event {
        Event::Stop(reason) => Some(reason.clone()),
        _ => None,
    })
}

/// The record says who is a witness, and a record without one has the bytes it always had.
#[test]
fn the_formation_names_the_witness() {
    let world = site();
    let formation = world.formation();
    assert_eq!(formation.witnesses, [NodeKey(3 << 100)].into());
    let without = Formation {
        witnesses: Default::default(),
        ..formation.clone()
    };
    assert!(to_vec(&without).len() < to_vec(&formation).len());
    assert_ne!(without.digest(), formation.digest());
    let witness = &world.node("w").replica;
    assert_eq!(witness.status().role, "witness");
    let raft = witness.raft().expect("formed");
    assert!(raft.is_witness() && raft.configuration().is_voter(NodeKey(3 << 100)));
}

/// b is down while a and the witness commit. As b returns, a is lost for good with its disk: b gets
/// all of it from the witness, leads, and nothing acknowledged is gone.
#[test]
fn nothing_acknowledged_is_lost_with_a_data_node() {
    let mut world = site();
    let (a, b) = match leader(&world).as_str() {
        "a" => ("a", "b"),
        _ => ("b", "a"),
    };
    world.kill(b);
    for n in 0..20 {
        let done = put(&mut world, a, &format!("k{n}"), 100);
        assert!(matches!(done, Ok(Done::Written(_))), "{done:?}");
    }
    world.restart(b);
    world.vanish(a);
    world.run(10 * SECOND);
    assert_eq!(leader(&world), b);
    assert!(!world.node("w").replica.status().is_leader);
    for n in 0..20 {
        assert!(value(&mut world, b, &format!("k{n}")).is_some(), "k{n}");
    }
    world.assert_alive(b);
}

/// Whichever of the three ends, writes go on and one of the others leads for certain.
#[test]
fn any_one_may_go() {
    for gone in ["a", "b", "w"] {
        let mut world = site();
        world.assert_alive("a");
        world.kill(gone);
        world.run(5 * SECOND);
        let leader = leader(&world);
        world.assert_alive(&leader);
        assert!(
            world.node(&leader).replica.status().is_leader,
            "{gone} is gone"
        );
    }
}

/// The witness applies nothing, and says nothing of what it holds: not for reads, not stale, not for
/// copies, though it alone is there.
#[test]
fn a_witness_answers_no_read() {
    let mut world = site();
    put(&mut world, "a", "k", 10).expect("written");
    world.run(SECOND);
    let get = || Operation::Get("k".into());
    assert!(
        world.ask("w", get(), 5 * SECOND).is_ok(),
        "it asks who leads"
    );
    assert_eq!(world.node("w").replica.status().applied_index, 0);
    world.kill("a");
    world.kill("b");
    world.run(10 * SECOND);
    world.admit_member("z");
    let stale = Body::StaleRead(StaleRead { key: "k".into() });
    let answers = world.say("w", &stale).published;
    assert!(answers.is_empty(), "{answers:?}");
    assert_eq!(
        world.ask("w", get(), 20 * SECOND),
        Err(RequestError::TimedOut)
    );
}

/// Once its log has outgrown its snapshot the witness has a data node's, and keeps the bytes unread;
/// from those it starts again, and brings up to date whoever lost everything.
#[test]
fn a_witness_compacts_with_a_snapshot_of_another_node() {
    let mut world = site();
    for n in 0..100 {
        put(&mut world, "a", &format!("k{}", n % 50), 60_000).expect("written");
    }
    world.run(3 * SECOND);
    let held = world
        .node("w")
        .durable
        .snapshot
        .clone()
        .expect("a snapshot");
    let bytes: usize = world
        .node("w")
        .durable
        .entries
        .iter()
        .map(|e| e.size())
        .sum();
    assert!(bytes < 5 << 20, "{bytes} bytes of log are left");
    assert!(held.data.len() > 1 << 20);
    assert_eq!(world.node("w").replica.status().applied_index, 0);
    world.restart("w");
    world.run(2 * SECOND);
    assert_eq!(stopped(&world, "w"), None);
    assert_eq!(world.node("w").replica.status().role, "witness");
    let other = if leader(&world) == "a" { "b" } else { "a" };
    world.kill(other);
    for n in 0..10 {
        let a = leader(&world);
        put(&mut world, &a, &format!("late{n}"), 100).expect("written");
    }
    // What comes back has nothing but its identity as a voter and its first entries: it is the
    // witness alone that can bring it up to date.
    let a = leader(&world);
    world.restart(other);
    world.vanish(&a);
    world.run(15 * SECOND);
    assert_eq!(leader(&world), other);
    for n in 0..10 {
        assert!(value(&mut world, other, &format!("late{n}")).is_some());
    }
    assert!(value(&mut world, other, "k7").is_some());
}

/// What a node was started as and what its cluster knows it as must be the same.
#[test]
fn whoever_is_started_as_something_else_stops() {
    for (who, n, reason) in [
        ("w", 3, StopReason::Witness),
        ("a", 1, StopReason::NoWitness),
    ] {
        let mut world = site();
        world.kill(who);
        let node = world.nodes.remove(&name(who)).unwrap();
        let config = config(who, n, &["a", "b", "w"], who != "w");
        world.start(config, node.formation, node.durable);
        world.run(3 * SECOND);
        assert_eq!(stopped(&world, who), Some(reason));
    }
}

/// A promise to form a cluster as a witness binds too.
#[test]
fn an_accepted_record_binds() {
    let world = site();
    let record = to_vec(&Holds::Accepted(world.formation()));
    let start = |witness| {
        let config = config("w", 3, &["a", "b", "w"], witness);
        let durable = Durable::default();
        Replica::new(config, Some(&record), durable, [1; 32], world.now).map(|_| ())
    };
    assert!(start(true).is_ok());
    assert!(matches!(start(false), Err(StartError::Witness)));
}

/// Nobody would lead a cluster of witnesses: it is not formed, and the nodes say why.
#[test]
fn witnesses_alone_form_nothing() {
    let mut world = World::empty();
    for (n, who) in ["v", "w"].iter().enumerate() {
        let config = config(who, n as u128 + 1, &["v", "w"], true);
        world.start(config, None, Durable::default());
    }
    world.run(4 * SECOND);
    for who in ["v", "w"] {
        assert!(!matches!(
            world
                .node(who)
                .formation
                .as_ref()
                .map(|record| from_slice(record)),
            Some(Ok(Holds::Formed(_)))
        ));
        let trouble = world.node(who).replica.status().trouble.expect("told");
        assert!(trouble.contains("nobody would lead"), "{trouble}");
    }
}

/// A witness that comes later is added as one, and as nothing else.
#[test]
fn a_witness_is_added_as_one() {
    let mut world = World::empty();
    for (n, who) in ["a", "b"].iter().enumerate() {
        let config = config(who, n as u128 + 1, &["a", "b"], false);
        world.start(config, None, Durable::default());
    }
    world.run(4 * SECOND);
    for n in 0..100 {
        put(&mut world, "a", &format!("k{n}"), 60_000).expect("written");
    }
    world.start(config("w", 3, &[], true), None, Durable::default());
    world.run(5 * SECOND);
    assert_eq!(world.node("w").replica.status().role, "witness");
    let add = |witness| {
        let who = "w".to_owned();
        let members = vec![MemberOperation::Add { who, witness }];
        let settings = None;
        Operation::Change(Change { members, settings })
    };
    let refused = world.ask("a", add(false), 10 * SECOND);
    let Err(RequestError::Refused(why)) = refused else {
        panic!("{refused:?}");
    };
    assert!(why.contains("witness"), "{why}");
    assert!(world.ask("a", add(true), 10 * SECOND).is_ok());
    world.run(SECOND);
    let members = vec![MemberOperation::Promote("w".to_owned())];
    let promote = Operation::Change(Change {
        members,
        settings: None,
    });
    assert!(world.ask("a", promote, 10 * SECOND).is_ok());
    let gone = leader(&world);
    let left = if gone == "a" { "b" } else { "a" };
    world.kill(&gone);
    world.run(5 * SECOND);
    world.assert_alive(left);
}
