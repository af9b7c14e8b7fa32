//! Who speaks, and whether it is *now*: admission of other processes and the replay window.
//!
//! A seal proves who wrote a frame, not when. A broker could keep frames and play them back to a
//! node that has restarted, so a sender's incarnation is admitted only once it has echoed an
//! unpredictable challenge of ours, made after we started. What it sent before that echo stays
//! refused, but for a few frames kept meanwhile; from then on a sliding window takes each sequence
//! number once.
//!
//! ```text
//! a (new)                               b
//!   │ ───── any frame ───────────────────►│  authentic, not yet admitted: kept, not obeyed
//!   │ ◄──── Handshake { challenge 17 } ───│
//!   │ ───── Handshake { echo 17, challenge 42 } ►│  a is admitted; what was kept is taken
//!   │ ◄──── Handshake { echo 42 } ────────│  b is admitted
//! ```
//!
//! A newly admitted incarnation ends the one before it: two processes that share a data directory
//! do not take turns. When they hear of each other one of them stops (`replica/meeting.rs`), and
//! with the end of its session the other may prove itself again.
//!
//! A kept frame may be an old one of the same process: nothing shows its age. Consensus and
//! formation bear that, as they bear a slow network; requests do not (a session may have been
//! forgotten meanwhile) and are not taken from among the kept.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use raft::{NodeKey, Time};

use crate::frame::{Destination, FrameError, Header, Opener};
use crate::keys::{ClusterId, Incarnation, KeyRing, Nonces};
use crate::name::Name;

/// How many other processes are known at once. Beyond it, the one that was silent longest goes
/// and has to be admitted again.
pub const MAX_PEERS: usize = 16_384;

/// How many frames of a process are kept until it is admitted.
const MAX_KEPT: usize = 8;

/// The largest frame that is kept.
const MAX_KEPT_BYTES: usize = 16 << 10;

/// How many bytes are kept of all processes together.
pub(crate) const MAX_KEPT_TOTAL: usize = 8 << 20;

/// How many ended processes of a peer are remembered.
const MAX_ENDED: usize = 8;

/// How often one peer is challenged.
const CHALLENGE_INTERVAL: Duration = Duration::from_millis(100);

/// How long a challenge stays the same; its echo is taken for up to twice as long.
const CHALLENGE_STRETCH: Duration = Duration::from_secs(10);

/// How far sequence numbers may arrive out of order.
const WINDOW: u64 = 4_096;

/// Everyone that this process has heard of, by node key.
#[derive(Default)]
pub(crate) struct Peers {
    peers: BTreeMap<NodeKey, Peer>,
    /// Who was last admitted under a name.
    by_name: BTreeMap<Name, NodeKey>,
    /// How many admitted processes speak which frame version at most.
    spoken: BTreeMap<u8, usize>,
    /// The size of all frames that are kept.
    kept_bytes: usize,
}

/// One other node.
struct Peer {
    name: Name,
    heard_at: Time,
    admitted: Option<Process>,
    candidate: Option<Candidate>,
    challenged_at: Option<Time>,
    /// Processes that were admitted once, the latest last.
    ended: VecDeque<Incarnation>,
}

/// One process whose frames are taken.
struct Process {
    incarnation: Incarnation,
    /// The newest frame version that it speaks, as it said when it was admitted.
    speaks: u8,
    window: Window,
    openers: Openers,
}

/// A process that has yet to prove that it lives.
struct Candidate {
    incarnation: Incarnation,
    kept: VecDeque<(Header, Bytes)>,
    openers: Openers,
}

/// The openers of one process: lobby and cluster, at most one for each.
#[derive(Default)]
struct Openers(BTreeMap<ClusterId, Opener>);

/// What a process says to be admitted.
#[derive(Clone, Copy)]
pub(crate) struct Echo {
    pub(crate) echo: u64,
    /// The newest frame version that it speaks.
    pub(crate) speaks: u8,
}

/// What came of an authentic frame.
pub(crate) enum Received {
    /// Fresh: to be obeyed.
    Fresh(Bytes),
    /// Kept until its sender is admitted; the body is shown for handshakes alone.
    Kept(Bytes),
    /// Seen before, or too old to tell.
    Replayed,
}

/// A frame's sender as the header has it, and its place in the topic.
#[derive(Clone, Copy)]
pub(crate) struct Envelope<'a> {
    pub(crate) header: &'a Header,
    pub(crate) from: &'a Name,
    pub(crate) to: Destination<'a>,
}

impl Peers {
    /// Checks a frame's seal and freshness.
    pub(crate) fn receive(
        &mut self,
        ring: &KeyRing,
        envelope: Envelope<'_>,
        payload: &Bytes,
        now: Time,
    ) -> Result<Received, FrameError> {
        let Envelope { header, from, to } = envelope;
        if let Some(peer) = self.peers.get_mut(&header.node_key)
            && let Some(process) = peer.process(header.incarnation)
        {
            // With several brokers each frame comes more than once: no need to open what would be refused.
            if !process.window.takes(header.sequence) {
                return Ok(Received::Replayed);
            }
            let body = process.openers.open(ring, header, from, to, payload)?;
            process.window.admit(header.sequence);
            peer.heard_at = now;
            return Ok(Received::Fresh(body));
        }
        let peer = self.peers.get(&header.node_key);
        if peer.is_some_and(|peer| peer.ended.contains(&header.incarnation)) {
            return Ok(Received::Replayed);
        }
        // Nothing is remembered of a sender that does not hold the key.
        let mut openers = Openers::default();
        let body = openers.open(ring, header, from, to, payload)?;
        self.make_room(header.node_key);
        let peer = self
            .peers
            .entry(header.node_key)
            .or_insert_with(|| Peer::new(from, now));
        peer.heard_at = now;
        let before = peer.kept_bytes();
        peer.keep(header, payload, openers, MAX_KEPT_TOTAL - self.kept_bytes);
        self.kept_bytes = self.kept_bytes - before + peer.kept_bytes();
        Ok(Received::Kept(body))
    }

    fn make_room(&mut self, key: NodeKey) {
        if self.peers.len() < MAX_PEERS || self.peers.contains_key(&key) {
            return;
        }
        let silent = self
            .peers
            .iter()
            .min_by_key(|(_, peer)| peer.heard_at)
            .map(|(key, _)| *key);
        if let Some((key, peer)) = silent.and_then(|key| self.peers.remove_entry(&key)) {
            self.kept_bytes -= peer.kept_bytes();
            forget(&mut self.by_name, &peer.name, key);
            if let Some(process) = &peer.admitted {
                count_out(&mut self.spoken, process.speaks);
            }
        }
    }

    /// The challenge to send to a process that is not admitted, unless one went out just now.
    pub(crate) fn challenge(&mut self, nonces: &Nonces, key: NodeKey, now: Time) -> Option<u64> {
        let peer = self.peers.get_mut(&key)?;
        if peer
            .challenged_at
            .is_some_and(|at| now.since(at) < CHALLENGE_INTERVAL)
        {
            return None;
        }
        peer.challenged_at = Some(now);
        Some(nonces.challenge(key, peer.admitted(), stretch(now)))
    }

    /// Admits the process that echoed its challenge, and gives back what was kept of it.
    /// Empty where the echo does not fit.
    pub(crate) fn admit(
        &mut self,
        nonces: &Nonces,
        header: &Header,
        from: &Name,
        Echo { echo, speaks }: Echo,
        now: Time,
    ) -> Vec<(Header, Bytes)> {
        let key = header.node_key;
        let stretches = [stretch(now), stretch(now).saturating_sub(1)];
        // An echo that comes late, from a process that has died since, must not end the one that
        // followed it: whoever was asked before that was admitted has to be asked again.
        let admitted = self.incarnation(key);
        let fits = stretches
            .map(|stretch| nonces.challenge(key, admitted, stretch))
            .contains(&echo);
        let Some(peer) = self.peers.get_mut(&key).filter(|_| fits) else {
            return Vec::new();
        };
        let bytes = peer.kept_bytes();
        let is_it = |candidate: &mut Candidate| candidate.incarnation == header.incarnation;
        let Some(candidate) = peer.candidate.take_if(is_it) else {
            return Vec::new();
        };
        self.kept_bytes -= bytes;
        let Candidate {
            incarnation,
            kept,
            openers,
        } = candidate;
        let window = Window::opened_by(header.sequence, kept.iter().map(|(kept, _)| kept.sequence));
        let process = Process {
            incarnation,
            speaks,
            window,
            openers,
        };
        forget(&mut self.by_name, &peer.name, key);
        peer.name = from.clone();
        self.by_name.insert(from.clone(), key);
        *self.spoken.entry(speaks).or_default() += 1;
        if let Some(ended) = peer.admitted.replace(process) {
            count_out(&mut self.spoken, ended.speaks);
            peer.end(ended.incarnation);
        }
        kept.into()
    }

    /// The keys have changed: what was derived from them is derived again where it is needed, so that
    /// a key that is accepted no more opens nothing.
    pub(crate) fn forget_openers(&mut self) {
        for peer in self.peers.values_mut() {
            let admitted = peer.admitted.iter_mut().map(|process| &mut process.openers);
            let candidate = peer
                .candidate
                .iter_mut()
                .map(|process| &mut process.openers);
            admitted
                .chain(candidate)
                .for_each(|openers| openers.0.clear());
        }
    }

    /// The session of a process is said to have ended. If it was admitted, whoever it had displaced
    /// may have been right to stay; if nobody lives under that key, nobody can prove to.
    pub(crate) fn on_end(&mut self, key: NodeKey, incarnation: Incarnation) {
        let peer = self.peers.get_mut(&key);
        if let Some(peer) = peer.filter(|peer| peer.admitted() == Some(incarnation)) {
            peer.ended.clear();
        }
    }

    /// Whether this very process is admitted.
    pub(crate) fn is_admitted(&self, key: NodeKey, incarnation: Incarnation) -> bool {
        self.incarnation(key) == Some(incarnation)
    }

    /// The admitted process of `key`.
    pub(crate) fn incarnation(&self, key: NodeKey) -> Option<Incarnation> {
        self.peers.get(&key)?.admitted()
    }

    /// The newest frame version that the admitted process of `key` speaks.
    pub(crate) fn speaks(&self, key: NodeKey) -> Option<u8> {
        let process = self.peers.get(&key)?.admitted.as_ref()?;
        Some(process.speaks)
    }

    /// The same for a name; of several that share it, for the one admitted last.
    pub(crate) fn speaks_as(&self, name: &Name) -> Option<u8> {
        self.speaks(*self.by_name.get(name)?)
    }

    /// The newest frame version that all admitted processes speak; `None` where there are none.
    pub(crate) fn all_speak(&self) -> Option<u8> {
        self.spoken.keys().next().copied()
    }

    /// How many processes are known, and the bytes kept of them.
    #[cfg(test)]
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.peers.len(), self.kept_bytes)
    }

    /// The name under which `key` was last admitted, or first heard.
    pub(crate) fn name(&self, key: NodeKey) -> Option<&Name> {
        self.peers.get(&key).map(|peer| &peer.name)
    }
}

fn forget(by_name: &mut BTreeMap<Name, NodeKey>, name: &Name, key: NodeKey) {
    if by_name.get(name) == Some(&key) {
        by_name.remove(name);
    }
}

fn count_out(spoken: &mut BTreeMap<u8, usize>, speaks: u8) {
    if let Some(count) = spoken.get_mut(&speaks) {
        *count -= 1;
        if *count == 0 {
            spoken.remove(&speaks);
        }
    }
}

impl Peer {
    fn new(name: &Name, now: Time) -> Peer {
        let name = name.clone();
        Peer {
            name,
            heard_at: now,
            admitted: None,
            candidate: None,
            challenged_at: None,
            ended: VecDeque::new(),
        }
    }

    fn admitted(&self) -> Option<Incarnation> {
        self.admitted.as_ref().map(|process| process.incarnation)
    }

    fn end(&mut self, incarnation: Incarnation) {
        if self.ended.len() == MAX_ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(incarnation);
    }

    fn kept_bytes(&self) -> usize {
        let kept = self.candidate.iter().flat_map(|candidate| &candidate.kept);
        kept.map(|(_, payload)| payload.len()).sum()
    }

    fn process(&mut self, incarnation: Incarnation) -> Option<&mut Process> {
        self.admitted
            .as_mut()
            .filter(|process| process.incarnation == incarnation)
    }

    /// Keeps a frame of a process that is not admitted, where there is room for it.
    fn keep(&mut self, header: &Header, payload: &Bytes, openers: Openers, room: usize) {
        let other = |candidate: &mut Candidate| candidate.incarnation != header.incarnation;
        self.candidate.take_if(other);
        let candidate = self.candidate.get_or_insert_with(|| Candidate {
            incarnation: header.incarnation,
            kept: VecDeque::new(),
            openers,
        });
        let kept = &mut candidate.kept;
        let twice = kept
            .iter()
            .any(|(kept, _)| kept.sequence == header.sequence);
        if twice || payload.len() > MAX_KEPT_BYTES.min(room) {
            return;
        }
        if kept.len() == MAX_KEPT {
            kept.pop_front();
        }
        kept.push_back((*header, payload.clone()));
    }
}

fn stretch(now: Time) -> u64 {
    now.0 / CHALLENGE_STRETCH.as_micros() as u64
}

impl Openers {
    fn open(
        &mut self,
        ring: &KeyRing,
        header: &Header,
        from: &Name,
        to: Destination<'_>,
        payload: &Bytes,
    ) -> Result<Bytes, FrameError> {
        if let Some(opener) = self
            .0
            .get(&header.cluster)
            .filter(|opener| opener.fits(header))
        {
            match opener.open(header, from, to, payload) {
                // It may have gone over to the other key of the ring, which by chance has the same id.
                Err(FrameError::BadTag) if ring.find(header.key_id).nth(1).is_some() => {}
                result => return result,
            }
        }
        let (opener, body) = Opener::find(ring, header, from, to, payload)?;
        self.0.insert(header.cluster, opener);
        Ok(body)
    }
}

/// The sequence numbers seen of one process: the newest, and a bit for each of the `WINDOW`
/// before it.
struct Window {
    /// One more than the newest number seen.
    end: u64,
    seen: Box<[u64; (WINDOW / 64) as usize]>,
}

impl Window {
    /// The window of a process that its frame `sequence` has admitted: of what it sent before,
    /// only the `kept` are still taken.
    fn opened_by(sequence: u64, kept: impl Iterator<Item = u64>) -> Window {
        let mut window = Window {
            end: sequence.saturating_add(1),
            seen: Box::new([u64::MAX; (WINDOW / 64) as usize]),
        };
        for kept in kept.filter(|kept| *kept < sequence && sequence - kept < WINDOW) {
            let (word, bit) = Window::place(kept);
            window.seen[word] &= !bit;
        }
        window
    }

    /// Whether `sequence` would be seen for the first time.
    fn takes(&self, sequence: u64) -> bool {
        let (word, bit) = Window::place(sequence);
        let is_known = sequence < self.end;
        let is_old = is_known && self.end - sequence > WINDOW;
        sequence != u64::MAX && !is_old && !(is_known && self.seen[word] & bit != 0)
    }

    /// Whether `sequence` is seen for the first time.
    fn admit(&mut self, sequence: u64) -> bool {
        let Some(end) = sequence.checked_add(1) else {
            return false;
        };
        if end > self.end {
            self.advance(end);
        } else if self.end - sequence > WINDOW {
            return false;
        }
        let (word, bit) = Window::place(sequence);
        let first = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        first
    }

    fn advance(&mut self, end: u64) {
        if end - self.end >= WINDOW {
            self.seen.fill(0);
        } else {
            for skipped in self.end..end {
                let (word, bit) = Window::place(skipped);
                self.seen[word] &= !bit;
            }
        }
        self.end = end;
    }

    fn place(sequence: u64) -> (usize, u64) {
        let at = sequence % WINDOW;
        ((at / 64) as usize, 1 << (at % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_admitted_once() {
        let mut window = Window::opened_by(0, std::iter::empty());
        for (sequence, fresh) in [
            (0, false),
            (5, true),
            (3, true),
            (3, false),
            (5 + WINDOW, true),
            (5, false),
            (6, true),
            (6, false),
            (5 + WINDOW, false),
            (10 * WINDOW, true),
            (9 * WINDOW, false),
            (9 * WINDOW + 1, true),
            (u64::MAX, false),
            (u64::MAX - 1, true),
            (u64::MAX - 1, false),
        ] {
            assert_eq!(window.admit(sequence), fresh, "{sequence}");
        }
    }

    /// A broker that kept a process's frames cannot play them to a receiver that admits it now.
    #[test]
    fn nothing_from_before_the_echo_is_admitted_but_what_was_kept() {
        let mut window = Window::opened_by(9_000, [8_999, 8_000, 100].into_iter());
        for (sequence, fresh) in [
            (9_000, false),
            (8_999, true),
            (8_999, false),
            (8_998, false),
            (8_000, true),
            (100, false),
            (9_001, true),
            (9_003, true),
            (9_002, true),
        ] {
            assert_eq!(window.admit(sequence), fresh, "{sequence}");
        }
    }

    /// The window against a twin that remembers everything.
    #[test]
    fn window_agrees_with_a_set() {
        let mut window = Window::opened_by(0, std::iter::empty());
        let mut seen = std::collections::BTreeSet::from([0]);
        let mut state = 1u64;
        let mut newest = 0u64;
        for _ in 0..200_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let spread = (state >> 33) % (WINDOW + WINDOW / 2);
            let sequence = (newest + 40).saturating_sub(spread);
            newest = newest.max(sequence);
            let expected = newest - sequence < WINDOW && seen.insert(sequence);
            assert_eq!(window.admit(sequence), expected, "{sequence} of {newest}");
        }
    }
}
