//! The turn to heal after a loss, and the end of such a heal.

use redis::Cmd;

use super::super::failure::{CommandError, Outage};
use super::super::script::{FORWARD_SEQUENCE, HEAL_FINISH, HEAL_TAKE, Sent};
use super::super::side_keys::SEQUENCE;
use super::super::{Cache, Redis, lifetime};
use super::chain::{Mode, State};
use super::{Change, HEAL_LOCK, HealDetails, HealRecord, LowWatermark, Marks, Turn};

impl Cache {
    /// Asks for the turn to heal. With it, batches write checkpoints to the lock, which also renews
    /// it.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn take_heal(&self) -> Result<Turn, CommandError> {
        if let Redis::Cluster(_) = &self.redis {
            return self.take_heal_in_cluster().await;
        }
        let (answers, _) = self.ask_marks(|state| vec![self.take(state, 0, "if wanted")]).await?;
        Ok(match answers.first() {
            Some((1, _)) => self.taken(answers),
            Some((2, _)) => Turn::Done,
            _ => Turn::Anothers,
        })
    }

    /// Takes the first lock, and with it all others. Whatever one primary lost, the heal covers
    /// all: each hash is marked for healing, and each lock advanced.
    async fn take_heal_in_cluster(&self) -> Result<Turn, CommandError> {
        let (first, _) = self.ask_marks(|state| vec![self.take(state, 0, "in any case")]).await?;
        if !matches!(first.first(), Some((1, _))) {
            return Ok(Turn::Anothers);
        }
        if !self.read_marks().await?.is_wanted() {
            self.call("marks", super::arguments("HDEL", &[&self.marks[0], "lock"])).await?;
            return Ok(Turn::Done);
        }
        let (all, _) = self
            .ask_marks(|state| {
                (0..self.marks.len()).map(|place| self.take(state, place, "and want")).collect()
            })
            .await?;
        Ok(if all.iter().all(|(word, _)| *word == 1) { self.taken(all) } else { Turn::Anothers })
    }

    fn take(&self, state: &mut State, place: usize, when: &str) -> Cmd {
        state.mode = Mode::Off;
        state.marks[place].lock += 1;
        let mut command = self.mark_call(&HEAL_TAKE, place);
        command
            .arg(&self.id)
            .arg(state.marks[place].lock)
            .arg(lifetime::millis(HEAL_LOCK))
            .arg(when);
        command
    }

    fn taken(&self, answers: Vec<(i64, Marks)>) -> Turn {
        self.chain.change(|state| {
            state.mode = Mode::Healer;
            for (mark, (_, marks)) in state.marks.iter_mut().zip(&answers) {
                mark.lock_since_ms = marks.now_ms;
            }
        });
        Turn::Ours(Marks::together(answers.into_iter().map(|(_, marks)| marks)))
    }

    /// Renews the lock of the heal. Checks that it still is ours and that Redis has lost no writes
    /// since.
    ///
    /// # Errors
    /// An outage, or the lock is not ours, or Redis refuses.
    pub async fn renew_heal(&self) -> Result<(), Outage> {
        match &self.redis {
            Redis::Primary(_) => self.seal_alone().await,
            Redis::Cluster(cluster) => cluster.seal_all(self).await,
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
        changes: &[Change],
        low: impl Into<LowWatermark>,
    ) -> Result<bool, CommandError> {
        let low = low.into();
        let mut all = Vec::with_capacity(self.marks.len());
        let mut homes = Vec::new();
        // The first hash comes last: while it is locked, no other worker can find that the others
        // want healing.
        for places in [1..self.marks.len(), 0..1] {
            let mut numbers = Vec::new();
            let (answers, served) = self
                .ask_marks(|state| {
                    state.mode = Mode::Off;
                    state.low = low;
                    let calls = places.clone().map(|place| {
                        let mark = &mut state.marks[place];
                        mark.sent += 1;
                        numbers.push((place, mark.sent));
                        let mut command = self.mark_call(&HEAL_FINISH, place);
                        command.arg(&self.id).arg(mark.lock).arg(mark.sent).arg(low.time_ms);
                        let details = match record {
                            Some(HealRecord { from_ms, count, complete, details, .. }) => {
                                command
                                    .arg(mark.lock_since_ms)
                                    .arg(format!("{from_ms}:{count}:{}", u8::from(*complete)));
                                HealDetails { began_ms: mark.lock_since_ms, ..details.clone() }
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
                        Change::add_to(changes, &mut command);
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
        self.chain.change(|state| {
            for ((place, number), (_, marks)) in all {
                state.marks[place].confirmed = Some((number, marks.now_ms));
            }
            state.mode = Mode::Worker;
            state.uncovered.clear();
            state.all_moved_on(homes);
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
