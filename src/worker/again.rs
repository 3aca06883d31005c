//! Second passes, for readers that take no part: this worker does those that are due, whoever scheduled them.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Shared;
use crate::cache::{Again, CommandError, Due, new_token};
use crate::plan::{self, EffectOutcome, Slot};
use crate::registry::{Action, Effect, RuleId};

/// Between two looks: a second pass comes at most so much late.
const INTERVAL: Duration = Duration::from_millis(200);

/// Between two looks where no rule of the registry asks for second passes: an older one may have.
const IDLE_INTERVAL: Duration = Duration::from_secs(5);

/// After Redis refused to tell: rights change rarely.
const REFUSED_PAUSE: Duration = Duration::from_secs(300);

/// Does what is due until `stop`.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let work = async {
        let token = new_token();
        let mut refused = None;
        loop {
            shared.gate.open().await;
            let pause = match pass(&shared, &token).await {
                Ok(true) => Duration::ZERO,
                Ok(false) if shared.live.load().registry.has_second_passes() => INTERVAL,
                Ok(false) => IDLE_INTERVAL,
                Err(CommandError::Outage(outage)) => {
                    shared.gate.close(&outage);
                    Duration::ZERO
                }
                Err(CommandError::Refused(cause) | CommandError::Failed(cause)) => {
                    if refused.as_ref() != Some(&cause) && shared.live.load().registry.has_second_passes() {
                        warn!(%cause, "second passes (`again`) are not done by this worker; docs/OPERATIONS.md has the ACL for them");
                    }
                    refused = Some(cause);
                    REFUSED_PAUSE
                }
            };
            tokio::time::sleep(pause).await;
        }
    };
    stop.run_until_cancelled(work).await;
}

/// Does what is due now, as far as one call goes. Whether there may be more.
async fn pass(shared: &Shared, token: &str) -> Result<bool, CommandError> {
    let due = shared.cache.due_again(token).await?;
    if due.is_empty() {
        return Ok(false);
    }
    let effects: Vec<Effect> = due.iter().filter_map(Due::target).map(second_pass).collect();
    let mut batch = plan::Batch::new(shared.cache.tag_prefix(), effects.len());
    for (position, effect) in (0_u32..).zip(&effects) {
        batch.push(Slot { event: 0, position }, effect);
    }
    for (slot, outcome) in shared.cache.apply(&batch.finish()).await?.unsettled {
        match outcome {
            EffectOutcome::Slow => {
                let tag = &effects[slot.position as usize].target;
                let drained = shared.cache.drain_tag(tag, &CancellationToken::new(), |_, _| {}).await?;
                super::slow_lane::tell_of_lost(drained.lost);
            }
            // The first pass of the same target met the same, and its event says so.
            EffectOutcome::Retry { message, .. } | EffectOutcome::Dead { message, .. } => warn!(cause = %message, "a second pass failed"),
        }
    }
    shared.cache.done_again(&due).await?;
    debug!(targets = due.len(), "deleted a second time");
    Ok(true)
}

fn second_pass(target: Again<'_>) -> Effect {
    let (target, action) = match target {
        Again::Key(key) => (key, Action::Delete),
        Again::Tag(tag) => (tag, Action::InvalidateTag),
    };
    // Of no rule: nothing is counted.
    Effect { rule: RuleId(0), target: target.to_owned(), action, version: None, again: None }
}
