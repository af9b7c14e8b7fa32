//! A process that is no node but asks the cluster: what the command line does.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use mqtt::Qos;
use replica::{
    Change, Client, ClientEffect, ClientEvent, ClientInput, Done, Download, Export, KeyRing, Link,
    Members, Name, NodeStatus, Operation, Publish, Reading, Save, SavedSnapshot, Token, Transfer,
    Write, Written,
};

use tokio::time::Instant;

use crate::clock;
use crate::connection::Mqtt;
use crate::error::{Error, Result};
use crate::links::{Links, Reached};
use crate::node::{checked, random, subscriptions};

/// How long a node may take before it is asked again: a frame may be lost.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// How long nodes may take to say how far they have come.
const STATUS_WAIT: Duration = Duration::from_secs(1);

/// How often a copy is begun that the node no longer has when more of it is asked for.
const COPIES: usize = 3;

/// A client of a cluster: no node, no disk, no vote.
///
/// ```no_run
/// use std::time::Duration;
/// use raft_over_mqtt::{Mqtt, Remote};
///
/// # async fn example() -> raft_over_mqtt::Result<()> {
/// let mqtt = Mqtt::new("mqtt://127.0.0.1:1883")?;
/// let mut remote = Remote::connect(mqtt, "raft", "plant-a", None, Duration::from_secs(5)).await?;
/// remote.put("door", "open").await?;
/// # Ok(())
/// # }
/// ```
pub struct Remote {
    client: Client,
    links: Links,
    reached: Reached,
    brokers: usize,
    timeout: Duration,
    last_token: u64,
    not_formed: BTreeMap<String, Vec<String>>,
}

impl Remote {
    /// Connects to the broker. Without a key: insecure mode, for a broker on this machine.
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
    ) -> Result<Remote> {
        let cluster = checked("cluster", cluster)?;
        let ring = keys.into();
        if ring.is_insecure() && !mqtt.is_loopback() {
            return Err(Error::Insecure { broker: mqtt.url() });
        }
        let client = Client::new(prefix, &cluster, ring, random()?, clock::now())?;
        let plan = client.plan();
        let brokers = mqtt.brokers.len();
        let links = Links::connect(mqtt, move |session| mqtt::SessionSetup {
            client_id: plan.client_id(session),
            will: None,
            subscriptions: subscriptions(&[plan.subscription(), plan.leader_topic()]),
        })?;
        let not_formed = BTreeMap::new();
        let mut remote = Remote {
            client,
            links,
            reached: Reached::default(),
            brokers,
            timeout,
            last_token: 0,
            not_formed,
        };
        remote.await_session().await?;
        Ok(remote)
    }

    async fn await_session(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.timeout;
        let mut last = None;
        loop {
            match tokio::time::timeout_at(deadline, self.links.next()).await {
                Ok(Some((link, mqtt::Event::Connected { .. }))) => {
                    self.reached.connected(link);
                    break;
                }
                Ok(Some((link, mqtt::Event::Disconnected { reason, .. }))) => {
                    self.reached.disconnected(link, reason.is_permanent());
                    if self.reached.is_hopeless(self.brokers) {
                        return Err(reason.into());
                    }
                    last = Some(reason);
                }
                Ok(Some(_)) => {}
                Ok(None) => return Err(Error::Closed),
                Err(_) => return Err(last.map_or(Error::TimedOut(self.timeout), Error::Connect)),
            }
        }
        self.step([ClientInput::Connected]);
        Ok(())
    }

    /// Changes the replicated state; see [`crate::RaftNode::propose`].
    ///
    /// # Errors
    /// [`Error::Unknown`] if no answer came in time; [`Error::TimedOut`] and [`Error::TooLarge`]:
    /// nothing was changed.
    pub async fn propose(&mut self, write: Write) -> Result<Written> {
        match self.request(Operation::Write(write)).await? {
            Done::Written(written) => Ok(written),
            _ => Err(Error::Unexpected),
        }
    }

    /// Sets a key.
    ///
    /// # Errors
    /// As [`Remote::propose`].
    pub async fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Written> {
        self.propose(Write::put(key, value)).await
    }

    /// Reads a key, linearizably.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if no leader answered in time.
    pub async fn get(&mut self, key: impl Into<Bytes>) -> Result<Reading> {
        match self.request(Operation::Get(key.into())).await? {
            Done::Read(reading) => Ok(reading),
            _ => Err(Error::Unexpected),
        }
    }

    /// Sets or removes a key if it has the expected value.
    ///
    /// # Errors
    /// As [`Remote::propose`].
    pub async fn compare_and_swap(
        &mut self,
        key: impl Into<Bytes>,
        expected: Option<Bytes>,
        value: Option<Bytes>,
    ) -> Result<Written> {
        let write = Write::compare_and_swap(key, expected, value);
        self.propose(write).await
    }

    /// Hands the lead over; see [`crate::RaftNode::transfer`].
    ///
    /// # Errors
    /// As there.
    pub async fn transfer(&mut self, to: Option<&str>) -> Result<String> {
        // Asked for twice, it must not go on to a third.
        let from = match to {
            None => Some(self.members().await?.leader),
            Some(_) => None,
        };
        let to = to.map(str::to_owned);
        match self
            .request(Operation::Transfer(Transfer { to, from }))
            .await?
        {
            Done::Transferred(leader) => Ok(leader),
            _ => Err(Error::Unexpected),
        }
    }

    /// Who belongs to the cluster, linearizably.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if no leader answered in time.
    pub async fn members(&mut self) -> Result<Members> {
        match self.request(Operation::Members).await? {
            Done::Members(members) => Ok(members),
            _ => Err(Error::Unexpected),
        }
    }

    /// Changes members and settings; see [`crate::RaftNode::change`].
    ///
    /// # Errors
    /// As there.
    pub async fn change(&mut self, change: Change) -> Result<Members> {
        match self.request(Operation::Change(change)).await? {
            Done::Members(members) => Ok(members),
            _ => Err(Error::Unexpected),
        }
    }

    async fn request(&mut self, operation: Operation) -> Result<Done> {
        self.last_token += 1;
        let token = Token(self.last_token);
        let timeout = self.timeout;
        let mut effects = self.step([ClientInput::Request {
            token,
            operation,
            timeout,
        }]);
        loop {
            for effect in effects {
                match effect {
                    ClientEffect::Done {
                        token: done,
                        result,
                    } if done == token => {
                        return result.map_err(|error| Error::of_request(error, timeout));
                    }
                    ClientEffect::Event(event) => self.note(event),
                    ClientEffect::Publish(_)
                    | ClientEffect::Done { .. }
                    | ClientEffect::Watched { .. } => {}
                }
            }
            effects = self.turn().await?;
        }
    }

    /// Reads a key as it stands on `node`, or on whichever node answers first: perhaps behind,
    /// but without a leader. With the name of the node that answered.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if no node answered in time; a name that is none.
    pub async fn get_stale(
        &mut self,
        key: impl Into<Bytes>,
        node: Option<&str>,
    ) -> Result<(String, Reading)> {
        let wanted: Bytes = key.into();
        let node = node.map(|node| checked("node id", node)).transpose()?;
        let deadline = Instant::now() + self.timeout;
        while Instant::now() < deadline {
            let ask = ClientInput::AskStale {
                key: wanted.clone(),
                node: node.clone(),
            };
            let mut effects = self.step([ask]);
            let ask_again = deadline.min(Instant::now() + ASK_AGAIN);
            while Instant::now() < ask_again {
                for effect in effects {
                    match effect {
                        ClientEffect::Event(ClientEvent::Stale { node, key, reading })
                            if key == wanted =>
                        {
                            return Ok((node.to_string(), reading));
                        }
                        ClientEffect::Event(event) => self.note(event),
                        ClientEffect::Publish(_)
                        | ClientEffect::Done { .. }
                        | ClientEffect::Watched { .. } => {}
                    }
                }
                effects = match tokio::time::timeout_at(ask_again, self.turn()).await {
                    Ok(more) => more?,
                    Err(_) => Vec::new(),
                };
            }
        }
        Err(Error::TimedOut(self.timeout))
    }

    /// Copies the state of the cluster, as a file can hold it: every write that was acknowledged
    /// before the call is in it. `from`: the node to copy it from; the leader where it is `None`. A
    /// `stale` copy is a node's own, perhaps behind, and needs no leader; where none is named, that of
    /// whoever has come furthest. The cluster goes on meanwhile.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if no answer, or no more of the copy, came in time; [`Error::Busy`] if the
    /// node keeps a copy for someone else; a name that is none.
    pub async fn save_snapshot(
        &mut self,
        from: Option<&str>,
        stale: bool,
    ) -> Result<SavedSnapshot> {
        let from = from.map(|node| checked("node id", node)).transpose()?;
        // A linearizable read: every write acknowledged before has at most this revision.
        let revision = match stale {
            true => 0,
            false => self.get(Bytes::new()).await?.revision,
        };
        let node = match from {
            Some(node) => node,
            None => self.whom_to_copy(stale).await?,
        };
        for _ in 0..COPIES {
            let export = self.ask_for_copy(&node, revision).await?;
            if let Some(snapshot) = self.fetch(&node, export, !stale).await? {
                return Ok(snapshot);
            }
        }
        Err(Error::TimedOut(self.timeout))
    }

    async fn whom_to_copy(&mut self, stale: bool) -> Result<Name> {
        if !stale && let Some(leader) = self.client.leader() {
            return Ok(leader.clone());
        }
        let wait = self.timeout.min(STATUS_WAIT);
        let statuses = self.statuses(wait).await?;
        let furthest = statuses.iter().max_by_key(|status| status.applied_index);
        let furthest = furthest.ok_or(Error::TimedOut(wait))?;
        checked("node id", &furthest.node)
    }

    /// Asks a node for a copy until it has one that has come so far.
    async fn ask_for_copy(&mut self, node: &Name, revision: u64) -> Result<Export> {
        let deadline = Instant::now() + self.timeout;
        let mut busy = false;
        while Instant::now() < deadline {
            let node = node.clone();
            let mut effects = self.step([ClientInput::AskSnapshot { node, revision }]);
            let ask_again = deadline.min(Instant::now() + ASK_AGAIN);
            while Instant::now() < ask_again {
                for effect in effects {
                    match effect {
                        ClientEffect::Event(ClientEvent::Save {
                            answer: Save::Ready(export),
                            ..
                        }) => return Ok(*export),
                        ClientEffect::Event(ClientEvent::Save { answer, .. }) => {
                            busy = answer == Save::Busy;
                        }
                        ClientEffect::Event(event) => self.note(event),
                        ClientEffect::Publish(_)
                        | ClientEffect::Done { .. }
                        | ClientEffect::Watched { .. } => {}
                    }
                }
                effects = match tokio::time::timeout_at(ask_again, self.turn()).await {
                    Ok(more) => more?,
                    Err(_) => Vec::new(),
                };
            }
        }
        Err(match busy {
            true => Error::Busy,
            false => Error::TimedOut(self.timeout),
        })
    }

    /// Fetches a copy; `None` if the node no longer has it, as after a restart.
    async fn fetch(
        &mut self,
        node: &Name,
        export: Export,
        complete: bool,
    ) -> Result<Option<SavedSnapshot>> {
        let mut download = Download::new(export);
        let mut deadline = Instant::now() + self.timeout;
        loop {
            if let Some(done) = download.finish(complete) {
                return done.map(Some).map_err(Error::Copy);
            }
            let (id, due) = (download.id(), download.due(clock::now()));
            let asks = due.into_iter().map(|offset| ClientInput::AskChunk {
                node: node.clone(),
                id,
                offset,
            });
            let mut effects = self.step(asks.collect::<Vec<_>>());
            let wait = download.deadline().map(|at| at.since(clock::now()));
            let wake = deadline.min(Instant::now() + wait.unwrap_or_default());
            match tokio::time::timeout_at(wake, self.turn()).await {
                Ok(more) => effects.extend(more?),
                Err(_) if Instant::now() >= deadline => return Err(Error::TimedOut(self.timeout)),
                Err(_) => {}
            }
            let before = download.arrived();
            for effect in effects {
                match effect {
                    ClientEffect::Event(ClientEvent::Chunk { id, offset, data }) => {
                        download.take(id, offset, data);
                    }
                    ClientEffect::Event(ClientEvent::Save {
                        answer: Save::Gone(gone),
                        ..
                    }) if gone == id => return Ok(None),
                    ClientEffect::Event(event) => self.note(event),
                    ClientEffect::Publish(_)
                    | ClientEffect::Done { .. }
                    | ClientEffect::Watched { .. } => {}
                }
            }
            if download.arrived() > before {
                deadline = Instant::now() + self.timeout;
            }
        }
    }

    /// Asks every node how it is, and takes the answers that come within `wait`; by name. Once
    /// every voter has answered, others get as long again and no longer.
    ///
    /// # Errors
    /// When the session with the broker was given up.
    pub async fn statuses(&mut self, wait: Duration) -> Result<Vec<NodeStatus>> {
        let more = |statuses: &Statuses, elapsed| all_voters_are_in(statuses).then_some(elapsed);
        let statuses = self.collect(wait, more).await?;
        Ok(statuses.into_values().collect())
    }

    /// Asks one node how it is; `None` if it did not answer within `wait`.
    ///
    /// # Errors
    /// When the session with the broker was given up.
    pub async fn status_of(&mut self, node: &str, wait: Duration) -> Result<Option<NodeStatus>> {
        let more = |statuses: &Statuses, _| statuses.contains_key(node).then_some(Duration::ZERO);
        let mut statuses = self.collect(wait, more).await?;
        Ok(statuses.remove(node))
    }

    /// Asks who leads: the status of the first node that says it does, if one does within `wait`.
    ///
    /// # Errors
    /// When the session with the broker was given up.
    pub async fn leading(&mut self, wait: Duration) -> Result<Option<NodeStatus>> {
        let leads = |status: &NodeStatus| status.leader.as_ref() == Some(&status.node);
        let more = |statuses: &Statuses, _| statuses.values().any(leads).then_some(Duration::ZERO);
        let statuses = self.collect(wait, more).await?;
        Ok(statuses.into_values().find(leads))
    }

    /// Asks every node how it is. After each answer `more` says how much longer to wait, where
    /// it is not to the end.
    async fn collect(
        &mut self,
        wait: Duration,
        more: impl Fn(&Statuses, Duration) -> Option<Duration>,
    ) -> Result<Statuses> {
        let started = Instant::now();
        let mut deadline = started + wait;
        let mut statuses = BTreeMap::new();
        let mut effects = self.step([ClientInput::AskStatus]);
        loop {
            for effect in effects {
                match effect {
                    ClientEffect::Event(ClientEvent::Status(status)) => {
                        statuses.insert(status.node.clone(), status);
                        if let Some(more) = more(&statuses, started.elapsed()) {
                            deadline = deadline.min(Instant::now() + more);
                        }
                    }
                    ClientEffect::Event(event) => self.note(event),
                    ClientEffect::Publish(_)
                    | ClientEffect::Done { .. }
                    | ClientEffect::Watched { .. } => {}
                }
            }
            match tokio::time::timeout_at(deadline, self.turn()).await {
                Ok(more) => effects = more?,
                Err(_) => return Ok(statuses),
            }
        }
    }

    /// Waits until another node leads, as far as this client hears of it, or `wait` is over. A
    /// hint when to look; what is certain, [`Remote::statuses`] tells.
    ///
    /// # Errors
    /// When the session with the broker was given up.
    pub async fn leader_changed(&mut self, wait: Duration) -> Result<()> {
        let deadline = Instant::now() + wait;
        let before = self.client.leader().cloned();
        while self.client.leader() == before.as_ref() {
            match tokio::time::timeout_at(deadline, self.turn()).await {
                Ok(effects) => drop(effects?),
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Nodes that answered but whose cluster is not formed, and the voters that each waits for.
    pub fn not_formed(&self) -> &BTreeMap<String, Vec<String>> {
        &self.not_formed
    }

    /// Changes the cluster keys: the first seals, all are accepted. See [`crate::KeyFile`] for the
    /// order of steps.
    ///
    /// # Errors
    /// When there is no key: a client does not become insecure.
    pub fn set_keys(&mut self, keys: impl Into<KeyRing>) -> Result<()> {
        let keys = keys.into();
        if keys.is_insecure() {
            return Err(Error::Missing(
                "the keys of a client are replaced, not taken away",
            ));
        }
        self.step([ClientInput::SetKeys(keys)]);
        Ok(())
    }

    /// Ends the session.
    pub async fn close(self) {
        self.links.disconnect().await;
    }

    /// Waits for something to happen, and sees it through. Safe to cancel.
    pub(crate) async fn turn(&mut self) -> Result<Vec<ClientEffect>> {
        let wake_at = self.client.next_deadline();
        let timer = async {
            match wake_at {
                Some(at) => tokio::time::sleep(at.since(clock::now())).await,
                None => std::future::pending().await,
            }
        };
        let input = tokio::select! {
            event = self.links.next() => match event {
                None => return Err(Error::Closed),
                Some((link, event)) => self.input(link, event),
            },
            () = timer => ClientInput::Tick,
        };
        Ok(self.step([input]))
    }

    /// What an event means to the client: it has a session as long as it has any.
    fn input(&mut self, link: Link, event: mqtt::Event) -> ClientInput {
        match event {
            mqtt::Event::Connected { .. } if self.reached.connected(link) => ClientInput::Connected,
            mqtt::Event::Message(message) => ClientInput::Received {
                topic: message.topic,
                payload: message.payload,
            },
            mqtt::Event::Disconnected { reason, .. } => {
                let ended = self.reached.disconnected(link, reason.is_permanent());
                match ended && self.reached.is_empty() {
                    true => ClientInput::Disconnected,
                    false => ClientInput::Tick,
                }
            }
            _ => ClientInput::Tick,
        }
    }

    pub(crate) fn step(
        &mut self,
        inputs: impl IntoIterator<Item = ClientInput>,
    ) -> Vec<ClientEffect> {
        let effects = self.client.step(inputs, clock::now());
        for effect in &effects {
            if let ClientEffect::Publish(Publish {
                topic,
                payload,
                retain,
            }) = effect
            {
                // What is lost is asked for again.
                let _ = self
                    .links
                    .publish(topic.as_str(), payload, Qos::AtMostOnce, *retain);
            }
        }
        effects
    }

    pub(crate) fn note(&mut self, event: ClientEvent) {
        match event {
            ClientEvent::NotFormed { node, missing } => {
                self.not_formed.insert(node.to_string(), missing);
            }
            ClientEvent::Refused { topic, reason } => {
                tracing::debug!("ignored a message on {topic}: {reason}");
            }
            // Of an earlier question.
            ClientEvent::Status(_)
            | ClientEvent::Stale { .. }
            | ClientEvent::Save { .. }
            | ClientEvent::Chunk { .. } => {}
        }
    }
}

/// Answers by name.
type Statuses = BTreeMap<String, NodeStatus>;

/// Whether every voter that anyone named has answered.
fn all_voters_are_in(statuses: &Statuses) -> bool {
    let mut voters = statuses
        .values()
        .flat_map(|status| &status.voters)
        .peekable();
    voters.peek().is_some() && voters.all(|voter| statuses.contains_key(voter))
}
