//! One batch on disk, and the judgement of bytes that are not one.
//!
//! A frame is what one sync makes durable. It is written at the end of the log, into space that was
//! zero and durable before. Three questions must be answered after a power cut, from bytes alone:
//! is this the end of the log, a batch that never became durable, or durable bytes that changed?
//! Taking the third for the second would lose an acknowledged vote without a word.
//!
//! ```text
//!  0        4        8                16       20       24       28       32
//!  ├ magic ─┼ crc ───┼ batch ─────────┼ length ┼ p-crc ─┼ mask ──┼ records┼ payload, padded to 8 …
//!           └ over place, 8..32                └ over the payload as it stands on disk
//! ```
//!
//! The first checksum is seeded with the *place* (node key, segment, offset), so that no stale or
//! copied frame is ever valid elsewhere, and protects the length before it is believed.
//!
//! The answers rest on two facts. **Batches are numbered and synced one by one**: a valid frame
//! anywhere behind the bytes in question proves that they had been durable. **Every sector that a
//! frame touches holds non-zero bytes of it**: all words of the header are non-zero, and the payload
//! is XORed with a mask chosen so that none of its sectors is zero. A sector is written wholly or not
//! at all, so a batch that the power cut short shows a sector of zeros, and one that shows none was
//! written in full: if its checksum fails, bytes have changed since.

use crc32c::{crc32c, crc32c_append};
use raft::NodeKey;

/// What a disk writes wholly or not at all. Larger true sectors are as good.
pub(crate) const SECTOR: usize = 512;

/// The bytes before the payload.
pub(crate) const HEADER: usize = 32;

/// Frames start at multiples of this, so that no header word straddles two sectors.
pub(crate) const ALIGNMENT: usize = 8;

/// The largest frame: bounds what recovery has to hold in memory at once.
pub(crate) const LARGEST: usize = 1 << 30;

const MAGIC: u32 = u32::from_le_bytes(*b"RoMf");

/// One segment of one node, as the seed of checksums.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    seed: u32,
}

impl Place {
    pub(crate) fn new(key: NodeKey, sequence: u64) -> Place {
        Place {
            seed: crc32c_append(crc32c(&key.to_bytes()), &sequence.to_le_bytes()),
        }
    }

    fn at(self, offset: usize) -> u32 {
        crc32c_append(self.seed, &(offset as u64).to_le_bytes())
    }
}

/// Empties `buffer` and leaves room for the header: records are appended behind it.
pub(crate) fn begin(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.resize(HEADER, 0);
}

/// How long the frame in `buffer` will be once finished.
pub(crate) fn finished_size(buffer: &[u8]) -> usize {
    buffer.len().next_multiple_of(ALIGNMENT)
}

/// Completes the frame in `buffer`, to be written at `offset`.
pub(crate) fn finish(buffer: &mut Vec<u8>, place: Place, offset: usize, batch: u64, records: u32) {
    let length = buffer.len() - HEADER;
    assert!(
        length > 0 && records > 0 && batch > 0,
        "header words are never zero"
    );
    assert!(buffer.len() <= LARGEST, "the caller has checked the size");
    buffer.resize(finished_size(buffer), 0);

    let (header, payload) = buffer.split_at_mut(HEADER);
    let mask = choose_mask(payload, offset + HEADER);
    apply_mask(payload, mask);
    header[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    header[8..16].copy_from_slice(&batch.to_le_bytes());
    header[16..20].copy_from_slice(&(length as u32).to_le_bytes());
    header[20..24].copy_from_slice(&crc32c(payload).to_le_bytes());
    header[24..28].copy_from_slice(&mask.to_le_bytes());
    header[28..32].copy_from_slice(&records.to_le_bytes());
    let crc = crc32c_append(place.at(offset), &header[8..]);
    header[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// The first mask under which every sector's share of the payload has two bytes that are not zero:
/// one would do against torn writes, but then one changed byte could make a sector look unwritten.
/// There are far fewer sectors in a frame than masks; for nearly all payloads it is zero.
fn choose_mask(payload: &[u8], offset: usize) -> u32 {
    (0..=u32::MAX)
        .find(|mask| sectors(payload, offset).all(|part| is_marked(part, *mask)))
        .expect("a frame has fewer sectors than there are masks")
}

/// Whether a sector's share shows under this mask that it was written.
fn is_marked(part: &[u8], mask: u32) -> bool {
    let masked = part.iter().zip(mask.to_le_bytes().into_iter().cycle());
    masked.filter(|(byte, key)| *byte != key).take(2).count() == 2
}

fn apply_mask(payload: &mut [u8], mask: u32) {
    if mask != 0 {
        for word in payload.chunks_exact_mut(4) {
            for (byte, key) in word.iter_mut().zip(mask.to_le_bytes()) {
                *byte ^= key;
            }
        }
    }
}

/// `bytes`, which start at `offset` of their file, cut at sector boundaries.
fn sectors(bytes: &[u8], offset: usize) -> impl Iterator<Item = &[u8]> {
    let (first, rest) = bytes.split_at((SECTOR - offset % SECTOR).min(bytes.len()));
    std::iter::once(first).chain(rest.chunks(SECTOR))
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// A header whose checksum is right.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) batch: u64,
    length: usize,
    payload_crc: u32,
    mask: u32,
    pub(crate) records: u32,
    /// Where the next frame starts.
    pub(crate) end: usize,
}

/// Reads the header at `offset` of a whole segment's `bytes`.
pub(crate) fn header(bytes: &[u8], offset: usize, place: Place) -> Option<Header> {
    let header: &[u8; HEADER] = bytes.get(offset..)?.first_chunk()?;
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i]));
    if word(0) != MAGIC || word(4) != crc32c_append(place.at(offset), &header[8..]) {
        return None;
    }
    let length = word(16) as usize;
    let end = length
        .checked_next_multiple_of(ALIGNMENT)?
        .checked_add(offset + HEADER)?;
    (end <= bytes.len()).then_some(Header {
        batch: u64::from(word(8)) | u64::from(word(12)) << 32,
        length,
        payload_crc: word(20),
        mask: word(24),
        records: word(28),
        end,
    })
}

/// A frame whose checksums are right.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
}

/// Reads the frame at `offset` of a whole segment's `bytes`.
pub(crate) fn read(bytes: &[u8], offset: usize, place: Place) -> Option<Frame> {
    let header = header(bytes, offset, place)?;
    let on_disk = &bytes[offset + HEADER..header.end];
    if crc32c(on_disk) != header.payload_crc {
        return None;
    }
    let mut payload = on_disk.to_vec();
    apply_mask(&mut payload, header.mask);
    payload.truncate(header.length);
    Some(Frame { header, payload })
}

/// What stands where no valid frame does, provided that no valid frame stands behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Zeros up to the end.
    Clean,
    /// A batch that was never wholly on disk.
    Torn,
    /// Bytes that changed after they were durable.
    Rot(&'static str),
}

/// Judges the bytes from `offset` on, where [`read`] found no frame.
pub(crate) fn judge(bytes: &[u8], offset: usize, place: Place) -> Tail {
    let rest = bytes.get(offset..).unwrap_or_default();
    if is_zero(rest) {
        return Tail::Clean;
    }
    let mut first_sectors = sectors(rest, offset);
    let first = first_sectors.next().unwrap_or_default();
    if is_zero(first) {
        return Tail::Torn;
    }
    match header(bytes, offset, place) {
        Some(header) => {
            let (frame, behind) = rest.split_at(header.end - offset);
            if !is_zero(behind) {
                Tail::Rot("bytes of a later batch show that this one was durable")
            } else if sectors(frame, offset).any(is_zero) {
                Tail::Torn
            } else {
                Tail::Rot("a batch was written in full, but its checksum is wrong")
            }
        }
        None => {
            let second = first_sectors.next().unwrap_or_default();
            if first.len() < HEADER && is_zero(second) {
                Tail::Torn
            } else {
                Tail::Rot("a batch was begun here, but the checksum of its header is wrong")
            }
        }
    }
}

/// The first valid header at or behind `offset`: proof that what stands before it was durable.
pub(crate) fn find(bytes: &[u8], offset: usize, place: Place) -> Option<(usize, Header)> {
    (offset.next_multiple_of(ALIGNMENT)..bytes.len())
        .step_by(ALIGNMENT)
        .find_map(|at| Some((at, header(bytes, at, place)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { seed: 7 };

    fn frame(payload: &[u8], offset: usize) -> Vec<u8> {
        let mut buffer = Vec::new();
        begin(&mut buffer);
        buffer.extend_from_slice(payload);
        finish(&mut buffer, PLACE, offset, 3, 1);
        buffer
    }

    fn segment_with(frame: &[u8], offset: usize) -> Vec<u8> {
        let mut bytes = vec![0; 8192];
        bytes[offset..offset + frame.len()].copy_from_slice(frame);
        bytes
    }

    #[test]
    fn a_frame_reads_back_only_where_it_was_written() {
        let bytes = segment_with(&frame(b"vote", 64), 64);
        let read_back = read(&bytes, 64, PLACE).expect("valid");
        assert_eq!((read_back.header.batch, read_back.header.records), (3, 1));
        assert_eq!(read_back.payload, b"vote");
        assert!(read(&bytes, 64, Place { seed: 8 }).is_none());
        let seed = |key, sequence| Place::new(NodeKey(key), sequence).seed;
        assert!(seed(1, 1) != seed(1, 2) && seed(1, 1) != seed(2, 1));

        let moved = segment_with(&frame(b"vote", 64), 128);
        assert!(read(&moved, 128, PLACE).is_none());
    }

    #[test]
    fn every_sector_of_a_frame_is_marked_twice_whatever_its_payload() {
        let every = |step: usize| (0..3000).map(|i| u8::from(i % step == 0)).collect();
        // The third payload spoils mask 0 in one sector and mask 1 in the next.
        let ones: Vec<u8> = [1, 0, 0, 0].repeat(512);
        let payloads = [
            vec![0],
            vec![0; 3000],
            [vec![0; 2048], ones].concat(),
            every(SECTOR),
            every(8),
        ];
        for payload in payloads {
            for offset in (64..64 + SECTOR).step_by(ALIGNMENT) {
                let bytes = frame(&payload, offset);
                let marks = |sector: &[u8]| sector.iter().filter(|byte| **byte != 0).count();
                assert!(sectors(&bytes, offset).all(|sector| marks(sector) >= 2));
                let segment = segment_with(&bytes, offset);
                let read_back = read(&segment, offset, PLACE).expect("valid");
                assert_eq!(read_back.payload, payload);
            }
        }
    }

    #[test]
    fn whatever_stands_behind_a_frame_proves_that_it_was_durable() {
        let mut bytes = segment_with(&frame(&[0; 1500], 64), 64);
        bytes[512..1024].fill(0);
        assert_eq!(judge(&bytes, 64, PLACE), Tail::Torn);
        bytes[4000] = 1;
        assert!(matches!(judge(&bytes, 64, PLACE), Tail::Rot(_)));
    }

    #[test]
    fn every_way_to_lose_sectors_is_torn_and_every_changed_byte_is_rot() {
        for offset in (64..64 + SECTOR).step_by(ALIGNMENT) {
            let whole = segment_with(&frame(&[0; 1500], offset), offset);
            let end = header(&whole, offset, PLACE).expect("valid").end;
            let first = offset / SECTOR;
            let count = end.div_ceil(SECTOR) - first;
            for lost in 1..1_u32 << count {
                let mut bytes = whole.clone();
                for i in (0..count).filter(|i| lost & 1 << i != 0) {
                    let start = ((first + i) * SECTOR).max(offset);
                    bytes[start..((first + i + 1) * SECTOR).min(end)].fill(0);
                }
                let expected = if lost + 1 == 1 << count {
                    Tail::Clean
                } else {
                    Tail::Torn
                };
                assert_eq!(judge(&bytes, offset, PLACE), expected, "{offset} {lost:b}");
            }
        }
        let whole = segment_with(&frame(&[0; 1500], 480), 480);
        for at in 480..480 + HEADER + 1500 {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            assert!(read(&bytes, 480, PLACE).is_none());
            assert!(matches!(judge(&bytes, 480, PLACE), Tail::Rot(_)), "{at}");
        }
    }
}
