//! Records of heals in Redis, and where a heal begins. No server is asked.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::cache::{
    Checkpoints, CommandError, Doubt, HealDetails, HealFrom, HealRecord, Outage, Owed,
};

/// Log message for a heal that left something out.
pub(super) const LEFT_OUT: &str = "the heal left out events at which heals died, or which could not be resolved or applied in time: nothing of them is applied again";

/// Returns the time in milliseconds since the Unix epoch.
pub(super) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Returns an error of Redis as an outage. A refusal for good keeps a worker from working just as
/// an outage does.
pub(super) fn outage(error: CommandError) -> Outage {
    error.outage_or(Outage::no_checkpoints)
}

/// Returns whether a worker that found neither queue nor history has nothing to heal. No checkpoint
/// shows a loss, and no heal of another worker is running.
pub(super) fn has_nothing_to_heal(doubt: Doubt, goes_on: Option<u64>) -> bool {
    doubt == Doubt::Unknown && goes_on.is_none()
}

/// Returns where the history must be applied again from.
pub(super) fn from(marks: &Checkpoints) -> HealFrom {
    marks.lowest().map_or_else(HealFrom::default, HealFrom::low)
}

/// Log message for effects that Redis refused.
pub(super) const REFUSED: &str = "Redis refused effects of the heal: they are owed and tried again, and old values stay readable until then; check the ACL of our user \
     against docs/reference/redis-permissions.md";

pub(super) fn record(
    marks: &Checkpoints,
    from: HealFrom,
    complete: bool,
    details: HealDetails,
) -> HealRecord {
    HealRecord {
        began_ms: marks.now_ms,
        ended_ms: marks.now_ms,
        from_ms: from.time.and_then(|time| u64::try_from(time.as_millisecond()).ok()).unwrap_or(0),
        count: marks.last_heal().map_or(0, |last| last.count) + 1,
        complete,
        details,
    }
}

/// Returns the new details of the last heal's record. They change if that heal was postponed or
/// left something out, and a heal between those offsets has now done it.
pub(super) fn details(
    marks: &Checkpoints,
    (begin, end): (u64, Option<u64>),
    is_whole: bool,
    passed_over: Vec<u64>,
    is_still_owed: bool,
) -> Option<HealDetails> {
    let heal = marks.last_heal()?;
    let was_put_off = heal.details.owed == Some(Owed::Due);
    let reached_all =
        heal.details.passed_over.iter().all(|offset| end.is_none_or(|end| *offset < end));
    let has_done_the_rest = is_whole
        && reached_all
        && !heal.details.passed_over.is_empty()
        && heal.details.from_offset.is_some_and(|from| begin <= from);
    (was_put_off || has_done_the_rest).then(|| HealDetails {
        began_ms: heal.began_ms,
        from_offset: Some(begin),
        passed_over,
        owed: if is_still_owed { Some(Owed::Due) } else { is_whole.then_some(Owed::Paid) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_start_heals_nothing_only_where_no_loss_shows() {
        assert!(has_nothing_to_heal(Doubt::Unknown, None));
        for (doubt, goes_on) in [
            (Doubt::Lost, None),
            (Doubt::Replaced, None),
            (Doubt::Unknown, Some(0)),
            (Doubt::Lost, Some(7)),
        ] {
            assert!(!has_nothing_to_heal(doubt, goes_on), "{doubt:?} {goes_on:?}");
        }
    }
}
