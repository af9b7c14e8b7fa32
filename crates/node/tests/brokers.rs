//! Several brokers at once: the end of one costs neither an election nor a write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use raft_over_mqtt::{Client, KeyRing, Kv, Mqtt, RaftNode};
use testkit::{Mosquitto, TempDir, mosquitto_or_skip};
use tokio::task::JoinHandle;

/// Long enough for anything that works at all, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

const NAMES: [&str; 3] = ["gw-1", "gw-2", "gw-3"];

/// Short, so that a broker that stands still is soon given up.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

struct Plant {
    brokers: Vec<Mosquitto>,
    _dir: TempDir,
    nodes: Vec<RaftNode>,
}

/// All of these, the list beginning at another place for each.
fn brokers(brokers: &[Mosquitto], from: usize) -> Mqtt {
    let urls = (0..brokers.len()).map(|n| brokers[(from + n) % brokers.len()].url());
    urls.map(|url| Mqtt::new(&url).expect("a URL"))
        .reduce(Mqtt::and)
        .expect("at least one")
        .keep_alive(KEEP_ALIVE)
}

impl Plant {
    async fn start(count: usize) -> Plant {
        let brokers: Vec<Mosquitto> = (0..count).map(|_| Mosquitto::start()).collect();
        let dir = testkit::temp_dir();
        let mut nodes = Vec::new();
        for (place, name) in NAMES.into_iter().enumerate() {
            let node = RaftNode::initialize(self::brokers(&brokers, place), name)
                .voters(NAMES)
                .data_dir(dir.path().join(name))
                .hand_over(None)
                .insecure()
                .start();
            nodes.push(node.await.expect("it starts"));
        }
        Plant {
            brokers,
            _dir: dir,
            nodes,
        }
    }

    async fn each_reaches(&self, brokers: usize) {
        for node in &self.nodes {
            let mut status = node.watch_status();
            let reached = |status: &raft_over_mqtt::Status| {
                status
                    .brokers
                    .iter()
                    .filter(|broker| broker.connected)
                    .count()
                    == brokers
            };
            let waited = tokio::time::timeout(SOON, status.wait_for(reached)).await;
            assert!(waited.is_ok(), "never came: {:?}", node.status());
        }
    }

    async fn led(&self) -> (u64, String) {
        let mut status = self.nodes[0].watch_status();
        let led = tokio::time::timeout(SOON, status.wait_for(|s| s.leader.is_some())).await;
        let status = led.expect("somebody leads").expect("it runs").clone();
        (status.term, status.leader.expect("waited for"))
    }
}

/// Whoever writes one value after the other, each greater than the last by one.
struct Writer {
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Duration>,
}

impl Writer {
    fn start(kv: Kv, key: &'static str) -> Writer {
        let (done, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (count, end) = (Arc::clone(&done), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            while !end.load(Ordering::Relaxed) {
                let asked = Instant::now();
                let sum = kv.add(key, 1).await.expect("no write fails");
                let number = count.fetch_add(1, Ordering::Relaxed) + 1;
                assert_eq!(sum, i64::try_from(number).expect("few"), "each once");
                longest = longest.max(asked.elapsed());
            }
            longest
        });
        Writer { done, stop, task }
    }

    /// So many more are done.
    async fn goes_on(&self) {
        let goal = self.done.load(Ordering::Relaxed) + 20;
        let wrote = testkit::wait_for_async(SOON, || {
            self.task.is_finished() || self.done.load(Ordering::Relaxed) >= goal
        });
        assert!(wrote.await && !self.task.is_finished(), "it goes on");
    }

    async fn end(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("no write failed")
    }
}

/// Each of three brokers in turn is killed, ended and stopped under load: no write fails, none is done
/// twice, and nobody stands for election.
#[tokio::test(flavor = "multi_thread")]
async fn any_of_three_brokers_may_go() {
    if !mosquitto_or_skip() {
        return;
    }
    let mut plant = Plant::start(3).await;
    let before = plant.led().await;
    plant.each_reaches(3).await;
    let client = Client::connect(
        brokers(&plant.brokers, 1),
        "raft",
        "default",
        KeyRing::insecure(),
        SOON,
    );
    let client = client.await.expect("a session with one of them");
    let writers = [
        Writer::start(plant.nodes[0].kv(), "at/1"),
        Writer::start(plant.nodes[1].kv(), "at/2"),
        Writer::start(plant.nodes[2].kv(), "at/3"),
        Writer::start(client.kv(), "client"),
    ];
    for broken in 0..3 {
        for way in ["killed", "ended", "stopped"] {
            match way {
                "killed" => plant.brokers[broken].kill(),
                "ended" => plant.brokers[broken].terminate(),
                _ => plant.brokers[broken].stop_signal(),
            }
            plant.each_reaches(2).await;
            for node in &plant.nodes {
                let trouble = node.status().trouble.unwrap_or_default();
                assert!(trouble.contains("2 of 3 brokers"), "{trouble:?}");
            }
            for writer in &writers {
                writer.goes_on().await;
            }
            match way {
                "stopped" => plant.brokers[broken].cont(),
                _ => plant.brokers[broken].restart(),
            }
            plant.each_reaches(3).await;
            for writer in &writers {
                writer.goes_on().await;
            }
            assert_eq!(plant.led().await, before, "broker {broken} {way}");
        }
    }
    let mut longest = Vec::new();
    for writer in writers {
        longest.push(writer.end().await);
    }
    println!("longest waits for a write: {longest:?}");
    assert_eq!(plant.led().await, before);
}

/// A broker that was down from the beginning is no obstacle, nor is one that each node reaches by a path
/// of its own: no two of them have all brokers in common.
#[tokio::test(flavor = "multi_thread")]
async fn each_pair_of_nodes_shares_one_broker() {
    if !mosquitto_or_skip() {
        return;
    }
    let brokers: Vec<Mosquitto> = (0..3).map(|_| Mosquitto::start()).collect();
    let dir = testkit::temp_dir();
    let mut nodes = Vec::new();
    for (place, name) in NAMES.into_iter().enumerate() {
        let one = Mqtt::new(&brokers[place].url()).expect("a URL");
        let other = Mqtt::new(&brokers[(place + 1) % 3].url()).expect("a URL");
        let nowhere = Mqtt::new("mqtt://127.0.0.1:9").expect("a URL");
        let node = RaftNode::initialize(one.and(other).and(nowhere), name)
            .voters(NAMES)
            .data_dir(dir.path().join(name))
            .insecure()
            .start();
        nodes.push(node.await.expect("it starts"));
    }
    for (number, node) in nodes.iter().enumerate() {
        node.put("door", format!("{number}"))
            .await
            .expect("a write");
        let value = node.get("door").await.expect("a read");
        assert_eq!(value, Some(format!("{number}").into()));
        let there =
            testkit::wait_for_async(SOON, || node.presence_manager().active_nodes_count() == 3);
        assert!(there.await, "{:?}", node.presence_manager().active_nodes());
    }
}
