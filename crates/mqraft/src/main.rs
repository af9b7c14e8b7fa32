//! `mqraft`: a node, the questions one asks a cluster, and a demonstration.
//!
//! The binary knows the library and nothing below it. `cli.rs` holds the words, `settings.rs`
//! where their values come from, `exit.rs` how a command ends; a file for each kind of command
//! does the rest. One thread runs everything but the disk.

mod ask;
#[cfg(feature = "demo")]
mod bench;
mod cli;
#[cfg(feature = "demo")]
mod demo;
mod doctor;
mod duration;
mod exit;
mod homeassistant;
mod interrupt;
mod key;
mod keygen;
#[cfg(feature = "demo")]
mod local;
mod member;
mod node;
mod output;
#[cfg(target_os = "linux")]
mod run;
#[cfg(feature = "demo")]
mod screen;
mod settings;
mod snapshot;
mod state;
mod store;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use cli::{
    Cli, Command, ConnectionArgs, General, HomeAssistantCommand, KeyCommand, Program,
    SnapshotCommand,
};
use exit::{EXIT_CODES, Exit, Failure};
use settings::{Connection, Layer, NodeSettings};

fn main() -> ExitCode {
    let Cli { general, command } = Cli::parse();
    let format = general.output;
    // These two are no more than a step between mqraft and what it runs.
    #[cfg(target_os = "linux")]
    match &command {
        Command::Watchdog { command } => return run::watchdog::run(command),
        Command::Exec { parent, command } => return run::watchdog::exec(*parent, command),
        _ => {}
    }
    match execute(general, command) {
        Ok(code) => code,
        Err(failure) => {
            output::failure(format, &failure);
            failure.exit.into()
        }
    }
}

fn execute(general: General, command: Command) -> Result<ExitCode, Failure> {
    let default_level = match &command {
        Command::Node { .. } | Command::Witness { .. } | Command::Run { .. } => LevelFilter::INFO,
        _ => LevelFilter::ERROR,
    };
    start_log(general.log.as_deref(), default_level)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Stopped, format!("cannot start: {error}")))?;
    runtime.block_on(dispatch(general, command))
}

/// Runs a program; the exit code is the program's.
#[cfg(target_os = "linux")]
async fn run_program(layer: Layer, program: Program) -> Result<ExitCode, Failure> {
    let node = layer.id.clone().unwrap_or_else(run::host_name);
    let settings = program.settings(node, layer.key_file.clone());
    run::run(settings, Connection::resolve(layer)?).await
}

/// What makes a program end in time is Linux's: subreapers, timers that count suspend, the
/// parent-death signal.
#[cfg(not(target_os = "linux"))]
async fn run_program(_: Layer, _: Program) -> Result<ExitCode, Failure> {
    Err(Failure::usage(
        "`mqraft run` and `mqraft lock` work on Linux only",
    ))
}

async fn dispatch(general: General, command: Command) -> Result<ExitCode, Failure> {
    let format = general.output;
    let connect = |args: ConnectionArgs| {
        settings::read(args.layer(), general.config.clone()).and_then(Connection::resolve)
    };
    let done = match command {
        #[cfg(feature = "demo")]
        Command::Demo(args) => demo::run(args, format).await,
        #[cfg(feature = "demo")]
        Command::Bench(command) => bench::run(command, general.config, format).await,
        #[cfg(feature = "demo")]
        Command::Observers {
            count,
            name,
            connection,
        } => bench::observers(count, &name, connect(connection)?).await,
        Command::Node { connection, node } => {
            let until_stdin_closes = node.until_stdin_closes;
            let layer = settings::read(node.layer(connection), general.config.clone())?;
            node::run(
                NodeSettings::resolve(layer)?,
                false,
                until_stdin_closes,
                format,
            )
            .await
        }
        Command::Witness { connection, node } => {
            let until_stdin_closes = node.until_stdin_closes;
            let layer = settings::read(node.layer(connection), general.config.clone())?;
            node::run(
                NodeSettings::resolve(layer)?,
                true,
                until_stdin_closes,
                format,
            )
            .await
        }
        Command::Status(connection) => ask::status(connect(connection)?, format).await,
        Command::Leader { connection, watch } => match watch {
            true => ask::watch_leader(connect(connection)?, format).await,
            false => ask::leader(connect(connection)?, format).await,
        },
        Command::Members { connection, watch } => match watch {
            true => ask::watch_members(connect(connection)?, format).await,
            false => ask::members(connect(connection)?, format).await,
        },
        Command::Member(command) => {
            let (command, connection) = command.split();
            member::run(connect(connection)?, command, format).await
        }
        Command::Transfer { node, connection } => {
            member::transfer(connect(connection)?, node, format).await
        }
        Command::Settings {
            lease,
            drift,
            lease_reads,
            connection,
        } => {
            let wanted = member::Wanted {
                lease,
                drift,
                lease_reads,
            };
            member::settings(connect(connection)?, wanted, format).await
        }
        Command::Put {
            key,
            value,
            file,
            lease,
            connection,
        } => {
            let (connection, value) = (connect(connection)?, store::value(value, file)?);
            match lease {
                None => store::put(connection, key, value, format).await,
                Some(lease) => state::put_with_lease(connection, key, value, lease, format).await,
            }
        }
        Command::Get {
            key,
            stale,
            from,
            connection,
        } => match stale {
            true => store::get_stale(connect(connection)?, key, from, format).await,
            false => store::get(connect(connection)?, key, format).await,
        },
        Command::Delete {
            key,
            all,
            connection,
        } => match all {
            true => state::delete_prefix(connect(connection)?, key, format).await,
            false => store::delete(connect(connection)?, key, format).await,
        },
        Command::State(mut command) => {
            let layer = settings::read(command.connection().layer(), general.config.clone())?;
            let id = layer.id.clone();
            state::run(Connection::resolve(layer)?, id, command, format).await
        }
        Command::Cas {
            key,
            value,
            expect,
            absent: _,
            connection,
        } => store::cas(connect(connection)?, key, expect, value, format).await,
        Command::Run {
            mut run,
            connection,
        } => {
            let layer = settings::read(run.layer(connection), general.config)?;
            return run_program(layer, Program::Run(run)).await;
        }
        Command::Lock { lock, connection } => {
            let layer = settings::read(connection.layer(), general.config)?;
            return run_program(layer, Program::Lock(lock)).await;
        }
        #[cfg(target_os = "linux")]
        Command::Watchdog { .. } | Command::Exec { .. } => unreachable!("a process of its own"),
        Command::Keygen { file } => keygen::run(file, format),
        Command::Key(command) => match command {
            KeyCommand::Rotate { key_file, step } => key::rotate(&key_file, step.step(), format),
            KeyCommand::Status(connection) => key::status(connect(*connection)?, format).await,
        },
        Command::Snapshot(command) => match command {
            SnapshotCommand::Save {
                file,
                from,
                stale,
                connection,
            } => snapshot::save(connect(connection)?, file, from, stale, format).await,
            SnapshotCommand::Inspect { file } => snapshot::inspect(&file, format),
            SnapshotCommand::Restore {
                file,
                data_dir,
                id,
                cluster,
            } => snapshot::restore(&file, &data_dir, &id, cluster.as_deref(), format),
        },
        Command::Recover {
            is_unsafe,
            data_dir,
            to,
            id,
        } => snapshot::recover(&data_dir, &to, id.as_deref(), is_unsafe, format),
        Command::Homeassistant(HomeAssistantCommand::Remove {
            homeassistant_prefix,
            connection,
        }) => {
            let mut layer = settings::read(connection.layer(), general.config.clone())?;
            let section = layer.homeassistant.take().map(|section| section.prefix);
            let prefix = homeassistant_prefix.or(section);
            let prefix = prefix.unwrap_or_else(settings::discovery_prefix);
            homeassistant::remove(Connection::resolve(layer)?, &prefix, format).await
        }
        Command::Doctor { connection, doctor } => {
            let (node, wanted) = doctor::Wanted::of(*doctor);
            let layer = settings::read(node.layer(connection), general.config.clone())?;
            doctor::run(layer, wanted, format).await
        }
        Command::Completions { shell } => {
            // Into memory first: the generator panics if whoever reads has had enough.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "mqraft", &mut script);
            use std::io::Write as _;
            let _ = std::io::stdout().write_all(&script);
            Ok(())
        }
        Command::ExitCodes => {
            output::line(EXIT_CODES);
            Ok(())
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Logs go to stderr. `Targets` is the filter without regular expressions: a third of the size.
fn start_log(filter: Option<&str>, default: LevelFilter) -> Result<(), Failure> {
    let from_env = std::env::var("RUST_LOG")
        .ok()
        .filter(|text| !text.is_empty());
    let targets = match filter.map(str::to_owned).or(from_env) {
        Some(text) => text
            .parse::<Targets>()
            .map_err(|error| Failure::usage(format!("log filter {text:?}: {error}")))?,
        None => Targets::new().with_default(default),
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false);
    tracing_subscriber::registry()
        .with(targets)
        .with(lines)
        .init();
    Ok(())
}
