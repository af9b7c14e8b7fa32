//! Who this directory belongs to.
//!
//! One small file, written whole under another name and renamed. It is the last thing that opening
//! a fresh directory writes: with it, the log is there; without it, nothing was ever promised.

use bytes::Bytes;
use crc32c::{crc32c, crc32c_append};
use raft::NodeKey;

use crate::disk::{Disk, DiskFile, read_all};
use crate::error::{DiskError, Doing, OpenError};
use crate::files;
use crate::segment::FORMAT;

/// Who a node is (design point 9): a directory that was wiped comes back under another key.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Identity {
    /// The node's name, as its operator gave it.
    #[n(0)]
    pub name: String,
    /// The key drawn when the directory was made.
    #[n(1)]
    pub key: NodeKey,
    /// The cluster's name, as its operator gave it.
    #[n(2)]
    pub cluster: String,
    /// How far the forming of the cluster has come, in the owner's own encoding.
    #[cbor(n(3), with = "optional_bytes")]
    pub formation: Option<Bytes>,
}

/// An absent formation record is null.
mod optional_bytes {
    use bytes::Bytes;
    use minicbor::decode::{Decoder, Error as DecodeError};
    use minicbor::encode::{Encoder, Error as EncodeError, Write};

    pub(super) fn encode<C, W: Write>(
        bytes: &Option<Bytes>,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        match bytes {
            Some(bytes) => e.bytes(bytes)?.ok(),
            None => e.null()?.ok(),
        }
    }

    pub(super) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Option<Bytes>, DecodeError> {
        if d.datatype()? == minicbor::data::Type::Null {
            d.null()?;
            return Ok(None);
        }
        d.bytes().map(|bytes| Some(Bytes::copy_from_slice(bytes)))
    }
}

const MAGIC: &[u8; 8] = b"RoMid\0\r\n";

/// Magic, format, checksum, length of the body.
const HEADER: usize = 20;

/// A formation record is a few names and keys.
const LARGEST: u64 = 1 << 20;

fn encode(identity: &Identity) -> Vec<u8> {
    let body = minicbor::to_vec(identity).expect("memory takes every byte");
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&body);
    let crc = crc(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Over everything but the checksum's own place.
fn crc(bytes: &[u8]) -> u32 {
    crc32c_append(crc32c(&bytes[..12]), &bytes[16..])
}

fn decode(bytes: &[u8]) -> Result<Identity, OpenError> {
    let file = || files::IDENTITY.to_owned();
    let rot = |offset, what: &str| {
        Err(OpenError::Rot {
            file: file(),
            offset,
            what: what.to_owned(),
        })
    };
    if bytes.len() < HEADER {
        return rot(bytes.len() as u64, "the file is shorter than its header");
    }
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
    if &bytes[..8] != MAGIC || word(12) != crc(bytes) {
        return rot(0, "the checksum is wrong");
    }
    if word(8) > FORMAT {
        return Err(OpenError::NewerFormat {
            file: file(),
            found: word(8),
            supported: FORMAT,
        });
    }
    if word(16) as usize != bytes.len() - HEADER {
        return rot(16, "the file's length has changed");
    }
    minicbor::decode(&bytes[HEADER..]).map_err(|error| OpenError::Undecodable {
        file: file(),
        offset: HEADER as u64,
        what: error.to_string(),
    })
}

/// Reads the identity, if the directory has one.
pub(crate) fn read<D: Disk>(disk: &D) -> Result<Identity, OpenError> {
    let file = disk.open(files::IDENTITY).doing("open", files::IDENTITY)?;
    let size = file.size().doing("read", files::IDENTITY)?;
    if size > LARGEST {
        return Err(OpenError::Rot {
            file: files::IDENTITY.to_owned(),
            offset: LARGEST,
            what: "the file is longer than any identity".to_owned(),
        });
    }
    decode(&read_all(&file, size).doing("read", files::IDENTITY)?)
}

/// Makes `identity` durable in place of the one before.
pub(crate) fn write<D: Disk>(disk: &D, identity: &Identity) -> Result<(), DiskError> {
    let name = files::IDENTITY_TMP;
    let file = disk.create(name).doing("create", name)?;
    file.write_all_at(&encode(identity), 0)
        .doing("write", name)?;
    file.sync_data().doing("sync", name)?;
    disk.rename(name, files::IDENTITY)
        .doing("rename", files::IDENTITY)?;
    disk.sync_dir().doing("sync", &disk.describe())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            name: "a".to_owned(),
            key: NodeKey(9),
            cluster: "c".to_owned(),
            formation: Some(Bytes::from_static(b"f")),
        }
    }

    #[test]
    fn golden_identity() {
        let bytes = encode(&identity());
        let mut golden = b"RoMid\0\r\n\x01\0\0\0????\x18\0\0\0\x84\x61a\x50".to_vec();
        golden.extend_from_slice(&NodeKey(9).to_bytes());
        golden.extend_from_slice(b"\x61c\x41f");
        golden[12..16].copy_from_slice(&bytes[12..16]);
        assert_eq!(bytes, golden);
        assert_eq!(decode(&bytes).expect("golden"), identity());

        let unformed = Identity {
            formation: None,
            ..identity()
        };
        assert_eq!(decode(&encode(&unformed)).expect("valid"), unformed);
    }

    #[test]
    fn any_changed_or_missing_byte_is_an_error() {
        let bytes = encode(&identity());
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(matches!(decode(&changed), Err(OpenError::Rot { .. })));
            assert!(matches!(decode(&bytes[..at]), Err(OpenError::Rot { .. })));
        }
    }
}
