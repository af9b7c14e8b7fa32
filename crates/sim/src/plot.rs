//! Plots: several steps, each taken at a moment in the protocol's life that chance alone rarely
//! finds. A plot waits for its moment, acts, waits for the next, and gives up after a while.
//!
//! One plot is under way at a time. All it does could happen to real nodes: processes die, links
//! lose what they carry, disks are slow, people ask.

use raft::Role;
use replica::{Operation, Token};

use crate::event::{Event, MS, Micros, SECOND};
use crate::faults::Fault;
use crate::node::Death;
use crate::world::World;

/// A plot that has waited this long gives up.
const PATIENCE: Micros = 15 * SECOND;

#[derive(Debug)]
pub(crate) struct Plot {
    number: u64,
    act: Act,
    name: &'static str,
}

/// What a plot waits for, and what it has done so far.
#[derive(Debug)]
enum Act {
    /// Each new leader falls, at one of its first promises, while few of the others hear it. The
    /// one that fell before comes back when the next is elected: what it left behind in its log
    /// meets the logs of those that led meanwhile (Raft §5.4.2, figure 8).
    ///
    /// If `quiet`, nobody hears them, and what they began with is on their own disks when they
    /// fall.
    RevolvingDoor {
        left: u64,
        quiet: bool,
        fallen: Option<usize>,
        deaf: Vec<usize>,
    },
    /// A leader has answered a write, and falls before the others know of the commit. Their disks
    /// are slow: the next leader's first entry takes a while. Meanwhile it is asked.
    FreshLeader { write: Token, fallen: bool },
    /// A voter falls as soon as someone asks for votes.
    FallingVoters { left: u64 },
    /// What was done at once; only the end is to come.
    Done,
}

impl World {
    /// Begins a plot, unless one is under way or its first moment cannot come.
    pub(crate) fn begin_plot(&mut self, fault: Fault) -> bool {
        if self.plot.is_some() {
            return false;
        }
        let act = match fault {
            Fault::RevolvingDoor => Some(self.open_door()),
            Fault::MutedLeader => self.mute_leader(),
            Fault::LateAnswers => self.depose_with_answers_under_way(),
            Fault::FreshLeader => self.write_at_leader(),
            Fault::FallingVoters => Some(Act::FallingVoters {
                left: self.rng.between(1, 5),
            }),
            _ => None,
        };
        let Some(act) = act else {
            return false;
        };
        self.plots += 1;
        let number = self.plots;
        self.queue
            .push(self.now + PATIENCE, Event::PlotEnds { number });
        let name = fault.name();
        self.trace
            .line(self.now, "plot", || format!("begins: {name}"));
        self.plot = Some(Plot { number, act, name });
        // A leader that is there already will do for the door.
        if fault == Fault::RevolvingDoor
            && let Some(leader) = self.live_leader()
        {
            self.cut_softly(leader);
            self.fall(leader, Death::Process);
        }
        true
    }

    pub(crate) fn plot_ends(&mut self, number: u64) {
        if self.plot.as_ref().is_some_and(|plot| plot.number == number) {
            self.end_plot();
        }
    }

    /// Whatever the plot has cut off is let in again.
    pub(crate) fn end_plot(&mut self) {
        let Some(plot) = self.plot.take() else {
            return;
        };
        self.trace
            .line(self.now, "plot", || format!("ends: {}", plot.name));
        if let Act::RevolvingDoor { deaf, fallen, .. } = plot.act {
            deaf.into_iter().for_each(|host| self.heal(host, None));
            fallen.into_iter().for_each(|host| self.start(host));
        }
    }

    /// Someone has taken another role.
    pub(crate) fn plot_sees_role(&mut self, host: usize, role: Role) {
        let Some(plot) = self.plot.take() else {
            return;
        };
        let Plot { number, act, name } = plot;
        let act = match (act, role) {
            (
                Act::RevolvingDoor {
                    left,
                    quiet,
                    fallen,
                    deaf,
                },
                Role::Leader,
            ) => {
                self.mattered(name);
                self.turn_door(host, left, quiet, fallen, deaf)
            }
            (Act::FreshLeader { fallen: true, .. }, Role::Leader) => {
                self.mattered(name);
                self.ask(host, true, 60, 5 * MS);
                Act::Done
            }
            (Act::FallingVoters { left }, Role::Candidate | Role::PreCandidate) => {
                self.fell_a_voter(host, left, name)
            }
            (act, _) => act,
        };
        self.plot = Some(Plot { number, act, name });
    }

    /// A caller has its answer.
    pub(crate) fn plot_sees_answer(&mut self, host: usize, token: Token) {
        let Some(plot) = &mut self.plot else {
            return;
        };
        if let Act::FreshLeader { write, fallen } = &mut plot.act
            && *write == token
            && !*fallen
        {
            *fallen = true;
            self.fall_soon(host, 0);
        }
    }

    fn open_door(&mut self) -> Act {
        let quiet = self.rng.chance(0.5);
        let most = if quiet { 4 } else { 6 };
        Act::RevolvingDoor {
            left: self.rng.between(2, most),
            quiet,
            fallen: None,
            deaf: Vec::new(),
        }
    }

    fn turn_door(
        &mut self,
        leader: usize,
        left: u64,
        quiet: bool,
        fallen: Option<usize>,
        deaf: Vec<usize>,
    ) -> Act {
        for host in deaf {
            self.heal(host, None);
        }
        if let Some(fallen) = fallen {
            self.start(fallen);
        }
        if left == 0 {
            return Act::Done;
        }
        let latency = self.hosts[leader].disk_latency;
        if quiet {
            self.cut_softly(leader);
            self.fall_soon(leader, 3 * latency);
            return Act::RevolvingDoor {
                left: left - 1,
                quiet,
                fallen: Some(leader),
                deaf: Vec::new(),
            };
        }
        // Few hear it: one, if the dice say so, or none.
        let mut deaf = Vec::new();
        if self.rng.chance(0.7) {
            for host in self.live_nodes() {
                if host != leader && self.rng.chance(0.6) {
                    self.lose(host, false, true);
                    deaf.push(host);
                }
            }
        }
        if self.rng.chance(0.3) {
            self.cut_softly(leader);
        }
        match self.rng.below(3) {
            0 => self.hosts[leader].dies_after = Some(self.rng.below(6)),
            _ => {
                let wait = self.rng.below(2 * latency + 20 * MS);
                self.fall_soon(leader, wait);
            }
        }
        Act::RevolvingDoor {
            left: left - 1,
            quiet,
            fallen: Some(leader),
            deaf,
        }
    }

    /// The leader takes proposals that reach nobody, for longer than it takes to elect another.
    fn mute_leader(&mut self) -> Option<Act> {
        let leader = self.live_leader()?;
        self.lose(leader, true, false);
        let muted = self.rng.between(1_500, 4_000) * MS;
        self.queue.push(
            self.now + muted,
            Event::Heal {
                host: leader,
                link: None,
            },
        );
        self.ask(leader, false, 40, 30 * MS);
        self.mattered(Fault::MutedLeader.name());
        Some(Act::Done)
    }

    /// The leader is slow to hear. Its will comes, nobody hears it any more, another is elected;
    /// what was on its way to it arrives nonetheless. Its claims and answers must not outlive it.
    fn depose_with_answers_under_way(&mut self) -> Option<Act> {
        let leader = self.live_leader()?;
        let sessions = self.hosts[leader].sessions();
        if sessions.is_empty() {
            return None;
        }
        let slow = self.rng.between(300, 900) * MS;
        for link in &mut self.hosts[leader].links {
            link.slow = slow;
        }
        // Some rounds go out before the will comes.
        let heard = self.rng.between(0, 600) * MS;
        let notices = heard + self.rng.between(1_500, 4_000) * MS;
        for session in sessions {
            self.queue
                .push(self.now + heard, Event::BrokerDrops { session });
            let gone = Event::HostNotices {
                host: leader,
                session,
            };
            self.queue.push(self.now + notices, gone);
        }
        self.ask(leader, true, 200, 10 * MS);
        self.mattered(Fault::LateAnswers.name());
        Some(Act::Done)
    }

    fn write_at_leader(&mut self) -> Option<Act> {
        let leader = self.live_leader()?;
        for host in self.live_nodes() {
            if host != leader {
                let latency = self.rng.between(50, 300) * MS;
                self.hosts[host].slow_down_disk(latency);
            }
        }
        let put = self.draw_put("k0".into());
        let write = self.request(leader, put);
        Some(Act::FreshLeader {
            write,
            fallen: false,
        })
    }

    fn fell_a_voter(&mut self, candidate: usize, left: u64, name: &'static str) -> Act {
        let voters = self.voters().into_iter();
        let others: Vec<usize> = voters
            .filter(|host| *host != candidate && self.hosts[*host].process.is_some())
            .collect();
        if let Some(host) = self.rng.pick(&others).copied() {
            self.hosts[host].dies_after = Some(self.rng.below(4));
            self.mattered(name);
        }
        match left {
            0 | 1 => Act::Done,
            left => Act::FallingVoters { left: left - 1 },
        }
    }

    // What plots do.

    /// A link loses what it should carry, without its session ending.
    fn lose(&mut self, host: usize, up: bool, down: bool) {
        for link in &mut self.hosts[host].links {
            (link.cut_up, link.cut_down, link.loses) = (up, down, true);
        }
        self.trace(host, || {
            format!("is not heard ({up}), hears nothing ({down})")
        });
    }

    fn cut_softly(&mut self, host: usize) {
        self.lose(host, true, false);
        self.queue
            .push(self.now + SECOND, Event::Heal { host, link: None });
    }

    fn fall_soon(&mut self, host: usize, wait: Micros) {
        let life = self.hosts[host].life;
        self.queue.push(self.now + wait, Event::Fall { host, life });
    }

    fn ask(&mut self, host: usize, reads: bool, times: u64, every: Micros) {
        let event = Event::Ask {
            host,
            reads,
            times,
            every,
        };
        self.queue.push(self.now, event);
    }

    /// Someone at a node wants something, and will want it again.
    pub(crate) fn ask_again(&mut self, host: usize, reads: bool, times: u64, every: Micros) {
        if self.faults_end || self.hosts[host].process.is_none() {
            return;
        }
        let key = self.draw_key_name();
        let operation = match reads {
            true => Operation::Get(key),
            false => self.draw_put(key),
        };
        self.request(host, operation);
        if times > 1 {
            let event = Event::Ask {
                host,
                reads,
                times: times - 1,
                every,
            };
            self.queue.push(self.now + every, event);
        }
    }
}
