//! Names of the queues: `UNSTALE_QUEUE` and its suffixes.

use std::time::Duration;

use crate::quantity::format_duration;

/// Queues of one `UNSTALE_QUEUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Queue that events arrive in.
    pub main: String,
    /// Queue of the slow lane: events that one round trip cannot finish.
    pub slow: String,
    /// Retry schedule in order: the delay of each retry step and its queue.
    pub retry: Vec<(Duration, String)>,
    /// The dead-letter queue.
    pub dead: String,
    /// Stream that keeps every event.
    pub history: String,
}

impl Names {
    /// Returns the names below `queue`, with a retry step for each delay.
    pub fn new(queue: &str, retry_delays: &[Duration]) -> Self {
        Self {
            main: queue.to_owned(),
            slow: format!("{queue}.slow"),
            retry: retry_delays
                .iter()
                .map(|&delay| (delay, format!("{queue}.retry.{}", format_duration(delay))))
                .collect(),
            dead: format!("{queue}.dead"),
            history: format!("{queue}.history"),
        }
    }

    /// Returns the names with another retry queue in place of each one that `cannot_be_used`.
    ///
    /// It is the one with the next longer delay, else the next shorter one. Returns `None` if no
    /// retry queue is left.
    #[must_use]
    pub fn without_steps(&self, cannot_be_used: impl Fn(&str) -> bool) -> Option<Self> {
        let is_left = |(_, name): &&(Duration, String)| !cannot_be_used(name);
        let step = |at: usize| {
            let (shorter, longer) = self.retry.split_at(at);
            longer.iter().find(is_left).or_else(|| shorter.iter().rfind(is_left)).cloned()
        };
        let retry = (0..self.retry.len()).map(step).collect::<Option<_>>()?;
        Some(Self { retry, ..self.clone() })
    }

    /// Returns the retry queue for an attempt, counted from 1; `None` beyond the last retry step.
    pub fn retry_queue(&self, attempt: u32) -> Option<&str> {
        let at = usize::try_from(attempt.checked_sub(1)?).ok()?;
        self.retry.get(at).map(|(_, name)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_queues_are_named_by_their_delays() {
        let delays = [Duration::from_millis(500), Duration::from_secs(60), Duration::from_secs(90)];
        let names = Names::new("shop", &delays);
        let retry_queues: Vec<&str> = names.retry.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(retry_queues, ["shop.retry.500ms", "shop.retry.1m", "shop.retry.90s"]);
        assert_eq!((names.main.as_str(), names.slow.as_str()), ("shop", "shop.slow"));
        assert_eq!((names.dead.as_str(), names.history.as_str()), ("shop.dead", "shop.history"));
    }

    #[test]
    fn a_missing_retry_step_is_replaced_by_its_neighbour() {
        let names = Names::new("q", &[1, 10, 60].map(Duration::from_secs));
        let left = |missing: &[&str]| {
            let left = names.without_steps(|name| missing.contains(&name))?;
            Some(left.retry.iter().map(|(delay, _)| delay.as_secs()).collect::<Vec<_>>())
        };
        assert_eq!(left(&[]), Some(vec![1, 10, 60]));
        assert_eq!(left(&["q.retry.1s"]), Some(vec![10, 10, 60]));
        assert_eq!(left(&["q.retry.1s", "q.retry.10s"]), Some(vec![60, 60, 60]));
        assert_eq!(left(&["q.retry.1m"]), Some(vec![1, 10, 10]));
        assert_eq!(left(&["q.retry.1s", "q.retry.10s", "q.retry.1m"]), None);
        assert_eq!(Names::new("q", &[]).without_steps(|_| true), Some(Names::new("q", &[])));
    }

    #[test]
    fn each_attempt_has_its_retry_queue_and_the_next_has_none() {
        let names = Names::new("q", &[Duration::from_secs(1), Duration::from_secs(10)]);
        assert_eq!(names.retry_queue(0), None);
        assert_eq!(names.retry_queue(1), Some("q.retry.1s"));
        assert_eq!(names.retry_queue(2), Some("q.retry.10s"));
        assert_eq!(names.retry_queue(3), None);
    }
}
