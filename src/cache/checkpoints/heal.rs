//! The turn to heal after a loss, and the end of such a heal.

use redis::Cmd;

use super::super::failure::{CommandError, Outage};
use super::super::script::{FORWARD_SEQUENCE, HEAL_FINISH, HEAL_TAKE, Sent};
use super::super::side_keys::SEQUENCE;
use super::super::{Cache, Redis, lifetime};
use super::own::{Mode, OwnState};
use super::{Checkpoints, FieldChange, HEAL_LOCK, HealDetails, HealRecord, HealTurn, LowWatermark};

impl Cache {
    /// Asks for the turn to heal. With it, batches write checkpoints to the lock, which also renews
    /// it.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn take_heal(&self) -> Result<HealTurn, CommandError> {
        if let Redis::Cluster(_) = &self.redis {
            return self.take_heal_in_cluster().await;
        }
        let (answers, _) =
            self.ask_checkpoints(|state| vec![self.take(state, 0, "if wanted")]).await?;
        Ok(match answers.first() {
            Some((1, _)) => self.taken(answers),
            Some((2, _)) => HealTurn::Done,
            _ => HealTurn::Anothers,
        })
    }

    /// Takes the first lock, and with it all others. Whatever one primary lost, the heal covers
    /// all: each hash is marked for healing, and each lock advanced.
    async fn take_heal_in_cluster(&self) -> Result<HealTurn, CommandError> {
        let (first, _) =
            self.ask_checkpoints(|state| vec![self.take(state, 0, "in any case")]).await?;
        if !matches!(first.first(), Some((1, _))) {
            return Ok(HealTurn::Anothers);
        }
        if !self.read_checkpoints().await?.is_wanted() {
            self.call(
                "checkpoints",
                super::arguments("HDEL", &[&self.checkpoint_hashes[0], "lock"]),
            )
            .await?;
            return Ok(HealTurn::Done);
        }
        let (all, _) = self
            .ask_checkpoints(|state| {
                (0..self.checkpoint_hashes.len())
                    .map(|place| self.take(state, place, "and want"))
                    .collect()
            })
            .await?;
        Ok(if all.iter().all(|(word, _)| *word == 1) {
            self.taken(all)
        } else {
            HealTurn::Anothers
        })
    }

    fn take(&self, state: &mut OwnState, place: usize, when: &str) -> Cmd {
        state.mode = Mode::Off;
        state.checkpoints[place].lock += 1;
        let mut command = self.checkpoint_call(&HEAL_TAKE, place);
        command
            .arg(&self.id)
            .arg(state.checkpoints[place].lock)
            .arg(lifetime::millis(HEAL_LOCK))
            .arg(when);
        command
    }

    fn taken(&self, answers: Vec<(i64, Checkpoints)>) -> HealTurn {
        self.own_checkpoints.change(|state| {
            state.mode = Mode::Healer;
            for (checkpoint, (_, checkpoints)) in state.checkpoints.iter_mut().zip(&answers) {
                checkpoint.lock_since_ms = checkpoints.now_ms;
            }
        });
        HealTurn::Ours(Checkpoints::together(
            answers.into_iter().map(|(_, checkpoints)| checkpoints),
        ))
    }

    /// Renews the lock of the heal. Checks that it still is ours and that Redis has lost no writes
    /// since.
    ///
    /// # Errors
    /// An outage, or the lock is not ours, or Redis refuses.
    pub async fn renew_heal(&self) -> Result<(), Outage> {
        match &self.redis {
            Redis::Primary(_) => self.write_checkpoint().await,
            Redis::Cluster(cluster) => cluster.write_all_checkpoints(self).await,
        }
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
        let mut all = Vec::with_capacity(self.checkpoint_hashes.len());
        let mut homes = Vec::new();
        // The first hash comes last: while it is locked, no other worker can find that the others
        // want healing.
        for places in [1..self.checkpoint_hashes.len(), 0..1] {
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
                            .arg(&self.id)
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
        self.own_checkpoints.change(|state| {
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
