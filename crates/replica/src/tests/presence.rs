//! Who is there, when wills come late, speak of an older session, or never come.

use std::time::Duration;

use super::world::{World, name};
use crate::Input;

const SECOND: Duration = Duration::from_secs(1);

fn sees(world: &World, who: &str, of: &str) -> bool {
    let active = world.node(who).replica.active_nodes();
    active.iter().any(|node| node.name == name(of))
}

/// The will of a session that has a successor ends nobody, however late it comes.
#[test]
fn the_will_of_an_older_session_ends_nobody() {
    let mut world = World::formed(&["a", "b", "c"]);
    let old = world.node("c").replica.session_plan().will(1);
    world.connect(&name("c"));
    world.run(SECOND);
    world.inject("b", &old.topic, &old.payload);
    assert!(sees(&world, "b", "c"));
}

/// A node that reads on the broker that it has ended says once more that it is there: whoever
/// subscribes later would not see it.
#[test]
fn a_node_puts_its_own_will_right() {
    let mut world = World::formed(&["a", "b", "c"]);
    let will = world.node("c").replica.session_plan().will(1);
    world.publish(will.clone());
    world.run(SECOND);
    let last = world.statuses.iter().rfind(|s| s.topic == will.topic);
    let last = last.expect("its statuses");
    assert_ne!(last.payload, will.payload, "its birth stands there again");
    assert!(sees(&world, "b", "c"));
}

/// A node that was cut off has not heard who went meanwhile: it asks everyone.
#[test]
fn who_went_during_an_outage_is_missed_after_it() {
    let mut world = World::formed(&["a", "b", "c"]);
    assert!(sees(&world, "b", "c"));
    world.step(&name("b"), vec![Input::Disconnected]);
    world.vanish("c");
    world.forget_retained();
    world.run(SECOND);
    world.connect(&name("b"));
    world.run(8 * SECOND);
    assert!(!sees(&world, "b", "c"), "it gave no answer");
    assert!(sees(&world, "b", "a"), "and this one did");
}

/// The same where the broker kept its birth: that it proved to live once is no proof for now.
#[test]
fn a_kept_birth_does_not_stand_for_who_went_during_an_outage() {
    let mut world = World::formed(&["a", "b", "c"]);
    world.step(&name("b"), vec![Input::Disconnected]);
    world.vanish("c");
    world.run(SECOND);
    world.connect(&name("b"));
    world.run(8 * SECOND);
    assert!(!sees(&world, "b", "c"), "it gave no answer");
    assert!(sees(&world, "b", "a"), "and this one did");
}
