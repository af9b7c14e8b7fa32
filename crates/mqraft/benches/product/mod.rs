//! The product as its users have it: three nodes, each with its own thread, session and disk,
//! and clients inside the leader's process.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use raft_over_mqtt::{ClusterKey, Mqtt, RaftNode};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

const VALUE: usize = 256;

/// A cluster of three on one broker; ended when dropped.
pub(crate) struct Cluster {
    runtime: Runtime,
    leader: RaftNode,
    followers: Vec<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Cluster {
    /// Starts the nodes and waits until the one in this thread leads: it has the best metric.
    pub(crate) fn start(url: &str, dir: &Path, key: Option<&ClusterKey>) -> Cluster {
        let followers = ["gw-2", "gw-3"].map(|id| follower(url, dir, id, key.cloned()));
        let runtime = runtime();
        let leader = runtime.block_on(node(url, dir, "gw-1", 1.0, key));
        runtime.block_on(async {
            let mut status = leader.watch_status();
            let leads = status.wait_for(|status| status.leader.as_deref() == Some("gw-1"));
            tokio::time::timeout(Duration::from_secs(30), leads)
                .await
                .expect("the node with the best metric leads first")
                .expect("it runs");
        });
        Cluster {
            runtime,
            leader,
            followers: followers.into(),
        }
    }

    /// How long each of `commits` puts takes, one after the other.
    pub(crate) fn commit_latency(&self, commits: usize) -> Vec<Duration> {
        let value = vec![b'x'; VALUE];
        self.runtime.block_on(async {
            let mut latencies = Vec::with_capacity(commits);
            for number in 0..commits {
                let started = Instant::now();
                let key = format!("key-{}", number % 1_000);
                self.leader.put(key, value.clone()).await.expect("a commit");
                latencies.push(started.elapsed());
            }
            latencies
        })
    }

    /// Puts a second with `clients` of them under way at any time.
    pub(crate) fn throughput(&self, clients: usize, duration: Duration) -> f64 {
        let done = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        self.runtime.block_on(async {
            let mut tasks = Vec::new();
            for client in 0..clients {
                let (leader, done, stop) =
                    (self.leader.clone(), Arc::clone(&done), Arc::clone(&stop));
                tasks.push(tokio::spawn(async move {
                    let key = format!("client-{client}");
                    let value = vec![b'x'; VALUE];
                    while !stop.load(Ordering::Relaxed) {
                        leader
                            .put(key.clone(), value.clone())
                            .await
                            .expect("a commit");
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
            rate
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (stop, thread) in self.followers.drain(..) {
            let _ = stop.send(());
            let _ = thread.join();
        }
        let _ = self.runtime.block_on(self.leader.shutdown());
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

async fn node(url: &str, dir: &Path, id: &str, metric: f64, key: Option<&ClusterKey>) -> RaftNode {
    let builder = RaftNode::initialize(Mqtt::new(url).expect("a URL"), id)
        .cluster("bench")
        .voters(["gw-1", "gw-2", "gw-3"])
        .data_dir(dir.join(id))
        .metric(metric);
    let builder = match key {
        Some(key) => builder.cluster_key(key.clone()),
        None => builder.insecure(),
    };
    builder.start().await.expect("a node")
}

fn follower(
    url: &str,
    dir: &Path,
    id: &'static str,
    key: Option<ClusterKey>,
) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let (stop, stopped) = oneshot::channel();
    let (url, dir) = (url.to_owned(), dir.to_owned());
    let thread = std::thread::spawn(move || {
        runtime().block_on(async {
            let node = node(&url, &dir, id, 9.0, key.as_ref()).await;
            let _ = stopped.await;
            let _ = node.shutdown().await;
        });
    });
    (stop, thread)
}
