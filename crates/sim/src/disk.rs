//! A disk that remembers what was confirmed, and of the rest as much as it likes.
//!
//! Writes queue up and become durable in batches. A crash keeps a prefix of what is queued, as a
//! log does: an earlier write is never lost where a later one survives.

use std::collections::VecDeque;

use bytes::Bytes;
use raft::{Durable, Index, NodeKey, Persist, PersistSeq, SaveSnapshot, Term};

/// One node's data directory.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    /// The node's identity: drawn when the directory was made.
    pub(crate) key: NodeKey,
    pub(crate) formation: Option<Bytes>,
    pub(crate) durable: Durable,
    queue: VecDeque<Write>,
    /// How many of the queue are being written.
    under_way: usize,
}

#[derive(Clone, Debug)]
pub(crate) enum Write {
    Log(Persist),
    Formation(Bytes),
}

/// What a batch has made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    Log(PersistSeq),
    Formation,
}

impl Disk {
    pub(crate) fn new(key: NodeKey) -> Disk {
        Disk {
            key,
            formation: None,
            durable: Durable::default(),
            queue: VecDeque::new(),
            under_way: 0,
        }
    }

    /// Queues a write. True if the disk was idle and the batch begins now.
    pub(crate) fn write(&mut self, write: Write) -> bool {
        self.queue.push_back(write);
        self.begin()
    }

    fn begin(&mut self) -> bool {
        let idle = self.under_way == 0 && !self.queue.is_empty();
        if idle {
            self.under_way = self.queue.len();
        }
        idle
    }

    /// The batch is durable. Returns what it was, and whether another has begun.
    pub(crate) fn batch_done(&mut self) -> (Vec<Written>, bool) {
        let batch = self.queue.drain(..std::mem::take(&mut self.under_way));
        let mut written = Vec::new();
        for write in batch.collect::<Vec<_>>() {
            written.push(self.apply(write));
        }
        (written, self.begin())
    }

    /// The process dies; a prefix of what was queued made it. Returns how many writes did not.
    pub(crate) fn crash(&mut self, kept: usize) -> usize {
        for _ in 0..kept {
            if let Some(write) = self.queue.pop_front() {
                self.apply(write);
            }
        }
        let lost = self.queue.len();
        self.queue.clear();
        self.under_way = 0;
        lost
    }

    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    fn apply(&mut self, write: Write) -> Written {
        match write {
            Write::Formation(record) => {
                self.formation = Some(record);
                Written::Formation
            }
            Write::Log(persist) => {
                let seq = persist.seq;
                self.apply_persist(persist);
                Written::Log(seq)
            }
        }
    }

    fn apply_persist(&mut self, persist: Persist) {
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
            entries.retain(|entry| entry.index < first.index);
            let base = snapshot.as_ref().map_or(Index(0), |s| s.meta.last.index);
            let end = entries.last().map_or(base, |entry| entry.index);
            assert!(first.index <= end + 1, "a log on disk has no gap");
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
