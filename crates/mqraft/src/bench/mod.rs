//! `mqraft bench`: what a broker takes, and what a cluster takes on it, measured in one run.
//!
//! Each measure starts a throw-away cluster of its own (`stage.rs`), prints what the broker and the disk
//! take without a cluster (`floor.rs`) beside what the cluster takes, and leaves nothing behind. What
//! the figures mean, and what to compare, is in docs/bench.md.

mod failover;
mod fanout;
mod floor;
mod latency;
mod presence;
mod report;
mod samples;
mod stage;
mod thread;
mod throughput;
mod view;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

pub(crate) use presence::observers;

use crate::cli::bench::ValueArgs;
use crate::cli::{BenchCommand, Format};
use crate::exit::Failure;
use crate::interrupt::interrupted;
use report::Report;
use stage::Stage;

/// The fewest voters of which one can die.
const MIN_VOTERS: u8 = 3;

pub(crate) async fn run(
    mut command: BenchCommand,
    config: Option<PathBuf>,
    format: Format,
) -> Result<(), Failure> {
    let interrupted = interrupted()?;
    let args = command.take_common();
    let kills = matches!(command, BenchCommand::Failover { .. });
    if kills && args.voters < MIN_VOTERS {
        return Err(Failure::usage(
            "of a single voter none may die, since a majority must remain: give --voters 3 or more",
        ));
    }
    // Only who kills the leader has to be told who it is.
    let mut stage = Stage::set(command.name(), args, config, kills, format).await?;
    describe(&command, &mut stage.report);
    let complete = tokio::select! {
        measured = measure(&mut stage, command) => measured.map(|()| true),
        () = interrupted => Ok(false),
    };
    let struck = stage.strike(complete.as_ref().ok().copied()).await;
    complete.and(struck)
}

/// Says in the answer how much is measured.
fn describe(command: &BenchCommand, report: &mut Report) {
    let size = |value: &ValueArgs| ("size", value.size);
    let numbers = match command {
        BenchCommand::Latency { puts, value, .. } => vec![("puts", *puts), size(value)],
        BenchCommand::Throughput {
            clients,
            seconds,
            value,
            ..
        } => vec![("clients", *clients), ("seconds", *seconds), size(value)],
        BenchCommand::Failover {
            kills, transfers, ..
        } => vec![("kills", *kills), ("transfers", *transfers)],
        BenchCommand::Fanout {
            watchers,
            puts,
            value,
            ..
        } => vec![("watchers", *watchers), ("puts", *puts), size(value)],
        BenchCommand::Presence {
            observers, kills, ..
        } => vec![("observers", *observers), ("kills", *kills)],
    };
    let settings = numbers.into_iter();
    let settings = settings.map(|(name, number)| (name.to_owned(), json!(number)));
    report.setting.extend(settings);
}

async fn measure(stage: &mut Stage, command: BenchCommand) -> Result<(), Failure> {
    match command {
        BenchCommand::Latency { puts, value, .. } => {
            latency::measure(stage, puts, value.size as usize).await
        }
        BenchCommand::Throughput {
            clients,
            seconds,
            value,
            ..
        } => {
            let time = Duration::from_secs(seconds.into());
            throughput::measure(stage, clients as usize, value.size as usize, time).await
        }
        BenchCommand::Failover {
            kills, transfers, ..
        } => failover::measure(stage, kills, transfers).await,
        BenchCommand::Fanout {
            watchers,
            puts,
            value,
            ..
        } => fanout::measure(stage, watchers, puts, value.size as usize).await,
        BenchCommand::Presence {
            observers, kills, ..
        } => presence::measure(stage, observers, kills).await,
    }
}
