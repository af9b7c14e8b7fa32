//! Two data nodes and a witness, as real processes at a real Mosquitto: any one of them may go.

mod bench;

use std::fs;
use std::time::Duration;

use bench::writer::{Writer, assert_holds, runtime};
use bench::{Bench, PATIENCE, Process};
use raft_over_mqtt::{Mqtt, Remote};
use serde_json::Value;
use testkit::{require_mosquitto, wait_for};

const SITE: &str = "a,b,w";

fn start(bench: &Bench, id: &str) -> Process {
    let program = if id == "w" { "witness" } else { "node" };
    let dir = bench.path(id).display().to_string();
    bench.process(&format!(
        "{program} -o json --id {id} --voters {SITE} --data-dir {dir} {}",
        bench.insecure()
    ))
}

/// The three, formed: a, b and w.
fn site(bench: &Bench) -> Vec<Process> {
    let nodes = SITE.split(',').map(|id| start(bench, id)).collect();
    bench.await_leader();
    nodes
}

/// What a node said of itself last, on its standard output.
fn last_status(process: &Process) -> Option<Value> {
    let said = process.stdout();
    let line = said.lines().next_back()?;
    serde_json::from_str(line).ok()
}

fn is_leader(process: &Process) -> bool {
    last_status(process).is_some_and(|status| status["is_leader"] == true)
}

/// What a witness never said.
fn assert_never_led(witness: &Process) {
    let said = witness.stdout();
    assert!(said.contains("\"role\":\"witness\""), "{said}");
    assert!(!said.contains("\"is_leader\":true"), "{said}");
}

/// b is down while a and the witness commit. b returns, and at once a is killed and its data destroyed:
/// nothing that was acknowledged is lost, and b leads.
#[test]
fn nothing_acknowledged_is_lost() {
    require_mosquitto!();
    let bench = Bench::start();
    let mut nodes = site(&bench);
    let (stays, goes) = match bench.await_leader().as_str() {
        "a" => (1, 0),
        _ => (0, 1),
    };
    let name = ["a", "b"];
    nodes[stays].kill();
    let writer = Writer::start(&bench);
    assert!(wait_for(PATIENCE, || writer.acknowledged() > 300));
    let written = writer.stop();
    nodes[stays] = start(&bench, name[stays]);
    nodes[goes].kill();
    fs::remove_dir_all(bench.path(name[goes])).expect("its data");
    assert!(
        wait_for(PATIENCE, || is_leader(&nodes[stays])),
        "{}",
        nodes[stays].log()
    );
    assert_holds(&bench, 0..written);
    let writer = Writer::from(&bench, written);
    assert!(wait_for(PATIENCE, || writer.acknowledged() > written + 50));
    let written = writer.stop();
    assert_holds(&bench, 0..written);
    // It led for as long as it took to hand over, and claimed nothing.
    assert!(nodes[2].log().contains("leads term"), "{}", nodes[2].log());
    assert_never_led(&nodes[2]);
}

/// Any one of the three is killed under load: no write fails, and a data node leads for certain.
#[test]
fn any_one_may_go() {
    require_mosquitto!();
    for gone in 0..3 {
        let bench = Bench::start();
        let mut nodes = site(&bench);
        let writer = Writer::start(&bench);
        assert!(wait_for(PATIENCE, || writer.acknowledged() > 100));
        nodes[gone].kill();
        let then = writer.acknowledged();
        assert!(wait_for(PATIENCE, || writer.acknowledged() > then + 100));
        let written = writer.stop();
        let leads = || (0..2).any(|n| n != gone && is_leader(&nodes[n]));
        assert!(wait_for(PATIENCE, leads), "nobody leads without {gone}");
        assert_holds(&bench, 0..written);
        if gone != 2 {
            assert_never_led(&nodes[2]);
        }
    }
}

/// The witness alone tells nothing of what it holds, neither linearizably nor as it stands there.
#[test]
fn the_witness_alone_answers_no_read() {
    require_mosquitto!();
    let bench = Bench::start();
    let mut nodes = site(&bench);
    let flags = bench.insecure();
    bench.run(&format!("put k v {flags}")).expect_exit(0);
    nodes[0].kill();
    nodes[1].kill();
    for read in ["get k", "get k --stale"] {
        let answer = bench.run(&format!("{read} --timeout 5s {flags}"));
        assert_ne!(answer.code, Some(0), "{answer:?}");
        assert!(!answer.stdout.contains('v'), "{answer:?}");
    }
    let status = bench.run(&format!("status -o json {flags}")).expect_exit(0);
    assert!(status.stdout.contains("\"witness\""), "{status:?}");
    assert!(!wait_for(Duration::from_secs(3), || is_leader(&nodes[2])));
    assert_never_led(&nodes[2]);
}

/// Started as something else than what its cluster knows it as, a node ends and says what to do.
#[test]
fn a_witness_stays_a_witness() {
    require_mosquitto!();
    let bench = Bench::start();
    let mut nodes = site(&bench);
    nodes[2].kill();
    let dir = bench.path("w").display().to_string();
    let words = format!(
        "node --id w --voters {SITE} --data-dir {dir} {}",
        bench.insecure()
    );
    let answer = bench.run(&words);
    assert!(answer.code.is_some_and(|code| code != 0), "{answer:?}");
    assert!(answer.stderr.contains("mqraft witness"), "{answer:?}");
}

/// What a process takes of memory now, and took at most, in MiB.
fn memory(process: &Process) -> (u64, u64) {
    let status = format!("/proc/{}/status", process.child.id());
    let status = fs::read_to_string(status).expect("it runs, on Linux");
    let mib = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.and_then(|kib| kib.parse::<u64>().ok()).expect(name) / 1_024
    };
    (mib("VmRSS"), mib("VmHWM"))
}

/// `count` writes of `bytes` each by 32 clients, under as many keys as there are writes, at most
/// `keys`.
fn fill(bench: &Bench, count: usize, keys: usize, bytes: usize) {
    const CLIENTS: usize = 32;
    let url = bench.url();
    runtime().block_on(async {
        let write = |client: usize| {
            let mqtt = Mqtt::new(&url).expect("a URL");
            async move {
                let connected = Remote::connect(mqtt, "raft", "default", None, PATIENCE).await;
                let mut remote = connected.expect("a broker");
                for n in (client..count).step_by(CLIENTS) {
                    let key = format!("fill-{bytes}-{}", n % keys);
                    remote.put(key, vec![b'v'; bytes]).await.expect("written");
                }
                remote.close().await;
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|n| tokio::spawn(write(n))).collect();
        for client in clients {
            client.await.expect("it ends");
        }
    });
}

/// What docs/operations.md says of a witness's memory:
/// `cargo test --release -p mqraft --test witness memory -- --ignored --nocapture`.
#[test]
#[ignore = "it measures, and takes a minute"]
fn memory_of_a_witness() {
    require_mosquitto!();
    let bench = Bench::start();
    let nodes = site(&bench);
    let tell = |when: &str| {
        for (node, name) in nodes.iter().zip(["a", "b", "witness"]) {
            let (now, most) = memory(node);
            println!("{when:32} {name:8} {now:4} MiB, at most {most} MiB");
        }
    };
    tell("idle");
    fill(&bench, 100_000, 1_000, 64);
    tell("after 100,000 writes of 64 B");
    fill(&bench, 320, 320, 64 << 10);
    tell("with a state of 20 MiB");
    fill(&bench, 3_200, 320, 64 << 10);
    tell("after 200 MiB of writes to it");
    let size = fs::read_dir(bench.path("w")).expect("its data");
    let size: u64 = size
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    println!("the witness's data directory: {} MiB", size >> 20);
}
