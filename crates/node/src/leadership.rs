//! Leadership that can be relied on: a claim with a token and an end.
//!
//! [`Leadership`] is held by whoever acts as the only leader. As long as one is held, a hand-over of
//! the lead waits, within bounds, for it to be dropped: so what it protects has stopped here before
//! it begins elsewhere. When the claim is lost instead, by a cut, a pause or an election,
//! [`Leadership::lost`] says so in time; what a machine that was paused cannot know, the token
//! makes harmless.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use raft::{LeadershipToken, Lease, LeaseEpoch};

use crate::clock;
use crate::error::{Error, Result};
use crate::node::RaftNode;
use crate::status::{Holder, Shared};

/// The claim to be the only leader, as [`RaftNode::leadership`] gives it.
///
/// ```no_run
/// # async fn example(node: raft_over_mqtt::RaftNode) -> raft_over_mqtt::Result<()> {
/// let leadership = node.leadership().await?;
/// println!("act with token {}", leadership.token());
/// tokio::select! {
///     () = leadership.lost() => println!("stop at once"),
///     () = async { /* what only one may do */ } => {}
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Leadership {
    shared: Arc<Shared>,
    epoch: LeaseEpoch,
    /// Held back by it: the hand-over of the lead.
    _holder: Holder,
}

impl Leadership {
    /// What a resource that this leader acts on is to be shown: greater than the token of every
    /// leadership before. A resource that refuses smaller ones than it has seen is safe even from
    /// a leader that was paused and does not know yet that its time is over.
    pub fn token(&self) -> LeadershipToken {
        self.epoch.token()
    }

    /// Whether the claim holds at this moment, by the clock.
    pub fn is_held(&self) -> bool {
        self.remaining() > Duration::ZERO
    }

    /// For how long the claim holds even if no quorum confirms it again, as things are now: a
    /// hand-over, or a shorter lease that is being settled, ends it sooner, and
    /// [`Leadership::lost`] says so. Zero once it is lost.
    pub fn remaining(&self) -> Duration {
        let lease = self.shared.current_lease();
        let lease = lease.filter(|lease| lease.epoch == self.epoch);
        lease.map_or(Duration::ZERO, |lease| lease.until.since(clock::now()))
    }

    /// Waits until the claim is lost: at the end of its lease, or as soon as it is known to end
    /// before. Whoever hands the lead over waits, no longer than ten seconds, for this value to be
    /// dropped.
    pub async fn lost(&self) {
        let mut leases = self.shared.leases();
        loop {
            let lease = *leases.borrow_and_update();
            let Some(left) = self.left(lease) else { return };
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                changed = leases.changed() => if changed.is_err() { return },
            }
        }
    }

    fn left(&self, lease: Option<Lease>) -> Option<Duration> {
        let lease = lease.filter(|lease| lease.epoch == self.epoch)?;
        let left = lease.until.since(clock::now());
        (left > Duration::ZERO).then_some(left)
    }
}

impl RaftNode {
    /// Waits until this node is the only leader, for certain.
    ///
    /// # Errors
    /// When the node stops before.
    pub async fn leadership(&self) -> Result<Leadership> {
        let mut leases = self.shared().leases();
        loop {
            let lease = *leases.borrow_and_update();
            // Held first, looked at then: a hand-over that begins in between sees the holder.
            let holder = self.shared().hold();
            if let Some(lease) = self.shared().current_lease() {
                return Ok(Leadership {
                    shared: Arc::clone(self.shared()),
                    epoch: lease.epoch,
                    _holder: holder,
                });
            }
            drop(holder);
            let begins = lease.map(|lease| lease.from.since(clock::now()));
            let begins = begins.filter(|wait| *wait > Duration::ZERO);
            let wait = async {
                match begins {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                changed = leases.changed() => changed.map_err(|_| Error::Closed)?,
                _ = self.stopped() => return Err(Error::Closed),
            }
        }
    }

    /// Runs `work` while this node is the only leader: begins when it is, drops the future that
    /// `work` gave when the claim is lost, and begins anew when it has it again, until one such
    /// future comes to its end. A future is dropped at its next `.await`: what blocks the thread
    /// goes on.
    ///
    /// # Errors
    /// When the node stops before.
    pub async fn while_leader<F, W, T>(&self, mut work: F) -> Result<T>
    where
        F: FnMut(Arc<Leadership>) -> W,
        W: Future<Output = T>,
    {
        loop {
            let leadership = Arc::new(self.leadership().await?);
            let working = work(Arc::clone(&leadership));
            tokio::select! {
                biased;
                () = leadership.lost() => {}
                done = working => return Ok(done),
            }
        }
    }
}
