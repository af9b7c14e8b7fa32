//! A change of the state that is worked out before any of it is made, so that it is made as a whole
//! or not at all.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::kv::{PAIR_OVERHEAD, Pair, Store, cost};
use crate::leases::MAX_LEASE_KEYS;
use crate::state::{
    Action, ActionResult, Comparison, Condition, KeyEvent, KeyRange, KeyValue, LeaseId,
    MAX_DELETED, MAX_LOOKED_AT, MAX_TRANSACTION_READ, Target,
};
use crate::wire::Answer;

/// What the next revision is to change.
pub(crate) struct Draft<'a> {
    store: &'a Store,
    revision: u64,
    events: Vec<KeyEvent>,
    /// What stands in place of the store's pairs.
    drafted: BTreeMap<Bytes, Option<Pair>>,
    /// How many bytes of answer have been read.
    read: usize,
    /// How many pairs have been gone through.
    looked_at: usize,
    deleted: usize,
    grows: bool,
}

/// Why a write does nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    NoSuchLease,
    Full(u64),
    Reserved,
    Refused(&'static str),
}

impl Failed {
    pub(crate) fn into_answer(self) -> Answer {
        match self {
            Failed::NoSuchLease => Answer::NoSuchLease,
            Failed::Full(limit) => Answer::Full(limit),
            Failed::Reserved => Answer::Refused(
                "keys that begin with _/ belong to the cluster: they change by locks, elections \
                 and presence, or by a transaction where it is none of a node"
                    .to_owned(),
            ),
            Failed::Refused(why) => Answer::Refused(why.to_owned()),
        }
    }
}

impl<'a> Draft<'a> {
    pub(crate) fn new(store: &'a Store) -> Draft<'a> {
        Draft {
            store,
            revision: store.revision() + 1,
            events: Vec::new(),
            drafted: BTreeMap::new(),
            read: 0,
            looked_at: 0,
            deleted: 0,
            grows: false,
        }
    }

    /// The changes, if there is room for them, or they need none.
    pub(crate) fn finish(self, unbounded: bool) -> Result<Vec<KeyEvent>, Failed> {
        let Draft {
            store,
            drafted,
            events,
            grows,
            ..
        } = self;
        if grows && !unbounded {
            let mut bytes = store.bytes();
            for (key, pair) in &drafted {
                bytes += pair.as_ref().map_or(0, |pair| cost(key, pair));
                bytes -= store.pair(key).map_or(0, |pair| cost(key, pair));
            }
            // What makes it smaller is welcome even where it leaves too much.
            let most = store.bounds().state_bytes;
            if bytes > most && bytes > store.bytes() {
                return Err(Failed::Full(most as u64));
            }
        }
        Ok(events)
    }

    pub(crate) fn act(&mut self, action: &Action) -> Result<ActionResult, Failed> {
        match action {
            Action::Put { key, value, lease } => {
                self.put(key.clone(), value.clone(), *lease)?;
                Ok(ActionResult::Put)
            }
            Action::Delete(range) => self.delete(range).map(ActionResult::Deleted),
            Action::Get { range, oldest } => self.get(range, *oldest).map(ActionResult::Got),
            Action::Add { key, delta } => self.add(key, *delta).map(ActionResult::Sum),
        }
    }

    pub(crate) fn put(
        &mut self,
        key: Bytes,
        value: Bytes,
        lease: Option<LeaseId>,
    ) -> Result<(), Failed> {
        let lease = lease.unwrap_or(LeaseId::NONE);
        let before = self.pair(&key);
        let pair = Pair {
            value,
            created: before.map_or(self.revision, |pair| pair.created),
            modified: self.revision,
            version: before.map_or(1, |pair| pair.version + 1),
            lease,
        };
        if lease != LeaseId::NONE && before.is_none_or(|pair| pair.lease != lease) {
            let held = self.store.leases().get(lease).ok_or(Failed::NoSuchLease)?;
            let drafted = self.drafted.values().flatten();
            let more = drafted.filter(|pair| pair.lease == lease).count();
            if held.keys.len() + more >= MAX_LEASE_KEYS {
                return Err(Failed::Refused("a lease holds at most 10,000 keys"));
            }
        }
        self.grows = true;
        self.events.push(KeyEvent::Put(pair.called(&key)));
        self.drafted.insert(key, Some(pair));
        Ok(())
    }

    fn delete(&mut self, range: &KeyRange) -> Result<u64, Failed> {
        self.look_at(range)?;
        let keys: Vec<Bytes> = self.pairs(range).into_keys().collect();
        self.deleted += keys.len();
        if self.deleted > MAX_DELETED {
            return Err(Failed::Refused(
                "a transaction deletes at most 10,000 keys: delete fewer at once",
            ));
        }
        let deleted = keys.len() as u64;
        for key in keys {
            let revision = self.revision;
            let event = KeyEvent::Delete {
                key: key.clone(),
                revision,
            };
            self.events.push(event);
            self.drafted.insert(key, None);
        }
        Ok(deleted)
    }

    fn get(&mut self, range: &KeyRange, oldest: u32) -> Result<Vec<KeyValue>, Failed> {
        self.look_at(range)?;
        let pairs = self.pairs(range);
        let mut found: Vec<KeyValue> = pairs.iter().map(|(key, pair)| pair.called(key)).collect();
        if oldest > 0 {
            found.sort_by(|a, b| (a.created, &a.key).cmp(&(b.created, &b.key)));
            found.truncate(oldest as usize);
        }
        let bytes = |pair: &KeyValue| pair.key.len() + pair.value.len() + PAIR_OVERHEAD;
        self.read += found.iter().map(bytes).sum::<usize>();
        if self.read > MAX_TRANSACTION_READ {
            return Err(Failed::Refused(
                "a transaction reads at most 16 KiB: use range reads for more",
            ));
        }
        Ok(found)
    }

    fn add(&mut self, key: &Bytes, delta: i64) -> Result<i64, Failed> {
        let (number, lease) = match self.pair(key) {
            None => (0, None),
            Some(pair) => (number(&pair.value)?, Some(pair.lease)),
        };
        let sum = number
            .checked_add(delta)
            .ok_or(Failed::Refused("the sum does not fit 64 bits"))?;
        self.put(key.clone(), sum.to_string().into(), lease)?;
        Ok(sum)
    }

    fn pair(&self, key: &[u8]) -> Option<&Pair> {
        match self.drafted.get(key) {
            Some(drafted) => drafted.as_ref(),
            None => self.store.pair(key),
        }
    }

    /// What is asked takes time on every node, between two entries: of that there is to be an end.
    fn look_at(&mut self, range: &KeyRange) -> Result<(), Failed> {
        let left = MAX_LOOKED_AT - self.looked_at;
        self.looked_at += self.store.pairs_of(range).take(left + 1).count();
        if self.looked_at > MAX_LOOKED_AT {
            return Err(Failed::Refused(
                "a transaction goes through at most 100,000 keys: use smaller ranges, or range reads",
            ));
        }
        Ok(())
    }

    /// The pairs of a range as they would stand.
    fn pairs(&self, range: &KeyRange) -> BTreeMap<Bytes, &Pair> {
        let stored = self.store.pairs_of(range);
        let mut pairs: BTreeMap<Bytes, &Pair> = stored.map(|(k, pair)| (k.clone(), pair)).collect();
        for (key, pair) in self.drafted.range(range.bounds()) {
            match pair {
                Some(pair) if range.contains(key) => drop(pairs.insert(key.clone(), pair)),
                _ => drop(pairs.remove(key)),
            }
        }
        pairs
    }
}

fn number(value: &[u8]) -> Result<i64, Failed> {
    let text = std::str::from_utf8(value).ok();
    let number = text.and_then(|text| text.parse().ok());
    number.ok_or(Failed::Refused("the value there is no decimal number"))
}

impl Condition {
    /// Whether it holds of its key.
    pub(crate) fn holds(&self, pair: Option<&Pair>) -> bool {
        let of = |number: fn(&Pair) -> u64| pair.map_or(0, number);
        let order = match &self.target {
            Target::Value(value) => pair.map(|pair| pair.value.cmp(value)),
            Target::Version(version) => Some(of(|pair| pair.version).cmp(version)),
            Target::Created(created) => Some(of(|pair| pair.created).cmp(created)),
            Target::Modified(modified) => Some(of(|pair| pair.modified).cmp(modified)),
            Target::Lease(lease) => Some(of(|pair| pair.lease.0).cmp(&lease.0)),
        };
        match self.comparison {
            Comparison::Equal => order.is_some_and(std::cmp::Ordering::is_eq),
            Comparison::NotEqual => order.is_none_or(std::cmp::Ordering::is_ne),
            Comparison::Less => order.is_some_and(std::cmp::Ordering::is_lt),
            Comparison::Greater => order.is_some_and(std::cmp::Ordering::is_gt),
        }
    }
}
