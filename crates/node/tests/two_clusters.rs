//! Two clusters of one name on two real brokers that are bridged later.

use std::time::Duration;

use raft_over_mqtt::{Mqtt, RaftNode, Status};
use testkit::{Mosquitto, TempDir, require_mosquitto, wait_for_async};

/// Long enough for anything that works at all, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// A cluster of these, all of its nodes in this process.
async fn cluster(url: &str, names: [&str; 3], dir: &TempDir) -> Vec<RaftNode> {
    let mut nodes = Vec::new();
    for name in names {
        let node = RaftNode::initialize(Mqtt::new(url).expect("a URL"), name)
            .cluster("plant-a")
            .voters(names)
            .data_dir(dir.path().join(name))
            .insecure()
            .start();
        nodes.push(node.await.expect("the node starts"));
    }
    nodes
}

async fn until(what: &str, nodes: &[RaftNode], condition: impl Fn(&[RaftNode]) -> bool) {
    let states = || nodes.iter().map(RaftNode::status).collect::<Vec<Status>>();
    let came = wait_for_async(SOON, || condition(nodes)).await;
    assert!(came, "{what} never came: {:#?}", states());
}

fn one_is_leader(nodes: &[RaftNode]) -> bool {
    nodes.iter().filter(|node| node.is_leader()).count() == 1
}

fn none_is_leader(nodes: &[RaftNode]) -> bool {
    !nodes.iter().any(RaftNode::is_leader)
}

fn all_are_in_trouble(nodes: &[RaftNode]) -> bool {
    let met = |node: &RaftNode| {
        let trouble = node.status().trouble.unwrap_or_default();
        trouble.contains("is of another cluster of the same name")
    };
    nodes.iter().all(met)
}

/// Each cluster has its leader until a bridge joins the brokers. Then every node of both says that
/// there is another cluster and none is the leader any more, though writes go on; once one
/// of the two has been shut down, the other has its leader again.
#[tokio::test]
async fn a_bridge_between_two_clusters_is_noticed_on_both_sides() {
    require_mosquitto!();
    let (here, there, dir) = (Mosquitto::start(), Mosquitto::start(), testkit::temp_dir());
    let ours = cluster(&here.url(), ["gw-1", "gw-2", "gw-3"], &dir).await;
    let theirs = cluster(&there.url(), ["gw-4", "gw-5", "gw-6"], &dir).await;
    until("our leader", &ours, one_is_leader).await;
    until("their leader", &theirs, one_is_leader).await;

    let _bridge = Mosquitto::builder().bridge(&here).bridge(&there).start();
    until("the end of our claims", &ours, none_is_leader).await;
    until("the end of their claims", &theirs, none_is_leader).await;
    until("our report", &ours, all_are_in_trouble).await;
    until("their report", &theirs, all_are_in_trouble).await;
    ours[0].put("door", "open").await.expect("a write here");
    theirs[0].put("door", "shut").await.expect("a write there");
    let door = ours[1].get("door").await.expect("a read");
    assert_eq!(door, Some("open".into()), "two states");
    assert!(none_is_leader(&ours) && none_is_leader(&theirs));

    for node in theirs {
        node.shutdown().await.expect("a clean end");
    }
    until("our leader", &ours, one_is_leader).await;
    let at_ease = |nodes: &[RaftNode]| nodes.iter().all(|node| node.status().trouble.is_none());
    until("the end of the trouble", &ours, at_ease).await;
}

/// A voter's data directory was copied to a second site and started there, where it reaches nobody.
/// When the sites are bridged the copy stops and says why; the original goes on.
#[tokio::test]
async fn a_copied_voter_stops_when_it_meets_its_original() {
    require_mosquitto!();
    let (here, there, dir) = (Mosquitto::start(), Mosquitto::start(), testkit::temp_dir());
    let names = ["gw-1", "gw-2", "gw-3"];
    let ours = cluster(&here.url(), names, &dir).await;
    until("our leader", &ours, one_is_leader).await;
    ours[0].put("door", "open").await.expect("a write");
    let elsewhere = testkit::temp_dir();
    let copy = elsewhere.path().join("gw-3");
    std::fs::create_dir(&copy).expect("a directory");
    for file in std::fs::read_dir(dir.path().join("gw-3")).expect("a directory") {
        let file = file.expect("an entry");
        std::fs::copy(file.path(), copy.join(file.file_name())).expect("a copy");
    }
    let copied = RaftNode::initialize(Mqtt::new(&there.url()).expect("a URL"), "gw-3")
        .cluster("plant-a")
        .voters(names)
        .data_dir(&copy)
        .insecure()
        .start();
    let copied = copied.await.expect("the copy starts");
    // The original has to have known its leader for ten seconds, or neither goes on.
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(copied.status().leader.is_none(), "it reaches nobody");

    let _bridge = Mosquitto::builder().bridge(&here).bridge(&there).start();
    let stopped = tokio::time::timeout(SOON, copied.stopped()).await;
    let error = stopped.expect("it stops").expect_err("with a reason");
    assert!(
        error
            .to_string()
            .contains("gw-3 runs under this node's key"),
        "{error}"
    );
    let told = |nodes: &[RaftNode]| {
        let trouble = nodes[2].status().trouble.unwrap_or_default();
        trouble.contains("one data directory is a copy of the other")
    };
    until("the report of the original", &ours, told).await;
    ours[2]
        .put("door", "shut")
        .await
        .expect("a write by the original");
    until("our leader", &ours, one_is_leader).await;
}
