//! Second deletes (`again: 500ms`): a key or tag is deleted once more a while later. Readers
//! without leases may have stored old values in the meantime.
//!
//! A second delete is scheduled in Redis together with the first one and removed only after it is
//! done. So any worker can do it, even if the first one died.

use std::time::Duration;

use redis::{Cmd, Value};

use tokio_util::sync::CancellationToken;

use super::failure::CommandError;
use super::script::{DUE_SECOND_DELETES, FINISH_SECOND_DELETES, SCHEDULE_SECOND_DELETES, Sent};
use super::side_keys::{Kind, side_key};
use super::{Cache, lifetime};
use crate::plan::{Batch, EffectOutcome, EffectRef};
use crate::registry::{Action, Effect, RuleId};

/// Maximum number of targets that one call schedules or finishes.
pub(super) const TARGETS_PER_CALL: usize = 200;

/// Time after which another worker may continue with second deletes, counted from the last look of
/// the current one.
const LOCK_TTL: Duration = Duration::from_secs(2);

/// Time after which a second delete is due again if Redis did not do it for a reason that may pass.
const RETRY_AFTER: Duration = Duration::from_secs(10);

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
}

/// Result of a round of second deletes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SecondDeletes {
    /// All that were due.
    pub due: Vec<DueSecondDelete>,
    /// Reasons why some were not done: rules and codes, never keys.
    pub failed: Vec<String>,
    /// As [`Drained::lost`](super::Drained::lost).
    pub lost: u64,
}

/// Returns a call that schedules second deletes, each with its delay.
pub(super) fn schedule<'t>(
    set: &str,
    targets: impl Iterator<Item = (SecondDelete<'t>, Duration)>,
    sent: &mut Sent,
) -> Cmd {
    let mut command = SCHEDULE_SECOND_DELETES.call(sent, [set.as_bytes()].into_iter());
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
    /// Does the second deletes of this queue that are due, as many as one call of Redis returns.
    /// Does nothing while another worker does them.
    ///
    /// # Errors
    /// An outage, or Redis refuses. All of them stay due.
    pub async fn run_second_deletes(&self, token: &str) -> Result<SecondDeletes, CommandError> {
        let due = self.due_second_deletes(token).await?;
        let mut passes = SecondDeletes { due, ..SecondDeletes::default() };
        let effects: Vec<Effect> =
            passes.due.iter().filter_map(DueSecondDelete::target).map(effect_of).collect();
        let mut batch = Batch::new(&self.tag_prefix, effects.len());
        for (position, effect) in (0_u32..).zip(&effects) {
            batch.push(EffectRef { event: 0, position }, effect);
        }
        let mut later = Vec::new();
        for (slot, outcome) in self.apply(&batch.finish()).await?.unsettled {
            let effect = &effects[slot.position as usize];
            let outcome = match outcome {
                EffectOutcome::Slow => {
                    match self.drain_tag(&effect.target, &CancellationToken::new(), |_, _| {}).await
                    {
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
                // The first delete failed in the same way, and its event was reported.
                EffectOutcome::Dead { message, .. } => passes.failed.push(message),
                EffectOutcome::Retry { message, .. } | EffectOutcome::NotTried { message, .. } => {
                    later.push(target(effect));
                    passes.failed.push(message);
                }
                EffectOutcome::Slow => {}
            }
        }
        for part in later.chunks(TARGETS_PER_CALL) {
            let targets = part.iter().map(|target| (*target, RETRY_AFTER));
            self.call(
                "second delete",
                schedule(&self.second_deletes, targets, &mut Sent::default()),
            )
            .await?;
        }
        if !passes.due.is_empty() {
            self.finish_second_deletes(&passes.due).await?;
        }
        Ok(passes)
    }

    /// Returns the second deletes of this queue that are due, as many as one call does. Returns
    /// none while another worker does them. They stay scheduled until
    /// [`finish_second_deletes`](Self::finish_second_deletes).
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn due_second_deletes(
        &self,
        token: &str,
    ) -> Result<Vec<DueSecondDelete>, CommandError> {
        let lock = side_key(Kind::Lease, self.second_deletes.as_bytes());
        let mut command = DUE_SECOND_DELETES
            .call(&mut Sent::default(), [self.second_deletes.as_bytes(), &lock].into_iter());
        command.arg(TARGETS_PER_CALL).arg(token).arg(lifetime::millis(LOCK_TTL));
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
    /// An outage, or Redis refuses. They will be done once more.
    pub async fn finish_second_deletes(
        &self,
        done: &[DueSecondDelete],
    ) -> Result<(), CommandError> {
        let mut command = FINISH_SECOND_DELETES
            .call(&mut Sent::default(), [self.second_deletes.as_bytes()].into_iter());
        for DueSecondDelete { member, at } in done {
            command.arg(member).arg(at);
        }
        self.call("second delete", command).await.map(drop)
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

fn target(effect: &Effect) -> SecondDelete<'_> {
    if effect.action == Action::InvalidateTag {
        SecondDelete::Tag(&effect.target)
    } else {
        SecondDelete::Key(&effect.target)
    }
}

fn unexpected() -> CommandError {
    CommandError::Failed("second delete: unexpected answer".into())
}
