//! The arithmetic of quorums as tables: who votes, what each has said or holds, what follows.
//!
//! The pictures show what a reader checks by eye: one line for each voter, in which half it
//! counts, and how far it has come.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use goldenscript::{Argument, Command, Context, Runner};
use raft::{Configuration, Members, NodeKey, Settings};

/// An electorate and what each of it has reached; both live for one command.
struct Table;

struct Row {
    voters: Members,
    outgoing: Members,
    values: BTreeMap<NodeKey, u64>,
}

impl Runner for Table {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let row = Row::read(command)?;
        match command.name.as_str() {
            // committed voters=1_2_3 outgoing=3_4_5 1=12 2=5: what each voter's disk holds.
            "committed" => row.committed(),
            // vote voters=1_2_3 outgoing=3_4_5 1=1 2=0: yes, no; who is missing has not answered.
            "vote" => row.vote(),
            _ => Err(format!("no command {}", command.name).into()),
        }
    }
}

impl Row {
    fn read(command: &Command) -> Result<Row, Box<dyn Error>> {
        let mut row = Row {
            voters: Members::new(),
            outgoing: Members::new(),
            values: BTreeMap::new(),
        };
        for argument in &command.args {
            let Argument::KeyValue(key, value) = argument else {
                return Err(format!("no such argument: {argument:?}").into());
            };
            match key.as_str() {
                "voters" => row.voters = members(value)?,
                "outgoing" => row.outgoing = members(value)?,
                key => {
                    let value = value.parse()?;
                    row.values.insert(NodeKey(key.parse()?), value);
                }
            }
        }
        Ok(row)
    }

    fn configuration(&self) -> Configuration {
        Configuration {
            outgoing: self.outgoing.clone(),
            ..Configuration::of(self.voters.clone(), Settings::default())
        }
    }

    fn committed(&self) -> Result<String, Box<dyn Error>> {
        let configuration = self.configuration();
        let mut told = self.picture(|value| match value {
            Some(index) => format!("{:=>1$} {index}", ">", index as usize + 1),
            None => "?".to_owned(),
        })?;
        match configuration.quorum_value(|key| self.values.get(&key).copied()) {
            Some(index) => writeln!(told, "committed {index}")?,
            None => writeln!(told, "nothing is committed")?,
        }
        Ok(told)
    }

    /// A candidate has lost once even all who are silent could not make it win.
    fn vote(&self) -> Result<String, Box<dyn Error>> {
        let configuration = self.configuration();
        let mut told = self.picture(|value| {
            let said = match value {
                Some(0) => "no",
                Some(_) => "yes",
                None => "?",
            };
            said.to_owned()
        })?;
        let said = |key: NodeKey| self.values.get(&key).copied();
        let won = configuration.has_quorum(|key| said(key) == Some(1));
        let open = configuration.has_quorum(|key| said(key) != Some(0));
        let outcome = match (won, open) {
            (true, _) => "won",
            (false, true) => "open",
            (false, false) => "lost",
        };
        writeln!(told, "{outcome}")?;
        Ok(told)
    }

    fn picture(&self, tell: impl Fn(Option<u64>) -> String) -> Result<String, Box<dyn Error>> {
        let mut told = String::new();
        for key in self.configuration().all_voters() {
            let half = |set: &Members, mark| if set.contains_key(&key) { mark } else { ' ' };
            let (incoming, outgoing) = (half(&self.voters, 'v'), half(&self.outgoing, 'o'));
            let value = tell(self.values.get(&key).copied());
            writeln!(told, "{key} {incoming}{outgoing} {value}")?;
        }
        Ok(told)
    }
}

fn members(keys: &str) -> Result<Members, Box<dyn Error>> {
    let keys = keys.split_terminator('_');
    keys.map(|key| Ok((NodeKey(key.parse()?), format!("n{key}"))))
        .collect()
}

#[test]
fn tables() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts/quorum");
    let found = std::fs::read_dir(&folder).expect("the tables' folder");
    let mut paths: Vec<_> = found.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    assert_eq!(paths.len(), 4, "{paths:?}");
    for path in paths {
        goldenscript::run(&mut Table, &path).expect("the table holds");
    }
}
