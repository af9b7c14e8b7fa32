//! An MQTT broker and the links to it, with the faults that both have.
//!
//! What holds here holds for real brokers: one session delivers in order; QoS 0 may be lost and
//! is dropped first when a subscriber is slow; retained messages and wills are at QoS 1; what was
//! published comes back to its publisher if it subscribed; a broken session is noticed at once
//! where the connection was reset, and after one and a half keepalives where it fell silent. A
//! link that is cut holds what was sent, as TCP does, until it heals or the session ends.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use replica::{Input, Publish};

use crate::event::{Delivery, Event, MS, Micros, SECOND};
use crate::trace;
use crate::world::World;

/// How many messages wait in a socket before QoS 0 is dropped.
const MAX_HELD: usize = 1_000;

/// How many frames are kept to be played back.
const MAX_RECORDED: usize = 512;

/// The broker itself.
#[derive(Debug, Default)]
pub(crate) struct Broker {
    pub(crate) is_down: bool,
    pub(crate) retained: BTreeMap<String, Bytes>,
    saved: BTreeMap<String, Bytes>,
    pub(crate) sessions: BTreeMap<u64, Session>,
    last_session: u64,
    /// Who takes which topic: found once, until a session comes or goes.
    routes: BTreeMap<Rc<str>, Rc<[u64]>>,
    /// What passed through, for those who play it back.
    pub(crate) recorded: VecDeque<Recorded>,
}

/// A publish that passed through the broker.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) publish: Publish,
    pub(crate) from: usize,
    /// Which process of that host.
    pub(crate) life: u64,
}

impl Broker {
    fn open(&mut self, session: Session) -> u64 {
        self.routes.clear();
        self.last_session += 1;
        self.sessions.insert(self.last_session, session);
        self.last_session
    }

    fn close(&mut self, session: u64) -> Option<Session> {
        self.routes.clear();
        self.sessions.remove(&session)
    }

    fn close_all(&mut self) {
        self.routes.clear();
        self.sessions.clear();
    }

    /// A topic and the sessions that subscribed to it.
    fn route(&mut self, topic: &str) -> (Rc<str>, Rc<[u64]>) {
        if let Some((topic, takers)) = self.routes.get_key_value(topic) {
            return (topic.clone(), takers.clone());
        }
        let sessions = self.sessions.iter();
        let takers = sessions.filter(|(_, session)| session.subscribes(topic));
        let (topic, takers): (Rc<str>, Rc<[u64]>) =
            (topic.into(), takers.map(|(id, _)| *id).collect());
        self.routes.insert(topic.clone(), takers.clone());
        (topic, takers)
    }
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) host: usize,
    life: u64,
    filters: Vec<String>,
    will: Option<Publish>,
    /// Nothing arrives at the broker before this: a link delivers in order.
    up_after: Micros,
    /// Nothing arrives at the host before this.
    down_after: Micros,
    /// The same for each topic, where a network reorders topics.
    topic_after: BTreeMap<Rc<str>, Micros>,
    /// When the last of what is under way arrives.
    latest: Micros,
    under_way: u64,
}

impl Session {
    fn subscribes(&self, topic: &str) -> bool {
        self.filters.iter().any(|filter| matches(filter, topic))
    }
}

/// What a broker that was killed still retains when it is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retained {
    Kept,
    Lost,
    /// As it was when the broker last saved it.
    AsSaved,
}

/// A host's side of its link.
#[derive(Debug, Default)]
pub(crate) struct Link {
    pub(crate) session: Option<u64>,
    /// Sessions so far of this process.
    pub(crate) epoch: u64,
    pub(crate) cut_up: bool,
    pub(crate) cut_down: bool,
    /// Which fault cut it, until it has held or lost anything.
    pub(crate) cut_by: Option<&'static str>,
    /// What a cut link takes at QoS 0 is lost instead of held.
    pub(crate) loses: bool,
    held_up: VecDeque<Publish>,
    held_down: VecDeque<Delivery>,
    /// A slow subscriber: this much later.
    pub(crate) slow: Micros,
    /// Slow since a fault, and nothing has come late yet.
    pub(crate) slowed: bool,
}

impl Link {
    pub(crate) fn is_cut(&self) -> bool {
        self.cut_up || self.cut_down
    }

    /// The process ended or its session did: what was in the socket is gone.
    pub(crate) fn forget(&mut self) -> Option<u64> {
        self.held_up.clear();
        self.held_down.clear();
        self.session.take()
    }
}

impl World {
    // Sessions.

    pub(crate) fn connect(&mut self, host: usize, life: u64) {
        let now = self.now;
        let h = &self.hosts[host];
        if h.life != life || h.process.is_none() || h.link.session.is_some() {
            return;
        }
        if self.broker.is_down || h.link.is_cut() || h.paused {
            let at = now + self.rng.between(50 * MS, 1_000 * MS);
            return self.queue.push(at, Event::Connect { host, life });
        }
        let epoch = h.link.epoch + 1;
        self.take_over_own(host, life);
        let h = &self.hosts[host];
        let (will, filters) = h.session_needs(epoch);
        let id = self.broker.open(Session {
            host,
            life,
            filters,
            will,
            up_after: now,
            down_after: now,
            topic_after: BTreeMap::new(),
            latest: 0,
            under_way: 0,
        });
        let link = &mut self.hosts[host].link;
        link.session = Some(id);
        link.epoch = epoch;
        self.trace(host, || format!("session {id}, epoch {epoch}"));
        self.send_down(id, Delivery::Connected { epoch });
        let session = &self.broker.sessions[&id];
        let kept = self.broker.retained.iter();
        let kept = kept.filter(|(topic, _)| session.subscribes(topic));
        let messages: Vec<Delivery> = kept
            .map(|(topic, payload)| Delivery::Message {
                topic: topic.as_str().into(),
                payload: payload.clone(),
                retained: true,
                at_most_once: false,
                mark: None,
            })
            .collect();
        for message in messages {
            self.send_down(id, message);
        }
    }

    /// A client id that comes again takes its old session over, where the broker still has it;
    /// whether that publishes the will depends on broker and protocol version.
    fn take_over_own(&mut self, host: usize, life: u64) {
        let sessions = self.broker.sessions.iter();
        let old = sessions.filter(|(_, session)| session.host == host && session.life == life);
        let old: Vec<u64> = old.map(|(id, _)| *id).collect();
        for session in old {
            self.happened("old session taken over");
            if self.rng.chance(0.5) {
                self.broker_notices(session);
            } else {
                self.broker.close(session);
            }
        }
    }

    /// Someone else comes with a host's client id, so many times: the host loses its session at
    /// once, with or without its will.
    pub(crate) fn take_over(&mut self, host: usize, times: u64) -> bool {
        if times > 1 {
            let wait = self.rng.between(50 * MS, SECOND);
            let times = times - 1;
            self.queue
                .push(self.now + wait, Event::Rival { host, times });
        }
        let Some(session) = self.hosts[host].link.session else {
            return times > 1;
        };
        let Some(gone) = self.broker.close(session) else {
            return times > 1;
        };
        let at = self.now + self.one_way();
        self.queue.push(at, Event::HostNotices { host, session });
        if let (Some(will), true) = (gone.will, self.rng.chance(0.5)) {
            self.publish_will(host, will);
        }
        true
    }

    /// A host's side of a session ends.
    pub(crate) fn host_notices(&mut self, host: usize, session: u64) {
        let h = &mut self.hosts[host];
        if h.link.session != Some(session) {
            return;
        }
        h.link.forget();
        let life = h.life;
        self.trace(host, || format!("session {session} is gone"));
        self.arrive(host, Input::Disconnected(replica::Link::FIRST));
        let at = self.now + self.rng.between(20 * MS, 1_000 * MS);
        self.queue.push(at, Event::Connect { host, life });
    }

    /// The broker's side of a session ends, without a goodbye: its will is published.
    pub(crate) fn broker_notices(&mut self, session: u64) {
        let Some(gone) = self.broker.close(session) else {
            return;
        };
        let host = gone.host;
        if self.hosts[host].link.session == Some(session) && !self.hosts[host].link.cut_down {
            let at = self.now + self.one_way();
            self.queue.push(at, Event::HostNotices { host, session });
        }
        if let Some(will) = gone.will {
            self.publish_will(host, will);
        }
    }

    /// The broker gives a session up and publishes its will, and its host does not learn it: the
    /// connection is half open.
    pub(crate) fn broker_drops(&mut self, session: u64) {
        if let Some(gone) = self.broker.close(session)
            && let Some(will) = gone.will
        {
            self.publish_will(gone.host, will);
        }
    }

    fn publish_will(&mut self, host: usize, will: Publish) {
        if self.rng.chance(self.weather.missing_will) {
            self.fired("missing will");
            if self.hosts[host].process.is_none() {
                self.mattered("missing will");
            }
        } else if self.rng.chance(self.weather.late_will) {
            self.happened("late will");
            let at = self.now + self.rng.between(10 * MS, 10 * SECOND);
            self.queue.push(at, Event::Will(will));
        } else {
            self.trace(host, || "its will is published".to_owned());
            self.route(&will);
        }
    }

    pub(crate) fn will_comes_late(&mut self, will: &Publish) {
        if !self.broker.is_down {
            self.route(will);
        }
    }

    /// Keepalive has run out: both sides give up what is still silent.
    pub(crate) fn overdue(&mut self, host: usize, session: u64) {
        let h = &self.hosts[host];
        let owns = h.link.session == Some(session);
        let silent = !owns || h.link.cut_up || h.paused;
        let deaf = owns && h.link.is_cut();
        if silent {
            self.broker_notices(session);
        }
        if deaf {
            self.host_notices(host, session);
        }
    }

    pub(crate) fn expect_overdue(&mut self, host: usize) {
        if let Some(session) = self.hosts[host].link.session {
            let at = self.now + self.plan.profile.keep_alive * 3 / 2;
            self.queue.push(at, Event::Overdue { host, session });
        }
    }

    /// The broker dies without a word to anyone and comes back after a while. Whether anyone
    /// could tell.
    pub(crate) fn kill_broker(&mut self, retained: Retained, down_for: Micros) -> bool {
        self.broker.is_down = true;
        let served = !self.broker.sessions.is_empty();
        self.broker.close_all();
        let mattered = match retained {
            Retained::Kept => served,
            Retained::Lost => !std::mem::take(&mut self.broker.retained).is_empty(),
            Retained::AsSaved => {
                let saved = self.broker.saved.clone();
                std::mem::replace(&mut self.broker.retained, saved) != self.broker.saved
            }
        };
        for host in 0..self.hosts.len() {
            if let Some(session) = self.hosts[host].link.session {
                let at = self.now + self.one_way();
                self.queue.push(at, Event::HostNotices { host, session });
            }
        }
        self.queue.push(self.now + down_for, Event::BrokerStarts);
        mattered
    }

    pub(crate) fn broker_saves(&mut self) {
        self.broker.saved = self.broker.retained.clone();
        let wait = self.rng.between(SECOND, 60 * SECOND);
        self.queue.push(self.now + wait, Event::Save);
    }

    /// A cut link works again: what was held in it flows.
    pub(crate) fn heal(&mut self, host: usize) {
        let link = &mut self.hosts[host].link;
        if !link.is_cut() {
            return;
        }
        (link.cut_up, link.cut_down, link.loses) = (false, false, false);
        link.cut_by = None;
        let up = std::mem::take(&mut link.held_up);
        let down = std::mem::take(&mut link.held_down);
        let Some(session) = link.session else {
            return;
        };
        self.trace(host, || "its link heals".to_owned());
        if !self.broker.sessions.contains_key(&session) {
            let at = self.now + self.one_way();
            self.queue.push(at, Event::HostNotices { host, session });
            return;
        }
        for publish in up {
            self.send_up(host, publish);
        }
        for delivery in down {
            self.take_delivery(host, session, delivery);
        }
    }

    // Messages.

    /// The time from a host to the broker or back.
    pub(crate) fn one_way(&mut self) -> Micros {
        let (least, most) = (self.weather.delay_min, self.weather.delay_max);
        let delay = self.rng.between(least, most.max(least));
        if self.rng.chance(self.weather.spike) {
            self.happened("delay spike");
            return delay + self.rng.below(self.weather.spike_max);
        }
        delay
    }

    /// A host publishes.
    pub(crate) fn send_up(&mut self, host: usize, publish: Publish) {
        let Some(session) = self.hosts[host].link.session else {
            return;
        };
        let link = &mut self.hosts[host].link;
        if link.cut_up {
            let cut_by = link.cut_by.take();
            if publish.retain || (!link.loses && link.held_up.len() < MAX_HELD) {
                link.held_up.push_back(publish);
            }
            return self.mattered_once(cut_by);
        }
        let at = self.now + self.one_way();
        let Some(state) = self.broker.sessions.get_mut(&session) else {
            return; // Broken, and the host does not know it yet.
        };
        state.up_after = state.up_after.max(at);
        let at = state.up_after;
        self.queue.push(at, Event::Upward { session, publish });
    }

    /// A publish reaches the broker.
    pub(crate) fn take_publish(&mut self, session: u64, publish: Publish) {
        let Some(state) = self.broker.sessions.get(&session) else {
            return;
        };
        let (from, life) = (state.host, state.life);
        if !publish.retain && self.rng.chance(self.weather.loss / 2.0) {
            return self.happened("loss");
        }
        self.route_from(Some(session), &publish);
        if self.broker.recorded.len() == MAX_RECORDED {
            self.broker.recorded.pop_front();
        }
        self.broker.recorded.push_back(Recorded {
            publish,
            from,
            life,
        });
    }

    /// Keeps what is to be kept and hands a message to everyone who subscribed.
    pub(crate) fn route(&mut self, publish: &Publish) {
        self.route_from(None, publish);
    }

    fn route_from(&mut self, from: Option<u64>, publish: &Publish) {
        let Publish {
            topic,
            payload,
            retain,
        } = publish;
        if *retain && payload.is_empty() {
            self.broker.retained.remove(topic);
        } else if *retain {
            self.broker.retained.insert(topic.clone(), payload.clone());
        }
        let (topic, takers) = self.broker.route(topic);
        let echoes = self.plan.profile.echoes || *retain;
        for session in takers.iter() {
            if echoes || from != Some(*session) {
                self.deliver(*session, &topic, publish);
            }
        }
    }

    fn deliver(&mut self, session: u64, topic: &Rc<str>, publish: &Publish) {
        let at_most_once = !publish.retain;
        if at_most_once && self.rng.chance(self.weather.loss / 2.0) {
            return self.happened("loss");
        }
        let under_way = self.broker.sessions[&session].under_way;
        if at_most_once && under_way >= self.weather.queue {
            return self.happened("tail drop");
        }
        let message = |mark| Delivery::Message {
            topic: topic.clone(),
            payload: publish.payload.clone(),
            retained: false,
            at_most_once,
            mark,
        };
        if self.rng.chance(self.weather.duplicate) {
            self.fired("duplicate");
            self.send_down(session, message(Some("duplicate")));
        }
        self.send_down(session, message(None));
    }

    fn send_down(&mut self, session: u64, delivery: Delivery) {
        let delay = self.one_way();
        let overtakes = self.rng.chance(self.weather.reorder);
        let extra = if overtakes {
            self.rng.below(20 * MS)
        } else {
            0
        };
        let Some(state) = self.broker.sessions.get_mut(&session) else {
            return;
        };
        let host = state.host;
        let slow = self.hosts[host].link.slow;
        let mut at = self.now + delay + slow + extra;
        match &delivery {
            // Only within a topic is there an order to rely on.
            Delivery::Message { topic, .. } if self.weather.reorder > 0.0 => {
                let after = state.topic_after.entry(topic.clone()).or_default();
                at = at.max(*after).max(state.down_after);
                *after = at;
            }
            Delivery::Message { .. } | Delivery::Connected { .. } => {
                at = at.max(state.down_after);
                state.down_after = at;
            }
        }
        let overtaken = at < state.latest;
        state.latest = state.latest.max(at);
        state.under_way += 1;
        let event = Event::Downward {
            host,
            session,
            delivery,
        };
        self.queue.push(at, event);
        if overtakes {
            self.fired("reorder");
        }
        if overtaken {
            self.mattered("reorder");
        }
        if slow > 0 && std::mem::take(&mut self.hosts[host].link.slowed) {
            self.mattered("slow subscriber");
        }
    }

    /// What the broker sent reaches its host, also where the broker has given the session up
    /// meanwhile and the host does not know it yet.
    pub(crate) fn take_delivery(&mut self, host: usize, session: u64, delivery: Delivery) {
        if let Some(state) = self.broker.sessions.get_mut(&session) {
            state.under_way = state.under_way.saturating_sub(1);
        }
        let link = &mut self.hosts[host].link;
        if link.session != Some(session) {
            return;
        }
        if link.cut_down {
            let cut_by = link.cut_by.take();
            let loses = link.loses && delivery.is_at_most_once();
            if !loses && link.held_down.len() < MAX_HELD {
                link.held_down.push_back(delivery);
            }
            return self.mattered_once(cut_by);
        }
        let (input, mark) = input(delivery);
        self.mattered_once(mark);
        self.arrive(host, input);
    }

    /// The text of a delivery, for traces.
    pub(crate) fn describe_input(input: &Input) -> String {
        match input {
            Input::Received {
                over: replica::Link::FIRST,
                topic,
                payload,
                retained,
            } => {
                let kept = if *retained { "kept " } else { "" };
                format!("{kept}{topic} {}", trace::describe_payload(topic, payload))
            }
            other => format!("{other:?}"),
        }
    }
}

fn input(delivery: Delivery) -> (Input, Option<&'static str>) {
    match delivery {
        Delivery::Connected { epoch } => (Input::Connected(replica::Session::first(epoch)), None),
        Delivery::Message {
            topic,
            payload,
            retained,
            at_most_once: _,
            mark,
        } => {
            let topic = topic.as_ref().to_owned();
            let input = Input::Received {
                over: replica::Link::FIRST,
                topic,
                payload,
                retained,
            };
            (input, mark)
        }
    }
}

/// Whether a topic filter takes a topic; `+` is all that anyone here uses.
fn matches(filter: &str, topic: &str) -> bool {
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
}
