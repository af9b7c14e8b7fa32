//! A process that is there and nothing more: the task around `replica::Observer`.

use std::time::Duration;

use mqtt::{Event, Events, Publisher, Qos};
use replica::{KeyRing, ObserverInput, Session, Tags};
use tokio::task::JoinHandle;

use crate::clock;
use crate::connection::Mqtt;
use crate::error::{Error, Result};
use crate::node::{checked, random, subscriptions};

/// Thousands of observers may come at once: a broker that is busy with the others is not down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// A process that is among those whom the cluster has agreed on and does nothing else: no vote, no
/// state, no disk. For fleets of thousands, where a node that holds the whole state would cost too
/// much. It is there while this handle lives; when it is dropped the session ends without a word, and
/// the cluster learns it from the broker, as it does when the process dies.
///
/// It has one session: of several brokers it uses the first.
///
/// ```no_run
/// use raft_over_mqtt::{Mqtt, Observer};
///
/// # fn example() -> raft_over_mqtt::Result<()> {
/// let mqtt = Mqtt::new("mqtt://127.0.0.1:1883")?;
/// let tags = [("site".to_owned(), "north".to_owned())];
/// let sensor = Observer::start(mqtt, "raft", "plant-a", "sensor-17", None, tags)?;
/// # drop(sensor);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Observer {
    task: JoinHandle<()>,
}

impl Observer {
    /// Starts it on the current tokio runtime. The broker need not be there yet: it tries until it is.
    /// `name` is for its owner to keep unique: of two processes of one name the first stays. `tags` are
    /// seen by everyone, as those of [`crate::NodeBuilder::tag`]. Without a key: insecure mode, for a
    /// broker on this machine.
    ///
    /// # Errors
    /// When something was given that cannot work.
    pub fn start(
        mqtt: Mqtt,
        prefix: &str,
        cluster: &str,
        name: &str,
        keys: impl Into<KeyRing>,
        tags: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Observer> {
        let (cluster, name) = (checked("cluster", cluster)?, checked("node id", name)?);
        let ring = keys.into();
        if ring.is_insecure() && !mqtt.is_loopback() {
            return Err(Error::Insecure { broker: mqtt.url() });
        }
        let tags = Tags::new(tags)?;
        let observer = replica::Observer::new(prefix, &cluster, name, ring, tags, random()?)?;
        let (plan, filters) = (observer.session_plan(), observer.subscriptions());
        let mut options = mqtt.first();
        options.connect_timeout = options.connect_timeout.max(CONNECT_TIMEOUT);
        let (publisher, events) = mqtt::connect(options, move |epoch| {
            let session = Session::first(epoch.0);
            let will = plan.will(session);
            mqtt::SessionSetup {
                client_id: plan.client_id(session),
                will: Some(mqtt::Will {
                    topic: will.topic,
                    payload: will.payload,
                    qos: Qos::AtLeastOnce,
                    retain: true,
                }),
                subscriptions: subscriptions(&filters),
            }
        })?;
        let task = tokio::spawn(run(observer, publisher, events));
        Ok(Observer { task })
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(mut observer: replica::Observer, publisher: Publisher, mut events: Events) {
    loop {
        let deadline = observer.next_deadline();
        let timer = async {
            match deadline {
                Some(at) => tokio::time::sleep(at.since(clock::now())).await,
                None => std::future::pending().await,
            }
        };
        let input = tokio::select! {
            event = events.next() => match event {
                None => return,
                Some(Event::Connected { epoch }) => ObserverInput::Connected { epoch: epoch.0 },
                Some(Event::Disconnected { .. }) => ObserverInput::Disconnected,
                Some(Event::Message(message)) => ObserverInput::Received {
                    topic: message.topic,
                    payload: message.payload,
                },
                Some(_) => ObserverInput::Tick,
            },
            () = timer => ObserverInput::Tick,
        };
        for publish in observer.step([input], clock::now()) {
            let qos = match publish.retain {
                true => Qos::AtLeastOnce,
                false => Qos::AtMostOnce,
            };
            // It is gone with its session: the next one publishes the birth again.
            let _ = publisher.publish(publish.topic, publish.payload, qos, publish.retain);
        }
    }
}
