//! A process that holds what it takes to be a member, and says what the fuzzer wants.
//!
//! Its frames are sealed by the code that seals a node's, around any body: the fuzzer's bytes get
//! past the checksum and the replay window, to where they are read.

use bytes::Bytes;
use raft::{Message, NodeKey};

use crate::frame::{Destination, HEADER, OLDEST, Sealer, VERSION};
use crate::keys::{ClusterId, Incarnation, KeyRing};
use crate::name::Name;
use crate::wire::{Body, Formation, Handshake, from_slice, to_vec};

/// Without a key a frame ends in a CRC-32.
const CHECKSUM: usize = 4;

/// Which of its two clusters a frame is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where everyone with the cluster's name may speak.
    Lobby,
    /// The formed cluster.
    Formed,
}

/// What a node said to a member that is of interest here.
#[derive(Debug)]
pub enum Heard {
    /// "Send this number back, and I admit you."
    Challenge(u64),
    /// Something about consensus.
    Consensus(Message),
}

/// One process of an insecure cluster.
pub struct Member {
    root: String,
    name: Name,
    key: NodeKey,
    incarnation: Incarnation,
    lobby: Sealer,
    formed: Sealer,
    sequence: u64,
}

impl Member {
    /// The process called `name`, whose key is `key`, of the cluster that `formation` (in CBOR)
    /// formed below `root`.
    pub fn new(root: &str, formation: &[u8], name: &str, key: NodeKey) -> Member {
        let formation: Formation = from_slice(formation).expect("a formation record");
        let name = Name::new(name).expect("a name");
        let incarnation = Incarnation([key.0 as u8; 16]);
        let sealer = |digest: Option<[u8; 32]>| {
            let cluster = ClusterId::new(root, digest.as_ref());
            Sealer::new(
                &KeyRing::insecure(),
                cluster,
                name.clone(),
                key,
                incarnation,
            )
        };
        Member {
            root: root.to_owned(),
            key,
            incarnation,
            lobby: sealer(None),
            formed: sealer(Some(formation.digest())),
            sequence: 0,
            name,
        }
    }

    /// The member's key.
    pub fn key(&self) -> NodeKey {
        self.key
    }

    /// The member's incarnation.
    pub fn incarnation(&self) -> [u8; 16] {
        self.incarnation.0
    }

    /// The member's name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Topic and payload of a frame around `body`, to the node called `to` or to all.
    pub fn frame(&mut self, place: Place, to: Option<&str>, body: &[u8]) -> (String, Bytes) {
        let sequence = self.sequence;
        self.sequence += 1;
        self.frame_with(place, to, body, sequence)
    }

    /// The same under any sequence number, whether or not it was used before.
    pub fn frame_with(
        &self,
        place: Place,
        to: Option<&str>,
        body: &[u8],
        sequence: u64,
    ) -> (String, Bytes) {
        let receiver = to.map(|to| Name::new(to).expect("a name"));
        let destination = receiver.as_ref().map_or(Destination::All, Destination::One);
        let (version, sealer) = match place {
            Place::Lobby => (OLDEST, &self.lobby),
            Place::Formed => (VERSION, &self.formed),
        };
        let payload = sealer.seal(version, sequence, destination, |out| {
            out.extend_from_slice(body)
        });
        let topic = format!("{}/rpc/{}/{}", self.root, to.unwrap_or("all"), self.name);
        (topic, payload)
    }

    /// Topic and payload of a message of consensus to the node called `to`.
    pub fn consensus(
        &mut self,
        to: &str,
        key: Option<NodeKey>,
        message: Message,
    ) -> (String, Bytes) {
        let body = to_vec(&Body::Consensus(message, key));
        self.frame(Place::Formed, Some(to), &body)
    }

    /// Topic and payload of the answer to a challenge of the node called `to`.
    pub fn echo(&mut self, to: &str, challenge: u64) -> (String, Bytes) {
        let body = to_vec(&Body::Handshake(Handshake {
            challenge: None,
            echo: Some(challenge),
            speaks: Some(VERSION),
        }));
        self.frame(Place::Lobby, Some(to), &body)
    }

    /// What a node's publish says to this member, if it is a frame for it.
    pub fn hear(&self, topic: &str, payload: &Bytes) -> Option<Heard> {
        let rest = topic.strip_prefix(&self.root)?.strip_prefix("/rpc/")?;
        let (to, _) = rest.split_once('/')?;
        if to != "all" && to != self.name.as_str() {
            return None;
        }
        let body = payload.get(HEADER..payload.len().checked_sub(CHECKSUM)?)?;
        match from_slice(body).expect("a node sends what can be read") {
            Body::Handshake(handshake) => handshake.challenge.map(Heard::Challenge),
            Body::Consensus(message, _) => Some(Heard::Consensus(message)),
            _ => None,
        }
    }

    /// The tag of a status that says `tagged`.
    pub fn status_tag(&self, tagged: &str) -> String {
        KeyRing::insecure().tag(tagged.as_bytes())
    }
}
