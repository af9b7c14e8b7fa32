//! The floor: what broker and disk take when there is no cluster above them.
//!
//! The same sessions as a node's, through the same broker, with payloads of the same size and files in
//! the same directory; no terms, no sealing, no state, and nothing is repeated. A *commit* is what
//! consensus cannot do without:
//!
//! ```text
//! leader (here)               broker                    followers, a thread each
//!   │ append ────────────────────▶│──────────▶│──────────▶ write, fdatasync
//!   │ write, fdatasync            │           │                │
//!   │◀────────────────────────────│◀──────────┴───── ack ──────┘
//!   ▼ its own sync, and as many acknowledgements as make a majority
//! ```
//!
//! An *asked* commit is one that a third party asks for: one way more on either side.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use raft_over_mqtt::{Mqtt, Probe, Probed};
use tokio::sync::oneshot;

use super::samples::Samples;
use super::thread::{Ready, Thread, cannot_start, gone};
use crate::exit::{Exit, Failure};

/// What is written goes into blocks that exist, as a node's log does: no sync carries a new length.
const FILE_BYTES: u64 = 4 << 20;

/// Bytes in one batch at most: what a node puts into one frame.
pub(super) const BATCH_BYTES: usize = 64 << 10;

/// How much may be on its way there and back: a session's queue takes no more, and a broker that has to
/// queue drops.
const IN_FLIGHT: usize = 512;
const IN_FLIGHT_BYTES: usize = 4 << 20;

/// The name of whoever leads here, and of whoever leads for those that ask.
const HERE: &str = "here";
const RELAY: &str = "relay";

/// Sessions, threads and files; ended when dropped.
pub(super) struct Floor {
    lead: Lead,
    _threads: Vec<Thread>,
}

impl Floor {
    /// Starts what `voters` voters need.
    ///
    /// # Errors
    /// When a session or a file cannot be had.
    pub(super) async fn start(
        mqtt: &Mqtt,
        root: &str,
        dir: &Path,
        voters: usize,
        timeout: Duration,
    ) -> Result<Floor, Failure> {
        let place = Place {
            mqtt: mqtt.clone(),
            topics: format!("{root}/floor"),
            dir: dir.to_owned(),
            quorum: voters / 2 + 1,
            timeout,
        };
        let mut threads = Vec::new();
        for number in 1..voters.max(2) {
            let place = place.clone();
            threads
                .push(Thread::start(async move |ready| follow(place, number, ready).await).await?);
        }
        let relayed = place.clone();
        threads.push(Thread::start(async move |ready| relay(relayed, ready).await).await?);
        let filters = ["echoed", "answer"];
        Ok(Floor {
            lead: Lead::start(&place, HERE, &filters).await?,
            _threads: threads,
        })
    }

    /// A write and a sync of so many bytes.
    pub(super) async fn sync(&mut self, size: usize) -> Result<Duration, Failure> {
        let synced = self.lead.disk.write(vec![0xa5; size].into());
        synced.await.map_err(|_| gone())?.map_err(|e| disk(&e))
    }

    /// A publish to another session and back.
    pub(super) async fn echo(&mut self, payload: &Bytes) -> Result<Duration, Failure> {
        let started = Instant::now();
        self.lead.publish("echo", payload.clone())?;
        self.lead.await_on("/echoed").await?;
        Ok(started.elapsed())
    }

    /// One publish after the other for so long, `in_flight` of them under way, or as many as can be; how
    /// many a second came back.
    pub(super) async fn echoes(
        &mut self,
        payload: &Bytes,
        in_flight: usize,
        time: Duration,
    ) -> Result<f64, Failure> {
        let most = (IN_FLIGHT_BYTES / payload.len().max(1)).clamp(1, IN_FLIGHT);
        let in_flight = in_flight.min(most);
        let started = Instant::now();
        for _ in 0..in_flight {
            self.lead.publish("echo", payload.clone())?;
        }
        let mut back = 0_u64;
        while started.elapsed() < time {
            self.lead.await_on("/echoed").await?;
            back += 1;
            self.lead.publish("echo", payload.clone())?;
        }
        let rate = back as f64 / started.elapsed().as_secs_f64();
        for _ in 0..in_flight {
            self.lead.await_on("/echoed").await?;
        }
        Ok(rate)
    }

    /// A commit, as the module draws it.
    pub(super) async fn commit(&mut self, payload: &Bytes) -> Result<Duration, Failure> {
        self.lead.commit(payload).await
    }

    /// A commit that another session leads, which is asked for it and answers.
    pub(super) async fn asked(&mut self, payload: &Bytes) -> Result<Duration, Failure> {
        let started = Instant::now();
        self.lead.publish("ask", payload.clone())?;
        self.lead.await_on("/answer").await?;
        Ok(started.elapsed())
    }

    /// Commits of `batch` payloads in one publish and one sync, one batch under way; how many payloads
    /// a second, and how long each batch took.
    pub(super) async fn batches(
        &mut self,
        payload: &Bytes,
        batch: usize,
        time: Duration,
    ) -> Result<(f64, Samples), Failure> {
        let payload = Bytes::from(payload.repeat(batch));
        let (started, mut samples, mut done) = (Instant::now(), Samples::default(), 0);
        while started.elapsed() < time {
            samples.add(self.commit(&payload).await?);
            done += batch;
        }
        Ok((done as f64 / started.elapsed().as_secs_f64(), samples))
    }
}

/// Where the floor is measured.
#[derive(Clone)]
struct Place {
    mqtt: Mqtt,
    topics: String,
    dir: PathBuf,
    quorum: usize,
    timeout: Duration,
}

impl Place {
    fn topic(&self, last: &str) -> String {
        format!("{}/{last}", self.topics)
    }

    async fn connect(&self, filters: &[String]) -> Result<Probe, Failure> {
        let filters: Vec<_> = filters.iter().map(|last| self.topic(last)).collect();
        Ok(Probe::connect(self.mqtt.clone(), &filters, self.timeout).await?)
    }
}

/// Who publishes what is to be committed.
struct Lead {
    place: Place,
    name: &'static str,
    probe: Probe,
    disk: Disk,
    number: u64,
}

impl Lead {
    async fn start(place: &Place, name: &'static str, hears: &[&str]) -> Result<Lead, Failure> {
        let mut filters = vec![format!("ack/{name}/+")];
        filters.extend(hears.iter().map(|&last| last.to_owned()));
        Ok(Lead {
            probe: place.connect(&filters).await?,
            disk: Disk::start(&place.dir.join(format!("floor-{name}")))?,
            place: place.clone(),
            name,
            number: 0,
        })
    }

    fn publish(&self, last: &str, payload: Bytes) -> Result<(), Failure> {
        Ok(self.probe.publish(&self.place.topic(last), payload)?)
    }

    async fn next(&mut self) -> Result<Probed, Failure> {
        let timeout = self.place.timeout;
        match tokio::time::timeout(timeout, self.probe.next()).await {
            Ok(message) => Ok(message?),
            Err(_) => Err(Failure::new(
                Exit::NoAnswer,
                format!("the broker did not deliver a message of the floor within {timeout:?}"),
            )),
        }
    }

    async fn await_on(&mut self, last: &str) -> Result<Bytes, Failure> {
        loop {
            let message = self.next().await?;
            if message.topic.ends_with(last) {
                return Ok(message.payload);
            }
        }
    }

    async fn commit(&mut self, payload: &Bytes) -> Result<Duration, Failure> {
        let started = Instant::now();
        self.number += 1;
        let mut record = BytesMut::with_capacity(8 + payload.len());
        record.put_u64(self.number);
        record.put_slice(payload);
        let record = record.freeze();
        let mut missing = self.place.quorum - 1;
        if missing > 0 {
            self.publish(&format!("append/{}", self.name), record.clone())?;
        }
        let synced = self.disk.write(record);
        while missing > 0 {
            let acknowledged = self.await_ack().await?;
            // The slower followers speak of an earlier record.
            missing -= usize::from(acknowledged == self.number);
        }
        synced.await.map_err(|_| gone())?.map_err(|e| disk(&e))?;
        Ok(started.elapsed())
    }

    async fn await_ack(&mut self) -> Result<u64, Failure> {
        loop {
            let Probed { topic, payload } = self.next().await?;
            if topic.contains("/ack/")
                && let Ok(number) = <[u8; 8]>::try_from(&*payload)
            {
                return Ok(u64::from_be_bytes(number));
            }
        }
    }
}

/// Syncs what is appended, says so, and sends back what is to be sent back.
async fn follow(place: Place, number: usize, ready: Ready) -> Result<(), Failure> {
    let mut filters = vec!["append/+".to_owned()];
    if number == 1 {
        filters.push("echo".to_owned());
    }
    let mut log = Log::create(&place.dir.join(format!("floor-{number}"))).map_err(|e| disk(&e))?;
    let mut probe = place.connect(&filters).await?;
    ready.say();
    let echoed = place.topic("echoed");
    loop {
        let Probed { topic, payload } = probe.next().await?;
        match (topic.rsplit_once("/append/"), payload.split_at_checked(8)) {
            (Some((_, from)), Some((record, _))) => {
                log.append(&payload).map_err(|e| disk(&e))?;
                let ack = place.topic(&format!("ack/{from}/{number}"));
                probe.publish(&ack, record.to_vec())?;
            }
            _ => probe.publish(&echoed, payload)?,
        }
    }
}

/// Commits what it is asked to, and answers.
async fn relay(place: Place, ready: Ready) -> Result<(), Failure> {
    let mut lead = Lead::start(&place, RELAY, &["ask"]).await?;
    ready.say();
    loop {
        let message = lead.probe.next().await?;
        if message.topic.ends_with("/ask") {
            lead.commit(&message.payload).await?;
            lead.publish("answer", message.payload)?;
        }
    }
}

/// A thread that writes and syncs, beside whoever waits for the broker.
struct Disk {
    writes: std::sync::mpsc::Sender<(Bytes, oneshot::Sender<io::Result<Duration>>)>,
}

impl Disk {
    fn start(path: &Path) -> Result<Disk, Failure> {
        let mut log = Log::create(path).map_err(|e| disk(&e))?;
        let (writes, queue) = std::sync::mpsc::channel::<(Bytes, oneshot::Sender<_>)>();
        let thread = std::thread::Builder::new().spawn(move || {
            for (record, done) in queue {
                let _ = done.send(log.append(&record));
            }
        });
        thread.map_err(|error| cannot_start(&error))?;
        Ok(Disk { writes })
    }

    /// How long the write and the sync take.
    fn write(&self, record: Bytes) -> oneshot::Receiver<io::Result<Duration>> {
        let (done, is_done) = oneshot::channel();
        // Its end is told by the end of `done`.
        let _ = self.writes.send((record, done));
        is_done
    }
}

/// A file of zeros that records are written over; at its end it starts over.
struct Log {
    file: File,
    end: u64,
}

impl Log {
    fn create(path: &Path) -> io::Result<Log> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).open(path)?;
        let zeros = vec![0; BATCH_BYTES];
        for at in (0..FILE_BYTES).step_by(BATCH_BYTES) {
            file.write_all_at(&zeros, at)?;
        }
        file.sync_all()?;
        Ok(Log { file, end: 0 })
    }

    fn append(&mut self, record: &[u8]) -> io::Result<Duration> {
        let started = Instant::now();
        let length = record.len() as u64;
        if self.end + length > FILE_BYTES {
            self.end = 0;
        }
        self.file.write_all_at(record, self.end)?;
        self.end += length;
        self.file.sync_data()?;
        Ok(started.elapsed())
    }
}

fn disk(error: &io::Error) -> Failure {
    Failure::new(
        Exit::Disk,
        format!("cannot write the floor's file: {error}"),
    )
}
