//! Transactions as a JSON document:
//!
//! ```json
//! { "if":   [ {"key": "door", "value": "open"}, {"key": "lock", "absent": true} ],
//!   "then": [ {"put": "door", "value": "shut"}, {"add": "count", "delta": 1} ],
//!   "else": [ {"get": "door"}, {"delete": "tmp/", "prefix": true} ] }
//! ```

use raft_over_mqtt::{
    Action, ActionResult, Comparison, Condition, KeyRange, Kv, LeaseId, Target, Transaction,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::show;
use crate::cli::Format;
use crate::exit::Failure;
use crate::output;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default, rename = "if")]
    conditions: Vec<Holds>,
    #[serde(default)]
    then: Vec<Step>,
    #[serde(default, rename = "else")]
    otherwise: Vec<Step>,
}

/// What must hold of a key: one of these beside the key, compared by `is` (`==` unless it says so).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Holds {
    key: String,
    value: Option<String>,
    version: Option<u64>,
    created: Option<u64>,
    modified: Option<u64>,
    lease: Option<u64>,
    absent: Option<bool>,
    is: Option<String>,
}

/// One of `put`, `delete`, `get` and `add`, and what belongs to it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    put: Option<String>,
    delete: Option<String>,
    get: Option<String>,
    add: Option<String>,
    value: Option<String>,
    lease: Option<u64>,
    delta: Option<i64>,
    #[serde(default)]
    prefix: bool,
}

pub(super) async fn run(kv: &Kv, document: &[u8], format: Format) -> Result<(), Failure> {
    let transaction = parse(document)?;
    let done = kv.transact(transaction).await?;
    let results: Vec<Value> = done.results.iter().map(result_json).collect();
    output::answer(
        format,
        || {
            let branch = if done.succeeded { "then" } else { "else" };
            let lines = done.results.iter().map(result_line);
            let head = format!("{branch}, revision {}", done.revision);
            std::iter::once(head)
                .chain(lines)
                .collect::<Vec<_>>()
                .join("\n")
        },
        || {
            json!({
                "succeeded": done.succeeded,
                "revision": done.revision,
                "results": results,
            })
        },
    );
    match done.succeeded {
        true => Ok(()),
        false => Err(Failure::negative()),
    }
}

fn parse(document: &[u8]) -> Result<Transaction, Failure> {
    let wrong = |error: serde_json::Error| Failure::usage(format!("the transaction: {error}"));
    let document: Document = serde_json::from_slice(document).map_err(wrong)?;
    let steps = |steps: Vec<Step>| -> Result<Vec<Action>, String> {
        steps.into_iter().map(Step::action).collect()
    };
    let conditions = document.conditions.into_iter().map(Holds::condition);
    Ok(Transaction {
        conditions: conditions.collect::<Result<_, _>>()?,
        then: steps(document.then).map_err(Failure::usage)?,
        otherwise: steps(document.otherwise).map_err(Failure::usage)?,
    })
}

impl Holds {
    fn condition(self) -> Result<Condition, Failure> {
        let Holds {
            key,
            value,
            version,
            created,
            modified,
            lease,
            absent,
            is,
        } = self;
        let mut targets = Vec::new();
        targets.extend(value.map(|value| Target::Value(value.into())));
        targets.extend(version.map(Target::Version));
        targets.extend(created.map(Target::Created));
        targets.extend(modified.map(Target::Modified));
        targets.extend(lease.map(|lease| Target::Lease(LeaseId(lease))));
        let named = targets.pop().filter(|_| targets.is_empty());
        let (target, usual) = match (named, absent) {
            (Some(target), None) => (target, Comparison::Equal),
            (None, Some(true)) if targets.is_empty() => (Target::Created(0), Comparison::Equal),
            (None, Some(false)) if targets.is_empty() => (Target::Created(0), Comparison::NotEqual),
            _ => {
                return Err(Failure::usage(format!(
                    "the transaction: of {key:?} one of value, version, created, modified, lease or absent must be said"
                )));
            }
        };
        let comparison = match is.as_deref() {
            None => usual,
            Some("==") => Comparison::Equal,
            Some("!=") => Comparison::NotEqual,
            Some("<") => Comparison::Less,
            Some(">") => Comparison::Greater,
            Some(other) => {
                return Err(Failure::usage(format!(
                    "the transaction: {other:?} is no comparison: ==, !=, < or >"
                )));
            }
        };
        Ok(Condition {
            key: key.into(),
            target,
            comparison,
        })
    }
}

impl Step {
    fn action(self) -> Result<Action, String> {
        let range = |key: String| match self.prefix {
            true => KeyRange::Prefix(key.into()),
            false => KeyRange::Key(key.into()),
        };
        let has_put_parts = self.value.is_some() || self.lease.is_some();
        match (self.put, self.delete, self.get, self.add) {
            (Some(key), None, None, None) if self.delta.is_none() && !self.prefix => {
                let value = self.value.ok_or_else(|| format!("the transaction: put {key:?} needs a value"))?;
                Ok(Action::Put {
                    key: key.into(),
                    value: value.into(),
                    lease: self.lease.map(LeaseId),
                })
            }
            (None, Some(key), None, None) if !has_put_parts && self.delta.is_none() => {
                Ok(Action::Delete(range(key)))
            }
            (None, None, Some(key), None) if !has_put_parts && self.delta.is_none() => {
                Ok(Action::Get {
                    range: range(key),
                    oldest: 0,
                })
            }
            (None, None, None, Some(key)) if !has_put_parts && !self.prefix => Ok(Action::Add {
                key: key.into(),
                delta: self.delta.unwrap_or(1),
            }),
            _ => Err(
                "the transaction: each step is one of put (with value, lease), delete (with prefix), \
                 get (with prefix) and add (with delta)"
                    .to_owned(),
            ),
        }
    }
}

fn result_json(result: &ActionResult) -> Value {
    match result {
        ActionResult::Put => json!({ "put": true }),
        ActionResult::Deleted(count) => json!({ "deleted": count }),
        ActionResult::Got(pairs) => {
            let pairs: Vec<Value> = pairs
                .iter()
                .map(|pair| show::pair_json(pair, false))
                .collect();
            json!({ "pairs": pairs })
        }
        ActionResult::Sum(sum) => json!({ "value": sum }),
    }
}

fn result_line(result: &ActionResult) -> String {
    match result {
        ActionResult::Put => "put".to_owned(),
        ActionResult::Deleted(count) => format!("{count} deleted"),
        ActionResult::Got(pairs) => {
            let lines = pairs.iter().map(|pair| show::pair_line(pair, false));
            lines.collect::<Vec<_>>().join("\n")
        }
        ActionResult::Sum(sum) => sum.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The document of this file's head.
    #[test]
    fn a_document_says_what_to_do() {
        let transaction = parse(
            br#"{ "if": [ {"key": "door", "value": "open"}, {"key": "lock", "absent": true} ],
                  "then": [ {"put": "door", "value": "shut"}, {"add": "count", "delta": 1} ],
                  "else": [ {"get": "door"}, {"delete": "tmp/", "prefix": true} ] }"#,
        )
        .expect("a document");
        assert_eq!(transaction.conditions[1].target, Target::Created(0));
        let delete = Action::Delete(KeyRange::Prefix("tmp/".into()));
        assert_eq!(transaction.otherwise[1], delete);
        assert_eq!(transaction.then.len(), 2);
    }

    #[test]
    fn what_is_not_clear_is_refused() {
        for wrong in [
            r#"{"if": [{"key": "a"}]}"#,
            r#"{"if": [{"key": "a", "value": "x", "version": 1}]}"#,
            r#"{"if": [{"key": "a", "value": "x", "is": "~"}]}"#,
            r#"{"then": [{"put": "a"}]}"#,
            r#"{"then": [{"put": "a", "get": "b", "value": "x"}]}"#,
            r#"{"then": [{"get": "a", "value": "x"}]}"#,
            r#"{"than": []}"#,
            "",
        ] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
