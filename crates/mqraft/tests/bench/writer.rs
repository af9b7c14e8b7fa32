//! A client that writes without pause, to whom nothing may fail.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use raft_over_mqtt::{KeyFile, KeyRing, Mqtt, Remote};

use super::{Bench, PATIENCE};

/// Writes `key-0`, `key-1` and so on, one after the other, until it is stopped. Any failure is one of
/// the test.
pub struct Writer {
    acknowledged: Arc<AtomicU64>,
    /// How long the longest write took, in microseconds.
    pub longest: Arc<AtomicU64>,
    keys: mpsc::Sender<KeyRing>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub fn start(bench: &Bench) -> Writer {
        Writer::from(bench, 0)
    }

    pub fn from(bench: &Bench, first: u64) -> Writer {
        Writer::at(bench, first, KeyRing::insecure())
    }

    pub fn with_key(bench: &Bench, key: &Path) -> Writer {
        Writer::at(bench, 0, ring(key))
    }

    pub fn at(bench: &Bench, first: u64, ring: KeyRing) -> Writer {
        let mqtt = Mqtt::new(&bench.url()).expect("a URL");
        let (keys, new_keys) = mpsc::channel();
        let acknowledged = Arc::new(AtomicU64::new(first));
        let stop = Arc::new(AtomicBool::new(false));
        let longest = Arc::new(AtomicU64::new(0));
        let slowest = Arc::clone(&longest);
        let (written, stopped) = (Arc::clone(&acknowledged), Arc::clone(&stop));
        let write = async move || {
            let connected = Remote::connect(mqtt, "raft", "default", ring, PATIENCE).await;
            let mut remote = connected.expect("a broker");
            for n in first.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                if let Ok(keys) = new_keys.try_recv() {
                    remote.set_keys(keys).expect("keys");
                }
                let begun = Instant::now();
                let put = remote.put(key(n), value(n)).await;
                let took = begun.elapsed().as_micros() as u64;
                put.unwrap_or_else(|error| panic!("write {n} failed: {error}"));
                slowest.fetch_max(took, Ordering::Relaxed);
                written.store(n + 1, Ordering::Relaxed);
            }
            remote.close().await;
        };
        let thread = std::thread::spawn(move || runtime().block_on(write()));
        Writer {
            acknowledged,
            longest,
            keys,
            stop,
            thread: Some(thread),
        }
    }

    /// Goes on with the keys of this file.
    pub fn set_key(&self, file: &Path) {
        self.keys.send(ring(file)).expect("it runs");
    }

    /// How many keys have been acknowledged, from the first on.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Stops after the write under way, and tells how many there were.
    pub fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it runs");
        thread.join().expect("no write failed");
        self.acknowledged()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

pub fn ring(file: &Path) -> KeyRing {
    let text = fs::read_to_string(file).expect("a key file");
    KeyFile::parse(&text).expect("a key file").ring()
}

pub fn key(n: u64) -> String {
    format!("key-{n}")
}

pub fn value(n: u64) -> Vec<u8> {
    format!("{n} ").repeat(400).into_bytes()
}

pub fn runtime() -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime")
}

/// Every one of these keys has its value.
#[track_caller]
pub fn assert_holds(bench: &Bench, keys: std::ops::Range<u64>) {
    let mqtt = Mqtt::new(&bench.url()).expect("a URL");
    runtime().block_on(async {
        let connected = Remote::connect(mqtt, "raft", "default", None, PATIENCE).await;
        let mut remote = connected.expect("a broker");
        for n in keys {
            let reading = remote.get(key(n)).await.expect("an answer");
            let held = reading.value.map(|value| value.0.to_vec());
            assert_eq!(held, Some(value(n)), "{}", key(n));
        }
    });
}
