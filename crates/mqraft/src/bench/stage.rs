//! The throw-away cluster that is measured, and all that has to be put away afterwards.
//!
//! Its prefix and its name are drawn for the run, and so is its key: it meets no other cluster on the
//! broker. Its voters are processes of this program, but for one that a measure may want in here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use raft_over_mqtt::broker::EmbeddedBroker;
use raft_over_mqtt::{Client, ClusterKey, Mqtt, Probe, RaftNode, Remote};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::floor::Floor;
use super::report::{Report, What};
use super::samples::Samples;
use super::thread::Thread;
use super::view::View;
use crate::cli::Format;
use crate::cli::bench::BenchArgs;
use crate::duration::Span;
use crate::exit::{Exit, Failure};
use crate::keygen;
use crate::local::{Cluster, News, Node};
use crate::settings;

/// How long a cluster may take to be formed, or to have a leader again.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);

/// How long an answer may take, unless said otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a node in here may take to end.
const FAREWELL: Duration = Duration::from_secs(3);

/// How often the picture is looked at.
const FRAME: Duration = Duration::from_millis(100);

/// How long the broker may take to forget what it retained.
const CLEARING: Duration = Duration::from_secs(20);

/// What is measured, on what, and what came of it.
pub(super) struct Stage {
    pub(super) view: View,
    pub(super) report: Report,
    pub(super) mqtt: Mqtt,
    pub(super) prefix: String,
    pub(super) cluster: Arc<Cluster>,
    pub(super) key: ClusterKey,
    pub(super) timeout: Duration,
    pub(super) nodes: Vec<Node>,
    pub(super) news: mpsc::UnboundedReceiver<News>,
    pub(super) reporter: mpsc::UnboundedSender<News>,
    election_timeout: Option<Span>,
    heartbeat_interval: Option<Span>,
    inside: Vec<RaftNode>,
    /// Whether something may be left at the broker.
    used: bool,
    own_broker: Option<Thread>,
    /// Removed with everything in it when the stage goes.
    dir: TempDir,
}

impl Stage {
    /// Makes directory, key and names, and a broker if none is given; nothing is asked of it yet.
    pub(super) async fn set(
        bench: &'static str,
        args: BenchArgs,
        config: Option<PathBuf>,
        reports: bool,
        format: Format,
    ) -> Result<Stage, Failure> {
        let BenchArgs {
            broker,
            voters,
            dir,
            prefix,
            election_timeout,
            heartbeat_interval,
            timeout,
        } = args;
        let mut layer = settings::read(broker.layer(), config)?;
        let mut variables = settings::broker_variables(&layer);
        let mut own_broker = None;
        if variables.is_empty() {
            let (thread, url) = start_broker().await?;
            own_broker = Some(thread);
            layer.broker = vec![url].into();
            variables = settings::broker_variables(&layer);
        }
        let timeout = timeout.or(layer.timeout).map_or(TIMEOUT, |span| span.0);
        let mqtt = settings::mqtt(layer)?;
        let dir = directory(dir.as_deref())?;
        let key = raft_over_mqtt::generate_cluster_key()?;
        let key_file = key_file(&dir);
        keygen::write(&key_file, &key.to_text())?;
        let drawn = drawn()?;
        let own_prefix = || format!("mqraft-bench-{drawn}");
        let prefix = prefix.unwrap_or_else(own_prefix);
        let mut flags: Vec<OsString> = vec![
            "--key-file".into(),
            key_file.into(),
            "--prefix".into(),
            prefix.clone().into(),
            // The lead changes when it is measured, and at no other time.
            "--hand-over-after".into(),
            "never".into(),
        ];
        let timing = [
            ("--election-timeout", election_timeout),
            ("--heartbeat-interval", heartbeat_interval),
        ];
        for (flag, span) in timing {
            if let Some(span) = span {
                flags.extend([flag.into(), span.to_string().into()]);
            }
        }
        let cluster = Arc::new(Cluster {
            broker: variables,
            name: format!("bench-{drawn}"),
            voters: (1..=voters).map(|number| format!("gw-{number}")).collect(),
            flags,
            reports,
        });
        let (reporter, news) = mpsc::unbounded_channel();
        let mut report = Report::default();
        let whose = match own_broker {
            Some(_) => "embedded",
            None => "given",
        };
        let setting = [
            ("bench", json!(bench)),
            ("broker", json!(mqtt.url())),
            ("broker_is", json!(whose)),
            ("voters", json!(voters)),
            ("version", json!(env!("CARGO_PKG_VERSION"))),
        ];
        let setting = setting.map(|(name, value)| (name.to_owned(), value));
        report.setting.extend(setting);
        let mut view = View::new(format);
        let url = mqtt.url();
        let plural = if voters == 1 { "" } else { "s" };
        view.head(format!(
            "mqraft bench {bench}: {voters} voter{plural}, {whose} broker at {url}"
        ));
        Ok(Stage {
            view,
            report,
            mqtt,
            prefix,
            cluster,
            key,
            timeout,
            nodes: Vec::new(),
            news,
            reporter,
            election_timeout,
            heartbeat_interval,
            inside: Vec::new(),
            used: false,
            own_broker,
            dir,
        })
    }

    pub(super) fn key_file(&self) -> PathBuf {
        key_file(&self.dir)
    }

    /// What stands before all that the cluster publishes.
    pub(super) fn root(&self) -> String {
        format!("{}/{}", self.prefix, self.cluster.name)
    }

    pub(super) fn voters(&self) -> usize {
        self.cluster.voters.len()
    }

    /// Tells what is done now.
    pub(super) fn step(&mut self, step: impl Into<String>) {
        self.view.step(&self.report, step.into());
    }

    /// Takes a time, and shows it.
    pub(super) fn timed(&mut self, what: What, time: Duration) {
        self.report.row(what).add(time);
        self.view.draw(&self.report);
    }

    /// Takes a rate, and how long each took.
    pub(super) fn rate(&mut self, what: What, per_second: f64, samples: Samples) {
        self.report.row(what).append(samples);
        self.report.rate(what, per_second);
        self.view.draw(&self.report);
    }

    /// Goes on drawing while something happens elsewhere.
    pub(super) async fn while_drawing<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(FRAME) => self.view.draw(&self.report),
            }
        }
    }

    /// A client that asks one thing at a time.
    pub(super) async fn remote(&self) -> Result<Remote, Failure> {
        let (mqtt, prefix, cluster, key) = self.client_settings();
        Ok(Remote::connect(mqtt, &prefix, &cluster, key, self.timeout).await?)
    }

    pub(super) async fn client(&self) -> Result<Client, Failure> {
        let (mqtt, prefix, cluster, key) = self.client_settings();
        Ok(Client::connect(mqtt, &prefix, &cluster, key, self.timeout).await?)
    }

    /// Where the cluster is: broker, prefix, name and key.
    pub(super) fn client_settings(&self) -> (Mqtt, String, String, ClusterKey) {
        let (mqtt, prefix) = (self.mqtt.clone(), self.prefix.clone());
        (mqtt, prefix, self.cluster.name.clone(), self.key.clone())
    }

    /// A session of its own that hears these topics below the cluster's.
    pub(super) async fn probe(&mut self, filters: &[&str]) -> Result<Probe, Failure> {
        self.used = true;
        let root = self.root();
        let filters: Vec<_> = filters
            .iter()
            .map(|last| format!("{root}/{last}"))
            .collect();
        Ok(Probe::connect(self.mqtt.clone(), &filters, self.timeout).await?)
    }

    pub(super) async fn floor(&mut self) -> Result<Floor, Failure> {
        self.used = true;
        let (root, voters) = (self.root(), self.voters());
        Floor::start(&self.mqtt, &root, self.dir.path(), voters, self.timeout).await
    }

    /// Starts the voters from `first` on, each a process.
    pub(super) fn start_processes(&mut self, first: usize) -> Result<(), Failure> {
        self.used = true;
        for at in first..self.voters() {
            let mut node = Node::new(Arc::clone(&self.cluster), at, self.dir.path());
            node.start(&self.reporter)?;
            self.nodes.push(node);
        }
        Ok(())
    }

    /// Starts all voters, the first of them in here, and returns it when it leads.
    pub(super) async fn lead_inside(&mut self) -> Result<RaftNode, Failure> {
        self.step("the cluster is formed");
        self.start_processes(1)?;
        let id = self.cluster.voters[0].clone();
        let builder = self.node(&id).voters(self.cluster.voters.clone());
        let node = builder.metric(1.0).start().await?;
        self.inside.push(node.clone());
        let ours = lead(&node, &id);
        match tokio::time::timeout(DEADLINE, ours).await {
            Ok(leads) => leads?,
            Err(_) => return Err(self.no_cluster("no leader was elected")),
        }
        let voters = self.voters();
        self.until("not all voters came", || {
            node.presence_manager().active_nodes_count() >= voters
        })
        .await?;
        Ok(node)
    }

    /// A node of the cluster, in here.
    pub(super) fn node(&self, id: &str) -> raft_over_mqtt::NodeBuilder {
        let mut builder = RaftNode::initialize(self.mqtt.clone(), id)
            .prefix(&self.prefix)
            .cluster(&self.cluster.name)
            .data_dir(self.dir.path().join(id))
            .cluster_key(self.key.clone())
            .request_timeout(self.timeout)
            .hand_over(None);
        if let Some(Span(timeout)) = self.election_timeout {
            builder = builder.election_timeout(timeout);
        }
        if let Some(Span(interval)) = self.heartbeat_interval {
            builder = builder.heartbeat_interval(interval);
        }
        builder
    }

    /// Waits until something holds.
    pub(super) async fn until(
        &mut self,
        otherwise: &str,
        mut condition: impl FnMut() -> bool,
    ) -> Result<(), Failure> {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while !condition() {
            if tokio::time::Instant::now() >= deadline {
                return Err(self.no_cluster(otherwise));
            }
            self.view.draw(&self.report);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// What did not happen, and what the nodes have to say about it.
    pub(super) fn no_cluster(&self, what: &str) -> Failure {
        let mut message = format!("{what} within {DEADLINE:?}");
        for node in &self.nodes {
            message += &format!("; {}: {}", node.name, node.last_words());
        }
        Failure::new(Exit::NoAnswer, message)
    }

    /// Ends everything, waits until it has ended, and clears what the broker retains of it. Tells before
    /// what was found out, and whether that is all, unless something went wrong.
    pub(super) async fn strike(mut self, complete: Option<bool>) -> Result<(), Failure> {
        if let Some(complete) = complete {
            let setting = &mut self.report.setting;
            setting.insert("complete".to_owned(), json!(complete));
            self.view.end(&self.report, complete);
        }
        for node in &self.inside {
            // Before the others, which may take the lead; without them it would wait for a successor.
            let _ = tokio::time::timeout(FAREWELL, node.shutdown()).await;
        }
        self.inside.clear();
        for node in &mut self.nodes {
            node.kill();
        }
        for node in &mut self.nodes {
            node.ended().await;
        }
        if self.used && self.own_broker.is_none() {
            let root = self.root();
            let cleared = Probe::clear_retained(self.mqtt.clone(), &root, CLEARING).await;
            cleared.map_err(|error| {
                let message =
                    format!("what is retained below {root} could not be cleared: {error}");
                Failure::new(Failure::from(&error).exit, message)
            })?;
        }
        Ok(())
    }
}

/// A word that no other run has drawn, for names.
fn drawn() -> Result<String, Failure> {
    let text = raft_over_mqtt::generate_cluster_key()?.to_text();
    let letters = text.chars().filter(char::is_ascii_alphanumeric);
    Ok(letters.take(12).collect::<String>().to_lowercase())
}

/// Waits until `node` leads; if another was first, it hands over.
async fn lead(node: &RaftNode, id: &str) -> Result<(), Failure> {
    let mut status = node.watch_status();
    loop {
        let leader = status.wait_for(|status| status.leader.is_some()).await;
        let leader = leader
            .map_err(|_| raft_over_mqtt::Error::Closed)?
            .leader
            .clone();
        if leader.as_deref() == Some(id) {
            return Ok(());
        }
        // Refused while the cluster settles: asked again.
        let _ = node.transfer(Some(id)).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A broker in a thread of its own, so that it takes no time of what is measured.
async fn start_broker() -> Result<(Thread, String), Failure> {
    let (tell, mut told) = mpsc::unbounded_channel();
    let thread = Thread::start(async move |ready| {
        let broker = EmbeddedBroker::start().await;
        let broker = broker.map_err(|error| Failure::new(Exit::Broker, error.to_string()))?;
        let _ = tell.send(broker.url());
        ready.say();
        std::future::pending::<()>().await;
        drop(broker);
        Ok(())
    })
    .await?;
    let url = told.recv().await.unwrap_or_default();
    Ok((thread, url))
}

fn directory(below: Option<&Path>) -> Result<TempDir, Failure> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("mqraft-bench-");
    let dir = match below {
        Some(dir) => builder.tempdir_in(dir),
        None => builder.tempdir(),
    };
    dir.map_err(|error| in_dir(&error))
}

fn key_file(dir: &TempDir) -> PathBuf {
    dir.path().join("key")
}

fn in_dir(error: &std::io::Error) -> Failure {
    Failure::new(
        Exit::Disk,
        format!("cannot make a directory for the nodes: {error}"),
    )
}
