//! Leader election: exactly one of three nodes acts, and when it stops another takes over.
//!
//! `cargo run -p raft-over-mqtt --example election -- mqtt://127.0.0.1:1883`

mod common;

use std::error::Error;

use raft_over_mqtt::RaftNode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (mut nodes, _directory) = common::cluster("example-election").await?;
    // The best metric leads: gw-1's.
    let first = who_acts(&nodes).await?;
    // A clean stop hands the lead over before it ends: nobody waits for a timeout.
    nodes.swap_remove(first).shutdown().await?;
    who_acts(&nodes).await?;
    for node in nodes {
        node.shutdown().await?;
    }
    Ok(())
}

/// Waits until a node is the only leader for certain, and lets it act.
async fn who_acts(nodes: &[RaftNode]) -> Result<usize, Box<dyn Error>> {
    loop {
        for (number, node) in nodes.iter().enumerate() {
            if node.is_leader() {
                let leadership = node.leadership().await?;
                // What acts outside of this process shows the token: it only ever grows, and whoever
                // guards the door refuses a smaller one than it has seen.
                let leader = node.leader().unwrap_or_default();
                println!("{leader} acts, token {}", leadership.token());
                return Ok(number);
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}
