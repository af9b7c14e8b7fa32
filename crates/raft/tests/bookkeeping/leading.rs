//! A leader's bookkeeping against a twin that keeps every word ever said and counts it all again
//! after each step: what is committed, what is under way, which reads may be answered, how long
//! the lease runs, when the quorum is lost. Configurations are joint as often as not.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use raft::message::{Acknowledge, Append, Body, PreVote, Vote};
use raft::{
    ClientId, Command, Configuration, Durable, Effect, Entry, HardState, Index, Input, Lease,
    LeaseEpoch, Members, Message, NodeKey, Options, Payload, PersistSeq, Raft, ReadId, Refusal,
    Rejection, RequestNumber, Role, Round, SessionId, Sessions, Settings, StreamId, Term, Time,
};

const ME: NodeKey = NodeKey(1);

/// The term that the leader wins: the formation record's is 1.
const TERM: Term = Term(2);

/// Keys that say something: members, and strangers among them.
const KEYS: u128 = 8;

fn options(window: usize, budget: usize, backlog: usize) -> Options {
    Options {
        max_in_flight: window,
        max_append_bytes: 100,
        max_uncommitted_bytes: budget,
        max_unpersisted_bytes: backlog,
        max_command_bytes: 60,
        ..Options::default()
    }
}

fn settings() -> Settings {
    Settings {
        lease_ms: 600, // A third of it is less than the heartbeat interval.
        drift_ppm: 10_000,
        lease_reads: false,
    }
}

/// Which keys vote: this node always, of the others bit n of each number says so for key n + 2.
fn configuration(voters: u8, outgoing: u8, learners: u8) -> Configuration {
    let set = |bits: u8| -> Members {
        let others = (0..5).filter(move |n| bits >> n & 1 == 1);
        others
            .map(|n| (NodeKey(n + 2), format!("n{}", n + 2)))
            .collect()
    };
    let mut configuration = Configuration {
        outgoing: set(outgoing),
        learners: set(learners),
        ..Configuration::of(set(voters), settings())
    };
    configuration.voters.insert(ME, "n1".to_owned());
    configuration
}

#[derive(Clone, Copy, Debug)]
enum Act {
    /// `from` acknowledges: an index so far before (or beyond) what was sent, a round so far
    /// before (or beyond) the newest.
    Acknowledge {
        from: u128,
        match_back: i64,
        round_back: i64,
    },
    Propose {
        count: usize,
        size: usize,
    },
    Read,
    /// The disk confirms the oldest write, or the newest and with it all.
    Persisted {
        all: bool,
    },
    Wait {
        ms: u64,
    },
    /// Time passes until the leader wants to be woken.
    Tick,
    Session {
        connected: bool,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let from = 2..=KEYS;
    prop_oneof![
        12 => (from, prop_oneof![4 => Just(0_i64), 2 => 0..4_i64, 1 => -2..0_i64],
            prop_oneof![4 => Just(0_i64), 3 => 0..6_i64, 1 => -2..0_i64])
            .prop_map(|(from, match_back, round_back)| Act::Acknowledge {
                from, match_back, round_back,
            }),
        4 => (1..5_usize, 0..70_usize).prop_map(|(count, size)| Act::Propose { count, size }),
        3 => Just(Act::Read),
        5 => any::<bool>().prop_map(|all| Act::Persisted { all }),
        3 => (0..200_u64).prop_map(|ms| Act::Wait { ms }),
        4 => Just(Act::Tick),
        1 => prop::bool::weighted(0.8).prop_map(|connected| Act::Session { connected }),
    ]
}

/// Everything that was ever said, in its order.
struct Twin {
    configuration: Configuration,
    options: Options,
    won_at: Time,
    now: Time,
    connected: bool,
    /// The log from index 1, and where the disk's ends.
    entries: Vec<Entry>,
    persisted: Index,
    /// Writes that were asked for: what the disk holds once they are done.
    writes: Vec<(PersistSeq, Index)>,
    /// Every round ever sent, and when.
    rounds: Vec<(Round, Time)>,
    /// Every append that was broadcast, in its order.
    appends: Vec<(Time, Append)>,
    /// Every acknowledgement that was to be believed.
    acknowledged: Vec<(NodeKey, Acknowledge)>,
    /// What was committed after the last step, and when the followers were first left untold.
    committed: Index,
    untold_since: Option<Time>,
    /// How often followers were told of a commit and of nothing else.
    news: usize,
    /// Reads that wait: the round that must be confirmed, and what must be committed.
    reads: Vec<(ReadId, Round, Index)>,
    requests: u64,
}

impl Twin {
    /// Counts heads in each half.
    fn has_quorum(&self, has: impl Fn(NodeKey) -> bool) -> bool {
        let majority = |set: &Members| {
            let ayes = set.keys().filter(|key| has(**key)).count();
            2 * ayes > set.len()
        };
        let Configuration {
            voters, outgoing, ..
        } = &self.configuration;
        majority(voters) && (outgoing.is_empty() || majority(outgoing))
    }

    fn is_member(&self, key: NodeKey) -> bool {
        let Configuration {
            voters,
            outgoing,
            learners,
            ..
        } = &self.configuration;
        [voters, outgoing, learners]
            .iter()
            .any(|set| set.contains_key(&key))
    }

    fn last(&self) -> Index {
        Index(self.entries.len() as u64)
    }

    /// How far the log was broadcast. What the leader inherited was its predecessor's to send.
    fn sent(&self) -> Index {
        let ends = self.appends.iter().filter_map(|(_, a)| a.entries.last());
        ends.map(|entry| entry.index).max().unwrap_or(Index(1))
    }

    fn newest_round(&self) -> Round {
        self.rounds.last().map_or(Round(0), |(round, _)| *round)
    }

    /// Whether a broadcast only tells of a commit that was left untold for long enough: it repeats
    /// the newest round, and asks for no answer.
    fn is_news(&self, append: &Append) -> bool {
        let due = |since: Time| self.now >= since + self.options.commit_notice;
        let sent = (self.newest_round(), self.sent(), self.committed);
        let repeats = (append.round, append.prev.index, append.commit_index) == sent;
        repeats && append.entries.is_empty() && self.untold_since.is_some_and(due)
    }

    /// The greatest index of this term that a quorum holds on disk; never less than before.
    fn commit_index(&self) -> Index {
        let holds = |key: NodeKey, index: Index| match key == ME {
            true => self.persisted >= index,
            false => self
                .acknowledged
                .iter()
                .any(|(from, said)| *from == key && said.match_index >= index),
        };
        let of_this_term = self.entries.iter().filter(|entry| entry.term == TERM);
        let committed = of_this_term
            .map(|entry| entry.index)
            .filter(|index| self.has_quorum(|key| holds(key, *index)));
        committed.max().unwrap_or_default().max(self.committed)
    }

    fn sent_at(&self, round: Round) -> Option<Time> {
        let sent = self.rounds.iter().find(|(sent, _)| *sent == round);
        sent.map(|(_, at)| *at)
    }

    /// The newest round that a quorum has echoed. This node needs no echo of its own.
    fn confirmed_round(&self) -> Option<(Round, Time)> {
        if self.has_quorum(|key| key == ME) {
            return Some((self.newest_round(), self.now));
        }
        let confirms = |key: NodeKey, round: Round| {
            let mut said = self.acknowledged.iter();
            key == ME || said.any(|(from, said)| *from == key && said.round >= round)
        };
        let confirmed = self.rounds.iter().rev();
        confirmed
            .filter(|(round, _)| self.has_quorum(|key| confirms(key, *round)))
            .copied()
            .next()
    }

    fn quorum_ends(&self) -> Time {
        let confirmed = self.confirmed_round().map_or(self.won_at, |(_, at)| at);
        confirmed.max(self.won_at) + self.options.election_timeout
    }

    fn lease(&self) -> Option<Lease> {
        let opened = self.entries.iter().find(|entry| entry.term == TERM)?.index;
        let (_, confirmed_at) = self.confirmed_round()?;
        let holds = self.connected && self.committed >= opened;
        holds.then(|| Lease {
            epoch: LeaseEpoch {
                term: TERM,
                number: 0,
            },
            from: self.won_at + settings().lease_wait(),
            until: confirmed_at + settings().lease(),
        })
    }

    fn heartbeat_interval(&self) -> Duration {
        self.options.heartbeat_interval.min(settings().lease() / 3)
    }

    /// What the leader answers to commands, in order.
    fn admit(&self, sizes: &[usize]) -> Vec<Option<Refusal>> {
        let command = |entry: &Entry| match &entry.payload {
            Payload::Command(command) => command.size(),
            _ => 0,
        };
        let uncommitted = self.entries.iter().filter(|e| e.index > self.committed);
        let mut held: usize = uncommitted.map(command).sum();
        let unpersisted = self.entries.iter().filter(|e| e.index > self.persisted);
        let mut waiting: usize = unpersisted.map(command).sum();
        let answers = sizes.iter().map(|size| {
            let command = self::command(0, *size);
            if !self.connected {
                return Some(Refusal::NotLeader { leader: None });
            }
            if *size > self.options.max_command_bytes {
                let limit = self.options.max_command_bytes;
                return Some(Refusal::TooLarge { limit });
            }
            if held > 0 && held + command.size() > self.options.max_uncommitted_bytes {
                return Some(Refusal::Busy);
            }
            if waiting > 0 && waiting + command.size() > self.options.max_unpersisted_bytes {
                return Some(Refusal::Busy);
            }
            held += command.size();
            waiting += command.size();
            None
        });
        answers.collect()
    }

    /// Broadcast appends of which a quorum does not hold all yet.
    fn under_way(&self) -> usize {
        let ends = self.appends.iter().filter_map(|(_, a)| a.entries.last());
        ends.filter(|entry| entry.index > self.committed).count()
    }
}

fn command(request: u64, size: usize) -> Command {
    Command {
        client: ClientId(1),
        request: RequestNumber(request),
        data: Bytes::from(vec![b'x'; size]),
    }
}

/// The leader, and beside it the twin.
struct Pair {
    raft: Raft,
    twin: Twin,
}

impl Pair {
    /// This node wins an election in `configuration`, whoever that takes.
    fn new(configuration: Configuration, options: Options) -> Pair {
        let formation = Entry {
            index: Index(1),
            term: Term(1),
            payload: Payload::Configuration(configuration.clone()),
        };
        let hard_state = HardState {
            term: Term(1),
            voted_for: None,
        };
        let durable = Durable {
            hard_state,
            snapshot: None,
            entries: vec![formation.clone()],
        };
        let raft = Raft::new(ME, options, 1, durable, Time(1_000));
        let twin = Twin {
            configuration,
            options,
            won_at: Time(0),
            now: Time(1_000),
            connected: true,
            entries: vec![formation],
            persisted: Index(1),
            writes: Vec::new(),
            rounds: Vec::new(),
            appends: Vec::new(),
            acknowledged: Vec::new(),
            committed: Index(0),
            untold_since: None,
            news: 0,
            reads: Vec::new(),
            requests: 0,
        };
        let mut pair = Pair { raft, twin };
        pair.step(Input::Sessions(Sessions::of(SessionId(1))));
        pair.win();
        pair
    }

    /// Votes are counted one by one: the candidate leads with exactly the first quorum of them.
    fn win(&mut self) {
        self.twin.now = self.raft.next_deadline().expect("a voter campaigns");
        self.step(Input::Tick);
        let granted = true;
        let proposed_term = TERM;
        self.collect(
            Role::PreCandidate,
            Message {
                term: Term(1),
                body: Body::PreVote(PreVote {
                    proposed_term,
                    granted,
                }),
            },
            true,
        );
        assert_eq!(
            (self.raft.role(), self.raft.term()),
            (Role::Candidate, TERM)
        );
        self.step(Input::Persisted(
            self.twin.writes.last().expect("its vote").0,
        ));
        self.twin.won_at = self.twin.now;
        self.collect(
            Role::Candidate,
            Message {
                term: TERM,
                body: Body::Vote(Vote { granted }),
            },
            false,
        );
        assert_eq!(self.raft.role(), Role::Leader);
        self.check();
    }

    /// Everyone says `message`, strangers first, until the twin counts a quorum.
    fn collect(&mut self, role: Role, message: Message, strangers: bool) {
        let mut granted = BTreeSet::from([ME]);
        if strangers {
            let from = NodeKey(KEYS + 1);
            let message = message.clone();
            if !self.twin.has_quorum(|key| granted.contains(&key)) {
                self.step(Input::Message { from, message });
            }
        }
        for key in 2..=KEYS {
            if self.twin.has_quorum(|key| granted.contains(&key)) {
                return;
            }
            let from = NodeKey(key);
            if !self.twin.configuration.is_voter(from) {
                continue;
            }
            assert_eq!(self.raft.role(), role, "{granted:?} are no quorum");
            granted.insert(from);
            let message = message.clone();
            self.step(Input::Message { from, message });
        }
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        let effects = self.raft.step(input, self.twin.now);
        for effect in &effects {
            match effect {
                Effect::Persist(write) => {
                    self.reconfigure(&write.entries);
                    self.twin.entries.extend(write.entries.iter().cloned());
                    let last = self.twin.last();
                    self.twin.writes.push((write.seq, last));
                }
                Effect::Broadcast(Message {
                    body: Body::Append(append),
                    ..
                }) => self.broadcast(append),
                Effect::Apply(entries) => self.apply(entries),
                _ => {}
            }
        }
        effects
    }

    /// A leader sets one configuration by itself: the one that follows on a joint one.
    fn reconfigure(&mut self, entries: &[Entry]) {
        for entry in entries {
            let Payload::Configuration(configuration) = &entry.payload else {
                continue;
            };
            let twin = &mut self.twin;
            assert!(twin.committed >= Index(1), "the joint one is committed");
            assert!(!twin.configuration.outgoing.is_empty(), "it was joint");
            twin.configuration.outgoing.clear();
            assert_eq!(*configuration, twin.configuration);
        }
    }

    /// Broadcasts continue each other, and none is larger than it may be.
    fn broadcast(&mut self, append: &Append) {
        if self.twin.is_news(append) {
            (self.twin.untold_since, self.twin.news) = (None, self.twin.news + 1);
            return;
        }
        let twin = &mut self.twin;
        assert_eq!(append.round, twin.newest_round().next(), "a round for each");
        assert_eq!(append.stream, StreamId(0));
        assert_eq!(
            append.prev.index,
            twin.sent(),
            "it follows on what was sent"
        );
        let size: usize = append.entries.iter().map(Entry::size).sum();
        assert!(append.entries.len() <= 1 || size <= twin.options.max_append_bytes);
        twin.rounds.push((append.round, twin.now));
        twin.appends.push((twin.now, append.clone()));
        twin.untold_since = None;
    }

    fn apply(&mut self, entries: &[Entry]) {
        for entry in entries {
            assert_eq!(entry.index, self.twin.committed + 1);
            self.twin.committed = entry.index;
        }
        self.twin.untold_since.get_or_insert(self.twin.now);
    }

    /// False once the leader has lost its quorum and, rightly, its role.
    fn act(&mut self, act: Act) -> bool {
        let effects = match act {
            Act::Acknowledge {
                from,
                match_back,
                round_back,
            } => self.acknowledge(NodeKey(from), match_back, round_back),
            Act::Propose { count, size } => self.propose(count, size),
            Act::Read => self.read(),
            Act::Persisted { all } => self.persisted(all),
            Act::Wait { ms } => {
                self.twin.now = self.twin.now + Duration::from_millis(ms);
                self.tick()
            }
            Act::Tick => {
                let deadline = self.raft.next_deadline().expect("leaders have one");
                self.twin.now = self.twin.now.max(deadline);
                self.tick()
            }
            Act::Session { connected } => {
                let sent = self.twin.appends.len();
                self.twin.connected = connected;
                let session = connected.then_some(SessionId(sent as u64 + 2));
                let effects = self.step(Input::Sessions(session.into_iter().collect()));
                assert!(
                    !connected || self.twin.appends.len() > sent,
                    "it is announced"
                );
                effects
            }
        };
        if self.twin.now >= self.twin.quorum_ends() {
            assert_eq!(self.raft.role(), Role::Follower, "no quorum, no leader");
            let refused = effects.iter().filter(|e| {
                matches!(e, Effect::ReadRefused { refusal, .. }
                    if *refusal == Refusal::NotLeader { leader: None })
            });
            assert_eq!(refused.count(), self.twin.reads.len(), "none waits on");
            return false;
        }
        self.check_reads(&effects);
        self.check();
        true
    }

    fn acknowledge(&mut self, from: NodeKey, match_back: i64, round_back: i64) -> Vec<Effect> {
        let back = |value: u64, back: i64| value.saturating_add_signed(-back);
        let match_index = Index(back(self.twin.sent().0, match_back));
        let acknowledge = Acknowledge {
            round: Round(back(self.twin.newest_round().0, round_back)),
            stream: StreamId(0),
            match_index,
            clock: Time(0),
        };
        let too_much = match_index > self.twin.sent();
        if !too_much && self.twin.is_member(from) {
            // An echo of what was never said confirms nothing, now or later.
            let heard = self
                .twin
                .sent_at(acknowledge.round)
                .map(|_| acknowledge.round);
            let round = heard.unwrap_or_default();
            let heard = Acknowledge {
                round,
                ..acknowledge
            };
            self.twin.acknowledged.push((from, heard));
        }
        let message = Message {
            term: TERM,
            body: Body::Acknowledge(acknowledge),
        };
        let effects = self.step(Input::Message { from, message });
        let reason = Rejection::AcknowledgedTooMuch { match_index };
        let rejected = effects.contains(&Effect::Rejected { from, reason });
        assert_eq!(rejected, too_much, "{match_index}");
        effects
    }

    fn propose(&mut self, count: usize, size: usize) -> Vec<Effect> {
        let sizes: Vec<usize> = (0..count).map(|n| size.saturating_sub(n)).collect();
        let expected = self.twin.admit(&sizes);
        let first = self.twin.requests + 1;
        self.twin.requests += count as u64;
        let requests = first..=self.twin.requests;
        let commands = requests
            .clone()
            .zip(&sizes)
            .map(|(request, size)| command(request, *size))
            .collect();
        let effects = self.step(Input::Propose(commands));
        for (request, expected) in requests.zip(expected) {
            let answer = effects.iter().find_map(|effect| match effect {
                Effect::ProposalRefused {
                    request: refused,
                    refusal,
                    ..
                } if refused.0 == request => Some(*refusal),
                _ => None,
            });
            assert_eq!(answer, expected, "request {request}");
        }
        effects
    }

    fn read(&mut self) -> Vec<Effect> {
        let id = ReadId(self.twin.requests);
        self.twin.requests += 1;
        // Before the term's own first entry is committed, nobody knows what is.
        let index = self.twin.committed.max(Index(2));
        let round = self.twin.newest_round().next();
        if self.twin.connected {
            self.twin.reads.push((id, round, index));
            return self.step(Input::Read(id));
        }
        let effects = self.step(Input::Read(id));
        let refusal = Refusal::NotLeader { leader: None };
        assert!(effects.contains(&Effect::ReadRefused { id, refusal }));
        effects
    }

    fn persisted(&mut self, all: bool) -> Vec<Effect> {
        let twin = &mut self.twin;
        let waiting = twin
            .writes
            .iter()
            .filter(|(_, last)| *last > twin.persisted);
        let waiting: Vec<(PersistSeq, Index)> = waiting.copied().collect();
        let done = if all { waiting.last() } else { waiting.first() };
        let Some((seq, last)) = done.copied() else {
            return Vec::new();
        };
        twin.persisted = last;
        self.step(Input::Persisted(seq))
    }

    /// Time alone makes a leader speak when a heartbeat is due, and when news of a commit is.
    fn tick(&mut self) -> Vec<Effect> {
        let silent_since = self.twin.appends.last().expect("it has spoken").0;
        let now = self.twin.now;
        let heartbeat_due = now >= silent_since + self.twin.heartbeat_interval();
        let notice = self.twin.options.commit_notice;
        let notice_due = self
            .twin
            .untold_since
            .is_some_and(|since| now >= since + notice);
        let lost = now >= self.twin.quorum_ends();
        let (sent, news) = (self.twin.appends.len(), self.twin.news);
        let effects = self.step(Input::Tick);
        let asks = self.twin.appends.len() > sent;
        if !lost {
            assert!(asks || !heartbeat_due, "it is silent for too long");
            let tells = asks || self.twin.news > news;
            assert!(tells || !notice_due, "a commit is left untold");
        }
        effects
    }

    /// A read is answered in the very step that confirms its round and its index, and no sooner.
    fn check_reads(&mut self, effects: &[Effect]) {
        let confirmed = self.twin.confirmed_round().map(|(round, _)| round);
        let committed = self.twin.committed;
        let ready = |(_, round, index): &(ReadId, Round, Index)| {
            confirmed.is_some_and(|confirmed| confirmed >= *round) && committed >= *index
        };
        let expected: Vec<Effect> = self
            .twin
            .reads
            .iter()
            .take_while(|read| ready(read))
            .map(|(id, _, index)| Effect::ReadReady {
                id: *id,
                index: *index,
            })
            .collect();
        let answers = effects
            .iter()
            .filter(|e| matches!(e, Effect::ReadReady { .. }));
        assert!(answers.eq(expected.iter()), "{effects:?}, not {expected:?}");
        self.twin.reads.drain(..expected.len());
        if let Some((id, round, _)) = self.twin.reads.first() {
            assert!(*round <= self.twin.newest_round(), "{id} waits for no one");
        }
    }

    fn check(&self) {
        let Pair { raft, twin } = self;
        assert_eq!((raft.me(), raft.role()), (ME, Role::Leader));
        assert_eq!(raft.commit_index(), twin.commit_index());
        assert_eq!(
            twin.committed,
            twin.commit_index(),
            "applied in the same step"
        );
        assert_eq!(raft.persisted_index(), twin.persisted);
        assert_eq!(raft.lease(), twin.lease());
        let joint = !twin.configuration.outgoing.is_empty();
        assert!(!joint || twin.committed < Index(1), "it is left at once");
        // The window is never overrun, and never left open while there is something to send.
        let window = twin.options.max_in_flight;
        assert!(twin.under_way() <= window, "{} under way", twin.under_way());
        assert!(
            twin.under_way() == window || twin.sent() == twin.last(),
            "{} under way, sent up to {} of {}",
            twin.under_way(),
            twin.sent(),
            twin.last()
        );
        let silent_since = twin.appends.last().expect("it has spoken").0;
        let notice = twin.untold_since.map(|at| at + twin.options.commit_notice);
        let latest = [
            Some(silent_since + twin.heartbeat_interval()),
            Some(twin.quorum_ends()),
            notice,
        ];
        let latest = latest.into_iter().flatten().min();
        assert!(raft.next_deadline() <= latest, "it sleeps for too long");
        let waits = twin.under_way() > 0 || !twin.reads.is_empty();
        assert!(
            waits || raft.next_deadline() == latest,
            "it wakes for nothing: {:?}, not {latest:?}",
            raft.next_deadline()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None, cases: 512, ..ProptestConfig::default()
    })]

    #[test]
    fn a_leader_counts_as_one_that_remembers_everything(
        voters in 0..32_u8,
        outgoing in prop_oneof![Just(0), 0..32_u8],
        learners in 0..32_u8,
        window in 1..4_usize,
        budget in prop_oneof![Just(50_usize), Just(200), Just(400)],
        backlog in prop_oneof![Just(40_usize), Just(150), Just(10_000)],
        acts in vec(act(), 1..60),
    ) {
        let options = options(window, budget, backlog);
        let mut pair = Pair::new(configuration(voters, outgoing, learners), options);
        for act in acts {
            if !pair.act(act) {
                break;
            }
        }
    }
}
