//! Requests of any MQTT client, from the message that asks to the messages that answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mqtt::{Properties, Publisher, Qos};
use raft::Time;
use replica::{
    Admission, ApiAnswer, ApiError, ApiRequest, Cursor, KeyRange, Link, MAX_CORRELATION, Name,
    Question, RangeRequest, Senders, Transaction, WriteAccess, answer_topic, check_response_topic,
    request_sender,
};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout_at};

use super::Outward;
use super::copies::Copies;
use crate::error::{Error, Result};
use crate::kv::Kv;
use crate::status::Shared;

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How many requests, watches not counted, are worked on at once.
const MAX_WORKING: usize = 64;

/// How many watches there may be, and of one sender.
const MAX_WATCHES: usize = 256;
const MAX_WATCHES_OF_ONE: usize = 16;

/// How often, and how long apart, an answer of a watch is tried on a full queue.
const TRIES: u32 = 50;
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// Answers requests.
pub(super) struct Requests {
    root: String,
    access: WriteAccess,
    senders: Senders,
    publisher: Publisher,
    kv: Kv,
    shared: Arc<Shared>,
    link: Link,
    copies: Arc<Copies>,
    working: JoinSet<()>,
    watching: JoinSet<()>,
    watches: BTreeMap<Watcher, AbortHandle>,
}

/// Who asked to watch: asking again in the same words takes the place of the first.
type Watcher = (Name, Arc<str>, Option<Bytes>, Option<String>);

impl Requests {
    pub(super) fn new(outward: &Outward, access: WriteAccess, publisher: Publisher) -> Requests {
        Requests {
            root: outward.root.clone(),
            access,
            senders: Senders::default(),
            publisher,
            kv: outward.kv.clone().with_timeout(TIMEOUT),
            shared: Arc::clone(&outward.shared),
            link: outward.link,
            copies: Arc::clone(&outward.copies),
            working: JoinSet::new(),
            watching: JoinSet::new(),
            watches: BTreeMap::new(),
        }
    }

    pub(super) fn on_message(&mut self, message: mqtt::Incoming, now: Time) {
        let is_request = request_sender(&self.root, &message.topic).is_some() && !message.retained;
        if is_request && self.copies.is_copy(&message, self.link, now) {
            return; // It is answered where it came first.
        }
        let mqtt::Incoming {
            topic,
            payload,
            retained,
            properties,
        } = message;
        // One that the broker kept would be done again by every leader to come.
        let Some(from) = request_sender(&self.root, &topic).filter(|_| !retained) else {
            return;
        };
        let (reply, wrong) = self.reply(&from, properties);
        match self.senders.admit(&from, payload.len(), now) {
            Admission::Admitted => {}
            Admission::Busy => return self.refuse(&reply, too_often(), None),
            Admission::Ignored => return self.shared.count_rejection(REFUSED_OFTEN.to_owned()),
        }
        if let Some(wrong) = wrong {
            return self.refuse(&reply, wrong, None);
        }
        match ApiRequest::read(&payload, &self.access) {
            Ok(request) => self.begin(from, request, reply),
            Err(answer) => {
                self.shared
                    .count_rejection("a request that cannot be made".to_owned());
                reply.send(answer);
            }
        }
    }

    /// Where the answer goes, and what is wrong with where it was to go.
    fn reply(&self, from: &Name, properties: Properties) -> (Reply, Option<ApiError>) {
        let Properties {
            response_topic,
            correlation_data,
        } = properties;
        let usual = answer_topic(&self.root, from);
        let (topic, mut wrong) = match response_topic {
            None => (usual, None),
            Some(topic) => match check_response_topic(&self.root, from, &topic) {
                Ok(()) => (topic, None),
                Err(error) => (usual, Some(error)),
            },
        };
        let fits = |data: &Bytes| data.len() <= MAX_CORRELATION;
        if !correlation_data.as_ref().is_none_or(fits) {
            let why = format!("correlation data has at most {MAX_CORRELATION} bytes");
            wrong = Some(ApiError::new("bad_request", why));
        }
        let reply = Reply {
            publisher: self.publisher.clone(),
            topic: topic.into(),
            correlation: correlation_data.filter(fits),
        };
        (reply, wrong)
    }

    fn refuse(&self, reply: &Reply, error: ApiError, id: Option<&str>) {
        self.shared
            .count_rejection(format!("a request: {}", error.code()));
        reply.send(error.into_answer(id));
    }

    fn begin(&mut self, from: Name, request: ApiRequest, reply: Reply) {
        let ApiRequest { id, question } = request;
        while self.working.try_join_next().is_some() {}
        while self.watching.try_join_next().is_some() {}
        self.watches.retain(|_, watch| !watch.is_finished());
        if let Question::Watch {
            range,
            from: cursor,
            lasts,
        } = question
        {
            return self.watch(from, id, reply, (range, cursor, lasts));
        }
        if self.working.len() >= MAX_WORKING {
            return self.refuse(&reply, too_many(), id.as_deref());
        }
        let (kv, shared) = (self.kv.clone(), Arc::clone(&self.shared));
        self.working.spawn(async move {
            let done = answer(&kv, &shared, question).await;
            let answer = done.unwrap_or_else(|error| error.into_answer(None));
            reply.send(answer.to(id.as_deref()));
        });
    }

    fn watch(
        &mut self,
        from: Name,
        id: Option<String>,
        reply: Reply,
        what: (KeyRange, Option<Cursor>, Duration),
    ) {
        let topic = Arc::clone(&reply.topic);
        let watcher = (from, topic, reply.correlation.clone(), id.clone());
        if let Some(before) = self.watches.remove(&watcher) {
            before.abort();
        }
        let of_one = self.watches.keys().filter(|other| other.0 == watcher.0);
        if self.watches.len() >= MAX_WATCHES || of_one.count() >= MAX_WATCHES_OF_ONE {
            return self.refuse(&reply, too_many(), id.as_deref());
        }
        let kv = self.kv.clone();
        let task = self.watching.spawn(async move {
            if let Err(error) = watch(&kv, &reply, id.as_deref(), what).await {
                reply.send_in_turn(error.into_answer(id.as_deref())).await;
            }
        });
        self.watches.insert(watcher, task);
    }

    pub(super) fn end_watches(&mut self) {
        self.watches.clear();
        self.watching.abort_all();
    }
}

const REFUSED_OFTEN: &str = "a request: too many to answer";

fn too_often() -> ApiError {
    ApiError::new("busy", "too many requests: ask again in a second")
}

fn too_many() -> ApiError {
    ApiError::new(
        "busy",
        "too many requests or watches are under way: ask again later",
    )
}

/// Where an answer goes.
struct Reply {
    publisher: Publisher,
    topic: Arc<str>,
    correlation: Option<Bytes>,
}

impl Reply {
    /// Sends an answer; whoever does not get it asks again. False if there was no room.
    fn send(&self, answer: ApiAnswer) -> bool {
        self.publish(answer.into_payload())
    }

    /// The same, but waits for room: what follows would make no sense without it. False in vain.
    async fn send_in_turn(&self, answer: ApiAnswer) -> bool {
        let payload = answer.into_payload();
        for _ in 0..TRIES {
            if self.publish(payload.clone()) {
                return true;
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
        false
    }

    fn publish(&self, payload: Bytes) -> bool {
        let topic = Arc::clone(&self.topic);
        let properties = Properties {
            response_topic: None,
            correlation_data: self.correlation.clone(),
        };
        let publisher = &self.publisher;
        publisher
            .publish_with(topic, payload, Qos::AtLeastOnce, false, properties)
            .is_ok()
    }
}

/// Answers anything but a watch.
async fn answer(
    kv: &Kv,
    shared: &Shared,
    question: Question,
) -> std::result::Result<ApiAnswer, ApiError> {
    let answered = match question {
        Question::Get(key) => read(kv, &key)
            .await
            .map(|found| ApiAnswer::got(&key, &found)),
        Question::List(request) => {
            let found = kv.range(request.clone()).await;
            found.map(|found| ApiAnswer::listed(&request, &found))
        }
        Question::Write { key, transaction } => return write(kv, &key, transaction).await,
        Question::Leader => leader(kv, shared).await,
        Question::Members => kv
            .members()
            .await
            .map(|members| ApiAnswer::members(&members)),
        Question::Watch { .. } => Err(Error::Unexpected),
    };
    answered.map_err(in_words)
}

async fn read(kv: &Kv, key: &Bytes) -> Result<replica::RangeReading> {
    kv.range(RangeRequest::all(KeyRange::Key(key.clone())))
        .await
}

async fn write(
    kv: &Kv,
    key: &Bytes,
    transaction: Transaction,
) -> std::result::Result<ApiAnswer, ApiError> {
    let done = kv.transact(transaction).await.map_err(in_words)?;
    if done.succeeded {
        return Ok(ApiAnswer::written(key, &done));
    }
    let request = RangeRequest {
        keys_only: true,
        ..RangeRequest::all(KeyRange::Key(key.clone()))
    };
    let found = kv.range(request).await.map_err(in_words)?;
    ApiAnswer::unwritten(key, &found)
}

/// Who leads, for certain: a majority says so after the question came.
async fn leader(kv: &Kv, shared: &Shared) -> Result<ApiAnswer> {
    let members = kv.members().await?;
    let status = shared.status.borrow();
    let metric = match status.leader.as_ref() == Some(&members.leader) {
        true => status.leader_metric,
        false => None,
    };
    Ok(ApiAnswer::leader(&members.leader, status.term, metric))
}

/// Tells of changes until its time is over.
async fn watch(
    kv: &Kv,
    reply: &Reply,
    id: Option<&str>,
    (range, from, lasts): (KeyRange, Option<Cursor>, Duration),
) -> std::result::Result<(), ApiError> {
    let deadline = Instant::now() + lasts;
    let from = match from {
        Some(from) => from,
        None => Cursor::from(revision(kv).await.map_err(in_words)? + 1),
    };
    let mut changes = kv.watch_from(range, from);
    // Whoever asks learns at once that it is being told, and from where on.
    let mut told = from;
    let mut answers = ApiAnswer::watched(&[], told, told);
    loop {
        for answer in answers {
            if !reply.send_in_turn(answer.to(id)).await {
                return Ok(());
            }
        }
        match timeout_at(deadline, changes.next_batch()).await {
            Ok(events) => {
                let (events, previous) = (events.map_err(in_words)?, told);
                told = changes.cursor();
                answers = ApiAnswer::watched(&events, previous, told);
            }
            Err(_) => {
                let end = ApiAnswer::watch_ended(told, changes.cursor());
                reply.send_in_turn(end.to(id)).await;
                return Ok(());
            }
        }
    }
}

/// The state's revision, linearizably.
async fn revision(kv: &Kv) -> Result<u64> {
    let request = RangeRequest {
        count_only: true,
        ..RangeRequest::all(KeyRange::Key(Bytes::new()))
    };
    Ok(kv.range(request).await?.revision)
}

/// What a client reads of an error.
fn in_words(error: Error) -> ApiError {
    let code = match &error {
        Error::Compacted { oldest } => return ApiError::compacted(*oldest),
        Error::Unknown(_) => "unknown",
        Error::TimedOut(_) | Error::NotYet(..) => "timed_out",
        Error::TooLarge(_) => "too_large",
        Error::Busy => "busy",
        Error::Full(_) => "full",
        Error::Refused(_) => "refused",
        _ => "unavailable",
    };
    let message = match &error {
        Error::Unknown(_) => {
            "no answer in time: it may have been done or may yet be; read before you write again"
                .to_owned()
        }
        Error::TimedOut(_) => "no leader answered in time; nothing was changed".to_owned(),
        other => other.to_string(),
    };
    ApiError::new(code, message)
}
