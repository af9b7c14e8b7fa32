//! The store beside a dumb twin, the model that the simulator judges by, on writes of honest clients
//! that reach the log late, twice and in any order.

use proptest::collection::vec;
use proptest::prelude::*;
use raft::{ClientId, Entry, Index, Payload, RequestNumber, Settings, Term};

use self::model::Model;
use crate::kv::{Bounds, Store, command, own_command};
use crate::state::{
    Action, Comparison, Condition, Cursor, KeyRange, LeaseId, RangeRequest, Target, Transaction,
    Watched,
};
use crate::wire::{Answer, Value, Write};

#[expect(dead_code, reason = "the simulator asks it for more")]
#[path = "../../../sim/src/state/model.rs"]
mod model;

/// What the model is written in.
mod vocabulary {
    pub(super) use crate::*;
}

/// Small enough that all of them are met.
const BOUNDS: Bounds = Bounds {
    sessions: 3,
    history: 6,
    history_bytes: 400,
    state_bytes: 270,
    log_bytes: 1 << 20,
};

#[derive(Clone, Debug)]
enum Step {
    /// A client writes something new.
    Write(usize, Draw),
    /// A copy of what it sent before arrives.
    Copy(usize, usize),
    /// A client of this place is gone, and another comes.
    Restart(usize),
    /// The leader ends leases.
    Expire(Vec<usize>),
    Own(Vec<ActionDraw>),
    Restore,
}

#[derive(Clone, Debug)]
enum Draw {
    Put(usize, usize, Option<usize>),
    Delete(usize),
    Swap(usize, Option<usize>, Option<usize>),
    Transaction(Vec<(usize, u8, u64, u8)>, Vec<ActionDraw>, Vec<ActionDraw>),
    Grant(u64),
    Revoke(usize),
}

#[derive(Clone, Debug)]
enum ActionDraw {
    Put(usize, usize, Option<usize>),
    Delete(RangeDraw),
    Get(RangeDraw, u32),
    Add(usize, i64),
}

#[derive(Clone, Debug)]
enum RangeDraw {
    Key(usize),
    Prefix(usize),
    Interval(usize, Option<usize>),
}

const KEYS: [&str; 6] = ["a", "a/1", "a/2", "b", "n", "_/l"];

const VALUES: [&str; 5] = ["", "1", "-7", "x", "9223372036854775807"];

const PREFIXES: [&str; 4] = ["", "a", "a/", "_/"];

/// A client as `requests.rs` is one: what it says of itself is true.
#[derive(Debug)]
struct Client {
    id: ClientId,
    begun: Index,
    known: bool,
    next: u64,
    /// What it has sent, each as it was sent then.
    sent: Vec<Entry>,
}

struct Story {
    store: Store,
    model: Model,
    clients: Vec<Client>,
    ids: u64,
    leases: Vec<LeaseId>,
}

impl Story {
    fn new() -> Story {
        let settings = Settings::default();
        let mut story = Story {
            store: Store::default().bounded(BOUNDS),
            model: Model::new(BOUNDS),
            clients: Vec::new(),
            ids: 0,
            leases: Vec::new(),
        };
        let configuration = raft::Configuration {
            settings,
            ..raft::Configuration::default()
        };
        story.log(Payload::Configuration(configuration));
        for _ in 0..5 {
            let client = story.client();
            story.clients.push(client);
        }
        story
    }

    fn client(&mut self) -> Client {
        self.ids += 1;
        Client {
            id: ClientId(self.ids),
            begun: self.store.applied(),
            known: false,
            next: 1,
            sent: Vec::new(),
        }
    }

    fn log(&mut self, payload: Payload) -> Option<Answer> {
        let entry = Entry {
            index: self.store.applied() + 1,
            term: Term(2),
            payload,
        };
        let answer = self.store.apply(&entry).map(|applied| applied.answer);
        let outcome = self.model.apply(&entry);
        let right = outcome.map(|outcome| outcome.answer);
        if let Some(answer) = &answer {
            let right = right.expect("a command has an answer");
            assert!(
                model::same(answer, &right),
                "{entry:?}: {answer:?}, {right:?}"
            );
        }
        assert_eq!(self.store.revision(), self.model.revision(), "{entry:?}");
        answer
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Write(client, draw) => {
                let write = self.write(draw);
                self.send(*client, write);
            }
            Step::Copy(client, which) => {
                let sent = &self.clients[*client].sent;
                if let Some(copy) = sent.get(which % sent.len().max(1)) {
                    let payload = copy.payload.clone();
                    self.log(payload);
                }
            }
            Step::Restart(client) => self.clients[*client] = self.client(),
            Step::Expire(leases) => {
                let leases = leases.iter().map(|lease| self.lease(*lease)).collect();
                self.log(Payload::Command(own_command(
                    RequestNumber(1),
                    Write::Expire(leases),
                )));
            }
            Step::Own(actions) => {
                let actions = actions.iter().map(|action| self.action(action)).collect();
                self.log(Payload::Command(own_command(
                    RequestNumber(1),
                    Write::Own(actions),
                )));
            }
            Step::Restore => self.restore(),
        }
    }

    fn send(&mut self, client: usize, write: Write) {
        let from = &mut self.clients[client];
        let settled = from.known.then_some(RequestNumber(from.next));
        let begun = Some(from.begun);
        let payload = Payload::Command(command(
            from.id,
            RequestNumber(from.next),
            settled,
            begun,
            write.clone(),
        ));
        from.next += 1;
        from.sent.push(Entry {
            index: Index(0),
            term: Term(0),
            payload: payload.clone(),
        });
        match self.log(payload).expect("a client is answered") {
            Answer::SessionForgotten(_) => {
                self.clients[client] = self.client();
                self.send(client, write);
            }
            Answer::Full(_) => {}
            Answer::Granted(grant) => {
                self.leases.push(grant.lease);
                self.clients[client].known = true;
            }
            _ => self.clients[client].known = true,
        }
    }

    fn write(&self, draw: &Draw) -> Write {
        match draw {
            Draw::Put(key, value, lease) => Write::Put {
                key: KEYS[*key].into(),
                value: VALUES[*value].into(),
                lease: lease.map(|lease| self.lease(lease)),
            },
            Draw::Delete(key) => Write::Delete {
                key: KEYS[*key].into(),
            },
            Draw::Swap(key, expected, value) => Write::CompareAndSwap {
                key: KEYS[*key].into(),
                expected: expected.map(|value| Value(VALUES[value].into())),
                value: value.map(|value| Value(VALUES[value].into())),
            },
            Draw::Transaction(conditions, then, otherwise) => Write::Transaction(Transaction {
                conditions: conditions.iter().map(|c| self.condition(c)).collect(),
                then: then.iter().map(|action| self.action(action)).collect(),
                otherwise: otherwise.iter().map(|action| self.action(action)).collect(),
            }),
            Draw::Grant(ttl_ms) => Write::Grant { ttl_ms: *ttl_ms },
            Draw::Revoke(lease) => Write::Revoke(self.lease(*lease)),
        }
    }

    /// One that was granted, or never was.
    fn lease(&self, lease: usize) -> LeaseId {
        self.leases
            .iter()
            .rev()
            .nth(lease)
            .copied()
            .unwrap_or(LeaseId(7_000))
    }

    fn condition(&self, (key, target, number, comparison): &(usize, u8, u64, u8)) -> Condition {
        let pair = self.model.pairs().get(KEYS[*key].as_bytes());
        let near = |of: u64| (of + number).saturating_sub(1);
        let of = |number: fn(&crate::KeyValue) -> u64| pair.map_or(0, number);
        Condition {
            key: KEYS[*key].into(),
            target: match target {
                0 => Target::Value(VALUES[(*number % 5) as usize].into()),
                1 => Target::Version(near(of(|pair| pair.version))),
                2 => Target::Created(near(of(|pair| pair.created))),
                3 => Target::Modified(near(of(|pair| pair.modified))),
                _ => Target::Lease(LeaseId(near(of(|pair| pair.lease.0)))),
            },
            comparison: match comparison {
                0 => Comparison::Equal,
                1 => Comparison::NotEqual,
                2 => Comparison::Less,
                _ => Comparison::Greater,
            },
        }
    }

    fn action(&self, draw: &ActionDraw) -> Action {
        match draw {
            ActionDraw::Put(key, value, lease) => Action::Put {
                key: KEYS[*key].into(),
                value: VALUES[*value].into(),
                lease: lease.map(|lease| self.lease(lease)),
            },
            ActionDraw::Delete(range) => Action::Delete(range.range()),
            ActionDraw::Get(range, oldest) => Action::Get {
                range: range.range(),
                oldest: *oldest,
            },
            ActionDraw::Add(key, delta) => Action::Add {
                key: KEYS[*key].into(),
                delta: *delta,
            },
        }
    }

    /// From its snapshot it is the same, and goes on as the same.
    fn restore(&mut self) {
        let snapshot = self.store.snapshot();
        let restored = Store::restore(&snapshot).expect("its own snapshot");
        let restored = restored.bounded(BOUNDS);
        assert_eq!(restored.snapshot(), snapshot);
        assert_eq!(restored.bytes(), self.store.bytes());
        assert_eq!(restored.leases(), self.store.leases());
        self.store = restored;
    }

    /// Everything that can be asked of it is what the twin says.
    fn compare(&self) {
        let (store, model) = (&self.store, &self.model);
        let ttls: Vec<_> = store
            .leases()
            .iter()
            .map(|(id, lease)| (id, lease.ttl_ms))
            .collect();
        assert!(model.leases().iter().map(|(id, ttl)| (*id, *ttl)).eq(ttls));
        for (lease, held) in store.leases().iter() {
            let keys = model.pairs().values().filter(|pair| pair.lease == lease);
            assert!(
                keys.map(|pair| &pair.key).eq(&held.keys),
                "what goes with {lease}"
            );
        }
        assert_eq!(store.compacted(), model.compacted());
        for prefix in PREFIXES {
            let range = KeyRange::Prefix(prefix.into());
            let mut request = RangeRequest::all(range.clone());
            for (after, limit) in [(None, 0), (None, 1), (Some("a/1"), 2)] {
                request.after = after.map(|after: &str| Value(after.into()));
                request.limit = limit;
                assert_eq!(model.misread(&request, &store.range(&request)), None);
            }
            for revision in 1..=store.revision() + 1 {
                for skip in 0..3 {
                    self.compare_changes(&range, Cursor { revision, skip });
                }
            }
        }
    }

    fn compare_changes(&self, range: &KeyRange, from: Cursor) {
        let (store, model) = (&self.store, &self.model);
        match store.changes(range, from) {
            Watched::Compacted { oldest } => {
                assert!(from.revision <= model.compacted());
                assert_eq!(oldest, model.compacted() + 1);
            }
            Watched::Events { events, next } => {
                assert!(from.revision > model.compacted());
                assert!(model.changes(range, from, next).into_iter().eq(&events));
                let end = Cursor::from(store.revision() + 1);
                assert!(
                    next == end || next == from && from > end,
                    "{from:?} {next:?}"
                );
            }
            Watched::Unavailable => panic!("it has a state"),
        }
    }
}

impl RangeDraw {
    fn range(&self) -> KeyRange {
        match self {
            RangeDraw::Key(key) => KeyRange::Key(KEYS[*key].into()),
            RangeDraw::Prefix(prefix) => KeyRange::Prefix(PREFIXES[*prefix].into()),
            RangeDraw::Interval(from, to) => KeyRange::Interval {
                from: KEYS[*from].into(),
                to: to.map(|to| Value(KEYS[to].into())),
            },
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..5usize, draw()).prop_map(|(client, draw)| Step::Write(client, draw)),
        4 => (0..5usize, 0..20usize).prop_map(|(client, which)| Step::Copy(client, which)),
        1 => (0..5usize).prop_map(Step::Restart),
        1 => vec(0..4usize, 1..3).prop_map(Step::Expire),
        1 => vec(action(), 0..3).prop_map(Step::Own),
        1 => Just(Step::Restore),
    ]
}

fn lease() -> impl Strategy<Value = Option<usize>> {
    prop_oneof![Just(None), (0..4usize).prop_map(Some)]
}

fn draw() -> impl Strategy<Value = Draw> {
    let (key, value) = (0..KEYS.len(), 0..VALUES.len());
    let conditions = vec((key.clone(), 0..5u8, 0..3u64, 0..4u8), 0..3);
    prop_oneof![
        4 => (key.clone(), value.clone(), lease()).prop_map(|(k, v, l)| Draw::Put(k, v, l)),
        1 => key.clone().prop_map(Draw::Delete),
        1 => (key, proptest::option::of(value.clone()), proptest::option::of(value))
            .prop_map(|(k, e, v)| Draw::Swap(k, e, v)),
        6 => (conditions, vec(action(), 0..5), vec(action(), 0..3))
            .prop_map(|(c, t, o)| Draw::Transaction(c, t, o)),
        2 => (0..5_000u64).prop_map(Draw::Grant),
        1 => (0..4usize).prop_map(Draw::Revoke),
    ]
}

fn action() -> impl Strategy<Value = ActionDraw> {
    let (key, value) = (0..KEYS.len(), 0..VALUES.len());
    prop_oneof![
        3 => (key.clone(), value, lease()).prop_map(|(k, v, l)| ActionDraw::Put(k, v, l)),
        1 => range().prop_map(ActionDraw::Delete),
        2 => (range(), 0..3u32).prop_map(|(r, o)| ActionDraw::Get(r, o)),
        2 => (key, -3..9i64).prop_map(|(k, d)| ActionDraw::Add(k, d)),
    ]
}

fn range() -> impl Strategy<Value = RangeDraw> {
    let key = 0..KEYS.len();
    prop_oneof![
        key.clone().prop_map(RangeDraw::Key),
        (0..PREFIXES.len()).prop_map(RangeDraw::Prefix),
        (key.clone(), proptest::option::of(key)).prop_map(|(f, t)| RangeDraw::Interval(f, t)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_store_is_what_its_twin_says(steps in vec(step(), 1..60)) {
        let mut story = Story::new();
        for step in &steps {
            story.step(step);
        }
        story.compare();
        story.restore();
        story.compare();
    }
}

/// Whoever asked, by a clock that is as slow as may be, counts to less than the leader that answers at
/// once, by a clock that is as fast as may be.
#[test]
fn a_holder_stops_before_the_leader_does() {
    for (ttl_ms, drift_ppm) in [
        (100, 0),
        (1_000, 1_000),
        (3_000, 50_000),
        (31_536_000_000, 99_999),
    ] {
        let grant = crate::LeaseGrant {
            lease: LeaseId(1),
            ttl_ms,
            drift_ppm,
        };
        let (second, drift) = (1_000_000_u128, u128::from(drift_ppm));
        let holder = grant.certain().as_micros() * second / (second - drift);
        let leader = u128::from(ttl_ms) * 1_000 * second / (second + drift);
        assert!(holder <= leader, "{grant:?}: {holder} us, {leader} us");
        assert!(holder + 2 >= leader, "not for less than it may");
    }
}
