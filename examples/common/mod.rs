//! What the examples share: a broker's address, and a cluster of three nodes there.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use raft_over_mqtt::{Mqtt, RaftNode};

/// Where the broker is: the first argument, or one on this machine.
pub(crate) fn broker() -> String {
    let given = std::env::args().nth(1);
    given.unwrap_or_else(|| "mqtt://127.0.0.1:1883".to_owned())
}

/// Three nodes in this process, which have a leader. In production each runs on a machine of its own,
/// with a cluster key in place of `insecure`.
pub(crate) async fn cluster(name: &str) -> Result<(Vec<RaftNode>, Directory), Box<dyn Error>> {
    let directory = Directory::new(name)?;
    let ids = ["gw-1", "gw-2", "gw-3"];
    let mut nodes = Vec::new();
    for (metric, id) in (1..).zip(ids) {
        let node = RaftNode::initialize(Mqtt::new(&broker())?, id)
            .cluster(name)
            .voters(ids)
            .data_dir(directory.0.join(id))
            .metric(f64::from(metric))
            .insecure()
            .start()
            .await?;
        nodes.push(node);
    }
    for node in &nodes {
        let mut status = node.watch_status();
        status.wait_for(|status| status.leader.is_some()).await?;
    }
    Ok((nodes, directory))
}

/// A directory that goes with the example.
pub(crate) struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> std::io::Result<Directory> {
        let path = std::env::temp_dir().join(format!("mqraft-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Directory(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Long enough for a person to see, short enough for a test.
#[allow(dead_code, reason = "not every example waits")]
pub(crate) const A_WHILE: Duration = Duration::from_millis(300);
