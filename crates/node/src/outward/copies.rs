//! One request, by several brokers.
//!
//! Each broker's clients are served in a session of its own. Where two brokers are bridged, or one is
//! listed under two addresses, one request comes in both, and would be done twice. An MQTT message has
//! no number; but a second message in the same words by the same session is another message, and one by
//! another session, right after, is its copy.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use raft::Time;
use replica::Link;

/// By how much a copy comes later at most: a bridge takes milliseconds, and who asks again because no
/// answer came waits longer.
const WINDOW: Duration = Duration::from_secs(1);

/// How many requests are remembered. Beyond that, which is more than are answered in the window, copies
/// are not told apart.
const MAX_REQUESTS: usize = 1_024;

/// The requests of late, of all sessions.
#[derive(Default)]
pub(crate) struct Copies {
    hasher: RandomState,
    requests: Mutex<BTreeMap<u64, Came>>,
}

/// How often a request in these words came, by each session.
struct Came {
    first_at: Time,
    times: [u32; Link::MAX],
}

impl Copies {
    /// Takes note of a message. True if it came by another session already.
    pub(crate) fn is_copy(&self, message: &mqtt::Incoming, over: Link, now: Time) -> bool {
        let mqtt::Incoming {
            topic,
            payload,
            properties,
            ..
        } = message;
        let words = self.hasher.hash_one((
            topic,
            payload,
            &properties.response_topic,
            &properties.correlation_data,
        ));
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let is_late = |came: &Came| now.since(came.first_at) > WINDOW;
        if requests.len() >= MAX_REQUESTS {
            requests.retain(|_, came| !is_late(came));
        }
        if requests.get(&words).is_some_and(is_late) {
            requests.remove(&words);
        }
        if requests.len() >= MAX_REQUESTS && !requests.contains_key(&words) {
            return false;
        }
        let came = requests.entry(words).or_insert(Came {
            first_at: now,
            times: [0; Link::MAX],
        });
        let most = came.times.iter().copied().max().unwrap_or_default();
        let times = &mut came.times[over.place()];
        *times = times.saturating_add(1);
        *times <= most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Link = Link::FIRST;

    fn b() -> Link {
        Link::new(1).expect("a second broker")
    }

    fn request(words: &'static str) -> mqtt::Incoming {
        mqtt::Incoming {
            topic: "raft/plant/req/panel".to_owned(),
            payload: words.into(),
            retained: false,
            properties: mqtt::Properties::default(),
        }
    }

    #[test]
    fn a_copy_by_another_session_is_told_from_a_repetition() {
        let copies = Copies::default();
        let open = request("open");
        let comes = |over, at| copies.is_copy(&open, over, Time(at));
        assert!(!comes(A, 0));
        assert!(comes(b(), 1_000), "by the bridge");
        assert!(!comes(A, 2_000), "said again");
        assert!(!comes(A, 3_000), "and again");
        assert!(comes(b(), 4_000));
        assert!(comes(b(), 5_000));
        assert!(!comes(b(), 6_000), "once more than by the other");
        assert!(comes(A, 7_000));
        assert!(!copies.is_copy(&request("close"), b(), Time(8_000)));
    }

    /// Whoever asks another broker because the first gave no answer is answered.
    #[test]
    fn what_comes_later_is_asked_anew() {
        let copies = Copies::default();
        let open = request("open");
        assert!(!copies.is_copy(&open, A, Time(0)));
        let late = Time(0) + WINDOW + Duration::from_millis(1);
        assert!(!copies.is_copy(&open, b(), late));
        assert!(copies.is_copy(&open, A, late));
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let copies = Copies::default();
        let words: Vec<&'static str> = (0..2 * MAX_REQUESTS)
            .map(|n| &*n.to_string().leak())
            .collect();
        for words in &words {
            assert!(!copies.is_copy(&request(words), A, Time(0)));
        }
        let remembered = |copies: &Copies| copies.requests.lock().expect("no panic").len();
        assert_eq!(remembered(&copies), MAX_REQUESTS);
        let late = Time(0) + 2 * WINDOW;
        assert!(!copies.is_copy(&request("last"), A, late));
        assert_eq!(remembered(&copies), 1);
    }
}
