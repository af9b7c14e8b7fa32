//! A seeded world for nodes to live in: brokers, links, disks and clocks that fail, and a judge.
//!
//! Everything runs in one thread on virtual time, the same code as in production
//! ([`replica::Replica`], [`replica::Client`]), and a seed replays bit for bit:
//!
//! ```text
//! cargo run --release -p sim -- --seed 42 --trace      one seed, told event by event
//! cargo run --release -p sim -- --seeds 0..1000        a campaign
//! ```
//!
//! - `world.rs`: time, who there is, and what a run consists of;
//! - `broker.rs`, `node.rs`, `disk.rs`, `clock.rs`, `client.rs`: what nodes live in;
//! - `faults.rs`: what goes wrong;
//! - `check.rs`, `history.rs`: what must hold anyway;
//! - `event.rs`, `rng.rs`, `seal.rs`, `trace.rs`: the order of events, chance, what sealed frames
//!   say, and the tale.
//!
//! What is deliberately absent: threads, sockets, files and real time.

mod broker;
mod check;
mod client;
mod clock;
mod disk;
mod event;
mod faults;
mod history;
#[cfg(feature = "porcupine")]
mod linearizability;
mod node;
mod rng;
mod seal;
mod trace;
mod world;

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::world::{Scale, Summary, World};

const USAGE: &str = "usage: sim --seed N [--trace] [--seconds S]
       sim --seeds A..B [--jobs J] [--seconds S]

  --seed N      lives through one seed
  --trace       tells every event of it
  --seeds A..B  lives through all seeds from A up to, not including, B
  --jobs J      so many at a time (default 2)
  --seconds S   virtual seconds of faults before all heals (default 120)";

struct Arguments {
    seeds: Range<u64>,
    single: bool,
    jobs: u64,
    scale: Scale,
}

fn main() -> ExitCode {
    let Some(arguments) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if arguments.single {
        let began = Instant::now();
        let summary = World::run(arguments.seeds.start, arguments.scale);
        Campaign::of(summary).report(began.elapsed());
        return ExitCode::SUCCESS;
    }
    let began = Instant::now();
    let campaign = run(&arguments);
    campaign.report(began.elapsed());
    match campaign.failed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn parse(arguments: impl Iterator<Item = String>) -> Option<Arguments> {
    let mut arguments = arguments.peekable();
    let (mut seeds, mut single, mut jobs) = (None, false, 2);
    let mut scale = Scale {
        seconds: 120,
        trace: false,
        bench: false,
    };
    while let Some(flag) = arguments.next() {
        match flag.as_str() {
            "--seed" => {
                let seed: u64 = arguments.next()?.parse().ok()?;
                (seeds, single) = (Some(seed..seed + 1), true);
            }
            "--seeds" => {
                let range = arguments.next()?;
                let (from, to) = range.split_once("..")?;
                seeds = Some(from.parse().ok()?..to.parse().ok()?);
            }
            "--jobs" => jobs = arguments.next()?.parse().ok()?,
            "--seconds" => scale.seconds = arguments.next()?.parse().ok()?,
            "--trace" => scale.trace = true,
            "--bench" => scale.bench = true,
            _ => return None,
        }
    }
    Some(Arguments {
        seeds: seeds?,
        single,
        jobs,
        scale,
    })
}

/// What came of many seeds.
#[derive(Default)]
struct Campaign {
    seeds: u64,
    total: Summary,
    /// In how many seeds each fault fired.
    in_seeds: BTreeMap<&'static str, u64>,
    failed: BTreeMap<u64, String>,
}

impl Campaign {
    fn of(summary: Summary) -> Campaign {
        let mut campaign = Campaign::default();
        campaign.add(&summary);
        campaign
    }

    fn add(&mut self, summary: &Summary) {
        self.seeds += 1;
        let total = &mut self.total;
        total.virtual_time += summary.virtual_time;
        total.exclusive += summary.exclusive;
        total.events += summary.events;
        total.steps += summary.steps;
        total.elections += summary.elections;
        total.commits += summary.commits;
        total.snapshots += summary.snapshots;
        total.requests += summary.requests;
        total.answered += summary.answered;
        #[cfg(feature = "porcupine")]
        {
            total.searched.linearizable += summary.searched.linearizable;
            total.searched.too_hard += summary.searched.too_hard;
        }
        total.fingerprint ^= summary.fingerprint;
        for (fault, times) in &summary.fired {
            *total.fired.entry(fault).or_default() += times;
            *self.in_seeds.entry(fault).or_default() += 1;
        }
    }

    fn report(&self, took: Duration) {
        let total = &self.total;
        let (virtual_s, real_s) = (total.virtual_time.as_secs_f64(), took.as_secs_f64());
        println!(
            "seeds        {} held, {} failed",
            self.seeds,
            self.failed.len()
        );
        println!(
            "time         {virtual_s:.0} s virtual in {real_s:.1} s, {:.0} times real time",
            virtual_s / real_s
        );
        println!("events       {} ({} steps)", total.events, total.steps);
        println!("elections    {}", total.elections);
        println!(
            "commits      {} entries, {} snapshots",
            total.commits, total.snapshots
        );
        println!(
            "requests     {} of {} answered",
            total.answered, total.requests
        );
        #[cfg(feature = "porcupine")]
        println!(
            "searched     {} histories linearizable, {} too hard",
            total.searched.linearizable, total.searched.too_hard
        );
        println!("exclusive    {:.0} s", total.exclusive.as_secs_f64());
        println!("fingerprint  {:016x}", total.fingerprint);
        for (fault, times) in &total.fired {
            println!(
                "  {fault:<30} {times:>9} in {:>5} seeds",
                self.in_seeds[fault]
            );
        }
        for (seed, why) in &self.failed {
            println!("seed {seed} failed: {why}");
        }
    }
}

/// Lives through many seeds, a few at a time.
fn run(arguments: &Arguments) -> Campaign {
    panic::set_hook(Box::new(|_| {}));
    let next = AtomicU64::new(arguments.seeds.start);
    let campaign = Mutex::new(Campaign::default());
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= arguments.seeds.end {
                        return;
                    }
                    let outcome = try_seed(seed, arguments.scale);
                    let mut campaign = campaign.lock().unwrap_or_else(PoisonError::into_inner);
                    match outcome {
                        Ok(summary) => campaign.add(&summary),
                        Err(why) => {
                            eprintln!("seed {seed}: {why}");
                            campaign.failed.insert(seed, why);
                        }
                    }
                }
            });
        }
    });
    let _ = panic::take_hook();
    campaign
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
}

fn try_seed(seed: u64, scale: Scale) -> Result<Summary, String> {
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| World::run(seed, scale)));
    outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        text.unwrap_or_else(|| "a panic without words".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Scale = Scale {
        seconds: 15,
        trace: false,
        bench: false,
    };

    #[test]
    fn twenty_short_seeds_hold() {
        let arguments = Arguments {
            seeds: 0..20,
            single: false,
            jobs: 2,
            scale: SHORT,
        };
        let campaign = run(&arguments);
        assert!(campaign.failed.is_empty(), "{:?}", campaign.failed);
        assert!(campaign.total.commits > 0 && campaign.total.elections > 0);
    }

    #[test]
    fn a_seed_replays_bit_for_bit() {
        let [first, again] = [(), ()].map(|()| World::run(7, SHORT));
        assert_eq!(first.fingerprint, again.fingerprint);
        assert_eq!(first.events, again.events);
    }
}
