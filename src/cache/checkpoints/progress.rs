//! Progress of a heal, kept in Redis beside its lock. A worker that takes over continues from
//! there, and knows which events killed the previous one.

use redis::Value;
use serde::{Deserialize, Serialize};

use super::super::failure::{CommandError, Outage};
use super::super::script::{HEAL_KEEP, HEAL_YIELD};
use super::super::{Cache, lifetime};
use super::{HEAL_LOCK, HealFrom, RefusedEffects};

/// Progress of a heal.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HealProgress {
    /// Place where the heal was asked to begin.
    pub from: HealFrom,
    /// First offset of its span, once that is resolved.
    pub first: Option<u64>,
    /// Offset behind all that is applied, where the next heal begins. `None` means that it must
    /// begin at `from`.
    pub applied_to: Option<u64>,
    /// Offset behind the history, as of the last look.
    pub end: Option<u64>,
    /// Range that is being resolved: its first offset, and the one behind it.
    pub in_work: Option<(u64, u64)>,
    /// Range in which heals by these rules died. The engine goes through it one message at a time.
    pub died: Option<DeadlyRange>,
    /// Offsets that heals by these rules skipped.
    pub passed_over: Vec<u64>,
    /// Offsets before `applied_to` of events that could not be resolved or applied in time.
    pub undone: Vec<u64>,
    /// Effects that Redis refused, and that it may permit later.
    pub refused: RefusedEffects,
    /// Ranges in which heals of other work died.
    others: Vec<Trouble>,
    /// Worker that heals. It is filled in when the progress is stored.
    pub(super) worker: String,
    /// Redis servers for which all of this holds. It is filled in when a worker takes the heal.
    pub(super) servers: Vec<String>,
    /// Kind of work, and the rules by which it is done.
    pub(super) work: String,
}

/// A range of offsets during whose work heals died.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DeadlyRange {
    /// First offset.
    pub first: u64,
    /// Offset behind the last.
    pub end: u64,
    /// Workers that died there, or in a wider range around it.
    pub workers: Vec<String>,
}

/// Ranges in which heals of some work died.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct Trouble {
    work: String,
    died: Option<DeadlyRange>,
    passed_over: Vec<u64>,
}

impl DeadlyRange {
    /// Returns how many heals died there.
    pub fn deaths(&self) -> u32 {
        u32::try_from(self.workers.len()).unwrap_or(u32::MAX)
    }
}

/// Prefix of the field of a worker that its heal did not kill.
pub(super) const SURVIVED: &str = "survived:";

/// Maximum number of other works whose troubles are remembered.
const OTHERS_MAX: usize = 4;

/// Fields of a kind of heal.
#[derive(Debug, Clone, Copy)]
pub(super) struct HealKind {
    pub(super) lock: &'static str,
    pub(super) progress: &'static str,
    /// True if all of a cluster's hashes are locked, since each may lose writes by itself.
    pub(super) locks_all: bool,
}

/// Heal after a loss, while no worker consumes.
pub(super) const AFTER_LOSS: HealKind =
    HealKind { lock: "lock", progress: "progress", locks_all: true };

/// Heal beside live workers.
pub(super) const BESIDE: HealKind =
    HealKind { lock: "lock:beside", progress: "progress:beside", locks_all: false };

impl HealProgress {
    /// Reads the text of a field. A text of another version reads as no progress.
    pub(super) fn read(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// Returns the progress with which the next heal by `worker` begins on those servers.
    /// `has_survived` returns whether a worker is alive though its heal did not end.
    pub(super) fn taken_over(
        mut self,
        worker: &str,
        servers: Vec<String>,
        from: HealFrom,
        work: &str,
        has_survived: impl Fn(&str) -> bool,
    ) -> Self {
        self.forget_survivors(&has_survived);
        let in_work = self.in_work.take();
        let died_in = in_work.filter(|_| self.worker != worker && !has_survived(&self.worker));
        if let Some((first, end)) = died_in {
            let before = self.died.take().filter(|died| died.first <= first && end <= died.end);
            let mut workers = before.map_or_else(Vec::new, |died| died.workers);
            workers.push(self.worker.clone());
            self.died = Some(DeadlyRange { first, end, workers });
        }
        let is_same_server = !servers.is_empty() && servers == self.servers;
        // Another loss is another heal, unless each death takes Redis along.
        if !is_same_server && died_in.is_none() {
            self.forget_troubles();
        }
        // It is unknown what a replaced server has lost of it. The same holds if no server shows
        // its identity.
        let goes_on = is_same_server && self.work == work && self.from.earlier(from) == self.from;
        if !goes_on {
            (self.from, self.first, self.applied_to) = (from, None, None);
            self.undone.clear();
            self.refused = RefusedEffects::default();
        }
        self.turn_to(work);
        worker.clone_into(&mut self.worker);
        self.servers = servers;
        self
    }

    /// Returns whether so many heals died at one offset that it is to be skipped.
    pub fn is_to_pass_over(&self, deaths_max: u32) -> bool {
        self.died
            .as_ref()
            .is_some_and(|died| died.end - died.first == 1 && died.deaths() >= deaths_max)
    }

    /// Forgets the ranges in which heals died: they were in another stream, or before another loss.
    pub fn forget_troubles(&mut self) {
        self.died = None;
        self.passed_over.clear();
        self.others.clear();
    }

    /// Removes workers that survived from all counts of deaths.
    pub(super) fn forget_survivors(&mut self, has_survived: impl Fn(&str) -> bool) {
        for died in self.others.iter_mut().map(|other| &mut other.died).chain([&mut self.died]) {
            let is_left = died.as_mut().is_some_and(|died| {
                died.workers.retain(|worker| !has_survived(worker));
                !died.workers.is_empty()
            });
            if !is_left {
                *died = None;
            }
        }
    }

    /// Switches to other work: other rules may not die of the same events.
    fn turn_to(&mut self, work: &str) {
        if self.work == work {
            return;
        }
        let at = self.others.iter().position(|other| other.work == work);
        let Trouble { died, passed_over, .. } =
            at.map_or_else(Trouble::default, |at| self.others.remove(at));
        let before = Trouble {
            work: std::mem::replace(&mut self.work, work.to_owned()),
            died: std::mem::replace(&mut self.died, died),
            passed_over: std::mem::replace(&mut self.passed_over, passed_over),
        };
        if before.died.is_some() || !before.passed_over.is_empty() {
            self.others.push(before);
            let too_many = self.others.len().saturating_sub(OTHERS_MAX);
            self.others.drain(..too_many);
        }
    }
}

impl Cache {
    /// Stores the progress of our heal, and renews its lock.
    ///
    /// # Errors
    /// An outage, or this worker no longer has the turn to heal.
    pub async fn note_heal_progress(&self, progress: &HealProgress) -> Result<(), Outage> {
        let noted = HealProgress { worker: self.id().to_owned(), ..progress.clone() };
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
        let places = if kind.locks_all { self.checkpoint_hashes.len() } else { 1 };
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

    pub(super) fn heal_kind(&self) -> HealKind {
        if self.heals_beside { BESIDE } else { AFTER_LOSS }
    }

    async fn keep_heal(&self, worker: &str, progress: &str) -> Result<(), Outage> {
        let kind = self.heal_kind();
        let answers = self
            .ask_all(|_| {
                // The first of a cluster's hashes has the progress. A heal beside live workers has
                // its lock only there.
                let places = if kind.locks_all { self.checkpoint_hashes.len() } else { 1 };
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

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: fn(&str) -> bool = |_| false;

    fn at(offset: u64) -> HealFrom {
        HealFrom { offset: Some(offset), time: None }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    /// Progress of a heal by that worker with this range in work.
    fn noted(worker: &str, in_work: (u64, u64), died: Option<DeadlyRange>) -> HealProgress {
        let (worker, work) = (worker.to_owned(), "rules".to_owned());
        HealProgress {
            from: at(5),
            in_work: Some(in_work),
            died,
            worker,
            work,
            servers: names(&["r"]),
            ..HealProgress::default()
        }
    }

    fn died_in(first: u64, end: u64, before: Option<DeadlyRange>) -> Option<DeadlyRange> {
        noted("a", (first, end), before).taken_over("b", names(&["r"]), at(5), "rules", NOBODY).died
    }

    fn died(first: u64, end: u64, workers: &[&str]) -> Option<DeadlyRange> {
        Some(DeadlyRange { first, end, workers: names(workers) })
    }

    #[test]
    fn deaths_count_for_the_range_in_work_and_ranges_within_it() {
        let once = died_in(10, 20, None);
        assert_eq!(once, died(10, 20, &["a"]));
        let twice = died_in(12, 13, once);
        assert_eq!(twice, died(12, 13, &["a", "a"]));
        assert_eq!(died_in(12, 13, twice.clone()).map(|died| died.deaths()), Some(3));
        assert_eq!(died_in(14, 15, twice), died(14, 15, &["a"]), "another event");
    }

    #[test]
    fn a_worker_that_restarts_its_heal_or_survives_is_not_counted_as_dead() {
        let again = noted("a", (1, 2), None).taken_over("a", names(&["r"]), at(5), "rules", NOBODY);
        assert_eq!((again.died, again.in_work), (None, None));
        let survived =
            noted("a", (1, 2), None)
                .taken_over("b", names(&["r"]), at(5), "rules", |worker| worker == "a");
        assert_eq!(survived.died, None);
        // A worker that notes its survival later no longer counts.
        let before = died(1, 2, &["a", "x"]);
        let later =
            noted("y", (1, 2), before)
                .taken_over("b", names(&["r"]), at(5), "rules", |worker| worker == "a");
        assert_eq!(later.died, died(1, 2, &["x", "y"]));
    }

    #[test]
    fn an_offset_is_skipped_only_after_deaths_at_it_alone() {
        let progress = |died| HealProgress { died, ..HealProgress::default() };
        assert!(progress(died(7, 8, &["a", "b", "c"])).is_to_pass_over(3));
        assert!(!progress(died(7, 9, &["a", "b", "c"])).is_to_pass_over(3));
        assert!(!progress(died(7, 8, &["a", "b"])).is_to_pass_over(3));
    }

    #[test]
    fn other_rules_or_another_server_retry_deadly_ranges() {
        let dead =
            || HealProgress { passed_over: vec![7], ..noted("a", (12, 13), died(12, 13, &["x"])) };
        let same = dead().taken_over("b", names(&["r"]), at(5), "rules", NOBODY);
        assert_eq!(
            (same.died.clone(), &same.passed_over[..]),
            (died(12, 13, &["x", "a"]), &[7][..])
        );
        let other_rules = dead().taken_over("b", names(&["r"]), at(5), "fixed rules", NOBODY);
        assert_eq!((other_rules.died.clone(), &other_rules.passed_over[..]), (None, &[][..]));
        // The deaths by the first rules are still known. Two workers that die in turn do so three
        // times each.
        let first_again = other_rules.taken_over("c", names(&["r"]), at(5), "rules", NOBODY);
        assert_eq!(
            (first_again.died, &first_again.passed_over[..]),
            (died(12, 13, &["x", "a"]), &[7][..])
        );
        let stopped = HealProgress { in_work: None, ..dead() };
        let after_a_loss = stopped.taken_over("b", names(&["s"]), at(5), "rules", NOBODY);
        assert_eq!((after_a_loss.died, &after_a_loss.passed_over[..]), (None, &[][..]));
        let takes_redis_along = dead().taken_over("b", names(&["s"]), at(5), "rules", NOBODY);
        assert_eq!(
            (takes_redis_along.died, &takes_redis_along.passed_over[..]),
            (died(12, 13, &["x", "a"]), &[7][..])
        );
    }

    #[test]
    fn a_heal_continues_only_on_the_same_servers_and_span() {
        let taken_by = |work: &str, servers: &[&str], from| {
            let before =
                HealProgress { applied_to: Some(9), in_work: None, ..noted("a", (0, 0), None) };
            before.taken_over("b", names(servers), from, work, NOBODY).applied_to
        };
        let taken = |servers: &[&str], from| taken_by("rules", servers, from);
        assert_eq!(taken_by("other rules", &["r"], at(5)), None);
        assert_eq!(taken(&["r"], at(5)), Some(9));
        assert_eq!(taken(&["r"], at(6)), Some(9));
        assert_eq!(taken(&["s"], at(5)), None, "another server may have lost what was applied");
        assert_eq!(taken(&[], at(5)), None, "nobody knows which server it is");
        assert_eq!(taken(&["r"], at(4)), None, "more is to be applied");
    }
}
