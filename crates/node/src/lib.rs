//! Exactly one active node, and one agreed state, over the MQTT broker you already have.
//!
//! Machines whose only common network is an MQTT broker elect a leader, see who is there and
//! share a small replicated store. They open no port, know no address but the broker's, and
//! trust no broker with safety.
//!
//! ```no_run
//! use raft_over_mqtt::{Mqtt, RaftNode};
//!
//! # async fn example() -> raft_over_mqtt::Result<()> {
//! let node = RaftNode::initialize(Mqtt::new("mqtt://127.0.0.1:1883")?, "gw-1")
//!     .cluster("plant-a")
//!     .voters(["gw-1", "gw-2", "gw-3"])
//!     .data_dir("/var/lib/mqraft")
//!     .insecure()
//!     .start()
//!     .await?;
//! println!("{:?} leads, {} nodes are there",
//!     node.leader(), node.presence_manager().active_nodes_count());
//! # Ok(())
//! # }
//! ```
//!
//! [`RaftNode`] is a node, [`Observer`] a process that is there and nothing more; [`Client`] uses a cluster
//! without being one, and [`Remote`] asks it one thing at a time. [`Kv`] is the replicated state, from either; a [`Session`] holds locks and elections. The node is a loop
//! (`driver.rs`) around the pure state machine of the `replica` crate: this is the one place in
//! production where its effects are carried out.

mod archive;
mod barrier;
mod beside;
mod client;
mod clock;
mod connection;
pub mod doctor;
mod driver;
mod error;
mod key_file;
mod kv;
mod leadership;
mod links;
mod lock;
mod log;
mod node;
mod observer;
mod outward;
mod presence;
mod probe;
mod remote;
mod session;
mod status;
mod withdraw;
mod work;
mod writer;

pub use archive::{
    NewCluster, Recovery, read_snapshot, recover, replace_file, restore_snapshot, write_snapshot,
};
pub use client::Client;
pub use clock::now;
pub use connection::Mqtt;
pub use error::{Error, Result};
pub use key_file::{KeyFile, KeyFileError};
pub use kv::{Granted, Kv, Watch};
pub use leadership::Leadership;
pub use lock::{Held, LockToken, MAX_LOCK_NAME};
pub use mqtt::{DisconnectReason, Version};
pub use node::{NodeBuilder, RaftNode};
pub use observer::Observer;
pub use presence::{
    AgreedChange, AgreedChanges, AgreedMembers, PresenceChange, PresenceChanges, PresenceManager,
};
pub use probe::{Probe, Probed};
pub use raft::{LeadershipToken, Role, Settings, Time};
pub use remote::Remote;
pub use replica::{
    Action, ActionResult, ActiveNode, AgreedNode, AgreedRole, Autopilot, Change, ClusterKey,
    Comparison, Condition, HandOver, KeyError, KeyEvent, KeyRange, KeyRing, KeyValue, LEGACY_ROLE,
    LeaseGrant, LeaseId, LeaseStatus, Member, MemberOperation, Members, Metric, MetricError, Name,
    NameError, NodeStatus, PresenceEvent, RangeReading, RangeRequest, Reading, SavedMeta,
    SavedSnapshot, StopReason, TagError, Tags, Target, Transacted, Transaction, Value, Write,
    WriteAccess, Written,
};
pub use session::Session;
pub use status::{Broker, LegacyLed, LegacyStatus, Status};
pub use withdraw::remove_from_home_assistant;
pub use work::{Assignment, Work};

/// An MQTT broker inside the process, loopback only.
#[cfg(feature = "broker")]
pub use mqtt::broker;

/// A new cluster key from the system's random source.
///
/// # Errors
/// When the system gives no random bytes.
pub fn generate_cluster_key() -> Result<ClusterKey> {
    Ok(ClusterKey::from_bytes(node::random()?))
}
