//! `mqraft node` as processes of their own, and what each says of itself, with the time it was said.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use raft_over_mqtt::{KeyFile, KeyRing};
use serde::Deserialize;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mqraft");

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const CLUSTER: &str = "bench";

/// A line of `mqraft node -o json`, as far as a bench looks at it.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Status {
    pub(crate) role: Option<String>,
    pub(crate) leader: Option<String>,
    pub(crate) is_leader: bool,
}

impl Status {
    pub(crate) fn leads(&self) -> bool {
        self.role.as_deref() == Some("leader")
    }
}

/// What one of them said.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) node: usize,
    pub(crate) at: Instant,
    pub(crate) status: Status,
    launch: u32,
}

/// The nodes of one cluster, killed when dropped.
pub(crate) struct Nodes {
    nodes: Vec<Node>,
    key_file: PathBuf,
    said: mpsc::Receiver<Said>,
    tell: mpsc::Sender<Said>,
}

/// How to start one of them, and what came of it.
pub(crate) struct Node {
    pub(crate) id: String,
    dir: PathBuf,
    pub(crate) flags: Vec<String>,
    /// Words before the program's own, for instance to start it in a namespace.
    pub(crate) within: Vec<String>,
    child: Option<Child>,
    launch: u32,
    status: Status,
}

impl Nodes {
    /// Voters that all stand alike, so that none hands the lead over to another by itself, and a new
    /// key: their frames are sealed.
    pub(crate) fn new(dir: &Path, voters: usize) -> Nodes {
        let (tell, said) = mpsc::channel();
        let key = Command::new(PROGRAM).arg("keygen").output();
        let key_file = dir.join("cluster.key");
        std::fs::write(&key_file, key.expect("mqraft runs").stdout).expect("a key file");
        let names: Vec<String> = (1..=voters).map(|n| format!("gw-{n}")).collect();
        let node = |id: &String| Node {
            id: id.clone(),
            dir: dir.join(id),
            flags: vec!["--voters".to_owned(), names.join(",")],
            within: Vec::new(),
            child: None,
            launch: 0,
            status: Status::default(),
        };
        Nodes {
            nodes: names.iter().map(node).collect(),
            key_file,
            said,
            tell,
        }
    }

    /// Adds a node that holds the state and has no vote.
    pub(crate) fn add_observer(&mut self, dir: &Path, id: &str) {
        self.nodes.push(Node {
            id: id.to_owned(),
            dir: dir.join(id),
            flags: Vec::new(),
            within: Vec::new(),
            child: None,
            launch: 0,
            status: Status::default(),
        });
    }

    fn logs(&self) -> String {
        let log = |node: &Node| std::fs::read_to_string(node.dir.with_extension("log"));
        let logs = self.nodes.iter().filter_map(|node| log(node).ok());
        logs.collect()
    }

    /// What a client needs.
    pub(crate) fn keys(&self) -> KeyRing {
        let text = std::fs::read_to_string(&self.key_file).expect("a key file");
        KeyFile::parse(&text).expect("a key").ring()
    }

    pub(crate) fn get(&mut self, node: usize) -> &mut Node {
        &mut self.nodes[node]
    }

    pub(crate) fn add_flags(&mut self, flags: &[&str]) {
        for node in &mut self.nodes {
            node.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
        }
    }

    pub(crate) fn start_all(&mut self) {
        (0..self.nodes.len()).for_each(|node| self.start(node));
    }

    pub(crate) fn start(&mut self, at: usize) {
        let tell = self.tell.clone();
        let node = &mut self.nodes[at];
        node.launch += 1;
        node.status = Status::default();
        let launch = node.launch;
        let log = File::create(node.dir.with_extension("log")).expect("a file for its log");
        let mut words = node.within.iter().map(String::as_str).chain([PROGRAM]);
        let mut command = Command::new(words.next().expect("the program at least"));
        let child = command
            .args(words)
            .args(["node", "--output", "json", "--cluster", CLUSTER])
            .arg("--key-file")
            .arg(&self.key_file)
            .args(["--id", &node.id])
            .arg("--data-dir")
            .arg(&node.dir)
            .args(&node.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn();
        let mut child = child.expect("mqraft starts");
        let out = child.stdout.take().expect("its output");
        std::thread::spawn(move || {
            use std::io::BufRead;
            for line in std::io::BufReader::new(out).lines().map_while(Result::ok) {
                let at_time = Instant::now();
                if let Ok(status) = serde_json::from_str(&line) {
                    let _ = tell.send(Said {
                        node: at,
                        at: at_time,
                        status,
                        launch,
                    });
                }
            }
        });
        node.child = Some(child);
    }

    /// SIGKILL, and waits until the process is no more.
    pub(crate) fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// What a node says next, and what it means for the others; none before `deadline`.
    fn hear(&mut self, deadline: Instant) -> Option<Said> {
        loop {
            let wait = deadline.saturating_duration_since(Instant::now());
            let said = self.said.recv_timeout(wait).ok()?;
            let node = &mut self.nodes[said.node];
            if said.launch == node.launch {
                node.status = said.status.clone();
                return Some(said);
            }
        }
    }

    /// Takes what was said until now.
    pub(crate) fn catch_up(&mut self) {
        let now = Instant::now();
        while self.hear(now).is_some() {}
    }

    /// The first to be said that satisfies `wanted`.
    pub(crate) fn expect(&mut self, what: &str, mut wanted: impl FnMut(&Said) -> bool) -> Said {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.hear(deadline);
            let said = said.unwrap_or_else(|| panic!("{what} within {PATIENCE:?}"));
            if wanted(&said) {
                return said;
            }
        }
    }

    /// Waits until one claims to be the only leader and every running one follows it.
    pub(crate) fn settled(&mut self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.catch_up();
            let running = || self.nodes.iter().filter(|node| node.child.is_some());
            let leader = self.nodes.iter().position(|node| node.status.is_leader);
            if let Some(leader) = leader {
                let id = Some(&self.nodes[leader].id);
                if running().all(|node| node.status.leader.as_ref() == id) {
                    return leader;
                }
            }
            assert!(
                Instant::now() < deadline,
                "it does not settle: {}",
                self.logs()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Node {
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits for a process that was told to end.
    pub(crate) fn wait(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}
