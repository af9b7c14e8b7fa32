//! What callers asked and were told, and whether one order of events explains it all.
//!
//! Every answer carries the revision at which it was given, which is a claim to a place in one
//! order. So no search is needed: the claims are checked from the outside, in linear time, on
//! every seed.
//!
//! - a request that began after another had ended has no smaller revision, and a write a greater
//!   one; two writes never share a revision;
//! - replayed in that order, every read, failed compare-and-swap and failed delete is right;
//! - once all has healed, what was acknowledged is in the state of every node.
//!
//! A write whose outcome is unknown may have taken any place after its call, or none: it explains
//! what nothing else explains, once.
//!
//! That the answers are right even to someone who does not look at revisions is judged apart, in
//! `linearizability.rs`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use replica::{Done, Name, Operation, Reading, RequestError, Store, Token, Value, Write};

use crate::check::Checker;
use crate::event::Micros;

type Key = Bytes;
type Content = Option<Bytes>;

/// What one store holds, by key.
pub(crate) type Readings = BTreeMap<Key, Reading>;

/// All requests of a run, by token.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) calls: Vec<Call>,
    /// Revisions that were made by others.
    pub(crate) foreign: BTreeSet<u64>,
    /// How many commands of leaders themselves, at most one revision each, are among those that are
    /// not known one by one.
    pub(crate) own: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) operation: Operation,
    pub(crate) at: Micros,
    pub(crate) end: Option<(Micros, End)>,
}

#[derive(Clone, Debug)]
pub(crate) enum End {
    Done(Done),
    /// It may have been applied, or may yet be.
    Unknown,
    /// It certainly did nothing.
    Nothing,
}

impl History {
    pub(crate) fn call(&mut self, operation: Operation, at: Micros) -> Token {
        self.calls.push(Call {
            operation,
            at,
            end: None,
        });
        Token(self.calls.len() as u64 - 1)
    }

    pub(crate) fn done(&mut self, token: Token, result: Result<Done, RequestError>, now: Micros) {
        let call = &mut self.calls[token.0 as usize];
        assert!(
            call.end.is_none(),
            "{}: request {} ends twice",
            Checker::RevisionOrder,
            token.0
        );
        let is_write = matches!(call.operation, Operation::Write(_));
        let end = match result {
            Ok(done) => End::Done(done),
            Err(RequestError::Unknown) => End::Unknown,
            Err(RequestError::TimedOut) if is_write => End::Unknown,
            Err(
                RequestError::TimedOut
                | RequestError::TooLarge
                | RequestError::Busy
                | RequestError::NoSuchLease
                | RequestError::Full(_)
                | RequestError::Refused(_)
                | RequestError::NotYet(_),
            ) => End::Nothing,
        };
        call.end = Some((now, end));
    }

    pub(crate) fn len(&self) -> usize {
        self.calls.len()
    }

    /// What a request has come to.
    pub(crate) fn result(&self, token: Token) -> Option<&Done> {
        match &self.calls[token.0 as usize].end {
            Some((_, End::Done(done))) => Some(done),
            Some((_, End::Unknown | End::Nothing)) | None => None,
        }
    }

    /// When a request was answered.
    pub(crate) fn answered_at(&self, token: Token) -> Option<Micros> {
        match &self.calls[token.0 as usize].end {
            Some((ended, End::Done(_))) => Some(*ended),
            _ => None,
        }
    }

    /// Whether a request ended, and nobody can say how.
    pub(crate) fn is_unknown(&self, token: Token) -> bool {
        matches!(self.calls[token.0 as usize].end, Some((_, End::Unknown)))
    }

    pub(crate) fn completed(&self) -> usize {
        let done = |call: &&Call| matches!(call.end, Some((_, End::Done(_))));
        self.calls.iter().filter(done).count()
    }

    /// Panics where no order explains what callers were told.
    pub(crate) fn check(&self) {
        self.check_order();
        let timelines = Timelines::of(&self.calls);
        timelines.check(&self.foreign, self.own);
    }

    /// Panics where a store lacks a write that was acknowledged: any of those `before`, and of the
    /// later ones those that it claims to have seen.
    pub(crate) fn check_stores(&self, stores: &[(&Name, &Store)], before: Micros) {
        let readings: Vec<(&Name, u64, Readings)> = stores
            .iter()
            .map(|(name, store)| (*name, store.revision(), self.readings(store)))
            .collect();
        self.check_readings(&readings, before);
    }

    /// What a store holds for every key that was ever written.
    pub(crate) fn readings(&self, store: &Store) -> Readings {
        let keys: BTreeSet<&Key> = self.calls.iter().map(Call::key).collect();
        keys.into_iter()
            .map(|key| (key.clone(), store.get(key)))
            .collect()
    }

    pub(crate) fn check_readings(&self, stores: &[(&Name, u64, Readings)], before: Micros) {
        let timelines = Timelines::of(&self.calls);
        let acknowledged = self.calls.iter().filter_map(|call| match call.end {
            Some((ended, _)) if ended < before => Some(call.place()),
            Some(_) | None => None,
        });
        let writes = acknowledged.filter(|(_, writes)| *writes);
        let newest = writes.map(|(revision, _)| revision).max().unwrap_or(0);
        for (name, revision, readings) in stores {
            assert!(
                *revision >= newest,
                "{}: {name} is at revision {revision}, {newest} was acknowledged",
                Checker::AcknowledgedWrites
            );
            for (key, reading) in readings {
                timelines.check_reading(name, key, reading);
            }
        }
    }

    /// Real time and revisions agree.
    fn check_order(&self) {
        let mut moments: Vec<(Micros, bool, usize)> = Vec::new();
        for (n, call) in self.calls.iter().enumerate() {
            if let Some((ended, End::Done(_))) = &call.end {
                // At one moment calls count before ends: such a pair is concurrent.
                moments.push((call.at, false, n));
                moments.push((*ended, true, n));
            }
        }
        moments.sort_unstable();
        let (mut newest, mut floors) = (0, BTreeMap::new());
        for (_, is_end, n) in moments {
            let (revision, writes) = self.calls[n].place();
            if !is_end {
                floors.insert(n, newest);
                continue;
            }
            let floor = floors[&n];
            assert!(
                revision > floor || (revision == floor && !writes),
                "{}: request {n} ({:?}) ended at revision {revision} though revision {floor} was seen before it began",
                Checker::RevisionOrder,
                self.calls[n]
            );
            newest = newest.max(revision);
        }
    }
}

impl Call {
    /// The revision of a request that was answered, and whether it made that revision.
    pub(crate) fn place(&self) -> (u64, bool) {
        match &self.end {
            Some((_, End::Done(Done::Written(written)))) => (written.revision, written.applied),
            Some((_, End::Done(Done::Read(reading)))) => (reading.revision, false),
            Some((_, End::Done(_))) => (0, false),
            Some((_, End::Unknown | End::Nothing)) | None => (0, false),
        }
    }

    pub(crate) fn may_have_written(&self) -> bool {
        let open = matches!(self.end, None | Some((_, End::Unknown)));
        open && matches!(self.operation, Operation::Write(_))
    }

    pub(crate) fn key(&self) -> &Key {
        match &self.operation {
            Operation::Get(key)
            | Operation::Write(
                Write::Put { key, .. } | Write::Delete { key } | Write::CompareAndSwap { key, .. },
            ) => key,
            _ => unreachable!("the history is of single keys"),
        }
    }

    /// What its key holds after it, if it is a write that took effect.
    fn content(&self) -> Content {
        match &self.operation {
            Operation::Write(Write::Put { value, .. }) => Some(value.clone()),
            Operation::Write(Write::CompareAndSwap { value, .. }) => {
                value.as_ref().map(|value| value.0.clone())
            }
            _ => None,
        }
    }
}

/// What each key held, by the revision that made it so.
struct Timelines<'a> {
    calls: &'a [Call],
    keys: BTreeMap<&'a Key, BTreeMap<u64, Content>>,
    revisions: BTreeMap<u64, &'a Key>,
    /// Values of writes whose outcome is unknown, until one has been seen.
    maybe: BTreeMap<(&'a Key, Content), usize>,
    /// Keys that a write of unknown outcome may have removed, and since when.
    maybe_removed: BTreeMap<&'a Key, Micros>,
}

impl<'a> Timelines<'a> {
    fn of(calls: &'a [Call]) -> Timelines<'a> {
        let mut timelines = Timelines {
            calls,
            keys: BTreeMap::new(),
            revisions: BTreeMap::new(),
            maybe: BTreeMap::new(),
            maybe_removed: BTreeMap::new(),
        };
        for (n, call) in calls.iter().enumerate() {
            match call.place() {
                (revision, true) => timelines.put(revision, call.key(), call.content()),
                (_, false) if call.may_have_written() => timelines.note_unknown(n, call),
                (_, false) => {}
            }
        }
        timelines.place_unknown();
        timelines
    }

    fn note_unknown(&mut self, n: usize, call: &'a Call) {
        match call.content() {
            None => {
                let since = self.maybe_removed.entry(call.key()).or_insert(call.at);
                *since = (*since).min(call.at);
            }
            value => {
                self.maybe.insert((call.key(), value), n);
            }
        }
    }

    fn put(&mut self, revision: u64, key: &'a Key, content: Content) {
        let taken = self.revisions.insert(revision, key);
        assert!(
            taken.is_none(),
            "{}: revision {revision} was made twice",
            Checker::RevisionOrder
        );
        self.keys.entry(key).or_default().insert(revision, content);
    }

    /// What a read saw was written, if not by a write that was answered, by one of unknown outcome.
    fn place_unknown(&mut self) {
        for (n, call) in self.calls.iter().enumerate() {
            let Some((ended, End::Done(Done::Read(reading)))) = &call.end else {
                continue;
            };
            let (Some(Value(value)), modified) = (&reading.value, reading.modified) else {
                continue;
            };
            let content = Some(value.clone());
            let known = self.keys.get(call.key()).and_then(|k| k.get(&modified));
            if known == Some(&content) {
                continue;
            }
            let writer = self.maybe.remove(&(call.key(), content.clone()));
            let writer = writer.filter(|writer| self.calls[*writer].at <= *ended);
            assert!(
                writer.is_some(),
                "{}: read {n} saw {content:?} of revision {modified}, which nobody can have written there",
                Checker::RevisionOrder
            );
            self.put(modified, call.key(), content);
        }
    }

    fn check(&self, foreign: &BTreeSet<u64>, own: u64) {
        let unknown = self.calls.iter().filter(|call| call.may_have_written());
        let newest = self.revisions.keys().next_back().copied().unwrap_or(0);
        let explained = self.revisions.len() + foreign.range(..newest).count();
        let unexplained = newest - explained as u64;
        assert!(
            unexplained <= unknown.count() as u64 + own,
            "{}: {unexplained} revisions were made by nobody",
            Checker::RevisionOrder
        );
        for (n, call) in self.calls.iter().enumerate() {
            if let Some((ended, End::Done(done))) = &call.end {
                self.check_call(n, call, *ended, done);
            }
        }
    }

    /// What a store holds is what was acknowledged last, or what a write of unknown outcome has
    /// made of it since.
    fn check_reading(&self, name: &Name, key: &Key, reading: &Reading) {
        let timeline = self.keys.get(key);
        let last = timeline.and_then(|t| t.range(..=reading.revision).next_back());
        let (made, content) = last.map_or((0, None), |(made, content)| (*made, content.clone()));
        let held = reading.value.as_ref().map(|value| value.0.clone());
        let right = match &held {
            Some(_) if reading.modified == made => held == content,
            Some(_) => reading.modified > made && self.maybe.contains_key(&(key, held.clone())),
            None => content.is_none() || self.maybe_removed.contains_key(key),
        };
        assert!(
            right,
            "{}: {name} holds {held:?} of revision {} for {key:?} at revision {}, which was {content:?} \
             by revision {made}",
            Checker::AcknowledgedWrites,
            reading.modified,
            reading.revision
        );
    }

    fn check_call(&self, n: usize, call: &Call, ended: Micros, done: &Done) {
        let (revision, writes) = call.place();
        let through = if writes { revision - 1 } else { revision };
        let held = self.held(call.key(), through);
        let removed = self.may_be_removed(call.key(), ended);
        let fits = |content: &Content| {
            held.contains(content) || (content.is_none() && removed) || self.may_hold(call, content)
        };
        let right = match (&call.operation, done) {
            (Operation::Get(_), Done::Read(reading)) => match &reading.value {
                // Its write has its place: nothing else may have come between.
                Some(Value(value)) => held.contains(&Some(value.clone())),
                None => fits(&None),
            },
            (Operation::Write(Write::Put { .. }), Done::Written(written)) => written.applied,
            (Operation::Write(Write::Delete { .. }), Done::Written(written)) => {
                written.applied || fits(&None)
            }
            (
                Operation::Write(Write::CompareAndSwap {
                    expected, value, ..
                }),
                Done::Written(written),
            ) => {
                let expected = expected.as_ref().map(|value| value.0.clone());
                let certain = held == BTreeSet::from([expected.clone()])
                    && !removed
                    && !self.is_uncertain(call.key(), ended);
                // Removing what is not there changes nothing.
                let idle = expected.is_none() && value.is_none();
                match written.applied {
                    true => fits(&expected),
                    false => idle || !certain,
                }
            }
            _ => false,
        };
        assert!(
            right,
            "{}: request {n} cannot be explained: {call:?}, its key held one of {held:?}",
            Checker::RevisionOrder
        );
    }

    /// What the key held at a revision, by the writes that have their place.
    fn held(&self, key: &Key, through: u64) -> BTreeSet<Content> {
        let timeline = self.keys.get(key);
        let last = timeline.and_then(|timeline| timeline.range(..=through).next_back());
        BTreeSet::from([last.and_then(|(_, content)| content.clone())])
    }

    fn may_be_removed(&self, key: &Key, before: Micros) -> bool {
        self.maybe_removed.get(key).is_some_and(|at| *at <= before)
    }

    /// A write of unknown outcome that was never read may still have been there for a while.
    fn may_hold(&self, call: &Call, content: &Content) -> bool {
        self.maybe.contains_key(&(call.key(), content.clone()))
    }

    fn is_uncertain(&self, key: &Key, before: Micros) -> bool {
        let mut unknown = self.maybe.iter().filter(|((k, _), _)| *k == key);
        unknown.any(|(_, n)| self.calls[*n].at <= before)
    }
}

#[cfg(test)]
pub(crate) mod tests;
