//! What a session is told before it starts, and what makes it refuse to start.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;

use crate::tls::TlsError;
use crate::url::{BrokerUrl, UrlError};

/// The shortest [`Options::progress_timeout`]: below it, a busy but healthy broker or a paused
/// process is taken for a dead one.
pub const MIN_PROGRESS_TIMEOUT: Duration = Duration::from_millis(200);

/// The largest packet MQTT can express, fixed header included.
const MQTT_MAX_PACKET: usize = 268_435_460;

/// Room for one MQTT packet beside its payload: header, topic, properties.
const MIN_MAX_PACKET: usize = 1024;

/// A user name and password. `Debug` shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    username: String,
    password: String,
}

impl Credentials {
    /// Both may hold any character but NUL; MQTT limits each to 65,535 bytes.
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            username: username.into(),
            password: password.into(),
        }
    }

    /// The user name.
    pub fn username(&self) -> &str {
        &self.username
    }

    /// The password, in the clear.
    pub fn password(&self) -> &str {
        &self.password
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Credentials(redacted)")
    }
}

/// PEM files for TLS. All `None` means the authorities that the operating system trusts and no
/// client certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority that signed the broker's certificate; only it is trusted then.
    pub ca: Option<PathBuf>,
    /// Our certificate, followed by its intermediates; needs `key`.
    pub certificate: Option<PathBuf>,
    /// Our private key: PKCS#8, PKCS#1 or SEC1, not encrypted; needs `certificate`.
    pub key: Option<PathBuf>,
}

/// Which MQTT to speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// MQTT 5; 3.1.1 if the broker refuses 5 or hangs up on it.
    #[default]
    Auto,
    /// MQTT 5 only.
    V5,
    /// MQTT 3.1.1 only.
    V311,
}

/// Quality of service. QoS 2 is left out: nothing here relies on the broker for exactly-once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Qos {
    /// QoS 0: sent once, never acknowledged.
    AtMostOnce,
    /// QoS 1: the broker acknowledges. Not repeated in a later session.
    AtLeastOnce,
}

/// What the broker publishes when the session ends without a DISCONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Will {
    /// The topic; no wildcards.
    pub topic: String,
    /// The payload, at most 65,535 bytes.
    pub payload: Bytes,
    /// How the broker publishes it.
    pub qos: Qos,
    /// Whether the broker retains it.
    pub retain: bool,
}

/// Everything but what changes with each session.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the broker is.
    pub broker: BrokerUrl,
    /// Overrides the user and password in the URL.
    pub credentials: Option<Credentials>,
    /// Files for `mqtts` and `wss`; must be the default for `mqtt` and `ws`.
    pub tls: TlsFiles,
    /// Default: [`Version::Auto`].
    pub version: Version,
    /// The keep alive promised to the broker, in whole seconds rounded up; 1 s to 65,535 s.
    /// Default 5 s. The broker sends the will after up to 1.5 times this silence; Mosquitto looks
    /// only about every 6 s.
    pub keep_alive: Duration,
    /// How long a broker may be silent, although probed, before the session is given up. `None`,
    /// the default, means `keep_alive`. At least [`MIN_PROGRESS_TIMEOUT`].
    pub progress_timeout: Option<Duration>,
    /// From the start of a connection attempt to the last SUBACK. Default 5 s.
    pub connect_timeout: Duration,
    /// The largest packet sent or accepted, in bytes. Default 256 KiB, twice the largest frame of
    /// ours, so that other clients' properties fit.
    pub max_packet: usize,
    /// How many publishes may wait for the socket. Default 1024.
    pub outbound_queue: usize,
    /// How many bytes of payload may wait for the socket. Default 8 MiB.
    pub outbound_bytes: usize,
    /// How many events may wait for [`crate::Events::next`] before the session stops reading from
    /// the broker. Default 1024.
    pub inbound_queue: usize,
    /// How many bytes of payload may wait likewise. Default 8 MiB.
    pub inbound_bytes: usize,
    /// The pause before the first reconnect. Default 50 ms; doubled each time, with jitter.
    pub backoff_min: Duration,
    /// The longest pause between reconnects, and the pause after a refusal that no retry mends.
    /// Default 5 s.
    pub backoff_max: Duration,
    /// Whether to acknowledge TCP segments at once (Linux; no effect elsewhere). Default: yes. Without
    /// it, a broker that leaves Nagle's algorithm on shows how slow it is for other clients.
    pub quick_ack: bool,
    /// Subscriptions, by their filter, on which this client does not want back what it publishes itself
    /// (MQTT 5, §3.8.3.1: no local). Default: none. It saves both ends work and must not be relied
    /// upon: 3.1.1 does not have it, and a broker that refuses a subscription is asked again without.
    pub no_local: Vec<String>,
}

/// Why [`crate::connect`] did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// The broker's URL.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// One of the TLS files.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// TLS files with a URL that does not use TLS.
    #[error("certificate files were given but {broker} does not use TLS; write mqtts:// or wss://")]
    TlsFilesWithoutTls {
        /// The broker's URL.
        broker: BrokerUrl,
    },
    /// A value outside its range.
    #[error("{option} must be {range}")]
    OutOfRange {
        /// The field of [`Options`].
        option: &'static str,
        /// What it may be.
        range: &'static str,
    },
    /// Called outside a tokio runtime, so there is nowhere to run the session.
    #[error("an MQTT session needs a running tokio runtime with time and I/O enabled")]
    NoRuntime,
}

impl Options {
    /// The defaults for this broker.
    pub fn new(broker: BrokerUrl) -> Self {
        Self {
            broker,
            credentials: None,
            tls: TlsFiles::default(),
            version: Version::Auto,
            keep_alive: Duration::from_secs(5),
            progress_timeout: None,
            connect_timeout: Duration::from_secs(5),
            max_packet: 256 * 1024,
            outbound_queue: 1024,
            outbound_bytes: 8 * 1024 * 1024,
            inbound_queue: 1024,
            inbound_bytes: 8 * 1024 * 1024,
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
            quick_ack: true,
            no_local: Vec::new(),
        }
    }

    /// [`Options::progress_timeout`] with its default worked out.
    pub fn effective_progress_timeout(&self) -> Duration {
        self.progress_timeout.unwrap_or(self.keep_alive)
    }

    pub(crate) fn effective_credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref().or(self.broker.credentials())
    }

    /// The keep alive as it stands in CONNECT.
    pub(crate) fn keep_alive_secs(&self) -> u16 {
        let secs = self.keep_alive.as_secs() + u64::from(self.keep_alive.subsec_nanos() > 0);
        u16::try_from(secs).unwrap_or(u16::MAX)
    }

    pub(crate) fn validate(&self) -> Result<(), OptionsError> {
        if !self.broker.scheme().is_tls() && self.tls != TlsFiles::default() {
            return Err(OptionsError::TlsFilesWithoutTls {
                broker: self.broker.clone(),
            });
        }
        let long = |credentials: &Credentials| {
            credentials.username.len().max(credentials.password.len()) > usize::from(u16::MAX)
        };
        let checks = [
            (
                !self.keep_alive.is_zero() && self.keep_alive <= Duration::from_secs(65_535),
                "keep_alive",
                "above 0 and at most 65535 s",
            ),
            (
                self.effective_progress_timeout() >= MIN_PROGRESS_TIMEOUT,
                "progress_timeout",
                "at least 200 ms",
            ),
            (
                !self.connect_timeout.is_zero(),
                "connect_timeout",
                "above 0",
            ),
            (
                (MIN_MAX_PACKET..=MQTT_MAX_PACKET).contains(&self.max_packet),
                "max_packet",
                "1024 to 268435460 bytes",
            ),
            (self.outbound_queue > 0, "outbound_queue", "at least 1"),
            (self.outbound_bytes > 0, "outbound_bytes", "at least 1"),
            (self.inbound_queue > 0, "inbound_queue", "at least 1"),
            (self.inbound_bytes > 0, "inbound_bytes", "at least 1"),
            (
                !self.backoff_min.is_zero() && self.backoff_min <= self.backoff_max,
                "backoff_min",
                "above 0 and at most backoff_max",
            ),
            (
                !self.effective_credentials().is_some_and(long),
                "credentials",
                "at most 65535 bytes each",
            ),
        ];
        match checks.into_iter().find(|(holds, ..)| !holds) {
            Some((_, option, range)) => Err(OptionsError::OutOfRange { option, range }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_option_is_checked_and_named() {
        type Edit = fn(&mut Options);
        let table: [(&str, Edit); 6] = [
            ("keep_alive", |options| options.keep_alive = Duration::ZERO),
            ("progress_timeout", |options| {
                options.progress_timeout = Some(Duration::from_millis(199));
            }),
            ("max_packet", |options| options.max_packet = 10),
            ("outbound_queue", |options| options.outbound_queue = 0),
            ("backoff_min", |options| {
                options.backoff_min = Duration::from_secs(60)
            }),
            ("mqtts", |options| options.tls.ca = Some("ca.pem".into())),
        ];
        let good = Options::new("mqtt://b".parse().unwrap());
        assert!(good.validate().is_ok());
        for (word, edit) in table {
            let mut options = good.clone();
            edit(&mut options);
            let message = options.validate().unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn a_fraction_of_a_second_of_keep_alive_is_rounded_up() {
        let mut options = Options::new("mqtt://b".parse().unwrap());
        options.keep_alive = Duration::from_millis(1200);
        assert_eq!(options.keep_alive_secs(), 2);
    }

    #[test]
    fn debug_output_holds_no_password() {
        let mut options = Options::new("mqtt://ann:hunter2@b".parse().unwrap());
        options.credentials = Some(Credentials::new("bob", "hunter3"));
        let shown = format!("{options:?} {options:#?}");
        assert!(!shown.contains("hunter"), "{shown}");
    }
}
