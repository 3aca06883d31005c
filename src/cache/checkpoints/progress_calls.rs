//! The calls with which a healing worker stores its progress, and keeps or gives up its turn.

use redis::Value;

use super::super::failure::{CommandError, Outage};
use super::super::script::{HEAL_KEEP, HEAL_YIELD};
use super::super::{Cache, lifetime};
use super::progress::{AFTER_LOSS, BESIDE, HEAL_LOCK, HealKind};
use super::{Checkpoints, HealFrom, HealProgress};

impl Cache {
    /// Stores the progress of our heal, and renews its lock.
    ///
    /// # Errors
    /// An outage, or this worker no longer has the turn to heal.
    pub async fn note_heal_progress(&self, progress: &HealProgress) -> Result<(), Outage> {
        let mut noted = progress.clone();
        self.id().clone_into(&mut noted.worker);
        let text = serde_json::to_string(&noted).unwrap_or_default();
        self.keep_heal(self.id(), &text).await
    }

    /// Renews the lock of a worker's heal, which may be on another connection.
    ///
    /// # Errors
    /// An outage, or that worker no longer has the turn to heal.
    pub async fn keep_heal_of(&self, worker: &str) -> Result<(), Outage> {
        self.keep_heal(worker, "").await
    }

    /// Ends a worker's turn to heal, if it has it. Notes that the worker did not die: its heal was
    /// stopped or could not continue.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn yield_heal_of(&self, worker: &str) -> Result<(), CommandError> {
        let kind = self.heal_kind();
        let give_up = |place: usize| {
            let mut command = self.checkpoint_call(&HEAL_YIELD, place);
            command.arg(kind.lock).arg(worker);
            command
        };
        let places = if kind.locks_all { self.context.checkpoint_hashes.len() } else { 1 };
        self.ask_all(|_| (0..places).map(give_up).collect()).await.map(drop)
    }

    /// Returns the progress without the workers that turned out to be alive.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn without_survivors(
        &self,
        mut progress: HealProgress,
    ) -> Result<HealProgress, CommandError> {
        let checkpoints = self.read_checkpoints().await?;
        progress.forget_survivors(|worker| checkpoints.has_survived(worker));
        Ok(progress)
    }

    /// Returns the progress of the heal that we take over, from checkpoints that came with the
    /// turn. `work` names the kind of work and its rules: other work begins anew.
    pub fn take_over_progress(
        &self,
        checkpoints: &Checkpoints,
        from: HealFrom,
        work: &str,
    ) -> HealProgress {
        let text = checkpoints.values(self.heal_kind().progress).next().unwrap_or_default();
        HealProgress::read(text).taken_over(
            self.id(),
            checkpoints.servers(),
            from,
            work,
            |worker| worker == self.id() || checkpoints.has_survived(worker),
        )
    }

    fn heal_kind(&self) -> HealKind {
        if self.context.heals_beside { BESIDE } else { AFTER_LOSS }
    }

    async fn keep_heal(&self, worker: &str, progress: &str) -> Result<(), Outage> {
        let kind = self.heal_kind();
        let answers = self
            .ask_all(|_| {
                // The first of a cluster's hashes has the progress. A heal beside live workers has
                // its lock only there.
                let places = if kind.locks_all { self.context.checkpoint_hashes.len() } else { 1 };
                (0..places)
                    .map(|place| {
                        let mut command = self.checkpoint_call(&HEAL_KEEP, place);
                        command.arg(kind.lock).arg(worker).arg(lifetime::millis(HEAL_LOCK));
                        command.arg(kind.progress).arg(if place == 0 { progress } else { "" });
                        command
                    })
                    .collect()
            })
            .await;
        match answers {
            Ok((answers, _)) if answers.iter().all(|answer| *answer == Value::Int(1)) => Ok(()),
            Ok(_) => Err(Outage::lost_turn()),
            Err(error) => Err(error.outage_or(Outage::no_checkpoints)),
        }
    }
}
