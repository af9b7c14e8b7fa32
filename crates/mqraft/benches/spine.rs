//! The commit path against its floor: how long a commit takes and how many a second there are,
//! through a real Mosquitto on loopback and real disks.
//!
//! `cargo bench -p mqraft --bench spine`. The floor stands in [`floor`]; each row of the table is
//! one way to commit, each column one figure.

mod floor;
mod table;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use table::Table;
use testkit::{Mosquitto, TempDir};

const COMMITS: usize = 5_000;
const STREAM: Duration = Duration::from_secs(2);

/// Entries a publish and publishes in flight, a column each.
const STREAMS: [(usize, usize); 4] = [(16, 1), (64, 1), (16, 8), (64, 8)];

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
    for nodelay in [false, true] {
        let name = format!("floor, set_tcp_nodelay {nodelay}");
        table.row(&name, floor_figures(nodelay, dir.path()));
    }
    table.print();
}

fn headings() -> Vec<String> {
    let latencies = ["p50 ms", "p99 ms"].map(str::to_owned);
    let streams = STREAMS.map(|(batch, in_flight)| format!("{batch} × {in_flight} entries/s"));
    latencies.into_iter().chain(streams).collect()
}

fn floor_figures(nodelay: bool, dir: &Path) -> Vec<String> {
    // Ends testkit's `log_type all`: a log line for each packet costs a fast stream a tenth.
    let mosquitto = Mosquitto::builder()
        .nodelay(nodelay)
        .line("log_type none")
        .start();
    let broker = SocketAddr::from((Ipv4Addr::LOCALHOST, mosquitto.port()));

    let latencies = table::percentiles(floor::commit_latency(broker, dir, COMMITS), [50, 99]);
    let streams =
        STREAMS.map(|(batch, in_flight)| floor::throughput(broker, dir, batch, in_flight, STREAM));
    latencies
        .map(table::milliseconds)
        .into_iter()
        .chain(streams.map(table::per_second))
        .collect()
}
