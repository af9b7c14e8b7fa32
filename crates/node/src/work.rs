//! Work assignment: which of so many named shards are mine.
//!
//! Everyone computes the same from the same members: each shard belongs to the member that it ranks
//! highest (rendezvous hashing), so that who comes takes from all a little, and who goes leaves what
//! was its own to all. The members are agreed, and so is the revision at which they are: everyone that
//! has come as far as that revision assigns alike. Who has not come so far yet may still act on a
//! shard that is no longer its own: the revision is the fence. Whatever a shard protects is to
//! remember the greatest revision that it has been shown and refuse lesser ones, and who works on a
//! shard shows the revision of its newest [`Assignment`].

use std::collections::{BTreeMap, BTreeSet};

use replica::{KeyEvent, KeyRange, KeyValue};

use crate::error::{Error, Result};
use crate::kv::{Kv, Watch};
use crate::session::Session;

/// The shards that are one's own at one revision of the members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// At which the members were these: shown to whatever a shard protects.
    pub revision: u64,
    /// Who shares the work.
    pub members: BTreeSet<String>,
    /// One's own, in order.
    pub mine: Vec<String>,
}

/// The shards that are one's own, whenever they change. A member of a group leaves it when this is
/// dropped.
#[derive(Debug)]
pub struct Work {
    kv: Kv,
    range: KeyRange,
    me: String,
    shards: Vec<String>,
    /// By key: a group's members stand there by name and lease.
    members: BTreeMap<bytes::Bytes, String>,
    watch: Option<Watch>,
    last: Option<BTreeSet<String>>,
    session: Option<(Session, bytes::Bytes)>,
}

impl Session {
    /// Shares `shards` with all that do so under the same `group`, as `me`; all must name the same
    /// shards. Membership hangs on the session.
    ///
    /// # Errors
    /// [`Error::Refused`] for a name that is too long, empty or holds `/`; what [`Kv::propose`] says.
    pub async fn work(
        &self,
        group: &str,
        me: &str,
        shards: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Work> {
        crate::lock::check_name(group)?;
        crate::lock::check_name(me)?;
        let prefix = format!("_/group/{group}/");
        let key = format!("{prefix}{me}/{:016x}", self.lease().0);
        let key = bytes::Bytes::from(key);
        let put = replica::Action::Put {
            key: key.clone(),
            value: bytes::Bytes::new(),
            lease: Some(self.lease()),
        };
        while let Err(error) = self.kv().act([], [put.clone()]).await {
            if !matches!(error, Error::Unknown(_)) || !self.is_alive() {
                return Err(error);
            }
        }
        let range = KeyRange::Prefix(prefix.into());
        let mut work = Work::new(self.kv(), range, me, shards);
        work.session = Some((self.clone(), key));
        Ok(work)
    }
}

impl Kv {
    /// Shares `shards` among the nodes that are there, by the cluster's agreed presence; `me` is the
    /// name of one of them.
    pub fn node_work(&self, me: &str, shards: impl IntoIterator<Item = impl Into<String>>) -> Work {
        let range = KeyRange::Prefix(bytes::Bytes::from_static(replica::NODES));
        Work::new(self, range, me, shards)
    }
}

impl Work {
    fn new(
        kv: &Kv,
        range: KeyRange,
        me: &str,
        shards: impl IntoIterator<Item = impl Into<String>>,
    ) -> Work {
        Work {
            kv: kv.clone(),
            range,
            me: me.to_owned(),
            shards: shards.into_iter().map(Into::into).collect(),
            members: BTreeMap::new(),
            watch: None,
            last: None,
            session: None,
        }
    }

    /// The next assignment: at once the first time, then whenever the members change. Safe to cancel.
    ///
    /// # Errors
    /// [`Error::NoSuchLease`] once the session has ended: nothing is one's own any more. What
    /// [`Kv::get`] says.
    pub async fn next(&mut self) -> Result<Assignment> {
        loop {
            let revision = match self.session.clone() {
                Some((session, _)) => tokio::select! {
                    revision = self.step() => revision?,
                    () = session.ended() => return Err(Error::NoSuchLease),
                },
                None => self.step().await?,
            };
            let Some(revision) = revision else { continue };
            let members: BTreeSet<String> = self.members.values().cloned().collect();
            if self.last.as_ref() != Some(&members) {
                self.last = Some(members.clone());
                let mine = assigned(&self.me, &members, &self.shards);
                return Ok(Assignment {
                    revision,
                    members,
                    mine,
                });
            }
        }
    }

    /// Takes the next change of the members; at which revision, once all of it is known.
    async fn step(&mut self) -> Result<Option<u64>> {
        let Some(watch) = &mut self.watch else {
            return self.look().await.map(Some);
        };
        let events = match watch.next_batch().await {
            Err(Error::Compacted { .. }) => return self.look().await.map(Some),
            events => events?,
        };
        // What one revision changed may come in several answers: only all of it are its members.
        let is_whole = watch.cursor().skip == 0;
        let mut revision = 0;
        for event in events {
            revision = event.revision();
            match event {
                KeyEvent::Put(pair) => self.add(&pair),
                KeyEvent::Delete { key, .. } => drop(self.members.remove(&key)),
            }
        }
        Ok(is_whole.then_some(revision))
    }

    async fn look(&mut self) -> Result<u64> {
        let list = self.kv.list(self.range.clone()).await?;
        self.members.clear();
        list.pairs.iter().for_each(|pair| self.add(pair));
        // Keys of several answers may be of several moments: what came between is told again.
        self.watch = Some(self.kv.watch(self.range.clone(), list.revision + 1));
        Ok(list.revision)
    }

    fn add(&mut self, pair: &KeyValue) {
        let rest = &pair.key[self.range.start().len().min(pair.key.len())..];
        let name = rest.split(|byte| *byte == b'/').next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        self.members.insert(pair.key.clone(), name);
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some((session, key)) = self.session.take() {
            session.remove_soon(key);
        }
    }
}

/// Which of `shards` belong to `me`.
fn assigned(me: &str, members: &BTreeSet<String>, shards: &[String]) -> Vec<String> {
    let owner = |shard: &String| {
        members
            .iter()
            .max_by_key(|member| (weight(member, shard), *member))
    };
    let mine = shards
        .iter()
        .filter(|shard| owner(shard).is_some_and(|owner| owner == me));
    mine.cloned().collect()
}

/// How highly a shard ranks a member: the same on every machine and in every version.
fn weight(member: &str, shard: &str) -> u64 {
    // Each name's length stands before it, so that no two pairs are written alike.
    let mut bytes = Vec::with_capacity(member.len() + shard.len() + 8);
    for name in [member, shard] {
        bytes.extend((name.len() as u32).to_be_bytes());
        bytes.extend(name.as_bytes());
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
    let first = digest.as_ref().first_chunk::<8>().copied();
    u64::from_be_bytes(first.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn shards() -> Vec<String> {
        (0..1_000).map(|n| format!("line-{n}")).collect()
    }

    /// Pinned: machines that upgrade one by one must go on agreeing.
    #[test]
    fn weights_are_for_ever() {
        assert_eq!(weight("gw-1", "line-0"), 0x9a39_6665_cfcf_c268);
        assert_ne!(weight("ab", "c"), weight("a", "bc"));
    }

    /// Each shard has one owner, the work is spread, and who comes takes only what becomes its own.
    #[test]
    fn a_change_of_members_moves_little() {
        let (three, four) = (members(&["a", "b", "c"]), members(&["a", "b", "c", "d"]));
        let shards = shards();
        let of = |members: &BTreeSet<String>| {
            let each = members.iter().map(|me| assigned(me, members, &shards));
            each.collect::<Vec<_>>()
        };
        let (before, after) = (of(&three), of(&four));
        for parts in [&before, &after] {
            let all: BTreeSet<&String> = parts.iter().flatten().collect();
            assert_eq!(
                (all.len(), parts.iter().map(Vec::len).sum()),
                (1_000, 1_000)
            );
            let fair = 1_000 / parts.len();
            let uneven = parts
                .iter()
                .find(|part| part.len().abs_diff(fair) > fair / 5);
            assert_eq!(uneven.map(Vec::len), None, "each has about {fair}");
        }
        for (before, after) in before.iter().zip(&after) {
            assert!(after.iter().all(|shard| before.contains(shard)));
        }
    }
}
