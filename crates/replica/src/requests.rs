//! The client's side of a request: sent to the leader, again if no answer comes, until a
//! deadline; then the outcome is unknown, and said to be.

use std::collections::BTreeMap;
use std::time::Duration;

use raft::{ClientId, RequestNumber, Time};

use crate::kv::MAX_ANSWERS;
use crate::name::Name;
use crate::wire::{
    Answer, MAX_KEY, MAX_VALUE, Members, Operation, Reading, Reply, Request, Value, Write, Written,
};

/// How long the first answer may take before the request is sent again.
const FIRST_RETRY: Duration = Duration::from_millis(250);

/// How soon to ask again where there was no leader, or the leader was busy.
const SOON: Duration = Duration::from_millis(30);

/// How soon to ask again for what cannot be done yet.
const NOT_YET: Duration = Duration::from_millis(100);

/// How many steps one change may have.
const MAX_STEPS: usize = 64;

/// Why a leader is not asked for what it would not understand.
pub(crate) fn older_leader(leader: &Name) -> String {
    format!("{leader} leads and runs an older build: upgrade it first")
}

/// The caller's own mark on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(pub u64);

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// The write was applied.
    Written(Written),
    /// The value as a quorum confirmed it.
    Read(Reading),
    /// The members, after the change where one was asked for.
    Members(Members),
    /// This node leads now.
    Transferred(String),
}

/// Why a request came to nothing, or to nothing certain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A write got no answer in time. It may have been applied or may yet be.
    #[error("outcome unknown: no answer in time; it may have been done or may yet be")]
    Unknown,
    /// A read got no answer in time, or a write found no leader to go to.
    #[error("no answer in time: is there a leader? see `mqraft status`")]
    TimedOut,
    /// Key or value is too large; nothing was sent.
    #[error("too large: a key has at most {MAX_KEY} bytes and a value {MAX_VALUE}")]
    TooLarge,
    /// This client has too many requests under way; nothing was sent.
    #[error("too many requests under way")]
    Busy,
    /// The leader does not do it, for this reason.
    #[error("{0}")]
    Refused(String),
    /// The leader could not do it in time, last for this reason.
    #[error("not in time: {0}")]
    NotYet(String),
}

/// The requests of one client that have no answer yet.
pub(crate) struct Requests {
    client: ClientId,
    /// A write was answered under this id: the cluster has a session for it.
    known: bool,
    next: RequestNumber,
    pending: BTreeMap<RequestNumber, Pending>,
}

struct Pending {
    token: Token,
    /// Under which id it was sent; a retry must bear the same.
    client: ClientId,
    operation: Operation,
    deadline: Time,
    send_at: Time,
    sent: u32,
    /// It was answered since it was last sent: it is not being done.
    is_answered: bool,
    /// Why it was not done when it was last asked for.
    not_yet: Option<String>,
}

impl Requests {
    pub(crate) fn new(client: ClientId) -> Requests {
        Requests {
            client,
            known: false,
            next: RequestNumber(1),
            pending: BTreeMap::new(),
        }
    }

    /// Takes a request; [`Requests::due`] says when to send it.
    pub(crate) fn submit(
        &mut self,
        token: Token,
        operation: Operation,
        timeout: Duration,
        now: Time,
    ) -> Result<(), RequestError> {
        if !fits(&operation) {
            return Err(RequestError::TooLarge);
        }
        if self.next.0 - self.settled().0 >= MAX_ANSWERS as u64 {
            return Err(RequestError::Busy);
        }
        let number = self.next;
        self.next = number.next();
        let pending = Pending {
            token,
            client: self.client,
            operation,
            deadline: now + timeout,
            send_at: now,
            sent: 0,
            is_answered: false,
            not_yet: None,
        };
        self.pending.insert(number, pending);
        Ok(())
    }

    fn settled(&self) -> RequestNumber {
        self.pending.keys().next().copied().unwrap_or(self.next)
    }

    /// The requests to send now.
    pub(crate) fn due(&mut self, now: Time) -> Vec<Request> {
        let (client, settled) = (self.client, self.known.then(|| self.settled()));
        let mut due = Vec::new();
        for (number, pending) in &mut self.pending {
            if now < pending.send_at {
                continue;
            }
            // Asked once more, with no time left for the answer, it would end unknown.
            if pending.was_not_done() && now + FIRST_RETRY > pending.deadline {
                pending.send_at = pending.deadline;
                continue;
            }
            let wait = FIRST_RETRY.saturating_mul(1 << pending.sent.min(2));
            pending.send_at = now + wait;
            if pending.sent == 0 {
                pending.client = client;
            }
            pending.sent = pending.sent.saturating_add(1);
            pending.is_answered = false;
            // Under an id that was given up there is a session, or there was.
            let settled = match pending.client == client {
                true => settled,
                false => Some(*number),
            };
            due.push(Request {
                client: pending.client,
                number: *number,
                settled,
                operation: pending.operation.clone(),
            });
        }
        due
    }

    /// Whether a request has been sent more than once.
    pub(crate) fn was_sent_before(&self, number: RequestNumber) -> bool {
        self.pending
            .get(&number)
            .is_some_and(|pending| pending.sent > 1)
    }

    /// Another leader: whatever waits is sent to it at once.
    pub(crate) fn on_new_leader(&mut self, now: Time) {
        self.pending
            .values_mut()
            .for_each(|pending| pending.send_at = now);
    }

    /// Takes an answer. `None` where the request is settled already or is to be sent again.
    pub(crate) fn on_reply(
        &mut self,
        reply: Reply,
        now: Time,
    ) -> Option<(Token, Result<Done, RequestError>)> {
        let pending = self.pending.get(&reply.number)?;
        if reply.client != pending.client {
            return None;
        }
        if !answers(&pending.operation, &reply.answer) {
            return None;
        }
        let result = match reply.answer {
            Answer::Members(members) => Ok(Done::Members(members)),
            Answer::Transferred(leader) => Ok(Done::Transferred(leader)),
            Answer::Refused(why) => Err(RequestError::Refused(why)),
            Answer::NotYet(why) => {
                let pending = self.pending.get_mut(&reply.number)?;
                pending.not_yet = Some(why);
                pending.is_answered = true;
                pending.send_at = pending.send_at.min(now + NOT_YET);
                return None;
            }
            Answer::Written(written) => Ok(Done::Written(written)),
            Answer::Read(reading) => Ok(Done::Read(reading)),
            Answer::TooLarge(_) => Err(RequestError::TooLarge),
            Answer::SessionExpired => Err(RequestError::Unknown),
            Answer::NotLeader(_) | Answer::Busy => {
                let pending = self.pending.get_mut(&reply.number)?;
                pending.is_answered = true;
                pending.send_at = pending.send_at.min(now + SOON);
                return None;
            }
        };
        match result {
            Ok(Done::Written(_)) if reply.client == self.client => self.known = true,
            Err(RequestError::Unknown) if reply.client == self.client => self.renew(),
            Ok(_) | Err(_) => {}
        }
        Some((self.pending.remove(&reply.number)?.token, result))
    }

    /// The cluster has forgotten our session. What was sent under it stays unknown; what follows
    /// begins another.
    fn renew(&mut self) {
        self.client = self.client.next();
        self.known = false;
    }

    /// Gives up what is past its deadline.
    pub(crate) fn expire(&mut self, now: Time) -> Vec<(Token, RequestError)> {
        let late = |_: &RequestNumber, pending: &mut Pending| now >= pending.deadline;
        let expired = self.pending.extract_if(.., late);
        expired
            .map(|(_, pending)| (pending.token, pending.given_up()))
            .collect()
    }

    /// Gives up everything.
    pub(crate) fn abandon(&mut self) -> Vec<(Token, RequestError)> {
        let pending = std::mem::take(&mut self.pending);
        pending
            .into_values()
            .map(|pending| (pending.token, pending.given_up()))
            .collect()
    }

    /// When the first is given up, where none can be sent before.
    pub(crate) fn expiry(&self) -> Option<Time> {
        self.pending.values().map(|pending| pending.deadline).min()
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.pending
            .values()
            .map(|pending| pending.send_at.min(pending.deadline))
            .min()
    }
}

impl Pending {
    /// Whether the last answer was that it cannot be done yet. What was asked for again since may be
    /// under way.
    fn was_not_done(&self) -> bool {
        self.not_yet.is_some() && self.is_answered
    }

    fn given_up(&self) -> RequestError {
        if let Some(why) = self.not_yet.as_ref().filter(|_| self.was_not_done()) {
            return RequestError::NotYet(why.clone());
        }
        match self.operation {
            Operation::Write(_) | Operation::Change(_) | Operation::Transfer(_)
                if self.sent > 0 =>
            {
                RequestError::Unknown
            }
            // There was never anyone to send it to.
            Operation::Write(_) | Operation::Change(_) | Operation::Transfer(_) => {
                RequestError::TimedOut
            }
            Operation::Get(_) | Operation::Members => RequestError::TimedOut,
        }
    }
}

/// Whether it is an answer to this question: to another it is none.
fn answers(operation: &Operation, answer: &Answer) -> bool {
    match answer {
        Answer::Written(_) | Answer::SessionExpired => matches!(operation, Operation::Write(_)),
        Answer::Read(_) => matches!(operation, Operation::Get(_)),
        Answer::Members(_) => matches!(operation, Operation::Change(_) | Operation::Members),
        Answer::Transferred(_) => matches!(operation, Operation::Transfer(_)),
        Answer::NotYet(_) | Answer::Refused(_) => {
            matches!(operation, Operation::Change(_) | Operation::Transfer(_))
        }
        Answer::NotLeader(_) | Answer::Busy | Answer::TooLarge(_) => true,
    }
}

/// Whether keys and values are within bounds.
pub(crate) fn fits(operation: &Operation) -> bool {
    let value_fits = |value: &Option<Value>| value.as_ref().is_none_or(|v| v.0.len() <= MAX_VALUE);
    match operation {
        Operation::Get(key) | Operation::Write(Write::Delete { key }) => key.len() <= MAX_KEY,
        Operation::Change(change) => change.members.len() <= MAX_STEPS,
        Operation::Transfer(_) | Operation::Members => true,
        Operation::Write(Write::Put { key, value }) => {
            key.len() <= MAX_KEY && value.len() <= MAX_VALUE
        }
        Operation::Write(Write::CompareAndSwap {
            key,
            expected,
            value,
        }) => {
            let together = [expected, value]
                .into_iter()
                .flatten()
                .map(|v| v.0.len())
                .sum::<usize>();
            key.len() <= MAX_KEY
                && value_fits(expected)
                && value_fits(value)
                && together <= MAX_VALUE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{self, MAX_SESSIONS, Store};
    use raft::{Entry, Index, Payload, Term};

    /// A client and the state that its requests reach, with nothing in between.
    struct Story {
        requests: Requests,
        store: Store,
    }

    impl Story {
        fn new() -> Story {
            Story {
                requests: Requests::new(ClientId(7)),
                store: Store::default(),
            }
        }

        fn ask(&mut self, operation: Operation) -> Option<Result<Done, RequestError>> {
            let timeout = Duration::from_secs(1);
            let submitted = self.requests.submit(Token(1), operation, timeout, Time(0));
            submitted.expect("room for one");
            let request = self.requests.due(Time(0)).pop().expect("it is due");
            let (client, number) = (request.client, request.number);
            let answer = match request.operation {
                Operation::Get(key) => Answer::Read(self.store.get(&key)),
                Operation::Write(write) => self.apply(client, number, request.settled, write),
                other => unreachable!("not of this story: {other:?}"),
            };
            let reply = Reply {
                number,
                client,
                answer,
            };
            let done = self.requests.on_reply(reply, Time(0));
            done.map(|(_, result)| result)
        }

        fn apply(
            &mut self,
            client: ClientId,
            number: RequestNumber,
            settled: Option<RequestNumber>,
            write: Write,
        ) -> Answer {
            let entry = Entry {
                index: Index(self.store.applied().0 + 1),
                term: Term(2),
                payload: Payload::Command(kv::command(client, number, settled, write)),
            };
            self.store.apply(&entry).expect("a command").answer
        }

        fn others_write(&mut self) {
            for client in 0..MAX_SESSIONS as u64 {
                self.apply(
                    ClientId(1_000 + client),
                    RequestNumber(1),
                    None,
                    put_write(),
                );
            }
        }
    }

    fn put_write() -> Write {
        Write::Put {
            key: "k".into(),
            value: "v".into(),
        }
    }

    fn put() -> Operation {
        Operation::Write(put_write())
    }

    /// Simulator, seed 39: a caller's first request was a read, and none of its writes was ever
    /// applied: its session was taken for a forgotten one.
    #[test]
    fn who_has_only_read_may_write() {
        let mut story = Story::new();
        story.ask(Operation::Get("k".into()));
        assert!(matches!(story.ask(put()), Some(Ok(Done::Written(_)))));
    }

    /// The same where the first write came to nothing before it reached the log.
    #[test]
    fn who_has_given_up_may_write() {
        let mut story = Story::new();
        let timeout = Duration::from_secs(1);
        let submitted = story.requests.submit(Token(0), put(), timeout, Time(0));
        submitted.expect("room for one");
        story.requests.abandon();
        assert!(matches!(story.ask(put()), Some(Ok(Done::Written(_)))));
    }

    /// A session that gave way to others costs one write its outcome, not every later one.
    #[test]
    fn a_forgotten_client_begins_anew() {
        let mut story = Story::new();
        story.ask(put());
        story.others_write();
        assert_eq!(story.ask(put()), Some(Err(RequestError::Unknown)));
        assert!(matches!(story.ask(put()), Some(Ok(Done::Written(_)))));
    }
}
