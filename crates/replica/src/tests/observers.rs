//! Nodes that are no members: what they get, and what they cost.

use std::collections::BTreeMap;
use std::time::Duration;

use raft::message::Body as Raft;
use raft::{Durable, NodeKey};

use super::world::{World, name};
use crate::frame::{Destination, Header, Opener, VERSION};
use crate::keys::KeyRing;
use crate::replica::Config;
use crate::topic::{Topic, Topics};
use crate::wire::{Body, from_slice};
use crate::{Name, Publish};

const OBSERVERS: usize = 50;

/// What consensus says in a frame without a key, and to whom.
fn consensus(
    ring: &KeyRing,
    topics: &Topics,
    publish: &Publish,
) -> Option<(Name, Option<Name>, Raft)> {
    let header = Header::parse(&publish.payload, VERSION).ok()?;
    let (from, to) = match topics.parse(&publish.topic)? {
        Topic::Broadcast { from } => (from, None),
        Topic::Unicast { to, from } => (from, Some(to)),
        _ => return None,
    };
    let destination = to.as_ref().map_or(Destination::All, Destination::One);
    let opened = Opener::find(ring, &header, &from, destination, &publish.payload);
    let (_, bytes) = opened.ok()?;
    match from_slice(&bytes) {
        Ok(Body::Consensus(message, _)) => Some((from, to, message.body)),
        _ => None,
    }
}

/// Fifty nodes join at once that are no members. Not one word of consensus goes from the leader to
/// any of them, nor back: it publishes no more than it would without them. The other voters bring
/// all of them up to date.
#[test]
fn observers_cost_the_leader_nothing() {
    let ring = KeyRing::insecure();
    let voters = ["a", "b", "c"];
    let mut world = World::of("raft", "plant", &voters, ring.clone());
    for _ in 0..20 {
        world.assert_alive("b");
    }
    let leader = world.leader().expect("elected");
    let topics = Topics::new("raft", &name("plant")).unwrap();
    let quiet = Duration::from_secs(5);
    let broadcasts = |world: &World, since: usize| {
        let said = world.captured[since..].iter();
        let said = said.filter_map(|publish| consensus(&ring, &topics, publish));
        said.filter(|(from, to, _)| *from == leader && to.is_none())
            .count()
    };
    world.run(Duration::from_secs(1));
    let since = world.captured.len();
    world.run(quiet);
    let before = broadcasts(&world, since);

    let since = world.captured.len();
    let revision_before = world.node(leader.as_str()).replica.store().revision();
    let voters: Vec<Name> = voters.iter().map(|voter| name(voter)).collect();
    for n in 0..OBSERVERS {
        let who = name(&format!("observer-{n}"));
        let key = NodeKey((n as u128 + 100) << 100);
        let config = Config {
            ring: ring.clone(),
            ..Config::new(who, key, name("plant"), voters.clone())
        };
        world.start(config, None, Durable::default());
    }
    world.run(quiet);
    let target = world.node(leader.as_str()).replica.status().applied_index;
    for n in 0..OBSERVERS {
        let status = world.node(&format!("observer-{n}")).replica.status();
        assert_eq!(
            (status.role.as_str(), status.applied_index),
            ("learner", target)
        );
    }
    // That they are there is written in a few entries: each takes an append, and news of its commit.
    let revision = world.node(leader.as_str()).replica.store().revision();
    let arrivals = (revision - revision_before) as usize;
    assert!((1..10).contains(&arrivals), "{arrivals} entries");
    let more = broadcasts(&world, since) - before;
    assert!(
        more <= 2 * arrivals,
        "{more} broadcasts for {arrivals} entries"
    );
    let mut served = BTreeMap::new();
    for publish in &world.captured[since..] {
        let Some((from, Some(to), body)) = consensus(&ring, &topics, publish) else {
            continue;
        };
        let observes = |who: &Name| who.as_str().starts_with("observer");
        if observes(&to) {
            assert!(from != leader, "the leader says {body:?} to {to}");
            *served.entry(from).or_insert(0) += 1;
        } else if observes(&from) {
            assert!(to != leader, "{from} says {body:?} to the leader");
        }
    }
    assert_eq!(served.len(), 2, "both other voters took part: {served:?}");
    // The last one to come follows the broadcast like the first.
    world.assert_alive("b");
    world.run(Duration::from_secs(1));
    let target = world.node(leader.as_str()).replica.status().applied_index;
    let status = world.node("observer-49").replica.status();
    assert_eq!(status.applied_index, target);
}
