//! A cluster whose members change while clients write: real processes, a real Mosquitto.

mod bench;

use std::fs;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bench::writer::{Writer, assert_holds};
use bench::{Bench, PATIENCE, Process};
use rustix::process::Signal;
use serde_json::Value;
use testkit::{require_mosquitto, wait_for};

/// No single write may take longer while members change: two elections' worth, on a busy machine.
const PAUSE: Duration = Duration::from_secs(4);

/// An observer of the cluster of three.
fn observer(bench: &Bench, id: &str) -> Process {
    let dir = bench.path(id).display().to_string();
    bench.process(&format!(
        "node --id {id} --data-dir {dir} {}",
        bench.insecure()
    ))
}

fn members(bench: &Bench) -> Vec<String> {
    let list = format!("member list -o json {}", bench.insecure());
    let list = bench.run(&list).expect_exit(0).json();
    let members = list["members"].as_array().expect("members");
    let voter = |member: &&Value| member["voter"] == true;
    let name = |member: &Value| member["node"].as_str().expect("a name").to_owned();
    members.iter().filter(voter).map(name).collect()
}

fn change(bench: &Bench, words: &str) -> bench::Answer {
    let words = format!("member {words} --timeout 30s {}", bench.insecure());
    bench.run(&words).expect_exit(0)
}

/// All three voters are replaced one by one under load. No write fails, and none takes longer than
/// the pause that docs/operations.md states.
#[test]
fn all_voters_are_replaced_under_load() {
    require_mosquitto!();
    let bench = Bench::start();
    let mut nodes = bench.cluster(&bench.insecure());
    bench.await_leader();
    let writer = Writer::start(&bench);
    assert!(wait_for(PATIENCE, || writer.acknowledged() > 100));
    for number in 1..=3 {
        let (old, new) = (format!("gw-{number}"), format!("gw-{}", number + 3));
        nodes.push(observer(&bench, &new));
        let begun = Instant::now();
        let there = || {
            let answer = bench.run(&format!("members -o json {}", bench.insecure()));
            answer.stdout.contains(&new)
        };
        assert!(wait_for(PATIENCE, there), "{new} is not there");
        change(&bench, &format!("replace {old} {new}"));
        let mut gone = nodes.remove(0);
        assert_eq!(gone.exit_code(), Some(7), "{}", gone.log());
        assert!(gone.log().contains("no longer a member"), "{}", gone.log());
        let before = writer.acknowledged();
        assert!(
            wait_for(PATIENCE, || writer.acknowledged() > before + 50),
            "it goes on with {new}"
        );
        println!("{old} -> {new} in {:?}", begun.elapsed());
    }
    assert_eq!(members(&bench), ["gw-4", "gw-5", "gw-6"]);
    let longest = Duration::from_micros(writer.longest.load(Ordering::Relaxed));
    let written = writer.stop();
    println!("{written} writes, the longest took {longest:?}");
    assert!(longest < PAUSE, "a write took {longest:?}");
    assert_holds(&bench, 0..written);
}

/// A voter that lost its disk comes back under a new key, without a vote, and takes the place of its
/// former self by one command.
#[test]
fn a_wiped_voter_is_replaced_by_its_successor() {
    require_mosquitto!();
    let bench = Bench::start();
    let mut nodes = bench.cluster(&bench.insecure());
    bench.await_leader();
    let writer = Writer::start(&bench);
    assert!(wait_for(PATIENCE, || writer.acknowledged() > 20));
    let at = nodes.iter().position(|node| node.is_called("gw-2"));
    let mut lost = nodes.remove(at.expect("gw-2"));
    lost.kill();
    fs::remove_dir_all(bench.path("gw-2")).expect("its disk");
    nodes.push(bench.process(&bench.node("gw-2", &bench.insecure())));
    let replaced = || {
        let replace = format!("member replace gw-2 {}", bench.insecure());
        bench.run(&replace).code == Some(0)
    };
    assert!(wait_for(PATIENCE, replaced));
    assert_eq!(members(&bench), ["gw-1", "gw-2", "gw-3"]);
    // The new one counts: with it alone beside one other, writes go on.
    let at = nodes.iter().position(|node| node.is_called("gw-3"));
    nodes.remove(at.expect("gw-3")).kill();
    let before = writer.acknowledged();
    assert!(wait_for(PATIENCE, || writer.acknowledged() > before + 20));
    let written = writer.stop();
    assert_holds(&bench, 0..written);
}

/// The lead goes where it is asked to go, without an election, and writes go on. A leader that is
/// told to end hands over first.
#[test]
fn the_lead_is_handed_over() {
    require_mosquitto!();
    let bench = Bench::start();
    let mut nodes = bench.cluster(&bench.insecure());
    bench.await_leader();
    let writer = Writer::start(&bench);
    let flags = bench.insecure();
    for to in ["gw-1", "gw-2", "gw-3"] {
        let answer = bench.run(&format!("transfer {to} {flags}")).expect_exit(0);
        assert_eq!(answer.stdout, format!("{to} leads\n"));
        assert_eq!(bench.await_leader(), to);
    }
    // To whoever is best: it goes once, and the answer says where it is.
    for _ in 0..5 {
        let answer = bench.run(&format!("transfer {flags}")).expect_exit(0);
        let said = answer
            .stdout
            .trim_end()
            .trim_end_matches(" leads")
            .to_owned();
        assert_eq!(bench.await_leader(), said);
    }
    bench.run(&format!("transfer gw-3 {flags}")).expect_exit(0);
    let unknown = bench.run(&format!("transfer gw-9 {flags}")).expect_exit(1);
    assert!(unknown.stderr.contains("no member gw-9"), "{unknown:?}");
    let at = nodes.iter().position(|node| node.is_called("gw-3"));
    let mut leader = nodes.remove(at.expect("gw-3"));
    leader.signal(Signal::TERM);
    assert_eq!(leader.exit_code(), Some(0), "{}", leader.log());
    assert!(
        leader.log().contains("hands the lead over"),
        "{}",
        leader.log()
    );
    let before = writer.acknowledged();
    assert!(wait_for(PATIENCE, || writer.acknowledged() > before + 20));
    let longest = Duration::from_micros(writer.longest.load(Ordering::Relaxed));
    println!("the longest write took {longest:?}");
    let written = writer.stop();
    assert_holds(&bench, 0..written);
}

/// A leader with a worse metric hands over by itself, and a metric that swings moves the lead no more
/// often than the tenure allows.
#[test]
fn the_better_metric_leads_in_the_end() {
    require_mosquitto!();
    let bench = Bench::start();
    let quick = "--hand-over-after 200ms --hand-over-tenure 1s";
    let flags = |metric: u32| format!("--metric {metric} {quick} {}", bench.insecure());
    let mut nodes: Vec<Process> = [("gw-1", 10), ("gw-2", 20), ("gw-3", 30)]
        .map(|(id, metric)| bench.process(&bench.node(id, &flags(metric))))
        .into();
    assert!(wait_for(PATIENCE, || bench.await_leader() == "gw-1"));
    let at = nodes.iter().position(|node| node.is_called("gw-1"));
    nodes.remove(at.expect("gw-1")).kill();
    assert!(wait_for(PATIENCE, || bench.await_leader() == "gw-2"));
    nodes.push(bench.process(&bench.node("gw-1", &flags(5))));
    assert!(wait_for(PATIENCE, || bench.await_leader() == "gw-1"));
    let log = nodes.iter().find(|node| node.is_called("gw-2"));
    let log = log.expect("gw-2").log();
    assert!(log.contains("hands the lead over"), "{log}");
}

/// The autopilot gives the vote of a voter that stays silent to an observer, and leaves a voter alone
/// that comes back in time.
#[test]
fn the_autopilot_keeps_three_voters() {
    require_mosquitto!();
    let bench = Bench::start();
    let flags = format!("--autopilot 3 --autopilot-dwell 3s {}", bench.insecure());
    let mut nodes: Vec<Process> = ["gw-1", "gw-2", "gw-3"]
        .map(|id| bench.process(&bench.node(id, &flags)))
        .into();
    bench.await_leader();
    nodes.push(observer(&bench, "spare"));
    let at = nodes.iter().position(|node| node.is_called("gw-3"));
    nodes.remove(at.expect("gw-3")).kill();
    let replaced = || members(&bench) == ["gw-1", "gw-2", "spare"];
    assert!(wait_for(PATIENCE, replaced), "{:?}", members(&bench));
    let told = nodes.iter().any(|node| node.log().contains("autopilot"));
    assert!(told, "it says what it does");
    // Who was let go learns it when it is back.
    let mut late = bench.process(&bench.node("gw-3", &flags));
    assert_eq!(late.exit_code(), Some(7), "{}", late.log());
}

/// Settings are the cluster's: changed once, they hold everywhere, and outlive a restart.
#[test]
fn settings_are_replicated() {
    require_mosquitto!();
    let bench = Bench::start();
    let mut nodes = bench.cluster(&bench.insecure());
    bench.await_leader();
    let flags = bench.insecure();
    let changed = bench
        .run(&format!(
            "settings --lease 2s --lease-reads on -o json {flags}"
        ))
        .expect_exit(0)
        .json();
    assert_eq!(changed["lease_ms"], 2_000);
    assert_eq!(changed["lease_reads"], true);
    bench.run(&format!("put door open {flags}")).expect_exit(0);
    assert_eq!(bench.run(&format!("get door {flags}")).stdout, "open");
    nodes.clear();
    let _nodes = bench.cluster(&flags);
    bench.await_leader();
    let shown = bench
        .run(&format!("settings -o json {flags}"))
        .expect_exit(0)
        .json();
    assert_eq!(shown["lease_ms"], 2_000);
    let wrong = bench.run(&format!("settings --lease 1ms {flags}"));
    assert!(wrong.stderr.contains("10 ms"), "{wrong:?}");
    wrong.expect_exit(1);
}
