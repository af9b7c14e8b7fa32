//! The command line: its words, and what `--help` says of them.

// By path: the file is compiled into a fuzz target as well, where this one stands elsewhere.
#[cfg(feature = "demo")]
#[path = "cli/bench.rs"]
pub(crate) mod bench;
#[path = "cli/state.rs"]
pub(crate) mod state;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::duration::Span;
use crate::exit::EXIT_CODES;
use crate::settings::{HomeAssistantSection, Layer, LegacySection, MirrorSection, RequestsSection};

#[cfg(feature = "demo")]
pub(crate) use bench::BenchCommand;
pub(crate) use state::StateCommand;

/// The hidden commands by which `run` starts its watchdog, and that the program.
#[cfg(target_os = "linux")]
pub(crate) const WATCHDOG: &str = "__watchdog";
#[cfg(target_os = "linux")]
pub(crate) const EXEC: &str = "__exec";

/// The hidden command by which `bench` starts observers that it can kill.
#[cfg(feature = "demo")]
pub(crate) const OBSERVERS: &str = "__observers";

/// Where settings come from, for `--help`.
const SETTINGS: &str = "\
Settings: a flag wins over the environment, that over --config FILE, that over the default.
  --data-dir DIR is MQRAFT_DATA_DIR=DIR in the environment and data-dir = \"DIR\" in the file, and
  so on for every setting. Lists are comma-separated in the environment. Secrets come from files
  (--key-file, --password-file) or from MQRAFT_CLUSTER_KEY and MQRAFT_PASSWORD.";

/// Exactly one active node, and one agreed state, over the MQTT broker you already have.
#[derive(Parser)]
#[command(
    name = "mqraft",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(after_help = EXIT_CODES, after_long_help = format!("{SETTINGS}\n\n{EXIT_CODES}"))]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) general: General,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command understands.
#[derive(Args)]
pub(crate) struct General {
    /// How to print.
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    pub(crate) output: Format,
    /// What to log on stderr: a level or a list such as `info,mqtt=debug` [default: RUST_LOG or info]
    #[arg(long, global = true, value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// A TOML file with settings; its keys are the flags' names.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON document per answer.
    Json,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Shows a cluster on this machine: a broker, nodes, a leader, its death and its successor.
    #[cfg(feature = "demo")]
    Demo(DemoArgs),
    /// Measures a broker and a cluster on it, beside what the broker alone takes: a throw-away cluster of
    /// processes on this machine. Without --broker, MQRAFT_BROKER or one in --config on a broker of its
    /// own.
    #[cfg(feature = "demo")]
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Runs a node until it is interrupted.
    Node {
        #[command(flatten)]
        connection: ConnectionArgs,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Runs a witness: a voter that stores the log for two other nodes, and no state. It answers no
    /// reads and never leads for longer than it takes to hand over.
    Witness {
        #[command(flatten)]
        connection: ConnectionArgs,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Shows every node that answers: role, term, metric, how far its log has come.
    Status(ConnectionArgs),
    /// Prints who leads; exit code 1 if nobody does.
    Leader {
        #[command(flatten)]
        connection: ConnectionArgs,
        /// Goes on, with a line at each change.
        #[arg(long)]
        watch: bool,
    },
    /// Lists voters and other nodes, and who of them is there.
    Members {
        #[command(flatten)]
        connection: ConnectionArgs,
        /// Shows who is there as the cluster has agreed, and every arrival and departure from then on.
        #[arg(long)]
        watch: bool,
    },
    /// Shows and changes who belongs to the cluster.
    #[command(subcommand)]
    Member(MemberCommand),
    /// Hands the lead to another node; what it protects stops first, and begins there at once.
    Transfer {
        /// To whom [default: the voter with the best metric]
        node: Option<String>,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Shows what the cluster has settled, or changes it.
    Settings {
        /// How long a leader is exclusive without hearing a majority, 10ms to 10m.
        #[arg(long, value_name = "TIME")]
        lease: Option<Span>,
        /// How much a member's clock may run fast or slow, in parts per million, below 100000.
        #[arg(long, value_name = "PPM")]
        drift: Option<u32>,
        /// Whether a leader answers reads within its lease without asking a majority; a new leader
        /// then commits nothing before the older leases have ended.
        #[arg(long, value_name = "ON|OFF")]
        lease_reads: Option<OnOff>,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Sets a key; done once a majority has it on disk.
    Put {
        /// The key.
        key: String,
        /// Its value.
        #[arg(required_unless_present = "file")]
        value: Option<OsString>,
        /// Takes the value from a file; `-` is stdin.
        #[arg(long, value_name = "FILE", conflicts_with = "value")]
        file: Option<PathBuf>,
        /// The key goes when this lease ends; see `lease grant`.
        #[arg(long, value_name = "LEASE")]
        lease: Option<u64>,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Prints a key's value, byte for byte; exit code 1 if it has none.
    Get {
        /// The key.
        key: String,
        /// As it stands on a node, perhaps behind, without asking a leader.
        #[arg(long)]
        stale: bool,
        /// Which node to ask [default: whoever answers first]
        #[arg(long, value_name = "NODE", requires = "stale")]
        from: Option<String>,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Removes a key; exit code 1 if it was absent.
    Delete {
        /// The key.
        key: String,
        /// All keys that begin so, a thousand at a time.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Sets a key if it has the expected value; exit code 1 if it had another.
    Cas {
        /// The key.
        key: String,
        /// Its new value.
        value: OsString,
        /// The value that it must have.
        #[arg(long, value_name = "VALUE", required_unless_present = "absent")]
        expect: Option<OsString>,
        /// It must have no value.
        #[arg(long, conflicts_with = "expect")]
        absent: bool,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    #[command(flatten)]
    State(StateCommand),
    /// Runs a program on one site at a time: starts it when no other site may run it, and ends it
    /// before another may. The environment says which claim it runs under: MQRAFT_FENCING_TOKEN,
    /// MQRAFT_TERM, MQRAFT_NODE, MQRAFT_NAME.
    Run {
        #[command(flatten)]
        connection: ConnectionArgs,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Runs a program once, when a lock is held; the lock is released when nothing of it is left.
    Lock {
        #[command(flatten)]
        connection: ConnectionArgs,
        #[command(flatten)]
        lock: LockArgs,
    },
    /// Between `run` or `lock` and the program.
    #[cfg(target_os = "linux")]
    #[command(name = WATCHDOG, hide = true)]
    Watchdog {
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Between the watchdog and the program.
    #[cfg(target_os = "linux")]
    #[command(name = EXEC, hide = true)]
    Exec {
        parent: i32,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Observers for `bench`, until stdin ends.
    #[cfg(feature = "demo")]
    #[command(name = OBSERVERS, hide = true)]
    Observers {
        /// How many.
        #[arg(long)]
        count: u32,
        /// What their names begin with.
        #[arg(long)]
        name: String,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Makes a cluster key, the secret that all members share.
    Keygen {
        /// Writes it to a new file that only its owner can read [default: stdout]
        file: Option<PathBuf>,
    },
    /// Replaces the cluster key while the cluster runs.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Saves a cluster's state as a file, and makes a new cluster of one.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Makes a new cluster of what one node holds, after the majority was lost for good.
    Recover {
        /// Accepts that acknowledged writes may be lost, and others come back.
        #[arg(long = "unsafe")]
        is_unsafe: bool,
        /// The surviving node's data directory; it is only read.
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// The new cluster's data directory: empty, or not there yet.
        #[arg(long, value_name = "NEWDIR")]
        to: PathBuf,
        /// The name of its only voter [default: the surviving node's]
        #[arg(long, value_name = "NAME")]
        id: Option<String>,
    },
    /// Shows the cluster in Home Assistant no more.
    #[command(subcommand)]
    Homeassistant(HomeAssistantCommand),
    /// Checks a broker before a node relies on it, and says what to change. Takes what `mqraft node`
    /// takes, and may be used beside nodes that run.
    Doctor {
        #[command(flatten)]
        connection: ConnectionArgs,
        #[command(flatten)]
        doctor: Box<DoctorArgs>,
    },
    /// Prints a completion script for a shell.
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// Prints the exit codes.
    ExitCodes,
}

/// What can be done with the cluster's device in Home Assistant. Nodes announce it by themselves:
/// `mqraft node --homeassistant-prefix`.
#[derive(Subcommand)]
pub(crate) enum HomeAssistantCommand {
    /// Removes the device. Nodes that run do not announce it again before they are started anew; start
    /// them without --homeassistant-prefix then.
    Remove {
        /// Home Assistant's discovery prefix [default: homeassistant]
        #[arg(long, value_name = "PREFIX")]
        homeassistant_prefix: Option<String>,
        #[command(flatten)]
        connection: Box<ConnectionArgs>,
    },
}

/// What can be done with the cluster key.
#[derive(Subcommand)]
pub(crate) enum KeyCommand {
    /// Takes one step of a rotation in a key file. Give the file to every node and client, and send
    /// each node SIGHUP, before the next step.
    Rotate {
        /// The key file.
        #[arg(long, value_name = "FILE")]
        key_file: PathBuf,
        #[command(flatten)]
        step: StepArgs,
    },
    /// Shows which key each node seals with, and which keys it accepts.
    Status(Box<ConnectionArgs>),
}

/// Which step.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct StepArgs {
    /// First: draws a new key, which is accepted beside the one in use.
    #[arg(long)]
    add: bool,
    /// Second: the new key is used, and the old one still accepted.
    #[arg(long)]
    promote: bool,
    /// Last: the old key is accepted no more.
    #[arg(long)]
    finish: bool,
}

/// A step of a rotation.
#[derive(Clone, Copy)]
pub(crate) enum Step {
    Add,
    Promote,
    Finish,
}

impl StepArgs {
    pub(crate) fn step(&self) -> Step {
        match (self.add, self.promote) {
            (true, _) => Step::Add,
            (_, true) => Step::Promote,
            _ => Step::Finish,
        }
    }
}

/// What can be done with snapshots.
#[derive(Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Saves the state of a running cluster; it holds every write acknowledged before.
    Save {
        /// The file; it appears when it is complete, in place of an older one.
        file: PathBuf,
        /// Which node to copy from [default: the leader]
        #[arg(long, value_name = "NODE")]
        from: Option<String>,
        /// The node's own copy, perhaps behind: needs no leader.
        #[arg(long)]
        stale: bool,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Checks a snapshot and prints what it holds.
    Inspect {
        /// The file.
        file: PathBuf,
    },
    /// Makes a data directory of a snapshot: a new cluster with one voter.
    Restore {
        /// The file.
        file: PathBuf,
        /// The new cluster's data directory: empty, or not there yet.
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// The name of its only voter.
        #[arg(long, value_name = "NAME")]
        id: String,
        /// The new cluster's name [default: the one that was saved]
        #[arg(long, value_name = "NAME")]
        cluster: Option<String>,
    },
}

/// A switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnOff {
    On,
    Off,
}

/// Who belongs to the cluster. A node is meant by its name or, where two share one, by its name, `#`
/// and the beginning of its key.
#[derive(Subcommand)]
pub(crate) enum MemberCommand {
    /// Lists the members as the leader knows them, linearizably.
    List {
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Gives a node that runs, and was started without --voters, a vote: it is brought up to date
    /// first.
    Add {
        /// Which node.
        node: String,
        /// It holds the log without a vote.
        #[arg(long)]
        learner: bool,
        /// It is a witness.
        #[arg(long)]
        witness: bool,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Gives a learner a vote.
    Promote {
        /// Which node.
        node: String,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Takes a voter's vote; it stays as a learner.
    Demote {
        /// Which node.
        node: String,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Lets a member go; its process stops. A leader hands over first.
    Remove {
        /// Which node.
        node: String,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Puts another node in a member's place, in one change.
    Replace {
        /// Who goes.
        node: String,
        /// Who comes [default: the node of the same name that lost its disk]
        by: Option<String>,
        #[command(flatten)]
        connection: ConnectionArgs,
    },
}

impl MemberCommand {
    /// The command, and where the cluster is.
    pub(crate) fn split(mut self) -> (MemberCommand, ConnectionArgs) {
        let (MemberCommand::List { connection }
        | MemberCommand::Add { connection, .. }
        | MemberCommand::Promote { connection, .. }
        | MemberCommand::Demote { connection, .. }
        | MemberCommand::Remove { connection, .. }
        | MemberCommand::Replace { connection, .. }) = &mut self;
        let connection = std::mem::take(connection);
        (self, connection)
    }
}

/// Where the broker is, and how it lets us in.
#[derive(Args, Default)]
#[command(next_help_heading = "Connection")]
pub(crate) struct BrokerArgs {
    /// mqtt://HOST, mqtts://, ws:// or wss://, with :PORT where it is not the usual one. Given several
    /// times: all of them at once, so that the end of one costs nothing.
    #[arg(long, value_name = "URL")]
    broker: Vec<String>,
    /// The broker's user name for us.
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// The file with the password.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// PEM: the authority that the broker's certificate must come from [default: the system's]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// PEM: our certificate.
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// PEM: our certificate's private key.
    #[arg(long = "key", value_name = "FILE")]
    private_key: Option<PathBuf>,
}

/// Where the cluster is, and how to be let in.
#[derive(Args, Default)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectionArgs {
    #[command(flatten)]
    broker: BrokerArgs,
    /// The cluster [default: default]
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// What stands before the cluster in every topic [default: raft]
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// The file with the cluster's key.
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    key_file: Option<PathBuf>,
    /// Without a key: only with a broker on this machine.
    #[arg(long)]
    insecure: bool,
    /// How long to wait for an answer [default: 10s]
    #[arg(long, value_name = "TIME")]
    timeout: Option<Span>,
}

/// What a node is.
#[derive(Args)]
#[command(next_help_heading = "Node")]
pub(crate) struct NodeArgs {
    /// The node's name, its own.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// The nodes that form the cluster and vote, the same list on each; their first start needs
    /// all of them. A node that is not among them follows without a vote.
    #[arg(long, value_name = "A,B,C", value_delimiter = ',')]
    voters: Vec<String>,
    /// In place of --voters: the cluster is formed by so many of the nodes that say the same N;
    /// those of the smallest names vote, the others follow. Safe only while fewer than 2N nodes
    /// are ever started with --expect, a node that lost its data directory counted again: 2N that
    /// do not all hear each other can form two clusters. Better name the --voters.
    #[arg(long, value_name = "N", conflicts_with = "voters")]
    expect: Option<u32>,
    /// Where the node keeps its log: a directory of its own.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// How well the node suits to lead, lower is better [default: 0]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    metric: Option<f64>,
    /// Says something of the node beside its name, for `members` and whoever watches; may be
    /// repeated.
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = tag)]
    tags: Vec<(String, String)>,
    /// How long a voter waits for a silent leader [default: 1s]
    #[arg(long, value_name = "TIME")]
    election_timeout: Option<Span>,
    /// How often a leader with nothing to say is heard [default: a quarter of the election timeout]
    #[arg(long, value_name = "TIME")]
    heartbeat_interval: Option<Span>,
    /// How long another voter's metric must be better before this node, if it leads, hands over to
    /// it: a time, or `never` [default: 5s]
    #[arg(long, value_name = "TIME")]
    hand_over_after: Option<String>,
    /// By how much the other's metric must be better, in the metric's own unit [default: 0]
    #[arg(long, value_name = "N")]
    hand_over_margin: Option<f64>,
    /// How long a leader leads at least before it hands over by itself; doubled with each change of
    /// the leader in the last hour [default: 10s]
    #[arg(long, value_name = "TIME")]
    hand_over_tenure: Option<Span>,
    /// Keeps so many voters, 3, 5 or 7: one that stays silent gives its vote to an observer
    /// [default: off]
    #[arg(long, value_name = "N")]
    autopilot: Option<u32>,
    /// How long a voter must be silent, and its successor be there [default: 5m]
    #[arg(long, value_name = "TIME")]
    autopilot_dwell: Option<Span>,
    /// Keeps a fleet of node-raft-over-mqtt 1.2.1 nodes, whose certificates have this common name,
    /// as followers of the cluster's leader [default: off]
    #[arg(long, value_name = "CN")]
    legacy_prefix: Option<String>,
    /// Answers requests of any MQTT client, in JSON, while this node leads; they may read all keys
    /// [default: off]
    #[arg(long)]
    requests: bool,
    /// Lets them write keys that begin so; repeatable
    #[arg(long, value_name = "PREFIX")]
    request_write: Vec<String>,
    /// Mirrors keys that begin so as retained messages, while this node leads; repeatable; '' is all
    /// [default: none]
    #[arg(long, value_name = "PREFIX")]
    mirror: Vec<String>,
    /// Shows the cluster in Home Assistant: its discovery prefix, there `homeassistant` unless it was
    /// changed [default: off]
    #[arg(long, value_name = "PREFIX")]
    homeassistant_prefix: Option<String>,
    /// For a rolling upgrade or downgrade: the newest frame version to speak, 1 or 2 [default: 2]
    #[arg(long, hide = true, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=2))]
    frame_version: Option<u8>,
    /// Shuts down when stdin ends: how a child does not outlive its parent, however that dies.
    #[arg(long, hide = true)]
    pub(crate) until_stdin_closes: bool,
}

/// What to check, or to print.
#[derive(Args)]
pub(crate) struct DoctorArgs {
    /// Also waits for the will of a client that falls silent: with the default keep alive 8 to 18 s
    /// more.
    #[arg(long, help_heading = "Doctor")]
    pub(crate) thorough: bool,
    /// Prints an access list and a configuration for a broker of this kind in place of checking one.
    #[arg(long, value_name = "BROKER", help_heading = "Doctor")]
    pub(crate) print_acl: Option<BrokerKind>,
    /// Writes them as mqraft.acl and mosquitto.conf into this directory, which the configuration then
    /// names.
    #[arg(
        long,
        value_name = "DIR",
        requires = "print_acl",
        help_heading = "Doctor"
    )]
    pub(crate) dir: Option<PathBuf>,
    /// The access list's further nodes, beside the --voters; repeatable. Without any node named, each
    /// user is a node of that name.
    #[arg(
        long,
        value_name = "NAME",
        requires = "print_acl",
        help_heading = "Doctor"
    )]
    pub(crate) observer: Vec<String>,
    /// The broker's user for clients of the cluster: this command line, `mqraft run`; repeatable.
    #[arg(
        long,
        value_name = "NAME",
        requires = "print_acl",
        help_heading = "Doctor"
    )]
    pub(crate) client: Vec<String>,
    /// A user that may read who leads, who is there and what is mirrored; repeatable.
    #[arg(
        long,
        value_name = "NAME",
        requires = "print_acl",
        help_heading = "Doctor"
    )]
    pub(crate) reader: Vec<String>,
    /// A user that may send requests under its name; repeatable.
    #[arg(
        long,
        value_name = "NAME",
        requires = "print_acl",
        help_heading = "Doctor"
    )]
    pub(crate) asker: Vec<String>,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// A broker for which a configuration can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BrokerKind {
    Mosquitto,
}

/// What to run on one site at a time.
#[derive(Args)]
#[command(next_help_heading = "Program")]
pub(crate) struct RunArgs {
    /// What only one site may run; sites that say the same name exclude each other.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub(crate) name: String,
    /// This site, as others see it [default: the host's name]
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
    /// A shell command that runs here when the program has ended because the claim is given up or
    /// lost; it has the grace for that.
    #[arg(long, value_name = "CMD")]
    pub(crate) on_demote: Option<OsString>,
    /// How long the program may take from SIGTERM to its end; then it is killed.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub(crate) grace: Span,
    /// How long a claim lasts that is not renewed; the most that a site that vanished keeps the others
    /// waiting [default: 14.5s with a grace of 5s]
    #[arg(long, value_name = "TIME")]
    pub(crate) ttl: Option<Span>,
    /// Ends with the program, with its exit code, in place of starting it again.
    #[arg(long)]
    pub(crate) once: bool,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// What to run under a lock.
#[derive(Args)]
#[command(next_help_heading = "Program")]
pub(crate) struct LockArgs {
    /// The lock.
    pub(crate) name: String,
    /// How many may hold it at the same time; all must say the same.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) permits: u32,
    /// Does not wait: exit code 1 if it is held.
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// How long the program may take from SIGTERM to its end; then it is killed.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub(crate) grace: Span,
    /// How long the lock lasts that is not renewed [default: 14.5s with a grace of 5s]
    #[arg(long, value_name = "TIME")]
    pub(crate) ttl: Option<Span>,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// What the demo shows.
#[cfg(feature = "demo")]
#[derive(Args)]
pub(crate) struct DemoArgs {
    /// How many nodes.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub(crate) nodes: u8,
    /// Kills the leader's process this long after it was elected, and measures.
    #[arg(long, value_name = "TIME")]
    pub(crate) kill_leader_after: Option<Span>,
    /// Ends once the killed leader is back.
    #[arg(long, requires = "kill_leader_after")]
    pub(crate) exit: bool,
    /// How long a voter waits for a silent leader [default: 1s]
    #[arg(long, value_name = "TIME")]
    pub(crate) election_timeout: Option<Span>,
    /// How often a leader with nothing to say is heard [default: a quarter of the election timeout]
    #[arg(long, value_name = "TIME")]
    pub(crate) heartbeat_interval: Option<Span>,
}

impl BrokerArgs {
    pub(crate) fn layer(self) -> Layer {
        Layer {
            broker: self.broker.into(),
            username: self.username,
            password_file: self.password_file,
            ca: self.ca,
            cert: self.cert,
            key: self.private_key,
            ..Layer::default()
        }
    }
}

impl ConnectionArgs {
    pub(crate) fn layer(self) -> Layer {
        Layer {
            cluster: self.cluster,
            prefix: self.prefix,
            key_file: self.key_file,
            insecure: self.insecure,
            timeout: self.timeout,
            ..self.broker.layer()
        }
    }
}

impl NodeArgs {
    pub(crate) fn layer(self, connection: ConnectionArgs) -> Layer {
        Layer {
            id: self.id,
            voters: self.voters.into(),
            expect: self.expect,
            data_dir: self.data_dir,
            metric: self.metric,
            tags: self.tags.into_iter().collect(),
            election_timeout: self.election_timeout,
            heartbeat_interval: self.heartbeat_interval,
            hand_over_after: self.hand_over_after,
            hand_over_margin: self.hand_over_margin,
            hand_over_tenure: self.hand_over_tenure,
            autopilot: self.autopilot,
            autopilot_dwell: self.autopilot_dwell,
            frame_version: self.frame_version,
            legacy: LegacySection::of(self.legacy_prefix),
            requests: RequestsSection::of(self.requests, self.request_write),
            mirror: MirrorSection::of(self.mirror),
            homeassistant: HomeAssistantSection::of(self.homeassistant_prefix),
            ..connection.layer()
        }
    }
}

/// What is run when something is ours.
pub(crate) enum Program {
    Run(RunArgs),
    Lock(LockArgs),
}

impl RunArgs {
    /// What of it can stand in the environment and the file as well.
    pub(crate) fn layer(&mut self, connection: ConnectionArgs) -> Layer {
        Layer {
            id: self.id.take(),
            ..connection.layer()
        }
    }
}

fn tag(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("say KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
