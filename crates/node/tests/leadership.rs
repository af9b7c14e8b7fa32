//! Leadership as those use it who act on it: a guard, its token, its end, and its hand-over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use raft_over_mqtt::{Leadership, LeadershipToken, Mqtt, RaftNode};
use rustix::time::{ClockId, clock_gettime};
use testkit::{Mosquitto, TempDir};

const SOON: Duration = Duration::from_secs(30);

/// A short lease, so that waiting for one is over soon.
const LEASE: Duration = Duration::from_millis(600);

struct Plant {
    _broker: Mosquitto,
    _dir: TempDir,
    nodes: Vec<RaftNode>,
}

impl Plant {
    async fn start() -> Plant {
        let broker = Mosquitto::builder().start();
        let dir = testkit::temp_dir();
        let names = ["gw-1", "gw-2", "gw-3"];
        let mut nodes = Vec::new();
        for name in names {
            let node = RaftNode::initialize(Mqtt::new(&broker.url()).expect("a URL"), name)
                .voters(names)
                .data_dir(dir.path().join(name))
                .election_timeout(LEASE)
                .hand_over(None)
                .insecure()
                .start();
            nodes.push(node.await.expect("it starts"));
        }
        Plant {
            _broker: broker,
            _dir: dir,
            nodes,
        }
    }

    /// Who is the only leader, once somebody is.
    async fn leadership(&self) -> (usize, Leadership) {
        let [a, b, c] = self.nodes.as_slice() else {
            unreachable!("three of them")
        };
        let first = async {
            tokio::select! {
                held = a.leadership() => (0, held),
                held = b.leadership() => (1, held),
                held = c.leadership() => (2, held),
            }
        };
        let (n, held) = in_time(first).await;
        (n, held.expect("it runs"))
    }

    /// Somebody else's name.
    fn other(&self, n: usize) -> String {
        format!("gw-{}", (n + 1) % 3 + 1)
    }
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("in time")
}

fn run(test: impl Future<Output = ()>) {
    if !testkit::mosquitto_or_skip() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(test);
}

/// While somebody acts on the lease, the lead is not handed over; as soon as they have stopped, it is,
/// and the successor does not wait for the lease to run out. Tokens grow.
#[test]
fn a_hand_over_waits_for_the_guard() {
    run(async {
        let plant = Plant::start().await;
        let (n, held) = plant.leadership().await;
        assert!(held.is_held() && plant.nodes[n].is_leader());
        assert_eq!(Some(held.token()), plant.nodes[n].fencing_token());
        let (leader, to) = (plant.nodes[n].clone(), plant.other(n));
        let transfer = tokio::spawn(async move { leader.transfer(Some(&to)).await });
        in_time(held.lost()).await;
        assert!(
            !plant.nodes[n].is_leader(),
            "the claim is withdrawn at once"
        );
        assert!(!held.is_held());
        // What the guard protects goes on for a while: nobody else may begin before it is over.
        let end = Instant::now() + LEASE / 4;
        while Instant::now() < end {
            assert!(plant.nodes.iter().all(|node| !node.is_leader()));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let token = held.token();
        drop(held);
        let dropped = Instant::now();
        let (m, next) = plant.leadership().await;
        let gap = dropped.elapsed();
        println!("exclusive again {gap:?} after the release");
        assert_ne!(m, n);
        assert!(next.token() > token);
        assert!(gap < LEASE, "{gap:?}: it waited for the lease");
        let leads = in_time(transfer).await.expect("no panic").expect("done");
        assert_eq!(leads, plant.other(n));
    });
}

/// A leader that nobody has a handle of leaves. While it waits for whoever still acts on the lease it
/// sleeps, as everyone who waits does.
#[test]
fn an_abandoned_leader_waits_without_work() {
    run(async {
        let mut plant = Plant::start().await;
        let (n, held) = plant.leadership().await;
        drop(plant.nodes.remove(n));
        in_time(held.lost()).await;
        let worked = || {
            let time = clock_gettime(ClockId::ProcessCPUTime);
            Duration::try_from(time).expect("it does not go back")
        };
        let before = worked();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let worked = worked() - before;
        println!("worked for {worked:?} in 3 s");
        assert!(worked < Duration::from_millis(400), "{worked:?} in 3 s");
    });
}

/// Whoever does not let go is not waited for for ever: the lead goes without a release, and the
/// successor waits the lease out.
#[test]
fn who_does_not_let_go_costs_the_lease() {
    run(async {
        let plant = Plant::start().await;
        let (n, held) = plant.leadership().await;
        let (leader, to) = (plant.nodes[n].clone(), plant.other(n));
        let began = Instant::now();
        let transfer = tokio::spawn(async move { leader.transfer(Some(&to)).await });
        in_time(held.lost()).await;
        let (m, next) = plant.leadership().await;
        let took = began.elapsed();
        assert_ne!(m, n);
        assert!(next.token() > held.token());
        assert!(
            took > Duration::from_secs(10),
            "{took:?}: it was waited for"
        );
        let _ = in_time(transfer).await;
    });
}

/// Work runs on one node at a time, is dropped when the claim is lost, and goes on elsewhere.
#[test]
fn work_moves_with_the_lead() {
    run(async {
        let plant = Plant::start().await;
        let at_work = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let tokens = Arc::new(std::sync::Mutex::new(Vec::<LeadershipToken>::new()));
        let done = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for node in plant.nodes.clone() {
            let (at_work, most, tokens, done) = (
                Arc::clone(&at_work),
                Arc::clone(&most),
                Arc::clone(&tokens),
                Arc::clone(&done),
            );
            tasks.push(tokio::spawn(async move {
                node.while_leader(|leadership| {
                    let working = Working::begin(&at_work, &most);
                    tokens.lock().expect("no panic").push(leadership.token());
                    let done = Arc::clone(&done);
                    async move {
                        let _working = working;
                        while !done.load(Ordering::Relaxed) {
                            tokio::time::sleep(Duration::from_millis(2)).await;
                        }
                    }
                })
                .await
            }));
        }
        for _ in 0..4 {
            let (n, held) = plant.leadership().await;
            drop(held);
            let works = async {
                while at_work.load(Ordering::SeqCst) == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            in_time(works).await;
            let to = plant.other(n);
            in_time(plant.nodes[n].transfer(Some(&to)))
                .await
                .expect("handed over");
        }
        let (_, held) = plant.leadership().await;
        drop(held);
        // Whoever leads now works, and so comes to an end of its work once it may.
        let works = async {
            while at_work.load(Ordering::SeqCst) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        in_time(works).await;
        done.store(true, Ordering::Relaxed);
        let rests = async {
            while at_work.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        in_time(rests).await;
        let tokens = tokens.lock().expect("no panic").clone();
        assert!(tokens.len() >= 4, "{tokens:?}");
        assert!(tokens.is_sorted(), "{tokens:?}");
        assert_eq!(most.load(Ordering::Relaxed), 1, "never two at once");
        for node in &plant.nodes {
            node.shutdown().await.expect("it ends");
        }
        let mut finished = 0;
        for task in tasks {
            finished += usize::from(in_time(task).await.expect("no panic").is_ok());
        }
        assert!(finished >= 1, "the work came to its end");
    });
}

/// Counts who works, and drops with the work.
struct Working(Arc<AtomicUsize>);

impl Working {
    fn begin(at_work: &Arc<AtomicUsize>, most: &AtomicUsize) -> Working {
        let now = at_work.fetch_add(1, Ordering::SeqCst) + 1;
        most.fetch_max(now, Ordering::SeqCst);
        Working(Arc::clone(at_work))
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A node that stops ends the wait for its leadership.
#[test]
fn waiting_ends_with_the_node() {
    run(async {
        let plant = Plant::start().await;
        let (n, held) = plant.leadership().await;
        let waits = plant.nodes[(n + 1) % 3].clone();
        let waiting = tokio::spawn(async move { waits.leadership().await.map(|_| ()) });
        plant.nodes[(n + 1) % 3].shutdown().await.expect("it ends");
        assert!(in_time(waiting).await.expect("no panic").is_err());
        drop(held);
    });
}
