//! One MQTT session that comes back: connect, subscribe, will, reconnect.
//!
//! This crate turns a broker, third-party and possibly far away, into bounded queues of messages
//! and the plain news of a session's life: [`Event::Connected`], [`Event::Disconnected`] and why.
//! It is the only place that knows an MQTT library, a socket or TLS. [`connect`] starts a task;
//! [`Publisher`] and [`Events`] are its two ends.
//!
//! What it relies on: MQTT 5 or 3.1.1, QoS 0 and 1, nothing else of the broker. What it refuses:
//!
//! - to carry anything from one session into the next. Every session is clean and every publish
//!   belongs to the session in which it was made, so nothing stale goes out after a reconnect.
//! - to wait in [`Publisher::publish`]. A full queue is an error, not a pause.
//! - to grow. Each queue is bounded by items and by bytes. When [`Events`] is not read, the session
//!   stops reading from the broker.
//! - to believe in a silent broker: see [`Options::progress_timeout`].
//! - to hide latency: see the module `stream` on Nagle's algorithm, 42 ms against 0.1.
//!
//! ```no_run
//! use mqtt::{Event, Options, Qos, SessionSetup};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let options = Options::new("mqtt://127.0.0.1:1883".parse()?);
//! let (publisher, mut events) = mqtt::connect(options, |epoch| SessionSetup {
//!     client_id: format!("node-1-{}", epoch.0),
//!     will: None,
//!     subscriptions: vec![("plant/#".to_owned(), Qos::AtMostOnce)],
//! })?;
//! while let Some(event) = events.next().await {
//!     match event {
//!         Event::Connected { .. } => {
//!             publisher.publish("plant/hello", "hi".into(), Qos::AtMostOnce, false)?;
//!         }
//!         Event::Message(message) => println!("{}: {:?}", message.topic, message.payload),
//!         Event::Disconnected { reason, retry_in, .. } => {
//!             println!("{reason}; next attempt in {retry_in:?}");
//!         }
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Read on in `client` (session after session), then `session` (one of them).

#![forbid(unsafe_code)]

#[cfg(feature = "broker")]
pub mod broker;
mod client;
mod codec;
mod options;
mod queue;
mod reason;
mod session;
mod stream;
mod tls;
mod url;

pub use bytes::Bytes;
pub use client::{
    DISCONNECT_DEADLINE, Event, Events, Incoming, PublishError, Publisher, SessionEpoch,
    SessionSetup, connect,
};
pub use codec::Properties;
pub use options::{
    Credentials, MIN_PROGRESS_TIMEOUT, Options, OptionsError, Qos, TlsFiles, Version, Will,
};
pub use reason::DisconnectReason;
pub use tls::{TlsError, TlsFault};
pub use url::{BrokerUrl, Scheme, UrlError};
