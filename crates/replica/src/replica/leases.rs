//! When a lease ends: the leader's clock says so, an entry of the log makes it so.
//!
//! Whoever holds a lease counts from when it *asked* for it, and the leader from when it *answers*, so
//! the holder's reckoning ends first. Three things keep that true:
//!
//! - a keep-alive is answered only after a quorum confirmed this leader, like a read, so that no
//!   leader that has been replaced promises anything;
//! - a new leader gives every lease its whole time again, from when it has applied an entry of its
//!   own term. Whatever the one before it promised was asked for earlier. (With lease reads the one
//!   before may answer until then, and no longer.)
//! - once the end of a lease is proposed, it is not kept alive any more.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::state::{LeaseId, LeaseStatus};
use crate::wire::Write;

/// How many leases one entry ends at most.
const BATCH: usize = 256;

/// How soon an end that could not be proposed is proposed again.
const AGAIN: Duration = Duration::from_millis(30);

/// How many leases one answer lists.
const LISTED: usize = 1_000;

/// Until when leases live, for whoever leads.
#[derive(Default)]
pub(super) struct LeaseClock {
    /// In which term it counts; `None`: we do not lead, or have applied nothing of our term.
    term: Option<Term>,
    deadlines: BTreeMap<LeaseId, Time>,
    order: BTreeSet<(Time, LeaseId)>,
    /// Their end is proposed, and by which command: it may be in the log until that was refused.
    ending: BTreeMap<LeaseId, RequestNumber>,
}

impl LeaseClock {
    fn set(&mut self, lease: LeaseId, deadline: Time) {
        if let Some(before) = self.deadlines.insert(lease, deadline) {
            self.order.remove(&(before, lease));
        }
        self.order.insert((deadline, lease));
    }

    /// The leases whose time is over, at most so many; they are counted no more.
    fn due(&mut self, now: Time) -> Vec<LeaseId> {
        let mut due = Vec::new();
        while due.len() < BATCH
            && let Some((_, lease)) = self.order.first().copied().filter(|(at, _)| *at <= now)
        {
            self.order.pop_first();
            self.deadlines.remove(&lease);
            due.push(lease);
        }
        due
    }
}

impl Replica {
    /// An entry was applied: in our own term it begins, or changes, what we count.
    pub(super) fn count_leases(&mut self, term: Term, answer: Option<&Answer>) {
        if self.role() != Some(Role::Leader) || term != self.term() {
            return;
        }
        if self.lease_clock.term != Some(term) {
            self.lease_clock = LeaseClock {
                term: Some(term),
                ..LeaseClock::default()
            };
            for (lease, held) in self.store.leases().iter() {
                let deadline = self.now + Duration::from_millis(held.ttl_ms);
                self.lease_clock.set(lease, deadline);
            }
        }
        if let Some(Answer::Granted(grant)) = answer
            && self.store.leases().get(grant.lease).is_some()
        {
            self.prolong(grant.lease, grant.ttl_ms);
        }
    }

    pub(super) fn stop_counting_leases(&mut self) {
        self.lease_clock = LeaseClock::default();
    }

    fn prolong(&mut self, lease: LeaseId, ttl_ms: u64) {
        if !self.lease_clock.ending.contains_key(&lease) {
            let deadline = self.now + Duration::from_millis(ttl_ms);
            self.lease_clock.set(lease, deadline);
        }
    }

    /// A quorum has confirmed that we lead: the lease lives, if there is one.
    pub(super) fn keep_alive(&mut self, lease: LeaseId) -> Answer {
        let Some(grant) = self.store.grant_of(lease) else {
            return Answer::NoSuchLease;
        };
        // Its end is on its way into the log: whether it gets there is to be seen.
        if self.lease_clock.term != Some(self.term())
            || self.lease_clock.ending.contains_key(&lease)
        {
            return Answer::Busy;
        }
        self.prolong(lease, grant.ttl_ms);
        Answer::Granted(grant)
    }

    pub(super) fn lease_status(&self, lease: LeaseId) -> Answer {
        let Some(held) = self.store.leases().get(lease) else {
            return Answer::NoSuchLease;
        };
        let deadline = self.lease_clock.deadlines.get(&lease);
        let remaining = deadline.map_or(Duration::ZERO, |at| at.since(self.now));
        Answer::Lease(LeaseStatus {
            lease,
            ttl_ms: held.ttl_ms,
            remaining_ms: remaining.as_millis() as u64,
            keys: held.keys.len() as u64,
        })
    }

    pub(super) fn list_leases(&self, after: LeaseId) -> Answer {
        let leases = self.store.leases().after(after).take(LISTED);
        Answer::Leases(leases.map(|(lease, _)| lease).collect())
    }

    /// Proposes the end of those whose time is over.
    pub(super) fn end_leases(&mut self) {
        if self.lease_clock.term.is_none() {
            return;
        }
        loop {
            let due = self.lease_clock.due(self.now);
            let exists = |lease: &LeaseId| self.store.leases().get(*lease).is_some();
            let ended: Vec<LeaseId> = due.iter().copied().filter(exists).collect();
            if due.is_empty() {
                return;
            }
            if !ended.is_empty() {
                let write = Write::Expire(ended.clone());
                let number = self.propose_own(write);
                let ending = ended.into_iter().map(|lease| (lease, number));
                self.lease_clock.ending.extend(ending);
            }
        }
    }

    /// A command of a leader was applied: what has ended is no longer ending.
    pub(super) fn forget_ended(&mut self) {
        let leases = self.store.leases();
        let ending = &mut self.lease_clock.ending;
        ending.retain(|lease, _| leases.get(*lease).is_some());
    }

    /// Proposes what the leader itself has to say; under which number.
    pub(super) fn propose_own(&mut self, write: Write) -> RequestNumber {
        self.last_own = self.last_own.next();
        self.proposals.push(kv::own_command(self.last_own, write));
        self.last_own
    }

    /// A command of our own did not get into the log: what it was to end is due again, and nothing
    /// that another one may end yet.
    pub(super) fn on_own_refused(&mut self, number: RequestNumber) {
        let again = self.now + AGAIN;
        let refused = self
            .lease_clock
            .ending
            .extract_if(.., |_, by| *by == number);
        let refused: Vec<LeaseId> = refused.map(|(lease, _)| lease).collect();
        for lease in refused {
            self.lease_clock.set(lease, again);
        }
    }

    pub(super) fn leases_deadline(&self) -> Option<Time> {
        self.lease_clock.order.first().map(|(at, _)| *at)
    }
}
