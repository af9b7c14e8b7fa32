//! A cluster as Home Assistant sees it, on a real broker.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mqtt::{Options, Publisher, Qos, SessionSetup};
use raft_over_mqtt::{Mqtt, RaftNode, remove_from_home_assistant};
use testkit::{Mosquitto, TempDir, require_mosquitto, wait_for_async};

const SOON: Duration = Duration::from_secs(30);

const NAMES: [&str; 3] = ["gw-1", "gw-2", "gw-3"];

async fn start(url: &str, name: &str, dir: &TempDir) -> RaftNode {
    let node = RaftNode::initialize(Mqtt::new(url).expect("a URL"), name)
        .cluster("plant-a")
        .voters(NAMES)
        .data_dir(dir.path().join(name))
        .home_assistant("ha")
        .insecure()
        .start();
    node.await.expect("the node starts")
}

async fn until(what: &str, condition: impl FnMut() -> bool) {
    assert!(wait_for_async(SOON, condition).await, "{what} never came");
}

/// What a client that has subscribed knows: the last payload of each topic, and how many there were.
struct Watcher {
    publisher: Publisher,
    seen: Arc<Mutex<BTreeMap<String, (String, u32)>>>,
}

impl Watcher {
    fn start(url: &str, id: &'static str) -> Watcher {
        let options = Options::new(url.parse().expect("a URL"));
        let setup = move |epoch: mqtt::SessionEpoch| SessionSetup {
            client_id: format!("{id}-{}", epoch.0),
            will: None,
            subscriptions: ["ha/#", "raft/plant-a/health", "raft/plant-a/leader"]
                .map(|filter| (filter.to_owned(), Qos::AtLeastOnce))
                .to_vec(),
        };
        let (publisher, mut events) = mqtt::connect(options, setup).expect("usable options");
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let all = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                if let mqtt::Event::Message(message) = event {
                    let text = String::from_utf8_lossy(&message.payload).into_owned();
                    let mut all = all.lock().unwrap();
                    let entry = all.entry(message.topic).or_insert((String::new(), 0));
                    *entry = (text, entry.1 + 1);
                }
            }
        });
        Watcher { publisher, seen }
    }

    /// The last payload of the topic that ends like this, and how many there were.
    fn last(&self, ending: &str) -> (String, u32) {
        let seen = self.seen.lock().unwrap();
        let found = seen.iter().find(|(topic, _)| topic.ends_with(ending));
        found.map(|(_, seen)| seen.clone()).unwrap_or_default()
    }

    fn say(&self, topic: &str, payload: &'static str) {
        let said = self
            .publisher
            .publish(topic, payload.into(), Qos::AtLeastOnce, false);
        said.expect("a session");
    }
}

/// One device for the cluster, whose health follows its nodes. It is announced again when Home
/// Assistant starts; removed, it is gone from the broker and does not come back, whoever leads.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_one_device() {
    require_mosquitto!();
    let (broker, dir) = (Mosquitto::start(), testkit::temp_dir());
    let url = broker.url();
    let home = Watcher::start(&url, "home");
    let mut nodes = Vec::new();
    for name in NAMES {
        nodes.push(start(&url, name, &dir).await);
    }
    until("the device", || {
        home.last("/config").0.contains("\"Leader\"")
    })
    .await;
    until("good health", || {
        let health = home.last("/health").0;
        health.contains("\"voters_online\":3") && health.contains("\"problem\":false")
    })
    .await;
    let topics: Vec<String> = home.seen.lock().unwrap().keys().cloned().collect();
    let device: Vec<&String> = topics
        .iter()
        .filter(|topic| topic.starts_with("ha/"))
        .collect();
    assert_eq!(device.len(), 1, "one device: {topics:?}");
    until("the leader's token", || {
        let hint = home.last("/leader").0;
        hint.contains("\"since\":1") && !hint.contains("\"token\":null")
    })
    .await;

    let (_, announced) = home.last("/config");
    home.say("ha/status", "online");
    until("the device once more", || {
        home.last("/config").1 > announced
    })
    .await;

    let (device, health) = (device[0].clone(), "raft/plant-a/health");
    let follower = nodes.iter().position(|node| !node.is_leader());
    let stopped = nodes.remove(follower.expect("a follower"));
    stopped.shutdown().await.expect("a clean end");
    until("bad health", || {
        let health = home.last("/health").0;
        health.contains("\"voters_online\":2") && health.contains("\"problem\":true")
    })
    .await;

    let mqtt = Mqtt::new(&url).expect("a URL");
    let removed = remove_from_home_assistant(mqtt, "raft", "plant-a", "ha", SOON);
    removed.await.expect("the broker takes it");
    let gone = |watcher: &Watcher| watcher.last("/config").0.is_empty();
    until("the removal", || {
        gone(&home) && home.last("/health").0.is_empty()
    })
    .await;
    let removed = (home.last("/config").1, home.last("/health").1);
    let leads = |node: &RaftNode| node.is_leader();
    let leader = nodes.iter().find(|node| leads(node)).expect("a leader");
    leader.transfer(None).await.expect("another leads");
    until("the next leader", || nodes.iter().any(leads)).await;
    home.say("ha/status", "online");
    // A later message of the leader is seen, and none before it.
    let hints = home.last("/leader").1;
    let leader = nodes.iter().find(|node| leads(node)).expect("a leader");
    leader.set_metric(-1.0).await.expect("it runs");
    until("the leader's metric", || home.last("/leader").1 > hints).await;
    assert!(gone(&home), "{:?}", home.last("/config"));
    let since = (home.last("/config").1, home.last("/health").1);
    assert!(
        since.0 == removed.0 && since.1 <= removed.1 + 1,
        "{removed:?} {since:?}"
    );
    let late = Watcher::start(&url, "late");
    until("what is retained", || late.last("/leader").1 > 0).await;
    assert_eq!(
        (late.last(&device).1, late.last(health).1),
        (0, 0),
        "nothing is left"
    );
}
