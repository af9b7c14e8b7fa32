//! What thirty nodes say when nothing happens: packets a second, as the broker counts them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use testkit::Mosquitto;

use crate::floor::wire::Link;
use crate::nodes::Nodes;

const VOTERS: usize = 3;
const OBSERVERS: usize = 27;

/// What a join leaves to be done: statuses, the roll, the members' own presence.
const SETTLE: Duration = Duration::from_secs(20);

/// Measures for so many seconds and prints.
pub(crate) fn print(dir: &Path, seconds: usize) {
    let mosquitto = Mosquitto::builder()
        .line("log_type none")
        .line("sys_interval 1")
        .start();
    let mut nodes = Nodes::new(dir, VOTERS);
    for n in 1..=OBSERVERS {
        nodes.add_observer(dir, &format!("observer-{n}"));
    }
    nodes.add_flags(&["--broker", &mosquitto.url()]);
    nodes.start_all();
    nodes.settled();
    std::thread::sleep(SETTLE);
    let broker = SocketAddr::from((Ipv4Addr::LOCALHOST, mosquitto.port()));
    let before = Counted::read(broker);
    std::thread::sleep(Duration::from_secs(seconds as u64));
    let after = Counted::read(broker);
    let elapsed = (after.at - before.at).as_secs_f64();
    println!("{VOTERS} voters and {OBSERVERS} observers, each a process, idle for {elapsed:.0} s");
    for (what, n) in [("to the broker", 0), ("out of the broker", 1)] {
        let rate = (after.packets[n] - before.packets[n]) as f64 / elapsed;
        println!("  {rate:>6.1} packets/s {what}");
    }
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
