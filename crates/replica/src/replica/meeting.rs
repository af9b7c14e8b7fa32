//! Whom a running node should not meet: a node of another cluster, another node of its name, and
//! another process under its key.
//!
//! A process that learns that its key lives twice says no more in consensus. Both tell each other
//! whether they have *stood*, that is known a leader for [`STANDING`], and then
//!
//! ```text
//!              the other has stood   it has not
//! we have         both stop           we go on, it stops
//! we have not     we stop, it goes on   both stop
//! ```
//!
//! So an idle copy that comes to life beside its original gives way, and where both have taken part
//! (a copy of a whole site) neither history is chosen blindly. What is **guaranteed**: from the
//! handshake by which one of the two learns of the other until it has stopped or the other has
//! told that it stops, it sends no vote and no acknowledgement. What is **not**: between the moment
//! when both reach the same nodes and that handshake both may speak under one key, and what one of
//! them acknowledged then, or voted while the two could not hear each other, counts as the other's.

use super::*;
use crate::wire::Twin;

/// How long a process must have known a leader to have stood.
const STANDING: Duration = Duration::from_secs(10);

/// How often it tells its twin until that has answered.
const TWIN_INTERVAL: Duration = Duration::from_millis(200);

/// How long it waits for the answer of a twin before it goes on: that has died.
const TWIN_SILENT: Duration = Duration::from_secs(5);

/// How long another node of our name counts after it was last heard. Its status replaces ours, and
/// ours its, every 30 s at least.
const NAMESAKE_SILENT: Duration = Duration::from_secs(60);

/// What a node knows of those it should not meet.
#[derive(Default)]
pub(super) struct Meeting {
    pub(super) strangers: Strangers,
    /// Heard under our name and another key.
    namesake: Option<Time>,
    contest: Option<Contest>,
    /// Since when a leader has been known, but for gaps below [`STANDING`], and since when none.
    led_since: Option<Time>,
    leaderless_since: Option<Time>,
    told_wiped: bool,
}

/// Which of two processes under one key goes on.
struct Contest {
    twin: Incarnation,
    name: Name,
    /// Fixed at the first word, so that both compare the same.
    stood: bool,
    tell_at: Time,
    /// Until when we are silent in consensus; `None`: we go on.
    until: Option<Time>,
}

impl Replica {
    /// Whether no exclusive claim may be made, whatever consensus says.
    pub(super) fn is_barred(&self) -> bool {
        self.meeting.strangers.first().is_some() || self.is_silent()
    }

    /// Whether nothing may be said in consensus.
    pub(super) fn is_silent(&self) -> bool {
        let contest = self.meeting.contest.as_ref();
        contest.is_some_and(|contest| contest.until.is_some())
    }

    /// What of this an operator has to look at.
    pub(super) fn meetings(&self) -> Vec<Trouble> {
        let name = self.endpoint.name.clone();
        let strangers = self.meeting.strangers.first().cloned();
        let contest = self.meeting.contest.as_ref();
        let twin = contest.map(|contest| contest.name.clone());
        let heard = |at: Time| self.now.since(at) < NAMESAKE_SILENT;
        let namesake = self.meeting.namesake.is_some_and(heard);
        [
            twin.map(|other| Trouble::Twin { other }),
            strangers.map(|other| Trouble::OtherCluster { other }),
            namesake.then_some(Trouble::SharedName { name }),
            self.wiped(),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    // Signs: they show who, not when, so that whoever gives one is asked.

    /// A frame of another cluster id, on our topics.
    pub(super) fn on_foreign_frame(&mut self, topic: &Topic, payload: &Bytes) {
        if !self.endpoint.has_joined() || !self.meeting.strangers.may_look(self.now) {
            return;
        }
        let sender = self.endpoint.foreign_sender(topic, payload);
        // What a member of ours sealed it sealed before it was one.
        if let Some((name, key)) = sender.filter(|(_, key)| !self.is_member(*key)) {
            self.ask(&name, key);
        }
    }

    /// A status whose tag verified.
    pub(super) fn on_sign(&mut self, claim: &Claim) {
        let (node, now) = (&claim.node, self.now);
        if !claim.is_online() {
            let (key, incarnation) = claim.process();
            self.endpoint.peers.on_end(key, incarnation);
            return self.meeting.strangers.on_end(key, now);
        }
        let ours = node.name == self.endpoint.name || node.key == self.endpoint.key;
        if ours {
            if claim.process() != (self.endpoint.key, self.endpoint.incarnation) {
                self.ask(&node.name, node.key);
            }
            return;
        }
        // Voters alone: each observer would ask every other. They get the sign of the leader.
        let asks = self.is_voter(self.endpoint.key);
        let known = self
            .presence
            .get(&node.name)
            .is_some_and(|known| known.key == node.key);
        if asks && !known && !self.is_member(node.key) {
            self.ask(&node.name, node.key);
        }
    }

    fn is_member(&self, key: NodeKey) -> bool {
        let raft = self.raft.as_ref();
        raft.is_some_and(|raft| raft.configuration().is_member(key))
    }

    fn ask(&mut self, name: &Name, key: NodeKey) {
        if self.phase == Phase::Running && self.meeting.strangers.may_ask(key, self.now) {
            let hello = Body::Hello(self.lobby.hello(true));
            self.endpoint.send_in_lobby(name, &hello);
        }
    }

    // What was heard, and is fresh.

    /// A hello of a node of another formed cluster.
    pub(super) fn on_stranger(&mut self, from: &Name, key: NodeKey) {
        if self.meeting.strangers.meet(from, key, self.now) {
            let other = from.clone();
            self.event(Event::Trouble(Trouble::OtherCluster { other }));
            self.event(Event::StatusChanged);
        }
    }

    /// Anything of a process, perhaps under our name or our key.
    pub(super) fn on_same(&mut self, from: &Name, key: NodeKey, incarnation: Incarnation) {
        if key == self.endpoint.key {
            self.on_twin_lives(from, incarnation);
        } else if *from == self.endpoint.name {
            self.on_namesake();
        }
    }

    fn on_namesake(&mut self) {
        let heard = self.meeting.namesake.replace(self.now);
        if heard.is_none_or(|at| self.now.since(at) >= NAMESAKE_SILENT) {
            let name = self.endpoint.name.clone();
            self.event(Event::Trouble(Trouble::SharedName { name }));
        }
    }

    /// Another process under our key has proved that it lives.
    pub(super) fn on_twin_lives(&mut self, name: &Name, twin: Incarnation) {
        let known = self.meeting.contest.as_ref();
        let known = known.is_some_and(|contest| contest.twin == twin);
        // Before a cluster is formed nobody votes, and the formation tells of shared keys.
        if known || !self.endpoint.has_joined() {
            return;
        }
        let contest = Contest {
            twin,
            name: name.clone(),
            stood: self.has_stood(),
            tell_at: self.now,
            until: Some(self.now + TWIN_SILENT),
        };
        self.meeting.contest = Some(contest);
        let other = name.clone();
        self.event(Event::Trouble(Trouble::Twin { other }));
        self.event(Event::StatusChanged);
        self.tell_twin();
    }

    fn tell_twin(&mut self) {
        if let Some(contest) = &mut self.meeting.contest {
            contest.tell_at = self.now + TWIN_INTERVAL;
            let twin = Body::Twin(Twin {
                stood: contest.stood,
            });
            self.endpoint.send_in_lobby(&contest.name, &twin);
        }
    }

    /// Our twin has told us whether it has stood.
    pub(super) fn on_twin(&mut self, from: &Name, twin: Incarnation, theirs: Twin) {
        self.on_twin_lives(from, twin);
        self.tell_twin();
        let Some(contest) = &mut self.meeting.contest else {
            return;
        };
        match (contest.stood, theirs.stood) {
            // It knows of us, so it is silent, and stops when it hears that we have stood.
            (true, false) => contest.until = None,
            (true, true) | (false, _) => self.stop(StopReason::Twin(from.clone())),
        }
    }

    fn has_stood(&self) -> bool {
        let long = |since: Option<Time>| since.is_some_and(|at| self.now.since(at) >= STANDING);
        long(self.meeting.led_since) && !long(self.meeting.leaderless_since)
    }

    /// Consensus knows another leader, or none any more.
    pub(super) fn on_leader_known(&mut self, known: bool) {
        let (now, meeting) = (self.now, &mut self.meeting);
        if !known {
            meeting.leaderless_since.get_or_insert(now);
            return;
        }
        let gap = meeting.leaderless_since.take();
        if gap.is_some_and(|since| now.since(since) >= STANDING) {
            meeting.led_since = None;
        }
        meeting.led_since.get_or_insert(now);
    }

    // As time passes.

    pub(super) fn meet_on_time(&mut self) {
        if let Some(other) = self.meeting.strangers.expire(self.now) {
            self.event(Event::TroubleEnded(Trouble::OtherCluster { other }));
            self.event(Event::StatusChanged);
        }
        for name in self.meeting.strangers.due(self.now) {
            let hello = Body::Hello(self.lobby.hello(true));
            self.endpoint.send_in_lobby(&name, &hello);
        }
        self.wait_for_twin();
        self.tell_wiped();
    }

    fn wait_for_twin(&mut self) {
        let waiting = |contest: &&Contest| contest.until.is_some();
        let Some(contest) = self.meeting.contest.as_ref().filter(waiting) else {
            return;
        };
        if contest.until.is_some_and(|until| self.now >= until) {
            self.meeting.contest = None;
        } else if self.now >= contest.tell_at {
            self.tell_twin();
        }
    }

    pub(super) fn meeting_deadline(&self) -> Option<Time> {
        let contest = self.meeting.contest.as_ref();
        let twin = contest.and_then(|contest| Some(contest.until?.min(contest.tell_at)));
        [twin, self.meeting.strangers.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    // A wiped voter.

    /// Our name is that of a voter under another key: what we were before we lost our disk.
    fn wiped(&self) -> Option<Trouble> {
        let (raft, formation) = (self.raft.as_ref()?, self.lobby.formation()?);
        let configuration = raft.configuration();
        if configuration.is_voter(self.endpoint.key) {
            return None;
        }
        // Before anything has come in, what was formed is all that is known.
        let voters = match configuration.voters.is_empty() {
            true => &formation.voters,
            false => &configuration.voters,
        };
        let name = self.endpoint.name.clone();
        let mut names = voters.values();
        names
            .any(|voter| voter == name.as_str())
            .then_some(Trouble::Wiped { name })
    }

    fn tell_wiped(&mut self) {
        if !self.meeting.told_wiped
            && let Some(trouble) = self.wiped()
        {
            self.meeting.told_wiped = true;
            self.event(Event::Trouble(trouble));
        }
    }
}
