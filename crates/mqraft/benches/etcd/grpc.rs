//! As much gRPC over HTTP/2 as two calls need.
//!
//! Headers are sent as HPACK literals and never decoded: an answer that carries a message is one that
//! succeeded, since gRPC tells of errors in headers alone. The server may send as much as it likes;
//! what we send keeps to its window.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

const FRAME_HEADER: usize = 9;

/// What either side may send on a connection before it is told more (RFC 9113 §6.9.2).
const FIRST_WINDOW: i64 = 65_535;

const TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to one member.
pub(super) struct Connection {
    stream: TcpStream,
    authority: String,
    next_stream: u32,
    /// Bytes of DATA that may still be sent.
    window: i64,
    inbox: Vec<u8>,
    taken: usize,
    filled: usize,
    outbox: Vec<u8>,
    /// Streams that have had a message and not yet their end.
    answered: Vec<u32>,
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Connection {
    pub(super) fn open(member: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect(member)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut connection = Connection {
            stream,
            authority: member.to_string(),
            next_stream: 1,
            window: FIRST_WINDOW,
            inbox: vec![0; 64 << 10],
            taken: 0,
            filled: 0,
            outbox: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            answered: Vec::new(),
        };
        connection.frame(SETTINGS, 0, 0, &[]);
        let all = i32::MAX as u32 - FIRST_WINDOW as u32;
        connection.frame(WINDOW_UPDATE, 0, 0, &all.to_be_bytes());
        connection.flush()?;
        Ok(connection)
    }

    /// Sends a put, without waiting for its answer.
    pub(super) fn put(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        let mut request = Vec::with_capacity(key.len() + value.len() + 8);
        field(1, key.as_bytes(), &mut request);
        field(2, value, &mut request);
        self.call("/etcdserverpb.KV/Put", &request)
    }

    /// Waits for the next answer.
    pub(super) fn answer(&mut self) -> io::Result<()> {
        self.message().map(|_| ())
    }

    /// Whether this member leads.
    pub(super) fn leads(&mut self) -> io::Result<bool> {
        self.call("/etcdserverpb.Maintenance/Status", &[])?;
        let status = self.message()?;
        let header = bytes_of(&status, 1).unwrap_or_default();
        let (me, leader) = (number_of(header, 2), number_of(&status, 4));
        Ok(me.is_some() && me == leader)
    }

    fn call(&mut self, path: &str, message: &[u8]) -> io::Result<()> {
        let mut headers = vec![0x83, 0x86]; // :method POST, :scheme http
        literal(&[0x04], path, &mut headers);
        literal(&[0x01], &self.authority, &mut headers);
        literal(&[0x0f, 0x10], "application/grpc", &mut headers);
        literal(&[0x00, 2, b't', b'e'], "trailers", &mut headers);
        let mut data = vec![0];
        data.extend_from_slice(&(message.len() as u32).to_be_bytes());
        data.extend_from_slice(message);
        while self.window < data.len() as i64 {
            let frame = self.next_frame()?;
            self.take(&frame)?;
        }
        self.window -= data.len() as i64;
        let stream = self.next_stream;
        self.next_stream += 2;
        self.frame(HEADERS, END_HEADERS, stream, &headers);
        self.frame(DATA, END_STREAM, stream, &data);
        self.flush()
    }

    /// The next answer's message, once its stream has ended.
    fn message(&mut self) -> io::Result<Vec<u8>> {
        let mut message = Vec::new();
        loop {
            let frame = self.next_frame()?;
            match frame.kind {
                DATA => {
                    message = frame.payload.get(5..).unwrap_or_default().to_vec();
                    self.answered.push(frame.stream);
                }
                HEADERS if frame.flags & END_STREAM != 0 => {
                    let answered = self.answered.iter().position(|s| *s == frame.stream);
                    let at = answered.ok_or_else(|| failed("an answer without a message"))?;
                    self.answered.swap_remove(at);
                    return Ok(message);
                }
                _ => self.take(&frame)?,
            }
        }
    }

    /// Takes a frame that is no answer.
    fn take(&mut self, frame: &Frame) -> io::Result<()> {
        match frame.kind {
            SETTINGS if frame.flags & ACK == 0 => self.frame(SETTINGS, ACK, 0, &[]),
            PING if frame.flags & ACK == 0 => self.frame(PING, ACK, 0, &frame.payload),
            WINDOW_UPDATE if frame.stream == 0 => {
                let more = frame.payload.first_chunk().expect("four bytes");
                self.window += i64::from(u32::from_be_bytes(*more));
            }
            RST_STREAM | GOAWAY => return Err(failed("a call was refused")),
            // Answers while we wait for room would be lost: the window is larger than what waits.
            DATA => return Err(failed("an answer while the window is shut")),
            _ => {}
        }
        self.flush()
    }

    fn next_frame(&mut self) -> io::Result<Frame> {
        let header = self.bytes(FRAME_HEADER)?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let (kind, flags) = (header[3], header[4]);
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
        let payload = self.bytes(length)?;
        Ok(Frame {
            kind,
            flags,
            stream,
            payload,
        })
    }

    fn bytes(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.filled - self.taken < length {
            self.inbox.copy_within(self.taken..self.filled, 0);
            self.filled -= self.taken;
            self.taken = 0;
            let read = self.stream.read(&mut self.inbox[self.filled..])?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.filled += read;
        }
        let bytes = self.inbox[self.taken..self.taken + length].to_vec();
        self.taken += length;
        Ok(bytes)
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = (payload.len() as u32).to_be_bytes();
        self.outbox.extend_from_slice(&length[1..]);
        self.outbox.extend_from_slice(&[kind, flags]);
        self.outbox.extend_from_slice(&stream.to_be_bytes());
        self.outbox.extend_from_slice(payload);
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.outbox.is_empty() {
            self.stream.write_all(&self.outbox)?;
            self.outbox.clear();
        }
        Ok(())
    }
}

/// A header as an HPACK literal that is not indexed (RFC 7541 §6.2.2).
fn literal(name: &[u8], value: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.push(u8::try_from(value.len()).expect("a short header"));
    out.extend_from_slice(value.as_bytes());
}

/// A protobuf field of bytes.
fn field(number: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(number << 3 | 2);
    let mut length = bytes.len();
    while length > 0x7f {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
}

/// The fields of a protobuf message: number, and its varint or its bytes.
fn fields(mut message: &[u8]) -> Vec<(u64, u64, &[u8])> {
    let mut fields = Vec::new();
    while let Some(tag) = varint(&mut message) {
        let Some(value) = varint(&mut message) else {
            break;
        };
        let length = usize::try_from(value).unwrap_or(usize::MAX);
        let bytes = match tag & 7 {
            2 => message.split_off(..length).unwrap_or_default(),
            _ => &[],
        };
        fields.push((tag >> 3, value, bytes));
    }
    fields
}

fn number_of(message: &[u8], number: u64) -> Option<u64> {
    let found = fields(message).into_iter().find(|(n, ..)| *n == number);
    found.map(|(_, value, _)| value)
}

fn bytes_of(message: &[u8], number: u64) -> Option<&[u8]> {
    let found = fields(message).into_iter().find(|(n, ..)| *n == number);
    found.map(|(.., bytes)| bytes)
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = message.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn failed(why: &'static str) -> io::Error {
    io::Error::other(why)
}
