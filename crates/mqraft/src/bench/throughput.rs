//! Many puts at once: by clients in the leader's process, and by as many over MQTT.
//!
//! Each client has one put under way. Those over MQTT share one session, in a thread of their own.

use std::time::{Duration, Instant};

use bytes::Bytes;
use raft_over_mqtt::{Client, Error, Kv};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::floor::BATCH_BYTES;
use super::report::{What, floor, ours};
use super::samples::Samples;
use super::stage::Stage;
use super::thread::Thread;
use crate::exit::Failure;

const ECHO: What = floor("publishes", "a publish each, there and back");
const BATCH: What = floor("batches", "as many in one append, one sync each");
const LEADER: What = ours("leader", "puts at the leader");
const MQTT: What = ours("client", "puts over MQTT");

/// How long clients put before they are counted.
const WARM_UP: Duration = Duration::from_millis(500);

pub(super) async fn measure(
    stage: &mut Stage,
    clients: usize,
    size: usize,
    time: Duration,
) -> Result<(), Failure> {
    let value = Bytes::from(vec![b'x'; size]);
    let batch = clients.min(BATCH_BYTES / size).max(1);
    let mut floor = stage.floor().await?;
    stage.step(format!("the floor: {clients} publishes under way"));
    let rate = floor.echoes(&value, clients, time).await?;
    stage.report.rate(ECHO, rate);
    stage.step(format!("the floor: batches of {batch}"));
    let (rate, samples) = floor.batches(&value, batch, time).await?;
    stage.rate(BATCH, rate, samples);
    drop(floor);

    let node = stage.lead_inside().await?;
    stage.step(format!("{clients} clients at the leader"));
    let puts = put(node.kv(), clients, value.clone(), time);
    let (rate, samples) = stage.while_drawing(puts).await?;
    stage.rate(LEADER, rate, samples);

    stage.step(format!("{clients} clients over MQTT"));
    let (connecting, timeout) = (stage.client_settings(), stage.timeout);
    let (tell, told) = oneshot::channel();
    let _thread = Thread::start(async move |ready| {
        let (mqtt, prefix, cluster, key) = connecting;
        let client = Client::connect(mqtt, &prefix, &cluster, key, timeout).await?;
        ready.say();
        let _ = tell.send(put(client.kv(), clients, value, time).await);
        Ok(())
    })
    .await?;
    let told = async { told.await.unwrap_or_else(|_| Err(Error::Closed.into())) };
    let (rate, samples) = stage.while_drawing(told).await?;
    stage.rate(MQTT, rate, samples);
    Ok(())
}

/// `clients` put, each its own key; how many a second for so long, and how long each took.
async fn put(
    kv: Kv,
    clients: usize,
    value: Bytes,
    time: Duration,
) -> Result<(f64, Samples), Failure> {
    let begin = Instant::now() + WARM_UP;
    let end = begin + time;
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let (kv, value) = (kv.clone(), value.clone());
        tasks.spawn(async move {
            let key = Bytes::from(format!("client-{client}"));
            let mut samples = Samples::default();
            loop {
                let started = Instant::now();
                kv.put(key.clone(), value.clone()).await?;
                let done = Instant::now();
                if done >= end {
                    return Ok::<_, Error>(samples);
                }
                if done >= begin {
                    samples.add(done - started);
                }
            }
        });
    }
    let mut all = Samples::default();
    while let Some(ended) = tasks.join_next().await {
        let samples = ended.map_err(|_| Error::Closed)??;
        all.append(samples);
    }
    Ok((all.len() as f64 / time.as_secs_f64(), all))
}
