//! Clocks that run a little fast or slow, and change their mind about it.

use raft::Time;

/// A node's clock: a straight line since its rate last changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    true_base: u64,
    local_base: u64,
    ppm: i64,
}

impl Clock {
    pub(crate) fn new(true_base: u64, local_base: u64, ppm: i64) -> Clock {
        Clock {
            true_base,
            local_base,
            ppm,
        }
    }

    fn rate(self) -> u128 {
        (1_000_000 + self.ppm) as u128
    }

    /// What the clock shows at a true time, in microseconds.
    pub(crate) fn read(self, now: u64) -> Time {
        let elapsed = u128::from(now - self.true_base);
        Time(self.local_base + (elapsed * self.rate() / 1_000_000) as u64)
    }

    /// The first true time, not before the last change of rate, at which it shows `reading`.
    pub(crate) fn true_time(self, reading: Time) -> u64 {
        let elapsed = u128::from(reading.0.saturating_sub(self.local_base));
        let elapsed = (elapsed * 1_000_000).div_ceil(self.rate());
        self.true_base
            .saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    /// From `now` on the clock runs at another rate.
    pub(crate) fn drift(&mut self, now: u64, ppm: i64) {
        *self = Clock::new(now, self.read(now).0, ppm);
    }

    /// From `now` on the clock is ahead of where it was.
    pub(crate) fn jump(&mut self, now: u64, by: u64) {
        *self = Clock::new(now, self.read(now).0 + by, self.ppm);
    }
}
