//! What can be seen of a node: by its owner at any time, and by everyone in its retained status.

use raft::LeadershipToken;

use super::*;

/// The roles, as a status spells them, of who votes.
pub(super) const SOURCES: [&str; 5] = ["follower", "pre-candidate", "candidate", "leader", WITNESS];

/// The role of a node that was started as a witness, whatever it is to consensus.
pub(super) const WITNESS: &str = "witness";

impl Replica {
    /// The node's name.
    pub fn name(&self) -> &Name {
        &self.endpoint.name
    }

    /// What the node is in consensus; `None` while its cluster is not formed.
    pub fn role(&self) -> Option<Role> {
        self.raft.as_ref().map(Raft::role)
    }

    /// Whether its role is [`Role::Leader`].
    pub(super) fn leads(&self) -> bool {
        self.raft.as_ref().is_some_and(Raft::leads)
    }

    /// Whether the node was started as a witness: it holds the log for others and no state.
    pub fn is_witness(&self) -> bool {
        self.witness
    }

    /// The newest term that the node has taken part in.
    pub fn term(&self) -> Term {
        self.raft.as_ref().map(Raft::term).unwrap_or_default()
    }

    /// Who leads, as far as this node knows.
    pub fn leader(&self) -> Option<Name> {
        let raft = self.raft.as_ref()?;
        self.name_of(raft.leader()?)
    }

    /// The time in which this node is the only leader for certain.
    ///
    /// `None` also while a node of another cluster of our name is there, or another process under
    /// our key.
    pub fn lease(&self) -> Option<Lease> {
        // A node that has stopped hears no more that its session ended (simulator, seed 187).
        let claims = self.phase == Phase::Running && !self.is_barred();
        let raft = self.raft.as_ref().filter(|_| claims);
        raft.and_then(Raft::lease)
    }

    /// The node's metric.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// The leader's metric, as it last said.
    pub fn leader_metric(&self) -> Option<Metric> {
        let leader = self.leader()?;
        if leader == self.endpoint.name {
            return Some(self.metric);
        }
        self.presence.get(&leader).map(|node| node.metric)
    }

    /// The replicated state as it stands here; may be behind the leader's.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Everyone that is there, ourselves among them, by name.
    pub fn active_nodes(&self) -> Vec<ActiveNode> {
        let mut nodes = self.others_there();
        if self.phase == Phase::Running && !self.live.is_empty() {
            let condition = self.condition();
            nodes.push(ActiveNode {
                name: self.endpoint.name.clone(),
                key: self.endpoint.key,
                role: condition.role.to_owned(),
                term: condition.term,
                metric: self.metric,
                tags: self.tags.clone(),
            });
        }
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        nodes
    }

    /// The voters that this node still waits for to form its cluster.
    pub fn missing_voters(&self) -> Vec<Name> {
        match self.lobby.formation() {
            Some(_) => Vec::new(),
            None => self.lobby.missing(),
        }
    }

    /// Consensus, for inspection by tests and the simulator.
    pub fn raft(&self) -> Option<&Raft> {
        self.raft.as_ref()
    }

    /// The process.
    pub fn incarnation(&self) -> Incarnation {
        self.endpoint.incarnation
    }

    #[cfg(test)]
    pub(crate) fn peers(&self) -> &crate::peers::Peers {
        &self.endpoint.peers
    }

    /// How the node is.
    pub fn status(&self) -> NodeStatus {
        let raft = self.raft.as_ref();
        let voters = raft.map(|raft| raft.configuration().voters.values().cloned().collect());
        NodeStatus {
            node: self.endpoint.name.to_string(),
            key: self.endpoint.key,
            role: self.condition().role.to_owned(),
            term: self.term().0,
            leader: self.leader().map(|name| name.to_string()),
            metric: self.metric.value(),
            last_index: raft.map_or(0, |raft| raft.last_index().0),
            commit_index: raft.map_or(0, |raft| raft.commit_index().0),
            applied_index: self.store.applied().0,
            applied_digest: self.store.digest(),
            revision: self.store.revision(),
            voters: voters.unwrap_or_default(),
            is_leader: self.is_leader_at(self.now),
            version: self.version.clone(),
            incarnation: self.endpoint.incarnation.0,
            keys: Some(self.endpoint.ring.ids()).filter(|ids| !ids.is_empty()),
            trouble: self.trouble(),
        }
    }

    /// What an operator has to look at, in words, as long as it lasts.
    fn trouble(&self) -> Option<String> {
        let forming = self.lobby.standing_trouble().map(Trouble::to_string);
        let met = self.meetings().into_iter().map(|met| met.to_string());
        let troubles = forming.into_iter().chain(met).chain(self.lost_brokers());
        let troubles: Vec<String> = troubles.collect();
        (!troubles.is_empty()).then(|| troubles.join("; also, "))
    }

    /// As long as one is left nothing else shows that the others are not there.
    fn lost_brokers(&self) -> Option<String> {
        let reached = self.live.iter().count();
        let all = self.brokers;
        (0 < reached && reached < all)
            .then(|| format!("{reached} of {all} brokers reached: the others are of no help"))
    }

    pub(super) fn is_leader_at(&self, now: Time) -> bool {
        self.lease()
            .is_some_and(|lease| lease.from <= now && now < lease.until)
    }

    // The retained status.

    pub(super) fn condition(&self) -> Condition {
        let role = match self.role() {
            None => "starting",
            Some(_) if self.witness => WITNESS,
            Some(Role::Learner) => "learner",
            Some(Role::Follower) => "follower",
            Some(Role::PreCandidate) => "pre-candidate",
            Some(Role::Candidate) => "candidate",
            Some(Role::Leader) => "leader",
        };
        Condition {
            role,
            term: self.term().0,
            metric: self.metric,
            tags: self.tags.clone(),
        }
    }

    /// The birth of this process's session, as it is now.
    pub(super) fn birth(&self) -> Bytes {
        self.birth_in(self.live.any())
    }

    fn birth_in(&self, session: Session) -> Bytes {
        let Endpoint { ring, .. } = &self.endpoint;
        let speaker = self.endpoint.speaker(session);
        Status::online(ring, speaker, self.statuses, &self.condition())
    }

    pub(super) fn status_is_due(&self) -> bool {
        let running = self.phase == Phase::Running && !self.live.is_empty();
        running && (self.status_wrong || self.unborn() || self.status_is_old())
    }

    /// A session is up whose birth has yet to be published.
    fn unborn(&self) -> bool {
        self.live.iter().any(|session| !self.born.contains(session))
    }

    fn status_is_old(&self) -> bool {
        self.published.as_ref() != Some(&self.condition())
    }

    /// Someone else replaced our status: put it back, less often each time it happens again.
    pub(super) fn put_status_back(&mut self) {
        let quiet = self.now.since(self.status_at) > 2 * MAX_STATUS_GAP;
        self.status_gap = if quiet {
            STATUS_GAP
        } else {
            (2 * self.status_gap).min(MAX_STATUS_GAP)
        };
        self.status_wrong = true;
    }

    pub(super) fn publish_status(&mut self) {
        if !self.status_is_due() || self.now < self.status_at {
            return;
        }
        let gap = if self.status_wrong {
            self.status_gap
        } else {
            STATUS_GAP
        };
        self.status_at = self.now + gap;
        let everywhere = std::mem::take(&mut self.status_wrong) || self.status_is_old();
        if everywhere {
            self.statuses += 1;
            self.published = Some(self.condition());
        }
        let due = |session: &Session| everywhere || !self.born.contains(*session);
        let due: Vec<Session> = self.live.iter().filter(due).collect();
        for session in due {
            self.born.open(session);
            let payload = self.birth_in(session);
            let Endpoint { name, topics, .. } = &self.endpoint;
            let publish = Publish {
                topic: topics.status(name),
                payload,
                retain: true,
            };
            self.effects
                .push(Effect::PublishOver(session.link, publish));
        }
    }

    // The retained hint at who leads.

    /// Tells the node what the wall clock showed at `at`, since the Unix epoch. It rests nothing on
    /// it: MQTT clients are told by it since when a leader leads.
    pub fn set_wall_clock(&mut self, shown: Duration, at: Time) {
        let shown = i128::try_from(shown.as_micros()).unwrap_or(i128::MAX);
        self.wall_clock = Some(shown.saturating_sub(at.0.into()));
    }

    pub(super) fn begin_leadership(&mut self) {
        let term = self.term();
        if self.led_since.0 == term {
            return;
        }
        let micros = self.wall_clock.map(|zero| zero + i128::from(self.now.0));
        let seconds = micros.and_then(|micros| u64::try_from(micros / 1_000_000).ok());
        self.led_since = (term, seconds);
    }

    /// Tells any MQTT client who leads: a hint that no node reads. A changed metric goes with the
    /// status, and so no more often.
    pub(super) fn publish_leader(&mut self) {
        let leads = self.role() == Some(Role::Leader);
        if !leads || self.phase != Phase::Running || self.live.is_empty() {
            return;
        }
        let told = self.published.as_ref().map(|condition| condition.metric);
        let hint = Hint {
            term: self.term(),
            metric: told.unwrap_or(self.metric),
            token: self.lease().map(|lease| lease.epoch.token()),
        };
        if self.hint.as_ref() == Some(&hint) {
            return;
        }
        let json = serde_json::json!({
            "v": 1,
            "leader": self.endpoint.name.as_str(),
            "term": hint.term.0,
            "metric": hint.metric.value(),
            "since": self.led_since.1,
            "token": hint.token.map(|token| token.0),
        });
        self.hint = Some(hint);
        let payload = json.to_string().into_bytes().into();
        let topic = self.endpoint.topics.leader();
        self.effects.push(Effect::Publish(Publish {
            topic,
            payload,
            retain: true,
        }));
    }
}

/// What the retained hint says of a leader.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Hint {
    term: Term,
    metric: Metric,
    token: Option<LeadershipToken>,
}
