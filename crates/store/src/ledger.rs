//! What the log amounts to, without the entries: kept alike while writing and while recovering.
//!
//! It knows which segments still hold something that counts. A segment may go when all of its
//! entries are in the snapshot, were replaced, or were discarded; its hard state and snapshot
//! position live on in the checkpoint that opens the next one.

use std::collections::VecDeque;

use raft::{HardState, Index, LogPosition};

use crate::record::{Checkpoint, Record};

#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) hard_state: HardState,
    pub(crate) snapshot: Option<LogPosition>,
    pub(crate) last_index: Index,
    /// Oldest first; the last one is being written.
    segments: VecDeque<Segment>,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    sequence: u64,
    /// The last index for which an entry in this segment still counts; zero for none.
    last_index: Index,
}

impl Ledger {
    /// A later segment begins.
    pub(crate) fn open_segment(&mut self, sequence: u64) {
        self.segments.push_back(Segment {
            sequence,
            last_index: Index(0),
        });
    }

    /// What the next segment opens with.
    pub(crate) fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            hard_state: self.hard_state,
            snapshot: self.snapshot,
            last_index: self.last_index,
        }
    }

    /// The last index that the snapshot contains; zero without one.
    pub(crate) fn snapshot_index(&self) -> Index {
        self.snapshot.map_or(Index(0), |last| last.index)
    }

    /// Takes note of a record.
    pub(crate) fn apply(&mut self, record: &Record<'_>) {
        match record {
            Record::Checkpoint(checkpoint) => {
                self.hard_state = checkpoint.hard_state;
                self.snapshot = checkpoint.snapshot;
                self.last_index = checkpoint.last_index;
            }
            Record::HardState(hard_state) => self.hard_state = *hard_state,
            Record::Snapshot { last, discard_log } => self.on_snapshot(*last, *discard_log),
            Record::Entries(entries) => {
                if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
                    self.on_entries(first.index, last.index);
                }
            }
        }
    }

    fn on_snapshot(&mut self, last: LogPosition, discard_log: bool) {
        self.snapshot = Some(last);
        if discard_log {
            self.truncate(Index(1));
        }
        self.last_index = self.last_index.max(last.index);
    }

    fn on_entries(&mut self, first: Index, last: Index) {
        self.truncate(first);
        self.last_index = last;
        if let Some(current) = self.segments.back_mut() {
            current.last_index = last;
        }
    }

    fn truncate(&mut self, from: Index) {
        let end = from.previous();
        self.last_index = self.last_index.min(end);
        for segment in &mut self.segments {
            segment.last_index = segment.last_index.min(end);
        }
    }

    /// Forgets the oldest segments of which nothing counts any more, and names them. Only from the
    /// front: a later segment's replacements must not go before what they replace.
    pub(crate) fn retire(&mut self) -> Vec<u64> {
        let snapshot_index = self.snapshot_index();
        let mut retired = Vec::new();
        while self.segments.len() > 1 {
            match self.segments.front() {
                Some(oldest) if oldest.last_index <= snapshot_index => {
                    retired.push(oldest.sequence);
                    self.segments.pop_front();
                }
                _ => break,
            }
        }
        retired
    }
}
