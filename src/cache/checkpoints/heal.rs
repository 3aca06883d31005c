//! The calls with which a worker takes the turn to heal after a loss, and ends such a heal.

use super::super::Cache;
use super::super::failure::{CommandError, Outage};
use super::super::script::{FORWARD_SEQUENCE, HEAL_FINISH, Sent};
use super::super::side_keys::SEQUENCE;
use super::own::Mode;
use super::{FieldChange, HealDetails, HealRecord, HealTurn, LowWatermark};

impl Cache {
    /// Asks for the turn to heal. With it, batches write checkpoints to the lock, which also renews
    /// it.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn take_heal(&self) -> Result<HealTurn, CommandError> {
        self.backend.take_heal(&self.context).await
    }

    /// Renews the lock of the heal. Checks that it still is ours and that Redis has lost no writes
    /// since.
    ///
    /// # Errors
    /// An outage, or the lock is not ours, or Redis refuses.
    pub async fn renew_heal(&self) -> Result<(), Outage> {
        self.backend.write_all_checkpoints(&self.context).await
    }

    /// Ends the heal: stores this worker's checkpoint again and removes the request to heal.
    /// `changes` are made in the same step.
    ///
    /// Without a record there was nothing to heal. Redis adds the times of begin and end to the
    /// record. Returns false if Redis lost writes in the meantime, or the lock was lost.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn finish_heal(
        &self,
        record: Option<&HealRecord>,
        changes: &[FieldChange],
        low: impl Into<LowWatermark>,
    ) -> Result<bool, CommandError> {
        let low = low.into();
        let mut all = Vec::with_capacity(self.context.checkpoint_hashes.len());
        let mut homes = Vec::new();
        // The first hash comes last: while it is locked, no other worker can find that the others
        // want healing.
        for places in [1..self.context.checkpoint_hashes.len(), 0..1] {
            let mut numbers = Vec::new();
            let (answers, served) = self
                .ask_checkpoints(|state| {
                    state.mode = Mode::Off;
                    state.low = low;
                    let calls = places.clone().map(|place| {
                        let checkpoint = &mut state.checkpoints[place];
                        checkpoint.sent += 1;
                        numbers.push((place, checkpoint.sent));
                        let mut command = self.checkpoint_call(&HEAL_FINISH, place);
                        command
                            .arg(&self.context.id)
                            .arg(checkpoint.lock)
                            .arg(checkpoint.sent)
                            .arg(low.time_ms);
                        let details = match record {
                            Some(HealRecord { from_ms, count, complete, details, .. }) => {
                                command
                                    .arg(checkpoint.lock_since_ms)
                                    .arg(format!("{from_ms}:{count}:{}", u8::from(*complete)));
                                HealDetails {
                                    began_ms: checkpoint.lock_since_ms,
                                    ..details.clone()
                                }
                                .text()
                            }
                            None => {
                                command.arg("").arg("");
                                String::new()
                            }
                        };
                        command
                            .arg(low.offset.map_or_else(String::new, |offset| offset.to_string()))
                            .arg(details);
                        FieldChange::add_to(changes, &mut command);
                        command
                    });
                    calls.collect()
                })
                .await?;
            if answers.iter().any(|(word, _)| *word != 1) {
                return Ok(false);
            }
            all.extend(numbers.into_iter().zip(answers));
            homes = served;
        }
        self.context.own_checkpoints.change(|state| {
            for ((place, number), (_, checkpoints)) in all {
                state.checkpoints[place].confirmed = Some((number, checkpoints.now_ms));
            }
            state.mode = Mode::Worker;
            state.uncovered.clear();
            state.note_all_advanced(homes);
        });
        Ok(true)
    }

    /// Advances the sequence that orders leases and tag invalidations beyond every number issued
    /// before Redis lost writes.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn forward_sequence(&self) -> Result<(), CommandError> {
        self.call("sequence", FORWARD_SEQUENCE.call(&mut Sent::default(), [SEQUENCE].into_iter()))
            .await
            .map(drop)
    }
}
