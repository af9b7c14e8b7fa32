//! The test bench itself: brokers start, die and come back on the same ports.

use std::net::TcpStream;

use testkit::{Certificates, Mosquitto, require_mosquitto, temp_dir};

#[test]
fn every_listener_accepts_and_a_restart_keeps_the_ports() {
    require_mosquitto!();
    let dir = temp_dir();
    let certificates = Certificates::generate(dir.path());
    assert!(certificates.client("node-1").key.exists());
    let mut broker = Mosquitto::builder()
        .mutual_tls(&certificates)
        .websockets()
        .websockets_tls()
        .user("alice", "secret")
        .acl("user alice\ntopic readwrite #\n")
        .persistence(true)
        .nodelay(true)
        .line("max_inflight_messages 100")
        .start();
    for url in [
        broker.url(),
        broker.tls_url(),
        broker.ws_url(),
        broker.wss_url(),
    ] {
        assert!(url.contains("://"), "{url}");
    }
    let (port, pid) = (broker.port(), broker.pid());
    broker.kill();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    broker.restart();
    assert_ne!(broker.pid(), pid);
    assert_eq!(broker.port(), port);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
    broker.stop_signal();
    broker.cont();
    broker.terminate();
}
