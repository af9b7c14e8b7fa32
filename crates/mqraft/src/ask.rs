//! Asking a cluster how it is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raft_over_mqtt::{AgreedMembers, AgreedNode, Client, Error, Kv, NodeStatus, Remote};
use serde_json::{Value, json};

use crate::cli::Format;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::settings::Connection;

/// How long to wait for nodes that may not be there, once the others have answered.
const STATUS_WAIT: Duration = Duration::from_millis(500);

/// How often `leader --watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

pub(crate) async fn connect(connection: Connection) -> Result<Remote, Failure> {
    let Connection {
        mqtt,
        prefix,
        cluster,
        keys,
        timeout,
    } = connection;
    Ok(Remote::connect(mqtt, &prefix, &cluster, keys, timeout).await?)
}

/// An error of a request, with what the cluster said of itself meanwhile.
pub(crate) fn explain(remote: &Remote, error: Error) -> Failure {
    let mut failure = Failure::from(error);
    if failure.exit == Exit::NoAnswer
        && let Some((node, missing)) = remote.not_formed().iter().next()
    {
        let missing = missing.join(", ");
        failure.message = format!(
            "the cluster is not formed yet: {node} waits for {missing}; its first start needs all voters"
        );
    }
    failure
}

pub(crate) async fn status(connection: Connection, format: Format) -> Result<(), Failure> {
    let statuses = statuses(connection).await?;
    output::answer(
        format,
        || table(&statuses),
        || {
            json!({
                "leader": leader_of(&statuses).map(|(leader, _)| leader),
                "nodes": statuses.iter().map(status_json).collect::<Vec<_>>(),
            })
        },
    );
    Ok(())
}

pub(crate) async fn leader(connection: Connection, format: Format) -> Result<(), Failure> {
    let statuses = statuses(connection).await?;
    output::line(&leader_line(&statuses, format));
    match leader_of(&statuses) {
        Some(_) => Ok(()),
        None => Err(Failure::negative()),
    }
}

/// Prints who leads, and whoever leads next, until interrupted.
pub(crate) async fn watch_leader(connection: Connection, format: Format) -> Result<(), Failure> {
    let mut remote = connect(connection).await?;
    let mut newest = 0;
    let mut shown = None;
    loop {
        let status = remote.leading(STATUS_WAIT).await?;
        // An old leader that was cut off may still believe in itself.
        let status = status.filter(|status| status.term >= newest);
        newest = status.as_ref().map_or(newest, |status| status.term);
        let line = leader_line(status.as_slice(), format);
        if shown.as_ref() != Some(&line) {
            output::line(&line);
            shown = Some(line);
        }
        remote.leader_changed(WATCH_INTERVAL).await?;
    }
}

pub(crate) async fn members(connection: Connection, format: Format) -> Result<(), Failure> {
    let statuses = statuses(connection.clone()).await?;
    let members = members_of(&statuses);
    // Without a leader nobody tells what is agreed; who answered is shown all the same.
    let agreed = agreed(connection).await.ok();
    let text = || {
        let head = ["node", "part", "present"].map(str::to_owned).to_vec();
        let row = |member: &Member| {
            let part = if member.voter { "voter" } else { "observer" };
            let present = if member.present { "yes" } else { "no" };
            vec![member.node.clone(), part.to_owned(), present.to_owned()]
        };
        let rows = std::iter::once(head).chain(members.iter().map(row));
        let mut text = output::table(&rows.collect::<Vec<_>>());
        if let Some(agreed) = &agreed {
            text += &format!("\n\nagreed at revision {}\n", agreed.revision);
            let head = ["node", "role", "metric", "tags"]
                .map(str::to_owned)
                .to_vec();
            let rows = std::iter::once(head).chain(agreed.nodes.iter().map(agreed_row));
            text += &output::table(&rows.collect::<Vec<_>>());
        }
        with_troubles(text, &statuses)
    };
    let json = || {
        let member = |m: &Member| json!({ "node": m.node, "voter": m.voter, "present": m.present });
        let agreed = agreed.as_ref().map(|agreed| {
            let nodes: Vec<Value> = agreed.nodes.iter().map(agreed_json).collect();
            json!({ "revision": agreed.revision, "nodes": nodes })
        });
        json!({ "members": members.iter().map(member).collect::<Vec<_>>(), "agreed": agreed })
    };
    output::answer(format, text, json);
    Ok(())
}

/// How long `members` waits for what is agreed, once nodes have answered.
const AGREED_WAIT: Duration = Duration::from_secs(1);

async fn kv(connection: Connection, timeout: Duration) -> Result<Kv, Failure> {
    let Connection {
        mqtt,
        prefix,
        cluster,
        keys,
        ..
    } = connection;
    let client = Client::connect(mqtt, &prefix, &cluster, keys, timeout).await?;
    Ok(client.kv())
}

async fn agreed(connection: Connection) -> Result<AgreedMembers, Failure> {
    let timeout = AGREED_WAIT.min(connection.timeout);
    let kv = kv(connection, timeout).await?;
    Ok(AgreedMembers::watch(&kv).await?.0)
}

fn agreed_row(node: &AgreedNode) -> Vec<String> {
    let tags: Vec<String> = node.tags.iter().map(|(k, v)| format!("{k}={v}")).collect();
    vec![
        node.name.to_string(),
        node.role.as_str().to_owned(),
        node.metric.value().to_string(),
        tags.join(" "),
    ]
}

fn agreed_json(node: &AgreedNode) -> Value {
    let tags: BTreeMap<&str, &str> = node.tags.iter().collect();
    json!({
        "node": node.name.as_str(),
        "role": node.role.as_str(),
        "metric": node.metric.value(),
        "tags": tags,
    })
}

/// Prints who is there as the cluster has agreed, and every change, until interrupted.
pub(crate) async fn watch_members(connection: Connection, format: Format) -> Result<(), Failure> {
    let timeout = connection.timeout;
    let kv = kv(connection, timeout).await?;
    loop {
        let (members, mut changes) = AgreedMembers::watch(&kv).await?;
        for node in &members.nodes {
            tell_change(
                members.revision,
                "is there",
                node.name.as_str(),
                Some(node),
                format,
            );
        }
        loop {
            let change = match changes.next().await {
                Ok(change) => change,
                // More has changed than is kept: all of it is told anew.
                Err(Error::Compacted { .. }) => break,
                Err(error) => return Err(error.into()),
            };
            let what = match (&change.node, change.arrived) {
                (None, _) => "departed",
                (Some(_), true) => "arrived",
                (Some(_), false) => "changed",
            };
            let node = change.node.as_ref();
            tell_change(change.revision, what, change.name.as_str(), node, format);
        }
    }
}

fn tell_change(revision: u64, what: &str, name: &str, node: Option<&AgreedNode>, format: Format) {
    let text = || {
        let mut line = format!("{revision} {name} {what}");
        for word in node
            .into_iter()
            .flat_map(|node| agreed_row(node).split_off(1))
        {
            if !word.is_empty() {
                line = line + " " + &word;
            }
        }
        line
    };
    let json = || {
        let mut event = node.map_or_else(|| json!({ "node": name }), agreed_json);
        event["revision"] = revision.into();
        event["event"] = what.into();
        event
    };
    output::answer(format, text, json);
}

struct Member {
    node: String,
    voter: bool,
    present: bool,
}

/// The voters, and whoever else answered. A voter that lost its disk is another node under the old
/// name: it stands there as an observer, and beside it the voter, who is gone.
fn members_of(statuses: &[NodeStatus]) -> Vec<Member> {
    // The node whose log has come furthest knows the newest configuration.
    let newest = statuses.iter().max_by_key(|status| status.applied_index);
    let voters: BTreeSet<&String> = newest.iter().flat_map(|status| &status.voters).collect();
    let votes = |status: &NodeStatus| voters.contains(&status.node) && status.role != "learner";
    let present: BTreeSet<(&String, bool)> = statuses
        .iter()
        .map(|status| (&status.node, votes(status)))
        .collect();
    let voting = voters.iter().map(|voter| (*voter, true)).collect();
    let member = |(node, voter): &(&String, bool)| Member {
        node: (*node).clone(),
        voter: *voter,
        present: present.contains(&(*node, *voter)),
    };
    present.union(&voting).map(member).collect()
}

pub(crate) async fn statuses(connection: Connection) -> Result<Vec<NodeStatus>, Failure> {
    let timeout = connection.timeout;
    let mut remote = connect(connection).await?;
    let statuses = remote.statuses(STATUS_WAIT.min(timeout)).await;
    remote.close().await;
    let statuses = statuses?;
    if statuses.is_empty() {
        return Err(Failure::new(
            Exit::NoAnswer,
            "no node answered: check that nodes run, and that --cluster, --prefix and the key are theirs",
        ));
    }
    Ok(statuses)
}

/// Whom the newest term's nodes name, and that term.
fn leader_of(statuses: &[NodeStatus]) -> Option<(String, u64)> {
    let named = statuses
        .iter()
        .filter_map(|status| Some((status.leader.clone()?, status.term)));
    named.max_by_key(|(_, term)| *term)
}

fn leader_line(statuses: &[NodeStatus], format: Format) -> String {
    let leader = leader_of(statuses);
    let name = leader.as_ref().map(|(name, _)| name);
    let exclusive = statuses
        .iter()
        .any(|status| status.is_leader && Some(&status.node) == name);
    match format {
        Format::Text => name.cloned().unwrap_or_else(|| "none".to_owned()),
        Format::Json => {
            let term = leader.as_ref().map(|(_, term)| term);
            json!({ "leader": name, "term": term, "is_leader": exclusive }).to_string()
        }
    }
}

fn table(statuses: &[NodeStatus]) -> String {
    let head = [
        "node",
        "",
        "role",
        "term",
        "metric",
        "commit",
        "applied",
        "is_leader",
        "version",
    ];
    let head = head.map(str::to_owned).to_vec();
    let leader = leader_of(statuses).map(|(leader, _)| leader);
    let row = |status: &NodeStatus| {
        let mark = if Some(&status.node) == leader.as_ref() {
            "*"
        } else {
            ""
        };
        vec![
            status.node.clone(),
            mark.to_owned(),
            status.role.clone(),
            status.term.to_string(),
            status.metric.to_string(),
            status.commit_index.to_string(),
            status.applied_index.to_string(),
            status.is_leader.to_string(),
            status.version.clone(),
        ]
    };
    let rows: Vec<_> = std::iter::once(head)
        .chain(statuses.iter().map(row))
        .collect();
    with_troubles(output::table(&rows), statuses)
}

/// A table, and below it what an operator has to look at.
fn with_troubles(mut table: String, statuses: &[NodeStatus]) -> String {
    for status in statuses {
        if let Some(trouble) = &status.trouble {
            table += &format!("\n{}: {trouble}", status.node);
        }
    }
    table
}

fn status_json(status: &NodeStatus) -> Value {
    // They come in the order of their keys.
    let voters: BTreeSet<&String> = status.voters.iter().collect();
    json!({
        "node": status.node,
        "role": status.role,
        "term": status.term,
        "leader": status.leader,
        "metric": status.metric,
        "last_index": status.last_index,
        "commit_index": status.commit_index,
        "applied_index": status.applied_index,
        "applied_digest": status.applied_digest,
        "revision": status.revision,
        "voters": voters,
        "is_leader": status.is_leader,
        "version": status.version,
        "trouble": status.trouble,
    })
}
