//! What is going to happen, ordered by time and then by when it was decided.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;

use bytes::Bytes;
use replica::Publish;

/// True time in microseconds since the world began.
pub(crate) type Micros = u64;

pub(crate) const MS: Micros = 1_000;
pub(crate) const SECOND: Micros = 1_000_000;

/// One thing that happens at one time.
#[derive(Debug)]
pub(crate) enum Event {
    /// A publish reaches the broker.
    Upward { session: u64, publish: Publish },
    /// What a broker sent reaches a host.
    Downward {
        host: usize,
        session: u64,
        delivery: Delivery,
    },
    /// A host tries to get a session over a link without one.
    Connect { host: usize, life: u64, link: usize },
    /// A host learns that its session is gone.
    HostNotices { host: usize, session: u64 },
    /// The broker learns that a session is gone, and publishes its will.
    BrokerNotices { session: u64 },
    /// Keepalive: whoever was cut off or silent for so long is given up.
    Overdue { host: usize, session: u64 },
    /// A will comes late.
    Will { broker: usize, will: Publish },
    /// A cut link works again, or all of a host's.
    Heal { host: usize, link: Option<usize> },
    /// A broker is back.
    BrokerStarts { broker: usize },
    /// A broker dies and comes back, so many times more.
    BrokerFlaps { broker: usize, times: u64 },
    /// A process takes what has arrived.
    Wake { host: usize, life: u64 },
    /// A process's own deadline.
    Timer { host: usize, life: u64 },
    /// A batch of writes is durable.
    Written { host: usize, life: u64 },
    /// A stopped process goes on.
    Resume { host: usize, life: u64 },
    /// A host starts its process.
    Start { host: usize },
    /// Something goes wrong: the plan's strike of this number.
    Fault { number: usize },
    /// A client id is taken by someone else, so many times more.
    Rival { host: usize, times: u64 },
    /// A plot kills a process.
    Fall { host: usize, life: u64 },
    /// Someone at a node wants something, so many times more.
    Ask {
        host: usize,
        reads: bool,
        times: u64,
        every: Micros,
    },
    /// Whoever acted on a node's being the only leader has stopped.
    LetsGo { host: usize, life: u64 },
    /// The metrics of all nodes change, so many times more.
    Swing { times: u64, every: Micros },
    /// The broker gives a session up; the host does not learn it.
    BrokerDrops { session: u64 },
    /// A plot is over.
    PlotEnds { number: u64 },
    /// The broker saves what it retains.
    Save,
    /// A caller wants something.
    Operation,
    /// Those who use the state see to what is theirs.
    State,
}

/// What a broker sends to a host.
#[derive(Clone, Debug)]
pub(crate) enum Delivery {
    Connected {
        epoch: u64,
    },
    Message {
        topic: Rc<str>,
        payload: Bytes,
        retained: bool,
        /// QoS 0: may be lost. A status is at QoS 1.
        at_most_once: bool,
        /// What went wrong with it on its way.
        mark: Option<&'static str>,
    },
}

impl Delivery {
    pub(crate) fn is_at_most_once(&self) -> bool {
        match self {
            Delivery::Connected { .. } => false,
            Delivery::Message { at_most_once, .. } => *at_most_once,
        }
    }
}

/// The events to come. The heap holds keys only: events are large.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    order: BinaryHeap<Reverse<Key>>,
    slots: Vec<Option<Event>>,
    free: Vec<u32>,
    next: u64,
}

/// When, then which was decided first, then where it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key(Micros, u64, u32);

impl Queue {
    pub(crate) fn push(&mut self, at: Micros, event: Event) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(event);
                slot
            }
            None => {
                self.slots.push(Some(event));
                self.slots.len() as u32 - 1
            }
        };
        self.order.push(Reverse(Key(at, self.next, slot)));
        self.next += 1;
    }

    /// The next event, if it comes before `end`.
    pub(crate) fn pop(&mut self, end: Micros) -> Option<(Micros, Event)> {
        let Reverse(Key(at, _, slot)) = *self.order.peek()?;
        if at >= end {
            return None;
        }
        self.order.pop();
        self.free.push(slot);
        let event = self.slots[slot as usize].take();
        Some((at, event.expect("each key has its event")))
    }
}
