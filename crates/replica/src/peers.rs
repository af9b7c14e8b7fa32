//! Who speaks, and whether it is *now*: admission of other processes and the replay window.
//!
//! A seal proves who wrote a frame, not when. A broker could keep frames and play them back to a
//! node that has restarted, so a sender's incarnation is admitted only once it has echoed a
//! random challenge of ours, drawn after we started; from then on a sliding window takes each
//! sequence number once.
//!
//! ```text
//! a (new)                               b
//!   │ ───── any frame ───────────────────►│  authentic, not yet admitted: kept, not obeyed
//!   │ ◄──── Handshake { challenge 17 } ───│
//!   │ ───── Handshake { echo 17, challenge 42 } ►│  a is admitted; what was kept is taken
//!   │ ◄──── Handshake { echo 42 } ────────│  b is admitted
//! ```
//!
//! A newly admitted incarnation ends the one before it for good.

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

/// How often one peer is challenged.
const CHALLENGE_INTERVAL: Duration = Duration::from_millis(100);

/// How far sequence numbers may arrive out of order.
const WINDOW: u64 = 4_096;

/// Everyone that this process has heard of, by node key.
#[derive(Default)]
pub(crate) struct Peers {
    peers: BTreeMap<NodeKey, Peer>,
}

/// One other node.
struct Peer {
    name: Name,
    heard_at: Time,
    admitted: Option<Process>,
    candidate: Option<Candidate>,
    challenged_at: Option<Time>,
}

/// One process whose frames are taken.
struct Process {
    incarnation: Incarnation,
    window: Window,
    openers: Openers,
}

/// A process that has yet to prove that it lives.
struct Candidate {
    incarnation: Incarnation,
    challenge: u64,
    kept: VecDeque<(Header, Bytes)>,
    openers: Openers,
}

/// The openers of one process: lobby and cluster, at most one for each.
#[derive(Default)]
struct Openers(BTreeMap<ClusterId, Opener>);

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
        nonces: &mut Nonces,
        envelope: Envelope<'_>,
        payload: &Bytes,
        now: Time,
    ) -> Result<Received, FrameError> {
        let Envelope { header, from, to } = envelope;
        if let Some(peer) = self.peers.get_mut(&header.node_key)
            && let Some(process) = peer.process(header.incarnation)
        {
            let body = process.openers.open(ring, header, from, to, payload)?;
            let fresh = process.window.admit(header.sequence);
            peer.heard_at = now;
            return Ok(if fresh {
                Received::Fresh(body)
            } else {
                Received::Replayed
            });
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
        peer.keep(nonces, header, payload, openers);
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
        silent.and_then(|key| self.peers.remove(&key));
    }

    /// The challenge to send to a process that is not admitted, unless one went out just now.
    pub(crate) fn challenge(&mut self, key: NodeKey, now: Time) -> Option<u64> {
        let peer = self.peers.get_mut(&key)?;
        let candidate = peer.candidate.as_ref()?;
        if peer
            .challenged_at
            .is_some_and(|at| now.since(at) < CHALLENGE_INTERVAL)
        {
            return None;
        }
        peer.challenged_at = Some(now);
        Some(candidate.challenge)
    }

    /// Admits the process that echoed its challenge, and gives back what was kept of it.
    /// Empty where the echo does not fit.
    pub(crate) fn admit(&mut self, header: &Header, echo: u64) -> Vec<(Header, Bytes)> {
        let Some(peer) = self.peers.get_mut(&header.node_key) else {
            return Vec::new();
        };
        let fits = |candidate: &mut Candidate| {
            candidate.incarnation == header.incarnation && candidate.challenge == echo
        };
        let Some(candidate) = peer.candidate.take_if(fits) else {
            return Vec::new();
        };
        let Candidate {
            incarnation,
            kept,
            openers,
            ..
        } = candidate;
        let mut window = Window::default();
        window.admit(header.sequence);
        peer.admitted = Some(Process {
            incarnation,
            window,
            openers,
        });
        kept.into()
    }

    /// Whether this very process is admitted.
    pub(crate) fn is_admitted(&self, key: NodeKey, incarnation: Incarnation) -> bool {
        self.incarnation(key) == Some(incarnation)
    }

    /// The admitted process of `key`.
    pub(crate) fn incarnation(&self, key: NodeKey) -> Option<Incarnation> {
        self.peers
            .get(&key)?
            .admitted
            .as_ref()
            .map(|process| process.incarnation)
    }

    /// The name under which `key` was last admitted or heard.
    pub(crate) fn name(&self, key: NodeKey) -> Option<&Name> {
        self.peers.get(&key).map(|peer| &peer.name)
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
        }
    }

    fn process(&mut self, incarnation: Incarnation) -> Option<&mut Process> {
        self.admitted
            .as_mut()
            .filter(|process| process.incarnation == incarnation)
    }

    fn keep(&mut self, nonces: &mut Nonces, header: &Header, payload: &Bytes, openers: Openers) {
        let known = |candidate: &Candidate| candidate.incarnation == header.incarnation;
        if !self.candidate.as_ref().is_some_and(known) {
            self.challenged_at = None;
            self.candidate = Some(Candidate {
                incarnation: header.incarnation,
                challenge: nonces.draw(),
                kept: VecDeque::new(),
                openers,
            });
        }
        let Some(candidate) = &mut self.candidate else {
            return;
        };
        if payload.len() <= MAX_KEPT_BYTES {
            if candidate.kept.len() == MAX_KEPT {
                candidate.kept.pop_front();
            }
            candidate.kept.push_back((*header, payload.clone()));
        }
    }
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
            return opener.open(header, from, to, payload);
        }
        let opener = Opener::new(ring, header, from)?;
        let body = opener.open(header, from, to, payload)?;
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

impl Default for Window {
    fn default() -> Window {
        Window {
            end: 0,
            seen: Box::new([0; (WINDOW / 64) as usize]),
        }
    }
}

impl Window {
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
        let mut window = Window::default();
        for (sequence, fresh) in [
            (0, true),
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

    /// The window against a twin that remembers everything.
    #[test]
    fn window_agrees_with_a_set() {
        let mut window = Window::default();
        let mut seen = std::collections::BTreeSet::new();
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
