//! Ten thousand observers on one Mosquitto: how long until all are agreed on, what they cost when all
//! is quiet, how soon a death is known, and whether a broker restart removes anyone who lives.
//!
//! ```console
//! $ cargo run --release -p raft-over-mqtt --example presence            # 10,000
//! $ cargo run --release -p raft-over-mqtt --example presence -- 1000
//! ```
//!
//! Every observer is an `Observer` with an MQTT session of its own: one that holds the whole
//! state would take megabytes, ten thousand of them more than a machine has. They run in a few
//! processes; the voters are three nodes, each a process of its own.

use std::collections::BTreeSet;
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mqtt::{BrokerUrl, Event, Options, Qos, SessionSetup};
use raft_over_mqtt::{
    Client, ClusterKey, KeyEvent, KeyRange, Kv, Mqtt, Observer, RaftNode, RangeRequest, Watch,
};
use testkit::Mosquitto;

const CLUSTER: &str = "fleet";
const VOTERS: [&str; 3] = ["gw-1", "gw-2", "gw-3"];
/// How many observers one process holds: a process has so many descriptors and no more.
const IN_ONE: usize = 2_500;
/// How many a second each of those processes starts.
const RATE: u32 = 500;
const STEADY: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(180);

type Failed = Box<dyn std::error::Error>;

fn main() -> Result<(), Failed> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build()?;
    match words.as_slice() {
        ["node", url, id, dir] => runtime.block_on(node(url, id, dir)),
        ["observers", url, from, to] => {
            runtime.block_on(observers(url, from.parse()?..to.parse()?))
        }
        [] => runtime.block_on(measure(10_000)),
        [count] => runtime.block_on(measure(count.parse()?)),
        _ => Err("presence [COUNT]".into()),
    }
}

fn key() -> ClusterKey {
    ClusterKey::from_bytes([7; 32])
}

// The processes that are measured.

async fn node(url: &str, id: &str, dir: &str) -> Result<(), Failed> {
    let node = RaftNode::initialize(Mqtt::new(url)?, id)
        .cluster(CLUSTER)
        .voters(VOTERS)
        .data_dir(dir)
        .cluster_key(key())
        .start()
        .await?;
    std::future::pending::<()>().await;
    drop(node);
    Ok(())
}

async fn observers(url: &str, which: Range<usize>) -> Result<(), Failed> {
    let mut pace = tokio::time::interval(Duration::from_secs(1) / RATE);
    let mut there = Vec::new();
    for n in which {
        pace.tick().await;
        let mqtt = Mqtt::new(url)?.keep_alive(Duration::from_secs(60));
        let tags = [("site".to_owned(), format!("site-{}", n % 100))];
        let name = format!("o{n:05}");
        there.push(Observer::start(mqtt, "raft", CLUSTER, &name, key(), tags)?);
    }
    std::future::pending::<()>().await;
    Ok(())
}

// The measure.

/// A child that is killed with its owner.
struct Process(Child);

impl Process {
    fn start(arguments: &[&str]) -> Result<Process, Failed> {
        let program = std::env::current_exe()?;
        let mut command = Command::new(program);
        let child = command.args(arguments).stdin(Stdio::null()).spawn()?;
        Ok(Process(child))
    }

    fn kill(&mut self) {
        // Dead already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Processor time and memory that a process has taken so far.
fn usage(pid: u32) -> Result<(Duration, u64), Failed> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit(") ").next().ok_or("stat")?;
    let fields: Vec<&str> = after_name.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: u64 = statm.split(' ').nth(1).ok_or("statm")?.parse()?;
    Ok((Duration::from_millis(10 * ticks), pages * 4_096))
}

/// What the broker counts, each second, and who leads.
#[derive(Clone, Default)]
struct Counts(Arc<Mutex<std::collections::BTreeMap<String, String>>>);

impl Counts {
    async fn follow(self, url: String) -> Result<(), Failed> {
        let (_publisher, mut events) =
            mqtt::connect(Options::new(url.parse::<BrokerUrl>()?), |epoch| {
                SessionSetup {
                    client_id: format!("counts-{}", epoch.0),
                    will: None,
                    subscriptions: vec![
                        ("$SYS/broker/#".to_owned(), Qos::AtMostOnce),
                        (format!("raft/{CLUSTER}/leader"), Qos::AtMostOnce),
                    ],
                }
            })?;
        while let Some(event) = events.next().await {
            if let Event::Message(message) = event {
                let value = String::from_utf8_lossy(&message.payload).into_owned();
                self.0
                    .lock()
                    .expect("unpoisoned")
                    .insert(message.topic, value);
            }
        }
        Ok(())
    }

    fn number(&self, topic: &str) -> u64 {
        let counts = self.0.lock().expect("unpoisoned");
        let value = counts.get(&format!("$SYS/broker/{topic}"));
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    fn leader(&self) -> Option<usize> {
        let counts = self.0.lock().expect("unpoisoned");
        let hint = counts.get(&format!("raft/{CLUSTER}/leader"))?;
        VOTERS
            .iter()
            .position(|id| hint.contains(&format!("\"leader\":\"{id}\"")))
    }
}

fn nodes() -> KeyRange {
    KeyRange::Prefix("_/node/".into())
}

async fn agreed(kv: &Kv) -> Result<(u64, u64), Failed> {
    let request = RangeRequest {
        count_only: true,
        ..RangeRequest::all(nodes())
    };
    let reading = kv.range(request).await?;
    Ok((reading.count.unwrap_or(0), reading.revision))
}

/// Waits until so many are agreed on; how long it took.
async fn until_agreed(kv: &Kv, count: usize) -> Result<Duration, Failed> {
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        if agreed(kv)
            .await
            .is_ok_and(|(there, _)| there == count as u64)
        {
            return Ok(since.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(format!("{:?} of {count} after {PATIENCE:?}", agreed(kv).await?).into())
}

/// Waits until the node is written off; how long it took, and who else was.
async fn until_gone(watch: &mut Watch, who: &str) -> Result<(Duration, BTreeSet<String>), Failed> {
    let (since, mut others) = (Instant::now(), BTreeSet::new());
    loop {
        let event = tokio::time::timeout(PATIENCE, watch.next()).await??;
        let KeyEvent::Delete { key, .. } = event else {
            continue;
        };
        let name = String::from_utf8_lossy(&key).replace("_/node/", "");
        if name == who {
            return Ok((since.elapsed(), others));
        }
        others.insert(name);
    }
}

async fn measure(count: usize) -> Result<(), Failed> {
    let mut mosquitto = Mosquitto::builder()
        .nodelay(true)
        .persistence(true)
        .line("log_type none")
        .line("sys_interval 1")
        .line("max_queued_messages 0")
        .start();
    let url = mosquitto.url();
    let dir = testkit::temp_dir();
    let counts = Counts::default();
    tokio::spawn({
        let (counts, url) = (counts.clone(), url.clone());
        async move {
            if let Err(error) = counts.follow(url).await {
                eprintln!("counts: {error}");
            }
        }
    });
    let mut voters = Vec::new();
    for id in VOTERS {
        let data = dir.path().join(id);
        let data = data.to_str().ok_or("a path")?;
        voters.push(Process::start(&["node", &url, id, data])?);
    }
    let client = Client::connect(Mqtt::new(&url)?, "raft", CLUSTER, key(), PATIENCE).await?;
    let kv = client.kv();
    until_agreed(&kv, VOTERS.len()).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let leader = counts.leader().ok_or("nobody leads")?;
    let leader = voters[leader].0.id();
    let (cpu, rss) = usage(leader)?;
    println!("{count} observers, 3 voters, one Mosquitto");
    println!("before          leader RSS {} MiB", rss >> 20);

    // They join.
    let (received, sent) = totals(&counts);
    let (_, revision) = agreed(&kv).await?;
    let mut fleet = Vec::new();
    for from in (0..count).step_by(IN_ONE) {
        let to = count.min(from + IN_ONE);
        let (from, to) = (from.to_string(), to.to_string());
        fleet.push(Process::start(&["observers", &url, &from, &to])?);
    }
    let took = until_agreed(&kv, VOTERS.len() + count).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (cpu_after, rss) = usage(leader)?;
    let (received_after, sent_after) = totals(&counts);
    let (_, revision_after) = agreed(&kv).await?;
    println!(
        "join            all agreed on after {:.1} s in {} entries; {:.1} publishes each into the broker, {:.1} out of it; leader {:.1} s of CPU, RSS {} MiB",
        took.as_secs_f64(),
        revision_after - revision,
        (received_after - received) as f64 / count as f64,
        (sent_after - sent) as f64 / count as f64,
        (cpu_after - cpu).as_secs_f64(),
        rss >> 20,
    );

    // All is quiet.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (cpu, _) = usage(leader)?;
    let (broker_cpu, _) = usage(mosquitto.pid())?;
    let (received, sent) = totals(&counts);
    let (_, revision) = agreed(&kv).await?;
    tokio::time::sleep(STEADY).await;
    let (cpu_after, rss) = usage(leader)?;
    let (broker_cpu_after, broker_rss) = usage(mosquitto.pid())?;
    let (received_after, sent_after) = totals(&counts);
    let (_, revision_after) = agreed(&kv).await?;
    let seconds = STEADY.as_secs_f64();
    println!(
        "quiet, 60 s     {:.1} publishes/s into the broker, {:.1} out of it, {} entries; leader {:.2} % of a core, RSS {} MiB; broker {:.2} %, {} MiB",
        (received_after - received) as f64 / seconds,
        (sent_after - sent) as f64 / seconds,
        revision_after - revision,
        100.0 * (cpu_after - cpu).as_secs_f64() / seconds,
        rss >> 20,
        100.0 * (broker_cpu_after - broker_cpu).as_secs_f64() / seconds,
        broker_rss >> 20,
    );

    // One dies.
    let lone = |n: usize| {
        let (from, to) = (n.to_string(), (n + 1).to_string());
        Process::start(&["observers", &url, &from, &to])
    };
    let mut deaths = Vec::new();
    for n in 0..5 {
        let mut one = lone(90_000 + n)?;
        until_agreed(&kv, VOTERS.len() + count + 1).await?;
        let (_, revision) = agreed(&kv).await?;
        let mut watch = kv.watch(nodes(), revision + 1);
        one.kill();
        let (took, others) = until_gone(&mut watch, &format!("o{}", 90_000 + n)).await?;
        assert!(others.is_empty(), "nobody else died: {others:?}");
        deaths.push(took);
    }
    deaths.sort();
    println!(
        "kill -9 of one  known to a client after {:.1} ms at the median of 5, {:.1} at most",
        deaths[2].as_secs_f64() * 1e3,
        deaths[4].as_secs_f64() * 1e3
    );

    // The broker restarts, and one dies with it.
    let mut one = lone(95_000)?;
    until_agreed(&kv, VOTERS.len() + count + 1).await?;
    let (_, revision) = agreed(&kv).await?;
    let mut watch = kv.watch(nodes(), revision + 1);
    let (cpu, _) = usage(leader)?;
    mosquitto.kill();
    one.kill();
    tokio::time::sleep(Duration::from_secs(2)).await;
    mosquitto.restart();
    let (took, others) = until_gone(&mut watch, "o95000").await?;
    let settled = until_agreed(&kv, VOTERS.len() + count).await?;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let (there, _) = agreed(&kv).await?;
    let (cpu_after, rss) = usage(leader)?;
    let (received, sent) = totals(&counts);
    println!(
        "broker restart  the one that died with it written off after {:.1} s, {} others; {} there after {:.1} s, {there} half a minute later; {received} publishes into the broker, {sent} out of it; leader {:.1} s of CPU, RSS {} MiB",
        took.as_secs_f64(),
        others.len(),
        VOTERS.len() + count,
        (took + settled).as_secs_f64(),
        (cpu_after - cpu).as_secs_f64(),
        rss >> 20,
    );
    Ok(())
}

/// How many publishes the broker has received and sent.
fn totals(counts: &Counts) -> (u64, u64) {
    (
        counts.number("publish/messages/received"),
        counts.number("publish/messages/sent"),
    )
}
