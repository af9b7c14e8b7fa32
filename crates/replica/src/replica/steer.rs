//! Members, settings and another leader, as operators ask for them: names become keys here, and the
//! answers of consensus become words.

use raft::{ChangeError, ChangeId, ChangeRefusal, MemberChange, TransferRefusal};

use super::*;
use crate::presence::OBSERVER;
use crate::wire::{Member, MemberOperation, Members, Transfer};

/// How many leaders' changes are remembered as answered.
const MAX_ANSWERED: usize = 64;

/// What operators wait for.
#[derive(Default)]
pub(super) struct Steering {
    last_change: ChangeId,
    changes: BTreeMap<ChangeId, Asked>,
    /// Changes that were made, by who asked: a retry is not a second change.
    answered: std::collections::VecDeque<(ClientId, RequestNumber)>,
    transfer: Option<(NodeKey, Vec<Asked>)>,
    /// The node has been a member while this process ran, or was when it began.
    was_member: bool,
    /// The node is about to stop, at the latest then.
    leaving: Option<Time>,
}

impl Steering {
    pub(super) fn transfer_is_idle(&self) -> bool {
        self.transfer.is_none()
    }
}

impl Replica {
    // Changes.

    pub(super) fn on_change(&mut self, asked: Asked, change: &Change) {
        let same = |other: &Asked| (other.client, other.number) == (asked.client, asked.number);
        if self.steering.changes.values().any(same) {
            return; // A retry of what is under way.
        }
        if self
            .steering
            .answered
            .contains(&(asked.client, asked.number))
        {
            let members = self.members();
            return self.reply(&asked, Answer::Members(members));
        }
        if let Some(why) = self.older_build() {
            return self.reply(&asked, Answer::NotYet(why));
        }
        match self.resolve(change) {
            Err(why) => self.reply(&asked, Answer::Refused(why)),
            Ok(Err(why)) => self.reply(&asked, Answer::NotYet(why)),
            Ok(Ok(members)) => {
                let settings = change.settings;
                self.steering.last_change = self.steering.last_change.next();
                let id = self.steering.last_change;
                self.steering.changes.insert(id, asked);
                self.consensus(raft::Input::Reconfigure {
                    id,
                    members,
                    settings,
                });
            }
        }
    }

    /// The steps by key, without those that are done already. The inner error may pass by itself.
    fn resolve(&self, change: &Change) -> Result<Result<Vec<MemberChange>, String>, String> {
        let Some(raft) = &self.raft else {
            return Ok(Err("the cluster is not formed".to_owned()));
        };
        let configuration = raft.configuration();
        let mut steps = Vec::new();
        for operation in &change.members {
            match operation {
                MemberOperation::Add { who, witness } => {
                    let Some((key, name)) = self.present(who)? else {
                        let why = format!(
                            "{who} is not there: start it with the cluster's name and key, and without --voters"
                        );
                        return Ok(Err(why));
                    };
                    if configuration.is_member(key) && configuration.is_witness(key) != *witness {
                        let is = if *witness { "no witness" } else { "a witness" };
                        return Err(format!(
                            "{name} is a member already, and {is}: remove it and add it anew, with an empty data directory"
                        ));
                    }
                    if !configuration.is_member(key) {
                        if let Some(why) = self.older_build_of(key) {
                            return Ok(Err(why));
                        }
                        let witness = *witness;
                        if self.is_started_as_witness(key) != witness {
                            return Err(match witness {
                                true => format!(
                                    "{name} was not started as a witness: start it with `mqraft witness`"
                                ),
                                false => format!(
                                    "{name} was started as a witness: add it as one, or start it with `mqraft node`"
                                ),
                            });
                        }
                        steps.push(MemberChange::AddLearner { key, name, witness });
                    }
                }
                MemberOperation::Promote(who) => {
                    let key = self.member(who, |key| configuration.learners.contains_key(&key))?;
                    match key {
                        Some(key) => steps.push(MemberChange::Promote(key)),
                        None if self.member(who, |_| true)?.is_some() => {}
                        None => return Err(format!("there is no member {who}: add it first")),
                    }
                }
                MemberOperation::Demote(who) => {
                    let key = self.member(who, |key| configuration.voters.contains_key(&key))?;
                    match key {
                        Some(key) => steps.push(MemberChange::Demote(key)),
                        None if self.member(who, |_| true)?.is_some() => {}
                        None => return Err(format!("there is no member {who}")),
                    }
                }
                MemberOperation::Remove(who) => {
                    if let Some(key) = self.member(who, |_| true)? {
                        steps.push(MemberChange::Remove(key));
                    }
                }
            }
        }
        Ok(Ok(steps))
    }

    /// The one member that is meant, among those for whom `is_meant` holds.
    fn member(
        &self,
        who: &str,
        is_meant: impl Fn(NodeKey) -> bool,
    ) -> Result<Option<NodeKey>, String> {
        let Some(raft) = &self.raft else {
            return Ok(None);
        };
        let configuration = raft.configuration();
        let fits = |key: &NodeKey| {
            is_meant(*key)
                && configuration
                    .name(*key)
                    .is_some_and(|name| is_called(who, name, *key))
        };
        let found: Vec<NodeKey> = configuration.all_members().filter(fits).collect();
        match found.as_slice() {
            [] => Ok(None),
            [key] => Ok(Some(*key)),
            several => {
                let name = who.split('#').next().unwrap_or(who);
                let all: Vec<String> = several.iter().map(|key| format!("{name}#{key}")).collect();
                Err(format!("{who} is ambiguous: say {}", all.join(" or ")))
            }
        }
    }

    /// Who is to lead: where a node that lost its disk learns beside its former self, both are called
    /// so, and only one of them votes.
    fn voter_or_member(&self, who: &str) -> Result<Option<NodeKey>, String> {
        let votes = |key| self.is_voter(key);
        match self.member(who, votes)? {
            Some(key) => Ok(Some(key)),
            None => self.member(who, |_| true),
        }
    }

    /// A node that is there, whether or not it is a member.
    fn present(&self, who: &str) -> Result<Option<(NodeKey, String)>, String> {
        let nodes = self.active_nodes();
        let found: Vec<&ActiveNode> = nodes
            .iter()
            .filter(|node| is_called(who, node.name.as_str(), node.key))
            // Whoever is there and nothing more holds no log.
            .filter(|node| node.role != OBSERVER)
            .collect();
        match found.as_slice() {
            [] => Ok(None),
            [node] => Ok(Some((node.key, node.name.to_string()))),
            _ => Err(format!("{who} is ambiguous")),
        }
    }

    fn is_started_as_witness(&self, key: NodeKey) -> bool {
        let node = self.presence.active().find(|node| node.key == key);
        node.is_some_and(|node| node.role == status::WITNESS)
    }

    pub(super) fn on_change_done(&mut self, id: ChangeId) {
        let Some(asked) = self.steering.changes.remove(&id) else {
            return;
        };
        if self.steering.answered.len() >= MAX_ANSWERED {
            self.steering.answered.pop_front();
        }
        self.steering
            .answered
            .push_back((asked.client, asked.number));
        let members = self.members();
        self.reply(&asked, Answer::Members(members));
        self.rank_is_stale = true;
    }

    pub(super) fn on_change_refused(&mut self, id: ChangeId, refusal: ChangeRefusal) {
        let Some(asked) = self.steering.changes.remove(&id) else {
            return;
        };
        let not_yet = |why: &str| Answer::NotYet(why.to_owned());
        let answer = match refusal {
            ChangeRefusal::NotLeader { leader } => self.refusal(Refusal::NotLeader { leader }),
            // The next leader may see it through, or undo it: nobody knows, and nobody is told.
            ChangeRefusal::Deposed => return,
            ChangeRefusal::TooEarly => not_yet("the leader has just been elected"),
            ChangeRefusal::InProgress => not_yet("another change is under way"),
            ChangeRefusal::NoQuorum => {
                not_yet("no majority of the voters, as they are or as they would be, is heard")
            }
            ChangeRefusal::NotCaughtUp(key) => {
                let name = self.called(key);
                Answer::NotYet(format!("{name} is still being brought up to date"))
            }
            ChangeRefusal::Leader if self.best_successor().is_none() => {
                not_yet("the leader itself is to go, and no other voter is there that could lead")
            }
            ChangeRefusal::Leader => {
                self.hand_over_to_best();
                not_yet("the leader itself is to go and hands over first")
            }
            ChangeRefusal::Invalid(error) => Answer::Refused(self.explain(error)),
        };
        self.reply(&asked, answer);
    }

    fn explain(&self, error: ChangeError) -> String {
        match error {
            ChangeError::Joint => "another change is under way".to_owned(),
            ChangeError::Twice(key) => format!("{} is named twice", self.called(key)),
            ChangeError::Member(key) => format!("{} is a member already", self.called(key)),
            ChangeError::NotAMember(key) => format!("{} is no member", self.called(key)),
            ChangeError::NotALearner(key) => format!("{} is no learner", self.called(key)),
            ChangeError::NotAVoter(key) => format!("{} has no vote", self.called(key)),
            ChangeError::NoVoters => "no voter would be left that can lead".to_owned(),
            ChangeError::TooMany => format!(
                "a cluster has at most {} voters and {} learners; whoever only reads needs to be neither",
                raft::Configuration::MAX_VOTERS,
                raft::Configuration::MAX_LEARNERS
            ),
            ChangeError::Settings => {
                "a lease lasts 10 ms to 10 min, and clocks drift less than 100,000 ppm".to_owned()
            }
        }
    }

    pub(super) fn called(&self, key: NodeKey) -> String {
        self.name_of(key)
            .map_or_else(|| key.to_string(), |name| name.to_string())
    }

    /// Who belongs to the cluster, as this node knows it.
    pub fn members(&self) -> Members {
        let Some(raft) = &self.raft else {
            return Members::default();
        };
        let configuration = raft.configuration();
        let member = |key: NodeKey| {
            let follower = raft.follower(key);
            let incoming = configuration.voters.contains_key(&key);
            let outgoing = configuration.outgoing.contains_key(&key);
            Member {
                name: configuration.name(key).unwrap_or_default().to_owned(),
                key,
                voter: incoming || outgoing,
                witness: configuration.is_witness(key),
                leaving: outgoing && !incoming,
                heard: follower.is_some_and(|follower| follower.is_heard),
                caught_up: follower.is_some_and(|follower| follower.is_caught_up),
                match_index: follower.map_or(0, |follower| follower.match_index.0),
            }
        };
        let mut members: Vec<Member> = configuration.all_members().map(member).collect();
        members.sort_by(|a, b| (&a.name, a.key).cmp(&(&b.name, b.key)));
        Members {
            members,
            settings: configuration.settings,
            index: raft.configuration_index().0,
            leader: self.leader().map_or(String::new(), |name| name.to_string()),
        }
    }

    /// A node that begins with a log in which it is a member may have been removed since.
    pub(super) fn begin_membership(&mut self) {
        let me = self.endpoint.key;
        let raft = self.raft.as_ref();
        self.steering.was_member = raft.is_some_and(|raft| raft.configuration().is_member(me));
    }

    /// A member that sees itself gone from what is committed stops, once its disk says so too: it
    /// may come back, without a vote as anyone may, and would else learn and stop once more. That is
    /// the last of a step: what a leader that let itself go says to the others goes out before.
    pub(super) fn check_membership(&mut self) {
        let Some(raft) = &self.raft else { return };
        let me = self.endpoint.key;
        let newest = raft.configuration();
        if newest.is_member(me) && newest.is_witness(me) != self.witness {
            return self.stop(match self.witness {
                true => StopReason::NoWitness,
                false => StopReason::Witness,
            });
        }
        // Who starts again after it was removed goes through the entries of its membership once
        // more: what counts is whether it is a member by the end of its log.
        let is_member = newest.is_member(me);
        let is_settled = raft.commit_index() >= raft.configuration_index();
        if is_member && is_settled {
            self.steering.was_member = true;
            return;
        }
        let committed = raft.committed_configuration();
        let is_gone = committed.is_some_and(|committed| !committed.is_member(me));
        let is_here = committed.is_some_and(|committed| committed.is_member(me));
        let is_durable = raft.persisted_index() >= raft.configuration_index();
        // Whoever catches up goes through memberships and removals that are long past: only the last
        // one is news.
        let is_news = !raft.is_behind();
        let removed = self.steering.was_member && !is_member && is_gone && is_durable && is_news;
        // An entry that makes it a member and is not committed may be undone: that is no removal.
        self.steering.was_member |= is_member && is_here;
        if removed && self.phase == Phase::Running {
            self.rank_is_stale = true;
            self.stop(StopReason::Removed);
        }
    }

    // Transfers.

    pub(super) fn on_transfer(&mut self, asked: Asked, transfer: &Transfer) {
        let me = self.endpoint.name.to_string();
        if transfer.from.as_ref().is_some_and(|from| *from != me) {
            return self.reply(&asked, Answer::Transferred(me));
        }
        if let Some(why) = self.older_build() {
            return self.reply(&asked, Answer::NotYet(why));
        }
        let to = match transfer.to.as_deref() {
            None => match self.best_successor() {
                Some(key) => key,
                None => {
                    let why = "no other voter is there that could lead".to_owned();
                    return self.reply(&asked, Answer::NotYet(why));
                }
            },
            Some(who) => match self.voter_or_member(who) {
                Ok(Some(key)) => key,
                Ok(None) => {
                    let why = format!("there is no member {who}");
                    return self.reply(&asked, Answer::Refused(why));
                }
                Err(why) => return self.reply(&asked, Answer::Refused(why)),
            },
        };
        if to == self.endpoint.key {
            return self.reply(&asked, Answer::Transferred(me));
        }
        match &mut self.steering.transfer {
            Some((under_way, waiting)) if *under_way == to => {
                waiting
                    .retain(|other| (other.client, other.number) != (asked.client, asked.number));
                waiting.push(asked);
            }
            Some(_) => {
                let why = "the lead is just being handed to another node".to_owned();
                self.reply(&asked, Answer::NotYet(why));
            }
            None => {
                self.steering.transfer = Some((to, vec![asked]));
                self.begin_transfer(to);
            }
        }
    }

    /// Hands the lead to `to`, unless that is not possible: then nothing happens.
    pub(super) fn hand_over(&mut self, to: NodeKey) {
        if self.steering.transfer.is_none() && self.older_build().is_none() {
            self.steering.transfer = Some((to, Vec::new()));
            self.begin_transfer(to);
        }
    }

    fn begin_transfer(&mut self, to: NodeKey) {
        let patience = self.relinquish_timeout;
        self.consensus(raft::Input::Transfer { to, patience });
        if self.steering.transfer.is_some() {
            self.event(Event::Relinquish);
        }
    }

    fn hand_over_to_best(&mut self) {
        if let Some(to) = self.best_successor() {
            self.hand_over(to);
        }
    }

    /// Of the voters that the leader hears and that hold its log, the one with the best metric.
    fn best_successor(&self) -> Option<NodeKey> {
        let raft = self.raft.as_ref()?;
        let configuration = raft.configuration();
        let could_lead = |key: NodeKey| {
            key != self.endpoint.key
                && !configuration.is_witness(key)
                && raft.follower(key).is_some_and(|f| f.is_caught_up)
        };
        let nodes = self.presence.active();
        let rank = |key: NodeKey| {
            let node = nodes.clone().find(|node| node.key == key);
            node.map_or((true, None), |node| {
                (false, Some((node.metric, node.name.clone())))
            })
        };
        let candidates = configuration.voters.keys().copied();
        candidates
            .filter(|key| could_lead(*key))
            .min_by_key(|key| rank(*key))
    }

    pub(super) fn on_transfer_refused(&mut self, to: NodeKey, refusal: TransferRefusal) {
        self.hand_over_failed();
        let Some((_, waiting)) = self
            .steering
            .transfer
            .take_if(|(under_way, _)| *under_way == to)
        else {
            return;
        };
        let name = self.called(to);
        let not_yet = |why: String| Answer::NotYet(why);
        let answer = match refusal {
            TransferRefusal::NotLeader { leader } => self.refusal(Refusal::NotLeader { leader }),
            TransferRefusal::Leader => Answer::Transferred(name),
            TransferRefusal::NotAVoter => {
                Answer::Refused(format!("{name} is no voter that could lead"))
            }
            TransferRefusal::NotHeard => not_yet(format!("{name} is not heard")),
            TransferRefusal::InProgress => not_yet("a change is under way".to_owned()),
            TransferRefusal::TimedOut => not_yet(format!("{name} did not take over in time")),
        };
        for asked in waiting {
            self.reply(&asked, answer.clone());
        }
    }

    /// Another leader, or none: who waits for a transfer learns how it ended.
    pub(super) fn on_leader_changed(&mut self) {
        let leader = self.raft.as_ref().and_then(Raft::leader);
        self.hand_over.observe(leader, self.now);
        if leader.is_none() {
            return;
        }
        let Some((to, waiting)) = self.steering.transfer.take() else {
            return;
        };
        let name = self.called(to);
        let answer = match leader {
            Some(leader) if leader == to => Answer::Transferred(name),
            // This node leads again: the other asked for votes in vain.
            Some(leader) if leader == self.endpoint.key => {
                self.hand_over_failed();
                Answer::NotYet(format!("{name} did not win the election"))
            }
            Some(_) | None => Answer::NotLeader(leader.map(|key| self.called(key))),
        };
        for asked in waiting {
            self.reply(&asked, answer.clone());
        }
    }

    fn reply(&mut self, asked: &Asked, answer: Answer) {
        let (client, number) = (asked.client, asked.number);
        self.answer(
            &asked.origin,
            Reply {
                client,
                number,
                answer,
            },
        );
    }

    // Leaving.

    /// Stops once somebody else leads, or nobody takes over in time.
    pub(super) fn leave(&mut self) {
        if self.role() != Some(Role::Leader) || self.older_build().is_some() {
            return self.shut_down();
        }
        if self.steering.leaving.is_none() {
            let patience = self.relinquish_timeout + 2 * self.options.election_timeout;
            self.steering.leaving = Some(self.now + patience);
        }
        if self.steering.transfer.is_none() {
            match self.best_successor() {
                Some(to) => self.hand_over(to),
                None => self.shut_down(),
            }
        }
    }

    /// Whether the node has nothing more to do.
    pub fn has_stopped(&self) -> bool {
        self.phase == Phase::Stopped
    }

    pub(super) fn steer(&mut self) {
        self.consider_hand_over();
        self.consult_autopilot();
        let Some(until) = self.steering.leaving else {
            return;
        };
        let leads = self.role() == Some(Role::Leader);
        let has_successor = !leads && self.leader().is_some();
        let gave_up = self.now >= until || (leads && self.steering.transfer.is_none());
        if self.phase == Phase::Running && (has_successor || gave_up) {
            return self.shut_down();
        }
        if !leads {
            // Whoever takes over may need our vote.
            let patience = 2 * self.options.election_timeout;
            self.steering.leaving = Some(until.min(self.now + patience));
        }
    }

    pub(super) fn steering_deadline(&self) -> Option<Time> {
        let leaving = self
            .steering
            .leaving
            .filter(|_| self.phase != Phase::Stopped);
        let own = [self.hand_over_deadline(), self.autopilot_deadline()];
        [leaving].into_iter().chain(own).flatten().min()
    }
}

/// Whether `who` means the node of this name and key.
fn is_called(who: &str, name: &str, key: NodeKey) -> bool {
    match who.split_once('#') {
        None => who == name,
        Some((called, digits)) => {
            let hex = format!("{:032x}", key.0);
            (called.is_empty() || called == name)
                && !digits.is_empty()
                && (hex.starts_with(digits) || key.to_string() == digits)
        }
    }
}
