//! Why a session ended, in the words of what to do next.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::tls::TlsFault;

/// Why there is no session (any more). The messages say what to check; none holds a password.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// No TCP connection.
    #[error(
        "cannot reach the broker at {address}: {source}; check the address and that the broker runs"
    )]
    Unreachable {
        /// Host and port.
        address: String,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The connection broke.
    #[error("the connection to the broker broke: {source}")]
    Broken {
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The broker knows us but does not let us in.
    #[error(
        "the broker refused the connection: not authorised; check the user name, the password and the broker's ACL"
    )]
    NotAuthorised,
    /// The user or the password is wrong.
    #[error("the broker refused the connection: bad user name or password; check both")]
    BadCredentials,
    /// The broker does not take this client id.
    #[error(
        "the broker refused the client id {client_id:?}; check the broker's rules for client ids"
    )]
    IdentifierRejected {
        /// The id in CONNECT.
        client_id: String,
    },
    /// The broker speaks another MQTT.
    #[error(
        "the broker does not speak MQTT {version}; choose the other version or let it be found"
    )]
    UnsupportedVersion {
        /// "5" or "3.1.1".
        version: &'static str,
    },
    /// The broker refuses service for now.
    #[error("the broker refused the connection for now: {detail}")]
    Unavailable {
        /// The reason code in words.
        detail: String,
    },
    /// TLS failed.
    #[error("{0}")]
    Tls(TlsFault),
    /// The broker did not take the WebSocket handshake.
    #[error("the broker refused the websocket: {detail}; check the URL's port and path")]
    WebSocket {
        /// The HTTP status or what else went wrong.
        detail: String,
    },
    /// The other side does not keep to MQTT.
    #[error(
        "the other side does not speak MQTT as it should: {detail}; check that the port is an MQTT port"
    )]
    Protocol {
        /// What it did.
        detail: String,
    },
    /// The broker refused one of the subscriptions, so the session is useless.
    #[error("the broker refused the subscription to {filter:?}; allow it in the broker's ACL")]
    SubscribeRefused {
        /// The topic filter.
        filter: String,
    },
    /// The session's setup holds something MQTT cannot carry.
    #[error("cannot connect with this setup: {detail}")]
    InvalidSetup {
        /// What is wrong.
        detail: String,
    },
    /// The broker answered nothing although asked.
    #[error("the broker has been silent for {silent_for:?} although probed")]
    Stalled {
        /// Since its last byte.
        silent_for: Duration,
    },
    /// Connecting took longer than the connect timeout.
    #[error("the broker did not answer within {timeout:?} while {doing}")]
    ConnectTimeout {
        /// [`crate::Options::connect_timeout`].
        timeout: Duration,
        /// The step that did not finish.
        doing: &'static str,
    },
    /// The broker closed the connection.
    #[error("the broker closed the connection{}", detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default())]
    ClosedByBroker {
        /// The reason code of an MQTT 5 DISCONNECT, in words.
        detail: Option<String>,
    },
    /// Another client connected with our client id.
    #[error("another client connected with this client id")]
    TakenOver,
    /// A packet exceeds what we or the broker accept.
    #[error("a packet of {size} bytes exceeds the limit of {max}")]
    PacketTooLarge {
        /// The packet's size; 0 if the broker did not tell.
        size: usize,
        /// The limit.
        max: usize,
    },
}

impl DisconnectReason {
    /// Whether this is a fault of configuration that no retry will mend. The session retries all
    /// the same, at its slowest pace, since the fault may be mended on the broker.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::NotAuthorised
            | Self::BadCredentials
            | Self::IdentifierRejected { .. }
            | Self::UnsupportedVersion { .. }
            | Self::Tls(_)
            | Self::WebSocket { .. }
            | Self::Protocol { .. }
            | Self::SubscribeRefused { .. }
            | Self::InvalidSetup { .. } => true,
            Self::Unreachable { .. }
            | Self::Broken { .. }
            | Self::Unavailable { .. }
            | Self::Stalled { .. }
            | Self::ConnectTimeout { .. }
            | Self::ClosedByBroker { .. }
            | Self::TakenOver
            | Self::PacketTooLarge { .. } => false,
        }
    }
}
