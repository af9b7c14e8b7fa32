//! Barriers: nobody passes before so many have come.
//!
//! Whoever comes writes a key under its session's lease. The transaction that writes it also reads how
//! many stand there, and the one that makes the number complete opens the barrier by a key that has no
//! lease: whoever came is let through by it, even if others are gone by then. An open barrier stays
//! open until it is reset.

use replica::{
    Action, Comparison, Condition, KeyEvent, KeyRange, RangeRequest, Target, Transaction,
};

use crate::error::{Error, Result};
use crate::kv::Kv;
use crate::session::Session;

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
        let put = Action::Put {
            key: format!("{}{:016x}", names.waiting, self.lease().0).into(),
            value: parties.to_string().into(),
            lease: Some(self.lease()),
        };
        // What was there before an unknown outcome stands there the same.
        while let Err(error) = kv.act([], [put.clone()]).await {
            if !matches!(error, Error::Unknown(_)) || !self.is_alive() {
                return Err(error);
            }
        }
        let (open, mut watch) = kv
            .list_and_watch(KeyRange::Key(names.open.clone().into()))
            .await?;
        if let Some(open) = open.first() {
            return Ok(open.created);
        }
        if let Some(opened) = open_if_complete(kv, &names, parties).await? {
            return Ok(opened);
        }
        loop {
            let event = tokio::select! {
                event = watch.next() => event,
                () = self.ended() => return Err(Error::NoSuchLease),
            };
            match event {
                Ok(KeyEvent::Put(open)) => return Ok(open.created),
                Ok(KeyEvent::Delete { .. }) => {}
                Err(Error::Compacted { .. }) => {
                    let again = KeyRange::Key(names.open.clone().into());
                    let (open, newer) = kv.list_and_watch(again).await?;
                    if let Some(open) = open.first() {
                        return Ok(open.created);
                    }
                    watch = newer;
                }
                Err(error) => return Err(error),
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

/// Opens a barrier at which enough stand. Of several that try, one makes the key; all see it.
async fn open_if_complete(kv: &Kv, names: &Names, parties: u32) -> Result<Option<u64>> {
    let waiting = RangeRequest {
        count_only: true,
        ..RangeRequest::all(KeyRange::Prefix(names.waiting.clone().into()))
    };
    let count = kv.range(waiting).await?.count.unwrap_or_default();
    if count < u64::from(parties) {
        return Ok(None);
    }
    let key: bytes::Bytes = names.open.clone().into();
    let open = Transaction {
        conditions: vec![Condition {
            key: key.clone(),
            target: Target::Created(0),
            comparison: Comparison::Equal,
        }],
        then: vec![Action::Put {
            key: key.clone(),
            value: count.to_string().into(),
            lease: None,
        }],
        otherwise: Vec::new(),
    };
    match kv.transact(open).await {
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
