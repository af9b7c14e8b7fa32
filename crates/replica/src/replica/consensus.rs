//! Forming the cluster, and carrying out what consensus asks for from then on.

use raft::Payload;

use super::*;

impl Replica {
    pub(super) fn form(&mut self, step: Option<Step>) {
        match step {
            None => {}
            Some(Step::Trouble(trouble)) => self.event(Event::Trouble(trouble)),
            Some(Step::Save(_)) if self.saving.is_some() => {}
            Some(Step::Save(holds)) => {
                let record = to_vec(&holds).into();
                self.saving = Some(holds);
                self.effects.push(Effect::SaveFormation(record));
            }
        }
    }

    pub(super) fn on_formation_saved(&mut self) {
        let Some(holds) = self.saving.take() else {
            return;
        };
        let step = self.lobby.saved(holds, self.now);
        self.form(step);
        if let Some(formation) = self.lobby.formation().cloned() {
            // The others may be waiting for our word, if it counts.
            if formation.voters.contains_key(&self.endpoint.key) {
                let hello = self.lobby.hello(true);
                self.endpoint.broadcast_in_lobby(&Body::Hello(hello));
            }
            if self.phase == Phase::Running {
                self.start_consensus(&formation);
            }
        }
    }

    pub(super) fn start_consensus(&mut self, formation: &Formation) {
        let Some(mut durable) = self.durable.take() else {
            return;
        };
        self.endpoint.join(formation);
        let (key, now) = (self.endpoint.key, self.now);
        let voter = formation.voters.contains_key(&key);
        let empty = durable.entries.is_empty() && durable.snapshot.is_none();
        if voter && empty {
            let hard_state = HardState {
                term: Term(1),
                voted_for: None,
            };
            durable = Durable {
                hard_state,
                snapshot: None,
                entries: vec![formation.first_entry()],
            };
            self.effects.push(Effect::Persist(Persist {
                seq: PersistSeq(0),
                hard_state: Some(hard_state),
                snapshot: None,
                entries: durable.entries.clone(),
            }));
        }
        if let Some(snapshot) = &durable.snapshot {
            self.snapshot_bytes = self.store.bounds().log_bytes.max(snapshot.data.len());
            self.restore(&snapshot.clone());
        }
        let seed = self.endpoint.nonces.draw();
        self.raft = Some(Raft::new(key, self.options, seed, durable, now));
        self.begin_membership();
        self.rank_is_stale = true;
        let voters = formation.voters.values().cloned().collect();
        self.event(Event::Joined { voters, voter });
        self.update_rank();
        self.announce_sessions();
        self.announce_round_trip();
    }

    // From then on.

    pub(super) fn on_persisted(&mut self, seq: PersistSeq) {
        if seq > PersistSeq(0) {
            self.consensus(raft::Input::Persisted(seq));
        }
    }

    /// Steps consensus and carries out what it asks for.
    pub(super) fn consensus(&mut self, input: raft::Input) {
        let Some(raft) = &mut self.raft else { return };
        self.ticked = true;
        for effect in raft.step(input, self.now) {
            self.carry_out(effect);
        }
    }

    pub(super) fn carry_out(&mut self, effect: raft::Effect) {
        match effect {
            raft::Effect::Persist(persist) => {
                self.flush_publishes();
                if let Some(saved) = persist.snapshot.as_ref().filter(|_| self.witness) {
                    let meta = saved.snapshot.meta.clone();
                    self.on_snapshot_kept(&meta, saved.snapshot.data.len());
                }
                self.effects.push(Effect::Persist(persist));
            }
            // Whoever shares its key with another process says nothing under it.
            raft::Effect::Broadcast(_) | raft::Effect::Send { .. } if self.is_silent() => {}
            raft::Effect::Broadcast(message) => {
                self.endpoint.broadcast(&Body::Consensus(message, None));
            }
            raft::Effect::Send { to, message } => {
                if let Some(name) = self.name_of(to) {
                    self.endpoint
                        .send(&name, &Body::Consensus(message, Some(to)));
                }
            }
            raft::Effect::Apply(entries) => {
                let configures = |e: &raft::Entry| matches!(e.payload, Payload::Configuration(_));
                self.versions_are_stale |= entries.iter().any(configures);
                entries.iter().for_each(|entry| self.apply(entry));
            }
            raft::Effect::Restore(snapshot) => {
                self.restore(&snapshot);
            }
            raft::Effect::ReadReady { id, .. } => self.answer_read(id),
            raft::Effect::ReadRefused { id, refusal } => self.refuse_read(id, refusal),
            raft::Effect::ProposalRefused {
                client,
                request,
                refusal,
            } => {
                if client == kv::OWN {
                    self.on_record_refused(request);
                    return self.on_own_refused(request);
                }
                let answer = self.refusal(refusal);
                self.answer_write(client, request, answer);
            }
            raft::Effect::ChangeDone { id } => self.on_change_done(id),
            raft::Effect::ChangeRefused { id, refusal } => self.on_change_refused(id, refusal),
            raft::Effect::TransferRefused { to, refusal } => self.on_transfer_refused(to, refusal),
            raft::Effect::StatusChanged => self.on_status_changed(),
            raft::Effect::Rejected { from, reason } => {
                let from = self
                    .name_of(from)
                    .map_or_else(|| from.to_string(), |n| n.to_string());
                self.event(Event::Rejected { from, reason });
            }
        }
    }

    pub(super) fn apply(&mut self, entry: &raft::Entry) {
        self.bytes_since_snapshot += entry.size();
        if self.witness {
            return;
        }
        let applied = self.store.apply(entry);
        self.roll_call.applied_term = entry.term;
        self.count_leases(entry.term, applied.as_ref().map(|applied| &applied.answer));
        if matches!(&entry.payload, Payload::Command(command) if command.client == kv::OWN) {
            self.forget_ended();
        }
        if let Some(applied) = applied {
            self.answer_write(applied.client, applied.request, applied.answer);
        }
    }

    pub(super) fn restore(&mut self, snapshot: &raft::Snapshot) {
        if self.witness {
            return; // The bytes are for others.
        }
        let last = snapshot.meta.last.index;
        match Store::restore(&snapshot.data) {
            Ok(store) if store.applied() != last => {
                let applied = store.applied();
                let mismatch = format!("it is of index {applied} and claims to be of {last}");
                self.stop(StopReason::Snapshot(mismatch));
            }
            Ok(store) => {
                self.store = store.bounded(self.store.bounds());
                self.bytes_since_snapshot = 0;
            }
            Err(error) => self.stop(StopReason::Snapshot(error.to_string())),
        }
    }

    /// Saves the state once the log has outgrown it.
    pub(super) fn compact(&mut self) {
        if self.bytes_since_snapshot < self.snapshot_bytes || self.raft.is_none() {
            return;
        }
        if self.witness {
            return self.consensus(raft::Input::FetchSnapshot);
        }
        let data = self.store.snapshot();
        self.bytes_since_snapshot = 0;
        self.snapshot_bytes = self.store.bounds().log_bytes.max(data.len());
        self.consensus(raft::Input::Compact {
            through: self.store.applied(),
            data,
        });
    }

    /// A witness has a data node's snapshot: what it holds beyond that counts from now on.
    fn on_snapshot_kept(&mut self, meta: &raft::SnapshotMeta, length: usize) {
        self.snapshot_bytes = self.store.bounds().log_bytes.max(length);
        let Some(raft) = &self.raft else { return };
        let beyond = raft.entries(meta.last.index + 1).into_iter();
        let committed = beyond.filter(|entry| entry.index <= raft.commit_index());
        self.bytes_since_snapshot = committed.map(|entry| entry.size()).sum();
    }

    pub(super) fn on_status_changed(&mut self) {
        let leader = self.raft.as_ref().and_then(Raft::leader);
        if leader != self.last_leader {
            self.last_leader = leader;
            self.on_leader_known(leader.is_some());
            self.requests.on_new_leader(self.now);
        }
        if self.role() == Some(Role::Leader) {
            self.begin_leadership();
        } else {
            self.hint = None;
            // Whoever waited here asks the next leader.
            self.waiting.clear();
            self.stop_counting_leases();
        }
        self.on_leader_changed();
        self.versions_are_stale = true;
        self.event(Event::StatusChanged);
    }
}
