//! The replicated state from the command line: real nodes, a real Mosquitto.

mod bench;

use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::{require_mosquitto, wait_for};

use bench::{Answer, Bench, PATIENCE};

/// What one writes, the other reads: ranges, counters, transactions, and their exit codes.
#[test]
fn ranges_counters_and_transactions() {
    require_mosquitto!();
    let bench = Bench::start();
    let flags = bench.insecure();
    let _nodes = bench.cluster(&flags);
    let run = |line: &str| bench.run(&format!("{line} {flags}"));
    run("list door/").expect_exit(1);
    for (key, value) in [("door/1", "open"), ("door/2", "shut"), ("other", "x")] {
        run(&format!("put {key} {value}")).expect_exit(0);
    }
    let list = run("list door/").expect_exit(0);
    assert_eq!(list.stdout, "door/1\topen\ndoor/2\tshut\n");
    assert_eq!(run("list --keys-only --limit 2").stdout, "door/1\ndoor/2\n");
    assert_eq!(run("list door/ --count").stdout, "2\n");
    let json: Value = serde_json::from_str(&run("list door/ -o json").stdout).expect("JSON");
    assert_eq!(json["pairs"][1]["key"], "door/2");
    assert_eq!(json["pairs"][1]["version"], 1);

    assert_eq!(run("add parts").expect_exit(0).stdout, "1\n");
    assert_eq!(run("add parts -5").expect_exit(0).stdout, "-4\n");
    assert!(run("add door/1").expect_exit(1).stderr.contains("number"));

    let document = bench.path("txn.json");
    let text = r#"{ "if": [ {"key": "door/1", "value": "open"}, {"key": "lock", "absent": true} ],
        "then": [ {"put": "lock", "value": "me"}, {"add": "parts", "delta": 10} ],
        "else": [ {"get": "door/", "prefix": true} ] }"#;
    std::fs::write(&document, text).expect("a file");
    let txn = format!("txn {}", document.display());
    let done = run(&txn).expect_exit(0);
    assert!(done.stdout.ends_with("\nput\n6\n"), "{done:?}");
    let held = run(&txn).expect_exit(1);
    assert!(
        held.stdout.ends_with("\ndoor/1\topen\ndoor/2\tshut\n"),
        "{held:?}"
    );

    assert!(
        run("delete door/ --all")
            .expect_exit(0)
            .stdout
            .starts_with("2 deleted")
    );
    run("delete door/ --all").expect_exit(1);
}

/// A key goes with its lease: when nobody keeps it alive, or when it is revoked.
#[test]
fn leases_from_the_command_line() {
    require_mosquitto!();
    let bench = Bench::start();
    let flags = bench.insecure();
    let _nodes = bench.cluster(&flags);
    let run = |line: &str| bench.run(&format!("{line} {flags}"));
    let grant = |ttl: &str| {
        run(&format!("lease grant {ttl}"))
            .expect_exit(0)
            .stdout
            .trim()
            .to_owned()
    };
    let short = grant("1500ms");
    run(&format!("put here yes --lease {short}")).expect_exit(0);
    let show = run(&format!("lease show {short}")).expect_exit(0);
    assert!(show.stdout.contains("of 1.5s, with 1 keys"), "{show:?}");
    assert_eq!(run("lease list").stdout, format!("{short}\n"));
    run(&format!("lease keep-alive {short} --once")).expect_exit(0);
    assert!(
        wait_for(PATIENCE, || run("get here").code == Some(1)),
        "it ends"
    );
    run(&format!("lease show {short}")).expect_exit(1);
    run(&format!("put here yes --lease {short}")).expect_exit(1);
    let long = grant("1m");
    run(&format!("put here yes --lease {long}")).expect_exit(0);
    run(&format!("lease revoke {long}")).expect_exit(0);
    run("get here").expect_exit(1);
}

/// A watch tells each change once, in order, also what came before it was started; a command is run
/// for each.
#[test]
fn a_watch_tells_each_change_once() {
    require_mosquitto!();
    let bench = Bench::start();
    let flags = bench.insecure();
    let _nodes = bench.cluster(&flags);
    let run = |line: &str| bench.run(&format!("{line} {flags}"));
    // Who comes and goes makes revisions as well.
    let revision = |line: &str| {
        let said = run(line).expect_exit(0).stdout;
        said.trim()
            .rsplit(' ')
            .next()
            .map(str::to_owned)
            .expect("a number")
    };
    let one = revision("put a/1 one");
    run("put b two").expect_exit(0);
    let (gone, three) = (revision("delete a/1"), revision("put a/2 three"));
    let watched = run(&format!("watch a/ --from {one} --count 3")).expect_exit(0);
    let last = format!("{three}\tput\ta/2\tthree\n");
    let all = format!("{one}\tput\ta/1\tone\n{gone}\tdelete\ta/1\n{last}");
    assert_eq!(watched.stdout, all);
    let initial = run("watch a/ --initial --count 1").expect_exit(0);
    assert_eq!(initial.stdout, last);
    let mut command = bench.command(&format!("watch a/ --from {one} --count 3 {flags}"));
    command.args([
        "--",
        "sh",
        "-c",
        "echo $MQRAFT_EVENT $MQRAFT_KEY $MQRAFT_REVISION $(cat)",
    ]);
    let told = Answer::of(command, &bench);
    assert_eq!(
        told.expect_exit(0).stdout,
        format!("put a/1 {one} one\ndelete a/1 {gone}\nput a/2 {three} three\n")
    );
}

/// One leads, the others do not, and of who is not there nothing can be told.
#[test]
fn is_leader_answers_by_exit_code() {
    require_mosquitto!();
    let bench = Bench::start();
    let flags = bench.insecure();
    let _nodes = bench.cluster(&flags);
    let ask = |node: &str| {
        let line = format!("is-leader {node} {flags} --timeout 2s");
        bench.run(&line).code.unwrap_or(-1)
    };
    let leads = |codes: &[i32]| codes.iter().filter(|code| **code == 0).count() == 1;
    let started = Instant::now();
    let one = || leads(&["gw-1", "gw-2", "gw-3"].map(ask));
    assert!(wait_for(PATIENCE, one), "one exclusive leader");
    println!("exclusive after {:?}", started.elapsed());
    let codes = ["gw-1", "gw-2", "gw-3"].map(ask);
    assert!(codes.iter().all(|code| *code < 2), "{codes:?}");
    assert_eq!(ask("gw-9"), 2);
}

/// Work is shared among who is there, and a barrier opens when all have come.
#[test]
fn recipes_from_the_command_line() {
    require_mosquitto!();
    let bench = Bench::start();
    let flags = bench.insecure();
    let _nodes = bench.cluster(&flags);
    let mut first = bench.process(&format!("barrier start 2 {flags}"));
    std::thread::sleep(Duration::from_millis(500));
    let second = bench
        .run(&format!("barrier start 2 {flags}"))
        .expect_exit(0);
    assert!(
        second.stdout.starts_with("open since revision"),
        "{second:?}"
    );
    assert_eq!(first.exit_code(), Some(0));
    bench
        .run(&format!("barrier start --reset {flags}"))
        .expect_exit(0);
    bench.run(&format!("election boss {flags}")).expect_exit(1);
}
