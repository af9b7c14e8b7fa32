//! A crate earns its keep by forbidding an import: what ARCHITECTURE.md promises, checked.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Our own crates by directory, and which of ours each may depend on in production.
const LAYERS: [(&str, &str, &[&str]); 8] = [
    ("raft", "raft", &[]),
    ("replica", "replica", &["raft"]),
    ("store", "store", &["raft"]),
    ("mqtt", "mqtt", &[]),
    (
        "node",
        "raft-over-mqtt",
        &["mqtt", "raft", "replica", "store"],
    ),
    ("mqraft", "mqraft", &["raft-over-mqtt"]),
    ("sim", "sim", &["raft", "replica", "store"]),
    ("testkit", "testkit", &["mqtt"]),
];

/// All that the pure crates may import from elsewhere: data and arithmetic.
const PURE: [(&str, &[&str]); 2] = [
    ("raft", &["bytes", "minicbor"]),
    (
        "replica",
        &[
            "base64",
            "bytes",
            "crc32fast",
            "minicbor",
            "ring",
            "serde",
            "serde_json",
            "thiserror",
        ],
    ),
];

/// What would give a pure crate a clock, chance, a thread, a file or a socket of its own.
const IMPURE: [&str; 13] = [
    "Instant::now",
    "SystemTime",
    "std::thread",
    "std::fs",
    "std::net",
    "std::env::",
    "std::process",
    "std::sync::mpsc",
    "HashMap",
    "HashSet",
    "RandomState",
    "ring::rand",
    "SystemRandom",
];

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("below crates/")
        .to_owned()
}

/// The production dependencies of the crate in `dir`, by name.
fn dependencies(dir: &str) -> Vec<String> {
    let manifest = fs::read_to_string(crates().join(dir).join("Cargo.toml")).expect("a manifest");
    let manifest: toml::Table = manifest.parse().expect("TOML");
    let tables = [
        manifest.get("dependencies"),
        manifest.get("build-dependencies"),
    ];
    tables
        .into_iter()
        .flatten()
        .filter_map(toml::Value::as_table)
        .flat_map(|t| t.keys().cloned())
        .collect()
}

#[test]
fn every_crate_has_its_place() {
    let mut found: Vec<String> = fs::read_dir(crates())
        .expect("crates/")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("a name")
        })
        .collect();
    let mut known: Vec<&str> = LAYERS.iter().map(|(dir, _, _)| *dir).collect();
    found.sort();
    known.sort_unstable();
    assert_eq!(found, known);
}

#[test]
fn no_crate_imports_what_its_layer_forbids() {
    let packages: BTreeMap<&str, &str> = LAYERS
        .iter()
        .map(|(dir, package, _)| (*package, *dir))
        .collect();
    for (dir, _, allowed) in LAYERS {
        for dependency in dependencies(dir) {
            let ours = packages.contains_key(dependency.as_str());
            assert!(
                !ours || allowed.contains(&dependency.as_str()),
                "crates/{dir} must not import {dependency}"
            );
        }
    }
}

#[test]
fn the_mqtt_library_is_used_by_one_crate_only() {
    for (dir, _, _) in LAYERS.iter().filter(|(dir, _, _)| *dir != "mqtt") {
        for dependency in dependencies(dir) {
            let speaks_mqtt = dependency.starts_with("rumqtt") || dependency == "mqtt5";
            assert!(!speaks_mqtt, "crates/{dir} imports {dependency}");
        }
    }
}

#[test]
fn the_pure_crates_import_data_only() {
    for (dir, allowed) in PURE {
        let ours = LAYERS
            .iter()
            .find(|(layer, _, _)| *layer == dir)
            .expect("a layer")
            .2;
        for dependency in dependencies(dir) {
            let name = dependency.as_str();
            assert!(
                allowed.contains(&name) || ours.contains(&name),
                "crates/{dir} imports {name}"
            );
        }
    }
}

/// The lint in each pure crate's clippy.toml says the same, to whoever writes the line.
#[test]
fn the_pure_crates_read_no_clock_and_draw_no_chance() {
    for (dir, _) in PURE {
        assert!(crates().join(dir).join("clippy.toml").exists());
        for path in sources(&crates().join(dir).join("src")) {
            let text = fs::read_to_string(&path).expect("a source file");
            for word in IMPURE {
                let line = text.lines().position(|line| line.contains(word));
                assert_eq!(line, None, "{} uses {word}", path.display());
            }
        }
    }
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("src/") {
        let path = entry.expect("an entry").path();
        // What only tests use may read their golden files.
        if path.is_dir() && path.file_name().is_some_and(|name| name != "tests") {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
