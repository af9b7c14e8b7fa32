//! etcd beside us: three members on this machine and a client that asks as little as a client can.
//!
//! The members are those of Debian's package `etcd-server`, with its defaults: each write is synced.
//! The client speaks gRPC over HTTP/2 on a raw socket, one thread a connection, with no more than
//! `KV.Put` needs, so that what is measured is etcd and not a client library. Unlike the clients of
//! ours that share the leader's process, it always stands outside.

mod grpc;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use grpc::Connection;

const VALUE: usize = 256;

/// How many clients share a connection where they may. A connection for each of 64 or 256 clients costs
/// etcd a good part of its rate.
pub(crate) const SHARED: usize = 16;

const PATIENCE: Duration = Duration::from_secs(30);

/// Three members, killed when dropped.
pub(crate) struct Etcd {
    members: Vec<Child>,
    leader: SocketAddr,
    follower: SocketAddr,
}

impl Etcd {
    /// Starts three members and waits for their leader; none where etcd is not installed.
    pub(crate) fn start(dir: &Path) -> Option<Etcd> {
        let program = program()?;
        let ports: Vec<[SocketAddr; 2]> = (0..3).map(|_| [free(), free()]).collect();
        let all: Vec<String> = ports
            .iter()
            .enumerate()
            .map(|(n, [peers, _])| format!("m{n}=http://{peers}"))
            .collect();
        let members = ports.iter().enumerate().map(|(n, [peers, clients])| {
            let mut command = Command::new(&program);
            command
                .args(["--name", &format!("m{n}"), "--log-level", "error"])
                .arg("--data-dir")
                .arg(dir.join(format!("etcd-{n}")))
                .args(["--initial-cluster", &all.join(",")]);
            for (flag, at) in [("peer", peers), ("client", clients)] {
                command.args([&format!("--listen-{flag}-urls"), &format!("http://{at}")]);
            }
            command
                .args(["--advertise-client-urls", &format!("http://{clients}")])
                .args(["--initial-advertise-peer-urls", &format!("http://{peers}")])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command.spawn().expect("etcd starts")
        });
        let mut etcd = Etcd {
            members: members.collect(),
            leader: ports[0][1],
            follower: ports[0][1],
        };
        let found = testkit::wait_for(PATIENCE, || {
            let leads = |[_, clients]: &&[SocketAddr; 2]| {
                Connection::open(*clients).is_ok_and(|mut member| member.leads().unwrap_or(false))
            };
            let leader = ports.iter().position(|ports| leads(&ports));
            if let Some(leader) = leader {
                etcd.leader = ports[leader][1];
                etcd.follower = ports[(leader + 1) % 3][1];
            }
            leader.is_some()
        });
        assert!(found, "etcd has no leader");
        Some(etcd)
    }

    /// How long each of `commits` puts takes at the leader, one after the other.
    pub(crate) fn commit_latency(&self, commits: usize) -> Vec<Duration> {
        latency(self.leader, commits)
    }

    /// The same at a follower.
    pub(crate) fn latency_at_follower(&self, commits: usize) -> Vec<Duration> {
        latency(self.follower, commits)
    }

    /// Puts a second at the leader with `clients` of them under way at any time, `of_one` of them on
    /// one connection.
    pub(crate) fn throughput(&self, clients: usize, of_one: usize, duration: Duration) -> f64 {
        let connections = clients.div_ceil(of_one);
        let of_each = clients / connections;
        let leader = self.leader;
        let started = Instant::now();
        let threads: Vec<_> = (0..connections)
            .map(|_| std::thread::spawn(move || stream(leader, of_each, duration)))
            .collect();
        let counts = threads
            .into_iter()
            .map(|thread| thread.join().expect("a client that does not panic"));
        let done: u64 = counts.sum();
        done as f64 / started.elapsed().as_secs_f64()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

fn latency(member: SocketAddr, commits: usize) -> Vec<Duration> {
    let mut connection = Connection::open(member).expect("etcd answers");
    let value = [b'x'; VALUE];
    let put = |number: usize| {
        let started = Instant::now();
        let key = format!("key-{}", number % 1_000);
        connection.put(&key, &value).expect("a commit");
        connection.answer().expect("a commit");
        started.elapsed()
    };
    (0..commits).map(put).collect()
}

/// Keeps `clients` puts under way on one connection; how many were answered.
fn stream(member: SocketAddr, clients: usize, duration: Duration) -> u64 {
    let mut connection = Connection::open(member).expect("etcd answers");
    let value = [b'x'; VALUE];
    let started = Instant::now();
    let mut done = 0;
    for client in 0..clients {
        let key = format!("client-{client}");
        connection.put(&key, &value).expect("it is sent");
    }
    while started.elapsed() < duration {
        connection.answer().expect("a commit");
        done += 1;
        let key = format!("client-{}", done as usize % clients);
        connection.put(&key, &value).expect("it is sent");
    }
    done
}

fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join("etcd"))
        .find(|file| file.is_file());
    if found.is_none() {
        println!("skipped: no etcd in PATH; Debian has it in etcd-server");
    }
    found
}

fn free() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address")
}
