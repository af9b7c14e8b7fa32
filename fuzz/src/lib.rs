//! What the fuzz targets share: how bytes become inputs, and an enemy that holds the cluster key.
//!
//! The sealing code and the bodies of frames are private to `replica`. They are leaves, so their
//! files are compiled here once more, and no crate needs a door that only the fuzzer uses.

mod member;
mod message;
mod reader;

// They name each other by `crate::`, so they stand at the root.
#[allow(dead_code, reason = "the targets use a part of it")]
#[path = "../../crates/replica/src/draft.rs"]
mod draft;
#[allow(dead_code, reason = "the targets use a part of it")]
#[path = "../../crates/replica/src/frame.rs"]
mod frame;
#[allow(dead_code, reason = "the targets use a part of it")]
#[path = "../../crates/replica/src/history.rs"]
mod history;
#[allow(dead_code, reason = "the targets use a part of it")]
#[path = "../../crates/replica/src/keys.rs"]
mod keys;
#[allow(dead_code, reason = "the targets use a part of it")]
#[path = "../../crates/replica/src/kv.rs"]
mod kv;
#[allow(dead_code, reason = "the targets use a part of it")]
#[path = "../../crates/replica/src/leases.rs"]
mod leases;
#[allow(dead_code, reason = "the targets use a part of it")]
#[path = "../../crates/replica/src/name.rs"]
mod name;
#[allow(dead_code, reason = "the targets use a part of it")]
#[path = "../../crates/replica/src/saved.rs"]
mod saved;
#[allow(dead_code, reason = "the targets use a part of it")]
#[path = "../../crates/replica/src/sessions.rs"]
mod sessions;
#[allow(dead_code, reason = "the targets use a part of it")]
#[path = "../../crates/replica/src/state.rs"]
mod state;
#[allow(dead_code, reason = "the targets use a part of it")]
#[path = "../../crates/replica/src/topic.rs"]
mod topic;
#[allow(dead_code, reason = "the targets use a part of it")]
#[path = "../../crates/replica/src/wire.rs"]
mod wire;

pub use member::{Heard, Member, Place};
pub use message::{answer, message, sessions};
pub use reader::Reader;

/// Reads a frame's body; what it says is written back.
///
/// # Panics
/// When a body that was read is not read again from what it was written as.
pub fn body_round_trip(bytes: &[u8]) {
    let Ok(body) = wire::from_slice::<wire::Body>(bytes) else {
        return;
    };
    let written = wire::to_vec(&body);
    let again: wire::Body = wire::from_slice(&written).expect("what was written is read");
    // By bytes: a metric that is no number differs from itself.
    assert_eq!(wire::to_vec(&again), written);
}
