//! `mqraft node`: a node as a process.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use raft_over_mqtt::{Error, LegacyStatus, NodeBuilder, RaftNode, Role, Status};
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::cli::Format;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::settings::{Connection, NodeSettings, read_key_file};

/// A broker that does not take the farewell must not hold up the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long a leader waits for whoever acts on its lead to let go of it; what it takes beside to hand
/// over, or to give it up, are two election timeouts.
const RELINQUISH: Duration = Duration::from_secs(10);

/// An election timeout that was not given.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs a node until it is told to end or must stop. With JSON output, a line per change of its
/// status goes to stdout.
pub(crate) async fn run(
    settings: NodeSettings,
    witness: bool,
    until_stdin_closes: bool,
    format: Format,
) -> Result<(), Failure> {
    let mut ending = Ending::new(until_stdin_closes)?;
    let data_dir = settings.data_dir.display().to_string();
    let reload = settings.key_file.clone().map(Reload::new).transpose()?;
    let hand_over = RELINQUISH + 2 * settings.election_timeout.unwrap_or(ELECTION_TIMEOUT);
    let mut builder = builder(settings);
    if witness {
        builder = builder.witness();
    }
    let started = builder.start().await;
    let node = started.map_err(|error| in_data_dir(&data_dir, &error))?;
    if format == Format::Json {
        tokio::spawn(report(node.clone()));
    }
    if let Some(reload) = reload {
        tokio::spawn(reload.run(node.clone()));
    }
    tokio::select! {
        stopped = node.stopped() => Ok(stopped?),
        why = ending.wait() => {
            tracing::info!("ending: {why}");
            end(&node, hand_over).await
        }
    }
}

/// The store names its files by themselves; whoever has several nodes wants to know whose.
fn in_data_dir(data_dir: &str, error: &Error) -> Failure {
    let mut failure = Failure::from(error);
    if failure.exit == Exit::Disk && !failure.message.contains(data_dir) {
        failure.message = format!("data directory {data_dir}: {}", failure.message);
    }
    failure
}

fn builder(settings: NodeSettings) -> NodeBuilder {
    let NodeSettings {
        connection,
        key_file: _,
        id,
        voters,
        expect,
        data_dir,
        metric,
        tags,
        election_timeout,
        heartbeat_interval,
        hand_over,
        autopilot,
        frame_version,
        legacy_prefix,
        requests,
        mirror,
        homeassistant_prefix,
    } = settings;
    let Connection {
        mqtt,
        prefix,
        cluster,
        keys,
        timeout,
    } = connection;
    let mut builder = RaftNode::initialize(mqtt, id)
        .prefix(prefix)
        .cluster(cluster)
        .voters(voters)
        .data_dir(data_dir)
        .metric(metric)
        .keys(keys)
        .request_timeout(timeout);
    for (key, value) in tags {
        builder = builder.tag(key, value);
    }
    if let Some(expect) = expect {
        builder = builder.expect_voters(expect);
    }
    if let Some(timeout) = election_timeout {
        builder = builder.election_timeout(timeout);
    }
    builder = builder.hand_over(hand_over);
    if let Some(autopilot) = autopilot {
        builder = builder.autopilot(autopilot);
    }
    if let Some(interval) = heartbeat_interval {
        builder = builder.heartbeat_interval(interval);
    }
    if let Some(newest) = frame_version {
        builder = builder.frame_version(newest);
    }
    if let Some(prefix) = legacy_prefix {
        builder = builder.legacy(prefix);
    }
    if let Some(access) = requests {
        builder = builder.requests(access);
    }
    builder = builder.mirror(mirror);
    if let Some(prefix) = homeassistant_prefix {
        builder = builder.home_assistant(prefix);
    }
    builder
}

/// Ends the node; before, a leader has until then to hand the lead over.
async fn end(node: &RaftNode, hand_over: Duration) -> Result<(), Failure> {
    let mut status = node.watch_status();
    let handed_over = status.wait_for(|status| status.role != Some(Role::Leader));
    let patience = async {
        let _ = tokio::time::timeout(hand_over, handed_over).await;
        tokio::time::sleep(FAREWELL).await;
    };
    tokio::select! {
        ended = node.shutdown() => Ok(ended?),
        // The others hear the will instead, and the disk is safe at any moment.
        () = patience => Ok(()),
    }
}

/// What ends a node from outside.
struct Ending {
    interrupt: Signal,
    terminate: Signal,
    stdin_closed: Option<oneshot::Receiver<()>>,
}

impl Ending {
    fn new(until_stdin_closes: bool) -> Result<Ending, Failure> {
        Ok(Ending {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            stdin_closed: until_stdin_closes.then(watch_stdin),
        })
    }

    async fn wait(&mut self) -> &'static str {
        let stdin_closed = async {
            match &mut self.stdin_closed {
                Some(closed) => drop(closed.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => "interrupted",
            _ = self.terminate.recv() => "asked to terminate",
            () = stdin_closed => "stdin was closed",
        }
    }
}

/// Reads the key file again when asked to. Without a key file SIGHUP ends the process, as it does
/// with any that knows nothing of it.
struct Reload {
    hangup: Signal,
    key_file: PathBuf,
}

impl Reload {
    fn new(key_file: PathBuf) -> Result<Reload, Failure> {
        let hangup = listen(SignalKind::hangup())?;
        Ok(Reload { hangup, key_file })
    }

    async fn run(mut self, node: RaftNode) {
        while self.hangup.recv().await.is_some() {
            // What cannot be used changes nothing: a node without its keys is of no use either.
            let changed = match read_key_file(&self.key_file) {
                Ok(file) => node.set_keys(file.ring()).await.map_err(Failure::from),
                Err(failure) => Err(failure),
            };
            if let Err(failure) = changed {
                tracing::error!("the keys stay as they were: {}", failure.message);
            }
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind)
        .map_err(|error| Failure::new(Exit::Stopped, format!("cannot listen to signals: {error}")))
}

/// Told when stdin ends. A thread of its own, since tokio would wait at its end for the read to return.
pub(crate) fn watch_stdin() -> oneshot::Receiver<()> {
    let (closed, is_closed) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = closed.send(());
    });
    is_closed
}

async fn report(node: RaftNode) {
    let mut watch = node.watch_status();
    loop {
        let line = status_json(&watch.borrow_and_update()).to_string();
        output::line(&line);
        if watch.changed().await.is_err() {
            return;
        }
    }
}

fn status_json(status: &Status) -> Value {
    json!({
        "connected": status.connected,
        "role": status.role.map(|role| if status.witness { "witness" } else { role_name(role) }),
        "term": status.term,
        "leader": status.leader,
        "metric": status.metric,
        "leader_metric": status.leader_metric,
        "is_leader": status.is_leader,
        "last_index": status.last_index,
        "commit_index": status.commit_index,
        "applied_index": status.applied_index,
        "applied_digest": status.applied_digest,
        "voters": status.voters,
        "missing_voters": status.missing_voters,
        "trouble": status.trouble,
        "legacy": status.legacy.as_ref().map(legacy_json),
    })
}

fn legacy_json(legacy: &LegacyStatus) -> Value {
    let leader = legacy.leader.as_ref();
    let heard_at = leader.and_then(|led| led.heard_at.duration_since(SystemTime::UNIX_EPOCH).ok());
    json!({
        "nodes": legacy.nodes,
        "follows": legacy.follows,
        "leader": leader.map(|led| &led.node),
        "leader_heard_at": heard_at.map(|at| at.as_secs()),
    })
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Learner => "learner",
        Role::Follower => "follower",
        Role::PreCandidate => "pre-candidate",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
    }
}
