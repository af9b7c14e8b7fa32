//! Real processes, a real broker, real kills: what was acknowledged is there at the end, on every
//! node, and no term had two leaders.
//!
//! Each round breaks one thing at random (kill -9 or SIGSTOP of a node, kill or SIGSTOP of the
//! broker) while clients write, and ends when a write has been acknowledged again. CI runs a few
//! rounds of each story; `just chaos` runs 200 in all: `MQRAFT_CHAOS_ROUNDS` is the number for
//! each of the four stories, `MQRAFT_CHAOS_SEED` repeats a run's choices.

mod cluster;
mod wipe;
mod writers;

use std::time::{Duration, Instant};

use cluster::{Cluster, Transport};
use writers::Writers;

/// By then a write must have been acknowledged after a fault was healed.
const PROGRESS: Duration = Duration::from_secs(60);

/// By then all nodes must hold the same.
const CONVERGENCE: Duration = Duration::from_secs(60);

#[test]
fn three_nodes_plain() {
    story(3, Transport::Plain, 1);
}

#[test]
fn five_nodes_plain() {
    story(5, Transport::Plain, 2);
}

#[test]
fn three_nodes_on_two_brokers() {
    story(3, Transport::TwoBrokers, 4);
}

#[test]
fn three_nodes_with_client_certificates() {
    story(3, Transport::MutualTls, 3);
}

fn story(nodes: usize, transport: Transport, salt: u64) {
    if !testkit::mosquitto_or_skip() {
        return;
    }
    let rounds = from_environment("MQRAFT_CHAOS_ROUNDS").unwrap_or(6);
    let seed = from_environment("MQRAFT_CHAOS_SEED").unwrap_or(0x5eed) ^ (salt << 32);
    println!("{nodes} nodes, {transport:?}, {rounds} rounds, seed {seed:#x}");
    let mut choices = Choices(seed);
    let mut cluster = Cluster::start(nodes, transport);
    let writers = Writers::start(&cluster, 4);
    assert!(
        writers.wait_for_progress(PROGRESS),
        "no first write\n{}",
        cluster.logs()
    );

    for round in 1..=rounds {
        let started = Instant::now();
        let fault = cluster.break_something(&mut choices);
        let progressed = writers.wait_for_progress(PROGRESS);
        println!(
            "round {round}: {fault}; writing again after {:?}",
            started.elapsed()
        );
        assert!(
            progressed,
            "no write after round {round}: {fault}\n{}",
            cluster.logs()
        );
    }

    let written = writers.stop();
    println!(
        "{} acknowledged, {} of unknown outcome, {} unsent for want of a leader",
        written.acknowledged(),
        written.unknown(),
        written.unsent()
    );
    assert!(written.acknowledged() > 0);
    if let Err(difference) = cluster.converge(CONVERGENCE) {
        panic!(
            "the nodes do not converge: {difference}\n{}",
            cluster.logs()
        );
    }
    let lost = written.missing(&cluster);
    assert!(
        lost.is_empty(),
        "acknowledged but not there: {lost:?}\n{}",
        cluster.logs()
    );
    let leaders = cluster.leaders_by_term();
    println!("{} terms had a leader", leaders.len());
    for (term, names) in leaders {
        assert_eq!(
            names.len(),
            1,
            "term {term} had the leaders {names:?}\n{}",
            cluster.logs()
        );
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")),
    )
}

/// Seeded choices, so that a run can be repeated as far as real processes allow.
pub(crate) struct Choices(u64);

impl Choices {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
