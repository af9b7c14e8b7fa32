//! Messages of consensus that have the right form, and the answers of a node that plays along.

use bytes::Bytes;
use raft::message::{
    Acknowledge, Append, Body, PreVote, Reject, SnapshotChunk, SnapshotProgress, Vote, VoteRequest,
};
use raft::{
    ClientId, Command, Configuration, Entry, Index, LogPosition, Message, NodeKey, Payload,
    RequestNumber, Round, SessionId, Sessions, Settings, SnapshotMeta, StreamId, Term,
};

use crate::reader::Reader;

/// Any message of any term, about to or beyond `term`.
pub fn message(reader: &mut Reader<'_>, term: Term) -> Message {
    let term = match reader.below(8) {
        0 => term.next(),
        1 => Term(reader.number()),
        _ => term,
    };
    let body = match reader.below(9) {
        0 => Body::RequestPreVote(VoteRequest {
            last: position(reader),
            transfer: false,
        }),
        1 => Body::PreVote(PreVote {
            proposed_term: match reader.below(4) {
                0 => Term(reader.number()),
                _ => term.next(),
            },
            granted: reader.below(4) > 0,
        }),
        2 => Body::RequestVote(VoteRequest {
            last: position(reader),
            transfer: false,
        }),
        3 => Body::Vote(Vote {
            granted: reader.below(4) > 0,
        }),
        4 => Body::Append(append(reader)),
        5 => Body::Acknowledge(Acknowledge {
            round: Round(reader.number()),
            stream: StreamId(reader.number()),
            match_index: Index(reader.number()),
            clock: raft::Time(0),
        }),
        6 => Body::Reject(Reject {
            round: Round(reader.number()),
            stream: StreamId(reader.number()),
            hint: position(reader),
        }),
        7 => Body::SnapshotChunk(Box::new(chunk(reader))),
        _ => Body::SnapshotProgress(SnapshotProgress {
            round: Round(reader.number()),
            stream: StreamId(reader.number()),
            offset: reader.number(),
        }),
    };
    Message { term, body }
}

/// What a follower that has everything says to `message`, and a voter that always grants.
pub fn answer(message: &Message) -> Option<Message> {
    let body = match &message.body {
        Body::RequestPreVote(_) => Body::PreVote(PreVote {
            proposed_term: message.term.next(),
            granted: true,
        }),
        Body::RequestVote(_) => Body::Vote(Vote { granted: true }),
        Body::Append(append) => Body::Acknowledge(Acknowledge {
            round: append.round,
            stream: append.stream,
            match_index: append
                .entries
                .last()
                .map_or(append.prev.index, |entry| entry.index),
            clock: raft::Time(0),
        }),
        Body::SnapshotChunk(chunk) => Body::SnapshotProgress(SnapshotProgress {
            round: chunk.round,
            stream: chunk.stream,
            offset: chunk.offset + chunk.data.len() as u64,
        }),
        Body::PreVote(_)
        | Body::Vote(_)
        | Body::Acknowledge(_)
        | Body::Reject(_)
        | Body::SnapshotProgress(_)
        | Body::TimeoutNow(_)
        | Body::Fetch(_)
        | Body::Fetched(_) => return None,
    };
    let term = message.term;
    Some(Message { term, body })
}

fn position(reader: &mut Reader<'_>) -> LogPosition {
    LogPosition {
        index: Index(reader.number()),
        term: Term(reader.number()),
    }
}

fn append(reader: &mut Reader<'_>) -> Append {
    let prev = position(reader);
    let mut term = prev.term;
    let mut entries = Vec::new();
    for n in 1..=reader.below(6) as u64 {
        let Some(index) = prev.index.0.checked_add(n) else {
            break; // The codec decodes no such entry.
        };
        term = match reader.below(6) {
            0 => Term(reader.number()),
            1 => term.next(),
            _ => term,
        };
        entries.push(Entry {
            index: Index(index),
            term,
            payload: payload(reader),
        });
    }
    Append {
        round: Round(reader.number()),
        sessions: sessions(reader),
        stream: StreamId(reader.number()),
        prev,
        commit_index: Index(reader.number()),
        entries,
    }
}

fn payload(reader: &mut Reader<'_>) -> Payload {
    match reader.below(4) {
        0 => Payload::Noop,
        1 => Payload::Configuration(configuration(reader)),
        _ => Payload::Command(Command {
            client: ClientId(reader.number()),
            request: RequestNumber(reader.number()),
            data: Bytes::copy_from_slice(reader.sized()),
        }),
    }
}

/// Up to seven voters, perhaps none.
fn configuration(reader: &mut Reader<'_>) -> Configuration {
    let members = (1..=reader.below(8) as u128).map(|n| (NodeKey(n), format!("gw-{n}")));
    let settings = Settings {
        lease_ms: reader.number() as u32,
        ..Settings::default()
    };
    Configuration::of(members.collect(), settings)
}

fn chunk(reader: &mut Reader<'_>) -> SnapshotChunk {
    let data = Bytes::copy_from_slice(reader.sized());
    SnapshotChunk {
        round: Round(reader.number()),
        stream: StreamId(reader.number()),
        sessions: sessions(reader),
        meta: SnapshotMeta {
            last: position(reader),
            configuration: configuration(reader),
            epoch: raft::LeaseEpoch::default(),
        },
        length: match reader.below(4) {
            0 => reader.number(),
            _ => data.len() as u64,
        },
        offset: match reader.below(4) {
            0 => reader.number(),
            _ => 0,
        },
        data,
    }
}

/// Up to one session more than there can be.
pub fn sessions(reader: &mut Reader<'_>) -> Sessions {
    let count = reader.below(Sessions::MAX + 2);
    (0..count).map(|_| SessionId(reader.number())).collect()
}
