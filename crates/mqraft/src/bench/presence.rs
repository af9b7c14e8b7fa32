//! How long it takes until the cluster has agreed on who is there, and on who is gone.
//!
//! The observers are `raft_over_mqtt::Observer`s in processes of this program, so that they can be
//! killed. What a client that watches is told counts: all have come; one has gone. The floor of coming
//! is bare sessions that publish once and are heard; that of going is the broker's will.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{Duration, Instant};

use raft_over_mqtt::{AgreedChange, AgreedChanges, AgreedMembers, Mqtt, Observer, Probe};
use tokio::process::Child;
use tokio::task::JoinSet;

use super::failover::says_offline;
use super::report::{What, floor, ours};
use super::stage::Stage;
use crate::cli::OBSERVERS;
use crate::exit::{Exit, Failure};
use crate::local;
use crate::node::watch_stdin;
use crate::settings::Connection;

const SESSIONS: What = floor("sessions", "as many sessions, each heard");
const SESSION: What = floor("session", "one session, heard");
const WILL: What = floor("will", "kill -9 until the will arrives");
const ALL: What = ours("all_agreed", "start until all are agreed on");
const ONE: What = ours("arrival", "start until one is agreed on");
const GONE: What = ours("departure", "kill -9 until the departure is known");

/// How many observers one process holds: a process has so many descriptors and no more.
const IN_ONE: u32 = 500;

/// How many a second one process starts.
const RATE: u32 = 500;

/// How often the broker hears of an observer that is silent: seldom, as in a large fleet.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(180);

pub(super) async fn measure(stage: &mut Stage, count: u32, kills: u32) -> Result<(), Failure> {
    let mut statuses = stage.probe(&["nodes/+/status"]).await?;
    stage.step(format!("the floor: {count} sessions"));
    let time = sessions(stage, count).await?;
    stage.timed(SESSIONS, time);
    for number in 0..kills {
        let time = session(stage.mqtt.clone(), &stage.root(), number, stage.timeout).await?;
        stage.timed(SESSION, time);
    }

    stage.step("the cluster is formed");
    stage.start_processes(0)?;
    let mut changes = voters_there(stage).await?;
    stage.step(format!("{count} observers come"));
    let since = Instant::now();
    let mut fleet = Vec::new();
    for (number, from) in (0..count).step_by(IN_ONE as usize).enumerate() {
        let name = format!("fleet-{number}");
        fleet.push(start(stage, &name, IN_ONE.min(count - from))?);
    }
    let mut come = BTreeSet::new();
    while come.len() < count as usize {
        let change = next(stage, &mut changes).await?;
        match change.node {
            Some(_) => come.insert(change.name),
            None => come.remove(&change.name),
        };
    }
    stage.timed(ALL, since.elapsed());

    for number in 1..=kills {
        stage.step(format!("kill {number} of {kills}"));
        one_dies(stage, number, &mut changes, &mut statuses).await?;
    }
    drop(fleet);
    Ok(())
}

/// One more comes, and is killed.
async fn one_dies(
    stage: &mut Stage,
    number: u32,
    changes: &mut AgreedChanges,
    statuses: &mut Probe,
) -> Result<(), Failure> {
    let process = format!("lone-{number}");
    let name = observer(&process, 1);
    let since = Instant::now();
    let mut lone = start(stage, &process, 1)?;
    until(stage, changes, &name, true).await?;
    stage.timed(ONE, since.elapsed());

    let status = format!("/nodes/{name}/status");
    let since = Instant::now();
    let killed = lone.start_kill();
    killed.map_err(|error| Failure::new(Exit::Stopped, format!("cannot kill: {error}")))?;
    let will = async {
        loop {
            let message = statuses.next().await?;
            if message.topic.ends_with(&status) && says_offline(&message.payload) {
                return Ok::<_, Failure>(since.elapsed());
            }
        }
    };
    let departed = async {
        until(stage, changes, &name, false).await?;
        Ok(since.elapsed())
    };
    let (will, departed) = tokio::try_join!(will, departed)?;
    stage.timed(WILL, will);
    stage.timed(GONE, departed);
    Ok(())
}

/// Waits until all voters are agreed on; what changes from then on.
async fn voters_there(stage: &mut Stage) -> Result<AgreedChanges, Failure> {
    let kv = stage.client().await?.kv();
    let (members, mut changes) = AgreedMembers::watch(&kv).await?;
    let mut there: BTreeSet<_> = members.nodes.into_iter().map(|node| node.name).collect();
    while there.len() < stage.voters() {
        let change = next(stage, &mut changes).await?;
        match change.node {
            Some(_) => there.insert(change.name),
            None => there.remove(&change.name),
        };
    }
    Ok(changes)
}

/// Waits until this one has come, or gone.
async fn until(
    stage: &mut Stage,
    changes: &mut AgreedChanges,
    name: &str,
    there: bool,
) -> Result<(), Failure> {
    loop {
        let change = next(stage, changes).await?;
        if change.name.as_str() == name && change.node.is_some() == there {
            return Ok(());
        }
    }
}

async fn next(stage: &mut Stage, changes: &mut AgreedChanges) -> Result<AgreedChange, Failure> {
    let next = tokio::time::timeout(PATIENCE, changes.next());
    match stage.while_drawing(next).await {
        Ok(change) => Ok(change?),
        Err(_) => {
            let message = format!("no change of who is there within {PATIENCE:?}");
            Err(Failure::new(Exit::NoAnswer, message))
        }
    }
}

// The floor.

/// Opens as many sessions, at the pace at which the observers come; until each has been heard.
async fn sessions(stage: &Stage, count: u32) -> Result<Duration, Failure> {
    let (mqtt, root, timeout) = (&stage.mqtt, stage.root(), stage.timeout);
    let since = Instant::now();
    let mut pace = tokio::time::interval(Duration::from_secs(1) / (RATE * count.div_ceil(IN_ONE)));
    let mut tasks = JoinSet::new();
    for number in 0..count {
        pace.tick().await;
        let (mqtt, root) = (mqtt.clone(), root.clone());
        tasks.spawn(async move { session(mqtt, &root, number, timeout).await });
    }
    while let Some(heard) = tasks.join_next().await {
        heard.map_err(|_| raft_over_mqtt::Error::Closed)??;
    }
    Ok(since.elapsed())
}

/// Opens a session that hears what it publishes.
async fn session(
    mqtt: Mqtt,
    root: &str,
    number: u32,
    timeout: Duration,
) -> Result<Duration, Failure> {
    let topic = format!("{root}/floor/{number}");
    let since = Instant::now();
    let mut probe = Probe::connect(mqtt, std::slice::from_ref(&topic), timeout).await?;
    probe.publish(&topic, "here")?;
    let heard = tokio::time::timeout(timeout, probe.next()).await;
    heard.map_err(|_| raft_over_mqtt::Error::TimedOut(timeout))??;
    let time = since.elapsed();
    probe.close().await;
    Ok(time)
}

// The observers' processes.

fn observer(process: &str, number: u32) -> String {
    format!("{process}-{number}")
}

/// A process with `count` observers; killed when it is dropped.
fn start(stage: &Stage, name: &str, count: u32) -> Result<Child, Failure> {
    let cannot = |error: std::io::Error| {
        Failure::new(Exit::Stopped, format!("cannot start observers: {error}"))
    };
    let mut command = local::program().map_err(cannot)?;
    command
        .envs(
            stage
                .cluster
                .broker
                .iter()
                .map(|(name, value)| (name, value)),
        )
        .args([OBSERVERS, "--name", name, "--count", &count.to_string()])
        .args(["--cluster", &stage.cluster.name, "--prefix", &stage.prefix])
        .arg("--key-file")
        .arg(stage.key_file())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().map_err(cannot)
}

/// Is there as so many observers until stdin ends.
pub(crate) async fn observers(
    count: u32,
    name: &str,
    connection: Connection,
) -> Result<(), Failure> {
    let Connection {
        mqtt,
        prefix,
        cluster,
        keys,
        timeout: _,
    } = connection;
    let ended = watch_stdin();
    let mut pace = tokio::time::interval(Duration::from_secs(1) / RATE);
    let mut there = Vec::new();
    for number in 1..=count {
        pace.tick().await;
        let mqtt = mqtt.clone().keep_alive(KEEP_ALIVE);
        let (name, keys) = (observer(name, number), keys.clone());
        there.push(Observer::start(mqtt, &prefix, &cluster, &name, keys, [])?);
    }
    // Its sender ends with the thread that reads.
    let _ = ended.await;
    drop(there);
    Ok(())
}
