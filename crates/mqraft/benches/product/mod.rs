//! The product as its users have it: nodes, each with its own thread, session and disk, and clients
//! inside the leader's process, at a follower, or in processes of their own.

use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use raft_over_mqtt::{Client, ClusterKey, KeyRing, Kv, Mqtt, NodeBuilder, RaftNode};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

pub(crate) const VALUE: usize = 256;

/// In how many processes clients stand that share no process with a node.
const CLIENT_PROCESSES: usize = 4;

const CLUSTER: &str = "bench";

const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster on one broker; ended when dropped.
pub(crate) struct Cluster {
    runtime: Runtime,
    leader: RaftNode,
    followers: Vec<Follower>,
    url: String,
    frames: Frames,
}

/// How frames go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frames {
    Insecure,
    Sealed,
}

impl Frames {
    fn word(self) -> &'static str {
        match self {
            Frames::Insecure => "insecure",
            Frames::Sealed => "sealed",
        }
    }

    fn keys(self) -> Option<ClusterKey> {
        (self == Frames::Sealed).then(|| ClusterKey::from_bytes([7; 32]))
    }
}

/// A node with a thread of its own.
struct Follower {
    node: RaftNode,
    runtime: Handle,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Cluster {
    /// Starts so many nodes and waits until the one in this thread leads: it has the best metric.
    pub(crate) fn start(url: &str, dir: &Path, voters: usize, frames: Frames) -> Cluster {
        Cluster::start_on(&[url.to_owned()], dir, voters, frames)
    }

    /// The same on several brokers at once.
    pub(crate) fn start_on(urls: &[String], dir: &Path, voters: usize, frames: Frames) -> Cluster {
        Cluster::start_at([urls, urls], dir, voters, frames)
    }

    /// The same with addresses of the brokers for the leader and others for the other nodes.
    pub(crate) fn start_at(
        [own, urls]: [&[String]; 2],
        dir: &Path,
        voters: usize,
        frames: Frames,
    ) -> Cluster {
        let names: Vec<String> = (1..=voters).map(|n| format!("gw-{n}")).collect();
        let start = |id: &String| Follower::start(builder(urls, dir, id, 9.0, &names, frames));
        let followers = names[1..].iter().map(start).collect();
        let runtime = runtime();
        let first = builder(own, dir, &names[0], 1.0, &names, frames);
        let leader = runtime.block_on(first.start()).expect("a node");
        runtime.block_on(async {
            let mut status = leader.watch_status();
            let leads = status.wait_for(|status| status.leader.as_deref() == Some("gw-1"));
            tokio::time::timeout(PATIENCE, leads)
                .await
                .expect("the node with the best metric leads first")
                .expect("it runs");
        });
        Cluster {
            runtime,
            leader,
            followers,
            url: urls[0].clone(),
            frames,
        }
    }

    /// How long each of `commits` puts takes, one after the other.
    pub(crate) fn commit_latency(&self, commits: usize) -> Vec<Duration> {
        self.runtime
            .block_on(latencies(self.leader.clone(), commits))
    }

    /// The times between commits of one client at the leader that puts without pause.
    pub(crate) fn gaps(&self, duration: Duration) -> Vec<Duration> {
        let value = vec![b'x'; VALUE];
        let started = Instant::now();
        let (mut gaps, mut last) = (Vec::new(), started);
        self.runtime.block_on(async {
            while started.elapsed() < duration {
                let put = self.leader.put("door", value.clone());
                put.await.expect("a commit");
                let now = Instant::now();
                gaps.push(now - last);
                last = now;
            }
        });
        gaps
    }

    /// The same for a client in a follower's process.
    pub(crate) fn latency_at_follower(&self, commits: usize) -> Vec<Duration> {
        let follower = &self.followers[0];
        let all = follower
            .runtime
            .spawn(latencies(follower.node.clone(), commits));
        self.runtime
            .block_on(all)
            .expect("a client that does not panic")
    }

    /// Puts a second with `clients` of them under way at any time.
    pub(crate) fn throughput(&self, clients: usize, duration: Duration) -> f64 {
        self.stream(clients, duration).1
    }

    /// The same, with all puts that were made until the last had its answer.
    pub(crate) fn stream(&self, clients: usize, duration: Duration) -> (u64, f64) {
        let kv = self.leader.kv();
        self.runtime.block_on(stream(kv, 0..clients, duration))
    }

    /// The same from processes that reach the cluster over the broker like any other client.
    pub(crate) fn throughput_from_outside(&self, clients: usize, duration: Duration) -> f64 {
        let (sender, ended) = oneshot::channel();
        let (url, frames) = (self.url.clone(), self.frames.word());
        let children = move || {
            let each = clients / CLIENT_PROCESSES;
            let start = |_| {
                let mut child = Command::new(std::env::current_exe().expect("this program"));
                child
                    .args(["client", &url, frames, &each.to_string()])
                    .arg(duration.as_millis().to_string())
                    .stdout(Stdio::piped());
                child.spawn().expect("a client starts")
            };
            let children: Vec<_> = (0..CLIENT_PROCESSES).map(start).collect();
            let rates = children.into_iter().map(|child| {
                let said = child.wait_with_output().expect("a client ends").stdout;
                let rate = String::from_utf8(said).expect("text");
                rate.trim().parse::<f64>().expect("a rate")
            });
            let _ = sender.send(rates.sum());
        };
        std::thread::spawn(children);
        self.runtime.block_on(ended).expect("the clients' rates")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for follower in self.followers.drain(..) {
            let _ = follower.stop.send(());
            let _ = follower.thread.join();
        }
        let _ = self.runtime.block_on(self.leader.shutdown());
    }
}

impl Follower {
    fn start(builder: NodeBuilder) -> Follower {
        let (stop, stopped) = oneshot::channel();
        let (started, starts) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                let node = builder.start().await.expect("a node");
                let _ = started.send((node.clone(), Handle::current()));
                let _ = stopped.await;
                let _ = node.shutdown().await;
            });
        });
        let (node, runtime) = starts.recv().expect("a node that starts");
        Follower {
            node,
            runtime,
            stop,
            thread,
        }
    }
}

/// A process of nothing but clients: prints how many puts a second it made.
pub(crate) fn client(url: &str, frames: &str, clients: &str, millis: &str) {
    let both = [Frames::Insecure, Frames::Sealed];
    let frames = both.into_iter().find(|f| f.word() == frames);
    let keys = KeyRing::from(frames.expect("how frames go out").keys());
    let number = |word: &str| word.parse::<u64>().expect("a number");
    let (clients, duration) = (number(clients), Duration::from_millis(number(millis)));
    let rate = runtime().block_on(async {
        let mqtt = Mqtt::new(url).expect("a URL");
        let client = Client::connect(mqtt, "raft", CLUSTER, keys, PATIENCE).await;
        let kv = client.expect("a broker").kv();
        let first = std::process::id() as usize * 1_000;
        // The first finds the leader, and the others begin when it has.
        stream(kv.clone(), first..first + 1, Duration::from_millis(200)).await;
        stream(kv, first..first + clients as usize, duration)
            .await
            .1
    });
    println!("{rate}");
}

async fn latencies(node: RaftNode, commits: usize) -> Vec<Duration> {
    let value = vec![b'x'; VALUE];
    let mut latencies = Vec::with_capacity(commits);
    for number in 0..commits {
        let started = Instant::now();
        let key = format!("key-{}", number % 1_000);
        node.put(key, value.clone()).await.expect("a commit");
        latencies.push(started.elapsed());
    }
    latencies
}

/// Each of `clients` puts without pause: how many puts all made together, and how many a second.
async fn stream(kv: Kv, clients: Range<usize>, duration: Duration) -> (u64, f64) {
    let done = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for client in clients {
        let (kv, done, stop) = (kv.clone(), Arc::clone(&done), Arc::clone(&stop));
        tasks.push(tokio::spawn(async move {
            let key = format!("client-{client:02}");
            let value = vec![b'x'; VALUE];
            while !stop.load(Ordering::Relaxed) {
                kv.put(key.clone(), value.clone()).await.expect("a commit");
                done.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let started = Instant::now();
    tokio::time::sleep(duration).await;
    let rate = done.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("a client ends");
    }
    (done.load(Ordering::Relaxed), rate)
}

pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// A runtime that goes on while nobody waits in it.
pub(crate) fn background_runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
}

fn builder(
    urls: &[String],
    dir: &Path,
    id: &str,
    metric: f64,
    voters: &[String],
    frames: Frames,
) -> NodeBuilder {
    let mqtt = urls.iter().map(|url| Mqtt::new(url).expect("a URL"));
    let mqtt = mqtt.reduce(Mqtt::and).expect("a broker at least");
    let builder = RaftNode::initialize(mqtt, id)
        .cluster(CLUSTER)
        .voters(voters.iter().map(String::as_str))
        .data_dir(dir.join(id))
        .metric(metric);
    match frames.keys() {
        Some(key) => builder.cluster_key(key),
        None => builder.insecure(),
    }
}
