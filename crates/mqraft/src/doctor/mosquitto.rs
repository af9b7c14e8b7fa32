//! `mqraft doctor --print-acl mosquitto`: an access list and a configuration for a cluster.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use raft_over_mqtt::doctor::{Access, Right, Rights};
use serde_json::json;

use super::Print;
use crate::cli::Format;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::settings::Layer;

const ACL: &str = "mqraft.acl";
const CONFIGURATION: &str = "mosquitto.conf";

/// The listener that stands beside one for WebSockets.
const BESIDE_WEBSOCKET: &str = "listener 1883 127.0.0.1";

/// Where files are looked for if no directory is named.
const USUAL_DIR: &str = "/etc/mosquitto";

pub(super) fn print(mut layer: Layer, print: Print, format: Format) -> Result<(), Failure> {
    let listener = Listener::of(&layer)?;
    let dir = match &print.dir {
        None => PathBuf::from(USUAL_DIR),
        Some(dir) => std::path::absolute(dir).map_err(|error| cannot_write(dir, &error))?,
    };
    let configuration = configuration(&listener, &dir);
    let (dir, acl) = (print.dir.clone(), acl(&mut layer, print)?);
    let Some(dir) = dir else {
        output::answer(
            format,
            || format!("# {ACL}\n{acl}\n# {CONFIGURATION}\n{configuration}"),
            || json!({ ACL: acl, CONFIGURATION: configuration }),
        );
        return Ok(());
    };
    std::fs::create_dir_all(&dir).map_err(|error| cannot_write(&dir, &error))?;
    let mut written = Vec::new();
    for (name, text) in [(ACL, acl), (CONFIGURATION, configuration)] {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(|error| cannot_write(&path, &error))?;
        written.push(path.display().to_string());
    }
    output::answer(
        format,
        || format!("wrote {}", written.join(" and ")),
        || json!({ "written": written }),
    );
    Ok(())
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    let text = format!("cannot write {}: {error}", path.display());
    Failure::new(Exit::Disk, text)
}

/// How clients come in, as the broker's URL says it: by TLS unless it says otherwise.
struct Listener {
    port: u16,
    tls: bool,
    websocket: bool,
}

impl Listener {
    fn of(layer: &Layer) -> Result<Listener, Failure> {
        let Some(url) = layer.broker.texts().into_iter().next() else {
            return Ok(Listener {
                port: 8883,
                tls: true,
                websocket: false,
            });
        };
        // What the library takes for a broker's URL has one of four schemes.
        raft_over_mqtt::Mqtt::new(&url)?;
        let (scheme, rest) = url.split_once("://").unwrap_or(("mqtt", &url));
        let authority = rest.split('/').next().unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        let behind = host.rsplit(']').next().unwrap_or_default();
        let port = behind.rsplit_once(':').map(|(_, port)| port);
        let (tls, websocket) = (matches!(scheme, "mqtts" | "wss"), scheme.starts_with("ws"));
        let usual = match (websocket, tls) {
            (false, false) => 1883,
            (false, true) => 8883,
            (true, false) => 80,
            (true, true) => 443,
        };
        Ok(Listener {
            port: port.and_then(|port| port.parse().ok()).unwrap_or(usual),
            tls,
            websocket,
        })
    }
}

fn acl(layer: &mut Layer, print: Print) -> Result<String, Failure> {
    let prefix = layer.prefix.take().unwrap_or_else(|| "raft".to_owned());
    let cluster = layer.cluster.take();
    let cluster = cluster.unwrap_or_else(|| "default".to_owned());
    let home_assistant = layer.homeassistant.take().map(|section| section.prefix);
    let rights = Rights::new(&prefix, &cluster)?
        .requests(
            layer
                .requests
                .as_ref()
                .is_some_and(|section| section.enabled),
        )
        .mirror(layer.mirror.is_some())
        .home_assistant(home_assistant)
        .legacy(layer.legacy.take().map(|section| section.prefix));
    let mut nodes = layer.voters.texts();
    nodes.extend(layer.id.take());
    nodes.extend(print.observers);
    let mut users = Users::default();
    for node in nodes {
        users.add(&node, "a node", rights.node(&node)?)?;
    }
    for client in &print.clients {
        users.add(client, "a client of the cluster", rights.client())?;
    }
    for reader in &print.readers {
        users.add(reader, "who leads, who is there", rights.reader())?;
    }
    for asker in &print.askers {
        users.add(asker, "requests under this name", rights.asker(asker)?)?;
    }
    let root = rights.root();
    let mut text = format!(
        "# Who may do what below {root}. Everything else there is forbidden.\n\
         # The user of a node is the node's name; no node can publish as another.\n"
    );
    if !users.has_nodes {
        text += "#\n# No node is named: every user of this broker is a node of its name.\n";
        for right in rights.any_node("%u") {
            let _ = writeln!(text, "pattern {}", line(&right));
        }
    }
    for (name, what, rights) in users.list {
        let _ = writeln!(text, "\n# {}\nuser {name}", what.join("; "));
        for right in rights {
            let _ = writeln!(text, "topic {}", line(&right));
        }
    }
    Ok(text)
}

/// In the order in which they were named; one that is named twice has both rights.
#[derive(Default)]
struct Users {
    list: Vec<(String, Vec<&'static str>, Vec<Right>)>,
    has_nodes: bool,
}

impl Users {
    fn add(&mut self, name: &str, what: &'static str, rights: Vec<Right>) -> Result<(), Failure> {
        if name.is_empty() || name.contains(char::is_control) || name.trim() != name {
            return Err(Failure::usage(format!(
                "user {name:?}: an access list cannot name it"
            )));
        }
        self.has_nodes |= what == "a node";
        let at = match self.list.iter().position(|(known, ..)| known == name) {
            Some(at) => at,
            None => {
                self.list.push((name.to_owned(), Vec::new(), Vec::new()));
                self.list.len() - 1
            }
        };
        let (_, whats, all) = &mut self.list[at];
        if !whats.contains(&what) {
            whats.push(what);
        }
        for right in rights {
            if !all.contains(&right) {
                all.push(right);
            }
        }
        Ok(())
    }
}

fn line(right: &Right) -> String {
    let access = match right.access {
        Access::Read => "read",
        Access::Write => "write",
        Access::ReadWrite => "readwrite",
    };
    format!("{access} {}", right.filter)
}

fn configuration(listener: &Listener, dir: &Path) -> String {
    let dir = dir.display();
    let mut text = String::new();
    if listener.websocket {
        let _ = write!(
            text,
            "# Mosquitto 2.0 does not start with a WebSocket listener alone.\n\
             {BESIDE_WEBSOCKET}\n\n"
        );
    }
    let _ = writeln!(text, "listener {}", listener.port);
    if listener.websocket {
        text += "# Mosquitto 2.0 sends 4 KiB in 100 ms by WebSocket: prefer a listener without.\n\
                 protocol websockets\n";
    }
    if listener.tls {
        let _ = write!(
            text,
            "cafile {dir}/ca.pem\n\
             certfile {dir}/server.pem\n\
             keyfile {dir}/server.key.pem\n\
             # Who a client is says its certificate: the common name is the user, and a node's is its name.\n\
             require_certificate true\n\
             use_identity_as_username true\n"
        );
    } else {
        let _ = write!(
            text,
            "# mosquitto_passwd {dir}/mqraft.passwords NAME, for each user of the access list\n\
             password_file {dir}/mqraft.passwords\n"
        );
    }
    let _ = write!(
        text,
        "allow_anonymous false\n\
         acl_file {dir}/{ACL}\n\
         \n\
         # Else the broker holds small packets back until the one before is acknowledged: 40 ms.\n\
         set_tcp_nodelay true\n\
         \n\
         # A frame has at most 131072 bytes; a packet has a topic and properties as well.\n\
         message_size_limit 262144\n\
         # What is dropped of a burst at QoS 0 has to be sent again.\n\
         max_queued_messages 10000\n\
         max_queued_bytes 67108864\n\
         # Statuses and mirrored keys go at QoS 1.\n\
         max_inflight_messages 100\n\
         \n\
         # The cluster needs no persistence: nodes say all of it again when they connect. Where others\n\
         # need it, turn it on, and leave autosave_on_changes off: nothing moves while the broker writes.\n\
         persistence false\n"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_what_the_url_says() {
        let table = [
            ("mqtt://b", 1883, false, false),
            ("mqtts://b", 8883, true, false),
            ("mqtts://u:p%40@b:9000", 9000, true, false),
            ("ws://b:8080/mqtt", 8080, false, true),
            ("wss://[::1]:444/mqtt", 444, true, true),
            ("mqtt://[::1]", 1883, false, false),
        ];
        for (url, port, tls, websocket) in table {
            let layer = Layer {
                broker: vec![url.to_owned()].into(),
                ..Layer::default()
            };
            let listener = Listener::of(&layer).unwrap();
            assert_eq!(
                (listener.port, listener.tls, listener.websocket),
                (port, tls, websocket),
                "{url}"
            );
        }
        assert!(Listener::of(&Layer::default()).unwrap().tls);
    }

    #[test]
    fn a_user_cannot_bring_lines_of_its_own() {
        for name in ["", "a\ntopic readwrite #", " a"] {
            let added = Users::default().add(name, "a node", Vec::new());
            assert!(added.is_err(), "{name:?}");
        }
    }
}
