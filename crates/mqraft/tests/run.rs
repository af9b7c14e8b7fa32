//! The watchdog between `mqraft run` and its program, as real processes: this test plays mqraft.

#![cfg(target_os = "linux")]

mod bench;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use raft_over_mqtt::{Client, KeyRange, Kv, Mqtt};
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};
use rustix::time::{ClockId, clock_gettime};
use testkit::{TempDir, require_mosquitto, temp_dir, wait_for};

use bench::{Bench, PATIENCE};

/// Longer than any test.
const LONG: u64 = 600_000;

/// What the kernel may take to end a process, and this test to notice.
const SLACK: Duration = Duration::from_millis(900);

/// Microseconds on the clock that counts suspend.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000 + u64::try_from(now.tv_nsec).unwrap() / 1_000
}

#[derive(Debug, PartialEq, Eq)]
enum Report {
    Started(i32),
    Exited(u64),
    Overdue,
    Gone,
    /// The watchdog has ended.
    End,
}

/// A watchdog, and our end of what it listens to.
struct Watchdog {
    child: Child,
    control: Option<UnixStream>,
    dir: TempDir,
}

impl Watchdog {
    /// Runs a shell script; `term` and `kill` are milliseconds from now.
    fn start(script: &str, term: u64, kill: u64) -> Watchdog {
        let dir = temp_dir();
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let child = Command::new(env!("CARGO_BIN_EXE_mqraft"))
            .args(["__watchdog", "--", "sh", "-c", script])
            .current_dir(dir.path())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .expect("mqraft starts");
        let control = Some(ours);
        let mut watchdog = Watchdog {
            child,
            control,
            dir,
        };
        watchdog.limits(term, kill);
        watchdog
    }

    fn order(&mut self, kind: u8, a: u64, b: u64) {
        let mut record = vec![kind];
        record.extend_from_slice(&a.to_le_bytes());
        record.extend_from_slice(&b.to_le_bytes());
        let control = self.control.as_mut().expect("not closed");
        control.write_all(&record).expect("it listens");
    }

    fn limits(&mut self, term: u64, kill: u64) {
        let now = now();
        self.order(1, now + term * 1_000, now + kill * 1_000);
    }

    fn stop(&mut self, signal: Signal, kill: u64) {
        let number = u64::try_from(signal.as_raw()).unwrap();
        self.order(3, number, now() + kill * 1_000);
    }

    fn report(&mut self) -> Report {
        let control = self.control.as_mut().expect("not closed");
        control
            .set_read_timeout(Some(PATIENCE))
            .expect("a timeout that is not zero");
        let mut record = [0; 17];
        match control.read_exact(&mut record) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Report::End,
            Err(error) => panic!("no report: {error}"),
            Ok(()) => {}
        }
        let number = u64::from_le_bytes(record[1..9].try_into().unwrap());
        match record[0] {
            1 => Report::Started(i32::try_from(number).unwrap()),
            2 => Report::Exited(number),
            3 => Report::Overdue,
            4 => Report::Gone,
            kind => panic!("a report of kind {kind}"),
        }
    }

    #[track_caller]
    fn expect_started(&mut self) -> Pid {
        match self.report() {
            Report::Started(pid) => Pid::from_raw(pid).expect("a pid"),
            other => panic!("{other:?}"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Waits until the script has written a pid there.
    #[track_caller]
    fn pid_in(&self, name: &str) -> Pid {
        let mut pid = None;
        let path = self.path(name);
        wait_for(PATIENCE, || {
            let text = fs::read_to_string(&path).unwrap_or_default();
            pid = text.strip_suffix('\n').and_then(|text| text.parse().ok());
            pid.is_some()
        });
        Pid::from_raw(pid.expect("the script writes its pid")).expect("a pid")
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // A living one kills what it watches over.
        self.control = None;
        let _ = self.child.wait();
    }
}

/// Dead, or a zombie that does nothing any more.
fn is_dead(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    match stat {
        Ok(stat) => stat
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(_) => test_kill_process(pid).is_err(),
    }
}

/// A program that minds no SIGTERM, a child of it in the group, and one that has left both group and
/// session and whose parent is dead.
const STUBBORN: &str = "trap '' TERM
    sleep 600 & echo $! > child
    setsid sh -c 'echo $$ > stray; sleep 600' &
    setsid sh -c 'sh -c \"echo \\$\\$ > grandchild; sleep 600\" & exit' &
    echo $$ > own
    while true; do sleep 0.1; done";

impl Watchdog {
    fn family(&self) -> [Pid; 4] {
        ["own", "child", "stray", "grandchild"].map(|name| self.pid_in(name))
    }
}

/// mqraft sends no renewal, as when it is stopped or cut off: SIGTERM at the first limit, SIGKILL for
/// everyone at the second.
#[test]
fn without_a_renewal_the_watchdog_acts_alone() {
    let mut watchdog = Watchdog::start(STUBBORN, 1_500, 2_500);
    let kill_at = now() + 2_500_000;
    let group = watchdog.expect_started();
    let family = watchdog.family();
    assert_eq!(family[0], group);
    assert!(!family.into_iter().any(is_dead));
    assert_eq!(watchdog.report(), Report::Overdue);
    assert!(now() < kill_at, "SIGTERM comes before the kill");
    assert!(!is_dead(group), "it minds no SIGTERM");
    assert_eq!(watchdog.report(), Report::Exited(128 + 9));
    assert_eq!(watchdog.report(), Report::Gone);
    let late = now().saturating_sub(kill_at);
    assert!(late < SLACK.as_micros() as u64, "{late} µs late");
    assert!(family.into_iter().all(is_dead));
}

/// A program that ends when told is not killed.
#[test]
fn sigterm_comes_with_time_to_end() {
    let script =
        "trap 'echo ended > end; exit 4' TERM; echo $$ > own; while true; do sleep 0.05; done";
    let mut watchdog = Watchdog::start(script, 700, LONG);
    watchdog.expect_started();
    assert_eq!(watchdog.report(), Report::Overdue);
    assert_eq!(watchdog.report(), Report::Exited(4));
    assert_eq!(watchdog.report(), Report::Gone);
    assert_eq!(fs::read_to_string(watchdog.path("end")).unwrap(), "ended\n");
}

#[test]
fn renewals_keep_it_running() {
    let mut watchdog = Watchdog::start("echo $$ > own; exec sleep 600", 1_000, 1_200);
    let group = watchdog.expect_started();
    let end = now() + 3_000_000;
    while now() < end {
        watchdog.limits(1_000, 1_200);
        // Nothing but time tells whether a limit that was taken back does anything.
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!is_dead(group));
    assert_eq!(
        watchdog.report(),
        Report::Overdue,
        "and without them it ends"
    );
}

/// kill -9 of mqraft.
#[test]
fn when_mqraft_dies_everything_is_killed_at_once() {
    let mut watchdog = Watchdog::start(STUBBORN, LONG, LONG);
    watchdog.expect_started();
    let family = watchdog.family();
    watchdog.control = None;
    let died = now();
    assert!(wait_for(PATIENCE, || family.into_iter().all(is_dead)));
    let late = now() - died;
    assert!(late < SLACK.as_micros() as u64, "{late} µs");
    watchdog.child.wait().expect("it ends by itself");
}

/// kill -9 of the watchdog: the program has the parent-death signal.
#[test]
fn when_the_watchdog_dies_the_program_does() {
    let mut watchdog = Watchdog::start("echo $$ > own; exec sleep 600", LONG, LONG);
    let program = watchdog.expect_started();
    // By then it is the program, not the stage before.
    watchdog.pid_in("own");
    watchdog.child.kill().expect("it runs");
    assert!(wait_for(PATIENCE, || is_dead(program)));
}

/// Paused between the order to start and the start, for instance.
#[test]
fn what_is_too_late_does_not_start() {
    let mut watchdog = Watchdog::start("echo $$ > own", 0, LONG);
    assert_eq!(watchdog.report(), Report::Gone);
    assert!(!watchdog.path("own").exists());
}

/// The exit code comes at once, the word that nothing is left only when that is so.
#[test]
fn a_program_is_gone_when_all_that_it_started_is() {
    let script = "setsid sh -c 'echo $$ > stray; exec sleep 600' & sleep 600 & echo $! > child
                  while ! [ -s stray ]; do sleep 0.01; done; exit 3";
    let mut watchdog = Watchdog::start(script, LONG, LONG);
    let leader = watchdog.expect_started();
    assert_eq!(watchdog.report(), Report::Exited(3));
    let (stray, child) = (watchdog.pid_in("stray"), watchdog.pid_in("child"));
    assert!(!is_dead(stray) && !is_dead(child));
    // Its number is not given to anyone else meanwhile.
    assert!(test_kill_process(leader).is_ok(), "the leader was reaped");
    watchdog.stop(Signal::TERM, LONG);
    assert_eq!(watchdog.report(), Report::Gone);
    assert!(is_dead(stray) && is_dead(child));
}

#[test]
fn signals_reach_the_whole_group() {
    let script = "trap 'echo hup >> heard' HUP; (trap 'echo hup >> heard' HUP; echo r > ready; while true; do sleep 0.05; done) &
                  while true; do sleep 0.05; done";
    let mut watchdog = Watchdog::start(script, LONG, LONG);
    watchdog.expect_started();
    assert!(wait_for(PATIENCE, || watchdog.path("ready").exists()));
    watchdog.order(2, 1, 0);
    let heard = watchdog.path("heard");
    assert!(wait_for(PATIENCE, || {
        fs::read_to_string(&heard).is_ok_and(|text| text.lines().count() == 2)
    }));
}

/// A program that is stopped sees a SIGTERM only when it goes on.
#[test]
fn a_stopped_program_is_woken_to_end() {
    let script = "trap 'exit 5' TERM; echo $$ > own; while true; do sleep 0.05; done";
    let mut watchdog = Watchdog::start(script, LONG, LONG);
    let program = watchdog.expect_started();
    watchdog.pid_in("own");
    kill_process(program, Signal::STOP).expect("it runs");
    watchdog.stop(Signal::TERM, LONG);
    assert_eq!(watchdog.report(), Report::Exited(5));
}

#[test]
fn the_deadline_is_held_on_the_clock_that_counts_suspend() {
    let mut watchdog = Watchdog::start("exec sleep 600", LONG, LONG);
    watchdog.expect_started();
    let infos = fs::read_dir(format!("/proc/{}/fdinfo", watchdog.child.id())).expect("it runs");
    let clocks = infos.filter_map(|info| {
        let text = fs::read_to_string(info.ok()?.path()).ok()?;
        let line = text.lines().find(|line| line.starts_with("clockid:"))?;
        line.split_whitespace().nth(1).map(str::to_owned)
    });
    // CLOCK_BOOTTIME.
    assert_eq!(clocks.collect::<Vec<_>>(), ["7"]);
}

/// What a program cannot be, the exit code of a shell says.
#[test]
fn a_program_that_cannot_run_ends_with_the_exit_code_of_a_shell() {
    let exec = |parent: u32, program: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mqraft"));
        let parent = parent.to_string();
        let command = command.args(["__exec", &parent, "--", program]);
        command
            .stderr(Stdio::null())
            .status()
            .expect("it starts")
            .code()
    };
    let own = std::process::id();
    assert_eq!(exec(own, "true"), Some(0));
    assert_eq!(exec(own, "/no/such/program"), Some(127));
    assert_eq!(exec(own, "/"), Some(126));
    // Whose parent is another by now has lost its watchdog.
    assert_eq!(exec(1, "true"), Some(126));
}

// The command.

#[test]
fn a_ttl_without_time_to_stop_is_refused() {
    let bench = Bench::without_broker();
    let run = "run --broker mqtt://127.0.0.1:1 --insecure --grace 2s --ttl 6s -- true";
    let refused = bench.run(run).expect_exit(2);
    assert!(
        refused.stderr.contains("--ttl 6019ms at least"),
        "{refused:?}"
    );
}

#[test]
fn a_program_that_is_not_there_is_refused() {
    let bench = Bench::without_broker();
    let run = "run --broker mqtt://127.0.0.1:1 --insecure -- no-such-program";
    let refused = bench.run(run).expect_exit(2);
    assert!(refused.stderr.contains("no-such-program"), "{refused:?}");
}

/// A service that starts before its broker waits for it, and can be stopped meanwhile.
#[test]
fn without_a_broker_it_waits() {
    let bench = Bench::without_broker();
    let mut waiting = bench.process("run --broker mqtt://127.0.0.1:1 --insecure -- true");
    assert!(waiting.await_log("waiting for the cluster"));
    waiting.signal(Signal::TERM);
    assert_eq!(waiting.exit_code(), Some(0));
}

/// The environment, the exit code with `--once`, the demotion, and the release that lets the next one
/// start without waiting for the end of the claim.
#[test]
fn a_program_runs_once_and_hands_over() {
    require_mosquitto!();
    let bench = Bench::start();
    let _node = bench.process(&bench.lone_node("gw-1"));
    let script = bench.path("program");
    let text = "echo $MQRAFT_NAME $MQRAFT_NODE $MQRAFT_FENCING_TOKEN $MQRAFT_TERM; exit 6";
    fs::write(&script, text).unwrap();
    let demotion = bench.path("demotion");
    fs::write(&demotion, "echo demoted $MQRAFT_FENCING_TOKEN").unwrap();
    let run = |site: &str| {
        let mut command = bench.command(&format!(
            "run --name pump --id {site} --once --ttl 60s {} --on-demote",
            bench.insecure()
        ));
        command.arg(format!("sh {}", demotion.display()));
        command.args(["--".as_ref(), "sh".as_ref(), script.as_os_str()]);
        bench::Answer::of(command, &bench).expect_exit(6).stdout
    };
    let mut last = 0;
    for site in ["site-a", "site-b"] {
        let said = run(site);
        let lines: Vec<&str> = said.lines().collect();
        let [first, second] = lines[..] else {
            panic!("{said:?}")
        };
        let words: Vec<&str> = first.split(' ').collect();
        assert_eq!(words[..2], ["pump", site]);
        let token: u64 = words[2].parse().expect("a token");
        assert!(token > last, "tokens grow");
        assert!(
            words[3].parse::<u64>().is_ok_and(|term| term > 0),
            "{first}"
        );
        assert_eq!(second, format!("demoted {token}"));
        last = token;
    }
}

/// A site that waited and was stopped has left: the next one does not wait for the end of its lease.
#[test]
fn who_no_longer_waits_is_not_waited_for() {
    require_mosquitto!();
    let bench = Bench::start();
    let _node = bench.process(&bench.lone_node("gw-1"));
    let site = |id: &str| {
        let words = format!("run --id {id} --ttl 120s {} -- sleep 600", bench.insecure());
        bench.process(&words)
    };
    let elected = || election_of(&bench.url());
    let mut first = site("site-a");
    assert!(first.await_log("started"), "{}", first.log());
    let mut second = site("site-b");
    assert!(
        wait_for(PATIENCE, || elected().len() == 2),
        "{}",
        second.log()
    );
    let mut third = site("site-c");
    assert!(
        wait_for(PATIENCE, || elected().len() == 3),
        "{}",
        third.log()
    );
    second.signal(Signal::TERM);
    assert_eq!(second.exit_code(), Some(0));
    assert_eq!(elected(), ["site-a", "site-c"]);
    first.signal(Signal::TERM);
    assert_eq!(first.exit_code(), Some(128 + 15));
    assert!(third.await_log("started"), "{}", third.log());
    third.signal(Signal::TERM);
    assert_eq!(third.exit_code(), Some(128 + 15));
    assert_eq!(elected(), [""; 0]);
}

/// Two places, and a third that waits or does not; exit codes are the program's, or say that it did not run.
#[test]
fn a_lock_runs_as_many_as_it_has_places() {
    require_mosquitto!();
    let bench = Bench::start();
    let _node = bench.process(&bench.lone_node("gw-1"));
    let lock = |flags: &str, program: &str| {
        format!("lock press {flags} {} -- {program}", bench.insecure())
    };
    let sleeping = || bench.process(&lock("-n 2 --log info", "sleep 600"));
    let mut first = sleeping();
    assert!(first.await_log("started"), "{}", first.log());
    let second = sleeping();
    assert!(second.await_log("started"), "{}", second.log());
    let refused = bench.run(&lock("-n 2 --no-wait", "true")).expect_exit(1);
    assert!(refused.stderr.contains("another's"), "{refused:?}");
    // All must mean the same lock.
    let contradicts = bench.run(&lock("-n 3", "true")).expect_exit(1);
    assert!(contradicts.stderr.contains("2 places"), "{contradicts:?}");
    let mut waiting = bench.process(&lock("-n 2 --log info", "true"));
    assert!(waiting.await_log("waiting for \"press\""));
    waiting.signal(Signal::INT);
    assert_eq!(waiting.exit_code(), Some(128 + 2), "it has not run");

    let mut third = bench.process(&lock("-n 2", "sh -c true"));
    first.signal(Signal::TERM);
    assert_eq!(first.exit_code(), Some(128 + 15));
    assert_eq!(third.exit_code(), Some(0), "{}", third.log());
    bench.run(&lock("-n 2 --no-wait", "false")).expect_exit(1);
    bench.run(&lock("-n 2 --no-wait", "true")).expect_exit(0);
}

/// The cluster key is replaced, and the program notices nothing.
#[test]
fn a_rotation_of_the_key_loses_no_claim() {
    require_mosquitto!();
    let bench = Bench::start();
    let key = bench.path("key").display().to_string();
    bench.run(&format!("keygen {key}")).expect_exit(0);
    let flags = format!("--key-file {key} --broker {}", bench.url());
    let node = bench.process(&format!(
        "{} {flags}",
        bench.lone_node_without_flags("gw-1")
    ));
    // The program is told of the SIGHUP too; this one minds none.
    let run = bench.process(&format!(
        "run --grace 200ms --ttl 3500ms {flags} -- nohup sleep 600"
    ));
    assert!(run.await_log("started"), "{}", run.log());
    for step in ["--add", "--promote", "--finish"] {
        bench
            .run(&format!("key rotate --key-file {key} {step}"))
            .expect_exit(0);
        run.signal(Signal::HUP);
        node.signal(Signal::HUP);
        let status = format!("key status {flags}");
        assert!(wait_for(PATIENCE, || bench.run(&status).code == Some(0)));
    }
    // Longer than a claim lasts that is not renewed.
    let stopped = || run.log().contains("ended with") || run.log().contains("not in the queue");
    assert!(!wait_for(Duration::from_secs(5), stopped), "{}", run.log());
    bench.run(&format!("put door open {flags}")).expect_exit(0);
}

/// What a terminal sends to the whole group of mqraft (Ctrl-C) ends the program by way of mqraft; the
/// watchdog is in another.
#[test]
fn an_interrupt_from_the_terminal_is_passed_on_once() {
    require_mosquitto!();
    let bench = Bench::start();
    let _node = bench.process(&bench.lone_node("gw-1"));
    let script = bench.path("program");
    let text = "trap 'echo heard >> heard; sleep 0.3; exit 7' INT
                echo ready > ready; while true; do sleep 0.05; done";
    fs::write(&script, text).unwrap();
    let mut command = bench.command(&format!("run {}", bench.insecure()));
    command.args(["--".as_ref(), "sh".as_ref(), script.as_os_str()]);
    command.process_group(0);
    let mut run = bench::Process::start(command, &bench);
    assert!(
        wait_for(PATIENCE, || bench.path("ready").exists()),
        "{}",
        run.log()
    );
    kill_process_group(Pid::from_child(&run.child), Signal::INT).expect("it runs");
    assert_eq!(run.exit_code(), Some(7), "{}", run.log());
    let heard = fs::read_to_string(bench.path("heard")).expect("a line");
    assert_eq!(heard, "heard\n");
}

/// Whoever takes the claim away by force takes it at once: the program is killed without grace as soon
/// as mqraft hears of it, and starts again with the token of its next claim.
#[test]
fn a_claim_that_is_taken_away_ends_the_program() {
    require_mosquitto!();
    let bench = Bench::start();
    let _node = bench.process(&bench.lone_node("gw-1"));
    let script = bench.path("program");
    let text = "trap 'echo asked >> starts' TERM
                echo $$ $MQRAFT_FENCING_TOKEN >> starts
                while true; do sleep 0.1; done";
    fs::write(&script, text).unwrap();
    // So long that the session by itself notices nothing for 40 s.
    let mut command = bench.command(&format!("run --ttl 120s {}", bench.insecure()));
    command.args(["--".as_ref(), "sh".as_ref(), script.as_os_str()]);
    let run = bench::Process::start(command, &bench);
    let starts = || -> Vec<(Pid, u64)> {
        let text = fs::read_to_string(bench.path("starts")).unwrap_or_default();
        let start = |line: &str| {
            let (pid, token) = line.split_once(' ').expect("nobody was asked to end");
            let pid = Pid::from_raw(pid.parse().expect("a pid")).expect("a pid");
            (pid, token.parse().expect("a token"))
        };
        text.lines().map(start).collect()
    };
    assert!(wait_for(PATIENCE, || starts().len() == 1), "{}", run.log());
    revoke_all(&bench.url());
    assert!(wait_for(PATIENCE, || starts().len() == 2), "{}", run.log());
    let (first, second) = (starts()[0], starts()[1]);
    assert!(is_dead(first.0), "it is killed before the next starts");
    assert!(first.1 < second.1, "tokens grow");
}

/// Who stands in the election, by place.
fn election_of(url: &str) -> Vec<String> {
    asked(url, async |kv| {
        let range = KeyRange::Prefix("_/election/default/".into());
        let mut standing = kv.list(range).await.expect("a list").pairs;
        standing.sort_by_key(|one| one.created);
        let name = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        standing.iter().map(|one| name(&one.value)).collect()
    })
}

/// Ends every lease.
fn revoke_all(url: &str) {
    asked(url, async |kv| {
        for lease in kv.leases().await.expect("a list") {
            kv.revoke(lease).await.expect("it lives");
        }
    });
}

fn asked<T>(url: &str, ask: impl AsyncFnOnce(Kv) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mqtt = Mqtt::new(url).expect("a URL");
        let client = Client::connect(mqtt, "raft", "default", None, PATIENCE).await;
        ask(client.expect("a session with the broker").kv()).await
    })
}

/// `kill -9` of the watchdog: mqraft kills what it left, descendants that left the group included, and
/// starts the program again.
#[test]
fn mqraft_takes_over_from_a_dead_watchdog() {
    require_mosquitto!();
    let bench = Bench::start();
    let _node = bench.process(&bench.lone_node("gw-1"));
    let script = bench.path("program");
    let text = "setsid sh -c 'echo $$ >> strays; exec sleep 600' &
                while true; do sleep 0.1; done";
    fs::write(&script, text).unwrap();
    let mut command = bench.command(&format!("run {}", bench.insecure()));
    command.args(["--".as_ref(), "sh".as_ref(), script.as_os_str()]);
    let run = bench::Process::start(command, &bench);
    let strays = || -> Vec<Pid> {
        let text = fs::read_to_string(bench.path("strays")).unwrap_or_default();
        let pids = text.lines().filter_map(|line| line.parse().ok());
        pids.filter_map(Pid::from_raw).collect()
    };
    assert!(wait_for(PATIENCE, || strays().len() == 1), "{}", run.log());
    let first = strays()[0];
    kill_process(watchdog_of(run.child.id()), Signal::KILL).expect("it runs");
    assert!(wait_for(PATIENCE, || strays().len() == 2), "{}", run.log());
    assert!(is_dead(first));
    // And from one that is stopped, when the end comes.
    kill_process(watchdog_of(run.child.id()), Signal::STOP).expect("it runs");
    run.signal(Signal::TERM);
    run.signal(Signal::TERM);
    let mut run = run;
    assert_eq!(run.exit_code(), Some(128 + 9), "{}", run.log());
    assert!(strays().into_iter().all(is_dead));
}

/// The child of a process.
fn watchdog_of(parent: u32) -> Pid {
    let children = format!("/proc/{parent}/task/{parent}/children");
    let mut pid = None;
    wait_for(PATIENCE, || {
        let text = fs::read_to_string(&children).unwrap_or_default();
        pid = text
            .split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok());
        pid.is_some()
    });
    Pid::from_raw(pid.expect("a child")).expect("a pid")
}
