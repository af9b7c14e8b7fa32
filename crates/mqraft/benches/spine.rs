//! The product's figures beside their floors and beside etcd, through a real Mosquitto on loopback
//! and real disks.
//!
//! ```console
//! $ cargo bench -p mqraft --bench spine                # commits, then idle
//! $ cargo bench -p mqraft --bench spine -- failover    # or any other of these:
//! ```
//!
//! | | |
//! |---|---|
//! | `commits` | latency and throughput at the leader, at a follower, from other processes |
//! | `failover` | a leader is killed, or hands over: the first commit and the next exclusive leader |
//! | `silence` | a leader vanishes without a word: the first commit after its last heartbeat |
//! | `brokers` | one of two brokers is killed: how long nothing is committed |
//! | `volume` | bytes that the leader sends for each byte committed |
//! | `traffic` | packets a second of thirty idle nodes |
//! | `idle` | what a node costs that does nothing |
//!
//! `--rounds N` makes fewer or more of whatever a figure is made of. Machines are noisy: what is to be
//! compared takes turns within one run, and what is printed are medians over the rounds.

mod brokers;
mod commits;
mod etcd;
mod failover;
mod floor;
mod nodes;
mod process;
mod product;
mod silence;
mod table;
mod traffic;
mod volume;

use testkit::TempDir;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let ["client", url, frames, clients, millis] = words.as_slice() {
        return product::client(url, frames, clients, millis);
    }
    // `cargo test --benches` runs this too; it then only shows that it compiles.
    if !words.contains(&"--bench") || !testkit::mosquitto_or_skip() {
        return;
    }
    let rounds = number_after(&words, "--rounds");
    // Beside the build: the system's temporary directory is often in memory, where a sync is free.
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("create a directory");
    match words[0] {
        "commits" => commits::print(dir.path(), rounds.unwrap_or(5)),
        "failover" => failover::print(dir.path(), rounds.unwrap_or(200)),
        "silence" => silence::print(dir.path(), rounds.unwrap_or(100)),
        "brokers" => brokers::print(dir.path(), rounds.unwrap_or(20)),
        "volume" => volume::print(),
        "traffic" => traffic::print(dir.path(), rounds.unwrap_or(60)),
        "idle" => process::print_idle(dir.path()),
        "--bench" | "--rounds" => {
            commits::print(dir.path(), rounds.unwrap_or(5));
            process::print_idle(dir.path());
        }
        unknown => panic!("no figure is called {unknown}"),
    }
}

fn number_after(words: &[&str], flag: &str) -> Option<usize> {
    let at = words.iter().position(|word| *word == flag)?;
    let number = words.get(at + 1).and_then(|word| word.parse().ok());
    Some(number.unwrap_or_else(|| panic!("{flag} wants a number")))
}
