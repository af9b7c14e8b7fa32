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

/// A field that older builds do not know: written only where it differs from its default, so that
/// what does not use it has the same bytes as ever.
pub mod unless_default {
    use minicbor::decode::{Decode, Decoder, Error as DecodeError};
    use minicbor::encode::{Encode, Encoder, Error as EncodeError, Write};

    /// Writes `value`.
    pub fn encode<C, T: Encode<C>, W: Write>(
        value: &T,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        value.encode(e, ctx)
    }

    /// Reads a value, or the default where there is none.
    ///
    /// # Errors
    /// When the next item is neither.
    pub fn decode<'b, C, T: Decode<'b, C> + Default>(
        d: &mut Decoder<'b>,
        ctx: &mut C,
    ) -> Result<T, DecodeError> {
        let value: Option<T> = d.decode_with(ctx)?;
        Ok(value.unwrap_or_default())
    }

    /// What an absent field means.
    pub fn nil<T: Default>() -> Option<T> {
        Some(T::default())
    }

    /// Whether the field need not be written.
    pub fn is_nil<T: Default + PartialEq>(value: &T) -> bool {
        *value == T::default()
    }
}
