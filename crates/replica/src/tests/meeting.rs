//! Two brokers, each with nodes of one name, that are bridged later.

use std::time::Duration;

use raft::{Durable, NodeKey, Time};

use super::world::{World, cluster_key, name};
use crate::Plan;
use crate::formation::Trouble;
use crate::frame::{Header, VERSION};
use crate::keys::{ClusterId, KeyRing};
use crate::replica::{Config, Event, StopReason};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn config(who: &str, key: u128, voters: &[&str]) -> Config {
    let voters = voters.iter().map(|text| name(text)).collect();
    Config {
        ring: KeyRing::of(cluster_key(7)),
        ..Config::new(name(who), NodeKey(key << 100), name("plant"), voters)
    }
}

/// Nodes with keys from `first_key` on.
fn start(world: &mut World, names: &[&str], first_key: u128) {
    for (who, key) in names.iter().zip(first_key..) {
        world.start(config(who, key, names), None, Durable::default());
    }
}

/// Two worlds and what carries messages between them.
struct Sites {
    here: World,
    there: World,
    /// How much of what each published has been carried over, frames and statuses.
    carried: Option<[(usize, usize); 2]>,
}

impl Sites {
    /// A cluster of each list of names, formed while nothing connects them.
    fn formed(here: &[&str], there: &[&str]) -> Sites {
        let mut sites = Sites {
            here: World::empty(),
            there: World::second(),
            carried: None,
        };
        start(&mut sites.here, here, 1);
        start(&mut sites.there, there, 11);
        sites.run(6 * SECOND);
        assert!(
            is_exclusive(&sites.here),
            "a leader that claims to be the only one"
        );
        assert!(is_exclusive(&sites.there), "and another");
        sites
    }

    /// The bridge comes up, and brings over what each broker has kept.
    fn bridge(&mut self) {
        for publish in self.here.retained() {
            self.there.bring(publish);
        }
        for publish in self.there.retained() {
            self.here.bring(publish);
        }
        self.carried =
            Some([&self.here, &self.there].map(|w| (w.captured.len(), w.statuses.len())));
    }

    fn cut(&mut self) {
        self.carried = None;
    }

    fn run(&mut self, duration: Duration) {
        let end = self.here.now + duration;
        while self.here.now < end {
            self.here.run(MS);
            self.there.run(MS);
            self.carry();
        }
    }

    fn carry(&mut self) {
        let Some([here, there]) = &mut self.carried else {
            return;
        };
        carry(&self.here, here, &mut self.there);
        carry(&self.there, there, &mut self.here);
    }
}

fn carry(from: &World, carried: &mut (usize, usize), to: &mut World) {
    for publish in from
        .captured
        .iter()
        .skip(carried.0)
        .chain(from.statuses.iter().skip(carried.1))
    {
        to.bring(publish.clone());
    }
    *carried = (from.captured.len(), from.statuses.len());
}

/// Whether a node claims at this moment to be the only leader.
fn is_exclusive(world: &World) -> bool {
    world
        .nodes
        .values()
        .any(|node| node.replica.status().is_leader && !node.down)
}

fn times_told(world: &World, who: &str, trouble: impl Fn(&Trouble) -> bool) -> usize {
    let told = |event: &&Event| matches!(event, Event::Trouble(what) if trouble(what));
    world.node(who).events.iter().filter(told).count()
}

fn trouble(world: &World, who: &str) -> String {
    world.node(who).replica.status().trouble.unwrap_or_default()
}

fn is_other_cluster(what: &Trouble) -> bool {
    matches!(what, Trouble::OtherCluster { .. })
}

fn stop_reason(world: &World, who: &str) -> Option<StopReason> {
    world.node(who).events.iter().find_map(|event| match event {
        Event::Stop(reason) => Some(reason.clone()),
        _ => None,
    })
}

/// Every member of both sides says once that there is another cluster and shows it as long as it
/// lasts; nobody claims to be the only leader, until the nodes of one side have stopped.
#[test]
fn two_clusters_that_meet_make_no_claims_until_one_is_retired() {
    let mut sites = Sites::formed(&["a", "b", "c"], &["x", "y", "z"]);
    sites
        .here
        .start(config("o", 5, &[]), None, Durable::default());
    sites.run(SECOND);
    sites.bridge();
    sites.run(2 * SECOND);
    for _ in 0..40 {
        sites.run(SECOND);
        assert!(!is_exclusive(&sites.here) && !is_exclusive(&sites.there));
    }
    for (world, names) in [
        (&sites.here, ["a", "b", "c", "o"]),
        (&sites.there, ["x", "y", "z", "z"]),
    ] {
        for who in names {
            assert_eq!(times_told(world, who, is_other_cluster), 1, "{who}");
            assert!(
                trouble(world, who).contains("is of another cluster"),
                "{who}"
            );
        }
    }
    sites.here.assert_alive("b");
    for who in ["x", "y", "z"] {
        sites.there.kill(who);
    }
    sites.run(6 * SECOND);
    assert!(is_exclusive(&sites.here), "the other is retired");
    for who in ["a", "b", "c", "o"] {
        assert_eq!(trouble(&sites.here, who), "", "{who}");
        let ended =
            |event: &Event| matches!(event, Event::TroubleEnded(what) if is_other_cluster(what));
        assert!(sites.here.node(who).events.iter().any(ended), "{who}");
    }
}

/// The same where both sites have used the same names: the nodes of one name are told apart, and
/// say that there are two.
#[test]
fn two_clusters_of_the_same_names_are_told_apart() {
    let mut sites = Sites::formed(&["a", "b", "c"], &["a", "b", "c"]);
    sites.bridge();
    sites.run(5 * SECOND);
    assert!(!is_exclusive(&sites.here) && !is_exclusive(&sites.there));
    for world in [&sites.here, &sites.there] {
        for who in ["a", "b", "c"] {
            assert_eq!(times_told(world, who, is_other_cluster), 1, "{who}");
            let shared = |what: &Trouble| matches!(what, Trouble::SharedName { .. });
            assert_eq!(times_told(world, who, shared), 1, "{who}");
            assert_eq!(stop_reason(world, who), None, "{who}");
        }
    }
    sites.here.assert_alive("a");
    sites.there.assert_alive("a");
    for who in ["a", "b", "c"] {
        sites.there.kill(who);
    }
    sites.run(6 * SECOND);
    assert!(is_exclusive(&sites.here));
}

/// A bridge that is cut again is no retirement: whoever was met counts for half a minute more.
#[test]
fn claims_come_back_half_a_minute_after_the_bridge_is_cut() {
    let mut sites = Sites::formed(&["a", "b", "c"], &["x", "y", "z"]);
    sites.bridge();
    sites.run(2 * SECOND);
    sites.cut();
    sites.run(24 * SECOND);
    assert!(!is_exclusive(&sites.here) && !is_exclusive(&sites.there));
    sites.run(8 * SECOND);
    assert!(is_exclusive(&sites.here) && is_exclusive(&sites.there));
}

/// Whoever follows a leader that fell while the other cluster was there makes no claim either.
#[test]
fn a_new_leader_makes_no_claim_beside_another_cluster() {
    let mut sites = Sites::formed(&["a", "b", "c"], &["x", "y", "z"]);
    sites.bridge();
    sites.run(2 * SECOND);
    let leader = sites.here.leader().expect("a leader");
    sites.here.restart(leader.as_str());
    for _ in 0..100 {
        sites.run(100 * MS);
        assert!(!is_exclusive(&sites.here));
    }
    assert!(sites.here.leader().is_some());
}

/// Frames of a cluster that is gone, played by the broker again and again, are no cluster.
#[test]
fn replayed_frames_of_another_cluster_take_no_claim_away() {
    let mut sites = Sites::formed(&["a", "b", "c"], &["x", "y", "z"]);
    let frames: Vec<_> = sites
        .there
        .captured
        .iter()
        .rev()
        .take(200)
        .cloned()
        .collect();
    for frame in frames {
        for who in ["a", "b", "c"] {
            sites.here.inject(who, &frame.topic, &frame.payload);
        }
        sites.here.run(50 * MS);
    }
    assert!(is_exclusive(&sites.here));
    assert_eq!(times_told(&sites.here, "a", is_other_cluster), 0);
}

/// As long as nobody is met nothing is asked: a formed cluster is silent in the lobby, but that each
/// voter measures its round trip six times a minute.
#[test]
fn a_cluster_alone_says_nothing_in_the_lobby() {
    let mut world = World::empty();
    start(&mut world, &["a", "b", "c"], 1);
    world.run(10 * SECOND);
    let before = world.captured.len();
    world.run(60 * SECOND);
    let lobby = ClusterId::new("raft/plant", None);
    let frames = &world.captured[before..];
    let to_itself = |frame: &crate::Publish| {
        let mut levels = frame.topic.rsplit('/');
        levels.next() == levels.next()
    };
    let in_lobby = |frame: &&crate::Publish| {
        Header::parse(&frame.payload, VERSION).is_ok_and(|header| header.cluster == lobby)
    };
    assert!(frames.len() > 200, "heartbeats and their answers");
    let (own, others): (Vec<_>, Vec<_>) =
        frames.iter().filter(in_lobby).partition(|f| to_itself(f));
    assert_eq!((own.len(), others.len()), (3 * 6, 0));
}

/// Twice as many nodes as are expected, half of them on each side of a bridge that is down: two
/// clusters, which is why the help text forbids it. They notice when it comes up.
#[test]
fn two_halves_that_expected_the_same_notice_when_they_meet() {
    let mut sites = Sites {
        here: World::empty(),
        there: World::second(),
        carried: None,
    };
    let expecting = |who: &str, key| Config {
        plan: Plan::Expect(2),
        ..config(who, key, &[])
    };
    for (who, key) in [("a", 1), ("b", 2)] {
        sites
            .here
            .start(expecting(who, key), None, Durable::default());
    }
    for (who, key) in [("c", 3), ("d", 4)] {
        sites
            .there
            .start(expecting(who, key), None, Durable::default());
    }
    sites.run(6 * SECOND);
    assert!(is_exclusive(&sites.here) && is_exclusive(&sites.there));
    sites.bridge();
    sites.run(3 * SECOND);
    assert!(!is_exclusive(&sites.here) && !is_exclusive(&sites.there));
    for (world, names) in [(&sites.here, ["a", "b"]), (&sites.there, ["c", "d"])] {
        for who in names {
            assert_eq!(times_told(world, who, is_other_cluster), 1, "{who}");
        }
    }
}

// One key, two processes.

/// A cluster here, and there a copy of the disk of `c`, started where it reaches nobody.
fn with_copy_of_c(age: Duration) -> Sites {
    let mut here = World::empty();
    start(&mut here, &["a", "b", "c"], 1);
    here.run(age);
    here.assert_alive("a");
    let mut there = World::second();
    there.now = here.now;
    let c = here.node("c");
    there.start(c.config.clone(), c.formation.clone(), c.durable.clone());
    let mut sites = Sites {
        here,
        there,
        carried: None,
    };
    sites.run(3 * SECOND);
    sites
}

fn is_twin(what: &Trouble) -> bool {
    matches!(what, Trouble::Twin { .. })
}

/// The frames of consensus that a world published after its first `after`.
fn consensus_frames(world: &World, after: usize) -> usize {
    let lobby = ClusterId::new("raft/plant", None);
    let of_cluster = |frame: &&crate::Publish| {
        Header::parse(&frame.payload, VERSION).is_ok_and(|header| header.cluster != lobby)
    };
    world.captured.iter().skip(after).filter(of_cluster).count()
}

/// An idle copy of a voter that comes to life beside its original stops; the original goes on, is
/// heard again by everyone, and its vote counts.
#[test]
fn a_copied_voter_gives_way_to_its_original() {
    let mut sites = with_copy_of_c(15 * SECOND);
    sites.bridge();
    let mut silent_since = None;
    for _ in 0..3_000 {
        sites.run(MS);
        if silent_since.is_none() && times_told(&sites.there, "c", is_twin) > 0 {
            silent_since = Some(sites.there.captured.len());
        }
    }
    let since = silent_since.expect("the copy hears of its original");
    assert_eq!(
        consensus_frames(&sites.there, since),
        0,
        "it is silent from then on"
    );
    assert_eq!(
        stop_reason(&sites.there, "c"),
        Some(StopReason::Twin(name("c")))
    );
    assert_eq!(stop_reason(&sites.here, "c"), None);
    assert_eq!(times_told(&sites.here, "c", is_twin), 1);
    assert!(trouble(&sites.here, "c").contains("one data directory is a copy"));
    sites.run(3 * SECOND);
    let leader = sites.here.leader().expect("a leader");
    let other = ["a", "b"]
        .into_iter()
        .find(|who| *who != leader.as_str())
        .expect("another");
    sites.here.kill(other);
    sites.here.assert_alive("c");
}

/// A copy of a whole site, with a leader of its own: both histories are as good, so that all of
/// both stop, and an operator chooses.
#[test]
fn two_copies_of_a_whole_site_stop_each_other() {
    let mut here = World::empty();
    start(&mut here, &["a", "b", "c"], 1);
    here.run(5 * SECOND);
    let mut there = World::second();
    there.now = here.now;
    for node in here.nodes.values() {
        there.start(
            node.config.clone(),
            node.formation.clone(),
            node.durable.clone(),
        );
    }
    let mut sites = Sites {
        here,
        there,
        carried: None,
    };
    sites.run(15 * SECOND);
    assert!(is_exclusive(&sites.here) && is_exclusive(&sites.there));
    sites.bridge();
    sites.run(3 * SECOND);
    for world in [&sites.here, &sites.there] {
        for who in ["a", "b", "c"] {
            assert_eq!(
                stop_reason(world, who),
                Some(StopReason::Twin(name(who))),
                "{who}"
            );
        }
        assert!(!is_exclusive(world));
    }
}

/// A twin that dies before it answers costs its original five seconds, not its place.
#[test]
fn a_twin_that_dies_at_once_is_waited_for_and_forgotten() {
    let mut sites = with_copy_of_c(15 * SECOND);
    sites.bridge();
    for _ in 0..1_000 {
        sites.run(MS);
        if times_told(&sites.here, "c", is_twin) > 0 {
            break;
        }
    }
    sites.cut();
    sites.there.vanish("c");
    sites.run(20 * SECOND);
    assert_eq!(stop_reason(&sites.here, "c"), None);
    sites.here.assert_alive("c");
}

/// Simulated clocks begin at one second: nobody has stood for ten.
#[test]
fn of_two_that_have_not_stood_none_goes_on() {
    let mut sites = with_copy_of_c(3 * SECOND);
    assert!(sites.here.now < Time(10_000_000));
    sites.bridge();
    sites.run(3 * SECOND);
    assert_eq!(
        stop_reason(&sites.there, "c"),
        Some(StopReason::Twin(name("c")))
    );
    assert_eq!(
        stop_reason(&sites.here, "c"),
        Some(StopReason::Twin(name("c")))
    );
    sites.here.assert_alive("a");
}

// A lost disk.

/// A voter that lost its disk comes back as another node: it says, once and as long as it lasts,
/// that the voter is gone and how it gets its vote back.
#[test]
fn a_wiped_voter_says_what_is_gone() {
    let mut world = World::empty();
    start(&mut world, &["a", "b", "c"], 1);
    world.run(5 * SECOND);
    world.kill("c");
    world.start(config("c", 9, &["a", "b", "c"]), None, Durable::default());
    world.run(5 * SECOND);
    world.assert_alive("a");
    let wiped = |what: &Trouble| matches!(what, Trouble::Wiped { .. });
    assert_eq!(times_told(&world, "c", wiped), 1);
    assert!(trouble(&world, "c").contains("mqraft member replace c"));
    assert_eq!(times_told(&world, "a", wiped), 0);
    let shared = |what: &Trouble| matches!(what, Trouble::SharedName { .. });
    assert_eq!(
        times_told(&world, "c", shared),
        0,
        "what it was is not there any more"
    );
}
