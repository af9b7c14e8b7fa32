//! The lock of `crates/node/src/lock.rs` under the session of `crates/node/src/session.rs`, without
//! tasks and sockets: what is asked next, and whether the lock is one's own, by a clock that drifts.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use raft::Time;
use replica::{
    Action, ActionResult, Comparison, Condition, Cursor, Done, KeyEvent, KeyRange, LeaseGrant,
    LeaseId, Operation, RangeRequest, RequestError, Target, Transaction, Watched, Write,
};

/// How often a session is kept alive within its time to live.
const RENEWALS: u32 = 3;

/// How soon to try again where no answer came, at least.
const AGAIN: Duration = Duration::from_millis(50);

/// How long a caller waits for anything else.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an answer is an answer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The step of this number: who has gone on waits for another.
    Step(u64),
    /// The keep-alive of its session.
    Renewal,
}

/// What a locker wants to be done.
#[derive(Clone, Debug)]
pub(crate) enum Want {
    Ask(Part, Operation, Duration),
    Watch(KeyRange, Cursor),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Until it begins anew.
    Idle(Time),
    Granting,
    Taking,
    Looking,
    /// For changes, once they were asked for.
    Waiting {
        asked: bool,
    },
    /// Until it has had enough.
    Held(Time),
    Leaving,
}

#[derive(Clone, Copy, Debug)]
struct Session {
    lease: LeaseId,
    until: Time,
    interval: Duration,
    /// When to ask again; `None`: it was asked.
    renew_at: Option<Time>,
}

/// How somebody uses a lock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    /// Which lock, and how many may have it at a time.
    pub(crate) lock: u64,
    pub(crate) permits: usize,
    pub(crate) ttl_ms: u64,
    pub(crate) holds: Duration,
    pub(crate) rests: Duration,
}

/// How somebody leaves a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Release,
    /// Ends the session, and everything with it.
    Revoke,
    /// Keeps nothing alive any more and says nothing.
    Silence,
}

/// Somebody who wants a lock again and again.
#[derive(Clone, Debug)]
pub(crate) struct Locker {
    pub(crate) habits: Habits,
    phase: Phase,
    session: Option<Session>,
    steps: u64,
    entries: u64,
    key: Bytes,
    created: u64,
    next: Cursor,
    before: BTreeSet<Bytes>,
}

impl Locker {
    pub(crate) fn new(habits: Habits, now: Time) -> Locker {
        Locker {
            habits,
            phase: Phase::Idle(now),
            session: None,
            steps: 0,
            entries: 0,
            key: Bytes::new(),
            created: 0,
            next: Cursor::from(1),
            before: BTreeSet::new(),
        }
    }

    /// The lock's fencing token, if it takes the lock for its own at this moment.
    pub(crate) fn holds(&self, now: Time) -> Option<u64> {
        let held = matches!(self.phase, Phase::Held(_)) && self.is_alive(now);
        held.then_some(self.created)
    }

    /// Whether it neither has the lock nor is after it.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle(_))
    }

    pub(crate) fn lease(&self) -> Option<LeaseId> {
        self.session.map(|session| session.lease)
    }

    fn is_alive(&self, now: Time) -> bool {
        self.session.is_some_and(|session| now < session.until)
    }

    fn prefix(&self) -> Bytes {
        format!("_/lock/l{}/", self.habits.lock).into()
    }

    fn ask(&mut self, operation: Operation) -> Want {
        self.steps += 1;
        Want::Ask(Part::Step(self.steps), operation, PATIENCE)
    }

    fn rest(&mut self, now: Time) {
        self.steps += 1;
        self.phase = Phase::Idle(now + self.habits.rests);
    }

    fn lose(&mut self, now: Time) {
        self.session = None;
        self.rest(now);
    }

    /// What it wants now. `mark` is a read of nothing, by which its next write is known again.
    pub(crate) fn poll(&mut self, now: Time, exit: Exit, mark: Action) -> Vec<Want> {
        let mut wants = Vec::new();
        if self.session.is_some() && !self.is_alive(now) {
            self.lose(now);
        }
        if let Some(session) = &mut self.session
            && session.renew_at.is_some_and(|at| at <= now)
        {
            session.renew_at = None;
            let keep_alive = Operation::KeepAlive(session.lease);
            let timeout = session.interval.max(AGAIN);
            wants.push(Want::Ask(Part::Renewal, keep_alive, timeout));
        }
        match self.phase {
            Phase::Idle(until) if until <= now => match self.session {
                None => {
                    self.phase = Phase::Granting;
                    let ttl_ms = self.habits.ttl_ms;
                    wants.push(self.ask(Operation::Write(Write::Grant { ttl_ms })));
                }
                Some(session) => {
                    self.entries += 1;
                    let entry = format!("{:016x}-{}", session.lease.0, self.entries);
                    self.key = [self.prefix().as_ref(), entry.as_bytes()].concat().into();
                    wants.push(self.take(session.lease, mark));
                }
            },
            Phase::Waiting { asked: false } => {
                self.phase = Phase::Waiting { asked: true };
                wants.push(Want::Watch(KeyRange::Prefix(self.prefix()), self.next));
            }
            Phase::Held(until) if until <= now => match exit {
                Exit::Release => wants.push(self.leave(mark)),
                Exit::Revoke => {
                    let lease = self.lease().expect("held under one");
                    self.lose(now);
                    wants.push(self.ask(Operation::Write(Write::Revoke(lease))));
                }
                Exit::Silence => self.lose(now),
            },
            Phase::Idle(_)
            | Phase::Granting
            | Phase::Taking
            | Phase::Looking
            | Phase::Waiting { asked: true }
            | Phase::Held(_)
            | Phase::Leaving => {}
        }
        wants
    }

    fn take(&mut self, lease: LeaseId, mark: Action) -> Want {
        self.phase = Phase::Taking;
        let own = Action::Get {
            range: KeyRange::Key(self.key.clone()),
            oldest: 0,
        };
        let put = Action::Put {
            key: self.key.clone(),
            value: self.habits.permits.to_string().into(),
            lease: Some(lease),
        };
        let absent = Condition {
            key: self.key.clone(),
            target: Target::Created(0),
            comparison: Comparison::Equal,
        };
        self.ask(Operation::Write(Write::Transaction(Transaction {
            conditions: vec![absent],
            then: vec![mark, put, own.clone()],
            otherwise: vec![own],
        })))
    }

    fn leave(&mut self, mark: Action) -> Want {
        self.phase = Phase::Leaving;
        let delete = Action::Delete(KeyRange::Key(self.key.clone()));
        self.ask(Operation::Write(Write::Transaction(Transaction {
            then: vec![mark, delete],
            ..Transaction::default()
        })))
    }

    fn look(&mut self) -> Vec<Want> {
        self.phase = Phase::Looking;
        let all = RangeRequest::all(KeyRange::Prefix(self.prefix()));
        vec![self.ask(Operation::Range(all))]
    }

    /// What came of what it had asked for at a time of its own clock.
    pub(crate) fn on_done(
        &mut self,
        part: Part,
        asked: Time,
        result: &Result<Done, RequestError>,
        now: Time,
        mark: Action,
    ) -> Vec<Want> {
        match part {
            Part::Renewal => {
                self.on_renewal(asked, result, now);
                return Vec::new();
            }
            Part::Step(step) if step != self.steps => return Vec::new(),
            Part::Step(_) => {}
        }
        match (self.phase, result) {
            (Phase::Granting, Ok(Done::Granted(grant))) => {
                self.session = Some(Session::of(grant, asked));
                self.phase = Phase::Idle(now);
            }
            (Phase::Granting, _) => self.rest(now),
            (_, _) if !self.is_alive(now) => self.lose(now),
            (Phase::Taking, Ok(Done::Transacted(done))) => {
                let Some(ActionResult::Got(own)) = done.results.last() else {
                    panic!("the last action was a read: {done:?}");
                };
                match own.first() {
                    Some(own) => {
                        self.created = own.created;
                        return self.look();
                    }
                    None => self.lose(now),
                }
            }
            // Asked again, it finds what it wrote.
            (Phase::Taking, Err(RequestError::Unknown)) => {
                let lease = self.lease().expect("alive");
                return vec![self.take(lease, mark)];
            }
            (_, Err(RequestError::NoSuchLease)) => self.lose(now),
            (Phase::Looking, Ok(Done::Range(list))) => {
                let others = || list.pairs.iter();
                if !others().any(|pair| pair.created == self.created) {
                    self.lose(now);
                } else {
                    let before = others().filter(|pair| pair.created < self.created);
                    self.before = before.map(|pair| pair.key.clone()).collect();
                    self.next = Cursor::from(list.revision + 1);
                    self.step_up(now);
                }
            }
            (Phase::Taking | Phase::Looking, _) => return vec![self.leave(mark)],
            (Phase::Leaving, _) => self.rest(now),
            (Phase::Idle(_) | Phase::Waiting { .. } | Phase::Held(_), _) => {}
        }
        Vec::new()
    }

    fn on_renewal(&mut self, asked: Time, result: &Result<Done, RequestError>, now: Time) {
        let Some(session) = &mut self.session else {
            return;
        };
        match result {
            // An answer for an older session is none for this.
            Ok(Done::Granted(grant)) if grant.lease != session.lease => {}
            Ok(Done::Granted(grant)) if now < session.until => {
                session.until = session.until.max(asked + grant.certain());
                session.renew_at = Some(now + session.interval);
            }
            Ok(_) | Err(RequestError::NoSuchLease) => self.lose(now),
            Err(_) => session.renew_at = Some(now + AGAIN),
        }
    }

    /// It has it, or waits.
    fn step_up(&mut self, now: Time) {
        self.phase = match self.before.len() < self.habits.permits {
            true => Phase::Held(now + self.habits.holds),
            false => Phase::Waiting { asked: false },
        };
    }

    /// What its watch has seen.
    pub(crate) fn on_watched(&mut self, watched: &Watched, now: Time) -> Vec<Want> {
        if !matches!(self.phase, Phase::Waiting { .. }) || !self.is_alive(now) {
            return Vec::new();
        }
        match watched {
            Watched::Events { events, next } => {
                self.next = *next;
                for event in events {
                    if let KeyEvent::Delete { key, .. } = event {
                        if *key == self.key {
                            self.lose(now);
                            return Vec::new();
                        }
                        self.before.remove(key);
                    }
                }
                self.step_up(now);
                Vec::new()
            }
            Watched::Compacted { .. } => self.look(),
            Watched::Unavailable => {
                self.phase = Phase::Waiting { asked: false };
                Vec::new()
            }
        }
    }
}

impl Session {
    fn of(grant: &LeaseGrant, asked: Time) -> Session {
        let interval = Duration::from_millis(grant.ttl_ms) / RENEWALS;
        Session {
            lease: grant.lease,
            until: asked + grant.certain(),
            interval,
            renew_at: Some(asked + interval),
        }
    }
}
