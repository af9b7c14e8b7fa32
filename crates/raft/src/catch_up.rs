//! Bringing one node up to date, apart from the broadcast.
//!
//! ```text
//! follower                          leader
//!    │ ◄──── broadcast append (gap) ───│
//!    │ ──── Reject { hint } ──────────►│  opens stream 7 at the hint
//!    │ ◄──── Append { stream 7 } ──────│  one message until the first answer: the place is a guess
//!    │ ──── Acknowledge { stream 7 } ─►│
//!    │ ◄──── Append × window ──────────│  or SnapshotChunk × window where the log begins later
//!    │ ──── Acknowledge ──────────────►│  closes once it holds all that was broadcast
//! ```
//!
//! A stream that gets no answer in time starts again under a new id from what was confirmed;
//! messages of the old one are inert. The number of streams is bounded, and who finds no room asks
//! again. Members ask, and who was removed and does not know it yet: so it learns it. Observers pull
//! what they miss (`fetch.rs`).

use std::collections::{BTreeMap, VecDeque};

use crate::entry::Snapshot;
use crate::id::{Index, LogPosition, NodeKey, Round, StreamId, Time};
use crate::message::{Body, Reject, SnapshotChunk, SnapshotProgress};
use crate::raft::{Raft, State};

/// How many nodes are brought up to date at a time.
const MAX_STREAMS: usize = 32;

/// Restarts without an answer after which a stream is given up: its receiver will ask again.
const MAX_RESTARTS: u32 = 8;

/// All streams of one leadership.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    open: BTreeMap<NodeKey, Stream>,
    last_id: StreamId,
}

#[derive(Debug)]
struct Stream {
    id: StreamId,
    /// When to start again if nothing was heard.
    restart_at: Time,
    restarts: u32,
    sending: Sending,
}

#[derive(Debug)]
enum Sending {
    Entries(Entries),
    Snapshot {
        snapshot: Snapshot,
        /// All bytes before this were confirmed, and by the answer to which round.
        confirmed: u64,
        confirmed_by: Round,
        /// The next byte to send; `None` once all were sent.
        next: Option<u64>,
    },
}

#[derive(Debug)]
struct Entries {
    /// The receiver holds everything up to here, or so its hint says.
    confirmed: Index,
    /// The next entry to send.
    next: Index,
    /// What is under way, by last index.
    in_flight: VecDeque<Index>,
    /// The first message was answered: the window opens.
    placed: bool,
    /// What had been broadcast when the stream had sent all of that: from here on the broadcast
    /// fits again, and the stream closes once the receiver confirms it.
    goal: Option<Index>,
}

impl Entries {
    fn after(confirmed: Index, placed: bool) -> Entries {
        let in_flight = VecDeque::new();
        Entries {
            confirmed,
            next: confirmed + 1,
            in_flight,
            placed,
            goal: None,
        }
    }
}

impl Streams {
    fn next_id(&mut self) -> StreamId {
        self.last_id = self.last_id.next();
        self.last_id
    }

    pub(crate) fn is_open(&self, to: NodeKey) -> bool {
        self.open.contains_key(&to)
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.open.values().map(|stream| stream.restart_at).min()
    }
}

impl Raft {
    pub(crate) fn on_reject(&mut self, from: NodeKey, reject: Reject) {
        self.confirm_round(from, reject.round);
        let State::Leader(leadership) = &mut self.state else {
            return;
        };
        let open = leadership.streams.open.get(&from).map(|stream| stream.id);
        match (open, reject.stream) {
            // The broadcast did not fit, as is to be expected while a stream is open.
            (Some(_), StreamId(0)) => self.stop_backing_off(from),
            (Some(id), stream) if id == stream => self.open_stream(from, reject.hint),
            (None, StreamId(0)) => self.open_stream(from, reject.hint),
            // An older stream's.
            (Some(_) | None, _) => {}
        }
    }

    /// The receiver was not silent for good: what the stream lost is due again at the usual pace.
    fn stop_backing_off(&mut self, to: NodeKey) {
        let restart_at = self.now + self.stream_patience();
        if let State::Leader(leadership) = &mut self.state
            && let Some(stream) = leadership.streams.open.get_mut(&to)
        {
            stream.restart_at = stream.restart_at.min(restart_at);
            stream.restarts = 0;
        }
    }

    /// Opens a stream to `to`, whose log may agree with ours up to `hint`.
    fn open_stream(&mut self, to: NodeKey, hint: LogPosition) {
        let base = self.log.base().index;
        let agreed = self.log.agreeing_position(hint);
        // Nothing we still hold agrees, not even the base: its term is above the hint's.
        let disagrees = hint.index < base || agreed.term > hint.term;
        let restart_at = self.now + self.stream_patience();
        let voters: Vec<NodeKey> = self.configuration().all_voters().collect();
        let sending = match &self.snapshot {
            Some(snapshot) if disagrees => Sending::Snapshot {
                snapshot: snapshot.clone(),
                confirmed: 0,
                confirmed_by: Round(0),
                next: Some(0),
            },
            _ => Sending::Entries(Entries::after(agreed.index, false)),
        };
        let State::Leader(leadership) = &mut self.state else {
            return;
        };
        let streams = &mut leadership.streams;
        if streams.open.len() >= MAX_STREAMS && !streams.open.contains_key(&to) {
            // A learner waits its turn; a voter, whom commits may depend on, takes one's place.
            let learner = streams
                .open
                .keys()
                .find(|key| !voters.contains(key))
                .copied();
            let Some(learner) = learner.filter(|_| voters.contains(&to)) else {
                return;
            };
            streams.open.remove(&learner);
        }
        let id = streams.next_id();
        streams.open.insert(
            to,
            Stream {
                id,
                restart_at,
                restarts: 0,
                sending,
            },
        );
        self.feed_stream(to);
    }

    /// Takes an acknowledgement as the answer of the stream to `from`.
    pub(crate) fn advance_stream(&mut self, from: NodeKey, id: StreamId, match_index: Index) {
        let restart_at = self.now + self.stream_patience();
        let State::Leader(leadership) = &mut self.state else {
            return;
        };
        let Some(stream) = leadership.streams.open.get_mut(&from) else {
            return;
        };
        if match_index >= stream.goal().unwrap_or(leadership.sent) {
            leadership.streams.open.remove(&from);
            return;
        }
        if stream.id != id {
            return;
        }
        stream.answered(restart_at);
        match &mut stream.sending {
            Sending::Entries(entries) => entries.confirm(match_index),
            Sending::Snapshot { snapshot, .. } if match_index >= snapshot.meta.last.index => {
                stream.sending = Sending::Entries(Entries::after(match_index, true));
            }
            Sending::Snapshot { .. } => {}
        }
        self.feed_stream(from);
    }

    pub(crate) fn on_snapshot_progress(&mut self, from: NodeKey, progress: SnapshotProgress) {
        self.confirm_round(from, progress.round);
        let restart_at = self.now + self.stream_patience();
        let State::Leader(leadership) = &mut self.state else {
            return;
        };
        let open = leadership.streams.open.get_mut(&from);
        let Some(stream) = open.filter(|open| open.id == progress.stream) else {
            return;
        };
        if let Sending::Snapshot {
            snapshot,
            confirmed,
            confirmed_by,
            next,
        } = &mut stream.sending
            && progress.offset <= snapshot.data.len() as u64
        {
            let heard_more = progress.round > *confirmed_by;
            let headway = progress.offset > *confirmed;
            // Rounds and offsets grow together, unless the receiver restarted and lost the pieces.
            if heard_more && progress.offset < *confirmed {
                *next = Some(progress.offset);
            }
            if heard_more || headway {
                *confirmed = progress.offset;
                *confirmed_by = (*confirmed_by).max(progress.round);
            }
            if headway {
                stream.answered(restart_at);
            }
        }
        self.feed_stream(from);
    }

    /// Sends what the stream's window has room for.
    fn feed_stream(&mut self, to: NodeKey) {
        while let Some(body) = self.next_stream_message(to) {
            self.send(to, body);
        }
    }

    fn next_stream_message(&mut self, to: NodeKey) -> Option<Body> {
        let State::Leader(leadership) = &self.state else {
            return None;
        };
        let stream = leadership.streams.open.get(&to)?;
        let id = stream.id;
        match &stream.sending {
            Sending::Entries(entries) => {
                let window = if entries.placed {
                    self.options.max_in_flight
                } else {
                    1
                };
                if entries.goal.is_some() || entries.in_flight.len() >= window {
                    return None;
                }
                let (next, sent) = (entries.next, leadership.sent);
                self.next_entries(to, id, next, sent)
            }
            Sending::Snapshot {
                snapshot,
                confirmed,
                next,
                ..
            } => {
                let offset = (*next)?;
                let window = (self.options.max_append_bytes * self.options.max_in_flight) as u64;
                if offset >= confirmed + window {
                    return None;
                }
                let snapshot = snapshot.clone();
                Some(self.next_chunk(to, id, snapshot, offset))
            }
        }
    }

    fn next_entries(
        &mut self,
        to: NodeKey,
        id: StreamId,
        next: Index,
        sent: Index,
    ) -> Option<Body> {
        if next <= self.log.base().index {
            // Compacted while the stream was open: a snapshot has taken the entries' place.
            self.open_stream(to, LogPosition::default());
            return None;
        }
        let batch = self.log.slice(next, sent, self.options.max_append_bytes);
        let through = batch.last().map(|entry| entry.index);
        if let Some(entries) = self.stream_entries(to) {
            match through {
                Some(through) => {
                    entries.next = through + 1;
                    entries.in_flight.push_back(through);
                }
                None => entries.goal = Some(sent),
            }
        }
        through?;
        Some(Body::Append(self.next_append(id, next.previous(), batch)))
    }

    fn stream_entries(&mut self, to: NodeKey) -> Option<&mut Entries> {
        let State::Leader(leadership) = &mut self.state else {
            return None;
        };
        match &mut leadership.streams.open.get_mut(&to)?.sending {
            Sending::Entries(entries) => Some(entries),
            Sending::Snapshot { .. } => None,
        }
    }

    fn next_chunk(&mut self, to: NodeKey, id: StreamId, snapshot: Snapshot, offset: u64) -> Body {
        let length = snapshot.data.len() as u64;
        let end = (offset + self.options.max_append_bytes as u64).min(length);
        let chunk = SnapshotChunk {
            round: self.next_round(),
            stream: id,
            sessions: self.sessions,
            meta: snapshot.meta,
            length,
            offset,
            data: snapshot.data.slice(offset as usize..end as usize),
        };
        if let State::Leader(leadership) = &mut self.state
            && let Some(stream) = leadership.streams.open.get_mut(&to)
            && let Sending::Snapshot { next, .. } = &mut stream.sending
        {
            *next = (end < length).then_some(end);
        }
        Body::SnapshotChunk(Box::new(chunk))
    }

    /// Starts the streams again that got no answer in time.
    pub(crate) fn resume_stalled_streams(&mut self) {
        let now = self.now;
        let State::Leader(leadership) = &self.state else {
            return;
        };
        let streams = leadership.streams.open.iter();
        let stalled: Vec<NodeKey> = streams
            .filter(|(_, stream)| now >= stream.restart_at)
            .map(|(key, _)| *key)
            .collect();
        for to in stalled {
            self.restart_stream(to);
        }
    }

    fn restart_stream(&mut self, to: NodeKey) {
        let (now, patience) = (self.now, self.stream_patience());
        let State::Leader(leadership) = &mut self.state else {
            return;
        };
        let id = leadership.streams.next_id();
        let Some(stream) = leadership.streams.open.get_mut(&to) else {
            return;
        };
        stream.restarts += 1;
        if stream.restarts > MAX_RESTARTS {
            leadership.streams.open.remove(&to);
            return;
        }
        stream.restart_at = now + patience.saturating_mul(1 << stream.restarts);
        match &mut stream.sending {
            // Chunks say where they belong: the same stream goes back to what was confirmed.
            Sending::Snapshot {
                confirmed, next, ..
            } => *next = Some(*confirmed),
            Sending::Entries(entries) => {
                stream.id = id;
                *entries = Entries::after(entries.confirmed, false);
            }
        }
        self.feed_stream(to);
    }
}

impl Stream {
    fn answered(&mut self, restart_at: Time) {
        self.restart_at = restart_at;
        self.restarts = 0;
    }

    fn goal(&self) -> Option<Index> {
        match &self.sending {
            Sending::Entries(entries) => entries.goal,
            Sending::Snapshot { .. } => None,
        }
    }
}

impl Entries {
    fn confirm(&mut self, match_index: Index) {
        self.confirmed = self.confirmed.max(match_index);
        while self
            .in_flight
            .pop_front_if(|through| *through <= match_index)
            .is_some()
        {
            self.placed = true;
        }
    }
}
