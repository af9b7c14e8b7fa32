//! One node of consensus among peers that say anything: misled perhaps, for they hold the cluster's
//! key, but never made to panic, nor to write what it could not start from again.

#![no_main]

use std::collections::VecDeque;

use bytes::Bytes;
use fuzz::{Reader, answer, message, sessions};
use libfuzzer_sys::fuzz_target;
use raft::{
    ClientId, Command, Configuration, Durable, Effect, Entry, HardState, Index, Input, Message,
    NodeKey, Options, Payload, Persist, Raft, ReadId, RequestNumber, SessionId, Sessions, Settings,
    Term, Time,
};

const ME: NodeKey = NodeKey(1);

/// An input has at most so many steps, so that none takes long by its length alone.
const MAX_STEPS: usize = 400;

/// Messages of the node that wait for a friendly answer.
const MAX_SENT: usize = 16;

struct Node {
    raft: Raft,
    now: Time,
    /// Writes not yet confirmed, and what all confirmed ones amount to.
    writing: VecDeque<Persist>,
    durable: Durable,
    applied: Index,
    sent: VecDeque<Message>,
    requests: u64,
}

fn options() -> Options {
    Options {
        trailing_entries: 1,
        max_append_bytes: 60,
        max_snapshot_bytes: 4_096,
        ..Options::default()
    }
}

/// A formed cluster of three voters, of which this is one or is none.
fn formed(voter: bool) -> Durable {
    let first = if voter { 1 } else { 2 };
    let members = (first..first + 3).map(|n| (NodeKey(n), format!("gw-{n}")));
    let configuration = Configuration::of(members.collect(), Settings::default());
    Durable {
        hard_state: HardState {
            term: Term(1),
            voted_for: None,
        },
        snapshot: None,
        entries: vec![Entry {
            index: Index(1),
            term: Term(1),
            payload: Payload::Configuration(configuration),
        }],
    }
}

impl Node {
    fn new(durable: Durable) -> Node {
        let now = Time(0);
        let mut node = Node {
            raft: Raft::new(ME, options(), 7, durable.clone(), now),
            now,
            writing: VecDeque::new(),
            durable,
            applied: Index(0),
            sent: VecDeque::new(),
            requests: 0,
        };
        node.step(Input::Sessions(Sessions::of(SessionId(1))));
        node
    }

    fn step(&mut self, input: Input) {
        for effect in self.raft.step(input, self.now) {
            match effect {
                Effect::Persist(write) => {
                    if let Some(last) = self.writing.back() {
                        assert!(last.seq < write.seq, "writes are numbered in order");
                    }
                    self.writing.push_back(write);
                }
                Effect::Apply(entries) => {
                    for entry in entries {
                        assert_eq!(entry.index, self.applied.next(), "nothing is left out");
                        self.applied = entry.index;
                    }
                }
                Effect::Restore(snapshot) => {
                    let last = snapshot.meta.last.index;
                    assert!(last >= self.applied, "the state never goes back");
                    self.applied = last;
                }
                Effect::Broadcast(message) | Effect::Send { message, .. } => {
                    self.sent.push_back(message);
                    if self.sent.len() > MAX_SENT {
                        self.sent.pop_front();
                    }
                }
                Effect::ReadReady { .. }
                | Effect::ReadRefused { .. }
                | Effect::ChangeDone { .. }
                | Effect::ChangeRefused { .. }
                | Effect::TransferRefused { .. }
                | Effect::ProposalRefused { .. }
                | Effect::StatusChanged
                | Effect::Rejected { .. } => {}
            }
        }
    }

    /// Confirms the first `count` writes under way.
    fn persisted(&mut self, count: usize) {
        let mut last = None;
        for write in self.writing.drain(..count.min(self.writing.len())) {
            last = Some(write.seq);
            keep(&mut self.durable, write);
        }
        if let Some(seq) = last {
            self.step(Input::Persisted(seq));
        }
    }

    /// The process dies; what was confirmed is what it starts from.
    fn restart(&mut self) {
        self.raft = Raft::new(ME, options(), 8, self.durable.clone(), self.now);
        self.writing.clear();
        self.sent.clear();
        let snapshot = self.durable.snapshot.as_ref();
        self.applied = snapshot.map_or(Index(0), |snapshot| snapshot.meta.last.index);
        self.step(Input::Sessions(Sessions::of(SessionId(2))));
    }
}

/// What a disk holds after a write.
fn keep(durable: &mut Durable, write: Persist) {
    if let Some(hard_state) = write.hard_state {
        assert!(
            hard_state.term >= durable.hard_state.term,
            "terms never go back"
        );
        durable.hard_state = hard_state;
    }
    if let Some(save) = write.snapshot {
        let last = save.snapshot.meta.last.index;
        durable
            .entries
            .retain(|entry| !save.discard_log && entry.index > last);
        durable.snapshot = Some(save.snapshot);
    }
    if let Some(first) = write.entries.first() {
        durable.entries.retain(|held| held.index < first.index);
        durable.entries.extend(write.entries);
    }
}

fuzz_target!(|data: &[u8]| {
    let mut reader = Reader::new(data);
    let mut node = Node::new(formed(reader.below(4) > 0));
    for _ in 0..MAX_STEPS {
        if reader.is_empty() {
            break;
        }
        let (what, pause) = (reader.byte(), reader.byte());
        node.now = Time(node.now.0.saturating_add(match pause {
            0..=0x7f => u64::from(pause) * 100,
            0x80..=0xfe => u64::from(pause - 0x80) * 20_000,
            0xff => reader.number(),
        }));
        let from = NodeKey(u128::from(what >> 4) % 5 + 1);
        match what & 15 {
            0..=4 => {
                let message = message(&mut reader, node.raft.term());
                let bytes = minicbor::to_vec(&message).expect("memory takes every byte");
                let message = minicbor::decode(&bytes).expect("what was written is read");
                node.step(Input::Message { from, message });
            }
            5 => {
                if let Ok(message) = minicbor::decode(reader.sized()) {
                    node.step(Input::Message { from, message });
                }
            }
            // A peer that plays along: the way to lead.
            6 | 7 => {
                if let Some(message) = node.sent.pop_back().as_ref().and_then(answer) {
                    for from in [2, 3].map(NodeKey) {
                        let message = message.clone();
                        node.step(Input::Message { from, message });
                    }
                }
            }
            8 | 9 => node.persisted(usize::MAX),
            10 => {
                let count = reader.below(4);
                node.persisted(count);
            }
            11 => {
                node.requests += 1;
                let command = Command {
                    client: ClientId(1),
                    request: RequestNumber(node.requests),
                    data: Bytes::copy_from_slice(reader.sized()),
                };
                node.step(Input::Propose(vec![command]));
            }
            12 => {
                node.requests += 1;
                node.step(Input::Read(ReadId(node.requests)));
            }
            13 => {
                let through = node.applied;
                let data = Bytes::copy_from_slice(reader.sized());
                node.step(Input::Compact { through, data });
            }
            14 => match reader.below(4) {
                0 => node.step(Input::Sessions(Sessions::default())),
                1 => node.step(Input::Sessions(sessions(&mut reader))),
                2 => node.step(Input::Rank(reader.number() as u32)),
                _ => node.step(Input::LeaderGone {
                    session: SessionId(reader.number()),
                }),
            },
            _ => match reader.below(8) {
                0 => node.restart(),
                _ => node.step(Input::Tick),
            },
        }
        // Asked for after each step by whoever drives the node.
        node.raft.next_deadline();
    }
    node.persisted(usize::MAX);
    node.restart();
});
