//! The log as the core holds it: the entries since the last snapshot, in memory.
//!
//! What is on disk is tracked here too, as one index: everything up to `persisted` is durable.
//! Every operation that could contradict a committed entry is refused by the caller before it
//! gets here; the log itself only keeps its entries consecutive and its terms ascending.

use std::collections::VecDeque;

use crate::configuration::Configuration;
use crate::effect::Durable;
use crate::entry::{Entry, Payload, SnapshotMeta};
use crate::id::{Index, LogPosition, PersistSeq};

/// The entries since the last snapshot, and what of them is durable.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    /// The position that stands before the first entry held: the snapshot's end, or an earlier
    /// entry's once compaction has kept some behind the snapshot.
    base: LogPosition,
    /// Consecutive from `base.index + 1`; terms never descend.
    entries: VecDeque<Entry>,
    /// The configurations by the index that set them, ascending; the first is in force at `base`.
    configurations: VecDeque<(Index, Configuration)>,
    /// Everything up to here is on disk. Never beyond the last entry.
    persisted: Index,
    /// Writes under way and where the durable log ends once each is done; a truncation clamps
    /// those that it overtakes.
    writing: VecDeque<(PersistSeq, Index)>,
}

/// How an append fits the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// `prev` matches; entries from this one on (a count into the append) are new.
    New(usize),
    /// `prev` matches and every entry is here already.
    Known,
    /// `prev` is beyond the end or differs.
    Mismatch,
    /// An entry differs from one held here, at this index, which must go.
    Conflict(Index, usize),
}

impl Log {
    /// The log as the disk gave it back, all of it durable.
    pub(crate) fn recover(durable: &Durable) -> Log {
        let meta = durable
            .snapshot
            .as_ref()
            .map(|s| s.meta.clone())
            .unwrap_or_default();
        let mut log = Log {
            base: meta.last,
            entries: VecDeque::new(),
            configurations: VecDeque::from([(meta.last.index, meta.configuration)]),
            persisted: meta.last.index,
            writing: VecDeque::new(),
        };
        log.extend(
            durable
                .entries
                .iter()
                .filter(|e| e.index > meta.last.index)
                .cloned(),
        );
        log.persisted = log.last().index;
        log
    }

    /// The last entry's position, or the base's where there is none.
    pub(crate) fn last(&self) -> LogPosition {
        self.entries.back().map_or(self.base, Entry::position)
    }

    /// The position before the first entry held.
    pub(crate) fn base(&self) -> LogPosition {
        self.base
    }

    /// The term of the entry at `index`, where that is known.
    pub(crate) fn term_at(&self, index: Index) -> Option<crate::id::Term> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        self.entry(index).map(|entry| entry.term)
    }

    /// The position at `index`, where its term is known.
    pub(crate) fn position_at(&self, index: Index) -> Option<LogPosition> {
        self.term_at(index).map(|term| LogPosition { index, term })
    }

    fn entry(&self, index: Index) -> Option<&Entry> {
        let offset = index.0.checked_sub(self.base.index.0)?.checked_sub(1)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    /// The configuration in force: the newest in the log, committed or not (Raft §6).
    pub(crate) fn configuration(&self) -> &Configuration {
        &self
            .configurations
            .back()
            .expect("the base's configuration is never removed")
            .1
    }

    /// The configuration in force at `index`, which must not lie before the base.
    pub(crate) fn configuration_at(&self, index: Index) -> &Configuration {
        let at = self
            .configurations
            .iter()
            .rev()
            .find(|(from, _)| *from <= index);
        &at.unwrap_or_else(|| &self.configurations[0]).1
    }

    /// Entries from `from` to at most `through` and about `max_bytes`, at least one where there
    /// is any. Empty when `from` lies at or before the base: those are gone.
    pub(crate) fn slice(&self, from: Index, through: Index, max_bytes: usize) -> Vec<Entry> {
        let Some(start) = from.0.checked_sub(self.base.index.0 + 1) else {
            return Vec::new();
        };
        let wanted = (through + 1) - from;
        let mut bytes = 0;
        let mut entries = Vec::new();
        for entry in self
            .entries
            .iter()
            .skip(start as usize)
            .take(wanted as usize)
        {
            bytes += entry.size();
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        entries
    }

    /// Appends consecutive entries.
    pub(crate) fn extend(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            let last = self.last();
            assert_eq!(entry.index, last.index + 1, "log entries are consecutive");
            assert!(entry.term >= last.term, "terms in a log never descend");
            if let Payload::Configuration(configuration) = &entry.payload {
                self.configurations
                    .push_back((entry.index, configuration.clone()));
            }
            self.entries.push_back(entry);
        }
    }

    /// Where entries that are to follow `prev` stand against the log.
    pub(crate) fn fit(&self, prev: LogPosition, entries: &[Entry]) -> Fit {
        // What lies before the base is in a snapshot, hence committed, hence equal. The base
        // itself is compared: entries after it must not descend below its term.
        let skip = (self.base.index - prev.index).saturating_sub(1);
        let prev_known =
            prev.index < self.base.index || self.term_at(prev.index) == Some(prev.term);
        if !prev_known {
            return Fit::Mismatch;
        }
        for (n, entry) in entries.iter().enumerate().skip(skip as usize) {
            match self.term_at(entry.index) {
                Some(term) if term == entry.term => {}
                Some(_) => return Fit::Conflict(entry.index, n),
                None => return Fit::New(n),
            }
        }
        Fit::Known
    }

    /// Removes the entry at `from` and all after it.
    pub(crate) fn truncate(&mut self, from: Index) {
        assert!(
            from > self.base.index,
            "a snapshot's entries are never truncated"
        );
        let keep = from - (self.base.index + 1);
        self.entries.truncate(keep as usize);
        while self.configurations.len() > 1
            && self
                .configurations
                .back()
                .is_some_and(|(index, _)| *index >= from)
        {
            self.configurations.pop_back();
        }
        let end = from.previous();
        self.persisted = self.persisted.min(end);
        for (_, through) in &mut self.writing {
            *through = (*through).min(end);
        }
    }

    /// The last entry at or before `from` whose term is not above its term: what a rejection
    /// hints at and where a leader starts to look.
    pub(crate) fn agreeing_position(&self, from: LogPosition) -> LogPosition {
        let mut index = from.index.min(self.last().index);
        while let Some(position) = self.position_at(index) {
            if position.term <= from.term || index <= self.base.index {
                return position;
            }
            index = index.previous();
        }
        self.base
    }

    /// Remembers that write `seq`, once done, makes everything now in the log durable.
    pub(crate) fn write_begun(&mut self, seq: PersistSeq) {
        self.writing.push_back((seq, self.last().index));
    }

    /// Takes note that all writes up to `seq` are done.
    pub(crate) fn write_done(&mut self, seq: PersistSeq) {
        while let Some((_, through)) = self.writing.pop_front_if(|(begun, _)| *begun <= seq) {
            self.persisted = self.persisted.max(through);
        }
    }

    /// Everything up to here is on disk.
    pub(crate) fn persisted(&self) -> Index {
        self.persisted
    }

    /// Puts a snapshot in place of the log's beginning. Entries after it stay if the log agrees
    /// with it, up to `trailing` entries before it too; otherwise nothing stays.
    ///
    /// Returns whether the whole log went.
    pub(crate) fn install(&mut self, meta: &SnapshotMeta) -> bool {
        let agrees = self.term_at(meta.last.index) == Some(meta.last.term);
        if agrees {
            self.compact(meta.last.index);
        } else {
            self.base = meta.last;
            self.entries.clear();
            self.configurations.clear();
            self.configurations
                .push_back((meta.last.index, meta.configuration.clone()));
            self.persisted = Index(0);
            for (_, through) in &mut self.writing {
                *through = Index(0);
            }
        }
        !agrees
    }

    /// Forgets the entries up to `through`, which a durable snapshot contains.
    pub(crate) fn compact(&mut self, through: Index) {
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.index <= through) {
            self.base = entry.position();
        }
        while self.configurations.len() > 1 && self.configurations[1].0 <= self.base.index {
            self.configurations.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Term;

    fn entry(index: u64, term: u64) -> Entry {
        Entry {
            index: Index(index),
            term: Term(term),
            payload: Payload::Noop,
        }
    }

    /// A log with the given terms, from index 1.
    fn log(terms: &[u64]) -> Log {
        let mut log = Log::recover(&Durable::default());
        log.extend(
            terms
                .iter()
                .zip(1..)
                .map(|(term, index)| entry(index, *term)),
        );
        log
    }

    fn at(index: u64, term: u64) -> LogPosition {
        LogPosition {
            index: Index(index),
            term: Term(term),
        }
    }

    #[test]
    fn fit_of_appends() {
        let log = log(&[1, 2, 3]);
        let cases: &[(LogPosition, &[Entry], Fit)] = &[
            (at(3, 3), &[entry(4, 3)], Fit::New(0)),
            (at(2, 2), &[entry(3, 3), entry(4, 3)], Fit::New(1)),
            (at(0, 0), &[entry(1, 1), entry(2, 2)], Fit::Known),
            (at(3, 3), &[], Fit::Known),
            (at(4, 3), &[], Fit::Mismatch),
            (at(3, 4), &[], Fit::Mismatch),
            (at(1, 1), &[entry(2, 4)], Fit::Conflict(Index(2), 0)),
            (
                at(0, 0),
                &[entry(1, 1), entry(2, 2), entry(3, 4)],
                Fit::Conflict(Index(3), 2),
            ),
        ];
        for (prev, entries, expected) in cases {
            assert_eq!(log.fit(*prev, entries), *expected, "{prev:?}");
        }
    }

    #[test]
    fn fit_below_the_base() {
        let mut log = log(&[1, 1, 2, 2]);
        log.compact(Index(3));
        assert_eq!(log.base(), at(3, 2));
        assert_eq!(log.fit(at(1, 1), &[entry(2, 1), entry(3, 2)]), Fit::Known);
        assert_eq!(
            log.fit(
                at(1, 1),
                &[entry(2, 1), entry(3, 2), entry(4, 2), entry(5, 2)]
            ),
            Fit::New(3)
        );
        assert_eq!(
            log.fit(at(1, 1), &[entry(2, 1), entry(3, 1), entry(4, 1)]),
            Fit::Conflict(Index(3), 1),
            "an append that contradicts the snapshot must not slip past it"
        );
    }

    /// A write that a truncation overtakes makes durable only what the truncation left.
    #[test]
    fn truncation_clamps_writes_under_way() {
        let mut log = log(&[1, 1, 1]);
        log.write_begun(PersistSeq(1));
        log.truncate(Index(2));
        log.extend([entry(2, 2), entry(3, 2)]);
        log.write_begun(PersistSeq(2));
        log.write_done(PersistSeq(1));
        assert_eq!(log.persisted(), Index(1));
        log.write_done(PersistSeq(2));
        assert_eq!(log.persisted(), Index(3));
    }

    /// A hint skips whole terms: figure 7 of the paper, the follower's view.
    #[test]
    fn agreeing_positions() {
        let log = log(&[1, 1, 1, 4, 4, 5, 5, 6, 6, 6]);
        assert_eq!(log.agreeing_position(at(9, 3)), at(3, 1));
        assert_eq!(log.agreeing_position(at(12, 6)), at(10, 6));
        assert_eq!(log.agreeing_position(at(6, 5)), at(6, 5));
        assert_eq!(log.agreeing_position(at(0, 0)), at(0, 0));
    }
}
