//! Real processes of the program against a real Mosquitto, and what they say.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program compiles its own copy and uses its share"
)]

pub mod writer;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::{Mosquitto, TempDir, wait_for};

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const VOTERS: &str = "gw-1,gw-2,gw-3";

/// A directory, most often a broker, and ways to run the program against them.
pub struct Bench {
    pub broker: Option<Mosquitto>,
    pub dir: TempDir,
}

impl Bench {
    pub fn start() -> Bench {
        Bench::of(Mosquitto::start())
    }

    pub fn of(broker: Mosquitto) -> Bench {
        Bench {
            broker: Some(broker),
            dir: testkit::temp_dir(),
        }
    }

    pub fn without_broker() -> Bench {
        Bench {
            broker: None,
            dir: testkit::temp_dir(),
        }
    }

    pub fn broker(&mut self) -> &mut Mosquitto {
        self.broker.as_mut().expect("a broker")
    }

    pub fn url(&self) -> String {
        self.broker.as_ref().expect("a broker").url()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn insecure(&self) -> String {
        format!("--insecure --broker {}", self.url())
    }

    /// One of three voters.
    pub fn node(&self, id: &str, flags: &str) -> String {
        let dir = self.path(id).display().to_string();
        format!("node --id {id} --voters {VOTERS} --data-dir {dir} {flags}")
    }

    /// A cluster of its own.
    pub fn lone_node(&self, id: &str) -> String {
        format!("{} {}", self.lone_node_without_flags(id), self.insecure())
    }

    pub fn lone_node_without_flags(&self, id: &str) -> String {
        let dir = self.path(id).display().to_string();
        format!("node --id {id} --voters {id} --data-dir {dir}")
    }

    pub fn cluster(&self, flags: &str) -> Vec<Process> {
        let start = |id| self.process(&self.node(id, flags));
        VOTERS.split(',').map(start).collect()
    }

    /// Who leads, once someone does.
    pub fn await_leader(&self) -> String {
        let mut leader = String::new();
        let leads = || {
            let answer = self.run(&format!("leader {}", self.insecure()));
            leader = answer.stdout.trim_end().to_owned();
            answer.code == Some(0)
        };
        assert!(wait_for(PATIENCE, leads), "nobody leads");
        leader
    }

    /// The program with these words, and none of the caller's settings.
    pub fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mqraft"));
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"MQRAFT_") {
                command.env_remove(name);
            }
        }
        command
            .env_remove("RUST_LOG")
            .args(words.split_whitespace());
        command
    }

    pub fn process(&self, words: &str) -> Process {
        Process::start(self.command(words), self)
    }

    pub fn run(&self, words: &str) -> Answer {
        Answer::of(self.command(words), self)
    }
}

/// A running program, killed on drop. What it says goes to files, so that it never blocks.
pub struct Process {
    pub child: Child,
    pub words: String,
    pub out: TempDir,
}

impl Process {
    pub fn start(mut command: Command, bench: &Bench) -> Process {
        let out = testkit::temp_dir();
        let file = |name: &str| File::create(out.path().join(name)).expect("a file for output");
        let words: Vec<_> = command
            .get_args()
            .map(|word| word.to_string_lossy())
            .collect();
        let words = words.join(" ");
        command
            .current_dir(bench.dir.path())
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"));
        let child = command.spawn().expect("mqraft starts");
        Process { child, words, out }
    }

    pub fn is_called(&self, id: &str) -> bool {
        self.words.contains(&format!("--id {id} "))
    }

    pub fn stdout(&self) -> String {
        fs::read_to_string(self.out.path().join("stdout")).expect("text on stdout")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.out.path().join("stderr")).expect("text on stderr")
    }

    pub fn await_log(&self, words: &str) -> bool {
        wait_for(PATIENCE, || self.log().contains(words))
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end; `None` if a signal ended it.
    pub fn exit_code(&mut self) -> Option<i32> {
        let mut status = None;
        wait_for(PATIENCE, || {
            status = self.child.try_wait().expect("a child of ours");
            status.is_some()
        });
        let status =
            status.unwrap_or_else(|| panic!("{} does not end: {}", self.words, self.log()));
        status.code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a program that has ended said.
#[derive(Debug)]
pub struct Answer {
    pub words: String,
    pub stdout: String,
    pub stderr: String,
    pub code: Option<i32>,
}

impl Answer {
    pub fn of(command: Command, bench: &Bench) -> Answer {
        let mut process = Process::start(command, bench);
        let code = process.exit_code();
        Answer {
            words: process.words.clone(),
            stdout: process.stdout(),
            stderr: process.log(),
            code,
        }
    }

    #[track_caller]
    pub fn expect_exit(self, code: i32) -> Answer {
        assert_eq!(self.code, Some(code), "{}: {self:?}", self.words);
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}
