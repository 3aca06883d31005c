//! Runs second deletes, which protect readers without leases. This worker runs those that are due,
//! including those that other workers scheduled.

use std::convert::Infallible;
use std::time::Duration;

use tracing::{debug, error, warn};

use super::drain;
use super::gate::Gate;
use super::live::CurrentRegistry;
use crate::cache::{Cache, CommandError, DueSecondDelete, SecondDelete, new_token};
use crate::causes::chain;
use crate::registry::{Registry, Verb};

/// Time between two looks, and so the maximum delay of a second delete.
const INTERVAL: Duration = Duration::from_millis(200);

/// Time between two looks if no rule of the registry asks for second deletes. An older registry may
/// have asked.
const IDLE_INTERVAL: Duration = Duration::from_secs(5);

/// Time before the next look after Redis refused the command, since rights change rarely.
const REFUSED_PAUSE: Duration = Duration::from_secs(300);

/// Runs due second deletes; never returns.
pub(super) async fn run(cache: &Cache, gate: &Gate, registry: &CurrentRegistry) -> Infallible {
    let token = new_token();
    let mut refused = None;
    loop {
        gate.open().await;
        let pause = match run_due(cache, &token, registry).await {
            Ok(true) => Duration::ZERO,
            Ok(false) if registry.load().registry.has_second_deletes() => INTERVAL,
            Ok(false) => IDLE_INTERVAL,
            Err(CommandError::Outage(outage)) => {
                gate.close(&outage);
                Duration::ZERO
            }
            Err(
                CommandError::Refused(cause)
                | CommandError::NotPermitted(cause)
                | CommandError::Failed(cause),
            ) => {
                let cause = chain(&cause).to_string();
                if refused.as_ref() != Some(&cause) && registry.load().registry.has_second_deletes()
                {
                    warn!(%cause, "this worker does not perform second deletes (`again`); docs/reference/redis-permissions.md has the ACL for them");
                }
                refused = Some(cause);
                REFUSED_PAUSE
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Runs the second deletes that are due now, as many as one call does. Returns true if there may be
/// more.
async fn run_due(
    cache: &Cache,
    token: &str,
    registry: &CurrentRegistry,
) -> Result<bool, CommandError> {
    let done = cache.run_second_deletes(token).await?;
    drain::log_lost(done.lost);
    for cause in &done.failed {
        warn!(%cause, "second deletes failed, and are tried again for four hours");
    }
    for (due, cause) in &done.given_up {
        let rule = rules_of(due, &registry.load().registry);
        error!(%cause, %rule, "Redis refused a second delete for four hours, so it is given up; a stale value may stay until its TTL");
    }
    if !done.due.is_empty() {
        debug!(targets = done.due.len(), "deleted a second time");
    }
    Ok(!done.due.is_empty())
}

/// Returns the names of the rules that may have asked for a second delete.
fn rules_of(due: &DueSecondDelete, registry: &Registry) -> String {
    let rules = match due.target() {
        Some(SecondDelete::Key(key)) => registry.rules_of_second_delete(Verb::Delete, key),
        Some(SecondDelete::Tag(tag)) => registry.rules_of_second_delete(Verb::InvalidateTags, tag),
        None => Vec::new(),
    };
    if rules.is_empty() { "none of the present ones".to_owned() } else { rules.join(", ") }
}
