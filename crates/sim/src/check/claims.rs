//! Exclusive leadership, and the fencing tokens that go with it.

use std::collections::BTreeMap;

use raft::Term;

use super::{At, Checker};
use crate::event::Micros;

/// A time, in true microseconds, in which a node calls itself the only leader. Its term is the
/// fencing token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(super) term: Term,
    pub(super) from: Micros,
    pub(super) until: Micros,
}

/// Claims that were in force for a time, by token.
#[derive(Debug, Default)]
pub(super) struct Claims {
    held: BTreeMap<Term, Tenure>,
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
    /// A claim came true from its beginning to its end.
    pub(super) fn held(&mut self, at: At, claim: Claim) {
        if let Some(tenure) = self.held.get(&claim.term).filter(|t| t.host != at.host) {
            broken(at, claim, claim.term, tenure);
        }
        let mut before = self.held.range(..claim.term);
        if let Some((token, tenure)) = before.next_back().filter(|(_, t)| t.until() > claim.from) {
            broken(at, claim, *token, tenure);
        }
        let mut after = self.held.range(claim.term.next()..);
        if let Some((token, tenure)) = after.next().filter(|(_, t)| t.from() < claim.until) {
            broken(at, claim, *token, tenure);
        }
        let tenure = self.held.entry(claim.term).or_insert_with(|| Tenure {
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

fn broken(at: At, claim: Claim, token: Term, other: &Tenure) -> ! {
    let overlap = |span: &&(Micros, Micros)| span.0 < claim.until && claim.from < span.1;
    if let Some((from, until)) = other.spans.iter().find(overlap) {
        at.broken(
            Checker::ExclusiveLeadership,
            format_args!(
                "the only leader of term {} in {}..{} us, as was host {} of term {token} in \
                 {from}..{until} us",
                claim.term, claim.from, claim.until, other.host
            ),
        );
    }
    at.broken(
        Checker::FencingTokens,
        format_args!(
            "claims with token {} in {}..{} us, host {} with token {token} in {}..{} us",
            claim.term,
            claim.from,
            claim.until,
            other.host,
            other.from(),
            other.until()
        ),
    );
}
