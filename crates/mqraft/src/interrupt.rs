//! What ends a command that would go on.

use tokio::signal::unix::{SignalKind, signal};

use crate::exit::{Exit, Failure};

/// SIGINT, SIGTERM or SIGHUP, also one that comes before this is awaited.
pub(crate) fn interrupted() -> Result<impl Future<Output = ()>, Failure> {
    let listen = |kind| {
        signal(kind).map_err(|error| {
            Failure::new(Exit::Stopped, format!("cannot listen to signals: {error}"))
        })
    };
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hang_up = listen(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    })
}
