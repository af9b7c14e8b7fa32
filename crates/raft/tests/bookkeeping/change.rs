//! Changes of the configuration as tables: what it was, what is asked for, what follows; and the same
//! by a twin that knows nothing but sets.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use goldenscript::{Argument, Command, Context, Runner};
use proptest::collection::vec;
use proptest::prelude::*;
use raft::{ChangeError, Configuration, MemberChange, Members, NodeKey, Settings};

/// The configuration that a table has come to.
#[derive(Default)]
struct Table(Configuration);

impl Runner for Table {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        match command.name.as_str() {
            // voters 1 2 3w: a cluster just formed, of which 3 is a witness.
            "voters" => self.0 = formed(command)?,
            // change learner=4 witness=5 promote=4 demote=2 remove=3
            "change" => match self.0.change(&changes(command)?) {
                Ok(next) => self.0 = next,
                Err(error) => return Ok(format!("refused: {error:?}\n")),
            },
            "leave" => self.0 = self.0.leave_joint(),
            name => return Err(format!("no command {name}").into()),
        }
        picture(&self.0)
    }
}

fn key(text: &str) -> Result<NodeKey, Box<dyn Error>> {
    Ok(NodeKey(text.parse()?))
}

fn formed(command: &Command) -> Result<Configuration, Box<dyn Error>> {
    let mut configuration = Configuration::default();
    for argument in &command.args {
        let Argument::Positional(value) = argument else {
            return Err("voters are listed".into());
        };
        let digits = value.trim_end_matches('w');
        let member = key(digits)?;
        if digits != value {
            configuration.witnesses.insert(member);
        }
        configuration.voters.insert(member, format!("n{digits}"));
    }
    Ok(configuration)
}

fn changes(command: &Command) -> Result<Vec<MemberChange>, Box<dyn Error>> {
    let change = |argument: &Argument| {
        let Argument::KeyValue(what, who) = argument else {
            return Err("a change names what and whom".into());
        };
        let key = key(who)?;
        Ok(match what.as_str() {
            "learner" | "witness" => MemberChange::AddLearner {
                key,
                name: format!("n{who}"),
                witness: what == "witness",
            },
            "promote" => MemberChange::Promote(key),
            "demote" => MemberChange::Demote(key),
            "remove" => MemberChange::Remove(key),
            _ => return Err(format!("no change {what}").into()),
        })
    };
    command.args.iter().map(change).collect()
}

fn picture(configuration: &Configuration) -> Result<String, Box<dyn Error>> {
    let names = |set: &Members| {
        let name = |key: &NodeKey| match configuration.is_witness(*key) {
            true => format!("{key}w"),
            false => key.to_string(),
        };
        let names: Vec<String> = set.keys().map(name).collect();
        names.join(" ")
    };
    let mut told = format!("voters {}", names(&configuration.voters));
    if configuration.is_joint() {
        write!(told, ", leaving {}", names(&configuration.outgoing))?;
    }
    if !configuration.learners.is_empty() {
        write!(told, ", learners {}", names(&configuration.learners))?;
    }
    writeln!(told)?;
    Ok(told)
}

#[test]
fn tables() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts/change");
    let found = std::fs::read_dir(&folder).expect("the tables' folder");
    let mut paths: Vec<_> = found.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    assert_eq!(paths.len(), 5, "{paths:?}");
    for path in paths {
        goldenscript::run(&mut Table::default(), &path).expect("the table holds");
    }
}

/// Sets of keys, and the rules as one says them.
#[derive(Clone, Debug, PartialEq)]
struct Sets {
    voters: BTreeSet<u128>,
    learners: BTreeSet<u128>,
    witnesses: BTreeSet<u128>,
}

impl Sets {
    fn of(configuration: &Configuration) -> Sets {
        let keys = |set: &Members| set.keys().map(|key| key.0).collect();
        Sets {
            voters: keys(&configuration.voters),
            learners: keys(&configuration.learners),
            witnesses: configuration.witnesses.iter().map(|key| key.0).collect(),
        }
    }

    fn take(&mut self, change: &MemberChange) -> bool {
        let key = change.key().0;
        match change {
            MemberChange::AddLearner { witness, .. } => {
                let is_new = !self.voters.contains(&key) && self.learners.insert(key);
                if is_new && *witness {
                    self.witnesses.insert(key);
                }
                is_new
            }
            MemberChange::Promote(_) => self.learners.remove(&key) && self.voters.insert(key),
            MemberChange::Demote(_) => self.voters.remove(&key) && self.learners.insert(key),
            MemberChange::Remove(_) => self.voters.remove(&key) || self.learners.remove(&key),
        }
    }
}

fn any_change() -> impl Strategy<Value = MemberChange> {
    (1..8_u128, 0..4_u8, any::<bool>()).prop_map(|(key, what, witness)| {
        let key = NodeKey(key);
        match what {
            0 => MemberChange::AddLearner {
                key,
                name: key.to_string(),
                witness,
            },
            1 => MemberChange::Promote(key),
            2 => MemberChange::Demote(key),
            _ => MemberChange::Remove(key),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None, cases: 2_048, ..ProptestConfig::default()
    })]

    /// From any configuration, any change after any other: it is refused, or leads to what the sets
    /// say, over a joint state in which majorities of the old and of the new always meet.
    #[test]
    fn changes_do_what_sets_do(steps in vec(vec(any_change(), 0..5), 1..8)) {
        let voters = (1..=3).map(|n| (NodeKey(n), format!("n{n}"))).collect();
        let mut configuration = Configuration::of(voters, Settings::default());
        for changes in steps {
            let mut sets = Sets::of(&configuration);
            let keys: BTreeSet<NodeKey> = changes.iter().map(MemberChange::key).collect();
            let fits = keys.len() == changes.len() && changes.iter().all(|change| sets.take(change));
            let leads = sets.voters.iter().any(|key| !sets.witnesses.contains(key));
            let next = match configuration.change(&changes) {
                Ok(next) => next,
                Err(error) => {
                    prop_assert!(!fits || !leads, "{error:?} of {changes:?}");
                    continue;
                }
            };
            prop_assert!(fits && leads, "{changes:?}");
            let same = next.voters == configuration.voters;
            prop_assert_eq!(next.is_joint(), !same);
            if next.is_joint() {
                prop_assert_eq!(&next.outgoing, &configuration.voters);
                prop_assert_eq!(next.change(&[]), Err(ChangeError::Joint));
                // Every member of either half still decides.
                prop_assert!(configuration.voters.keys().all(|key| next.is_voter(*key)));
            }
            let left = next.leave_joint();
            prop_assert!(!left.is_joint());
            prop_assert_eq!(&left.leave_joint(), &left);
            let members = |key: &u128| sets.voters.contains(key) || sets.learners.contains(key);
            sets.witnesses.retain(members);
            prop_assert_eq!(Sets::of(&left), sets);
            prop_assert_eq!(left.settings, configuration.settings);
            check_majorities(&configuration, &next, &left)?;
            configuration = left;
        }
    }
}

/// Whoever decides in one of two configurations that follow on each other has somebody in common
/// with whoever decides in the other.
fn check_majorities(
    old: &Configuration,
    joint: &Configuration,
    new: &Configuration,
) -> Result<(), TestCaseError> {
    let keys: Vec<NodeKey> = (1..8).map(NodeKey).collect();
    for ayes in 0..1_u32 << keys.len() {
        let has = |key: NodeKey| {
            keys.iter()
                .zip(0..)
                .any(|(k, n)| *k == key && ayes >> n & 1 == 1)
        };
        if joint.has_quorum(has) {
            // The others together decide nothing, in what was or what will be.
            prop_assert!(!old.has_quorum(|key| !has(key)));
            prop_assert!(!new.has_quorum(|key| !has(key)));
            prop_assert!(old.has_quorum(has) && new.has_quorum(has));
        }
    }
    Ok(())
}
