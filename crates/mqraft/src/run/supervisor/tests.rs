//! Stories of one program, then every interleaving against a model of the world.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const GRACE: Duration = Duration::from_secs(5);

fn at(milliseconds: u64) -> Moment {
    Moment(1_000_000_000 + milliseconds * 1_000)
}

fn rules() -> Rules {
    Rules {
        timing: Timing::new(GRACE, None, 1_000).unwrap(),
        repeat: Repeat::Always,
        on_demote: false,
    }
}

fn grant(token: u64, until: u64) -> Grant {
    Grant {
        token,
        term: 3,
        until: at(until),
    }
}

/// What a claim until then means: SIGTERM six seconds before, SIGKILL one.
fn limits(until: u64) -> Limits {
    Limits {
        term_at: at(until - 6_000),
        kill_at: at(until - 1_000),
    }
}

fn spawn(grant: Grant, until: u64) -> Output {
    let limits = limits(until);
    Output::Spawn { grant, limits }
}

fn stop(signal: Signal, kill_at: u64) -> Output {
    let kill_at = at(kill_at);
    Output::Stop { signal, kill_at }
}

/// A program that has been running since 0, under a claim that ends at 12 s.
fn running(rules: Rules) -> Supervisor {
    let mut supervisor = Supervisor::new(rules);
    let granted = supervisor.step(Input::Granted(grant(7, 12_000)), at(0));
    assert_eq!(granted, [spawn(grant(7, 12_000), 12_000)]);
    supervisor
}

#[test]
fn what_is_renewed_runs_on() {
    let mut supervisor = running(rules());
    for second in 1..100 {
        let until = 12_000 + second * 1_000;
        let renewed = supervisor.step(Input::Renewed { until: at(until) }, at(second * 1_000));
        assert_eq!(renewed, [Output::Limits(limits(until))]);
        let deadline = supervisor.deadline(at(second * 1_000));
        assert_eq!(deadline, Some(limits(until).term_at));
    }
}

#[test]
fn what_is_not_renewed_gets_sigterm_then_sigkill_before_the_claim_ends() {
    let mut supervisor = running(rules());
    assert_eq!(supervisor.step(Input::Tick, at(5_999)), []);
    assert_eq!(
        supervisor.step(Input::Tick, at(6_000)),
        [stop(Signal::TERM, 11_000)]
    );
    assert_eq!(supervisor.step(Input::Tick, at(10_999)), []);
    assert_eq!(supervisor.step(Input::Tick, at(11_000)), [Output::Kill]);
    assert_eq!(supervisor.step(Input::Tick, at(11_500)), []);
    // Renewed at last, it starts again once nothing is left.
    assert_eq!(supervisor.step(Input::Gone, at(11_600)), []);
    let until = at(23_000);
    assert_eq!(
        supervisor.step(Input::Renewed { until }, at(11_700)),
        [spawn(grant(7, 23_000), 23_000)]
    );
}

/// As when mqraft itself was stopped for a while: what is left until the kill is less than the grace.
#[test]
fn a_sigterm_that_comes_late_takes_nothing_from_the_margin() {
    let mut supervisor = running(rules());
    let late = supervisor.step(Input::Tick, at(8_000));
    assert_eq!(late, [stop(Signal::TERM, 11_000)]);
    let mut supervisor = running(rules());
    let asked = supervisor.step(Input::Signal(Signal::TERM), at(8_000));
    assert_eq!(asked, [stop(Signal::TERM, 11_000)]);
}

/// Its grace is what was promised to it, although the claim is longer by then.
#[test]
fn a_renewal_that_comes_too_late_does_not_call_a_stop_off() {
    let mut supervisor = running(rules());
    assert_eq!(
        supervisor.step(Input::Tick, at(6_000)),
        [stop(Signal::TERM, 11_000)]
    );
    let until = at(18_500);
    let renewed = supervisor.step(Input::Renewed { until }, at(6_500));
    assert_eq!(renewed, [Output::Limits(limits(18_500))]);
    assert_eq!(supervisor.deadline(at(6_500)), Some(at(11_000)));
    assert_eq!(supervisor.step(Input::Tick, at(11_000)), [Output::Kill]);
}

/// Another may run already.
#[test]
fn what_lost_its_claim_is_killed_without_grace() {
    let mut supervisor = running(rules());
    assert_eq!(supervisor.step(Input::Lost, at(100)), [Output::Kill]);
    // Ours again, but the program knows the old token: not before it is gone.
    let regained = supervisor.step(Input::Granted(grant(8, 13_000)), at(200));
    assert_eq!(regained, [Output::Limits(limits(13_000))]);
    assert_eq!(
        supervisor.step(Input::Gone, at(300)),
        [spawn(grant(8, 13_000), 13_000)]
    );
}

#[test]
fn a_new_token_never_meets_the_old_program() {
    let mut supervisor = running(rules());
    let regranted = supervisor.step(Input::Granted(grant(8, 13_000)), at(200));
    assert_eq!(regranted, [Output::Kill, Output::Limits(limits(13_000))]);
}

#[test]
fn nothing_starts_without_the_time_to_stop_it() {
    let mut supervisor = Supervisor::new(rules());
    assert_eq!(supervisor.step(Input::Granted(grant(7, 6_000)), at(0)), []);
    let until = at(6_001);
    let renewed = supervisor.step(Input::Renewed { until }, at(0));
    assert_eq!(renewed, [spawn(grant(7, 6_001), 6_001)]);
}

#[test]
fn a_program_that_ends_is_started_again_with_back_off() {
    let mut supervisor = running(rules());
    let mut now = 0;
    for wait in [
        100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000,
    ] {
        let until = now + 1_000_000;
        supervisor.step(Input::Renewed { until: at(until) }, at(now));
        // What it left behind ends with it.
        let ended = supervisor.step(Input::Exited(1), at(now));
        assert_eq!(ended, [stop(Signal::TERM, now + 5_000)]);
        assert_eq!(supervisor.step(Input::Gone, at(now)), []);
        assert_eq!(supervisor.deadline(at(now)), Some(at(now + wait)));
        assert_eq!(supervisor.step(Input::Tick, at(now + wait - 1)), []);
        now += wait;
        let again = supervisor.step(Input::Tick, at(now));
        assert_eq!(again, [spawn(grant(7, until), until)]);
    }
    // A minute of running, and the wait is short again.
    now += 60_000;
    supervisor.step(Input::Exited(1), at(now));
    supervisor.step(Input::Gone, at(now));
    assert_eq!(supervisor.deadline(at(now)), Some(at(now + 100)));
}

#[test]
fn a_program_that_did_not_start_is_tried_again() {
    let mut supervisor = running(Rules {
        repeat: Repeat::UntilItEnds,
        ..rules()
    });
    assert_eq!(supervisor.step(Input::NotStarted, at(0)), []);
    assert_eq!(supervisor.deadline(at(0)), Some(at(100)));
    let again = supervisor.step(Input::Tick, at(100));
    assert_eq!(again, [spawn(grant(7, 12_000), 12_000)]);
}

#[test]
fn once_is_once_with_the_programs_exit_code() {
    let mut supervisor = running(Rules {
        repeat: Repeat::UntilItEnds,
        ..rules()
    });
    supervisor.step(Input::Exited(3), at(100));
    assert_eq!(
        supervisor.step(Input::Gone, at(200)),
        [Output::Release, Output::Exit(3)]
    );
}

#[test]
fn what_is_not_repeated_is_over_with_its_claim() {
    let mut supervisor = running(Rules {
        repeat: Repeat::Never,
        ..rules()
    });
    assert_eq!(supervisor.step(Input::Lost, at(100)), [Output::Kill]);
    supervisor.step(Input::Exited(137), at(200));
    assert_eq!(supervisor.step(Input::Gone, at(200)), [Output::Exit(137)]);
}

/// It did not come to its end: whoever has the claim next runs it again.
#[test]
fn a_stop_by_the_clock_is_not_the_end_of_once() {
    let mut supervisor = running(Rules {
        repeat: Repeat::UntilItEnds,
        ..rules()
    });
    assert_eq!(supervisor.step(Input::Overdue, at(6_000)), []);
    assert_eq!(supervisor.step(Input::Exited(143), at(6_100)), []);
    assert_eq!(supervisor.step(Input::Gone, at(6_100)), []);
    let until = at(19_000);
    let renewed = supervisor.step(Input::Renewed { until }, at(6_200));
    assert_eq!(renewed, [spawn(grant(7, 19_000), 19_000)]);
}

#[test]
fn sigterm_ends_the_program_then_the_claim_then_us() {
    let mut supervisor = running(rules());
    let stopped = supervisor.step(Input::Signal(Signal::TERM), at(100));
    assert_eq!(stopped, [stop(Signal::TERM, 5_100)]);
    assert_eq!(supervisor.step(Input::Exited(143), at(200)), []);
    // A straggler: the claim stays.
    assert_eq!(supervisor.step(Input::Tick, at(5_099)), []);
    assert_eq!(supervisor.step(Input::Tick, at(5_100)), [Output::Kill]);
    assert_eq!(
        supervisor.step(Input::Gone, at(5_101)),
        [Output::Release, Output::Exit(143)]
    );
    assert_eq!(
        supervisor.step(Input::Granted(grant(9, 99_000)), at(5_102)),
        []
    );
}

#[test]
fn a_second_sigterm_kills() {
    let mut supervisor = running(rules());
    supervisor.step(Input::Signal(Signal::INT), at(100));
    let again = supervisor.step(Input::Signal(Signal::TERM), at(200));
    assert_eq!(again, [Output::Kill]);
    assert_eq!(supervisor.step(Input::Signal(Signal::TERM), at(300)), []);
}

#[test]
fn sigterm_while_nothing_runs_is_the_end_at_once() {
    let mut supervisor = Supervisor::new(rules());
    let ended = supervisor.step(Input::Signal(Signal::TERM), at(0));
    assert_eq!(ended, [Output::Exit(0)]);
    let mut supervisor = running(rules());
    supervisor.step(Input::Exited(1), at(0));
    supervisor.step(Input::Gone, at(0));
    let ended = supervisor.step(Input::Signal(Signal::TERM), at(50));
    assert_eq!(ended, [Output::Release, Output::Exit(0)]);
}

/// Whoever waits for its result must not take it for done.
#[test]
fn sigint_before_the_one_run_is_no_success() {
    let mut supervisor = Supervisor::new(Rules {
        repeat: Repeat::Never,
        ..rules()
    });
    let ended = supervisor.step(Input::Signal(Signal::INT), at(0));
    assert_eq!(ended, [Output::Exit(130)]);
}

#[test]
fn other_signals_are_passed_on() {
    let mut supervisor = running(rules());
    let passed = supervisor.step(Input::Signal(Signal::HUP), at(0));
    assert_eq!(passed, [Output::Signal(Signal::HUP)]);
    let mut idle = Supervisor::new(rules());
    assert_eq!(idle.step(Input::Signal(Signal::HUP), at(0)), []);
}

#[test]
fn the_demotion_comes_after_the_program_and_before_the_release() {
    let mut supervisor = running(Rules {
        on_demote: true,
        ..rules()
    });
    supervisor.step(Input::Signal(Signal::TERM), at(0));
    supervisor.step(Input::Exited(0), at(100));
    let demote = Output::Demote {
        grant: grant(7, 12_000),
        kill_at: at(5_100),
    };
    assert_eq!(supervisor.step(Input::Gone, at(100)), [demote]);
    assert_eq!(supervisor.step(Input::Tick, at(200)), []);
    assert_eq!(
        supervisor.step(Input::DemotionOver, at(300)),
        [Output::Release, Output::Exit(0)]
    );
}

/// A short outage that stopped the program is none for the claim; its end is.
#[test]
fn the_demotion_comes_when_the_claim_has_ended() {
    let mut supervisor = running(Rules {
        on_demote: true,
        ..rules()
    });
    supervisor.step(Input::Tick, at(6_000));
    supervisor.step(Input::Exited(143), at(6_100));
    assert_eq!(supervisor.step(Input::Gone, at(6_100)), []);
    assert_eq!(supervisor.deadline(at(6_100)), Some(at(12_000)));
    let over = supervisor.step(Input::Tick, at(12_000));
    assert!(matches!(over[..], [Output::Demote { .. }]), "{over:?}");
    // Nothing starts meanwhile, and nothing is demoted twice.
    assert_eq!(
        supervisor.step(Input::Granted(grant(8, 30_000)), at(12_100)),
        []
    );
    let started = supervisor.step(Input::DemotionOver, at(12_200));
    assert_eq!(started, [spawn(grant(8, 30_000), 30_000)]);
}

// Every interleaving.

/// The world's step, in milliseconds. All times below are multiples of it.
const STEP: u64 = 10;

/// What the kernel may take to end a group, at most: less than the margin for it.
const SLOW_DEATH: u64 = 900;

#[derive(Clone, Debug)]
enum Act {
    Wait(u64),
    /// Ours, if it is nobody's; for so long.
    Grant(u64),
    Renew(u64),
    /// Taken away before its time, as by an operator.
    Revoke,
    Exit,
    /// The program takes so long over SIGTERM, or does not mind it.
    Mind(Option<u64>),
    Signal(bool),
    /// mqraft is stopped for so long.
    Freeze(u64),
    WatchdogDies,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let ms = |most: u64| (0..=most / STEP).prop_map(|n| n * STEP);
    let act = prop_oneof![
        6 => ms(4_000).prop_map(Act::Wait),
        4 => ms(15_000).prop_map(Act::Grant),
        6 => ms(15_000).prop_map(Act::Renew),
        1 => Just(Act::Revoke),
        2 => Just(Act::Exit),
        2 => proptest::option::of(ms(8_000)).prop_map(Act::Mind),
        1 => proptest::bool::weighted(0.5).prop_map(Act::Signal),
        2 => ms(20_000).prop_map(Act::Freeze),
        1 => Just(Act::WatchdogDies),
    ];
    proptest::collection::vec(act, 1..60)
}

/// A group that was started, as the kernel and the watchdog have it.
#[derive(Debug)]
struct Group {
    limits: Limits,
    stop: Option<Moment>,
    dies_at: Option<Moment>,
    leader_lives: bool,
    watchdog: bool,
    /// Killed because the claim was taken away before its time.
    condemned: bool,
}

struct World {
    now: Moment,
    supervisor: Supervisor,
    grace: Duration,
    /// When another may start; in the past if anyone may.
    until: Moment,
    token: u64,
    group: Option<Group>,
    demotion_ends_at: Option<Moment>,
    minds: Option<u64>,
    inbox: VecDeque<Input>,
    frozen_until: Moment,
    released: bool,
    exited: bool,
}

impl World {
    fn new(rules: Rules) -> World {
        World {
            now: at(0),
            supervisor: Supervisor::new(rules),
            grace: rules.timing.grace,
            until: at(0),
            token: 0,
            group: None,
            demotion_ends_at: None,
            minds: Some(0),
            inbox: VecDeque::new(),
            frozen_until: at(0),
            released: false,
            exited: false,
        }
    }

    fn act(&mut self, act: &Act) {
        let ms = Duration::from_millis;
        match *act {
            Act::Wait(span) => (0..span / STEP).for_each(|_| self.pass()),
            Act::Grant(ttl) if self.now >= self.until && !self.released => {
                self.token += 1;
                self.until = self.now + ms(ttl);
                self.inbox.push_back(Input::Granted(Grant {
                    token: self.token,
                    term: 1,
                    until: self.until,
                }));
            }
            Act::Renew(ttl) if self.now < self.until => {
                self.until = self.until.max(self.now + ms(ttl));
                self.inbox.push_back(Input::Renewed { until: self.until });
            }
            // Of a stopped mqraft nobody can promise that it hears of it.
            Act::Revoke if self.now < self.until && self.now >= self.frozen_until => {
                self.deliver_all();
                self.until = self.now;
                self.deliver(Input::Lost);
                if let Some(group) = &mut self.group {
                    assert!(group.dies_at.is_some(), "it runs on without a claim");
                    group.condemned = true;
                }
            }
            Act::Exit => self.leader_exits(),
            Act::Mind(span) => self.minds = span,
            Act::Signal(ends) => {
                let signal = if ends { Signal::TERM } else { Signal::HUP };
                self.inbox.push_back(Input::Signal(signal));
            }
            Act::Freeze(span) => self.frozen_until = self.now + ms(span),
            Act::WatchdogDies => {
                if let Some(group) = &mut self.group {
                    // The command by its parent-death signal; all else at once as well, since mqraft
                    // takes over, or would if it ran.
                    group.watchdog = false;
                    group.dies_at = Some(self.now);
                }
            }
            Act::Grant(_) | Act::Renew(_) | Act::Revoke => {}
        }
        self.pass();
    }

    /// One step of time.
    fn pass(&mut self) {
        self.now = self.now + Duration::from_millis(STEP);
        self.watchdog_looks();
        if let Some(group) = &self.group
            && group.dies_at.is_some_and(|at| at <= self.now)
        {
            if group.watchdog {
                self.leader_exits();
            }
            self.group = None;
            self.inbox.push_back(Input::Gone);
        }
        if self.demotion_ends_at.is_some_and(|at| at <= self.now) {
            self.demotion_ends_at = None;
            self.inbox.push_back(Input::DemotionOver);
        }
        assert!(
            self.lawful(),
            "alive when another may start: {:?}",
            self.group
        );
        if self.now >= self.frozen_until {
            self.deliver_all();
        }
    }

    /// Alive within the claim, or killed when the claim was taken away.
    fn lawful(&self) -> bool {
        self.now < self.until || self.group.as_ref().is_none_or(|group| group.condemned)
    }

    fn leader_exits(&mut self) {
        if let Some(group) = &mut self.group
            && std::mem::take(&mut group.leader_lives)
        {
            self.inbox.push_back(Input::Exited(1));
            // What it has left behind minds no signal.
            if self.minds.is_some() {
                group.dies_at.get_or_insert(self.now);
            }
        }
    }

    fn watchdog_looks(&mut self) {
        let Some(group) = &mut self.group else { return };
        if !group.watchdog {
            return;
        }
        let kill_at = group.stop.unwrap_or(group.limits.kill_at);
        if self.now >= kill_at.min(group.limits.kill_at) {
            if group.stop.is_none() && group.dies_at.is_none() {
                self.inbox.push_back(Input::Overdue);
            }
            self.kill();
        } else if self.now >= group.limits.term_at && group.stop.is_none() {
            self.inbox.push_back(Input::Overdue);
            let kill_at = group.limits.kill_at;
            self.terminate(kill_at);
        }
    }

    fn kill(&mut self) {
        let slowly = self.now + Duration::from_millis(SLOW_DEATH);
        if let Some(group) = &mut self.group {
            let dies_at = group.dies_at.unwrap_or(slowly).min(slowly);
            group.dies_at = Some(dies_at);
            // Killed, and by the clock no more.
            group.stop.get_or_insert(self.now);
        }
    }

    fn terminate(&mut self, kill_at: Moment) {
        let (now, minds) = (self.now, self.minds);
        if let Some(group) = &mut self.group {
            group.stop = Some(kill_at);
            if let Some(span) = minds {
                let end = now + Duration::from_millis(span);
                group.dies_at = Some(group.dies_at.unwrap_or(end).min(end));
            }
        }
    }

    fn deliver_all(&mut self) {
        while let Some(input) = self.inbox.pop_front() {
            self.deliver(input);
        }
        self.deliver(Input::Tick);
        let deadline = self.supervisor.deadline(self.now);
        assert!(deadline.is_none_or(|at| at > self.now));
    }

    fn deliver(&mut self, input: Input) {
        for output in self.supervisor.step(input, self.now) {
            assert!(!self.exited, "{output:?} after the end");
            self.carry_out(output);
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Spawn { grant, limits } => {
                assert!(self.group.is_none(), "two at once");
                assert!(
                    self.demotion_ends_at.is_none(),
                    "started before the demotion is over"
                );
                assert!(!self.released, "started after the release");
                assert_eq!(grant.token, self.token, "started with an old token");
                assert!(self.now < limits.term_at && limits.kill_at < self.until);
                self.group = Some(Group {
                    limits,
                    stop: None,
                    dies_at: None,
                    leader_lives: true,
                    watchdog: true,
                    condemned: false,
                });
            }
            Output::Limits(limits) => {
                if let Some(group) = &mut self.group {
                    group.limits = limits;
                }
            }
            Output::Stop { kill_at, .. } => {
                assert!(kill_at <= self.now + self.grace);
                self.terminate(kill_at);
            }
            Output::Kill => self.kill(),
            Output::Signal(_) => {}
            Output::Demote { kill_at, .. } => {
                assert!(self.group.is_none(), "demoted while it runs");
                assert!(self.demotion_ends_at.is_none(), "demoted twice at once");
                self.demotion_ends_at = Some(kill_at);
            }
            Output::Release => {
                assert!(self.group.is_none(), "released while it runs");
                assert!(
                    self.demotion_ends_at.is_none(),
                    "released before the demotion is over"
                );
                self.released = true;
                self.until = self.now;
            }
            Output::Exit(_) => {
                assert!(self.group.is_none() && self.demotion_ends_at.is_none());
                self.exited = true;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens when, and however long mqraft is stopped: no program is alive at the moment
    /// when another may start, none is started without a live claim, and the claim is given up last.
    /// Afterwards a claim that is held and renewed has its program, or the end has come.
    #[test]
    fn no_program_outlives_its_claim(
        acts in acts(),
        grace in 0_u64..=60,
        repeat in prop_oneof![
            Just(Repeat::Always),
            Just(Repeat::UntilItEnds),
            Just(Repeat::Never),
        ],
        on_demote: bool,
    ) {
        let grace = Duration::from_millis(grace * 100);
        let timing = Timing::new(grace, None, 0).unwrap();
        let mut world = World::new(Rules { timing, repeat, on_demote });
        for act in &acts {
            world.act(act);
        }
        // Everything heals.
        world.frozen_until = world.now;
        world.minds = Some(100);
        let ttl = timing.ttl.as_millis() as u64;
        for _ in 0..200 {
            world.act(&Act::Grant(ttl));
            world.act(&Act::Renew(ttl));
            world.act(&Act::Wait(500));
        }
        prop_assert!(world.exited || world.group.is_some(), "nothing runs in the end");
    }
}
