//! The bytes' way to the broker: TCP, then TLS, then WebSocket, each only if the URL asks for it.
//!
//! Under them all lies [`Eager`], which keeps both ends from waiting for each other. A broker that
//! leaves Nagle's algorithm on (Mosquitto's default) holds back a small packet until the one
//! before is acknowledged, and our kernel delays that acknowledgement by 40 ms in the hope of
//! sending it along with data. So a publish and its answer take 42 ms instead of 0.1. We cannot
//! set the broker's socket, but we can acknowledge at once: TCP_QUICKACK, which Linux forgets by
//! itself and which is therefore set again after each read. Elsewhere `set_tcp_nodelay true` on
//! the broker is the only cure.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::reason::DisconnectReason;
use crate::tls;
use crate::url::BrokerUrl;

/// Room for several MQTT packets in one WebSocket frame, as brokers batch them.
const WS_FRAME_SLACK: usize = 1024 * 1024;

/// A byte stream to the broker.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Opens the way to the broker.
pub(crate) async fn dial(
    broker: &BrokerUrl,
    tls: Option<&Arc<ClientConfig>>,
    max_packet: usize,
    quick_ack: bool,
) -> Result<Box<dyn ByteStream>, DisconnectReason> {
    let tcp = Eager::connect(broker, quick_ack).await?;
    match (tls, broker.scheme().is_websocket()) {
        (None, false) => Ok(Box::new(tcp)),
        (None, true) => Ok(Box::new(upgrade(broker, tcp, max_packet).await?)),
        (Some(tls), false) => Ok(Box::new(encrypt(broker, tls, tcp).await?)),
        (Some(tls), true) => {
            let stream = encrypt(broker, tls, tcp).await?;
            Ok(Box::new(upgrade(broker, stream, max_packet).await?))
        }
    }
}

async fn encrypt(
    broker: &BrokerUrl,
    tls: &Arc<ClientConfig>,
    tcp: Eager,
) -> Result<tokio_rustls::client::TlsStream<Eager>, DisconnectReason> {
    let name = ServerName::try_from(broker.host().to_owned()).map_err(|error| {
        DisconnectReason::Tls(tls::TlsFault::Handshake {
            detail: error.to_string(),
        })
    })?;
    TlsConnector::from(Arc::clone(tls))
        .connect(name, tcp)
        .await
        .map_err(|error| match tls::fault(&error, broker.host()) {
            Some(fault) => DisconnectReason::Tls(fault),
            None => DisconnectReason::Tls(tls::TlsFault::Handshake {
                detail: error.to_string(),
            }),
        })
}

async fn upgrade<S: ByteStream>(
    broker: &BrokerUrl,
    stream: S,
    max_packet: usize,
) -> Result<WsBytes<S>, DisconnectReason> {
    let refused = |error: WsError| match error {
        WsError::Http(response) => DisconnectReason::WebSocket {
            detail: format!("HTTP status {}", response.status()),
        },
        WsError::Io(source) => match tls::fault(&source, broker.host()) {
            Some(fault) => DisconnectReason::Tls(fault),
            None => DisconnectReason::ClosedByBroker {
                detail: Some(format!(
                    "{source} during the websocket handshake; check that the port is a websocket port"
                )),
            },
        },
        other => DisconnectReason::WebSocket {
            detail: other.to_string(),
        },
    };
    let scheme = if broker.scheme().is_tls() {
        "wss"
    } else {
        "ws"
    };
    let url = format!("{scheme}://{}{}", broker.authority(), broker.path());
    let mut request = url.into_client_request().map_err(refused)?;
    // [MQTT-6.0.0-3]: the client must offer the sub-protocol `mqtt`.
    request
        .headers_mut()
        .insert("Sec-WebSocket-Protocol", HeaderValue::from_static("mqtt"));
    let limit = max_packet + WS_FRAME_SLACK;
    let config = WebSocketConfig::default()
        .max_message_size(Some(limit))
        .max_frame_size(Some(limit))
        .write_buffer_size(0)
        .max_write_buffer_size(2 * limit);
    let (socket, _) = tokio_tungstenite::client_async_with_config(request, stream, Some(config))
        .await
        .map_err(refused)?;
    Ok(WsBytes {
        socket,
        unread: Bytes::new(),
    })
}

/// A TCP socket that sends at once and, unless told otherwise, acknowledges at once.
pub(crate) struct Eager {
    tcp: TcpStream,
    quick_ack: bool,
}

impl Eager {
    async fn connect(broker: &BrokerUrl, quick_ack: bool) -> Result<Self, DisconnectReason> {
        let unreachable = |source| DisconnectReason::Unreachable {
            address: broker.authority(),
            source: Arc::new(source),
        };
        let tcp = TcpStream::connect((broker.host(), broker.port()))
            .await
            .map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        let stream = Self { tcp, quick_ack };
        stream.acknowledge_at_once();
        Ok(stream)
    }

    /// Latency only, so a failure is no reason to give the session up.
    fn acknowledge_at_once(&self) {
        if !self.quick_ack {
            return;
        }
        #[cfg(target_os = "linux")]
        let _ = socket2::SockRef::from(&self.tcp).set_tcp_quickack(true);
    }
}

impl AsyncRead for Eager {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.tcp).poll_read(context, buffer));
        if result.is_ok() {
            self.acknowledge_at_once();
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Eager {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

/// MQTT's byte stream in binary WebSocket messages, whose borders mean nothing [MQTT-6.0.0-2].
struct WsBytes<S> {
    socket: WebSocketStream<S>,
    unread: Bytes,
}

impl<S: ByteStream> AsyncRead for WsBytes<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(context)) {
                Some(Ok(Message::Binary(bytes))) => self.unread = bytes,
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a text message on an MQTT websocket",
                    )));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(WsError::ConnectionClosed | WsError::AlreadyClosed)) => {
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => return Poll::Ready(Err(ws_io_error(error))),
            }
        }
        let len = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..len]);
        self.unread.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl<S: ByteStream> AsyncWrite for WsBytes<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut socket = Pin::new(&mut self.socket);
        ready!(socket.as_mut().poll_ready(context)).map_err(ws_io_error)?;
        socket
            .start_send(Message::Binary(Bytes::copy_from_slice(bytes)))
            .map_err(ws_io_error)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket)
            .poll_flush(context)
            .map_err(ws_io_error)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket)
            .poll_close(context)
            .map_err(ws_io_error)
    }
}

fn ws_io_error(error: WsError) -> io::Error {
    match error {
        WsError::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}
