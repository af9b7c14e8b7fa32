//! How long it takes until another node leads.
//!
//! All voters are processes. A round of kills:
//!
//! ```text
//! kill -9 of the leader ──► its will arrives here             floor: what the broker takes
//!   │                  ├──► a put that was begun right then   first commit
//!   │                  └──► is_leader() on another node       exclusive: after the dead one's lease
//!   ▼ the dead node starts again, and all follow: the next round
//! ```
//!
//! A hand-over counts from its request; the gap lies between the two claims.

use std::time::{Duration, Instant};

use raft_over_mqtt::{Probe, Remote};

use super::report::{What, floor, ours};
use super::stage::{DEADLINE, Stage};
use crate::exit::Failure;
use crate::local::News;

const ECHO: What = floor("round_trip", "publish there and back");
const WILL: What = floor("will", "kill -9 until the will arrives");
const COMMIT: What = ours("first_commit", "kill -9 until the first commit");
const EXCLUSIVE: What = ours("exclusive", "kill -9 until exclusive");
const TRANSFER: What = ours("transfer", "hand-over until exclusive");
const GAP: What = ours("transfer_gap", "of it nobody was exclusive");

/// How often the round trip is taken in each round.
const ECHOES: usize = 20;

/// How often the picture is drawn.
const FRAME: Duration = Duration::from_millis(100);

pub(super) async fn measure(stage: &mut Stage, kills: u32, transfers: u32) -> Result<(), Failure> {
    let mut floor = stage.floor().await?;
    let mut statuses = stage.probe(&["nodes/+/status"]).await?;
    stage.step("the cluster is formed");
    stage.start_processes(0)?;
    settled(stage).await?;
    let mut writer = stage.remote().await?;
    for round in 1..=kills {
        stage.step(format!("kill {round} of {kills}"));
        for _ in 0..ECHOES {
            let time = floor.echo(&b"echo"[..].into()).await?;
            stage.timed(ECHO, time);
        }
        let leader = settled(stage).await?;
        kill(stage, leader, &mut writer, &mut statuses).await?;
    }
    for round in 1..=transfers {
        stage.step(format!("hand-over {round} of {transfers}"));
        let leader = settled(stage).await?;
        hand_over(stage, leader, &mut writer).await?;
    }
    Ok(())
}

/// The leader dies, another node takes over, and the dead one starts again.
async fn kill(
    stage: &mut Stage,
    victim: usize,
    writer: &mut Remote,
    statuses: &mut Probe,
) -> Result<(), Failure> {
    // Now the writer knows who leads, as one that was at work would.
    writer.put("before", "kill").await?;
    while let Ok(earlier) = tokio::time::timeout(Duration::ZERO, statuses.next()).await {
        earlier?;
    }
    let status = format!("/nodes/{}/status", stage.nodes[victim].name);
    let since = Instant::now();
    stage.nodes[victim].kill();
    let first_commit = async {
        writer.put("after", "kill").await?;
        Ok(since.elapsed())
    };
    let will = async {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            let message = tokio::time::timeout_at(deadline, statuses.next()).await;
            let message = message.map_err(|_| raft_over_mqtt::Error::TimedOut(DEADLINE))??;
            if message.topic.ends_with(&status) && says_offline(&message.payload) {
                return Ok(since.elapsed());
            }
        }
    };
    let claims = claimed(stage, victim);
    let (first_commit, will, claims) = tokio::try_join!(first_commit, will, claims)?;
    stage.timed(WILL, will);
    stage.timed(COMMIT, first_commit);
    stage.timed(EXCLUSIVE, claims.begun - since);
    stage.nodes[victim].start(&stage.reporter)
}

/// The leader is asked to let another one lead.
async fn hand_over(stage: &mut Stage, leader: usize, writer: &mut Remote) -> Result<(), Failure> {
    let to = (leader + 1) % stage.nodes.len();
    let to = stage.nodes[to].name.clone();
    let since = Instant::now();
    let transferred = async { Ok(writer.transfer(Some(&to)).await?) };
    let (_, claims) = tokio::try_join!(transferred, claimed(stage, leader))?;
    stage.timed(TRANSFER, claims.begun - since);
    if let Some(ended) = claims.ended {
        stage.timed(GAP, claims.begun.saturating_duration_since(ended));
    }
    Ok(())
}

/// When the old leader's claim ended, if it said so, and when another one's began.
struct Claims {
    ended: Option<Instant>,
    begun: Instant,
}

/// Waits until another node than `old` is the only leader for certain.
async fn claimed(stage: &mut Stage, old: usize) -> Result<Claims, Failure> {
    let deadline = Instant::now() + DEADLINE;
    let mut ended = None;
    while Instant::now() < deadline {
        let Some((node, at)) = turn(stage).await? else {
            continue;
        };
        match stage.nodes[node].is_leader() {
            true if node != old => return Ok(Claims { ended, begun: at }),
            false if node == old => ended = ended.or(Some(at)),
            _ => {}
        }
    }
    Err(stage.no_cluster("nobody took over"))
}

/// Waits until one node is the only leader for certain and all others follow; which.
async fn settled(stage: &mut Stage) -> Result<usize, Failure> {
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        let leader = stage.nodes.iter().position(|node| node.is_leader());
        let term = |node: usize| stage.nodes[node].term();
        let agree = |leader: usize| {
            let mut nodes = stage.nodes.iter();
            nodes.all(|node| node.follows() && node.term() == term(leader))
        };
        if let Some(leader) = leader.filter(|leader| agree(*leader)) {
            return Ok(leader);
        }
        turn(stage).await?;
    }
    Err(stage.no_cluster("not all voters follow a leader"))
}

/// Takes the next news; of which node, and when it came. Draws in between.
async fn turn(stage: &mut Stage) -> Result<Option<(usize, Instant)>, Failure> {
    let news = tokio::time::timeout(FRAME, stage.news.recv()).await;
    stage.view.draw(&stage.report);
    match news {
        Ok(Some(News::Status {
            node,
            launch,
            status,
            at,
        })) => {
            stage.nodes[node].take_status(launch, status);
            Ok(Some((node, at)))
        }
        Ok(Some(News::Ended { node, launch, at })) => {
            // It is started again when the round is over.
            stage.nodes[node].take_end(launch, at + DEADLINE).await?;
            Ok(None)
        }
        Ok(Some(News::Committed { .. }) | None) | Err(_) => Ok(None),
    }
}

/// Whether it is a status of a node that is gone.
pub(super) fn says_offline(status: &[u8]) -> bool {
    let word = b"\"offline\"";
    status.windows(word.len()).any(|part| part == word)
}
