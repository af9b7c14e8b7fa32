//! The process between mqraft and the command: it kills in time, whatever becomes of mqraft.
//!
//! It is the command's parent, holds the end of the claim on the clock that goes on while the machine
//! sleeps, and needs nobody's help: where mqraft does not renew, because it is stopped, swapped out or
//! cut off, the command gets SIGTERM and, its grace later, SIGKILL; where mqraft has died, SIGKILL at
//! once. It waits for nothing but its file descriptors: no lock, no log, no network.
//!
//! ```text
//!  mqraft ──▶ watchdog ──▶ exec stage = command ──▶ whatever the command starts
//!    │           │                │
//!    │           │                └ has the parent-death signal: SIGKILL if the watchdog dies
//!    │           └ adopts every orphan below it: leaving the process group is no way out
//!    └ adopts what is left if the watchdog dies, and kills it
//! ```
//!
//! What dies with both mqraft and the watchdog at the same moment is the command alone: what it had
//! started goes on. A service manager that kills the whole control group covers that.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, kill_process_group, pidfd_open,
    set_parent_process_death_signal,
};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::family;
use super::order::{Order, RECORD, Report};
use super::timing::{Limits, Moment};
use crate::cli::EXEC;

/// This program, even if its file has been replaced meanwhile.
pub(crate) const OWN_PROGRAM: &str = "/proc/self/exe";

/// How often to look for what no descriptor tells: on kernels before Linux 5.3.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// What a shell answers for a command that cannot be run, and for one that is not there.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Runs `command` as the leader of a process group of its own; orders come over stdin, which is a
/// socket. Returns when nothing of the command is left.
pub(crate) fn run(command: &[OsString]) -> ExitCode {
    match Watchdog::start(command) {
        Ok(Some(mut watchdog)) => {
            watchdog.watch();
            ExitCode::SUCCESS
        }
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("cannot watch over the command: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Becomes `command`, which dies if its parent, the watchdog, does. Returns only on failure.
pub(crate) fn exec(parent: i32, command: &[OsString]) -> ExitCode {
    let bound = set_parent_process_death_signal(Some(Signal::KILL));
    // The watchdog may have died before the signal was asked for.
    if bound.is_err() || getppid() != Pid::from_raw(parent) {
        return ExitCode::from(CANNOT_RUN);
    }
    let [program, arguments @ ..] = command else {
        return ExitCode::from(NOT_FOUND);
    };
    let error = Command::new(program).args(arguments).exec();
    say(&format!("cannot run {}: {error}", program.display()));
    ExitCode::from(match error.kind() {
        ErrorKind::NotFound => NOT_FOUND,
        _ => CANNOT_RUN,
    })
}

struct Watchdog {
    control: UnixStream,
    /// What has arrived of a record that is not complete.
    received: Vec<u8>,
    /// mqraft has died, or wants no more of us.
    closed: bool,
    timer: OwnedFd,
    limits: Limits,
    /// A stop was begun, and has to be over then.
    stop: Option<Moment>,
    killed: bool,
    /// Its pid and its group's; not reaped before the end, so that nobody else is given it.
    leader: Pid,
    exited: bool,
    /// Tells when the one ends that we wait for.
    awaited: Option<OwnedFd>,
}

impl Watchdog {
    /// Starts the command when the first limits are there. `None` if it was too late for that.
    fn start(command: &[OsString]) -> io::Result<Option<Watchdog>> {
        let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        family::adopt_orphans()?;
        let timer = timerfd_create(
            TimerfdClockId::Boottime,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let mut record = [0; RECORD];
        (&control).read_exact(&mut record)?;
        let Some(Order::Limits(limits)) = Order::from_record(&record) else {
            return Err(ErrorKind::InvalidData.into());
        };
        control.set_nonblocking(true)?;
        let leader = match Moment::now() < limits.term_at {
            true => spawn(command),
            false => Err(io::Error::other("its claim ends too soon")),
        };
        let leader = match leader {
            Ok(leader) => leader,
            Err(error) => {
                report(&control, Report::Gone);
                say(&format!("the command was not started: {error}"));
                await_end(&control);
                return Ok(None);
            }
        };
        report(&control, Report::Started(leader));
        Ok(Some(Watchdog {
            control,
            received: Vec::new(),
            closed: false,
            timer,
            limits,
            stop: None,
            killed: false,
            leader,
            exited: false,
            awaited: pidfd_open(leader, PidfdFlags::empty()).ok(),
        }))
    }

    fn watch(&mut self) {
        loop {
            // Orders first: a renewal that arrived while this process was held up still counts.
            self.take_orders();
            if self.closed {
                self.kill("mqraft has ended");
            }
            self.look_at_the_clock();
            if self.nothing_is_left() {
                break;
            }
            self.wait();
        }
        report(&self.control, Report::Gone);
        if !self.closed {
            await_end(&self.control);
        }
        family::reap(self.leader);
    }

    fn take_orders(&mut self) {
        let mut buffer = [0; 64 * RECORD];
        while !self.closed {
            match (&self.control).read(&mut buffer) {
                Ok(0) => self.closed = true,
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.closed = true,
            }
        }
        let received = std::mem::take(&mut self.received);
        let (records, rest) = received.as_chunks::<RECORD>();
        self.received = rest.to_vec();
        for record in records {
            match Order::from_record(record) {
                Some(order) => self.obey(order),
                None => self.closed = true,
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Limits(limits) => self.limits = limits,
            Order::Signal(signal) => self.signal_group(signal),
            Order::Stop { signal, kill_at } => self.stop(signal, kill_at),
            Order::Kill => self.kill_all(),
        }
    }

    fn look_at_the_clock(&mut self) {
        let now = Moment::now();
        if now >= self.kill_at() {
            if self.stop.is_none() {
                report(&self.control, Report::Overdue);
            }
            self.kill("its time is over");
        } else if now >= self.limits.term_at && self.stop.is_none() {
            report(&self.control, Report::Overdue);
            self.stop(Signal::TERM, self.limits.kill_at);
        }
    }

    fn kill_at(&self) -> Moment {
        let stop = self.stop.unwrap_or(self.limits.kill_at);
        stop.min(self.limits.kill_at)
    }

    fn stop(&mut self, signal: Signal, kill_at: Moment) {
        let earlier = self.stop.unwrap_or(kill_at);
        self.stop = Some(kill_at.min(earlier));
        self.signal_group(signal);
        for child in self.strays().unwrap_or_default() {
            family::signal(child, signal);
        }
        // One that is stopped would not see it.
        self.signal_group(Signal::CONT);
    }

    fn kill(&mut self, why: &str) {
        if !self.killed {
            self.kill_all();
            say(&format!("killed process group {}: {why}", self.leader));
        }
    }

    fn kill_all(&mut self) {
        self.killed = true;
        self.signal_group(Signal::KILL);
        for child in self.others().unwrap_or_default() {
            family::signal(child, Signal::KILL);
        }
    }

    fn signal_group(&self, signal: Signal) {
        // Nobody may be left to hear it.
        let _ = kill_process_group(self.leader, signal);
    }

    /// Our children but for the command.
    fn others(&self) -> io::Result<Vec<family::Child>> {
        let mut children = family::children()?;
        children.retain(|child| child.pid != self.leader);
        Ok(children)
    }

    /// Those of them that have left the group.
    fn strays(&self) -> io::Result<Vec<family::Child>> {
        let mut strays = self.others()?;
        strays.retain(|child| child.group != self.leader);
        Ok(strays)
    }

    /// Reaps whoever has ended; true if the command has and no descendant is left.
    fn nothing_is_left(&mut self) -> bool {
        if !self.exited {
            if let Some(code) = family::exited(self.leader) {
                self.exited = true;
                report(&self.control, Report::Exited(code));
            } else if family::any_exited() {
                for orphan in self.others().unwrap_or_default() {
                    family::reap(orphan.pid);
                }
            }
        }
        self.exited && self.no_other_is_left()
    }

    fn no_other_is_left(&mut self) -> bool {
        self.awaited = None;
        loop {
            let Ok(others) = self.others() else {
                return false;
            };
            if others.is_empty() {
                return true;
            }
            let mut living = None;
            for child in others {
                if self.killed {
                    family::signal(child, Signal::KILL);
                }
                if !family::reap(child.pid) {
                    living = Some(child);
                }
            }
            if let Some(child) = living {
                self.awaited = pidfd_open(child.pid, PidfdFlags::empty()).ok();
                return false;
            }
        }
    }

    /// Until an order, the next limit, or the end of whom we wait for.
    fn wait(&mut self) {
        self.set_timer();
        let mut descriptors: Vec<BorrowedFd<'_>> = vec![self.timer.as_fd()];
        if !self.closed {
            descriptors.push(self.control.as_fd());
        }
        let timeout = match &self.awaited {
            Some(awaited) => {
                descriptors.push(awaited.as_fd());
                None
            }
            None => Some(LOOK_INTERVAL),
        };
        poll_in(&descriptors, timeout);
    }

    /// An absolute time on the clock itself, so that it fires at once after a suspend.
    fn set_timer(&self) {
        let next = match self.stop {
            _ if self.killed => return self.disarm(),
            Some(_) => self.kill_at(),
            None => self.limits.term_at.min(self.limits.kill_at),
        };
        self.arm(next.0.max(1));
    }

    fn disarm(&self) {
        self.arm(0);
    }

    fn arm(&self, micros: u64) {
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let at = Timespec {
            tv_sec: i64::try_from(micros / 1_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(micros % 1_000_000 * 1_000).unwrap_or_default(),
        };
        let spec = Itimerspec {
            it_interval: zero,
            it_value: at,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec)
            .expect("a time that the timer takes");
    }
}

/// Starts the command by way of the exec stage.
fn spawn(command: &[OsString]) -> io::Result<Pid> {
    let parent = getpid().as_raw_nonzero().to_string();
    let child = Command::new(OWN_PROGRAM)
        .arg0("mqraft")
        .args([EXEC, &parent, "--"].map(OsStr::new))
        .args(command)
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()?;
    Ok(Pid::from_child(&child))
}

/// Nothing can be done about a report that does not arrive: mqraft has died, or is stopped and the
/// few records that there are fill no buffer.
fn report(mut control: &UnixStream, report: Report) {
    let _ = control.write_all(&report.to_record());
}

/// Waits until mqraft has heard the last report and closes.
fn await_end(mut control: &UnixStream) {
    let mut rest = [0; RECORD];
    loop {
        match control.read(&mut rest) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                poll_in(&[control.as_fd()], None);
            }
            Err(_) => return,
        }
    }
}

fn poll_in(descriptors: &[BorrowedFd<'_>], timeout: Option<Duration>) {
    let descriptors = descriptors.iter();
    let mut fds: Vec<PollFd<'_>> = descriptors
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    // Interrupted or not, whoever called looks again.
    let _ = poll(&mut fds, timeout.as_ref());
}

/// A line on stderr, if that takes it at once: a reader that hangs must not hold up the watchdog.
fn say(what: &str) {
    let stderr = io::stderr();
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    if poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0) {
        let _ = writeln!(&stderr, "mqraft: {what}");
    }
}
