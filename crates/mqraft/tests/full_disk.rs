//! A disk that runs full: the node stops and says so, nothing acknowledged is lost, and with room
//! it goes on.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use raft_over_mqtt::{Error, Mqtt, Remote};
use testkit::Mosquitto;

const SOON: Duration = Duration::from_secs(60);
const VALUE: usize = 32 << 10;

#[test]
fn a_full_disk_stops_the_node_and_loses_nothing() {
    if !testkit::mosquitto_or_skip() {
        return;
    }
    let dir = testkit::temp_dir();
    // Room for the log's first two segments and little more.
    let Some(disk) = SmallDisk::mount_or_skip(dir.path().join("disk"), "size=10m") else {
        return;
    };
    let mosquitto = Mosquitto::start();
    let mut node = start_node(&mosquitto, &disk.path);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");

    let acknowledged = runtime.block_on(fill(&mosquitto));
    assert!(acknowledged > 0, "some writes fit");
    let (status, said) = node.wait(SOON);
    assert_eq!(status.code(), Some(6), "{said}");
    assert!(said.contains("no space left"), "{said}");

    disk.grow("size=200m");
    let _node = start_node(&mosquitto, &disk.path);
    runtime.block_on(async {
        let mut remote = remote(&mosquitto, SOON).await;
        for number in 0..acknowledged {
            let value = remote
                .get(format!("key-{number}"))
                .await
                .expect("a read")
                .value;
            assert_eq!(
                value.map(|v| v.0.len()),
                Some(VALUE),
                "key-{number} was acknowledged"
            );
        }
        remote.put("after", "all").await.expect("and life goes on");
    });
}

/// Puts until no answer comes; how many were acknowledged.
async fn fill(mosquitto: &Mosquitto) -> usize {
    // The first put waits for the cluster to form; the one that fails need not wait long.
    let mut remote = remote(mosquitto, Duration::from_secs(10)).await;
    for number in 0.. {
        match remote.put(format!("key-{number}"), vec![b'x'; VALUE]).await {
            Ok(_) => {}
            Err(Error::Unknown(_)) => return number,
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!("the disk is small")
}

async fn remote(mosquitto: &Mosquitto, timeout: Duration) -> Remote {
    let mqtt = Mqtt::new(&mosquitto.url()).expect("a URL");
    Remote::connect(mqtt, "raft", "small", None, timeout)
        .await
        .expect("a session")
}

/// A file system of a few megabytes, unmounted at the end.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    fn mount_or_skip(path: PathBuf, size: &str) -> Option<SmallDisk> {
        std::fs::create_dir(&path).expect("a mount point");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", size, "tmpfs"])
            .arg(&path)
            .status()
            .is_ok_and(|status| status.success());
        if mounted {
            return Some(SmallDisk { path });
        }
        let required = std::env::var_os("MQRAFT_REQUIRE_ROOT").is_some();
        assert!(
            !required,
            "MQRAFT_REQUIRE_ROOT is set, but a file system cannot be mounted"
        );
        println!("skipped: mounting a small file system needs root");
        None
    }

    fn grow(&self, size: &str) {
        let remounted = Command::new("mount")
            .args(["-o", &format!("remount,{size}")])
            .arg(&self.path)
            .status();
        assert!(remounted.expect("mount runs").success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the node may still be ending.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

struct Node {
    process: Child,
    log: PathBuf,
}

fn start_node(mosquitto: &Mosquitto, disk: &Path) -> Node {
    let log = disk.with_extension("log");
    let file = std::fs::File::create(&log).expect("a log file");
    let process = Command::new(env!("CARGO_BIN_EXE_mqraft"))
        .args([
            "node",
            "--cluster",
            "small",
            "--id",
            "gw-1",
            "--voters",
            "gw-1",
            "--insecure",
        ])
        .args(["--broker", &mosquitto.url()])
        .arg("--data-dir")
        .arg(disk.join("gw-1"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .spawn()
        .expect("mqraft starts");
    Node { process, log }
}

impl Node {
    fn wait(&mut self, deadline: Duration) -> (ExitStatus, String) {
        let ended = testkit::wait_for(deadline, || {
            self.process.try_wait().is_ok_and(|status| status.is_some())
        });
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        assert!(ended, "the node goes on without a disk: {said}");
        (self.process.wait().expect("it ended"), said)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
