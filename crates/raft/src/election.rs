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

use crate::entry::HardState;
use crate::follow::Following;
use crate::id::{LeaseEpoch, NodeKey, SessionId, Term, Time};
use crate::message::{Body, Message, PreVote, TimeoutNow, Vote, VoteRequest};
use crate::raft::{Raft, State};
use crate::sessions::Sessions;

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
    /// The sessions whose end was last believed. If their leader lives after all, whoever repeats the
    /// will is not believed again.
    spent: Sessions,
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
    /// The leader asked us to take over.
    transfer: bool,
    /// The lease epoch that it gave up for that.
    pub(crate) released: Option<LeaseEpoch>,
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

    /// r·δ and up to half a δ of jitter, so that equal ranks differ. A witness lets everyone else
    /// try first.
    fn ranked_delay(&mut self) -> Duration {
        let delta = self.rank_delay();
        let after_all_others = match self.is_witness() {
            true => self.options.election_timeout,
            false => Duration::ZERO,
        };
        after_all_others + delta.saturating_mul(self.rank) + self.rng.below(delta / 2)
    }

    /// How long a campaign may take before the next.
    fn campaign_duration(&mut self) -> Duration {
        let timeout = self.options.election_timeout;
        if self.election.failed < RANKED_ATTEMPTS {
            let attempt = 4 * self.rank_delay() + self.ranked_delay();
            attempt.min(timeout)
        } else {
            timeout + self.rng.below(timeout)
        }
    }

    pub(crate) fn election_deadline(&self) -> Option<Time> {
        let fetch = self.fetch_deadline();
        if !self.may_campaign() {
            let follows = self.following.heard_at.is_some();
            let lapses = follows.then(|| self.leader_lapses_at());
            return [lapses, fetch].into_iter().flatten().min();
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
        [Some(self.election.campaign_at), held, ask_again, fetch]
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
        self.fetch_if_due();
        if !self.may_campaign() {
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
        if self.sessions.is_empty() {
            self.state = State::Follower; // Nobody would hear it.
            return;
        }
        if without_pre_vote {
            self.campaign(false, None);
        } else {
            self.campaign_for_pre_votes();
        }
    }

    // A hint that the leader's session ended.

    pub(crate) fn on_leader_gone(&mut self, session: SessionId) {
        let following = &mut self.following;
        if !matches!(self.state, State::Follower)
            || following.heard_at.is_none()
            || !following.sessions.contains(session)
        {
            return; // A will of an older session, or of someone who does not lead.
        }
        following.ended.insert(session);
        // It may live on in another of them, and each end of a session may be told only once.
        let lives_on = !following.sessions.are_all_in(&following.ended);
        if lives_on || following.sessions.are_all_in(&self.election.spent) {
            return;
        }
        self.election.spent = following.sessions;
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
            transfer: false,
            released: None,
        });
        self.ask();
        self.count_votes();
    }

    /// The leader wants us to take over: at once, and without asking whether we may. A request that
    /// comes too late, or was made for another state of things, is inert.
    pub(crate) fn on_timeout_now(&mut self, from: NodeKey, request: TimeoutNow) {
        // Below T by as much as the clocks of two nodes may differ in rate.
        let patience = self.options.election_timeout - self.options.election_timeout / 8;
        let follows = matches!(self.state, State::Follower);
        let is_from_leader = follows && self.following.live_leader() == Some(from);
        let in_time = request.clock <= self.now && self.now < request.clock + patience;
        if !is_from_leader || !in_time || request.last != self.log.last() {
            return;
        }
        if self.sessions.is_empty() || self.is_witness() || !self.may_campaign() {
            return;
        }
        self.election.started_at = None;
        self.following.heard_at = None;
        self.campaign(true, request.released);
    }

    fn campaign(&mut self, transfer: bool, released: Option<LeaseEpoch>) {
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
            transfer,
            released,
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
        let (first_wait, longest) = (2 * self.rank_delay(), self.options.election_timeout);
        let State::Candidate(candidacy) = &mut self.state else {
            return;
        };
        let wait = first_wait.saturating_mul(1 << candidacy.asked.min(16));
        candidacy.ask_again_at = now + wait.min(longest);
        candidacy.asked = candidacy.asked.saturating_add(1);
        let transfer = candidacy.transfer;
        let request = VoteRequest { last, transfer };
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
        let counts = self.configuration().is_voter(from);
        let State::Candidate(candidacy) = &mut self.state else {
            return;
        };
        // Nobody can vote before being asked, and we ask only once our own vote is on disk.
        // Who is asked may be a voter by its own log and no more by ours.
        if counts && vote.granted && !candidacy.pre_vote && candidacy.asked > 0 {
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
        let released = candidacy.released;
        match candidacy.pre_vote {
            true => self.campaign(false, None),
            false => self.become_leader(released),
        }
    }

    // Voting.

    pub(crate) fn on_request_pre_vote(&mut self, from: NodeKey, term: Term, request: VoteRequest) {
        if !self.may_vote() {
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
        if !self.may_vote() {
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
            let until = self.now + self.rank_delay();
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
        // Whose end we were told of led an older term: in this one others are to be asked first.
        self.election.without_pre_vote = false;
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::effect::{Effect, Input};
    use crate::fixture::formed;
    use crate::id::{Index, LogPosition, PersistSeq, Round, StreamId};
    use crate::message::Append;
    use crate::raft::{Options, Role};

    const ME: NodeKey = NodeKey(1);
    const PEER: NodeKey = NodeKey(2);
    const SESSION: SessionId = SessionId(2_001);
    const MS: Duration = Duration::from_millis(1);

    /// One of five voters, connected, in term 1; its log holds the formation record.
    fn voter() -> Raft {
        let durable = formed(5);
        let mut raft = Raft::new(ME, Options::default(), 7, durable, Time(1_000));
        raft.step(Input::Sessions(Sessions::of(SessionId(1))), Time(1_000));
        raft
    }

    fn hear(raft: &mut Raft, from: NodeKey, term: u64, body: Body) -> Vec<Effect> {
        let message = Message {
            term: Term(term),
            body,
        };
        raft.step(Input::Message { from, message }, raft.now)
    }

    /// `PEER` leads `term` and says so.
    fn heartbeat(raft: &mut Raft, term: u64) {
        let (index, of) = (Index(1), Term(1));
        let append = Append {
            round: Round(1),
            sessions: Sessions::of(SESSION),
            stream: StreamId(0),
            prev: LogPosition { index, term: of },
            commit_index: Index(1),
            entries: Vec::new(),
        };
        hear(raft, PEER, term, Body::Append(append));
    }

    fn request() -> VoteRequest {
        let (index, term) = (Index(1), Term(1));
        VoteRequest {
            last: LogPosition { index, term },
            transfer: false,
        }
    }

    fn persist(raft: &mut Raft, seq: u64) -> Vec<Effect> {
        raft.step(Input::Persisted(PersistSeq(seq)), raft.now)
    }

    fn grant(proposed_term: u64) -> Body {
        Body::PreVote(PreVote {
            proposed_term: Term(proposed_term),
            granted: true,
        })
    }

    /// A voter that follows `PEER` in term 2 and holds the formation record, at ten seconds.
    fn follower() -> Raft {
        let mut raft = voter();
        raft.now = Time(10_000_000);
        heartbeat(&mut raft, 2);
        persist(&mut raft, 1);
        raft
    }

    fn take_over(clock: u64, index: u64) -> Body {
        let (index, term) = (Index(index), Term(1));
        Body::TimeoutNow(TimeoutNow {
            last: LogPosition { index, term },
            clock: Time(clock),
            released: None,
        })
    }

    /// Who is asked to take over by its leader, in time and with all that the leader holds, asks for
    /// votes at once.
    #[test]
    fn takes_over_when_asked() {
        let mut raft = follower();
        hear(&mut raft, PEER, 2, take_over(10_000_000, 1));
        assert_eq!((raft.role(), raft.term()), (Role::Candidate, Term(3)));
    }

    /// Whoever else asks, or asks too late by the clock that it brings back, or for another log, or of
    /// an older term, is not heeded.
    #[test]
    fn takes_over_for_nobody_else() {
        let cases = [
            ("a stranger", NodeKey(3), 2, take_over(10_000_000, 1)),
            ("too late", PEER, 2, take_over(9_125_000, 1)),
            ("before its time", PEER, 2, take_over(10_000_001, 1)),
            ("more than we hold", PEER, 2, take_over(10_000_000, 2)),
            ("less than we hold", PEER, 2, take_over(10_000_000, 0)),
            ("of an older term", PEER, 1, take_over(10_000_000, 1)),
        ];
        for (case, from, term, body) in cases {
            let mut raft = follower();
            hear(&mut raft, from, term, body);
            assert_eq!(raft.role(), Role::Follower, "{case}");
            assert_eq!(raft.term(), Term(2), "{case}");
        }
        let mut raft = follower();
        hear(&mut raft, PEER, 2, take_over(9_125_001, 1));
        assert_eq!(raft.role(), Role::Candidate, "just in time");
        let mut raft = follower();
        raft.step(Input::Sessions(Sessions::default()), raft.now);
        hear(&mut raft, PEER, 2, take_over(10_000_000, 1));
        assert_eq!(raft.role(), Role::Follower, "nobody would hear it");
    }

    fn pre_candidate() -> Raft {
        let mut raft = voter();
        let now = raft.next_deadline().expect("a voter campaigns");
        raft.step(Input::Tick, now);
        assert_eq!(raft.role(), Role::PreCandidate);
        raft
    }

    /// A candidate in term 2 that has asked for votes.
    fn candidate() -> Raft {
        let mut raft = pre_candidate();
        hear(&mut raft, NodeKey(2), 1, grant(2));
        hear(&mut raft, NodeKey(3), 1, grant(2));
        persist(&mut raft, 1);
        assert_eq!((raft.role(), raft.term()), (Role::Candidate, Term(2)));
        raft
    }

    fn broadcasts(effects: &[Effect]) -> usize {
        let broadcast = |effect: &&Effect| matches!(effect, Effect::Broadcast(_));
        effects.iter().filter(broadcast).count()
    }

    /// Ranked while ranks may help, then anywhere between T and 2T: two who collide once must not
    /// go on colliding.
    #[test]
    fn campaigns_in_vain_spread_out() {
        let mut raft = voter();
        raft.rank = 3;
        let (t, delta) = (raft.options.election_timeout, raft.options.rank_delay);
        for failed in 0..RANKED_ATTEMPTS {
            raft.election.failed = failed;
            let duration = raft.campaign_duration();
            let jitter = duration.checked_sub(4 * delta + 3 * delta);
            assert!(
                jitter.is_some_and(|jitter| jitter < delta / 2),
                "{duration:?}"
            );
        }
        raft.rank = u32::MAX;
        assert_eq!(raft.campaign_duration(), t, "no rank is worse than silence");
        raft.election.failed = RANKED_ATTEMPTS;
        let durations: Vec<Duration> = (0..100).map(|_| raft.campaign_duration()).collect();
        assert!(
            durations.iter().all(|d| (t..2 * t).contains(d)),
            "{durations:?}"
        );
        assert!(durations.iter().any(|d| *d < t * 5 / 4));
        assert!(durations.iter().any(|d| *d > t * 7 / 4));
    }

    /// The time for which a leader is believed in ends T after it was heard, to the microsecond:
    /// its lease is reckoned from that.
    #[test]
    fn a_leader_is_believed_alive_for_exactly_the_election_timeout() {
        for (early, granted) in [(1, false), (0, true)] {
            let mut raft = voter();
            raft.rank = 9; // It does not campaign itself before the request comes.
            heartbeat(&mut raft, 2);
            let lapses = raft.now + raft.options.election_timeout;
            raft.now = Time(lapses.0 - early);
            hear(&mut raft, NodeKey(3), 3, Body::RequestVote(request()));
            let voted = raft.hard_state.voted_for == Some(NodeKey(3));
            assert_eq!(voted, granted, "{early} µs before");
        }
    }

    /// A will that arrives twice, or after its leader was given up, changes nothing.
    #[test]
    fn a_will_counts_once() {
        let mut raft = voter();
        heartbeat(&mut raft, 2);
        let gone = Input::LeaderGone { session: SESSION };
        raft.step(gone.clone(), raft.now);
        let deadline = raft.next_deadline();
        assert!(deadline <= Some(raft.now + raft.options.rank_delay / 2));
        for _ in 0..20 {
            raft.step(gone.clone(), raft.now);
            assert_eq!(raft.next_deadline(), deadline, "the jitter is drawn once");
        }
        raft.step(Input::Sessions(Sessions::default()), raft.now);
        let now = deadline.expect("it campaigns");
        raft.step(Input::Tick, now);
        assert_eq!(raft.role(), Role::Follower, "nobody would hear it");
        raft.step(Input::Sessions(Sessions::of(SessionId(3))), raft.now);
        raft.step(gone, raft.now);
        let now = raft.next_deadline().expect("it tries again");
        raft.step(Input::Tick, now);
        assert_eq!(raft.role(), Role::PreCandidate, "the will is of long ago");
    }

    /// A candidate's vote is asked for when it is on disk, and not again for any other write.
    #[test]
    fn a_write_that_is_no_vote_asks_nobody() {
        let mut raft = candidate();
        let deadline = raft.next_deadline();
        raft.commit_index = Index(1);
        let (through, data) = (Index(1), Bytes::from_static(b"state"));
        let effects = raft.step(Input::Compact { through, data }, raft.now);
        assert!(matches!(effects[..], [Effect::Persist(_)]), "{effects:?}");
        let effects = persist(&mut raft, 2);
        assert_eq!(effects, [], "a snapshot is no vote");
        assert_eq!(raft.next_deadline(), deadline);
    }

    /// Pre-votes count for the term that was asked about, and only while they are asked for.
    #[test]
    fn a_pre_vote_is_no_vote() {
        let mut raft = pre_candidate();
        hear(&mut raft, NodeKey(2), 1, grant(3));
        hear(&mut raft, NodeKey(3), 1, grant(1));
        assert_eq!(raft.role(), Role::PreCandidate, "another term's");
        let mut raft = candidate();
        for key in 2..=5 {
            hear(&mut raft, NodeKey(key), 2, grant(3));
        }
        assert_eq!((raft.role(), raft.term()), (Role::Candidate, Term(2)));
    }

    /// No vote is counted before it can have been cast: after our own was on disk.
    #[test]
    fn a_vote_that_was_not_asked_for_is_not_counted() {
        let granted = true;
        let vote = || Body::Vote(Vote { granted });
        let mut raft = pre_candidate();
        for key in 2..=5 {
            hear(&mut raft, NodeKey(key), 1, vote());
        }
        assert_eq!(raft.role(), Role::PreCandidate);
        hear(&mut raft, NodeKey(2), 1, grant(2));
        hear(&mut raft, NodeKey(3), 1, grant(2));
        for key in 2..=5 {
            hear(&mut raft, NodeKey(key), 2, vote());
        }
        assert_eq!(raft.role(), Role::Candidate);
        persist(&mut raft, 1);
        assert_eq!(raft.role(), Role::Candidate, "the votes were not its");
        let refused = Body::Vote(Vote { granted: false });
        hear(&mut raft, NodeKey(2), 2, vote());
        hear(&mut raft, NodeKey(2), 2, vote());
        hear(&mut raft, NodeKey(3), 2, refused);
        assert_eq!(raft.role(), Role::Candidate, "one vote and its own");
        hear(&mut raft, NodeKey(3), 2, vote());
        assert_eq!(raft.role(), Role::Leader);
    }

    /// A request that is not answered is sent again after 2δ, 4δ, 8δ …, but never less often than
    /// once in T.
    #[test]
    fn requests_are_repeated_ever_less_often() {
        let mut raft = candidate();
        let delta = raft.options.rank_delay;
        raft.election.campaign_at = raft.now + 10_000 * MS;
        let (mut last, mut waits) = (raft.now, Vec::new());
        for _ in 0..8 {
            let now = raft.next_deadline().expect("a voter campaigns");
            let effects = raft.step(Input::Tick, now);
            assert_eq!(broadcasts(&effects), 1, "{effects:?}");
            waits.push(now.since(last));
            last = now;
        }
        let t = raft.options.election_timeout;
        let doubled = (1..=8).map(|n| (delta * (1 << n)).min(t));
        assert!(waits.iter().copied().eq(doubled), "{waits:?}");
    }

    /// Only the leader's silence makes a request worth keeping, and only for δ: then it was one
    /// of those that PreVote and CheckQuorum are there to refuse.
    #[test]
    fn a_request_is_held_for_one_rank_delay() {
        for (wait, granted) in [(19, true), (20, false)] {
            let mut raft = voter();
            heartbeat(&mut raft, 2);
            hear(&mut raft, NodeKey(3), 3, Body::RequestVote(request()));
            let held_until = raft.now + raft.options.rank_delay;
            assert_eq!(raft.next_deadline(), Some(held_until));
            raft.step(Input::Tick, raft.now + wait * MS);
            raft.step(Input::LeaderGone { session: SESSION }, raft.now);
            let voted = raft.hard_state.voted_for == Some(NodeKey(3));
            assert_eq!(voted, granted, "{wait} ms later");
        }
    }

    /// A pre-vote never displaces a vote request that is held; any newer vote request does.
    #[test]
    fn a_held_vote_request_stays_before_pre_votes() {
        let mut raft = voter();
        heartbeat(&mut raft, 2);
        hear(&mut raft, NodeKey(5), 2, Body::RequestPreVote(request()));
        hear(&mut raft, NodeKey(3), 3, Body::RequestVote(request()));
        hear(&mut raft, NodeKey(4), 2, Body::RequestPreVote(request()));
        raft.step(Input::LeaderGone { session: SESSION }, raft.now);
        assert_eq!(raft.hard_state.voted_for, Some(NodeKey(3)));

        let mut raft = voter();
        heartbeat(&mut raft, 2);
        hear(&mut raft, NodeKey(3), 3, Body::RequestVote(request()));
        hear(&mut raft, NodeKey(4), 3, Body::RequestVote(request()));
        raft.step(Input::LeaderGone { session: SESSION }, raft.now);
        assert_eq!(raft.hard_state.voted_for, Some(NodeKey(4)));
    }

    /// Whoever is asked to take over does so for its leader alone, in time, and with the log that
    /// the leader knew of.
    #[test]
    fn only_the_leader_gives_its_lead_away() {
        const STRANGER: NodeKey = NodeKey(3);
        let asked = |from, last, late| {
            let mut raft = voter();
            heartbeat(&mut raft, 2);
            persist(&mut raft, 1);
            let clock = raft.now;
            raft.now = raft.now + late;
            heartbeat(&mut raft, 2);
            let request = TimeoutNow {
                last,
                clock,
                released: None,
            };
            hear(&mut raft, from, 2, Body::TimeoutNow(request));
            raft.role()
        };
        let (index, term) = (Index(1), Term(1));
        let last = LogPosition { index, term };
        assert_eq!(asked(PEER, last, 800 * MS), Role::Candidate);
        assert_eq!(asked(PEER, last, 900 * MS), Role::Follower, "late");
        assert_eq!(asked(STRANGER, last, MS), Role::Follower, "no leader");
        let index = Index(2);
        let other = LogPosition { index, term };
        assert_eq!(asked(PEER, other, MS), Role::Follower, "another log");
    }
}
