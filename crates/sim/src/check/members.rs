//! How members change, and who may count on whom meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use raft::{Configuration, Index, Members, NodeKey, Term};

use super::{At, Checker};

/// A configuration that a leader of `term` puts into its log.
#[derive(Clone, Debug)]
pub(crate) struct Proposal {
    pub(super) term: Term,
    /// How far it has committed, and the term of the last entry of that.
    pub(super) commit: Index,
    pub(super) committed: Term,
    /// What was in force in its log, and where that stands.
    pub(super) before: (Index, Configuration),
    pub(super) next: Configuration,
    /// How long ago it heard of those that the next one rests on.
    pub(super) unheard: Duration,
    pub(super) timeout: Duration,
}

/// Whether these are a majority of every set of voters that counts. How the judge counts, not how
/// nodes do.
pub(super) fn is_quorum(configuration: &Configuration, ayes: &BTreeSet<NodeKey>) -> bool {
    let Configuration {
        voters, outgoing, ..
    } = configuration;
    let majority = |set: &Members| {
        let count = set.keys().filter(|key| ayes.contains(*key)).count();
        count > set.len() / 2
    };
    majority(voters) && (outgoing.is_empty() || majority(outgoing))
}

/// Voters change by way of a joint configuration, one change at a time, and none on the ground of
/// what may be undone (Raft §6).
pub(super) fn proposes(at: At, proposal: &Proposal) {
    let Proposal {
        term,
        commit,
        committed,
        before: (stands_at, before),
        next,
        unheard,
        timeout,
    } = proposal;
    let why = if stands_at > commit {
        format!("the one before, at {stands_at}, is not committed: {commit} is")
    } else if committed != term {
        format!("nothing of term {term} is committed, only of {committed}")
    } else if !before.outgoing.is_empty() {
        let left = Configuration {
            outgoing: Members::new(),
            witnesses: next.witnesses.clone(),
            ..before.clone()
        };
        match left == *next {
            true => return,
            false => "a joint one is to be left first".to_owned(),
        }
    } else if next.voters != before.voters && next.outgoing != before.voters {
        "the voters change without a joint one".to_owned()
    } else if next.voters == before.voters && !next.outgoing.is_empty() {
        "it is joint, and the voters are the same".to_owned()
    } else if *unheard > 2 * *timeout {
        format!("it rests on voters that were not heard for {unheard:?}")
    } else {
        return;
    };
    at.broken(
        Checker::MemberChanges,
        format_args!("puts {next:?} after {before:?}: {why}"),
    );
}
