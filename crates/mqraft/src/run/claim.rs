//! The claim under which the program runs: a named election, won by whoever has stood in it longest, or
//! a place of a lock.
//!
//! Each site stands in the queue under a session of its own, so one that vanishes leaves when its session
//! has lived its time, and one that gives up leaves at once. A winner's claim lasts as long as its session
//! is certain to: counted from when the last keep-alive that was confirmed was *sent*, and less the drift
//! of clocks. It is renewed three times in its time to live. The token is the revision at which the
//! site came to stand in the election: whoever wins later came later.

use std::time::Duration;

use raft_over_mqtt::{Client, Error, Held, Kv, LockToken, Remote, Session};
use tokio::sync::{mpsc, oneshot};

use super::Settings;
use super::supervisor::{Grant, Input};
use super::timing::Moment;
use crate::exit::{Exit, Failure};
use crate::settings::Connection;

/// How long one request may take. Beyond, it is tried anew.
const REQUEST: Duration = Duration::from_secs(2);

/// How long to wait before what failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// A cluster that answers.
pub(crate) struct Contact {
    pub(crate) client: Client,
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
            tokio::time::sleep(AGAIN).await;
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
        let remote = Remote::connect(mqtt.clone(), prefix, cluster, keys.clone(), REQUEST);
        let mut remote = remote.await?;
        let members = remote.members().await;
        remote.close().await;
        let drift_ppm = members?.settings.drift_ppm;
        let client = Client::connect(mqtt, prefix, cluster, keys, REQUEST).await?;
        Ok(Contact { client, drift_ppm })
    }
}

/// What is contended for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// To win the election of the name.
    Election,
    /// One of so many places of the lock of the name; with `wait` unset only if one is free now.
    Lock { permits: u32, wait: bool },
}

/// A claim that is contended for, held and contended for again until it is given up.
pub(crate) struct Claim {
    events: mpsc::Receiver<Input>,
    release: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<(), Failure>>,
}

impl Claim {
    /// Begins to contend for it.
    pub(crate) fn contend(contact: &Contact, settings: &Settings, ttl: Duration) -> Claim {
        let (sender, events) = mpsc::channel(16);
        let (release, released) = oneshot::channel();
        let contender = Contender {
            kv: contact.client.kv(),
            wanted: settings.claim,
            name: settings.name.clone(),
            node: settings.node.clone(),
            ttl,
            session: None,
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
    ///
    /// # Errors
    /// When it cannot be ours: what was said of it contradicts what others say, or it is not to be waited
    /// for and is another's.
    pub(crate) async fn next(&mut self) -> Result<Input, Failure> {
        if let Some(input) = self.events.recv().await {
            return Ok(input);
        }
        let ended = (&mut self.task).await;
        let ended =
            ended.unwrap_or_else(|error| Err(Failure::new(Exit::Stopped, error.to_string())));
        let silent = || Failure::new(Exit::Stopped, "the claim is not looked after any more");
        Err(ended.err().unwrap_or_else(silent))
    }

    /// Gives it up, so that the next one need not wait; if the cluster cannot be reached, it is held
    /// until its end all the same.
    pub(crate) async fn release(self) {
        let _ = self.release.send(());
        let _ = self.task.await;
    }
}

/// The task behind a [`Claim`].
struct Contender {
    kv: Kv,
    wanted: Wanted,
    name: String,
    node: String,
    ttl: Duration,
    /// What it stands in the queue under.
    session: Option<Session>,
    events: mpsc::Sender<Input>,
}

/// Nobody listens any more.
struct Unheard;

impl Contender {
    async fn run(mut self, released: oneshot::Receiver<()>) -> Result<(), Failure> {
        let ended = tokio::select! {
            ended = self.contend() => ended,
            // Dropped rather than sent, it means the same: the process comes to its end.
            _ = released => Ok(()),
        };
        if let Some(session) = self.session.take() {
            // What cannot be ended ends by itself.
            let _ = tokio::time::timeout(REQUEST, session.end()).await;
        }
        ended
    }

    async fn contend(&mut self) -> Result<(), Failure> {
        loop {
            match self.take().await {
                Ok(Some(held)) => {
                    if let Err(Unheard) = self.hold(held).await {
                        return Ok(());
                    }
                }
                Ok(None) => {
                    let message = format!("{:?} is another's", self.name);
                    return Err(Failure::new(Exit::Negative, message));
                }
                Err(error @ Error::Refused(_)) => return Err(error.into()),
                // As when the session did not outlive an outage; the next one stands anew.
                Err(error) => {
                    tracing::warn!("not in the queue for {:?}: {error}", self.name);
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn take(&mut self) -> Result<Option<Held>, Error> {
        let session = Session::begin(&self.kv, self.ttl).await?;
        self.session = Some(session.clone());
        let name = &self.name;
        match self.wanted {
            Wanted::Election => session.campaign(name, self.node.clone()).await.map(Some),
            Wanted::Lock { permits, wait } => match wait {
                true => session.semaphore(name, permits).await.map(Some),
                false => session.try_semaphore(name, permits).await,
            },
        }
    }

    /// Tells how long it lasts, until it is lost.
    async fn hold(&self, held: Held) -> Result<(), Unheard> {
        let mut changes = held.session().watch_until();
        let taken_away = async {
            match self.wanted {
                Wanted::Election => taken_away(&self.kv, &self.name, held.token()).await,
                // Of several holders none is the first.
                Wanted::Lock { .. } => std::future::pending().await,
            }
        };
        tokio::pin!(taken_away);
        let mut told = false;
        while let Some(until) = held.until() {
            let until = Moment(until.0);
            let input = match std::mem::replace(&mut told, true) {
                true => Input::Renewed { until },
                false => Input::Granted(Grant {
                    token: held.token().value(),
                    term: held.term(),
                    until,
                }),
            };
            self.tell(input).await?;
            tokio::select! {
                _ = changes.changed() => {}
                () = held.lost() => {}
                () = &mut taken_away => break,
            }
        }
        match told {
            true => self.tell(Input::Lost).await,
            false => Ok(()),
        }
    }

    async fn tell(&self, input: Input) -> Result<(), Unheard> {
        self.events.send(input).await.map_err(|_| Unheard)
    }
}

/// Waits until the election has another winner, or none: someone has removed the key or the lease of
/// the one with this token. Its session would notice only when it is next kept alive,
/// and of a key that is gone not at all.
async fn taken_away(kv: &Kv, name: &str, token: LockToken) {
    loop {
        if let Ok(true) = is_taken_away(kv, name, token).await {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn is_taken_away(kv: &Kv, name: &str, token: LockToken) -> Result<bool, Error> {
    let mut changes = kv.watch_election(name).await?;
    loop {
        let elected = kv.elected(name).await?;
        if elected.is_none_or(|(_, winner)| winner != token) {
            return Ok(true);
        }
        changes.next().await?;
    }
}
