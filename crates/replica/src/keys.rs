//! The cluster key and what is derived from it.
//!
//! ```text
//! cluster key ─┬─ HKDF(cluster id, sender, node key, incarnation) ─► frame key of one process
//!              └─ HKDF("presence")                                ─► tags of births and wills
//! ```
//!
//! A shared key keeps everyone out who does not hold it, the broker included. It does not protect
//! against a member: whoever holds it can speak as any node.

use std::fmt;

use raft::NodeKey;
use ring::{aead, digest, hkdf, hmac};

use crate::name::Name;

/// Bytes of a cluster key.
pub const KEY_BYTES: usize = 32;

/// What a key file begins with.
const KEY_PREFIX: &str = "mqraft-key-1:";

/// The secret that the members of one cluster share.
#[derive(Clone)]
pub struct ClusterKey {
    bytes: [u8; KEY_BYTES],
    id: KeyId,
}

/// Says under which key a frame is sealed; zero means under none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KeyId(pub(crate) u8);

/// Frames without a key: a checksum instead of a seal.
pub(crate) const INSECURE: KeyId = KeyId(0);

/// Why a text is no cluster key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It does not begin as a key file does.
    #[error(
        "not a cluster key: a key file holds a line that begins with {KEY_PREFIX:?}; make one with `mqraft keygen`"
    )]
    Prefix,
    /// It is not 32 bytes of hexadecimal.
    #[error("a damaged cluster key: {KEY_PREFIX:?} is followed by {} hexadecimal digits", 2 * KEY_BYTES)]
    Digits,
}

impl ClusterKey {
    /// The key with these bytes, which must come from a cryptographic random source.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> ClusterKey {
        let digest = digest::digest(&digest::SHA256, &[b"key id", &bytes[..]].concat());
        // Zero is taken: it means no key.
        let id = KeyId(digest.as_ref()[0].max(1));
        ClusterKey { bytes, id }
    }

    /// Reads a key as [`ClusterKey::to_text`] writes it; surrounding white space is allowed.
    ///
    /// # Errors
    /// [`KeyError`] says what is wrong with it.
    pub fn parse(text: &str) -> Result<ClusterKey, KeyError> {
        let digits = text
            .trim()
            .strip_prefix(KEY_PREFIX)
            .ok_or(KeyError::Prefix)?;
        let bytes = hex_decode(digits).ok_or(KeyError::Digits)?;
        Ok(ClusterKey::from_bytes(
            bytes.try_into().map_err(|_| KeyError::Digits)?,
        ))
    }

    /// Stands in the clear on every frame that is sealed under it: tells keys apart, one in 255 times
    /// not.
    pub fn id(&self) -> u8 {
        self.id.0
    }

    /// The key as it stands in a key file.
    pub fn to_text(&self) -> String {
        format!("{KEY_PREFIX}{}", hex(&self.bytes))
    }

    fn derive(&self, info: &[&[u8]]) -> [u8; 32] {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"raft-over-mqtt 1");
        let mut out = [0; 32];
        salt.extract(&self.bytes)
            .expand(info, hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut out))
            .expect("32 bytes are within what HKDF yields");
        out
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterKey(id {})", self.id.0)
    }
}

/// The keys that a node accepts; the first is the one it seals with. Empty: insecure.
#[derive(Clone, Debug, Default)]
pub struct KeyRing {
    keys: Vec<ClusterKey>,
}

impl KeyRing {
    /// Frames carry a checksum only: for a loopback broker.
    pub fn insecure() -> KeyRing {
        KeyRing::default()
    }

    /// Seals with `key`.
    pub fn of(key: ClusterKey) -> KeyRing {
        KeyRing { keys: vec![key] }
    }

    /// Accepts `key` too, while it is being replaced.
    pub fn also(mut self, key: ClusterKey) -> KeyRing {
        self.keys.push(key);
        self
    }

    /// Those of these keys that are not among `others`.
    pub(crate) fn without(&self, others: &KeyRing) -> KeyRing {
        let kept = |key: &&ClusterKey| others.keys.iter().all(|other| other.bytes != key.bytes);
        let keys = self.keys.iter().filter(kept).cloned().collect();
        KeyRing { keys }
    }

    /// What tells the keys apart, see [`ClusterKey::id`]; the first is the one that seals.
    pub fn ids(&self) -> Vec<u8> {
        self.keys.iter().map(ClusterKey::id).collect()
    }

    /// Whether frames carry a checksum only.
    pub fn is_insecure(&self) -> bool {
        self.keys.is_empty()
    }

    pub(crate) fn sealing(&self) -> Option<&ClusterKey> {
        self.keys.first()
    }

    pub(crate) fn sealing_id(&self) -> KeyId {
        self.sealing().map_or(INSECURE, |key| key.id)
    }

    /// The keys under which a frame may be sealed, two of a ring by chance sharing an id.
    /// `None`: insecure, and allowed.
    pub(crate) fn find(&self, id: KeyId) -> impl Iterator<Item = Option<&ClusterKey>> {
        let insecure = (id == INSECURE && self.keys.is_empty()).then_some(None);
        let keys = self.keys.iter().filter(move |key| key.id == id);
        insecure.into_iter().chain(keys.map(Some))
    }

    /// The tag of a birth or a will, under the key that seals.
    pub(crate) fn tag(&self, message: &[u8]) -> String {
        tag(&presence_key(self.sealing()), message)
    }

    /// Whether `claimed` is the tag of `message` under any of the keys.
    pub(crate) fn verify(&self, message: &[u8], claimed: &str) -> bool {
        let fits = |key| equal(&tag(&presence_key(key), message), claimed);
        match self.keys.as_slice() {
            [] => fits(None),
            keys => keys.iter().any(|key| fits(Some(key))),
        }
    }
}

impl From<ClusterKey> for KeyRing {
    fn from(key: ClusterKey) -> KeyRing {
        KeyRing::of(key)
    }
}

/// Without a key: insecure.
impl From<Option<ClusterKey>> for KeyRing {
    fn from(key: Option<ClusterKey>) -> KeyRing {
        key.map_or_else(KeyRing::insecure, KeyRing::of)
    }
}

/// What births and wills are tagged with; all zero without a key.
fn presence_key(key: Option<&ClusterKey>) -> [u8; 32] {
    key.map_or([0; 32], |key| key.derive(&[b"presence"]))
}

fn tag(key: &[u8; 32], message: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    hex(&tag.as_ref()[..16])
}

/// Compares without telling by its duration how much of a guess was right.
fn equal(a: &str, b: &str) -> bool {
    let differing = a.bytes().zip(b.bytes()).fold(0, |or, (a, b)| or | (a ^ b));
    a.len() == b.len() && differing == 0
}

/// 128 random bits drawn at each start of a process: with the sequence they make every frame
/// of a key unique.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub [u8; 16]);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0[..4]))
    }
}

/// Which cluster a frame belongs to: prefix, name and, once formed, who formed it. Two clusters
/// on one broker, or one that was formed anew under its old name, never take each other's frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterId(pub [u8; 8]);

impl ClusterId {
    /// The id below `root` (`<prefix>/<cluster>`), of the formation with this digest, or of the
    /// lobby where nodes meet before they know of one.
    pub(crate) fn new(root: &str, formation: Option<&[u8; 32]>) -> ClusterId {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"cluster id");
        context.update(&(root.len() as u64).to_be_bytes());
        context.update(root.as_bytes());
        context.update(formation.map_or(&[], |digest| &digest[..]));
        let digest = context.finish();
        ClusterId(digest.as_ref()[..8].try_into().expect("eight of 32 bytes"))
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// The frame key of one sending process in one cluster.
pub(crate) fn frame_key(
    key: &ClusterKey,
    cluster: ClusterId,
    sender: &Name,
    node_key: NodeKey,
    incarnation: Incarnation,
) -> aead::LessSafeKey {
    let length = [sender.as_str().len() as u8];
    let bytes = key.derive(&[
        b"frame",
        &cluster.0,
        &length,
        sender.as_str().as_bytes(),
        &node_key.to_bytes(),
        &incarnation.0,
    ]);
    let key = aead::UnboundKey::new(&aead::CHACHA20_POLY1305, &bytes);
    aead::LessSafeKey::new(key.expect("ChaCha20 takes 32 bytes"))
}

/// SHA-256 of `bytes`.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 yields 32 bytes")
}

/// Unpredictable numbers from one seed: challenges and the like.
pub(crate) struct Nonces {
    key: hmac::Key,
    drawn: u64,
}

impl Nonces {
    pub(crate) fn new(seed: &[u8; 32]) -> Nonces {
        Nonces {
            key: hmac::Key::new(hmac::HMAC_SHA256, seed),
            drawn: 0,
        }
    }

    pub(crate) fn draw(&mut self) -> u64 {
        self.drawn += 1;
        let tag = hmac::sign(&self.key, &self.drawn.to_be_bytes());
        u64::from_be_bytes(tag.as_ref()[..8].try_into().expect("eight of 32 bytes"))
    }

    /// What the processes of `peer` are to echo in this stretch of time, to follow `admitted`.
    /// Computed, not remembered, so that no flood of replayed frames makes us forget what we
    /// asked.
    pub(crate) fn challenge(
        &self,
        peer: NodeKey,
        admitted: Option<Incarnation>,
        stretch: u64,
    ) -> u64 {
        let admitted = admitted.map_or([0; 16], |admitted| admitted.0);
        let stretch = stretch.to_be_bytes();
        let message = [b"challenge", &peer.to_bytes()[..], &admitted, &stretch].concat();
        let tag = hmac::sign(&self.key, &message);
        u64::from_be_bytes(tag.as_ref()[..8].try_into().expect("eight of 32 bytes"))
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn hex_decode(digits: &str) -> Option<Vec<u8>> {
    // Parsing a number by itself would take `+a` for ten.
    let all_digits = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if !all_digits || !digits.len().is_multiple_of(2) {
        return None;
    }
    let pair = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    (0..digits.len()).step_by(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_from_their_text() {
        let key = ClusterKey::from_bytes([7; KEY_BYTES]);
        let text = key.to_text();
        assert_eq!(
            ClusterKey::parse(&format!("{text}\n")).unwrap().bytes,
            key.bytes
        );
        assert_eq!(ClusterKey::parse("hunter2").unwrap_err(), KeyError::Prefix);
        assert_eq!(
            ClusterKey::parse(&text[..text.len() - 2]).unwrap_err(),
            KeyError::Digits
        );
        assert_eq!(
            ClusterKey::parse(&text.replace('7', "x")).unwrap_err(),
            KeyError::Digits
        );
        assert!(!format!("{key:?}").contains("0707"), "a key is never shown");
    }

    /// Fuzzing, `names`: a sign in a digit's place was read as a zero, so that a damaged key file
    /// was taken for another key.
    #[test]
    fn a_sign_is_no_digit() {
        let text = ClusterKey::from_bytes([0x0a; KEY_BYTES]).to_text();
        let damaged = text.replacen("0a0a", "0a+a", 1);
        assert_eq!(ClusterKey::parse(&damaged).unwrap_err(), KeyError::Digits);
    }

    /// With a key, nothing unsealed is taken; without one, nothing sealed.
    #[test]
    fn a_ring_takes_only_its_own_kind() {
        let key = ClusterKey::from_bytes([1; KEY_BYTES]);
        let ring = KeyRing::of(key.clone());
        assert_eq!(ring.find(INSECURE).count(), 0);
        assert_eq!(ring.find(key.id).count(), 1);
        assert_eq!(KeyRing::insecure().find(key.id).count(), 0);
        assert_eq!(KeyRing::insecure().find(INSECURE).count(), 1);
    }
}
