//! What makes retries harmless: who has asked what, and what came of it.
//!
//! A session begins with a client's first write. Whether a client that is not known is new, or was
//! forgotten with what it asked, is decided by its own word of how far the log had come before its
//! first write (`begun`): a session that was forgotten had written after that, and the newest write
//! of any that was forgotten is remembered. So a write is applied at most once, whatever is
//! retried, delayed or forgotten.

use std::collections::BTreeMap;

use minicbor::{Decode, Encode};
use raft::{ClientId, Index, RequestNumber};

use crate::state::{ActionResult, KeyValue};
use crate::wire::Answer;

/// How many clients' sessions are remembered. Beyond it the one that wrote least recently goes.
pub const MAX_SESSIONS: usize = 4_096;

/// How many answers one session keeps. A client keeps its requests within that; one that does
/// not is answered `Busy`, and nothing is applied.
pub(crate) const MAX_ANSWERS: usize = 4_096;

/// How many bytes of answers one session keeps; beyond it `Busy` as well.
pub(crate) const MAX_SESSION_BYTES: usize = 512 << 10;

/// How many bytes of answers all sessions keep; beyond it the one that wrote least recently goes.
pub const MAX_SESSIONS_BYTES: usize = 16 << 20;

/// All sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sessions {
    sessions: BTreeMap<ClientId, Session>,
    /// By their last write, which no two share.
    by_last_write: BTreeMap<Index, ClientId>,
    bytes: usize,
    /// The newest write of all that were forgotten.
    forgotten: Index,
}

/// What is remembered of one client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Session {
    /// Requests below this one are settled.
    #[n(0)]
    settled: RequestNumber,
    /// Answers to those at or above it.
    #[n(1)]
    answers: BTreeMap<RequestNumber, Answer>,
    /// When it last wrote, by index: who goes first when there are too many.
    #[n(2)]
    last_write: Index,
    #[cbor(skip)]
    bytes: usize,
}

/// What a client says of itself with each write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Introduction {
    pub(crate) client: ClientId,
    pub(crate) request: RequestNumber,
    /// Requests below it are settled; `None`: no write was answered yet, the session may be new.
    pub(crate) settled: Option<RequestNumber>,
    /// How far the log had come before the client's first write; `None`: a build that does not say.
    pub(crate) begun: Option<Index>,
}

impl Sessions {
    /// What to answer without applying anything; `None`: it is to be applied.
    pub(crate) fn admit(&mut self, from: Introduction, at: Index) -> Option<Answer> {
        let Introduction {
            client,
            request,
            settled,
            begun,
        } = from;
        let may_be_new = settled.is_none() && begun.is_none_or(|begun| begun >= self.forgotten);
        if !self.sessions.contains_key(&client) && !may_be_new {
            return Some(Answer::SessionForgotten(at));
        }
        let session = self.sessions.entry(client).or_default();
        if request < session.settled {
            return Some(Answer::SessionForgotten(at));
        }
        self.by_last_write.remove(&session.last_write);
        self.by_last_write.insert(at, client);
        session.last_write = at;
        self.bytes -= session.bytes;
        session.settle(settled.unwrap_or_default());
        self.bytes += session.bytes;
        if let Some(answer) = session.answers.get(&request) {
            return Some(answer.clone());
        }
        let full = session.answers.len() >= MAX_ANSWERS || session.bytes >= MAX_SESSION_BYTES;
        full.then_some(Answer::Busy)
    }

    /// Keeps what came of a request that was admitted.
    pub(crate) fn remember(&mut self, client: ClientId, request: RequestNumber, answer: Answer) {
        let bytes = cost(&answer);
        if let Some(session) = self.sessions.get_mut(&client)
            && session.answers.insert(request, answer).is_none()
        {
            session.bytes += bytes;
            self.bytes += bytes;
        }
    }

    /// Lets go of those that wrote least recently while there are more than `most`, or too many answers.
    pub(crate) fn trim(&mut self, most: usize) {
        while self.sessions.len() > most || self.bytes > MAX_SESSIONS_BYTES {
            let Some((last_write, oldest)) = self.by_last_write.pop_first() else {
                return;
            };
            self.forgotten = self.forgotten.max(last_write);
            let session = self.sessions.remove(&oldest);
            self.bytes -= session.map_or(0, |session| session.bytes);
        }
    }

    /// The same as if all writes had come `by` entries later.
    pub(crate) fn raised(&self, by: u64) -> Sessions {
        let raise = |index: Index| Index(index.0 + by);
        let sessions = self.sessions.iter().map(|(client, session)| {
            let session = Session {
                last_write: raise(session.last_write),
                ..session.clone()
            };
            (*client, session)
        });
        Sessions::restored(raise(self.forgotten), sessions)
    }

    // Snapshots.

    /// The sessions of a snapshot.
    pub(crate) fn restored(
        forgotten: Index,
        sessions: impl IntoIterator<Item = (ClientId, Session)>,
    ) -> Sessions {
        let mut restored = Sessions {
            forgotten,
            ..Sessions::default()
        };
        for (client, mut session) in sessions {
            session.bytes = session.answers.values().map(cost).sum();
            restored.bytes += session.bytes;
            restored.by_last_write.insert(session.last_write, client);
            restored.sessions.insert(client, session);
        }
        restored
    }

    pub(crate) fn forgotten(&self) -> Index {
        self.forgotten
    }

    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ClientId, &Session)> {
        self.sessions.iter()
    }
}

impl Session {
    pub(crate) fn of(
        settled: RequestNumber,
        answers: BTreeMap<RequestNumber, Answer>,
        last_write: Index,
    ) -> Session {
        Session {
            settled,
            answers,
            last_write,
            bytes: 0,
        }
    }

    /// Forgets the answers below `settled`.
    fn settle(&mut self, settled: RequestNumber) {
        if settled <= self.settled {
            return;
        }
        self.settled = settled;
        while let Some(entry) = self.answers.first_entry() {
            if *entry.key() >= settled {
                return;
            }
            self.bytes -= cost(&entry.remove());
        }
    }
}

/// What it costs to keep an answer, in bytes.
fn cost(answer: &Answer) -> usize {
    let pair = |pair: &KeyValue| 64 + pair.key.len() + pair.value.len();
    let result = |result: &ActionResult| match result {
        ActionResult::Got(pairs) => 32 + pairs.iter().map(pair).sum::<usize>(),
        ActionResult::Put | ActionResult::Deleted(_) | ActionResult::Sum(_) => 32,
    };
    let beyond = match answer {
        Answer::Transacted(done) => done.results.iter().map(result).sum(),
        Answer::Refused(why) => why.len(),
        _ => 0,
    };
    64 + beyond
}
