//! What callers of a real run were told, with one answer altered.

use std::panic::{self, AssertUnwindSafe};

use replica::Written;

use super::*;
use crate::check::tests::RUN;
use crate::world::World;

/// A run that is over.
pub(crate) struct Run {
    pub(crate) history: History,
    stores: Vec<(Name, u64, Readings)>,
    now: Micros,
}

/// Claims that precisely this checker objects.
pub(crate) fn objects(checker: Checker, check: impl FnOnce()) {
    let judged = panic::catch_unwind(AssertUnwindSafe(check));
    let panic = judged.expect_err("the violation goes unnoticed");
    let said = panic.downcast_ref::<String>().expect("a text");
    let first = said.split(':').next();
    assert_eq!(first, Some(checker.to_string().as_str()), "{said}");
}

impl Run {
    pub(crate) fn lived() -> Run {
        // Callers wait longer: a search for an order then comes to an end.
        let plan = RUN.replace("operation_every 0.030000", "operation_every 0.300000");
        assert_ne!(plan, RUN, "the plan says how often callers call");
        let world = World::lived(&plan);
        let replicas = world.hosts.iter().filter_map(|host| host.replica());
        let stores = replicas.map(|replica| {
            let (name, store) = (replica.name().clone(), replica.store());
            (name, store.revision(), world.history.readings(store))
        });
        Run {
            stores: stores.collect(),
            history: world.history.clone(),
            now: world.now,
        }
    }

    fn check_stores(&self) {
        let stores = self.stores.iter();
        let stores: Vec<_> = stores.map(|(name, r, k)| (name, *r, k.clone())).collect();
        self.history.check_readings(&stores, self.now - 20_000_000);
    }

    /// Puts that were answered: place in the history, call and end.
    fn puts(&self) -> Vec<(usize, &Call, Micros)> {
        let calls = self.history.calls.iter().enumerate();
        let puts = calls.filter_map(|(n, call)| match (&call.operation, &call.end) {
            (Operation::Write(Write::Put { .. }), Some((ended, End::Done(_)))) => {
                Some((n, call, *ended))
            }
            _ => None,
        });
        puts.collect()
    }

    /// A read that saw a value, two puts to its key one after the other before it.
    fn read_after_two_puts(&self) -> (usize, usize, usize) {
        let puts = self.puts();
        let reads = self.history.calls.iter().enumerate().rev();
        let mut found = reads.filter_map(|(n, read)| {
            let Some((_, End::Done(Done::Read(_)))) = &read.end else {
                return None;
            };
            let before = |at: Micros| {
                let puts = puts.iter().rev();
                puts.filter(|(_, put, _)| put.key() == read.key())
                    .find(move |(_, _, ended)| *ended < at)
            };
            let (second, put, _) = before(read.at)?;
            let (first, _, _) = before(put.at)?;
            Some((n, *first, *second))
        });
        found.next().expect("two puts and a read")
    }

    fn answer(&mut self, n: usize) -> &mut Done {
        let Some((_, End::Done(done))) = &mut self.history.calls[n].end else {
            panic!("request {n} was not answered");
        };
        done
    }

    /// A read sees what had been overwritten before it began.
    pub(crate) fn make_a_read_stale(&mut self) {
        let (read, first, _) = self.read_after_two_puts();
        let call = &self.history.calls[first];
        let (value, (modified, _)) = (call.content().map(Value), call.place());
        let Done::Read(reading) = self.answer(read) else {
            panic!("a read");
        };
        (reading.value, reading.modified) = (value, modified);
    }

    /// After all else someone writes a key for the first time, and then finds nothing there.
    pub(crate) fn lose_a_write(&mut self) {
        let revisions = self.stores.iter().map(|(_, revision, _)| *revision);
        let revision = revisions.max().expect("a node") + 1;
        let key = Bytes::from("lost");
        let put = Write::Put {
            key: key.clone(),
            value: "kept".into(),
            lease: None,
        };
        let written = Written {
            revision,
            applied: true,
        };
        let reading = Reading {
            revision,
            ..Reading::default()
        };
        let (at, put) = (self.now + 1, Operation::Write(put));
        for (operation, at, done) in [
            (put, at, Done::Written(written)),
            (Operation::Get(key), at + 2, Done::Read(reading)),
        ] {
            let end = Some((at + 1, End::Done(done)));
            self.history.calls.push(Call { operation, at, end });
        }
    }

    /// Someone is told that the same swap took effect as someone else was told before.
    pub(crate) fn apply_a_swap_twice(&mut self) {
        let swaps = self.history.calls.iter().rev().find(|call| {
            let swap = matches!(
                &call.operation,
                Operation::Write(Write::CompareAndSwap {
                    expected: Some(_),
                    ..
                })
            );
            swap && call.place().1
        });
        let mut again = swaps.expect("a swap that took effect").clone();
        let Some((ended, End::Done(done))) = &mut again.end else {
            unreachable!("it was answered");
        };
        *done = Done::Written(Written {
            revision: match done {
                Done::Written(written) => written.revision + 1,
                _ => unreachable!("a swap is answered as a write"),
            },
            applied: true,
        });
        again.at = *ended + 1;
        *ended += 2;
        self.history.calls.push(again);
    }
}

#[test]
fn an_unaltered_run_passes() {
    let run = Run::lived();
    run.history.check();
    run.check_stores();
}

#[test]
fn a_stale_read() {
    let mut run = Run::lived();
    run.make_a_read_stale();
    objects(Checker::RevisionOrder, || run.history.check());
}

#[test]
fn a_read_of_an_older_revision() {
    let mut run = Run::lived();
    let (read, first, _) = run.read_after_two_puts();
    let (revision, _) = run.history.calls[first].place();
    let Done::Read(reading) = run.answer(read) else {
        panic!("a read");
    };
    reading.revision = revision;
    objects(Checker::RevisionOrder, || run.history.check());
}

#[test]
fn a_swap_is_applied_twice() {
    let mut run = Run::lived();
    run.apply_a_swap_twice();
    objects(Checker::RevisionOrder, || run.history.check());
}

#[test]
fn an_acknowledged_write_is_not_found() {
    let mut run = Run::lived();
    run.lose_a_write();
    objects(Checker::RevisionOrder, || run.history.check());
}

#[test]
fn one_node_lacks_an_acknowledged_write() {
    let mut run = Run::lived();
    let (_, _, readings) = run.stores.last_mut().expect("a node");
    let reading = readings.get_mut(&b"probe"[..]).expect("the probe");
    (reading.value, reading.modified) = (None, 0);
    objects(Checker::AcknowledgedWrites, || run.check_stores());
}

#[test]
fn one_node_holds_what_was_overwritten() {
    let mut run = Run::lived();
    let probes = run
        .puts()
        .into_iter()
        .filter(|(_, call, _)| call.key() == "probe");
    let (_, first, _) = probes
        .min_by_key(|(_, call, _)| call.place())
        .expect("a probe");
    let (value, (modified, _)) = (first.content().map(Value), first.place());
    let (_, _, readings) = run.stores.last_mut().expect("a node");
    let reading = readings.get_mut(&b"probe"[..]).expect("the probe");
    (reading.value, reading.modified) = (value, modified);
    objects(Checker::AcknowledgedWrites, || run.check_stores());
}

#[test]
fn one_node_has_not_seen_the_newest_acknowledged_write() {
    let mut run = Run::lived();
    let (_, revision, _) = run.stores.last_mut().expect("a node");
    *revision = 1;
    objects(Checker::AcknowledgedWrites, || run.check_stores());
}
