//! What a node may never forget, on disk: term and vote, the log, the newest snapshot, its identity.
//!
//! The problem: Raft is only safe if a vote or an acknowledgement speaks of bytes that survive a
//! power cut. So [`Store::write`] returns only after one `fdatasync` has covered everything it was
//! given, and [`Store::open`] gives back exactly what such a write promised: a write that was under
//! way when the power went is there whole or not at all, and bytes that changed behind our back are
//! an error that names them. Nothing is ever cut off unless the bytes prove that it was never
//! acknowledged.
//!
//! It relies on this: the disk writes a sector of 512 bytes wholly or not at all, `fdatasync` means
//! what it says, and a rename is atomic. It refuses to go on after a failed write or sync (the page
//! cache may have dropped the bytes), to open a directory that is another node's, in use, of a newer
//! format or damaged, and to repair any damage by itself. It knows nothing of consensus beyond the
//! types that `raft` asks it to keep.
//!
//! ```text
//! Store ── write ─→ record (CBOR) ─→ frame (checksums, one a batch) ─→ segment files wal-…
//!   │                                 └ judges: end, torn or rot?
//!   ├── snapshots snap-…              recover: frames → ledger + entries → raft::Durable
//!   └── identity
//! everything above ─→ trait Disk ─→ RealDisk, or CrashDisk in the simulator
//! ```
//!
//! Read next: [`Store`], then `frame.rs` (the reasoning about torn writes) and `recover.rs`. The
//! bytes are drawn in `docs/disk.md`.
//!
//! ```
//! use raft::{HardState, NodeKey, Persist, PersistSeq, Term};
//! use store::{CrashDisk, Store, StoreOptions};
//!
//! let disk = CrashDisk::new(7);
//! let options = StoreOptions::new("gateway-1", "plant");
//! let (mut store, _) = Store::open(disk.clone(), &options, || NodeKey(1))?;
//! let vote = HardState { term: Term(2), voted_for: Some(NodeKey(1)) };
//! let written = store.write(&[Persist {
//!     seq: PersistSeq(1),
//!     hard_state: Some(vote),
//!     ..Persist::default()
//! }])?;
//! assert_eq!(written, PersistSeq(1));
//!
//! disk.crash();
//! let (_, recovered) = Store::open(disk, &options, || unreachable!("not fresh"))?;
//! assert_eq!(recovered.durable.hard_state, vote);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod crash;
mod disk;
mod error;
mod files;
mod frame;
mod identity;
mod ledger;
mod record;
mod recover;
mod segment;
mod snapshot;
mod store;

pub use crash::{Counts, CrashDisk, CrashFile, Crashed};
pub use disk::{Disk, DiskFile, RealDisk, RealFile};
pub use error::{OpenError, WriteError};
pub use identity::Identity;
pub use recover::TornTail;
pub use store::{Recovered, Store, StoreOptions};
