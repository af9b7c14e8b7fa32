//! A cluster of processes on this machine, for `demo` and `bench`: each node is a process of this very
//! program. What it last said of itself is kept here; it dies by SIGKILL, or when we do.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;

use crate::exit::{Exit, Failure};

/// What all nodes of the cluster have in common.
pub(crate) struct Cluster {
    /// Where the broker is and how to be let in, as variables of the nodes' environment: a password
    /// does not belong on a command line.
    pub(crate) broker: Vec<(&'static str, OsString)>,
    pub(crate) name: String,
    pub(crate) voters: Vec<String>,
    /// What follows for every node.
    pub(crate) flags: Vec<OsString>,
    /// Whether nodes say how they are: a line at each change, which takes time under load.
    pub(crate) reports: bool,
}

/// Something happened in the cluster.
pub(crate) enum News {
    /// A node said how it is.
    Status {
        node: usize,
        launch: u32,
        status: Status,
        at: Instant,
    },
    /// A node's output ended, and so did its process.
    Ended {
        node: usize,
        launch: u32,
        at: Instant,
    },
    /// The first write after a leader's death was acknowledged.
    Committed { number: u32, at: Instant },
}

/// A line of `mqraft node -o json`, as far as it is shown.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Status {
    role: Option<String>,
    term: u64,
    leader: Option<String>,
    metric: f64,
    is_leader: bool,
    commit_index: u64,
    applied_index: u64,
}

pub(crate) struct Node {
    cluster: Arc<Cluster>,
    at: usize,
    pub(crate) name: String,
    data_dir: PathBuf,
    process: Option<Child>,
    /// Which of its processes this is; news of an earlier one is void.
    launch: u32,
    start_at: Option<Instant>,
    status: Status,
}

impl Node {
    pub(crate) fn new(cluster: Arc<Cluster>, at: usize, dir: &Path) -> Node {
        let name = cluster.voters[at].clone();
        Node {
            data_dir: dir.join(&name),
            cluster,
            at,
            name,
            process: None,
            launch: 0,
            start_at: None,
            status: Status::default(),
        }
    }

    pub(crate) fn start(&mut self, reporter: &mpsc::UnboundedSender<News>) -> Result<(), Failure> {
        self.start_at = None;
        self.launch += 1;
        let cannot = |error: std::io::Error| {
            Failure::new(Exit::Disk, format!("cannot start a node: {error}"))
        };
        let mut process = self.command().map_err(cannot)?.spawn().map_err(cannot)?;
        if let Some(stdout) = process.stdout.take() {
            let report = report(stdout, self.at, self.launch, reporter.clone());
            tokio::spawn(report);
        }
        self.process = Some(process);
        Ok(())
    }

    /// The metrics are 10, 20, 30 and so on, so that the first node is the one preferred.
    fn command(&self) -> std::io::Result<Command> {
        let Cluster {
            broker,
            name: cluster,
            voters,
            flags,
            reports,
        } = &*self.cluster;
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = program()?;
        command
            .envs(broker.iter().map(|(name, value)| (name, value)))
            .args(["node", "--until-stdin-closes"])
            .args(["--cluster", cluster, "--id", &self.name])
            .args(["--voters", &voters.join(",")])
            .args(["--metric", &((self.at + 1) * 10).to_string()])
            .args(flags)
            .arg("--data-dir")
            .arg(&self.data_dir);
        let stdout = match reports {
            true => {
                command.args(["--output", "json"]);
                Stdio::piped()
            }
            false => Stdio::null(),
        };
        command.stdin(Stdio::piped()).stdout(stdout).stderr(log);
        Ok(command)
    }

    fn log(&self) -> PathBuf {
        self.data_dir.with_extension("log")
    }

    /// Starts the node if the time of its absence is over.
    pub(crate) fn start_if_due(
        &mut self,
        reporter: &mpsc::UnboundedSender<News>,
    ) -> Result<bool, Failure> {
        let due = self.start_at.is_some_and(|at| at <= Instant::now());
        if due {
            self.start(reporter)?;
        }
        Ok(due)
    }

    /// SIGKILL: the process does nothing any more, not even say farewell.
    pub(crate) fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            // It may have ended by itself.
            let _ = process.start_kill();
        }
    }

    pub(crate) async fn ended(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.wait().await;
        }
    }

    // What is known of it.

    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(Child::id)
    }

    pub(crate) fn term(&self) -> u64 {
        self.status.term
    }

    pub(crate) fn leads(&self) -> bool {
        self.status.role.as_deref() == Some("leader")
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.status.is_leader
    }

    /// Whether it is of the cluster and knows a leader, itself or another.
    pub(crate) fn follows(&self) -> bool {
        self.status.leader.is_some()
    }

    pub(crate) fn row(&self) -> Vec<String> {
        let Status {
            role,
            term,
            metric,
            is_leader,
            commit_index,
            applied_index,
            ..
        } = &self.status;
        let pid = self.pid().map_or("-".to_owned(), |pid| pid.to_string());
        let role = match (&role, self.process.is_some()) {
            (Some(role), _) => role,
            (None, true) => "starting",
            (None, false) => "dead",
        };
        let mut row = vec![self.name.clone(), pid, role.to_owned()];
        if self.status.role.is_some() {
            let numbers = [*term, *commit_index, *applied_index].map(|number| number.to_string());
            let [term, commit, applied] = numbers;
            row.extend([
                term,
                metric.to_string(),
                commit,
                applied,
                is_leader.to_string(),
            ]);
        }
        row
    }

    /// Takes what it says of itself; what of it is worth telling.
    pub(crate) fn take_status(&mut self, launch: u32, status: Status) -> Option<String> {
        if launch != self.launch {
            return None;
        }
        let before = std::mem::replace(&mut self.status, status);
        let Status {
            role,
            term,
            leader,
            is_leader,
            ..
        } = &self.status;
        let name = &self.name;
        if *is_leader && !before.is_leader {
            return Some(format!(
                "{name} is the only leader for certain, term {term}"
            ));
        }
        if (role, term, leader) == (&before.role, &before.term, &before.leader) {
            return None;
        }
        Some(match (role.as_deref(), leader) {
            (Some("leader"), _) => format!("{name} leads term {term}"),
            (Some(_), Some(leader)) => format!("{name} follows {leader} in term {term}"),
            (Some(role), None) => format!("{name} is {role} without a leader in term {term}"),
            (None, _) => return None,
        })
    }

    /// Takes that its process has ended; how, if that was not known. It is to start again at
    /// `start_at`.
    ///
    /// # Errors
    /// When it ended by itself: nobody asked it to.
    pub(crate) async fn take_end(
        &mut self,
        launch: u32,
        start_at: Instant,
    ) -> Result<Option<String>, Failure> {
        if launch != self.launch {
            return Ok(None);
        }
        let Some(mut process) = self.process.take() else {
            return Ok(None);
        };
        let pid = process
            .id()
            .map_or(String::new(), |pid| format!(" (pid {pid})"));
        if process
            .wait()
            .await
            .is_ok_and(|ended| ended.code().is_some())
        {
            let message = format!("{} stopped by itself: {}", self.name, self.last_words());
            return Err(Failure::new(Exit::Stopped, message));
        }
        self.status = Status::default();
        self.start_at = Some(start_at);
        Ok(Some(format!("{} was killed{pid}", self.name)))
    }

    /// The last line of its log.
    pub(crate) fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        log.lines().last().unwrap_or("it left no word").to_owned()
    }
}

/// This program, with none of the caller's settings: those are for other clusters. In a group of its
/// own, since Ctrl-C is for us, who then end it; and it does not outlive us.
pub(crate) fn program() -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"MQRAFT_") {
            command.env_remove(name);
        }
    }
    command.process_group(0).kill_on_drop(true);
    Ok(command)
}

/// Passes on what the node prints, with the time of its arrival.
async fn report(
    stdout: ChildStdout,
    node: usize,
    launch: u32,
    reporter: mpsc::UnboundedSender<News>,
) {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let at = Instant::now();
        if let Ok(status) = serde_json::from_str(&line) {
            let news = News::Status {
                node,
                launch,
                status,
                at,
            };
            let _ = reporter.send(news);
        }
    }
    let at = Instant::now();
    let _ = reporter.send(News::Ended { node, launch, at });
}
