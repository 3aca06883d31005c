//! Checkpoint writes on a single server: one checkpoint, advanced in the pipeline of each batch.

use std::task::{self, Poll, Waker};

use redis::{Cmd, Pipeline, Value};

use super::super::address::Address;
use super::super::context::Context;
use super::super::failure::{self, CommandError, Outage};
use super::super::script::Sent;
use super::super::side_keys;
use super::Single;

impl Single {
    pub(in crate::cache) fn checkpoint_hashes(&self, queue: &str) -> Vec<String> {
        vec![side_keys::checkpoints(queue)]
    }

    /// Runs one command outside any batch, with a checkpoint write after it.
    pub(in crate::cache) async fn call_with_checkpoint(
        &self,
        context: &Context,
        name: &str,
        command: Cmd,
    ) -> Result<Value, CommandError> {
        let live = self.connection.live()?;
        let (mut pipeline, mut write) = (Pipeline::with_capacity(2), None);
        pipeline.add_command(command);
        let (written, made) = (&mut pipeline, &mut write);
        let sending = in_order(context, || {
            if let Some((write, command)) = context.checkpoint_write(0, &mut Sent::default()) {
                *made = Some(write);
                written.add_command(command);
            }
            self.send(&live, written)
        });
        let mut answers = sending.await?.into_iter();
        let answer = failure::of_answer(name, answers.next());
        if let Err(CommandError::Outage(outage)) = &answer {
            self.connection.give_up(&live, outage);
        }
        if let Some(write) = write {
            context
                .note_checkpoint_write(write, &answers.next().unwrap_or(Value::Nil))
                .inspect_err(|outage| self.connection.give_up(&live, outage))?;
        }
        answer
    }

    /// Advances the checkpoint by one write.
    pub(in crate::cache) async fn write_all_checkpoints(
        &self,
        context: &Context,
    ) -> Result<(), Outage> {
        self.write_checkpoint(context).await
    }

    /// Writes a checkpoint after commands that were sent without one.
    pub(super) async fn write_checkpoint(&self, context: &Context) -> Result<(), Outage> {
        match self.call_with_checkpoint(context, "TIME", redis::cmd("TIME")).await {
            Err(CommandError::Outage(outage)) => Err(outage),
            _ => Ok(()),
        }
    }

    /// Asks the checkpoint, one command after the other. No node is named: there is one server.
    pub(in crate::cache) async fn ask_checkpoints(
        &self,
        ask: impl FnOnce() -> Vec<Cmd>,
    ) -> Result<(Vec<Value>, Vec<Address>), CommandError> {
        let mut answers = Vec::new();
        for command in ask() {
            answers.push(self.call("checkpoints", command).await?);
        }
        Ok((answers, Vec::new()))
    }

    /// Slots do not move, so no caller asks for these.
    pub(in crate::cache) async fn infos(&self) -> Vec<Value> {
        Vec::new()
    }
}

/// Sends what `begin` makes, with its checkpoint write, in one go. No other checkpoint write is
/// sent in between.
pub(super) async fn in_order<F: Future>(context: &Context, begin: impl FnOnce() -> F) -> F::Output {
    let (sending, begun) = {
        let _order = context.checkpoint_order();
        let mut sending = Box::pin(begin());
        // The first poll sends it. The caller that awaits it polls it again at once.
        let begun = sending.as_mut().poll(&mut task::Context::from_waker(Waker::noop()));
        (sending, begun)
    };
    match begun {
        Poll::Ready(output) => output,
        Poll::Pending => sending.await,
    }
}
