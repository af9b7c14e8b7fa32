//! Work assignment: shards are shared among who is there, and move when that changes.
//!
//! `cargo run -p raft-over-mqtt --example work -- mqtt://127.0.0.1:1883`

mod common;

use std::error::Error;
use std::time::Duration;

use raft_over_mqtt::Session;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (nodes, _directory) = common::cluster("example-work").await?;
    let shards: Vec<String> = (1..=6).map(|n| format!("line-{n}")).collect();
    let first = Session::begin(&nodes[0].kv(), Duration::from_secs(5)).await?;
    let second = Session::begin(&nodes[1].kv(), Duration::from_secs(5)).await?;
    let mut a = first.work("lines", "a", shards.clone()).await?;
    let alone = a.next().await?;
    println!("a alone: {}", alone.mine.join(" "));
    let mut b = second.work("lines", "b", shards).await?;
    // The revision is the fence: it is shown with whatever is done to a line, and grows.
    let (of_a, of_b) = (a.next().await?, b.next().await?);
    println!("a of two: {}", of_a.mine.join(" "));
    println!("b of two: {}", of_b.mine.join(" "));
    assert!(of_a.revision > alone.revision);
    second.end().await?;
    let again = a.next().await?;
    println!(
        "a again alone: {} lines, revision grew: {}",
        again.mine.len(),
        again.revision > of_a.revision
    );
    Ok(())
}
