//! Records runs of the core for the TLA+ specification to replay: `spec/check.sh traces`.
//!
//! One line of JSON tells one step of one node: what went in, what came out, and the state
//! after. Message contents stand where they are sent; their receipt names them by number.
//!
//! ```text
//! TRACE_DIR=… TRACES=200 cargo test -p raft --test trace     writes seed-0.jsonl and so on
//! ```
//!
//! Without `TRACE_DIR` a few seeds run for nothing but the judge of [`world`].

#![expect(
    clippy::disallowed_methods,
    reason = "where traces go is chosen by the environment"
)]

#[path = "cluster/world.rs"]
#[allow(
    dead_code,
    reason = "shared with the cluster tests, which use all of it"
)]
mod world;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use raft::message::{Append, Body};
use raft::{
    Effect, Entry, Index, Input, LogPosition, Message, NodeKey, Options, Raft, Role, SessionId,
    Settings,
};

use world::World;

/// Traces of a run that does not say how many.
const TRACES: u64 = 4;

/// Choices per trace; each is a step or two.
const CHOICES: u64 = 220;

/// More messages than this are not kept under way: the oldest are lost.
const UNDER_WAY: usize = 24;

/// `SplitMix64`.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound.max(1)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

struct Letter {
    id: u64,
    from: NodeKey,
    to: NodeKey,
    message: Message,
}

/// A world of three or five voters, and what was told of it so far.
struct Recorder {
    world: World,
    dice: Dice,
    under_way: Vec<Letter>,
    sent: u64,
    told: String,
}

impl Recorder {
    fn new(seed: u64) -> Recorder {
        let mut dice = Dice(seed);
        let voters = if seed.is_multiple_of(2) { 3 } else { 5 };
        let options = Options {
            max_append_bytes: dice.pick(&[40, 100, 4_000]),
            max_in_flight: dice.pick(&[1, 2, 4]),
            // The specification knows one place where a log begins.
            trailing_entries: 0,
            ..Options::default()
        };
        let world = World::new(voters, 0, options, Settings::default(), seed);
        Recorder {
            world,
            dice,
            under_way: Vec::new(),
            sent: 0,
            told: String::new(),
        }
    }

    fn run(&mut self) {
        for key in self.keys() {
            self.start(key);
        }
        for _ in 0..CHOICES {
            self.choose();
        }
    }

    fn keys(&self) -> Vec<NodeKey> {
        self.world.nodes.keys().copied().collect()
    }

    fn live(&self) -> Vec<NodeKey> {
        self.world.live().map(|(key, _)| key).collect()
    }

    fn choose(&mut self) {
        let key = {
            let keys = self.keys();
            self.dice.pick(&keys)
        };
        match self.dice.below(100) {
            0..46 => self.deliver(),
            46..72 => self.write_somewhere(),
            72..84 => self.tick_next(),
            84..90 => self.propose(),
            90..92 => self.compact(key),
            92..94 => self.crash(key),
            94..96 => self.will(),
            96 => self.disconnect(key),
            _ => self.revive(key),
        }
    }

    // What can happen.

    fn deliver(&mut self) {
        if self.under_way.is_empty() {
            return self.tick_next();
        }
        self.world.now = self.world.now + Duration::from_micros(self.dice.below(2_000));
        // Mostly in order; an eighth of the time anything.
        let n = match self.dice.below(8) {
            0 => self.dice.below(self.under_way.len() as u64) as usize,
            _ => 0,
        };
        let Letter {
            id,
            from,
            to,
            message,
        } = self.under_way.remove(n);
        let fate = self.dice.below(100);
        if fate < 8 || self.world.raft(to).is_none() || self.world.node(to).session.is_none() {
            return; // Lost.
        }
        if fate > 92 {
            let message = message.clone();
            self.under_way.push(Letter {
                id,
                from,
                to,
                message,
            });
        }
        let input = format!("\"input\":\"message\",\"id\":{id}");
        self.step(to, &input, Input::Message { from, message });
    }

    fn write_somewhere(&mut self) {
        let writing: Vec<NodeKey> = self
            .live()
            .into_iter()
            .filter(|key| !self.world.node(*key).writes.is_empty())
            .collect();
        if writing.is_empty() {
            return self.deliver();
        }
        let key = self.dice.pick(&writing);
        let seq = self.write(key).expect("a write is under way");
        self.step(key, "\"input\":\"persisted\"", Input::Persisted(seq));
    }

    fn tick_next(&mut self) {
        let due = self
            .live()
            .into_iter()
            .filter_map(|key| Some((self.world.deadline(key)?, key)));
        if let Some((at, key)) = due.min() {
            self.world.now = self.world.now.max(at);
            self.step(key, "\"input\":\"tick\"", Input::Tick);
        }
    }

    fn propose(&mut self) {
        let leaders: Vec<NodeKey> = self.world.leaders().map(|(key, _)| key).collect();
        if leaders.is_empty() {
            return self.deliver();
        }
        let key = self.dice.pick(&leaders);
        let data: Vec<String> = (0..=self.dice.below(3)).map(|n| format!("x{n}")).collect();
        let effects = self.world.propose(key, &data);
        self.tell(key, "\"input\":\"propose\"", effects);
    }

    fn compact(&mut self, key: NodeKey) {
        let applied = self.world.node(key).applied;
        if self.world.raft(key).is_some() && applied > Index(0) {
            let effects = self.world.compact(key, applied);
            let input = format!("\"input\":\"compact\",\"through\":{applied}");
            self.tell(key, &input, effects);
        }
    }

    /// Any part of the writes under way reaches the disk first.
    fn crash(&mut self, key: NodeKey) {
        if self.world.raft(key).is_none() {
            return;
        }
        let writes = self.world.node(key).writes.len() as u64;
        for _ in 0..self.dice.below(writes + 1) {
            self.write(key);
        }
        self.world.crash(key, 0);
        self.tell(key, "\"input\":\"crash\"", Vec::new());
    }

    fn revive(&mut self, key: NodeKey) {
        if self.world.raft(key).is_none() {
            self.start(key);
        } else if self.world.node(key).session.is_none() {
            let effects = self.world.connect(key);
            self.tell(key, "\"input\":\"session\"", effects);
        }
    }

    fn start(&mut self, key: NodeKey) {
        let effects = self.world.start(key);
        self.tell(key, "\"input\":\"start\"", effects);
    }

    fn disconnect(&mut self, key: NodeKey) {
        if self.world.raft(key).is_some() && self.world.node(key).session.is_some() {
            let effects = self.world.disconnect(key);
            self.tell(key, "\"input\":\"session\"", effects);
        }
    }

    /// Some of the others hear the will of a session that may well live.
    fn will(&mut self) {
        let leaders: Vec<NodeKey> = self.world.leaders().map(|(key, _)| key).collect();
        if leaders.is_empty() {
            return self.deliver();
        }
        let leader = self.dice.pick(&leaders);
        let Some(SessionId(session)) = self.world.node(leader).session else {
            return;
        };
        let session = SessionId(session - self.dice.below(4) / 3);
        for to in self.live() {
            if self.dice.below(2) == 0 {
                self.step(to, "\"input\":\"will\"", Input::LeaderGone { session });
            }
        }
    }

    // Telling.

    fn step(&mut self, key: NodeKey, told: &str, input: Input) {
        let effects = self.world.step(key, input);
        self.tell(key, told, effects);
    }

    fn write(&mut self, key: NodeKey) -> Option<raft::PersistSeq> {
        let seq = self.world.write(key)?;
        self.tell(key, "\"input\":\"written\"", Vec::new());
        Some(seq)
    }

    fn tell(&mut self, key: NodeKey, input: &str, effects: Vec<Effect>) {
        let mut out = Vec::new();
        for effect in effects {
            let (to, message) = match effect {
                Effect::Broadcast(message) => (None, message),
                Effect::Send { to, message } => (Some(to), message),
                Effect::Rejected { from, reason } => {
                    panic!("{key} does not obey {from}, a correct node: {reason:?}")
                }
                _ => continue,
            };
            self.sent += 1;
            out.push(message_json(self.sent, key, to, &message));
            self.post(key, to, &message);
        }
        let state = self.state_json(key);
        let disk = self.disk_json(key);
        let out = out.join(",");
        writeln!(
            self.told,
            "{{\"node\":\"{key}\",{input},\"out\":[{out}],\"state\":{state},\"disk\":{disk}}}"
        )
        .expect("a string takes all");
    }

    fn post(&mut self, from: NodeKey, to: Option<NodeKey>, message: &Message) {
        if self.world.node(from).session.is_none() {
            return;
        }
        for receiver in self.keys() {
            if receiver != from && to.is_none_or(|to| to == receiver) {
                self.under_way.push(Letter {
                    id: self.sent,
                    from,
                    to: receiver,
                    message: message.clone(),
                });
            }
        }
        while self.under_way.len() > UNDER_WAY {
            self.under_way.remove(0);
        }
    }

    fn state_json(&self, key: NodeKey) -> String {
        let Some(raft) = self.world.raft(key) else {
            return "null".to_owned();
        };
        let role = match raft.role() {
            Role::Learner | Role::Follower => "Follower",
            Role::PreCandidate => "PreCandidate",
            Role::Candidate => "Candidate",
            Role::Leader => "Leader",
        };
        let Hidden { verified, heard } = self.hidden(key, raft);
        format!(
            "{{\"term\":{},\"role\":\"{role}\",\"vote\":{},\"base\":{},\"log\":{},\"commit\":{},\"verified\":{verified},\"heard\":{heard}}}",
            raft.term(),
            node_json(raft.hard_state().voted_for),
            raft.first_index(),
            terms_json(&raft.entries(raft.first_index() + 1)),
            raft.commit_index(),
        )
    }

    fn disk_json(&self, key: NodeKey) -> String {
        let disk = &self.world.node(key).disk;
        let base = disk
            .snapshot
            .as_ref()
            .map_or(Index(0), |s| s.meta.last.index);
        format!(
            "{{\"term\":{},\"vote\":{},\"base\":{base},\"log\":{}}}",
            disk.hard_state.term,
            node_json(disk.hard_state.voted_for),
            terms_json(&disk.entries),
        )
    }

    /// What the core shows in its debug form only.
    fn hidden(&self, key: NodeKey, raft: &Raft) -> Hidden {
        let shown = format!("{raft:?}");
        let number = |name: &str| -> Option<u64> {
            let (_, rest) = shown.split_once(name)?;
            rest.split(')').next()?.parse().ok()
        };
        let now = self.world.node(key).clock.read(self.world.now);
        let timeout = self.world.options.election_timeout;
        let heard_at = number("heard_at: Some(Time(").map(raft::Time);
        Hidden {
            verified: number("verified: Index(").expect("a follower knows how far it verified"),
            heard: raft.role() == Role::Follower && heard_at.is_some_and(|at| now < at + timeout),
        }
    }
}

struct Hidden {
    verified: u64,
    /// The leader was heard within the election timeout.
    heard: bool,
}

// JSON.

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

/// Runs that the judge accepts are written down for the specification to judge.
#[test]
fn record() {
    let traces = std::env::var("TRACES").ok().and_then(|n| n.parse().ok());
    let dir = std::env::var_os("TRACE_DIR");
    for seed in 0..traces.unwrap_or(TRACES) {
        let mut recorder = Recorder::new(seed);
        recorder.run();
        if let Some(dir) = &dir {
            let path = Path::new(dir).join(format!("seed-{seed}.jsonl"));
            std::fs::write(path, &recorder.told).expect("traces are written");
        }
    }
}
