//! The commit path against its floor: how long a commit takes and how many a second there are,
//! through a real Mosquitto on loopback and real disks, and what a node costs that does nothing.
//!
//! `cargo bench -p mqraft --bench spine`. The floor stands in [`floor`]; floor and product take
//! turns, several rounds of each, and what is printed are medians over the rounds: the machine's
//! noise hits both alike.

mod floor;
mod process;
mod product;
mod table;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use product::Cluster;
use raft_over_mqtt::ClusterKey;
use table::{Table, milliseconds, per_second};
use testkit::{Mosquitto, TempDir};

const ROUNDS: usize = 5;
const COMMITS: usize = 3_000;
const STREAM: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(20);

fn main() {
    // `cargo test --benches` runs this too; it then only shows that it compiles.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    if !testkit::mosquitto_or_skip() {
        return;
    }
    // Beside the build: the system's temporary directory is often in memory, where a sync is free.
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("create a directory");

    let mut table = Table::new(headings());
    for nodelay in [true, false] {
        let figures = commits(nodelay, dir.path());
        let broker = if nodelay {
            "set_tcp_nodelay"
        } else {
            "defaults"
        };
        figures.print_into(&mut table, broker);
    }
    table.print();
    print_idle(dir.path());
}

fn headings() -> Vec<String> {
    [
        "p50 ms",
        "p99 ms",
        "p50 / floor",
        "64 clients, writes/s",
        "256 clients",
    ]
    .map(str::to_owned)
    .into()
}

/// The rounds' figures of one broker.
#[derive(Default)]
struct Figures {
    floor: Vec<Round>,
    insecure: Vec<Round>,
    keyed: Vec<Round>,
}

#[derive(Clone, Copy)]
struct Round {
    p50: Duration,
    p99: Duration,
    rates: [f64; 2],
}

fn commits(nodelay: bool, dir: &Path) -> Figures {
    // Ends testkit's `log_type all`: a log line for each packet costs a fast stream a tenth.
    let mosquitto = Mosquitto::builder()
        .nodelay(nodelay)
        .line("log_type none")
        .start();
    let broker = SocketAddr::from((Ipv4Addr::LOCALHOST, mosquitto.port()));
    let key = raft_over_mqtt::generate_cluster_key().expect("a key");
    let mut figures = Figures::default();
    for _ in 0..ROUNDS {
        figures.floor.push(floor_round(broker, dir));
        figures.insecure.push(product_round(&mosquitto.url(), None));
        figures
            .keyed
            .push(product_round(&mosquitto.url(), Some(&key)));
    }
    figures
}

fn floor_round(broker: SocketAddr, dir: &Path) -> Round {
    let [p50, p99] = table::percentiles(floor::commit_latency(broker, dir, COMMITS), [50, 99]);
    // One publish and one sync for all that wait, one batch under way at a time.
    let rates = [64, 256].map(|batch| floor::throughput(broker, dir, batch, 1, STREAM));
    Round { p50, p99, rates }
}

fn product_round(url: &str, key: Option<&ClusterKey>) -> Round {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("create a directory");
    let cluster = Cluster::start(url, dir.path(), key);
    cluster.commit_latency(200);
    let [p50, p99] = table::percentiles(cluster.commit_latency(COMMITS), [50, 99]);
    let rates = [64, 256].map(|clients| cluster.throughput(clients, STREAM));
    Round { p50, p99, rates }
}

impl Figures {
    fn print_into(&self, table: &mut Table, broker: &str) {
        for (name, rounds) in [
            ("floor", &self.floor),
            ("mqraft, insecure", &self.insecure),
            ("mqraft, sealed", &self.keyed),
        ] {
            let ratio =
                |(ours, floor): (&Round, &Round)| ours.p50.as_secs_f64() / floor.p50.as_secs_f64();
            let ratios = rounds.iter().zip(&self.floor).map(ratio).collect();
            let of = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
            let figures = vec![
                milliseconds(Duration::from_secs_f64(of(|round| round.p50.as_secs_f64()))),
                milliseconds(Duration::from_secs_f64(of(|round| round.p99.as_secs_f64()))),
                format!("{:.2}", median(ratios)),
                per_second(of(|round| round.rates[0])),
                per_second(of(|round| round.rates[1])),
            ];
            table.row(&format!("{name} (broker: {broker})"), figures);
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn print_idle(dir: &Path) {
    let mosquitto = Mosquitto::builder().line("log_type none").start();
    let (leader, followers) = process::idle(&mosquitto.url(), dir, IDLE);
    println!("\nidle for {} s, three processes:", IDLE.as_secs());
    for (name, idle) in [("leader", leader), ("followers", followers)] {
        println!(
            "  {name:<10} {:>5.1} MiB resident  {:>5.2} % of a core  {} bytes written",
            idle.resident_mib, idle.processor, idle.written
        );
    }
    println!("  the program has {:.1} MiB", process::binary_mib());
}
