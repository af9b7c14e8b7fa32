//! What mqraft and its watchdog say to each other: records of 17 bytes over a pair of sockets.
//!
//! ```text
//!  mqraft                       watchdog                      command
//!    │── Limits ────────────────────▶│                            │
//!    │                               │── fork, exec ─────────────▶│
//!    │◀───────────────── Started ────│                            │
//!    │── Limits, each renewal ──────▶│                            │
//!    │── Signal, Stop, Kill ────────▶│── signals to the group ───▶│
//!    │◀────────────────── Exited ────│◀─────────────────── exit ──│
//!    │◀──────────────────── Gone ────│  no descendant is left
//!    │── closes ────────────────────▶│  ends
//! ```
//!
//! Whichever side closes first has died: the watchdog then kills, mqraft then takes over. The
//! command's own pid stays taken from `Started` until the end of the watchdog, which does not reap
//! it before: so a signal to its group never meets a stranger.

use rustix::process::{Pid, Signal};

use super::timing::{Limits, Moment};

/// One record: what it is, and two numbers.
pub(crate) const RECORD: usize = 17;

/// What mqraft tells the watchdog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// When the group has to end, as far as the claim goes. The first one starts the command.
    Limits(Limits),
    /// Passes a signal on.
    Signal(Signal),
    /// Ends the group: this signal now, SIGKILL then.
    Stop { signal: Signal, kill_at: Moment },
    /// Kills the group now.
    Kill,
}

/// What the watchdog tells mqraft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// The command runs as leader of this process group.
    Started(Pid),
    /// The command has ended, with its exit code, or 128 and the signal's number. Others of its
    /// group may be left.
    Exited(u8),
    /// The watchdog ends the group by itself: it was not told in time that the claim goes on.
    Overdue,
    /// Nothing of the command is left, or it never started.
    Gone,
}

impl Order {
    pub(crate) fn to_record(self) -> [u8; RECORD] {
        match self {
            Order::Limits(Limits { term_at, kill_at }) => record(1, term_at.0, kill_at.0),
            Order::Signal(signal) => record(2, number(signal), 0),
            Order::Stop { signal, kill_at } => record(3, number(signal), kill_at.0),
            Order::Kill => record(4, 0, 0),
        }
    }

    /// `None` if the other side is not the one that we know.
    pub(crate) fn from_record(record: &[u8; RECORD]) -> Option<Order> {
        let (kind, a, b) = parts(record);
        Some(match kind {
            1 => Order::Limits(Limits {
                term_at: Moment(a),
                kill_at: Moment(b),
            }),
            2 => Order::Signal(signal(a)?),
            3 => Order::Stop {
                signal: signal(a)?,
                kill_at: Moment(b),
            },
            4 => Order::Kill,
            _ => return None,
        })
    }
}

impl Report {
    pub(crate) fn to_record(self) -> [u8; RECORD] {
        match self {
            Report::Started(pid) => record(1, pid.as_raw_nonzero().get().unsigned_abs().into(), 0),
            Report::Exited(code) => record(2, code.into(), 0),
            Report::Overdue => record(3, 0, 0),
            Report::Gone => record(4, 0, 0),
        }
    }

    /// `None` if the other side is not the one that we know.
    pub(crate) fn from_record(record: &[u8; RECORD]) -> Option<Report> {
        let (kind, a, _) = parts(record);
        Some(match kind {
            1 => Report::Started(Pid::from_raw(i32::try_from(a).ok()?)?),
            2 => Report::Exited(u8::try_from(a).ok()?),
            3 => Report::Overdue,
            4 => Report::Gone,
            _ => return None,
        })
    }
}

fn record(kind: u8, a: u64, b: u64) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[0] = kind;
    record[1..9].copy_from_slice(&a.to_le_bytes());
    record[9..].copy_from_slice(&b.to_le_bytes());
    record
}

fn parts(record: &[u8; RECORD]) -> (u8, u64, u64) {
    let [kind, numbers @ ..] = record;
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&numbers[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    (*kind, number(0), number(8))
}

fn number(signal: Signal) -> u64 {
    signal.as_raw().unsigned_abs().into()
}

fn signal(number: u64) -> Option<Signal> {
    Signal::from_named_raw(i32::try_from(number).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let limits = Limits {
            term_at: Moment(7),
            kill_at: Moment(u64::MAX),
        };
        let stop = Order::Stop {
            signal: Signal::INT,
            kill_at: Moment(9),
        };
        for order in [
            Order::Limits(limits),
            Order::Signal(Signal::HUP),
            stop,
            Order::Kill,
        ] {
            assert_eq!(Order::from_record(&order.to_record()), Some(order));
        }
        let pid = Pid::from_raw(4_194_304).unwrap();
        for report in [
            Report::Started(pid),
            Report::Exited(143),
            Report::Overdue,
            Report::Gone,
        ] {
            assert_eq!(Report::from_record(&report.to_record()), Some(report));
        }
    }

    #[test]
    fn what_is_not_known_is_nothing() {
        assert_eq!(Order::from_record(&record(0, 0, 0)), None);
        assert_eq!(Order::from_record(&record(2, 0, 0)), None);
        assert_eq!(Order::from_record(&record(2, u64::MAX, 0)), None);
        assert_eq!(Report::from_record(&record(1, 0, 0)), None);
        assert_eq!(Report::from_record(&record(2, 256, 0)), None);
    }
}
