//! Raft for a broadcast medium, as a pure state machine.
//!
//! [`Raft`] holds one node's part in consensus. It is driven by four verbs: [`Raft::new`] from
//! what the disk gave back, [`Raft::step`] with an [`Input`] and the time, which returns the
//! [`Effect`]s to carry out in order, and [`Raft::next_deadline`], when to step again if nothing
//! happens. There is no clock, no randomness, no thread and no I/O in here: the simulator and
//! production run the same code, and the same inputs from the same seed give the same bytes.
//!
//! It is Raft with PreVote, CheckQuorum, ReadIndex and a no-op at the start of each term, with
//! one difference that shapes the rest: an append is published **once**, to all
//! (design point 2). A broadcast cannot fit itself to each follower, so
//!
//! - each follower checks `(prev_index, prev_term)` itself and remembers how far it has
//!   *verified* its log against this term's leader; it commits no further than that;
//! - a member that cannot place an append says so once, and is brought up to date on a unicast
//!   *catch-up stream*; messages of an older stream are inert;
//! - who is no member costs its leader nothing: it pulls what it missed from another voter.
//!
//! Read next: [`Effect`] and [`Input`] for the vocabulary, [`message`] for what travels, then
//! `raft.rs` (the door), `election.rs`, `follow.rs`, `lead.rs`, `catch_up.rs`,
//! `fetch.rs` and `steer.rs`.
//!
//! What is deliberately absent: names and topics (the replica maps keys to them), the metric
//! (only its rank comes in), encryption, presence, the state machine.

mod catch_up;
pub mod codec;
mod configuration;
mod effect;
mod election;
mod entry;
mod fetch;
#[cfg(test)]
mod fixture;
mod follow;
mod id;
mod lead;
mod log;
pub mod message;
mod raft;
mod rng;
mod round_trip;
mod sessions;
mod steer;

pub use configuration::{ChangeError, Configuration, MemberChange, Members, Settings};
pub use effect::{
    ChangeRefusal, Durable, Effect, Input, Persist, Refusal, Rejection, SaveSnapshot,
    TransferRefusal,
};
pub use entry::{Command, Entry, HardState, Payload, Snapshot, SnapshotMeta};
pub use id::{
    ChangeId, ClientId, Index, LeadershipToken, LeaseEpoch, LogPosition, NodeKey, PersistSeq,
    ReadId, RequestNumber, Round, SessionId, StreamId, Term, Time,
};
pub use message::Message;
pub use raft::{Follower, Lease, Options, Raft, Role};
pub use sessions::Sessions;
