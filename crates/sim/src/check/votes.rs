//! One vote per voter and term, on its disk and in what it says.

use std::collections::BTreeMap;

use raft::{HardState, NodeKey, Term};

use super::{At, Checker};

/// Every vote that was ever given, and by key what its disk last said.
#[derive(Debug, Default)]
pub(super) struct Votes {
    stored: BTreeMap<NodeKey, HardState>,
    cast: BTreeMap<(NodeKey, Term), NodeKey>,
}

impl Votes {
    /// What the disk of a node says now.
    pub(super) fn stored(&mut self, at: At, key: NodeKey, now: HardState) {
        let Some(was) = self.stored.insert(key, now) else {
            return;
        };
        let forgets = now.term == was.term && was.voted_for.is_some() && now != was;
        if now.term < was.term || forgets {
            at.broken(
                Checker::OneVotePerTerm,
                format_args!("its disk held {was:?} and holds {now:?}"),
            );
        }
    }

    /// A node gives its vote, to itself by asking for others'.
    pub(super) fn cast(&mut self, at: At, voter: NodeKey, term: Term, candidate: NodeKey) {
        let first = *self.cast.entry((voter, term)).or_insert(candidate);
        if first != candidate {
            at.broken(
                Checker::OneVotePerTerm,
                format_args!("votes for {candidate} in term {term} after {first}"),
            );
        }
    }
}
