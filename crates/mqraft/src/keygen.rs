//! A new cluster key, to stdout or to a file that only its owner can read.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cli::Format;
use crate::exit::{Exit, Failure};
use crate::output;

pub(crate) fn run(file: Option<PathBuf>, format: Format) -> Result<(), Failure> {
    let key = raft_over_mqtt::generate_cluster_key()?.to_text();
    match file {
        None => output::answer(format, || key.clone(), || json!({ "cluster_key": key })),
        Some(path) => {
            write(&path, &key)?;
            let shown = path.display().to_string();
            output::answer(
                format,
                || format!("wrote {shown}: copy it to every node and give it as --key-file"),
                || json!({ "key_file": shown }),
            );
        }
    }
    Ok(())
}

/// Never over an existing file: the key in it may be the only copy.
pub(crate) fn write(path: &Path, key: &str) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options
        .open(path)
        .and_then(|mut file| writeln!(file, "{key}").and_then(|()| file.sync_all()));
    written.map_err(|error| {
        Failure::new(
            Exit::Disk,
            format!("cannot write {}: {error}", path.display()),
        )
    })
}
