//! The changes of late, so that a watch misses none: part of the replicated state, and so the same
//! on every node.

use std::collections::VecDeque;

use crate::kv::Bounds;
use crate::state::{Cursor, KeyEvent, KeyRange, MAX_ANSWER_BYTES, Watched};

/// How many changes are kept at least, where they are no larger than [`MAX_HISTORY_BYTES`].
pub const MAX_HISTORY: usize = 10_000;

/// How many bytes of keys and values are kept at most, but for the newest revision.
pub const MAX_HISTORY_BYTES: usize = 4 << 20;

/// What one kept change costs beside its key and value.
const OVERHEAD: usize = 32;

/// The changes of late, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct History {
    events: VecDeque<KeyEvent>,
    bytes: usize,
    /// Changes of this revision and before it are no longer kept.
    compacted: u64,
}

impl History {
    /// One that begins after `compacted`, with these changes, as a snapshot holds them.
    pub(crate) fn restored(compacted: u64, events: Vec<KeyEvent>) -> History {
        let bytes = events.iter().map(cost).sum();
        History {
            events: events.into(),
            bytes,
            compacted,
        }
    }

    pub(crate) fn compacted(&self) -> u64 {
        self.compacted
    }

    pub(crate) fn events(&self) -> &VecDeque<KeyEvent> {
        &self.events
    }

    pub(crate) fn push(&mut self, event: KeyEvent) {
        self.bytes += cost(&event);
        self.events.push_back(event);
    }

    /// Lets go of the oldest revisions while there is too much, but never of `newest`.
    pub(crate) fn trim(&mut self, newest: u64, bounds: Bounds) {
        while self.events.len() > bounds.history || self.bytes > bounds.history_bytes {
            let Some(oldest) = self.events.front().map(KeyEvent::revision) else {
                return;
            };
            if oldest >= newest {
                return;
            }
            self.forget(oldest);
        }
    }

    /// Lets go of a revision and all before it.
    fn forget(&mut self, through: u64) {
        while let Some(event) = self
            .events
            .pop_front_if(|event| event.revision() <= through)
        {
            self.bytes -= cost(&event);
        }
        self.compacted = self.compacted.max(through);
    }

    /// The changes of `range` from `cursor` on: as many as one answer holds.
    pub(crate) fn since(&self, range: &KeyRange, cursor: Cursor, revision: u64) -> Watched {
        if cursor.revision <= self.compacted {
            let oldest = self.compacted + 1;
            return Watched::Compacted { oldest };
        }
        let start = self
            .events
            .partition_point(|e| e.revision() < cursor.revision);
        let (mut events, mut bytes) = (Vec::new(), 0);
        let mut at = Cursor::from(cursor.revision);
        for event in self.events.range(start..) {
            if event.revision() != at.revision {
                at = Cursor::from(event.revision());
            }
            let here = at;
            at.skip += 1;
            if here < cursor || !range.contains(event.key()) {
                continue;
            }
            bytes += cost(event);
            if bytes > MAX_ANSWER_BYTES && !events.is_empty() {
                return Watched::Events { events, next: here };
            }
            events.push(event.clone());
        }
        // Whoever asks from beyond what there is waits for that.
        let next = cursor.max(Cursor::from(revision + 1));
        Watched::Events { events, next }
    }
}

fn cost(event: &KeyEvent) -> usize {
    event.size() + OVERHEAD
}
