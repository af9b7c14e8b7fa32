//! The words of the commands about the replicated state beyond single keys.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Subcommand;

use super::ConnectionArgs;
use crate::duration::Span;

/// What can be done with the state beyond single keys.
#[derive(Subcommand)]
pub(crate) enum StateCommand {
    /// Lists keys and values, in the order of keys; exit code 1 if there are none.
    List {
        /// What they begin with [default: all but the cluster's own, which begin with _/]
        #[arg(default_value = "", value_name = "PREFIX")]
        keys: String,
        /// Without values.
        #[arg(long)]
        keys_only: bool,
        /// Prints how many there are and nothing else.
        #[arg(long, conflicts_with = "keys_only")]
        count: bool,
        /// How many at most [default: all]
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Adds to a key whose value is a decimal number, and prints the sum; an absent key counts as 0.
    Add {
        /// The key.
        key: String,
        /// How much.
        #[arg(default_value_t = 1, allow_hyphen_values = true)]
        delta: i64,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Does several things at once, if something holds: a JSON document says what. Exit code 1 if it
    /// did not hold.
    Txn {
        /// The file with the document; `-` is stdin.
        #[arg(default_value = "-")]
        file: PathBuf,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Leases: keys that hang on one go when it ends.
    #[command(subcommand)]
    Lease(LeaseCommand),
    /// Prints every change of keys, none left out and none told twice; with a command runs it for each.
    Watch {
        /// What the keys begin with.
        #[arg(value_name = "PREFIX")]
        keys: String,
        /// This key alone, in place of all that begin so.
        #[arg(long)]
        exact: bool,
        /// From this revision on, itself included [default: from now on]
        #[arg(long, value_name = "REVISION")]
        from: Option<u64>,
        /// First what is there already.
        #[arg(long, conflicts_with = "from")]
        initial: bool,
        /// Ends after so many changes.
        #[arg(long, value_name = "N")]
        count: Option<u64>,
        #[command(flatten)]
        connection: ConnectionArgs,
        /// A command and its arguments, run for one change after the other: MQRAFT_EVENT (put or
        /// delete), MQRAFT_KEY, MQRAFT_REVISION, and the value on stdin.
        #[arg(last = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Whether a node is the only leader at this moment: exit code 0 yes, 1 no, 2 not to be told.
    IsLeader {
        /// Which node [default: the one of --id, MQRAFT_ID or the file]
        node: Option<String>,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Prints what happens in the cluster, a line each: leaders, who comes and goes.
    Events {
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Shows who has won a named election; exit code 1 if nobody has. Whoever wants to win uses `run`,
    /// or the library.
    Election {
        /// The election.
        name: String,
        /// Goes on, with a line at each change.
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Waits until so many have come to a barrier.
    Barrier {
        /// The barrier.
        name: String,
        /// How many are waited for.
        #[arg(required_unless_present = "reset")]
        parties: Option<u32>,
        /// Closes it again, in place of waiting.
        #[arg(long, conflicts_with = "parties")]
        reset: bool,
        /// How long a party counts that is cut off.
        #[arg(long, value_name = "TIME", default_value = "10s")]
        ttl: Span,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Shares named shards with all that do so under the same group, and prints which are one's own
    /// whenever that changes.
    Work {
        /// The group.
        group: String,
        /// The shards, the same list for all.
        #[arg(long, value_name = "A,B,C", value_delimiter = ',', required = true)]
        shards: Vec<String>,
        /// Who takes part [default: the one of MQRAFT_ID or the file]
        #[arg(long, value_name = "ID")]
        id: Option<String>,
        /// How long a member counts that is cut off.
        #[arg(long, value_name = "TIME", default_value = "10s")]
        ttl: Span,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
}

/// What can be done with leases.
#[derive(Subcommand)]
pub(crate) enum LeaseCommand {
    /// Begins a lease and prints its number.
    Grant {
        /// How long it lives without being kept alive, 100ms to a year.
        ttl: Span,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Keeps a lease alive until interrupted; exit code 1 when it has ended.
    KeepAlive {
        /// The lease.
        lease: u64,
        /// Once.
        #[arg(long)]
        once: bool,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Ends a lease; what hangs on it goes.
    Revoke {
        /// The lease.
        lease: u64,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Shows how a lease stands.
    Show {
        /// The lease.
        lease: u64,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Lists all leases.
    List {
        #[command(flatten)]
        connection: ConnectionArgs,
    },
}

impl StateCommand {
    /// Takes out where the cluster is.
    pub(crate) fn connection(&mut self) -> ConnectionArgs {
        let (StateCommand::List { connection, .. }
        | StateCommand::Add { connection, .. }
        | StateCommand::Txn { connection, .. }
        | StateCommand::Watch { connection, .. }
        | StateCommand::IsLeader { connection, .. }
        | StateCommand::Events { connection, .. }
        | StateCommand::Election { connection, .. }
        | StateCommand::Barrier { connection, .. }
        | StateCommand::Work { connection, .. }
        | StateCommand::Lease(
            LeaseCommand::Grant { connection, .. }
            | LeaseCommand::KeepAlive { connection, .. }
            | LeaseCommand::Revoke { connection, .. }
            | LeaseCommand::Show { connection, .. }
            | LeaseCommand::List { connection, .. },
        )) = self;
        std::mem::take(connection)
    }
}
