//! What can be found out about a broker, and how much each of it matters.

use std::time::Duration;

use mqtt::DisconnectReason;

use super::Timeouts;

/// What was found out about one broker.
#[derive(Debug)]
pub struct Report {
    /// The broker's URL, without a password.
    pub broker: String,
    /// In the order in which it was found.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The worst of all findings.
    pub fn severity(&self) -> Severity {
        let all = self.findings.iter().map(Finding::severity);
        all.max().unwrap_or(Severity::Fine)
    }

    /// Whether every check was made.
    pub fn is_complete(&self) -> bool {
        let cut_short = |f: &Finding| matches!(f, Finding::NoTime(_) | Finding::Interrupted);
        !self.findings.iter().any(cut_short)
    }
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Fine,
    /// A node works, and something could be better or could not be told.
    Advice,
    /// A node works, and is slower or less dependable than it could be.
    Warning,
    /// A node does not work as it should.
    Fault,
}

/// What one check found.
#[derive(Debug)]
#[non_exhaustive]
pub enum Finding {
    /// A session came up.
    Connected {
        /// `"5"` or `"3.1.1"`.
        version: &'static str,
        /// From the first byte to the broker's word that we are in.
        took: Duration,
    },
    /// No session came up, or it ended during the examination.
    NotConnected(DisconnectReason),
    /// A process under this node's name answers. It may be the very node whose settings are checked.
    NameTaken,
    /// Other nodes of the cluster that were heard.
    Heard(Vec<String>),
    /// One topic that a node needs.
    Topic {
        /// The topic or filter.
        topic: String,
        /// What for.
        purpose: Purpose,
        /// What became of a message there.
        outcome: Outcome,
    },
    /// Whether the broker keeps retained messages, and lets them go.
    Retain {
        /// A retained message was there for who subscribed later.
        kept: bool,
        /// An empty one removed it. `None`: not tried, since a node's own status stands there.
        cleared: Option<bool>,
    },
    /// How long after an ungraceful end the will was heard; `None`: it was not.
    Will(Option<Duration>),
    /// The broker did not let a session in that had a will as a node's.
    WillRefused(DisconnectReason),
    /// How long after its last word the will of a client was heard that fell silent with an open
    /// connection; only with [`super::Doctor::thorough`].
    SilentWill {
        /// What was promised to the broker.
        keep_alive: Duration,
        /// `None`: it was not heard in time.
        after: Option<Duration>,
    },
    /// The way to the broker and back.
    RoundTrip(RoundTrip),
    /// The same for a client that, other than ours on Linux, leaves acknowledging to its kernel.
    Nagle {
        /// The median, of the second of two messages in a row.
        second_of_two: Duration,
        /// The median of our own messages.
        ours: Duration,
    },
    /// The largest frame that came back.
    Payload {
        /// In bytes; 0 if none did.
        largest: usize,
        /// The largest that a node sends.
        needed: usize,
        /// How long the largest took.
        took: Duration,
    },
    /// Frames at QoS 0, all at once.
    Burst {
        /// How many.
        sent: usize,
        /// Of how many bytes each.
        size: usize,
        /// How many came back.
        arrived: usize,
    },
    /// The node's timing, given this broker.
    Timeouts(Timeouts),
    /// There was no time left for a check, nor for what would have followed.
    NoTime(&'static str),
    /// It was stopped before its end.
    Interrupted,
}

/// What a topic is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// Frames to this node.
    Own,
    /// Frames to every node.
    Broadcast,
    /// Frames to one other voter.
    Peer,
    /// Who is there? To this node, and its answers.
    OwnRoll,
    /// Who is there? To everyone.
    Roll,
    /// This node's birth and will.
    Status,
    /// Who leads.
    Leader,
    /// Requests of any MQTT client.
    Requests,
    /// Answers to them.
    Answers,
    /// Mirrored keys.
    Mirror,
}

/// What became of a message on a topic, or of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It came back, or the broker took it where a node only publishes.
    Works,
    /// The broker said that we must not publish there.
    PublishRefused(String),
    /// The broker said that we must not subscribe.
    SubscribeRefused,
    /// It was taken, as far as MQTT 5 tells, and did not come back: reading is forbidden.
    NotReadable,
    /// It did not come back. In MQTT 3.1.1 nobody says whether writing or reading is forbidden.
    Lost,
    /// A node only publishes there, or only reads, and whether it may cannot be found out without the
    /// other: MQTT 3.1.1 does not tell, or publishing is forbidden where a node only reads.
    NotTold,
    /// Not tried: running nodes would hear it, and remark on it in their logs.
    Untried,
}

/// The way to the broker and back, of small frames one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundTrip {
    /// How many came back.
    pub samples: usize,
    /// How many did not.
    pub lost: usize,
    /// The median.
    pub p50: Duration,
    /// Of a hundred one took longer.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

impl RoundTrip {
    /// Of so many none came back.
    pub(super) fn lost(lost: usize) -> RoundTrip {
        RoundTrip {
            samples: 0,
            lost,
            p50: Duration::ZERO,
            p99: Duration::ZERO,
            max: Duration::ZERO,
        }
    }
}

/// How fast a broker is, as far as timeouts depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The longest way of a small frame to the broker and back.
    pub round_trip: Duration,
    /// That of the largest frame, if it came back.
    pub large_frame: Option<Duration>,
}

/// A will this late costs what it is there to save.
const LATE_WILL: Duration = Duration::from_millis(500);

/// What Nagle's algorithm costs lies well above this, and what the way to the broker costs is taken off.
const NAGLE: Duration = Duration::from_millis(20);

/// A large frame that takes this long is held up.
const HELD_UP_FOR: Duration = Duration::from_millis(200);

impl Finding {
    /// How much it matters.
    pub fn severity(&self) -> Severity {
        use Severity::{Advice, Fault, Fine, Warning};
        match self {
            Finding::Connected { version: "5", .. } => Fine,
            Finding::Connected { .. } | Finding::NameTaken => Advice,
            Finding::NoTime(_) | Finding::Interrupted => Warning,
            Finding::NotConnected(_) | Finding::WillRefused(_) => Fault,
            Finding::Heard(_) => Fine,
            Finding::Topic { outcome, .. } => match outcome {
                Outcome::Works | Outcome::Untried => Fine,
                Outcome::NotTold => Advice,
                _ => Fault,
            },
            Finding::Retain { kept: false, .. } => Fault,
            Finding::Retain { cleared, .. } => match cleared {
                Some(false) => Fault,
                _ => Fine,
            },
            Finding::Will(None) => Fault,
            Finding::Will(Some(after)) if *after > LATE_WILL => Warning,
            Finding::Will(_) => Fine,
            Finding::SilentWill { after: None, .. } => Fault,
            Finding::SilentWill { .. } => Fine,
            Finding::RoundTrip(trip) if trip.samples == 0 => Fault,
            Finding::RoundTrip(trip) if trip.lost > 0 => Warning,
            Finding::RoundTrip(_) => Fine,
            Finding::Nagle { .. } if self.is_slowed_by_nagle() => Advice,
            Finding::Nagle { .. } => Fine,
            Finding::Payload {
                largest, needed, ..
            } if largest < needed => Fault,
            Finding::Payload { took, .. } if *took > HELD_UP_FOR => Warning,
            Finding::Payload { .. } => Fine,
            Finding::Burst { sent, arrived, .. } if arrived < sent => Warning,
            Finding::Burst { .. } => Fine,
            Finding::Timeouts(timeouts) => timeouts.severity(),
        }
    }

    /// Whether the broker waits for a client's acknowledgement before it sends the next small packet.
    pub fn is_slowed_by_nagle(&self) -> bool {
        matches!(self, Finding::Nagle { second_of_two, ours } if *second_of_two > *ours + NAGLE)
    }
}
