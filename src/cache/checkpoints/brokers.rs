//! The broker whose history the checkpoints refer to. Workers of two brokers may share a Redis and
//! a queue name by mistake; they would heal for each other with the wrong history.

use super::super::Cache;
use super::super::failure::CommandError;
use super::{Checkpoints, FRESH, millis};

/// Field of the broker that the checkpoints refer to.
const BROKER: &str = "broker";

/// Prefix of the field of a worker's broker.
const BROKER_OF: &str = "broker:";

impl Checkpoints {
    /// Returns the broker of the worker that started last, if any has stored it.
    pub fn broker(&self) -> Option<&str> {
        self.values(BROKER).next()
    }

    /// Returns the workers of other brokers than that one, each with its broker.
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

    /// Returns whether that worker has advanced its checkpoint within 10 s.
    pub fn lives(&self, worker: &str) -> bool {
        self.hashes.iter().any(|hash| {
            hash.checkpoints().any(|checkpoint| {
                checkpoint.field == worker
                    && hash.now_ms.abs_diff(checkpoint.at_ms) <= millis(FRESH)
            })
        })
    }

    /// Returns whether all hashes name that broker as this worker's.
    pub fn names_broker(&self, worker: &str, broker: &str) -> bool {
        let field = [BROKER_OF, worker].concat();
        self.hashes
            .iter()
            .all(|hash| hash.fields.iter().any(|(name, named)| *name == field && named == broker))
    }
}

impl Cache {
    /// Stores the broker of this worker.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn name_broker(&self, broker: &str) -> Result<(), CommandError> {
        self.set_broker(&[BROKER_OF, self.id()].concat(), broker).await
    }

    /// Stores the broker that the checkpoints refer to.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn claim_checkpoints_for(&self, broker: &str) -> Result<(), CommandError> {
        self.set_broker(BROKER, broker).await
    }

    /// Removes the field of [`name_broker`](Self::name_broker).
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn forget_broker(&self) -> Result<(), CommandError> {
        let field = [BROKER_OF, self.id()].concat();
        self.ask_all(|_| {
            self.context
                .checkpoint_hashes
                .iter()
                .map(|hash| super::arguments("HDEL", &[hash, &field]))
                .collect()
        })
        .await
        .map(drop)
    }

    async fn set_broker(&self, field: &str, broker: &str) -> Result<(), CommandError> {
        self.ask_all(|_| {
            self.context
                .checkpoint_hashes
                .iter()
                .map(|hash| super::arguments("HSET", &[hash, field, broker]))
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
        let checkpoints = Checkpoints::of(20_000, String::new(), fields);
        let both = Checkpoints::together([checkpoints.clone(), checkpoints.clone()].into_iter());
        assert_eq!(
            both.of_other_brokers("me", "a /"),
            [("far", "b /"), ("gone", "b /")],
            "each once"
        );
        assert_eq!(
            (checkpoints.lives("far"), checkpoints.lives("gone"), checkpoints.broker()),
            (true, false, Some("a /"))
        );
        assert!(
            both.names_broker("me", "a /")
                && !both.names_broker("me", "b /")
                && !both.names_broker("new", "a /")
        );
    }
}
