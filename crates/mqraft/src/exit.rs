//! How a command ends: one number for scripts, one sentence for people.

use std::process::ExitCode;
use std::sync::Arc;

use raft_over_mqtt::Error;

/// What `--help` and docs/cli.md say about exit codes.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  a negative answer: no such key, no leader, another value than expected, a change refused, a broker that is not fit
  2  wrong usage or configuration
  3  the broker cannot be reached or refused us
  4  no answer in time; nothing was changed
  5  outcome unknown: it may have been done or may yet be
  6  the data directory, a snapshot or their disk
  7  the node had to stop, for instance because its name is taken";

/// Why a command did not succeed, by what a script can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Negative = 1,
    Usage = 2,
    Broker = 3,
    NoAnswer = 4,
    OutcomeUnknown = 5,
    Disk = 6,
    Stopped = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// A command's bad end. An empty message: the answer itself is the output, as for an absent key.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Failure {
        let message = message.into();
        Failure { exit, message }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, message)
    }

    /// The answer was given, and it is no.
    pub(crate) fn negative() -> Failure {
        Failure::new(Exit::Negative, "")
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::from(&error)
    }
}

impl From<Arc<Error>> for Failure {
    fn from(error: Arc<Error>) -> Failure {
        Failure::from(&*error)
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Failure {
        Failure::new(exit_of(error), error.to_string())
    }
}

fn exit_of(error: &Error) -> Exit {
    match error {
        Error::Ended(cause) => exit_of(cause),
        Error::Connect(_) => Exit::Broker,
        Error::TimedOut(_) | Error::Busy | Error::NotYet(..) => Exit::NoAnswer,
        Error::Refused(_) | Error::NoSuchLease | Error::Full(_) | Error::Compacted { .. } => {
            Exit::Negative
        }
        Error::Unknown(_) => Exit::OutcomeUnknown,
        Error::Open(_)
        | Error::Disk(_)
        | Error::Formation(_)
        | Error::Unfinished(_)
        | Error::File { .. }
        | Error::Snapshot { .. }
        | Error::Copy(_)
        | Error::Found(_)
        | Error::NotEmpty(_) => Exit::Disk,
        Error::Stopped(_) | Error::Closed | Error::Random(_) => Exit::Stopped,
        // What is left was wrong in what we were given; so is, by its default, what a later
        // version of the library adds.
        _ => Exit::Usage,
    }
}
