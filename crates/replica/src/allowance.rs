//! How often, and how much: what clients outside may ask of a node, and a node of its broker.

use std::collections::BTreeMap;
use std::time::Duration;

use raft::Time;

use crate::name::Name;

/// What one sender may ask: 10 requests a second, 20 at once.
const ONE: Allowance = Allowance::new(10, 20);

/// What all of them may ask together.
const ALL: Allowance = Allowance::new(100, 200);

/// How many are told that they asked too often; the others hear nothing, or whoever may ask could have
/// us publish as fast as it can.
const TOLD: Allowance = Allowance::new(10, 20);

/// How many senders are told apart.
const MAX_SENDERS: usize = 1_024;

/// A request costs one more for each started so many bytes beyond the first.
const BYTES_OF_ONE: usize = 16 << 10;

/// So many a second, so many at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    rate: u32,
    burst: u32,
}

impl Allowance {
    pub(crate) const fn new(rate: u32, burst: u32) -> Allowance {
        Allowance { rate, burst }
    }

    /// How long it takes to grow by so much.
    fn growth(self, by: u64) -> Duration {
        Duration::from_micros(by.saturating_mul(1_000_000) / u64::from(self.rate))
    }
}

/// What is left of an allowance, told by when it would be whole again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    allowance: Allowance,
    whole_at: Time,
}

impl Bucket {
    pub(crate) fn new(allowance: Allowance) -> Bucket {
        Bucket {
            allowance,
            whole_at: Time(0),
        }
    }

    /// Takes `cost` if there is so much.
    pub(crate) fn take(&mut self, cost: u32, now: Time) -> bool {
        let ready = self.ready_at(cost) <= now;
        if ready {
            self.whole_at = self.whole_at.max(now) + self.allowance.growth(cost.into());
        }
        ready
    }

    /// From when on there is `cost`; what costs more than may come at once waits for a whole bucket.
    pub(crate) fn ready_at(&self, cost: u32) -> Time {
        let spare = self.allowance.burst.saturating_sub(cost);
        let spare = self.allowance.growth(spare.into());
        let micros = u64::try_from(spare.as_micros()).unwrap_or(u64::MAX);
        Time(self.whole_at.0.saturating_sub(micros))
    }

    fn is_whole(&self, now: Time) -> bool {
        self.whole_at <= now
    }
}

/// Who has asked how much.
#[derive(Debug)]
pub struct Senders {
    all: Bucket,
    told: Bucket,
    each: BTreeMap<Name, Bucket>,
}

/// Whether a request is to be worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is.
    Admitted,
    /// It came too soon, and its sender is to be told.
    Busy,
    /// It came too soon, and so did many.
    Ignored,
}

impl Default for Senders {
    fn default() -> Senders {
        Senders {
            all: Bucket::new(ALL),
            told: Bucket::new(TOLD),
            each: BTreeMap::new(),
        }
    }
}

impl Senders {
    /// Takes a request of `bytes` from `from`, or says why not. One sender that asks too often takes
    /// nothing from the others; senders under made-up names take what all have together.
    pub fn admit(&mut self, from: &Name, bytes: usize, now: Time) -> Admission {
        let cost = u32::try_from(bytes.div_ceil(BYTES_OF_ONE).max(1)).unwrap_or(u32::MAX);
        if self.take(from, cost, now) {
            return Admission::Admitted;
        }
        match self.told.take(1, now) {
            true => Admission::Busy,
            false => Admission::Ignored,
        }
    }

    fn take(&mut self, from: &Name, cost: u32, now: Time) -> bool {
        if self.each.len() >= MAX_SENDERS && !self.each.contains_key(from) {
            // Who could ask as much as at first need not be remembered.
            self.each.retain(|_, bucket| !bucket.is_whole(now));
            if self.each.len() >= MAX_SENDERS {
                return false;
            }
        }
        let each = self.each.entry(from.clone());
        let each = each.or_insert_with(|| Bucket::new(ONE));
        each.take(cost, now) && self.all.take(cost, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time(5_000_000_000);

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[test]
    fn a_bucket_holds_a_burst_and_grows_at_its_rate() {
        let mut bucket = Bucket::new(Allowance::new(10, 3));
        let taken = |bucket: &mut Bucket, now| (0..10).filter(|_| bucket.take(1, now)).count();
        assert_eq!(taken(&mut bucket, START), 3);
        let later = START + Duration::from_millis(99);
        assert_eq!(taken(&mut bucket, later), 0);
        let later = START + Duration::from_millis(200);
        assert_eq!(taken(&mut bucket, later), 2);
        let later = later + Duration::from_secs(60);
        assert_eq!(
            taken(&mut bucket, later),
            3,
            "no more than a burst is saved up"
        );
        // What costs more than a burst comes through alone.
        assert!(!bucket.take(5, later));
        assert!(bucket.take(5, bucket.ready_at(5)));
    }

    #[test]
    fn who_asks_too_often_takes_nothing_from_the_others() {
        let mut senders = Senders::default();
        let (loud, quiet) = (name("loud"), name("quiet"));
        let answers: Vec<_> = (0..1_000)
            .map(|_| senders.admit(&loud, 10, START))
            .collect();
        let count = |what| answers.iter().filter(|answer| **answer == what).count();
        assert_eq!(count(Admission::Admitted), 20);
        assert_eq!(count(Admission::Busy), 20);
        assert_eq!(senders.admit(&quiet, 10, START), Admission::Admitted);
    }

    #[test]
    fn made_up_names_take_no_more_than_all_may_and_no_memory() {
        let mut senders = Senders::default();
        let mut admitted = 0;
        for number in 0..10_000 {
            let from = name(&format!("n{number}"));
            let admission = senders.admit(&from, 10, START);
            admitted += usize::from(admission == Admission::Admitted);
        }
        assert_eq!(admitted, 200);
        assert!(senders.each.len() <= MAX_SENDERS);
        let later = START + Duration::from_secs(3);
        assert_eq!(senders.admit(&name("late"), 10, later), Admission::Admitted);
        assert_eq!(senders.each.len(), 1);
    }

    #[test]
    fn a_large_request_costs_more() {
        let mut senders = Senders::default();
        let from = name("panel");
        let admitted = |_: &usize| senders.admit(&from, 96 << 10, START) == Admission::Admitted;
        assert_eq!((0..20).filter(admitted).count(), 3);
    }
}
