//! What the node says: to `tracing`, and to the hook where one was set.

use std::sync::Arc;

/// A hook for every line that the node logs, as node-raft-over-mqtt's `logFunction`.
pub(crate) type LogFunction = Arc<dyn Fn(&str) + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Log {
    pub(crate) node: Arc<str>,
    pub(crate) hook: Option<LogFunction>,
}

impl Log {
    pub(crate) fn info(&self, message: &str) {
        tracing::info!(node = %self.node, "{message}");
        self.call(message);
    }

    pub(crate) fn warn(&self, message: &str) {
        tracing::warn!(node = %self.node, "{message}");
        self.call(message);
    }

    fn call(&self, message: &str) {
        if let Some(hook) = &self.hook {
            hook(message);
        }
    }
}
