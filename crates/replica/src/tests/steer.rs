//! Members, metrics and the lead as a whole node handles them.

use std::time::Duration;

use raft::{Durable, NodeKey, Role, Time};

use super::world::{World, cluster_key, name};
use crate::keys::KeyRing;
use crate::link::Link;
use crate::name::Metric;
use crate::replica::{Autopilot, Config, HandOver, Input, StopReason};
use crate::requests::{Done, RequestError};
use crate::wire::{Change, MemberOperation, Operation, Transfer, Write};
use crate::{Event, Members};

const SECOND: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(10);

/// Three voters; each may be told more than its name by `with`.
fn formed(with: impl Fn(&mut Config)) -> World {
    let mut world = World::empty();
    let voters: Vec<_> = ["a", "b", "c"].map(name).into();
    for (n, voter) in voters.iter().enumerate() {
        let key = NodeKey((n as u128 + 1) << 100);
        let mut config = Config {
            ring: KeyRing::of(cluster_key(7)),
            ..Config::new(voter.clone(), key, name("plant"), voters.clone())
        };
        with(&mut config);
        world.start(config, None, Durable::default());
    }
    world.run(4 * SECOND);
    assert!(world.leader().is_some(), "a cluster forms");
    world
}

fn observer(world: &mut World, who: &str, key: u128) {
    let config = Config {
        ring: KeyRing::of(cluster_key(7)),
        ..Config::new(name(who), NodeKey(key << 100), name("plant"), Vec::new())
    };
    world.start(config, None, Durable::default());
    world.run(2 * SECOND);
}

fn leader(world: &World) -> String {
    world.leader().expect("somebody leads").to_string()
}

fn term(world: &World) -> u64 {
    world.node(&leader(world)).replica.term().0
}

fn set_metric(world: &mut World, who: &str, metric: f64) {
    let metric = Metric::new(metric).expect("a number");
    world.step(&name(who), vec![Input::SetMetric(metric)]);
}

fn change(world: &mut World, members: Vec<MemberOperation>) -> Result<Members, RequestError> {
    let change = Change {
        members,
        settings: None,
    };
    let at = leader(world);
    match world.ask(&at, Operation::Change(change), TIMEOUT) {
        Ok(Done::Members(members)) => Ok(members),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error),
    }
}

fn add(who: &str) -> MemberOperation {
    MemberOperation::Add {
        who: who.into(),
        witness: false,
    }
}

fn voters(world: &World) -> Vec<String> {
    let members = world.node(&leader(world)).replica.members();
    let voters = members.members.into_iter().filter(|member| member.voter);
    voters.map(|member| member.name).collect()
}

fn is_exclusive(world: &World, who: &str) -> bool {
    let lease = world.node(who).replica.lease();
    lease.is_some_and(|lease| lease.from <= world.now && world.now < lease.until)
}

// Metrics.

/// A changed metric is known to everyone soon, and costs no election.
#[test]
fn a_metric_reaches_everyone_without_an_election() {
    let mut world = formed(|config| config.hand_over = None);
    let (first, before) = (leader(&world), term(&world));
    set_metric(&mut world, &first, 7.5);
    world.run(SECOND);
    for node in world.nodes.values() {
        assert_eq!(node.replica.leader_metric().map(Metric::value), Some(7.5));
    }
    assert_eq!((leader(&world), term(&world)), (first, before));
}

/// The better voter takes the lead once it has been better for the hold time, and is exclusive at once.
#[test]
fn the_lead_follows_the_metric() {
    let mut world = formed(|_| {});
    world.run(10 * SECOND);
    let old = leader(&world);
    set_metric(&mut world, &old, 10.0);
    let before = term(&world);
    world.run(Duration::from_millis(4_900));
    assert_eq!(leader(&world), old, "not before the hold time");
    world.run(Duration::from_millis(200));
    let new = leader(&world);
    assert_ne!(new, old);
    assert_eq!(term(&world), before + 1, "one election, and no other");
    assert!(is_exclusive(&world, &new), "it need not wait for the lease");
}

/// Who is better for a moment only, or by less than the margin, changes nothing.
#[test]
fn a_short_or_small_advantage_is_none() {
    let hand_over = HandOver {
        hysteresis: 2.0,
        ..HandOver::default()
    };
    let mut world = formed(|config| config.hand_over = Some(hand_over));
    world.run(30 * SECOND);
    let (old, before) = (leader(&world), term(&world));
    set_metric(&mut world, &old, 1.9);
    world.run(60 * SECOND);
    for _ in 0..10 {
        set_metric(&mut world, &old, 10.0);
        world.run(4 * SECOND);
        set_metric(&mut world, &old, 0.0);
        world.run(SECOND);
    }
    assert_eq!((leader(&world), term(&world)), (old, before));
}

/// However the metrics swing, each change of the leader makes the next one wait longer.
#[test]
fn swinging_metrics_move_the_lead_ever_less_often() {
    let mut world = formed(|_| {});
    let before = term(&world);
    let (mut now, end) = (0, 3_600);
    while now < end {
        // Whoever leads is the worst from now on.
        let worst = leader(&world);
        for who in ["a", "b", "c"] {
            set_metric(&mut world, who, if who == worst { 10.0 } else { 1.0 });
        }
        world.run(6 * SECOND);
        now += 6;
    }
    let transfers = term(&world) - before;
    // After 10, 20, 40 … 640 seconds, and then after 640 each: ten.
    println!("{transfers} transfers in an hour");
    assert!((6..=11).contains(&transfers), "{transfers} in an hour");
}

// Leaving.

/// A leader that is to stop hands over first: its successor is exclusive before the old one is gone.
#[test]
fn a_leader_that_leaves_hands_over() {
    let mut world = formed(|_| {});
    world.run(3 * SECOND);
    let old = leader(&world);
    world.step(&name(&old), vec![Input::Leave]);
    world.run(Duration::from_millis(20));
    assert!(world.node(&old).replica.has_stopped());
    let gone = |node: &&super::world::Node| node.replica.role() == Some(Role::Leader);
    let leaders: Vec<_> = world
        .nodes
        .values()
        .filter(gone)
        .filter(|node| !node.replica.has_stopped())
        .map(|node| node.config.name.to_string())
        .collect();
    assert_eq!(leaders.len(), 1, "{leaders:?}");
    assert!(is_exclusive(&world, &leaders[0]));
}

/// Somebody acts on the lease and does not stop: after ten seconds the lead goes all the same, without
/// a release.
#[test]
fn a_leader_that_leaves_waits_for_whoever_acts() {
    let mut world = formed(|_| {});
    world.run(3 * SECOND);
    let old = leader(&world);
    world.nodes.get_mut(&name(&old)).expect("it").holds_on = true;
    world.step(&name(&old), vec![Input::Leave]);
    world.run(Duration::from_millis(9_900));
    assert!(!world.node(&old).replica.has_stopped());
    assert!(!is_exclusive(&world, &old), "the claim is withdrawn");
    world.assert_alive(&old);
    world.run(2 * SECOND);
    assert!(world.node(&old).replica.has_stopped());
}

/// A node that stopped and lost its session in the same step makes no claim (simulator, seed 187).
#[test]
fn who_has_stopped_claims_nothing() {
    let mut world = World::formed(&["a"]);
    world.run(3 * SECOND);
    assert!(is_exclusive(&world, "a"));
    world.step(
        &name("a"),
        vec![Input::Leave, Input::Disconnected(Link::FIRST)],
    );
    assert!(world.node("a").replica.has_stopped());
    assert_eq!(world.node("a").replica.lease(), None);
}

/// The last of its cluster has nobody to hand over to, and stops at once.
#[test]
fn the_only_voter_just_leaves() {
    let mut world = World::formed(&["a"]);
    world.step(&name("a"), vec![Input::Leave]);
    assert!(world.node("a").replica.has_stopped());
}

// Members.

/// A node is added, brought up to date and given a vote; another goes, learns it, and stops. Started
/// again it follows, and does not stop again.
#[test]
fn members_come_and_go() {
    let mut world = formed(|_| {});
    observer(&mut world, "d", 4);
    change(&mut world, vec![add("d")]).expect("added");
    let members = change(&mut world, vec![MemberOperation::Promote("d".into())]);
    assert_eq!(members.expect("promoted").members.len(), 4);
    let gone = ["a", "b", "c"]
        .into_iter()
        .find(|who| *who != leader(&world));
    let gone = gone.expect("a follower");
    change(&mut world, vec![MemberOperation::Remove(gone.into())]).expect("removed");
    world.run(SECOND);
    let stopped = Event::Stop(StopReason::Removed);
    assert!(world.node(gone).events.contains(&stopped));
    assert_eq!(voters(&world).len(), 3);
    world.restart(gone);
    world.run(3 * SECOND);
    assert!(!world.node(gone).events.contains(&stopped));
    assert_eq!(world.node(gone).replica.role(), Some(Role::Learner));
    let at = leader(&world);
    world.assert_alive(&at);
    world.run(SECOND);
    let (applied, its) = (&world.node(&at).replica, &world.node(gone).replica);
    assert_eq!(applied.store().digest(), its.store().digest(), "it follows");
}

/// A change that is asked for again, by a client that missed the answer, changes nothing.
#[test]
fn changes_are_idempotent() {
    let mut world = formed(|_| {});
    observer(&mut world, "d", 4);
    let mut same = |members: &dyn Fn() -> Vec<MemberOperation>| {
        let first = change(&mut world, members()).expect("changed");
        let again = change(&mut world, members()).expect("changed");
        assert_eq!(first.index, again.index, "it is the same entry");
    };
    same(&|| vec![add("d")]);
    same(&|| vec![MemberOperation::Promote("d".into())]);
    same(&|| vec![MemberOperation::Demote("d".into())]);
    same(&|| vec![MemberOperation::Remove("d".into())]);
    let unknown = change(&mut world, vec![MemberOperation::Promote("x".into())]);
    assert!(
        matches!(unknown, Err(RequestError::Refused(_))),
        "{unknown:?}"
    );
    let absent = change(&mut world, vec![add("x")]);
    assert!(matches!(absent, Err(RequestError::NotYet(_))), "{absent:?}");
}

/// The leader is removed by a request to itself: it hands over, and its successor does it.
#[test]
fn the_leader_removes_itself_by_handing_over() {
    let mut world = formed(|_| {});
    let old = leader(&world);
    change(&mut world, vec![MemberOperation::Remove(old.clone())]).expect("removed");
    world.run(SECOND);
    assert!(world.node(&old).replica.has_stopped());
    let at = all_but(&old);
    assert_eq!(at.len(), 2);
    world.assert_alive(&at[0]);
}

fn all_but(gone: &str) -> Vec<String> {
    let names = ["a", "b", "c"].into_iter().filter(|who| *who != gone);
    names.map(str::to_owned).collect()
}

/// A transfer to whoever is best that reaches the successor of the node it was meant for is done.
#[test]
fn a_transfer_is_not_done_twice() {
    let mut world = formed(|config| config.hand_over = None);
    let old = leader(&world);
    let transfer = |from: &str| {
        Operation::Transfer(Transfer {
            to: None,
            from: Some(from.to_owned()),
        })
    };
    let done = world.ask(&old, transfer(&old), TIMEOUT);
    let new = leader(&world);
    assert_ne!(new, old);
    assert_eq!(done, Ok(Done::Transferred(new.clone())));
    let again = world.ask(&new, transfer(&old), TIMEOUT);
    assert_eq!(again, Ok(Done::Transferred(new.clone())));
    assert_eq!(leader(&world), new);
    // To somebody by name it may be asked for as often as one likes.
    let to = Operation::Transfer(Transfer {
        to: Some(old.clone()),
        from: None,
    });
    for _ in 0..2 {
        let done = world.ask(&new, to.clone(), TIMEOUT);
        assert_eq!(done, Ok(Done::Transferred(old.clone())));
    }
}

/// The only founder loses its disk when the cluster has grown: it listens before it founds another,
/// and follows (simulator, seed 292).
#[test]
fn a_lone_founder_without_a_disk_joins_what_it_founded() {
    let mut world = World::formed(&["a"]);
    observer(&mut world, "b", 4);
    observer(&mut world, "c", 5);
    change(&mut world, vec![add("b"), add("c")]).expect("added");
    let promote = ["b", "c"].map(|who| MemberOperation::Promote(who.into()));
    change(&mut world, promote.into()).expect("promoted");
    world.kill("a");
    let mut config = world.nodes.remove(&name("a")).expect("it").config;
    config.key = NodeKey(9 << 100);
    world.start(config, None, Durable::default());
    world.run(5 * SECOND);
    let wiped = &world.node("a").replica;
    assert_eq!(wiped.role(), Some(Role::Learner));
    assert_eq!(wiped.leader(), world.leader());
    world.assert_alive("b");
}

// The autopilot.

/// A voter that stays silent for the dwell time gives its vote to the observer with the best metric;
/// one that comes back before does not.
#[test]
fn the_autopilot_waits_and_then_replaces() {
    let autopilot = Autopilot {
        target: 3,
        dwell: 60 * SECOND,
    };
    let mut world = formed(|config| config.autopilot = Some(autopilot));
    observer(&mut world, "spare-1", 4);
    observer(&mut world, "spare-2", 5);
    set_metric(&mut world, "spare-1", 3.0);
    set_metric(&mut world, "spare-2", 2.0);
    world.run(120 * SECOND);
    let before = voters(&world);
    let silent = before.iter().find(|who| **who != leader(&world));
    let silent = silent.expect("a follower").clone();
    world.kill(&silent);
    world.run(40 * SECOND);
    assert_eq!(voters(&world), before, "its will counts for nothing");
    world.restart(&silent);
    world.run(60 * SECOND);
    assert_eq!(voters(&world), before, "it came back");
    world.kill(&silent);
    world.run(75 * SECOND);
    let after = voters(&world);
    assert_eq!(after.len(), 3);
    assert!(after.contains(&"spare-2".to_owned()), "{after:?}");
    assert!(!after.contains(&silent), "{after:?}");
    world.restart(&silent);
    world.run(5 * SECOND);
    let stopped = Event::Stop(StopReason::Removed);
    assert!(world.node(&silent).events.contains(&stopped));
}

/// Without a spare nothing is done, and with the majority gone nothing either.
#[test]
fn the_autopilot_never_takes_without_giving() {
    let autopilot = Autopilot {
        target: 3,
        dwell: 5 * SECOND,
    };
    let mut world = formed(|config| config.autopilot = Some(autopilot));
    let before = voters(&world);
    let silent = before.iter().find(|who| **who != leader(&world));
    let silent = silent.expect("a follower").clone();
    world.kill(&silent);
    world.run(120 * SECOND);
    assert_eq!(voters(&world), before);
}

/// A leader that leads alone answers its own reads within its lease, where that is settled.
#[test]
fn settings_are_the_clusters() {
    let mut world = formed(|_| {});
    world.run(3 * SECOND);
    let at = leader(&world);
    let settings = raft::Settings {
        lease_ms: 2_000,
        lease_reads: true,
        ..raft::Settings::default()
    };
    let change = Change {
        members: Vec::new(),
        settings: Some(settings),
    };
    let done = world.ask(&at, Operation::Change(change), TIMEOUT);
    assert!(matches!(done, Ok(Done::Members(members)) if members.settings == settings));
    world.run(SECOND);
    for node in world.nodes.values() {
        let raft = node.replica.raft().expect("formed");
        assert_eq!(raft.configuration().settings, settings);
    }
    let write = Operation::Write(Write::Put {
        key: "k".into(),
        value: "v".into(),
        lease: None,
    });
    world.ask(&at, write, TIMEOUT).expect("written");
    world.run(SECOND);
    let before = world.captured.len();
    let begun: Time = world.now;
    let read = world.ask(&at, Operation::Get("k".into()), TIMEOUT);
    assert!(matches!(read, Ok(Done::Read(_))));
    assert!(world.now.since(begun) <= Duration::from_millis(1));
    assert_eq!(world.captured.len(), before, "no message was needed");
}
