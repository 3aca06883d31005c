//! Checkpoint writes: advancing a checkpoint behind commands, so that a loss of their effects is
//! noticed.

use std::sync::{MutexGuard, PoisonError};

use redis::{Cmd, Value};

use super::super::failure::{self, CommandError, Outage};
use super::super::script::{CHECKPOINT_WRITE, HEAL_CHECKPOINT, Sent};
use super::super::{Cache, lifetime};
use super::HEAL_LOCK;
use super::own::{CheckpointWrite, Mode, WriteDraft};

impl Cache {
    /// Makes the write of a checkpoint behind commands that are sent now. It must be sent before
    /// any other write of that checkpoint: the caller must not await anything until then.
    pub(in crate::cache) fn checkpoint_write(
        &self,
        checkpoint: usize,
        sent: &mut Sent,
    ) -> Option<(CheckpointWrite, Cmd)> {
        let WriteDraft { write, expected, low_ms } =
            self.own_checkpoints.change(|state| state.draft(checkpoint))?;
        let script = if write.mode == Mode::Healer { &HEAL_CHECKPOINT } else { &CHECKPOINT_WRITE };
        let mut command =
            script.call(sent, [self.checkpoint_hashes[checkpoint].as_bytes()].into_iter());
        command.arg(&self.id).arg(expected).arg(write.number);
        match write.mode {
            Mode::Healer => command.arg(lifetime::millis(HEAL_LOCK)),
            Mode::Off | Mode::Worker => command.arg(low_ms),
        };
        Some((write, command))
    }

    /// Returns the lock that is held while a checkpoint write is made and sent with its batch.
    pub(in crate::cache) fn checkpoint_order(&self) -> MutexGuard<'_, ()> {
        self.own_checkpoints.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one command outside any batch, with a checkpoint write behind it, so that a loss of its
    /// effect is noticed.
    pub(in crate::cache) async fn call_with_checkpoint(
        &self,
        name: &str,
        command: Cmd,
    ) -> Result<Value, CommandError> {
        self.backend.call_with_checkpoint(self, name, command).await
    }

    /// Writes a checkpoint behind commands that were sent without one.
    pub(in crate::cache) async fn write_checkpoint(&self) -> Result<(), Outage> {
        match self.call_with_checkpoint("TIME", redis::cmd("TIME")).await {
            Err(CommandError::Outage(outage)) => Err(outage),
            _ => Ok(()),
        }
    }

    /// Notes the answer to a checkpoint write. Fails if the commands before it are not known to
    /// last.
    pub(in crate::cache) fn note_checkpoint_write(
        &self,
        write: CheckpointWrite,
        answer: &Value,
    ) -> Result<(), Outage> {
        match answer {
            Value::Int(1) => {
                self.own_checkpoints.change(|state| state.note_write(write));
                Ok(())
            }
            Value::ServerError(error) => Err(match failure::classify("checkpoints", error) {
                CommandError::Outage(outage) => outage,
                CommandError::Refused(cause) | CommandError::Failed(cause) => {
                    Outage::no_checkpoints(&cause)
                }
            }),
            _ => Err(Outage::broke_checkpoint()),
        }
    }

    /// Checks that the checkpoint is intact at this moment.
    ///
    /// # Errors
    /// An outage, or the checkpoint is broken. Then no batch is known to be the cause.
    pub async fn confirm_checkpoint(&self) -> Result<(), Outage> {
        if !self.own_checkpoints.are_written() {
            return Ok(());
        }
        self.write_checkpoint().await.map_err(|outage| outage.for_others())
    }
}
