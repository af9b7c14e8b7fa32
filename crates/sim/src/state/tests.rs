//! Each of the state's checkers against a short log and one answer that is not of it.

use raft::{ClientId, Command, Payload, RequestNumber, Term};
use replica::{
    ActionResult, Bounds, KeyEvent, KeyValue, LeaseGrant, RangeReading, Transacted, Written,
};

use super::*;
use crate::history::tests::objects;

struct Story(Judge);

impl Story {
    /// A key that is put, changed by a transaction, and a lease with a key.
    fn told() -> Story {
        let bounds = Bounds {
            history: 3,
            ..Bounds::default()
        };
        let mut story = Story(Judge {
            model: Model::new(bounds),
            made_at: vec![0],
            ..Judge::default()
        });
        story.log(SECOND, 1, put("a", "id/1 put", None));
        story.log(SECOND, 2, add(2));
        story.log(SECOND, 3, Write::Grant { ttl_ms: 1_000 });
        story.log(SECOND, 4, put("b", "id/3 put", Some(LeaseId(3))));
        story
    }

    fn log(&mut self, now: Micros, request: u64, write: Write) {
        self.log_by(now, 7, request, write);
    }

    fn log_by(&mut self, now: Micros, client: u64, request: u64, write: Write) {
        #[derive(minicbor::Encode)]
        struct Logged {
            #[n(0)]
            settled: Option<RequestNumber>,
            #[n(1)]
            write: Write,
            #[n(2)]
            begun: Option<Index>,
        }
        let logged = Logged {
            settled: None,
            write,
            begun: None,
        };
        let data = minicbor::to_vec(&logged).expect("memory suffices").into();
        let command = Command {
            client: ClientId(client),
            request: RequestNumber(request),
            data,
        };
        let entry = Entry {
            index: self.0.model.applied() + 1,
            term: Term(2),
            payload: Payload::Command(command),
        };
        self.0.learn(at(now), &entry);
    }

    fn answered(&mut self, now: Micros, call: &Call, result: Result<Done, RequestError>) {
        self.0.answered(at(now), call, &result);
    }

    fn all(&self) -> RangeReading {
        let pairs = self.0.model.range_at(&everything(), 3);
        RangeReading {
            revision: 3,
            pairs,
            ..RangeReading::default()
        }
    }

    fn changes(&self, from: u64) -> Vec<KeyEvent> {
        let (from, to) = (Cursor::from(from), Cursor::from(4));
        let changes = self.0.model.changes(&everything(), from, to);
        changes.into_iter().cloned().collect()
    }

    fn watched(&mut self, from: u64, events: Vec<KeyEvent>, next: u64) {
        let next = Cursor::from(next);
        let watched = Watched::Events { events, next };
        let from = Cursor::from(from);
        self.0
            .watched(at(2 * SECOND), &everything(), from, &watched);
    }
}

fn at(now: Micros) -> At<'static> {
    At {
        now,
        host: 0,
        name: "n1",
    }
}

fn everything() -> KeyRange {
    KeyRange::Prefix(Bytes::new())
}

fn put(key: &'static str, value: &'static str, lease: Option<LeaseId>) -> Write {
    Write::Put {
        key: key.into(),
        value: value.into(),
        lease,
    }
}

fn add(mark: u64) -> Write {
    let mark = Action::Get {
        range: KeyRange::Key(format!("id/{mark}").into()),
        oldest: 0,
    };
    let add = Action::Add {
        key: "n".into(),
        delta: 5,
    };
    Write::Transaction(Transaction {
        then: vec![mark, add],
        ..Transaction::default()
    })
}

fn added(sum: i64) -> Done {
    Done::Transacted(Transacted {
        revision: 2,
        succeeded: true,
        results: vec![ActionResult::Got(Vec::new()), ActionResult::Sum(sum)],
        term: 2,
    })
}

fn call(operation: Operation, floor: u64) -> Call {
    Call {
        host: 0,
        life: 1,
        operation,
        asked: SECOND / 2,
        local: Time(0),
        floor,
        by: By::Anyone,
    }
}

fn list() -> Operation {
    Operation::Range(RangeRequest::all(everything()))
}

fn granted() -> Done {
    Done::Granted(LeaseGrant {
        lease: LeaseId(3),
        ttl_ms: 1_000,
        drift_ppm: raft::Settings::default().drift_ppm,
    })
}

#[test]
fn what_is_true_passes() {
    let mut story = Story::told();
    story.answered(SECOND, &call(Operation::Write(add(2)), 1), Ok(added(5)));
    let told = Written {
        revision: 3,
        applied: true,
    };
    let write = put("b", "id/3 put", Some(LeaseId(3)));
    story.answered(
        SECOND,
        &call(Operation::Write(write), 2),
        Ok(Done::Written(told)),
    );
    let all = story.all();
    assert_eq!(all.pairs.len(), 3);
    story.answered(SECOND, &call(list(), 3), Ok(Done::Range(all)));
    let keep_alive = Operation::KeepAlive(LeaseId(3));
    story.answered(SECOND, &call(keep_alive, 3), Ok(granted()));
    let changes = story.changes(1);
    story.watched(1, changes, 4);
    story.log(2 * SECOND, 1, Write::Expire(vec![LeaseId(3)]));
    story.0.took(at(SECOND), 0, 1, 3, &[(0, 3)]);
    story.0.took(at(SECOND), 0, 1, 4, &[(1, 4)]);
}

#[test]
fn another_sum() {
    let mut story = Story::told();
    let call = call(Operation::Write(add(2)), 1);
    objects(Checker::StateModel, || {
        story.answered(SECOND, &call, Ok(added(6)))
    });
}

#[test]
fn a_range_without_a_key() {
    let mut story = Story::told();
    let mut all = story.all();
    all.pairs.remove(1);
    let call = call(list(), 3);
    objects(Checker::StateModel, || {
        story.answered(SECOND, &call, Ok(Done::Range(all)))
    });
}

#[test]
fn a_key_with_another_birth() {
    let mut story = Story::told();
    let mut all = story.all();
    let KeyValue { created, .. } = &mut all.pairs[2];
    *created -= 1;
    let call = call(list(), 3);
    objects(Checker::StateModel, || {
        story.answered(SECOND, &call, Ok(Done::Range(all)))
    });
}

#[test]
fn a_lease_is_gone_that_lives() {
    let mut story = Story::told();
    let call = call(Operation::KeepAlive(LeaseId(3)), 3);
    let gone = Err(RequestError::NoSuchLease);
    objects(Checker::StateModel, || story.answered(SECOND, &call, gone));
}

#[test]
fn a_lease_is_kept_alive_after_its_end() {
    let mut story = Story::told();
    story.log(2 * SECOND, 1, Write::Expire(vec![LeaseId(3)]));
    let late = Call {
        asked: 3 * SECOND,
        ..call(Operation::KeepAlive(LeaseId(3)), 4)
    };
    objects(Checker::StateModel, || {
        story.answered(4 * SECOND, &late, Ok(granted()))
    });
}

/// A read that was asked for after revision 3 had been seen.
#[test]
fn a_range_of_before_it_was_asked_for() {
    let mut story = Story::told();
    let reading = RangeReading {
        revision: 2,
        pairs: story.0.model.range_at(&everything(), 2),
        ..RangeReading::default()
    };
    let call = call(list(), 3);
    objects(Checker::StateOrder, || {
        story.answered(SECOND, &call, Ok(Done::Range(reading)));
    });
}

#[test]
fn a_write_under_two_names() {
    let mut story = Story::told();
    objects(Checker::ExactlyOnce, || story.log_by(SECOND, 8, 1, add(2)));
}

#[test]
fn a_copy_is_no_second_write() {
    let mut story = Story::told();
    story.log(SECOND, 2, add(2));
    assert_eq!(story.0.model.revision(), 3);
}

#[test]
fn what_was_done_is_said_not_to_be() {
    for error in [
        RequestError::TimedOut,
        RequestError::NotYet("later".to_owned()),
        RequestError::NoSuchLease,
    ] {
        let mut story = Story::told();
        let call = call(Operation::Write(add(2)), 1);
        objects(Checker::ExactlyOnce, || {
            story.answered(SECOND, &call, Err(error))
        });
    }
}

#[test]
fn what_was_said_not_to_be_done_is_done_later() {
    let mut story = Story::told();
    let call = call(Operation::Write(add(9)), 1);
    story.answered(SECOND, &call, Err(RequestError::Full(1)));
    objects(Checker::ExactlyOnce, || story.log(SECOND, 5, add(9)));
}

#[test]
fn watches_that_tell_something_else() {
    let all = Story::told().changes(1);
    assert_eq!(all.len(), 3);
    let mut twice = all.clone();
    twice.insert(1, all[0].clone());
    let mut disorder = all.clone();
    disorder.swap(0, 1);
    for (events, next) in [
        (all[..2].to_vec(), 4),
        (all[1..].to_vec(), 4),
        (twice, 4),
        (disorder, 4),
        // It would miss what comes next.
        (all.clone(), 5),
        (all, 3),
    ] {
        let mut story = Story::told();
        objects(Checker::WatchCompleteness, || {
            story.watched(1, events, next)
        });
    }
}

#[test]
fn nothing_is_compacted_yet() {
    let mut story = Story::told();
    let (from, compacted) = (Cursor::from(1), Watched::Compacted { oldest: 2 });
    objects(Checker::WatchCompleteness, || {
        story.0.watched(at(SECOND), &everything(), from, &compacted);
    });
    let mut story = Story::told();
    story.log(SECOND, 5, put("a", "id/4 put", None));
    story.0.watched(at(SECOND), &everything(), from, &compacted);
}

/// Asked for at half a second, it is the holder's for almost a second from then.
#[test]
fn a_lease_that_ends_early() {
    for (ended, early) in [(1_400_000, true), (1_498_000, true), (1_500_000, false)] {
        let mut story = Story::told();
        let call = call(Operation::KeepAlive(LeaseId(3)), 3);
        story.answered(SECOND, &call, Ok(granted()));
        let expire = Write::Expire(vec![LeaseId(3)]);
        match early {
            true => objects(Checker::LeaseExpiry, || story.log(ended, 1, expire)),
            false => story.log(ended, 1, expire),
        }
    }
}

/// The answer comes after the end, and says that it had not been.
#[test]
fn a_lease_that_had_ended_early() {
    let mut story = Story::told();
    story.log(1_200_000, 1, Write::Expire(vec![LeaseId(3)]));
    let call = call(Operation::KeepAlive(LeaseId(3)), 3);
    objects(Checker::LeaseExpiry, || {
        story.answered(1_300_000, &call, Ok(granted()))
    });
}

#[test]
fn a_lock_with_two_holders() {
    let mut story = Story::told();
    story.0.took(at(SECOND), 2, 2, 9, &[(0, 4), (1, 9)]);
    objects(Checker::LockExclusion, || {
        story.0.took(at(SECOND), 0, 1, 9, &[(0, 4), (1, 9)]);
    });
}

#[test]
fn a_token_that_does_not_grow() {
    let mut story = Story::told();
    story.0.took(at(SECOND), 0, 1, 9, &[(1, 9)]);
    objects(Checker::LockTokens, || {
        story.0.took(at(SECOND), 0, 1, 9, &[(0, 9)])
    });
}
