//! How long something took, many times.

use std::time::Duration;

/// Times, all of them kept: a percentile is one that was measured.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples {
    nanos: Vec<u64>,
}

/// What is told of them, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Percentiles {
    pub(super) count: usize,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
    pub(super) max: f64,
}

impl Samples {
    pub(super) fn add(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.push(nanos);
    }

    pub(super) fn append(&mut self, mut other: Samples) {
        self.nanos.append(&mut other.nanos);
    }

    pub(super) fn len(&self) -> usize {
        self.nanos.len()
    }

    /// `None` of no samples.
    pub(super) fn percentiles(&self) -> Option<Percentiles> {
        let mut sorted = self.nanos.clone();
        sorted.sort_unstable();
        let max = *sorted.last()?;
        let milliseconds = |nanos: u64| nanos as f64 / 1e6;
        let at = |per_mille| milliseconds(sorted[rank(per_mille, sorted.len())]);
        Some(Percentiles {
            count: sorted.len(),
            p50: at(500),
            p90: at(900),
            p99: at(990),
            p999: at(999),
            max: milliseconds(max),
        })
    }
}

/// The nearest rank: the first sample that so many of a thousand do not exceed.
fn rank(per_mille: usize, count: usize) -> usize {
    (count * per_mille).div_ceil(1_000).max(1) - 1
}

impl FromIterator<Duration> for Samples {
    fn from_iter<T: IntoIterator<Item = Duration>>(times: T) -> Samples {
        let mut samples = Samples::default();
        times.into_iter().for_each(|time| samples.add(time));
        samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_nearest_rank() {
        let of = |times: &[u64]| {
            let times = times.iter().map(|ms| Duration::from_millis(*ms));
            times.collect::<Samples>().percentiles()
        };
        let expected = |count, [p50, p90, p99, p999, max]: [f64; 5]| {
            Some(Percentiles {
                count,
                p50,
                p90,
                p99,
                p999,
                max,
            })
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[7]), expected(1, [7.0; 5]));
        assert_eq!(of(&[2, 1]), expected(2, [1.0, 2.0, 2.0, 2.0, 2.0]));
        let thousand: Vec<u64> = (1..=1_000).rev().collect();
        let at = [500.0, 900.0, 990.0, 999.0, 1_000.0];
        assert_eq!(of(&thousand), expected(1_000, at));
    }
}
