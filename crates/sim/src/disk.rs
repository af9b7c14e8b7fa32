//! A data directory: the production store on a disk that crashes, and a twin that checks it.
//!
//! Writes queue up. A batch is taken as production's writer takes it (`crates/node/src/writer.rs`):
//! formation records one by one, then all log writes with one sync; housekeeping when nothing
//! waits. The store runs when the batch's time is over, so that a death in between can stop it
//! after any one of its operations.
//!
//! The twin is deliberately dumb: values in memory, changed as each confirmed write says. What the
//! production recovery finds must be the twin, or the twin and the one write that was under way.

use std::collections::VecDeque;

use bytes::Bytes;
use raft::{Durable, Index, NodeKey, Persist, PersistSeq, SaveSnapshot, Term};
use store::{CrashDisk, Crashed, Disk as _, OpenError, Store, StoreOptions, WriteError};

use crate::node::Death;

/// The smallest segment: a few tens of writes, so that logs roll all the time.
const SEGMENT_BYTES: usize = 4 << 10;

/// One node's data directory.
#[derive(Debug)]
pub(crate) struct Disk {
    /// The node's identity: drawn when the directory was made.
    pub(crate) key: NodeKey,
    /// The formation record, as confirmed.
    pub(crate) formation: Option<Bytes>,
    /// Term, vote, log and snapshot, as confirmed.
    pub(crate) durable: Durable,
    device: CrashDisk,
    segment_bytes: usize,
    /// Open while a process runs on it.
    store: Option<Store<CrashDisk>>,
    /// Whether the directory has been opened once, and so is `key`'s for good.
    made: bool,
    queue: VecDeque<Write>,
    /// How many of the queue are being written.
    under_way: usize,
    /// The disk has been idle since the last batch.
    untidy: bool,
    /// What failed or was cut short, so that nobody knows whether it is there.
    attempted: Vec<Write>,
    /// A bit has been flipped somewhere: opening may refuse.
    rotten: bool,
    /// Opening has refused: the operator is to replace the disk.
    refused: bool,
    /// How often housekeeping failed and the store went on.
    survived: u64,
    /// The next batch will not be finished.
    pub(crate) dies_in_batch: Option<Death>,
}

#[derive(Clone, Debug)]
pub(crate) enum Write {
    Log(Persist),
    Formation(Bytes),
}

/// What has become durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// All log writes up to this one.
    Log(PersistSeq),
    Formation,
}

/// What came of a batch.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) written: Vec<Written>,
    /// The process must stop.
    pub(crate) failed: Option<WriteError>,
    /// Another batch has begun.
    pub(crate) more: bool,
}

/// What opening found of a write that had been cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    pub(crate) attempt: Attempt,
    /// A torn tail was cut off the log.
    pub(crate) torn: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    None,
    Lost,
    Kept,
}

impl Disk {
    /// An empty directory. Its faults and the length of its segments follow from the key.
    pub(crate) fn new(key: NodeKey) -> Disk {
        let seed = key.0 as u64;
        Disk {
            key,
            formation: None,
            durable: Durable::default(),
            device: CrashDisk::new(seed),
            segment_bytes: SEGMENT_BYTES << (seed % 3),
            store: None,
            made: false,
            queue: VecDeque::new(),
            under_way: 0,
            untidy: false,
            attempted: Vec::new(),
            rotten: false,
            refused: false,
            survived: 0,
            dies_in_batch: None,
        }
    }

    /// Opens the directory by the production recovery, and compares what that finds with the twin.
    /// A directory that was never opened is made under `fresh`.
    ///
    /// # Errors
    /// What the store says; only where a fault gave it reason to.
    ///
    /// # Panics
    /// If anything confirmed is gone, or anything is there that was not written.
    pub(crate) fn open(
        &mut self,
        name: &str,
        cluster: &str,
        fresh: NodeKey,
    ) -> Result<Opened, OpenError> {
        let options = StoreOptions {
            segment_bytes: self.segment_bytes,
            ..StoreOptions::new(name, cluster)
        };
        let (store, found) = Store::open(self.device.clone(), &options, || fresh)
            .inspect_err(|error| self.refused = self.rotten && is_damage(error))?;
        assert!(
            found.identity.key == self.key || !self.made,
            "{name}'s disk was {}'s and is {}'s",
            self.key,
            found.identity.key
        );
        self.key = found.identity.key;
        let formation = found.identity.formation;
        let attempt = match self.attempted.is_empty() {
            true => Attempt::None,
            false if self.is(&formation, &found.durable) => Attempt::Lost,
            false => Attempt::Kept,
        };
        for write in std::mem::take(&mut self.attempted) {
            if attempt == Attempt::Kept {
                self.confirm(write);
            }
        }
        assert!(
            self.is(&formation, &found.durable),
            "{name}'s disk held {:?} and {:?}; found were {formation:?} and {:?}",
            self.formation,
            summary(&self.durable),
            summary(&found.durable),
        );
        self.store = Some(store);
        (self.made, self.rotten) = (true, false);
        let torn = found.cut.is_some();
        Ok(Opened { attempt, torn })
    }

    fn is(&self, formation: &Option<Bytes>, durable: &Durable) -> bool {
        self.formation == *formation && self.durable == *durable
    }

    // Batches.

    /// Queues a write. True if the disk was idle and the batch begins now.
    pub(crate) fn write(&mut self, write: Write) -> bool {
        self.queue.push_back(write);
        self.begin()
    }

    fn begin(&mut self) -> bool {
        if self.under_way > 0 || self.queue.is_empty() {
            return false;
        }
        self.tidy();
        self.under_way = self.queue.len();
        true
    }

    /// What the writer does while nothing waits. Done no sooner than it can be seen.
    fn tidy(&mut self) {
        if !std::mem::take(&mut self.untidy) {
            return;
        }
        let store = self.store.as_mut().expect("a batch was written");
        let survived = &mut self.survived;
        let mut tidies = || {
            store.tidy().unwrap_or_else(|_| {
                *survived += 1;
                false
            })
        };
        while tidies() {}
    }

    /// The batch's time is over: writes it.
    pub(crate) fn batch_done(&mut self) -> Batch {
        let mut written = Vec::new();
        let failed = self.write_batch(&mut written).err();
        if failed.is_some() {
            self.stays_closed();
        }
        Batch {
            more: failed.is_none() && self.begin(),
            written,
            failed,
        }
    }

    fn write_batch(&mut self, written: &mut Vec<Written>) -> Result<(), WriteError> {
        let store = self.store.as_mut().expect("a process runs");
        let mut log = Vec::new();
        for write in self.queue.drain(..std::mem::take(&mut self.under_way)) {
            match write {
                Write::Log(persist) => log.push(persist),
                Write::Formation(record) => {
                    if let Err(error) = store.set_formation(record.clone()) {
                        self.attempted = vec![Write::Formation(record)];
                        return Err(error);
                    }
                    self.formation = Some(record);
                    written.push(Written::Formation);
                }
            }
        }
        if !log.is_empty() {
            match store.write(&log) {
                Ok(seq) => written.push(Written::Log(seq)),
                Err(error) => {
                    self.attempted = log.into_iter().map(Write::Log).collect();
                    return Err(error);
                }
            }
            for persist in log {
                self.confirm(Write::Log(persist));
            }
        }
        self.untidy = true;
        Ok(())
    }

    /// After a failure nothing is written and no sync tried again.
    fn stays_closed(&mut self) {
        let changes = self.device.counts().changes;
        let store = self.store.as_mut().expect("it has just failed");
        let refused = matches!(store.write(&[]), Err(WriteError::Closed { .. }));
        let tidied = matches!(store.tidy(), Err(WriteError::Closed { .. }));
        assert!(refused && tidied && changes == self.device.counts().changes);
    }

    // Deaths.

    /// The process dies during what the disk is doing, after `changes` operations of it. What was
    /// written is in the page cache.
    pub(crate) fn kill(&mut self, changes: u64) {
        self.stop(changes);
        self.device.kill();
    }

    /// The power goes during what the disk is doing, after `changes` operations of it.
    pub(crate) fn cut_power(&mut self, changes: u64) -> Crashed {
        self.stop(changes);
        self.device.crash()
    }

    fn stop(&mut self, changes: u64) {
        if self.store.is_some() {
            self.device.cut_power_after(changes);
            self.tidy();
            // Whatever the error is, nobody is left to hear of it.
            let _ = self.write_batch(&mut Vec::new());
        }
        self.store = None;
        self.queue.clear();
        (self.under_way, self.untidy) = (0, false);
        self.dies_in_batch = None;
    }

    // Faults.

    /// The power will go after so many operations more, in the middle of whatever goes on then.
    pub(crate) fn cut_power_after(&self, changes: u64) {
        self.device.cut_power_after(changes);
    }

    pub(crate) fn keep_power(&self) {
        self.device.keep_power();
    }

    pub(crate) fn fail_next_sync(&self) {
        self.device.fail_next_sync();
    }

    /// No file can grow by more than this.
    pub(crate) fn fill(&self, bytes_left: u64) {
        self.device
            .set_capacity(Some(self.device.used() + bytes_left));
    }

    pub(crate) fn make_read_only(&self) {
        self.device.set_read_only(true);
    }

    /// The operator replaces the cable, frees space and mounts the disk to be written again.
    pub(crate) fn mend(&self) {
        self.device.heal();
    }

    /// Flips one bit of a file, both drawn by these numbers. Returns what was hit.
    pub(crate) fn rot(&mut self, file: u64, offset: u64, bit: u64) -> Option<String> {
        let files = self.device.list().unwrap_or_default();
        let name = files.get(file as usize % files.len().max(1))?;
        let offset = offset % self.device.size(name)?.max(1);
        if !self.device.rot(name, offset, 1 << (bit % 8)) {
            return None;
        }
        self.rotten = true;
        Some(format!("byte {offset} of {name}"))
    }

    /// Whether what is on it may have to be given up.
    pub(crate) fn is_rotten(&self) -> bool {
        self.rotten
    }

    /// Whether it waits to be replaced.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused
    }

    /// How often, since last asked, the store went on where its housekeeping failed.
    pub(crate) fn take_survived(&mut self) -> u64 {
        std::mem::take(&mut self.survived)
    }

    /// What is remembered of a disk that is gone.
    pub(crate) fn remains(self) -> Disk {
        self.device.wipe();
        Disk {
            store: None,
            ..self
        }
    }

    // The twin.

    fn confirm(&mut self, write: Write) {
        match write {
            Write::Formation(record) => self.formation = Some(record),
            Write::Log(persist) => self.confirm_log(persist),
        }
    }

    fn confirm_log(&mut self, persist: Persist) {
        let Durable {
            hard_state,
            snapshot,
            entries,
        } = &mut self.durable;
        if let Some(newer) = persist.hard_state {
            assert!(newer.term >= hard_state.term, "terms on disk never go back");
            *hard_state = newer;
        }
        if let Some(SaveSnapshot {
            snapshot: saved,
            discard_log,
        }) = persist.snapshot
        {
            let last = saved.meta.last.index;
            entries.retain(|entry| !discard_log && entry.index > last);
            *snapshot = Some(saved);
        }
        if let Some(first) = persist.entries.first() {
            let base = snapshot.as_ref().map_or(Index(0), |s| s.meta.last.index);
            let end = base + entries.len() as u64;
            assert!(first.index <= end + 1, "a log on disk has no gap");
            let kept = first.index.0.saturating_sub(base.0 + 1);
            entries.truncate(kept as usize);
            entries.extend(persist.entries.into_iter().filter(|e| e.index > base));
        }
    }

    /// Whether the entry at `index` is, or was, on this disk.
    pub(crate) fn holds(&self, index: Index, term: Term) -> bool {
        let base = self.snapshot_index();
        if index <= base {
            return true;
        }
        let at = (index - base - 1) as usize;
        self.durable
            .entries
            .get(at)
            .is_some_and(|entry| entry.index == index && entry.term == term)
    }

    /// Where the log on this disk ends.
    pub(crate) fn last_index(&self) -> Index {
        let last = self.durable.entries.last();
        last.map_or(self.snapshot_index(), |entry| entry.index)
    }

    fn snapshot_index(&self) -> Index {
        let snapshot = self.durable.snapshot.as_ref();
        snapshot.map_or(Index(0), |s| s.meta.last.index)
    }
}

/// Whether the bytes are the reason, not what the disk does at the moment.
fn is_damage(error: &OpenError) -> bool {
    match error {
        OpenError::Rot { .. }
        | OpenError::Missing { .. }
        | OpenError::NewerFormat { .. }
        | OpenError::ForeignDirectory { .. }
        | OpenError::OtherNode { .. }
        | OpenError::Undecodable { .. } => true,
        OpenError::Locked { .. } | OpenError::Unreadable { .. } | OpenError::DiskFull { .. } => {
            false
        }
    }
}

/// What a log amounts to, for messages.
fn summary(durable: &Durable) -> impl std::fmt::Debug {
    let snapshot = durable.snapshot.as_ref().map(|s| s.meta.last);
    let first = durable.entries.first().map(raft::Entry::position);
    let last = durable.entries.last().map(raft::Entry::position);
    (durable.hard_state, snapshot, first, last)
}
