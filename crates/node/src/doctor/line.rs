//! One MQTT session of the examination. It does not come back: that it ended is what was to be known.

use std::time::Duration;

use bytes::Bytes;
use mqtt::{
    DisconnectReason, Event, Events, Incoming, Options, PublishError, Publisher, Qos, SessionSetup,
    Will,
};
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, Result};

pub(super) struct Line {
    publisher: Publisher,
    events: Events,
}

/// What a line tells.
pub(super) enum News {
    Message(Incoming),
    /// The broker said that it does not take what was published there.
    Refused {
        topic: String,
        detail: String,
    },
    /// The session has ended.
    Ended(DisconnectReason),
    /// Nothing before the deadline.
    Silence,
}

impl Line {
    /// Opens a session: one attempt. The outer error is of the options, the inner one the broker's.
    pub(super) async fn open(
        options: Options,
        client_id: String,
        will: Option<Will>,
        filters: &[String],
    ) -> Result<std::result::Result<Line, DisconnectReason>> {
        let subscriptions = crate::node::subscriptions(filters);
        let (publisher, mut events) = mqtt::connect(options, move |_| SessionSetup {
            client_id: client_id.clone(),
            will: will.clone(),
            subscriptions: subscriptions.clone(),
        })?;
        loop {
            match events.next().await {
                Some(Event::Connected { .. }) => return Ok(Ok(Line { publisher, events })),
                Some(Event::Disconnected { reason, .. }) => return Ok(Err(reason)),
                Some(_) => {}
                None => return Err(Error::Closed),
            }
        }
    }

    pub(super) fn say(
        &self,
        topic: &str,
        payload: Bytes,
        qos: Qos,
        retain: bool,
    ) -> std::result::Result<(), PublishError> {
        self.publisher.publish(topic, payload, qos, retain)
    }

    pub(super) async fn hear(&mut self, until: Instant) -> News {
        loop {
            match timeout_at(until, self.events.next()).await {
                Ok(Some(Event::Message(message))) => return News::Message(message),
                Ok(Some(Event::PublishRefused { topic, detail })) => {
                    let topic = topic.to_string();
                    return News::Refused { topic, detail };
                }
                Ok(Some(Event::Disconnected { reason, .. })) => return News::Ended(reason),
                Ok(Some(_)) => {}
                Ok(None) => {
                    return News::Ended(DisconnectReason::ClosedByBroker { detail: None });
                }
                Err(_) => return News::Silence,
            }
        }
    }

    /// Publishes at QoS 0 and waits for it to come back; how long that took.
    pub(super) async fn echo(
        &mut self,
        topic: &str,
        payload: Bytes,
        patience: Duration,
    ) -> std::result::Result<Option<Duration>, Lost> {
        let since = Instant::now();
        match self.say(topic, payload.clone(), Qos::AtMostOnce, false) {
            Ok(()) => {}
            Err(PublishError::TooLarge { .. }) => return Err(Lost::TooLarge),
            Err(_) => return Err(Lost::Ended),
        }
        loop {
            match self.hear(since + patience).await {
                News::Message(message) if message.topic == topic && message.payload == payload => {
                    return Ok(Some(since.elapsed()));
                }
                News::Message(_) | News::Refused { .. } => {}
                News::Ended(_) => return Err(Lost::Ended),
                News::Silence => return Ok(None),
            }
        }
    }

    /// Ends the session as a node does that is shut down; what was said is acknowledged first.
    pub(super) async fn close(self) {
        self.publisher.disconnect().await;
    }
}

/// Why something was not even tried to the end.
pub(super) enum Lost {
    /// The session has ended.
    Ended,
    /// The broker had said that it takes no packets of this size.
    TooLarge,
}
