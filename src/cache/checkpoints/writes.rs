//! Checkpoint writes: advancing a checkpoint after commands, so that a loss of their effects is
//! noticed.

use std::sync::{MutexGuard, PoisonError};

use redis::{Cmd, Value};

use super::super::context::Context;
use super::super::failure::{self, Outage};
use super::super::lifetime;
use super::super::script::{CHECKPOINT_WRITE, HEAL_CHECKPOINT, Sent};
use super::own::{CheckpointWrite, Mode, WriteDraft};
use super::progress::HEAL_LOCK;

impl Context {
    /// Makes the write of a checkpoint after commands that are sent now. It must be sent before
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
            Value::ServerError(error) => {
                Err(failure::classify("checkpoints", error).outage_or(Outage::no_checkpoints))
            }
            _ => Err(Outage::broke_checkpoint()),
        }
    }
}
