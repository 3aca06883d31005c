//! The turn to heal, on a single server: one lock in one hash.

use super::super::checkpoints::{HealTurn, read_answers};
use super::super::context::Context;
use super::super::failure::CommandError;
use super::Single;

impl Single {
    /// See `Cache::take_heal`.
    pub(in crate::cache) async fn take_heal(
        &self,
        context: &Context,
    ) -> Result<HealTurn, CommandError> {
        let ask = || context.lock_calls(0..1, "if wanted", || self.sent());
        let (answers, _) = self.ask_checkpoints(ask).await?;
        let answers = read_answers(&answers)?;
        Ok(match answers.first() {
            Some((1, _)) => context.has_turn(answers),
            Some((2, _)) => HealTurn::Done,
            _ => HealTurn::Anothers,
        })
    }
}
