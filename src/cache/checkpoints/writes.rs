//! Checkpoint writes: advancing a checkpoint behind commands, so that a loss of their effects is
//! noticed.

use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};

use redis::{Cmd, Pipeline, Value};

use super::super::failure::{self, CommandError, Outage};
use super::super::script::{CHECKPOINT_WRITE, HEAL_CHECKPOINT, Sent};
use super::super::{Cache, Redis, lifetime};
use super::HEAL_LOCK;
use super::own::{CheckpointWrite, Mode, WriteDraft};

impl Cache {
    /// Makes the checkpoint write behind commands that are sent now. It must be sent before any
    /// other one: the caller must not await anything until then.
    pub(in crate::cache) fn checkpoint_write(
        &self,
        sent: &mut Sent,
    ) -> Option<(CheckpointWrite, Cmd)> {
        self.checkpoint_write_on(0, sent)
    }

    /// Makes a write as [`checkpoint_write`](Self::checkpoint_write) does, of one of several
    /// checkpoints.
    pub(in crate::cache) fn checkpoint_write_on(
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

    /// Sends what `begin` makes, with its checkpoint write, in one go. No other checkpoint write is
    /// sent in between.
    pub(in crate::cache) async fn in_order<F: Future>(
        &self,
        begin: impl FnOnce() -> F,
    ) -> F::Output {
        let (sending, begun) = {
            let _order = self.own_checkpoints.order.lock().unwrap_or_else(PoisonError::into_inner);
            let mut sending = Box::pin(begin());
            // The first poll sends it. The caller that awaits it polls it again at once.
            let begun = sending.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            (sending, begun)
        };
        match begun {
            Poll::Ready(output) => output,
            Poll::Pending => sending.await,
        }
    }

    /// Runs one command outside any batch, with a checkpoint write behind it, so that a loss of its
    /// effect is noticed.
    pub(in crate::cache) async fn call_with_checkpoint(
        &self,
        name: &str,
        command: Cmd,
    ) -> Result<Value, CommandError> {
        let link = match &self.redis {
            Redis::Primary(link) => link,
            Redis::Cluster(cluster) => {
                let answer = cluster.run_with_checkpoints(self, &[command]).await?.pop();
                let answer = failure::of_answer(name, answer);
                if let Err(CommandError::Outage(outage)) = &answer {
                    self.give_up(outage);
                }
                return answer;
            }
        };
        let live = link.live()?;
        let (mut pipeline, mut write) = (Pipeline::with_capacity(2), None);
        pipeline.add_command(command);
        let (written, made) = (&mut pipeline, &mut write);
        let sending = self.in_order(|| {
            if let Some((write, command)) = self.checkpoint_write(&mut Sent::default()) {
                *made = Some(write);
                written.add_command(command);
            }
            link.send(&live, written)
        });
        let mut answers = sending.await?.into_iter();
        let answer = failure::of_answer(name, answers.next());
        if let Err(CommandError::Outage(outage)) = &answer {
            link.give_up(&live, outage);
        }
        if let Some(write) = write {
            self.note_checkpoint_write(write, &answers.next().unwrap_or(Value::Nil))
                .inspect_err(|outage| link.give_up(&live, outage))?;
        }
        answer
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
            Value::ServerError(error) => {
                Err(failure::classify("checkpoints", error).outage_or(Outage::no_checkpoints))
            }
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
