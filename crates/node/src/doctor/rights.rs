//! Which topics who may read and write: what a broker's access list for a cluster has to say.
//!
//! A node may publish under its own name alone. A client of the cluster (the command line, `mqraft run`,
//! a program with the library's `Client`) draws its name at random, and no access list can bind it to
//! that: it may write what any node may send. Where that is too much, ask through requests instead.

use replica::{Name, Topics, request_filter};

use crate::error::Result;
use crate::node::checked;

/// What may be done on a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// To subscribe to it.
    Read,
    /// To publish there.
    Write,
    /// Both.
    ReadWrite,
}

/// One line of an access list: what is not listed is forbidden.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// What may be done.
    pub access: Access,
    /// On which topics.
    pub filter: String,
}

/// The rights that one cluster's topics ask for.
#[derive(Clone, Debug)]
pub struct Rights {
    topics: Topics,
    requests: bool,
    mirror: bool,
    home_assistant: Option<String>,
    legacy: Option<String>,
}

impl Rights {
    /// On the topics of `cluster` below `prefix`.
    ///
    /// # Errors
    /// When one of them cannot stand in a topic.
    pub fn new(prefix: &str, cluster: &str) -> Result<Rights> {
        Ok(Rights {
            topics: Topics::new(prefix, &checked("cluster", cluster)?)?,
            requests: false,
            mirror: false,
            home_assistant: None,
            legacy: None,
        })
    }

    /// Whether nodes answer requests of any MQTT client. Default: no.
    pub fn requests(self, requests: bool) -> Rights {
        Rights { requests, ..self }
    }

    /// Whether nodes mirror keys. Default: no.
    pub fn mirror(self, mirror: bool) -> Rights {
        Rights { mirror, ..self }
    }

    /// The discovery prefix, if nodes show the cluster in Home Assistant. Default: they do not.
    pub fn home_assistant(self, prefix: Option<String>) -> Rights {
        Rights {
            home_assistant: prefix,
            ..self
        }
    }

    /// The common name of a fleet of node-raft-over-mqtt, if nodes keep one. Default: none.
    pub fn legacy(self, prefix: Option<String>) -> Rights {
        Rights {
            legacy: prefix,
            ..self
        }
    }

    /// `<prefix>/<cluster>`.
    pub fn root(&self) -> &str {
        self.topics.root()
    }

    /// What the node `id` may do. Any voter may come to lead, and any node to vote, so all have the
    /// same rights but for their name.
    ///
    /// # Errors
    /// When it is no node's name.
    pub fn node(&self, id: &str) -> Result<Vec<Right>> {
        let me = checked("node id", id)?;
        Ok(self.node_called(me.as_str()))
    }

    /// The same with something in the name's place that the broker replaces by who asks, as Mosquitto
    /// does with `%u`.
    pub fn any_node(&self, placeholder: &str) -> Vec<Right> {
        self.node_called(placeholder)
    }

    fn node_called(&self, me: &str) -> Vec<Right> {
        let root = self.topics.root();
        let mut rights = Vec::new();
        for kind in ["rpc", "roll"] {
            rights.push(read(format!("{root}/{kind}/all/+")));
            rights.push(read(format!("{root}/{kind}/{me}/+")));
            rights.push(write(format!("{root}/{kind}/+/{me}")));
        }
        rights.push(read(self.statuses()));
        rights.push(write(format!("{root}/nodes/{me}/status")));
        rights.push(both(self.topics.leader()));
        if self.requests {
            rights.push(read(request_filter(root)));
            rights.push(write(format!("{root}/req/+/#")));
        }
        if self.mirror {
            rights.push(both(format!("{root}/kv/#")));
        }
        if let Some(prefix) = &self.home_assistant {
            rights.push(write(self.topics.health()));
            rights.push(both(format!("{prefix}/device/+/config")));
            rights.push(read(format!("{prefix}/status")));
        }
        if let Some(prefix) = &self.legacy {
            rights.push(both(format!("{prefix}/raft/#")));
        }
        rights
    }

    /// What a client of the cluster may do: who holds the cluster key and is no node.
    pub fn client(&self) -> Vec<Right> {
        let root = self.topics.root();
        vec![
            both(format!("{root}/rpc/+/+")),
            read(self.statuses()),
            read(self.topics.leader()),
        ]
    }

    /// What any MQTT client may read: who leads, who is there, and what is mirrored.
    pub fn reader(&self) -> Vec<Right> {
        let mut rights = vec![read(self.topics.leader()), read(self.statuses())];
        if self.mirror {
            rights.push(read(format!("{}/kv/#", self.topics.root())));
        }
        rights
    }

    /// What a client may do that asks under this name, and reads its own answers.
    ///
    /// # Errors
    /// When the name cannot stand in a topic.
    pub fn asker(&self, name: &str) -> Result<Vec<Right>> {
        let name: Name = checked("asker", name)?;
        let root = self.topics.root();
        Ok(vec![
            write(format!("{root}/req/{name}")),
            read(format!("{root}/req/{name}/#")),
        ])
    }

    fn statuses(&self) -> String {
        format!("{}/nodes/+/status", self.topics.root())
    }
}

fn read(filter: String) -> Right {
    let access = Access::Read;
    Right { access, filter }
}

fn write(filter: String) -> Right {
    let access = Access::Write;
    Right { access, filter }
}

fn both(filter: String) -> Right {
    let access = Access::ReadWrite;
    Right { access, filter }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(filter: &str, topic: &str) -> bool {
        let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
        loop {
            match (filter.next(), topic.next()) {
                (Some("#"), _) | (None, None) => return true,
                (Some("+"), Some(_)) => {}
                (Some(level), Some(other)) if level == other => {}
                _ => return false,
            }
        }
    }

    fn may(rights: &[Right], wanted: Access, topic: &str) -> bool {
        rights.iter().any(|right| {
            (right.access == wanted || right.access == Access::ReadWrite)
                && matches(&right.filter, topic)
        })
    }

    /// What a node subscribes to and publishes on is its own list in `Topics`: the rights cover it, and
    /// nothing under another name.
    #[test]
    fn a_node_may_do_what_it_does_and_nothing_as_another() {
        let rights = Rights::new("raft", "plant").unwrap();
        let topics = rights.topics.clone();
        let [me, other] = ["gw-1", "gw-2"].map(|name| Name::new(name).unwrap());
        let node = rights.node("gw-1").unwrap();
        for filter in topics.subscriptions(&me) {
            let granted = |right: &Right| right.access == Access::Read && right.filter == filter;
            assert!(node.iter().any(granted), "{filter}");
        }
        let as_whom = |me: &Name, to: &Name| {
            [
                topics.broadcast(me),
                topics.unicast(to, me),
                topics.roll(None, me),
                topics.roll(Some(to), me),
                topics.status(me),
            ]
        };
        for topic in as_whom(&me, &other) {
            assert!(may(&node, Access::Write, &topic), "{topic}");
        }
        for topic in as_whom(&other, &me) {
            assert!(!may(&node, Access::Write, &topic), "{topic}");
        }
        assert!(may(&node, Access::Write, &topics.leader()));
        assert!(!may(&node, Access::Read, &topics.unicast(&other, &me)));
    }

    #[test]
    fn what_is_off_is_forbidden() {
        let rights = Rights::new("raft", "plant").unwrap();
        let off = rights.node("gw-1").unwrap();
        let all = rights.requests(true).mirror(true);
        let all = all.home_assistant(Some("ha".to_owned()));
        let all = all.legacy(Some("Plant 7".to_owned()));
        let on = all.node("gw-1").unwrap();
        let topics = [
            ("raft/plant/req/panel", Access::Read),
            ("raft/plant/req/panel/answer", Access::Write),
            ("raft/plant/kv/door/1", Access::Write),
            ("raft/plant/health", Access::Write),
            ("ha/device/x/config", Access::Write),
            ("ha/status", Access::Read),
            ("Plant 7/raft/vote", Access::Write),
        ];
        for (topic, access) in topics {
            assert!(may(&on, access, topic), "{topic}");
            assert!(!may(&off, access, topic), "{topic}");
        }
        assert!(!may(&all.reader(), Access::Write, "raft/plant/leader"));
        assert!(may(&all.reader(), Access::Read, "raft/plant/kv/door/1"));
        let panel = all.asker("panel").unwrap();
        assert!(may(&panel, Access::Write, "raft/plant/req/panel"));
        assert!(!may(&panel, Access::Write, "raft/plant/req/other"));
        assert!(!may(&panel, Access::Read, "raft/plant/req/other/answer"));
        assert!(all.asker("a/b").is_err() && all.node("+").is_err());
    }
}
