//! The replicated state: an ordered map with revisions, and the sessions that make retries
//! harmless.
//!
//! Everything here is a function of the applied entries alone: two nodes that have applied up to
//! the same index hold the same bytes. `digest` is a running checksum over what was applied, in
//! order, so that any two nodes can be compared.

use std::collections::BTreeMap;

use bytes::Bytes;
use minicbor::{Decode, Encode};
use raft::{ClientId, Command, Entry, Index, Payload, RequestNumber};

use crate::wire::{Answer, Reading, Value, Write, Written, append_to, from_slice, to_vec};

/// How many clients' sessions are remembered. Beyond it the one that wrote least recently goes;
/// if that client retries a write, it is told that the outcome is unknown.
pub const MAX_SESSIONS: usize = 4_096;

/// How many answers one session keeps. A client keeps its requests within that; one that does
/// not is answered `Busy`, and nothing is applied.
pub(crate) const MAX_ANSWERS: usize = 4_096;

/// The replicated state as of one applied entry.
#[derive(Clone, Debug, Default)]
pub struct Store {
    pairs: BTreeMap<Bytes, Pair>,
    revision: u64,
    sessions: BTreeMap<ClientId, Session>,
    applied: Index,
    digest: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Pair {
    #[cbor(n(0), with = "raft::codec")]
    value: Bytes,
    /// The revision that last changed it.
    #[n(1)]
    modified: u64,
}

/// What is remembered of one client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
struct Session {
    /// Requests below this one are settled.
    #[n(0)]
    settled: RequestNumber,
    /// Answers to those at or above it.
    #[n(1)]
    answers: BTreeMap<RequestNumber, Written>,
    /// When it last wrote, by index: who goes first when there are too many.
    #[n(2)]
    last_write: Index,
}

/// What stands in a log entry's command.
#[derive(Debug, Encode, Decode)]
struct LoggedWrite {
    #[n(0)]
    settled: Option<RequestNumber>,
    #[n(1)]
    write: Write,
}

/// A command for the log.
pub(crate) fn command(
    client: ClientId,
    request: RequestNumber,
    settled: Option<RequestNumber>,
    write: Write,
) -> Command {
    let data = to_vec(&LoggedWrite { settled, write });
    Command {
        client,
        request,
        data: data.into(),
    }
}

/// The answer to a command that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) client: ClientId,
    pub(crate) request: RequestNumber,
    pub(crate) answer: Answer,
}

impl Store {
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

    /// The value of `key` as it stands here.
    pub fn get(&self, key: &[u8]) -> Reading {
        let pair = self.pairs.get(key);
        Reading {
            revision: self.revision,
            value: pair.map(|pair| Value(pair.value.clone())),
            modified: pair.map_or(0, |pair| pair.modified),
        }
    }

    /// Every pair, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.pairs.iter().map(|(key, pair)| (key, &pair.value))
    }

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
            Payload::Command(command) => Some(self.apply_command(command)),
            Payload::Noop | Payload::Configuration(_) | Payload::LeaseEpoch(_) => None,
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

    fn apply_command(&mut self, command: &Command) -> Applied {
        let Command {
            client,
            request,
            data,
        } = command;
        let answer = match from_slice::<LoggedWrite>(data) {
            Ok(logged) => self.apply_once(*client, *request, logged),
            // Written by a newer build: every node of this build skips it alike.
            Err(_) => Answer::SessionExpired,
        };
        Applied {
            client: *client,
            request: *request,
            answer,
        }
    }

    /// Applies a write unless it was applied before.
    fn apply_once(
        &mut self,
        client: ClientId,
        request: RequestNumber,
        logged: LoggedWrite,
    ) -> Answer {
        // Only a client that has seen no answer yet may be new: any other was forgotten here,
        // and what it asks may have been applied already.
        if !self.sessions.contains_key(&client) && logged.settled.is_some() {
            return Answer::SessionExpired;
        }
        let session = self.sessions.entry(client).or_default();
        if request < session.settled {
            return Answer::SessionExpired;
        }
        session.last_write = self.applied;
        session.settle(logged.settled.unwrap_or_default());
        if let Some(written) = session.answers.get(&request) {
            return Answer::Written(*written);
        }
        if session.answers.len() >= MAX_ANSWERS {
            return Answer::Busy;
        }
        let written = self.write(logged.write);
        self.remember(client, request, written);
        Answer::Written(written)
    }

    fn remember(&mut self, client: ClientId, request: RequestNumber, written: Written) {
        self.sessions
            .entry(client)
            .or_default()
            .answers
            .insert(request, written);
        if self.sessions.len() > MAX_SESSIONS {
            let oldest = self
                .sessions
                .iter()
                .min_by_key(|(_, session)| session.last_write);
            let oldest = oldest.map(|(client, _)| *client);
            oldest.and_then(|client| self.sessions.remove(&client));
        }
    }

    fn write(&mut self, write: Write) -> Written {
        let applied = match write {
            Write::Put { key, value } => self.set(key, Some(value)),
            Write::Delete { key } => self.set(key, None),
            Write::CompareAndSwap {
                key,
                expected,
                value,
            } => {
                let held = self.pairs.get(&key).map(|pair| &pair.value);
                let holds = held == expected.as_ref().map(|value| &value.0);
                holds && self.set(key, value.map(|value| value.0))
            }
        };
        Written {
            revision: self.revision,
            applied,
        }
    }

    /// Sets or removes a key; false if there was nothing to remove.
    fn set(&mut self, key: Bytes, value: Option<Bytes>) -> bool {
        let modified = self.revision + 1;
        match value {
            Some(value) => {
                self.pairs.insert(key, Pair { value, modified });
            }
            None if self.pairs.remove(&key).is_none() => return false,
            None => {}
        }
        self.revision = modified;
        true
    }

    // Snapshots.

    /// The whole state as bytes.
    pub(crate) fn snapshot(&self) -> Bytes {
        let mut bytes = Vec::new();
        append_to(&SNAPSHOT_VERSION, &mut bytes);
        append_to(&(self.revision, self.applied, self.digest), &mut bytes);
        append_to(
            &(self.pairs.len() as u64, self.sessions.len() as u64),
            &mut bytes,
        );
        for (key, pair) in &self.pairs {
            append_to(&Value(key.clone()), &mut bytes);
            append_to(pair, &mut bytes);
        }
        for (client, session) in &self.sessions {
            append_to(client, &mut bytes);
            append_to(session, &mut bytes);
        }
        bytes.into()
    }

    /// The same state as if `by` more entries, and as many changes, had come before: index and
    /// revision of a cluster whose numbers must lie beyond all that another has given out.
    pub(crate) fn raised(&self, by: u64) -> Store {
        let mut raised = self.clone();
        raised.applied = Index(self.applied.0 + by);
        raised.revision = self.revision + by;
        raised
    }

    /// The state that a snapshot holds.
    ///
    /// # Errors
    /// When the bytes are no snapshot that this build reads.
    pub fn restore(bytes: &[u8]) -> Result<Store, minicbor::decode::Error> {
        let mut decoder = minicbor::Decoder::new(bytes);
        let version: u32 = decoder.decode()?;
        if version != SNAPSHOT_VERSION {
            return Err(minicbor::decode::Error::message(
                "snapshot of another version",
            ));
        }
        let (revision, applied, digest): (u64, Index, u32) = decoder.decode()?;
        if revision > applied.0 {
            return Err(minicbor::decode::Error::message(
                "more revisions than entries",
            ));
        }
        let (pairs, sessions): (u64, u64) = decoder.decode()?;
        let mut store = Store {
            revision,
            applied,
            digest,
            ..Store::default()
        };
        for _ in 0..pairs {
            let Value(key) = decoder.decode()?;
            store.pairs.insert(key, decoder.decode()?);
        }
        for _ in 0..sessions {
            let client = decoder.decode()?;
            store.sessions.insert(client, decoder.decode()?);
        }
        Ok(store)
    }
}

const SNAPSHOT_VERSION: u32 = 1;

impl Session {
    /// Forgets the answers below `settled`.
    fn settle(&mut self, settled: RequestNumber) {
        if settled > self.settled {
            self.settled = settled;
            self.answers = self.answers.split_off(&settled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::Term;

    struct Story {
        store: Store,
    }

    impl Story {
        fn apply(&mut self, client: u64, request: u64, settled: u64, write: Write) -> Answer {
            let payload = Payload::Command(command(
                ClientId(client),
                RequestNumber(request),
                (settled > 1).then_some(RequestNumber(settled)),
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
        assert_eq!(story.apply(1, 2, 1, put("x", "2")), Answer::SessionExpired);
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
        assert_eq!(story.apply(1, 2, 2, put("k", "c")), Answer::SessionExpired);
        assert_eq!(story.store.get(b"k").value, Some(Value("b".into())));
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
