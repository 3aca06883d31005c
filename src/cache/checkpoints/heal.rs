//! The calls with which a worker takes the turn to heal after a loss, and ends such a heal.

use super::super::Cache;
use super::super::failure::{CommandError, Outage};
use super::super::script::{FORWARD_SEQUENCE, HEAL_FINISH, Sent};
use super::super::side_keys::SEQUENCE;
use super::own::{Mode, OwnCheckpoint};
use super::{
    Checkpoints, FieldChange, HealDetails, HealProgress, HealRecord, HealTurn, LowWatermark,
};

impl Checkpoints {
    /// Returns whether each lock is that worker's, with its last confirmed number or a later one.
    /// Then Redis has lost nothing that it confirmed to the heal.
    fn hold_locks(&self, worker: &str, own: &[OwnCheckpoint]) -> bool {
        self.hashes.len() == own.len()
            && self.hashes.iter().zip(own).all(|(hash, own)| {
                let number = hash.lock_of(worker);
                number.is_some_and(|number| (own.lock_confirmed..=own.lock).contains(&number))
            })
    }
}

impl Cache {
    /// Asks for the turn to heal. With it, batches write checkpoints to the lock, which also renews
    /// it.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn take_heal(&self) -> Result<HealTurn, CommandError> {
        self.backend.take_heal(&self.context).await
    }

    /// Continues our heal over a new connection, after the previous one was lost with commands on
    /// their way. It is unknown which of them ran, so the locks get new numbers.
    ///
    /// # Errors
    /// An outage, or the heal must begin again: Redis may have lost effects of it, or the lock is
    /// not ours.
    pub async fn continue_heal(&self, progress: &HealProgress) -> Result<(), Outage> {
        let turn = if self.context.heals_beside {
            self.take_heal_beside().await
        } else {
            let checkpoints = self.read_checkpoints().await.map_err(CommandError::into_outage)?;
            let has_all = self
                .context
                .own_checkpoints
                .change(|state| checkpoints.hold_locks(self.id(), &state.checkpoints));
            if !has_all {
                return Err(Outage::lost_writes());
            }
            self.take_heal().await
        };
        match turn.map_err(CommandError::into_outage)? {
            HealTurn::Ours(checkpoints) if checkpoints.servers() == progress.servers => Ok(()),
            HealTurn::Ours(_) => Err(Outage::replaced()),
            HealTurn::Anothers | HealTurn::Done => Err(Outage::lost_turn()),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heal_continues_only_if_its_locks_have_what_was_confirmed() {
        let own = |lock_confirmed| OwnCheckpoint { lock: 8, lock_confirmed, ..Default::default() };
        let locks = |locks: &[&str]| {
            let hash = |lock: &&str| {
                Checkpoints::of(1, String::new(), vec![("lock".to_owned(), (*lock).to_owned())])
            };
            Checkpoints::together(locks.iter().map(hash))
        };
        assert!(locks(&["w:7:99"]).hold_locks("w", &[own(7)]));
        assert!(locks(&["w:8:99"]).hold_locks("w", &[own(7)]), "not all answers arrived");
        assert!(!locks(&["w:6:99"]).hold_locks("w", &[own(7)]), "Redis lost a confirmed write");
        assert!(!locks(&["w:9:99"]).hold_locks("w", &[own(7)]), "never sent");
        assert!(!locks(&["v:7:99"]).hold_locks("w", &[own(7)]), "another worker has it");
        assert!(!Checkpoints::default().hold_locks("w", &[own(7)]));
        let both = [own(7), own(8)];
        assert!(locks(&["w:7:99", "w:8:99"]).hold_locks("w", &both));
        assert!(!locks(&["w:7:99", "w:7:99"]).hold_locks("w", &both), "the second primary lost it");
    }
}
