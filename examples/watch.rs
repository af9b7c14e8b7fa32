//! A watch: what is there, and every change from then on; nothing is missed, nothing told twice.
//!
//! `cargo run -p raft-over-mqtt --example watch -- mqtt://127.0.0.1:1883`

mod common;

use std::error::Error;

use raft_over_mqtt::{KeyEvent, KeyRange};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (nodes, _directory) = common::cluster("example-watch").await?;
    let (writer, reader) = (nodes[0].kv(), nodes[1].kv());
    writer.put("door/1", "shut").await?;
    let (doors, mut changes) = reader
        .list_and_watch(KeyRange::Prefix("door/".into()))
        .await?;
    for door in doors {
        println!("{} is {}", text(&door.key), text(&door.value));
    }
    // A switch that acts only if the door is as it was believed to be.
    let swapped = writer.compare_and_swap("door/1", Some("shut".into()), Some("open".into()));
    assert!(swapped.await?.applied);
    writer.delete("door/1").await?;
    loop {
        match changes.next().await? {
            KeyEvent::Put(door) => {
                let revision = door.modified;
                println!(
                    "{} became {} at revision {revision}",
                    text(&door.key),
                    text(&door.value)
                );
            }
            KeyEvent::Delete { key, revision } => {
                println!("{} is gone since revision {revision}", text(&key));
                return Ok(());
            }
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
