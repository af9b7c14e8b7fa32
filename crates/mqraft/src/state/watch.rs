//! Watching: changes of keys, and what happens in the cluster.

use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;

use raft_over_mqtt::{Error, KeyEvent, KeyRange, Kv};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::show;
use crate::ask;
use crate::cli::Format;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::settings::Connection;

/// How often `events` looks who leads, beside being told.
const LOOK: Duration = Duration::from_millis(500);

/// What to watch, and what to do with it.
pub(super) struct What {
    pub(super) range: KeyRange,
    pub(super) from: Option<u64>,
    pub(super) initial: bool,
    pub(super) count: Option<u64>,
    pub(super) command: Vec<OsString>,
}

/// Tells of one change after the other.
pub(super) async fn run(kv: &Kv, what: What, format: Format) -> Result<(), Failure> {
    let mut left = what.count;
    let mut watch = match what.from {
        Some(revision) => kv.watch(what.range.clone(), revision),
        None => {
            let (pairs, watch) = kv.list_and_watch(what.range.clone()).await?;
            let there = pairs.into_iter().filter(|_| what.initial);
            for pair in there {
                if !tell(&KeyEvent::Put(pair), &what.command, &mut left, format).await? {
                    return Ok(());
                }
            }
            watch
        }
    };
    loop {
        let event = watch.next().await.map_err(|error| match error {
            Error::Compacted { oldest } => Failure::new(
                Exit::Negative,
                format!("the changes before revision {oldest} are no longer kept: watch from there, or with --initial"),
            ),
            error => error.into(),
        })?;
        if !tell(&event, &what.command, &mut left, format).await? {
            return Ok(());
        }
    }
}

/// Whether there is more to tell.
async fn tell(
    event: &KeyEvent,
    command: &[OsString],
    left: &mut Option<u64>,
    format: Format,
) -> Result<bool, Failure> {
    if *left == Some(0) {
        return Ok(false);
    }
    match command.split_first() {
        None => output::answer(
            format,
            || show::event_line(event),
            || show::event_json(event),
        ),
        Some((program, arguments)) => run_command(event, program, arguments).await?,
    }
    if let Some(left) = left {
        *left -= 1;
    }
    Ok(*left != Some(0))
}

/// Runs a command for one change and waits for its end. One that fails is said and not repeated.
async fn run_command(
    event: &KeyEvent,
    program: &OsString,
    arguments: &[OsString],
) -> Result<(), Failure> {
    let (kind, value) = match event {
        KeyEvent::Put(pair) => ("put", pair.value.clone()),
        KeyEvent::Delete { .. } => ("delete", bytes_of_nothing()),
    };
    let cannot = |error: std::io::Error| {
        let program = program.to_string_lossy();
        Failure::usage(format!("cannot run {program}: {error}"))
    };
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .env("MQRAFT_EVENT", kind)
        .env("MQRAFT_KEY", String::from_utf8_lossy(event.key()).as_ref())
        .env("MQRAFT_REVISION", event.revision().to_string())
        .stdin(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(cannot)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its value is as good.
        let _ = stdin.write_all(&value).await;
    }
    let status = child.wait().await.map_err(cannot)?;
    if !status.success() {
        tracing::error!(
            "the command ended with {status} at revision {}",
            event.revision()
        );
    }
    Ok(())
}

fn bytes_of_nothing() -> bytes::Bytes {
    bytes::Bytes::new()
}

/// Who leads, who comes and who goes, a line each.
pub(super) async fn events(connection: Connection, format: Format) -> Result<(), Failure> {
    let kv = super::connect(connection.clone()).await?;
    let mut remote = ask::connect(connection).await?;
    let (there, mut nodes) = kv
        .list_and_watch(KeyRange::Prefix("_/node/".into()))
        .await?;
    for pair in there {
        tell_node(&KeyEvent::Put(pair), true, format);
    }
    let mut shown = None;
    loop {
        let leading = remote.leading(LOOK).await?;
        let leader = leading.map(|status| (status.node, status.term));
        if leader.is_some() && leader != shown {
            tell_leader(leader.as_ref(), format);
            shown = leader;
        }
        tokio::select! {
            event = nodes.next() => tell_node(&event?, false, format),
            changed = remote.leader_changed(LOOK) => changed?,
        }
    }
}

fn tell_leader(leader: Option<&(String, u64)>, format: Format) {
    let Some((node, term)) = leader else { return };
    output::answer(
        format,
        || format!("leader\t{node}\tterm {term}"),
        || json!({ "event": "leader", "node": node, "term": term }),
    );
}

fn tell_node(event: &KeyEvent, initially: bool, format: Format) {
    let key = String::from_utf8_lossy(event.key()).into_owned();
    let node = key.strip_prefix("_/node/").unwrap_or(&key).to_owned();
    let (kind, record) = match event {
        KeyEvent::Put(pair) if pair.version > 1 && !initially => ("changed", Some(&pair.value)),
        KeyEvent::Put(pair) if initially => ("there", Some(&pair.value)),
        KeyEvent::Put(pair) => ("arrived", Some(&pair.value)),
        KeyEvent::Delete { .. } => ("departed", None),
    };
    let record: Option<Value> = record.and_then(|record| serde_json::from_slice(record).ok());
    let revision = event.revision();
    output::answer(
        format,
        || format!("{kind}\t{node}\trevision {revision}"),
        || json!({ "event": kind, "node": node, "revision": revision, "record": record }),
    );
}
