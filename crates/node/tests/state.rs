//! The replicated state on a real broker, from nodes and from clients: what a user of the library sees.

use std::time::{Duration, Instant};

use raft_over_mqtt::{
    Action, ActionResult, Client, Comparison, Condition, Error, KeyEvent, KeyRange, Kv, Mqtt,
    RaftNode, RangeRequest, Session, Target, Transaction, broker::EmbeddedBroker,
};
use testkit::TempDir;

/// Long enough for anything that works at all, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

struct Cluster {
    nodes: Vec<RaftNode>,
    broker: EmbeddedBroker,
    dir: TempDir,
}

impl Cluster {
    async fn start() -> Cluster {
        let broker = EmbeddedBroker::start().await.expect("a broker");
        let dir = TempDir::new().expect("a directory");
        let mut nodes = Vec::new();
        for id in ["gw-1", "gw-2", "gw-3"] {
            nodes.push(start_node(&broker, &dir, id).await);
        }
        for node in &nodes {
            let mut status = node.watch_status();
            let led = status.wait_for(|status| status.leader.is_some());
            let led = tokio::time::timeout(SOON, led).await;
            led.expect("a leader in time").expect("it runs");
        }
        Cluster { nodes, broker, dir }
    }

    async fn start_node(&mut self, id: &str) {
        let node = start_node(&self.broker, &self.dir, id).await;
        self.nodes.push(node);
    }

    async fn client(&self) -> Kv {
        let mqtt = Mqtt::new(&self.broker.url()).expect("a URL");
        let client = Client::connect(mqtt, "raft", "plant-a", None, SOON).await;
        client.expect("it connects").kv()
    }

    fn a_follower(&self) -> &RaftNode {
        let leader = self.nodes[0].leader();
        let ids = ["gw-1", "gw-2", "gw-3"];
        let follower = ids.iter().position(|id| leader.as_deref() != Some(*id));
        &self.nodes[follower.expect("two follow")]
    }
}

async fn start_node(broker: &EmbeddedBroker, dir: &TempDir, id: &str) -> RaftNode {
    let node = RaftNode::initialize(Mqtt::new(&broker.url()).expect("a URL"), id)
        .cluster("plant-a")
        .voters(["gw-1", "gw-2", "gw-3"])
        .data_dir(dir.path().join(id))
        .insecure()
        .start();
    node.await.expect("the node starts")
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("in time")
}

fn prefix(prefix: &'static str) -> KeyRange {
    KeyRange::Prefix(prefix.into())
}

/// A transaction is done whole or not at all, and says what it did.
#[tokio::test]
async fn a_transaction_is_one_step() {
    let cluster = Cluster::start().await;
    for kv in [cluster.a_follower().kv(), cluster.client().await] {
        kv.put("a", "1").await.expect("written");
        let put = |key: &'static str, value: &'static str| Action::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        };
        let transaction = Transaction {
            conditions: vec![Condition {
                key: "a".into(),
                target: Target::Value("1".into()),
                comparison: Comparison::Equal,
            }],
            then: vec![put("a", "2"), put("b", "3")],
            otherwise: vec![Action::Get {
                range: prefix(""),
                oldest: 0,
            }],
        };
        let done = kv.transact(transaction.clone()).await.expect("done");
        assert!(done.succeeded);
        let [a, b] = [kv.get("a").await, kv.get("b").await].map(|read| read.expect("read"));
        let (a, b) = (a.expect("there"), b.expect("there"));
        assert_eq!((a.modified, b.modified), (done.revision, done.revision));
        let again = kv.transact(transaction).await.expect("done");
        assert!(!again.succeeded);
        assert_eq!(again.revision, done.revision, "nothing was changed");
        assert_eq!(again.results, [ActionResult::Got(vec![a, b])]);
        kv.delete("b").await.expect("deleted");
    }
}

/// However many add at once, none is lost; what is no number says so and changes nothing.
#[tokio::test]
async fn a_counter_loses_nothing() {
    let cluster = Cluster::start().await;
    let kvs = [
        cluster.nodes[0].kv(),
        cluster.nodes[1].kv(),
        cluster.client().await,
    ];
    let adders = kvs.iter().flat_map(|kv| {
        let kv = kv.clone();
        (0..50).map(move |_| {
            let kv = kv.clone();
            tokio::spawn(async move { kv.add("parts", 2).await })
        })
    });
    for adder in adders.collect::<Vec<_>>() {
        adder.await.expect("no panic").expect("added");
    }
    assert_eq!(kvs[2].add("parts", -300).await.expect("added"), 0);
    kvs[0].put("text", "x").await.expect("written");
    let refused = kvs[0].add("text", 1).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
}

/// A range that takes many answers is read to its end, and a watch goes on from there: nothing is
/// missed, nothing told twice, whoever is asked.
#[tokio::test]
async fn a_list_and_a_watch_have_no_gap() {
    let cluster = Cluster::start().await;
    let kv = cluster.client().await;
    for n in 0..40 {
        let value = vec![b'v'; 5_000];
        kv.put(format!("big/{n:02}"), value).await.expect("written");
    }
    let one = kv.range(RangeRequest::all(prefix("big/"))).await;
    assert!(one.expect("read").more, "one answer does not hold it");
    for kv in [kv.clone(), cluster.a_follower().kv()] {
        let (pairs, mut watch) = kv.list_and_watch(prefix("big/")).await.expect("listed");
        assert!(pairs.len() >= 40);
        let writer = kv.clone();
        let writes = tokio::spawn(async move {
            for n in 0..100 {
                writer.put(format!("big/{}", n % 7), n.to_string()).await?;
                writer.put("elsewhere", "x").await?;
            }
            writer
                .transact(Transaction {
                    then: vec![Action::Delete(prefix("big/0"))],
                    ..Transaction::default()
                })
                .await
        });
        let mut revision = pairs.iter().map(|pair| pair.modified).max().expect("some");
        for n in 0..100 {
            let event = soon(watch.next()).await.expect("an event");
            let KeyEvent::Put(pair) = event else {
                panic!("{event:?}")
            };
            assert_eq!(pair.value, n.to_string());
            assert!(pair.modified > revision);
            revision = pair.modified;
        }
        let done = writes.await.expect("no panic").expect("done");
        // One revision, as many events as keys went.
        let [ActionResult::Deleted(deleted)] = done.results[..] else {
            panic!("{done:?}")
        };
        assert_eq!(deleted, 11, "big/0 and big/00 to big/09");
        for _ in 0..deleted {
            let event = soon(watch.next()).await.expect("an event");
            assert_eq!(event.revision(), done.revision);
        }
        for n in 0..10 {
            kv.put(format!("big/{n:02}"), "back")
                .await
                .expect("written");
        }
    }
}

/// Whoever asks for what is no longer kept is told so, and from where on it is.
#[tokio::test]
async fn what_is_compacted_is_said() {
    let cluster = Cluster::start().await;
    let kv = cluster.client().await;
    let first = kv.put("k", "first").await.expect("written").revision;
    let value = vec![b'v'; 60_000];
    for _ in 0..80 {
        kv.put("k", value.clone()).await.expect("written");
    }
    for kv in [kv.clone(), cluster.a_follower().kv()] {
        let watched = soon(kv.watch(prefix("k"), first).next()).await;
        let Err(Error::Compacted { oldest }) = watched else {
            panic!("{watched:?}")
        };
        assert!(oldest > first);
        let event = soon(kv.watch(prefix("k"), oldest).next()).await;
        assert_eq!(event.expect("it is kept").revision(), oldest);
    }
}

/// What hangs on a lease goes with it, and no sooner than was promised; kept alive, it stays.
#[tokio::test]
async fn a_lease_ends_when_nobody_keeps_it() {
    let cluster = Cluster::start().await;
    let kv = cluster.client().await;
    let granted = kv.grant(Duration::from_millis(600)).await.expect("granted");
    let lease = granted.lease();
    kv.put_with("here", "yes", Some(lease)).await.expect("put");
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        kv.keep_alive(lease).await.expect("it lives");
    }
    assert!(kv.get("here").await.expect("read").is_some());
    let kept = kv.keep_alive(lease).await.expect("it lives");
    let mut watch = kv.list_and_watch(prefix("here")).await.expect("listed").1;
    let event = soon(watch.next()).await.expect("an event");
    assert!(matches!(event, KeyEvent::Delete { .. }), "{event:?}");
    assert!(
        raft_over_mqtt::now() >= kept.until(),
        "sooner than promised"
    );
    let late = kv.keep_alive(lease).await;
    assert!(matches!(late, Err(Error::NoSuchLease)), "{late:?}");
    let put = kv.put_with("here", "yes", Some(lease)).await;
    assert!(matches!(put, Err(Error::NoSuchLease)), "{put:?}");
    assert_eq!(kv.leases().await.expect("listed"), []);
}

/// One has the lock at a time, in the order in which they asked, with growing tokens; a waiter that
/// gives up leaves the queue.
#[tokio::test]
async fn a_lock_goes_from_hand_to_hand() {
    let cluster = Cluster::start().await;
    let kvs = [cluster.nodes[0].kv(), cluster.client().await];
    let mut sessions = Vec::new();
    for kv in [&kvs[0], &kvs[1], &kvs[1], &kvs[0]] {
        let session = Session::begin(kv, Duration::from_secs(5)).await;
        sessions.push(session.expect("a session"));
    }
    let first = soon(sessions[0].lock("press")).await.expect("free");
    let none = sessions[1].try_lock("press").await.expect("asked");
    assert!(none.is_none(), "somebody has it");
    let impatient = sessions[2].lock("press");
    assert!(
        tokio::time::timeout(Duration::from_millis(300), impatient)
            .await
            .is_err()
    );
    let (session, other) = (sessions[1].clone(), sessions[3].clone());
    let second = tokio::spawn(async move { session.lock("press").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let third = tokio::spawn(async move { other.lock("press").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(first.is_held() && !second.is_finished());
    let (token, released) = (first.token(), Instant::now());
    first.release().await.expect("released");
    let second = soon(second).await.expect("no panic").expect("its turn");
    println!("from release to lock: {:?}", released.elapsed());
    assert!(second.token() > token && !third.is_finished());
    let token = second.token();
    // Dropped, it goes as well.
    drop(second);
    let third = soon(third).await.expect("no panic").expect("its turn");
    assert!(third.token() > token);
    // And so does all of a session that ends.
    sessions[3].end().await.expect("ended");
    assert!(
        soon(sessions[0].try_lock("press"))
            .await
            .expect("asked")
            .is_some()
    );
}

/// Whoever has its place taken away, as an operator can, learns of it at once.
#[tokio::test]
async fn a_lock_that_is_taken_away_is_lost() {
    let cluster = Cluster::start().await;
    let kv = cluster.client().await;
    let session = Session::begin(&kv, SOON).await.expect("a session");
    let held = soon(session.lock("press")).await.expect("free");
    assert!(held.is_held());
    let transaction = Transaction {
        then: vec![Action::Delete(prefix("_/lock/press/"))],
        ..Transaction::default()
    };
    cluster.nodes[0]
        .kv()
        .transact(transaction)
        .await
        .expect("done");
    soon(held.lost()).await;
    assert!(!held.is_held() && session.is_alive());
    assert!(
        soon(session.try_lock("press"))
            .await
            .expect("asked")
            .is_some()
    );
}

#[tokio::test]
async fn a_semaphore_has_so_many_places() {
    let cluster = Cluster::start().await;
    let kv = cluster.client().await;
    let session = Session::begin(&kv, Duration::from_secs(5))
        .await
        .expect("one");
    let places = [
        soon(session.semaphore("ovens", 2)).await.expect("free"),
        soon(session.semaphore("ovens", 2)).await.expect("free"),
    ];
    assert!(
        session
            .try_semaphore("ovens", 2)
            .await
            .expect("asked")
            .is_none()
    );
    let other = session.semaphore("ovens", 3).await;
    assert!(
        matches!(other, Err(Error::Refused(_))),
        "another number: {other:?}"
    );
    let [first, _second] = places;
    first.release().await.expect("released");
    assert!(
        session
            .try_semaphore("ovens", 2)
            .await
            .expect("asked")
            .is_some()
    );
}

/// Nobody passes before all have come; an open barrier lets everyone through until it is reset.
#[tokio::test]
async fn a_barrier_waits_for_all() {
    let cluster = Cluster::start().await;
    let kv = cluster.client().await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(Session::begin(&kv, SOON).await.expect("a session"));
    }
    let come = |n: usize| {
        let session = sessions[n].clone();
        tokio::spawn(async move { session.barrier("start", 3).await })
    };
    let (first, second) = (come(0), come(1));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!first.is_finished() && !second.is_finished());
    let mut opened = Vec::new();
    for party in [come(2), first, second] {
        opened.push(soon(party).await.expect("no panic").expect("open"));
    }
    assert!(opened.iter().all(|revision| *revision == opened[0]));
    assert_eq!(
        soon(sessions[0].barrier("start", 3)).await.expect("open"),
        opened[0]
    );
    kv.reset_barrier("start").await.expect("reset");
    let alone = sessions[0].barrier("start", 2);
    assert!(
        tokio::time::timeout(Duration::from_millis(500), alone)
            .await
            .is_err()
    );
}

/// Each shard is one member's; who goes leaves its own to the others, who see the same revision.
#[tokio::test]
async fn work_is_shared_among_who_is_there() {
    let cluster = Cluster::start().await;
    let shards: Vec<String> = (0..32).map(|n| format!("line-{n}")).collect();
    let (mut sessions, mut works) = (Vec::new(), Vec::new());
    for (me, kv) in [("a", cluster.nodes[0].kv()), ("b", cluster.client().await)] {
        let session = Session::begin(&kv, SOON).await.expect("a session");
        works.push(
            session
                .work("lines", me, shards.clone())
                .await
                .expect("joined"),
        );
        sessions.push(session);
    }
    let mut shared = Vec::new();
    for work in &mut works {
        let mut assignment = soon(work.next()).await.expect("one");
        while assignment.members.len() < 2 {
            assignment = soon(work.next()).await.expect("the next");
        }
        shared.push(assignment);
    }
    let all = shared.iter().flat_map(|assignment| &assignment.mine);
    let mut all: Vec<&String> = all.collect();
    all.sort();
    let mut named: Vec<&String> = shards.iter().collect();
    named.sort();
    assert_eq!(all, named, "each has one owner");
    sessions[1].end().await.expect("ended");
    let alone = soon(works[0].next()).await.expect("the next");
    assert_eq!(alone.mine.len(), shards.len());
    assert!(alone.revision > shared[0].revision);
    let gone = soon(works[1].next()).await;
    assert!(gone.is_err() || gone.is_ok_and(|left| left.mine.is_empty()));
}

/// A session whose holder is cut off ends for its holder before it ends for the others.
#[tokio::test]
async fn a_session_ends_first_for_its_holder() {
    let cluster = Cluster::start().await;
    let (kv, other) = (cluster.client().await, cluster.nodes[0].kv());
    let ttl = Duration::from_millis(800);
    let session = Session::begin(&kv, ttl).await.expect("a session");
    let held = session.lock("press").await.expect("free");
    // Long enough that it must have been kept alive.
    tokio::time::sleep(ttl * 3).await;
    assert!(held.is_held());
    let until = held.until().expect("held");
    // Its keeper stops, as if it were cut off.
    other
        .revoke(session.lease())
        .await
        .expect("ended from elsewhere");
    soon(held.lost()).await;
    assert!(!held.is_held() && raft_over_mqtt::now() <= until + ttl);
    soon(session.ended()).await;
}

/// What belongs to the cluster is not touched by accident.
#[tokio::test]
async fn reserved_keys_are_refused() {
    let cluster = Cluster::start().await;
    let kv = cluster.client().await;
    let session = Session::begin(&kv, SOON).await.expect("a session");
    let _held = session.lock("press").await.expect("free");
    let put = kv.put("_/lock/press/x", "y").await;
    assert!(matches!(put, Err(Error::Refused(_))), "{put:?}");
    let all = Action::Delete(prefix(""));
    let node = Action::Put {
        key: "_/node/gw-9".into(),
        value: "me".into(),
        lease: None,
    };
    let transaction = |action| Transaction {
        then: vec![action],
        ..Transaction::default()
    };
    let done = kv.transact(transaction(all)).await.expect("done");
    assert_eq!(done.results, [ActionResult::Deleted(0)], "the lock stays");
    let forged = kv.transact(transaction(node)).await;
    assert!(matches!(forged, Err(Error::Refused(_))), "{forged:?}");
}

/// Whoever ends a session holds nothing from then on, whatever time was left: others may be let in.
#[tokio::test]
async fn an_ended_session_is_alive_for_nobody() {
    let cluster = Cluster::start().await;
    let kv = cluster.client().await;
    let session = Session::begin(&kv, SOON * 3).await.expect("a session");
    let held = soon(session.lock("press")).await.expect("free");
    session.end().await.expect("ended");
    assert!(!session.is_alive() && !held.is_held());
    soon(session.ended()).await;
    soon(held.lost()).await;
    let late = soon(session.lock("press")).await;
    assert!(matches!(late, Err(Error::NoSuchLease)), "{late:?}");
}

/// A lock that is released while nobody leads is left once somebody does, though its session lives on;
/// so is one that is dropped, on a thread that knows of no runtime too.
#[tokio::test]
async fn a_release_in_vain_is_made_good() {
    let mut cluster = Cluster::start().await;
    let kv = cluster.client().await.with_timeout(Duration::from_secs(2));
    let session = Session::begin(&kv, SOON * 6).await.expect("a session");
    let mut held = Vec::new();
    for name in ["released", "dropped", "dropped elsewhere"] {
        held.push(soon(session.lock(name)).await.expect("free"));
    }
    for node in cluster.nodes.split_off(1) {
        node.shutdown().await.expect("it ends");
    }
    let elsewhere = held.pop().expect("the third");
    let thread = std::thread::spawn(move || drop(elsewhere));
    thread.join().expect("no panic");
    drop(held.pop());
    let released = held.remove(0).release().await;
    assert!(released.is_err(), "nobody leads: {released:?}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.start_node("gw-2").await;
    for name in ["released", "dropped", "dropped elsewhere"] {
        let again = soon(async {
            loop {
                match session.lock(name).await {
                    Err(Error::TimedOut(_) | Error::Unknown(_)) => {}
                    again => return again,
                }
            }
        });
        again.await.expect("it is free");
    }
}

/// Who came to a barrier last and was cancelled before it opened has come all the same.
#[tokio::test]
async fn a_barrier_opens_where_the_last_to_come_went_on_too_soon() {
    let cluster = Cluster::start().await;
    let kv = cluster.client().await;
    let first = Session::begin(&kv, SOON * 3).await.expect("a session");
    let second = Session::begin(&kv, SOON * 3).await.expect("a session");
    let waits = tokio::spawn(async move { first.barrier("start", 2).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    // What is left of the second one's call.
    let come = Action::Put {
        key: format!("_/barrier/start/{:016x}", second.lease().0).into(),
        value: "2".into(),
        lease: Some(second.lease()),
    };
    let come = Transaction {
        then: vec![come],
        ..Transaction::default()
    };
    kv.transact(come).await.expect("it came");
    soon(waits).await.expect("no panic").expect("open");
}
