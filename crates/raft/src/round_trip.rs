//! How long an answer takes.

use std::time::Duration;

/// The time from a question to its answer, smoothed as TCP does (RFC 6298).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RoundTrip {
    smoothed: Duration,
    variation: Duration,
}

impl RoundTrip {
    pub(crate) fn sample(&mut self, sample: Duration) {
        if self.smoothed.is_zero() {
            *self = RoundTrip {
                smoothed: sample,
                variation: sample / 2,
            };
            return;
        }
        let deviation = self.smoothed.abs_diff(sample);
        self.variation = (self.variation * 3 + deviation) / 4;
        self.smoothed = (self.smoothed * 7 + sample) / 8;
    }

    /// When an answer is overdue; zero as long as nothing was measured.
    pub(crate) fn overdue_after(&self) -> Duration {
        self.smoothed + 4 * self.variation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The worked example of RFC 6298 with other numbers.
    #[test]
    fn round_trips_are_smoothed() {
        let mut round_trip = RoundTrip::default();
        assert_eq!(round_trip.overdue_after(), Duration::ZERO);
        round_trip.sample(8 * MS);
        assert_eq!(round_trip.overdue_after(), 8 * MS + 4 * 4 * MS);
        round_trip.sample(16 * MS);
        assert_eq!(
            (round_trip.smoothed, round_trip.variation),
            (9 * MS, 5 * MS)
        );
        round_trip.sample(MS);
        assert_eq!(round_trip.smoothed, 8 * MS);
        assert_eq!(round_trip.variation, Duration::from_micros(5_750));
        assert_eq!(round_trip.overdue_after(), 31 * MS);
    }
}
