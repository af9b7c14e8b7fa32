//! What three idle `mqraft node` processes cost: memory, processor time, writes to disk.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testkit::Mosquitto;

const BINARY: &str = env!("CARGO_BIN_EXE_mqraft");

const IDLE: Duration = Duration::from_secs(20);

/// One idle process, over a while.
#[derive(Clone, Copy, Debug, Default)]
struct Idle {
    resident_mib: f64,
    /// Percent of one core.
    processor: f64,
    /// Bytes handed to the file system.
    written: u64,
}

pub(crate) fn print_idle(dir: &Path) {
    let mosquitto = Mosquitto::builder().line("log_type none").start();
    let (leader, followers) = idle(&mosquitto.url(), dir, IDLE);
    println!("\nidle for {} s, three processes:", IDLE.as_secs());
    for (name, idle) in [("leader", leader), ("followers", followers)] {
        println!(
            "  {name:<10} {:>5.1} MiB resident  {:>5.2} % of a core  {} bytes written",
            idle.resident_mib, idle.processor, idle.written
        );
    }
    println!("  the program has {:.1} MiB", binary_mib());
}

/// The size of the program in MiB.
fn binary_mib() -> f64 {
    fs::metadata(BINARY).expect("the program").len() as f64 / f64::from(1 << 20)
}

/// Three nodes that have elected a leader and are left alone for `time`; the leader's figures
/// and the largest of the followers'.
fn idle(url: &str, dir: &Path, time: Duration) -> (Idle, Idle) {
    let names = ["gw-1", "gw-2", "gw-3"];
    let mut nodes: Vec<Node> = names
        .iter()
        .enumerate()
        .map(|(n, name)| Node::start(url, dir, name, n))
        .collect();
    assert!(put(url), "the idle cluster takes a write");
    // The write's own traces settle: followers learn of the commit, the log prepares what is next.
    std::thread::sleep(Duration::from_secs(3));
    let before: Vec<Usage> = nodes.iter().map(Node::usage).collect();
    let started = Instant::now();
    std::thread::sleep(time);
    let elapsed = started.elapsed();
    let idle: Vec<Idle> = nodes
        .iter()
        .zip(&before)
        .map(|(node, before)| node.usage().since(before, elapsed))
        .collect();
    nodes.iter_mut().for_each(Node::stop);
    let worst = |a: Idle, b: Idle| Idle {
        resident_mib: a.resident_mib.max(b.resident_mib),
        processor: a.processor.max(b.processor),
        written: a.written.max(b.written),
    };
    (idle[0], worst(idle[1], idle[2]))
}

fn put(url: &str) -> bool {
    let status = Command::new(BINARY)
        .args([
            "put",
            "door",
            "open",
            "--cluster",
            "idle",
            "--insecure",
            "--timeout",
            "20s",
        ])
        .args(["--broker", url])
        .stdout(Stdio::null())
        .status();
    status.expect("mqraft runs").success()
}

struct Node(Child);

struct Usage {
    ticks: u64,
    resident_kib: u64,
    written: u64,
}

impl Node {
    fn start(url: &str, dir: &Path, name: &str, metric: usize) -> Node {
        let child = Command::new(BINARY)
            .args([
                "node",
                "--cluster",
                "idle",
                "--insecure",
                "--voters",
                "gw-1,gw-2,gw-3",
            ])
            .args([
                "--id",
                name,
                "--metric",
                &metric.to_string(),
                "--broker",
                url,
            ])
            .arg("--data-dir")
            .arg(dir.join(name))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Node(child.expect("mqraft starts"))
    }

    fn usage(&self) -> Usage {
        let proc = Path::new("/proc").join(self.0.id().to_string());
        let read = |file: &str| fs::read_to_string(proc.join(file)).expect("a running process");
        let stat = read("stat");
        // The name in parentheses may hold spaces; the fields after it are numbers.
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .expect("fields")
            .split(' ')
            .collect();
        let number = |field: &str| field.parse::<u64>().expect("a number");
        Usage {
            ticks: number(fields[12]) + number(fields[13]),
            resident_kib: labelled(&read("status"), "VmRSS:"),
            written: labelled(&read("io"), "write_bytes:"),
        }
    }

    fn stop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Usage {
    fn since(&self, before: &Usage, elapsed: Duration) -> Idle {
        /// `sysconf(_SC_CLK_TCK)` on every Linux that matters.
        const TICKS_PER_SECOND: f64 = 100.0;
        let ticks = (self.ticks - before.ticks) as f64;
        Idle {
            resident_mib: self.resident_kib as f64 / 1024.0,
            processor: 100.0 * ticks / TICKS_PER_SECOND / elapsed.as_secs_f64(),
            written: self.written - before.written,
        }
    }
}

fn labelled(text: &str, label: &str) -> u64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(label))
        .expect("the label");
    line.split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .expect("a number")
}
