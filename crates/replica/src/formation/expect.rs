//! Choosing the voters: `--expect N` in place of a list.
//!
//! Every node tells whom it would choose: the N smallest names among the empty nodes that it hears
//! and that expect the same number. A node accepts a choice once each of the chosen has said just
//! this, and nothing else, for [`STABLE`]; whoever is among the chosen of a choice that somebody
//! has accepted accepts that one. So two choices that share a node are rarely both accepted, and
//! of those at most one can be formed, as of any two records.
//!
//! Two choices that share nobody can both be formed: two clusters. That takes 2N nodes, so that
//! fewer must ever be started with `--expect`; a node that lost its data directory counts anew.

use super::*;

/// How long a choice has to stand unchanged, here and at each of the chosen. Two hellos: who
/// starts a moment later, with a smaller name, is chosen rather than late.
const STABLE: Duration = HELLO_INTERVAL.saturating_mul(2);

/// Who says nothing for so long does not count: four hellos.
const SILENT: Duration = HELLO_INTERVAL.saturating_mul(4);

/// Whom a node would choose.
#[derive(Default)]
pub(super) struct Choice {
    pub(super) nodes: BTreeMap<String, NodeKey>,
    since: Time,
}

impl Lobby {
    /// Time has passed: a choice may have stood long enough, or a chosen node gone silent.
    pub(crate) fn on_time(&mut self, now: Time) -> Option<Step> {
        let expect = self.expect.filter(|_| self.formation().is_none())?;
        self.advance_expecting(expect, now)
    }

    pub(super) fn advance_expecting(&mut self, expect: u32, now: Time) -> Option<Step> {
        self.heard.retain(|_, heard| now.since(heard.at) < SILENT);
        self.choose(expect, now);
        match self.holds.clone() {
            Holds::Nothing => self.accept_choice(expect, now),
            Holds::Accepted(record) => match self.conflict(&record) {
                Some(trouble) => self.trouble(trouble),
                None => self.form(record),
            },
            Holds::Formed(_) => None,
        }
    }

    fn choose(&mut self, expect: u32, now: Time) {
        let alike = self.heard.iter().filter(|(_, heard)| {
            heard.hello.expect == Some(expect) && !matches!(heard.hello.holds, Holds::Formed(_))
        });
        let others = alike.map(|(name, heard)| (name.to_string(), heard.key));
        let mut nodes: BTreeMap<String, NodeKey> = others.collect();
        nodes.insert(self.me.to_string(), self.key);
        let nodes = nodes.into_iter().take(expect as usize).collect();
        if nodes != self.choice.nodes {
            self.choice = Choice { nodes, since: now };
            self.news(now);
        }
    }

    fn accept_choice(&mut self, expect: u32, now: Time) -> Option<Step> {
        if let Some(trouble) = self.dissent(expect).or_else(|| self.shared_key()) {
            return self.trouble(trouble);
        }
        self.last_trouble = None;
        if let Some(record) = self.promised(expect) {
            return Some(Step::Save(Holds::Accepted(record)));
        }
        let Choice { nodes, since } = &self.choice;
        let complete =
            nodes.len() == expect as usize && nodes.get(self.me.as_str()) == Some(&self.key);
        let stands = |since: Time| now.since(since) >= STABLE;
        let agrees = |heard: &Heard| heard.hello.heard == *nodes && stands(heard.since);
        let mut others = nodes.keys().filter(|name| **name != self.me.as_str());
        let all = others.all(|other| {
            name(other).is_some_and(|other| self.heard.get(&other).is_some_and(agrees))
        });
        if !(complete && stands(*since) && all) {
            return None;
        }
        let voters = nodes.iter().map(|(name, key)| (*key, name.clone()));
        let record = Formation {
            voters: voters.collect(),
            settings: self.settings,
            origin: None,
            witnesses: std::collections::BTreeSet::new(),
        };
        (!self.is_refused(&record)).then_some(Step::Save(Holds::Accepted(record)))
    }

    /// Whoever is not to be formed with, as long as it is there.
    fn dissent(&self, expect: u32) -> Option<Trouble> {
        self.heard.iter().find_map(|(other, heard)| {
            let (other, hello) = (other.clone(), &heard.hello);
            let settings = hello.settings != self.settings;
            match hello.expect {
                None => Some(Trouble::Mixed { other }),
                Some(theirs) if theirs != expect => Some(Trouble::Expect {
                    other,
                    theirs,
                    ours: expect,
                }),
                Some(_) => settings.then_some(Trouble::Settings {
                    other,
                    theirs: hello.settings.lease_ms,
                    ours: self.settings.lease_ms,
                }),
            }
        })
    }

    /// A choice with us in it that somebody has accepted, so that nobody who is in it needs to
    /// look for another.
    fn promised(&self, expect: u32) -> Option<Formation> {
        let fits = |record: &&Formation| {
            record.voters.get(&self.key).map(String::as_str) == Some(self.me.as_str())
                && record.voters.len() == expect as usize
                && record.settings == self.settings
                && !self.is_refused(record)
        };
        self.accepted()
            .map(|(_, record)| record)
            .find(fits)
            .cloned()
    }

    /// Whether someone in it has accepted another: it will never be formed.
    fn is_refused(&self, record: &Formation) -> bool {
        let ours = match &self.holds {
            Holds::Accepted(ours) => ours != record && record.voters.contains_key(&self.key),
            Holds::Nothing | Holds::Formed(_) => false,
        };
        let mut others = self.accepted();
        ours || others
            .any(|(heard, other)| other != record && record.voters.contains_key(&heard.key))
    }

    fn accepted(&self) -> impl Iterator<Item = (&Heard, &Formation)> {
        self.heard
            .values()
            .filter_map(|heard| match &heard.hello.holds {
                Holds::Accepted(record) => Some((heard, record)),
                Holds::Nothing | Holds::Formed(_) => None,
            })
    }

    /// Ours will never be formed, nor that of whoever refused it.
    fn conflict(&self, ours: &Formation) -> Option<Trouble> {
        let refuses = |heard: &Heard, theirs: &Formation| {
            theirs != ours && ours.voters.contains_key(&heard.key) && self.is_refused(theirs)
        };
        let (other, _) = self
            .heard
            .iter()
            .find(|(_, heard)| match &heard.hello.holds {
                Holds::Accepted(theirs) => refuses(heard, theirs),
                Holds::Nothing | Holds::Formed(_) => false,
            })?;
        let other = other.clone();
        Some(Trouble::Conflict { other })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECT: u32 = 2;

    fn key(who: &str) -> NodeKey {
        NodeKey(u128::from(who.as_bytes()[0]))
    }

    fn named(who: &str) -> Name {
        Name::new(who).expect("a name")
    }

    fn record(names: &[&str]) -> Formation {
        Formation {
            voters: names
                .iter()
                .map(|who| (key(who), who.to_string()))
                .collect(),
            settings: Settings::default(),
            origin: None,
            witnesses: std::collections::BTreeSet::new(),
        }
    }

    fn lobby(me: &str, holds: Holds) -> Lobby {
        let plan = Plan::Expect(EXPECT);
        Lobby::new(named(me), key(me), plan, Settings::default(), false, holds)
    }

    /// What `from` says: whom it would choose, and what it holds.
    fn hear(
        lobby: &mut Lobby,
        from: &str,
        choice: &[&str],
        holds: Holds,
        at_ms: u64,
    ) -> Option<Step> {
        let hello = Hello {
            question: true,
            holds,
            voters: Vec::new(),
            settings: Settings::default(),
            heard: choice
                .iter()
                .map(|who| (who.to_string(), key(who)))
                .collect(),
            expect: Some(EXPECT),
            witness: false,
        };
        lobby.on_hello(&named(from), key(from), hello, Time(at_ms * 1_000))
    }

    fn accept(names: &[&str]) -> Option<Step> {
        Some(Step::Save(Holds::Accepted(record(names))))
    }

    /// Our own choice has stood for long, but the other had another a moment ago.
    #[test]
    fn a_choice_stands_at_everyone_before_it_is_accepted() {
        let mut a = lobby("a", Holds::Nothing);
        for at in [0, 500, 1_000, 1_500] {
            assert_eq!(hear(&mut a, "b", &["b", "x"], Holds::Nothing, at), None);
        }
        for at in [1_600, 2_000, 2_500] {
            assert_eq!(
                hear(&mut a, "b", &["a", "b"], Holds::Nothing, at),
                None,
                "{at}"
            );
        }
        assert_eq!(
            hear(&mut a, "b", &["a", "b"], Holds::Nothing, 2_600),
            accept(&["a", "b"])
        );
    }

    /// Whoever is in an accepted choice accepts it at once, though it would choose another by now.
    #[test]
    fn an_accepted_choice_is_followed() {
        let mut c = lobby("c", Holds::Nothing);
        assert_eq!(hear(&mut c, "a", &["a", "b"], Holds::Nothing, 0), None);
        let promised = Holds::Accepted(record(&["b", "c"]));
        assert_eq!(
            hear(&mut c, "b", &["a", "b"], promised, 100),
            accept(&["b", "c"])
        );
    }

    /// But not if someone in it has accepted another, so that it will never be formed, nor one that
    /// does not name us.
    #[test]
    fn what_cannot_be_formed_is_not_followed() {
        let mut b = lobby("b", Holds::Nothing);
        let refused = Holds::Accepted(record(&["b", "d"]));
        let other = Holds::Accepted(record(&["c", "d"]));
        assert_eq!(hear(&mut b, "d", &["c", "d"], other, 0), None);
        assert_eq!(hear(&mut b, "e", &["b", "d"], refused, 100), None);
    }

    /// A record of which nobody is in the formed cluster may have been formed as well: that cluster
    /// is another one. One that shares a node with it cannot have been.
    #[test]
    fn a_promise_is_left_for_what_excludes_it_alone() {
        let formed = |names| Holds::Formed(record(names));
        let mut a = lobby("a", Holds::Accepted(record(&["a", "b"])));
        let other = Trouble::OtherCluster { other: named("c") };
        assert_eq!(
            hear(&mut a, "c", &[], formed(&["c", "d"]), 0),
            Some(Step::Trouble(other))
        );
        let step = hear(&mut a, "c", &[], formed(&["b", "c"]), 100);
        assert_eq!(step, Some(Step::Save(formed(&["b", "c"]))));
    }

    /// Who has said nothing for two seconds is not chosen any more.
    #[test]
    fn the_silent_are_not_chosen() {
        let mut b = lobby("b", Holds::Nothing);
        hear(&mut b, "a", &["a", "b"], Holds::Nothing, 0);
        hear(&mut b, "c", &["b", "c"], Holds::Nothing, 1_900);
        assert_eq!(
            b.hello(true).heard.into_keys().collect::<Vec<_>>(),
            ["a", "b"]
        );
        hear(&mut b, "c", &["b", "c"], Holds::Nothing, 2_000);
        assert_eq!(
            b.hello(true).heard.into_keys().collect::<Vec<_>>(),
            ["b", "c"]
        );
    }
}
