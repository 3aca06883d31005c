//! The names of our queues: `UNSTALE_QUEUE` and what comes after it.

use std::time::Duration;

use crate::quantity::format_duration;

/// The queues of one `UNSTALE_QUEUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Where events arrive.
    pub main: String,
    /// What one round trip cannot finish.
    pub slow: String,
    /// The rungs of the retry ladder, in order: how long a message waits there, and the queue.
    pub retry: Vec<(Duration, String)>,
    /// The dead-letter queue.
    pub dead: String,
    /// The stream that keeps every event.
    pub history: String,
}

impl Names {
    /// The names below `queue`, with a rung for each delay.
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

    /// The rung for an attempt, counted from 1; `None` above the last.
    pub fn rung(&self, attempt: u32) -> Option<&str> {
        let at = usize::try_from(attempt.checked_sub(1)?).ok()?;
        self.retry.get(at).map(|(_, name)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_are_named_canonically() {
        let delays = [Duration::from_millis(500), Duration::from_secs(60), Duration::from_secs(90)];
        let names = Names::new("shop", &delays);
        let rungs: Vec<&str> = names.retry.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(rungs, ["shop.retry.500ms", "shop.retry.1m", "shop.retry.90s"]);
        assert_eq!((names.main.as_str(), names.slow.as_str()), ("shop", "shop.slow"));
        assert_eq!((names.dead.as_str(), names.history.as_str()), ("shop.dead", "shop.history"));
    }

    #[test]
    fn attempts_climb_the_ladder_and_fall_off_its_end() {
        let names = Names::new("q", &[Duration::from_secs(1), Duration::from_secs(10)]);
        assert_eq!(names.rung(0), None);
        assert_eq!(names.rung(1), Some("q.retry.1s"));
        assert_eq!(names.rung(2), Some("q.retry.10s"));
        assert_eq!(names.rung(3), None);
    }
}
