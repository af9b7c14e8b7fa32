//! What goes wrong.
//!
//! Weather is always there: loss, delay, duplicates, late wills. Faults strike one at a time, as
//! the plan says. Plots (`plot.rs`) wait for a moment that chance alone rarely brings.

use raft::{NodeKey, Role, Term};
use replica::{Input, Metric};

use crate::broker::Retained;
use crate::disk::Disk;
use crate::event::{Event, MS, Micros, SECOND};
use crate::node::{Death, Kind};
use crate::plan::Strike;
use crate::rng::Rng;
use crate::world::World;

/// How likely each small mishap is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Weather {
    pub(crate) delay_min: Micros,
    pub(crate) delay_max: Micros,
    pub(crate) spike: f64,
    pub(crate) spike_max: Micros,
    pub(crate) loss: f64,
    pub(crate) duplicate: f64,
    pub(crate) reorder: f64,
    /// QoS 0 messages under way to a subscriber before the rest of a burst is dropped.
    pub(crate) queue: u64,
    pub(crate) missing_will: f64,
    pub(crate) late_will: f64,
}

impl Weather {
    pub(crate) fn draw(rng: &mut Rng) -> Weather {
        let delay_min = rng.between(50, 2_000);
        let some = |rng: &mut Rng, most: f64| match rng.below(3) {
            0 => 0.0,
            1 => most / 10.0,
            _ => most,
        };
        Weather {
            delay_min,
            delay_max: delay_min + rng.between(10, 10_000),
            spike: some(rng, 0.02),
            spike_max: rng.between(10, 1_500) * MS,
            loss: some(rng, 0.1),
            duplicate: some(rng, 0.05),
            reorder: some(rng, 0.1),
            queue: *rng.pick(&[10, 50, 1_000]).expect("three"),
            missing_will: some(rng, 0.3),
            late_will: some(rng, 0.3),
        }
    }

    /// What the simulator's speed is measured in: of a hundred messages two are lost.
    pub(crate) fn bench() -> Weather {
        Weather {
            loss: 0.02,
            ..Weather::calm()
        }
    }

    /// After all has healed: a network as it should be.
    pub(crate) fn calm() -> Weather {
        Weather {
            delay_min: 200,
            delay_max: 1_000,
            queue: 1_000,
            ..Weather::default()
        }
    }
}

/// What can go wrong at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Kill,
    KillHost,
    KillBetweenEffects,
    Wipe,
    Pause,
    SlowDisk,
    Drift,
    Cut,
    CutUp,
    CutDown,
    CutLeader,
    BrokerKill,
    BrokerKillAndForget,
    Kick,
    SlowSubscriber,
    Replay,
    ReplayStatus,
    Damage,
    Garbage,
    Truncate,
    Foreign,
    Forge,
    Oversize,
    WrongStatus,
    ClearStatus,
    Double,
    MetricChange,
    Shutdown,
    NewClient,
    PowerCutInWrite,
    KillInWrite,
    SyncError,
    DiskFull,
    ReadOnlyDisk,
    BitRot,
    Takeover,
    Rival,
    BrokerKillAndRevert,
    Jump,
    RevolvingDoor,
    MutedLeader,
    LateAnswers,
    FreshLeader,
    FallingVoters,
    Join,
    Dismiss,
    Reshape,
    Replace,
    Resettle,
    Transfer,
    Swing,
    Leave,
    SlowOwner,
    CutPath,
    BrokerStop,
    BrokerSlow,
    BrokerFlaps,
}

impl Fault {
    pub(crate) const ALL: [Fault; 57] = [
        Fault::Kill,
        Fault::KillHost,
        Fault::KillBetweenEffects,
        Fault::Wipe,
        Fault::Pause,
        Fault::SlowDisk,
        Fault::Drift,
        Fault::Cut,
        Fault::CutUp,
        Fault::CutDown,
        Fault::CutLeader,
        Fault::BrokerKill,
        Fault::BrokerKillAndForget,
        Fault::Kick,
        Fault::SlowSubscriber,
        Fault::Replay,
        Fault::ReplayStatus,
        Fault::Damage,
        Fault::Garbage,
        Fault::Truncate,
        Fault::Foreign,
        Fault::Forge,
        Fault::Oversize,
        Fault::WrongStatus,
        Fault::ClearStatus,
        Fault::Double,
        Fault::MetricChange,
        Fault::Shutdown,
        Fault::NewClient,
        Fault::PowerCutInWrite,
        Fault::KillInWrite,
        Fault::SyncError,
        Fault::DiskFull,
        Fault::ReadOnlyDisk,
        Fault::BitRot,
        Fault::Takeover,
        Fault::Rival,
        Fault::BrokerKillAndRevert,
        Fault::Jump,
        Fault::RevolvingDoor,
        Fault::MutedLeader,
        Fault::LateAnswers,
        Fault::FreshLeader,
        Fault::FallingVoters,
        Fault::Join,
        Fault::Dismiss,
        Fault::Reshape,
        Fault::Replace,
        Fault::Resettle,
        Fault::Transfer,
        Fault::Swing,
        Fault::Leave,
        Fault::SlowOwner,
        Fault::CutPath,
        Fault::BrokerStop,
        Fault::BrokerSlow,
        Fault::BrokerFlaps,
    ];

    /// What an operator does.
    pub(crate) const OPERATORS: [Fault; 9] = [
        Fault::Join,
        Fault::Dismiss,
        Fault::Reshape,
        Fault::Replace,
        Fault::Resettle,
        Fault::Transfer,
        Fault::Swing,
        Fault::Leave,
        Fault::SlowOwner,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Fault::Kill => "kill",
            Fault::KillHost => "kill host",
            Fault::KillBetweenEffects => "kill between effects",
            Fault::Wipe => "wiped disk",
            Fault::Pause => "pause",
            Fault::SlowDisk => "slow disk",
            Fault::Drift => "clock drift",
            Fault::Cut => "partition",
            Fault::CutUp => "partition up",
            Fault::CutDown => "partition down",
            Fault::CutLeader => "partition of the leader",
            Fault::BrokerKill => "broker kill",
            Fault::BrokerKillAndForget => "broker kill, retained lost",
            Fault::Kick => "false will",
            Fault::SlowSubscriber => "slow subscriber",
            Fault::Replay => "replayed frame",
            Fault::ReplayStatus => "replayed status",
            Fault::Damage => "damaged frame",
            Fault::Garbage => "garbage",
            Fault::Truncate => "truncated frame",
            Fault::Foreign => "foreign cluster",
            Fault::Forge => "forged frame",
            Fault::Oversize => "oversize payload",
            Fault::WrongStatus => "wrong retained status",
            Fault::ClearStatus => "cleared retained status",
            Fault::Double => "second process of a name",
            Fault::MetricChange => "metric change",
            Fault::Shutdown => "graceful stop",
            Fault::NewClient => "client restart",
            Fault::PowerCutInWrite => "power cut during a write",
            Fault::KillInWrite => "kill during a write",
            Fault::SyncError => "sync error",
            Fault::DiskFull => "disk full",
            Fault::ReadOnlyDisk => "read-only disk",
            Fault::BitRot => "bit rot",
            Fault::Takeover => "session takeover",
            Fault::Rival => "client id taken by another",
            Fault::BrokerKillAndRevert => "broker kill, retained of long ago",
            Fault::Jump => "clock jump",
            Fault::RevolvingDoor => "plot: each new leader falls",
            Fault::MutedLeader => "plot: a leader whom nobody hears",
            Fault::LateAnswers => "plot: answers reach a deposed leader",
            Fault::FreshLeader => "plot: a new leader before its first commit",
            Fault::FallingVoters => "plot: voters fall while they vote",
            Fault::Join => "node made a voter",
            Fault::Dismiss => "voter removed",
            Fault::Reshape => "members changed at random",
            Fault::Replace => "wiped voter replaced",
            Fault::Resettle => "settings changed",
            Fault::Transfer => "lead transferred",
            Fault::Swing => "metrics swing",
            Fault::Leave => "graceful leave",
            Fault::SlowOwner => "owner slow to let go",
            Fault::CutPath => "path to one broker cut",
            Fault::BrokerStop => "broker stopped",
            Fault::BrokerSlow => "slow broker",
            Fault::BrokerFlaps => "flapping broker",
        }
    }
}

impl World {
    /// The next thing on the plan goes wrong. What it decides, it decides with its own dice.
    pub(crate) fn fault(&mut self, number: usize) {
        if self.faults_end {
            return;
        }
        let Strike { fault, dice, .. } = self.plan.strikes[number];
        let rng = std::mem::replace(&mut self.rng, Rng::new(dice));
        if let Some(mattered) = self.strike(fault) {
            self.fired(fault.name());
            if mattered {
                self.mattered(fault.name());
            }
        }
        self.rng = rng;
    }

    /// `None` if the fault found no victim; otherwise whether it has mattered already. Where that
    /// shows only later, whoever sees it says so.
    fn strike(&mut self, fault: Fault) -> Option<bool> {
        let hosts: Vec<usize> = (0..self.hosts.len()).collect();
        let nodes: Vec<usize> = self.live_nodes();
        let node = *self.rng.pick(&nodes)?;
        let host = *self.rng.pick(&hosts).expect("some host");
        let name = fault.name();
        match fault {
            Fault::Kill => self.fall(node, Death::Process),
            Fault::KillHost => self.fall(node, Death::Host),
            Fault::KillBetweenEffects => {
                let effects = self.rng.below(40);
                self.hosts[node].dies_after = Some(effects);
                return Some(false);
            }
            Fault::Wipe => return self.wipe(node).then_some(true),
            Fault::Pause => {
                let pause = self.rng.exponential(2 * SECOND);
                if self.hosts[node].paused {
                    return None;
                }
                self.pause(node, pause);
                return Some(false);
            }
            Fault::SlowDisk => {
                let latency = self.rng.exponential(100 * MS) + 100;
                self.hosts[node].slow_down_disk(latency);
                return Some(false);
            }
            Fault::Drift => {
                let ppm = self.drift();
                let now = self.now;
                self.hosts[node].clock.drift(now, ppm);
                self.claim_again(node);
            }
            Fault::Jump => return self.jump(node).then_some(true),
            Fault::Cut => return self.cut(host, true, true, name),
            Fault::CutUp => return self.cut(host, true, false, name),
            Fault::CutDown => return self.cut(host, false, true, name),
            Fault::CutPath => {
                let links = self.hosts[host].links.len() as u64;
                let link = self.rng.below(links) as usize;
                let (up, down) = *self
                    .rng
                    .pick(&[(true, false), (false, true), (true, true)])
                    .expect("three");
                return self.cut_link(host, link, up, down, name);
            }
            Fault::CutLeader => {
                let leader = self.live_leader()?;
                return self.cut(leader, true, true, name);
            }
            Fault::BrokerKill | Fault::BrokerKillAndForget | Fault::BrokerKillAndRevert => {
                return self.strike_broker(fault);
            }
            Fault::Kick => {
                let sessions = self.hosts[host].sessions();
                let session = *self.rng.pick(&sessions)?;
                self.broker_notices(session);
            }
            Fault::BrokerStop => {
                let broker = self.draw_broker();
                let pause = self.rng.exponential(2 * SECOND) + 10 * MS;
                return (!self.brokers.all[broker].is_down)
                    .then(|| self.stop_broker(broker, pause));
            }
            Fault::BrokerSlow => {
                let broker = self.draw_broker();
                self.brokers.all[broker].slow = self.rng.below(100) * MS;
            }
            Fault::BrokerFlaps => {
                let (broker, times) = (self.draw_broker(), self.rng.between(2, 8));
                self.flap(broker, times);
            }
            Fault::Takeover => return self.take_over(host, 1).then_some(true),
            Fault::Rival => {
                let times = self.rng.between(2, 10);
                return self.take_over(host, times).then_some(true);
            }
            Fault::SlowSubscriber => {
                let slow = self.rng.below(300) * MS;
                let links = &mut self.hosts[host].links;
                let n = self.rng.below(links.len() as u64) as usize;
                (links[n].slow, links[n].slowed) = (slow, true);
                return Some(false);
            }
            Fault::Replay => return self.replay(node),
            Fault::ReplayStatus => return self.replay_status(),
            Fault::Damage | Fault::Truncate | Fault::Oversize => return self.mangle(node, fault),
            Fault::Garbage => return Some(self.garbage(node)),
            Fault::Foreign => return Some(self.foreign(node)),
            Fault::Forge => return Some(self.forge(node)),
            Fault::WrongStatus | Fault::ClearStatus => self.wrong_status(node, fault),
            Fault::Double => {
                self.double(node).then_some(())?;
                return Some(false);
            }
            Fault::MetricChange => {
                let metric = Metric::new(self.rng.below(5) as f64).expect("finite");
                self.arrive(node, Input::SetMetric(metric));
            }
            Fault::Shutdown => self.step(node, vec![Input::Shutdown]),
            Fault::Join | Fault::Dismiss | Fault::Reshape | Fault::Replace | Fault::Resettle => {
                return self.ask_for_change(fault);
            }
            Fault::Transfer => return self.ask_for_transfer(),
            Fault::Swing => {
                let times = self.rng.between(3, 20);
                let every = self.rng.between(1, 15) * SECOND;
                self.queue.push(self.now, Event::Swing { times, every });
                return Some(false);
            }
            Fault::Leave => return self.ask_to_leave(node),
            Fault::SlowOwner => return self.slow_down_owner(node),
            Fault::NewClient => {
                (self.hosts[host].kind == Kind::Client).then_some(())?;
                self.fall(host, Death::Process);
            }
            Fault::PowerCutInWrite | Fault::KillInWrite => {
                let death = match fault {
                    Fault::KillInWrite => Death::Process,
                    _ => Death::Host,
                };
                self.hosts[node].disk.dies_in_batch = Some(death);
                return Some(false);
            }
            Fault::SyncError => {
                self.hosts[node].disk.fail_next_sync();
                return Some(false);
            }
            Fault::DiskFull => {
                let left = self.rng.below(20_000);
                self.hosts[node].disk.fill(left);
                return Some(false);
            }
            Fault::ReadOnlyDisk => {
                self.hosts[node].disk.make_read_only();
                return Some(false);
            }
            Fault::BitRot => return self.rot(node).then_some(false),
            Fault::RevolvingDoor
            | Fault::MutedLeader
            | Fault::LateAnswers
            | Fault::FreshLeader
            | Fault::FallingVoters => {
                self.begin_plot(fault).then_some(())?;
                return Some(false);
            }
        }
        Some(true)
    }

    /// Whoever leads the newest term of all that lead.
    pub(crate) fn live_leader(&self) -> Option<usize> {
        let leaders = self.live_nodes().into_iter();
        let leaders = leaders.filter(|node| self.role(*node) == Some(Role::Leader));
        leaders.max_by_key(|node| self.hosts[*node].replica().map(replica::Replica::term))
    }

    fn cut(&mut self, host: usize, up: bool, down: bool, name: &'static str) -> Option<bool> {
        for link in &mut self.hosts[host].links {
            link.cut(up, down, name);
        }
        self.expect_overdue(host);
        let wait = self.rng.exponential(4 * SECOND);
        let healed = Event::Heal { host, link: None };
        self.queue.push(self.now + wait, healed);
        self.trace(host, || format!("cut off: up {up}, down {down}"));
        Some(false)
    }

    /// One path is dead, in one direction or both.
    fn cut_link(
        &mut self,
        host: usize,
        link: usize,
        up: bool,
        down: bool,
        name: &'static str,
    ) -> Option<bool> {
        self.hosts[host].links[link].cut(up, down, name);
        self.expect_overdue(host);
        let wait = self.rng.exponential(4 * SECOND);
        let healed = Event::Heal {
            host,
            link: Some(link),
        };
        self.queue.push(self.now + wait, healed);
        self.trace(host, || format!("link {link} cut: up {up}, down {down}"));
        Some(false)
    }

    pub(crate) fn draw_broker(&mut self) -> usize {
        self.rng.below(self.brokers.all.len() as u64) as usize
    }

    /// One broker, or all at once.
    fn strike_broker(&mut self, fault: Fault) -> Option<bool> {
        let all = self.brokers.all.len();
        let struck = match self.rng.chance(0.3) {
            true => 0..all,
            false => {
                let one = self.draw_broker();
                one..one + 1
            }
        };
        let kept = match fault {
            Fault::BrokerKillAndForget => Retained::Lost,
            Fault::BrokerKillAndRevert => Retained::AsSaved,
            _ => Retained::Kept,
        };
        let mut mattered = None;
        for broker in struck {
            let down = self.rng.exponential(SECOND) + 10 * MS;
            if !self.brokers.all[broker].is_down {
                let matters = self.kill_broker(broker, kept, down);
                mattered = Some(mattered.unwrap_or(false) || matters);
            }
        }
        mattered
    }

    /// A clock jumps ahead. Not a leader's: what its lease is worth rests on its clock, and the
    /// drift bound excludes jumps (docs/proof.md).
    fn jump(&mut self, node: usize) -> bool {
        if self.role(node) == Some(Role::Leader) {
            return false;
        }
        let by = self.rng.exponential(2 * SECOND) + MS;
        let now = self.now;
        self.hosts[node].clock.jump(now, by);
        self.trace(node, || format!("its clock jumps by {by} us"));
        self.arrive(node, Input::Tick);
        true
    }

    // Disks.

    /// A node loses its disk, unless too many voters would be lost for good.
    fn wipe(&mut self, host: usize) -> bool {
        if !self.can_lose(host) {
            return false;
        }
        self.die(host, Death::Process);
        self.bury(host);
        let wait = self.rng.exponential(2 * SECOND) + MS;
        self.queue.push(self.now + wait, Event::Start { host });
        true
    }

    /// A bit changes on a node's disk; it is found at the next start, which may be at once.
    fn rot(&mut self, host: usize) -> bool {
        // Until the cluster is formed, a voter that is given up has to be waited for.
        let voter = self.hosts[host].kind == Kind::Voter;
        if (voter && !self.formed()) || !self.can_lose(host) {
            return false;
        }
        let [file, offset, bit] = [(); 3].map(|()| self.rng.next());
        let Some(what) = self.hosts[host].disk.rot(file, offset, bit) else {
            return false;
        };
        self.trace(host, || format!("a bit changes in {what}"));
        if self.rng.chance(0.5) {
            self.fall(host, Death::Process);
        }
        true
    }

    pub(crate) fn bury(&mut self, host: usize) {
        let key = self.draw_key();
        let disk = std::mem::replace(&mut self.hosts[host].disk, Disk::new(key));
        self.judge.graveyard.push(disk.remains());
        self.trace(host, || format!("loses its disk; its key is now {key}"));
    }

    /// Someone starts a second process under a node's name.
    fn double(&mut self, node: usize) -> bool {
        // A voter alone has nobody to keep a second one from forming its own cluster.
        let formed = self.formed() && self.a_founder_remembers(None, Some(node));
        let spare = self.spare();
        if !formed || self.hosts[node].kind != Kind::Voter || self.hosts[spare].process.is_some() {
            return false;
        }
        self.start_double(spare, node);
        true
    }

    pub(crate) fn start_double(&mut self, spare: usize, of: usize) {
        self.bury(spare);
        let name = self.hosts[of].name.clone();
        let h = &mut self.hosts[spare];
        h.kind = Kind::Double(of);
        h.name = name;
        self.start(spare);
    }

    pub(crate) fn draw_key(&mut self) -> NodeKey {
        NodeKey::from_bytes(self.rng.bytes())
    }

    /// The newest term that anyone has taken part in.
    pub(crate) fn newest_term(&self) -> Term {
        let terms = self.hosts.iter().map(|h| h.disk.durable.hard_state.term);
        terms.max().unwrap_or_default()
    }
}
