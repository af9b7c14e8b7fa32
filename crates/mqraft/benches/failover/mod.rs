//! The death of a leader, and its release: real processes on a real broker with its default settings.
//!
//! Both figures of a death count from just before `kill -9`. *First commit*: a write that a client began
//! right after the kill is acknowledged; the client has to find the successor by itself. *Exclusive*:
//! another node's `is_leader` is true, which waits out the dead leader's lease.
//!
//! A release is a lead handed over on request (`mqraft transfer`) and at SIGTERM. Its figure counts from
//! the request, and, since nobody leads for certain meanwhile, from the moment at which the old leader
//! last claimed to.

use std::path::Path;
use std::time::{Duration, Instant};

use raft_over_mqtt::{Mqtt, Remote};
use rustix::process::{Pid, Signal, kill_process};
use testkit::Mosquitto;
use tokio::runtime::Runtime;

use crate::nodes::{CLUSTER, Nodes, PATIENCE};
use crate::table::{self, Table, milliseconds};

/// The times between kills are spread over more than a heartbeat, so that none favours any.
const SPREAD_MS: u64 = 300;

/// Measures `kills` kills and as many releases of each kind, and prints.
pub(crate) fn print(dir: &Path, kills: usize) {
    let mosquitto = Mosquitto::builder().line("log_type none").start();
    let mut stage = Stage::set(&mosquitto.url(), dir);
    let head = ["p50 ms", "p90", "p99", "longest"].map(str::to_owned);
    let mut table = Table::new(head.into());
    let [leads, commit, exclusive] = repeat(kills, |n| stage.kill(n));
    row(&mut table, "kill -9 to: another leads", leads);
    row(&mut table, "  first commit", commit);
    row(&mut table, "  exclusive", exclusive);
    let [since, gap] = repeat(kills, |_| stage.transfer());
    row(&mut table, "request to hand over to: exclusive", since);
    row(&mut table, "  old claim given up to new one", gap);
    let [since, gap] = repeat(kills, |_| stage.terminate());
    row(&mut table, "SIGTERM to: exclusive", since);
    row(&mut table, "  old claim given up to new one", gap);
    println!("{kills} of each");
    table.print();
}

/// The figures of many, by kind.
fn repeat<const N: usize>(
    times: usize,
    mut once: impl FnMut(usize) -> [Duration; N],
) -> [Vec<Duration>; N] {
    let all: Vec<[Duration; N]> = (0..times).map(&mut once).collect();
    std::array::from_fn(|kind| all.iter().map(|figures| figures[kind]).collect())
}

pub(crate) fn row(table: &mut Table, name: &str, samples: Vec<Duration>) {
    let figures = table::percentiles(samples, [50, 90, 99, 100]);
    table.row(name, figures.map(milliseconds).into());
}

struct Stage {
    nodes: Nodes,
    runtime: Runtime,
    client: Remote,
}

impl Stage {
    fn set(url: &str, dir: &Path) -> Stage {
        let mut nodes = Nodes::new(dir, 3);
        nodes.add_flags(&["--broker", url]);
        nodes.start_all();
        nodes.settled();
        let runtime = crate::product::runtime();
        let mqtt = Mqtt::new(url).expect("a URL");
        let client = Remote::connect(mqtt, "raft", CLUSTER, nodes.keys(), PATIENCE);
        let client = runtime.block_on(client).expect("a broker");
        Stage {
            nodes,
            runtime,
            client,
        }
    }

    fn put(&mut self) {
        let put = self.client.put("door", "open");
        self.runtime.block_on(put).expect("a commit");
    }

    /// Until someone leads, a first commit, and an exclusive leader.
    fn kill(&mut self, n: usize) -> [Duration; 3] {
        self.put();
        std::thread::sleep(Duration::from_millis(n as u64 * 37 % SPREAD_MS));
        self.put();
        let victim = self.nodes.settled();
        let killed = Instant::now();
        self.nodes.kill(victim);
        self.put();
        let committed = killed.elapsed();
        let mut leads = None;
        let claim = self.nodes.expect("a successor", |said| {
            if said.node != victim && said.status.leads() {
                leads.get_or_insert(said.at);
            }
            said.node != victim && said.status.is_leader && said.at > killed
        });
        self.nodes.start(victim);
        self.nodes.settled();
        [
            leads.expect("who claims to lead leads") - killed,
            committed,
            claim.at - killed,
        ]
    }

    fn transfer(&mut self) -> [Duration; 2] {
        let old = self.nodes.settled();
        let asked = Instant::now();
        let transfer = self.client.transfer(None);
        self.runtime.block_on(transfer).expect("a hand-over");
        self.until_claimed(old, asked)
    }

    fn terminate(&mut self) -> [Duration; 2] {
        let old = self.nodes.settled();
        let asked = Instant::now();
        let pid = i32::try_from(self.nodes.get(old).pid()).expect("a process id");
        let pid = Pid::from_raw(pid).expect("a process id");
        kill_process(pid, Signal::TERM).expect("it runs");
        let figures = self.until_claimed(old, asked);
        self.nodes.get(old).wait();
        self.nodes.start(old);
        self.nodes.settled();
        figures
    }

    /// Until another claims to be the only leader, since `asked` and since the old one no longer does.
    fn until_claimed(&mut self, old: usize, asked: Instant) -> [Duration; 2] {
        let mut given_up = asked;
        let claim = self.nodes.expect("a successor", |said| {
            if said.node == old && !said.status.is_leader && given_up == asked {
                given_up = said.at;
            }
            said.node != old && said.status.is_leader
        });
        [
            claim.at - asked,
            claim.at.saturating_duration_since(given_up),
        ]
    }
}
