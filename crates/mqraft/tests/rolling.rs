//! Nodes that are restarted, or upgraded, one after the other, under a client that writes all the
//! time: what it notices of it. `just rolling` prints the figures of docs/bench/rolling.txt.

mod bench;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bench::writer::{Writer, assert_holds};
use bench::{Bench, PATIENCE, Process};
use rustix::process::Signal;
use testkit::{require_mosquitto, wait_for};

/// No write may wait longer while a node is restarted: what a cluster waits for a silent leader. A
/// hand-over takes a small part of it; this is a busy machine's bound.
const PAUSE: Duration = Duration::from_secs(1);

/// How often the whole cluster is restarted.
fn rounds() -> usize {
    let rounds = std::env::var("MQRAFT_ROLLING_ROUNDS").ok();
    rounds.map_or(1, |rounds| rounds.parse().expect("a number of rounds"))
}

const NODES: [&str; 3] = ["gw-1", "gw-2", "gw-3"];

/// Three voters, their statuses on stdout, and a client.
struct Site {
    bench: Bench,
    nodes: Vec<Process>,
    claims: Claims,
    writer: Option<Writer>,
}

impl Site {
    /// Each node with `flags` beside the usual ones.
    fn start(flags: &str) -> Site {
        let bench = Bench::start();
        let claims = Claims::default();
        let nodes = NODES.map(|id| start(&bench, &claims, id, flags));
        let leader = bench.await_leader();
        assert!(claims.await_one(PATIENCE), "{leader} leads for certain");
        let writer = Writer::start(&bench);
        assert!(wait_for(PATIENCE, || writer.acknowledged() > 200));
        Site {
            nodes: nodes.into(),
            bench,
            claims,
            writer: Some(writer),
        }
    }

    /// Ends one node as a service manager would, and starts it again.
    fn restart(&mut self, number: usize, flags: &str) -> Step {
        let id = NODES[number];
        let led = self.bench.await_leader() == id;
        assert!(self.claims.await_one(PATIENCE));
        self.writer().longest.store(0, Ordering::Relaxed);
        self.claims.forget();
        let old = &mut self.nodes[number];
        old.signal(Signal::TERM);
        assert_eq!(old.exit_code(), Some(0), "{}", old.log());
        let log = old.log();
        let handed_over = log.contains("hands the lead over");
        self.nodes[number] = start(&self.bench, &self.claims, id, flags);
        let follows = || self.nodes[number].log().contains("follows gw-");
        assert!(wait_for(PATIENCE, follows), "{}", self.nodes[number].log());
        let before = self.writer().acknowledged();
        let goes_on = || self.writer().acknowledged() > before + 100;
        assert!(wait_for(PATIENCE, goes_on), "no more writes after {id}");
        assert!(self.claims.await_one(PATIENCE));
        let longest = self.writer().longest.load(Ordering::Relaxed);
        Step {
            id,
            led,
            handed_over,
            pause: Duration::from_micros(longest),
            nobody: self.claims.gap(),
        }
    }

    fn end(mut self) {
        let written = self.writer.take().expect("a writer").stop();
        println!("{written} writes, none failed");
        assert_holds(&self.bench, 0..written);
    }

    fn writer(&self) -> &Writer {
        self.writer.as_ref().expect("a writer")
    }
}

fn start(bench: &Bench, claims: &Claims, id: &'static str, flags: &str) -> Process {
    let words = bench.node(id, &format!("-o json {flags} {}", bench.insecure()));
    let process = bench.process(&words);
    claims.watch(&process);
    process
}

/// What one restart did.
struct Step {
    id: &'static str,
    led: bool,
    handed_over: bool,
    /// The longest that a write took.
    pause: Duration,
    /// How long no node was the only leader for certain.
    nobody: Option<Duration>,
}

impl Step {
    fn print(&self, what: &str) {
        let Step { id, pause, .. } = self;
        let role = match (self.led, self.handed_over) {
            (false, _) => "follower",
            (true, false) => "leader, stops",
            (true, true) => "leader, hands over",
        };
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1_000.0;
        let nobody = self.nobody.map_or("-".to_owned(), |nobody| {
            format!("{:.1} ms", milliseconds(nobody))
        });
        let pause = milliseconds(*pause);
        println!(
            "{what:<8} {id}  {role:<18}  longest write {pause:>7.1} ms  no is_leader {nobody}"
        );
    }
}

/// Who said when that it is the only leader, read from the nodes' output as it comes.
#[derive(Clone, Default)]
struct Claims(Arc<Mutex<Vec<(Instant, bool)>>>, Arc<AtomicBool>);

impl Claims {
    /// Follows the output of a process to the end of the test.
    fn watch(&self, process: &Process) -> JoinHandle<()> {
        let path = process.out.path().join("stdout");
        let file = File::open(path).expect("its output");
        let claims = self.clone();
        std::thread::spawn(move || claims.follow(BufReader::new(file)))
    }

    fn follow(self, mut file: BufReader<File>) {
        let mut line = String::new();
        let mut claims = false;
        while !self.1.load(Ordering::Relaxed) {
            if file.read_line(&mut line).expect("text") == 0 {
                std::thread::sleep(Duration::from_micros(500));
                continue;
            }
            if !line.ends_with('\n') {
                continue; // The rest is still to come.
            }
            let now = line.contains("\"is_leader\":true");
            if now != claims {
                claims = now;
                self.0.lock().expect("a log").push((Instant::now(), now));
            }
            line.clear();
        }
    }

    fn count(log: &[(Instant, bool)]) -> i64 {
        log.iter().map(|(_, up)| if *up { 1 } else { -1 }).sum()
    }

    /// Waits until one node claims it.
    fn await_one(&self, deadline: Duration) -> bool {
        wait_for(deadline, || {
            Claims::count(&self.0.lock().expect("a log")) == 1
        })
    }

    /// Forgets all but that one node claims it now.
    fn forget(&self) {
        let mut log = self.0.lock().expect("a log");
        let last = log.pop();
        log.clear();
        log.extend(last.filter(|(_, up)| *up).or(Some((Instant::now(), true))));
    }

    /// From the last claim withdrawn to the next one made.
    fn gap(&self) -> Option<Duration> {
        let log = self.0.lock().expect("a log");
        let lost = log.iter().find(|(_, up)| !up)?.0;
        let found = log.iter().rev().find(|(_, up)| *up)?.0;
        Some(found.saturating_duration_since(lost))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.claims.1.store(true, Ordering::Relaxed);
    }
}

/// Each node is restarted in turn. No write fails, and none waits for an election: who leads hands
/// over first, and its successor is the only leader at once.
#[test]
fn a_rolling_restart_costs_a_hand_over() {
    require_mosquitto!();
    let mut site = Site::start("");
    let mut hand_overs = 0;
    for _ in 0..rounds() {
        for number in 0..NODES.len() {
            let step = site.restart(number, "");
            step.print("restart");
            assert_eq!(step.led, step.handed_over, "a leader hands over");
            assert!(step.pause < PAUSE, "a write took {:?}", step.pause);
            hand_overs += usize::from(step.led);
        }
    }
    assert!(hand_overs > 0, "somebody led");
    site.end();
}

/// Nodes of the previous frame version are replaced one by one. What the new one has beside is refused
/// until the last is replaced, and works then.
#[test]
fn a_rolling_upgrade_costs_a_change_of_the_leader() {
    require_mosquitto!();
    let old = "--frame-version 1";
    for _ in 0..rounds() {
        let mut site = Site::start(old);
        let flags = site.bench.insecure();
        for number in 0..NODES.len() {
            let refused = format!("member demote gw-3 --timeout 300ms {flags}");
            let refused = site.bench.run(&refused);
            assert_ne!(refused.code, Some(0), "{refused:?}");
            assert!(refused.stderr.contains("older"), "{refused:?}");
            let step = site.restart(number, "");
            step.print("upgrade");
            assert!(!step.handed_over, "not beside an older node");
            assert!(step.pause < 2 * PAUSE, "a write took {:?}", step.pause);
        }
        for node in &site.nodes {
            assert!(!node.log().contains("frame version"), "{}", node.log());
        }
        let change = format!("member demote gw-3 --timeout 30s {flags}");
        site.bench.run(&change).expect_exit(0);
        let step = site.restart(0, "");
        step.print("restart");
        assert_eq!(step.led, step.handed_over, "a leader hands over");
        site.end();
    }
}
