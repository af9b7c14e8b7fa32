//! The thread that owns the disk: waits for writes, makes all that wait durable with one sync.

use std::sync::mpsc;
use std::thread::JoinHandle;

use bytes::Bytes;
use raft::{Persist, PersistSeq};
use store::{RealDisk, Store, WriteError};
use tokio::sync::mpsc::UnboundedSender;

/// What the thread is asked for.
enum Job {
    Persist(Vec<Persist>),
    Formation(Bytes),
}

/// What it reports.
pub(crate) enum Written {
    /// All writes up to this one are durable.
    Persisted(PersistSeq),
    /// The formation record is.
    Formation,
    /// Nothing more will be: the node must stop.
    Failed(WriteError),
}

/// The owner's end of the thread.
pub(crate) struct Writer {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread. Who asks bounds what waits in its queue: entries take at most
    /// [`raft::Options::max_unpersisted_bytes`], a leader's snapshots come one at a time, this
    /// node's own each after about as many applied bytes, and term and vote once an election.
    pub(crate) fn start(
        store: Store<RealDisk>,
        reports: UnboundedSender<Written>,
    ) -> std::io::Result<Writer> {
        let (jobs, queue) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("mqraft-disk".to_owned())
            .spawn(move || run(store, &queue, &reports))?;
        Ok(Writer {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    pub(crate) fn persist(&self, writes: Vec<Persist>) {
        self.send(Job::Persist(writes));
    }

    pub(crate) fn save_formation(&self, record: Bytes) {
        self.send(Job::Formation(record));
    }

    fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // A thread that ended has said why.
            let _ = jobs.send(job);
        }
    }
}

impl Drop for Writer {
    /// Waits until everything asked for is written and the directory is free again.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(
    mut store: Store<RealDisk>,
    queue: &mpsc::Receiver<Job>,
    reports: &UnboundedSender<Written>,
) {
    while let Some(first) = next_job(&mut store, queue) {
        let mut writes = Vec::new();
        for job in std::iter::once(first).chain(queue.try_iter()) {
            let report = match job {
                Job::Persist(more) => {
                    writes.extend(more);
                    continue;
                }
                Job::Formation(record) => store.set_formation(record).map(|()| Written::Formation),
            };
            if !send(reports, report) {
                return;
            }
        }
        if !writes.is_empty() && !send(reports, store.write(&writes).map(Written::Persisted)) {
            return;
        }
    }
}

/// The next job; until there is one, the store is kept tidy, one small step at a time.
fn next_job(store: &mut Store<RealDisk>, queue: &mpsc::Receiver<Job>) -> Option<Job> {
    loop {
        match queue.try_recv() {
            Ok(job) => return Some(job),
            Err(mpsc::TryRecvError::Disconnected) => return None,
            Err(mpsc::TryRecvError::Empty) => {}
        }
        match store.tidy() {
            Ok(true) => {}
            Ok(false) => return queue.recv().ok(),
            Err(error) => {
                tracing::warn!("cannot tidy the data directory: {error}");
                return queue.recv().ok();
            }
        }
    }
}

fn send(reports: &UnboundedSender<Written>, report: Result<Written, WriteError>) -> bool {
    let (report, goes_on) = match report {
        Ok(report) => (report, true),
        Err(error) => (Written::Failed(error), false),
    };
    reports.send(report).is_ok() && goes_on
}
