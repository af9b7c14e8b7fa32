//! The command line as its users meet it: real processes, a real Mosquitto, text and exit codes.

mod bench;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use testkit::{Certificates, Mosquitto, require_mosquitto, wait_for};

use bench::{Answer, Bench, PATIENCE, Process, VOTERS};

// The quick start.

/// The lines of the README, word for word but for port and directory: three nodes form a cluster,
/// and a put from the same machine is answered by their leader.
#[test]
fn the_quick_start_works_as_written() {
    require_mosquitto!();
    let bench = Bench::start();
    let url = bench.url();
    let _nodes: Vec<Process> = ["gw-1", "gw-2", "gw-3"]
        .into_iter()
        .map(|id| {
            let dir = bench.path(id);
            bench.process(&format!(
                "node --broker {url} --cluster plant-a --id {id} --voters gw-1,gw-2,gw-3 \
                 --data-dir {} --insecure",
                dir.display()
            ))
        })
        .collect();
    let put = format!("put door open --broker {url} --cluster plant-a --insecure");
    let put = bench.run(&put).expect_exit(0);
    assert!(put.stdout.starts_with("revision "), "{put:?}");
    let get = bench.run(&format!(
        "get door --broker {url} --cluster plant-a --insecure"
    ));
    assert_eq!(get.expect_exit(0).stdout, "open");
}

/// With a key file instead of `--insecure` the same works, and without the key nothing does.
#[test]
fn a_cluster_key_opens_the_cluster_and_nothing_else_does() {
    require_mosquitto!();
    let bench = Bench::start();
    let key = bench.path("key");
    let written = bench
        .run(&format!("keygen {}", key.display()))
        .expect_exit(0);
    assert!(written.stdout.contains("--key-file"), "{written:?}");
    assert_eq!(fs::read_to_string(&key).unwrap().lines().count(), 1);
    let again = bench.run(&format!("keygen {}", key.display()));
    assert!(again.expect_exit(6).stderr.contains("exists"));
    let flags = format!("--broker {} --key-file {}", bench.url(), key.display());
    let _nodes = bench.cluster(&flags);
    bench.run(&format!("put door open {flags}")).expect_exit(0);
    assert_eq!(bench.run(&format!("get door {flags}")).stdout, "open");

    let insecure = format!("get door {} --timeout 300ms", bench.insecure());
    bench.run(&insecure).expect_exit(4);
    let other = bench.path("other-key");
    bench
        .run(&format!("keygen {}", other.display()))
        .expect_exit(0);
    let url = bench.url();
    let foreign = format!("status --broker {url} --key-file {}", other.display());
    assert!(bench.run(&foreign).expect_exit(4).stderr.contains("key"));
}

// Asking and writing.

/// Every question has a text and a JSON answer, and a negative answer is exit code 1.
#[test]
fn every_question_is_answered_as_text_and_as_json() {
    require_mosquitto!();
    let bench = Bench::start();
    let _nodes = bench.cluster(&bench.insecure());
    bench.await_leader();
    let run = |command: &str| bench.run(&format!("{command} {}", bench.insecure()));
    let json = |command: &str| run(&format!("{command} -o json")).json();

    let open = run("put door open").expect_exit(0).stdout;
    let open = open.strip_prefix("revision ").expect("a revision");
    let open: u64 = open.trim_end().parse().expect("a number");
    let shut = json("put door shut")["revision"].as_u64();
    assert!(shut > Some(open));
    assert_eq!(run("get door").expect_exit(0).stdout, "shut");
    let read = json("get door");
    assert_eq!(
        (&read["key"], &read["value"]),
        (&"door".into(), &"shut".into())
    );
    // Who is there has revisions as well.
    assert_eq!(read["modified"].as_u64(), shut);
    assert!(read["revision"].as_u64() >= shut);
    assert_eq!(run("get window").expect_exit(1).stdout, "");
    assert_eq!(json("get window")["value"], Value::Null);

    let file = bench.path("value");
    fs::write(&file, [0xff, 0x00]).unwrap();
    run(&format!("put bytes --file {}", file.display())).expect_exit(0);
    assert_eq!(json("get bytes")["value_base64"], "/wA=");

    run("cas lock me --absent").expect_exit(0);
    run("cas lock you --absent").expect_exit(1);
    assert_eq!(json("cas lock you --expect me")["applied"], true);
    run("delete lock").expect_exit(0);
    assert_eq!(json("delete lock")["applied"], false);

    // A node's own copy may be a moment behind.
    let stale = || json("get --stale --from gw-2 door")["value"] == "shut";
    assert!(wait_for(PATIENCE, stale));
    assert_eq!(json("get --stale door")["key"], "door");
    let absent = run("get --stale --from gw-9 door --timeout 300ms").expect_exit(4);
    assert!(absent.stderr.contains("gw-9"));

    let leader = run("leader").expect_exit(0).stdout;
    assert!(
        VOTERS
            .split(',')
            .any(|voter| leader == format!("{voter}\n")),
        "{leader}"
    );
    assert_eq!(json("leader")["leader"], leader.trim_end());
    let status = json("status");
    assert_eq!(status["nodes"].as_array().unwrap().len(), 3);
    assert_eq!(status["leader"], leader.trim_end());
    let table = run("status").expect_exit(0).stdout;
    assert_eq!(table.lines().count(), 4, "{table}");
    let members = json("members");
    let voter = |member: &Value| member["voter"] == true && member["present"] == true;
    assert!(
        members["members"].as_array().unwrap().iter().all(voter),
        "{members}"
    );
}

/// `leader --watch` prints a line for the leader, and another one when it changes.
#[test]
fn a_watcher_sees_the_leader_change() {
    require_mosquitto!();
    let bench = Bench::start();
    let mut nodes = bench.cluster(&bench.insecure());
    let first = bench.await_leader();
    let watch = bench.process(&format!("leader --watch {}", bench.insecure()));
    let lines = || {
        watch
            .stdout()
            .lines()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert!(
        wait_for(PATIENCE, || lines() == [first.clone()]),
        "{:?}",
        lines()
    );
    let leading = nodes
        .iter_mut()
        .find(|node| node.is_called(&first))
        .unwrap();
    leading.kill();
    let next = || {
        lines()
            .last()
            .is_some_and(|last| *last != first && last != "none")
    };
    assert!(wait_for(PATIENCE, next), "{:?}", lines());
}

/// A single node of three cannot form the cluster: a write is not "unknown" but was never sent,
/// and the message names whom it waits for.
#[test]
fn a_cluster_that_is_not_formed_says_whom_it_waits_for() {
    require_mosquitto!();
    let bench = Bench::start();
    let node = bench.process(&bench.node("gw-1", &bench.insecure()));
    assert!(node.await_log("connected to the broker"), "{}", node.log());
    let put = format!("put door open --timeout 2s {}", bench.insecure());
    let mut said = String::new();
    let named = || {
        let answer = bench.run(&put).expect_exit(4);
        said = answer.stderr;
        said.contains("gw-2") && said.contains("gw-3")
    };
    assert!(wait_for(PATIENCE, named), "{said}");
}

// Settings.

/// Flag over environment over file over default, seen in what the node says of itself.
#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    require_mosquitto!();
    let bench = Bench::start();
    let config = bench.path("node.toml");
    let text = format!(
        "broker = \"{}\"\ncluster = \"from-file\"\ninsecure = true\nid = \"gw-1\"\n\
         voters = [\"gw-1\"]\ndata-dir = \"data\"\nmetric = 1\nelection-timeout = \"500ms\"\n",
        bench.url()
    );
    fs::write(&config, text).unwrap();
    let config = config.display().to_string();
    let shown = |node: &Process| {
        let line = || node.stdout().lines().last().map(str::to_owned);
        assert!(wait_for(PATIENCE, || line()
            .is_some_and(|l| l.contains("\"connected\":true"))));
        let status: Value = serde_json::from_str(&line().unwrap()).unwrap();
        status["metric"].as_f64()
    };
    let from_file = bench.process(&format!("node --config {config} -o json"));
    assert_eq!(shown(&from_file), Some(1.0));
    assert!(bench.path("data").is_dir(), "relative to the file");
    drop(from_file);
    let node = |args: &str| {
        let mut command = bench.command(&format!("node -o json {args}"));
        command
            .env("MQRAFT_CONFIG", &config)
            .env("MQRAFT_METRIC", "2");
        Process::start(command, &bench)
    };
    let from_env = node("");
    assert_eq!(shown(&from_env), Some(2.0));
    drop(from_env);
    let from_flag = node("--metric 3");
    assert_eq!(shown(&from_flag), Some(3.0));
    // The client commands read the same file.
    let leads = || bench.run(&format!("leader --config {config}")).stdout == "gw-1\n";
    assert!(wait_for(PATIENCE, leads));
}

/// What cannot work is refused before anything is started, with the name of what is wrong.
#[test]
fn wrong_settings_are_named() {
    let bench = Bench::without_broker();
    let node = "node --broker mqtt://127.0.0.1:1 --insecure --voters a,b,c";
    let dir = bench.path("never-made").display().to_string();
    let long = "x".repeat(300);
    let mut table = vec![
        ("status --insecure".to_owned(), "--broker"),
        (
            "status --broker mqtt://127.0.0.1:1".to_owned(),
            "--key-file",
        ),
        ("status --broker nonsense --insecure".to_owned(), "mqtt://"),
        (
            "status --broker mqtt://10.1.2.3 --insecure".to_owned(),
            "keygen",
        ),
        (
            format!("{node} --id a --data-dir {dir} --broker mqtt://10.1.2.3"),
            "on this machine",
        ),
        (
            "status --broker mqtt://localhost --insecure --key-file k".to_owned(),
            "--key-file",
        ),
        (
            "status --broker mqtt://localhost --key-file /absent".to_owned(),
            "/absent",
        ),
        (
            "status --broker mqtt://localhost --insecure --config /absent".to_owned(),
            "/absent",
        ),
        (
            "status --broker mqtt://localhost --insecure --ca /absent".to_owned(),
            "mqtts://",
        ),
        (
            "status --broker mqtt://h --insecure --password-file /absent".to_owned(),
            "/absent",
        ),
        (
            format!("{node} --id a --data-dir {dir} --expect 3"),
            "--expect",
        ),
        (format!("{node} --id a"), "--data-dir"),
        (format!("{node} --data-dir {dir}"), "--id"),
        (
            format!("{node} --id a --data-dir {dir} --election-timeout 5"),
            "500ms",
        ),
        (
            format!("{node} --id a --data-dir {dir} --election-timeout 1ms"),
            "50 ms",
        ),
        (
            format!("{node} --id a --data-dir {dir} --heartbeat-interval 9s"),
            "9s",
        ),
        ("put door".to_owned(), "VALUE"),
        (
            "cas door open --broker mqtt://localhost --insecure".to_owned(),
            "--expect",
        ),
        (
            "demo --nodes 2 --kill-leader-after 1s".to_owned(),
            "--nodes 3",
        ),
    ];
    for expect in ["0", "10", "many"] {
        let lone = node.replace(" --voters a,b,c", "");
        table.push((
            format!("{lone} --id a --data-dir {dir} --expect {expect}"),
            expect,
        ));
    }
    for metric in ["NaN", "inf", "-inf", "much"] {
        table.push((
            format!("{node} --id a --data-dir {dir} --metric {metric}"),
            "metric",
        ));
    }
    for id in ["a:b", "a/b", "+", "#", &long] {
        table.push((format!("{node} --id {id} --data-dir {dir}"), "a name"));
        table.push((
            format!("{node} --id a --data-dir {dir} --cluster {id}"),
            "a name",
        ));
    }
    for (command, word) in table {
        let refused = bench.run(&command).expect_exit(2);
        assert!(refused.stderr.contains(word), "{command}: {refused:?}");
    }
    let mut empty = bench.command(&format!("{node} --data-dir {dir}"));
    empty.args(["--id", ""]);
    let refused = Answer::of(empty, &bench).expect_exit(2);
    assert!(
        refused.stderr.contains("a name must not be empty"),
        "{refused:?}"
    );
    assert!(
        !Path::new(&dir).exists(),
        "nothing was made for a node that never was"
    );
}

/// A misspelt key in the file is not ignored: it is named, with its line.
#[test]
fn an_unknown_key_in_the_file_is_named_with_its_line() {
    let bench = Bench::without_broker();
    let config = bench.path("c.toml");
    fs::write(&config, "cluster = \"a\"\nmetrik = 3\n").unwrap();
    let status = format!("status --config {}", config.display());
    let refused = bench.run(&status).expect_exit(2).stderr;
    assert!(
        refused.contains("metrik") && refused.contains("line 2"),
        "{refused}"
    );
    let mut command = bench.command("status --insecure --broker mqtt://localhost");
    command.env("MQRAFT_TIMEOUT", "soon");
    let refused = Answer::of(command, &bench).expect_exit(2).stderr;
    assert!(refused.contains("MQRAFT_TIMEOUT=soon"), "{refused}");
}

/// In JSON a failure is an object too.
#[test]
fn a_failure_is_json_where_json_was_asked_for() {
    let bench = Bench::without_broker();
    let status = "status -o json --broker mqtt://127.0.0.1:1 --insecure --timeout 200ms";
    let failed = bench.run(status).expect_exit(3);
    let failure: Value = serde_json::from_str(&failed.stderr).unwrap();
    assert_eq!(failure["exit_code"], 3);
    assert!(
        failure["error"]
            .as_str()
            .unwrap()
            .contains("cannot reach the broker")
    );
}

// The broker.

/// A node waits for a broker that is not there, says so once, and joins when it comes.
#[test]
fn a_node_waits_for_its_broker() {
    require_mosquitto!();
    let mut bench = Bench::start();
    bench.broker().kill();
    let insecure = bench.insecure();
    let node = bench.process(&bench.lone_node("gw-1"));
    assert!(node.await_log("cannot reach the broker"), "{}", node.log());
    bench.broker().restart();
    assert!(node.await_log("leads term"), "{}", node.log());
    assert_eq!(
        node.log().matches("cannot reach the broker").count(),
        1,
        "{}",
        node.log()
    );
    bench
        .run(&format!("put door open {insecure}"))
        .expect_exit(0);
}

/// SIGTERM ends a node at once, also while its broker is not reachable.
#[test]
fn a_node_without_a_broker_ends_when_told() {
    let bench = Bench::without_broker();
    let dir = bench.path("data").display().to_string();
    let mut node = bench.process(&format!(
        "node --broker mqtt://127.0.0.1:1 --insecure --id a --voters a --data-dir {dir}"
    ));
    assert!(node.await_log("cannot reach the broker"), "{}", node.log());
    let told = Instant::now();
    node.signal(Signal::TERM);
    assert_eq!(node.exit_code(), Some(0));
    assert!(
        told.elapsed() < Duration::from_secs(1),
        "{:?}",
        told.elapsed()
    );
}

/// SIGINT is a farewell: the others see the node gone before any timeout.
#[test]
fn an_interrupted_node_says_farewell() {
    require_mosquitto!();
    let bench = Bench::start();
    let mut nodes = bench.cluster(&bench.insecure());
    let leader = bench.await_leader();
    let leading = nodes
        .iter_mut()
        .find(|node| node.is_called(&leader))
        .unwrap();
    leading.signal(Signal::INT);
    assert_eq!(leading.exit_code(), Some(0));
    let next = || {
        let now = bench.run(&format!("leader {}", bench.insecure()));
        now.code == Some(0) && now.stdout.trim_end() != leader
    };
    assert!(wait_for(PATIENCE, next));
}

/// A broker that refuses us is no broker to wait for: the reason, and exit code 3.
#[test]
fn a_refusal_names_its_reason() {
    require_mosquitto!();
    let bench = Bench::of(Mosquitto::builder().user("ann", "right").start());
    let good = bench.path("good");
    let bad = bench.path("bad");
    fs::write(&good, "right\n").unwrap();
    fs::write(&bad, "wrong\n").unwrap();
    let with = |command: &str, file: &Path| {
        let file = file.display();
        format!(
            "{command} --username ann --password-file {file} {}",
            bench.insecure()
        )
    };
    for command in ["status".to_owned(), bench.lone_node_without_flags("gw-1")] {
        let refused = bench.run(&with(&command, &bad)).expect_exit(3);
        let reason = refused.stderr.contains("password") && refused.stderr.contains("refused");
        assert!(reason, "{refused:?}");
        assert!(
            !refused.stderr.contains("wrong"),
            "a password is never shown"
        );
    }
    let node = bench.process(&with(&bench.lone_node_without_flags("gw-1"), &good));
    assert!(node.await_log("leads term"), "{}", node.log());
    let mut command = bench.command(&format!("status --username ann {}", bench.insecure()));
    command.env("MQRAFT_PASSWORD", "right");
    Answer::of(command, &bench).expect_exit(0);
}

/// TLS: the right authority lets us in; a wrong one and a wrong host name are told apart.
#[test]
fn tls_faults_name_their_reason() {
    require_mosquitto!();
    let dir = testkit::temp_dir();
    let certificates = Certificates::generate(dir.path());
    let wrong_host = certificates.wrong_host.clone();
    let good = Bench::of(Mosquitto::builder().mutual_tls(&certificates).start());
    let other = Mosquitto::builder()
        .tls_with(&certificates, wrong_host, false)
        .start();
    let tls_url = good.broker.as_ref().expect("a broker").tls_url();
    let client = certificates.client("gw-1");
    let own = format!(
        "--cert {} --key {}",
        client.certificate.display(),
        client.key.display()
    );
    let status = |url: &str, ca: &Path, own: &str| {
        let ca = ca.display();
        good.run(&format!(
            "status --insecure --timeout 5s --broker {url} --ca {ca} {own}"
        ))
    };
    let nobody = status(&tls_url, &certificates.ca, &own).expect_exit(4);
    assert!(nobody.stderr.contains("no node answered"), "{nobody:?}");
    let table = [
        (
            tls_url.clone(),
            &certificates.wrong_ca,
            own.as_str(),
            "authority",
        ),
        (other.tls_url(), &certificates.ca, "", "host name localhost"),
        (tls_url, &certificates.ca, "", "certificate"),
    ];
    for (url, ca, own, word) in table {
        let refused = status(&url, ca, own).expect_exit(3);
        assert!(refused.stderr.contains(word), "{word}: {refused:?}");
    }
}

// Names and directories.

/// Two processes of one name: the second stops and says why, the first goes on.
#[test]
fn a_name_is_for_one_process() {
    require_mosquitto!();
    let bench = Bench::start();
    let first = bench.process(&bench.lone_node("gw-1"));
    assert!(first.await_log("leads term"), "{}", first.log());
    let dir = bench.path("another").display().to_string();
    let second = format!(
        "node --id gw-1 --voters gw-1 --data-dir {dir} {}",
        bench.insecure()
    );
    let second = bench.run(&second).expect_exit(7);
    assert!(
        second.stderr.contains("another process is running as gw-1"),
        "{second:?}"
    );
    bench
        .run(&format!("put door open {}", bench.insecure()))
        .expect_exit(0);
}

/// A data directory that cannot be used is exit code 6, and says what it is.
#[test]
fn an_unusable_data_directory_is_told_from_a_usable_one() {
    let bench = Bench::without_broker();
    let node = |dir: &Path| {
        let dir = dir.display();
        format!("node --broker mqtt://127.0.0.1:1 --insecure --id a --voters a --data-dir {dir}")
    };
    let file = bench.path("file");
    fs::write(&file, "").unwrap();
    let refused = bench.run(&node(&file)).expect_exit(6);
    assert!(refused.stderr.contains("file"), "{refused:?}");

    let foreign = bench.path("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("holiday.jpg"), "").unwrap();
    let refused = bench.run(&node(&foreign)).expect_exit(6);
    assert!(refused.stderr.contains("holiday.jpg"), "{refused:?}");

    let good = bench.path("good");
    let mut first = bench.process(&node(&good));
    assert!(
        first.await_log("cannot reach the broker"),
        "{}",
        first.log()
    );
    let refused = bench.run(&node(&good)).expect_exit(6);
    assert!(refused.stderr.contains("in use"), "{refused:?}");
    first.signal(Signal::TERM);
    assert_eq!(first.exit_code(), Some(0));
    let other = node(&good).replace("--id a", "--id b");
    let refused = bench.run(&other).expect_exit(6);
    assert!(refused.stderr.contains("belongs to node"), "{refused:?}");

    write_newer_format(&good.join("identity"));
    let refused = bench.run(&node(&good)).expect_exit(6);
    assert!(refused.stderr.contains("newer version"), "{refused:?}");
    assert!(
        refused.stderr.contains(&good.display().to_string()),
        "{refused:?}"
    );
}

/// Three nodes that were told how many, not who: two wait and say so, the third completes them, and
/// a fourth follows.
#[test]
fn expected_nodes_choose_their_voters() {
    require_mosquitto!();
    let bench = Bench::start();
    let insecure = bench.insecure();
    let start = |id: &str| {
        let dir = bench.path(id).display().to_string();
        bench.process(&format!(
            "node --id {id} --expect 3 --data-dir {dir} {insecure}"
        ))
    };
    let mut nodes = vec![start("gw-1"), start("gw-2")];
    let put = format!("put door open {insecure} --timeout 1s");
    let waits = || {
        bench
            .run(&put)
            .stderr
            .contains("waits for 1 more of 3 nodes")
    };
    assert!(wait_for(PATIENCE, waits), "{:?}", bench.run(&put));
    nodes.push(start("gw-3"));
    bench.await_leader();
    nodes.push(start("gw-0"));
    let shown = || bench.run(&format!("members {insecure}")).stdout;
    let expected =
        "gw-0  observer  yes\ngw-1  voter     yes\ngw-2  voter     yes\ngw-3  voter     yes\n";
    assert!(
        wait_for(PATIENCE, || shown().contains(expected)),
        "{}",
        shown()
    );
    bench
        .run(&format!("put door open {insecure}"))
        .expect_exit(0);
}

/// What the owner of a node says of it stands in what all have agreed on; who goes is told of.
#[test]
fn members_shows_tags_and_watches_who_comes_and_goes() {
    require_mosquitto!();
    let bench = Bench::start();
    let insecure = bench.insecure();
    let _nodes = bench.cluster(&insecure);
    bench.await_leader();
    let watch = bench.process(&format!("members --watch {insecure}"));
    let told = || watch.stdout();
    assert!(
        wait_for(PATIENCE, || told().matches("voter").count() >= 3),
        "{}",
        told()
    );
    let dir = bench.path("cam-7").display().to_string();
    let mut camera = bench.process(&format!(
        "node --id cam-7 --voters {VOTERS} --data-dir {dir} --tag zone=north --tag kind=camera \
         --metric 4 {insecure}"
    ));
    let listed = "cam-7  observer  4       kind=camera zone=north";
    let shown = || bench.run(&format!("members {insecure}")).stdout;
    assert!(
        wait_for(PATIENCE, || shown().contains(listed)),
        "{}",
        shown()
    );
    let agreed = bench.run(&format!("members -o json {insecure}")).json();
    assert_eq!(agreed["agreed"]["nodes"][0]["tags"]["zone"], "north");
    camera.kill();
    let gone = || told().contains("cam-7 arrived observer 4") && told().contains("cam-7 departed");
    assert!(wait_for(PATIENCE, gone), "{}", told());
    let bad = format!("node --id x --voters x --data-dir {dir} --tag zone {insecure}");
    assert!(bench.run(&bad).expect_exit(2).stderr.contains("KEY=VALUE"));
}

/// What an operator has to look at stands below the table, and in the document.
#[test]
fn a_trouble_is_shown_with_the_status() {
    require_mosquitto!();
    let bench = Bench::start();
    let insecure = bench.insecure();
    let start = |id: &str, choice: &str| {
        let dir = bench.path(id).display().to_string();
        bench.process(&format!(
            "node --id {id} {choice} --data-dir {dir} {insecure}"
        ))
    };
    let _nodes = [
        start("gw-1", "--voters gw-1,gw-2"),
        start("gw-2", "--expect 2"),
    ];
    let shown = || bench.run(&format!("status {insecure}")).stdout;
    let line = "gw-2: gw-1 and this node were not started alike";
    assert!(wait_for(PATIENCE, || shown().contains(line)), "{}", shown());
    let json = bench.run(&format!("status -o json {insecure}")).json();
    let trouble = json["nodes"][0]["trouble"].as_str().expect("a trouble");
    assert!(trouble.contains("not started alike"), "{trouble}");
}

/// A voter that lost its disk is a new node under the old name: there, but not as the voter.
#[test]
fn a_wiped_voter_is_not_shown_as_a_voter() {
    require_mosquitto!();
    let bench = Bench::start();
    let mut nodes = bench.cluster(&bench.insecure());
    bench.await_leader();
    nodes[2].kill();
    fs::remove_dir_all(bench.path("gw-3")).unwrap();
    let _wiped = bench.process(&bench.node("gw-3", &bench.insecure()));
    let shown = || bench.run(&format!("members {}", bench.insecure())).stdout;
    let expected = "gw-3  observer  yes\ngw-3  voter     no\n";
    assert!(
        wait_for(PATIENCE, || shown().contains(expected)),
        "{}",
        shown()
    );
    let advice = "gw-3: the voter gw-3 is gone: this node has its name but another key";
    assert!(shown().contains(advice), "{}", shown());
}

// The demo and the small commands.

/// The demo where nobody looks at a terminal: it kills its leader, prints both figures, sees the
/// dead node come back, and leaves nothing behind.
#[test]
#[cfg(feature = "demo")]
fn the_demo_prints_both_figures_and_cleans_up() {
    let bench = Bench::without_broker();
    let temp = bench.path("temp");
    fs::create_dir(&temp).unwrap();
    let mut command = bench.command("demo --nodes 3 --kill-leader-after 1s --exit");
    command.env("TMPDIR", &temp);
    let shown = Answer::of(command, &bench).expect_exit(0).stdout;
    for words in [
        "first commit:",
        "exclusive leader:",
        "was killed",
        "starts again",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    assert_eq!(
        fs::read_dir(&temp).unwrap().count(),
        0,
        "the data directories are gone"
    );

    let mut command = bench.command("demo --kill-leader-after 500ms --exit -o json");
    command.env("TMPDIR", &temp);
    let shown = Answer::of(command, &bench).expect_exit(0).stdout;
    let events: Vec<Value> = shown
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let takeover = events
        .iter()
        .find(|event| event["event"] == "takeover")
        .unwrap();
    let (first, exclusive) = (
        &takeover["first_commit_ms"],
        &takeover["exclusive_leader_ms"],
    );
    assert!(first.as_f64().unwrap() > 0.0 && exclusive.as_f64().unwrap() > 0.0);
}

/// Ctrl-C in the middle of it ends every process; so does the death of the demo itself.
#[test]
#[cfg(feature = "demo")]
fn the_demos_nodes_do_not_outlive_it() {
    for (signal, code) in [(Signal::INT, Some(0)), (Signal::KILL, None)] {
        let bench = Bench::without_broker();
        let temp = bench.path("temp");
        fs::create_dir(&temp).unwrap();
        let mut command = bench.command("demo");
        command.env("TMPDIR", &temp);
        let mut demo = Process::start(command, &bench);
        assert!(
            wait_for(PATIENCE, || demo.stdout().contains("kill -9")),
            "{}",
            demo.log()
        );
        let pids = children_of(demo.child.id());
        assert_eq!(pids.len(), 3);
        demo.signal(signal);
        assert_eq!(demo.exit_code(), code);
        let all_gone = || pids.iter().all(|pid| !is_running(*pid));
        assert!(wait_for(PATIENCE, all_gone), "{signal:?}");
        if code == Some(0) {
            assert_eq!(fs::read_dir(&temp).unwrap().count(), 0);
        }
    }
}

#[test]
fn help_names_the_exit_codes_and_shells_can_complete() {
    let bench = Bench::without_broker();
    for command in ["--help", "-h", "exit-codes"] {
        assert!(
            bench
                .run(command)
                .expect_exit(0)
                .stdout
                .contains("outcome unknown")
        );
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = bench
            .run(&format!("completions {shell}"))
            .expect_exit(0)
            .stdout;
        assert!(script.contains("election-timeout"), "{shell}");
    }
    let keys: BTreeSet<String> = (0..3).map(|_| bench.run("keygen").stdout).collect();
    assert_eq!(keys.len(), 3, "no two keys are the same");
}

/// docs/cli.md holds the same table of exit codes as the program.
#[test]
fn the_documented_exit_codes_are_the_programs() {
    let bench = Bench::without_broker();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let docs = fs::read_to_string(docs).unwrap();
    for line in bench.run("exit-codes").stdout.lines().skip(1) {
        let (code, meaning) = line.trim().split_once("  ").unwrap();
        assert!(docs.contains(&format!("| {code} | {meaning} |")), "{line}");
    }
}

// The system.

#[cfg(feature = "demo")]
fn children_of(parent: u32) -> Vec<u32> {
    let of_parent = |pid: &u32| stat(*pid).is_some_and(|(_, ppid)| ppid == parent);
    let processes = fs::read_dir("/proc").expect("a Linux").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(of_parent).collect()
}

#[cfg(feature = "demo")]
fn is_running(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z')
}

/// A process's state and its parent.
#[cfg(feature = "demo")]
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Makes an identity file look as if the next format had written it: docs/disk.md.
fn write_newer_format(identity: &Path) {
    let mut bytes = fs::read(identity).expect("an identity");
    bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let covered = [&bytes[..12], &bytes[16..]].concat();
    bytes[12..16].copy_from_slice(&crc32c(&covered).to_le_bytes());
    fs::write(identity, bytes).expect("write the identity");
}

fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), bit);
    !bytes.iter().fold(!0, byte)
}
