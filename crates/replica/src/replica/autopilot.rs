//! Keeping the number of voters: a voter that stays silent gives its vote to an observer that is there
//! (off by default).
//!
//! The leader looks once a second. A voter counts as gone when it has not answered for the dwell
//! time: wills and presence play no part. What takes its place has been there for as long. It is
//! added as a learner, brought up to date, and then promoted in the same joint change that lets the
//! other go: the number of voters never falls, and never exceeds the target. Below a floor of voters
//! that answer, nothing is done: then it is the leader that is cut off, not they.

use raft::{ChangeId, MemberChange};

use super::*;

/// How often a leader looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// How the number of voters is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Autopilot {
    /// How many voters there are to be: 3, 5 or 7.
    pub target: usize,
    /// For how long a voter must have been silent, and its successor there. Default 5 min.
    pub dwell: Duration,
}

impl Autopilot {
    /// Keeps `target` voters, after five minutes' silence.
    pub fn of(target: usize) -> Autopilot {
        let dwell = Duration::from_secs(300);
        Autopilot { target, dwell }
    }

    /// So many voters must answer before anything is done: a majority of the target.
    fn floor(self) -> usize {
        self.target / 2 + 1
    }
}

/// What the leader remembers of the others.
pub(super) struct AutopilotState {
    plan: Option<Autopilot>,
    look_at: Time,
    /// Whether each was well when it was last looked at, and since when.
    seen: BTreeMap<NodeKey, (bool, Time)>,
}

impl AutopilotState {
    pub(super) fn new(plan: Option<Autopilot>) -> AutopilotState {
        AutopilotState {
            plan,
            look_at: Time(0),
            seen: BTreeMap::new(),
        }
    }

    fn look(&mut self, key: NodeKey, well: bool, now: Time) {
        let seen = self.seen.entry(key).or_insert((well, now));
        if seen.0 != well {
            *seen = (well, now);
        }
    }

    /// Whether it has been so for the dwell time.
    fn has_been(&self, key: NodeKey, well: bool, dwell: Duration, now: Time) -> bool {
        let seen = self.seen.get(&key);
        seen.is_some_and(|(was, since)| *was == well && now.since(*since) >= dwell)
    }
}

impl Replica {
    /// Looks around if it is time, and takes one step if one is due.
    pub(super) fn consult_autopilot(&mut self) {
        let Some(plan) = self.autopilot.plan else {
            return;
        };
        if self.role() != Some(Role::Leader) || self.phase != Phase::Running {
            // Who leads next begins to look anew: what it saw before says nothing of now.
            self.autopilot.seen.clear();
            return;
        }
        if self.now < self.autopilot.look_at {
            return;
        }
        self.autopilot.look_at = self.now + INTERVAL;
        self.look_around();
        let Some((members, why)) = self.next_move(plan) else {
            return;
        };
        self.event(Event::Autopilot(why));
        self.consensus(raft::Input::Reconfigure {
            id: ChangeId(0),
            members,
            settings: None,
        });
    }

    fn look_around(&mut self) {
        let Some(raft) = &self.raft else { return };
        let configuration = raft.configuration();
        let heard = |key: NodeKey| raft.follower(key).is_some_and(|f| f.is_heard);
        let members = configuration.all_members().map(|key| (key, heard(key)));
        let present: Vec<NodeKey> = self.presence.active().map(|node| node.key).collect();
        let observers = present.iter().filter(|key| !configuration.is_member(**key));
        let mut well: BTreeMap<NodeKey, bool> = observers.map(|key| (*key, true)).collect();
        well.extend(members);
        let now = self.now;
        self.autopilot.seen.retain(|key, _| well.contains_key(key));
        for (key, well) in well {
            self.autopilot.look(key, well, now);
        }
    }

    /// The change to make now, and why.
    fn next_move(&self, plan: Autopilot) -> Option<(Vec<MemberChange>, String)> {
        let raft = self.raft.as_ref()?;
        let configuration = raft.configuration();
        let settled = raft.commit_index() >= raft.configuration_index();
        if configuration.is_joint() || !settled || !self.steering.transfer_is_idle() {
            return None;
        }
        let state = |key, well| self.autopilot.has_been(key, well, plan.dwell, self.now);
        let heard = |key: &NodeKey| raft.follower(*key).is_some_and(|f| f.is_heard);
        let answering = configuration.voters.keys().filter(|key| heard(key)).count();
        let voters = &configuration.voters;
        // A cluster that is to grow has fewer voters than the target's majority yet.
        if answering < plan.floor().min(voters.len() / 2 + 1) {
            return None;
        }
        let silent = voters.keys().copied().find(|key| state(*key, false));
        let missing = voters.len() < plan.target;
        if silent.is_none() && !missing {
            return None;
        }
        let learners = configuration.learners.keys().copied();
        let mut learners = learners.filter(|key| !configuration.is_witness(*key));
        if let Some(key) = learners
            .clone()
            .find(|key| state(*key, true) && raft.follower(*key).is_some_and(|f| f.is_caught_up))
        {
            let mut members = vec![MemberChange::Promote(key)];
            let mut why = format!("gives {} a vote", self.called(key));
            if let Some(silent) = silent.filter(|_| !missing) {
                members.push(MemberChange::Remove(silent));
                why += &format!(
                    " in place of {}, silent for {} s",
                    self.called(silent),
                    plan.dwell.as_secs()
                );
            }
            return Some((members, why));
        }
        if learners.any(|key| heard(&key)) {
            return None; // It is being brought up to date, or has not been there for long.
        }
        let spares = self.presence.active().filter(|node| {
            node.role == "learner" && !configuration.is_member(node.key) && state(node.key, true)
        });
        let spare = spares.min_by(|a, b| (a.metric, &a.name).cmp(&(b.metric, &b.name)))?;
        let (key, name) = (spare.key, spare.name.to_string());
        let why = format!("brings {name} up to date, to be a voter");
        let witness = false;
        let add = MemberChange::AddLearner { key, name, witness };
        Some((vec![add], why))
    }

    pub(super) fn autopilot_deadline(&self) -> Option<Time> {
        let on = self.autopilot.plan.is_some() && self.phase == Phase::Running;
        (on && self.leads()).then_some(self.autopilot.look_at)
    }
}
