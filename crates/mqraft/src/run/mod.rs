//! `mqraft run`: a program that runs on exactly one site at a time. `mqraft lock`: one that runs once,
//! when a lock is held.
//!
//! ```text
//!  claim.rs ── Granted, Renewed, Lost ──▶ supervisor.rs ── Spawn, Limits, Stop ──▶ guarded.rs
//!  signals ─────────────────────────────▶   (decides)                                  │ order.rs
//!                    Exited, Gone ◀──────────────────────────────────────────── watchdog.rs
//!                                                                                      │
//!                                                                                   command
//! ```
//!
//! `timing.rs` says when what has to happen, `family.rs` finds the processes. This file connects them:
//! it waits for whatever comes first, asks the supervisor and carries out what it says.

mod claim;
mod family;
mod guarded;
mod order;
mod supervisor;
mod timing;
pub(crate) mod watchdog;

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use raft_over_mqtt::Client;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::cli::Program;
use crate::exit::{Exit, Failure};
use crate::settings::{Connection, read_key_file};
pub(crate) use claim::Wanted;
use claim::{Claim, Contact};
use guarded::{Event, Guarded};
use order::Order;
pub(crate) use supervisor::Repeat;
use supervisor::{Grant, Input, Output, Rules, Supervisor};
use timing::{Limits, Moment, Timing};

/// The drift that a cluster assumes unless it has settled another.
const USUAL_DRIFT_PPM: u32 = 1_000;

/// What to run, and how.
pub(crate) struct Settings {
    /// What the program is to have before it runs.
    pub(crate) claim: Wanted,
    pub(crate) name: String,
    /// This site.
    pub(crate) node: String,
    pub(crate) command: Vec<OsString>,
    pub(crate) on_demote: Option<OsString>,
    pub(crate) grace: Duration,
    pub(crate) ttl: Option<Duration>,
    pub(crate) repeat: Repeat,
    /// Read again on SIGHUP.
    pub(crate) key_file: Option<PathBuf>,
}

impl Program {
    /// On the site of this name, with the cluster's key in this file.
    pub(crate) fn settings(self, node: String, key_file: Option<PathBuf>) -> Settings {
        match self {
            Program::Run(run) => Settings {
                claim: Wanted::Election,
                name: run.name,
                node,
                command: run.command,
                on_demote: run.on_demote,
                grace: run.grace.0,
                ttl: run.ttl.map(|ttl| ttl.0),
                repeat: match run.once {
                    true => Repeat::UntilItEnds,
                    false => Repeat::Always,
                },
                key_file,
            },
            Program::Lock(lock) => Settings {
                claim: Wanted::Lock {
                    permits: lock.permits,
                    wait: !lock.no_wait,
                },
                name: lock.name,
                node,
                command: lock.command,
                on_demote: None,
                grace: lock.grace.0,
                ttl: lock.ttl.map(|ttl| ttl.0),
                repeat: Repeat::Never,
                key_file,
            },
        }
    }
}

/// Runs the program when the claim is ours, as often as it is to be repeated and until a signal ends it.
/// The exit code is then the program's.
pub(crate) async fn run(settings: Settings, connection: Connection) -> Result<ExitCode, Failure> {
    Timing::new(settings.grace, settings.ttl, USUAL_DRIFT_PPM)?;
    must_exist(&settings.command)?;
    family::adopt_orphans().map_err(|error| stopped("adopt orphans", &error))?;
    let mut signals = signals()?;
    let contact = tokio::select! {
        contact = Contact::find(&connection) => contact?,
        signal = told_to_end(&mut signals) => {
            return Ok(ExitCode::from(settings.repeat.code_of_nothing(signal?)));
        }
    };
    let timing = Timing::new(settings.grace, settings.ttl, contact.drift_ppm)?;
    let claim = Claim::contend(&contact, &settings, timing.ttl);
    tracing::info!("waiting for {:?}", settings.name);
    let rules = Rules {
        timing,
        repeat: settings.repeat,
        on_demote: settings.on_demote.is_some(),
    };
    let runner = Runner {
        supervisor: Supervisor::new(rules),
        settings,
        client: contact.client,
        signals,
        claim: Some(claim),
        program: None,
        started: false,
        demotion: None,
        pending: VecDeque::new(),
    };
    runner.run().await
}

struct Runner {
    supervisor: Supervisor,
    settings: Settings,
    client: Client,
    signals: mpsc::Receiver<Signal>,
    claim: Option<Claim>,
    program: Option<Guarded>,
    /// The program was, since it was told to.
    started: bool,
    demotion: Option<Guarded>,
    /// What came of carrying out an output.
    pending: VecDeque<Input>,
}

impl Runner {
    async fn run(mut self) -> Result<ExitCode, Failure> {
        loop {
            let input = match self.pending.pop_front() {
                Some(input) => input,
                None => self.next().await?,
            };
            for output in self.supervisor.step(input, Moment::now()) {
                if let Output::Exit(code) = output {
                    // Also whoever only waits for the claim must not be waited for any longer.
                    self.give_up().await;
                    return Ok(ExitCode::from(code));
                }
                self.carry_out(output).await;
            }
        }
    }

    async fn next(&mut self) -> Result<Input, Failure> {
        let now = Moment::now();
        let deadline = self.supervisor.deadline(now);
        let timer = async {
            match deadline {
                Some(at) => tokio::time::sleep(at.since(now)).await,
                None => std::future::pending().await,
            }
        };
        Ok(tokio::select! {
            signal = self.signals.recv() => {
                let signal = signal.ok_or_else(signals_ended)?;
                if signal == Signal::HUP {
                    self.reload_keys().await;
                }
                Input::Signal(signal)
            }
            input = next_of_claim(&mut self.claim) => self.heard(input?),
            event = next_of(&mut self.program) => self.program_did(event),
            event = next_of(&mut self.demotion) => self.demotion_did(event),
            () = timer => Input::Tick,
        })
    }

    /// What cannot be used changes nothing.
    async fn reload_keys(&self) {
        let Some(path) = &self.settings.key_file else {
            return;
        };
        let changed = match read_key_file(path) {
            Ok(file) => self
                .client
                .set_keys(file.ring())
                .await
                .map_err(Failure::from),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = changed {
            tracing::error!("the keys stay as they were: {}", failure.message);
        }
    }

    fn heard(&self, input: Input) -> Input {
        let name = &self.settings.name;
        match input {
            Input::Granted(grant) => {
                tracing::info!("{name:?} is ours, with token {}", grant.token);
            }
            Input::Lost => tracing::warn!("{name:?} is lost"),
            _ => {}
        }
        input
    }

    fn program_did(&mut self, event: Event) -> Input {
        match event {
            Event::Started(group) => {
                tracing::info!("started, as process group {group}");
                self.started = true;
                Input::Tick
            }
            Event::Exited(code) => {
                tracing::info!("ended with exit code {code}");
                Input::Exited(code)
            }
            Event::Overdue => {
                tracing::warn!("stopped by the watchdog: the claim was not renewed in time");
                Input::Overdue
            }
            Event::Gone => {
                self.program = None;
                match self.started {
                    true => Input::Gone,
                    false => Input::NotStarted,
                }
            }
        }
    }

    fn demotion_did(&mut self, event: Event) -> Input {
        match event {
            Event::Started(_) | Event::Overdue => Input::Tick,
            Event::Exited(0) => Input::Tick,
            Event::Exited(code) => {
                tracing::warn!("the command for the demotion ended with exit code {code}");
                Input::Tick
            }
            Event::Gone => {
                self.demotion = None;
                Input::DemotionOver
            }
        }
    }

    async fn carry_out(&mut self, output: Output) {
        match output {
            Output::Spawn { grant, limits } => self.spawn(grant, limits),
            Output::Limits(limits) => self.order(Order::Limits(limits)),
            Output::Signal(signal) => self.order(Order::Signal(signal)),
            Output::Stop { signal, kill_at } => self.order(Order::Stop { signal, kill_at }),
            Output::Kill => self.order(Order::Kill),
            Output::Demote { grant, kill_at } => self.demote(grant, kill_at),
            Output::Release => self.give_up().await,
            Output::Exit(_) => unreachable!("the loop ends with it"),
        }
    }

    async fn give_up(&mut self) {
        if let Some(claim) = self.claim.take() {
            claim.release().await;
        }
    }

    fn spawn(&mut self, grant: Grant, limits: Limits) {
        self.started = false;
        match Guarded::spawn(&self.settings.command, &self.environment(grant), limits) {
            Ok(program) => self.program = Some(program),
            Err(error) => {
                tracing::error!("cannot start the watchdog: {error}");
                self.pending.push_back(Input::NotStarted);
            }
        }
    }

    /// By a shell, with its time as the only limit.
    fn demote(&mut self, grant: Grant, kill_at: Moment) {
        let line = self.settings.on_demote.clone().unwrap_or_default();
        let command = ["sh".into(), "-c".into(), line];
        let limits = Limits {
            term_at: kill_at,
            kill_at,
        };
        match Guarded::spawn(&command, &self.environment(grant), limits) {
            Ok(demotion) => self.demotion = Some(demotion),
            Err(error) => {
                tracing::error!("cannot run the command for the demotion: {error}");
                self.pending.push_back(Input::DemotionOver);
            }
        }
    }

    fn order(&mut self, order: Order) {
        if let Some(guarded) = self.program.as_mut().or(self.demotion.as_mut()) {
            guarded.order(order);
        }
    }

    fn environment(&self, grant: Grant) -> [(&'static str, String); 4] {
        [
            ("MQRAFT_NAME", self.settings.name.clone()),
            ("MQRAFT_NODE", self.settings.node.clone()),
            ("MQRAFT_TERM", grant.term.to_string()),
            ("MQRAFT_FENCING_TOKEN", grant.token.to_string()),
        ]
    }
}

async fn next_of_claim(claim: &mut Option<Claim>) -> Result<Input, Failure> {
    match claim {
        Some(claim) => claim.next().await,
        None => std::future::pending().await,
    }
}

async fn next_of(guarded: &mut Option<Guarded>) -> Event {
    match guarded {
        Some(guarded) => guarded.next().await,
        None => std::future::pending().await,
    }
}

/// The signals that are passed on, as they come.
fn signals() -> Result<mpsc::Receiver<Signal>, Failure> {
    let kinds = [
        (SignalKind::terminate(), Signal::TERM),
        (SignalKind::interrupt(), Signal::INT),
        (SignalKind::quit(), Signal::QUIT),
        (SignalKind::hangup(), Signal::HUP),
        (SignalKind::user_defined1(), Signal::USR1),
        (SignalKind::user_defined2(), Signal::USR2),
        (SignalKind::window_change(), Signal::WINCH),
    ];
    let (sender, signals) = mpsc::channel(16);
    for (kind, number) in kinds {
        let mut arrivals = listen(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while arrivals.recv().await.is_some() && sender.send(number).await.is_ok() {}
        });
    }
    // Whoever started us may have ignored it, and children are then reaped by nobody's leave: a
    // handler makes that the default again in all that we start.
    drop(listen(SignalKind::child())?);
    Ok(signals)
}

fn listen(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Failure> {
    signal(kind).map_err(|error| stopped("listen to signals", &error))
}

fn signals_ended() -> Failure {
    Failure::new(Exit::Stopped, "signals do not arrive any more")
}

/// Waits for a signal that ends us; nothing runs yet that others would be passed on to.
async fn told_to_end(signals: &mut mpsc::Receiver<Signal>) -> Result<Signal, Failure> {
    loop {
        let signal = signals.recv().await.ok_or_else(signals_ended)?;
        if supervisor::ends_us(signal) {
            return Ok(signal);
        }
    }
}

fn stopped(what: &str, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Stopped, format!("cannot {what}: {error}"))
}

/// A site where the program is not to be found must not take the claim from one where it is.
fn must_exist(command: &[OsString]) -> Result<(), Failure> {
    let Some(program) = command.first() else {
        return Err(Failure::usage("what to run? mqraft run … -- CMD"));
    };
    match candidates(program).iter().any(|path| is_executable(path)) {
        true => Ok(()),
        false => Err(Failure::usage(format!(
            "{}: no such program, or not executable",
            program.display()
        ))),
    }
}

/// Where the system would look.
fn candidates(program: &OsStr) -> Vec<PathBuf> {
    if program.as_encoded_bytes().contains(&b'/') {
        return vec![PathBuf::from(program)];
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&path).map(|dir| dir.join(program));
    candidates.collect()
}

fn is_executable(path: &Path) -> bool {
    let executable = |mode: u32| mode & 0o111 != 0;
    std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && executable(metadata.permissions().mode()))
}

/// What this host calls itself.
pub(crate) fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}
