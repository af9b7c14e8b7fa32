//! How nodes lead and campaign: what they promise beyond the log.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raft::message::TimeoutNow;
use raft::{Configuration, LeaseEpoch, LogPosition, Members, NodeKey, SessionId, Term, Time};
use replica::{Input, Link};

use super::claims::Promise;
use super::{At, Checker};
use crate::node::{Host, Kind, Process};
use crate::world::World;

/// A leader that no quorum confirms steps down after one election timeout: twice that is more
/// than any rounding of it.
const PATIENCE: u32 = 2;

/// Who led in which sessions, who asked before a campaign, and who was told of a leader's end.
#[derive(Debug, Default)]
pub(super) struct Conduct {
    spoken_in: BTreeMap<Term, BTreeSet<BTreeSet<SessionId>>>,
    /// Which of a leader's sessions a node heard end in a term.
    heard: BTreeMap<(NodeKey, Term), BTreeSet<SessionId>>,
    asked_first: BTreeMap<NodeKey, Term>,
    /// In which term, since its last vote and its last leader.
    told: BTreeMap<NodeKey, Term>,
    campaigned: BTreeMap<NodeKey, Term>,
    /// How many campaigns began after the end of a leader was heard of, after asking, and as a leader
    /// wanted.
    pub(super) begun: [u64; 3],
    /// Whom the leader of which term asked to take over, with which logs and when by their clocks.
    handed: BTreeMap<(NodeKey, Term), Vec<TimeoutNow>>,
    /// Lease epochs that were given up for that.
    released: BTreeSet<LeaseEpoch>,
    /// With which log a node began its newest campaign, and when by its own clock.
    stood: BTreeMap<NodeKey, Stood>,
}

/// How a campaign began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stood {
    pub(super) term: Term,
    pub(super) last: LogPosition,
    pub(super) now: Time,
    pub(super) timeout: Duration,
}

impl Conduct {
    /// A node leads a term, and is heard in these sessions at once.
    pub(super) fn speaks(&mut self, term: Term, sessions: BTreeSet<SessionId>) {
        self.spoken_in.entry(term).or_default().insert(sessions);
    }

    /// A node of this term hears that a session ended. Its leader is gone for it if all sessions in
    /// which that was heard at one time have ended, and each in this term.
    pub(super) fn hears_end(&mut self, key: NodeKey, term: Term, session: SessionId) {
        let Some(spoken_in) = self.spoken_in.get(&term) else {
            return;
        };
        if !spoken_in.iter().any(|sessions| sessions.contains(&session)) {
            return;
        }
        let heard = self.heard.entry((key, term)).or_default();
        heard.insert(session);
        let ended = |sessions: &BTreeSet<_>| !sessions.is_empty() && sessions.is_subset(heard);
        if spoken_in.iter().any(ended) {
            self.told.insert(key, term);
        }
    }

    /// Whether a node was told of a leader's end, and has not stood since.
    pub(super) fn is_told(&self, key: NodeKey) -> bool {
        self.told.contains_key(&key)
    }

    /// Whether it would make a difference if this node followed a leader of this term.
    pub(super) fn waits(&self, key: NodeKey, term: Term) -> bool {
        self.told.get(&key).is_some_and(|told| *told < term)
    }

    /// A node has a leader of this term, or gives its vote to someone else: what it was told of
    /// an earlier leader is over.
    pub(super) fn follows(&mut self, key: NodeKey, term: Term) {
        if self.waits(key, term) {
            self.told.remove(&key);
        }
    }

    /// A node of this term asks whether others would vote for it.
    pub(super) fn asks_first(&mut self, key: NodeKey, term: Term) {
        self.asked_first.insert(key, term);
    }

    /// The leader of a term asks a node to take over.
    pub(super) fn hands(&mut self, to: NodeKey, term: Term, request: TimeoutNow) {
        self.released.extend(request.released);
        self.handed.entry((to, term)).or_default().push(request);
    }

    /// What was released to a node when it was asked to take over and lead `term`.
    pub(super) fn released(&self, key: NodeKey, term: Term) -> BTreeSet<LeaseEpoch> {
        let handed = self.handed.get(&(key, Term(term.0 - 1)));
        let released = handed.into_iter().flatten().map(|request| request.released);
        released.flatten().collect()
    }

    /// A node may call itself the only leader, now or later.
    pub(super) fn may_claim(&self, at: At, promise: &Promise) {
        let Promise {
            epoch,
            ahead,
            lease,
            committed,
            connected,
            votes,
            ..
        } = promise;
        let why = if !connected {
            "it has no session".to_owned()
        } else if committed != epoch {
            format!("the newest epoch that it has committed is {committed}")
        } else if self.released.contains(epoch) {
            "it has released that".to_owned()
        } else if !votes {
            "it has no vote".to_owned()
        } else if ahead > lease {
            format!("it claims {ahead:?} ahead, and the lease is {lease:?}")
        } else {
            return;
        };
        at.broken(
            Checker::LeaseConditions,
            format_args!("claims lease epoch {epoch}: {why}"),
        );
    }

    /// A node begins a campaign.
    pub(super) fn stands(&mut self, key: NodeKey, stood: Stood) {
        self.stood.insert(key, stood);
    }

    /// A node asks for votes as one whom the leader wants to take over. It is that only with the
    /// log that the leader knew of, and within an election timeout.
    fn takes_over(&self, at: At, key: NodeKey, term: Term) {
        let before = Term(term.0 - 1);
        let stood = self.stood.get(&key).filter(|stood| stood.term == term);
        let wanted = |request: &TimeoutNow| {
            let in_time = |stood: &&Stood| {
                request.clock <= stood.now && stood.now < request.clock + stood.timeout
            };
            let as_known = |stood: &&Stood| stood.last == request.last;
            stood.filter(in_time).filter(as_known).is_some()
        };
        let handed = self
            .handed
            .get(&(key, before))
            .map_or(&[][..], Vec::as_slice);
        if !handed.iter().any(wanted) {
            at.broken(
                Checker::TakeOver,
                format_args!(
                    "takes over in term {term}, as it stood {stood:?}; what it was asked: {handed:?}"
                ),
            );
        }
    }

    /// A node stands for election in a new term: whoever merely heard nothing asks first.
    pub(super) fn campaigns(&mut self, at: At, key: NodeKey, term: Term, takes_over: bool) {
        if self.campaigned.insert(key, term) == Some(term) {
            return;
        }
        if takes_over {
            self.told.remove(&key);
            self.begun[2] += 1;
            return self.takes_over(at, key, term);
        }
        let before = Term(term.0 - 1);
        let told = self.told.remove(&key).is_some();
        let asked_first = self.asked_first.get(&key) == Some(&before);
        self.begun[usize::from(asked_first)] += 1;
        if !told && self.asked_first.get(&key) != Some(&before) {
            at.broken(
                Checker::PreVote,
                format_args!(
                    "campaigns in term {term}: it neither asked first in term {before} nor was told \
                     that its last leader's session ended"
                ),
            );
        }
    }
}

/// A leader hands over for a metric.
pub(super) fn hands_over(at: At, led: Duration, tenure: Duration) {
    if led < tenure {
        at.broken(
            Checker::HandOverPace,
            format_args!("hands over after {led:?}, and keeps the lead for {tenure:?} at least"),
        );
    }
}

/// A leader goes on, this long on its clock after it heard of a quorum.
pub(super) fn leads_on(at: At, unheard: Duration, timeout: Duration) {
    if unheard > PATIENCE * timeout {
        at.broken(
            Checker::CheckQuorum,
            format_args!(
                "leads {unheard:?} after it last heard of a quorum, with an election timeout of \
                 {timeout:?}"
            ),
        );
    }
}

/// For how long a change of the leader slows down the next, and how many do.
const MEMORY: Duration = Duration::from_secs(600);
const MAX_DOUBLINGS: usize = 6;

/// How often the lead changed, as one process saw it.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    leader: Option<NodeKey>,
    since: Time,
    changes: Vec<Time>,
}

impl Pace {
    pub(super) fn sees(&mut self, leader: Option<NodeKey>, now: Time) {
        if leader.is_none() || leader == self.leader {
            return;
        }
        if self.leader.is_some() {
            self.changes.push(now);
        }
        (self.leader, self.since) = (leader, now);
    }

    /// How long the leader has led, and how many changes count.
    pub(super) fn so_far(&self, now: Time) -> (Duration, usize) {
        let lately = |at: &&Time| now.since(**at) < MEMORY;
        let changes = self.changes.iter().filter(lately).count();
        (now.since(self.since), changes.min(MAX_DOUBLINGS))
    }
}

/// What was seen of how a process leads.
#[derive(Clone, Debug, Default)]
pub(super) struct Leading {
    /// The present sessions of the process,
    sessions: BTreeMap<Link, SessionId>,
    /// and what it has had since it last spoke as a leader: it may have announced each.
    meanwhile: Vec<BTreeSet<SessionId>>,
    announced: Option<Term>,
    /// When each other node was last heard, since the process leads.
    heard: BTreeMap<NodeKey, Time>,
    since: Time,
}

impl Leading {
    pub(super) fn is_connected(&self) -> bool {
        !self.sessions.is_empty()
    }

    fn has_now(&mut self) {
        self.meanwhile
            .push(self.sessions.values().copied().collect());
    }

    /// The process speaks as the leader of a term: in which sessions it may have said to be heard.
    pub(super) fn announces(&mut self, term: Term) -> Vec<BTreeSet<SessionId>> {
        if self.announced.replace(term) != Some(term) {
            self.has_now();
        }
        std::mem::take(&mut self.meanwhile)
    }

    pub(super) fn begins(&mut self, now: Time) {
        self.heard.clear();
        self.since = now;
    }

    /// How long ago a quorum was heard, or the leadership began.
    pub(super) fn unheard(&self, by: &Configuration, me: NodeKey, now: Time) -> Duration {
        let heard = |key: &NodeKey| match *key == me {
            true => now,
            false => self.heard.get(key).copied().unwrap_or(self.since),
        };
        let majority = |set: &Members| {
            let mut heard: Vec<Time> = set.keys().map(heard).collect();
            heard.sort_unstable_by(|a, b| b.cmp(a));
            heard.get(set.len() / 2).copied().unwrap_or(now)
        };
        let heard = majority(&by.voters).min(majority(&by.outgoing));
        now.since(heard)
    }
}

impl World {
    /// Looks at what a node is about to be given.
    pub(crate) fn check_inputs(&mut self, host: usize, inputs: &[Input], now: Time) {
        let seen = &mut self.hosts[host].seen;
        seen.ends.clear();
        if !seen.leads() {
            // Whatever it was connected to before, it is as a leader that it announces it.
            seen.leading.meanwhile.clear();
            seen.leading.has_now();
        }
        for input in inputs {
            match input {
                Input::Connected(session) => {
                    let h = &mut self.hosts[host];
                    if let Some(Process::Node(_, plan)) = &h.process
                        && let Some(id) = session_of(&plan.will(*session).payload)
                    {
                        h.seen.leading.sessions.insert(session.link, id);
                        h.seen.leading.has_now();
                    }
                }
                Input::Disconnected(link) => {
                    let leading = &mut self.hosts[host].seen.leading;
                    leading.sessions.remove(link);
                    leading.has_now();
                }
                Input::Received {
                    over: _,
                    topic,
                    payload,
                    retained: false,
                } => {
                    let (path, last) = topic.rsplit_once('/').unwrap_or_default();
                    match last {
                        "status" => self.hosts[host].seen.ends.extend(ended(payload)),
                        from => self.check_heard(host, path, from, now),
                    }
                }
                _ => {}
            }
        }
    }

    /// A leader hears from a node.
    fn check_heard(&mut self, host: usize, path: &str, from: &str, now: Time) {
        if self.hosts[host].seen.leads() && !path.ends_with("/all") {
            let mut hosts = self.hosts.iter();
            let is_double = |h: &Host| matches!(h.kind, Kind::Double(_));
            let is_sender = |h: &&Host| !is_double(h) && h.name.as_str() == from;
            if let Some(sender) = hosts.find(is_sender) {
                let key = sender.disk.key;
                self.hosts[host].seen.leading.heard.insert(key, now);
            }
        }
    }
}

/// The session that a status speaks of: how the judge reads it, not how nodes do.
fn session_of(status: &[u8]) -> Option<SessionId> {
    let text = std::str::from_utf8(status).ok()?;
    let (_, rest) = text.split_once("\"session\":\"")?;
    u64::from_str_radix(rest.get(..16)?, 16).ok().map(SessionId)
}

/// The session of whose end a status tells.
fn ended(status: &[u8]) -> Option<SessionId> {
    let text = std::str::from_utf8(status).ok()?;
    let ends = text.contains("\"state\":\"offline\"");
    ends.then(|| session_of(status)).flatten()
}
