//! One vote per voter and term, on its disk and in what it says.

use std::collections::{BTreeMap, BTreeSet};

use raft::{Configuration, HardState, NodeKey, Term};

use super::members::is_quorum;
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

    /// A node leads: a quorum of the configuration in its log has voted for it.
    pub(super) fn elect(&self, at: At, key: NodeKey, term: Term, by: &Configuration) {
        let cast = self.cast.iter();
        let given = cast.filter(|((_, of), candidate)| *of == term && **candidate == key);
        let mut ayes: BTreeSet<NodeKey> = given.map(|((voter, _), _)| *voter).collect();
        // Its own vote is on its disk, and said with the request for others'.
        ayes.insert(key);
        if !is_quorum(by, &ayes) {
            at.broken(
                Checker::ElectionQuorum,
                format_args!("leads term {term} by the votes of {ayes:?}, no quorum of {by:?}"),
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
