//! One connection, from CONNECT to its end.
//!
//! ```text
//!   publish() ──▶ outbound queue ──▶ encode ──▶ tx ──▶ socket
//!   next()    ◀── inbound queue  ◀── decode ◀── rx ◀── socket
//! ```
//!
//! One task drives both directions, and each may stall without stalling the other: when the
//! consumer is slow we stop reading and go on writing, when the broker stops reading we go on
//! listening. Everything queued while the socket was busy leaves in one write.
//!
//! A session notices by itself that its broker has stopped. After half the progress timeout
//! without a byte from the broker it sends a PINGREQ, whatever it is publishing meanwhile; after
//! the other half without an answer it ends. Nothing is carried over into the next session.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::select;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_rustls::rustls::ClientConfig;

use crate::client::{Event, Incoming, Link, SessionEpoch, SessionSetup, Stop};
use crate::codec::{Accepted, Closing, Codec, Connect, Protocol, Received, Refusal};
use crate::options::{Options, Qos};
use crate::reason::DisconnectReason;
use crate::stream::{ByteStream, dial};
use crate::tls;

/// Bytes asked of the socket at a time.
const READ_CHUNK: usize = 16 * 1024;

/// A payload below this is copied out of the read buffer, which is then used again; a larger one
/// keeps its part of the buffer.
const COPY_BELOW: usize = READ_CHUNK / 4;

/// Encoded bytes beyond which publishes stay in the outbound queue, where they count against its
/// bounds.
const WRITE_HIGH_WATER: usize = 64 * 1024;

/// Our own QoS 1 publishes without a PUBACK, unless the broker allows fewer. At the bound the
/// outbound queue waits.
const MAX_IN_FLIGHT: usize = 256;

/// Messages that may arrive between SUBSCRIBE and SUBACK; more are dropped, as a broker may.
const MAX_EARLY: usize = 256;

/// The id of SUBSCRIBE: the first packet of a clean session, so it is free.
const SUBSCRIBE_ID: u16 = 1;

/// How a session that was up came to its end.
pub(crate) enum Ended {
    /// We were told to stop.
    Stopped,
    Lost(DisconnectReason),
}

/// A failed attempt, and whether another MQTT version might fare better.
pub(crate) struct OpenError {
    pub(crate) reason: DisconnectReason,
    pub(crate) try_other_version: bool,
}

pub(crate) struct Session {
    epoch: SessionEpoch,
    host: String,
    reader: ReadHalf<Box<dyn ByteStream>>,
    writer: WriteHalf<Box<dyn ByteStream>>,
    codec: Codec,
    rx: BytesMut,
    tx: BytesMut,
    /// Written to the stream but perhaps still in its buffers.
    needs_flush: bool,
    /// Decoded, waiting for room in the inbound queue. While not empty, nothing is read.
    undelivered: VecDeque<Event>,
    /// QoS 1 publishes that the broker has not acknowledged, at most `max_in_flight`.
    in_flight: VecDeque<(u16, Arc<str>)>,
    max_in_flight: usize,
    last_packet_id: u16,
    max_qos: Qos,
    max_outgoing: usize,
    clock: ProgressClock,
}

impl Session {
    /// Connects and subscribes.
    pub(crate) async fn open(
        options: &Options,
        tls: Option<&Arc<ClientConfig>>,
        protocol: Protocol,
        epoch: SessionEpoch,
        setup: &SessionSetup,
    ) -> Result<Self, OpenError> {
        let mut doing = "connecting";
        let opening = Self::open_unbounded(options, tls, protocol, epoch, setup, &mut doing);
        let result = match timeout(options.connect_timeout, opening).await {
            Ok(result) => result,
            Err(_) => Err(DisconnectReason::ConnectTimeout {
                timeout: options.connect_timeout,
                doing,
            }),
        };
        result.map_err(|reason| OpenError {
            try_other_version: match reason {
                DisconnectReason::UnsupportedVersion { .. } => true,
                // Brokers of 3.1.1 only that hang up, or answer in a format of their own.
                DisconnectReason::ClosedByBroker { .. } | DisconnectReason::Protocol { .. } => {
                    doing == WAITING_FOR_CONNACK
                }
                _ => false,
            },
            reason,
        })
    }

    async fn open_unbounded(
        options: &Options,
        tls: Option<&Arc<ClientConfig>>,
        protocol: Protocol,
        epoch: SessionEpoch,
        setup: &SessionSetup,
        doing: &mut &'static str,
    ) -> Result<Self, DisconnectReason> {
        setup.validate()?;
        let stream = dial(&options.broker, tls, options.max_packet, options.quick_ack).await?;
        let (reader, writer) = tokio::io::split(stream);
        let mut session = Self {
            epoch,
            host: options.broker.host().to_owned(),
            reader,
            writer,
            codec: Codec {
                protocol,
                max_incoming: options.max_packet,
            },
            rx: BytesMut::with_capacity(READ_CHUNK),
            tx: BytesMut::new(),
            needs_flush: false,
            undelivered: VecDeque::new(),
            in_flight: VecDeque::new(),
            max_in_flight: MAX_IN_FLIGHT,
            last_packet_id: SUBSCRIBE_ID,
            max_qos: Qos::AtLeastOnce,
            max_outgoing: options.max_packet,
            clock: ProgressClock::new(options),
        };
        *doing = WAITING_FOR_CONNACK;
        let accepted = session.handshake(options, setup).await?;
        session.apply(&accepted);
        *doing = "waiting for SUBACK";
        session
            .subscribe(&setup.subscriptions, &options.no_local)
            .await?;
        Ok(session)
    }

    pub(crate) fn max_outgoing(&self) -> usize {
        self.max_outgoing
    }

    async fn handshake(
        &mut self,
        options: &Options,
        setup: &SessionSetup,
    ) -> Result<Accepted, DisconnectReason> {
        let connect = Connect {
            client_id: &setup.client_id,
            will: setup.will.as_ref(),
            credentials: options.effective_credentials(),
            keep_alive_secs: options.keep_alive_secs(),
        };
        self.codec.connect(&connect, &mut self.tx)?;
        // A broker that refuses our certificate closes while we write; why it did so stands in
        // the TLS alert, which only a read shows.
        let written = self.write_out().await;
        let refusal = match self.receive().await {
            Ok(Received::ConnAck(accepted)) => return Ok(accepted),
            Ok(Received::Refused(refusal)) => refusal,
            Ok(other) => return Err(unexpected(&other)),
            Err(read @ DisconnectReason::Tls(_)) => return Err(read),
            Err(read) => return Err(written.err().map_or(read, |error| self.io_reason(error))),
        };
        Err(match refusal {
            Refusal::Version => DisconnectReason::UnsupportedVersion {
                version: self.codec.protocol.name(),
            },
            Refusal::ClientId => DisconnectReason::IdentifierRejected {
                client_id: setup.client_id.clone(),
            },
            Refusal::Credentials => DisconnectReason::BadCredentials,
            Refusal::NotAuthorised => DisconnectReason::NotAuthorised,
            Refusal::Other(detail) => DisconnectReason::Unavailable { detail },
        })
    }

    fn apply(&mut self, accepted: &Accepted) {
        self.max_in_flight = usize::from(accepted.receive_maximum).min(MAX_IN_FLIGHT);
        self.max_qos = accepted.max_qos;
        if let Some(max) = accepted.max_packet {
            self.max_outgoing = self.max_outgoing.min(max);
        }
        if let Some(secs) = accepted.keep_alive_secs {
            self.clock.keep_alive = (secs > 0).then(|| Duration::from_secs(u64::from(secs)));
        }
    }

    /// Messages that overtake the SUBACK are kept for after it, so that the consumer sees
    /// `Connected` first.
    async fn subscribe(
        &mut self,
        filters: &[(String, Qos)],
        no_local: &[String],
    ) -> Result<(), DisconnectReason> {
        if filters.is_empty() {
            return Ok(());
        }
        self.codec
            .subscribe(SUBSCRIBE_ID, filters, no_local, &mut self.tx)?;
        self.write_out()
            .await
            .map_err(|error| self.io_reason(error))?;
        loop {
            let granted = match self.receive().await? {
                Received::SubAck { packet_id, granted } if packet_id == SUBSCRIBE_ID => granted,
                other => {
                    self.on_received(other)?;
                    self.undelivered.truncate(MAX_EARLY);
                    continue;
                }
            };
            if granted.len() != filters.len() {
                return Err(protocol("a SUBACK for another number of filters"));
            }
            let refused = filters.iter().zip(granted).find(|(_, granted)| !granted);
            return match refused {
                None => Ok(()),
                Some(((filter, _), _)) => Err(DisconnectReason::SubscribeRefused {
                    filter: filter.clone(),
                }),
            };
        }
    }

    /// Carries messages both ways until the connection or the session is over.
    pub(crate) async fn pump(&mut self, link: &Link, stop: &mut watch::Receiver<Stop>) -> Ended {
        self.clock.heard();
        let mut timer = std::pin::pin!(sleep_until(self.clock.next_check(self.is_blocked())));
        loop {
            if let Err(reason) = self.advance(link) {
                return Ended::Lost(reason);
            }
            let asked = *stop.borrow();
            match asked {
                Stop::Run => {}
                Stop::Abandon => return Ended::Stopped,
                Stop::Disconnect { deadline } => {
                    if self.is_drained(link) || Instant::now() >= deadline {
                        let _ = timeout_at(deadline, self.say_goodbye()).await;
                        return Ended::Stopped;
                    }
                }
            }
            let (blocked, writing) = (self.is_blocked(), !self.tx.is_empty() || self.needs_flush);
            let stop_deadline = asked.deadline();
            reserve(&mut self.rx);
            let result = select! {
                read = self.reader.read_buf(&mut self.rx), if !blocked => self.on_read(read),
                written = write_out(&mut self.writer, &mut self.tx, &mut self.needs_flush), if writing => {
                    self.clock.spoke();
                    written
                }
                () = link.outbound.pushed(), if self.tx.len() < WRITE_HIGH_WATER => Ok(()),
                () = link.inbound.popped(), if blocked => {
                    // Not reading was our own doing, so the silence starts now.
                    self.clock.heard();
                    Ok(())
                }
                () = &mut timer => {
                    if let Err(reason) = self.check_progress(blocked) {
                        return Ended::Lost(reason);
                    }
                    timer.as_mut().reset(self.clock.next_check(blocked));
                    Ok(())
                }
                _ = stop.changed() => Ok(()),
                () = at(stop_deadline), if stop_deadline.is_some() => Ok(()),
            };
            if let Err(error) = result {
                return Ended::Lost(self.lost(error, link));
            }
        }
    }

    /// Does everything that needs no waiting.
    fn advance(&mut self, link: &Link) -> Result<(), DisconnectReason> {
        self.deliver(link);
        while !self.is_blocked() {
            let Some(packet) = self.codec.decode(&mut self.rx)? else {
                break;
            };
            self.on_received(packet)?;
            self.deliver(link);
        }
        self.encode_publishes(link)
    }

    fn deliver(&mut self, link: &Link) {
        while let Some(event) = self.undelivered.pop_front() {
            if let Err(event) = link.offer(event) {
                self.undelivered.push_front(event);
                return;
            }
        }
    }

    fn is_blocked(&self) -> bool {
        !self.undelivered.is_empty()
    }

    fn on_received(&mut self, packet: Received) -> Result<(), DisconnectReason> {
        match packet {
            Received::Publish {
                topic,
                payload,
                retain,
                properties,
                packet_id,
            } => {
                if let Some(packet_id) = packet_id {
                    self.codec.puback(packet_id, &mut self.tx)?;
                }
                self.undelivered.push_back(Event::Message(Incoming {
                    topic,
                    payload: compact(payload),
                    retained: retain,
                    properties,
                }));
                Ok(())
            }
            Received::PubAck { packet_id, refused } => {
                let acknowledged = self.in_flight.iter().position(|(id, _)| *id == packet_id);
                let topic = acknowledged.and_then(|at| self.in_flight.remove(at));
                if let (Some((_, topic)), Some(detail)) = (topic, refused) {
                    self.undelivered
                        .push_back(Event::PublishRefused { topic, detail });
                }
                Ok(())
            }
            Received::PingResp => Ok(()),
            Received::Disconnect(closing) => Err(match closing {
                Closing::TakenOver => DisconnectReason::TakenOver,
                Closing::NotAuthorised => DisconnectReason::NotAuthorised,
                Closing::PacketTooLarge => DisconnectReason::PacketTooLarge {
                    size: 0,
                    max: self.max_outgoing,
                },
                Closing::Other(detail) => DisconnectReason::ClosedByBroker {
                    detail: Some(detail),
                },
            }),
            Received::ConnAck(_) | Received::Refused(_) | Received::SubAck { .. } => {
                Err(unexpected(&packet))
            }
        }
    }

    fn encode_publishes(&mut self, link: &Link) -> Result<(), DisconnectReason> {
        while self.tx.len() < WRITE_HIGH_WATER {
            let (epoch, room) = (self.epoch, self.in_flight.len() < self.max_in_flight);
            let next = link
                .outbound
                .pop_if(|next| room || next.epoch != epoch || next.publish.qos == Qos::AtMostOnce);
            let Some(mut next) = next else {
                return Ok(());
            };
            // Meant for a session that has ended: whoever sent it has been told so.
            if next.epoch != self.epoch {
                continue;
            }
            next.publish.qos = next.publish.qos.min(self.max_qos);
            let packet_id = match next.publish.qos {
                Qos::AtMostOnce => 0,
                Qos::AtLeastOnce => self.next_packet_id(),
            };
            self.codec.publish(&next.publish, packet_id, &mut self.tx)?;
            if packet_id != 0 {
                self.in_flight.push_back((packet_id, next.publish.topic));
            }
        }
        Ok(())
    }

    /// At most [`MAX_IN_FLIGHT`] ids are taken, so a free one is near.
    fn next_packet_id(&mut self) -> u16 {
        loop {
            self.last_packet_id = self.last_packet_id.checked_add(1).unwrap_or(1);
            let id = self.last_packet_id;
            if !self.in_flight.iter().any(|(taken, _)| *taken == id) {
                return id;
            }
        }
    }

    fn on_read(&mut self, read: io::Result<usize>) -> io::Result<()> {
        if read? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.clock.heard();
        Ok(())
    }

    fn check_progress(&mut self, blocked: bool) -> Result<(), DisconnectReason> {
        match self.clock.check(blocked) {
            Progress::Fine => Ok(()),
            Progress::Probe => {
                self.codec.pingreq(&mut self.tx);
                Ok(())
            }
            Progress::Stalled(silent_for) => {
                // This process may be the one that was stopped: what came meanwhile counts.
                match self.reader.read_buf(&mut self.rx).now_or_never() {
                    Some(Ok(read)) if read > 0 => {
                        self.clock.heard();
                        Ok(())
                    }
                    _ => Err(DisconnectReason::Stalled { silent_for }),
                }
            }
        }
    }

    fn is_drained(&self, link: &Link) -> bool {
        self.tx.is_empty()
            && !self.needs_flush
            && self.in_flight.is_empty()
            && link.outbound.is_empty()
    }

    /// DISCONNECT, then waits for the broker to close: an answer would be lost in a socket closed
    /// too early, and with it the DISCONNECT that keeps the will unsent.
    async fn say_goodbye(&mut self) -> io::Result<()> {
        self.codec.disconnect(&mut self.tx);
        self.write_out().await?;
        self.writer.shutdown().await?;
        loop {
            self.rx.clear();
            reserve(&mut self.rx);
            if self.reader.read_buf(&mut self.rx).await? == 0 {
                return Ok(());
            }
        }
    }

    /// The reason for an I/O error; if the broker gave one in a last packet, that.
    fn lost(&mut self, error: io::Error, link: &Link) -> DisconnectReason {
        while let Some(Ok(read)) = self.reader.read_buf(&mut self.rx).now_or_never() {
            if read == 0 {
                break;
            }
        }
        match self.advance(link) {
            Err(reason) => reason,
            Ok(()) => self.io_reason(error),
        }
    }

    async fn receive(&mut self) -> Result<Received, DisconnectReason> {
        loop {
            if let Some(packet) = self.codec.decode(&mut self.rx)? {
                return Ok(packet);
            }
            reserve(&mut self.rx);
            let read = self.reader.read_buf(&mut self.rx).await;
            self.on_read(read).map_err(|error| self.io_reason(error))?;
        }
    }

    async fn write_out(&mut self) -> io::Result<()> {
        write_out(&mut self.writer, &mut self.tx, &mut self.needs_flush).await
    }

    fn io_reason(&self, error: io::Error) -> DisconnectReason {
        if let Some(fault) = tls::fault(&error, &self.host) {
            return DisconnectReason::Tls(fault);
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => DisconnectReason::ClosedByBroker { detail: None },
            _ => DisconnectReason::Broken {
                source: Arc::new(error),
            },
        }
    }
}

const WAITING_FOR_CONNACK: &str = "waiting for CONNACK";

/// When the broker last spoke and when we last did.
struct ProgressClock {
    progress_timeout: Duration,
    /// `None` if the broker wants none.
    keep_alive: Option<Duration>,
    heard: Instant,
    spoke: Instant,
    /// The last PINGREQ since `heard`.
    probed: Option<Instant>,
}

enum Progress {
    Fine,
    Probe,
    Stalled(Duration),
}

impl ProgressClock {
    fn new(options: &Options) -> Self {
        let now = Instant::now();
        Self {
            progress_timeout: options.effective_progress_timeout(),
            keep_alive: Some(Duration::from_secs(u64::from(options.keep_alive_secs()))),
            heard: now,
            spoke: now,
            probed: None,
        }
    }

    fn heard(&mut self) {
        self.heard = Instant::now();
        self.probed = None;
    }

    fn spoke(&mut self) {
        self.spoke = Instant::now();
    }

    /// Half the progress timeout to wait, half for the answer.
    fn patience(&self) -> Duration {
        self.progress_timeout / 2
    }

    /// `blocked`: we are not reading, so the broker cannot be heard.
    fn check(&mut self, blocked: bool) -> Progress {
        let now = Instant::now();
        if !blocked {
            match self.probed {
                Some(probed) if now >= probed + self.patience() => {
                    return Progress::Stalled(now - self.heard);
                }
                None if now >= self.heard + self.patience() => {
                    self.probed = Some(now);
                    return Progress::Probe;
                }
                _ => {}
            }
        }
        if self.keep_alive_due().is_some_and(|due| now >= due) {
            self.spoke = now;
            return Progress::Probe;
        }
        Progress::Fine
    }

    /// Never later than the next thing due; may be earlier, since hearing from the broker moves
    /// it and does not touch the timer.
    fn next_check(&self, blocked: bool) -> Instant {
        let progress = match self.probed {
            Some(probed) => probed + self.patience(),
            None if blocked => Instant::now() + self.patience(),
            None => self.heard + self.patience(),
        };
        self.keep_alive_due()
            .map_or(progress, |due| due.min(progress))
    }

    /// Early enough for a late timer and a slow network: the broker counts to 1.5.
    fn keep_alive_due(&self) -> Option<Instant> {
        self.keep_alive
            .map(|keep_alive| self.spoke + keep_alive / 2)
    }
}

/// Writes and flushes all of `tx`. May be dropped at any point and called again.
async fn write_out(
    writer: &mut WriteHalf<Box<dyn ByteStream>>,
    tx: &mut BytesMut,
    needs_flush: &mut bool,
) -> io::Result<()> {
    while !tx.is_empty() {
        *needs_flush = true;
        if writer.write_buf(tx).await? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    writer.flush().await?;
    *needs_flush = false;
    // A burst should not keep its memory.
    if tx.capacity() > 2 * WRITE_HIGH_WATER {
        *tx = BytesMut::new();
    }
    Ok(())
}

/// Room to read; more of it in the middle of a large packet.
fn reserve(rx: &mut BytesMut) {
    rx.reserve(READ_CHUNK.max(rx.len()));
}

fn compact(payload: Bytes) -> Bytes {
    if payload.len() < COPY_BELOW {
        Bytes::copy_from_slice(&payload)
    } else {
        payload
    }
}

async fn at(deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        sleep_until(deadline).await;
    }
}

fn unexpected(packet: &Received) -> DisconnectReason {
    let name = match packet {
        Received::ConnAck(_) | Received::Refused(_) => "CONNACK",
        Received::Publish { .. } => "PUBLISH",
        Received::PubAck { .. } => "PUBACK",
        Received::SubAck { .. } => "SUBACK",
        Received::PingResp => "PINGRESP",
        Received::Disconnect(_) => "DISCONNECT",
    };
    protocol(&format!("an unexpected {name}"))
}

fn protocol(detail: &str) -> DisconnectReason {
    DisconnectReason::Protocol {
        detail: detail.to_owned(),
    }
}
