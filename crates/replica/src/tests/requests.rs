//! What a client says of its requests, and under which name it repeats them.

use std::time::Duration;

use raft::{ClientId, Time};

use crate::requests::{RequestError, Requests, Token};
use crate::wire::{Answer, Operation, Reply, Write};

const SECOND: Duration = Duration::from_secs(1);

fn put() -> Operation {
    Operation::Write(Write::Put {
        key: "k".into(),
        value: "v".into(),
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
