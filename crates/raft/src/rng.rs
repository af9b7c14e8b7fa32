//! A seeded generator for election jitter: reproducible, not secret.

use std::time::Duration;

/// SplitMix64: enough to spread candidates in time.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A duration from zero up to, not including, `bound`; zero for a bound of zero.
    pub(crate) fn below(&mut self, bound: Duration) -> Duration {
        let bound = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX).max(1);
        Duration::from_micros(self.next() % bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference's own first numbers: a seed means the same everywhere, for ever.
    #[test]
    fn split_mix_64() {
        let mut rng = Rng::new(1_234_567);
        let numbers = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        for number in numbers {
            assert_eq!(rng.next(), number);
        }
    }

    #[test]
    fn durations_stay_below_their_bound() {
        let mut rng = Rng::new(1);
        let bound = Duration::from_micros(10);
        let mut seen = [0; 10];
        for _ in 0..1_000 {
            seen[rng.below(bound).as_micros() as usize] += 1;
        }
        assert!(seen.iter().all(|times| *times > 50), "{seen:?}");
        assert_eq!(rng.below(Duration::ZERO), Duration::ZERO);
    }
}
