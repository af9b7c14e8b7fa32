//! When a leader hands over by itself: another voter has the better metric, has had it for a while,
//! and the lead has stayed where it is long enough (design point 8).
//!
//! However the metrics swing, the number of transfers is bounded: each change of the leader that a
//! node has seen lately doubles the time for which it keeps the lead at least.

use super::*;

/// For how long a change of the leader makes the next one slower.
const MEMORY: Duration = Duration::from_secs(3_600);

/// How often the tenure is doubled at most.
const MAX_DOUBLINGS: usize = 6;

/// When a leader hands over to a voter with a better metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HandOver {
    /// By how much the other's metric must be lower, in the metric's own unit. Default 0: any
    /// better one will do.
    pub hysteresis: f64,
    /// For how long without a break. Default 5 s.
    pub hold: Duration,
    /// How long a leader leads at least. Doubled with each change of the leader in the last
    /// hour, up to 64 times. Default 10 s.
    pub tenure: Duration,
}

impl Default for HandOver {
    fn default() -> HandOver {
        HandOver {
            hysteresis: 0.0,
            hold: Duration::from_secs(5),
            tenure: Duration::from_secs(10),
        }
    }
}

/// What a node knows of the lead's past, and who is better.
pub(super) struct HandOverState {
    plan: Option<HandOver>,
    leader: Option<NodeKey>,
    /// When the leader changed lately.
    changes: std::collections::VecDeque<Time>,
    /// This node leads, or has failed to hand over, since.
    since: Time,
    /// Who is better, and since when.
    better: Option<(NodeKey, Time)>,
}

impl HandOverState {
    pub(super) fn new(plan: Option<HandOver>) -> HandOverState {
        HandOverState {
            plan,
            leader: None,
            changes: std::collections::VecDeque::new(),
            since: Time(0),
            better: None,
        }
    }

    /// Takes note of who leads; nobody is no change.
    pub(super) fn observe(&mut self, leader: Option<NodeKey>, now: Time) {
        let Some(leader) = leader else { return };
        if self.leader == Some(leader) {
            return;
        }
        if self.leader.replace(leader).is_some() {
            self.note(now);
        }
        self.since = now;
        self.better = None;
    }

    fn note(&mut self, now: Time) {
        self.changes.push_back(now);
        if self.changes.len() > MAX_DOUBLINGS {
            self.changes.pop_front();
        }
    }

    /// How long the leader leads at least, as things are.
    fn tenure(&self, plan: HandOver, now: Time) -> Duration {
        let lately = |at: &&Time| now.since(**at) < MEMORY;
        let doublings = self.changes.iter().filter(lately).count();
        plan.tenure
            .saturating_mul(1 << doublings.min(MAX_DOUBLINGS))
    }

    /// When to hand over, and to whom, if nothing changes.
    fn due(&self, now: Time) -> Option<(Time, NodeKey)> {
        let (plan, (key, better_since)) = (self.plan?, self.better?);
        let at = (better_since + plan.hold).max(self.since + self.tenure(plan, now));
        Some((at, key))
    }
}

impl Replica {
    /// Sees whether somebody better is there, and hands over when it is time.
    pub(super) fn consider_hand_over(&mut self) {
        let Some(plan) = self.hand_over.plan else {
            return;
        };
        let leads = self.leads() && self.phase == Phase::Running;
        let better = leads.then(|| self.better_voter(plan)).flatten();
        let now = self.now;
        match (better, self.hand_over.better) {
            (None, _) => self.hand_over.better = None,
            (Some(_), Some(_)) => {}
            (Some(key), None) => self.hand_over.better = Some((key, now)),
        }
        // Who is better may be somebody else by now: what counts is that somebody was, all along.
        if let (Some(key), Some((at, _))) = (better, self.hand_over.due(now))
            && now >= at
        {
            self.hand_over(key);
        }
    }

    /// The best of the voters that could lead, if its metric is better by the hysteresis.
    fn better_voter(&self, plan: HandOver) -> Option<NodeKey> {
        let raft = self.raft.as_ref()?;
        let configuration = raft.configuration();
        let could_lead = |key: &NodeKey| {
            !configuration.is_witness(*key) && raft.follower(*key).is_some_and(|f| f.is_caught_up)
        };
        // By name: a node is asked at every step, and there may be ten thousand observers.
        let node = |(key, voter): (&NodeKey, &String)| {
            let node = self.presence.get(voter.as_str())?;
            (node.key == *key && could_lead(key)).then_some(node)
        };
        let voters = configuration.voters.iter();
        let best = voters
            .filter_map(node)
            .min_by(|a, b| (a.metric, &a.name).cmp(&(b.metric, &b.name)))?;
        let margin = self.metric.value() - best.metric.value();
        (margin > 0.0 && margin >= plan.hysteresis).then_some(best.key)
    }

    /// A transfer came to nothing: the next waits as if the lead had changed.
    pub(super) fn hand_over_failed(&mut self) {
        let now = self.now;
        self.hand_over.note(now);
        self.hand_over.since = now;
    }

    pub(super) fn hand_over_deadline(&self) -> Option<Time> {
        let (at, _) = self.hand_over.due(self.now)?;
        let leads = self.leads() && self.phase == Phase::Running;
        if !leads || !self.steering.transfer_is_idle() {
            return None;
        }
        // What is due and could not be done is tried again with the next event.
        (at > self.now).then_some(at)
    }
}
