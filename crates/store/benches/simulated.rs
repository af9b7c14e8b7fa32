//! What one write costs through the store on the simulated disk: this bounds how fast a simulator
//! that runs the real store can be. `cargo bench -p store --bench simulated`.

use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;
use raft::{
    ClientId, Command, Configuration, Entry, Index, LogPosition, NodeKey, Payload, Persist,
    PersistSeq, RequestNumber, SaveSnapshot, Settings, Snapshot, SnapshotMeta, Term,
};
use store::{CrashDisk, Store, StoreOptions};

const WRITES: u64 = 200_000;

/// A snapshot every so many entries lets old segments go.
const SNAPSHOT_EVERY: u64 = 1_000;

fn main() {
    println!("one entry of 64 B a write, a snapshot every {SNAPSHOT_EVERY}; ns per write");
    for segment_bytes in [4 << 10, 16 << 10, 64 << 10] {
        let times: Vec<u128> = (0..5).map(|_| run(segment_bytes)).collect();
        let best = times.iter().min().expect("five rounds");
        println!(
            "segments of {:>2} KiB: best {best}, all {times:?}",
            segment_bytes >> 10
        );
    }
}

fn run(segment_bytes: usize) -> u128 {
    let options = StoreOptions {
        segment_bytes,
        ..StoreOptions::new("bench", "bench")
    };
    let (mut store, _) =
        Store::open(CrashDisk::new(1), &options, || NodeKey(1)).expect("a fresh disk");
    let data = Bytes::from(vec![0x5a; 64]);
    let writes: Vec<Persist> = (1..=WRITES).map(|index| persist(index, &data)).collect();
    let began = Instant::now();
    for write in &writes {
        let written = store.write(std::slice::from_ref(write));
        black_box(written.expect("a healthy disk"));
        while store.tidy().expect("a healthy disk") {}
    }
    began.elapsed().as_nanos() / u128::from(WRITES)
}

fn persist(index: u64, data: &Bytes) -> Persist {
    let entry = Entry {
        index: Index(index),
        term: Term(2),
        payload: Payload::Command(Command {
            client: ClientId(0x0123_4567_89ab_cdef),
            request: RequestNumber(index),
            data: data.clone(),
        }),
    };
    let last = LogPosition {
        index: Index(index.saturating_sub(1)),
        term: Term(2),
    };
    let snapshot = index.is_multiple_of(SNAPSHOT_EVERY).then(|| SaveSnapshot {
        snapshot: Snapshot {
            meta: SnapshotMeta {
                last,
                configuration: Configuration::of(
                    [(NodeKey(1), "bench".to_owned())].into(),
                    Settings::default(),
                ),
                epoch: raft::LeaseEpoch::default(),
            },
            data: data.clone(),
        },
        discard_log: false,
    });
    Persist {
        seq: PersistSeq(index),
        snapshot,
        entries: vec![entry],
        ..Persist::default()
    }
}
