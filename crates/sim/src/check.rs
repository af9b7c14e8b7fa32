//! The judge: sees every node's state and every disk, which no node does, and stops the run at
//! the first broken promise.
//!
//! What it is told is a list of facts, each about one node at one time ([`Fact`]); what it makes of
//! them depends on nothing else. So a test can take the facts of a real run, alter one of them, and
//! see which checker notices (`check/tests.rs`).
//!
//! - `log.rs`: one leader per term, log matching, leader completeness, state machine safety;
//! - `claims.rs`: exclusive leadership and fencing tokens;
//! - `members.rs`: how members change, and what a quorum is;
//! - `votes.rs`: one vote per voter and term;
//! - `promise.rs`: persist before promise;
//! - `conduct.rs`: when a node may campaign, go on leading, and call itself the only leader.
//!
//! Linearizability is judged by `history.rs` and `linearizability.rs`, at the end.

mod claims;
mod conduct;
mod log;
mod members;
mod promise;
#[cfg(test)]
pub(crate) mod tests;
mod votes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use raft::message::TimeoutNow;
use raft::{
    ClientId, Configuration, Durable, Entry, HardState, Index, LogPosition, NodeKey, Payload,
    Persist, Raft, SaveSnapshot, SessionId, Term, Time,
};
use replica::{Effect, Formation, Holds, Name, Replica};

use self::claims::{Claim, Claims, Promise, Won};
use self::conduct::{Conduct, Leading, Pace, Stood};
use self::log::{Logs, Mirror};
use self::members::{Proposal, is_quorum};
use self::votes::Votes;
use crate::disk::Disk;
use crate::event::Micros;
use crate::node::Host;
use crate::world::World;

/// Who found a promise broken: the first word of every failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checker {
    OneLeaderPerTerm,
    OneFormation,
    LogMatching,
    LeaderCompleteness,
    StateMachineSafety,
    /// What is committed is on the disks of a majority.
    CommitDurability,
    /// Term, commit index, applied index and revision of a process never go back.
    Monotonicity,
    OneVotePerTerm,
    /// Who leads has the votes of a quorum of the configuration in its log.
    ElectionQuorum,
    /// Voters change one joint step at a time.
    MemberChanges,
    PersistBeforePromise,
    ExclusiveLeadership,
    FencingTokens,
    /// Only a voter with a session that has committed what opened its lease epoch, and has not
    /// released it, claims to be the only leader, and no longer than the lease.
    LeaseConditions,
    /// A new leader waits for older leases to end, unless the newest in its log was released to it.
    LeaseWait,
    /// A leader hands over for a metric only after its tenure, ever longer where the lead changes
    /// often.
    HandOverPace,
    /// A leader that no quorum confirms steps down.
    CheckQuorum,
    /// Nobody campaigns before asking, but for who was told that the leader's session ended.
    PreVote,
    /// Only whom the leader asked takes over, in time and with the log that the leader knew of.
    TakeOver,
    /// Whoever knows of a commit has the configuration in force there.
    Configuration,
    /// A write that was acknowledged is in the state of every node.
    AcknowledgedWrites,
    /// Real time and the revisions in the answers agree with each other and with the values.
    RevisionOrder,
    /// Every answer is what a model of the state says of its place in the log.
    StateModel,
    /// And of a time between question and answer.
    StateOrder,
    /// What is asked for is done once at most, and never if it was answered as not done.
    ExactlyOnce,
    /// A watch tells every change of its range once, in order.
    WatchCompleteness,
    /// A lease lives as long as its holder may count on it.
    LeaseExpiry,
    /// A lock has never more holders than places.
    LockExclusion,
    /// The tokens of a lock grow from holder to holder.
    LockTokens,
    #[cfg(feature = "porcupine")]
    Linearizability,
}

impl fmt::Display for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Checker::OneLeaderPerTerm => "one-leader-per-term",
            Checker::OneFormation => "one-formation",
            Checker::LogMatching => "log-matching",
            Checker::LeaderCompleteness => "leader-completeness",
            Checker::StateMachineSafety => "state-machine-safety",
            Checker::CommitDurability => "commit-durability",
            Checker::Monotonicity => "monotonicity",
            Checker::OneVotePerTerm => "one-vote-per-term",
            Checker::ElectionQuorum => "election-quorum",
            Checker::MemberChanges => "member-changes",
            Checker::PersistBeforePromise => "persist-before-promise",
            Checker::ExclusiveLeadership => "exclusive-leadership",
            Checker::FencingTokens => "fencing-tokens",
            Checker::LeaseConditions => "lease-conditions",
            Checker::LeaseWait => "lease-wait",
            Checker::HandOverPace => "hand-over-pace",
            Checker::CheckQuorum => "check-quorum",
            Checker::PreVote => "pre-vote",
            Checker::TakeOver => "take-over",
            Checker::Configuration => "configuration",
            Checker::AcknowledgedWrites => "acknowledged-writes",
            Checker::RevisionOrder => "revision-order",
            Checker::StateModel => "state-model",
            Checker::StateOrder => "state-order",
            Checker::ExactlyOnce => "exactly-once",
            Checker::WatchCompleteness => "watch-completeness",
            Checker::LeaseExpiry => "lease-expiry",
            Checker::LockExclusion => "lock-exclusion",
            Checker::LockTokens => "lock-tokens",
            #[cfg(feature = "porcupine")]
            Checker::Linearizability => "linearizability",
        })
    }
}

/// Whom a fact is about, and when it was so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<'a> {
    pub(crate) now: Micros,
    pub(crate) host: usize,
    pub(crate) name: &'a str,
}

impl At<'_> {
    /// Ends the run.
    pub(crate) fn broken(self, checker: Checker, what: fmt::Arguments) -> ! {
        let At { now, host, name } = self;
        let (seconds, micros) = (now / 1_000_000, now % 1_000_000);
        panic!("{checker}: {name} (host {host}) at {seconds}.{micros:06} s: {what}");
    }
}

/// What the judge is told.
#[derive(Clone, Debug)]
pub(crate) enum Fact {
    /// A process has come so far.
    Progress(Progress),
    /// A node was elected. At the last entry that was committed before, or where its log begins
    /// if that is later, it holds `held`; what it had when it was elected ends at `last`.
    Leads {
        key: NodeKey,
        term: Term,
        held: Option<LogPosition>,
        last: LogPosition,
        /// In force in its log.
        configuration: Configuration,
        won: Won,
    },
    /// A leader puts another configuration into its log.
    Proposes(Proposal),
    /// A node sends what only the leader of a term sends. Since it last did it was heard in these
    /// sessions at once, or in these.
    SpeaksAsLeader {
        key: NodeKey,
        term: Term,
        sessions: Vec<BTreeSet<SessionId>>,
    },
    /// A log takes entries, the first after one of the term `before`, and gives up what it held
    /// from `cut` on.
    Took {
        entries: Vec<Entry>,
        before: Option<Term>,
        cut: Option<LogPosition>,
    },
    /// A node of this term says that these are committed.
    Committed { term: Term, entries: Vec<Entry> },
    /// A node of this term says that all up to here is committed, and keeps a snapshot of it.
    Compacted { term: Term, last: LogPosition },
    /// The newest commit is on the disks of these, and this configuration is in force where it was
    /// made. Those whose disks are without it might be elected, each by its own configuration, if
    /// all vote for it whose logs are not ahead of its own.
    OnDisks {
        last: LogPosition,
        holders: BTreeSet<NodeKey>,
        configuration: Configuration,
        rivals: Vec<Rival>,
    },
    /// A state machine has come to an index.
    Applied {
        index: Index,
        digest: u32,
        revision: u64,
    },
    /// What the disk of a node says now.
    Stored { key: NodeKey, hard_state: HardState },
    /// A node gives its vote.
    Votes {
        key: NodeKey,
        term: Term,
        candidate: NodeKey,
        /// It asks for others' votes because the leader wants it to take over.
        takes_over: bool,
    },
    /// The leader of a term asks a node to take over.
    Hands {
        to: NodeKey,
        term: Term,
        request: TimeoutNow,
    },
    /// A node begins a campaign.
    Stands { key: NodeKey, stood: Stood },
    /// A node asks whether others would vote for it, in its present term.
    AsksFirst { key: NodeKey, term: Term },
    /// A node has a leader of this term, after it was told of an earlier one's end.
    Follows { key: NodeKey, term: Term },
    /// A node of this term hears that a session ended.
    HearsEnd {
        key: NodeKey,
        term: Term,
        session: SessionId,
    },
    /// A leader goes on leading, so long on its clock after it heard of a quorum.
    LeadsOn {
        unheard: Duration,
        timeout: Duration,
    },
    /// A node that knows that all up to `commit` is committed goes by this configuration there.
    Configured {
        commit: Index,
        configuration: Configuration,
    },
    /// A node may call itself the only leader now or later.
    Claims(Promise),
    /// A leader hands over because another has the better metric: so long it has led, and so long
    /// it leads at least.
    HandsOver { led: Duration, tenure: Duration },
    /// A node called itself the only leader.
    Claimed(Claim),
    /// The cluster that has a leader.
    Formed(Formation),
}

/// How far a process has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Which process of its host.
    life: u64,
    term: Term,
    commit: Index,
    applied: Index,
    revision: u64,
}

/// What was last seen of one process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    progress: Progress,
    leads: bool,
    stored: HardState,
    lease: Option<raft::Lease>,
    log: Mirror,
    leading: Leading,
    pace: Pace,
    /// By how much its ranks were apart.
    delta: Duration,
    /// Sessions of whose end the process was told with its last inputs.
    ends: Vec<SessionId>,
}

impl Seen {
    fn leads(&self) -> bool {
        self.leads
    }

    /// Nothing yet of a process that starts from this.
    pub(crate) fn of(durable: &Durable) -> Seen {
        let snapshot = durable.snapshot.as_ref().map(|s| &s.meta);
        Seen {
            log: Mirror::of(snapshot, &durable.entries),
            ..Seen::default()
        }
    }
}

/// What has been established for good.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    /// Which formation has had a leader.
    formation: Option<Formation>,
    logs: Logs,
    votes: Votes,
    claims: Claims,
    conduct: Conduct,
    progress: BTreeMap<usize, Progress>,
    /// Claims in force, by host.
    claiming: BTreeMap<usize, Claim>,
    /// Disks that were wiped: what they held was promised once.
    pub(crate) graveyard: Vec<Disk>,
    pub(crate) elections: u64,
    /// Of campaigns by will those of whom others stood before, and how often a δ changed.
    later_ranks: u64,
    deltas: u64,
    pub(crate) snapshots: u64,
    #[cfg(feature = "porcupine")]
    pub(crate) searched: crate::linearizability::Searched,
    #[cfg(test)]
    record: tests::Record,
}

impl Judge {
    pub(crate) fn commits(&self) -> u64 {
        self.logs.commits()
    }

    /// What is committed from `first` on.
    pub(crate) fn committed(&self, first: Index) -> Vec<Entry> {
        let all = first.0..=self.commits();
        all.map(|index| self.logs.committed(Index(index))).collect()
    }

    /// All voters were wiped by hand: a new world, if the old one had never had a leader.
    pub(crate) fn start_over(&mut self) {
        assert!(
            !self.logs.had_leader(),
            "only a leaderless cluster is wiped"
        );
        *self = Judge::default();
    }

    /// Takes a fact, or panics if it breaks a promise.
    pub(crate) fn learn(&mut self, at: At, fact: Fact) {
        #[cfg(test)]
        self.record.add(at, &fact);
        match fact {
            Fact::Progress(progress) => self.progresses(at, progress),
            Fact::Leads {
                key,
                term,
                held,
                last,
                configuration,
                won,
            } => {
                self.logs.leads(at, key, term, held, last);
                self.votes.elect(at, key, term, &configuration);
                self.claims.won(term, won);
            }
            Fact::Proposes(proposal) => members::proposes(at, &proposal),
            Fact::SpeaksAsLeader {
                key,
                term,
                sessions,
            } => {
                self.logs.speaks_as_leader(at, key, term);
                for sessions in sessions {
                    self.conduct.speaks(term, sessions);
                }
            }
            Fact::Took {
                entries,
                before,
                cut,
            } => self.logs.took(at, &entries, before, cut),
            Fact::Committed { term, entries } => self.logs.commits_entries(at, &entries, term),
            Fact::Compacted { term, last } => self.logs.commits_compacted(at, last, term),
            Fact::OnDisks {
                last,
                holders,
                configuration,
                rivals,
            } => held_by_majority(at, last, &holders, &configuration, &rivals),
            Fact::Applied {
                index,
                digest,
                revision,
            } => self.logs.applied(at, index, digest, revision),
            Fact::Stored { key, hard_state } => self.votes.stored(at, key, hard_state),
            Fact::Votes {
                key,
                term,
                candidate,
                takes_over,
            } => {
                match key == candidate {
                    true => self.conduct.campaigns(at, key, term, takes_over),
                    false => self.conduct.follows(key, term),
                }
                self.votes.cast(at, key, term, candidate);
            }
            Fact::Hands { to, term, request } => self.conduct.hands(to, term, request),
            Fact::Stands { key, stood } => self.conduct.stands(key, stood),
            Fact::AsksFirst { key, term } => self.conduct.asks_first(key, term),
            Fact::Follows { key, term } => self.conduct.follows(key, term),
            Fact::HearsEnd { key, term, session } => self.conduct.hears_end(key, term, session),
            Fact::LeadsOn { unheard, timeout } => conduct::leads_on(at, unheard, timeout),
            Fact::Configured {
                commit,
                configuration,
            } => self.configured(at, commit, &configuration),
            Fact::Claims(promise) => {
                let released = self.conduct.released(promise.key, promise.epoch.term);
                self.claims.may_be(at, &promise, &released);
                self.conduct.may_claim(at, &promise);
            }
            Fact::HandsOver { led, tenure } => conduct::hands_over(at, led, tenure),
            Fact::Claimed(claim) => self.claims.held(at, claim),
            Fact::Formed(formation) => self.learn_formation(at, formation),
        }
    }

    fn learn_formation(&mut self, at: At, formation: Formation) {
        let known = self.formation.get_or_insert_with(|| formation.clone());
        if *known != formation {
            at.broken(
                Checker::OneFormation,
                format_args!("two formations have had a leader: {known:?} and {formation:?}"),
            );
        }
    }

    /// Whoever knows what is committed goes by the last configuration in it.
    fn configured(&self, at: At, commit: Index, configuration: &Configuration) {
        let expected = self.logs.configuration_at(commit);
        if expected != Some(configuration) {
            at.broken(
                Checker::Configuration,
                format_args!("has {configuration:?} at {commit}, where {expected:?} is in force"),
            );
        }
    }

    /// How often somebody stood for election.
    pub(crate) fn campaigns(&self) -> u64 {
        self.conduct.begun.iter().sum()
    }

    /// How elections went, by a few words each.
    pub(crate) fn coverage(&self) -> [(&'static str, u64); 5] {
        let [by_will, by_asking, by_transfer] = self.conduct.begun;
        [
            ("campaign by the leader's will", by_will),
            ("campaign by will, of a later rank", self.later_ranks),
            ("campaign after a pre-vote", by_asking),
            ("campaign at the leader's wish", by_transfer),
            ("delta changes", self.deltas),
        ]
    }

    pub(crate) fn configurations_that_count(&self) -> Vec<Configuration> {
        self.logs.configurations_that_count()
    }

    fn progresses(&mut self, at: At, now: Progress) {
        let was = self.progress.insert(at.host, now).unwrap_or_default();
        let back = now.term < was.term
            || now.commit < was.commit
            || now.applied < was.applied
            || now.revision < was.revision;
        if now.life == was.life && back {
            at.broken(
                Checker::Monotonicity,
                format_args!("{was:?} is followed by {now:?}"),
            );
        }
    }

    // Leases.

    fn claim(&mut self, at: At, claim: Option<Claim>) {
        if self.claiming.get(&at.host) == claim.as_ref() {
            return;
        }
        self.claim_ends(at);
        if let Some(claim) = claim {
            let from = claim.from.max(at.now);
            self.claiming.insert(at.host, Claim { from, ..claim });
        }
    }

    /// A claim changes or its process is gone: what of it came true?
    fn claim_ends(&mut self, at: At) {
        let Some(claim) = self.claiming.remove(&at.host) else {
            return;
        };
        let until = claim.until.min(at.now);
        if until > claim.from {
            self.learn(at, Fact::Claimed(Claim { until, ..claim }));
        }
    }

    pub(crate) fn exclusive(&self) -> Micros {
        self.claims.total()
    }
}

/// A node without an entry, the configuration on its disk, and those who might vote for it.
#[derive(Clone, Debug)]
pub(crate) struct Rival {
    key: NodeKey,
    configuration: Configuration,
    supporters: BTreeSet<NodeKey>,
}

fn held_by_majority(
    at: At,
    last: LogPosition,
    holders: &BTreeSet<NodeKey>,
    configuration: &Configuration,
    rivals: &[Rival],
) {
    if !is_quorum(configuration, holders) {
        at.broken(
            Checker::CommitDurability,
            format_args!(
                "commits {}.{}, which the disks of {holders:?} hold, no quorum of {configuration:?}",
                last.index, last.term
            ),
        );
    }
    let wins = |rival: &&Rival| is_quorum(&rival.configuration, &rival.supporters);
    if let Some(rival) = rivals.iter().find(wins) {
        at.broken(
            Checker::CommitDurability,
            format_args!(
                "commits {}.{}, and {}, without it, would be elected by {:?} of {:?}",
                last.index, last.term, rival.key, rival.supporters, rival.configuration
            ),
        );
    }
}

/// What is to be said of a leader and its log, where `through` was committed before.
fn elected(raft: &Raft, log: &Mirror, through: Index, now: Time) -> Fact {
    let (term, index) = (raft.term(), raft.first_index());
    let base = log.term_at(index).map(|term| LogPosition { index, term });
    let through = through.max(index);
    let tail = raft.entries(through.max(index + 1));
    let tail = base.into_iter().chain(tail.iter().map(Entry::position));
    let earlier: Vec<LogPosition> = tail.filter(|p| p.term < term).collect();
    Fact::Leads {
        key: raft.me(),
        term,
        held: earlier.iter().find(|p| p.index == through).copied(),
        last: earlier.last().copied().unwrap_or_default(),
        configuration: log.configuration().1,
        won: Won::by(log, raft.commit_index(), now),
    }
}

impl World {
    /// Looks at a node after a step.
    pub(crate) fn observe(&mut self, host: usize, effects: &[Effect]) {
        let h = &mut self.hosts[host];
        let Some(replica) = h.process.as_ref().and_then(|process| process.replica()) else {
            return;
        };
        let Some(raft) = replica.raft() else {
            return;
        };
        let at = At {
            now: self.now,
            host,
            name: h.name.as_str(),
        };
        let local = h.clock.read(self.now);
        let (judge, seen) = (&mut self.judge, &mut h.seen);
        let stored = h.disk.durable.hard_state;
        if stored != seen.stored {
            seen.stored = stored;
            let (key, hard_state) = (h.disk.key, stored);
            judge.learn(at, Fact::Stored { key, hard_state });
        }
        let known = judge.commits();
        let mut restored = false;
        for effect in effects {
            if let Effect::Persist(Persist {
                snapshot: Some(save),
                ..
            }) = effect
            {
                restored = true;
                let (term, last) = (raft.term(), save.snapshot.meta.last);
                judge.learn(at, Fact::Compacted { term, last });
            }
            if let Effect::Persist(Persist {
                hard_state: Some(state),
                ..
            }) = effect
                && state.voted_for == Some(raft.me())
            {
                let stood = Stood {
                    term: state.term,
                    last: seen.log.last(),
                    now: local,
                    timeout: raft.options().election_timeout,
                };
                let key = raft.me();
                if judge.conduct.is_told(key) && raft.rank() > 0 {
                    judge.later_ranks += 1;
                }
                judge.learn(at, Fact::Stands { key, stood });
            }
        }
        let delta = raft.rank_delay();
        if std::mem::replace(&mut seen.delta, delta) != delta {
            judge.deltas += 1;
        }
        let was = std::mem::replace(
            &mut seen.progress,
            Progress {
                life: h.life,
                term: raft.term(),
                commit: raft.commit_index(),
                applied: replica.store().applied(),
                revision: replica.store().revision(),
            },
        );
        let progress = seen.progress;
        let leads = raft.leads();
        let led = std::mem::replace(&mut seen.leads, leads) && was.term == progress.term;
        if leads && !led {
            judge.elections += 1;
            let record = h.disk.formation.as_deref();
            let Some(Holds::Formed(formation)) = record.and_then(holds) else {
                panic!("a leader without a formed cluster on its disk");
            };
            judge.learn(at, Fact::Formed(formation));
            seen.leading.begins(local);
            let through = judge.logs.committed_before(raft.term());
            let fact = elected(raft, &seen.log, through, local);
            judge.learn(at, fact);
        }
        seen.pace.sees(raft.leader(), local);
        if led && leads {
            judge.learn(
                at,
                Fact::LeadsOn {
                    unheard: seen
                        .leading
                        .unheard(raft.configuration(), h.disk.key, local),
                    timeout: raft.options().election_timeout,
                },
            );
        }
        for session in seen.ends.drain(..) {
            for term in [was.term, progress.term] {
                let key = raft.me();
                judge.learn(at, Fact::HearsEnd { key, term, session });
            }
        }
        if progress != was {
            judge.learn(at, Fact::Progress(progress));
        }
        let mut reconfigured = false;
        if progress.commit > was.commit {
            let from = was.commit.max(raft.first_index()) + 1;
            let entries = raft.entries_through(from, progress.commit);
            let term = progress.term;
            let sets = |entry: &Entry| matches!(entry.payload, Payload::Configuration(_));
            reconfigured = entries.iter().any(sets);
            judge.learn(at, Fact::Committed { term, entries });
        }
        if progress.commit > Index(0) && (was.commit == Index(0) || restored || reconfigured) {
            let configuration = raft.committed_configuration().cloned().unwrap_or_default();
            let commit = progress.commit;
            let fact = Fact::Configured {
                commit,
                configuration,
            };
            judge.learn(at, fact);
        }
        if progress.applied != was.applied || progress.life != was.life {
            let fact = Fact::Applied {
                index: progress.applied,
                digest: replica.store().digest(),
                revision: progress.revision,
            };
            judge.learn(at, fact);
        }
        let commits = judge.commits();
        if commits > known {
            self.commits_newly(host, Index(commits));
        }
        if self.state_is_behind(commits) {
            let entries = self.judge.committed(self.state_next());
            self.state_learns(host, entries);
        }
        if progress.applied != was.applied {
            self.check_revision(host, progress.applied, progress.revision);
        }
    }

    fn commits_newly(&mut self, host: usize, newest: Index) {
        let term = self.judge.logs.term_of_commit(newest);
        self.trace.mix(newest.0 ^ term.0 << 32);
        let index = newest;
        let holders = self.holders(index, term);
        let rivals = self.rivals(index, term);
        let h = &self.hosts[host];
        // Whoever knows first leads, and counts by the newest configuration in its log. In the same
        // step it may have set the next one after that (seed 517).
        let raft = h.replica().and_then(Replica::raft).expect("it commits");
        let mut counting = h.seen.log.possible(index);
        let counted = counting.find(|configuration| is_quorum(configuration, &holders));
        let configuration = counted.unwrap_or_else(|| raft.configuration()).clone();
        let at = At {
            now: self.now,
            host,
            name: h.name.as_str(),
        };
        let last = LogPosition { index, term };
        let fact = Fact::OnDisks {
            last,
            holders,
            configuration,
            rivals,
        };
        self.judge.learn(at, fact);
    }

    /// Every voter without an entry, and those that would vote for it, as the disks are.
    fn rivals(&self, index: Index, term: Term) -> Vec<Rival> {
        let disks: Vec<&Disk> = self.hosts.iter().map(|host| &host.disk).collect();
        let without = disks.iter().filter(|disk| !disk.holds(index, term));
        let rivals = without.filter_map(|rival| {
            let configuration = rival.configuration()?;
            let rank = rival.rank();
            let supporters = disks.iter().filter(|disk| disk.rank() <= rank);
            configuration.is_voter(rival.key).then(|| Rival {
                key: rival.key,
                configuration: configuration.clone(),
                supporters: supporters.map(|disk| disk.key).collect(),
            })
        });
        rivals.collect()
    }

    /// Whose disks hold an entry, or did when they were wiped.
    fn holders(&self, index: Index, term: Term) -> BTreeSet<NodeKey> {
        let disks = self.hosts.iter().map(|host| &host.disk);
        let disks = disks.chain(&self.judge.graveyard);
        let holders = disks.filter(|disk| disk.holds(index, term));
        holders.map(|disk| disk.key).collect()
    }

    /// What a log takes fits what all other logs took.
    pub(crate) fn check_entries(&mut self, host: usize, persist: &Persist) {
        let h = &mut self.hosts[host];
        if let Some(SaveSnapshot { snapshot, .. }) = &persist.snapshot {
            self.judge.snapshots += 1;
            h.seen.log.install(&snapshot.meta);
        }
        if persist.entries.is_empty() {
            return;
        }
        let proposals = h.proposals(&persist.entries, &self.judge.logs, self.now);
        let (before, cut) = h.seen.log.take(&persist.entries);
        let at = At {
            now: self.now,
            host,
            name: h.name.as_str(),
        };
        let entries = persist.entries.clone();
        let fact = Fact::Took {
            entries,
            before,
            cut,
        };
        self.judge.learn(at, fact);
        for proposal in proposals {
            self.judge.learn(at, Fact::Proposes(proposal));
        }
    }

    /// Takes note of when a node may call itself the only leader.
    pub(crate) fn observe_claim(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        let lease = h.replica().and_then(Replica::lease);
        let connected = h.seen.leading.is_connected();
        let changed = lease != h.seen.lease;
        if let Some(raft::Lease { epoch, from, until }) = lease
            && (changed || !connected)
        {
            let at = At {
                now: self.now,
                host,
                name: h.name.as_str(),
            };
            let commit = h.seen.progress.commit;
            let key = h.disk.key;
            let leases = h.seen.log.possible(commit).map(|c| c.settings.lease());
            let fact = Fact::Claims(Promise {
                key,
                epoch,
                from,
                ahead: until.since(h.clock.read(self.now)),
                lease: leases.min().unwrap_or_default(),
                committed: self.judge.logs.epoch_at(commit),
                connected,
                votes: h.seen.log.configuration().1.voters.contains_key(&key),
            });
            self.judge.learn(at, fact);
        }
        if !changed {
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
            epoch: lease.epoch,
            from: true_time(lease.from),
            until: true_time(lease.until),
        });
        let at = At {
            now: self.now,
            host,
            name: h.name.as_str(),
        };
        self.judge.claim(at, claim);
    }

    /// A process is gone, and its claim with it.
    pub(crate) fn claim_ends(&mut self, host: usize) {
        let at = At {
            now: self.now,
            host,
            name: self.hosts[host].name.as_str(),
        };
        self.judge.claim_ends(at);
    }

    /// All has healed and agreed: every write that was acknowledged before is there, everywhere.
    pub(crate) fn check_acknowledged(&self, before: Micros) {
        let replicas = self.hosts.iter().filter_map(|host| host.replica());
        let stores: Vec<(&Name, &replica::Store)> =
            replicas.map(|r| (r.name(), r.store())).collect();
        self.history.check_stores(&stores, before);
    }

    /// The run is over: what is judged as a whole.
    pub(crate) fn check_end(&mut self) {
        for host in 0..self.hosts.len() {
            self.claim_ends(host);
        }
        self.history.foreign = self.state.foreign();
        if !self.uses_state() {
            // Nobody has followed who made which revision: leaders write who is there.
            let committed = self.judge.committed(Index(1)).into_iter();
            let own = committed.filter(|entry| match &entry.payload {
                Payload::Command(command) => command.client == ClientId(0),
                _ => false,
            });
            self.history.own = own.count() as u64;
        }
        self.history.check();
        #[cfg(feature = "porcupine")]
        {
            self.judge.searched = crate::linearizability::check(&self.history.calls);
        }
    }
}

impl Host {
    /// What of these entries, which a log is about to take, are configurations that its node puts
    /// there as a leader.
    fn proposals(&self, entries: &[Entry], logs: &Logs, now: Micros) -> Vec<Proposal> {
        let raft = self.replica().and_then(Replica::raft);
        let Some(raft) = raft.filter(|raft| raft.leads()) else {
            return Vec::new();
        };
        let (term, commit) = (raft.term(), self.seen.progress.commit);
        let own = entries.iter().filter(|entry| entry.term == term);
        let mut before = self.seen.log.configuration();
        let mut proposals = Vec::new();
        for entry in own {
            let Payload::Configuration(next) = &entry.payload else {
                continue;
            };
            let local = self.clock.read(now);
            let last = std::mem::replace(&mut before, (entry.index, next.clone()));
            proposals.push(Proposal {
                term,
                commit,
                committed: logs.term_of_commit(commit),
                before: last,
                next: next.clone(),
                unheard: self.seen.leading.unheard(next, self.disk.key, local),
                timeout: raft.options().election_timeout,
            });
        }
        proposals
    }
}

impl World {
    /// A node hands the lead over for the sake of another's metric.
    pub(crate) fn observe_hand_over(&mut self, host: usize) {
        let h = &self.hosts[host];
        let at = At {
            now: self.now,
            host,
            name: h.name.as_str(),
        };
        let (led, changes) = h.seen.pace.so_far(h.clock.read(self.now));
        let tenure = Duration::from_micros(self.plan.profile.tenure);
        let tenure = tenure * (1 << changes);
        self.judge.learn(at, Fact::HandsOver { led, tenure });
    }
}

/// What a formation record on disk says.
pub(crate) fn holds(record: &[u8]) -> Option<Holds> {
    minicbor::decode(record).ok()
}
