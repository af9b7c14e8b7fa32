//! Where the broker is and how to be let in.

use std::path::PathBuf;
use std::time::Duration;

use mqtt::{BrokerUrl, Credentials, TlsFiles, Version};

use crate::error::{Error, Result};

/// A broker to meet at.
///
/// ```
/// use raft_over_mqtt::Mqtt;
///
/// let mqtt = Mqtt::new("mqtts://broker.example:8883")?
///     .credentials("plant-a", "secret")
///     .load_certificates("authority.pem", "certificate.pem", "key.pem");
/// # Ok::<(), raft_over_mqtt::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Mqtt {
    pub(crate) options: mqtt::Options,
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
            options: mqtt::Options::new(url),
        })
    }

    /// User name and password; they win over those in the URL.
    pub fn credentials(mut self, username: &str, password: &str) -> Mqtt {
        self.options.credentials = Some(Credentials::new(username, password));
        self
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
        mut self,
        authority: Option<PathBuf>,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
    ) -> Mqtt {
        self.options.tls = TlsFiles {
            ca: authority,
            certificate,
            key,
        };
        self
    }

    /// How long the broker waits for a sign of life before it publishes the will, and we for the
    /// broker's before we connect anew. 1 s to 18 h, default 5 s.
    pub fn keep_alive(mut self, keep_alive: Duration) -> Mqtt {
        self.options.keep_alive = keep_alive;
        self
    }

    /// MQTT 5 only or 3.1.1 only; by default 5 is tried first.
    pub fn version(mut self, version: Version) -> Mqtt {
        self.options.version = version;
        self
    }

    /// The URL, without the password.
    pub fn url(&self) -> String {
        self.options.broker.to_string()
    }

    pub(crate) fn is_loopback(&self) -> bool {
        self.options.broker.is_loopback()
    }
}
