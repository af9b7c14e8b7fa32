//! Sealed frames, opened as `docs/wire.md` says and not by the code that sealed them, so that the
//! judge hears what nodes say under a key too.

use std::collections::BTreeMap;

use bytes::Bytes;
use replica::{ClusterKey, HEADER, Name, Publish};
use ring::{aead, hkdf};

/// Where cluster id, node key and incarnation stand in a header: with the sender's name they make
/// the key of its frames.
const SPEAKER: std::ops::Range<usize> = 2..42;

/// Processes whose keys are kept at once.
const KEPT: usize = 64;

const CHECKSUM: usize = 4;

/// Opens the frames of every process.
#[derive(Default)]
pub(crate) struct Unsealer {
    /// `None`: frames are not sealed.
    cluster_key: Option<Vec<u8>>,
    frame_keys: BTreeMap<Vec<u8>, aead::LessSafeKey>,
    body: Vec<u8>,
}

impl Unsealer {
    pub(crate) fn new(key: Option<&ClusterKey>) -> Unsealer {
        Unsealer {
            cluster_key: key.map(bytes),
            ..Unsealer::default()
        }
    }

    /// The body of a frame that a process of this name publishes; `None` if it is no frame.
    ///
    /// # Panics
    /// If it is a frame and not sealed as it should be.
    pub(crate) fn body<'a>(&'a mut self, from: &Name, publish: &'a Publish) -> Option<&'a [u8]> {
        let Publish { topic, payload, .. } = publish;
        let (_, address) = topic.split_once("/rpc/")?;
        if self.cluster_key.is_none() {
            let end = payload.len().checked_sub(CHECKSUM)?;
            return payload.get(HEADER..end);
        }
        let (to, _) = address.split_once('/')?;
        self.open(from.as_str(), to, payload);
        Some(&self.body)
    }

    fn open(&mut self, from: &str, to: &str, payload: &Bytes) {
        let (header, sealed) = payload.split_at(HEADER);
        let mut associated = header.to_vec();
        for name in [from, to] {
            associated.push(name.len() as u8);
            associated.extend_from_slice(name.as_bytes());
        }
        let mut nonce = [0; aead::NONCE_LEN];
        nonce[4..].copy_from_slice(&header[42..50]);
        self.body.clear();
        self.body.extend_from_slice(sealed);
        let mut body = std::mem::take(&mut self.body);
        let opened = self.frame_key(&header[SPEAKER], from).open_in_place(
            aead::Nonce::assume_unique_for_key(nonce),
            aead::Aad::from(associated),
            &mut body,
        );
        let length = opened.expect("a frame is sealed as documented").len();
        body.truncate(length);
        self.body = body;
    }

    fn frame_key(&mut self, speaker: &[u8], from: &str) -> &aead::LessSafeKey {
        let known = [speaker, from.as_bytes()].concat();
        if self.frame_keys.len() >= KEPT && !self.frame_keys.contains_key(&known) {
            self.frame_keys.clear();
        }
        let cluster_key = self.cluster_key.as_ref().expect("frames are sealed");
        self.frame_keys
            .entry(known)
            .or_insert_with(|| derive(cluster_key, speaker, from))
    }
}

impl std::fmt::Debug for Unsealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Unsealer(keys of {} processes)", self.frame_keys.len())
    }
}

/// The bytes of a key, from the line that stands in a key file.
fn bytes(key: &ClusterKey) -> Vec<u8> {
    let text = key.to_text();
    let (_, digits) = text.split_once(':').expect("a prefix and the digits");
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("two digits");
    (0..digits.len()).step_by(2).map(byte).collect()
}

fn derive(cluster_key: &[u8], speaker: &[u8], from: &str) -> aead::LessSafeKey {
    let (cluster, process) = speaker.split_at(8);
    let length = [from.len() as u8];
    let info = [b"frame", cluster, &length, from.as_bytes(), process];
    let mut bytes = [0; 32];
    hkdf::Salt::new(hkdf::HKDF_SHA256, b"raft-over-mqtt 1")
        .extract(cluster_key)
        .expand(&info, hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut bytes))
        .expect("32 bytes are within what HKDF yields");
    let key = aead::UnboundKey::new(&aead::CHACHA20_POLY1305, &bytes);
    aead::LessSafeKey::new(key.expect("ChaCha20 takes 32 bytes"))
}

#[cfg(test)]
mod tests {
    use raft::Time;
    use replica::{Client, ClientEffect, ClientInput, KeyRing};

    use super::*;

    #[test]
    fn what_a_process_seals_is_read() {
        let key = ClusterKey::from_bytes([7; 32]);
        let ring = KeyRing::of(key.clone());
        let cluster = Name::new("plant").expect("a name");
        let client = Client::new("raft", &cluster, ring, [1; 32], Time(0));
        let effects = client
            .expect("a good prefix")
            .step([ClientInput::Connected], Time(0));
        let Some(ClientEffect::Publish(publish)) = effects.first() else {
            panic!("a client asks who is there");
        };
        let (_, from) = publish.topic.rsplit_once('/').expect("levels");
        let from = Name::new(from).expect("a name");
        let mut unsealer = Unsealer::new(Some(&key));
        let mut body = minicbor::Decoder::new(unsealer.body(&from, publish).expect("a frame"));
        const HELLO: u32 = 2;
        assert!(body.array().is_ok_and(|fields| fields.is_some()));
        assert_eq!(body.u32().expect("the kind"), HELLO);
    }
}
