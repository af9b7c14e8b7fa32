//! A seeded world for nodes to live in: brokers, links, disks and clocks that fail, and a judge.
//!
//! Everything runs in one thread on virtual time, the same code as in production
//! ([`replica::Replica`], [`replica::Client`], [`store::Store`]), and a seed replays bit for bit:
//!
//! ```text
//! cargo run --release -p sim -- --seed 42 --trace      one seed, told event by event
//! cargo run --release -p sim -- --seeds 0..1000        a campaign
//! ```
//!
//! - `plan.rs`: what a seed makes of a world, in words that can be kept; `shrink.rs`: fewer words;
//! - `world.rs`: time, who there is, and what a run consists of;
//! - `broker.rs`, `node.rs`, `disk.rs`, `clock.rs`, `client.rs`: what nodes live in;
//! - `faults.rs`, `plot.rs`, `intruder.rs`: what goes wrong;
//! - `operator.rs`: members, settings and leaders come and go meanwhile;
//! - `state.rs`: transactions, leases, locks and watches, and what must hold of them;
//! - `check.rs`, `history.rs`: what must hold anyway;
//! - `campaign.rs`: many seeds, and what came of them;
//! - `event.rs`, `rng.rs`, `seal.rs`, `trace.rs`: the order of events, chance, what sealed frames
//!   say, and the tale.
//!
//! What is deliberately absent: threads within a world, sockets, files and real time.

mod broker;
mod campaign;
mod check;
mod client;
mod clock;
mod disk;
mod event;
mod faults;
mod history;
mod intruder;
#[cfg(feature = "porcupine")]
mod linearizability;
mod node;
mod operator;
mod plan;
mod plot;
mod rng;
mod seal;
mod shrink;
mod state;
mod trace;
mod world;

use std::ops::Range;
use std::panic;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::campaign::{Campaign, How};
use crate::plan::{Plan, Scale};

const USAGE: &str = "usage: sim --seed N [--trace] [--shrink] [--seconds S]
       sim --seeds A..B [--jobs J] [--shrink] [--fail-fast] [--minutes M]
           [--seconds S] [--bench]
       sim --plan FILE [--trace]

  --seed N      lives through one seed
  --seeds A..B  lives through all seeds from A up to, not including, B
  --plan FILE   lives through what a file describes, as --shrink and --print write it
  --trace       tells every event
  --print       prints what a seed makes of a world, and lives through nothing
  --shrink      makes what fails as short as it can, and prints it
  --fail-fast   stops at the first failure
  --minutes M   begins no seed after M minutes of real time
  --jobs J      so many seeds at a time (default 2)
  --seconds S   virtual seconds of faults before all heals (default 600)
  --bench       no faults, five voters, ten writes a second: for the simulator's own speed";

struct Arguments {
    what: What,
    trace: bool,
    print: bool,
    shrink: bool,
    how: How,
    scale: Scale,
}

enum What {
    Seed(u64),
    Seeds(Range<u64>),
    Plan(PathBuf),
}

fn main() -> ExitCode {
    let Some(arguments) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let plan = match &arguments.what {
        What::Seeds(seeds) => return run_campaign(seeds.clone(), &arguments),
        What::Seed(seed) => Plan::draw(*seed, arguments.scale),
        What::Plan(path) => match read(path) {
            Ok(plan) => plan,
            Err(why) => {
                eprintln!("{}: {why}", path.display());
                return ExitCode::from(2);
            }
        },
    };
    if arguments.print {
        print!("{plan}");
        return ExitCode::SUCCESS;
    }
    run_one(&plan, &arguments)
}

fn read(path: &PathBuf) -> Result<Plan, String> {
    std::fs::read_to_string(path)
        .map_err(|error| error.to_string())?
        .parse()
}

fn run_one(plan: &Plan, arguments: &Arguments) -> ExitCode {
    let began = Instant::now();
    panic::set_hook(Box::new(|_| {}));
    match shrink::attempt(plan, arguments.trace) {
        Ok(summary) => {
            let mut campaign = Campaign::default();
            campaign.add(&summary);
            campaign.report(began.elapsed());
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!(
                "fails at {}: {}",
                plan::in_seconds(failure.at),
                failure.what
            );
            if arguments.shrink {
                campaign::print_shrunk(plan.clone(), failure);
            }
            ExitCode::FAILURE
        }
    }
}

fn run_campaign(seeds: Range<u64>, arguments: &Arguments) -> ExitCode {
    let began = Instant::now();
    let campaign = campaign::run(seeds, arguments.scale, &arguments.how);
    campaign.report(began.elapsed());
    if arguments.shrink {
        campaign.shrink(arguments.scale);
    }
    match campaign.has_failed() {
        false => ExitCode::SUCCESS,
        true => ExitCode::FAILURE,
    }
}

fn parse(arguments: impl Iterator<Item = String>) -> Option<Arguments> {
    let mut flags = arguments;
    let mut what = None;
    let mut arguments = Arguments {
        what: What::Seed(0),
        trace: false,
        print: false,
        shrink: false,
        how: How {
            jobs: 2,
            fail_fast: false,
            at_most: Duration::MAX,
        },
        scale: Scale {
            seconds: 600,
            bench: false,
        },
    };
    while let Some(flag) = flags.next() {
        match flag.as_str() {
            "--seed" => what = Some(What::Seed(flags.next()?.parse().ok()?)),
            "--seeds" => {
                let range = flags.next()?;
                let (from, to) = range.split_once("..")?;
                what = Some(What::Seeds(from.parse().ok()?..to.parse().ok()?));
            }
            "--plan" => what = Some(What::Plan(flags.next()?.into())),
            "--jobs" => arguments.how.jobs = flags.next()?.parse().ok()?,
            "--seconds" => arguments.scale.seconds = flags.next()?.parse().ok()?,
            "--trace" => arguments.trace = true,
            "--print" => arguments.print = true,
            "--shrink" => arguments.shrink = true,
            "--minutes" => {
                let minutes: u64 = flags.next()?.parse().ok()?;
                arguments.how.at_most = Duration::from_secs(minutes.checked_mul(60)?);
            }
            "--fail-fast" => arguments.how.fail_fast = true,
            "--bench" => arguments.scale.bench = true,
            _ => return None,
        }
    }
    arguments.what = what?;
    Some(arguments)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::campaign::How;
    use crate::plan::{Plan, Scale};
    use crate::{campaign, shrink};

    const SHORT: Scale = Scale {
        seconds: 15,
        bench: false,
    };

    #[test]
    fn twenty_short_seeds_hold() {
        let how = How {
            jobs: 2,
            fail_fast: false,
            at_most: Duration::MAX,
        };
        let campaign = campaign::run(0..20, SHORT, &how);
        assert!(!campaign.has_failed(), "{campaign:?}");
        assert!(campaign.commits() > 0 && campaign.elections() > 0);
    }

    #[test]
    fn a_seed_replays_bit_for_bit() {
        let plan = Plan::draw(7, SHORT);
        let [first, again] = [(), ()].map(|()| shrink::attempt(&plan, false).expect("it holds"));
        assert_eq!(first.fingerprint, again.fingerprint);
        assert_eq!(first.events, again.events);
    }

    /// What once broke something, as short as it could be made. Each tells its story.
    #[test]
    fn plans_that_once_failed_hold() {
        let plans = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/plans"));
        for entry in plans.expect("the folder is there") {
            let path = entry.expect("readable").path();
            let text = std::fs::read_to_string(&path).expect("readable");
            let plan: Plan = text.parse().expect("a plan");
            if let Err(failure) = shrink::attempt(&plan, false) {
                panic!("{}: {}", path.display(), failure.what);
            }
        }
    }
}
