//! Callers: on nodes and in clients of their own, each wanting something every now and then.

use bytes::Bytes;
use replica::{Input, Operation, Token, Value, Write};

use crate::event::Event;
use crate::node::REQUEST_TIMEOUT;
use crate::world::World;

/// Few keys, so that callers meet.
const KEYS: u64 = 5;

/// What a key was last known to hold is what compare-and-swap expects, most of the time.
const RECENT: u64 = 4;

impl World {
    /// Someone asks for something.
    pub(crate) fn operation(&mut self) {
        let wait = self.rng.exponential(self.plan.profile.operation_every);
        let at = self.plan.profile.calls_at(self.now + wait);
        self.queue.push(at, Event::Operation);
        let callers: Vec<usize> = (0..self.hosts.len())
            .filter(|host| self.hosts[*host].process.is_some())
            .collect();
        let Some(host) = self.rng.pick(&callers).copied() else {
            return;
        };
        let operation = self.draw_operation();
        self.request(host, operation);
    }

    pub(crate) fn request(&mut self, host: usize, operation: Operation) -> Token {
        let token = self.history.call(operation.clone(), self.now);
        self.trace(host, || format!("request {}: {operation:?}", token.0));
        if self.faults_end {
            self.asked.insert(token, host);
        }
        self.arrive(
            host,
            Input::Request {
                token,
                operation,
                timeout: REQUEST_TIMEOUT,
            },
        );
        token
    }

    fn draw_operation(&mut self) -> Operation {
        let key = self.draw_key_name();
        match self.rng.below(10) {
            _ if self.plan.profile.writes_only => self.draw_put(key),
            0..=3 => Operation::Get(key),
            4..=6 => self.draw_put(key),
            7 => Operation::Write(Write::Delete { key }),
            _ => {
                let expected = self.draw_expected();
                let value = match self.rng.below(5) {
                    0 => None,
                    _ => Some(Value(self.draw_value())),
                };
                Operation::Write(Write::CompareAndSwap {
                    key,
                    expected,
                    value,
                })
            }
        }
    }

    pub(crate) fn draw_key_name(&mut self) -> Bytes {
        format!("k{}", self.rng.below(KEYS)).into()
    }

    pub(crate) fn draw_put(&mut self, key: Bytes) -> Operation {
        let value = self.draw_value();
        Operation::Write(Write::Put {
            key,
            value,
            lease: None,
        })
    }

    /// No two values are equal, so that each tells who wrote it.
    fn draw_value(&mut self) -> Bytes {
        self.last_value += 1;
        let padding = match self.plan.profile.bulk {
            true => self.rng.below(60_000) as usize,
            false => 0,
        };
        let mut value = format!("v{}", self.last_value).into_bytes();
        value.resize(value.len() + padding, b'.');
        let value: Bytes = value.into();
        self.recent.push_back(value.clone());
        if self.recent.len() as u64 > RECENT {
            self.recent.pop_front();
        }
        value
    }

    fn draw_expected(&mut self) -> Option<Value> {
        let recent: Vec<Bytes> = self.recent.iter().cloned().collect();
        match self.rng.below(4) {
            0 => None,
            _ => self.rng.pick(&recent).cloned().map(Value),
        }
    }
}
