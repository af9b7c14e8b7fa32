//! How [`bytes::Bytes`] stand in CBOR: a byte string, copied once out of the frame.

use bytes::Bytes;
use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError, Write};

/// Writes `bytes` as one CBOR byte string.
pub fn encode<C, W: Write>(
    bytes: &Bytes,
    e: &mut Encoder<W>,
    _: &mut C,
) -> Result<(), EncodeError<W::Error>> {
    e.bytes(bytes)?.ok()
}

/// Reads one CBOR byte string.
///
/// # Errors
/// When the next item is not a definite-length byte string.
pub fn decode<'b, C>(d: &mut Decoder<'b>, _: &mut C) -> Result<Bytes, DecodeError> {
    d.bytes().map(Bytes::copy_from_slice)
}
