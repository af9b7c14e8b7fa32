//! Who is there, as the cluster has agreed: one key per node under [`NODES`], written by the leader
//! alone (`replica/roll_call.rs`), and so the same on every node at the same revision.
//!
//! The value is JSON, so that whoever reads the state reads it:
//!
//! ```json
//! {"v":1,"key":"…32 hex…","incarnation":"…32 hex…","role":"voter","metric":10.0,"tags":{"zone":"b"}}
//! ```

use std::collections::BTreeMap;

use bytes::Bytes;
use raft::NodeKey;
use serde::{Deserialize, Serialize};

use crate::keys::{Incarnation, hex, hex_decode};
use crate::kv::Store;
use crate::name::{Metric, Name};
use crate::state::{Cursor, KeyEvent, KeyRange, NODES, Watched};
use crate::tags::Tags;

/// What a node is to the cluster, by the configuration in force when its record was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgreedRole {
    /// It votes.
    Voter,
    /// The leader brings it up to date; it has no vote.
    Learner,
    /// It holds the log for others, with or without a vote.
    Witness,
    /// It is no member.
    Observer,
}

impl AgreedRole {
    /// As the record spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            AgreedRole::Voter => "voter",
            AgreedRole::Learner => "learner",
            AgreedRole::Witness => "witness",
            AgreedRole::Observer => "observer",
        }
    }
}

/// One node that is there, as the cluster has agreed.
#[derive(Clone, Debug, PartialEq)]
pub struct AgreedNode {
    /// Its name.
    pub name: Name,
    /// Its key.
    pub key: NodeKey,
    /// Which process of it: another one after a restart.
    pub incarnation: Incarnation,
    /// What it is to the cluster.
    pub role: AgreedRole,
    /// Its metric; a change is agreed on at most every 10 s.
    pub metric: Metric,
    /// Its tags.
    pub tags: Tags,
}

#[derive(Serialize, Deserialize)]
struct Record {
    v: u32,
    key: String,
    incarnation: String,
    role: AgreedRole,
    metric: f64,
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    tags: Tags,
}

impl AgreedNode {
    /// The key of the state under which a node's record stands.
    pub fn state_key(name: &Name) -> Bytes {
        [NODES, name.as_str().as_bytes()].concat().into()
    }

    /// The name in such a key.
    pub fn name_in(key: &[u8]) -> Option<Name> {
        let name = key.strip_prefix(NODES)?;
        Name::new(std::str::from_utf8(name).ok()?).ok()
    }

    /// Whether nothing but the metric differs.
    pub(crate) fn differs_by_metric(&self, before: &AgreedNode) -> bool {
        let metric = before.metric;
        let same = AgreedNode {
            metric,
            ..self.clone()
        };
        self.metric != metric && same == *before
    }

    /// The record as it stands in the state.
    pub(crate) fn to_json(&self) -> Bytes {
        let record = Record {
            v: 1,
            key: hex(&self.key.to_bytes()),
            incarnation: self.incarnation.to_string(),
            role: self.role,
            metric: self.metric.value(),
            tags: self.tags.clone(),
        };
        serde_json::to_vec(&record)
            .expect("a record is plain data")
            .into()
    }

    /// Reads a record; `None` where it is none, or one of a newer build.
    pub fn read(key: &[u8], value: &[u8]) -> Option<AgreedNode> {
        let record: Record = serde_json::from_slice(value).ok()?;
        let sixteen = |digits: &str| -> Option<[u8; 16]> { hex_decode(digits)?.try_into().ok() };
        (record.v == 1).then_some(AgreedNode {
            name: AgreedNode::name_in(key)?,
            key: NodeKey::from_bytes(sixteen(&record.key)?),
            incarnation: Incarnation(sixteen(&record.incarnation)?),
            role: record.role,
            metric: Metric::new(record.metric).ok()?,
            tags: record.tags,
        })
    }
}

/// Everyone that is there, as this node's copy of the state has it.
#[derive(Clone, Debug, Default)]
pub struct Agreed {
    nodes: BTreeMap<Name, AgreedNode>,
    /// The revision as of which it is so.
    revision: u64,
    /// Changes since the last [`Agreed::take_changes`]: how it was before.
    changed: BTreeMap<Name, Option<AgreedNode>>,
}

impl Agreed {
    /// The revision of the state as of which this holds.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Everyone, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &AgreedNode> {
        self.nodes.values()
    }

    /// One of them.
    pub fn get(&self, name: &Name) -> Option<&AgreedNode> {
        self.nodes.get(name)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is nobody: no leader has agreed on anyone yet, or nothing has been applied here.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Follows the state to its present revision.
    pub(crate) fn follow(&mut self, store: &Store) {
        if self.revision == store.revision() {
            return;
        }
        let range = KeyRange::Prefix(Bytes::from_static(NODES));
        let mut from = Cursor::from(self.revision + 1);
        while from.revision <= store.revision() {
            match store.changes(&range, from) {
                Watched::Events { events, next } => {
                    events.iter().for_each(|event| self.take(event));
                    from = next;
                }
                Watched::Compacted { .. } | Watched::Unavailable => {
                    self.read_anew(store);
                    break;
                }
            }
        }
        self.revision = store.revision();
    }

    fn take(&mut self, event: &KeyEvent) {
        let Some(name) = AgreedNode::name_in(event.key()) else {
            return;
        };
        let node = match event {
            KeyEvent::Put(put) => AgreedNode::read(&put.key, &put.value),
            KeyEvent::Delete { .. } => None,
        };
        self.set(name, node);
    }

    fn set(&mut self, name: Name, node: Option<AgreedNode>) {
        let before = match node {
            Some(node) => self.nodes.insert(name.clone(), node),
            None => self.nodes.remove(&name),
        };
        self.changed.entry(name).or_insert(before);
    }

    /// The state was replaced, or moved on by more than it keeps changes of.
    pub(crate) fn read_anew(&mut self, store: &Store) {
        let range = KeyRange::Prefix(Bytes::from_static(NODES));
        let pairs = store.pairs_of(&range);
        let read = pairs.filter_map(|(key, pair)| AgreedNode::read(key, &pair.value));
        let now: BTreeMap<Name, AgreedNode> = read.map(|n| (n.name.clone(), n)).collect();
        let gone = self.nodes.keys().filter(|name| !now.contains_key(*name));
        let gone: Vec<Name> = gone.cloned().collect();
        gone.into_iter().for_each(|name| self.set(name, None));
        for (name, node) in now {
            if self.nodes.get(&name) != Some(&node) {
                self.set(name, Some(node));
            }
        }
        self.revision = store.revision();
    }

    /// Whose record has changed since the last call, and how it was.
    pub(crate) fn take_changes(&mut self) -> BTreeMap<Name, Option<AgreedNode>> {
        std::mem::take(&mut self.changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let node = AgreedNode {
            name: Name::new("gw-1").unwrap(),
            key: NodeKey(0x1234 << 100),
            incarnation: Incarnation([7; 16]),
            role: AgreedRole::Witness,
            metric: Metric::new(0.1).unwrap(),
            tags: Tags::new([("zone", "b \"2\"")]).unwrap(),
        };
        let key = AgreedNode::state_key(&node.name);
        assert_eq!(&key[..], b"_/node/gw-1");
        assert_eq!(AgreedNode::read(&key, &node.to_json()), Some(node.clone()));
        let newer = String::from_utf8(node.to_json().to_vec()).unwrap();
        let newer = newer.replace("\"v\":1", "\"v\":2");
        assert_eq!(AgreedNode::read(&key, newer.as_bytes()), None);
        assert_eq!(AgreedNode::read(b"_/node/a:b", &node.to_json()), None);
    }
}
