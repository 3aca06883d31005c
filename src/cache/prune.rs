//! Tag maintenance: members whose keys expired, were evicted or were deleted by others leave the
//! tags' sets, so that an index does not outgrow what it indexes. They are set aside first
//! ([`asides`](super::asides)).

use std::time::Duration;

use redis::Value;

use super::asides::Asides;
use super::cluster::prune::CURSOR_BITS;
use super::failure::CommandError;
use super::script::{KEEP_LOCK, PRUNE_SLICE, SETTLE_ASIDE, Sent};
use super::side_keys::{ASIDES, aside};
use super::{Cache, Redis, integers, lifetime, side_keys, tags};

/// Keys that one step of a scan looks at, and members that one slice of a set holds: well below a
/// millisecond of Redis' time.
pub const PRUNE_STEP: usize = 500;

/// What of a place in a scan is the server's own cursor.
const CURSOR: u64 = (1 << CURSOR_BITS) - 1;

/// Some of the tags' sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagSets {
    /// Where to go on; 0 where all of Redis was looked through.
    pub next: u64,
    /// Whole keys; one may come twice.
    pub sets: Vec<Vec<u8>>,
}

/// What one slice of a tag's set held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pruned {
    /// Where to go on; 0 where all of the set was looked through.
    pub next: u64,
    /// Members looked at.
    pub looked: u64,
    /// Members whose keys were gone.
    pub gone: u64,
}

impl Cache {
    /// The next of the tags' sets, whoever made them: there is no list of them, so all keys are
    /// looked through, about [`PRUNE_STEP`] at a time.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn tag_sets(&self, cursor: u64) -> Result<TagSets, CommandError> {
        let mut command = redis::cmd("SCAN");
        command
            .arg(cursor & CURSOR)
            .arg("MATCH")
            .arg(pattern(&self.tag_prefix))
            .arg("COUNT")
            .arg(PRUNE_STEP)
            .arg("TYPE")
            .arg("set");
        if let Redis::Cluster(cluster) = &self.redis {
            return self.tag_sets_in_cluster(cluster, cursor, command).await;
        }
        let Value::Array(answer) = self.call("SCAN", command).await? else {
            return Err(tags::unexpected());
        };
        let [Value::BulkString(next), Value::Array(sets)] = answer.as_slice() else {
            return Err(tags::unexpected());
        };
        let next = std::str::from_utf8(next)
            .ok()
            .and_then(|next| next.parse().ok())
            .ok_or_else(tags::unexpected)?;
        let sets = sets.iter().filter_map(|set| {
            if let Value::BulkString(set) = set { Some(set.clone()) } else { None }
        });
        Ok(TagSets { next, sets: sets.collect() })
    }

    /// Sets aside what is no key in a slice of a tag's set, or only counts it: see
    /// [`asides`](Self::asides).
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn prune_slice(
        &self,
        set: &[u8],
        cursor: u64,
        only_count: bool,
    ) -> Result<Pruned, CommandError> {
        if let Redis::Cluster(cluster) = &self.redis {
            return self.prune_slice_in_cluster(cluster, set, cursor, only_count).await;
        }
        let mut command =
            PRUNE_SLICE.call(&mut Sent::default(), with_asides(set, &aside(set)).into_iter());
        command
            .arg(cursor)
            .arg(PRUNE_STEP)
            .arg(u8::from(!only_count))
            .arg(lifetime::millis(self.aside_filled_for));
        let [next, looked, gone] =
            integers(&self.call("prune", command).await?).ok_or_else(tags::unexpected)?;
        Ok(Pruned { next, looked, gone })
    }

    /// Returns an account of what is set aside, with nothing in it yet.
    pub fn asides(&self) -> Asides {
        Asides::new(self.aside_filled_for)
    }

    /// Returns the sets of tags under our prefix of which something is set aside, by any worker. A
    /// cluster has no list of them: none.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn left_aside(&self) -> Result<Vec<Vec<u8>>, CommandError> {
        if self.is_cluster() {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("SMEMBERS");
        command.arg(ASIDES);
        let mut sets = self.texts("SMEMBERS", command).await?;
        sets.retain(|set| set.starts_with(self.tag_prefix.as_bytes()));
        Ok(sets)
    }

    /// Looks for the second time at some of what was set aside of a tag's set, and takes out what
    /// is no key now either. Whether there may be more.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn settle_aside(&self, set: &[u8]) -> Result<bool, CommandError> {
        match &self.redis {
            Redis::Primary(_) => {
                let mut command = SETTLE_ASIDE
                    .call(&mut Sent::default(), with_asides(set, &aside(set)).into_iter());
                command
                    .arg(lifetime::millis(self.aside_filled_for))
                    .arg(PRUNE_STEP)
                    .arg(fastrand::u32(..));
                Ok(self.call("prune", command).await? == Value::Int(1))
            }
            Redis::Cluster(cluster) => self.settle_in_cluster(cluster, set).await,
        }
    }

    /// Takes or keeps the lock of whoever looks after the tags: one worker at a time over all
    /// queues. Whether it is ours.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn lock_upkeep(&self, token: &str, ttl: Duration) -> Result<bool, CommandError> {
        let lock = side_keys::upkeep(&self.tag_prefix);
        let mut command = KEEP_LOCK.call(&mut Sent::default(), [lock.as_bytes()].into_iter());
        command.arg(token).arg(lifetime::millis(ttl));
        Ok(self.call("lock", command).await? == Value::Int(1))
    }
}

/// The keys of the scripts that set aside and look again.
fn with_asides<'k>(set: &'k [u8], asides: &'k [Vec<u8>; 4]) -> [&'k [u8]; 6] {
    let [first, second, third, fourth] = asides;
    [set, first, second, third, fourth, ASIDES]
}

/// What SCAN takes for "begins with".
fn pattern(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len() + 1);
    for c in prefix.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\' | '^') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('*');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_taken_literally() {
        assert_eq!(pattern("cache_tag:"), "cache_tag:*");
        assert_eq!(pattern("[a]*?\\"), "\\[a\\]\\*\\?\\\\*");
    }
}
