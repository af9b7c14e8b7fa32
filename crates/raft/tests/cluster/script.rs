//! Golden scripts: a story in commands, and below each what the nodes did.
//!
//! Messages wait in one queue until a script delivers, drops, doubles or reorders them; time moves
//! only when a script says so. Disks are quick unless a script makes one `slow`. See
//! [`Stage::act`] for the commands.

use std::collections::{BTreeSet, VecDeque};
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use goldenscript::{Argument, Context, Runner};
use raft::message::{Append, Body, Fetch, Fetched};
use raft::{
    Configuration, Effect, Entry, HardState, Index, Input, LogPosition, MemberChange, Members,
    Message, NodeKey, Options, Payload, Raft, Refusal, Role, SessionId, Settings, StreamId, Term,
    Time,
};

use crate::table::{Table, kind_of};
use crate::world::World;

/// More deliveries than any story needs: then the nodes talk in circles.
const MAX_DELIVERIES: usize = 2_000;

/// More ticks and arrivals than any stretch of time needs: then it never passes.
const MAX_EVENTS: usize = 100_000;

/// How long a message takes in `run`.
const LATENCY: Duration = Duration::from_millis(1);

/// A world, the messages under way in it, and the story so far.
struct Stage {
    world: Option<World>,
    /// In the order of their sending.
    under_way: VecDeque<Letter>,
    /// Set aside; `late` delivers copies of them, as often as it likes.
    held: Vec<Letter>,
    /// Pairs that do not hear each other, sender first.
    cut: BTreeSet<(NodeKey, NodeKey)>,
    /// Nodes whose writes wait for `persist`.
    slow: BTreeSet<NodeKey>,
    heard: Table,
    told: String,
}

#[derive(Clone)]
struct Letter {
    from: NodeKey,
    to: NodeKey,
    sent_at: Time,
    message: Message,
}

type Outcome = Result<(), Box<dyn Error>>;

/// One command's arguments.
struct Arguments<'a>(&'a goldenscript::Command);

impl<'a> Arguments<'a> {
    fn words(&self) -> impl Iterator<Item = &'a str> {
        self.0.args.iter().filter_map(|argument| match argument {
            Argument::Positional(value) => Some(value.as_str()),
            _ => None,
        })
    }

    fn word(&self, n: usize) -> Result<&'a str, Box<dyn Error>> {
        Ok(self.words().nth(n).ok_or("an argument is missing")?)
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

    fn node(&self, n: usize) -> Result<NodeKey, Box<dyn Error>> {
        node(self.word(n)?)
    }

    fn nodes(&self) -> Result<Vec<NodeKey>, Box<dyn Error>> {
        self.words().map(node).collect()
    }
}

fn node(name: &str) -> Result<NodeKey, Box<dyn Error>> {
    let digits = name.strip_prefix('n').ok_or("a node is called n1, n2, …")?;
    Ok(NodeKey(digits.parse()?))
}

fn duration(text: &str) -> Result<Duration, Box<dyn Error>> {
    if let Some(digits) = text.strip_suffix("ms") {
        return Ok(Duration::from_millis(digits.parse()?));
    }
    let digits = text.strip_suffix('s').ok_or("a duration ends in ms or s")?;
    Ok(Duration::from_secs(digits.parse()?))
}

/// Which of the letters are meant: those that fit from=, to= and kind=, the first count= of them.
fn choose<'a>(
    letters: impl Iterator<Item = &'a Letter>,
    arguments: &Arguments<'_>,
) -> Result<Vec<usize>, Box<dyn Error>> {
    let from = arguments.key("from").map(node).transpose()?;
    let to = arguments.key("to").map(node).transpose()?;
    let kind = arguments.key("kind");
    let count = arguments.number("count", u64::MAX)?;
    let fits = |letter: &Letter| {
        from.is_none_or(|from| from == letter.from)
            && to.is_none_or(|to| to == letter.to)
            && kind.is_none_or(|kind| kind == kind_of(&letter.message.body))
    };
    Ok(letters
        .enumerate()
        .filter(|(_, letter)| fits(letter))
        .map(|(n, _)| n)
        .take(count.try_into().unwrap_or(usize::MAX))
        .collect())
}

impl Runner for Stage {
    type Command = goldenscript::Command;

    fn run(
        &mut self,
        command: &goldenscript::Command,
        _: &Context,
    ) -> Result<String, Box<dyn Error>> {
        self.told.clear();
        self.act(&command.name, &Arguments(command))?;
        Ok(std::mem::take(&mut self.told))
    }
}

impl Stage {
    fn new() -> Stage {
        Stage {
            world: None,
            under_way: VecDeque::new(),
            held: Vec::new(),
            cut: BTreeSet::new(),
            slow: BTreeSet::new(),
            heard: Table::new(),
            told: String::new(),
        }
    }

    fn world(&mut self) -> &mut World {
        self.world.as_mut().expect("a script begins with `cluster`")
    }

    fn act(&mut self, command: &str, arguments: &Arguments<'_>) -> Outcome {
        match command {
            // The set-up: cluster voters=3 observers=0 and options by name.
            "cluster" => self.cluster(arguments)?,
            // preset n1 term=6 vote=n2 log=1,1,4: another past, by the entries' terms.
            "preset" => self.preset(arguments)?,
            // Time.
            "tick" => self.tick(arguments.node(0)?),
            "elect" => self.elect(arguments.node(0)?)?,
            "advance" => self.advance(duration(arguments.word(0)?)?, false),
            "run" => self.advance(duration(arguments.word(0)?)?, true),
            // All machines sleep: time passes and nobody ticks.
            "sleep" => {
                let by = duration(arguments.word(0)?)?;
                self.world().now = self.world().now + by;
            }
            // The network; all but the last take from=n1 to=n2 kind=append count=1.
            "deliver" => self.deliver(arguments)?,
            "drop" => self.drop_letters(arguments)?,
            "duplicate" => self.duplicate(arguments)?,
            "reorder" => self.reorder(arguments)?,
            "hold" => self.hold(arguments)?,
            "late" => self.late(arguments)?,
            "pending" => self.pending(),
            "stabilize" => self.stabilize(),
            "cut" => self.cut_one_way(arguments)?,
            "partition" => self.partition(&arguments.nodes()?),
            "heal" => self.cut.clear(),
            // The disk.
            "slow" => self.slow.extend(arguments.nodes()?),
            "quick" => self.quick(&arguments.nodes()?),
            "persist" => self.persist(arguments)?,
            "crash" => self.crash(arguments)?,
            "restart" => self.start(arguments.node(0)?),
            "wipe" => self.wipe(arguments.node(0)?),
            // Inputs.
            "propose" => self.propose(arguments)?,
            "read" => self.read(arguments)?,
            "compact" => self.compact(arguments)?,
            // session n1 new|another|none|1001: under one new session, one more, none, or one less.
            "session" => self.session(arguments)?,
            "round-trip" => {
                let took = duration(arguments.word(1)?)?;
                self.input(arguments.node(0)?, Input::RoundTrip(took));
            }
            "will" => self.will(arguments)?,
            "rank" => self.rank(arguments)?,
            // sources n4 n2 n3: whom n4 may ask. outgrown n3: it wants another's snapshot.
            "sources" => {
                let keys = arguments.nodes()?;
                self.input(keys[0], Input::Sources(keys[1..].to_vec()));
            }
            "outgrown" => self.input(arguments.node(0)?, Input::FetchSnapshot),
            // change n1 learner=n4 witness=n5 promote=n4 demote=n2 remove=n3 lease=500 reads=on
            "change" => self.change(arguments)?,
            // transfer n1 n2 [patience=5s]: what the lease protects is done with, unless patience
            // is given; then `relinquish n1` says so.
            "transfer" => self.transfer(arguments)?,
            "relinquish" => self.input(arguments.node(0)?, Input::Relinquished),
            // Questions.
            "status" => self.status(),
            "log" => self.log(&arguments.nodes()?),
            "lease" => self.lease(arguments.node(0)?),
            "deadline" => self.deadline(arguments.node(0)?),
            _ => return Err(format!("no command {command}").into()),
        }
        Ok(())
    }

    // Set-up.

    fn cluster(&mut self, arguments: &Arguments<'_>) -> Outcome {
        let defaults = Options::default();
        let options = Options {
            max_append_bytes: arguments.number("append", 1_000)? as usize,
            max_in_flight: arguments.number("window", defaults.max_in_flight as u64)? as usize,
            max_uncommitted_bytes: arguments.number("uncommitted", 100_000)? as usize,
            max_unpersisted_bytes: arguments.number("unpersisted", 100_000)? as usize,
            max_command_bytes: arguments.number("command", 1_000)? as usize,
            trailing_entries: arguments.number("trailing", 0)?,
            ..defaults
        };
        let voters = arguments.number("voters", 3)?;
        let observers = arguments.number("observers", 0)?;
        let settings = Settings {
            lease_reads: arguments.key("reads") == Some("on"),
            ..Settings::default()
        };
        let mut world = World::new(voters.into(), observers.into(), options, settings, 1);
        if let Some(witness) = arguments.key("witness") {
            world.make_witness(node(witness)?);
        }
        let heard = std::mem::replace(&mut self.heard, Table::new());
        *self = Stage {
            heard,
            ..Stage::new()
        };
        let keys: Vec<NodeKey> = world.nodes.keys().copied().collect();
        self.world = Some(world);
        for key in keys {
            self.start(key);
        }
        self.told.clear();
        Ok(())
    }

    fn preset(&mut self, arguments: &Arguments<'_>) -> Outcome {
        let key = arguments.node(0)?;
        let terms: Vec<Term> = arguments
            .key("log")
            .unwrap_or_default()
            .split_terminator('_')
            .map(|term| term.parse().map(Term))
            .collect::<Result<_, _>>()?;
        let hard_state = HardState {
            term: Term(arguments.number("term", 1)?),
            voted_for: arguments.key("vote").map(node).transpose()?,
        };
        self.world().preset(key, hard_state, &terms);
        self.start(key);
        self.told.clear();
        Ok(())
    }

    // Carrying out effects.

    fn perform(&mut self, key: NodeKey, effects: Vec<Effect>) {
        for effect in effects {
            self.tell(key, &effect);
            match effect {
                Effect::Broadcast(message) => {
                    let keys: Vec<NodeKey> = self.world().nodes.keys().copied().collect();
                    for to in keys.into_iter().filter(|to| *to != key) {
                        self.post(key, to, message.clone());
                    }
                }
                Effect::Send { to, message } => self.post(key, to, message),
                Effect::Persist(_)
                | Effect::Apply(_)
                | Effect::Restore(_)
                | Effect::ReadReady { .. }
                | Effect::ReadRefused { .. }
                | Effect::ProposalRefused { .. }
                | Effect::ChangeDone { .. }
                | Effect::ChangeRefused { .. }
                | Effect::TransferRefused { .. }
                | Effect::StatusChanged
                | Effect::Rejected { .. } => {}
            }
        }
        while !self.slow.contains(&key)
            && let Some(effects) = self.world().persist(key)
        {
            self.perform(key, effects);
        }
    }

    fn post(&mut self, from: NodeKey, to: NodeKey, message: Message) {
        let world = self.world.as_ref().expect("set up");
        let connected = !world.node(from).connected.is_empty();
        if self.cut.contains(&(from, to)) || !connected {
            return;
        }
        // What travels is bytes: the codec is part of every story.
        let bytes = minicbor::to_vec(&message).expect("encodes");
        let read: Message = minicbor::decode(&bytes).expect("decodes");
        assert_eq!(read, message, "the codec changed a message");
        let sent_at = world.now;
        self.under_way.push_back(Letter {
            from,
            to,
            sent_at,
            message,
        });
    }

    fn receive(&mut self, letter: Letter) {
        let to = letter.to;
        let world = self.world();
        let hears = world.raft(to).is_some() && !world.node(to).connected.is_empty();
        if !hears || self.cut.contains(&(letter.from, to)) {
            return;
        }
        if let Some(raft) = self.world.as_ref().and_then(|world| world.raft(to)) {
            self.heard.count(raft, &letter.message);
        }
        let input = Input::Message {
            from: letter.from,
            message: letter.message,
        };
        self.input(to, input);
    }

    fn input(&mut self, key: NodeKey, input: Input) {
        let effects = self.world().step(key, input);
        self.perform(key, effects);
    }

    // Time.

    fn tick(&mut self, key: NodeKey) {
        let world = self.world();
        if let Some(deadline) = world.deadline(key) {
            world.now = world.now.max(deadline);
        }
        let effects = world.tick(key);
        self.perform(key, effects);
    }

    /// This node alone sees its time come, then all speak.
    fn elect(&mut self, key: NodeKey) -> Outcome {
        self.tick(key);
        self.stabilize();
        match self.world().raft(key).map(Raft::role) {
            Some(Role::Leader) => Ok(()),
            role => Err(format!("{key} is {role:?}").into()),
        }
    }

    /// Time passes and all tick when they want to; messages travel only if `delivering`.
    fn advance(&mut self, by: Duration, delivering: bool) {
        let end = self.world().now + by;
        for event in 0.. {
            assert!(event < MAX_EVENTS, "time does not pass");
            let arrival = self
                .under_way
                .front()
                .map(|letter| letter.sent_at + LATENCY);
            let arrival = arrival.filter(|at| delivering && *at <= end);
            let world = self.world();
            let keys: Vec<NodeKey> = world.nodes.keys().copied().collect();
            let ticks = keys
                .into_iter()
                .filter_map(|key| Some((world.deadline(key)?, key)));
            let tick = ticks.min().filter(|(at, _)| *at <= end);
            match (arrival, tick) {
                (Some(arrival), tick) if tick.is_none_or(|(at, _)| arrival <= at) => {
                    world.now = world.now.max(arrival);
                    let letter = self.under_way.pop_front().expect("it arrives");
                    self.receive(letter);
                }
                (_, Some((at, key))) => {
                    world.now = world.now.max(at);
                    let effects = world.tick(key);
                    self.perform(key, effects);
                }
                (_, None) => break,
            }
        }
        self.world().now = end;
    }

    // The network.

    fn chosen(&self, arguments: &Arguments<'_>) -> Result<Vec<usize>, Box<dyn Error>> {
        choose(self.under_way.iter(), arguments)
    }

    fn take(&mut self, arguments: &Arguments<'_>) -> Result<Vec<Letter>, Box<dyn Error>> {
        let chosen = self.chosen(arguments)?;
        if chosen.is_empty() && !arguments.0.args.is_empty() {
            return Err("no such message is under way".into());
        }
        let taken = chosen
            .iter()
            .rev()
            .filter_map(|n| self.under_way.remove(*n));
        let mut letters: Vec<Letter> = taken.collect();
        letters.reverse();
        Ok(letters)
    }

    fn deliver(&mut self, arguments: &Arguments<'_>) -> Outcome {
        for letter in self.take(arguments)? {
            self.receive(letter);
        }
        Ok(())
    }

    fn drop_letters(&mut self, arguments: &Arguments<'_>) -> Outcome {
        for Letter {
            from, to, message, ..
        } in self.take(arguments)?
        {
            let message = describe(&message);
            writeln!(self.told, "lost {from} -> {to}: {message}")?;
        }
        Ok(())
    }

    fn duplicate(&mut self, arguments: &Arguments<'_>) -> Outcome {
        for n in self.chosen(arguments)?.into_iter().rev() {
            let letter = self.under_way[n].clone();
            let (from, to, message) = (letter.from, letter.to, describe(&letter.message));
            writeln!(self.told, "twice {from} -> {to}: {message}")?;
            self.under_way.insert(n, letter);
        }
        Ok(())
    }

    /// The chosen messages swap places, the last first.
    fn reorder(&mut self, arguments: &Arguments<'_>) -> Outcome {
        let chosen = self.chosen(arguments)?;
        for (a, b) in chosen.iter().zip(chosen.iter().rev()) {
            if a < b {
                self.under_way.swap(*a, *b);
            }
        }
        Ok(())
    }

    fn hold(&mut self, arguments: &Arguments<'_>) -> Outcome {
        let held = self.take(arguments)?;
        for letter in &held {
            let (from, to, message) = (letter.from, letter.to, describe(&letter.message));
            writeln!(self.told, "held {from} -> {to}: {message}")?;
        }
        self.held.extend(held);
        Ok(())
    }

    /// What was held arrives, and may arrive again.
    fn late(&mut self, arguments: &Arguments<'_>) -> Outcome {
        let chosen = choose(self.held.iter(), arguments)?;
        let letters: Vec<Letter> = chosen.iter().map(|n| self.held[*n].clone()).collect();
        if letters.is_empty() {
            return Err("no such message is held".into());
        }
        for letter in letters {
            self.receive(letter);
        }
        Ok(())
    }

    fn pending(&mut self) {
        for letter in &self.under_way {
            let (from, to, message) = (letter.from, letter.to, describe(&letter.message));
            writeln!(self.told, "{from} -> {to}: {message}").expect("writes");
        }
    }

    /// Delivers until no one has anything to say; no time passes.
    fn stabilize(&mut self) {
        for _ in 0..MAX_DELIVERIES {
            let Some(letter) = self.under_way.pop_front() else {
                return;
            };
            self.receive(letter);
        }
        panic!("the nodes talk in circles");
    }

    fn cut_one_way(&mut self, arguments: &Arguments<'_>) -> Outcome {
        let from = node(arguments.key("from").ok_or("from whom?")?)?;
        let to = node(arguments.key("to").ok_or("to whom?")?)?;
        self.cut.insert((from, to));
        Ok(())
    }

    fn partition(&mut self, side: &[NodeKey]) {
        let keys: Vec<NodeKey> = self.world().nodes.keys().copied().collect();
        for a in side {
            for b in keys.iter().filter(|b| !side.contains(b)) {
                self.cut.insert((*a, *b));
                self.cut.insert((*b, *a));
            }
        }
    }

    // The disk.

    fn quick(&mut self, keys: &[NodeKey]) {
        for key in keys {
            self.slow.remove(key);
            self.perform(*key, Vec::new());
        }
    }

    fn persist(&mut self, arguments: &Arguments<'_>) -> Outcome {
        let key = arguments.node(0)?;
        let mut any = false;
        for _ in 0..arguments.number("count", u64::MAX)? {
            let Some(effects) = self.world().persist(key) else {
                break;
            };
            any = true;
            self.perform(key, effects);
        }
        any.then_some(()).ok_or("nothing is being written".into())
    }

    fn crash(&mut self, arguments: &Arguments<'_>) -> Outcome {
        let key = arguments.node(0)?;
        let writes = self.world().node(key).writes.len();
        let written = arguments.number("written", 0)?;
        self.world().crash(key, written as usize);
        let lost = writes - written as usize;
        if writes > 0 {
            writeln!(self.told, "{key} loses {lost} of {writes} writes")?;
        }
        Ok(())
    }

    fn start(&mut self, key: NodeKey) {
        let effects = self.world().start(key);
        self.perform(key, effects);
    }

    fn wipe(&mut self, key: NodeKey) {
        let new = self.world().wipe(key);
        writeln!(self.told, "{key} comes back as {new}").expect("writes");
        self.start(new);
    }

    // Inputs.

    fn propose(&mut self, arguments: &Arguments<'_>) -> Outcome {
        let key = arguments.node(0)?;
        let mut data: Vec<String> = arguments.words().skip(1).map(str::to_owned).collect();
        if let Some(size) = arguments.key("size") {
            data = vec!["z".repeat(size.parse()?); arguments.number("count", 1)? as usize];
        }
        let effects = self.world().propose(key, &data);
        self.perform(key, effects);
        Ok(())
    }

    fn read(&mut self, arguments: &Arguments<'_>) -> Outcome {
        let key = arguments.node(0)?;
        for _ in 0..arguments.number("count", 1)? {
            let (_, effects) = self.world().read(key);
            self.perform(key, effects);
        }
        Ok(())
    }

    fn compact(&mut self, arguments: &Arguments<'_>) -> Outcome {
        let key = arguments.node(0)?;
        let through = Index(arguments.word(1)?.parse()?);
        let effects = self.world().compact(key, through);
        self.perform(key, effects);
        Ok(())
    }

    fn session(&mut self, arguments: &Arguments<'_>) -> Outcome {
        let key = arguments.node(0)?;
        let effects = match arguments.word(1)? {
            "none" => self.world().disconnect(key),
            "new" => self.world().connect(key),
            "another" => self.world().connect_too(key),
            ended => {
                let session = SessionId(ended.parse()?);
                self.world().disconnect_from(key, session)
            }
        };
        let connected = self.world().node(key).connected;
        if !connected.is_empty() {
            let sessions: Vec<String> = connected.iter().map(|s| s.to_string()).collect();
            writeln!(self.told, "{key} has session {}", sessions.join(" and "))?;
        }
        self.perform(key, effects);
        Ok(())
    }

    fn deadline(&mut self, key: NodeKey) {
        let world = self.world();
        let deadline = world.raft(key).and_then(Raft::next_deadline);
        let waits = deadline.map_or(0, |at| at.since(world.now).as_millis());
        let _ = writeln!(self.told, "{key} acts in {waits} ms");
    }

    /// will SESSION [to=n2]: everyone else, or one node, hears that the session ended.
    fn will(&mut self, arguments: &Arguments<'_>) -> Outcome {
        let session = SessionId(arguments.word(0)?.parse()?);
        let to = arguments.key("to").map(node).transpose()?;
        let live: Vec<NodeKey> = self.world().live().map(|(key, _)| key).collect();
        for key in live {
            if to.is_none_or(|to| to == key) {
                self.input(key, Input::LeaderGone { session });
            }
        }
        Ok(())
    }

    fn rank(&mut self, arguments: &Arguments<'_>) -> Outcome {
        let key = arguments.node(0)?;
        let rank = arguments.word(1)?.parse()?;
        self.world().nodes.get_mut(&key).ok_or("unknown")?.rank = rank;
        self.input(key, Input::Rank(rank));
        Ok(())
    }

    fn change(&mut self, arguments: &Arguments<'_>) -> Outcome {
        let key = arguments.node(0)?;
        let mut members = Vec::new();
        let current = self.world().raft(key).ok_or("it is down")?.configuration();
        let mut settings = current.settings;
        for argument in &arguments.0.args {
            let Argument::KeyValue(what, value) = argument else {
                continue;
            };
            match what.as_str() {
                "lease" => settings.lease_ms = value.parse()?,
                "reads" => settings.lease_reads = value == "on",
                "learner" | "witness" => members.push(MemberChange::AddLearner {
                    key: node(value)?,
                    name: value.clone(),
                    witness: what == "witness",
                }),
                "promote" => members.push(MemberChange::Promote(node(value)?)),
                "demote" => members.push(MemberChange::Demote(node(value)?)),
                "remove" => members.push(MemberChange::Remove(node(value)?)),
                _ => return Err(format!("no change {what}").into()),
            }
        }
        let effects = self.world().reconfigure(key, members, Some(settings));
        self.perform(key, effects);
        Ok(())
    }

    fn transfer(&mut self, arguments: &Arguments<'_>) -> Outcome {
        let (key, to) = (arguments.node(0)?, arguments.node(1)?);
        let patience = arguments.key("patience").map(duration).transpose()?;
        let waits = patience.is_some();
        let patience = patience.unwrap_or(Duration::from_secs(1));
        self.input(key, Input::Transfer { to, patience });
        if !waits {
            self.input(key, Input::Relinquished);
        }
        Ok(())
    }

    // Questions.

    fn status(&mut self) {
        let world = self.world.as_ref().expect("set up");
        for (key, raft) in world.live() {
            let (term, role) = (raft.term(), role(raft.role()));
            let (commit, last) = (raft.commit_index(), raft.last_index());
            let leader = raft
                .leader()
                .map_or("-".to_owned(), |leader| leader.to_string());
            writeln!(
                self.told,
                "{key} {role} in term {term}, leader {leader}, commit {commit}, last {last}"
            )
            .expect("writes");
        }
    }

    fn log(&mut self, keys: &[NodeKey]) {
        let world = self.world.as_ref().expect("set up");
        for (key, raft) in world.live() {
            if !keys.is_empty() && !keys.contains(&key) {
                continue;
            }
            let base = raft.first_index();
            let entries = entries(&raft.entries(base + 1));
            let commit = raft.commit_index();
            let gone = match base {
                Index(0) => String::new(),
                base => format!("(..{base}) "),
            };
            writeln!(self.told, "{key} {gone}{entries} commit {commit}").expect("writes");
        }
    }

    fn lease(&mut self, key: NodeKey) {
        let world = self.world.as_ref().expect("set up");
        let told = match world.raft(key).and_then(Raft::lease) {
            None => "none".to_owned(),
            Some(lease) if lease.until <= world.now => "over".to_owned(),
            Some(lease) if lease.from > world.now => "waits".to_owned(),
            Some(lease) => format!(
                "for about {} ms, epoch {}",
                lease.until.since(world.now).as_millis() / 100 * 100,
                lease.epoch
            ),
        };
        writeln!(self.told, "{key} lease {told}").expect("writes");
    }

    // Telling.

    fn tell(&mut self, key: NodeKey, effect: &Effect) {
        let told = match effect {
            Effect::Persist(write) => {
                if !self.slow.contains(&key) {
                    return;
                }
                let mut told = "writes".to_owned();
                if let Some(HardState { term, voted_for }) = write.hard_state {
                    let vote = voted_for.map_or("none".to_owned(), |vote| vote.to_string());
                    write!(told, " term {term} vote {vote}").expect("writes");
                }
                if let Some(save) = &write.snapshot {
                    let last = position(save.snapshot.meta.last);
                    write!(told, " snapshot {last}").expect("writes");
                }
                if !write.entries.is_empty() {
                    write!(told, " {}", entries(&write.entries)).expect("writes");
                }
                told
            }
            Effect::Broadcast(message) => format!("-> all: {}", describe(message)),
            Effect::Send { to, message } => format!("-> {to}: {}", describe(message)),
            Effect::Apply(applied) => format!("applies {}", entries(applied)),
            Effect::Restore(snapshot) => {
                format!("restores snapshot {}", position(snapshot.meta.last))
            }
            Effect::ReadReady { id, index } => format!("read {id} ready at {index}"),
            Effect::ReadRefused { id, refusal: why } => format!("read {id} {}", refusal(*why)),
            Effect::ProposalRefused {
                request,
                refusal: why,
                ..
            } => format!("proposal {request} {}", refusal(*why)),
            Effect::ChangeDone { id } => format!("change {id} done"),
            Effect::ChangeRefused { id, refusal } => format!("change {id} refused: {refusal:?}"),
            Effect::TransferRefused { to, refusal } => {
                format!("transfer to {to} refused: {refusal:?}")
            }
            Effect::StatusChanged => self.tell_status(key),
            Effect::Rejected { from, reason } => format!("does not obey {from}: {reason:?}"),
        };
        writeln!(self.told, "{key} {told}").expect("writes");
    }

    fn tell_status(&self, key: NodeKey) -> String {
        let world = self.world.as_ref().expect("set up");
        let raft = world.raft(key).expect("it lives");
        let term = raft.term();
        match (raft.role(), raft.leader()) {
            (Role::Leader, _) => format!("leads term {term}"),
            (Role::Follower | Role::Learner, Some(leader)) => {
                format!("follows {leader} in term {term}")
            }
            (role, _) => format!("is {} in term {term}", self::role(role)),
        }
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Learner => "learner",
        Role::Follower => "follower",
        Role::PreCandidate => "pre-candidate",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
    }
}

fn refusal(refusal: Refusal) -> String {
    match refusal {
        Refusal::NotLeader { leader: None } => "refused: not the leader".to_owned(),
        Refusal::NotLeader { leader: Some(key) } => format!("refused: ask {key}"),
        Refusal::Busy => "refused: busy".to_owned(),
        Refusal::TooLarge { limit } => format!("refused: more than {limit} bytes"),
    }
}

fn position(position: LogPosition) -> String {
    format!("{}@{}", position.index, position.term)
}

fn entries(entries: &[Entry]) -> String {
    let each: Vec<String> = entries.iter().map(entry).collect();
    format!("[{}]", each.join(", "))
}

fn entry(entry: &Entry) -> String {
    let at = position(entry.position());
    match &entry.payload {
        Payload::Noop => at,
        Payload::Command(command) if command.data.is_empty() => at,
        Payload::Configuration(configuration) => format!("{at} {}", members(configuration)),
        Payload::LeaseEpoch(number) => format!("{at} lease epoch {number}"),
        Payload::Command(command) if command.data.len() > 16 => {
            format!("{at} {} bytes", command.data.len())
        }
        Payload::Command(command) => format!("{at} {}", String::from_utf8_lossy(&command.data)),
    }
}

fn members(configuration: &Configuration) -> String {
    let Configuration {
        voters,
        outgoing,
        learners,
        settings,
        ..
    } = configuration;
    let names = |members: &Members| {
        let name = |(key, _): (&NodeKey, &String)| match configuration.is_witness(*key) {
            true => format!("{key} (witness)"),
            false => key.to_string(),
        };
        members.iter().map(name).collect::<Vec<_>>().join(" ")
    };
    let mut told = match outgoing.is_empty() {
        true => format!("voters {}", names(voters)),
        false => format!("voters {} and {}", names(voters), names(outgoing)),
    };
    if !learners.is_empty() {
        write!(told, ", learners {}", names(learners)).expect("writes");
    }
    if *settings != Settings::default() {
        let reads = if settings.lease_reads { " reads" } else { "" };
        write!(told, ", lease {} ms{reads}", settings.lease_ms).expect("writes");
    }
    told
}

fn describe(message: &Message) -> String {
    let term = message.term;
    let told = match &message.body {
        Body::RequestPreVote(request) => format!("pre-vote? log ends {}", position(request.last)),
        Body::PreVote(reply) => {
            let answer = if reply.granted { "yes" } else { "no" };
            format!("pre-vote {answer} for term {}", reply.proposed_term)
        }
        Body::RequestVote(request) => {
            let asked = if request.transfer { " (asked to)" } else { "" };
            format!("vote?{asked} log ends {}", position(request.last))
        }
        Body::TimeoutNow(request) => {
            let released = request
                .released
                .map_or(String::new(), |epoch| format!(", released {epoch}"));
            format!("take over at {}{released}", position(request.last))
        }
        Body::Vote(vote) => format!("vote {}", if vote.granted { "yes" } else { "no" }),
        Body::Append(append) => describe_append(append),
        Body::Acknowledge(said) => {
            let stream = stream(said.stream);
            format!("{stream}has {}, heard r{}", said.match_index, said.round)
        }
        Body::Reject(said) => {
            let stream = stream(said.stream);
            format!(
                "{stream}misfit, try {}, heard r{}",
                position(said.hint),
                said.round
            )
        }
        Body::SnapshotChunk(chunk) => {
            let (stream, last) = (stream(chunk.stream), position(chunk.meta.last));
            let end = chunk.offset + chunk.data.len() as u64;
            let (from, length) = (chunk.offset, chunk.length);
            format!("{stream}snapshot {last} bytes {from}..{end} of {length}")
        }
        Body::SnapshotProgress(said) => {
            let stream = stream(said.stream);
            format!("{stream}snapshot up to byte {}", said.offset)
        }
        Body::Fetch(request) => describe_fetch(request),
        Body::Fetched(Fetched::Nothing) => "nothing new".to_owned(),
        Body::Fetched(Fetched::Entries(said)) => {
            let (prev, ends) = (position(said.prev), if said.ends { ", ends" } else { "" });
            format!("committed {} after {prev}{ends}", entries(&said.entries))
        }
        Body::Fetched(Fetched::Snapshot(piece)) => {
            let (last, ends) = (
                position(piece.meta.last),
                if piece.ends { ", ends" } else { "" },
            );
            let (from, end) = (piece.offset, piece.offset + piece.data.len() as u64);
            format!(
                "committed snapshot {last} bytes {from}..{end} of {}{ends}",
                piece.length
            )
        }
    };
    format!("t{term} {told}")
}

fn describe_append(append: &Append) -> String {
    let Append {
        round,
        stream: id,
        prev,
        commit_index,
        entries: sent,
        ..
    } = append;
    let (stream, prev) = (stream(*id), position(*prev));
    let entries = match sent.is_empty() {
        true => "heartbeat".to_owned(),
        false => format!("append {}", entries(sent)),
    };
    format!("{stream}{entries} after {prev}, commit {commit_index}, r{round}")
}

fn describe_fetch(request: &Fetch) -> String {
    let what = if request.snapshot {
        "a snapshot"
    } else {
        "what is committed"
    };
    let part = request.part.map_or(String::new(), |part| {
        format!(", has {} up to byte {}", position(part.last), part.offset)
    });
    format!("fetch {what} after {}{part}", request.after)
}

fn stream(id: StreamId) -> String {
    match id {
        StreamId(0) => String::new(),
        id => format!("(stream {id}) "),
    }
}

fn scripts_in_order() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts");
    let found = std::fs::read_dir(&folder).expect("the scripts' folder");
    let mut paths: Vec<PathBuf> = found.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    paths.retain(|path| path.is_file());
    paths
}

/// Which roles hear which messages in all scripts together.
pub(crate) fn heard() -> Table {
    let mut heard = Table::new();
    for path in scripts_in_order() {
        let mut stage = Stage::new();
        goldenscript::run(&mut stage, &path).expect("the script runs");
        heard.add(&stage.heard);
    }
    heard
}

/// Every script says what it says. `UPDATE_GOLDENFILES=1` writes down what it says now.
#[test]
fn scripts() {
    let mut paths = scripts_in_order();
    let only = std::env::var("SCRIPT").unwrap_or_default();
    paths.retain(|path| path.to_string_lossy().contains(&only));
    let fails = |path: &&PathBuf| {
        let run = || goldenscript::run(&mut Stage::new(), path).expect("the script runs");
        std::panic::catch_unwind(run).is_err()
    };
    let failed: Vec<&PathBuf> = paths.iter().filter(fails).collect();
    assert!(failed.is_empty(), "scripts that failed: {failed:#?}");
}
