//! A process that is there and nothing more: for fleets of thousands.
//!
//! A node that observes holds the whole state and hears every heartbeat; what ten thousand of them
//! receive grows with the square of their number. An [`Observer`] holds nothing and hears nothing but
//! its name called: it leaves a birth and a will, proves that it lives when it is asked, and stands
//! among those whom the cluster has agreed on, in the role `observer`. For the state it asks as a
//! [`Client`](crate::Client), which may share its MQTT session or not.
//!
//! ```text
//! birth, will ──► nodes/<me>/status       roll/<me>/+, roll/all/+ ──► RollCall
//!                                          roll/<from>/<me> ◄── Present, at a random moment
//! ```
//!
//! It has no disk: each process of it is a node of its own, with a key drawn at its start. Its name
//! is for its owner to keep unique: of two processes of one name, the first stays.

use std::time::Duration;

use bytes::Bytes;
use raft::{NodeKey, Time};

use crate::endpoint::{Endpoint, Publish};
use crate::keys::{Incarnation, KeyRing, Nonces};
use crate::link::Session;
use crate::name::{Metric, Name};
use crate::presence::{Condition, OBSERVER, Status};
use crate::replica::SessionPlan;
use crate::replica::roll_call::draw_in;
use crate::tags::Tags;
use crate::topic::{PrefixError, Topic, Topics};
use crate::wire::{Body, Present};

/// How many answers wait for their moment.
const MAX_ANSWERS: usize = 4;

/// How often a birth is put back at most, where someone else keeps replacing it.
const PUT_BACK: Duration = Duration::from_secs(1);

/// What happened to an [`Observer`].
#[derive(Clone, Debug)]
pub enum ObserverInput {
    /// A session with the broker is up and subscribed. `epoch` grows with each, from 1.
    Connected {
        /// Which session of this process.
        epoch: u64,
    },
    /// The session is gone.
    Disconnected,
    /// The broker delivered a message.
    Received {
        /// Its topic.
        topic: String,
        /// Its payload.
        payload: Bytes,
    },
    /// The metric changed.
    SetMetric(Metric),
    /// Time has passed.
    Tick,
}

/// A process that is there and nothing more. Its module draws how it works.
pub struct Observer {
    endpoint: Endpoint,
    metric: Metric,
    tags: Tags,
    epoch: Option<u64>,
    /// How many births it has published, each with something new.
    births: u64,
    /// The birth is to be published.
    birth_due: bool,
    birth_at: Time,
    answers: Vec<(Time, Name, u64)>,
}

impl Observer {
    /// An observer of `cluster`. `seed` must be unpredictable.
    ///
    /// # Errors
    /// When the prefix cannot stand in a topic.
    pub fn new(
        prefix: &str,
        cluster: &Name,
        name: Name,
        ring: KeyRing,
        tags: Tags,
        seed: [u8; 32],
    ) -> Result<Observer, PrefixError> {
        let topics = Topics::new(prefix, cluster)?;
        let mut nonces = Nonces::new(&seed);
        let mut sixteen = || {
            let (high, low) = (nonces.draw(), nonces.draw());
            (u128::from(high) << 64) | u128::from(low)
        };
        let (key, incarnation) = (NodeKey(sixteen()), Incarnation(sixteen().to_be_bytes()));
        Ok(Observer {
            endpoint: Endpoint::new(name, key, incarnation, topics, ring, nonces),
            metric: Metric::default(),
            tags,
            epoch: None,
            births: 0,
            birth_due: false,
            birth_at: Time(0),
            answers: Vec::new(),
        })
    }

    /// Client id and will of each session with the broker.
    pub fn session_plan(&self) -> SessionPlan {
        SessionPlan::of(&self.endpoint)
    }

    /// The topic filters to subscribe to.
    pub fn subscriptions(&self) -> [String; 3] {
        let Endpoint { name, topics, .. } = &self.endpoint;
        let [all, own] = topics.roll_subscriptions(name);
        [all, own, topics.status(name)]
    }

    /// Takes what has happened by `now` and returns what is to be published, in order.
    pub fn step(
        &mut self,
        inputs: impl IntoIterator<Item = ObserverInput>,
        now: Time,
    ) -> Vec<Publish> {
        for input in inputs {
            self.take(input, now);
        }
        let mut out = Vec::new();
        let Some(epoch) = self.epoch else {
            return out;
        };
        if self.birth_due && now >= self.birth_at {
            self.birth_due = false;
            self.birth_at = now + PUT_BACK;
            out.push(Publish {
                topic: self.endpoint.topics.status(&self.endpoint.name),
                payload: self.birth(epoch),
                retain: true,
            });
        }
        let due = self.answers.extract_if(.., |(at, ..)| *at <= now);
        let due: Vec<_> = due.collect();
        for (_, to, echo) in due {
            let birth = self.birth(epoch);
            let present = Body::Present(Present { echo, birth });
            self.endpoint.call(Some(&to), &present);
        }
        out.append(&mut self.endpoint.take_out());
        out
    }

    /// When to step with [`ObserverInput::Tick`] if nothing happens before.
    pub fn next_deadline(&self) -> Option<Time> {
        self.epoch?;
        let birth = self.birth_due.then_some(self.birth_at);
        let answers = self.answers.iter().map(|(at, ..)| *at);
        answers.chain(birth).min()
    }

    fn take(&mut self, input: ObserverInput, now: Time) {
        match input {
            ObserverInput::Connected { epoch } => {
                self.epoch = Some(epoch);
                self.births += 1;
                self.birth_due = true;
                self.birth_at = now;
            }
            ObserverInput::Disconnected => {
                self.epoch = None;
                self.answers.clear();
            }
            ObserverInput::Received { topic, payload } => self.on_received(&topic, &payload, now),
            ObserverInput::SetMetric(metric) => {
                if metric != self.metric {
                    self.metric = metric;
                    self.births += 1;
                    self.birth_due = true;
                }
            }
            ObserverInput::Tick => {}
        }
    }

    fn on_received(&mut self, topic: &str, payload: &Bytes, now: Time) {
        let Some(topic) = self.endpoint.parse(topic) else {
            return;
        };
        if let Topic::Status { node } = &topic {
            let epoch = self.epoch.unwrap_or_default();
            let ours = *node == self.endpoint.name;
            self.birth_due |= ours && *payload != self.birth(epoch);
            return;
        }
        let Ok(Some(incoming)) = self.endpoint.receive_call(&topic, payload) else {
            return;
        };
        if let Body::RollCall(call) = incoming.body
            && self.answers.len() < MAX_ANSWERS
        {
            let at = now + draw_in(&mut self.endpoint.nonces, call.window_ms);
            self.answers.push((at, incoming.from, call.challenge));
        }
    }

    fn birth(&self, epoch: u64) -> Bytes {
        let condition = Condition {
            role: OBSERVER,
            term: 0,
            metric: self.metric,
            tags: self.tags.clone(),
        };
        Status::online(
            &self.endpoint.ring,
            self.endpoint.speaker(Session::first(epoch)),
            self.births,
            &condition,
        )
    }
}
