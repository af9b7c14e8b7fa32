//! A bare MQTT session: what the broker takes, without anything of ours above it, and tidying up.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use mqtt::{Event, Events, Publisher, Qos};
use tokio::time::{Instant, timeout_at};

use crate::connection::Mqtt;
use crate::error::{Error, Result};
use crate::node::{random, subscriptions};
use crate::withdraw::connected;

/// How long after its subscription a broker may take to deliver what it retains.
const RETAINED: Duration = Duration::from_millis(500);

/// One plain session with a broker, as a node has it, but for plain messages: to measure what a
/// publish takes, and to clear what a throw-away cluster leaves behind.
///
/// ```no_run
/// use std::time::{Duration, Instant};
/// use raft_over_mqtt::{Mqtt, Probe};
///
/// # async fn example() -> raft_over_mqtt::Result<()> {
/// let mqtt = Mqtt::new("mqtt://127.0.0.1:1883")?;
/// let mut probe = Probe::connect(mqtt, &["probe/1".to_owned()], Duration::from_secs(5)).await?;
/// let sent = Instant::now();
/// probe.publish("probe/1", "there and back")?;
/// probe.next().await?;
/// println!("{:?}", sent.elapsed());
/// # Ok(())
/// # }
/// ```
pub struct Probe {
    publisher: Publisher,
    events: Events,
}

/// What a [`Probe`] received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Bytes,
}

impl Probe {
    /// Connects, to the first broker of several, and subscribes to these topic filters.
    ///
    /// # Errors
    /// When no session came up in `timeout`; the reason is the broker's last.
    pub async fn connect(mqtt: Mqtt, filters: &[String], timeout: Duration) -> Result<Probe> {
        let id = u64::from_be_bytes(random()?);
        let filters = filters.to_vec();
        let (publisher, mut events) =
            mqtt::connect(mqtt.first(), move |epoch| mqtt::SessionSetup {
                client_id: format!("probe-{id:016x}-{}", epoch.0),
                will: None,
                subscriptions: subscriptions(&filters),
            })?;
        let mut last = None;
        match tokio::time::timeout(timeout, connected(&mut events, &mut last)).await {
            Ok(connected) => connected?,
            Err(_) => return Err(last.map_or(Error::TimedOut(timeout), Error::Connect)),
        }
        Ok(Probe { publisher, events })
    }

    /// Publishes at QoS 0, not retained; does not wait.
    ///
    /// # Errors
    /// [`Error::Busy`] while too much waits for the broker, [`Error::Closed`] without a session,
    /// [`Error::Refused`] if the message is larger than a packet may be.
    pub fn publish(&self, topic: &str, payload: impl Into<Bytes>) -> Result<()> {
        self.send(topic, payload.into(), Qos::AtMostOnce, false)
    }

    fn send(&self, topic: &str, payload: Bytes, qos: Qos, retain: bool) -> Result<()> {
        let sent = self.publisher.publish(topic, payload, qos, retain);
        sent.map_err(|error| match error {
            mqtt::PublishError::Full => Error::Busy,
            mqtt::PublishError::Disconnected => Error::Closed,
            other => Error::Refused(other.to_string()),
        })
    }

    /// The next message. Safe to cancel.
    ///
    /// # Errors
    /// [`Error::Connect`] when the session is lost: what was under way is, too.
    pub async fn next(&mut self) -> Result<Probed> {
        loop {
            match self.events.next().await {
                Some(Event::Message(message)) => {
                    return Ok(Probed {
                        topic: message.topic,
                        payload: message.payload,
                    });
                }
                Some(Event::Disconnected { reason, .. }) => return Err(Error::Connect(reason)),
                Some(_) => {}
                None => return Err(Error::Closed),
            }
        }
    }

    /// Ends the session.
    pub async fn close(self) {
        self.publisher.disconnect().await;
    }

    /// Clears every message that the broker, or any of several, retains below `root`, and returns how
    /// many there were. Whoever publishes there must have stopped: what comes later stays.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if there was still something after `timeout`, for each broker; else as [`Probe::connect`].
    pub async fn clear_retained(mqtt: Mqtt, root: &str, timeout: Duration) -> Result<usize> {
        let mut cleared = 0;
        for broker in mqtt.each_alone() {
            cleared += Probe::clear_at(broker, root, timeout).await?;
        }
        Ok(cleared)
    }

    async fn clear_at(mqtt: Mqtt, root: &str, timeout: Duration) -> Result<usize> {
        let deadline = Instant::now() + timeout;
        let mut cleared = BTreeSet::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::TimedOut(timeout));
            }
            let all = format!("{root}/#");
            let mut probe = Probe::connect(mqtt.clone(), &[all], left).await?;
            let found = probe.clear(deadline).await?;
            probe.close().await;
            if found.is_empty() {
                return Ok(cleared.len());
            }
            cleared.extend(found);
        }
    }

    /// Clears what arrives until it is quiet.
    async fn clear(&mut self, deadline: Instant) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        loop {
            let quiet = deadline.min(Instant::now() + RETAINED);
            match timeout_at(quiet, self.next()).await {
                Ok(Ok(Probed { topic, payload })) => {
                    if !payload.is_empty() {
                        match self.send(&topic, Bytes::new(), Qos::AtLeastOnce, true) {
                            // What finds no room is found again by the next look.
                            Ok(()) | Err(Error::Busy) => found.insert(topic),
                            Err(error) => return Err(error),
                        };
                    }
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(found),
            }
        }
    }
}
