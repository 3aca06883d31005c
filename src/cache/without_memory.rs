//! Deletions while Redis refuses all commands that need memory (`maxmemory` under `noeviction`).
//! Redis takes deletions, which free memory.
//!
//! They use a connection of their own, since the others are given up during the outage. None of
//! them counts as done. The events are applied again as a whole once Redis takes writes, and only
//! then acknowledged.

use redis::{Cmd, Value};

use super::Cache;
use super::commands::unlink;
use super::failure::{self, CommandError, Outage};
use super::side_keys::{Kind, side_key};
use crate::plan::{Command, Plan};

impl Cache {
    /// Deletes the keys that a plan deletes, and their leases. It skips the rest of the plan, and
    /// all of the plan is still to be applied.
    ///
    /// # Errors
    /// An outage: some of the keys may be deleted.
    pub async fn delete_now(&self, plan: &Plan<'_>) -> Result<(), Outage> {
        let all = plan.deletions().iter().chain(plan.in_order());
        let deleted = all
            .map(|&id| plan.operation(id))
            .filter(|operation| operation.command == Command::Delete);
        // The lease comes first: a load in progress must not fill the key after its deletion.
        let commands: Vec<Cmd> = deleted
            .flat_map(|operation| {
                let key = operation.target.as_bytes();
                [
                    unlink([side_key(Kind::Lease, key).as_slice()].into_iter(), 1),
                    unlink([key].into_iter(), 1),
                ]
            })
            .collect();
        if commands.is_empty() {
            return Ok(());
        }
        self.backend.delete_apart(&commands).await
    }
}

/// Checks the answers to deletions. A refusal of one key shows when its event is applied.
pub(super) fn check(answers: &[Value]) -> Result<(), Outage> {
    for answer in answers {
        if let Value::ServerError(error) = answer
            && let CommandError::Outage(outage) = failure::classify("UNLINK", error)
        {
            return Err(outage);
        }
    }
    Ok(())
}
