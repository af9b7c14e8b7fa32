//! Keys, values and changes as text and JSON.

use raft_over_mqtt::{KeyEvent, KeyValue};
use serde_json::{Map, Value, json};

use crate::output;

/// `key<TAB>value`, or the key alone; what is no text is shown with replacement characters.
pub(super) fn pair_line(pair: &KeyValue, key_only: bool) -> String {
    let key = String::from_utf8_lossy(&pair.key);
    match key_only {
        true => key.into_owned(),
        false => format!("{key}\t{}", String::from_utf8_lossy(&pair.value)),
    }
}

pub(super) fn pair_json(pair: &KeyValue, key_only: bool) -> Value {
    let mut object = Map::new();
    output::insert_bytes(&mut object, "key", &pair.key);
    if !key_only {
        output::insert_bytes(&mut object, "value", &pair.value);
    }
    object.insert("created".to_owned(), json!(pair.created));
    object.insert("modified".to_owned(), json!(pair.modified));
    object.insert("version".to_owned(), json!(pair.version));
    if pair.lease.0 > 0 {
        object.insert("lease".to_owned(), json!(pair.lease.0));
    }
    Value::Object(object)
}

/// `revision put key<TAB>value` or `revision delete key`.
pub(super) fn event_line(event: &KeyEvent) -> String {
    let revision = event.revision();
    match event {
        KeyEvent::Put(pair) => format!("{revision}\tput\t{}", pair_line(pair, false)),
        KeyEvent::Delete { key, .. } => {
            format!("{revision}\tdelete\t{}", String::from_utf8_lossy(key))
        }
    }
}

pub(super) fn event_json(event: &KeyEvent) -> Value {
    match event {
        KeyEvent::Put(pair) => {
            let mut object = pair_json(pair, false);
            object["event"] = json!("put");
            object["revision"] = json!(pair.modified);
            object
        }
        KeyEvent::Delete { key, revision } => {
            let mut object = Map::new();
            output::insert_bytes(&mut object, "key", key);
            object.insert("event".to_owned(), json!("delete"));
            object.insert("revision".to_owned(), json!(revision));
            Value::Object(object)
        }
    }
}
