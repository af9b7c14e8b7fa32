//! `mqraft doctor`: is this broker fit for a node, and what has to change?
//!
//! The library examines ([`raft_over_mqtt::doctor`]); `words.rs` says what was found, and
//! `mosquitto.rs` writes a configuration with which there is nothing to find.

mod mosquitto;
mod words;

use std::path::PathBuf;
use std::time::Duration;

use raft_over_mqtt::doctor::{Doctor, Finding, Report, Severity};
use serde_json::{Value, json};

use crate::cli::{BrokerKind, DoctorArgs, Format, NodeArgs};
use crate::exit::{Exit, Failure};
use crate::output;
use crate::settings::{Connection, Layer};

use words::Words;

/// How long the examination of one broker may take, unless said otherwise.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The same with the will of a silent client.
const THOROUGH_TIMEOUT: Duration = Duration::from_secs(40);

/// What is wanted of the doctor, beside what a node is given.
pub(crate) struct Wanted {
    thorough: bool,
    print: Option<(BrokerKind, Print)>,
}

/// What an access list is to say beside the nodes' settings.
pub(crate) struct Print {
    dir: Option<PathBuf>,
    observers: Vec<String>,
    clients: Vec<String>,
    readers: Vec<String>,
    askers: Vec<String>,
}

impl Wanted {
    pub(crate) fn of(args: DoctorArgs) -> (NodeArgs, Wanted) {
        let DoctorArgs {
            thorough,
            print_acl,
            dir,
            observer,
            client,
            reader,
            asker,
            node,
        } = args;
        let print = Print {
            dir,
            observers: observer,
            clients: client,
            readers: reader,
            askers: asker,
        };
        let print = print_acl.map(|kind| (kind, print));
        (node, Wanted { thorough, print })
    }
}

/// Checks each broker, or writes a configuration for one.
pub(crate) async fn run(layer: Layer, wanted: Wanted, format: Format) -> Result<(), Failure> {
    match wanted.print {
        Some((BrokerKind::Mosquitto, print)) => mosquitto::print(layer, print, format),
        None => examine(layer, wanted.thorough, format).await,
    }
}

async fn examine(mut layer: Layer, thorough: bool, format: Format) -> Result<(), Failure> {
    let brokers = std::mem::take(&mut layer.broker).into_vec();
    let id = layer.id.clone().ok_or_else(|| {
        Failure::usage("for which node? --id ID: what it may do is bound to its name")
    })?;
    let mut reports = Vec::new();
    // Without any broker this asks for one.
    for broker in brokers.into_iter().map(Some).chain([None]) {
        if broker.is_none() && !reports.is_empty() {
            break;
        }
        let one = Connection::resolve(connection_to(broker, &layer))?;
        let words = Words::new(&one.prefix, &one.cluster, &id);
        let report = doctor(one, &id, &layer, thorough).examine().await?;
        if format == Format::Text {
            output::line(&words.report(&report));
        }
        reports.push((words, report));
    }
    if format == Format::Json {
        let json = |(words, report): &(Words, Report)| words.json(report);
        let brokers: Vec<Value> = reports.iter().map(json).collect();
        output::line(&json!({ "id": id, "brokers": brokers }).to_string());
    }
    verdict(reports.iter().map(|(_, report)| report))
}

/// What of the settings is for one session with this broker.
fn connection_to(broker: Option<String>, layer: &Layer) -> Layer {
    Layer {
        broker: broker.into_iter().collect::<Vec<_>>().into(),
        prefix: layer.prefix.clone(),
        cluster: layer.cluster.clone(),
        username: layer.username.clone(),
        password: layer.password.clone(),
        password_file: layer.password_file.clone(),
        ca: layer.ca.clone(),
        cert: layer.cert.clone(),
        key: layer.key.clone(),
        cluster_key: layer.cluster_key.clone(),
        key_file: layer.key_file.clone(),
        insecure: layer.insecure,
        ..Layer::default()
    }
}

fn doctor(connection: Connection, id: &str, layer: &Layer, thorough: bool) -> Doctor {
    let Connection {
        mqtt,
        prefix,
        cluster,
        keys,
        ..
    } = connection;
    let usual = if thorough { THOROUGH_TIMEOUT } else { TIMEOUT };
    let span = |span: Option<crate::duration::Span>| span.map(|span| span.0);
    let requests = layer
        .requests
        .as_ref()
        .is_some_and(|section| section.enabled);
    let timeout = span(layer.election_timeout).unwrap_or(Duration::from_secs(1));
    Doctor::new(mqtt, &prefix, &cluster, id, keys)
        .voters(layer.voters.texts())
        .timing(timeout, span(layer.heartbeat_interval))
        .requests(requests)
        .mirror(layer.mirror.is_some())
        .thorough(thorough)
        .timeout(span(layer.timeout).unwrap_or(usual))
}

/// What a script can go by: 0 where nothing stands in a node's way, 3 where no broker let us in, else 1.
fn verdict<'a>(reports: impl Iterator<Item = &'a Report> + Clone) -> Result<(), Failure> {
    let unreached = |report: &Report| match report.findings.as_slice() {
        [Finding::NotConnected(reason)] => Some(reason.to_string()),
        _ => None,
    };
    let reasons: Vec<String> = reports.clone().filter_map(unreached).collect();
    if reasons.len() == reports.clone().count() {
        return Err(Failure::new(Exit::Broker, reasons.join("; ")));
    }
    match reports.map(Report::severity).max() {
        Some(Severity::Fault) => Err(Failure::negative()),
        _ => Ok(()),
    }
}
