//! One node of a cluster, as a pure state machine: everything between topics and consensus.
//!
//! [`Replica`] is driven like [`raft::Raft`]: [`Input`]s and the time go in, [`Effect`]s come
//! out, and nothing in here reads a clock, a random source, a socket or a file. It adds to
//! consensus what a node on a broker needs:
//!
//! - `endpoint.rs`, `frame.rs`, `peers.rs`, `keys.rs`: sealed frames, fresh and for us;
//! - `formation.rs`: how a cluster comes to be, once;
//! - `presence.rs`: who is there, from births, wills and answers; `agreed.rs`: as the cluster has agreed;
//! - `kv.rs`: the replicated state, with `draft.rs` (a change as a whole), `history.rs` (the changes of
//!   late, for watches), `leases.rs` and `sessions.rs` (what makes retries harmless); `state.rs`: what
//!   is asked of it;
//! - `saved.rs`, `found.rs`: a state as a file, and a new cluster from it;
//! - `observer.rs`: a process that is there and nothing more;
//! - `strangers.rs`: nodes of another cluster under our name;
//! - `legacy.rs`: a fleet of node-raft-over-mqtt beside us, kept as followers;
//! - `homeassistant.rs`: what Home Assistant is told;
//! - `requests.rs`: a caller's requests until they are answered or given up;
//! - `requests_json.rs`, `allowance.rs`: those of any MQTT client, as JSON, and how many;
//!   `mirror.rs`: chosen keys as retained messages;
//! - `replica.rs`: all of it as one node. [`Client`] is the same for a process that is no node.
//!
//! What is deliberately absent: sockets, TLS, files and threads (the `node` crate), and any
//! rule of consensus (the `raft` crate).

mod agreed;
mod allowance;
mod client;
mod dice;
mod draft;
mod endpoint;
mod following;
mod formation;
mod found;
mod frame;
mod history;
mod homeassistant;
mod keys;
mod kv;
mod leases;
mod legacy;
mod link;
mod mirror;
mod name;
mod observer;
mod peers;
mod presence;
mod replica;
mod requests;
mod requests_json;
mod saved;
mod sessions;
mod state;
mod strangers;
mod tags;
#[cfg(test)]
mod tests;
mod topic;
mod wire;

pub use agreed::{Agreed, AgreedNode, AgreedRole};
pub use allowance::{Admission, Senders};
pub use client::{Client, ClientEffect, ClientEvent, ClientInput, ClientPlan};
pub use endpoint::{Publish, Refused};
pub use formation::{Plan, Trouble};
pub use found::{FoundError, Founder, Founding, INDEX_RAISE, Survivor, TERM_RAISE};
pub use frame::{FrameError, HEADER, MAX_FRAME, VERSION};
pub use history::{MAX_HISTORY, MAX_HISTORY_BYTES};
pub use homeassistant::{HomeAssistant, HomeView, Withdrawal};
pub use keys::{ClusterId, ClusterKey, Incarnation, KEY_BYTES, KeyError, KeyRing};
pub use kv::{Bounds, MAX_STATE_BYTES, PAIR_OVERHEAD, SNAPSHOT_BYTES, Store};
pub use leases::{MAX_LEASE_KEYS, MAX_LEASES};
pub use legacy::{
    LEGACY_ROLE, Legacy, LegacyEffect, LegacyEvent, LegacyLeader, MAX_LEGACY_NODES,
    MAX_LEGACY_TERM, View as LegacyView,
};
pub use link::{Link, Session};
pub use mirror::{Mirror, Retain};
pub use name::{MAX_NAME, Metric, MetricError, Name, NameError};
pub use observer::{Observer, ObserverInput};
pub use peers::MAX_PEERS;
pub use presence::{ActiveNode, MAX_NODES, PresenceEvent};
pub use replica::{
    Autopilot, Config, Effect, Event, HandOver, Input, Replica, SessionPlan, StartError, StopReason,
};
pub use requests::{Done, RequestError, Token};
pub use requests_json::{
    Answer as ApiAnswer, ApiError, ApiRequest, MAX_ANSWER, MAX_CORRELATION, MAX_REQUEST,
    MAX_REQUEST_ID, MAX_RESPONSE_TOPIC, Question, WATCH_SECONDS, WriteAccess, answer_topic,
    check_response_topic, request_filter, request_sender,
};
pub use saved::{Download, SavedError, SavedMeta, SavedSnapshot};
pub use sessions::{MAX_SESSIONS, MAX_SESSIONS_BYTES};
pub use state::{
    Action, ActionResult, Comparison, Condition, Cursor, KeyEvent, KeyRange, KeyValue,
    LEASE_TTL_MS, LeaseGrant, LeaseId, LeaseStatus, MAX_ACTIONS, MAX_ANSWER_BYTES, MAX_DELETED,
    MAX_LOOKED_AT, MAX_TRANSACTION_READ, NODES, RESERVED, RangeReading, RangeRequest, Target,
    Transacted, Transaction, Watched,
};
pub use tags::{MAX_TAG_KEY, MAX_TAG_VALUE, MAX_TAGS, TagError, Tags};
pub use topic::{OtherPrefixError, PrefixError, Topic, Topics};
pub use wire::{
    Answer, Change, Export, Formation, Holds, MAX_KEY, MAX_VALUE, Member, MemberOperation, Members,
    NodeStatus, Operation, Origin, Reading, Reply, Request, Save, Transfer, Value, Write, Written,
};
