//! Sessions with a real Mosquitto: every transport, both versions, and the ways a broker fails.

mod common;

use std::time::{Duration, Instant};

use common::{Client, DEADLINE, options, start, start_with, will};
use mqtt::{
    Bytes, Credentials, DisconnectReason, Event, Options, Properties, PublishError, Qos,
    SessionEpoch, TlsFault, TlsFiles, Version,
};
use testkit::{Certificates, KeyPair, Mosquitto, require_mosquitto, temp_dir};

/// Sends a small and a large message of each QoS to itself and reads them back.
///
/// Large is 100 kB, or 6 kB over WebSocket, where Mosquitto 2.0 with Debian's libwebsockets takes
/// 100 ms for each 4 KiB, each way (eclipse-mosquitto issue 2252).
async fn echo(mut client: Client, large: usize) {
    client.connected().await;
    for qos in [Qos::AtMostOnce, Qos::AtLeastOnce] {
        for payload in [Bytes::from("small"), Bytes::from(vec![7; large])] {
            client.send("echo/here", payload.clone(), qos);
            let message = client.message().await;
            assert_eq!(message.topic, "echo/here");
            assert_eq!(message.payload, payload);
            assert!(!message.retained);
        }
    }
    client.publisher.disconnect().await;
    assert!(client.events.next().await.is_none());
}

/// A request says where its answer goes and to what it is one; MQTT 3.1.1 cannot.
#[tokio::test]
async fn a_request_carries_where_its_answer_goes() {
    require_mosquitto!();
    let broker = Mosquitto::start();
    let asked = Properties {
        response_topic: Some("panel/answers".to_owned()),
        correlation_data: Some(Bytes::from_static(&[0, 1, 0xFF])),
    };
    for (version, expected) in [
        (Version::V5, asked.clone()),
        (Version::V311, Properties::default()),
    ] {
        let mut options = options(&broker.url());
        options.version = version;
        let mut client = start(options, "asker", &["echo/#"]);
        client.connected().await;
        let publish = |properties| {
            let (topic, payload) = ("echo/here", Bytes::from("?"));
            let publisher = &client.publisher;
            publisher.publish_with(topic, payload, Qos::AtLeastOnce, false, properties)
        };
        publish(asked.clone()).unwrap();
        let too_long = Properties {
            response_topic: None,
            correlation_data: Some(vec![0; 65_536].into()),
        };
        assert!(matches!(
            publish(too_long),
            Err(PublishError::TooLarge { .. })
        ));
        let no_topic = Properties {
            response_topic: Some("panel/#".to_owned()),
            correlation_data: None,
        };
        assert!(matches!(
            publish(no_topic),
            Err(PublishError::InvalidTopic { .. })
        ));
        assert_eq!(client.message().await.properties, expected, "{version:?}");
    }
}

/// What a client says itself does not come back on a subscription without local messages, and what
/// others say does. MQTT 3.1.1 does not have the option: there all comes.
#[tokio::test]
async fn own_messages_stay_away_where_they_are_not_wanted() {
    require_mosquitto!();
    let broker = Mosquitto::start();
    for (version, expected) in [(Version::V5, "back"), (Version::V311, "all/client")] {
        let mut options = options(&broker.url());
        options.version = version;
        let mut other = start(options.clone(), "other", &[]);
        other.connected().await;
        options.no_local = vec!["all/+".to_owned()];
        let mut client = start(options, "client", &["all/+", "back"]);
        client.connected().await;
        client.send("all/client", "own", Qos::AtLeastOnce);
        // Comes back after whatever of the first does.
        client.send("back", "own", Qos::AtLeastOnce);
        let first = client.message().await;
        assert_eq!(first.topic, expected, "{version:?}");
        other.send("all/other", "theirs", Qos::AtLeastOnce);
        let theirs = async { while client.message().await.payload != "theirs" {} };
        tokio::time::timeout(DEADLINE, theirs)
            .await
            .expect("what others say");
    }
}

fn with_files(url: &str, ca: &std::path::Path, pair: Option<&KeyPair>) -> Options {
    let mut options = options(url);
    options.tls = TlsFiles {
        ca: Some(ca.to_owned()),
        certificate: pair.map(|pair| pair.certificate.clone()),
        key: pair.map(|pair| pair.key.clone()),
    };
    options
}

#[tokio::test]
async fn every_transport_carries_both_versions() {
    require_mosquitto!();
    let dir = temp_dir();
    let certificates = Certificates::generate(dir.path());
    let client = certificates.client("node-1");
    let broker = Mosquitto::builder()
        .mutual_tls(&certificates)
        .websockets()
        .websockets_tls()
        .start();
    for version in [Version::V5, Version::V311, Version::Auto] {
        for mut options in [
            options(&broker.url()),
            options(&broker.ws_url()),
            with_files(&broker.tls_url(), &certificates.ca, Some(&client)),
            with_files(&broker.wss_url(), &certificates.ca, Some(&client)),
        ] {
            println!("{} {version:?}", options.broker);
            options.version = version;
            let large = if options.broker.scheme().is_websocket() {
                6_000
            } else {
                100_000
            };
            echo(start(options, "echo", &["echo/#"]), large).await;
        }
    }
}

#[tokio::test]
async fn a_dropped_session_leaves_its_will_and_a_disconnected_one_does_not() {
    require_mosquitto!();
    let broker = Mosquitto::start();
    for version in [Version::V5, Version::V311] {
        let mut watcher = start(options(&broker.url()), "watcher", &["wills/#"]);
        watcher.connected().await;
        let mortal = |name: &'static str| {
            let mut options = options(&broker.url());
            options.version = version;
            start_with(options, name, &[], Some(will("wills/x", name)))
        };
        let mut polite = mortal("polite");
        polite.connected().await;
        polite.publisher.disconnect().await;
        let mut abrupt = mortal("abrupt");
        abrupt.connected().await;
        drop(abrupt);
        // Were there a will of the polite one, it would have come first.
        assert_eq!(watcher.message().await.payload, "abrupt");
    }
}

#[tokio::test]
async fn disconnect_first_sends_what_is_queued() {
    require_mosquitto!();
    let broker = Mosquitto::start();
    let mut watcher = start(options(&broker.url()), "watcher", &["last/#"]);
    watcher.connected().await;
    let mut client = start(options(&broker.url()), "client", &[]);
    client.connected().await;
    for number in 0..500 {
        let qos = [Qos::AtMostOnce, Qos::AtLeastOnce][number % 2];
        client.send("last/words", number.to_string(), qos);
    }
    client.publisher.disconnect().await;
    for _ in 0..500 {
        watcher.message().await;
    }
    assert_eq!(
        client
            .publisher
            .publish("last/words", Bytes::new(), Qos::AtMostOnce, false),
        Err(PublishError::Disconnected)
    );
}

#[tokio::test]
async fn a_restarted_broker_is_found_again_in_a_new_session_with_its_subscriptions() {
    require_mosquitto!();
    let mut broker = Mosquitto::start();
    let mut client = start(options(&broker.url()), "client", &["echo/#"]);
    let first = client.connected().await;
    assert_eq!(first, SessionEpoch(1));
    broker.kill();
    let Event::Disconnected { epoch, reason, .. } = client.event().await else {
        panic!("the session should have ended");
    };
    assert_eq!(epoch, Some(first));
    assert!(
        matches!(reason, DisconnectReason::ClosedByBroker { .. }),
        "{reason:?}"
    );
    let refused = client
        .publisher
        .publish("echo/old", Bytes::new(), Qos::AtMostOnce, false);
    assert_eq!(refused, Err(PublishError::Disconnected));
    let reason = client.disconnected().await;
    assert!(
        matches!(reason, DisconnectReason::Unreachable { .. }),
        "{reason:?}"
    );
    assert!(!reason.is_permanent());
    broker.restart();
    let second = client.connected().await;
    assert!(second > first);
    client.send("echo/new", "again", Qos::AtMostOnce);
    assert_eq!(client.message().await.payload, "again");
}

#[tokio::test]
async fn a_stopped_broker_is_noticed_within_the_progress_timeout() {
    require_mosquitto!();
    for publishing in [false, true] {
        let broker = Mosquitto::start();
        let mut quick = options(&broker.url());
        quick.progress_timeout = Some(Duration::from_millis(400));
        let mut client = start(quick, "client", &["echo/#"]);
        client.connected().await;
        broker.stop_signal();
        let stopped = Instant::now();
        let reason = if publishing {
            // More than the socket buffers hold, so that the write stalls as well.
            loop {
                let _ = client.publisher.publish(
                    "elsewhere",
                    Bytes::from(vec![0; 60_000]),
                    Qos::AtMostOnce,
                    false,
                );
                tokio::task::yield_now().await;
                match client.events.try_next() {
                    Some(Event::Disconnected { reason, .. }) => break reason,
                    _ => assert!(stopped.elapsed() < DEADLINE),
                }
            }
        } else {
            client.disconnected().await
        };
        let took = stopped.elapsed();
        assert!(
            matches!(reason, DisconnectReason::Stalled { .. }),
            "{reason:?}"
        );
        assert!(took < Duration::from_millis(1500), "{took:?}");
        broker.cont();
        client.connected().await;
    }
}

#[tokio::test]
async fn an_idle_session_outlives_its_timeouts() {
    require_mosquitto!();
    let broker = Mosquitto::start();
    let mut idle = options(&broker.url());
    idle.keep_alive = Duration::from_secs(1);
    idle.progress_timeout = Some(Duration::from_millis(200));
    let mut client = start(idle, "client", &["echo/#"]);
    let epoch = client.connected().await;
    let none = tokio::time::timeout(Duration::from_secs(4), client.events.next()).await;
    assert!(none.is_err(), "{none:?}");
    assert_eq!(client.publisher.epoch(), Some(epoch));
}

#[tokio::test]
async fn a_slow_consumer_stops_the_reading_and_loses_neither_session_nor_order() {
    require_mosquitto!();
    let broker = Mosquitto::builder().line("max_queued_messages 0").start();
    let mut narrow = options(&broker.url());
    narrow.inbound_queue = 4;
    narrow.progress_timeout = Some(Duration::from_millis(200));
    narrow.keep_alive = Duration::from_secs(1);
    let mut slow = start(narrow, "slow", &["echo/#"]);
    let epoch = slow.connected().await;
    let mut sender = start(options(&broker.url()), "sender", &[]);
    sender.connected().await;
    for number in 0..300_u32 {
        sender.send("echo/here", number.to_string(), Qos::AtLeastOnce);
    }
    sender.publisher.disconnect().await;
    // Longer than every timeout of the slow one.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for number in 0..300_u32 {
        assert_eq!(slow.message().await.payload, number.to_string());
    }
    assert_eq!(slow.publisher.epoch(), Some(epoch));
}

#[tokio::test]
async fn the_outbound_queue_is_bounded_by_items_bytes_and_packet_size() {
    require_mosquitto!();
    let broker = Mosquitto::start();
    let mut narrow = options(&broker.url());
    narrow.outbound_queue = 10;
    narrow.outbound_bytes = 50_000;
    narrow.max_packet = 40_000;
    let mut client = start(narrow, "client", &[]);
    client.connected().await;
    let publish = |size: usize| {
        let payload = Bytes::from(vec![0; size]);
        client
            .publisher
            .publish("a", payload, Qos::AtMostOnce, false)
    };
    // Nothing is sent in between: this test runs on one thread and does not await.
    for _ in 0..10 {
        publish(0).unwrap();
    }
    assert_eq!(publish(0), Err(PublishError::Full));
    testkit::wait_for_async(DEADLINE, || publish(30_000).is_ok()).await;
    assert_eq!(publish(30_000), Err(PublishError::Full));
    let too_large = publish(40_000);
    assert!(
        matches!(too_large, Err(PublishError::TooLarge { max: 40_000, .. })),
        "{too_large:?}"
    );
    for topic in ["", "a/+", "#", "nul\0"] {
        let refused = client
            .publisher
            .publish(topic, Bytes::new(), Qos::AtMostOnce, false);
        assert!(
            matches!(refused, Err(PublishError::InvalidTopic { .. })),
            "{topic:?}"
        );
    }
}

#[tokio::test]
async fn wrong_credentials_are_named_and_right_ones_admitted() {
    require_mosquitto!();
    let broker = Mosquitto::builder().user("ann", "secret").start();
    for version in [Version::V5, Version::V311] {
        for credentials in [None, Some(Credentials::new("ann", "hunter2"))] {
            let mut options = options(&broker.url());
            options.version = version;
            options.credentials = credentials;
            let reason = start(options, "client", &[]).disconnected().await;
            assert!(
                matches!(
                    reason,
                    DisconnectReason::NotAuthorised | DisconnectReason::BadCredentials
                ),
                "{reason:?}"
            );
            assert!(reason.is_permanent());
            let shown = format!("{reason} {reason:?}");
            assert!(
                shown.contains("password") && !shown.contains("hunter2"),
                "{shown}"
            );
        }
    }
    let url = broker.url().replace("mqtt://", "mqtt://ann:secret@");
    start(options(&url), "client", &[]).connected().await;
}

#[tokio::test]
async fn a_publish_that_the_acl_denies_is_reported() {
    require_mosquitto!();
    let broker = Mosquitto::builder()
        .user("ann", "secret")
        .acl("user ann\ntopic readwrite mine/#\n")
        .start();
    let url = broker.url().replace("mqtt://", "mqtt://ann:secret@");
    let mut client = start(options(&url), "client", &["mine/#"]);
    client.connected().await;
    client.send("theirs/x", "no", Qos::AtLeastOnce);
    let Event::PublishRefused { topic, detail } = client.event().await else {
        panic!("the publish should have been refused");
    };
    assert_eq!((&*topic, &*detail), ("theirs/x", "not authorized"));
    client.send("mine/x", "yes", Qos::AtLeastOnce);
    assert_eq!(client.message().await.payload, "yes");
}

#[tokio::test]
async fn each_tls_fault_is_told_from_the_others() {
    require_mosquitto!();
    let dir = temp_dir();
    let certificates = Certificates::generate(dir.path());
    let good = certificates.client("node-1");
    let broker = Mosquitto::builder().mutual_tls(&certificates).start();
    let wrong_host = Mosquitto::builder()
        .tls_with(&certificates, certificates.wrong_host.clone(), false)
        .start();
    let (url, ca) = (broker.tls_url(), &certificates.ca);
    let plain_port = broker
        .url()
        .replace("mqtt://127.0.0.1", "mqtts://localhost");
    type Check = fn(&TlsFault) -> bool;
    let table: [(&str, Options, Check); 5] = [
        (
            "wrong host name",
            with_files(&wrong_host.tls_url(), ca, None),
            |fault| matches!(fault, TlsFault::WrongHostName { host } if host == "localhost"),
        ),
        (
            "wrong CA",
            with_files(&url, &certificates.wrong_ca, Some(&good)),
            |fault| matches!(fault, TlsFault::UnknownIssuer),
        ),
        (
            "client of another CA",
            with_files(&url, ca, Some(&certificates.wrong_client)),
            |fault| matches!(fault, TlsFault::RefusedByBroker { .. }),
        ),
        (
            "no client certificate",
            with_files(&url, ca, None),
            |fault| matches!(fault, TlsFault::RefusedByBroker { .. }),
        ),
        (
            "not a TLS port",
            with_files(&plain_port, ca, Some(&good)),
            |fault| matches!(fault, TlsFault::Handshake { .. }),
        ),
    ];
    for (name, options, check) in table {
        let reason = start(options, "client", &[]).disconnected().await;
        assert!(reason.is_permanent(), "{name}: {reason:?}");
        let DisconnectReason::Tls(fault) = &reason else {
            panic!("{name}: {reason:?}");
        };
        assert!(check(fault), "{name}: {fault:?}");
    }
}

#[tokio::test]
async fn a_websocket_url_on_a_plain_port_is_an_error_and_no_hang() {
    require_mosquitto!();
    let broker = Mosquitto::start();
    let url = broker.url().replace("mqtt://", "ws://");
    let reason = start(options(&url), "client", &[]).disconnected().await;
    assert!(reason.to_string().contains("websocket port"), "{reason:?}");
}

/// A broker that leaves Nagle's algorithm on delays a packet until the one before is acknowledged,
/// and an unprepared client acknowledges after 40 ms. Two publishes in two writes provoke it.
#[tokio::test]
async fn a_round_trip_through_a_nagling_broker_takes_no_40_ms() {
    require_mosquitto!();
    let broker = Mosquitto::builder().nodelay(false).start();
    let mut asker = start(options(&broker.url()), "asker", &["answers"]);
    let mut answerer = start(options(&broker.url()), "answerer", &["questions"]);
    asker.connected().await;
    answerer.connected().await;
    let answering = tokio::spawn(async move {
        loop {
            let question = answerer.message().await;
            answerer.send("answers", question.payload, Qos::AtMostOnce);
        }
    });
    let mut times = Vec::new();
    for round in 0..50_u32 {
        let start = Instant::now();
        for part in 0..2_u32 {
            asker.send("questions", format!("{round} {part}"), Qos::AtMostOnce);
            tokio::task::yield_now().await;
        }
        for _ in 0..2 {
            asker.message().await;
        }
        times.push(start.elapsed());
    }
    answering.abort();
    times.sort();
    let median = times[times.len() / 2];
    println!("median of {} round trips: {median:?}", times.len());
    #[cfg(target_os = "linux")]
    assert!(median < Duration::from_millis(10), "{median:?}");
}
