//! A real Mosquitto process: its configuration, its start and the ways it can fail.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::wait::wait_for;
use crate::{Certificates, KeyPair, temp_dir};

/// How long a broker may take from its start to its first accepted connection.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// Free ports are found by binding and closing, so another process may take one in between.
const START_ATTEMPTS: usize = 5;

/// Whether this machine has a `mosquitto` to run; why not otherwise.
///
/// Looks at `MQRAFT_MOSQUITTO`, then in `PATH`, then where Debian puts it.
///
/// # Errors
///
/// What was looked for, in words for the line `skipped: …`.
pub fn mosquitto_available() -> Result<(), String> {
    binary("mosquitto").map(|_| ())
}

/// True if Mosquitto is there; else prints `skipped: why` and returns false.
///
/// # Panics
///
/// Instead of skipping, if `MQRAFT_REQUIRE_BROKERS=1`.
pub fn mosquitto_or_skip() -> bool {
    let Err(why) = mosquitto_available() else {
        return true;
    };
    let required = std::env::var_os("MQRAFT_REQUIRE_BROKERS").is_some_and(|value| value == "1");
    assert!(!required, "MQRAFT_REQUIRE_BROKERS=1 but {why}");
    println!("skipped: {why}");
    false
}

/// What a broker shall listen on and how it shall behave. The default is a plain listener and
/// Mosquitto's own defaults, Nagle's algorithm included.
#[derive(Debug, Default)]
pub struct Builder {
    tls: Option<TlsListener>,
    websockets: bool,
    websockets_tls: bool,
    passwords: Vec<(String, String)>,
    acl: Option<String>,
    nodelay: bool,
    persistence: bool,
    lines: Vec<String>,
}

#[derive(Debug)]
struct TlsListener {
    ca: PathBuf,
    server: KeyPair,
    require_certificate: bool,
}

impl Builder {
    /// Adds a TLS listener with the good server certificate; clients need no certificate.
    #[must_use]
    pub fn tls(self, certificates: &Certificates) -> Self {
        let server = certificates.server.clone();
        self.tls_with(certificates, server, false)
    }

    /// Adds a TLS listener that admits only clients with a certificate of the same authority.
    #[must_use]
    pub fn mutual_tls(self, certificates: &Certificates) -> Self {
        let server = certificates.server.clone();
        self.tls_with(certificates, server, true)
    }

    /// Adds a TLS listener that shows `server`, for instance the one for another host.
    #[must_use]
    pub fn tls_with(
        mut self,
        certificates: &Certificates,
        server: KeyPair,
        require_certificate: bool,
    ) -> Self {
        self.tls = Some(TlsListener {
            ca: certificates.ca.clone(),
            server,
            require_certificate,
        });
        self
    }

    /// Adds a WebSocket listener.
    #[must_use]
    pub fn websockets(mut self) -> Self {
        self.websockets = true;
        self
    }

    /// Adds a WebSocket listener over TLS, with the certificates of the TLS listener, which must
    /// be configured too.
    #[must_use]
    pub fn websockets_tls(mut self) -> Self {
        self.websockets_tls = true;
        self
    }

    /// Admits this user; anonymous clients are refused from the first one on.
    #[must_use]
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.passwords.push((name.to_owned(), password.to_owned()));
        self
    }

    /// The text of Mosquitto's `acl_file`.
    #[must_use]
    pub fn acl(mut self, text: &str) -> Self {
        self.acl = Some(text.to_owned());
        self
    }

    /// Whether the broker turns Nagle's algorithm off. Default: no, as Mosquitto does.
    #[must_use]
    pub fn nodelay(mut self, on: bool) -> Self {
        self.nodelay = on;
        self
    }

    /// Whether retained messages survive [`Mosquitto::terminate`] and a restart. Default: no.
    #[must_use]
    pub fn persistence(mut self, on: bool) -> Self {
        self.persistence = on;
        self
    }

    /// Adds a line to `mosquitto.conf` as it stands.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// Makes the broker a bridge: whatever `other` and those bridged already publish reaches each of
    /// them, as soon as this one has started and until it ends.
    #[must_use]
    pub fn bridge(self, other: &Mosquitto) -> Self {
        let port = other.port();
        let connection = [
            format!("connection to-{port}"),
            format!("address 127.0.0.1:{port}"),
            "topic # both 1".to_owned(),
            "restart_timeout 1".to_owned(),
            "notifications false".to_owned(),
        ];
        connection
            .iter()
            .fold(self, |broker, line| broker.line(line))
    }

    /// Starts the broker and returns when each of its listeners accepts.
    ///
    /// # Panics
    ///
    /// With the broker's log, if it does not come up.
    pub fn start(self) -> Mosquitto {
        let mut last_log = String::new();
        for _ in 0..START_ATTEMPTS {
            let mut broker = self.configure();
            if broker.try_start() {
                return broker;
            }
            last_log = broker.log();
        }
        panic!("mosquitto did not start; its log:\n{last_log}");
    }

    fn configure(&self) -> Mosquitto {
        let dir = temp_dir();
        let ports = Ports {
            plain: free_port(),
            tls: self.tls.as_ref().map(|_| free_port()),
            ws: self.websockets.then(free_port),
            wss: self.websockets_tls.then(free_port),
        };
        let config = self.config(dir.path(), &ports);
        fs::write(dir.path().join("mosquitto.conf"), config).expect("write mosquitto.conf");
        Mosquitto {
            dir,
            ports,
            child: None,
        }
    }

    fn config(&self, dir: &Path, ports: &Ports) -> String {
        // `user root`: started as root, Mosquitto would become `mosquitto`, who cannot read the
        // test's directory.
        let mut text = format!(
            "per_listener_settings false\nuser root\nlistener {} 127.0.0.1\n",
            ports.plain
        );
        if let (Some(port), Some(tls)) = (ports.tls, &self.tls) {
            let _ = writeln!(text, "listener {port} 127.0.0.1\n{}", tls.lines());
        }
        if let Some(port) = ports.ws {
            let _ = writeln!(text, "listener {port} 127.0.0.1\nprotocol websockets");
        }
        if let Some(port) = ports.wss {
            let tls = self.tls.as_ref().expect("websockets_tls needs tls");
            let _ = writeln!(
                text,
                "listener {port} 127.0.0.1\nprotocol websockets\n{}",
                tls.lines()
            );
        }
        let _ = writeln!(text, "allow_anonymous {}", self.passwords.is_empty());
        let _ = writeln!(text, "set_tcp_nodelay {}", self.nodelay);
        let _ = writeln!(text, "log_type all\nlog_dest stderr");
        if self.persistence {
            let _ = writeln!(
                text,
                "persistence true\npersistence_location {}/",
                dir.display()
            );
        }
        if !self.passwords.is_empty() {
            let _ = writeln!(text, "password_file {}", self.password_file(dir).display());
        }
        if let Some(acl) = &self.acl {
            let path = dir.join("acl");
            fs::write(&path, acl).expect("write the ACL file");
            let _ = writeln!(text, "acl_file {}", path.display());
        }
        for line in &self.lines {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    fn password_file(&self, dir: &Path) -> PathBuf {
        let path = dir.join("passwords");
        File::create(&path).expect("create the password file");
        let tool = binary("mosquitto_passwd").unwrap_or_else(|why| panic!("{why}"));
        for (name, password) in &self.passwords {
            let status = Command::new(&tool)
                .arg("-b")
                .arg(&path)
                .args([name, password])
                .status();
            assert!(
                status.expect("run mosquitto_passwd").success(),
                "mosquitto_passwd failed"
            );
        }
        path
    }
}

impl TlsListener {
    fn lines(&self) -> String {
        format!(
            "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate {}",
            self.ca.display(),
            self.server.certificate.display(),
            self.server.key.display(),
            self.require_certificate,
        )
    }
}

#[derive(Debug)]
struct Ports {
    plain: u16,
    tls: Option<u16>,
    ws: Option<u16>,
    wss: Option<u16>,
}

impl Ports {
    fn all(&self) -> impl Iterator<Item = u16> {
        [Some(self.plain), self.tls, self.ws, self.wss]
            .into_iter()
            .flatten()
    }
}

/// A running Mosquitto, killed on drop.
#[derive(Debug)]
pub struct Mosquitto {
    dir: TempDir,
    ports: Ports,
    child: Option<Child>,
}

impl Mosquitto {
    /// Describes a broker to start.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Starts a plain broker with Mosquitto's defaults.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// Starts a broker with a `mosquitto.conf` of its caller's, whose only listener is at `port`.
    ///
    /// # Panics
    ///
    /// With the broker's log, if it does not come up.
    pub fn with_configuration(port: u16, configuration: &str) -> Self {
        let dir = temp_dir();
        fs::write(dir.path().join("mosquitto.conf"), configuration).expect("write mosquitto.conf");
        let ports = Ports {
            plain: port,
            tls: None,
            ws: None,
            wss: None,
        };
        let mut broker = Self {
            dir,
            ports,
            child: None,
        };
        assert!(
            broker.try_start(),
            "mosquitto did not start; its log:\n{}",
            broker.log()
        );
        broker
    }

    /// `mqtt://127.0.0.1:port`
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.ports.plain)
    }

    /// `mqtts://localhost:port`; panics without a TLS listener.
    pub fn tls_url(&self) -> String {
        format!(
            "mqtts://localhost:{}",
            self.ports.tls.expect("a TLS listener")
        )
    }

    /// `ws://127.0.0.1:port/mqtt`; panics without a WebSocket listener.
    pub fn ws_url(&self) -> String {
        format!(
            "ws://127.0.0.1:{}/mqtt",
            self.ports.ws.expect("a WebSocket listener")
        )
    }

    /// `wss://localhost:port/mqtt`; panics without a WebSocket listener over TLS.
    pub fn wss_url(&self) -> String {
        format!(
            "wss://localhost:{}/mqtt",
            self.ports.wss.expect("a WebSocket listener over TLS")
        )
    }

    /// The plain listener's port.
    pub fn port(&self) -> u16 {
        self.ports.plain
    }

    /// The TLS listener's port, if there is one.
    pub fn tls_port(&self) -> Option<u16> {
        self.ports.tls
    }

    /// The process id; panics after [`Mosquitto::kill`].
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running mosquitto").id()
    }

    /// What the broker has logged so far, since its last start.
    pub fn log(&self) -> String {
        fs::read(self.log_path()).map_or_else(
            |error| error.to_string(),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// SIGKILL: the broker closes its sockets and forgets what it did not persist.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM: the broker saves retained messages if it has persistence, then ends.
    pub fn terminate(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal(&child, Signal::TERM);
            let ended = wait_for(START_DEADLINE, || matches!(child.try_wait(), Ok(Some(_))));
            if !ended {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
    }

    /// Starts the broker again on the same ports, killing it first if it runs.
    ///
    /// # Panics
    ///
    /// With the broker's log, if it does not come up.
    pub fn restart(&mut self) {
        self.kill();
        for _ in 0..START_ATTEMPTS {
            if self.try_start() {
                return;
            }
        }
        panic!("mosquitto did not restart; its log:\n{}", self.log());
    }

    /// SIGSTOP: the sockets stay open and nothing answers.
    pub fn stop_signal(&self) {
        signal(
            self.child.as_ref().expect("a running mosquitto"),
            Signal::STOP,
        );
    }

    /// SIGCONT: undoes [`Mosquitto::stop_signal`].
    pub fn cont(&self) {
        signal(
            self.child.as_ref().expect("a running mosquitto"),
            Signal::CONT,
        );
    }

    fn try_start(&mut self) -> bool {
        let log = File::create(self.log_path()).expect("create the log file");
        let child = Command::new(binary("mosquitto").unwrap_or_else(|why| panic!("{why}")))
            .arg("-c")
            .arg(self.dir.path().join("mosquitto.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start mosquitto");
        let child = self.child.insert(child);
        let mut exited = false;
        let ports = &self.ports;
        let ready = wait_for(START_DEADLINE, || {
            exited = matches!(child.try_wait(), Ok(Some(_)));
            exited || ports.all().all(accepts)
        });
        if ready && !exited {
            return true;
        }
        self.kill();
        false
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("mosquitto.log")
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.kill();
    }
}

fn accepts(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
}

/// A port on which nothing listens at this moment.
///
/// # Panics
///
/// If there is none.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind a loopback port");
    listener.local_addr().expect("the bound address").port()
}

fn signal(child: &Child, signal: Signal) {
    let pid =
        Pid::from_raw(i32::try_from(child.id()).expect("a process id")).expect("a process id");
    let _ = kill_process(pid, signal);
}

fn binary(name: &str) -> Result<PathBuf, String> {
    if name == "mosquitto"
        && let Some(path) = std::env::var_os("MQRAFT_MOSQUITTO")
    {
        return Ok(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    dirs.extend(["/usr/sbin", "/usr/local/sbin", "/usr/bin"].map(PathBuf::from));
    dirs.iter()
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| format!("no {name} in PATH; install Mosquitto or set MQRAFT_MOSQUITTO"))
}
