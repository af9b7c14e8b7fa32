//! Catch-up streams against a dumb receiver: a list of terms that appends what fits and says what
//! it has, over a network that loses, doubles and delays in both directions. What the leader may
//! have under way is recounted from every message ever sent and answered.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use raft::message::{
    Acknowledge, Append, Body, PreVote, Reject, SnapshotChunk, SnapshotProgress, Vote,
};
use raft::{
    ClientId, Command, Configuration, Durable, Effect, Entry, HardState, Index, Input, LogPosition,
    Message, NodeKey, Options, Payload, Raft, RequestNumber, Role, Round, SessionId, Sessions,
    Settings, StreamId, Term, Time,
};

const LEADER: NodeKey = NodeKey(1);
/// A voter that answers everything at once, so that the leader leads and commits.
const FAITHFUL: NodeKey = NodeKey(2);

/// More than any receiver here needs to be brought up to date on a good network.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
enum Act {
    /// The oldest message to the receiver arrives, or is lost.
    Down {
        arrives: bool,
    },
    /// One of the receiver's answers arrives, the oldest or a later one; it may come again.
    Up {
        nth: usize,
        arrives: bool,
        again: bool,
    },
    Propose {
        count: usize,
    },
    Compact {
        keep: u64,
    },
    Wait {
        ms: u64,
    },
    /// Time passes until the leader wants to be woken.
    Tick,
    /// The receiver's process starts again: pieces of a snapshot are gone.
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    let up = (
        0..3_usize,
        prop::bool::weighted(0.9),
        prop::bool::weighted(0.1),
    );
    prop_oneof![
        8 => prop::bool::weighted(0.85).prop_map(|arrives| Act::Down { arrives }),
        8 => up.prop_map(|(nth, arrives, again)| Act::Up { nth, arrives, again }),
        2 => (1..4_usize).prop_map(|count| Act::Propose { count }),
        1 => (0..4_u64).prop_map(|keep| Act::Compact { keep }),
        2 => (0..30_u64).prop_map(|ms| Act::Wait { ms }),
        3 => Just(Act::Tick),
        1 => Just(Act::Restart),
    ]
}

/// The receiver: the terms of its entries from index 1, and the pieces of a snapshot.
#[derive(Default)]
struct Receiver {
    terms: Vec<Term>,
    round: Round,
    stream: StreamId,
    pieces: Vec<u8>,
    pieces_of: StreamId,
}

impl Receiver {
    fn position(&self, index: u64) -> Option<LogPosition> {
        let term = match index {
            0 => Term(0),
            index => *self.terms.get(index as usize - 1)?,
        };
        let index = Index(index);
        Some(LogPosition { index, term })
    }

    fn hear(&mut self, body: &Body) -> Option<Body> {
        match body {
            Body::Append(append) => self.hear_append(append),
            Body::SnapshotChunk(chunk) => self.hear_chunk(chunk),
            _ => panic!("a leader says no such thing: {body:?}"),
        }
    }

    /// False for what an older stream said.
    fn follow(&mut self, round: Round, stream: StreamId) -> bool {
        if stream != StreamId(0) && stream < self.stream {
            return false;
        }
        self.stream = self.stream.max(stream);
        self.round = self.round.max(round);
        true
    }

    fn hear_append(&mut self, append: &Append) -> Option<Body> {
        if !self.follow(append.round, append.stream) {
            return None;
        }
        let prev = append.prev;
        if self.position(prev.index.0) != Some(prev) {
            let places = (0..=prev.index.0.min(self.terms.len() as u64)).rev();
            let hint = places
                .filter_map(|index| self.position(index))
                .find(|place| place.term <= prev.term)
                .expect("the beginning fits everything");
            let (round, stream) = (self.round, append.stream);
            return Some(Body::Reject(Reject {
                round,
                stream,
                hint,
            }));
        }
        for entry in &append.entries {
            let at = entry.index.0 as usize - 1;
            if self.terms.get(at) != Some(&entry.term) {
                self.terms.truncate(at);
                self.terms.push(entry.term);
            }
        }
        let end = append.entries.last().map_or(prev.index, |e| e.index);
        Some(self.acknowledge(end))
    }

    fn acknowledge(&self, match_index: Index) -> Body {
        Body::Acknowledge(Acknowledge {
            round: self.round,
            stream: self.stream,
            match_index,
            clock: Time(0),
        })
    }

    fn hear_chunk(&mut self, chunk: &SnapshotChunk) -> Option<Body> {
        if !self.follow(chunk.round, chunk.stream) {
            return None;
        }
        let last = chunk.meta.last;
        if self.position(last.index.0) == Some(last) {
            return Some(self.acknowledge(last.index));
        }
        if self.pieces_of != chunk.stream {
            self.pieces_of = chunk.stream;
            self.pieces.clear();
        }
        if chunk.offset == self.pieces.len() as u64 {
            self.pieces.extend_from_slice(&chunk.data);
        }
        if self.pieces.len() as u64 == chunk.length {
            // The state tells every term up to its end, one byte each: then the bulk.
            let terms = self.pieces.iter().map(|byte| Term(u64::from(*byte)));
            self.terms = terms.take(last.index.0 as usize).collect();
            self.pieces.clear();
            return Some(self.acknowledge(last.index));
        }
        Some(Body::SnapshotProgress(SnapshotProgress {
            round: self.round,
            stream: chunk.stream,
            offset: self.pieces.len() as u64,
        }))
    }
}

/// What the leader said to the receiver on streams, and what it heard back, all of it.
#[derive(Default)]
struct Ledger {
    appends: Vec<Append>,
    chunks: Vec<SnapshotChunk>,
    newest: StreamId,
    /// And after how many appends each came.
    answers: Vec<(usize, Body)>,
    /// Streams that had sent all there was.
    done: BTreeSet<StreamId>,
}

impl Ledger {
    fn answer(&mut self, body: Body) {
        self.answers.push((self.appends.len(), body));
    }

    /// Whether the stream's answers since its `nth` append confirm `match_index`.
    fn is_confirmed(&self, stream: StreamId, nth: usize, match_index: Index) -> bool {
        self.answers
            .iter()
            .any(|(after, answer)| *after > nth && confirms(answer, stream, match_index))
    }

    fn is_told(&self, stream: StreamId, match_index: Index) -> bool {
        let mut answers = self.answers.iter();
        answers.any(|(_, answer)| confirms(answer, stream, match_index))
    }

    /// Where the stream's appends end, each with its number among all appends.
    fn ends(&self, stream: StreamId) -> impl Iterator<Item = (usize, Index)> {
        let of_it = self.appends.iter().enumerate();
        of_it
            .filter(move |(_, a)| a.stream == stream)
            .map(|(n, a)| {
                let last = a.entries.last().expect("streams carry entries");
                (n, last.index)
            })
    }

    fn unanswered(&self, stream: StreamId) -> usize {
        self.ends(stream)
            .filter(|(n, end)| !self.is_confirmed(stream, *n, *end))
            .count()
    }

    /// One message until the first is confirmed: its place is a guess.
    fn window(&self, stream: StreamId, options: &Options) -> usize {
        let mut ends = self.ends(stream);
        let placed = ends.any(|(n, end)| self.is_confirmed(stream, n, end));
        // A snapshot that arrived is a place too.
        let installed = self
            .chunks
            .iter()
            .any(|chunk| chunk.stream == stream && self.is_told(stream, chunk.meta.last.index));
        if placed || installed {
            options.max_in_flight
        } else {
            1
        }
    }

    /// The greatest offset of the stream's snapshot that the receiver has told of.
    fn offset(&self, stream: StreamId) -> u64 {
        let offsets = self.answers.iter().filter_map(|(_, answer)| match answer {
            Body::SnapshotProgress(said) if said.stream == stream => Some(said.offset),
            _ => None,
        });
        offsets.max().unwrap_or_default()
    }
}

fn confirms(answer: &Body, stream: StreamId, match_index: Index) -> bool {
    matches!(answer, Body::Acknowledge(said)
        if said.stream == stream && said.match_index >= match_index)
}

struct Pair {
    raft: Raft,
    now: Time,
    to: NodeKey,
    receiver: Receiver,
    ledger: Ledger,
    /// Under way, in the order of their sending.
    down: Vec<Body>,
    up: Vec<Body>,
    /// The last stretch of the leader's log that was broadcast.
    broadcast_end: Index,
    snapshot: Option<(LogPosition, Bytes)>,
    applied: Index,
    proposed: u64,
    /// Ticks in a row before which no time passed.
    idle_ticks: u32,
}

impl Pair {
    /// A leader of term 8 whose log has these terms; `to` may be a voter or an observer.
    fn new(terms: &[u64], to: NodeKey, receiver: Receiver, window: usize) -> Pair {
        let voters = (1..=3).map(|n| (NodeKey(n), format!("n{n}"))).collect();
        let configuration = Configuration::of(voters, Settings::default());
        let entries: Vec<Entry> = (1..)
            .zip(terms)
            .map(|(index, term)| Entry {
                index: Index(index),
                term: Term(*term),
                payload: match index {
                    1 => Payload::Configuration(configuration.clone()),
                    _ => Payload::Noop,
                },
            })
            .collect();
        let broadcast_end = entries.last().expect("a log").index;
        let durable = Durable {
            hard_state: HardState {
                term: Term(7),
                voted_for: None,
            },
            snapshot: None,
            entries,
        };
        let options = Options {
            max_append_bytes: 70,
            max_in_flight: window,
            trailing_entries: 0,
            ..Options::default()
        };
        let now = Time(1_000_000);
        let mut pair = Pair {
            raft: Raft::new(LEADER, options, 3, durable, now),
            now,
            to,
            receiver,
            ledger: Ledger::default(),
            down: Vec::new(),
            up: Vec::new(),
            broadcast_end,
            snapshot: None,
            applied: Index(0),
            proposed: 0,
            idle_ticks: 0,
        };
        pair.win();
        pair
    }

    fn win(&mut self) {
        self.step(Input::Sessions(Sessions::of(SessionId(1))));
        self.now = self.raft.next_deadline().expect("a voter campaigns");
        self.step(Input::Tick);
        let (proposed_term, granted) = (Term(8), true);
        let pre_vote = PreVote {
            proposed_term,
            granted,
        };
        self.hear(FAITHFUL, Term(7), Body::PreVote(pre_vote));
        self.hear(FAITHFUL, Term(8), Body::Vote(Vote { granted }));
        assert_eq!(self.raft.role(), Role::Leader);
    }

    fn hear(&mut self, from: NodeKey, term: Term, body: Body) {
        let message = Message { term, body };
        self.step(Input::Message { from, message });
    }

    /// Steps the leader; its disk and the faithful voter answer at once.
    fn step(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            for effect in self.raft.step(input, self.now) {
                match effect {
                    Effect::Persist(write) => inputs.push(Input::Persisted(write.seq)),
                    Effect::Broadcast(message) => {
                        if let Body::Append(append) = message.body {
                            inputs.push(self.broadcast(append));
                        }
                    }
                    Effect::Send { to, message } if to == self.to => self.send(message.body),
                    Effect::Apply(entries) => {
                        self.applied = entries.last().expect("something").index;
                    }
                    Effect::Rejected { reason, .. } => panic!("{reason:?} of a correct peer"),
                    _ => {}
                }
            }
        }
        self.note_done();
    }

    fn broadcast(&mut self, append: Append) -> Input {
        if let Some(last) = append.entries.last() {
            self.broadcast_end = last.index;
        }
        let (round, stream) = (append.round, append.stream);
        let match_index = self.broadcast_end;
        self.down.push(Body::Append(append));
        let body = Body::Acknowledge(Acknowledge {
            round,
            stream,
            match_index,
            clock: Time(0),
        });
        Input::Message {
            from: FAITHFUL,
            message: Message {
                term: Term(8),
                body,
            },
        }
    }

    /// Everything that a stream carries is recounted here.
    fn send(&mut self, body: Body) {
        match &body {
            Body::Append(append) => self.check_append(append.clone()),
            Body::SnapshotChunk(chunk) => self.check_chunk((**chunk).clone()),
            _ => panic!("a leader says no such thing: {body:?}"),
        }
        self.down.push(body);
    }

    fn check_append(&mut self, append: Append) {
        let ledger = &mut self.ledger;
        let stream = append.stream;
        assert!(stream >= ledger.newest, "streams never go back");
        ledger.newest = stream;
        let before = ledger.appends.iter().rev().find(|a| a.stream == stream);
        if let Some(before) = before.and_then(|before| before.entries.last()) {
            assert_eq!(append.prev, before.position(), "a stream has no holes");
        }
        let size: usize = append.entries.iter().map(Entry::size).sum();
        assert!(append.entries.len() <= 1 || size <= self.raft.options().max_append_bytes);
        assert!(
            append.entries.last().map(|e| e.index) <= Some(self.broadcast_end),
            "a stream runs ahead of the broadcast"
        );
        ledger.appends.push(append);
        let window = ledger.window(stream, self.raft.options());
        let unanswered = ledger.unanswered(stream);
        assert!(unanswered <= window, "{unanswered} under way, not {window}");
    }

    fn check_chunk(&mut self, chunk: SnapshotChunk) {
        let options = self.raft.options();
        let ledger = &mut self.ledger;
        let stream = chunk.stream;
        assert!(stream >= ledger.newest, "streams never go back");
        ledger.newest = stream;
        let (last, data) = self.snapshot.as_ref().expect("it was saved");
        if chunk.meta.last == *last {
            let (start, end) = (
                chunk.offset as usize,
                chunk.offset as usize + chunk.data.len(),
            );
            assert_eq!(chunk.data, data.slice(start..end), "bytes of the snapshot");
            assert_eq!(chunk.length, data.len() as u64);
        }
        assert!(!chunk.data.is_empty() && chunk.data.len() <= options.max_append_bytes);
        let window = (options.max_append_bytes * options.max_in_flight) as u64;
        assert!(
            chunk.offset < ledger.offset(stream) + window,
            "{} is too far beyond {}",
            chunk.offset,
            ledger.offset(stream)
        );
        ledger.chunks.push(chunk);
    }

    fn sent(&self) -> usize {
        self.ledger.appends.len() + self.ledger.chunks.len()
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Down { arrives } => self.deliver_down(arrives),
            Act::Up {
                nth,
                arrives,
                again,
            } => {
                if self.up.is_empty() {
                    return;
                }
                let nth = nth.min(self.up.len() - 1);
                let body = match again {
                    true => self.up[nth].clone(),
                    false => self.up.remove(nth),
                };
                if arrives {
                    self.deliver_up(body);
                }
            }
            Act::Propose { count } => self.propose(count),
            Act::Compact { keep } => self.compact(keep),
            Act::Wait { ms } => {
                self.now = self.now + Duration::from_millis(ms);
                self.step(Input::Tick);
            }
            Act::Tick => self.tick(),
            Act::Restart => self.receiver.pieces.clear(),
        }
    }

    fn deliver_down(&mut self, arrives: bool) {
        if self.down.is_empty() {
            return;
        }
        let body = self.down.remove(0);
        if arrives {
            let answer = self.receiver.hear(&body);
            self.up.extend(answer.filter(|answer| self.says(answer)));
        }
    }

    /// An observer answers on its stream alone, or to ask for one.
    fn says(&self, answer: &Body) -> bool {
        let observes = self.to > NodeKey(3);
        !matches!(answer, Body::Acknowledge(said) if observes && said.stream == StreamId(0))
    }

    fn deliver_up(&mut self, body: Body) {
        let stream = match &body {
            Body::Acknowledge(said) => said.stream,
            Body::Reject(said) => said.stream,
            Body::SnapshotProgress(said) => said.stream,
            _ => StreamId(0),
        };
        let (sent, newest) = (self.sent(), self.ledger.newest);
        let is_old = stream < newest && stream != StreamId(0);
        // What is overdue anyway is sent first, so that all else is owed to the answer.
        self.step(Input::Tick);
        let sent = match self.sent() == sent {
            true => sent,
            false => return,
        };
        self.ledger.answer(body.clone());
        let is_progress = matches!(body, Body::Acknowledge(_)) && stream == newest;
        if matches!(&body, Body::Acknowledge(said) if said.match_index >= self.broadcast_end) {
            self.ledger.done.insert(newest); // Who holds all needs no stream any more.
        }
        self.hear(self.to, Term(8), body);
        assert!(!is_old || self.sent() == sent, "an older stream is inert");
        if is_progress && self.ledger.newest == stream {
            self.check_never_idle(stream);
        }
    }

    /// After an answer the window is full, or all that was broadcast is sent.
    fn check_never_idle(&self, stream: StreamId) {
        let full = self.ledger.unanswered(stream) >= self.window(stream);
        assert!(
            full || self.ledger.done.contains(&stream),
            "the stream idles before {}",
            self.broadcast_end
        );
    }

    fn window(&self, stream: StreamId) -> usize {
        self.ledger.window(stream, self.raft.options())
    }

    /// A stream that has sent all that was broadcast, and has room, goes no further: from there
    /// on the broadcast fits. A snapshot is sent by its bytes.
    fn note_done(&mut self) {
        let stream = self.ledger.newest;
        let all_sent = match self.ledger.ends(stream).map(|(_, end)| end).max() {
            Some(end) => end == self.broadcast_end,
            None => true,
        };
        if all_sent && self.ledger.unanswered(stream) < self.window(stream) {
            self.ledger.done.insert(stream);
        }
    }

    fn propose(&mut self, count: usize) {
        let commands = (0..count).map(|_| {
            self.proposed += 1;
            Command {
                client: ClientId(1),
                request: RequestNumber(self.proposed),
                data: Bytes::from_static(b"12345678"),
            }
        });
        let commands = commands.collect();
        self.step(Input::Propose(commands));
    }

    /// The state is the terms of all entries, one byte each, and as much again of bulk.
    fn compact(&mut self, keep: u64) {
        let through = self.applied.0.saturating_sub(keep);
        let known = self.snapshot.as_ref().map_or(0, |(last, _)| last.index.0);
        if through <= known {
            return;
        }
        let before = self
            .snapshot
            .as_ref()
            .map(|(_, data)| &data[..known as usize]);
        let mut data = before.unwrap_or_default().to_vec();
        let entries = self.raft.entries(Index(known + 1));
        let up_to = entries.iter().take((through - known) as usize);
        data.extend(up_to.clone().map(|entry| entry.term.0 as u8));
        let last = up_to.last().expect("one is new").position();
        data.extend(std::iter::repeat_n(0, 3 * data.len()));
        let data = Bytes::from(data);
        self.snapshot = Some((last, data.clone()));
        let through = last.index;
        self.step(Input::Compact { through, data });
    }

    fn tick(&mut self) {
        let deadline = self.raft.next_deadline().expect("leaders have one");
        self.idle_ticks = if deadline > self.now {
            0
        } else {
            self.idle_ticks + 1
        };
        assert!(
            self.idle_ticks < 100,
            "it wants to be woken at once, for ever"
        );
        self.now = self.now.max(deadline);
        self.step(Input::Tick);
    }

    /// All that is said arrives, a millisecond for each way.
    fn converse(&mut self) {
        while !self.down.is_empty() {
            self.now = self.now + Duration::from_millis(1);
            for _ in 0..self.down.len() {
                self.deliver_down(true);
            }
            self.now = self.now + Duration::from_millis(1);
            for body in std::mem::take(&mut self.up) {
                self.ledger.answer(body.clone());
                self.hear(self.to, Term(8), body);
            }
        }
    }

    fn is_caught_up(&self) -> bool {
        let last = self.raft.last_index();
        let end = self.raft.entries(last);
        let term = end.first().map(|entry| entry.term);
        let compacted = end.is_empty();
        self.receiver.terms.len() as u64 == last.0
            && (compacted || self.receiver.terms.last().copied() == term)
    }

    /// On a good network the receiver soon holds everything, and the streams fall silent.
    fn catch_up(&mut self) {
        self.up.clear();
        let begun = self.now;
        while !self.is_caught_up() {
            self.converse();
            self.tick();
            assert!(
                self.now.since(begun) < PATIENCE,
                "{:?} against {:?}",
                self.receiver.terms,
                self.raft.entries(Index(1))
            );
        }
        self.converse();
        let quiet = self.now + Duration::from_secs(1);
        while self.now < quiet {
            self.tick();
            self.converse();
        }
        let sent = self.sent();
        let end = self.now + Duration::from_secs(1);
        while self.now < end {
            self.tick();
            self.converse();
        }
        assert_eq!(self.sent(), sent, "nothing is left to say");
    }

    /// A receiver that says nothing more is given up.
    fn abandon(&mut self) {
        let quiet = self.now + Duration::from_secs(60);
        while self.now < quiet {
            self.tick();
        }
        let sent = self.sent();
        let end = self.now + Duration::from_secs(60);
        while self.now < end {
            self.tick();
        }
        assert_eq!(self.sent(), sent, "someone is still spoken to");
    }
}

/// A receiver that shares `same` entries with the leader and then goes its own way.
fn receiver(terms: &[u64], same: usize, other: usize) -> Receiver {
    let same = same.min(terms.len());
    let shared = terms[..same].iter().map(|term| Term(*term));
    let own = terms[..same].last().map_or(1, |term| term + 1);
    Receiver {
        terms: shared.chain((0..other).map(|_| Term(own))).collect(),
        ..Receiver::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None, cases: 256, ..ProptestConfig::default()
    })]

    #[test]
    fn a_stream_brings_anyone_up_to_date(
        lengths in vec(1..6_usize, 1..4),
        same in 0..16_usize,
        other in 0..5_usize,
        observer: bool,
        window in 1..4_usize,
        falls_silent: bool,
        acts in vec(act(), 0..80),
    ) {
        // The leader's terms are 1, 3, 5, …; the receiver's own way leads through even ones.
        let terms = (0..).zip(&lengths).flat_map(|(n, length)| vec![2 * n + 1; *length]);
        let terms: Vec<u64> = terms.collect();
        let to = NodeKey(if observer { 4 } else { 3 });
        let receiver = receiver(&terms, same, other);
        let mut pair = Pair::new(&terms, to, receiver, window);
        for act in acts {
            pair.act(act);
        }
        if falls_silent {
            pair.abandon();
        } else {
            pair.catch_up();
        }
    }
}

// What no network is needed for: one answer, and what follows from it.

/// A leader of five entries in term 1 and its own in term 8, all committed, with a snapshot up to
/// `compacted` of four bytes for each entry.
fn leader(to: NodeKey, compacted: u64) -> Pair {
    let mut pair = Pair::new(&[1, 1, 1, 1, 1], to, Receiver::default(), 3);
    assert_eq!(pair.applied, Index(6));
    pair.compact(6 - compacted);
    pair
}

fn at(index: u64, term: u64) -> LogPosition {
    let (index, term) = (Index(index), Term(term));
    LogPosition { index, term }
}

impl Pair {
    fn reject(&mut self, stream: u64, hint: LogPosition) {
        let (round, stream) = (Round(1), StreamId(stream));
        let body = Body::Reject(Reject {
            round,
            stream,
            hint,
        });
        self.hear(self.to, Term(8), body);
    }

    fn confirm(&mut self, stream: u64, match_index: u64) {
        let body = Body::Acknowledge(Acknowledge {
            round: Round(1),
            stream: StreamId(stream),
            match_index: Index(match_index),
            clock: Time(0),
        });
        self.ledger.answer(body.clone());
        self.hear(self.to, Term(8), body);
    }

    fn progress(&mut self, round: u64, offset: u64) {
        let stream = self.ledger.newest;
        let body = Body::SnapshotProgress(SnapshotProgress {
            round: Round(round),
            stream,
            offset,
        });
        self.ledger.answer(body.clone());
        self.hear(self.to, Term(8), body);
    }

    /// The offsets of the pieces sent since the last call.
    fn pieces(&mut self) -> Vec<u64> {
        let pieces = self.ledger.chunks.drain(..);
        pieces.map(|chunk| chunk.offset).collect()
    }

    /// A snapshot of ten pieces, of which the window has let three out.
    fn with_snapshot_under_way(to: NodeKey) -> Pair {
        let mut pair = Pair::new(&[1; 5], to, Receiver::default(), 3);
        (0..170).for_each(|_| pair.propose(1));
        pair.compact(0);
        pair.reject(0, at(1, 1));
        let length = pair.ledger.chunks[0].length;
        assert_eq!(length, 4 * 176, "ten pieces of 70 bytes and a bit");
        assert_eq!(pair.pieces(), [0, 70, 140]);
        pair
    }
}

/// The snapshot goes to those alone whom the log cannot help: everyone else gets entries.
#[test]
fn who_agrees_with_the_log_needs_no_snapshot() {
    let cases = [
        (at(6, 8), true, "it lacks what is written next"),
        (at(5, 1), true, "it lacks the last entry"),
        (at(4, 1), true, "it ends where the log begins"),
        (at(3, 1), false, "it ends before the log begins"),
        (at(0, 0), false, "it is empty"),
        (at(9, 0), false, "nothing it holds is in the log"),
    ];
    for (hint, entries, why) in cases {
        let mut pair = leader(NodeKey(3), 4);
        pair.step(Input::Sessions(Sessions::default()));
        pair.reject(0, hint);
        let sent = (pair.ledger.appends.len(), pair.ledger.chunks.len());
        let expected = match (entries, hint.index) {
            (true, Index(6)) => (0, 0),
            (true, _) => (1, 0),
            (false, _) => (0, 1),
        };
        assert_eq!(sent, expected, "{why}");
    }
    let mut pair = leader(NodeKey(3), 0);
    pair.reject(0, at(0, 0));
    assert_eq!(pair.ledger.appends.len(), 1, "without a snapshot, entries");
}

/// At most 32 nodes are brought up to date at a time. Observers wait their turn; a voter takes
/// the place of one.
#[test]
fn streams_are_bounded_and_voters_come_first() {
    let mut pair = leader(NodeKey(3), 0);
    let mut answers = |from: u128, body: Body| {
        let message = Message {
            term: Term(8),
            body,
        };
        let from = NodeKey(from);
        let effects = pair.raft.step(Input::Message { from, message }, pair.now);
        effects.into_iter().find_map(|effect| match effect {
            Effect::Send { to, message } if to == from => match message.body {
                Body::Append(append) => Some(append.stream),
                _ => None,
            },
            _ => None,
        })
    };
    let ask = |stream| {
        Body::Reject(Reject {
            round: Round(0),
            stream,
            hint: at(1, 1),
        })
    };
    let has = |stream, match_index| {
        Body::Acknowledge(Acknowledge {
            round: Round(0),
            stream,
            match_index: Index(match_index),
            clock: Time(0),
        })
    };
    let none = StreamId(0);
    for observer in 10..42 {
        assert!(answers(observer, ask(none)).is_some(), "there is room");
    }
    assert_eq!(answers(42, ask(none)), None, "there is none");
    let first = StreamId(1);
    let again = answers(10, ask(first)).expect("who has a stream keeps its place");
    let voters = answers(3, ask(none)).expect("a voter finds room");
    assert_eq!(answers(10, has(again, 2)), None, "an observer made it");
    assert_eq!(
        answers(11, ask(StreamId(2))),
        Some(voters.next()),
        "but one"
    );
    assert_eq!(answers(10, ask(none)), None, "all places are taken again");
}

/// A heartbeat's answer echoes the stream while the snapshot's pieces are under way: it neither
/// ends the snapshot nor starts it again.
#[test]
fn an_acknowledgement_below_the_snapshot_leaves_it_under_way() {
    let mut pair = Pair::with_snapshot_under_way(NodeKey(3));
    pair.confirm(1, 1);
    assert!(pair.pieces().is_empty() && pair.ledger.appends.is_empty());
    pair.progress(2, 70);
    assert_eq!(pair.pieces(), [210]);
    pair.confirm(1, 176);
    assert_eq!(pair.raft.last_index(), Index(176));
    assert_eq!(pair.sent(), 0, "the snapshot was all there is");
}

/// Pieces may overtake each other, so an older answer says nothing; a newer one that names less
/// says that the receiver started again and lost them.
#[test]
fn pieces_are_sent_again_to_a_receiver_that_lost_them() {
    let mut pair = Pair::with_snapshot_under_way(NodeKey(3));
    pair.progress(6, 0);
    assert_eq!(pair.pieces(), [0; 0], "a later piece came first");
    pair.progress(6, 70);
    assert_eq!(pair.pieces(), [210], "then the one before it");
    pair.progress(6, 0);
    pair.progress(5, 0);
    assert_eq!(pair.pieces(), [0; 0], "the first answer is late");
    pair.progress(7, 140);
    assert_eq!(pair.pieces(), [280]);
    pair.progress(8, 70);
    assert_eq!(pair.pieces(), [70, 140, 210], "it holds less than before");
    pair.progress(9, 9_999);
    assert_eq!(
        pair.pieces(),
        [0; 0],
        "beyond the snapshot's end is nothing"
    );
}

/// The stream's patience begins anew with each headway, and with nothing else.
#[test]
fn only_headway_puts_off_the_restart() {
    // Of an observer no round trip is measured: the least patience is the patience.
    let mut pair = Pair::with_snapshot_under_way(NodeKey(4));
    let begun = pair.now;
    let restart_at = begun + pair.raft.options().min_probe * 4;
    assert_eq!(pair.raft.next_deadline(), Some(restart_at));
    pair.now = begun + Duration::from_millis(5);
    pair.progress(6, 0);
    assert_eq!(pair.raft.next_deadline(), Some(restart_at), "no headway");
    pair.progress(7, 70);
    let restart_at = restart_at + Duration::from_millis(5);
    assert_eq!(pair.raft.next_deadline(), Some(restart_at), "headway");
    pair.pieces();
    pair.now = restart_at;
    pair.step(Input::Tick);
    assert_eq!(pair.pieces(), [70, 140, 210], "from what was confirmed");
}

/// Eight times what nobody answers is said again, each time after twice as long.
#[test]
fn a_silent_receiver_is_given_up_after_eight_restarts() {
    let mut pair = leader(NodeKey(4), 0);
    pair.reject(0, at(1, 1));
    let mut sent = vec![pair.now];
    let end = pair.now + Duration::from_secs(60);
    while pair.now < end {
        let before = pair.sent();
        pair.tick();
        sent.extend(vec![pair.now; pair.sent() - before]);
    }
    let waits: Vec<Duration> = sent.windows(2).map(|pair| pair[1].since(pair[0])).collect();
    let patience = pair.raft.options().min_probe * 4;
    let doubled = (0..8).map(|n| patience * (1 << n));
    assert!(waits.iter().copied().eq(doubled), "{waits:?}");
    let ids = pair.ledger.appends.iter().map(|append| append.stream.0);
    assert!(ids.eq(1..=9), "each restart is a new stream");
}

/// A stream that has sent all that was broadcast when it got there is done with that: the rest
/// comes by broadcast.
#[test]
fn a_stream_ends_at_its_goal() {
    let mut pair = leader(NodeKey(4), 0);
    pair.reject(0, at(3, 1));
    assert_eq!(pair.ledger.appends.len(), 1);
    pair.confirm(1, 5);
    assert_eq!(pair.ledger.appends.len(), 2, "the entry of this term");
    pair.propose(1);
    pair.confirm(1, 6);
    let end = pair.now + Duration::from_secs(10);
    while pair.now < end {
        pair.tick();
    }
    assert_eq!(pair.ledger.appends.len(), 2, "nothing is left to say");
}
