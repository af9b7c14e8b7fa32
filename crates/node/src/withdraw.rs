//! Removing a cluster from Home Assistant: what a process that is no node does, without any key.

use std::time::Duration;

use mqtt::{Event, Events, Qos, SessionSetup};
use replica::{Publish, Topics, Withdrawal};

use crate::connection::Mqtt;
use crate::error::{Error, Result};
use crate::node::{HOME_ASSISTANT, checked, random};

/// Removes the cluster's device, announced below `discovery_prefix`, from Home Assistant, and what its
/// entities read from the broker. Nodes that run with [`crate::NodeBuilder::home_assistant`] hear it and
/// do not announce the device again before they are started anew.
///
/// # Errors
/// When something was given that cannot work, no session with the broker came up in `timeout`, or its
/// ACL forbids it, which brokers tell by MQTT 5 only.
pub async fn remove_from_home_assistant(
    mqtt: Mqtt,
    prefix: &str,
    cluster: &str,
    discovery_prefix: &str,
    timeout: Duration,
) -> Result<()> {
    let topics = Topics::new(prefix, &checked("cluster", cluster)?)?;
    let wrong = |source| Error::OtherPrefix {
        what: HOME_ASSISTANT,
        prefix: discovery_prefix.to_owned(),
        source,
    };
    let withdrawal = Withdrawal::of(discovery_prefix, &topics).map_err(wrong)?;
    let id = u64::from_be_bytes(random()?);
    for options in mqtt.brokers {
        withdraw(options, &withdrawal, id, timeout).await?;
    }
    Ok(())
}

async fn withdraw(
    options: mqtt::Options,
    withdrawal: &[Publish],
    id: u64,
    timeout: Duration,
) -> Result<()> {
    let (publisher, mut events) = mqtt::connect(options, move |epoch| SessionSetup {
        client_id: format!("client-{id:016x}-{}", epoch.0),
        will: None,
        subscriptions: Vec::new(),
    })?;
    let mut last = None;
    match tokio::time::timeout(timeout, connected(&mut events, &mut last)).await {
        Ok(connected) => connected?,
        Err(_) => return Err(last.map_or(Error::TimedOut(timeout), Error::Connect)),
    }
    for message in withdrawal.iter().cloned() {
        let said = publisher.publish(message.topic, message.payload, Qos::AtLeastOnce, true);
        said.map_err(|_| Error::TimedOut(timeout))?;
    }
    // Waits until the broker has acknowledged both.
    publisher.disconnect().await;
    while let Some(event) = events.next().await {
        if let Event::PublishRefused { topic, detail } = event {
            let why = format!("the broker refused a message on {topic}: {detail}; check its ACL");
            return Err(Error::Refused(why));
        }
    }
    Ok(())
}

pub(crate) async fn connected(
    events: &mut Events,
    last: &mut Option<mqtt::DisconnectReason>,
) -> Result<()> {
    loop {
        match events.next().await {
            Some(Event::Connected { .. }) => return Ok(()),
            Some(Event::Disconnected { reason, .. }) if reason.is_permanent() => {
                return Err(Error::Connect(reason));
            }
            Some(Event::Disconnected { reason, .. }) => *last = Some(reason),
            Some(_) => {}
            None => return Err(Error::Closed),
        }
    }
}
