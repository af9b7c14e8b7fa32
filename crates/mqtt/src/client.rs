//! Session after session: connect, carry messages, wait, connect again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::select;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::rustls::ClientConfig;

use crate::codec::{Properties, Protocol, Publish};
use crate::options::{Options, OptionsError, Qos, Version, Will};
use crate::queue::{Queue, Refused, Weight};
use crate::reason::DisconnectReason;
use crate::session::{Ended, OpenError, Session};
use crate::tls;

/// How long [`Publisher::disconnect`] may take to flush what is queued and say goodbye.
pub const DISCONNECT_DEADLINE: Duration = Duration::from_secs(1);

/// What a packet needs beside topic and payload: type, length, topic length, id, properties.
const PACKET_OVERHEAD: usize = 16;

/// What an event or a publish costs beside its bytes.
const ITEM_OVERHEAD: usize = 64;

const MQTT_MAX_STRING: usize = 65_535;

/// The number of a session: 1 for the first CONNECT of this [`connect`] and one more for each
/// further CONNECT, whether it succeeded or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionEpoch(pub u64);

/// What a session needs that may differ from the one before; asked for at each CONNECT.
#[derive(Clone, Debug)]
pub struct SessionSetup {
    /// The client id, not empty. Unique per process start and session, so that the broker never
    /// takes one session over for another.
    pub client_id: String,
    /// What the broker publishes if the session ends without a DISCONNECT.
    pub will: Option<Will>,
    /// All topic filters of the session.
    pub subscriptions: Vec<(String, Qos)>,
}

/// What happens to the sessions, in order.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A new session is up and the broker has granted every subscription.
    Connected {
        /// The session.
        epoch: SessionEpoch,
    },
    /// A message, always after the `Connected` of its session.
    Message(Incoming),
    /// The broker did not take a QoS 1 publish (MQTT 5 only). At QoS 0 and in 3.1.1 brokers drop
    /// what they do not allow in silence.
    PublishRefused {
        /// Where it was meant to go.
        topic: Arc<str>,
        /// The broker's reason code, in words.
        detail: String,
    },
    /// There is no session (any more).
    Disconnected {
        /// The session that ended; `None` if the attempt never got as far as `Connected`.
        epoch: Option<SessionEpoch>,
        /// Why.
        reason: DisconnectReason,
        /// The pause until the next attempt.
        retry_in: Duration,
    },
}

/// A message from the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Bytes,
    /// Whether it was retained by the broker before we subscribed. Never rely on it.
    pub retained: bool,
    /// Where an answer to it goes (MQTT 5 only).
    pub properties: Properties,
}

/// Why a publish was not queued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The outbound queue is at one of its bounds: the broker is slower than we are.
    #[error("the outbound queue is full")]
    Full,
    /// There is no session. What is published now would be stale in the next one.
    #[error("not connected to the broker")]
    Disconnected,
    /// The packet exceeds what we or the broker accept.
    #[error("a packet of {size} bytes exceeds the limit of {max}")]
    TooLarge {
        /// The packet's size, or a little more.
        size: usize,
        /// The lower of [`Options::max_packet`] and the broker's own limit.
        max: usize,
    },
    /// Empty, with a wildcard or NUL, or longer than 65,535 bytes.
    #[error("invalid topic {topic:?}: a topic is not empty and holds no `+`, `#` or NUL")]
    InvalidTopic {
        /// The topic.
        topic: Arc<str>,
    },
}

/// Starts sessions with the broker and keeps one up until [`Publisher::disconnect`] or until
/// [`Events`] is dropped.
///
/// `setup` is called at each CONNECT. Returns at once; the first event tells how the first attempt
/// went.
///
/// # Errors
///
/// If the options contradict themselves, a TLS file is unusable, or there is no tokio runtime.
/// Nothing has been sent then.
pub fn connect(
    options: Options,
    setup: impl FnMut(SessionEpoch) -> SessionSetup + Send + 'static,
) -> Result<(Publisher, Events), OptionsError> {
    options.validate()?;
    let tls = if options.broker.scheme().is_tls() {
        Some(tls::client_config(&options.tls)?)
    } else {
        None
    };
    let runtime = Handle::try_current().map_err(|_| OptionsError::NoRuntime)?;
    let link = Arc::new(Link::new(&options));
    let runner = Runner {
        link: Arc::clone(&link),
        backoff: Backoff::new(options.backoff_min, options.backoff_max),
        version: VersionFinder::new(options.version),
        stop: link.stop.subscribe(),
        options,
        tls,
        setup: Box::new(setup),
        last_epoch: SessionEpoch(0),
    };
    runtime.spawn(runner.run());
    let publisher = Publisher {
        link: Arc::clone(&link),
    };
    Ok((publisher, Events { link }))
}

/// Sends messages in the current session. Cheap to clone.
#[derive(Clone)]
pub struct Publisher {
    link: Arc<Link>,
}

impl Publisher {
    /// Queues a message for the current session; never waits.
    ///
    /// The message is lost without notice if the session ends before it is sent: it does not go
    /// out in a later one.
    ///
    /// # Errors
    ///
    /// [`PublishError`], and the message is not sent.
    pub fn publish(
        &self,
        topic: impl Into<Arc<str>>,
        payload: Bytes,
        qos: Qos,
        retain: bool,
    ) -> Result<(), PublishError> {
        self.publish_with(topic, payload, qos, retain, Properties::default())
    }

    /// As [`Publisher::publish`], with properties; in a session of MQTT 3.1.1 without them.
    ///
    /// # Errors
    /// As [`Publisher::publish`], also for a response topic that is no topic.
    pub fn publish_with(
        &self,
        topic: impl Into<Arc<str>>,
        payload: Bytes,
        qos: Qos,
        retain: bool,
        properties: Properties,
    ) -> Result<(), PublishError> {
        let topic = topic.into();
        let epoch = self.epoch().ok_or(PublishError::Disconnected)?;
        if !is_topic(&topic) {
            return Err(PublishError::InvalidTopic { topic });
        }
        if let Some(response) = properties.response_topic.as_ref().filter(|t| !is_topic(t)) {
            let topic = response.as_str().into();
            return Err(PublishError::InvalidTopic { topic });
        }
        let correlation = properties.correlation_data.as_ref().map_or(0, Bytes::len);
        if correlation > MQTT_MAX_STRING {
            return Err(PublishError::TooLarge {
                size: correlation,
                max: MQTT_MAX_STRING,
            });
        }
        let size = topic.len() + payload.len() + properties.size() + PACKET_OVERHEAD;
        let max = self.link.max_outgoing.load(Ordering::Relaxed);
        if size > max {
            return Err(PublishError::TooLarge { size, max });
        }
        let publish = Publish {
            topic,
            payload,
            qos,
            retain,
            properties,
        };
        match self.link.outbound.try_push(Outgoing { epoch, publish }) {
            Ok(()) => Ok(()),
            Err(Refused::Full(_)) => Err(PublishError::Full),
            Err(Refused::Closed) => Err(PublishError::Disconnected),
        }
    }

    /// The current session, if one is up.
    pub fn epoch(&self) -> Option<SessionEpoch> {
        match self.link.epoch.load(Ordering::Acquire) {
            0 => None,
            epoch => Some(SessionEpoch(epoch)),
        }
    }

    /// Ends the session with a DISCONNECT, so that the broker sends no will, once everything queued
    /// has been sent and acknowledged; at the latest after [`DISCONNECT_DEADLINE`]. No session
    /// follows.
    pub async fn disconnect(&self) {
        let deadline = Instant::now() + DISCONNECT_DEADLINE;
        self.link.outbound.close();
        self.link.stop.send_if_modified(|stop| {
            let running = matches!(stop, Stop::Run);
            if running {
                *stop = Stop::Disconnect { deadline };
            }
            running
        });
        let mut done = self.link.done.subscribe();
        let _ = timeout_at(deadline + DISCONNECT_DEADLINE, done.wait_for(|done| *done)).await;
    }
}

/// The events of the sessions. Dropping it abandons the session without a DISCONNECT, so the
/// broker sends the will.
pub struct Events {
    link: Arc<Link>,
}

impl Events {
    /// The next event; `None` after [`Publisher::disconnect`], once the earlier ones are taken.
    /// Safe to cancel.
    pub async fn next(&mut self) -> Option<Event> {
        self.link.inbound.pop().await
    }

    /// The next event if it is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        self.link.inbound.try_pop()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.link.inbound.close();
        self.link.stop.send_if_modified(|stop| {
            let running = matches!(stop, Stop::Run);
            if running {
                *stop = Stop::Abandon;
            }
            running
        });
    }
}

/// What the handles and the task share.
pub(crate) struct Link {
    pub(crate) outbound: Queue<Outgoing>,
    pub(crate) inbound: Queue<Event>,
    /// The session that is up, or 0.
    epoch: AtomicU64,
    max_outgoing: AtomicUsize,
    stop: watch::Sender<Stop>,
    /// True once the task has ended.
    done: watch::Sender<bool>,
}

impl Link {
    fn new(options: &Options) -> Self {
        Self {
            outbound: Queue::new(options.outbound_queue, options.outbound_bytes),
            inbound: Queue::new(options.inbound_queue, options.inbound_bytes),
            epoch: AtomicU64::new(0),
            max_outgoing: AtomicUsize::new(options.max_packet),
            stop: watch::Sender::new(Stop::Run),
            done: watch::Sender::new(false),
        }
    }

    /// Hands the event back if there is no room. Once nobody listens any more, it vanishes.
    pub(crate) fn offer(&self, event: Event) -> Result<(), Event> {
        match self.inbound.try_push(event) {
            Ok(()) | Err(Refused::Closed) => Ok(()),
            Err(Refused::Full(event)) => Err(event),
        }
    }
}

/// A publish and the session it was meant for.
pub(crate) struct Outgoing {
    pub(crate) epoch: SessionEpoch,
    pub(crate) publish: Publish,
}

impl Weight for Outgoing {
    fn weight(&self) -> usize {
        let publish = &self.publish;
        publish.payload.len() + publish.topic.len() + publish.properties.size() + ITEM_OVERHEAD
    }
}

impl Weight for Event {
    fn weight(&self) -> usize {
        match self {
            Self::Message(message) => {
                let properties = message.properties.size();
                message.payload.len() + message.topic.len() + properties + ITEM_OVERHEAD
            }
            Self::Connected { .. } | Self::PublishRefused { .. } | Self::Disconnected { .. } => {
                ITEM_OVERHEAD
            }
        }
    }
}

/// What the handles ask of the task.
#[derive(Clone, Copy)]
pub(crate) enum Stop {
    Run,
    Disconnect { deadline: Instant },
    Abandon,
}

impl Stop {
    pub(crate) fn deadline(self) -> Option<Instant> {
        match self {
            Self::Disconnect { deadline } => Some(deadline),
            Self::Run | Self::Abandon => None,
        }
    }
}

/// The task: one session after another.
struct Runner {
    link: Arc<Link>,
    options: Options,
    tls: Option<Arc<ClientConfig>>,
    setup: Box<dyn FnMut(SessionEpoch) -> SessionSetup + Send>,
    stop: watch::Receiver<Stop>,
    backoff: Backoff,
    version: VersionFinder,
    last_epoch: SessionEpoch,
}

impl Runner {
    async fn run(mut self) {
        while self.wait_for_consumer().await {
            let Some(opened) = self.open().await else {
                break;
            };
            let (epoch, reason) = match opened {
                Ok(session) => match self.drive(session).await {
                    Ended::Stopped => break,
                    Ended::Lost(reason) => (Some(self.last_epoch), reason),
                },
                Err(error) => {
                    if self.version.try_other(&error) || self.try_without_no_local(&error) {
                        continue;
                    }
                    (None, error.reason)
                }
            };
            let retry_in = self.backoff.next(&reason);
            self.link.inbound.push_over(Event::Disconnected {
                epoch,
                reason,
                retry_in,
            });
            if !self.pause(retry_in).await {
                break;
            }
        }
    }

    /// Whether the option may be what the broker does not like of a subscription: asked again without
    /// it, once, it says.
    fn try_without_no_local(&mut self, error: &OpenError) -> bool {
        let DisconnectReason::SubscribeRefused { filter } = &error.reason else {
            return false;
        };
        let asked = self.options.no_local.contains(filter);
        self.options.no_local.retain(|_| !asked);
        asked
    }

    /// No new session while the consumer has yet to hear of the last ones; false once stopped.
    async fn wait_for_consumer(&mut self) -> bool {
        loop {
            if self.is_stopped() {
                return false;
            }
            if !self.link.inbound.is_full() {
                return true;
            }
            select! {
                () = self.link.inbound.popped() => {}
                _ = self.stop.changed() => {}
            }
        }
    }

    async fn open(&mut self) -> Option<Result<Session, OpenError>> {
        self.last_epoch = SessionEpoch(self.last_epoch.0 + 1);
        let setup = (self.setup)(self.last_epoch);
        let opening = Session::open(
            &self.options,
            self.tls.as_ref(),
            self.version.next(),
            self.last_epoch,
            &setup,
        );
        select! {
            opened = opening => Some(opened),
            _ = self.stop.changed() => None,
        }
    }

    async fn drive(&mut self, mut session: Session) -> Ended {
        let since = Instant::now();
        let max = session.max_outgoing();
        self.link.max_outgoing.store(max, Ordering::Relaxed);
        self.link.epoch.store(self.last_epoch.0, Ordering::Release);
        self.version.succeeded();
        self.link.inbound.push_over(Event::Connected {
            epoch: self.last_epoch,
        });
        let ended = session.pump(&self.link, &mut self.stop).await;
        self.link.epoch.store(0, Ordering::Release);
        self.link.outbound.clear();
        self.backoff.session_lasted(since.elapsed());
        ended
    }

    async fn pause(&mut self, pause: Duration) -> bool {
        select! {
            () = sleep(pause) => true,
            _ = self.stop.changed() => false,
        }
    }

    fn is_stopped(&self) -> bool {
        !matches!(*self.stop.borrow(), Stop::Run)
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.link.epoch.store(0, Ordering::Release);
        self.link.outbound.close();
        self.link.inbound.close();
        self.link.done.send_replace(true);
    }
}

/// The pause before the next attempt: doubled each time up to the longest, the upper half drawn by
/// lot, so that clients that lost one broker do not return in step.
struct Backoff {
    min: Duration,
    max: Duration,
    current: Duration,
}

impl Backoff {
    fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            current: min,
        }
    }

    fn next(&mut self, reason: &DisconnectReason) -> Duration {
        let base = if reason.is_permanent() {
            self.max
        } else {
            self.current
        };
        self.current = (self.current * 2).min(self.max);
        base.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// A session that outlasted the next pause was worth connecting for. A broker that accepts and
    /// hangs up at once gets no more attempts than one that refuses.
    fn session_lasted(&mut self, lasted: Duration) {
        if lasted >= self.current {
            self.current = self.min;
        }
    }
}

/// Which MQTT to try next.
struct VersionFinder {
    wanted: Version,
    /// The last attempt of version 5 failed in a way that 3.1.1 may not.
    trying_v311: bool,
    /// The broker said so itself, so version 5 is not tried first again.
    v5_refused: bool,
}

impl VersionFinder {
    fn new(wanted: Version) -> Self {
        Self {
            wanted,
            trying_v311: false,
            v5_refused: false,
        }
    }

    fn next(&self) -> Protocol {
        match self.wanted {
            Version::V5 => Protocol::V5,
            Version::V311 => Protocol::V311,
            Version::Auto if self.trying_v311 || self.v5_refused => Protocol::V311,
            Version::Auto => Protocol::V5,
        }
    }

    fn succeeded(&mut self) {
        self.trying_v311 = false;
    }

    /// Whether to try the other version at once.
    fn try_other(&mut self, error: &OpenError) -> bool {
        let was_v5 = self.wanted == Version::Auto && self.next() == Protocol::V5;
        let refused = matches!(error.reason, DisconnectReason::UnsupportedVersion { .. });
        self.v5_refused = refused && was_v5;
        self.trying_v311 = error.try_other_version && was_v5;
        self.trying_v311
    }
}

impl SessionSetup {
    /// What the codec would refuse or mangle is refused here, with a word on what it is.
    pub(crate) fn validate(&self) -> Result<(), DisconnectReason> {
        let invalid = |detail: String| Err(DisconnectReason::InvalidSetup { detail });
        let id = &self.client_id;
        if id.is_empty() || id.len() > MQTT_MAX_STRING || id.contains('\0') {
            return invalid(format!("client id of {} bytes", id.len()));
        }
        if let Some(will) = &self.will {
            if !is_topic(&will.topic) {
                return invalid(format!("will topic {:?}", will.topic));
            }
            if will.payload.len() > MQTT_MAX_STRING {
                return invalid(format!("will of {} bytes", will.payload.len()));
            }
        }
        let bad = self
            .subscriptions
            .iter()
            .find(|(filter, _)| !is_topic_filter(filter));
        match bad {
            Some((filter, _)) => invalid(format!("topic filter {filter:?}")),
            None => Ok(()),
        }
    }
}

fn is_topic(topic: &str) -> bool {
    (1..=MQTT_MAX_STRING).contains(&topic.len()) && !topic.contains(['+', '#', '\0'])
}

/// `+` and `#` fill a level each, `#` the last one [MQTT-4.7.1].
fn is_topic_filter(filter: &str) -> bool {
    if !(1..=MQTT_MAX_STRING).contains(&filter.len()) || filter.contains('\0') {
        return false;
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let wildcard = level.contains(['+', '#']);
        if wildcard && level.len() > 1 || level == "#" && levels.peek().is_some() {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_and_filters_are_told_apart() {
        let table = [
            ("a", true, true),
            ("a/b/c", true, true),
            ("/", true, true),
            ("", false, false),
            ("a\0", false, false),
            ("a/+", false, true),
            ("+/b", false, true),
            ("#", false, true),
            ("a/#", false, true),
            ("a/#/b", false, false),
            ("a+", false, false),
            ("a/b#", false, false),
            ("##", false, false),
        ];
        for (text, topic, filter) in table {
            assert_eq!(
                (is_topic(text), is_topic_filter(text)),
                (topic, filter),
                "{text:?}"
            );
        }
        assert!(!is_topic(&"a".repeat(65_536)));
    }

    #[test]
    fn the_pause_doubles_within_its_bounds_and_a_permanent_fault_takes_the_longest() {
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(5));
        let mut backoff = Backoff::new(min, max);
        let reason = DisconnectReason::ClosedByBroker { detail: None };
        let mut base = min;
        for _ in 0..12 {
            let pause = backoff.next(&reason);
            assert!(pause >= base / 2 && pause <= base, "{pause:?} {base:?}");
            base = (base * 2).min(max);
        }
        backoff.session_lasted(max);
        assert!(backoff.next(&reason) <= min);
        assert!(backoff.next(&DisconnectReason::NotAuthorised) >= max / 2);
    }

    /// A broker that was restarted several times in a minute cost the last ones seconds: each
    /// session had lasted longer than its pause, but none as long as the longest pause.
    #[test]
    fn a_session_that_outlasts_the_pause_ends_the_doubling() {
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(5));
        let mut backoff = Backoff::new(min, max);
        let reason = DisconnectReason::ClosedByBroker { detail: None };
        for _ in 0..5 {
            backoff.next(&reason);
        }
        backoff.session_lasted(Duration::from_millis(10));
        assert!(backoff.next(&reason) > 10 * min, "it hung up at once");
        backoff.session_lasted(Duration::from_secs(4));
        assert!(backoff.next(&reason) <= min);
    }

    #[test]
    fn version_5_comes_first_and_311_where_it_is_refused() {
        let failed = |reason, try_other_version| OpenError {
            reason,
            try_other_version,
        };
        let closed = || failed(DisconnectReason::ClosedByBroker { detail: None }, true);
        let mut finder = VersionFinder::new(Version::Auto);
        assert_eq!(finder.next(), Protocol::V5);
        // A broker that hangs up: 3.1.1 once, then 5 again.
        assert!(finder.try_other(&closed()));
        assert_eq!(finder.next(), Protocol::V311);
        assert!(!finder.try_other(&closed()));
        assert_eq!(finder.next(), Protocol::V5);
        // A broker that says it: 3.1.1 from now on.
        assert!(finder.try_other(&failed(
            DisconnectReason::UnsupportedVersion { version: "5" },
            true
        )));
        finder.succeeded();
        assert_eq!(finder.next(), Protocol::V311);
        assert!(!VersionFinder::new(Version::V5).try_other(&closed()));
    }
}
