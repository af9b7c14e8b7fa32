//! The replicated state as its users hold it: keys, transactions, leases and watches, the same from a
//! node and from a [`Client`](crate::Client).

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use raft::Time;
use replica::{
    Action, ActionResult, Condition, Cursor, Done, KeyEvent, KeyRange, KeyValue, LeaseGrant,
    LeaseId, LeaseStatus, Members, Operation, RangeReading, RangeRequest, RequestError, Transacted,
    Transaction, Value, Watched, Write, Written,
};
use tokio::sync::{mpsc, oneshot};

use crate::clock;
use crate::driver::Command;
use crate::error::{Error, Result};

/// What a [`Kv`] asks of whoever runs it: a node, or a client.
#[derive(Debug)]
pub(crate) enum Ask {
    Request {
        operation: Operation,
        timeout: Duration,
        answer: oneshot::Sender<std::result::Result<Done, RequestError>>,
    },
    Watch {
        range: KeyRange,
        from: Cursor,
        answer: oneshot::Sender<Watched>,
    },
}

/// The replicated state. Clones are handles to the same; one from a node keeps that node running.
///
/// Keys have at most 1 KiB, values 64 KiB, all together 64 MiB. A revision counts changes: what one
/// write or transaction changes has one revision, the same on every node. Keys that begin with `_/`
/// belong to the cluster; no range holds them that does not begin so itself.
///
/// ```no_run
/// use raft_over_mqtt::{KeyEvent, KeyRange, Kv};
///
/// # async fn example(kv: Kv) -> raft_over_mqtt::Result<()> {
/// kv.put("door/1", "open").await?;
/// let (doors, mut changes) = kv.list_and_watch(KeyRange::Prefix("door/".into())).await?;
/// println!("{} doors", doors.len());
/// while let KeyEvent::Put(door) = changes.next().await? {
///     println!("{:?} is {:?} at revision {}", door.key, door.value, door.modified);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Kv {
    asks: Asks,
    timeout: Duration,
}

/// Whom a [`Kv`] asks.
#[derive(Clone, Debug)]
pub(crate) enum Asks {
    Node(mpsc::Sender<Command>),
    /// A node that is not kept running by it.
    OwnNode(mpsc::WeakSender<Command>),
    Client(mpsc::Sender<Ask>),
}

impl Asks {
    async fn send(&self, ask: Ask) -> Result<()> {
        let sent = match self {
            Asks::Node(node) => node.send(Command::Ask(ask)).await.is_ok(),
            Asks::OwnNode(node) => match node.upgrade() {
                Some(node) => node.send(Command::Ask(ask)).await.is_ok(),
                None => false,
            },
            Asks::Client(client) => client.send(ask).await.is_ok(),
        };
        sent.then_some(()).ok_or(Error::Closed)
    }
}

impl Kv {
    pub(crate) fn new(asks: Asks, timeout: Duration) -> Kv {
        Kv { asks, timeout }
    }

    /// The same with another bound on how long a request may take; default 10 s.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Kv {
        Kv { timeout, ..self }
    }

    /// How long a request may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Changes the state. Done once a majority has it on disk; a retry on the way is applied once.
    ///
    /// # Errors
    /// [`Error::Unknown`] if no answer came in time: the write may have been applied or may yet be.
    /// [`Error::TimedOut`], [`Error::TooLarge`], [`Error::Busy`], [`Error::Full`],
    /// [`Error::NoSuchLease`], [`Error::Refused`], [`Error::NotYet`]: nothing was changed.
    pub async fn propose(&self, write: Write) -> Result<Written> {
        match self.request(Operation::Write(write)).await? {
            Done::Written(written) => Ok(written),
            _ => Err(Error::Unexpected),
        }
    }

    /// Sets a key.
    ///
    /// # Errors
    /// As [`Kv::propose`].
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Written> {
        self.put_with(key, value, None).await
    }

    /// Sets a key that goes when the lease ends.
    ///
    /// # Errors
    /// As [`Kv::propose`].
    pub async fn put_with(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        lease: Option<LeaseId>,
    ) -> Result<Written> {
        let (key, value) = (key.into(), value.into());
        self.propose(Write::Put { key, value, lease }).await
    }

    /// Removes a key; `applied` says whether it was there.
    ///
    /// # Errors
    /// As [`Kv::propose`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Written> {
        self.propose(Write::Delete { key: key.into() }).await
    }

    /// Sets a key, or removes it for a `value` of `None`, if it has the expected value, where `None`
    /// expects it to be absent; `applied` says whether it had.
    ///
    /// # Errors
    /// As [`Kv::propose`].
    pub async fn compare_and_swap(
        &self,
        key: impl Into<Bytes>,
        expected: Option<Bytes>,
        value: Option<Bytes>,
    ) -> Result<Written> {
        let write = Write::compare_and_swap(key, expected, value);
        self.propose(write).await
    }

    /// If all conditions hold carries out `then`, else `otherwise`: all of it at one revision, or
    /// nothing.
    ///
    /// # Errors
    /// As [`Kv::propose`].
    pub async fn transact(&self, transaction: Transaction) -> Result<Transacted> {
        let write = Write::Transaction(transaction);
        match self.request(Operation::Write(write)).await? {
            Done::Transacted(done) => Ok(done),
            _ => Err(Error::Unexpected),
        }
    }

    /// Adds to a key whose value is a decimal number, or sets it if it is absent, and returns the sum.
    /// However many add at once, none is lost.
    ///
    /// # Errors
    /// As [`Kv::propose`]; [`Error::Refused`] if the value is no number or the sum does not fit.
    pub async fn add(&self, key: impl Into<Bytes>, delta: i64) -> Result<i64> {
        let key = key.into();
        let done = self.act([], [Action::Add { key, delta }]).await?;
        match done.results.first() {
            Some(ActionResult::Sum(sum)) => Ok(*sum),
            _ => Err(Error::Unexpected),
        }
    }

    pub(crate) async fn act(
        &self,
        conditions: impl Into<Vec<Condition>>,
        then: impl Into<Vec<Action>>,
    ) -> Result<Transacted> {
        self.transact(Transaction {
            conditions: conditions.into(),
            then: then.into(),
            otherwise: Vec::new(),
        })
        .await
    }

    /// Reads a key, linearizably: what was written before the call is seen.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if no leader answered in time.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<KeyValue>> {
        let request = RangeRequest::all(KeyRange::Key(key.into()));
        Ok(self.range(request).await?.pairs.pop())
    }

    /// Reads a range, linearizably, as much as one answer holds: about 64 KiB.
    ///
    /// # Errors
    /// As [`Kv::get`].
    pub async fn range(&self, request: RangeRequest) -> Result<RangeReading> {
        match self.request(Operation::Range(request)).await? {
            Done::Range(reading) => Ok(reading),
            _ => Err(Error::Unexpected),
        }
    }

    /// Reads a whole range, answer by answer: each is linearizable, but a key may change between two.
    /// The revision is that of the first; whoever watches from the one after it misses nothing.
    ///
    /// # Errors
    /// As [`Kv::get`].
    pub async fn list(&self, range: KeyRange) -> Result<RangeReading> {
        let mut request = RangeRequest::all(range);
        let mut all = self.range(request.clone()).await?;
        while all.more
            && let Some(last) = all.pairs.last()
        {
            request.after = Some(Value(last.key.clone()));
            let next = self.range(request.clone()).await?;
            all.pairs.extend(next.pairs);
            all.more = next.more;
        }
        Ok(all)
    }

    /// Every change of a range from a revision on, itself included.
    pub fn watch(&self, range: KeyRange, from: u64) -> Watch {
        Watch {
            kv: self.clone(),
            range,
            cursor: Cursor::from(from),
            events: VecDeque::new(),
        }
    }

    pub(crate) fn watch_from(&self, range: KeyRange, from: Cursor) -> Watch {
        Watch {
            cursor: from,
            ..self.watch(range, from.revision)
        }
    }

    /// Who belongs to the cluster, linearizably.
    pub(crate) async fn members(&self) -> Result<Members> {
        match self.request(Operation::Members).await? {
            Done::Members(members) => Ok(members),
            _ => Err(Error::Unexpected),
        }
    }

    /// A range as it stands, and every change from then on.
    ///
    /// # Errors
    /// As [`Kv::get`].
    pub async fn list_and_watch(&self, range: KeyRange) -> Result<(Vec<KeyValue>, Watch)> {
        let list = self.list(range.clone()).await?;
        Ok((list.pairs, self.watch(range, list.revision + 1)))
    }

    // Leases. [`Session`](crate::Session) is a lease that keeps itself alive.

    /// Begins a lease that lives `ttl`, 100 ms to a year, unless it is kept alive.
    ///
    /// # Errors
    /// As [`Kv::propose`].
    pub async fn grant(&self, ttl: Duration) -> Result<Granted> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let operation = Operation::Write(Write::Grant { ttl_ms });
        self.granted(operation).await
    }

    /// Lets a lease live for its whole time again from now on.
    ///
    /// # Errors
    /// [`Error::NoSuchLease`] if it has ended; [`Error::TimedOut`] if no leader answered in time.
    pub async fn keep_alive(&self, lease: LeaseId) -> Result<Granted> {
        self.granted(Operation::KeepAlive(lease)).await
    }

    async fn granted(&self, operation: Operation) -> Result<Granted> {
        let asked_at = clock::now();
        match self.request(operation).await? {
            Done::Granted(grant) => Ok(Granted { grant, asked_at }),
            _ => Err(Error::Unexpected),
        }
    }

    /// Ends a lease and removes what goes with it.
    ///
    /// # Errors
    /// As [`Kv::propose`]; [`Error::NoSuchLease`] if it had ended.
    pub async fn revoke(&self, lease: LeaseId) -> Result<Written> {
        self.propose(Write::Revoke(lease)).await
    }

    /// How a lease stands.
    ///
    /// # Errors
    /// [`Error::NoSuchLease`] if there is none, or none any more; [`Error::TimedOut`].
    pub async fn lease(&self, lease: LeaseId) -> Result<LeaseStatus> {
        match self.request(Operation::Lease(lease)).await? {
            Done::Lease(status) => Ok(status),
            _ => Err(Error::Unexpected),
        }
    }

    /// All leases, in order.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if no leader answered in time.
    pub async fn leases(&self) -> Result<Vec<LeaseId>> {
        let mut all = Vec::new();
        loop {
            let after = all.last().copied().unwrap_or(LeaseId::NONE);
            match self.request(Operation::Leases(after)).await? {
                Done::Leases(leases) if leases.is_empty() => return Ok(all),
                Done::Leases(leases) => all.extend(leases),
                _ => return Err(Error::Unexpected),
            }
        }
    }

    async fn request(&self, operation: Operation) -> Result<Done> {
        let (answer, answered) = oneshot::channel();
        let timeout = self.timeout;
        let ask = Ask::Request {
            operation,
            timeout,
            answer,
        };
        self.asks.send(ask).await?;
        let result = answered.await.map_err(|_| Error::Closed)?;
        result.map_err(|error| Error::of_request(error, timeout))
    }
}

/// A lease as it was granted or kept alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Which lease, and for how long.
    pub grant: LeaseGrant,
    /// When it was asked for.
    pub asked_at: Time,
}

impl Granted {
    /// Which lease.
    pub fn lease(&self) -> LeaseId {
        self.grant.lease
    }

    /// Until when it certainly lives, on this machine's clock that counts suspend: the whole time
    /// from when it was asked for, less what clocks may drift.
    pub fn until(&self) -> Time {
        self.asked_at + self.grant.certain()
    }
}

/// Changes of a range, in order, none left out and none told twice, whatever node answers.
#[derive(Debug)]
pub struct Watch {
    kv: Kv,
    range: KeyRange,
    cursor: Cursor,
    events: VecDeque<KeyEvent>,
}

impl Watch {
    /// The next change, as soon as there is one. Safe to cancel.
    ///
    /// # Errors
    /// [`Error::Compacted`] if changes that were not seen are no longer kept: the newest 10,000 are,
    /// as far as they are no larger than 4 MiB. [`Error::Closed`], and [`Error::Refused`] at a
    /// witness.
    pub async fn next(&mut self) -> Result<KeyEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            self.fetch().await?;
        }
    }

    /// The next changes, all that one answer held, as soon as there are any. Safe to cancel.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub async fn next_batch(&mut self) -> Result<Vec<KeyEvent>> {
        while self.events.is_empty() {
            self.fetch().await?;
        }
        Ok(std::mem::take(&mut self.events).into())
    }

    /// Where it goes on after what [`Watch::next_batch`] gave last.
    pub(crate) fn cursor(&self) -> Cursor {
        self.cursor
    }

    async fn fetch(&mut self) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        let ask = Ask::Watch {
            range: self.range.clone(),
            from: self.cursor,
            answer,
        };
        self.kv.asks.send(ask).await?;
        match answered.await.map_err(|_| Error::Closed)? {
            Watched::Events { events, next } => {
                self.cursor = next;
                self.events = events.into();
                Ok(())
            }
            Watched::Compacted { oldest } => Err(Error::Compacted { oldest }),
            Watched::Unavailable => Err(Error::Refused(
                "this node holds no state to watch, or too many watch it".to_owned(),
            )),
        }
    }
}
