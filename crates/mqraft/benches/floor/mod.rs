//! The floor below every commit over a broker: what the sockets, the broker and the disks cost
//! when there is no Raft at all.
//!
//! A leader and two followers exchange hand-encoded MQTT 3.1.1 at QoS 0 over raw TCP. Each has a
//! preallocated file and puts a record on disk before it speaks of it:
//!
//! ```text
//! leader                      broker                    followers 1 and 2
//!   │ publish rpc/all/l ────────▶│──────────▶│──────────▶ write, fdatasync
//!   │ write, fdatasync           │           │                 │
//!   │◀───────────────────────────│◀──────────┴── publish rpc/l/1, rpc/l/2
//!   ▼ committed: our own sync and one acknowledgement, two of three
//! ```
//!
//! A client at a follower asks the leader and is told when the record is committed:
//!
//! ```text
//! follower 1 ── publish rpc/l/1 ─▶ broker ─▶ leader: as above ── publish rpc/1/l ─▶ broker ─▶ follower 1
//! ```
//!
//! Whoever finds several records waiting writes them all and syncs once, as the product does.
//! There are no terms, no checksums, no sealing, no catch-up: a lost record ends the run. So the
//! figures are a bound to compare with, never a promise. The sockets are in [`wire`], the files
//! in [`disk`].

mod disk;
pub(crate) mod wire;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use disk::Log;
use wire::Link;

/// Bytes of an entry; a record is one or more of them. The first eight number the record.
const ENTRY_BYTES: usize = 256;

const RECORDS: &str = "rpc/all/l";
/// Acknowledgements and requests: a request is as long as an entry.
const ACKS: &str = "rpc/l/";
const ANSWERS: &str = "rpc/1/l";

const FOLLOWERS: usize = 2;

/// Commits made before the clock counts: connections, caches and branch predictors settle.
const WARM_UP_COMMITS: usize = 200;
const WARM_UP: Duration = Duration::from_millis(300);

/// A commit needs only the faster follower. The slower one may be this many records behind, so
/// that the broker's queue for it stays far below the 1,000 messages where Mosquitto drops.
const LAG_LIMIT: u64 = 64;

/// The time from each publish to its commit, one entry at a time, in the order of the commits.
///
/// # Panics
///
/// If the broker or the disk fails, or the broker drops a record.
pub(crate) fn commit_latency(broker: SocketAddr, dir: &Path, commits: usize) -> Vec<Duration> {
    with_leader(broker, dir, |leader| {
        let record = vec![0xA5; ENTRY_BYTES];
        for _ in 0..WARM_UP_COMMITS {
            leader.commit(&record)?;
        }
        (0..commits).map(|_| leader.commit(&record)).collect()
    })
    .expect("the floor's commits")
}

/// The time from each request that follower 1 makes to the answer that it is committed, one at a time.
///
/// # Panics
///
/// As [`commit_latency`].
pub(crate) fn latency_at_follower(broker: SocketAddr, dir: &Path, commits: usize) -> Vec<Duration> {
    let serve = || -> io::Result<Vec<Duration>> {
        let mut leader = Leader::new(broker, dir)?;
        let mut asking = Follower::new(broker, dir, 1)?;
        asking.link.subscribe(ANSWERS)?;
        let other = Follower::new(broker, dir, 2)?;
        thread::scope(|scope| {
            let serving = scope.spawn(move || {
                leader.serve(WARM_UP_COMMITS + commits)?;
                Ok::<_, io::Error>(leader)
            });
            let other = scope.spawn(move || other.run());
            let request = vec![0xA5; ENTRY_BYTES];
            let latencies: io::Result<Vec<Duration>> = (0..WARM_UP_COMMITS + commits)
                .map(|_| asking.ask(&request))
                .collect();
            let mut leader = serving.join().expect("a leader that does not panic")?;
            // Not before the last answer has been read.
            leader.dismiss_followers()?;
            other.join().expect("a follower that does not panic")?;
            Ok(latencies?.split_off(WARM_UP_COMMITS))
        })
    };
    serve().expect("the floor's commits at a follower")
}

/// Entries committed per second, `batch` entries a publish and up to `in_flight` publishes not
/// yet committed.
///
/// # Panics
///
/// As [`commit_latency`].
pub(crate) fn throughput(
    broker: SocketAddr,
    dir: &Path,
    batch: usize,
    in_flight: usize,
    duration: Duration,
) -> f64 {
    let in_flight = u64::try_from(in_flight).expect("a window that fits 64 bits");
    let records_per_second = with_leader(broker, dir, |leader| {
        let record = vec![0xA5; batch * ENTRY_BYTES];
        leader.stream(&record, in_flight, WARM_UP)?;
        leader.stream(&record, in_flight, duration)
    });
    records_per_second.expect("the floor's stream") * batch as f64
}

/// Runs `work` with both followers following, and ends them.
fn with_leader<T>(
    broker: SocketAddr,
    dir: &Path,
    work: impl FnOnce(&mut Leader) -> io::Result<T>,
) -> io::Result<T> {
    let mut leader = Leader::new(broker, dir)?;
    let followers = (1..=FOLLOWERS)
        .map(|number| Follower::new(broker, dir, number))
        .collect::<io::Result<Vec<_>>>()?;
    thread::scope(|scope| {
        let followers: Vec<_> = followers
            .into_iter()
            .map(|follower| scope.spawn(move || follower.run()))
            .collect();
        let result = work(&mut leader);
        leader.dismiss_followers()?;
        for follower in followers {
            follower.join().expect("a follower that does not panic")?;
        }
        result
    })
}

struct Leader {
    link: Link,
    log: Log,
    record: Vec<u8>,
    /// The highest record number published, on our disk, and acknowledged by each follower.
    /// Records count from one.
    published: u64,
    synced: u64,
    acked: [u64; FOLLOWERS],
    /// Follower 1 has asked for this.
    asked: bool,
    request: Vec<u8>,
}

impl Leader {
    fn new(broker: SocketAddr, dir: &Path) -> io::Result<Self> {
        let mut link = Link::connect(broker, "floor-l")?;
        link.subscribe(&format!("{ACKS}+"))?;
        Ok(Self {
            link,
            log: Log::preallocate(&dir.join("floor-l"))?,
            record: Vec::new(),
            published: 0,
            synced: 0,
            acked: [0; FOLLOWERS],
            asked: false,
            request: vec![0; ENTRY_BYTES],
        })
    }

    /// Commits one record and returns how long that took.
    fn commit(&mut self, record: &[u8]) -> io::Result<Duration> {
        let start = Instant::now();
        self.publish(record)?;
        self.sync()?;
        while self.committed() < self.published {
            self.receive_acks()?;
        }
        Ok(start.elapsed())
    }

    /// Keeps `in_flight` records on their way for `duration`; returns commits per second.
    fn stream(&mut self, record: &[u8], in_flight: u64, duration: Duration) -> io::Result<f64> {
        let start = Instant::now();
        let committed_before = self.committed();
        while start.elapsed() < duration {
            while self.published - self.committed() < in_flight && self.lag() < LAG_LIMIT {
                self.publish(record)?;
            }
            self.sync()?;
            self.receive_acks()?;
        }
        let commits = self.committed() - committed_before;
        Ok(commits as f64 / start.elapsed().as_secs_f64())
    }

    /// Publishes before it writes: the followers' syncs then run beside our own.
    fn publish(&mut self, record: &[u8]) -> io::Result<()> {
        self.published += 1;
        self.record.clear();
        self.record.extend_from_slice(record);
        self.record[..8].copy_from_slice(&self.published.to_be_bytes());
        self.link.publish(RECORDS, &self.record)?;
        self.log.write(&self.record)
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.synced < self.published {
            self.log.sync()?;
            self.synced = self.published;
        }
        Ok(())
    }

    /// Commits the records that follower 1 asks for, one at a time, and tells it of each.
    fn serve(&mut self, requests: usize) -> io::Result<()> {
        let mut record = vec![0; ENTRY_BYTES];
        for _ in 0..requests {
            while !std::mem::take(&mut self.asked) {
                self.receive_acks()?;
            }
            record.copy_from_slice(&self.request);
            self.commit(&record)?;
            self.link.publish(ANSWERS, &self.published.to_be_bytes())?;
        }
        Ok(())
    }

    /// Waits for bytes and takes every acknowledgement and request in them.
    fn receive_acks(&mut self) -> io::Result<()> {
        self.link.receive()?;
        while let Some(ack) = self.link.next_publish() {
            if ack.payload.len() == ENTRY_BYTES {
                self.asked = true;
                self.request.copy_from_slice(ack.payload);
                continue;
            }
            let acked = number_of(ack.payload);
            assert!(
                acked <= self.published,
                "an acknowledgement of another run: {acked}"
            );
            self.acked[follower_of(ack.topic) - 1] = acked;
        }
        Ok(())
    }

    fn committed(&self) -> u64 {
        let fastest = self.acked.into_iter().max().unwrap_or(0);
        self.synced.min(fastest)
    }

    fn lag(&self) -> u64 {
        let slowest = self.acked.into_iter().min().unwrap_or(0);
        self.published - slowest
    }

    fn dismiss_followers(&mut self) -> io::Result<()> {
        self.link.publish(RECORDS, &[])
    }
}

/// What came last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Records,
    Answer,
    End,
}

struct Follower {
    link: Link,
    log: Log,
    ack_topic: String,
    last: u64,
}

impl Follower {
    fn new(broker: SocketAddr, dir: &Path, number: usize) -> io::Result<Self> {
        let mut link = Link::connect(broker, &format!("floor-{number}"))?;
        link.subscribe(RECORDS)?;
        Ok(Self {
            link,
            log: Log::preallocate(&dir.join(format!("floor-{number}")))?,
            ack_topic: format!("{ACKS}{number}"),
            last: 0,
        })
    }

    /// Follows until the leader publishes an empty record.
    fn run(mut self) -> io::Result<()> {
        while self.turn()? != Heard::End {}
        Ok(())
    }

    /// Asks for a commit and returns how long it took until the answer.
    fn ask(&mut self, request: &[u8]) -> io::Result<Duration> {
        let start = Instant::now();
        self.link.publish(&self.ack_topic, request)?;
        while self.turn()? != Heard::Answer {}
        Ok(start.elapsed())
    }

    /// Waits for bytes, puts all records in them on disk and acknowledges those.
    fn turn(&mut self) -> io::Result<Heard> {
        self.link.receive()?;
        let before = self.last;
        let mut heard = Heard::Records;
        while let Some(message) = self.link.next_publish() {
            if message.topic == ANSWERS.as_bytes() {
                heard = Heard::Answer;
                continue;
            }
            if message.payload.is_empty() {
                return Ok(Heard::End);
            }
            let number = number_of(message.payload);
            assert_eq!(number, self.last + 1, "the broker dropped a record");
            self.log.write(message.payload)?;
            self.last = number;
        }
        if self.last > before {
            self.log.sync()?;
            self.link
                .publish(&self.ack_topic, &self.last.to_be_bytes())?;
        }
        Ok(heard)
    }
}

fn number_of(payload: &[u8]) -> u64 {
    let (number, _) = payload.split_first_chunk().expect("a numbered payload");
    u64::from_be_bytes(*number)
}

fn follower_of(topic: &[u8]) -> usize {
    let number = topic.strip_prefix(ACKS.as_bytes());
    match number {
        Some([digit @ b'1'..=b'9']) => usize::from(digit - b'0'),
        _ => panic!("not an acknowledgement: {}", topic.escape_ascii()),
    }
}
