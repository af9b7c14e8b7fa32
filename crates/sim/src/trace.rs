//! What happened, in words: one line an event, only where someone reads it.

use bytes::Bytes;
use raft::message::{Body, Message};
use replica::{HEADER, Publish};

/// Prints lines if it is on, and keeps a fingerprint of the run in any case.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    on: bool,
    fingerprint: u64,
}

impl Trace {
    pub(crate) fn new(on: bool) -> Trace {
        Trace { on, fingerprint: 0 }
    }

    /// One line at a true time, about someone.
    pub(crate) fn line(&self, now: u64, who: &str, what: impl FnOnce() -> String) {
        if self.on {
            let (seconds, micros) = (now / 1_000_000, now % 1_000_000);
            println!("{seconds:>5}.{micros:06} {who:<10} {}", shortened(what()));
        }
    }

    /// Mixes in what tells one run from another.
    pub(crate) fn mix(&mut self, value: u64) {
        self.fingerprint = (self.fingerprint ^ value).wrapping_mul(0x0000_0100_0000_01b3);
        self.fingerprint = self.fingerprint.rotate_left(23);
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

/// A line is to be read: large values and lists are cut.
fn shortened(mut line: String) -> String {
    const LONGEST: usize = 240;
    let length = line.len();
    if length > LONGEST {
        line.truncate(line.floor_char_boundary(LONGEST));
        line.push_str(&format!("… ({length} bytes)"));
    }
    line
}

/// The consensus message in an unsealed frame of a formed cluster.
pub(crate) fn consensus(payload: &Bytes) -> Option<Message> {
    consensus_body(unsealed(payload)?)?.decode().ok()
}

/// What is to be decoded of such a body: a message, and for one node also that node's key.
pub(crate) fn consensus_body(body: &[u8]) -> Option<minicbor::Decoder<'_>> {
    let mut body = minicbor::Decoder::new(body);
    let fields = body.array().ok()??;
    ((2..=3).contains(&fields) && body.u32().ok()? == 0).then_some(body)
}

fn unsealed(payload: &Bytes) -> Option<&[u8]> {
    const CHECKSUM: usize = 4;
    let insecure = *payload.get(1)? == 0;
    let end = payload.len().checked_sub(CHECKSUM)?;
    let body = payload.get(HEADER..end)?;
    insecure.then_some(body)
}

/// A publish in a few words.
pub(crate) fn describe(publish: &Publish) -> String {
    let Publish { topic, payload, .. } = publish;
    format!("{topic} {}", describe_payload(topic, payload))
}

pub(crate) fn describe_payload(topic: &str, payload: &Bytes) -> String {
    if !topic.contains("/rpc/") {
        return String::from_utf8_lossy(payload).into_owned();
    }
    if let Some(message) = consensus(payload) {
        return describe_message(&message);
    }
    const BODIES: [&str; 9] = [
        "Consensus",
        "Handshake",
        "Hello",
        "Request",
        "Reply",
        "Probe",
        "Occupied",
        "StatusRequest",
        "Status",
    ];
    let number = unsealed(payload).and_then(|body| {
        let mut body = minicbor::Decoder::new(body);
        body.array().ok()?;
        body.u32().ok()
    });
    let name = number.and_then(|number| BODIES.get(number as usize));
    let name = name.copied().unwrap_or("sealed or none");
    format!("{name} ({} bytes)", payload.len())
}

fn describe_message(message: &Message) -> String {
    let term = message.term;
    match &message.body {
        Body::Append(a) => format!(
            "t{term} Append round {} stream {} prev {}.{} +{} commit {}",
            a.round,
            a.stream,
            a.prev.index,
            a.prev.term,
            a.entries.len(),
            a.commit_index
        ),
        Body::SnapshotChunk(c) => format!(
            "t{term} SnapshotChunk stream {} of {} at {}+{} of {}",
            c.stream,
            c.meta.last.index,
            c.offset,
            c.data.len(),
            c.length
        ),
        other => format!("t{term} {other:?}"),
    }
}
