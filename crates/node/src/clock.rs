//! The one clock of a node: monotonic, and counting the time that the machine sleeps.

use raft::Time;
use rustix::time::{ClockId, clock_gettime};

/// Linux: `CLOCK_BOOTTIME`, which goes on during suspend, so that a lease does not outlive it.
#[cfg(any(target_os = "linux", target_os = "android"))]
const CLOCK: ClockId = ClockId::Boottime;

/// Elsewhere the monotonic clock, which may stop during suspend: there, exclusivity is promised
/// only to machines that do not suspend (docs/timing.md).
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const CLOCK: ClockId = ClockId::Monotonic;

/// What the clock shows now: microseconds since this machine started, those included in which it was
/// suspended (Linux).
pub fn now() -> Time {
    let now = clock_gettime(CLOCK);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let micros = u64::try_from(now.tv_nsec).unwrap_or_default() / 1_000;
    Time(seconds.saturating_mul(1_000_000).saturating_add(micros))
}
