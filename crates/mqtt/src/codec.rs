//! Both versions of MQTT behind one set of packets: those that a client at QoS 0 and 1 exchanges.
//!
//! The library's codecs do the bytes. What remains here is the union of the two versions and
//! their reason codes in our words. Nothing from outside may panic here: the test below feeds
//! mutated packets.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rumqttc_v4::mqttbytes as m4;
use rumqttc_v5::mqttbytes as m5;

use crate::options::{Credentials, Qos, Will};
use crate::reason::DisconnectReason;

use m4::v4 as v311;
use m5::v5;

/// How many QoS 1 publishes the broker may have outstanding towards us (MQTT 5).
const RECEIVE_MAXIMUM: u16 = 256;

/// The protocol version of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    V5,
    V311,
}

impl Protocol {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V5 => "5",
            Self::V311 => "3.1.1",
        }
    }
}

pub(crate) struct Codec {
    pub(crate) protocol: Protocol,
    /// The largest packet accepted.
    pub(crate) max_incoming: usize,
}

/// What CONNECT says.
pub(crate) struct Connect<'a> {
    pub(crate) client_id: &'a str,
    pub(crate) will: Option<&'a Will>,
    pub(crate) credentials: Option<&'a Credentials>,
    pub(crate) keep_alive_secs: u16,
}

/// A publish on its way out.
#[derive(Debug)]
pub(crate) struct Publish {
    pub(crate) topic: Arc<str>,
    pub(crate) payload: Bytes,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    pub(crate) properties: Properties,
}

/// What makes a message a request or the answer to one [MQTT 5, 4.10]. MQTT 3.1.1 has none of it:
/// there it is not sent, and what comes has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// Where the answer is to go. A claim of the sender: check it before you publish there.
    pub response_topic: Option<String>,
    /// By which the sender of a request knows its answer.
    pub correlation_data: Option<Bytes>,
}

impl Properties {
    /// What they add to a packet at most, with a byte of kind and two of length each.
    pub(crate) fn size(&self) -> usize {
        let topic = self
            .response_topic
            .as_ref()
            .map_or(0, |topic| topic.len() + 3);
        let data = self
            .correlation_data
            .as_ref()
            .map_or(0, |data| data.len() + 3);
        topic + data
    }

    fn of_v5(properties: Option<v5::PublishProperties>) -> Properties {
        let properties = properties.unwrap_or_default();
        Properties {
            response_topic: properties.response_topic,
            correlation_data: properties.correlation_data,
        }
    }

    fn to_v5(&self) -> Option<v5::PublishProperties> {
        if *self == Properties::default() {
            return None;
        }
        Some(v5::PublishProperties {
            response_topic: self.response_topic.clone(),
            correlation_data: self.correlation_data.clone(),
            ..v5::PublishProperties::default()
        })
    }
}

/// A packet from the broker.
#[derive(Debug)]
pub(crate) enum Received {
    ConnAck(Accepted),
    Refused(Refusal),
    Publish {
        topic: String,
        payload: Bytes,
        retain: bool,
        properties: Properties,
        /// At QoS 1: the id to acknowledge.
        packet_id: Option<u16>,
    },
    PubAck {
        packet_id: u16,
        /// In words, if the broker did not take the message.
        refused: Option<String>,
    },
    SubAck {
        packet_id: u16,
        /// For each filter, whether it was granted.
        granted: Vec<bool>,
    },
    PingResp,
    Disconnect(Closing),
}

/// What the broker allows us, from its CONNACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// QoS 1 publishes that may be unacknowledged.
    pub(crate) receive_maximum: u16,
    pub(crate) max_packet: Option<usize>,
    pub(crate) max_qos: Qos,
    /// Overrides our keep alive.
    pub(crate) keep_alive_secs: Option<u16>,
}

/// Why the broker refused CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Version,
    ClientId,
    Credentials,
    NotAuthorised,
    Other(String),
}

/// Why the broker sent DISCONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    TakenOver,
    PacketTooLarge,
    NotAuthorised,
    Other(String),
}

impl Codec {
    /// Takes the next whole packet from the front of `buffer`, if it is all there.
    pub(crate) fn decode(
        &self,
        buffer: &mut BytesMut,
    ) -> Result<Option<Received>, DisconnectReason> {
        if self.protocol == Protocol::V5 && is_v311_version_refusal(buffer) {
            buffer.clear();
            return Ok(Some(Received::Refused(Refusal::Version)));
        }
        if self.protocol == Protocol::V5 {
            complete_disconnect(buffer);
        }
        // The library says `InsufficientBytes` of a packet that has not all arrived, which stays in
        // the buffer, and of a whole packet too short for its fields, which is taken out.
        let before = buffer.len();
        match self.protocol {
            Protocol::V5 => {
                let max = u32::try_from(self.max_incoming).unwrap_or(u32::MAX);
                match v5::Packet::read(buffer, Some(max)) {
                    Ok(packet) => received_v5(packet).map(Some),
                    Err(m5::Error::InsufficientBytes(_)) if buffer.len() == before => Ok(None),
                    Err(m5::Error::PayloadSizeLimitExceeded { pkt_size, max }) => {
                        Err(DisconnectReason::PacketTooLarge {
                            size: pkt_size,
                            max: max as usize,
                        })
                    }
                    Err(error) => Err(protocol_error(error)),
                }
            }
            Protocol::V311 => match v311::Packet::read(buffer, self.max_incoming) {
                Ok(packet) => received_v311(packet).map(Some),
                Err(m4::Error::InsufficientBytes(_)) if buffer.len() == before => Ok(None),
                Err(m4::Error::PayloadSizeLimitExceeded(size)) => {
                    Err(DisconnectReason::PacketTooLarge {
                        size,
                        max: self.max_incoming,
                    })
                }
                Err(error) => Err(protocol_error(error)),
            },
        }
    }

    /// Clean start, and a session that ends with the connection (the default in MQTT 5).
    pub(crate) fn connect(
        &self,
        connect: &Connect<'_>,
        out: &mut BytesMut,
    ) -> Result<(), DisconnectReason> {
        match self.protocol {
            Protocol::V5 => self.encode_v5(&connect_v5(connect, self.max_incoming), out),
            Protocol::V311 => self.encode_v311(&connect_v311(connect), out),
        }
    }

    pub(crate) fn subscribe(
        &self,
        packet_id: u16,
        filters: &[(String, Qos)],
        no_local: &[String],
        out: &mut BytesMut,
    ) -> Result<(), DisconnectReason> {
        match self.protocol {
            Protocol::V5 => {
                let filters = filters.iter().map(|(filter, qos)| {
                    let mut subscription = v5::SubscribeFilter::new(filter, qos_v5(*qos));
                    subscription.nolocal = no_local.contains(filter);
                    subscription
                });
                let mut subscribe = v5::Subscribe::new_many(filters, None);
                subscribe.pkid = packet_id;
                self.encode_v5(&v5::Packet::Subscribe(subscribe), out)
            }
            Protocol::V311 => {
                let filters = filters.iter().map(|(filter, qos)| {
                    v311::SubscribeFilter::new(filter.clone(), qos_v311(*qos))
                });
                let mut subscribe = v311::Subscribe::new_many(filters);
                subscribe.pkid = packet_id;
                self.encode_v311(&v311::Packet::Subscribe(subscribe), out)
            }
        }
    }

    /// `packet_id` is not 0 at QoS 1 and ignored at QoS 0.
    pub(crate) fn publish(
        &self,
        publish: &Publish,
        packet_id: u16,
        out: &mut BytesMut,
    ) -> Result<(), DisconnectReason> {
        let topic = Bytes::copy_from_slice(publish.topic.as_bytes());
        match self.protocol {
            Protocol::V5 => {
                let packet = v5::Publish {
                    dup: false,
                    qos: qos_v5(publish.qos),
                    retain: publish.retain,
                    topic,
                    pkid: packet_id,
                    payload: publish.payload.clone(),
                    properties: publish.properties.to_v5(),
                };
                self.encode_v5(&v5::Packet::Publish(packet), out)
            }
            Protocol::V311 => {
                let packet = v311::Publish {
                    dup: false,
                    qos: qos_v311(publish.qos),
                    retain: publish.retain,
                    topic,
                    pkid: packet_id,
                    payload: publish.payload.clone(),
                };
                self.encode_v311(&v311::Packet::Publish(packet), out)
            }
        }
    }

    pub(crate) fn puback(
        &self,
        packet_id: u16,
        out: &mut BytesMut,
    ) -> Result<(), DisconnectReason> {
        match self.protocol {
            Protocol::V5 => {
                self.encode_v5(&v5::Packet::PubAck(v5::PubAck::new(packet_id, None)), out)
            }
            Protocol::V311 => {
                self.encode_v311(&v311::Packet::PubAck(v311::PubAck::new(packet_id)), out)
            }
        }
    }

    pub(crate) fn pingreq(&self, out: &mut BytesMut) {
        out.extend_from_slice(&[0xC0, 0]);
    }

    /// Normal disconnection: the broker drops the will. The same two bytes in both versions.
    pub(crate) fn disconnect(&self, out: &mut BytesMut) {
        out.extend_from_slice(&[0xE0, 0]);
    }

    /// The library writes a packet's head before it checks the rest, so a refused packet is cut
    /// off again: half a packet would garble all that follow.
    fn encode_v5(&self, packet: &v5::Packet, out: &mut BytesMut) -> Result<(), DisconnectReason> {
        let before = out.len();
        packet.write(out, None).map(|_| ()).map_err(|error| {
            out.truncate(before);
            invalid(error)
        })
    }

    fn encode_v311(
        &self,
        packet: &v311::Packet,
        out: &mut BytesMut,
    ) -> Result<(), DisconnectReason> {
        let before = out.len();
        packet.write(out, usize::MAX).map(|_| ()).map_err(|error| {
            out.truncate(before);
            invalid(error)
        })
    }
}

/// A broker of 3.1.1 only answers a CONNECT of version 5 in its own format, which is no MQTT 5
/// packet: CONNACK, two bytes, return code 1.
fn is_v311_version_refusal(buffer: &BytesMut) -> bool {
    matches!(buffer[..], [0x20, 0x02, _, 0x01, ..])
}

/// A DISCONNECT may end after its reason code, and means the same as with an empty list of properties
/// [MQTT-3.14.2.2.1], which the library does not expect.
fn complete_disconnect(buffer: &mut BytesMut) {
    if matches!(buffer[..], [0xE0, 0x01, _, ..]) {
        let rest = buffer.split_off(3);
        buffer[1] = 0x02;
        buffer.extend_from_slice(&[0]);
        buffer.unsplit(rest);
    }
}

fn connect_v5(connect: &Connect<'_>, max_packet: usize) -> v5::Packet {
    let will = connect.will.map(|will| v5::LastWill {
        topic: Bytes::copy_from_slice(will.topic.as_bytes()),
        message: will.payload.clone(),
        qos: qos_v5(will.qos),
        retain: will.retain,
        properties: None,
    });
    let auth = match connect.credentials {
        Some(credentials) => v5::ConnectAuth::UsernamePassword {
            username: credentials.username().to_owned(),
            password: Bytes::copy_from_slice(credentials.password().as_bytes()),
        },
        None => v5::ConnectAuth::None,
    };
    let mut properties = v5::ConnectProperties::new();
    properties.receive_maximum = Some(RECEIVE_MAXIMUM);
    properties.max_packet_size = u32::try_from(max_packet).ok();
    let packet = v5::Connect {
        keep_alive: connect.keep_alive_secs,
        client_id: connect.client_id.to_owned(),
        clean_start: true,
        properties: Some(properties),
    };
    v5::Packet::Connect(packet, will, auth)
}

fn connect_v311(connect: &Connect<'_>) -> v311::Packet {
    let mut packet = v311::Connect::new(connect.client_id);
    packet.keep_alive = connect.keep_alive_secs;
    packet.clean_session = true;
    packet.last_will = connect.will.map(|will| v311::LastWill {
        topic: will.topic.clone(),
        message: will.payload.clone(),
        qos: qos_v311(will.qos),
        retain: will.retain,
    });
    if let Some(credentials) = connect.credentials {
        let password = Bytes::copy_from_slice(credentials.password().as_bytes());
        packet.set_credentials(credentials.username(), password);
    }
    v311::Packet::Connect(packet)
}

fn received_v5(packet: v5::Packet) -> Result<Received, DisconnectReason> {
    Ok(match packet {
        v5::Packet::ConnAck(connack) => connack_v5(connack),
        v5::Packet::Publish(publish) => Received::Publish {
            packet_id: packet_id(
                publish.qos == m5::QoS::AtLeastOnce,
                publish.qos == m5::QoS::ExactlyOnce,
                publish.pkid,
            )?,
            topic: topic(&publish.topic)?,
            payload: publish.payload,
            retain: publish.retain,
            properties: Properties::of_v5(publish.properties),
        },
        v5::Packet::PubAck(ack) => Received::PubAck {
            packet_id: ack.pkid,
            refused: match ack.reason {
                v5::PubAckReason::Success | v5::PubAckReason::NoMatchingSubscribers => None,
                reason => Some(words(&reason)),
            },
        },
        v5::Packet::SubAck(ack) => Received::SubAck {
            packet_id: ack.pkid,
            granted: ack
                .return_codes
                .iter()
                .map(|code| matches!(code, v5::SubscribeReasonCode::Success(_)))
                .collect(),
        },
        v5::Packet::PingResp => Received::PingResp,
        v5::Packet::Disconnect(disconnect) => Received::Disconnect(match disconnect.reason_code {
            v5::DisconnectReasonCode::SessionTakenOver => Closing::TakenOver,
            v5::DisconnectReasonCode::PacketTooLarge => Closing::PacketTooLarge,
            v5::DisconnectReasonCode::NotAuthorized => Closing::NotAuthorised,
            other => Closing::Other(words(&other)),
        }),
        other => return Err(unexpected(&other.packet_type())),
    })
}

fn connack_v5(connack: v5::ConnAck) -> Received {
    use v5::ConnectReturnCode as Code;
    let refusal = match connack.code {
        Code::Success => {
            let properties = connack.properties.as_ref();
            return Received::ConnAck(Accepted {
                // Zero is a protocol error; one at a time is the careful reading of it.
                receive_maximum: properties
                    .and_then(|properties| properties.receive_max)
                    .unwrap_or(u16::MAX)
                    .max(1),
                max_packet: properties
                    .and_then(|properties| properties.max_packet_size)
                    .map(|size| size as usize),
                max_qos: match properties.and_then(|properties| properties.max_qos) {
                    Some(0) => Qos::AtMostOnce,
                    _ => Qos::AtLeastOnce,
                },
                keep_alive_secs: properties.and_then(|properties| properties.server_keep_alive),
            });
        }
        Code::RefusedProtocolVersion | Code::UnsupportedProtocolVersion => Refusal::Version,
        Code::BadClientId | Code::ClientIdentifierNotValid => Refusal::ClientId,
        Code::BadUserNamePassword | Code::BadAuthenticationMethod => Refusal::Credentials,
        Code::NotAuthorized | Code::Banned => Refusal::NotAuthorised,
        other => Refusal::Other(words(&other)),
    };
    Received::Refused(refusal)
}

fn received_v311(packet: v311::Packet) -> Result<Received, DisconnectReason> {
    use v311::ConnectReturnCode as Code;
    Ok(match packet {
        v311::Packet::ConnAck(connack) => match connack.code {
            Code::Success => Received::ConnAck(Accepted {
                receive_maximum: u16::MAX,
                max_packet: None,
                max_qos: Qos::AtLeastOnce,
                keep_alive_secs: None,
            }),
            Code::RefusedProtocolVersion => Received::Refused(Refusal::Version),
            Code::BadClientId => Received::Refused(Refusal::ClientId),
            Code::BadUserNamePassword => Received::Refused(Refusal::Credentials),
            Code::NotAuthorized => Received::Refused(Refusal::NotAuthorised),
            Code::ServiceUnavailable => Received::Refused(Refusal::Other(words(&connack.code))),
        },
        v311::Packet::Publish(publish) => Received::Publish {
            packet_id: packet_id(
                publish.qos == m4::QoS::AtLeastOnce,
                publish.qos == m4::QoS::ExactlyOnce,
                publish.pkid,
            )?,
            topic: topic(&publish.topic)?,
            payload: publish.payload,
            retain: publish.retain,
            properties: Properties::default(),
        },
        v311::Packet::PubAck(ack) => Received::PubAck {
            packet_id: ack.pkid,
            refused: None,
        },
        v311::Packet::SubAck(ack) => Received::SubAck {
            packet_id: ack.pkid,
            granted: ack
                .return_codes
                .iter()
                .map(|code| matches!(code, v311::SubscribeReasonCode::Success(_)))
                .collect(),
        },
        v311::Packet::PingResp => Received::PingResp,
        other => return Err(unexpected(&other.packet_type())),
    })
}

fn packet_id(
    at_least_once: bool,
    exactly_once: bool,
    id: u16,
) -> Result<Option<u16>, DisconnectReason> {
    if exactly_once {
        return Err(DisconnectReason::Protocol {
            detail: "a QoS 2 publish although none was subscribed to".to_owned(),
        });
    }
    Ok(at_least_once.then_some(id))
}

fn topic(bytes: &[u8]) -> Result<String, DisconnectReason> {
    match std::str::from_utf8(bytes) {
        Ok(topic) if !topic.is_empty() => Ok(topic.to_owned()),
        // We offer no topic aliases, so an empty topic stands for nothing.
        _ => Err(DisconnectReason::Protocol {
            detail: "a publish without a readable topic".to_owned(),
        }),
    }
}

fn qos_v5(qos: Qos) -> m5::QoS {
    match qos {
        Qos::AtMostOnce => m5::QoS::AtMostOnce,
        Qos::AtLeastOnce => m5::QoS::AtLeastOnce,
    }
}

fn qos_v311(qos: Qos) -> m4::QoS {
    match qos {
        Qos::AtMostOnce => m4::QoS::AtMostOnce,
        Qos::AtLeastOnce => m4::QoS::AtLeastOnce,
    }
}

/// `ServerShuttingDown` as "server shutting down".
fn words(code: &impl std::fmt::Debug) -> String {
    let mut words = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.push(letter.to_ascii_lowercase());
    }
    words
}

fn unexpected(packet: &impl std::fmt::Debug) -> DisconnectReason {
    DisconnectReason::Protocol {
        detail: format!("an unexpected packet, {}", words(packet)),
    }
}

fn protocol_error(error: impl std::fmt::Display) -> DisconnectReason {
    DisconnectReason::Protocol {
        detail: error.to_string().to_lowercase(),
    }
}

fn invalid(error: impl std::fmt::Display) -> DisconnectReason {
    DisconnectReason::InvalidSetup {
        detail: error.to_string().to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codec(protocol: Protocol) -> Codec {
        Codec {
            protocol,
            max_incoming: 4096,
        }
    }

    /// Valid packets that a broker sends, per version.
    fn seeds(protocol: Protocol) -> Vec<Vec<u8>> {
        let both: &[&[u8]] = &[
            &[0x40, 2, 0, 1],
            &[0xD0, 0],
            &[0x50, 2, 0, 1],
            &[0x62, 2, 0, 1],
        ];
        let v311: &[&[u8]] = &[
            &[0x20, 2, 0, 0],
            &[0x30, 5, 0, 1, b'a', 1, 2],
            &[0x32, 7, 0, 1, b'a', 0, 7, 1, 2],
            &[0x90, 3, 0, 1, 1],
        ];
        let v5: &[&[u8]] = &[
            &[0x20, 3, 0, 0, 0],
            &[0x20, 11, 0, 0, 8, 0x21, 0, 20, 0x22, 0, 10, 0x24, 1],
            &[0x20, 8, 0, 0, 5, 0x27, 0, 1, 0, 0],
            &[0x30, 6, 0, 1, b'a', 0, 1, 2],
            &[0x32, 8, 0, 1, b'a', 0, 7, 0, 1, 2],
            &[0x30, 13, 0, 1, b'a', 7, 0x26, 0, 1, b'k', 0, 1, b'v', 1, 2],
            &[0x40, 4, 0, 1, 0x87, 0],
            &[0x90, 4, 0, 1, 0, 1],
            &[0xE0, 2, 0x8E, 0],
            &[0xE0, 1, 0x8B],
            &[0xF0, 2, 0x18, 0],
        ];
        let own = if protocol == Protocol::V5 { v5 } else { v311 };
        both.iter().chain(own).map(|seed| seed.to_vec()).collect()
    }

    #[test]
    fn no_bytes_from_a_broker_panic_the_codec() {
        for protocol in [Protocol::V5, Protocol::V311] {
            let (codec, seeds) = (codec(protocol), seeds(protocol));
            let mut random = fastrand::Rng::with_seed(7);
            let mut decoded = 0;
            for _ in 0..60_000 {
                let mut bytes = BytesMut::new();
                for _ in 0..random.usize(1..4) {
                    let mut packet = seeds[random.usize(..seeds.len())].clone();
                    for _ in 0..random.usize(..4) {
                        match random.u8(..4) {
                            0 => {
                                let at = random.usize(..packet.len());
                                packet[at] = random.u8(..);
                            }
                            1 => {
                                let at = random.usize(..packet.len());
                                packet[at] ^= 1 << random.u8(..8);
                            }
                            2 => {
                                packet.push(random.u8(..));
                                packet[1] = packet[1].wrapping_add(1);
                            }
                            _ => {
                                packet.truncate(packet.len().max(3) - 1);
                                packet[1] = packet[1].wrapping_sub(1);
                            }
                        }
                    }
                    bytes.extend_from_slice(&packet);
                }
                while let Ok(Some(_)) = codec.decode(&mut bytes) {
                    decoded += 1;
                }
            }
            assert!(
                decoded > 10_000,
                "the mutations left too little to decode: {decoded}"
            );
        }
    }

    #[test]
    fn a_refused_packet_leaves_no_bytes_behind() {
        for protocol in [Protocol::V5, Protocol::V311] {
            let mut out = BytesMut::from(&b"before"[..]);
            let publish = Publish {
                topic: "a/#".into(),
                payload: Bytes::new(),
                qos: Qos::AtMostOnce,
                retain: false,
                properties: Properties::default(),
            };
            assert!(codec(protocol).publish(&publish, 0, &mut out).is_err());
            assert_eq!(&out[..], b"before");
        }
    }

    #[test]
    fn where_an_answer_goes_and_to_what_comes_as_it_was_said() {
        let publish = Publish {
            topic: "req/panel".into(),
            payload: "x".into(),
            qos: Qos::AtMostOnce,
            retain: false,
            properties: Properties {
                response_topic: Some("req/panel/answer".to_owned()),
                correlation_data: Some(Bytes::from_static(&[0, 0xFF])),
            },
        };
        for (protocol, expected) in [
            (Protocol::V5, publish.properties.clone()),
            (Protocol::V311, Properties::default()),
        ] {
            let codec = codec(protocol);
            let mut out = BytesMut::new();
            codec.publish(&publish, 0, &mut out).unwrap();
            assert!(out.len() <= "req/panel".len() + 1 + 16 + publish.properties.size());
            match codec.decode(&mut out).unwrap() {
                Some(Received::Publish { properties, .. }) => assert_eq!(properties, expected),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_311_broker_refusing_version_5_is_understood() {
        let mut bytes = BytesMut::from(&[0x20, 2, 0, 1][..]);
        let packet = codec(Protocol::V5).decode(&mut bytes).unwrap();
        assert!(matches!(packet, Some(Received::Refused(Refusal::Version))));
    }

    /// Mosquitto 2.0 says goodbye like this, and was told not to speak MQTT as it should.
    #[test]
    fn a_goodbye_of_a_reason_and_no_properties_is_understood() {
        let mut bytes = BytesMut::from(&[0xE0, 1, 0x8E, 0xD0, 0][..]);
        let codec = codec(Protocol::V5);
        let goodbye = codec.decode(&mut bytes).unwrap();
        assert!(
            matches!(goodbye, Some(Received::Disconnect(Closing::TakenOver))),
            "{goodbye:?}"
        );
        let next = codec.decode(&mut bytes).unwrap();
        assert!(matches!(next, Some(Received::PingResp)), "{next:?}");
        let mut half = BytesMut::from(&[0xE0, 1][..]);
        assert!(codec.decode(&mut half).unwrap().is_none());
    }

    #[test]
    fn a_whole_packet_too_short_for_its_fields_is_an_error_and_no_wait() {
        for protocol in [Protocol::V5, Protocol::V311] {
            let mut bytes = BytesMut::from(&[0x32, 4, 0, 1, b'a', 0][..]);
            assert!(codec(protocol).decode(&mut bytes).is_err());
            let mut bytes = BytesMut::from(&[0x32, 4, 0, 1][..]);
            assert!(codec(protocol).decode(&mut bytes).unwrap().is_none());
        }
    }

    #[test]
    fn an_oversize_packet_is_refused_by_its_head() {
        for protocol in [Protocol::V5, Protocol::V311] {
            let mut bytes = BytesMut::from(&[0x30, 0xFF, 0xFF, 0x7F][..]);
            let error = codec(protocol).decode(&mut bytes).unwrap_err();
            assert!(
                matches!(error, DisconnectReason::PacketTooLarge { max: 4096, .. }),
                "{error:?}"
            );
        }
    }
}
