//! Applies a plan: the entry for all of a batch's changes.

use super::Cache;
use super::applied::Applied;
use super::failure::Outage;
use crate::plan::Plan;

impl Cache {
    /// Applies a plan. The first poll sends everything. Plans whose futures are polled in order
    /// take effect in order, however many are in flight.
    ///
    /// # Errors
    /// An [`Outage`]: part of the plan may have taken effect. Apply all of it again once a
    /// [`probe`](Self::probe) succeeds. Then repeat the plans polled after it, even those that
    /// succeeded.
    pub async fn apply(&self, plan: &Plan<'_>) -> Result<Applied, Outage> {
        if plan.is_empty() {
            return Ok(Applied::default());
        }
        self.backend.apply(&self.context, plan).await
    }
}
