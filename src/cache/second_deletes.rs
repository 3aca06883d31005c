//! Second deletes (`again: 500ms`): a key or tag is deleted once more a while later. Readers
//! without leases may have stored old values in the meantime.
//!
//! A second delete is scheduled in Redis together with the first one and removed only after it is
//! done. So any worker can do it, even if the first one died.
//!
//! Their due times are those of a clock that never goes back while any second delete is scheduled
//! (`lua/second_delete_clock.lua`). A due time is in milliseconds. Its fraction counts how often
//! Redis has refused the second delete.

mod calls;

use std::time::Duration;

use redis::Cmd;

use super::lifetime;
use super::script::{SCHEDULE_SECOND_DELETES, Sent};
use super::side_keys::{Kind, side_key};

/// Maximum number of targets that one call schedules or finishes.
pub(super) const TARGETS_PER_CALL: usize = 200;

/// Time after the last look of the worker that does the second deletes, after which another worker
/// may continue.
const LOCK_TTL: Duration = Duration::from_secs(2);

/// Reserve beyond the longest delay of any rule. No due time is further ahead than both together.
const RESERVE: Duration = Duration::from_secs(10);

/// Time after which a second delete that Redis refused is due again. It doubles with each refusal.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Maximum time after which a refused second delete is due again.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// Number of refusals after which a second delete is given up, four hours after the first.
const REFUSALS_MAX: u32 = 30;

/// Number of refusals that the fraction of a due time can count. A double has room for more.
const FRACTIONS: u32 = 64;

/// Target of a second delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecondDelete<'t> {
    /// The whole key.
    Key(&'t str),
    /// The tag's name without its prefix.
    Tag(&'t str),
}

/// A second delete that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueSecondDelete {
    /// `k` or `t`, then the target.
    member: String,
    /// The due time, as Redis returns it.
    at: Vec<u8>,
}

impl DueSecondDelete {
    /// Returns the target, or `None` if another version of unstale wrote it in a form that this one
    /// cannot read.
    pub fn target(&self) -> Option<SecondDelete<'_>> {
        match self.member.split_at_checked(1)? {
            ("k", key) => Some(SecondDelete::Key(key)),
            ("t", tag) => Some(SecondDelete::Tag(tag)),
            _ => None,
        }
    }

    /// Returns how often Redis has refused it so far.
    fn refusals(&self) -> u32 {
        let at = std::str::from_utf8(&self.at).ok().and_then(|at| at.parse::<f64>().ok());
        let fraction = at.map_or(0.0, f64::fract) * f64::from(FRACTIONS);
        (0..FRACTIONS).find(|&refusals| f64::from(refusals) >= fraction).unwrap_or(0)
    }
}

/// Returns the milliseconds after which a refused second delete is tried again. Their fraction
/// counts one more refusal than `refusals`. `None` means that the second delete is given up.
fn retry_after(refusals: u32) -> Option<String> {
    let refusals = refusals + 1;
    let after = RETRY_AFTER.saturating_mul(1 << (refusals - 1).min(16)).min(RETRY_AFTER_MAX);
    let fraction = f64::from(refusals) / f64::from(FRACTIONS);
    let fraction = format!("{fraction:.6}");
    (refusals < REFUSALS_MAX)
        .then(|| [&lifetime::millis(after).to_string(), fraction.trim_start_matches('0')].concat())
}

/// Result of one round of due second deletes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SecondDeletes {
    /// All that were due.
    pub due: Vec<DueSecondDelete>,
    /// Reasons of failures that no earlier round reported, each once. They are codes and never name
    /// keys. Refused second deletes are tried again.
    pub failed: Vec<String>,
    /// Second deletes that were refused for hours, and are not tried again, with the last reason.
    pub given_up: Vec<(DueSecondDelete, String)>,
    /// Number of lost sets, as in [`Drained::lost`](super::Drained::lost).
    pub lost: u64,
}

/// Returns a call that schedules second deletes, each with its delay.
pub(super) fn schedule<'t>(
    set: &str,
    targets: impl Iterator<Item = (SecondDelete<'t>, Duration)>,
    sent: &mut Sent,
) -> Cmd {
    let keys = [set.as_bytes(), &side_key(Kind::Clock, set.as_bytes())];
    let mut command = SCHEDULE_SECOND_DELETES.call(sent, keys.into_iter());
    for (target, after) in targets {
        let (kind, name) = match target {
            SecondDelete::Key(key) => ("k", key),
            SecondDelete::Tag(tag) => ("t", tag),
        };
        command.arg(lifetime::millis(after)).arg([kind, name].concat());
    }
    command
}

impl SecondDeletes {
    fn note_failure(&mut self, message: String) {
        if !self.failed.contains(&message) {
            self.failed.push(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_in_the_fraction_of_the_time_until_it_is_given_up() {
        let (mut refusals, mut waited_ms) = (0, 0.0);
        while let Some(after) = retry_after(refusals) {
            let after: f64 = after.parse().unwrap();
            // As Redis returns it: with 17 significant digits.
            let at = format!("{:.4}", 1_796_065_864_365.0 + after);
            let due = DueSecondDelete { member: "kx".into(), at: at.into_bytes() };
            refusals += 1;
            assert_eq!(due.refusals(), refusals);
            waited_ms += after.floor();
            assert!((10_000.0..600_001.0).contains(&after), "{after}");
        }
        assert_eq!(refusals + 1, REFUSALS_MAX);
        assert!((4.0..4.5).contains(&(waited_ms / 3_600_000.0)), "{waited_ms}");
        assert_eq!(retry_after(2).as_deref(), Some("40000.046875"));
        let fresh = DueSecondDelete { member: "kx".into(), at: b"1796065864365".to_vec() };
        assert_eq!(fresh.refusals(), 0);
    }
}
