//! Second deletes (`again: 500ms`): a key or tag is deleted once more a while later. Readers
//! without leases may have stored old values in the meantime.
//!
//! A second delete is scheduled in Redis together with the first one and removed only after it is
//! done. So any worker can do it, even if the first one died.
//!
//! Their due times are those of a clock that never goes back while any second delete is scheduled
//! (`lua/second_delete_clock.lua`). A due time is in milliseconds. Its fraction counts how often
//! Redis has refused the second delete.

use std::collections::HashMap;
use std::time::Duration;

use redis::{Cmd, Value};

use tokio_util::sync::CancellationToken;

use super::failure::CommandError;
use super::script::{DUE_SECOND_DELETES, FINISH_SECOND_DELETES, SCHEDULE_SECOND_DELETES, Sent};
use super::side_keys::{Kind, side_key};
use super::{Cache, lifetime};
use crate::plan::{Batch, EffectOutcome, EffectRef};
use crate::reason::Reason;
use crate::registry::{Action, Effect, MAX_SECOND_DELETE_DELAY, RuleId};

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

impl Cache {
    /// Does the due second deletes of this queue, at most as many as one call returns. Does nothing
    /// while another worker does them.
    ///
    /// # Errors
    /// Returns an error after an outage, or if Redis refuses. All second deletes then stay due.
    pub async fn run_second_deletes(&self, token: &str) -> Result<SecondDeletes, CommandError> {
        let due = self.due_second_deletes(token).await?;
        let mut passes = SecondDeletes { due, ..SecondDeletes::default() };
        let (places, effects): (Vec<usize>, Vec<Effect>) = (passes.due.iter().enumerate())
            .filter_map(|(place, due)| Some((place, effect_of(due.target()?))))
            .unzip();
        let mut batch = Batch::new(&self.tag_prefix, effects.len());
        for (position, effect) in (0_u32..).zip(&effects) {
            batch.push(EffectRef { event: 0, position }, effect);
        }
        let mut refused = HashMap::new();
        for (slot, outcome) in self.apply(&batch.finish()).await?.unsettled {
            let position = slot.position as usize;
            let outcome = match outcome {
                EffectOutcome::Slow => {
                    let tag = &effects[position].target;
                    match self.drain_tag(tag, &CancellationToken::new(), |_, _| {}).await {
                        Ok(drained) => {
                            passes.lost += drained.lost;
                            continue;
                        }
                        Err(error) => error.into_outcome()?,
                    }
                }
                outcome => outcome,
            };
            match outcome {
                EffectOutcome::Dead { reason: Reason::RedisRefused, message, .. }
                | EffectOutcome::Retry { message, .. }
                | EffectOutcome::NotTried { message, .. } => {
                    refused.insert(places[position], message);
                }
                // The first delete failed in the same way, and its event became a dead letter.
                EffectOutcome::Dead { message, .. } => passes.note_failure(message),
                EffectOutcome::Slow => {}
            }
        }
        let mut ends = Vec::with_capacity(passes.due.len());
        for (place, due) in passes.due.iter().enumerate() {
            let again = refused.get(&place).and_then(|_| retry_after(due.refusals()));
            ends.push((due, again.unwrap_or_default()));
        }
        if !ends.is_empty() {
            self.end_second_deletes(ends.iter().map(|(due, again)| (*due, again.as_str()))).await?;
        }
        for (place, message) in refused {
            let due = &passes.due[place];
            match due.refusals() {
                _ if retry_after(due.refusals()).is_none() => {
                    passes.given_up.push((due.clone(), message));
                }
                0 => passes.note_failure(message),
                _ => {}
            }
        }
        Ok(passes)
    }

    /// Returns the due second deletes of this queue, at most as many as one call finishes. Returns
    /// none while another worker does them. They stay scheduled until
    /// [`finish_second_deletes`](Self::finish_second_deletes).
    ///
    /// # Errors
    /// Returns an error after an outage, or if Redis refuses.
    pub async fn due_second_deletes(
        &self,
        token: &str,
    ) -> Result<Vec<DueSecondDelete>, CommandError> {
        let set = self.second_deletes.as_bytes();
        let lock = side_key(Kind::Lease, set);
        let mut command = DUE_SECOND_DELETES
            .call(&mut Sent::default(), [set, &lock, &side_key(Kind::Clock, set)].into_iter());
        command.arg(TARGETS_PER_CALL).arg(token).arg(lifetime::millis(LOCK_TTL));
        command.arg(lifetime::millis(MAX_SECOND_DELETE_DELAY + RESERVE));
        let Value::Array(answer) = self.call("second delete", command).await? else {
            return Err(unexpected());
        };
        let due = answer.chunks_exact(2).map(|pair| match pair {
            [Value::BulkString(member), Value::BulkString(at)] => Some(DueSecondDelete {
                member: String::from_utf8_lossy(member).into_owned(),
                at: at.clone(),
            }),
            _ => None,
        });
        due.collect::<Option<_>>().ok_or_else(unexpected)
    }

    /// Removes second deletes that are done. One that was scheduled anew in the meantime stays.
    ///
    /// # Errors
    /// Returns an error after an outage, or if Redis refuses. They will be done once more.
    pub async fn finish_second_deletes(
        &self,
        done: &[DueSecondDelete],
    ) -> Result<(), CommandError> {
        self.end_second_deletes(done.iter().map(|due| (due, ""))).await
    }

    /// Removes second deletes that are done, which have an empty text. The others are due again
    /// after the milliseconds in their text.
    async fn end_second_deletes<'d>(
        &self,
        ends: impl Iterator<Item = (&'d DueSecondDelete, &'d str)>,
    ) -> Result<(), CommandError> {
        let set = self.second_deletes.as_bytes();
        let keys = [set, &side_key(Kind::Clock, set)];
        let mut command = FINISH_SECOND_DELETES.call(&mut Sent::default(), keys.into_iter());
        for (DueSecondDelete { member, at }, again) in ends {
            command.arg(member).arg(at).arg(again);
        }
        self.call("second delete", command).await.map(drop)
    }
}

impl SecondDeletes {
    fn note_failure(&mut self, message: String) {
        if !self.failed.contains(&message) {
            self.failed.push(message);
        }
    }
}

fn effect_of(target: SecondDelete<'_>) -> Effect {
    let (target, action) = match target {
        SecondDelete::Key(key) => (key, Action::Delete),
        SecondDelete::Tag(tag) => (tag, Action::InvalidateTag),
    };
    // The rule does not matter: no hits are counted.
    Effect { rule: RuleId(0), target: target.to_owned(), action, version: None, again: None }
}

fn unexpected() -> CommandError {
    CommandError::Failed("second delete: unexpected answer".into())
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
