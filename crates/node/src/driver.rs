//! The one task that runs a node: waits, lets the pure node think, and carries out what it says.
//!
//! ```text
//!  broker ─► events ─┐                                   ┌─► publisher ─► broker
//!  disk ───► written ├─► inputs ─► Replica::step ─► effects ├─► writer ─► disk
//!  callers ► commands┘        (all that waits, at once)   └─► answers, status, presence
//! ```
//!
//! Everything that has arrived is taken in one step, so that what came together is answered
//! together: one append, one sync, one acknowledgement.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use mqtt::{DisconnectReason, Qos};
use raft::{Role, Time};
use replica::{
    Done, Effect, Event, Input, KeyRing, Link, Metric, Publish, Reading, Replica, RequestError,
    Session, SessionPlan, Token, Watched,
};
use tokio::sync::{mpsc, oneshot};

use crate::beside::Beside;
use crate::clock;
use crate::error::{Error, Result};
use crate::kv::Ask;
use crate::links::{Links, Reached};
use crate::log::Log;
use crate::presence::AgreedMembers;
use crate::status::{Broker, Shared, Status};
use crate::writer::{Writer, Written};

/// How many inputs are taken in one step: bounds how long a burst delays the first answer.
const MAX_INPUTS: usize = 256;

/// How old the shown state of the log may be.
const SHOW_INTERVAL: Duration = Duration::from_millis(100);

/// Who is there is shown no sooner again than after this for each of them: a look costs the more the
/// more there are.
const SHOW_EACH: Duration = Duration::from_micros(100);

/// How many kinds and senders of rejected messages are told of; the rest are only counted.
const MAX_TOLD: usize = 256;

/// What a handle asks of the driver.
#[derive(Debug)]
pub(crate) enum Command {
    Ask(Ask),
    GetStale {
        key: Bytes,
        answer: oneshot::Sender<Reading>,
    },
    SetMetric(Metric),
    SetKeys(KeyRing),
    Shutdown,
}

pub(crate) struct Driver {
    pub(crate) replica: Replica,
    pub(crate) links: Links,
    /// The brokers, as their users write them.
    pub(crate) urls: Vec<String>,
    pub(crate) writer: Writer,
    pub(crate) written: mpsc::UnboundedReceiver<Written>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) plan: SharedPlan,
    pub(crate) beside: Beside,
    pub(crate) log: Log,
    pub(crate) state: DriverState,
}

/// What a new session needs, for the task that connects.
#[derive(Clone)]
pub(crate) struct SharedPlan(Arc<Mutex<SessionPlan>>);

impl SharedPlan {
    pub(crate) fn new(plan: SessionPlan) -> SharedPlan {
        SharedPlan(Arc::new(Mutex::new(plan)))
    }

    pub(crate) fn current(&self) -> SessionPlan {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set(&self, plan: SessionPlan) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = plan;
    }
}

/// What the driver remembers between steps.
#[derive(Default)]
pub(crate) struct DriverState {
    inputs: Vec<Input>,
    answers: BTreeMap<Token, oneshot::Sender<std::result::Result<Done, RequestError>>>,
    watches: BTreeMap<Token, oneshot::Sender<Watched>>,
    last_token: u64,
    reached: Reached,
    told: BTreeSet<String>,
    /// What was last said of each broker.
    last_faults: BTreeMap<Link, String>,
    /// Something changed that a watcher of the status waits for.
    changed: bool,
    /// The sessions to come need a new plan.
    new_keys: bool,
    is_leader: bool,
    shown_at: Time,
    /// Who is there may be shown again.
    nodes_at: Time,
    /// It has changed, and is to be shown then.
    nodes_late: bool,
    stopping: bool,
    /// No handle is left that could ask for anything.
    abandoned: bool,
    /// The lead is being handed over: whoever acts on the lease is to stop.
    relinquishing: bool,
}

impl Driver {
    /// Runs the node until it is shut down, or must stop.
    pub(crate) async fn run(mut self) -> Result<()> {
        let result = loop {
            if let Err(error) = self.turn().await {
                break Err(error);
            }
            if self.state.stopping && self.replica.has_stopped() {
                break Ok(());
            }
        };
        self.close(&result).await;
        result
    }

    /// Waits for something to happen, and sees it through.
    async fn turn(&mut self) -> Result<()> {
        self.wait().await?;
        self.gather()?;
        let inputs = std::mem::take(&mut self.state.inputs);
        let now = clock::now();
        if let Ok(shown) = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
            self.replica.set_wall_clock(shown, now);
        }
        let effects = self.replica.step(inputs, now);
        // A claim that is withdrawn or shortened must be so before anyone is told why.
        self.shared.set_lease(self.replica.lease());
        if std::mem::take(&mut self.state.new_keys) {
            self.plan.set(self.replica.session_plan());
            self.log.info("the cluster keys have changed");
        }
        self.carry_out(effects).await?;
        let beside = self
            .beside
            .step(&self.replica, &self.links, &self.shared, &self.log);
        self.state.changed |= beside;
        self.relinquish();
        self.show();
        Ok(())
    }

    async fn wait(&mut self) -> Result<()> {
        if !self.state.inputs.is_empty() {
            return Ok(());
        }
        let wake_at = self.next_wake();
        let relinquishing = self.state.relinquishing;
        let abandoned = self.state.abandoned;
        let timer = async {
            match wake_at {
                Some(at) => tokio::time::sleep(at.since(clock::now())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = self.links.next() => self.take_event(event),
            written = self.written.recv() => self.take_written(written),
            command = self.commands.recv(), if !abandoned => {
                // Nobody has a handle any more, which is so from now on: it is to be heard once.
                self.state.abandoned = command.is_none();
                self.take_command(command.unwrap_or(Command::Shutdown));
                Ok(())
            }
            () = self.shared.let_go(), if relinquishing => {
                self.relinquish();
                Ok(())
            }
            () = timer => {
                self.state.inputs.push(Input::Tick);
                Ok(())
            }
        }
    }

    /// Says that nobody acts on the lease any more, once that is so.
    fn relinquish(&mut self) {
        if self.state.relinquishing && !self.shared.is_held() {
            self.state.relinquishing = false;
            self.state.inputs.push(Input::Relinquished);
        }
    }

    /// The node's own deadline, and the edges of its lease: at both `is_leader` changes without
    /// any message.
    fn next_wake(&self) -> Option<Time> {
        let now = clock::now();
        let lease = self.replica.lease().map(|lease| [lease.from, lease.until]);
        let edges = lease.into_iter().flatten().filter(|edge| *edge > now);
        let late = self.state.nodes_late.then_some(self.state.nodes_at);
        let own = [
            self.replica.next_deadline(),
            self.beside.next_deadline(),
            late,
        ];
        own.into_iter().flatten().chain(edges).min()
    }

    /// Takes whatever else is there already.
    fn gather(&mut self) -> Result<()> {
        while self.state.inputs.len() < MAX_INPUTS {
            if let Ok(written) = self.written.try_recv() {
                self.take_written(Some(written))?;
            } else if let Ok(command) = self.commands.try_recv() {
                self.take_command(command);
            } else if let Some(event) = self.links.try_next() {
                self.take_event(Some(event))?;
            } else {
                break;
            }
        }
        Ok(())
    }

    // What came in.

    fn take_event(&mut self, event: Option<(Link, mqtt::Event)>) -> Result<()> {
        let Some((link, event)) = event else {
            return Err(Error::Closed);
        };
        match event {
            mqtt::Event::Connected { epoch } => {
                self.state.reached.connected(link);
                self.state.changed = true;
                self.state.last_faults.remove(&link);
                self.beside.on_connected();
                let (broker, epoch) = (self.broker(link), epoch.0);
                self.log
                    .info(&format!("connected to {broker}, session {epoch}"));
                let session = Session { link, epoch };
                self.state.inputs.push(Input::Connected(session));
            }
            mqtt::Event::Message(message) if self.beside.on_message(&message) => {}
            mqtt::Event::Message(message) => {
                let mqtt::Incoming {
                    topic,
                    payload,
                    retained,
                    properties: _,
                } = message;
                self.state.inputs.push(Input::Received {
                    over: link,
                    topic,
                    payload,
                    retained,
                });
            }
            mqtt::Event::Disconnected {
                reason, retry_in, ..
            } => {
                return self.on_disconnected(link, reason, retry_in);
            }
            mqtt::Event::PublishRefused { topic, detail } => {
                let broker = self.broker(link);
                let fault =
                    format!("{broker} refused a message on {topic}: {detail}; check its ACL");
                self.tell_once(fault);
            }
            _ => {}
        }
        Ok(())
    }

    fn on_disconnected(
        &mut self,
        link: Link,
        reason: DisconnectReason,
        retry_in: Duration,
    ) -> Result<()> {
        self.state.changed = true;
        let for_good = reason.is_permanent();
        if self.state.reached.disconnected(link, for_good) {
            self.state.inputs.push(Input::Disconnected(link));
            if self.state.reached.is_empty() {
                self.beside.on_disconnected();
            }
        }
        let fault = reason.to_string();
        if self.state.last_faults.get(&link) != Some(&fault) {
            let broker = match self.urls.len() {
                1 => String::new(),
                _ => format!("{}: ", self.broker(link)),
            };
            self.log.warn(&format!(
                "{broker}{fault}; trying again every {} s or so",
                retry_in.as_secs().max(1)
            ));
            self.state.last_faults.insert(link, fault);
        }
        if self.state.reached.is_hopeless(self.urls.len()) {
            return Err(Error::Connect(reason));
        }
        Ok(())
    }

    fn broker(&self, link: Link) -> String {
        match self.urls.as_slice() {
            [_] => "the broker".to_owned(),
            urls => urls.get(link.place()).cloned().unwrap_or_default(),
        }
    }

    fn take_written(&mut self, written: Option<Written>) -> Result<()> {
        match written {
            Some(Written::Persisted(seq)) => self.state.inputs.push(Input::Persisted(seq)),
            Some(Written::Formation) => self.state.inputs.push(Input::FormationSaved),
            Some(Written::Failed(error)) => return Err(Error::Disk(Arc::new(error))),
            None => return Err(Error::Closed),
        }
        Ok(())
    }

    fn take_command(&mut self, command: Command) {
        let input = match command {
            Command::Ask(Ask::Watch {
                range,
                from,
                answer,
            }) => {
                self.state.last_token += 1;
                let token = Token(self.state.last_token);
                self.state.watches.insert(token, answer);
                self.forget_watches();
                Input::Watch { token, range, from }
            }
            Command::Ask(Ask::Request {
                operation,
                timeout,
                answer,
            }) => {
                self.state.last_token += 1;
                let token = Token(self.state.last_token);
                self.state.answers.insert(token, answer);
                Input::Request {
                    token,
                    operation,
                    timeout,
                }
            }
            Command::GetStale { key, answer } => {
                let _ = answer.send(self.replica.store().get(&key));
                return;
            }
            Command::SetMetric(metric) => {
                self.state.changed = true;
                Input::SetMetric(metric)
            }
            Command::SetKeys(ring) => {
                self.state.new_keys = true;
                Input::SetKeys(ring)
            }
            Command::Shutdown => {
                self.state.stopping = true;
                Input::Leave
            }
        };
        self.state.inputs.push(input);
    }

    /// Whoever stopped waiting for changes is not waited for: looked at when another begins to.
    fn forget_watches(&mut self) {
        let DriverState {
            watches, inputs, ..
        } = &mut self.state;
        watches.retain(|token, answer| {
            let waits = !answer.is_closed();
            if !waits {
                inputs.push(Input::Unwatch(*token));
            }
            waits
        });
    }

    // What is to be done.

    async fn carry_out(&mut self, effects: Vec<Effect>) -> Result<()> {
        let (mut writes, mut published) = (Vec::new(), false);
        for effect in effects {
            match effect {
                Effect::Publish(publish) => {
                    self.publish(None, publish);
                    published = true;
                }
                Effect::PublishOver(link, publish) => self.publish(Some(link), publish),
                Effect::Persist(persist) => writes.push(persist),
                Effect::SaveFormation(record) => {
                    self.writer.persist(std::mem::take(&mut writes));
                    self.writer.save_formation(record);
                }
                Effect::Done { token, result } => {
                    if let Some(answer) = self.state.answers.remove(&token) {
                        // A caller that went away does not want to know.
                        let _ = answer.send(result);
                    }
                }
                Effect::Watched { token, watched } => {
                    if let Some(answer) = self.state.watches.remove(&token) {
                        let _ = answer.send(watched);
                    }
                }
                Effect::Event(event) => self.on_event(event)?,
            }
        }
        if writes.is_empty() {
            return Ok(());
        }
        // What a step publishes never waits for what it writes, and the others have the longer way: the
        // sessions send before the disk's thread is woken.
        if published {
            tokio::task::yield_now().await;
        }
        self.writer.persist(writes);
        Ok(())
    }

    /// In one session, or in all that are up.
    fn publish(&mut self, over: Option<Link>, publish: Publish) {
        let Publish {
            topic,
            payload,
            retain,
        } = publish;
        // Frames may be lost, consensus repairs that; a status is to arrive.
        let qos = if retain {
            Qos::AtLeastOnce
        } else {
            Qos::AtMostOnce
        };
        let published = match over {
            Some(link) => self.links.publish_over(link, topic, payload, qos, retain),
            None => self.links.publish(topic, &payload, qos, retain),
        };
        if let Err(error) = published {
            self.shared
                .count_rejection(format!("not published: {error}"));
        }
    }

    fn on_event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::StatusChanged => {
                self.state.changed = true;
                self.beside.on_node_changed();
                self.tell_role();
            }
            Event::Presence(change) => {
                self.state.changed = true;
                self.beside.on_presence();
                // Without anyone listening there is no one to tell.
                let _ = self.shared.presence.send(change);
            }
            Event::Agreed => self.state.changed = true,
            Event::Refused { topic, reason } => {
                self.shared.count_rejection(reason.to_string());
                self.tell_once(format!("ignored a message on {topic}: {reason}"));
            }
            Event::Rejected { from, reason } => {
                self.shared.count_rejection(format!("{reason:?}"));
                self.tell_once(format!("ignored a message from {from}: {reason:?}"));
            }
            Event::Trouble(trouble) => {
                self.beside.on_node_changed();
                self.log.warn(&trouble.to_string());
            }
            Event::TroubleEnded(trouble) => {
                self.beside.on_node_changed();
                self.log.info(&format!("no longer so: {trouble}"));
            }
            Event::Joined { voters, voter } => {
                let part = if voter { "with" } else { "without" };
                let voters = voters.join(", ");
                self.state.changed = true;
                self.beside.on_node_changed();
                self.log.info(&format!(
                    "of the cluster with voters {voters}, {part} a vote"
                ));
            }
            Event::Autopilot(why) => self.log.info(&format!("autopilot: {why}")),
            Event::Relinquish => {
                self.log.info("hands the lead over");
                self.state.relinquishing = true;
            }
            Event::Stop(reason) => return Err(Error::Stopped(reason)),
        }
        Ok(())
    }

    fn tell_role(&self) {
        let term = self.replica.term();
        match (self.replica.role(), self.replica.leader()) {
            (Some(Role::Leader), _) => self.log.info(&format!("leads term {term}")),
            (Some(Role::Candidate), _) => self.log.info(&format!("asks for votes in term {term}")),
            (Some(Role::PreCandidate), _) => self.log.info("asks whether it could lead"),
            (_, Some(leader)) => self.log.info(&format!("follows {leader} in term {term}")),
            (_, None) => self.log.info(&format!("without a leader in term {term}")),
        }
    }

    /// Says each thing once; whoever repeats it is only counted.
    fn tell_once(&mut self, what: String) {
        if self.state.told.len() < MAX_TOLD && self.state.told.insert(what.clone()) {
            self.log.warn(&what);
        }
    }

    // What can be seen from outside.

    /// Shows what changed: roles and the like at once, how far the log has come now and then.
    fn show(&mut self) {
        let is_leader = self.shared.current_lease().is_some();
        let now = clock::now();
        if self.state.nodes_late {
            self.show_nodes(now);
        }
        let stale = now.since(self.state.shown_at) >= SHOW_INTERVAL;
        if !std::mem::take(&mut self.state.changed) && self.state.is_leader == is_leader && !stale {
            return;
        }
        self.state.is_leader = is_leader;
        self.state.shown_at = now;
        self.show_nodes(now);
        let status = self.status();
        self.shared.status.send_if_modified(|shown| {
            let changed = *shown != status;
            *shown = status;
            changed
        });
    }

    fn show_nodes(&mut self, now: Time) {
        self.state.nodes_late = now < self.state.nodes_at;
        if self.state.nodes_late {
            return;
        }
        let mut nodes = self.replica.active_nodes();
        nodes.extend(self.beside.active_nodes());
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let each = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        self.state.nodes_at = now + SHOW_EACH.saturating_mul(each);
        self.shared.set_nodes(nodes);
        let agreed = self.replica.agreed();
        self.shared.set_agreed(AgreedMembers {
            revision: agreed.revision(),
            nodes: agreed.nodes().cloned().collect(),
        });
    }

    fn brokers(&self) -> Vec<Broker> {
        let broker = |(place, url): (usize, &String)| Broker {
            url: url.clone(),
            connected: Link::new(place).is_some_and(|link| self.state.reached.is_up(link)),
        };
        self.urls.iter().enumerate().map(broker).collect()
    }

    fn status(&self) -> Status {
        let status = self.replica.status();
        let missing = self.replica.missing_voters();
        let legacy = self
            .beside
            .legacy_status(self.shared.status.borrow().legacy.as_ref());
        Status {
            connected: !self.state.reached.is_empty(),
            brokers: self.brokers(),
            role: self.replica.role(),
            witness: self.replica.is_witness(),
            term: status.term,
            leader: status.leader,
            metric: status.metric,
            leader_metric: self.replica.leader_metric().map(Metric::value),
            is_leader: self.shared.current_lease().is_some(),
            last_index: status.last_index,
            commit_index: status.commit_index,
            applied_index: status.applied_index,
            applied_digest: status.applied_digest,
            voters: status.voters,
            missing_voters: missing.iter().map(|name| name.to_string()).collect(),
            trouble: status.trouble,
            legacy,
        }
    }

    /// Says farewell where there is still someone to hear it.
    async fn close(&mut self, result: &Result<()>) {
        self.shared.set_lease(None);
        if result.is_err() {
            let effects = self.replica.step([Input::Shutdown], clock::now());
            for effect in effects {
                match effect {
                    _ if name_is_taken(result) => {}
                    Effect::Publish(publish) => self.publish(None, publish),
                    Effect::PublishOver(link, publish) => self.publish(Some(link), publish),
                    _ => {}
                }
            }
        }
        self.links.disconnect().await;
        self.state.reached = Reached::default();
        let status = self.status();
        self.shared.status.send_replace(status);
    }
}

/// The other process's status stands under our name then, and is to stay.
fn name_is_taken(result: &Result<()>) -> bool {
    matches!(
        result,
        Err(Error::Stopped(replica::StopReason::NameTaken(_)))
    )
}
