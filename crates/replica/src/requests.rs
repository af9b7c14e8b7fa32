//! The client's side of a request: sent to the leader, again if no answer comes, until a
//! deadline; then the outcome is unknown, and said to be.

use std::collections::BTreeMap;
use std::time::Duration;

use raft::{ClientId, Index, NodeKey, RequestNumber, Time};

use crate::frame::MAX_BODY;
use crate::name::Name;
use crate::sessions::MAX_ANSWERS;
use crate::state::{
    Action, Condition, LeaseGrant, LeaseId, LeaseStatus, MAX_ACTIONS, RangeReading, Target,
    Transacted, Transaction,
};
use crate::wire::{
    Answer, MAX_KEY, MAX_VALUE, Members, Operation, Reading, Reply, Request, Value, Write, Written,
    to_vec,
};

/// How long the first answer may take before the request is sent again.
const FIRST_RETRY: Duration = Duration::from_millis(250);

/// How soon to ask again where there was no leader, or the leader was busy.
const SOON: Duration = Duration::from_millis(30);

/// How often that is doubled while a read goes on being put off.
const MAX_PUT_OFF: u32 = 4;

/// And while the writes of a client do: less often, since only the oldest of them asks. The longer
/// one waits, the more it would lose to callers that came later.
const MAX_WRITES_PUT_OFF: u32 = 2;

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
    /// What a transaction did.
    Transacted(Transacted),
    /// The lease lives, from when this was asked for.
    Granted(LeaseGrant),
    /// The keys as a quorum confirmed them.
    Range(RangeReading),
    /// How a lease stands.
    Lease(LeaseStatus),
    /// Which leases there are, in order.
    Leases(Vec<LeaseId>),
}

/// Why a request came to nothing, or to nothing certain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A write got no answer in time. It may have been applied or may yet be.
    #[error("outcome unknown: no answer in time; it may have been done or may yet be")]
    Unknown,
    /// A read got no answer in time, or a write was never sent: there was no leader to send it to,
    /// or none with room for those before it.
    #[error("no answer in time: is there a leader? see `mqraft status`")]
    TimedOut,
    /// Key or value is too large; nothing was sent.
    #[error(
        "too large: a key has at most {MAX_KEY} bytes, a value {MAX_VALUE}, and a transaction \
         {MAX_ACTIONS} steps in a frame's length"
    )]
    TooLarge,
    /// This client has too many requests under way; nothing was sent.
    #[error("too many requests under way")]
    Busy,
    /// There is no such lease, or none any more; nothing was changed.
    #[error("there is no such lease, or none any more")]
    NoSuchLease,
    /// The state is full; nothing was changed.
    #[error("the cluster's state is full (at most {0}): delete something first")]
    Full(u64),
    /// The leader does not do it, for this reason.
    #[error("{0}")]
    Refused(String),
    /// The leader could not do it in time, last for this reason.
    #[error("not in time: {0}")]
    NotYet(String),
}

/// The requests of one client that have no answer yet.
///
/// Writes that a busy leader puts off stand in line: they are tried again in the order in which
/// they were asked for, one at a time and one more for each that was answered since, and later
/// writes stand behind them. If each asked for itself, whoever has waited longest would ask least
/// often.
pub(crate) struct Requests {
    client: ClientId,
    /// A write was answered under this id: the cluster has a session for it.
    known: bool,
    /// How far the log had come before the first write under this id.
    begun: Option<Index>,
    /// How far the log is known to have come.
    latest: Option<Index>,
    next: RequestNumber,
    pending: BTreeMap<RequestNumber, Pending>,
    line: Line,
}

/// When those who stand in line are tried again.
#[derive(Default)]
struct Line {
    next_try: Time,
    /// How many writes were answered since the last try.
    answered: usize,
    /// How often in a row none was.
    in_vain: u32,
}

impl Line {
    /// How many may be tried now.
    fn open(&self, now: Time) -> usize {
        match now >= self.next_try {
            true => 1 + self.answered,
            false => 0,
        }
    }

    /// Some were tried.
    fn tried(&mut self, now: Time) {
        self.in_vain = match std::mem::take(&mut self.answered) {
            0 => (self.in_vain + 1).min(MAX_WRITES_PUT_OFF),
            _ => 0,
        };
        self.next_try = now + SOON.saturating_mul(1 << self.in_vain);
    }
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
    /// How many of its copies were answered as not done: no copy is answered twice.
    denied: u32,
    /// Who has answered, by name. If two processes go by one name, what is sent to it reaches both.
    answerers: BTreeMap<Name, NodeKey>,
    /// That was so: what one says of a copy the other may yet belie.
    is_shared: bool,
    /// How often in a row the leader was too busy for it, if it is no write.
    put_off: u32,
    /// A write that stands in line.
    in_line: bool,
    /// Why it was not done when it was last asked for.
    not_yet: Option<String>,
}

impl Requests {
    pub(crate) fn new(client: ClientId) -> Requests {
        Requests {
            client,
            known: false,
            begun: None,
            latest: None,
            next: RequestNumber(1),
            pending: BTreeMap::new(),
            line: Line::default(),
        }
    }

    /// The log has come so far: who begins to write must know such a word. It may be an old one.
    pub(crate) fn learn(&mut self, index: Index) {
        self.latest = self.latest.max(Some(index));
    }

    /// Whether it knows of the log what it must to write.
    pub(crate) fn may_begin(&self) -> bool {
        self.latest.is_some()
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
            denied: 0,
            answerers: BTreeMap::new(),
            is_shared: false,
            put_off: 0,
            in_line: false,
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
        let begun = *self.begun.get_or_insert(self.latest.unwrap_or_default());
        let mut due = Vec::new();
        let open = self.line.open(now);
        let (mut tried, mut others_wait) = (0, false);
        for (number, pending) in &mut self.pending {
            if pending.is_write() && pending.sent == 0 && others_wait {
                pending.in_line = true;
            }
            if pending.in_line && tried == open {
                others_wait = true;
                continue;
            }
            if !pending.in_line && now < pending.send_at {
                continue;
            }
            tried += usize::from(std::mem::take(&mut pending.in_line));
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
            let (settled, begun) = match pending.client == client {
                true => (settled, Some(begun)),
                false => (Some(*number), None),
            };
            due.push(Request {
                client: pending.client,
                number: *number,
                settled,
                operation: pending.operation.clone(),
                begun,
            });
        }
        match (tried, others_wait) {
            (0, true) => {}
            // Nobody stands in line: what is answered makes room for nobody.
            (0, false) => self.line.answered = 0,
            _ => self.line.tried(now),
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
        for pending in self.pending.values_mut() {
            pending.send_at = now;
            pending.put_off = 0;
            pending.in_line = false;
        }
        self.line = Line::default();
    }

    /// A process answers a request: whoever has that key and goes by that name.
    pub(crate) fn answered_by(&mut self, number: RequestNumber, name: &Name, key: NodeKey) {
        let Some(pending) = self.pending.get_mut(&number) else {
            return;
        };
        let before = pending.answerers.insert(name.clone(), key);
        pending.is_shared |= before.is_some_and(|before| before != key);
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
                pending.deny();
                pending.send_at = pending.send_at.min(now + NOT_YET);
                return None;
            }
            Answer::Written(written) => Ok(Done::Written(written)),
            Answer::Read(reading) => Ok(Done::Read(reading)),
            Answer::TooLarge(_) => Err(RequestError::TooLarge),
            Answer::Transacted(done) => Ok(Done::Transacted(*done)),
            Answer::Granted(grant) => Ok(Done::Granted(grant)),
            Answer::Range(reading) => Ok(Done::Range(reading)),
            Answer::Lease(status) => Ok(Done::Lease(status)),
            Answer::Leases(leases) => Ok(Done::Leases(leases)),
            Answer::NoSuchLease => Err(RequestError::NoSuchLease),
            Answer::Full(limit) => {
                let pending = self.pending.get_mut(&reply.number)?;
                pending.deny();
                // A copy that is still under way may find room.
                Err(match pending.is_in_doubt() {
                    true => RequestError::Unknown,
                    false => RequestError::Full(limit),
                })
            }
            Answer::SessionExpired => return self.on_expired(&reply, None, now),
            Answer::SessionForgotten(at) => return self.on_expired(&reply, Some(at), now),
            Answer::NotLeader(_) => {
                let pending = self.pending.get_mut(&reply.number)?;
                pending.deny();
                pending.send_at = pending.send_at.min(now + SOON);
                return None;
            }
            Answer::Busy => {
                let pending = self.pending.get_mut(&reply.number)?;
                pending.deny();
                // A leader at its limit is not asked by everyone, whole, every moment.
                if pending.is_write() {
                    pending.in_line = true;
                    self.line.next_try = self.line.next_try.max(now + SOON);
                    return None;
                }
                pending.send_at = now + SOON.saturating_mul(1 << pending.put_off.min(MAX_PUT_OFF));
                pending.put_off += 1;
                return None;
            }
        };
        let pending = self.pending.remove(&reply.number)?;
        self.line.answered += usize::from(pending.is_write());
        let is_kept = match &result {
            Ok(_) | Err(RequestError::NoSuchLease | RequestError::Refused(_)) => true,
            Err(_) => false,
        };
        if reply.client == self.client && pending.is_write() && is_kept {
            self.known = true;
        }
        Some((pending.token, result))
    }

    /// The cluster has forgotten our session. What was sent under it more than once stays unknown;
    /// what was sent once was refused by the only copy there is, and is sent again under another id.
    fn on_expired(
        &mut self,
        reply: &Reply,
        at: Option<Index>,
        now: Time,
    ) -> Option<(Token, Result<Done, RequestError>)> {
        if reply.client == self.client {
            self.client = self.client.next();
            self.known = false;
            self.latest = self.latest.max(at);
            self.begun = None;
        }
        let pending = self.pending.get_mut(&reply.number)?;
        if pending.sent == 1 && at.is_some() {
            (pending.sent, pending.denied) = (0, 0);
            pending.send_at = now;
            return None;
        }
        let pending = self.pending.remove(&reply.number)?;
        Some((pending.token, Err(RequestError::Unknown)))
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
        let send_at = |pending: &Pending| match pending.in_line {
            true => self.line.next_try,
            false => pending.send_at,
        };
        let pending = self.pending.values();
        pending
            .map(|pending| send_at(pending).min(pending.deadline))
            .min()
    }
}

impl Pending {
    fn is_write(&self) -> bool {
        matches!(self.operation, Operation::Write(_))
    }

    fn deny(&mut self) {
        self.is_answered = true;
        self.denied = self.denied.saturating_add(1);
    }

    /// Whether a copy that was not answered may be done, or may be done yet.
    fn is_in_doubt(&self) -> bool {
        self.is_shared || self.denied < self.sent
    }

    /// Whether the last answer was that it cannot be done yet. What was asked for again since may be
    /// under way; of a write, any copy that was not answered, whatever another leader says.
    fn was_not_done(&self) -> bool {
        let in_doubt = self.is_write() && self.is_in_doubt();
        self.not_yet.is_some() && self.is_answered && !in_doubt
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
            // It was never sent.
            Operation::Write(_) | Operation::Change(_) | Operation::Transfer(_) => {
                RequestError::TimedOut
            }
            Operation::Get(_)
            | Operation::Members
            | Operation::Range(_)
            | Operation::KeepAlive(_)
            | Operation::Lease(_)
            | Operation::Leases(_) => RequestError::TimedOut,
        }
    }
}

/// Whether it is an answer to this question: to another it is none.
fn answers(operation: &Operation, answer: &Answer) -> bool {
    match answer {
        Answer::Written(_)
        | Answer::SessionExpired
        | Answer::SessionForgotten(_)
        | Answer::Full(_) => matches!(operation, Operation::Write(_)),
        Answer::Transacted(_) => matches!(operation, Operation::Write(Write::Transaction(_))),
        Answer::Granted(_) => matches!(
            operation,
            Operation::Write(Write::Grant { .. }) | Operation::KeepAlive(_)
        ),
        Answer::NoSuchLease => matches!(
            operation,
            Operation::Write(_) | Operation::KeepAlive(_) | Operation::Lease(_)
        ),
        Answer::Read(_) => matches!(operation, Operation::Get(_)),
        Answer::Range(_) => matches!(operation, Operation::Range(_)),
        Answer::Lease(_) => matches!(operation, Operation::Lease(_)),
        Answer::Leases(_) => matches!(operation, Operation::Leases(_)),
        Answer::Members(_) => matches!(operation, Operation::Change(_) | Operation::Members),
        Answer::Transferred(_) => matches!(operation, Operation::Transfer(_)),
        Answer::NotLeader(_)
        | Answer::Busy
        | Answer::TooLarge(_)
        | Answer::NotYet(_)
        | Answer::Refused(_) => true,
    }
}

/// Whether keys and values are within bounds.
pub(crate) fn fits(operation: &Operation) -> bool {
    let value_fits = |value: &Option<Value>| value.as_ref().is_none_or(|v| v.0.len() <= MAX_VALUE);
    match operation {
        Operation::Get(key) | Operation::Write(Write::Delete { key }) => key.len() <= MAX_KEY,
        Operation::Range(request) => {
            let after = request.after.as_ref();
            request.range.keys_fit(MAX_KEY) && after.is_none_or(|after| after.0.len() <= MAX_KEY)
        }
        Operation::Change(change) => change.members.len() <= MAX_STEPS,
        Operation::Transfer(_)
        | Operation::Members
        | Operation::KeepAlive(_)
        | Operation::Lease(_)
        | Operation::Leases(_)
        | Operation::Write(Write::Grant { .. } | Write::Revoke(_)) => true,
        // Never a client's.
        Operation::Write(Write::Expire(_) | Write::Own(_)) => false,
        Operation::Write(Write::Transaction(transaction)) => transaction_fits(transaction),
        Operation::Write(Write::Put { key, value, .. }) => {
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

/// Whether a transaction's parts are within bounds, and the whole fits a frame.
fn transaction_fits(transaction: &Transaction) -> bool {
    let Transaction {
        conditions,
        then,
        otherwise,
    } = transaction;
    let condition_fits = |condition: &Condition| {
        let value_fits = match &condition.target {
            Target::Value(value) => value.len() <= MAX_VALUE,
            _ => true,
        };
        condition.key.len() <= MAX_KEY && value_fits
    };
    let action_fits = |action: &Action| match action {
        Action::Put { key, value, .. } => key.len() <= MAX_KEY && value.len() <= MAX_VALUE,
        Action::Delete(range) | Action::Get { range, .. } => range.keys_fit(MAX_KEY),
        Action::Add { key, .. } => key.len() <= MAX_KEY,
    };
    [conditions.len(), then.len(), otherwise.len()]
        .into_iter()
        .all(|steps| steps <= MAX_ACTIONS)
        && conditions.iter().all(condition_fits)
        && transaction.actions().all(action_fits)
        && to_vec(transaction).len() <= MAX_BODY - 1_024
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{self, Store};
    use crate::sessions::MAX_SESSIONS;
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
            while let Some(request) = self.requests.due(Time(0)).pop() {
                let reply = self.serve(request);
                if let Some((_, result)) = self.requests.on_reply(reply, Time(0)) {
                    return Some(result);
                }
            }
            None
        }

        fn serve(&mut self, request: Request) -> Reply {
            let Request {
                client,
                number,
                settled,
                operation,
                begun,
            } = request;
            let answer = match operation {
                Operation::Get(key) => Answer::Read(self.store.get(&key)),
                Operation::Write(write) => self.apply(client, number, settled, begun, write),
                other => unreachable!("not of this story: {other:?}"),
            };
            Reply {
                number,
                client,
                answer,
            }
        }

        fn apply(
            &mut self,
            client: ClientId,
            number: RequestNumber,
            settled: Option<RequestNumber>,
            begun: Option<Index>,
            write: Write,
        ) -> Answer {
            let entry = Entry {
                index: Index(self.store.applied().0 + 1),
                term: Term(2),
                payload: Payload::Command(kv::command(client, number, settled, begun, write)),
            };
            self.store.apply(&entry).expect("a command").answer
        }

        fn others_write(&mut self) {
            for client in 0..MAX_SESSIONS as u64 {
                self.apply(
                    ClientId(1_000 + client),
                    RequestNumber(1),
                    None,
                    Some(self.store.applied()),
                    put_write(),
                );
            }
        }
    }

    fn put_write() -> Write {
        Write::Put {
            key: "k".into(),
            value: "v".into(),
            lease: None,
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

    /// Simulator, seeds 29 and 46: a leader with room for one write at a time put a caller off ever
    /// longer, while later writes, which asked more often, found it free: for ten seconds.
    #[test]
    fn a_write_that_is_put_off_is_not_overtaken() {
        const MS: u64 = 1_000;
        let mut requests = Requests::new(ClientId(7));
        let (mut done, mut asked, mut busy_with) = (Vec::new(), 0, None);
        for ms in 0..3_000 {
            let now = Time(ms * MS);
            if ms % 50 == 0 {
                asked += 1;
                let submitted = requests.submit(Token(asked), put(), Duration::from_secs(10), now);
                submitted.expect("room for more");
            }
            if let Some((_, reply)) = busy_with.take_if(|(until, _)| *until == ms) {
                let (Token(token), _) = requests.on_reply(reply, now).expect("it is settled");
                done.push(token);
            }
            for Request { client, number, .. } in requests.due(now) {
                let reply = |answer| Reply {
                    client,
                    number,
                    answer,
                };
                match busy_with {
                    Some(_) => _ = requests.on_reply(reply(Answer::Busy), now),
                    None => {
                        let (revision, applied) = (ms, true);
                        let written = Answer::Written(Written { revision, applied });
                        busy_with = Some((ms + 70, reply(written)));
                    }
                }
            }
        }
        assert!(done.len() >= 25, "the leader is kept at work: {done:?}");
        assert!(done.is_sorted(), "in the order asked for: {done:?}");
    }

    /// What was put off together is done soon once there is room: what is answered makes room for
    /// as many.
    #[test]
    fn a_line_keeps_a_leader_with_much_room_at_work() {
        const MS: u64 = 1_000;
        const ROOM: usize = 100;
        let mut requests = Requests::new(ClientId(7));
        for token in 0..1_000 {
            let submitted = requests.submit(Token(token), put(), Duration::from_secs(10), Time(0));
            submitted.expect("room for more");
        }
        let (mut done, mut under_way) = (0, Vec::new());
        for ms in 0..2_000 {
            let now = Time(ms * MS);
            for (_, reply) in under_way.extract_if(.., |(until, _)| *until <= ms) {
                done += usize::from(requests.on_reply(reply, now).is_some());
            }
            for Request { client, number, .. } in requests.due(now) {
                let reply = |answer| Reply {
                    client,
                    number,
                    answer,
                };
                if under_way.len() == ROOM {
                    requests.on_reply(reply(Answer::Busy), now);
                    continue;
                }
                let (revision, applied) = (ms, true);
                let written = Answer::Written(Written { revision, applied });
                under_way.push((ms + 20, reply(written)));
            }
        }
        assert_eq!(done, 1_000, "a hundred at a time, every 30 ms");
    }

    /// A session that gave way to others: what was sent once is done all the same, once.
    #[test]
    fn a_forgotten_client_begins_anew() {
        let mut story = Story::new();
        story.ask(put());
        story.others_write();
        let revision = story.store.revision();
        assert!(matches!(story.ask(put()), Some(Ok(Done::Written(_)))));
        assert_eq!(story.store.revision(), revision + 1);
    }

    /// What was sent twice may have been done by the first copy: its outcome is unknown, and no copy
    /// is applied any more.
    #[test]
    fn a_retry_under_a_forgotten_session_is_unknown() {
        let mut story = Story::new();
        let (timeout, later) = (Duration::from_secs(9), Time(2_000_000));
        let submitted = story.requests.submit(Token(1), put(), timeout, Time(0));
        submitted.expect("room for one");
        let first = story.requests.due(Time(0)).pop().expect("it is due");
        story.serve(first.clone());
        story.others_write();
        let again = story.requests.due(later).pop().expect("it is due again");
        assert_eq!((first.client, first.begun), (again.client, again.begun));
        let (revision, reply) = (story.store.revision(), story.serve(again));
        assert_eq!(story.store.revision(), revision, "not applied again");
        let (_, result) = story.requests.on_reply(reply, later).expect("its end");
        assert_eq!(result, Err(RequestError::Unknown));
    }
}
