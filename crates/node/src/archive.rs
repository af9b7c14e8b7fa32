//! A cluster's state outside of it: saved as a file, restored or recovered as a new cluster.
//!
//! Nothing here talks to a broker; [`crate::Remote::save_snapshot`] gets the state. Making a data
//! directory takes two writes, the log and then the record that makes it a formed cluster's: a node
//! refuses a directory that has the one without the other.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use raft::{Durable, NodeKey, PersistSeq};
use replica::{Founder, Founding, SavedSnapshot, Survivor};
use store::{OpenError, RealDisk, Store, StoreOptions};

use crate::error::{Error, Result};
use crate::node::{checked, random};

/// Reads a saved snapshot and checks that it is whole.
///
/// # Errors
/// [`Error::File`] when it cannot be read, [`Error::Snapshot`] when it is no snapshot or damaged.
pub fn read_snapshot(path: impl AsRef<Path>) -> Result<SavedSnapshot> {
    let path = path.as_ref();
    let bytes = fs::read(path).map_err(file_error(path, "read"))?;
    SavedSnapshot::from_bytes(&bytes.into()).map_err(|source| Error::Snapshot {
        path: path.to_path_buf(),
        source,
    })
}

/// Writes a snapshot to a file, see [`replace_file`]: one of that name stays until the new one is
/// complete on disk. Returns its size in bytes.
///
/// # Errors
/// [`Error::File`].
pub fn write_snapshot(path: impl AsRef<Path>, snapshot: &SavedSnapshot) -> Result<u64> {
    let bytes = snapshot.to_bytes();
    replace_file(path.as_ref(), &bytes)?;
    Ok(bytes.len() as u64)
}

/// Puts `bytes` in the place of the file at `path`: all of them or none, whatever happens meanwhile.
/// A new file can be read by its owner only; one that is replaced leaves its owner and its rights.
///
/// # Errors
/// [`Error::File`].
pub fn replace_file(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let written = write_new(&partial, bytes)
        .and_then(|()| take_over_rights(path, &partial))
        .and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // Only to give its space back; the first error says more.
        let _ = fs::remove_file(&partial);
    }
    written
        .and_then(|()| sync_parent(path))
        .map_err(file_error(path, "write"))
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // What a former attempt left may have another owner's rights.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Gives `new` the owner and the rights of `old`, if there is one.
fn take_over_rights(old: &Path, new: &Path) -> io::Result<()> {
    let old = match fs::metadata(old) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        old => old?,
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let ours = fs::metadata(new)?;
        if (old.uid(), old.gid()) != (ours.uid(), ours.gid()) {
            std::os::unix::fs::chown(new, Some(old.uid()), Some(old.gid()))?;
        }
    }
    fs::set_permissions(new, old.permissions())
}

/// A name is durable once its directory is.
fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

fn file_error(path: &Path, operation: &'static str) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::File {
        path,
        operation,
        source,
    }
}

/// A cluster that was made of another's state: one data directory, with one voter.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NewCluster {
    /// Its only voter's name.
    pub id: String,
    /// Its name.
    pub cluster: String,
    /// The digest of its formation record, by which its id differs from the source's.
    pub formation: [u8; 32],
    /// Where its terms, and so its fencing tokens, begin.
    pub term: u64,
    /// Where its log begins.
    pub index: u64,
    /// Where its revisions begin.
    pub revision: u64,
}

/// Makes of a snapshot a data directory of a new cluster, whose only voter is `id`. `cluster`: its
/// name; the source's where it is `None`. Other nodes start with empty directories and are added.
///
/// # Errors
/// When the directory is not empty or cannot be written, or a name is none.
pub fn restore_snapshot(
    snapshot: &SavedSnapshot,
    data_dir: impl AsRef<Path>,
    id: &str,
    cluster: Option<&str>,
) -> Result<NewCluster> {
    let cluster = cluster.unwrap_or(snapshot.meta().cluster());
    let founding = snapshot.found(founder(id)?)?;
    write_cluster(data_dir.as_ref(), id, cluster, founding)
}

/// What one node's data directory held, and what was made of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Recovery {
    /// Whose directory it was.
    pub node: String,
    /// Whether that node was a voter, in the newest configuration that it had.
    pub was_voter: bool,
    /// The voters of that configuration.
    pub voters: Vec<String>,
    /// The digest of the former cluster's formation record.
    pub formation: [u8; 32],
    /// The newest term that the node had taken part in.
    pub term: u64,
    /// The index of the last entry that it held.
    pub last_index: u64,
    /// The term of that entry.
    pub last_term: u64,
    /// Up to here the entries were committed for certain; a log does not tell it of later ones.
    pub committed_index: u64,
    /// The revision that all entries together come to.
    pub revision: u64,
    /// The keys that they come to.
    pub keys: usize,
    /// Whether a write that a power cut had left unfinished was left out.
    pub torn: bool,
    /// The new cluster.
    pub new: NewCluster,
}

/// Makes of what one node of a cluster left a data directory of a new cluster, whose only voter is
/// `id`; the node's former name where it is `None`. Every entry in it is applied, also those that
/// were perhaps never committed. The node's own directory is only read.
///
/// **What only others had is lost**, acknowledged or not. For a cluster whose majority is gone for
/// good; one that still runs goes on beside the new one.
///
/// # Errors
/// When a process runs on the directory, when it cannot be read or holds nothing, or when the new
/// one is not empty or cannot be written.
pub fn recover(
    from: impl AsRef<Path>,
    data_dir: impl AsRef<Path>,
    id: Option<&str>,
) -> Result<Recovery> {
    let from = from.as_ref();
    let disk = RealDisk::read_only(from).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => OpenError::Locked {
            path: from.display().to_string(),
        },
        _ => unreadable(from, source),
    })?;
    let store::Recovered {
        identity,
        durable,
        cut,
    } = Store::read(&disk)?;
    let survivor = Survivor::read(identity.formation.as_deref(), &durable)?;
    let id = id.unwrap_or(&identity.name);
    let founding = survivor.found(founder(id)?)?;
    let new = write_cluster(data_dir.as_ref(), id, &identity.cluster, founding)?;
    let mut voters: Vec<String> = survivor.configuration.voters.values().cloned().collect();
    voters.sort();
    Ok(Recovery {
        was_voter: survivor.configuration.is_voter(identity.key),
        voters,
        node: identity.name,
        formation: survivor.formation.digest(),
        term: survivor.term.0,
        last_index: survivor.last.index.0,
        last_term: survivor.last.term.0,
        committed_index: survivor.committed.0,
        revision: survivor.store.revision(),
        keys: survivor.store.iter().count(),
        torn: cut.is_some(),
        new,
    })
}

fn founder(id: &str) -> Result<Founder> {
    Ok(Founder {
        name: checked("node id", id)?,
        key: NodeKey(u128::from_be_bytes(random()?)),
        nonce: random()?,
    })
}

fn unreadable(path: &Path, source: io::Error) -> OpenError {
    OpenError::Unreadable {
        file: path.display().to_string(),
        operation: "open",
        source,
    }
}

fn write_cluster(
    data_dir: &Path,
    id: &str,
    cluster: &str,
    founding: Founding,
) -> Result<NewCluster> {
    checked("cluster", cluster)?;
    refuse_unless_empty(data_dir)?;
    let Founding {
        formation,
        record,
        persist,
        term,
        index,
        revision,
    } = founding;
    let (&key, _) = formation.voters.first_key_value().expect("one voter");
    let disk = RealDisk::open(data_dir).map_err(|source| unreadable(data_dir, source))?;
    let options = StoreOptions::new(id, cluster);
    let (mut store, found) = Store::open(disk, &options, || key)?;
    if found.identity.key != key || found.durable != Durable::default() {
        return Err(Error::NotEmpty(data_dir.to_path_buf()));
    }
    let written = store.write(&[persist]).map_err(disk_error)?;
    debug_assert_eq!(written, PersistSeq(1));
    // Last: what has a record is whole.
    store.set_formation(record).map_err(disk_error)?;
    Ok(NewCluster {
        id: id.to_owned(),
        cluster: cluster.to_owned(),
        formation: formation.digest(),
        term: term.0,
        index: index.0,
        revision,
    })
}

fn disk_error(error: store::WriteError) -> Error {
    Error::Disk(std::sync::Arc::new(error))
}

fn refuse_unless_empty(data_dir: &Path) -> Result<()> {
    let entries = match fs::read_dir(data_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|source| unreadable(data_dir, source))?,
    };
    // A mount point may hold the file system's own directory.
    let others = |name: &std::ffi::OsString| name != "lost+found";
    let mut names = entries.flatten().map(|entry| entry.file_name());
    match names.find(others) {
        Some(_) => Err(Error::NotEmpty(PathBuf::from(data_dir))),
        None => Ok(()),
    }
}
