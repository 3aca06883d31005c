//! The turn to heal, on a single server: one lock in one hash.

use super::super::Cache;
use super::super::checkpoints::HealTurn;
use super::super::failure::CommandError;
use super::Single;

impl Single {
    /// See [`Cache::take_heal`].
    pub(in crate::cache) async fn take_heal(
        &self,
        cache: &Cache,
    ) -> Result<HealTurn, CommandError> {
        let answers = cache.take_locks(0..1, "if wanted").await?;
        Ok(match answers.first() {
            Some((1, _)) => cache.has_turn(answers),
            Some((2, _)) => HealTurn::Done,
            _ => HealTurn::Anothers,
        })
    }
}
