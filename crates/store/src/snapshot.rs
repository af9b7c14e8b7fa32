//! Snapshots: one file each, complete and durable before the log speaks of it.
//!
//! The data stands in chunks with a checksum of their own, so that damage is named by its place and
//! neither writing nor checking needs a second copy of a large state.
//!
//! The name is the position, and a position is one state (Raft's state machine safety): writing a
//! snapshot again replaces a file by one that means the same, whether or not the log gets to say so.

use bytes::{Bytes, BytesMut};
use crc32c::{crc32c, crc32c_append};
use raft::{LogPosition, NodeKey, Snapshot, SnapshotMeta};

use crate::disk::{Disk, DiskFile};
use crate::error::{DiskError, Doing, OpenError};
use crate::files;
use crate::segment::FORMAT;

const MAGIC: &[u8; 8] = b"RoMsnap\n";

/// Magic, format, checksum, key, length of the data, length of the meta.
const HEADER: usize = 44;

/// The data that one checksum covers.
const CHUNK: usize = 64 << 10;

/// A configuration holds names and keys of tens of members.
const LARGEST_META: usize = 16 << 20;

/// Makes `snapshot` durable under its name.
pub(crate) fn write<D: Disk>(disk: &D, key: NodeKey, snapshot: &Snapshot) -> Result<(), DiskError> {
    let name = files::SNAPSHOT_TMP;
    let file = disk.create(name).doing("create", name)?;
    let mut buffer = encode_head(key, snapshot);
    let mut offset = 0;
    for (number, chunk) in snapshot.data.chunks(CHUNK).enumerate() {
        buffer.extend_from_slice(&chunk_crc(number, chunk).to_le_bytes());
        buffer.extend_from_slice(chunk);
        file.write_all_at(&buffer, offset).doing("write", name)?;
        offset += buffer.len() as u64;
        buffer.clear();
    }
    file.write_all_at(&buffer, offset).doing("write", name)?;
    file.sync_data().doing("sync", name)?;
    let final_name = files::snapshot(snapshot.meta.last);
    disk.rename(name, &final_name)
        .doing("rename", &final_name)?;
    disk.sync_dir().doing("sync", &disk.describe())
}

fn encode_head(key: NodeKey, snapshot: &Snapshot) -> Vec<u8> {
    let meta = minicbor::to_vec(&snapshot.meta).expect("memory takes every byte");
    let mut head = Vec::with_capacity(HEADER + meta.len() + CHUNK + 4);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&FORMAT.to_le_bytes());
    head.extend_from_slice(&[0; 4]);
    head.extend_from_slice(&key.to_bytes());
    head.extend_from_slice(&(snapshot.data.len() as u64).to_le_bytes());
    head.extend_from_slice(&(meta.len() as u32).to_le_bytes());
    head.extend_from_slice(&meta);
    let crc = head_crc(&head);
    head[12..16].copy_from_slice(&crc.to_le_bytes());
    head
}

/// Over header and meta but for the checksum's own place.
fn head_crc(head: &[u8]) -> u32 {
    crc32c_append(crc32c(&head[..12]), &head[16..])
}

/// Seeded with the chunk's number, so that chunks cannot change places.
fn chunk_crc(number: usize, chunk: &[u8]) -> u32 {
    crc32c_append(crc32c(&(number as u64).to_le_bytes()), chunk)
}

/// Reads the snapshot that the log says is there.
pub(crate) fn read<D: Disk>(
    disk: &D,
    key: NodeKey,
    last: LogPosition,
) -> Result<Snapshot, OpenError> {
    let name = files::snapshot(last);
    let file = disk.open(&name).doing("open", &name)?;
    let size = file.size().doing("read", &name)?;
    let mut reader = Reader {
        name: &name,
        file: &file,
        size,
        offset: 0,
    };
    let (meta, data_size) = reader.head(key)?;
    if meta.last != last {
        return Err(reader.rot(0, "the file was renamed"));
    }
    let data = reader.data(data_size)?;
    Ok(Snapshot { meta, data })
}

struct Reader<'a, F> {
    name: &'a str,
    file: &'a F,
    size: u64,
    offset: u64,
}

impl<F: DiskFile> Reader<'_, F> {
    fn rot(&self, offset: u64, what: &str) -> OpenError {
        OpenError::Rot {
            file: self.name.to_owned(),
            offset,
            what: what.to_owned(),
        }
    }

    /// The next bytes of the file into `buffer`.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), OpenError> {
        let end = self.offset + buffer.len() as u64;
        if end > self.size {
            return Err(self.rot(self.size, "the file ends too early"));
        }
        self.file
            .read_exact_at(buffer, self.offset)
            .doing("read", self.name)?;
        self.offset = end;
        Ok(())
    }

    fn head(&mut self, key: NodeKey) -> Result<(SnapshotMeta, u64), OpenError> {
        let mut head = vec![0; HEADER];
        self.fill(&mut head)?;
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| head[at + i]));
        let (format, crc, meta_size) = (word(8), word(12), word(40) as usize);
        let data_size = u64::from(word(32)) | u64::from(word(36)) << 32;
        if &head[..8] != MAGIC || meta_size > LARGEST_META {
            return Err(self.rot(0, "the header is not a snapshot's"));
        }
        head.resize(HEADER + meta_size, 0);
        self.fill(&mut head[HEADER..])?;
        if crc != head_crc(&head) {
            return Err(self.rot(0, "the header's checksum is wrong"));
        }
        if format > FORMAT {
            return Err(OpenError::NewerFormat {
                file: self.name.to_owned(),
                found: format,
                supported: FORMAT,
            });
        }
        if head[16..32] != key.to_bytes() {
            return Err(self.rot(16, "the file belongs to another node"));
        }
        let meta = minicbor::decode(&head[HEADER..]).map_err(|error| OpenError::Undecodable {
            file: self.name.to_owned(),
            offset: HEADER as u64,
            what: error.to_string(),
        })?;
        Ok((meta, data_size))
    }

    fn data(&mut self, size: u64) -> Result<Bytes, OpenError> {
        let chunks = size.div_ceil(CHUNK as u64);
        let expected = chunks
            .checked_mul(4)
            .and_then(|crcs| crcs.checked_add(size))
            .and_then(|body| body.checked_add(self.offset));
        if expected != Some(self.size) {
            return Err(self.rot(self.size, "the file's length has changed"));
        }
        let mut data = BytesMut::new();
        for number in 0..chunks as usize {
            let start = self.offset;
            let mut crc = [0; 4];
            self.fill(&mut crc)?;
            let filled = data.len();
            data.resize(filled + CHUNK.min(size as usize - filled), 0);
            self.fill(&mut data[filled..])?;
            if u32::from_le_bytes(crc) != chunk_crc(number, &data[filled..]) {
                return Err(self.rot(start, "a chunk's checksum is wrong"));
            }
        }
        Ok(data.freeze())
    }
}
