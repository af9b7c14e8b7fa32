//! When what has to happen, so that a program is dead before another of its kind may start.
//!
//! ```text
//!   renewed                       SIGTERM      SIGKILL       until
//!      │── renewals may fail ──────────│── grace ──│── margin ──│ another may start
//!      └──────────────────── time to live, less the drift ──────┘
//! ```
//!
//! All of it is counted back from the end of the claim, on the clock that goes on while the machine
//! sleeps. What is left before SIGTERM decides how long the cluster may be out of reach without
//! any harm to the program.

use std::ops::{Add, Sub};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::exit::Failure;

/// What a renewal may take before it counts as failed: a write on a majority's disks, there and back.
const ROUND_TRIP: Duration = Duration::from_secs(1);

/// From SIGKILL to the end of the claim: what the kernel takes to end a process group on a machine
/// that is busy, and what a timer may be late.
const KILL_MARGIN: Duration = Duration::from_secs(1);

/// The greatest drift that a cluster can settle.
const MOST_DRIFT_PPM: u32 = 100_000;

/// What a default time to live has beyond the least: a leader may be replaced, or a broker restarted,
/// and nothing has to be stopped.
const SPARE: Duration = Duration::from_secs(4);

/// A point on the clock that goes on while the machine sleeps (`CLOCK_BOOTTIME`), in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(pub(crate) u64);

impl Moment {
    /// What the clock shows.
    pub(crate) fn now() -> Moment {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
        let micros = u64::try_from(now.tv_nsec).unwrap_or_default() / 1_000;
        Moment(seconds.saturating_mul(1_000_000).saturating_add(micros))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub(crate) fn since(self, earlier: Moment) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, span: Duration) -> Moment {
        Moment(self.0.saturating_add(micros(span)))
    }
}

impl Sub<Duration> for Moment {
    type Output = Moment;

    fn sub(self, span: Duration) -> Moment {
        Moment(self.0.saturating_sub(micros(span)))
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// When a process group is told to end, and when it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) term_at: Moment,
    pub(crate) kill_at: Moment,
}

/// What a program gets to end by itself, and how long a claim must be for that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pub(crate) grace: Duration,
    pub(crate) ttl: Duration,
}

impl Timing {
    /// The time to live that was asked for, or the default one, for clocks that drift by at most
    /// `drift_ppm`.
    ///
    /// # Errors
    /// A time to live in which the program could not be stopped between a renewal that fails and the
    /// end of the claim; the message names the least.
    pub(crate) fn new(
        grace: Duration,
        ttl: Option<Duration>,
        drift_ppm: u32,
    ) -> Result<Timing, Failure> {
        let least = least_ttl(grace, drift_ppm);
        let ttl = ttl.unwrap_or(least + SPARE);
        if ttl < least {
            return Err(Failure::usage(format!(
                "--ttl {ttl:?} is too short for --grace {grace:?}: a renewal each third of it that \
                 may take {ROUND_TRIP:?}, the grace and {KILL_MARGIN:?} for the kill, with the drift \
                 of clocks, need --ttl {}ms at least",
                least.as_millis()
            )));
        }
        Ok(Timing { grace, ttl })
    }

    /// When a process group has to end whose claim ends at `until`.
    pub(crate) fn limits(&self, until: Moment) -> Limits {
        let kill_at = until - KILL_MARGIN;
        Limits {
            term_at: kill_at - self.grace,
            kill_at,
        }
    }
}

/// The shortest time to live for which a program that gets `grace` can be stopped in time, in whole
/// milliseconds. A claim is renewed each third of it; what is left then is for the rest.
fn least_ttl(grace: Duration, drift_ppm: u32) -> Duration {
    let needed = u128::from(micros(ROUND_TRIP + grace + KILL_MARGIN));
    // A claim lasts ttl·(1−ρ)/(1+ρ): the holder's clock may be slow, everyone else's fast. A third of
    // the ttl less, that is ttl·(2−4ρ)/(3·(1+ρ)).
    let drift = u128::from(drift_ppm.min(MOST_DRIFT_PPM));
    let (dividend, divisor) = (3 * (1_000_000 + drift), 2_000_000 - 4 * drift);
    let micros = (needed * dividend).div_ceil(divisor);
    Duration::from_millis(u64::try_from(micros.div_ceil(1_000)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRIFT: u32 = 1_000;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Round trip, grace and kill margin are two thirds, and 0.3 % is for the drift of two clocks.
    #[test]
    fn the_least_ttl_follows_from_the_grace() {
        assert_eq!(least_ttl(secs(5), 0), Duration::from_millis(10_500));
        assert_eq!(least_ttl(secs(5), DRIFT), Duration::from_millis(10_532));
        assert_eq!(least_ttl(secs(0), DRIFT), Duration::from_millis(3_010));
        assert_eq!(least_ttl(secs(60), 100_000), Duration::from_millis(127_875));
    }

    /// Just before it is renewed, the least claim has all that its end needs, and no more.
    #[test]
    fn a_least_claim_has_time_for_its_end_when_it_is_renewed() {
        for (grace, drift) in [(0, 0), (5_000, 1_000), (60_000, 100), (1_234, 99_999)] {
            let grace = Duration::from_millis(grace);
            let ttl = least_ttl(grace, drift).as_secs_f64();
            let rho = f64::from(drift) / 1e6;
            let left = ttl * (1.0 - rho) / (1.0 + rho) - ttl / 3.0;
            let spare = left - (ROUND_TRIP + grace + KILL_MARGIN).as_secs_f64();
            assert!(
                (-1e-6..0.002).contains(&spare),
                "{grace:?} {drift}: {spare}"
            );
        }
    }

    #[test]
    fn a_shorter_ttl_is_refused_with_the_least() {
        let refused = Timing::new(secs(5), Some(Duration::from_millis(10_531)), DRIFT);
        let message = refused.unwrap_err().message;
        assert!(message.contains("--ttl 10532ms"), "{message}");
        let least = Timing::new(secs(5), Some(Duration::from_millis(10_532)), DRIFT);
        assert_eq!(least.unwrap().ttl, Duration::from_millis(10_532));
        assert_eq!(
            Timing::new(secs(5), None, DRIFT).unwrap().ttl,
            Duration::from_millis(14_532)
        );
    }

    #[test]
    fn sigterm_leaves_the_grace_and_sigkill_the_margin() {
        let timing = Timing::new(secs(5), None, DRIFT).unwrap();
        let until = Moment(100_000_000);
        let limits = timing.limits(until);
        assert_eq!(until.since(limits.kill_at), KILL_MARGIN);
        assert_eq!(limits.kill_at.since(limits.term_at), secs(5));
        // Too close to the start of the clock: at once.
        assert_eq!(timing.limits(Moment(5)).term_at, Moment(0));
    }
}
