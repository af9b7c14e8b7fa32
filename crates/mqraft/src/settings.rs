//! Where settings come from: flags, then `MQRAFT_*`, then the file, then the defaults.
//!
//! Each source is read into the same flat [`Layer`]; the first layer that says something wins.
//! What belongs together is taken from one layer: a `--insecure` on the command line is not
//! contradicted by a key file in the configuration, and a password not by a password file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use raft_over_mqtt::{Autopilot, HandOver, KeyFile, KeyRing, Mqtt, WriteAccess};
use serde::Deserialize;

use crate::duration::Span;
use crate::exit::Failure;

/// How long a request waits for its answer unless said otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What one source says. The configuration file has these keys and no others.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Layer {
    #[serde(default)]
    pub(crate) broker: Texts,
    pub(crate) prefix: Option<String>,
    pub(crate) cluster: Option<String>,
    pub(crate) username: Option<String>,
    #[serde(skip)]
    pub(crate) password: Option<String>,
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    #[serde(skip)]
    pub(crate) cluster_key: Option<String>,
    pub(crate) key_file: Option<PathBuf>,
    #[serde(default)]
    pub(crate) insecure: bool,
    pub(crate) timeout: Option<Span>,
    pub(crate) id: Option<String>,
    #[serde(default)]
    pub(crate) voters: Texts,
    pub(crate) expect: Option<u32>,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) metric: Option<f64>,
    #[serde(default)]
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) election_timeout: Option<Span>,
    pub(crate) heartbeat_interval: Option<Span>,
    pub(crate) hand_over_after: Option<String>,
    pub(crate) hand_over_margin: Option<f64>,
    pub(crate) hand_over_tenure: Option<Span>,
    pub(crate) autopilot: Option<u32>,
    pub(crate) autopilot_dwell: Option<Span>,
    pub(crate) frame_version: Option<u8>,
    pub(crate) legacy: Option<LegacySection>,
    pub(crate) requests: Option<RequestsSection>,
    pub(crate) mirror: Option<MirrorSection>,
    pub(crate) homeassistant: Option<HomeAssistantSection>,
}

/// Requests of any MQTT client.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RequestsSection {
    pub(crate) enabled: bool,
    #[serde(default)]
    pub(crate) write: Vec<String>,
}

impl RequestsSection {
    /// To let someone write is to let them ask.
    pub(crate) fn of(enabled: bool, write: Vec<String>) -> Option<RequestsSection> {
        let enabled = enabled || !write.is_empty();
        enabled.then_some(RequestsSection { enabled, write })
    }

    fn access(self) -> Result<Option<WriteAccess>, Failure> {
        if self.write.iter().any(String::is_empty) {
            return Err(Failure::usage(
                "an empty prefix would let every MQTT client write every key: name the prefixes (--request-write)"
                    .to_owned(),
            ));
        }
        Ok(self.enabled.then(|| WriteAccess::below(self.write)))
    }
}

/// Keys to mirror as retained messages.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MirrorSection {
    pub(crate) prefixes: Vec<String>,
}

impl MirrorSection {
    pub(crate) fn of(prefixes: Vec<String>) -> Option<MirrorSection> {
        (!prefixes.is_empty()).then_some(MirrorSection { prefixes })
    }
}

/// A fleet of node-raft-over-mqtt to keep.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LegacySection {
    pub(crate) prefix: String,
}

impl LegacySection {
    pub(crate) fn of(prefix: Option<String>) -> Option<LegacySection> {
        prefix.map(|prefix| LegacySection { prefix })
    }
}

/// The cluster is shown in Home Assistant.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HomeAssistantSection {
    #[serde(default = "discovery_prefix")]
    pub(crate) prefix: String,
}

impl HomeAssistantSection {
    pub(crate) fn of(prefix: Option<String>) -> Option<HomeAssistantSection> {
        prefix.map(|prefix| HomeAssistantSection { prefix })
    }
}

/// Where Home Assistant looks for devices unless it is told otherwise.
pub(crate) fn discovery_prefix() -> String {
    "homeassistant".to_owned()
}

/// One text or several.
#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
pub(crate) enum Texts {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

impl Texts {
    /// All of them.
    pub(crate) fn texts(&self) -> Vec<String> {
        match self {
            Texts::None => Vec::new(),
            Texts::One(text) => vec![text.clone()],
            Texts::Many(texts) => texts.clone(),
        }
    }

    pub(crate) fn into_vec(self) -> Vec<String> {
        match self {
            Texts::None => Vec::new(),
            Texts::One(text) => vec![text],
            Texts::Many(texts) => texts,
        }
    }

    fn or(self, other: Texts) -> Texts {
        match self {
            Texts::None => other,
            said => said,
        }
    }
}

impl From<Vec<String>> for Texts {
    fn from(texts: Vec<String>) -> Texts {
        match texts.is_empty() {
            true => Texts::None,
            false => Texts::Many(texts),
        }
    }
}

/// Reads all layers and lays them over each other. Paths in the file are relative to the file.
pub(crate) fn read(flags: Layer, config: Option<PathBuf>) -> Result<Layer, Failure> {
    let env = Layer::from_env()?;
    let config = config.or_else(|| variable("CONFIG").map(PathBuf::from));
    let file = match config {
        Some(path) => Layer::from_file(&path)?,
        None => Layer::default(),
    };
    Ok(flags.over(env).over(file))
}

impl Layer {
    fn from_env() -> Result<Layer, Failure> {
        let path = |name| variable(name).map(PathBuf::from);
        Ok(Layer {
            broker: list("BROKER"),
            prefix: variable("PREFIX"),
            cluster: variable("CLUSTER"),
            username: variable("USERNAME"),
            password: variable("PASSWORD"),
            password_file: path("PASSWORD_FILE"),
            ca: path("CA"),
            cert: path("CERT"),
            key: path("KEY"),
            cluster_key: variable("CLUSTER_KEY"),
            key_file: path("KEY_FILE"),
            insecure: switch("INSECURE")?,
            timeout: parsed("TIMEOUT")?,
            id: variable("ID"),
            voters: list("VOTERS"),
            expect: parsed("EXPECT")?,
            data_dir: path("DATA_DIR"),
            metric: parsed("METRIC")?,
            tags: tags(list("TAGS").into_vec())?,
            election_timeout: parsed("ELECTION_TIMEOUT")?,
            heartbeat_interval: parsed("HEARTBEAT_INTERVAL")?,
            hand_over_after: variable("HAND_OVER_AFTER"),
            hand_over_margin: parsed("HAND_OVER_MARGIN")?,
            hand_over_tenure: parsed("HAND_OVER_TENURE")?,
            autopilot: parsed("AUTOPILOT")?,
            autopilot_dwell: parsed("AUTOPILOT_DWELL")?,
            frame_version: parsed("FRAME_VERSION")?,
            legacy: LegacySection::of(variable("LEGACY_PREFIX")),
            requests: RequestsSection::of(switch("REQUESTS")?, list("REQUEST_WRITE").into_vec()),
            mirror: MirrorSection::of(list("MIRROR").into_vec()),
            homeassistant: HomeAssistantSection::of(variable("HOMEASSISTANT_PREFIX")),
        })
    }

    fn from_file(path: &Path) -> Result<Layer, Failure> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::usage(format!(
                "cannot read the configuration file {shown}: {error}"
            ))
        })?;
        let layer: Layer = toml::from_str(&text).map_err(|error| {
            Failure::usage(format!("{shown}: {}", error.to_string().trim_end()))
        })?;
        let beside = path.parent().unwrap_or(Path::new(""));
        let resolved = |path: Option<PathBuf>| path.map(|path| beside.join(path));
        Ok(Layer {
            password_file: resolved(layer.password_file),
            ca: resolved(layer.ca),
            cert: resolved(layer.cert),
            key: resolved(layer.key),
            key_file: resolved(layer.key_file),
            data_dir: resolved(layer.data_dir),
            ..layer
        })
    }

    /// This layer's word, and where it says nothing the one of `below`.
    fn over(self, below: Layer) -> Layer {
        let (secret, password) = (self.names_secret(), self.names_password());
        let voters = self.names_voters();
        Layer {
            broker: self.broker.or(below.broker),
            prefix: self.prefix.or(below.prefix),
            cluster: self.cluster.or(below.cluster),
            username: self.username.or(below.username),
            password: self.password.or(below.password.filter(|_| !password)),
            password_file: self
                .password_file
                .or(below.password_file.filter(|_| !password)),
            ca: self.ca.or(below.ca),
            cert: self.cert.or(below.cert),
            key: self.key.or(below.key),
            cluster_key: self.cluster_key.or(below.cluster_key.filter(|_| !secret)),
            key_file: self.key_file.or(below.key_file.filter(|_| !secret)),
            insecure: self.insecure || (below.insecure && !secret),
            timeout: self.timeout.or(below.timeout),
            id: self.id.or(below.id),
            expect: self.expect.or(below.expect.filter(|_| !voters)),
            voters: match voters {
                true => self.voters,
                false => below.voters,
            },
            data_dir: self.data_dir.or(below.data_dir),
            metric: self.metric.or(below.metric),
            tags: match self.tags.is_empty() {
                true => below.tags,
                false => self.tags,
            },
            election_timeout: self.election_timeout.or(below.election_timeout),
            heartbeat_interval: self.heartbeat_interval.or(below.heartbeat_interval),
            hand_over_after: self.hand_over_after.or(below.hand_over_after),
            hand_over_margin: self.hand_over_margin.or(below.hand_over_margin),
            hand_over_tenure: self.hand_over_tenure.or(below.hand_over_tenure),
            autopilot: self.autopilot.or(below.autopilot),
            autopilot_dwell: self.autopilot_dwell.or(below.autopilot_dwell),
            frame_version: self.frame_version.or(below.frame_version),
            legacy: self.legacy.or(below.legacy),
            requests: self.requests.or(below.requests),
            mirror: self.mirror.or(below.mirror),
            homeassistant: self.homeassistant.or(below.homeassistant),
        }
    }

    fn names_secret(&self) -> bool {
        self.insecure || self.key_file.is_some() || self.cluster_key.is_some()
    }

    fn names_voters(&self) -> bool {
        self.expect.is_some() || !matches!(self.voters, Texts::None)
    }

    fn names_password(&self) -> bool {
        self.password.is_some() || self.password_file.is_some()
    }
}

/// Where the cluster is, and how to be let in: what every command needs.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) mqtt: Mqtt,
    pub(crate) prefix: String,
    pub(crate) cluster: String,
    pub(crate) keys: KeyRing,
    pub(crate) timeout: Duration,
}

/// What a node needs beside.
pub(crate) struct NodeSettings {
    pub(crate) connection: Connection,
    /// Read again on SIGHUP.
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) id: String,
    pub(crate) voters: Vec<String>,
    pub(crate) expect: Option<u32>,
    pub(crate) data_dir: PathBuf,
    pub(crate) metric: f64,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) election_timeout: Option<Duration>,
    pub(crate) heartbeat_interval: Option<Duration>,
    pub(crate) hand_over: Option<HandOver>,
    pub(crate) autopilot: Option<Autopilot>,
    pub(crate) frame_version: Option<u8>,
    pub(crate) legacy_prefix: Option<String>,
    pub(crate) requests: Option<WriteAccess>,
    pub(crate) mirror: Vec<String>,
    pub(crate) homeassistant_prefix: Option<String>,
}

impl Connection {
    pub(crate) fn resolve(layer: Layer) -> Result<Connection, Failure> {
        let keys = keys(&layer)?;
        let timeout = layer.timeout.map_or(TIMEOUT, |span| span.0);
        Ok(Connection {
            keys,
            timeout,
            prefix: layer.prefix.clone().unwrap_or_else(|| "raft".to_owned()),
            cluster: layer
                .cluster
                .clone()
                .unwrap_or_else(|| "default".to_owned()),
            mqtt: mqtt(layer)?,
        })
    }
}

impl NodeSettings {
    pub(crate) fn resolve(mut layer: Layer) -> Result<NodeSettings, Failure> {
        let id = layer.id.take().ok_or_else(|| {
            Failure::usage("a node needs a name: --id ID, another one for each node")
        })?;
        let data_dir = layer.data_dir.take().ok_or_else(|| {
            Failure::usage("a node needs --data-dir DIR: what it promises must outlive the process")
        })?;
        let voters = std::mem::take(&mut layer.voters).into_vec();
        if layer.expect.is_some() && !voters.is_empty() {
            return Err(Failure::usage("choose one of --voters and --expect"));
        }
        Ok(NodeSettings {
            id,
            voters,
            expect: layer.expect,
            data_dir,
            metric: layer.metric.unwrap_or_default(),
            tags: layer.tags.clone(),
            election_timeout: layer.election_timeout.map(|span| span.0),
            heartbeat_interval: layer.heartbeat_interval.map(|span| span.0),
            key_file: layer.key_file.clone(),
            hand_over: hand_over(&layer)?,
            autopilot: autopilot(&layer)?,
            frame_version: layer.frame_version,
            legacy_prefix: layer.legacy.take().map(|legacy| legacy.prefix),
            requests: match layer.requests.take() {
                Some(requests) => requests.access()?,
                None => None,
            },
            mirror: layer
                .mirror
                .take()
                .map_or(Vec::new(), |mirror| mirror.prefixes),
            homeassistant_prefix: layer.homeassistant.take().map(|section| section.prefix),
            connection: Connection::resolve(layer)?,
        })
    }
}

fn hand_over(layer: &Layer) -> Result<Option<HandOver>, Failure> {
    let defaults = HandOver::default();
    let hold = match layer.hand_over_after.as_deref() {
        Some("never") => return Ok(None),
        None => defaults.hold,
        Some(text) => {
            let span: Result<Span, _> = text.parse();
            let wrong = |error| Failure::usage(format!("--hand-over-after: {error}, or never"));
            span.map_err(wrong)?.0
        }
    };
    let hysteresis = layer.hand_over_margin.unwrap_or(defaults.hysteresis);
    if !(hysteresis.is_finite() && hysteresis >= 0.0) {
        return Err(Failure::usage(
            "--hand-over-margin: a number that is not negative",
        ));
    }
    let tenure = layer
        .hand_over_tenure
        .map_or(defaults.tenure, |span| span.0);
    Ok(Some(HandOver {
        hysteresis,
        hold,
        tenure,
    }))
}

fn autopilot(layer: &Layer) -> Result<Option<Autopilot>, Failure> {
    let Some(target) = layer.autopilot else {
        return match layer.autopilot_dwell {
            None => Ok(None),
            Some(_) => Err(Failure::usage("--autopilot-dwell goes with --autopilot N")),
        };
    };
    if !matches!(target, 3 | 5 | 7) {
        return Err(Failure::usage("--autopilot: 3, 5 or 7 voters"));
    }
    let usual = Autopilot::of(target as usize);
    let dwell = layer.autopilot_dwell.map_or(usual.dwell, |span| span.0);
    Ok(Some(Autopilot { dwell, ..usual }))
}

/// What of a layer says where the broker is and how to be let in, as variables of the environment: for
/// processes of ours. Empty where no broker is named.
#[cfg(feature = "demo")]
pub(crate) fn broker_variables(layer: &Layer) -> Vec<(&'static str, std::ffi::OsString)> {
    let brokers = match &layer.broker {
        Texts::None => return Vec::new(),
        Texts::One(url) => url.clone(),
        Texts::Many(urls) => urls.join(","),
    };
    let path = |path: &Option<PathBuf>| path.clone().map(PathBuf::into_os_string);
    let text = |text: &Option<String>| text.clone().map(Into::into);
    let variables = [
        ("MQRAFT_USERNAME", text(&layer.username)),
        ("MQRAFT_PASSWORD", text(&layer.password)),
        ("MQRAFT_PASSWORD_FILE", path(&layer.password_file)),
        ("MQRAFT_CA", path(&layer.ca)),
        ("MQRAFT_CERT", path(&layer.cert)),
        ("MQRAFT_KEY", path(&layer.key)),
    ];
    let said = variables
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    said.chain([("MQRAFT_BROKER", brokers.into())]).collect()
}

/// The broker, and how it lets us in.
pub(crate) fn mqtt(layer: Layer) -> Result<Mqtt, Failure> {
    let password = password(&layer)?;
    let brokers = layer.broker.into_vec();
    let mut each = brokers.iter().map(|url| Mqtt::new(url));
    let Some(first) = each.next() else {
        return Err(Failure::usage(
            "which broker? --broker URL, as in --broker mqtt://127.0.0.1:1883",
        ));
    };
    let all = each.try_fold(first?, |all, next| Ok::<_, Failure>(all.and(next?)))?;
    let mqtt = all.tls(layer.ca, layer.cert, layer.key);
    match (layer.username, password) {
        (Some(username), password) => {
            Ok(mqtt.credentials(&username, password.as_deref().unwrap_or_default()))
        }
        (None, None) => Ok(mqtt),
        (None, Some(_)) => Err(Failure::usage(
            "a password without a user name: add --username NAME",
        )),
    }
}

fn password(layer: &Layer) -> Result<Option<String>, Failure> {
    match (&layer.password, &layer.password_file) {
        (Some(_), Some(_)) => Err(Failure::usage(
            "both MQRAFT_PASSWORD and MQRAFT_PASSWORD_FILE are set: choose one",
        )),
        (Some(password), None) => Ok(Some(password.clone())),
        (None, Some(file)) => Ok(Some(secret_file("password", file)?)),
        (None, None) => Ok(None),
    }
}

fn keys(layer: &Layer) -> Result<KeyRing, Failure> {
    match (&layer.cluster_key, &layer.key_file, layer.insecure) {
        (None, None, true) => Ok(KeyRing::insecure()),
        (Some(text), None, false) => {
            let file = KeyFile::parse(text);
            let file = file.map_err(|e| Failure::usage(format!("MQRAFT_CLUSTER_KEY: {e}")))?;
            Ok(file.ring())
        }
        (None, Some(file), false) => Ok(read_key_file(file)?.ring()),
        (None, None, false) => Err(Failure::usage(
            "the cluster's key is missing: --key-file FILE (`mqraft keygen` makes one), or \
             --insecure for a broker on this machine",
        )),
        _ => Err(Failure::usage(
            "choose one of --key-file, MQRAFT_CLUSTER_KEY and --insecure",
        )),
    }
}

/// The cluster key from its file, and the one that is replacing it.
pub(crate) fn read_key_file(path: &Path) -> Result<KeyFile, Failure> {
    KeyFile::parse(&secret_file("key", path)?)
        .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
}

/// A secret from a file, without the line end that editors add.
fn secret_file(what: &str, path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::usage(format!(
            "cannot read the {what} file {}: {error}",
            path.display()
        ))
    })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// `MQRAFT_<name>`; set but empty counts as not set, as container files often leave them.
fn variable(name: &str) -> Option<String> {
    std::env::var(format!("MQRAFT_{name}"))
        .ok()
        .filter(|value| !value.is_empty())
}

/// Tags as they are given: each a key and a value.
pub(crate) fn tags(given: Vec<String>) -> Result<BTreeMap<String, String>, Failure> {
    let pair = |tag: String| match tag.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(Failure::usage(format!("tag {tag:?}: say KEY=VALUE"))),
    };
    given.into_iter().map(pair).collect()
}

fn list(name: &str) -> Texts {
    let text = variable(name).unwrap_or_default();
    let texts = text.split(',').filter(|text| !text.is_empty());
    texts.map(str::to_owned).collect::<Vec<_>>().into()
}

fn parsed<T: FromStr<Err: std::fmt::Display>>(name: &str) -> Result<Option<T>, Failure> {
    let parse = |text: String| {
        text.parse()
            .map_err(|error| Failure::usage(format!("MQRAFT_{name}={text}: {error}")))
    };
    variable(name).map(parse).transpose()
}

fn switch(name: &str) -> Result<bool, Failure> {
    match variable(name).as_deref() {
        None | Some("0" | "false") => Ok(false),
        Some("1" | "true") => Ok(true),
        Some(other) => Err(Failure::usage(format!(
            "MQRAFT_{name}={other}: write 1 or 0"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Layer {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_upper_layer_wins_where_it_says_something() {
        let upper = file("cluster = 'a'\nmetric = 1.0");
        let lower = file("cluster = 'b'\nid = 'gw-1'\nbroker = 'mqtt://b'");
        let both = upper.over(lower);
        assert_eq!(both.cluster.as_deref(), Some("a"));
        assert_eq!(both.id.as_deref(), Some("gw-1"));
        assert_eq!(both.metric, Some(1.0));
        assert_eq!(both.broker.into_vec(), ["mqtt://b"]);
    }

    #[test]
    fn a_choice_is_taken_from_one_layer_whole() {
        let both = file("insecure = true").over(file("key-file = 'k'"));
        assert!(both.insecure && both.key_file.is_none());
        let both = file("key-file = 'k'").over(file("insecure = true"));
        assert!(!both.insecure && both.key_file.is_some());
        let both = file("expect = 3").over(file("voters = ['a']"));
        assert_eq!(both.expect, Some(3));
        assert!(both.voters.into_vec().is_empty());
        let both = file("voters = ['a']").over(file("expect = 3"));
        assert_eq!(both.expect, None);
        assert_eq!(both.voters.into_vec(), ["a"]);
    }

    #[test]
    fn requests_and_the_mirror_have_sections() {
        let access = |text| file(text).requests.map(|requests| requests.access().ok());
        assert!(access("").is_none());
        assert_eq!(
            access("[requests]\nenabled = false\nwrite = ['a']"),
            Some(Some(None))
        );
        let reads = Some(Some(Some(WriteAccess::read_only())));
        assert_eq!(access("[requests]\nenabled = true"), reads);
        let writes = Some(Some(Some(WriteAccess::below(["door/"]))));
        assert_eq!(
            access("[requests]\nenabled = true\nwrite = ['door/']"),
            writes
        );
        assert_eq!(
            access("[requests]\nenabled = true\nwrite = ['']"),
            Some(None)
        );
        assert!(toml::from_str::<Layer>("[requests]\nwrite = ['a']").is_err());
        let mirror = file("[mirror]\nprefixes = ['door/', '']").mirror.unwrap();
        assert_eq!(mirror.prefixes, ["door/", ""]);
    }

    #[test]
    fn a_legacy_fleet_has_a_section() {
        let both = file("[legacy]\nprefix = 'Plant 7'").over(file("[legacy]\nprefix = 'b'"));
        assert_eq!(both.legacy.unwrap().prefix, "Plant 7");
        assert!(
            toml::from_str::<Layer>("[legacy]").is_err(),
            "of which name?"
        );
    }

    #[test]
    fn home_assistant_is_found_where_it_usually_is() {
        let prefix = |text| file(text).homeassistant.map(|section| section.prefix);
        assert_eq!(prefix("[homeassistant]").as_deref(), Some("homeassistant"));
        assert_eq!(
            prefix("[homeassistant]\nprefix = 'ha'").as_deref(),
            Some("ha")
        );
        assert_eq!(prefix(""), None);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = toml::from_str::<Layer>("cluster = 'a'\nmetrik = 1\n").unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("metrik") && message.contains("line 2"),
            "{message}"
        );
    }
}
