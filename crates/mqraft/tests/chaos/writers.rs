//! Clients that write all the time and remember what was acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use raft_over_mqtt::{ClusterKey, Error, Mqtt, Remote};

use crate::cluster::{CLUSTER, Cluster};

/// How long a writer waits for one answer.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Written>>,
}

/// What became of every write.
#[derive(Default)]
pub(crate) struct Written {
    acknowledged: Vec<String>,
    unknown: u64,
    unsent: u64,
    /// The counter key of a writer, the increments acknowledged, and those of unknown outcome.
    counters: Vec<(String, u64, u64)>,
}

impl Writers {
    pub(crate) fn start(cluster: &Cluster, count: usize) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let threads = (0..count)
            .map(|number| {
                let writer = Writer {
                    number,
                    mqtt: cluster.mqtt(),
                    key: cluster.key(),
                    stop: Arc::clone(&stop),
                    progress: Arc::clone(&acknowledged),
                };
                std::thread::spawn(move || writer.run())
            })
            .collect();
        Writers {
            stop,
            acknowledged,
            threads,
        }
    }

    /// Waits until something that was asked for from now on has been acknowledged.
    pub(crate) fn wait_for_progress(&self, deadline: Duration) -> bool {
        // Each writer has one request under way: one more than there are is surely a new one.
        let before = self.acknowledged.load(Ordering::Relaxed);
        let enough = before + self.threads.len() as u64 + 1;
        testkit::wait_for(deadline, || {
            self.acknowledged.load(Ordering::Relaxed) >= enough
        })
    }

    pub(crate) fn stop(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Written::default();
        for thread in self.threads {
            let written = thread.join().expect("a writer does not panic");
            all.acknowledged.extend(written.acknowledged);
            all.unknown += written.unknown;
            all.unsent += written.unsent;
            all.counters.extend(written.counters);
        }
        all
    }
}

impl Written {
    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    pub(crate) fn unknown(&self) -> u64 {
        self.unknown
    }

    pub(crate) fn unsent(&self) -> u64 {
        self.unsent
    }

    /// What was acknowledged and is not there: keys, and counters that are off.
    pub(crate) fn missing(&self, cluster: &Cluster) -> Vec<String> {
        let values = cluster.read(&self.acknowledged);
        let keys = self.acknowledged.iter().zip(values);
        let wrong = keys.filter(|(key, value)| value.as_deref() != Some(key.as_bytes()));
        let mut missing: Vec<String> = wrong.map(|(key, _)| key.clone()).collect();
        for (key, increments, unknown) in &self.counters {
            let value = cluster
                .read(std::slice::from_ref(key))
                .remove(0)
                .unwrap_or_default();
            let value: u64 = std::str::from_utf8(&value)
                .ok()
                .and_then(|v| v.parse().ok())
                .unwrap_or(0);
            if !(*increments..=increments + unknown).contains(&value) {
                missing.push(format!(
                    "{key} is {value}, not {increments} (+ up to {unknown})"
                ));
            }
        }
        missing
    }
}

/// Puts keys of its own one after the other, and moves a counter by compare-and-swap.
struct Writer {
    number: usize,
    mqtt: Mqtt,
    key: ClusterKey,
    stop: Arc<AtomicBool>,
    progress: Arc<AtomicU64>,
}

impl Writer {
    fn run(self) -> Written {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(self.write())
    }

    async fn write(self) -> Written {
        let mut written = Written::default();
        let counter = format!("counter-{}", self.number);
        let (mut increments, mut unknown_increments) = (0, 0);
        let mut remote = self.connect().await;
        let mut n = 0u64;
        while !self.stop.load(Ordering::Relaxed) {
            n += 1;
            if n.is_multiple_of(8) {
                match increment(&mut remote, &counter).await {
                    Ok(true) => increments += 1,
                    Ok(false) => {}
                    Err(Error::Unknown(_)) => unknown_increments += 1,
                    Err(Error::TimedOut(_)) => {}
                    Err(error) => panic!("{error}"),
                }
                continue;
            }
            let key = format!("writer-{}-{n}", self.number);
            match remote.put(key.clone(), key.clone()).await {
                Ok(_) => {
                    written.acknowledged.push(key);
                    self.progress.fetch_add(1, Ordering::Relaxed);
                }
                Err(Error::Unknown(_)) => written.unknown += 1,
                // No leader was found in time: it was never sent.
                Err(Error::TimedOut(_)) => written.unsent += 1,
                Err(error) => panic!("{error}"),
            }
        }
        remote.close().await;
        written
            .counters
            .push((counter, increments, unknown_increments));
        written
    }

    async fn connect(&self) -> Remote {
        let key = Some(self.key.clone());
        Remote::connect(self.mqtt.clone(), "raft", CLUSTER, key, PATIENCE)
            .await
            .expect("a session with the broker")
    }
}

/// Adds one; false if someone else was faster, which no one is.
async fn increment(remote: &mut Remote, key: &str) -> Result<bool, Error> {
    let held = remote.get(key.to_owned()).await?.value.map(|value| value.0);
    let text = held
        .as_deref()
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let next = text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) + 1;
    let written = remote
        .compare_and_swap(key.to_owned(), held, Some(next.to_string().into()))
        .await?;
    Ok(written.applied)
}
