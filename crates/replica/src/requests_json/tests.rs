//! What may be asked, how it is answered, and what is refused.

use super::*;

fn read(payload: &str) -> Result<ApiRequest, Answer> {
    ApiRequest::read(payload.as_bytes(), &WriteAccess::below(["door/", "_"]))
}

fn question(payload: &str) -> Question {
    read(payload)
        .unwrap_or_else(|answer| panic!("{payload}: {answer:?}"))
        .question
}

/// The code that a request is refused with.
fn refusal(payload: &str) -> String {
    let answer = read(payload).expect_err(payload);
    answer.0["error"].as_str().unwrap().to_owned()
}

fn text(answer: Answer) -> String {
    String::from_utf8(answer.into_payload().to_vec()).unwrap()
}

fn pair(key: &'static str, value: impl Into<Bytes>) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: value.into(),
        created: 3,
        modified: 5,
        version: 2,
        lease: LeaseId::NONE,
    }
}

#[test]
fn questions_are_read() {
    assert_eq!(
        question(r#"{"op":"get","key":"door/1"}"#),
        Question::Get("door/1".into())
    );
    assert_eq!(
        question(r#"{"op":"get","key_base64":"/w=="}"#),
        Question::Get(Bytes::from_static(&[0xFF]))
    );
    assert_eq!(question(r#"{"op":"leader"}"#), Question::Leader);
    assert_eq!(question(r#"{"op":"members"}"#), Question::Members);
    let list = question(r#"{"op":"list","prefix":"","after":"a","limit":2,"keys_only":true}"#);
    let Question::List(list) = list else {
        panic!("{list:?}")
    };
    assert_eq!(list.range, KeyRange::Prefix(Bytes::new()));
    assert_eq!(
        (list.after, list.limit, list.keys_only),
        (Some(Value("a".into())), 2, true)
    );
    let watch = |from, seconds| Question::Watch {
        range: KeyRange::Prefix("door/".into()),
        from,
        lasts: Duration::from_secs(seconds),
    };
    assert_eq!(
        question(r#"{"op":"watch","prefix":"door/"}"#),
        watch(None, 60)
    );
    let cursor = Cursor {
        revision: 7,
        skip: 2,
    };
    assert_eq!(
        question(r#"{"op":"watch","prefix":"door/","from":7,"skip":2,"seconds":5}"#),
        watch(Some(cursor), 5)
    );
}

#[test]
fn a_write_never_touches_a_key_with_a_lease() {
    for payload in [
        r#"{"op":"put","key":"door/1","value":"open"}"#,
        r#"{"op":"put","key":"door/1","value":"open","if_modified":5}"#,
        r#"{"op":"delete","key":"door/1"}"#,
        r#"{"op":"cas","key":"door/1","expected":"open","value":null}"#,
        r#"{"op":"cas","key":"door/1","expected":null,"value":"open"}"#,
    ] {
        let Question::Write { key, transaction } = question(payload) else {
            panic!("{payload}")
        };
        let unleased = Condition {
            key,
            target: Target::Lease(LeaseId::NONE),
            comparison: Comparison::Equal,
        };
        assert_eq!(transaction.conditions.first(), Some(&unleased), "{payload}");
        assert!(transaction.otherwise.is_empty());
        assert_eq!(transaction.then.len(), 1);
    }
}

#[test]
fn what_a_write_expects_is_said_or_is_null() {
    let targets = |payload| match question(payload) {
        Question::Write { transaction, .. } => {
            let conditions = transaction.conditions.into_iter().skip(1);
            conditions
                .map(|condition| condition.target)
                .collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(targets(r#"{"op":"put","key":"door/1","value":""}"#), []);
    let put = r#"{"op":"put","key":"door/1","value":"","if_modified":0}"#;
    assert_eq!(targets(put), [Target::Modified(0)]);
    let absent = r#"{"op":"cas","key":"door/1","expected":null,"value":"x"}"#;
    assert_eq!(targets(absent), [Target::Version(0)]);
    let held = r#"{"op":"cas","key":"door/1","expected_base64":"/w==","value":"x"}"#;
    assert_eq!(targets(held), [Target::Value(Bytes::from_static(&[0xFF]))]);
}

#[test]
fn what_may_not_be_asked_is_refused_by_name() {
    let long = "k".repeat(MAX_KEY + 1);
    let table = [
        ("", "bad_request"),
        ("[]", "bad_request"),
        ("{}", "bad_request"),
        (r#"{"op":1}"#, "bad_request"),
        (r#"{"op":"drop"}"#, "bad_request"),
        (r#"{"op":"leader","key":"door/1"}"#, "bad_request"),
        (r#"{"op":"get"}"#, "bad_request"),
        (r#"{"op":"get","key":null}"#, "bad_request"),
        (
            r#"{"op":"get","key":"a","key_base64":"YQ=="}"#,
            "bad_request",
        ),
        (r#"{"op":"get","key_base64":"?"}"#, "bad_request"),
        (r#"{"op":"get","key":"a","value":"b"}"#, "bad_request"),
        (r#"{"op":"get","key":"_/lock/a"}"#, "forbidden"),
        (r#"{"op":"list","prefix":"_/"}"#, "forbidden"),
        (r#"{"op":"watch","key":"_/node/gw-1"}"#, "forbidden"),
        (r#"{"op":"watch","key":"a","prefix":"a"}"#, "bad_request"),
        (r#"{"op":"watch","key":"a","seconds":301}"#, "bad_request"),
        (r#"{"op":"watch","key":"a","from":-1}"#, "bad_request"),
        (r#"{"op":"put","key":"door/1"}"#, "bad_request"),
        (r#"{"op":"put","key":"door","value":"x"}"#, "forbidden"),
        // Although the prefix `_` is listed above.
        (r#"{"op":"put","key":"_/lock/a","value":"x"}"#, "forbidden"),
        (r#"{"op":"delete","key":"_/node/gw-1"}"#, "forbidden"),
        (r#"{"op":"cas","key":"door/1","value":"x"}"#, "bad_request"),
        (
            r#"{"op":"cas","key":"door/1","expected":"x"}"#,
            "bad_request",
        ),
        (
            r#"{"op":"put","key":"door/1","value":"x","lease":3}"#,
            "bad_request",
        ),
        (r#"{"op":"leader","id":7}"#, "bad_request"),
    ];
    for (payload, code) in table {
        assert_eq!(refusal(payload), code, "{payload}");
    }
    assert_eq!(
        refusal(&format!(r#"{{"op":"get","key":"{long}"}}"#)),
        "too_large"
    );
    assert_eq!(refusal(&"x".repeat(MAX_REQUEST + 1)), "too_large");
    let value = "v".repeat(MAX_VALUE + 1);
    let put = format!(r#"{{"op":"put","key":"door/1","value":"{value}"}}"#);
    assert_eq!(refusal(&put), "too_large");
    let read_only = WriteAccess::below([""]);
    assert_eq!(read_only, WriteAccess::read_only());
    let put = br#"{"op":"put","key":"door/1","value":"x"}"#;
    let answer = ApiRequest::read(put, &read_only).unwrap_err();
    assert_eq!(answer.0["error"], "read_only");
}

#[test]
fn the_largest_value_fits_a_request_whatever_its_bytes() {
    let value = BASE64.encode(vec![0xFF; MAX_VALUE]);
    let key = BASE64.encode(["door/".as_bytes(), &[0xFF; MAX_KEY - 5]].concat());
    let put = format!(r#"{{"op":"put","key_base64":"{key}","value_base64":"{value}","id":"7"}}"#);
    assert!(put.len() <= MAX_REQUEST);
    question(&put);
}

#[test]
fn an_answer_carries_the_id_of_its_request() {
    let answer = read(r#"{"op":"drop","id":"7"}"#).unwrap_err();
    let expected = r#"{"error":"bad_request","id":"7","message":"\"op\" is get, list, put, delete, cas, watch, leader or members"}"#;
    assert_eq!(text(answer), expected);
    let answer = Answer::leader("gw-1", 3, Some(0.0)).to(Some("8"));
    assert_eq!(
        text(answer),
        r#"{"id":"8","leader":"gw-1","metric":0.0,"term":3}"#
    );
}

/// An error that repeats the request must not be a way to publish much.
#[test]
fn a_message_is_short_however_long_what_it_is_about() {
    let field = "ä".repeat(40_000);
    let answer = read(&format!(r#"{{"op":"leader","{field}":1}}"#)).unwrap_err();
    assert!(answer.into_payload().len() < 400);
}

#[test]
fn a_key_is_told_with_its_revisions_and_an_absent_one_as_null() {
    let mut reading = RangeReading {
        revision: 9,
        pairs: vec![pair("door/1", "open")],
        more: false,
        count: None,
    };
    assert_eq!(
        text(Answer::got(&"door/1".into(), &reading)),
        r#"{"key":"door/1","modified":5,"revision":9,"value":"open"}"#
    );
    reading.pairs.clear();
    assert_eq!(
        text(Answer::got(&"door/1".into(), &reading)),
        r#"{"key":"door/1","modified":null,"revision":9,"value":null}"#
    );
}

#[test]
fn a_write_that_met_a_lease_is_told_from_one_that_met_another_value() {
    let mut reading = RangeReading {
        revision: 9,
        pairs: vec![pair("door/1", "")],
        more: false,
        count: None,
    };
    let key = Bytes::from("door/1");
    assert_eq!(
        text(Answer::unwritten(&key, &reading).unwrap()),
        r#"{"applied":false,"key":"door/1","modified":5,"revision":9}"#
    );
    reading.pairs[0].lease = LeaseId(4);
    assert_eq!(
        Answer::unwritten(&key, &reading).unwrap_err().code(),
        "forbidden"
    );
    reading.pairs.clear();
    assert_eq!(
        text(Answer::unwritten(&key, &reading).unwrap()),
        r#"{"applied":false,"key":"door/1","modified":0,"revision":9}"#
    );
}

/// 64 KiB of control characters are text, which JSON would write six times as long.
#[test]
fn no_value_makes_an_answer_longer_than_a_packet() {
    for value in [
        vec![1; MAX_VALUE],
        vec![0xFF; MAX_VALUE],
        vec![b'"'; MAX_VALUE],
    ] {
        let pairs = vec![pair("a", value.clone()), pair("b", value.clone())];
        let reading = RangeReading {
            revision: 9,
            pairs,
            more: false,
            count: None,
        };
        let request = RangeRequest::all(KeyRange::Prefix(Bytes::new()));
        let answer = Answer::listed(&request, &reading);
        assert_eq!(answer.0["more"], true);
        assert_eq!(answer.0["pairs"].as_array().unwrap().len(), 1);
        assert!(answer.into_payload().len() <= MAX_ANSWER);
        let events = reading
            .pairs
            .into_iter()
            .map(KeyEvent::Put)
            .collect::<Vec<_>>();
        let answers = Answer::watched(&events, Cursor::from(3), Cursor::from(10));
        assert_eq!(answers.len(), 2);
        assert!(
            answers[0].0.get("next").is_none(),
            "more of the same is to come"
        );
        assert_eq!(answers[1].0["next"], json!({ "from": 10 }));
        for (answer, part) in answers.iter().zip(1..) {
            assert_eq!(answer.0["part"], part);
            assert_eq!(answer.0["previous"], json!({ "from": 3 }));
        }
        for answer in answers {
            assert!(answer.into_payload().len() <= MAX_ANSWER);
        }
    }
}

#[test]
fn many_small_changes_are_told_in_several_answers_and_all_of_them() {
    let event = |revision| KeyEvent::Delete {
        key: "".into(),
        revision,
    };
    let events: Vec<_> = (0..5_000).map(event).collect();
    let answers = Answer::watched(
        &events,
        Cursor::from(0),
        Cursor {
            revision: 6_000,
            skip: 1,
        },
    );
    assert!(answers.len() > 1);
    let mut told = Vec::new();
    for answer in &answers {
        for event in answer.0["events"].as_array().unwrap() {
            assert_eq!(event["value"], Json::Null);
            told.push(event["revision"].as_u64().unwrap());
        }
    }
    assert_eq!(told, (0..5_000).collect::<Vec<_>>());
    assert_eq!(
        answers.last().unwrap().0["next"],
        json!({ "from": 6_000, "skip": 1 })
    );
}

#[test]
fn a_short_text_stays_a_text() {
    let mut object = Map::new();
    insert_bytes(&mut object, "line", b"{\"a\":\"b\"}\n");
    insert_bytes(&mut object, "bytes", &[0xFF]);
    insert_bytes(&mut object, "controls", &[1; 60]);
    assert_eq!(object["line"], "{\"a\":\"b\"}\n");
    assert_eq!(object["bytes_base64"], "/w==");
    assert!(object.contains_key("controls_base64"));
    let written = |text: &str| json!(text).to_string().len() - 2;
    let all: String = (0..=0x2FFF_u32).filter_map(char::from_u32).collect();
    assert_eq!(escaped_length(&all), written(&all));
}

#[test]
fn an_answer_goes_below_the_topic_of_who_asked_and_nowhere_else() {
    let root = "raft/plant-a";
    let panel = Name::new("panel").unwrap();
    assert_eq!(request_filter(root), "raft/plant-a/req/+");
    assert_eq!(
        request_sender(root, "raft/plant-a/req/panel"),
        Some(panel.clone())
    );
    for topic in [
        "raft/plant-a/req/",
        "raft/plant-ab/req/panel",
        "raft/plant-a/req/a/b",
    ] {
        assert_eq!(request_sender(root, topic), None, "{topic}");
    }
    let check = |topic: &str| check_response_topic(root, &panel, topic).is_ok();
    assert!(check(&answer_topic(root, &panel)));
    assert!(check("raft/plant-a/req/panel/a/b/c"));
    for topic in [
        "",
        "answers",
        "raft/plant-a/leader",
        "raft/plant-a/nodes/gw-1/status",
        "raft/plant-a/rpc/all/gw-1",
        "raft/plant-a/kv/door",
        "raft/plant-b/req/panel/a",
        "raft/plant-a/req/panel",
        "raft/plant-a/req/panel/",
        "raft/plant-a/req/panel2/a",
        "raft/plant-a/req/other/a",
        "raft/plant-a/req/panel/+",
        "raft/plant-a/req/panel/#",
        "raft/plant-a/req/panel/a\0",
        "raft/plant-a/req/panel/1/2/3/4/5",
        "$SYS/broker",
    ] {
        assert!(!check(topic), "{topic:?}");
    }
    assert!(!check(&format!(
        "raft/plant-a/req/panel/{}",
        "x".repeat(MAX_RESPONSE_TOPIC)
    )));
}
