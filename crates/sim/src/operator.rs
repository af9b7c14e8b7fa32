//! The operator: gives and takes votes, changes settings, moves the lead and stops nodes, while all
//! else goes wrong.
//!
//! An operator may ask for anything but one thing: that what is left, or may be left, of the
//! cluster's voters is no majority. A disk that is gone votes no more, whatever a leader that heard
//! of it a moment ago may think; so neither a disk is wiped nor a change asked for that could end so
//! ([`World::holds_out`]), with all in mind that was asked for and may still be done.

use std::collections::BTreeSet;

use raft::{Configuration, MemberChange, Members, NodeKey, Payload, Role, Settings};
use replica::{
    Change, Done, Holds, Input, MemberOperation, Metric, Operation, RequestError, Token,
};

use crate::check::holds;
use crate::event::{Event, MS, Micros, SECOND};
use crate::faults::Fault;
use crate::node::{Host, Kind, Owner, REQUEST_TIMEOUT};
use crate::state;
use crate::world::World;

/// Tokens from here on are the operator's; those of callers of single keys count from zero.
const FIRST_TOKEN: u64 = 1 << 63;

/// How long after its end a request may still reach a leader, which then does what it says: longer
/// than any message is under way.
const AFTERLIFE: Micros = 10 * SECOND;

/// How many voters the operator gives a cluster.
const MOST_VOTERS: usize = 7;

/// What the operator has asked for.
#[derive(Debug, Default)]
pub(crate) struct Operator {
    asked: u64,
    pending: Vec<Pending>,
}

/// A request that may still be carried out.
#[derive(Debug)]
struct Pending {
    token: Token,
    fault: Fault,
    changes: Vec<MemberChange>,
    until: Micros,
    /// What is to be asked for when this is done.
    then: Vec<MemberChange>,
}

impl World {
    // Requests and what comes of them.

    fn ask_operator(
        &mut self,
        fault: Fault,
        operation: Operation,
        changes: Vec<MemberChange>,
        then: Vec<MemberChange>,
    ) -> Option<()> {
        let askers = self.live_hosts();
        let host = *self.rng.pick(&askers)?;
        self.operator.asked += 1;
        let token = Token(FIRST_TOKEN + self.operator.asked);
        self.trace(host, || format!("the operator asks for {operation:?}"));
        let timeout = REQUEST_TIMEOUT.as_micros() as Micros;
        self.operator.pending.push(Pending {
            token,
            fault,
            changes,
            until: self.now + timeout + AFTERLIFE,
            then,
        });
        let input = Input::Request {
            token,
            operation,
            timeout: REQUEST_TIMEOUT,
        };
        self.arrive(host, input);
        Some(())
    }

    /// A request has come to an end: a caller's or the operator's.
    pub(crate) fn request_ends(&mut self, token: Token, result: Result<Done, RequestError>) {
        if token.0 < state::FIRST_TOKEN {
            // Nothing was asked of anyone.
            if result == Err(RequestError::TooLarge) {
                self.asked.remove(&token);
            }
            let operation = self.history.calls[token.0 as usize].operation.clone();
            self.single_done(&operation, &result);
            return self.history.done(token, result, self.now);
        }
        if token.0 < FIRST_TOKEN {
            return self.state_done(token, result);
        }
        let until = self.now + AFTERLIFE;
        let mut pending = self.operator.pending.iter_mut();
        let Some(pending) = pending.find(|pending| pending.token == token) else {
            return;
        };
        pending.until = pending.until.min(until);
        let (fault, then) = (pending.fault, std::mem::take(&mut pending.then));
        if result.is_err() {
            return;
        }
        self.mattered(fault.name());
        if !then.is_empty() && !self.faults_end {
            self.change(fault, then, Vec::new(), None);
        }
    }

    /// Asks for a change, unless it could cost the cluster its majority.
    fn change(
        &mut self,
        fault: Fault,
        members: Vec<MemberChange>,
        then: Vec<MemberChange>,
        settings: Option<Settings>,
    ) -> Option<bool> {
        let now = self.now;
        self.operator.pending.retain(|pending| pending.until > now);
        if !self.holds_out(None, &members) {
            return None;
        }
        let operations = members.iter().map(|change| self.in_words(change));
        let change = Change {
            members: operations.collect::<Option<_>>()?,
            settings,
        };
        self.ask_operator(fault, Operation::Change(change), members, then)?;
        Some(false)
    }

    /// How an operator says it: a name may be of several nodes, so the key goes with it.
    fn in_words(&self, change: &MemberChange) -> Option<MemberOperation> {
        let key = change.key();
        let mut hosts = self.hosts.iter();
        let name = match hosts.find(|host| host.disk.key == key) {
            Some(host) => host.name.to_string(),
            None => self.leaders_configuration()?.name(key)?.to_owned(),
        };
        let who = format!("{name}#{:032x}", key.0);
        Some(match change {
            MemberChange::AddLearner { witness, .. } => {
                let witness = *witness;
                MemberOperation::Add { who, witness }
            }
            MemberChange::Promote(_) => MemberOperation::Promote(who),
            MemberChange::Demote(_) => MemberOperation::Demote(who),
            MemberChange::Remove(_) => MemberOperation::Remove(who),
        })
    }

    /// What an operator sees: the members as the newest leader knows them.
    fn leaders_configuration(&self) -> Option<Configuration> {
        let leader = self.hosts[self.live_leader()?].replica()?;
        Some(leader.raft()?.configuration().clone())
    }

    // Members and settings.

    pub(crate) fn ask_for_change(&mut self, fault: Fault) -> Option<bool> {
        let configuration = self.leaders_configuration()?;
        match fault {
            Fault::Join => self.join(&configuration),
            Fault::Dismiss => {
                let voters: Vec<NodeKey> = configuration.voters.keys().copied().collect();
                let key = *self.rng.pick(&voters)?;
                let goes = match self.rng.chance(0.7) {
                    true => MemberChange::Remove(key),
                    false => MemberChange::Demote(key),
                };
                self.change(fault, vec![goes], Vec::new(), None)
            }
            Fault::Reshape => self.reshape(&configuration),
            Fault::Replace => self.replace(&configuration),
            Fault::Resettle => {
                let settings = self.draw_settings(configuration.settings);
                self.change(fault, Vec::new(), Vec::new(), Some(settings))
            }
            _ => None,
        }
    }

    fn draw_settings(&mut self, settings: Settings) -> Settings {
        Settings {
            lease_ms: *self.rng.pick(&[300, 1_000, 2_000]).expect("three"),
            lease_reads: self.rng.chance(0.5),
            ..settings
        }
    }

    /// Nodes that run and are no members, by key.
    fn strangers(&self, configuration: &Configuration) -> Vec<(NodeKey, String)> {
        let nodes = self.live_nodes().into_iter().map(|host| &self.hosts[host]);
        let own = nodes.filter(|host| !matches!(host.kind, Kind::Double(_)));
        own.map(|host| (host.disk.key, host.name.to_string()))
            .filter(|(key, _)| !configuration.is_member(*key))
            .collect()
    }

    /// A node that only follows becomes a voter.
    fn join(&mut self, configuration: &Configuration) -> Option<bool> {
        if configuration.voters.len() >= MOST_VOTERS {
            return None;
        }
        let learners: Vec<NodeKey> = configuration.learners.keys().copied().collect();
        if let Some(key) = self.rng.pick(&learners).copied() {
            let promote = vec![MemberChange::Promote(key)];
            return self.change(Fault::Join, promote, Vec::new(), None);
        }
        let strangers = self.strangers(configuration);
        let (key, name) = self.rng.pick(&strangers)?.clone();
        let add = vec![added(key, name)];
        self.change(Fault::Join, add, vec![MemberChange::Promote(key)], None)
    }

    /// A voter whose disk is gone gives way to the node that has come back in its place.
    fn replace(&mut self, configuration: &Configuration) -> Option<bool> {
        let voters = configuration.voters.iter();
        let lost: Vec<(NodeKey, String)> = voters
            .filter(|(key, _)| !self.hosts.iter().any(|host| host.disk.key == **key))
            .map(|(key, name)| (*key, name.clone()))
            .collect();
        let (old, name) = self.rng.pick(&lost)?.clone();
        let mut hosts = self.hosts.iter();
        let successor = hosts.find(|host| {
            host.name.as_str() == name && !matches!(host.kind, Kind::Double(_)) && host.is_node()
        });
        let new = successor?.disk.key;
        let swap = vec![MemberChange::Promote(new), MemberChange::Remove(old)];
        match configuration.is_member(new) {
            true => self.change(Fault::Replace, swap, Vec::new(), None),
            false => self.change(Fault::Replace, vec![added(new, name)], swap, None),
        }
    }

    /// Anything at once.
    fn reshape(&mut self, configuration: &Configuration) -> Option<bool> {
        let mut changes = Vec::new();
        for (key, name) in self.strangers(configuration) {
            if self.rng.chance(0.4) {
                changes.push(added(key, name));
            }
        }
        for key in configuration.learners.keys().copied() {
            match self.rng.below(10) {
                0..6 => changes.push(MemberChange::Promote(key)),
                6 => changes.push(MemberChange::Remove(key)),
                _ => {}
            }
        }
        for key in configuration.voters.keys().copied() {
            match self.rng.below(10) {
                0 => changes.push(MemberChange::Demote(key)),
                1 | 2 => changes.push(MemberChange::Remove(key)),
                _ => {}
            }
        }
        let settings = match self.rng.chance(0.3) {
            true => Some(self.draw_settings(configuration.settings)),
            false => None,
        };
        let next = configuration.change(&changes);
        let fits = next.is_ok_and(|next| next.voters.len() <= MOST_VOTERS);
        if !fits || (changes.is_empty() && settings.is_none()) {
            return None;
        }
        self.change(Fault::Reshape, changes, Vec::new(), settings)
    }

    /// Whether a host's disk may go: what is left holds out.
    pub(crate) fn can_lose(&mut self, host: usize) -> bool {
        let now = self.now;
        self.operator.pending.retain(|pending| pending.until > now);
        self.a_founder_remembers(Some(host), None) && self.holds_out(Some(host), &[])
    }

    /// Whether one of the nodes that were started with the list of voters knows of the cluster or of
    /// its formation: without the disk of `lost`, and beside a second process under the name of
    /// `doubled`. If all that go by the list are empty and hear no other node, they found another
    /// cluster: nothing on their disks could tell them better. Where votes have moved to others, no
    /// majority of those stands in the way (docs/operations.md, first start).
    pub(crate) fn a_founder_remembers(&self, lost: Option<usize>, doubled: Option<usize>) -> bool {
        let remembers = |host: &Host| host.disk.formation.is_some() && !host.disk.is_rotten();
        let hosts = self.hosts.iter().enumerate();
        // An empty second process, also one that may be started again, speaks for its name.
        let empty_double = hosts.clone().find_map(|(n, host)| match host.kind {
            Kind::Double(of) if host.life > 0 && (!remembers(host) || lost == Some(n)) => Some(of),
            _ => None,
        });
        let mut founders = hosts.filter(|(_, host)| host.kind == Kind::Voter);
        !self.formed()
            || founders.any(|(n, host)| {
                let stands_in = [lost, doubled, empty_double].contains(&Some(n));
                remembers(host) && !stands_in
            })
    }

    /// Whether every set of voters that counts or may come to count has a majority of disks that
    /// are there, without that of `lost`, and whichever of the changes that are asked for are made.
    fn holds_out(&self, lost: Option<usize>, asked: &[MemberChange]) -> bool {
        let disks = self.hosts.iter().enumerate();
        let kept: BTreeSet<NodeKey> = disks
            .filter(|(n, host)| Some(*n) != lost && !host.disk.is_rotten())
            .map(|(_, host)| host.disk.key)
            .collect();
        let pending = self.operator.pending.iter().flat_map(|p| &p.changes);
        let (mut going, mut coming) = (BTreeSet::new(), BTreeSet::new());
        for change in pending.chain(asked) {
            match change {
                MemberChange::AddLearner { .. } => {}
                MemberChange::Promote(key) => _ = coming.insert(*key),
                MemberChange::Demote(key) | MemberChange::Remove(key) => _ = going.insert(*key),
            }
        }
        let holds_out = |set: &Members| {
            let sure = set.keys().filter(|key| kept.contains(*key));
            let sure = sure.filter(|key| !going.contains(*key)).count();
            let gone = set.keys().filter(|key| !kept.contains(*key)).count();
            let come = coming.iter().filter(|key| !set.contains_key(*key));
            let come = come.filter(|key| !kept.contains(*key)).count();
            set.is_empty() || sure > gone + come
        };
        let configurations = self.configurations_that_count();
        let mut sets = configurations.iter().flat_map(|c| [&c.voters, &c.outgoing]);
        sets.all(holds_out)
    }

    /// Those that a node may go by now or later: what is committed last, and all that any log took
    /// after it. Before anything is committed: what any record forms a cluster of, or may.
    fn configurations_that_count(&self) -> Vec<Configuration> {
        let of_logs = self.judge.configurations_that_count();
        if !of_logs.is_empty() {
            return of_logs;
        }
        let disks = self.hosts.iter().map(|host| &host.disk);
        let records = disks.filter_map(|disk| holds(disk.formation.as_deref()?));
        let formed = records.filter_map(|record| match record {
            Holds::Nothing => None,
            Holds::Accepted(formation) | Holds::Formed(formation) => {
                match formation.first_entry().payload {
                    Payload::Configuration(configuration) => Some(configuration),
                    _ => None,
                }
            }
        });
        formed.collect()
    }

    // The lead.

    pub(crate) fn ask_for_transfer(&mut self) -> Option<bool> {
        let configuration = self.leaders_configuration()?;
        let voters: Vec<String> = configuration.voters.values().cloned().collect();
        let to = match self.rng.chance(0.3) {
            true => None,
            false => Some(self.rng.pick(&voters)?.clone()),
        };
        let operation = Operation::Transfer(replica::Transfer { to, from: None });
        self.ask_operator(Fault::Transfer, operation, Vec::new(), Vec::new())?;
        Some(false)
    }

    /// All metrics change, often to the disadvantage of whoever leads.
    pub(crate) fn swing(&mut self, times: u64, every: Micros) {
        if self.faults_end {
            return;
        }
        let leader = self.live_leader();
        let against = self.rng.chance(0.7);
        for node in self.live_nodes() {
            let metric = match against && leader == Some(node) {
                true => 9,
                false => self.rng.below(5),
            };
            let metric = Metric::new(metric as f64).expect("finite");
            self.arrive(node, Input::SetMetric(metric));
        }
        if times > 1 {
            let times = times - 1;
            self.queue
                .push(self.now + every, Event::Swing { times, every });
        }
    }

    /// A node is to stop, the leader as often as not, and hands over first.
    pub(crate) fn ask_to_leave(&mut self, node: usize) -> Option<bool> {
        let node = match self.rng.chance(0.5) {
            true => self.live_leader()?,
            false => node,
        };
        let leads = self.role(node) == Some(Role::Leader);
        (self.hosts[node].leaves, self.hosts[node].leaves_the_lead) = (true, leads);
        self.trace(node, || "is to leave".to_owned());
        self.arrive(node, Input::Leave);
        Some(false)
    }

    // Who acts on a node's being the only leader.

    /// From now on those who act on a node's leadership take their time to stop, or do not stop.
    pub(crate) fn slow_down_owner(&mut self, node: usize) -> Option<bool> {
        let node = match self.rng.chance(0.7) {
            true => self.live_leader()?,
            false => node,
        };
        self.hosts[node].owner = match self.rng.chance(0.7) {
            true => Owner::Slow(self.rng.exponential(SECOND)),
            false => Owner::Never,
        };
        Some(false)
    }

    /// The node hands the lead over: whoever acts on it is told to stop.
    pub(crate) fn lets_go_of(&mut self, host: usize) {
        let wait = match self.hosts[host].owner {
            Owner::Prompt => Some(self.rng.below(20 * MS)),
            Owner::Slow(wait) => Some(wait),
            Owner::Never => None,
        };
        if self.hosts[host].owner != Owner::Prompt {
            self.mattered(Fault::SlowOwner.name());
            // It is another's turn next time.
            self.hosts[host].owner = Owner::Prompt;
        }
        self.trace(host, || format!("its owner lets go after {wait:?} us"));
        if !self.hosts[host].leaves && !self.transfer_may_be_asked() {
            self.observe_hand_over(host);
            self.happened("hand-over for a metric");
            if self.tally.contains_key(Fault::Swing.name()) {
                self.mattered(Fault::Swing.name());
            }
        }
        let life = self.hosts[host].life;
        if let Some(wait) = wait {
            self.queue
                .push(self.now + wait, Event::LetsGo { host, life });
        }
    }

    /// Whether a leader may hand over because somebody asked for that, or for its removal.
    fn transfer_may_be_asked(&self) -> bool {
        let mut pending = self.operator.pending.iter();
        pending.any(|pending| {
            let goes = |change: &MemberChange| {
                matches!(change, MemberChange::Demote(_) | MemberChange::Remove(_))
            };
            let lasts = pending.until > self.now;
            lasts && (pending.fault == Fault::Transfer || pending.changes.iter().any(goes))
        })
    }

    pub(crate) fn lets_go(&mut self, host: usize, life: u64) {
        if self.hosts[host].life == life {
            self.arrive(host, Input::Relinquished);
        }
    }
}

fn added(key: NodeKey, name: String) -> MemberChange {
    let witness = false;
    MemberChange::AddLearner { key, name, witness }
}
