//! The node as its owner holds it: how it is built, and what can be asked of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raft::{LeadershipToken, NodeKey, Role};
use replica::{
    Autopilot, Change, ClusterKey, Config, Done, HandOver, HomeAssistant, KeyRing, Legacy, Link,
    Members, Metric, Name, Operation, Plan, Reading, Replica, Session, Tags, Topics, Transfer,
    Write, WriteAccess, Written,
};
use store::{RealDisk, Store, StoreOptions};
use tokio::sync::{mpsc, oneshot, watch};

use crate::beside::Beside;
use crate::clock;
use crate::connection::Mqtt;
use crate::driver::{Command, Driver, DriverState, SharedPlan};
use crate::error::{Error, Result};
use crate::kv::{Ask, Asks, Kv};
use crate::links::Links;
use crate::log::{Log, LogFunction};
use crate::outward::Outward;
use crate::outward::copies::Copies;
use crate::presence::PresenceManager;
use crate::status::{Shared, Status};
use crate::writer::Writer;

/// How many commands may wait for the node before callers wait too.
const COMMANDS: usize = 4_096;

/// How long a request may take, unless said otherwise.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The bounds of [`NodeBuilder::election_timeout`].
const ELECTION_TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_secs(600);

/// Whose prefix a wrong one is.
pub(crate) const HOME_ASSISTANT: &str = "Home Assistant";

/// What [`NodeBuilder::expect_voters`] takes.
const EXPECTABLE: std::ops::RangeInclusive<u32> = 1..=9;

/// One node of a cluster. Clones are handles to the same node; when the last is dropped the node
/// shuts down.
///
/// ```no_run
/// use raft_over_mqtt::{Mqtt, RaftNode};
///
/// # async fn example() -> raft_over_mqtt::Result<()> {
/// let node = RaftNode::initialize(Mqtt::new("mqtt://127.0.0.1:1883")?, "gw-1")
///     .cluster("plant-a")
///     .voters(["gw-1", "gw-2", "gw-3"])
///     .data_dir("/var/lib/mqraft")
///     .metric(10.0)
///     .insecure()
///     .start()
///     .await?;
/// node.put("door", "open").await?;
/// if node.is_leader() {
///     // Exactly one node gets here at a time.
/// }
/// node.shutdown().await
/// # }
/// ```
#[derive(Clone)]
pub struct RaftNode {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    stopped: watch::Receiver<Option<std::result::Result<(), Arc<Error>>>>,
    request_timeout: Duration,
}

/// Builds a [`RaftNode`].
#[must_use]
pub struct NodeBuilder {
    mqtt: Mqtt,
    id: String,
    prefix: String,
    cluster: String,
    voters: Vec<String>,
    expect_voters: Option<u32>,
    data_dir: Option<PathBuf>,
    metric: f64,
    tags: Vec<(String, String)>,
    election_timeout: Duration,
    heartbeat_interval: Option<Duration>,
    request_timeout: Duration,
    ring: Option<KeyRing>,
    hand_over: Option<HandOver>,
    autopilot: Option<Autopilot>,
    frame_version: u8,
    witness: bool,
    legacy: Option<String>,
    home_assistant: Option<String>,
    requests: Option<WriteAccess>,
    mirror: Vec<String>,
    log_function: Option<LogFunction>,
}

impl RaftNode {
    /// The node `id` that meets its cluster at `mqtt`.
    pub fn initialize(mqtt: Mqtt, id: impl Into<String>) -> NodeBuilder {
        NodeBuilder {
            mqtt,
            id: id.into(),
            prefix: "raft".to_owned(),
            cluster: "default".to_owned(),
            voters: Vec::new(),
            expect_voters: None,
            data_dir: None,
            metric: 0.0,
            tags: Vec::new(),
            election_timeout: raft::Options::default().election_timeout,
            heartbeat_interval: None,
            request_timeout: REQUEST_TIMEOUT,
            ring: None,
            hand_over: Some(HandOver::default()),
            autopilot: None,
            frame_version: replica::VERSION,
            witness: false,
            legacy: None,
            home_assistant: None,
            requests: None,
            mirror: Vec::new(),
            log_function: None,
        }
    }

    /// Whether this node is the only leader, for certain, at this moment.
    ///
    /// True only while a quorum confirmed it within the lease, and not before every older
    /// leader's lease has ended: no two nodes return true at the same time, as long as no clock
    /// drifts more than the cluster's bound (docs/timing.md). It answers for the moment of the
    /// call: what takes long afterwards needs a fencing token, the term, with it.
    pub fn is_leader(&self) -> bool {
        self.shared.current_lease().is_some()
    }

    /// The fencing token of an exclusive leadership. It only ever grows.
    pub fn fencing_token(&self) -> Option<LeadershipToken> {
        let lease = self.shared.current_lease();
        lease.map(|lease| lease.epoch.token())
    }

    /// The node's role in consensus; `None` while its cluster is not formed. More than one node
    /// may believe to lead for a moment: [`RaftNode::is_leader`] is the claim to rely on.
    pub fn role(&self) -> Option<Role> {
        self.shared.status.borrow().role
    }

    /// The newest term that the node has taken part in.
    pub fn term(&self) -> u64 {
        self.shared.status.borrow().term
    }

    /// Who leads, as far as this node knows.
    pub fn leader(&self) -> Option<String> {
        self.shared.status.borrow().leader.clone()
    }

    /// The node's metric: lower is better.
    pub fn metric(&self) -> f64 {
        self.shared.status.borrow().metric
    }

    /// Changes the metric; the other nodes learn of it without an election.
    ///
    /// # Errors
    /// When it is NaN or infinite, or the node has stopped.
    pub async fn set_metric(&self, metric: f64) -> Result<()> {
        self.send(Command::SetMetric(Metric::new(metric)?)).await
    }

    /// Changes the cluster keys while the node runs: the first seals, all are accepted. No frame is
    /// lost as long as each node accepts what the others seal with; see [`crate::KeyFile`] for the
    /// order of steps. The will that the present session has left at the broker stays under the
    /// key of its beginning.
    ///
    /// # Errors
    /// When there is no key, since a running node does not become insecure, or the node has stopped.
    pub async fn set_keys(&self, keys: impl Into<KeyRing>) -> Result<()> {
        let keys = keys.into();
        if keys.is_insecure() {
            return Err(Error::Missing(
                "the keys of a running node are replaced, not taken away",
            ));
        }
        self.send(Command::SetKeys(keys)).await
    }

    /// The leader's metric, as it last said.
    pub fn leader_metric(&self) -> Option<f64> {
        self.shared.status.borrow().leader_metric
    }

    /// Who is there.
    pub fn presence_manager(&self) -> PresenceManager {
        PresenceManager {
            shared: Arc::clone(&self.shared),
        }
    }

    /// How the node is.
    pub fn status(&self) -> Status {
        self.shared.status.borrow().clone()
    }

    /// Every change of how the node is.
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// How many messages were not taken, by reason.
    pub fn rejections(&self) -> BTreeMap<String, u64> {
        self.shared.rejections()
    }

    /// Changes the replicated state. Done once a majority has it on disk.
    ///
    /// # Errors
    /// [`Error::Unknown`] if no answer came in time: the write may have been applied or may yet
    /// be. [`Error::TimedOut`], [`Error::TooLarge`] and [`Error::Busy`]: nothing was changed.
    pub async fn propose(&self, write: Write) -> Result<Written> {
        self.kv().propose(write).await
    }

    /// Sets a key.
    ///
    /// # Errors
    /// As [`RaftNode::propose`].
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Written> {
        self.kv().put(key, value).await
    }

    /// Removes a key; `applied` says whether it was there.
    ///
    /// # Errors
    /// As [`RaftNode::propose`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Written> {
        self.kv().delete(key).await
    }

    /// Sets a key, or removes it for a `value` of `None`, if it has the expected value, where
    /// `None` expects it to be absent; `applied` says whether it had.
    ///
    /// # Errors
    /// As [`RaftNode::propose`].
    pub async fn compare_and_swap(
        &self,
        key: impl Into<Bytes>,
        expected: Option<Bytes>,
        value: Option<Bytes>,
    ) -> Result<Written> {
        self.kv().compare_and_swap(key, expected, value).await
    }

    /// Reads a key, linearizably: what was written before the call is seen (ReadIndex).
    ///
    /// # Errors
    /// [`Error::TimedOut`] if no leader answered in time.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>> {
        match self.request(Operation::Get(key.into())).await? {
            Done::Read(reading) => Ok(reading.value.map(|value| value.0)),
            _ => Err(Error::Unexpected),
        }
    }

    /// Reads a key as it stands on this node: at once, without a leader, and perhaps behind.
    ///
    /// # Errors
    /// When the node has stopped, or is a witness: [`Error::Refused`].
    pub async fn get_stale(&self, key: impl Into<Bytes>) -> Result<Reading> {
        if self.shared.status.borrow().witness {
            return Err(Error::Refused("a witness holds no state".to_owned()));
        }
        let (answer, answered) = oneshot::channel();
        self.send(Command::GetStale {
            key: key.into(),
            answer,
        })
        .await?;
        answered.await.map_err(|_| Error::Closed)
    }

    /// Hands the lead to `to`, or to the voter with the best metric. Returns who leads then.
    ///
    /// What this node did as the only leader is to stop first: whoever holds a
    /// [`crate::Leadership`] is told, and waited for up to ten seconds.
    ///
    /// # Errors
    /// [`Error::Refused`] and [`Error::NotYet`] say why the lead stayed; [`Error::Unknown`] if no
    /// answer came in time.
    pub async fn transfer(&self, to: Option<&str>) -> Result<String> {
        let from = self.leader().filter(|_| to.is_none());
        let to = to.map(str::to_owned);
        match self
            .request(Operation::Transfer(Transfer { to, from }))
            .await?
        {
            Done::Transferred(leader) => Ok(leader),
            _ => Err(Error::Unexpected),
        }
    }

    /// Who belongs to the cluster, linearizably.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if no leader answered in time.
    pub async fn members(&self) -> Result<Members> {
        match self.request(Operation::Members).await? {
            Done::Members(members) => Ok(members),
            _ => Err(Error::Unexpected),
        }
    }

    /// Changes members and settings, all at once, by joint consensus; returns the members then.
    ///
    /// # Errors
    /// [`Error::Refused`] and [`Error::NotYet`]: nothing was changed, for that reason.
    /// [`Error::Unknown`]: no answer came in time.
    pub async fn change(&self, change: Change) -> Result<Members> {
        match self.request(Operation::Change(change)).await? {
            Done::Members(members) => Ok(members),
            _ => Err(Error::Unexpected),
        }
    }

    /// The replicated state: transactions, ranges, watches, leases. What is asked of it goes to the
    /// leader; watches are answered from this node's own copy.
    pub fn kv(&self) -> Kv {
        Kv::new(Asks::Node(self.commands.clone()), self.request_timeout)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    async fn request(&self, operation: Operation) -> Result<Done> {
        let (answer, answered) = oneshot::channel();
        let timeout = self.request_timeout;
        self.send(Command::Ask(Ask::Request {
            operation,
            timeout,
            answer,
        }))
        .await?;
        let result = answered.await.map_err(|_| Error::Closed)?;
        result.map_err(|error| Error::of_request(error, timeout))
    }

    async fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).await.map_err(|_| Error::Closed)
    }

    /// Waits until the node has stopped by itself or was shut down.
    ///
    /// # Errors
    /// Why it had to stop.
    pub async fn stopped(&self) -> std::result::Result<(), Arc<Error>> {
        let mut stopped = self.stopped.clone();
        let outcome = match stopped.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        };
        outcome.unwrap_or_else(|| Err(Arc::new(Error::Closed)))
    }

    /// Hands the lead over if it has it, says farewell and stops; the data directory is free
    /// afterwards.
    ///
    /// # Errors
    /// Why the node had stopped before, if it had.
    pub async fn shutdown(&self) -> Result<()> {
        // A node that has stopped by itself takes no command, and says why below.
        let _ = self.commands.send(Command::Shutdown).await;
        self.stopped().await.map_err(Error::Ended)
    }
}

impl NodeBuilder {
    /// What stands before the cluster's name in every topic. Up to three levels; default `raft`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> NodeBuilder {
        self.prefix = prefix.into();
        self
    }

    /// The cluster's name; default `default`.
    pub fn cluster(mut self, cluster: impl Into<String>) -> NodeBuilder {
        self.cluster = cluster.into();
        self
    }

    /// The nodes that form the cluster and vote, the same list on each. Their first start needs
    /// all of them. A node that is not among them, or an empty list, is an observer: it follows
    /// without a vote.
    pub fn voters<T: Into<String>>(mut self, voters: impl IntoIterator<Item = T>) -> NodeBuilder {
        self.voters = voters.into_iter().map(Into::into).collect();
        self
    }

    /// Makes the node a witness: it stores the log and votes, so that two more nodes that hold the
    /// state survive the loss of any one of the three. It applies nothing, answers no reads, takes
    /// no writes and leads only to hand over; [`RaftNode::is_leader`] is never true here.
    ///
    /// The other voters learn it when the cluster is formed; a witness that is added later is added
    /// as one (`mqraft member add --witness`).
    pub fn witness(mut self) -> NodeBuilder {
        self.witness = true;
        self
    }

    /// In place of [`NodeBuilder::voters`]: the cluster is formed by so many of the empty nodes
    /// that expect this number, 1 to 9; those of the smallest names vote, the others follow.
    ///
    /// **Safe only while fewer than twice as many nodes are ever started so**, a node that lost
    /// its data directory counted again: twice as many that do not all hear each other can form
    /// two clusters. Name the voters where you can.
    pub fn expect_voters(mut self, expect: u32) -> NodeBuilder {
        self.expect_voters = Some(expect);
        self
    }

    /// Where the node keeps its log: a directory of its own. Required. Whoever loses it is a new
    /// node, without a vote.
    pub fn data_dir(mut self, data_dir: impl Into<PathBuf>) -> NodeBuilder {
        self.data_dir = Some(data_dir.into());
        self
    }

    /// Says something of the node beside its name: where it stands, what it can do. Everyone sees it in
    /// the list of who is there. At most 16 tags; a key has 1 to 64 bytes, a value at most 256, neither
    /// a control character. Of a key that comes twice the last value counts.
    pub fn tag(mut self, key: impl Into<String>, value: impl Into<String>) -> NodeBuilder {
        self.tags.push((key.into(), value.into()));
        self
    }

    /// How well the node suits to lead: lower is better; default 0. It decides who stands first,
    /// never who may win.
    pub fn metric(mut self, metric: f64) -> NodeBuilder {
        self.metric = metric;
        self
    }

    /// How long a voter waits for a silent leader. 50 ms to 10 min; default 1 s. It is also the
    /// lease that the cluster is formed with, so the voters must agree on it at their first start.
    /// How to choose it: docs/timing.md.
    pub fn election_timeout(mut self, timeout: Duration) -> NodeBuilder {
        self.election_timeout = timeout;
        self
    }

    /// How often a leader with nothing to say is heard. At most half the election timeout;
    /// default a quarter of it. While it leads, never longer than a third of the lease.
    pub fn heartbeat_interval(mut self, interval: Duration) -> NodeBuilder {
        self.heartbeat_interval = Some(interval);
        self
    }

    /// When this node, while it leads, hands over to a voter with a better metric; `None`: only
    /// when it is asked to. Default: after 5 s, and not before it has led for 10 s.
    pub fn hand_over(mut self, hand_over: Option<HandOver>) -> NodeBuilder {
        self.hand_over = hand_over;
        self
    }

    /// Keeps the number of voters while this node leads: a voter that stays silent gives its vote
    /// to an observer. Off by default; to be the same on all voters.
    pub fn autopilot(mut self, autopilot: Autopilot) -> NodeBuilder {
        self.autopilot = Some(autopilot);
        self
    }

    /// How long a request waits for its answer; default 10 s.
    pub fn request_timeout(mut self, timeout: Duration) -> NodeBuilder {
        self.request_timeout = timeout;
        self
    }

    /// The secrets that the members share while one replaces the other: the first seals, all are
    /// accepted. See [`crate::KeyFile`].
    pub fn keys(mut self, keys: KeyRing) -> NodeBuilder {
        self.ring = Some(keys);
        self
    }

    /// The secret that the members share. This or [`NodeBuilder::insecure`] is required.
    pub fn cluster_key(mut self, key: ClusterKey) -> NodeBuilder {
        self.ring = Some(KeyRing::of(key));
        self
    }

    /// Frames without a key: only for a broker on this machine.
    pub fn insecure(mut self) -> NodeBuilder {
        self.ring = Some(KeyRing::insecure());
        self
    }

    /// For a rolling upgrade or downgrade: the newest frame version to speak, 1 or 2; default 2.
    /// At 1 the node does as a build that knows no newer one, and while it is there nobody begins
    /// what that would not understand: no change of members, no transfer of the lead.
    pub fn frame_version(mut self, newest: u8) -> NodeBuilder {
        self.frame_version = newest;
        self
    }

    /// Keeps a fleet of node-raft-over-mqtt 1.2.1 nodes, whose certificates have this common name, as
    /// followers of this cluster's leader: docs/legacy.md. Off by default; to be given to all nodes
    /// of one cluster. They count as there in [`RaftNode::presence_manager`], in the role
    /// [`crate::LEGACY_ROLE`], and neither vote nor lead.
    pub fn legacy(mut self, prefix: impl Into<String>) -> NodeBuilder {
        self.legacy = Some(prefix.into());
        self
    }

    /// Shows the cluster in Home Assistant, as one device with leader, members and health, by MQTT
    /// discovery below this prefix, there `homeassistant` by default: docs/homeassistant.md. Off by
    /// default; to be given to all voters. [`crate::remove_from_home_assistant`] removes it.
    pub fn home_assistant(mut self, prefix: impl Into<String>) -> NodeBuilder {
        self.home_assistant = Some(prefix.into());
        self
    }

    /// Answers requests of any MQTT client, in JSON, while this node leads: docs/mqtt-api.md. They may
    /// read all keys but the cluster's own, and write where `access` says. Off by default; to be given
    /// to all voters alike.
    ///
    /// Whoever the broker lets publish on `<prefix>/<cluster>/req/<name>` may ask, without the cluster
    /// key: the broker's ACL is all that stands before it.
    pub fn requests(mut self, access: WriteAccess) -> NodeBuilder {
        self.requests = Some(access);
        self
    }

    /// Publishes the keys that begin with one of these as retained messages on
    /// `<prefix>/<cluster>/kv/<key>`, while this node leads: docs/mqtt-api.md. An empty prefix is all
    /// keys but the cluster's own. Off by default; to be given to all voters alike.
    pub fn mirror<T: Into<String>>(mut self, prefixes: impl IntoIterator<Item = T>) -> NodeBuilder {
        self.mirror = prefixes.into_iter().map(Into::into).collect();
        self
    }

    /// Called with every line that the node logs, beside `tracing`.
    pub fn log_function(mut self, log: impl Fn(&str) + Send + Sync + 'static) -> NodeBuilder {
        self.log_function = Some(Arc::new(log));
        self
    }

    /// Opens the data directory and starts the node on the current tokio runtime. The broker
    /// need not be there yet: the node tries until it is.
    ///
    /// # Errors
    /// When something was given that cannot work, or the data directory cannot be opened. What
    /// goes wrong later is told by [`RaftNode::stopped`].
    pub async fn start(self) -> Result<RaftNode> {
        let names = self.names()?;
        let plan = self.plan(&names)?;
        let options = self.options()?;
        let metric = Metric::new(self.metric)?;
        let tags = Tags::new(self.tags.iter().cloned())?;
        let ring = self.checked_ring()?;
        let frame_version = self.frame_version;
        if !(1..=replica::VERSION).contains(&frame_version) {
            return Err(Error::FrameVersion(format!(
                "this build speaks the frame versions 1 to {}, not {frame_version}",
                replica::VERSION
            )));
        }
        let beside = self.beside(&names)?;
        let root = Topics::new(&self.prefix, &names.cluster)?;
        let brokers = self.mqtt.brokers.clone();
        let urls = self.mqtt.urls();
        let data_dir = self.data_dir.ok_or(Error::Missing(
            "a node needs a data directory: what it promises must outlive the process",
        ))?;
        let (store, recovered) = open_store(data_dir, &names).await?;
        let identity = recovered.identity;
        if let Some(cut) = &recovered.cut {
            tracing::warn!("a write that a power cut had left unfinished was cut off: {cut:?}");
        }
        let lease_ms = u32::try_from(self.election_timeout.as_millis()).unwrap_or(u32::MAX);
        let config = Config {
            prefix: self.prefix,
            metric,
            tags,
            settings: raft::Settings {
                lease_ms,
                ..raft::Settings::default()
            },
            raft: options,
            ring,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            plan,
            hand_over: self.hand_over,
            autopilot: self.autopilot,
            frame_version,
            witness: self.witness,
            brokers: self.mqtt.brokers.len(),
            ..Config::new(names.id.clone(), identity.key, names.cluster, names.voters)
        };
        let formation = identity.formation.as_deref();
        let seed = random()?;
        let replica = Replica::new(config, formation, recovered.durable, seed, clock::now())
            .map_err(Error::of_start)?;
        let plan = SharedPlan::new(replica.session_plan());
        let plans = plan.clone();
        let client_ids = replica.session_plan();
        let others = beside.subscriptions();
        let mut mqtt = self.mqtt;
        // A node knows what it has said: without this every append would come back to its leader.
        let [broadcasts, ..] = client_ids.subscriptions();
        for options in &mut mqtt.brokers {
            options.no_local = vec![broadcasts.clone()];
        }
        let links = Links::connect(mqtt, move |session| {
            let plan = plans.current();
            let will = plan.will(session);
            mqtt::SessionSetup {
                client_id: plan.client_id(session),
                will: Some(mqtt::Will {
                    topic: will.topic,
                    payload: will.payload,
                    qos: mqtt::Qos::AtLeastOnce,
                    retain: true,
                }),
                subscriptions: [subscriptions(&plan.subscriptions()), others.clone()].concat(),
            }
        })?;
        let (reports, written) = mpsc::unbounded_channel();
        let writer = Writer::start(store, reports).map_err(|source| {
            Error::Open(store::OpenError::Unreadable {
                file: "the disk thread".to_owned(),
                operation: "start",
                source,
            })
        })?;
        let (commands, command_queue) = mpsc::channel(COMMANDS);
        let (outcome, stopped) = watch::channel(None);
        let shared = Shared::new();
        let log = Log {
            node: names.id.as_str().into(),
            hook: self.log_function,
        };
        let kv = Kv::new(Asks::OwnNode(commands.downgrade()), self.request_timeout);
        let mut outward = Vec::new();
        if self.requests.is_some() || !self.mirror.is_empty() {
            let copies = Arc::<Copies>::default();
            for (place, options) in brokers.into_iter().enumerate() {
                let link = Link::new(place).unwrap_or_default();
                outward.push(Outward {
                    link,
                    copies: Arc::clone(&copies),
                    access: self.requests.clone(),
                    prefixes: self.mirror.clone(),
                    options,
                    root: root.root().to_owned(),
                    client_id: client_ids.client_id(Session { link, epoch: 0 }),
                    kv: kv.clone(),
                    shared: Arc::clone(&shared),
                    log: log.clone(),
                });
            }
        }
        let driver = Driver {
            replica,
            links,
            urls,
            writer,
            written,
            commands: command_queue,
            shared: Arc::clone(&shared),
            plan,
            beside,
            log: log.clone(),
            state: DriverState::default(),
        };
        tokio::spawn(async move {
            let result = driver.run().await;
            if let Err(error) = &result {
                log.warn(&format!("stopped: {error}"));
            }
            outcome.send_replace(Some(result.map_err(Arc::new)));
        });
        for outward in outward {
            let mut stopped = stopped.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = outward.run() => {}
                    _ = stopped.wait_for(Option::is_some) => {}
                }
            });
        }
        Ok(RaftNode {
            commands,
            shared,
            stopped,
            request_timeout: self.request_timeout,
        })
    }

    fn names(&self) -> Result<Names> {
        let mut voters = Vec::new();
        for voter in &self.voters {
            voters.push(checked("voter", voter)?);
        }
        let names = Names {
            id: checked("node id", &self.id)?,
            cluster: checked("cluster", &self.cluster)?,
            voters,
        };
        Ok(names)
    }

    fn plan(&self, names: &Names) -> Result<Plan> {
        match self.expect_voters {
            None => Ok(Plan::Voters(names.voters.clone())),
            Some(_) if self.witness => Err(Error::Voters(
                "a witness is named among the voters, or added later: it cannot be expected"
                    .to_owned(),
            )),
            Some(_) if !names.voters.is_empty() => Err(Error::Voters(
                "the voters are either named or expected, not both".to_owned(),
            )),
            Some(expect) if EXPECTABLE.contains(&expect) => Ok(Plan::Expect(expect)),
            Some(expect) => Err(Error::Voters(format!(
                "1 to 9 voters can be expected, not {expect}"
            ))),
        }
    }

    fn beside(&self, names: &Names) -> Result<Beside> {
        let topics = Topics::new(&self.prefix, &names.cluster)?;
        let (seed, now) = (u64::from_be_bytes(random()?), clock::now());
        let wrong = |what, prefix: &String| {
            let prefix = prefix.clone();
            move |source| Error::OtherPrefix {
                what,
                prefix,
                source,
            }
        };
        let legacy = self.legacy.as_ref().map(|prefix| {
            let me = names.id.clone();
            let legacy = Legacy::new(prefix, topics.root(), me, seed, now);
            legacy.map_err(wrong("legacy", prefix))
        });
        let home = self.home_assistant.as_ref().map(|prefix| {
            let version = env!("CARGO_PKG_VERSION");
            let home = HomeAssistant::new(prefix, &topics, version, seed, now);
            home.map_err(wrong(HOME_ASSISTANT, prefix))
        });
        Ok(Beside::new(legacy.transpose()?, home.transpose()?))
    }

    fn checked_ring(&self) -> Result<KeyRing> {
        let ring = self.ring.clone().ok_or(Error::Missing(
            "a node needs the cluster key (`mqraft keygen` makes one), or --insecure for a broker on this machine",
        ))?;
        if ring.is_insecure() && !self.mqtt.is_loopback() {
            return Err(Error::Insecure {
                broker: self.mqtt.url(),
            });
        }
        Ok(ring)
    }

    fn options(&self) -> Result<raft::Options> {
        let election_timeout = self.election_timeout;
        if !ELECTION_TIMEOUTS.contains(&election_timeout) {
            return Err(Error::Timing(format!(
                "an election timeout lies between 50 ms and 10 min, not at {election_timeout:?}"
            )));
        }
        let heartbeat_interval = self.heartbeat_interval.unwrap_or(election_timeout / 4);
        if heartbeat_interval.is_zero() || heartbeat_interval > election_timeout / 2 {
            return Err(Error::Timing(format!(
                "a heartbeat interval of {heartbeat_interval:?} does not fit an election timeout of {election_timeout:?}: it is above zero and at most half of it"
            )));
        }
        Ok(raft::Options {
            election_timeout,
            heartbeat_interval,
            ..raft::Options::default()
        })
    }
}

struct Names {
    id: Name,
    cluster: Name,
    voters: Vec<Name>,
}

pub(crate) fn checked(what: &'static str, text: &str) -> Result<Name> {
    Name::new(text).map_err(|source| Error::Name {
        what,
        name: text.to_owned(),
        source,
    })
}

pub(crate) fn subscriptions(filters: &[String]) -> Vec<(String, mqtt::Qos)> {
    // Frames go at QoS 0 and statuses at QoS 1: the subscription allows both.
    filters
        .iter()
        .map(|filter| (filter.clone(), mqtt::Qos::AtLeastOnce))
        .collect()
}

/// Bytes that nobody can guess.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(Error::Random)?;
    Ok(bytes)
}

async fn open_store(
    data_dir: PathBuf,
    names: &Names,
) -> Result<(Store<RealDisk>, store::Recovered)> {
    let options = StoreOptions::new(names.id.as_str(), names.cluster.as_str());
    let key = NodeKey(u128::from_be_bytes(random()?));
    let opening = tokio::task::spawn_blocking(move || {
        let disk = RealDisk::open(&data_dir).map_err(|source| store::OpenError::Unreadable {
            file: data_dir.display().to_string(),
            operation: "open",
            source,
        })?;
        Store::open(disk, &options, || key)
    });
    let opened = opening.await.map_err(|_| Error::Closed)?;
    Ok(opened?)
}
