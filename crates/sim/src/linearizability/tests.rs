use bytes::Bytes;
use replica::{Done, Operation, Reading, Write, Written};

use super::*;
use crate::history::tests::{Run, objects};
use crate::rng::Rng;

// A twin that tries every order.

/// Whether some order of the answered calls, with any of the others anywhere, explains it all.
fn has_an_order(calls: &[Call]) -> bool {
    place_next(calls, &mut vec![false; calls.len()], None)
}

fn place_next(calls: &[Call], placed: &mut [bool], value: Option<&Bytes>) -> bool {
    let answered = |call: &Call| matches!(call.end, Some((_, End::Done(_))));
    let waiting = |n: &usize| !placed[*n] && answered(&calls[*n]);
    let waits: Vec<usize> = (0..calls.len()).filter(waiting).collect();
    let first_end = waits
        .iter()
        .filter_map(|n| Some(calls[*n].end.as_ref()?.0))
        .min();
    let Some(first_end) = first_end else {
        return true;
    };
    for n in 0..calls.len() {
        if placed[n] || calls[n].at > first_end {
            continue;
        }
        if let Some(next) = take_effect(&calls[n], value) {
            placed[n] = true;
            if place_next(calls, placed, next) {
                return true;
            }
            placed[n] = false;
        }
    }
    false
}

/// The value after a call, if its answer fits; a call without an answer does what it does.
fn take_effect<'a>(call: &'a Call, held: Option<&'a Bytes>) -> Option<Option<&'a Bytes>> {
    let (next, applied) = match &call.operation {
        Operation::Get(_) => (held, false),
        Operation::Write(Write::Put { value, .. }) => (Some(value), true),
        Operation::Write(Write::Delete { .. }) => (None, held.is_some()),
        Operation::Write(Write::CompareAndSwap {
            expected, value, ..
        }) => {
            let (expected, value) = (
                expected.as_ref().map(|v| &v.0),
                value.as_ref().map(|v| &v.0),
            );
            let swaps = held == expected && (expected.is_some() || value.is_some());
            (if swaps { value } else { held }, swaps)
        }
        other => unreachable!("the history is of keys: {other:?}"),
    };
    let fits = match &call.end {
        Some((_, End::Done(Done::Read(reading)))) => reading.value.as_ref().map(|v| &v.0) == held,
        Some((_, End::Done(Done::Written(written)))) => written.applied == applied,
        Some((_, End::Unknown | End::Nothing)) | None => true,
        Some((_, End::Done(other))) => unreachable!("the history is of keys: {other:?}"),
    };
    fits.then_some(next)
}

fn value(n: u64) -> replica::Value {
    replica::Value(format!("v{n}").into())
}

/// A few calls on one key with few values, answered at random: some can be explained, some not.
fn draw(rng: &mut Rng) -> Vec<Call> {
    let length = rng.between(2, 7);
    let calls = (0..length).map(|_| {
        let key = Bytes::from("k");
        let optional = |rng: &mut Rng| match rng.below(3) {
            0 => None,
            n => Some(value(n)),
        };
        let operation = match rng.below(5) {
            0 | 1 => Operation::Get(key),
            2 => Operation::Write(Write::Put {
                key,
                value: value(rng.between(1, 3)).0,
                lease: None,
            }),
            3 => Operation::Write(Write::Delete { key }),
            _ => Operation::Write(Write::CompareAndSwap {
                key,
                expected: optional(rng),
                value: optional(rng),
            }),
        };
        let is_read = matches!(operation, Operation::Get(_));
        let is_put = matches!(operation, Operation::Write(Write::Put { .. }));
        let at = rng.below(12);
        let done = match is_read {
            true => Done::Read(Reading {
                value: optional(rng),
                ..Reading::default()
            }),
            false => Done::Written(Written {
                revision: rng.below(5),
                applied: is_put || rng.chance(0.6),
            }),
        };
        let ended = at + rng.below(8);
        let end = match rng.below(3) {
            0 if !is_read => Some((ended, End::Unknown)),
            _ => Some((ended, End::Done(done))),
        };
        Call { operation, at, end }
    });
    calls.collect()
}

/// Short histories with doubts, judged as by a twin that tries every order.
#[test]
fn the_search_agrees_with_a_twin() {
    let mut rng = Rng::new(1);
    let (mut explained, mut refuted) = (0, 0);
    for n in 0..30_000 {
        let calls = draw(&mut rng);
        let expected = match has_an_order(&calls) {
            true => Verdict::Linearizable,
            false => Verdict::Refuted,
        };
        match expected {
            Verdict::Linearizable => explained += 1,
            _ => refuted += 1,
        }
        let calls: Vec<&Call> = calls.iter().collect();
        assert_eq!(
            search(&calls, Micros::MAX),
            expected,
            "history {n}: {calls:#?}"
        );
    }
    assert!(
        explained > 3_000 && refuted > 3_000,
        "{explained} {refuted}"
    );
}

// Altered runs.

fn is_refuted(run: &Run) {
    objects(Checker::Linearizability, || {
        check(&run.history.calls);
    });
}

#[test]
fn an_unaltered_run_is_linearizable() {
    let searched = check(&Run::lived().history.calls);
    assert!(searched.linearizable >= 5, "{searched:?}");
    assert_eq!((searched.in_part, searched.too_hard), (0, 0));
}

#[test]
fn a_stale_read() {
    let mut run = Run::lived();
    run.make_a_read_stale();
    is_refuted(&run);
}

/// The same compare-and-swap is told to have taken effect twice.
#[test]
fn a_swap_is_applied_twice() {
    let mut run = Run::lived();
    run.apply_a_swap_twice();
    is_refuted(&run);
}

#[test]
fn an_acknowledged_write_is_lost() {
    let mut run = Run::lived();
    run.lose_a_write();
    is_refuted(&run);
}

/// A write of unknown outcome explains a value once, not again after another was seen.
#[test]
fn a_write_of_unknown_outcome_is_applied_twice() {
    let key = || Bytes::from("k");
    let put = |n| {
        Operation::Write(Write::Put {
            key: key(),
            value: value(n).0,
            lease: None,
        })
    };
    let get = |n, at| Call {
        operation: Operation::Get(key()),
        at,
        end: Some((
            at + 1,
            End::Done(Done::Read(Reading {
                value: Some(value(n)),
                ..Reading::default()
            })),
        )),
    };
    let unknown = Call {
        operation: put(1),
        at: 0,
        end: Some((5, End::Unknown)),
    };
    let written = Done::Written(Written {
        revision: 2,
        applied: true,
    });
    let overwritten = Call {
        operation: put(2),
        at: 20,
        end: Some((21, End::Done(written))),
    };
    let mut calls = vec![unknown, get(1, 10), overwritten, get(2, 30)];
    assert_eq!(check(&calls).linearizable, 1);
    calls.push(get(1, 40));
    objects(Checker::Linearizability, || {
        check(&calls);
    });
}

/// Too many concurrent writes in an order that nothing hints at: said, not passed over.
#[test]
fn what_is_too_hard_is_counted() {
    let calls = (0..40).map(|n| Call {
        operation: match n % 2 {
            0 => Operation::Write(Write::Put {
                key: "k".into(),
                value: value(n).0,
                lease: None,
            }),
            _ => Operation::Get("k".into()),
        },
        at: n,
        end: Some((
            1_000 + n,
            match n % 2 {
                0 => End::Done(Done::Written(Written {
                    revision: 0,
                    applied: true,
                })),
                _ => End::Done(Done::Read(Reading {
                    value: Some(value(if n == 39 { 99 } else { 39 - n })),
                    ..Reading::default()
                })),
            },
        )),
    });
    let calls: Vec<Call> = calls.collect();
    let searched = check(&calls);
    assert_eq!(searched.linearizable, 0, "{searched:?}");
    assert_eq!(searched.in_part + searched.too_hard, 1, "{searched:?}");
}
