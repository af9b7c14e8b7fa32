//! A broker inside this process, for demos and tests: nothing to install, nothing left behind.
//!
//! It listens on an ephemeral port of the loopback interface only, admits anyone who can reach
//! that, keeps everything in memory and writes no file. It is no broker for production.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use mqtt5::broker::config::StorageBackend;
use mqtt5::broker::{BrokerConfig, BrokerShutdownHandle, MqttBroker, StorageConfig};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Messages that may wait for one client; the library's default drops bursts of a few dozen.
const CLIENT_CHANNEL_CAPACITY: usize = 1024;

/// A shutdown takes 0.2 ms; a client that does not let go must not hold it up.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(1);

/// Why the broker did not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the embedded broker: {source}")]
pub struct BrokerError {
    source: io::Error,
}

/// A running broker. Dropping it stops it without waiting.
pub struct EmbeddedBroker {
    address: SocketAddr,
    shutdown: BrokerShutdownHandle,
    /// `None` once awaited.
    task: Option<JoinHandle<()>>,
}

impl EmbeddedBroker {
    /// Starts a broker on a free port; it accepts connections when this returns.
    ///
    /// # Errors
    ///
    /// If no loopback port can be bound.
    pub async fn start() -> Result<Self, BrokerError> {
        Self::start_on(0).await
    }

    /// Starts a broker on this port, for instance the one of a broker before it.
    ///
    /// # Errors
    ///
    /// If the port cannot be bound.
    pub async fn start_on(port: u16) -> Result<Self, BrokerError> {
        let failed = |error: String| BrokerError {
            source: io::Error::other(error),
        };
        let mut broker = MqttBroker::with_config(config(port))
            .await
            .map_err(|error| failed(error.to_string()))?;
        let address = broker
            .local_addr()
            .ok_or_else(|| failed("it has no address".to_owned()))?;
        let shutdown = broker.shutdown_handle();
        let mut ready = broker.ready_receiver();
        let task = tokio::spawn(async move {
            let _ = broker.run().await;
        });
        ready
            .wait_for(|ready| *ready)
            .await
            .map_err(|_| failed("it ended at once".to_owned()))?;
        Ok(Self {
            address,
            shutdown,
            task: Some(task),
        })
    }

    /// `mqtt://127.0.0.1:port`
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Closes all connections and waits until the port is free.
    pub async fn shutdown(mut self) {
        self.shutdown.shutdown();
        if let Some(mut task) = self.task.take()
            && timeout(SHUTDOWN_DEADLINE, &mut task).await.is_err()
        {
            task.abort();
        }
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.shutdown.shutdown();
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// Persistence stays on, in memory: without it the library forgets sessions and delayed wills.
fn config(port: u16) -> BrokerConfig {
    let storage = StorageConfig {
        base_dir: PathBuf::new(),
        ..StorageConfig::default()
    }
    .with_backend(StorageBackend::Memory)
    .with_persistence(true);
    BrokerConfig::default()
        .with_bind_address((Ipv4Addr::LOCALHOST, port))
        .with_storage(storage)
        .with_client_channel_capacity(CLIENT_CHANNEL_CAPACITY)
        .with_sys_topics_enabled(false)
}
