//! Waiting for a condition with a deadline: the only way a test may let time pass.

use std::time::{Duration, Instant};

/// Short beside every deadline in the tests, long enough to cost no measurable CPU.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Polls `condition` until it holds; false if it still does not at the deadline.
///
/// Blocks the thread: inside async code use [`wait_for_async`].
pub fn wait_for(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// [`wait_for`] that lets other tasks of the runtime run in between.
pub async fn wait_for_async(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_awaited_up_to_the_deadline() {
        let mut polls = 0;
        assert!(wait_for(Duration::from_secs(5), || {
            polls += 1;
            polls == 3
        }));
        assert!(!wait_for(Duration::from_millis(1), || false));
    }
}
