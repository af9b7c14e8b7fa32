//! A voter that lost its data directory is a new node: it follows, and never votes again under
//! its old name (design point 9).

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Transport};

const SOON: Duration = Duration::from_secs(60);

/// Several election timeouts: had the wiped node a vote, it would have been used by then.
const LONG: Duration = Duration::from_secs(5);

#[test]
fn a_voter_wiped_later_never_votes() {
    if !testkit::mosquitto_or_skip() {
        return;
    }
    let mut cluster = Cluster::start(3, Transport::Plain);
    assert!(
        cluster.wait_for_leader(SOON),
        "no first leader\n{}",
        cluster.logs()
    );
    cluster.put("door", "open");
    let wiped = cluster.follower();
    cluster.kill(wiped);
    cluster.wipe(wiped);
    cluster.start_node(wiped);
    wiped_node_never_votes(&mut cluster, wiped);
    assert_eq!(cluster.read(&["door".to_owned()]), [Some(b"open".to_vec())]);
}

#[test]
fn a_voter_wiped_during_the_first_election_never_votes() {
    if !testkit::mosquitto_or_skip() {
        return;
    }
    let mut cluster = Cluster::start(3, Transport::Plain);
    // It has formed the cluster with the others, and an election is about to begin.
    let wiped = 2;
    assert!(
        cluster.wait_for_log(wiped, "with a vote", SOON),
        "{}",
        cluster.logs()
    );
    cluster.kill(wiped);
    cluster.wipe(wiped);
    cluster.start_node(wiped);
    assert!(
        cluster.wait_for_leader(SOON),
        "two of three elect\n{}",
        cluster.logs()
    );
    wiped_node_never_votes(&mut cluster, wiped);
}

/// With one of the two others gone there is no majority, although three processes are there.
fn wiped_node_never_votes(cluster: &mut Cluster, wiped: usize) {
    let learns = cluster.wait_for_role(wiped, "learner", SOON);
    assert!(
        learns,
        "the wiped node follows without a vote\n{}",
        cluster.logs()
    );
    let leader = cluster.leader().expect("someone leads");
    assert_ne!(leader, wiped);
    let before = cluster.leaders_by_term().len();
    cluster.kill(leader);
    let started = Instant::now();
    while started.elapsed() < LONG {
        let statuses = cluster.statuses();
        let led = statuses
            .iter()
            .any(|status| status.role == "leader" || status.is_leader);
        assert!(
            !led,
            "someone leads without a majority: {statuses:?}\n{}",
            cluster.logs()
        );
    }
    assert_eq!(
        cluster.leaders_by_term().len(),
        before,
        "{}",
        cluster.logs()
    );
    cluster.start_node(leader);
    assert!(
        cluster.wait_for_leader(SOON),
        "two voters elect again\n{}",
        cluster.logs()
    );
    assert!(
        cluster.converge(SOON).is_ok(),
        "the wiped node catches up\n{}",
        cluster.logs()
    );
}
