//! What the broker keeps for us and says for us: retained messages and wills.

use std::time::Duration;

use bytes::Bytes;
use mqtt::{DisconnectReason, Qos, Will};
use tokio::time::Instant;

use super::{Examination, Finding, Line, News, Step, Voice};

/// How long a will may take after its client's end.
const WILL_PATIENCE: Duration = Duration::from_secs(3);

/// Mosquitto looks at the keep alive of its clients about every six seconds.
const KEEP_ALIVE_SLACK: Duration = Duration::from_secs(10);

impl Examination {
    /// Will and retain as a node uses them, on its own status; that of a running node is left alone.
    pub(super) async fn keeping(&mut self, main: &mut Line) -> Step<()> {
        if let Some(reason) = self.refuses_will().await? {
            self.found(Finding::WillRefused(reason));
        }
        if self.status_is_in_use() {
            if self.heard.twin.is_some() || self.heard.status.is_some() {
                let kept = self.heard.status.is_some();
                self.found(Finding::Retain {
                    kept,
                    cleared: None,
                });
            }
            return self.will(main, quiet_will).await;
        }
        if !self.status_works {
            return self.will(main, quiet_will).await;
        }
        self.will(main, Voice::will).await?;
        self.retain(main).await
    }

    /// Why the broker does not let a session in that would leave a node's will, if it does not. It is
    /// ended as it should be, so that the will is not heard.
    async fn refuses_will(&mut self) -> Step<Option<DisconnectReason>> {
        let (client_id, session) = self.voice.session();
        let will = self.voice.will(session);
        let opened = Line::open(self.options.clone(), client_id, Some(will), &[]).await?;
        match opened {
            Ok(line) => {
                line.close().await;
                Ok(None)
            }
            Err(reason) => Ok(Some(reason)),
        }
    }

    async fn will(&mut self, main: &mut Line, will: fn(&mut Voice, u64) -> Will) -> Step<()> {
        let (client_id, session) = self.voice.session();
        let will = will(&mut self.voice, session);
        let (topic, payload) = (will.topic.clone(), will.payload.clone());
        self.dirty |= will.retain;
        let opened = Line::open(self.options.clone(), client_id, Some(will), &[]).await?;
        // If it is not let in with this will, it was not with a node's, and that has been said.
        let Ok(dying) = opened else {
            return Ok(());
        };
        let since = Instant::now();
        drop(dying);
        let until = (since + WILL_PATIENCE).min(self.deadline);
        let heard = self.comes(main, &topic, &payload, until).await?;
        self.found(Finding::Will(heard.then(|| since.elapsed())));
        Ok(())
    }

    async fn retain(&mut self, main: &mut Line) -> Step<()> {
        let (_, session) = self.voice.session();
        let Will { topic, payload, .. } = self.voice.will(session);
        // Both must have reached the broker before another session looks.
        self.leave(main, &topic, payload.clone()).await?;
        let kept = self.retained(&topic).await?.as_ref() == Some(&payload);
        self.leave(main, &topic, Bytes::new()).await?;
        let cleared = self.retained(&topic).await?.is_none();
        self.found(Finding::Retain {
            kept,
            cleared: Some(cleared),
        });
        if let Some(before) = self.heard.status.clone() {
            self.leave(main, &topic, before).await?;
        }
        self.dirty = false;
        Ok(())
    }

    async fn leave(&mut self, main: &mut Line, topic: &str, payload: Bytes) -> Step<()> {
        let until = self.until(self.patience, "retained messages")?;
        let _ = main.say(topic, payload.clone(), Qos::AtLeastOnce, true);
        self.comes(main, topic, &payload, until).await?;
        Ok(())
    }

    /// Whether this message comes before then.
    async fn comes(
        &mut self,
        line: &mut Line,
        topic: &str,
        payload: &Bytes,
        until: Instant,
    ) -> Step<bool> {
        loop {
            match line.hear(until).await {
                News::Message(message) => {
                    if message.topic == topic && message.payload == *payload {
                        return Ok(true);
                    }
                }
                News::Refused { .. } => {}
                News::Ended(reason) => return Err(super::End::Ended(reason)),
                News::Silence => return Ok(false),
            }
        }
    }

    /// What the broker has kept there for who comes now.
    async fn retained(&mut self, topic: &str) -> Step<Option<Bytes>> {
        let [_, own, statuses, ..] = self.voice.plan.subscriptions();
        let mut line = self.open(&[statuses, own]).await?;
        // What is kept comes before what is said afterwards.
        let (marker, own) = (self.voice.quiet(0), self.voice.own_topic());
        let _ = line.say(&own, marker.clone(), Qos::AtLeastOnce, false);
        let until = self.until(self.patience, "retained messages")?;
        let mut kept = None;
        loop {
            match line.hear(until).await {
                News::Message(message) if message.topic == topic => {
                    kept = message.retained.then_some(message.payload).or(kept);
                }
                News::Message(message) if message.payload == marker => break,
                News::Message(_) | News::Refused { .. } => {}
                News::Ended(reason) => return Err(super::End::Ended(reason)),
                News::Silence => break,
            }
        }
        line.close().await;
        Ok(kept)
    }

    /// Leaves this node's status as it was, whatever the examination came to.
    pub(super) async fn tidy_up(&mut self) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        let before = self.heard.status.clone().unwrap_or_default();
        let topic = self.voice.status_topic();
        if let Ok(Ok(line)) = self.try_open(&[]).await {
            let _ = line.say(&topic, before, Qos::AtLeastOnce, true);
            line.close().await;
        }
    }

    /// How late the will of a client comes that keeps its connection open and says nothing more: it
    /// runs in a thread that stops driving it, as a process does that is stopped.
    pub(super) async fn silent_will(&mut self, line: &mut Line) -> Step<()> {
        let keep_alive = self.options.keep_alive;
        let (client_id, session) = self.voice.session();
        let will = quiet_will(&mut self.voice, session);
        let (topic, payload) = (will.topic.clone(), will.payload.clone());
        let options = self.options.clone();
        let (connected, silent) = tokio::sync::oneshot::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let Ok(runtime) = runtime else {
                return;
            };
            let line = runtime.block_on(Line::open(options, client_id, Some(will), &[]));
            let up = matches!(line, Ok(Ok(_)));
            let _ = connected.send(up.then(Instant::now));
            // Until the sender is dropped nothing runs here, and the socket stays open.
            let _ = released.recv();
        });
        let Ok(Some(since)) = silent.await else {
            return Ok(());
        };
        let longest = keep_alive.mul_f64(1.5) + KEEP_ALIVE_SLACK;
        let until = (since + longest).min(self.deadline);
        let heard = self.comes(line, &topic, &payload, until).await;
        let after = since.elapsed();
        drop(release);
        let _ = thread.join();
        if heard? {
            self.found(Finding::SilentWill {
                keep_alive,
                after: Some(after),
            });
        } else if until < since + longest {
            self.found(Finding::NoTime("the will of a silent client"));
        } else {
            self.found(Finding::SilentWill {
                keep_alive,
                after: None,
            });
        }
        Ok(())
    }
}

/// A will that nobody minds, on a topic that only this node hears, and that is not retained.
fn quiet_will(voice: &mut Voice, _: u64) -> Will {
    Will {
        topic: voice.own_topic(),
        payload: voice.quiet(0),
        qos: Qos::AtMostOnce,
        retain: false,
    }
}
