//! How a cluster comes to be: the first start, and only it, needs all voters.
//!
//! A node with an empty disk neither votes nor campaigns. It says hello until it has heard every
//! voter that it was started with, each as empty as itself and each hearing the same keys. Then:
//!
//! ```text
//! Nothing ──all voters hear the same keys──► Accepted(record) ──all voters accepted──► Formed
//!    └──────────── a formed cluster answers: join it, without a vote ───────────────────►┘
//! ```
//!
//! Acceptance is on disk before it is said, and a node accepts one record in its life. A record
//! needs the acceptance of every key in it, so of two records that share a key at most one can
//! ever be formed: no wipe, restart or delay in between makes two clusters of one set of disks.
//! The price: if a voter loses its disk between its acceptance and the end of the formation, the
//! others wait for a key that is gone, say so, and have to be wiped too. Nothing was stored yet.
//!
//! Without a list (`--expect N`) the nodes choose the voters themselves, `expect.rs`; acceptance
//! and formation are the same.

mod expect;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raft::{NodeKey, Settings, Time};

use crate::name::Name;
use crate::wire::{Formation, Hello, Holds, name};

use expect::Choice;

/// How often an unformed node says hello if nothing changes.
const HELLO_INTERVAL: Duration = Duration::from_millis(500);

/// How long a single voter listens before it forms a cluster: two hellos.
const LISTEN: Duration = HELLO_INTERVAL.saturating_mul(2);

/// How soon news may follow a hello.
const HELLO_GAP: Duration = Duration::from_millis(20);

/// How many other names are remembered in the lobby.
const MAX_HEARD: usize = 1_024;

/// One node's view of the formation.
pub(crate) struct Lobby {
    me: Name,
    key: NodeKey,
    voters: Vec<Name>,
    /// Instead of a list: with how many of those that say the same the cluster is formed.
    expect: Option<u32>,
    settings: Settings,
    /// This node would be a witness.
    witness: bool,
    holds: Holds,
    heard: BTreeMap<Name, Heard>,
    /// Whom we would choose, and since when.
    choice: Choice,
    hello_at: Time,
    last_hello: Option<Time>,
    /// A single voter listens since then whether its cluster is there already.
    listens_since: Option<Time>,
    last_trouble: Option<Trouble>,
}

struct Heard {
    key: NodeKey,
    hello: Hello,
    at: Time,
    /// Under this key it has named the same nodes since.
    since: Time,
}

/// With whom a node would form the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// With these; an observer where it is not among them.
    Voters(Vec<Name>),
    /// With so many of the empty nodes that say the same number.
    Expect(u32),
}

/// What formation asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// Make this durable, then call [`Lobby::saved`].
    Save(Holds),
    /// An operator has to look.
    Trouble(Trouble),
}

/// Why a cluster does not come to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The voters were started with different lists.
    #[error(
        "{other} was started with --voters {theirs}, this node with {ours}: they must be equal"
    )]
    Voters {
        /// The other node.
        other: Name,
        /// Its list.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// All voters are witnesses.
    #[error(
        "every voter was started as a witness: nobody would lead. Start one at least with `mqraft node`"
    )]
    NobodyLeads,
    /// A voter was a witness when another accepted the formation and is none now, or became one.
    #[error(
        "{other} has promised to form the cluster with other witnesses: start every voter as it was started first"
    )]
    Witness {
        /// The other node.
        other: Name,
    },
    /// The voters were started with different cluster settings.
    #[error(
        "{other} was started with an election timeout, and so a lease, of {theirs} ms, this node with {ours} ms: they must be equal when the cluster is formed"
    )]
    Settings {
        /// The other node.
        other: Name,
        /// Its lease.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// Some were told the voters, others to choose them.
    #[error(
        "{other} and this node were not started alike, one with --voters and one with --expect: give both the same, best --voters"
    )]
    Mixed {
        /// The other node.
        other: Name,
    },
    /// The nodes expect different numbers of voters.
    #[error(
        "{other} was started with --expect {theirs}, this node with --expect {ours}: they must be equal"
    )]
    Expect {
        /// The other node.
        other: Name,
        /// How many it expects.
        theirs: u32,
        /// How many we do.
        ours: u32,
    },
    /// Nodes that choose their voters have promised themselves to different choices, and none of
    /// them can come to be any more.
    #[error(
        "this node and {other} have promised to form different clusters, and neither can come to be: the choice of voters changed while it was made. Nothing was stored yet: stop all nodes, empty their data directories, and start again, best with --voters"
    )]
    Conflict {
        /// A node that promised itself to another choice.
        other: Name,
    },
    /// A voter accepted a formation and lost its disk before it was done.
    #[error(
        "this node has promised to form a cluster with {other} under a key that is gone: {other} lost its data directory meanwhile. Nothing was stored yet: stop all voters, empty their data directories, and restart whoever used the cluster"
    )]
    LostVoter {
        /// The voter.
        other: Name,
    },
    /// Two voters that would count as one.
    #[error(
        "{one} and {other} have the same node key: one data directory is a copy of the other. Empty one of them: a copied voter would vote twice"
    )]
    SharedKey {
        /// A voter.
        one: Name,
        /// Another.
        other: Name,
    },
    /// Two clusters of one name.
    #[error(
        "{other} is of another cluster of the same name and key: while both are there no node of either claims to be the only leader. Retire or rename one of the two"
    )]
    OtherCluster {
        /// A node of the other cluster.
        other: Name,
    },
    /// Two processes under one node key.
    #[error(
        "{other} runs under this node's key: one data directory is a copy of the other. At least one of the two stops; empty its directory"
    )]
    Twin {
        /// The other process.
        other: Name,
    },
    /// Two nodes of one name.
    #[error(
        "another node is called {name} as well, under another key: they are told apart, but hide each other from whoever reads statuses. Give one of them another --id"
    )]
    SharedName {
        /// Their name.
        name: Name,
    },
    /// A voter lost its disk.
    #[error(
        "the voter {name} is gone: this node has its name but another key, since its data directory was lost, and follows without a vote. Give it one in the place of the old: mqraft member replace {name}"
    )]
    Wiped {
        /// Its name, and the voter's.
        name: Name,
    },
    /// The disk is older than what it once promised.
    #[error(
        "the cluster knows this node's key, but this data directory does not know the cluster: it was restored from an old copy. Empty it and start again: the node then joins anew, without a vote"
    )]
    OldDisk,
}

impl Lobby {
    pub(crate) fn new(
        me: Name,
        key: NodeKey,
        plan: Plan,
        settings: Settings,
        witness: bool,
        holds: Holds,
    ) -> Lobby {
        let (mut voters, expect) = match plan {
            Plan::Voters(voters) => (voters, None),
            Plan::Expect(expect) => (Vec::new(), Some(expect)),
        };
        voters.sort();
        voters.dedup();
        Lobby {
            me,
            key,
            voters,
            expect,
            settings,
            witness,
            holds,
            heard: BTreeMap::new(),
            choice: Choice::default(),
            hello_at: Time(0),
            last_hello: None,
            listens_since: None,
            last_trouble: None,
        }
    }

    pub(crate) fn formation(&self) -> Option<&Formation> {
        match &self.holds {
            Holds::Formed(formation) => Some(formation),
            Holds::Nothing | Holds::Accepted(_) => None,
        }
    }

    /// The voters that this node waits for before the cluster can be formed.
    pub(crate) fn missing(&self) -> Vec<Name> {
        let absent = |name: &&Name| **name != self.me && !self.heard.contains_key(*name);
        self.voters.iter().filter(absent).cloned().collect()
    }

    /// What this node says of itself.
    pub(crate) fn hello(&self, question: bool) -> Hello {
        Hello {
            question,
            holds: self.holds.clone(),
            voters: self.voters.iter().map(Name::to_string).collect(),
            settings: self.settings,
            heard: match self.expect {
                Some(_) => self.choice.nodes.clone(),
                None => self.empty_voters(),
            },
            expect: self.expect,
            witness: self.witness,
        }
    }

    /// The keys of the voters that would be witnesses.
    fn witnesses(&self) -> BTreeSet<NodeKey> {
        let voters = self
            .heard
            .iter()
            .filter(|(name, _)| self.voters.contains(name));
        let witnesses = voters.filter(|(_, heard)| heard.hello.witness);
        let others = witnesses.map(|(_, heard)| heard.key);
        others.chain(self.witness.then_some(self.key)).collect()
    }

    /// The hello to broadcast now, if one is due.
    pub(crate) fn due(&mut self, now: Time) -> Option<Hello> {
        if self.formation().is_some() || now < self.hello_at {
            return None;
        }
        self.last_hello = Some(now);
        self.hello_at = now + HELLO_INTERVAL;
        Some(self.hello(true))
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.formation().is_none().then_some(self.hello_at)
    }

    fn news(&mut self, now: Time) {
        let soonest = self.last_hello.map_or(now, |at| at + HELLO_GAP);
        self.hello_at = self.hello_at.min(soonest.max(now));
    }

    /// The keys of the voters that are empty or have accepted, ourselves among them.
    fn empty_voters(&self) -> BTreeMap<String, NodeKey> {
        let key_of = |name: &Name| match *name == self.me {
            true => Some(self.key),
            false => self.heard.get(name).map(|heard| heard.key),
        };
        let voters = self.voters.iter();
        voters
            .filter_map(|name| Some((name.to_string(), key_of(name)?)))
            .collect()
    }

    /// Whether a hello is of a node of another formed cluster than ours.
    pub(crate) fn is_foreign(&self, hello: &Hello) -> bool {
        match (self.formation(), &hello.holds) {
            // Nobody of a record without voters could ever have formed it.
            (Some(ours), Holds::Formed(theirs)) => ours != theirs && !theirs.voters.is_empty(),
            _ => false,
        }
    }

    /// Takes another node's hello, which is known to be fresh.
    pub(crate) fn on_hello(
        &mut self,
        from: &Name,
        key: NodeKey,
        hello: Hello,
        now: Time,
    ) -> Option<Step> {
        if let Holds::Formed(formation) = &hello.holds {
            // Nobody of a record without voters could ever have formed it.
            return self
                .meet(from, formation)
                .filter(|_| !formation.voters.is_empty());
        }
        if self.formation().is_some() {
            return None;
        }
        if !self.concerns(from, &hello) {
            self.settled_with(from);
            return None;
        }
        if self.heard.len() >= MAX_HEARD && !self.heard.contains_key(from) {
            return None;
        }
        let before = self.empty_voters();
        self.hear(from, key, hello, now);
        if before != self.empty_voters() {
            self.news(now);
        }
        match self.expect {
            Some(expect) => self.advance_expecting(expect, now),
            None => self.advance(from),
        }
    }

    /// Whether what an unformed node says bears on our own formation.
    fn concerns(&self, from: &Name, hello: &Hello) -> bool {
        match self.expect {
            Some(_) => hello.expect.is_some() || !hello.voters.is_empty(),
            // Whoever would choose its voters concerns all that were told theirs.
            None => self.voters.contains(from) || (self.is_voter() && hello.expect.is_some()),
        }
    }

    /// Whether it was told who forms the cluster, and is none of them.
    pub(crate) fn observes(&self) -> bool {
        self.expect.is_none() && !self.is_voter()
    }

    fn is_voter(&self) -> bool {
        self.voters.contains(&self.me)
    }

    fn hear(&mut self, from: &Name, key: NodeKey, hello: Hello, now: Time) {
        let before = self.heard.get(from);
        let same = before.filter(|h| h.key == key && h.hello.heard == hello.heard);
        let since = same.map_or(now, |before| before.since);
        let heard = Heard {
            key,
            hello,
            at: now,
            since,
        };
        self.heard.insert(from.clone(), heard);
    }

    /// A node of a formed cluster answered.
    fn meet(&mut self, from: &Name, formation: &Formation) -> Option<Step> {
        let knows_us = formation.voters.contains_key(&self.key);
        match &self.holds {
            // Whoever is of another cluster is dealt with elsewhere.
            Holds::Formed(_) => None,
            Holds::Nothing if knows_us => self.trouble(Trouble::OldDisk),
            // Whoever is in both has accepted theirs, so ours can never be formed.
            Holds::Accepted(ours) if ours.is_disjoint(formation) => {
                self.trouble(Trouble::OtherCluster {
                    other: from.clone(),
                })
            }
            Holds::Nothing | Holds::Accepted(_) => {
                Some(Step::Save(Holds::Formed(formation.clone())))
            }
        }
    }

    /// Whether the voters have come so far that this node may go on.
    fn advance(&mut self, from: &Name) -> Option<Step> {
        if !self.is_voter() {
            return None;
        }
        match self.holds.clone() {
            Holds::Nothing => self.accept(from),
            Holds::Accepted(record) => self.form(record),
            Holds::Formed(_) => None,
        }
    }

    fn accept(&mut self, from: &Name) -> Option<Step> {
        if let Some(trouble) = self.disagreement(from).or_else(|| self.shared_key()) {
            return self.trouble(trouble);
        }
        self.settled_with(from);
        let keys = self.empty_voters();
        let all = keys.len() == self.voters.len();
        let others = || self.voters.iter().filter(|name| **name != self.me);
        let agreed =
            others().all(|name| self.heard.get(name).is_some_and(|h| h.hello.heard == keys));
        if !all || !agreed {
            return None;
        }
        let voters = keys.into_iter().map(|(name, key)| (key, name)).collect();
        let record = Formation {
            voters,
            settings: self.settings,
            origin: None,
            witnesses: self.witnesses(),
        };
        if record.witnesses.len() == record.voters.len() {
            return self.trouble(Trouble::NobodyLeads);
        }
        let contradicts = others().find(|name| match &self.heard[*name].hello.holds {
            Holds::Accepted(theirs) => *theirs != record,
            Holds::Nothing | Holds::Formed(_) => false,
        });
        if let Some(other) = contradicts.cloned()
            && let Holds::Accepted(theirs) = &self.heard[&other].hello.holds
            && theirs.voters == record.voters
            && theirs.witnesses != record.witnesses
        {
            return self.trouble(Trouble::Witness { other });
        }
        contradicts
            .is_none()
            .then_some(Step::Save(Holds::Accepted(record)))
    }

    fn form(&mut self, record: Formation) -> Option<Step> {
        // Those of the record count, whatever this node was started with since.
        let others = record.voters.iter().filter(|(key, _)| **key != self.key);
        let mut all = true;
        for (key, voter) in others {
            let heard = name(voter).and_then(|voter| Some((self.heard.get(&voter)?, voter)));
            if let Some((heard, other)) = heard {
                if heard.key != *key {
                    return self.trouble(Trouble::LostVoter { other });
                }
                all &= heard.hello.holds == Holds::Accepted(record.clone());
            } else {
                all = false;
            }
        }
        all.then_some(Step::Save(Holds::Formed(record)))
    }

    /// Two voters with one key: they would count as one, and each would count for both.
    fn shared_key(&self) -> Option<Trouble> {
        let mut names = BTreeMap::from([(self.key, &self.me)]);
        let others = self.heard.iter().filter(|(name, _)| **name != self.me);
        for (other, heard) in others {
            if let Some(one) = names.insert(heard.key, other).cloned() {
                let other = other.clone();
                return Some(Trouble::SharedKey { one, other });
            }
        }
        None
    }

    fn disagreement(&self, from: &Name) -> Option<Trouble> {
        let hello = &self.heard.get(from)?.hello;
        if hello.expect.is_some() {
            let other = from.clone();
            return Some(Trouble::Mixed { other });
        }
        let ours: Vec<String> = self.voters.iter().map(Name::to_string).collect();
        if hello.voters != ours {
            let (theirs, ours) = (hello.voters.join(","), ours.join(","));
            return Some(Trouble::Voters {
                other: from.clone(),
                theirs,
                ours,
            });
        }
        (hello.settings != self.settings).then(|| Trouble::Settings {
            other: from.clone(),
            theirs: hello.settings.lease_ms,
            ours: self.settings.lease_ms,
        })
    }

    /// What stands in the way of the formation, as it was last told.
    pub(crate) fn standing_trouble(&self) -> Option<&Trouble> {
        self.last_trouble.as_ref()
    }

    /// It was started differently, and is no longer.
    fn settled_with(&mut self, from: &Name) {
        self.last_trouble.take_if(|trouble| match trouble {
            Trouble::Voters { other, .. }
            | Trouble::Settings { other, .. }
            | Trouble::Mixed { other }
            | Trouble::Expect { other, .. } => other == from,
            Trouble::Conflict { .. }
            | Trouble::NobodyLeads
            | Trouble::Witness { .. }
            | Trouble::LostVoter { .. }
            | Trouble::SharedKey { .. }
            | Trouble::OtherCluster { .. }
            | Trouble::Twin { .. }
            | Trouble::SharedName { .. }
            | Trouble::Wiped { .. }
            | Trouble::OldDisk => false,
        });
    }

    /// Reports each trouble once.
    fn trouble(&mut self, trouble: Trouble) -> Option<Step> {
        if self.last_trouble.as_ref() == Some(&trouble) {
            return None;
        }
        self.last_trouble = Some(trouble.clone());
        Some(Step::Trouble(trouble))
    }

    /// What was to be saved is on disk: say so, and see whether more follows.
    pub(crate) fn saved(&mut self, holds: Holds, now: Time) -> Option<Step> {
        self.holds = holds;
        self.last_trouble = None;
        self.news(now);
        if let Some(expect) = self.expect {
            return self.advance_expecting(expect, now);
        }
        let next = self
            .voters
            .iter()
            .find(|name| self.heard.contains_key(*name))
            .cloned();
        match next {
            Some(name) => self.advance(&name),
            // A cluster of one has nobody to wait for.
            None => self.alone(now),
        }
    }

    /// The steps of a cluster with a single voter. Its cluster may have grown since it was formed,
    /// and this be its founder without a disk: so it listens first whether somebody answers.
    pub(crate) fn alone(&mut self, now: Time) -> Option<Step> {
        if self.voters != [self.me.clone()] {
            return None;
        }
        if self.witness {
            return self.trouble(Trouble::NobodyLeads);
        }
        let voters = BTreeMap::from([(self.key, self.me.to_string())]);
        let record = Formation {
            voters,
            settings: self.settings,
            origin: None,
            witnesses: BTreeSet::new(),
        };
        match &self.holds {
            Holds::Nothing => {
                let since = *self.listens_since.get_or_insert(now);
                (now >= since + LISTEN).then_some(Step::Save(Holds::Accepted(record)))
            }
            Holds::Accepted(accepted) if *accepted == record => {
                Some(Step::Save(Holds::Formed(record)))
            }
            // Promised to others before the list was cut: they count as well.
            Holds::Accepted(_) | Holds::Formed(_) => None,
        }
    }
}
