//! Elections, barriers, work, and whether a node leads.

use std::time::Duration;

use raft_over_mqtt::{Kv, Session};
use serde_json::{Map, json};

use crate::ask;
use crate::cli::Format;
use crate::exit::Failure;
use crate::output;
use crate::settings::Connection;

/// How long a node may take to say whether it leads, at most.
const STATUS_WAIT: Duration = Duration::from_secs(2);

pub(super) async fn is_leader(
    connection: Connection,
    node: Option<String>,
    format: Format,
) -> Result<(), Failure> {
    let unknown = |why: String| super::not_to_be_told(why);
    let node =
        node.ok_or_else(|| unknown("which node? give its name, or id in the file".to_owned()))?;
    let wait = connection.timeout.min(STATUS_WAIT);
    let asked = async {
        let mut remote = ask::connect(connection).await?;
        let status = remote.status_of(&node, wait).await;
        remote.close().await;
        Ok::<_, Failure>(status?)
    };
    // Whatever stands between us and the node: it is not to be told.
    let status = asked.await.map_err(|failure| unknown(failure.message))?;
    let Some(status) = status else {
        return Err(unknown(format!("no answer from {node} in {wait:?}")));
    };
    output::answer(
        format,
        || String::from(if status.is_leader { "yes" } else { "no" }),
        || json!({ "node": node, "is_leader": status.is_leader, "term": status.term }),
    );
    match status.is_leader {
        true => Ok(()),
        false => Err(Failure::negative()),
    }
}

pub(super) async fn election(
    kv: &Kv,
    name: &str,
    watch: bool,
    format: Format,
) -> Result<(), Failure> {
    let mut changes = kv.watch_election(name).await?;
    let mut shown = None;
    loop {
        let elected = kv.elected(name).await?;
        let found = elected.is_some();
        if shown.as_ref() != Some(&elected) {
            let winner = elected.as_ref();
            output::answer(
                format,
                || match winner {
                    Some((value, token)) => {
                        format!("{}\ttoken {token}", String::from_utf8_lossy(value))
                    }
                    None => "nobody".to_owned(),
                },
                || {
                    let mut object = Map::new();
                    if let Some((value, token)) = winner {
                        output::insert_bytes(&mut object, "value", value);
                        object.insert("token".to_owned(), json!(token.value()));
                    }
                    json!({ "election": name, "winner": winner.map(|_| object) })
                },
            );
            shown = Some(elected);
        }
        if !watch {
            return found.then_some(()).ok_or_else(Failure::negative);
        }
        changes.next().await?;
    }
}

/// Waits at a barrier, or closes it where nobody is waited for.
pub(super) async fn barrier(
    kv: &Kv,
    name: &str,
    parties: Option<u32>,
    ttl: Duration,
    format: Format,
) -> Result<(), Failure> {
    let Some(parties) = parties else {
        kv.reset_barrier(name).await?;
        output::answer(
            format,
            || "closed".to_owned(),
            || json!({ "barrier": name, "open": false }),
        );
        return Ok(());
    };
    let session = Session::begin(kv, ttl).await?;
    let revision = session.barrier(name, parties).await?;
    output::answer(
        format,
        || format!("open since revision {revision}"),
        || json!({ "barrier": name, "open": true, "revision": revision }),
    );
    Ok(session.end().await?)
}

pub(super) async fn work(
    kv: &Kv,
    group: &str,
    me: &str,
    shards: Vec<String>,
    ttl: Duration,
    format: Format,
) -> Result<(), Failure> {
    let session = Session::begin(kv, ttl).await?;
    let mut work = session.work(group, me, shards).await?;
    loop {
        let assignment = work.next().await?;
        output::answer(
            format,
            || format!("{}\t{}", assignment.revision, assignment.mine.join(",")),
            || {
                json!({
                    "revision": assignment.revision,
                    "mine": assignment.mine,
                    "members": assignment.members,
                })
            },
        );
    }
}
