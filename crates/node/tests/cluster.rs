//! Nodes in one process on a real broker: what a user of the library sees.

use std::time::Duration;

use raft_over_mqtt::{Mqtt, RaftNode, broker::EmbeddedBroker};
use testkit::TempDir;

/// Long enough for anything that works at all, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

async fn start(url: &str, id: &str, dir: &TempDir) -> RaftNode {
    let metric = f64::from(id.as_bytes()[id.len() - 1] - b'0');
    RaftNode::initialize(Mqtt::new(url).expect("a URL"), id)
        .cluster("plant-a")
        .voters(["gw-1", "gw-2", "gw-3"])
        .data_dir(dir.path().join(id))
        .metric(metric)
        .insecure()
        .start()
        .await
        .expect("the node starts")
}

async fn until(node: &RaftNode, condition: impl Fn(&raft_over_mqtt::Status) -> bool) {
    let mut status = node.watch_status();
    let waited = tokio::time::timeout(SOON, status.wait_for(condition)).await;
    assert!(waited.is_ok(), "never came: {:?}", node.status());
}

/// Three nodes that know only a broker's address agree on one leader and one state; the state
/// outlives all of them.
#[tokio::test]
async fn three_nodes_agree() {
    let broker = EmbeddedBroker::start().await.expect("a broker");
    let dir = TempDir::new().expect("a directory");
    let mut nodes = Vec::new();
    for id in ["gw-1", "gw-2", "gw-3"] {
        nodes.push(start(&broker.url(), id, &dir).await);
    }
    for node in &nodes {
        until(node, |status| status.leader.is_some()).await;
    }
    for (number, node) in nodes.iter().enumerate() {
        node.put("door", format!("open {number}"))
            .await
            .expect("a write from any node");
        let value = node.get("door").await.expect("a read from any node");
        assert_eq!(value, Some(format!("open {number}").into()));
    }
    let leader = nodes
        .iter()
        .find(|node| node.leader() == nodes[0].leader())
        .expect("one of them");
    until(leader, |status| status.leader.is_some()).await;
    let presence = nodes[0].presence_manager();
    assert_eq!(
        presence.active_nodes_count(),
        3,
        "{:?}",
        presence.active_nodes()
    );

    for node in nodes {
        node.shutdown().await.expect("a clean end");
    }
    let mut nodes = Vec::new();
    for id in ["gw-1", "gw-2", "gw-3"] {
        nodes.push(start(&broker.url(), id, &dir).await);
    }
    let value = nodes[1].get("door").await.expect("a read");
    assert_eq!(value, Some("open 2".into()));
}
