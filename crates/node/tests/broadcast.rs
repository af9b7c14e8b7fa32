//! One publish per append, whatever the number of voters: counted at the broker.

use std::time::Duration;

use mqtt::{Event, Options, Qos, SessionSetup};
use raft_over_mqtt::{Mqtt, RaftNode};
use testkit::{Mosquitto, TempDir};

const PUTS: usize = 50;
const VALUE: usize = 1_000;
const SOON: Duration = Duration::from_secs(30);

/// What a broker carried while `PUTS` values were put one after the other.
#[derive(Debug, Default)]
struct Carried {
    /// Broadcasts of the leader that are large enough to hold a value.
    appends: usize,
    /// Frames of the leader to one follower.
    unicasts: usize,
    /// Frames to the leader: acknowledgements.
    answers: usize,
}

#[test]
fn three_voters() {
    one_publish_per_append(3);
}

#[test]
fn five_voters() {
    one_publish_per_append(5);
}

#[test]
fn seven_voters() {
    one_publish_per_append(7);
}

fn one_publish_per_append(voters: usize) {
    if !testkit::mosquitto_or_skip() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let carried = runtime.expect("a runtime").block_on(count(voters));
    println!("{voters} voters, {PUTS} puts: {carried:?}");
    assert_eq!(carried.appends, PUTS, "one publish per append");
    assert_eq!(carried.unicasts, 0, "nobody had to be brought up to date");
    assert!(
        carried.answers >= PUTS * (voters - 1) / 2,
        "a majority acknowledged each"
    );
}

async fn count(voters: usize) -> Carried {
    let mosquitto = Mosquitto::builder().start();
    let dir = testkit::temp_dir();
    let names: Vec<String> = (1..=voters).map(|number| format!("gw-{number}")).collect();
    let mut nodes = Vec::new();
    for name in &names {
        nodes.push(start(&mosquitto.url(), name, &names, &dir).await);
    }
    for node in &nodes {
        let mut status = node.watch_status();
        let follows = status.wait_for(|status| status.leader.is_some());
        tokio::time::timeout(SOON, follows)
            .await
            .expect("in time")
            .expect("it runs");
    }
    // Everyone holds the first write before the counting begins.
    nodes[0].put("warm", "up").await.expect("a write");
    for node in &nodes {
        let mut status = node.watch_status();
        let holds = status.wait_for(|status| status.applied_index >= 3);
        tokio::time::timeout(SOON, holds)
            .await
            .expect("in time")
            .expect("it runs");
    }
    let leader = nodes[0].leader().expect("someone leads");
    let node = &nodes[names
        .iter()
        .position(|name| *name == leader)
        .expect("one of ours")];

    let mut listener = Listener::connect(&mosquitto.url()).await;
    for number in 0..PUTS {
        node.put(format!("key-{number}"), vec![b'x'; VALUE])
            .await
            .expect("a write");
    }
    listener.count_until_marked(&leader).await
}

async fn start(url: &str, name: &str, voters: &[String], dir: &TempDir) -> RaftNode {
    RaftNode::initialize(Mqtt::new(url).expect("a URL"), name)
        .cluster("counted")
        .voters(voters)
        .data_dir(dir.path().join(name))
        .election_timeout(Duration::from_secs(10))
        .insecure()
        .start()
        .await
        .expect("the node starts")
}

/// A client that hears everything, and a mark of its own for the end of what is to be counted.
struct Listener {
    publisher: mqtt::Publisher,
    events: mqtt::Events,
}

const MARK: &str = "counted/mark";

impl Listener {
    async fn connect(url: &str) -> Listener {
        let options = Options::new(url.parse().expect("a URL"));
        let setup = |_| SessionSetup {
            client_id: "listener".to_owned(),
            will: None,
            subscriptions: vec![
                ("raft/counted/rpc/#".to_owned(), Qos::AtMostOnce),
                (MARK.to_owned(), Qos::AtMostOnce),
            ],
        };
        let (publisher, mut events) = mqtt::connect(options, setup).expect("options");
        let connected = tokio::time::timeout(SOON, events.next())
            .await
            .expect("in time");
        assert!(
            matches!(connected, Some(Event::Connected { .. })),
            "{connected:?}"
        );
        Listener { publisher, events }
    }

    async fn count_until_marked(&mut self, leader: &str) -> Carried {
        self.publisher
            .publish(MARK, "end".into(), Qos::AtMostOnce, false)
            .expect("queued");
        let mut carried = Carried::default();
        loop {
            let event = tokio::time::timeout(SOON, self.events.next())
                .await
                .expect("in time");
            let Some(Event::Message(message)) = event else {
                panic!("{event:?}")
            };
            if message.topic == MARK {
                return carried;
            }
            let mut levels = message.topic.rsplit('/');
            let (from, to) = (
                levels.next().expect("a sender"),
                levels.next().expect("a receiver"),
            );
            match (from == leader, to) {
                (true, "all") if message.payload.len() > VALUE => carried.appends += 1,
                (true, "all") => {}
                (true, _) => carried.unicasts += 1,
                (false, to) if to == leader => carried.answers += 1,
                (false, _) => {}
            }
        }
    }
}
