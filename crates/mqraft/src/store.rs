//! Reading and changing the replicated store from outside, answered by the leader.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;

use raft_over_mqtt::{Error, Reading, Remote, Write, Written};
use serde_json::{Map, Value, json};

use crate::ask::{connect, explain};
use crate::cli::Format;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::settings::Connection;

/// The value to put: from the command line, or from a file.
pub(crate) fn value(value: Option<OsString>, file: Option<PathBuf>) -> Result<Vec<u8>, Failure> {
    let Some(path) = file else {
        return Ok(value.unwrap_or_default().into_encoded_bytes());
    };
    let read = if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(&path)
    };
    read.map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))
}

pub(crate) async fn put(
    connection: Connection,
    key: String,
    value: Vec<u8>,
    format: Format,
) -> Result<(), Failure> {
    let write = Write::Put {
        key: key.clone().into(),
        value: value.into(),
        lease: None,
    };
    let written = propose(connection, write).await?;
    show_written(&key, written, "", format)
}

pub(crate) async fn delete(
    connection: Connection,
    key: String,
    format: Format,
) -> Result<(), Failure> {
    let write = Write::Delete {
        key: key.clone().into(),
    };
    let written = propose(connection, write).await?;
    show_written(&key, written, "it was absent", format)
}

pub(crate) async fn cas(
    connection: Connection,
    key: String,
    expected: Option<OsString>,
    value: OsString,
    format: Format,
) -> Result<(), Failure> {
    let bytes = |text: OsString| raft_over_mqtt::Value(text.into_encoded_bytes().into());
    let write = Write::CompareAndSwap {
        key: key.clone().into(),
        expected: expected.map(bytes),
        value: Some(bytes(value)),
    };
    let written = propose(connection, write).await?;
    show_written(&key, written, "it has another value", format)
}

pub(crate) async fn get_stale(
    connection: Connection,
    key: String,
    from: Option<String>,
    format: Format,
) -> Result<(), Failure> {
    let mut remote = connect(connection).await?;
    let read = remote.get_stale(key.clone(), from.as_deref()).await;
    remote.close().await;
    let (node, reading) = read.map_err(|error| match error {
        Error::TimedOut(timeout) => {
            let whom = from.as_deref().unwrap_or("any node");
            let message = format!("no answer from {whom} in {timeout:?}: see `mqraft members`");
            Failure::new(Exit::NoAnswer, message)
        }
        error => error.into(),
    })?;
    show_reading(&key, &reading, Some(&node), format)
}

pub(crate) async fn get(
    connection: Connection,
    key: String,
    format: Format,
) -> Result<(), Failure> {
    let mut remote = connect(connection).await?;
    let reading = remote.get(key.clone()).await;
    let reading = reading.map_err(|error| explain(&remote, error));
    remote.close().await;
    show_reading(&key, &reading?, None, format)
}

async fn propose(connection: Connection, write: Write) -> Result<Written, Failure> {
    let mut remote: Remote = connect(connection).await?;
    let written = remote.propose(write).await;
    let written = written.map_err(|error| explain(&remote, error));
    remote.close().await;
    written
}

/// A write that changed nothing is a negative answer, and `why` says what stood against it.
fn show_written(key: &str, written: Written, why: &str, format: Format) -> Result<(), Failure> {
    let Written { revision, applied } = written;
    output::answer(
        format,
        || match applied {
            true => format!("revision {revision}"),
            false => format!("nothing changed: {why} at revision {revision}"),
        },
        || json!({ "key": key, "applied": applied, "revision": revision }),
    );
    match applied {
        true => Ok(()),
        false => Err(Failure::negative()),
    }
}

fn show_reading(
    key: &str,
    reading: &Reading,
    node: Option<&str>,
    format: Format,
) -> Result<(), Failure> {
    let value = reading.value.as_ref().map(|value| &value.0);
    match (format, value) {
        (Format::Json, _) => output::line(&reading_json(key, reading, node).to_string()),
        (Format::Text, Some(value)) => output::bytes(value),
        (Format::Text, None) => {}
    }
    match value {
        Some(_) => Ok(()),
        None => Err(Failure::negative()),
    }
}

fn reading_json(key: &str, reading: &Reading, node: Option<&str>) -> Value {
    let mut object = Map::new();
    object.insert("key".to_owned(), json!(key));
    match &reading.value {
        Some(value) => output::insert_bytes(&mut object, "value", &value.0),
        None => {
            object.insert("value".to_owned(), Value::Null);
        }
    }
    object.insert("revision".to_owned(), json!(reading.revision));
    let modified = reading.value.as_ref().map(|_| reading.modified);
    object.insert("modified".to_owned(), json!(modified));
    if let Some(node) = node {
        object.insert("node".to_owned(), json!(node));
    }
    Value::Object(object)
}
