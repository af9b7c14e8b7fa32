//! How fast the broker is, and how much it takes.

use std::time::Duration;

use bytes::Bytes;
use mqtt::Qos;
use replica::MAX_FRAME;
use tokio::time::Instant;

use super::{Examination, Finding, Line, Lost, News, Pace, RoundTrip, Step, Timeouts};

/// How many round trips are measured, in how much time.
const ROUND_TRIPS: usize = 400;
const ROUND_TRIPS_FOR: Duration = Duration::from_secs(1);

/// As long as an acknowledgement with what came before it in the log's header.
const SMALL: usize = 128;

/// How many pairs show Nagle's algorithm.
const PAIRS: usize = 9;

/// After so many answers in a row a kernel delays acknowledgements, to send them with what follows.
const WARM_UP: usize = 8;

/// What a leader may send to one follower in a moment: two of its largest frames, in small ones.
const BURST: usize = 256;
const BURST_SIZE: usize = 1024;

/// How long the largest frame may take: 40 KiB a second.
const LARGE_PATIENCE: Duration = Duration::from_secs(4);

/// Between the largest size that came back and the smallest that did not, so many are tried.
const STEPS: usize = 16;

impl Examination {
    pub(super) async fn pace(&mut self, line: &mut Line) -> Step<()> {
        let round_trip = self.round_trips(line).await?;
        self.nagle(round_trip.p50).await?;
        self.burst(line).await?;
        let large_frame = self.payload(line).await?;
        let pace = Pace {
            round_trip: round_trip.max,
            large_frame,
        };
        if round_trip.samples > 0 {
            let (timeout, heartbeat) = (self.doctor.election_timeout, self.doctor.heartbeat());
            let timeouts = Timeouts::of(timeout, heartbeat, pace);
            self.found(Finding::Timeouts(timeouts));
        }
        Ok(())
    }

    /// A session that hears what is sent to this node, and nothing else.
    pub(super) async fn open_own(&mut self) -> Step<Line> {
        let [_, own, ..] = self.voice.plan.subscriptions();
        self.open(&[own]).await
    }

    async fn round_trips(&mut self, line: &mut Line) -> Step<RoundTrip> {
        let until = self.until(ROUND_TRIPS_FOR, "round trips")?;
        let own = self.voice.own_topic();
        let (mut times, mut lost) = (Vec::new(), 0);
        while times.len() < ROUND_TRIPS && (Instant::now() < until || times.is_empty()) {
            let frame = self.voice.quiet(SMALL);
            match line.echo(&own, frame, self.patience).await {
                Ok(Some(took)) => times.push(took),
                Ok(None) => lost += 1,
                Err(_) => *line = self.open_own().await?,
            }
            self.until(Duration::ZERO, "round trips")?;
        }
        times.sort_unstable();
        let trip = RoundTrip {
            samples: times.len(),
            lost,
            p50: quantile(&times, 50),
            p99: quantile(&times, 99),
            max: quantile(&times, 100),
        };
        self.found(Finding::RoundTrip(trip));
        Ok(trip)
    }

    async fn nagle(&mut self, ours: Duration) -> Step<()> {
        let quick = self.options.quick_ack;
        self.options.quick_ack = false;
        let opened = self.open_own().await;
        self.options.quick_ack = quick;
        let mut line = opened?;
        let own = self.voice.own_topic();
        let mut seconds = Vec::new();
        for _ in 0..PAIRS {
            self.until(self.patience, "Nagle's algorithm")?;
            for _ in 0..WARM_UP {
                let frame = self.voice.quiet(SMALL);
                let _ = line.echo(&own, frame, self.patience).await;
            }
            // In one write, so that the broker answers the second before we can acknowledge the first.
            let first = self.voice.quiet(SMALL);
            if line.say(&own, first, Qos::AtMostOnce, false).is_err() {
                break;
            }
            let second = self.voice.quiet(SMALL);
            match line.echo(&own, second, self.patience).await {
                Ok(Some(took)) => seconds.push(took),
                Ok(None) => {}
                Err(_) => break,
            }
        }
        line.close().await;
        seconds.sort_unstable();
        if !seconds.is_empty() {
            let second_of_two = quantile(&seconds, 50);
            self.found(Finding::Nagle {
                second_of_two,
                ours,
            });
        }
        Ok(())
    }

    async fn burst(&mut self, line: &mut Line) -> Step<()> {
        self.until(self.patience, "a burst")?;
        let frames: Vec<Bytes> = (0..BURST).map(|_| self.voice.quiet(BURST_SIZE)).collect();
        let arrived = self.arrivals(line, &frames).await?;
        self.found(Finding::Burst {
            sent: BURST,
            size: BURST_SIZE,
            arrived: arrived.len(),
        });
        Ok(())
    }

    /// Publishes all of them at once; the sizes of those that came back before nothing came any more.
    async fn arrivals(&mut self, line: &mut Line, frames: &[Bytes]) -> Step<Vec<usize>> {
        let own = self.voice.own_topic();
        for frame in frames {
            // What is beyond the broker's limit is not sent, and does not come back.
            let _ = line.say(&own, frame.clone(), Qos::AtMostOnce, false);
        }
        let mut arrived = Vec::new();
        while arrived.len() < frames.len() {
            let until = (Instant::now() + self.patience).min(self.deadline);
            match line.hear(until).await {
                News::Message(message) if frames.contains(&message.payload) => {
                    arrived.push(message.payload.len());
                }
                News::Message(_) | News::Refused { .. } => {}
                News::Ended(_) => {
                    *line = self.open_own().await?;
                    break;
                }
                News::Silence => break,
            }
        }
        Ok(arrived)
    }

    /// The largest frame that comes back, and how long it takes.
    async fn payload(&mut self, line: &mut Line) -> Step<Option<Duration>> {
        let mut largest = MAX_FRAME;
        let mut took = self.large(line, largest).await?;
        if took.is_none() {
            let doubling = (0..).map(|step| SMALL << step);
            let sizes: Vec<usize> = doubling.take_while(|size| *size < MAX_FRAME).collect();
            let below = self.largest_of(line, &sizes).await?;
            let beyond = (2 * below.max(SMALL)).min(MAX_FRAME);
            let step = (beyond - below).div_ceil(STEPS).max(1);
            let sizes: Vec<usize> = (below..beyond).step_by(step).skip(1).collect();
            largest = self.largest_of(line, &sizes).await?.max(below);
            took = match largest {
                0 => None,
                size => self.large(line, size).await?,
            };
        }
        self.found(Finding::Payload {
            largest,
            needed: MAX_FRAME,
            took: took.unwrap_or_default(),
        });
        Ok(took)
    }

    async fn large(&mut self, line: &mut Line, size: usize) -> Step<Option<Duration>> {
        self.until(self.patience, "the largest frame")?;
        let patience = self.patience.max(LARGE_PATIENCE);
        let patience = patience.min(self.deadline.saturating_duration_since(Instant::now()));
        let (own, frame) = (self.voice.own_topic(), self.voice.quiet(size));
        match line.echo(&own, frame, patience).await {
            Ok(took) => Ok(took),
            Err(Lost::TooLarge) => Ok(None),
            Err(Lost::Ended) => {
                *line = self.open_own().await?;
                Ok(None)
            }
        }
    }

    async fn largest_of(&mut self, line: &mut Line, sizes: &[usize]) -> Step<usize> {
        self.until(self.patience, "the largest frame")?;
        let frames: Vec<Bytes> = sizes.iter().map(|size| self.voice.quiet(*size)).collect();
        let arrived = self.arrivals(line, &frames).await?;
        Ok(arrived.into_iter().max().unwrap_or_default())
    }
}

/// The value that so many percent do not exceed; `times` is in order.
fn quantile(times: &[Duration], percent: usize) -> Duration {
    let rank = (times.len() * percent).div_ceil(100).max(1);
    times.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_value_that_was_measured() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(quantile(&times, 50), Duration::from_millis(100));
        assert_eq!(quantile(&times, 99), Duration::from_millis(198));
        assert_eq!(quantile(&times, 100), Duration::from_millis(200));
        assert_eq!(quantile(&times[..1], 50), Duration::from_millis(1));
        assert_eq!(quantile(&[], 99), Duration::ZERO);
    }
}
