//! The words of `mqraft bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::BrokerArgs;
use crate::duration::Span;

/// What is measured.
#[derive(Subcommand)]
pub(crate) enum BenchCommand {
    /// How long one put after the other takes: at the leader, at a follower, and over MQTT.
    Latency {
        /// How many puts of each kind.
        #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = count(100_000))]
        puts: u32,
        #[command(flatten)]
        value: ValueArgs,
        #[command(flatten)]
        common: BenchArgs,
    },
    /// How many puts a second many clients get done, at the leader and over MQTT.
    Throughput {
        /// How many have a put under way at any time.
        #[arg(long, value_name = "N", default_value_t = 64, value_parser = count(4_096))]
        clients: u32,
        /// For how long, for each way.
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = count(600))]
        seconds: u32,
        #[command(flatten)]
        value: ValueArgs,
        #[command(flatten)]
        common: BenchArgs,
    },
    /// How long it takes until another node leads: after kill -9, and after a hand-over.
    Failover {
        /// How often the leader is killed.
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = count(10_000))]
        kills: u32,
        /// How often the lead is handed over.
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=10_000))]
        transfers: u32,
        #[command(flatten)]
        common: BenchArgs,
    },
    /// How long it takes until the last of many watchers has seen a put, and what the leader
    /// publishes for it.
    Fanout {
        /// How many watch: observers that hold the state, all in this process.
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = count(1_000))]
        watchers: u32,
        /// How many puts, one after the other.
        #[arg(long, value_name = "N", default_value_t = 200, value_parser = count(100_000))]
        puts: u32,
        #[command(flatten)]
        value: ValueArgs,
        #[command(flatten)]
        common: BenchArgs,
    },
    /// How long it takes until the cluster has agreed that observers are there, and that one is gone.
    Presence {
        /// How many come: processes that are there and hold nothing, all of them in one here.
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = count(10_000))]
        observers: u32,
        /// How often one more comes and is killed.
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = count(1_000))]
        kills: u32,
        #[command(flatten)]
        common: BenchArgs,
    },
}

impl BenchCommand {
    /// As it is called.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            BenchCommand::Latency { .. } => "latency",
            BenchCommand::Throughput { .. } => "throughput",
            BenchCommand::Failover { .. } => "failover",
            BenchCommand::Fanout { .. } => "fanout",
            BenchCommand::Presence { .. } => "presence",
        }
    }

    /// On what it is measured; the command is left without.
    pub(crate) fn take_common(&mut self) -> BenchArgs {
        let (BenchCommand::Latency { common, .. }
        | BenchCommand::Throughput { common, .. }
        | BenchCommand::Failover { common, .. }
        | BenchCommand::Fanout { common, .. }
        | BenchCommand::Presence { common, .. }) = self;
        std::mem::take(common)
    }
}

/// What is put.
#[derive(Args)]
pub(crate) struct ValueArgs {
    /// Bytes of a value.
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = count(65_536))]
    pub(crate) size: u32,
}

/// On what it is measured: a cluster that is started for it and leaves nothing behind.
#[derive(Args, Default)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct BenchArgs {
    /// How many voters: 1, 3, 5, 7 or 9.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = voters)]
    pub(crate) voters: u8,
    /// Where the nodes' directories are made, and removed: on the disk that is to be measured
    /// [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// What stands before the cluster in every topic [default: one that nobody else has]
    #[arg(long, value_name = "PREFIX")]
    pub(crate) prefix: Option<String>,
    /// How long a voter waits for a silent leader [default: 1s]
    #[arg(long, value_name = "TIME")]
    pub(crate) election_timeout: Option<Span>,
    /// How often a leader with nothing to say is heard [default: a quarter of the election timeout]
    #[arg(long, value_name = "TIME")]
    pub(crate) heartbeat_interval: Option<Span>,
    /// How long a session with the broker, or an answer, may take [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub(crate) timeout: Option<Span>,
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,
}

/// A number from 1.
fn count(most: i64) -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=most)
}

fn voters(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(number @ (1 | 3 | 5 | 7 | 9)) => Ok(number),
        _ => Err("1, 3, 5, 7 or 9".to_owned()),
    }
}
