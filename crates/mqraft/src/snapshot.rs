//! A cluster's state as a file, and a new cluster from it or from what one node left.

use std::path::{Path, PathBuf};

use raft_over_mqtt::{Error, NewCluster, Recovery, SavedSnapshot};
use serde_json::{Value, json};

use crate::ask::{connect, explain};
use crate::cli::Format;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::settings::Connection;

/// What `recover` says instead of recovering.
const REFUSED: &str = "\
recover makes a new cluster of what one node holds. Every write that only the others had is lost,
also acknowledged ones, and writes that were never acknowledged may come back. If a majority of the
voters can still be started, or will be, start them instead. If they are gone for good, stop what is
left of the old cluster and add --unsafe";

pub(crate) async fn save(
    connection: Connection,
    file: PathBuf,
    from: Option<String>,
    stale: bool,
    format: Format,
) -> Result<(), Failure> {
    let mut remote = connect(connection).await?;
    let saved = remote.save_snapshot(from.as_deref(), stale).await;
    let saved = saved.map_err(|error| match (error, &from) {
        (Error::Busy, _) => Failure::new(
            Exit::NoAnswer,
            "the node keeps a copy for someone else: try again, or another node with --from",
        ),
        (Error::TimedOut(timeout), Some(node)) => Failure::new(
            Exit::NoAnswer,
            format!("no copy from {node} in {timeout:?}: is it there, and up to date? see `mqraft status`"),
        ),
        (error, _) => explain(&remote, error),
    });
    remote.close().await;
    let saved = saved?;
    let bytes = raft_over_mqtt::write_snapshot(&file, &saved)?;
    let shown = file.display().to_string();
    let meta = saved.meta();
    output::answer(
        format,
        || {
            format!(
                "wrote {shown}: {bytes} bytes, revision {}, index {}, from {}",
                meta.revision, meta.index, meta.node
            )
        },
        || {
            let mut fields = description(&saved);
            fields.extend([("file", json!(shown)), ("bytes", json!(bytes))]);
            object(fields)
        },
    );
    Ok(())
}

pub(crate) fn inspect(file: &Path, format: Format) -> Result<(), Failure> {
    let saved = raft_over_mqtt::read_snapshot(file)?;
    output::answer(
        format,
        || {
            let shown = |value: &Value| match value {
                Value::String(text) => text.clone(),
                Value::Array(items) => {
                    let items = items.iter().filter_map(Value::as_str);
                    items.collect::<Vec<_>>().join(", ")
                }
                value => value.to_string(),
            };
            let row = |(name, value): (&str, Value)| vec![name.replace('_', " "), shown(&value)];
            let mut rows = vec![vec!["checksum".to_owned(), "right".to_owned()]];
            rows.extend(description(&saved).into_iter().map(row));
            output::table(&rows)
        },
        || object(description(&saved)),
    );
    Ok(())
}

/// What a snapshot holds.
fn description(saved: &SavedSnapshot) -> Vec<(&'static str, Value)> {
    let meta = saved.meta();
    let store = saved.store();
    let voters: std::collections::BTreeSet<&String> = meta.configuration.voters.values().collect();
    vec![
        ("cluster", json!(meta.cluster())),
        ("cluster_id", json!(meta.cluster_id().to_string())),
        ("formation", json!(hex(&meta.formation.digest()))),
        ("node", json!(meta.node)),
        ("complete", json!(meta.complete)),
        ("index", json!(meta.index.0)),
        ("term", json!(meta.term.0)),
        ("revision", json!(meta.revision)),
        ("keys", json!(store.iter().count())),
        ("state_bytes", json!(saved.state_bytes())),
        ("applied_digest", json!(store.digest())),
        ("voters", json!(voters)),
    ]
}

fn object(fields: Vec<(&'static str, Value)>) -> Value {
    let owned = fields
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value));
    Value::Object(owned.collect())
}

pub(crate) fn restore(
    file: &Path,
    data_dir: &Path,
    id: &str,
    cluster: Option<&str>,
    format: Format,
) -> Result<(), Failure> {
    let saved = raft_over_mqtt::read_snapshot(file)?;
    let new = raft_over_mqtt::restore_snapshot(&saved, data_dir, id, cluster)?;
    let was = saved.meta().formation.digest();
    output::answer(
        format,
        || next_steps(&new, &was, data_dir),
        || new_json(&new, &was, data_dir),
    );
    Ok(())
}

pub(crate) fn recover(
    data_dir: &Path,
    to: &Path,
    id: Option<&str>,
    is_unsafe: bool,
    format: Format,
) -> Result<(), Failure> {
    if !is_unsafe {
        return Err(Failure::usage(REFUSED));
    }
    let recovery = raft_over_mqtt::recover(data_dir, to, id)?;
    output::answer(
        format,
        || {
            let new = next_steps(&recovery.new, &recovery.formation, to);
            format!("{}\n\n{new}", statement(&recovery))
        },
        || {
            json!({
                "node": recovery.node,
                "was_voter": recovery.was_voter,
                "voters": recovery.voters,
                "term": recovery.term,
                "last_index": recovery.last_index,
                "last_term": recovery.last_term,
                "committed_index": recovery.committed_index,
                "revision": recovery.revision,
                "keys": recovery.keys,
                "torn": recovery.torn,
                "new": new_json(&recovery.new, &recovery.formation, to),
            })
        },
    );
    Ok(())
}

/// What may be lost and what may come back, with the numbers by which it can be judged.
fn statement(recovery: &Recovery) -> String {
    let Recovery {
        node,
        voters,
        term,
        last_index,
        last_term,
        committed_index,
        keys,
        revision,
        ..
    } = recovery;
    let part = match recovery.was_voter {
        true => "a voter",
        false => "without a vote",
    };
    let uncertain = last_index - committed_index;
    let mut lines = vec![
        format!("recovered from {node}, {part} among {}", voters.join(", ")),
        format!("  last entry          {last_index} of term {last_term}; newest term {term}"),
        format!("  known as committed  {committed_index}"),
        format!("  recovered           {keys} keys, revision {revision}"),
    ];
    if recovery.torn {
        lines.push("  left out            a write that a power cut had left unfinished".to_owned());
    }
    let alone = recovery.was_voter && voters.len() == 1;
    match alone {
        true => lines.push("nothing acknowledged is lost: this node was the only voter".to_owned()),
        false => {
            lines.push(format!(
                "may be lost: every write after entry {last_index} that a majority without {node} acknowledged"
            ));
            if uncertain > 0 {
                lines.push(format!(
                    "may have come back: of the last {uncertain} entries any that were never acknowledged, \
                     or that the others had replaced"
                ));
            }
        }
    }
    lines.join("\n")
}

fn next_steps(new: &NewCluster, was: &[u8; 32], data_dir: &Path) -> String {
    let NewCluster {
        id,
        cluster,
        term,
        index,
        revision,
        ..
    } = new;
    let (formation, was) = (&hex(&new.formation)[..16], &hex(was)[..16]);
    format!(
        "{}: a new cluster {cluster} with {id} as its only voter\n\
         \x20 formation           {formation}, from {was}\n\
         \x20 begins at           term {term}, index {index}, revision {revision}\n\
         Stop every node of the old cluster for good, then start {id} with --data-dir {}.\n\
         Other nodes start with empty data directories and without --voters; then: mqraft member add NAME",
        data_dir.display(),
        data_dir.display(),
    )
}

fn new_json(new: &NewCluster, was: &[u8; 32], data_dir: &Path) -> Value {
    json!({
        "data_dir": data_dir.display().to_string(),
        "id": new.id,
        "cluster": new.cluster,
        "formation": hex(&new.formation),
        "origin": hex(was),
        "term": new.term,
        "index": new.index,
        "revision": new.revision,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
