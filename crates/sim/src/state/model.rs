//! What the replicated state is said to be, as dumb as can be: a map that is cloned for every
//! transaction, leases whose keys are looked for, clients in a list, and everything that ever was.
//!
//! It is written from the documentation of [`Write`] and [`Transaction`](replica::Transaction), shares no
//! code with the store, and is told the same log. So whatever a node answers has to be what this
//! says of the same moment. Besides it says what no store can: that nothing was done twice.
//!
//! The tests of `crates/replica` include this file, to try the store by itself.

use std::collections::{BTreeMap, BTreeSet};

use super::vocabulary::{
    Action, ActionResult, Answer, Bounds, Comparison, Condition, Cursor, KeyEvent, KeyRange,
    KeyValue, LEASE_TTL_MS, LeaseGrant, LeaseId, MAX_ANSWER_BYTES, MAX_TRANSACTION_READ, NODES,
    PAIR_OVERHEAD, RESERVED, RangeReading, RangeRequest, Reading, Target, Transacted, Value, Write,
    Written,
};
use bytes::Bytes;
use minicbor::Decode;
use raft::{ClientId, Entry, Index, Payload, RequestNumber};

/// Keys as they stand.
pub(crate) type Pairs = BTreeMap<Bytes, KeyValue>;

/// What one committed command came to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) index: Index,
    pub(crate) client: ClientId,
    pub(crate) request: RequestNumber,
    pub(crate) write: Write,
    pub(crate) answer: Answer,
    /// It was carried out, whatever came of that, and is not a copy of what had been before.
    pub(crate) done: bool,
    /// Leases that it ended.
    pub(crate) ended: Vec<LeaseId>,
}

/// What stands in a command (docs/wire.md).
#[derive(Debug, Decode)]
struct Logged {
    #[n(0)]
    settled: Option<RequestNumber>,
    #[n(1)]
    write: Write,
    #[n(2)]
    begun: Option<Index>,
}

/// A client that is remembered.
#[derive(Clone, Debug)]
struct Known {
    client: ClientId,
    settled: RequestNumber,
    answers: Vec<(RequestNumber, Answer)>,
    last_write: Index,
}

/// Why nothing was done.
#[derive(Clone, Debug)]
enum Not {
    Alive,
    Full(u64),
    Refused,
}

/// The state after some entries, and all that came before.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    bounds: Bounds,
    /// By index, from 1: the revision after the entry.
    revisions: Vec<u64>,
    revision: u64,
    pairs: Pairs,
    /// What each key was from which revision on.
    timelines: BTreeMap<Bytes, Vec<(u64, Option<KeyValue>)>>,
    /// Every change, and how many of its revision come before it.
    events: Vec<(Cursor, KeyEvent)>,
    /// Where those begin that are still kept.
    kept: usize,
    kept_bytes: usize,
    /// All that was ever the newest revision that is no longer kept.
    compacted: BTreeSet<u64>,
    leases: BTreeMap<LeaseId, u64>,
    drift_ppm: u32,
    known: Vec<Known>,
    forgotten: Index,
    /// Everything that was ever carried out.
    carried_out: BTreeSet<(ClientId, RequestNumber)>,
}

impl Model {
    pub(crate) fn new(bounds: Bounds) -> Model {
        Model {
            bounds,
            drift_ppm: raft::Settings::default().drift_ppm,
            compacted: BTreeSet::from([0]),
            ..Model::default()
        }
    }

    pub(crate) fn applied(&self) -> Index {
        Index(self.revisions.len() as u64)
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// The revision after an entry.
    pub(crate) fn revision_at(&self, index: Index) -> u64 {
        let at = index.0.checked_sub(1);
        at.map_or(0, |at| self.revisions[at as usize])
    }

    pub(crate) fn pairs(&self) -> &Pairs {
        &self.pairs
    }

    pub(crate) fn leases(&self) -> &BTreeMap<LeaseId, u64> {
        &self.leases
    }

    /// The newest revision that is no longer kept.
    pub(crate) fn compacted(&self) -> u64 {
        self.compacted.last().copied().unwrap_or(0)
    }

    /// Whether at some time this was the newest revision that was no longer kept.
    pub(crate) fn was_compacted_to(&self, revision: u64) -> bool {
        self.compacted.contains(&revision)
    }

    // Reads of any moment.

    /// A key at a revision.
    pub(crate) fn at(&self, key: &[u8], revision: u64) -> Option<&KeyValue> {
        let timeline = self.timelines.get(key)?;
        let later = timeline.partition_point(|(from, _)| *from <= revision);
        timeline[..later].last()?.1.as_ref()
    }

    pub(crate) fn reading(&self, key: &[u8], revision: u64) -> Reading {
        let pair = self.at(key, revision);
        Reading {
            revision,
            value: pair.map(|pair| Value(pair.value.clone())),
            modified: pair.map_or(0, |pair| pair.modified),
        }
    }

    /// Everything in a range at a revision, in the order of keys.
    pub(crate) fn range_at(&self, range: &KeyRange, revision: u64) -> Vec<KeyValue> {
        let keys = self.timelines.range(range.start().clone()..);
        let keys = keys.take_while(|(key, _)| may_follow(range, key));
        let found = keys.filter(|(key, _)| meant(range, key));
        found
            .filter_map(|(key, _)| self.at(key, revision).cloned())
            .collect()
    }

    /// What is wrong with an answer to a range request.
    pub(crate) fn misread(&self, request: &RangeRequest, reading: &RangeReading) -> Option<String> {
        let mut all = self.range_at(&request.range, reading.revision);
        if let Some(Value(after)) = &request.after {
            all.retain(|pair| pair.key > *after);
        }
        if request.count_only {
            let right = reading.count == Some(all.len() as u64) && reading.pairs.is_empty();
            return (!right).then(|| format!("{reading:?}, there are {}", all.len()));
        }
        if request.keys_only {
            all.iter_mut().for_each(|pair| pair.value = Bytes::new());
        }
        let told = reading.pairs.len();
        let bytes = |pair: &KeyValue| pair.key.len() + pair.value.len() + PAIR_OVERHEAD;
        let limit = request.limit as usize;
        // It ends early only where the limit or the size of an answer says so.
        let next = all.get(told).map_or(0, bytes) + reading.pairs.iter().map(bytes).sum::<usize>();
        let full = limit > 0 && told == limit || next > MAX_ANSWER_BYTES;
        let right = all.starts_with(&reading.pairs)
            && (limit == 0 || told <= limit)
            && reading.more == (told < all.len())
            && (!reading.more || full)
            && reading.count.is_none();
        (!right).then(|| format!("{reading:?}, it is {all:?}"))
    }

    /// The changes in a range from a place on, up to another.
    pub(crate) fn changes(&self, range: &KeyRange, from: Cursor, to: Cursor) -> Vec<&KeyEvent> {
        let begin = self.events.partition_point(|(at, _)| *at < from);
        let events = self.events[begin..].iter().take_while(|(at, _)| *at < to);
        let meant = events.filter(|(_, event)| meant(range, event.key()));
        meant.map(|(_, event)| event).collect()
    }

    // Writes.

    /// Takes the next entry.
    ///
    /// # Panics
    /// If what it asks for was carried out before, and would be again.
    pub(crate) fn apply(&mut self, entry: &Entry) -> Option<Outcome> {
        assert_eq!(entry.index, self.applied() + 1, "one after the other");
        let index = entry.index;
        let outcome = match &entry.payload {
            Payload::Configuration(configuration) => {
                self.drift_ppm = configuration.settings.drift_ppm;
                None
            }
            Payload::Noop | Payload::LeaseEpoch(_) => None,
            Payload::Command(command) => {
                let logged: Logged = minicbor::decode(&command.data).expect("as documented");
                let write = logged.write.clone();
                let before: Vec<LeaseId> = self.leases.keys().copied().collect();
                let (answer, done) = match &write {
                    Write::Expire(_) | Write::Own(_) => {
                        (self.write(&write, index, entry.term.0), true)
                    }
                    _ => self.once(
                        command.client,
                        command.request,
                        &logged,
                        index,
                        entry.term.0,
                    ),
                };
                let gone = |lease: &LeaseId| !self.leases.contains_key(lease);
                Some(Outcome {
                    index,
                    client: command.client,
                    request: command.request,
                    write,
                    answer,
                    done,
                    ended: before.into_iter().filter(gone).collect(),
                })
            }
        };
        self.revisions.push(self.revision);
        outcome
    }

    /// Carries out what was not carried out before.
    fn once(
        &mut self,
        client: ClientId,
        request: RequestNumber,
        logged: &Logged,
        index: Index,
        term: u64,
    ) -> (Answer, bool) {
        if !self.known.iter().any(|known| known.client == client) {
            let late = logged.begun.is_some_and(|begun| begun < self.forgotten);
            if logged.settled.is_some() || late {
                return (Answer::SessionForgotten(index), false);
            }
            self.known.push(Known {
                client,
                settled: RequestNumber(0),
                answers: Vec::new(),
                last_write: index,
            });
        }
        let mut known = self.known.iter_mut();
        let known = known.find(|k| k.client == client).expect("known by now");
        if request < known.settled {
            return (Answer::SessionForgotten(index), false);
        }
        known.last_write = index;
        let settled = logged.settled.unwrap_or_default().max(known.settled);
        known.settled = settled;
        known.answers.retain(|(number, _)| *number >= settled);
        if let Some((_, answer)) = known.answers.iter().find(|(number, _)| *number == request) {
            return (answer.clone(), false);
        }
        let answer = self.write(&logged.write, index, term);
        if matches!(answer, Answer::Full(_)) {
            self.forget_sessions();
            return (answer, false);
        }
        let twice = !self.carried_out.insert((client, request));
        assert!(
            !twice,
            "exactly-once: request {request:?} of {client:?} is carried out again at {index}: {:?}",
            logged.write
        );
        let mut known = self.known.iter_mut();
        let known = known.find(|k| k.client == client).expect("still known");
        known.answers.push((request, answer.clone()));
        self.forget_sessions();
        (answer, true)
    }

    fn forget_sessions(&mut self) {
        while self.known.len() > self.bounds.sessions {
            let oldest = self.known.iter().map(|known| known.last_write).min();
            let oldest = oldest.expect("more than none");
            self.known.retain(|known| known.last_write != oldest);
            self.forgotten = self.forgotten.max(oldest);
        }
    }

    fn write(&mut self, write: &Write, index: Index, term: u64) -> Answer {
        let done = match write {
            Write::Put { key, value, lease } => {
                let put = Action::Put {
                    key: key.clone(),
                    value: value.clone(),
                    lease: *lease,
                };
                self.user_put(&put, key)
            }
            Write::Delete { key } => Ok(self.delete(key)),
            Write::CompareAndSwap {
                key,
                expected,
                value,
            } => {
                let held = self.pairs.get(key).map(|pair| &pair.value);
                match value {
                    _ if held != expected.as_ref().map(|value| &value.0) => Ok(self.written(false)),
                    None => Ok(self.delete(key)),
                    Some(Value(value)) => {
                        let put = Action::Put {
                            key: key.clone(),
                            value: value.clone(),
                            lease: None,
                        };
                        self.user_put(&put, key)
                    }
                }
            }
            Write::Transaction(transaction) => {
                let all = transaction.then.iter().chain(&transaction.otherwise);
                let conditions = &transaction.conditions;
                let succeeded = conditions.iter().all(|c| holds(c, self.pairs.get(&c.key)));
                let branch = match succeeded {
                    true => &transaction.then,
                    false => &transaction.otherwise,
                };
                let reserved = all.clone().any(touches_nodes);
                let done = match reserved {
                    true => Err(Not::Refused),
                    false => self.act(branch, false),
                };
                done.map(|results| {
                    Answer::Transacted(Box::new(Transacted {
                        revision: self.revision,
                        succeeded,
                        results,
                        term,
                    }))
                })
            }
            Write::Grant { ttl_ms } => {
                let (lease, ttl_ms) = (
                    LeaseId(index.0),
                    (*ttl_ms).clamp(*LEASE_TTL_MS.start(), *LEASE_TTL_MS.end()),
                );
                self.leases.insert(lease, ttl_ms);
                Ok(Answer::Granted(self.grant_of(lease).expect("just granted")))
            }
            Write::Revoke(lease) => match self.leases.contains_key(lease) {
                true => {
                    self.end(&[*lease]);
                    Ok(self.written(true))
                }
                false => Err(Not::Alive),
            },
            Write::Expire(leases) => {
                self.end(leases);
                Ok(self.written(true))
            }
            Write::Own(actions) => self.act(actions, true).map(|_| self.written(true)),
        };
        done.unwrap_or_else(|not| match not {
            Not::Alive => Answer::NoSuchLease,
            Not::Full(limit) => Answer::Full(limit),
            Not::Refused => Answer::Refused(String::new()),
        })
    }

    pub(crate) fn grant_of(&self, lease: LeaseId) -> Option<LeaseGrant> {
        let ttl_ms = *self.leases.get(&lease)?;
        Some(LeaseGrant {
            lease,
            ttl_ms,
            drift_ppm: self.drift_ppm,
        })
    }

    fn written(&self, applied: bool) -> Answer {
        Answer::Written(Written {
            revision: self.revision,
            applied,
        })
    }

    fn user_put(&mut self, put: &Action, key: &Bytes) -> Result<Answer, Not> {
        if key.starts_with(RESERVED) {
            return Err(Not::Refused);
        }
        self.act(std::slice::from_ref(put), false)?;
        Ok(self.written(true))
    }

    fn delete(&mut self, key: &Bytes) -> Answer {
        let there = !key.starts_with(RESERVED) && self.pairs.contains_key(key);
        if there {
            let delete = Action::Delete(KeyRange::Key(key.clone()));
            let deleted = self.act(&[delete], false);
            deleted.expect("there is always room for less");
        }
        self.written(there)
    }

    /// All of it on a copy of everything; the copy counts if nothing goes wrong.
    fn act(&mut self, actions: &[Action], own: bool) -> Result<Vec<ActionResult>, Not> {
        let revision = self.revision + 1;
        let mut copy = self.pairs.clone();
        let (mut events, mut results) = (Vec::new(), Vec::new());
        let (mut read, mut grows) = (0, false);
        for action in actions {
            results.push(match action {
                Action::Put { key, value, lease } => {
                    grows = true;
                    let lease = lease.unwrap_or(LeaseId::NONE);
                    let put = set(&mut copy, key, value, lease, revision);
                    let had = self.pairs.get(key).is_some_and(|pair| pair.lease == lease);
                    if lease != LeaseId::NONE && !had && !self.leases.contains_key(&lease) {
                        return Err(Not::Alive);
                    }
                    events.push(put);
                    ActionResult::Put
                }
                Action::Add { key, delta } => {
                    grows = true;
                    let before = copy.get(key);
                    let lease = before.map_or(LeaseId::NONE, |pair| pair.lease);
                    let number = before.map_or(Ok(0), |pair| {
                        let text = std::str::from_utf8(&pair.value).map_err(|_| Not::Refused)?;
                        text.parse::<i64>().map_err(|_| Not::Refused)
                    })?;
                    let sum = number.checked_add(*delta).ok_or(Not::Refused)?;
                    let value = Bytes::from(sum.to_string());
                    events.push(set(&mut copy, key, &value, lease, revision));
                    ActionResult::Sum(sum)
                }
                Action::Delete(range) => {
                    let keys = copy.keys().filter(|key| meant(range, key));
                    let keys: Vec<Bytes> = keys.cloned().collect();
                    for key in &keys {
                        copy.remove(key);
                        let key = key.clone();
                        events.push(KeyEvent::Delete { key, revision });
                    }
                    ActionResult::Deleted(keys.len() as u64)
                }
                Action::Get { range, oldest } => {
                    let found = copy.values().filter(|pair| meant(range, &pair.key));
                    let mut found: Vec<KeyValue> = found.cloned().collect();
                    if *oldest > 0 {
                        found.sort_by_key(|pair| (pair.created, pair.key.clone()));
                        found.truncate(*oldest as usize);
                    }
                    let bytes = |pair: &KeyValue| pair.key.len() + pair.value.len() + 64;
                    read += found.iter().map(bytes).sum::<usize>();
                    if read > MAX_TRANSACTION_READ {
                        return Err(Not::Refused);
                    }
                    ActionResult::Got(found)
                }
            });
        }
        if grows && !own && size(&copy) > self.bounds.state_bytes && size(&copy) > size(&self.pairs)
        {
            return Err(Not::Full(self.bounds.state_bytes as u64));
        }
        self.commit(events, copy);
        Ok(results)
    }

    /// Ends leases: what goes with them goes, all at one revision.
    fn end(&mut self, leases: &[LeaseId]) {
        let revision = self.revision + 1;
        let (mut copy, mut events) = (self.pairs.clone(), Vec::new());
        for lease in leases {
            if self.leases.remove(lease).is_none() {
                continue;
            }
            let keys = copy.values().filter(|pair| pair.lease == *lease);
            let keys: Vec<Bytes> = keys.map(|pair| pair.key.clone()).collect();
            for key in keys {
                copy.remove(&key);
                events.push(KeyEvent::Delete { key, revision });
            }
        }
        self.commit(events, copy);
    }

    fn commit(&mut self, events: Vec<KeyEvent>, pairs: Pairs) {
        if events.is_empty() {
            return;
        }
        self.revision += 1;
        self.pairs = pairs;
        for (skip, event) in events.into_iter().enumerate() {
            let timeline = self.timelines.entry(event.key().clone()).or_default();
            let pair = match &event {
                KeyEvent::Put(pair) => Some(pair.clone()),
                KeyEvent::Delete { .. } => None,
            };
            match timeline.last_mut() {
                Some((at, last)) if *at == self.revision => *last = pair,
                _ => timeline.push((self.revision, pair)),
            }
            self.kept_bytes += kept_size(&event);
            let at = Cursor {
                revision: self.revision,
                skip: skip as u32,
            };
            self.events.push((at, event));
        }
        // Whole revisions, the oldest first, and never the newest.
        loop {
            let kept = &self.events[self.kept..];
            let few = kept.len() <= self.bounds.history;
            let small = self.kept_bytes <= self.bounds.history_bytes;
            let oldest = kept[0].0.revision;
            if few && small || oldest == self.revision {
                break;
            }
            while self.events[self.kept].0.revision == oldest {
                self.kept_bytes -= kept_size(&self.events[self.kept].1);
                self.kept += 1;
            }
            self.compacted.insert(oldest);
        }
    }
}

fn set(pairs: &mut Pairs, key: &Bytes, value: &Bytes, lease: LeaseId, revision: u64) -> KeyEvent {
    let before = pairs.get(key);
    let pair = KeyValue {
        key: key.clone(),
        value: value.clone(),
        created: before.map_or(revision, |pair| pair.created),
        modified: revision,
        version: before.map_or(0, |pair| pair.version) + 1,
        lease,
    };
    pairs.insert(key.clone(), pair.clone());
    KeyEvent::Put(pair)
}

fn size(pairs: &Pairs) -> usize {
    let sizes = pairs.values();
    sizes
        .map(|pair| pair.key.len() + pair.value.len() + PAIR_OVERHEAD)
        .sum()
}

fn kept_size(event: &KeyEvent) -> usize {
    const OVERHEAD: usize = 32;
    match event {
        KeyEvent::Put(pair) => OVERHEAD + pair.key.len() + pair.value.len(),
        KeyEvent::Delete { key, .. } => OVERHEAD + key.len(),
    }
}

/// Whether a key is in a range: what belongs to the cluster only where that was asked for.
pub(crate) fn meant(range: &KeyRange, key: &[u8]) -> bool {
    let (inside, start) = match range {
        KeyRange::Key(only) => (key == only, only),
        KeyRange::Prefix(prefix) => (key.starts_with(prefix), prefix),
        KeyRange::Interval { from, to: None } => (key >= from, from),
        KeyRange::Interval { from, to: Some(to) } => (key >= from && key < to.0, from),
    };
    inside && (start.starts_with(RESERVED) || !key.starts_with(RESERVED))
}

/// Whether keys from here on may still be in a range.
fn may_follow(range: &KeyRange, key: &[u8]) -> bool {
    match range {
        KeyRange::Key(only) => key == only,
        KeyRange::Prefix(prefix) => key.starts_with(prefix),
        KeyRange::Interval { to, .. } => to.as_ref().is_none_or(|to| key < to.0),
    }
}

/// Who is there is not for clients to write.
fn touches_nodes(action: &Action) -> bool {
    match action {
        Action::Put { key, .. } | Action::Add { key, .. } => key.starts_with(NODES),
        Action::Delete(KeyRange::Key(key)) => key.starts_with(NODES),
        Action::Delete(KeyRange::Prefix(prefix)) => {
            prefix.starts_with(NODES) || prefix.starts_with(RESERVED) && NODES.starts_with(prefix)
        }
        Action::Delete(KeyRange::Interval { from, .. }) => from.starts_with(RESERVED),
        Action::Get { .. } => false,
    }
}

fn holds(condition: &Condition, pair: Option<&KeyValue>) -> bool {
    let numbers = |of: fn(&KeyValue) -> u64, with: u64| {
        let of = pair.map_or(0, of);
        (of == with, of < with, of > with)
    };
    let (equal, less, greater) = match &condition.target {
        Target::Value(value) => {
            let compare =
                |test: fn(&Bytes, &Bytes) -> bool| pair.is_some_and(|p| test(&p.value, value));
            (
                compare(|a, b| a == b),
                compare(|a, b| a < b),
                compare(|a, b| a > b),
            )
        }
        Target::Version(version) => numbers(|pair| pair.version, *version),
        Target::Created(created) => numbers(|pair| pair.created, *created),
        Target::Modified(modified) => numbers(|pair| pair.modified, *modified),
        Target::Lease(lease) => numbers(|pair| pair.lease.0, lease.0),
    };
    match condition.comparison {
        Comparison::Equal => equal,
        Comparison::NotEqual => !equal,
        Comparison::Less => less,
        Comparison::Greater => greater,
    }
}

/// Whether two answers say the same; words may differ.
pub(crate) fn same(one: &Answer, other: &Answer) -> bool {
    matches!((one, other), (Answer::Refused(_), Answer::Refused(_))) || one == other
}
