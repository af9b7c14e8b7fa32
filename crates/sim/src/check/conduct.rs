//! How nodes lead and campaign: what they promise beyond the log.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raft::{NodeKey, SessionId, Term, Time};
use replica::Input;

use super::{At, Checker};
use crate::node::{Host, Kind, Process};
use crate::world::World;

/// A leader that no quorum confirms steps down after one election timeout: twice that is more
/// than any rounding of it.
const PATIENCE: u32 = 2;

/// Who led in which sessions, who asked before a campaign, and who was told of a leader's end.
#[derive(Debug, Default)]
pub(super) struct Conduct {
    spoken_in: BTreeMap<Term, BTreeSet<SessionId>>,
    asked_first: BTreeMap<NodeKey, Term>,
    /// In which term, since its last vote and its last leader.
    told: BTreeMap<NodeKey, Term>,
    campaigned: BTreeMap<NodeKey, Term>,
}

impl Conduct {
    /// A node leads a term, and has this session.
    pub(super) fn speaks(&mut self, term: Term, session: SessionId) {
        self.spoken_in.entry(term).or_default().insert(session);
    }

    /// A node of this term hears that a session ended.
    pub(super) fn hears_end(&mut self, key: NodeKey, term: Term, session: SessionId) {
        let leaders = self.spoken_in.get(&term);
        if leaders.is_some_and(|sessions| sessions.contains(&session)) {
            self.told.insert(key, term);
        }
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

    /// A node stands for election in a new term: whoever merely heard nothing asks first.
    pub(super) fn campaigns(&mut self, at: At, key: NodeKey, term: Term) {
        if self.campaigned.insert(key, term) == Some(term) {
            return;
        }
        let before = Term(term.0 - 1);
        let told = self.told.remove(&key).is_some();
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

/// A node may call itself the only leader, now or later.
pub(super) fn claims(at: At, term: Term, committed: Term, connected: bool) {
    if !connected {
        at.broken(
            Checker::LeaseConditions,
            format_args!("claims term {term} without a session"),
        );
    }
    if committed != term {
        at.broken(
            Checker::LeaseConditions,
            format_args!("claims term {term}, the last it has committed is of term {committed}"),
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

/// What was seen of how a process leads.
#[derive(Clone, Debug, Default)]
pub(super) struct Leading {
    /// The present session of the process.
    session: Option<SessionId>,
    /// When each other host was last heard, since the process leads.
    heard: BTreeMap<usize, Time>,
    since: Time,
}

impl Leading {
    pub(super) fn session(&self) -> Option<SessionId> {
        self.session
    }

    pub(super) fn begins(&mut self, now: Time) {
        self.heard.clear();
        self.since = now;
    }

    /// How long ago so many others were heard, or the leadership began.
    pub(super) fn unheard(&self, others: usize, now: Time) -> Duration {
        let Some(last) = others.checked_sub(1) else {
            return Duration::ZERO; // It is a quorum by itself.
        };
        let mut heard: Vec<Time> = self.heard.values().copied().collect();
        heard.sort_unstable_by(|a, b| b.cmp(a));
        now.since(heard.get(last).copied().unwrap_or(self.since))
    }
}

impl World {
    /// Looks at what a node is about to be given.
    pub(crate) fn check_inputs(&mut self, host: usize, inputs: &[Input], now: Time) {
        self.hosts[host].seen.ends.clear();
        for input in inputs {
            match input {
                Input::Connected { epoch } => {
                    let h = &mut self.hosts[host];
                    if let Some(Process::Node(_, plan)) = &h.process {
                        h.seen.leading.session = session_of(&plan.will(*epoch).payload);
                    }
                }
                Input::Disconnected => self.hosts[host].seen.leading.session = None,
                Input::Received {
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

    /// A leader hears from a voter.
    fn check_heard(&mut self, host: usize, path: &str, from: &str, now: Time) {
        if self.hosts[host].seen.leads() && !path.ends_with("/all") {
            let mut hosts = self.hosts.iter();
            let is_sender = |h: &Host| h.kind == Kind::Voter && h.name.as_str() == from;
            if let Some(sender) = hosts.position(is_sender) {
                self.hosts[host].seen.leading.heard.insert(sender, now);
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
