//! A store small enough to roll often, and its deliberately dumb twin.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program compiles its own copy and uses its share"
)]

use std::collections::BTreeMap;

use bytes::Bytes;
use raft::{
    ClientId, Command, Configuration, Durable, Entry, HardState, Index, LogPosition, NodeKey,
    Payload, Persist, PersistSeq, RequestNumber, SaveSnapshot, Settings, Snapshot, SnapshotMeta,
    Term,
};
use store::{CrashDisk, OpenError, Recovered, Store, StoreOptions};

pub const KEY: NodeKey = NodeKey(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

/// The smallest segments there are.
pub fn options() -> StoreOptions {
    StoreOptions {
        segment_bytes: 4096,
        ..StoreOptions::new("a", "test")
    }
}

pub fn open(disk: &CrashDisk) -> Result<(Store<CrashDisk>, Recovered), OpenError> {
    Store::open(disk.clone(), &options(), || KEY)
}

pub fn entry(index: u64, term: u64, data: impl Into<Bytes>) -> Entry {
    Entry {
        index: Index(index),
        term: Term(term),
        payload: Payload::Command(Command {
            client: ClientId(1),
            request: RequestNumber(index),
            data: data.into(),
        }),
    }
}

pub fn entries(from: u64, count: u64) -> Persist {
    Persist {
        entries: (from..from + count)
            .map(|index| entry(index, 2, format!("entry {index}")))
            .collect(),
        ..Persist::default()
    }
}

pub fn hard_state(term: u64) -> Persist {
    Persist {
        hard_state: Some(HardState {
            term: Term(term),
            voted_for: Some(KEY),
        }),
        ..Persist::default()
    }
}

pub fn snapshot(index: u64, data: impl Into<Bytes>, discard_log: bool) -> Persist {
    let meta = SnapshotMeta {
        last: LogPosition {
            index: Index(index),
            term: Term(2),
        },
        configuration: Configuration::of(
            BTreeMap::from([(KEY, "a".to_owned())]),
            Settings::default(),
        ),
        epoch: raft::LeaseEpoch::default(),
    };
    Persist {
        snapshot: Some(SaveSnapshot {
            snapshot: Snapshot {
                meta,
                data: data.into(),
            },
            discard_log,
        }),
        ..Persist::default()
    }
}

/// What a disk without faults would hold: a value, changed as each write says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Twin(pub Durable);

impl Twin {
    pub fn write(&mut self, writes: &[Persist]) {
        for write in writes {
            if let Some(hard_state) = write.hard_state {
                self.0.hard_state = hard_state;
            }
            if let Some(save) = &write.snapshot {
                let last = save.snapshot.meta.last.index;
                let discard = save.discard_log;
                self.0.entries.retain(|e| !discard && e.index > last);
                self.0.snapshot = Some(save.snapshot.clone());
            }
            if let Some(first) = write.entries.first() {
                self.0.entries.retain(|held| held.index < first.index);
                self.0.entries.extend(write.entries.iter().cloned());
            }
        }
    }

    pub fn snapshot_index(&self) -> u64 {
        self.0.snapshot.as_ref().map_or(0, |s| s.meta.last.index.0)
    }

    pub fn last_index(&self) -> u64 {
        self.0
            .entries
            .last()
            .map_or(self.snapshot_index(), |e| e.index.0)
    }
}

/// One thing the owner of a store does, in numbers that fit whatever the log holds by then.
#[derive(Clone, Debug)]
pub enum Action {
    Append {
        count: u64,
        size: usize,
        fill: u8,
    },
    Replace {
        back: u64,
        count: u64,
    },
    Vote,
    Compact {
        back: u64,
        size: usize,
    },
    Install {
        ahead: u64,
        size: usize,
        also_append: u64,
    },
    /// Several of these as one batch.
    Together(Vec<Action>),
    Tidy,
    Reopen,
}

/// What the core would ask for, given what it has asked for so far.
pub fn persists(action: &Action, twin: &Twin, seq: u64) -> Vec<Persist> {
    let last = twin.last_index();
    let term = twin.0.hard_state.term.0;
    let appended = |from: u64, count: u64, size: usize, fill: u8| Persist {
        entries: (from..from + count)
            .map(|index| entry(index, term, vec![fill; size]))
            .collect(),
        ..Persist::default()
    };
    let mut write = match action {
        Action::Append { count, size, fill } => appended(last + 1, *count, *size, *fill),
        Action::Replace { back, count } => {
            let from = (last + 1)
                .saturating_sub(*back)
                .max(twin.snapshot_index() + 1);
            appended(from, *count, 40, 7)
        }
        Action::Vote => hard_state(term + 1),
        Action::Compact { back, size } => {
            let through = last.saturating_sub(*back).max(twin.snapshot_index());
            // The same position is the same state, so the core has nothing to save.
            if through == twin.snapshot_index() {
                return Vec::new();
            }
            snapshot(through, vec![3; *size], false)
        }
        Action::Install {
            ahead,
            size,
            also_append,
        } => {
            // Also below the end of a log that disagrees with it.
            let index = (last + ahead)
                .saturating_sub(4)
                .max(twin.snapshot_index() + 1);
            Persist {
                entries: appended(index + 1, *also_append, 10, 9).entries,
                ..snapshot(index, vec![4; *size], true)
            }
        }
        Action::Together(actions) => {
            let mut twin = twin.clone();
            let mut all = Vec::new();
            for (i, action) in actions.iter().enumerate() {
                let writes = persists(action, &twin, seq + i as u64);
                twin.write(&writes);
                all.extend(writes);
            }
            return all;
        }
        Action::Tidy | Action::Reopen => return Vec::new(),
    };
    write.seq = PersistSeq(seq);
    vec![write]
}
