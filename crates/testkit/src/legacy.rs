//! A stand-in for a node of node-raft-over-mqtt 1.2.1, written from its wire and its conduct.
//!
//! [`LegacyNode`] is the conduct alone, in virtual time: presence every 3 s, an election when no
//! heartbeat was accepted for 8 to 12 s, a majority of whoever is in earshot, heartbeats every 2 s,
//! and terms that are now a number and now a text, as JavaScript has it. [`LegacyProcess`] runs one on
//! a broker.
//!
//! What stands out, since a test of ours may rest on it: it votes for whoever asks, also where it says
//! that it does not; it steps down for any later term, of whatever kind of message; a heartbeat of a
//! worse metric than its own makes it stand, also one without a metric; a heartbeat whose term is no
//! number is of no earlier term than its own; a message under its own name is none to it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mqtt::{Event, Options, Qos, SessionSetup};

/// The topics below `<CN>/raft/`.
const KINDS: [&str; 4] = ["presence", "election", "vote", "heartbeat"];

const PRESENCE_INTERVAL: Duration = Duration::from_secs(3);
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);
const ELECTION_TIMEOUT: Duration = Duration::from_secs(8);

/// The metric of a node that was given none.
pub const DEFAULT_METRIC: f64 = 1e6;

/// What a node takes itself for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LegacyState {
    /// It follows, or waits.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It believes to lead.
    Leader,
}

/// One node, in virtual time: every method is given how long it has been since some beginning.
#[derive(Clone, Debug)]
pub struct LegacyNode {
    id: String,
    metric: f64,
    state: LegacyState,
    term: JsValue,
    voted_for: Option<String>,
    votes: usize,
    leader_metric: Option<f64>,
    active: BTreeMap<String, Duration>,
    dice: u64,
    presence_at: Duration,
    election_at: Duration,
    heartbeat_at: Option<Duration>,
    out: Vec<(&'static str, String)>,
}

/// A term: 0 and what was counted on from it are numbers, what was taken from a message is its text.
#[derive(Clone, Debug)]
enum JsValue {
    Number(f64),
    Text(String),
}

impl LegacyNode {
    /// A node that starts now.
    pub fn new(id: &str, metric: f64, seed: u64, now: Duration) -> LegacyNode {
        let mut node = LegacyNode {
            id: id.to_owned(),
            metric,
            state: LegacyState::Follower,
            term: JsValue::Number(0.0),
            voted_for: None,
            votes: 0,
            leader_metric: None,
            active: BTreeMap::new(),
            dice: seed,
            presence_at: now + PRESENCE_INTERVAL,
            election_at: now,
            heartbeat_at: None,
            out: Vec::new(),
        };
        node.restart_election_timeout(now);
        node
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it takes itself for.
    pub fn state(&self) -> LegacyState {
        self.state
    }

    /// Its term, as it would print it.
    pub fn term(&self) -> String {
        self.term.print()
    }

    /// The metric of the last heartbeat that it heard.
    pub fn leader_metric(&self) -> Option<f64> {
        self.leader_metric
    }

    /// How many nodes it counts, itself among them once it has heard itself.
    pub fn active_nodes_count(&self) -> usize {
        self.active.len()
    }

    /// Changes its metric.
    pub fn set_metric(&mut self, metric: f64) {
        self.metric = metric;
    }

    /// When to call [`LegacyNode::on_time`] next.
    pub fn deadline(&self) -> Duration {
        let election = Some(self.election_at).filter(|_| self.state != LegacyState::Leader);
        let deadlines = [Some(self.presence_at), self.heartbeat_at, election];
        deadlines.into_iter().flatten().min().expect("presence")
    }

    /// Does what is due, and returns what to publish: kind of topic, and payload.
    pub fn on_time(&mut self, now: Duration) -> Vec<(&'static str, String)> {
        if self.presence_at <= now {
            self.presence_at += PRESENCE_INTERVAL;
            self.out.push(("presence", self.id.clone()));
            self.active
                .retain(|_, seen| now.saturating_sub(*seen) <= 3 * PRESENCE_INTERVAL);
        }
        if let Some(at) = self.heartbeat_at.filter(|at| *at <= now) {
            self.heartbeat_at = Some(at + HEARTBEAT_INTERVAL);
            let metric = print(self.metric);
            let heartbeat = format!("{}:{}:{metric}", self.term.print(), self.id);
            self.out.push(("heartbeat", heartbeat));
        }
        if self.state != LegacyState::Leader && self.election_at <= now {
            match self.active.len() {
                1 => self.become_leader(now),
                _ => self.stand(now),
            }
        }
        std::mem::take(&mut self.out)
    }

    /// Takes a message of a topic of this kind, and returns what to publish.
    pub fn on_message(
        &mut self,
        kind: &str,
        payload: &[u8],
        now: Duration,
    ) -> Vec<(&'static str, String)> {
        let text = String::from_utf8_lossy(payload);
        if kind == "presence" {
            self.active.insert(text.to_string(), now);
        }
        // Both halves of the package see every message.
        let mut fields = text.split(':');
        let (term, sender) = (fields.next().unwrap_or_default(), fields.next());
        if let Some(sender) = sender.filter(|sender| *sender != self.id) {
            self.on_said(kind, term, sender, fields.next(), now);
        }
        std::mem::take(&mut self.out)
    }

    fn on_said(&mut self, kind: &str, term: &str, sender: &str, data: Option<&str>, now: Duration) {
        let parsed = parse_int(term);
        let own = self.term.to_number();
        if parsed < own {
            return;
        }
        if parsed > own {
            self.voted_for = None;
            self.term = JsValue::Text(term.to_owned());
            self.reset(LegacyState::Follower);
            self.restart_election_timeout(now);
        }
        let metric = || data.map_or(f64::NAN, parse_float);
        match kind {
            "election" => self.on_election(sender, parsed, now),
            "heartbeat" => self.on_heartbeat(metric(), now),
            "vote" => self.on_vote(data.unwrap_or_default(), now),
            _ => {}
        }
    }

    fn on_election(&mut self, candidate: &str, term: f64, now: Duration) {
        // Strictly equal: never so while the term is a text.
        let same = matches!(self.term, JsValue::Number(own) if own == term);
        let other = self.voted_for.as_ref().is_some_and(|v| v != candidate);
        if same && other {
            return;
        }
        self.voted_for = Some(candidate.to_owned());
        let vote = format!("{}:{}:{candidate}", print(term), self.id);
        self.out.push(("vote", vote));
        self.restart_election_timeout(now);
    }

    fn on_heartbeat(&mut self, metric: f64, now: Duration) {
        self.leader_metric = Some(metric);
        if self.state == LegacyState::Leader && self.metric <= metric {
            return;
        }
        if metric <= self.metric {
            if self.state != LegacyState::Follower {
                self.reset(LegacyState::Follower);
            }
            self.restart_election_timeout(now);
        } else {
            self.stand(now);
        }
    }

    fn on_vote(&mut self, candidate: &str, now: Duration) {
        if self.state != LegacyState::Candidate || candidate != self.id {
            return;
        }
        self.votes += 1;
        if self.votes > self.active.len() / 2 {
            self.become_leader(now);
        }
    }

    fn stand(&mut self, now: Duration) {
        self.reset(LegacyState::Candidate);
        self.term = JsValue::Number(self.term.to_number() + 1.0);
        self.voted_for = Some(self.id.clone());
        self.votes = 1;
        let request = format!("{}:{}:{}", self.term.print(), self.id, print(self.metric));
        self.out.push(("election", request));
        self.restart_election_timeout(now);
    }

    fn become_leader(&mut self, now: Duration) {
        self.reset(LegacyState::Leader);
        self.heartbeat_at = Some(now + HEARTBEAT_INTERVAL);
    }

    fn reset(&mut self, state: LegacyState) {
        self.state = state;
        self.heartbeat_at = None;
    }

    fn restart_election_timeout(&mut self, now: Duration) {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let spread = 2 * HEARTBEAT_INTERVAL.as_millis() as u64;
        let jitter = Duration::from_millis((z ^ (z >> 31)) % spread);
        self.election_at = now + ELECTION_TIMEOUT + jitter;
    }
}

impl JsValue {
    fn to_number(&self) -> f64 {
        match self {
            JsValue::Number(number) => *number,
            JsValue::Text(text) => to_number(text),
        }
    }

    fn print(&self) -> String {
        match self {
            JsValue::Number(number) => print(*number),
            JsValue::Text(text) => text.clone(),
        }
    }
}

// Numbers as JavaScript reads and prints them.

fn blank(c: char) -> bool {
    c.is_whitespace() || c == '\u{feff}'
}

/// `parseInt(text, 10)`: the digits that it begins with.
fn parse_int(text: &str) -> f64 {
    let text = text.trim_start_matches(blank);
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = digits.find(|c: char| !c.is_ascii_digit());
    let digits = &digits[..end.unwrap_or(digits.len())];
    sign * digits.parse::<f64>().unwrap_or(f64::NAN)
}

/// `parseFloat(text)`: the longest number that it begins with.
fn parse_float(text: &str) -> f64 {
    let text = text.trim_start_matches(blank);
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if unsigned.starts_with("Infinity") {
        let negative = text.starts_with('-');
        return if negative {
            f64::NEG_INFINITY
        } else {
            f64::INFINITY
        };
    }
    let numeric = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
    let end = text.find(|c| !numeric(c)).unwrap_or(text.len());
    let prefixes = (1..=end).rev().map(|end| text[..end].parse::<f64>());
    prefixes.flatten().next().unwrap_or(f64::NAN)
}

/// `Number(text)`, but for hexadecimal and the like, which `parseInt` takes for 0.
fn to_number(text: &str) -> f64 {
    let text = text.trim_matches(blank);
    match text {
        "" => 0.0,
        "Infinity" | "+Infinity" => f64::INFINITY,
        "-Infinity" => f64::NEG_INFINITY,
        _ if text.contains(|c: char| c.is_ascii_alphabetic() && !matches!(c, 'e' | 'E')) => {
            f64::NAN
        }
        _ => text.parse().unwrap_or(f64::NAN),
    }
}

/// `String(number)`, for numbers that are not tiny.
fn print(number: f64) -> String {
    if number.is_nan() {
        "NaN".to_owned()
    } else if number.is_infinite() {
        let sign = if number < 0.0 { "-" } else { "" };
        format!("{sign}Infinity")
    } else if number.abs() >= 1e21 {
        format!("{number:e}").replacen('e', "e+", 1)
    } else {
        format!("{}", number + 0.0)
    }
}

/// A node on a broker, on the present tokio runtime. Dropped, it is gone as by `kill -9`.
pub struct LegacyProcess {
    shared: Arc<Mutex<Shared>>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    node: LegacyNode,
    /// Since when it believes to lead.
    led: u64,
}

impl LegacyProcess {
    /// Starts a node at the broker `url`, with the common name `prefix` in its certificate.
    ///
    /// # Panics
    ///
    /// If `url` is no broker's.
    pub fn start(url: &str, prefix: &str, id: &str, metric: f64) -> LegacyProcess {
        let mut options = Options::new(url.parse().expect("a broker's URL"));
        // As mqtt.js by default.
        options.version = mqtt::Version::V311;
        options.keep_alive = Duration::from_secs(60);
        let (prefix, client) = (prefix.to_owned(), id.to_owned());
        let topics = KINDS.map(|kind| (format!("{prefix}/raft/{kind}"), Qos::AtLeastOnce));
        let setup = move |epoch: mqtt::SessionEpoch| SessionSetup {
            client_id: format!("legacy-{client}-{}", epoch.0),
            will: None,
            subscriptions: topics.to_vec(),
        };
        let (publisher, events) = mqtt::connect(options, setup).expect("usable options");
        let began = Instant::now();
        let seed = id
            .bytes()
            .fold(7, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte));
        let node = LegacyNode::new(id, metric, seed, Duration::ZERO);
        let shared = Arc::new(Mutex::new(Shared { node, led: 0 }));
        let task = tokio::spawn(run(Arc::clone(&shared), publisher, events, prefix, began));
        LegacyProcess { shared, task }
    }

    /// Whether it believes to lead.
    pub fn is_leader(&self) -> bool {
        self.lock().node.state() == LegacyState::Leader
    }

    /// How often it became leader.
    pub fn times_led(&self) -> u64 {
        self.lock().led
    }

    /// A copy of the node as it is now.
    pub fn node(&self) -> LegacyNode {
        self.lock().node.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LegacyProcess {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    shared: Arc<Mutex<Shared>>,
    publisher: mqtt::Publisher,
    mut events: mqtt::Events,
    prefix: String,
    began: Instant,
) {
    loop {
        let deadline = {
            let shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            shared.node.deadline()
        };
        let wait = deadline.saturating_sub(began.elapsed());
        let event = tokio::time::timeout(wait, events.next()).await;
        let now = began.elapsed();
        let out = {
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            let led = shared.node.state() == LegacyState::Leader;
            let out = match &event {
                Err(_) => shared.node.on_time(now),
                Ok(None) => return,
                Ok(Some(Event::Message(message))) => {
                    let kind = message.topic.rsplit('/').next().unwrap_or_default();
                    shared.node.on_message(kind, &message.payload, now)
                }
                Ok(Some(_)) => Vec::new(),
            };
            let leads = shared.node.state() == LegacyState::Leader;
            shared.led += u64::from(leads && !led);
            out
        };
        for (kind, payload) in out {
            let topic = format!("{prefix}/raft/{kind}");
            // Without a session it speaks to nobody.
            let _ = publisher.publish(topic, payload.into(), Qos::AtLeastOnce, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Numbers as Node.js 20 reads and prints them.
    #[test]
    fn numbers_are_javascripts() {
        assert_eq!(parse_int(" 12x"), 12.0);
        assert_eq!(parse_int("1e400"), 1.0);
        assert_eq!(parse_int("-5"), -5.0);
        assert!(parse_int("x").is_nan() && parse_int("").is_nan());
        assert_eq!(parse_int(&"9".repeat(400)), f64::INFINITY);
        assert_eq!(parse_float("-Infinity"), f64::NEG_INFINITY);
        assert_eq!(parse_float("1.5e3:x"), 1_500.0);
        assert_eq!(parse_float("10-"), 10.0);
        assert!(parse_float("node-1").is_nan());
        assert_eq!(to_number("1e3"), 1_000.0);
        assert_eq!(to_number("1e400"), f64::INFINITY);
        assert!(to_number("7x").is_nan() && to_number("inf").is_nan());
        assert_eq!(print(1e21), "1e+21");
        assert_eq!(print(9_007_199_254_740_993.0), "9007199254740992");
        assert_eq!(print(1e6), "1000000");
        assert_eq!(print(6.9), "6.9");
    }

    /// Alone it leads without an election, in the term that it began with, and follows who is better.
    #[test]
    fn a_node_alone_leads_and_follows_who_is_better() {
        let mut node = LegacyNode::new("node-1", 10.0, 1, Duration::ZERO);
        assert_eq!(node.on_time(after(3)), [("presence", "node-1".to_owned())]);
        node.on_message("presence", b"node-1", after(3));
        for second in [6, 9, 12] {
            node.on_time(after(second));
        }
        assert_eq!(node.state(), LegacyState::Leader);
        let said = node.on_time(after(14));
        assert!(
            said.contains(&("heartbeat", "0:node-1:10".to_owned())),
            "{said:?}"
        );

        node.on_message("heartbeat", b"0:node-2:10", after(15));
        assert_eq!(node.state(), LegacyState::Leader, "no better");
        node.on_message("heartbeat", b"0:node-1:5", after(15));
        assert_eq!(node.state(), LegacyState::Leader, "its own");
        node.on_message("heartbeat", b"0:node-2:9.5", after(15));
        assert_eq!(node.state(), LegacyState::Follower);
        let said = node.on_message("heartbeat", b"0:node-2:11", after(16));
        assert_eq!(said, [("election", "1:node-1:10".to_owned())], "worse");
    }

    /// It counts whoever it has heard, and votes for whoever asks.
    #[test]
    fn a_majority_of_whoever_is_in_earshot() {
        let mut node = LegacyNode::new("node-1", 10.0, 1, Duration::ZERO);
        for id in ["node-1", "node-2", "node-3", "node-4"] {
            node.on_message("presence", id.as_bytes(), after(7));
        }
        let said = node.on_message("election", b"1:node-2:99", after(7));
        assert_eq!(said, [("vote", "1:node-1:node-2".to_owned())]);
        let said = node.on_message("election", b"1:node-3:99", after(7));
        assert_eq!(said, [("vote", "1:node-1:node-3".to_owned())], "and again");
        let said = node.on_time(node.election_at);
        assert!(
            said.contains(&("election", "2:node-1:10".to_owned())),
            "{said:?}"
        );
        node.on_message("vote", b"2:node-2:node-1", after(20));
        assert_eq!(node.state(), LegacyState::Candidate);
        node.on_message("vote", b"2:node-3:node-1", after(20));
        assert_eq!(node.state(), LegacyState::Leader);
    }
}
