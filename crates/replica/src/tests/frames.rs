//! One example of each frame about the state that `golden.rs` pins.

use raft::{ClientId, Index, Payload, RequestNumber};

use crate::kv;
use crate::state::{
    Action, ActionResult, Comparison, Condition, Cursor, KeyEvent, KeyRange, KeyValue, LeaseGrant,
    LeaseId, LeaseStatus, RangeReading, RangeRequest, Target, Transacted, Transaction, Watched,
};
use crate::wire::{
    Answer, Body, Operation, Reply, Request, Value, WatchReply, WatchRequest, Write,
};

const CLIENT: ClientId = ClientId(0x1122_3344_5566_7788);

fn request(operation: Operation) -> Body {
    Body::Request(Request {
        client: CLIENT,
        number: RequestNumber(42),
        settled: Some(RequestNumber(41)),
        operation,
        begun: Some(Index(900)),
    })
}

fn reply(answer: Answer) -> Body {
    Body::Reply(Reply {
        number: RequestNumber(42),
        client: CLIENT,
        answer,
    })
}

fn pair() -> KeyValue {
    KeyValue {
        key: "cell/7/state".into(),
        value: "busy".into(),
        created: 870,
        modified: 890,
        version: 3,
        lease: LeaseId(800),
    }
}

fn transaction() -> Transaction {
    let condition = |target, comparison| Condition {
        key: "k".into(),
        target,
        comparison,
    };
    let put = |lease| Action::Put {
        key: "k".into(),
        value: "v".into(),
        lease,
    };
    let interval = KeyRange::Interval {
        from: "a".into(),
        to: Some(Value("b".into())),
    };
    Transaction {
        conditions: vec![
            condition(Target::Value("v".into()), Comparison::Equal),
            condition(Target::Version(1), Comparison::NotEqual),
            condition(Target::Created(2), Comparison::Less),
            condition(Target::Modified(3), Comparison::Greater),
            condition(Target::Lease(LeaseId(4)), Comparison::Equal),
        ],
        then: vec![put(Some(LeaseId(800))), put(None)],
        otherwise: vec![
            Action::Delete(interval),
            Action::Get {
                range: KeyRange::Prefix("cell/".into()),
                oldest: 1,
            },
            Action::Add {
                key: "n".into(),
                delta: -1,
            },
        ],
    }
}

fn transacted() -> Transacted {
    Transacted {
        revision: 900,
        succeeded: true,
        results: vec![
            ActionResult::Put,
            ActionResult::Deleted(2),
            ActionResult::Got(vec![pair()]),
            ActionResult::Sum(-7),
        ],
        term: 7,
    }
}

/// Log entries of the state that version 1 does not have.
pub(super) fn payloads() -> Vec<Payload> {
    let logged = |begun, write| {
        let settled = Some(RequestNumber(41));
        Payload::Command(kv::command(
            CLIENT,
            RequestNumber(42),
            settled,
            begun,
            write,
        ))
    };
    let put = |lease| Write::Put {
        key: "k".into(),
        value: "v".into(),
        lease,
    };
    let own = Action::Put {
        key: "_/node/gw-1".into(),
        value: "{}".into(),
        lease: None,
    };
    vec![
        logged(Some(Index(900)), put(None)),
        logged(None, put(Some(LeaseId(800)))),
        logged(None, Write::Transaction(transaction())),
        Payload::Command(kv::own_command(
            RequestNumber(0),
            Write::Expire(vec![LeaseId(800)]),
        )),
        Payload::Command(kv::own_command(RequestNumber(0), Write::Own(vec![own]))),
    ]
}

pub(super) fn frames() -> Vec<(&'static str, Body)> {
    let write = |write| request(Operation::Write(write));
    let grant = LeaseGrant {
        lease: LeaseId(800),
        ttl_ms: 5_000,
        drift_ppm: 1_000,
    };
    let watched = |watched| {
        Body::Watched(WatchReply {
            id: 3,
            from: Cursor {
                revision: 880,
                skip: 2,
            },
            watched,
        })
    };
    let range = RangeRequest {
        range: KeyRange::Prefix("cell/".into()),
        after: Some(Value("cell/6".into())),
        limit: 10,
        keys_only: true,
        count_only: false,
    };
    vec![
        (
            "request-put-lease",
            write(Write::Put {
                key: "k".into(),
                value: "v".into(),
                lease: Some(LeaseId(800)),
            }),
        ),
        (
            "request-transaction",
            write(Write::Transaction(transaction())),
        ),
        ("request-grant", write(Write::Grant { ttl_ms: 5_000 })),
        ("request-revoke", write(Write::Revoke(LeaseId(800)))),
        ("request-range", request(Operation::Range(range))),
        (
            "request-keep-alive",
            request(Operation::KeepAlive(LeaseId(800))),
        ),
        ("request-lease", request(Operation::Lease(LeaseId(800)))),
        ("request-leases", request(Operation::Leases(LeaseId::NONE))),
        (
            "reply-transacted",
            reply(Answer::Transacted(Box::new(transacted()))),
        ),
        ("reply-granted", reply(Answer::Granted(grant))),
        ("reply-no-such-lease", reply(Answer::NoSuchLease)),
        ("reply-full", reply(Answer::Full(64 << 20))),
        (
            "reply-range",
            reply(Answer::Range(RangeReading {
                revision: 900,
                pairs: vec![pair()],
                more: true,
                count: Some(2),
            })),
        ),
        (
            "reply-lease",
            reply(Answer::Lease(LeaseStatus {
                lease: LeaseId(800),
                ttl_ms: 5_000,
                remaining_ms: 4_000,
                keys: 2,
            })),
        ),
        ("reply-leases", reply(Answer::Leases(vec![LeaseId(800)]))),
        (
            "reply-session-forgotten",
            reply(Answer::SessionForgotten(Index(900))),
        ),
        (
            "watch",
            Body::Watch(WatchRequest {
                id: 3,
                range: KeyRange::Key("k".into()),
                from: Cursor::from(880),
                hold_ms: 20_000,
            }),
        ),
        (
            "watched",
            watched(Watched::Events {
                events: vec![
                    KeyEvent::Put(pair()),
                    KeyEvent::Delete {
                        key: "k".into(),
                        revision: 891,
                    },
                ],
                next: Cursor::from(892),
            }),
        ),
        (
            "watched-compacted",
            watched(Watched::Compacted { oldest: 885 }),
        ),
        ("watched-unavailable", watched(Watched::Unavailable)),
    ]
}
