//! Stories of the replicated state: what clients write, in the order of the log, and what it comes to.
//!
//! One entry a command. `a:` in front names the client; each numbers its requests by itself. See
//! [`Story::act`] for the commands, [`Story::transaction`] for what a transaction is said in.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use goldenscript::{Argument, Context, Runner};
use raft::{ClientId, Entry, Index, Payload, RequestNumber, Term};

use crate::kv::{Bounds, Store, command, own_command};
use crate::state::{
    Action, ActionResult, Comparison, Condition, Cursor, KeyEvent, KeyRange, KeyValue, LeaseId,
    RangeRequest, Target, Transaction, Watched,
};
use crate::wire::{Answer, Value, Write};

struct Story {
    store: Store,
    clients: BTreeMap<String, Client>,
    ids: u64,
}

/// What a client knows of itself.
struct Client {
    id: ClientId,
    begun: Index,
    known: bool,
    sent: Vec<Payload>,
}

type Told = Result<String, Box<dyn Error>>;

/// One command's arguments.
struct Arguments<'a>(&'a goldenscript::Command);

impl<'a> Arguments<'a> {
    fn words(&self) -> Vec<&'a str> {
        let words = self.0.args.iter().filter_map(|argument| match argument {
            Argument::Positional(value) => Some(value.as_str()),
            _ => None,
        });
        words.collect()
    }

    fn word(&self, n: usize) -> Result<&'a str, Box<dyn Error>> {
        Ok(self.words().get(n).ok_or("an argument is missing")?)
    }

    fn key(&self, wanted: &str) -> Option<&'a str> {
        self.0.args.iter().find_map(|argument| match argument {
            Argument::KeyValue(key, value) if key == wanted => Some(value.as_str()),
            _ => None,
        })
    }

    fn number(&self, key: &str, default: u64) -> Result<u64, Box<dyn Error>> {
        Ok(self.key(key).map_or(Ok(default), str::parse)?)
    }

    fn lease(&self) -> Result<Option<LeaseId>, Box<dyn Error>> {
        Ok(self.key("lease").map(str::parse).transpose()?.map(LeaseId))
    }
}

impl Runner for Story {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, context: &Context) -> Told {
        let client = context.prefix.as_deref().unwrap_or("a");
        self.act(client, &command.name, &Arguments(command))
    }
}

impl Story {
    fn new() -> Story {
        Story {
            store: Store::default(),
            clients: BTreeMap::new(),
            ids: 0,
        }
    }

    fn act(&mut self, client: &str, command: &str, arguments: &Arguments<'_>) -> Told {
        let write = match command {
            // bounds clients=4096 changes=10000 bytes=67108864: before anything else.
            "bounds" => {
                let all = Bounds::default();
                let number = |key, default: usize| arguments.number(key, default as u64);
                self.store = Store::default().bounded(Bounds {
                    sessions: number("clients", all.sessions)? as usize,
                    history: number("changes", all.history)? as usize,
                    state_bytes: number("bytes", all.state_bytes)? as usize,
                    ..all
                });
                return Ok(String::new());
            }
            // Writes.
            "put" => Write::Put {
                key: bytes(arguments.word(0)?),
                value: bytes(arguments.word(1)?),
                lease: arguments.lease()?,
            },
            "delete" => Write::Delete {
                key: bytes(arguments.word(0)?),
            },
            // swap KEY EXPECTED VALUE; `none` is no value.
            "swap" => Write::CompareAndSwap {
                key: bytes(arguments.word(0)?),
                expected: some(arguments.word(1)?),
                value: some(arguments.word(2)?),
            },
            "txn" => Write::Transaction(transaction(&arguments.words())?),
            "grant" => Write::Grant {
                ttl_ms: arguments.word(0)?.parse()?,
            },
            "revoke" => Write::Revoke(LeaseId(arguments.word(0)?.parse()?)),
            // The leader says that these leases are over.
            "expire" => {
                let leases = arguments.words().into_iter().map(str::parse);
                let leases = leases.collect::<Result<Vec<u64>, _>>()?;
                let leases = leases.into_iter().map(LeaseId).collect();
                return Ok(self.log(own(Write::Expire(leases))));
            }
            // own "put _/node/n1 here": what the leader writes about the cluster.
            "own" => {
                let actions = arguments.words().into_iter().map(action);
                let actions = actions.collect::<Result<_, _>>()?;
                return Ok(self.log(own(Write::Own(actions))));
            }
            // again 2: a copy of the client's second request, as it was sent then.
            "again" => {
                let number: usize = arguments.word(0)?.parse()?;
                let sent = &self.clients.get(client).ok_or("no such client")?.sent;
                let copy = sent.get(number - 1).ok_or("no such request")?.clone();
                return Ok(self.log(copy));
            }
            // The client's process ends, and another begins.
            "restart" => {
                self.clients.remove(client);
                return Ok(String::new());
            }
            // Reads.
            "get" => {
                let reading = self.store.get(&bytes(arguments.word(0)?));
                let value = reading.value.map(|Value(value)| text(&value));
                let value = value.unwrap_or_else(|| "nothing".to_owned());
                return Ok(format!("{value}, set at {}", reading.modified));
            }
            "range" => return self.range(arguments),
            // watch RANGE from=REVISION skip=0.
            "watch" => {
                let from = Cursor {
                    revision: arguments.number("from", 1)?,
                    skip: arguments.number("skip", 0)? as u32,
                };
                let range = range(arguments.word(0)?)?;
                return Ok(watched(&self.store.changes(&range, from)));
            }
            "leases" => {
                let leases = self.store.leases().iter().map(|(lease, held)| {
                    let keys: Vec<String> = held.keys.iter().map(|key| text(key)).collect();
                    format!(
                        "{lease} lives {} ms with [{}]",
                        held.ttl_ms,
                        keys.join(", ")
                    )
                });
                return Ok(leases.collect::<Vec<_>>().join("\n"));
            }
            // The node takes a snapshot and begins with it.
            "snapshot" => {
                let (bytes, bounds) = (self.store.snapshot(), self.store.bounds());
                self.store = Store::restore(&bytes)?.bounded(bounds);
                let same = self.store.snapshot() == bytes;
                return Ok(if same { "the same" } else { "another" }.to_owned());
            }
            other => return Err(format!("no such command: {other}").into()),
        };
        Ok(self.send(client, write))
    }

    fn send(&mut self, client: &str, write: Write) -> String {
        let begun = self.store.applied();
        let ids = &mut self.ids;
        let from = self.clients.entry(client.to_owned()).or_insert_with(|| {
            *ids += 1;
            Client {
                id: ClientId(*ids),
                begun,
                known: false,
                sent: Vec::new(),
            }
        });
        let number = RequestNumber(from.sent.len() as u64 + 1);
        let settled = from.known.then_some(number);
        let payload = command(from.id, number, settled, Some(from.begun), write);
        let payload = Payload::Command(payload);
        (from.known, _) = (true, from.sent.push(payload.clone()));
        self.log(payload)
    }

    fn log(&mut self, payload: Payload) -> String {
        let before = self.store.revision();
        let entry = Entry {
            index: self.store.applied() + 1,
            term: Term(2),
            payload,
        };
        let answer = self.store.apply(&entry).map(|applied| applied.answer);
        let revision = self.store.revision();
        let came = match revision > before {
            true => format!("revision {revision}"),
            false => "no change".to_owned(),
        };
        match answer {
            Some(answer) => format!("{}; {came}", answered(&answer)),
            None => came,
        }
    }

    fn range(&self, arguments: &Arguments<'_>) -> Told {
        let has = |flag| arguments.words().contains(&flag);
        let request = RangeRequest {
            range: range(arguments.word(0)?)?,
            after: arguments.key("after").map(|after| Value(bytes(after))),
            limit: arguments.number("limit", 0)? as u32,
            keys_only: has("keys"),
            count_only: has("count"),
        };
        let reading = self.store.range(&request);
        if let Some(count) = reading.count {
            return Ok(format!("{count} at {}", reading.revision));
        }
        let mut lines: Vec<String> = reading.pairs.iter().map(pair).collect();
        if reading.more {
            lines.push("and more".to_owned());
        }
        Ok(lines.join("\n"))
    }
}

fn own(write: Write) -> Payload {
    Payload::Command(own_command(RequestNumber(1), write))
}

/// txn if "created k = 0" then "put k v lease=3" "get k" else "get p*": the words `if`, `then` and
/// `else` begin what they say, and each condition or action is one argument.
fn transaction(words: &[&str]) -> Result<Transaction, Box<dyn Error>> {
    let (mut transaction, mut part) = (Transaction::default(), "then");
    for word in words {
        match (*word, part) {
            ("if" | "then" | "else", _) => part = word,
            (said, "if") => transaction.conditions.push(condition(said)?),
            (said, "then") => transaction.then.push(action(said)?),
            (said, _) => transaction.otherwise.push(action(said)?),
        }
    }
    Ok(transaction)
}

fn condition(said: &str) -> Result<Condition, Box<dyn Error>> {
    let words: Vec<&str> = said.split(' ').collect();
    let [of, key, compared, with] = words[..] else {
        return Err(format!("no condition: {said}").into());
    };
    let target = match of {
        "value" => Target::Value(bytes(with)),
        "version" => Target::Version(with.parse()?),
        "created" => Target::Created(with.parse()?),
        "modified" => Target::Modified(with.parse()?),
        "lease" => Target::Lease(LeaseId(with.parse()?)),
        _ => return Err(format!("nothing to compare: {of}").into()),
    };
    let comparison = match compared {
        "=" => Comparison::Equal,
        "!=" => Comparison::NotEqual,
        "<" => Comparison::Less,
        ">" => Comparison::Greater,
        _ => return Err(format!("no comparison: {compared}").into()),
    };
    Ok(Condition {
        key: bytes(key),
        target,
        comparison,
    })
}

fn action(said: &str) -> Result<Action, Box<dyn Error>> {
    let words: Vec<&str> = said.split(' ').collect();
    let option = |name: &str| words.iter().find_map(|word| word.strip_prefix(name));
    match words[..] {
        ["put", key, value, ..] => Ok(Action::Put {
            key: bytes(key),
            value: bytes(value),
            lease: option("lease=").map(str::parse).transpose()?.map(LeaseId),
        }),
        ["add", key, delta] => Ok(Action::Add {
            key: bytes(key),
            delta: delta.parse()?,
        }),
        ["delete", which] => Ok(Action::Delete(range(which)?)),
        ["get", which, ..] => Ok(Action::Get {
            range: range(which)?,
            oldest: option("oldest=").map_or(Ok(0), str::parse)?,
        }),
        _ => Err(format!("no action: {said}").into()),
    }
}

/// `k`: the key; `k*`: all that begin so; `a..c`: from one up to another; `a..`: all from there on.
fn range(said: &str) -> Result<KeyRange, Box<dyn Error>> {
    if let Some(prefix) = said.strip_suffix('*') {
        return Ok(KeyRange::Prefix(bytes(prefix)));
    }
    Ok(match said.split_once("..") {
        None => KeyRange::Key(bytes(said)),
        Some((from, to)) => KeyRange::Interval {
            from: bytes(from),
            to: Some(Value(bytes(to))).filter(|to| !to.0.is_empty()),
        },
    })
}

fn bytes(text: &str) -> bytes::Bytes {
    text.as_bytes().to_vec().into()
}

fn some(text: &str) -> Option<Value> {
    (text != "none").then(|| Value(bytes(text)))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn pair(pair: &KeyValue) -> String {
    let KeyValue {
        key,
        value,
        created,
        modified,
        version,
        lease,
    } = pair;
    let lease = match *lease {
        LeaseId::NONE => String::new(),
        lease => format!(" lease {lease}"),
    };
    let (key, value) = (text(key), text(value));
    format!("{key}={value} created {created} modified {modified} version {version}{lease}")
}

fn watched(watched: &Watched) -> String {
    match watched {
        Watched::Unavailable => "unavailable".to_owned(),
        Watched::Compacted { oldest } => format!("compacted, kept from {oldest} on"),
        Watched::Events { events, next } => {
            let events = events.iter().map(|event| match event {
                KeyEvent::Put(put) => format!("{}: {}", put.modified, pair(put)),
                KeyEvent::Delete { key, revision } => format!("{revision}: {} gone", text(key)),
            });
            let mut lines: Vec<String> = events.collect();
            let skip = match next.skip {
                0 => String::new(),
                skip => format!(" after its first {skip}"),
            };
            lines.push(format!("next {}{skip}", next.revision));
            lines.join("\n")
        }
    }
}

fn answered(answer: &Answer) -> String {
    match answer {
        Answer::Written(written) if written.applied => "done".to_owned(),
        Answer::Written(_) => "not done".to_owned(),
        Answer::Transacted(done) => {
            let results = done.results.iter().map(|result| match result {
                ActionResult::Put => "put".to_owned(),
                ActionResult::Deleted(keys) => format!("deleted {keys}"),
                ActionResult::Sum(sum) => format!("sum {sum}"),
                ActionResult::Got(pairs) => {
                    let pairs: Vec<String> = pairs.iter().map(pair).collect();
                    format!("got [{}]", pairs.join(", "))
                }
            });
            let results: Vec<String> = results.collect();
            let holds = if done.succeeded {
                "holds"
            } else {
                "does not hold"
            };
            format!("{holds}: {}", results.join(", "))
        }
        Answer::Granted(grant) => format!("lease {} for {} ms", grant.lease, grant.ttl_ms),
        Answer::NoSuchLease => "no such lease".to_owned(),
        Answer::Full(limit) => format!("full at {limit} bytes"),
        Answer::Refused(why) => format!("refused: {why}"),
        Answer::SessionForgotten(at) => format!("session forgotten, the log is at {at}"),
        other => format!("{other:?}"),
    }
}

/// Every story reads as it stands. `UPDATE_GOLDENFILES=1` writes down how it reads now.
#[test]
fn stories() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts/state");
    let found = std::fs::read_dir(&folder).expect("the stories' folder");
    let mut paths: Vec<PathBuf> = found.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    assert!(paths.len() >= 12, "{paths:?}");
    for path in paths {
        goldenscript::run(&mut Story::new(), &path).expect("the story runs");
    }
}
