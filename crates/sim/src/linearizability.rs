//! Linearizability of what callers were told, by search: porcupine-rs, key by key.
//!
//! Nothing is believed here but values and real time; revisions, which `history.rs` goes by, only
//! decide which order is tried first. A put, get, delete or compare-and-swap takes effect at one
//! moment between call and answer. A write whose outcome is unknown takes effect at one moment
//! after its call, with whatever result, or never.
//!
//! Given to the search as operations without an end, such writes would make it exponential: each
//! may come anywhere among all that follow. So they stand in the state instead. A call without an
//! outcome is an operation without duration, which *arms* the write; an armed write fires just
//! before an operation whose answer needs it. Nothing is lost by that: a write that fires where the
//! next answer does not need it can as well fire later, or never, with the same answers. Where
//! several writes could explain an answer, the state is the set of all cases. That this is the same
//! as the plain definition is tested against a twin that tries every order.
//!
//! The search is bounded by steps, not by time, so that a seed replays. Of a history that takes more
//! the first half is judged, or the half of that, and so on: whatever a history begins with has to
//! be linearizable too. What was judged in part, or not at all, is counted and reported.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use porcupine_rs::{Model, check_operations};
use replica::{Done, Operation, Write};

use crate::check::Checker;
use crate::event::Micros;
use crate::history::{Call, End};

/// Steps of the model before a history is given up as too hard.
const STEPS: u64 = 50_000;

/// The search remembers where it has been, a bit for each operation and step: of a history so long
/// that this many bits do not suffice, fewer steps are taken.
const MEMORY: u64 = 1 << 28;

/// Cases that a state may hold before the history is given up as too hard.
const CASES: usize = 64;

/// What became of the histories of a run's keys. None of them was refuted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Searched {
    /// Some order explains them.
    pub(crate) linearizable: u64,
    /// Some order explains what they begin with: all else was too hard.
    pub(crate) in_part: u64,
    /// The search was given up.
    pub(crate) too_hard: u64,
}

impl Searched {
    pub(crate) fn add(&mut self, other: Searched) {
        self.linearizable += other.linearizable;
        self.in_part += other.in_part;
        self.too_hard += other.too_hard;
    }
}

/// How often the part that is judged is halved.
const HALVES: u32 = 5;

/// Searches an order that explains everything, for each key.
///
/// # Panics
/// Where there is none.
pub(crate) fn check(calls: &[Call]) -> Searched {
    let mut searched = Searched::default();
    let mut keys: BTreeMap<&Bytes, Vec<&Call>> = BTreeMap::new();
    for call in calls {
        keys.entry(call.key()).or_default().push(call);
    }
    for (key, calls) in keys {
        let end = calls
            .iter()
            .filter_map(|call| Some(call.end.as_ref()?.0))
            .max();
        let end = end.map_or(0, |end| end + 1);
        let mut parts = (0..=HALVES).map(|halves| (halves, search(&calls, end >> halves)));
        match parts.find(|(_, verdict)| *verdict != Verdict::TooHard) {
            Some((_, Verdict::Refuted)) => refuted(key, &calls),
            Some((0, _)) => searched.linearizable += 1,
            Some(_) => searched.in_part += 1,
            None => searched.too_hard += 1,
        }
    }
    searched
}

/// Tells which answer is the first that cannot be explained: what ended before it could.
fn refuted(key: &Bytes, calls: &[&Call]) -> ! {
    let mut ends: Vec<Micros> = calls
        .iter()
        .filter_map(|c| Some(c.end.as_ref()?.0))
        .collect();
    ends.sort_unstable();
    let explained = |end: &Micros| search(calls, *end + 1) != Verdict::Refuted;
    let first = ends[ends.partition_point(explained).min(ends.len() - 1)];
    let answer = calls
        .iter()
        .find(|c| c.end.as_ref().is_some_and(|end| end.0 == first));
    let (seconds, micros) = (first / 1_000_000, first % 1_000_000);
    panic!(
        "{}: {key:?} at {seconds}.{micros:06} s: no order of requests explains {answer:?}",
        Checker::Linearizability
    );
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Linearizable,
    Refuted,
    TooHard,
}

thread_local! {
    /// How many more steps the model takes; porcupine has no bound but time.
    static STEPS_LEFT: Cell<u64> = const { Cell::new(0) };
}

/// Returns how many are left.
fn take_steps(taken: u64) -> u64 {
    let left = STEPS_LEFT.get().saturating_sub(taken);
    STEPS_LEFT.set(left);
    left
}

/// Judges one key's requests as they stood at `until`.
fn search(calls: &[&Call], until: Micros) -> Verdict {
    let operations = operations(calls, until);
    STEPS_LEFT.set(STEPS.min(MEMORY / (operations.len() as u64 + 1)));
    // One partition and no deadline: the search runs in this thread.
    let found = check_operations::<Register>(&operations);
    match (found, STEPS_LEFT.get()) {
        (true, _) => Verdict::Linearizable,
        (false, 0) => Verdict::TooHard,
        (false, _) => Verdict::Refuted,
    }
}

// A key's value, as far as anyone looks at it.

/// A value by number, so that states are small.
type Value = u32;

const ABSENT: Value = 0;

/// Any value that no answer and no expectation names: which one does not matter.
const OTHER: Value = 1;

/// The values that matter, by number.
struct Values(BTreeMap<Bytes, Value>);

impl Values {
    fn of(calls: &[Known]) -> Values {
        let named: BTreeSet<&Bytes> = calls.iter().filter_map(|known| known.looks_for()).collect();
        Values(named.into_iter().cloned().zip(OTHER + 1..).collect())
    }

    fn number(&self, content: Option<&Bytes>) -> Value {
        content.map_or(ABSENT, |value| self.0.get(value).copied().unwrap_or(OTHER))
    }
}

/// A request as it stood at some time.
struct Known<'a> {
    call: &'a Call,
    /// When it was answered, and what.
    done: Option<(Micros, &'a Done)>,
}

impl<'a> Known<'a> {
    /// `None` if it had done nothing, and may do nothing yet.
    fn at(call: &'a Call, until: Micros) -> Option<Known<'a>> {
        let end = call.end.as_ref().filter(|(ended, _)| *ended < until);
        let done = match end {
            Some((ended, End::Done(done))) => Some((*ended, done)),
            Some((_, End::Nothing)) => return None,
            Some((_, End::Unknown)) | None => None,
        };
        let matters = done.is_some() || matches!(call.operation, Operation::Write(_));
        (matters && call.at < until).then_some(Known { call, done })
    }

    /// The value that it saw, or that it expects.
    fn looks_for(&self) -> Option<&'a Bytes> {
        match (&self.call.operation, self.done) {
            (_, Some((_, Done::Read(reading)))) => reading.value.as_ref().map(|value| &value.0),
            (Operation::Write(Write::CompareAndSwap { expected, .. }), _) => {
                expected.as_ref().map(|value| &value.0)
            }
            _ => None,
        }
    }

    fn kind(&self, values: &Values) -> Kind {
        let applied = match self.done {
            Some((_, Done::Written(written))) => Some(written.applied),
            Some((_, Done::Read(reading))) => {
                return Kind::Get(values.number(reading.value.as_ref().map(|value| &value.0)));
            }
            _ => None,
        };
        let applied = applied.unwrap_or(true);
        match &self.call.operation {
            Operation::Get(_) => unreachable!("a read without an answer does not matter"),
            Operation::Write(Write::Put { value, .. }) => Kind::Put(values.number(Some(value))),
            Operation::Write(Write::Delete { .. }) => Kind::Delete { applied },
            Operation::Write(Write::CompareAndSwap {
                expected, value, ..
            }) => Kind::Swap {
                expected: values.number(expected.as_ref().map(|value| &value.0)),
                value: values.number(value.as_ref().map(|value| &value.0)),
                applied,
            },
            _ => unreachable!("the history is of single keys"),
        }
    }
}

/// What the search is given: requests in the order of their moments, each moment a number of its
/// own. Between two answers the order of calls says nothing, so those come first that took
/// effect first by their revision.
fn operations(calls: &[&Call], until: Micros) -> Vec<porcupine_rs::Operation<Register>> {
    let known: Vec<Known> = calls.iter().filter_map(|c| Known::at(c, until)).collect();
    let values = Values::of(&known);
    let kinds: Vec<Kind> = known.iter().map(|known| known.kind(&values)).collect();
    let mut moments = Vec::new();
    for (n, Known { call, done }) in known.iter().enumerate() {
        // At one moment calls come before answers: such a pair is concurrent.
        moments.push((call.at, false, n));
        moments.extend(done.map(|(ended, _)| (ended, true, n)));
    }
    moments.sort_unstable();
    let in_doubt = moments
        .iter()
        .filter(|(_, is_end, n)| !is_end && known[*n].done.is_none());
    let doubts: Vec<Kind> = in_doubt.map(|(_, _, n)| kinds[*n]).collect();
    let doubts = Arc::new(Doubts::of(doubts));
    let mut operations: Vec<porcupine_rs::Operation<Register>> = Vec::new();
    let mut places: BTreeMap<usize, usize> = BTreeMap::new();
    let mut time = 0;
    let add = |operations: &mut Vec<_>, kind, time| {
        operations.push(porcupine_rs::Operation {
            client_id: None,
            call_time: time,
            return_time: time,
            op: Request {
                kind,
                doubts: doubts.clone(),
            },
            metadata: None,
        });
    };
    for run in moments.chunk_by(|a, b| a.1 == b.1) {
        if run[0].1 {
            for (_, _, n) in run {
                time += 1;
                operations[places[n]].return_time = time;
            }
            continue;
        }
        let armed = run
            .iter()
            .filter(|(_, _, n)| known[*n].done.is_none())
            .count();
        if armed > 0 {
            time += 1;
            add(&mut operations, Kind::Arm(armed as u32), time);
        }
        let mut certain: Vec<usize> = run.iter().map(|(_, _, n)| *n).collect();
        certain.retain(|n| known[*n].done.is_some());
        certain.sort_by_key(|n| {
            let (revision, writes) = known[*n].call.place();
            (revision, !writes)
        });
        for n in certain {
            time += 1;
            places.insert(n, operations.len());
            add(&mut operations, kinds[n], time);
        }
    }
    operations
}

// The model.

/// One key.
#[derive(Clone, Debug)]
struct Register;

#[derive(Clone, Debug)]
struct Request {
    kind: Kind,
    doubts: Arc<Doubts>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// So many more writes of unknown outcome may take effect from here on.
    Arm(u32),
    Put(Value),
    Get(Value),
    Delete {
        applied: bool,
    },
    Swap {
        expected: Value,
        value: Value,
        applied: bool,
    },
}

/// The writes of unknown outcome, in the order of their calls.
#[derive(Debug)]
struct Doubts {
    writes: Vec<Kind>,
    /// By value, the writes that would make it so.
    makers: BTreeMap<Value, Vec<u32>>,
    /// How many of the first so many write a value that nobody looks for, or delete: among such
    /// only the number matters.
    others: Vec<u32>,
    deletes: Vec<u32>,
}

impl Doubts {
    fn of(writes: Vec<Kind>) -> Doubts {
        let mut makers: BTreeMap<Value, Vec<u32>> = BTreeMap::new();
        let (mut others, mut deletes) = (vec![0], vec![0]);
        for (n, write) in (0..).zip(&writes) {
            match write {
                Kind::Put(OTHER) | Kind::Delete { .. } => {}
                Kind::Put(value) | Kind::Swap { value, .. } => {
                    makers.entry(*value).or_default().push(n);
                }
                Kind::Arm(_) | Kind::Get(_) => unreachable!("no write"),
            }
            others.push(others[n as usize] + u32::from(*write == Kind::Put(OTHER)));
            deletes.push(deletes[n as usize] + u32::from(matches!(write, Kind::Delete { .. })));
        }
        Doubts {
            writes,
            makers,
            others,
            deletes,
        }
    }
}

/// What may be the case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// So many writes of unknown outcome have been called.
    armed: u32,
    cases: Vec<Case>,
}

/// A value, and which writes of unknown outcome took effect on the way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Case {
    value: Value,
    others: u32,
    deletes: u32,
    fired: Vec<u32>,
}

impl Case {
    /// Whatever may follow on `other` may follow on this.
    fn covers(&self, other: &Case) -> bool {
        self.value == other.value
            && self.others <= other.others
            && self.deletes <= other.deletes
            && self.fired.len() <= other.fired.len()
            && self
                .fired
                .iter()
                .all(|n| other.fired.binary_search(n).is_ok())
    }

    fn with(mut self, value: Value) -> Case {
        self.value = value;
        self
    }

    fn has_fired(mut self, n: u32, value: Value) -> Case {
        let at = self.fired.partition_point(|other| *other < n);
        self.fired.insert(at, n);
        self.with(value)
    }
}

/// What writes of unknown outcome can make of a case.
struct Firing<'a> {
    armed: u32,
    doubts: &'a Doubts,
}

impl Firing<'_> {
    /// The fewest writes that make the value `wanted`, in every way.
    fn reach(&self, case: &Case, wanted: Value) -> Vec<Case> {
        if case.value == wanted {
            return vec![case.clone()];
        }
        let mut reached = Vec::new();
        // Swaps that wait for one another: a chain may be looked for in very many ways.
        if take_steps(1) == 0 {
            return reached;
        }
        if wanted == ABSENT {
            reached.extend(self.delete(case));
        }
        for n in self.doubts.makers.get(&wanted).into_iter().flatten() {
            if *n >= self.armed || case.fired.contains(n) {
                continue;
            }
            let before = match self.doubts.writes[*n as usize] {
                Kind::Swap { expected, .. } => {
                    // While it waits for its turn it is not there for others.
                    let waiting = case.clone().has_fired(*n, case.value);
                    self.reach(&waiting, expected)
                }
                _ => vec![case.clone().has_fired(*n, case.value)],
            };
            reached.extend(before.into_iter().map(|case| case.with(wanted)));
        }
        reached
    }

    /// Any one write that takes effect now.
    fn leave(&self, case: &Case) -> Vec<Case> {
        let mut left: Vec<Case> = self.delete(case).into_iter().collect();
        if case.others < self.doubts.others[self.armed as usize] {
            let others = case.others + 1;
            let fired = Case {
                others,
                ..case.clone()
            };
            left.push(fired.with(OTHER));
        }
        for (value, n) in self
            .doubts
            .makers
            .iter()
            .flat_map(|(v, ns)| ns.iter().map(move |n| (v, n)))
        {
            let fits = match self.doubts.writes[*n as usize] {
                Kind::Swap { expected, .. } => expected == case.value,
                _ => true,
            };
            if *n < self.armed && fits && !case.fired.contains(n) {
                left.push(case.clone().has_fired(*n, *value));
            }
        }
        left
    }

    fn delete(&self, case: &Case) -> Option<Case> {
        let deletes = case.deletes + 1;
        let may = case.value != ABSENT && deletes <= self.doubts.deletes[self.armed as usize];
        let fired = Case {
            deletes,
            ..case.clone()
        };
        may.then(|| fired.with(ABSENT))
    }

    /// What is the case after a request that was answered so; nothing if it cannot have been.
    fn after(&self, case: &Case, kind: Kind) -> Vec<Case> {
        match kind {
            Kind::Arm(_) => vec![case.clone()],
            Kind::Put(value) => vec![case.clone().with(value)],
            Kind::Get(value) => self.reach(case, value),
            // Removing what is not there changes nothing, and is said to.
            Kind::Swap {
                expected: ABSENT,
                value: ABSENT,
                applied,
            } => Vec::from_iter((!applied).then(|| case.clone())),
            Kind::Delete { applied: false } => self.reach(case, ABSENT),
            Kind::Delete { applied: true } => {
                let there = self.otherwise_than(case, ABSENT);
                there.into_iter().map(|case| case.with(ABSENT)).collect()
            }
            Kind::Swap {
                expected,
                value,
                applied: true,
            } => {
                let held = self.reach(case, expected);
                held.into_iter().map(|case| case.with(value)).collect()
            }
            Kind::Swap {
                expected,
                applied: false,
                ..
            } => self.otherwise_than(case, expected),
        }
    }

    fn otherwise_than(&self, case: &Case, value: Value) -> Vec<Case> {
        if case.value != value {
            return vec![case.clone()];
        }
        let mut left = self.leave(case);
        left.retain(|case| case.value != value);
        left
    }
}

impl Model for Register {
    type State = State;
    type Op = Request;
    type Metadata = ();

    fn init() -> State {
        State {
            armed: 0,
            cases: vec![Case {
                value: ABSENT,
                others: 0,
                deletes: 0,
                fired: Vec::new(),
            }],
        }
    }

    fn step(state: &State, request: &Request) -> (bool, State) {
        // Large states take longer and more room: they count accordingly.
        let size: usize = state
            .cases
            .iter()
            .map(|case| 1 + case.fired.len() / 8)
            .sum();
        let left = take_steps(size as u64);
        let mut next = State {
            armed: state.armed,
            cases: Vec::new(),
        };
        if left == 0 {
            return (false, next);
        }
        if let Kind::Arm(more) = request.kind {
            next.armed += more;
        }
        let firing = Firing {
            armed: next.armed,
            doubts: &request.doubts,
        };
        for case in &state.cases {
            next.cases.extend(firing.after(case, request.kind));
            if next.cases.len() > CASES {
                STEPS_LEFT.set(0);
                return (false, next);
            }
        }
        next.cases = essential(next.cases);
        (!next.cases.is_empty(), next)
    }
}

/// The cases that no other covers, in order.
fn essential(mut cases: Vec<Case>) -> Vec<Case> {
    if cases.len() > 1 {
        cases.sort_unstable();
        cases.dedup();
        let all = cases.clone();
        cases.retain(|case| !all.iter().any(|other| other != case && other.covers(case)));
    }
    cases
}

#[cfg(test)]
mod tests;
