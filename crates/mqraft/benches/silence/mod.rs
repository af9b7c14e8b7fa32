//! A leader that vanishes without a word: its network namespace is cut off from the broker.
//!
//! ```text
//!   gw-1 in mqrb-1 ──veth──┐
//!   gw-2 in mqrb-2 ──veth──┼── Mosquitto ── this process: a client, and a listener on rpc/all
//!   gw-3 in mqrb-3 ──veth──┘
//! ```
//!
//! The broker notices nothing until it looks at keepalives, long after: the voters' own election timeout
//! decides. The figure counts from the last message of the leader that the broker passed on, as the
//! listener saw it, to the acknowledgement of a write that was begun right after the cut.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use raft_over_mqtt::{Mqtt, Remote};
use testkit::Mosquitto;

use crate::failover::row;
use crate::floor::wire::Link;
use crate::nodes::{CLUSTER, Nodes, PATIENCE};
use crate::table::{self, Table};

/// As by default.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// The times between cuts are spread over more than a heartbeat, so that none favours any.
const SPREAD_MS: u64 = 300;

/// Measures so many cuts and prints.
pub(crate) fn print(dir: &Path, cuts: usize) {
    let namespaces: Option<Vec<Namespace>> = (1..=3).map(Namespace::create).collect();
    let Some(namespaces) = namespaces else {
        println!("skipped: no network namespaces here; they need Linux, iproute2 and root");
        return;
    };
    let port = free_port();
    let mosquitto = Mosquitto::builder()
        .line("log_type none")
        .line(&format!("listener {port} 0.0.0.0"))
        .start();
    let mut nodes = Nodes::new(dir, namespaces.len());
    for (n, namespace) in namespaces.iter().enumerate() {
        let node = nodes.get(n);
        node.within = ["ip", "netns", "exec", &namespace.name]
            .map(str::to_owned)
            .into();
        let broker = format!("mqtt://{}:{port}", namespace.outside());
        node.flags.extend(["--broker".to_owned(), broker]);
    }
    nodes.start_all();
    let heard = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, mosquitto.port())));
    let runtime = crate::product::runtime();
    let mqtt = Mqtt::new(&mosquitto.url()).expect("a URL");
    let client = Remote::connect(mqtt, "raft", CLUSTER, nodes.keys(), PATIENCE);
    let mut client = runtime.block_on(client).expect("a broker");

    let mut put = || {
        runtime
            .block_on(client.put("door", "open"))
            .expect("a commit")
    };
    let mut samples = Vec::new();
    for n in 0..cuts {
        let victim = nodes.settled();
        put();
        std::thread::sleep(Duration::from_millis(n as u64 * 37 % SPREAD_MS));
        namespaces[victim].cut();
        put();
        let committed = Instant::now();
        let topic = format!("raft/{CLUSTER}/rpc/all/{}", nodes.get(victim).id);
        let last = heard.lock().expect("nobody panics")[&topic];
        samples.push(committed - last);
        nodes.kill(victim);
        namespaces[victim].mend();
        nodes.start(victim);
    }
    let [p99] = table::percentiles(samples.clone(), [99]);
    let head = ["p50 ms", "p90", "p99", "longest"].map(str::to_owned);
    let mut table = Table::new(head.into());
    row(&mut table, "last heartbeat heard to first commit", samples);
    println!("{cuts} cuts");
    table.print();
    let ratio = p99.as_secs_f64() / ELECTION_TIMEOUT.as_secs_f64();
    println!("p99 is {ratio:.2} times the election timeout of {ELECTION_TIMEOUT:?}");
}

/// When each sender was last heard on its broadcast topic.
fn listen(broker: SocketAddr) -> Arc<Mutex<BTreeMap<String, Instant>>> {
    let heard = Arc::new(Mutex::new(BTreeMap::new()));
    let hear = Arc::clone(&heard);
    let mut link = Link::connect(broker, "listener").expect("the broker answers");
    let all = format!("raft/{CLUSTER}/rpc/all/+");
    link.subscribe(&all).expect("the broker answers");
    std::thread::spawn(move || {
        // It ends with the broker.
        while link.receive().is_ok() {
            let now = Instant::now();
            while let Some(message) = link.next_publish() {
                let topic = String::from_utf8_lossy(message.topic).into_owned();
                hear.lock().expect("nobody panics").insert(topic, now);
            }
        }
    });
    heard
}

/// A network of its own with one link to ours, removed on drop.
struct Namespace {
    name: String,
    number: usize,
}

impl Namespace {
    fn create(number: usize) -> Option<Namespace> {
        let name = format!("mqrb-{number}");
        ip(&format!("netns add {name}")).then_some(())?;
        let namespace = Namespace { name, number };
        let Namespace { name, .. } = &namespace;
        let (link, outside) = (namespace.link(), namespace.outside());
        let inside = format!("10.213.{number}.2");
        let made = [
            format!("link add {link} type veth peer name broker netns {name}"),
            format!("address add {outside}/30 dev {link}"),
            format!("link set {link} up"),
            format!("-n {name} address add {inside}/30 dev broker"),
            format!("-n {name} link set broker up"),
            format!("-n {name} link set lo up"),
        ]
        .iter()
        .all(|words| ip(words));
        made.then_some(namespace)
    }

    /// Our end of the link.
    fn outside(&self) -> String {
        format!("10.213.{}.1", self.number)
    }

    fn link(&self) -> String {
        format!("mqrb-{}", self.number)
    }

    /// Nothing passes any more, and neither side is told.
    fn cut(&self) {
        assert!(ip(&format!("link set {} down", self.link())), "the cut");
    }

    fn mend(&self) {
        assert!(
            ip(&format!("link set {} up", self.link())),
            "the end of the cut"
        );
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&format!("link del {}", self.link()));
        let _ = ip(&format!("netns del {}", self.name));
    }
}

fn ip(words: &str) -> bool {
    let done = Command::new("ip").args(words.split_whitespace()).status();
    done.is_ok_and(|status| status.success())
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}
