//! What the topic `leader` says to any MQTT client.

use std::time::Duration;

use serde_json::Value;

use super::world::World;
use crate::{Input, Metric};

const SECOND: Duration = Duration::from_secs(1);

/// A wall clock for everyone: it shows this many seconds now.
fn set_wall_clocks(world: &mut World, seconds: u64) {
    let now = world.now;
    for node in world.nodes.values_mut() {
        let shown = Duration::from_millis(seconds * 1_000 + 900);
        node.replica.set_wall_clock(shown, now);
    }
}

/// All hints that were ever published.
fn hints(world: &World) -> Vec<Value> {
    let hints = world
        .statuses
        .iter()
        .filter(|s| s.topic.ends_with("/leader"));
    let hints = hints.map(|hint| serde_json::from_slice(&hint.payload).expect("JSON"));
    hints.collect()
}

/// A new leader says since when it leads as soon as it does, and its token as soon as it has one. What
/// it says is said again when its metric changes or it has a new session, with the same time; and not
/// otherwise.
#[test]
fn the_hint_names_leader_time_and_token() {
    let mut world = World::formed(&["a", "b", "c"]);
    let unset = hints(&world);
    assert!(unset.iter().all(|hint| hint["since"].is_null()), "no clock");
    set_wall_clocks(&mut world, 1_795_538_400);
    let before = unset.len();
    let old = world.leader().expect("a leader");
    world.kill(old.as_str());
    world.run(20 * SECOND);
    let leader = world.leader().expect("a successor");
    let replica = &world.node(leader.as_str()).replica;
    let token = replica.lease().expect("a lease").epoch.token().0;
    let term = replica.term().0;
    let said = hints(&world).split_off(before);
    assert_eq!(said.len(), 2, "{said:?}");
    for hint in &said {
        assert_eq!(hint["leader"], leader.as_str());
        assert_eq!(hint["term"], term);
        let since = hint["since"].as_u64().expect("a time");
        assert!((1_795_538_400..=1_795_538_402).contains(&since), "{since}");
    }
    assert_eq!(said[0]["token"], Value::Null);
    assert_eq!(said[1]["token"], token);

    let metric = Metric::new(-7.5).expect("a metric");
    world.step(&leader, vec![Input::SetMetric(metric)]);
    world.run(SECOND);
    world.connect(&leader);
    world.run(10 * SECOND);
    let again = hints(&world).split_off(before + 2);
    let expected = serde_json::json!({
        "v": 1, "leader": leader.as_str(), "term": term, "metric": -7.5,
        "since": said[0]["since"], "token": token,
    });
    assert_eq!(again.first(), Some(&expected));
    assert_eq!(again.last(), Some(&expected));
    assert!((2..=4).contains(&again.len()), "{again:?}");
}
