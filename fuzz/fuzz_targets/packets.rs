//! What a broker sends, byte by byte as it comes: both versions of MQTT.

#![no_main]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "whole files of the product are compiled in here, and a target calls a part of each"
)]

// The codec is private to `mqtt`; its file and those it names are compiled here.
#[path = "../../crates/mqtt/src/codec.rs"]
mod codec;
#[path = "../../crates/mqtt/src/options.rs"]
mod options;
#[path = "../../crates/mqtt/src/reason.rs"]
mod reason;
#[path = "../../crates/mqtt/src/tls.rs"]
mod tls;
#[path = "../../crates/mqtt/src/url.rs"]
mod url;

use bytes::{Bytes, BytesMut};
use codec::{Codec, Properties, Protocol, Publish, Received};
use fuzz::Reader;
use libfuzzer_sys::fuzz_target;
use options::Qos;

const MAX_PACKET: usize = 4_096;

/// Everything that a session would take from `pieces`, and how it would end.
fn decode(codec: &Codec, pieces: &[&[u8]]) -> (Vec<String>, Option<String>) {
    let (mut taken, mut buffer) = (Vec::new(), BytesMut::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            let before = buffer.len();
            match codec.decode(&mut buffer) {
                Ok(Some(packet)) => {
                    assert!(buffer.len() < before, "a packet takes its bytes along");
                    taken.push(format!("{packet:?}"));
                    if let Received::Refused(_) = packet {
                        return (taken, None); // The session ends here.
                    }
                }
                Ok(None) => break,
                Err(reason) => return (taken, Some(format!("{reason:?}"))),
            }
        }
        assert!(
            buffer.len() <= MAX_PACKET + 5,
            "no more is kept than one packet"
        );
    }
    (taken, None)
}

/// What we publish is what another client would receive.
fn publish(codec: &Codec, reader: &mut Reader<'_>) {
    let (how, topic) = (reader.byte(), String::from_utf8_lossy(reader.sized()));
    let qos = match how & 1 {
        0 => Qos::AtMostOnce,
        _ => Qos::AtLeastOnce,
    };
    if topic.is_empty() || topic.contains(['+', '#', '\0']) {
        return; // `Publisher::publish` has refused it.
    }
    let sent = Publish {
        topic: topic.as_ref().into(),
        payload: Bytes::copy_from_slice(reader.sized()),
        qos,
        retain: how & 2 != 0,
        properties: properties(how, reader),
    };
    let packet_id = reader.short().max(1);
    let mut bytes = BytesMut::new();
    if codec.publish(&sent, packet_id, &mut bytes).is_err() {
        assert!(bytes.is_empty(), "a refused packet leaves no bytes behind");
        return;
    }
    if bytes.len() > MAX_PACKET {
        return;
    }
    let received = codec.decode(&mut bytes);
    let Ok(Some(Received::Publish {
        topic,
        payload,
        retain,
        properties,
        packet_id: id,
    })) = received
    else {
        panic!("a publish that was sent is not received: {received:?}");
    };
    assert_eq!((&*topic, &payload), (&*sent.topic, &sent.payload));
    assert_eq!(retain, sent.retain);
    let expected = match codec.protocol {
        Protocol::V5 => sent.properties,
        Protocol::V311 => Properties::default(),
    };
    assert_eq!(properties, expected);
    assert_eq!(id, (qos == Qos::AtLeastOnce).then_some(packet_id));
    assert!(bytes.is_empty());
}

/// `Publisher::publish_with` has refused a response topic that is none.
fn properties(how: u8, reader: &mut Reader<'_>) -> Properties {
    let response_topic = (how & 4 != 0).then(|| String::from_utf8_lossy(reader.sized()));
    let response_topic =
        response_topic.filter(|topic| !topic.is_empty() && !topic.contains(['+', '#', '\0']));
    Properties {
        response_topic: response_topic.map(|topic| topic.into_owned()),
        correlation_data: (how & 8 != 0).then(|| Bytes::copy_from_slice(reader.sized())),
    }
}

fuzz_target!(|data: &[u8]| {
    let mut reader = Reader::new(data);
    let how = reader.byte();
    let codec = Codec {
        protocol: match how & 1 {
            0 => Protocol::V5,
            _ => Protocol::V311,
        },
        max_incoming: MAX_PACKET,
    };
    if how & 0xf0 == 0xf0 {
        return publish(&codec, &mut reader);
    }
    let cut = usize::from(reader.short());
    let bytes = reader.rest();
    let whole = decode(&codec, &[bytes]);
    let (first, second) = bytes.split_at(cut.min(bytes.len()));
    assert_eq!(
        decode(&codec, &[first, second]),
        whole,
        "however it was cut"
    );
});
