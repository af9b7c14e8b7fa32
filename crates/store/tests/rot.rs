//! Bytes that changed behind our back are an error or make no difference, and no bytes at all make
//! recovery panic.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{entries, entry, hard_state, open, snapshot};
use proptest::collection::vec;
use proptest::prelude::*;
use raft::{Durable, Persist};
use store::{CrashDisk, Disk, OpenError};

/// Three segments, a snapshot and a formation record; the last batch spans sectors and is full of
/// zeros. Returns what they hold.
fn sample() -> (CrashDisk, Durable) {
    let disk = CrashDisk::new(1);
    let (mut store, _) = open(&disk).expect("fresh");
    store.set_formation("formed".into()).expect("no fault");
    let zeros = |index| Persist {
        entries: vec![entry(index, 2, vec![0; 1300])],
        ..Persist::default()
    };
    for write in [
        hard_state(2),
        entries(1, 20),
        zeros(21),
        snapshot(5, vec![7; 70_000], false),
        entries(20, 40),
        hard_state(3),
        zeros(60),
        zeros(61),
    ] {
        store.write(&[write]).expect("no fault");
    }
    while store.tidy().expect("no fault") {}
    drop(store);
    let (_, recovered) = open(&disk).expect("undamaged");
    (disk, recovered.durable)
}

/// A disk with the same files.
fn copy(disk: &CrashDisk) -> CrashDisk {
    let copy = CrashDisk::new(2);
    for name in disk.list().expect("alive") {
        copy.put(&name, &disk.read(&name).expect("listed"));
    }
    copy
}

fn is_damage(error: &OpenError) -> bool {
    matches!(error, OpenError::Rot { .. })
}

/// Every byte of every file, the last batch included: it was acknowledged too.
#[test]
fn any_flipped_byte_is_rot_or_makes_no_difference() {
    let (disk, durable) = sample();
    let (mut flips, mut noticed) = (0, 0);
    for name in disk.list().expect("alive") {
        let whole = disk.read(&name).expect("listed");
        // The chunks of a snapshot are all alike.
        let step = if name.starts_with("snap") { 97 } else { 1 };
        for at in (0..whole.len()).step_by(step) {
            for mask in [0x80, whole[at].max(1)] {
                flips += 1;
                disk.rot(&name, at as u64, mask);
                match open(&copy(&disk)) {
                    Ok((_, recovered)) => {
                        assert_eq!(recovered.durable, durable, "{name} at {at} ^ {mask:02x}");
                    }
                    Err(error) => {
                        assert!(is_damage(&error), "{name} at {at} ^ {mask:02x}: {error}");
                        noticed += 1;
                    }
                }
                disk.rot(&name, at as u64, mask);
            }
        }
    }
    assert!(noticed > flips / 3, "{noticed} of {flips}");
}

/// A sector that comes back as zeros is told from a torn write by what follows it. Only in the last
/// batch is it not: that is cut, and reported.
#[test]
fn a_zeroed_sector_is_rot_everywhere_but_in_the_last_batch() {
    let (disk, durable) = sample();
    for name in disk.list().expect("alive") {
        let whole = disk.read(&name).expect("listed");
        for start in (0..whole.len()).step_by(512) {
            let damaged = copy(&disk);
            let mut bytes = whole.clone();
            let end = bytes.len().min(start + 512);
            bytes[start..end].fill(0);
            damaged.put(&name, &bytes);
            match open(&damaged) {
                Ok((_, recovered)) if recovered.cut.is_some() => {
                    let mut without_last = durable.clone();
                    without_last.entries.pop();
                    assert_eq!(recovered.durable, without_last, "{name} at {start}");
                }
                Ok((_, recovered)) => assert_eq!(recovered.durable, durable, "{name} at {start}"),
                Err(error) => assert!(is_damage(&error), "{name} at {start}: {error}"),
            }
        }
    }
}

#[test]
fn a_file_cut_short_or_grown_is_rot() {
    let (disk, _) = sample();
    for name in disk.list().expect("alive") {
        let whole = disk.read(&name).expect("listed");
        let grown = [&whole[..], &[0]].concat();
        for bytes in [&[][..], &whole[..1], &whole[..whole.len() - 1], &grown] {
            let damaged = copy(&disk);
            damaged.put(&name, bytes);
            let error = open(&damaged).map(drop).expect_err("damaged");
            assert!(
                is_damage(&error),
                "{name} of {} bytes: {error}",
                bytes.len()
            );
        }
    }
}

#[test]
fn files_that_changed_places_are_rot() {
    let (disk, _) = sample();
    let (first, second) = ("wal-0000000000000001", "wal-0000000000000002");
    let (one, two) = (disk.read(first).expect("1"), disk.read(second).expect("2"));
    disk.put(first, &two);
    disk.put(second, &one);
    assert!(is_damage(&open(&disk).map(drop).expect_err("swapped")));
}

/// Every format keeps magic, version and checksum in their places, so that an older program can
/// tell a newer file from a damaged one.
#[test]
fn a_newer_format_is_told_from_damage() {
    let (disk, _) = sample();
    for name in disk.list().expect("alive") {
        let mut bytes = disk.read(&name).expect("listed");
        bytes[8] = 2;
        let covered = match &name[..4] {
            "iden" => bytes.len(),
            "wal-" => 64,
            _ => 44 + bytes[40] as usize,
        };
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..covered]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        let newer = copy(&disk);
        newer.put(&name, &bytes);
        let error = open(&newer).map(drop).expect_err("newer");
        assert!(
            matches!(
                error,
                OpenError::NewerFormat {
                    found: 2,
                    supported: 1,
                    ..
                }
            ),
            "{name}: {error}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn no_bytes_make_recovery_panic(
        splices in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), vec(any::<u8>(), 0..80)), 1..4),
        keep_length: bool,
    ) {
        let (disk, _) = sample();
        let names = disk.list().expect("alive");
        for (which, at, bytes) in splices {
            let name = &names[which.index(names.len())];
            let mut whole = disk.read(name).expect("listed");
            let at = at.index(whole.len() + 1);
            if keep_length {
                let end = whole.len().min(at + bytes.len());
                whole[at..end].copy_from_slice(&bytes[..end - at]);
            } else {
                whole.splice(at.., bytes);
            }
            disk.put(name, &whole);
        }
        let opened = catch_unwind(AssertUnwindSafe(|| open(&disk).map(drop)));
        prop_assert!(opened.is_ok());
    }
}
