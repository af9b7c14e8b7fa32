//! A client's watches: asked for piece by piece, asked again until a node says that it has heard.

use std::collections::BTreeMap;
use std::time::Duration;

use raft::Time;

use crate::requests::Token;
use crate::state::{Cursor, KeyRange, Watched};
use crate::wire::{WatchReply, WatchRequest};

/// How long a node waits for a change before it is asked again.
const HOLD: Duration = Duration::from_secs(20);

/// How soon a question that nobody has heard is asked again; doubled twice.
const AGAIN: Duration = Duration::from_millis(250);

/// The questions of one client that have no answer yet.
#[derive(Default)]
pub(crate) struct Following {
    asked: BTreeMap<Token, Asked>,
}

struct Asked {
    range: KeyRange,
    from: Cursor,
    /// How far there is nothing for it.
    quiet: Cursor,
    ask_at: Time,
    times: u32,
}

impl Following {
    pub(crate) fn ask(&mut self, token: Token, range: KeyRange, from: Cursor, now: Time) {
        let asked = Asked {
            range,
            from,
            quiet: from,
            ask_at: now,
            times: 0,
        };
        self.asked.insert(token, asked);
    }

    pub(crate) fn forget(&mut self, token: Token) {
        self.asked.remove(&token);
    }

    /// Another node is asked from now on, or the same in another session: an answer may be lost.
    pub(crate) fn ask_again(&mut self, now: Time) {
        self.asked.values_mut().for_each(|asked| asked.ask_at = now);
    }

    /// What to ask now; whether the node that is asked seems not to be there.
    pub(crate) fn due(&mut self, now: Time) -> (Vec<WatchRequest>, bool) {
        let (mut due, mut unheard) = (Vec::new(), false);
        for (token, asked) in &mut self.asked {
            if now < asked.ask_at {
                continue;
            }
            unheard |= asked.times > 0;
            asked.ask_at = now + AGAIN.saturating_mul(1 << asked.times.min(2));
            asked.times += 1;
            asked.from = asked.quiet;
            due.push(WatchRequest {
                id: token.0,
                range: asked.range.clone(),
                from: asked.from,
                hold_ms: HOLD.as_millis() as u32,
            });
        }
        (due, unheard)
    }

    /// Takes an answer; what the caller is to be told.
    pub(crate) fn on_reply(&mut self, reply: WatchReply, now: Time) -> Option<(Token, Watched)> {
        let token = Token(reply.id);
        let asked = self.asked.get_mut(&token)?;
        if reply.from != asked.from {
            return None;
        }
        match reply.watched {
            Watched::Events { events, next } if events.is_empty() => {
                // It was heard: the answer comes, unless it gets lost.
                asked.quiet = asked.quiet.max(next);
                asked.ask_at = now + HOLD;
                asked.times = 0;
                None
            }
            Watched::Unavailable => None,
            watched => {
                self.asked.remove(&token);
                Some((token, watched))
            }
        }
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.asked.values().map(|asked| asked.ask_at).min()
    }
}
