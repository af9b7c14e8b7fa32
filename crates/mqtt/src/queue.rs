//! A queue bounded by items and by bytes, between one waiting task and anyone.
//!
//! A bound by items alone lets a thousand large frames take a hundred megabytes; a bound by bytes
//! alone lets a million empty ones do the same. Nothing here waits for room: the caller is told
//! that the queue is full and decides what that means (the publisher drops, the session stops
//! reading from the broker).

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// What an item counts against the bound in bytes.
pub(crate) trait Weight {
    fn weight(&self) -> usize;
}

pub(crate) struct Queue<T> {
    max_items: usize,
    max_bytes: usize,
    state: Mutex<State<T>>,
    not_empty: Notify,
    has_room: Notify,
}

struct State<T> {
    items: VecDeque<T>,
    bytes: usize,
    closed: bool,
}

/// Why an item was not taken; the item itself is handed back.
#[derive(Debug)]
pub(crate) enum Refused<T> {
    Full(T),
    Closed,
}

impl<T: Weight> Queue<T> {
    pub(crate) fn new(max_items: usize, max_bytes: usize) -> Self {
        Self {
            max_items,
            max_bytes,
            state: Mutex::new(State {
                items: VecDeque::new(),
                bytes: 0,
                closed: false,
            }),
            not_empty: Notify::new(),
            has_room: Notify::new(),
        }
    }

    /// Takes the item unless a bound is reached. One item is always taken by an empty queue, so
    /// that an item larger than the bound cannot wait for ever.
    pub(crate) fn try_push(&self, item: T) -> Result<(), Refused<T>> {
        let weight = item.weight();
        let mut state = self.state();
        if state.closed {
            return Err(Refused::Closed);
        }
        let full = state.items.len() >= self.max_items || state.bytes + weight > self.max_bytes;
        if full && !state.items.is_empty() {
            return Err(Refused::Full(item));
        }
        state.bytes += weight;
        state.items.push_back(item);
        drop(state);
        self.not_empty.notify_one();
        Ok(())
    }

    /// Takes the item whatever the bounds: for the few events that must not be lost.
    pub(crate) fn push_over(&self, item: T) {
        let mut state = self.state();
        if state.closed {
            return;
        }
        state.bytes += item.weight();
        state.items.push_back(item);
        drop(state);
        self.not_empty.notify_one();
    }

    pub(crate) fn try_pop(&self) -> Option<T> {
        self.pop_if(|_| true)
    }

    /// Pops the first item if it satisfies `accept`.
    pub(crate) fn pop_if(&self, accept: impl FnOnce(&T) -> bool) -> Option<T> {
        let mut state = self.state();
        if !accept(state.items.front()?) {
            return None;
        }
        let item = state.items.pop_front()?;
        state.bytes -= item.weight();
        drop(state);
        self.has_room.notify_one();
        Some(item)
    }

    /// The next item; `None` once the queue is closed and empty. Safe to cancel.
    pub(crate) async fn pop(&self) -> Option<T> {
        loop {
            if let Some(item) = self.try_pop() {
                return Some(item);
            }
            if self.state().closed {
                return None;
            }
            self.not_empty.notified().await;
        }
    }

    /// Waits for a push since the last wait, or a close. May wake without cause.
    pub(crate) async fn pushed(&self) {
        self.not_empty.notified().await;
    }

    /// Waits for a pop since the last wait, or a close. May wake without cause.
    pub(crate) async fn popped(&self) {
        self.has_room.notified().await;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.state().items.is_empty()
    }

    /// Whether even an empty item would be refused.
    pub(crate) fn is_full(&self) -> bool {
        let state = self.state();
        state.items.len() >= self.max_items || state.bytes >= self.max_bytes
    }

    pub(crate) fn clear(&self) {
        let mut state = self.state();
        state.items.clear();
        state.bytes = 0;
    }

    /// Refuses further items; those inside can still be popped.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.not_empty.notify_one();
        self.has_room.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Weight for usize {
        fn weight(&self) -> usize {
            *self
        }
    }

    #[test]
    fn both_bounds_hold_and_an_oversize_item_passes_alone() {
        let queue = Queue::new(2, 100);
        queue.try_push(500).unwrap();
        assert!(matches!(queue.try_push(1), Err(Refused::Full(1))));
        assert_eq!(queue.try_pop(), Some(500));
        queue.try_push(60).unwrap();
        assert!(matches!(queue.try_push(60), Err(Refused::Full(60))));
        queue.try_push(40).unwrap();
        assert!(matches!(queue.try_push(0), Err(Refused::Full(0))));
        assert_eq!(queue.pop_if(|item| *item == 40), None);
        queue.clear();
        queue.try_push(100).unwrap();
        queue.push_over(7);
        queue.close();
        assert!(matches!(queue.try_push(1), Err(Refused::Closed)));
        assert_eq!((queue.try_pop(), queue.try_pop()), (Some(100), Some(7)));
    }
}
