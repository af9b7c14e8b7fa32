//! The state that people use, used by everyone at once: transactions, ranges, counters, leases, locks
//! and watches, on nodes and in clients, while all else goes wrong; and the judge of it.
//!
//! The judge has the committed log, as `check.rs` establishes it, and a model of the state that shares
//! no code with the nodes (`state/model.rs`). Every answer names a place in that log, by its revision
//! or by what was asked, and has to be what the model says of that place:
//!
//! - `state-model`: answers to transactions, reads and requests for leases, revisions of nodes, and at
//!   the end their whole state with the changes that they keep;
//! - `state-order`: an answer is of a time between question and answer, as revisions tell it;
//! - `exactly-once`: what was asked for is done at most once, what was answered as done once, and what
//!   was answered as not done never;
//! - `watch-completeness`: a watch tells the changes of its range from where it began, each once and
//!   in order, and says `Compacted` only of what is;
//! - `lease-expiry`: no lease ends while its holder may count on it, in true time;
//! - `lock-exclusion`, `lock-tokens`: never more holders than places, each by its own clock; tokens
//!   grow from holder to holder.
//!
//! In the quiet phase locks are passed on, watches tell all there is, and leases that nobody keeps
//! alive end, each within its bound.

mod locker;
mod model;
#[cfg(test)]
mod tests;

/// What the model is written in.
mod vocabulary {
    pub(super) use replica::*;
}

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use raft::{Entry, Index, Time};
use replica::{
    Action, Answer, Comparison, Condition, Cursor, Done, Input, KeyRange, LeaseId, Name, Operation,
    RangeRequest, RequestError, Store, Target, Token, Transaction, Value, Watched, Write,
};

use self::locker::{Exit, Habits, Locker, Part, Want};
use self::model::{Model, Outcome, same};
use crate::check::{At, Checker};
use crate::event::{Event, MS, Micros, SECOND};
use crate::plan::Profile;
use crate::rng::Rng;
use crate::world::World;

/// Tokens from here on are for this; the operator's are above, those of single keys below.
pub(crate) const FIRST_TOKEN: u64 = 1 << 62;

/// How often lockers and watchers see to themselves.
const TURN: Micros = 40 * MS;

const TIMEOUT: Duration = Duration::from_secs(10);

/// How many leases are used at a time that nobody's session stands behind.
const LEASES: usize = 6;

/// How many locks there are; the last has two places.
const LOCKS: u64 = 3;

/// In quiet times every lock changes hands within this, and a watch tells what was committed.
const LOCK_BOUND: Micros = 15 * SECOND;
const WATCH_BOUND: Micros = 5 * SECOND;

/// In quiet times a lease ends so soon after its time is over by the slowest clock.
const EXPIRY_BOUND: Micros = 2 * SECOND;

/// What is used, and what is known of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    rng: Rng,
    next: u64,
    ask_at: Micros,
    /// Nothing more is asked for.
    rests: bool,
    calls: BTreeMap<Token, Call>,
    leases: Vec<LeaseId>,
    lockers: Vec<Seat>,
    watchers: Vec<Watcher>,
    judge: Judge,
}

/// Something that was asked for.
#[derive(Clone, Debug)]
struct Call {
    host: usize,
    life: u64,
    operation: Operation,
    asked: Micros,
    /// By the clock of whoever asked.
    local: Time,
    /// The greatest revision that anyone had been told of.
    floor: u64,
    by: By,
}

#[derive(Clone, Copy, Debug)]
enum By {
    Anyone,
    Locker(usize, Part),
}

/// Somebody who locks, on a host.
#[derive(Clone, Debug)]
struct Seat {
    host: usize,
    life: u64,
    locker: Locker,
    /// The watch that it waits for.
    watch: Option<(Token, KeyRange, Cursor)>,
    /// It held the lock when it was last looked at.
    held: bool,
}

/// A watch that goes on for good, wherever.
#[derive(Clone, Debug)]
struct Watcher {
    range: KeyRange,
    cursor: Cursor,
    /// Which process was asked, under which token.
    asked: Option<(usize, u64, Token)>,
}

/// What has been established.
#[derive(Clone, Debug, Default)]
pub(crate) struct Judge {
    model: Model,
    /// When each revision was made.
    made_at: Vec<Micros>,
    /// What each revision was made by.
    made_by: BTreeMap<u64, Write>,
    /// What each marked write came to, wherever it stood in the log.
    outcomes: BTreeMap<u64, Vec<Outcome>>,
    /// Marks of writes that were answered as not done.
    never: BTreeSet<u64>,
    revoked: BTreeMap<LeaseId, Answer>,
    /// Until when, in true time, a lease is its holder's.
    promised: BTreeMap<LeaseId, Micros>,
    ended: BTreeMap<LeaseId, (Micros, bool)>,
    /// The greatest revision that anyone was told of.
    floor: u64,
    /// The token of each lock's last holder, and when it was last taken.
    tokens: BTreeMap<u64, u64>,
    taken_at: BTreeMap<u64, Micros>,
}

impl State {
    pub(crate) fn new(seed: u64, profile: &Profile) -> State {
        State {
            rng: Rng::new(seed ^ 0x3c6e_f372_fe94_f82b),
            judge: Judge {
                model: Model::new(profile.bounds()),
                made_at: vec![0],
                ..Judge::default()
            },
            ..State::default()
        }
    }

    /// The revisions that were not made by single keys' callers.
    pub(crate) fn foreign(&self) -> BTreeSet<u64> {
        let made = self.judge.made_by.iter();
        let foreign = made.filter(|(_, write)| match write {
            Write::Put { value, .. } => mark_in(value).is_some(),
            Write::Delete { .. } | Write::CompareAndSwap { .. } => false,
            _ => true,
        });
        foreign.map(|(revision, _)| *revision).collect()
    }

    // What is asked for.

    /// A read of nothing, by which a write is known again.
    fn mark(&mut self) -> Action {
        self.next += 1;
        Action::Get {
            range: KeyRange::Key(format!("id/{}", self.next).into()),
            oldest: 0,
        }
    }

    fn draw(&mut self) -> Operation {
        match self.rng.below(20) {
            0..=8 => Operation::Write(Write::Transaction(self.draw_transaction())),
            9..=12 => Operation::Range(self.draw_request()),
            13 => {
                self.next += 1;
                let value = format!("id/{} put", self.next).into();
                let (key, lease) = (self.draw_key(), self.draw_lease());
                Operation::Write(Write::Put { key, value, lease })
            }
            14 if self.leases.len() < LEASES => {
                let ttl_ms = self.rng.between(100, 3_000);
                Operation::Write(Write::Grant { ttl_ms })
            }
            15 => Operation::Get(self.draw_key()),
            _ => match self.rng.pick(&self.leases).copied() {
                None => Operation::Leases(LeaseId::NONE),
                Some(lease) => match self.rng.below(8) {
                    0 => Operation::Lease(lease),
                    1 => Operation::Leases(lease),
                    2 => Operation::Write(Write::Revoke(lease)),
                    _ => Operation::KeepAlive(lease),
                },
            },
        }
    }

    fn draw_transaction(&mut self) -> Transaction {
        let conditions = (0..self.rng.below(3)).map(|_| self.draw_condition());
        let conditions = conditions.collect();
        let (mut then, mut otherwise) = (vec![self.mark()], Vec::new());
        for _ in 0..self.rng.between(1, 3) {
            then.push(self.draw_action());
        }
        for _ in 0..self.rng.below(3) {
            otherwise.push(self.draw_action());
        }
        Transaction {
            conditions,
            then,
            otherwise,
        }
    }

    /// Most often one that holds, or has held a moment ago.
    fn draw_condition(&mut self) -> Condition {
        let key = self.draw_key();
        let pair = self.judge.model.pairs().get(&key);
        let number = |of: fn(&replica::KeyValue) -> u64| pair.map_or(0, of);
        let target = match self.rng.below(5) {
            0 => Target::Value(pair.map_or_else(Bytes::new, |pair| pair.value.clone())),
            1 => Target::Version(number(|pair| pair.version)),
            2 => Target::Created(number(|pair| pair.created)),
            3 => Target::Modified(number(|pair| pair.modified)),
            _ => Target::Lease(LeaseId(number(|pair| pair.lease.0))),
        };
        let comparison = match self.rng.below(6) {
            0 => Comparison::NotEqual,
            1 => Comparison::Less,
            2 => Comparison::Greater,
            _ => Comparison::Equal,
        };
        Condition {
            key,
            target,
            comparison,
        }
    }

    fn draw_action(&mut self) -> Action {
        match self.rng.below(8) {
            0..=2 => {
                self.next += 1;
                let (key, lease) = (self.draw_key(), self.draw_lease());
                let value = format!("v{}", self.next).into();
                Action::Put { key, value, lease }
            }
            3 => Action::Delete(self.draw_range()),
            4 | 5 => Action::Get {
                range: self.draw_range(),
                oldest: self.rng.below(3) as u32,
            },
            _ => {
                // Now and then of what is no number.
                let key = match self.rng.below(8) {
                    0 => self.draw_key(),
                    n => format!("s/n{}", n % 2).into(),
                };
                let delta = self.rng.between(0, 9) as i64 - 4;
                Action::Add { key, delta }
            }
        }
    }

    fn draw_key(&mut self) -> Bytes {
        format!("s/k{}", self.rng.below(8)).into()
    }

    /// Now and then one that is no more.
    fn draw_lease(&mut self) -> Option<LeaseId> {
        match self.rng.below(20) {
            0..=9 => None,
            10 => Some(LeaseId(self.rng.between(1, 50))),
            _ => self.rng.pick(&self.leases).copied(),
        }
    }

    fn draw_range(&mut self) -> KeyRange {
        match self.rng.below(6) {
            0..=2 => KeyRange::Key(self.draw_key()),
            3 => KeyRange::Prefix("s/n".into()),
            4 => KeyRange::Prefix(Bytes::from("s/k")),
            _ => {
                let (from, to) = (self.draw_key(), self.draw_key());
                let to = Some(Value(to)).filter(|_| self.rng.chance(0.8));
                KeyRange::Interval { from, to }
            }
        }
    }

    fn draw_request(&mut self) -> RangeRequest {
        let range = match self.rng.below(4) {
            0 => KeyRange::Prefix(Bytes::new()),
            1 => KeyRange::Prefix("_/".into()),
            _ => self.draw_range(),
        };
        RangeRequest {
            range,
            after: self.rng.chance(0.3).then(|| Value(self.draw_key())),
            limit: self.rng.below(4) as u32,
            keys_only: self.rng.chance(0.2),
            count_only: self.rng.chance(0.2),
        }
    }

    /// Something to watch, from now or from long ago.
    fn draw_watcher(&mut self) -> Watcher {
        let range = match self.rng.below(5) {
            0 => KeyRange::Prefix(Bytes::new()),
            1 => KeyRange::Prefix("_/".into()),
            2 => KeyRange::Prefix("s/".into()),
            _ => self.draw_range(),
        };
        Watcher {
            range,
            cursor: self.draw_cursor(),
            asked: None,
        }
    }

    fn draw_cursor(&mut self) -> Cursor {
        let newest = self.judge.floor + 1;
        let back = match self.rng.below(3) {
            0 => 0,
            1 => self.rng.below(20),
            _ => self.rng.below(newest),
        };
        Cursor {
            revision: newest.saturating_sub(back).max(1),
            skip: self.rng.below(3) as u32,
        }
    }

    fn draw_habits(&mut self, max_ttl_ms: u64) -> Habits {
        let lock = self.rng.below(LOCKS);
        Habits {
            lock,
            permits: if lock + 1 == LOCKS { 2 } else { 1 },
            ttl_ms: self.rng.between(300, max_ttl_ms.max(300)),
            holds: Duration::from_millis(self.rng.between(1, 1_500)),
            rests: Duration::from_millis(self.rng.between(1, 500)),
        }
    }

    fn draw_exit(&mut self) -> Exit {
        match self.rng.below(8) {
            0 => Exit::Silence,
            1 | 2 => Exit::Revoke,
            _ => Exit::Release,
        }
    }
}

impl World {
    pub(crate) fn begin_state(&mut self) {
        let Profile {
            state_every,
            lockers,
            watchers,
            max_ttl,
            ..
        } = self.plan.profile;
        if state_every == 0 {
            return;
        }
        let max_ttl_ms = max_ttl / MS;
        for _ in 0..lockers {
            let host = self.state.rng.below(self.spare() as u64) as usize;
            let habits = self.state.draw_habits(max_ttl_ms);
            self.state.lockers.push(Seat {
                host,
                life: 0,
                locker: Locker::new(habits, Time(0)),
                watch: None,
                held: false,
            });
        }
        for _ in 0..watchers {
            let watcher = self.state.draw_watcher();
            self.state.watchers.push(watcher);
        }
        self.queue.push(SECOND, Event::State);
    }

    pub(crate) fn uses_state(&self) -> bool {
        self.plan.profile.state_every > 0
    }

    /// Everyone sees to what is theirs.
    pub(crate) fn state_turn(&mut self) {
        self.queue.push(self.now + TURN, Event::State);
        let hosts = &self.hosts;
        let lives = |call: &Call| hosts[call.host].life == call.life;
        self.state.calls.retain(|_, call| lives(call));
        for seat in 0..self.state.lockers.len() {
            self.poll_locker(seat);
        }
        for watcher in 0..self.state.watchers.len() {
            self.poll_watcher(watcher);
        }
        if self.state.rests || self.now < self.state.ask_at {
            return;
        }
        let wait = self.state.rng.exponential(self.plan.profile.state_every);
        self.state.ask_at = self.plan.profile.calls_at(self.now + wait);
        let askers = self.live_hosts();
        if let Some(host) = self.state.rng.pick(&askers).copied() {
            let operation = self.state.draw();
            self.ask_for(host, operation, TIMEOUT, By::Anyone);
        }
    }

    fn ask_for(&mut self, host: usize, operation: Operation, timeout: Duration, by: By) {
        let token = self.state_token();
        let h = &self.hosts[host];
        let call = Call {
            host,
            life: h.life,
            operation: operation.clone(),
            asked: self.now,
            local: h.clock.read(self.now),
            floor: self.state.judge.floor,
            by,
        };
        self.state.calls.insert(token, call);
        self.trace(host, || {
            format!("state {}: {operation:?}", token.0 - FIRST_TOKEN)
        });
        let request = Input::Request {
            token,
            operation,
            timeout,
        };
        self.arrive(host, request);
    }

    fn state_token(&mut self) -> Token {
        self.state.next += 1;
        Token(FIRST_TOKEN + self.state.next)
    }

    /// What came of something that was asked for.
    pub(crate) fn state_done(&mut self, token: Token, result: Result<Done, RequestError>) {
        let Some(call) = self.state.calls.remove(&token) else {
            return;
        };
        let name = self.hosts[call.host].name.clone();
        let at = At {
            now: self.now,
            host: call.host,
            name: name.as_str(),
        };
        self.state.judge.answered(at, &call, &result);
        match call.by {
            By::Anyone => self.state.keep_lease(&call.operation, &result),
            By::Locker(seat, part) => {
                let mark = self.state.mark();
                let local = self.hosts[call.host].clock.read(self.now);
                let locker = &mut self.state.lockers[seat].locker;
                let wants = locker.on_done(part, call.local, &result, local, mark);
                self.looks_at_locker(seat);
                self.want(seat, wants);
            }
        }
    }

    /// An answer to a caller of single keys.
    pub(crate) fn single_done(
        &mut self,
        operation: &Operation,
        result: &Result<Done, RequestError>,
    ) {
        if self.uses_state()
            && let Ok(done) = result
        {
            let at = At {
                now: self.now,
                host: 0,
                name: "a caller",
            };
            self.state.judge.single(at, operation, done);
        }
    }

    // Locks.

    fn poll_locker(&mut self, seat: usize) {
        let Seat { host, life, .. } = self.state.lockers[seat];
        let h = &self.hosts[host];
        if h.process.is_none() || h.paused {
            return;
        }
        let (now, lives) = (h.clock.read(self.now), h.life);
        if life != lives {
            let max_ttl_ms = self.plan.profile.max_ttl / MS;
            let habits = self.state.draw_habits(max_ttl_ms);
            self.state.lockers[seat] = Seat {
                host,
                life: lives,
                locker: Locker::new(habits, now),
                watch: None,
                held: false,
            };
        }
        // Between two bursts whoever wants nothing yet lets its session end.
        let calls_later = !self.faults_end && self.plan.profile.calls_at(self.now) > self.now;
        let is_idle = self.state.lockers[seat].locker.is_idle();
        if self.state.rests || (calls_later && is_idle) {
            return;
        }
        let (exit, mark) = (self.state.draw_exit(), self.state.mark());
        let wants = self.state.lockers[seat].locker.poll(now, exit, mark);
        self.looks_at_locker(seat);
        self.want(seat, wants);
    }

    fn want(&mut self, seat: usize, wants: Vec<Want>) {
        let host = self.state.lockers[seat].host;
        for want in wants {
            match want {
                Want::Ask(part, operation, timeout) => {
                    self.ask_for(host, operation, timeout, By::Locker(seat, part));
                }
                Want::Watch(range, from) => {
                    let token = self.state_token();
                    self.state.lockers[seat].watch = Some((token, range.clone(), from));
                    self.arrive(host, Input::Watch { token, range, from });
                }
            }
        }
    }

    /// Whoever holds a lock is alone with it, or one of those that it has places for.
    fn looks_at_locker(&mut self, seat: usize) {
        let holds = |seat: &Seat| {
            let h = &self.hosts[seat.host];
            let lives = h.process.is_some() && h.life == seat.life;
            let local = h.clock.read(self.now);
            seat.locker.holds(local).filter(|_| lives)
        };
        let one = &self.state.lockers[seat];
        let token = holds(one);
        let taken = token.is_some() && !one.held;
        self.state.lockers[seat].held = token.is_some();
        let Some(token) = token.filter(|_| taken) else {
            return;
        };
        let one = &self.state.lockers[seat];
        let Habits { lock, permits, .. } = one.locker.habits;
        let same = |other: &&Seat| other.locker.habits.lock == lock;
        let all = self.state.lockers.iter().filter(same);
        let holders: Vec<(usize, u64)> = all
            .filter_map(|seat| Some((seat.host, holds(seat)?)))
            .collect();
        let at = At {
            now: self.now,
            host: one.host,
            name: self.hosts[one.host].name.as_str(),
        };
        self.trace(one.host, || format!("holds lock {lock} with token {token}"));
        self.state.judge.took(at, lock, permits, token, &holders);
        self.happened("lock taken");
    }

    // Watches.

    fn poll_watcher(&mut self, watcher: usize) {
        let asked = self.state.watchers[watcher].asked;
        if let Some((host, life, token)) = asked {
            let goes_on = self.hosts[host].life == life && self.hosts[host].process.is_some();
            let moves = !self.state.rests && self.state.rng.chance(0.002);
            if goes_on && !moves {
                return;
            }
            self.state.watchers[watcher].asked = None;
            if goes_on {
                self.arrive(host, Input::Unwatch(token));
            }
            if !self.state.rests && self.state.rng.chance(0.2) {
                let cursor = self.state.draw_cursor();
                self.state.watchers[watcher].cursor = cursor;
            }
        }
        let askers = self.live_hosts();
        if let Some(host) = self.state.rng.pick(&askers).copied() {
            self.ask_watch(watcher, host);
        }
    }

    fn ask_watch(&mut self, watcher: usize, host: usize) {
        let token = self.state_token();
        let life = self.hosts[host].life;
        let one = &mut self.state.watchers[watcher];
        one.asked = Some((host, life, token));
        let (range, from) = (one.range.clone(), one.cursor);
        self.trace(host, || format!("watches {range:?} from {from:?}"));
        self.arrive(host, Input::Watch { token, range, from });
    }

    /// What a watch has seen.
    pub(crate) fn state_watched(&mut self, host: usize, token: Token, watched: &Watched) {
        let name = self.hosts[host].name.clone();
        let at = At {
            now: self.now,
            host,
            name: name.as_str(),
        };
        let mine = |watcher: &Watcher| watcher.asked.is_some_and(|(_, _, asked)| asked == token);
        if let Some(n) = self.state.watchers.iter().position(mine) {
            let watcher = &self.state.watchers[n];
            let (range, from) = (watcher.range.clone(), watcher.cursor);
            self.state.judge.watched(at, &range, from, watched);
            match watched {
                Watched::Events { events, next } => {
                    self.state.watchers[n].cursor = *next;
                    if !events.is_empty() {
                        self.happened("watch told of changes");
                    }
                    return self.ask_watch(n, host);
                }
                Watched::Compacted { oldest } => {
                    self.happened("watch told of compaction");
                    self.state.watchers[n].cursor = Cursor::from(*oldest);
                }
                Watched::Unavailable => {}
            }
            self.state.watchers[n].asked = None;
            return;
        }
        let waits = |seat: &Seat| seat.watch.as_ref().is_some_and(|(t, _, _)| *t == token);
        if let Some(seat) = self.state.lockers.iter().position(waits) {
            let watch = self.state.lockers[seat].watch.take();
            let (_, range, from) = watch.expect("it waits");
            self.state.judge.watched(at, &range, from, watched);
            let local = self.hosts[host].clock.read(self.now);
            let wants = self.state.lockers[seat].locker.on_watched(watched, local);
            self.looks_at_locker(seat);
            self.want(seat, wants);
        }
    }

    // The log.

    /// More of the log is committed.
    pub(crate) fn state_learns(&mut self, host: usize, entries: impl IntoIterator<Item = Entry>) {
        let name = self.hosts[host].name.clone();
        let at = At {
            now: self.now,
            host,
            name: name.as_str(),
        };
        for entry in entries {
            self.state.judge.learn(at, &entry);
        }
    }

    /// A node has applied so much.
    pub(crate) fn check_revision(&self, host: usize, applied: Index, revision: u64) {
        if !self.uses_state() {
            return;
        }
        let at = At {
            now: self.now,
            host,
            name: self.hosts[host].name.as_str(),
        };
        self.state.judge.applied(at, applied, revision);
    }

    pub(crate) fn state_is_behind(&self, commits: u64) -> bool {
        self.uses_state() && self.state.judge.model.applied().0 < commits
    }

    /// The first entry that the model has not seen.
    pub(crate) fn state_next(&self) -> Index {
        self.state.judge.model.applied() + 1
    }

    // The quiet phase.

    /// All has healed: locks are passed on, watches tell everything, leases end.
    pub(crate) fn check_state(&mut self) {
        if !self.uses_state() {
            return;
        }
        let began = self.now;
        self.run_until(began + LOCK_BOUND);
        let wanted: BTreeSet<u64> = self
            .state
            .lockers
            .iter()
            .map(|s| s.locker.habits.lock)
            .collect();
        for lock in wanted {
            let taken = self.state.judge.taken_at.get(&lock);
            assert!(
                taken.is_some_and(|at| *at >= began),
                "nobody took lock {lock} in {LOCK_BOUND} us of quiet, last at {taken:?}"
            );
        }
        self.state.rests = true;
        let slowest = 1_000_000 + self.plan.profile.drift_ppm;
        let longest = self.plan.profile.max_ttl.max(3 * SECOND) * slowest / 1_000_000;
        // What was asked for is answered within a moment; its time begins then.
        self.run_until(self.now + 2 * SECOND + longest + EXPIRY_BOUND);
        let leases = self.state.judge.model.leases();
        assert!(leases.is_empty(), "nobody keeps {leases:?} alive");
        self.run_until(self.now + WATCH_BOUND);
        let due = self.now - WATCH_BOUND;
        for watcher in &self.state.watchers {
            if let Some(missed) = self.state.judge.owed(watcher, due) {
                panic!("{watcher:?} was not told of {missed} in quiet");
            }
        }
        for replica in self.hosts.iter().filter_map(|host| host.replica()) {
            self.state
                .judge
                .check_store(replica.name(), replica.store());
        }
    }
}

impl State {
    fn keep_lease(&mut self, operation: &Operation, result: &Result<Done, RequestError>) {
        match (operation, result) {
            (Operation::Write(Write::Grant { .. }), Ok(Done::Granted(grant))) => {
                self.leases.push(grant.lease);
            }
            (
                Operation::KeepAlive(lease) | Operation::Write(Write::Revoke(lease)),
                Err(RequestError::NoSuchLease),
            ) => self.leases.retain(|kept| kept != lease),
            _ => {}
        }
    }
}

impl Judge {
    /// The next entry of the log.
    fn learn(&mut self, at: At, entry: &Entry) {
        let before = self.model.revision();
        let outcome = self.model.apply(entry);
        if self.model.revision() > before {
            self.made_at.push(at.now);
        }
        let Some(outcome) = outcome else { return };
        if self.model.revision() > before {
            self.made_by
                .insert(self.model.revision(), outcome.write.clone());
        }
        for lease in &outcome.ended {
            let expired = matches!(outcome.write, Write::Expire(_));
            self.ended.insert(*lease, (at.now, expired));
            if expired {
                self.check_lease(at, *lease);
            }
        }
        if let Write::Revoke(lease) = &outcome.write
            && outcome.done
            && !outcome.ended.is_empty()
        {
            self.revoked.insert(*lease, outcome.answer.clone());
        }
        if let Some(mark) = mark_of(&outcome.write) {
            let again = self.outcomes.entry(mark).or_default();
            let twice = outcome.done && again.iter().any(|earlier| earlier.done);
            again.push(outcome.clone());
            if twice || outcome.done && self.never.contains(&mark) {
                at.broken(
                    Checker::ExactlyOnce,
                    format_args!("carries out what it should not: {:?}", self.outcomes[&mark]),
                );
            }
        }
    }

    /// No lease expires while its holder may count on it.
    fn check_lease(&self, at: At, lease: LeaseId) {
        let Some((ended, true)) = self.ended.get(&lease) else {
            return;
        };
        let promised = self.promised.get(&lease).copied().unwrap_or(0);
        if *ended < promised {
            at.broken(
                Checker::LeaseExpiry,
                format_args!(
                    "lease {lease} ended at {ended} us and was promised until {promised} us"
                ),
            );
        }
    }

    fn applied(&self, at: At, applied: Index, revision: u64) {
        let right = self.model.revision_at(applied);
        if revision != right {
            at.broken(
                Checker::StateModel,
                format_args!("is at revision {revision} after {applied}, which is {right}"),
            );
        }
    }

    /// An answer to a caller.
    fn answered(&mut self, at: At, call: &Call, result: &Result<Done, RequestError>) {
        let mark = match &call.operation {
            Operation::Write(write) => mark_of(write),
            _ => None,
        };
        match result {
            Ok(done) => self.done(at, call, mark, done),
            Err(error) => self.not_done(at, call, mark, error),
        }
    }

    fn done(&mut self, at: At, call: &Call, mark: Option<u64>, done: &Done) {
        let wrong = match (&call.operation, done) {
            (Operation::Write(_), Done::Transacted(told)) => {
                self.denies(mark, &Answer::Transacted(Box::new(told.clone())))
            }
            (Operation::Write(Write::Revoke(lease)), Done::Written(told)) => {
                let right = self.revoked.get(lease) == Some(&Answer::Written(*told));
                (!right).then(|| format!("{:?}", self.revoked.get(lease)))
            }
            (Operation::Write(_), Done::Written(told)) => {
                self.denies(mark, &Answer::Written(*told))
            }
            (Operation::Range(request), Done::Range(told)) => self.model.misread(request, told),
            (Operation::Get(key), Done::Read(told)) => {
                let right = self.model.reading(key, told.revision);
                (right != *told).then(|| format!("{right:?}"))
            }
            (
                Operation::Write(Write::Grant { .. }) | Operation::KeepAlive(_),
                Done::Granted(told),
            ) => {
                self.granted(at, call, told);
                None
            }
            (Operation::Lease(lease), Done::Lease(told)) => {
                let ttl_ms = self.model.leases().get(lease).copied();
                let gone = self
                    .ended
                    .get(lease)
                    .is_some_and(|(ended, _)| *ended < call.asked);
                let right = told.lease == *lease
                    && told.remaining_ms <= told.ttl_ms
                    && ttl_ms.is_none_or(|ttl_ms| ttl_ms == told.ttl_ms)
                    && !gone;
                (!right).then(|| format!("its time to live is {ttl_ms:?}, gone: {gone}"))
            }
            (Operation::Leases(after), Done::Leases(told)) => {
                let known = |lease: &LeaseId| {
                    self.model.leases().contains_key(lease)
                        || self
                            .ended
                            .get(lease)
                            .is_some_and(|(ended, _)| *ended >= call.asked)
                };
                let right =
                    told.is_sorted() && told.iter().all(|lease| lease > after && known(lease));
                (!right).then(|| format!("there are {:?}", self.model.leases()))
            }
            _ => Some("another kind of answer".to_owned()),
        };
        if let Some(right) = wrong {
            at.broken(
                Checker::StateModel,
                format_args!("{:?} was answered {done:?}; it is {right}", call.operation),
            );
        }
        let (revision, writes) = match done {
            Done::Transacted(told) => (told.revision, self.changed(mark)),
            Done::Written(told) => {
                // The end of a lease without keys is no change.
                let made_by = self.made_by.get(&told.revision);
                let writes =
                    matches!((&call.operation, made_by), (Operation::Write(a), Some(b)) if a == b);
                (told.revision, writes)
            }
            Done::Range(told) => (told.revision, false),
            Done::Read(told) => (told.revision, false),
            _ => return,
        };
        let in_time = revision > call.floor || revision == call.floor && !writes;
        if !in_time {
            at.broken(
                Checker::StateOrder,
                format_args!(
                    "{:?} was answered {done:?}, revision {} was seen before it was asked",
                    call.operation, call.floor
                ),
            );
        }
        self.floor = self.floor.max(revision);
    }

    /// Whether a marked write made a revision.
    fn changed(&self, mark: Option<u64>) -> bool {
        let outcomes = mark.and_then(|mark| self.outcomes.get(&mark));
        let mut done = outcomes
            .into_iter()
            .flatten()
            .filter(|outcome| outcome.done);
        done.any(|outcome| {
            self.model.revision_at(outcome.index) > self.model.revision_at(outcome.index.previous())
        })
    }

    /// What a marked write came to, if it is not this.
    fn denies(&self, mark: Option<u64>, told: &Answer) -> Option<String> {
        let outcomes = mark.and_then(|mark| self.outcomes.get(&mark));
        let mut done = outcomes
            .into_iter()
            .flatten()
            .filter(|outcome| outcome.done);
        let done = done.next();
        let right = done.is_some_and(|outcome| same(&outcome.answer, told));
        (!right).then(|| format!("{done:?}"))
    }

    fn granted(&mut self, at: At, call: &Call, told: &replica::LeaseGrant) {
        let lease = told.lease;
        let right = self.model.grant_of(lease);
        let ended = self.ended.get(&lease).copied();
        let gone = ended.is_some_and(|(ended, _)| ended < call.asked);
        let of_another = matches!(call.operation, Operation::KeepAlive(asked) if asked != lease);
        let ttl_differs = right.is_some_and(|right| right.ttl_ms != told.ttl_ms);
        if gone || of_another || ttl_differs || right.is_none() && ended.is_none() {
            at.broken(
                Checker::StateModel,
                format_args!(
                    "{:?} was answered {told:?}; it is {right:?}, {ended:?}",
                    call.operation
                ),
            );
        }
        // By the slowest clock that counts from the question, or the fastest from the answer.
        let micros = u128::from(told.ttl_ms) * 1_000 * 1_000_000;
        let lives = micros / (1_000_000 + u128::from(told.drift_ppm));
        let until = call.asked + (lives as Micros).saturating_sub(2);
        let promised = self.promised.entry(lease).or_default();
        *promised = until.max(*promised);
        self.check_lease(at, lease);
    }

    fn not_done(&mut self, at: At, call: &Call, mark: Option<u64>, error: &RequestError) {
        let said = match error {
            // It may have been done, or may yet be.
            RequestError::Unknown => return,
            RequestError::NoSuchLease => Some(Answer::NoSuchLease),
            RequestError::Refused(_) => Some(Answer::Refused(String::new())),
            RequestError::Full(_)
            | RequestError::TimedOut
            | RequestError::TooLarge
            | RequestError::Busy
            | RequestError::NotYet(_) => None,
        };
        let lease = match &call.operation {
            Operation::KeepAlive(lease)
            | Operation::Lease(lease)
            | Operation::Write(Write::Revoke(lease)) => Some(*lease),
            _ => None,
        };
        if let Some(lease) = lease.filter(|_| said == Some(Answer::NoSuchLease))
            && self.model.leases().contains_key(&lease)
        {
            at.broken(
                Checker::StateModel,
                format_args!("{:?} was answered {error:?}, and it lives", call.operation),
            );
        }
        let Some(mark) = mark else { return };
        let done = match &said {
            Some(said) => self.denies(Some(mark), said),
            None => {
                self.never.insert(mark);
                let outcomes = self.outcomes.get(&mark).into_iter().flatten();
                let done: Vec<&Outcome> = outcomes.filter(|outcome| outcome.done).collect();
                (!done.is_empty()).then(|| format!("{done:?}"))
            }
        };
        if let Some(done) = done {
            at.broken(
                Checker::ExactlyOnce,
                format_args!(
                    "{:?} was answered {error:?}, it came to {done}",
                    call.operation
                ),
            );
        }
    }

    /// An answer to a caller of a single key.
    fn single(&mut self, at: At, operation: &Operation, done: &Done) {
        let (revision, wrong) = match (operation, done) {
            (Operation::Get(key), Done::Read(told)) => {
                let right = self.model.reading(key, told.revision);
                (
                    told.revision,
                    (right != *told).then(|| format!("{right:?}")),
                )
            }
            (Operation::Write(write), Done::Written(told)) => {
                let made_by = self.made_by.get(&told.revision);
                let wrong = told.applied && made_by != Some(write);
                (told.revision, wrong.then(|| format!("{made_by:?}")))
            }
            _ => return,
        };
        if let Some(right) = wrong {
            at.broken(
                Checker::StateModel,
                format_args!("{operation:?} was answered {done:?}; it is {right}"),
            );
        }
        self.floor = self.floor.max(revision);
    }

    /// What a watch was told.
    fn watched(&mut self, at: At, range: &KeyRange, from: Cursor, watched: &Watched) {
        let wrong = match watched {
            Watched::Unavailable => None,
            Watched::Compacted { oldest } => {
                let right = from.revision < *oldest
                    && oldest
                        .checked_sub(1)
                        .is_some_and(|c| self.model.was_compacted_to(c));
                (!right).then(|| format!("kept from {} on", self.model.compacted() + 1))
            }
            Watched::Events { events, next } => {
                let right = self.model.changes(range, from, *next);
                let far = Cursor::from(self.model.revision() + 1).max(from);
                let same = right.iter().copied().eq(events) && *next >= from && *next <= far;
                if let Some(last) = events.last() {
                    self.floor = self.floor.max(last.revision());
                }
                (!same).then(|| format!("{right:?} up to {far:?} at most"))
            }
        };
        if let Some(right) = wrong {
            at.broken(
                Checker::WatchCompleteness,
                format_args!(
                    "a watch of {range:?} from {from:?} is told {watched:?}; it is {right}"
                ),
            );
        }
    }

    /// A change that a watch should have been told of by now.
    fn owed(&self, watcher: &Watcher, due: Micros) -> Option<String> {
        let end = Cursor::from(self.model.revision() + 1);
        let changes = self.model.changes(&watcher.range, watcher.cursor, end);
        let mut owed = changes.into_iter();
        let first = owed.next()?;
        let made_at = self.made_at[first.revision() as usize];
        (made_at < due).then(|| format!("{first:?} of {made_at} us"))
    }

    /// A lock is taken; hosts that hold it now, with their tokens.
    fn took(&mut self, at: At, lock: u64, permits: usize, token: u64, holders: &[(usize, u64)]) {
        if holders.len() > permits {
            at.broken(
                Checker::LockExclusion,
                format_args!("lock {lock} has {permits} places and is held by {holders:?}"),
            );
        }
        self.taken_at.insert(lock, at.now);
        let before = self.tokens.insert(lock, token).unwrap_or(0);
        if permits == 1 && token <= before {
            at.broken(
                Checker::LockTokens,
                format_args!("holds lock {lock} with token {token}, the one before had {before}"),
            );
        }
    }

    /// Everything that a node holds.
    fn check_store(&self, name: &Name, store: &Store) {
        let (applied, revision) = (store.applied(), store.revision());
        assert_eq!(
            revision,
            self.model.revision_at(applied),
            "{}: {name} after {applied}",
            Checker::StateModel
        );
        for range in [
            KeyRange::Prefix(Bytes::new()),
            KeyRange::Prefix("_/".into()),
        ] {
            let mut request = RangeRequest::all(range.clone());
            let mut pairs = Vec::new();
            loop {
                let page = store.range(&request);
                request.after = page.pairs.last().map(|last| Value(last.key.clone()));
                pairs.extend(page.pairs);
                if !page.more {
                    break;
                }
            }
            let right = self.model.range_at(&range, revision);
            assert_eq!(pairs, right, "{}: what {name} holds", Checker::StateModel);
            let mut from = Cursor::from(store.compacted() + 1);
            while from.revision <= revision {
                let Watched::Events { events, next } = store.changes(&range, from) else {
                    panic!("{}: {name} keeps less than it says", Checker::StateModel);
                };
                let right = self.model.changes(&range, from, next);
                let same = right.into_iter().eq(&events) && next > from;
                assert!(
                    same,
                    "{}: what {name} keeps from {from:?}",
                    Checker::StateModel
                );
                from = next;
            }
        }
        let compacted = store.compacted();
        let right = match applied == self.model.applied() {
            true => compacted == self.model.compacted(),
            false => self.model.was_compacted_to(compacted),
        };
        assert!(
            right,
            "{}: {name} keeps from {compacted}",
            Checker::StateModel
        );
    }
}

/// By what a write is known again.
fn mark_of(write: &Write) -> Option<u64> {
    match write {
        Write::Put { value, .. } => mark_in(value),
        Write::Transaction(transaction) => match transaction.then.first()? {
            Action::Get {
                range: KeyRange::Key(key),
                ..
            } => mark_in(key),
            _ => None,
        },
        _ => None,
    }
}

fn mark_in(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text.strip_prefix(b"id/")?).ok()?;
    text.split(' ').next()?.parse().ok()
}
