//! The MQTT brokers and the links to them, with the faults that both have.
//!
//! Each host lists the brokers in an order of its own and uses all of them at once, as a process does
//! that was given several. Brokers know nothing of each other. Each has its own speed, dies, stops and
//! forgets by itself, and is out of reach of one host while it serves another.
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

/// No broker is slower than that when all has healed.
const QUICK: Micros = MS;

/// How many frames are kept to be played back.
const MAX_RECORDED: usize = 512;

/// All brokers, and all sessions with any of them.
#[derive(Debug, Default)]
pub(crate) struct Brokers {
    pub(crate) all: Vec<Broker>,
    pub(crate) sessions: BTreeMap<u64, Session>,
    last_session: u64,
    /// What passed through, for those who play it back.
    pub(crate) recorded: VecDeque<Recorded>,
}

/// One broker.
#[derive(Debug, Default)]
pub(crate) struct Broker {
    pub(crate) is_down: bool,
    /// Until then it takes nothing and says nothing, and its sessions live on.
    stopped_until: Micros,
    /// How much longer than its links a message takes through it.
    pub(crate) slow: Micros,
    pub(crate) retained: BTreeMap<String, Bytes>,
    saved: BTreeMap<String, Bytes>,
    /// Who takes which topic: found once, until a session comes or goes.
    routes: BTreeMap<Rc<str>, Rc<[u64]>>,
}

/// A publish that passed through a broker.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) publish: Publish,
    pub(crate) from: usize,
    /// Which process of that host.
    pub(crate) life: u64,
}

impl Broker {
    /// It is there and as quick as it should be.
    pub(crate) fn heal(&mut self) {
        (self.is_down, self.stopped_until) = (false, 0);
        self.slow = self.slow.min(QUICK);
    }
}

impl Brokers {
    pub(crate) fn new(slow: Vec<Micros>) -> Brokers {
        let broker = |slow| Broker {
            slow,
            ..Broker::default()
        };
        Brokers {
            all: slow.into_iter().map(broker).collect(),
            ..Brokers::default()
        }
    }

    fn open(&mut self, session: Session) -> u64 {
        self.all[session.broker].routes.clear();
        self.last_session += 1;
        self.sessions.insert(self.last_session, session);
        self.last_session
    }

    fn close(&mut self, session: u64) -> Option<Session> {
        let gone = self.sessions.remove(&session)?;
        self.all[gone.broker].routes.clear();
        Some(gone)
    }

    /// Ends all sessions with a broker. Whether there were any.
    fn close_all(&mut self, broker: usize) -> bool {
        let before = self.sessions.len();
        self.sessions.retain(|_, session| session.broker != broker);
        self.all[broker].routes.clear();
        self.sessions.len() < before
    }

    /// A topic and the sessions with a broker that subscribed to it.
    fn route(&mut self, broker: usize, topic: &str) -> (Rc<str>, Rc<[u64]>) {
        let routes = &mut self.all[broker].routes;
        if let Some((topic, takers)) = routes.get_key_value(topic) {
            return (topic.clone(), takers.clone());
        }
        let sessions = self.sessions.iter();
        let takers =
            sessions.filter(|(_, session)| session.broker == broker && session.subscribes(topic));
        let (topic, takers): (Rc<str>, Rc<[u64]>) =
            (topic.into(), takers.map(|(id, _)| *id).collect());
        routes.insert(topic.clone(), takers.clone());
        (topic, takers)
    }

    pub(crate) fn broker_of(&self, session: u64) -> Option<usize> {
        self.sessions.get(&session).map(|session| session.broker)
    }
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) host: usize,
    broker: usize,
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

/// A host's side of its link to a broker.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// To which.
    pub(crate) broker: usize,
    pub(crate) session: Option<u64>,
    /// The process knows of the session.
    pub(crate) is_up: bool,
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
    pub(crate) fn to(broker: usize) -> Link {
        Link {
            broker,
            ..Link::default()
        }
    }

    pub(crate) fn cut(&mut self, up: bool, down: bool, by: &'static str) {
        self.cut_up |= up;
        self.cut_down |= down;
        self.cut_by = Some(by);
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut_up || self.cut_down
    }

    /// The process ended or its session did: what was in the socket is gone.
    pub(crate) fn forget(&mut self) -> Option<u64> {
        self.held_up.clear();
        self.held_down.clear();
        self.is_up = false;
        self.session.take()
    }
}

impl World {
    // Sessions.

    pub(crate) fn connect(&mut self, host: usize, life: u64, link: usize) {
        let now = self.now;
        let h = &self.hosts[host];
        let own = &h.links[link];
        if h.life != life || h.process.is_none() || own.session.is_some() {
            return;
        }
        let broker = own.broker;
        let Broker {
            is_down,
            stopped_until,
            ..
        } = self.brokers.all[broker];
        if is_down || stopped_until > now || own.is_cut() || h.paused {
            let at = now + self.rng.between(50 * MS, 1_000 * MS);
            return self.queue.push(at, Event::Connect { host, life, link });
        }
        let epoch = own.epoch + 1;
        self.take_over_own(host, life, broker);
        let h = &self.hosts[host];
        let session = named(link, epoch);
        let (will, filters) = h.session_needs(session);
        let id = self.brokers.open(Session {
            host,
            broker,
            life,
            filters,
            will,
            up_after: now,
            down_after: now,
            topic_after: BTreeMap::new(),
            latest: 0,
            under_way: 0,
        });
        let own = &mut self.hosts[host].links[link];
        own.session = Some(id);
        own.epoch = epoch;
        self.trace(host, || {
            format!("session {id} with broker {broker}, epoch {epoch}")
        });
        self.send_down(id, Delivery::Connected { epoch });
        let session = &self.brokers.sessions[&id];
        let kept = self.brokers.all[broker].retained.iter();
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
    fn take_over_own(&mut self, host: usize, life: u64, broker: usize) {
        let sessions = self.brokers.sessions.iter();
        let own = |session: &Session| session.host == host && session.life == life;
        let old = sessions.filter(|(_, session)| own(session) && session.broker == broker);
        let old: Vec<u64> = old.map(|(id, _)| *id).collect();
        for session in old {
            self.happened("old session taken over");
            if self.rng.chance(0.5) {
                self.broker_notices(session);
            } else {
                self.brokers.close(session);
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
        let sessions = self.hosts[host].sessions();
        let Some(session) = self.rng.pick(&sessions).copied() else {
            return times > 1;
        };
        let Some(gone) = self.brokers.close(session) else {
            return times > 1;
        };
        let at = self.now + self.one_way();
        self.queue.push(at, Event::HostNotices { host, session });
        if let (Some(will), true) = (gone.will, self.rng.chance(0.5)) {
            self.publish_will(host, gone.broker, will);
        }
        true
    }

    /// A host's side of a session ends.
    pub(crate) fn host_notices(&mut self, host: usize, session: u64) {
        let h = &mut self.hosts[host];
        let Some(link) = h.link_of(session) else {
            return;
        };
        let was_up = h.links[link].is_up;
        h.links[link].forget();
        let life = h.life;
        self.trace(host, || format!("session {session} is gone"));
        if was_up && (self.hosts[host].is_node() || !self.hosts[host].is_reached()) {
            self.arrive(host, Input::Disconnected(named(link, 0).link));
        }
        let at = self.now + self.rng.between(20 * MS, 1_000 * MS);
        self.queue.push(at, Event::Connect { host, life, link });
    }

    /// The broker's side of a session ends, without a goodbye: its will is published.
    pub(crate) fn broker_notices(&mut self, session: u64) {
        let Some(broker) = self.brokers.broker_of(session) else {
            return;
        };
        if let Some(at) = self.answers_at(broker) {
            return self.queue.push(at, Event::BrokerNotices { session });
        }
        let Some(gone) = self.brokers.close(session) else {
            return;
        };
        let host = gone.host;
        let link = self.hosts[host].link_of(session);
        if link.is_some_and(|link| !self.hosts[host].links[link].cut_down) {
            let at = self.now + self.one_way();
            self.queue.push(at, Event::HostNotices { host, session });
        }
        if let Some(will) = gone.will {
            self.publish_will(host, broker, will);
        }
    }

    /// The broker gives a session up and publishes its will, and its host does not learn it: the
    /// connection is half open.
    pub(crate) fn broker_drops(&mut self, session: u64) {
        if let Some(gone) = self.brokers.close(session)
            && let Some(will) = gone.will
        {
            self.publish_will(gone.host, gone.broker, will);
        }
    }

    fn publish_will(&mut self, host: usize, broker: usize, will: Publish) {
        if self.rng.chance(self.weather.missing_will) {
            self.fired("missing will");
            if self.hosts[host].process.is_none() {
                self.mattered("missing will");
            }
        } else if self.rng.chance(self.weather.late_will) {
            self.happened("late will");
            let at = self.now + self.rng.between(10 * MS, 10 * SECOND);
            self.queue.push(at, Event::Will { broker, will });
        } else {
            self.trace(host, || format!("its will is published by broker {broker}"));
            self.route(broker, &will);
        }
    }

    pub(crate) fn will_comes_late(&mut self, broker: usize, will: &Publish) {
        if !self.brokers.all[broker].is_down {
            self.route(broker, will);
        }
    }

    /// When a broker that is stopped goes on.
    fn answers_at(&self, broker: usize) -> Option<Micros> {
        let until = self.brokers.all[broker].stopped_until;
        (until > self.now).then_some(until)
    }

    /// Keepalive has run out: both sides give up what is still silent.
    pub(crate) fn overdue(&mut self, host: usize, session: u64) {
        let h = &self.hosts[host];
        let link = h.link_of(session).map(|link| &h.links[link]);
        let stopped = link.is_some_and(|link| self.answers_at(link.broker).is_some());
        let silent = !stopped && link.is_none_or(|link| link.cut_up || h.paused);
        let deaf = stopped || link.is_some_and(Link::is_cut);
        if silent {
            self.broker_notices(session);
        }
        if deaf {
            self.host_notices(host, session);
        }
    }

    pub(crate) fn expect_overdue(&mut self, host: usize) {
        for session in self.hosts[host].sessions() {
            let at = self.now + self.plan.profile.keep_alive * 3 / 2;
            self.queue.push(at, Event::Overdue { host, session });
        }
    }

    /// A broker dies without a word to anyone and comes back after a while. Whether anyone
    /// could tell.
    pub(crate) fn kill_broker(&mut self, broker: usize, kept: Retained, down_for: Micros) -> bool {
        self.trace
            .line(self.now, "world", || format!("broker {broker} dies"));
        let served = self.brokers.close_all(broker);
        let own = &mut self.brokers.all[broker];
        (own.is_down, own.stopped_until) = (true, 0);
        let mattered = match kept {
            Retained::Kept => served,
            Retained::Lost => !std::mem::take(&mut own.retained).is_empty(),
            Retained::AsSaved => {
                let saved = own.saved.clone();
                std::mem::replace(&mut own.retained, saved) != own.saved
            }
        };
        for host in 0..self.hosts.len() {
            let mut links = self.hosts[host].links.iter();
            let link = links.find(|link| link.broker == broker);
            if let Some(session) = link.and_then(|link| link.session) {
                let at = self.now + self.one_way();
                self.queue.push(at, Event::HostNotices { host, session });
            }
        }
        self.queue
            .push(self.now + down_for, Event::BrokerStarts { broker });
        mattered
    }

    /// A broker stops, as by SIGSTOP, and goes on after a while. Whether it served anyone.
    pub(crate) fn stop_broker(&mut self, broker: usize, pause: Micros) -> bool {
        self.trace
            .line(self.now, "world", || format!("broker {broker} stops"));
        self.brokers.all[broker].stopped_until = self.now + pause;
        let sessions = self.brokers.sessions.iter();
        let sessions: Vec<(u64, usize)> = sessions
            .filter(|(_, session)| session.broker == broker)
            .map(|(id, session)| (*id, session.host))
            .collect();
        for (session, host) in &sessions {
            let (host, session) = (*host, *session);
            let at = self.now + self.plan.profile.keep_alive * 3 / 2;
            self.queue.push(at, Event::Overdue { host, session });
        }
        !sessions.is_empty()
    }

    /// A broker dies and comes back, again and again.
    pub(crate) fn flap(&mut self, broker: usize, times: u64) {
        if self.faults_end {
            return;
        }
        let down = self.rng.between(10 * MS, 300 * MS);
        if !self.brokers.all[broker].is_down {
            self.kill_broker(broker, Retained::Kept, down);
        }
        if times > 1 {
            let at = self.now + down + self.rng.between(10 * MS, 2 * SECOND);
            let times = times - 1;
            self.queue.push(at, Event::BrokerFlaps { broker, times });
        }
    }

    pub(crate) fn broker_saves(&mut self) {
        for broker in &mut self.brokers.all {
            broker.saved = broker.retained.clone();
        }
        let wait = self.rng.between(SECOND, 60 * SECOND);
        self.queue.push(self.now + wait, Event::Save);
    }

    /// Cut links of a host work again, or one of them: what was held in it flows.
    pub(crate) fn heal(&mut self, host: usize, link: Option<usize>) {
        for n in 0..self.hosts[host].links.len() {
            if link.is_none_or(|link| link == n) {
                self.heal_link(host, n);
            }
        }
    }

    fn heal_link(&mut self, host: usize, n: usize) {
        let link = &mut self.hosts[host].links[n];
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
        self.trace(host, || format!("its link {n} heals"));
        if !self.brokers.sessions.contains_key(&session) {
            let at = self.now + self.one_way();
            self.queue.push(at, Event::HostNotices { host, session });
            return;
        }
        for publish in up {
            self.send_up(host, n, publish);
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

    /// A host publishes with every broker that it has a session with.
    pub(crate) fn send_everywhere(&mut self, host: usize, publish: Publish) {
        let last = self.hosts[host].links.len() - 1;
        for link in 0..last {
            self.send_up(host, link, publish.clone());
        }
        self.send_up(host, last, publish);
    }

    /// A host publishes with one broker.
    pub(crate) fn send_up(&mut self, host: usize, link: usize, publish: Publish) {
        let link = &mut self.hosts[host].links[link];
        let Some(session) = link.session else {
            return;
        };
        if link.cut_up {
            let cut_by = link.cut_by.take();
            if publish.retain || (!link.loses && link.held_up.len() < MAX_HELD) {
                link.held_up.push_back(publish);
            }
            return self.mattered_once(cut_by);
        }
        let at = self.now + self.one_way();
        let Some(state) = self.brokers.sessions.get_mut(&session) else {
            return; // Broken, and the host does not know it yet.
        };
        let at = at + self.brokers.all[state.broker].slow;
        state.up_after = state.up_after.max(at);
        let at = state.up_after;
        self.queue.push(at, Event::Upward { session, publish });
    }

    /// A publish reaches the broker.
    pub(crate) fn take_publish(&mut self, session: u64, publish: Publish) {
        let Some(state) = self.brokers.sessions.get(&session) else {
            return;
        };
        let (from, life, broker) = (state.host, state.life, state.broker);
        if let Some(at) = self.answers_at(broker) {
            return self.queue.push(at, Event::Upward { session, publish });
        }
        if !publish.retain && self.rng.chance(self.weather.loss / 2.0) {
            return self.happened("loss");
        }
        self.route_from(broker, Some(session), &publish);
        if self.brokers.recorded.len() == MAX_RECORDED {
            self.brokers.recorded.pop_front();
        }
        self.brokers.recorded.push_back(Recorded {
            publish,
            from,
            life,
        });
    }

    /// Keeps what is to be kept and hands a message to everyone who subscribed.
    pub(crate) fn route(&mut self, broker: usize, publish: &Publish) {
        self.route_from(broker, None, publish);
    }

    fn route_from(&mut self, broker: usize, from: Option<u64>, publish: &Publish) {
        let Publish {
            topic,
            payload,
            retain,
        } = publish;
        if *retain && payload.is_empty() {
            self.brokers.all[broker].retained.remove(topic);
        } else if *retain {
            let retained = &mut self.brokers.all[broker].retained;
            retained.insert(topic.clone(), payload.clone());
        }
        let (topic, takers) = self.brokers.route(broker, topic);
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
        let under_way = self.brokers.sessions[&session].under_way;
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
        let Some(state) = self.brokers.sessions.get_mut(&session) else {
            return;
        };
        let host = state.host;
        let link = self.hosts[host].link_of(session);
        let slow = link.map_or(0, |link| self.hosts[host].links[link].slow);
        let slow = slow + self.brokers.all[state.broker].slow;
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
        if slow > 0
            && let Some(link) = link
            && std::mem::take(&mut self.hosts[host].links[link].slowed)
        {
            self.mattered("slow subscriber");
        }
    }

    /// What the broker sent reaches its host, also where the broker has given the session up
    /// meanwhile and the host does not know it yet.
    pub(crate) fn take_delivery(&mut self, host: usize, session: u64, delivery: Delivery) {
        if let Some(state) = self.brokers.sessions.get_mut(&session) {
            state.under_way = state.under_way.saturating_sub(1);
        }
        let was_reached = self.hosts[host].is_reached();
        let Some(n) = self.hosts[host].link_of(session) else {
            return;
        };
        let link = &mut self.hosts[host].links[n];
        if link.cut_down {
            let cut_by = link.cut_by.take();
            let loses = link.loses && delivery.is_at_most_once();
            if !loses && link.held_down.len() < MAX_HELD {
                link.held_down.push_back(delivery);
            }
            return self.mattered_once(cut_by);
        }
        let connects = matches!(delivery, Delivery::Connected { .. });
        link.is_up |= connects;
        // A client has a session as long as it has any.
        if connects && was_reached && !self.hosts[host].is_node() {
            return;
        }
        let (input, mark) = input(n, delivery);
        self.mattered_once(mark);
        self.arrive(host, input);
    }

    /// The text of a delivery, for traces.
    pub(crate) fn describe_input(input: &Input) -> String {
        match input {
            Input::Received {
                over: _,
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

/// A session as the process itself names it.
pub(crate) fn named(link: usize, epoch: u64) -> replica::Session {
    let link = replica::Link::new(link).expect("few brokers");
    replica::Session { link, epoch }
}

fn input(link: usize, delivery: Delivery) -> (Input, Option<&'static str>) {
    match delivery {
        Delivery::Connected { epoch } => (Input::Connected(named(link, epoch)), None),
        Delivery::Message {
            topic,
            payload,
            retained,
            at_most_once: _,
            mark,
        } => {
            let topic = topic.as_ref().to_owned();
            let input = Input::Received {
                over: named(link, 0).link,
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
