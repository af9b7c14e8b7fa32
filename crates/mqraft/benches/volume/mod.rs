//! How many bytes the leader sends for each byte committed: topics, frame headers and MQTT's own
//! included, TCP's and IP's not.
//!
//! The kernel counts them, on the leader's own socket (`ss`, from iproute2). A committed byte is one of a
//! key or a value.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use testkit::{Mosquitto, TempDir};

use crate::floor::wire::Link;
use crate::product::{Cluster, Frames, VALUE};
use crate::table::{Table, per_second};

const CLIENTS: usize = 64;
const STREAM: Duration = Duration::from_secs(3);

/// `client-` and two digits.
const KEY: usize = 9;

const OBSERVERS: usize = 1_000;

/// Measures and prints.
pub(crate) fn print() {
    let head = ["bytes sent / byte committed", "sent / write", "writes/s"];
    let mut table = Table::new(head.map(str::to_owned).into());
    for (voters, observers) in [(3, 0), (5, 0), (7, 0), (3, OBSERVERS)] {
        let (writes, rate, sent) = measure(voters, observers);
        let committed = writes as f64 * (KEY + VALUE) as f64;
        let name = match observers {
            0 => format!("{voters} voters"),
            _ => format!("{voters} voters, {observers} subscribers to all appends"),
        };
        table.row(
            &name,
            vec![
                format!("{:.3}", sent as f64 / committed),
                format!("{:.1}", sent as f64 / writes as f64),
                per_second(rate),
            ],
        );
    }
    println!(
        "{CLIENTS} clients at the leader, keys of {KEY} and values of {VALUE} bytes, sealed frames"
    );
    table.print();
}

/// Writes, writes a second, and bytes that the leader sent meanwhile.
fn measure(voters: usize, observers: usize) -> (u64, f64, u64) {
    let port = free_port();
    let mosquitto = Mosquitto::builder()
        .line("log_type none")
        .line(&format!("listener {port} 127.0.0.1"))
        .start();
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("create a directory");
    let broker = SocketAddr::from((Ipv4Addr::LOCALHOST, mosquitto.port()));
    let observers = Subscribers::start(broker, observers);
    let own = [format!("mqtt://127.0.0.1:{port}")];
    let cluster = Cluster::start_at(
        [&own, &[mosquitto.url()]],
        dir.path(),
        voters,
        Frames::Sealed,
    );
    cluster.commit_latency(100);
    let before = sent_to(port);
    let (writes, rate) = cluster.stream(CLIENTS, STREAM);
    let sent = sent_to(port) - before;
    drop(observers);
    (writes, rate, sent)
}

/// What the one socket that is connected to this port has sent.
fn sent_to(port: u16) -> u64 {
    let shown = Command::new("ss")
        .args([
            "-tinH",
            "state",
            "established",
            "dport",
            "=",
            &format!(":{port}"),
        ])
        .output();
    let shown = String::from_utf8(shown.expect("ss of iproute2").stdout).expect("text");
    let mut counts = shown
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("bytes_sent:"));
    let count = counts.next().expect("the leader's socket");
    assert_eq!(counts.next(), None, "nobody but the leader uses this port");
    count.parse().expect("a number")
}

/// Sessions that are sent every append and read it, as observers are, and never ask for anything.
struct Subscribers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Subscribers {
    fn start(broker: SocketAddr, count: usize) -> Subscribers {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..count).map(|n| {
            let mut link = Link::connect(broker, &format!("observer-{n}")).expect("a broker");
            link.subscribe("raft/bench/rpc/all/+").expect("a broker");
            let mut stream = link.into_stream();
            let stop = Arc::clone(&stop);
            let read = move || {
                let mut buffer = vec![0; 16 << 10];
                while !stop.load(Ordering::Relaxed) && stream.read(&mut buffer).is_ok_and(|n| n > 0)
                {
                }
            };
            let small = std::thread::Builder::new().stack_size(64 << 10);
            small.spawn(read).expect("a thread")
        });
        let threads = threads.collect();
        Subscribers { stop, threads }
    }
}

impl Drop for Subscribers {
    /// They end with the next append, or with the broker.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.clear();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}
