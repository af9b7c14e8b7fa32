//! Many seeds, and what came of them.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::ops::Range;
use std::panic;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::plan::{Plan, Scale, in_seconds};
use crate::shrink::{Failure, attempt, shrink};
use crate::world::{Summary, Tally};

/// How many failures are made short after a campaign; the rest are named.
const MAX_SHRUNK: usize = 3;

/// What came of many seeds.
#[derive(Debug, Default)]
pub(crate) struct Campaign {
    seeds: u64,
    total: Summary,
    /// In how many seeds each fault mattered.
    in_seeds: BTreeMap<&'static str, u64>,
    /// How many faults mattered, all together.
    mattered: u64,
    failed: BTreeMap<u64, Failure>,
}

impl Campaign {
    pub(crate) fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn commits(&self) -> u64 {
        self.total.commits
    }

    #[cfg(test)]
    pub(crate) fn elections(&self) -> u64 {
        self.total.elections
    }

    pub(crate) fn add(&mut self, summary: &Summary) {
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
        total.searched.add(summary.searched);
        total.fingerprint ^= summary.fingerprint;
        for (fault, Tally { fired, mattered }) in &summary.tally {
            let tally = total.tally.entry(fault).or_default();
            tally.fired += fired;
            tally.mattered += mattered;
            self.mattered += mattered;
            if *mattered > 0 {
                *self.in_seeds.entry(fault).or_default() += 1;
            }
        }
    }

    pub(crate) fn report(&self, took: Duration) {
        let total = &self.total;
        let (virtual_s, real_s) = (total.virtual_time.as_secs_f64(), took.as_secs_f64());
        let (seeds, failed) = (self.seeds, self.failed.len());
        println!("seeds        {seeds} held, {failed} failed");
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
            "searched     {} histories linearizable, {} in part, {} too hard",
            total.searched.linearizable, total.searched.in_part, total.searched.too_hard
        );
        println!("exclusive    {:.0} s", total.exclusive.as_secs_f64());
        println!("fingerprint  {:016x}", total.fingerprint);
        println!(
            "faults       {} mattered, {:.0} a seed",
            self.mattered,
            self.mattered as f64 / seeds.max(1) as f64
        );
        println!(
            "  {:<42} {:>10} {:>10} {:>7}",
            "", "fired", "mattered", "seeds"
        );
        for (fault, Tally { fired, mattered }) in &total.tally {
            let seeds = self.in_seeds.get(fault).copied().unwrap_or_default();
            println!("  {fault:<42} {fired:>10} {mattered:>10} {seeds:>7}");
        }
        for (seed, failure) in &self.failed {
            println!(
                "seed {seed} failed at {}: {}",
                in_seconds(failure.at),
                failure.what
            );
        }
    }

    /// Prints the first failures as short as they can be made.
    pub(crate) fn shrink(&self, scale: Scale) {
        for (seed, failure) in self.failed.iter().take(MAX_SHRUNK) {
            print_shrunk(Plan::draw(*seed, scale), failure.clone());
        }
    }
}

/// Prints the shortest plan found that fails in the same way: ready to be kept in `plans/`.
pub(crate) fn print_shrunk(plan: Plan, failure: Failure) {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let (plan, failure) = shrink(plan, failure);
    panic::set_hook(hook);
    println!();
    for line in failure.what.lines() {
        println!("# {line}");
    }
    print!("{plan}");
}

/// How a campaign goes about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// So many seeds at a time.
    pub(crate) jobs: u64,
    pub(crate) fail_fast: bool,
    /// No seed begins after this much real time.
    pub(crate) at_most: Duration,
}

/// Lives through many seeds, a few at a time.
pub(crate) fn run(seeds: Range<u64>, scale: Scale, how: &How) -> Campaign {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let How {
        jobs,
        fail_fast,
        at_most,
    } = *how;
    let began = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let progress = Progress::new(seeds.end.saturating_sub(seeds.start));
    let state = Mutex::new((Campaign::default(), progress));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && began.elapsed() < at_most {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = attempt(&Plan::draw(seed, scale), false);
                    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                    let (campaign, progress) = &mut *state;
                    match outcome {
                        Ok(summary) => campaign.add(&summary),
                        Err(failure) => {
                            progress.clear();
                            eprintln!("seed {seed}: {}", failure.what);
                            campaign.failed.insert(seed, failure);
                            stop.fetch_or(fail_fast, Ordering::Relaxed);
                        }
                    }
                    progress.show(campaign);
                }
            });
        }
    });
    panic::set_hook(hook);
    let (campaign, mut progress) = state.into_inner().unwrap_or_else(PoisonError::into_inner);
    progress.clear();
    campaign
}

/// A bar on a terminal, a line now and then elsewhere.
struct Progress {
    all: u64,
    began: Instant,
    shown: Instant,
    terminal: bool,
}

impl Progress {
    fn new(all: u64) -> Progress {
        let terminal = std::io::stderr().is_terminal();
        let now = Instant::now();
        Progress {
            all,
            began: now,
            shown: now,
            terminal,
        }
    }

    fn show(&mut self, campaign: &Campaign) {
        let every = match self.terminal {
            true => Duration::from_millis(200),
            false => Duration::from_secs(60),
        };
        if self.shown.elapsed() < every {
            return;
        }
        self.shown = Instant::now();
        let failed = campaign.failed.len();
        let done = campaign.seeds + failed as u64;
        let real_s = self.began.elapsed().as_secs_f64();
        let left_s = real_s / done as f64 * (self.all - done) as f64;
        let speed = campaign.total.virtual_time.as_secs_f64() / real_s;
        const WIDTH: usize = 30;
        let filled = (done as f64 / self.all as f64 * WIDTH as f64) as usize;
        let bar = format!("{}{}", "#".repeat(filled), " ".repeat(WIDTH - filled));
        let line = format!(
            "[{bar}] {done} of {} seeds, {failed} failed, {speed:.0} times real time, {left_s:.0} s left",
            self.all
        );
        match self.terminal {
            true => eprint!("\r{line}\x1b[K"),
            false => eprintln!("{line}"),
        }
        let _ = std::io::stderr().flush();
    }

    fn clear(&mut self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}
