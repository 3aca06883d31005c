//! Second passes, for readers that take no part: this worker does those that are due, whoever
//! scheduled them.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Shared;
use crate::cache::{CommandError, new_token};

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
                    if refused.as_ref() != Some(&cause)
                        && shared.live.load().registry.has_second_passes()
                    {
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
    let passes = shared.cache.run_second_deletes(token).await?;
    super::slow_lane::tell_of_lost(passes.lost);
    for cause in &passes.failed {
        warn!(%cause, "a second pass failed");
    }
    if !passes.due.is_empty() {
        debug!(targets = passes.due.len(), "deleted a second time");
    }
    Ok(!passes.due.is_empty())
}
