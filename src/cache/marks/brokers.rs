//! Whose history the marks speak of: workers of two brokers that share a Redis and the name of
//! their queue would heal for each other, by the wrong history.

use super::super::Cache;
use super::super::failure::CommandError;
use super::{FRESH, Marks, millis};

/// The field of the broker that the marks are of.
const BROKER: &str = "broker";

/// Prefix of the field of a worker's broker.
const BROKER_OF: &str = "broker:";

impl Marks {
    /// Returns the broker of the worker that began last, if any has said so.
    pub fn broker(&self) -> Option<&str> {
        self.values(BROKER).next()
    }

    /// Returns the workers that name another broker than that one, with what they name.
    pub fn of_other_brokers<'m>(&'m self, but: &str, broker: &str) -> Vec<(&'m str, &'m str)> {
        let fields = self.hashes.iter().flat_map(|hash| &hash.fields);
        let mut others: Vec<_> = fields
            .filter_map(|(field, named)| Some((field.strip_prefix(BROKER_OF)?, named.as_str())))
            .filter(|(worker, named)| *worker != but && *named != broker)
            .collect();
        others.sort_unstable();
        others.dedup();
        others
    }

    /// Returns whether that worker has said within 10 s that it lives.
    pub fn lives(&self, worker: &str) -> bool {
        self.hashes.iter().any(|hash| {
            hash.marks().any(|mark| {
                mark.field == worker && hash.now_ms.abs_diff(mark.at_ms) <= millis(FRESH)
            })
        })
    }

    /// Returns whether all marks hold that this worker is of that broker.
    pub fn names_broker(&self, worker: &str, broker: &str) -> bool {
        let field = [BROKER_OF, worker].concat();
        self.hashes
            .iter()
            .all(|hash| hash.fields.iter().any(|(name, named)| *name == field && named == broker))
    }
}

impl Cache {
    /// Says of which broker this worker is.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn name_broker(&self, broker: &str) -> Result<(), CommandError> {
        self.set_broker(&[BROKER_OF, self.id()].concat(), broker).await
    }

    /// Says of which broker the marks are.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn take_marks_for(&self, broker: &str) -> Result<(), CommandError> {
        self.set_broker(BROKER, broker).await
    }

    /// Takes back what [`name_broker`](Self::name_broker) said.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn forget_broker(&self) -> Result<(), CommandError> {
        let field = [BROKER_OF, self.id()].concat();
        self.ask_all(|_| {
            self.marks.iter().map(|marks| super::arguments("HDEL", &[marks, &field])).collect()
        })
        .await
        .map(drop)
    }

    async fn set_broker(&self, field: &str, broker: &str) -> Result<(), CommandError> {
        self.ask_all(|_| {
            self.marks
                .iter()
                .map(|marks| super::arguments("HSET", &[marks, field, broker]))
                .collect()
        })
        .await
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_of_another_broker_are_found() {
        let fields = [
            ("broker", "a /"),
            ("broker:me", "a /"),
            ("broker:near", "a /"),
            ("broker:far", "b /"),
            ("broker:gone", "b /"),
            ("far", "1:1:15000"),
            ("gone", "1:1:1"),
        ];
        let fields = fields.map(|(field, value)| (field.to_owned(), value.to_owned())).to_vec();
        let marks = Marks::of(20_000, String::new(), fields);
        let both = Marks::together([marks.clone(), marks.clone()].into_iter());
        assert_eq!(
            both.of_other_brokers("me", "a /"),
            [("far", "b /"), ("gone", "b /")],
            "each once"
        );
        assert_eq!(
            (marks.lives("far"), marks.lives("gone"), marks.broker()),
            (true, false, Some("a /"))
        );
        assert!(
            both.names_broker("me", "a /")
                && !both.names_broker("me", "b /")
                && !both.names_broker("new", "a /")
        );
    }
}
