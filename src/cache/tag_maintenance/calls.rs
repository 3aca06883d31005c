//! The calls of tag maintenance, and its lock.

use std::time::Duration;

use redis::Value;

use super::super::aside::Asides;
use super::super::failure::CommandError;
use super::super::script::{KEEP_LOCK, Sent};
use super::super::side_keys::ASIDES;
use super::super::{Cache, lifetime, side_keys};
use super::{CURSOR_BITS, SCAN_STEP, TagSets, TagSlice};

/// Part of a scan position that is the server's own cursor.
const CURSOR: u64 = (1 << CURSOR_BITS) - 1;

impl Cache {
    /// Returns the next of the tags' sets, whichever application made them. There is no list of
    /// them, so this scans all keys, about [`SCAN_STEP`] at a time.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn tag_sets(&self, cursor: u64) -> Result<TagSets, CommandError> {
        let mut command = redis::cmd("SCAN");
        command
            .arg(cursor & CURSOR)
            .arg("MATCH")
            .arg(pattern(&self.context.tag_prefix))
            .arg("COUNT")
            .arg(SCAN_STEP)
            .arg("TYPE")
            .arg("set");
        self.backend.tag_sets(command, cursor).await
    }

    /// Sets aside, or only counts, the dead members in a slice of a tag's set: see
    /// [`asides`](Self::asides).
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn maintain_slice(
        &self,
        set: &[u8],
        cursor: u64,
        only_count: bool,
    ) -> Result<TagSlice, CommandError> {
        self.backend.maintain_slice(&self.context, set, cursor, only_count).await
    }

    /// Returns an empty schedule of second looks.
    pub fn asides(&self) -> Asides {
        Asides::new(self.context.aside_filled_for)
    }

    /// Returns whether Redis lists the tags' sets with members set aside. If not, the caller that
    /// sets members aside must remember the sets: see [`asides`](Self::asides).
    pub fn lists_members_aside(&self) -> bool {
        self.backend.lists_members_aside()
    }

    /// Returns the tags' sets under our prefix with members set aside, by any worker. The result is
    /// empty if Redis has no list of them.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn sets_with_members_aside(&self) -> Result<Vec<Vec<u8>>, CommandError> {
        if !self.lists_members_aside() {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("SMEMBERS");
        command.arg(ASIDES);
        let mut sets = self.texts("SMEMBERS", command).await?;
        sets.retain(|set| set.starts_with(self.context.tag_prefix.as_bytes()));
        Ok(sets)
    }

    /// Takes the second look at some members that are set aside, and drops those that are still
    /// dead. Returns whether more may be due.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn take_second_look(&self, set: &[u8]) -> Result<bool, CommandError> {
        self.backend.take_second_look(&self.context, set).await
    }

    /// Takes or keeps the lock for tag maintenance, which one worker holds at a time over all
    /// queues. Returns whether it is ours.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn lock_tag_maintenance(
        &self,
        token: &str,
        ttl: Duration,
    ) -> Result<bool, CommandError> {
        let lock = side_keys::tag_maintenance_lock(&self.context.tag_prefix);
        let mut command = KEEP_LOCK.call(&mut Sent::default(), [lock.as_bytes()].into_iter());
        command.arg(token).arg(lifetime::millis(ttl));
        Ok(self.call("lock", command).await? == Value::Int(1))
    }
}

/// Returns SCAN's pattern for keys that begin with `prefix`.
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
    fn a_prefix_is_escaped_for_scan() {
        assert_eq!(pattern("cache_tag:"), "cache_tag:*");
        assert_eq!(pattern("[a]*?\\"), "\\[a\\]\\*\\?\\\\*");
    }
}
