//! The vocabulary of a node: what it is started with, what goes in, what comes out.

use super::*;
use crate::frame::VERSION;
use crate::kv::Bounds;
use crate::link::{Link, Session};
use crate::state::{Cursor, KeyRange, Watched};

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name.
    pub name: Name,
    /// Its key: persisted, drawn when its data directory was made.
    pub key: NodeKey,
    /// What stands before the cluster's name in every topic.
    pub prefix: String,
    /// The cluster's name.
    pub cluster: Name,
    /// With whom the cluster is formed, if it is formed now.
    pub plan: Plan,
    /// The node's metric at start.
    pub metric: Metric,
    /// What its owner says of it beside its name.
    pub tags: Tags,
    /// What the cluster is formed with, if it is formed now.
    pub settings: Settings,
    /// The node's own timing and bounds.
    pub raft: raft::Options,
    /// The cluster keys.
    pub ring: KeyRing,
    /// The program's version, shown in its status.
    pub version: String,
    /// When a leader hands over to a voter with a better metric; `None`: only when asked.
    pub hand_over: Option<HandOver>,
    /// How a leader keeps the number of voters; `None`: only operators change it.
    pub autopilot: Option<Autopilot>,
    /// How long a leader that hands over waits for [`Input::Relinquished`]. Without it its
    /// successor waits for the lease to run out. Default 10 s.
    pub relinquish_timeout: Duration,
    /// The newest frame version to speak, for an upgrade or a downgrade node by node. Default:
    /// the newest that this build knows.
    pub frame_version: u8,
    /// The node holds the log for others, applies nothing and never leads but to hand over.
    pub witness: bool,
    /// How many brokers it uses at once; its status says when some are out of reach.
    pub brokers: usize,
    /// How much the replicated state holds. For tests: see [`Bounds`].
    pub bounds: Bounds,
}

impl Config {
    /// A node that forms its cluster with `voters`, an observer if it is not among them; it runs
    /// in insecure mode until a key is given.
    pub fn new(name: Name, key: NodeKey, cluster: Name, voters: Vec<Name>) -> Config {
        Config {
            name,
            key,
            prefix: "raft".to_owned(),
            cluster,
            plan: Plan::Voters(voters),
            metric: Metric::default(),
            tags: Tags::default(),
            settings: Settings::default(),
            raft: raft::Options::default(),
            ring: KeyRing::insecure(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hand_over: Some(HandOver::default()),
            autopilot: None,
            relinquish_timeout: Duration::from_secs(10),
            frame_version: VERSION,
            witness: false,
            brokers: 1,
            bounds: Bounds::default(),
        }
    }

    /// Seals frames with `key`.
    pub fn with_key(self, key: ClusterKey) -> Config {
        Config {
            ring: KeyRing::of(key),
            ..self
        }
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A session with a broker is up and subscribed.
    Connected(Session),
    /// The session with this broker is gone.
    Disconnected(Link),
    /// A broker delivered a message.
    Received {
        /// Which broker.
        over: Link,
        /// Its topic.
        topic: String,
        /// Its payload.
        payload: Bytes,
        /// Whether the broker had kept it from before.
        retained: bool,
    },
    /// All writes up to this one are durable.
    Persisted(PersistSeq),
    /// What [`Effect::SaveFormation`] asked for is durable.
    FormationSaved,
    /// A caller in this process wants something.
    Request {
        /// The caller's mark, given back with the result.
        token: Token,
        /// What it wants.
        operation: Operation,
        /// How long it will wait.
        timeout: Duration,
    },
    /// A caller wants to know of changes of the state.
    Watch {
        /// The caller's mark.
        token: Token,
        /// Of which keys.
        range: KeyRange,
        /// From where on.
        from: Cursor,
    },
    /// It no longer wants to.
    Unwatch(Token),
    /// The node's metric changed.
    SetMetric(Metric),
    /// The cluster keys changed: the first seals, all are accepted. The sessions to come need a new
    /// [`SessionPlan`]; the present one's will stays as it was left at the broker.
    SetKeys(KeyRing),
    /// Whoever acted on this node's being the only leader has stopped: the answer to
    /// [`Event::Relinquish`].
    Relinquished,
    /// The node is to stop: if it leads, it hands the lead over first. [`Replica::has_stopped`]
    /// tells when it is done.
    Leave,
    /// The node is to stop at once: it says farewell.
    Shutdown,
    /// Time has passed.
    Tick,
}

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Publish this in every session that is up.
    Publish(Publish),
    /// Publish this in the session with this broker.
    PublishOver(Link, Publish),
    /// Make this durable, then say [`Input::Persisted`].
    Persist(Persist),
    /// Make the formation record durable, then say [`Input::FormationSaved`].
    SaveFormation(Bytes),
    /// A caller's request has come to an end.
    Done {
        /// The caller's mark.
        token: Token,
        /// What came of it.
        result: Result<Done, RequestError>,
    },
    /// What a caller's watch has seen; it asks again for what follows.
    Watched {
        /// The caller's mark.
        token: Token,
        /// What there is.
        watched: Watched,
    },
    /// Tell whoever watches.
    Event(Event),
}

/// Something worth telling.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Role, term, leader or lease changed; read them from the node.
    StatusChanged,
    /// Someone came, changed or went.
    Presence(PresenceEvent),
    /// Who is there as the cluster has agreed has changed: read [`Replica::agreed`].
    Agreed,
    /// A message was not taken.
    Refused {
        /// The topic it came on.
        topic: String,
        /// Why.
        reason: Refused,
    },
    /// A member said what no correct member says.
    Rejected {
        /// Who.
        from: String,
        /// What was wrong.
        reason: raft::Rejection,
    },
    /// The cluster does not come to be; an operator has to look.
    Trouble(Trouble),
    /// What was told as a trouble has ended.
    TroubleEnded(Trouble),
    /// The node is now of a formed cluster.
    Joined {
        /// Its voters by name.
        voters: Vec<String>,
        /// Whether this node is one of them.
        voter: bool,
    },
    /// The lead is being handed over, and the claim to be the only leader is withdrawn. Stop what
    /// rests on it, then say [`Input::Relinquished`].
    Relinquish,
    /// The autopilot takes a step, for this reason.
    Autopilot(String),
    /// The node must stop.
    Stop(StopReason),
}

/// Why a node must stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// Another process runs under its name.
    #[error(
        "another process is running as {0}: give this node another --id, or stop the other one"
    )]
    NameTaken(Name),
    /// It was a member, and is none any more.
    #[error(
        "this node is no longer a member of the cluster: it was removed. Started again, it follows without a vote"
    )]
    Removed,
    /// Another process runs under its node key, and this one cannot go on.
    #[error(
        "{0} runs under this node's key: one data directory is a copy of the other. Empty the copy before you start it again, and start only the original"
    )]
    Twin(Name),
    /// It was started as a witness, and the cluster counts on its state.
    #[error(
        "this node was started as a witness, and is none to its cluster: start it with `mqraft node`"
    )]
    NoWitness,
    /// It was started to hold the state, and the cluster knows it as a witness.
    #[error("this node is a witness to its cluster: start it with `mqraft witness`")]
    Witness,
    /// A snapshot that this build cannot read.
    #[error("the leader's snapshot cannot be read: {0}; is this node older than the leader?")]
    Snapshot(String),
}

/// What a new session with a broker needs.
#[derive(Clone, Debug)]
pub struct SessionPlan {
    pub(super) name: Name,
    pub(super) key: NodeKey,
    pub(super) incarnation: Incarnation,
    pub(super) topics: Topics,
    pub(super) ring: KeyRing,
}

impl SessionPlan {
    pub(crate) fn of(endpoint: &Endpoint) -> SessionPlan {
        let Endpoint {
            name,
            key,
            incarnation,
            topics,
            ring,
            ..
        } = endpoint;
        SessionPlan {
            name: name.clone(),
            key: *key,
            incarnation: *incarnation,
            topics: topics.clone(),
            ring: ring.clone(),
        }
    }

    /// The MQTT client id: no two sessions share one, so that no broker ever takes a session
    /// over (a takeover can suppress a will).
    pub fn client_id(&self, session: Session) -> String {
        let incarnation = self.incarnation.to_string();
        let Session { link, epoch } = session;
        match link {
            Link::FIRST => format!("{}-{}-{epoch}", self.name, &incarnation[..8]),
            // Two brokers of the list may be one.
            link => format!("{}-{}-{link}-{epoch}", self.name, &incarnation[..8]),
        }
    }

    /// The Last Will.
    pub fn will(&self, session: Session) -> Publish {
        let SessionPlan {
            name,
            key,
            incarnation,
            topics,
            ring,
        } = self;
        let speaker = Speaker {
            root: topics.root(),
            name,
            key: *key,
            incarnation: *incarnation,
            session,
        };
        let payload = Status::offline(ring, speaker);
        Publish {
            topic: topics.status(name),
            payload,
            retain: true,
        }
    }

    /// The topic filters to subscribe to.
    pub fn subscriptions(&self) -> [String; 5] {
        self.topics.subscriptions(&self.name)
    }
}

/// Why a node cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The prefix cannot stand in a topic.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// The formation record on disk cannot be read.
    #[error("the formation record in the data directory cannot be read: {0}")]
    Formation(String),
    /// The disk holds a log of no formed cluster: whoever made it did not finish.
    #[error("the data directory holds a log and no cluster that it belongs to")]
    Unfinished,
    /// It was a witness when it accepted to form its cluster, and is none now, or the reverse.
    #[error(
        "this node has promised to form a cluster as a witness and was started as none, or the reverse: start it as before (`mqraft witness` or `mqraft node`)"
    )]
    Witness,
    /// The disk holds what the frame version that the node is to speak does not have.
    #[error(
        "the data directory holds what frame version {0} does not have: an older build cannot take it over any more"
    )]
    FrameVersion(u8),
}
