//! The simulator's disk: in memory, and honest about what a power cut may do.
//!
//! It keeps each file as a reader sees it (the page cache), and a journal of what the writes since
//! the last sync have overwritten: undoing it gives what would be found after a power cut. So a sync
//! costs nothing but emptying the journal. Names become durable at [`Disk::sync_dir`]. A [`crash`]
//! draws, for each sector of 512 bytes written since the last sync, which of its states the disk
//! holds, and for each name whether it is the old or the new one: writes are lost, kept, torn and
//! reordered, always the same for the same seed. A failed sync forgets what was to be written while
//! readers still see it, as page caches do: from then on that file is kept twice.
//!
//! It does not model sectors that a disk leaves half written or unreadable, nor a disk that lies
//! about its syncs; [`rot`] stands for those.
//!
//! [`crash`]: CrashDisk::crash
//! [`rot`]: CrashDisk::rot

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::disk::{Disk, DiskFile};
use crate::frame::SECTOR;

/// A disk that crashes on demand. Clones are handles of the same disk.
#[derive(Clone, Debug)]
pub struct CrashDisk {
    state: Arc<Mutex<State>>,
    /// Which life of the process this handle belongs to, once it has locked the disk.
    life: Option<u64>,
    /// Keeps the lock while any handle of the owner lives.
    holds: Option<Arc<()>>,
}

/// What a power cut did: shows whether it mattered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crashed {
    /// Unsynced sectors that the disk holds as they were last written.
    pub kept_sectors: u64,
    /// Unsynced sectors that the disk holds in an older state.
    pub lost_sectors: u64,
    /// Names that went back to what they were at the last directory sync.
    pub lost_names: u64,
    /// Unsynced writes of which the disk holds some sectors and lacks others.
    pub torn_writes: u64,
    /// Files of which the disk lacks some of a write and holds some of a later one.
    pub reordered_files: u64,
}

/// What has been asked of the disk since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations that change something: writes, syncs, and changes of names.
    pub changes: u64,
    /// Syncs of files and of the directory.
    pub syncs: u64,
    /// Bytes written to files.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct State {
    random: u64,
    names: BTreeMap<String, u64>,
    /// What the names changed since the last directory sync durably stand for.
    unsynced_names: BTreeMap<String, Option<u64>>,
    files: BTreeMap<u64, Contents>,
    next_file: u64,
    life: u64,
    locked: Weak<()>,
    counts: Counts,
    /// Changes left until the power goes.
    power: Option<u64>,
    fail_next_sync: bool,
    read_only: bool,
    capacity: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Contents {
    cached: Vec<u8>,
    /// How much of the length is durable.
    durable_size: usize,
    /// What the disk holds, once a failed sync has made it differ from `cached` by more than the
    /// journal says.
    diverged: Option<Vec<u8>>,
    /// Writes since the last sync, oldest first.
    unsynced: Vec<Unsynced>,
    /// What they overwrote, in the same order.
    overwritten: Vec<u8>,
}

/// A write that has not been synced.
#[derive(Clone, Copy, Debug)]
struct Unsynced {
    start: usize,
    end: usize,
    /// Where in `overwritten` the bytes stand that were there before.
    saved: usize,
    /// How many there were: a write may go beyond the end of the file.
    saved_size: usize,
}

/// A journal that one large write has stretched beyond this is given back.
const KEPT_JOURNAL: usize = 4 << 10;

impl CrashDisk {
    /// An empty disk whose crashes follow from `seed`.
    pub fn new(seed: u64) -> CrashDisk {
        let state = State {
            random: seed,
            ..State::default()
        };
        CrashDisk {
            state: Arc::new(Mutex::new(state)),
            life: None,
            holds: None,
        }
    }

    /// Cuts the power and brings it back. Stores opened before are dead.
    pub fn crash(&self) -> Crashed {
        self.state().crash()
    }

    /// The process dies, the machine does not: what was written is in the page cache still.
    pub fn kill(&self) {
        self.state().new_life();
    }

    /// Lets `changes` more changes happen and the power go during the one after: it and all later
    /// operations fail until [`CrashDisk::crash`].
    pub fn cut_power_after(&self, changes: u64) {
        self.state().power = Some(changes + 1);
    }

    /// The power stays after all.
    pub fn keep_power(&self) {
        self.state().power = None;
    }

    /// The next sync fails and forgets what it was to write.
    pub fn fail_next_sync(&self) {
        self.state().fail_next_sync = true;
    }

    /// No fault is to come any more: there is room, and all syncs and changes succeed.
    pub fn heal(&self) {
        let mut state = self.state();
        (state.power, state.capacity) = (None, None);
        (state.fail_next_sync, state.read_only) = (false, false);
    }

    /// How many bytes all files together may have; `None` for any number.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Whether every change is refused.
    pub fn set_read_only(&self, read_only: bool) {
        self.state().read_only = read_only;
    }

    /// Flips the bits of `mask` in one durable byte. Returns whether the file has such a byte.
    pub fn rot(&self, file: &str, offset: u64, mask: u8) -> bool {
        let mut state = self.state();
        let Some(id) = state.names.get(file).copied() else {
            return false;
        };
        let offset = offset as usize;
        let Some(contents) = state.files.get_mut(&id) else {
            return false;
        };
        contents.rot(offset, mask);
        offset < contents.cached.len()
    }

    /// The length of a file as a reader sees it.
    pub fn size(&self, file: &str) -> Option<u64> {
        let state = self.state();
        let id = state.names.get(file)?;
        state
            .files
            .get(id)
            .map(|contents| contents.cached.len() as u64)
    }

    /// How many bytes all files together have.
    pub fn used(&self) -> u64 {
        self.state().used()
    }

    /// The bytes of a file as a reader sees them.
    pub fn read(&self, file: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let id = state.names.get(file)?;
        state.files.get(id).map(|contents| contents.cached.clone())
    }

    /// Puts a durable file there, in place of one of that name.
    pub fn put(&self, file: &str, bytes: &[u8]) {
        let mut state = self.state();
        let id = state.add(Contents::synced(bytes.to_vec()));
        state.names.insert(file.to_owned(), id);
        state.unsynced_names.remove(file);
    }

    /// Removes all files: a replaced disk.
    pub fn wipe(&self) {
        let mut state = self.state();
        state.new_life();
        state.names.clear();
        state.unsynced_names.clear();
        state.files.clear();
    }

    /// What has been asked of the disk so far.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, for an operation by a process that must still be alive.
    fn living(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.power == Some(0) || self.life.is_some_and(|life| life != state.life) {
            return Err(io::Error::other("the power is out"));
        }
        Ok(state)
    }

    /// Performs a change. When the power goes during it, it may still have happened.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.living()?;
        if state.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        state.counts.changes += 1;
        match state.power {
            None => change(&mut state),
            Some(left) => {
                state.power = Some(left - 1);
                let result = change(&mut state)?;
                if left == 1 {
                    return Err(io::Error::other("the power goes out"));
                }
                Ok(result)
            }
        }
    }
}

impl State {
    /// SplitMix64: small, and good enough to draw faults.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn add(&mut self, contents: Contents) -> u64 {
        self.next_file += 1;
        self.files.insert(self.next_file, contents);
        self.next_file
    }

    fn file(&mut self, id: u64) -> io::Result<&mut Contents> {
        self.files
            .get_mut(&id)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn used(&self) -> u64 {
        let named = self.names.values().filter_map(|id| self.files.get(id));
        named.map(|contents| contents.cached.len() as u64).sum()
    }

    fn new_life(&mut self) {
        self.life += 1;
        self.locked = Weak::new();
        self.power = None;
        self.fail_next_sync = false;
    }

    fn crash(&mut self) -> Crashed {
        self.new_life();
        let mut crashed = Crashed::default();
        // In eighths: some crashes lose everything, some nothing, most tear.
        let keep = self.draw() % 9;
        self.crash_names(keep, &mut crashed);
        self.drop_nameless_files();
        let mut files = std::mem::take(&mut self.files);
        for contents in files.values_mut() {
            self.crash_contents(contents, keep, &mut crashed);
        }
        self.files = files;
        crashed
    }

    fn crash_names(&mut self, keep: u64, crashed: &mut Crashed) {
        for (name, durable) in std::mem::take(&mut self.unsynced_names) {
            if self.names.get(&name).copied() == durable || self.draw() % 8 < keep {
                continue;
            }
            crashed.lost_names += 1;
            match durable {
                Some(id) => self.names.insert(name, id),
                None => self.names.remove(&name),
            };
        }
    }

    /// Gives a name to a file, or takes it from one, until a directory sync in the cache only.
    fn point(&mut self, name: &str, id: Option<u64>) -> Option<u64> {
        let before = match id {
            Some(id) => self.names.insert(name.to_owned(), id),
            None => self.names.remove(name),
        };
        if !self.unsynced_names.contains_key(name) {
            self.unsynced_names.insert(name.to_owned(), before);
        }
        before
    }

    /// Nothing brings a file back whose name is gone for good.
    fn drop_nameless_files(&mut self) {
        if self.files.len() > self.names.len() {
            let named: BTreeSet<u64> = self.names.values().copied().collect();
            self.files.retain(|id, _| named.contains(id));
        }
    }

    fn crash_contents(&mut self, contents: &mut Contents, keep: u64, crashed: &mut Crashed) {
        let mut durable = contents.durable();
        if contents.cached.len() > durable.len() && self.draw() % 8 < keep {
            durable.resize(contents.cached.len(), 0);
        }
        let mut survivors = BTreeMap::new();
        for sector in contents.unsynced_sectors() {
            let writes = contents.writes_to(sector).count();
            let survive = match self.draw() % 8 < keep {
                true => writes,
                false => self.draw() as usize % writes,
            };
            match survive == writes {
                true => crashed.kept_sectors += 1,
                false => crashed.lost_sectors += 1,
            }
            if survive > 0 {
                contents.settle(sector, survive, &mut durable);
            }
            survivors.insert(sector, survive);
        }
        contents.count_torn(&survivors, crashed);
        *contents = Contents::synced(durable);
    }
}

impl Unsynced {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn touches(&self, sector: usize) -> bool {
        self.start < (sector + 1) * SECTOR && self.end > sector * SECTOR
    }

    fn sectors(&self) -> std::ops::RangeInclusive<usize> {
        self.start / SECTOR..=(self.end - 1) / SECTOR
    }
}

impl Contents {
    fn synced(bytes: Vec<u8>) -> Contents {
        Contents {
            durable_size: bytes.len(),
            cached: bytes,
            ..Contents::default()
        }
    }

    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        let before = self.cached.len();
        let saved = offset.min(before)..end.min(before);
        self.unsynced.push(Unsynced {
            start: offset,
            end,
            saved: self.overwritten.len(),
            saved_size: saved.len(),
        });
        self.overwritten.extend_from_slice(&self.cached[saved]);
        if before < end {
            self.cached.resize(end, 0);
        }
        self.cached[offset..end].copy_from_slice(bytes);
    }

    /// What a power cut would leave if nothing of what is unsynced had reached the disk.
    fn durable(&self) -> Vec<u8> {
        if let Some(diverged) = &self.diverged {
            return diverged.clone();
        }
        let mut durable = self.cached.clone();
        for write in self.unsynced.iter().rev() {
            self.undo(write, &mut durable, 0);
        }
        durable.truncate(self.durable_size);
        durable
    }

    /// Takes a write back in `bytes`, a copy of the cache from `origin` on.
    fn undo(&self, write: &Unsynced, bytes: &mut [u8], origin: usize) {
        let start = write.start.max(origin);
        for at in start..write.end.min(origin + bytes.len()) {
            let old = at - write.start;
            bytes[at - origin] = match old < write.saved_size {
                true => self.overwritten[write.saved + old],
                false => 0,
            };
        }
    }

    /// The writes that touch a sector, oldest first.
    fn writes_to(&self, sector: usize) -> impl DoubleEndedIterator<Item = &Unsynced> {
        let touching = move |write: &&Unsynced| !write.is_empty() && write.touches(sector);
        self.unsynced.iter().filter(touching)
    }

    fn unsynced_sectors(&self) -> BTreeSet<usize> {
        let writes = self.unsynced.iter().filter(|write| !write.is_empty());
        writes.flat_map(Unsynced::sectors).collect()
    }

    /// The disk holds a sector as the first `survive` of the writes to it left it in the cache.
    fn settle(&self, sector: usize, survive: usize, durable: &mut [u8]) {
        let start = sector * SECTOR;
        let end = (start + SECTOR).min(durable.len()).min(self.cached.len());
        if start >= end {
            return;
        }
        let mut bytes = self.cached[start..end].to_vec();
        let writes = self.writes_to(sector).count();
        for write in self.writes_to(sector).rev().take(writes - survive) {
            self.undo(write, &mut bytes, start);
        }
        durable[start..end].copy_from_slice(&bytes);
    }

    /// Given how many of the writes to each sector survived.
    fn count_torn(&self, survivors: &BTreeMap<usize, usize>, crashed: &mut Crashed) {
        let mut seen: BTreeMap<usize, usize> = BTreeMap::new();
        let (mut some_lost, mut reordered) = (false, false);
        for write in self.unsynced.iter().filter(|write| !write.is_empty()) {
            let (mut kept, mut lost) = (false, false);
            for sector in write.sectors() {
                let earlier = seen.entry(sector).or_default();
                match *earlier < survivors[&sector] {
                    true => kept = true,
                    false => lost = true,
                }
                *earlier += 1;
            }
            crashed.torn_writes += u64::from(kept && lost);
            reordered |= kept && some_lost;
            some_lost |= lost;
        }
        crashed.reordered_files += u64::from(reordered);
    }

    fn sync(&mut self) {
        if let Some(mut durable) = self.diverged.take() {
            durable.resize(self.cached.len(), 0);
            for sector in self.unsynced_sectors() {
                self.settle(sector, self.writes_to(sector).count(), &mut durable);
            }
            self.diverged = (durable != self.cached).then_some(durable);
        }
        self.durable_size = self.cached.len();
        self.empty_journal();
    }

    /// What was to be written is forgotten, and the cache believes itself clean.
    fn fail_to_sync(&mut self) {
        self.diverged = Some(self.durable());
        self.empty_journal();
    }

    fn empty_journal(&mut self) {
        self.unsynced.clear();
        self.overwritten.clear();
        self.overwritten.shrink_to(KEPT_JOURNAL);
    }

    /// Flips bits in every copy of a byte.
    fn rot(&mut self, offset: usize, mask: u8) {
        for write in &self.unsynced {
            if (write.start..write.start + write.saved_size).contains(&offset) {
                self.overwritten[write.saved + offset - write.start] ^= mask;
            }
        }
        let copies = [Some(&mut self.cached), self.diverged.as_mut()];
        for copy in copies.into_iter().flatten() {
            if let Some(byte) = copy.get_mut(offset) {
                *byte ^= mask;
            }
        }
    }
}

impl Disk for CrashDisk {
    type File = CrashFile;

    fn describe(&self) -> String {
        "the simulated disk".to_owned()
    }

    fn lock(&mut self) -> io::Result<()> {
        let mut state = self.living()?;
        if state.locked.strong_count() > 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let token = Arc::new(());
        state.locked = Arc::downgrade(&token);
        let life = state.life;
        drop(state);
        self.life = Some(life);
        self.holds = Some(token);
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.living()?.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<CrashFile> {
        let state = self.living()?;
        let id = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        drop(state);
        Ok(CrashFile {
            disk: self.clone(),
            id,
        })
    }

    fn create(&self, name: &str) -> io::Result<CrashFile> {
        let id = self.change(|state| {
            let id = state.add(Contents::default());
            state.point(name, Some(id));
            Ok(id)
        })?;
        Ok(CrashFile {
            disk: self.clone(),
            id,
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(|state| {
            let id = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
            state.point(from, None);
            state.point(to, Some(id));
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change(|state| {
            if !state.names.contains_key(name) {
                return Err(io::ErrorKind::NotFound.into());
            }
            state.point(name, None);
            Ok(())
        })
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.change(|state| {
            state.counts.syncs += 1;
            if state.power == Some(0) {
                return Ok(());
            }
            if std::mem::take(&mut state.fail_next_sync) {
                return Err(io::Error::other("injected sync error"));
            }
            state.unsynced_names.clear();
            state.drop_nameless_files();
            Ok(())
        })
    }
}

/// A file of a [`CrashDisk`].
#[derive(Debug)]
pub struct CrashFile {
    disk: CrashDisk,
    id: u64,
}

impl DiskFile for CrashFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.living()?.file(self.id)?.cached.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.living()?;
        let offset = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let bytes = state
            .file(self.id)?
            .cached
            .get(offset..)
            .and_then(|rest| rest.get(..buffer.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.change(|state| {
            let end = offset + bytes.len() as u64;
            let size = state.file(self.id)?.cached.len() as u64;
            let grows = end.saturating_sub(size);
            let full = |capacity| grows > 0 && state.used() + grows > capacity;
            if state.capacity.is_some_and(full) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            state.counts.bytes += bytes.len() as u64;
            state.file(self.id)?.write(bytes, offset as usize);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.change(|state| {
            state.counts.syncs += 1;
            if state.power == Some(0) {
                return Ok(());
            }
            let fails = std::mem::take(&mut state.fail_next_sync);
            let file = state.file(self.id)?;
            if fails {
                file.fail_to_sync();
                return Err(io::Error::other("injected sync error"));
            }
            file.sync();
            Ok(())
        })
    }
}
