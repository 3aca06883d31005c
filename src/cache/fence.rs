//! Fences: beside each key that a versioned rule may write, the highest version of each entity. It
//! counts whether that version wrote the key or deleted it.

use redis::Cmd;

use super::script::{DELETE_FENCED, RAISE_FENCE, Sent, WRITE_FENCED};
use super::side_keys::fence;
use crate::plan::FenceVersion;
use crate::registry::Version;

/// Maximum number of keys in one call: some hundred microseconds of Redis' time.
pub(super) const KEYS_PER_CALL: usize = 200;

/// Deletes keys, and raises their fences.
pub(super) fn delete(deletions: &[(&str, FenceVersion<'_>)], ttl_ms: i64, sent: &mut Sent) -> Cmd {
    let mut keys: Vec<Vec<u8>> = deletions.iter().map(|(key, _)| key.as_bytes().to_vec()).collect();
    keys.extend(deletions.iter().map(|(key, mark)| fence(key.as_bytes(), &mark.version.family)));
    let mut command = DELETE_FENCED.call(sent, keys.iter().map(Vec::as_slice));
    command.arg(ttl_ms);
    for (_, mark) in deletions {
        command.arg(text(mark));
    }
    command
}

/// Deletes a key that could not be written at a version. Its fence rises to just below that
/// version: a retry may still write the key, and older events may not.
pub(super) fn delete_below(
    key: &str,
    mark: &FenceVersion<'_>,
    ttl_ms: i64,
    sent: &mut Sent,
) -> Cmd {
    let version = Version { place: mark.version.place.saturating_sub(1), ..mark.version.clone() };
    delete(&[(key, FenceVersion { version: &version, tied: mark.tied })], ttl_ms, sent)
}

/// Raises the fence of a key that keeps its value for now.
pub(super) fn raise(key: &str, mark: &FenceVersion<'_>, ttl_ms: i64, sent: &mut Sent) -> Cmd {
    let mut command = RAISE_FENCE
        .call(sent, [fence(key.as_bytes(), &mark.version.family).as_slice()].into_iter());
    command.arg(ttl_ms).arg(text(mark));
    command
}

/// Begins a call that sets a key and adds it to its tags' sets if the fence permits. The caller
/// adds the value and its lifetime, then calls [`end`].
pub(super) fn begin_write(
    key: &str,
    mark: &FenceVersion<'_>,
    sets: &[String],
    sent: &mut Sent,
) -> Cmd {
    let fence = fence(key.as_bytes(), &mark.version.family);
    let keys: Vec<&[u8]> =
        [key.as_bytes(), &fence].into_iter().chain(sets.iter().map(String::as_bytes)).collect();
    WRITE_FENCED.call(sent, keys.into_iter())
}

/// Adds the last arguments of a fenced write. If its tags' sets are in other slots, a repeated
/// write deletes the key: it may have been outside the sets for a while.
pub(super) fn end(
    command: &mut Cmd,
    mark: &FenceVersion<'_>,
    ttl_ms: i64,
    sets_are_elsewhere: bool,
) {
    command.arg(text(mark)).arg(ttl_ms).arg(u8::from(sets_are_elsewhere));
}

/// Returns the text that `fence.lua` reads.
fn text(FenceVersion { version, tied }: &FenceVersion<'_>) -> String {
    if *tied {
        format!("{}::", version.digits)
    } else {
        format!("{}:{:016x}:{}", version.digits, version.event, version.place)
    }
}
