//! What an owner and an operator see of a store, one claim each.

mod common;

use bytes::Bytes;
use common::{KEY, Twin, entries, entry, hard_state, open, options, snapshot};
use raft::{Durable, NodeKey, Persist, PersistSeq};
use store::{CrashDisk, Disk, OpenError, RealDisk, Store, StoreOptions, WriteError};

/// An open store on a disk of its own, after these writes.
fn written(writes: &[Persist]) -> (CrashDisk, Store<CrashDisk>) {
    let disk = CrashDisk::new(1);
    let (mut store, _) = open(&disk).expect("fresh");
    for write in writes {
        store.write(std::slice::from_ref(write)).expect("no fault");
    }
    (disk, store)
}

fn expect_error(disk: &CrashDisk) -> OpenError {
    open(disk).map(|_| ()).expect_err("must not open")
}

fn tidy_up(store: &mut Store<CrashDisk>) {
    while store.tidy().expect("no fault") {}
}

#[test]
fn a_fresh_directory_becomes_the_nodes_and_stays_it() {
    let disk = CrashDisk::new(1);
    let (store, recovered) = open(&disk).expect("fresh");
    assert_eq!(recovered.identity.key, KEY);
    assert_eq!(recovered.identity.formation, None);
    assert_eq!(recovered.durable, Durable::default());
    drop(store);

    disk.crash();
    let again = Store::open(disk, &options(), || unreachable!("the key is drawn once"));
    assert_eq!(again.expect("again").1.identity, recovered.identity);
}

#[test]
fn a_directory_of_another_node_or_cluster_is_refused() {
    let (disk, store) = written(&[]);
    drop(store);
    for (name, cluster, what) in [("b", "test", "node"), ("a", "prod", "cluster")] {
        let options = StoreOptions::new(name, cluster);
        let error = Store::open(disk.clone(), &options, || KEY).expect_err("not its directory");
        assert!(matches!(error, OpenError::OtherNode { what: w, .. } if w == what));
        assert!(error.to_string().contains("start it under its own"));
    }
}

#[test]
fn a_directory_with_files_of_others_is_refused_and_left_alone() {
    let disk = CrashDisk::new(1);
    disk.put("thesis.tex", b"42");
    let error = expect_error(&disk);
    assert!(matches!(&error, OpenError::ForeignDirectory { file, .. } if file == "thesis.tex"));
    assert_eq!(disk.counts().changes, 0);
}

#[test]
fn a_mount_point_and_a_file_put_beside_ours_do_not_matter() {
    let disk = CrashDisk::new(1);
    disk.put("lost+found", b"");
    drop(open(&disk).expect("a fresh mount"));
    disk.put("notes.txt", b"");
    open(&disk).expect("the directory is known to be ours");
}

#[test]
fn what_was_begun_and_not_finished_is_removed_at_the_next_start() {
    let (disk, store) = written(&[hard_state(2)]);
    drop(store);
    for name in ["wal.tmp", "snap.tmp", "identity.tmp"] {
        disk.put(name, b"half of it");
    }
    let unfinished = "snap-0000000000000009-0000000000000001";
    disk.put(unfinished, b"named, but the log never said so");
    drop(open(&disk).expect("nothing is wrong"));
    assert_eq!(
        disk.list().expect("alive"),
        ["identity", "wal-0000000000000001"]
    );
}

#[test]
fn one_write_is_one_sync_however_much_it_holds() {
    let (disk, mut store) = written(&[]);
    let before = disk.counts();
    let many = [hard_state(2), entries(1, 5), entries(3, 4), hard_state(3)];
    store.write(&many).expect("no fault");
    let after = disk.counts();
    assert_eq!(after.syncs, before.syncs + 1);
    assert_eq!(after.changes, before.changes + 2);
}

#[test]
fn a_write_is_confirmed_by_the_number_of_its_last_part() {
    let (disk, mut store) = written(&[]);
    let numbered = |seq| Persist {
        seq: PersistSeq(seq),
        ..Persist::default()
    };
    let before = disk.counts();
    let confirmed = store.write(&[numbered(4), numbered(5)]).expect("no fault");
    assert_eq!(confirmed, PersistSeq(5));
    assert_eq!(store.write(&[]).expect("no fault"), PersistSeq(5));
    assert_eq!(disk.counts(), before, "nothing to say, nothing written");
}

#[test]
fn an_idle_store_writes_nothing() {
    let (disk, mut store) = written(&[entries(1, 50), snapshot(40, "state", false)]);
    tidy_up(&mut store);
    let before = disk.counts();
    for _ in 0..100 {
        assert!(!store.tidy().expect("no fault"));
    }
    assert_eq!(disk.counts(), before);
}

#[test]
fn a_prepared_segment_makes_a_roll_as_cheap_as_any_write() {
    let (disk, mut store) = written(&[]);
    for index in 1..200 {
        let before = disk.counts();
        store.write(&[entries(index, 1)]).expect("no fault");
        assert_eq!(disk.counts().syncs, before.syncs + 1, "at {index}");
        tidy_up(&mut store);
    }
    assert!(disk.read("wal-0000000000000003").is_some(), "it did roll");
}

/// Busy owners have no time to tidy: the work is spread, not left to the write that rolls.
#[test]
fn without_tidying_no_write_prepares_a_whole_segment() {
    let disk = CrashDisk::new(1);
    let options = StoreOptions {
        segment_bytes: 4 << 20,
        ..options()
    };
    let (mut store, _) = Store::open(disk.clone(), &options, || KEY).expect("fresh");
    for index in 1..1_000 {
        let before = disk.counts();
        let large = Persist {
            entries: vec![entry(index, 2, vec![1; 40_000])],
            ..Persist::default()
        };
        store.write(&[large]).expect("no fault");
        assert!(disk.counts().bytes - before.bytes < 200_000, "at {index}");
    }
}

#[test]
fn what_a_snapshot_contains_is_removed_file_by_file() {
    let (disk, mut store) = written(&[]);
    for index in 1..200 {
        store.write(&[entries(index, 1)]).expect("no fault");
    }
    store
        .write(&[snapshot(150, "old", false)])
        .expect("no fault");
    store
        .write(&[snapshot(199, "new", false)])
        .expect("no fault");
    tidy_up(&mut store);
    assert!(disk.read("wal-0000000000000001").is_none());
    let old = "snap-0000000000000096-0000000000000002";
    let new = "snap-00000000000000c7-0000000000000002";
    assert!(disk.read(old).is_none());
    assert!(disk.read(new).is_some());

    drop(store);
    let (_, recovered) = open(&disk).expect("again");
    assert_eq!(recovered.durable.entries, []);
    let kept = recovered.durable.snapshot.expect("a snapshot");
    assert_eq!(kept.data, "new");
}

/// A log that disagrees with the leader's snapshot goes, although it is longer.
#[test]
fn segments_that_a_snapshot_discards_are_removed() {
    let (disk, mut store) = written(&[]);
    for index in 1..200 {
        store.write(&[entries(index, 1)]).expect("no fault");
    }
    let install = snapshot(3, "from the leader", true);
    store.write(&[install]).expect("no fault");
    tidy_up(&mut store);
    assert!(disk.read("wal-0000000000000001").is_none());

    drop(store);
    let (_, recovered) = open(&disk).expect("again");
    assert_eq!(recovered.durable.entries, []);
}

#[test]
fn a_formation_record_replaces_the_one_before() {
    let (disk, mut store) = written(&[]);
    store.set_formation("accepted".into()).expect("first");
    store.set_formation("formed".into()).expect("another");
    let syncs = disk.counts().syncs;
    store
        .set_formation("formed".into())
        .expect("the same again");
    assert_eq!(
        disk.counts().syncs,
        syncs,
        "what is there is not written again"
    );

    disk.crash();
    let (_, recovered) = open(&disk).expect("again");
    assert_eq!(recovered.identity.formation, Some("formed".into()));
}

#[test]
fn a_failed_sync_closes_the_store_for_good() {
    let (disk, mut store) = written(&[entries(1, 2)]);
    disk.fail_next_sync();
    let first = store.write(&[entries(3, 1)]).expect_err("the sync fails");
    assert!(matches!(
        first,
        WriteError::Failed {
            operation: "sync",
            ..
        }
    ));
    for result in [
        store.write(&[entries(3, 1)]).map(drop),
        store.set_formation(Bytes::new()),
        store.tidy().map(drop),
    ] {
        let error = result.expect_err("closed");
        assert!(error.to_string().contains("injected sync error"), "{error}");
    }
    disk.crash();
    let (_, recovered) = open(&disk).expect("again");
    assert!(recovered.durable.entries.len() >= 2);
}

#[test]
fn a_full_disk_is_named_and_costs_nothing_acknowledged() {
    for with_snapshots in [false, true] {
        let (disk, mut store) = written(&[]);
        disk.set_capacity(Some(20_000));
        let mut twin = Twin::default();
        let error = loop {
            let mut writes = vec![entries(twin.last_index() + 1, 3)];
            if with_snapshots {
                let data = vec![1; twin.last_index() as usize * 100];
                writes.push(snapshot(twin.last_index() + 3, data, false));
            }
            match store.write(&writes) {
                Ok(_) => twin.write(&writes),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, WriteError::DiskFull { .. }), "{error}");
        assert!(twin.last_index() > 0);

        disk.crash();
        disk.set_capacity(None);
        let (mut store, recovered) = open(&disk).expect("there is space again");
        assert_eq!(Twin(recovered.durable), twin);
        store
            .write(&[entries(twin.last_index() + 1, 300)])
            .expect("there is space again");
    }
}

/// Preparing ahead may fail on a full disk; the write that can do without must not.
#[test]
fn a_full_disk_noticed_by_tidying_leaves_the_store_open() {
    let (disk, mut store) = written(&[entries(1, 150)]);
    disk.set_capacity(Some(5000));
    let error = loop {
        match store.tidy() {
            Ok(more) => assert!(more, "the next segment does not fit"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, WriteError::DiskFull { .. }));
    store.write(&[entries(151, 1)]).expect("there is room yet");
    disk.set_capacity(None);
    tidy_up(&mut store);
}

#[test]
fn a_read_only_directory_says_so() {
    let (disk, store) = written(&[entries(1, 1)]);
    drop(store);
    disk.set_read_only(true);
    let error = expect_error(&disk);
    assert!(matches!(error, OpenError::Unreadable { .. }));
    assert!(error.to_string().contains("read-only"), "{error}");
}

#[test]
fn two_processes_cannot_share_a_directory() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("not/yet/there");
    let open = || {
        Store::open(RealDisk::open(&path).expect("made"), &options(), || {
            NodeKey(3)
        })
    };
    let (mut store, _) = open().expect("the first");
    let error = open().map(drop).expect_err("the second");
    assert!(matches!(error, OpenError::Locked { .. }));
    assert!(error.to_string().contains("in use by another process"));

    store.write(&[entries(1, 100)]).expect("a real disk");
    drop(store);
    let (_, recovered) = open().expect("the first has ended");
    assert_eq!(recovered.durable.entries, entries(1, 100).entries);
}

/// Reading for a recovery holds the directory, changes nothing in it, and works where nothing can be
/// changed.
#[test]
fn a_directory_is_read_without_a_change() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    let files = || {
        let files = std::fs::read_dir(path).expect("a directory").flatten();
        let file = |file: std::fs::DirEntry| {
            let bytes = std::fs::read(file.path()).expect("a file");
            (file.file_name(), bytes)
        };
        files
            .map(file)
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let open = || Store::open(RealDisk::open(path).expect("made"), &options(), || KEY);
    let read = || RealDisk::read_only(path);
    let (mut store, _) = open().expect("fresh");
    store
        .write(&[hard_state(4), entries(1, 9)])
        .expect("written");
    store
        .write(&[snapshot(3, "state", false)])
        .expect("written");
    let busy = read().expect_err("a node runs on it");
    assert_eq!(busy.kind(), std::io::ErrorKind::WouldBlock);
    drop(store);

    let before = files();
    let disk = read().expect("free");
    let found = Store::read(&disk).expect("whole");
    assert!(open().is_err(), "no node starts on it meanwhile");
    assert!(disk.create("x").is_err() && disk.remove("identity").is_err());
    drop(disk);
    assert_eq!(files(), before);
    let (_, recovered) = open().expect("free again");
    assert_eq!(found.durable, recovered.durable);
    assert_eq!(found.identity, recovered.identity);

    let missing = RealDisk::read_only(path.join("absent")).expect_err("no such directory");
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn a_lost_file_is_missed() {
    let filled = || {
        let (disk, mut store) = written(&[hard_state(7)]);
        for index in 1..150 {
            store.write(&[entries(index, 1)]).expect("no fault");
        }
        store.write(&[snapshot(20, "s", false)]).expect("no fault");
        tidy_up(&mut store);
        drop(store);
        disk
    };
    let files = [
        "identity",
        "snap-0000000000000014-0000000000000002",
        "wal-0000000000000001",
        "wal-0000000000000002",
    ];
    for file in files {
        let disk = filled();
        assert!(disk.read(file).is_some(), "{file}");
        disk.remove(file).expect("it was there");
        let error = expect_error(&disk);
        assert!(
            matches!(error, OpenError::Missing { .. }),
            "{file}: {error}"
        );
    }
}

#[test]
#[should_panic(expected = "entry 5 would leave a gap after 3")]
fn entries_that_leave_a_gap_are_a_bug_of_ours() {
    let (_, mut store) = written(&[entries(1, 3)]);
    let _ = store.write(&[entries(5, 1)]);
}

#[test]
fn a_batch_larger_than_a_segment_gets_one_of_its_own() {
    let large = Persist {
        entries: vec![entry(1, 2, vec![0; 1 << 20])],
        ..Persist::default()
    };
    let (disk, store) = written(&[large.clone(), entries(2, 1)]);
    drop(store);
    let (_, recovered) = open(&disk).expect("again");
    assert_eq!(recovered.durable.entries.len(), 2);
    assert_eq!(recovered.durable.entries[0], large.entries[0]);
}
