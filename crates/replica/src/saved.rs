//! A cluster's state as one file: what `mqraft snapshot save` writes and `restore` begins from.
//!
//! ```text
//!  0              8        12       16           24          28
//!  ├ "RoMsave\n" ─┼ format ┼ check ─┼ file size ─┼ meta size ┼ meta: CBOR … ┼ state … ┼ SHA-256
//!                            └ of bytes 0..12 and 16..28                    of all before it ┘
//! ```
//!
//! Integers are little-endian; `check` is the first four bytes of a SHA-256. The file proves that it
//! is whole and unchanged since it was written, not who wrote it: keep it where you keep the key.
//!
//! [`Download`] is how a client gets the state from a node: in chunks, a few at a time, each asked
//! for again until it is there. The node keeps the copy that it was asked for and nothing about the
//! client (`replica/export.rs`).

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use minicbor::{Decode, Encode};
use raft::{Configuration, Index, Term, Time};

use crate::keys::{ClusterId, sha256};
use crate::kv::Store;
use crate::wire::{Export, Formation, from_slice, to_vec};

const MAGIC: &[u8; 8] = b"RoMsave\n";

/// The format that this build writes, and the newest that it reads.
const FORMAT: u32 = 1;

/// Magic, format, check, size of the file, size of the meta.
const HEADER: usize = 28;

/// The SHA-256 at the end.
const DIGEST: usize = 32;

/// Which state of which cluster a snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SavedMeta {
    /// `<prefix>/<cluster>`, as it stands before every topic.
    #[n(0)]
    pub root: String,
    /// Who formed the cluster.
    #[n(1)]
    pub formation: Formation,
    /// The node that the state was taken from.
    #[n(2)]
    pub node: String,
    /// The last entry whose effect the state contains.
    #[n(3)]
    pub index: Index,
    /// The newest term that the node had taken part in.
    #[n(4)]
    pub term: Term,
    /// The store's revision.
    #[n(5)]
    pub revision: u64,
    /// The members, and what the cluster had settled, as the node knew them.
    #[n(6)]
    pub configuration: Configuration,
    /// Whether the state holds every write that had been acknowledged when the saving began; without
    /// it, it is a node's own copy, perhaps behind.
    #[n(7)]
    pub complete: bool,
}

impl SavedMeta {
    /// The cluster as every frame names it.
    pub fn cluster_id(&self) -> ClusterId {
        ClusterId::new(&self.root, Some(&self.formation.digest()))
    }

    /// The cluster's name, without the prefix.
    pub fn cluster(&self) -> &str {
        self.root
            .rsplit_once('/')
            .map_or(&self.root, |(_, cluster)| cluster)
    }
}

/// A saved state that was read and checked.
#[derive(Clone, Debug)]
pub struct SavedSnapshot {
    meta: SavedMeta,
    data: Bytes,
    store: Store,
}

/// Why bytes are no saved snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SavedError {
    /// Something else.
    #[error("not a snapshot: `mqraft snapshot save` writes one")]
    Foreign,
    /// Its end is missing, or something stands behind it.
    #[error("the snapshot is damaged: it has {size} of {expected} bytes")]
    Size {
        /// How many bytes there are.
        size: u64,
        /// How many there were.
        expected: u64,
    },
    /// Bytes have changed since it was written.
    #[error("the snapshot is damaged: the checksum of its {0} is wrong")]
    Checksum(&'static str),
    /// A newer build wrote it.
    #[error(
        "the snapshot has format {found}, this program knows formats up to {FORMAT}: use the newer version"
    )]
    NewerFormat {
        /// Its format.
        found: u32,
    },
    /// It is as it was written, and this build cannot read it.
    #[error("the snapshot holds what this version cannot read: {0}")]
    Unreadable(String),
}

impl SavedSnapshot {
    /// The snapshot of a state as a node gave it.
    ///
    /// # Errors
    /// When the state is none that this build reads, or another than `meta` says.
    pub fn new(meta: SavedMeta, data: Bytes) -> Result<SavedSnapshot, SavedError> {
        let unreadable = |what: String| SavedError::Unreadable(what);
        let store = Store::restore(&data).map_err(|error| unreadable(error.to_string()))?;
        let (found, said) = (
            (store.applied(), store.revision()),
            (meta.index, meta.revision),
        );
        if found != said {
            let what = format!("a state of index and revision {found:?} that claims {said:?}");
            return Err(unreadable(what));
        }
        Ok(SavedSnapshot { meta, data, store })
    }

    /// Which state of which cluster it is.
    pub fn meta(&self) -> &SavedMeta {
        &self.meta
    }

    /// The state.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// How many bytes the state has as it stands in the file.
    pub fn state_bytes(&self) -> usize {
        self.data.len()
    }

    /// The file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let meta = to_vec(&self.meta);
        let size = HEADER + meta.len() + self.data.len() + DIGEST;
        let mut bytes = Vec::with_capacity(size);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&(size as u64).to_le_bytes());
        bytes.extend_from_slice(&(meta.len() as u32).to_le_bytes());
        let check = check(&bytes);
        bytes[12..16].copy_from_slice(&check);
        bytes.extend_from_slice(&meta);
        bytes.extend_from_slice(&self.data);
        let digest = sha256(&bytes);
        bytes.extend_from_slice(&digest);
        bytes
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`SavedError`] says what is wrong with it.
    pub fn from_bytes(bytes: &Bytes) -> Result<SavedSnapshot, SavedError> {
        let size = bytes.len() as u64;
        let Some(header) = bytes.first_chunk::<HEADER>() else {
            let expected = (HEADER + DIGEST) as u64;
            return Err(match MAGIC.starts_with(&bytes[..bytes.len().min(8)]) {
                true => SavedError::Size { size, expected },
                false => SavedError::Foreign,
            });
        };
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i]));
        if !header.starts_with(MAGIC) {
            return Err(SavedError::Foreign);
        }
        if header[12..16] != check(header) {
            return Err(SavedError::Checksum("header"));
        }
        if word(8) > FORMAT {
            return Err(SavedError::NewerFormat { found: word(8) });
        }
        let expected = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| header[16 + i]));
        let meta_end = HEADER + word(24) as usize;
        if size != expected || bytes.len() < meta_end + DIGEST {
            return Err(SavedError::Size { size, expected });
        }
        let end = bytes.len() - DIGEST;
        if bytes[end..] != sha256(&bytes[..end]) {
            return Err(SavedError::Checksum("contents"));
        }
        let meta = from_slice(&bytes[HEADER..meta_end])
            .map_err(|error| SavedError::Unreadable(error.to_string()))?;
        SavedSnapshot::new(meta, bytes.slice(meta_end..end))
    }
}

/// Covers the header but for its own place.
fn check(header: &[u8]) -> [u8; 4] {
    let covered = [&header[..12], &header[16..HEADER]].concat();
    sha256(&covered)[..4].try_into().expect("four of 32 bytes")
}

/// How many bytes of a state go into one frame.
pub(crate) const CHUNK: usize = 64 << 10;

/// How many chunks are under way at once: a broker may drop the tail of a burst.
const IN_FLIGHT: usize = 4;

/// How long a chunk may take before it is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// A state on its way from a node to us.
#[derive(Debug)]
pub struct Download {
    export: Export,
    /// What has arrived in one piece, from the beginning.
    data: BytesMut,
    /// What was asked for, and when; `Some` once it is here.
    asked: BTreeMap<u64, (Time, Option<Bytes>)>,
}

impl Download {
    /// Nothing has arrived yet.
    pub fn new(export: Export) -> Download {
        Download {
            export,
            data: BytesMut::new(),
            asked: BTreeMap::new(),
        }
    }

    /// Which copy it is.
    pub fn id(&self) -> u64 {
        self.export.id
    }

    /// How much of it is here in one piece, in bytes.
    pub fn arrived(&self) -> u64 {
        self.data.len() as u64
    }

    /// The offsets to ask for now.
    pub fn due(&mut self, now: Time) -> Vec<u64> {
        let first = self.data.len() as u64;
        let places = (0..IN_FLIGHT as u64).map(|place| first + place * CHUNK as u64);
        let mut due = Vec::new();
        for offset in places.filter(|offset| *offset < self.export.size) {
            match self.asked.get_mut(&offset) {
                Some((_, Some(_))) => {}
                Some((at, None)) if now.since(*at) < ASK_AGAIN => {}
                Some((at, None)) => {
                    *at = now;
                    due.push(offset);
                }
                None => {
                    self.asked.insert(offset, (now, None));
                    due.push(offset);
                }
            }
        }
        due
    }

    /// When to ask again if nothing arrives.
    pub fn deadline(&self) -> Option<Time> {
        let missing = self.asked.values().filter(|(_, chunk)| chunk.is_none());
        missing.map(|(at, _)| *at + ASK_AGAIN).min()
    }

    /// Takes a chunk; one that was not asked for, or has another length than it must, is nothing.
    pub fn take(&mut self, id: u64, offset: u64, chunk: Bytes) {
        let wanted = self.export.size.saturating_sub(offset).min(CHUNK as u64);
        if id != self.export.id || chunk.len() as u64 != wanted {
            return;
        }
        if let Some((_, arrived)) = self.asked.get_mut(&offset) {
            *arrived = Some(chunk);
        }
        while let Some(next) = self.asked.first_entry() {
            if next.get().1.is_none() {
                break;
            }
            let chunk = next.remove().1.expect("it has just been seen");
            self.data.extend_from_slice(&chunk);
        }
    }

    /// The snapshot, once all of it is here; `complete`: see [`SavedMeta::complete`].
    ///
    /// # Errors
    /// When what the node sent is no state that this build reads.
    pub fn finish(&mut self, complete: bool) -> Option<Result<SavedSnapshot, SavedError>> {
        if self.arrived() < self.export.size {
            return None;
        }
        let meta = SavedMeta {
            complete,
            ..self.export.meta.clone()
        };
        Some(SavedSnapshot::new(meta, self.data.split().freeze()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use raft::{ClientId, Entry, NodeKey, Payload, RequestNumber, Settings};

    use super::*;
    use crate::kv::command;
    use crate::wire::Write;

    fn store(keys: u64) -> Store {
        let mut store = Store::default();
        for n in 1..=keys {
            let write = Write::Put {
                key: format!("key-{n}").into(),
                value: vec![n as u8; 700].into(),
                lease: None,
            };
            let request = RequestNumber(n);
            store.apply(&Entry {
                index: Index(n),
                term: Term(3),
                payload: Payload::Command(command(ClientId(1), request, None, None, write)),
            });
        }
        store
    }

    fn meta(store: &Store) -> SavedMeta {
        let voters = BTreeMap::from([(NodeKey(1), "gw-1".to_owned())]);
        let settings = Settings::default();
        SavedMeta {
            root: "raft/plant-a".to_owned(),
            formation: Formation {
                voters: voters.clone(),
                settings,
                witnesses: std::collections::BTreeSet::new(),
                origin: None,
            },
            node: "gw-1".to_owned(),
            index: store.applied(),
            term: Term(3),
            revision: store.revision(),
            configuration: Configuration::of(voters, settings),
            complete: true,
        }
    }

    fn saved(keys: u64) -> SavedSnapshot {
        let store = store(keys);
        SavedSnapshot::new(meta(&store), store.snapshot()).expect("its own state")
    }

    #[test]
    fn a_file_gives_back_what_was_saved() {
        let snapshot = saved(5);
        let read = SavedSnapshot::from_bytes(&snapshot.to_bytes().into()).expect("its own file");
        assert_eq!(read.meta(), snapshot.meta());
        assert_eq!(read.store().snapshot(), snapshot.store().snapshot());
        assert_eq!(read.meta().cluster(), "plant-a");
    }

    /// Every byte of the header counts, and so does the end: no prefix is a snapshot.
    #[test]
    fn a_file_that_is_cut_short_says_so() {
        let whole = Bytes::from(saved(2).to_bytes());
        for size in 0..whole.len() {
            let error = SavedSnapshot::from_bytes(&whole.slice(..size)).unwrap_err();
            assert!(matches!(error, SavedError::Size { .. }), "{size}: {error}");
        }
        let longer = [&whole[..], b"x"].concat().into();
        let error = SavedSnapshot::from_bytes(&longer).unwrap_err();
        assert!(matches!(error, SavedError::Size { .. }), "{error}");
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let whole = saved(2).to_bytes();
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut changed = whole.clone();
                changed[at] ^= 1 << bit;
                let error = SavedSnapshot::from_bytes(&changed.into()).unwrap_err();
                let expected = match at {
                    0..8 => error == SavedError::Foreign,
                    8..28 => error == SavedError::Checksum("header"),
                    _ => error == SavedError::Checksum("contents"),
                };
                assert!(expected, "byte {at}: {error}");
            }
        }
    }

    /// Who mends the checksums gets no further than a message: no bytes make the reader panic.
    #[test]
    fn bytes_with_right_checksums_do_not_panic() {
        let whole = saved(3).to_bytes();
        let mut state = 7u64;
        let mut unreadable = 0;
        for _ in 0..20_000 {
            let mut bytes = whole[..whole.len() - DIGEST].to_vec();
            for _ in 0..3 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let at = HEADER + (state >> 33) as usize % (bytes.len() - HEADER);
                bytes[at] = (state >> 24) as u8;
            }
            let digest = sha256(&bytes);
            bytes.extend_from_slice(&digest);
            if let Err(error) = SavedSnapshot::from_bytes(&bytes.into()) {
                assert!(matches!(error, SavedError::Unreadable(_)), "{error}");
                unreadable += 1;
            }
        }
        assert!(unreadable > 100, "the changes are felt: {unreadable}");
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let mut bytes = saved(1).to_bytes();
        bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
        let check = check(&bytes);
        bytes[12..16].copy_from_slice(&check);
        let error = SavedSnapshot::from_bytes(&bytes.into()).unwrap_err();
        assert_eq!(error, SavedError::NewerFormat { found: 2 });
    }

    /// A state that is not the one its meta speaks of is refused.
    #[test]
    fn a_state_of_another_index_is_refused() {
        let (two, three) = (store(2), store(3));
        let error = SavedSnapshot::new(meta(&two), three.snapshot()).unwrap_err();
        assert!(matches!(error, SavedError::Unreadable(_)), "{error}");
    }

    proptest! {
        /// Whatever is lost, doubled, late or of another copy: what arrives is what was sent.
        #[test]
        fn a_download_survives_the_network(
            keys in 0u64..400,
            network in proptest::collection::vec(0u8..5, 1..400),
        ) {
            let store = store(keys);
            let data = store.snapshot();
            let export = Export { id: 9, size: data.len() as u64, meta: meta(&store) };
            let mut download = Download::new(export);
            let mut late = Vec::new();
            let mut now = Time(0);
            let mut network = network.iter().chain(std::iter::repeat(&0));
            let snapshot = loop {
                if let Some(done) = download.finish(true) {
                    break done.expect("the state of a node");
                }
                let due = download.due(now);
                prop_assert!(due.len() <= IN_FLIGHT);
                for offset in due {
                    let end = (offset as usize + CHUNK).min(data.len());
                    let chunk = data.slice(offset as usize..end);
                    match network.next().expect("endless") {
                        0 => download.take(9, offset, chunk),
                        1 => {}
                        2 => {
                            download.take(9, offset, chunk.clone());
                            download.take(9, offset, chunk);
                        }
                        3 => late.push((offset, chunk)),
                        _ => {
                            download.take(8, offset, chunk.clone());
                            download.take(9, offset, chunk.slice(..chunk.len() / 2));
                        }
                    }
                }
                for (offset, chunk) in late.drain(..late.len() / 2) {
                    download.take(9, offset, chunk);
                }
                now = download.deadline().map_or(now, |at| at.max(now));
            };
            prop_assert_eq!(snapshot.store().snapshot(), data);
        }
    }
}
