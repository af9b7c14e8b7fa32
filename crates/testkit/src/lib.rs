//! Real brokers, certificates and nodes of the package we succeed, for tests and benches.
//!
//! What we claim about MQTT we claim about brokers that we did not write, so tests start a real
//! Mosquitto on loopback ports of its own, in a directory of its own, and kill, stop and restart
//! it. Nothing here sleeps blindly: [`Mosquitto::start`] returns when every listener accepts, and
//! [`wait_for`] polls a condition up to a deadline.
//!
//! This crate is a dev-dependency only. It panics freely: a broken test bench is a failed test.
//!
//! ```no_run
//! let broker = testkit::Mosquitto::builder().nodelay(true).start();
//! println!("{}", broker.url());
//! ```

#![forbid(unsafe_code)]

mod certificates;
mod legacy;
mod mosquitto;
mod proxy;
mod wait;

pub use certificates::{Certificates, KeyPair};
pub use legacy::{DEFAULT_METRIC, LegacyNode, LegacyProcess, LegacyState};
pub use mosquitto::{Builder, Mosquitto, free_port, mosquitto_available, mosquitto_or_skip};
pub use proxy::SlowPath;
pub use tempfile::TempDir;
pub use wait::{wait_for, wait_for_async};

/// A fresh directory, removed on drop.
///
/// # Panics
///
/// If the system's temporary directory is not writable.
pub fn temp_dir() -> TempDir {
    tempfile::Builder::new()
        .prefix("mqraft-test-")
        .tempdir()
        .expect("create a temporary directory")
}

/// Returns from the test, printing `skipped: why`, when there is no Mosquitto on this machine.
///
/// With `MQRAFT_REQUIRE_BROKERS=1` (set in CI) it panics instead, so that no run passes by testing
/// nothing.
#[macro_export]
macro_rules! require_mosquitto {
    () => {
        if !$crate::mosquitto_or_skip() {
            return;
        }
    };
}
