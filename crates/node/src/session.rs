//! A lease that keeps itself alive, and what is held under it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use raft::Time;
use replica::{Action, KeyRange, LeaseId};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::clock;
use crate::error::{Error, Result};
use crate::kv::Kv;

/// How often a session is kept alive within its time to live.
const RENEWALS: u32 = 3;

/// How soon to try again where no answer came, at least.
const AGAIN: Duration = Duration::from_millis(50);

/// A lease that is kept alive until it is ended, dropped or lost. Clones are handles to the same.
///
/// What is held under it (locks, elections, keys) is certain only while [`Session::is_alive`]: from
/// the last keep-alive that a quorum confirmed, counted from when it was asked for, on a clock that
/// counts suspend. Once that time has passed the session stays ended, even if the lease still lives.
#[derive(Clone, Debug)]
pub struct Session {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    kv: Kv,
    lease: LeaseId,
    ttl: Duration,
    /// `None` once it has ended.
    until: Arc<watch::Sender<Option<Time>>>,
    entries: AtomicU64,
    keeper: JoinHandle<()>,
    /// For what is left to do when it, or what is held under it, is dropped, on whatever thread.
    runtime: Handle,
}

impl Session {
    /// Begins a session whose lease lives `ttl` unless it is kept alive, which happens three times in
    /// that time. 100 ms to a year; below a second, a busy broker or disk ends it.
    ///
    /// # Errors
    /// As [`Kv::grant`].
    pub async fn begin(kv: &Kv, ttl: Duration) -> Result<Session> {
        let granted = kv.grant(ttl).await?;
        let (lease, ttl) = (granted.lease(), Duration::from_millis(granted.grant.ttl_ms));
        let until = Arc::new(watch::Sender::new(Some(granted.until())));
        let keeper = tokio::spawn(keep_alive(kv.clone(), lease, ttl, Arc::clone(&until)));
        Ok(Session {
            inner: Arc::new(Inner {
                kv: kv.clone(),
                lease,
                ttl,
                until,
                entries: AtomicU64::new(0),
                keeper,
                runtime: Handle::current(),
            }),
        })
    }

    /// Its lease.
    pub fn lease(&self) -> LeaseId {
        self.inner.lease
    }

    /// How long the lease lives without being kept alive.
    pub fn ttl(&self) -> Duration {
        self.inner.ttl
    }

    /// The state that it is a session of.
    pub fn kv(&self) -> &Kv {
        &self.inner.kv
    }

    /// Until when it certainly lives, on the clock of [`crate::now`]; `None` once it has ended.
    pub fn until(&self) -> Option<Time> {
        let until = *self.inner.until.borrow();
        until.filter(|until| clock::now() < *until)
    }

    /// Every change of that, to come. What was certain may have passed meanwhile: compare with
    /// [`crate::now`].
    pub fn watch_until(&self) -> watch::Receiver<Option<Time>> {
        self.inner.until.subscribe()
    }

    /// Whether it certainly lives at this moment.
    pub fn is_alive(&self) -> bool {
        self.until().is_some()
    }

    /// Waits until it no longer certainly lives. During a suspend of the machine nobody waits:
    /// [`Session::is_alive`] is right at once afterwards, this a little later.
    pub async fn ended(&self) {
        let mut changes = self.watch_until();
        while let Some(until) = self.until() {
            let rest = until.since(clock::now());
            // In pieces: a sleep does not count suspend.
            let rest = rest.min(Duration::from_secs(1));
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Ends it: what is held under it goes at once. From the call on, no handle takes it for alive.
    ///
    /// # Errors
    /// As [`Kv::revoke`], but for a lease that had ended before; the lease then ends when its time is
    /// over.
    pub async fn end(&self) -> Result<()> {
        self.inner.stop();
        match self.inner.kv.revoke(self.inner.lease).await {
            Ok(_) | Err(Error::NoSuchLease) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes a key of this session in the background: again and again, since whoever waits for it to
    /// go would else wait as long as the session lives.
    pub(crate) fn remove_soon(&self, key: Bytes) {
        self.remove_soon_and_after(key, None);
    }

    /// The same, and once more after `late`, where the key may be written until then.
    pub(crate) fn remove_soon_and_after(&self, key: Bytes, late: Option<Duration>) {
        let (kv, until) = (self.inner.kv.clone(), self.watch_until());
        self.inner.runtime.spawn(async move {
            remove(&kv, &key, &until).await;
            if let Some(late) = late {
                tokio::time::sleep(late).await;
                remove(&kv, &key, &until).await;
            }
        });
    }

    /// A number that no other entry of this session has.
    pub(crate) fn next_entry(&self) -> u64 {
        self.inner.entries.fetch_add(1, Ordering::Relaxed)
    }
}

impl Inner {
    /// It is kept alive no more, and what it was certain of it is no longer: others may be let in.
    fn stop(&self) {
        self.keeper.abort();
        self.until.send_replace(None);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
        // What is held goes soon rather than when its time is over, if the runtime still runs.
        let (kv, lease) = (self.kv.clone(), self.lease);
        self.runtime.spawn(async move {
            let _ = kv.revoke(lease).await;
        });
    }
}

/// Removes a key, unless the session that it goes with ends before that is done.
async fn remove(kv: &Kv, key: &Bytes, until: &watch::Receiver<Option<Time>>) {
    let delete = Action::Delete(KeyRange::Key(key.clone()));
    loop {
        match kv.act([], [delete.clone()]).await {
            Ok(_) | Err(Error::Closed) => return,
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
        let lives = until.borrow().is_some_and(|until| clock::now() < until);
        if !lives {
            return;
        }
    }
}

/// Keeps a lease alive until it is lost.
async fn keep_alive(
    kv: Kv,
    lease: LeaseId,
    ttl: Duration,
    until: Arc<watch::Sender<Option<Time>>>,
) {
    let interval = ttl / RENEWALS;
    let kv = kv.with_timeout(interval.max(AGAIN));
    loop {
        let Some(end) = *until.borrow() else { return };
        let now = clock::now();
        if now >= end {
            until.send_replace(None);
            return;
        }
        // Of a time to live, two thirds are left when it is next asked for.
        let left = end.since(now);
        let wait = left.saturating_sub(interval.saturating_mul(RENEWALS - 1));
        tokio::time::sleep(wait.max(AGAIN.min(interval / 4))).await;
        match kv.keep_alive(lease).await {
            Ok(granted) => {
                let newer = granted.until();
                until.send_if_modified(|until| {
                    let certain = until.is_some_and(|end| clock::now() < end);
                    *until = certain.then_some(newer).max(until.filter(|_| certain));
                    true
                });
            }
            Err(Error::NoSuchLease | Error::Closed) => {
                until.send_replace(None);
                return;
            }
            Err(_) => {}
        }
    }
}
