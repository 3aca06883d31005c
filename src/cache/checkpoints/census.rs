//! Counts of the broker: what queues and history held when the last worker ended, and when the
//! history was declared anew.
//!
//! The next worker to start compares the count, and so finds out whether events were lost in
//! between.

use redis::Value;
use serde::{Deserialize, Serialize};

use super::super::failure::CommandError;
use super::super::script::CHECKPOINT_CENSUS;
use super::super::{Cache, lifetime};
use super::{Checkpoints, FRESH};
use crate::causes::Cause;

/// Field of the count.
const CENSUS: &str = "census";

/// Field of the time when the history was declared anew, in milliseconds since the Unix epoch.
const HISTORY_BORN: &str = "history_born";

/// Field of the broker at which the history has its mark.
const HISTORY_MARK: &str = "history_mark";

/// Prefix of the field of a worker that has stopped consuming.
const ENDED: &str = "ended:";

/// A count of the broker's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastCount {
    /// Offsets of the history less messages in queues.
    pub surplus: i64,
    /// Offset after the last event of the history.
    pub end: u64,
}

impl Checkpoints {
    /// Returns the count of the last worker that ended, if no worker has compared it yet.
    pub fn last_count(&self) -> Option<LastCount> {
        self.values(CENSUS).find_map(|text| serde_json::from_str(text).ok())
    }

    /// Returns when the history was declared anew; 0 if that is not known.
    pub fn history_born_ms(&self) -> u64 {
        self.values(HISTORY_BORN).filter_map(|born| born.parse().ok()).max().unwrap_or(0)
    }

    /// Returns the broker at which workers have made the mark of the history, if any have.
    pub fn history_mark(&self) -> Option<&str> {
        self.values(HISTORY_MARK).next()
    }

    /// Returns whether a worker other than `but` lives and consumes.
    pub fn others_consume(&self, but: &str) -> bool {
        self.hashes.iter().any(|hash| {
            let has_ended = |worker: &str| {
                hash.fields.iter().any(|(field, _)| field.strip_prefix(ENDED) == Some(worker))
            };
            hash.checkpoints().any(|checkpoint| {
                let lives = !checkpoint.field.contains(':')
                    && hash.now_ms.abs_diff(checkpoint.at_ms) <= super::millis(FRESH);
                lives && checkpoint.field != but && !has_ended(checkpoint.field)
            })
        })
    }
}

impl Cache {
    /// Notes that this worker has stopped consuming. If several workers end together, the last one
    /// counts the messages.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn note_end(&self) -> Result<(), CommandError> {
        let field = [ENDED, self.id()].concat();
        self.ask_all(|_| {
            self.context
                .checkpoint_hashes
                .iter()
                .map(|hash| super::arguments("HSET", &[hash, &field, "1"]))
                .collect()
        })
        .await
        .map(drop)
    }

    /// Stores a count for the next worker, unless another one lives.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn leave_count(&self, count: LastCount) -> Result<(), CommandError> {
        let text = serde_json::to_string(&count)
            .map_err(|error| CommandError::Failed(Cause::new(error)))?;
        let leave = |place: usize| {
            let mut command = self.checkpoint_call(&CHECKPOINT_CENSUS, place);
            command.arg(self.id()).arg(lifetime::millis(FRESH)).arg(&text);
            command
        };
        let (answers, _) = self
            .ask_all(|_| (0..self.context.checkpoint_hashes.len()).map(leave).collect())
            .await?;
        if answers.iter().all(|answer| matches!(answer, Value::Int(_))) {
            Ok(())
        } else {
            Err(super::unexpected())
        }
    }

    /// Stores the time when the history was declared anew.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn note_history_birth(&self, born_ms: u64) -> Result<(), CommandError> {
        let born_ms = born_ms.to_string();
        self.ask_all(|_| {
            self.context
                .checkpoint_hashes
                .iter()
                .map(|hash| super::arguments("HSET", &[hash, HISTORY_BORN, &born_ms]))
                .collect()
        })
        .await
        .map(drop)
    }

    /// Stores the broker at which the history has its mark.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn note_history_mark(&self, broker: &str) -> Result<(), CommandError> {
        self.ask_all(|_| {
            self.context
                .checkpoint_hashes
                .iter()
                .map(|hash| super::arguments("HSET", &[hash, HISTORY_MARK, broker]))
                .collect()
        })
        .await
        .map(drop)
    }

    /// Removes the field of [`note_history_mark`](Self::note_history_mark).
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn forget_history_mark(&self) -> Result<(), CommandError> {
        self.ask_all(|_| {
            self.context
                .checkpoint_hashes
                .iter()
                .map(|hash| super::arguments("HDEL", &[hash, HISTORY_MARK]))
                .collect()
        })
        .await
        .map(drop)
    }

    /// Removes the count: a worker that consumes changes what queues hold.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn forget_count(&self) -> Result<(), CommandError> {
        self.ask_all(|_| {
            self.context
                .checkpoint_hashes
                .iter()
                .map(|hash| super::arguments("HDEL", &[hash, CENSUS]))
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
    fn a_live_worker_that_has_not_ended_consumes() {
        let at = |fields: &[(&str, &str)]| {
            let fields =
                fields.iter().map(|&(field, value)| (field.to_owned(), value.to_owned())).collect();
            Checkpoints::of(20_000, String::new(), fields)
        };
        assert!(
            !at(&[
                ("me", "1:1:20000"),
                ("gone", "1:1:9000"),
                ("stopped:s", "0:1:20000"),
                ("replay:x", "0:1:20000")
            ])
            .others_consume("me")
        );
        assert!(at(&[("me", "1:1:20000"), ("other", "1:1:10000")]).others_consume("me"));
        assert!(!at(&[("other", "1:1:10000"), ("ended:other", "1")]).others_consume("me"));
        let count = LastCount { surplus: -3, end: 9 };
        assert_eq!(
            at(&[("census", &serde_json::to_string(&count).unwrap())]).last_count(),
            Some(count)
        );
        assert_eq!(at(&[("census", "of another version")]).last_count(), None);
    }
}
