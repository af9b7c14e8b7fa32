//! How long it takes until the last of many watchers has seen a put.
//!
//! The watchers are observers: nodes that hold the state without a vote and are told of each change by
//! their own copy. They stand in one thread with a runtime of its own. The floor is one publish to as
//! many bare sessions in such a thread.
//!
//! What the leader publishes is counted by a session that hears every topic of the cluster: the sender
//! stands in the topic.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use raft_over_mqtt::{KeyEvent, KeyRange, Kv, Probe, RaftNode};
use tokio::sync::mpsc;

use super::report::{What, floor, ours};
use super::stage::{DEADLINE, Stage};
use super::thread::Thread;
use crate::exit::{Exit, Failure};

const FLOOR: What = floor("fanout", "publish until the last session has it");
const PUT: What = ours("put", "put at the leader");
const LAST: What = ours("last_watcher", "put until the last watcher has it").above(FLOOR);

/// The key that is put; what follows it is watched.
const KEY: &str = "fanout";

/// Puts that nobody counts.
const WARM_UP: u32 = 10;

/// Who has seen which put, and when.
type Seen = mpsc::UnboundedReceiver<Instant>;

pub(super) async fn measure(
    stage: &mut Stage,
    watchers: u32,
    puts: u32,
    size: usize,
) -> Result<(), Failure> {
    let value = Bytes::from(vec![b'x'; size]);
    stage.step(format!("the floor: {watchers} sessions"));
    floor_of(stage, watchers, puts, &value).await?;

    let leader = stage.lead_inside().await?;
    stage.step(format!("{watchers} observers come"));
    let (_thread, mut seen) = observers(stage, watchers).await?;
    let all = stage.voters() + watchers as usize;
    let there = || leader.presence_manager().active_nodes_count() >= all;
    stage.until("not all observers came", there).await?;
    for _ in 0..WARM_UP {
        leader.put(KEY, value.clone()).await?;
        all_saw(&mut seen, watchers).await?;
    }

    stage.step(format!("{puts} puts, {watchers} watchers"));
    let count = Count::start(stage).await?;
    let before = count.read();
    for _ in 0..puts {
        let started = Instant::now();
        leader.put(KEY, value.clone()).await?;
        let put = started.elapsed();
        let last = all_saw(&mut seen, watchers).await?;
        stage.timed(PUT, put);
        stage.timed(LAST, last.saturating_duration_since(started));
    }
    let after = count.read();
    let per_put = |n: u64| n as f64 / f64::from(puts);
    let (publishes, bytes) = (after.0 - before.0, after.1 - before.1);
    let report = &mut stage.report;
    report.number(
        "publishes_per_put",
        "publishes of the leader per put",
        per_put(publishes),
    );
    report.number(
        "bytes_per_put",
        "bytes of them per put, topics counted",
        per_put(bytes),
    );
    Ok(())
}

/// Waits until all have seen what was put last; when the last one did.
async fn all_saw(seen: &mut Seen, watchers: u32) -> Result<Instant, Failure> {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let mut last = None;
    for missing in (1..=watchers).rev() {
        let at = tokio::time::timeout_at(deadline, seen.recv()).await;
        let at = at.ok().flatten().ok_or_else(|| {
            let message =
                format!("{missing} of {watchers} watchers have not seen a put within {DEADLINE:?}");
            Failure::new(Exit::NoAnswer, message)
        })?;
        last = last.max(Some(at));
    }
    Ok(last.unwrap_or_else(Instant::now))
}

// The floor.

async fn floor_of(
    stage: &mut Stage,
    watchers: u32,
    puts: u32,
    value: &Bytes,
) -> Result<(), Failure> {
    let publisher = stage.probe(&[]).await?;
    let topic = format!("{}/floor/fanout", stage.root());
    let (mqtt, filter, timeout) = (stage.mqtt.clone(), topic.clone(), stage.timeout);
    let (tell, mut seen) = mpsc::unbounded_channel();
    let _thread = Thread::start(async move |ready| {
        for _ in 0..watchers {
            let filters = [filter.clone()];
            let mut probe = Probe::connect(mqtt.clone(), &filters, timeout).await?;
            let tell = tell.clone();
            tokio::spawn(async move {
                while probe.next().await.is_ok() {
                    let _ = tell.send(Instant::now());
                }
            });
        }
        ready.say();
        std::future::pending().await
    })
    .await?;
    for number in 0..WARM_UP + puts {
        let started = Instant::now();
        publisher.publish(&topic, value.clone())?;
        let last = all_saw(&mut seen, watchers).await?;
        if number >= WARM_UP {
            stage.timed(FLOOR, last.saturating_duration_since(started));
        }
    }
    publisher.close().await;
    Ok(())
}

// The observers.

/// Starts them, and returns when all watch.
async fn observers(stage: &Stage, watchers: u32) -> Result<(Thread, Seen), Failure> {
    let builders: Vec<_> = (1..=watchers)
        .map(|number| stage.node(&format!("watcher-{number}")))
        .collect();
    let (tell, seen) = mpsc::unbounded_channel();
    let thread = Thread::start(async move |ready| {
        let mut nodes = Vec::new();
        for builder in builders {
            let node = builder.start().await?;
            tokio::spawn(watch(node.kv(), tell.clone()));
            nodes.push(node);
        }
        ready.say();
        std::future::pending::<()>().await;
        drop::<Vec<RaftNode>>(nodes);
        Ok(())
    });
    Ok((thread.await?, seen))
}

async fn watch(kv: Kv, tell: mpsc::UnboundedSender<Instant>) {
    let key = KeyRange::Key(KEY.into());
    // From the first revision on: no put comes before.
    let mut watch = kv.watch(key, 1);
    while let Ok(event) = watch.next().await {
        if let KeyEvent::Put(_) = event {
            let _ = tell.send(Instant::now());
        }
    }
}

// What the leader publishes.

/// Counts what the leader publishes, from a thread of its own.
struct Count {
    publishes: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
    _thread: Thread,
}

impl Count {
    async fn start(stage: &Stage) -> Result<Count, Failure> {
        let (mqtt, root, timeout) = (stage.mqtt.clone(), stage.root(), stage.timeout);
        let leader = stage.cluster.voters[0].clone();
        let (publishes, bytes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counts = (Arc::clone(&publishes), Arc::clone(&bytes));
        let thread = Thread::start(async move |ready| {
            let filters = ["rpc/+/", "roll/+/"].map(|topic| format!("{root}/{topic}{leader}"));
            let mut probe = Probe::connect(mqtt, &filters, timeout).await?;
            ready.say();
            loop {
                let message = probe.next().await?;
                let size = message.topic.len() + message.payload.len();
                counts.0.fetch_add(1, Ordering::Relaxed);
                counts.1.fetch_add(size as u64, Ordering::Relaxed);
            }
        });
        Ok(Count {
            publishes,
            bytes,
            _thread: thread.await?,
        })
    }

    fn read(&self) -> (u64, u64) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (of(&self.publishes), of(&self.bytes))
    }
}
