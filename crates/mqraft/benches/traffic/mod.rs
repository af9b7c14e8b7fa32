//! What thirty nodes say when nothing happens: packets a second of any kind, as the broker counts them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use raft_over_mqtt::{Mqtt, Observer};
use testkit::Mosquitto;

use crate::floor::wire::Link;
use crate::nodes::{CLUSTER, Nodes};

const VOTERS: usize = 3;
const OBSERVERS: usize = 27;

/// What a join leaves to be done: statuses, the roll, the members' own presence.
const SETTLE: Duration = Duration::from_secs(20);

/// What those are that have no vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    /// There and nothing more (`Observer`), as the nodes of the npm package are.
    Present,
    /// Nodes that hold the state and hear every append and heartbeat.
    Holding,
}

/// Measures each kind for so many seconds and prints.
pub(crate) fn print(dir: &Path, seconds: usize) {
    println!("{VOTERS} voters and {OBSERVERS} others, idle for {seconds} s");
    for (others, name) in [
        (Others::Present, "others are there and nothing more"),
        (Others::Holding, "others hold the state"),
    ] {
        let dir = dir.join(format!("{others:?}"));
        std::fs::create_dir(&dir).expect("create a directory");
        let [received, sent] = measure(&dir, others, Duration::from_secs(seconds as u64));
        println!("  {name}: {received:.1} packets/s to the broker, {sent:.1} out of it");
    }
}

/// Packets a second to the broker and out of it.
fn measure(dir: &Path, others: Others, duration: Duration) -> [f64; 2] {
    let mosquitto = Mosquitto::builder()
        .line("log_type none")
        .line("sys_interval 1")
        .start();
    let mut nodes = Nodes::new(dir, VOTERS);
    let names = (1..=OBSERVERS).map(|n| format!("observer-{n}"));
    if others == Others::Holding {
        names
            .clone()
            .for_each(|name| nodes.add_observer(dir, &name));
    }
    nodes.add_flags(&["--broker", &mosquitto.url()]);
    nodes.start_all();
    nodes.settled();
    let runtime = crate::product::background_runtime();
    let _inside = runtime.enter();
    let start = |name: String| {
        let mqtt = Mqtt::new(&mosquitto.url()).expect("a URL");
        Observer::start(mqtt, "raft", CLUSTER, &name, nodes.keys(), []).expect("an observer")
    };
    let present = names.filter(|_| others == Others::Present).map(start);
    let present: Vec<Observer> = present.collect();
    std::thread::sleep(SETTLE);
    let broker = SocketAddr::from((Ipv4Addr::LOCALHOST, mosquitto.port()));
    let before = Counted::read(broker);
    std::thread::sleep(duration);
    let after = Counted::read(broker);
    drop(present);
    let elapsed = (after.at - before.at).as_secs_f64();
    [0, 1].map(|n| (after.packets[n] - before.packets[n]) as f64 / elapsed)
}

/// The broker's own counters.
struct Counted {
    at: Instant,
    packets: [u64; 2],
}

impl Counted {
    /// Reads them when the broker next updates them, so that the time is known to which they belong.
    fn read(broker: SocketAddr) -> Counted {
        let topics = ["received", "sent"].map(|what| format!("$SYS/broker/messages/{what}"));
        let mut link = Link::connect(broker, "counter").expect("the broker answers");
        for topic in &topics {
            link.subscribe(topic).expect("the broker answers");
        }
        let mut packets = [None; 2];
        while packets.contains(&None) {
            link.receive().expect("the broker goes on");
            while let Some(message) = link.next_publish() {
                let which = topics
                    .iter()
                    .position(|topic| topic.as_bytes() == message.topic);
                let text = String::from_utf8_lossy(message.payload);
                packets[which.expect("one of both")] = Some(text.parse().expect("a number"));
            }
        }
        let at = Instant::now();
        let packets = packets.map(Option::unwrap_or_default);
        Counted { at, packets }
    }
}
