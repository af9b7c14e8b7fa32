//! The legacy fleet and Home Assistant, from the command line.

use std::process::{Command, Output};

use testkit::{Mosquitto, require_mosquitto};

fn mqraft(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mqraft"));
    command.args(args).output().expect("mqraft runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The device of a cluster can be removed when none of its nodes runs any more, and more than once.
#[test]
fn a_device_is_removed() {
    require_mosquitto!();
    let broker = Mosquitto::start();
    let url = broker.url();
    let cluster = ["--broker", &url, "--cluster", "plant-a", "--insecure"];
    for _ in 0..2 {
        let removed = mqraft(&[&["homeassistant", "remove"], &cluster[..]].concat());
        assert!(removed.status.success(), "{removed:?}");
        let said = text(&removed.stdout);
        assert_eq!(said, "plant-a is removed from Home Assistant\n");
    }
    let log = broker.log();
    let device = "homeassistant/device/raft-plant-a-";
    assert!(log.contains(device), "{log}");
}

/// A prefix that cannot stand in a topic is named at the start.
#[test]
fn a_wrong_prefix_is_named() {
    let dir = testkit::temp_dir();
    let config = dir.path().join("node.toml");
    std::fs::write(&config, "[legacy]\nprefix = 'Plant +'\n").expect("written");
    let config = config.to_str().expect("text");
    let data = dir.path().join("data");
    let node = [
        "node",
        "--insecure",
        "--broker",
        "mqtt://127.0.0.1:1",
        "--id",
        "gw-1",
    ];
    let node = [&node[..], &["--voters", "gw-1", "--data-dir"]].concat();
    let node = [&node[..], &[data.to_str().expect("text")]].concat();
    let cases = [
        (
            ["--config", config],
            "legacy prefix \"Plant +\": it holds no '+'",
        ),
        (
            ["--homeassistant-prefix", "$x"],
            "Home Assistant prefix \"$x\": it does not begin",
        ),
    ];
    for (wrong, why) in cases {
        let refused = mqraft(&[&node[..], &wrong].concat());
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        let said = text(&refused.stderr);
        assert!(said.contains(why), "{said}");
    }
    assert!(!data.exists(), "nothing was made");
}
