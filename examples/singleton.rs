//! A singleton inside a program: a task that runs on exactly one site. For a program of its own there
//! is `mqraft run -- CMD`, which also ends what does not end by itself.
//!
//! `cargo run -p raft-over-mqtt --example singleton -- mqtt://127.0.0.1:1883`

mod common;

use std::error::Error;
use std::time::Duration;

use raft_over_mqtt::{Client, Held, Kv, Mqtt, Session};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (_nodes, _directory) = common::cluster("example-singleton").await?;
    let mut sites = Vec::new();
    for site in ["north", "south"] {
        let mqtt = Mqtt::new(&common::broker())?;
        let timeout = Duration::from_secs(10);
        let client = Client::connect(mqtt, "raft", "example-singleton", None, timeout).await?;
        sites.push(tokio::spawn(async move {
            let session = Session::begin(&client.kv(), Duration::from_secs(5)).await?;
            let elected = session.campaign("controller", site).await?;
            run(site, &client.kv(), &elected).await?;
            // Ends at once for the other, rather than when the lease's time is over.
            elected.release().await
        }));
    }
    for site in sites {
        site.await??;
    }
    Ok(())
}

/// What only one may do, and only as long as it is certain to be the one.
async fn run(site: &str, kv: &Kv, elected: &Held) -> raft_over_mqtt::Result<()> {
    println!("{site} controls, token {}", elected.token());
    let mut steps = 0;
    while elected.is_held() && steps < 3 {
        steps += 1;
        let total = kv.add("steps", 1).await?;
        println!("{site}: step {total}");
        tokio::time::sleep(common::A_WHILE / 3).await;
    }
    Ok(())
}
