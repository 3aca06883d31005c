//! The marks of the queues that workers have made (see `broker/queue_mark.rs`). A mark that is
//! missing although it was made shows that its queue was deleted.

use super::super::Cache;
use super::super::failure::CommandError;
use super::Checkpoints;

/// Prefix of the field of a queue's mark: how often it was made, and at which broker.
const QUEUE_MARK: &str = "queue_mark:";

impl Checkpoints {
    /// Returns how often workers have made the mark of a queue at that broker, if they have.
    pub fn queue_mark(&self, queue: &str, broker: &str) -> Option<u64> {
        self.values(&[QUEUE_MARK, queue].concat())
            .filter_map(|text| text.split_once(':'))
            .filter(|(_, at)| *at == broker)
            .filter_map(|(made, _)| made.parse().ok())
            .max()
    }
}

impl Cache {
    /// Stores how often the mark of a queue was made at that broker. `None`: it cannot be made.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn note_queue_mark(
        &self,
        queue: &str,
        broker: &str,
        made: Option<u64>,
    ) -> Result<(), CommandError> {
        let field = [QUEUE_MARK, queue].concat();
        let text = made.map(|made| format!("{made}:{broker}"));
        self.ask_all(|_| {
            let change = |hash: &String| match &text {
                Some(text) => super::arguments("HSET", &[hash, &field, text]),
                None => super::arguments("HDEL", &[hash, &field]),
            };
            self.context.checkpoint_hashes.iter().map(change).collect()
        })
        .await
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_counts_at_its_own_broker_only() {
        let of = |text: &str| {
            let fields = vec![("queue_mark:q.retry.1m".to_owned(), text.to_owned())];
            Checkpoints::of(1, String::new(), fields)
        };
        let marks = Checkpoints::together([of("3:rabbit@a /"), of("4:rabbit@a /")].into_iter());
        assert_eq!(marks.queue_mark("q.retry.1m", "rabbit@a /"), Some(4));
        assert_eq!(marks.queue_mark("q.retry.1m", "rabbit@b /"), None);
        assert_eq!(marks.queue_mark("q", "rabbit@a /"), None);
        assert_eq!(of("of another version").queue_mark("q.retry.1m", "rabbit@a /"), None);
    }
}
