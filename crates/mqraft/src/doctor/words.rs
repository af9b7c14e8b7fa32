//! What was found, in words: a sentence each, and what to change.

use std::time::Duration;

use raft_over_mqtt::doctor::{Finding, Outcome, Purpose, Report, RoundTrip, Severity, Timeouts};
use serde_json::{Map, Value, json};

/// Speaks of one node and its topics.
pub(super) struct Words {
    root: String,
    id: String,
}

/// A finding's check, its sentence, and what to change where something should be.
struct Said {
    check: &'static str,
    sentence: String,
    remedy: Option<String>,
    data: Value,
}

impl Words {
    pub(super) fn new(prefix: &str, cluster: &str, id: &str) -> Words {
        Words {
            root: format!("{prefix}/{cluster}"),
            id: id.to_owned(),
        }
    }

    pub(super) fn report(&self, report: &Report) -> String {
        let Words { root, id } = self;
        let mut lines = vec![format!("{} for {id}, of {root}", report.broker)];
        let (works, told): (Vec<&Finding>, Vec<&Finding>) =
            report.findings.iter().partition(|finding| is_well(finding));
        let mut works = (!works.is_empty()).then(|| topics(&works));
        for finding in told {
            // Where the topics were tried, before what was tried on them.
            let on_topics = !matches!(
                finding,
                Finding::Connected { .. } | Finding::NameTaken | Finding::Topic { .. }
            );
            if on_topics && let Some(works) = works.take() {
                lines.push(line(Severity::Fine, &works));
            }
            let said = self.say(finding, &report.broker);
            lines.push(line(finding.severity(), &said.sentence));
            if let Some(remedy) = said.remedy {
                lines.push(format!("{:10}-> {remedy}", ""));
            }
        }
        if let Some(works) = works {
            lines.push(line(Severity::Fine, &works));
        }
        lines.push(summary(report));
        lines.join("\n")
    }

    pub(super) fn json(&self, report: &Report) -> Value {
        let findings = report.findings.iter().map(|finding| {
            let said = self.say(finding, &report.broker);
            let mut object = Map::new();
            object.insert("check".to_owned(), said.check.into());
            let severity = severity(finding.severity());
            object.insert("severity".to_owned(), severity.into());
            object.insert("finding".to_owned(), said.sentence.into());
            object.insert("remedy".to_owned(), said.remedy.into());
            if let Value::Object(data) = said.data {
                object.extend(data);
            }
            Value::Object(object)
        });
        json!({
            "broker": report.broker,
            "severity": severity(report.severity()),
            "findings": findings.collect::<Vec<_>>(),
        })
    }

    fn say(&self, finding: &Finding, broker: &str) -> Said {
        let id = &self.id;
        match finding {
            Finding::Connected { version, took } => Said {
                check: "connect",
                sentence: format!("connected, MQTT {version}, in {}", ms(*took)),
                remedy: (*version != "5").then(|| {
                    "nothing has to change; by MQTT 5 the broker could say what its access list forbids"
                        .to_owned()
                }),
                data: json!({ "version": version, "ms": millis(*took) }),
            },
            Finding::NotConnected(reason) => said("connect", reason.to_string()),
            Finding::NameTaken => said("name", format!("a process called {id} runs already")).or(
                format!(
                    "good, if it is the node with these settings; a second {id} would not start: give it another --id"
                ),
            ),
            Finding::Heard(nodes) => Said {
                data: json!({ "nodes": nodes }),
                ..said("cluster", format!("heard of {}", nodes.join(", ")))
            },
            Finding::Topic {
                topic,
                purpose,
                outcome,
            } => self.topic(topic, *purpose, outcome),
            Finding::Retain { kept, cleared } => retain(*kept, *cleared),
            Finding::Will(after) => will(*after),
            Finding::WillRefused(reason) => said(
                "will",
                format!("no session with a will such as a node's: {reason}"),
            )
            .or("the broker must allow a retained will at QoS 1 on the node's own status".to_owned()),
            Finding::SilentWill { keep_alive, after } => silent_will(*keep_alive, *after),
            Finding::RoundTrip(trip) => round_trip(trip),
            Finding::Nagle {
                second_of_two,
                ours,
            } => nagle(*second_of_two, *ours, finding.is_slowed_by_nagle()),
            Finding::Payload {
                largest,
                needed,
                took,
            } => payload(*largest, *needed, *took, finding.severity(), broker),
            Finding::Burst {
                sent,
                size,
                arrived,
            } => burst(*sent, *size, *arrived),
            Finding::Timeouts(timeouts) => self::timeouts(timeouts),
            Finding::NoTime(what) => said("time", format!("no time was left for {what}"))
                .or("give it more: --timeout TIME".to_owned()),
            Finding::Interrupted => said("time", "interrupted".to_owned()),
            _ => said("other", format!("{finding:?}")),
        }
    }

    fn topic(&self, topic: &str, purpose: Purpose, outcome: &Outcome) -> Said {
        let what = match purpose {
            Purpose::Own => "frames to this node",
            Purpose::Broadcast => "frames to every node",
            Purpose::Peer => "frames to another voter",
            Purpose::OwnRoll | Purpose::Roll => "who is there",
            Purpose::Status => "this node's birth and will",
            Purpose::Leader => "who leads",
            Purpose::Requests => "requests",
            Purpose::Answers => "answers to requests",
            Purpose::Mirror => "mirrored keys",
            _ => "a node's topic",
        };
        let (read, write) = (self.read_filter(purpose), self.write_filter(purpose));
        let subject = format!("{topic} ({what})");
        let (sentence, remedy) = match outcome {
            Outcome::Works => (format!("{subject} works"), None),
            Outcome::Untried => (
                format!("{subject} was not tried: nodes run that would remark on it"),
                None,
            ),
            Outcome::PublishRefused(detail) => (
                format!("{subject}: the broker refuses what is published: {detail}"),
                Some(format!("let this user write {write}")),
            ),
            Outcome::SubscribeRefused => (
                format!("{subject}: the broker refuses the subscription"),
                Some(format!("let this user read {read}")),
            ),
            Outcome::NotReadable => (
                format!("{subject}: what is published does not come back"),
                Some(format!("let this user read {read}")),
            ),
            Outcome::Lost => (
                format!("{subject}: what is published does not come back"),
                Some(format!("let this user write {write} and read {read}")),
            ),
            Outcome::NotTold if purpose == Purpose::Requests => (
                format!("{subject}: whether a node may read them cannot be found out"),
                Some(format!("see that this user may read {read}")),
            ),
            Outcome::NotTold => (
                format!("{subject}: whether a node may publish it is not told by MQTT 3.1.1"),
                Some(format!("see that this user may write {write}")),
            ),
            _ => (format!("{subject}: {outcome:?}"), None),
        };
        let outcome = match outcome {
            Outcome::Works => "works",
            Outcome::PublishRefused(_) => "publish-refused",
            Outcome::SubscribeRefused => "subscribe-refused",
            Outcome::NotReadable => "not-readable",
            Outcome::Lost => "lost",
            Outcome::NotTold => "not-told",
            _ => "not-tried",
        };
        Said {
            check: "topic",
            sentence,
            remedy,
            data: json!({ "topic": topic, "outcome": outcome }),
        }
    }

    fn read_filter(&self, purpose: Purpose) -> String {
        let Words { root, id } = self;
        match purpose {
            Purpose::Own | Purpose::Peer => format!("{root}/rpc/{id}/+"),
            Purpose::Broadcast => format!("{root}/rpc/all/+"),
            Purpose::OwnRoll => format!("{root}/roll/{id}/+"),
            Purpose::Roll => format!("{root}/roll/all/+"),
            Purpose::Status => format!("{root}/nodes/+/status"),
            Purpose::Leader => format!("{root}/leader"),
            Purpose::Requests | Purpose::Answers => format!("{root}/req/+"),
            _ => format!("{root}/kv/#"),
        }
    }

    fn write_filter(&self, purpose: Purpose) -> String {
        let Words { root, id } = self;
        match purpose {
            Purpose::Own | Purpose::Peer | Purpose::Broadcast => format!("{root}/rpc/+/{id}"),
            Purpose::OwnRoll | Purpose::Roll => format!("{root}/roll/+/{id}"),
            Purpose::Status => format!("{root}/nodes/{id}/status"),
            Purpose::Leader => format!("{root}/leader"),
            Purpose::Requests | Purpose::Answers => format!("{root}/req/+/#"),
            _ => format!("{root}/kv/#"),
        }
    }
}

impl Said {
    /// With what to change.
    fn or(self, remedy: String) -> Said {
        let remedy = Some(remedy);
        Said { remedy, ..self }
    }
}

fn said(check: &'static str, sentence: String) -> Said {
    Said {
        check,
        sentence,
        remedy: None,
        data: Value::Null,
    }
}

fn retain(kept: bool, cleared: Option<bool>) -> Said {
    let data = json!({ "kept": kept, "cleared": cleared });
    let said = match (kept, cleared) {
        (false, _) => said(
            "retain",
            "what is retained is not there for who comes later".to_owned(),
        )
        .or("allow retained messages (Mosquitto: retain_available true): without them nodes that start learn slowly who is there, and other clients not at all who leads".to_owned()),
        (true, Some(false)) => said(
            "retain",
            "what was retained cannot be removed".to_owned(),
        )
        .or("a broker removes what is retained when an empty message follows: this one is at fault".to_owned()),
        (true, Some(true)) => said(
            "retain",
            "retained messages are kept, and removed".to_owned(),
        ),
        (true, None) => said("retain", "retained messages are kept".to_owned()),
    };
    Said { data, ..said }
}

fn will(after: Option<Duration>) -> Said {
    let data = json!({ "ms": after.map(millis) });
    let said = match after {
        None => said("will", "no will came after an ungraceful end".to_owned()).or(
            "a broker must publish wills: without them the end of a leader is noticed by --election-timeout alone"
                .to_owned(),
        ),
        Some(after) => {
            let sentence = format!("a will came {} after an ungraceful end", ms(after));
            said("will", sentence)
        }
    };
    Said { data, ..said }
}

fn silent_will(keep_alive: Duration, after: Option<Duration>) -> Said {
    let promised = keep_alive.as_secs();
    let data = json!({ "keep_alive_s": promised, "ms": after.map(millis) });
    let said = match after {
        Some(after) => said(
            "keep-alive",
            format!(
                "the will of a client that fell silent (keep alive {promised} s) came after {:.1} s; until then --election-timeout decides",
                after.as_secs_f64()
            ),
        ),
        None => said(
            "keep-alive",
            format!("no will came for a client that fell silent (keep alive {promised} s)"),
        )
        .or(
            "the broker does not look at keep alives: nodes that vanish would be shown as there"
                .to_owned(),
        ),
    };
    Said { data, ..said }
}

fn round_trip(trip: &RoundTrip) -> Said {
    let RoundTrip {
        samples,
        lost,
        p50,
        p99,
        max,
    } = trip;
    let mut sentence = format!(
        "round trip {} (p50), {} (p99), {} (longest of {samples})",
        ms(*p50),
        ms(*p99),
        ms(*max)
    );
    let mut remedy = None;
    if *samples == 0 {
        sentence = format!("none of {lost} messages at QoS 0 came back, though at QoS 1 they do");
        remedy = Some("frames go at QoS 0: the broker must deliver such".to_owned());
    } else if *lost > 0 {
        sentence += &format!("; {lost} did not come back");
        let why =
            "an idle broker that drops single messages at QoS 0 is overloaded, or limits the rate";
        remedy = Some(why.to_owned());
    }
    Said {
        check: "round-trip",
        sentence,
        remedy,
        data: json!({
            "samples": samples, "lost": lost,
            "p50_ms": millis(*p50), "p99_ms": millis(*p99), "max_ms": millis(*max),
        }),
    }
}

fn nagle(second_of_two: Duration, ours: Duration, slowed: bool) -> Said {
    let data = json!({ "second_of_two_ms": millis(second_of_two), "ours_ms": millis(ours) });
    let said = if slowed {
        let sentence = format!(
            "the broker has Nagle's algorithm on: plain clients wait {} for the second of two messages",
            ms(second_of_two)
        );
        let why = match cfg!(target_os = "linux") {
            true => "nodes on Linux do not wait; for all others set_tcp_nodelay true (Mosquitto)",
            false => "nodes wait likewise on this system: set_tcp_nodelay true (Mosquitto)",
        };
        said("nagle", sentence).or(why.to_owned())
    } else {
        let after = ms(second_of_two);
        said(
            "nagle",
            format!("no waiting by Nagle's algorithm ({after})"),
        )
    };
    Said { data, ..said }
}

fn payload(
    largest: usize,
    needed: usize,
    took: Duration,
    severity: Severity,
    broker: &str,
) -> Said {
    let data = json!({ "largest": largest, "needed": needed, "ms": millis(took) });
    let said = match severity {
        Severity::Fault => said(
            "payload",
            format!("frames of {largest} bytes come back, larger ones do not; nodes send up to {needed}"),
        )
        .or("raise the broker's limit to 262144 (Mosquitto: message_size_limit, max_packet_size): without it nodes that fell behind never catch up".to_owned()),
        Severity::Warning => {
            let slow = said(
                "payload",
                format!("a frame of {largest} bytes takes {}", ms(took)),
            );
            let websocket = broker.starts_with("ws");
            slow.or(match websocket {
                true => "Mosquitto 2.0 sends 4 KiB in 100 ms by WebSocket: use mqtt:// or mqtts:// where you can",
                false => "nodes that catch up need many such: the network or the broker limits the rate",
            }
            .to_owned())
        }
        _ => said(
            "payload",
            format!("frames of {largest} bytes come back, in {}", ms(took)),
        ),
    };
    Said { data, ..said }
}

fn burst(sent: usize, size: usize, arrived: usize) -> Said {
    let data = json!({ "sent": sent, "size": size, "arrived": arrived });
    let said = match arrived < sent {
        true => said(
            "burst",
            format!("of {sent} frames of {size} bytes at once {arrived} came back"),
        )
        .or("raise the broker's queues (Mosquitto: max_queued_messages 10000, max_queued_bytes 67108864): what is lost is sent again, and costs time".to_owned()),
        false => said("burst", format!("all of {sent} frames at once came back")),
    };
    Said { data, ..said }
}

fn timeouts(timeouts: &Timeouts) -> Said {
    let Timeouts {
        election_timeout,
        heartbeat_interval,
        pace,
        shortest,
        recommended,
    } = timeouts;
    let data = json!({
        "election_timeout_ms": millis(*election_timeout),
        "heartbeat_interval_ms": millis(*heartbeat_interval),
        "round_trip_ms": millis(pace.round_trip),
        "large_frame_ms": pace.large_frame.map(millis),
        "shortest_ms": millis(*shortest),
        "recommended_ms": millis(*recommended),
    });
    let large = pace.large_frame.map_or_else(String::new, |took| {
        format!(", or {} behind a large frame", ms(took))
    });
    let (configured, shortest) = (ms(*election_timeout), ms(*shortest));
    let say = format!("--election-timeout {}ms", recommended.as_millis());
    let said = match timeouts.severity() {
        Severity::Fine => said(
            "timeouts",
            format!("an election timeout of {configured} suits this broker; {shortest} would do"),
        ),
        Severity::Warning => said(
            "timeouts",
            format!("an election timeout of {configured} leaves little room: {shortest} would be comfortable"),
        )
        .or(format!("{say}, on every voter")),
        _ => said(
            "timeouts",
            format!(
                "an election timeout of {configured} with heartbeats each {} is too short: a frame took up to {}{large}",
                ms(*heartbeat_interval),
                ms(pace.round_trip)
            ),
        )
        .or(format!("{say}, on every voter: else leaders are deposed in ordinary operation")),
    };
    Said { data, ..said }
}

/// What is said of all such topics in one line.
fn is_well(finding: &Finding) -> bool {
    matches!(finding, Finding::Topic { outcome, .. } if matches!(outcome, Outcome::Works | Outcome::Untried))
}

fn topics(works: &[&Finding]) -> String {
    let mut untried = Vec::new();
    for finding in works {
        if let Finding::Topic {
            topic,
            outcome: Outcome::Untried,
            ..
        } = finding
        {
            untried.push(topic.as_str());
        }
    }
    let count = works.len() - untried.len();
    let mut text = format!("{count} topics work as a node needs them");
    if !untried.is_empty() {
        text += &format!("; not tried beside running nodes: {}", untried.join(", "));
    }
    text
}

fn summary(report: &Report) -> String {
    let count = |severity| {
        let all = report.findings.iter().map(Finding::severity);
        all.filter(|found| *found == severity).count()
    };
    let (faults, warnings) = (count(Severity::Fault), count(Severity::Warning));
    let plural = |count: usize, what: &str| match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    };
    if faults == 0 && !report.is_complete() {
        return "not examined to the end".to_owned();
    }
    match (faults, warnings) {
        (0, 0) => "fit for a node".to_owned(),
        (0, warnings) => format!("fit for a node, with {}", plural(warnings, "warning")),
        (faults, 0) => format!("not fit for a node: {}", plural(faults, "fault")),
        (faults, warnings) => format!(
            "not fit for a node: {}, {}",
            plural(faults, "fault"),
            plural(warnings, "warning")
        ),
    }
}

fn line(severity: Severity, sentence: &str) -> String {
    format!("  {:7} {sentence}", mark(severity))
}

fn mark(severity: Severity) -> &'static str {
    match severity {
        Severity::Fine => "ok",
        Severity::Advice => "note",
        Severity::Warning => "warning",
        Severity::Fault => "FAULT",
    }
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Fine => "ok",
        Severity::Advice => "note",
        Severity::Warning => "warning",
        Severity::Fault => "fault",
    }
}

/// To three digits.
fn ms(span: Duration) -> String {
    let millis = millis(span);
    match millis {
        _ if millis < 10.0 => format!("{millis:.2} ms"),
        _ if millis < 100.0 => format!("{millis:.1} ms"),
        _ if millis < 1_000.0 => format!("{millis:.0} ms"),
        _ => format!("{:.2} s", millis / 1e3),
    }
}

/// In milliseconds, to the microsecond.
fn millis(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e3
}
