//! What can go wrong, by what the operator or the owner can do about it.

use std::io;

/// Why a directory could not be opened. Nothing in it was changed, unless an error of the disk says
/// that a change failed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the directory.
    #[error(
        "{path} is in use by another process: stop that one, or give this node a data directory of its own"
    )]
    Locked {
        /// The directory.
        path: String,
    },
    /// The disk refused. Not damage: nothing is known about the bytes.
    #[error(
        "cannot {operation} {file}: {source}: check permissions and the disk, then start again"
    )]
    Unreadable {
        /// The file or directory.
        file: String,
        /// What was tried.
        operation: &'static str,
        /// What the disk said.
        source: io::Error,
    },
    /// No room for what opening must write.
    #[error("no space left for {file}: free some and start again, nothing is lost")]
    DiskFull {
        /// The file that could not be written.
        file: String,
    },
    /// The directory holds files that are not ours and no node's identity.
    #[error(
        "{path} holds {file}, which is not this program's: choose an empty directory for the node's data"
    )]
    ForeignDirectory {
        /// The directory.
        path: String,
        /// The first such file.
        file: String,
    },
    /// A newer version of this program wrote the directory.
    #[error(
        "{file} has format {found}, this program knows formats up to {supported}: start the newer version again"
    )]
    NewerFormat {
        /// The file.
        file: String,
        /// Its format.
        found: u32,
        /// The newest that we can read.
        supported: u32,
    },
    /// The directory belongs to a node of another name or cluster.
    #[error(
        "the data directory belongs to {what} {found:?}, but this node was started as {expected:?}: \
         start it under its own {what} or give it a directory of its own"
    )]
    OtherNode {
        /// `"node"` or `"cluster"`.
        what: &'static str,
        /// The name this node was started with.
        expected: String,
        /// The name in the directory.
        found: String,
    },
    /// Bytes that were durable have changed.
    #[error(
        "{file} is damaged at byte {offset}: {what}: do not delete single files; let this node rejoin \
         with an empty directory, and look at the disk"
    )]
    Rot {
        /// The damaged file.
        file: String,
        /// Where, in bytes from its start.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// A file that must be there is not.
    #[error("{file} is missing: put it back, or let this node rejoin with an empty directory")]
    Missing {
        /// The file.
        file: String,
    },
    /// The checksum is right, but this program cannot read what it protects.
    #[error(
        "{file} holds at byte {offset} what this version cannot read ({what}): start the version that \
         wrote it"
    )]
    Undecodable {
        /// The file.
        file: String,
        /// Where, in bytes from its start.
        offset: u64,
        /// What the decoder said.
        what: String,
    },
}

/// Why a write was not made durable. After any of these the node must stop: what is on disk is
/// known again only after [`crate::Store::open`].
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// No room.
    #[error(
        "no space left for {file}: nothing acknowledged is lost; free some and start the node again"
    )]
    DiskFull {
        /// The file that could not be written.
        file: String,
    },
    /// The disk refused a write or a sync. A sync is never tried again: after a failure the page
    /// cache may have dropped the bytes, and the next sync would report success without them.
    #[error("cannot {operation} {file}: {source}: the node must stop; check the disk")]
    Failed {
        /// The file or directory.
        file: String,
        /// What was tried.
        operation: &'static str,
        /// What the disk said.
        source: io::Error,
    },
    /// An earlier write failed, so this one was not tried.
    #[error("the store is closed since an earlier write failed: {first}")]
    Closed {
        /// What that write said.
        first: String,
    },
    /// The batch is larger than a log file may be.
    #[error("a batch of {size} bytes is above the largest that the log takes, {limit}")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// The largest size in bytes.
        limit: usize,
    },
}

/// What an operation on the disk gave, before it is known who asked for it.
#[derive(Debug)]
pub(crate) struct DiskError {
    pub(crate) file: String,
    pub(crate) operation: &'static str,
    pub(crate) source: io::Error,
}

impl DiskError {
    fn is_full(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

impl From<DiskError> for OpenError {
    fn from(error: DiskError) -> OpenError {
        if error.is_full() {
            return OpenError::DiskFull { file: error.file };
        }
        OpenError::Unreadable {
            file: error.file,
            operation: error.operation,
            source: error.source,
        }
    }
}

impl From<DiskError> for WriteError {
    fn from(error: DiskError) -> WriteError {
        if error.is_full() {
            return WriteError::DiskFull { file: error.file };
        }
        WriteError::Failed {
            file: error.file,
            operation: error.operation,
            source: error.source,
        }
    }
}

/// Names the file and the operation that an I/O error belongs to.
pub(crate) trait Doing<T> {
    fn doing(self, operation: &'static str, file: &str) -> Result<T, DiskError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, operation: &'static str, file: &str) -> Result<T, DiskError> {
        self.map_err(|source| DiskError {
            file: file.to_owned(),
            operation,
            source,
        })
    }
}
