//! Calls with which workers and commands enter, advance, read and leave checkpoints.

use redis::{Cmd, Value};

use super::super::address::Address;
use super::super::failure::{CommandError, Outage};
use super::super::script::{
    CHECKPOINT_ENTER, CHECKPOINT_HOLD, CHECKPOINT_LEAVE, CHECKPOINT_TAKE_OVER, CHECKPOINT_TICK,
    Script,
};
use super::super::{Cache, lifetime};
use super::moved::REPLACED;
use super::own::{Mode, OwnState, WriteDraft};
use super::{Checkpoints, DEAD_KEPT, Entered, FRESH, LowWatermark, Tick, read_answers};

/// Answers of the hashes to a worker that enters its checkpoints.
struct Entering {
    answers: Vec<(i64, Checkpoints)>,
    homes: Vec<Address>,
    numbers: Vec<u64>,
}

impl Cache {
    /// Returns the id of this process among workers and checkpoints, unique among processes.
    pub fn id(&self) -> &str {
        &self.context.id
    }

    /// Returns whether this process has the turn to heal after a loss.
    pub fn heals(&self) -> bool {
        self.context.own_checkpoints.heals()
    }

    /// Enters this worker's checkpoints, for the first time or after an outage, unless Redis lost
    /// writes or was replaced. Later batches write checkpoints.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn enter(&self, low: impl Into<LowWatermark>) -> Result<Entered, CommandError> {
        let low = low.into();
        let mut entering = self.ask_to_enter(low, &[]).await?;
        let mut doubt = None;
        if let Some(place) = entering.answers.iter().position(|(word, _)| *word == REPLACED) {
            match self.moved_slots(&entering.answers).await {
                Some(moved) => entering = self.ask_to_enter(low, &moved).await?,
                None => doubt = Some((place, "replaced")),
            }
        }
        let Entering { answers, homes, numbers } = entering;
        let good = doubt.is_none() && answers.iter().all(|(word, _)| *word == 1);
        self.context.own_checkpoints.change(|state| {
            for ((place, (word, checkpoints)), number) in answers.iter().enumerate().zip(&numbers) {
                if *word == 1 {
                    state.checkpoints[place].confirmed = Some((*number, checkpoints.now_ms));
                }
            }
            if good {
                doubt = state.doubtful(&homes).map(|place| (place, "unknown"));
            }
            if good && doubt.is_none() {
                state.mode = Mode::Worker;
                state.note_all_advanced(homes);
            }
        });
        let checkpoints =
            Checkpoints::together(answers.into_iter().map(|(_, checkpoints)| checkpoints));
        if let Some((place, why)) = doubt {
            // The worker that heals reads it.
            let mut command = redis::cmd("HSET");
            command
                .arg(&self.context.checkpoint_hashes[place])
                .arg("wanted")
                .arg(checkpoints.now_ms)
                .arg("why")
                .arg(why);
            self.call("checkpoints", command).await?;
        }
        Ok(if good && doubt.is_none() {
            Entered::Good(checkpoints)
        } else {
            Entered::ToHeal(checkpoints)
        })
    }

    /// Sends one call for each hash. `moved` are identities of servers that wrote checkpoints which
    /// other servers have now, and that still serve.
    async fn ask_to_enter(
        &self,
        low: LowWatermark,
        moved: &[String],
    ) -> Result<Entering, CommandError> {
        let mut numbers = Vec::new();
        let may_move = self.backend.moves_slots() && moved.is_empty();
        let (answers, homes) = self
            .ask_checkpoints(|state| {
                state.mode = Mode::Off;
                state.low = low;
                (0..state.checkpoints.len())
                    .map(|place| {
                        let checkpoint = &mut state.checkpoints[place];
                        let greatest = checkpoint.sent;
                        checkpoint.sent += 1;
                        numbers.push(checkpoint.sent);
                        let (least, known_at) = checkpoint
                            .confirmed
                            .map_or((String::new(), 0), |(number, at)| (number.to_string(), at));
                        let mut command = self.checkpoint_call(&CHECKPOINT_ENTER, place);
                        command
                            .arg(&self.context.id)
                            .arg(least)
                            .arg(greatest)
                            .arg(known_at)
                            .arg(checkpoint.sent)
                            .arg(low.time_ms);
                        command
                            .arg(lifetime::millis(FRESH))
                            .arg(offset(low))
                            .arg(if may_move { "ask" } else { "" })
                            .arg(moved);
                        command
                    })
                    .collect()
            })
            .await?;
        Ok(Entering { answers, homes, numbers })
    }

    /// Advances this worker's checkpoints.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn tick(&self, low: impl Into<LowWatermark>) -> Result<Tick, CommandError> {
        let low = low.into();
        let mut numbers = Vec::new();
        let (answers, homes) = self
            .ask_checkpoints(|state| {
                state.low = low;
                if state.mode != Mode::Worker {
                    return Vec::new();
                }
                let places = 0..state.checkpoints.len();
                places
                    .filter_map(|place| {
                        let WriteDraft { write, expected, .. } = state.draft(place)?;
                        numbers.push(write.number);
                        let mut command = self.checkpoint_call(&CHECKPOINT_TICK, place);
                        command
                            .arg(&self.context.id)
                            .arg(expected)
                            .arg(write.number)
                            .arg(low.time_ms)
                            .arg(lifetime::millis(DEAD_KEPT));
                        command.arg(offset(low));
                        Some(command)
                    })
                    .collect()
            })
            .await?;
        if answers.is_empty() {
            return Ok(Tick::NotEntered);
        }
        let words = || answers.iter().map(|(word, _)| *word);
        if words().any(|word| ![1, 2, REPLACED].contains(&word)) {
            return Ok(Tick::LostWrites);
        }
        if words().any(|word| word == 2) {
            return Ok(Tick::ToHeal);
        }
        self.context.own_checkpoints.change(|state| {
            for (place, ((_, checkpoints), number)) in answers.iter().zip(&numbers).enumerate() {
                state.note_advance(place, *number, checkpoints.now_ms);
            }
        });
        if words().any(|word| word == REPLACED) {
            if self.moved_slots(&answers).await.is_none() {
                return Ok(Tick::Replaced);
            }
            self.note_new_homes(&answers).await?;
        }
        self.context.own_checkpoints.change(|state| state.note_all_advanced(homes));
        Ok(Tick::Good(Checkpoints::together(
            answers.into_iter().map(|(_, checkpoints)| checkpoints),
        )))
    }

    /// Removes this worker's field from the checkpoints, as its last action. `low` covers the
    /// events that it let go of. `is_all_settled` means that none of them is left, except those
    /// that wait in the queue.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn leave(
        &self,
        low: impl Into<LowWatermark>,
        is_all_settled: bool,
    ) -> Result<(), CommandError> {
        let low = low.into();
        self.ask_all(|state| {
            if std::mem::take(&mut state.mode) != Mode::Worker {
                return Vec::new();
            }
            let leave = |place: usize| {
                let checkpoint = &state.checkpoints[place];
                let (least, _) = checkpoint.confirmed?;
                let mut command = self.checkpoint_call(&CHECKPOINT_LEAVE, place);
                command
                    .arg(&self.context.id)
                    .arg(least)
                    .arg(checkpoint.sent)
                    .arg(low.time_ms)
                    .arg(offset(low));
                command.arg(u8::from(is_all_settled)).arg(lifetime::millis(FRESH));
                Some(command)
            };
            (0..state.checkpoints.len()).filter_map(leave).collect()
        })
        .await
        .map(drop)
    }

    /// Takes over what these fields of workers that are [`gone`](Checkpoints::gone) cover. Our own
    /// field must cover it already.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn take_over(&self, gone: &[String]) -> Result<(), CommandError> {
        let take_over = |place: usize| {
            let mut command = self.checkpoint_call(&CHECKPOINT_TAKE_OVER, place);
            command.arg(lifetime::millis(FRESH)).arg(gone);
            command
        };
        self.ask_all(|_| (0..self.context.checkpoint_hashes.len()).map(take_over).collect())
            .await
            .map(drop)
    }

    /// Stores the low watermark of an operator's command. If Redis loses writes during the command
    /// or within an hour after it, the heal begins there.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn hold_checkpoint(
        &self,
        command_name: &str,
        low: impl Into<LowWatermark>,
    ) -> Result<(), CommandError> {
        let (low, field) = (low.into(), format!("{command_name}:{}", self.context.id));
        let hold = |place: usize| {
            let mut command = self.checkpoint_call(&CHECKPOINT_HOLD, place);
            command.arg(&field).arg(low.time_ms).arg(offset(low));
            command
        };
        self.ask_all(|_| (0..self.context.checkpoint_hashes.len()).map(hold).collect())
            .await
            .map(drop)
    }

    /// Removes the field of [`hold_checkpoint`](Self::hold_checkpoint).
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn release_checkpoint(&self, command_name: &str) -> Result<(), CommandError> {
        let field = format!("{command_name}:{}", self.context.id);
        let offset = format!("offset:{field}");
        self.ask_all(|_| {
            self.context
                .checkpoint_hashes
                .iter()
                .map(|hash| super::arguments("HDEL", &[hash, &field, &offset]))
                .collect()
        })
        .await
        .map(drop)
    }

    /// Checks that the checkpoint is intact at this moment.
    ///
    /// # Errors
    /// An outage, or the checkpoint is broken. Then no batch is known to be the cause.
    pub async fn confirm_checkpoint(&self) -> Result<(), Outage> {
        if !self.context.own_checkpoints.are_written() {
            return Ok(());
        }
        match self.call_with_checkpoint("TIME", redis::cmd("TIME")).await {
            Err(CommandError::Outage(outage)) => Err(outage.for_others()),
            _ => Ok(()),
        }
    }

    /// Runs one command outside any batch, with a checkpoint write after it, so that a loss of its
    /// effect is noticed.
    pub(in crate::cache) async fn call_with_checkpoint(
        &self,
        name: &str,
        command: Cmd,
    ) -> Result<Value, CommandError> {
        self.backend.call_with_checkpoint(&self.context, name, command).await
    }

    /// Returns all checkpoints. Changes nothing.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn read_checkpoints(&self) -> Result<Checkpoints, CommandError> {
        let now_ms = self.time_ms().await?;
        let (answers, _) = self.ask_all(|_| self.context.checkpoint_reads()).await?;
        Checkpoints::of_hashes(now_ms, &answers)
    }

    /// Returns a script's call on one of the hashes.
    pub(super) fn checkpoint_call(&self, script: &Script, place: usize) -> Cmd {
        self.context.checkpoint_call(script, place, self.backend.sent())
    }

    /// Asks checkpoints by scripts. Also returns the node that serves each of the hashes, if there
    /// are several nodes.
    pub(super) async fn ask_checkpoints(
        &self,
        ask: impl FnOnce(&mut OwnState) -> Vec<Cmd>,
    ) -> Result<(Vec<(i64, Checkpoints)>, Vec<Address>), CommandError> {
        let (answers, homes) = self.ask_all(ask).await?;
        Ok((read_answers(&answers)?, homes))
    }

    /// Asks checkpoints as [`ask_checkpoints`](Self::ask_checkpoints) does, by any commands. Their
    /// numbers are drawn, and they are sent, while no checkpoint write is in flight.
    pub(super) async fn ask_all(
        &self,
        ask: impl FnOnce(&mut OwnState) -> Vec<Cmd>,
    ) -> Result<(Vec<Value>, Vec<Address>), CommandError> {
        self.backend.ask_checkpoints(|| self.context.own_checkpoints.change(ask)).await
    }
}

/// Returns the offset as an argument of a script: empty if it is not known.
fn offset(low: LowWatermark) -> String {
    low.offset.map_or_else(String::new, |offset| offset.to_string())
}
