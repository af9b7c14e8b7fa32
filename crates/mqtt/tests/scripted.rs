//! Sessions with a scripted broker: what Mosquitto never does, or does only on a bad day.

mod common;

use std::time::Duration;

use common::{DEADLINE, options, start};
use mqtt::{DisconnectReason, Event, Options, SessionEpoch, SessionSetup, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const CONNACK_V5: &[u8] = &[0x20, 3, 0, 0, 0];
/// Long enough to be a whole packet if its first bytes were a fixed header.
const HTTP_ANSWER: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Connection: close\r\n\r\n400 Bad Request";
const CONNACK_V311: &[u8] = &[0x20, 2, 0, 0];

/// A broker of which each connection plays the next script: what it answers to each packet.
/// After its last answer it closes the connection if `closes`.
async fn scripted(scripts: &'static [&'static [&'static [u8]]], closes: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("mqtt://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        let mut open = Vec::new();
        for script in scripts {
            let (mut socket, _) = listener.accept().await.expect("a client");
            for answer in *script {
                read_packet(&mut socket).await;
                socket.write_all(answer).await.expect("a living client");
            }
            if script.is_empty() {
                read_packet(&mut socket).await;
            }
            if !closes {
                open.push(socket);
            }
        }
        std::future::pending::<()>().await;
    });
    url
}

/// Good for packets below 128 bytes, as all are here.
async fn read_packet(socket: &mut TcpStream) {
    let mut head = [0; 2];
    socket.read_exact(&mut head).await.expect("a packet");
    let mut body = vec![0; usize::from(head[1])];
    socket.read_exact(&mut body).await.expect("a whole packet");
}

fn version_5(url: &str) -> Options {
    let mut options = options(url);
    options.version = Version::V5;
    options
}

#[tokio::test]
async fn a_refused_subscription_ends_the_session_and_names_the_filter() {
    let url = scripted(&[&[CONNACK_V5, &[0x90, 5, 0, 1, 0, 1, 0x87]]], false).await;
    let mut client = start(version_5(&url), "client", &["mine/#", "theirs/#"]);
    let Event::Disconnected { epoch, reason, .. } = client.event().await else {
        panic!("it should not be connected");
    };
    assert_eq!(epoch, None);
    assert!(reason.is_permanent());
    assert!(
        matches!(&reason, DisconnectReason::SubscribeRefused { filter } if filter == "theirs/#"),
        "{reason:?}"
    );
}

/// Rights come first, the option second: a broker that refuses both ways has refused the filter.
#[tokio::test]
async fn a_subscription_refused_for_its_option_is_asked_for_without_it() {
    const REFUSED: &[u8] = &[0x90, 4, 0, 1, 0, 0x87];
    const GRANTED: &[u8] = &[0x90, 4, 0, 1, 0, 1];
    for (second, is_granted) in [(GRANTED, true), (REFUSED, false)] {
        let scripts: Vec<&'static [&'static [u8]]> =
            vec![&[CONNACK_V5, REFUSED], Vec::leak(vec![CONNACK_V5, second])];
        let url = scripted(Vec::leak(scripts), false).await;
        let mut options = version_5(&url);
        options.no_local = vec!["mine/#".to_owned()];
        let mut client = start(options, "client", &["mine/#"]);
        let epoch = SessionEpoch(2);
        match client.event().await {
            Event::Connected { epoch: connected } => {
                assert_eq!((connected, is_granted), (epoch, true))
            }
            Event::Disconnected { reason, .. } => assert!(
                matches!(&reason, DisconnectReason::SubscribeRefused { .. }) && !is_granted,
                "{reason:?}"
            ),
            other => panic!("neither in nor out: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_message_that_overtakes_the_suback_comes_after_connected() {
    const EARLY_MESSAGE_AND_SUBACK: &[u8] = &[0x30, 5, 0, 1, b'a', 0, b'x', 0x90, 4, 0, 1, 0, 0];
    let url = scripted(&[&[CONNACK_V5, EARLY_MESSAGE_AND_SUBACK]], false).await;
    let mut client = start(version_5(&url), "client", &["a"]);
    assert!(matches!(
        client.event().await,
        Event::Connected {
            epoch: SessionEpoch(1)
        }
    ));
    assert_eq!(client.message().await.payload, "x");
}

#[tokio::test]
async fn a_broker_of_311_only_is_found_out_however_it_says_so() {
    let scripts: [(&'static [&'static [&'static [u8]]], bool); 3] = [
        // It answers CONNACK 1, unacceptable protocol version, in the format of 3.1.1.
        (
            &[&[&[0x20, 2, 0, 1]], &[CONNACK_V311, &[0x90, 3, 0, 1, 0]]],
            false,
        ),
        // It ignores the version and accepts in the format of 3.1.1.
        (
            &[&[CONNACK_V311], &[CONNACK_V311, &[0x90, 3, 0, 1, 0]]],
            false,
        ),
        // It answers MQTT 5's own "unsupported protocol version".
        (
            &[
                &[&[0x20, 3, 0, 0x84, 0]],
                &[CONNACK_V311, &[0x90, 3, 0, 1, 0]],
            ],
            false,
        ),
    ];
    for (script, closes) in scripts {
        let url = scripted(script, closes).await;
        let mut client = start(options(&url), "client", &["a"]);
        let event = client.event().await;
        assert!(
            matches!(
                event,
                Event::Connected {
                    epoch: SessionEpoch(2)
                }
            ),
            "{event:?}"
        );
    }
}

#[tokio::test]
async fn a_broker_that_hangs_up_on_connect_is_tried_with_both_versions() {
    let url = scripted(&[&[], &[]], true).await;
    let mut client = start(options(&url), "client", &["a"]);
    let reason = client.disconnected().await;
    assert!(
        matches!(reason, DisconnectReason::ClosedByBroker { .. }),
        "{reason:?}"
    );
}

#[tokio::test]
async fn what_the_broker_says_last_is_the_reason() {
    type Check = fn(&DisconnectReason) -> bool;
    let table: [(&'static [&'static [&'static [u8]]], Check); 6] = [
        (
            &[&[CONNACK_V5, &[0x90, 4, 0, 1, 0, 0, 0xE0, 2, 0x8E, 0]]],
            |reason| matches!(reason, DisconnectReason::TakenOver),
        ),
        (
            &[&[CONNACK_V5, &[0x90, 4, 0, 1, 0, 0, 0xE0, 2, 0x8B, 0]]],
            |reason| reason.to_string() == "the broker closed the connection: server shutting down",
        ),
        (
            &[&[CONNACK_V5, &[0x90, 4, 0, 1, 0, 0, 0x30, 0xFF, 0xFF, 0x7F]]],
            |reason| {
                matches!(
                    reason,
                    DisconnectReason::PacketTooLarge {
                        size: 2_097_155,
                        ..
                    }
                )
            },
        ),
        (&[&[HTTP_ANSWER]], |reason| {
            matches!(reason, DisconnectReason::Protocol { .. }) && reason.is_permanent()
        }),
        (
            &[&[&[0x20, 3, 0, 0x85, 0]]],
            |reason| matches!(reason, DisconnectReason::IdentifierRejected { client_id } if client_id == "client-1"),
        ),
        (&[&[&[0x20, 3, 0, 0x86, 0]]], |reason| {
            matches!(reason, DisconnectReason::BadCredentials)
        }),
    ];
    for (number, (script, check)) in table.into_iter().enumerate() {
        let url = scripted(script, true).await;
        let reason = start(version_5(&url), "client", &["a"])
            .disconnected()
            .await;
        assert!(check(&reason), "{number}: {reason:?}");
    }
}

#[tokio::test]
async fn a_broker_that_accepts_and_says_nothing_is_given_up_after_the_connect_timeout() {
    let url = scripted(&[&[CONNACK_V5]], false).await;
    let mut hasty = version_5(&url);
    hasty.connect_timeout = Duration::from_millis(200);
    let reason = start(hasty, "client", &["a"]).disconnected().await;
    assert!(
        matches!(
            reason,
            DisconnectReason::ConnectTimeout {
                doing: "waiting for SUBACK",
                ..
            }
        ),
        "{reason:?}"
    );
}

#[tokio::test]
async fn disconnect_ends_a_session_that_never_was() {
    let url = scripted(&[&[&[]]], false).await;
    let mut client = start(version_5(&url), "client", &[]);
    let disconnect = client.publisher.disconnect();
    tokio::time::timeout(DEADLINE, disconnect)
        .await
        .expect("an end");
    assert!(client.events.next().await.is_none());
}

#[tokio::test]
async fn a_setup_that_mqtt_cannot_carry_is_named() {
    let url = scripted(&[], false).await;
    for (id, filter, word) in [
        ("", "a", "client id"),
        ("x", "a/#/b", "a/#/b"),
        ("x", "", "filter"),
    ] {
        let (_publisher, mut events) = mqtt::connect(version_5(&url), move |_| SessionSetup {
            client_id: id.to_owned(),
            will: None,
            subscriptions: vec![(filter.to_owned(), mqtt::Qos::AtMostOnce)],
        })
        .unwrap();
        let Some(Event::Disconnected { reason, .. }) = events.next().await else {
            panic!("it should not be connected");
        };
        assert!(reason.to_string().contains(word), "{reason}");
    }
}

#[test]
fn without_a_runtime_connect_is_an_error() {
    let options = options("mqtt://127.0.0.1");
    let result = mqtt::connect(options, |_| unreachable!());
    assert!(matches!(result, Err(mqtt::OptionsError::NoRuntime)));
}
