//! Is our name free? A starting node asks, whoever has it answers, and of two that start at once one
//! stays. The probe that comes back also measures the round trip to the broker.

use super::*;

/// δ, the rank delay, is at most this share of the election timeout.
const MAX_RANK_DELAY_SHARE: u32 = 8;

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
        let here_first = self.phase == Phase::Running && self.reprobing.is_none();
        if here_first || ours < incarnation {
            let occupied = Occupied {
                incarnation: incarnation.0,
            };
            let me = self.endpoint.name.clone();
            self.endpoint.send_in_lobby(&me, &Body::Occupied(occupied));
        }
    }

    /// Our own probe came back: a round trip to the broker, and whoever else is called so has
    /// it as well.
    pub(super) fn on_own_probe(&mut self) {
        // The first copy tells; a broker may bring it back as often as it likes.
        if let Phase::Probing { since, until } = self.phase
            && until == since + PROBE_GIVEN_UP
        {
            let round_trip = self.now.since(since);
            let until = self.now + PROBE_TIME.max(3 * round_trip);
            self.phase = Phase::Probing { since, until };
            // Ranks must differ by more than it takes to hear of each other (design point 5). One
            // slow moment at the start must not make every later election slow.
            let longest = self.options.election_timeout / MAX_RANK_DELAY_SHARE;
            let measured = (2 * round_trip).min(longest);
            self.options.rank_delay = self.options.rank_delay.max(measured);
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
        if self.phase == Phase::Running
            && let Some(epoch) = self.epoch
        {
            let will = self.session_plan().will(epoch);
            self.effects.push(Effect::Publish(will));
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

    /// Simulator, seed 287: a broker that was slow for two seconds while a node started made each
    /// of its ranks four seconds long, for as long as it lived: its cluster had no leader for ten.
    #[test]
    fn one_slow_moment_does_not_slow_every_election() {
        let name = Name::new("a").expect("a name");
        let cluster = Name::new("plant").expect("a name");
        let config = Config::new(name.clone(), NodeKey(1), cluster, vec![name]);
        let durable = Durable::default();
        let node = Replica::new(config, None, durable, [7; 32], Time(0));
        let mut node = node.expect("a good prefix");
        let effects = node.step([Input::Connected { epoch: 1 }], Time(0));
        let probe = effects.into_iter().find_map(|effect| match effect {
            Effect::Publish(publish) if !publish.retain => Some(publish),
            _ => None,
        });
        let Publish { topic, payload, .. } = probe.expect("its probe");
        let echo = Input::Received {
            topic,
            payload,
            retained: false,
        };
        node.step([echo], Time(1_900_000));
        assert_eq!(
            node.options.rank_delay,
            node.options.election_timeout / MAX_RANK_DELAY_SHARE
        );
    }
}
