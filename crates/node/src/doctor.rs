//! Whether a broker is fit to meet at, asked before a node relies on it.
//!
//! [`Doctor`] takes what a node would be given and does on the broker what a node does: it connects,
//! leaves a will, publishes and subscribes on each topic that a node needs, retains and clears, and
//! takes the time. It believes nothing that it has not seen come back: brokers drop in silence what
//! their ACL forbids. What it found is a [`Report`] of typed [`Finding`]s; the words are the caller's.
//!
//! It may be used beside a running cluster, and beside a running node of the same name: nodes take all
//! that it says without acting on it (`doctor/voice.rs` says what and why), and what it retained is as
//! it was when it ends. With a name that is in use it does not touch that node's status.
//!
//! ```text
//! in: version, credentials ─► subscriptions ─► is the name taken? ─► each topic, there and back
//!                                                 ─► retain, will ─► round trips, sizes, bursts
//! ```
//!
//! What it refuses to do: to judge the cluster (`mqraft status` does), and to go on for longer than it
//! was given.

mod access;
mod findings;
mod keeping;
mod line;
mod pace;
mod rights;
mod timeouts;
mod voice;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use mqtt::{DisconnectReason, Incoming, Options, Qos, Version};
use replica::{KeyRing, Name, Publish, Topic};
use tokio::time::Instant;

use crate::connection::Mqtt;
use crate::error::{Error, Result};
use crate::node::checked;

pub use findings::{Finding, Outcome, Pace, Purpose, Report, RoundTrip, Severity};
pub use rights::{Access, Right, Rights};
pub use timeouts::Timeouts;

use line::{Line, Lost, News};
use voice::Voice;

/// How often the first message is sent: at QoS 0 one may be lost.
const PROBES: u32 = 3;

/// How long the first message may take to come back.
const FIRST_PATIENCE: Duration = Duration::from_secs(3);

/// How long the later ones may take: so many times the first one's time, within these. A second, so that
/// a slow moment of this machine is not taken for an access list.
const PATIENCE: u32 = 5;
const SHORTEST_PATIENCE: Duration = Duration::from_secs(1);

/// Who runs answers a hello within this time.
const HELLO_PATIENCE: Duration = Duration::from_millis(200);

/// How long a process that has our name may take to say so.
const NAME_PATIENCE: Duration = Duration::from_millis(250);

/// How long to listen for the cluster of a process that has our name.
const CLUSTER_PATIENCE: Duration = Duration::from_secs(1);

/// An examination of one broker, with what a node would be given.
///
/// ```no_run
/// use raft_over_mqtt::Mqtt;
/// use raft_over_mqtt::doctor::{Doctor, Severity};
///
/// # async fn example() -> raft_over_mqtt::Result<()> {
/// let mqtt = Mqtt::new("mqtt://127.0.0.1:1883")?;
/// let report = Doctor::new(mqtt, "raft", "plant-a", "gw-1", None).examine().await?;
/// assert!(report.severity() < Severity::Fault, "{:?}", report.findings);
/// # Ok(())
/// # }
/// ```
pub struct Doctor {
    mqtt: Mqtt,
    prefix: String,
    cluster: String,
    id: String,
    keys: KeyRing,
    voters: Vec<String>,
    election_timeout: Duration,
    heartbeat_interval: Option<Duration>,
    requests: bool,
    mirror: bool,
    thorough: bool,
    timeout: Duration,
}

impl Doctor {
    /// An examination of `mqtt` for the node `id` of `cluster` below `prefix`, with the cluster's keys.
    pub fn new(
        mqtt: Mqtt,
        prefix: &str,
        cluster: &str,
        id: &str,
        keys: impl Into<KeyRing>,
    ) -> Doctor {
        Doctor {
            mqtt,
            prefix: prefix.to_owned(),
            cluster: cluster.to_owned(),
            id: id.to_owned(),
            keys: keys.into(),
            voters: Vec::new(),
            election_timeout: Duration::from_secs(1),
            heartbeat_interval: None,
            requests: false,
            mirror: false,
            thorough: false,
            timeout: Duration::from_secs(10),
        }
    }

    /// The voters, to each of whom the node must be able to publish.
    pub fn voters<T: Into<String>>(mut self, voters: impl IntoIterator<Item = T>) -> Doctor {
        self.voters = voters.into_iter().map(Into::into).collect();
        self
    }

    /// The node's election timeout (default 1 s) and heartbeat interval (default a quarter of it).
    pub fn timing(mut self, election_timeout: Duration, heartbeat: Option<Duration>) -> Doctor {
        self.election_timeout = election_timeout;
        self.heartbeat_interval = heartbeat;
        self
    }

    /// Whether the node answers requests of any MQTT client. Default: no.
    pub fn requests(mut self, on: bool) -> Doctor {
        self.requests = on;
        self
    }

    /// Whether the node mirrors keys. Default: no.
    pub fn mirror(mut self, on: bool) -> Doctor {
        self.mirror = on;
        self
    }

    /// Also measures how late the broker tells of a silent client: 1.5 times the keep alive and, with
    /// Mosquitto, some seconds. Default: no.
    pub fn thorough(mut self, on: bool) -> Doctor {
        self.thorough = on;
        self
    }

    /// How long the whole may take. Default 10 s. What there is no time for is said.
    pub fn timeout(mut self, timeout: Duration) -> Doctor {
        self.timeout = timeout;
        self
    }

    /// Examines the broker.
    ///
    /// Whoever drops it on the way may leave a status behind that says this node is offline; see
    /// [`Doctor::examine_until`].
    ///
    /// # Errors
    /// When something was given that cannot work. What is wrong with the broker stands in the report.
    pub async fn examine(self) -> Result<Report> {
        self.examine_until(std::future::pending()).await
    }

    /// As [`Doctor::examine`], until `stop`: what is retained is as it was then, too.
    ///
    /// # Errors
    /// As [`Doctor::examine`].
    pub async fn examine_until(self, stop: impl Future<Output = ()>) -> Result<Report> {
        let me = checked("node id", &self.id)?;
        let cluster = checked("cluster", &self.cluster)?;
        for voter in &self.voters {
            checked("voter", voter)?;
        }
        if self.keys.is_insecure() && !self.mqtt.is_loopback() {
            let broker = self.mqtt.url();
            return Err(Error::Insecure { broker });
        }
        let broker = self.mqtt.url();
        let [options] = self.mqtt.brokers.as_slice() else {
            return Err(Error::Missing("each broker is examined by itself"));
        };
        let options = options.clone();
        let voice = Voice::new(&self.prefix, cluster, me.clone(), self.keys.clone())?;
        let started = Instant::now();
        let mut examination = Examination {
            options,
            deadline: started + self.timeout,
            version: "5",
            voice,
            me,
            findings: Vec::new(),
            patience: FIRST_PATIENCE,
            heard: Heard::default(),
            own_works: false,
            status_works: false,
            dirty: false,
            doctor: self,
        };
        examination.run(stop).await?;
        let findings = examination.findings;
        Ok(Report { broker, findings })
    }
}

/// The examination under way.
struct Examination {
    doctor: Doctor,
    options: Options,
    version: &'static str,
    voice: Voice,
    me: Name,
    deadline: Instant,
    findings: Vec<Finding>,
    patience: Duration,
    heard: Heard,
    /// What is sent to this node comes, at some QoS.
    own_works: bool,
    /// Publishing this node's status works.
    status_works: bool,
    /// This node's status is not as it was.
    dirty: bool,
}

/// What the main session has heard on the way.
#[derive(Default)]
struct Heard {
    /// This node's status as it stands on the broker.
    status: Option<Bytes>,
    /// Who leads, as it stands on the broker.
    leader: Option<Bytes>,
    /// Other nodes that sent something.
    others: BTreeSet<Name>,
    /// Other nodes whose status says that they are there.
    online: BTreeSet<Name>,
    /// A process that has our name: its key and incarnation.
    twin: Option<([u8; 16], [u8; 16])>,
    /// A frame of a formed cluster, if one was heard.
    frame: Option<Bytes>,
}

/// Why an examination ends early. What was found stays.
enum End {
    Ended(DisconnectReason),
    NoTime(&'static str),
    Interrupted,
    Wrong(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> End {
        End::Wrong(error)
    }
}

type Step<T> = std::result::Result<T, End>;

impl Examination {
    async fn run(&mut self, stop: impl Future<Output = ()>) -> Result<()> {
        let examined = tokio::select! {
            examined = self.examine() => examined,
            () = stop => Err(End::Interrupted),
        };
        self.tidy_up().await;
        match examined {
            Ok(()) => Ok(()),
            Err(End::Wrong(error)) => Err(error),
            Err(End::Ended(reason)) => {
                self.found(Finding::NotConnected(reason));
                Ok(())
            }
            Err(End::Interrupted) => {
                self.found(Finding::Interrupted);
                Ok(())
            }
            Err(End::NoTime(what)) => {
                self.found(Finding::NoTime(what));
                Ok(())
            }
        }
    }

    async fn examine(&mut self) -> Step<()> {
        self.connect().await?;
        let filters = self.subscriptions().await?;
        let mut main = self.open(&filters).await?;
        let answered = self.meet(&mut main).await?;
        self.access(&mut main, &filters, answered).await?;
        if !answered {
            main.close().await;
            if self.own_works {
                // At QoS 1 it came back.
                self.found(Finding::RoundTrip(RoundTrip::lost(PROBES as usize)));
            }
            return Ok(());
        }
        self.keeping(&mut main).await?;
        main.close().await;
        let mut own = self.open_own().await?;
        self.pace(&mut own).await?;
        if self.doctor.thorough {
            self.silent_will(&mut own).await?;
        }
        own.close().await;
        Ok(())
    }

    fn found(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// The time until then, or that there is none.
    fn until(&self, patience: Duration, what: &'static str) -> Step<Instant> {
        let until = Instant::now() + patience;
        match until <= self.deadline {
            true => Ok(until),
            false => Err(End::NoTime(what)),
        }
    }

    /// Finds the version, and whether we are let in at all.
    async fn connect(&mut self) -> Step<()> {
        let timeout = self.options.connect_timeout.min(self.doctor.timeout);
        self.options.connect_timeout = timeout;
        let versions: &[Version] = match self.options.version {
            Version::Auto => &[Version::V5, Version::V311],
            Version::V5 => &[Version::V5],
            Version::V311 => &[Version::V311],
        };
        let mut first_reason = None;
        for version in versions {
            self.options.version = *version;
            let since = Instant::now();
            match self.try_open(&[]).await? {
                Ok(line) => {
                    let took = since.elapsed();
                    line.close().await;
                    self.version = match version {
                        Version::V311 => "3.1.1",
                        _ => "5",
                    };
                    let version = self.version;
                    self.found(Finding::Connected { version, took });
                    return Ok(());
                }
                Err(
                    reason @ (DisconnectReason::UnsupportedVersion { .. }
                    | DisconnectReason::ClosedByBroker { .. }
                    | DisconnectReason::Protocol { .. }),
                ) => {
                    first_reason.get_or_insert(reason);
                }
                Err(reason) => return Err(End::Ended(first_reason.unwrap_or(reason))),
            }
        }
        let reason = first_reason.expect("each version that was tried left a reason");
        Err(End::Ended(reason))
    }

    async fn try_open(
        &mut self,
        filters: &[String],
    ) -> Result<std::result::Result<Line, DisconnectReason>> {
        let (client_id, _) = self.voice.session();
        Line::open(self.options.clone(), client_id, None, filters).await
    }

    async fn open(&mut self, filters: &[String]) -> Step<Line> {
        match self.try_open(filters).await? {
            Ok(line) => Ok(line),
            Err(reason) => Err(End::Ended(reason)),
        }
    }

    /// Is this name taken, and by whom is the cluster made up? Whether our own probe came back.
    async fn meet(&mut self, main: &mut Line) -> Step<bool> {
        let came_back = self.first_echo(main).await?;
        if let Some(took) = came_back {
            self.patience = (PATIENCE * took).clamp(SHORTEST_PATIENCE, FIRST_PATIENCE);
            let until = Instant::now() + NAME_PATIENCE.max(3 * took);
            self.listen(main, until, |_| false).await?;
        }
        if let Some((key, incarnation)) = self.heard.twin {
            self.found(Finding::NameTaken);
            let until = Instant::now() + CLUSTER_PATIENCE.max(2 * self.doctor.heartbeat());
            self.listen(main, until, |heard| heard.frame.is_some())
                .await?;
            if let Some(frame) = &self.heard.frame {
                self.voice.imitate(frame, key, incarnation);
            }
        }
        Ok(came_back.is_some())
    }

    /// How long the first message took that came back.
    async fn first_echo(&mut self, main: &mut Line) -> Step<Option<Duration>> {
        let Publish { topic, payload, .. } = self.voice.probe.clone();
        let since = Instant::now();
        for attempt in 1..=PROBES {
            // What cannot be said does not come back.
            let _ = main.say(&topic, payload.clone(), Qos::AtMostOnce, false);
            let until = (since + FIRST_PATIENCE * attempt / PROBES).min(self.deadline);
            loop {
                match main.hear(until).await {
                    News::Message(message)
                        if message.topic == topic && message.payload == payload =>
                    {
                        return Ok(Some(since.elapsed()));
                    }
                    News::Message(message) => self.note(message),
                    News::Refused { .. } => {}
                    News::Ended(reason) => return Err(End::Ended(reason)),
                    News::Silence => break,
                }
            }
        }
        Ok(None)
    }

    /// Takes what is said until then, or until it is enough.
    async fn listen(
        &mut self,
        main: &mut Line,
        until: Instant,
        enough: impl Fn(&Heard) -> bool,
    ) -> Step<()> {
        while !enough(&self.heard) {
            match main.hear(until.min(self.deadline)).await {
                News::Message(message) => self.note(message),
                News::Refused { .. } => {}
                News::Ended(reason) => return Err(End::Ended(reason)),
                News::Silence => break,
            }
        }
        Ok(())
    }

    /// Remembers what a message tells of the cluster.
    fn note(&mut self, message: Incoming) {
        let Incoming {
            topic,
            payload,
            retained,
            ..
        } = message;
        if topic == self.voice.topics.leader() {
            self.heard.leader = (retained && !payload.is_empty()).then_some(payload);
            return;
        }
        match self.voice.topics.parse(&topic) {
            Some(Topic::Status { node }) => {
                let ours = node == self.me;
                if !ours && says_online(&payload) {
                    self.heard.online.insert(node);
                } else if ours && retained && !payload.is_empty() {
                    self.heard.status = Some(payload);
                }
            }
            Some(Topic::Unicast { to, from }) if to == self.me && from == self.me => {
                if self.voice.is_taken_by(payload.clone())
                    && let Some(process) = voice::process_of(&payload)
                {
                    self.heard.twin = Some(process);
                }
            }
            Some(Topic::Broadcast { from } | Topic::Unicast { from, .. }) => {
                if self.voice.is_of_a_formed_cluster(&payload) {
                    self.heard.frame = Some(payload);
                }
                if from != self.me {
                    self.heard.others.insert(from);
                }
            }
            _ => {}
        }
    }

    /// Whether this node's status is to be left alone: a process stands behind it, or may.
    fn status_is_in_use(&self) -> bool {
        self.heard.twin.is_some() || self.heard.status.as_deref().is_some_and(says_online)
    }
}

impl Doctor {
    fn heartbeat(&self) -> Duration {
        self.heartbeat_interval.unwrap_or(self.election_timeout / 4)
    }
}

/// A status is JSON; whether it is true is for nodes to find out.
fn says_online(status: &[u8]) -> bool {
    let words: Vec<u8> = status
        .iter()
        .copied()
        .filter(|b| !b.is_ascii_whitespace())
        .collect();
    let online = br#""state":"online""#;
    words.windows(online.len()).any(|window| window == online)
}
