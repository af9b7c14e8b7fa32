//! What nodes say to each other about consensus.
//!
//! Every message carries its sender's term. Appends go to everyone at once (`rpc/all`), all
//! other messages to one node; who sent a message is settled below, by the sealed frame.

use bytes::Bytes;

use crate::entry::{Entry, Payload, SnapshotMeta};
use crate::id::{Index, LeaseEpoch, LogPosition, Round, StreamId, Term, Time};
use crate::sessions::Sessions;

/// One message between two nodes, or from a leader or candidate to all.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Message {
    /// The sender's current term. A pre-vote asks about the term after it.
    #[n(0)]
    pub term: Term,
    /// What it says.
    #[n(1)]
    pub body: Body,
}

/// What a message says. Variants are only ever added.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(flat)]
pub enum Body {
    /// "Would you vote for me in the next term?" Changes nobody's state (Raft thesis §9.6).
    #[n(0)]
    RequestPreVote(#[n(0)] VoteRequest),
    /// The answer.
    #[n(1)]
    PreVote(#[n(0)] PreVote),
    /// "Vote for me in this term."
    #[n(2)]
    RequestVote(#[n(0)] VoteRequest),
    /// The answer; leaves only after the vote is on disk.
    #[n(3)]
    Vote(#[n(0)] Vote),
    /// Entries, or none as a heartbeat. Broadcast, or unicast as part of a catch-up stream.
    #[n(4)]
    Append(#[n(0)] Append),
    /// "I hold your log up to here, on disk."
    #[n(5)]
    Acknowledge(#[n(0)] Acknowledge),
    /// "What you sent does not follow on what I hold."
    #[n(6)]
    Reject(#[n(0)] Reject),
    /// A piece of a snapshot, part of a catch-up stream.
    #[n(7)]
    SnapshotChunk(#[n(0)] Box<SnapshotChunk>),
    /// "I hold the pieces up to this offset."
    #[n(8)]
    SnapshotProgress(#[n(0)] SnapshotProgress),
    /// "Take the lead now."
    #[n(9)]
    TimeoutNow(#[n(0)] TimeoutNow),
    /// "What is committed beyond this?" Changes nobody's state; see `fetch.rs`.
    #[n(10)]
    Fetch(#[n(0)] Fetch),
    /// A part of the answer.
    #[n(11)]
    Fetched(#[n(0)] Fetched),
}

/// Asks for a vote or a pre-vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct VoteRequest {
    /// Where the candidate's log ends (Raft §5.4.1).
    #[n(0)]
    pub last: LogPosition,
    /// The leader itself asked the candidate to take over: whoever still hears that leader may
    /// vote all the same (Raft thesis §4.2.3).
    #[cbor(n(1), with = "crate::codec::unless_default", has_nil)]
    pub transfer: bool,
}

/// A leader's request that the receiver take over at once (Raft thesis §3.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct TimeoutNow {
    /// Where the leader's log ends, and the receiver's must.
    #[n(0)]
    pub last: LogPosition,
    /// The receiver's own clock as its last acknowledgement told it: by that it judges whether
    /// this comes too late.
    #[n(1)]
    pub clock: Time,
    /// The lease epoch that the leader has given up for good. A successor in whose log it is the
    /// newest need not wait for it to run out.
    #[n(2)]
    pub released: Option<LeaseEpoch>,
}

/// Answers a pre-vote request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct PreVote {
    /// The term that was asked about: the candidate's own plus one.
    #[n(0)]
    pub proposed_term: Term,
    /// Whether the vote would be granted.
    #[n(1)]
    pub granted: bool,
}

/// Answers a vote request of the message's term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Vote {
    /// Whether the vote is the candidate's.
    #[n(0)]
    pub granted: bool,
}

/// Entries to append after `prev`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// Which of the leader's rounds this is; echoed in the answer.
    pub round: Round,
    /// The leader's present sessions: whose end [`crate::Input::LeaderGone`] may announce.
    pub sessions: Sessions,
    /// The catch-up stream, zero for the broadcast.
    pub stream: StreamId,
    /// The entry that the receiver must hold just before the first of `entries`.
    pub prev: LogPosition,
    /// How far the leader has committed. A follower commits no further than it has verified.
    pub commit_index: Index,
    /// Consecutive entries from `prev.index + 1` on.
    pub entries: Vec<Entry>,
}

/// Confirms what a follower holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Acknowledge {
    /// The newest round heard of this leader.
    #[n(0)]
    pub round: Round,
    /// The newest catch-up stream seen; zero in answer to a broadcast whose entries found no room
    /// on the way to the disk.
    #[n(1)]
    pub stream: StreamId,
    /// The highest index that is both verified against this leader's log and on disk.
    #[n(2)]
    pub match_index: Index,
    /// The sender's clock, for [`TimeoutNow`] to bring back.
    #[cbor(n(3), with = "crate::codec::unless_default", has_nil)]
    pub clock: Time,
}

/// Reports a gap or a conflict, with a hint where the logs may still agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Reject {
    /// The newest round heard of this leader.
    #[n(0)]
    pub round: Round,
    /// The stream of the append that did not fit, zero for the broadcast.
    #[n(1)]
    pub stream: StreamId,
    /// The last entry at or before the rejected `prev` whose term is not above its term: the
    /// leader searches back from here, skipping whole terms (Raft §5.3).
    #[n(2)]
    pub hint: LogPosition,
}

/// One piece of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct SnapshotChunk {
    /// The leader's round; echoed in the answer.
    #[n(0)]
    pub round: Round,
    /// The catch-up stream.
    #[n(1)]
    pub stream: StreamId,
    /// The leader's present sessions.
    #[n(2)]
    pub sessions: Sessions,
    /// What the whole snapshot stands for.
    #[n(3)]
    pub meta: SnapshotMeta,
    /// The whole snapshot's length in bytes.
    #[n(4)]
    pub length: u64,
    /// Where `data` stands in it.
    #[n(5)]
    pub offset: u64,
    /// The piece.
    #[cbor(n(6), with = "crate::codec")]
    pub data: Bytes,
}

/// Confirms pieces of a snapshot; they are on disk only when an [`Acknowledge`] says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct SnapshotProgress {
    /// The newest round heard of this leader.
    #[n(0)]
    pub round: Round,
    /// The catch-up stream.
    #[n(1)]
    pub stream: StreamId,
    /// All bytes before this one have arrived.
    #[n(2)]
    pub offset: u64,
}

/// Asks one node for what it knows to be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Fetch {
    /// The asker has everything up to here.
    #[n(0)]
    pub after: Index,
    /// Which snapshot it holds a part of, had from the same node.
    #[n(1)]
    pub part: Option<SnapshotPart>,
    /// Only a snapshot of a later entry is wanted, whether or not the log still has the entries.
    #[cbor(n(2), with = "crate::codec::unless_default", has_nil)]
    pub snapshot: bool,
}

/// How much of a snapshot has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct SnapshotPart {
    /// The last entry that the snapshot stands for.
    #[n(0)]
    pub last: LogPosition,
    /// All bytes before this one have arrived.
    #[n(1)]
    pub offset: u64,
}

/// One of the messages that answer a [`Fetch`]: all of it is committed.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(flat)]
pub enum Fetched {
    /// There is nothing that the asker has not, as far as the sender knows.
    #[n(0)]
    Nothing,
    /// Entries.
    #[n(1)]
    Entries(#[n(0)] CommittedEntries),
    /// A piece of the newest snapshot.
    #[n(2)]
    Snapshot(#[n(0)] SnapshotPiece),
}

/// Committed entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedEntries {
    /// The entry before the first of them.
    pub prev: LogPosition,
    /// No other message of this answer follows.
    pub ends: bool,
    /// Consecutive entries from `prev.index + 1` on.
    pub entries: Vec<Entry>,
}

/// A piece of a snapshot that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct SnapshotPiece {
    /// What the whole snapshot stands for.
    #[n(0)]
    pub meta: SnapshotMeta,
    /// The whole snapshot's length in bytes.
    #[n(1)]
    pub length: u64,
    /// Where `data` stands in it.
    #[n(2)]
    pub offset: u64,
    /// The piece.
    #[cbor(n(3), with = "crate::codec")]
    pub data: Bytes,
    /// No other message of this answer follows.
    #[n(4)]
    pub ends: bool,
}

/// Entries as they stand on the wire: their indexes follow from `prev`.
mod entries_codec {
    use minicbor::decode::{Decode, Decoder, Error as DecodeError};
    use minicbor::encode::{Encode, Encoder, Error as EncodeError, Write};

    use super::{
        Append, CommittedEntries, Entry, Index, LogPosition, Payload, Round, Sessions, StreamId,
        Term,
    };

    const FIELDS: u64 = 6;
    const COMMITTED_FIELDS: u64 = 3;

    impl<C> Encode<C> for Append {
        fn encode<W: Write>(
            &self,
            e: &mut Encoder<W>,
            ctx: &mut C,
        ) -> Result<(), EncodeError<W::Error>> {
            e.array(FIELDS)?;
            self.round.encode(e, ctx)?;
            self.sessions.encode(e, ctx)?;
            self.stream.encode(e, ctx)?;
            self.prev.encode(e, ctx)?;
            self.commit_index.encode(e, ctx)?;
            encode_entries(&self.entries, e, ctx)
        }
    }

    impl<'b, C> Decode<'b, C> for Append {
        fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Append, DecodeError> {
            let fields = definite(d)?;
            if fields < FIELDS {
                return Err(DecodeError::message("append has too few fields"));
            }
            let round = Round::decode(d, ctx)?;
            let sessions = Sessions::decode(d, ctx)?;
            let stream = StreamId::decode(d, ctx)?;
            let prev = LogPosition::decode(d, ctx)?;
            let commit_index = Index::decode(d, ctx)?;
            let entries = decode_entries(d, ctx, prev.index)?;
            for _ in FIELDS..fields {
                d.skip()?;
            }
            Ok(Append {
                round,
                sessions,
                stream,
                prev,
                commit_index,
                entries,
            })
        }
    }

    impl<C> Encode<C> for CommittedEntries {
        fn encode<W: Write>(
            &self,
            e: &mut Encoder<W>,
            ctx: &mut C,
        ) -> Result<(), EncodeError<W::Error>> {
            e.array(COMMITTED_FIELDS)?;
            self.prev.encode(e, ctx)?;
            self.ends.encode(e, ctx)?;
            encode_entries(&self.entries, e, ctx)
        }
    }

    impl<'b, C> Decode<'b, C> for CommittedEntries {
        fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<CommittedEntries, DecodeError> {
            let fields = definite(d)?;
            if fields < COMMITTED_FIELDS {
                return Err(DecodeError::message("committed entries: too few fields"));
            }
            let prev = LogPosition::decode(d, ctx)?;
            let ends = bool::decode(d, ctx)?;
            let entries = decode_entries(d, ctx, prev.index)?;
            for _ in COMMITTED_FIELDS..fields {
                d.skip()?;
            }
            Ok(CommittedEntries {
                prev,
                ends,
                entries,
            })
        }
    }

    fn encode_entries<C, W: Write>(
        entries: &[Entry],
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.array(entries.len() as u64 * 2)?;
        for entry in entries {
            entry.term.encode(e, ctx)?;
            entry.payload.encode(e, ctx)?;
        }
        Ok(())
    }

    fn decode_entries<C>(
        d: &mut Decoder<'_>,
        ctx: &mut C,
        prev: Index,
    ) -> Result<Vec<Entry>, DecodeError> {
        let items = definite(d)?;
        if items % 2 != 0 {
            return Err(DecodeError::message("entry without payload"));
        }
        let mut entries = Vec::new();
        for n in 1..=items / 2 {
            let index = prev
                .0
                .checked_add(n)
                .ok_or(DecodeError::message("index overflow"))?;
            let term = Term::decode(d, ctx)?;
            let payload = Payload::decode(d, ctx)?;
            entries.push(Entry {
                index: Index(index),
                term,
                payload,
            });
        }
        Ok(entries)
    }

    fn definite(d: &mut Decoder<'_>) -> Result<u64, DecodeError> {
        d.array()?.ok_or(DecodeError::message("indefinite array"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeKey;
    use crate::id::SessionId;

    fn append() -> Append {
        let (index, term) = (Index(4), Term(2));
        let entry = |index| Entry {
            index: Index(index),
            term,
            payload: Payload::Noop,
        };
        Append {
            round: Round(1),
            sessions: Sessions::of(SessionId(2)),
            stream: StreamId(3),
            prev: LogPosition { index, term },
            commit_index: Index(3),
            entries: (5..8).map(entry).collect(),
        }
    }

    /// The bytes of an append with its field count replaced, and `rest` after its fields.
    fn with_fields(count: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = minicbor::to_vec(append()).expect("encodes");
        assert_eq!(bytes[0], 0x80 + 6, "an array of six");
        bytes[0] = 0x80 + count;
        bytes.extend_from_slice(rest);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Append, minicbor::decode::Error> {
        minicbor::decode(bytes)
    }

    /// What later versions add is skipped, what this one needs is demanded.
    #[test]
    fn appends_of_other_versions() {
        assert_eq!(decode(&with_fields(6, &[])).expect("decodes"), append());
        let longer = with_fields(8, &[0x01, 0x82, 0x01, 0x02]);
        assert_eq!(decode(&longer).expect("decodes"), append());
        let mut decoder = minicbor::Decoder::new(&longer);
        let _: Append = decoder.decode().expect("decodes");
        assert_eq!(decoder.position(), longer.len(), "all of it is read");
        assert!(decode(&with_fields(5, &[])).is_err(), "a field is missing");
        assert!(
            decode(&with_fields(7, &[])).is_err(),
            "a field was promised"
        );
    }

    /// Entries are pairs, and their indexes have an end.
    #[test]
    fn entries_that_cannot_be() {
        let mut lonely = Vec::new();
        let mut e = minicbor::Encoder::new(&mut lonely);
        e.array(6).and_then(|e| e.u64(1)).expect("encodes");
        e.u64(2).and_then(|e| e.u64(3)).expect("encodes");
        e.encode(LogPosition::default()).expect("encodes");
        e.u64(0).and_then(|e| e.array(1)).expect("encodes");
        e.u64(2).expect("encodes");
        assert!(decode(&lonely).is_err(), "a term without a payload");
        let mut last = append();
        last.prev.index = Index(u64::MAX - 2);
        let bytes = minicbor::to_vec(last).expect("encodes");
        assert!(decode(&bytes).is_err(), "the third entry has no index");
    }

    #[test]
    fn keys_are_sixteen_bytes() {
        let key = NodeKey(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
        let bytes = minicbor::to_vec(key).expect("encodes");
        assert_eq!(
            bytes[..3],
            [0x50, 0x01, 0x02],
            "a byte string, big end first"
        );
        assert_eq!(minicbor::decode::<NodeKey>(&bytes).expect("decodes"), key);
        assert!(minicbor::decode::<NodeKey>(&[0x41, 0x01]).is_err());
    }
}
