//! A session with each broker at once: what is published goes out in all of them, what arrives in
//! any is taken, and none waits for another.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use mqtt::{Event, Events, PublishError, Publisher, Qos, SessionSetup};
use replica::{Link, Session};

use crate::connection::Mqtt;
use crate::error::{Error, Result};

/// The sessions of one process.
pub(crate) struct Links {
    links: Vec<One>,
    /// Where to look first for what has arrived: no broker's flood keeps another's messages waiting.
    turn: usize,
}

struct One {
    link: Link,
    publisher: Publisher,
    events: Events,
}

impl Links {
    /// Starts a session with each broker. `setup` is asked for at each CONNECT.
    pub(crate) fn connect(
        mqtt: Mqtt,
        setup: impl Fn(Session) -> SessionSetup + Clone + Send + 'static,
    ) -> Result<Links> {
        let brokers = mqtt.brokers.len();
        let mut links = Vec::with_capacity(brokers);
        for (place, options) in mqtt.brokers.into_iter().enumerate() {
            let link = Link::new(place).ok_or(Error::TooManyBrokers(brokers))?;
            let setup = setup.clone();
            let (publisher, events) = mqtt::connect(options, move |epoch| {
                setup(Session {
                    link,
                    epoch: epoch.0,
                })
            })?;
            links.push(One {
                link,
                publisher,
                events,
            });
        }
        Ok(Links { links, turn: 0 })
    }

    /// The next event of any session; `None` once one of them has ended for good. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Option<(Link, Event)> {
        if let [only] = self.links.as_mut_slice() {
            return Some((only.link, only.events.next().await?));
        }
        self.turn = (self.turn + 1) % self.links.len();
        let first = self.turn;
        let waits = self.links.iter_mut().map(|one| {
            let wait: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(one.events.next());
            (one.link, wait)
        });
        let mut waits: Vec<_> = waits.collect();
        waits.rotate_left(first);
        let (link, event) = poll_fn(|context| {
            let ready =
                waits
                    .iter_mut()
                    .find_map(|(link, wait)| match wait.as_mut().poll(context) {
                        Poll::Ready(event) => Some((*link, event)),
                        Poll::Pending => None,
                    });
            ready.map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        Some((link, event?))
    }

    /// The next event if one is there already.
    pub(crate) fn try_next(&mut self) -> Option<(Link, Event)> {
        for _ in 0..self.links.len() {
            self.turn = (self.turn + 1) % self.links.len();
            let one = &mut self.links[self.turn];
            if let Some(event) = one.events.try_next() {
                return Some((one.link, event));
            }
        }
        None
    }

    /// Publishes in every session that is up.
    ///
    /// # Errors
    /// When no session took it: what the first said that is up, or that none is.
    pub(crate) fn publish(
        &self,
        topic: impl Into<Arc<str>>,
        payload: &Bytes,
        qos: Qos,
        retain: bool,
    ) -> std::result::Result<(), PublishError> {
        let topic = topic.into();
        let mut outcome = Err(PublishError::Disconnected);
        for one in &self.links {
            let (topic, payload) = (Arc::clone(&topic), payload.clone());
            match one.publisher.publish(topic, payload, qos, retain) {
                Ok(()) => outcome = Ok(()),
                Err(PublishError::Disconnected) => {}
                Err(error) if outcome == Err(PublishError::Disconnected) => outcome = Err(error),
                Err(_) => {}
            }
        }
        outcome
    }

    /// Publishes in the session with one broker.
    ///
    /// # Errors
    /// When it did not take it.
    pub(crate) fn publish_over(
        &self,
        link: Link,
        topic: impl Into<Arc<str>>,
        payload: Bytes,
        qos: Qos,
        retain: bool,
    ) -> std::result::Result<(), PublishError> {
        let one = self.links.get(link.place());
        let one = one.ok_or(PublishError::Disconnected)?;
        one.publisher.publish(topic, payload, qos, retain)
    }

    /// Ends all sessions; see [`Publisher::disconnect`].
    pub(crate) async fn disconnect(&self) {
        let mut ends: Vec<_> = self
            .links
            .iter()
            .map(|one| Box::pin(one.publisher.disconnect()))
            .collect();
        poll_fn(|context| {
            ends.retain_mut(|end| end.as_mut().poll(context).is_pending());
            match ends.is_empty() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
}

/// Which sessions are up, and which brokers refused us for good.
#[derive(Default)]
pub(crate) struct Reached {
    up: Vec<Link>,
    refused: Vec<Link>,
    /// There was a session with one of them.
    ever: bool,
}

impl Reached {
    /// A session is up. True if it is the only one.
    pub(crate) fn connected(&mut self, link: Link) -> bool {
        self.ever = true;
        self.refused.retain(|other| *other != link);
        if !self.up.contains(&link) {
            self.up.push(link);
        }
        self.up.len() == 1
    }

    /// There is no session with it (any more). True if there was one.
    pub(crate) fn disconnected(&mut self, link: Link, for_good: bool) -> bool {
        let count = self.up.len();
        self.up.retain(|other| *other != link);
        if for_good && !self.refused.contains(&link) {
            self.refused.push(link);
        }
        self.up.len() < count
    }

    pub(crate) fn is_up(&self, link: Link) -> bool {
        self.up.contains(&link)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.up.is_empty()
    }

    /// Whether it is of no use to go on: each of so many brokers refused us for good, and none ever
    /// took us. Once it has worked, what is wrong now may be mended there.
    pub(crate) fn is_hopeless(&self, brokers: usize) -> bool {
        !self.ever && self.refused.len() == brokers
    }
}
