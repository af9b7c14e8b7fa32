//! A node's directory with any bytes in it: opened or refused, never with what was not written, and
//! what was opened can be written on.

#![no_main]
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "whole files of the product are compiled in here, and a target calls a part of each"
)]

// All of `store`: frames with right checksums around any payload need its private modules.
#[path = "../../crates/store/src/crash.rs"]
mod crash;
#[path = "../../crates/store/src/disk.rs"]
mod disk;
#[path = "../../crates/store/src/error.rs"]
mod error;
#[path = "../../crates/store/src/files.rs"]
mod files;
#[path = "../../crates/store/src/frame.rs"]
mod frame;
#[path = "../../crates/store/src/identity.rs"]
mod identity;
#[path = "../../crates/store/src/ledger.rs"]
mod ledger;
#[path = "../../crates/store/src/record.rs"]
mod record;
#[path = "../../crates/store/src/recover.rs"]
mod recover;
#[path = "../../crates/store/src/segment.rs"]
mod segment;
#[path = "../../crates/store/src/snapshot.rs"]
mod snapshot;
#[path = "../../crates/store/src/store.rs"]
mod store;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use crash::CrashDisk;
use disk::{Disk, DiskFile};
use error::OpenError;
use fuzz::Reader;
use libfuzzer_sys::fuzz_target;
use raft::{
    ClientId, Command, Configuration, Durable, Entry, HardState, Index, LogPosition, NodeKey,
    Payload, Persist, PersistSeq, RequestNumber, SaveSnapshot, Settings, Snapshot, SnapshotMeta,
    Term,
};
use store::{Recovered, Store, StoreOptions};

const KEY: NodeKey = NodeKey(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
const SECTOR: usize = 512;

type Files = BTreeMap<String, Vec<u8>>;

/// A directory as a store left it, and what it held after each write.
struct Image {
    files: Files,
    history: Vec<Durable>,
}

fn open(disk: &CrashDisk) -> Result<(Store<CrashDisk>, Recovered), OpenError> {
    // The smallest segments there are.
    let options = StoreOptions {
        segment_bytes: 4_096,
        ..StoreOptions::new("a", "test")
    };
    Store::open(disk.clone(), &options, || KEY)
}

fn entry(index: Index, term: Term, data: Vec<u8>) -> Entry {
    Entry {
        index,
        term,
        payload: Payload::Command(Command {
            client: ClientId(1),
            request: RequestNumber(index.0),
            data: data.into(),
        }),
    }
}

fn entries(from: u64, count: u64, size: usize) -> Persist {
    let indexes = from..from + count;
    Persist {
        entries: indexes
            .map(|index| entry(Index(index), Term(2), vec![index as u8; size]))
            .collect(),
        ..Persist::default()
    }
}

fn vote(term: u64) -> Persist {
    Persist {
        hard_state: Some(HardState {
            term: Term(term),
            voted_for: Some(KEY),
        }),
        ..Persist::default()
    }
}

fn snapshot_to(index: u64, size: usize, discard_log: bool) -> Persist {
    let voters = BTreeMap::from([(KEY, "a".to_owned())]);
    let last = LogPosition {
        index: Index(index),
        term: Term(2),
    };
    let meta = SnapshotMeta {
        last,
        configuration: Configuration::of(voters, Settings::default()),
        epoch: raft::LeaseEpoch::default(),
    };
    let data = vec![7; size].into();
    Persist {
        snapshot: Some(SaveSnapshot {
            snapshot: Snapshot { meta, data },
            discard_log,
        }),
        ..Persist::default()
    }
}

/// What a disk without faults holds after one more write.
fn after(durable: &Durable, write: &Persist) -> Durable {
    let mut durable = durable.clone();
    if let Some(hard_state) = write.hard_state {
        durable.hard_state = hard_state;
    }
    if let Some(save) = &write.snapshot {
        let last = save.snapshot.meta.last.index;
        let keeps = |entry: &Entry| !save.discard_log && entry.index > last;
        durable.entries.retain(keeps);
        durable.snapshot = Some(save.snapshot.clone());
    }
    if let Some(first) = write.entries.first() {
        durable.entries.retain(|held| held.index < first.index);
        durable.entries.extend(write.entries.iter().cloned());
    }
    durable
}

impl Image {
    fn of(writes: Vec<Persist>) -> Image {
        let disk = CrashDisk::new(1);
        let (mut store, _) = open(&disk).expect("fresh");
        store.set_formation("formed".into()).expect("no fault");
        let mut history = vec![Durable::default()];
        for (write, seq) in writes.into_iter().zip(1..) {
            let seq = PersistSeq(seq);
            let last = history.last().expect("never empty");
            history.push(after(last, &write));
            store.write(&[Persist { seq, ..write }]).expect("no fault");
        }
        while store.tidy().expect("no fault") {}
        drop(store);
        let names = disk.list().expect("alive").into_iter();
        let files = names.map(|name| (name.clone(), disk.read(&name).expect("listed")));
        let files = files.collect();
        Image { files, history }
    }

    fn last(&self) -> &Durable {
        self.history.last().expect("never empty")
    }
}

fn images() -> &'static [Image] {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        vec![
            Image::of(vec![vote(2), entries(1, 3, 10), vote(3)]),
            // Several segments, a snapshot among them, a batch of several sectors, zeros.
            Image::of(vec![
                vote(2),
                entries(1, 20, 30),
                entries(21, 1, 1_300),
                snapshot_to(5, 900, false),
                entries(20, 40, 12),
                vote(3),
                entries(60, 1, 1_300),
                entries(61, 1, 1_300),
            ]),
            // A follower that had to take a snapshot, and went on.
            Image::of(vec![
                vote(2),
                entries(1, 5, 100),
                snapshot_to(50, 300, true),
                entries(51, 2, 0),
            ]),
        ]
    })
}

fn disk_with(files: &Files) -> CrashDisk {
    let disk = CrashDisk::new(2);
    for (name, bytes) in files {
        disk.put(name, bytes);
    }
    disk
}

/// What was opened takes a write, and gives it back after a power cut.
fn lives_on(disk: &CrashDisk, mut store: Store<CrashDisk>, recovered: &Recovered) {
    let durable = &recovered.durable;
    let snapshot = durable.snapshot.as_ref().map(|snapshot| snapshot.meta.last);
    let last = durable.entries.last().map(Entry::position).or(snapshot);
    let last = last.unwrap_or_default();
    if last.index.next() == last.index {
        return; // No log grows so long.
    }
    let write = Persist {
        seq: PersistSeq(1),
        entries: vec![entry(last.index.next(), last.term, b"one more".to_vec())],
        ..Persist::default()
    };
    let expected = after(durable, &write);
    store
        .write(&[write])
        .expect("a store that was opened can be written");
    drop(store);
    disk.crash();
    let (_, again) = open(disk).expect("what was written can be opened");
    assert_eq!(again.durable, expected);
    assert_eq!(again.identity, recovered.identity);
    assert_eq!(again.cut, None);
}

/// Files of which the fuzzer writes every byte.
fn any_files(reader: &mut Reader<'_>) -> Files {
    let image = &images()[reader.below(3)];
    let mut files = Files::new();
    // A whole identity, or nothing behind it is looked at.
    if reader.below(4) > 0 {
        let name = files::IDENTITY.to_owned();
        files.insert(name.clone(), image.files[&name].clone());
    }
    while !reader.is_empty() && files.len() < 6 {
        let name = match reader.below(8) {
            0 => files::IDENTITY.to_owned(),
            1 => files::SEGMENT_TMP.to_owned(),
            2 | 3 => files::snapshot(LogPosition {
                index: Index(reader.number()),
                term: Term(reader.number()),
            }),
            _ => files::segment(reader.number()),
        };
        files.insert(name, reader.sized().to_vec());
    }
    files
}

/// Segments of frames whose checksums are right, around payloads that may say anything.
fn any_records(reader: &mut Reader<'_>) -> Files {
    let image = &images()[reader.below(3)];
    let mut files = image.files.clone();
    files.retain(|name, _| !name.starts_with("wal-"));
    let disk = disk_with(&files);
    let mut batch = match reader.below(8) {
        0 => reader.number(),
        _ => 1,
    };
    let mut sequence = 1;
    while !reader.is_empty() && sequence < 5 {
        let prepared = segment::Preparation::begin(&disk, KEY, sequence, 4_096);
        let mut prepared = prepared.expect("no fault");
        while !prepared.is_zeroed() {
            prepared.step().expect("no fault");
        }
        let mut active = prepared.finish(&disk).expect("no fault");
        for _ in 0..=reader.below(4) {
            let (records, payload) = (u32::from(reader.byte() % 8), reader.sized());
            let mut bytes = Vec::new();
            frame::begin(&mut bytes);
            bytes.extend_from_slice(payload);
            let fits = active.has_room_for(frame::finished_size(&bytes));
            if records == 0 || payload.is_empty() || batch == 0 || !fits {
                continue;
            }
            frame::finish(&mut bytes, active.place, active.end, batch, records);
            let written = active.file.write_all_at(&bytes, active.end as u64);
            written.expect("no fault");
            active.end += bytes.len();
            batch = batch.saturating_add(1);
        }
        sequence += 1;
    }
    let names = disk.list().expect("alive").into_iter();
    names
        .map(|name| (name.clone(), disk.read(&name).expect("listed")))
        .collect()
}

/// How much the damage proves about what may come back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Damage {
    /// At most three bits: no CRC-32C of such a file misses them.
    Bits,
    /// Sectors and files that were lost, cut or came back in another's place: a write may be
    /// missing as if it had never been, but nothing else comes in its place.
    Lost,
    /// Bytes of the fuzzer's choice, which finds the checksums that fit.
    Chosen,
}

fn damage(files: &mut Files, reader: &mut Reader<'_>) -> Damage {
    let (mut damage, mut bits) = (Damage::Bits, 0);
    for _ in 0..8 {
        if reader.is_empty() || files.is_empty() {
            break;
        }
        let what = reader.below(8);
        let names: Vec<String> = files.keys().cloned().collect();
        let name = names[reader.below(names.len())].clone();
        let at = usize::from(reader.short());
        let bytes = files.get_mut(&name).expect("named");
        let length = bytes.len();
        let sector = |at: usize| {
            let start = (at % length.max(1)) / SECTOR * SECTOR;
            start..length.min(start + SECTOR)
        };
        let done = match what {
            0 | 1 => {
                if let Some(byte) = bytes.get_mut(at % length.max(1)) {
                    *byte ^= 1 << reader.below(8);
                }
                bits += 1;
                if bits > 3 {
                    Damage::Chosen
                } else {
                    Damage::Bits
                }
            }
            2 => {
                bytes[sector(at)].fill(0);
                Damage::Lost
            }
            3 => {
                bytes.truncate(at);
                Damage::Lost
            }
            4 => {
                files.remove(&name);
                Damage::Lost
            }
            5 => {
                let other = &names[reader.below(names.len())];
                let (one, two) = (files[&name].clone(), files[other].clone());
                files.insert(name, two);
                files.insert(other.clone(), one);
                Damage::Lost
            }
            6 => {
                let range = sector(at);
                let from = sector(usize::from(reader.short()));
                if range.len() == from.len() {
                    bytes.copy_within(from, range.start);
                }
                Damage::Lost
            }
            _ => {
                let chosen = reader.sized();
                let end = length.min(at + chosen.len());
                if at <= end {
                    bytes.splice(at..end, chosen.iter().copied());
                }
                Damage::Chosen
            }
        };
        damage = damage.max(done);
    }
    damage
}

fn damaged(reader: &mut Reader<'_>) {
    let image = &images()[reader.below(3)];
    let mut files = image.files.clone();
    let damage = damage(&mut files, reader);
    let disk = disk_with(&files);
    let Ok((store, recovered)) = open(&disk) else {
        return;
    };
    if damage < Damage::Chosen {
        assert!(
            image.history.contains(&recovered.durable),
            "what comes back was written: {recovered:?}"
        );
    }
    if damage == Damage::Bits && recovered.cut.is_none() {
        assert_eq!(&recovered.durable, image.last(), "nothing is lost silently");
    }
    lives_on(&disk, store, &recovered);
}

fuzz_target!(|data: &[u8]| {
    let mut reader = Reader::new(data);
    let files = match reader.below(4) {
        0 => any_files(&mut reader),
        1 => any_records(&mut reader),
        _ => return damaged(&mut reader),
    };
    let disk = disk_with(&files);
    if let Ok((store, recovered)) = open(&disk) {
        lives_on(&disk, store, &recovered);
    }
});
