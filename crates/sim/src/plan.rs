//! What a seed makes of a world, in words: who lives in it, in which weather, and what strikes
//! when.
//!
//! A plan can be printed, made smaller, kept in a file and lived through again. Each strike has
//! its own dice, so that leaving one out changes no other; all other chance in a world follows
//! from the plan's seed.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use raft::{Options, Settings};
use replica::{
    Bounds, ClusterKey, HandOver, KeyRing, MAX_HISTORY, MAX_SESSIONS, Name, SNAPSHOT_BYTES,
};

use crate::event::{MS, Micros, SECOND};
use crate::faults::{Fault, Weather};
use crate::rng::Rng;

/// A world before anything has happened in it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) profile: Profile,
    pub(crate) weather: Weather,
    pub(crate) strikes: Vec<Strike>,
}

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Strike {
    pub(crate) at: Micros,
    pub(crate) fault: Fault,
    /// Decides whom it strikes and how hard.
    pub(crate) dice: u64,
}

/// Who lives in a world and how they are set up.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Profile {
    /// How long things go wrong before all heals.
    pub(crate) troubled: Micros,
    pub(crate) voters: u64,
    pub(crate) observers: u64,
    pub(crate) clients: u64,
    pub(crate) brokers: u64,
    pub(crate) sealed: bool,
    pub(crate) drift_ppm: u64,
    pub(crate) trailing_entries: u64,
    pub(crate) max_in_flight: u64,
    pub(crate) max_append_bytes: u64,
    pub(crate) max_uncommitted_bytes: u64,
    pub(crate) max_unpersisted_bytes: u64,
    /// What the cluster is formed with.
    pub(crate) lease: Micros,
    pub(crate) lease_reads: bool,
    /// When a leader hands over to a voter with a better metric.
    pub(crate) hold: Micros,
    pub(crate) tenure: Micros,
    /// How long a leader waits for those who act on its being the only one.
    pub(crate) relinquish_timeout: Micros,
    pub(crate) keep_alive: Micros,
    pub(crate) disk_latency: Micros,
    pub(crate) operation_every: Micros,
    /// Callers call in bursts of `busy`, `idle` apart; 0: all the time.
    pub(crate) busy: Micros,
    pub(crate) idle: Micros,
    /// A broker gives a broadcast back to who sent it.
    pub(crate) echoes: bool,
    /// Values so large that logs have to be compacted.
    pub(crate) bulk: bool,
    pub(crate) writes_only: bool,
    /// How often transactions, ranges and leases are asked for; 0: never, and nobody locks or watches.
    pub(crate) state_every: Micros,
    pub(crate) lockers: u64,
    pub(crate) watchers: u64,
    /// The longest time to live of a lock's session.
    pub(crate) max_ttl: Micros,
    /// The bounds of the replicated state: clients remembered, changes kept, bytes of log.
    pub(crate) sessions: u64,
    pub(crate) changes: u64,
    pub(crate) log_bytes: u64,
}

/// How long and how hard a seed is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// Virtual seconds of faults.
    pub(crate) seconds: u64,
    /// Not what the seed draws, but what the bench measures.
    pub(crate) bench: bool,
}

impl Plan {
    pub(crate) fn draw(seed: u64, scale: Scale) -> Plan {
        let mut rng = Rng::new(seed);
        let profile = Profile::draw(&mut rng, scale).with_state(seed);
        let weather = Weather::draw(&mut rng);
        if scale.bench {
            return Plan {
                seed,
                profile: profile.bench(),
                weather: Weather::bench(),
                strikes: Vec::new(),
            };
        }
        let strikes = Strike::draw(&mut rng, profile.troubled);
        Plan {
            seed,
            profile,
            weather,
            strikes,
        }
    }
}

impl Strike {
    /// Rare or dense, of a few kinds or of all.
    fn draw(rng: &mut Rng, until: Micros) -> Vec<Strike> {
        let every = *rng.pick(&[100, 500, 500, 2_000, 5_000]).expect("five") * MS;
        let kinds: Vec<Fault> = match rng.chance(0.3) {
            true => Fault::ALL.to_vec(),
            false => (0..rng.between(2, 10))
                .map(|_| *rng.pick(&Fault::ALL).expect("some"))
                .collect(),
        };
        let mut kinds = kinds;
        if rng.chance(0.5) {
            let some = (0..rng.between(1, 6)).map(|_| *rng.pick(&Fault::OPERATORS).expect("some"));
            kinds.extend(some);
        }
        let mut strikes = Vec::new();
        let mut at = MS;
        while at < until {
            strikes.push(Strike {
                at,
                fault: *rng.pick(&kinds).expect("at least two"),
                dice: rng.next(),
            });
            at += rng.exponential(every) + MS;
        }
        strikes
    }
}

impl Profile {
    fn draw(rng: &mut Rng, scale: Scale) -> Profile {
        let pick = |rng: &mut Rng, from: &[u64]| *rng.pick(from).expect("some");
        let bulk = rng.chance(0.1);
        let max_append_bytes = match bulk {
            // Byte by byte, a large snapshot takes longer than the bounds allow.
            true => 64 << 10,
            false => pick(rng, &[40, 200, 2_000, 64 << 10, 64 << 10]),
        };
        Profile {
            troubled: scale.seconds * SECOND,
            voters: pick(rng, &[1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 5, 5, 5, 7]),
            observers: pick(rng, &[0, 0, 1, 1, 2, 3]),
            clients: rng.between(1, 3),
            sealed: rng.chance(0.3),
            drift_ppm: pick(rng, &[1_000, 1_000, 50_000]),
            trailing_entries: pick(rng, &[0, 5, 1_000]),
            max_in_flight: match max_append_bytes {
                ..1_000 => 4,
                _ => pick(rng, &[1, 4, 4]),
            },
            max_append_bytes,
            max_uncommitted_bytes: pick(rng, &[500, 8 << 20, 8 << 20]),
            max_unpersisted_bytes: pick(rng, &[500, 8 << 20, 8 << 20]),
            lease: pick(rng, &[300, 1_000, 1_000, 2_000]) * MS,
            lease_reads: rng.chance(0.3),
            hold: pick(rng, &[500, 5_000]) * MS,
            tenure: pick(rng, &[2, 10]) * SECOND,
            relinquish_timeout: pick(rng, &[200, 1_000, 10_000]) * MS,
            keep_alive: pick(rng, &[2, 5, 5, 10]) * SECOND,
            disk_latency: pick(rng, &[100, 1_000, 1_000, 20_000]),
            // An entry or two at a time, one after the other, thirty a second pile up faster than
            // they are worked off.
            operation_every: match max_append_bytes {
                // An observer that lost its disk pulls four entries a time, and has to come to the
                // end of all of them within the bound.
                ..100 => rng.spread(300 * MS, 2 * SECOND),
                100..1_000 => rng.spread(100 * MS, 2 * SECOND),
                _ => rng.spread(50 * MS, 2 * SECOND),
            },
            bulk,
            ..Profile::plain()
        }
        .in_bursts(rng)
    }

    /// Half of the seeds are busy now and then and rest between: as crowded for moments as no seed
    /// could be for long.
    fn in_bursts(self, rng: &mut Rng) -> Profile {
        let echoes = rng.chance(0.5);
        let in_bursts = rng.chance(0.5);
        let (busy, idle) = (
            rng.spread(200 * MS, 5 * SECOND),
            rng.spread(SECOND, 20 * SECOND),
        );
        let operation_every = rng.spread(20 * MS, 200 * MS);
        if !in_bursts {
            return Profile { echoes, ..self };
        }
        Profile {
            echoes,
            busy,
            idle,
            operation_every: match self.max_append_bytes {
                ..1_000 => self.operation_every,
                _ => operation_every,
            },
            ..self
        }
    }

    /// When somebody who would call at this time does so.
    pub(crate) fn calls_at(&self, time: Micros) -> Micros {
        let period = self.busy + self.idle;
        match self.idle > 0 && time % period >= self.busy {
            true => time - time % period + period,
            false => time,
        }
    }

    /// How the state is used. It has dice of its own, so that all else of a seed is as it is without.
    fn with_state(self, seed: u64) -> Profile {
        let mut rng = Rng::new(seed ^ 0xa54f_f53a_5f1d_36f1);
        let pick = |rng: &mut Rng, from: &[u64]| *rng.pick(from).expect("some");
        let brokers = pick(&mut rng, &[1, 1, 1, 1, 2, 2, 3]);
        let small_pieces = self.max_append_bytes < 2_000;
        let changes = pick(&mut rng, &[5, 100, 1_000, 10_000]);
        Profile {
            state_every: match small_pieces {
                // The model keeps everything that ever was: of large values too much.
                _ if self.bulk => 0,
                true => pick(&mut rng, &[0, 600]) * MS,
                // A few at a time is all that such a leader takes.
                _ if self.max_uncommitted_bytes < 1_000 => pick(&mut rng, &[0, 300]) * MS,
                false => pick(&mut rng, &[0, 50, 200, 1_000]) * MS,
            },
            brokers,
            lockers: pick(&mut rng, &[0, 2, 2, 3, 6]),
            watchers: pick(&mut rng, &[0, 1, 3]),
            max_ttl: pick(&mut rng, &[500, 3_000, 5_000]) * MS,
            sessions: pick(&mut rng, &[16, 64, MAX_SESSIONS as u64]),
            // A snapshot of many, in small pieces, takes longer than the bounds allow.
            changes: if small_pieces {
                changes.min(100)
            } else {
                changes
            },
            log_bytes: match small_pieces || self.bulk {
                true => SNAPSHOT_BYTES as u64,
                // Who starts on a long log takes as long as ten seconds of a world.
                false => pick(
                    &mut rng,
                    &[20_000, 20_000, 100_000, 100_000, SNAPSHOT_BYTES as u64],
                ),
            },
            ..self
        }
    }

    /// What the speed of the simulator is measured on: five voters, ten writes a second, a broker
    /// near by.
    fn bench(self) -> Profile {
        Profile {
            troubled: self.troubled,
            writes_only: true,
            voters: 5,
            ..Profile::plain()
        }
    }

    /// Nothing special about it.
    pub(crate) fn plain() -> Profile {
        let options = Options::default();
        Profile {
            troubled: 60 * SECOND,
            voters: 3,
            observers: 0,
            clients: 1,
            brokers: 1,
            sealed: false,
            drift_ppm: u64::from(Settings::default().drift_ppm),
            trailing_entries: options.trailing_entries,
            max_in_flight: options.max_in_flight as u64,
            max_append_bytes: options.max_append_bytes as u64,
            max_uncommitted_bytes: options.max_uncommitted_bytes as u64,
            max_unpersisted_bytes: options.max_unpersisted_bytes as u64,
            lease: SECOND,
            lease_reads: false,
            hold: 5 * SECOND,
            tenure: 10 * SECOND,
            relinquish_timeout: 10 * SECOND,
            keep_alive: 5 * SECOND,
            disk_latency: MS,
            operation_every: 100 * MS,
            busy: 0,
            idle: 0,
            echoes: true,
            bulk: false,
            writes_only: false,
            state_every: 0,
            lockers: 0,
            watchers: 0,
            max_ttl: SECOND,
            sessions: MAX_SESSIONS as u64,
            changes: MAX_HISTORY as u64,
            log_bytes: SNAPSHOT_BYTES as u64,
        }
    }

    /// How slow each broker is; with dice of its own.
    pub(crate) fn slow_brokers(&self, seed: u64) -> Vec<Micros> {
        let mut rng = Rng::new(seed ^ 0x510e_527f_ade6_82d1);
        let alone = self.brokers == 1;
        let mut slow = || match alone || rng.chance(0.4) {
            true => 0,
            false => rng.spread(100, 30 * MS),
        };
        (0..self.brokers).map(|_| slow()).collect()
    }

    pub(crate) fn bounds(&self) -> Bounds {
        Bounds {
            sessions: self.sessions as usize,
            history: self.changes as usize,
            log_bytes: self.log_bytes as usize,
            ..Bounds::default()
        }
    }

    pub(crate) fn cluster(&self) -> Name {
        Name::new("plant").expect("a name")
    }

    /// The key of the plan's seed, if the frames of this world are sealed.
    pub(crate) fn key(&self, seed: u64) -> Option<ClusterKey> {
        let key = ClusterKey::from_bytes(Rng::new(!seed).bytes());
        self.sealed.then_some(key)
    }

    pub(crate) fn ring(&self, seed: u64) -> KeyRing {
        self.key(seed).map_or_else(KeyRing::insecure, KeyRing::of)
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings {
            lease_ms: (self.lease / MS) as u32,
            drift_ppm: self.drift_ppm as u32,
            lease_reads: self.lease_reads,
        }
    }

    pub(crate) fn hand_over(&self) -> HandOver {
        HandOver {
            hold: Duration::from_micros(self.hold),
            tenure: Duration::from_micros(self.tenure),
            ..HandOver::default()
        }
    }

    pub(crate) fn options(&self) -> Options {
        Options {
            trailing_entries: self.trailing_entries,
            max_in_flight: self.max_in_flight as usize,
            max_append_bytes: self.max_append_bytes as usize,
            max_uncommitted_bytes: self.max_uncommitted_bytes as usize,
            max_unpersisted_bytes: self.max_unpersisted_bytes as usize,
            ..Options::default()
        }
    }
}

// In words.

/// One number of a plan, by its name.
enum Field<'a> {
    Number(&'a mut u64),
    Time(&'a mut Micros),
    Share(&'a mut f64),
    Flag(&'a mut bool),
}

impl Plan {
    fn fields(&mut self) -> [(&'static str, Field<'_>); 43] {
        use Field::{Flag, Number, Share, Time};
        let Plan {
            seed,
            profile: p,
            weather: w,
            strikes: _,
        } = self;
        [
            ("seed", Number(seed)),
            ("troubled", Time(&mut p.troubled)),
            ("voters", Number(&mut p.voters)),
            ("observers", Number(&mut p.observers)),
            ("clients", Number(&mut p.clients)),
            ("brokers", Number(&mut p.brokers)),
            ("sealed", Flag(&mut p.sealed)),
            ("drift_ppm", Number(&mut p.drift_ppm)),
            ("trailing_entries", Number(&mut p.trailing_entries)),
            ("max_in_flight", Number(&mut p.max_in_flight)),
            ("max_append_bytes", Number(&mut p.max_append_bytes)),
            (
                "max_uncommitted_bytes",
                Number(&mut p.max_uncommitted_bytes),
            ),
            (
                "max_unpersisted_bytes",
                Number(&mut p.max_unpersisted_bytes),
            ),
            ("lease", Time(&mut p.lease)),
            ("lease_reads", Flag(&mut p.lease_reads)),
            ("hold", Time(&mut p.hold)),
            ("tenure", Time(&mut p.tenure)),
            ("relinquish_timeout", Time(&mut p.relinquish_timeout)),
            ("keep_alive", Time(&mut p.keep_alive)),
            ("disk_latency", Time(&mut p.disk_latency)),
            ("operation_every", Time(&mut p.operation_every)),
            ("busy", Time(&mut p.busy)),
            ("idle", Time(&mut p.idle)),
            ("echoes", Flag(&mut p.echoes)),
            ("bulk", Flag(&mut p.bulk)),
            ("writes_only", Flag(&mut p.writes_only)),
            ("state_every", Time(&mut p.state_every)),
            ("lockers", Number(&mut p.lockers)),
            ("watchers", Number(&mut p.watchers)),
            ("max_ttl", Time(&mut p.max_ttl)),
            ("sessions", Number(&mut p.sessions)),
            ("changes", Number(&mut p.changes)),
            ("log_bytes", Number(&mut p.log_bytes)),
            ("delay_min", Time(&mut w.delay_min)),
            ("delay_max", Time(&mut w.delay_max)),
            ("spike", Share(&mut w.spike)),
            ("spike_max", Time(&mut w.spike_max)),
            ("loss", Share(&mut w.loss)),
            ("duplicate", Share(&mut w.duplicate)),
            ("reorder", Share(&mut w.reorder)),
            ("queue", Number(&mut w.queue)),
            ("missing_will", Share(&mut w.missing_will)),
            ("late_will", Share(&mut w.late_will)),
        ]
    }

    fn plain() -> Plan {
        Plan {
            seed: 0,
            profile: Profile::plain(),
            weather: Weather::calm(),
            strikes: Vec::new(),
        }
    }

    /// Puts every number that is not plain back to what it plainly is, one at a time.
    pub(crate) fn plainer(&self) -> Vec<Plan> {
        let mut plain = Plan::plain();
        let plain: Vec<String> = plain.fields().map(|(_, f)| f.to_string()).into();
        let mut plans = Vec::new();
        for (n, value) in plain.iter().enumerate() {
            let mut plan = self.clone();
            let keeps = {
                let (name, field) = &mut plan.fields()[n];
                let before = field.to_string();
                field.set(value).expect("a plain number");
                matches!(*name, "seed" | "troubled") || field.to_string() == before
            };
            if !keeps {
                plans.push(plan);
            }
        }
        plans
    }
}

impl Field<'_> {
    fn set(&mut self, text: &str) -> Option<()> {
        match self {
            Field::Number(number) => **number = text.parse().ok()?,
            Field::Time(time) => **time = parse_time(text)?,
            Field::Share(share) => **share = text.parse().ok()?,
            Field::Flag(flag) => **flag = text.parse().ok()?,
        }
        Some(())
    }
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Field::Number(number) => write!(f, "{number}"),
            Field::Time(time) => f.write_str(&in_seconds(**time)),
            Field::Share(share) => write!(f, "{share}"),
            Field::Flag(flag) => write!(f, "{flag}"),
        }
    }
}

/// Microseconds as seconds with six digits.
pub(crate) fn in_seconds(time: Micros) -> String {
    format!("{}.{:06}", time / SECOND, time % SECOND)
}

fn parse_time(text: &str) -> Option<Micros> {
    let (seconds, micros) = text.split_once('.')?;
    if micros.len() != 6 {
        return None;
    }
    let duration = Duration::from_secs(seconds.parse().ok()?);
    let micros: u64 = micros.parse().ok()?;
    u64::try_from(duration.as_micros())
        .ok()?
        .checked_add(micros)
}

impl fmt::Display for Plan {
    /// One number a line where it is not plain, then one strike a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut plain = Plan::plain();
        let plain = plain.fields().map(|(_, field)| field.to_string());
        let mut plan = self.clone();
        for ((name, field), plain) in plan.fields().iter().zip(plain) {
            let value = field.to_string();
            if *name == "seed" || value != plain {
                writeln!(f, "{name} {value}")?;
            }
        }
        for Strike { at, fault, dice } in &self.strikes {
            writeln!(f, "at {} {} {dice:x}", in_seconds(*at), fault.name())?;
        }
        Ok(())
    }
}

impl FromStr for Plan {
    type Err = String;

    /// Reads what `Display` writes; empty lines and lines that begin with `#` are for people.
    fn from_str(text: &str) -> Result<Plan, String> {
        let mut plan = Plan::plain();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            read_line(&mut plan, line).ok_or_else(|| format!("cannot read {line:?}"))?;
        }
        Ok(plan)
    }
}

fn read_line(plan: &mut Plan, line: &str) -> Option<()> {
    let (name, value) = line.split_once(' ')?;
    if name == "at" {
        let (at, rest) = value.split_once(' ')?;
        let (fault, dice) = rest.rsplit_once(' ')?;
        plan.strikes.push(Strike {
            at: parse_time(at)?,
            fault: Fault::ALL.into_iter().find(|f| f.name() == fault)?,
            dice: u64::from_str_radix(dice, 16).ok()?,
        });
        return Some(());
    }
    let mut fields = plan.fields();
    let (_, field) = fields.iter_mut().find(|(known, _)| *known == name)?;
    field.set(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever a seed draws can be kept in a file.
    #[test]
    fn a_plan_reads_as_it_was_written() {
        for seed in 0..50 {
            let scale = Scale {
                seconds: 20,
                bench: false,
            };
            let plan = Plan::draw(seed, scale);
            assert_eq!(plan.to_string().parse(), Ok(plan));
        }
    }
}
