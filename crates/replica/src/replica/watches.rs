//! Who waits for changes of the state: callers of our own, and clients over the broker.
//!
//! A watch is asked for piece by piece: "the changes from here on", answered as soon as there are any
//! and with where to go on. The asker keeps its place, so nothing is missed or told twice whatever is
//! lost, and it asks no faster than it can read. A client is told at once that its question arrived;
//! an answer that it does not follow up is sent again a few times.

use std::collections::BTreeMap;

use super::*;
use crate::state::{Cursor, KeyRange, Watched};
use crate::wire::{WatchReply, WatchRequest};

/// How many may wait at once.
const MAX_WATCHES: usize = 16_384;

/// How many questions one client may have waiting.
const MAX_WATCHES_OF_ONE: usize = 256;

/// How long a question may wait.
const MAX_HOLD: Duration = Duration::from_secs(60);

/// How long a caller of our own waits before it is told that nothing has changed.
const LOCAL_HOLD: Duration = Duration::from_secs(30);

/// After how long an answer is sent again, doubled each time.
const AGAIN: Duration = Duration::from_millis(250);

/// How often an answer is sent.
const SENT: u32 = 4;

/// Everyone who waits.
#[derive(Default)]
pub(super) struct Watches {
    waiting: BTreeMap<Watcher, Waiting>,
    /// No look at the state is due before it has another revision, unless someone new asks.
    seen: Option<u64>,
    /// The first that is to be told or forgotten, at the latest.
    wake_at: Option<Time>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Watcher {
    Local(Token),
    Remote(Name, u64),
}

struct Waiting {
    range: KeyRange,
    /// From where on it asked.
    asked: Cursor,
    /// How far there was nothing for it.
    cursor: Cursor,
    until: Time,
    /// What it was told, and how often.
    told: Option<(Watched, u32, Time)>,
}

impl Replica {
    /// A caller of our own asks.
    pub(super) fn watch(&mut self, token: Token, range: KeyRange, from: Cursor) {
        if self.witness || self.watches.waiting.len() >= MAX_WATCHES {
            let watched = Watched::Unavailable;
            return self.effects.push(Effect::Watched { token, watched });
        }
        self.wait_for(Watcher::Local(token), range, from, LOCAL_HOLD);
    }

    pub(super) fn unwatch(&mut self, token: Token) {
        self.watches.waiting.remove(&Watcher::Local(token));
    }

    /// A client asks.
    pub(super) fn on_watch(&mut self, client: &Name, request: WatchRequest) {
        let WatchRequest {
            id,
            range,
            from,
            hold_ms,
        } = request;
        let watcher = Watcher::Remote(client.clone(), id);
        let of_it = Watcher::Remote(client.clone(), 0)..=Watcher::Remote(client.clone(), u64::MAX);
        let known = self.watches.waiting.contains_key(&watcher);
        let full = self.watches.waiting.len() >= MAX_WATCHES
            || self.watches.waiting.range(of_it).count() >= MAX_WATCHES_OF_ONE;
        let has_state = self.raft.is_some() && self.store.applied() > raft::Index(0);
        if self.witness || !has_state || !known && full || !range.keys_fit(crate::wire::MAX_KEY) {
            let watched = Watched::Unavailable;
            return self.tell(client, id, from, watched);
        }
        let hold = Duration::from_millis(hold_ms.into()).min(MAX_HOLD);
        // Where there is nothing yet, it learns at least that it is being waited for.
        match self.store.changes(&range, from) {
            Watched::Events { events, next } if events.is_empty() => {
                let watched = Watched::Events { events, next };
                self.tell(client, id, from, watched);
            }
            _ => {}
        }
        self.wait_for(watcher, range, from, hold);
    }

    fn wait_for(&mut self, watcher: Watcher, range: KeyRange, from: Cursor, hold: Duration) {
        let waiting = Waiting {
            range,
            asked: from,
            cursor: from,
            until: self.now + hold,
            told: None,
        };
        self.watches.waiting.insert(watcher, waiting);
        self.watches.seen = None;
    }

    /// Tells everyone what there is for them.
    pub(super) fn serve_watches(&mut self) {
        if self.watches.waiting.is_empty() {
            return;
        }
        let revision = self.store.revision();
        let late = self.watches.wake_at.is_some_and(|at| at <= self.now);
        if self.watches.seen == Some(revision) && !late {
            return;
        }
        // Before anything is applied there is no telling what was changed.
        if self.raft.is_none() || self.store.applied() == raft::Index(0) {
            return;
        }
        self.watches.seen = Some(revision);
        let mut waiting = std::mem::take(&mut self.watches.waiting);
        waiting.retain(|watcher, waiting| self.serve_watch(watcher, waiting));
        let wake = |waiting: &Waiting| waiting.told.as_ref().map_or(waiting.until, |told| told.2);
        self.watches.wake_at = waiting.values().map(wake).min();
        self.watches.waiting = waiting;
    }

    /// Tells one what there is for it; whether it goes on waiting.
    fn serve_watch(&mut self, watcher: &Watcher, waiting: &mut Waiting) -> bool {
        if let Some((watched, times, again)) = &mut waiting.told {
            if *again > self.now {
                return true;
            }
            *times += 1;
            *again = self.now + AGAIN.saturating_mul(1 << (*times).min(8));
            let (watched, goes_on) = (watched.clone(), *times < SENT);
            if let Watcher::Remote(client, id) = watcher {
                self.tell(client, *id, waiting.asked, watched);
            }
            return goes_on;
        }
        let watched = self.store.changes(&waiting.range, waiting.cursor);
        let nothing = match &watched {
            Watched::Events { events, next } if events.is_empty() => Some(*next),
            _ => None,
        };
        if let Some(next) = nothing {
            waiting.cursor = next;
            if waiting.until > self.now {
                return true;
            }
        }
        match watcher {
            Watcher::Local(token) => {
                let token = *token;
                self.effects.push(Effect::Watched { token, watched });
                false
            }
            // It asks again by itself.
            Watcher::Remote(..) if nothing.is_some() => false,
            Watcher::Remote(client, id) => {
                self.tell(client, *id, waiting.asked, watched.clone());
                waiting.told = Some((watched, 1, self.now + AGAIN));
                true
            }
        }
    }

    fn tell(&mut self, client: &Name, id: u64, from: Cursor, watched: Watched) {
        let reply = WatchReply { id, from, watched };
        self.endpoint.send(client, &Body::Watched(reply));
    }

    pub(super) fn watches_deadline(&self) -> Option<Time> {
        let any = !self.watches.waiting.is_empty() && self.watches.seen.is_some();
        self.watches.wake_at.filter(|_| any)
    }
}
