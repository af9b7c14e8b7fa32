//! The replicated state: an ordered map with revisions, the changes of late, leases, and the
//! sessions that make retries harmless.
//!
//! Everything here is a function of the applied entries alone: two nodes that have applied up to
//! the same index hold the same bytes. `digest` is a running checksum over what was applied, in
//! order, so that any two nodes can be compared.
//!
//! A revision counts changes: what one entry changes, however much, has one revision, and an entry
//! that changes nothing has none. A write is checked as a whole first (`draft.rs`), so that it is
//! done entirely or not at all.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use minicbor::{Decode, Encode};
use raft::{ClientId, Command, Entry, Index, Payload, RequestNumber, Settings, Term};

use crate::draft::{Draft, Failed};
use crate::history::{History, MAX_HISTORY, MAX_HISTORY_BYTES};
use crate::leases::{Lease, Leases, MAX_LEASES};
use crate::sessions::{Introduction, MAX_SESSIONS, Session, Sessions};
use crate::state::{
    Action, ActionResult, Cursor, KeyEvent, KeyRange, KeyValue, LEASE_TTL_MS, LeaseGrant, LeaseId,
    MAX_ANSWER_BYTES, NODES, RESERVED, RangeReading, RangeRequest, Transacted, Transaction,
    Watched,
};
use crate::wire::{Answer, Reading, Value, Write, Written, append_to, from_slice, to_vec};

/// How many bytes all keys and values may have, each pair counted with [`PAIR_OVERHEAD`]. Beyond it
/// what would make the state larger is answered `Full`.
pub const MAX_STATE_BYTES: usize = 64 << 20;

/// How many bytes of applied entries call for a snapshot, at least.
pub const SNAPSHOT_BYTES: usize = 4 << 20;

/// What a pair costs beside its key and value.
pub const PAIR_OVERHEAD: usize = 64;

/// How much the replicated state holds. Part of what the log means: where two nodes of a cluster differ
/// in it, their states part. So there is one for all, and another only for tests, which cannot fill it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Clients that are remembered; default [`MAX_SESSIONS`].
    pub sessions: usize,
    /// Changes that are kept; default [`MAX_HISTORY`].
    pub history: usize,
    /// Bytes of them; default [`MAX_HISTORY_BYTES`].
    pub history_bytes: usize,
    /// Bytes of all pairs; default [`MAX_STATE_BYTES`].
    pub state_bytes: usize,
    /// Bytes of log from which on a node takes a snapshot, unless the last one was larger; in this nodes
    /// may differ. Default [`SNAPSHOT_BYTES`].
    pub log_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            sessions: MAX_SESSIONS,
            history: MAX_HISTORY,
            history_bytes: MAX_HISTORY_BYTES,
            state_bytes: MAX_STATE_BYTES,
            log_bytes: SNAPSHOT_BYTES,
        }
    }
}

/// The replicated state as of one applied entry.
#[derive(Clone, Debug, Default)]
pub struct Store {
    bounds: Bounds,
    pairs: BTreeMap<Bytes, Pair>,
    /// What `pairs` cost.
    bytes: usize,
    revision: u64,
    history: History,
    leases: Leases,
    sessions: Sessions,
    settings: Settings,
    applied: Index,
    digest: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Pair {
    #[cbor(n(0), with = "raft::codec")]
    pub(crate) value: Bytes,
    /// The revision at which the key came to be.
    #[n(1)]
    pub(crate) created: u64,
    /// The revision that last changed it.
    #[n(2)]
    pub(crate) modified: u64,
    /// How often it was set since it came to be.
    #[n(3)]
    pub(crate) version: u64,
    #[cbor(n(4), with = "raft::codec::unless_default", has_nil)]
    pub(crate) lease: LeaseId,
}

impl Pair {
    pub(crate) fn called(&self, key: &Bytes) -> KeyValue {
        KeyValue {
            key: key.clone(),
            value: self.value.clone(),
            created: self.created,
            modified: self.modified,
            version: self.version,
            lease: self.lease,
        }
    }
}

/// What stands in a log entry's command.
#[derive(Debug, Encode, Decode)]
struct LoggedWrite {
    #[n(0)]
    settled: Option<RequestNumber>,
    #[n(1)]
    write: Write,
    #[n(2)]
    begun: Option<Index>,
}

/// A client's command for the log.
pub(crate) fn command(
    client: ClientId,
    request: RequestNumber,
    settled: Option<RequestNumber>,
    begun: Option<Index>,
    write: Write,
) -> Command {
    let logged = LoggedWrite {
        settled,
        write,
        begun,
    };
    Command {
        client,
        request,
        data: to_vec(&logged).into(),
    }
}

/// The leader's own command for the log; the number tells it which one was refused.
pub(crate) fn own_command(number: RequestNumber, write: Write) -> Command {
    command(OWN, number, None, None, write)
}

/// Who asks for the leader's own commands.
pub(crate) const OWN: ClientId = ClientId(0);

/// The lowest frame version in which a command may be said: an older build would apply it to nothing,
/// and have another state from then on. It looks at the least that tells.
pub(crate) fn command_version(command: &Command) -> u8 {
    older(&command.data).map_or(2, |older| if older { 1 } else { 2 })
}

/// Whether a logged write is one that every build applies alike.
fn older(data: &[u8]) -> Result<bool, minicbor::decode::Error> {
    let mut decoder = minicbor::Decoder::new(data);
    if decoder.array()? != Some(2) {
        return Ok(false); // It says when its session began.
    }
    decoder.skip()?;
    let fields = decoder.array()?;
    Ok(match decoder.u32()? {
        0 => fields == Some(3), // A put without a lease.
        1 | 2 => true,
        _ => false,
    })
}

/// The answer to a command that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) client: ClientId,
    pub(crate) request: RequestNumber,
    pub(crate) answer: Answer,
}

impl Store {
    /// The same with other bounds than the default; for tests.
    pub(crate) fn bounded(self, bounds: Bounds) -> Store {
        Store { bounds, ..self }
    }

    pub(crate) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// How far the state has come.
    pub fn applied(&self) -> Index {
        self.applied
    }

    /// How many changes the state has seen.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// A checksum over all that was applied.
    pub fn digest(&self) -> u32 {
        self.digest
    }

    /// What all pairs cost, in bytes, against [`MAX_STATE_BYTES`].
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The value of `key` as it stands here.
    pub fn get(&self, key: &[u8]) -> Reading {
        let pair = self.pairs.get(key);
        Reading {
            revision: self.revision,
            value: pair.map(|pair| Value(pair.value.clone())),
            modified: pair.map_or(0, |pair| pair.modified),
        }
    }

    /// The pairs of a range as they stand here: as many as one answer holds.
    pub fn range(&self, request: &RangeRequest) -> RangeReading {
        let mut reading = RangeReading {
            revision: self.revision,
            ..RangeReading::default()
        };
        let (start, end) = request.range.bounds();
        let start = match &request.after {
            Some(Value(after)) if *after >= *request.range.start() => {
                Bound::Excluded(after.clone())
            }
            _ => start,
        };
        let found = self.between(&request.range, (start, end));
        if request.count_only {
            reading.count = Some(found.count() as u64);
            return reading;
        }
        let limit = match request.limit {
            0 => usize::MAX,
            limit => limit as usize,
        };
        let mut bytes = 0;
        for (key, pair) in found {
            let mut pair = pair.called(key);
            if request.keys_only {
                pair.value = Bytes::new();
            }
            bytes += pair.key.len() + pair.value.len() + PAIR_OVERHEAD;
            let enough = reading.pairs.len() >= limit || bytes > MAX_ANSWER_BYTES;
            if enough && !reading.pairs.is_empty() {
                reading.more = true;
                return reading;
            }
            reading.pairs.push(pair);
        }
        reading
    }

    /// The changes of a range from a cursor on, as far as they are here.
    pub fn changes(&self, range: &KeyRange, from: Cursor) -> Watched {
        self.history.since(range, from, self.revision)
    }

    /// The newest revision whose changes are no longer kept.
    pub fn compacted(&self) -> u64 {
        self.history.compacted()
    }

    /// Every pair of the users, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        let own = |key: &Bytes| key.starts_with(RESERVED);
        let pairs = self.pairs.iter().filter(move |(key, _)| !own(key));
        pairs.map(|(key, pair)| (key, &pair.value))
    }

    pub(crate) fn pairs_of(&self, range: &KeyRange) -> impl Iterator<Item = (&Bytes, &Pair)> {
        self.between(range, range.bounds())
    }

    /// The pairs of a range that lie within bounds.
    fn between(
        &self,
        range: &KeyRange,
        (start, end): (Bound<Bytes>, Bound<Bytes>),
    ) -> impl Iterator<Item = (&Bytes, &Pair)> {
        // A map refuses bounds that are the wrong way round, or empty on both sides.
        let is_empty = match (&start, &end) {
            (Bound::Excluded(start), Bound::Excluded(end) | Bound::Included(end))
            | (Bound::Included(start), Bound::Excluded(end)) => start >= end,
            (Bound::Included(start), Bound::Included(end)) => start > end,
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        };
        let bounds = (!is_empty).then(|| self.pairs.range((start, end)));
        let pairs = bounds.into_iter().flatten();
        pairs.filter(|(key, _)| range.contains(key))
    }

    pub(crate) fn pair(&self, key: &[u8]) -> Option<&Pair> {
        self.pairs.get(key)
    }

    pub(crate) fn leases(&self) -> &Leases {
        &self.leases
    }

    /// What a lease promises, to whoever holds it.
    pub(crate) fn grant_of(&self, lease: LeaseId) -> Option<LeaseGrant> {
        let ttl_ms = self.leases.get(lease)?.ttl_ms;
        Some(LeaseGrant {
            lease,
            ttl_ms,
            drift_ppm: self.settings.drift_ppm,
        })
    }

    // Applying.

    /// Applies the next entry.
    pub(crate) fn apply(&mut self, entry: &Entry) -> Option<Applied> {
        assert_eq!(
            entry.index,
            self.applied + 1,
            "entries are applied in order, each once"
        );
        self.applied = entry.index;
        self.extend_digest(entry);
        match &entry.payload {
            Payload::Command(command) => self.apply_command(command, entry.term),
            Payload::Configuration(configuration) => {
                self.settings = configuration.settings;
                None
            }
            Payload::Noop | Payload::LeaseEpoch(_) => None,
        }
    }

    fn extend_digest(&mut self, entry: &Entry) {
        let mut crc = crc32fast::Hasher::new_with_initial(self.digest);
        crc.update(&entry.index.0.to_be_bytes());
        crc.update(&entry.term.0.to_be_bytes());
        if let Payload::Command(command) = &entry.payload {
            crc.update(&command.client.0.to_be_bytes());
            crc.update(&command.request.0.to_be_bytes());
            crc.update(&command.data);
        }
        self.digest = crc.finalize();
    }

    fn apply_command(&mut self, command: &Command, term: Term) -> Option<Applied> {
        let Command {
            client,
            request,
            data,
        } = command;
        let answer = match from_slice::<LoggedWrite>(data) {
            Ok(logged) if logged.write.is_own() => {
                self.write(logged.write, term);
                return None;
            }
            Ok(logged) => self.apply_once(*client, *request, logged, term),
            // Written by a newer build: every node of this build skips it alike.
            Err(_) => Answer::SessionExpired,
        };
        Some(Applied {
            client: *client,
            request: *request,
            answer,
        })
    }

    /// Applies a write unless it was applied before.
    fn apply_once(
        &mut self,
        client: ClientId,
        request: RequestNumber,
        logged: LoggedWrite,
        term: Term,
    ) -> Answer {
        let LoggedWrite {
            settled,
            write,
            begun,
        } = logged;
        let from = Introduction {
            client,
            request,
            settled,
            begun,
        };
        if let Some(answer) = self.sessions.admit(from, self.applied) {
            return answer;
        }
        let answer = self.write(write, term);
        // What was not done for want of room may be done when it is asked for again.
        if !matches!(answer, Answer::Full(_)) {
            self.sessions.remember(client, request, answer.clone());
        }
        // Who was admitted has a session, whatever it was answered.
        self.sessions.trim(self.bounds.sessions);
        answer
    }

    fn write(&mut self, write: Write, term: Term) -> Answer {
        let done = match write {
            Write::Put { key, value, lease } => self.put(key, value, lease),
            Write::Delete { key } => Ok(self.delete(key)),
            Write::CompareAndSwap {
                key,
                expected,
                value,
            } => {
                let held = self.pairs.get(&key).map(|pair| &pair.value);
                let holds = held == expected.as_ref().map(|value| &value.0);
                match (holds, value) {
                    (false, _) => Ok(self.written(false)),
                    (true, Some(Value(value))) => self.put(key, value, None),
                    (true, None) => Ok(self.delete(key)),
                }
            }
            Write::Transaction(transaction) => self.transact(&transaction, term),
            Write::Grant { ttl_ms } => self.grant(ttl_ms),
            Write::Revoke(lease) => self.revoke(lease),
            Write::Expire(leases) => {
                self.end_leases(&leases);
                Ok(self.written(true))
            }
            Write::Own(actions) => self.act(&actions, true).map(|_| self.written(true)),
        };
        done.unwrap_or_else(Failed::into_answer)
    }

    fn written(&self, applied: bool) -> Answer {
        Answer::Written(Written {
            revision: self.revision,
            applied,
        })
    }

    fn put(&mut self, key: Bytes, value: Bytes, lease: Option<LeaseId>) -> Result<Answer, Failed> {
        if key.starts_with(RESERVED) {
            return Err(Failed::Reserved);
        }
        let mut draft = Draft::new(self);
        draft.put(key, value, lease)?;
        let events = draft.finish(false)?;
        self.commit(events);
        Ok(self.written(true))
    }

    fn delete(&mut self, key: Bytes) -> Answer {
        let there = !key.starts_with(RESERVED) && self.pairs.contains_key(&key);
        if there {
            let revision = self.revision + 1;
            self.commit(vec![KeyEvent::Delete { key, revision }]);
        }
        self.written(there)
    }

    fn transact(&mut self, transaction: &Transaction, term: Term) -> Result<Answer, Failed> {
        let Transaction {
            conditions,
            then,
            otherwise,
        } = transaction;
        if transaction.actions().any(writes_nodes) {
            return Err(Failed::Reserved);
        }
        let succeeded = conditions.iter().all(|condition| {
            let pair = self.pairs.get(&condition.key);
            condition.holds(pair)
        });
        let branch = if succeeded { then } else { otherwise };
        let results = self.act(branch, false)?;
        Ok(Answer::Transacted(Box::new(Transacted {
            revision: self.revision,
            succeeded,
            results,
            term: term.0,
        })))
    }

    /// Carries out actions, as one; our own also where the state is full.
    fn act(&mut self, actions: &[Action], own: bool) -> Result<Vec<ActionResult>, Failed> {
        let mut draft = Draft::new(self);
        let results = actions.iter().map(|action| draft.act(action));
        let results = results.collect::<Result<Vec<_>, _>>()?;
        let events = draft.finish(own)?;
        self.commit(events);
        Ok(results)
    }

    fn grant(&mut self, ttl_ms: u64) -> Result<Answer, Failed> {
        let bounds = LEASE_TTL_MS;
        let ttl_ms = ttl_ms.clamp(*bounds.start(), *bounds.end());
        let lease = self.leases.grant(self.applied, ttl_ms);
        let lease = lease.ok_or(Failed::Full(MAX_LEASES as u64))?;
        let grant = self.grant_of(lease);
        Ok(grant.map_or(Answer::NoSuchLease, Answer::Granted))
    }

    fn revoke(&mut self, lease: LeaseId) -> Result<Answer, Failed> {
        if self.leases.get(lease).is_none() {
            return Err(Failed::NoSuchLease);
        }
        self.end_leases(&[lease]);
        Ok(self.written(true))
    }

    /// Ends leases; what goes with them goes at one revision.
    fn end_leases(&mut self, leases: &[LeaseId]) {
        let revision = self.revision + 1;
        let ended = leases.iter().filter_map(|lease| self.leases.remove(*lease));
        let keys = ended.flat_map(|lease| lease.keys);
        let events = keys.map(|key| KeyEvent::Delete { key, revision });
        let events = events.collect();
        self.commit(events);
    }

    /// Makes checked changes, all at the next revision.
    fn commit(&mut self, events: Vec<KeyEvent>) {
        if events.is_empty() {
            return;
        }
        self.revision += 1;
        for event in events {
            let before = match &event {
                KeyEvent::Put(put) => {
                    let pair = Pair {
                        value: put.value.clone(),
                        created: put.created,
                        modified: put.modified,
                        version: put.version,
                        lease: put.lease,
                    };
                    self.bytes += cost(&put.key, &pair);
                    self.pairs.insert(put.key.clone(), pair)
                }
                KeyEvent::Delete { key, .. } => self.pairs.remove(key),
            };
            self.bytes -= before.as_ref().map_or(0, |pair| cost(event.key(), pair));
            let from = before.map_or(LeaseId::NONE, |pair| pair.lease);
            let to = match &event {
                KeyEvent::Put(put) => put.lease,
                KeyEvent::Delete { .. } => LeaseId::NONE,
            };
            self.leases.attach(event.key(), from, to);
            self.history.push(event);
        }
        self.history.trim(self.revision, self.bounds);
    }

    // Snapshots.

    /// The whole state as bytes.
    pub(crate) fn snapshot(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(self.bytes + self.bytes / 4);
        append_to(&SNAPSHOT_VERSION, &mut bytes);
        append_to(&(self.revision, self.applied, self.digest), &mut bytes);
        append_to(&self.settings, &mut bytes);
        let lengths = [self.pairs.len(), self.leases.len(), self.sessions.len()];
        append_to(&lengths.map(|length| length as u64), &mut bytes);
        for (key, pair) in &self.pairs {
            append_to(&Value(key.clone()), &mut bytes);
            append_to(pair, &mut bytes);
        }
        for (lease, Lease { ttl_ms, .. }) in self.leases.iter() {
            append_to(&(lease, *ttl_ms), &mut bytes);
        }
        append_to(&self.sessions.forgotten(), &mut bytes);
        for (client, session) in self.sessions.iter() {
            append_to(client, &mut bytes);
            append_to(session, &mut bytes);
        }
        let events = self.history.events();
        append_to(&(self.history.compacted(), events.len() as u64), &mut bytes);
        for event in events {
            append_to(event, &mut bytes);
        }
        bytes.into()
    }

    /// The same state as if `by` more entries, and as many changes, had come before: index and
    /// revision of a cluster whose numbers must lie beyond all that another has given out. What
    /// changed in between is not known, so no watch goes on across it; a key keeps the revisions that
    /// it had, and a lease its name.
    pub(crate) fn raised(&self, by: u64) -> Store {
        let mut raised = self.clone();
        raised.applied = Index(self.applied.0 + by);
        raised.revision = self.revision + by;
        raised.sessions = self.sessions.raised(by);
        raised.history = History::restored(raised.revision, Vec::new());
        raised
    }

    /// The state that a snapshot holds.
    ///
    /// # Errors
    /// When the bytes are no snapshot that this build reads.
    pub fn restore(bytes: &[u8]) -> Result<Store, minicbor::decode::Error> {
        let mut decoder = minicbor::Decoder::new(bytes);
        match decoder.decode()? {
            1u32 => return Store::restore_first(&mut decoder),
            SNAPSHOT_VERSION => {}
            _ => return Err(wrong("snapshot of another version")),
        }
        let (revision, applied, digest): (u64, Index, u32) = decoder.decode()?;
        if revision > applied.0 {
            return Err(wrong("more revisions than entries"));
        }
        let mut store = Store {
            revision,
            applied,
            digest,
            settings: decoder.decode()?,
            ..Store::default()
        };
        let [pairs, leases, sessions]: [u64; 3] = decoder.decode()?;
        for _ in 0..pairs {
            let Value(key) = decoder.decode()?;
            let pair: Pair = decoder.decode()?;
            if pair.modified > revision || pair.created > pair.modified {
                return Err(wrong("a key of a revision to come"));
            }
            store.bytes += cost(&key, &pair);
            if let Some(twice) = store.pairs.insert(key.clone(), pair) {
                store.bytes -= cost(&key, &twice);
            }
        }
        for _ in 0..leases {
            let (lease, ttl_ms): (LeaseId, u64) = decoder.decode()?;
            store.leases.insert(lease, ttl_ms);
        }
        for (key, pair) in &store.pairs {
            store.leases.attach(key, LeaseId::NONE, pair.lease);
        }
        let forgotten = decoder.decode()?;
        let mut restored = BTreeMap::new();
        for _ in 0..sessions {
            let client: ClientId = decoder.decode()?;
            let session: Session = decoder.decode()?;
            restored.insert(client, session);
        }
        store.sessions = Sessions::restored(forgotten, restored);
        let (compacted, events): (u64, u64) = decoder.decode()?;
        let mut history: Vec<KeyEvent> = Vec::new();
        for _ in 0..events {
            let event: KeyEvent = decoder.decode()?;
            let before = history.last().map_or(compacted + 1, KeyEvent::revision);
            if event.revision() < before || event.revision() > revision {
                return Err(wrong("changes out of order"));
            }
            history.push(event);
        }
        store.history = History::restored(compacted, history);
        Ok(store)
    }

    /// What the first version said: keys with the revision that last changed them, and sessions whose
    /// answers were to plain writes.
    fn restore_first(
        decoder: &mut minicbor::Decoder<'_>,
    ) -> Result<Store, minicbor::decode::Error> {
        let (revision, applied, digest): (u64, Index, u32) = decoder.decode()?;
        if revision > applied.0 {
            return Err(wrong("more revisions than entries"));
        }
        let (pairs, sessions): (u64, u64) = decoder.decode()?;
        let mut store = Store {
            revision,
            applied,
            digest,
            history: History::restored(revision, Vec::new()),
            ..Store::default()
        };
        for _ in 0..pairs {
            let Value(key) = decoder.decode()?;
            let (Value(value), modified): (Value, u64) = decoder.decode()?;
            let pair = Pair {
                value,
                created: modified,
                modified,
                version: 1,
                lease: LeaseId::NONE,
            };
            store.bytes += cost(&key, &pair);
            store.pairs.insert(key, pair);
        }
        type First = (RequestNumber, BTreeMap<RequestNumber, Written>, Index);
        let mut restored = BTreeMap::new();
        for _ in 0..sessions {
            let client: ClientId = decoder.decode()?;
            let (settled, answers, last_write): First = decoder.decode()?;
            let answers = answers.into_iter();
            let answers = answers.map(|(number, written)| (number, Answer::Written(written)));
            restored.insert(client, Session::of(settled, answers.collect(), last_write));
        }
        store.sessions = Sessions::restored(Index(0), restored);
        Ok(store)
    }
}

const SNAPSHOT_VERSION: u32 = 2;

fn wrong(what: &'static str) -> minicbor::decode::Error {
    minicbor::decode::Error::message(what)
}

/// What a pair counts against the state's bound.
pub(crate) fn cost(key: &[u8], pair: &Pair) -> usize {
    key.len() + pair.value.len() + PAIR_OVERHEAD
}

/// Who is there is for the leader to write.
fn writes_nodes(action: &Action) -> bool {
    match action {
        Action::Put { key, .. } | Action::Add { key, .. } => key.starts_with(NODES),
        Action::Delete(range) => {
            range.start().starts_with(RESERVED) && NODES.starts_with(range.start())
                || range.start().starts_with(NODES)
                || matches!(range, KeyRange::Interval { .. }) && range.start().starts_with(RESERVED)
        }
        Action::Get { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Story {
        store: Store,
    }

    impl Story {
        fn apply(&mut self, client: u64, request: u64, settled: u64, write: Write) -> Answer {
            let settled = (settled > 1).then_some(RequestNumber(settled));
            self.apply_begun(client, request, settled, None, write)
        }

        fn apply_begun(
            &mut self,
            client: u64,
            request: u64,
            settled: Option<RequestNumber>,
            begun: Option<Index>,
            write: Write,
        ) -> Answer {
            let payload = Payload::Command(command(
                ClientId(client),
                RequestNumber(request),
                settled,
                begun,
                write,
            ));
            let entry = Entry {
                index: self.store.applied() + 1,
                term: Term(2),
                payload,
            };
            self.store
                .apply(&entry)
                .expect("a command has an answer")
                .answer
        }
    }

    fn put(key: &'static str, value: &'static str) -> Write {
        Write::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        }
    }

    fn written(revision: u64, applied: bool) -> Answer {
        Answer::Written(Written { revision, applied })
    }

    fn swap(expected: Option<&'static str>, value: Option<&'static str>) -> Write {
        let value_of = |text: &'static str| Value(text.into());
        let (expected, value) = (expected.map(value_of), value.map(value_of));
        Write::CompareAndSwap {
            key: "k".into(),
            expected,
            value,
        }
    }

    #[test]
    fn writes_move_the_revision_only_when_they_change_something() {
        let mut story = Story {
            store: Store::default(),
        };
        assert_eq!(story.apply(1, 1, 1, put("k", "a")), written(1, true));
        assert_eq!(
            story.apply(1, 2, 2, swap(Some("b"), Some("c"))),
            written(1, false)
        );
        assert_eq!(
            story.apply(1, 3, 3, swap(Some("a"), Some("c"))),
            written(2, true)
        );
        assert_eq!(
            story.apply(1, 4, 4, swap(None, Some("d"))),
            written(2, false)
        );
        assert_eq!(
            story.apply(1, 5, 5, Write::Delete { key: "k".into() }),
            written(3, true)
        );
        assert_eq!(
            story.apply(1, 6, 6, Write::Delete { key: "k".into() }),
            written(3, false)
        );
        assert_eq!(
            story.apply(1, 7, 7, swap(None, Some("e"))),
            written(4, true)
        );
        assert_eq!(story.store.get(b"k").value, Some(Value("e".into())));
    }

    /// A retry that reaches the log twice is applied once and answered alike.
    #[test]
    fn a_retry_is_applied_once() {
        let mut story = Story {
            store: Store::default(),
        };
        assert_eq!(
            story.apply(1, 1, 1, swap(None, Some("a"))),
            written(1, true)
        );
        assert_eq!(
            story.apply(1, 1, 1, swap(None, Some("a"))),
            written(1, true)
        );
        assert_eq!(story.store.revision(), 1);
        // Several requests at once may reach the log in any order.
        assert_eq!(story.apply(1, 3, 1, put("x", "3")), written(2, true));
        assert_eq!(story.apply(1, 2, 1, put("x", "2")), written(3, true));
        assert_eq!(story.apply(1, 3, 1, put("x", "3")), written(2, true));
        // Once settled, a late copy is refused rather than applied again.
        assert_eq!(story.apply(1, 4, 4, put("x", "4")), written(4, true));
        assert_eq!(
            story.apply(1, 2, 1, put("x", "2")),
            Answer::SessionForgotten(story.store.applied())
        );
        assert_eq!(story.store.get(b"x").value, Some(Value("4".into())));
    }

    /// A forgotten client's retry might apply twice, so it is refused; a new client's is not.
    #[test]
    fn a_forgotten_session_is_not_mistaken_for_a_new_one() {
        let mut story = Story {
            store: Store::default(),
        };
        story.apply(1, 1, 1, put("k", "a"));
        for client in 0..MAX_SESSIONS as u64 {
            story.apply(1_000 + client, 1, 1, put("k", "b"));
        }
        assert_eq!(
            story.apply(1, 2, 2, put("k", "c")),
            Answer::SessionForgotten(story.store.applied())
        );
        assert_eq!(story.store.get(b"k").value, Some(Value("b".into())));
    }

    /// A full state takes no write, and no more sessions either: they are in every snapshot, and only a
    /// write that was done let go of any.
    #[test]
    fn a_full_state_remembers_no_more_clients_than_another() {
        let bounds = Bounds {
            state_bytes: 8,
            sessions: 10,
            ..Bounds::default()
        };
        let mut story = Story {
            store: Store::default().bounded(bounds),
        };
        for client in 0..50 {
            assert_eq!(story.apply(client, 1, 1, put("k", "v")), Answer::Full(8));
        }
        assert_eq!(story.store.sessions.len(), 10);
    }

    /// A transaction that was done has an answer that fits a frame: else whoever asked would never learn
    /// what it did.
    #[test]
    fn what_a_transaction_reads_fits_a_frame() {
        let mut story = Story {
            store: Store::default(),
        };
        let keys: Vec<String> = (0..8_190).map(|n| format!("{n:x}")).collect();
        for keys in keys.chunks(100) {
            let put = |key: &String| Action::Put {
                key: key.clone().into(),
                value: Bytes::new(),
                lease: None,
            };
            let transaction = Transaction {
                then: keys.iter().map(put).collect(),
                ..Transaction::default()
            };
            let number = story.store.applied().0 + 1;
            story.apply(1, number, number, Write::Transaction(transaction));
        }
        let get = |prefix: &'static str| Action::Get {
            range: KeyRange::Prefix(prefix.into()),
            oldest: 0,
        };
        let prefixes = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "a"];
        for most in 1..=prefixes.len() {
            let transaction = Transaction {
                then: prefixes[..most].iter().map(|prefix| get(prefix)).collect(),
                ..Transaction::default()
            };
            let number = story.store.applied().0 + 1;
            let answer = story.apply(1, number, number, Write::Transaction(transaction));
            let fits = to_vec(&answer).len() < crate::frame::MAX_BODY / 2;
            assert!(fits, "{most} prefixes: {} bytes", to_vec(&answer).len());
        }
    }

    /// However large the state is, what one transaction costs every node has a bound.
    #[test]
    fn a_transaction_goes_through_so_many_keys() {
        let mut story = Story {
            store: Store::default(),
        };
        for n in 0..60_000_u32 {
            let pair = Pair {
                value: Bytes::new(),
                created: 1,
                modified: 1,
                version: 1,
                lease: LeaseId::NONE,
            };
            story.store.pairs.insert(format!("{n:05}").into(), pair);
        }
        let oldest = Action::Get {
            range: KeyRange::Prefix(Bytes::new()),
            oldest: 1,
        };
        let mut ask = |times: usize| {
            let transaction = Transaction {
                then: vec![oldest.clone(); times],
                ..Transaction::default()
            };
            let number = story.store.applied().0 + 1;
            story.apply(1, number, number, Write::Transaction(transaction))
        };
        assert!(matches!(ask(1), Answer::Transacted(_)));
        assert!(matches!(ask(2), Answer::Refused(_)));
    }

    #[test]
    fn a_snapshot_restores_everything() {
        let mut story = Story {
            store: Store::default(),
        };
        story.apply(1, 1, 1, put("k", "a"));
        story.apply(2, 1, 1, put("l", "b"));
        let mut restored = Story {
            store: Store::restore(&story.store.snapshot()).unwrap(),
        };
        assert_eq!(restored.store.digest(), story.store.digest());
        assert_eq!(restored.apply(1, 1, 1, put("k", "z")), written(1, true));
        story.apply(1, 1, 1, put("k", "z"));
        assert_eq!(restored.store.snapshot(), story.store.snapshot());
        assert!(Store::restore(&story.store.snapshot()[1..]).is_err());
    }
}
