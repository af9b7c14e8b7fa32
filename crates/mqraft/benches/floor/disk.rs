//! The cheapest durable append: one write and one fdatasync into blocks that exist already.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Filled within a second. A fast stream returns to the start several times, as a log does that
/// recycles its segments.
const FILE_BYTES: u64 = 32 << 20;

/// A larger piece leaves large folios in the page cache, which made each sync 2 to 4 % slower.
const FILL_BYTES: usize = 64 << 10;

/// A file that records are appended to; at its end it starts over.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    end: u64,
}

impl Log {
    /// Creates a file of zeros and syncs it: a later fdatasync then carries data only, no
    /// block map and no new length.
    pub(super) fn preallocate(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        let zeros = [0; FILL_BYTES];
        for at in (0..FILE_BYTES).step_by(FILL_BYTES) {
            file.write_all_at(&zeros, at)?;
        }
        file.sync_all()?;
        Ok(Self { file, end: 0 })
    }

    /// Writes behind the last record; durable only after [`Log::sync`].
    pub(super) fn write(&mut self, record: &[u8]) -> io::Result<()> {
        let length = record.len() as u64;
        if self.end + length > FILE_BYTES {
            self.end = 0;
        }
        self.file.write_all_at(record, self.end)?;
        self.end += length;
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
