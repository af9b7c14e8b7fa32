//! Members that lie. A shared key cannot keep them out and Raft cannot outvote them: they can
//! disturb, mislead, even stop a node (docs/wire.md). What they cannot do is make one panic.

use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index as Pick;
use raft::message::{
    Acknowledge, Append, Body as Raft, PreVote, Reject, SnapshotChunk, SnapshotProgress, Vote,
    VoteRequest,
};
use raft::{
    ClientId, Command, Configuration, Entry, Index, LogPosition, Message, NodeKey, Payload,
    Rejection, RequestNumber, Round, SessionId, Sessions, Settings, SnapshotMeta, StreamId, Term,
};

use super::world::{World, name};
use crate::Input;
use crate::kv::{self, Store};
use crate::replica::StopReason;
use crate::wire::{Answer, Body, Handshake, Hello, Holds, Operation, Reply, Request, Write};

const MAX: u64 = u64::MAX;

fn at(index: u64, term: u64) -> LogPosition {
    let (index, term) = (Index(index), Term(term));
    LogPosition { index, term }
}

/// What a node rejects that hears `body` of a member, in its own term or `ahead` of it.
fn lie(world: &mut World, to: &str, ahead: u64, body: Raft) -> Option<Rejection> {
    let term = world.node(to).replica.term();
    let term = Term(term.0.saturating_add(ahead));
    let outcome = world.say(to, &Body::Consensus(Message { term, body }, None));
    world.run(Duration::from_millis(1));
    outcome.rejected()
}

fn append(prev: LogPosition, entries: Vec<Entry>) -> Raft {
    Raft::Append(Append {
        round: Round(MAX),
        sessions: Sessions::of(SessionId(MAX)),
        stream: StreamId(MAX),
        prev,
        commit_index: Index(MAX),
        entries,
    })
}

fn entry(index: u64, term: u64, payload: Payload) -> Entry {
    let (index, term) = (Index(index), Term(term));
    Entry {
        index,
        term,
        payload,
    }
}

fn chunk(last: LogPosition, length: u64, offset: u64) -> SnapshotChunk {
    let voters = [(NodeKey(1), "a".to_owned())].into();
    SnapshotChunk {
        round: Round(1),
        stream: StreamId(MAX),
        sessions: Sessions::of(SessionId(1)),
        meta: SnapshotMeta {
            last,
            configuration: Configuration::of(voters, Settings::default()),
            epoch: raft::LeaseEpoch::default(),
        },
        length,
        offset,
        data: Bytes::from_static(b"data"),
    }
}

/// Each lie is rejected and counted where it can be told from the truth, and inert or a mere
/// disturbance where it cannot; then the cluster goes on.
#[test]
fn the_cluster_survives_lies() {
    let mut world = World::formed(&["a", "b", "c"]);
    world.admit_member("z");
    let leader = world.leader().unwrap().to_string();
    let follower = ["a", "b", "c"]
        .into_iter()
        .find(|who| *who != leader)
        .unwrap();
    let last = world.node(&leader).replica.status().last_index;

    // To the leader, in its own term.
    let too_much = |match_index: u64| {
        Some(Rejection::AcknowledgedTooMuch {
            match_index: Index(match_index),
        })
    };
    let acknowledge = |round: u64, stream: u64, match_index: u64| {
        Raft::Acknowledge(Acknowledge {
            round: Round(round),
            stream: StreamId(stream),
            match_index: Index(match_index),
            clock: raft::Time(0),
        })
    };
    for match_index in [last + 1, last + 1_000, MAX - 1, MAX] {
        let lie = lie(&mut world, &leader, 0, acknowledge(1, 0, match_index));
        assert_eq!(lie, too_much(match_index));
    }
    for (round, stream) in [(MAX, MAX), (MAX, 0), (0, MAX)] {
        lie(&mut world, &leader, 0, acknowledge(round, stream, last));
        let (round, stream) = (Round(round), StreamId(stream));
        for hint in [at(MAX, MAX), at(0, MAX), at(MAX, 0), at(0, 0)] {
            let reject = Reject {
                round,
                stream,
                hint,
            };
            lie(&mut world, &leader, 0, Raft::Reject(reject));
        }
        let progress = SnapshotProgress {
            round,
            stream,
            offset: MAX,
        };
        lie(&mut world, &leader, 0, Raft::SnapshotProgress(progress));
    }
    let second = lie(&mut world, &leader, 0, append(at(last, 2), vec![]));
    assert!(matches!(second, Some(Rejection::SecondLeader { .. })));
    let second = lie(
        &mut world,
        &leader,
        0,
        Raft::SnapshotChunk(Box::new(chunk(at(MAX, 1), 4, 0))),
    );
    assert!(matches!(second, Some(Rejection::SecondLeader { .. })));
    let vote = lie(&mut world, &leader, 0, Raft::Vote(Vote { granted: true }));
    assert_eq!(vote, None, "it is counted for nothing");
    assert_eq!(
        world.leader().map(|name| name.to_string()),
        Some(leader.clone())
    );

    // To anyone, in terms of its own.
    for (ahead, body) in [
        (MAX, append(at(0, 0), vec![])),
        (1 << 33, Raft::Vote(Vote { granted: false })),
        (
            1 << 33,
            Raft::RequestVote(VoteRequest {
                last: at(MAX, MAX),
                transfer: false,
            }),
        ),
    ] {
        let lie = lie(&mut world, follower, ahead, body);
        assert!(matches!(lie, Some(Rejection::TermTooFar { .. })));
    }
    let term = world.node(follower).replica.term().0;
    let nobody = Payload::Configuration(Configuration::default());
    let bad_chunks = [
        chunk(at(MAX, 1), 4, 0),
        chunk(at(1 << 50, MAX), 4, 0),
        chunk(at(1 << 50, 1), MAX, 0),
        chunk(at(1 << 50, 1), 4, 1),
        chunk(at(1 << 50, 1), 4, MAX),
        chunk(at(1 << 50, 1), 3, 0),
    ];
    let mut lies: Vec<(Raft, Rejection)> = bad_chunks
        .map(|chunk| (Raft::SnapshotChunk(Box::new(chunk)), Rejection::BadSnapshot))
        .into();
    let mut unruled = chunk(at(1 << 50, 1), 4, 0);
    unruled.meta.configuration = Configuration::default();
    lies.push((Raft::SnapshotChunk(Box::new(unruled)), Rejection::NoVoters));
    lies.push((
        append(at(last, term), vec![entry(last + 1, term, nobody)]),
        Rejection::NoVoters,
    ));
    for terms in [[term, term - 1], [term + 5, term + 5], [MAX, MAX]] {
        let entries = vec![
            entry(last + 1, terms[0], Payload::Noop),
            entry(last + 2, terms[1], Payload::Noop),
        ];
        lies.push((
            append(at(last, term), entries),
            Rejection::DisorderedEntries,
        ));
    }
    // The first takes the lead of the next term, which no one can tell from an election.
    let mut ahead = 1;
    for (body, expected) in lies {
        let shown = format!("{body:?}");
        assert_eq!(
            lie(&mut world, follower, ahead, body),
            Some(expected),
            "{shown}"
        );
        ahead = 0;
    }
    assert_eq!(
        lie(&mut world, follower, 0, append(at(MAX, MAX), vec![])),
        None
    );
    for who in ["a", "b", "c"] {
        world.assert_alive(who);
    }
}

/// A snapshot that this build cannot read, or that is of another index than it says, stops the
/// node with a reason; it does not panic then or later.
#[test]
fn a_false_snapshot_stops_the_node() {
    for data in [Bytes::from_static(b"data"), Store::default().snapshot()] {
        let mut world = World::formed(&["a", "b", "c"]);
        world.admit_member("z");
        let mut chunk = chunk(at(1_000, 1), data.len() as u64, 0);
        chunk.data = data;
        lie(&mut world, "b", 1, Raft::SnapshotChunk(Box::new(chunk)));
        let stopped = |world: &World| {
            world
                .node("b")
                .events
                .iter()
                .any(|event| matches!(event, crate::Event::Stop(StopReason::Snapshot(_))))
        };
        assert!(stopped(&world));
        lie(&mut world, "b", 1, append(at(1_000, 1), vec![]));
        world.run(Duration::from_secs(3));
        world.restart("b");
        world.run(Duration::from_secs(3));
        assert!(stopped(&world), "and says so again after a restart");
        world.assert_alive("a");
    }
}

/// Handshakes, hellos, requests and replies that mean nothing.
#[test]
fn other_lies() {
    let mut world = World::formed(&["a", "b", "c"]);
    world.admit_member("z");
    let leader = world.leader().unwrap().to_string();
    let hello = |holds: Holds| {
        Body::Hello(Hello {
            question: true,
            holds,
            voters: vec!["a".into(), "#".into(), "x".repeat(1_000)],
            settings: Settings {
                lease_ms: 0,
                drift_ppm: u32::MAX,
                lease_reads: false,
            },
            heard: [("".into(), NodeKey(0))].into(),
            expect: Some(u32::MAX),
            witness: true,
        })
    };
    let mut other = world.formation();
    other.voters.clear();
    let request = |number, settled, operation| {
        Body::Request(Request {
            client: ClientId(MAX),
            number: RequestNumber(number),
            settled,
            operation,
            begun: None,
        })
    };
    let huge: Bytes = vec![0; 100_000].into();
    let bodies = [
        hello(Holds::Nothing),
        hello(Holds::Accepted(other.clone())),
        hello(Holds::Formed(other)),
        Body::Handshake(Handshake::default()),
        Body::Handshake(Handshake {
            challenge: Some(MAX),
            echo: Some(MAX),
            speaks: Some(u8::MAX),
        }),
        request(MAX, Some(RequestNumber(MAX)), Operation::Get(huge.clone())),
        request(
            0,
            Some(RequestNumber(MAX)),
            Operation::Write(Write::Delete { key: huge.clone() }),
        ),
        request(
            0,
            None,
            Operation::Write(Write::Put {
                key: "k".into(),
                value: "v".into(),
                lease: None,
            }),
        ),
        request(
            MAX,
            Some(RequestNumber(MAX)),
            Operation::Write(Write::Delete { key: "k".into() }),
        ),
        Body::Reply(Reply {
            number: RequestNumber(1),
            client: ClientId(1),
            answer: Answer::NotLeader(Some("#".into())),
        }),
        Body::Probe,
        Body::StatusRequest,
    ];
    for body in &bodies {
        world.say(&leader, body);
        let member = world.member.as_mut().unwrap();
        member.endpoint.send_in_lobby(&name(&leader), body);
        let publish = member.endpoint.take_out().swap_remove(0);
        world.inject(&leader, &publish.topic, &publish.payload);
        world.run(Duration::from_millis(50));
    }
    world.assert_alive("b");
}

// At random.

fn number() -> BoxedStrategy<u64> {
    prop_oneof![
        8 => 0..12u64,
        1 => Just(MAX),
        1 => Just(MAX - 1),
        1 => Just(1 << 62),
        1 => Just(1 << 32),
        1 => any::<u64>(),
    ]
    .boxed()
}

fn position() -> BoxedStrategy<LogPosition> {
    (number(), number())
        .prop_map(|(index, term)| at(index, term))
        .boxed()
}

fn configuration() -> BoxedStrategy<Configuration> {
    let key = prop_oneof![
        (1..=4u128).prop_map(|n| n << 100),
        Just(0xbad << 100),
        Just(0)
    ];
    let members = || vec((key.clone(), "[a-d#]{0,2}"), 0..4);
    let settings = (0..3_000u32, any::<u32>());
    (members(), members(), members(), settings)
        .prop_map(|(voters, outgoing, learners, settings)| {
            let set = |members: Vec<(u128, String)>| {
                members
                    .into_iter()
                    .map(|(key, name)| (NodeKey(key), name))
                    .collect()
            };
            Configuration {
                voters: set(voters),
                outgoing: set(outgoing),
                learners: set(learners),
                settings: Settings {
                    lease_ms: settings.0,
                    drift_ppm: settings.1,
                    lease_reads: false,
                },
                ..Configuration::default()
            }
        })
        .boxed()
}

fn payload() -> BoxedStrategy<Payload> {
    let write = ("[a-c]", number(), number()).prop_map(|(key, request, settled)| {
        let settled = (settled > 3).then_some(RequestNumber(settled));
        let write = Write::Put {
            key: key.into(),
            value: "v".into(),
            lease: None,
        };
        Payload::Command(kv::command(
            ClientId(9),
            RequestNumber(request),
            settled,
            None,
            write,
        ))
    });
    let garbage = vec(any::<u8>(), 0..20).prop_map(|data| {
        Payload::Command(Command {
            client: ClientId(1),
            request: RequestNumber(MAX),
            data: data.into(),
        })
    });
    prop_oneof![
        2 => Just(Payload::Noop),
        1 => configuration().prop_map(Payload::Configuration),
        3 => write,
        1 => garbage,
    ]
    .boxed()
}

/// Entries after `prev` whose terms mostly rise gently, as those of a plausible leader do.
fn entries() -> BoxedStrategy<(LogPosition, Vec<Entry>)> {
    let rise = prop_oneof![6 => Just(0), 2 => Just(1), 1 => number()];
    (position(), vec((rise, payload()), 0..6))
        .prop_map(|(prev, rest)| {
            let mut term = prev.term.0;
            let mut entries = Vec::new();
            for ((rise, payload), n) in rest.into_iter().zip(1..) {
                let Some(index) = prev.index.0.checked_add(n) else {
                    break;
                };
                term = term.saturating_add(rise);
                entries.push(entry(index, term, payload));
            }
            (prev, entries)
        })
        .boxed()
}

fn raft_body() -> BoxedStrategy<Raft> {
    let numbers = || (number(), number(), number());
    let store = (0..40u64).prop_map(|index| {
        let mut store = Store::default();
        for index in 1..=index {
            store.apply(&entry(index, 1, Payload::Noop));
        }
        (index, store.snapshot())
    });
    let honest_chunk = (store, number(), number(), configuration()).prop_map(
        |((index, data), term, stream, configuration)| SnapshotChunk {
            meta: SnapshotMeta {
                last: at(index, term),
                configuration,
                epoch: raft::LeaseEpoch::default(),
            },
            stream: StreamId(stream),
            data: data.clone(),
            ..chunk(at(index, term), data.len() as u64, 0)
        },
    );
    let wild_chunk = (
        position(),
        number(),
        number(),
        vec(any::<u8>(), 0..9),
        configuration(),
    )
        .prop_map(
            |(last, length, offset, data, configuration)| SnapshotChunk {
                meta: SnapshotMeta {
                    last,
                    configuration,
                    epoch: raft::LeaseEpoch::default(),
                },
                data: data.into(),
                ..chunk(last, length, offset)
            },
        );
    prop_oneof![
        1 => position().prop_map(|last| Raft::RequestPreVote(VoteRequest { last, transfer: false })),
        1 => position().prop_map(|last| Raft::RequestVote(VoteRequest { last, transfer: false })),
        1 => (number(), any::<bool>()).prop_map(|(term, granted)| Raft::PreVote(PreVote {
            proposed_term: Term(term),
            granted,
        })),
        1 => any::<bool>().prop_map(|granted| Raft::Vote(Vote { granted })),
        6 => (numbers(), number(), entries()).prop_map(
            |((round, session, stream), commit, (prev, entries))| Raft::Append(Append {
                round: Round(round),
                sessions: Sessions::of(SessionId(session)),
                stream: StreamId(stream),
                prev,
                commit_index: Index(commit),
                entries,
            })
        ),
        3 => numbers().prop_map(|(round, stream, index)| Raft::Acknowledge(Acknowledge {
            round: Round(round),
            stream: StreamId(stream),
            match_index: Index(index),
            clock: raft::Time(0),
        })),
        3 => (number(), number(), position()).prop_map(|(round, stream, hint)| {
            let (round, stream) = (Round(round), StreamId(stream));
            Raft::Reject(Reject { round, stream, hint })
        }),
        1 => honest_chunk.prop_map(|chunk| Raft::SnapshotChunk(Box::new(chunk))),
        1 => wild_chunk.prop_map(|chunk| Raft::SnapshotChunk(Box::new(chunk))),
        2 => numbers().prop_map(|(round, stream, offset)| {
            let (round, stream) = (Round(round), StreamId(stream));
            Raft::SnapshotProgress(SnapshotProgress { round, stream, offset })
        }),
    ]
    .boxed()
}

/// One thing that happens to a node.
#[derive(Clone, Debug)]
enum Act {
    /// A member speaks: of a term so far ahead of the node's, or of one of its own.
    Say(Result<u64, u64>, Box<Raft>),
    Wait(u64),
    Write,
    Read,
    Restart,
}

fn act() -> BoxedStrategy<Act> {
    let term = prop_oneof![
        6 => Just(Ok(0)),
        2 => Just(Ok(1)),
        1 => number().prop_map(Ok),
        1 => number().prop_map(Err),
    ];
    prop_oneof![
        20 => (term, raft_body()).prop_map(|(term, body)| Act::Say(term, Box::new(body))),
        3 => (0..400u64).prop_map(Act::Wait),
        2 => Just(Act::Write),
        1 => Just(Act::Read),
        1 => Just(Act::Restart),
    ]
    .boxed()
}

/// Many cases by PROPTEST_CASES; a hundred or so in every run.
fn cases(default: u32) -> ProptestConfig {
    let asked = std::env::var_os("PROPTEST_CASES");
    let asked = asked.and_then(|text| text.to_str()?.parse().ok());
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(asked.unwrap_or(default))
    }
}

proptest! {
    #![proptest_config(cases(150))]

    /// Whatever a member says in whatever order, to a leader or a follower, nothing panics: not
    /// then, not when time passes, not when the node restarts with what it was made to write.
    #[test]
    fn no_member_makes_a_node_panic(voters in 1..=3usize, acts in vec(act(), 1..120)) {
        let mut world = World::formed(&["a", "b", "c"][..voters]);
        world.admit_member("z");
        let to = world.leader().unwrap().to_string();
        for act in acts {
            match act {
                Act::Say(term, body) => {
                    let body = *body;
                    let own = world.node(&to).replica.term().0;
                    let term = Term(term.map_or_else(|term| term, |ahead| own.saturating_add(ahead)));
                    world.say(&to, &Body::Consensus(Message { term, body }, None));
                }
                Act::Wait(ms) => world.run(Duration::from_millis(ms)),
                Act::Write | Act::Read => {
                    let operation = match act {
                        Act::Read => Operation::Get("a".into()),
                        _ => Operation::Write(Write::Delete { key: "a".into() }),
                    };
                    let request = Input::Request {
                        token: crate::Token(1),
                        operation,
                        timeout: Duration::from_secs(1),
                    };
                    world.step(&name(&to), vec![request]);
                }
                Act::Restart => {
                    world.restart(&to);
                    world.run(Duration::from_millis(300));
                }
            }
        }
        world.run(Duration::from_secs(2));
        world.restart(&to);
        world.run(Duration::from_secs(2));
    }
}

proptest! {
    #![proptest_config(cases(60))]

    /// Random bytes on any topic, and valid frames bent in several places, change nothing.
    #[test]
    fn no_bytes_make_a_node_panic(
        bytes in vec((0..6usize, vec(any::<u8>(), 0..300)), 1..60),
        bends in vec((any::<Pick>(), vec((any::<Pick>(), any::<u8>()), 1..6), any::<Pick>()), 1..60),
        bodies in vec(vec(any::<u8>(), 0..80), 1..60),
    ) {
        let mut world = World::formed(&["a", "b", "c"]);
        world.admit_member("z");
        let topics = ["raft/plant/rpc/all/a", "raft/plant/rpc/b/a", "raft/plant/nodes/a/status",
            "raft/plant/rpc/b/b", "raft/plant/leader", ""];
        for (topic, bytes) in bytes {
            world.inject("b", topics[topic], &bytes);
        }
        let mut valid = world.captured.clone();
        valid.extend(world.statuses.clone());
        for (frame, places, cut) in bends {
            let frame = frame.get(&valid);
            let mut payload = frame.payload.to_vec();
            for (place, with) in places {
                let at = place.index(payload.len());
                payload[at] = with;
            }
            world.inject("b", &frame.topic, &payload);
            let length = cut.index(payload.len());
            world.inject("b", &frame.topic, &payload[..length]);
        }
        // What a member seals is opened, and may still be anything.
        for body in bodies {
            world.say_bytes("b", &body);
        }
        world.run(Duration::from_secs(1));
        world.assert_alive("b");
    }
}

/// Two processes may share a name for a while, and so a topic: seed 20288, where one that was
/// about to stop for its name took the other's catch-up stream for its own and then ignored the
/// one that was meant for it.
#[test]
fn what_is_for_another_key_under_our_name_is_passed_over() {
    let mut world = World::formed(&["a", "b", "c"]);
    world.admit_member("z");
    let newer = Term(world.node("a").replica.term().0 + 5);
    let refusal = || Message {
        term: newer,
        body: Raft::Vote(Vote { granted: false }),
    };
    let own = world.node("a").config.key;
    world.say("a", &Body::Consensus(refusal(), Some(NodeKey(own.0 + 1))));
    assert!(world.node("a").replica.term() < newer);
    world.say("a", &Body::Consensus(refusal(), Some(own)));
    assert_eq!(world.node("a").replica.term(), newer);
}
