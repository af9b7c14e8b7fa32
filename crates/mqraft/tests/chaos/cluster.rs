//! A cluster of real `mqraft node` processes on a real Mosquitto, and what can be done to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use raft_over_mqtt::{ClusterKey, Mqtt, NodeStatus, Remote};
use rustix::process::{Pid, Signal, kill_process};
use testkit::{Certificates, KeyPair, Mosquitto, TempDir};
use tokio::runtime::{Builder, Runtime};

use crate::Choices;

pub(crate) const CLUSTER: &str = "chaos";

/// How the nodes reach the broker.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transport {
    Plain,
    MutualTls,
    /// Two brokers at once, of which one may be gone at any time.
    TwoBrokers,
}

pub(crate) struct Cluster {
    dir: TempDir,
    brokers: Vec<Mosquitto>,
    certificates: Option<Certificates>,
    /// The clients' own certificate.
    client: Option<KeyPair>,
    nodes: Vec<Node>,
    runtime: Runtime,
    key: ClusterKey,
}

struct Node {
    name: String,
    process: Option<Child>,
    /// Held open by nobody but the process, so that what it said last is there after a kill.
    log: PathBuf,
}

impl Cluster {
    pub(crate) fn start(count: usize, transport: Transport) -> Cluster {
        let dir = testkit::temp_dir();
        let certificates = match transport {
            Transport::Plain | Transport::TwoBrokers => None,
            Transport::MutualTls => Some(Certificates::generate(dir.path())),
        };
        let count_of_brokers = match transport {
            Transport::TwoBrokers => 2,
            Transport::Plain | Transport::MutualTls => 1,
        };
        let broker = |_| {
            let builder = Mosquitto::builder().persistence(true);
            match &certificates {
                Some(certificates) => builder.mutual_tls(certificates).start(),
                None => builder.start(),
            }
        };
        let brokers = (0..count_of_brokers).map(broker).collect();
        let client = certificates
            .as_ref()
            .map(|certificates| certificates.client("client"));
        let key = raft_over_mqtt::generate_cluster_key().expect("a key");
        fs::write(dir.path().join("key"), key.to_text()).expect("a key file");
        let node = |number: usize| Node {
            name: format!("gw-{number}"),
            process: None,
            log: dir.path().join(format!("gw-{number}.log")),
        };
        let nodes = (1..=count).map(node).collect();
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let mut cluster = Cluster {
            dir,
            brokers,
            certificates,
            client,
            nodes,
            runtime,
            key,
        };
        for number in 0..count {
            cluster.start_node(number);
        }
        cluster
    }

    pub(crate) fn start_node(&mut self, number: usize) {
        let voters: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        let name = &self.nodes[number].name;
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.nodes[number].log);
        let log = log.expect("a log file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_mqraft"));
        command
            .args([
                "node",
                "--cluster",
                CLUSTER,
                "--id",
                name,
                "--voters",
                &voters.join(","),
            ])
            .arg("--data-dir")
            .arg(self.dir.path().join(name))
            .arg("--key-file")
            .arg(self.dir.path().join("key"))
            .args(["--metric", &number.to_string()])
            .args(self.urls().iter().flat_map(|url| ["--broker", url]))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        if let Some(certificates) = &self.certificates {
            let own = certificates.client(name);
            command.arg("--ca").arg(&certificates.ca);
            command
                .arg("--cert")
                .arg(own.certificate)
                .arg("--key")
                .arg(own.key);
        }
        self.nodes[number].process = Some(command.spawn().expect("mqraft starts"));
    }

    fn urls(&self) -> Vec<String> {
        let url = |broker: &Mosquitto| match self.certificates {
            Some(_) => broker.tls_url(),
            None => broker.url(),
        };
        self.brokers.iter().map(url).collect()
    }

    /// The brokers as clients reach them.
    pub(crate) fn mqtt(&self) -> Mqtt {
        let urls = self.urls();
        let each = urls.iter().map(|url| Mqtt::new(url).expect("a URL"));
        let mqtt = each.reduce(Mqtt::and).expect("at least one");
        match (&self.certificates, &self.client) {
            (Some(certificates), Some(own)) => {
                mqtt.load_certificates(&certificates.ca, &own.certificate, &own.key)
            }
            _ => mqtt,
        }
    }

    pub(crate) fn key(&self) -> ClusterKey {
        self.key.clone()
    }

    // Faults.

    /// Breaks one thing and heals it again; says what it was.
    pub(crate) fn break_something(&mut self, choices: &mut Choices) -> String {
        let anyone = choices.below(self.nodes.len() as u64) as usize;
        // Half of the time it hits the leader.
        let number = self
            .leader()
            .filter(|_| choices.below(2) == 0)
            .unwrap_or(anyone);
        let pause = Duration::from_millis(choices.below(3_000));
        match choices.below(8) {
            0..=3 => self.kill_node(number, pause),
            4 | 5 => self.stop_node(number, pause),
            6 => self.restart_broker(choices, pause / 4),
            _ => self.stop_broker(choices, pause),
        }
    }

    /// Who won the newest election, by the logs.
    pub(crate) fn leader(&self) -> Option<usize> {
        let leaders = self.leaders_by_term();
        let (_, names) = leaders.last_key_value()?;
        self.nodes
            .iter()
            .position(|node| names.contains(&node.name))
    }

    /// A node that does not lead.
    pub(crate) fn follower(&self) -> usize {
        if self.leader() == Some(0) { 1 } else { 0 }
    }

    /// kill -9.
    pub(crate) fn kill(&mut self, number: usize) {
        let mut process = self.nodes[number].process.take().expect("it runs");
        process.kill().expect("kill -9");
        process.wait().expect("it ended");
    }

    /// Removes the data directory of a node that does not run.
    pub(crate) fn wipe(&self, number: usize) {
        let name = &self.nodes[number].name;
        fs::remove_dir_all(self.dir.path().join(name)).expect("a data directory");
    }

    fn kill_node(&mut self, number: usize, pause: Duration) -> String {
        self.kill(number);
        hold(pause);
        self.start_node(number);
        format!("kill -9 {}, back after {pause:?}", self.nodes[number].name)
    }

    fn stop_node(&mut self, number: usize, pause: Duration) -> String {
        let process = self.nodes[number].process.as_ref().expect("it runs");
        let pid = Pid::from_child(process);
        kill_process(pid, Signal::STOP).expect("SIGSTOP");
        hold(pause);
        kill_process(pid, Signal::CONT).expect("SIGCONT");
        format!("SIGSTOP {} for {pause:?}", self.nodes[number].name)
    }

    fn restart_broker(&mut self, choices: &mut Choices, pause: Duration) -> String {
        let broker = choices.below(self.brokers.len() as u64) as usize;
        self.brokers[broker].kill();
        hold(pause);
        self.brokers[broker].restart();
        format!("kill -9 of broker {broker}, back after {pause:?}")
    }

    fn stop_broker(&mut self, choices: &mut Choices, pause: Duration) -> String {
        let broker = choices.below(self.brokers.len() as u64) as usize;
        self.brokers[broker].stop_signal();
        hold(pause);
        self.brokers[broker].cont();
        format!("SIGSTOP of broker {broker} for {pause:?}")
    }

    // What must hold.

    /// Waits until a node answers that it leads.
    pub(crate) fn wait_for_leader(&self, deadline: Duration) -> bool {
        testkit::wait_for(deadline, || {
            self.statuses().iter().any(|s| s.role == "leader")
        })
    }

    pub(crate) fn wait_for_role(&self, number: usize, role: &str, deadline: Duration) -> bool {
        let name = &self.nodes[number].name;
        testkit::wait_for(deadline, || {
            self.statuses()
                .iter()
                .any(|s| s.node == *name && s.role == role)
        })
    }

    /// Waits until a node has logged `text`.
    pub(crate) fn wait_for_log(&self, number: usize, text: &str, deadline: Duration) -> bool {
        let log = &self.nodes[number].log;
        testkit::wait_for(deadline, || {
            fs::read_to_string(log).is_ok_and(|content| content.contains(text))
        })
    }

    pub(crate) fn put(&self, key: &'static str, value: &'static str) {
        self.runtime.block_on(async {
            let mut remote = self.remote(Duration::from_secs(30)).await;
            remote.put(key, value).await.expect("a write");
            remote.close().await;
        });
    }

    /// Waits until every node has applied the same, up to the same entry.
    pub(crate) fn converge(&self, deadline: Duration) -> Result<(), String> {
        let started = Instant::now();
        loop {
            let statuses = self.statuses();
            let states: BTreeSet<(u64, u32)> = statuses
                .iter()
                .map(|s| (s.applied_index, s.applied_digest))
                .collect();
            if statuses.len() == self.nodes.len() && states.len() == 1 {
                return Ok(());
            }
            if started.elapsed() > deadline {
                let shown = statuses.iter().map(|s| {
                    format!(
                        "{} {} {} {:08x}",
                        s.node, s.role, s.applied_index, s.applied_digest
                    )
                });
                return Err(shown.collect::<Vec<_>>().join(", "));
            }
        }
    }

    pub(crate) fn statuses(&self) -> Vec<NodeStatus> {
        self.runtime.block_on(async {
            let mut remote = self.remote(Duration::from_secs(30)).await;
            let statuses = remote
                .statuses(Duration::from_millis(500))
                .await
                .expect("a session");
            remote.close().await;
            statuses
        })
    }

    async fn remote(&self, timeout: Duration) -> Remote {
        Remote::connect(self.mqtt(), "raft", CLUSTER, Some(self.key()), timeout)
            .await
            .expect("a session with the broker")
    }

    /// The values of `keys`, read linearizably.
    pub(crate) fn read(&self, keys: &[String]) -> Vec<Option<Vec<u8>>> {
        self.runtime.block_on(async {
            let mut remote = self.remote(Duration::from_secs(30)).await;
            let mut values = Vec::new();
            for key in keys {
                let reading = remote.get(key.clone()).await.expect("a read");
                values.push(reading.value.map(|value| value.0.to_vec()));
            }
            remote.close().await;
            values
        })
    }

    /// Who said that it leads which term: every node logs it when it wins.
    pub(crate) fn leaders_by_term(&self) -> BTreeMap<u64, BTreeSet<String>> {
        let mut leaders: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
        for node in &self.nodes {
            let log = fs::read_to_string(&node.log).unwrap_or_default();
            for line in log.lines() {
                let Some((_, rest)) = line.split_once("leads term ") else {
                    continue;
                };
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                let term = digits.parse().expect("a term");
                leaders.entry(term).or_default().insert(node.name.clone());
            }
        }
        leaders
    }

    /// The end of every node's log, for whoever has to find out what happened.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            let log = fs::read_to_string(&node.log).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            text.push_str(&format!("--- {}\n", node.name));
            for line in tail.iter().rev() {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }
}

/// Leaves the fault in place for a while: the stimulus itself, not a wait for its effect.
fn hold(pause: Duration) {
    std::thread::sleep(pause);
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut process) = node.process.take() {
                let _ = process.kill();
                let _ = process.wait();
            }
        }
    }
}
