//! The judge: sees every node's state and every disk, which no node does, and stops the run at
//! the first broken promise.

use std::collections::BTreeMap;

use raft::message::Body;
use raft::{
    Durable, Entry, HardState, Index, LogPosition, NodeKey, Payload, Persist, Raft, Role, Term,
    Time,
};
use replica::{Effect, Formation, Holds, Publish, Replica, Topic, Topics};

use crate::disk::Disk;
use crate::event::Micros;
use crate::trace;
use crate::world::World;

/// What was last seen of one process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    term: Term,
    role: Option<Role>,
    commit: Index,
    applied: Index,
    revision: u64,
    lease: Option<raft::Lease>,
    /// The terms of the log as the disk will have it once all writes are done.
    terms: BTreeMap<Index, Term>,
}

impl Seen {
    /// Nothing yet of a process that starts from this.
    pub(crate) fn of(durable: &Durable) -> Seen {
        let snapshot = durable.snapshot.as_ref().map(|s| s.meta.last);
        let entries = durable.entries.iter().map(Entry::position);
        let positions = snapshot.into_iter().chain(entries);
        Seen {
            terms: positions.map(|p| (p.index, p.term)).collect(),
            ..Seen::default()
        }
    }
}

/// A time, in true microseconds, in which a node calls itself the only leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    term: Term,
    from: Micros,
    until: Micros,
}

/// What has been established for good.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    /// Which formation has had a leader.
    formation: Option<Formation>,
    leaders: BTreeMap<Term, NodeKey>,
    /// Entries by position: their payload, and the term before them.
    entries: BTreeMap<(Index, Term), (Payload, Option<Term>)>,
    /// What is committed, and in which leader's term it became so.
    committed: Vec<(Entry, Term)>,
    digests: BTreeMap<Index, u32>,
    /// Claims that were in force for a time, by host.
    claimed: Vec<(usize, Claim)>,
    claiming: BTreeMap<usize, Claim>,
    /// Disks that were wiped: what they held was promised once.
    pub(crate) graveyard: Vec<Disk>,
    pub(crate) elections: u64,
    pub(crate) snapshots: u64,
}

impl Judge {
    pub(crate) fn commits(&self) -> u64 {
        self.committed.len() as u64
    }

    /// All voters were wiped by hand: a new world, if the old one had never had a leader.
    pub(crate) fn start_over(&mut self) {
        assert!(
            self.leaders.is_empty(),
            "only a leaderless cluster is wiped"
        );
        *self = Judge::default();
    }

    fn learn_formation(&mut self, formation: Formation) {
        let known = self.formation.get_or_insert_with(|| formation.clone());
        assert_eq!(*known, formation, "two formations have had a leader");
    }

    fn leader(&mut self, raft: &Raft) {
        let known = *self.leaders.entry(raft.term()).or_insert(raft.me());
        assert_eq!(known, raft.me(), "two leaders in term {}", raft.term());
    }

    /// A leader holds what was committed in earlier terms; it may itself be late, and know
    /// nothing of later ones.
    fn leader_is_complete(&self, raft: &Raft) {
        let earlier = self
            .committed
            .partition_point(|(_, term)| *term < raft.term());
        let base = raft.first_index();
        let held = raft.entries(base + 1);
        for (committed, _) in self.committed[..earlier].iter().skip(base.0 as usize) {
            let held = held.get((committed.index - base - 1) as usize);
            assert_eq!(
                held,
                Some(committed),
                "leader {} of term {} lacks what was committed before",
                raft.me(),
                raft.term()
            );
        }
    }

    /// An entry that a log takes: one position, one payload, one past.
    fn entry(&mut self, entry: &Entry, before: Option<Term>) {
        let position = (entry.index, entry.term);
        let Some((payload, past)) = self.entries.get_mut(&position) else {
            let seen = (entry.payload.clone(), before);
            self.entries.insert(position, seen);
            return;
        };
        assert_eq!(*payload, entry.payload, "two entries at {position:?}");
        if let (Some(past), Some(before)) = (*past, before) {
            assert_eq!(past, before, "two pasts of the entry at {position:?}");
        }
        *past = past.or(before);
    }

    /// Entries that were committed and compacted in one step, up to the snapshot that stands for
    /// them.
    fn commit_compacted(&mut self, last: LogPosition, observer: Term) {
        let mut position = (last.index, last.term);
        let mut compacted = Vec::new();
        while position.0.0 > self.commits() {
            let Some((payload, past)) = self.entries.get(&position) else {
                panic!("a snapshot of an entry that nobody wrote: {position:?}");
            };
            compacted.push(Entry {
                index: position.0,
                term: position.1,
                payload: payload.clone(),
            });
            position = (position.0.previous(), past.unwrap_or_default());
        }
        compacted.reverse();
        self.commit(&compacted, observer);
    }

    /// Returns the entries that were committed for the first time.
    fn commit(&mut self, entries: &[Entry], observer: Term) -> Vec<Entry> {
        let mut new = Vec::new();
        for entry in entries {
            let at = entry.index.0 as usize - 1;
            match self.committed.get(at) {
                Some((committed, _)) => {
                    assert_eq!(committed, entry, "two commits at {}", entry.index);
                }
                None if at == self.committed.len() => {
                    self.committed.push((entry.clone(), observer));
                    new.push(entry.clone());
                }
                None => panic!("commit {} leaves a gap", entry.index),
            }
        }
        new
    }

    fn digest(&mut self, index: Index, digest: u32) {
        let known = *self.digests.entry(index).or_insert(digest);
        assert_eq!(known, digest, "two states at {index}");
    }

    // Leases.

    fn claim(&mut self, host: usize, claim: Option<Claim>, now: Micros) {
        if self.claiming.get(&host) == claim.as_ref() {
            return;
        }
        self.claim_ends(host, now);
        if let Some(claim) = claim {
            let from = claim.from.max(now);
            self.claiming.insert(host, Claim { from, ..claim });
        }
    }

    /// A claim changes or its process is gone: what of it came true?
    pub(crate) fn claim_ends(&mut self, host: usize, now: Micros) {
        let Some(claim) = self.claiming.remove(&host) else {
            return;
        };
        let until = claim.until.min(now);
        if until > claim.from {
            self.claim_held(host, Claim { until, ..claim });
        }
    }

    fn claim_held(&mut self, host: usize, claim: Claim) {
        let others = self
            .claimed
            .iter()
            .rev()
            .filter(|(other, _)| *other != host);
        for (other, earlier) in others.take(64) {
            assert!(
                claim.from >= earlier.until || earlier.from >= claim.until,
                "two exclusive leaders: {host} {claim:?} and {other} {earlier:?}"
            );
            assert_eq!(
                claim.from >= earlier.until,
                claim.term > earlier.term,
                "fencing tokens must grow: {host} {claim:?} and {other} {earlier:?}"
            );
        }
        match self.claimed.last_mut() {
            Some((last, held))
                if *last == host && held.term == claim.term && held.until == claim.from =>
            {
                held.until = claim.until;
            }
            _ => self.claimed.push((host, claim)),
        }
    }

    pub(crate) fn exclusive(&self) -> Micros {
        let held = self
            .claimed
            .iter()
            .map(|(_, claim)| claim.until - claim.from);
        held.sum()
    }
}

impl World {
    /// Looks at a node after a step.
    pub(crate) fn observe(&mut self, host: usize, effects: &[Effect]) {
        let Some(replica) = self.hosts[host].replica() else {
            return;
        };
        let seen = &self.hosts[host].seen;
        let revision = replica.store().revision();
        assert!(revision >= seen.revision, "revisions never go back");
        let Some(raft) = replica.raft() else {
            return;
        };
        let (term, role) = (raft.term(), Some(raft.role()));
        let (commit, applied) = (raft.commit_index(), replica.store().applied());
        let judge = &mut self.judge;
        if role == Some(Role::Leader) {
            judge.leader(raft);
            if seen.role != role || seen.term != term {
                judge.elections += 1;
                judge.leader_is_complete(raft);
                let record = self.hosts[host].disk.formation.as_deref();
                let Some(Holds::Formed(formation)) = record.and_then(holds) else {
                    panic!("a leader without a formed cluster on its disk");
                };
                judge.learn_formation(formation);
            }
        }
        let mut new = Vec::new();
        for effect in effects {
            if let Effect::Persist(Persist {
                snapshot: Some(save),
                ..
            }) = effect
            {
                judge.commit_compacted(save.snapshot.meta.last, term);
            }
        }
        if commit > seen.commit {
            let from = seen.commit.max(raft.first_index()) + 1;
            let mut entries = raft.entries(from);
            entries.truncate((commit + 1 - from) as usize);
            new = judge.commit(&entries, term);
        }
        if applied != seen.applied {
            judge.digest(applied, replica.store().digest());
        }
        let new_entry = new.last().map(|entry| (entry.index, entry.term));
        let seen = &mut self.hosts[host].seen;
        (seen.term, seen.role, seen.commit) = (term, role, commit);
        (seen.applied, seen.revision) = (applied, revision);
        if let Some((index, term)) = new_entry {
            self.trace.mix(index.0 ^ term.0 << 32);
            self.check_held_by_quorum(index, term);
        }
    }

    /// What is committed is on the disks of a majority, or was when they were wiped.
    fn check_held_by_quorum(&self, index: Index, term: Term) {
        let Some(formation) = &self.judge.formation else {
            panic!("a commit without a leader");
        };
        let disks = self.hosts.iter().map(|host| &host.disk);
        let disks = disks.chain(&self.judge.graveyard);
        let holders = disks
            .filter(|disk| formation.voters.contains_key(&disk.key) && disk.holds(index, term))
            .count();
        assert!(
            2 * holders > formation.voters.len(),
            "entry {index} of term {term} was committed with {holders} holders of {}",
            formation.voters.len()
        );
    }

    /// What a log takes fits what all other logs took.
    pub(crate) fn check_entries(&mut self, host: usize, persist: &Persist) {
        let seen = &mut self.hosts[host].seen;
        if let Some(save) = &persist.snapshot {
            self.judge.snapshots += 1;
            let last = save.snapshot.meta.last;
            seen.terms.insert(last.index, last.term);
        }
        let Some(first) = persist.entries.first() else {
            return;
        };
        seen.terms.split_off(&first.index);
        let mut before = seen.terms.get(&first.index.previous()).copied();
        for entry in &persist.entries {
            self.judge.entry(entry, before);
            before = Some(entry.term);
            seen.terms.insert(entry.index, entry.term);
        }
    }

    /// Persist before promise: what a frame says of the sender's disk is on it.
    pub(crate) fn check_promise(&mut self, host: usize, publish: &Publish) {
        let Some(message) = trace::consensus(&publish.payload) else {
            return;
        };
        let h = &self.hosts[host];
        let raft = h.replica().and_then(Replica::raft).expect("it speaks");
        let votes = raft.configuration().is_voter(raft.me());
        let disk = &h.disk;
        let HardState { term, voted_for } = disk.durable.hard_state;
        // The formation record stands for term 1 and entry 1 until they are written themselves.
        let formed = Index(u64::from(votes));
        let term = term.max(Term(formed.0));
        let last_index = disk.last_index().max(formed);
        let promised = match &message.body {
            Body::RequestPreVote(_) => votes,
            Body::RequestVote(_) => {
                let own = term == message.term && voted_for == Some(disk.key);
                votes && (own || term > message.term)
            }
            Body::Vote(vote) if vote.granted => {
                let to = self.topic_receiver(publish);
                let name = voted_for.and_then(|key| raft.configuration().name(key));
                let given = term == message.term && name == to.as_deref();
                votes && (given || term > message.term)
            }
            Body::Acknowledge(acknowledge) => {
                term >= message.term && last_index >= acknowledge.match_index
            }
            Body::PreVote(_)
            | Body::Vote(_)
            | Body::Append(_)
            | Body::Reject(_)
            | Body::SnapshotChunk(_)
            | Body::SnapshotProgress(_) => term >= message.term,
        };
        assert!(
            promised,
            "{} says {message:?} with {:?} and log end {} on its disk",
            h.name,
            disk.durable.hard_state,
            disk.last_index()
        );
    }

    fn topic_receiver(&self, publish: &Publish) -> Option<String> {
        let topics = Topics::new("raft", &self.profile.cluster).ok()?;
        match topics.parse(&publish.topic)? {
            Topic::Unicast { to, .. } => Some(to.to_string()),
            Topic::Broadcast { .. } | Topic::Status { .. } => None,
        }
    }

    /// Takes note of when a node may call itself the only leader.
    pub(crate) fn observe_claim(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        let lease = h.replica().and_then(Replica::lease);
        if lease == h.seen.lease {
            return;
        }
        h.seen.lease = lease;
        self.claim_again(host);
    }

    /// The lease or the clock it is told on has changed.
    pub(crate) fn claim_again(&mut self, host: usize) {
        let h = &self.hosts[host];
        let true_time = |at: Time| h.clock.true_time(at);
        let claim = h.seen.lease.map(|lease| Claim {
            term: lease.term,
            from: true_time(lease.from),
            until: true_time(lease.until),
        });
        self.judge.claim(host, claim, self.now);
    }
}

/// What a formation record on disk says.
pub(crate) fn holds(record: &[u8]) -> Option<Holds> {
    minicbor::decode(record).ok()
}
