//! The log as the core holds it: the entries since the last snapshot, in memory.
//!
//! What is on disk is tracked here too, as one index: everything up to `persisted` is durable.
//! Every operation that could contradict a committed entry is refused by the caller before it
//! gets here; the log itself only keeps its entries consecutive and its terms ascending.

use std::collections::VecDeque;

use crate::configuration::Configuration;
use crate::effect::Durable;
use crate::entry::{Entry, Payload, SnapshotMeta};
use crate::id::{Index, LeaseEpoch, LogPosition, PersistSeq};

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
    /// The lease epochs by the index that opened them, in the same manner.
    epochs: VecDeque<(Index, LeaseEpoch)>,
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
            epochs: VecDeque::from([(meta.last.index, meta.epoch)]),
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

    /// Where the configuration in force was set.
    pub(crate) fn configured_at(&self) -> Index {
        self.configurations.back().map_or(Index(0), |(at, _)| *at)
    }

    /// The configuration in force at `index`, which must not lie before the base.
    pub(crate) fn configuration_at(&self, index: Index) -> &Configuration {
        // A log that is far ahead of what is known to be committed may hold hundreds.
        let later = self
            .configurations
            .partition_point(|(from, _)| *from <= index);
        &self.configurations[later.saturating_sub(1)].1
    }

    /// The configuration in force at `index` and all that were set after it: of those that may yet
    /// turn out to be the cluster's, one.
    pub(crate) fn configurations_from(&self, index: Index) -> impl Iterator<Item = &Configuration> {
        let later = self.configurations.iter().rev();
        let later = later.take_while(move |(at, _)| *at > index);
        let at = std::iter::once(self.configuration_at(index));
        let of = later.map(|(_, configuration)| configuration).chain(at);
        // Before the first record there is none.
        of.filter(|configuration| !configuration.voters.is_empty())
    }

    /// The newest lease epoch that the log opens.
    pub(crate) fn epoch(&self) -> LeaseEpoch {
        self.epochs
            .back()
            .map(|(_, epoch)| *epoch)
            .unwrap_or_default()
    }

    /// The newest lease epoch at `index`, which must not lie before the base.
    pub(crate) fn epoch_at(&self, index: Index) -> LeaseEpoch {
        let at = self.epochs.iter().rev().find(|(from, _)| *from <= index);
        at.map(|(_, epoch)| *epoch).unwrap_or_default()
    }

    /// Entries from `from` to at most `through`. None when `from` lies at or before the base: those
    /// are gone.
    pub(crate) fn range(&self, from: Index, through: Index) -> impl Iterator<Item = &Entry> {
        let (skip, wanted) = match from.0.checked_sub(self.base.index.0 + 1) {
            Some(start) => (start, (through + 1) - from),
            None => (0, 0),
        };
        let held = self.entries.iter().skip(skip as usize);
        held.take(wanted as usize)
    }

    /// Entries from `from` to at most `through` and about `max_bytes`, at least one where there
    /// is any. Empty when `from` lies at or before the base: those are gone.
    pub(crate) fn slice(&self, from: Index, through: Index, max_bytes: usize) -> Vec<Entry> {
        if max_bytes == usize::MAX {
            return self.range(from, through).cloned().collect();
        }
        let mut bytes = 0;
        let mut entries = Vec::new();
        for entry in self.range(from, through) {
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
            if let Some(epoch) = entry.opens() {
                self.epochs.push_back((entry.index, epoch));
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
        while self.epochs.len() > 1 && self.epochs.back().is_some_and(|(index, _)| *index >= from) {
            self.epochs.pop_back();
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
            self.epochs = VecDeque::from([(meta.last.index, meta.epoch)]);
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
        while self.epochs.len() > 1 && self.epochs[1].0 <= self.base.index {
            self.epochs.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::configuration::Settings;
    use crate::entry::{Command, Snapshot};
    use crate::id::{ClientId, NodeKey, RequestNumber, Term};

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

    /// A disk that still holds entries which its snapshot contains gives back those after it.
    #[test]
    fn recovery_begins_after_the_snapshot() {
        let meta = SnapshotMeta {
            last: at(3, 1),
            configuration: Configuration::default(),
            epoch: crate::id::LeaseEpoch::default(),
        };
        let data = bytes::Bytes::new();
        let durable = Durable {
            snapshot: Some(Snapshot { meta, data }),
            entries: (2..=5).map(|index| entry(index, 1)).collect(),
            ..Durable::default()
        };
        let log = Log::recover(&durable);
        assert_eq!((log.base(), log.last()), (at(3, 1), at(5, 1)));
        assert_eq!(log.persisted(), Index(5));
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
    // Against a twin that never forgets.

    /// All entries there ever were at their places, the compacted ones too, and a disk that holds
    /// entries instead of an index. Nothing in it is tracked: every answer is looked up.
    #[derive(Clone, Debug, Default)]
    struct Twin {
        base: usize,
        entries: Vec<Entry>,
        disk: Vec<Entry>,
        /// What each write under way does to the disk.
        writes: Vec<(PersistSeq, Write)>,
    }

    #[derive(Clone, Debug)]
    enum Write {
        /// Puts these in place of all from the first one's index on.
        Entries(Vec<Entry>),
        /// Puts a snapshot of these in place of the whole log.
        Everything(Vec<Entry>),
        /// Puts a snapshot in place of entries that are there.
        Nothing,
    }

    impl Twin {
        fn position(&self, index: usize) -> LogPosition {
            match index {
                0 => LogPosition::default(),
                _ => self.entries[index - 1].position(),
            }
        }

        fn last(&self) -> usize {
            self.entries.len()
        }

        fn append(&mut self, from: usize, entries: Vec<Entry>) {
            self.entries.truncate(from - 1);
            self.entries.extend(entries);
        }

        fn write(&mut self, write: Write) -> PersistSeq {
            let seq = PersistSeq(self.writes.last().map_or(1, |(seq, _)| seq.0 + 1));
            self.writes.push((seq, write));
            seq
        }

        /// The disk carries out all writes up to `seq` that it has not yet.
        fn carry_out(&mut self, seq: PersistSeq) {
            let mut disk = Vec::new();
            for (_, write) in self.writes.iter().filter(|(begun, _)| *begun <= seq) {
                match write {
                    Write::Entries(entries) => {
                        disk.truncate(entries[0].index.0 as usize - 1);
                        disk.extend(entries.iter().cloned());
                    }
                    Write::Everything(entries) => disk.clone_from(entries),
                    Write::Nothing => {}
                }
            }
            self.disk = disk;
        }

        /// How far disk and log are equal.
        fn persisted(&self) -> usize {
            let pairs = self.entries.iter().zip(&self.disk);
            pairs.take_while(|(log, disk)| log == disk).count()
        }

        fn fit(&self, prev: LogPosition, entries: &[Entry]) -> Fit {
            let at = prev.index.0 as usize;
            let compacted = at < self.base;
            if at > self.last() || (!compacted && self.position(at) != prev) {
                return Fit::Mismatch;
            }
            for (n, entry) in entries.iter().enumerate() {
                let at = entry.index.0 as usize;
                if at > self.last() {
                    return Fit::New(n);
                }
                if at >= self.base && self.position(at).term != entry.term {
                    return Fit::Conflict(entry.index, n);
                }
            }
            Fit::Known
        }

        fn agreeing_position(&self, from: LogPosition) -> LogPosition {
            let places = (self.base..=self.last()).map(|index| self.position(index));
            let fits = |place: &LogPosition| place.index <= from.index && place.term <= from.term;
            let agrees = places.rev().find(fits);
            agrees.unwrap_or(self.position(self.base))
        }

        fn slice(&self, from: usize, through: usize, max_bytes: usize) -> Vec<Entry> {
            if from <= self.base {
                return Vec::new();
            }
            let wanted = self.entries.iter().skip(from - 1);
            let wanted = wanted.take_while(|entry| entry.index.0 as usize <= through);
            let mut taken: Vec<Entry> = Vec::new();
            for entry in wanted {
                let bytes: usize = taken.iter().map(Entry::size).sum();
                if !taken.is_empty() && bytes + entry.size() > max_bytes {
                    break;
                }
                taken.push(entry.clone());
            }
            taken
        }

        fn configuration_at(&self, index: usize) -> Configuration {
            let up_to = self.entries.iter().take(index).rev();
            let set = up_to.filter_map(|entry| match &entry.payload {
                Payload::Configuration(configuration) => Some(configuration.clone()),
                _ => None,
            });
            set.take(1).last().unwrap_or_default()
        }
    }

    /// One step of a node, as far as its log is concerned.
    #[derive(Clone, Copy, Debug)]
    enum Act {
        /// A leader's entries, `back` before the end: 0 appends, more truncates first.
        Append { back: usize, count: usize },
        /// The disk confirms a write.
        Persisted { nth: usize },
        /// The state machine saved itself.
        Compact { through: usize },
        /// A leader's snapshot, `ahead` beyond the end, or of an entry that is here.
        Install { ahead: usize, through: usize },
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            5 => (0..4_usize, 1..4_usize).prop_map(|(back, count)| Act::Append { back, count }),
            3 => (0..4_usize).prop_map(|nth| Act::Persisted { nth }),
            1 => (0..4_usize).prop_map(|through| Act::Compact { through }),
            1 => (0..3_usize, 0..4_usize)
                .prop_map(|(ahead, through)| Act::Install { ahead, through }),
        ]
    }

    /// Both logs through the same steps.
    struct Pair {
        log: Log,
        twin: Twin,
        /// Grows at every truncation, as it does where a new leader overwrites an old one's.
        term: u64,
        /// No two entries are equal, so that equality is never an accident.
        made: u64,
        confirmed: PersistSeq,
    }

    impl Pair {
        fn new() -> Pair {
            Pair {
                log: Log::recover(&Durable::default()),
                twin: Twin::default(),
                term: 1,
                made: 0,
                confirmed: PersistSeq(0),
            }
        }

        fn make(&mut self, index: usize) -> Entry {
            self.made += 1;
            let made = self.made;
            let payload = match made % 5 {
                0 => {
                    let voter = (NodeKey(made.into()), String::new());
                    let members = [voter].into_iter().collect();
                    Payload::Configuration(Configuration::of(members, Settings::default()))
                }
                _ => Payload::Command(Command {
                    client: ClientId(1),
                    request: RequestNumber(made),
                    data: vec![0; made as usize % 40].into(),
                }),
            };
            Entry {
                payload,
                ..entry(index as u64, self.term)
            }
        }

        fn act(&mut self, act: Act) {
            match act {
                Act::Append { back, count } => {
                    let from =
                        (self.twin.last() + 1 - back.min(self.twin.last())).max(self.twin.base + 1);
                    if from <= self.twin.last() {
                        self.term += 1;
                        self.log.truncate(Index(from as u64));
                    }
                    let entries: Vec<Entry> =
                        (from..from + count).map(|index| self.make(index)).collect();
                    self.log.extend(entries.clone());
                    self.twin.append(from, entries.clone());
                    let seq = self.twin.write(Write::Entries(entries));
                    self.log.write_begun(seq);
                }
                Act::Persisted { nth } => {
                    let begun = self.twin.writes.iter().map(|(seq, _)| *seq);
                    let waiting = begun.filter(|seq| *seq > self.confirmed).nth(nth);
                    if let Some(seq) = waiting {
                        self.confirmed = seq;
                        self.twin.carry_out(seq);
                        self.log.write_done(seq);
                    }
                }
                Act::Compact { through } => {
                    let through = (self.twin.base + through).min(self.twin.last());
                    self.log.compact(Index(through as u64));
                    self.twin.base = through;
                }
                Act::Install { ahead: 0, through } => {
                    let through = (self.twin.base + through).min(self.twin.last());
                    let gone = self.log.install(&self.meta(through));
                    assert!(!gone, "the log agrees with the snapshot");
                    self.twin.base = through;
                    let seq = self.twin.write(Write::Nothing);
                    self.log.write_begun(seq);
                }
                Act::Install { ahead, .. } => {
                    let last = self.twin.last() + ahead;
                    self.term += 1;
                    let entries: Vec<Entry> = (1..=last).map(|index| self.make(index)).collect();
                    self.twin.entries.clone_from(&entries);
                    self.twin.base = last;
                    let gone = self.log.install(&self.meta(last));
                    assert!(gone, "nothing of the log agrees with the snapshot");
                    let seq = self.twin.write(Write::Everything(entries));
                    self.log.write_begun(seq);
                }
            }
        }

        fn meta(&self, through: usize) -> SnapshotMeta {
            SnapshotMeta {
                last: self.twin.position(through),
                configuration: self.twin.configuration_at(through),
                epoch: crate::id::LeaseEpoch::default(),
            }
        }

        /// All that can be asked of a log, at every place.
        fn compare(&self) {
            let Pair { log, twin, .. } = self;
            let (base, last) = (twin.base, twin.last());
            assert_eq!(log.base(), twin.position(base));
            assert_eq!(log.last(), twin.position(last));
            assert_eq!(log.persisted(), Index(twin.persisted() as u64));
            assert_eq!(*log.configuration(), twin.configuration_at(last));
            let set = |entry: &&Entry| matches!(entry.payload, Payload::Configuration(_));
            let held = twin.entries[base..].iter().filter(set).count();
            assert_eq!(
                log.configurations.len(),
                1 + held,
                "none is kept for nothing"
            );
            for index in 0..=last + 2 {
                let held = (base..=last).contains(&index);
                let at = Index(index as u64);
                assert_eq!(log.position_at(at), held.then(|| twin.position(index)));
                if held {
                    assert_eq!(*log.configuration_at(at), twin.configuration_at(index));
                }
                for other in index..=last + 2 {
                    for max_bytes in [0, 60, 150, usize::MAX] {
                        assert_eq!(
                            log.slice(at, Index(other as u64), max_bytes),
                            twin.slice(index, other, max_bytes),
                            "{index}..={other}, {max_bytes} bytes"
                        );
                    }
                }
                for term in 0..=self.term + 1 {
                    let from = LogPosition {
                        index: at,
                        term: Term(term),
                    };
                    assert_eq!(log.agreeing_position(from), twin.agreeing_position(from));
                    for count in 0..4 {
                        for differs_from in 0..=count {
                            let append = self.append_after(index, count, differs_from);
                            assert_eq!(
                                log.fit(from, &append),
                                twin.fit(from, &append),
                                "{from:?} {append:?}"
                            );
                        }
                    }
                }
            }
        }

        /// What a leader might send after `prev`: the log's own entries, from one on another's.
        fn append_after(&self, prev: usize, count: usize, differs_from: usize) -> Vec<Entry> {
            let of = |n: usize| {
                let index = prev + 1 + n;
                let same = self.twin.entries.get(index - 1);
                let other = entry(index as u64, self.term + 1);
                same.filter(|_| n < differs_from).cloned().unwrap_or(other)
            };
            (0..count).map(of).collect()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None, cases: 128, ..ProptestConfig::default()
        })]

        /// Appends, truncations, snapshots, compactions and late confirmations in any order leave
        /// the log and the twin with the same answers. `persisted` is the strictest of them: it
        /// must be exactly how far the disk's own entries equal the log's.
        #[test]
        fn the_log_answers_as_one_that_never_forgets(acts in vec(act(), 1..14)) {
            let mut pair = Pair::new();
            for act in acts {
                pair.act(act);
                pair.compare();
            }
        }
    }
}
