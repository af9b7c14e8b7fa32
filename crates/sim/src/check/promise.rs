//! Persist before promise: what a frame says of the sender's disk is on it.

use raft::message::{Body, Message};
use raft::{HardState, Index, NodeKey, Term};
use replica::{Publish, Replica};

use super::{At, Checker, Fact};
use crate::trace;
use crate::world::World;

/// What a consensus frame says that has to be backed by the disk.
struct Promise {
    /// The sender's term.
    term: Term,
    /// The whole of it, and whom it is for; `None` for entries and snapshots, whose content does
    /// not matter here.
    said: Option<(Message, Option<NodeKey>)>,
}

const APPEND: u32 = 4;
const SNAPSHOT_CHUNK: u32 = 7;

impl Promise {
    /// Reads no more of a frame's body than is needed; `None` where it is not of consensus.
    fn of(body: &[u8]) -> Option<Promise> {
        let mut body = trace::consensus_body(body)?;
        let begin = body.position();
        body.array().ok()?;
        let term: Term = body.decode().ok()?;
        body.array().ok()?;
        let kind = body.u32().ok()?;
        if kind == APPEND || kind == SNAPSHOT_CHUNK {
            return Some(Promise { term, said: None });
        }
        body.set_position(begin);
        let message = body.decode().ok()?;
        let said = Some((message, body.decode().ok()));
        Some(Promise { term, said })
    }
}

impl World {
    /// Looks at what a node is about to say.
    pub(crate) fn check_promise(&mut self, host: usize, publish: &Publish) {
        let h = &self.hosts[host];
        let body = self.unsealer.body(&h.name, publish);
        let Some(promise) = body.and_then(Promise::of) else {
            return;
        };
        let key = h.disk.key;
        let kept = h.disk.durable.hard_state;
        let raft = h.replica().and_then(Replica::raft).expect("it speaks");
        let founds = match &self.judge.formation {
            Some(formation) => formation.voters.contains_key(&key),
            None => raft.configuration().is_voter(key),
        };
        // Who asks and who votes is or was a member; whose votes count is judged where they are
        // counted.
        let votes = founds || self.judge.logs.was_member(key);
        // The formation record stands for term 1 and entry 1 until they are written themselves.
        let formed = Index(u64::from(founds));
        let term = kept.term.max(Term(formed.0));
        let at = At {
            now: self.now,
            host,
            name: h.name.as_str(),
        };
        let Some((message, to)) = promise.said else {
            let spoken = promise.term;
            if term < spoken {
                unkept(at, kept, format_args!("leads term {spoken}"));
            }
            let sessions = self.hosts[host].seen.leading.announces(spoken);
            let h = &self.hosts[host];
            let at = At {
                now: self.now,
                host,
                name: h.name.as_str(),
            };
            let fact = Fact::SpeaksAsLeader {
                key,
                term: spoken,
                sessions,
            };
            return self.judge.learn(at, fact);
        };
        let last_index = h.disk.last_index().max(formed);
        if !is_kept(&message, to, votes, key, kept, term, last_index) {
            let end = h.disk.last_index();
            unkept(
                at,
                kept,
                format_args!("says {message:?} with log end {end}"),
            );
        }
        let term = message.term;
        match &message.body {
            Body::RequestPreVote(_) => self.judge.learn(at, Fact::AsksFirst { key, term }),
            Body::Acknowledge(_) if self.judge.conduct.waits(key, term) => {
                self.judge.learn(at, Fact::Follows { key, term });
            }
            _ => {}
        }
        if let (Body::TimeoutNow(request), Some(to)) = (&message.body, to) {
            let request = *request;
            self.judge.learn(at, Fact::Hands { to, term, request });
        }
        let candidate = match &message.body {
            Body::RequestVote(_) => Some(key),
            Body::Vote(vote) if vote.granted => to,
            _ => None,
        };
        if let Some(candidate) = candidate {
            let takes_over = matches!(&message.body, Body::RequestVote(r) if r.transfer);
            let fact = Fact::Votes {
                key,
                term,
                candidate,
                takes_over,
            };
            self.judge.learn(at, fact);
        }
    }
}

fn unkept(at: At, kept: HardState, what: std::fmt::Arguments) -> ! {
    at.broken(
        Checker::PersistBeforePromise,
        format_args!("{what}, but its disk holds {kept:?}"),
    );
}

fn is_kept(
    message: &Message,
    to: Option<NodeKey>,
    votes: bool,
    me: NodeKey,
    kept: HardState,
    term: Term,
    last_index: Index,
) -> bool {
    let voted = |candidate| {
        let given = term == message.term && kept.voted_for == candidate;
        votes && (given || term > message.term)
    };
    match &message.body {
        Body::RequestPreVote(_) => votes,
        Body::RequestVote(_) => voted(Some(me)),
        Body::Vote(vote) if vote.granted => to.is_some() && voted(to),
        Body::Acknowledge(acknowledge) => {
            term >= message.term && last_index >= acknowledge.match_index
        }
        Body::PreVote(_)
        | Body::Vote(_)
        | Body::Append(_)
        | Body::Reject(_)
        | Body::SnapshotChunk(_)
        | Body::SnapshotProgress(_)
        | Body::TimeoutNow(_)
        | Body::Fetch(_)
        | Body::Fetched(_) => term >= message.term,
    }
}
