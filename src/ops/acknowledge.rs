//! Acknowledges findings of `status` that would be shown as problems for a day, although an
//! operator has done what they ask for.

use crate::cache::{Acknowledged, Cache, Checkpoints, CommandError};
use crate::ops::status::FindingCode;

/// A finding that was acknowledged, or that there is to acknowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Acknowledgeable {
    kind: Acknowledged,
    at_ms: u64,
}

/// Acknowledges the finding with that code. Returns false if there is none, or if it ends by itself
/// when its cause is gone.
///
/// # Errors
/// An outage, or a refusal by Redis.
pub async fn acknowledge(cache: &Cache, code: FindingCode) -> Result<bool, CommandError> {
    let Some(Acknowledgeable { kind, at_ms }) = found(&cache.read_checkpoints().await?, code)
    else {
        return Ok(false);
    };
    cache.acknowledge(kind, at_ms).await?;
    Ok(true)
}

/// Returns the finding with that code, unless it is acknowledged already.
fn found(marks: &Checkpoints, code: FindingCode) -> Option<Acknowledgeable> {
    let finding = match code {
        FindingCode::HistoryEventsLost => {
            let lost = marks.lost()?;
            Acknowledgeable { kind: Acknowledged::LostEvents, at_ms: lost.noticed_ms }
        }
        FindingCode::HealIncomplete | FindingCode::HealSkippedEvents => {
            let heal = marks.last_heal()?;
            let has_skipped = !heal.details.passed_over.is_empty();
            let is_it = match code {
                FindingCode::HealSkippedEvents => has_skipped,
                _ => !has_skipped && !heal.complete && marks.owed().all.is_none(),
            };
            is_it.then_some(Acknowledgeable { kind: Acknowledged::Heal, at_ms: heal.began_ms })?
        }
        _ => return None,
    };
    (marks.acknowledged_ms(finding.kind) < Some(finding.at_ms)).then_some(finding)
}
