//! Hosts: a clock, a disk, a link, and the process that runs on them, which may die at any point.

use std::io::ErrorKind;
use std::time::Duration;

use raft::{NodeKey, Role, Time};
use replica::{
    Client, ClientEffect, ClientInput, ClientPlan, Config, Effect, Event as Told, Input, Name,
    Publish, Replica, SessionPlan, StopReason, Trouble,
};

use store::{OpenError, WriteError};

use crate::broker::Link;
use crate::check::Seen;
use crate::clock::Clock;
use crate::disk::{Attempt, Disk, Write, Written};
use crate::event::{Event, MS, Micros, SECOND};
use crate::faults::Fault;
use crate::trace;
use crate::world::World;

/// More steps than this without time passing: a process that spins.
const MAX_STEPS_AT_ONCE: u32 = 2_000;

/// How long a process is busy with one step, at most.
const MAX_STEP_TIME: Micros = 200;

/// How long what a process said can be under way to its rival, by the slowest broker.
const LAST_WORDS: Micros = 2 * SECOND;

/// What runs on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Voter,
    Observer,
    /// A second host under the name of another.
    Double(usize),
    Client,
}

pub(crate) enum Process {
    Node(Box<Replica>, SessionPlan),
    Client(Box<Client>, ClientPlan),
}

impl Process {
    pub(crate) fn replica(&self) -> Option<&Replica> {
        match self {
            Process::Node(replica, _) => Some(replica),
            Process::Client(..) => None,
        }
    }
}

pub(crate) struct Host {
    pub(crate) kind: Kind,
    pub(crate) name: Name,
    pub(crate) clock: Clock,
    pub(crate) disk: Disk,
    /// To each broker, in this host's own order.
    pub(crate) links: Vec<Link>,
    /// Counts the processes that ran here: events of an earlier one are void.
    pub(crate) life: u64,
    pub(crate) process: Option<Process>,
    pub(crate) started_at: Micros,
    /// When the last process ended.
    pub(crate) died_at: Option<Micros>,
    /// Stopped: nothing is taken, everything piles up.
    pub(crate) paused: bool,
    pub(crate) inbox: Vec<Input>,
    wakes: bool,
    /// Until then the process is at its last step; what arrives meanwhile waits for the next.
    busy_until: Micros,
    timer_at: Option<Micros>,
    /// Dies after carrying out so many more effects.
    pub(crate) dies_after: Option<u64>,
    pub(crate) disk_latency: Micros,
    /// The disk is slow, and nobody has waited for it yet.
    slowed: bool,
    pub(crate) stopped: Option<StopReason>,
    pub(crate) trouble: Option<Trouble>,
    /// How those behave who act on the node's being the only leader.
    pub(crate) owner: Owner,
    /// The node was asked to leave; and led then.
    pub(crate) leaves: bool,
    pub(crate) leaves_the_lead: bool,
    pub(crate) seen: Seen,
    steps_at_once: (Micros, u32),
}

/// How soon whoever acts on a node's being the only leader lets go, once told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Prompt,
    Slow(Micros),
    Never,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// The operating system closes its connection.
    Process,
    /// The host goes with it: the broker hears nothing.
    Host,
}

impl Host {
    pub(crate) fn new(kind: Kind, name: Name, key: NodeKey, disk_latency: Micros) -> Host {
        Host {
            kind,
            name,
            clock: Clock::new(0, 0, 0),
            disk: Disk::new(key),
            links: Vec::new(),
            life: 0,
            process: None,
            started_at: 0,
            died_at: None,
            paused: false,
            inbox: Vec::new(),
            wakes: false,
            busy_until: 0,
            timer_at: None,
            dies_after: None,
            disk_latency,
            slowed: false,
            stopped: None,
            trouble: None,
            owner: Owner::Prompt,
            leaves: false,
            leaves_the_lead: false,
            seen: Seen::default(),
            steps_at_once: (0, 0),
        }
    }

    pub(crate) fn replica(&self) -> Option<&Replica> {
        self.process.as_ref()?.replica()
    }

    pub(crate) fn session_needs(
        &self,
        session: replica::Session,
    ) -> (Option<Publish>, Vec<String>) {
        match &self.process {
            Some(Process::Node(_, plan)) => (Some(plan.will(session)), plan.subscriptions().into()),
            Some(Process::Client(_, plan)) => (None, vec![plan.subscription()]),
            None => (None, Vec::new()),
        }
    }

    /// Over which link it has a session.
    pub(crate) fn link_of(&self, session: u64) -> Option<usize> {
        let mut links = self.links.iter();
        links.position(|link| link.session == Some(session))
    }

    /// Its side of its sessions.
    pub(crate) fn sessions(&self) -> Vec<u64> {
        self.links.iter().filter_map(|link| link.session).collect()
    }

    /// Whether the process knows of any session.
    pub(crate) fn is_reached(&self) -> bool {
        self.links.iter().any(|link| link.is_up)
    }

    pub(crate) fn is_node(&self) -> bool {
        self.kind != Kind::Client
    }
}

impl World {
    // Life and death.

    pub(crate) fn start(&mut self, host: usize) {
        if self.hosts[host].process.is_some() {
            return;
        }
        if self.hosts[host].is_node() && !self.open_disk(host) {
            let wait = self.rng.exponential(5 * SECOND) + MS;
            self.queue.push(self.now + wait, Event::Start { host });
            return;
        }
        let begins_at = self.rng.below(1 << 40);
        let ppm = self.drift();
        let (now, seed) = (self.now, self.rng.bytes());
        let settings = self.plan.profile.settings();
        let voters: Vec<Name> = match self.hosts[host].kind {
            Kind::Observer => Vec::new(),
            // With its own name alone it would form a cluster of its own: who operates it knows that
            // there is one by now.
            Kind::Voter if self.formed() && self.voters().len() == 1 => Vec::new(),
            Kind::Voter | Kind::Double(_) | Kind::Client => self.voter_names(),
        };
        let h = &mut self.hosts[host];
        h.life += 1;
        h.clock = Clock::new(now, begins_at, ppm);
        h.started_at = now;
        let local = h.clock.read(now);
        let process = if h.kind == Kind::Client {
            let ring = self.ring.clone();
            let client = Client::new("raft", &self.plan.profile.cluster(), ring, seed, local)
                .expect("a good prefix");
            let plan = client.plan();
            Process::Client(Box::new(client), plan)
        } else {
            let config = Config {
                settings,
                ring: self.ring.clone(),
                raft: self.plan.profile.options(),
                hand_over: Some(self.plan.profile.hand_over()),
                relinquish_timeout: Duration::from_micros(self.plan.profile.relinquish_timeout),
                bounds: self.plan.profile.bounds(),
                ..Config::new(
                    h.name.clone(),
                    h.disk.key,
                    self.plan.profile.cluster(),
                    voters,
                )
            };
            let formation = h.disk.formation.clone();
            let replica = Replica::new(
                config,
                formation.as_deref(),
                h.disk.durable.clone(),
                seed,
                local,
            );
            let replica = replica.expect("a disk that it wrote itself");
            let plan = replica.session_plan();
            Process::Node(Box::new(replica), plan)
        };
        h.process = Some(process);
        h.inbox.clear();
        (h.wakes, h.timer_at, h.paused) = (false, None, false);
        (h.dies_after, h.stopped, h.trouble) = (None, None, None);
        (h.leaves, h.leaves_the_lead) = (false, false);
        h.links.iter_mut().for_each(|link| link.epoch = 0);
        h.seen = Seen::of(&h.disk.durable);
        let life = h.life;
        self.trace(host, || format!("starts, life {life}"));
        for link in 0..self.hosts[host].links.len() {
            self.connect(host, life, link);
        }
    }

    pub(crate) fn die(&mut self, host: usize, death: Death) {
        let now = self.now;
        let h = &mut self.hosts[host];
        if h.process.take().is_none() {
            return;
        }
        h.life += 1;
        h.paused = false;
        h.inbox.clear();
        h.died_at = Some(now);
        self.deaths.push((host, h.name.clone(), now));
        self.trace(host, || format!("dies ({death:?})"));
        self.stop_disk(host, death);
        self.claim_ends(host);
        let links = self.hosts[host].links.iter_mut();
        let sessions: Vec<u64> = links.filter_map(Link::forget).collect();
        for session in sessions {
            let at = match death {
                Death::Process => now + self.one_way(),
                Death::Host => now + self.plan.profile.keep_alive * 3 / 2,
            };
            self.queue.push(at, Event::BrokerNotices { session });
        }
    }

    /// A process stops: because its name is taken, and then someone else must have it; or because
    /// it is no member any more.
    fn stopped(&mut self, host: usize, reason: StopReason) {
        match &reason {
            StopReason::NameTaken(_) => self.stopped_for_its_name(host),
            StopReason::Removed => self.happened("removed node stops"),
            // No two disks here have one key.
            StopReason::Snapshot(_)
            | StopReason::Twin(_)
            | StopReason::Witness
            | StopReason::NoWitness => {
                panic!("{} stopped: {reason}", self.hosts[host].name)
            }
        }
        self.die(host, Death::Process);
        if matches!(reason, StopReason::NameTaken(_)) {
            self.gave_way.extend(self.deaths.pop());
        }
        self.hosts[host].stopped = Some(reason);
        let wait = match self.faults_end {
            true => SECOND,
            false => self.rng.exponential(10 * SECOND) + SECOND,
        };
        self.queue.push(self.now + wait, Event::Start { host });
    }

    fn stopped_for_its_name(&mut self, host: usize) {
        let (name, since) = (self.hosts[host].name.clone(), self.hosts[host].started_at);
        let mut others = self.hosts.iter().enumerate();
        let lives =
            others.any(|(n, other)| n != host && other.name == name && other.process.is_some());
        let mut deaths = self.deaths.iter().rev();
        let died = deaths.any(|(n, other, at)| *n != host && *other == name && *at >= since);
        // By several brokers, what a process said before it gave way may come by the slowest one as its
        // rival has connected anew; then both stop, and are started again.
        let said_late = self.plan.profile.brokers > 1
            && self
                .gave_way
                .iter()
                .any(|(n, other, at)| *n != host && *other == name && *at + LAST_WORDS >= self.now);
        let shared = lives || died || said_late;
        assert!(shared, "{name} stopped although nobody else has its name");
        self.happened("name taken");
        if !self.faults_end {
            self.mattered(Fault::Double.name());
        }
    }

    /// A process has done what it was asked to do before it stops. Its supervisor starts it again
    /// later, unless it is gone for good.
    fn has_stopped(&mut self, host: usize) {
        if self.hosts[host].leaves_the_lead && self.role(host) != Some(Role::Leader) {
            self.mattered(Fault::Leave.name());
        }
        match self.departs == Some(host) {
            true => self.die(host, Death::Process),
            false => self.fall(host, Death::Process),
        }
    }

    pub(crate) fn pause(&mut self, host: usize, pause: Micros) {
        let h = &mut self.hosts[host];
        h.paused = true;
        let life = h.life;
        self.queue
            .push(self.now + pause, Event::Resume { host, life });
        self.expect_overdue(host);
    }

    pub(crate) fn resume(&mut self, host: usize, life: u64) {
        let h = &mut self.hosts[host];
        if h.life != life || !h.paused {
            return;
        }
        h.paused = false;
        h.wakes = false;
        h.timer_at = None;
        let inputs = std::mem::take(&mut h.inbox);
        let late = h.deadline().is_some_and(|at| at < self.now);
        if late || !inputs.is_empty() {
            self.mattered(Fault::Pause.name());
        }
        self.trace(host, || "goes on".to_owned());
        self.step(host, inputs);
    }

    // Steps.

    /// Something reaches a process; it takes it as soon as it is done with what came before.
    pub(crate) fn arrive(&mut self, host: usize, input: Input) {
        self.arrive_together(host, [input]);
    }

    pub(crate) fn arrive_together(&mut self, host: usize, inputs: impl IntoIterator<Item = Input>) {
        let h = &mut self.hosts[host];
        if h.process.is_none() {
            return;
        }
        h.inbox.extend(inputs);
        if h.paused || h.wakes {
            return;
        }
        if h.busy_until <= self.now {
            return self.take_inbox(host);
        }
        h.wakes = true;
        let (at, life) = (h.busy_until, h.life);
        self.queue.push(at, Event::Wake { host, life });
    }

    fn take_inbox(&mut self, host: usize) {
        let inputs = std::mem::take(&mut self.hosts[host].inbox);
        self.step(host, inputs);
    }

    pub(crate) fn wake(&mut self, host: usize, life: u64) {
        let h = &mut self.hosts[host];
        if h.life != life || h.paused || !h.wakes {
            return;
        }
        h.wakes = false;
        self.take_inbox(host);
    }

    pub(crate) fn timer(&mut self, host: usize, life: u64) {
        let now = self.now;
        let h = &mut self.hosts[host];
        if h.life != life || h.paused || h.timer_at.is_none_or(|at| at > now) {
            return;
        }
        h.timer_at = None;
        let due = h.deadline().is_some_and(|at| at <= now);
        if due {
            self.step(host, vec![Input::Tick]);
        } else {
            self.set_timer(host);
        }
    }

    fn set_timer(&mut self, host: usize) {
        let h = &self.hosts[host];
        let Some(at) = h.deadline() else {
            return;
        };
        let at = at.max(self.now);
        if h.timer_at.is_some_and(|set| set <= at) {
            return;
        }
        let life = h.life;
        self.hosts[host].timer_at = Some(at);
        self.queue.push(at, Event::Timer { host, life });
    }

    /// Steps a process and carries out what it asks for.
    pub(crate) fn step(&mut self, host: usize, inputs: Vec<Input>) {
        self.steps += 1;
        self.notice_spinning(host);
        self.hosts[host].busy_until = self.now + self.rng.below(MAX_STEP_TIME);
        if self.traces() {
            for input in inputs.iter().filter(|input| !matches!(input, Input::Tick)) {
                self.trace(host, || format!("<- {}", World::describe_input(input)));
            }
        }
        let local = self.hosts[host].clock.read(self.now);
        self.check_inputs(host, &inputs, local);
        let h = &mut self.hosts[host];
        match &mut h.process {
            None => return,
            Some(Process::Node(replica, _)) => {
                let plotted = self.plot.is_some();
                let before = plotted.then(|| replica.role());
                let effects = replica.step(inputs, local);
                let after = plotted.then(|| replica.role());
                self.observe(host, &effects);
                if let Some(Some(role)) = after.filter(|_| after != before) {
                    self.plot_sees_role(host, role);
                }
                self.carry_out(host, effects);
                self.observe_claim(host);
            }
            Some(Process::Client(client, _)) => {
                let inputs: Vec<ClientInput> = inputs.into_iter().map(client_input).collect();
                let effects = client.step(inputs, local);
                self.carry_out_client(host, effects);
            }
        }
        let stopped = self.hosts[host].replica().is_some_and(Replica::has_stopped);
        match stopped {
            true => self.has_stopped(host),
            false => self.set_timer(host),
        }
    }

    fn notice_spinning(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        if h.steps_at_once.0 != self.now {
            h.steps_at_once = (self.now, 0);
        }
        h.steps_at_once.1 += 1;
        assert!(
            h.steps_at_once.1 < MAX_STEPS_AT_ONCE,
            "{} spins: its deadline never passes",
            h.name
        );
    }

    /// Carries out effects that were not looked at by [`World::step`].
    pub(crate) fn carry_out_all(&mut self, host: usize, effects: Vec<Effect>) {
        self.observe(host, &effects);
        self.carry_out(host, effects);
        self.observe_claim(host);
        self.set_timer(host);
    }

    fn carry_out(&mut self, host: usize, effects: Vec<Effect>) {
        for effect in effects {
            if let Some(left) = &mut self.hosts[host].dies_after {
                if *left == 0 {
                    self.mattered(Fault::KillBetweenEffects.name());
                    self.fall(host, Death::Process);
                    return;
                }
                *left -= 1;
            }
            self.carry_out_one(host, effect);
            if self.hosts[host].process.is_none() {
                return;
            }
        }
    }

    fn carry_out_one(&mut self, host: usize, effect: Effect) {
        match effect {
            Effect::Publish(publish) => {
                self.trace(host, || format!("-> {}", trace::describe(&publish)));
                self.check_promise(host, &publish);
                self.send_everywhere(host, publish);
            }
            Effect::PublishOver(link, publish) => {
                self.trace(host, || {
                    format!("-> over {link}: {}", trace::describe(&publish))
                });
                self.check_promise(host, &publish);
                self.send_up(host, link.place(), publish);
            }
            Effect::Persist(persist) => {
                self.trace(host, || {
                    format!(
                        "disk #{} {:?} snapshot {:?} +{} entries",
                        persist.seq,
                        persist.hard_state,
                        persist.snapshot.as_ref().map(|s| s.snapshot.meta.last),
                        persist.entries.len()
                    )
                });
                self.check_entries(host, &persist);
                self.write(host, Write::Log(Box::new(persist)));
            }
            Effect::SaveFormation(record) => self.write(host, Write::Formation(record)),
            Effect::Done { token, result } => {
                self.trace(host, || format!("request {} done: {result:?}", token.0));
                if result.is_ok() {
                    self.plot_sees_answer(host, token);
                }
                self.request_ends(token, result);
            }
            Effect::Watched { token, watched } => self.state_watched(host, token, &watched),
            Effect::Event(told) => self.hear(host, told),
        }
    }

    fn hear(&mut self, host: usize, told: Told) {
        match told {
            Told::Autopilot(why) => self.trace(host, || format!("autopilot: {why}")),
            Told::Relinquish => self.lets_go_of(host),
            Told::Stop(reason) => self.stopped(host, reason),
            Told::Trouble(trouble) => {
                self.trace(host, || format!("trouble: {trouble}"));
                match trouble {
                    Trouble::LostVoter { .. } => self.hosts[host].trouble = Some(trouble),
                    // A disk is wiped, or a second process started under a name.
                    Trouble::Wiped { .. } | Trouble::SharedName { .. } => {}
                    _ => panic!("{}: {trouble}", self.hosts[host].name),
                }
            }
            Told::TroubleEnded(trouble) => panic!("{trouble} had begun"),
            Told::Rejected { from, reason } => {
                panic!(
                    "{} hears nonsense of {from}: {reason:?}",
                    self.hosts[host].name
                )
            }
            Told::Refused { topic, reason } => {
                self.trace(host, || format!("refuses {topic}: {reason}"));
            }
            Told::StatusChanged => self.trace_status(host),
            Told::Presence(event) => self.trace(host, || format!("{event:?}")),
            Told::Joined { .. } | Told::Agreed => {}
        }
    }

    fn trace_status(&self, host: usize) {
        if let Some(replica) = self.hosts[host].replica() {
            let (role, term, leader) = (replica.role(), replica.term(), replica.leader());
            let leader = leader.map_or_else(|| "nobody".to_owned(), |name| name.to_string());
            self.trace(host, || format!("{role:?} in term {term} under {leader}"));
        }
    }

    fn carry_out_client(&mut self, host: usize, effects: Vec<ClientEffect>) {
        for effect in effects {
            match effect {
                ClientEffect::Publish(publish) => {
                    self.trace(host, || format!("-> {}", trace::describe(&publish)));
                    self.send_everywhere(host, publish);
                }
                ClientEffect::Done { token, result } => {
                    self.trace(host, || format!("request {} done: {result:?}", token.0));
                    self.request_ends(token, result);
                }
                ClientEffect::Watched { token, watched } => {
                    self.state_watched(host, token, &watched);
                }
                ClientEffect::Event(event) => self.trace(host, || format!("{event:?}")),
            }
        }
    }

    // Disks and clocks.

    fn write(&mut self, host: usize, write: Write) {
        if self.hosts[host].disk.write(write) {
            self.begin_batch(host);
        }
    }

    fn begin_batch(&mut self, host: usize) {
        if self.hosts[host].disk.take_survived() > 0 {
            self.happened("disk trouble survived");
        }
        let h = &mut self.hosts[host];
        let (life, latency) = (h.life, h.disk_latency);
        if std::mem::take(&mut h.slowed) {
            self.mattered(Fault::SlowDisk.name());
        }
        let at = self.now + latency / 2 + self.rng.below(latency);
        self.queue.push(at, Event::Written { host, life });
    }

    pub(crate) fn written(&mut self, host: usize, life: u64) {
        if self.hosts[host].life != life {
            return;
        }
        if self.faults_end {
            self.hosts[host].disk.mend();
        } else if let Some(death) = self.hosts[host].disk.dies_in_batch {
            self.mattered(match death {
                Death::Process => "kill during a write",
                Death::Host => "power cut during a write",
            });
            self.fall(host, death);
            return;
        }
        let batch = self.hosts[host].disk.batch_done();
        if let Some(error) = batch.failed {
            self.disk_failed(host, &error);
            return;
        }
        if batch.more {
            self.begin_batch(host);
        }
        let inputs = batch.written.into_iter().map(|written| match written {
            Written::Log(seq) => Input::Persisted(seq),
            Written::Formation => Input::FormationSaved,
        });
        self.arrive_together(host, inputs);
    }

    /// As in production, the process ends; its supervisor starts it again, on what is there then.
    fn disk_failed(&mut self, host: usize, error: &WriteError) {
        self.trace(host, || format!("{error}"));
        self.mattered(match error {
            WriteError::DiskFull { .. } => "disk full",
            WriteError::Failed {
                operation: "sync", ..
            } => "sync error",
            WriteError::Failed { source, .. } if source.kind() == ErrorKind::ReadOnlyFilesystem => {
                "read-only disk"
            }
            _ => panic!("{}: {error}", self.hosts[host].name),
        });
        self.fall(host, Death::Process);
    }

    /// Opens a node's data directory; if that fails, the operator sees to it before the next try.
    fn open_disk(&mut self, host: usize) -> bool {
        if self.hosts[host].disk.is_refused() {
            self.happened("rotten disk replaced");
            self.bury(host);
        }
        let mends = self.faults_end || self.rng.chance(0.5);
        let power = match !self.faults_end && self.rng.chance(0.05) {
            true => Some(self.rng.below(12)),
            false => None,
        };
        let fresh = self.draw_key();
        let h = &mut self.hosts[host];
        if mends {
            h.disk.mend();
        }
        if let Some(changes) = power {
            h.disk.cut_power_after(changes);
        }
        let cluster = self.plan.profile.cluster();
        match h.disk.open(h.name.as_str(), cluster.as_str(), fresh) {
            Ok(opened) => {
                h.disk.keep_power();
                if opened.torn {
                    self.happened("torn batch cut off");
                }
                match opened.attempt {
                    Attempt::None => {}
                    Attempt::Lost => self.happened("unconfirmed write lost"),
                    Attempt::Kept => self.happened("unconfirmed write kept"),
                }
                true
            }
            Err(error) => {
                self.trace(host, || format!("does not start: {error}"));
                self.refused(host, power.is_some(), &error);
                // The operator does not wait any more.
                self.faults_end && self.open_disk(host)
            }
        }
    }

    /// A store may refuse to open only where a fault gave it reason to.
    fn refused(&mut self, host: usize, power_cut: bool, error: &OpenError) {
        let disk = &mut self.hosts[host].disk;
        let why = match error {
            _ if disk.is_refused() => Fault::BitRot.name(),
            OpenError::DiskFull { .. } => "start on a full disk refused",
            OpenError::Unreadable { source, .. }
                if source.kind() == ErrorKind::ReadOnlyFilesystem =>
            {
                "start on a read-only disk refused"
            }
            OpenError::Unreadable { .. } if power_cut => "power cut during recovery",
            _ => panic!("{} does not start: {error}", self.hosts[host].name),
        };
        if power_cut {
            disk.cut_power(0);
        }
        self.happened(why);
    }

    /// What the disk is doing ends with the process, or with the host's power.
    fn stop_disk(&mut self, host: usize, death: Death) {
        if !self.hosts[host].is_node() {
            return;
        }
        let most = *self.rng.pick(&[3, 3, 20]).expect("three");
        let changes = self.rng.below(most);
        let disk = &mut self.hosts[host].disk;
        let crashed = match death {
            Death::Process => return disk.kill(changes),
            Death::Host => disk.cut_power(changes),
        };
        self.trace(host, || format!("{crashed:?}"));
        for (what, times) in [
            ("unsynced sectors lost", crashed.lost_sectors),
            ("unsynced names lost", crashed.lost_names),
            ("torn writes", crashed.torn_writes),
            ("reordered writes", crashed.reordered_files),
        ] {
            if times > 0 {
                self.happened(what);
            }
        }
    }

    /// A rate within what the cluster settled as the bound.
    pub(crate) fn drift(&mut self) -> i64 {
        let bound = i64::from(self.plan.profile.settings().drift_ppm);
        match self.rng.below(3) {
            0 => bound,
            1 => -bound,
            _ => self.rng.below(2 * bound as u64 + 1) as i64 - bound,
        }
    }

    /// Kills a process; a supervisor starts it again later.
    pub(crate) fn fall(&mut self, host: usize, death: Death) {
        self.die(host, death);
        let wait = self.rng.exponential(2 * SECOND) + MS;
        self.queue.push(self.now + wait, Event::Start { host });
    }
}

impl Host {
    pub(crate) fn slow_down_disk(&mut self, latency: Micros) {
        (self.disk_latency, self.slowed) = (latency, true);
    }

    fn deadline(&self) -> Option<Micros> {
        let deadline: Option<Time> = match self.process.as_ref()? {
            Process::Node(replica, _) => replica.next_deadline(),
            Process::Client(client, _) => client.next_deadline(),
        };
        deadline.map(|at| self.clock.true_time(at))
    }
}

fn client_input(input: Input) -> ClientInput {
    match input {
        Input::Connected(_) => ClientInput::Connected,
        Input::Disconnected(_) => ClientInput::Disconnected,
        Input::Received { topic, payload, .. } => ClientInput::Received { topic, payload },
        Input::Request {
            token,
            operation,
            timeout,
        } => ClientInput::Request {
            token,
            operation,
            timeout,
        },
        Input::SetKeys(ring) => ClientInput::SetKeys(ring),
        Input::Watch { token, range, from } => ClientInput::Watch { token, range, from },
        Input::Unwatch(token) => ClientInput::Unwatch(token),
        Input::Tick
        | Input::Persisted(_)
        | Input::FormationSaved
        | Input::SetMetric(_)
        | Input::Relinquished
        | Input::Leave
        | Input::Shutdown => ClientInput::Tick,
    }
}

/// How long a caller waits.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
