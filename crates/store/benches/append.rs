//! What a store adds to a bare write and `fdatasync` of the same bytes, and what its slowest writes
//! are. `cargo bench -p store --bench append [-- <directory on the file system to measure>]`.
//!
//! Both sides append to preallocated, zeroed files, in turns of one each and in an order that
//! alternates, so that the disk's moods fall on both alike.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use raft::{
    ClientId, Command, Entry, Index, NodeKey, Payload, Persist, PersistSeq, RequestNumber, Term,
};
use store::{RealDisk, Store, StoreOptions};

/// The size of one entry's data.
const DATA: usize = 256;

/// The bytes a batch takes on disk: header, record, entries.
fn on_disk(batch: u64) -> usize {
    (32 + 9 + batch as usize * (DATA + 24)).next_multiple_of(8)
}

fn main() {
    let directory = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with("--"))
        .unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").to_owned());
    let base = Path::new(&directory).join(format!("store-bench-{}", std::process::id()));
    std::fs::create_dir_all(&base).expect("a directory to measure in");
    println!("entries of {DATA} B, one batch per sync; microseconds per batch");
    for round in 1..=3 {
        println!("\nround {round}");
        println!(" batch            case       p50       p99       max   p50 / bare");
        for batch in [1, 16, 64, 256] {
            compare(&base.join(format!("{round}-{batch}")), batch);
        }
    }
    println!("\nsegments of 4 MiB, 256 entries a batch, 2,000 batches: the slowest writes");
    for tidies in [true, false] {
        rolls(&base.join(format!("rolls-{tidies}")), tidies);
    }
    std::fs::remove_dir_all(&base).expect("ours");
}

fn compare(directory: &Path, batch: u64) {
    const TURNS: u64 = 2_000;
    let mut store = open(&directory.join("store"));
    let bare = Bare::create(&directory.join("bare"), TURNS as usize * on_disk(batch));
    let bytes = vec![0x5a; on_disk(batch)];
    let (mut through_store, mut by_hand) = (Vec::new(), Vec::new());
    for turn in 0..TURNS {
        let write = persist(turn, batch);
        let mut timed_store =
            || through_store.push(timed(|| store.write(&write).expect("a healthy disk")));
        let mut timed_bare = || by_hand.push(timed(|| bare.append(turn, &bytes)));
        if turn % 2 == 0 {
            timed_store();
            timed_bare();
        } else {
            timed_bare();
            timed_store();
        }
        // Housekeeping is the owner's to place: here, between the measured writes.
        while store.tidy().expect("a healthy disk") {}
    }
    let floor = report(batch, "bare", &mut by_hand, None);
    report(batch, "store", &mut through_store, Some(floor));
}

/// Every write of a run over many segments, with the owner tidying after each or never.
fn rolls(directory: &Path, tidies: bool) {
    let mut store = open(directory);
    let mut writes = Vec::new();
    let mut steps = Vec::new();
    for turn in 0..2_000 {
        let write = persist(turn, 256);
        writes.push(timed(|| store.write(&write).expect("a healthy disk")));
        if tidies {
            steps.push(timed(|| store.tidy().expect("a healthy disk")));
        }
    }
    let case = if tidies { "tidied" } else { "untidied" };
    report(256, case, &mut writes, None);
    if tidies {
        steps.retain(|step| *step > Duration::from_micros(5));
        report(256, "tidy step", &mut steps, None);
    }
}

fn open(directory: &Path) -> Store<RealDisk> {
    let disk = RealDisk::open(directory).expect("a directory");
    Store::open(disk, &StoreOptions::new("bench", "bench"), || NodeKey(1))
        .expect("a fresh directory")
        .0
}

fn persist(turn: u64, batch: u64) -> [Persist; 1] {
    let entry = |index| Entry {
        index: Index(index),
        term: Term(2),
        payload: Payload::Command(Command {
            client: ClientId(0x0123_4567_89ab_cdef),
            request: RequestNumber(index),
            data: vec![0x5a; DATA].into(),
        }),
    };
    let first = turn * batch + 1;
    let entries = (first..first + batch).map(entry).collect();
    [Persist {
        seq: PersistSeq(turn),
        entries,
        ..Persist::default()
    }]
}

/// The floor: a file of zeros that is durable before the first append.
struct Bare {
    file: File,
}

impl Bare {
    fn create(path: &Path, size: usize) -> Bare {
        let mut file = File::create(path).expect("a file");
        for _ in 0..size.div_ceil(16 << 10) {
            file.write_all(&[0; 16 << 10]).expect("space");
        }
        file.sync_all().expect("a healthy disk");
        Bare { file }
    }

    fn append(&self, turn: u64, bytes: &[u8]) {
        let offset = turn * bytes.len() as u64;
        self.file.write_all_at(bytes, offset).expect("space");
        self.file.sync_data().expect("a healthy disk");
    }
}

fn timed<T>(action: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    action();
    start.elapsed()
}

/// Prints one line and returns the median.
fn report(batch: u64, case: &str, times: &mut [Duration], floor: Option<f64>) -> f64 {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 1000].as_secs_f64() * 1e6;
    let ratio = floor.map_or(String::new(), |floor| format!("{:.2}", at(500) / floor));
    println!(
        "{batch:>6} {case:>15} {:>9.1} {:>9.1} {:>9.1}   {ratio}",
        at(500),
        at(990),
        at(1000),
    );
    at(500)
}
