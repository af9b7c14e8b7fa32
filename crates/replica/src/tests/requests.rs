//! What a client says of its requests, and under which name it repeats them.

use std::time::Duration;

use raft::{ClientId, NodeKey, RequestNumber, Time};

use super::world::{World, name};
use crate::following::Following;
use crate::requests::{RequestError, Requests, Token};
use crate::state::{Cursor, KeyEvent, KeyRange, Watched};
use crate::wire::{Answer, Change, Operation, Reply, WatchReply, Write};

const SECOND: Duration = Duration::from_secs(1);

fn put() -> Operation {
    Operation::Write(Write::Put {
        key: "k".into(),
        value: "v".into(),
        lease: None,
    })
}

fn submit(requests: &mut Requests, token: u64) {
    let submitted = requests.submit(Token(token), put(), SECOND, Time(0));
    submitted.expect("room for one");
}

/// Only a write that never left has certainly not been applied.
#[test]
fn a_write_that_was_sent_ends_unknown() {
    let mut requests = Requests::new(ClientId(7));
    submit(&mut requests, 1);
    assert_eq!(requests.due(Time(0)).len(), 1);
    submit(&mut requests, 2);
    let ends = requests.expire(Time(0) + SECOND);
    let expected = [
        (Token(1), RequestError::Unknown),
        (Token(2), RequestError::TimedOut),
    ];
    assert_eq!(ends, expected);
}

/// Simulator, seed 70: two processes went by the leader's name. The one took a copy of a write into
/// its log, the other said of the same copy that it does not lead; and the write was called not done.
#[test]
fn a_write_that_two_of_a_name_answered_ends_unknown() {
    let mut requests = Requests::new(ClientId(7));
    submit(&mut requests, 1);
    let hear = |requests: &mut Requests, key: u128, answer: Answer, now: Time| {
        let (client, number) = (ClientId(7), RequestNumber(1));
        let reply = Reply {
            client,
            number,
            answer,
        };
        requests.answered_by(number, &name("a"), NodeKey(key));
        assert_eq!(requests.on_reply(reply, now), None);
    };
    let not_yet = || Answer::NotYet("a node runs an older build".to_owned());
    assert_eq!(requests.due(Time(0)).len(), 1);
    hear(&mut requests, 1, not_yet(), Time(1_000));
    assert_eq!(requests.due(Time(200_000)).len(), 1);
    // The leader has it in its log, and will answer too late.
    hear(&mut requests, 2, Answer::NotLeader(None), Time(201_000));
    let ends = requests.expire(Time(0) + SECOND);
    assert_eq!(ends, [(Token(1), RequestError::Unknown)]);
}

/// A change was not made if the last that was heard of it says so. If it was asked for once more since,
/// that may have been taken.
#[test]
fn a_change_whose_last_copy_is_not_answered_ends_unknown() {
    let change = || Operation::Change(Change::default());
    let not_yet = || Answer::NotYet("another change is under way".to_owned());
    let asked = || {
        let mut requests = Requests::new(ClientId(7));
        let submitted = requests.submit(Token(1), change(), SECOND, Time(0));
        submitted.expect("room for one");
        requests
    };
    let hear = |requests: &mut Requests, answer: Answer, now: Time| {
        let (client, number) = (ClientId(7), RequestNumber(1));
        let reply = Reply {
            client,
            number,
            answer,
        };
        assert_eq!(requests.on_reply(reply, now), None);
    };
    let quarter = |n: u32| Time(0) + n * SECOND / 4;
    let mut requests = asked();
    for (n, answer) in (0..).zip([Answer::NotLeader(None), not_yet(), not_yet()]) {
        assert_eq!(requests.due(quarter(n)).len(), 1);
        hear(&mut requests, answer, quarter(n));
    }
    assert_eq!(requests.due(quarter(3)).len(), 1);
    let ends = requests.expire(quarter(4));
    assert_eq!(ends, [(Token(1), RequestError::Unknown)]);

    let mut requests = asked();
    assert_eq!(requests.due(quarter(3)).len(), 1);
    hear(&mut requests, not_yet(), quarter(3));
    let late = quarter(3) + SECOND / 5;
    assert_eq!(requests.due(late), [], "no time is left for an answer");
    assert_eq!(requests.deadline(), Some(quarter(4)));
    let ends = requests.expire(quarter(4));
    assert!(matches!(
        ends.as_slice(),
        [(_, RequestError::NotYet(why))] if why == "another change is under way"
    ));
}

/// A write that went out under a session that the cluster has forgotten since may have been
/// applied under it: under the next one it would look new, and be applied again.
#[test]
fn a_retry_bears_the_session_of_its_first_copy() {
    let mut requests = Requests::new(ClientId(7));
    submit(&mut requests, 1);
    submit(&mut requests, 2);
    let sent = requests.due(Time(0));
    let expired = Reply {
        number: sent[0].number,
        client: ClientId(7),
        answer: Answer::SessionExpired,
    };
    let end = requests.on_reply(expired, Time(0));
    assert_eq!(end, Some((Token(1), Err(RequestError::Unknown))));
    submit(&mut requests, 3);
    let again = requests.due(Time(0) + SECOND / 2);
    let [retry, new] = again.as_slice() else {
        panic!("two are due: {again:?}");
    };
    assert_eq!((retry.client, retry.number), (ClientId(7), sent[1].number));
    assert_eq!(retry.settled, Some(retry.number), "it is no first request");
    assert_eq!(new.client, ClientId(8));
}

/// Simulator, seed 2: a write had reached one leader, which was deposed; the next could not do it yet,
/// and the caller was told that it had not been done. It had.
#[test]
fn a_write_that_another_leader_may_have_logged_ends_unknown() {
    let mut requests = Requests::new(ClientId(7));
    submit(&mut requests, 1);
    assert_eq!(
        requests.due(Time(0)).len(),
        1,
        "to a leader that says nothing"
    );
    requests.on_new_leader(Time(1_000));
    assert_eq!(requests.due(Time(1_000)).len(), 1, "to the next");
    let answer = Answer::NotYet("a node runs an older build".to_owned());
    let reply = Reply {
        client: ClientId(7),
        number: RequestNumber(1),
        answer,
    };
    assert_eq!(requests.on_reply(reply, Time(2_000)), None);
    let ends = requests.expire(Time(0) + SECOND);
    assert_eq!(ends, [(Token(1), RequestError::Unknown)]);
}

/// The same of a write that finds no room: a copy that is still under way may.
#[test]
fn a_write_of_which_one_copy_found_no_room_is_in_doubt() {
    let full = |copies: u64| {
        let mut requests = Requests::new(ClientId(7));
        submit(&mut requests, 1);
        for copy in 0..copies {
            requests.on_new_leader(Time(copy));
            assert_eq!(requests.due(Time(copy)).len(), 1);
        }
        let reply = Reply {
            client: ClientId(7),
            number: RequestNumber(1),
            answer: Answer::Full(9),
        };
        let end = requests.on_reply(reply, Time(2_000)).expect("its end");
        end.1.expect_err("it was not done")
    };
    assert_eq!(full(1), RequestError::Full(9));
    assert_eq!(full(2), RequestError::Unknown);
}

/// Who goes on watching under the same mark has seen what an answer to the question before tells.
#[test]
fn an_answer_to_an_older_watch_is_none() {
    let (mut following, range) = (Following::default(), KeyRange::Key("k".into()));
    let answer = || WatchReply {
        id: 1,
        from: Cursor::from(1),
        watched: Watched::Events {
            events: vec![KeyEvent::Delete {
                key: "k".into(),
                revision: 1,
            }],
            next: Cursor::from(2),
        },
    };
    following.ask(Token(1), range.clone(), Cursor::from(1), Time(0));
    assert_eq!(following.due(Time(0)).0.len(), 1);
    assert!(following.on_reply(answer(), Time(0)).is_some());
    following.ask(Token(1), range, Cursor::from(2), Time(1));
    assert_eq!(following.due(Time(1)).0.len(), 1);
    assert_eq!(following.on_reply(answer(), Time(1)), None);
}

/// Simulator, seed 24 of 120 s: while nobody leads there is nobody to send a write to, however often it
/// is due. What was never sent is not in doubt.
#[test]
fn a_write_that_nobody_could_be_asked_for_is_not_in_doubt() {
    let mut world = World::formed(&["a", "b", "c"]);
    let followers = ["a", "b", "c"].into_iter();
    let leader = world.leader().expect("it leads");
    let last = followers.rev().find(|who| name(who) != leader);
    let last = last.expect("two follow");
    for who in ["a", "b", "c"] {
        if who != last {
            world.kill(who);
        }
    }
    world.run(5 * SECOND);
    assert_eq!(world.node(last).replica.leader(), None);
    let end = world.ask(last, put(), 2 * SECOND);
    assert_eq!(end, Err(RequestError::TimedOut));
}
