//! A lock: one at a time, first come, first served, with a token that only ever grows.
//!
//! `cargo run -p raft-over-mqtt --example lock -- mqtt://127.0.0.1:1883`

mod common;

use std::error::Error;
use std::time::Duration;

use raft_over_mqtt::{Client, Mqtt, Session};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (_nodes, _directory) = common::cluster("example-lock").await?;
    let mut workers = Vec::new();
    for name in ["ada", "bob", "eve"] {
        // Each with a connection of its own, as three processes would have.
        let mqtt = Mqtt::new(&common::broker())?;
        let timeout = Duration::from_secs(10);
        let client = Client::connect(mqtt, "raft", "example-lock", None, timeout).await?;
        workers.push(tokio::spawn(async move {
            let session = Session::begin(&client.kv(), Duration::from_secs(5)).await?;
            let lock = session.lock("press-7").await?;
            println!("{name} has the press, token {}", lock.token());
            tokio::select! {
                () = tokio::time::sleep(common::A_WHILE) => println!("{name} is done"),
                // Cut off from the cluster for too long: somebody else may have it now.
                () = lock.lost() => println!("{name} lost the press"),
            }
            lock.release().await
        }));
    }
    for worker in workers {
        worker.await??;
    }
    Ok(())
}
