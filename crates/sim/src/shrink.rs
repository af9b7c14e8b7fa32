//! From a plan that breaks something to a short one that breaks the same.

use std::panic::{self, AssertUnwindSafe};

use crate::event::SECOND;
use crate::plan::{Plan, Strike};
use crate::world::{Summary, World};

/// How many worlds are tried on the way, at most.
const MAX_TRIES: u32 = 600;

/// A broken promise.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// When, in true microseconds.
    pub(crate) at: u64,
    pub(crate) what: String,
}

impl Failure {
    /// What was broken, whoever broke it and when: the message up to its first figure.
    pub(crate) fn kind(&self) -> &str {
        let what = self.what.trim_start();
        let end = what
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(what.len());
        let head = &what[..end];
        match head.len() {
            0 => what,
            _ => head,
        }
    }
}

/// Lives through a plan; what breaks is returned, not thrown.
pub(crate) fn attempt(plan: &Plan, trace: bool) -> Result<Summary, Failure> {
    let mut world = World::new(plan.clone(), trace);
    let lived = panic::catch_unwind(AssertUnwindSafe(|| world.live()));
    match lived {
        Ok(()) => Ok(world.summary()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(Failure {
                at: world.now,
                what: text.unwrap_or_else(|| "a panic without words".to_owned()),
            })
        }
    }
}

/// A plan as short as a few hundred tries make it, which still fails in the same way.
pub(crate) fn shrink(plan: Plan, failure: Failure) -> (Plan, Failure) {
    let mut shrinker = Shrinker {
        plan,
        failure,
        tries: MAX_TRIES,
    };
    shrinker.end_sooner();
    shrinker.fewer_strikes();
    shrinker.plainer();
    shrinker.fewer_strikes();
    (shrinker.plan, shrinker.failure)
}

struct Shrinker {
    plan: Plan,
    failure: Failure,
    tries: u32,
}

impl Shrinker {
    /// Keeps a candidate if it fails in the same way.
    fn keeps(&mut self, candidate: Plan) -> bool {
        if self.tries == 0 {
            return false;
        }
        self.tries -= 1;
        match attempt(&candidate, false) {
            Err(failure) if failure.kind() == self.failure.kind() => {
                (self.plan, self.failure) = (candidate, failure);
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// Nothing that comes after the failure has a part in it.
    fn end_sooner(&mut self) {
        let failed_at = self.failure.at;
        let mut sooner = self.plan.clone();
        sooner.strikes.retain(|strike| strike.at <= failed_at);
        sooner.profile.troubled = sooner.profile.troubled.min(failed_at + SECOND);
        self.keeps(sooner);
    }

    /// Leaves out halves, quarters, … and single strikes.
    fn fewer_strikes(&mut self) {
        let mut size = self.plan.strikes.len().div_ceil(2);
        while size > 0 && !self.plan.strikes.is_empty() {
            let mut from = 0;
            while from < self.plan.strikes.len() {
                let mut fewer = self.plan.clone();
                let to = (from + size).min(fewer.strikes.len());
                let _: Vec<Strike> = fewer.strikes.drain(from..to).collect();
                if !self.keeps(fewer) {
                    from = to;
                }
            }
            size = match size {
                1 => 0,
                _ => size.div_ceil(2),
            };
        }
    }

    /// Calmer weather, fewer nodes, ordinary settings.
    fn plainer(&mut self) {
        let mut at = 0;
        while let Some(plainer) = self.plan.plainer().into_iter().nth(at) {
            if !self.keeps(plainer) {
                at += 1;
            }
        }
    }
}
