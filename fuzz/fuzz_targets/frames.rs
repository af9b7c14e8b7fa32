//! One node on a broker that anyone may publish on, its cluster's other members included.

#![no_main]

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use fuzz::{Heard, Member, Place, Reader, answer, message};
use libfuzzer_sys::fuzz_target;
use raft::{Durable, HardState, NodeKey, PersistSeq, Settings, Term, Time};
use replica::{
    Config, Effect, Event, Formation, Holds, Incarnation, Input, Link, MAX_FRAME, Metric, Name,
    Operation, Replica, Session, Token, Write,
};

const ROOT: &str = "raft/plant";
const ME: &str = "gw-1";
const KEY: NodeKey = NodeKey(1);

/// An input has at most so many steps, so that none takes long by its length alone.
const MAX_STEPS: usize = 200;

/// How much follows from one step before the next: a node and friends talk for ever.
const MAX_FOLLOWING: usize = 60;

struct World {
    replica: Replica,
    members: Vec<Member>,
    /// The members answer as followers and voters would.
    friendly: bool,
    now: Time,
    written: PersistSeq,
    /// A formation record is being saved.
    saving: bool,
    /// What is still to be delivered, and whether the node said it itself.
    following: VecDeque<(Input, bool)>,
    tokens: u64,
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn formation() -> Formation {
    let voters = [(1, "gw-1"), (2, "gw-2"), (3, "gw-3")];
    Formation {
        voters: BTreeMap::from(voters.map(|(key, name)| (NodeKey(key), name.to_owned()))),
        settings: Settings::default(),
        origin: None,
        witnesses: std::collections::BTreeSet::new(),
    }
}

/// One of two brokers.
fn link(reader: &mut Reader<'_>) -> Link {
    Link::new(reader.below(2)).unwrap_or_default()
}

impl World {
    fn new(start: u8) -> World {
        let formation = formation();
        let voters = vec![name("gw-1"), name("gw-2"), name("gw-3")];
        let record = minicbor::to_vec(&formation).expect("memory takes every byte");
        let members = [("gw-2", 2), ("gw-3", 3), ("gw-9", 9)];
        let members = members.map(|(name, key)| Member::new(ROOT, &record, name, NodeKey(key)));
        // A voter that was formed, an observer that has joined, or a node that knows nothing yet.
        let (key, holds) = match start % 4 {
            0 | 1 => (KEY, Holds::Formed(formation.clone())),
            2 => (NodeKey(7), Holds::Formed(formation.clone())),
            _ => (KEY, Holds::Nothing),
        };
        let durable = match &holds {
            Holds::Formed(formation) => Durable {
                hard_state: HardState {
                    term: Term(1),
                    voted_for: None,
                },
                snapshot: None,
                entries: vec![formation.first_entry()],
            },
            Holds::Nothing | Holds::Accepted(_) => Durable::default(),
        };
        let held = minicbor::to_vec(&holds).expect("memory takes every byte");
        let config = Config {
            raft: raft::Options {
                trailing_entries: 1,
                max_snapshot_bytes: 1 << 16,
                ..raft::Options::default()
            },
            ..Config::new(name(ME), key, name("plant"), voters)
        };
        let now = Time(1_000_000);
        let replica = Replica::new(config, Some(&held), durable, [7; 32], now).expect("starts");
        let mut world = World {
            replica,
            members: members.into(),
            friendly: start & 0x80 != 0,
            now,
            written: PersistSeq(0),
            saving: false,
            following: VecDeque::new(),
            tokens: 0,
        };
        world.step(Input::Connected(Session::first(1)));
        world.pass(Duration::from_millis(2_500));
        // Said once by each member, to be challenged and admitted.
        for member in 0..world.members.len() {
            let (topic, payload) = world.members[member].frame(Place::Lobby, Some(ME), &[0x81, 7]);
            world.receive(topic, payload, false);
        }
        world
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.step(Input::Tick);
    }

    fn receive(&mut self, topic: String, payload: Bytes, retained: bool) {
        self.step(Input::Received {
            over: Link::FIRST,
            topic,
            payload,
            retained,
        });
    }

    /// Takes one step and what follows from it.
    fn step(&mut self, input: Input) {
        self.following.push_back((input, false));
        for _ in 0..MAX_FOLLOWING {
            let Some((input, own)) = self.following.pop_front() else {
                break;
            };
            for effect in self.replica.step([input], self.now) {
                self.carry_out(effect, own);
            }
            // Asked for after each step by whoever drives the node.
            self.replica.next_deadline();
        }
        self.following.clear();
    }

    fn carry_out(&mut self, effect: Effect, own: bool) {
        match effect {
            Effect::Publish(publish) | Effect::PublishOver(_, publish) => {
                assert!(publish.payload.len() <= MAX_FRAME, "no frame is too large");
                self.published(publish.topic, publish.payload);
            }
            Effect::Persist(write) => {
                assert!(write.seq > self.written, "writes are numbered in order");
                self.written = write.seq;
                if self.friendly {
                    self.following
                        .push_back((Input::Persisted(write.seq), false));
                }
            }
            Effect::SaveFormation(_) => self.saving = true,
            Effect::Event(Event::Refused { topic, reason }) => {
                assert!(
                    !own,
                    "a node understands what it says itself: {topic}: {reason}"
                );
            }
            Effect::Done { .. } | Effect::Watched { .. } | Effect::Event(_) => {}
        }
    }

    /// The broker brings a node's own publishes back to it; members answer challenges.
    fn published(&mut self, topic: String, payload: Bytes) {
        for member in &mut self.members {
            let answer = match member.hear(&topic, &payload) {
                Some(Heard::Challenge(challenge)) => Some(member.echo(ME, challenge)),
                Some(Heard::Consensus(message)) if self.friendly => {
                    answer(&message).map(|answer| member.consensus(ME, Some(KEY), answer))
                }
                _ => None,
            };
            let received = answer.map(|(topic, payload)| Input::Received {
                over: Link::FIRST,
                topic,
                payload,
                retained: false,
            });
            self.following.extend(received.map(|input| (input, false)));
        }
        let for_me = ["/rpc/all/", "/rpc/gw-1/", "/nodes/"];
        if for_me
            .iter()
            .any(|levels| topic[ROOT.len()..].starts_with(levels))
        {
            let received = Input::Received {
                over: Link::FIRST,
                topic,
                payload,
                retained: false,
            };
            self.following.push_back((received, true));
        }
    }

    fn act(&mut self, reader: &mut Reader<'_>) {
        let what = reader.byte();
        let member = usize::from(what >> 4) % self.members.len();
        match what & 15 {
            0 | 1 => {
                let topic = self.topic(reader);
                let payload = Bytes::copy_from_slice(reader.sized());
                self.receive(topic, payload, what & 1 == 0);
            }
            2..=4 => {
                let (topic, payload) = sealed(&mut self.members[member], reader);
                self.receive(topic, payload, false);
            }
            5..=7 => {
                let term = Term(self.replica.status().term);
                let message = message(reader, term);
                let (topic, payload) = self.members[member].consensus(ME, None, message);
                self.receive(topic, payload, false);
            }
            8 => {
                let (topic, payload) = status(&self.members[member], reader);
                self.receive(topic, payload, what & 16 == 0);
            }
            9 | 10 => self.pass(Duration::from_millis(u64::from(reader.byte()) * 10)),
            11 => self.step(Input::Persisted(self.written)),
            12 => match reader.below(2) {
                0 => self.step(Input::Disconnected(link(reader))),
                _ => self.step(Input::Connected(Session {
                    link: link(reader),
                    epoch: reader.number(),
                })),
            },
            13 => self.request(reader),
            14 if self.saving => {
                self.saving = false;
                self.step(Input::FormationSaved);
            }
            14 => self.friendly = !self.friendly,
            _ => match reader.below(16) {
                0 => self.step(Input::Shutdown),
                _ => {
                    if let Ok(metric) = Metric::new(f64::from_bits(reader.number())) {
                        self.step(Input::SetMetric(metric));
                        self.pass(Duration::from_millis(200));
                    }
                }
            },
        }
    }

    /// One of the node's topics, or any text.
    fn topic(&self, reader: &mut Reader<'_>) -> String {
        match reader.below(8) {
            0 => format!("{ROOT}/rpc/all/gw-2"),
            1 => format!("{ROOT}/rpc/{ME}/gw-2"),
            2 => format!("{ROOT}/rpc/{ME}/{ME}"),
            3 => format!("{ROOT}/nodes/gw-2/status"),
            4 => format!("{ROOT}/nodes/{ME}/status"),
            5 => format!("{ROOT}/nodes/gw-9/status"),
            6 => format!("{ROOT}/rpc/gw-2/gw-3"),
            _ => String::from_utf8_lossy(reader.sized()).into_owned(),
        }
    }

    fn request(&mut self, reader: &mut Reader<'_>) {
        self.tokens += 1;
        let key = Bytes::copy_from_slice(reader.sized());
        let operation = match reader.below(2) {
            0 => Operation::Get(key),
            _ => Operation::Write(Write::Put {
                key: key.clone(),
                value: key,
                lease: None,
            }),
        };
        self.step(Input::Request {
            token: Token(self.tokens),
            operation,
            timeout: Duration::from_secs(u64::from(reader.byte())),
        });
    }
}

/// A frame with any body, as its sender would seal it; perhaps of an old or a far sequence.
fn sealed(member: &mut Member, reader: &mut Reader<'_>) -> (String, Bytes) {
    let how = reader.byte();
    let place = match how & 1 {
        0 => Place::Formed,
        _ => Place::Lobby,
    };
    let to = match how >> 1 & 3 {
        0 => None,
        3 => Some("gw-2"),
        _ => Some(ME),
    };
    if how & 0xf0 == 0xf0 {
        let sequence = reader.number();
        return member.frame_with(place, to, reader.sized(), sequence);
    }
    member.frame(place, to, reader.sized())
}

/// A birth or a will with the right tag, whatever it says.
fn status(member: &Member, reader: &mut Reader<'_>) -> (String, Bytes) {
    let hex = |bytes: [u8; 16]| bytes.map(|byte| format!("{byte:02x}")).concat();
    let node = match reader.below(4) {
        0 => ME,
        1 => "gw-5",
        _ => member.name(),
    };
    let incarnation = match reader.below(4) {
        0 => [reader.byte(); 16],
        _ => member.incarnation(),
    };
    let key = member.key().to_bytes();
    let session = Session {
        link: link(reader),
        epoch: reader.number(),
    };
    let (link, epoch, count) = (session.link.place(), session.epoch, reader.number());
    let session = match reader.below(4) {
        0 => reader.number(),
        _ => session.id(Incarnation(incarnation)).0,
    };
    let (state, shown) = match reader.below(2) {
        0 => ("offline", "Offline"),
        _ => ("online", "Online"),
    };
    let (key, incarnation) = (hex(key), hex(incarnation));
    let session = format!("{session:016x}");
    let term = reader.number();
    let metric = f64::from_bits(reader.number());
    let metric = if metric.is_finite() { metric } else { -1.0 };
    let role = String::from_utf8_lossy(reader.sized()).into_owned();
    let bits = metric.to_bits();
    let tag = member.status_tag(&format!(
        "{ROOT}\n1\n{shown}\n{node}\n{key}\n{incarnation}\n{epoch}\n{link}\n{session}\n{count}\n{role}\n{term}\n{bits}"
    ));
    let status = serde_json::json!({
        "v": 1, "state": state, "node": node, "key": key, "incarnation": incarnation,
        "epoch": epoch, "link": link, "session": session, "count": count, "role": role, "term": term, "metric": metric,
        "tag": tag,
    });
    let topic = format!("{ROOT}/nodes/{node}/status");
    (topic, status.to_string().into())
}

fuzz_target!(|data: &[u8]| {
    let mut reader = Reader::new(data);
    let mut world = World::new(reader.byte());
    for _ in 0..MAX_STEPS {
        if reader.is_empty() {
            break;
        }
        world.act(&mut reader);
    }
});
