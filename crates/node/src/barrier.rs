//! Barriers: nobody passes before so many have come.
//!
//! Whoever comes writes a key under its session's lease, then counts how many stand there; who finds the
//! number complete opens the barrier, if all it counted still stand there, by a key that has no lease:
//! whoever came is let through by it, even if others are gone by then. An open barrier stays
//! open until it is reset.

use std::time::Duration;

use bytes::Bytes;
use replica::{
    Action, ActionResult, Comparison, Condition, KeyEvent, KeyRange, KeyValue, MAX_ACTIONS,
    RangeRequest, Target,
};

use crate::error::{Error, Result};
use crate::kv::Kv;
use crate::session::Session;

/// How often whoever waits counts again: whoever made the number complete may have gone before it had
/// opened the barrier.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

impl Session {
    /// Comes to a barrier and waits until `parties` sessions have come; returns the revision at which it
    /// opened. One that is open lets everyone through at once. A session that ends before the barrier
    /// opens counts no longer. Safe to cancel: who no longer waits still counts until its session ends.
    ///
    /// # Errors
    /// [`Error::Refused`] for a name that is too long, empty or holds `/`; [`Error::NoSuchLease`] if the
    /// session ended meanwhile; what [`Kv::propose`] says.
    pub async fn barrier(&self, name: &str, parties: u32) -> Result<u64> {
        let (kv, names) = (self.kv(), Names::of(name)?);
        let key = Bytes::from(format!("{}{:016x}", names.waiting, self.lease().0));
        let put = Action::Put {
            key: key.clone(),
            value: parties.to_string().into(),
            lease: Some(self.lease()),
        };
        let came = Action::Get {
            range: KeyRange::Key(key),
            oldest: 0,
        };
        // What was there before an unknown outcome stands there the same.
        let done = loop {
            match kv.act([], [put.clone(), came.clone()]).await {
                Err(Error::Unknown(_)) if self.is_alive() => {}
                done => break done?,
            }
        };
        let came = match done.results.last() {
            Some(ActionResult::Got(came)) => came.first(),
            _ => None,
        };
        let came = came.ok_or(Error::Unexpected)?;
        let open = KeyRange::Key(names.open.clone().into());
        'look: loop {
            let (opened, mut watch) = kv.list_and_watch(open.clone()).await?;
            if let Some(opened) = opened.first() {
                return Ok(opened.created);
            }
            if let Some(opened) = open_if_complete(kv, &names, parties, came).await? {
                return Ok(opened);
            }
            let look_again = tokio::time::sleep(LOOK_AGAIN);
            tokio::pin!(look_again);
            loop {
                let event = tokio::select! {
                    event = watch.next() => event,
                    () = self.ended() => return Err(Error::NoSuchLease),
                    () = &mut look_again => continue 'look,
                };
                match event {
                    Ok(KeyEvent::Put(open)) => return Ok(open.created),
                    Ok(KeyEvent::Delete { .. }) => {}
                    Err(Error::Compacted { .. }) => continue 'look,
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

impl Kv {
    /// Closes a barrier: whoever comes from then on waits for as many again. Who came before, and whose
    /// session lives, counts once more only if it comes again.
    ///
    /// # Errors
    /// As [`Kv::propose`]; [`Error::Refused`] for a name that is none.
    pub async fn reset_barrier(&self, name: &str) -> Result<()> {
        let names = Names::of(name)?;
        let open = Action::Delete(KeyRange::Key(names.open.into()));
        let waiting = Action::Delete(KeyRange::Prefix(names.waiting.into()));
        self.act([], [open, waiting]).await.map(drop)
    }
}

/// Opens a barrier at which enough stand; `came` is one of them. Of several that try, one makes the key;
/// all see it.
async fn open_if_complete(
    kv: &Kv,
    names: &Names,
    parties: u32,
    came: &KeyValue,
) -> Result<Option<u64>> {
    let own = KeyRange::Key(came.key.clone());
    loop {
        let Some(stand) = complete(kv, names, parties).await? else {
            return Ok(None);
        };
        if let Some(opened) = open(kv, names, came, &stand).await? {
            return Ok(Some(opened));
        }
        // Somebody else has left; or the barrier was reset, and who came before that has not come.
        let list = kv.list(own.clone()).await?;
        if !list.pairs.iter().any(|pair| pair.created == came.created) {
            return Ok(None);
        }
    }
}

/// Who stands at a barrier, if they are enough: the first so many, but no more than a transaction can
/// have conditions on beside its own.
async fn complete(kv: &Kv, names: &Names, parties: u32) -> Result<Option<Vec<KeyValue>>> {
    let waiting = RangeRequest::all(KeyRange::Prefix(names.waiting.clone().into()));
    let count = RangeRequest {
        count_only: true,
        ..waiting.clone()
    };
    let count = kv.range(count).await?.count.unwrap_or_default();
    if count < u64::from(parties) {
        return Ok(None);
    }
    let first = RangeRequest {
        keys_only: true,
        limit: parties.clamp(1, MAX_ACTIONS as u32 - 2),
        ..waiting
    };
    Ok(Some(kv.range(first).await?.pairs))
}

/// Opens a barrier if all that were seen at it still stand there; at which revision it was opened.
/// What was counted may have gone since: sessions end, and whoever resets it removes all.
async fn open(kv: &Kv, names: &Names, came: &KeyValue, stand: &[KeyValue]) -> Result<Option<u64>> {
    let key = Bytes::from(names.open.clone());
    let is_of = |key: &Bytes, created: u64| Condition {
        key: key.clone(),
        target: Target::Created(created),
        comparison: Comparison::Equal,
    };
    let mut conditions = vec![is_of(&key, 0), is_of(&came.key, came.created)];
    conditions.extend(stand.iter().map(|pair| is_of(&pair.key, pair.created)));
    let put = Action::Put {
        key: key.clone(),
        value: Bytes::new(),
        lease: None,
    };
    match kv.act(conditions, [put]).await {
        Ok(_) | Err(Error::Unknown(_)) => {}
        Err(error) => return Err(error),
    }
    Ok(kv.get(key).await?.map(|open| open.created))
}

struct Names {
    open: String,
    /// What the keys of those that came begin with.
    waiting: String,
}

impl Names {
    fn of(name: &str) -> Result<Names> {
        crate::lock::check_name(name)?;
        Ok(Names {
            open: format!("_/barrier/{name}"),
            waiting: format!("_/barrier/{name}/"),
        })
    }
}

#[cfg(test)]
mod tests {
    use mqtt::broker::EmbeddedBroker;
    use testkit::TempDir;

    use super::*;
    use crate::{Mqtt, RaftNode};

    /// Whoever counted before a barrier was reset does not open it for those that come afterwards.
    #[tokio::test]
    async fn a_barrier_that_was_reset_is_not_opened_by_who_came_before() {
        let broker = EmbeddedBroker::start().await.expect("a broker");
        let dir = TempDir::new().expect("a directory");
        let node = RaftNode::initialize(Mqtt::new(&broker.url()).expect("a URL"), "gw-1")
            .cluster("plant-a")
            .voters(["gw-1"])
            .data_dir(dir.path())
            .insecure()
            .start();
        let kv = node.await.expect("it starts").kv();
        let names = Names::of("start").expect("a name");
        let session = Session::begin(&kv, Duration::from_secs(60)).await;
        let session = session.expect("a session");
        let put = |n: u32| Action::Put {
            key: format!("{}{n}", names.waiting).into(),
            value: Bytes::new(),
            lease: Some(session.lease()),
        };
        kv.act([], [put(1), put(2)]).await.expect("they come");
        let stand = complete(&kv, &names, 2).await.expect("read");
        let stand = stand.expect("they are two");
        kv.reset_barrier("start").await.expect("reset");
        let opened = open(&kv, &names, &stand[0], &stand).await;
        assert_eq!(opened.expect("asked"), None);
        let opened = open_if_complete(&kv, &names, 0, &stand[0]).await;
        assert_eq!(opened.expect("asked"), None);
        // Nor where one that it counted has left.
        kv.act([], [put(1), put(2)]).await.expect("they come again");
        let stand = complete(&kv, &names, 2).await.expect("read");
        let stand = stand.expect("they are two");
        kv.act([], [Action::Delete(KeyRange::Key(stand[1].key.clone()))])
            .await
            .expect("one leaves");
        let opened = open(&kv, &names, &stand[0], &stand).await;
        assert_eq!(opened.expect("asked"), None);
        kv.act([], [put(2)]).await.expect("it comes again");
        let opened = open_if_complete(&kv, &names, 2, &stand[0]).await;
        assert!(opened.expect("asked").is_some());
    }
}
