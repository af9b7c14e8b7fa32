//! Leases from the command line.

use std::time::Duration;

use raft_over_mqtt::{Error, Granted, Kv, LeaseId};
use serde_json::json;

use crate::cli::Format;
use crate::cli::state::LeaseCommand;
use crate::exit::Failure;
use crate::output;

pub(super) async fn run(kv: &Kv, command: LeaseCommand, format: Format) -> Result<(), Failure> {
    match command {
        LeaseCommand::Grant { ttl, .. } => {
            let granted = kv.grant(ttl.0).await?;
            show(&granted, format);
        }
        LeaseCommand::KeepAlive { lease, once, .. } => {
            return keep_alive(kv, LeaseId(lease), once, format).await;
        }
        LeaseCommand::Revoke { lease, .. } => {
            let written = kv.revoke(LeaseId(lease)).await.map_err(gone(lease))?;
            let revision = written.revision;
            output::answer(
                format,
                || format!("revision {revision}"),
                || json!({ "lease": lease, "revision": revision }),
            );
        }
        LeaseCommand::Show { lease, .. } => {
            let status = kv.lease(LeaseId(lease)).await.map_err(gone(lease))?;
            let time = |ms| Duration::from_millis(ms);
            output::answer(
                format,
                || {
                    let (ttl, left) = (time(status.ttl_ms), time(status.remaining_ms));
                    format!("ends in {left:?} of {ttl:?}, with {} keys", status.keys)
                },
                || {
                    json!({
                        "lease": lease,
                        "ttl_ms": status.ttl_ms,
                        "remaining_ms": status.remaining_ms,
                        "keys": status.keys,
                    })
                },
            );
        }
        LeaseCommand::List { .. } => {
            let leases = kv.leases().await?;
            match format {
                Format::Text => leases
                    .iter()
                    .for_each(|lease| output::line(&lease.to_string())),
                Format::Json => {
                    let leases: Vec<u64> = leases.iter().map(|lease| lease.0).collect();
                    output::line(&json!({ "leases": leases }).to_string());
                }
            }
        }
    }
    Ok(())
}

/// Keeps a lease alive three times in its time to live, until it ends.
async fn keep_alive(kv: &Kv, lease: LeaseId, once: bool, format: Format) -> Result<(), Failure> {
    let mut until = None;
    loop {
        match kv.keep_alive(lease).await {
            Ok(granted) => {
                show(&granted, format);
                if once {
                    return Ok(());
                }
                until = Some(granted.until());
                tokio::time::sleep(Duration::from_millis(granted.grant.ttl_ms) / 3).await;
            }
            // As long as it may live, the next try may reach someone.
            Err(Error::TimedOut(_) | Error::Busy)
                if until.is_some_and(|until| raft_over_mqtt::now() < until) => {}
            Err(error) => return Err(gone(lease.0)(error)),
        }
    }
}

fn show(granted: &Granted, format: Format) {
    let (lease, ttl_ms) = (granted.lease().0, granted.grant.ttl_ms);
    output::answer(
        format,
        || lease.to_string(),
        || json!({ "lease": lease, "ttl_ms": ttl_ms }),
    );
}

fn gone(lease: u64) -> impl Fn(Error) -> Failure {
    move |error| match error {
        Error::NoSuchLease => Failure::new(
            crate::exit::Exit::Negative,
            format!("there is no lease {lease}, or none any more"),
        ),
        error => error.into(),
    }
}
