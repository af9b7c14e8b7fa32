//! Latency and throughput of this crate through a real Mosquitto.
//!
//! `cargo run --release -p mqtt --example bench` prints, for a broker with Nagle's algorithm on
//! (its default) and off: the median and the 99th percentile of a two-hop exchange at QoS 0 and 1,
//! and the rate at which messages of 256 B and 60 KiB pass the broker once. One runtime thread,
//! as in the daemon.
//!
//! Measured in November 2026 on a shared 2-core machine with Mosquitto 2.0.11, Nagle on; figures
//! vary by a factor of 2 from run to run:
//!
//! | | QoS 0 p50 / p99 | QoS 1 p50 / p99 | 256 B | 60 KiB |
//! |---|---|---|---|---|
//! | mqtt | 0.06 to 0.15 / 0.19 ms | 0.11 to 0.15 / 0.26 ms | 53 to 87 k/s | 9 to 12 k/s |
//! | ws | 0.06 to 0.10 / 0.22 ms | 0.12 / 0.21 ms | 75 to 90 k/s | 4 KiB in 100 ms |
//! | mqtts | 0.07 / 0.15 ms | 0.13 / 0.25 ms | 61 k/s | 4 k/s |

use std::time::{Duration, Instant};

use mqtt::{Bytes, Event, Events, Options, PublishError, Publisher, Qos, SessionSetup};
use testkit::{Certificates, Mosquitto, temp_dir};

const ROUNDS: usize = 2_000;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    if !testkit::mosquitto_or_skip() {
        return;
    }
    let dir = temp_dir();
    let certificates = Certificates::generate(dir.path());
    for nodelay in [false, true] {
        let broker = Mosquitto::builder()
            .nodelay(nodelay)
            .tls(&certificates)
            .websockets()
            .start();
        println!("set_tcp_nodelay {nodelay}");
        for url in [broker.url(), broker.ws_url(), broker.tls_url()] {
            let mut options = Options::new(url.parse().expect("a URL"));
            if options.broker.scheme().is_tls() {
                options.tls.ca = Some(certificates.ca.clone());
            }
            println!("  {}", options.broker);
            for qos in [Qos::AtMostOnce, Qos::AtLeastOnce] {
                latency(&options, qos).await;
            }
            throughput(&options, 256, 10_000).await;
            // Mosquitto 2.0 takes 4 KiB in 100 ms here, each way: eclipse-mosquitto issue 2252.
            if !options.broker.scheme().is_websocket() {
                throughput(&options, 60 * 1024, 2_000).await;
            }
            goodbye(&options).await;
        }
    }
}

async fn latency(options: &Options, qos: Qos) {
    let (asker, mut answers) = session(options, "asker", "answers").await;
    let (answerer, mut questions) = session(options, "answerer", "questions").await;
    let answering = tokio::spawn(async move {
        while let Some(event) = questions.next().await {
            if let Event::Message(message) = event {
                answerer
                    .publish("answers", message.payload, qos, false)
                    .expect("room");
            }
        }
    });
    let payload = Bytes::from(vec![1; 256]);
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        asker
            .publish("questions", payload.clone(), qos, false)
            .expect("room");
        message(&mut answers).await;
        times.push(start.elapsed());
    }
    answering.abort();
    times.sort();
    let at = |part: usize| times[ROUNDS * part / 100];
    println!(
        "    two hops and back, {qos:?}: p50 {:?} p99 {:?}",
        at(50),
        at(99)
    );
}

async fn throughput(options: &Options, size: usize, count: usize) {
    let (sender, _sender_events) = session(options, "sender", "unused").await;
    let (_receiver, mut received) = session(options, "receiver", "bulk").await;
    let payload = Bytes::from(vec![2; size]);
    // Bounded in flight, as the design asks: a broker may drop the tail of a burst.
    let window = (2 * 1024 * 1024 / size).clamp(8, 500);
    let start = Instant::now();
    let (mut sent, mut seen) = (0, 0);
    while seen < count {
        while sent < count && sent - seen < window {
            match sender.publish("bulk", payload.clone(), Qos::AtMostOnce, false) {
                Ok(()) => sent += 1,
                Err(PublishError::Full) => break,
                Err(error) => panic!("{error}"),
            }
        }
        message(&mut received).await;
        seen += 1;
    }
    let took = start.elapsed();
    let rate = count as f64 / took.as_secs_f64();
    println!(
        "    {size} B: {rate:.0} messages/s, {:.0} MiB/s",
        rate * size as f64 / (1024.0 * 1024.0)
    );
}

async fn goodbye(options: &Options) {
    let start = Instant::now();
    let (publisher, _events) = session(options, "brief", "unused").await;
    let connected = start.elapsed();
    publisher.disconnect().await;
    println!(
        "    connected in {connected:?}, gone in {:?}",
        start.elapsed() - connected
    );
}

async fn session(
    options: &Options,
    name: &'static str,
    filter: &'static str,
) -> (Publisher, Events) {
    let (publisher, mut events) = mqtt::connect(options.clone(), move |epoch| SessionSetup {
        client_id: format!("{name}-{}", epoch.0),
        will: None,
        subscriptions: vec![(filter.to_owned(), Qos::AtLeastOnce)],
    })
    .expect("valid options");
    match events.next().await {
        Some(Event::Connected { .. }) => (publisher, events),
        other => panic!("not connected: {other:?}"),
    }
}

async fn message(events: &mut Events) {
    loop {
        let event = tokio::time::timeout(Duration::from_secs(10), events.next()).await;
        match event.expect("a message within 10 s") {
            Some(Event::Message(_)) => return,
            Some(Event::Disconnected { reason, .. }) => panic!("{reason}"),
            _ => {}
        }
    }
}
