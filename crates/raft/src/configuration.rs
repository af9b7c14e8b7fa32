//! Who counts: the voters of a cluster and the arithmetic of their quorums.
//!
//! A configuration is joint while `outgoing` is set: then every decision needs a majority of
//! both sets (Raft §6). Voters change in no other way: [`Configuration::change`] enters the joint
//! state, [`Configuration::leave_joint`] is what follows once it is committed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::NodeKey;

/// The key and the name of every member of one set, in key order.
pub type Members = BTreeMap<NodeKey, String>;

/// One configuration of the cluster: an entry of the log, in force as soon as it is appended.
#[derive(Clone, Debug, Default, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Configuration {
    /// Whose votes and acknowledgements count.
    #[n(0)]
    pub voters: Members,
    /// The voters of the configuration being left; empty unless a change is under way.
    #[n(1)]
    pub outgoing: Members,
    /// Nodes that hold the log without counting.
    #[n(2)]
    pub learners: Members,
    /// What the cluster, not a node, has settled.
    #[n(3)]
    pub settings: Settings,
    /// Those of the members that hold the log for others and apply nothing: as voters they decide
    /// with all others, and lead only to hand over.
    #[cbor(n(4), with = "crate::codec::unless_default", has_nil)]
    pub witnesses: BTreeSet<NodeKey>,
}

/// One step of a change of members.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(flat)]
pub enum MemberChange {
    /// Has a node hold the log, without a vote.
    #[n(0)]
    AddLearner {
        /// The node.
        #[n(0)]
        key: NodeKey,
        /// Its name.
        #[n(1)]
        name: String,
        /// Whether it is a witness.
        #[n(2)]
        witness: bool,
    },
    /// Gives a learner a vote.
    #[n(1)]
    Promote(#[n(0)] NodeKey),
    /// Takes a voter's vote: it stays as a learner.
    #[n(2)]
    Demote(#[n(0)] NodeKey),
    /// Lets a member go.
    #[n(3)]
    Remove(#[n(0)] NodeKey),
}

impl MemberChange {
    /// Whom it is about.
    pub fn key(&self) -> NodeKey {
        match self {
            MemberChange::AddLearner { key, .. }
            | MemberChange::Promote(key)
            | MemberChange::Demote(key)
            | MemberChange::Remove(key) => *key,
        }
    }
}

/// Why a configuration cannot be changed so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeError {
    /// The last change is still being carried through.
    Joint,
    /// One change names a node twice.
    Twice(NodeKey),
    /// It is a member already.
    Member(NodeKey),
    /// It is no member.
    NotAMember(NodeKey),
    /// It is no learner.
    NotALearner(NodeKey),
    /// It is no voter.
    NotAVoter(NodeKey),
    /// No voter would be left that can lead.
    NoVoters,
    /// More than [`Configuration::MAX_VOTERS`] voters or [`Configuration::MAX_LEARNERS`] learners.
    TooMany,
    /// The settings are out of their ranges.
    Settings,
}

/// Settings that must be equal everywhere, since safety of exclusive leadership rests on them
/// (design point 6): replicated with the configuration, never one node's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, minicbor::Encode, minicbor::Decode)]
pub struct Settings {
    /// How long after the send time of a quorum-confirmed round a leader may claim to be the
    /// only one. Milliseconds, 10 to 600,000; default 1,000.
    #[n(0)]
    pub lease_ms: u32,
    /// How much faster or slower than real time any member's clock may run, in parts per
    /// million, below 100,000; default 1,000 (a bad quartz drifts 100).
    #[n(1)]
    pub drift_ppm: u32,
    /// Whether a leader answers reads within its lease without asking a quorum; default off. While
    /// it is on, a new leader commits nothing before every older lease has ended.
    #[cbor(n(2), with = "crate::codec::unless_default", has_nil)]
    pub lease_reads: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            lease_ms: 1_000,
            drift_ppm: 1_000,
            lease_reads: false,
        }
    }
}

impl Settings {
    /// Whether every one of them is within its range.
    pub fn are_valid(self) -> bool {
        (10..=600_000).contains(&self.lease_ms) && self.drift_ppm < 100_000
    }

    /// The lease L on the leader's own clock.
    pub fn lease(self) -> Duration {
        Duration::from_millis(u64::from(self.lease_ms))
    }

    /// How long a new leader waits before it is exclusive: L·(1+ρ)/(1−ρ) on its own clock, by
    /// which time every older lease has ended on the slowest clock that the drift bound allows.
    pub fn lease_wait(self) -> Duration {
        let lease_us = u64::from(self.lease_ms) * 1_000;
        let drift = u64::from(self.drift_ppm.min(99_999));
        let wait = (lease_us * (1_000_000 + drift)).div_ceil(1_000_000 - drift);
        Duration::from_micros(wait)
    }
}

impl Configuration {
    /// A configuration of `voters` alone.
    pub fn of(voters: Members, settings: Settings) -> Configuration {
        Configuration {
            voters,
            settings,
            ..Configuration::default()
        }
    }

    /// The most voters that there may be. More cost each write more answers and each failure the
    /// same: five survive any two, nine any four.
    pub const MAX_VOTERS: usize = 9;

    /// The most learners. Whoever only wants to read is an observer, of which there is no end.
    pub const MAX_LEARNERS: usize = 64;

    /// Whether a change is under way.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// The configuration that follows on this one by `changes`, all at once: joint if that changes
    /// who votes, otherwise complete.
    ///
    /// # Errors
    /// When one of them does not fit, or nobody would be left to lead.
    pub fn change(&self, changes: &[MemberChange]) -> Result<Configuration, ChangeError> {
        if self.is_joint() {
            return Err(ChangeError::Joint);
        }
        let mut next = self.clone();
        let mut named = BTreeSet::new();
        for change in changes {
            if !named.insert(change.key()) {
                return Err(ChangeError::Twice(change.key()));
            }
            next.apply(change)?;
        }
        let leads = |key: &NodeKey| !next.witnesses.contains(key);
        if !next.voters.keys().any(leads) {
            return Err(ChangeError::NoVoters);
        }
        if next.voters.len() > Self::MAX_VOTERS || next.learners.len() > Self::MAX_LEARNERS {
            return Err(ChangeError::TooMany);
        }
        if next.voters != self.voters {
            next.outgoing = self.voters.clone();
        }
        next.forget_strangers();
        Ok(next)
    }

    fn apply(&mut self, change: &MemberChange) -> Result<(), ChangeError> {
        match change {
            MemberChange::AddLearner { key, name, witness } => {
                if self.is_member(*key) {
                    return Err(ChangeError::Member(*key));
                }
                self.learners.insert(*key, name.clone());
                if *witness {
                    self.witnesses.insert(*key);
                }
            }
            MemberChange::Promote(key) => {
                let name = self.learners.remove(key);
                let name = name.ok_or(ChangeError::NotALearner(*key))?;
                self.voters.insert(*key, name);
            }
            MemberChange::Demote(key) => {
                let name = self.voters.remove(key);
                let name = name.ok_or(ChangeError::NotAVoter(*key))?;
                self.learners.insert(*key, name);
            }
            MemberChange::Remove(key) => {
                let gone = self
                    .voters
                    .remove(key)
                    .or_else(|| self.learners.remove(key));
                gone.ok_or(ChangeError::NotAMember(*key))?;
            }
        }
        Ok(())
    }

    /// What follows on a joint configuration: the new voters alone.
    pub fn leave_joint(&self) -> Configuration {
        let mut next = self.clone();
        next.outgoing.clear();
        next.forget_strangers();
        next
    }

    /// Of those who are no members nothing is kept.
    fn forget_strangers(&mut self) {
        let members: BTreeSet<NodeKey> = self.all_members().collect();
        self.witnesses.retain(|key| members.contains(key));
    }

    /// Whether `key` is a witness.
    pub fn is_witness(&self, key: NodeKey) -> bool {
        self.witnesses.contains(&key)
    }

    /// Whether `key` votes, in either half of a joint configuration.
    pub fn is_voter(&self, key: NodeKey) -> bool {
        self.voters.contains_key(&key) || self.outgoing.contains_key(&key)
    }

    /// Whether `key` is a voter or a learner.
    pub fn is_member(&self, key: NodeKey) -> bool {
        self.is_voter(key) || self.learners.contains_key(&key)
    }

    /// Every voter of both halves, once, in key order.
    pub fn all_voters(&self) -> impl Iterator<Item = NodeKey> + '_ {
        let outgoing_only = self
            .outgoing
            .keys()
            .filter(|key| !self.voters.contains_key(key));
        let mut keys: Vec<NodeKey> = self.voters.keys().chain(outgoing_only).copied().collect();
        keys.sort_unstable();
        keys.into_iter()
    }

    /// Every member, once, in key order.
    pub fn all_members(&self) -> impl Iterator<Item = NodeKey> + '_ {
        let mut keys: Vec<NodeKey> = self.all_voters().collect();
        keys.extend(self.learners.keys().filter(|key| !self.is_voter(**key)));
        keys.sort_unstable();
        keys.into_iter()
    }

    /// How many members there are.
    pub(crate) fn member_count(&self) -> usize {
        let Configuration {
            voters,
            outgoing,
            learners,
            ..
        } = self;
        let outgoing = outgoing.keys().filter(|key| !voters.contains_key(*key));
        let learners = learners.keys().filter(|key| !self.is_voter(**key));
        voters.len() + outgoing.count() + learners.count()
    }

    /// The name of a member.
    pub fn name(&self, key: NodeKey) -> Option<&str> {
        let sets = [&self.voters, &self.outgoing, &self.learners];
        sets.iter()
            .find_map(|set| set.get(&key))
            .map(String::as_str)
    }

    /// Whether those for whom `has` holds are a majority of every set that counts. An empty
    /// configuration has no quorum.
    pub fn has_quorum(&self, has: impl Fn(NodeKey) -> bool) -> bool {
        self.quorum_value(|key| has(key).then_some(())).is_some()
    }

    /// The greatest value that a quorum has reached, where `value` tells each voter's own;
    /// `None` ranks below every value. In a joint configuration the lower half decides.
    pub fn quorum_value<T: Ord + Copy>(&self, value: impl Fn(NodeKey) -> Option<T>) -> Option<T> {
        let incoming = majority_value(&self.voters, &value)?;
        if self.outgoing.is_empty() {
            return Some(incoming);
        }
        majority_value(&self.outgoing, &value).map(|outgoing| outgoing.min(incoming))
    }
}

/// The greatest value that a majority of `members` has reached.
fn majority_value<T: Ord + Copy>(
    members: &Members,
    value: impl Fn(NodeKey) -> Option<T>,
) -> Option<T> {
    // On the stack for any cluster there is: a leader asks at every step.
    let (mut few, mut many) = ([None; 9], Vec::new());
    let values = match few.get_mut(..members.len()) {
        Some(values) => values,
        None => {
            many.resize(members.len(), None);
            many.as_mut_slice()
        }
    };
    for (place, key) in values.iter_mut().zip(members.keys()) {
        *place = value(*key);
    }
    values.sort_unstable_by(|a, b| b.cmp(a));
    values.get(members.len() / 2).copied().flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;

    fn members(keys: &[u128]) -> Members {
        keys.iter()
            .map(|key| (NodeKey(*key), format!("n{key}")))
            .collect()
    }

    fn configuration(voters: &[u128], outgoing: &[u128]) -> Configuration {
        Configuration {
            outgoing: members(outgoing),
            ..Configuration::of(members(voters), Settings::default())
        }
    }

    /// The committed index is what a majority holds, in both halves of a joint configuration.
    #[test]
    fn quorum_values() {
        type Case<'a> = (&'a [u128], &'a [u128], &'a [(u128, u64)], Option<u64>);
        let cases: &[Case<'_>] = &[
            (&[], &[], &[], None),
            (&[1], &[], &[(1, 12)], Some(12)),
            (&[1, 2], &[], &[(1, 12), (2, 5)], Some(5)),
            (&[1, 2, 3], &[], &[(1, 12)], None),
            (&[1, 2, 3], &[], &[(1, 12), (2, 5)], Some(5)),
            (&[1, 2, 3], &[], &[(1, 12), (2, 5), (3, 6)], Some(6)),
            (
                &[1, 2, 3, 4],
                &[],
                &[(1, 9), (2, 8), (3, 7), (4, 6)],
                Some(7),
            ),
            (&[1, 2, 3, 4, 5], &[], &[(1, 9), (2, 8), (3, 7)], Some(7)),
            (&[1, 2, 3], &[1, 2, 3], &[(1, 12), (2, 5), (3, 6)], Some(6)),
            (&[1, 2, 3], &[4, 5, 6], &[(1, 9), (2, 9), (3, 9)], None),
            (
                &[1, 2, 3],
                &[4, 5, 6],
                &[(1, 9), (2, 9), (4, 3), (5, 4)],
                Some(3),
            ),
        ];
        for (voters, outgoing, acknowledged, expected) in cases {
            let configuration = configuration(voters, outgoing);
            let value = |key: NodeKey| {
                acknowledged
                    .iter()
                    .find(|(k, _)| NodeKey(*k) == key)
                    .map(|(_, index)| *index)
            };
            assert_eq!(
                configuration.quorum_value(value),
                *expected,
                "{voters:?} {outgoing:?}"
            );
        }
    }

    /// The same by counting heads: what the paper says, set by set, and nothing cleverer.
    struct Heads {
        voters: BTreeSet<u128>,
        outgoing: BTreeSet<u128>,
        learners: BTreeSet<u128>,
    }

    impl Heads {
        fn has_quorum(&self, has: impl Fn(u128) -> bool) -> bool {
            let majority = |set: &BTreeSet<u128>| {
                let ayes = set.iter().filter(|key| has(**key)).count();
                2 * ayes > set.len()
            };
            majority(&self.voters) && (self.outgoing.is_empty() || majority(&self.outgoing))
        }

        /// Of all values that anyone has, the greatest that a quorum has reached.
        fn quorum_value(&self, values: &BTreeMap<u128, u64>) -> Option<u64> {
            let reached = |goal: u64| {
                self.has_quorum(|key| values.get(&key).is_some_and(|value| *value >= goal))
            };
            values.values().copied().filter(|goal| reached(*goal)).max()
        }

        fn configuration(&self) -> Configuration {
            let set = |keys: &BTreeSet<u128>| members(&keys.iter().copied().collect::<Vec<_>>());
            Configuration {
                voters: set(&self.voters),
                outgoing: set(&self.outgoing),
                learners: set(&self.learners),
                ..Configuration::default()
            }
        }

        /// Every key is in any of the three sets or in none, independently: `bits` tells which.
        fn of(bits: &[u8]) -> Heads {
            let set = |bit: u8| {
                let keys = (1..).zip(bits);
                keys.filter(|(_, bits)| *bits & bit != 0)
                    .map(|(key, _)| key)
                    .collect()
            };
            let (voters, outgoing, learners) = (set(1), set(2), set(4));
            Heads {
                voters,
                outgoing,
                learners,
            }
        }
    }

    /// Every electorate of up to five keys, joint or not, and every set of ayes.
    #[test]
    fn every_small_electorate_decides_as_heads_are_counted() {
        for electorate in 0..4_u32.pow(5) {
            let bits: Vec<u8> = (0..5).map(|n| (electorate >> (2 * n) & 3) as u8).collect();
            let heads = Heads::of(&bits);
            let configuration = heads.configuration();
            for ayes in 0..32_u128 {
                let has = |key: u128| ayes >> (key - 1) & 1 == 1;
                assert_eq!(
                    configuration.has_quorum(|key| has(key.0)),
                    heads.has_quorum(has),
                    "{bits:?} {ayes:b}"
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None, ..ProptestConfig::default()
        })]

        /// Values of nodes without a vote, and of strangers, never count.
        #[test]
        fn quorum_values_are_what_heads_say(
            bits in vec(0..8_u8, 0..9),
            values in btree_map(1..12_u128, 0..6_u64, 0..12),
        ) {
            let heads = Heads::of(&bits);
            let value = |key: NodeKey| values.get(&key.0).copied();
            prop_assert_eq!(
                heads.configuration().quorum_value(value),
                heads.quorum_value(&values)
            );
        }

        /// Any two quorums of one configuration share a voter, in each of its halves.
        #[test]
        fn quorums_intersect(bits in vec(0..4_u8, 1..9), a in 0..512_u128, b in 0..512_u128) {
            let configuration = Heads::of(&bits).configuration();
            let has = |ayes: u128| move |key: NodeKey| ayes >> key.0 & 1 == 1;
            if configuration.has_quorum(has(a)) && configuration.has_quorum(has(b)) {
                let shared = |set: &Members| {
                    set.is_empty() || set.keys().any(|key| has(a)(*key) && has(b)(*key))
                };
                prop_assert!(shared(&configuration.voters) && shared(&configuration.outgoing));
            }
        }

        #[test]
        fn members_are_counted_once_and_in_order(bits in vec(0..8_u8, 0..9)) {
            let heads = Heads::of(&bits);
            let configuration = heads.configuration();
            let voters: BTreeSet<u128> = heads.voters.union(&heads.outgoing).copied().collect();
            let members: BTreeSet<u128> = voters.union(&heads.learners).copied().collect();
            prop_assert!(configuration.all_voters().map(|key| key.0).eq(voters.iter().copied()));
            prop_assert!(configuration.all_members().map(|key| key.0).eq(members.iter().copied()));
            prop_assert_eq!(configuration.member_count(), members.len());
            for key in 0..12 {
                let (voter, member) = (voters.contains(&key), members.contains(&key));
                let name = member.then(|| format!("n{key}"));
                prop_assert_eq!(configuration.is_voter(NodeKey(key)), voter);
                prop_assert_eq!(configuration.is_member(NodeKey(key)), member);
                prop_assert_eq!(configuration.name(NodeKey(key)), name.as_deref());
            }
        }
    }

    /// A new leader waits out the old lease even if its clock runs fast and the old one's slow.
    #[test]
    fn lease_wait_covers_the_drift() {
        let settings = Settings {
            lease_ms: 1_000,
            drift_ppm: 100_000 - 1,
            lease_reads: false,
        };
        let slow_lease = settings.lease().as_secs_f64() / (1.0 - 0.099_999);
        let fast_wait = settings.lease_wait().as_secs_f64() / (1.0 + 0.099_999);
        assert!(fast_wait >= slow_lease, "{fast_wait} {slow_lease}");
    }
}
