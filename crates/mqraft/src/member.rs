//! Who belongs to a cluster, what it has settled, and who leads it: looking and changing.

use std::time::Duration;

use raft_over_mqtt::{Change, Error, Member, MemberOperation, Members, Remote, Settings};
use serde_json::{Value, json};

use crate::ask::{connect, explain};
use crate::cli::{Format, MemberCommand, OnOff};
use crate::duration::Span;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::settings::Connection;

pub(crate) async fn run(
    connection: Connection,
    command: MemberCommand,
    format: Format,
) -> Result<(), Failure> {
    let mut remote = connect(connection).await?;
    let done = carry_out(&mut remote, command).await;
    let done = done.map_err(|error| refine(&remote, error));
    remote.close().await;
    show(&done?, format);
    Ok(())
}

async fn carry_out(remote: &mut Remote, command: MemberCommand) -> Result<Members, Failed> {
    match command {
        MemberCommand::List { .. } => Ok(remote.members().await?),
        MemberCommand::Add {
            node,
            learner,
            witness,
            ..
        } => {
            let who = node.clone();
            let added = change(remote, vec![MemberOperation::Add { who, witness }]).await?;
            match learner {
                true => Ok(added),
                false => change(remote, vec![MemberOperation::Promote(node)]).await,
            }
        }
        MemberCommand::Promote { node, .. } => {
            change(remote, vec![MemberOperation::Promote(node)]).await
        }
        MemberCommand::Demote { node, .. } => {
            change(remote, vec![MemberOperation::Demote(node)]).await
        }
        MemberCommand::Remove { node, .. } => {
            let members = remote.members().await?;
            let member = expect_member(&members, &node)?;
            let node = format!("{}#{}", member.name, key_of(member));
            change(remote, vec![MemberOperation::Remove(node)]).await
        }
        MemberCommand::Replace { node, by, .. } => replace(remote, node, by).await,
    }
}

/// The new one is brought up to date first; then, in one change, it gets the vote and the old one
/// goes.
async fn replace(remote: &mut Remote, node: String, by: Option<String>) -> Result<Members, Failed> {
    let members = remote.members().await?;
    let old = expect_member(&members, &node)?;
    let old = format!("{}#{}", old.name, key_of(old));
    let witness = members
        .members
        .iter()
        .any(|member| format!("{}#{}", member.name, key_of(member)) == old && member.witness);
    // Under the same name: the node that lost its disk, and is there again under another key.
    let name = by.unwrap_or_else(|| node.split('#').next().unwrap_or(&node).to_owned());
    let who = name.clone();
    let added = change(remote, vec![MemberOperation::Add { who, witness }]).await?;
    let new = added.members.iter().filter(|member| !member.voter);
    let new = new
        .filter(|member| member.name == name || is_called(&name, member))
        .map(|member| format!("{}#{}", member.name, key_of(member)))
        .next();
    let Some(new) = new else {
        return Err(Failed::Said(format!(
            "{name} has a vote already: nothing is to be replaced; `mqraft member remove {old}` lets the old one go"
        )));
    };
    let swap = vec![MemberOperation::Promote(new), MemberOperation::Remove(old)];
    change(remote, swap).await
}

async fn change(remote: &mut Remote, members: Vec<MemberOperation>) -> Result<Members, Failed> {
    let settings = None;
    Ok(remote.change(Change { members, settings }).await?)
}

fn expect_member<'a>(members: &'a Members, who: &str) -> Result<&'a Member, Failed> {
    let found: Vec<&Member> = members
        .members
        .iter()
        .filter(|member| is_called(who, member))
        .collect();
    match found.as_slice() {
        [] => Err(Failed::Said(format!("there is no member {who}"))),
        [member] => Ok(member),
        several => {
            // Of two under one name the one that is gone is meant, if only one is.
            let gone: Vec<&&Member> = several.iter().filter(|member| !member.heard).collect();
            match gone.as_slice() {
                [member] => Ok(member),
                _ => {
                    let all = several.iter().map(|m| format!("{}#{}", m.name, key_of(m)));
                    let all: Vec<String> = all.collect();
                    Err(Failed::Said(format!(
                        "{who} is ambiguous: say {}",
                        all.join(" or ")
                    )))
                }
            }
        }
    }
}

fn is_called(who: &str, member: &Member) -> bool {
    match who.split_once('#') {
        None => member.name == who,
        Some((name, digits)) => {
            (name.is_empty() || member.name == name)
                && !digits.is_empty()
                && format!("{:032x}", member.key.0).starts_with(digits)
        }
    }
}

fn key_of(member: &Member) -> String {
    format!("{:032x}", member.key.0)[..8].to_owned()
}

enum Failed {
    Asked(Error),
    Said(String),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed::Asked(error)
    }
}

fn refine(remote: &Remote, failed: Failed) -> Failure {
    match failed {
        Failed::Asked(error) => explain(remote, error),
        Failed::Said(message) => Failure::new(Exit::Negative, message),
    }
}

fn show(members: &Members, format: Format) {
    output::answer(format, || table(members), || members_json(members));
}

fn table(members: &Members) -> String {
    let head = ["node", "key", "part", "state", "log"].map(str::to_owned);
    let row = |member: &Member| {
        let part = match (member.voter, member.witness) {
            (true, true) => "witness",
            (true, false) => "voter",
            (false, true) => "witness, learning",
            (false, false) => "learner",
        };
        let state = match (member.leaving, member.heard, member.caught_up) {
            (true, ..) => "leaving",
            (_, false, _) => "not heard",
            (_, _, false) => "catching up",
            _ if member.name == members.leader => "leads",
            _ => "well",
        };
        vec![
            member.name.clone(),
            key_of(member),
            part.to_owned(),
            state.to_owned(),
            member.match_index.to_string(),
        ]
    };
    let rows = std::iter::once(head.to_vec()).chain(members.members.iter().map(row));
    output::table(&rows.collect::<Vec<_>>())
}

fn members_json(members: &Members) -> Value {
    let member = |member: &Member| {
        json!({
            "node": member.name,
            "key": key_of(member),
            "voter": member.voter,
            "witness": member.witness,
            "leaving": member.leaving,
            "heard": member.heard,
            "caught_up": member.caught_up,
            "match_index": member.match_index,
        })
    };
    json!({
        "leader": members.leader,
        "index": members.index,
        "members": members.members.iter().map(member).collect::<Vec<_>>(),
    })
}

/// Hands the lead over and says who has it then.
pub(crate) async fn transfer(
    connection: Connection,
    to: Option<String>,
    format: Format,
) -> Result<(), Failure> {
    let mut remote = connect(connection).await?;
    let done = remote.transfer(to.as_deref()).await;
    let done = done.map_err(|error| explain(&remote, error));
    remote.close().await;
    let leader = done?;
    output::answer(
        format,
        || format!("{leader} leads"),
        || json!({ "leader": leader }),
    );
    Ok(())
}

/// What is to be settled anew.
pub(crate) struct Wanted {
    pub(crate) lease: Option<Span>,
    pub(crate) drift: Option<u32>,
    pub(crate) lease_reads: Option<OnOff>,
}

/// Shows what the cluster has settled, after changing it if something is wanted.
pub(crate) async fn settings(
    connection: Connection,
    wanted: Wanted,
    format: Format,
) -> Result<(), Failure> {
    let mut remote = connect(connection).await?;
    let done = settle(&mut remote, wanted).await;
    let done = done.map_err(|error| explain(&remote, error));
    remote.close().await;
    let settings = done?;
    let lease = Duration::from_millis(settings.lease_ms.into());
    let reads = if settings.lease_reads { "on" } else { "off" };
    output::answer(
        format,
        || {
            format!(
                "lease        {lease:?}\ndrift        {} ppm\nlease-reads  {reads}",
                settings.drift_ppm
            )
        },
        || {
            json!({
                "lease_ms": settings.lease_ms,
                "drift_ppm": settings.drift_ppm,
                "lease_reads": settings.lease_reads,
            })
        },
    );
    Ok(())
}

async fn settle(remote: &mut Remote, wanted: Wanted) -> Result<Settings, Error> {
    let current = remote.members().await?.settings;
    let lease = wanted.lease.map(|lease| lease.0.as_millis());
    let settings = Settings {
        lease_ms: lease.map_or(current.lease_ms, |ms| ms.try_into().unwrap_or(u32::MAX)),
        drift_ppm: wanted.drift.unwrap_or(current.drift_ppm),
        lease_reads: wanted
            .lease_reads
            .map_or(current.lease_reads, |reads| reads == OnOff::On),
    };
    if settings == current {
        return Ok(current);
    }
    let change = Change {
        members: Vec::new(),
        settings: Some(settings),
    };
    Ok(remote.change(change).await?.settings)
}
