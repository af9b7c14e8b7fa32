//! When a program that only one site may run is started, stopped and given up: pure.
//!
//! The claim comes and goes, the program starts and ends, signals arrive and time passes; out come
//! the orders. Nothing here waits or acts, so that every interleaving can be tested. What it promises:
//!
//! - nothing is started but under a claim that is live and long enough to stop it in time;
//! - what runs is told to end and killed before the claim ends, as [`Limits`] say, and killed at once
//!   when the claim is known to be lost;
//! - the claim is given up only when nothing of the program is left and the command for the demotion
//!   is through: the next holder may start the moment after.
//!
//! The watchdog carries out the same limits by its own clock, so what this file decides late is done
//! in time all the same.

use std::time::Duration;

use rustix::process::Signal;

use super::timing::{Limits, Moment, Timing};

#[cfg(test)]
mod tests;

/// The first wait before a program that ended by itself is started again; doubled each time.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);

/// The longest such wait.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(30);

/// A program that ran for so long has started well: the next wait is the first one again.
const STARTED_WELL: Duration = Duration::from_secs(60);

/// What a program that was killed without a word of its end counts as: 128 and SIGKILL.
const KILLED: u8 = 137;

/// A claim, as it was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Greater than that of every claim before: what the program shows to whatever it changes.
    pub(crate) token: u64,
    /// The term of the leader that granted it.
    pub(crate) term: u64,
    /// Nobody else may start before.
    pub(crate) until: Moment,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// The claim is ours.
    Granted(Grant),
    /// It is ours for longer.
    Renewed { until: Moment },
    /// It is not ours any more; another may have it.
    Lost,
    /// The program itself has ended; others of its group may be left.
    Exited(u8),
    /// The watchdog has begun to end the program by its own clock.
    Overdue,
    /// Nothing of the program is left.
    Gone,
    /// The program could not be started: too late, or the machine did not let us.
    NotStarted,
    /// Nothing of the command for the demotion is left.
    DemotionOver,
    /// A signal for the program; SIGINT, SIGTERM and SIGQUIT end us too.
    Signal(Signal),
    /// Time has passed.
    Tick,
}

/// What to do about it, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Start the program under these limits.
    Spawn { grant: Grant, limits: Limits },
    /// Tell the watchdog the new limits.
    Limits(Limits),
    /// Pass a signal on.
    Signal(Signal),
    /// End the program: this signal now, SIGKILL then.
    Stop { signal: Signal, kill_at: Moment },
    /// Kill whatever runs.
    Kill,
    /// Run the command for the demotion; it is killed then.
    Demote { grant: Grant, kill_at: Moment },
    /// Give the claim up.
    Release,
    /// End with this exit code. The last output.
    Exit(u8),
}

/// What does not change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) timing: Timing,
    pub(crate) repeat: Repeat,
    /// There is a command for the demotion.
    pub(crate) on_demote: bool,
}

/// Whether a signal ends us as well as the program.
pub(crate) fn ends_us(signal: Signal) -> bool {
    matches!(signal, Signal::INT | Signal::TERM | Signal::QUIT)
}

/// How often the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Until a signal ends it.
    Always,
    /// Until it has come to its own end; where a claim was over before, under the next one again.
    UntilItEnds,
    /// Once, whatever ends it.
    Never,
}

impl Repeat {
    /// The exit code when a signal comes while nothing runs. Who wanted one run has not had it; who waits
    /// for its turn has done all that it should.
    pub(crate) fn code_of_nothing(self, signal: Signal) -> u8 {
        match self {
            Repeat::Never => u8::try_from(128 + signal.as_raw()).unwrap_or(u8::MAX),
            Repeat::Always | Repeat::UntilItEnds => 0,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Supervisor {
    rules: Rules,
    claim: Option<Grant>,
    program: Option<Program>,
    /// The claim under which the program was started last, until its demotion is begun.
    promoted: Option<Grant>,
    demoting: bool,
    ending: Option<Ending>,
    back_off: Duration,
    start_at: Moment,
    over: bool,
}

/// A program that was started and of which something may be left.
#[derive(Debug)]
struct Program {
    since: Moment,
    stop: Option<Stop>,
    exited: Option<u8>,
}

#[derive(Debug)]
struct Stop {
    kill_at: Moment,
    killed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Ending {
    code: u8,
}

impl Supervisor {
    pub(crate) fn new(rules: Rules) -> Supervisor {
        Supervisor {
            rules,
            claim: None,
            program: None,
            promoted: None,
            demoting: false,
            ending: None,
            back_off: FIRST_BACK_OFF,
            start_at: Moment(0),
            over: false,
        }
    }

    /// Takes in what happened, and decides.
    pub(crate) fn step(&mut self, input: Input, now: Moment) -> Vec<Output> {
        let mut outputs = Vec::new();
        if self.over {
            return outputs;
        }
        self.take(input, now, &mut outputs);
        match &self.program {
            Some(_) => self.hold_to_limits(now, &mut outputs),
            None => self.decide(now, &mut outputs),
        }
        outputs
    }

    /// When to look again if nothing happens before.
    pub(crate) fn deadline(&self, now: Moment) -> Option<Moment> {
        if self.over {
            return None;
        }
        let claim = self.claim.map(|claim| claim.until);
        let times = match (&self.program, self.limits()) {
            (Some(program), limits) => [
                limits.map(|limits| limits.term_at),
                limits.map(|limits| limits.kill_at),
                program.stop.as_ref().map(|stop| stop.kill_at),
            ],
            (None, _) => [claim, claim.map(|_| self.start_at), None],
        };
        times.into_iter().flatten().filter(|at| *at > now).min()
    }

    fn take(&mut self, input: Input, now: Moment, outputs: &mut Vec<Output>) {
        match input {
            Input::Granted(grant) => {
                // What runs knows an older token only: its claim was lost in between.
                if self.promoted.is_some_and(|old| old.token != grant.token) {
                    self.kill(outputs);
                }
                self.claim = Some(grant);
                self.tell_limits(outputs);
            }
            Input::Renewed { until } => {
                if let Some(claim) = &mut self.claim {
                    claim.until = claim.until.max(until);
                    self.tell_limits(outputs);
                }
            }
            Input::Lost => self.claim = None,
            Input::Exited(code) => self.exited(code, now, outputs),
            Input::Overdue => self.overdue(now),
            Input::Gone => self.gone(now),
            Input::NotStarted => self.not_started(now),
            Input::DemotionOver => self.demoting = false,
            Input::Signal(signal) => self.signal(signal, now, outputs),
            Input::Tick => {}
        }
    }

    fn limits(&self) -> Option<Limits> {
        Some(self.rules.timing.limits(self.claim?.until))
    }

    fn tell_limits(&self, outputs: &mut Vec<Output>) {
        if let (Some(_), Some(limits)) = (&self.program, self.limits()) {
            outputs.push(Output::Limits(limits));
        }
    }

    /// What the program has left behind goes with it.
    fn exited(&mut self, code: u8, now: Moment, outputs: &mut Vec<Output>) {
        let Some(program) = &mut self.program else {
            return;
        };
        program.exited = Some(code);
        if program.stop.is_none() {
            self.ended_by_itself(now);
            self.stop(Signal::TERM, now, outputs);
        }
    }

    fn ended_by_itself(&mut self, now: Moment) {
        let Some(program) = &self.program else { return };
        let code = program.exited.unwrap_or(KILLED);
        if self.rules.repeat == Repeat::UntilItEnds {
            self.ending.get_or_insert(Ending { code });
        }
        if now.since(program.since) >= STARTED_WELL {
            self.back_off = FIRST_BACK_OFF;
        }
        self.wait_before_next(now);
    }

    fn wait_before_next(&mut self, now: Moment) {
        self.start_at = now + self.back_off;
        self.back_off = (self.back_off * 2).min(LONGEST_BACK_OFF);
    }

    fn overdue(&mut self, now: Moment) {
        let kill_at = self.limits().map_or(now, |limits| limits.kill_at);
        if let Some(program) = &mut self.program {
            let killed = false;
            program.stop.get_or_insert(Stop { kill_at, killed });
        }
    }

    fn gone(&mut self, now: Moment) {
        if self.program.as_ref().is_some_and(|p| p.stop.is_none()) {
            self.ended_by_itself(now);
        }
        let code = self.program.take().map(|p| p.exited.unwrap_or(KILLED));
        if let (Repeat::Never, Some(code)) = (self.rules.repeat, code) {
            self.ending.get_or_insert(Ending { code });
        }
        if let (Some(ending), Some(code)) = (&mut self.ending, code) {
            ending.code = code;
        }
    }

    fn not_started(&mut self, now: Moment) {
        self.program = None;
        self.promoted = None;
        self.wait_before_next(now);
    }

    fn signal(&mut self, signal: Signal, now: Moment, outputs: &mut Vec<Output>) {
        if !ends_us(signal) {
            if self.program.is_some() {
                outputs.push(Output::Signal(signal));
            }
            return;
        }
        let again = self.ending.is_some();
        let code = self.rules.repeat.code_of_nothing(signal);
        self.ending.get_or_insert(Ending { code });
        if again {
            self.kill(outputs);
        } else {
            self.stop(signal, now, outputs);
        }
    }

    fn stop(&mut self, signal: Signal, now: Moment, outputs: &mut Vec<Output>) {
        let limit = self.limits().map_or(now, |limits| limits.kill_at);
        let kill_at = limit.min(now + self.rules.timing.grace);
        let Some(program) = &mut self.program else {
            return;
        };
        if program.stop.is_none() {
            let killed = false;
            program.stop = Some(Stop { kill_at, killed });
            outputs.push(Output::Stop { signal, kill_at });
        }
    }

    fn kill(&mut self, outputs: &mut Vec<Output>) {
        match &mut self.program {
            Some(program) => {
                let kill_at = Moment(0);
                let killed = false;
                let stop = program.stop.get_or_insert(Stop { kill_at, killed });
                if !stop.killed {
                    stop.killed = true;
                    outputs.push(Output::Kill);
                }
            }
            None if self.demoting => outputs.push(Output::Kill),
            None => {}
        }
    }

    /// The program runs: does it have to end?
    fn hold_to_limits(&mut self, now: Moment, outputs: &mut Vec<Output>) {
        let stop = self.program.as_ref().and_then(|p| p.stop.as_ref());
        let out_of_grace = stop.is_some_and(|stop| now >= stop.kill_at);
        // Without a claim another may run already: no grace.
        let limits = self.limits();
        let over = limits.is_none_or(|limits| now >= limits.kill_at);
        if over || out_of_grace {
            self.kill(outputs);
        } else if limits.is_some_and(|limits| now >= limits.term_at) {
            self.stop(Signal::TERM, now, outputs);
        }
    }

    /// Nothing of the program is left: what now?
    fn decide(&mut self, now: Moment, outputs: &mut Vec<Output>) {
        let live = self.claim.filter(|claim| now < claim.until);
        let token = live.map(|claim| claim.token);
        if let Some(grant) = self.promoted
            && (self.ending.is_some() || token != Some(grant.token))
        {
            self.promoted = None;
            self.demote(grant, now, outputs);
        }
        if self.demoting {
            return;
        }
        if let Some(Ending { code }) = self.ending {
            if self.claim.take().is_some() {
                outputs.push(Output::Release);
            }
            self.over = true;
            outputs.push(Output::Exit(code));
        } else if let Some(grant) = live {
            self.start(grant, now, outputs);
        }
    }

    fn demote(&mut self, grant: Grant, now: Moment, outputs: &mut Vec<Output>) {
        if self.rules.on_demote {
            self.demoting = true;
            let kill_at = now + self.rules.timing.grace;
            outputs.push(Output::Demote { grant, kill_at });
        }
    }

    /// Starts the program if it is time, and if there is any before it would have to end again.
    fn start(&mut self, grant: Grant, now: Moment, outputs: &mut Vec<Output>) {
        let limits = self.rules.timing.limits(grant.until);
        if now < self.start_at || now >= limits.term_at {
            return;
        }
        self.promoted = Some(grant);
        self.program = Some(Program {
            since: now,
            stop: None,
            exited: None,
        });
        outputs.push(Output::Spawn { grant, limits });
    }
}
