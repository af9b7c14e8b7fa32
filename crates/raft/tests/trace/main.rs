//! Records runs of the core for the TLA+ specification to replay: `spec/check.sh traces`.
//!
//! The runs are those of a seeded world whose dice are loaded: messages overtake each other, are
//! lost and doubled, disks are slow, nodes crash between any two of their writes, wills lie. What is
//! told of them is [`tape`]'s affair.
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

mod tape;
#[path = "../cluster/world.rs"]
#[allow(
    dead_code,
    reason = "shared with the cluster tests, which use all of it"
)]
mod world;

use std::path::Path;
use std::time::Duration;

use raft::message::{Body, Vote};
use raft::{
    Effect, Index, Input, Message, NodeKey, Options, PersistSeq, SessionId, Settings, Term,
};

use tape::{After, Tape, Told};
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

#[derive(Clone)]
struct Letter {
    from: NodeKey,
    to: NodeKey,
    message: Message,
}

/// A world of three or five voters, and what was told of it so far.
struct Recorder {
    world: World,
    dice: Dice,
    under_way: Vec<Letter>,
    tape: Tape,
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
            max_unpersisted_bytes: dice.pick(&[100, 300, 8 << 20]),
            ..Options::default()
        };
        let world = World::new(voters, 0, options, Settings::default(), seed);
        Recorder {
            world,
            dice,
            under_way: Vec::new(),
            tape: Tape::default(),
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
        let letter = self.under_way.remove(n);
        let to = letter.to;
        let fate = self.dice.below(100);
        if fate < 8 || self.world.raft(to).is_none() || self.world.node(to).connected.is_empty() {
            return; // Lost.
        }
        if fate > 92 {
            self.under_way.push(letter.clone());
        }
        let Letter { from, message, .. } = letter;
        self.step(to, Input::Message { from, message });
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
        self.step(key, Input::Persisted(seq));
    }

    fn tick_next(&mut self) {
        let due = self
            .live()
            .into_iter()
            .filter_map(|key| Some((self.world.deadline(key)?, key)));
        if let Some((at, key)) = due.min() {
            self.world.now = self.world.now.max(at);
            self.step(key, Input::Tick);
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
        self.tell(key, Told::Propose, &effects);
    }

    fn compact(&mut self, key: NodeKey) {
        let applied = self.world.node(key).applied;
        if self.world.raft(key).is_some() && applied > Index(0) {
            let effects = self.world.compact(key, applied);
            self.tell(key, Told::Compact(applied), &effects);
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
        self.tell(key, Told::Crash, &[]);
    }

    fn revive(&mut self, key: NodeKey) {
        if self.world.raft(key).is_none() {
            self.start(key);
        } else if self.world.node(key).connected.is_empty() {
            let effects = self.world.connect(key);
            self.tell(key, Told::Session, &effects);
        }
    }

    fn start(&mut self, key: NodeKey) {
        let effects = self.world.start(key);
        self.tell(key, Told::Start, &effects);
    }

    fn disconnect(&mut self, key: NodeKey) {
        if self.world.raft(key).is_some() && !self.world.node(key).connected.is_empty() {
            let effects = self.world.disconnect(key);
            self.tell(key, Told::Session, &effects);
        }
    }

    /// Some of the others hear the will of a session that may well live.
    fn will(&mut self) {
        let leaders: Vec<NodeKey> = self.world.leaders().map(|(key, _)| key).collect();
        if leaders.is_empty() {
            return self.deliver();
        }
        let leader = self.dice.pick(&leaders);
        let Some(SessionId(session)) = self.world.node(leader).connected.iter().next() else {
            return;
        };
        let session = SessionId(session - self.dice.below(4) / 3);
        for to in self.live() {
            if self.dice.below(2) == 0 {
                self.step(to, Input::LeaderGone { session });
            }
        }
    }

    // Telling.

    fn step(&mut self, key: NodeKey, input: Input) {
        let effects = self.world.step(key, input.clone());
        self.tell(key, Told::from(&input), &effects);
    }

    fn write(&mut self, key: NodeKey) -> Option<PersistSeq> {
        let seq = self.world.write(key)?;
        self.tell(key, Told::Written, &[]);
        Some(seq)
    }

    fn tell(&mut self, key: NodeKey, told: Told, effects: &[Effect]) {
        let node = self.world.node(key);
        let after = After {
            raft: node.raft.as_ref(),
            now: node.clock.read(self.world.now),
            disk: &node.disk,
        };
        self.tape.tell(key, told, effects, after);
        for effect in effects {
            match effect {
                Effect::Broadcast(message) => self.post(key, None, message),
                Effect::Send { to, message } => self.post(key, Some(*to), message),
                _ => {}
            }
        }
    }

    fn post(&mut self, from: NodeKey, to: Option<NodeKey>, message: &Message) {
        if self.world.node(from).connected.is_empty() {
            return;
        }
        for receiver in self.keys() {
            if receiver != from && to.is_none_or(|to| to == receiver) {
                self.under_way.push(Letter {
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
            std::fs::write(path, recorder.tape.lines()).expect("traces are written");
        }
    }
}

/// What a replay rests on: a message that arrives is one that was sent.
#[test]
#[should_panic(expected = "what that never said")]
fn a_message_that_nobody_said_ends_the_run() {
    let mut recorder = Recorder::new(0);
    let (key, from) = (NodeKey(1), NodeKey(2));
    let message = Message {
        term: Term(2),
        body: Body::Vote(Vote { granted: true }),
    };
    let message = &message;
    recorder.tell(key, Told::Message { from, message }, &[]);
}
