//! The core among its peers: golden scripts that tell one story each, and a seeded stress test.
//! Both run on the same [`world`], which checks what Raft promises after every single step.

#![expect(
    clippy::disallowed_methods,
    reason = "which script and which seeds to run are chosen by the environment"
)]

mod hostile;
mod script;
mod stress;
mod table;
mod world;
