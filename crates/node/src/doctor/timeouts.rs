//! Which election timeout a broker bears: docs/timing.md, "How to choose timeouts from `mqraft doctor`".

use std::time::Duration;

use super::{Pace, Severity};

/// Below this many of the longest round trips, one slow moment deposes a healthy leader.
const LEAST: u32 = 3;

/// A few seconds show ordinary pauses and not the rare one: this many of them leave room for it.
const COMFORTABLE: u32 = 10;

/// So many of the largest frames may be under way to one follower, and a heartbeat waits behind them.
const WINDOW: u32 = 4;

/// A node's default, and what is recommended wherever it is comfortable.
const DEFAULT: Duration = Duration::from_secs(1);

/// No node takes less.
const SHORTEST: Duration = Duration::from_millis(50);

/// What a node's timing has to do with how fast the broker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// The election timeout that was asked about.
    pub election_timeout: Duration,
    /// The heartbeat interval that goes with it.
    pub heartbeat_interval: Duration,
    /// What was measured.
    pub pace: Pace,
    /// The shortest election timeout that would be comfortable: ten times the longest round trip, four
    /// times the largest frame's, at least 50 ms; rounded up to two digits.
    pub shortest: Duration,
    /// What to say: the default of 1 s, or what is comfortable if that is longer.
    pub recommended: Duration,
}

impl Timeouts {
    /// Judges a node's timing by what was measured.
    pub fn of(election_timeout: Duration, heartbeat_interval: Duration, pace: Pace) -> Timeouts {
        let behind_frames = WINDOW * pace.large_frame.unwrap_or_default();
        let shortest = round_up(behind_frames.max(COMFORTABLE * pace.round_trip)).max(SHORTEST);
        Timeouts {
            election_timeout,
            heartbeat_interval,
            pace,
            shortest,
            recommended: shortest.max(DEFAULT),
        }
    }

    /// A fault where leaders would be deposed in ordinary operation; a warning where a rare pause, or a
    /// follower that catches up, may do it.
    pub fn severity(&self) -> Severity {
        if self.election_timeout < self.least() {
            Severity::Fault
        } else if self.election_timeout < self.shortest {
            Severity::Warning
        } else {
            Severity::Fine
        }
    }

    /// Three round trips; a heartbeat's interval and its answer, by which a lease is renewed, which lasts
    /// an election timeout unless the cluster has settled otherwise; a heartbeat behind one large frame.
    fn least(&self) -> Duration {
        let Pace {
            round_trip,
            large_frame,
        } = self.pace;
        let waits = (2 * round_trip).max(large_frame.unwrap_or_default());
        (LEAST * round_trip).max(self.heartbeat_interval + waits)
    }
}

/// Up to two digits: nobody writes 1,234 ms.
fn round_up(span: Duration) -> Duration {
    let ms = u64::try_from(span.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX);
    let mut unit = 1_u64;
    while ms / unit >= 100 {
        unit *= 10;
    }
    Duration::from_millis(ms.div_ceil(unit).saturating_mul(unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn judged(timeout: u64, heartbeat: u64, round_trip: u64, large: Option<u64>) -> Timeouts {
        let pace = Pace {
            round_trip: ms(round_trip),
            large_frame: large.map(ms),
        };
        Timeouts::of(ms(timeout), ms(heartbeat), pace)
    }

    /// The table of docs/timing.md.
    #[test]
    fn the_election_timeout_follows_from_the_longest_pause() {
        let table = [
            // T, heartbeat, round trip, large frame: shortest, recommended, severity
            ((1_000, 250, 2, Some(5)), (50, 1_000, Severity::Fine)),
            ((1_000, 250, 60, Some(95)), (600, 1_000, Severity::Fine)),
            (
                (1_000, 250, 120, Some(190)),
                (1_200, 1_200, Severity::Warning),
            ),
            ((1_000, 250, 300, None), (3_000, 3_000, Severity::Warning)),
            (
                (1_000, 250, 5, Some(3_100)),
                (13_000, 13_000, Severity::Fault),
            ),
            ((1_000, 250, 340, None), (3_400, 3_400, Severity::Fault)),
            ((1_000, 250, 1, Some(240)), (960, 1_000, Severity::Fine)),
            ((50, 12, 2, Some(5)), (50, 1_000, Severity::Fine)),
            ((50, 25, 4, Some(13)), (52, 1_000, Severity::Warning)),
            (
                (4_000, 1_000, 306, Some(391)),
                (3_100, 3_100, Severity::Fine),
            ),
        ];
        for ((timeout, heartbeat, round_trip, large), (shortest, recommended, severity)) in table {
            let judged = judged(timeout, heartbeat, round_trip, large);
            assert_eq!(judged.shortest, ms(shortest), "{judged:?}");
            assert_eq!(judged.recommended, ms(recommended), "{judged:?}");
            assert_eq!(judged.severity(), severity, "{judged:?}");
        }
    }

    /// Three round trips fit, but a heartbeat and its answer do not, nor one behind a large frame.
    #[test]
    fn a_lease_is_renewed_before_it_ends() {
        assert_eq!(judged(400, 200, 101, None).severity(), Severity::Fault);
        assert_eq!(judged(402, 200, 101, None).severity(), Severity::Warning);
        assert_eq!(judged(400, 200, 2, Some(201)).severity(), Severity::Fault);
        assert_eq!(judged(400, 200, 2, Some(200)).severity(), Severity::Warning);
    }

    #[test]
    fn what_is_recommended_is_comfortable() {
        for took in [0, 1, 7, 49, 99, 101, 640, 2_999, 12_345] {
            for large in [None, Some(took), Some(2 * took), Some(50 * took)] {
                let timeout = judged(1_000, 250, took, large).recommended;
                let timeout = u64::try_from(timeout.as_millis()).unwrap();
                let again = judged(timeout, timeout / 4, took, large);
                assert_eq!(again.severity(), Severity::Fine, "{again:?}");
            }
        }
    }
}
