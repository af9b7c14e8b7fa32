//! An enemy between the nodes, or beside them, without the cluster key: what it can do is lose,
//! delay, reorder and repeat. Everything else is refused, counted and without effect.

use std::collections::BTreeMap;
use std::time::Duration;

use raft::{Durable, NodeKey, Settings};

use super::world::{Member, Outcome, World, cluster_key, name};
use crate::frame::{FrameError, MAX_FRAME, VERSION};
use crate::keys::{Incarnation, KeyRing};
use crate::link::{Link, Session};
use crate::name::Metric;
use crate::peers::{MAX_KEPT_TOTAL, MAX_PEERS};
use crate::presence::{Condition, MAX_NODES, PresenceEvent, Speaker, Status};
use crate::replica::{Config, Event};
use crate::tags::Tags;
use crate::wire::{Body, Formation, Holds, NodeStatus, to_vec};
use crate::{Publish, Refused};

const SECOND: Duration = Duration::from_secs(1);

/// What of a node an enemy must not be able to change.
fn essence(world: &World, who: &str) -> NodeStatus {
    world.node(who).replica.status()
}

/// Injects a message that is to be refused, once, and to change and to publish nothing.
fn refused(world: &mut World, who: &str, topic: &str, payload: &[u8]) -> Refused {
    let before = essence(world, who);
    let outcome = world.inject(who, topic, payload);
    assert_eq!(outcome.events.len(), 1, "{topic}: {:?}", outcome.events);
    assert_eq!(outcome.published, [], "{topic}: nothing is answered");
    assert_eq!(essence(world, who), before, "{topic}: nothing changes");
    outcome.refused().expect("a refusal")
}

/// Frames of several kinds that `a` and `c` sent to `b`, never delivered before.
fn fresh_frames(world: &mut World) -> Vec<Publish> {
    let formation = world.formation();
    let mut frames = Vec::new();
    world.admit_member("z");
    let member = world.member.as_mut().unwrap();
    member.endpoint.join(&formation);
    member.endpoint.send(&name("b"), &Body::StatusRequest);
    member.endpoint.broadcast(&Body::StatusRequest);
    member
        .endpoint
        .send_in_lobby(&name("b"), &Body::StatusRequest);
    member.endpoint.broadcast_in_lobby(&Body::StatusRequest);
    frames.extend(member.endpoint.take_out());
    frames
}

#[test]
fn garbage_is_refused() {
    let mut world = World::formed(&["a", "b", "c"]);
    let unicast = "raft/plant/rpc/b/a";
    let broadcast = "raft/plant/rpc/all/a";
    for topic in [unicast, broadcast] {
        let cases: &[(&[u8], FrameError)] = &[
            (b"", FrameError::Truncated),
            (b"\x01", FrameError::Truncated),
            (b"{\"v\":1}", FrameError::Version(b'{', VERSION)),
            (b"7:a:0", FrameError::Version(b'7', VERSION)),
            (&[3; 100], FrameError::Version(3, VERSION)),
            (&[1; 100], FrameError::ForeignCluster),
            (&[0; 100], FrameError::Version(0, VERSION)),
            (&[1; MAX_FRAME + 1], FrameError::Oversize),
            (&[b'x'; 1 << 20], FrameError::Oversize),
        ];
        for (payload, expected) in cases {
            let reason = refused(&mut world, "b", topic, payload);
            assert_eq!(reason, Refused::Frame(*expected));
        }
    }
    world.assert_alive("b");
}

/// A frame is taken as it was sent or not at all.
#[test]
fn cut_and_bent_frames_are_refused() {
    let mut world = World::formed(&["a", "b", "c"]);
    for frame in fresh_frames(&mut world) {
        let Publish { topic, payload, .. } = &frame;
        for length in 0..payload.len() {
            refused(&mut world, "b", topic, &payload[..length]);
        }
        let mut longer = payload.to_vec();
        longer.push(0);
        refused(&mut world, "b", topic, &longer);
        for bit in 0..payload.len() * 8 {
            let mut bent = payload.to_vec();
            bent[bit / 8] ^= 1 << (bit % 8);
            refused(&mut world, "b", topic, &bent);
        }
        // The frame itself is still good: none of its forgeries used it up.
        let outcome = world.inject("b", topic, payload);
        assert_eq!(outcome.refused(), None);
        assert_eq!(outcome.published.len(), 1, "a status request is answered");
        assert_eq!(refused(&mut world, "b", topic, payload), Refused::Replayed);
    }
    world.assert_alive("b");
}

#[test]
fn redirected_frames_are_refused() {
    let mut world = World::formed(&["a", "b", "c"]);
    let frames = fresh_frames(&mut world);
    let bad_tag = Refused::Frame(FrameError::BadTag);
    for frame in &frames {
        let broadcast = frame.topic.contains("/all/");
        let elsewhere = match broadcast {
            true => "raft/plant/rpc/b/z",
            false => "raft/plant/rpc/all/z",
        };
        assert_eq!(refused(&mut world, "b", elsewhere, &frame.payload), bad_tag);
        let as_another = frame.topic.replace("/z", "/a");
        assert_eq!(
            refused(&mut world, "b", &as_another, &frame.payload),
            bad_tag
        );
        let as_itself = frame.topic.replace("/z", "/b");
        assert_eq!(
            refused(&mut world, "b", &as_itself, &frame.payload),
            bad_tag
        );
        if !broadcast {
            let to_c = frame.topic.replace("/rpc/b/", "/rpc/c/");
            assert_eq!(refused(&mut world, "c", &to_c, &frame.payload), bad_tag);
            assert_eq!(
                refused(&mut world, "b", &to_c, &frame.payload),
                Refused::Topic
            );
        }
    }
    // What a node has said itself is not taken from another's topic either.
    let own = world.frame("b", "a");
    assert_eq!(
        refused(&mut world, "b", "raft/plant/rpc/b/a", &own.payload),
        bad_tag
    );
    world.assert_alive("b");
}

#[test]
fn frames_of_other_clusters_are_refused() {
    let mut world = World::formed(&["a", "b", "c"]);
    let key = || KeyRing::of(cluster_key(7));
    let foreign = Refused::Frame(FrameError::ForeignCluster);
    let unknown = Refused::Frame(FrameError::UnknownKey);
    let bad_tag = Refused::Frame(FrameError::BadTag);
    // The same id byte by chance would be found out by the tag; this one differs.
    let others = [
        (
            "other name",
            World::of("raft", "plant2", &["a", "b", "c"], key()),
            foreign,
        ),
        (
            "other prefix",
            World::of("site", "plant", &["a", "b", "c"], key()),
            foreign,
        ),
        (
            "other key",
            World::of(
                "raft",
                "plant",
                &["a", "b", "c"],
                KeyRing::of(cluster_key(8)),
            ),
            unknown,
        ),
        (
            "no key",
            World::of("raft", "plant", &["a", "b", "c"], KeyRing::insecure()),
            unknown,
        ),
    ];
    for (what, other, expected) in &others {
        for (from, to) in [("a", "b"), ("c", "b"), ("a", "all"), ("c", "all")] {
            let Some(frame) = other
                .captured
                .iter()
                .rev()
                .find(|frame| frame.topic.ends_with(&format!("/rpc/{to}/{from}")))
            else {
                continue;
            };
            let topic = format!("raft/plant/rpc/{to}/{from}");
            let reason = refused(&mut world, "b", &topic, &frame.payload);
            assert!(
                // The same process under another key: what it said before is not opened again.
                [*expected, foreign, bad_tag, Refused::Replayed].contains(&reason),
                "{what}: {reason}"
            );
        }
        for status in &other.statuses {
            let node = status.topic.split('/').rev().nth(1).unwrap();
            if let "a" | "c" = node {
                let topic = format!("raft/plant/nodes/{node}/status");
                let reason = refused(&mut world, "b", &topic, &status.payload);
                assert_eq!(reason, Refused::Tag, "{what}: a status does not cross over");
            }
        }
    }
    // And a sealed frame means nothing to a node without a key.
    let mut insecure = others.into_iter().last().unwrap().1;
    let sealed = world.frame("a", "all");
    let reason = refused(&mut insecure, "b", "raft/plant/rpc/all/a", &sealed.payload);
    assert!(matches!(
        reason,
        Refused::Frame(FrameError::UnknownKey | FrameError::ForeignCluster) | Refused::Replayed
    ));
    insecure.assert_alive("b");
    world.assert_alive("b");
}

// Replay.

/// Plays everything to a node that was ever sent to it; nothing is delivered.
fn replay_all(world: &mut World, who: &str) -> BTreeMap<Option<Refused>, usize> {
    let unicast = format!("/rpc/{who}/");
    let captured: Vec<Publish> = world.captured.clone();
    let mut outcomes = BTreeMap::new();
    for frame in captured {
        let own = frame.topic.ends_with(&format!("/{who}"));
        if !own && (frame.topic.contains(&unicast) || frame.topic.contains("/rpc/all/")) {
            let before = essence(world, who);
            let Outcome { events, published } = world.inject(who, &frame.topic, &frame.payload);
            assert_eq!(essence(world, who), before);
            let spoke = |publish: &Publish| !publish.retain && publish.payload.len() > 95;
            assert!(!published.iter().any(spoke), "at most a handshake");
            let refusal = Outcome { events, published }.refused();
            *outcomes.entry(refusal).or_default() += 1;
        }
    }
    outcomes
}

#[test]
fn replayed_frames_are_refused() {
    let mut world = World::formed(&["a", "b", "c"]);
    world.run(SECOND);
    let outcomes = replay_all(&mut world, "b");
    assert!(outcomes[&Some(Refused::Replayed)] > 10, "{outcomes:?}");
    assert!(!outcomes.contains_key(&None), "{outcomes:?}");
    world.assert_alive("b");
}

/// A node that restarts takes nothing from before: neither until the others have proved that they
/// live, nor after.
#[test]
fn a_restarted_receiver_takes_nothing_old() {
    let mut world = World::formed(&["a", "b", "c"]);
    world.assert_alive("a");
    world.restart("b");
    world.run(Duration::from_millis(200));
    let leader = essence(&world, "b").leader;
    replay_all(&mut world, "b");
    assert_eq!(essence(&world, "b").leader, leader);
    world.run(2 * SECOND);
    let outcomes = replay_all(&mut world, "b");
    assert!(outcomes[&Some(Refused::Replayed)] > 50);
    assert!(!outcomes.contains_key(&None), "{outcomes:?}");
    world.assert_alive("b");
}

/// Once a process has been replaced, its frames are void.
#[test]
fn frames_of_a_replaced_process_are_refused() {
    let mut world = World::formed(&["a", "b", "c"]);
    let kept = world.captured.len();
    world.restart("a");
    world.run(4 * SECOND);
    world.assert_alive("b");
    let old: Vec<Publish> = world.captured[..kept].to_vec();
    for frame in old {
        if frame.topic.ends_with("/rpc/b/a") || frame.topic.ends_with("/rpc/all/a") {
            assert_eq!(
                refused(&mut world, "b", &frame.topic, &frame.payload),
                Refused::Replayed
            );
        }
    }
    world.assert_alive("a");
}

/// A third party that plays back a dead process's frames without pause does not keep the new one
/// out: challenges are not bound to whoever spoke last.
#[test]
fn a_flood_of_replays_keeps_nobody_out() {
    let mut world = World::formed(&["a", "b", "c"]);
    // Frames of a process of `a` that `b` never admitted.
    let config = world.node("a").config.clone();
    let mut old = Member::new(&config, "a", config.key, 77);
    old.endpoint.broadcast_in_lobby(&Body::StatusRequest);
    let old = old.endpoint.take_out().swap_remove(0);
    world.kill("a");
    world.run(2 * SECOND);
    world.restart("a");
    let restarted = world.node("a").replica.incarnation();
    for _ in 0..1_000 {
        world.inject("b", &old.topic, &old.payload);
        world.run(Duration::from_millis(1));
    }
    let peers = world.node("b").replica.peers();
    assert_eq!(peers.incarnation(config.key), Some(restarted));
    world.assert_alive("a");
}

/// The copies of our own probe that a broker brings back do not lengthen the start.
#[test]
fn a_replayed_probe_does_not_stall_the_start() {
    let mut world = World::empty();
    let config = Config::new(name("a"), NodeKey(1), name("plant"), vec![name("a")]);
    world.start(config, None, Durable::default());
    let probe = world.frame("a", "a");
    for _ in 0..20 {
        world.run(Duration::from_millis(90));
        world.inject("a", &probe.topic, &probe.payload);
    }
    assert_eq!(world.leader(), Some(name("a")));
}

// Statuses and topics.

#[test]
fn malformed_statuses_are_refused() {
    let mut world = World::formed(&["a", "b", "c"]);
    let topic = "raft/plant/nodes/a/status";
    let birth = world
        .statuses
        .iter()
        .rev()
        .find(|status| status.topic == topic)
        .unwrap();
    let text = String::from_utf8(birth.payload.to_vec()).unwrap();
    let field = |name: &str| {
        let start = text.find(&format!("\"{name}\":")).unwrap() + name.len() + 3;
        let end = text[start..].find([',', '}']).unwrap() + start;
        text[start..end].to_owned()
    };
    let with = |name: &str, value: &str| {
        let old = format!("\"{name}\":{}", field(name));
        text.replace(&old, &format!("\"{name}\":{value}"))
    };
    let without = |name: &str| {
        let old = format!("\"{name}\":{}", field(name));
        let rest = text.replace(&format!("{old},"), "");
        rest.replace(&format!(",{old}"), "")
    };
    let mut cases: Vec<(String, Refused)> = vec![
        ("not json".into(), Refused::Status),
        ("[]".into(), Refused::Status),
        ("{}".into(), Refused::Status),
        ("null".into(), Refused::Status),
        ("\"x\"".into(), Refused::Status),
        ("[".repeat(2_000), Refused::Status),
        ("x".repeat(1 << 20), Refused::Status),
        (text.clone() + "x", Refused::Status),
        (with("v", "2"), Refused::Status),
        (with("v", "-1"), Refused::Status),
        (with("state", "\"asleep\""), Refused::Status),
        (with("state", "\"offline\""), Refused::Tag),
        (with("node", "\"b\""), Refused::Status),
        (with("node", "7"), Refused::Status),
        (with("key", "\"00\""), Refused::Tag),
        (with("incarnation", "\"\""), Refused::Tag),
        (with("epoch", "-1"), Refused::Status),
        (with("epoch", "2"), Refused::Tag),
        (with("session", "\"0\""), Refused::Tag),
        (with("role", "\"leader\\nx\""), Refused::Tag),
        (with("term", "1e3"), Refused::Status),
        (with("term", "18446744073709551615"), Refused::Tag),
        (with("metric", "NaN"), Refused::Status),
        (with("metric", "1e999"), Refused::Status),
        (with("metric", "-1e308"), Refused::Tag),
        (with("metric", "\"0\""), Refused::Status),
        (with("tag", "\"\""), Refused::Tag),
        (
            with("tag", "\"00000000000000000000000000000000\""),
            Refused::Tag,
        ),
        (with("tag", "7"), Refused::Status),
    ];
    for field in [
        "v",
        "state",
        "node",
        "key",
        "incarnation",
        "epoch",
        "session",
        "tag",
    ] {
        cases.push((without(field), Refused::Status));
    }
    for field in ["role", "term"] {
        cases.push((without(field), Refused::Tag));
    }
    for (payload, expected) in cases {
        let shown: String = payload.chars().take(300).collect();
        let reason = refused(&mut world, "b", topic, payload.as_bytes());
        assert_eq!(reason, expected, "{shown}");
    }
    // Every bit of a good one, too. A few only change what stands between the fields.
    let active = world.node("b").replica.active_nodes();
    for bit in 0..text.len() * 8 {
        let mut bent = text.clone().into_bytes();
        bent[bit / 8] ^= 1 << (bit % 8);
        world.inject("b", topic, &bent);
        assert_eq!(world.node("b").replica.active_nodes(), active, "bit {bit}");
    }
    // What one node said does not stand on another's topic.
    let elsewhere = "raft/plant/nodes/c/status";
    assert_eq!(
        refused(&mut world, "b", elsewhere, text.as_bytes()),
        Refused::Status
    );
    world.assert_alive("b");
}

/// No two statuses that a correct node makes are tagged alike, and fields cannot be shifted into
/// their neighbours: a line break in a field is more lines than any correct node tags.
#[test]
fn fields_of_a_status_cannot_be_shifted() {
    let ring = KeyRing::of(cluster_key(7));
    let (who, root) = (name("a"), "raft/plant");
    let speaker = Speaker {
        root,
        name: &who,
        key: NodeKey(1),
        incarnation: Incarnation([1; 16]),
        session: Session::first(1),
    };
    let condition = Condition {
        role: "leader",
        term: 7,
        metric: Metric::default(),
        tags: Tags::default(),
    };
    let birth = Status::online(&ring, speaker, 1, &condition);
    let text = String::from_utf8(birth.to_vec()).unwrap();
    let session = text.split("\"session\":\"").nth(1).unwrap()[..16].to_owned();
    let shifts = [
        text.replace(
            &format!("\"{session}\",\"count\":1,"),
            &format!("\"{session}\\n1\",\"count\":0,"),
        ),
        text.replace(
            "\"role\":\"leader\",\"term\":7",
            "\"role\":\"leader\\n7\",\"term\":0",
        ),
        text.replace("\"epoch\":1,", "\"epoch\":11,"),
    ];
    for shifted in shifts {
        assert_ne!(shifted, text);
        assert!(matches!(
            Status::parse(&ring, root, &who, shifted.as_bytes()),
            Err(Refused::Tag)
        ));
    }
    let elsewhere = Status::parse(&ring, "raft/plan", &who, &birth);
    assert!(
        matches!(elsewhere, Err(Refused::Tag)),
        "bound to its cluster"
    );
}

#[test]
fn odd_topics_are_refused() {
    let mut world = World::formed(&["a", "b", "c"]);
    let long = "x".repeat(300);
    let frame = world.frame("a", "all");
    for odd in [
        "", ":", "a:b", "+", "#", "$SYS", "a b", "a\0", "ä", "-a", &long,
    ] {
        for topic in [
            format!("raft/plant/rpc/all/{odd}"),
            format!("raft/plant/rpc/b/{odd}"),
            format!("raft/plant/rpc/{odd}/a"),
            format!("raft/plant/nodes/{odd}/status"),
            format!("raft/{odd}/rpc/all/a"),
            format!("{odd}/plant/rpc/all/a"),
            format!("raft/plant/rpc/all/a/{odd}"),
            odd.to_owned(),
        ] {
            let reason = refused(&mut world, "b", &topic, &frame.payload);
            assert_eq!(reason, Refused::Topic, "{topic}");
        }
    }
    world.assert_alive("b");
}

// Presence.

fn presence(world: &World, who: &str, of: &str) -> bool {
    let active = world.node(who).replica.active_nodes();
    active.iter().any(|node| node.name == name(of))
}

/// The birth of a dead node, played back, is a claim that soon fails for want of proof.
#[test]
fn a_replayed_birth_raises_no_ghost() {
    let mut world = World::formed(&["a", "b", "c"]);
    let topic = "raft/plant/nodes/c/status";
    let birth = world
        .statuses
        .iter()
        .rev()
        .find(|status| status.topic == topic)
        .unwrap()
        .clone();
    world.kill("c");
    world.run(SECOND);
    assert!(!presence(&world, "b", "c"), "its will has come");
    world.restart("b");
    world.run(SECOND);
    world.inject("b", topic, &birth.payload);
    world.run(6 * SECOND);
    assert!(!presence(&world, "b", "c"), "nobody answered for it");
}

/// A birth of an older process, played back, does not displace the one that is there: that
/// one's will still ends it.
#[test]
fn a_replayed_birth_displaces_nobody() {
    let mut world = World::formed(&["a", "b", "c"]);
    let topic = "raft/plant/nodes/c/status";
    let old = world
        .statuses
        .iter()
        .rev()
        .find(|status| status.topic == topic)
        .unwrap()
        .clone();
    world.restart("c");
    world.run(3 * SECOND);
    assert!(presence(&world, "b", "c"));
    world.inject("b", topic, &old.payload);
    world.run(6 * SECOND);
    assert!(presence(&world, "b", "c"), "it answered");
    world.inject("b", topic, &old.payload);
    world.kill("c");
    world.run(6 * SECOND);
    assert!(
        !presence(&world, "b", "c"),
        "its will was for its own session"
    );
}

/// A node that restarts while another is cut off is seen by it afterwards.
#[test]
fn a_restart_during_an_outage_is_noticed() {
    let mut world = World::formed(&["a", "b", "c"]);
    world.step(&name("b"), vec![crate::Input::Disconnected(Link::FIRST)]);
    world.restart("c");
    world.connect(&name("b"));
    world.run(8 * SECOND);
    assert!(presence(&world, "b", "c"));
    let gone = |event: &&Event| matches!(event, Event::Presence(PresenceEvent::Departed(node)) if node.name == name("c"));
    let last = world.node("b").events.iter().rfind(gone);
    assert!(last.is_none() || presence(&world, "b", "c"));
}

// Formation.

/// Three data directories copied from one would each be a majority.
#[test]
fn copied_data_directories_form_no_cluster() {
    let mut world = World::empty();
    let voters: Vec<_> = ["a", "b", "c"].map(name).to_vec();
    for voter in &voters {
        let config = Config::new(voter.clone(), NodeKey(1), name("plant"), voters.clone());
        world.start(config, None, Durable::default());
    }
    world.run(5 * SECOND);
    for voter in &voters {
        let node = &world.nodes[voter];
        assert_eq!(node.formation, None);
        let told =
            |event: &Event| matches!(event, Event::Trouble(crate::Trouble::SharedKey { .. }));
        assert!(node.events.iter().any(told), "{:?}", node.events);
    }
}

/// A promise to form a cluster of three is not kept by one alone, or two, of a shortened list.
#[test]
fn a_shortened_list_of_voters_forms_nothing() {
    let key = |n: u128| NodeKey(n << 100);
    let record = Formation {
        voters: (1..=3)
            .map(|n| (key(n), ["a", "b", "c"][n as usize - 1].to_owned()))
            .collect(),
        settings: Settings::default(),
        witnesses: std::collections::BTreeSet::new(),
        origin: None,
    };
    let accepted = to_vec(&Holds::Accepted(record));
    for list in [vec!["a"], vec!["a", "b"]] {
        let mut world = World::empty();
        let voters: Vec<_> = list.iter().map(|text| name(text)).collect();
        for (voter, n) in voters.iter().zip(1..) {
            let config = Config::new(voter.clone(), key(n), name("plant"), voters.clone());
            world.start(config, Some(accepted.clone().into()), Durable::default());
        }
        world.run(3 * SECOND);
        for voter in &voters {
            assert_eq!(world.nodes[voter].replica.role(), None, "{list:?}");
        }
    }
}

// Bounds.

/// However many processes speak, and however many claim to be there, memory is bounded.
#[test]
fn floods_stay_within_bounds() {
    let mut world = World::formed(&["a"]);
    let config = world.node("a").config.clone();
    let flood = |world: &mut World, n: usize| {
        let key = NodeKey((1 << 90) + n as u128);
        let who = format!("n{n}");
        let mut member = Member::new(&config, &who, key, 1);
        member.endpoint.broadcast_in_lobby(&Body::StatusRequest);
        let frame = member.endpoint.take_out().swap_remove(0);
        world.inject("a", &frame.topic, &frame.payload);
        world.captured.clear();
    };
    for n in 0..MAX_PEERS + 500 {
        flood(&mut world, n);
    }
    let (peers, kept_bytes) = world.node("a").replica.peers().sizes();
    assert_eq!(peers, MAX_PEERS);
    assert!(kept_bytes <= MAX_KEPT_TOTAL);
    let condition = Condition {
        role: "learner",
        term: 0,
        metric: Metric::default(),
        tags: Tags::default(),
    };
    for n in 0..MAX_NODES + 500 {
        let who = name(&format!("n{n}"));
        let speaker = Speaker {
            root: "raft/plant",
            name: &who,
            key: NodeKey(n as u128),
            incarnation: Incarnation([3; 16]),
            session: Session::first(1),
        };
        let birth = Status::online(&config.ring, speaker, 1, &condition);
        world.inject("a", &format!("raft/plant/nodes/{who}/status"), &birth);
    }
    assert!(world.node("a").replica.active_nodes().len() <= MAX_NODES + 1);
    world.nodes.get_mut(&name("a")).unwrap().events.clear();
}
