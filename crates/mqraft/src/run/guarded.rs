//! mqraft's side of a command that runs under a watchdog.
//!
//! [`Guarded`] starts the watchdog, passes it limits and orders, and says what became of the command.
//! It relies on the watchdog for every signal but one: where the group has to be killed, mqraft kills
//! it as well, so that a watchdog that is itself stopped delays nothing. If the watchdog dies, its
//! orphans become children of this process, which must be a subreaper, and are killed here.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::family;
use super::order::{Order, RECORD, Report};
use super::timing::Limits;
use super::watchdog::OWN_PROGRAM;
use crate::cli::WATCHDOG;

/// How long the watchdog may take to report the end of what was killed; then it is killed itself,
/// and its orphans are looked after here. Half of the margin between SIGKILL and the end of a claim.
const PATIENCE: Duration = Duration::from_millis(500);

/// How often to look whether orphans have died.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// What became of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It runs, as this process group.
    Started(Pid),
    /// It has ended, with this exit code, or 128 and the number of the signal; others of its group may
    /// go on.
    Exited(u8),
    /// The watchdog ends it: the claim was not prolonged in time.
    Overdue,
    /// Nothing of it is left. The last event.
    Gone,
}

/// A command under a watchdog. Dropped, it is killed.
pub(crate) struct Guarded {
    /// `None` once the watchdog is not to be relied on: closing it makes a living one kill.
    control: Option<UnixStream>,
    received: Vec<u8>,
    watchdog: Child,
    group: Option<Pid>,
    /// When the watchdog has had its time to kill.
    give_up_at: Option<Instant>,
    /// Children of this process that were there before.
    strangers: Vec<Pid>,
}

impl Guarded {
    /// Starts `command` with `env` beside our own environment, and nothing on stdin. It ends as the
    /// limits say, whatever becomes of this process; if it is too late already, it does not start.
    ///
    /// # Errors
    /// When the watchdog cannot be started.
    pub(crate) fn spawn(
        command: &[OsString],
        env: &[(&str, String)],
        limits: Limits,
    ) -> io::Result<Guarded> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let strangers = family::children()?;
        let watchdog = Command::new(OWN_PROGRAM)
            .arg0("mqraft")
            .args([WATCHDOG, "--"])
            .args(command)
            .envs(env.iter().map(|(name, value)| (name, value)))
            // A group of its own: what the terminal sends is for mqraft to pass on.
            .process_group(0)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()?;
        let mut guarded = Guarded {
            control: Some(UnixStream::from_std(ours)?),
            received: Vec::new(),
            watchdog,
            group: None,
            give_up_at: None,
            strangers: strangers.into_iter().map(|child| child.pid).collect(),
        };
        guarded.order(Order::Limits(limits));
        Ok(guarded)
    }

    /// Tells the watchdog. A kill is carried out here as well.
    pub(crate) fn order(&mut self, order: Order) {
        let record = order.to_record();
        // Past the runtime, which would first want to have been told that there is room.
        let control = self.control.as_ref();
        let sent = control.map(|control| rustix::io::write(control, &record));
        // A watchdog that has not read hundreds of orders is not one that will kill in time.
        if sent.is_some_and(|sent| !sent.is_ok_and(|count| count == RECORD)) {
            self.control = None;
        }
        if order == Order::Kill {
            // The leader is not reaped before the watchdog has ended: the group is still ours.
            if let Some(group) = self.group {
                let _ = kill_process_group(group, Signal::KILL);
            }
            self.give_up_at
                .get_or_insert_with(|| Instant::now() + PATIENCE);
        }
    }

    /// What happens next. Safe to cancel; not to be called after [`Event::Gone`].
    pub(crate) async fn next(&mut self) -> Event {
        while self.control.is_some() {
            if let Some(report) = self.take_report() {
                match report {
                    Some(Report::Started(group)) => {
                        self.group = Some(group);
                        return Event::Started(group);
                    }
                    Some(Report::Exited(code)) => return Event::Exited(code),
                    Some(Report::Overdue) => return Event::Overdue,
                    Some(Report::Gone) => {
                        self.group = None;
                        self.control = None;
                        let _ = self.watchdog.wait().await;
                        return Event::Gone;
                    }
                    None => self.control = None,
                }
                continue;
            }
            self.read().await;
        }
        self.take_over().await;
        Event::Gone
    }

    /// A whole record, if there is one; `Some(None)` if it is none that we know.
    fn take_report(&mut self) -> Option<Option<Report>> {
        let record = self.received.first_chunk::<RECORD>().copied()?;
        self.received.drain(..RECORD);
        Some(Report::from_record(&record))
    }

    async fn read(&mut self) {
        let Some(control) = &self.control else { return };
        let patience = async {
            match self.give_up_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            readable = control.readable() => {
                let mut buffer = [0; 8 * RECORD];
                match readable.and_then(|()| control.try_read(&mut buffer)) {
                    Ok(0) => self.control = None,
                    Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => self.control = None,
                }
            }
            () = patience => self.control = None,
        }
    }

    /// Without a watchdog: its end first, since only then are its orphans ours.
    async fn take_over(&mut self) {
        tracing::warn!("the watchdog has ended or does not answer: killing what it watched over");
        if let Some(group) = self.group {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.watchdog.start_kill();
        let _ = self.watchdog.wait().await;
        loop {
            match self.kill_orphans() {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => tracing::error!("cannot look for orphans: {error}"),
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        self.group = None;
    }

    /// How many there were.
    fn kill_orphans(&self) -> io::Result<usize> {
        let mut orphans = family::children()?;
        orphans.retain(|child| !self.strangers.contains(&child.pid));
        for orphan in &orphans {
            family::signal(*orphan, Signal::KILL);
            family::reap(orphan.pid);
        }
        Ok(orphans.len())
    }
}
