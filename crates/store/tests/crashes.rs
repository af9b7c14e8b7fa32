//! Whatever a power cut does, an acknowledged write is there afterwards, and one that was under way
//! is there whole or not at all.

mod common;

use common::{Action, Twin, open, persists};
use proptest::collection::vec;
use proptest::prelude::*;
use raft::Durable;
use store::{CrashDisk, OpenError, Store};

/// A run of actions, up to the first failure.
#[derive(Default)]
struct Run {
    /// All that was acknowledged.
    acknowledged: Twin,
    /// That, and the write that failed.
    attempted: Twin,
    /// How many actions were done.
    done: usize,
}

impl Run {
    /// Performs the actions that are left; `None` when one fails.
    fn go_on(&mut self, disk: &CrashDisk, actions: &[Action]) -> Option<()> {
        let (mut store, recovered) = open(disk).ok()?;
        assert_eq!(Twin(recovered.durable), self.acknowledged);
        while let Some(action) = actions.get(self.done) {
            match action {
                Action::Tidy => {
                    store.tidy().ok()?;
                }
                Action::Reopen => {
                    drop(store);
                    let recovered;
                    (store, recovered) = open(disk).ok()?;
                    assert_eq!(Twin(recovered.durable), self.acknowledged);
                }
                _ => {
                    let writes = persists(action, &self.acknowledged, self.done as u64);
                    self.attempted.write(&writes);
                    store.write(&writes).ok()?;
                    self.acknowledged = self.attempted.clone();
                }
            }
            self.done += 1;
        }
        Some(())
    }
}

/// How many changes the actions make of a disk without faults.
fn changes(actions: &[Action]) -> u64 {
    let disk = CrashDisk::new(0);
    Run::default().go_on(&disk, actions).expect("no faults");
    disk.counts().changes
}

/// Cuts the power after some changes, and once more during the recovery that follows; then goes on.
fn survives(actions: &[Action], seed: u64, cut: u64, second_cut: u64) {
    let story = || format!("seed {seed}, power cut after {cut} changes, then {second_cut}");
    let disk = CrashDisk::new(seed);
    disk.cut_power_after(cut);
    let mut run = Run::default();
    let finished = run.go_on(&disk, actions).is_some();
    disk.crash();
    disk.cut_power_after(second_cut);
    let interrupted = open(&disk).map(drop);
    disk.crash();

    // Whoever only looks sees the same as the next start, and leaves everything as it is.
    let before = disk.counts().changes;
    let read = Store::read(&disk);
    assert_eq!(disk.counts().changes, before, "{}", story());
    let (mut store, recovered) = match open(&disk) {
        Ok(opened) => opened,
        Err(error) => panic!("{}: {error}, before that {interrupted:?}", story()),
    };
    match read {
        Ok(read) => {
            assert_eq!(Twin(read.durable), Twin(recovered.durable.clone()));
            assert_eq!(read.cut, recovered.cut, "{}", story());
        }
        Err(error) => {
            let fresh = recovered.durable == Durable::default();
            let missing = matches!(&error, OpenError::Missing { file } if file == "identity");
            assert!(fresh && missing, "{}: {error}", story());
        }
    }
    let recovered = Twin(recovered.durable);
    if recovered == run.attempted && recovered != run.acknowledged {
        run.done += 1;
    } else {
        assert_eq!(
            recovered,
            run.acknowledged,
            "{}, finished: {finished}",
            story()
        );
    }

    // What was recovered is durable, and the log can be written on: first by less than was cut.
    run.acknowledged = recovered;
    let vote = persists(&Action::Vote, &run.acknowledged, 1_000);
    store.write(&vote).expect("the power is back");
    run.acknowledged.write(&vote);
    run.attempted = run.acknowledged.clone();
    disk.crash();
    run.go_on(&disk, actions).expect("the power is back");
    disk.crash();
    let (_, again) = open(&disk).unwrap_or_else(|error| panic!("{}: {error}", story()));
    assert_eq!(Twin(again.durable), run.acknowledged, "{}", story());
    assert_eq!(again.cut, None, "{}", story());
}

fn append(count: u64, size: usize, fill: u8) -> Action {
    Action::Append { count, size, fill }
}

#[test]
fn a_power_cut_at_every_change_of_a_long_story() {
    let story = [
        Action::Vote,
        append(1, 100, 1),
        append(2, 1500, 0),
        Action::Tidy,
        Action::Together(vec![Action::Vote, append(3, 300, 2)]),
        Action::Tidy,
        Action::Tidy,
        Action::Tidy,
        append(4, 600, 0),
        Action::Replace { back: 3, count: 1 },
        Action::Compact {
            back: 2,
            size: 2000,
        },
        Action::Tidy,
        Action::Tidy,
        append(1, 9000, 0),
        Action::Compact { back: 0, size: 0 },
        Action::Tidy,
        Action::Reopen,
        append(5, 10, 3),
        Action::Install {
            ahead: 2,
            size: 70_000,
            also_append: 2,
        },
        Action::Tidy,
        Action::Tidy,
        Action::Vote,
        append(2, 2500, 255),
    ];
    for cut in 0..changes(&story) {
        for seed in 0..10 {
            survives(&story, seed * 1_000 + cut, cut, seed % 8);
        }
    }
}

fn single_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (1..5_u64, 0..2000_usize, prop_oneof![Just(0_u8), any::<u8>()])
            .prop_map(|(count, size, fill)| append(count, size, fill)),
        1 => (1..3_u64, 4000..20_000_usize).prop_map(|(count, size)| append(count, size, 0)),
        2 => (0..6_u64, 1..4_u64).prop_map(|(back, count)| Action::Replace { back, count }),
        2 => Just(Action::Vote),
        2 => (0..5_u64, 0..5000_usize).prop_map(|(back, size)| Action::Compact { back, size }),
        1 => (0..8_u64, 0..5000_usize, 0..3_u64).prop_map(|(ahead, size, also_append)| {
            Action::Install { ahead, size, also_append }
        }),
    ]
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => single_action(),
        2 => vec(single_action(), 2..4).prop_map(Action::Together),
        3 => Just(Action::Tidy),
        1 => Just(Action::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_story_survives_a_power_cut(
        actions in vec(any_action(), 1..40),
        seed: u64,
        cut: prop::sample::Index,
        second_cut in 0..12_u64,
    ) {
        let changes = changes(&actions) as usize;
        survives(&actions, seed, cut.index(changes + 1) as u64, second_cut);
    }
}

/// A failed sync leaves bytes in the page cache that no later sync writes. They look durable to the
/// next process and are not, until recovery writes them again.
#[test]
fn what_recovery_reports_is_durable_even_after_a_failed_sync() {
    for seed in 0..50 {
        let disk = CrashDisk::new(seed);
        let (mut store, _) = open(&disk).expect("fresh");
        let twin = Twin::default();
        store
            .write(&persists(&append(2, 100, 1), &twin, 1))
            .expect("no fault yet");
        disk.fail_next_sync();
        store
            .write(&persists(&append(3, 900, 2), &twin, 2))
            .expect_err("the sync fails");
        disk.kill();

        let (_, first) = open(&disk).expect("the process starts again");
        disk.crash();
        let (_, second) = open(&disk).expect("the machine starts again");
        assert_eq!(first.durable, second.durable, "seed {seed}");
    }
}

/// Stores of an earlier life can do nothing to the disk.
#[test]
fn a_dead_store_cannot_write() {
    let disk = CrashDisk::new(1);
    let (mut dead, _) = open(&disk).expect("fresh");
    disk.crash();
    let opened: (Store<CrashDisk>, _) = open(&disk).expect("again");
    dead.write(&persists(&Action::Vote, &Twin::default(), 1))
        .expect_err("dead");
    drop(opened);
}
