//! The world: true time, one seed, and everything that happens, one event after the other.
//!
//! A run has two parts. First faults strike while callers call. Then all heals, and what was
//! promised for such times is due: a leader, answers, the same state and the same presence
//! everywhere, each within its bound.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use raft::{NodeKey, Raft, Role};
use replica::{Holds, Input, KeyRing, Name, Operation, Replica, StopReason, Token};

use crate::broker::{Brokers, Link, Retained};
use crate::check::{Judge, holds};
use crate::event::{Event, MS, Micros, Queue, SECOND};
use crate::faults::{Fault, Weather};
use crate::history::History;
use crate::node::{Death, Host, Kind, Owner, REQUEST_TIMEOUT};
use crate::operator::Operator;
use crate::plan::{Plan, Profile};
use crate::plot::Plot;
use crate::rng::Rng;
use crate::seal::Unsealer;
use crate::state::State;
use crate::trace::Trace;

/// After all has healed, a leader is there and requests are answered within this.
pub(crate) const SERVICE_BOUND: Micros = 10 * SECOND;

/// After all has healed, all nodes hold the same state within this.
pub(crate) const AGREEMENT_BOUND: Micros = 15 * SECOND;

/// After all has healed, all nodes see each other within this: whoever was given up, or whose
/// status someone kept replacing, is tried again every thirty seconds.
pub(crate) const PRESENCE_BOUND: Micros = 45 * SECOND;

/// Within this a node that died is seen as gone even where the births of dead processes were
/// played back: those have to be asked first.
pub(crate) const RIVAL_BOUND: Micros = 8 * SECOND;

/// Within this a node that died with the broker is seen as gone: the others connect anew, elect a
/// leader, and that one calls the roll.
pub(crate) const OUTAGE_BOUND: Micros = SERVICE_BOUND + 8 * SECOND;

/// Within this a second process of a name has stopped, and a node that died is seen as gone.
pub(crate) const NOTICE_BOUND: Micros = 3 * SECOND;

/// Within this a leader that was asked to leave has left, and another is the only one.
pub(crate) const LEAVE_BOUND: Micros = 500 * MS;

/// Of several brokers one may die: whoever has another is answered within this, before anyone asks
/// again.
pub(crate) const BROKER_BOUND: Micros = 249 * MS;

/// A leader's process dies and every broker says so: another leads within this many δ, at most one for
/// each voter that is ranked before it, and twice as many way-backs to the slowest broker.
const FAILOVER_DELTAS: u64 = 6;

/// How many entries a node may be behind that is up to date: what is just under way.
const BEHIND: u64 = 200;

/// In this time a node that is far behind gains at least [`HEADWAY`] on the others, or it is stuck.
const HEADWAY_BOUND: Micros = 4 * SECOND;
const HEADWAY: u64 = 100;

/// How often it is given that time.
const MAX_HEADWAYS: u32 = 20;

/// Within this a leader of quiet times is the only one again, should it have been elected a moment
/// ago or be about to hand over in vain.
const LEAVE_PATIENCE: Micros = 20 * SECOND;

/// Everything there is.
pub(crate) struct World {
    pub(crate) now: Micros,
    pub(crate) rng: Rng,
    pub(crate) queue: Queue,
    pub(crate) plan: Plan,
    pub(crate) ring: KeyRing,
    pub(crate) weather: Weather,
    pub(crate) hosts: Vec<Host>,
    pub(crate) brokers: Brokers,
    pub(crate) judge: Judge,
    pub(crate) operator: Operator,
    pub(crate) unsealer: Unsealer,
    pub(crate) history: History,
    pub(crate) state: State,
    pub(crate) trace: Trace,
    tracing: bool,
    pub(crate) tally: BTreeMap<&'static str, Tally>,
    pub(crate) plot: Option<Plot>,
    pub(crate) plots: u64,
    pub(crate) faults_end: bool,
    /// Who stops in the quiet phase, and is not started again by itself.
    pub(crate) departs: Option<usize>,
    /// Through whom callers asked, since all healed.
    pub(crate) asked: BTreeMap<Token, usize>,
    pub(crate) last_value: u64,
    pub(crate) recent: VecDeque<Bytes>,
    pub(crate) steps: u64,
    /// Which host's process of which name ended when, but for those that stopped for their name.
    pub(crate) deaths: Vec<(usize, Name, Micros)>,
    /// The same of those.
    pub(crate) gave_way: Vec<(usize, Name, Micros)>,
    events: u64,
}

/// How often something went wrong, and how often that made a difference to anyone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) fired: u64,
    pub(crate) mattered: u64,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) virtual_time: Duration,
    pub(crate) events: u64,
    pub(crate) steps: u64,
    pub(crate) elections: u64,
    pub(crate) commits: u64,
    pub(crate) snapshots: u64,
    pub(crate) requests: u64,
    pub(crate) answered: u64,
    /// For how long some node was the only leader for certain.
    pub(crate) exclusive: Duration,
    pub(crate) tally: BTreeMap<&'static str, Tally>,
    pub(crate) fingerprint: u64,
    /// Histories of single keys for which a search found an order, and those that were too hard.
    #[cfg(feature = "porcupine")]
    pub(crate) searched: crate::linearizability::Searched,
}

impl World {
    /// Lives through the plan.
    ///
    /// # Panics
    /// At the first broken promise.
    pub(crate) fn live(&mut self) {
        self.trouble();
        self.quiet();
        self.check_end();
    }

    /// The world of a kept plan at its end.
    #[cfg(test)]
    pub(crate) fn lived(plan: &str) -> World {
        let mut world = World::new(plan.parse().expect("a plan"), false);
        world.live();
        world
    }

    pub(crate) fn new(plan: Plan, tracing: bool) -> World {
        let mut world = World {
            now: 0,
            rng: Rng::new(plan.seed ^ 0x6a09_e667_f3bc_c908),
            queue: Queue::default(),
            unsealer: Unsealer::new(plan.profile.key(plan.seed).as_ref()),
            ring: plan.profile.ring(plan.seed),
            weather: plan.weather.clone(),
            state: State::new(plan.seed, &plan.profile),
            brokers: Brokers::new(plan.profile.slow_brokers(plan.seed)),
            plan,
            hosts: Vec::new(),
            judge: Judge::default(),
            operator: Operator::default(),
            history: History::default(),
            trace: Trace::new(tracing),
            tracing,
            tally: BTreeMap::new(),
            plot: None,
            plots: 0,
            faults_end: false,
            departs: None,
            asked: BTreeMap::new(),
            last_value: 0,
            recent: VecDeque::new(),
            steps: 0,
            deaths: Vec::new(),
            gave_way: Vec::new(),
            events: 0,
        };
        world.populate();
        world
    }

    fn populate(&mut self) {
        let Profile {
            voters,
            observers,
            clients,
            ..
        } = self.plan.profile;
        for n in 1..=voters {
            self.add(Kind::Voter, &format!("n{n}"));
        }
        for n in 1..=observers {
            self.add(Kind::Observer, &format!("o{n}"));
        }
        for n in 1..=clients {
            self.add(Kind::Client, &format!("c{n}"));
        }
        self.add(Kind::Double(0), "n1");
        let spare = self.spare();
        for host in 0..spare {
            let at = match self.rng.below(4) {
                0 => self.rng.below(10 * SECOND),
                _ => self.rng.below(SECOND),
            };
            self.queue.push(at, Event::Start { host });
        }
        self.queue.push(SECOND, Event::Operation);
        self.queue.push(SECOND, Event::Save);
        self.begin_state();
        self.expect_strike(0);
    }

    fn expect_strike(&mut self, number: usize) {
        if let Some(strike) = self.plan.strikes.get(number) {
            self.queue.push(strike.at, Event::Fault { number });
        }
    }

    fn add(&mut self, kind: Kind, name: &str) {
        let (name, key) = (Name::new(name).expect("a name"), self.draw_key());
        let mut host = Host::new(kind, name, key, self.plan.profile.disk_latency);
        // Each in an order of its own.
        let mut brokers: Vec<usize> = (0..self.brokers.all.len()).collect();
        while !brokers.is_empty() {
            let next = self.rng.below(brokers.len() as u64) as usize;
            host.links.push(Link::to(brokers.remove(next)));
        }
        self.hosts.push(host);
    }

    // Time.

    pub(crate) fn run_until(&mut self, end: Micros) {
        while let Some((at, event)) = self.queue.pop(end) {
            assert!(at >= self.now, "time never goes back");
            self.now = at;
            self.events += 1;
            self.happen(event);
        }
        self.now = self.now.max(end);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Upward { session, publish } => self.take_publish(session, publish),
            Event::Downward {
                host,
                session,
                delivery,
            } => self.take_delivery(host, session, delivery),
            Event::Connect { host, life, link } => self.connect(host, life, link),
            Event::HostNotices { host, session } => self.host_notices(host, session),
            Event::BrokerNotices { session } => self.broker_notices(session),
            Event::Overdue { host, session } => self.overdue(host, session),
            Event::Will { broker, will } => self.will_comes_late(broker, &will),
            Event::Heal { host, link } => self.heal(host, link),
            Event::BrokerStarts { broker } => self.brokers.all[broker].is_down = false,
            Event::BrokerFlaps { broker, times } => self.flap(broker, times),
            Event::Wake { host, life } => self.wake(host, life),
            Event::Timer { host, life } => self.timer(host, life),
            Event::Written { host, life } => self.written(host, life),
            Event::Resume { host, life } => self.resume(host, life),
            // Nobody starts a second process of a name again.
            Event::Start { host } if self.faults_end && host == self.spare() => {}
            Event::Start { host } => self.start(host),
            Event::Fault { number } => {
                self.expect_strike(number + 1);
                self.fault(number);
            }
            Event::Rival { host, times } => {
                if !self.faults_end {
                    self.take_over(host, times);
                }
            }
            Event::Fall { host, life } if self.hosts[host].life == life => {
                self.fall(host, Death::Process);
            }
            Event::Fall { .. } => {}
            Event::Ask {
                host,
                reads,
                times,
                every,
            } => self.ask_again(host, reads, times, every),
            Event::LetsGo { host, life } => self.lets_go(host, life),
            Event::Swing { times, every } => self.swing(times, every),
            Event::BrokerDrops { session } => self.broker_drops(session),
            Event::PlotEnds { number } => self.plot_ends(number),
            Event::Save => self.broker_saves(),
            Event::Operation => self.operation(),
            Event::State => self.state_turn(),
        }
    }

    fn trouble(&mut self) {
        self.run_until(self.plan.profile.troubled);
    }

    // The quiet phase.

    fn quiet(&mut self) {
        self.calm();
        let mut healed = self.now;
        if !self.formed() {
            self.run_until(healed + SERVICE_BOUND);
            if self.is_stuck() {
                self.start_over();
            }
            healed = self.now;
        }
        let asked: Vec<_> = self
            .live_hosts()
            .into_iter()
            .map(|host| (host, self.hosts[host].life, self.probe(host)))
            .collect();
        self.run_until(healed + SERVICE_BOUND);
        self.check_leader();
        // Who learns now that it was removed stops, and what it was asked with it.
        let goes_on = |host: usize, life| self.hosts[host].life == life;
        let asked = asked
            .into_iter()
            .filter(|(host, life, _)| goes_on(*host, *life));
        for token in asked.flat_map(|(_, _, tokens)| tokens) {
            assert!(
                self.is_answered(token),
                "request {} of the quiet phase was not answered within {SERVICE_BOUND} us",
                token.0
            );
        }
        self.run_until(healed + AGREEMENT_BOUND);
        self.let_the_last_catch_up();
        self.check_agreement();
        self.check_members();
        self.check_acknowledged(healed);
        self.check_state();
        self.run_until(healed + PRESENCE_BOUND);
        self.check_presence(&[]);
        self.try_leave();
        self.try_broker_loss();
        self.try_failover();
        self.try_double();
        self.try_departure();
    }

    /// All heals.
    fn calm(&mut self) {
        self.trace
            .line(self.now, "world", || "all heals".to_owned());
        self.faults_end = true;
        self.end_plot();
        self.weather = Weather::calm();
        for broker in &mut self.brokers.all {
            broker.heal();
        }
        let spare = self.spare();
        self.die(spare, Death::Process);
        // Its last word may still stop the one whose name it had.
        self.run_until(self.now + SECOND);
        for host in 0..self.hosts.len() {
            self.heal(host, None);
            let h = &mut self.hosts[host];
            h.links.iter_mut().for_each(|link| link.slow = 0);
            h.disk_latency = MS;
            h.dies_after = None;
            h.owner = Owner::Prompt;
            let life = h.life;
            self.resume(host, life);
            if host != spare {
                self.start(host);
            }
        }
    }

    fn probe(&mut self, host: usize) -> [replica::Token; 2] {
        let put = self.draw_put("probe".into());
        [
            self.request(host, put),
            self.request(host, Operation::Get("probe".into())),
        ]
    }

    /// Whether a request was answered; where few clients are remembered, perhaps by not knowing.
    fn is_answered(&self, token: Token) -> bool {
        let few = self.plan.profile.sessions < replica::MAX_SESSIONS as u64;
        self.history.result(token).is_some() || few && self.history.is_unknown(token)
    }

    /// Whether some disk knows of a formed cluster.
    pub(crate) fn formed(&self) -> bool {
        let mut records = self
            .hosts
            .iter()
            .filter_map(|h| holds(h.disk.formation.as_deref()?));
        records.any(|record| matches!(record, Holds::Formed(_)))
    }

    /// A voter lost its disk between its acceptance and the formation: the others wait for it.
    fn is_stuck(&self) -> bool {
        !self.formed() && self.hosts.iter().any(|h| h.trouble.is_some())
    }

    /// The operator does what the trouble says: all start anew. Clients too: one that was told of
    /// the record by a voter whose disk is gone belongs to a cluster that never was.
    fn start_over(&mut self) {
        self.fired("formation started over");
        for host in 0..self.spare() {
            self.die(host, Death::Process);
            if self.hosts[host].is_node() {
                self.bury(host);
            }
        }
        for host in 0..self.spare() {
            self.start(host);
        }
        self.judge.start_over();
    }

    fn check_leader(&self) {
        let leaders = self.live_nodes().into_iter();
        let leaders: Vec<usize> = leaders
            .filter(|host| self.role(*host) == Some(Role::Leader))
            .collect();
        let [leader] = leaders.as_slice() else {
            panic!(
                "{SERVICE_BOUND} us after all healed there are {} leaders",
                leaders.len()
            );
        };
        let name = &self.hosts[*leader].name;
        for host in self.live_nodes() {
            let followed = self.hosts[host].replica().and_then(Replica::leader);
            assert_eq!(
                followed.as_ref(),
                Some(name),
                "{} follows another leader",
                self.hosts[host].name
            );
        }
    }

    /// Whoever has a whole log to fetch, an entry at a time, is given longer, as long as it gets on.
    fn let_the_last_catch_up(&mut self) {
        for _ in 0..MAX_HEADWAYS {
            let before = self.farthest_behind();
            if before <= BEHIND {
                return;
            }
            self.run_until(self.now + HEADWAY_BOUND);
            if self.farthest_behind() + HEADWAY > before {
                return;
            }
        }
    }

    fn farthest_behind(&self) -> u64 {
        let replicas = self.hosts.iter().filter_map(Host::replica);
        let applied: Vec<raft::Index> = replicas.map(|r| r.store().applied()).collect();
        let (least, most) = (applied.iter().min(), applied.iter().max());
        match (least, most) {
            (Some(least), Some(most)) => *most - *least,
            _ => 0,
        }
    }

    /// Every node has applied the same and holds the same.
    fn check_agreement(&mut self) {
        // Callers go on, so nodes may differ by what is just under way: wait for a moment's rest.
        let replicas: Vec<&Replica> = self.hosts.iter().filter_map(Host::replica).collect();
        let farthest = replicas.iter().map(|r| r.store().applied()).max();
        let farthest = farthest.expect("some node lives");
        for replica in &replicas {
            let behind = farthest - replica.store().applied();
            assert!(
                behind <= BEHIND,
                "{} is {behind} entries behind",
                replica.name()
            );
            for other in &replicas {
                let (a, b) = (replica.store(), other.store());
                if a.applied() == b.applied() {
                    assert_eq!(a.digest(), b.digest(), "two histories");
                    assert!(a.iter().eq(b.iter()), "two states at {}", a.applied());
                }
            }
        }
    }

    /// No change is left half done, and everyone knows who is a member: whoever was removed follows
    /// without a vote.
    fn check_members(&self) {
        let rafts = self.hosts.iter().filter_map(Host::replica);
        let rafts: Vec<&Raft> = rafts.filter_map(Replica::raft).collect();
        let leader = rafts.iter().find(|raft| raft.role() == Role::Leader);
        let configuration = leader.expect("somebody leads").configuration();
        assert!(!configuration.is_joint(), "a change is left half done");
        for raft in rafts {
            let me = raft.me();
            assert_eq!(
                raft.committed_configuration(),
                Some(configuration),
                "what {me} goes by"
            );
            let votes = configuration.is_voter(me);
            let follows = raft.role() == Role::Learner;
            assert!(
                votes != follows,
                "{me} votes: {votes}, is {:?}",
                raft.role()
            );
        }
    }

    /// Every node sees exactly the nodes that live.
    fn check_presence(&self, gone: &[usize]) {
        let nodes: Vec<usize> = self.live_nodes();
        let mut expected: Vec<&Name> = nodes.iter().map(|host| &self.hosts[*host].name).collect();
        expected.sort();
        for host in &nodes {
            let replica = self.hosts[*host].replica().expect("it lives");
            let active = replica.active_nodes();
            let names: Vec<&Name> = active.iter().map(|node| &node.name).collect();
            assert_eq!(
                names,
                expected,
                "what {} sees; gone: {gone:?}",
                replica.name()
            );
        }
    }

    fn statuses_were_touched(&self) -> bool {
        let mut fired = self.tally.keys();
        let reverts = Fault::BrokerKillAndRevert.name();
        let touching = [Fault::Double.name(), reverts];
        fired.any(|what| what.ends_with("status") || touching.contains(what))
    }

    /// A leader that is asked to leave hands over first. Its successor need not wait for the lease
    /// to end, and nobody's request fails meanwhile.
    fn try_leave(&mut self) {
        let Some(leader) = self.leader_that_others_can_follow() else {
            return;
        };
        let from = self.history.len();
        let left_at = self.now;
        self.trace(leader, || "is to leave".to_owned());
        (self.hosts[leader].leaves, self.departs) = (true, Some(leader));
        self.arrive(leader, Input::Leave);
        while self.exclusive().is_none_or(|host| host == leader) {
            assert!(
                self.now <= left_at + LEAVE_BOUND,
                "{LEAVE_BOUND} us after {} was asked to leave nobody else is the only leader",
                self.hosts[leader].name
            );
            self.run_until(self.now + MS);
        }
        self.run_until(left_at + LEAVE_BOUND);
        assert!(
            self.hosts[leader].process.is_none(),
            "{} does not leave",
            self.hosts[leader].name
        );
        let through = self.history.len();
        self.run_until(self.now + REQUEST_TIMEOUT.as_micros() as Micros);
        let meanwhile = Token(from as u64)..Token(through as u64);
        for (token, host) in self.asked.range(meanwhile) {
            assert!(
                *host == leader || self.is_answered(*token),
                "request {} failed when {} left",
                token.0,
                self.hosts[leader].name
            );
        }
        self.start(leader);
        self.run_until(self.now + NOTICE_BOUND);
    }

    /// One broker of several dies: no election, and nobody's request takes longer or fails.
    fn try_broker_loss(&mut self) {
        let connected = |host: &Host| host.links.iter().all(|link| link.is_up);
        let live = self.live_hosts();
        let several = self.brokers.all.len() > 1;
        if !several || !live.iter().all(|host| connected(&self.hosts[*host])) {
            return;
        }
        let Some(leader) = self.exclusive() else {
            return;
        };
        let (campaigns, hand_overs) = (self.judge.campaigns(), self.hand_overs());
        let broker = self.draw_broker();
        let kept = *self
            .rng
            .pick(&[Retained::Kept, Retained::Lost, Retained::AsSaved])
            .expect("three");
        let before = self.now;
        let mut asked = Vec::new();
        for round in 0..10 {
            for host in self.live_hosts() {
                asked.extend(self.probe(host).map(|token| (token, self.now)));
            }
            if round == 2 {
                self.happened("one broker of several died in quiet");
                self.kill_broker(broker, kept, 2 * SECOND);
                if kept == Retained::AsSaved {
                    // What it kept of dead processes stands there again.
                    self.fired(Fault::BrokerKillAndRevert.name());
                }
            }
            self.run_until(self.now + 50 * MS);
        }
        self.run_until(before + 5 * SECOND);
        if self.hand_overs() != hand_overs {
            return;
        }
        assert_eq!(
            self.judge.campaigns(),
            campaigns,
            "one broker of several died, and somebody stood for election"
        );
        assert_eq!(
            self.exclusive(),
            Some(leader),
            "who leads after a broker died"
        );
        let Profile {
            max_uncommitted_bytes,
            max_unpersisted_bytes,
            max_append_bytes,
            ..
        } = self.plan.profile;
        let least = [
            max_uncommitted_bytes,
            max_unpersisted_bytes,
            max_append_bytes,
        ];
        if least.iter().any(|bytes| *bytes < 2_000) {
            return; // A few writes at a time: they wait for each other.
        }
        for (token, at) in asked {
            let took = self.history.answered_at(token).map(|ended| ended - at);
            assert!(
                took.is_some_and(|took| took <= BROKER_BOUND),
                "request {} was answered after {took:?} us when one broker of several died",
                token.0
            );
        }
    }

    /// How often the lead was handed over, or was asked to be.
    fn hand_overs(&self) -> u64 {
        let of = |what| self.tally.get(what).map_or(0, |tally| tally.fired);
        of("hand-over for a metric") + of(Fault::Transfer.name())
    }

    /// A leader's process dies, and every broker says so: another leads soon.
    fn try_failover(&mut self) {
        let Some(leader) = self.leader_that_others_can_follow() else {
            return;
        };
        let (term, died_at) = (self.newest_term(), self.now);
        self.departs = Some(leader);
        self.die(leader, Death::Process);
        let bound = self.failover_bound();
        let led = |world: &World| {
            let nodes = world.live_nodes().into_iter();
            let mut rafts = nodes.filter_map(|node| world.hosts[node].replica()?.raft());
            rafts.any(|raft| raft.leads() && raft.term() > term)
        };
        while !led(self) {
            assert!(
                self.now <= died_at + bound,
                "{bound} us after the death of {}, of which every broker told, nobody else leads",
                self.hosts[leader].name
            );
            self.run_until(self.now + MS);
        }
        self.happened("succession by the will in quiet");
        self.departs = None;
        self.start(leader);
        self.run_until(self.now + SERVICE_BOUND);
    }

    fn failover_bound(&self) -> Micros {
        let slowest = self.brokers.all.iter().map(|broker| broker.slow).max();
        let way = self.weather.delay_max + slowest.unwrap_or(0);
        let delta = self.plan.profile.options().rank_delay.as_micros() as Micros;
        FAILOVER_DELTAS * delta.max(4 * way) + 4 * self.plan.profile.disk_latency.max(MS)
    }

    /// The only leader, if without it enough voters live to elect another.
    fn leader_that_others_can_follow(&mut self) -> Option<usize> {
        let until = self.now + LEAVE_PATIENCE;
        while self.exclusive().is_none() && self.now < until {
            self.run_until(self.now + MS);
        }
        let leader = self.exclusive()?;
        let raft = self.hosts[leader].replica()?.raft()?;
        let voters = &raft.configuration().voters;
        let caught_up = |key: &&NodeKey| raft.follower(**key).is_some_and(|f| f.is_caught_up);
        let others = voters.keys().filter(|key| **key != raft.me());
        let others = others.filter(caught_up).count();
        (others > voters.len() / 2).then_some(leader)
    }

    /// Whether voters enough for a leader live beside this node.
    fn others_can_elect(&self, without: usize) -> bool {
        let leader = self
            .live_leader()
            .and_then(|host| self.hosts[host].replica());
        let Some(raft) = leader.and_then(Replica::raft) else {
            return false;
        };
        let voters = &raft.configuration().voters;
        let nodes = self
            .live_nodes()
            .into_iter()
            .filter(|node| *node != without);
        let votes = nodes.filter(|node| voters.contains_key(&self.hosts[*node].disk.key));
        votes.count() > voters.len() / 2
    }

    /// Who says now that it is the only leader.
    fn exclusive(&self) -> Option<usize> {
        let claims = |host: &usize| {
            let now = self.hosts[*host].clock.read(self.now);
            let lease = self.hosts[*host].replica().and_then(Replica::lease);
            lease.is_some_and(|lease| lease.from <= now && now < lease.until)
        };
        self.live_nodes().into_iter().find(claims)
    }

    /// A second process of a name stops, and the first goes on.
    fn try_double(&mut self) {
        let spare = self.spare();
        let mut voters = self.voters();
        // Who has just left has nothing to say about its name.
        voters.retain(|voter| self.hosts[*voter].replica().is_some());
        let of = *self.rng.pick(&voters).expect("a voter");
        self.start_double(spare, of);
        self.run_until(self.now + NOTICE_BOUND);
        let taken = &self.hosts[spare].stopped;
        assert!(
            matches!(taken, Some(StopReason::NameTaken(_))),
            "a second {} runs",
            self.hosts[of].name
        );
        assert!(self.hosts[of].process.is_some(), "the first goes on");
    }

    /// A node that dies is soon seen to be gone, also if the broker died with it and kept its
    /// birth.
    fn try_departure(&mut self) {
        let nodes = self.live_nodes();
        if nodes.len() < 2 {
            return;
        }
        let gone = *self.rng.pick(&nodes).expect("a node");
        if self.farthest_behind() > 0 && !self.others_can_elect(gone) {
            // Who lacks the last word that was agreed never hears it.
            return;
        }
        let mut bound = match self.statuses_were_touched() {
            true => RIVAL_BOUND,
            false => NOTICE_BOUND,
        };
        self.departs = Some(gone);
        match self.rng.below(3) {
            0 => self.step(gone, vec![Input::Shutdown]),
            1 => self.trace(gone, || "departs without a word".to_owned()),
            _ => {
                self.trace(gone, || "departs with the broker".to_owned());
                for broker in 0..self.brokers.all.len() {
                    self.kill_broker(broker, Retained::Kept, SECOND);
                }
                bound = OUTAGE_BOUND;
            }
        }
        self.die(gone, Death::Process);
        self.run_until(self.now + bound);
        self.check_presence(&[gone]);
    }

    // Who there is.

    pub(crate) fn spare(&self) -> usize {
        self.hosts.len() - 1
    }

    pub(crate) fn voters(&self) -> Vec<usize> {
        let hosts = 0..self.hosts.len();
        hosts
            .filter(|h| self.hosts[*h].kind == Kind::Voter)
            .collect()
    }

    pub(crate) fn voter_names(&self) -> Vec<Name> {
        let voters = self.voters().into_iter();
        voters.map(|host| self.hosts[host].name.clone()).collect()
    }

    pub(crate) fn live_hosts(&self) -> Vec<usize> {
        let hosts = 0..self.hosts.len();
        hosts.filter(|h| self.hosts[*h].process.is_some()).collect()
    }

    pub(crate) fn live_nodes(&self) -> Vec<usize> {
        let live = self.live_hosts().into_iter();
        live.filter(|h| self.hosts[*h].is_node()).collect()
    }

    pub(crate) fn role(&self, host: usize) -> Option<Role> {
        self.hosts[host].replica().and_then(Replica::role)
    }

    // What is told.

    pub(crate) fn fired(&mut self, what: &'static str) {
        self.tally.entry(what).or_default().fired += 1;
    }

    /// Something that went wrong has made a difference.
    pub(crate) fn mattered(&mut self, what: &'static str) {
        self.tally.entry(what).or_default().mattered += 1;
    }

    pub(crate) fn mattered_once(&mut self, what: Option<&'static str>) {
        if let Some(what) = what {
            self.mattered(what);
        }
    }

    /// Something went wrong that makes a difference wherever it happens.
    pub(crate) fn happened(&mut self, what: &'static str) {
        self.fired(what);
        self.mattered(what);
    }

    pub(crate) fn traces(&self) -> bool {
        self.tracing
    }

    pub(crate) fn trace(&self, host: usize, what: impl FnOnce() -> String) {
        let h = &self.hosts[host];
        let second = matches!(h.kind, Kind::Double(_));
        let name = h.name.as_str();
        match second {
            true => self.trace.line(self.now, &format!("{name}'"), what),
            false => self.trace.line(self.now, name, what),
        }
    }

    pub(crate) fn summary(mut self) -> Summary {
        for value in [
            self.now,
            self.events,
            self.steps,
            self.rng.next(),
            self.newest_term().0,
        ] {
            self.trace.mix(value);
        }
        for (what, times) in self.judge.coverage() {
            let tally = self.tally.entry(what).or_default();
            (tally.fired, tally.mattered) = (times, times);
        }
        Summary {
            virtual_time: Duration::from_micros(self.now),
            events: self.events,
            steps: self.steps,
            elections: self.judge.elections,
            commits: self.judge.commits(),
            snapshots: self.judge.snapshots,
            requests: self.history.len() as u64,
            answered: self.history.completed() as u64,
            exclusive: Duration::from_micros(self.judge.exclusive()),
            #[cfg(feature = "porcupine")]
            searched: self.judge.searched,
            tally: self.tally,
            fingerprint: self.trace.fingerprint(),
        }
    }
}
