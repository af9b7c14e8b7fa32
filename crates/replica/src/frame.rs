//! The envelope: who says it, in which cluster, to whom, for the first time only.
//!
//! ```text
//! 0        1        2            10          26            42          50
//! ┌────────┬────────┬────────────┬───────────┬─────────────┬───────────┬──────────────┬─────┐
//! │version │ key id │ cluster id │ node key  │ incarnation │ sequence  │ body, sealed │ tag │
//! └────────┴────────┴────────────┴───────────┴─────────────┴───────────┴──────────────┴─────┘
//! ```
//!
//! The tag covers the header, the sender's and the receiver's name from the topic, and the body.
//! With a key it is ChaCha20-Poly1305's (16 bytes) and the body is encrypted; without one it is a
//! CRC-32 (4 bytes), which finds accidents and nothing else. This module checks form and seal;
//! whether an authentic frame is also *fresh* is `peers.rs`'s business.

use bytes::Bytes;
use raft::NodeKey;
use ring::aead::{self, Aad, LessSafeKey, Nonce};

use crate::keys::{ClusterId, ClusterKey, INSECURE, Incarnation, KeyId, KeyRing, frame_key};
use crate::name::{MAX_NAME, Name};
use crate::topic::ALL;

/// The newest frame version that this build speaks. It reads and writes every older one too.
///
/// The versions have one header and one seal. What they differ in is what a body may say, which
/// `Body::version` in `wire.rs` tells: a process must not be told in a version that it reads what
/// it would not understand.
pub const VERSION: u8 = 2;

/// The oldest frame version, which everyone reads.
pub(crate) const OLDEST: u8 = 1;

/// The largest frame that is read or written, in bytes: AWS IoT's payload limit.
pub const MAX_FRAME: usize = 128 << 10;

/// Bytes before the body.
pub const HEADER: usize = 50;

const SEAL_TAG: usize = 16;
const CHECKSUM: usize = 4;

/// What stands before the body, in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) version: u8,
    pub(crate) key_id: KeyId,
    pub(crate) cluster: ClusterId,
    pub(crate) node_key: NodeKey,
    pub(crate) incarnation: Incarnation,
    pub(crate) sequence: u64,
}

/// Why a payload is no frame for us. Each kind is counted; none is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum FrameError {
    /// Too short to hold a header and a tag.
    #[error("truncated")]
    Truncated,
    /// Longer than [`MAX_FRAME`].
    #[error("larger than {MAX_FRAME} bytes")]
    Oversize,
    /// Written by a newer build, or no frame at all.
    #[error(
        "frame version {0}, this node reads {OLDEST} to {1}: upgrade it, or something else publishes here"
    )]
    Version(u8, u8),
    /// Another cluster's.
    #[error("of another cluster")]
    ForeignCluster,
    /// Sealed under a key that we do not hold, or not sealed where we want a seal.
    #[error("sealed under another key, or not at all: do all nodes have the same key file?")]
    UnknownKey,
    /// The tag does not fit: forged, damaged, or sent to someone else.
    #[error("forged or damaged")]
    BadTag,
}

impl Header {
    fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = self.version;
        bytes[1] = self.key_id.0;
        bytes[2..10].copy_from_slice(&self.cluster.0);
        bytes[10..26].copy_from_slice(&self.node_key.to_bytes());
        bytes[26..42].copy_from_slice(&self.incarnation.0);
        bytes[42..50].copy_from_slice(&self.sequence.to_be_bytes());
        bytes
    }

    /// Reads the header of a payload that may hold anything. `newest`: the newest frame version
    /// that is read.
    pub(crate) fn parse(payload: &[u8], newest: u8) -> Result<Header, FrameError> {
        if payload.len() > MAX_FRAME {
            return Err(FrameError::Oversize);
        }
        let version = *payload.first().ok_or(FrameError::Truncated)?;
        if !(OLDEST..=newest).contains(&version) {
            return Err(FrameError::Version(version, newest));
        }
        let header: &[u8; HEADER] = payload.first_chunk().ok_or(FrameError::Truncated)?;
        let field = |from: usize| header[from..from + 16].try_into().expect("16 bytes");
        Ok(Header {
            version,
            key_id: KeyId(header[1]),
            cluster: ClusterId(header[2..10].try_into().expect("eight bytes")),
            node_key: NodeKey::from_bytes(field(10)),
            incarnation: Incarnation(field(26)),
            sequence: u64::from_be_bytes(header[42..50].try_into().expect("eight bytes")),
        })
    }
}

/// To whom a frame goes; authenticated, so that a broker cannot redirect it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Destination<'a> {
    All,
    One(&'a Name),
}

/// What the tag covers beside the body: the header and both names. Header and names have a fixed
/// or stated length, so no two differ that read the same.
struct Associated {
    bytes: [u8; HEADER + 2 * (1 + MAX_NAME)],
    length: usize,
}

impl Associated {
    fn new(header: &[u8], from: &Name, to: Destination<'_>) -> Associated {
        let to = match to {
            Destination::All => ALL,
            Destination::One(name) => name.as_str(),
        };
        let mut associated = Associated {
            bytes: [0; HEADER + 2 * (1 + MAX_NAME)],
            length: 0,
        };
        associated.push(header);
        for name in [from.as_str(), to] {
            associated.push(&[name.len() as u8]);
            associated.push(name.as_bytes());
        }
        associated
    }

    fn push(&mut self, part: &[u8]) {
        let end = self.length + part.len();
        self.bytes[self.length..end].copy_from_slice(part);
        self.length = end;
    }
}

impl AsRef<[u8]> for Associated {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

fn nonce(sequence: u64) -> Nonce {
    let mut nonce = [0; aead::NONCE_LEN];
    nonce[4..].copy_from_slice(&sequence.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn checksum(associated: &Associated, body: &[u8]) -> [u8; CHECKSUM] {
    let mut crc = crc32fast::Hasher::new();
    crc.update(associated.as_ref());
    crc.update(body);
    crc.finalize().to_be_bytes()
}

/// Seals the frames of this process in one cluster. The sequence is drawn by the caller, who
/// must never use one twice.
pub(crate) struct Sealer {
    cluster: ClusterId,
    from: Name,
    node_key: NodeKey,
    incarnation: Incarnation,
    key_id: KeyId,
    key: Option<LessSafeKey>,
}

impl Sealer {
    pub(crate) fn new(
        ring: &KeyRing,
        cluster: ClusterId,
        from: Name,
        node_key: NodeKey,
        incarnation: Incarnation,
    ) -> Sealer {
        let key = ring.sealing();
        let key = key.map(|key| frame_key(key, cluster, &from, node_key, incarnation));
        Sealer {
            cluster,
            from,
            node_key,
            incarnation,
            key_id: ring.sealing_id(),
            key,
        }
    }

    /// A frame of this version around the body that `write` appends.
    pub(crate) fn seal(
        &self,
        version: u8,
        sequence: u64,
        to: Destination<'_>,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Bytes {
        let Sealer {
            cluster,
            node_key,
            incarnation,
            key_id,
            ..
        } = *self;
        let header = Header {
            version,
            key_id,
            cluster,
            node_key,
            incarnation,
            sequence,
        }
        .to_bytes();
        let associated = Associated::new(&header, &self.from, to);
        let mut frame = Vec::with_capacity(512);
        frame.extend_from_slice(&header);
        write(&mut frame);
        let body = &mut frame[HEADER..];
        match &self.key {
            Some(key) => {
                let tag = key
                    .seal_in_place_separate_tag(nonce(sequence), Aad::from(associated), body)
                    .expect("a frame is far below ChaCha20's limit");
                frame.extend_from_slice(tag.as_ref());
            }
            None => {
                let checksum = checksum(&associated, body);
                frame.extend_from_slice(&checksum);
            }
        }
        frame.into()
    }
}

/// Opens the frames of one other process in one cluster.
pub(crate) struct Opener {
    key_id: KeyId,
    key: Option<LessSafeKey>,
}

impl Opener {
    /// Opens the first frame of a process, and tells how to open its others.
    pub(crate) fn find(
        ring: &KeyRing,
        header: &Header,
        from: &Name,
        to: Destination<'_>,
        payload: &Bytes,
    ) -> Result<(Opener, Bytes), FrameError> {
        let mut refused = FrameError::UnknownKey;
        for key in ring.find(header.key_id) {
            let opener = Opener::new(key, header, from);
            match opener.open(header, from, to, payload) {
                Ok(body) => return Ok((opener, body)),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    fn new(key: Option<&ClusterKey>, header: &Header, from: &Name) -> Opener {
        let Header {
            key_id,
            cluster,
            node_key,
            incarnation,
            ..
        } = *header;
        let key = key.map(|key| frame_key(key, cluster, from, node_key, incarnation));
        Opener { key_id, key }
    }

    pub(crate) fn fits(&self, header: &Header) -> bool {
        self.key_id == header.key_id
    }

    /// The body of an authentic frame. Authentic does not mean fresh.
    pub(crate) fn open(
        &self,
        header: &Header,
        from: &Name,
        to: Destination<'_>,
        payload: &Bytes,
    ) -> Result<Bytes, FrameError> {
        let associated = Associated::new(&payload[..HEADER], from, to);
        match &self.key {
            Some(key) => {
                let mut sealed = payload[HEADER..].to_vec();
                let nonce = nonce(header.sequence);
                let opened = key.open_in_place(nonce, Aad::from(associated), &mut sealed);
                let length = opened.map_err(|_| FrameError::BadTag)?.len();
                sealed.truncate(length);
                Ok(sealed.into())
            }
            None => {
                let end = payload
                    .len()
                    .checked_sub(CHECKSUM)
                    .filter(|end| *end >= HEADER);
                let end = end.ok_or(FrameError::Truncated)?;
                let body = payload.slice(HEADER..end);
                let fits = checksum(&associated, &body) == payload[end..];
                fits.then_some(body).ok_or(FrameError::BadTag)
            }
        }
    }
}

/// The most that a body may have so that its frame fits [`MAX_FRAME`].
pub(crate) const MAX_BODY: usize = MAX_FRAME - HEADER - SEAL_TAG;

const _: () = assert!(INSECURE.0 == 0 && CHECKSUM <= SEAL_TAG);
