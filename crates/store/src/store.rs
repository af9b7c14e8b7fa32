//! The store itself: one writer, one batch at a time, one sync each.
//!
//! ```text
//! write ─→ [snapshot file] ─→ records ─→ frame ─→ one pwrite ─→ one fdatasync ─→ Ok(seq)
//!                                          └ no room: next segment, opened by a checkpoint
//! tidy  ─→ zeroes the next segment ahead, removes files that nothing needs; one small step a call
//! ```

use bytes::Bytes;
use raft::{Durable, NodeKey, Persist, PersistSeq};

use crate::disk::{Disk, DiskFile};
use crate::error::{DiskError, Doing, OpenError, WriteError};
use crate::files::{self, Name};
use crate::frame;
use crate::identity::{self, Identity};
use crate::ledger::Ledger;
use crate::record::Record;
use crate::recover::{self, TornTail};
use crate::segment::{self, Active, Found, Preparation};
use crate::snapshot;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The node's name; a directory of another name is refused.
    pub name: String,
    /// The cluster's name; a directory of another cluster is refused.
    pub cluster: String,
    /// How long a file of the log is, in bytes; rounded up to 4 KiB. Default 4 MiB. Two of them
    /// exist most of the time. Larger ones roll less often and free their space later. May change
    /// from one start to the next.
    pub segment_bytes: usize,
}

impl StoreOptions {
    /// The defaults for this node of this cluster.
    pub fn new(name: impl Into<String>, cluster: impl Into<String>) -> StoreOptions {
        StoreOptions {
            name: name.into(),
            cluster: cluster.into(),
            segment_bytes: 4 << 20,
        }
    }
}

/// What the directory gave back.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Whose directory it is. A fresh one has no formation record.
    pub identity: Identity,
    /// What consensus starts from.
    pub durable: Durable,
    /// A batch that a power cut had left unfinished, now cut off.
    pub cut: Option<TornTail>,
}

/// A node's directory, open for writing.
#[derive(Debug)]
pub struct Store<D: Disk> {
    disk: D,
    identity: Identity,
    segment_bytes: usize,
    ledger: Ledger,
    active: Active<D::File>,
    /// The segment after the active one, as far as it has been prepared.
    next: Next<D::File>,
    /// The number of the last batch.
    batch: u64,
    /// The last write that was confirmed.
    confirmed: PersistSeq,
    /// Files that nothing needs any more; removed by and by.
    garbage: Vec<String>,
    /// The frame under construction; kept for its capacity.
    buffer: Vec<u8>,
    /// What the first failed write said. Nothing is written after it.
    failed: Option<String>,
}

#[derive(Debug)]
enum Next<F> {
    None,
    Preparing(Preparation<F>),
    Ready(Active<F>),
}

/// The next segment is prepared once this part of the active one is written: early enough that one
/// step after each write is done in time even when writes are large, late enough that an idle node
/// has one file.
const TIDY_FROM: usize = 8;

/// From here on a write takes such a step itself: its owner has had no time to tidy.
const WRITE_FROM: usize = 4;

/// A buffer that one large batch has stretched beyond this is given back.
const KEPT_BUFFER: usize = 1 << 20;

/// The granularity of a segment's length.
const PAGE: usize = 4096;

impl<D: Disk> Store<D> {
    /// Opens the directory, or makes it a new node's if it is empty. `draw_key` is called only
    /// then, and has to be random: it becomes the node's identity (design point 9).
    ///
    /// # Errors
    /// See [`OpenError`]. Damage is never repaired here; only a batch that provably never became
    /// durable is cut off, and reported.
    pub fn open(
        mut disk: D,
        options: &StoreOptions,
        draw_key: impl FnOnce() -> NodeKey,
    ) -> Result<(Store<D>, Recovered), OpenError> {
        list(&disk)?;
        lock(&mut disk)?;
        let names = list(&disk)?;
        let has = |wanted: Name| names.iter().any(|name| Name::parse(name) == wanted);
        if !has(Name::Identity) {
            remove_leftovers(&disk, &names)?;
            return Store::create(disk, options, draw_key());
        }
        let identity = identity::read(&disk)?;
        check_owner(&identity, options)?;
        let recovery = recover::recover(&disk, identity.key, &names)?;
        let store = Store {
            segment_bytes: segment_bytes(options),
            ledger: recovery.ledger,
            active: recovery.active,
            next: Next::None,
            batch: recovery.batch,
            confirmed: PersistSeq(0),
            garbage: Vec::new(),
            buffer: Vec::new(),
            failed: None,
            identity: identity.clone(),
            disk,
        };
        let durable = Durable {
            hard_state: store.ledger.hard_state,
            snapshot: recovery.snapshot,
            entries: recovery.entries,
        };
        let cut = recovery.cut;
        Ok((
            store,
            Recovered {
                identity,
                durable,
                cut,
            },
        ))
    }

    /// What a node's directory holds, without changing anything in it: not even a batch that a power
    /// cut had left unfinished is cut off, only left out. The caller sees to it that nobody writes
    /// there; [`RealDisk::read_only`](crate::RealDisk::read_only) does.
    ///
    /// # Errors
    /// See [`OpenError`]; a directory that is no node's has no identity, which is
    /// [`OpenError::Missing`].
    pub fn read(disk: &D) -> Result<Recovered, OpenError> {
        let names = list(disk)?;
        if !names.iter().any(|name| name == files::IDENTITY) {
            return Err(OpenError::Missing {
                file: files::IDENTITY.to_owned(),
            });
        }
        let identity = identity::read(disk)?;
        let (durable, cut) = recover::read(disk, identity.key, &names)?;
        Ok(Recovered {
            identity,
            durable,
            cut,
        })
    }

    /// Makes an empty directory a node's: the log first, the identity last, so that an identity
    /// without a log is damage, never a fresh start.
    fn create(
        disk: D,
        options: &StoreOptions,
        key: NodeKey,
    ) -> Result<(Store<D>, Recovered), OpenError> {
        let identity = Identity {
            name: options.name.clone(),
            key,
            cluster: options.cluster.clone(),
            formation: None,
        };
        let segment_bytes = segment_bytes(options);
        let mut first = Preparation::begin(&disk, key, 1, segment_bytes)?;
        while !first.is_zeroed() {
            first.step()?;
        }
        let mut store = Store {
            active: first.finish(&disk)?,
            disk,
            identity: identity.clone(),
            segment_bytes,
            ledger: Ledger::default(),
            next: Next::None,
            batch: 0,
            confirmed: PersistSeq(0),
            garbage: Vec::new(),
            buffer: Vec::new(),
            failed: None,
        };
        store.ledger.open_segment(1);
        let checkpoint = Record::Checkpoint(store.ledger.checkpoint());
        store.encode(&[checkpoint]);
        store.append_frame(1)?;
        identity::write(&store.disk, &identity)?;
        let recovered = Recovered {
            identity,
            durable: Durable::default(),
            cut: None,
        };
        Ok((store, recovered))
    }

    /// Whose directory this is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Makes all of these durable with one sync and returns the number of the last. A power cut
    /// before the return leaves all of them or none. Snapshots need syncs of their own before, and
    /// a store that is not kept tidy some more.
    ///
    /// # Errors
    /// Any error is final: the store refuses all later writes, and the node must stop
    /// (design point 10). Which of these writes survived shows when the directory is opened again.
    ///
    /// # Panics
    /// When the writes contradict themselves or what was written before: entries that leave a gap,
    /// a snapshot older than the last.
    pub fn write(&mut self, writes: &[Persist]) -> Result<PersistSeq, WriteError> {
        self.refuse_if_failed()?;
        let result = self.try_write(writes);
        self.remember_failure(result)?;
        if let Some(last) = writes.last() {
            self.confirmed = last.seq;
        }
        // What has to be done before the next segment is needed is better spread over many writes
        // than left to one. A failure matters to none but the write that cannot do without.
        let _ = self.prepare_from(WRITE_FROM);
        Ok(self.confirmed)
    }

    /// Records how far the forming of the cluster has come; durable before it returns. It replaces
    /// the record before: what may follow what is the owner's business. The same record again
    /// writes nothing.
    ///
    /// # Errors
    /// Any error is final, as for [`Store::write`].
    pub fn set_formation(&mut self, record: Bytes) -> Result<(), WriteError> {
        self.refuse_if_failed()?;
        if self.identity.formation.as_ref() == Some(&record) {
            return Ok(());
        }
        let formed = Identity {
            formation: Some(record),
            ..self.identity.clone()
        };
        let written = identity::write(&self.disk, &formed).map_err(WriteError::from);
        self.remember_failure(written)?;
        self.identity = formed;
        Ok(())
    }

    /// One small step of housekeeping, about as long as a write: prepares the next segment once
    /// this one is an eighth full, removes files that nothing needs. Returns whether more is to be
    /// done; an idle store answers false and writes nothing.
    ///
    /// To be called when no write waits. A store whose owner does not call it works, but then some
    /// writes take such a step themselves.
    ///
    /// # Errors
    /// Nothing that was promised depends on it: the store stays open, and the step may be tried
    /// again later.
    pub fn tidy(&mut self) -> Result<bool, WriteError> {
        self.refuse_if_failed()?;
        if let Some(name) = self.garbage.pop() {
            self.disk.remove(&name).doing("remove", &name)?;
            return Ok(true);
        }
        Ok(self.prepare_from(TIDY_FROM)?)
    }

    /// One step towards the next segment, if this one is filled that far. Returns whether there
    /// was one to take.
    fn prepare_from(&mut self, parts: usize) -> Result<bool, DiskError> {
        let step = match &mut self.next {
            Next::Ready(_) => return Ok(false),
            Next::None if !self.active.is_filled_beyond(parts) => return Ok(false),
            Next::None => self.begin_next(self.segment_bytes),
            Next::Preparing(preparation) if preparation.is_zeroed() => self.finish_next(),
            Next::Preparing(preparation) => preparation.step(),
        };
        if step.is_err() {
            self.next = Next::None;
            // Only to give its space back; if that fails too, the first error says more.
            let _ = self.disk.remove(files::SEGMENT_TMP);
        }
        step.map(|()| true)
    }

    fn refuse_if_failed(&self) -> Result<(), WriteError> {
        match &self.failed {
            Some(first) => Err(WriteError::Closed {
                first: first.clone(),
            }),
            None => Ok(()),
        }
    }

    fn remember_failure<T>(&mut self, result: Result<T, WriteError>) -> Result<T, WriteError> {
        if let Err(error) = &result {
            self.failed = Some(error.to_string());
        }
        result
    }

    fn try_write(&mut self, writes: &[Persist]) -> Result<(), WriteError> {
        let records = records(writes, self.ledger.snapshot_index().0);
        if records.is_empty() {
            return Ok(());
        }
        let superseded = self.ledger.snapshot;
        // Only the newest is ever read again, and it must be durable before the log says so.
        let newest = writes
            .iter()
            .rev()
            .find_map(|write| write.snapshot.as_ref());
        if let Some(save) = newest {
            snapshot::write(&self.disk, self.identity.key, &save.snapshot)?;
        }
        self.append(records)?;
        if newest.is_some() {
            self.garbage.extend(superseded.map(files::snapshot));
            let current = self.ledger.snapshot.map(files::snapshot);
            self.garbage.retain(|name| Some(name) != current.as_ref());
        }
        let retired = self.ledger.retire().into_iter().map(files::segment);
        self.garbage.extend(retired);
        Ok(())
    }

    fn append(&mut self, mut records: Vec<Record<'_>>) -> Result<(), WriteError> {
        self.encode(&records);
        if !self.active.has_room_for(frame::finished_size(&self.buffer)) {
            records.insert(0, Record::Checkpoint(self.ledger.checkpoint()));
            self.encode(&records);
            self.roll(frame::finished_size(&self.buffer))?;
        }
        for record in &records {
            self.check(record);
            self.ledger.apply(record);
        }
        let count = u32::try_from(records.len()).expect("fewer records than bytes");
        self.append_frame(count)?;
        Ok(())
    }

    /// Our own logic is wrong if a record does not fit what was written before.
    fn check(&self, record: &Record<'_>) {
        match record {
            Record::Entries(entries) => {
                let first = entries[0].index;
                assert!(
                    first <= self.ledger.last_index + 1,
                    "entry {first} would leave a gap after {}",
                    self.ledger.last_index
                );
                assert!(
                    entries.windows(2).all(|e| e[1].index == e[0].index + 1),
                    "entries are consecutive"
                );
            }
            Record::Snapshot { last, .. } => assert!(
                last.index >= self.ledger.snapshot_index(),
                "snapshot {} is older than {}",
                last.index,
                self.ledger.snapshot_index()
            ),
            Record::Checkpoint(_) | Record::HardState(_) => {}
        }
    }

    fn encode(&mut self, records: &[Record<'_>]) {
        frame::begin(&mut self.buffer);
        for record in records {
            record.encode(&mut self.buffer);
        }
    }

    /// The one write and the one sync.
    fn append_frame(&mut self, records: u32) -> Result<(), DiskError> {
        let active = &mut self.active;
        self.batch += 1;
        frame::finish(
            &mut self.buffer,
            active.place,
            active.end,
            self.batch,
            records,
        );
        active
            .file
            .write_all_at(&self.buffer, active.end as u64)
            .doing("write", &active.name)?;
        active.file.sync_data().doing("sync", &active.name)?;
        active.end += self.buffer.len();
        if self.buffer.capacity() > KEPT_BUFFER {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Goes on in the next segment, which must take a frame of this size.
    fn roll(&mut self, frame: usize) -> Result<(), WriteError> {
        let limit = frame::LARGEST;
        if frame > limit {
            return Err(WriteError::TooLarge { size: frame, limit });
        }
        let size = self
            .segment_bytes
            .max((segment::HEADER + frame).next_multiple_of(PAGE));
        let fits = match &self.next {
            Next::None => false,
            Next::Preparing(preparation) => preparation.size() >= size,
            Next::Ready(next) => next.size >= size,
        };
        if !fits {
            self.begin_next(size)?;
        }
        loop {
            match std::mem::replace(&mut self.next, Next::None) {
                Next::Ready(next) => {
                    self.ledger.open_segment(next.sequence);
                    self.active = next;
                    return Ok(());
                }
                Next::Preparing(mut preparation) => {
                    while !preparation.is_zeroed() {
                        preparation.step()?;
                    }
                    self.next = Next::Preparing(preparation);
                    self.finish_next()?;
                }
                Next::None => unreachable!("preparation has begun"),
            }
        }
    }

    fn begin_next(&mut self, size: usize) -> Result<(), DiskError> {
        let (key, sequence) = (self.identity.key, self.active.sequence + 1);
        self.next = Next::Preparing(Preparation::begin(&self.disk, key, sequence, size)?);
        Ok(())
    }

    /// Gives the zeroed segment its name.
    fn finish_next(&mut self) -> Result<(), DiskError> {
        if let Next::Preparing(preparation) = std::mem::replace(&mut self.next, Next::None) {
            self.next = Next::Ready(preparation.finish(&self.disk)?);
        }
        Ok(())
    }
}

/// What `writes` say, in their order. Entries that a snapshot contains need no place in the log.
fn records(writes: &[Persist], mut snapshot_index: u64) -> Vec<Record<'_>> {
    let mut records = Vec::new();
    for write in writes {
        if let Some(hard_state) = write.hard_state {
            records.push(Record::HardState(hard_state));
        }
        if let Some(save) = &write.snapshot {
            let last = save.snapshot.meta.last;
            snapshot_index = snapshot_index.max(last.index.0);
            records.push(Record::Snapshot {
                last,
                discard_log: save.discard_log,
            });
        }
        let contained = write
            .entries
            .partition_point(|entry| entry.index.0 <= snapshot_index);
        if contained < write.entries.len() {
            records.push(Record::Entries((&write.entries[contained..]).into()));
        }
    }
    records
}

fn segment_bytes(options: &StoreOptions) -> usize {
    options
        .segment_bytes
        .clamp(PAGE, frame::LARGEST)
        .next_multiple_of(PAGE)
}

/// The files of a directory that is ours or empty.
fn list<D: Disk>(disk: &D) -> Result<Vec<String>, OpenError> {
    let names = disk.list().doing("list", &disk.describe())?;
    let ours = names.iter().any(|name| name == files::IDENTITY);
    // A mount point may hold the file system's own directory.
    let foreign = |name: &&String| Name::parse(name) == Name::Foreign && *name != "lost+found";
    match names.iter().find(foreign) {
        Some(file) if !ours => Err(OpenError::ForeignDirectory {
            path: disk.describe(),
            file: file.clone(),
        }),
        _ => Ok(names),
    }
}

fn lock<D: Disk>(disk: &mut D) -> Result<(), OpenError> {
    let path = disk.describe();
    match disk.lock() {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            Err(OpenError::Locked { path })
        }
        result => Ok(result.doing("lock", &path)?),
    }
}

fn check_owner(identity: &Identity, options: &StoreOptions) -> Result<(), OpenError> {
    for (what, expected, found) in [
        ("cluster", &options.cluster, &identity.cluster),
        ("node", &options.name, &identity.name),
    ] {
        if expected != found {
            return Err(OpenError::OtherNode {
                what,
                expected: expected.clone(),
                found: found.clone(),
            });
        }
    }
    Ok(())
}

/// Removes what an unfinished creation left. Anything that was ever used has an identity, so files
/// that show use mean that it was lost.
fn remove_leftovers<D: Disk>(disk: &D, names: &[String]) -> Result<(), OpenError> {
    for name in names {
        let used = match Name::parse(name) {
            Name::Segment(1) => Found::is_used(disk, name)?,
            Name::Segment(_) | Name::Snapshot(_) => true,
            Name::Temporary | Name::Identity | Name::Foreign => false,
        };
        if used {
            return Err(OpenError::Missing {
                file: files::IDENTITY.to_owned(),
            });
        }
    }
    for name in names {
        if matches!(Name::parse(name), Name::Segment(_) | Name::Temporary) {
            disk.remove(name).doing("remove", name)?;
        }
    }
    Ok(())
}
