//! The topics of one cluster: `<prefix>/<cluster>/…`.
//!
//! The sender stands in every topic that it publishes on, so that a broker's ACL can bind it.

use std::sync::Arc;

use crate::name::Name;

/// The word in a destination's place that means every node.
pub(crate) const ALL: &str = "all";

/// Where one cluster's topics begin, and how they are built and read.
#[derive(Clone, Debug)]
pub struct Topics {
    root: Arc<str>,
}

/// A topic that was understood. Names in it are claims: the frame proves or refutes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topic {
    /// A frame to every node.
    Broadcast {
        /// The claimed sender.
        from: Name,
    },
    /// A frame to one node.
    Unicast {
        /// The receiver.
        to: Name,
        /// The claimed sender.
        from: Name,
    },
    /// A question who is there, or its answer.
    Roll {
        /// The receiver; `None`: everyone.
        to: Option<Name>,
        /// The claimed sender.
        from: Name,
    },
    /// A node's retained status.
    Status {
        /// Whose.
        node: Name,
    },
}

/// Why a prefix cannot stand before a topic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// A level of it is no name.
    #[error("prefix level {level:?}: {source}")]
    Level {
        /// The level.
        level: String,
        /// What is wrong with it.
        source: crate::name::NameError,
    },
    /// More levels than leave room: brokers allow as few as seven slashes.
    #[error("a prefix has at most {MAX_PREFIX_LEVELS} levels, this one has {0}")]
    TooDeep(usize),
}

/// A topic has at most seven slashes (AWS IoT), of which the longest of ours needs four.
const MAX_PREFIX_LEVELS: usize = 3;

/// Why a prefix cannot stand before the topics of others that a node publishes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OtherPrefixError {
    /// It is empty, or too long.
    #[error("it has 1 to {MAX_OTHER_PREFIX} bytes, not {0}")]
    Length(usize),
    /// It holds what a topic to publish on cannot hold.
    #[error("it holds no {0:?}")]
    Character(char),
    /// The broker's own topics begin like this.
    #[error("it does not begin with '$'")]
    Reserved,
    /// Brokers allow as few as seven slashes.
    #[error("it has at most {most} levels, not {levels}")]
    TooDeep {
        /// How many it has.
        levels: usize,
        /// How many leave room for the rest.
        most: usize,
    },
}

/// The longest prefix of others' topics, in bytes.
const MAX_OTHER_PREFIX: usize = 128;

/// The levels that brokers allow at least: AWS IoT takes seven slashes.
const MAX_LEVELS: usize = 8;

/// Checks what is to stand before `below` levels of others' topics.
pub(crate) fn check_other_prefix(prefix: &str, below: usize) -> Result<(), OtherPrefixError> {
    if prefix.is_empty() || prefix.len() > MAX_OTHER_PREFIX {
        return Err(OtherPrefixError::Length(prefix.len()));
    }
    let wrong = |c: &char| matches!(c, '+' | '#') || c.is_control();
    if let Some(wrong) = prefix.chars().find(wrong) {
        return Err(OtherPrefixError::Character(wrong));
    }
    if prefix.starts_with('$') {
        return Err(OtherPrefixError::Reserved);
    }
    let (levels, most) = (prefix.split('/').count(), MAX_LEVELS - below);
    match levels > most {
        true => Err(OtherPrefixError::TooDeep { levels, most }),
        false => Ok(()),
    }
}

impl Topics {
    /// The topics of `cluster` below `prefix`.
    ///
    /// # Errors
    /// When a level of the prefix is no [`Name`], or there are too many.
    pub fn new(prefix: &str, cluster: &Name) -> Result<Topics, PrefixError> {
        let levels: Vec<&str> = prefix.split('/').collect();
        if levels.len() > MAX_PREFIX_LEVELS {
            return Err(PrefixError::TooDeep(levels.len()));
        }
        for level in levels {
            Name::new(level).map_err(|source| PrefixError::Level {
                level: level.to_owned(),
                source,
            })?;
        }
        Ok(Topics {
            root: format!("{prefix}/{cluster}").into(),
        })
    }

    /// `<prefix>/<cluster>`.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Frames of `from` to every node.
    pub fn broadcast(&self, from: &Name) -> String {
        self.below(["/rpc/", ALL, "/", from.as_str()])
    }

    /// Frames of `from` to `to`.
    pub fn unicast(&self, to: &Name, from: &Name) -> String {
        self.below(["/rpc/", to.as_str(), "/", from.as_str()])
    }

    /// Questions of `from` who is there, and answers to them: to one node, or to all.
    pub fn roll(&self, to: Option<&Name>, from: &Name) -> String {
        let to = to.map_or(ALL, Name::as_str);
        self.below(["/roll/", to, "/", from.as_str()])
    }

    /// The retained status of `node`.
    pub fn status(&self, node: &Name) -> String {
        self.below(["/nodes/", node.as_str(), "/status", ""])
    }

    fn below(&self, levels: [&str; 4]) -> String {
        let length: usize = levels.iter().map(|level| level.len()).sum();
        let mut topic = String::with_capacity(self.root.len() + length);
        topic.push_str(&self.root);
        levels.iter().for_each(|level| topic.push_str(level));
        topic
    }

    /// The retained hint at who leads.
    pub fn leader(&self) -> String {
        format!("{}/leader", self.root)
    }

    /// The retained health of the cluster, where it is published.
    pub fn health(&self) -> String {
        format!("{}/health", self.root)
    }

    /// What the node `me` subscribes to.
    pub fn subscriptions(&self, me: &Name) -> [String; 5] {
        let root = &self.root;
        let [roll, own_roll] = self.roll_subscriptions(me);
        [
            format!("{root}/rpc/{ALL}/+"),
            format!("{root}/rpc/{me}/+"),
            format!("{root}/nodes/+/status"),
            roll,
            own_roll,
        ]
    }

    /// What `me` subscribes to if it is there and nothing more.
    pub(crate) fn roll_subscriptions(&self, me: &Name) -> [String; 2] {
        let root = &self.root;
        [
            format!("{root}/roll/{ALL}/+"),
            format!("{root}/roll/{me}/+"),
        ]
    }

    /// Reads a topic; `None` for any that is none of ours.
    pub fn parse(&self, topic: &str) -> Option<Topic> {
        let rest = topic.strip_prefix(&*self.root)?.strip_prefix('/')?;
        let mut levels = rest.split('/');
        let parsed = match (levels.next()?, levels.next()?, levels.next()?) {
            ("rpc", ALL, from) => Topic::Broadcast {
                from: Name::new(from).ok()?,
            },
            ("rpc", to, from) => Topic::Unicast {
                to: Name::new(to).ok()?,
                from: Name::new(from).ok()?,
            },
            ("roll", ALL, from) => Topic::Roll {
                to: None,
                from: Name::new(from).ok()?,
            },
            ("roll", to, from) => Topic::Roll {
                to: Some(Name::new(to).ok()?),
                from: Name::new(from).ok()?,
            },
            ("nodes", node, "status") => Topic::Status {
                node: Name::new(node).ok()?,
            },
            _ => return None,
        };
        levels.next().is_none().then_some(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_come_back_as_they_were_built() {
        let name = |text| Name::new(text).unwrap();
        let topics = Topics::new("raft", &name("plant-a")).unwrap();
        let (me, you) = (name("gw-1"), name("gw-2"));
        assert_eq!(topics.broadcast(&me), "raft/plant-a/rpc/all/gw-1");
        let broadcast = Topic::Broadcast { from: me.clone() };
        assert_eq!(topics.parse(&topics.broadcast(&me)), Some(broadcast));
        let unicast = Topic::Unicast {
            to: you.clone(),
            from: me.clone(),
        };
        assert_eq!(topics.parse(&topics.unicast(&you, &me)), Some(unicast));
        for to in [None, Some(you)] {
            let topic = topics.roll(to.as_ref(), &me);
            let from = me.clone();
            assert_eq!(topics.parse(&topic), Some(Topic::Roll { to, from }));
        }
        assert_eq!(
            topics.parse(&topics.status(&me)),
            Some(Topic::Status { node: me })
        );
    }

    #[test]
    fn foreign_topics_are_none_of_ours() {
        let topics = Topics::new("raft", &Name::new("plant-a").unwrap()).unwrap();
        for topic in [
            "",
            "raft",
            "raft/plant-a",
            "raft/plant-ab/rpc/all/gw-1",
            "raft/plant-b/rpc/all/gw-1",
            "raft/plant-a/rpc/all",
            "raft/plant-a/rpc/all/gw-1/more",
            "raft/plant-a/rpc/all/a:b",
            "raft/plant-a/nodes/gw-1/state",
        ] {
            assert_eq!(topics.parse(topic), None, "{topic}");
        }
        assert!(Topics::new("a/+/b", &Name::new("c").unwrap()).is_err());
        assert!(Topics::new("a/b/c/d", &Name::new("c").unwrap()).is_err());
        assert!(Topics::new("", &Name::new("c").unwrap()).is_err());
    }
}
