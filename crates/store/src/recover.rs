//! From the files of a directory back to what the node remembers.
//!
//! The segments are walked oldest first, batch by batch. Where no valid batch follows, the bytes are
//! judged (see [`crate::frame`]), and the verdict "torn" stands only if nothing valid lies behind it
//! in this segment or a later one. Nothing is changed until all of it has been checked.

use std::collections::BTreeMap;
use std::io;

use raft::{Durable, Entry, Index, LogPosition, NodeKey, Snapshot};

use crate::disk::{Disk, DiskFile};
use crate::error::{Doing, OpenError};
use crate::files::{self, Name};
use crate::frame::{self, Tail};
use crate::ledger::Ledger;
use crate::record::Record;
use crate::segment::{self, Active, Found};
use crate::snapshot;

/// A batch that the power cut short. It had never been confirmed to anyone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The segment it stood in.
    pub file: String,
    /// Where it began, in bytes.
    pub offset: u64,
    /// How many bytes there were, up to the last one that was not zero.
    pub length: u64,
}

/// What the directory held.
#[derive(Debug)]
pub(crate) struct Recovery<F> {
    pub(crate) ledger: Ledger,
    pub(crate) snapshot: Option<Snapshot>,
    pub(crate) entries: Vec<Entry>,
    /// The number of the last batch.
    pub(crate) batch: u64,
    pub(crate) active: Active<F>,
    pub(crate) cut: Option<TornTail>,
}

/// Reads everything, and mends the end of the log so that it can be written on.
pub(crate) fn recover<D: Disk>(
    disk: &D,
    key: NodeKey,
    names: &[String],
) -> Result<Recovery<D::File>, OpenError> {
    let Checked {
        mut walk,
        snapshot,
        entries,
    } = check(disk, key, names)?;
    let active = walk.mend(disk)?;
    Ok(Recovery {
        ledger: walk.ledger,
        snapshot,
        entries,
        batch: walk.batch,
        active,
        cut: walk.cut,
    })
}

/// Reads everything and changes nothing.
pub(crate) fn read<D: Disk>(
    disk: &D,
    key: NodeKey,
    names: &[String],
) -> Result<(Durable, Option<TornTail>), OpenError> {
    let Checked {
        walk,
        snapshot,
        entries,
    } = check(disk, key, names)?;
    let durable = Durable {
        hard_state: walk.ledger.hard_state,
        snapshot,
        entries,
    };
    Ok((durable, walk.cut))
}

/// What the files say, and what is to be done before they can be written on.
struct Checked<F> {
    walk: Walk<F>,
    snapshot: Option<Snapshot>,
    entries: Vec<Entry>,
}

fn check<D: Disk>(disk: &D, key: NodeKey, names: &[String]) -> Result<Checked<D::File>, OpenError> {
    let (stale, segments) = connected_segments(names);
    let oldest = *segments.first().ok_or_else(|| OpenError::Missing {
        file: files::segment(1),
    })?;
    let mut walk = Walk::default();
    for sequence in segments {
        walk.segment(Found::read(disk, key, sequence)?)?;
    }
    let snapshot = match walk.ledger.snapshot {
        Some(last) => Some(read_snapshot(disk, key, last)?),
        None => None,
    };
    let entries = walk.take_entries(oldest)?;
    // Removed by mending, not by and by: a later write may give one of these names to a new file.
    walk.unused.extend(stale.into_iter().map(files::segment));
    walk.unused
        .extend(superseded_files(names, walk.ledger.snapshot));
    let retired = walk.ledger.retire().into_iter().map(files::segment);
    walk.unused.extend(retired);
    Ok(Checked {
        walk,
        snapshot,
        entries,
    })
}

/// Splits the segments at the last gap in their numbers. Before it stand files whose removal a
/// crash undid; if one behind it had been lost instead, the checkpoint that follows tells.
fn connected_segments(names: &[String]) -> (Vec<u64>, Vec<u64>) {
    let mut sequences: Vec<u64> = names
        .iter()
        .filter_map(|name| match Name::parse(name) {
            Name::Segment(sequence) => Some(sequence),
            _ => None,
        })
        .collect();
    sequences.sort_unstable();
    let connected = sequences
        .windows(2)
        .rposition(|pair| pair[0].checked_add(1) != Some(pair[1]))
        .map_or(0, |gap| gap + 1);
    let tail = sequences.split_off(connected);
    (sequences, tail)
}

fn read_snapshot<D: Disk>(
    disk: &D,
    key: NodeKey,
    last: LogPosition,
) -> Result<Snapshot, OpenError> {
    snapshot::read(disk, key, last).map_err(|error| match error {
        OpenError::Unreadable { file, source, .. } if source.kind() == io::ErrorKind::NotFound => {
            OpenError::Missing { file }
        }
        other => other,
    })
}

/// Unfinished files, and snapshots other than the one the log speaks of.
fn superseded_files(names: &[String], current: Option<LogPosition>) -> Vec<String> {
    let superseded = |name: &&String| match Name::parse(name) {
        Name::Temporary => true,
        Name::Snapshot(last) => Some(last) != current,
        Name::Identity | Name::Segment(_) | Name::Foreign => false,
    };
    names.iter().filter(superseded).cloned().collect()
}

/// The log as far as it has been walked.
#[derive(Debug)]
struct Walk<F> {
    ledger: Ledger,
    entries: BTreeMap<Index, Entry>,
    batch: u64,
    /// The last segment with a batch, where its last batch starts, and where it ends.
    last: Option<(Found<F>, usize, usize)>,
    /// Once set, nothing valid may follow.
    cut: Option<TornTail>,
    /// Files to remove; among them the segments behind the last batch: prepared and not used, or
    /// begun with a batch that was cut.
    unused: Vec<String>,
}

impl<F> Default for Walk<F> {
    fn default() -> Walk<F> {
        Walk {
            ledger: Ledger::default(),
            entries: BTreeMap::new(),
            batch: 0,
            last: None,
            cut: None,
            unused: Vec::new(),
        }
    }
}

impl<F: DiskFile> Walk<F> {
    fn segment(&mut self, found: Found<F>) -> Result<(), OpenError> {
        if self.cut.is_some() || !self.unused.is_empty() {
            return self.segment_behind_the_end(found);
        }
        let (mut start, mut end) = (segment::HEADER, segment::HEADER);
        while let Some(frame) = frame::read(&found.bytes, end, found.place) {
            self.batch(&found, end, &frame)?;
            (start, end) = (end, frame.header.end);
        }
        self.end(&found, end)?;
        if end > segment::HEADER {
            self.last = Some((found, start, end));
        } else if self.last.is_some() {
            self.unused.push(found.name);
        } else {
            return Err(found.rot(end, "the batch that opens the log is damaged"));
        }
        Ok(())
    }

    /// Judges what follows the last valid batch of a segment.
    fn end(&mut self, found: &Found<F>, end: usize) -> Result<(), OpenError> {
        match frame::judge(&found.bytes, end, found.place) {
            Tail::Clean => Ok(()),
            Tail::Rot(what) => Err(found.rot(end, what)),
            Tail::Torn => {
                let behind = frame::header(&found.bytes, end, found.place)
                    .map_or(end + frame::ALIGNMENT, |header| header.end);
                if frame::find(&found.bytes, behind, found.place).is_some() {
                    return Err(found.rot(end, "a later batch shows that this one was durable"));
                }
                let length = found.bytes[end..]
                    .iter()
                    .rposition(|byte| *byte != 0)
                    .map_or(0, |last| last + 1);
                self.cut = Some(TornTail {
                    file: found.name.clone(),
                    offset: end as u64,
                    length: length as u64,
                });
                Ok(())
            }
        }
    }

    fn segment_behind_the_end(&mut self, found: Found<F>) -> Result<(), OpenError> {
        let Some((at, _)) = frame::find(&found.bytes, segment::HEADER, found.place) else {
            self.unused.push(found.name);
            return Ok(());
        };
        let what = format!(
            "what followed batch {} is gone, though a later one stands at byte {at} of {}",
            self.batch, found.name
        );
        Err(match (&self.cut, &self.last) {
            (Some(cut), _) => OpenError::Rot {
                file: cut.file.clone(),
                offset: cut.offset,
                what,
            },
            (None, Some((last, _, end))) => last.rot(*end, what),
            (None, None) => found.rot(at, what),
        })
    }

    fn batch(
        &mut self,
        found: &Found<F>,
        at: usize,
        frame: &frame::Frame,
    ) -> Result<(), OpenError> {
        let number = frame.header.batch;
        if self.last.is_none() && at == segment::HEADER {
            self.batch = number.saturating_sub(1);
        }
        if Some(number) != self.batch.checked_add(1) {
            let what = format!("batch {number} stands behind batch {}", self.batch);
            return Err(found.rot(at, what));
        }
        self.batch = number;
        let records =
            Record::decode_all(&frame.payload, frame.header.records).map_err(|error| {
                OpenError::Undecodable {
                    file: found.name.clone(),
                    offset: at as u64,
                    what: error.to_string(),
                }
            })?;
        for (i, record) in records.into_iter().enumerate() {
            let opens = at == segment::HEADER && i == 0;
            self.record(found, opens, record)
                .map_err(|what| found.rot(at, what))?;
        }
        Ok(())
    }

    /// Takes one record, or says how it contradicts what stands before it. The checksums were
    /// right, so this finds lost files and our own mistakes.
    fn record(
        &mut self,
        found: &Found<F>,
        opens: bool,
        record: Record<'static>,
    ) -> Result<(), &'static str> {
        if let Record::Checkpoint(checkpoint) = &record {
            let agrees = self.last.is_none() || *checkpoint == self.ledger.checkpoint();
            if !opens || !agrees {
                return Err("the checkpoint contradicts the log before it");
            }
            self.ledger.open_segment(found.sequence);
        } else if opens {
            return Err("a segment begins without its checkpoint");
        }
        match &record {
            Record::Entries(entries) if entries[0].index > self.ledger.last_index + 1 => {
                return Err("entries follow a gap in the log");
            }
            Record::Snapshot { last, .. } if last.index < self.ledger.snapshot_index() => {
                return Err("a snapshot goes back behind an earlier one");
            }
            _ => {}
        }
        self.ledger.apply(&record);
        match record {
            Record::Entries(entries) => {
                self.entries.split_off(&entries[0].index);
                let entries = entries.into_owned();
                self.entries
                    .extend(entries.into_iter().map(|e| (e.index, e)));
            }
            Record::Snapshot { discard_log, .. } if discard_log => self.entries.clear(),
            Record::Checkpoint(_) | Record::HardState(_) | Record::Snapshot { .. } => {}
        }
        Ok(())
    }

    /// The entries after the snapshot, which must be there up to the last one.
    fn take_entries(&mut self, oldest: u64) -> Result<Vec<Entry>, OpenError> {
        let first = self.ledger.snapshot_index() + 1;
        let entries = self.entries.split_off(&first);
        let consecutive = entries
            .keys()
            .enumerate()
            .all(|(i, index)| *index == first + i as u64);
        if consecutive && first + entries.len() as u64 == self.ledger.last_index + 1 {
            return Ok(entries.into_values().collect());
        }
        Err(OpenError::Missing {
            file: files::segment(oldest.saturating_sub(1)),
        })
    }

    /// Makes the end of the log fit to be written on.
    fn mend<D: Disk<File = F>>(&mut self, disk: &D) -> Result<Active<F>, OpenError> {
        let (found, start, end) = self.last.take().expect("the walk found a batch");
        let name = found.name.clone();
        // The last batch may be in the page cache only: its sync may have failed, or the process
        // died before it, and a cache that looks clean is not written back. What is reported as
        // durable from now on is written again.
        found
            .file
            .write_all_at(&found.bytes[start..end], start as u64)
            .doing("write", &name)?;
        if let Some(cut) = self.cut.as_ref().filter(|cut| cut.file == name) {
            found
                .file
                .write_all_at(&vec![0; cut.length as usize], cut.offset)
                .doing("write", &name)?;
        }
        found.file.sync_data().doing("sync", &name)?;
        for unused in &self.unused {
            disk.remove(unused).doing("remove", unused)?;
        }
        disk.sync_dir().doing("sync", &disk.describe())?;
        Ok(found.into_active(end))
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use proptest::collection::vec;
    use proptest::prelude::*;
    use raft::{HardState, Payload, Term};

    use super::*;
    use crate::crash::CrashDisk;
    use crate::record::Checkpoint;
    use crate::segment::Preparation;

    const KEY: NodeKey = NodeKey(5);

    /// A log of batches with right checksums, whatever they say.
    fn log(segments: &[Vec<(u64, Vec<Record<'static>>)>]) -> CrashDisk {
        let disk = CrashDisk::new(1);
        for (batches, sequence) in segments.iter().zip(1..) {
            let mut preparation =
                Preparation::begin(&disk, KEY, sequence, 64 << 10).expect("no fault");
            while !preparation.is_zeroed() {
                preparation.step().expect("no fault");
            }
            let mut active = preparation.finish(&disk).expect("no fault");
            for (number, records) in batches {
                let mut buffer = Vec::new();
                frame::begin(&mut buffer);
                for record in records {
                    record.encode(&mut buffer);
                }
                let count = records.len() as u32;
                frame::finish(&mut buffer, active.place, active.end, *number, count);
                active
                    .file
                    .write_all_at(&buffer, active.end as u64)
                    .expect("no fault");
                active.end += buffer.len();
            }
        }
        disk
    }

    fn recovered(disk: &CrashDisk) -> Result<Vec<Entry>, OpenError> {
        let names = disk.list().expect("no fault");
        recover(disk, KEY, &names).map(|recovery| recovery.entries)
    }

    fn entries(first: u64, count: u64) -> Record<'static> {
        let entry = |index| Entry {
            index: Index(index),
            term: Term(2),
            payload: Payload::Noop,
        };
        let last = first.saturating_add(count);
        Record::Entries((first..last).map(entry).collect())
    }

    fn checkpoint(last_index: u64) -> Record<'static> {
        Record::Checkpoint(Checkpoint {
            last_index: Index(last_index),
            ..Checkpoint::default()
        })
    }

    /// Each of these has right checksums and says what no correct store ever wrote.
    #[test]
    fn a_log_that_contradicts_itself_is_refused() {
        let start = || (1, vec![checkpoint(0)]);
        let logs = [
            ("no checkpoint", vec![vec![(1, vec![entries(1, 1)])]]),
            (
                "a checkpoint inside",
                vec![vec![start(), (2, vec![checkpoint(0)])]],
            ),
            (
                "a number is missing",
                vec![vec![start(), (3, vec![entries(1, 1)])]],
            ),
            (
                "a number across segments is missing",
                vec![vec![start()], vec![(3, vec![checkpoint(0)])]],
            ),
            ("a gap", vec![vec![start(), (2, vec![entries(2, 1)])]]),
            (
                "the checkpoint knows better",
                vec![vec![start()], vec![(2, vec![checkpoint(7)])]],
            ),
            (
                "entries before are missing",
                vec![vec![(1, vec![checkpoint(7)])]],
            ),
            (
                "a segment without batches inside",
                vec![vec![start()], vec![], vec![(2, vec![checkpoint(0)])]],
            ),
        ];
        for (what, segments) in logs {
            assert!(recovered(&log(&segments)).is_err(), "{what}");
        }
        let sound = [
            vec![start(), (2, vec![entries(1, 3)])],
            vec![(3, vec![checkpoint(3), entries(2, 1)])],
            vec![],
        ];
        assert_eq!(recovered(&log(&sound)).expect("sound").len(), 2);
    }

    /// A batch that starts with a sector and lost it looks as if it had never been written, were
    /// it not for the one behind it.
    #[test]
    fn a_later_batch_proves_that_a_vanished_one_was_durable() {
        let mut batches = vec![(1, vec![checkpoint(0), entries(1, 1)])];
        let first_end = |batches: &[(u64, Vec<Record<'static>>)]| {
            let disk = log(&[batches.to_vec()]);
            let found = Found::read(&disk, KEY, 1).expect("whole");
            let header = frame::header(&found.bytes, segment::HEADER, found.place);
            header.expect("valid").end
        };
        let count = (1..)
            .find(|count| {
                batches[0].1[1] = entries(1, *count);
                first_end(&batches) == frame::SECTOR
            })
            .expect("some number of entries fills the sector");
        batches.push((2, vec![entries(count + 1, 200)]));
        for (later, is_rot) in [(false, false), (true, true)] {
            if later {
                batches.push((3, vec![entries(count + 201, 1)]));
            }
            let disk = log(&[batches.clone()]);
            let mut bytes = disk.read("wal-0000000000000001").expect("written");
            bytes[frame::SECTOR..2 * frame::SECTOR].fill(0);
            disk.put("wal-0000000000000001", &bytes);
            match recovered(&disk) {
                Ok(entries) => assert!(!is_rot && entries.len() as u64 == count),
                Err(error) => assert!(is_rot, "{error}"),
            }
        }
    }

    fn any_record() -> impl Strategy<Value = Record<'static>> {
        let number = || prop_oneof![0..6_u64, Just(u64::MAX), Just(u64::MAX - 1)];
        prop_oneof![
            (number(), proptest::option::of(number())).prop_map(|(last, snapshot)| {
                Record::Checkpoint(Checkpoint {
                    hard_state: HardState::default(),
                    snapshot: snapshot.map(|index| LogPosition {
                        index: Index(index),
                        term: Term(1),
                    }),
                    last_index: Index(last),
                })
            }),
            (1..6_u64, 1..4_u64).prop_map(|(first, count)| entries(first, count)),
            Just(entries(u64::MAX - 1, 1)),
            (number(), any::<bool>()).prop_map(|(index, discard_log)| Record::Snapshot {
                last: LogPosition {
                    index: Index(index),
                    term: Term(1),
                },
                discard_log,
            }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None, ..ProptestConfig::default()
        })]

        #[test]
        fn no_records_make_recovery_panic(
            segments in vec(vec(vec(any_record(), 1..4), 0..4), 1..4),
            first in prop_oneof![Just(1), Just(u64::MAX - 1)],
        ) {
            let mut number = first;
            let numbered: Vec<Vec<_>> = segments
                .into_iter()
                .map(|batches| {
                    let numbered = batches.into_iter().map(|records| {
                        let batch = (number, records);
                        number = number.saturating_add(1);
                        batch
                    });
                    numbered.collect()
                })
                .collect();
            let disk = log(&numbered);
            prop_assert!(catch_unwind(AssertUnwindSafe(|| recovered(&disk).is_ok())).is_ok());
        }

        #[test]
        fn no_payload_makes_decoding_panic(payload in vec(any::<u8>(), 0..60), count: u32) {
            let _ = Record::decode_all(&payload, count);
        }
    }
}
