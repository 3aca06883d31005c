//! How far a heal is, kept in Redis beside its lock: whoever takes over goes on from there, and
//! knows what it died of.

use redis::Value;
use serde::{Deserialize, Serialize};

use super::super::failure::{CommandError, Outage};
use super::super::script::HEAL_KEEP;
use super::super::{Cache, lifetime};
use super::{HEAL_LOCK, HealFrom};

/// How far a heal is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HealProgress {
    /// Where it began, as it was asked for.
    pub from: HealFrom,
    /// The first offset of its span, once it is resolved.
    pub first: Option<u64>,
    /// The offset behind all that is applied: the next heal begins here. `None` where it must
    /// begin at `from`.
    pub applied_to: Option<u64>,
    /// The offset behind the span.
    pub end: Option<u64>,
    /// The range that is being resolved: its first offset, and the one behind it.
    pub in_work: Option<(u64, u64)>,
    /// The range that heals died in: the engine goes through it one message at a time.
    pub died: Option<Died>,
    /// Offsets that are passed over, since heals died there.
    pub passed_over: Vec<u64>,
    /// The worker that heals. Filled in when the progress is noted.
    pub(super) worker: String,
    /// The Redis servers on which all of this is true. Filled in when the heal is taken.
    pub(super) servers: Vec<String>,
    /// The kind of work, and the rules by which it is done.
    pub(super) work: String,
}

/// A range of offsets in whose work heals died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Died {
    /// The first offset.
    pub first: u64,
    /// The offset behind the last.
    pub end: u64,
    /// How many heals died there, or in a wider range around it.
    pub deaths: u32,
}

/// The fields of a kind of heal.
#[derive(Debug, Clone, Copy)]
pub(super) struct HealKind {
    pub(super) lock: &'static str,
    pub(super) progress: &'static str,
    /// All of a cluster's hashes are locked: each may go back by itself.
    pub(super) locks_all: bool,
}

/// After a loss, with nothing consumed meanwhile.
pub(super) const AFTER_LOSS: HealKind = HealKind { lock: "lock", progress: "progress", locks_all: true };

/// Beside live workers.
pub(super) const BESIDE: HealKind = HealKind { lock: "lock:beside", progress: "progress:beside", locks_all: false };

impl HealProgress {
    /// Reads the text of a field; nothing of what another version wrote is an error.
    pub(super) fn read(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// Returns what the next heal by `worker`, on those servers, is to begin with.
    pub(super) fn taken_over(mut self, worker: &str, servers: Vec<String>, from: HealFrom, work: &str) -> Self {
        if let Some((first, end)) = self.in_work.take()
            && self.worker != worker
        {
            let before = self.died.filter(|died| died.first <= first && end <= died.end).map_or(0, |died| died.deaths);
            self.died = Some(Died { first, end, deaths: before + 1 });
        }
        // What a server that was replaced since has lost of it is unknown, and so it is where no
        // server tells its identity.
        let goes_on = !servers.is_empty() && servers == self.servers && self.work == work && self.from.earlier(from) == self.from;
        if !goes_on {
            (self.from, self.first, self.applied_to, self.end) = (from, None, None, None);
        }
        worker.clone_into(&mut self.worker);
        work.clone_into(&mut self.work);
        self.servers = servers;
        self
    }
}

impl Cache {
    /// Notes how far our heal is, and keeps its lock.
    ///
    /// # Errors
    /// An outage: also where the turn to heal is not ours any more.
    pub async fn note_heal_progress(&self, progress: &HealProgress) -> Result<(), Outage> {
        let noted = HealProgress { worker: self.id().to_owned(), ..progress.clone() };
        let text = serde_json::to_string(&noted).unwrap_or_default();
        self.keep_heal(self.id(), &text).await
    }

    /// Keeps the lock of a heal of the worker with that id, which may be another connection's.
    ///
    /// # Errors
    /// An outage: also where the turn to heal is not that worker's any more.
    pub async fn keep_heal_of(&self, worker: &str) -> Result<(), Outage> {
        self.keep_heal(worker, "").await
    }

    pub(super) fn heal_kind(&self) -> HealKind {
        if self.heals_beside { BESIDE } else { AFTER_LOSS }
    }

    async fn keep_heal(&self, worker: &str, progress: &str) -> Result<(), Outage> {
        let kind = self.heal_kind();
        let answers = self
            .ask_all(|_| {
                // The first of a cluster's hashes has the progress; a heal beside live workers has
                // its lock there alone.
                let places = if kind.locks_all { self.marks.len() } else { 1 };
                (0..places)
                    .map(|place| {
                        let mut command = self.mark_call(&HEAL_KEEP, place);
                        command.arg(kind.lock).arg(worker).arg(lifetime::millis(HEAL_LOCK));
                        command.arg(kind.progress).arg(if place == 0 { progress } else { "" });
                        command
                    })
                    .collect()
            })
            .await;
        match answers {
            Ok((answers, _)) if answers.iter().all(|answer| *answer == Value::Int(1)) => Ok(()),
            Ok(_) => Err(Outage::new("the turn to heal Redis is another worker's now")),
            Err(CommandError::Outage(outage)) => Err(outage),
            Err(CommandError::Refused(cause) | CommandError::Failed(cause)) => Err(Outage::no_marks(&cause)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn died_in(first: u64, end: u64, before: Option<Died>) -> Option<Died> {
        let progress = HealProgress { in_work: Some((first, end)), died: before, worker: "a".into(), ..HealProgress::default() };
        progress.taken_over("b", Vec::new(), HealFrom::default(), "").died
    }

    #[test]
    fn deaths_count_for_the_range_in_work_and_what_is_within_it() {
        let once = died_in(10, 20, None);
        assert_eq!(once, Some(Died { first: 10, end: 20, deaths: 1 }));
        let twice = died_in(12, 13, once);
        assert_eq!(twice, Some(Died { first: 12, end: 13, deaths: 2 }));
        assert_eq!(died_in(12, 13, twice), Some(Died { first: 12, end: 13, deaths: 3 }));
        assert_eq!(died_in(14, 15, twice), Some(Died { first: 14, end: 15, deaths: 1 }), "another event");
    }

    #[test]
    fn a_worker_that_begins_again_has_not_died() {
        let progress = HealProgress { in_work: Some((1, 2)), worker: "a".into(), ..HealProgress::default() };
        let taken = progress.taken_over("a", Vec::new(), HealFrom::default(), "");
        assert_eq!((taken.died, taken.in_work), (None, None));
    }

    #[test]
    fn a_heal_goes_on_only_where_no_server_was_replaced_and_nobody_asks_for_more() {
        let at = |offset| HealFrom { offset: Some(offset), time: None };
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let taken_by = |work: &str, servers: &[&str], from| {
            let before =
                HealProgress { from: at(5), applied_to: Some(9), servers: names(&["r"]), work: "rules".into(), ..HealProgress::default() };
            before.taken_over("b", names(servers), from, work).applied_to
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
