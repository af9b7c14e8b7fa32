//! `mqraft bench` as its users meet it: on a real Mosquitto and on the broker it brings along.

#![cfg(feature = "demo")]

mod bench;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use raft_over_mqtt::{Mqtt, Probe};
use rustix::process::Signal;
use serde_json::Value;
use testkit::{Certificates, Mosquitto, require_mosquitto, wait_for};

use bench::{Answer, Bench, PATIENCE, Process};

/// Each measure short, with the rows of its floor and its own: those are in docs/bench.md.
const MEASURES: [(&str, &[&str], &[&str]); 5] = [
    (
        "latency --puts 40",
        &["sync", "round_trip", "commit", "asked_commit"],
        &["leader", "follower", "client"],
    ),
    (
        "throughput --clients 8 --seconds 1 --size 64",
        &["publishes", "batches"],
        &["leader", "client"],
    ),
    (
        "failover --kills 2 --transfers 2 --election-timeout 500ms",
        &["round_trip", "will"],
        &["first_commit", "exclusive", "transfer", "transfer_gap"],
    ),
    (
        "fanout --watchers 4 --puts 10",
        &["fanout"],
        &["put", "last_watcher", "publishes_per_put", "bytes_per_put"],
    ),
    (
        "presence --observers 5 --kills 2",
        &["sessions", "session", "will"],
        &["all_agreed", "arrival", "departure"],
    ),
];

/// On a broker that others use: every row is there, and what the broker retains afterwards is theirs.
#[test]
fn every_measure_answers_and_leaves_a_shared_broker_as_it_was() {
    require_mosquitto!();
    let bench = Bench::start();
    let _live = bench.process(&bench.lone_node("gw-1"));
    let put = format!("put door open {}", bench.insecure());
    bench.run(&put).expect_exit(0);
    let before = retained(&bench.url());
    assert!(before.iter().any(|topic| topic == "raft/default/leader"));
    for (measure, floor, ours) in MEASURES {
        let words = format!("bench {measure} --broker {} -o json", bench.url());
        let answer = run(&bench, &words).expect_exit(0).json();
        assert_eq!(answer["complete"], true, "{answer}");
        assert_eq!(answer["broker_is"], "given");
        assert_eq!(answer["voters"], 3);
        rows(&answer["floor"], floor);
        rows(&answer["ours"], ours);
        assert_eq!(retained(&bench.url()), before, "{measure}");
    }
    let get = format!("get door {}", bench.insecure());
    assert_eq!(bench.run(&get).expect_exit(0).stdout, "open");
}

/// Without a broker it brings one along, and prints floor and cluster in one table.
#[test]
fn without_a_broker_it_brings_one_along() {
    let bench = Bench::without_broker();
    for (measure, floor, ours) in MEASURES {
        let text = run(&bench, &format!("bench {measure}"))
            .expect_exit(0)
            .stdout;
        let floors = text.lines().filter(|line| line.starts_with("floor: "));
        assert_eq!(floors.count(), floor.len(), "{text}");
        let table = text.rsplit_once("\n\n").expect("steps, then a table").1;
        let ours = 1 + floor.len() + ours.len();
        assert_eq!(table.lines().count(), ours, "{text}");
    }
}

/// Ctrl-C: what was found out so far is told, no process and no directory is left, and the broker
/// retains nothing; so it is whatever was going on.
#[test]
fn an_interrupted_bench_leaves_nothing_behind() {
    require_mosquitto!();
    let bench = Bench::start();
    for (measure, step) in [
        ("failover --kills 1000", "kill 2 of"),
        ("latency --puts 4000", "round 6 of"),
        ("fanout --watchers 5 --puts 2000", "2000 puts"),
        ("presence --observers 5 --kills 1000", "kill 2 of"),
    ] {
        let mut command = bench.command(&format!("bench {measure} --broker {}", bench.url()));
        let temp = temp(&bench);
        command.env("TMPDIR", &temp);
        let mut process = Process::start(command, &bench);
        let shown = || process.stdout().contains(step);
        assert!(wait_for(PATIENCE, shown), "{measure}: {}", process.log());
        process.signal(Signal::INT);
        assert_eq!(process.exit_code(), Some(0), "{}", process.log());
        let shown = process.stdout();
        assert!(
            shown.contains("floor: ") && shown.contains("interrupted"),
            "{shown}"
        );
        assert_eq!(retained(&bench.url()), [""; 0], "{measure}");
        assert_eq!(fs::read_dir(&temp).unwrap().count(), 0, "{measure}");
    }
}

/// Several brokers are used at once, and all of them are tidied up.
#[test]
fn several_brokers_are_measured_together() {
    require_mosquitto!();
    let (bench, other) = (Bench::start(), Mosquitto::start());
    let urls = [bench.url(), other.url()];
    let flags = urls
        .each_ref()
        .map(|url| format!("--broker {url}"))
        .join(" ");
    let words = format!("bench latency --puts 20 {flags} -o json");
    let answer = run(&bench, &words).expect_exit(0).json();
    assert_eq!(answer["broker"], urls.join(", "));
    rows(&answer["ours"], MEASURES[0].2);
    for url in urls {
        assert_eq!(retained(&url), [""; 0]);
    }
}

/// A broker that lets in only who has a password, and lets write only below one prefix.
#[test]
fn a_broker_with_passwords_and_an_acl_will_do() {
    require_mosquitto!();
    let broker = Mosquitto::builder()
        .user("ann", "a secret")
        .acl("user ann\ntopic readwrite plant/bench/#\n")
        .start();
    let bench = Bench::of(broker);
    let password = bench.path("password");
    fs::write(&password, "a secret\n").unwrap();
    let words = format!(
        "bench latency --puts 20 --prefix plant/bench --username ann --password-file {} \
         --broker {} -o json",
        password.display(),
        bench.url()
    );
    let answer = run(&bench, &words).expect_exit(0).json();
    rows(&answer["ours"], MEASURES[0].2);
}

/// The nodes and observers are let in as the bench is: here by certificates, named in the environment.
#[test]
fn a_broker_that_asks_for_certificates_will_do() {
    require_mosquitto!();
    let dir = testkit::temp_dir();
    let certificates = Certificates::generate(dir.path());
    let bench = Bench::of(Mosquitto::builder().mutual_tls(&certificates).start());
    let url = bench.broker.as_ref().expect("a broker").tls_url();
    let client = certificates.client("bench");
    for at in [0, 4] {
        let (measure, _, ours) = MEASURES[at];
        let temp = temp(&bench);
        let mut command = bench.command(&format!("bench {measure} -o json"));
        command
            .env("TMPDIR", &temp)
            .env("MQRAFT_BROKER", &url)
            .env("MQRAFT_CA", &certificates.ca)
            .env("MQRAFT_CERT", &client.certificate)
            .env("MQRAFT_KEY", &client.key);
        let answer = Answer::of(command, &bench).expect_exit(0).json();
        rows(&answer["ours"], ours);
    }
    assert_eq!(retained(&bench.url()), [""; 0]);
}

/// What cannot work ends with the exit code of its kind, and without an answer.
#[test]
fn a_bench_that_cannot_work_says_why() {
    let bench = Bench::without_broker();
    let nobody = "--broker mqtt://127.0.0.1:1 --timeout 500ms";
    for (words, code, why) in [
        (format!("bench latency {nobody}"), 3, "127.0.0.1:1"),
        (format!("bench presence {nobody}"), 3, "127.0.0.1:1"),
        ("bench failover --voters 1".to_owned(), 2, "--voters 3"),
        ("bench latency --voters 2".to_owned(), 2, "1, 3, 5, 7 or 9"),
        ("bench latency --broker nonsense".to_owned(), 2, "mqtt://"),
        (
            "bench latency --dir /nowhere/at/all".to_owned(),
            6,
            "directory",
        ),
    ] {
        let answer = run(&bench, &words).expect_exit(code);
        assert!(answer.stderr.contains(why), "{words}: {answer:?}");
    }
}

/// docs/bench.md says of each measure which rows it has.
#[test]
fn the_documented_rows_are_the_programs() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/bench.md");
    let docs = fs::read_to_string(docs).unwrap();
    for (measure, floor, ours) in MEASURES {
        let name = measure.split(' ').next().unwrap();
        let section = docs.split_once(&format!("## `{name}`")).expect(name).1;
        let section = section.split("\n## ").next().unwrap();
        let row = |line: &str| line.starts_with("| floor `") || line.starts_with("| `");
        let rows: Vec<&str> = section.lines().filter(|line| row(line)).collect();
        let documented = |key: &str, is_floor: bool| {
            let named = |row: &&&str| row.starts_with("| floor") == is_floor;
            let mut rows = rows.iter().filter(named);
            rows.any(|row| row.contains(&format!("`{key}`")))
        };
        assert!(floor.iter().all(|key| documented(key, true)), "{name}");
        assert!(ours.iter().all(|key| documented(key, false)), "{name}");
        let numbers = ours.iter().filter(|key| key.ends_with("per_put")).count();
        // Two numbers share a row.
        assert_eq!(rows.len(), floor.len() + ours.len() - numbers / 2, "{name}");
    }
}

/// Runs it with a directory for what is temporary, which is empty again afterwards.
fn run(bench: &Bench, words: &str) -> Answer {
    let temp = temp(bench);
    let mut command = bench.command(words);
    command.env("TMPDIR", &temp);
    let answer = Answer::of(command, bench);
    assert_eq!(fs::read_dir(&temp).unwrap().count(), 0, "{words}");
    answer
}

fn temp(bench: &Bench) -> PathBuf {
    let temp = bench.path("temp");
    fs::create_dir_all(&temp).unwrap();
    temp
}

/// Each of these is there and no other, with percentiles that grow or a number above zero.
#[track_caller]
fn rows(part: &Value, keys: &[&str]) {
    let mut expected = keys.to_vec();
    expected.sort_unstable();
    let found: Vec<&str> = part
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(found, expected);
    for key in keys {
        let row = &part[*key];
        let Some(fields) = row.as_object() else {
            assert!(row.as_f64().unwrap() > 0.0, "{key}: {row}");
            continue;
        };
        if let Some(rate) = fields.get("per_second") {
            assert!(rate.as_f64().unwrap() > 0.0, "{key}: {row}");
        }
        if fields.contains_key("count") {
            assert!(row["count"].as_u64().unwrap() > 0, "{key}: {row}");
            let names = ["p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms"];
            let times = names.map(|name| row[name].as_f64().unwrap());
            assert!(times.is_sorted() && times[4] > 0.0, "{key}: {row}");
        }
    }
}

/// The topics that the broker retains something on.
fn retained(url: &str) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mqtt = Mqtt::new(url).unwrap();
        let mut probe = Probe::connect(mqtt, &["#".to_owned()], PATIENCE)
            .await
            .unwrap();
        let mut topics = Vec::new();
        // What is retained comes first; a live cluster is never quiet.
        let end = tokio::time::Instant::now() + Duration::from_millis(500);
        while let Ok(message) = tokio::time::timeout_at(end, probe.next()).await {
            topics.push(message.unwrap().topic);
        }
        probe.close().await;
        topics.sort();
        topics.dedup();
        topics.retain(|topic| !topic.contains("/rpc/"));
        topics
    })
}
