//! A new cluster from the state of another: what restoring a snapshot and recovering from one
//! surviving data directory have in common.
//!
//! The new cluster has one voter under a key of its own, and a formation record that names where it
//! comes from, so that no node of the former cluster takes its frames or gives it any. Term, index
//! and revision begin so far above the source's that nothing the former cluster gave out after the
//! copy was made is given out again: a fencing token, a revision that a watcher waits for.

use std::collections::BTreeMap;

use bytes::Bytes;
use raft::{
    Configuration, Durable, HardState, Index, LogPosition, NodeKey, Payload, Persist, PersistSeq,
    SaveSnapshot, Settings, Snapshot, SnapshotMeta, Term,
};

use crate::keys::ClusterId;
use crate::kv::Store;
use crate::name::Name;
use crate::saved::SavedSnapshot;
use crate::wire::{Formation, Holds, Origin, from_slice, to_vec};

/// How far the new cluster's first term lies above the source's. A former cluster that holds an
/// election a second reaches it after twelve days.
pub const TERM_RAISE: u64 = 1 << 20;

/// How far its index and its revision do. A thousand writes a second take fifty days.
pub const INDEX_RAISE: u64 = 1 << 32;

/// A node takes no term that is 2^32 ahead of its own, and whoever joins begins at zero.
const MAX_TERM: u64 = 1 << 31;

/// Half of the largest index of a snapshot that a node takes.
const MAX_INDEX: u64 = 1 << 61;

/// Who is to be the new cluster's only voter.
#[derive(Clone, Debug)]
pub struct Founder {
    /// Its name.
    pub name: Name,
    /// Its key, drawn for this: no node may have it already.
    pub key: NodeKey,
    /// Drawn for this: what is restored twice makes two clusters.
    pub nonce: [u8; 16],
}

/// What a data directory has to hold to be the new cluster's.
#[derive(Clone, Debug)]
pub struct Founding {
    /// The new cluster.
    pub formation: Formation,
    /// The formation record as it stands on disk.
    pub record: Bytes,
    /// The only write of the log.
    pub persist: Persist,
    /// Where the new cluster's terms begin.
    pub term: Term,
    /// Where its log begins.
    pub index: Index,
    /// Where its revisions begin.
    pub revision: u64,
}

impl Founding {
    /// The new cluster as every frame will name it, below `<prefix>/<cluster>`.
    pub fn cluster_id(&self, root: &str) -> ClusterId {
        ClusterId::new(root, Some(&self.formation.digest()))
    }
}

/// Why no cluster can be made of this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FoundError {
    /// Term or index have been raised so often that there is no room left.
    #[error(
        "term {term} or index {index} is too high to be raised again: this state was restored too often"
    )]
    TooFar {
        /// The source's term.
        term: Term,
        /// Its index.
        index: Index,
    },
    /// The directory knows of no cluster.
    #[error("the data directory is of no formed cluster: there is nothing in it to recover")]
    NotFormed,
    /// The directory's node had not yet received anything.
    #[error("the data directory holds no entry and no snapshot: there is nothing in it to recover")]
    Empty,
    /// What the directory holds cannot be read.
    #[error("what the data directory holds cannot be read: {0}")]
    Unreadable(String),
}

/// A new cluster of `store`.
fn found(
    source: &Formation,
    settings: Settings,
    term: Term,
    store: &Store,
    founder: Founder,
) -> Result<Founding, FoundError> {
    let index = store.applied();
    if term.0 > MAX_TERM - TERM_RAISE || index.0 > MAX_INDEX - INDEX_RAISE {
        return Err(FoundError::TooFar { term, index });
    }
    let Founder { name, key, nonce } = founder;
    let voters = BTreeMap::from([(key, name.to_string())]);
    let formation = Formation {
        voters: voters.clone(),
        settings,
        witnesses: std::collections::BTreeSet::new(),
        origin: Some(Origin {
            formation: source.digest(),
            nonce,
        }),
    };
    let store = store.raised(INDEX_RAISE);
    let term = Term(term.0 + TERM_RAISE);
    let index = store.applied();
    let snapshot = Snapshot {
        meta: SnapshotMeta {
            last: LogPosition { index, term },
            configuration: Configuration::of(voters, settings),
            epoch: raft::LeaseEpoch { term, number: 0 },
        },
        data: store.snapshot(),
    };
    let persist = Persist {
        seq: PersistSeq(1),
        hard_state: Some(HardState {
            term,
            voted_for: None,
        }),
        snapshot: Some(SaveSnapshot {
            snapshot,
            discard_log: true,
        }),
        entries: Vec::new(),
    };
    Ok(Founding {
        record: to_vec(&Holds::Formed(formation.clone())).into(),
        formation,
        persist,
        term,
        index,
        revision: store.revision(),
    })
}

impl SavedSnapshot {
    /// A new cluster that begins with this state.
    ///
    /// # Errors
    /// [`FoundError::TooFar`].
    pub fn found(&self, founder: Founder) -> Result<Founding, FoundError> {
        let meta = self.meta();
        let settings = meta.configuration.settings;
        found(&meta.formation, settings, meta.term, self.store(), founder)
    }
}

/// What one node's data directory tells of its cluster, everything in it applied.
#[derive(Clone, Debug)]
pub struct Survivor {
    /// Who formed the cluster.
    pub formation: Formation,
    /// The newest term that the node had taken part in.
    pub term: Term,
    /// The last entry that it holds.
    pub last: LogPosition,
    /// Up to here the entries are committed for certain. A log does not tell it of later ones.
    pub committed: Index,
    /// The newest configuration that it holds.
    pub configuration: Configuration,
    /// The state with every entry applied, also those that were perhaps never committed.
    pub store: Store,
}

impl Survivor {
    /// What a directory with this formation record and this log comes to.
    ///
    /// # Errors
    /// When it holds nothing of a cluster, or what it holds cannot be read.
    pub fn read(record: Option<&[u8]>, durable: &Durable) -> Result<Survivor, FoundError> {
        let holds = record.map(from_slice).transpose();
        let holds = holds.map_err(|error| FoundError::Unreadable(error.to_string()))?;
        let Some(Holds::Formed(formation)) = holds else {
            return Err(FoundError::NotFormed);
        };
        let snapshot = durable.snapshot.as_ref();
        let (committed, mut configuration) = match snapshot {
            Some(snapshot) => (snapshot.meta.last, snapshot.meta.configuration.clone()),
            None => Default::default(),
        };
        let mut store = match snapshot {
            Some(snapshot) => Store::restore(&snapshot.data)
                .map_err(|error| FoundError::Unreadable(error.to_string()))?,
            None => Store::default(),
        };
        if store.applied() != committed.index {
            let what = format!(
                "a snapshot of {} that claims {}",
                store.applied(),
                committed.index
            );
            return Err(FoundError::Unreadable(what));
        }
        let mut last = committed;
        for entry in &durable.entries {
            if entry.index != store.applied() + 1 {
                let (index, next) = (entry.index, store.applied() + 1);
                let what = format!("entry {index} stands where {next} must be");
                return Err(FoundError::Unreadable(what));
            }
            store.apply(entry);
            if let Payload::Configuration(newer) = &entry.payload {
                configuration = newer.clone();
            }
            last = entry.position();
        }
        if last.index == Index(0) {
            return Err(FoundError::Empty);
        }
        Ok(Survivor {
            formation,
            term: durable.hard_state.term.max(last.term),
            last,
            committed: committed.index,
            configuration,
            store,
        })
    }

    /// A new cluster that begins with everything that was found.
    ///
    /// # Errors
    /// [`FoundError::TooFar`].
    pub fn found(&self, founder: Founder) -> Result<Founding, FoundError> {
        let settings = self.configuration.settings;
        found(&self.formation, settings, self.term, &self.store, founder)
    }
}

#[cfg(test)]
mod tests {
    use raft::{ClientId, Command, Entry, RequestNumber};

    use super::*;
    use crate::kv::command;
    use crate::wire::Write;

    fn founder(n: u8) -> Founder {
        Founder {
            name: Name::new("gw-9").expect("a name"),
            key: NodeKey(u128::from(n) << 64),
            nonce: [n; 16],
        }
    }

    fn formation() -> Formation {
        let voter = |n: u128| (NodeKey(n), format!("gw-{n}"));
        Formation {
            voters: BTreeMap::from([voter(1), voter(2), voter(3)]),
            settings: Settings {
                lease_ms: 300,
                ..Settings::default()
            },
            witnesses: std::collections::BTreeSet::new(),
            origin: None,
        }
    }

    fn put(request: u64) -> Command {
        let write = Write::Put {
            key: format!("key-{request}").into(),
            value: "v".into(),
            lease: None,
        };
        command(ClientId(1), RequestNumber(request), None, None, write)
    }

    fn entry(index: u64, term: u64, payload: Payload) -> Entry {
        Entry {
            index: Index(index),
            term: Term(term),
            payload,
        }
    }

    /// What a follower's disk holds: the first entry, three writes, the last of a later term.
    fn durable() -> Durable {
        Durable {
            hard_state: HardState {
                term: Term(5),
                voted_for: Some(NodeKey(2)),
            },
            snapshot: None,
            entries: vec![
                formation().first_entry(),
                entry(2, 2, Payload::Noop),
                entry(3, 2, Payload::Command(put(1))),
                entry(4, 2, Payload::Command(put(2))),
                entry(5, 4, Payload::Command(put(3))),
            ],
        }
    }

    fn record(formation: Formation) -> Vec<u8> {
        to_vec(&Holds::Formed(formation))
    }

    fn survivor(durable: &Durable) -> Survivor {
        Survivor::read(Some(&record(formation())), durable).expect("it holds something")
    }

    /// Nothing shows which entries were committed: all of them count.
    #[test]
    fn a_survivor_applies_everything_that_it_holds() {
        let survivor = survivor(&durable());
        assert_eq!((survivor.term, survivor.committed), (Term(5), Index(0)));
        assert_eq!(survivor.last.index, Index(5));
        assert_eq!(survivor.store.iter().count(), 3);
        assert_eq!(survivor.configuration.voters, formation().voters);
    }

    /// Behind a snapshot the log goes on; what the snapshot holds is committed.
    #[test]
    fn a_survivor_goes_on_from_its_snapshot() {
        let whole = durable();
        let upto = Durable {
            entries: whole.entries[..4].to_vec(),
            ..whole.clone()
        };
        let configuration = Configuration::of(formation().voters, formation().settings);
        let compacted = Durable {
            snapshot: Some(Snapshot {
                meta: SnapshotMeta {
                    last: whole.entries[3].position(),
                    configuration,
                    epoch: raft::LeaseEpoch::default(),
                },
                data: survivor(&upto).store.snapshot(),
            }),
            entries: whole.entries[4..].to_vec(),
            ..whole.clone()
        };
        let (compacted, whole) = (survivor(&compacted), survivor(&whole));
        assert_eq!(compacted.committed, Index(4));
        assert_eq!(compacted.store.snapshot(), whole.store.snapshot());
        assert_eq!(compacted.configuration, whole.configuration);
    }

    /// One voter under a new key, in another cluster; the state is the same, every number above.
    #[test]
    fn a_founded_cluster_is_another_one_with_the_same_state() {
        let survivor = survivor(&durable());
        let founding = survivor.found(founder(7)).expect("founded");
        assert_eq!(founding.term, Term(5 + TERM_RAISE));
        assert_eq!(founding.index, Index(5 + INDEX_RAISE));
        assert_eq!(founding.revision, 3 + INDEX_RAISE);
        let formation = &founding.formation;
        let voters = BTreeMap::from([(NodeKey(7 << 64), "gw-9".to_owned())]);
        assert_eq!(formation.voters, voters);
        assert_eq!(formation.settings.lease_ms, 300, "settings are kept");
        let source = super::tests::formation();
        let origin = formation.origin.expect("it says where it comes from");
        assert_eq!(origin.formation, source.digest());
        let id = |formation: &Formation| ClusterId::new("raft/c", Some(&formation.digest()));
        assert_ne!(id(formation), id(&source));
        let nonce = [8; 16];
        let twin = Founder {
            nonce,
            ..founder(7)
        };
        let again = survivor.found(twin).expect("founded twice");
        assert_ne!(id(formation), id(&again.formation));

        let save = founding.persist.snapshot.expect("a snapshot");
        let meta = save.snapshot.meta;
        assert_eq!(
            (meta.last.index, meta.last.term),
            (founding.index, founding.term)
        );
        assert_eq!(meta.configuration.voters, voters);
        let restored = Store::restore(&save.snapshot.data).expect("our own state");
        assert_eq!(restored.iter().count(), 3);
        assert_eq!(
            restored.get(b"key-1").modified,
            1,
            "what was written keeps its revision"
        );
        let hard_state = founding.persist.hard_state.expect("a term");
        assert_eq!(hard_state.voted_for, None, "its votes are another key's");
    }

    /// What is restored from a restored cluster lies above it again, until there is no room.
    #[test]
    fn numbers_grow_with_each_restore_and_end_in_a_message() {
        let mut durable = durable();
        let mut formation = formation();
        let mut times = 0u64;
        let error = loop {
            let record = record(formation.clone());
            let survivor = Survivor::read(Some(&record), &durable).expect("it holds something");
            let founding = match survivor.found(founder(7)) {
                Ok(founding) => founding,
                Err(error) => break error,
            };
            times += 1;
            assert_eq!(founding.term.0, 5 + times * TERM_RAISE);
            formation = founding.formation;
            durable = Durable {
                hard_state: founding.persist.hard_state.expect("a term"),
                snapshot: founding.persist.snapshot.map(|save| save.snapshot),
                entries: Vec::new(),
            };
        };
        assert!(matches!(error, FoundError::TooFar { .. }), "{error}");
        assert!(times > 1_000, "{times}");
    }

    #[test]
    fn a_directory_without_anything_is_told_from_one_that_cannot_be_read() {
        let read = |record: Option<&[u8]>, durable: &Durable| {
            Survivor::read(record, durable).expect_err("nothing to recover")
        };
        let formed = record(formation());
        assert_eq!(read(None, &durable()), FoundError::NotFormed);
        let accepted = to_vec(&Holds::Accepted(formation()));
        assert_eq!(read(Some(&accepted), &durable()), FoundError::NotFormed);
        assert_eq!(read(Some(&formed), &Durable::default()), FoundError::Empty);
        let mut gap = durable();
        gap.entries.remove(2);
        for (record, durable) in [(&formed[..], &gap), (&b"\xff"[..], &gap)] {
            let error = read(Some(record), durable);
            assert!(matches!(error, FoundError::Unreadable(_)), "{error}");
        }
    }
}
