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

    /// Changes that a watch has seen from `previous` on, in as many answers as they need; the last of
    /// them says where to go on. Whoever was told to go on elsewhere than `previous` has missed one.
    pub fn watched(events: &[KeyEvent], previous: Cursor, next: Cursor) -> Vec<Answer> {
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
            let answer = answer.with("previous", cursor_json(previous));
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
    pub fn watch_ended(previous: Cursor, next: Cursor) -> Answer {
        let none: Vec<Json> = Vec::new();
        let answer = Answer::new().with("events", none).with("end", true);
        let answer = answer.with("previous", cursor_json(previous));
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
mod tests;
