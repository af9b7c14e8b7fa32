//! What is told of a run, one line of JSON for each step of a node: what went in, what was said,
//! and what the node and its disk hold after. The specification replays it (`spec/Trace.tla`).
//!
//! The tape knows nothing of the world that it is told about: whoever drives a [`Raft`] and its
//! disk may keep one, if it tells every step in order. Messages are written down where they are
//! sent. One that arrives is named by the number under which its sender said just that to its
//! receiver, or to all; one that nobody ever said ends the run.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use raft::message::{Append, Body};
use raft::{Durable, Effect, Entry, Index, Input, LogPosition, Message, NodeKey, Raft, Role, Time};

/// What happened to a node.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Told<'a> {
    /// Its process begins with what its disk holds.
    Start,
    /// Its process ends.
    Crash,
    /// The oldest write under way is on its disk. The node has not heard of it.
    Written,
    /// It heard of its writes.
    Persisted,
    /// It gained or lost its connection.
    Session,
    /// A leader's session has ended, or so it heard.
    Will,
    Propose,
    /// Its state machine saved itself as of this index.
    Compact(Index),
    Message {
        from: NodeKey,
        message: &'a Message,
    },
    /// What means nothing to the specification: time, a read, a rank.
    Tick,
}

impl<'a> From<&'a Input> for Told<'a> {
    fn from(input: &'a Input) -> Told<'a> {
        match input {
            Input::Message { from, message } => Told::Message {
                from: *from,
                message,
            },
            Input::Persisted(_) => Told::Persisted,
            Input::Sessions(_) => Told::Session,
            Input::LeaderGone { .. } => Told::Will,
            Input::Propose(_) => Told::Propose,
            Input::Compact { through, .. } => Told::Compact(*through),
            Input::Tick | Input::Read(_) | Input::Rank(_) | Input::Sources(_) => Told::Tick,
            Input::Reconfigure { .. }
            | Input::Transfer { .. }
            | Input::Relinquished
            | Input::RoundTrip(_)
            | Input::FetchSnapshot => {
                panic!("the recorded runs have neither changes nor transfers: {input:?}")
            }
        }
    }
}

/// A node as a step left it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct After<'a> {
    /// `None` while no process runs.
    pub(crate) raft: Option<&'a Raft>,
    /// The time that the step was given.
    pub(crate) now: Time,
    pub(crate) disk: &'a Durable,
}

/// Who said what to whom, `None` for all.
type Said = (NodeKey, Option<NodeKey>, Vec<u8>);

/// A run as it was told so far.
#[derive(Debug, Default)]
pub(crate) struct Tape {
    lines: String,
    messages: u64,
    /// Under which number each was said first.
    said: BTreeMap<Said, u64>,
}

impl Tape {
    /// The lines.
    pub(crate) fn lines(&self) -> &str {
        &self.lines
    }

    /// Adds a line.
    pub(crate) fn tell(&mut self, key: NodeKey, told: Told, effects: &[Effect], after: After) {
        let input = self.input_json(key, told);
        let out: Vec<String> = effects
            .iter()
            .filter_map(|effect| self.say(key, effect))
            .collect();
        let state = after.raft.map_or_else(
            || "null".to_owned(),
            |raft| state_json(raft, hidden(raft, after.now)),
        );
        writeln!(
            self.lines,
            "{{\"node\":\"{key}\",{input},\"out\":[{}],\"state\":{state},\"disk\":{}}}",
            out.join(","),
            disk_json(after.disk)
        )
        .expect("a string takes all");
    }

    fn input_json(&self, key: NodeKey, told: Told) -> String {
        let name = match told {
            Told::Start => "start",
            Told::Crash => "crash",
            Told::Written => "written",
            Told::Persisted => "persisted",
            Told::Session => "session",
            Told::Will => "will",
            Told::Propose => "propose",
            Told::Compact(through) => {
                return format!("\"input\":\"compact\",\"through\":{through}");
            }
            Told::Message { from, message } => {
                let id = self.number_of(from, key, message);
                return format!("\"input\":\"message\",\"id\":{id}");
            }
            Told::Tick => "tick",
        };
        format!("\"input\":\"{name}\"")
    }

    fn number_of(&self, from: NodeKey, to: NodeKey, message: &Message) -> u64 {
        let said = |to| self.said.get(&(from, to, contents(message)));
        let id = said(Some(to)).or_else(|| said(None));
        *id.unwrap_or_else(|| panic!("{to} hears of {from} what that never said: {message:?}"))
    }

    fn say(&mut self, key: NodeKey, effect: &Effect) -> Option<String> {
        let (to, message) = match effect {
            Effect::Broadcast(message) => (None, message),
            Effect::Send { to, message } => (Some(*to), message),
            Effect::Rejected { from, reason } => {
                panic!("{key} does not obey {from}, a correct node: {reason:?}")
            }
            Effect::Persist(_)
            | Effect::Apply(_)
            | Effect::Restore(_)
            | Effect::ReadReady { .. }
            | Effect::ReadRefused { .. }
            | Effect::ProposalRefused { .. }
            | Effect::ChangeDone { .. }
            | Effect::ChangeRefused { .. }
            | Effect::TransferRefused { .. }
            | Effect::StatusChanged => return None,
        };
        self.messages += 1;
        let id = self.messages;
        self.said.entry((key, to, contents(message))).or_insert(id);
        Some(message_json(id, key, to, message))
    }
}

fn contents(message: &Message) -> Vec<u8> {
    minicbor::to_vec(message).expect("a vector takes all")
}

/// What the core shows in its debug form only.
struct Hidden {
    verified: u64,
    /// The leader was heard within the election timeout.
    heard: bool,
}

fn hidden(raft: &Raft, now: Time) -> Hidden {
    let shown = format!("{raft:?}");
    let number = |name: &str| -> Option<u64> {
        let (_, rest) = shown.split_once(name)?;
        rest.split(')').next()?.parse().ok()
    };
    let timeout = raft.options().election_timeout;
    let heard_at = number("heard_at: Some(Time(").map(Time);
    Hidden {
        verified: number("verified: Index(").expect("a follower knows how far it verified"),
        heard: raft.role() == Role::Follower && heard_at.is_some_and(|at| now < at + timeout),
    }
}

fn state_json(raft: &Raft, Hidden { verified, heard }: Hidden) -> String {
    let role = match raft.role() {
        Role::Learner | Role::Follower => "Follower",
        Role::PreCandidate => "PreCandidate",
        Role::Candidate => "Candidate",
        Role::Leader => "Leader",
    };
    format!(
        "{{\"term\":{},\"role\":\"{role}\",\"vote\":{},\"base\":{},\"log\":{},\"commit\":{},\"verified\":{verified},\"heard\":{heard}}}",
        raft.term(),
        node_json(raft.hard_state().voted_for),
        raft.first_index(),
        terms_json(&raft.entries(raft.first_index() + 1)),
        raft.commit_index(),
    )
}

fn disk_json(disk: &Durable) -> String {
    let snapshot = disk.snapshot.as_ref();
    let base = snapshot.map_or(Index(0), |s| s.meta.last.index);
    format!(
        "{{\"term\":{},\"vote\":{},\"base\":{base},\"log\":{}}}",
        disk.hard_state.term,
        node_json(disk.hard_state.voted_for),
        terms_json(&disk.entries),
    )
}

fn node_json(key: Option<NodeKey>) -> String {
    key.map_or("\"none\"".to_owned(), |key| format!("\"{key}\""))
}

fn terms_json(entries: &[Entry]) -> String {
    let terms: Vec<String> = entries.iter().map(|entry| entry.term.to_string()).collect();
    format!("[{}]", terms.join(","))
}

fn position_json(position: LogPosition) -> String {
    let LogPosition { index, term } = position;
    format!("{{\"index\":{index},\"term\":{term}}}")
}

fn message_json(id: u64, from: NodeKey, to: Option<NodeKey>, message: &Message) -> String {
    let to = to.map_or("\"all\"".to_owned(), |to| node_json(Some(to)));
    let body = match &message.body {
        Body::RequestPreVote(request) => kind("RequestPreVote", "last", request.last),
        Body::RequestVote(request) => kind("RequestVote", "last", request.last),
        Body::PreVote(reply) => format!(
            "\"kind\":\"PreVote\",\"proposed\":{},\"granted\":{}",
            reply.proposed_term, reply.granted
        ),
        Body::Vote(vote) => format!("\"kind\":\"Vote\",\"granted\":{}", vote.granted),
        Body::Append(append) => append_json(append),
        Body::Acknowledge(said) => {
            format!("\"kind\":\"Acknowledge\",\"match\":{}", said.match_index)
        }
        Body::Reject(reject) => kind("Reject", "hint", reject.hint),
        Body::SnapshotChunk(chunk) => format!(
            "{},\"stream\":{}",
            kind("Snapshot", "last", chunk.meta.last),
            chunk.stream
        ),
        Body::SnapshotProgress(_) => "\"kind\":\"Progress\"".to_owned(),
        Body::TimeoutNow(_) | Body::Fetch(_) | Body::Fetched(_) => {
            panic!("the recorded runs have no transfers and no observers")
        }
    };
    let term = message.term;
    format!("{{\"id\":{id},\"term\":{term},\"from\":\"{from}\",\"to\":{to},{body}}}")
}

fn kind(kind: &str, name: &str, position: LogPosition) -> String {
    format!("\"kind\":\"{kind}\",\"{name}\":{}", position_json(position))
}

fn append_json(append: &Append) -> String {
    format!(
        "\"kind\":\"Append\",\"stream\":{},\"prev\":{},\"entries\":{},\"commit\":{}",
        append.stream,
        position_json(append.prev),
        terms_json(&append.entries),
        append.commit_index,
    )
}
