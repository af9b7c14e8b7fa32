//! Log matching, leader completeness and state machine safety (Raft figure 3).
//!
//! What logs take is remembered by position, with the term before it: where two logs agree on a
//! position they agree on all before it, by induction, without comparing it again. What is
//! committed is one sequence for good, whoever says so and whenever. So the log of a leader is
//! complete if it holds the last entry that was committed before its term.

use std::collections::{BTreeMap, BTreeSet};

use raft::{
    Configuration, Entry, Index, LeaseEpoch, LogPosition, NodeKey, Payload, SnapshotMeta, Term,
};

use super::{At, Checker};

/// What all logs together have held.
#[derive(Debug, Default)]
pub(super) struct Logs {
    /// By index, from 1: each entry that some log took there.
    taken: Vec<Vec<Taken>>,
    /// By index, from 1.
    committed: Vec<Committed>,
    /// The configurations among what is committed, ascending.
    configurations: Vec<(Index, Configuration)>,
    /// The lease epochs that it opens, ascending.
    epochs: Vec<(Index, LeaseEpoch)>,
    /// The configurations among what was taken, whether or not it was committed.
    proposed: Vec<(Index, Configuration)>,
    /// Everyone who is a member in any of these.
    members: BTreeSet<NodeKey>,
    /// How far was committed in which term, as whoever committed it saw the term.
    committed_in: BTreeMap<Term, Index>,
    leaders: BTreeMap<Term, Leader>,
}

#[derive(Debug)]
struct Taken {
    term: Term,
    payload: Payload,
    /// The term of the entry before it.
    past: Option<Term>,
}

#[derive(Debug)]
struct Committed {
    term: Term,
    /// The checksum of a state that has applied up to here and nothing else.
    digest: u32,
    /// The store's revision there, once some node has applied it.
    revision: Option<u64>,
}

#[derive(Debug)]
struct Leader {
    key: NodeKey,
    /// Where its log ended when it was elected, if that was seen.
    last: Option<LogPosition>,
}

impl Logs {
    pub(super) fn commits(&self) -> u64 {
        self.committed.len() as u64
    }

    /// The entry that is committed at `index`.
    pub(super) fn committed(&self, index: Index) -> Entry {
        let term = self.term_of_commit(index);
        let taken = self.taken(LogPosition { index, term });
        Entry {
            index,
            term,
            payload: taken.expect("some log took it").payload.clone(),
        }
    }

    /// The term of the entry that is committed at `index`; zero before the first.
    pub(super) fn term_of_commit(&self, index: Index) -> Term {
        let at = index.0.checked_sub(1);
        at.map_or(Term(0), |at| self.committed[at as usize].term)
    }

    /// The configuration in force where everything up to `index` is committed.
    pub(super) fn configuration_at(&self, index: Index) -> Option<&Configuration> {
        let later = self.configurations.partition_point(|(at, _)| *at <= index);
        let newest = self.configurations[..later].last();
        newest.map(|(_, configuration)| configuration)
    }

    /// The newest lease epoch where everything up to `index` is committed.
    pub(super) fn epoch_at(&self, index: Index) -> LeaseEpoch {
        let later = self.epochs.partition_point(|(at, _)| *at <= index);
        let newest = self.epochs[..later].last();
        newest.map(|(_, epoch)| *epoch).unwrap_or_default()
    }

    /// The last configuration that is committed, and all that any log took after it.
    pub(super) fn configurations_that_count(&self) -> Vec<Configuration> {
        let committed = self.configurations.last();
        let all = Index(self.commits());
        let later = self.proposed.iter().filter(|(at, _)| *at > all);
        let counting = committed.into_iter().chain(later);
        counting.map(|(_, c)| c.clone()).collect()
    }

    /// Whether any configuration that some log took has this member.
    pub(super) fn was_member(&self, key: NodeKey) -> bool {
        self.members.contains(&key)
    }

    pub(super) fn had_leader(&self) -> bool {
        !self.leaders.is_empty()
    }

    // Leaders.

    /// The last entry that was committed in a term before this.
    pub(super) fn committed_before(&self, term: Term) -> Index {
        let earlier = self.committed_in.range(..term).map(|(_, index)| *index);
        earlier.max().unwrap_or_default()
    }

    /// A node was elected. At the last entry that was committed before, or where its log begins
    /// if that is later, it holds `held`; what it had when it was elected ends at `last`.
    pub(super) fn leads(
        &mut self,
        at: At,
        key: NodeKey,
        term: Term,
        held: Option<LogPosition>,
        last: LogPosition,
    ) {
        self.speaks_as_leader(at, key, term);
        let through = self.committed_before(term);
        let complete = held.is_some_and(|held| held.index >= through && self.is_committed(held));
        if through > Index(0) && !complete {
            let committed = self.term_of_commit(through);
            at.broken(
                Checker::LeaderCompleteness,
                format_args!(
                    "the leader of term {term} holds {held:?} where {through}.{committed} was \
                     committed before"
                ),
            );
        }
        if let Some(leader) = self.leaders.get_mut(&term) {
            leader.last.get_or_insert(last);
        }
    }

    /// A node sends what only the leader of its term sends.
    pub(super) fn speaks_as_leader(&mut self, at: At, key: NodeKey, term: Term) {
        let leader = self.leaders.entry(term);
        let known = leader.or_insert(Leader { key, last: None }).key;
        if known != key {
            at.broken(
                Checker::OneLeaderPerTerm,
                format_args!("both {known} and {key} lead term {term}"),
            );
        }
    }

    /// Whether a log that ends at `last` is without the entry at `position`, as far as is known.
    fn lacks(&self, last: LogPosition, position: LogPosition) -> bool {
        let mut held = last;
        while held.index > position.index {
            let Some(past) = self.taken(held).and_then(|taken| taken.past) else {
                return false;
            };
            let index = held.index.previous();
            held = LogPosition { index, term: past };
        }
        held != position
    }

    // Entries.

    fn taken(&self, position: LogPosition) -> Option<&Taken> {
        let at = self.taken.get(position.index.0.checked_sub(1)? as usize)?;
        at.iter().find(|taken| taken.term == position.term)
    }

    /// A log takes entries after one of the term `before`, where that is known, and gives up what
    /// it held from `cut` on.
    pub(super) fn took(
        &mut self,
        at: At,
        entries: &[Entry],
        before: Option<Term>,
        cut: Option<LogPosition>,
    ) {
        if let Some(cut) = cut.filter(|cut| self.is_committed(*cut)) {
            at.broken(
                Checker::LeaderCompleteness,
                format_args!(
                    "gives up entry {}.{}, which is committed",
                    cut.index, cut.term
                ),
            );
        }
        let mut past = before;
        for entry in entries {
            self.took_one(at, entry, past);
            past = Some(entry.term);
        }
    }

    fn took_one(&mut self, at: At, entry: &Entry, past: Option<Term>) {
        let index = entry.index.0 as usize;
        if self.taken.len() < index {
            self.taken.resize_with(index, Vec::new);
        }
        let there = &mut self.taken[index - 1];
        let Some(known) = there.iter_mut().find(|taken| taken.term == entry.term) else {
            let (term, payload) = (entry.term, entry.payload.clone());
            if let Payload::Configuration(configuration) = &payload {
                self.members.extend(configuration.all_members());
                self.proposed.push((entry.index, configuration.clone()));
            }
            return there.push(Taken {
                term,
                payload,
                past,
            });
        };
        let differs = match (known.past, past) {
            _ if known.payload != entry.payload => "another content",
            (Some(known), Some(past)) if known != past => "another past",
            _ => {
                known.past = known.past.or(past);
                return;
            }
        };
        at.broken(
            Checker::LogMatching,
            format_args!(
                "entry {}.{} after {past:?} has {differs} than in another log, where it is after {:?}",
                entry.index, entry.term, known.past
            ),
        );
    }

    // Commits.

    fn is_committed(&self, position: LogPosition) -> bool {
        let Some(at) = position.index.0.checked_sub(1) else {
            return false;
        };
        let committed = self.committed.get(at as usize);
        committed.is_some_and(|committed| committed.term == position.term)
    }

    /// Entries are committed, as a node of the term `observer` says.
    pub(super) fn commits_entries(&mut self, at: At, entries: &[Entry], observer: Term) {
        for entry in entries {
            let taken = self.taken(entry.position());
            if taken.is_none_or(|taken| taken.payload != entry.payload) {
                at.broken(
                    Checker::LogMatching,
                    format_args!(
                        "commits an entry {}.{} that no log took so",
                        entry.index, entry.term
                    ),
                );
            }
            self.commits_one(at, entry, observer);
        }
    }

    fn commits_one(&mut self, at: At, entry: &Entry, observer: Term) {
        let position = entry.position();
        match self.committed.get(position.index.0 as usize - 1) {
            Some(committed) if committed.term == entry.term => return,
            Some(committed) => at.broken(
                Checker::StateMachineSafety,
                format_args!(
                    "commits {}.{} where {}.{} is committed",
                    position.index, position.term, position.index, committed.term
                ),
            ),
            None if position.index.0 == self.commits() + 1 => {}
            None => at.broken(
                Checker::StateMachineSafety,
                format_args!("commits {}, which leaves a gap", position.index),
            ),
        }
        self.check_later_leaders(at, position, observer);
        self.epochs
            .extend(opened_by(entry).map(|epoch| (position.index, epoch)));
        if let Payload::Configuration(configuration) = &entry.payload {
            let configuration = configuration.clone();
            self.configurations.push((position.index, configuration));
        }
        let digest = self.committed.last().map_or(0, |last| last.digest);
        self.committed.push(Committed {
            term: entry.term,
            digest: extended(digest, entry),
            revision: None,
        });
        let newest = self.committed_in.entry(observer).or_default();
        *newest = position.index;
    }

    /// A commit may come to light after a later leader was elected: it too must have it.
    fn check_later_leaders(&self, at: At, position: LogPosition, observer: Term) {
        for (term, leader) in self.leaders.range(observer.next()..) {
            let Some(last) = leader.last else { continue };
            if self.lacks(last, position) {
                at.broken(
                    Checker::LeaderCompleteness,
                    format_args!(
                        "commits {}.{} in term {observer}, which {}, leader of term {term}, was \
                         elected without",
                        position.index, position.term, leader.key
                    ),
                );
            }
        }
    }

    /// Entries that were committed and compacted in one step, up to the snapshot that stands for
    /// them.
    pub(super) fn commits_compacted(&mut self, at: At, last: LogPosition, observer: Term) {
        let mut position = last;
        let mut compacted = Vec::new();
        while position.index.0 > self.commits() {
            let Some(taken) = self.taken(position) else {
                at.broken(
                    Checker::StateMachineSafety,
                    format_args!(
                        "a snapshot of an entry that no log took: {}.{}",
                        position.index, position.term
                    ),
                );
            };
            compacted.push(Entry {
                index: position.index,
                term: position.term,
                payload: taken.payload.clone(),
            });
            let term = taken.past.unwrap_or_default();
            let index = position.index.previous();
            position = LogPosition { index, term };
        }
        compacted.reverse();
        self.commits_entries(at, &compacted, observer);
        if last.index > Index(0) && !self.is_committed(last) {
            at.broken(
                Checker::StateMachineSafety,
                format_args!(
                    "a snapshot of {}.{}, where another entry is committed",
                    last.index, last.term
                ),
            );
        }
    }

    /// A state machine has come to `index`.
    pub(super) fn applied(&mut self, at: At, index: Index, digest: u32, revision: u64) {
        let Some(place) = index.0.checked_sub(1) else {
            return;
        };
        let Some(committed) = self.committed.get_mut(place as usize) else {
            at.broken(
                Checker::StateMachineSafety,
                format_args!("has applied {index}, which is not committed"),
            );
        };
        if committed.digest != digest {
            at.broken(
                Checker::StateMachineSafety,
                format_args!("has applied something else than what is committed up to {index}"),
            );
        }
        let known = *committed.revision.get_or_insert(revision);
        if known != revision {
            at.broken(
                Checker::StateMachineSafety,
                format_args!("is at revision {revision} after {index}, another was at {known}"),
            );
        }
    }
}

/// The checksum of an applied sequence, one entry longer: what [`replica::Store::digest`] is said
/// to be.
fn extended(digest: u32, entry: &Entry) -> u32 {
    let mut crc = crc32fast::Hasher::new_with_initial(digest);
    crc.update(&entry.index.0.to_be_bytes());
    crc.update(&entry.term.0.to_be_bytes());
    if let Payload::Command(command) = &entry.payload {
        crc.update(&command.client.0.to_be_bytes());
        crc.update(&command.request.0.to_be_bytes());
        crc.update(&command.data);
    }
    crc.finalize()
}

/// What one log holds as its disk will have it once all writes are done: its terms, and what the
/// judge goes by.
#[derive(Clone, Debug)]
pub(super) struct Mirror {
    /// The index that `terms` begins with.
    first: Index,
    terms: Vec<Term>,
    configurations: Vec<(Index, Configuration)>,
    epochs: Vec<(Index, LeaseEpoch)>,
}

impl Default for Mirror {
    /// An empty log: before its first entry stands term 0.
    fn default() -> Mirror {
        Mirror {
            first: Index(0),
            terms: vec![Term(0)],
            configurations: Vec::new(),
            epochs: Vec::new(),
        }
    }
}

impl Mirror {
    pub(super) fn of(snapshot: Option<&SnapshotMeta>, entries: &[Entry]) -> Mirror {
        let mut mirror = Mirror::default();
        if let Some(meta) = snapshot {
            mirror.install(meta);
        }
        for entry in entries {
            if entry.index == mirror.end() {
                mirror.push(entry);
            }
        }
        mirror
    }

    fn push(&mut self, entry: &Entry) {
        self.terms.push(entry.term);
        if let Payload::Configuration(configuration) = &entry.payload {
            self.configurations
                .push((entry.index, configuration.clone()));
        }
        self.epochs
            .extend(opened_by(entry).map(|epoch| (entry.index, epoch)));
    }

    fn end(&self) -> Index {
        self.first + self.terms.len() as u64
    }

    /// Where it ends.
    pub(super) fn last(&self) -> LogPosition {
        let index = self.end().previous();
        let term = self.terms.last().copied().unwrap_or_default();
        LogPosition { index, term }
    }

    pub(super) fn term_at(&self, index: Index) -> Option<Term> {
        let at = index.0.checked_sub(self.first.0)?;
        self.terms.get(at as usize).copied()
    }

    /// The configuration in force at the end of the log, and where it stands.
    pub(super) fn configuration(&self) -> (Index, Configuration) {
        self.configurations.last().cloned().unwrap_or_default()
    }

    /// The configuration in force at `commit` and all that follow: one of them is the cluster's.
    pub(super) fn possible(&self, commit: Index) -> impl Iterator<Item = &Configuration> {
        let later = self.configurations.partition_point(|(at, _)| *at <= commit);
        let from = later.saturating_sub(1);
        self.configurations[from..].iter().map(|(_, c)| c)
    }

    /// The newest lease epoch in it.
    pub(super) fn epoch(&self) -> LeaseEpoch {
        self.epochs
            .last()
            .map(|(_, epoch)| *epoch)
            .unwrap_or_default()
    }

    /// A snapshot takes the place of what it stands for, or of everything.
    pub(super) fn install(&mut self, meta: &SnapshotMeta) {
        let last = meta.last;
        if self.term_at(last.index) != Some(last.term) {
            self.first = last.index;
            self.terms = vec![last.term];
            self.configurations = vec![(last.index, meta.configuration.clone())];
            self.epochs = vec![(last.index, meta.epoch)];
        }
    }

    /// Takes entries. Returns the term before them, and what is given up for them.
    pub(super) fn take(&mut self, entries: &[Entry]) -> (Option<Term>, Option<LogPosition>) {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return (None, None);
        };
        let before = self.term_at(first.index.previous());
        let differs = |entry: &&Entry| self.term_at(entry.index).is_some_and(|t| t != entry.term);
        let cut = entries.iter().find(differs).map(|entry| entry.index);
        let cut = cut.unwrap_or(last.index + 1);
        let cut = self
            .term_at(cut)
            .map(|term| LogPosition { index: cut, term });
        if first.index <= self.first || first.index > self.end() {
            self.first = first.index;
            self.terms.clear();
        }
        self.terms.truncate((first.index - self.first) as usize);
        self.configurations.retain(|(at, _)| *at < first.index);
        self.epochs.retain(|(at, _)| *at < first.index);
        entries.iter().for_each(|entry| self.push(entry));
        (before, cut)
    }
}

/// The lease epoch that an entry opens.
fn opened_by(entry: &Entry) -> Option<LeaseEpoch> {
    let number = match &entry.payload {
        Payload::Noop => 0,
        Payload::LeaseEpoch(number) => *number,
        Payload::Command(_) | Payload::Configuration(_) => return None,
    };
    let term = entry.term;
    Some(LeaseEpoch { term, number })
}
