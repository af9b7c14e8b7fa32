//! One program on two sites, while everything around it is killed, stopped and cut off.
//!
//! ```text
//!  site-a: mqraft run ─ watchdog ─ writer ──┐          ┌── bridge a ──┐
//!                                           ├▶ gate    │              ├── broker ── gw-1, gw-2, gw-3
//!  site-b: mqraft run ─ watchdog ─ writer ──┘          └── bridge b ──┘
//! ```
//!
//! Each writer asks the gate, every few milliseconds, to append a line; the gate compares the fencing
//! token with the greatest it has seen and appends or refuses. Then what was asked tells:
//!
//! - no two writers were alive at the same time, by the clock, but for one whose whole site had been
//!   paused;
//! - of that one nothing was taken once the next had begun.

#![cfg(target_os = "linux")]

mod bench;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use testkit::{Mosquitto, require_mosquitto, wait_for};

use bench::{Bench, PATIENCE, Process};

/// Where a writer finds the gate; without it the writer is no test at all.
const GATE: &str = "SINGLETON_GATE";

/// How often a writer writes.
const WRITE_INTERVAL: Duration = Duration::from_millis(3);

/// For how many microseconds a writer writes before it counts as the one that runs.
const SETTLED: u64 = 200_000;

/// Microseconds on the clock that counts suspend.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000 + u64::try_from(now.tv_nsec).unwrap() / 1_000
}

// The writer.

/// The program that only one site may run. It minds SIGTERM no more than it must.
#[test]
#[ignore = "what the other tests run, not a test"]
fn writer() {
    let Some(gate) = std::env::var_os(GATE) else {
        return;
    };
    let variable = |name| std::env::var(name).expect("mqraft run sets it");
    let (node, token) = (variable("MQRAFT_NODE"), variable("MQRAFT_FENCING_TOKEN"));
    let mut gate = UnixStream::connect(gate).expect("the gate is open");
    let mut answers = BufReader::new(gate.try_clone().expect("a second handle"));
    let own = std::process::id();
    let mut answer = String::new();
    loop {
        // In one write: it is killed before it or after.
        let line = format!("{node} {token} {own} {}\n", now());
        gate.write_all(line.as_bytes()).expect("the gate is open");
        answer.clear();
        answers.read_line(&mut answer).expect("the gate answers");
        std::thread::sleep(WRITE_INTERVAL);
    }
}

// The gate.

/// A write that a writer asked for.
#[derive(Clone, Debug)]
struct Attempt {
    node: String,
    token: u64,
    pid: i32,
    /// When the writer was alive to ask.
    at: u64,
    taken: bool,
}

/// What stands before the file: appends what comes with a token as great as any before.
#[derive(Clone)]
struct Gate {
    writes: Arc<Mutex<Vec<Attempt>>>,
    socket: PathBuf,
}

impl Gate {
    fn open(dir: &Path) -> Gate {
        let socket = dir.join("gate");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let writes = Arc::new(Mutex::new(Vec::new()));
        let file = Arc::new(Mutex::new(
            File::create(dir.join("appended")).expect("a file"),
        ));
        let gate = Gate { writes, socket };
        let serving = gate.clone();
        std::thread::spawn(move || {
            for writer in listener.incoming() {
                let (gate, file) = (serving.clone(), Arc::clone(&file));
                let writer = writer.expect("a writer");
                std::thread::spawn(move || gate.serve(&writer, &file));
            }
        });
        gate
    }

    /// Until the writer has died.
    fn serve(&self, writer: &UnixStream, file: &Mutex<File>) {
        let mut answers = writer;
        for line in BufReader::new(writer).lines() {
            let Ok(line) = line else { return };
            let taken = self.judge(&line, file);
            if writeln!(answers, "{taken}").is_err() {
                return;
            }
        }
    }

    fn judge(&self, line: &str, file: &Mutex<File>) -> bool {
        let words: Vec<&str> = line.split(' ').collect();
        let [node, token, pid, at] = words[..] else {
            panic!("{line:?}");
        };
        let token = token.parse().expect("a token");
        let mut writes = self.writes.lock().expect("nobody panicked");
        let greatest = writes.iter().rev().find(|write| write.taken);
        let taken = greatest.is_none_or(|greatest| token >= greatest.token);
        if taken {
            let mut file = file.lock().expect("nobody panicked");
            writeln!(file, "{line}").expect("a line more");
        }
        writes.push(Attempt {
            node: node.to_owned(),
            token,
            pid: pid.parse().expect("a pid"),
            at: at.parse().expect("a time"),
            taken,
        });
        taken
    }

    fn last(&self) -> Option<Attempt> {
        let writes = self.writes.lock().expect("nobody panicked");
        writes.iter().rev().find(|write| write.taken).cloned()
    }

    /// Waits until a writer has been writing for a while since `since` for which `wanted` holds.
    #[track_caller]
    fn await_writer(&self, since: u64, wanted: impl Fn(&Attempt) -> bool) -> Attempt {
        let mut found = None;
        let mut first: Option<Attempt> = None;
        wait_for(2 * PATIENCE, || {
            let last = self.last().filter(|last| last.at > since && wanted(last));
            match (&first, last) {
                (Some(one), Some(last)) if one.pid == last.pid && last.at > one.at + SETTLED => {
                    found = Some(last);
                }
                (Some(one), Some(last)) if one.pid == last.pid => {}
                (_, last) => first = last,
            }
            found.is_some()
        });
        found.unwrap_or_else(|| panic!("no such writer; the last one: {:?}", self.last()))
    }

    /// The longest time between two writes that were taken, from the last before `from` on.
    fn longest_gap(&self, from: u64) -> Duration {
        let writes = self.writes.lock().expect("nobody panicked");
        let taken: Vec<u64> = writes.iter().filter(|w| w.taken).map(|w| w.at).collect();
        let begin = taken.partition_point(|at| *at < from).saturating_sub(1);
        let gaps = taken[begin..]
            .windows(2)
            .map(|pair| pair[1].saturating_sub(pair[0]));
        Duration::from_micros(gaps.max().unwrap_or_default())
    }
}

// The stage.

struct Site {
    name: &'static str,
    bridge: Mosquitto,
    run: Option<Process>,
}

struct Stage {
    sites: [Site; 2],
    nodes: Vec<Process>,
    gate: Gate,
    bench: Bench,
    /// Writers whose whole site was paused.
    paused: BTreeSet<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillRun,
    StopRun,
    StopBridge,
    KillBridge,
    KillLeader,
    StopLeader,
    KillBroker,
    KillProgram,
    KillWatchdog,
    StopWatchdogAndBridge,
    Terminate,
    PauseSite,
}

const FAULTS: [Fault; 12] = [
    Fault::KillRun,
    Fault::StopRun,
    Fault::StopBridge,
    Fault::KillBridge,
    Fault::KillLeader,
    Fault::StopLeader,
    Fault::KillBroker,
    Fault::KillProgram,
    Fault::KillWatchdog,
    Fault::StopWatchdogAndBridge,
    Fault::Terminate,
    Fault::PauseSite,
];

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Fault::KillRun => "kill -9 of mqraft run",
            Fault::StopRun => "SIGSTOP of mqraft run",
            Fault::StopBridge => "site cut off silently",
            Fault::KillBridge => "site cut off, connection broken",
            Fault::KillLeader => "kill -9 of the leader",
            Fault::StopLeader => "SIGSTOP of the leader for 2 s",
            Fault::KillBroker => "kill -9 of the broker, back at once",
            Fault::KillProgram => "kill -9 of the program",
            Fault::KillWatchdog => "kill -9 of the watchdog",
            Fault::StopWatchdogAndBridge => "SIGSTOP of the watchdog, site cut off",
            Fault::Terminate => "SIGTERM of mqraft run",
            Fault::PauseSite => "SIGSTOP of all of a site",
        }
    }
}

impl Stage {
    fn set() -> Stage {
        let bench = Bench::of(Mosquitto::builder().persistence(true).start());
        let nodes = bench.cluster(&bench.insecure());
        bench.await_leader();
        let gate = Gate::open(bench.dir.path());
        let broker = bench.broker.as_ref().expect("a broker");
        let site = |name| Site {
            name,
            bridge: bridge(broker, name),
            run: None,
        };
        let mut stage = Stage {
            sites: [site("site-a"), site("site-b")],
            nodes,
            gate,
            bench,
            paused: BTreeSet::new(),
        };
        stage.start(0);
        stage.start(1);
        stage
    }

    fn start(&mut self, site: usize) {
        let Site { name, bridge, run } = &mut self.sites[site];
        let url = bridge.url();
        let mut command = self.bench.command(&format!(
            "run --insecure --broker {url} --id {name} --grace 200ms --ttl 3500ms"
        ));
        let writer = std::env::current_exe().expect("this test");
        command.env(GATE, &self.gate.socket).arg("--").arg(writer);
        command.args(["--exact", "writer", "--ignored", "--nocapture"]);
        let process = Process::start(command, &self.bench);
        assert!(
            process.await_log("waiting for \"default\""),
            "{}",
            process.log()
        );
        *run = Some(process);
    }

    fn site_of(&self, write: &Attempt) -> usize {
        let at = self.sites.iter().position(|site| site.name == write.node);
        at.expect("one of two")
    }

    fn run_of(&self, site: usize) -> &Process {
        self.sites[site].run.as_ref().expect("it runs")
    }

    fn watchdog_of(&self, site: usize) -> Pid {
        let parent = self.run_of(site).child.id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
        let children = children.expect("it runs");
        let child = children.split_whitespace().next().expect("a watchdog");
        pid(child.parse().expect("a pid"))
    }

    fn leader(&self) -> usize {
        let name = self.bench.await_leader();
        let at = self.nodes.iter().position(|node| node.is_called(&name));
        at.expect("one of three")
    }

    /// Waits until both sites have a connection again: else the figures would be of a site without
    /// another.
    fn await_connections(&self) {
        let connected = |site: &Site| has_clients(site.bridge.port());
        assert!(
            wait_for(PATIENCE, || self.sites.iter().all(connected)),
            "a site does not connect"
        );
    }

    /// Does it, undoes it once its effect is there, and waits until all is well. Returns the longest
    /// time without a write.
    fn break_something(&mut self, fault: Fault) -> Duration {
        self.await_connections();
        let before = self.gate.await_writer(now(), |_| true);
        let site = self.site_of(&before);
        let begin = now();
        let other = |write: &Attempt| write.node != before.node;
        let anew = |write: &Attempt| write.pid != before.pid;
        let anyone = |_: &Attempt| true;
        match fault {
            Fault::KillRun => {
                self.sites[site].run.as_mut().expect("it runs").kill();
                self.gate.await_writer(begin, other);
                self.start(site);
            }
            Fault::StopRun => {
                self.run_of(site).signal(Signal::STOP);
                self.gate.await_writer(begin, other);
                self.run_of(site).signal(Signal::CONT);
            }
            Fault::StopBridge => {
                self.sites[site].bridge.stop_signal();
                self.gate.await_writer(begin, other);
                self.sites[site].bridge.cont();
            }
            Fault::KillBridge => {
                self.sites[site].bridge.kill();
                self.gate.await_writer(begin, other);
                self.sites[site].bridge.restart();
            }
            Fault::KillLeader => {
                let leader = self.leader();
                self.nodes[leader].kill();
                let flags = self.bench.insecure();
                let id = format!("gw-{}", leader + 1);
                self.nodes[leader] = self.bench.process(&self.bench.node(&id, &flags));
            }
            Fault::StopLeader => {
                let leader = self.leader();
                self.nodes[leader].signal(Signal::STOP);
                // The fault itself, not a wait for its effect.
                std::thread::sleep(Duration::from_secs(2));
                self.nodes[leader].signal(Signal::CONT);
            }
            Fault::KillBroker => {
                self.bench.broker().kill();
                self.bench.broker().restart();
            }
            Fault::KillProgram => {
                kill_process(pid(before.pid), Signal::KILL).expect("it runs");
                self.gate.await_writer(begin, anew);
            }
            Fault::KillWatchdog => {
                kill_process(self.watchdog_of(site), Signal::KILL).expect("it runs");
                self.gate.await_writer(begin, anew);
            }
            Fault::StopWatchdogAndBridge => {
                kill_process(self.watchdog_of(site), Signal::STOP).expect("it runs");
                self.sites[site].bridge.stop_signal();
                self.gate.await_writer(begin, other);
                // The watchdog is not woken: mqraft is rid of it.
                self.sites[site].bridge.cont();
            }
            Fault::Terminate => {
                self.run_of(site).signal(Signal::TERM);
                let code = self.sites[site].run.as_mut().expect("it runs").exit_code();
                assert_eq!(code, Some(128 + 15), "the writer's, by SIGTERM");
                self.gate.await_writer(begin, other);
                self.start(site);
            }
            Fault::PauseSite => self.pause(site, &before),
        }
        self.gate.await_writer(now(), anyone);
        self.gate.longest_gap(begin)
    }

    /// As a virtual machine is paused, and wakes when another has taken over; the program first, so
    /// that it writes before anyone can end it.
    fn pause(&mut self, site: usize, before: &Attempt) {
        let run = Pid::from_child(&self.run_of(site).child);
        let all = [run, self.watchdog_of(site), pid(before.pid)];
        let signal = |pid, signal| kill_process(pid, signal).expect("it runs");
        let begin = now();
        all.iter().for_each(|pid| signal(*pid, Signal::STOP));
        self.paused.insert(before.pid);
        self.gate
            .await_writer(begin, |write| write.node != before.node);
        signal(pid(before.pid), Signal::CONT);
        let refused = |write: &Attempt| write.pid == before.pid && !write.taken;
        assert!(
            wait_for(PATIENCE, || {
                let writes = self.gate.writes.lock().expect("nobody panicked");
                writes.iter().rev().any(refused)
            }),
            "what wakes late is refused"
        );
        all[..2].iter().for_each(|pid| signal(*pid, Signal::CONT));
    }

    /// Panics if two wrote at once; returns how many writers there were, how many writes, and how many
    /// were refused.
    fn judge(&self) -> (usize, usize, usize) {
        let writes = self.gate.writes.lock().expect("nobody panicked");
        let mut lives: BTreeMap<(u64, i32), (u64, u64)> = BTreeMap::new();
        for write in writes.iter() {
            let life = lives.entry((write.token, write.pid));
            let life = life.or_insert((write.at, write.at));
            *life = (life.0.min(write.at), life.1.max(write.at));
        }
        let mut by_time: Vec<_> = lives
            .iter()
            .filter(|((_, pid), _)| !self.paused.contains(pid))
            .collect();
        by_time.sort_by_key(|(_, life)| **life);
        for pair in by_time.windows(2) {
            let [(former, life), (latter, next)] = pair else {
                unreachable!("windows of two")
            };
            assert!(
                life.1 < next.0,
                "{former:?} {life:?} and {latter:?} {next:?} wrote at once"
            );
            assert!(
                former.0 <= latter.0,
                "tokens fell from {former:?} to {latter:?}"
            );
        }
        // Of whoever was paused nothing was taken after the next had begun.
        let taken = writes.iter().filter(|write| write.taken);
        let in_order: Vec<u64> = taken.map(|write| write.token).collect();
        assert!(in_order.is_sorted(), "an older token was taken");
        // One that was killed may leave a last line that the gate reads late: it is refused as well.
        let late = |write: &&Attempt| !write.taken && self.paused.contains(&write.pid);
        let refused = writes.iter().filter(late);
        (lives.len(), writes.len(), refused.count())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for site in &mut self.sites {
            site.bridge.cont();
            if let Some(run) = &site.run
                && std::thread::panicking()
            {
                println!("--- {}\n{}", site.name, run.log());
            }
        }
    }
}

/// Whether a TCP connection to this port of ours is established.
fn has_clients(port: u16) -> bool {
    let table = fs::read_to_string("/proc/net/tcp").expect("a table of connections");
    let local = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1].ends_with(&local) && fields[3] == "01"
    })
}

/// Two bridges that call themselves the same would take each other's session.
fn bridge(broker: &Mosquitto, name: &str) -> Mosquitto {
    let own_name = format!("remote_clientid {name}");
    let bridge = Mosquitto::builder().bridge(broker).line(&own_name);
    bridge.start()
}

fn pid(raw: i32) -> Pid {
    Pid::from_raw(raw).expect("a pid")
}

/// Two sites and every fault; `MQRAFT_SINGLETON_FAULTS` says how many, one of each kind by default.
#[test]
fn one_program_on_two_sites_never_runs_twice() {
    require_mosquitto!();
    let count = std::env::var("MQRAFT_SINGLETON_FAULTS").ok();
    let count = count.map_or(FAULTS.len(), |count| count.parse().expect("a number"));
    let mut stage = Stage::set();
    let mut gaps: BTreeMap<Fault, Vec<Duration>> = BTreeMap::new();
    let begin = now();
    for number in 0..count {
        // Round after round, each in another order: 5 and 12 have no common divisor.
        let (round, place) = (number / FAULTS.len(), number % FAULTS.len());
        let fault = FAULTS[(place * [1, 5, 7, 11][round % 4] + round) % FAULTS.len()];
        let gap = stage.break_something(fault);
        println!(
            "{:3}  {:38} {:6.3} s without a write",
            number + 1,
            fault.name(),
            gap.as_secs_f64()
        );
        gaps.entry(fault).or_default().push(gap);
        stage.judge();
    }
    let (writers, writes, refused) = stage.judge();
    println!(
        "\n{:38} {:>5} {:>9} {:>9}",
        "without a write, by fault", "times", "median", "longest"
    );
    for (fault, gaps) in &mut gaps {
        gaps.sort();
        let (median, longest) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
        let (median, longest) = (median.as_secs_f64(), longest.as_secs_f64());
        println!(
            "{:38} {:>5} {median:>7.3} s {longest:>7.3} s",
            fault.name(),
            gaps.len()
        );
    }
    let seconds = (now() - begin) / 1_000_000;
    println!(
        "\n{count} faults in {seconds} s: {writers} writers, {writes} writes, {refused} of them refused \
         because their site had been paused; no two writers at once otherwise"
    );
}
