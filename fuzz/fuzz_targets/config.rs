//! The configuration file and the command line of `mqraft`.

#![no_main]
#![allow(
    dead_code,
    reason = "whole files of the product are compiled in here, and a target calls a part of each"
)]

// The program is no library; its files are compiled here.
#[path = "../../crates/mqraft/src/cli.rs"]
mod cli;
#[path = "../../crates/mqraft/src/duration.rs"]
mod duration;
#[path = "../../crates/mqraft/src/exit.rs"]
mod exit;
#[path = "../../crates/mqraft/src/settings.rs"]
mod settings;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use clap::Parser;
use cli::{Cli, Command, SnapshotCommand};
use libfuzzer_sys::fuzz_target;
use settings::{Connection, Layer, NodeSettings};

/// Without the files that it names: an input is not to read what is on this machine.
fn without_files(layer: Layer) -> Layer {
    Layer {
        password_file: None,
        key_file: None,
        insecure: layer.insecure || layer.key_file.is_some(),
        ..layer
    }
}

fn file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    for of_node in [true, false] {
        if let Ok(layer) = toml::from_str::<Layer>(text) {
            match of_node {
                true => drop(NodeSettings::resolve(without_files(layer))),
                false => drop(Connection::resolve(without_files(layer))),
            }
        }
    }
}

fn command_line(bytes: &[u8]) {
    let arguments = bytes.split(|byte| *byte == b'\n');
    let arguments = arguments.map(|argument| OsString::from_vec(argument.to_vec()));
    let program = std::iter::once(OsString::from("mqraft"));
    let cli = match Cli::try_parse_from(program.chain(arguments)) {
        Ok(cli) => cli,
        Err(error) => {
            assert!(!error.to_string().is_empty(), "a refusal says why");
            return;
        }
    };
    match cli.command {
        Command::Node { connection, node } | Command::Witness { connection, node } => {
            drop(NodeSettings::resolve(without_files(node.layer(connection))));
        }
        Command::Status(connection)
        | Command::Members { connection, .. }
        | Command::Leader { connection, .. }
        | Command::Put { connection, .. }
        | Command::Get { connection, .. }
        | Command::Delete { connection, .. }
        | Command::Cas { connection, .. }
        | Command::Transfer { connection, .. }
        | Command::Settings { connection, .. }
        | Command::Snapshot(SnapshotCommand::Save { connection, .. }) => {
            drop(Connection::resolve(without_files(connection.layer())));
        }
        Command::Member(command) => {
            let (_, connection) = command.split();
            drop(Connection::resolve(without_files(connection.layer())));
        }
        Command::State(mut command) => {
            let connection = command.connection();
            drop(Connection::resolve(without_files(connection.layer())));
        }
        Command::Run {
            mut run,
            connection,
        } => {
            drop(Connection::resolve(without_files(run.layer(connection))));
        }
        Command::Lock { connection, .. } => {
            drop(Connection::resolve(without_files(connection.layer())));
        }
        Command::Doctor { connection, doctor } => {
            let layer = without_files(doctor.node.layer(connection));
            drop(Connection::resolve(layer));
        }
        Command::Watchdog { .. }
        | Command::Exec { .. }
        | Command::Homeassistant(_)
        | Command::Keygen { .. }
        | Command::Key(_)
        | Command::Snapshot(_)
        | Command::Recover { .. }
        | Command::Completions { .. }
        | Command::ExitCodes => {}
    }
}

fuzz_target!(|data: &[u8]| match data.split_first() {
    Some((kind, text)) if kind % 4 == 0 => command_line(text),
    Some((_, text)) => file(text),
    None => {}
});
