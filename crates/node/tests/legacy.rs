//! A legacy fleet beside a cluster of ours, on a real broker.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use mqtt::{Options, Qos, SessionSetup};
use raft_over_mqtt::{LEGACY_ROLE, LegacyStatus, Mqtt, PresenceChange, PresenceEvent, RaftNode};
use testkit::{LegacyProcess, Mosquitto, TempDir, require_mosquitto, wait_for_async};

/// Two of a legacy node's election timeouts, on a busy machine.
const SOON: Duration = Duration::from_secs(40);

const FLEET: &str = "Plant 7";

async fn start(url: &str, names: [&str; 3], dir: &TempDir) -> Vec<RaftNode> {
    let mut nodes = Vec::new();
    for name in names {
        let node = RaftNode::initialize(Mqtt::new(url).expect("a URL"), name)
            .cluster("plant-a")
            .voters(names)
            .data_dir(dir.path().join(name))
            .legacy(FLEET)
            .insecure()
            .start();
        nodes.push(node.await.expect("the node starts"));
    }
    nodes
}

async fn until(what: &str, condition: impl FnMut() -> bool) {
    assert!(wait_for_async(SOON, condition).await, "{what} never came");
}

/// A client of the broker that hears all heartbeats from now on.
struct Listener {
    publisher: mqtt::Publisher,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Listener {
    fn start(url: &str) -> Listener {
        let options = Options::new(url.parse().expect("a URL"));
        let setup = |epoch: mqtt::SessionEpoch| SessionSetup {
            client_id: format!("listener-{}", epoch.0),
            will: None,
            subscriptions: vec![(format!("{FLEET}/raft/heartbeat"), Qos::AtLeastOnce)],
        };
        let (publisher, mut events) = mqtt::connect(options, setup).expect("usable options");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                if let mqtt::Event::Message(message) = event {
                    assert!(!message.retained, "nothing of this is kept");
                    let text = String::from_utf8_lossy(&message.payload).into_owned();
                    all.lock().unwrap().push(text);
                }
            }
        });
        Listener { publisher, heard }
    }

    fn say(&self, heartbeat: &'static str) {
        let topic = format!("{FLEET}/raft/heartbeat");
        let said = self
            .publisher
            .publish(topic, heartbeat.into(), Qos::AtLeastOnce, false);
        said.expect("a session");
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

fn legacy(node: &RaftNode) -> LegacyStatus {
    node.status().legacy.expect("started with a legacy prefix")
}

/// Three legacy nodes have a leader. Our cluster starts: their leader follows, and they count as
/// observers. A heartbeat of another leader is answered in the next term, and reported. Our leader is shut down, and its successor too, so that nobody leads: the fleet
/// still follows. A legacy node that dies is gone 9 s later.
#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_fleet_follows_a_cluster() {
    require_mosquitto!();
    let (broker, dir) = (Mosquitto::start(), testkit::temp_dir());
    let url = broker.url();
    let metrics = [("node-1", 10.0), ("node-2", 20.0), ("gw-1", -5.0)];
    let process = |(id, metric): &(&str, f64)| LegacyProcess::start(&url, FLEET, id, *metric);
    let mut fleet: Vec<LegacyProcess> = metrics.iter().map(process).collect();
    until("their own leader", || {
        fleet.iter().any(LegacyProcess::is_leader)
    })
    .await;

    let mut nodes = start(&url, ["gw-1", "gw-2", "gw-3"], &dir).await;
    until("our leader", || nodes.iter().any(RaftNode::is_leader)).await;
    until("the end of theirs", || {
        !fleet.iter().any(LegacyProcess::is_leader)
    })
    .await;
    until("their presence", || {
        let all = |node: &RaftNode| node.presence_manager().active_nodes_count() == 6;
        nodes.iter().all(all)
    })
    .await;
    let listed = nodes[1].presence_manager().active_nodes();
    let listed = listed.iter().filter(|node| node.role == LEGACY_ROLE);
    let names: Vec<&str> = listed.map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["gw-1", "node-1", "node-2"]);

    // One more leads elsewhere, and comes into earshot.
    let listener = Listener::start(&url);
    until("a heartbeat", || !listener.heard().is_empty()).await;
    let before = SystemTime::now() - Duration::from_secs(1);
    listener.say("41:node-9:7");
    until("the report", || {
        nodes.iter().all(|n| legacy(n).leader.is_some())
    })
    .await;
    let led = legacy(&nodes[0]).leader.expect("one led");
    assert!(led.node == "node-9" && led.heard_at >= before, "{led:?}");
    assert!(!legacy(&nodes[0]).follows);
    until("the answer", || {
        let answer = |text: &String| text.starts_with("42:") && text.contains(":-Infinity:");
        listener.heard().iter().any(answer)
    })
    .await;
    until("calm", || nodes.iter().all(|node| legacy(node).follows)).await;

    let led_until_now: Vec<u64> = fleet.iter().map(LegacyProcess::times_led).collect();
    let leads = |node: &RaftNode| node.role() == Some(raft_over_mqtt::Role::Leader);
    for _ in 0..2 {
        let at = nodes.iter().position(leads).unwrap_or_default();
        nodes.remove(at).shutdown().await.expect("a clean end");
    }
    // The one that is left cannot win an election: longer than any of theirs waits for a heartbeat.
    let so_far = listener.heard().len();
    let said = || listener.heard().split_off(so_far);
    until("heartbeats without a leader", || said().len() >= 7).await;
    assert!(!nodes[0].is_leader());
    let said = said();
    let ours = |text: &String| text.contains(":-Infinity:raft/plant-a/gw-");
    assert!(said.iter().all(ours), "{said:?}");
    let led_now: Vec<u64> = fleet.iter().map(LegacyProcess::times_led).collect();
    assert_eq!(led_now, led_until_now, "one of them led meanwhile");

    let mut changes = nodes[0].presence_manager().changes();
    fleet.remove(0);
    until("its departure", || legacy(&nodes[0]).nodes == 2).await;
    let mut departed = Vec::new();
    while let Ok(Some(change)) =
        tokio::time::timeout(Duration::from_millis(100), changes.next()).await
    {
        if let PresenceChange::Event(PresenceEvent::Departed(node)) = change {
            departed.push((node.name.to_string(), node.role));
        }
    }
    let node_1 = ("node-1".to_owned(), LEGACY_ROLE.to_owned());
    assert!(departed.contains(&node_1), "{departed:?}");
}
