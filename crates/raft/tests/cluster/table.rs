//! Which roles have heard which messages in which term relation: counted while the storm blows, so
//! that no combination is taken for tested that never came up.

use std::collections::BTreeMap;
use std::fmt;

use raft::message::Body;
use raft::{Message, Raft, Role};

/// A message's term beside the receiver's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Relation {
    Older,
    Same,
    Newer,
}

const ROLES: [Role; 5] = [
    Role::Learner,
    Role::Follower,
    Role::PreCandidate,
    Role::Candidate,
    Role::Leader,
];

const KINDS: [&str; 12] = [
    "request_pre_vote",
    "pre_vote",
    "request_vote",
    "vote",
    "append",
    "acknowledge",
    "reject",
    "chunk",
    "progress",
    "timeout_now",
    "fetch",
    "fetched",
];

const RELATIONS: [Relation; 3] = [Relation::Older, Relation::Same, Relation::Newer];

type Cell = (Role, &'static str, Relation);

/// How often each combination arrived.
#[derive(Debug)]
pub(crate) struct Table(BTreeMap<Cell, u64>);

impl Table {
    pub(crate) const fn new() -> Table {
        Table(BTreeMap::new())
    }

    /// Takes note of what `raft` is about to hear.
    pub(crate) fn count(&mut self, raft: &Raft, message: &Message) {
        let relation = match message.term.cmp(&raft.term()) {
            std::cmp::Ordering::Less => Relation::Older,
            std::cmp::Ordering::Equal => Relation::Same,
            std::cmp::Ordering::Greater => Relation::Newer,
        };
        let cell = (raft.role(), kind_of(&message.body), relation);
        *self.0.entry(cell).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Table) {
        for (cell, count) in &other.0 {
            *self.0.entry(*cell).or_default() += count;
        }
    }

    fn of(&self, cell: Cell) -> u64 {
        self.0.get(&cell).copied().unwrap_or_default()
    }

    /// Every cell was seen, but those that cannot be; and those really were not.
    pub(crate) fn check(&self) {
        let cells = ROLES.into_iter().flat_map(|role| {
            let kinds = KINDS.into_iter();
            kinds.flat_map(move |kind| RELATIONS.map(|relation| (role, kind, relation)))
        });
        let mut missing = Vec::new();
        for cell in cells {
            match impossible(cell) {
                None if self.of(cell) == 0 && !is_rare(cell) => missing.push(cell),
                None => {}
                Some(reason) => assert_eq!(self.of(cell), 0, "{cell:?}, though {reason}\n{self}"),
            }
        }
        assert!(missing.is_empty(), "never came up: {missing:#?}\n{self}");
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:16} {:5}", "message", "term")?;
        for role in ROLES {
            write!(f, "{:>13}", format!("{role:?}"))?;
        }
        writeln!(f)?;
        for kind in KINDS {
            for relation in RELATIONS {
                write!(f, "{kind:16} {:5}", format!("{relation:?}"))?;
                for role in ROLES {
                    let cell = (role, kind, relation);
                    let told = match impossible(cell) {
                        Some(_) if self.of(cell) == 0 => "-".to_owned(),
                        _ => self.of(cell).to_string(),
                    };
                    write!(f, "{told:>13}")?;
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

pub(crate) fn kind_of(body: &Body) -> &'static str {
    match body {
        Body::RequestPreVote(_) => "request_pre_vote",
        Body::PreVote(_) => "pre_vote",
        Body::RequestVote(_) => "request_vote",
        Body::Vote(_) => "vote",
        Body::Append(_) => "append",
        Body::Acknowledge(_) => "acknowledge",
        Body::Reject(_) => "reject",
        Body::SnapshotChunk(_) => "chunk",
        Body::SnapshotProgress(_) => "progress",
        Body::TimeoutNow(_) => "timeout_now",
        Body::Fetch(_) => "fetch",
        Body::Fetched(_) => "fetched",
    }
}

/// What takes a change of members, a transfer or an election between a question and its answer: too
/// rare to be asked of the usual seeds.
fn is_rare((role, kind, relation): Cell) -> bool {
    let answers = ["pre_vote", "vote", "acknowledge", "reject", "progress"];
    match role {
        Role::Learner => answers.contains(&kind) || kind == "timeout_now",
        Role::PreCandidate | Role::Candidate if kind == "timeout_now" => relation == Relation::Same,
        // Whom a candidate's own term shows a leader of, it will follow as soon as it hears it.
        Role::Candidate if kind == "fetch" => relation != Relation::Older,
        // Only a witness asks for anything, and then hears the answer as something else.
        Role::Follower => kind == "fetched" && relation != Relation::Same,
        Role::PreCandidate | Role::Candidate | Role::Leader => kind == "fetched",
    }
}

/// Why correct peers never bring this about: one reason for each group of cells.
///
/// A leader's term is on its disk before it leads, and so is the term that any answer speaks of
/// before the answer leaves. Hence who answers a leader of term t is in t, and the leader is in t
/// or beyond it.
fn impossible(cell: Cell) -> Option<&'static str> {
    match cell {
        (Role::Leader, "append" | "chunk", Relation::Same) => {
            Some("two leaders in one term break election safety")
        }
        (_, "acknowledge" | "progress", Relation::Newer) => {
            Some("the leader of t is answered in t, and never forgets t")
        }
        (Role::Candidate, "acknowledge" | "progress", Relation::Same) => {
            Some("who led t campaigns in a later term")
        }
        (_, "chunk", Relation::Newer) => {
            Some("the leader of t sends a snapshot to who rejected its append in t")
        }
        (Role::Leader, "timeout_now", Relation::Same) => {
            Some("a leader asks another to take over, and leads t alone")
        }
        (_, "timeout_now", Relation::Newer) => {
            Some("only who acknowledged in t is asked to take over from t's leader")
        }
        _ => None,
    }
}
