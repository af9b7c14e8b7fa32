//! Following: checking what a leader sends, keeping it, and saying so once it is on disk.
//!
//! A broadcast append was not made for this follower, so the follower checks whether it fits. How
//! far its log is known to equal *this term's* leader's is `verified`; it commits up to there
//! and acknowledges what of that is on disk.
//!
//! ```text
//!   ≤ commit_index  ≤ verified  ≤ last index
//!                     └ min(verified, persisted) is what an acknowledgement claims
//! ```

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::effect::{Effect, Rejection};
use crate::entry::{Entry, Payload, Snapshot, SnapshotMeta};
use crate::fetch::{Broadcast, Held};
use crate::id::{Index, LogPosition, NodeKey, Round, StreamId, Term, Time};
use crate::log::Fit;
use crate::message::{
    Acknowledge, Append, Body, Reject, SnapshotChunk, SnapshotPart, SnapshotPiece, SnapshotProgress,
};
use crate::raft::{Raft, State};
use crate::sessions::Sessions;

/// How long a follower that made no headway since its last rejection stays silent.
const REJECT_INTERVAL: Duration = Duration::from_millis(20);

/// No log grows this far: a snapshot from beyond would leave no room for the next entry.
const MAX_SNAPSHOT_INDEX: Index = Index(1 << 62);

/// What a node knows of its term's leader. Forgotten with the term.
#[derive(Debug, Default)]
pub(crate) struct Following {
    /// This term's leader, once heard. A term has no other.
    pub(crate) leader: Option<NodeKey>,
    /// The leader's sessions, as it last announced them.
    pub(crate) sessions: Sessions,
    /// Those of them whose wills have come.
    pub(crate) ended: Sessions,
    /// When the leader was last heard; `None` once it is given up.
    pub(crate) heard_at: Option<Time>,
    /// The log equals this term's leader's up to here; at first no more is known than what is
    /// committed.
    pub(crate) verified: Index,
    /// The newest round heard.
    round: Round,
    /// The newest round that was answered, or will be once the disk is done.
    answered: Round,
    /// The newest catch-up stream seen.
    stream: StreamId,
    /// An acknowledgement waits for the disk.
    acknowledgement_due: bool,
    /// When an append last did not fit, and how far the log was verified then.
    rejected: Option<(Time, Index)>,
    /// The snapshot being received.
    incoming: Option<Incoming>,
    /// Broadcast entries that an observer cannot place before it has fetched what they follow on.
    pub(crate) held: Held,
}

/// The pieces of a snapshot that have arrived, and where they come from.
#[derive(Debug)]
pub(crate) struct Incoming {
    meta: SnapshotMeta,
    from: (NodeKey, StreamId),
    length: u64,
    data: BytesMut,
}

impl Incoming {
    pub(crate) fn part_from(&self, node: NodeKey) -> Option<SnapshotPart> {
        let (last, offset) = (self.meta.last, self.data.len() as u64);
        (self.from.0 == node).then_some(SnapshotPart { last, offset })
    }
}

impl Following {
    /// Nothing is known of a new term's leader's log but that it holds what is committed.
    pub(crate) fn of_new_term(commit_index: Index) -> Following {
        Following {
            verified: commit_index,
            ..Following::default()
        }
    }

    pub(crate) fn live_leader(&self) -> Option<NodeKey> {
        self.leader.filter(|_| self.heard_at.is_some())
    }
}

impl Raft {
    pub(crate) fn on_append(&mut self, from: NodeKey, append: Append) {
        let answered = self.is_answered(&append);
        if !self.follow(from, append.sessions, append.round, append.stream) {
            return;
        }
        if !terms_ascend(append.prev.term, &append.entries, self.term()) {
            return self.reject_peer(from, Rejection::DisorderedEntries);
        }
        if append.entries.iter().any(has_no_voters) {
            return self.reject_peer(from, Rejection::NoVoters);
        }
        let Append {
            stream,
            prev,
            commit_index,
            entries,
            ..
        } = append;
        let through = entries.last().map_or(prev.index, |entry| entry.index);
        let heartbeat = entries.is_empty();
        if !self.configuration().is_member(self.me) && stream == StreamId(0) {
            return self.observe(
                from,
                Broadcast {
                    prev,
                    commit_index,
                    entries,
                },
            );
        }
        match self.try_append(prev, entries) {
            Ok(()) => {
                self.following.verified = self.following.verified.max(through);
                self.commit_to(commit_index.min(self.following.verified));
                if !answered {
                    self.answer(from, stream, through, heartbeat);
                }
            }
            Err(Misfit::Gap) if self.disk_is_full() => self.decline(from, stream),
            Err(Misfit::Gap) => self.reject(from, stream, prev),
            Err(Misfit::NoRoom) => {
                self.following.verified = self.following.verified.max(prev.index);
                self.commit_to(commit_index.min(self.following.verified));
                self.decline(from, stream);
            }
            Err(Misfit::BelowCommit(index)) => {
                self.reject_peer(from, Rejection::ConflictBelowCommit { index });
            }
        }
    }

    /// Whether an append brings nothing but news of a commit, in a round that has its answer or is
    /// older than one that has.
    fn is_answered(&self, append: &Append) -> bool {
        let broadcast = append.stream == StreamId(0) && append.entries.is_empty();
        broadcast && append.round <= self.following.answered
    }

    /// Takes `from` for this term's leader. False if the message is to be ignored: a second
    /// leader's, or an older stream's.
    fn follow(
        &mut self,
        from: NodeKey,
        sessions: Sessions,
        round: Round,
        stream: StreamId,
    ) -> bool {
        let leads_already = matches!(self.state, State::Leader(_));
        if leads_already || self.following.leader.is_some_and(|leader| leader != from) {
            self.reject_peer(from, Rejection::SecondLeader { term: self.term() });
            return false;
        }
        self.become_follower();
        let following = &mut self.following;
        following.leader = Some(from);
        if stream != StreamId(0) && stream < following.stream {
            return false;
        }
        following.stream = following.stream.max(stream);
        // A message that others overtook says nothing about now.
        if round >= following.round {
            following.round = round;
            following.sessions = sessions;
            following.ended = following.ended.that_are_in(&sessions);
            following.heard_at = Some(self.now);
            self.election_succeeded();
        }
        true
    }

    pub(crate) fn try_append(
        &mut self,
        prev: LogPosition,
        mut entries: Vec<Entry>,
    ) -> Result<(), Misfit> {
        match self.log.fit(prev, &entries) {
            Fit::Mismatch => return Err(Misfit::Gap),
            Fit::Known => {}
            Fit::New(first) if !self.disk_takes(&entries[first..]) => return Err(Misfit::NoRoom),
            Fit::New(first) => self.append_entries(entries.split_off(first)),
            // A leader only appends to its log, so what was verified against it never changes.
            Fit::Conflict(index, _) if index <= self.following.verified.max(self.commit_index) => {
                return Err(Misfit::BelowCommit(index));
            }
            Fit::Conflict(_, first) if !self.disk_takes(&entries[first..]) => {
                return Err(Misfit::NoRoom);
            }
            Fit::Conflict(index, first) => {
                self.log.truncate(index);
                self.append_entries(entries.split_off(first));
            }
        }
        Ok(())
    }

    /// Acknowledges an append: a heartbeat at once, whatever the disk is doing; entries once
    /// they are on it.
    fn answer(&mut self, leader: NodeKey, stream: StreamId, through: Index, heartbeat: bool) {
        // What it was just sent may have let this node go.
        if stream == StreamId(0) && !self.configuration().is_member(self.me) {
            return;
        }
        self.following.answered = self.following.round;
        let term_is_durable = self.hard_state_is_durable();
        let persisted = self.log.persisted();
        let waits = !term_is_durable || persisted < self.following.verified;
        self.following.acknowledgement_due |= waits;
        if term_is_durable && (heartbeat || through <= persisted) {
            self.acknowledge(leader);
        }
    }

    /// Answers what was not taken because the disk is behind. The broadcast gets what a heartbeat
    /// gets, but speaks for no stream; a stream's message counts as lost, so that the leader goes
    /// on with it ever more slowly until this node has room and rejects the broadcast.
    fn decline(&mut self, leader: NodeKey, stream: StreamId) {
        if stream != StreamId(0) {
            return;
        }
        let term_is_durable = self.hard_state_is_durable();
        let waits = !term_is_durable || self.log.persisted() < self.following.verified;
        self.following.acknowledgement_due |= waits;
        if term_is_durable {
            self.acknowledge_on(StreamId(0), leader);
        }
    }

    /// The disk has caught up: say so, once for all that waited.
    pub(crate) fn acknowledge_persisted(&mut self) {
        let Some(leader) = self.following.leader else {
            return;
        };
        if !self.following.acknowledgement_due || !self.hard_state_is_durable() {
            return;
        }
        self.following.acknowledgement_due = self.log.persisted() < self.following.verified;
        self.acknowledge(leader);
    }

    fn acknowledge(&mut self, leader: NodeKey) {
        self.acknowledge_on(self.following.stream, leader);
    }

    fn acknowledge_on(&mut self, stream: StreamId, leader: NodeKey) {
        let Following {
            round, verified, ..
        } = self.following;
        let match_index = verified.min(self.log.persisted());
        self.send(
            leader,
            Body::Acknowledge(Acknowledge {
                round,
                stream,
                match_index,
                clock: self.now,
            }),
        );
    }

    /// Says that `prev` is not here: once, until something was gained or time has passed.
    fn reject(&mut self, from: NodeKey, stream: StreamId, prev: LogPosition) {
        let verified = self.following.verified;
        let lately = self
            .following
            .rejected
            .is_some_and(|(at, then)| then == verified && self.now.since(at) < REJECT_INTERVAL);
        if stream == StreamId(0) && lately {
            return;
        }
        self.following.rejected = Some((self.now, verified));
        let hint = self.log.agreeing_position(prev);
        let reject = Reject {
            round: self.following.round,
            stream,
            hint,
        };
        self.send_when_durable(from, Body::Reject(reject));
    }

    /// Tells a leader of an older term that it is one.
    pub(crate) fn reject_older_leader(&mut self, from: NodeKey) {
        let reject = Reject {
            round: Round(0),
            stream: StreamId(0),
            hint: self.log.last(),
        };
        self.send_when_durable(from, Body::Reject(reject));
    }

    // Snapshots.

    pub(crate) fn on_snapshot_chunk(&mut self, from: NodeKey, chunk: SnapshotChunk) {
        if !self.follow(from, chunk.sessions, chunk.round, chunk.stream) {
            return;
        }
        if chunk.meta.last.index <= self.commit_index {
            // All of it is here. What is committed equals every later leader's log.
            let verified = self.following.verified.max(self.commit_index);
            self.following.verified = verified;
            return self.acknowledge_or_wait(from);
        }
        if let Err(reason) = self.check_snapshot(&chunk.meta) {
            return self.reject_peer(from, reason);
        }
        if !self.disk_takes_snapshot() {
            return;
        }
        let stream = chunk.stream;
        let SnapshotChunk {
            meta,
            length,
            offset,
            data,
            ..
        } = chunk;
        let piece = SnapshotPiece {
            meta,
            length,
            offset,
            data,
            ends: true,
        };
        let mut incoming = self.following.incoming.take();
        let received = self.receive(&mut incoming, (from, stream), piece);
        self.following.incoming = incoming;
        match received {
            Ok(Received::Partly(offset)) => {
                let round = self.following.round;
                let progress = SnapshotProgress {
                    round,
                    stream,
                    offset,
                };
                self.send_when_durable(from, Body::SnapshotProgress(progress));
            }
            Ok(Received::Whole(snapshot)) => {
                self.install(snapshot);
                self.acknowledge_or_wait(from);
            }
            Err(reason) => self.reject_peer(from, reason),
        }
    }

    /// Whether a leader of this term can have made a snapshot of this position.
    pub(crate) fn check_snapshot(&self, meta: &SnapshotMeta) -> Result<(), Rejection> {
        let LogPosition { index, term } = meta.last;
        if term > self.term() || index > MAX_SNAPSHOT_INDEX {
            return Err(Rejection::BadSnapshot);
        }
        if index <= self.following.verified && self.log.term_at(index) != Some(term) {
            return Err(Rejection::ConflictBelowCommit { index });
        }
        if meta.configuration.voters.is_empty() {
            return Err(Rejection::NoVoters);
        }
        Ok(())
    }

    /// Adds a piece to the snapshot being received.
    pub(crate) fn receive(
        &self,
        receiving: &mut Option<Incoming>,
        from: (NodeKey, StreamId),
        piece: SnapshotPiece,
    ) -> Result<Received, Rejection> {
        let limit = self.options.max_snapshot_bytes;
        let end = piece.offset.checked_add(piece.data.len() as u64);
        if piece.length > limit || end.is_none_or(|end| end > piece.length) {
            return Err(Rejection::BadSnapshot);
        }
        let incoming = match receiving.take() {
            Some(incoming) if incoming.from == from => incoming,
            _ => Incoming {
                meta: piece.meta.clone(),
                from,
                length: piece.length,
                data: BytesMut::new(),
            },
        };
        if (&incoming.meta, incoming.length) != (&piece.meta, piece.length) {
            return Err(Rejection::BadSnapshot);
        }
        let incoming = receiving.insert(incoming);
        // Pieces before the offset are here already, those beyond it will come again.
        if piece.offset == incoming.data.len() as u64 {
            incoming.data.extend_from_slice(&piece.data);
        }
        if (incoming.data.len() as u64) < incoming.length {
            return Ok(Received::Partly(incoming.data.len() as u64));
        }
        let incoming = receiving.take().expect("just inserted");
        let data: Bytes = incoming.data.freeze();
        Ok(Received::Whole(Snapshot {
            meta: incoming.meta,
            data,
        }))
    }

    /// Puts a snapshot in place of all up to its end, which this node does not hold yet.
    pub(crate) fn install(&mut self, snapshot: Snapshot) {
        let last = snapshot.meta.last.index;
        let discard_log = self.log.install(&snapshot.meta);
        self.save_snapshot(snapshot.clone(), discard_log);
        self.commit_index = last;
        self.following.verified = self.following.verified.max(last);
        self.emit(Effect::Restore(snapshot));
    }

    fn acknowledge_or_wait(&mut self, leader: NodeKey) {
        let durable = self.log.persisted() >= self.following.verified;
        if durable && self.hard_state_is_durable() {
            self.acknowledge(leader);
        } else {
            self.following.acknowledgement_due = true;
        }
    }
}

pub(crate) enum Misfit {
    Gap,
    NoRoom,
    BelowCommit(Index),
}

pub(crate) enum Received {
    Partly(u64),
    Whole(Snapshot),
}

pub(crate) fn has_no_voters(entry: &Entry) -> bool {
    matches!(&entry.payload, Payload::Configuration(configuration) if configuration.voters.is_empty())
}

pub(crate) fn terms_ascend(prev: Term, entries: &[Entry], limit: Term) -> bool {
    let terms = std::iter::once(prev).chain(entries.iter().map(|entry| entry.term));
    terms.clone().zip(terms.skip(1)).all(|(a, b)| a <= b)
        && entries.last().is_none_or(|entry| entry.term <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::Configuration;
    use crate::effect::{Durable, Input};
    use crate::fixture::{configuration, formed};
    use crate::id::PersistSeq;
    use crate::id::SessionId;
    use crate::message::Message;
    use crate::raft::Options;

    const ME: NodeKey = NodeKey(1);
    const LIAR: NodeKey = NodeKey(2);

    fn at(index: u64, term: u64) -> LogPosition {
        let (index, term) = (Index(index), Term(term));
        LogPosition { index, term }
    }

    /// A voter that holds the formation record and nothing else.
    fn voter() -> Raft {
        Raft::new(ME, Options::default(), 7, formed(3), Time(0))
    }

    /// What `body`, said by the liar in `term`, is rejected for.
    fn say(raft: &mut Raft, term: u64, body: Body) -> Option<Rejection> {
        let message = Message {
            term: Term(term),
            body,
        };
        let from = LIAR;
        let effects = raft.step(Input::Message { from, message }, Time(1));
        effects.into_iter().find_map(|effect| match effect {
            Effect::Rejected { reason, .. } => Some(reason),
            _ => None,
        })
    }

    /// Entries of the given terms after `prev`, all of them claimed to be committed.
    fn append(prev: LogPosition, terms: &[u64]) -> Body {
        let entry = |(term, n): (&u64, u64)| Entry {
            index: prev.index + n,
            term: Term(*term),
            payload: Payload::Noop,
        };
        Body::Append(Append {
            round: Round(1),
            sessions: Sessions::of(SessionId(1)),
            stream: StreamId(0),
            prev,
            commit_index: Index(u64::MAX),
            entries: terms.iter().zip(1..).map(entry).collect(),
        })
    }

    fn snapshot(last: LogPosition, configuration: Configuration) -> Body {
        Body::SnapshotChunk(Box::new(SnapshotChunk {
            round: Round(1),
            stream: StreamId(1),
            sessions: Sessions::of(SessionId(1)),
            meta: SnapshotMeta {
                last,
                configuration,
                epoch: crate::id::LeaseEpoch::default(),
            },
            length: 1,
            offset: 0,
            data: Bytes::from_static(b"x"),
        }))
    }

    /// A leader that takes back what it sent would leave `verified` beyond the log's end, and
    /// the next commit with it.
    #[test]
    fn a_leader_that_contradicts_itself_is_rejected() {
        let conflict = |index| {
            Some(Rejection::ConflictBelowCommit {
                index: Index(index),
            })
        };
        let mut raft = voter();
        let mut waiting = append(at(1, 1), &[2, 2, 2]);
        if let Body::Append(append) = &mut waiting {
            append.commit_index = Index(1);
        }
        assert_eq!(say(&mut raft, 3, waiting), None);
        assert_eq!(
            say(&mut raft, 3, append(at(2, 2), &[3])),
            conflict(3),
            "an append"
        );
        let other = snapshot(at(3, 3), configuration(3));
        assert_eq!(say(&mut raft, 3, other), conflict(3), "a snapshot");
        assert_eq!(raft.last_index(), Index(4));
        assert_eq!(
            say(&mut raft, 3, append(at(4, 2), &[3])),
            None,
            "life goes on"
        );
    }

    /// Entries that reach from before a snapshot to beyond it must agree with it.
    #[test]
    fn entries_do_not_slip_past_a_snapshot() {
        let mut raft = voter();
        let honest = snapshot(at(10, 3), configuration(3));
        assert_eq!(say(&mut raft, 3, honest), None);
        assert_eq!(
            say(&mut raft, 3, append(at(8, 2), &[2, 2, 2])),
            Some(Rejection::ConflictBelowCommit { index: Index(10) })
        );
        assert_eq!(say(&mut raft, 3, append(at(10, 3), &[3])), None);
    }

    #[test]
    fn no_lie_of_one_message_is_obeyed() {
        let nobody = Configuration::default();
        let mut unruled = append(at(1, 1), &[2]);
        if let Body::Append(append) = &mut unruled {
            append.entries[0].payload = Payload::Configuration(nobody.clone());
        }
        let far = 1 + (1 << 32) + 1;
        let too_far = |term| Some(Rejection::TermTooFar { term: Term(term) });
        let cases = [
            (
                "terms that descend",
                2,
                append(at(1, 1), &[2, 1]),
                Some(Rejection::DisorderedEntries),
            ),
            (
                "terms beyond the message's",
                2,
                append(at(1, 1), &[3]),
                Some(Rejection::DisorderedEntries),
            ),
            (
                "an entry in which nobody votes",
                2,
                unruled,
                Some(Rejection::NoVoters),
            ),
            (
                "a snapshot in which nobody votes",
                2,
                snapshot(at(9, 2), nobody),
                Some(Rejection::NoVoters),
            ),
            (
                "a snapshot of a later term",
                2,
                snapshot(at(9, 3), configuration(3)),
                Some(Rejection::BadSnapshot),
            ),
            (
                "a snapshot at the end of all indexes",
                2,
                snapshot(at(u64::MAX, 2), configuration(3)),
                Some(Rejection::BadSnapshot),
            ),
            ("a term too far", far, append(at(1, 1), &[]), too_far(far)),
            (
                "the last term",
                u64::MAX,
                append(at(1, 1), &[]),
                too_far(u64::MAX),
            ),
        ];
        for (lie, term, body, expected) in cases {
            let mut raft = voter();
            assert_eq!(say(&mut raft, term, body), expected, "{lie}");
            assert_eq!(
                (raft.last_index(), raft.commit_index().0),
                (Index(1), 0),
                "{lie}"
            );
        }
    }
    /// How often `step` makes the node say something of this kind.
    fn count(effects: &[Effect], kind: impl Fn(&Body) -> bool) -> usize {
        let sent = effects.iter().filter_map(|effect| match effect {
            Effect::Send { message, .. } => Some(&message.body),
            _ => None,
        });
        sent.filter(|body| kind(body)).count()
    }

    fn acknowledgements(effects: &[Effect]) -> usize {
        count(effects, |body| matches!(body, Body::Acknowledge(_)))
    }

    fn rejections(effects: &[Effect]) -> usize {
        count(effects, |body| matches!(body, Body::Reject(_)))
    }

    fn hear(raft: &mut Raft, term: u64, body: Body, now: Time) -> Vec<Effect> {
        let message = Message {
            term: Term(term),
            body,
        };
        let from = LIAR;
        raft.step(Input::Message { from, message }, now)
    }

    fn persisted(raft: &mut Raft, seq: u64) -> Vec<Effect> {
        raft.step(Input::Persisted(PersistSeq(seq)), raft.now)
    }

    /// A round of the broadcast.
    fn round(number: u64, prev: LogPosition, terms: &[u64]) -> Body {
        let mut body = append(prev, terms);
        if let Body::Append(append) = &mut body {
            append.round = Round(number);
        }
        body
    }

    /// What was said once is not said again because something else reached the disk.
    #[test]
    fn each_append_is_acknowledged_once() {
        let mut raft = voter();
        let effects = hear(&mut raft, 2, round(1, at(1, 1), &[2]), Time(1));
        assert_eq!(
            acknowledgements(&effects),
            0,
            "the disk has neither term nor entry"
        );
        assert_eq!(acknowledgements(&persisted(&mut raft, 1)), 1);
        let effects = hear(&mut raft, 2, round(2, at(2, 2), &[]), Time(2));
        assert_eq!(acknowledgements(&effects), 1, "a heartbeat, at once");
        let (through, data) = (Index(2), Bytes::from_static(b"state"));
        raft.step(Input::Compact { through, data }, raft.now);
        assert_eq!(persisted(&mut raft, 2), [], "a snapshot of our own");
        let effects = hear(&mut raft, 2, round(3, at(2, 2), &[2]), Time(3));
        assert_eq!(acknowledgements(&effects), 0);
        let effects = hear(&mut raft, 2, round(4, at(3, 2), &[2]), Time(3));
        assert_eq!(acknowledgements(&effects), 0);
        let effects = hear(&mut raft, 2, round(5, at(4, 2), &[]), Time(3));
        assert_eq!(
            acknowledgements(&effects),
            1,
            "it follows, whatever the disk does"
        );
        assert_eq!(
            acknowledgements(&persisted(&mut raft, 3)),
            1,
            "the first of two"
        );
        assert_eq!(acknowledgements(&persisted(&mut raft, 4)), 1, "the second");
        let (through, data) = (Index(4), Bytes::from_static(b"state"));
        raft.step(Input::Compact { through, data }, raft.now);
        assert_eq!(persisted(&mut raft, 5), []);
    }

    /// A round that comes again with nothing but a commit is obeyed and not answered; one that was
    /// not heard, or not by a member, is.
    #[test]
    fn a_round_is_answered_once() {
        let mut raft = voter();
        let commit = |number, commit| {
            let mut body = round(number, at(2, 1), &[]);
            if let Body::Append(append) = &mut body {
                append.commit_index = Index(commit);
            }
            body
        };
        hear(&mut raft, 1, round(7, at(1, 1), &[1]), Time(1));
        let effects = hear(&mut raft, 1, commit(7, 2), Time(2));
        assert_eq!(acknowledgements(&effects), 0, "the disk is not done");
        assert_eq!(acknowledgements(&persisted(&mut raft, 1)), 1);
        let effects = hear(&mut raft, 1, commit(7, 2), Time(3));
        assert_eq!(acknowledgements(&effects), 0);
        assert_eq!(raft.commit_index(), Index(2));
        assert_eq!(raft.following.heard_at, Some(Time(3)), "its leader lives");
        let effects = hear(&mut raft, 1, commit(8, 2), Time(4));
        assert_eq!(acknowledgements(&effects), 1, "that one it had not heard");
        raft.following.answered = Round(6);
        let effects = hear(&mut raft, 1, commit(8, 2), Time(5));
        assert_eq!(acknowledgements(&effects), 1, "heard, and not answered");
    }

    /// One rejection in 20 ms is enough, unless the log was verified further meanwhile.
    #[test]
    fn rejections_are_rare() {
        let mut raft = voter();
        let gap = || append(at(9, 1), &[1]);
        let last = |raft: &mut Raft, now| rejections(&hear(raft, 1, gap(), Time(now)));
        assert_eq!(last(&mut raft, 1_000), 1);
        assert_eq!(last(&mut raft, 1_001), 0);
        assert_eq!(last(&mut raft, 20_999), 0);
        assert_eq!(last(&mut raft, 21_000), 1, "20 ms later");
        assert_eq!(last(&mut raft, 21_001), 0);
        hear(&mut raft, 1, append(at(1, 1), &[1]), Time(21_002));
        assert_eq!(last(&mut raft, 21_003), 1, "there was headway");
        let mut streamed = gap();
        if let Body::Append(append) = &mut streamed {
            append.stream = StreamId(1);
        }
        let effects = hear(&mut raft, 1, streamed, Time(21_004));
        assert_eq!(rejections(&effects), 1, "a stream always gets its answer");
    }

    /// A log whose disk is behind keeps what it has, even a tail that the new leader contradicts;
    /// once the disk has taken it, the entries are taken too.
    #[test]
    fn a_full_disk_leaves_the_log_as_it_is() {
        let mut raft = voter();
        raft.options.max_unpersisted_bytes = 64;
        let mut old = append(at(1, 1), &[1, 1, 1]);
        if let Body::Append(append) = &mut old {
            append.commit_index = Index(0);
        }
        hear(&mut raft, 1, old, Time(1));
        let claim = || append(at(2, 1), &[2]);
        let effects = hear(&mut raft, 2, claim(), Time(2));
        assert_eq!(acknowledgements(&effects), 0, "the disk has no term 2");
        assert_eq!(
            (raft.log.last(), raft.commit_index()),
            (at(4, 1), Index(2)),
            "what it has of the leader's is committed, and nothing is taken"
        );
        assert_eq!(acknowledgements(&persisted(&mut raft, 1)), 0);
        assert_eq!(acknowledgements(&persisted(&mut raft, 2)), 1, "term 2 is");
        hear(&mut raft, 2, claim(), Time(3));
        assert_eq!(raft.log.last(), at(3, 2));
    }

    /// Whoever only observes says nothing while its disk is behind: it asks when it has room.
    #[test]
    fn an_observer_with_a_full_disk_is_silent() {
        let mut raft = Raft::new(ME, Options::default(), 7, Durable::default(), Time(0));
        raft.options.max_unpersisted_bytes = 64;
        hear(&mut raft, 1, append(at(0, 0), &[1, 1]), Time(1));
        assert_eq!(hear(&mut raft, 1, append(at(2, 1), &[1]), Time(2)), []);
        assert_eq!(hear(&mut raft, 1, append(at(3, 1), &[]), Time(3)), []);
        let asks = |effects: &[Effect]| {
            let asks = |effect: &&Effect| match effect {
                Effect::Send { message, .. } => matches!(message.body, Body::Fetch(_)),
                _ => false,
            };
            effects.iter().filter(asks).count()
        };
        raft.step(Input::Sessions(Sessions::of(SessionId(1))), Time(4));
        raft.step(Input::Sources(vec![NodeKey(7)]), Time(4));
        let later = Time(100_000);
        assert_eq!(asks(&raft.step(Input::Tick, later)), 0);
        assert_eq!(asks(&raft.step(Input::Persisted(PersistSeq(1)), later)), 1);
    }

    /// Of leaders' snapshots one at a time waits for the disk; pieces of the next count as lost.
    #[test]
    fn one_snapshot_waits_for_the_disk() {
        let mut raft = voter();
        hear(&mut raft, 1, chunk(1, at(8, 1), 0, 5), Time(1));
        let newer = || chunk(2, at(9, 1), 0, 5);
        assert_eq!(hear(&mut raft, 1, newer(), Time(2)), []);
        assert_eq!(raft.commit_index(), Index(8));
        persisted(&mut raft, 1);
        hear(&mut raft, 1, newer(), Time(3));
        assert_eq!(raft.commit_index(), Index(9));
    }

    /// Chunk `offset` of a snapshot of `length` bytes, five at a time.
    fn chunk(stream: u64, last: LogPosition, offset: u64, length: u64) -> Body {
        Body::SnapshotChunk(Box::new(SnapshotChunk {
            round: Round(1),
            stream: StreamId(stream),
            sessions: Sessions::of(SessionId(1)),
            meta: SnapshotMeta {
                last,
                configuration: configuration(3),
                epoch: crate::id::LeaseEpoch::default(),
            },
            length,
            offset,
            data: Bytes::from_static(b"01234"),
        }))
    }

    /// A leader that starts over with a newer snapshot, on a newer stream, is no liar.
    #[test]
    fn a_newer_stream_brings_a_newer_snapshot() {
        let mut raft = voter();
        assert_eq!(say(&mut raft, 1, chunk(1, at(8, 1), 0, 10)), None);
        assert_eq!(say(&mut raft, 1, chunk(2, at(9, 1), 0, 10)), None);
        assert_eq!(say(&mut raft, 1, chunk(2, at(9, 1), 5, 10)), None);
        assert_eq!(raft.commit_index(), Index(9));
        let bytes = raft.snapshot.as_ref().map(|snapshot| snapshot.data.clone());
        assert_eq!(bytes, Some(Bytes::from_static(b"0123401234")));
    }

    /// The bounds of a snapshot, each met and each passed by one.
    #[test]
    fn snapshots_have_bounds() {
        let end = MAX_SNAPSHOT_INDEX.0;
        let bad = Some(Rejection::BadSnapshot);
        let cases = [
            ("the largest", at(9, 1), 0, 20, None),
            ("one byte more", at(9, 1), 0, 21, bad),
            ("the last chunk", at(9, 1), 5, 10, None),
            ("a chunk beyond the end", at(9, 1), 6, 10, bad),
            ("a chunk beyond all numbers", at(9, 1), u64::MAX, 10, bad),
            ("the last index", at(end, 1), 0, 10, None),
            ("the index after it", at(end + 1, 1), 0, 10, bad),
        ];
        for (name, last, offset, length, expected) in cases {
            let mut raft = voter();
            raft.options.max_snapshot_bytes = 20;
            let said = say(&mut raft, 1, chunk(1, last, offset, length));
            assert_eq!(said, expected, "{name}");
        }
    }

    /// The chunks of one stream must tell of one snapshot.
    #[test]
    fn chunks_that_contradict_each_other() {
        for other in [chunk(1, at(9, 1), 5, 11), chunk(1, at(8, 1), 5, 10)] {
            let mut raft = voter();
            assert_eq!(say(&mut raft, 1, chunk(1, at(9, 1), 0, 10)), None);
            assert_eq!(say(&mut raft, 1, other), Some(Rejection::BadSnapshot));
        }
    }
    /// A new term's leader holds what is committed, so that much is verified before it says so.
    #[test]
    fn what_is_committed_is_verified_in_every_term() {
        let mut raft = voter();
        hear(&mut raft, 2, append(at(1, 1), &[2, 2, 2]), Time(1));
        persisted(&mut raft, 1);
        assert_eq!(raft.commit_index(), Index(4));
        let effects = hear(&mut raft, 3, append(at(2, 2), &[]), Time(2));
        assert_eq!(acknowledgements(&effects), 0, "the term is not on disk");
        let effects = persisted(&mut raft, 2);
        let told = count(
            &effects,
            |body| matches!(body, Body::Acknowledge(said) if said.match_index == Index(4)),
        );
        assert_eq!(told, 1, "{effects:?}");
    }

    /// A term has one leader: whoever claims it too is not followed.
    #[test]
    fn a_term_has_no_second_leader() {
        let mut raft = voter();
        hear(&mut raft, 2, append(at(1, 1), &[]), Time(1));
        let message = Message {
            term: Term(2),
            body: append(at(1, 1), &[2]),
        };
        let from = NodeKey(3);
        let effects = raft.step(Input::Message { from, message }, Time(2));
        let reason = Rejection::SecondLeader { term: Term(2) };
        assert!(effects.contains(&Effect::Rejected { from, reason }));
        assert_eq!((raft.leader(), raft.last_index()), (Some(LIAR), Index(1)));
    }
}
