//! As much MQTT 3.1.1 as the floor needs: connect, subscribe, publish and receive at QoS 0.
//!
//! It trusts its broker: what it does not expect is an error or a panic, never handled.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const RETAIN: u8 = 1;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;

/// Longer than any commit: a silent broker ends the run instead of hanging it.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

const READ_BYTES: usize = 256 << 10;

/// One connection to the broker.
#[derive(Debug)]
pub(crate) struct Link {
    stream: TcpStream,
    /// Received and not yet taken: `inbox[taken..filled]`.
    inbox: Vec<u8>,
    taken: usize,
    filled: usize,
    outbox: Vec<u8>,
}

/// A received message.
#[derive(Debug)]
pub(crate) struct Publish<'a> {
    pub(crate) topic: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl Link {
    /// Opens a clean session without keepalive.
    pub(crate) fn connect(broker: SocketAddr, client_id: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(broker)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        acknowledge_at_once(&stream)?;
        let mut link = Self {
            stream,
            inbox: vec![0; READ_BYTES],
            taken: 0,
            filled: 0,
            outbox: Vec::new(),
        };
        // Protocol level 4, clean session, keepalive 0.
        let header = b"\x00\x04MQTT\x04\x02\x00\x00";
        link.send(CONNECT, &[header, &text(client_id)[..]])?;
        link.expect(CONNACK, &[0, 0])?;
        Ok(link)
    }

    /// Subscribes at QoS 0 and returns when the broker has confirmed it.
    pub(crate) fn subscribe(&mut self, topic_filter: &str) -> io::Result<()> {
        let packet_id = [0, 1];
        let qos = [0];
        self.send(SUBSCRIBE, &[&packet_id, &text(topic_filter)[..], &qos])?;
        self.expect(SUBACK, &[0, 1, 0])
    }

    /// Publishes at QoS 0, not retained, in a single write.
    pub(crate) fn publish(&mut self, topic: &str, payload: &[u8]) -> io::Result<()> {
        let length = u16::try_from(topic.len()).expect("a short topic");
        self.send(PUBLISH, &[&length.to_be_bytes(), topic.as_bytes(), payload])
    }

    /// Waits for bytes.
    pub(crate) fn receive(&mut self) -> io::Result<()> {
        self.make_room();
        let received = self.stream.read(&mut self.inbox[self.filled..])?;
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        acknowledge_at_once(&self.stream)?;
        self.filled += received;
        Ok(())
    }

    /// The next message that has arrived in full.
    pub(crate) fn next_publish(&mut self) -> Option<Publish<'_>> {
        let (kind, body) = self.next_packet()?;
        assert_eq!(
            kind & !RETAIN,
            PUBLISH,
            "only messages at QoS 0 are subscribed to"
        );
        let (length, rest) = body.split_first_chunk().expect("a topic length");
        let (topic, payload) = rest.split_at(usize::from(u16::from_be_bytes(*length)));
        Some(Publish { topic, payload })
    }

    /// The bare socket, for whoever only wants to have read what comes.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Drops what is retained, which Mosquitto sends before the SUBACK.
    fn expect(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        loop {
            if let Some(packet) = self.next_packet() {
                if packet.0 == PUBLISH | RETAIN {
                    continue;
                }
                assert_eq!(packet, (kind, body), "the broker refuses");
                return Ok(());
            }
            self.receive()?;
        }
    }

    fn next_packet(&mut self) -> Option<(u8, &[u8])> {
        let (&kind, rest) = self.inbox[self.taken..self.filled].split_first()?;
        let (length, length_bytes) = decode_length(rest)?;
        let start = self.taken + 1 + length_bytes;
        if start + length > self.filled {
            return None;
        }
        self.taken = start + length;
        Some((kind, &self.inbox[start..start + length]))
    }

    /// Moves what is left to the front, and grows when a packet fills the whole buffer.
    fn make_room(&mut self) {
        self.inbox.copy_within(self.taken..self.filled, 0);
        self.filled -= self.taken;
        self.taken = 0;
        if self.filled == self.inbox.len() {
            self.inbox.resize(2 * self.filled, 0);
        }
    }

    fn send(&mut self, kind: u8, parts: &[&[u8]]) -> io::Result<()> {
        self.outbox.clear();
        self.outbox.push(kind);
        encode_length(parts.iter().map(|part| part.len()).sum(), &mut self.outbox);
        for part in parts {
            self.outbox.extend_from_slice(part);
        }
        self.stream.write_all(&self.outbox)
    }
}

/// A broker that leaves Nagle's algorithm on waits for our acknowledgement before its next small
/// segment; a delayed one costs 40 ms. Linux forgets the option, so each read sets it again.
#[cfg(target_os = "linux")]
fn acknowledge_at_once(stream: &TcpStream) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_tcp_quickack(stream, true)?)
}

#[cfg(not(target_os = "linux"))]
fn acknowledge_at_once(_stream: &TcpStream) -> io::Result<()> {
    Ok(())
}

/// A string with its length in front (MQTT 3.1.1 §1.5.3).
fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("a short string");
    [&length.to_be_bytes()[..], text.as_bytes()].concat()
}

/// Seven bits a byte, the lowest first (MQTT 3.1.1 §2.2.3).
fn encode_length(mut length: usize, out: &mut Vec<u8>) {
    loop {
        let low = (length % 128) as u8;
        length /= 128;
        out.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            return;
        }
    }
}

/// The length and how many bytes it took; none if it has not arrived in full.
fn decode_length(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut length = 0;
    for (position, byte) in bytes.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7F) << (7 * position);
        if byte & 0x80 == 0 {
            return Some((length, position + 1));
        }
    }
    None
}
