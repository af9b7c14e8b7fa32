//! Commits: how long one takes and how many a second there are, beside the floor and etcd.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use testkit::{Mosquitto, TempDir};

use crate::etcd::{self, Etcd};
use crate::floor;
use crate::product::{Cluster, Frames};
use crate::table::{self, Table, milliseconds, per_second};

const COMMITS: usize = 3_000;
const WARM_UP: usize = 200;
const STREAM: Duration = Duration::from_secs(2);
const CLIENTS: [usize; 2] = [64, 256];

/// One way to commit, and its figures round by round.
struct Contender {
    name: String,
    rounds: Vec<Round>,
}

/// A column that a contender has none of is empty.
#[derive(Clone, Default)]
struct Round {
    /// p50 and p99 at the leader, and at a follower.
    leader: Option<[Duration; 2]>,
    follower: Option<[Duration; 2]>,
    /// Writes a second of clients in the leader's process, and of clients in processes of their own.
    inside: Option<[f64; 2]>,
    outside: Option<[f64; 2]>,
}

/// Measures and prints.
pub(crate) fn print(dir: &Path, rounds: usize) {
    let mut all = Vec::new();
    for nodelay in [true, false] {
        all.extend(measure(nodelay, dir, rounds));
    }
    print_latency(&all);
    println!();
    print_throughput(&all);
}

/// The floor stands first; then all take turns, so that the machine's noise hits all alike.
fn measure(nodelay: bool, dir: &Path, rounds: usize) -> Vec<Contender> {
    // Ends testkit's `log_type all`: a log line for each packet costs a fast stream a tenth.
    let mosquitto = Mosquitto::builder()
        .nodelay(nodelay)
        .line("log_type none")
        .start();
    let broker = SocketAddr::from((Ipv4Addr::LOCALHOST, mosquitto.port()));
    let url = mosquitto.url();
    let settings = match nodelay {
        true => "broker: set_tcp_nodelay",
        false => "broker: defaults",
    };
    type Measure<'a> = Box<dyn Fn() -> Option<Round> + 'a>;
    let mut measures: Vec<(String, Measure)> = vec![
        ("floor".to_owned(), Box::new(|| Some(of_floor(broker, dir)))),
        (
            "mqraft, insecure".to_owned(),
            Box::new(|| Some(of_product(&url, 3, Frames::Insecure))),
        ),
        (
            "mqraft, sealed".to_owned(),
            Box::new(|| Some(of_product(&url, 3, Frames::Sealed))),
        ),
    ];
    if nodelay {
        measures.push((
            "mqraft, sealed, 5 voters".to_owned(),
            Box::new(|| Some(of_product(&url, 5, Frames::Sealed))),
        ));
    }
    if nodelay {
        measures.push((
            "etcd, 3 members, a connection for each client".to_owned(),
            Box::new(|| of_etcd(1)),
        ));
        measures.push((
            "etcd, 3 members, one for 16 clients".to_owned(),
            Box::new(|| of_etcd(etcd::SHARED)),
        ));
    }
    let named = |(name, _): &(String, Measure)| Contender {
        name: match name.starts_with("etcd") {
            true => name.clone(),
            false => format!("{name} ({settings})"),
        },
        rounds: Vec::new(),
    };
    let mut contenders: Vec<Contender> = measures.iter().map(named).collect();
    for _ in 0..rounds {
        for (contender, (_, measure)) in contenders.iter_mut().zip(&measures) {
            contender.rounds.extend(measure());
        }
    }
    contenders
}

fn of_floor(broker: SocketAddr, dir: &Path) -> Round {
    // One publish and one sync for all that wait, one batch under way at a time.
    let rates = CLIENTS.map(|batch| floor::throughput(broker, dir, batch, 1, STREAM));
    Round {
        leader: Some(percentiles(floor::commit_latency(broker, dir, COMMITS))),
        follower: Some(percentiles(floor::latency_at_follower(
            broker, dir, COMMITS,
        ))),
        inside: Some(rates),
        outside: None,
    }
}

fn of_product(url: &str, voters: usize, frames: Frames) -> Round {
    let dir = directory();
    let cluster = Cluster::start(url, dir.path(), voters, frames);
    cluster.commit_latency(WARM_UP);
    cluster.latency_at_follower(WARM_UP);
    let outside = |clients| cluster.throughput_from_outside(clients, STREAM);
    Round {
        leader: Some(percentiles(cluster.commit_latency(COMMITS))),
        follower: Some(percentiles(cluster.latency_at_follower(COMMITS))),
        inside: Some(CLIENTS.map(|clients| cluster.throughput(clients, STREAM))),
        outside: Some(CLIENTS.map(outside)),
    }
}

fn of_etcd(of_one: usize) -> Option<Round> {
    let dir = directory();
    let etcd = Etcd::start(dir.path())?;
    etcd.commit_latency(WARM_UP);
    Some(Round {
        leader: Some(percentiles(etcd.commit_latency(COMMITS))),
        follower: Some(percentiles(etcd.latency_at_follower(COMMITS))),
        inside: None,
        outside: Some(CLIENTS.map(|clients| etcd.throughput(clients, of_one, STREAM))),
    })
}

fn directory() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("create a directory")
}

fn percentiles(latencies: Vec<Duration>) -> [Duration; 2] {
    table::percentiles(latencies, [50, 99])
}

/// The last floor above a contender is its own: that on the same broker.
fn print_latency(all: &[Contender]) {
    let head = [
        "leader p50 ms",
        "p99",
        "p50 / floor",
        "follower p50 ms",
        "p99",
        "p50 / floor",
    ];
    let mut table = Table::new(head.map(str::to_owned).into());
    let mut floor: &[Round] = &[];
    for contender in all.iter().filter(|c| !c.rounds.is_empty()) {
        if contender.name.starts_with("floor") {
            floor = &contender.rounds;
        }
        let mut figures = Vec::new();
        for at in [|r: &Round| r.leader, |r: &Round| r.follower] {
            let percentile = |n: usize| median(&contender.rounds, |round| seconds(at(round), n));
            let ratios = contender.rounds.iter().zip(floor);
            let ratios = ratios
                .filter_map(|(ours, floor)| Some(seconds(at(ours), 0)? / seconds(at(floor), 0)?));
            let shown = |seconds: f64| milliseconds(Duration::from_secs_f64(seconds));
            figures.extend([
                percentile(0).map_or_else(String::new, shown),
                percentile(1).map_or_else(String::new, shown),
                table::median(ratios.collect()).map_or_else(String::new, |r| format!("{r:.2}")),
            ]);
        }
        table.row(&contender.name, figures);
    }
    table.print();
}

fn print_throughput(all: &[Contender]) {
    let head = [
        "64 clients, writes/s",
        "256 clients",
        "64 outside",
        "256 outside",
    ];
    let mut table = Table::new(head.map(str::to_owned).into());
    for contender in all.iter().filter(|c| !c.rounds.is_empty()) {
        let mut figures = Vec::new();
        for rates in [|r: &Round| r.inside, |r: &Round| r.outside] {
            for n in 0..CLIENTS.len() {
                let rate = median(&contender.rounds, |round| Some(rates(round)?[n]));
                figures.push(rate.map_or_else(String::new, per_second));
            }
        }
        table.row(&contender.name, figures);
    }
    table.print();
}

fn seconds(percentiles: Option<[Duration; 2]>, which: usize) -> Option<f64> {
    percentiles.map(|percentiles| percentiles[which].as_secs_f64())
}

fn median(rounds: &[Round], figure: impl Fn(&Round) -> Option<f64>) -> Option<f64> {
    table::median(rounds.iter().filter_map(figure).collect())
}
