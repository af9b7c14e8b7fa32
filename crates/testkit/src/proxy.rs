//! A path to a broker that takes its time, or loses what comes in a burst.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// A port on loopback from which everything reaches another port as over a slow network: a broker far
/// away. The order is as without it.
#[derive(Debug)]
pub struct SlowPath {
    port: u16,
}

impl SlowPath {
    /// Opens a path to `port`, by which each byte takes this much longer each way. It stays for as long
    /// as the process does.
    ///
    /// # Panics
    ///
    /// If no port can be had.
    pub fn to(port: u16, delay: Duration) -> SlowPath {
        SlowPath::open(port, move |client, broker| {
            carry(client, broker, delay);
            carry(broker, client, delay);
        })
    }

    /// Opens a path to `port` as to a broker with short queues: of the PUBLISH packets that come back
    /// within a tenth of a second, those beyond the first `queue` are dropped.
    ///
    /// # Panics
    ///
    /// If no port can be had.
    pub fn dropping_bursts(port: u16, queue: usize) -> SlowPath {
        SlowPath::open(port, move |client, broker| {
            carry(client, broker, Duration::ZERO);
            let (mut since, mut burst) = (Instant::now(), 0);
            carry_packets(broker, client, move |packet| {
                if since.elapsed() > MOMENT {
                    (since, burst) = (Instant::now(), 0);
                }
                burst += usize::from(is_publish(packet));
                !is_publish(packet) || burst <= queue
            });
        })
    }

    /// Opens a path to `port` by which no PUBLISH at QoS 0 comes back.
    ///
    /// # Panics
    ///
    /// If no port can be had.
    pub fn dropping_qos_0(port: u16) -> SlowPath {
        SlowPath::open(port, |client, broker| {
            carry(client, broker, Duration::ZERO);
            carry_packets(broker, client, |packet| {
                !is_publish(packet) || packet[0] & 0b0110 != 0
            });
        })
    }

    fn open(port: u16, join: impl Fn(&TcpStream, &TcpStream) + Send + 'static) -> SlowPath {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let here = listener.local_addr().expect("its number").port();
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else {
                    continue;
                };
                // A broker that is gone is a connection that ends.
                if let Ok(broker) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
                    join(&client, &broker);
                }
            }
        });
        SlowPath { port: here }
    }

    /// `mqtt://127.0.0.1:port`
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }
}

/// What comes within it is one burst.
const MOMENT: Duration = Duration::from_millis(100);

fn is_publish(packet: &[u8]) -> bool {
    packet[0] >> 4 == 3
}

/// One direction: the packets that `passes` lets through.
fn carry_packets(
    from: &TcpStream,
    to: &TcpStream,
    mut passes: impl FnMut(&[u8]) -> bool + Send + 'static,
) {
    let (mut from, mut to) = (
        from.try_clone().expect("a handle"),
        to.try_clone().expect("a handle"),
    );
    let _ = to.set_nodelay(true);
    thread::spawn(move || {
        while let Ok(packet) = read_packet(&mut from) {
            if passes(&packet) && to.write_all(&packet).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}

/// One MQTT packet: its kind, its length in up to four bytes of seven bits, and so many bytes.
fn read_packet(from: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut packet = vec![0; 2];
    from.read_exact(&mut packet)?;
    let mut length = usize::from(packet[1] & 0x7F);
    let mut shift = 7;
    while packet.last().is_some_and(|byte| byte & 0x80 != 0) {
        let mut more = [0];
        from.read_exact(&mut more)?;
        length |= usize::from(more[0] & 0x7F) << shift;
        shift += 7;
        packet.push(more[0]);
    }
    let head = packet.len();
    packet.resize(head + length, 0);
    from.read_exact(&mut packet[head..])?;
    Ok(packet)
}

/// One direction: a thread that reads, and one that writes when the time has come.
fn carry(from: &TcpStream, to: &TcpStream, delay: Duration) {
    let (mut from, mut to) = (
        from.try_clone().expect("a handle"),
        to.try_clone().expect("a handle"),
    );
    let _ = to.set_nodelay(true);
    let (sender, receiver) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            let due = Instant::now() + delay;
            if sender.send((due, buffer[..read].to_vec())).is_err() {
                break;
            }
        }
    });
    thread::spawn(move || {
        for (due, bytes) in receiver {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
