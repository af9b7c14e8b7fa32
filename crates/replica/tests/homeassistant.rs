//! The cluster in Home Assistant, in virtual time, and what it publishes against the schema there.

use std::collections::BTreeSet;

use bytes::Bytes;
use raft::Time;
use replica::{HomeAssistant, HomeView, Name, Publish, Topics, Withdrawal};
use serde_json::{Value, json};

const ID: &str = "raft-plant-a-9284c52d";
const DEVICE: &str = "homeassistant/device/raft-plant-a-9284c52d/config";
const HEALTH: &str = "raft/plant-a/health";

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn topics(cluster: &str) -> Topics {
    Topics::new("raft", &name(cluster)).expect("a prefix")
}

fn node(seed: u64) -> HomeAssistant {
    let topics = topics("plant-a");
    let mut node = HomeAssistant::new("homeassistant", &topics, "0.1.0", seed, Time(0)).unwrap();
    node.on_connected();
    node
}

fn at(millis: u64) -> Time {
    Time(millis * 1_000)
}

/// How a cluster of three is that is well and led by `gw-1`.
fn well() -> HomeView {
    HomeView {
        votes: true,
        leads: false,
        leader: Some(name("gw-1")),
        term: 7,
        online: 5,
        voters: ["gw-1", "gw-2", "gw-3"].map(str::to_owned).to_vec(),
        voters_online: 3,
        trouble: None,
    }
}

fn leading() -> HomeView {
    HomeView {
        leads: true,
        ..well()
    }
}

fn leaderless() -> HomeView {
    HomeView {
        leader: None,
        ..well()
    }
}

fn on<'a>(published: &'a [Publish], topic: &str) -> Vec<&'a Publish> {
    let of_topic = published.iter().filter(|p| p.topic == topic);
    of_topic.inspect(|p| assert!(p.retain)).collect()
}

fn parsed(publish: &Publish) -> Value {
    serde_json::from_slice(&publish.payload).expect("JSON")
}

/// Steps whenever it is due, and hears what it publishes, until `end`.
fn run(node: &mut HomeAssistant, view: &HomeView, from: Time, end: Time) -> Vec<(Time, Publish)> {
    let (mut now, mut all) = (from, Vec::new());
    loop {
        for publish in node.step(view.clone(), now) {
            node.on_message(&publish.topic, &publish.payload, false, now);
            all.push((now, publish));
        }
        match node.next_deadline() {
            Some(next) if next <= end => now = now.max(next),
            _ => return all,
        }
    }
}

/// The leader announces the device once, and again when it has a new session, when Home Assistant starts
/// and when the voters change. A follower does not. The health is said at each change, at most once a
/// second, and every 30 s.
#[test]
fn the_leader_announces_the_device() {
    let (mut leader, mut follower) = (node(1), node(2));
    assert!(run(&mut follower, &well(), at(0), at(600_000)).is_empty());

    let said = run(&mut leader, &leading(), at(0), at(599_999));
    let messages: Vec<Publish> = said.into_iter().map(|(_, message)| message).collect();
    assert_eq!(on(&messages, DEVICE).len(), 1);
    assert_eq!(on(&messages, HEALTH).len(), 20);

    let announces = |leader: &mut HomeAssistant, view: &HomeView, now: u64| {
        on(&leader.step(view.clone(), at(now)), DEVICE).len()
    };
    leader.on_connected();
    assert_eq!(announces(&mut leader, &leading(), 600_000), 1);
    assert!(leader.on_message("homeassistant/status", &"online".into(), false, at(610_000)));
    assert_eq!(announces(&mut leader, &leading(), 610_000), 1);
    leader.on_message(
        "homeassistant/status",
        &"offline".into(),
        false,
        at(620_000),
    );
    assert_eq!(announces(&mut leader, &leading(), 620_000), 0);
    let changed = HomeView {
        voters: ["gw-1", "gw-2", "gw-4"].map(str::to_owned).to_vec(),
        ..leading()
    };
    assert_eq!(announces(&mut leader, &changed, 630_000), 1);
    // Somebody says `online` all the time.
    let mut announced = 0;
    for tick in 0..1_000 {
        let now = 640_000 + 10 * tick;
        leader.on_message("homeassistant/status", &"online".into(), false, at(now));
        announced += announces(&mut leader, &changed, now);
    }
    assert_eq!(announced, 2, "in 10 s");
    assert!(!leader.on_message("raft/plant-a/leader", &"{}".into(), false, at(0)));
}

/// A health that flickers is said once a second; the last state is said in the end.
#[test]
fn a_health_that_flickers_is_said_once_a_second() {
    let mut leader = node(1);
    let mut said = Vec::new();
    for tick in 0..=100 {
        let view = HomeView {
            online: 3 + tick % 2,
            ..leading()
        };
        said.extend(leader.step(view, at(50 * tick as u64)));
    }
    let healths = on(&said, HEALTH);
    assert!((4..=6).contains(&healths.len()), "{}", healths.len());
    let last = HomeView {
        online: 4,
        ..leading()
    };
    let end = run(&mut leader, &last, at(5_001), at(7_000));
    let end = parsed(&end.last().expect("said").1);
    assert_eq!(end["online"], 4);
}

/// What the health says, and when it is a problem.
#[test]
fn health_is_a_problem_when_a_voter_is_missing() {
    let health = |view: HomeView| parsed(on(&node(1).step(view, at(0)), HEALTH)[0]);
    let expected = json!({
        "v": 1, "leader": "gw-1", "term": 7, "online": 5, "voters": 3, "voters_online": 3,
        "problem": false, "trouble": null,
    });
    assert_eq!(health(leading()), expected);
    let missing = HomeView {
        voters_online: 2,
        ..leading()
    };
    assert_eq!(health(missing)["problem"], true);
    let troubled = HomeView {
        trouble: Some("look here".to_owned()),
        ..leading()
    };
    let troubled = health(troubled);
    assert_eq!(
        (&troubled["problem"], &troubled["trouble"]),
        (&json!(true), &json!("look here"))
    );
}

/// Without a leader for 10 s one of the voters says so, and every 30 s after; the others hear it. An
/// election that takes less is not told, nor does an observer tell.
#[test]
fn a_voter_says_that_there_is_no_leader() {
    let mut voters: Vec<HomeAssistant> = (1..=3).map(node).collect();
    let mut observer = node(9);
    let view = HomeView {
        votes: false,
        ..leaderless()
    };
    assert!(run(&mut observer, &view, at(0), at(600_000)).is_empty());

    let mut said = Vec::new();
    for tick in 0..=12_000 {
        let now = at(10 * tick);
        // 9 s without one, and one again.
        let view = if !(900..1_000).contains(&tick) {
            leaderless()
        } else {
            well()
        };
        let messages: Vec<Publish> = voters
            .iter_mut()
            .flat_map(|voter| voter.step(view.clone(), now))
            .collect();
        for message in &messages {
            for voter in &mut voters {
                voter.on_message(&message.topic, &message.payload, false, now);
            }
        }
        said.extend(messages.into_iter().map(|message| (now, message)));
    }
    assert!(
        (3..=5).contains(&said.len()),
        "{} times in 110 s",
        said.len()
    );
    let (first, message) = &said[0];
    assert!(*first >= at(20_000) && *first <= at(22_000), "{first:?}");
    let health = parsed(message);
    assert_eq!(health["leader"], Value::Null);
    assert_eq!(health["problem"], true);
    assert_eq!(health["trouble"], "no leader");
}

/// What somebody else put in the health's place is replaced, at most every 5 s; what cannot be read, or
/// is long, does no harm.
#[test]
fn a_health_of_somebody_else_is_replaced() {
    let mut leader = node(1);
    let ours = on(&leader.step(leading(), at(0)), HEALTH)[0].clone();
    let mut replaced = 0;
    for tick in 0..=200_u64 {
        let now = at(100 * tick);
        let forged: Bytes = match tick % 3 {
            0 => r#"{"leader":null,"problem":false}"#.into(),
            1 => b"\xff\xfe".as_slice().into(),
            _ => vec![b'['; 4_096].into(),
        };
        leader.on_message(HEALTH, &forged, false, now);
        let said = leader.step(leading(), now);
        for message in on(&said, HEALTH) {
            assert_eq!(message.payload, ours.payload);
            replaced += 1;
            leader.on_message(HEALTH, &message.payload, false, now);
        }
    }
    assert!((3..=4).contains(&replaced), "{replaced} in 20 s");
}

/// An emptied device is withdrawn: by the command or in Home Assistant itself. Nobody who heard it
/// announces it again, whoever leads; one who starts anew does. What the broker kept is no removal.
#[test]
fn a_removed_device_is_not_announced_again() {
    let (mut leader, mut follower) = (node(1), node(2));
    run(&mut leader, &leading(), at(0), at(1_000));
    run(&mut follower, &well(), at(0), at(1_000));
    leader.on_message(DEVICE, &Bytes::new(), true, at(1_000));
    assert!(!leader.is_withdrawn());
    for home in [&mut leader, &mut follower] {
        home.on_message(DEVICE, &Bytes::new(), false, at(2_000));
        assert!(home.is_withdrawn());
    }
    let cleared = leader.step(leading(), at(2_000));
    assert_eq!(cleared.len(), 1);
    assert_eq!(
        (cleared[0].topic.as_str(), cleared[0].payload.len()),
        (HEALTH, 0)
    );
    assert!(follower.step(well(), at(2_000)).is_empty());
    leader.on_connected();
    for view in [leading(), well(), leaderless(), leading()] {
        assert!(run(&mut leader, &view, at(3_000), at(600_000)).is_empty());
        assert!(run(&mut follower, &view, at(3_000), at(600_000)).is_empty());
    }
    assert!(!run(&mut node(3), &leading(), at(0), at(10)).is_empty());

    let [device, health] = Withdrawal::of("homeassistant", &topics("plant-a")).unwrap();
    assert_eq!(
        (device.topic.as_str(), health.topic.as_str()),
        (DEVICE, HEALTH)
    );
    assert!(device.payload.is_empty() && health.payload.is_empty());
    assert!(device.retain && health.retain);
}

/// Clusters of different names have different devices, also where Home Assistant allows fewer letters.
#[test]
fn each_cluster_is_a_device_of_its_own() {
    let topic = |cluster: &str| {
        let [device, _] = Withdrawal::of("homeassistant", &topics(cluster)).unwrap();
        device.topic
    };
    let all = ["a.b", "a-b", "a_b"].map(topic);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 3, "{all:?}");
    for bad in ["", "a/+", "#", "$SYS", "a/b/c/d/e/f"] {
        assert!(Withdrawal::of(bad, &topics("a")).is_err(), "{bad}");
    }
}

// The schema.
//
// The part that concerns us of Home Assistant's own, github.com/home-assistant/core, folder
// homeassistant/components/mqtt: `schemas.py` (DEVICE_DISCOVERY_SCHEMA and what it is made of: a key it
// does not name is an error there), `sensor.py` and `binary_sensor.py` (DISCOVERY_SCHEMA),
// `discovery.py` (TOPIC_MATCHER). The documentation is at
// https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload. There too every entity has
// to have a `unique_id`.

#[derive(Clone, Copy)]
enum Kind {
    Text,
    /// A Jinja template.
    Template,
    /// A topic to subscribe to.
    Topic,
    Positive,
    OneOf(&'static [&'static str]),
    Texts,
    Icon,
}

type Keys = &'static [(&'static str, bool, Kind)];

const AVAILABILITY: Keys = &[
    ("topic", true, Kind::Topic),
    ("payload_available", false, Kind::Text),
    ("payload_not_available", false, Kind::Text),
    ("value_template", false, Kind::Template),
];

const DEVICE_INFO: Keys = &[
    ("identifiers", true, Kind::Texts),
    ("manufacturer", false, Kind::Text),
    ("model", false, Kind::Text),
    ("name", false, Kind::Text),
    ("sw_version", false, Kind::Text),
];

const ORIGIN: Keys = &[
    ("name", true, Kind::Text),
    ("sw_version", false, Kind::Text),
];

const SENSOR: Keys = &[
    ("platform", true, Kind::OneOf(&["sensor"])),
    ("unique_id", true, Kind::Text),
    ("state_topic", true, Kind::Topic),
    ("name", false, Kind::Text),
    ("value_template", false, Kind::Template),
    ("expire_after", false, Kind::Positive),
    ("icon", false, Kind::Icon),
    ("json_attributes_topic", false, Kind::Topic),
    (
        "state_class",
        false,
        Kind::OneOf(&[
            "measurement",
            "measurement_angle",
            "total",
            "total_increasing",
        ]),
    ),
];

const BINARY_SENSOR: Keys = &[
    ("platform", true, Kind::OneOf(&["binary_sensor"])),
    ("unique_id", true, Kind::Text),
    ("state_topic", true, Kind::Topic),
    ("name", false, Kind::Text),
    ("value_template", false, Kind::Template),
    ("expire_after", false, Kind::Positive),
    ("json_attributes_topic", false, Kind::Topic),
    (
        "device_class",
        false,
        Kind::OneOf(&["problem", "connectivity", "running"]),
    ),
];

/// Checks an object against the keys that it may and must have.
fn check(object: &Value, keys: Keys) -> Result<(), String> {
    let object = object.as_object().ok_or("no object")?;
    for (key, value) in object {
        let (_, _, kind) = keys
            .iter()
            .find(|(known, ..)| known == key)
            .ok_or(format!("extra keys not allowed: {key}"))?;
        fits(value, *kind)
            .then_some(())
            .ok_or(format!("{key}: {value}"))?;
    }
    let missing = keys
        .iter()
        .find(|(key, required, _)| *required && !object.contains_key(*key));
    missing.map_or(Ok(()), |(key, ..)| {
        Err(format!("required key not provided: {key}"))
    })
}

fn fits(value: &Value, kind: Kind) -> bool {
    let text = value.as_str();
    match kind {
        Kind::Text => text.is_some(),
        Kind::Template => text.is_some_and(|t| t.starts_with("{{ ") && t.ends_with(" }}")),
        Kind::Topic => text
            .is_some_and(|t| !t.is_empty() && t.len() <= 65_535 && !t.contains(['+', '#', '\0'])),
        Kind::Positive => value.as_u64().is_some_and(|number| number > 0),
        Kind::OneOf(words) => text.is_some_and(|t| words.contains(&t)),
        Kind::Texts => value
            .as_array()
            .is_some_and(|all| !all.is_empty() && all.iter().all(Value::is_string)),
        Kind::Icon => text.is_some_and(|t| t.starts_with("mdi:")),
    }
}

/// Checks a device discovery payload.
fn check_device(payload: &Value) -> Result<(), String> {
    let all = [
        "device",
        "origin",
        "components",
        "availability",
        "availability_mode",
    ];
    let object = payload.as_object().ok_or("no object")?;
    if let Some(extra) = object.keys().find(|key| !all.contains(&key.as_str())) {
        return Err(format!("extra keys not allowed: {extra}"));
    }
    check(&payload["device"], DEVICE_INFO)?;
    check(&payload["origin"], ORIGIN)?;
    let mode = &payload["availability_mode"];
    fits(mode, Kind::OneOf(&["all", "any", "latest"]))
        .then_some(())
        .ok_or("availability_mode")?;
    for topic in payload["availability"].as_array().ok_or("availability")? {
        check(topic, AVAILABILITY)?;
    }
    for (key, component) in payload["components"].as_object().ok_or("components")? {
        let keys = match component["platform"].as_str() {
            Some("sensor") => SENSOR,
            Some("binary_sensor") => BINARY_SENSOR,
            _ => return Err(format!("{key}: platform")),
        };
        check(component, keys).map_err(|why| format!("{key}: {why}"))?;
    }
    Ok(())
}

/// The announcement is what Home Assistant takes; one with a key too many or too few is not.
#[test]
fn the_announcement_is_to_the_schema() {
    let said = node(1).step(leading(), at(0));
    let device = on(&said, DEVICE)[0];
    let payload = parsed(device);
    assert_eq!(check_device(&payload), Ok(()));
    let (prefix, rest) = device.topic.split_once('/').expect("a level");
    let levels: Vec<&str> = rest.split('/').collect();
    assert_eq!(
        (prefix, levels[0], levels[2]),
        ("homeassistant", "device", "config")
    );
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    assert!(levels[1].chars().all(word) && levels.len() == 3);

    let components = payload["components"].as_object().expect("components");
    let ids: BTreeSet<&str> = components
        .values()
        .filter_map(|component| component["unique_id"].as_str())
        .collect();
    assert_eq!(ids.len(), 3);
    assert!(ids.iter().all(|id| id.starts_with(ID)));
    let kinds = |key: &str| components[key]["platform"].as_str();
    assert_eq!(kinds("leader"), Some("sensor"));
    assert_eq!(kinds("members"), Some("sensor"));
    assert_eq!(kinds("health"), Some("binary_sensor"));
    let topics: Vec<&Value> = payload["availability"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| &one["topic"])
        .collect();
    let voters = ["gw-1", "gw-2", "gw-3"].map(|v| json!(format!("raft/plant-a/nodes/{v}/status")));
    assert_eq!(topics, voters.iter().collect::<Vec<_>>());

    let mut without = payload.clone();
    without["components"]["leader"]
        .as_object_mut()
        .expect("an object")
        .remove("unique_id");
    assert!(check_device(&without).is_err());
    let mut beyond = payload.clone();
    beyond["device"]["firmware"] = json!("1");
    assert!(check_device(&beyond).is_err());
    let mut wrong = payload;
    wrong["components"]["health"]["expire_after"] = json!(-1);
    assert!(check_device(&wrong).is_err());
}
