//! Which names in the directory are ours.

use raft::{Index, LogPosition, Term};

pub(crate) const IDENTITY: &str = "identity";
pub(crate) const IDENTITY_TMP: &str = "identity.tmp";
pub(crate) const SEGMENT_TMP: &str = "wal.tmp";
pub(crate) const SNAPSHOT_TMP: &str = "snap.tmp";

/// The name of the segment with this number.
pub(crate) fn segment(sequence: u64) -> String {
    format!("wal-{sequence:016x}")
}

/// The name of the snapshot of the log up to `last`.
pub(crate) fn snapshot(last: LogPosition) -> String {
    format!("snap-{:016x}-{:016x}", last.index.0, last.term.0)
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Identity,
    Segment(u64),
    Snapshot(LogPosition),
    /// Begun and never finished: worth nothing.
    Temporary,
    Foreign,
}

impl Name {
    pub(crate) fn parse(name: &str) -> Name {
        match name {
            IDENTITY => Name::Identity,
            IDENTITY_TMP | SEGMENT_TMP | SNAPSHOT_TMP => Name::Temporary,
            _ => Name::numbered(name).unwrap_or(Name::Foreign),
        }
    }

    fn numbered(name: &str) -> Option<Name> {
        if let Some(sequence) = name.strip_prefix("wal-") {
            return Some(Name::Segment(hex(sequence)?));
        }
        let (index, term) = name.strip_prefix("snap-")?.split_once('-')?;
        Some(Name::Snapshot(LogPosition {
            index: Index(hex(index)?),
            term: Term(hex(term)?),
        }))
    }
}

/// Sixteen lower-case hex digits, so that each number has one name.
fn hex(digits: &str) -> Option<u64> {
    let canonical = digits.len() == 16
        && digits
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    canonical
        .then(|| u64::from_str_radix(digits, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back_and_no_other_is_ours() {
        let last = LogPosition {
            index: Index(300),
            term: Term(u64::MAX),
        };
        assert_eq!(Name::parse(&snapshot(last)), Name::Snapshot(last));
        assert_eq!(Name::parse("wal-00000000000000ff"), Name::Segment(255));
        for foreign in [
            "wal-ff",
            "wal-00000000000000FF",
            "wal-00000000000000ff.bak",
            "snap-1",
            "notes.txt",
            "",
        ] {
            assert_eq!(Name::parse(foreign), Name::Foreign, "{foreign}");
        }
    }
}
