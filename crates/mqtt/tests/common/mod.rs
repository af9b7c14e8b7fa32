//! What the integration tests share: a session under test and ways to wait for its events.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part"
)]

use std::time::Duration;

use mqtt::{
    Bytes, DisconnectReason, Event, Events, Incoming, Options, Publisher, Qos, SessionEpoch,
    SessionSetup, Will,
};
use tokio::time::timeout;

/// Far beyond what anything here takes, so that a slow machine fails no test.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub struct Client {
    pub publisher: Publisher,
    pub events: Events,
}

pub fn options(url: &str) -> Options {
    let mut options = Options::new(url.parse().expect("a broker URL"));
    options.backoff_min = Duration::from_millis(10);
    options.backoff_max = Duration::from_millis(100);
    options
}

pub fn start(options: Options, name: &str, filters: &[&str]) -> Client {
    start_with(options, name, filters, None)
}

pub fn start_with(options: Options, name: &str, filters: &[&str], will: Option<Will>) -> Client {
    let name = name.to_owned();
    let filters: Vec<String> = filters.iter().map(|filter| (*filter).to_owned()).collect();
    let (publisher, events) = mqtt::connect(options, move |epoch| SessionSetup {
        client_id: format!("{name}-{}", epoch.0),
        will: will.clone(),
        subscriptions: filters
            .iter()
            .map(|filter| (filter.clone(), Qos::AtLeastOnce))
            .collect(),
    })
    .expect("valid options");
    Client { publisher, events }
}

pub fn will(topic: &str, payload: &'static str) -> Will {
    Will {
        topic: topic.to_owned(),
        payload: Bytes::from(payload),
        qos: Qos::AtLeastOnce,
        retain: false,
    }
}

impl Client {
    pub async fn event(&mut self) -> Event {
        timeout(DEADLINE, self.events.next())
            .await
            .expect("an event before the deadline")
            .expect("a running session")
    }

    /// The next `Connected`, whatever comes before it.
    pub async fn connected(&mut self) -> SessionEpoch {
        loop {
            if let Event::Connected { epoch } = self.event().await {
                return epoch;
            }
        }
    }

    /// The next `Disconnected`, whatever comes before it.
    pub async fn disconnected(&mut self) -> DisconnectReason {
        loop {
            if let Event::Disconnected { reason, .. } = self.event().await {
                return reason;
            }
        }
    }

    pub async fn message(&mut self) -> Incoming {
        loop {
            match self.event().await {
                Event::Message(message) => return message,
                Event::Connected { .. } => {}
                other => panic!("waiting for a message: {other:?}"),
            }
        }
    }

    pub fn send(&self, topic: &str, payload: impl Into<Bytes>, qos: Qos) {
        self.publisher
            .publish(topic, payload.into(), qos, false)
            .expect("room in the queue");
    }
}
