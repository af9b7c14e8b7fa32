//! One node among peers that say anything at all: it may be misled, for they hold the cluster's
//! key, but it never panics.

use bytes::Bytes;
use raft::message::{
    Acknowledge, Append, Body, CommittedEntries, Fetch, Fetched, PreVote, Reject, SnapshotChunk,
    SnapshotPart, SnapshotPiece, SnapshotProgress, Vote, VoteRequest,
};
use raft::{
    Configuration, Durable, Effect, Entry, HardState, Index, Input, LogPosition, Message, NodeKey,
    Options, Payload, PersistSeq, Raft, ReadId, Round, SessionId, Sessions, Settings, SnapshotMeta,
    StreamId, Term, Time,
};

use crate::stress::Dice;
use crate::world::command;

const SEEDS: u64 = 500;
const STEPS: u64 = 300;

fn configuration() -> Configuration {
    let members = (1..=3).map(|n| (NodeKey(n), format!("n{n}"))).collect();
    Configuration::of(members, Settings::default())
}

fn entry(dice: &mut Dice, index: Index, term: Term) -> Entry {
    let payload = match dice.below(8) {
        0 if dice.percent(20) => Payload::Configuration(Configuration::default()),
        0 => Payload::Configuration(configuration()),
        1..4 => Payload::Noop,
        _ => Payload::Command(command(1, 1, "x")),
    };
    Entry {
        index,
        term,
        payload,
    }
}

/// Mostly a plausible number, sometimes an absurd one.
fn number(dice: &mut Dice) -> u64 {
    match dice.below(40) {
        0 => u64::MAX,
        1 => u64::MAX - 1,
        2 => u64::MAX / 2,
        _ => dice.below(12),
    }
}

fn position(dice: &mut Dice) -> LogPosition {
    LogPosition {
        index: Index(number(dice)),
        term: Term(number(dice)),
    }
}

fn append(dice: &mut Dice) -> Append {
    let prev = position(dice);
    let mut entries = Vec::new();
    let mut term = prev.term;
    for n in 1..=dice.below(6) {
        let Some(index) = prev.index.0.checked_add(n) else {
            break; // The codec decodes no such entry.
        };
        term = match dice.below(4) {
            0 => Term(number(dice)),
            1 => term.next(),
            _ => term,
        };
        entries.push(entry(dice, Index(index), term));
    }
    Append {
        round: Round(number(dice)),
        sessions: Sessions::of(SessionId(dice.below(3))),
        stream: StreamId(number(dice)),
        prev,
        commit_index: Index(number(dice)),
        entries,
    }
}

fn chunk(dice: &mut Dice) -> SnapshotChunk {
    let data = vec![0; dice.below(30) as usize];
    let configuration = match dice.percent(50) {
        true => configuration(),
        false => Configuration::default(),
    };
    SnapshotChunk {
        round: Round(number(dice)),
        stream: StreamId(dice.below(3)),
        sessions: Sessions::of(SessionId(1)),
        meta: SnapshotMeta {
            last: position(dice),
            configuration,
            epoch: raft::LeaseEpoch::default(),
        },
        length: dice.pick(&[data.len() as u64, 30, u64::MAX]),
        offset: dice.pick(&[0, 0, 10, u64::MAX]),
        data: Bytes::from(data),
    }
}

fn fetch(dice: &mut Dice) -> Fetch {
    let (last, offset) = (position(dice), number(dice));
    Fetch {
        after: Index(number(dice)),
        part: dice.percent(50).then_some(SnapshotPart { last, offset }),
        snapshot: dice.percent(30),
    }
}

fn fetched(dice: &mut Dice) -> Fetched {
    let ends = dice.percent(50);
    match dice.below(5) {
        0 => Fetched::Nothing,
        1 | 2 => {
            let Append { prev, entries, .. } = append(dice);
            Fetched::Entries(CommittedEntries {
                prev,
                ends,
                entries,
            })
        }
        _ => {
            let SnapshotChunk {
                meta,
                length,
                offset,
                data,
                ..
            } = chunk(dice);
            Fetched::Snapshot(SnapshotPiece {
                meta,
                length,
                offset,
                data,
                ends,
            })
        }
    }
}

fn message(dice: &mut Dice, term: Term) -> Message {
    let round = Round(number(dice));
    let stream = StreamId(dice.below(4));
    let body = match dice.below(16) {
        0 => Body::RequestPreVote(VoteRequest {
            last: position(dice),
            transfer: false,
        }),
        1 => Body::PreVote(PreVote {
            proposed_term: dice.pick(&[term, term.next()]),
            granted: dice.percent(80),
        }),
        2 => Body::RequestVote(VoteRequest {
            last: position(dice),
            transfer: false,
        }),
        3 => Body::Vote(Vote {
            granted: dice.percent(90),
        }),
        4..7 => Body::Append(append(dice)),
        7 => Body::Acknowledge(Acknowledge {
            round,
            stream,
            match_index: Index(number(dice)),
            clock: Time(0),
        }),
        8 => Body::Reject(Reject {
            round,
            stream,
            hint: position(dice),
        }),
        9 | 10 => Body::SnapshotChunk(Box::new(chunk(dice))),
        11 => Body::Fetch(fetch(dice)),
        12..15 => Body::Fetched(fetched(dice)),
        _ => Body::SnapshotProgress(SnapshotProgress {
            round,
            stream,
            offset: number(dice),
        }),
    };
    let term = match dice.below(20) {
        0 => term.next(),
        1 => Term(number(dice) / 2),
        _ => term,
    };
    Message { term, body }
}

fn run(seed: u64) {
    let mut dice = Dice(seed);
    let first = Entry {
        index: Index(1),
        term: Term(1),
        payload: Payload::Configuration(configuration()),
    };
    let durable = Durable {
        hard_state: HardState {
            term: Term(1),
            voted_for: None,
        },
        snapshot: None,
        entries: vec![first],
    };
    let options = Options {
        trailing_entries: 1,
        max_append_bytes: 60,
        max_unpersisted_bytes: dice.pick(&[100, 1_000]),
        ..Options::default()
    };
    // A voter, or an observer.
    let me = NodeKey(dice.pick(&[1, 1, 9]));
    let mut raft = Raft::new(me, options, seed, durable, Time(0));
    raft.step(Input::Sessions(Sessions::of(SessionId(1))), Time(0));
    let (mut now, mut written, mut applied) = (Time(0), PersistSeq(0), Index(0));
    for _ in 0..STEPS {
        now.0 += dice.below(200_000);
        let input = match dice.below(22) {
            0..12 => Input::Message {
                from: NodeKey(u128::from(dice.between(1, 5))),
                message: message(&mut dice, raft.term()),
            },
            12..15 => Input::Persisted(written),
            15 => Input::Propose(vec![command(1, 1, "y")]),
            16 => Input::Read(ReadId(1)),
            17 => Input::Compact {
                through: applied,
                data: Bytes::from_static(b"state"),
            },
            18 => Input::LeaderGone {
                session: SessionId(dice.below(3)),
            },
            19 => Input::FetchSnapshot,
            20 => Input::Sources(vec![NodeKey(u128::from(dice.between(1, 5)))]),
            _ => Input::Tick,
        };
        for effect in raft.step(input, now) {
            match effect {
                Effect::Persist(write) => written = write.seq,
                Effect::Apply(entries) => applied = entries.last().map_or(applied, |e| e.index),
                Effect::Restore(snapshot) => applied = snapshot.meta.last.index,
                _ => {}
            }
        }
    }
}

#[test]
fn no_peer_makes_a_node_panic() {
    let failed: Vec<u64> = (0..SEEDS)
        .filter(|seed| std::panic::catch_unwind(|| run(*seed)).is_err())
        .take(10)
        .collect();
    assert!(failed.is_empty(), "seeds that failed: {failed:?}");
}
