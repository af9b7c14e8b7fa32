//! A process that is no node and uses the state: one task around a [`Remote`], any number of handles.

use std::collections::BTreeMap;
use std::time::Duration;

use replica::{ClientEffect, ClientInput, Done, KeyRing, RequestError, Token, Watched};
use tokio::sync::{mpsc, oneshot};

use crate::connection::Mqtt;
use crate::error::{Error, Result};
use crate::kv::{Ask, Asks, Kv};
use crate::remote::Remote;

/// How many questions may wait for the task before callers wait too.
const ASKS: usize = 1_024;

/// A client of a cluster: no node, no disk, no vote. It reconnects and finds the leader by itself.
/// When the last handle is dropped it ends.
///
/// ```no_run
/// use std::time::Duration;
/// use raft_over_mqtt::{Client, Mqtt, Session};
///
/// # async fn example() -> raft_over_mqtt::Result<()> {
/// let mqtt = Mqtt::new("mqtt://127.0.0.1:1883")?;
/// let kv = Client::connect(mqtt, "raft", "plant-a", None, Duration::from_secs(5)).await?.kv();
/// let session = Session::begin(&kv, Duration::from_secs(5)).await?;
/// let lock = session.lock("press-7").await?;
/// println!("mine, with token {}", lock.token());
/// lock.release().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    asks: mpsc::Sender<Ask>,
    new_keys: mpsc::Sender<NewKeys>,
    timeout: Duration,
}

/// Keys to be taken, and who wants to know that they are.
#[derive(Debug)]
struct NewKeys {
    keys: KeyRing,
    taken: oneshot::Sender<Result<()>>,
}

impl Client {
    /// Connects to the broker. Without a key: insecure mode, for a broker on this machine. `timeout`
    /// bounds this and, unless said otherwise, each request.
    ///
    /// # Errors
    /// When something was given that cannot work, or no session came up in `timeout`; the reason
    /// is the broker's last.
    pub async fn connect(
        mqtt: Mqtt,
        prefix: &str,
        cluster: &str,
        keys: impl Into<KeyRing>,
        timeout: Duration,
    ) -> Result<Client> {
        let remote = Remote::connect(mqtt, prefix, cluster, keys, timeout).await?;
        let (asks, asked) = mpsc::channel(ASKS);
        let (new_keys, keys_come) = mpsc::channel(1);
        tokio::spawn(Task::new(remote).run(asked, keys_come));
        Ok(Client {
            asks,
            new_keys,
            timeout,
        })
    }

    /// The replicated state.
    pub fn kv(&self) -> Kv {
        Kv::new(Asks::Client(self.asks.clone()), self.timeout)
    }

    /// Changes the cluster keys: the first seals, all are accepted. See [`crate::KeyFile`] for the
    /// order of steps.
    ///
    /// # Errors
    /// When there is no key: a client does not become insecure.
    pub async fn set_keys(&self, keys: impl Into<KeyRing>) -> Result<()> {
        let (taken, is_taken) = oneshot::channel();
        let keys = keys.into();
        let new_keys = NewKeys { keys, taken };
        let sent = self.new_keys.send(new_keys).await;
        sent.map_err(|_| Error::Closed)?;
        is_taken.await.map_err(|_| Error::Closed)?
    }
}

struct Task {
    remote: Remote,
    last_token: u64,
    answers: BTreeMap<Token, oneshot::Sender<std::result::Result<Done, RequestError>>>,
    watches: BTreeMap<Token, oneshot::Sender<Watched>>,
}

impl Task {
    fn new(remote: Remote) -> Task {
        Task {
            remote,
            last_token: 0,
            answers: BTreeMap::new(),
            watches: BTreeMap::new(),
        }
    }

    async fn run(mut self, mut asked: mpsc::Receiver<Ask>, mut new_keys: mpsc::Receiver<NewKeys>) {
        loop {
            let effects = tokio::select! {
                ask = asked.recv() => match ask {
                    Some(ask) => self.take(ask),
                    None => break,
                },
                // Without a client to set them there may still be handles that ask.
                Some(NewKeys { keys, taken }) = new_keys.recv() => {
                    let _ = taken.send(self.remote.set_keys(keys));
                    Vec::new()
                }
                effects = self.remote.turn() => match effects {
                    Ok(effects) => effects,
                    // Whoever waits is told that it is over by its sender's end.
                    Err(_) => break,
                },
            };
            self.carry_out(effects);
        }
        self.remote.close().await;
    }

    fn take(&mut self, ask: Ask) -> Vec<ClientEffect> {
        self.last_token += 1;
        let token = Token(self.last_token);
        let input = match ask {
            Ask::Request {
                operation,
                timeout,
                answer,
            } => {
                self.answers.insert(token, answer);
                ClientInput::Request {
                    token,
                    operation,
                    timeout,
                }
            }
            Ask::Watch {
                range,
                from,
                answer,
            } => {
                self.watches.insert(token, answer);
                ClientInput::Watch { token, range, from }
            }
        };
        // Whoever stopped waiting is not asked for any longer.
        let gone = self.watches.iter().filter(|(_, answer)| answer.is_closed());
        let gone: Vec<Token> = gone.map(|(token, _)| *token).collect();
        self.watches.retain(|_, answer| !answer.is_closed());
        let forget = gone.into_iter().map(ClientInput::Unwatch);
        self.remote.step(forget.chain([input]).collect::<Vec<_>>())
    }

    fn carry_out(&mut self, effects: Vec<ClientEffect>) {
        for effect in effects {
            match effect {
                // A caller that went away does not want to know.
                ClientEffect::Done { token, result } => {
                    if let Some(answer) = self.answers.remove(&token) {
                        let _ = answer.send(result);
                    }
                }
                ClientEffect::Watched { token, watched } => {
                    if let Some(answer) = self.watches.remove(&token) {
                        let _ = answer.send(watched);
                    }
                }
                ClientEffect::Event(event) => self.remote.note(event),
                ClientEffect::Publish(_) => {}
            }
        }
    }
}
