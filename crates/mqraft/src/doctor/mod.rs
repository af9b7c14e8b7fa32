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
use crate::duration::Span;
use crate::exit::{Exit, Failure};
use crate::interrupt::interrupted;
use crate::output;
use crate::settings::{Connection, Layer};

use words::Words;

/// A node's, unless said otherwise.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);

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

async fn examine(layer: Layer, thorough: bool, format: Format) -> Result<(), Failure> {
    let patient = Patient::of(&layer, thorough)?;
    let Connection {
        mqtt,
        prefix,
        cluster,
        keys,
        ..
    } = Connection::resolve(layer)?;
    let words = Words::new(&prefix, &cluster, &patient.id);
    let mut reports = Vec::new();
    // What was retained is removed before it ends.
    let mut stop = std::pin::pin!(interrupted()?);
    for broker in mqtt.split() {
        let doctor = Doctor::new(broker, &prefix, &cluster, &patient.id, keys.clone());
        let report = patient
            .describe(doctor)
            .examine_until(stop.as_mut())
            .await?;
        if format == Format::Text {
            output::line(&words.report(&report));
        }
        let stopped = |finding: &Finding| matches!(finding, Finding::Interrupted);
        let ends = report.findings.iter().any(stopped);
        reports.push(report);
        if ends {
            break;
        }
    }
    if format == Format::Json {
        let brokers: Vec<Value> = reports.iter().map(|report| words.json(report)).collect();
        output::line(&json!({ "id": patient.id, "brokers": brokers }).to_string());
    }
    verdict(&reports)
}

/// What a node's settings say of what it will do on the broker.
struct Patient {
    id: String,
    voters: Vec<String>,
    election_timeout: Duration,
    heartbeat_interval: Option<Duration>,
    requests: bool,
    mirror: bool,
    thorough: bool,
    timeout: Duration,
}

impl Patient {
    fn of(layer: &Layer, thorough: bool) -> Result<Patient, Failure> {
        let id = layer.id.clone().ok_or_else(|| {
            Failure::usage("for which node? --id ID: what it may do is bound to its name")
        })?;
        let usual = if thorough { THOROUGH_TIMEOUT } else { TIMEOUT };
        let span = |span: Option<Span>| span.map(|span| span.0);
        let requests = layer.requests.as_ref();
        Ok(Patient {
            id,
            voters: layer.voters.texts(),
            election_timeout: span(layer.election_timeout).unwrap_or(ELECTION_TIMEOUT),
            heartbeat_interval: span(layer.heartbeat_interval),
            requests: requests.is_some_and(|section| section.enabled),
            mirror: layer.mirror.is_some(),
            thorough,
            timeout: span(layer.timeout).unwrap_or(usual),
        })
    }

    fn describe(&self, doctor: Doctor) -> Doctor {
        doctor
            .voters(self.voters.iter().cloned())
            .timing(self.election_timeout, self.heartbeat_interval)
            .requests(self.requests)
            .mirror(self.mirror)
            .thorough(self.thorough)
            .timeout(self.timeout)
    }
}

/// What a script can go by: 0 where nothing stands in a node's way, 1 where something does, 3 where no
/// broker let us in, 4 where it was not found out.
fn verdict(reports: &[Report]) -> Result<(), Failure> {
    let unreached =
        |report: &Report| matches!(report.findings.as_slice(), [Finding::NotConnected(_)]);
    if reports.iter().all(unreached) {
        return Err(Failure::new(
            Exit::Broker,
            "no session came up with a broker",
        ));
    }
    match reports.iter().map(Report::severity).max() {
        Some(Severity::Fault) => Err(Failure::negative()),
        _ if reports.iter().all(Report::is_complete) => Ok(()),
        _ => Err(Failure::new(Exit::NoAnswer, "not examined to the end")),
    }
}
