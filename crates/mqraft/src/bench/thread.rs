//! Threads with a runtime of their own, for what is not to take time of what is measured.

use std::io;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use crate::exit::{Exit, Failure};

/// A thread with a runtime of its own; ends when dropped.
pub(super) struct Thread {
    stop: Option<oneshot::Sender<()>>,
    handle: Option<JoinHandle<()>>,
}

/// By what a [`Thread`] says that it has begun.
pub(super) struct Ready(mpsc::UnboundedSender<()>);

impl Ready {
    pub(super) fn say(&self) {
        let _ = self.0.send(());
    }
}

impl Thread {
    /// Runs `work`, and returns when it has said that it is ready.
    ///
    /// # Errors
    /// Those of the work until then. What goes wrong later is logged: whoever waits for it waits in
    /// vain.
    pub(super) async fn start<W>(work: W) -> Result<Thread, Failure>
    where
        W: AsyncFnOnce(Ready) -> Result<(), Failure> + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel();
        let (ready, mut is_ready) = mpsc::unbounded_channel();
        let (failed, failure) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| cannot_start(&error))?;
        let handle = std::thread::Builder::new().spawn(move || {
            runtime.block_on(async {
                let ended = tokio::select! {
                    ended = work(Ready(ready)) => ended,
                    _ = stopped => Ok(()),
                };
                if let Err(failure) = ended {
                    tracing::error!("{}", failure.message);
                    let _ = failed.send(failure);
                }
            });
        });
        let thread = Thread {
            stop: Some(stop),
            handle: Some(handle.map_err(|error| cannot_start(&error))?),
        };
        match is_ready.recv().await {
            Some(()) => Ok(thread),
            None => Err(failure.await.unwrap_or_else(|_| gone())),
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(handle) = self.handle.take() {
            // A thread that panicked has said so.
            let _ = handle.join();
        }
    }
}

pub(super) fn cannot_start(error: &io::Error) -> Failure {
    Failure::new(Exit::Stopped, format!("cannot start a thread: {error}"))
}

pub(super) fn gone() -> Failure {
    Failure::new(Exit::Stopped, "a thread of the bench has ended")
}
