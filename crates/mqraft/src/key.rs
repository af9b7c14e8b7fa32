//! The cluster key, replaced step by step while the cluster runs.

use std::path::Path;

use raft_over_mqtt::{KeyFile, KeyFileError, NodeStatus};
use serde_json::{Value, json};

use crate::ask::statuses;
use crate::cli::{Format, Step};
use crate::exit::{Exit, Failure};
use crate::output;
use crate::settings::{Connection, read_key_file};

/// Takes one step of a rotation in a key file.
pub(crate) fn rotate(path: &Path, step: Step, format: Format) -> Result<(), Failure> {
    // What is replaced is the file, not a link to it.
    let path = path.canonicalize().map_err(|error| {
        Failure::usage(format!(
            "cannot read the key file {}: {error}",
            path.display()
        ))
    })?;
    let file = read_key_file(&path)?;
    let taken = match step {
        Step::Add => add_next(&file)?,
        Step::Promote => file.promote(),
        Step::Finish => file.finish(),
    };
    let file = taken
        .map_err(|error| Failure::new(Exit::Negative, format!("{}: {error}", path.display())))?;
    raft_over_mqtt::replace_file(&path, file.to_text().as_bytes())?;
    let ids = file.ring().ids();
    let shown = path.display().to_string();
    output::answer(
        format,
        || format!("{shown}: {}\n{}", meaning(&ids), next(step)),
        || json!({ "key_file": shown, "keys": hex_all(&ids) }),
    );
    Ok(())
}

/// Draws until the new key can be told from the old one.
fn add_next(file: &KeyFile) -> Result<Result<KeyFile, KeyFileError>, Failure> {
    loop {
        let added = file
            .clone()
            .add_next(raft_over_mqtt::generate_cluster_key()?);
        if !matches!(added, Err(KeyFileError::SameId)) {
            return Ok(added);
        }
    }
}

fn next(step: Step) -> &'static str {
    match step {
        Step::Add => {
            "Copy it to every node and client and send each node SIGHUP. Once `mqraft key status` shows\n\
             the new key on every node, go on with --promote."
        }
        Step::Promote => {
            "Copy it to every node and client and send each node SIGHUP. Once `mqraft key status` shows\n\
             that every node seals with the new key, go on with --finish."
        }
        Step::Finish => {
            "Copy it to every node and client and send each node SIGHUP. Then the old key opens nothing."
        }
    }
}

/// Shows which key each node seals with, and which it accepts.
pub(crate) async fn status(connection: Connection, format: Format) -> Result<(), Failure> {
    let statuses = statuses(connection).await?;
    output::answer(
        format,
        || {
            let head = ["node", "seals with", "accepts"]
                .map(str::to_owned)
                .to_vec();
            let row = |status: &NodeStatus| {
                let ids = status.keys.clone().unwrap_or_default();
                let seals = ids.first().map_or("-".to_owned(), |id| hex(*id));
                vec![status.node.clone(), seals, hex_all(&ids).join(", ")]
            };
            let rows = std::iter::once(head).chain(statuses.iter().map(row));
            output::table(&rows.collect::<Vec<_>>())
        },
        || {
            let node = |status: &NodeStatus| {
                let ids = status.keys.clone().unwrap_or_default();
                json!({ "node": status.node, "keys": hex_all(&ids) })
            };
            let nodes: Vec<Value> = statuses.iter().map(node).collect();
            json!({ "nodes": nodes })
        },
    );
    Ok(())
}

fn meaning(ids: &[u8]) -> String {
    match ids {
        [seals, accepted] => format!("seals with {}, accepts {} too", hex(*seals), hex(*accepted)),
        ids => format!("seals with {}, accepts no other", hex_all(ids).join(", ")),
    }
}

fn hex(id: u8) -> String {
    format!("{id:02x}")
}

fn hex_all(ids: &[u8]) -> Vec<String> {
    ids.iter().map(|id| hex(*id)).collect()
}
