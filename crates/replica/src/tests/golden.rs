//! The bytes on the wire, pinned: what today's build writes is what stands in `testdata`, and it
//! reads that back.
//!
//! `frames-v1` holds what builds wrote that knew no newer frame version; nothing writes there any
//! more. `frames-v2` holds everything as it is written where all speak version 2.
//! `UPDATE_GOLDEN=1 cargo test -p replica golden` writes the latter anew, before a release only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use raft::message::{
    Acknowledge, Append, Body as Raft, CommittedEntries, Fetch, Fetched, PreVote, Reject,
    SnapshotChunk, SnapshotPart, SnapshotPiece, SnapshotProgress, TimeoutNow, Vote, VoteRequest,
};
use raft::{
    ClientId, Configuration, Entry, Index, LeaseEpoch, LogPosition, Message, NodeKey, Payload,
    RequestNumber, Round, SessionId, Sessions, Settings, SnapshotMeta, StreamId, Term, Time,
};

use super::frames;
use super::world::{World, cluster_key, name};
use crate::Refused;
use crate::frame::{Destination, FrameError, HEADER, Header, OLDEST, Opener, Sealer, VERSION};
use crate::keys::{ClusterId, Incarnation, KeyRing, hex, hex_decode};
use crate::kv::{self, Store};
use crate::link::Session;
use crate::name::Metric;
use crate::presence::{Condition, Speaker, Status};
use crate::saved::{SavedMeta, SavedSnapshot};
use crate::state::Watched;
use crate::tags::Tags;
use crate::wire::{
    Answer, Body, Change, Chunk, ChunkRequest, Export, Formation, Handshake, Hello, Holds, Member,
    MemberOperation, Members, NodeStatus, Occupied, Operation, Origin, Present, Reading, Reply,
    Request, RollCall, Save, SaveRequest, Stale, StaleRead, Transfer, Twin, Value, Write, Written,
    from_slice, to_vec,
};

const ROOT: &str = "raft/plant-a";
const FROM: &str = "gw-1";
const TO: &str = "gw-2";
const NODE_KEY: NodeKey = NodeKey(0x000102030405060708090a0b0c0d0e0f);
const INCARNATION: Incarnation = Incarnation([0xa5; 16]);
const SEQUENCE: u64 = 0x0102_0304_0506_0708;

fn formation() -> Formation {
    let voter = |n: u128| (NodeKey(n << 120 | n), format!("gw-{n}"));
    Formation {
        voters: BTreeMap::from([voter(1), voter(2), voter(3)]),
        settings: Settings::default(),
        witnesses: BTreeSet::new(),
        origin: None,
    }
}

fn at(index: u64, term: u64) -> LogPosition {
    let (index, term) = (Index(index), Term(term));
    LogPosition { index, term }
}

fn consensus(body: Raft) -> Body {
    let term = Term(7);
    let to_all = matches!(
        body,
        Raft::Append(_) | Raft::RequestVote(_) | Raft::RequestPreVote(_)
    );
    let to = (!to_all).then_some(NodeKey(2 << 120 | 2));
    Body::Consensus(Message { term, body }, to)
}

fn append(entries: Vec<Payload>) -> Body {
    let entries = entries.into_iter().zip(1..).map(|(payload, n)| Entry {
        index: Index(1_000 + n),
        term: Term(7),
        payload,
    });
    consensus(Raft::Append(Append {
        round: Round(300),
        sessions: Sessions::of(SessionId(0xfeed_face_cafe_beef)),
        stream: StreamId(0),
        prev: at(1_000, 6),
        commit_index: Index(999),
        entries: entries.collect(),
    }))
}

fn put(value: usize) -> Write {
    Write::Put {
        key: "cell/7/state".into(),
        value: vec![b'v'; value].into(),
        lease: None,
    }
}

fn command(write: Write) -> Payload {
    let client = ClientId(0x1122_3344_5566_7788);
    Payload::Command(kv::command(
        client,
        RequestNumber(42),
        Some(RequestNumber(41)),
        None,
        write,
    ))
}

fn joint() -> Configuration {
    let members = |names: &[u128]| {
        let member = |n: &u128| (NodeKey(*n), format!("gw-{n}"));
        names.iter().map(member).collect::<BTreeMap<_, _>>()
    };
    Configuration {
        voters: members(&[1, 2, 3]),
        outgoing: members(&[1, 2]),
        learners: members(&[9]),
        settings: Settings::default(),
        ..Configuration::default()
    }
}

fn hello(holds: Holds) -> Body {
    Body::Hello(Hello {
        question: true,
        holds,
        voters: vec!["gw-1".into(), "gw-2".into(), "gw-3".into()],
        settings: Settings::default(),
        heard: BTreeMap::from([("gw-1".into(), NodeKey(1)), ("gw-2".into(), NodeKey(2))]),
        expect: None,
        witness: false,
    })
}

fn hello_expecting() -> Body {
    let mut body = hello(Holds::Nothing);
    if let Body::Hello(hello) = &mut body {
        hello.voters.clear();
        hello.expect = Some(3);
    }
    body
}

fn hello_as_witness() -> Body {
    let formation = Formation {
        witnesses: BTreeSet::from([NodeKey(3 << 120 | 3)]),
        ..formation()
    };
    let mut body = hello(Holds::Accepted(formation));
    if let Body::Hello(hello) = &mut body {
        hello.witness = true;
    }
    body
}

fn change() -> Change {
    Change {
        members: vec![
            MemberOperation::Add {
                who: "gw-4".into(),
                witness: false,
            },
            MemberOperation::Promote("gw-5".into()),
            MemberOperation::Demote("gw-2".into()),
            MemberOperation::Remove("gw-3#0badcafe".into()),
        ],
        settings: Some(Settings {
            lease_reads: true,
            ..Settings::default()
        }),
    }
}

fn members() -> Members {
    Members {
        members: vec![Member {
            name: "gw-1".into(),
            key: NODE_KEY,
            voter: true,
            witness: false,
            leaving: false,
            heard: true,
            caught_up: true,
            match_index: 1_003,
        }],
        settings: Settings::default(),
        index: 17,
        leader: "gw-1".into(),
    }
}

fn request(operation: Operation) -> Body {
    Body::Request(Request {
        client: ClientId(0x1122_3344_5566_7788),
        number: RequestNumber(42),
        settled: Some(RequestNumber(41)),
        operation,
        begun: None,
    })
}

fn reply(answer: Answer) -> Body {
    Body::Reply(Reply {
        number: RequestNumber(42),
        client: ClientId(0x1122_3344_5566_7788),
        answer,
    })
}

fn handshake(challenge: Option<u64>, echo: Option<u64>) -> Body {
    let speaks = None;
    Body::Handshake(Handshake {
        challenge,
        echo,
        speaks,
    })
}

fn handshake_of_this_build() -> Body {
    Body::Handshake(Handshake {
        challenge: Some(u64::MAX),
        echo: Some(u64::MAX - 1),
        speaks: Some(VERSION),
    })
}

fn node_status() -> NodeStatus {
    NodeStatus {
        node: "gw-1".into(),
        key: NODE_KEY,
        role: "leader".into(),
        term: 7,
        leader: Some("gw-1".into()),
        metric: 1.5,
        last_index: 1_003,
        commit_index: 1_002,
        applied_index: 1_001,
        applied_digest: 0xdead_beef,
        revision: 900,
        voters: vec!["gw-1".into(), "gw-2".into()],
        is_leader: true,
        version: "0.1.0".into(),
        incarnation: INCARNATION.0,
        trouble: None,
        keys: None,
    }
}

fn rotating() -> NodeStatus {
    NodeStatus {
        keys: Some(vec![0x5a, 0xc3]),
        ..node_status()
    }
}

fn node_in_trouble() -> NodeStatus {
    NodeStatus {
        trouble: Some("this data directory is a copy".into()),
        ..node_status()
    }
}

/// One body of every kind.
fn bodies() -> Vec<(&'static str, Body)> {
    let chunk = |data: &'static [u8]| {
        consensus(Raft::SnapshotChunk(Box::new(SnapshotChunk {
            round: Round(301),
            stream: StreamId(3),
            sessions: Sessions::of(SessionId(0xfeed_face_cafe_beef)),
            meta: SnapshotMeta {
                last: at(900, 6),
                configuration: Configuration::of(formation().voters, Settings::default()),
                epoch: raft::LeaseEpoch::default(),
            },
            length: 1_000,
            offset: 128,
            data: Bytes::from_static(data),
        })))
    };
    let swap =
        |expected: Option<&'static str>, value: Option<&'static str>| Write::CompareAndSwap {
            key: "lock".into(),
            expected: expected.map(|text| Value(text.into())),
            value: value.map(|text| Value(text.into())),
        };
    let last = at(1_000, 6);
    let mut first = request(Operation::Write(Write::Delete { key: "k".into() }));
    if let Body::Request(request) = &mut first {
        request.settled = None;
    }
    let mut all = vec![
        (
            "request-pre-vote",
            consensus(Raft::RequestPreVote(VoteRequest {
                last,
                transfer: false,
            })),
        ),
        (
            "pre-vote",
            consensus(Raft::PreVote(PreVote {
                proposed_term: Term(8),
                granted: true,
            })),
        ),
        (
            "request-vote",
            consensus(Raft::RequestVote(VoteRequest {
                last,
                transfer: false,
            })),
        ),
        ("vote", consensus(Raft::Vote(Vote { granted: true }))),
        ("heartbeat", append(vec![])),
        ("append-noop", append(vec![Payload::Noop])),
        (
            "append-configuration",
            append(vec![Payload::Configuration(joint())]),
        ),
        (
            "append-commands",
            append(vec![
                command(Write::Put {
                    key: "k".into(),
                    value: "v".into(),
                    lease: None,
                }),
                command(Write::Delete { key: "k".into() }),
                command(swap(Some("a"), Some("b"))),
            ]),
        ),
        ("append-put-256", append(vec![command(put(256))])),
        ("append-16-puts-256", append(vec![command(put(256)); 16])),
        (
            "acknowledge",
            consensus(Raft::Acknowledge(Acknowledge {
                round: Round(300),
                stream: StreamId(0),
                match_index: Index(1_003),
                clock: Time(0),
            })),
        ),
        (
            "reject",
            consensus(Raft::Reject(Reject {
                round: Round(300),
                stream: StreamId(2),
                hint: last,
            })),
        ),
        ("snapshot-chunk", chunk(b"piece")),
        (
            "snapshot-progress",
            consensus(Raft::SnapshotProgress(SnapshotProgress {
                round: Round(301),
                stream: StreamId(3),
                offset: 133,
            })),
        ),
        ("handshake-challenge", handshake(Some(u64::MAX), None)),
        ("handshake-echo", handshake(None, Some(u64::MAX))),
        (
            "handshake-both",
            handshake(Some(u64::MAX), Some(u64::MAX - 1)),
        ),
        ("handshake-speaks", handshake_of_this_build()),
        ("hello-nothing", hello(Holds::Nothing)),
        ("hello-expecting", hello_expecting()),
        ("hello-witness", hello_as_witness()),
        ("hello-accepted", hello(Holds::Accepted(formation()))),
        ("hello-formed", hello(Holds::Formed(formation()))),
        ("request-put-256", request(Operation::Write(put(256)))),
        (
            "request-delete",
            request(Operation::Write(Write::Delete { key: "k".into() })),
        ),
        (
            "request-swap",
            request(Operation::Write(swap(None, Some("b")))),
        ),
        (
            "request-swap-remove",
            request(Operation::Write(swap(Some("b"), None))),
        ),
        ("request-first", first),
        ("request-get", request(Operation::Get("k".into()))),
        (
            "reply-written",
            reply(Answer::Written(Written {
                revision: 900,
                applied: true,
            })),
        ),
        (
            "reply-read",
            reply(Answer::Read(Reading {
                revision: 900,
                value: Some(Value("v".into())),
                modified: 890,
            })),
        ),
        ("reply-read-absent", reply(Answer::Read(Reading::default()))),
        (
            "reply-not-leader",
            reply(Answer::NotLeader(Some("gw-2".into()))),
        ),
        ("reply-no-leader", reply(Answer::NotLeader(None))),
        ("reply-busy", reply(Answer::Busy)),
        ("reply-too-large", reply(Answer::TooLarge(65_536))),
        ("reply-session-expired", reply(Answer::SessionExpired)),
        ("probe", Body::Probe),
        (
            "occupied",
            Body::Occupied(Occupied {
                incarnation: INCARNATION.0,
            }),
        ),
        (
            "append-witness",
            append(vec![Payload::Configuration(Configuration {
                settings: Settings {
                    lease_reads: true,
                    ..Settings::default()
                },
                witnesses: [NodeKey(3)].into(),
                ..joint()
            })]),
        ),
        (
            "request-vote-transfer",
            consensus(Raft::RequestVote(VoteRequest {
                last,
                transfer: true,
            })),
        ),
        (
            "acknowledge-clock",
            consensus(Raft::Acknowledge(Acknowledge {
                round: Round(300),
                stream: StreamId(0),
                match_index: Index(1_003),
                clock: Time(123_456_789_000),
            })),
        ),
        ("lease-epoch", append(vec![Payload::LeaseEpoch(1)])),
        (
            "timeout-now",
            consensus(Raft::TimeoutNow(TimeoutNow {
                last: at(1_003, 7),
                clock: Time(1_000_000),
                released: Some(LeaseEpoch {
                    term: Term(7),
                    number: 1,
                }),
            })),
        ),
        (
            "fetch",
            consensus(Raft::Fetch(Fetch {
                after: Index(1_000),
                part: None,
                snapshot: false,
            })),
        ),
        (
            "fetch-snapshot",
            consensus(Raft::Fetch(Fetch {
                after: Index(800),
                part: Some(SnapshotPart {
                    last: at(900, 6),
                    offset: 128,
                }),
                snapshot: true,
            })),
        ),
        (
            "fetched-nothing",
            consensus(Raft::Fetched(Fetched::Nothing)),
        ),
        (
            "fetched-entries",
            consensus(Raft::Fetched(Fetched::Entries(CommittedEntries {
                prev: at(1_000, 6),
                ends: true,
                entries: vec![Entry {
                    index: Index(1_001),
                    term: Term(7),
                    payload: command(put(16)),
                }],
            }))),
        ),
        (
            "fetched-snapshot",
            consensus(Raft::Fetched(Fetched::Snapshot(SnapshotPiece {
                meta: SnapshotMeta {
                    last: at(900, 6),
                    configuration: Configuration::of(formation().voters, Settings::default()),
                    epoch: LeaseEpoch::default(),
                },
                length: 1_000,
                offset: 128,
                data: Bytes::from_static(b"piece"),
                ends: false,
            }))),
        ),
        ("change", request(Operation::Change(change()))),
        (
            "transfer",
            request(Operation::Transfer(Transfer {
                to: Some("gw-2".into()),
                from: Some("gw-1".into()),
            })),
        ),
        ("members", request(Operation::Members)),
        ("members-answer", reply(Answer::Members(members()))),
        ("not-yet", reply(Answer::NotYet("soon".into()))),
        ("refused", reply(Answer::Refused("never".into()))),
        ("transferred", reply(Answer::Transferred("gw-2".into()))),
        ("twin", Body::Twin(Twin { stood: true })),
        (
            "roll-call",
            Body::RollCall(RollCall {
                challenge: 0x0102_0304_0506_0708,
                window_ms: 10_000,
            }),
        ),
        (
            "present",
            Body::Present(Present {
                echo: 0x0102_0304_0506_0708,
                birth: "{\"v\":1}".into(),
            }),
        ),
        ("status-request", Body::StatusRequest),
        ("status", Body::Status(node_status())),
        ("status-trouble", Body::Status(node_in_trouble())),
        ("status-keys", Body::Status(rotating())),
        ("stale-read", Body::StaleRead(StaleRead { key: "k".into() })),
        (
            "stale",
            Body::Stale(Stale {
                key: "k".into(),
                reading: Reading {
                    revision: 900,
                    value: Some(Value("v".into())),
                    modified: 890,
                },
            }),
        ),
        (
            "save-request",
            Body::SaveRequest(SaveRequest { revision: 900 }),
        ),
        ("save-ready", Body::Save(Save::Ready(Box::new(export())))),
        ("save-behind", Body::Save(Save::Behind(890))),
        ("save-busy", Body::Save(Save::Busy)),
        ("save-gone", Body::Save(Save::Gone(0x77))),
        (
            "chunk-request",
            Body::ChunkRequest(ChunkRequest {
                id: 0x77,
                offset: 65_536,
            }),
        ),
        (
            "chunk",
            Body::Chunk(Chunk {
                id: 0x77,
                offset: 65_536,
                data: Bytes::from_static(b"state"),
            }),
        ),
        ("append-state", append(frames::payloads())),
    ];
    all.extend(frames::frames());
    all
}

fn export() -> Export {
    let formation = formation();
    Export {
        id: 0x77,
        size: 100_000,
        meta: SavedMeta {
            root: ROOT.to_owned(),
            node: FROM.to_owned(),
            index: Index(1_000),
            term: Term(7),
            revision: 900,
            configuration: Configuration::of(formation.voters.clone(), formation.settings),
            complete: false,
            formation,
        },
    }
}

/// Fails to compile when a variant is added: add its frame above then.
fn variant(body: &Body) -> String {
    let outer = match body {
        Body::Consensus(message, _) => match &message.body {
            Raft::RequestPreVote(_) => "request-pre-vote",
            Raft::PreVote(_) => "pre-vote",
            Raft::RequestVote(_) => "request-vote",
            Raft::Vote(_) => "vote",
            Raft::Append(append) => match append.entries.first().map(|entry| &entry.payload) {
                None => "heartbeat",
                Some(Payload::Noop) => "noop",
                Some(Payload::Configuration(_)) => "configuration",
                Some(Payload::Command(_)) => "command",
                Some(Payload::LeaseEpoch(_)) => "lease-epoch",
            },
            Raft::Acknowledge(_) => "acknowledge",
            Raft::Reject(_) => "reject",
            Raft::SnapshotChunk(_) => "snapshot-chunk",
            Raft::SnapshotProgress(_) => "snapshot-progress",
            Raft::TimeoutNow(_) => "timeout-now",
            Raft::Fetch(_) => "fetch",
            Raft::Fetched(Fetched::Nothing) => "fetched-nothing",
            Raft::Fetched(Fetched::Entries(_)) => "fetched-entries",
            Raft::Fetched(Fetched::Snapshot(_)) => "fetched-snapshot",
        },
        Body::Handshake(_) => "handshake",
        Body::Hello(hello) => match hello.holds {
            Holds::Nothing => "hello-nothing",
            Holds::Accepted(_) => "hello-accepted",
            Holds::Formed(_) => "hello-formed",
        },
        Body::Request(request) => match &request.operation {
            Operation::Write(Write::Put { .. }) => "put",
            Operation::Write(Write::Delete { .. }) => "delete",
            Operation::Write(Write::CompareAndSwap { .. }) => "swap",
            Operation::Get(_) => "get",
            Operation::Change(_) => "change",
            Operation::Transfer(_) => "transfer",
            Operation::Members => "members",
            Operation::Write(Write::Transaction(_)) => "transaction",
            Operation::Write(Write::Grant { .. }) => "grant",
            Operation::Write(Write::Revoke(_)) => "revoke",
            Operation::Write(Write::Expire(_) | Write::Own(_)) => "never a client's",
            Operation::Range(_) => "range",
            Operation::KeepAlive(_) => "keep-alive",
            Operation::Lease(_) => "lease",
            Operation::Leases(_) => "leases",
        },
        Body::Reply(reply) => match reply.answer {
            Answer::Written(_) => "written",
            Answer::Read(_) => "read",
            Answer::NotLeader(_) => "not-leader",
            Answer::Busy => "busy",
            Answer::TooLarge(_) => "too-large",
            Answer::SessionExpired => "session-expired",
            Answer::Members(_) => "members-answer",
            Answer::NotYet(_) => "not-yet",
            Answer::Refused(_) => "refused",
            Answer::Transferred(_) => "transferred",
            Answer::Transacted(_) => "transacted",
            Answer::Granted(_) => "granted",
            Answer::NoSuchLease => "no-such-lease",
            Answer::Full(_) => "full",
            Answer::Range(_) => "range-answer",
            Answer::Lease(_) => "lease-answer",
            Answer::Leases(_) => "leases-answer",
            Answer::SessionForgotten(_) => "session-forgotten",
        },
        Body::Probe => "probe",
        Body::Occupied(_) => "occupied",
        Body::StatusRequest => "status-request",
        Body::Status(_) => "status",
        Body::StaleRead(_) => "stale-read",
        Body::Stale(_) => "stale",
        Body::SaveRequest(_) => "save-request",
        Body::Save(Save::Ready(_)) => "save-ready",
        Body::Save(Save::Behind(_)) => "save-behind",
        Body::Save(Save::Busy) => "save-busy",
        Body::Save(Save::Gone(_)) => "save-gone",
        Body::ChunkRequest(_) => "chunk-request",
        Body::Chunk(_) => "chunk",
        Body::Watch(_) => "watch",
        Body::Watched(reply) => match reply.watched {
            Watched::Events { .. } => "watched",
            Watched::Compacted { .. } => "watched-compacted",
            Watched::Unavailable => "watched-unavailable",
        },
        Body::Twin(_) => "twin",
        Body::RollCall(_) => "roll-call",
        Body::Present(_) => "present",
    };
    outer.to_owned()
}

const VARIANTS: usize = 74;

fn is_lobby(body: &Body) -> bool {
    !matches!(
        body,
        Body::Consensus(..)
            | Body::Request(_)
            | Body::Reply(_)
            | Body::SaveRequest(_)
            | Body::Save(_)
            | Body::ChunkRequest(_)
            | Body::Chunk(_)
    )
}

fn destination<'a>(body: &Body, to: &'a crate::Name) -> Destination<'a> {
    match body {
        Body::Consensus(message, _) => match message.body {
            Raft::Append(_) | Raft::RequestVote(_) | Raft::RequestPreVote(_) => Destination::All,
            _ => Destination::One(to),
        },
        Body::Hello(_) | Body::StatusRequest => Destination::All,
        _ => Destination::One(to),
    }
}

fn cluster(body: &Body) -> ClusterId {
    let digest = formation().digest();
    ClusterId::new(ROOT, (!is_lobby(body)).then_some(&digest))
}

fn rings() -> [(&'static str, KeyRing); 2] {
    [
        ("keyed", KeyRing::of(cluster_key(0x42))),
        ("insecure", KeyRing::insecure()),
    ]
}

/// The version in which a body is written where all speak the newest: in the lobby, where that is
/// not known, the oldest that has it.
fn written_in(body: &Body) -> u8 {
    match is_lobby(body) {
        true => body.version(),
        false => VERSION,
    }
}

fn seal(ring: &KeyRing, version: u8, body: &Body) -> Bytes {
    let (from, to) = (name(FROM), name(TO));
    let sealer = Sealer::new(ring, cluster(body), from, NODE_KEY, INCARNATION);
    let write = |bytes: &mut Vec<u8>| bytes.extend(to_vec(body));
    sealer.seal(version, SEQUENCE, destination(body, &to), write)
}

fn directory(version: u8) -> PathBuf {
    let testdata = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata");
    testdata.join(format!("frames-v{version}"))
}

fn file(version: u8, name: &str) -> PathBuf {
    directory(version).join(format!("{name}.txt"))
}

/// The frame version whose files hold this one: the oldest that has it.
fn pinned_in(name: &str) -> u8 {
    match file(OLDEST, name).exists() {
        true => OLDEST,
        false => VERSION,
    }
}

fn may_update(version: u8) -> bool {
    version == VERSION && std::env::var_os("UPDATE_GOLDEN").is_some()
}

/// Compares `lines` with what is pinned under `name` for this frame version.
fn compare(version: u8, name: &str, lines: &[(&str, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    let path = file(version, name);
    let text: String = lines
        .iter()
        .map(|(label, bytes)| format!("{label} {}\n", hex(bytes)))
        .collect();
    if may_update(version) {
        std::fs::write(&path, &text).expect("testdata is writable");
    }
    let pinned = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        pinned,
        text,
        "{name}: the wire format changed: bump VERSION and go on reading version {version}, or \
         restore it ({})",
        path.display()
    );
    let line = |line: &str| {
        let (label, digits) = line.split_once(' ').expect("label and digits");
        (label.to_owned(), hex_decode(digits).expect("hexadecimal"))
    };
    pinned.lines().map(line).collect()
}

/// Writes a body in a version as it is pinned, and reads back what is pinned.
fn assert_pinned(version: u8, sealed_in: u8, label: &str, body: &Body) {
    let mut lines = vec![("body", to_vec(body))];
    for (mode, ring) in rings() {
        lines.push((mode, seal(&ring, sealed_in, body).to_vec()));
    }
    let pinned = compare(version, label, &lines);
    assert_eq!(from_slice::<Body>(&pinned[0].1).unwrap(), *body, "{label}");
    let (from, to) = (name(FROM), name(TO));
    for ((mode, ring), (pinned_mode, frame)) in rings().iter().zip(&pinned[1..]) {
        assert_eq!(mode, pinned_mode);
        let frame = Bytes::copy_from_slice(frame);
        let header = Header::parse(&frame, VERSION).unwrap();
        assert_eq!(header.version, sealed_in, "{label}");
        assert_eq!(header.cluster, cluster(body), "{label}");
        assert_eq!(
            (header.node_key, header.incarnation),
            (NODE_KEY, INCARNATION)
        );
        assert_eq!(header.sequence, SEQUENCE);
        let to = destination(body, &to);
        let (_, opened) = Opener::find(ring, &header, &from, to, &frame).unwrap();
        assert_eq!(
            from_slice::<Body>(&opened).unwrap(),
            *body,
            "{label} {mode}"
        );
    }
}

/// Every kind of frame is written as pinned, and what is pinned is read back.
#[test]
fn frames() {
    let mut seen = BTreeSet::new();
    for (label, body) in bodies() {
        seen.insert(variant(&body));
        assert_pinned(VERSION, written_in(&body), label, &body);
    }
    assert_eq!(seen.len(), VARIANTS, "one frame of each: {seen:?}");
}

/// To whoever speaks version 1 alone, what it knows is still written byte for byte as its own build
/// wrote it; and every frame that it wrote is read.
#[test]
fn frames_of_version_1_are_written_and_read() {
    let bodies: BTreeMap<&str, Body> = bodies().into_iter().collect();
    let mut read = 0;
    for entry in std::fs::read_dir(directory(OLDEST)).expect("pinned frames") {
        let path = entry.expect("a file").path();
        let label = path.file_stem().and_then(|stem| stem.to_str()).unwrap();
        if let Some(body) = bodies.get(label) {
            assert_eq!(body.version(), OLDEST, "{label}");
            assert_pinned(OLDEST, OLDEST, label, body);
            read += 1;
        }
    }
    // Beside them: births and wills, two each, a formation record and a snapshot.
    let files = std::fs::read_dir(directory(OLDEST)).unwrap().count();
    assert_eq!((read, files), (40, 46), "none was removed, none added");
}

/// What version 1 cannot say needs version 2, and nothing else does: of what was not pinned for
/// version 1, the rest are fields that its readers skip.
#[test]
fn what_is_new_needs_the_new_version() {
    let skippable = [
        "acknowledge-clock",
        "handshake-speaks",
        "hello-expecting",
        "status-keys",
        "status-trouble",
    ];
    for (label, body) in bodies() {
        let is_old = file(OLDEST, label).exists() || skippable.contains(&label);
        assert_eq!(body.version() == OLDEST, is_old, "{label}");
    }
}

/// A process that speaks version 1 alone refuses frames of version 2, and says why.
#[test]
fn version_1_alone_refuses_version_2() {
    for (label, body) in bodies() {
        let frame = seal(&KeyRing::insecure(), written_in(&body), &body);
        let parsed = Header::parse(&frame, OLDEST);
        match written_in(&body) {
            OLDEST => assert!(parsed.is_ok(), "{label}"),
            newer => assert_eq!(parsed, Err(FrameError::Version(newer, OLDEST)), "{label}"),
        }
    }
}

/// Birth, will, formation record and snapshot, and what is derived on the way.
#[test]
fn records() {
    let key = KeyRing::of(cluster_key(0x42));
    let who = name(FROM);
    let speaker = Speaker {
        root: ROOT,
        name: &who,
        key: NODE_KEY,
        incarnation: INCARNATION,
        session: Session::first(3),
    };
    let condition = Condition {
        role: "follower",
        term: 7,
        metric: Metric::new(1.5).unwrap(),
        tags: Tags::default(),
    };
    for (mode, ring) in [("keyed", key), ("insecure", KeyRing::insecure())] {
        let birth = Status::online(&ring, speaker, 1, &condition);
        let will = Status::offline(&ring, speaker);
        for (kind, status) in [("birth", birth), ("will", will)] {
            let path = file(OLDEST, &format!("{kind}-{mode}")).with_extension("json");
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::write(&path, &status).unwrap();
            }
            let pinned = std::fs::read(&path).unwrap_or_default();
            assert_eq!(
                String::from_utf8_lossy(&pinned),
                String::from_utf8_lossy(&status),
                "the status format changed: give it another \"v\", or restore it"
            );
            assert!(Status::parse(&ring, ROOT, &who, &pinned).is_ok(), "{kind}");
        }
    }
    let record = Holds::Formed(formation());
    let pinned = compare(
        pinned_in("formation"),
        "formation",
        &[
            ("accepted", to_vec(&Holds::Accepted(formation()))),
            ("formed", to_vec(&record)),
            ("digest", formation().digest().to_vec()),
            ("lobby", ClusterId::new(ROOT, None).0.to_vec()),
            (
                "cluster",
                ClusterId::new(ROOT, Some(&formation().digest())).0.to_vec(),
            ),
        ],
    );
    assert_eq!(from_slice::<Holds>(&pinned[1].1).unwrap(), record);
    let origin = Origin {
        formation: formation().digest(),
        nonce: [0x5a; 16],
    };
    let restored = Holds::Formed(Formation {
        origin: Some(origin),
        ..formation()
    });
    let pinned = compare(
        pinned_in("formation-restored"),
        "formation-restored",
        &[("formed", to_vec(&restored))],
    );
    assert_eq!(from_slice::<Holds>(&pinned[0].1).unwrap(), restored);
    let mut store = Store::default();
    let writes = [put(3), put(4), Write::Delete { key: "x".into() }];
    for (write, n) in writes.into_iter().zip(1..) {
        store.apply(&Entry {
            index: Index(n),
            term: Term(2),
            payload: Payload::Command(kv::command(
                ClientId(5),
                RequestNumber(n),
                (n > 1).then_some(RequestNumber(n - 1)),
                None,
                write,
            )),
        });
    }
    let first = std::fs::read_to_string(file(OLDEST, "snapshot")).expect("it is pinned");
    let first = hex_decode(first.trim().trim_start_matches("store ")).expect("hex");
    let first = Store::restore(&first).expect("a state of the first version is read");
    assert_eq!(
        (first.applied(), first.revision(), first.digest()),
        (store.applied(), store.revision(), store.digest())
    );
    assert!(first.iter().eq(store.iter()));
    let pinned = compare(VERSION, "state", &[("store", store.snapshot().to_vec())]);
    let restored = Store::restore(&pinned[0].1).unwrap();
    assert_eq!(restored.snapshot(), store.snapshot());
    let meta = SavedMeta {
        index: store.applied(),
        revision: store.revision(),
        ..export().meta
    };
    let saved = SavedSnapshot::new(meta, store.snapshot()).unwrap();
    let pinned = compare(pinned_in("saved"), "saved", &[("file", saved.to_bytes())]);
    let read = SavedSnapshot::from_bytes(&pinned[0].1.clone().into()).unwrap();
    assert_eq!(read.meta(), saved.meta());
}

// Evolution: fields may be added at the end of an array, variants may be added anywhere.

/// The places of all definite arrays in one CBOR item: offset of the head, its length, the count.
fn arrays(bytes: &[u8]) -> Vec<(usize, usize, u64)> {
    let mut found = Vec::new();
    let mut at = 0;
    let mut open = 1;
    while open > 0 {
        open -= 1;
        let head = bytes[at];
        let (length, argument) = match head & 31 {
            small @ 0..24 => (1, u64::from(small)),
            24 => (2, u64::from(bytes[at + 1])),
            25 => (
                3,
                u64::from(u16::from_be_bytes([bytes[at + 1], bytes[at + 2]])),
            ),
            26 => (5, 0),
            27 => (9, 0),
            other => panic!("not written by us: {other}"),
        };
        match head >> 5 {
            2 | 3 => at += argument as usize,
            4 => {
                found.push((at, length, argument));
                open += argument;
            }
            5 => open += 2 * argument,
            _ => {}
        }
        at += length;
    }
    assert_eq!(at, bytes.len());
    found
}

/// Where the item at `at` ends.
fn end_of(bytes: &[u8], at: usize) -> usize {
    let mut decoder = minicbor::Decoder::new(&bytes[at..]);
    decoder.skip().unwrap();
    at + decoder.position()
}

/// The body with one more field, a list of two, at the end of the array that begins at `at`,
/// after `absent` optional fields that are not written where they are absent and last.
fn extended(
    bytes: &[u8],
    (at, length, count): (usize, usize, u64),
    absent: usize,
) -> Option<Vec<u8>> {
    let head = (count < 20).then_some(0x80 | (count as u8 + 1 + absent as u8))?;
    let end = end_of(bytes, at);
    let nulls = vec![0xf6; absent];
    let future = [0x82, 0x18, 0x63, 0x63, b'n', b'e', b'w'];
    let inside = &bytes[at + length..end];
    Some(
        [
            &bytes[..at],
            &[head],
            inside,
            &nulls,
            &future,
            &bytes[end..],
        ]
        .concat(),
    )
}

/// How many arrays of a body are not to be added to: lists, and variants without fields.
fn closed_arrays(body: &Body) -> usize {
    match body {
        Body::Hello(hello) => {
            // The names of voters, and the keys of witnesses.
            1 + usize::from(hello.holds == Holds::Nothing) + usize::from(hello.witness)
        }
        Body::Status(status) => 1 + usize::from(status.keys.is_some()),
        Body::Probe | Body::StatusRequest | Body::Save(Save::Busy) => 1,
        Body::Request(request) => {
            usize::from(matches!(
                request.operation,
                Operation::Change(_) | Operation::Members
            )) + match &request.operation {
                // Conditions and two branches.
                Operation::Write(Write::Transaction(_)) => 3,
                _ => 0,
            }
        }
        Body::Reply(reply) => match &reply.answer {
            Answer::Busy
            | Answer::SessionExpired
            | Answer::Members(_)
            | Answer::NoSuchLease
            | Answer::Range(_)
            | Answer::Leases(_) => 1,
            // The results, one without fields, one that is a list.
            Answer::Transacted(_) => 3,
            _ => 0,
        },
        Body::Watched(reply) => match &reply.watched {
            Watched::Events { .. } | Watched::Unavailable => 1,
            Watched::Compacted { .. } => 0,
        },
        Body::Consensus(message, _) => match &message.body {
            // A list too long for the head that this test writes is passed over.
            Raft::Append(append) if append.entries.len() > 11 => 0,
            Raft::Append(append) => {
                let closed = |entry: &&Entry| match &entry.payload {
                    Payload::Noop => true,
                    Payload::Configuration(configuration) => !configuration.witnesses.is_empty(),
                    Payload::Command(_) | Payload::LeaseEpoch(_) => false,
                };
                1 + append.entries.iter().filter(closed).count()
            }
            Raft::Fetched(Fetched::Nothing | Fetched::Entries(_)) => 1,
            _ => 0,
        },
        _ => 0,
    }
}

/// A field that a newer build adds is skipped by this one, in every array that stands for a
/// struct or for a variant with fields. Variants without fields stay so: what follows them would
/// be misread, so that a new variant is due instead.
#[test]
fn added_fields_are_skipped() {
    let mut extensions = 0;
    for (label, body) in bodies() {
        let bytes = to_vec(&body);
        let mut refused = 0;
        for place in arrays(&bytes) {
            let versions = [0, 1, 2].map(|absent| extended(&bytes, place, absent));
            let read = versions
                .iter()
                .flatten()
                .map(|bytes| from_slice::<Body>(bytes));
            if versions[0].is_none() {
                continue;
            }
            extensions += 1;
            match read.filter_map(Result::ok).next() {
                Some(read) => assert_eq!(read, body, "{label} at {place:?}"),
                None => refused += 1,
            }
        }
        assert_eq!(refused, closed_arrays(&body), "{label}");
    }
    assert!(extensions > 100, "{extensions}");
}

/// A variant that a newer build adds, in any place, is a counted refusal of that frame.
#[test]
fn unknown_variants_are_refused_and_counted() {
    let mut world = World::formed(&["a", "b", "c"]);
    world.admit_member("z");
    let alien: &[&[u8]] = &[
        b"\x81\x18\x63",                                                     // a body
        b"\x82\x00\x82\x07\x81\x18\x63",                                     // a raft message
        b"\x82\x02\x85\xf5\x81\x18\x63\x80\x82\x19\x03\xe8\x19\x03\xe8\xa0", // what a hello holds
        b"\x82\x03\x84\x01\x01\x01\x82\x18\x63\x00",                         // an operation
        b"\x82\x04\x83\x01\x01\x81\x18\x63",                                 // an answer
        b"\x82\x00\x82\x07\x82\x04\x86\x01\x01\x00\x82\x01\x01\x01\x82\x07\x81\x18\x63", // a payload
        b"",
        b"\xff",
        b"\x81\x05\x00", // trailing bytes
    ];
    for bytes in alien {
        let outcome = world.say_bytes("b", bytes);
        assert_eq!(outcome.refused(), Some(Refused::Body), "{}", hex(bytes));
    }
    world.run(Duration::from_secs(1));
    world.assert_alive("b");
}

/// The figures in docs/wire.md are those of the pinned frames.
#[test]
fn the_documented_overhead_is_the_pinned_one() {
    let docs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/wire.md");
    let docs = std::fs::read_to_string(docs).expect("docs/wire.md");
    for (label, body) in bodies() {
        let sizes = rings().map(|(_, ring)| seal(&ring, VERSION, &body).len());
        let row = format!(
            "| `{label}` | {} | {} | {} |",
            to_vec(&body).len(),
            sizes[1],
            sizes[0]
        );
        assert!(docs.contains(&row), "docs/wire.md is to say: {row}");
        assert_eq!(sizes[0], HEADER + to_vec(&body).len() + 16);
    }
    let size = |count: usize| to_vec(&append(vec![command(put(256)); count])).len();
    let per_entry = (size(16) - size(1)) / 15;
    let stated = format!("{per_entry} bytes an entry");
    assert!(docs.contains(&stated), "docs/wire.md is to say: {stated}");
}
