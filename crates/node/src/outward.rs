//! What a leader does for clients that are none of its cluster's: it answers requests of any MQTT
//! client and keeps a mirror of chosen keys (docs/mqtt-api.md).
//!
//! It does so in a session of its own, which lasts as long as it leads. So whoever floods the topics
//! of requests fills that session's queues and not those that carry consensus; followers hear
//! nothing of requests; and a new leader is told by the broker what is mirrored. To the node this is
//! one more user of its state, without any right that others do not have.

pub(crate) mod copies;
mod requests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mqtt::{PublishError, Publisher, Qos};
use raft::Role;
use replica::{KeyEvent, KeyRange, KeyValue, Link, Mirror, Retain, WriteAccess, request_filter};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::clock;
use crate::error::Error;
use crate::kv::Kv;
use crate::log::Log;
use crate::status::{Shared, Status};
use copies::Copies;
use requests::Requests;

/// How many pieces of news of the mirrored keys may wait.
const FEED: usize = 64;

/// How long until keys are read again after that failed.
const FEED_RETRY: Duration = Duration::from_secs(1);

/// How many kinds of trouble are told of.
const MAX_TOLD: usize = 64;

/// What a node is to others while it leads.
pub(crate) struct Outward {
    /// What requests may write; `None`: there are none.
    pub(crate) access: Option<WriteAccess>,
    /// Which keys are mirrored.
    pub(crate) prefixes: Vec<String>,
    pub(crate) options: mqtt::Options,
    /// Which of the node's brokers that is.
    pub(crate) link: Link,
    /// What came by any of them.
    pub(crate) copies: Arc<Copies>,
    /// `<prefix>/<cluster>`.
    pub(crate) root: String,
    /// What the client ids of its sessions begin with.
    pub(crate) client_id: String,
    /// A handle that does not keep the node running.
    pub(crate) kv: Kv,
    pub(crate) shared: Arc<Shared>,
    pub(crate) log: Log,
}

impl Outward {
    /// Goes on until it is dropped.
    pub(crate) async fn run(self) {
        let mut status = self.shared.status.subscribe();
        let mut told = BTreeSet::new();
        for leadership in 1_u64.. {
            until(&mut status, leads).await;
            self.lead(leadership, &mut status, &mut told).await;
        }
    }

    async fn lead(
        &self,
        leadership: u64,
        status: &mut watch::Receiver<Status>,
        told: &mut BTreeSet<String>,
    ) {
        let mut mirror = self.mirror();
        let (client_id, subscriptions) = (self.client_id.clone(), self.subscriptions(&mirror));
        let connected = mqtt::connect(self.options.clone(), move |epoch| mqtt::SessionSetup {
            client_id: format!("{client_id}-out-{leadership}-{}", epoch.0),
            will: None,
            subscriptions: subscriptions.clone(),
        });
        let (publisher, mut events) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                self.tell(told, format!("neither requests nor mirror: {error}"));
                return until(status, |status| !leads(status)).await;
            }
        };
        let access = self.access.clone();
        let mut requests = access.map(|access| Requests::new(self, access, publisher.clone()));
        let (mut feeds, mut news) = self.feeds(&mirror);
        loop {
            let wake_at = mirror.as_ref().and_then(Mirror::next_deadline);
            let timer = async {
                match wake_at {
                    Some(at) => tokio::time::sleep(at.since(clock::now())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = until(status, |status| !leads(status)) => break,
                event = events.next() => match event {
                    Some(event) => self.on_event(event, &mut mirror, &mut requests, told),
                    None => break,
                },
                Some(news) = news.recv() => news.take(&mut mirror),
                () = timer => {}
            }
            if let Some(mirror) = &mut mirror {
                self.bring_up_to_date(mirror, &publisher, told);
            }
        }
        feeds.abort_all();
        drop(requests);
        publisher.disconnect().await;
    }

    fn mirror(&self) -> Option<Mirror> {
        let mirror = || Mirror::new(&self.root, self.prefixes.iter().cloned());
        (!self.prefixes.is_empty()).then(mirror)
    }

    fn subscriptions(&self, mirror: &Option<Mirror>) -> Vec<(String, Qos)> {
        let requests = self.access.is_some().then(|| request_filter(&self.root));
        let mirror = mirror.as_ref().map(Mirror::filter);
        let filters = requests.into_iter().chain(mirror);
        filters.map(|filter| (filter, Qos::AtLeastOnce)).collect()
    }

    fn on_event(
        &self,
        event: mqtt::Event,
        mirror: &mut Option<Mirror>,
        requests: &mut Option<Requests>,
        told: &mut BTreeSet<String>,
    ) {
        let now = clock::now();
        match event {
            mqtt::Event::Connected { .. } => {
                told.clear();
                if let Some(mirror) = mirror {
                    mirror.on_connected(now);
                }
            }
            mqtt::Event::Message(message) => {
                let mqtt::Incoming {
                    topic,
                    payload,
                    retained,
                    properties: _,
                } = &message;
                let mirrored = mirror
                    .as_mut()
                    .is_some_and(|mirror| mirror.on_delivered(topic, payload, *retained, now));
                if let (false, Some(requests)) = (mirrored, requests) {
                    requests.on_message(message, now);
                }
            }
            mqtt::Event::Disconnected { reason, .. } => {
                self.tell(told, format!("neither requests nor mirror: {reason}"));
                if let Some(mirror) = mirror {
                    mirror.on_disconnected();
                }
                // Where an answer is lost, those that follow it would tell of a gap.
                if let Some(requests) = requests {
                    requests.end_watches();
                }
            }
            mqtt::Event::PublishRefused { topic, detail } => self.tell(
                told,
                format!("the broker refused a message on {topic}: {detail}; check its ACL"),
            ),
            _ => {}
        }
    }

    fn bring_up_to_date(
        &self,
        mirror: &mut Mirror,
        publisher: &Publisher,
        told: &mut BTreeSet<String>,
    ) {
        let now = clock::now();
        for Retain { topic, payload } in mirror.step(now) {
            match publisher.publish(Arc::clone(&topic), payload, Qos::AtLeastOnce, true) {
                Ok(()) => {}
                // It is tried less and less often, as if the broker did not keep it.
                Err(error @ PublishError::TooLarge { .. }) => {
                    self.tell(told, format!("{topic} is not mirrored: {error}"));
                }
                Err(_) => mirror.on_full(&topic, now),
            }
        }
    }

    /// Says each thing once in a session.
    fn tell(&self, told: &mut BTreeSet<String>, what: String) {
        if told.len() < MAX_TOLD && told.insert(what.clone()) {
            self.log.warn(&what);
        }
    }

    /// Tasks that read and watch what is mirrored.
    fn feeds(&self, mirror: &Option<Mirror>) -> (JoinSet<()>, mpsc::Receiver<News>) {
        let (sender, receiver) = mpsc::channel(FEED);
        let mut feeds = JoinSet::new();
        for (number, range) in mirror.iter().flat_map(Mirror::ranges).enumerate() {
            feeds.spawn(feed(self.kv.clone(), number, range, sender.clone()));
        }
        (feeds, receiver)
    }
}

fn leads(status: &Status) -> bool {
    status.role == Some(Role::Leader) && !status.witness
}

async fn until(status: &mut watch::Receiver<Status>, is_so: impl FnMut(&Status) -> bool) {
    // Whoever drops this has the sender, so that there is no end to wait for.
    let _ = status.wait_for(is_so).await;
}

/// News of mirrored keys.
enum News {
    Listed(usize, Vec<KeyValue>),
    Changed(Vec<KeyEvent>),
}

impl News {
    fn take(self, mirror: &mut Option<Mirror>) {
        let (Some(mirror), now) = (mirror, clock::now()) else {
            return;
        };
        match self {
            News::Listed(range, pairs) => mirror.on_listed(range, pairs, now),
            News::Changed(events) => events.iter().for_each(|event| mirror.on_change(event, now)),
        }
    }
}

/// Reads a range, tells of its changes, and reads it anew where that is no longer possible.
async fn feed(kv: Kv, number: usize, range: KeyRange, news: mpsc::Sender<News>) {
    loop {
        match follow(&kv, number, &range, &news).await {
            Error::Closed => return,
            Error::Compacted { .. } => {}
            _ => tokio::time::sleep(FEED_RETRY).await,
        }
    }
}

async fn follow(kv: &Kv, number: usize, range: &KeyRange, news: &mpsc::Sender<News>) -> Error {
    let (pairs, mut changes) = match kv.list_and_watch(range.clone()).await {
        Ok(listed) => listed,
        Err(error) => return error,
    };
    let mut next = News::Listed(number, pairs);
    loop {
        if news.send(next).await.is_err() {
            return Error::Closed;
        }
        next = match changes.next_batch().await {
            Ok(events) => News::Changed(events),
            Err(error) => return error,
        };
    }
}
