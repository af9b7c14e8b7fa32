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
use raft::{
    Configuration, Durable, Entry, Index, NodeKey, Payload, Persist, PersistSeq, SaveSnapshot, Term,
};
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
    /// The configurations in it, and where they stand, ascending.
    configurations: Vec<(Index, Configuration)>,
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
    Log(Box<Persist>),
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
            configurations: Vec::new(),
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
                Write::Log(persist) => log.push(*persist),
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
                    self.attempted = log.into_iter().map(Box::new).map(Write::Log).collect();
                    return Err(error);
                }
            }
            for persist in log {
                self.confirm_log(persist);
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
            Write::Log(persist) => self.confirm_log(*persist),
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
            self.configurations
                .retain(|(at, _)| !discard_log && *at > last);
            let configuration = saved.meta.configuration.clone();
            self.configurations.insert(0, (last, configuration));
            *snapshot = Some(saved);
        }
        if let Some(first) = persist.entries.first() {
            let base = snapshot.as_ref().map_or(Index(0), |s| s.meta.last.index);
            let end = base + entries.len() as u64;
            assert!(first.index <= end + 1, "a log on disk has no gap");
            let kept = first.index.0.saturating_sub(base.0 + 1);
            entries.truncate(kept as usize);
            self.configurations
                .retain(|(at, _)| *at < first.index || *at == base);
            for entry in &persist.entries {
                if let Payload::Configuration(configuration) = &entry.payload
                    && entry.index > base
                {
                    self.configurations
                        .push((entry.index, configuration.clone()));
                }
            }
            entries.extend(persist.entries.into_iter().filter(|e| e.index > base));
        }
    }

    /// The newest configuration on this disk: what a node goes by that starts from it.
    pub(crate) fn configuration(&self) -> Option<&Configuration> {
        let newest = self.configurations.last();
        newest.map(|(_, configuration)| configuration)
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

    /// What an election on this disk's log would be decided by: the greater wins (Raft §5.4.1).
    pub(crate) fn rank(&self) -> (Term, Index) {
        let snapshot = self.durable.snapshot.as_ref().map(|s| s.meta.last);
        let last = self.durable.entries.last().map(Entry::position);
        let last = last.or(snapshot).unwrap_or_default();
        (last.term, last.index)
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

#[cfg(test)]
mod tests {
    use raft::{Entry, HardState, Payload};

    use super::*;

    const FRESH: NodeKey = NodeKey(9);

    fn opened(disk: &mut Disk) -> Opened {
        disk.open("a", "plant", FRESH)
            .expect("nothing says otherwise")
    }

    /// A disk in use, with a vote and some entries confirmed.
    fn in_use(seed: u64) -> Disk {
        let mut disk = Disk::new(NodeKey(u128::from(seed)));
        opened(&mut disk);
        for index in 1..=3 {
            write(&mut disk, index);
        }
        disk
    }

    fn persist(index: u64) -> Write {
        let entry = |index| Entry {
            index: Index(index),
            term: Term(1),
            payload: Payload::Noop,
        };
        Write::Log(Box::new(Persist {
            seq: PersistSeq(index),
            hard_state: Some(HardState {
                term: Term(index),
                voted_for: Some(FRESH),
            }),
            // More than a sector, so that it can be torn.
            entries: (0..300).map(|n| entry(300 * (index - 1) + n + 1)).collect(),
            ..Persist::default()
        }))
    }

    fn write(disk: &mut Disk, index: u64) {
        assert!(disk.write(persist(index)), "the disk is idle");
        let batch = disk.batch_done();
        assert_eq!(batch.written, [Written::Log(PersistSeq(index))]);
        assert!(batch.failed.is_none() && !batch.more);
    }

    #[test]
    fn what_queues_up_is_confirmed_by_one_sync() {
        let mut disk = in_use(1);
        assert!(disk.write(persist(4)));
        assert!(!disk.write(persist(5)) && !disk.write(persist(6)));
        assert_eq!(disk.batch_done().written, [Written::Log(PersistSeq(4))]);
        let syncs = disk.device.counts().syncs;
        assert_eq!(disk.batch_done().written, [Written::Log(PersistSeq(6))]);
        assert_eq!(disk.device.counts().syncs, syncs + 1);
        assert_eq!(disk.last_index(), Index(1800));
    }

    /// Of a write under way a power cut leaves all or nothing: torn, it is cut off.
    #[test]
    fn a_power_cut_during_a_write_loses_tears_or_keeps_it() {
        let (mut lost, mut kept, mut torn) = (0, 0, 0);
        for seed in 0..60 {
            let mut disk = in_use(seed);
            disk.write(persist(4));
            let crashed = disk.cut_power(seed % 4);
            assert_eq!(disk.last_index() == Index(1200), seed % 4 > 1);
            let opened = opened(&mut disk);
            lost += u64::from(opened.attempt == Attempt::Lost);
            kept += u64::from(opened.attempt == Attempt::Kept);
            torn += u64::from(opened.torn && crashed.torn_writes > 0);
            let next = disk.last_index().0 / 300 + 1;
            write(&mut disk, next);
        }
        assert!(lost > 0 && kept > 0 && torn > 0, "{lost} {kept} {torn}");
    }

    /// The page cache outlives a process, and what recovery has seen in it a later power cut.
    #[test]
    fn a_process_that_dies_before_its_sync_finds_its_write_again() {
        for seed in 0..20 {
            let mut disk = in_use(seed);
            disk.write(persist(4));
            disk.kill(1 - seed % 2);
            let expected = [Attempt::Kept, Attempt::Kept];
            assert_eq!(opened(&mut disk).attempt, expected[seed as usize % 2]);
            disk.cut_power(0);
            assert_eq!(opened(&mut disk).attempt, Attempt::None);
            assert_eq!(disk.last_index(), Index(1200));
        }
    }

    #[test]
    fn after_a_sync_error_the_process_ends_and_nothing_confirmed_is_lost() {
        for power_goes in [false, true] {
            let mut disk = in_use(3);
            disk.fail_next_sync();
            disk.write(persist(4));
            let failed = disk.batch_done().failed.expect("the sync failed");
            assert!(matches!(
                failed,
                WriteError::Failed {
                    operation: "sync",
                    ..
                }
            ));
            let found = match power_goes {
                true => {
                    disk.cut_power(0);
                    Attempt::Lost
                }
                false => {
                    disk.kill(0);
                    Attempt::Kept
                }
            };
            assert_eq!(opened(&mut disk).attempt, found);
        }
    }

    #[test]
    fn a_full_or_read_only_disk_ends_the_process_until_it_is_mended() {
        for fills in [true, false] {
            let mut disk = in_use(4);
            match fills {
                true => disk.fill(0),
                false => disk.make_read_only(),
            }
            let mut index = 3;
            let failed = loop {
                index += 1;
                disk.write(persist(index));
                if let Some(failed) = disk.batch_done().failed {
                    break failed;
                }
            };
            assert_eq!(fills, matches!(failed, WriteError::DiskFull { .. }));
            assert_eq!(fills, disk.take_survived() > 0, "tidying fails first");
            disk.kill(0);
            let refuses = disk.open("a", "plant", FRESH).is_err();
            assert_eq!(refuses, !fills, "what is there can be read");
            disk.kill(0);
            disk.mend();
            opened(&mut disk);
            assert_eq!(disk.last_index(), Index(300 * (index - 1)));
        }
    }

    /// A bit that changes is found, or stood where nothing does any more.
    #[test]
    fn a_disk_that_rots_refuses_or_has_lost_nothing() {
        let mut found = 0;
        for seed in 0..200 {
            let mut disk = in_use(seed);
            assert!(disk.rot(seed, seed * 37, seed).is_some() && disk.is_rotten());
            disk.cut_power(0);
            match disk.open("a", "plant", FRESH) {
                Ok(_) => assert!(!disk.is_rotten() && !disk.is_refused()),
                Err(error) => {
                    assert!(is_damage(&error) && disk.is_refused(), "{error}");
                    found += 1;
                }
            }
        }
        assert!(found > 100, "{found}");
    }

    #[test]
    #[should_panic(expected = "a's disk held")]
    fn the_twin_notices_a_write_that_is_gone() {
        let mut disk = in_use(5);
        let last = disk.durable.entries.last().expect("some").clone();
        let next = Entry {
            index: last.index + 1,
            ..last
        };
        disk.durable.entries.push(next);
        disk.kill(0);
        opened(&mut disk);
    }
}
