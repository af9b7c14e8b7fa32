//! What any MQTT client may ask of a cluster, as JSON, and what it is answered: docs/mqtt-api.md.
//!
//! Whoever the broker lets publish may send anything here, with no key of the cluster. So this is
//! the whole of what such a client can do: read keys that are not the cluster's own, and write below
//! prefixes that the operator has listed, never under `_/` and never a key that goes with somebody's
//! lease. There is no clock and no state in here; how often one may ask is the caller's to bound.

use std::ops::RangeInclusive;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value as Json, json};

use crate::name::Name;
use crate::state::{
    Action, ActionResult, Comparison, Condition, Cursor, KeyEvent, KeyRange, KeyValue, LeaseId,
    RESERVED, RangeReading, RangeRequest, Target, Transacted, Transaction,
};
use crate::wire::{MAX_KEY, MAX_VALUE, Members, Value};

/// The longest request, in bytes: one that puts the largest value fits, whatever its bytes are.
pub const MAX_REQUEST: usize = 96 << 10;

/// About the longest answer, in bytes; what does not fit is left for the next.
pub const MAX_ANSWER: usize = 96 << 10;

/// The longest correlation data that comes back, in bytes.
pub const MAX_CORRELATION: usize = 256;

/// The longest `id` that comes back, in bytes.
pub const MAX_REQUEST_ID: usize = 128;

/// The longest topic that is answered on, in bytes.
pub const MAX_RESPONSE_TOPIC: usize = 256;

/// How long a watch lasts, in seconds.
pub const WATCH_SECONDS: RangeInclusive<u64> = 1..=300;

/// How long it lasts where nothing is said, in seconds.
const DEFAULT_WATCH_SECONDS: u64 = 60;

/// AWS IoT takes no more in a topic.
const MAX_SLASHES: usize = 7;

// Topics.

/// Which topics requests come on: below `root`, one per sender.
pub fn request_filter(root: &str) -> String {
    format!("{root}/req/+")
}

/// Whose request a topic says it is.
pub fn request_sender(root: &str, topic: &str) -> Option<Name> {
    let from = topic.strip_prefix(root)?.strip_prefix("/req/")?;
    Name::new(from).ok()
}

/// Where a request is answered that does not say where.
pub fn answer_topic(root: &str, from: &Name) -> String {
    format!("{root}/req/{from}/answer")
}

/// Checks where a request wants its answer: below its own topic and nowhere else. Else anyone who may
/// ask could have this node publish, with its rights, where only nodes may: on `rpc/`, `leader`, or
/// another cluster's topics.
///
/// # Errors
/// When it lies elsewhere, is longer than [`MAX_RESPONSE_TOPIC`] or deeper than seven slashes.
pub fn check_response_topic(root: &str, from: &Name, topic: &str) -> Result<(), ApiError> {
    let below = topic
        .strip_prefix(root)
        .and_then(|rest| rest.strip_prefix("/req/"))
        .and_then(|rest| rest.strip_prefix(from.as_str()))
        .and_then(|rest| rest.strip_prefix('/'));
    let fits = topic.len() <= MAX_RESPONSE_TOPIC && topic.matches('/').count() <= MAX_SLASHES;
    let plain = |rest: &str| !rest.is_empty() && !rest.contains(['+', '#', '\0']);
    match below.is_some_and(plain) && fits {
        true => Ok(()),
        false => Err(ApiError::new(
            "bad_request",
            format!(
                "an answer goes below {root}/req/{from}/, at most {MAX_RESPONSE_TOPIC} bytes and {MAX_SLASHES} slashes long"
            ),
        )),
    }
}

// Questions.

/// Below which keys such clients may write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteAccess {
    prefixes: Vec<Bytes>,
}

impl WriteAccess {
    /// They may only read.
    pub fn read_only() -> WriteAccess {
        WriteAccess::default()
    }

    /// They may write keys that begin with one of these; an empty one is left out, since it would
    /// give them everything.
    pub fn below(prefixes: impl IntoIterator<Item = impl Into<Bytes>>) -> WriteAccess {
        let prefixes = prefixes.into_iter().map(Into::into);
        WriteAccess {
            prefixes: prefixes
                .filter(|prefix: &Bytes| !prefix.is_empty())
                .collect(),
        }
    }

    fn check(&self, key: &Bytes) -> Result<(), ApiError> {
        if self.prefixes.is_empty() {
            return Err(ApiError::new(
                "read_only",
                "requests may only read here: no node lists a prefix to write below",
            ));
        }
        let listed = self.prefixes.iter().any(|prefix| key.starts_with(prefix));
        match listed && !key.starts_with(RESERVED) {
            true => Ok(()),
            false => Err(ApiError::new(
                "forbidden",
                "requests may not write this key: it begins with none of the listed prefixes",
            )),
        }
    }
}

/// A request as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiRequest {
    /// What the client calls it; comes back with the answer.
    pub id: Option<String>,
    /// What it asks.
    pub question: Question,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// A key.
    Get(Bytes),
    /// Keys that begin alike.
    List(RangeRequest),
    /// A change of one key.
    Write {
        /// Which.
        key: Bytes,
        /// The change, which is not made to a key with a lease.
        transaction: Transaction,
    },
    /// The changes of a range for a while.
    Watch {
        /// Of which keys.
        range: KeyRange,
        /// From where on; `None`: from now.
        from: Option<Cursor>,
        /// For how long.
        lasts: Duration,
    },
    /// Who leads.
    Leader,
    /// Who belongs to the cluster.
    Members,
}

impl ApiRequest {
    /// Reads a request and checks whether it may be made.
    ///
    /// # Errors
    /// What is wrong with it, as it is to be answered: with the request's own `id` where it has one.
    pub fn read(payload: &[u8], access: &WriteAccess) -> Result<ApiRequest, Answer> {
        if payload.len() > MAX_REQUEST {
            let why = format!("a request has at most {MAX_REQUEST} bytes");
            return Err(ApiError::new("too_large", why).into_answer(None));
        }
        let read: Result<Map<String, Json>, _> = serde_json::from_slice(payload);
        let mut fields = read.map_err(|error| ApiError::bad(error).into_answer(None))?;
        let id = match fields.remove("id") {
            None => None,
            Some(Json::String(id)) if id.len() <= MAX_REQUEST_ID => Some(id),
            Some(_) => {
                let why = format!("an id is a text of at most {MAX_REQUEST_ID} bytes");
                return Err(ApiError::bad(why).into_answer(None));
            }
        };
        match Question::of(fields, access) {
            Ok(question) => Ok(ApiRequest { id, question }),
            Err(error) => Err(error.into_answer(id.as_deref())),
        }
    }
}

impl Question {
    fn of(mut fields: Map<String, Json>, access: &WriteAccess) -> Result<Question, ApiError> {
        let op = match fields.remove("op") {
            Some(Json::String(op)) => op,
            _ => return Err(ApiError::bad("what is asked stands in \"op\"")),
        };
        match op.as_str() {
            "get" => form::<KeyForm>(fields)?.get(),
            "list" => form::<ListForm>(fields)?.list(),
            "put" => form::<PutForm>(fields)?.put(access),
            "delete" => form::<DeleteForm>(fields)?.delete(access),
            "cas" => form::<SwapForm>(fields)?.swap(access),
            "watch" => form::<WatchForm>(fields)?.watch(),
            "leader" => form::<NoForm>(fields).map(|NoForm {}| Question::Leader),
            "members" => form::<NoForm>(fields).map(|NoForm {}| Question::Members),
            _ => Err(ApiError::bad(
                "\"op\" is get, list, put, delete, cas, watch, leader or members",
            )),
        }
    }
}

fn form<T: DeserializeOwned>(fields: Map<String, Json>) -> Result<T, ApiError> {
    serde_json::from_value(Json::Object(fields)).map_err(ApiError::bad)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoForm {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyForm {
    key: Option<String>,
    key_base64: Option<String>,
}

impl KeyForm {
    fn get(self) -> Result<Question, ApiError> {
        Ok(Question::Get(key(self.key, self.key_base64)?))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListForm {
    prefix: Option<String>,
    prefix_base64: Option<String>,
    after: Option<String>,
    after_base64: Option<String>,
    #[serde(default)]
    limit: u32,
    #[serde(default)]
    keys_only: bool,
    #[serde(default)]
    count_only: bool,
}

impl ListForm {
    fn list(self) -> Result<Question, ApiError> {
        let after = bytes("after", self.after, self.after_base64)?;
        if let Some(after) = &after {
            key_fits(after)?;
        }
        Ok(Question::List(RangeRequest {
            range: prefix(self.prefix, self.prefix_base64)?,
            after: after.map(Value),
            limit: self.limit,
            keys_only: self.keys_only,
            count_only: self.count_only,
        }))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PutForm {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    if_modified: Option<u64>,
}

impl PutForm {
    fn put(self, access: &WriteAccess) -> Result<Question, ApiError> {
        let key = key(self.key, self.key_base64)?;
        let value = bytes("value", self.value, self.value_base64)?;
        let value = value.ok_or_else(|| ApiError::bad("a put has a \"value\""))?;
        write(access, key, modified(self.if_modified), Some(value))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeleteForm {
    key: Option<String>,
    key_base64: Option<String>,
    if_modified: Option<u64>,
}

impl DeleteForm {
    fn delete(self, access: &WriteAccess) -> Result<Question, ApiError> {
        let key = key(self.key, self.key_base64)?;
        write(access, key, modified(self.if_modified), None)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SwapForm {
    key: Option<String>,
    key_base64: Option<String>,
    #[serde(default, deserialize_with = "said")]
    expected: Option<Option<String>>,
    expected_base64: Option<String>,
    #[serde(default, deserialize_with = "said")]
    value: Option<Option<String>>,
    value_base64: Option<String>,
}

impl SwapForm {
    fn swap(self, access: &WriteAccess) -> Result<Question, ApiError> {
        let key = key(self.key, self.key_base64)?;
        let expected = nullable("expected", self.expected, self.expected_base64)?;
        let value = nullable("value", self.value, self.value_base64)?;
        let target = match expected {
            Some(expected) => Target::Value(expected),
            None => Target::Version(0),
        };
        write(access, key, Some(target), value)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WatchForm {
    key: Option<String>,
    key_base64: Option<String>,
    prefix: Option<String>,
    prefix_base64: Option<String>,
    from: Option<u64>,
    #[serde(default)]
    skip: u32,
    seconds: Option<u64>,
}

impl WatchForm {
    fn watch(self) -> Result<Question, ApiError> {
        let one = bytes("key", self.key, self.key_base64)?;
        let range = match one {
            Some(_) if self.prefix.is_some() || self.prefix_base64.is_some() => {
                return Err(ApiError::bad("a watch has a \"key\" or a \"prefix\""));
            }
            Some(key) => KeyRange::Key(readable(key)?),
            None => prefix(self.prefix, self.prefix_base64)?,
        };
        let seconds = self.seconds.unwrap_or(DEFAULT_WATCH_SECONDS);
        if !WATCH_SECONDS.contains(&seconds) {
            let (least, most) = (WATCH_SECONDS.start(), WATCH_SECONDS.end());
            let why = format!("a watch lasts {least} to {most} seconds; ask again to go on");
            return Err(ApiError::bad(why));
        }
        let skip = self.skip;
        Ok(Question::Watch {
            range,
            from: self.from.map(|revision| Cursor { revision, skip }),
            lasts: Duration::from_secs(seconds),
        })
    }
}

/// A field that says `null` is not one that is missing.
fn said<'de, D: Deserializer<'de>>(field: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(field).map(Some)
}

fn key(text: Option<String>, base64: Option<String>) -> Result<Bytes, ApiError> {
    let key = bytes("key", text, base64)?;
    readable(key.ok_or_else(|| ApiError::bad("which key stands in \"key\""))?)
}

fn prefix(text: Option<String>, base64: Option<String>) -> Result<KeyRange, ApiError> {
    let prefix = bytes("prefix", text, base64)?;
    let prefix = prefix.ok_or_else(|| ApiError::bad("which keys stands in \"prefix\""))?;
    Ok(KeyRange::Prefix(readable(prefix)?))
}

/// Locks, leases and presence are not for whoever may ask without a key of the cluster.
fn readable(key: Bytes) -> Result<Bytes, ApiError> {
    key_fits(&key)?;
    match key.starts_with(RESERVED) {
        false => Ok(key),
        true => Err(ApiError::new(
            "forbidden",
            "keys that begin with _/ belong to the cluster itself",
        )),
    }
}

fn key_fits(key: &Bytes) -> Result<(), ApiError> {
    match key.len() <= MAX_KEY {
        true => Ok(()),
        false => Err(ApiError::new(
            "too_large",
            format!("a key has at most {MAX_KEY} bytes"),
        )),
    }
}

fn bytes(
    name: &str,
    text: Option<String>,
    base64: Option<String>,
) -> Result<Option<Bytes>, ApiError> {
    match (text, base64) {
        (None, None) => Ok(None),
        (Some(text), None) => Ok(Some(text.into())),
        (None, Some(base64)) => match BASE64.decode(base64) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) => Err(ApiError::bad(format!("{name}_base64: {error}"))),
        },
        (Some(_), Some(_)) => Err(ApiError::bad(format!("{name} is said twice"))),
    }
}

fn nullable(
    name: &str,
    text: Option<Option<String>>,
    base64: Option<String>,
) -> Result<Option<Bytes>, ApiError> {
    match (text, base64) {
        (Some(None), None) => Ok(None),
        (text, base64) => match bytes(name, text.flatten(), base64)? {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(ApiError::bad(format!(
                "{name:?} is a text, or null for a key that is absent"
            ))),
        },
    }
}

fn modified(revision: Option<u64>) -> Option<Target> {
    revision.map(Target::Modified)
}

/// One key set or removed, if it goes with no lease and `target` is as it is said to be.
fn write(
    access: &WriteAccess,
    key: Bytes,
    target: Option<Target>,
    value: Option<Bytes>,
) -> Result<Question, ApiError> {
    access.check(&key)?;
    if value.as_ref().is_some_and(|value| value.len() > MAX_VALUE) {
        let why = format!("a value has at most {MAX_VALUE} bytes");
        return Err(ApiError::new("too_large", why));
    }
    let unleased = Target::Lease(LeaseId::NONE);
    let targets = [Some(unleased), target].into_iter().flatten();
    let conditions = targets.map(|target| Condition {
        key: key.clone(),
        target,
        comparison: Comparison::Equal,
    });
    let action = match value {
        Some(value) => Action::Put {
            key: key.clone(),
            value,
            lease: None,
        },
        None => Action::Delete(KeyRange::Key(key.clone())),
    };
    Ok(Question::Write {
        transaction: Transaction {
            conditions: conditions.collect(),
            then: vec![action],
            otherwise: Vec::new(),
        },
        key,
    })
}

// Answers.

/// An answer, one payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer(Map<String, Json>);

impl Answer {
    fn new() -> Answer {
        Answer(Map::new())
    }

    fn with(mut self, name: &str, value: impl Into<Json>) -> Answer {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    /// The same as an answer to the request that called itself so.
    pub fn to(self, id: Option<&str>) -> Answer {
        match id {
            Some(id) => self.with("id", id),
            None => self,
        }
    }

    /// As it is published.
    pub fn into_payload(self) -> Bytes {
        Json::Object(self.0).to_string().into()
    }

    /// A key as it was read; `None` where it is absent.
    pub fn got(asked: &Bytes, reading: &RangeReading) -> Answer {
        let answer = match reading.pairs.first() {
            Some(pair) => Answer(pair_json(pair, true)),
            None => {
                let mut absent = Map::new();
                insert_bytes(&mut absent, "key", asked);
                Answer(absent)
                    .with("value", Json::Null)
                    .with("modified", Json::Null)
            }
        };
        answer.with("revision", reading.revision)
    }

    /// What a list found: as many of them as one answer holds.
    pub fn listed(request: &RangeRequest, reading: &RangeReading) -> Answer {
        let answer = Answer::new().with("revision", reading.revision);
        if let Some(count) = reading.count {
            return answer.with("count", count);
        }
        let mut room = MAX_ANSWER;
        let pairs = reading.pairs.iter();
        let fitting = pairs.map_while(|pair| fit(pair_json(pair, !request.keys_only), &mut room));
        let pairs: Vec<Json> = fitting.collect();
        let more = reading.more || pairs.len() < reading.pairs.len();
        answer.with("more", more).with("pairs", pairs)
    }

    /// What became of a write whose conditions held.
    pub fn written(key: &Bytes, done: &Transacted) -> Answer {
        let removed_none = matches!(done.results.first(), Some(ActionResult::Deleted(0)));
        Answer::wrote(key, done.revision, !removed_none)
    }

    /// A write whose condition did not hold, told with the key as it was read afterwards.
    ///
    /// # Errors
    /// When it is because the key goes with a lease.
    pub fn unwritten(key: &Bytes, reading: &RangeReading) -> Result<Answer, ApiError> {
        let pair = reading.pairs.first();
        if pair.is_some_and(|pair| pair.lease != LeaseId::NONE) {
            return Err(ApiError::new(
                "forbidden",
                "this key goes with a lease: only whoever holds that may change it",
            ));
        }
        let modified = pair.map_or(0, |pair| pair.modified);
        Ok(Answer::wrote(key, reading.revision, false).with("modified", modified))
    }

    fn wrote(key: &Bytes, revision: u64, applied: bool) -> Answer {
        let mut object = Map::new();
        insert_bytes(&mut object, "key", key);
        Answer(object)
            .with("applied", applied)
            .with("revision", revision)
    }

    /// Changes that a watch has seen from `since` on, in as many answers as they need; the last of
    /// them says where to go on. Whoever was told to go on elsewhere than `since` has missed one.
    pub fn watched(events: &[KeyEvent], since: Cursor, next: Cursor) -> Vec<Answer> {
        let mut parts = Vec::new();
        let (mut part, mut room) = (Vec::new(), MAX_ANSWER);
        for event in events {
            let json = event_json(event);
            let json = fit(json.clone(), &mut room).unwrap_or_else(|| {
                parts.push(std::mem::take(&mut part));
                room = MAX_ANSWER;
                fit(json, &mut room).unwrap_or_default()
            });
            part.push(json);
        }
        parts.push(part);
        let count = parts.len();
        let answer = |(at, part): (usize, Vec<Json>)| {
            let answer = Answer::new().with("events", part);
            let answer = answer.with("since", cursor_json(since));
            let answer = match count {
                1 => answer,
                _ => answer.with("part", at + 1),
            };
            match at + 1 == count {
                true => answer.with("next", cursor_json(next)),
                false => answer,
            }
        };
        parts.into_iter().enumerate().map(answer).collect()
    }

    /// The last answer to a watch: it is over, and where to go on.
    pub fn watch_ended(since: Cursor, next: Cursor) -> Answer {
        let none: Vec<Json> = Vec::new();
        let answer = Answer::new().with("events", none).with("end", true);
        let answer = answer.with("since", cursor_json(since));
        answer.with("next", cursor_json(next))
    }

    /// Who leads, in which term, with which metric.
    pub fn leader(leader: &str, term: u64, metric: Option<f64>) -> Answer {
        let answer = Answer::new().with("leader", leader).with("term", term);
        answer.with("metric", metric)
    }

    /// Who belongs to the cluster.
    pub fn members(members: &Members) -> Answer {
        let listed = members.members.iter().map(|member| {
            json!({
                "node": member.name,
                "voter": member.voter,
                "witness": member.witness,
                "leaving": member.leaving,
                "heard": member.heard,
                "caught_up": member.caught_up,
            })
        });
        let answer = Answer::new().with("leader", members.leader.as_str());
        answer.with("members", listed.collect::<Vec<_>>())
    }
}

/// What went wrong, in the words of docs/mqtt-api.md.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    code: &'static str,
    message: String,
    oldest: Option<u64>,
}

impl ApiError {
    /// An error of this kind.
    pub fn new(code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError {
            code,
            message: message.into(),
            oldest: None,
        }
    }

    /// Changes before `oldest` are no longer kept.
    pub fn compacted(oldest: u64) -> ApiError {
        let message = "the changes before that revision are no longer kept: list anew and watch from the revision after the list's";
        ApiError {
            oldest: Some(oldest),
            ..ApiError::new("compacted", message)
        }
    }

    fn bad(why: impl ToString) -> ApiError {
        ApiError::new("bad_request", why.to_string())
    }

    /// Its word in the answer.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// As the answer to the request that called itself so.
    pub fn into_answer(self, id: Option<&str>) -> Answer {
        let ApiError {
            code,
            mut message,
            oldest,
        } = self;
        // Some of the words come from the request.
        let end = message.floor_char_boundary(300);
        message.truncate(end);
        let answer = Answer::new().with("error", code).with("message", message);
        let answer = match oldest {
            Some(oldest) => answer.with("oldest", oldest),
            None => answer,
        };
        answer.to(id)
    }
}

fn pair_json(pair: &KeyValue, with_value: bool) -> Map<String, Json> {
    let mut object = Map::new();
    insert_bytes(&mut object, "key", &pair.key);
    if with_value {
        insert_bytes(&mut object, "value", &pair.value);
    }
    object.insert("modified".to_owned(), pair.modified.into());
    object
}

fn event_json(event: &KeyEvent) -> Map<String, Json> {
    let mut object = Map::new();
    insert_bytes(&mut object, "key", event.key());
    match event {
        KeyEvent::Put(pair) => insert_bytes(&mut object, "value", &pair.value),
        KeyEvent::Delete { .. } => drop(object.insert("value".to_owned(), Json::Null)),
    }
    object.insert("revision".to_owned(), event.revision().into());
    object
}

/// As it goes into a request to watch on.
fn cursor_json(cursor: Cursor) -> Json {
    match cursor.skip {
        0 => json!({ "from": cursor.revision }),
        skip => json!({ "from": cursor.revision, "skip": skip }),
    }
}

/// Takes its room, if there is any; the first always has it.
fn fit(object: Map<String, Json>, room: &mut usize) -> Option<Json> {
    let json = Json::Object(object);
    let size = json.to_string().len() + 1;
    if size > *room && *room < MAX_ANSWER {
        return None;
    }
    *room = room.saturating_sub(size);
    Some(json)
}

/// Adds bytes under `name` as text, or under `<name>_base64` where they are none, or where JSON would
/// write the text longer than that: half a kilobyte of control characters as three.
fn insert_bytes(object: &mut Map<String, Json>, name: &str, bytes: &[u8]) {
    let base64_length = bytes.len().div_ceil(3) * 4;
    let text = std::str::from_utf8(bytes).ok();
    match text.filter(|text| escaped_length(text) <= base64_length.max(64)) {
        Some(text) => object.insert(name.to_owned(), text.into()),
        None => object.insert(format!("{name}_base64"), BASE64.encode(bytes).into()),
    };
}

/// How long JSON writes a text, without the quotes.
fn escaped_length(text: &str) -> usize {
    let length = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0C => 2,
        0..=0x1F => 6,
        _ => 1,
    };
    text.bytes().map(length).sum()
}

#[cfg(test)]
mod tests {
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
        let put =
            format!(r#"{{"op":"put","key_base64":"{key}","value_base64":"{value}","id":"7"}}"#);
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
                assert_eq!(answer.0["since"], json!({ "from": 3 }));
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
}
