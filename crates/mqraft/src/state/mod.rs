//! The commands about the replicated state beyond single keys: ranges, transactions, leases, watches,
//! and what is made of them.

mod lease;
mod recipes;
mod show;
mod transaction;
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Subcommand;
use raft_over_mqtt::{
    Action, ActionResult, Client, KeyRange, Kv, LeaseId, RangeReading, RangeRequest, Transaction,
};
use serde_json::json;

use crate::cli::{ConnectionArgs, Format};
use crate::duration::Span;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::settings::Connection;

/// How many keys one transaction of `delete --prefix` removes.
const DELETED_AT_ONCE: u32 = 1_000;

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

/// Carries a command out. `id` is who we are by environment or file.
pub(crate) async fn run(
    connection: Connection,
    id: Option<String>,
    command: StateCommand,
    format: Format,
) -> Result<(), Failure> {
    // These ask nodes, not the state.
    match command {
        StateCommand::IsLeader { node, .. } => {
            return recipes::is_leader(connection, node.or(id), format).await;
        }
        StateCommand::Events { .. } => return watch::events(connection, format).await,
        _ => {}
    }
    let kv = connect(connection).await?;
    match command {
        StateCommand::List {
            keys,
            keys_only,
            count,
            limit,
            ..
        } => {
            let request = RangeRequest {
                keys_only,
                count_only: count,
                limit: limit.unwrap_or(0),
                ..RangeRequest::all(KeyRange::Prefix(keys.into()))
            };
            list(&kv, request, limit, format).await
        }
        StateCommand::Add { key, delta, .. } => {
            let sum = kv.add(key.clone(), delta).await?;
            output::answer(
                format,
                || sum.to_string(),
                || json!({ "key": key, "value": sum }),
            );
            Ok(())
        }
        StateCommand::Txn { file, .. } => {
            let document = crate::store::value(None, Some(file))?;
            transaction::run(&kv, &document, format).await
        }
        StateCommand::Lease(command) => lease::run(&kv, command, format).await,
        StateCommand::Watch {
            keys,
            exact,
            from,
            initial,
            count,
            command,
            ..
        } => {
            let range = match exact {
                true => KeyRange::Key(keys.into()),
                false => KeyRange::Prefix(keys.into()),
            };
            let what = watch::What {
                range,
                from,
                initial,
                count,
                command,
            };
            watch::run(&kv, what, format).await
        }
        StateCommand::Election { name, watch, .. } => {
            recipes::election(&kv, &name, watch, format).await
        }
        StateCommand::Barrier {
            name, parties, ttl, ..
        } => recipes::barrier(&kv, &name, parties, ttl.0, format).await,
        StateCommand::Work {
            group,
            shards,
            id: me,
            ttl,
            ..
        } => {
            let me = me
                .or(id)
                .ok_or_else(|| Failure::usage("--id is missing: who takes part"))?;
            recipes::work(&kv, &group, &me, shards, ttl.0, format).await
        }
        StateCommand::IsLeader { .. } | StateCommand::Events { .. } => Ok(()),
    }
}

async fn connect(connection: Connection) -> Result<Kv, Failure> {
    let Connection {
        mqtt,
        prefix,
        cluster,
        keys,
        timeout,
    } = connection;
    let client = Client::connect(mqtt, &prefix, &cluster, keys, timeout).await?;
    Ok(client.kv())
}

async fn list(
    kv: &Kv,
    mut request: RangeRequest,
    limit: Option<u32>,
    format: Format,
) -> Result<(), Failure> {
    let mut all = kv.range(request.clone()).await?;
    let wanted = limit.map_or(usize::MAX, |limit| limit as usize);
    while all.more
        && all.pairs.len() < wanted
        && let Some(last) = all.pairs.last()
    {
        request.after = Some(raft_over_mqtt::Value(last.key.clone()));
        request.limit = limit.map_or(0, |limit| limit - all.pairs.len() as u32);
        let next = kv.range(request.clone()).await?;
        all.pairs.extend(next.pairs);
        all.more = next.more;
    }
    let RangeReading {
        revision,
        pairs,
        count,
        more,
    } = all;
    let found = count.map_or(!pairs.is_empty(), |count| count > 0);
    match (format, count) {
        (Format::Text, Some(count)) => output::line(&count.to_string()),
        (Format::Text, None) => pairs
            .iter()
            .for_each(|pair| output::line(&show::pair_line(pair, request.keys_only))),
        (Format::Json, Some(count)) => {
            output::line(&json!({ "revision": revision, "count": count }).to_string());
        }
        (Format::Json, None) => {
            let pairs: Vec<_> = pairs
                .iter()
                .map(|pair| show::pair_json(pair, request.keys_only))
                .collect();
            let answer = json!({ "revision": revision, "pairs": pairs, "more": more });
            output::line(&answer.to_string());
        }
    }
    found.then_some(()).ok_or_else(Failure::negative)
}

/// Sets a key that goes with a lease.
pub(crate) async fn put_with_lease(
    connection: Connection,
    key: String,
    value: Vec<u8>,
    lease: u64,
    format: Format,
) -> Result<(), Failure> {
    let kv = connect(connection).await?;
    let written = kv
        .put_with(key.clone(), value, Some(LeaseId(lease)))
        .await?;
    let revision = written.revision;
    output::answer(
        format,
        || format!("revision {revision}"),
        || json!({ "key": key, "applied": true, "revision": revision }),
    );
    Ok(())
}

/// Removes all keys that begin with `prefix`, a thousand at a time.
pub(crate) async fn delete_prefix(
    connection: Connection,
    prefix: String,
    format: Format,
) -> Result<(), Failure> {
    let kv = connect(connection).await?;
    let (mut deleted, mut revision) = (0, 0);
    loop {
        let request = RangeRequest {
            keys_only: true,
            limit: DELETED_AT_ONCE,
            ..RangeRequest::all(KeyRange::Prefix(prefix.clone().into()))
        };
        let next = kv.range(request).await?;
        revision = next.revision.max(revision);
        let (Some(first), Some(last)) = (next.pairs.first(), next.pairs.last()) else {
            break;
        };
        // Up to the last, itself included: the least key beyond it is the same with a zero.
        let beyond = [&last.key[..], &[0]].concat();
        let delete = Action::Delete(KeyRange::Interval {
            from: first.key.clone(),
            to: Some(raft_over_mqtt::Value(beyond.into())),
        });
        let transaction = Transaction {
            then: vec![delete],
            ..Transaction::default()
        };
        let done = kv.transact(transaction).await?;
        revision = done.revision;
        if let Some(ActionResult::Deleted(more)) = done.results.first() {
            deleted += more;
        }
    }
    output::answer(
        format,
        || format!("{deleted} deleted, revision {revision}"),
        || json!({ "deleted": deleted, "revision": revision }),
    );
    match deleted {
        0 => Err(Failure::negative()),
        _ => Ok(()),
    }
}

/// A number that stands for what cannot be told.
pub(crate) fn not_to_be_told(why: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, why)
}
