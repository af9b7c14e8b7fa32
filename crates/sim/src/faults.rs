//! What goes wrong, how often, and what must not follow from it.
//!
//! Weather is always there: loss, delay, duplicates, late wills. Faults strike one at a time.
//! Frames that are no frames, or not fresh, are tried on nodes directly: they must change nothing.

use bytes::Bytes;
use raft::{HardState, Index, Lease, NodeKey, Role, Term};
use replica::{
    Client, ClientEffect, ClientInput, ClusterKey, Effect, Input, KeyRing, Metric, Name, Publish,
};

use crate::broker::Recorded;
use crate::check::holds;
use crate::disk::Disk;
use crate::event::{Event, MS, Micros, SECOND};
use crate::node::{Death, Kind, Process};
use crate::rng::Rng;
use crate::world::World;

/// How likely each small mishap is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weather {
    pub(crate) delay_min: Micros,
    pub(crate) delay_max: Micros,
    pub(crate) spike: f64,
    pub(crate) spike_max: Micros,
    pub(crate) loss: f64,
    pub(crate) duplicate: f64,
    pub(crate) reorder: f64,
    /// QoS 0 messages under way to a subscriber before the rest of a burst is dropped.
    pub(crate) queue: usize,
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
enum Fault {
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
}

const FAULTS: [Fault; 35] = [
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
];

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Fault::Kill => "kill",
            Fault::KillHost => "kill host",
            Fault::KillBetweenEffects => "kill between effects (armed)",
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
            Fault::PowerCutInWrite => "power cut during a write (armed)",
            Fault::KillInWrite => "kill during a write (armed)",
            Fault::SyncError => "sync error (armed)",
            Fault::DiskFull => "disk full (armed)",
            Fault::ReadOnlyDisk => "read-only disk (armed)",
            Fault::BitRot => "bit rot (planted)",
        }
    }
}

/// What of a node an intruder must not change.
#[derive(Debug, PartialEq)]
struct Fingerprint {
    role: Option<Role>,
    hard_state: Option<HardState>,
    leader: Option<Name>,
    commit: Option<Index>,
    last: Option<Index>,
    applied: Index,
    digest: u32,
    lease: Option<Lease>,
    active: Vec<(Name, NodeKey, String, u64)>,
}

impl World {
    /// Draws which faults this seed favours.
    pub(crate) fn draw_faults(rng: &mut Rng) -> Vec<usize> {
        let all = 0..FAULTS.len();
        if rng.chance(0.3) {
            return all.collect();
        }
        let few = rng.between(2, 10);
        (0..few)
            .map(|_| rng.below(FAULTS.len() as u64) as usize)
            .collect()
    }

    /// Something goes wrong.
    pub(crate) fn fault(&mut self) {
        if !self.faults_end {
            let wait = self.rng.exponential(self.profile.fault_every) + MS;
            self.queue.push(self.now + wait, Event::Fault);
            let favoured = self.profile.faults.clone();
            let fault = FAULTS[*self.rng.pick(&favoured).expect("some fault")];
            if self.strike(fault) {
                self.fired(fault.name());
            }
        }
    }

    /// Whether the fault found a victim.
    fn strike(&mut self, fault: Fault) -> bool {
        let hosts: Vec<usize> = (0..self.hosts.len()).collect();
        let nodes: Vec<usize> = self.live_nodes();
        let Some(node) = self.rng.pick(&nodes).copied() else {
            return false;
        };
        let host = *self.rng.pick(&hosts).expect("some host");
        match fault {
            Fault::Kill => self.fall(node, Death::Process),
            Fault::KillHost => self.fall(node, Death::Host),
            Fault::KillBetweenEffects => {
                let effects = self.rng.below(40);
                self.hosts[node].dies_after = Some(effects);
            }
            Fault::Wipe => return self.wipe(node),
            Fault::Pause => {
                let pause = self.rng.exponential(2 * SECOND);
                if self.hosts[node].paused {
                    return false;
                }
                self.pause(node, pause);
            }
            Fault::SlowDisk => {
                self.hosts[node].disk_latency = self.rng.exponential(100 * MS) + 100;
            }
            Fault::Drift => {
                let ppm = self.drift();
                let now = self.now;
                self.hosts[node].clock.drift(now, ppm);
                self.claim_again(node);
            }
            Fault::Cut => self.cut(host, true, true),
            Fault::CutUp => self.cut(host, true, false),
            Fault::CutDown => self.cut(host, false, true),
            Fault::CutLeader => {
                let leads = |n: &&usize| self.role(**n) == Some(Role::Leader);
                let Some(leader) = nodes.iter().find(leads).copied() else {
                    return false;
                };
                self.cut(leader, true, true);
            }
            Fault::BrokerKill | Fault::BrokerKillAndForget => {
                if self.broker.is_down {
                    return false;
                }
                let down = self.rng.exponential(SECOND) + 10 * MS;
                self.kill_broker(fault == Fault::BrokerKill, down);
            }
            Fault::Kick => {
                let Some(session) = self.hosts[host].link.session else {
                    return false;
                };
                self.broker_notices(session);
            }
            Fault::SlowSubscriber => self.hosts[host].link.slow = self.rng.below(300) * MS,
            Fault::Replay => return self.replay(node),
            Fault::ReplayStatus => return self.replay_status(),
            Fault::Damage | Fault::Truncate | Fault::Oversize => return self.mangle(node, fault),
            Fault::Garbage => self.garbage(node),
            Fault::Foreign => self.foreign(node),
            Fault::Forge => self.forge(node),
            Fault::WrongStatus | Fault::ClearStatus => self.wrong_status(node, fault),
            Fault::Double => return self.double(node),
            Fault::MetricChange => {
                let metric = Metric::new(self.rng.below(5) as f64).expect("finite");
                self.arrive(node, Input::SetMetric(metric));
            }
            Fault::Shutdown => {
                self.step(node, vec![Input::Shutdown]);
                self.fall(node, Death::Process);
            }
            Fault::NewClient => {
                if self.hosts[host].kind != Kind::Client {
                    return false;
                }
                self.fall(host, Death::Process);
            }
            Fault::PowerCutInWrite => self.hosts[node].disk.dies_in_batch = Some(Death::Host),
            Fault::KillInWrite => self.hosts[node].disk.dies_in_batch = Some(Death::Process),
            Fault::SyncError => self.hosts[node].disk.fail_next_sync(),
            Fault::DiskFull => {
                let left = self.rng.below(20_000);
                self.hosts[node].disk.fill(left);
            }
            Fault::ReadOnlyDisk => self.hosts[node].disk.make_read_only(),
            Fault::BitRot => return self.rot(node),
        }
        true
    }

    fn cut(&mut self, host: usize, up: bool, down: bool) {
        let link = &mut self.hosts[host].link;
        link.cut_up |= up;
        link.cut_down |= down;
        self.expect_overdue(host);
        let wait = self.rng.exponential(4 * SECOND);
        self.queue.push(self.now + wait, Event::Heal { host });
        self.trace(host, || format!("cut off: up {up}, down {down}"));
    }

    // Disks.

    /// A node loses its disk, unless too many voters would be lost for good.
    fn wipe(&mut self, host: usize) -> bool {
        if self.hosts[host].kind == Kind::Voter && !self.can_lose(host) {
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
        if voter && !(self.formed() && self.can_lose(host)) {
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

    /// Whether every record that may form, or has formed, a cluster keeps a majority without it.
    fn can_lose(&self, host: usize) -> bool {
        let disks = self.hosts.iter().enumerate();
        let kept: Vec<&Disk> = disks
            .filter(|(n, h)| *n != host && !h.disk.is_rotten())
            .map(|(_, h)| &h.disk)
            .collect();
        let records = self
            .hosts
            .iter()
            .filter_map(|h| holds(h.disk.formation.as_deref()?));
        records.into_iter().all(|record| match record {
            replica::Holds::Nothing => true,
            replica::Holds::Accepted(formation) | replica::Holds::Formed(formation) => {
                let voters = formation.voters.keys();
                let there = |key: &&NodeKey| kept.iter().any(|disk| disk.key == **key);
                2 * voters.filter(there).count() > formation.voters.len()
            }
        })
    }

    /// Someone starts a second process under a node's name.
    fn double(&mut self, node: usize) -> bool {
        // A voter alone has nobody to keep a second one from forming its own cluster.
        let formed = self.formed() && self.voters().len() > 1;
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

    // Frames that are none.

    fn fingerprint(&self, host: usize) -> Option<Fingerprint> {
        let replica = self.hosts[host].replica()?;
        let raft = replica.raft();
        let active = replica.active_nodes().into_iter();
        Some(Fingerprint {
            role: replica.role(),
            hard_state: raft.map(raft::Raft::hard_state),
            leader: replica.leader(),
            commit: raft.map(raft::Raft::commit_index),
            last: raft.map(raft::Raft::last_index),
            applied: replica.store().applied(),
            digest: replica.store().digest(),
            lease: replica.lease(),
            active: active
                .map(|node| (node.name, node.key, node.role, node.term))
                .collect(),
        })
    }

    /// Shows a message to a node and checks that nothing follows, at most an answer where
    /// `may_answer`.
    fn intrude(&mut self, host: usize, topic: &str, payload: &Bytes, may_answer: bool) {
        let inputs = std::mem::take(&mut self.hosts[host].inbox);
        self.step(host, inputs);
        if self.hosts[host].process.is_none() || self.hosts[host].paused {
            return;
        }
        let now = self.hosts[host].clock.read(self.now);
        let Some(Process::Node(replica, _)) = &mut self.hosts[host].process else {
            return;
        };
        // What is due by now is done first, so that the intruder is not blamed for it.
        let mut due = replica.step([Input::Tick], now);
        let before = self.fingerprint(host);
        let Some(Process::Node(replica, _)) = &mut self.hosts[host].process else {
            return;
        };
        let input = Input::Received {
            topic: topic.to_owned(),
            payload: payload.clone(),
            retained: false,
        };
        let effects = replica.step([input], now);
        let after = self.fingerprint(host);
        assert_eq!(before, after, "{topic}: an intruder had an effect");
        for effect in &effects {
            let harmless = match effect {
                Effect::Event(replica::Event::Refused { .. }) => true,
                // A status of ours that was replaced is put back.
                Effect::Publish(publish) if publish.retain => publish.topic == topic,
                Effect::Publish(_) => may_answer,
                Effect::Event(_)
                | Effect::Persist(_)
                | Effect::SaveFormation(_)
                | Effect::Done { .. } => false,
            };
            assert!(harmless, "{topic}: an intruder caused {effect:?}");
        }
        due.extend(effects);
        self.carry_out_all(host, due);
    }

    fn frames(&self) -> Vec<Recorded> {
        let frames = self.broker.recorded.iter();
        let frames = frames.filter(|r| r.publish.topic.contains("/rpc/"));
        frames.cloned().collect()
    }

    /// Plays a frame back: a dead sender's to a node that started later, or a second time.
    fn replay(&mut self, node: usize) -> bool {
        let frames = self.frames();
        let Some(recorded) = self.rng.pick(&frames).cloned() else {
            return false;
        };
        let Publish { topic, payload, .. } = recorded.publish;
        let sender = &self.hosts[recorded.from];
        let died_before = sender.life != recorded.life
            && sender
                .died_at
                .is_some_and(|at| at < self.hosts[node].started_at);
        self.trace(node, || {
            format!("an old frame of {} again", self.hosts[recorded.from].name)
        });
        if !died_before {
            // It may be the first copy that comes through.
            let input = Input::Received {
                topic: topic.clone(),
                payload: payload.clone(),
                retained: false,
            };
            self.step(node, vec![input]);
            if self.hosts[node].process.is_none() {
                return true;
            }
        }
        self.intrude(node, &topic, &payload, true);
        true
    }

    /// Plays an old birth or will back, to all.
    fn replay_status(&mut self) -> bool {
        let births = self.broker.recorded.iter().filter(|r| r.publish.retain);
        let births: Vec<Publish> = births.map(|r| r.publish.clone()).collect();
        let Some(publish) = self.rng.pick(&births).cloned() else {
            return false;
        };
        self.route(&publish);
        true
    }

    fn mangle(&mut self, node: usize, fault: Fault) -> bool {
        let frames = self.frames();
        let Some(recorded) = self.rng.pick(&frames).cloned() else {
            return false;
        };
        let mut payload = recorded.publish.payload.to_vec();
        match fault {
            Fault::Truncate => payload.truncate(self.rng.below(payload.len() as u64) as usize),
            Fault::Oversize => payload.resize(replica::MAX_FRAME + 1, 0),
            _ => {
                let at = self.rng.below(payload.len() as u64) as usize;
                payload[at] ^= 1 << self.rng.below(8);
            }
        }
        self.intrude(node, &recorded.publish.topic, &payload.into(), false);
        true
    }

    fn garbage(&mut self, node: usize) {
        let length = self.rng.below(300);
        let payload: Vec<u8> = (0..length).map(|_| self.rng.next() as u8).collect();
        let mut payload = payload;
        if let (Some(version), true) = (payload.first_mut(), self.rng.chance(0.5)) {
            *version = replica::VERSION;
        }
        let name = self.hosts[node].name.clone();
        let topics = [
            format!("raft/{}/rpc/all/n1", self.profile.cluster),
            format!("raft/{}/rpc/{name}/n1", self.profile.cluster),
            format!("raft/{}/nodes/n1/status", self.profile.cluster),
            "raft".to_owned(),
        ];
        let topic = self.rng.pick(&topics).expect("four").clone();
        if payload.is_empty() {
            return;
        }
        self.intrude(node, &topic, &payload.into(), false);
    }

    /// What an outsider says: the first question of a client.
    fn outsider(&mut self, cluster: &Name, ring: KeyRing) -> Publish {
        let now = self.hosts[0].clock.read(self.now);
        let seed = self.rng.bytes();
        let client = Client::new("raft", cluster, ring, seed, now);
        let effects = client
            .expect("a good prefix")
            .step([ClientInput::Connected], now);
        let publish = effects.into_iter().find_map(|effect| match effect {
            ClientEffect::Publish(publish) => Some(publish),
            ClientEffect::Done { .. } | ClientEffect::Event(_) => None,
        });
        publish.expect("a client asks who is there")
    }

    fn foreign(&mut self, node: usize) {
        let cluster = Name::new("elsewhere").expect("a name");
        let publish = self.outsider(&cluster, self.profile.ring.clone());
        let topic = publish
            .topic
            .replace("elsewhere", self.profile.cluster.as_str());
        self.intrude(node, &topic, &publish.payload, false);
    }

    fn forge(&mut self, node: usize) {
        let ring = KeyRing::of(ClusterKey::from_bytes(self.rng.bytes()));
        let cluster = self.profile.cluster.clone();
        let publish = self.outsider(&cluster, ring);
        self.intrude(node, &publish.topic, &publish.payload, false);
    }

    /// Something that is no status stands where a status should.
    fn wrong_status(&mut self, node: usize, fault: Fault) {
        let name = self.hosts[node].name.clone();
        let texts = [
            "{}".to_owned(),
            "offline".to_owned(),
            format!(r#"{{"v":1,"state":"offline","node":"{name}"}}"#),
            format!(
                r#"{{"v":1,"state":"online","node":"{name}","key":"00","incarnation":"00","epoch":1,"session":"0","tag":"00"}}"#
            ),
        ];
        let text = match fault {
            Fault::ClearStatus => String::new(),
            _ => self.rng.pick(&texts).expect("four").clone(),
        };
        let publish = Publish {
            topic: format!("raft/{}/nodes/{name}/status", self.profile.cluster),
            payload: text.into_bytes().into(),
            retain: true,
        };
        self.route(&publish);
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
