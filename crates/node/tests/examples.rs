//! The examples as they are written, against a real Mosquitto: what each prints is what it says.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use testkit::{Mosquitto, require_mosquitto};

/// Runs an example to its end and returns what it printed.
fn run(name: &str, broker: &Mosquitto) -> String {
    let example = built().join(name);
    let output = Command::new(&example).arg(broker.url()).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", example.display()));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {said}{wrong}");
    println!("{said}");
    said
}

/// Where the examples are. Whoever runs all tests has built them with the same library; whoever runs
/// these alone may not have, and then they are built now.
fn built() -> &'static PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let test = std::env::current_exe().expect("a path");
        let profile = test
            .parent()
            .and_then(|deps| deps.parent())
            .expect("a directory");
        let (target, examples) = (
            profile.parent().expect("a directory"),
            profile.join("examples"),
        );
        let changed = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
        let is_built = ["election", "lock", "watch", "singleton", "work"]
            .iter()
            .all(|name| {
                let source = changed(&sources.join(format!("{name}.rs")));
                changed(&examples.join(name)) >= source && source.is_some()
            });
        if !is_built {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args([
                "build",
                "--quiet",
                "--offline",
                "--examples",
                "--target-dir",
            ]);
            cargo.arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
            if profile.ends_with("release") {
                cargo.arg("--release");
            }
            assert!(cargo.status().expect("cargo runs").success(), "they build");
        }
        examples
    })
}

/// The number at the end of a line that contains `words`.
fn number_after<'a>(said: &'a str, words: &'a str) -> impl Iterator<Item = u64> + 'a {
    let lines = said.lines().filter(move |line| line.contains(words));
    lines.map(|line| {
        line.rsplit(' ')
            .next()
            .and_then(|n| n.parse().ok())
            .expect("a number")
    })
}

#[test]
fn election() {
    require_mosquitto!();
    let said = run("election", &Mosquitto::start());
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(
        lines[0].starts_with("gw-1 acts") && !lines[1].starts_with("gw-1"),
        "{said}"
    );
    assert!(
        number_after(&said, "token").is_sorted_by(|a, b| a < b),
        "{said}"
    );
}

#[test]
fn lock() {
    require_mosquitto!();
    let said = run("lock", &Mosquitto::start());
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 6, "{said}");
    for turn in lines.chunks(2) {
        let who = turn[0].split(' ').next();
        assert!(
            turn[1].ends_with("is done") && turn[1].split(' ').next() == who,
            "{said}"
        );
    }
    assert!(
        number_after(&said, "token").is_sorted_by(|a, b| a < b),
        "{said}"
    );
}

#[test]
fn watch() {
    require_mosquitto!();
    let said = run("watch", &Mosquitto::start());
    let expected =
        "door/1 is shut\ndoor/1 became open at revision 2\ndoor/1 is gone since revision 3\n";
    assert_eq!(without_revisions(&said), without_revisions(expected));
}

/// Presence is part of the state: how many revisions came before depends on who came when.
fn without_revisions(said: &str) -> Vec<&str> {
    let lines = said.lines();
    lines
        .map(|line| line.split(" revision ").next().unwrap_or(line))
        .collect()
}

#[test]
fn singleton() {
    require_mosquitto!();
    let said = run("singleton", &Mosquitto::start());
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 8, "{said}");
    let site = |line: &str| line.split([' ', ':']).next().map(str::to_owned);
    assert!(
        lines[..4].iter().all(|line| site(line) == site(lines[0])),
        "{said}"
    );
    assert!(
        lines[4..].iter().all(|line| site(line) == site(lines[4])),
        "{said}"
    );
    assert!(
        number_after(&said, "token").is_sorted_by(|a, b| a < b),
        "{said}"
    );
    assert!(number_after(&said, "step ").eq(1..=6), "{said}");
}

#[test]
fn work() {
    require_mosquitto!();
    let said = run("work", &Mosquitto::start());
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines[0],
        "a alone: line-1 line-2 line-3 line-4 line-5 line-6"
    );
    let shared = [lines[1], lines[2]].map(|line| line.split(' ').skip(3).collect::<Vec<_>>());
    let mut all = shared.concat();
    all.sort_unstable();
    assert_eq!(
        all,
        ["line-1", "line-2", "line-3", "line-4", "line-5", "line-6"],
        "{said}"
    );
    assert!(shared.iter().all(|part| !part.is_empty()), "{said}");
    assert_eq!(lines[3], "a again alone: 6 lines, revision grew: true");
}
