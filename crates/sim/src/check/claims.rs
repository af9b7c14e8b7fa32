//! Exclusive leadership, and the fencing tokens that go with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raft::{Index, LeadershipToken, LeaseEpoch, NodeKey, Settings, Term, Time};

use super::log::Mirror;
use super::{At, Checker};
use crate::event::Micros;

/// A time, in true microseconds, in which a node calls itself the only leader. The fencing token is
/// that of its lease epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(super) epoch: LeaseEpoch,
    pub(super) from: Micros,
    pub(super) until: Micros,
}

/// Claims that were in force for a time, by token.
#[derive(Debug, Default)]
pub(super) struct Claims {
    held: BTreeMap<LeadershipToken, Tenure>,
    won: BTreeMap<Term, Won>,
}

/// What a node says when it calls itself the only leader, now or later: all by its own clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Promise {
    pub(super) key: NodeKey,
    pub(super) epoch: LeaseEpoch,
    pub(super) from: Time,
    /// How far ahead of its clock it promises.
    pub(super) ahead: Duration,
    /// The least lease that may be in force.
    pub(super) lease: Duration,
    /// The newest lease epoch of what it knows to be committed.
    pub(super) committed: LeaseEpoch,
    pub(super) connected: bool,
    pub(super) votes: bool,
}

/// What a new leader begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Won {
    /// By its own clock.
    pub(super) at: Time,
    /// How long any older lease may last, as its clock measures it.
    pub(super) wait: Duration,
    /// The newest lease epoch in its log, before its own.
    pub(super) epoch: LeaseEpoch,
}

impl Won {
    pub(super) fn by(log: &Mirror, commit: Index, at: Time) -> Won {
        let waits = log.possible(commit).map(|c| wait(c.settings));
        Won {
            at,
            wait: waits.max().unwrap_or_default(),
            epoch: log.epoch(),
        }
    }
}

/// The lease on the slowest clock, measured by the fastest: how the judge reads the drift bound.
fn wait(settings: Settings) -> Duration {
    let drift = f64::from(settings.drift_ppm) / 1e6;
    let slowest = f64::from(settings.lease_ms) / 1e3 / (1.0 - drift);
    // Nodes count whole microseconds.
    Duration::from_secs_f64(slowest * (1.0 + drift)).saturating_sub(Duration::from_micros(1))
}

/// Everything that was claimed with one token.
#[derive(Debug)]
struct Tenure {
    host: usize,
    /// Apart from each other, ascending.
    spans: Vec<(Micros, Micros)>,
}

impl Tenure {
    fn from(&self) -> Micros {
        self.spans.first().map_or(Micros::MAX, |span| span.0)
    }

    fn until(&self) -> Micros {
        self.spans.last().map_or(0, |span| span.1)
    }
}

impl Claims {
    pub(super) fn won(&mut self, term: Term, won: Won) {
        self.won.insert(term, won);
    }

    /// A node says from when on it may be the only leader; it was given these lease epochs.
    pub(super) fn may_be(&self, at: At, promise: &Promise, released: &BTreeSet<LeaseEpoch>) {
        let Some(won) = self.won.get(&promise.epoch.term) else {
            return;
        };
        if promise.from < won.at + won.wait && !released.contains(&won.epoch) {
            at.broken(
                Checker::LeaseWait,
                format_args!("claims {promise:?}, having {won:?}; it was given {released:?}"),
            );
        }
    }

    /// A claim came true from its beginning to its end.
    pub(super) fn held(&mut self, at: At, claim: Claim) {
        if let Some(tenure) = self
            .held
            .get(&claim.epoch.token())
            .filter(|t| t.host != at.host)
        {
            broken(at, claim, claim.epoch.token(), tenure);
        }
        let token = claim.epoch.token();
        let mut before = self.held.range(..token);
        if let Some((token, tenure)) = before.next_back().filter(|(_, t)| t.until() > claim.from) {
            broken(at, claim, *token, tenure);
        }
        let mut after = self.held.range(LeadershipToken(token.0 + 1)..);
        if let Some((token, tenure)) = after.next().filter(|(_, t)| t.from() < claim.until) {
            broken(at, claim, *token, tenure);
        }
        let tenure = self
            .held
            .entry(claim.epoch.token())
            .or_insert_with(|| Tenure {
                host: at.host,
                spans: Vec::new(),
            });
        match tenure.spans.last_mut() {
            Some(last) if last.1 >= claim.from => last.1 = last.1.max(claim.until),
            _ => tenure.spans.push((claim.from, claim.until)),
        }
    }

    /// For how long someone was the only leader.
    pub(super) fn total(&self) -> Micros {
        let spans = self.held.values().flat_map(|tenure| &tenure.spans);
        spans.map(|(from, until)| until - from).sum()
    }
}

fn broken(at: At, claim: Claim, token: LeadershipToken, other: &Tenure) -> ! {
    let overlap = |span: &&(Micros, Micros)| span.0 < claim.until && claim.from < span.1;
    if let Some((from, until)) = other.spans.iter().find(overlap) {
        at.broken(
            Checker::ExclusiveLeadership,
            format_args!(
                "the only leader with token {} in {}..{} us, as was host {} with token {token} in \
                 {from}..{until} us",
                claim.epoch.token(),
                claim.from,
                claim.until,
                other.host
            ),
        );
    }
    at.broken(
        Checker::FencingTokens,
        format_args!(
            "claims with token {} in {}..{} us, host {} with token {token} in {}..{} us",
            claim.epoch.token(),
            claim.from,
            claim.until,
            other.host,
            other.from(),
            other.until()
        ),
    );
}
