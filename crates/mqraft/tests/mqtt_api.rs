//! Clients that know nothing of a cluster but MQTT: Mosquitto's own tools, as docs/mqtt-api.md and the
//! README have them, word for word but for the broker's address.

mod bench;

use std::fs::File;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use testkit::{Mosquitto, require_mosquitto, wait_for};

use bench::{Bench, PATIENCE, Process, VOTERS};

const DOC: &str = include_str!("../../../docs/mqtt-api.md");
const README: &str = include_str!("../../../README.md");

const FLAGS: &str = "--requests --request-write door/ --mirror door/";

/// Says why, where the tools are missing; they come in a package of their own.
fn tools_or_skip() -> bool {
    let found = Command::new("mosquitto_rr").arg("--help").output().is_ok();
    if !found {
        let required = std::env::var_os("MQRAFT_REQUIRE_BROKERS").is_some();
        assert!(
            !required,
            "mosquitto_rr is not installed (mosquitto-clients)"
        );
        eprintln!("skipped: mosquitto_rr is not installed (mosquitto-clients)");
    }
    found
}

/// Three voters of plant-a, of which gw-1 is the best to lead.
fn cluster(bench: &Bench, flags: &str) -> Vec<Process> {
    let node = |(number, id): (usize, &str)| {
        let metric = 10 * (number + 1);
        let flags = format!("--cluster plant-a --metric {metric} {flags}");
        bench.process(&bench.node(id, &flags))
    };
    VOTERS.split(',').enumerate().map(node).collect()
}

/// What mosquitto_sub has heard, while it runs.
struct Listener {
    child: Child,
    out: std::path::PathBuf,
}

impl Listener {
    /// Returns once the broker has the subscription.
    fn start(bench: &mut Bench, name: &str, words: &str) -> Listener {
        let out = bench.path(name);
        let before = bench.broker().log().matches("Received SUBSCRIBE").count();
        let child = shell(&format!("exec {words}"))
            .stdout(File::create(&out).expect("a file"))
            .spawn()
            .expect("sh starts");
        let subscribed = || bench.broker().log().matches("Received SUBSCRIBE").count() > before;
        assert!(wait_for(PATIENCE, subscribed), "{words}");
        Listener { child, out }
    }

    fn heard(&self) -> String {
        std::fs::read_to_string(&self.out).expect("text")
    }

    /// What it has heard by its end.
    fn finish(mut self) -> String {
        let ended = || self.child.try_wait().expect("a child of ours").is_some();
        assert!(
            wait_for(PATIENCE, ended),
            "still waiting, after {:?}",
            self.heard()
        );
        self.heard()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::null());
    command
}

/// What a command says.
fn output(script: &str) -> String {
    let output = shell(script).output().expect("sh starts");
    assert!(
        output.stderr.is_empty(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// A block of a page: commands, and what they say.
struct Block {
    commands: Vec<String>,
    says: String,
}

/// The blocks that use Mosquitto's tools.
fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    for text in page.split("```console\n").skip(1) {
        let text = text.split("```").next().unwrap_or_default();
        let text = text.replace("\\\n", " ");
        let commands = text.lines().filter_map(|line| line.strip_prefix("$ "));
        let commands: Vec<_> = commands.map(str::to_owned).collect();
        if commands.is_empty()
            || !commands
                .iter()
                .all(|command| command.starts_with("mosquitto_"))
        {
            continue;
        }
        let says = text.lines().filter(|line| !line.starts_with("$ "));
        let says = says.map(|line| format!("{line}\n")).collect();
        blocks.push(Block { commands, says });
    }
    blocks
}

/// Runs a block; what is in the background is heard to its end.
fn run(block: &Block, bench: &mut Bench) -> String {
    let address = format!("-h 127.0.0.1 -p {}", bench.broker().port());
    let (mut said, mut listeners) = (String::new(), Vec::new());
    for command in &block.commands {
        let command = command.replace("-h broker.example", &address);
        match command.strip_suffix(" &") {
            Some(command) => listeners.push(Listener::start(bench, "listener", command)),
            None => said.push_str(&output(&format!("timeout 20 {command}"))),
        }
    }
    said.extend(listeners.into_iter().map(Listener::finish));
    said
}

/// What differs from run to run taken out: how far terms, revisions and clocks have come, and what is
/// drawn by lot. Lines of several retained topics come in any order.
fn comparable(text: &str, in_any_order: bool) -> Vec<String> {
    let line = |line: &str| match serde_json::from_str::<Value>(line) {
        Ok(mut json) => {
            generalise(&mut json);
            json.to_string()
        }
        Err(_) => line.to_owned(),
    };
    let mut lines: Vec<_> = text.lines().map(line).collect();
    if in_any_order {
        lines.sort();
    }
    lines
}

fn generalise(json: &mut Value) {
    match json {
        Value::Array(values) => values.iter_mut().for_each(generalise),
        Value::Object(fields) => {
            for (name, value) in fields {
                let counts = [
                    "revision", "modified", "term", "since", "token", "from", "epoch", "count",
                ];
                let counts = counts.contains(&name.as_str()) && value.as_u64() > Some(0);
                let hex =
                    |text: &str| text.len() >= 16 && text.bytes().all(|c| c.is_ascii_hexdigit());
                let drawn = value.as_str().is_some_and(hex);
                match counts || drawn {
                    true => *value = Value::String(format!("some {name}")),
                    false => generalise(value),
                }
            }
        }
        _ => {}
    }
}

fn check(page: &str, least: usize, bench: &mut Bench) {
    let blocks = blocks(page);
    assert!(
        blocks.len() >= least,
        "the page has fewer commands than it had"
    );
    for block in blocks {
        let any_order = block.commands.iter().any(|command| command.contains("/+/"));
        let expected = comparable(&block.says, any_order);
        // What is retained may be a moment behind; nothing else is asked twice.
        let listens =
            |command: &String| command.starts_with("mosquitto_sub") && !command.ends_with('&');
        let repeatable = block.commands.iter().all(listens);
        let mut said = String::new();
        let mut once = || {
            said = run(&block, bench);
            comparable(&said, any_order) == expected
        };
        let same = match repeatable {
            true => wait_for(PATIENCE, once),
            false => once(),
        };
        assert!(
            same,
            "{:#?} says\n{said}and not\n{}",
            block.commands, block.says
        );
    }
}

/// The page's commands in its order, each with the answer that the page shows.
#[test]
fn the_page_is_what_happens() {
    require_mosquitto!();
    if !tools_or_skip() {
        return;
    }
    let mut bench = Bench::start();
    let _nodes = cluster(&bench, &format!("{} {FLAGS}", bench.insecure()));
    let log = |node: &Process| node.await_log("leads term");
    assert!(log(&_nodes[0]), "{}", _nodes[0].log());
    await_answers(&bench);
    check(DOC, 7, &mut bench);
    check(README, 1, &mut bench);
}

/// Asks and returns the answer, or nothing if there is none in a second.
fn ask(bench: &Bench, flags: &str, json: &str) -> String {
    let port = bench.broker.as_ref().expect("a broker").port();
    output(&format!(
        "mosquitto_rr -h 127.0.0.1 -p {port} -W 1 -t raft/plant-a/req/panel \
         -e raft/plant-a/req/panel/1 {flags} -m '{json}' 2>/dev/null"
    ))
}

fn await_answers(bench: &Bench) {
    let answered = || ask(bench, "", r#"{"op":"leader"}"#).contains("leader");
    assert!(wait_for(PATIENCE, answered), "nobody answers");
}

/// After kill -9 of the leader the next one answers, and brings the mirror up to date: also what was
/// deleted, and what somebody else put there, while nobody led.
#[test]
fn the_next_leader_answers_and_mirrors() {
    require_mosquitto!();
    if !tools_or_skip() {
        return;
    }
    let mut bench = Bench::start();
    let mut nodes = cluster(&bench, &format!("{} {FLAGS}", bench.insecure()));
    await_answers(&bench);
    for key in ["door/1", "door/2", "door/+"] {
        let put = format!(r#"{{"op":"put","key":"{key}","value":"open"}}"#);
        assert!(ask(&bench, "", &put).contains("true"));
    }
    let port = bench.broker().port();
    let kept = || {
        let words = format!(
            "mosquitto_sub -h 127.0.0.1 -p {port} -t 'raft/plant-a/kv/#' -F '%t=%p' \
             --retained-only -W 1 2>/dev/null"
        );
        let text = output(&words).replace("raft/plant-a/kv/", "");
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let all = ["door/%2B=open", "door/1=open", "door/2=open"];
    assert!(wait_for(PATIENCE, || kept() == all), "{:?}", kept());
    let leader = await_leader(&bench);
    let at = nodes
        .iter()
        .position(|node| node.is_called(&leader))
        .expect("one of ours");
    nodes[at].kill();
    for message in ["door/2 -m forged", "door/3 -m foreign", "door/1 -n"] {
        output(&format!(
            "mosquitto_pub -p {port} -r -q 1 -t raft/plant-a/kv/{message}"
        ));
    }
    let delete = r#"{"op":"delete","key":"door/+"}"#;
    assert!(wait_for(PATIENCE, || ask(&bench, "", delete).contains("true")));
    let rest = ["door/1=open", "door/2=open"];
    assert!(wait_for(PATIENCE, || kept() == rest), "{:?}", kept());
}

fn await_leader(bench: &Bench) -> String {
    let answer = ask(bench, "", r#"{"op":"leader"}"#);
    let json: Value = serde_json::from_str(&answer).expect("JSON");
    json["leader"].as_str().expect("a name").to_owned()
}

/// Nobody who may ask can have a node publish elsewhere than below that name, ask as another, or have
/// a request done twice by the broker's keeping it.
#[test]
fn a_request_cannot_reach_beyond_its_own_topic() {
    require_mosquitto!();
    if !tools_or_skip() {
        return;
    }
    let mut bench = Bench::start();
    let _nodes = cluster(&bench, &format!("{} {FLAGS}", bench.insecure()));
    await_answers(&bench);
    let port = bench.broker().port();
    let everything =
        format!("mosquitto_sub -p {port} -v -t 'raft/#' -t elsewhere -T 'raft/plant-a/rpc/#'");
    let listener = Listener::start(&mut bench, "everything", &everything);
    let wrong = [
        "raft/plant-a/leader",
        "raft/plant-a/rpc/all/gw-1",
        "raft/plant-a/req/other/1",
        "elsewhere",
    ];
    for topic in wrong {
        output(&format!(
            "mosquitto_pub -p {port} -V mqttv5 -q 1 -t raft/plant-a/req/panel \
             -D publish response-topic {topic} -m '{{\"op\":\"get\",\"key\":\"secret\"}}'"
        ));
    }
    output(&format!(
        "mosquitto_pub -p {port} -r -q 1 -t raft/plant-a/req/other -m '{{\"op\":\"put\",\"key\":\"door/1\",\"value\":\"x\"}}'"
    ));
    let refusals = || listener.heard().matches("an answer goes below").count() == wrong.len();
    assert!(wait_for(PATIENCE, refusals), "{}", listener.heard());
    let heard = listener.heard();
    for line in heard
        .lines()
        .filter(|line| line.contains("an answer goes below"))
    {
        assert!(
            line.starts_with("raft/plant-a/req/panel/answer {\"error\":\"bad_request\""),
            "{line}"
        );
    }
    assert!(
        !heard.lines().any(|line| line.starts_with("elsewhere")),
        "{heard}"
    );
    // What is retained is a request once, while it is new; its keeper repeats it in vain.
    let done = || ask(&bench, "", r#"{"op":"get","key":"door/1"}"#).contains("\"x\"");
    assert!(wait_for(PATIENCE, done));
    assert!(ask(&bench, "", r#"{"op":"put","key":"door/1","value":"y"}"#).contains("true"));
    let leader = await_leader(&bench);
    let to = if leader == "gw-2" { "gw-3" } else { "gw-2" };
    let transfer = format!("transfer {to} --cluster plant-a {}", bench.insecure());
    bench.run(&transfer).expect_exit(0);
    assert!(wait_for(PATIENCE, || ask(&bench, "", r#"{"op":"leader"}"#)
        .contains(to)));
    assert!(ask(&bench, "", r#"{"op":"get","key":"door/1"}"#).contains("\"y\""));
}

/// A flood of one name is refused, costs the others nothing, and the cluster does not lose its leader.
#[test]
fn a_flood_is_refused_and_the_cluster_goes_on() {
    require_mosquitto!();
    if !tools_or_skip() {
        return;
    }
    let mut bench = Bench::start();
    let _nodes = cluster(&bench, &format!("{} {FLAGS}", bench.insecure()));
    await_answers(&bench);
    let term = ask(&bench, "", r#"{"op":"leader"}"#);
    let port = bench.broker().port();
    let answers = format!("mosquitto_sub -p {port} -t raft/plant-a/req/loud/answer");
    let listener = Listener::start(&mut bench, "loud", &answers);
    // 20,000 requests by one process, as fast as it can.
    let flood = format!(
        "yes '{{\"op\":\"list\",\"prefix\":\"\"}}' | head -n 20000 | mosquitto_pub -p {port} -t raft/plant-a/req/loud -l"
    );
    let mut flood = shell(&flood).spawn().expect("sh starts");
    let busy = || listener.heard().contains("ask again in a second");
    assert!(wait_for(PATIENCE, busy));
    assert!(wait_for(PATIENCE, || ask(&bench, "", r#"{"op":"leader"}"#) == term));
    assert!(flood.wait().expect("it ends").success());
    assert_eq!(
        ask(&bench, "", r#"{"op":"leader"}"#),
        term,
        "it led all the time"
    );
    // Ten a second of each kind, and what may come at once, for as long as this may take.
    let heard = listener.heard().lines().count();
    assert!(
        (1..=700).contains(&heard),
        "{heard} answers to 20,000 requests"
    );
}

/// The page's ACL, on a broker that enforces it: each may do what the page says, and no more.
#[test]
fn the_acl_of_the_page_is_enough_and_binds_the_name() {
    require_mosquitto!();
    if !tools_or_skip() {
        return;
    }
    let acl = DOC
        .split("```acl\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let broker = Mosquitto::builder()
        .user("node", "n")
        .user("panel", "p")
        .user("screen", "s")
        .acl(acl.expect("the page has an ACL"))
        .start();
    let mut bench = Bench::of(broker);
    std::fs::write(bench.path("password"), "n").expect("a file");
    let password = bench.path("password").display().to_string();
    let login = format!("--username node --password-file {password}");
    let _nodes = cluster(&bench, &format!("{} {login} {FLAGS}", bench.insecure()));
    let panel = "-u panel -P p";
    let put = r#"{"op":"put","key":"door/1","value":"open"}"#;
    assert!(wait_for(PATIENCE, || ask(&bench, panel, put).contains("true")));
    let port = bench.broker().port();
    // As another the panel asks in vain.
    let as_other = format!(
        "mosquitto_rr -p {port} -u panel -P p -W 1 -t raft/plant-a/req/other \
         -e raft/plant-a/req/panel/1 -m '{put}' 2>/dev/null"
    );
    assert_eq!(output(&as_other), "");
    let seen = |topic: &str| {
        let words = "-u screen -P s --retained-only -W 1";
        output(&format!(
            "mosquitto_sub -p {port} {words} -t '{topic}' -v 2>/dev/null"
        ))
    };
    let mirrored = || seen("raft/plant-a/#").contains("raft/plant-a/kv/door/1 open\n");
    assert!(wait_for(PATIENCE, mirrored));
    assert!(seen("raft/plant-a/leader").contains("gw-"));
    assert_eq!(seen("raft/plant-a/nodes/+/status").lines().count(), 3);
    assert_eq!(
        ask(&bench, "-u screen -P s", put),
        "",
        "a screen does not ask"
    );
}

/// Off is off: without the flags nobody answers and nothing is mirrored.
#[test]
fn it_is_off_by_default() {
    require_mosquitto!();
    if !tools_or_skip() {
        return;
    }
    let mut bench = Bench::start();
    let flags = format!("{} --cluster plant-a", bench.insecure());
    let node = bench.process(&format!(
        "{} {flags}",
        bench.lone_node_without_flags("gw-1")
    ));
    assert!(node.await_log("leads term"));
    bench
        .run(&format!("put door/1 open {flags}"))
        .expect_exit(0);
    assert_eq!(ask(&bench, "", r#"{"op":"leader"}"#), "");
    let port = bench.broker().port();
    let clients = bench.broker().log();
    assert!(!clients.contains("-out-"), "no session of that kind");
    let kept =
        format!("mosquitto_sub -p {port} -t 'raft/plant-a/kv/#' --retained-only -W 1 2>/dev/null");
    assert_eq!(output(&kept), "");
}

/// A key that goes with a lease is its holder's: requests read it, and do not change it.
#[test]
fn a_key_with_a_lease_is_its_holders() {
    require_mosquitto!();
    if !tools_or_skip() {
        return;
    }
    let bench = Bench::start();
    let flags = format!("{} --cluster plant-a", bench.insecure());
    let lone = bench.lone_node_without_flags("gw-1");
    let _node = bench.process(&format!("{lone} {flags} {FLAGS}"));
    await_answers(&bench);
    let grant = bench.run(&format!("lease grant 1m -o json {flags}"));
    let lease = grant.expect_exit(0).json()["lease"].clone();
    let put = format!("put door/1 held --lease {lease} {flags}");
    bench.run(&put).expect_exit(0);
    for change in [
        r#"{"op":"put","key":"door/1","value":"taken"}"#,
        r#"{"op":"cas","key":"door/1","expected":"held","value":"taken"}"#,
        r#"{"op":"delete","key":"door/1"}"#,
    ] {
        let answer = ask(&bench, "", change);
        assert!(answer.contains("goes with a lease"), "{change}: {answer}");
    }
    let get = r#"{"op":"get","key":"door/1"}"#;
    assert!(ask(&bench, "", get).contains("\"held\""));
    bench
        .run(&format!("lease revoke {lease} {flags}"))
        .expect_exit(0);
    let put = r#"{"op":"put","key":"door/1","value":"free"}"#;
    assert!(ask(&bench, "", put).contains("\"applied\":true"));
}

/// A broker may take less than a value has. Its key is not mirrored; the others are, and it is said.
#[test]
fn a_value_too_large_for_the_broker_does_not_hold_up_the_mirror() {
    require_mosquitto!();
    if !tools_or_skip() {
        return;
    }
    let broker = Mosquitto::builder().line("max_packet_size 20000").start();
    let mut bench = Bench::of(broker);
    let flags = format!("{} --cluster plant-a", bench.insecure());
    let lone = bench.lone_node_without_flags("gw-1");
    // The value comes from where nobody sends it in a packet: the node wrote it with another broker.
    let port = {
        let wide = Bench::start();
        let wide_flags = format!("{} --cluster plant-a", wide.insecure());
        let mut node = bench.process(&format!("{lone} {wide_flags}"));
        assert!(node.await_log("leads term"), "{}", node.log());
        let value = "x".repeat(30_000);
        wide.run(&format!("put door/1 {value} {wide_flags}"))
            .expect_exit(0);
        wide.run(&format!("put door/2 open {wide_flags}"))
            .expect_exit(0);
        node.kill();
        bench.broker().port()
    };
    let node = bench.process(&format!("{lone} {flags} {FLAGS}"));
    assert!(node.await_log("door/1 is not mirrored"), "{}", node.log());
    let mirrored = || {
        let words = format!(
            "mosquitto_sub -p {port} -t 'raft/plant-a/kv/#' --retained-only -W 1 -F %t 2>/dev/null"
        );
        output(&words) == "raft/plant-a/kv/door/2\n"
    };
    assert!(wait_for(PATIENCE, mirrored));
}
