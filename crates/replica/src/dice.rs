//! A seeded generator that spreads our nodes in time: reproducible, not secret.

use std::time::Duration;

/// SplitMix64.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A duration from zero up to, not including, `bound`.
    pub(crate) fn below(&mut self, bound: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bound = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX).max(1);
        Duration::from_micros((z ^ (z >> 31)) % bound)
    }
}
