//! What any MQTT client may send as a request, without the cluster key: JSON, and where to answer.

#![no_main]

use bytes::Bytes;
use fuzz::Reader;
use libfuzzer_sys::fuzz_target;
use replica::{
    Action, ApiRequest, KeyRange, MAX_RESPONSE_TOPIC, Name, Question, RESERVED, Target,
    WriteAccess, answer_topic, check_response_topic, request_sender,
};

const ROOT: &str = "raft/plant-a";

/// However it is said, a question reads nothing of the cluster's own and writes below the prefix.
fn request(bytes: &[u8]) {
    let access = WriteAccess::below(["door/", "_"]);
    let request = match ApiRequest::read(bytes, &access) {
        Ok(request) => request,
        Err(answer) => {
            let payload = answer.into_payload();
            assert!(payload.len() < 4_096, "a refusal is short");
            let text = std::str::from_utf8(&payload).expect("JSON is text");
            assert!(text.contains("\"error\":"), "{text}");
            return;
        }
    };
    let plain = |range: &KeyRange| assert!(!range.start().starts_with(RESERVED));
    match request.question {
        Question::Get(key) => assert!(!key.starts_with(RESERVED)),
        Question::List(list) => plain(&list.range),
        Question::Watch { range, lasts, .. } => {
            plain(&range);
            assert!((1..=300).contains(&lasts.as_secs()));
        }
        Question::Write { key, transaction } => {
            assert!(
                key.starts_with(b"door/") || key.starts_with(b"_") && !key.starts_with(RESERVED)
            );
            let first = transaction
                .conditions
                .first()
                .expect("a write has a condition");
            assert!(matches!(first.target, Target::Lease(lease) if lease.0 == 0));
            assert!(transaction.otherwise.is_empty());
            let only = |other: &Bytes| assert_eq!(*other, key);
            for condition in &transaction.conditions {
                only(&condition.key);
            }
            for action in &transaction.then {
                match action {
                    Action::Put {
                        key, lease: None, ..
                    }
                    | Action::Delete(KeyRange::Key(key)) => only(key),
                    other => panic!("{other:?}"),
                }
            }
        }
        Question::Leader | Question::Members => {}
    }
}

/// Wherever the answer is to go, it goes below the topic of who asked.
fn topics(reader: &mut Reader<'_>) {
    let topic = String::from_utf8_lossy(reader.sized()).into_owned();
    let wanted = String::from_utf8_lossy(reader.rest()).into_owned();
    let sender = request_sender(ROOT, &topic);
    let from = sender.unwrap_or_else(|| Name::new("panel").expect("a name"));
    let own = format!("{ROOT}/req/{from}/");
    assert!(check_response_topic(ROOT, &from, &answer_topic(ROOT, &from)).is_ok());
    if check_response_topic(ROOT, &from, &wanted).is_ok() {
        assert!(wanted.starts_with(&own) && wanted.len() > own.len());
        assert!(wanted.len() <= MAX_RESPONSE_TOPIC && !wanted.contains(['+', '#', '\0']));
    }
}

fuzz_target!(|data: &[u8]| {
    let mut reader = Reader::new(data);
    match reader.byte() {
        b't' => topics(&mut reader),
        _ => request(data),
    }
});
