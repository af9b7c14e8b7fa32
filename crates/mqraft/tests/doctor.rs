//! `mqraft doctor` against real brokers: each fault that was planted is found, and nothing else.

mod bench;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use raft_over_mqtt::doctor::{
    Access, Doctor, Finding, Outcome, Purpose, Report, Right, Rights, Severity,
};
use raft_over_mqtt::{DisconnectReason, KeyRing, Mqtt, Version};
use serde_json::Value;
use testkit::{Certificates, Mosquitto, SlowPath, require_mosquitto, wait_for};

use bench::{Answer, Bench, PATIENCE, Process};

fn doctor(mqtt: Mqtt) -> Doctor {
    Doctor::new(mqtt, "raft", "default", "gw-1", KeyRing::insecure())
}

fn examine(doctor: Doctor) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let report = runtime.expect("a runtime").block_on(doctor.examine());
    report.expect("settings that can work")
}

fn at(url: &str) -> Mqtt {
    Mqtt::new(url).expect("a URL")
}

/// The findings that are worse than advice.
fn troubles(report: &Report) -> Vec<&Finding> {
    let all = report.findings.iter();
    all.filter(|finding| finding.severity() > Severity::Advice)
        .collect()
}

/// What is retained on a broker, by somebody who may read everything.
fn retained(url: &str, login: Option<(&str, &str)>) -> Vec<(String, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut options = mqtt_options(url);
        if let Some((name, password)) = login {
            options.credentials = Some(mqtt::Credentials::new(name, password));
        }
        let marker = "test/marker";
        let (publisher, mut events) = mqtt::connect(options, |_| mqtt::SessionSetup {
            client_id: "reader".to_owned(),
            will: None,
            subscriptions: vec![("#".to_owned(), mqtt::Qos::AtLeastOnce)],
        })
        .expect("options that work");
        let mut found = Vec::new();
        while let Some(event) = events.next().await {
            match event {
                mqtt::Event::Connected { .. } => publisher
                    .publish(marker, "".into(), mqtt::Qos::AtLeastOnce, false)
                    .expect("a session"),
                mqtt::Event::Message(message) if message.topic == marker => break,
                mqtt::Event::Message(message) if message.retained => {
                    let payload = String::from_utf8_lossy(&message.payload);
                    found.push((message.topic, payload.into_owned()));
                }
                mqtt::Event::Disconnected { reason, .. } => panic!("{reason}"),
                _ => {}
            }
        }
        publisher.disconnect().await;
        found.sort();
        found
    })
}

fn mqtt_options(url: &str) -> mqtt::Options {
    mqtt::Options::new(url.parse().expect("a URL"))
}

// A broker as it should be.

/// Nothing to find, nothing left behind, and each check was made.
#[test]
fn a_good_broker_is_fit() {
    require_mosquitto!();
    let broker = Mosquitto::builder().nodelay(true).start();
    let bench = Bench::of(broker);
    let words = format!(
        "doctor --id gw-1 --voters gw-1,gw-2,gw-3 --requests --mirror door/ --election-timeout 60s {}",
        bench.insecure()
    );
    let text = bench.run(&words).expect_exit(0).stdout;
    assert!(text.contains("\nfit for a node"), "{text}");
    let json = bench.run(&format!("{words} -o json")).expect_exit(0).json();
    let report = &json["brokers"][0];
    let checks: Vec<&str> = findings(report)
        .map(|f| f["check"].as_str().unwrap())
        .collect();
    for check in [
        "connect",
        "topic",
        "will",
        "retain",
        "round-trip",
        "nagle",
        "burst",
        "payload",
        "timeouts",
    ] {
        assert!(checks.contains(&check), "{check}: {json}");
    }
    let topics: Vec<&str> = findings(report)
        .filter_map(|f| f["topic"].as_str())
        .collect();
    let expected = [
        "rpc/gw-1/gw-1",
        "rpc/all/gw-1",
        "roll/gw-1/gw-1",
        "nodes/gw-1/status",
        "leader",
        "rpc/gw-2/gw-1",
        "rpc/gw-3/gw-1",
        "req/gw-1",
        "req/gw-1/answer",
        "kv/_doctor/gw-1",
        "roll/all/gw-1",
    ];
    assert_eq!(
        topics,
        expected.map(|topic| format!("raft/default/{topic}"))
    );
    assert!(findings(report).all(|f| f["outcome"].is_null() || f["outcome"] == "works"));
    assert_eq!(retained(&bench.url(), None), []);
}

fn findings(report: &Value) -> impl Iterator<Item = &Value> {
    report["findings"].as_array().expect("findings").iter()
}

/// What stood there before stands there afterwards.
#[test]
fn a_status_of_before_is_put_back() {
    require_mosquitto!();
    let bench = Bench::start();
    let mut node = bench.process(&bench.lone_node("gw-1"));
    bench.await_leader();
    node.kill();
    let offline = || {
        let kept = retained(&bench.url(), None);
        kept.iter().any(|(_, status)| status.contains("offline"))
    };
    assert!(wait_for(PATIENCE, offline));
    let before = retained(&bench.url(), None);
    assert_eq!(before.len(), 2, "a will, and who led");
    let report = examine(doctor(at(&bench.url())));
    let kept = |finding: &Finding| {
        matches!(
            finding,
            Finding::Retain {
                kept: true,
                cleared: Some(true)
            }
        )
    };
    assert!(report.findings.iter().any(kept), "{report:?}");
    assert_eq!(retained(&bench.url(), None), before);
}

fn contains(bytes: &[u8], word: &str) -> bool {
    String::from_utf8_lossy(bytes).contains(word)
}

/// Both versions of MQTT, TLS, certificates and WebSockets.
#[test]
fn every_way_to_a_broker_can_be_checked() {
    require_mosquitto!();
    let dir = testkit::temp_dir();
    let certificates = Certificates::generate(dir.path());
    let broker = Mosquitto::builder()
        .nodelay(true)
        .mutual_tls(&certificates)
        .websockets()
        .start();
    let client = certificates.client("gw-1");
    let tls =
        at(&broker.tls_url()).load_certificates(&certificates.ca, client.certificate, client.key);
    let old = at(&broker.url()).version(Version::V311);
    for mqtt in [tls, old, at(&broker.ws_url())] {
        let url = mqtt.url();
        let wait = Duration::from_secs(60);
        let report = examine(doctor(mqtt).timing(wait, None).timeout(wait));
        let faults = |finding: &&Finding| finding.severity() == Severity::Fault;
        let faults: Vec<&Finding> = report.findings.iter().filter(faults).collect();
        assert!(faults.is_empty(), "{url}: {faults:?}");
        let large = |finding: &Finding| matches!(finding, Finding::Payload { largest, needed, .. } if largest == needed);
        assert!(report.findings.iter().any(large), "{url}: {report:?}");
    }
    assert_eq!(retained(&broker.url(), None), []);
}

// Beside a running cluster.

/// Nodes say nothing of it and go on as before: under a free name, and under that of a running node,
/// with a cluster key and without.
#[test]
fn a_running_cluster_does_not_notice() {
    require_mosquitto!();
    let bench = Bench::start();
    does_not_notice(&bench, &bench.insecure());
    let bench = Bench::start();
    let key = bench.path("key").display().to_string();
    bench.run(&format!("keygen {key}")).expect_exit(0);
    does_not_notice(
        &bench,
        &format!("--key-file {key} --broker {}", bench.url()),
    );
}

fn does_not_notice(bench: &Bench, connection: &str) {
    let flags = format!("{connection} --requests --mirror door/");
    let nodes = bench.cluster(&flags);
    let leads = |node: &&Process| node.log().contains("leads term");
    assert!(wait_for(PATIENCE, || nodes.iter().any(|node| leads(&node))));
    bench
        .run(&format!("put door/1 open {connection}"))
        .expect_exit(0);
    let settled = || retained(&bench.url(), None).len() == 5;
    assert!(wait_for(PATIENCE, settled), "three births, a leader, a key");
    let (before, logs) = (lasting(bench), logs(&nodes));
    let leader = nodes.iter().find(leads).expect("a leader");
    let leader = ["gw-1", "gw-2", "gw-3"]
        .into_iter()
        .find(|id| leader.is_called(id));
    for id in ["gw-9", leader.expect("its name"), "gw-2"] {
        let words = format!("doctor --id {id} {flags} --voters gw-1,gw-2,gw-3");
        let text = bench.run(&words).stdout;
        assert!(!text.contains("FAULT"), "{text}");
        let taken = text.contains(&format!("a process called {id} runs already"));
        assert_eq!(taken, id != "gw-9", "{text}");
        for other in ["gw-1", "gw-2", "gw-3"] {
            assert!(other == id || text.contains(other), "{text}");
        }
    }
    assert_eq!(self::logs(&nodes), logs, "nobody remarks on it");
    assert_eq!(lasting(bench), before);
}

/// What is retained; of statuses whose they are, since roles and terms are told a moment later.
fn lasting(bench: &Bench) -> Vec<(String, String)> {
    let whose = |(topic, payload): (String, String)| match topic.ends_with("/status") {
        true => {
            let status: Value = serde_json::from_str(&payload).expect("JSON");
            let words = ["state", "key", "incarnation", "session"].map(|field| &status[field]);
            (topic, format!("{words:?}"))
        }
        false => (topic, payload),
    };
    retained(&bench.url(), None)
        .into_iter()
        .map(whose)
        .collect()
}

fn logs(nodes: &[Process]) -> Vec<String> {
    nodes.iter().map(Process::log).collect()
}

// Faults, one at a time.

/// Without any one line of the access list, that topic is named, and no other.
#[test]
fn each_missing_right_is_named() {
    require_mosquitto!();
    let rights = Rights::new("raft", "default").unwrap();
    let rights = rights.requests(true).mirror(true);
    let rights = rights.node("gw-1").unwrap();
    let refused = || Outcome::PublishRefused(String::new());
    let expected = |right: &Right| -> Vec<(Purpose, Outcome)> {
        let Right { access, filter } = right;
        let short = filter.strip_prefix("raft/default/").unwrap();
        match (access, short) {
            (Access::Read, "rpc/all/+") => vec![(Purpose::Broadcast, Outcome::NotReadable)],
            (Access::Read, "rpc/gw-1/+") => vec![(Purpose::Own, Outcome::NotReadable)],
            (Access::Write, "rpc/+/gw-1") => vec![
                (Purpose::Own, refused()),
                (Purpose::Broadcast, refused()),
                (Purpose::Peer, refused()),
            ],
            (Access::Read, "roll/all/+") => vec![(Purpose::Roll, Outcome::NotReadable)],
            (Access::Read, "roll/gw-1/+") => vec![(Purpose::OwnRoll, Outcome::NotReadable)],
            (Access::Write, "roll/+/gw-1") => {
                vec![(Purpose::OwnRoll, refused()), (Purpose::Roll, refused())]
            }
            (Access::Read, "nodes/+/status") => vec![(Purpose::Status, Outcome::NotReadable)],
            (Access::Write, "nodes/gw-1/status") => vec![(Purpose::Status, refused())],
            (Access::ReadWrite, "leader") => vec![(Purpose::Leader, refused())],
            (Access::Read, "req/+") => vec![(Purpose::Requests, Outcome::NotReadable)],
            // Whether requests can be read is told by one's own.
            (Access::Write, "req/+/#") => {
                vec![
                    (Purpose::Requests, Outcome::NotTold),
                    (Purpose::Answers, refused()),
                ]
            }
            (Access::ReadWrite, "kv/#") => vec![(Purpose::Mirror, refused())],
            other => panic!("a right without a test: {other:?}"),
        }
    };
    for missing in &rights {
        let others = rights.iter().filter(|right| *right != missing);
        let broker = Mosquitto::builder()
            .nodelay(true)
            .user("gw-1", "p")
            .user("admin", "p")
            .acl(&format!(
                "user admin\ntopic readwrite #\n{}",
                acl("gw-1", others)
            ))
            .start();
        let mqtt = at(&broker.url()).credentials("gw-1", "p");
        let wait = Duration::from_secs(60);
        let doctor = doctor(mqtt)
            .requests(true)
            .mirror(true)
            .voters(["gw-1", "gw-2"]);
        let report = examine(doctor.timing(wait, None));
        let mut found: Vec<(Purpose, Outcome)> = Vec::new();
        for finding in &report.findings {
            match finding {
                Finding::Topic {
                    outcome: Outcome::Works,
                    ..
                } => {}
                Finding::Topic {
                    purpose,
                    outcome: Outcome::PublishRefused(_),
                    ..
                } => {
                    found.push((*purpose, refused()));
                }
                Finding::Topic {
                    purpose, outcome, ..
                } => found.push((*purpose, outcome.clone())),
                other => assert_ne!(other.severity(), Severity::Fault, "{missing:?}: {other:?}"),
            }
        }
        assert_eq!(found, expected(missing), "{missing:?}: {report:?}");
        assert_eq!(
            retained(&broker.url(), Some(("admin", "p"))),
            [],
            "{missing:?}"
        );
    }
}

fn acl<'a>(user: &str, rights: impl Iterator<Item = &'a Right>) -> String {
    let line = |right: &Right| {
        let access = match right.access {
            Access::Read => "read",
            Access::Write => "write",
            Access::ReadWrite => "readwrite",
        };
        format!("topic {access} {}\n", right.filter)
    };
    let lines: String = rights.map(line).collect();
    format!("user {user}\n{lines}")
}

/// MQTT 3.1.1 does not say what it drops: both rights are named.
#[test]
fn without_mqtt_5_a_loss_is_seen_by_what_does_not_come_back() {
    require_mosquitto!();
    let broker = Mosquitto::builder()
        .nodelay(true)
        .user("gw-1", "p")
        .acl("user gw-1\ntopic readwrite raft/default/rpc/#\ntopic readwrite raft/default/roll/#\ntopic read raft/default/nodes/+/status\n")
        .start();
    let mqtt = at(&broker.url())
        .credentials("gw-1", "p")
        .version(Version::V311);
    let report = examine(doctor(mqtt));
    let status = |finding: &Finding| {
        matches!(
            finding,
            Finding::Topic {
                purpose: Purpose::Status,
                outcome: Outcome::Lost,
                ..
            }
        )
    };
    assert!(report.findings.iter().any(status), "{report:?}");
    let leader = |finding: &Finding| {
        matches!(
            finding,
            Finding::Topic {
                purpose: Purpose::Leader,
                outcome: Outcome::NotTold,
                ..
            }
        )
    };
    assert!(report.findings.iter().any(leader), "{report:?}");
}

/// A broker's own limits, each found and named.
#[test]
fn each_limit_of_a_broker_is_found() {
    require_mosquitto!();
    type IsIt = fn(&Finding) -> bool;
    let limited: IsIt = |finding| matches!(finding, Finding::Payload { largest, .. } if (46_000..=50_000).contains(largest));
    let no_will: IsIt = |finding| matches!(finding, Finding::WillRefused(_));
    let table: [(&str, &[IsIt]); 5] = [
        (
            "retain_available false",
            &[
                |finding| matches!(finding, Finding::Retain { kept: false, .. }),
                no_will,
            ],
        ),
        ("max_qos 0", &[no_will]),
        ("message_size_limit 50000", &[limited]),
        ("max_packet_size 50000", &[limited]),
        ("set_tcp_nodelay false", &[Finding::is_slowed_by_nagle]),
    ];
    for (line, planted) in table {
        let broker = Mosquitto::builder().nodelay(true).line(line).start();
        let wait = Duration::from_secs(60);
        let report = examine(doctor(at(&broker.url())).timing(wait, None));
        for is_it in planted {
            let found = report.findings.iter().any(is_it);
            assert!(found, "{line}: {report:?}");
        }
        let others = troubles(&report).into_iter();
        let others: Vec<&Finding> = others
            .filter(|finding| !planted.iter().any(|is_it| is_it(finding)))
            .collect();
        assert!(others.is_empty(), "{line}: {others:?}");
    }
}

/// What is lost of a burst is counted.
#[test]
fn a_burst_beyond_a_brokers_queue_is_seen() {
    require_mosquitto!();
    let broker = Mosquitto::builder().nodelay(true).start();
    let path = SlowPath::dropping_bursts(broker.port(), 100);
    let wait = Duration::from_secs(60);
    let report = examine(doctor(at(&path.url())).timing(wait, None).timeout(wait));
    let lost = |finding: &Finding| matches!(finding, Finding::Burst { sent, arrived, .. } if arrived < sent);
    assert!(report.findings.iter().any(lost), "{report:?}");
    assert!(report.severity() <= Severity::Warning, "{report:?}");
}

/// A broker too far away for the configured timeouts: said, with what to say instead; and with that it
/// is fit.
#[test]
fn a_slow_broker_asks_for_longer_timeouts() {
    require_mosquitto!();
    let broker = Mosquitto::builder().nodelay(true).start();
    let path = SlowPath::to(broker.port(), Duration::from_millis(60));
    let bench = Bench::of(broker);
    let ask = |timeout: &str| {
        let url = path.url();
        bench.run(&format!(
            "doctor --id gw-1 --insecure --broker {url} --timeout 60s --election-timeout {timeout} -o json"
        ))
    };
    let timeouts = |answer: &Answer| {
        let json = answer.json();
        let timeouts = findings(&json["brokers"][0])
            .find(|f| f["check"] == "timeouts")
            .cloned();
        timeouts.expect("a word on timeouts")
    };
    let short = ask("300ms").expect_exit(1);
    let said = timeouts(&short);
    assert_eq!(said["severity"], "fault", "{said}");
    assert!(said["round_trip_ms"].as_f64() >= Some(120.0), "{said}");
    let advised = said["recommended_ms"].as_f64().expect("a number");
    assert!(advised >= 1_200.0, "{said}");
    let remedy = said["remedy"].as_str().expect("a remedy");
    assert!(
        remedy.contains(&format!("--election-timeout {advised}ms")),
        "{said}"
    );
    let enough = ask(&format!("{advised}ms")).expect_exit(0);
    // Comfortable, unless the machine was slower this time.
    assert_ne!(timeouts(&enough)["severity"], "fault");
}

/// The clock of the keep alive: how late the broker tells of a client that says nothing more.
#[test]
fn a_silent_clients_will_is_waited_for_if_asked() {
    require_mosquitto!();
    let broker = Mosquitto::builder().nodelay(true).start();
    let mqtt = at(&broker.url()).keep_alive(Duration::from_secs(1));
    let wait = Duration::from_secs(60);
    let report = examine(doctor(mqtt).thorough(true).timeout(wait));
    let after = report.findings.iter().find_map(|finding| match finding {
        Finding::SilentWill { after, .. } => Some(*after),
        _ => None,
    });
    let after = after.expect("it was looked at").expect("it came");
    assert!(
        after >= Duration::from_secs(1) && after < Duration::from_secs(12),
        "{after:?}"
    );
}

/// Whoever is not let in is told why, in the exit code's number; and a broker that hangs is not waited
/// for beyond the time that was given.
#[test]
fn who_is_not_let_in_is_told_why() {
    require_mosquitto!();
    let broker = Mosquitto::builder().user("gw-1", "right").start();
    let url = broker.url();
    let bench = Bench::of(broker);
    fs::write(bench.path("password"), "wrong").unwrap();
    let password = bench.path("password").display().to_string();
    let login = format!("--username gw-1 --password-file {password}");
    let words = format!("doctor --id gw-1 --insecure --broker {url}");
    let refused = bench.run(&format!("{words} {login}")).expect_exit(3);
    assert!(refused.stdout.contains("FAULT"), "{refused:?}");
    let said = |word| refused.stdout.contains(word);
    assert!(said("password") || said("authorised"), "{refused:?}");
    let port = testkit::free_port();
    let absent = format!("doctor --id gw-1 --insecure --broker mqtt://127.0.0.1:{port}");
    let absent = bench.run(&absent).expect_exit(3);
    assert!(absent.stdout.contains("cannot reach"), "{absent:?}");
    bench.broker.as_ref().unwrap().stop_signal();
    let since = Instant::now();
    let hung = bench.run(&format!("{words} --timeout 1s")).expect_exit(3);
    assert!(
        since.elapsed() < Duration::from_secs(5),
        "{:?}",
        since.elapsed()
    );
    assert!(hung.stdout.contains("did not answer"), "{hung:?}");
    bench.broker.as_ref().unwrap().cont();
    let nameless = bench
        .run(&format!("doctor --insecure --broker {url}"))
        .expect_exit(2);
    assert!(nameless.stderr.contains("--id"), "{nameless:?}");
    let brokerless = bench.run("doctor --insecure --id gw-1").expect_exit(2);
    assert!(brokerless.stderr.contains("--broker"), "{brokerless:?}");
}

/// Each broker is checked for itself; one that is not there makes the whole unfit, and is named.
#[test]
fn several_brokers_are_checked_one_after_the_other() {
    require_mosquitto!();
    let broker = Mosquitto::builder().nodelay(true).start();
    let bench = Bench::of(broker);
    let port = testkit::free_port();
    let words = format!(
        "doctor --id gw-1 --broker mqtt://127.0.0.1:{port} --election-timeout 60s -o json {}",
        bench.insecure()
    );
    let json = bench.run(&words).expect_exit(1).json();
    let severities: Vec<&Value> = json["brokers"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|broker| &broker["severity"])
        .collect();
    assert_eq!(severities, ["fault", "ok"]);
}

/// The examination ends when its time is over, says what it left out, and leaves nothing behind.
#[test]
fn it_ends_in_time() {
    require_mosquitto!();
    let broker = Mosquitto::builder().nodelay(true).start();
    let path = SlowPath::to(broker.port(), Duration::from_millis(100));
    let given = Duration::from_millis(2_500);
    let since = Instant::now();
    let report = examine(doctor(at(&path.url())).timeout(given));
    let took = since.elapsed();
    // Its connections may still be on their way out.
    assert!(took < given + Duration::from_secs(3), "{took:?}");
    let left_out = |finding: &Finding| matches!(finding, Finding::NoTime(_));
    assert!(report.findings.iter().any(left_out), "{report:?}");
    assert!(!report.is_complete());
    let clean = || retained(&broker.url(), None).is_empty();
    assert!(wait_for(PATIENCE, clean));
}

/// Whoever has had enough is not left with a false status, at whatever moment that is.
#[test]
fn an_interrupted_examination_leaves_nothing_behind() {
    require_mosquitto!();
    let broker = Mosquitto::builder().nodelay(true).start();
    let path = SlowPath::to(broker.port(), Duration::from_millis(40));
    let mut bench = Bench::of(broker);
    let status = "raft/default/nodes/gw-1/status";
    for nth in 1..=3 {
        let url = path.url();
        let words = format!("doctor --id gw-1 --insecure --broker {url} --broker {url}");
        let mut process = bench.process(&words);
        // The first status, then the will, then the one to retain.
        let published = format!("'{status}'");
        let received = |line: &&str| line.contains("Received PUBLISH") && line.contains(&published);
        let log = || bench.broker.as_ref().unwrap().log();
        assert!(wait_for(PATIENCE, || log()
            .lines()
            .filter(received)
            .count()
            >= nth));
        process.signal(rustix::process::Signal::INT);
        assert_eq!(process.exit_code(), Some(4), "{}", process.log());
        assert!(
            process.stdout().contains("interrupted"),
            "{}",
            process.stdout()
        );
        let clean = || retained(&bench.url(), None).is_empty();
        assert!(
            wait_for(PATIENCE, clean),
            "{:?}",
            retained(&bench.url(), None)
        );
        bench.broker().restart();
    }
}

/// Frames go at QoS 0: where such are lost and others are not, that is what is said.
#[test]
fn a_broker_without_qos_0_is_found() {
    require_mosquitto!();
    let broker = Mosquitto::builder().nodelay(true).start();
    let path = SlowPath::dropping_qos_0(broker.port());
    let report = examine(doctor(at(&path.url())));
    let none = |finding: &Finding| matches!(finding, Finding::RoundTrip(trip) if trip.samples == 0 && trip.lost > 0);
    assert!(report.findings.iter().any(none), "{report:?}");
    assert_eq!(report.severity(), Severity::Fault);
}

/// A broker that goes away meanwhile is a finding, not a hang.
#[test]
fn a_broker_that_ends_is_a_finding() {
    require_mosquitto!();
    let mut broker = Mosquitto::builder().nodelay(true).start();
    let path = SlowPath::to(broker.port(), Duration::from_millis(50));
    let url = path.url();
    let examined = std::thread::spawn(move || examine(doctor(at(&url))));
    assert!(wait_for(PATIENCE, || broker
        .log()
        .contains("rpc/gw-1/gw-1")));
    broker.kill();
    let report = examined.join().expect("a report");
    let lost = |finding: &Finding| matches!(finding, Finding::NotConnected(reason) if !matches!(reason, DisconnectReason::NotAuthorised));
    assert!(report.findings.iter().any(lost), "{report:?}");
}

// The configuration that it prints.

const USERS: [&str; 7] = ["gw-1", "gw-2", "gw-3", "gw-4", "ops", "screen", "panel"];

const PRINT: &str = "--voters gw-1,gw-2,gw-3 --observer gw-4 --client ops --reader screen --asker panel \
                     --requests --request-write door/ --mirror door/";

/// A broker with the configuration that `mqraft doctor --print-acl mosquitto` writes, by passwords.
fn broker_as_printed(words: &str) -> Bench {
    let mut bench = Bench::without_broker();
    let (dir, port) = (bench.path("broker"), testkit::free_port());
    let print = format!(
        "doctor --print-acl mosquitto --dir {} --broker mqtt://127.0.0.1:{port} {words}",
        dir.display()
    );
    let written = bench.run(&print).expect_exit(0).stdout;
    assert!(
        written.contains("mqraft.acl") && written.contains("mosquitto.conf"),
        "{written}"
    );
    let passwords = dir.join("mqraft.passwords");
    fs::write(&passwords, "").unwrap();
    for user in USERS {
        let status = Command::new("mosquitto_passwd")
            .arg("-b")
            .arg(&passwords)
            .args([user, &password_of(user)])
            .status();
        assert!(status.expect("mosquitto_passwd").success());
        fs::write(bench.path(&format!("{user}.password")), password_of(user)).unwrap();
    }
    bench.broker = Some(start_as_printed(&dir, port));
    bench
}

/// Started by root, a broker would become a user who cannot read the test's directory.
fn start_as_printed(dir: &Path, port: u16) -> Mosquitto {
    let configuration = fs::read_to_string(dir.join("mosquitto.conf")).unwrap();
    let with_log = format!("{configuration}user root\nlog_type all\nlog_dest stderr\n");
    Mosquitto::with_configuration(port, &with_log)
}

fn password_of(user: &str) -> String {
    format!("of {user}")
}

fn login(bench: &Bench, user: &str) -> String {
    let file = bench.path(&format!("{user}.password"));
    format!(
        "--username {user} --password-file {} {}",
        file.display(),
        bench.insecure()
    )
}

/// As `user`: what comes on these filters, and a way to publish.
async fn session(bench: &Bench, user: &str, filters: &[&str]) -> (mqtt::Publisher, mqtt::Events) {
    let mut options = mqtt_options(&bench.url());
    options.credentials = Some(mqtt::Credentials::new(user, password_of(user)));
    static SESSIONS: AtomicU32 = AtomicU32::new(0);
    let id = format!("test-{}", SESSIONS.fetch_add(1, Ordering::Relaxed));
    let filters: Vec<_> = filters
        .iter()
        .map(|filter| ((*filter).to_owned(), mqtt::Qos::AtLeastOnce))
        .collect();
    let (publisher, mut events) = mqtt::connect(options, move |_| mqtt::SessionSetup {
        client_id: id.clone(),
        will: None,
        subscriptions: filters.clone(),
    })
    .expect("options that work");
    match events.next().await {
        Some(mqtt::Event::Connected { .. }) => (publisher, events),
        other => panic!("{other:?}"),
    }
}

/// Everything that a cluster is for goes on under the access list that was printed for it: it forms,
/// writes, changes its members and its leader, locks, runs programs, answers requests and mirrors. The
/// doctor finds nothing amiss, for any of its nodes.
#[test]
fn a_cluster_works_under_the_printed_access_list() {
    require_mosquitto!();
    let bench = broker_as_printed(PRINT);
    for id in ["gw-1", "gw-4"] {
        let wait = "--election-timeout 60s --voters gw-1,gw-2,gw-3 --requests --mirror door/";
        let report = bench.run(&format!("doctor --id {id} {wait} {}", login(&bench, id)));
        let report = report.expect_exit(0).stdout;
        assert!(
            report.contains("fit for a node") && !report.contains("note"),
            "{report}"
        );
    }
    let start = |id: &str, voters: &str| {
        let dir = bench.path(id).display().to_string();
        let flags = "--requests --request-write door/ --mirror door/";
        bench.process(&format!(
            "node --id {id} {voters} --data-dir {dir} {flags} {}",
            login(&bench, id)
        ))
    };
    let mut nodes: Vec<Process> = ["gw-1", "gw-2", "gw-3"]
        .iter()
        .map(|id| start(id, "--voters gw-1,gw-2,gw-3"))
        .collect();
    let ops = login(&bench, "ops");
    let leader = || {
        let answer = bench.run(&format!("leader {ops}"));
        (answer.code == Some(0)).then(|| answer.stdout.trim_end().to_owned())
    };
    assert!(wait_for(PATIENCE, || leader().is_some()));
    let run = |words: &str| bench.run(&format!("{words} {ops}")).expect_exit(0).stdout;
    run("put door/1 open");
    assert_eq!(run("get door/1"), "open");

    // An observer joins and is given a vote; the lead is handed over; a leader dies.
    nodes.push(start("gw-4", ""));
    let joined = || bench.run(&format!("member add gw-4 {ops}")).code == Some(0);
    assert!(wait_for(PATIENCE, joined));
    let members = run("members");
    assert!(members.contains("gw-4  voter"), "{members}");
    let to = if leader().as_deref() == Some("gw-2") {
        "gw-3"
    } else {
        "gw-2"
    };
    run(&format!("transfer {to}"));
    assert!(wait_for(PATIENCE, || leader().as_deref() == Some(to)));
    let at = nodes.iter().position(|node| node.is_called(to));
    nodes.remove(at.expect("it runs")).kill();
    let succeeded = || leader().is_some_and(|leader| leader != to);
    assert!(wait_for(PATIENCE, succeeded));
    run("put door/2 shut");

    // Programs, once and under a lock.
    for words in ["run --name pump --id site-a --once", "lock pump"] {
        let mut command = bench.command(&format!("{words} {ops}"));
        command.args(["--", "echo", "ran"]);
        let answer = Answer::of(command, &bench).expect_exit(0);
        assert_eq!(answer.stdout, "ran\n", "{answer:?}");
    }

    // Other clients: one reads what is mirrored, one asks.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let (_screen, mut seen) = session(&bench, "screen", &["raft/default/#"]).await;
        let mut missing = vec!["raft/default/leader", "raft/default/kv/door/2"];
        while !missing.is_empty() {
            let message = next_message(&mut seen).await.expect("what is retained");
            assert!(!message.topic.contains("/rpc/"), "{message:?}");
            missing.retain(|topic| *topic != message.topic);
        }
        let answers = ["raft/default/req/panel/answer"];
        let (panel, mut heard) = session(&bench, "panel", &answers).await;
        let question = r#"{"op":"put","key":"door/3","value":"ajar"}"#;
        let answer = loop {
            let said = panel.publish(
                "raft/default/req/panel",
                question.into(),
                mqtt::Qos::AtLeastOnce,
                false,
            );
            said.expect("a session");
            if let Some(answer) = next_message(&mut heard).await {
                break answer;
            }
        };
        assert!(contains(&answer.payload, "\"applied\":true"), "{answer:?}");
    });
    assert_eq!(run("get door/3"), "ajar");
}

/// The next message, if one comes within a second.
async fn next_message(events: &mut mqtt::Events) -> Option<mqtt::Incoming> {
    let wait = Duration::from_secs(1);
    loop {
        match tokio::time::timeout(wait, events.next()).await.ok()?? {
            mqtt::Event::Message(message) => return Some(message),
            mqtt::Event::Disconnected { reason, .. } => panic!("{reason}"),
            _ => {}
        }
    }
}

/// What one node publishes in another's name arrives nowhere, and the broker says so; in its own name
/// it does. Nor can a node read what is sent to another, nor those who only look publish at all.
#[test]
fn nobody_publishes_as_another() {
    require_mosquitto!();
    let bench = broker_as_printed(PRINT);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let every = ["raft/default/#"];
        let (_ops, mut overheard) = session(&bench, "ops", &every).await;
        let (victim, mut heard) = session(&bench, "gw-2", &every).await;
        let attempts = [
            ("gw-1", "raft/default/rpc/all/gw-2"),
            ("gw-1", "raft/default/rpc/gw-3/gw-2"),
            ("gw-1", "raft/default/roll/all/gw-2"),
            ("gw-1", "raft/default/nodes/gw-2/status"),
            ("gw-1", "raft/other/rpc/all/gw-1"),
            ("ops", "raft/default/nodes/gw-2/status"),
            ("ops", "raft/default/leader"),
            ("screen", "raft/default/leader"),
            ("screen", "raft/default/rpc/all/screen"),
            ("panel", "raft/default/req/screen"),
            ("panel", "raft/default/kv/door/1"),
        ];
        for (user, topic) in attempts {
            let (publisher, mut events) = session(&bench, user, &[]).await;
            let said = publisher.publish(topic, "forged".into(), mqtt::Qos::AtLeastOnce, false);
            said.expect("a session");
            match events.next().await {
                Some(mqtt::Event::PublishRefused { topic: refused, .. }) => {
                    assert_eq!(&*refused, topic)
                }
                other => panic!("{user} on {topic}: {other:?}"),
            }
            publisher.disconnect().await;
        }
        let (honest, _events) = session(&bench, "gw-1", &[]).await;
        for topic in ["raft/default/rpc/gw-3/gw-1", "raft/default/rpc/all/gw-1"] {
            let said = honest.publish(topic, "honest".into(), mqtt::Qos::AtLeastOnce, false);
            said.expect("a session");
        }
        let first = next_message(&mut heard).await.expect("a broadcast");
        assert_eq!(
            first.topic, "raft/default/rpc/all/gw-1",
            "and nothing sent to gw-3"
        );
        for _ in 0..2 {
            let message = next_message(&mut overheard).await.expect("what was honest");
            assert_eq!(message.payload, "honest");
        }
        assert!(next_message(&mut overheard).await.is_none());
        victim.disconnect().await;
    });
}

/// With certificates in place of passwords, and no node named: who a client is says its certificate.
#[test]
fn the_printed_configuration_binds_names_to_certificates() {
    require_mosquitto!();
    let mut bench = Bench::without_broker();
    let (dir, port) = (bench.path("broker"), testkit::free_port());
    let url = format!("mqtts://localhost:{port}");
    let print = format!(
        "doctor --print-acl mosquitto --dir {} --broker {url}",
        dir.display()
    );
    bench.run(&print).expect_exit(0);
    let certificates = Certificates::generate(&dir);
    let acl = fs::read_to_string(dir.join("mqraft.acl")).unwrap();
    assert!(acl.contains("pattern write raft/default/rpc/+/%u"), "{acl}");
    bench.broker = Some(start_as_printed(&dir, port));
    let ca = certificates.ca.clone();
    for (id, fit) in [("gw-1", true), ("gw-2", false)] {
        let client = certificates.client("gw-1");
        let mqtt = at(&url).load_certificates(&ca, client.certificate, client.key);
        let doctor = Doctor::new(mqtt, "raft", "default", id, KeyRing::insecure());
        let report = examine(doctor.timing(Duration::from_secs(60), None));
        assert_eq!(report.severity() < Severity::Fault, fit, "{id}: {report:?}");
    }
    let without = examine(doctor(at(&url).tls(Some(ca), None, None)));
    let refused = |finding: &Finding| matches!(finding, Finding::NotConnected(_));
    assert!(without.findings.iter().all(refused), "{without:?}");
}

/// Mosquitto 2.0 does not start with a WebSocket listener alone.
#[test]
fn the_printed_configuration_for_websockets_starts() {
    require_mosquitto!();
    let bench = Bench::without_broker();
    let (dir, port, beside) = (
        bench.path("broker"),
        testkit::free_port(),
        testkit::free_port(),
    );
    let print = "doctor --print-acl mosquitto --broker";
    let print = format!("{print} ws://127.0.0.1:{port} --dir {}", dir.display());
    bench.run(&print).expect_exit(0);
    fs::write(dir.join("mqraft.passwords"), "").unwrap();
    let file = dir.join("mosquitto.conf");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("listener 1883 127.0.0.1\n"), "{text}");
    fs::write(
        &file,
        text.replace("listener 1883 ", &format!("listener {beside} ")),
    )
    .unwrap();
    let _broker = start_as_printed(&dir, port);
    let report = examine(doctor(at(&format!("ws://127.0.0.1:{port}/mqtt"))));
    let reason = |finding: &Finding| match finding {
        Finding::NotConnected(reason) => Some(reason.to_string()),
        _ => None,
    };
    let reason = report
        .findings
        .iter()
        .find_map(reason)
        .expect("nobody may come in yet");
    assert!(reason.contains("not authorised"), "{reason}");
}

/// On stdout both files, each under its name; what cannot stand in an access list is refused.
#[test]
fn an_access_list_is_printed_or_refused() {
    let bench = Bench::without_broker();
    let print = "doctor --print-acl mosquitto --cluster plant-a";
    let text = bench.run(&format!("{print} {PRINT}")).expect_exit(0).stdout;
    for line in [
        "# mqraft.acl\n",
        "\nuser gw-4\n",
        "\ntopic write raft/plant-a/rpc/+/gw-4\n",
        "\ntopic write raft/plant-a/req/panel\n",
        "\n# mosquitto.conf\n",
        "\nset_tcp_nodelay true\n",
        "\nuse_identity_as_username true\n",
    ] {
        assert!(text.contains(line), "{line:?}: {text}");
    }
    assert!(!text.contains("pattern"), "{text}");
    for wrong in [
        "--voters a/b",
        "--observer +",
        "--asker a/b",
        "--prefix a/b/c/d",
    ] {
        let refused = bench.run(&format!("{print} {wrong}")).expect_exit(2);
        assert_eq!(refused.stdout, "", "{refused:?}");
    }
    bench.run("doctor --dir x --id gw-1").expect_exit(2);
}
