//! `mqraft demo`: a cluster on this machine, from nothing, and the death of its leader.
//!
//! ```text
//!          ┌ broker (embedded) ◄── MQTT ──► `mqraft node` gw-1 ┐
//!  Stage ──┤          ▲                     `mqraft node` gw-2 ├─ stdout: a line per change
//!    ▲     └ writer ──┘                     `mqraft node` gw-3 ┘         │
//!    │         │ first commit                                            │ exclusive leader
//!    └─────────┴──────────────────────── News ◄──────────────────────────┘
//! ```
//!
//! The nodes are processes like any other node, with data directories of their own, and die by
//! SIGKILL. Both figures count from just before the kill. *First commit*: a write that was begun
//! right after the kill is acknowledged; its client had to find the successor by itself.
//! *Exclusive leader*: another node's `is_leader` is true; it waits out the dead leader's lease.

mod view;

use std::ffi::OsString;
use std::sync::Arc;
use std::time::{Duration, Instant};

use raft_over_mqtt::broker::EmbeddedBroker;
use raft_over_mqtt::{Mqtt, Remote};
use tempfile::TempDir;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};

use crate::cli::{DemoArgs, Format};
use crate::exit::{Exit, Failure};
use crate::interrupt::interrupted;
use crate::local::{Cluster, News, Node};
use view::View;

/// How long a first leader, a takeover or a return may take before the demo has failed.
const DEADLINE: Duration = Duration::from_secs(30);

/// How long a killed node stays away, so that one can see the others do without it.
const AWAY: Duration = Duration::from_secs(2);

/// How often the demo writes, so that there is something to see.
const WRITE_INTERVAL: Duration = Duration::from_millis(200);

/// How often the table is drawn.
const FRAME: Duration = Duration::from_millis(100);

/// The fewest nodes of which one can die.
const MIN_NODES: u8 = 3;

pub(crate) async fn run(args: DemoArgs, format: Format) -> Result<(), Failure> {
    if args.kill_leader_after.is_some() && args.nodes < MIN_NODES {
        return Err(Failure::usage(format!(
            "of {} nodes none may die, since a majority must remain: give --nodes 3 or more",
            args.nodes
        )));
    }
    let interrupted = interrupted()?;
    let mut stage = Stage::set(&args, format).await?;
    let result = tokio::select! {
        played = stage.play(&args) => played,
        () = interrupted => Ok(()),
    };
    stage.strike().await;
    result
}

fn failure(what: &str, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Disk, format!("cannot {what}: {error}"))
}

fn cluster(broker: &EmbeddedBroker, args: &DemoArgs) -> Cluster {
    let mut flags: Vec<OsString> = vec!["--insecure".into()];
    let timing = [
        ("--election-timeout", args.election_timeout),
        ("--heartbeat-interval", args.heartbeat_interval),
    ];
    for (flag, span) in timing {
        if let Some(span) = span {
            flags.extend([flag.into(), span.to_string().into()]);
        }
    }
    Cluster {
        broker: vec![("MQRAFT_BROKER", broker.url().into())],
        name: "demo".to_owned(),
        voters: (1..=args.nodes)
            .map(|number| format!("gw-{number}"))
            .collect(),
        flags,
        reports: true,
    }
}

/// Everything that the demo consists of.
struct Stage {
    view: View,
    nodes: Vec<Node>,
    writer: Arc<Mutex<Remote>>,
    takeover: Option<Takeover>,
    takeovers: u32,
    news: mpsc::UnboundedReceiver<News>,
    reporter: mpsc::UnboundedSender<News>,
    broker: EmbeddedBroker,
    /// Removed with everything in it when the stage goes.
    _dir: TempDir,
}

/// A leader died; what has come of it so far.
struct Takeover {
    number: u32,
    victim: usize,
    since: Instant,
    first_commit: Option<Duration>,
    exclusive_leader: Option<Duration>,
}

impl Takeover {
    fn figures(&self) -> Option<(Duration, Duration)> {
        self.first_commit.zip(self.exclusive_leader)
    }
}

impl Stage {
    /// Starts the broker, the nodes and the writer.
    async fn set(args: &DemoArgs, format: Format) -> Result<Stage, Failure> {
        let dir = tempfile::Builder::new().prefix("mqraft-demo-").tempdir();
        let dir = dir.map_err(|error| failure("make a directory for the nodes", &error))?;
        let broker = EmbeddedBroker::start()
            .await
            .map_err(|error| Failure::new(Exit::Broker, error.to_string()))?;
        let cluster = Arc::new(cluster(&broker, args));
        let mut view = View::new(format, &broker.url(), &cluster.name);
        let (reporter, news) = mpsc::unbounded_channel();
        let mut nodes = Vec::new();
        for at in 0..usize::from(args.nodes) {
            let mut node = Node::new(Arc::clone(&cluster), at, dir.path());
            node.start(&reporter)?;
            nodes.push(node);
        }
        view.draw(&nodes);
        let mqtt = Mqtt::new(&broker.url())?;
        let remote = Remote::connect(mqtt, "raft", &cluster.name, None, DEADLINE).await?;
        let writer = Arc::new(Mutex::new(remote));
        tokio::spawn(write_all_the_time(Arc::clone(&writer)));
        Ok(Stage {
            view,
            nodes,
            writer,
            takeover: None,
            takeovers: 0,
            news,
            reporter,
            broker,
            _dir: dir,
        })
    }

    async fn play(&mut self, args: &DemoArgs) -> Result<(), Failure> {
        self.until("no leader was elected", |stage| stage.leader().is_some())
            .await?;
        self.view.snapshot(&self.nodes);
        if let Some(after) = args.kill_leader_after {
            self.watch_until(Instant::now() + after.0).await?;
            self.kill_leader().await?;
            if args.exit {
                return Ok(());
            }
        }
        let leader = self.leader().and_then(|leader| self.nodes[leader].pid());
        self.view.invite(leader);
        loop {
            self.watch_until(Instant::now() + DEADLINE).await?;
        }
    }

    /// The leader dies, another node takes over, and the dead one comes back.
    async fn kill_leader(&mut self) -> Result<(), Failure> {
        // With the writer in our hands no write is under way that the old leader could answer.
        let writer = Arc::clone(&self.writer).lock_owned().await;
        self.until("nobody leads", |stage| stage.leader().is_some())
            .await?;
        let Some(victim) = self.leader() else {
            return Ok(());
        };
        let since = Instant::now();
        self.nodes[victim].kill();
        self.begin_takeover(victim, since, async { writer });
        self.until("nobody took over", |stage| stage.figures().is_some())
            .await?;
        self.until("the killed node did not come back", |stage| {
            stage.nodes[victim].follows()
        })
        .await?;
        self.view.snapshot(&self.nodes);
        Ok(())
    }

    fn begin_takeover(
        &mut self,
        victim: usize,
        since: Instant,
        writer: impl Future<Output = OwnedMutexGuard<Remote>> + Send + 'static,
    ) {
        self.takeovers += 1;
        let number = self.takeovers;
        self.takeover = Some(Takeover {
            number,
            victim,
            since,
            first_commit: None,
            exclusive_leader: None,
        });
        let reporter = self.reporter.clone();
        tokio::spawn(async move {
            if writer
                .await
                .put("demo/takeover", number.to_string())
                .await
                .is_ok()
            {
                let at = Instant::now();
                let _ = reporter.send(News::Committed { number, at });
            }
        });
    }

    fn figures(&self) -> Option<(Duration, Duration)> {
        self.takeover.as_ref().and_then(Takeover::figures)
    }

    /// The node that says it leads the newest term.
    fn leader(&self) -> Option<usize> {
        let leading = (0..self.nodes.len()).filter(|at| self.nodes[*at].leads());
        leading.max_by_key(|at| self.nodes[*at].term())
    }

    // Time passes.

    /// Lets things happen until `condition` holds.
    async fn until(
        &mut self,
        otherwise: &str,
        condition: impl Fn(&Stage) -> bool,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + DEADLINE;
        while !condition(self) {
            if Instant::now() >= deadline {
                let message = format!("{otherwise} within {DEADLINE:?}");
                return Err(Failure::new(Exit::NoAnswer, message));
            }
            self.turn(deadline).await?;
        }
        Ok(())
    }

    async fn watch_until(&mut self, end: Instant) -> Result<(), Failure> {
        while Instant::now() < end {
            self.turn(end).await?;
        }
        Ok(())
    }

    /// Takes the next news, or what there is by the next frame.
    async fn turn(&mut self, end: Instant) -> Result<(), Failure> {
        let frame = end.min(Instant::now() + FRAME);
        let news = tokio::time::timeout_at(frame.into(), self.news.recv()).await;
        if let Ok(Some(news)) = news {
            self.take(news).await?;
        }
        for node in &mut self.nodes {
            if node.start_if_due(&self.reporter)? {
                self.view.say(&format!("{} starts again", node.name));
            }
        }
        self.view.draw(&self.nodes);
        Ok(())
    }

    async fn take(&mut self, news: News) -> Result<(), Failure> {
        match news {
            News::Status {
                node,
                launch,
                status,
                at,
            } => {
                if let Some(change) = self.nodes[node].take_status(launch, status) {
                    self.view.say(&change);
                }
                self.look_for_exclusive_leader(node, at);
            }
            News::Ended { node, launch, at } => self.on_ended(node, launch, at).await?,
            News::Committed { number, at } => {
                if let Some(takeover) = self.takeover.as_mut().filter(|t| t.number == number) {
                    takeover.first_commit = Some(at - takeover.since);
                    self.show_figures();
                }
            }
        }
        Ok(())
    }

    fn look_for_exclusive_leader(&mut self, node: usize, at: Instant) {
        let exclusive = self.nodes[node].is_leader();
        let takeover = self
            .takeover
            .as_mut()
            .filter(|t| exclusive && t.victim != node && t.exclusive_leader.is_none());
        if let Some(takeover) = takeover {
            takeover.exclusive_leader = Some(at - takeover.since);
            self.show_figures();
        }
    }

    fn show_figures(&mut self) {
        if let Some((first_commit, exclusive_leader)) = self.figures() {
            self.view.figures(first_commit, exclusive_leader);
        }
    }

    async fn on_ended(&mut self, node: usize, launch: u32, at: Instant) -> Result<(), Failure> {
        let led = self.leader() == Some(node);
        let Some(how) = self.nodes[node].take_end(launch, at + AWAY).await? else {
            return Ok(());
        };
        self.view.say(&how);
        let is_known = self
            .takeover
            .as_ref()
            .is_some_and(|t| t.victim == node && t.figures().is_none());
        if led && !is_known {
            // Killed by someone else; we learn of it when its output ends.
            let writer = Arc::clone(&self.writer).lock_owned();
            self.begin_takeover(node, at, writer);
        }
        Ok(())
    }

    /// Ends everything, and waits until it has ended.
    async fn strike(mut self) {
        for node in &mut self.nodes {
            node.kill();
        }
        for node in &mut self.nodes {
            node.ended().await;
        }
        self.broker.shutdown().await;
    }
}

async fn write_all_the_time(writer: Arc<Mutex<Remote>>) {
    for number in 1_u64.. {
        // A write that fails is tried again as the next one.
        let _ = writer
            .lock()
            .await
            .put("demo/counter", number.to_string())
            .await;
        tokio::time::sleep(WRITE_INTERVAL).await;
    }
}
