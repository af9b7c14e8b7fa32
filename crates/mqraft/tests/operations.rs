//! What an operator does with a cluster that matters: saves it, restores it, recovers it, changes its
//! key. Real processes, a real Mosquitto, writers that do not stop.

mod bench;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use testkit::{require_mosquitto, wait_for};

use bench::writer::{Writer, assert_holds};
use bench::{Bench, PATIENCE, Process};

const RAISE: u64 = 1 << 32;

// Save and restore.

/// A snapshot is saved while a client writes. It holds every write acknowledged before, a new cluster
/// begins with it, and nothing that the old one gave out is given out again.
#[test]
fn a_snapshot_saved_under_load_restores_what_was_acknowledged() {
    require_mosquitto!();
    let bench = Bench::start();
    let flags = bench.insecure();
    let nodes = bench.cluster(&flags);
    bench.await_leader();
    let writer = Writer::start(&bench);
    assert!(wait_for(PATIENCE, || writer.acknowledged() > 200));

    let save = |file: &str, words: &str| {
        let before = writer.acknowledged();
        let file = bench.path(file);
        let save = format!("snapshot save {} {words} {flags}", file.display());
        bench.run(&save).expect_exit(0);
        (before, inspect(&bench, &file))
    };
    for (file, words) in [
        ("one", ""),
        ("two", "--from gw-1"),
        ("three", "--from gw-2"),
        ("four", "--from gw-3"),
    ] {
        let (before, saved) = save(file, words);
        assert!(
            saved["revision"].as_u64() >= Some(before),
            "{words}: {saved} after {before}"
        );
        assert_eq!(saved["complete"], true);
    }
    let (_, stale) = save("stale", "--stale --from gw-2");
    assert_eq!(
        (&stale["complete"], &stale["node"]),
        (&Value::from(false), &"gw-2".into())
    );
    let (before, saved) = save("last", "");
    assert_eq!(saved["voters"], serde_json::json!(["gw-1", "gw-2", "gw-3"]));
    assert!(
        saved["state_bytes"].as_u64() > Some(256 << 10),
        "several chunks: {saved}"
    );
    let old = status_of(&bench, "gw-1");
    writer.stop();
    drop(nodes);

    let (file, dir) = (bench.path("last"), bench.path("restored"));
    let (file, dir) = (file.display(), dir.display());
    let restore = format!("snapshot restore {file} --data-dir {dir} --id gw-9 -o json");
    let restored = bench.run(&restore).expect_exit(0).json();
    assert_eq!(
        restored["revision"],
        saved["revision"].as_u64().unwrap() + RAISE
    );
    assert_ne!(restored["formation"], saved["formation"]);
    let again = bench.run(&restore).expect_exit(6);
    assert!(again.stderr.contains("not empty"), "{again:?}");

    let _node = bench.process(&format!("node --id gw-9 --data-dir {dir} {flags}"));
    bench.await_leader();
    assert_holds(&bench, 0..before);
    let put = bench
        .run(&format!("put after restore -o json {flags}"))
        .expect_exit(0);
    // Whoever begins at zero takes terms and indexes that begin so high.
    let dir = bench.path("gw-8").display().to_string();
    let _empty = bench.process(&format!("node --id gw-8 --data-dir {dir} {flags}"));
    let followed = format!("get --stale --from gw-8 after {flags}");
    assert!(wait_for(PATIENCE, || bench.run(&followed).stdout == "restore"));
    bench
        .run(&format!("member add gw-8 {flags}"))
        .expect_exit(0);
    bench.run(&format!("put with two {flags}")).expect_exit(0);
    let new = status_of(&bench, "gw-9");
    assert_eq!(new["voters"], serde_json::json!(["gw-8", "gw-9"]));
    let grown = |what: &str| (new[what].as_u64().unwrap(), old[what].as_u64().unwrap());
    let (term, old_term) = grown("term");
    assert!(
        term > old_term + (1 << 20),
        "tokens are terms: {term} after {old_term}"
    );
    let (index, old_index) = grown("commit_index");
    assert!(index > old_index, "{index} after {old_index}");
    let revision = put.json()["revision"].as_u64();
    assert!(revision > Some(saved["revision"].as_u64().unwrap() + RAISE));
}

/// What is no whole snapshot is refused with a reason, and nothing is made of it.
#[test]
fn a_damaged_snapshot_is_refused_with_a_reason() {
    require_mosquitto!();
    let bench = Bench::start();
    let flags = bench.insecure();
    let _node = bench.process(&bench.lone_node("gw-1"));
    bench.await_leader();
    bench.run(&format!("put door open {flags}")).expect_exit(0);
    let file = bench.path("good");
    let save = format!("snapshot save {} {flags}", file.display());
    bench.run(&save).expect_exit(0);
    bench.run(&save).expect_exit(0); // Once more, in its place.
    assert_eq!(inspect(&bench, &file)["keys"], 1);

    let good = fs::read(&file).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let table = [
        ("absent", None, "No such file"),
        ("flipped", Some(flipped), "checksum"),
        ("cut", Some(good[..good.len() - 1].to_vec()), "bytes"),
        ("other", Some(b"a letter".to_vec()), "not a snapshot"),
        ("empty", Some(Vec::new()), "bytes"),
    ];
    for (name, bytes, word) in table {
        let (file, dir) = (bench.path(name), bench.path("never-made"));
        if let Some(bytes) = bytes {
            fs::write(&file, bytes).unwrap();
        }
        let (file, never) = (file.display(), dir.display());
        let restore = format!("snapshot restore {file} --data-dir {never} --id gw-1");
        for command in [format!("snapshot inspect {file}"), restore] {
            let refused = bench.run(&command).expect_exit(6);
            assert!(refused.stderr.contains(word), "{refused:?}");
            assert!(refused.stderr.contains(&file.to_string()), "{refused:?}");
        }
        assert!(!dir.exists());
    }
    let absent = format!("snapshot save x --from gw-7 --timeout 1s {flags}");
    let absent = bench.run(&absent).expect_exit(4);
    assert!(absent.stderr.contains("gw-7"), "{absent:?}");
    assert!(!bench.path("x").exists() && !bench.path("x.partial").exists());
}

// Loss of the majority.

/// One of three directories is left. What it holds is there again, what only the others held is not,
/// and a node of the old cluster that comes back does not mix with the new one.
#[test]
fn one_directory_of_three_makes_a_cluster_of_what_it_holds() {
    require_mosquitto!();
    let bench = Bench::start();
    let flags = bench.insecure();
    let mut nodes = bench.cluster(&flags);
    bench.await_leader();
    let mut writer = Writer::start(&bench);
    assert!(wait_for(PATIENCE, || writer.acknowledged() > 100));
    let both = writer.stop();
    // Everything acknowledged so far is on the third node too.
    let held = || {
        let index = |node: &str, what: &str| status_of(&bench, node)[what].as_u64();
        index("gw-3", "last_index") >= index("gw-1", "commit_index")
    };
    assert!(wait_for(PATIENCE, held));
    nodes[2].kill();
    writer = Writer::from(&bench, both);
    assert!(wait_for(PATIENCE, || writer.acknowledged() > both + 50));
    let last = writer.stop();
    let live = &mut nodes[..2];
    live.iter_mut().for_each(Process::kill);

    let recover = |from: &str, to: &str| {
        let (from, to) = (bench.path(from), bench.path(to));
        let before = files(&from);
        let (shown, to) = (from.display(), to.display());
        let recover = format!("recover --unsafe --data-dir {shown} --to {to} -o json");
        let said = bench.run(&recover).expect_exit(0).json();
        assert_eq!(files(&from), before, "the directory is only read");
        said
    };
    // Of the two that acknowledged the last writes at least one holds each of them.
    let said = [recover("gw-1", "new-1"), recover("gw-2", "new-2")];
    let fullest = said
        .iter()
        .max_by_key(|said| said["last_index"].as_u64())
        .unwrap();
    let node = fullest["node"].as_str().unwrap().to_owned();
    assert_eq!(fullest["keys"], last);
    assert_eq!(fullest["was_voter"], true);

    let third = recover("gw-3", "new-3");
    assert!(third["keys"].as_u64() >= Some(both) && third["keys"].as_u64() < Some(last));
    let dir = bench.path("new-3").display().to_string();
    {
        let _alone = bench.process(&format!("node --id gw-3 --data-dir {dir} {flags}"));
        bench.await_leader();
        assert_holds(&bench, 0..both);
        let lost = format!("get key-{} {flags}", last - 1);
        bench.run(&lost).expect_exit(1);
    }

    let dir = bench.path(&node.replace("gw", "new")).display().to_string();
    let new = bench.process(&format!("node --id {node} --data-dir {dir} {flags}"));
    bench.await_leader();
    assert_holds(&bench, 0..last);
    let term = status_of(&bench, &node)["term"].as_u64();
    assert!(term > fullest["term"].as_u64().map(|term| term + (1 << 20)));

    // Two of the old cluster come back under their old directories, and are a majority of it.
    let old: Vec<_> = ["gw-1", "gw-2", "gw-3"]
        .into_iter()
        .filter(|id| *id != node)
        .map(|id| bench.process(&bench.node(id, &flags)))
        .collect();
    assert!(new.await_log("of another cluster"), "{}", new.log());
    assert!(old[0].await_log("of another cluster"), "{}", old[0].log());
    assert!(wait_for(PATIENCE, || old
        .iter()
        .any(|old| old.log().contains("leads term"))));
    let still = status_of(&bench, &node);
    assert_eq!(
        still["term"].as_u64(),
        term,
        "no vote of theirs counts: {still}"
    );
    assert_eq!(still["voters"], serde_json::json!([node]));
}

/// Whoever does not say that it is unsafe is told why it is; a directory in use, or with nothing in
/// it, is refused.
#[test]
fn recover_is_refused_unless_it_is_meant() {
    require_mosquitto!();
    let bench = Bench::start();
    let node = bench.process(&bench.lone_node("gw-1"));
    bench.await_leader();
    let (from, to) = (bench.path("gw-1"), bench.path("new"));
    let recover = |words: &str| {
        let (from, to) = (from.display(), to.display());
        bench.run(&format!("recover {words} --data-dir {from} --to {to}"))
    };
    let refused = recover("").expect_exit(2);
    assert!(
        refused.stderr.contains("lost") && refused.stderr.contains("--unsafe"),
        "{refused:?}"
    );
    let refused = recover("--unsafe").expect_exit(6);
    assert!(refused.stderr.contains("in use"), "{refused:?}");
    assert!(!to.exists());
    drop(node);

    let never = bench.path("never-formed").display().to_string();
    let flags = bench.insecure();
    let waiting = format!("node --id a --voters a,b,c --data-dir {never} {flags}");
    let waiting = bench.process(&waiting);
    assert!(waiting.await_log("connected"), "{}", waiting.log());
    drop(waiting);
    let to = bench.path("of-nothing").display().to_string();
    let refused = format!("recover --unsafe --data-dir {never} --to {to}");
    let refused = bench.run(&refused).expect_exit(6);
    assert!(refused.stderr.contains("nothing in it"), "{refused:?}");
    let absent = format!("recover --unsafe --data-dir {never}-absent --to {to}");
    bench.run(&absent).expect_exit(6);
    assert!(!Path::new(&to).exists());

    let text = recover("--unsafe --id gw-5").expect_exit(0).stdout;
    for words in [
        "nothing acknowledged is lost",
        "known as committed",
        "gw-5",
        "begins at",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

// The cluster key.

/// Three nodes, each with a file of its own, and a client that writes all the time: one key follows
/// on another without a failed write, an election or a frame that is refused. In the end the old key
/// opens nothing.
#[test]
fn a_key_is_rotated_under_load_without_an_outage() {
    require_mosquitto!();
    let bench = Bench::start();
    let key = bench.path("key");
    let shown = key.display();
    bench.run(&format!("keygen {shown}")).expect_exit(0);
    let old = bench.path("old-key");
    fs::copy(&key, &old).unwrap();
    let ids = ["gw-1", "gw-2", "gw-3"];
    let file_of = |id: &str| bench.path(&format!("{id}.key"));
    let flags = format!("--broker {} --key-file {shown}", bench.url());
    let nodes = ids.map(|id| {
        fs::copy(&key, file_of(id)).unwrap();
        let file = file_of(id).display().to_string();
        let flags = format!("--broker {} --key-file {file}", bench.url());
        (id, bench.process(&bench.node(id, &flags)))
    });
    let status = || bench.run(&format!("status -o json {flags}")).json();
    let writes = format!("put begun yes {flags}");
    assert!(wait_for(PATIENCE, || bench.run(&writes).code == Some(0)));
    let writer = Writer::with_key(&bench, &key);
    let goes_on = || {
        let before = writer.acknowledged();
        assert!(wait_for(PATIENCE, || writer.acknowledged() > before + 20));
    };
    goes_on();
    let before = status()["nodes"][0]["term"].as_u64().unwrap();

    let mut seen = vec![keys_of(&bench, &flags)];
    for step in ["--add", "--promote", "--finish"] {
        let rotate = format!("key rotate --key-file {shown} {step}");
        bench.run(&rotate).expect_exit(0);
        let again = bench.run(&rotate).expect_exit(1);
        assert!(
            !again.stderr.is_empty(),
            "each step is taken once: {again:?}"
        );
        for (id, node) in &nodes {
            fs::copy(&key, file_of(id)).unwrap();
            node.signal(Signal::HUP);
            goes_on();
        }
        writer.set_key(&key);
        goes_on();
        let wanted = fs::read_to_string(&key).unwrap().lines().count();
        let arrived = || {
            let keys = keys_of(&bench, &flags);
            keys.len() == 3 && keys.iter().all(|k| *k == keys[0] && k.len() == wanted)
        };
        assert!(wait_for(PATIENCE, arrived), "{:?}", keys_of(&bench, &flags));
        seen.push(keys_of(&bench, &flags));
    }
    let one_node: Vec<&Vec<String>> = seen.iter().map(|keys| &keys[0]).collect();
    let (old_id, new_id) = (one_node[0][0].clone(), one_node[3][0].clone());
    assert_eq!(one_node[1], &[old_id.clone(), new_id.clone()]);
    assert_eq!(one_node[2], &[new_id.clone(), old_id.clone()]);
    assert_ne!(old_id, new_id);
    let longest = Duration::from_micros(writer.longest.load(Ordering::Relaxed));
    let written = writer.stop();
    eprintln!("{written} writes, the longest took {longest:?}");
    assert!(
        longest < Duration::from_secs(1),
        "no write waits for an election: {longest:?}"
    );
    assert_eq!(
        status()["nodes"][0]["term"].as_u64(),
        Some(before),
        "no election"
    );
    for (id, node) in &nodes {
        let log = node.log();
        // Before it was of the cluster it may have heard those who were already.
        let (_, joined) = log
            .split_once("of the cluster with voters")
            .expect("it joined");
        assert!(
            !joined.contains("ignored a message"),
            "{id} refused something: {log}"
        );
    }

    let get = |file: &Path| {
        format!(
            "get key-0 --broker {} --key-file {}",
            bench.url(),
            file.display()
        )
    };
    let refused = format!("{} --timeout 1s", get(&old));
    bench.run(&refused).expect_exit(4);
    assert!(
        nodes[0].1.await_log("sealed under another key"),
        "{}",
        nodes[0].1.log()
    );
    bench.run(&get(&key)).expect_exit(0);
    let last = format!("get key-{} {flags}", written - 1);
    bench.run(&last).expect_exit(0);
}

/// A key file that cannot be used leaves the keys as they are, and the node says why.
#[test]
fn a_node_keeps_its_keys_when_the_file_is_no_good() {
    require_mosquitto!();
    let bench = Bench::start();
    let key = bench.path("key");
    bench
        .run(&format!("keygen {}", key.display()))
        .expect_exit(0);
    let good = fs::read_to_string(&key).unwrap();
    let flags = format!("--broker {} --key-file {}", bench.url(), key.display());
    let lone = bench.lone_node_without_flags("gw-1");
    let node = bench.process(&format!("{lone} {flags}"));
    assert!(node.await_log("leads term"), "{}", node.log());
    fs::write(&key, "mqraft-key-1:beef").unwrap();
    node.signal(Signal::HUP);
    assert!(
        node.await_log("the keys stay as they were"),
        "{}",
        node.log()
    );
    fs::write(&key, good).unwrap();
    let put = format!("put door open {flags}");
    assert!(wait_for(PATIENCE, || bench.run(&put).code == Some(0)));
}

/// The keys that each node accepts, first the one that it seals with.
fn keys_of(bench: &Bench, flags: &str) -> Vec<Vec<String>> {
    let answer = bench.run(&format!("key status -o json {flags}"));
    let nodes = serde_json::from_str::<Value>(&answer.stdout).unwrap_or_default();
    let nodes = nodes["nodes"].as_array().cloned().unwrap_or_default();
    let keys = |node: &Value| serde_json::from_value(node["keys"].clone()).expect("ids");
    nodes.iter().map(keys).collect()
}

#[track_caller]
fn inspect(bench: &Bench, file: &Path) -> Value {
    let inspect = format!("snapshot inspect {} -o json", file.display());
    bench.run(&inspect).expect_exit(0).json()
}

/// What a node says of itself, once it answers.
#[track_caller]
fn status_of(bench: &Bench, node: &str) -> Value {
    let mut status = Value::Null;
    let answers = || {
        let answer = bench.run(&format!("status -o json {}", bench.insecure()));
        let nodes = serde_json::from_str::<Value>(&answer.stdout).unwrap_or_default();
        let nodes = nodes["nodes"].as_array().cloned().unwrap_or_default();
        status = nodes
            .into_iter()
            .find(|status| status["node"] == node)
            .unwrap_or_default();
        !status.is_null()
    };
    assert!(wait_for(PATIENCE, answers), "{node} does not answer");
    status
}

/// Every file of a directory, byte for byte.
fn files(dir: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let files = fs::read_dir(dir).expect("a directory").flatten();
    let file = |file: fs::DirEntry| (file.file_name(), fs::read(file.path()).expect("a file"));
    files.map(file).collect()
}
