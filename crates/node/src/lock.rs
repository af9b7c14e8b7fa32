//! Locks, semaphores and named elections: queues of keys under leases.
//!
//! Whoever wants in writes a key of its own under its session's lease, beside those of the others. The
//! first so many, by the revisions at which their keys came to be, are in; the others wait for keys
//! before theirs to go, which a watch tells. So it is first come, first served, in the order of the
//! log; whoever ends, is dropped or loses its lease leaves the queue; and the revision of the key is a
//! token that only ever grows from holder to holder.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use raft::Time;
use replica::{
    Action, ActionResult, Comparison, Condition, KeyEvent, KeyRange, KeyValue, Target, Transaction,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::{Error, Result};
use crate::kv::Kv;
use crate::session::Session;

/// The longest name of a lock, a semaphore or an election, in bytes.
pub const MAX_LOCK_NAME: usize = 256;

/// How long a frame may be on its way after its sender has given it up.
const LATE: Duration = Duration::from_secs(1);

/// What proves to others that a lock is held later than it was by whoever had it before: it only ever
/// grows, for one name. Whatever the lock protects is to remember the greatest it has seen, and refuse
/// what comes with a lesser one. It is another type than
/// [`LeadershipToken`](crate::LeadershipToken): the two are not to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockToken(u64);

impl LockToken {
    /// As a number.
    pub fn value(self) -> u64 {
        self.0
    }
}

impl fmt::Display for LockToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A place in a lock, a semaphore or an election that is one's own. Dropped, it is left soon;
/// [`Held::release`] says when.
#[derive(Debug)]
pub struct Held {
    entry: Entry,
    token: LockToken,
    term: u64,
    /// Somebody removed the key, as an operator can.
    removed: watch::Receiver<bool>,
    looker: JoinHandle<()>,
}

impl Held {
    /// Its fencing token.
    pub fn token(&self) -> LockToken {
        self.token
    }

    /// The term of the leader that logged it.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Until when it is certainly one's own, on the clock of [`crate::now`], as long as the session is
    /// kept alive; `None` once it is not.
    pub fn until(&self) -> Option<Time> {
        self.entry
            .session
            .until()
            .filter(|_| !*self.removed.borrow())
    }

    /// Whether it is certainly one's own at this moment. What takes long afterwards needs the token.
    pub fn is_held(&self) -> bool {
        self.until().is_some()
    }

    /// Waits until it is no longer certainly one's own: the session has ended, or somebody has removed
    /// the key, of which one learns as soon as a watch tells.
    pub async fn lost(&self) {
        let mut removed = self.removed.clone();
        tokio::select! {
            () = self.entry.session.ended() => {}
            Ok(_) = removed.wait_for(|removed| *removed) => {}
        }
    }

    /// The session that it is held under.
    pub fn session(&self) -> &Session {
        &self.entry.session
    }

    /// Leaves it to the next.
    ///
    /// # Errors
    /// As [`Kv::propose`]. It is then left, as where this is cancelled, as soon as that can be done, or
    /// else when the session ends.
    pub async fn release(mut self) -> Result<()> {
        self.entry.leave().await
    }
}

impl Session {
    /// Waits for a lock. First come, first served. Safe to cancel: whoever no longer waits leaves the
    /// queue.
    ///
    /// # Errors
    /// [`Error::Refused`] for a name that is too long, empty or holds `/`; [`Error::NoSuchLease`] if
    /// the session ended meanwhile; what [`Kv::propose`] says.
    pub async fn lock(&self, name: &str) -> Result<Held> {
        self.semaphore(name, 1).await
    }

    /// Takes a lock if nobody has it; `None` if somebody has.
    ///
    /// # Errors
    /// As [`Session::lock`].
    pub async fn try_lock(&self, name: &str) -> Result<Option<Held>> {
        self.try_semaphore(name, 1).await
    }

    /// Waits for one of `permits` places. All that share a name must say the same number: whoever
    /// finds another that is before it is refused.
    ///
    /// # Errors
    /// As [`Session::lock`].
    pub async fn semaphore(&self, name: &str, permits: u32) -> Result<Held> {
        let value = permits.to_string();
        let mut place = Place::take(self, queue("_/lock/", name)?, value.into()).await?;
        place.agree(permits)?;
        place.wait(permits).await
    }

    /// Takes one of `permits` places if one is free.
    ///
    /// # Errors
    /// As [`Session::lock`].
    pub async fn try_semaphore(&self, name: &str, permits: u32) -> Result<Option<Held>> {
        let value = permits.to_string();
        let mut place = Place::take(self, queue("_/lock/", name)?, value.into()).await?;
        place.agree(permits)?;
        if place.before.len() < permits.max(1) as usize {
            return Ok(Some(place.held()));
        }
        place.entry.leave().await?;
        Ok(None)
    }

    /// Stands in a named election and waits until it is won; `value` is what others see of the winner.
    /// First come, first served; it is won until it is released or the session ends.
    ///
    /// # Errors
    /// As [`Session::lock`].
    pub async fn campaign(&self, name: &str, value: impl Into<Bytes>) -> Result<Held> {
        let place = Place::take(self, queue("_/election/", name)?, value.into()).await?;
        place.wait(1).await
    }
}

impl Kv {
    /// Who has won a named election: what it said of itself, and its token.
    ///
    /// # Errors
    /// As [`Kv::get`].
    pub async fn elected(&self, name: &str) -> Result<Option<(Bytes, LockToken)>> {
        self.first_of(queue("_/election/", name)?).await
    }

    /// Who holds a lock or has waited for it longest: the lock's value is the number of places.
    ///
    /// # Errors
    /// As [`Kv::get`].
    pub async fn lock_holder(&self, name: &str) -> Result<Option<LockToken>> {
        let first = self.first_of(queue("_/lock/", name)?).await?;
        Ok(first.map(|(_, token)| token))
    }

    /// Every change of who stands in a named election, from now on: look with [`Kv::elected`] at each.
    ///
    /// # Errors
    /// As [`Kv::get`].
    pub async fn watch_election(&self, name: &str) -> Result<crate::Watch> {
        let range = KeyRange::Prefix(queue("_/election/", name)?);
        Ok(self.list_and_watch(range).await?.1)
    }

    async fn first_of(&self, prefix: Bytes) -> Result<Option<(Bytes, LockToken)>> {
        let list = self.list(KeyRange::Prefix(prefix)).await?;
        let first = list.pairs.into_iter().min_by_key(|pair| pair.created);
        Ok(first.map(|first| (first.value, LockToken(first.created))))
    }
}

/// Under which the keys of a queue stand.
fn queue(kind: &str, name: &str) -> Result<Bytes> {
    check_name(name)?;
    Ok(format!("{kind}{name}/").into())
}

/// Whether a name can stand in a key.
pub(crate) fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_LOCK_NAME || name.contains('/') {
        return Err(Error::Refused(format!(
            "{name:?} is no name for a lock, an election or a group: it has 1 to {MAX_LOCK_NAME} bytes and no slash"
        )));
    }
    Ok(())
}

impl Drop for Held {
    fn drop(&mut self) {
        self.looker.abort();
    }
}

/// Waits until the key that came to be at `created` is gone.
async fn look_for_its_end(
    kv: Kv,
    key: Bytes,
    created: u64,
    mut next: u64,
    removed: watch::Sender<bool>,
) {
    loop {
        let mut watch = kv.watch(KeyRange::Key(key.clone()), next);
        let is_gone = loop {
            match watch.next().await {
                Ok(KeyEvent::Put(pair)) if pair.created == created => {}
                Ok(KeyEvent::Put(_) | KeyEvent::Delete { .. }) => break true,
                Err(Error::Compacted { .. }) => break false,
                Err(Error::Closed) => return,
                // A node that is asked by too many today may answer tomorrow.
                Err(_) => {
                    tokio::time::sleep(LATE).await;
                    break false;
                }
            }
        };
        if is_gone {
            removed.send_replace(true);
            return;
        }
        match kv.list(KeyRange::Key(key.clone())).await {
            Ok(list) if list.pairs.iter().any(|pair| pair.created == created) => {
                next = list.revision + 1;
            }
            Ok(_) => {
                removed.send_replace(true);
                return;
            }
            Err(Error::Closed) => return,
            Err(_) => {}
        }
    }
}

/// A key in a queue. Dropped, it goes.
#[derive(Debug)]
struct Entry {
    session: Session,
    key: Bytes,
    /// What writes it has an end: no copy of it is on its way any more.
    written: bool,
    left: bool,
}

impl Entry {
    async fn leave(&mut self) -> Result<()> {
        let delete = Action::Delete(KeyRange::Key(self.key.clone()));
        self.session.kv().act([], [delete]).await?;
        self.left = true;
        Ok(())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        // A copy that was lost may be sent again, until it is given up, and come later.
        let late = (!self.written).then(|| self.session.kv().timeout() + LATE);
        self.session.remove_soon_and_after(self.key.clone(), late);
    }
}

/// A place in a queue, and who is before it.
struct Place {
    entry: Entry,
    prefix: Bytes,
    created: u64,
    term: u64,
    /// From where on changes have not been seen.
    next: u64,
    before: BTreeSet<Bytes>,
    pairs: Vec<KeyValue>,
}

impl Place {
    /// Writes the key, and looks who is before it.
    async fn take(session: &Session, prefix: Bytes, value: Bytes) -> Result<Place> {
        let lease = session.lease();
        let mut key = prefix.to_vec();
        key.extend(format!("{:016x}-{}", lease.0, session.next_entry()).bytes());
        let key = Bytes::from(key);
        // From here on the key may be there: whatever happens, it is removed.
        let mut entry = Entry {
            session: session.clone(),
            key: key.clone(),
            written: false,
            left: false,
        };
        let own = Action::Get {
            range: KeyRange::Key(key.clone()),
            oldest: 0,
        };
        let put = Action::Put {
            key: key.clone(),
            value,
            lease: Some(lease),
        };
        // Asked again after an unknown outcome, it finds what it wrote.
        let transaction = Transaction {
            conditions: vec![Condition {
                key,
                target: Target::Created(0),
                comparison: Comparison::Equal,
            }],
            then: vec![put, own.clone()],
            otherwise: vec![own],
        };
        let mut is_certain = true;
        let done = loop {
            match session.kv().transact(transaction.clone()).await {
                Err(Error::Unknown(_)) if session.is_alive() => is_certain = false,
                done => break done?,
            }
        };
        entry.written = is_certain;
        let Some(ActionResult::Got(own)) = done.results.last() else {
            return Err(Error::Unexpected);
        };
        let own = own.first().ok_or(Error::NoSuchLease)?;
        let created = own.created;
        let mut place = Place {
            entry,
            prefix,
            created,
            term: done.term,
            next: done.revision + 1,
            before: BTreeSet::new(),
            pairs: Vec::new(),
        };
        place.look().await?;
        Ok(place)
    }

    /// Who is before it now. Nobody can come to be before it any more.
    async fn look(&mut self) -> Result<()> {
        let kv = self.entry.session.kv();
        let list = kv.list(KeyRange::Prefix(self.prefix.clone())).await?;
        self.next = list.revision + 1;
        if !list.pairs.iter().any(|pair| pair.created == self.created) {
            return Err(Error::NoSuchLease);
        }
        self.pairs = list.pairs;
        self.pairs.retain(|pair| pair.created < self.created);
        self.before = self.pairs.iter().map(|pair| pair.key.clone()).collect();
        Ok(())
    }

    /// All that are before it say the same number of places.
    fn agree(&mut self, permits: u32) -> Result<()> {
        if permits == 0 {
            return Err(Error::Refused("a semaphore has at least one place".into()));
        }
        let said = permits.to_string();
        match self.pairs.iter().find(|pair| pair.value != said) {
            None => Ok(()),
            Some(other) => Err(Error::Refused(format!(
                "somebody else takes it for one of {} places, not {permits}",
                String::from_utf8_lossy(&other.value)
            ))),
        }
    }

    async fn wait(mut self, permits: u32) -> Result<Held> {
        let (session, kv) = (self.entry.session.clone(), self.entry.session.kv().clone());
        let range = KeyRange::Prefix(self.prefix.clone());
        let mut watch = kv.watch(range.clone(), self.next);
        while self.before.len() >= permits as usize {
            let event = tokio::select! {
                event = watch.next() => event,
                () = session.ended() => return Err(Error::NoSuchLease),
            };
            match event {
                Ok(KeyEvent::Delete { key, .. }) if key == self.entry.key => {
                    return Err(Error::NoSuchLease);
                }
                Ok(KeyEvent::Delete { key, .. }) => drop(self.before.remove(&key)),
                Ok(KeyEvent::Put(_)) => {}
                Err(Error::Compacted { .. }) => {
                    self.look().await?;
                    watch = kv.watch(range.clone(), self.next);
                }
                Err(error) => return Err(error),
            }
        }
        if !session.is_alive() {
            return Err(Error::NoSuchLease);
        }
        Ok(self.held())
    }

    fn held(self) -> Held {
        let (sender, removed) = watch::channel(false);
        let (kv, key) = (self.entry.session.kv().clone(), self.entry.key.clone());
        let looker = tokio::spawn(look_for_its_end(kv, key, self.created, self.next, sender));
        Held {
            token: LockToken(self.created),
            term: self.term,
            entry: self.entry,
            removed,
            looker,
        }
    }
}
