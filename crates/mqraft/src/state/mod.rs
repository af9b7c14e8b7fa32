//! The commands about the replicated state beyond single keys: ranges, transactions, leases, watches,
//! and what is made of them.

mod lease;
mod recipes;
mod show;
mod transaction;
mod watch;

use raft_over_mqtt::{
    Action, ActionResult, Client, KeyRange, Kv, LeaseId, RangeReading, RangeRequest, Transaction,
};
use serde_json::json;

use crate::cli::{Format, StateCommand};
use crate::exit::{Exit, Failure};
use crate::output;
use crate::settings::Connection;

/// How many keys one transaction of `delete --prefix` removes.
const DELETED_AT_ONCE: u32 = 1_000;

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
