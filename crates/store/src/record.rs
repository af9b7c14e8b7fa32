//! What a batch says, as CBOR behind one another in the frame's payload.
//!
//! Golden bytes in the tests pin the encoding: numbers and meanings stand on disks.

use std::borrow::Cow;
use std::convert::Infallible;

use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError};
use raft::{Entry, HardState, Index, LogPosition, Payload, Term};

/// One statement about what the node remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    /// Opens each segment: what all earlier ones amount to, so that they can go one by one.
    Checkpoint(Checkpoint),
    /// Term and vote.
    HardState(HardState),
    /// The snapshot of the log up to here is durable in a file of its own.
    Snapshot {
        last: LogPosition,
        /// The whole log before this record goes, not only what the snapshot contains.
        discard_log: bool,
    },
    /// Consecutive entries, at least one; they replace all from the first one's index on.
    Entries(Cow<'a, [Entry]>),
}

/// Everything but the entries themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) hard_state: HardState,
    pub(crate) snapshot: Option<LogPosition>,
    /// The last entry of the log, so that a lost segment leaves a gap that shows.
    pub(crate) last_index: Index,
}

const CHECKPOINT: u32 = 0;
const HARD_STATE: u32 = 1;
const SNAPSHOT: u32 = 2;
const ENTRIES: u32 = 3;

impl Record<'_> {
    /// Appends the record to `buffer`.
    pub(crate) fn encode(&self, buffer: &mut Vec<u8>) {
        self.try_encode(&mut Encoder::new(buffer))
            .expect("memory takes every byte");
    }

    fn try_encode(&self, e: &mut Encoder<&mut Vec<u8>>) -> Result<(), EncodeError<Infallible>> {
        match self {
            Record::Checkpoint(checkpoint) => {
                e.array(4)?.u32(CHECKPOINT)?;
                e.encode(checkpoint.hard_state)?;
                e.encode(checkpoint.snapshot)?;
                e.encode(checkpoint.last_index)?;
            }
            Record::HardState(hard_state) => {
                e.array(2)?.u32(HARD_STATE)?.encode(hard_state)?;
            }
            Record::Snapshot { last, discard_log } => {
                e.array(3)?
                    .u32(SNAPSHOT)?
                    .encode(last)?
                    .bool(*discard_log)?;
            }
            Record::Entries(entries) => {
                let first = entries.first().expect("at least one entry").index;
                e.array(3)?.u32(ENTRIES)?.encode(first)?;
                e.array(entries.len() as u64)?;
                for entry in entries.iter() {
                    e.array(2)?.encode(entry.term)?.encode(&entry.payload)?;
                }
            }
        }
        Ok(())
    }

    /// Reads all `count` records of a payload.
    ///
    /// # Errors
    /// When the bytes are not exactly that many records.
    pub(crate) fn decode_all(
        payload: &[u8],
        count: u32,
    ) -> Result<Vec<Record<'static>>, DecodeError> {
        let mut d = Decoder::new(payload);
        let mut records = Vec::new();
        for _ in 0..count {
            records.push(Record::decode(&mut d)?);
        }
        if d.position() == payload.len() {
            Ok(records)
        } else {
            Err(DecodeError::message("bytes behind the last record"))
        }
    }

    fn decode(d: &mut Decoder<'_>) -> Result<Record<'static>, DecodeError> {
        let fields = d.array()?;
        let kind = d.u32()?;
        match (kind, fields) {
            (CHECKPOINT, Some(4)) => Ok(Record::Checkpoint(Checkpoint {
                hard_state: d.decode()?,
                snapshot: d.decode()?,
                last_index: d.decode()?,
            })),
            (HARD_STATE, Some(2)) => Ok(Record::HardState(d.decode()?)),
            (SNAPSHOT, Some(3)) => Ok(Record::Snapshot {
                last: d.decode()?,
                discard_log: d.bool()?,
            }),
            (ENTRIES, Some(3)) => Ok(Record::Entries(decode_entries(d)?.into())),
            _ => Err(DecodeError::message("a record of unknown kind")),
        }
    }
}

fn decode_entries(d: &mut Decoder<'_>) -> Result<Vec<Entry>, DecodeError> {
    let first: Index = d.decode()?;
    let count = d
        .array()?
        .ok_or_else(|| DecodeError::message("entries without a count"))?;
    if count == 0 || first.0 == 0 || first.0.checked_add(count).is_none() {
        return Err(DecodeError::message("entries without a place in the log"));
    }
    let mut entries = Vec::new();
    for offset in 0..count {
        if d.array()? != Some(2) {
            return Err(DecodeError::message("an entry is a term and a payload"));
        }
        let (term, payload): (Term, Payload) = (d.decode()?, d.decode()?);
        entries.push(Entry {
            index: first + offset,
            term,
            payload,
        });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use raft::{ClientId, Command, NodeKey, RequestNumber};

    use super::*;

    fn position(index: u64, term: u64) -> LogPosition {
        LogPosition {
            index: Index(index),
            term: Term(term),
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// These bytes stand on disks: a change here needs a new format version.
    #[test]
    fn golden_records() {
        let hard_state = HardState {
            term: Term(5),
            voted_for: Some(NodeKey(9)),
        };
        let command = Command {
            client: ClientId(1),
            request: RequestNumber(2),
            data: Bytes::from_static(b"put"),
        };
        let entry = |index, payload| Entry {
            index: Index(index),
            term: Term(5),
            payload,
        };
        let key = "50".to_owned() + &"00".repeat(15) + "09";
        let cases = [
            (
                Record::Checkpoint(Checkpoint {
                    hard_state,
                    snapshot: Some(position(7, 4)),
                    last_index: Index(300),
                }),
                format!("84008205{key}82070419012c"),
            ),
            (
                Record::Checkpoint(Checkpoint::default()),
                "84008100f600".to_owned(),
            ),
            (Record::HardState(hard_state), format!("82018205{key}")),
            (
                Record::Snapshot {
                    last: position(7, 4),
                    discard_log: true,
                },
                "8302820704f5".to_owned(),
            ),
            (
                Record::Entries(
                    vec![entry(8, Payload::Noop), entry(9, Payload::Command(command))].into(),
                ),
                "83030882820581008205820283010243707574".to_owned(),
            ),
        ];
        for (record, golden) in cases {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            assert_eq!(hex(&bytes), golden, "{record:?}");
            assert_eq!(Record::decode_all(&bytes, 1).expect("golden"), [record]);
        }
    }

    #[test]
    fn what_is_not_exactly_the_records_announced_is_refused() {
        let mut bytes = Vec::new();
        Record::HardState(HardState::default()).encode(&mut bytes);
        assert!(Record::decode_all(&bytes, 0).is_err());
        assert!(Record::decode_all(&bytes, 2).is_err());
        for end in 0..bytes.len() {
            assert!(Record::decode_all(&bytes[..end], 1).is_err());
        }
        // An unknown kind, no entries, entries at index 0, entries beyond the last index.
        for bad in [
            &[0x81, 0x09][..],
            &[0x83, 0x03, 0x01, 0x80],
            &[0x83, 0x03, 0x00, 0x81, 0x82, 0x01, 0x81, 0x00],
            &[
                0x83, 0x03, 0x1b, 255, 255, 255, 255, 255, 255, 255, 255, 0x81,
            ],
        ] {
            assert!(Record::decode_all(bad, 1).is_err(), "{bad:?}");
        }
    }
}
