//! A directory as the store needs it: the seam where the simulator puts a crashing disk.
//!
//! The trait is as small as the store allows, so that its second implementation,
//! [`CrashDisk`](crate::CrashDisk), can say for each operation what a power cut leaves of it. The
//! rules both keep: bytes are durable after [`DiskFile::sync_data`], names after
//! [`Disk::sync_dir`], and before that anything may or may not be there.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// One flat directory of files.
pub trait Disk {
    /// An open file of this disk.
    type File: DiskFile;

    /// The directory, for messages.
    fn describe(&self) -> String;

    /// Takes the directory for this process until the disk is dropped.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when another holds it; whatever the disk says otherwise.
    fn lock(&mut self) -> io::Result<()>;

    /// The names of all files except the lock, in order.
    ///
    /// # Errors
    /// What the disk says.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens a file to read and write.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is none; whatever the disk says otherwise.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Makes an empty file, in place of one of that name. The name is durable after
    /// [`Disk::sync_dir`].
    ///
    /// # Errors
    /// What the disk says.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Gives a file another name, in place of a file that has it. Durable after
    /// [`Disk::sync_dir`]; until then the old state may come back, never half of each.
    ///
    /// # Errors
    /// What the disk says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. Durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// What the disk says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes the names durable.
    ///
    /// # Errors
    /// What the disk says.
    fn sync_dir(&self) -> io::Result<()>;
}

/// An open file, read and written at explicit offsets.
pub trait DiskFile {
    /// The file's length in bytes.
    ///
    /// # Errors
    /// What the disk says.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] when the file ends before that; what the disk says otherwise.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`, growing the file where needed.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] when there is no room; what the disk says otherwise.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes everything written so far durable, and the length with it (`fdatasync`).
    ///
    /// # Errors
    /// What the disk says. After an error the bytes may be gone even if a later call succeeds.
    fn sync_data(&self) -> io::Result<()>;
}

/// The whole of `file`, which the caller has found to be `size` bytes long.
pub(crate) fn read_all(file: &impl DiskFile, size: u64) -> io::Result<Vec<u8>> {
    let size = usize::try_from(size).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut bytes = Vec::new();
    // A damaged directory may hold a file of any size: an error is better than an abort.
    bytes
        .try_reserve_exact(size)
        .map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes.resize(size, 0);
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// A directory of the file system.
#[derive(Debug)]
pub struct RealDisk {
    path: PathBuf,
    /// Nothing in it is to change.
    read_only: bool,
    /// Held for as long as the disk is: the kernel lets go of it when the process ends.
    lock: Option<File>,
}

const LOCK: &str = "LOCK";

impl RealDisk {
    /// The directory at `path`, made where it does not exist.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(path: impl AsRef<Path>) -> io::Result<RealDisk> {
        let path = path.as_ref().to_path_buf();
        if !path.is_dir() {
            fs::create_dir_all(&path)?;
            // The new name is durable only once its parent is; deeper ancestors are the operator's.
            if let Some(parent) = fs::canonicalize(&path)?.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(RealDisk {
            path,
            read_only: false,
            lock: None,
        })
    }

    /// The directory at `path` to be read only, held so that no node starts on it meanwhile. It may
    /// stand on a medium that cannot be written.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when a node has it; [`io::ErrorKind::NotADirectory`] or what
    /// the disk says when there is no such directory.
    pub fn read_only(path: impl AsRef<Path>) -> io::Result<RealDisk> {
        let path = path.as_ref().to_path_buf();
        if !fs::metadata(&path)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let lock = match File::open(path.join(LOCK)) {
            Ok(lock) => Some(lock),
            // A copy may lack it; nobody runs on a directory without one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(lock) = &lock {
            lock.try_lock().map_err(|error| match error {
                TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
                TryLockError::Error(error) => error,
            })?;
        }
        Ok(RealDisk {
            path,
            read_only: true,
            lock,
        })
    }

    fn refuse_if_read_only(&self) -> io::Result<()> {
        match self.read_only {
            true => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            false => Ok(()),
        }
    }
}

impl Disk for RealDisk {
    type File = RealFile;

    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn lock(&mut self) -> io::Result<()> {
        self.refuse_if_read_only()?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.path.join(LOCK))?;
        match file.try_lock() {
            Ok(()) => {
                self.lock = Some(file);
                Ok(())
            }
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != LOCK {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<RealFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(!self.read_only)
            .open(self.path.join(name))?;
        Ok(RealFile { file })
    }

    fn create(&self, name: &str) -> io::Result<RealFile> {
        self.refuse_if_read_only()?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.path.join(name))?;
        Ok(RealFile { file })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.refuse_if_read_only()?;
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.refuse_if_read_only()?;
        fs::remove_file(self.path.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

/// A file of a [`RealDisk`].
#[derive(Debug)]
pub struct RealFile {
    file: File,
}

impl DiskFile for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
