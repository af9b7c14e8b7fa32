//! One put after the other: at the leader, at a follower, and of a client over MQTT.
//!
//! The floor and the cluster take turns, so that whatever else the machine does meets both. First the
//! voter in this process leads; then it hands over and is the follower.

use std::time::Instant;

use bytes::Bytes;
use raft_over_mqtt::RaftNode;

use super::floor::Floor;
use super::report::{What, floor, ours};
use super::stage::Stage;
use crate::exit::Failure;

const SYNC: What = floor("sync", "write and sync");
const ECHO: What = floor("round_trip", "publish there and back");
const COMMIT: What = floor("commit", "append, syncs, acknowledgement");
const ASKED: What = floor("asked_commit", "the same, asked for over MQTT");
const LEADER: What = ours("leader", "put at the leader").above(COMMIT);
const FOLLOWER: What = ours("follower", "put at a follower").above(ASKED);
const CLIENT: What = ours("client", "put by a client over MQTT").above(ASKED);

/// How often floor and cluster take turns.
const ROUNDS: u32 = 20;

/// How many rounds are told of in one line.
const TOLD: u32 = 5;

/// Puts that nobody counts: connections, caches and windows settle.
const WARM_UP: u32 = 50;

/// Keys that are put in turn.
const KEYS: u32 = 100;

pub(super) async fn measure(stage: &mut Stage, puts: u32, size: usize) -> Result<(), Failure> {
    let mut floor = stage.floor().await?;
    let node = stage.lead_inside().await?;
    let value = Bytes::from(vec![b'x'; size]);
    for number in 0..WARM_UP {
        floor.commit(&value).await?;
        node.put(key(number), value.clone()).await?;
    }
    for round in 0..ROUNDS {
        let share = share(puts, round);
        tell(stage, "at the leader", round);
        at_leader(stage, &mut floor, &node, &value, share).await?;
    }
    stage.step("the lead is handed over");
    let Some(other) = stage.cluster.voters.get(1).cloned() else {
        // A single voter has no follower.
        return from_outside(stage, &mut floor, None, &value, puts).await;
    };
    node.transfer(Some(&other)).await?;
    stage
        .until("nobody leads", || node.leader().as_deref() == Some(&*other))
        .await?;
    from_outside(stage, &mut floor, Some(&node), &value, puts).await
}

async fn at_leader(
    stage: &mut Stage,
    floor: &mut Floor,
    node: &RaftNode,
    value: &Bytes,
    puts: u32,
) -> Result<(), Failure> {
    for _ in 0..puts {
        let time = floor.sync(value.len()).await?;
        stage.timed(SYNC, time);
    }
    for _ in 0..puts {
        let time = floor.echo(value).await?;
        stage.timed(ECHO, time);
    }
    for _ in 0..puts {
        let time = floor.commit(value).await?;
        stage.timed(COMMIT, time);
    }
    for number in 0..puts {
        let started = Instant::now();
        node.put(key(number), value.clone()).await?;
        stage.timed(LEADER, started.elapsed());
    }
    Ok(())
}

/// The leader is another process now.
async fn from_outside(
    stage: &mut Stage,
    floor: &mut Floor,
    follower: Option<&RaftNode>,
    value: &Bytes,
    puts: u32,
) -> Result<(), Failure> {
    let mut client = stage.remote().await?;
    for number in 0..WARM_UP {
        floor.asked(value).await?;
        client.put(key(number), value.clone()).await?;
        if let Some(node) = follower {
            node.put(key(number), value.clone()).await?;
        }
    }
    for round in 0..ROUNDS {
        let puts = share(puts, round);
        tell(stage, "from outside", round);
        for _ in 0..puts {
            let time = floor.asked(value).await?;
            stage.timed(ASKED, time);
        }
        for number in 0..puts {
            let Some(node) = follower else { break };
            let started = Instant::now();
            node.put(key(number), value.clone()).await?;
            stage.timed(FOLLOWER, started.elapsed());
        }
        for number in 0..puts {
            let started = Instant::now();
            client.put(key(number), value.clone()).await?;
            stage.timed(CLIENT, started.elapsed());
        }
    }
    client.close().await;
    Ok(())
}

fn tell(stage: &mut Stage, what: &str, round: u32) {
    if round.is_multiple_of(TOLD) {
        stage.step(format!("{what}, round {} of {ROUNDS}", round + 1));
    }
}

fn key(number: u32) -> String {
    format!("key-{}", number % KEYS)
}

/// What of `puts` falls to a round.
fn share(puts: u32, round: u32) -> u32 {
    puts / ROUNDS + u32::from(round < puts % ROUNDS)
}
