//! Where the broker is and how to be let in.

use std::path::PathBuf;
use std::time::Duration;

use mqtt::{BrokerUrl, Credentials, TlsFiles, Version};

use crate::error::{Error, Result};

/// A broker to meet at, or several that are used at once.
///
/// ```
/// use raft_over_mqtt::Mqtt;
///
/// let mqtt = Mqtt::new("mqtts://broker.example:8883")?
///     .credentials("plant-a", "secret")
///     .load_certificates("authority.pem", "certificate.pem", "key.pem");
/// # Ok::<(), raft_over_mqtt::Error>(())
/// ```
///
/// With several, everything goes out on each of them and the first copy of it counts, so the end of
/// one of two costs neither an election nor a write. They need know nothing of each other, and nodes may
/// list them in different orders; but each node must share one with each other node.
///
/// ```
/// # use raft_over_mqtt::Mqtt;
/// let mqtt = Mqtt::new("mqtt://10.0.0.1")?.and(Mqtt::new("mqtt://10.0.0.2")?);
/// # Ok::<(), raft_over_mqtt::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Mqtt {
    /// At least one.
    pub(crate) brokers: Vec<mqtt::Options>,
}

impl Mqtt {
    /// The broker at `url`: `mqtt://`, `mqtts://`, `ws://` or `wss://`, with a host, and where
    /// they are not the usual ones a port and, for WebSockets, a path.
    ///
    /// # Errors
    /// When the URL is none of these.
    pub fn new(url: &str) -> Result<Mqtt> {
        let url: BrokerUrl = url
            .parse()
            .map_err(|error| Error::Mqtt(mqtt::OptionsError::Url(error)))?;
        Ok(Mqtt {
            brokers: vec![mqtt::Options::new(url)],
        })
    }

    /// These brokers and those at once; at most four.
    pub fn and(mut self, others: Mqtt) -> Mqtt {
        self.brokers.extend(others.brokers);
        self
    }

    /// Each of these brokers by itself, with what was said of all.
    pub fn split(self) -> impl Iterator<Item = Mqtt> {
        let one = |options| Mqtt {
            brokers: vec![options],
        };
        self.brokers.into_iter().map(one)
    }

    fn each(mut self, set: impl Fn(&mut mqtt::Options)) -> Mqtt {
        self.brokers.iter_mut().for_each(set);
        self
    }

    /// User name and password; they win over those in the URL. As all that follows, for each of the
    /// brokers given so far.
    pub fn credentials(self, username: &str, password: &str) -> Mqtt {
        self.each(|options| options.credentials = Some(Credentials::new(username, password)))
    }

    /// PEM files: the authority that the broker's certificate must come from, and this client's
    /// certificate and key.
    pub fn load_certificates(
        self,
        authority: impl Into<PathBuf>,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Mqtt {
        self.tls(
            Some(authority.into()),
            Some(certificate.into()),
            Some(key.into()),
        )
    }

    /// As [`Mqtt::load_certificates`], each file where it is needed: without an authority the
    /// system's are trusted, without a certificate the broker must not ask for one.
    pub fn tls(
        self,
        authority: Option<PathBuf>,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
    ) -> Mqtt {
        let files = TlsFiles {
            ca: authority,
            certificate,
            key,
        };
        self.each(|options| options.tls = files.clone())
    }

    /// How long the broker waits for a sign of life before it publishes the will, and we for the
    /// broker's before we connect anew. 1 s to 18 h, default 5 s.
    pub fn keep_alive(self, keep_alive: Duration) -> Mqtt {
        self.each(|options| options.keep_alive = keep_alive)
    }

    /// MQTT 5 only or 3.1.1 only; by default 5 is tried first.
    pub fn version(self, version: Version) -> Mqtt {
        self.each(|options| options.version = version)
    }

    /// The URL of the broker, or the URLs, without passwords.
    pub fn url(&self) -> String {
        self.urls().join(", ")
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        let url = |options: &mqtt::Options| options.broker.to_string();
        self.brokers.iter().map(url).collect()
    }

    /// The first of them.
    pub(crate) fn first(&self) -> mqtt::Options {
        self.brokers[0].clone()
    }

    /// Each of them by itself.
    pub(crate) fn each_alone(&self) -> impl Iterator<Item = Mqtt> {
        let alone = |options: &mqtt::Options| Mqtt {
            brokers: vec![options.clone()],
        };
        self.brokers.iter().map(alone)
    }

    /// Whether all of them are on this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        self.brokers
            .iter()
            .all(|options| options.broker.is_loopback())
    }
}
