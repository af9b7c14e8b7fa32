//! Each topic that a node needs, there and back.
//!
//! Brokers differ in what they say of what they forbid: some refuse the subscription, some answer a
//! publish at QoS 1 in MQTT 5, some hang up, and Mosquitto 2.0 grants every subscription and drops what
//! it would have brought. So a topic works if a message comes back, and only where a node need not read
//! is the broker's word taken for it.

use bytes::Bytes;
use mqtt::{DisconnectReason, Qos};
use replica::{Name, request_filter};
use tokio::time::Instant;

use super::{End, Examination, Finding, HELLO_PATIENCE, Line, News, Outcome, Purpose, Step};

/// A message to try a topic with.
struct Trial {
    topic: String,
    purpose: Purpose,
    payload: Bytes,
    retain: bool,
    /// A node reads there as well.
    reads: bool,
    outcome: Option<Outcome>,
}

impl Trial {
    fn new(topic: String, purpose: Purpose, payload: Bytes) -> Trial {
        Trial {
            topic,
            purpose,
            payload,
            retain: false,
            reads: true,
            outcome: None,
        }
    }

    /// A node only publishes there.
    fn write_only(self) -> Trial {
        Trial {
            reads: false,
            ..self
        }
    }
}

impl Examination {
    /// Which filters the broker lets us subscribe to; what it refuses is a finding, but for what only
    /// this examination would read.
    pub(super) async fn subscriptions(&mut self) -> Step<Vec<String>> {
        let mut filters = self.needed();
        let needed = filters.len();
        filters.push((self.voice.topics.leader(), Purpose::Leader));
        if self.doctor.requests {
            filters.push((
                format!("{}/+", self.below(&["req", self.me.as_str()])),
                Purpose::Answers,
            ));
        }
        let spare: Vec<String> = filters[needed..].iter().map(|(f, _)| f.clone()).collect();
        loop {
            let texts: Vec<String> = filters.iter().map(|(filter, _)| filter.clone()).collect();
            match self.try_open(&texts).await? {
                Ok(line) => {
                    line.close().await;
                    return Ok(texts);
                }
                Err(DisconnectReason::SubscribeRefused { filter }) => {
                    let Some(at) = filters.iter().position(|(known, _)| *known == filter) else {
                        return Err(End::Ended(DisconnectReason::SubscribeRefused { filter }));
                    };
                    let (topic, purpose) = filters.remove(at);
                    if !spare.contains(&topic) {
                        let outcome = Outcome::SubscribeRefused;
                        self.found(Finding::Topic {
                            topic,
                            purpose,
                            outcome,
                        });
                    }
                }
                Err(reason) => return Err(End::Ended(reason)),
            }
        }
    }

    fn needed(&self) -> Vec<(String, Purpose)> {
        let [broadcast, own, status, roll, own_roll] = self.voice.plan.subscriptions();
        let mut needed = vec![
            (broadcast, Purpose::Broadcast),
            (own, Purpose::Own),
            (status, Purpose::Status),
            (roll, Purpose::Roll),
            (own_roll, Purpose::OwnRoll),
        ];
        if self.doctor.requests {
            let filter = request_filter(self.voice.topics.root());
            needed.push((filter, Purpose::Requests));
        }
        if self.doctor.mirror {
            needed.push((self.below(&["kv", "#"]), Purpose::Mirror));
        }
        needed
    }

    fn below(&self, levels: &[&str]) -> String {
        format!("{}/{}", self.voice.topics.root(), levels.join("/"))
    }

    /// Tries every topic. `answered`: our own is known to work.
    pub(super) async fn access(
        &mut self,
        main: &mut Line,
        filters: &[String],
        answered: bool,
    ) -> Step<()> {
        let mut trials = self.trials();
        if answered {
            trials[0].outcome = Some(Outcome::Works);
        }
        self.try_all(main, filters, &mut trials).await?;
        for trial in trials {
            self.conclude(trial);
        }
        let heard = !self.heard.others.is_empty() || !self.heard.online.is_empty();
        let mut roll = self.roll();
        if heard {
            roll.outcome = Some(Outcome::Untried);
        } else {
            let mut trials = [roll];
            self.try_all(main, filters, &mut trials).await?;
            [roll] = trials;
        }
        self.conclude(roll);
        if heard {
            let others = self.heard.others.union(&self.heard.online);
            let others = others.map(Name::to_string).collect();
            self.found(Finding::Heard(others));
        }
        Ok(())
    }

    fn trials(&mut self) -> Vec<Trial> {
        let (me, topics) = (self.me.clone(), self.voice.topics.clone());
        let own = self.voice.quiet(0);
        let mut trials = vec![Trial::new(self.voice.own_topic(), Purpose::Own, own)];
        // Without a hello a node would have nothing to say to all; a quiet frame does as well.
        let hello = self.voice.hello.clone().map(|hello| hello.payload);
        let hello = hello.unwrap_or_else(|| self.voice.quiet(0));
        trials.push(Trial::new(topics.broadcast(&me), Purpose::Broadcast, hello));
        let roll = self.voice.quiet(0);
        trials.push(Trial::new(
            topics.roll(Some(&me), &me),
            Purpose::OwnRoll,
            roll,
        ));
        trials.push(self.status_trial());
        let leader = self.heard.leader.clone().unwrap_or_default();
        trials.push(Trial::new(topics.leader(), Purpose::Leader, leader).write_only());
        for voter in self.doctor.voters.clone() {
            let Ok(voter) = Name::new(&voter) else {
                continue;
            };
            if voter == me {
                continue;
            }
            let runs = self.heard.online.contains(&voter) || self.heard.others.contains(&voter);
            let payload = self.voice.quiet(0);
            let trial = Trial::new(topics.unicast(&voter, &me), Purpose::Peer, payload);
            let outcome = runs.then_some(Outcome::Untried);
            trials.push(Trial {
                outcome,
                ..trial.write_only()
            });
        }
        if self.doctor.requests {
            let topic = self.below(&["req", me.as_str()]);
            let question = Bytes::from_static(br#"{"op":"leader"}"#);
            trials.push(Trial::new(topic, Purpose::Requests, question));
            let topic = self.below(&["req", me.as_str(), "answer"]);
            trials.push(Trial::new(topic, Purpose::Answers, Bytes::new()).write_only());
        }
        if self.doctor.mirror {
            let topic = self.below(&["kv", "_doctor", me.as_str()]);
            trials.push(Trial::new(topic, Purpose::Mirror, Bytes::new()));
        }
        trials
    }

    /// Where a node's own status stands, that shows that it can be published.
    fn status_trial(&mut self) -> Trial {
        let (_, session) = self.voice.session();
        let will = self.voice.will(session);
        let trial = Trial::new(will.topic, Purpose::Status, will.payload);
        let in_use = self.status_is_in_use();
        let stands = self.heard.status.is_some();
        let outcome = in_use.then_some(if stands {
            Outcome::Works
        } else {
            Outcome::Untried
        });
        Trial {
            retain: true,
            outcome,
            ..trial
        }
    }

    fn roll(&mut self) -> Trial {
        let topic = self.voice.topics.roll(None, &self.me);
        let payload = self.voice.quiet(0);
        Trial::new(topic, Purpose::Roll, payload)
    }

    fn conclude(&mut self, trial: Trial) {
        let Trial {
            topic,
            purpose,
            outcome,
            reads,
            retain: trial_retained,
            ..
        } = trial;
        let told = self.version == "5";
        // A node reads requests, and need not be allowed to ask.
        let asks = purpose == Purpose::Requests;
        let outcome = outcome.map(|outcome| match outcome {
            Outcome::PublishRefused(_) if asks => Outcome::NotTold,
            outcome => outcome,
        });
        let reads = reads && (told || !asks);
        let outcome = outcome.unwrap_or(match (told, reads) {
            (true, true) => Outcome::NotReadable,
            (true, false) => Outcome::Works,
            (false, true) => Outcome::Lost,
            (false, false) => Outcome::NotTold,
        });
        self.own_works |= purpose == Purpose::Own && outcome == Outcome::Works;
        self.status_works |=
            purpose == Purpose::Status && outcome == Outcome::Works && trial_retained;
        self.found(Finding::Topic {
            topic,
            purpose,
            outcome,
        });
    }

    /// All at once; where the broker hangs up, one after the other, to see at which.
    async fn try_all(
        &mut self,
        main: &mut Line,
        filters: &[String],
        trials: &mut [Trial],
    ) -> Step<()> {
        match self.try_on(main, trials).await? {
            None => return Ok(()),
            Some(reason) => tracing::debug!("the broker hung up on one of many topics: {reason}"),
        }
        for trial in trials.iter_mut().filter(|trial| trial.outcome.is_none()) {
            let mut line = self.open(filters).await?;
            let Some(reason) = self.try_on(&mut line, std::slice::from_mut(trial)).await? else {
                line.close().await;
                continue;
            };
            if trial.retain {
                // Perhaps it was only for this that it hung up.
                trial.retain = false;
                let mut line = self.open(filters).await?;
                let again = self.try_on(&mut line, std::slice::from_mut(trial)).await?;
                if again.is_none() && trial.outcome == Some(Outcome::Works) {
                    let (kept, cleared) = (false, None);
                    self.found(Finding::Retain { kept, cleared });
                    continue;
                }
            }
            trial.outcome = Some(Outcome::PublishRefused(reason.to_string()));
        }
        *main = self.open(filters).await?;
        Ok(())
    }

    /// Publishes what is still to be tried and waits until all of it is back, or has had its time.
    /// Why the session ended, if it did.
    async fn try_on(
        &mut self,
        line: &mut Line,
        trials: &mut [Trial],
    ) -> Step<Option<DisconnectReason>> {
        for trial in trials.iter().filter(|trial| trial.outcome.is_none()) {
            self.dirty |= trial.retain;
            // A full or ended session shows in what does not come back.
            let payload = trial.payload.clone();
            let _ = line.say(&trial.topic, payload, Qos::AtLeastOnce, trial.retain);
        }
        let until = self.until(self.patience, "the topics")?;
        let listen = Instant::now() + HELLO_PATIENCE;
        loop {
            let pending = trials.iter().any(|trial| trial.outcome.is_none());
            let until = if pending { until } else { until.min(listen) };
            match line.hear(until).await {
                News::Message(message) => {
                    let back = trials.iter_mut().find(|trial| {
                        trial.outcome.is_none()
                            && trial.topic == message.topic
                            && trial.payload == message.payload
                            && !message.retained
                    });
                    match back {
                        Some(trial) => trial.outcome = Some(Outcome::Works),
                        None => self.note(message),
                    }
                }
                News::Refused { topic, detail } => {
                    let refused = trials.iter_mut().find(|trial| trial.topic == topic);
                    if let Some(trial) = refused {
                        trial.outcome = Some(Outcome::PublishRefused(detail));
                    }
                }
                News::Ended(reason) => return Ok(Some(reason)),
                News::Silence => return Ok(None),
            }
        }
    }
}
