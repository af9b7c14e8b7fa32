//! One file of the log: a header, then frames, then zeros up to the end.
//!
//! The file gets its full length in zeros that are really written and synced before its first frame,
//! because a sync that only overwrites is the cheapest one a file system has
//! (docs/bench/redb-vs-fdatasync.txt), and because those zeros are what the judgement in
//! [`crate::frame`] rests on. It gets its name only after that, so a segment by name is whole.

use crc32c::{crc32c, crc32c_append};
use raft::NodeKey;

use crate::disk::{Disk, DiskFile, read_all};
use crate::error::{DiskError, Doing, OpenError};
use crate::files;
use crate::frame::{self, Place};

/// The format of everything in the directory.
pub(crate) const FORMAT: u32 = 1;

/// The bytes before the first frame.
pub(crate) const HEADER: usize = 64;

const MAGIC: &[u8; 8] = b"RoMwal\r\n";

/// The share of a new segment that one step of preparation writes and syncs.
const STEP: usize = 128 << 10;

/// A segment that is being written.
#[derive(Debug)]
pub(crate) struct Active<F> {
    pub(crate) name: String,
    pub(crate) sequence: u64,
    pub(crate) file: F,
    /// The length of the file.
    pub(crate) size: usize,
    /// Where the next frame goes.
    pub(crate) end: usize,
    pub(crate) place: Place,
}

impl<F> Active<F> {
    pub(crate) fn has_room_for(&self, frame: usize) -> bool {
        self.end + frame <= self.size
    }

    /// Whether more than one part in `parts` of it is written.
    pub(crate) fn is_filled_beyond(&self, parts: usize) -> bool {
        self.end > self.size / parts
    }
}

/// A segment on its way, zeroed step by step so that no write has to wait for all of it.
#[derive(Debug)]
pub(crate) struct Preparation<F> {
    file: F,
    sequence: u64,
    key: NodeKey,
    size: usize,
    zeroed: usize,
}

impl<F: DiskFile> Preparation<F> {
    pub(crate) fn begin<D: Disk<File = F>>(
        disk: &D,
        key: NodeKey,
        sequence: u64,
        size: usize,
    ) -> Result<Preparation<F>, DiskError> {
        let name = files::SEGMENT_TMP;
        Ok(Preparation {
            file: disk.create(name).doing("create", name)?,
            sequence,
            key,
            size,
            zeroed: 0,
        })
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    pub(crate) fn is_zeroed(&self) -> bool {
        self.zeroed == self.size
    }

    /// Zeros the next share.
    pub(crate) fn step(&mut self) -> Result<(), DiskError> {
        // Small writes: the page cache then takes pages, not large folios, of which every later
        // append would have to write back more (docs/bench/redb-vs-fdatasync.txt, C).
        const PIECE: usize = 16 << 10;
        let name = files::SEGMENT_TMP;
        let until = self.size.min(self.zeroed + STEP);
        while self.zeroed < until {
            let piece = PIECE.min(until - self.zeroed);
            self.file
                .write_all_at(&[0; PIECE][..piece], self.zeroed as u64)
                .doing("write", name)?;
            self.zeroed += piece;
        }
        self.file.sync_data().doing("sync", name)
    }

    /// Gives the zeroed file its header and its name.
    pub(crate) fn finish<D: Disk<File = F>>(self, disk: &D) -> Result<Active<F>, DiskError> {
        assert!(self.is_zeroed(), "a segment by name is whole");
        let name = files::segment(self.sequence);
        let header = encode_header(self.key, self.sequence, self.size);
        self.file
            .write_all_at(&header, 0)
            .doing("write", files::SEGMENT_TMP)?;
        self.file.sync_data().doing("sync", files::SEGMENT_TMP)?;
        disk.rename(files::SEGMENT_TMP, &name)
            .doing("rename", &name)?;
        disk.sync_dir().doing("sync", &disk.describe())?;
        Ok(Active {
            name,
            sequence: self.sequence,
            file: self.file,
            size: self.size,
            end: HEADER,
            place: Place::new(self.key, self.sequence),
        })
    }
}

fn encode_header(key: NodeKey, sequence: u64, size: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    header[16..24].copy_from_slice(&sequence.to_le_bytes());
    header[24..32].copy_from_slice(&(size as u64).to_le_bytes());
    header[32..48].copy_from_slice(&key.to_bytes());
    let crc = header_crc(&header);
    header[12..16].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Over everything but the checksum's own place.
fn header_crc(header: &[u8; HEADER]) -> u32 {
    crc32c_append(crc32c(&header[..12]), &header[16..])
}

/// A segment as found on disk.
#[derive(Debug)]
pub(crate) struct Found<F> {
    pub(crate) name: String,
    pub(crate) sequence: u64,
    pub(crate) file: F,
    pub(crate) bytes: Vec<u8>,
    pub(crate) place: Place,
}

impl<F: DiskFile> Found<F> {
    /// Reads a whole segment and checks its header.
    pub(crate) fn read<D: Disk<File = F>>(
        disk: &D,
        key: NodeKey,
        sequence: u64,
    ) -> Result<Found<F>, OpenError> {
        let name = files::segment(sequence);
        let file = disk.open(&name).doing("open", &name)?;
        let size = file.size().doing("read", &name)?;
        check_header(&name, &file, key, sequence, size)?;
        Ok(Found {
            bytes: read_all(&file, size).doing("read", &name)?,
            place: Place::new(key, sequence),
            name,
            sequence,
            file,
        })
    }

    /// Whether the log's first segment holds anything behind the batch that opens it. Asked when
    /// there is no identity to tell the key, which is therefore taken from the file.
    pub(crate) fn is_used<D: Disk<File = F>>(disk: &D, name: &str) -> Result<bool, OpenError> {
        let file = disk.open(name).doing("open", name)?;
        let size = file.size().doing("read", name)?;
        let mut header = [0; HEADER];
        if size < HEADER as u64 || size > (2 * frame::LARGEST) as u64 {
            return Ok(true);
        }
        file.read_exact_at(&mut header, 0).doing("read", name)?;
        let key: &[u8; 16] = header[32..].first_chunk().expect("48 bytes");
        let key = NodeKey::from_bytes(*key);
        if header != encode_header(key, 1, size as usize) {
            return Ok(true);
        }
        let bytes = read_all(&file, size).doing("read", name)?;
        let place = Place::new(key, 1);
        let end = frame::read(&bytes, HEADER, place).map_or(size as usize, |f| f.header.end);
        Ok(!frame::is_zero(&bytes[end..]) || frame::find(&bytes, HEADER + 1, place).is_some())
    }

    pub(crate) fn rot(&self, offset: usize, what: impl Into<String>) -> OpenError {
        OpenError::Rot {
            file: self.name.clone(),
            offset: offset as u64,
            what: what.into(),
        }
    }

    /// The segment as the one to write on, from `end`.
    pub(crate) fn into_active(self, end: usize) -> Active<F> {
        Active {
            name: self.name,
            sequence: self.sequence,
            file: self.file,
            size: self.bytes.len(),
            end,
            place: self.place,
        }
    }
}

fn check_header(
    name: &str,
    file: &impl DiskFile,
    key: NodeKey,
    sequence: u64,
    size: u64,
) -> Result<(), OpenError> {
    let rot = |offset: u64, what: &str| {
        Err(OpenError::Rot {
            file: name.to_owned(),
            offset,
            what: what.to_owned(),
        })
    };
    if size < HEADER as u64 {
        return rot(size, "the file is shorter than its header");
    }
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).doing("read", name)?;
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i]));
    if &header[0..8] != MAGIC || word(12) != header_crc(&header) {
        return rot(0, "the header's checksum is wrong");
    }
    if word(8) > FORMAT {
        return Err(OpenError::NewerFormat {
            file: name.to_owned(),
            found: word(8),
            supported: FORMAT,
        });
    }
    let expected = encode_header(key, sequence, usize::try_from(size).unwrap_or(usize::MAX));
    if header[16..24] != expected[16..24] {
        return rot(16, "the file was renamed");
    }
    if header[24..32] != expected[24..32] {
        return rot(24, "the file's length has changed");
    }
    if header[32..48] != expected[32..48] {
        return rot(32, "the file belongs to another node");
    }
    if header != expected || size > (2 * frame::LARGEST) as u64 {
        return rot(8, "the header says what no version writes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_header() {
        let header = encode_header(NodeKey(9), 0x102, 4 << 20);
        assert_eq!(&header[..12], b"RoMwal\r\n\x01\0\0\0");
        assert_eq!(header[12..16], [0xae, 0x69, 0xf0, 0x3a]);
        assert_eq!(&header[16..32], b"\x02\x01\0\0\0\0\0\0\0\0\x40\0\0\0\0\0");
        assert_eq!(header[32..48], NodeKey(9).to_bytes());
        assert!(frame::is_zero(&header[48..]));
    }
}
