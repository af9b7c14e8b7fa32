//! The claim to be the only one: a key of the replicated store that its holder writes anew each second.
//!
//! Whoever wants it and finds it held waits until it has seen the same revision for the holder's
//! time to live, and then takes it by compare-and-swap: of all who try, one succeeds, and a holder
//! that renewed in between keeps it. A holder counts its claim from the moment when it *sent* the
//! write that was confirmed, by a clock that may be slow, so it ends before anyone's wait can:
//!
//! ```text
//!  holder   send ──────── ttl·(1−ρ)/(1+ρ) ────────▶ until
//!  store        └ committed
//!  other             └ seen ─────────── ttl ───────────────▶ takes it
//! ```
//!
//! The revision at which it was taken is the fencing token: no later claim has a smaller one.

use std::time::Duration;

use raft_over_mqtt::{Error, Remote};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::supervisor::{Grant, Input};
use super::timing::{Moment, RENEW_EVERY, Timing};
use crate::exit::{Exit, Failure};
use crate::settings::Connection;

/// How often a claim that another holds is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How long one request may take. Beyond, it is tried anew.
const REQUEST: Duration = Duration::from_secs(2);

/// How long to wait before the broker is tried again.
const CONNECT_INTERVAL: Duration = Duration::from_secs(1);

/// What stands in the key.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// Another one at each start of a process.
    holder: String,
    /// The site, for people.
    node: String,
    /// For how long nobody may take it who has not seen it change.
    ttl_ms: u64,
    /// One more at each renewal.
    renewal: u64,
}

/// A claim that is contended for, held and contended for again until it is given up.
pub(crate) struct Claim {
    events: mpsc::Receiver<Input>,
    release: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

/// A cluster that answers.
pub(crate) struct Contact {
    remote: Remote,
    /// How much its members' clocks may drift.
    pub(crate) drift_ppm: u32,
}

impl Contact {
    /// Finds the cluster, however long it takes.
    ///
    /// # Errors
    /// What no retry mends.
    pub(crate) async fn find(connection: &Connection) -> Result<Contact, Failure> {
        loop {
            match Contact::try_find(connection).await {
                Ok(contact) => return Ok(contact),
                Err(error) => {
                    let failure = Failure::from(&error);
                    let permanent = matches!(&error, Error::Connect(why) if why.is_permanent());
                    if permanent || !matches!(failure.exit, Exit::Broker | Exit::NoAnswer) {
                        return Err(failure);
                    }
                    tracing::warn!("waiting for the cluster: {}", failure.message);
                }
            }
            tokio::time::sleep(CONNECT_INTERVAL).await;
        }
    }

    async fn try_find(connection: &Connection) -> Result<Contact, Error> {
        let Connection {
            mqtt,
            prefix,
            cluster,
            keys,
            timeout: _,
        } = connection;
        let (mqtt, keys) = (mqtt.clone(), keys.clone());
        let mut remote = Remote::connect(mqtt, prefix, cluster, keys, REQUEST).await?;
        let drift_ppm = remote.members().await?.settings.drift_ppm;
        Ok(Contact { remote, drift_ppm })
    }
}

impl Claim {
    /// Begins to contend for `name`. `node` stands in the key, for people.
    pub(crate) fn contend(contact: Contact, name: &str, node: &str, timing: Timing) -> Claim {
        let (sender, events) = mpsc::channel(16);
        let (release, released) = oneshot::channel();
        let Contact { remote, drift_ppm } = contact;
        let contender = Contender {
            remote,
            key: format!("lock/{name}"),
            // Unique among processes: a host's clock at a process's start, and its number.
            holder: format!("{node}-{}-{}", std::process::id(), Moment::now().0),
            node: node.to_owned(),
            timing,
            held_for: held_for(timing.ttl, drift_ppm),
            renewal: 0,
            written: None,
            events: sender,
        };
        let task = tokio::spawn(contender.run(released));
        Claim {
            events,
            release,
            task,
        }
    }

    /// What happens to it next. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Option<Input> {
        self.events.recv().await
    }

    /// Gives it up, so that the next one need not wait; if the cluster cannot be reached, it is held
    /// until its end all the same.
    pub(crate) async fn release(self) {
        let _ = self.release.send(());
        let _ = self.task.await;
    }
}

/// For how long a confirmed write holds the claim on a clock that may be slow, while the others' may
/// be fast.
fn held_for(ttl: Duration, drift_ppm: u32) -> Duration {
    let drift = f64::from(drift_ppm) / 1e6;
    ttl.mul_f64((1.0 - drift) / (1.0 + drift))
}

/// The task behind a [`Claim`].
struct Contender {
    remote: Remote,
    key: String,
    holder: String,
    node: String,
    timing: Timing,
    held_for: Duration,
    renewal: u64,
    /// What we wrote last, and when it was sent first; it may not have arrived.
    written: Option<(Vec<u8>, Moment)>,
    events: mpsc::Sender<Input>,
}

/// Another's claim, as long as it does not change.
struct Foreign {
    modified: u64,
    since: Moment,
}

impl Contender {
    async fn run(mut self, mut released: oneshot::Receiver<()>) {
        tokio::select! {
            () = self.contend() => {}
            // Dropped, the claim is to be given up too: its end is the end of the process.
            _ = &mut released => {}
        }
        let _ = tokio::time::timeout(REQUEST, self.give_up()).await;
        self.remote.close().await;
    }

    /// Takes the claim and holds it, again and again; ends when nobody listens.
    async fn contend(&mut self) {
        loop {
            let grant = self.take().await;
            if self.tell(Input::Granted(grant)).await.is_err() {
                return;
            }
            if self.hold(grant.until).await.is_err() {
                return;
            }
        }
    }

    async fn tell(&self, input: Input) -> Result<(), mpsc::error::SendError<Input>> {
        self.events.send(input).await
    }

    async fn take(&mut self) -> Grant {
        let mut foreign: Option<Foreign> = None;
        loop {
            match self.try_take(&mut foreign).await {
                Ok(Some(grant)) => return grant,
                Ok(None) => {}
                Err(error) => tracing::debug!("the claim cannot be looked at: {error}"),
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn try_take(&mut self, foreign: &mut Option<Foreign>) -> Result<Option<Grant>, Error> {
        let reading = self.remote.get(self.key.clone()).await?;
        let Some(value) = reading.value else {
            return self.write(None).await;
        };
        // Of a write that got no answer.
        if let Some((written, sent_at)) = &self.written
            && value.0 == written[..]
        {
            let (token, until) = (reading.modified, *sent_at + self.held_for);
            return Ok(Some(self.grant(token, until).await));
        }
        let now = Moment::now();
        let seen = match foreign {
            Some(seen) if seen.modified == reading.modified => seen,
            _ => foreign.insert(Foreign {
                modified: reading.modified,
                since: now,
            }),
        };
        // What nobody of us wrote is respected for as long as our own would be.
        let record = serde_json::from_slice::<Record>(&value.0).ok();
        let ttl = record.map_or(self.timing.ttl, |record| {
            Duration::from_millis(record.ttl_ms)
        });
        match now.since(seen.since) > ttl {
            true => self.write(Some(value.0.to_vec())).await,
            false => Ok(None),
        }
    }

    /// Writes the key anew if it has the expected value; the claim is then ours.
    async fn write(&mut self, expected: Option<Vec<u8>>) -> Result<Option<Grant>, Error> {
        let (value, sent_at) = (self.next_record(), Moment::now());
        self.written = Some((value.clone(), sent_at));
        let key = self.key.clone();
        let expected = expected.map(Into::into);
        let swap = self
            .remote
            .compare_and_swap(key, expected, Some(value.into()));
        let written = swap.await?;
        if !written.applied {
            return Ok(None);
        }
        let until = sent_at + self.held_for;
        Ok(Some(self.grant(written.revision, until).await))
    }

    async fn grant(&mut self, token: u64, until: Moment) -> Grant {
        let leading = self.remote.leading(LOOK_INTERVAL).await;
        let term = leading.ok().flatten().map_or(0, |status| status.term);
        Grant { token, term, until }
    }

    fn next_record(&mut self) -> Vec<u8> {
        self.renewal += 1;
        let record = Record {
            holder: self.holder.clone(),
            node: self.node.clone(),
            ttl_ms: u64::try_from(self.timing.ttl.as_millis()).unwrap_or(u64::MAX),
            renewal: self.renewal,
        };
        serde_json::to_vec(&record).expect("a record of texts and numbers")
    }

    /// Renews the claim until it is lost; an error if nobody listens any more.
    async fn hold(&mut self, mut until: Moment) -> Result<(), mpsc::error::SendError<Input>> {
        let mut ours = self.written.as_ref().map(|(value, _)| value.clone());
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            match self.renew(&mut ours).await {
                Ok(Some(renewed)) => {
                    until = renewed;
                    self.tell(Input::Renewed { until }).await?;
                }
                Ok(None) => return self.tell(Input::Lost).await,
                Err(error) => {
                    let left = until.since(Moment::now());
                    tracing::warn!("the claim is not renewed, {left:?} are left: {error}");
                }
            }
        }
    }

    /// Until when it is ours if it still is. `ours`: what the key is known to have held.
    async fn renew(&mut self, ours: &mut Option<Vec<u8>>) -> Result<Option<Moment>, Error> {
        let reading = self.remote.get(self.key.clone()).await?;
        let Some(value) = reading.value.map(|value| value.0.to_vec()) else {
            return Ok(None);
        };
        let of_us = serde_json::from_slice::<Record>(&value)
            .is_ok_and(|record| record.holder == self.holder);
        if !of_us {
            return Ok(None);
        }
        *ours = Some(value);
        let (next, sent_at) = (self.next_record(), Moment::now());
        self.written = Some((next.clone(), sent_at));
        let expected = ours.clone().map(Into::into);
        let key = self.key.clone();
        let swap = self
            .remote
            .compare_and_swap(key, expected, Some(next.clone().into()));
        match swap.await?.applied {
            true => {
                *ours = Some(next);
                Ok(Some(sent_at + self.held_for))
            }
            // Ours a moment ago; the next look tells.
            false => Err(Error::Unknown(REQUEST)),
        }
    }

    /// Removes the key if it is ours.
    async fn give_up(&mut self) {
        loop {
            match self.try_give_up().await {
                Ok(()) => return,
                Err(error) => tracing::debug!("the claim is not given up yet: {error}"),
            }
        }
    }

    async fn try_give_up(&mut self) -> Result<(), Error> {
        let reading = self.remote.get(self.key.clone()).await?;
        let value = reading.value.map(|value| value.0);
        let record = value
            .as_ref()
            .map(|value| serde_json::from_slice::<Record>(value));
        if record.is_some_and(|record| record.is_ok_and(|record| record.holder == self.holder)) {
            let key = self.key.clone();
            self.remote.compare_and_swap(key, value, None).await?;
        }
        Ok(())
    }
}
