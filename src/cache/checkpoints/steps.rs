//! The retry steps that workers use. A republished message may wait in the queue of a step that no
//! worker uses any more. No worker looks at that queue, but the message still returns from it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::Cache;
use super::super::failure::CommandError;
use super::{Checkpoints, DEAD_KEPT};

/// Prefix of the field that holds when a step was last in use, by Redis' clock. The field is named
/// by the step's delay in milliseconds.
const STEP: &str = "retry_step:";

impl Checkpoints {
    /// Returns the steps other than `ours` in whose queues a message may still wait, in order.
    pub fn steps_but(&self, ours: &[Duration]) -> Vec<Duration> {
        let is_ours = |step| ours.iter().any(|ours| super::millis(*ours) == step);
        let steps = self.steps().into_iter();
        let waiting = steps.filter(|(step, ends_ms)| *ends_ms >= self.now_ms && !is_ours(*step));
        waiting.map(|(step, _)| Duration::from_millis(step)).collect()
    }

    /// Returns the fields of steps in whose queues no message waits any more.
    fn ended_steps(&self) -> Vec<String> {
        let ended = self.steps().into_iter().filter(|(_, ends_ms)| *ends_ms < self.now_ms);
        ended.map(|(step, _)| format!("{STEP}{step}")).collect()
    }

    /// Returns each step, and until when a message may wait in its queue. That includes an hour
    /// more, since workers note their steps only from time to time.
    fn steps(&self) -> BTreeMap<u64, u64> {
        let mut steps = BTreeMap::new();
        for (field, used_ms) in self.hashes.iter().flat_map(|hash| &hash.fields) {
            let step = field.strip_prefix(STEP).and_then(|step| step.parse::<u64>().ok());
            let (Some(step), Ok(used_ms)) = (step, used_ms.parse::<u64>()) else { continue };
            let ends_ms = used_ms.saturating_add(step).saturating_add(super::millis(DEAD_KEPT));
            let latest = steps.entry(step).or_insert(ends_ms);
            *latest = ends_ms.max(*latest);
        }
        steps
    }
}

impl Cache {
    /// Notes that these steps are in use, and removes those of long ago.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn note_steps(
        &self,
        steps: &[Duration],
        checkpoints: &Checkpoints,
    ) -> Result<(), CommandError> {
        let now_ms = checkpoints.now_ms.to_string();
        let fields: Vec<String> =
            steps.iter().map(|step| format!("{STEP}{}", super::millis(*step))).collect();
        let mut ended = checkpoints.ended_steps();
        ended.retain(|field| !fields.contains(field));
        self.ask_all(|_| {
            let note = |name: &String| {
                let mut set = redis::cmd("HSET");
                set.arg(name);
                for field in &fields {
                    set.arg(field).arg(&now_ms);
                }
                let remove = (!ended.is_empty()).then(|| {
                    let mut remove = redis::cmd("HDEL");
                    remove.arg(name).arg(&ended);
                    remove
                });
                [Some(set).filter(|_| !fields.is_empty()), remove].into_iter().flatten()
            };
            self.context.checkpoint_hashes.iter().flat_map(note).collect()
        })
        .await
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_counts_while_a_message_may_wait_in_its_queue() {
        let hour_ms = 3_600_000;
        let at = |now_ms: u64| {
            let fields =
                [("retry_step:60000", "1000"), ("retry_step:7200000", "500"), ("a", "1:2:3")];
            let fields = fields.map(|(field, value)| (field.to_owned(), value.to_owned()));
            Checkpoints::of(now_ms, String::new(), fields.to_vec())
        };
        let minute = Duration::from_secs(60);
        let two_hours = Duration::from_secs(7_200);
        assert_eq!(at(1_000).steps_but(&[]), [minute, two_hours]);
        assert_eq!(at(1_000).steps_but(&[minute]), [two_hours]);
        assert!(at(1_000).steps_but(&[minute, two_hours]).is_empty());
        assert_eq!(at(2 * hour_ms).steps_but(&[]), [two_hours]);
        assert_eq!(at(2 * hour_ms).ended_steps(), ["retry_step:60000"]);
        assert!(at(3 * hour_ms + 501).steps_but(&[]).is_empty(), "all has come back");
        assert!(Checkpoints::default().steps_but(&[]).is_empty());
    }
}
