//! Seeking a leader: when a voter campaigns, whom it votes for, and how a hint speeds it up.
//!
//! A voter that heard its leader within the election timeout T neither campaigns nor votes
//! (CheckQuorum, Raft thesis §6.2, §4.2.3). What follows depends on how the leader went:
//!
//! ```text
//! silence            T + rank·δ + jitter   pre-vote → vote
//! its will arrived        rank·δ + jitter             vote     (design points 4 and 5)
//! twice in vain      T..2T at random       pre-vote → vote
//! ```
//!
//! A vote is granted on term and log alone; rank and wills decide when, never whether. A request
//! that came too early to be granted, because the leader still seemed alive, is held for δ: it
//! may have overtaken the will.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::effect::Rejection;
use crate::entry::HardState;
use crate::follow::Following;
use crate::id::{NodeKey, SessionId, Term, Time};
use crate::message::{Body, Message, PreVote, Vote, VoteRequest};
use crate::raft::{Raft, State};

/// After so many elections in vain, ranks no longer help: candidates spread at random.
const RANKED_ATTEMPTS: u32 = 2;

/// By how much further ranks are apart at the start of a node.
const FIRST_ELECTION_SPREAD: u32 = 4;

/// When this node campaigns next, and what it holds until then.
#[derive(Debug, Default)]
pub(crate) struct Election {
    /// When to campaign, unless a leader is heard before.
    pub(crate) campaign_at: Time,
    /// When the node started, as long as nothing has happened since.
    started_at: Option<Time>,
    /// The leader's own will was seen: no pre-vote is needed.
    without_pre_vote: bool,
    /// Campaigns in vain since a leader was last heard.
    failed: u32,
    /// The newest request refused only because the leader seemed alive.
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    from: NodeKey,
    message: Message,
    until: Time,
}

/// A campaign under way.
#[derive(Debug)]
pub(crate) struct Candidacy {
    /// Still asking, not yet voting.
    pub(crate) pre_vote: bool,
    granted: BTreeSet<NodeKey>,
    /// How often the request has gone out: for votes, only once our own is on disk.
    asked: u32,
    ask_again_at: Time,
}

impl Raft {
    // When.

    /// At start: a cluster just formed has no leader to wait for, any other may have one. Said
    /// again when the rank becomes known before anything else has happened.
    pub(crate) fn schedule_first_election(&mut self) {
        let started_at = *self.election.started_at.get_or_insert(self.now);
        let just_formed = self.log.last().index.0 <= 1;
        let wait = if just_formed {
            Duration::ZERO
        } else {
            self.options.election_timeout
        };
        // Not all start at the same moment, so ranks are further apart than after a will.
        let ranked = FIRST_ELECTION_SPREAD * self.ranked_delay();
        self.election.campaign_at = started_at + wait + ranked;
    }

    pub(crate) fn on_rank(&mut self, rank: u32) {
        let changed = rank != self.rank;
        self.rank = rank;
        if self.election.started_at.is_some() && changed {
            self.schedule_first_election();
        }
    }

    /// A leader was heard, or a vote given: wait T again before campaigning.
    pub(crate) fn schedule_election(&mut self) {
        self.election.started_at = None;
        self.election.without_pre_vote = false;
        let wait = self.options.election_timeout + self.ranked_delay();
        self.election.campaign_at = self.now + wait;
    }

    /// A leader was heard: earlier failures no longer count.
    pub(crate) fn election_succeeded(&mut self) {
        self.election.failed = 0;
        self.schedule_election();
    }

    /// r·δ and up to half a δ of jitter, so that equal ranks differ.
    fn ranked_delay(&mut self) -> Duration {
        let delta = self.options.rank_delay;
        delta.saturating_mul(self.rank) + self.rng.below(delta / 2)
    }

    /// How long a campaign may take before the next.
    fn campaign_duration(&mut self) -> Duration {
        let timeout = self.options.election_timeout;
        if self.election.failed < RANKED_ATTEMPTS {
            let attempt = 4 * self.options.rank_delay + self.ranked_delay();
            attempt.min(timeout)
        } else {
            timeout + self.rng.below(timeout)
        }
    }

    pub(crate) fn election_deadline(&self) -> Option<Time> {
        if !self.is_voter() {
            let follows = self.following.heard_at.is_some();
            return follows.then(|| self.leader_lapses_at());
        }
        let held = self
            .election
            .held
            .as_ref()
            .map(|held| held.until.min(self.leader_lapses_at()));
        let ask_again = match &self.state {
            State::Candidate(candidacy) if candidacy.asked > 0 => Some(candidacy.ask_again_at),
            _ => None,
        };
        [Some(self.election.campaign_at), held, ask_again]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether the leader was heard so recently that no one else may be voted for.
    pub(crate) fn believes_leader_alive(&self) -> bool {
        match &self.state {
            // A leader that lost its quorum steps down by itself (CheckQuorum).
            State::Leader(_) => true,
            State::Candidate(_) => false,
            State::Follower => {
                self.following.heard_at.is_some() && self.now < self.leader_lapses_at()
            }
        }
    }

    fn leader_lapses_at(&self) -> Time {
        let heard_at = self.following.heard_at.unwrap_or_default();
        heard_at + self.options.election_timeout
    }

    /// What time brings to a node without leadership.
    pub(crate) fn seek_leader(&mut self) {
        self.reconsider_held_request();
        if !self.is_voter() {
            return self.give_up_silent_leader();
        }
        if self.now >= self.election.campaign_at {
            self.on_election_timeout();
        } else {
            self.ask_again();
        }
    }

    /// Who has no vote no longer names a leader that it has not heard for T either.
    fn give_up_silent_leader(&mut self) {
        if self.following.heard_at.is_some() && self.now >= self.leader_lapses_at() {
            self.following.heard_at = None;
        }
    }

    fn on_election_timeout(&mut self) {
        if matches!(self.state, State::Candidate(_)) {
            self.election.failed = self.election.failed.saturating_add(1);
        }
        self.election.started_at = None;
        let without_pre_vote = std::mem::take(&mut self.election.without_pre_vote);
        let duration = self.campaign_duration();
        self.election.campaign_at = self.now + duration;
        self.following.heard_at = None;
        if self.session.is_none() {
            self.state = State::Follower; // Nobody would hear it.
            return;
        }
        if without_pre_vote {
            self.campaign();
        } else {
            self.campaign_for_pre_votes();
        }
    }

    // A hint that the leader's session ended.

    pub(crate) fn on_leader_gone(&mut self, session: SessionId) {
        let following = &mut self.following;
        if !matches!(self.state, State::Follower)
            || following.heard_at.is_none()
            || following.session != session
        {
            return; // A will of an older session, or of someone who does not lead.
        }
        following.heard_at = None;
        self.election.campaign_at = self.now + self.ranked_delay();
        self.election.without_pre_vote = true;
        self.reconsider_held_request();
    }

    // Campaigning.

    fn campaign_for_pre_votes(&mut self) {
        self.state = State::Candidate(Candidacy {
            pre_vote: true,
            granted: BTreeSet::from([self.me]),
            asked: 0,
            ask_again_at: self.now,
        });
        self.ask();
        self.count_votes();
    }

    fn campaign(&mut self) {
        let term = self.term().next();
        self.enter_term(HardState {
            term,
            voted_for: Some(self.me),
        });
        self.state = State::Candidate(Candidacy {
            pre_vote: false,
            granted: BTreeSet::new(),
            asked: 0,
            ask_again_at: self.now,
        });
        // A slow disk is no failed campaign: the time for the answers begins with the request.
        self.election.campaign_at = self.now + self.options.election_timeout;
    }

    /// Our own vote is on disk: now it counts, and now the others may be asked. A request that
    /// left before could be answered to a successor of ours that does not remember asking.
    pub(crate) fn on_candidacy_persisted(&mut self) {
        if !self.hard_state_is_durable() {
            return;
        }
        let me = self.me;
        let State::Candidate(candidacy) = &mut self.state else {
            return;
        };
        if candidacy.asked > 0 {
            return;
        }
        candidacy.granted.insert(me);
        self.election.campaign_at = self.now + self.campaign_duration();
        self.ask();
        self.count_votes();
    }

    /// Asks everyone; again after 2δ if need be, while the campaign lasts, and then ever less
    /// often.
    fn ask(&mut self) {
        let (now, last) = (self.now, self.log.last());
        let (first_wait, longest) = (2 * self.options.rank_delay, self.options.election_timeout);
        let State::Candidate(candidacy) = &mut self.state else {
            return;
        };
        let wait = first_wait.saturating_mul(1 << candidacy.asked.min(16));
        candidacy.ask_again_at = now + wait.min(longest);
        candidacy.asked = candidacy.asked.saturating_add(1);
        let request = VoteRequest { last };
        let body = match candidacy.pre_vote {
            true => Body::RequestPreVote(request),
            false => Body::RequestVote(request),
        };
        self.broadcast(body);
    }

    /// A lost request or vote is asked for again before the campaign is given up.
    fn ask_again(&mut self) {
        if let State::Candidate(candidacy) = &self.state
            && candidacy.asked > 0
            && self.now >= candidacy.ask_again_at
        {
            self.ask();
        }
    }

    pub(crate) fn on_pre_vote(&mut self, from: NodeKey, reply: PreVote) {
        let proposed = self.term().next();
        let State::Candidate(candidacy) = &mut self.state else {
            return;
        };
        if candidacy.pre_vote && reply.proposed_term == proposed {
            candidacy.granted.insert(from);
            self.count_votes();
        }
    }

    pub(crate) fn on_vote(&mut self, from: NodeKey, vote: Vote) {
        if !self.configuration().is_voter(from) {
            return self.reject_peer(from, Rejection::NotAMember);
        }
        let State::Candidate(candidacy) = &mut self.state else {
            return;
        };
        // Nobody can vote before being asked, and we ask only once our own vote is on disk.
        if vote.granted && !candidacy.pre_vote && candidacy.asked > 0 {
            candidacy.granted.insert(from);
            self.count_votes();
        }
    }

    fn count_votes(&mut self) {
        let State::Candidate(candidacy) = &self.state else {
            return;
        };
        if !self
            .configuration()
            .has_quorum(|key| candidacy.granted.contains(&key))
        {
            return;
        }
        match candidacy.pre_vote {
            true => self.campaign(),
            false => self.become_leader(),
        }
    }

    // Voting.

    pub(crate) fn on_request_pre_vote(&mut self, from: NodeKey, term: Term, request: VoteRequest) {
        if !self.is_voter() {
            return;
        }
        if term >= self.term() && self.believes_leader_alive() {
            return self.hold(
                from,
                Message {
                    term,
                    body: Body::RequestPreVote(request),
                },
            );
        }
        let granted = term >= self.term() && request.last.is_up_to_date_with(self.log.last());
        let reply = PreVote {
            proposed_term: term.next(),
            granted,
        };
        // The refusal carries our term; it must be one that we could not forget.
        self.send_when_durable(from, Body::PreVote(reply));
    }

    pub(crate) fn on_request_vote(&mut self, from: NodeKey, request: VoteRequest) {
        if !self.is_voter() {
            return;
        }
        let free = self
            .hard_state
            .voted_for
            .is_none_or(|voted_for| voted_for == from);
        if free && request.last.is_up_to_date_with(self.log.last()) {
            self.grant_vote(from);
        } else {
            self.refuse_vote(from);
        }
    }

    fn grant_vote(&mut self, to: NodeKey) {
        let hard_state = HardState {
            voted_for: Some(to),
            ..self.hard_state
        };
        if hard_state != self.hard_state {
            self.set_hard_state(hard_state);
        }
        self.schedule_election();
        // A vote must reach the disk before the network: forgetting it could elect two leaders
        // in one term (Raft §5.2).
        self.send_when_durable(to, Body::Vote(Vote { granted: true }));
    }

    pub(crate) fn refuse_vote(&mut self, to: NodeKey) {
        self.send_when_durable(to, Body::Vote(Vote { granted: false }));
    }

    pub(crate) fn hold_vote_request(&mut self, from: NodeKey, term: Term, request: VoteRequest) {
        self.hold(
            from,
            Message {
                term,
                body: Body::RequestVote(request),
            },
        );
    }

    /// Keeps a request for δ. A pre-vote does not displace a vote request: its sender has
    /// entered the term already.
    fn hold(&mut self, from: NodeKey, message: Message) {
        let is_pre_vote = matches!(message.body, Body::RequestPreVote(_));
        let holds_vote = |held: &Held| matches!(held.message.body, Body::RequestVote(_));
        let displaces = !is_pre_vote || !self.election.held.as_ref().is_some_and(holds_vote);
        if matches!(self.state, State::Follower) && displaces {
            let until = self.now + self.options.rank_delay;
            self.election.held = Some(Held {
                from,
                message,
                until,
            });
        }
    }

    fn reconsider_held_request(&mut self) {
        let Some(held) = &self.election.held else {
            return;
        };
        if !self.believes_leader_alive() {
            let held = self.election.held.take().expect("just seen");
            self.on_message(held.from, held.message);
        } else if self.now >= held.until {
            self.election.held = None;
        }
    }

    // Terms.

    /// Enters a newer term that a peer has told of.
    pub(crate) fn become_follower_in(&mut self, term: Term) {
        self.enter_term(HardState {
            term,
            voted_for: None,
        });
        self.become_follower();
    }

    /// Gives up candidacy or leadership within the term.
    pub(crate) fn become_follower(&mut self) {
        if !matches!(self.state, State::Follower) {
            self.leave_leadership();
            self.state = State::Follower;
            self.schedule_election();
        }
    }

    fn enter_term(&mut self, hard_state: HardState) {
        self.set_hard_state(hard_state);
        self.following = Following::of_new_term(self.commit_index);
    }
}
