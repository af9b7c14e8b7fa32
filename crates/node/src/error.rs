//! What can go wrong, by what the caller can do about it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use replica::{
    FoundError, MetricError, NameError, OtherPrefixError, PrefixError, RequestError, SavedError,
    StopReason, TagError,
};

/// The one error of this library. Messages are lower-case and say what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that cannot stand in a topic.
    #[error("{what} {name:?}: {source}")]
    Name {
        /// Whose: `"node id"`, `"voter"` or `"cluster"`.
        what: &'static str,
        /// The text.
        name: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// A prefix that cannot stand before a topic.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// A prefix of others' topics that cannot stand before one.
    #[error("{what} prefix {prefix:?}: {source}")]
    OtherPrefix {
        /// Whose: `"legacy"` or `"Home Assistant"`.
        what: &'static str,
        /// The text.
        prefix: String,
        /// What is wrong with it.
        source: OtherPrefixError,
    },
    /// A metric that is no number.
    #[error(transparent)]
    Metric(#[from] MetricError),
    /// The node's tags.
    #[error(transparent)]
    Tags(#[from] TagError),
    /// Timing that cannot work.
    #[error("{0}")]
    Timing(String),
    /// Voters that cannot form a cluster.
    #[error("{0}")]
    Voters(String),
    /// A frame version that this build does not speak, or one that does not have what the data
    /// directory holds.
    #[error("{0}")]
    FrameVersion(String),
    /// Something was not given that a node needs.
    #[error("{0}")]
    Missing(&'static str),
    /// Frames without a key, to a broker that others can reach.
    #[error(
        "insecure mode is for a broker on this machine, and {broker} is not: make a cluster key with `mqraft keygen` and give it to every node"
    )]
    Insecure {
        /// The broker.
        broker: String,
    },
    /// More brokers than a process can use at once.
    #[error("{0} brokers: at most 4 are used at once")]
    TooManyBrokers(usize),
    /// The options for the broker contradict themselves, or a TLS file is unusable.
    #[error(transparent)]
    Mqtt(#[from] mqtt::OptionsError),
    /// The broker refused us for a reason that no retry mends.
    #[error(transparent)]
    Connect(#[from] mqtt::DisconnectReason),
    /// The data directory cannot be opened.
    #[error(transparent)]
    Open(#[from] store::OpenError),
    /// What the node was to remember could not be written: it has stopped (design point 10).
    #[error("the disk failed: {0}")]
    Disk(Arc<store::WriteError>),
    /// The data directory holds a formation record that this build cannot read.
    #[error("the formation record in the data directory cannot be read: {0}")]
    Formation(String),
    /// A data directory that a restore was begun in and not finished.
    #[error("{0}")]
    Unfinished(&'static str),
    /// A file cannot be read or written.
    #[error("cannot {operation} {}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is no snapshot, or a damaged one; or a node sent one that cannot be read.
    #[error("{}: {source}", .path.display())]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SavedError,
    },
    /// A node sent a state that this build cannot read.
    #[error("the copy that the node sent cannot be used: {0}")]
    Copy(SavedError),
    /// No cluster can be made of this.
    #[error(transparent)]
    Found(#[from] FoundError),
    /// A new cluster needs an empty directory.
    #[error("{} is not empty: a new cluster needs a data directory of its own", .0.display())]
    NotEmpty(PathBuf),
    /// The node had to stop.
    #[error(transparent)]
    Stopped(#[from] StopReason),
    /// A write got no answer in time: it may have been applied or may yet be. Read, or use
    /// compare-and-swap, before you write again.
    #[error("outcome unknown: no answer in {0:?}; it may have been done or may yet be")]
    Unknown(Duration),
    /// No answer in time, and nothing was changed: a read, or a write that found no leader to be
    /// sent to.
    #[error(
        "no answer in {0:?}: is there a leader (see `mqraft status`), and are cluster, prefix and key file the right ones?"
    )]
    TimedOut(Duration),
    /// Key or value is too large; nothing was sent.
    #[error(transparent)]
    TooLarge(RequestError),
    /// Too many requests are under way; nothing was sent.
    #[error("too many requests under way: wait for some to finish")]
    Busy,
    /// There is no such lease, or none any more; nothing was changed. A session ended.
    #[error("the lease has ended, or there never was one")]
    NoSuchLease,
    /// The state is at its bound; nothing was changed.
    #[error("the cluster's state is full (at most {0}): delete something first")]
    Full(u64),
    /// Changes that a watch has not seen are no longer kept: read the range anew, and watch from that
    /// reading's revision.
    #[error(
        "the changes before revision {oldest} are no longer kept: read anew and watch from there"
    )]
    Compacted {
        /// The first revision that is still kept.
        oldest: u64,
    },
    /// The answer was of another kind than the question.
    #[error("the cluster's answer does not fit the question: does a node run another version?")]
    Unexpected,
    /// The leader does not do it; nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// The leader could not do it in time; nothing was changed.
    #[error("not within {1:?}: {0}")]
    NotYet(String, Duration),
    /// The node was shut down.
    #[error("the node was shut down")]
    Closed,
    /// The node had stopped by itself before, for this reason.
    #[error("the node had stopped: {0}")]
    Ended(Arc<Error>),
    /// The system gave no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
}

impl Error {
    pub(crate) fn of_request(error: RequestError, timeout: Duration) -> Error {
        match error {
            RequestError::Unknown => Error::Unknown(timeout),
            RequestError::TimedOut => Error::TimedOut(timeout),
            RequestError::TooLarge => Error::TooLarge(error),
            RequestError::Busy => Error::Busy,
            RequestError::NoSuchLease => Error::NoSuchLease,
            RequestError::Full(limit) => Error::Full(limit),
            RequestError::Refused(why) => Error::Refused(why),
            RequestError::NotYet(why) => Error::NotYet(why, timeout),
        }
    }

    pub(crate) fn of_start(error: replica::StartError) -> Error {
        match error {
            replica::StartError::Prefix(error) => Error::Prefix(error),
            replica::StartError::Formation(error) => Error::Formation(error),
            replica::StartError::Witness => Error::Voters(error.to_string()),
            replica::StartError::FrameVersion(_) => Error::FrameVersion(error.to_string()),
            replica::StartError::Unfinished => Error::Unfinished(
                "the data directory holds a state and no cluster that it belongs to: a restore into \
                 it did not finish; empty it and restore again",
            ),
        }
    }
}

/// What this library's functions return.
pub type Result<T> = std::result::Result<T, Error>;
