//! The calls of the worker that does the due second deletes.

use std::collections::HashMap;

use redis::Value;
use tokio_util::sync::CancellationToken;

use super::super::failure::CommandError;
use super::super::script::{DUE_SECOND_DELETES, FINISH_SECOND_DELETES, Sent};
use super::super::side_keys::{Kind, side_key};
use super::super::{Cache, lifetime};
use super::{
    DueSecondDelete, LOCK_TTL, RESERVE, SecondDelete, SecondDeletes, TARGETS_PER_CALL, retry_after,
};
use crate::plan::{Batch, EffectOutcome, EffectRef};
use crate::reason::Reason;
use crate::registry::{Action, Effect, MAX_SECOND_DELETE_DELAY, RuleId};

impl Cache {
    /// Does the due second deletes of this queue, at most as many as one call returns. Does nothing
    /// while another worker does them.
    ///
    /// # Errors
    /// Returns an error after an outage, or if Redis refuses. All second deletes then stay due.
    pub async fn run_second_deletes(&self, token: &str) -> Result<SecondDeletes, CommandError> {
        let due = self.due_second_deletes(token).await?;
        let mut done = SecondDeletes { due, ..SecondDeletes::default() };
        let (places, effects): (Vec<usize>, Vec<Effect>) = (done.due.iter().enumerate())
            .filter_map(|(place, due)| Some((place, effect_of(due.target()?))))
            .unzip();
        let mut batch = Batch::new(&self.context.tag_prefix, effects.len());
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
                            done.lost += drained.lost;
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
                EffectOutcome::Dead { message, .. } => done.note_failure(message),
                EffectOutcome::Slow => {}
            }
        }
        let mut ends = Vec::with_capacity(done.due.len());
        for (place, due) in done.due.iter().enumerate() {
            let again = refused.get(&place).and_then(|_| retry_after(due.refusals()));
            ends.push((due, again.unwrap_or_default()));
        }
        if !ends.is_empty() {
            self.end_second_deletes(ends.iter().map(|(due, again)| (*due, again.as_str()))).await?;
        }
        for (place, message) in refused {
            let due = &done.due[place];
            match due.refusals() {
                _ if retry_after(due.refusals()).is_none() => {
                    done.given_up.push((due.clone(), message));
                }
                0 => done.note_failure(message),
                _ => {}
            }
        }
        Ok(done)
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
        let set = self.context.second_deletes.as_bytes();
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
        let set = self.context.second_deletes.as_bytes();
        let keys = [set, &side_key(Kind::Clock, set)];
        let mut command = FINISH_SECOND_DELETES.call(&mut Sent::default(), keys.into_iter());
        for (DueSecondDelete { member, at }, again) in ends {
            command.arg(member).arg(at).arg(again);
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

fn unexpected() -> CommandError {
    CommandError::Failed("second delete: unexpected answer".into())
}
