//! Each checker against a run in which one thing was altered.
//!
//! What is altered is what the judge of a real run was told: so all else about it is as a run of
//! this protocol is, and the checker that speaks up is the one that has to.

use std::panic::{self, AssertUnwindSafe};
use std::sync::OnceLock;

use raft::LeaseEpoch;

use super::*;

/// What the judge of a run was told.
#[derive(Clone, Debug, Default)]
pub(super) struct Record(Vec<Line>);

#[derive(Clone, Debug)]
struct Line {
    now: Micros,
    host: usize,
    name: String,
    fact: Fact,
}

impl Record {
    pub(super) fn add(&mut self, at: At, fact: &Fact) {
        self.0.push(Line {
            now: at.now,
            host: at.host,
            name: at.name.to_owned(),
            fact: fact.clone(),
        });
    }

    /// A run with several elections, claims and votes.
    fn of_a_run() -> Record {
        static RECORD: OnceLock<Record> = OnceLock::new();
        let run = RECORD.get_or_init(|| World::lived(RUN).judge.record);
        run.clone()
    }

    /// Which checker objects to this record, if any does, and what it says.
    fn judged(&self) -> Option<String> {
        let judged = panic::catch_unwind(AssertUnwindSafe(|| {
            let mut judge = Judge::default();
            for Line {
                now,
                host,
                name,
                fact,
            } in &self.0
            {
                let at = At {
                    now: *now,
                    host: *host,
                    name,
                };
                judge.learn(at, fact.clone());
            }
        }));
        let panic = judged.err()?;
        Some(panic.downcast_ref::<String>().expect("a text").clone())
    }

    /// Claims that precisely this checker objects.
    fn is_objected_to_by(&self, checker: Checker) {
        let said = self.judged().expect("the violation goes unnoticed");
        let first = said.split(':').next();
        assert_eq!(first, Some(checker.to_string().as_str()), "{said}");
    }

    /// The places of facts that `select` chooses from.
    fn places(&self, select: impl Fn(&Fact) -> bool) -> Vec<usize> {
        let places = self.0.iter().enumerate();
        let places = places.filter(|(_, line)| select(&line.fact));
        places.map(|(n, _)| n).collect()
    }

    fn place(&self, what: &str, select: impl Fn(&Fact) -> bool) -> usize {
        let places = self.places(select);
        *places.get(places.len() / 2).expect(what)
    }
}

/// A run with something in it for every checker.
pub(crate) const RUN: &str = include_str!("../../plans/what_checkers_are_tried_on.txt");

fn other_key() -> NodeKey {
    NodeKey::from_bytes([7; 16])
}

#[test]
fn an_unaltered_run_passes() {
    let run = Record::of_a_run();
    assert_eq!(run.judged(), None);
    let count = |select: fn(&Fact) -> bool| run.places(select).len();
    assert!(count(|f| matches!(f, Fact::Leads { .. })) >= 3);
    assert!(count(|f| matches!(f, Fact::Claimed(_))) >= 3);
    assert!(count(|f| matches!(f, Fact::Committed { .. })) >= 100);
}

/// Answers to one node are judged as well as what is for all: frames for one name its key.
#[test]
fn votes_for_others_are_seen() {
    let run = Record::of_a_run();
    let given = |f: &Fact| matches!(f, Fact::Votes { key, candidate, .. } if key != candidate);
    assert!(!run.places(given).is_empty());
}

#[test]
fn two_leaders_in_one_term() {
    let mut run = Record::of_a_run();
    let at = run.place("a leader", |f| matches!(f, Fact::Leads { .. }));
    let mut line = run.0[at].clone();
    let Fact::Leads { key, .. } = &mut line.fact else {
        unreachable!()
    };
    *key = other_key();
    line.host += 1;
    run.0.insert(at + 1, line);
    run.is_objected_to_by(Checker::OneLeaderPerTerm);
}

#[test]
fn a_second_node_speaks_as_leader() {
    let mut run = Record::of_a_run();
    let at = run.place("a leader speaks", |f| {
        matches!(f, Fact::SpeaksAsLeader { .. })
    });
    let mut line = run.0[at].clone();
    let Fact::SpeaksAsLeader { key, .. } = &mut line.fact else {
        unreachable!()
    };
    *key = other_key();
    run.0.insert(at + 1, line);
    run.is_objected_to_by(Checker::OneLeaderPerTerm);
}

#[test]
fn a_leader_without_the_last_commit() {
    let mut run = Record::of_a_run();
    let at = *run
        .places(|f| matches!(f, Fact::Leads { .. }))
        .last()
        .expect("a leader");
    let Fact::Leads { held, .. } = &mut run.0[at].fact else {
        unreachable!()
    };
    *held = None;
    run.is_objected_to_by(Checker::LeaderCompleteness);
}

#[test]
fn a_leader_with_another_entry_where_one_was_committed() {
    let mut run = Record::of_a_run();
    let at = *run
        .places(|f| matches!(f, Fact::Leads { .. }))
        .last()
        .expect("a leader");
    let Fact::Leads { held, .. } = &mut run.0[at].fact else {
        unreachable!()
    };
    let held = held.as_mut().expect("something was committed");
    held.term = Term(held.term.0 - 1);
    run.is_objected_to_by(Checker::LeaderCompleteness);
}

/// A deposed leader counts to a majority after its successor was elected without the entry.
#[test]
fn an_old_leader_commits_what_its_successor_lacks() {
    let mut run = Record::of_a_run();
    let elected = *run
        .places(|f| matches!(f, Fact::Leads { .. }))
        .last()
        .expect("a leader");
    let Fact::Leads { last, term, .. } = run.0[elected].fact else {
        unreachable!()
    };
    let fresh = |f: &Fact| matches!(f, Fact::Committed { entries, .. } if entries.last().is_some_and(|e| e.index > last.index));
    let commit = *run
        .places(fresh)
        .iter()
        .find(|at| **at > elected)
        .expect("a commit of the successor");
    let Fact::Committed { term: observer, .. } = &mut run.0[commit].fact else {
        unreachable!()
    };
    *observer = Term(term.0 - 1);
    run.is_objected_to_by(Checker::LeaderCompleteness);
}

#[test]
fn a_log_gives_up_what_is_committed() {
    let mut run = Record::of_a_run();
    // The last that takes something right behind what had been committed by then.
    let (mut through, mut taken) = (Index(0), None);
    for (n, line) in run.0.iter().enumerate() {
        match &line.fact {
            Fact::Committed { entries, .. } => {
                through = through.max(entries.last().map_or(through, |entry| entry.index));
            }
            Fact::Took { entries, .. } if entries[0].index <= through + 1 => taken = Some(n),
            _ => {}
        }
    }
    let taken = taken.expect("a log that takes entries");
    let Fact::Took {
        before,
        cut,
        entries,
    } = &mut run.0[taken].fact
    else {
        unreachable!()
    };
    let index = entries[0].index.previous();
    let term = before.expect("a known past");
    *cut = Some(LogPosition { index, term });
    run.is_objected_to_by(Checker::LeaderCompleteness);
}

#[test]
fn two_logs_differ_in_an_entry() {
    let mut run = Record::of_a_run();
    let command = |f: &Fact| matches!(f, Fact::Took { entries, .. } if matches!(entries[0].payload, raft::Payload::Command(_)));
    let at = run.place("a log that takes a command", command);
    let mut line = run.0[at].clone();
    let Fact::Took { entries, cut, .. } = &mut line.fact else {
        unreachable!()
    };
    entries[0].payload = raft::Payload::Noop;
    *cut = None;
    run.0.insert(at + 1, line);
    run.is_objected_to_by(Checker::LogMatching);
}

#[test]
fn two_logs_differ_in_what_is_before_an_entry() {
    let mut run = Record::of_a_run();
    let at = run.place(
        "a log that takes entries",
        |f| matches!(f, Fact::Took { before: Some(term), .. } if *term > Term(1)),
    );
    let mut line = run.0[at].clone();
    let Fact::Took { before, cut, .. } = &mut line.fact else {
        unreachable!()
    };
    *before = before.map(|term| Term(term.0 - 1));
    *cut = None;
    run.0.insert(at + 1, line);
    run.is_objected_to_by(Checker::LogMatching);
}

#[test]
fn a_commit_of_what_no_log_took() {
    let mut run = Record::of_a_run();
    let command = |f: &Fact| matches!(f, Fact::Committed { entries, .. } if matches!(entries[0].payload, raft::Payload::Command(_)));
    let at = run.place("a commit of a command", command);
    let Fact::Committed { entries, .. } = &mut run.0[at].fact else {
        unreachable!()
    };
    entries[0].payload = raft::Payload::Noop;
    run.is_objected_to_by(Checker::LogMatching);
}

/// Two applied entries change places: the checksum of the state no longer fits.
#[test]
fn a_state_machine_applies_in_another_order() {
    let mut run = Record::of_a_run();
    let at = run.place("an applied entry", |f| matches!(f, Fact::Applied { .. }));
    let Fact::Applied { digest, .. } = &mut run.0[at].fact else {
        unreachable!()
    };
    *digest ^= 1;
    run.is_objected_to_by(Checker::StateMachineSafety);
}

#[test]
fn a_state_machine_applies_a_write_twice() {
    let mut run = Record::of_a_run();
    let at = *run
        .places(|f| matches!(f, Fact::Applied { revision, .. } if *revision > 0))
        .last()
        .expect("an applied entry");
    let mut line = run.0[at].clone();
    let Fact::Applied { revision, .. } = &mut line.fact else {
        unreachable!()
    };
    *revision += 1;
    run.0.push(line);
    run.is_objected_to_by(Checker::StateMachineSafety);
}

#[test]
fn a_commit_that_leaves_a_gap() {
    let mut run = Record::of_a_run();
    let single = |f: &Fact| matches!(f, Fact::Committed { entries, .. } if entries.len() == 1);
    let commits = run.places(single);
    let at = commits
        .iter()
        .find(|at| {
            let Fact::Committed { entries, .. } = &run.0[**at].fact else {
                unreachable!()
            };
            let index = entries[0].index;
            let before = run.0[..**at].iter();
            !before.clone().any(|line| matches!(&line.fact, Fact::Committed { entries, .. } if entries.iter().any(|e| e.index == index)))
        })
        .copied()
        .expect("a first commit of one entry");
    run.0.remove(at);
    run.is_objected_to_by(Checker::StateMachineSafety);
}

#[test]
fn a_commit_that_too_few_disks_hold() {
    let mut run = Record::of_a_run();
    let at = run.place("a commit", |f| matches!(f, Fact::OnDisks { .. }));
    let Fact::OnDisks {
        holders,
        configuration,
        ..
    } = &mut run.0[at].fact
    else {
        unreachable!()
    };
    let few = configuration.voters.len() / 2;
    *holders = configuration.voters.keys().copied().take(few).collect();
    run.is_objected_to_by(Checker::CommitDurability);
}

/// What a majority holds, but a later election would not be decided by (Raft figure 8).
#[test]
fn a_commit_that_a_later_leader_may_lack() {
    let mut run = Record::of_a_run();
    let at = run.place(
        "a commit by one set of voters",
        |f| matches!(f, Fact::OnDisks { configuration, .. } if !configuration.is_joint()),
    );
    let Fact::OnDisks {
        configuration,
        rivals,
        ..
    } = &mut run.0[at].fact
    else {
        unreachable!()
    };
    let supporters = configuration.voters.keys().copied();
    rivals.push(Rival {
        key: other_key(),
        configuration: configuration.clone(),
        supporters: supporters
            .skip((configuration.voters.len() - 1) / 2)
            .collect(),
    });
    run.is_objected_to_by(Checker::CommitDurability);
}

#[test]
fn a_commit_index_goes_back() {
    let mut run = Record::of_a_run();
    let at = run.place(
        "progress",
        |f| matches!(f, Fact::Progress(progress) if progress.commit > Index(1)),
    );
    let mut line = run.0[at].clone();
    let Fact::Progress(progress) = &mut line.fact else {
        unreachable!()
    };
    progress.commit = progress.commit.previous();
    run.0.insert(at + 1, line);
    run.is_objected_to_by(Checker::Monotonicity);
}

#[test]
fn a_disk_forgets_a_vote() {
    let mut run = Record::of_a_run();
    let at = run.place(
        "a vote on disk",
        |f| matches!(f, Fact::Stored { hard_state, .. } if hard_state.voted_for.is_some()),
    );
    let mut line = run.0[at].clone();
    let Fact::Stored { hard_state, .. } = &mut line.fact else {
        unreachable!()
    };
    hard_state.voted_for = None;
    run.0.insert(at + 1, line);
    run.is_objected_to_by(Checker::OneVotePerTerm);
}

#[test]
fn a_voter_votes_for_two() {
    let mut run = Record::of_a_run();
    let at = run.place("a vote", |f| matches!(f, Fact::Votes { .. }));
    let mut line = run.0[at].clone();
    let Fact::Votes { candidate, .. } = &mut line.fact else {
        unreachable!()
    };
    *candidate = other_key();
    run.0.insert(at + 1, line);
    run.is_objected_to_by(Checker::OneVotePerTerm);
}

/// The successor's claim begins a moment before its predecessor's ends.
#[test]
fn two_claims_overlap() {
    let mut run = Record::of_a_run();
    let (before, after) = hand_over(&run);
    let (Fact::Claimed(old), Fact::Claimed(new)) = (&run.0[before].fact, &run.0[after].fact) else {
        unreachable!()
    };
    let from = old.until - 1;
    let claim = Claim { from, ..*new };
    run.0[after].fact = Fact::Claimed(claim);
    run.is_objected_to_by(Checker::ExclusiveLeadership);
}

#[test]
fn a_fencing_token_repeats() {
    let mut run = Record::of_a_run();
    let (before, after) = hand_over(&run);
    let (Fact::Claimed(old), Fact::Claimed(new)) = (&run.0[before].fact, &run.0[after].fact) else {
        unreachable!()
    };
    let claim = Claim {
        epoch: old.epoch,
        ..*new
    };
    run.0[after].fact = Fact::Claimed(claim);
    run.is_objected_to_by(Checker::FencingTokens);
}

#[test]
fn a_fencing_token_goes_back() {
    let mut run = Record::of_a_run();
    let (before, after) = hand_over(&run);
    let (Fact::Claimed(old), Fact::Claimed(new)) = (&run.0[before].fact, &run.0[after].fact) else {
        unreachable!()
    };
    let epoch = LeaseEpoch {
        term: Term(old.epoch.term.0 - 1),
        number: 0,
    };
    let claim = Claim { epoch, ..*new };
    run.0[after].fact = Fact::Claimed(claim);
    run.is_objected_to_by(Checker::FencingTokens);
}

#[test]
fn two_formations_have_leaders() {
    let mut run = Record::of_a_run();
    let at = run.place("a formation", |f| matches!(f, Fact::Formed(_)));
    let Fact::Formed(formation) = &mut run.0[at].fact else {
        unreachable!()
    };
    formation.settings.lease_ms += 1;
    run.is_objected_to_by(Checker::OneFormation);
}

/// A run in which one claim to be the only leader was altered.
fn altered_claim(alter: impl Fn(&mut Promise)) -> Record {
    let mut run = Record::of_a_run();
    let at = run.place("a claim", |f| matches!(f, Fact::Claims(_)));
    let Fact::Claims(promise) = &mut run.0[at].fact else {
        unreachable!()
    };
    alter(promise);
    run
}

#[test]
fn a_claim_without_a_session() {
    let run = altered_claim(|promise| promise.connected = false);
    run.is_objected_to_by(Checker::LeaseConditions);
}

#[test]
fn a_claim_before_its_epoch_is_committed() {
    let run = altered_claim(|promise| promise.committed.term.0 -= 1);
    run.is_objected_to_by(Checker::LeaseConditions);
}

#[test]
fn a_claim_without_a_vote() {
    let run = altered_claim(|promise| promise.votes = false);
    run.is_objected_to_by(Checker::LeaseConditions);
}

#[test]
fn a_claim_beyond_the_lease() {
    let run = altered_claim(|promise| promise.ahead = promise.lease + Duration::from_micros(1));
    run.is_objected_to_by(Checker::LeaseConditions);
}

#[test]
fn a_claim_before_older_leases_end() {
    let mut run = Record::of_a_run();
    let given: BTreeSet<(NodeKey, Term)> = run
        .0
        .iter()
        .filter_map(|line| match &line.fact {
            Fact::Hands { to, term, request } if request.released.is_some() => {
                Some((*to, Term(term.0 + 1)))
            }
            _ => None,
        })
        .collect();
    // The first of an epoch that an election opened: a later one may begin later.
    let mut epochs = BTreeSet::new();
    let firsts = run.places(|f| matches!(f, Fact::Claims(p) if p.epoch.number == 0));
    let first = |at: &usize| match &run.0[*at].fact {
        Fact::Claims(p) => epochs.insert(p.epoch) && !given.contains(&(p.key, p.epoch.term)),
        _ => unreachable!(),
    };
    let waited: Vec<usize> = firsts.into_iter().filter(first).collect();
    let at = waited[waited.len() / 2];
    let Fact::Claims(promise) = &mut run.0[at].fact else {
        unreachable!()
    };
    // Two microseconds are lost where the judge and the nodes round.
    promise.from = Time(promise.from.0 - 3);
    run.is_objected_to_by(Checker::LeaseWait);
}

/// The place of the newest claim of a leader that was given its predecessor's lease epoch.
fn released(run: &Record) -> (usize, usize) {
    let hands =
        run.places(|f| matches!(f, Fact::Hands { request, .. } if request.released.is_some()));
    let mut pairs = hands.into_iter().filter_map(|hand| {
        let Fact::Hands { to, term, .. } = run.0[hand].fact else {
            unreachable!()
        };
        let claims =
            |f: &Fact| matches!(f, Fact::Claims(p) if p.key == to && p.epoch.term == term.next());
        Some((hand, *run.places(claims).first()?))
    });
    pairs.next_back().expect("a release that was made use of")
}

/// What was released is another epoch than the newest in the log of who relies on it.
#[test]
fn a_release_of_an_older_epoch_is_relied_upon() {
    let mut run = Record::of_a_run();
    let (_, claim) = released(&run);
    let Fact::Claims(Promise { epoch, .. }) = run.0[claim].fact else {
        unreachable!()
    };
    let leads = |f: &Fact| matches!(f, Fact::Leads { term, .. } if *term == epoch.term);
    let at = run.places(leads)[0];
    let Fact::Leads { won, .. } = &mut run.0[at].fact else {
        unreachable!()
    };
    won.epoch.number += 1;
    run.is_objected_to_by(Checker::LeaseWait);
}

#[test]
fn a_released_epoch_is_claimed_again() {
    let mut run = Record::of_a_run();
    let (hand, _) = released(&run);
    let Fact::Hands { request, .. } = run.0[hand].fact else {
        unreachable!()
    };
    let claims = |f: &Fact| matches!(f, Fact::Claims(p) if Some(p.epoch) == request.released);
    let claim = run.0[run.places(claims)[0]].clone();
    run.0.insert(hand + 1, claim);
    run.is_objected_to_by(Checker::LeaseConditions);
}

/// A campaign of whom the leader asked to take over, and with it how that node stood then.
fn take_over(run: &Record) -> (usize, usize) {
    let campaigns = run.places(|f| {
        matches!(
            f,
            Fact::Votes {
                takes_over: true,
                ..
            }
        )
    });
    let campaign = *campaigns.first().expect("a node takes over");
    let Fact::Votes { key: candidate, .. } = run.0[campaign].fact else {
        unreachable!()
    };
    let stands = run.places(|f| matches!(f, Fact::Stands { key, .. } if *key == candidate));
    let stood = stands.into_iter().rfind(|at| *at < campaign);
    (stood.expect("it stands"), campaign)
}

fn altered_take_over(alter: impl Fn(&mut Stood)) -> Record {
    let mut run = Record::of_a_run();
    let (at, _) = take_over(&run);
    let Fact::Stands { stood, .. } = &mut run.0[at].fact else {
        unreachable!()
    };
    alter(stood);
    run
}

#[test]
fn a_node_takes_over_late() {
    let run = altered_take_over(|stood| stood.now = stood.now + stood.timeout);
    run.is_objected_to_by(Checker::TakeOver);
}

#[test]
fn a_node_takes_over_with_another_log() {
    let run = altered_take_over(|stood| stood.last.index.0 += 1);
    run.is_objected_to_by(Checker::TakeOver);
}

#[test]
fn a_node_takes_over_that_nobody_asked() {
    let mut run = Record::of_a_run();
    run.0
        .retain(|line| !matches!(line.fact, Fact::Hands { .. }));
    run.is_objected_to_by(Checker::TakeOver);
}

/// Fewer votes than a quorum, in any set that counts, elect nobody.
#[test]
fn a_leader_of_too_few_votes() {
    let mut run = Record::of_a_run();
    let at = run.place("a leader", |f| matches!(f, Fact::Leads { .. }));
    let Fact::Leads { configuration, .. } = &mut run.0[at].fact else {
        unreachable!()
    };
    let strangers = [1_u128, 2, 3].map(|n| (NodeKey(n), "x".to_owned()));
    configuration.outgoing = strangers.into();
    run.is_objected_to_by(Checker::ElectionQuorum);
}

/// A run in which one change of the members was altered: the step into a joint configuration.
fn altered_proposal(alter: impl Fn(&mut Proposal)) -> Record {
    let mut run = Record::of_a_run();
    let enters = |f: &Fact| matches!(f, Fact::Proposes(p) if p.next.is_joint());
    let at = run.place("a change of voters", enters);
    let Fact::Proposes(proposal) = &mut run.0[at].fact else {
        unreachable!()
    };
    alter(proposal);
    run
}

#[test]
fn a_change_begins_while_another_is_uncommitted() {
    let run = altered_proposal(|proposal| proposal.before.0 = proposal.commit + 1);
    run.is_objected_to_by(Checker::MemberChanges);
}

#[test]
fn a_change_begins_before_a_commit_of_its_term() {
    let run = altered_proposal(|proposal| proposal.committed.0 -= 1);
    run.is_objected_to_by(Checker::MemberChanges);
}

#[test]
fn voters_change_without_a_joint_step() {
    let run = altered_proposal(|proposal| proposal.next.outgoing.clear());
    run.is_objected_to_by(Checker::MemberChanges);
}

#[test]
fn a_change_rests_on_voters_that_are_gone() {
    let run = altered_proposal(|proposal| {
        proposal.unheard = 2 * proposal.timeout + Duration::from_micros(1);
    });
    run.is_objected_to_by(Checker::MemberChanges);
}

/// One that is joint is followed by its new voters alone.
#[test]
fn a_joint_configuration_is_left_for_a_third() {
    let mut run = Record::of_a_run();
    let leaves = |f: &Fact| matches!(f, Fact::Proposes(p) if p.before.1.is_joint());
    let at = run.place("a change that ends", leaves);
    let Fact::Proposes(proposal) = &mut run.0[at].fact else {
        unreachable!()
    };
    proposal.next.voters.pop_first();
    run.is_objected_to_by(Checker::MemberChanges);
}

/// A commit that the new voters alone hold, where the old ones count too.
#[test]
fn a_commit_that_half_of_a_joint_quorum_holds() {
    let mut run = Record::of_a_run();
    let joint =
        |f: &Fact| matches!(f, Fact::OnDisks { configuration, .. } if configuration.is_joint());
    let at = run.place("a commit by a joint quorum", joint);
    let Fact::OnDisks {
        holders,
        configuration,
        ..
    } = &mut run.0[at].fact
    else {
        unreachable!()
    };
    let new = configuration.voters.keys();
    let new = new.filter(|key| !configuration.outgoing.contains_key(key));
    *holders = new.copied().collect();
    configuration.voters.retain(|key, _| holders.contains(key));
    run.is_objected_to_by(Checker::CommitDurability);
}

#[test]
fn a_leader_hands_over_too_soon() {
    let plan = "troubled 40.000000\nhold 0.500000\ntenure 2.000000\nat 12.000000 metrics swing 9";
    let mut run = World::lived(plan).judge.record;
    assert_eq!(run.judged(), None);
    let at = run.place("a hand-over", |f| matches!(f, Fact::HandsOver { .. }));
    let Fact::HandsOver { led, tenure } = &mut run.0[at].fact else {
        unreachable!()
    };
    *led = *tenure - Duration::from_micros(1);
    run.is_objected_to_by(Checker::HandOverPace);
}

#[test]
fn a_leader_goes_on_without_a_quorum() {
    let mut run = Record::of_a_run();
    let at = run.place("a leader", |f| matches!(f, Fact::LeadsOn { .. }));
    let Fact::LeadsOn { unheard, timeout } = &mut run.0[at].fact else {
        unreachable!()
    };
    *unheard = 2 * *timeout + Duration::from_micros(1);
    run.is_objected_to_by(Checker::CheckQuorum);
}

#[test]
fn a_node_counts_other_voters() {
    let mut run = Record::of_a_run();
    let at = run.place("a configuration", |f| matches!(f, Fact::Configured { .. }));
    let Fact::Configured { configuration, .. } = &mut run.0[at].fact else {
        unreachable!()
    };
    configuration.voters.pop_first();
    run.is_objected_to_by(Checker::Configuration);
}

#[test]
fn a_node_campaigns_without_asking_first() {
    let mut run = Record::of_a_run();
    run.0
        .retain(|line| !matches!(line.fact, Fact::AsksFirst { .. }));
    run.is_objected_to_by(Checker::PreVote);
}

/// Leaders' sessions end, and the others campaign at once: were those other sessions, they may not.
#[test]
fn a_will_of_another_session_is_obeyed() {
    let mut run = Record::of_a_run();
    for line in &mut run.0 {
        if let Fact::HearsEnd { session, .. } = &mut line.fact {
            session.0 ^= 1;
        }
    }
    run.is_objected_to_by(Checker::PreVote);
}

/// Whoever was told of a leader's end, and has voted for its successor since, asks first again.
#[test]
fn a_will_is_obeyed_under_the_next_leader() {
    let mut run = Record::of_a_run();
    let votes = run.places(|f| matches!(f, Fact::Votes { key, candidate, .. } if key != candidate));
    let told = |at: &usize| {
        let Fact::Votes { key: voter, .. } = run.0[*at].fact else {
            unreachable!()
        };
        let hears = |f: &Fact| matches!(f, Fact::HearsEnd { key, .. } if *key == voter);
        run.0[..*at].iter().any(|line| hears(&line.fact))
    };
    let at = votes.into_iter().find(told).expect("a vote after a will");
    let mut line = run.0[at].clone();
    let Fact::Votes {
        key,
        term,
        candidate,
        ..
    } = &mut line.fact
    else {
        unreachable!()
    };
    (*candidate, *term) = (*key, term.next());
    run.0.insert(at + 1, line);
    run.is_objected_to_by(Checker::PreVote);
}

/// The last claim of one node and the first of the next, one that claims for the first time.
fn hand_over(run: &Record) -> (usize, usize) {
    let claims = run.places(|f| matches!(f, Fact::Claimed(_)));
    let pairs = claims.windows(2).rev();
    let mut pairs = pairs.filter(|pair| run.0[pair[0]].host != run.0[pair[1]].host);
    let pair = pairs.next().expect("a hand-over");
    (pair[0], pair[1])
}
