//! Steering a cluster: other members, other settings, another leader.
//!
//! Voters change by joint consensus alone (Raft §6): an entry with both sets of voters, and, once it
//! is committed, one with the new set. Whoever leads then appends the second, so that a leader's end
//! leaves no cluster joint.
//!
//! A transfer goes
//!
//! ```text
//!  Transfer ──► claims withdrawn ──Relinquished, or patience over──► no more proposals
//!                                                                         │ the target holds all
//!      proposals again, another lease epoch ◄──T of that in vain── TimeoutNow sent
//! ```
//!
//! and releases the lease epoch if this leader was exclusive in it and said that it no longer acts
//! as such. A target that finds that epoch the newest in its log when it wins need not wait for the
//! lease to run out. If the target does not take over, this leader opens another epoch before it
//! makes a claim again: so a release that arrives late names an epoch that is no longer the newest
//! in any log that can win.

use std::time::Duration;

use crate::configuration::{MemberChange, Settings};
use crate::effect::{ChangeRefusal, Effect, TransferRefusal};
use crate::entry::Payload;
use crate::id::{ChangeId, LeaseEpoch, NodeKey, Time};
use crate::lead::Leadership;
use crate::message::{Body, TimeoutNow};
use crate::raft::{Raft, State};

/// The lead on its way to another node.
#[derive(Debug)]
pub(crate) struct Transfer {
    to: NodeKey,
    /// The lease epoch that this leader was exclusive in when it began.
    exclusive_in: Option<LeaseEpoch>,
    /// Whoever relied on that has been told, and is done.
    relinquished: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Until then the owner may finish what it does.
    Relinquishing { until: Time },
    /// The target is brought up to date.
    CatchingUp { until: Time },
    /// It was asked, and will be again.
    Asked { until: Time, again_at: Time },
}

impl Transfer {
    /// Whether proposals have to wait for the next leader.
    pub(crate) fn is_due(&self) -> bool {
        !matches!(self.stage, Stage::Relinquishing { .. })
    }

    pub(crate) fn deadline(&self) -> Time {
        match self.stage {
            Stage::Relinquishing { until } | Stage::CatchingUp { until } => until,
            Stage::Asked { until, again_at } => until.min(again_at),
        }
    }

    /// What may be released: only what was this leader's own, and what nobody relies on any more.
    fn released(&self) -> Option<LeaseEpoch> {
        self.exclusive_in.filter(|_| self.relinquished)
    }
}

impl Raft {
    /// What a leader sees to after every step.
    pub(crate) fn steer(&mut self) {
        self.steer_configuration();
        self.hand_over_as_witness();
        self.continue_transfer();
    }

    // Changes.

    pub(crate) fn on_reconfigure(
        &mut self,
        id: ChangeId,
        members: &[MemberChange],
        settings: Option<Settings>,
    ) {
        match self.reconfigure(id, members, settings) {
            Ok(()) => self.steer_configuration(),
            Err(refusal) => self.emit(Effect::ChangeRefused { id, refusal }),
        }
    }

    fn reconfigure(
        &mut self,
        id: ChangeId,
        members: &[MemberChange],
        settings: Option<Settings>,
    ) -> Result<(), ChangeRefusal> {
        let leader = self.leader();
        let State::Leader(leadership) = &self.state else {
            return Err(ChangeRefusal::NotLeader { leader });
        };
        let configuration = self.configuration();
        if self.sessions.is_empty() || configuration.is_witness(self.me) {
            return Err(ChangeRefusal::NotLeader { leader: None });
        }
        // What an older leader left may yet be undone; what is decided now must not rest on it.
        if self.commit_index < leadership.opened {
            return Err(ChangeRefusal::TooEarly);
        }
        let settled = self.commit_index >= self.log.configured_at() && !configuration.is_joint();
        if !settled || leadership.transfer.is_some() {
            return Err(ChangeRefusal::InProgress);
        }
        let mut next = configuration
            .change(members)
            .map_err(ChangeRefusal::Invalid)?;
        if let Some(settings) = settings.filter(|settings| *settings != next.settings) {
            if !settings.are_valid() {
                let invalid = crate::configuration::ChangeError::Settings;
                return Err(ChangeRefusal::Invalid(invalid));
            }
            // An older leader's lease runs by the older settings, and a successor of this one
            // would no longer know them.
            if self.now < leadership.exclusive_from {
                return Err(ChangeRefusal::TooEarly);
            }
            next.settings = settings;
        }
        if !next.voters.contains_key(&self.me) {
            return Err(ChangeRefusal::Leader);
        }
        let added = next.voters.keys();
        let mut added = added.filter(|key| !configuration.voters.contains_key(key));
        if let Some(late) = added.find(|key| !self.is_caught_up(leadership, **key)) {
            return Err(ChangeRefusal::NotCaughtUp(*late));
        }
        if !self.is_live(leadership, &next) {
            return Err(ChangeRefusal::NoQuorum);
        }
        let changes = next != *configuration;
        if let State::Leader(leadership) = &mut self.state {
            leadership.change = Some(id);
        }
        if changes {
            self.append_as_leader(vec![Payload::Configuration(next)]);
            self.advance_commit();
        }
        Ok(())
    }

    /// Takes the next step once the configuration in force is committed, whoever set it.
    fn steer_configuration(&mut self) {
        let State::Leader(leadership) = &self.state else {
            return;
        };
        let committed = self.commit_index >= self.log.configured_at();
        if !committed || self.commit_index < leadership.opened {
            return;
        }
        let configuration = self.configuration();
        if configuration.is_joint() {
            let next = configuration.leave_joint();
            self.append_as_leader(vec![Payload::Configuration(next)]);
            self.advance_commit();
            // What the old voters have not confirmed waits for them no longer.
            self.answer_reads();
            return self.steer_configuration();
        }
        let stays = configuration.voters.contains_key(&self.me);
        if let State::Leader(leadership) = &mut self.state
            && let Some(id) = leadership.change.take()
        {
            self.emit(Effect::ChangeDone { id });
        }
        if !stays {
            self.leave_as_stranger();
        }
    }

    /// This leader saw a change through that left it without a vote. The others learn that it is
    /// committed, and one of them need not wait for an election.
    fn leave_as_stranger(&mut self) {
        self.broadcast_round();
        if let State::Leader(leadership) = &self.state
            && let Some(to) = self.successor(leadership)
        {
            let clock = leadership.clock(to);
            self.ask_to_take_over(to, clock, None);
        }
        self.become_follower();
    }

    /// A voter that could lead at once.
    fn successor(&self, leadership: &Leadership) -> Option<NodeKey> {
        let configuration = self.configuration();
        let last = self.log.last().index;
        let could_lead = |key: &NodeKey| {
            *key != self.me
                && !configuration.is_witness(*key)
                && self.is_heard(leadership, *key)
                && leadership.match_index(*key) == last
        };
        // Whoever did not take over when it was asked last is asked again after the others.
        let voters = || configuration.voters.keys().copied().filter(could_lead);
        let asked = leadership.asked_in_vain;
        voters()
            .find(|key| Some(*key) != asked)
            .or_else(|| voters().next())
    }

    // Transfers.

    pub(crate) fn on_transfer(&mut self, to: NodeKey, patience: Duration) {
        if let Err(refusal) = self.begin_transfer(to, patience) {
            self.emit(Effect::TransferRefused { to, refusal });
        }
    }

    fn begin_transfer(&mut self, to: NodeKey, patience: Duration) -> Result<(), TransferRefusal> {
        let leader = self.leader();
        let exclusive = self.is_exclusive();
        let State::Leader(leadership) = &self.state else {
            return Err(TransferRefusal::NotLeader { leader });
        };
        if self.sessions.is_empty() {
            return Err(TransferRefusal::NotLeader { leader: None });
        }
        if to == self.me {
            return Err(TransferRefusal::Leader);
        }
        let configuration = self.configuration();
        if !configuration.voters.contains_key(&to) || configuration.is_witness(to) {
            return Err(TransferRefusal::NotAVoter);
        }
        let settled = self.commit_index >= self.log.configured_at() && !configuration.is_joint();
        if !settled || leadership.transfer.is_some() {
            return Err(TransferRefusal::InProgress);
        }
        if !self.is_heard(leadership, to) {
            return Err(TransferRefusal::NotHeard);
        }
        let until = self.now + patience;
        let State::Leader(leadership) = &mut self.state else {
            unreachable!("it was a leader above");
        };
        leadership.withdrawn = true;
        leadership.transfer = Some(Transfer {
            to,
            exclusive_in: exclusive.then_some(leadership.epoch),
            relinquished: false,
            stage: Stage::Relinquishing { until },
        });
        Ok(())
    }

    pub(crate) fn on_relinquished(&mut self) {
        if let State::Leader(leadership) = &mut self.state
            && let Some(transfer) = &mut leadership.transfer
            && let Stage::Relinquishing { until } = &mut transfer.stage
        {
            transfer.relinquished = true;
            *until = self.now;
        }
    }

    fn continue_transfer(&mut self) {
        let (now, timeout) = (self.now, self.options.election_timeout);
        let again = (2 * self.rank_delay()).max(self.options.min_probe);
        let last = self.log.last().index;
        let State::Leader(leadership) = &mut self.state else {
            return;
        };
        let Some(mut transfer) = leadership.transfer.take() else {
            return;
        };
        if let Stage::Relinquishing { until } = transfer.stage
            && now >= until
        {
            let until = now + timeout;
            transfer.stage = Stage::CatchingUp { until };
        }
        let holds_all = leadership.match_index(transfer.to) == last;
        let (to, released) = (transfer.to, transfer.released());
        let asks = match &mut transfer.stage {
            Stage::Relinquishing { .. } => false,
            Stage::CatchingUp { until } if now >= *until => return self.end_transfer(to, None),
            Stage::CatchingUp { until } if holds_all => {
                // Proposals have waited since the stage before: it is one time for both.
                let (until, again_at) = (*until, now + again);
                transfer.stage = Stage::Asked { until, again_at };
                true
            }
            Stage::CatchingUp { .. } => false,
            Stage::Asked { until, .. } if now >= *until => return self.end_transfer(to, released),
            Stage::Asked { again_at, .. } if now >= *again_at => {
                *again_at = now + again;
                true
            }
            Stage::Asked { .. } => false,
        };
        let clock = leadership.clock(to);
        leadership.transfer = Some(transfer);
        if asks {
            self.ask_to_take_over(to, clock, released);
        }
    }

    fn ask_to_take_over(&mut self, to: NodeKey, clock: Time, released: Option<LeaseEpoch>) {
        let last = self.log.last();
        let request = TimeoutNow {
            last,
            clock,
            released,
        };
        self.send(to, Body::TimeoutNow(request));
    }

    /// The target did not take over: this leader goes on. What it has released is spent.
    fn end_transfer(&mut self, to: NodeKey, released: Option<LeaseEpoch>) {
        let refusal = TransferRefusal::TimedOut;
        self.emit(Effect::TransferRefused { to, refusal });
        let opens = self.log.last().index + 1;
        let State::Leader(leadership) = &mut self.state else {
            return;
        };
        leadership.withdrawn = false;
        leadership.asked_in_vain = Some(to);
        if released.is_none() {
            return;
        }
        let Some(epoch) = leadership.epoch.next() else {
            return self.become_follower();
        };
        leadership.epoch = epoch;
        leadership.epoch_opened = opens;
        self.append_as_leader(vec![Payload::LeaseEpoch(epoch.number)]);
        self.advance_commit();
    }

    /// A witness leads where nobody else could win, and only until somebody else can.
    fn hand_over_as_witness(&mut self) {
        let State::Leader(leadership) = &self.state else {
            return;
        };
        let idle = leadership.transfer.is_none() && self.commit_index >= leadership.opened;
        if !self.is_witness() || !idle {
            return;
        }
        if let Some(to) = self.successor(leadership) {
            // Where a change is under way this waits for it.
            let _ = self.begin_transfer(to, Duration::ZERO);
        }
    }
}
