//! Is our name free? A starting node asks, whoever has it answers, and of two that start at once one
//! stays. The probe that comes back also measures the round trip to the broker.

use super::*;

/// How often a node that may lead measures the round trip.
const MEASURE_INTERVAL: Duration = Duration::from_secs(10);

impl Replica {
    pub(super) fn on_probe(&mut self, from: &Name, incarnation: Incarnation) {
        if *from != self.endpoint.name {
            return;
        }
        let ours = self.endpoint.incarnation;
        if incarnation == ours {
            self.on_own_probe();
            return;
        }
        // Of two that start at once the lower incarnation stays.
        let yields = self.yields_until.is_some_and(|until| self.now < until);
        let here_first = self.phase == Phase::Running && !yields;
        if here_first || ours < incarnation {
            let occupied = Occupied {
                incarnation: incarnation.0,
            };
            let me = self.endpoint.name.clone();
            self.endpoint.send_in_lobby(&me, &Body::Occupied(occupied));
        }
    }

    /// Asks whoever has our name to answer, and measures how long that takes.
    pub(super) fn probe(&mut self) {
        let me = self.endpoint.name.clone();
        self.endpoint.send_in_lobby(&me, &Body::Probe);
        let given_up = |at: Time| self.now.since(at) >= PROBE_GIVEN_UP;
        if self.probed_at.is_none_or(given_up) {
            self.probed_at = Some(self.now);
        }
        self.probe_at = self.now + MEASURE_INTERVAL;
    }

    /// Ranks are to be further apart than it takes to hear of each other (design point 5), as it is now.
    pub(super) fn measure(&mut self) {
        if self.measures() && self.now >= self.probe_at {
            self.probe();
        }
    }

    /// The quickest broker may be gone: what was measured says nothing of those that are left, and what
    /// is under way may never come back.
    pub(super) fn measure_anew(&mut self) {
        self.probed_at = None;
        self.probe_at = self.now;
    }

    pub(super) fn probe_deadline(&self) -> Option<Time> {
        self.measures().then_some(self.probe_at)
    }

    fn measures(&self) -> bool {
        let running = self.phase == Phase::Running && !self.live.is_empty();
        running && self.is_voter(self.endpoint.key)
    }

    /// Our own probe came back: a round trip to the quickest broker, and whoever else is called so has
    /// it as well.
    pub(super) fn on_own_probe(&mut self) {
        // The first copy tells; a broker may bring it back as often as it likes.
        let probed_at = self.probed_at.take();
        if let Some(at) = probed_at.filter(|at| self.now.since(*at) < PROBE_GIVEN_UP) {
            self.round_trip = Some(self.now.since(at));
            self.announce_round_trip();
        }
        if let Phase::Probing { since, until } = self.phase
            && until == since + PROBE_GIVEN_UP
        {
            let round_trip = self.now.since(since);
            let until = self.now + PROBE_TIME.max(3 * round_trip);
            self.phase = Phase::Probing { since, until };
        }
    }

    /// Tells consensus what was measured last.
    pub(super) fn announce_round_trip(&mut self) {
        if self.raft.is_some()
            && let Some(round_trip) = self.round_trip.take()
        {
            self.consensus(raft::Input::RoundTrip(round_trip));
        }
    }

    pub(super) fn on_occupied(&mut self, from: &Name, occupied: Occupied) {
        let meant =
            *from == self.endpoint.name && occupied.incarnation == self.endpoint.incarnation.0;
        let starting = matches!(self.phase, Phase::Probing { .. });
        let reconnected = self.reprobing.is_some_and(|until| self.now < until);
        if meant && (starting || reconnected) {
            self.stop(StopReason::NameTaken(from.clone()));
        }
    }

    /// Stops, with a farewell unless another process has our name: its status is to stay. What was
    /// said goes out first, since nothing is carried out after the stop.
    pub(super) fn stop(&mut self, reason: StopReason) {
        self.flush_publishes();
        if !matches!(reason, StopReason::NameTaken(_)) {
            self.say_farewell();
        }
        self.phase = Phase::Stopped;
        self.event(Event::Stop(reason));
    }

    fn say_farewell(&mut self) {
        if self.phase == Phase::Running {
            let plan = self.session_plan();
            for session in self.live.iter() {
                let farewell = Effect::PublishOver(session.link, plan.will(session));
                self.effects.push(farewell);
            }
        }
    }

    pub(super) fn run(&mut self) {
        self.phase = Phase::Running;
        if let Some(formation) = self.lobby.formation().cloned() {
            self.start_consensus(&formation);
        } else {
            let step = self.lobby.alone(self.now);
            self.form(step);
        }
    }

    pub(super) fn shut_down(&mut self) {
        for (token, error) in self.requests.abandon() {
            self.effects.push(Effect::Done {
                token,
                result: Err(error),
            });
        }
        self.say_farewell();
        self.phase = Phase::Stopped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(seed: u8) -> Replica {
        let name = |text| Name::new(text).expect("a name");
        let voters = vec![name("a"), name("b")];
        let config = Config::new(name("a"), NodeKey(seed.into()), name("plant"), voters);
        let node = Replica::new(config, None, Durable::default(), [seed; 32], Time(0));
        node.expect("a good prefix")
    }

    fn connect(node: &mut Replica, place: usize, now: Time) -> Vec<Publish> {
        let link = Link::new(place).expect("few brokers");
        let session = Session { link, epoch: 1 };
        said(node.step([Input::Connected(session)], now))
    }

    fn hear(node: &mut Replica, publishes: &[Publish], now: Time) -> Vec<Publish> {
        let inputs = publishes.iter().map(|publish| Input::Received {
            over: Link::FIRST,
            topic: publish.topic.clone(),
            payload: publish.payload.clone(),
            retained: false,
        });
        said(node.step(inputs.collect::<Vec<_>>(), now))
    }

    /// What goes to whoever is called so.
    fn said(effects: Vec<Effect>) -> Vec<Publish> {
        let publishes = effects.into_iter().filter_map(|effect| match effect {
            Effect::Publish(publish) => Some(publish),
            _ => None,
        });
        publishes.filter(|p| p.topic.ends_with("rpc/a/a")).collect()
    }

    /// Simulator, seed 56 of 120 s: a node that had just found back to one broker of several took
    /// whoever asked for its name for one that may have been first, and both ran on.
    #[test]
    fn who_was_in_reach_all_the_time_was_here_first() {
        for (here, comes) in [(7, 8), (8, 7)] {
            let (mut here, mut comes) = (node(here), node(comes));
            connect(&mut here, 0, Time(0));
            here.step([Input::Tick], Time(0) + PROBE_GIVEN_UP);
            let now = Time(0) + 2 * PROBE_GIVEN_UP;
            connect(&mut here, 1, now);
            let asks = connect(&mut comes, 0, now);
            let answers = hear(&mut here, &asks, now);
            hear(&mut comes, &answers, now);
            assert!(comes.phase == Phase::Stopped, "the name is taken");
            assert!(here.phase == Phase::Running);
        }
    }
}
