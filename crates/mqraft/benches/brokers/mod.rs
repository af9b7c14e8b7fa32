//! One of two brokers killed under load: how long nothing is committed.
//!
//! Three nodes and a client at the leader use both brokers at once; the client puts one value after the
//! other. A broker is killed, and started again once that has been borne; the next kill is the other's
//! turn. The figure is the longest time between two commits from just before a kill to a second after
//! it, beside what the same client sees while both brokers run.

use std::path::Path;
use std::time::Duration;

use testkit::Mosquitto;

use crate::failover::row;
use crate::product::{Cluster, Frames};
use crate::table::{self, Table, milliseconds};

/// How long the client writes undisturbed before each kill, and after it.
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(1);

/// What it takes until everyone has found a broker that is back: they try every 5 s at worst.
const BACK: Duration = Duration::from_secs(6);

/// Measures so many kills and prints.
pub(crate) fn print(dir: &Path, kills: usize) {
    let broker = || Mosquitto::builder().line("log_type none").start();
    let mut brokers = [broker(), broker()];
    let urls = brokers.each_ref().map(Mosquitto::url);
    let cluster = Cluster::start_on(&urls, dir, 3, Frames::Sealed);
    cluster.gaps(BEFORE);
    let (mut ordinary, mut ordinary_longest, mut longest) = (Vec::new(), Vec::new(), Vec::new());
    for kill in 0..kills {
        let victim = &mut brokers[kill % 2];
        let undisturbed = cluster.gaps(BEFORE);
        ordinary_longest.extend(undisturbed.iter().max());
        ordinary.extend(undisturbed);
        let gaps = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                victim.kill();
            });
            cluster.gaps(AFTER)
        });
        longest.extend(gaps.into_iter().max());
        // The leader lives in this thread: it must not wait for a broker.
        std::thread::scope(|scope| {
            scope.spawn(|| victim.restart());
            cluster.gaps(BACK);
        });
    }
    let [p99] = table::percentiles(ordinary.clone(), [99]);
    let [worst] = table::percentiles(longest.clone(), [100]);
    let head = ["p50 ms", "p90", "p99", "longest"].map(str::to_owned);
    let mut table = Table::new(head.into());
    row(&mut table, "between commits, both brokers up", ordinary);
    row(&mut table, "longest in such a second", ordinary_longest);
    row(&mut table, "longest around a broker's kill", longest);
    println!("{kills} kills");
    table.print();
    let beyond = worst.saturating_sub(p99);
    println!(
        "the longest is {} ms beyond the ordinary p99",
        milliseconds(beyond)
    );
}
