//! Fences: beside each key that a versioned rule may write, the highest version of each entity that was written to it or deleted from it.

use redis::Cmd;

use super::script::{RAISE_FENCES, Sent, WRITE_FENCED};
use super::side_keys::fence;
use crate::plan::Mark;

/// Fences raised by one call: some hundred microseconds of Redis' time.
pub(super) const FENCES_PER_CALL: usize = 200;

/// Raises the fences of keys that are to be deleted.
pub(super) fn raise(fences: &[(&str, Mark<'_>)], ttl_ms: i64, sent: &mut Sent) -> Cmd {
    let names: Vec<Vec<u8>> = fences.iter().map(|(key, mark)| fence(key.as_bytes(), &mark.version.family)).collect();
    let mut command = RAISE_FENCES.call(sent, names.iter().map(Vec::as_slice));
    command.arg(ttl_ms);
    for (_, mark) in fences {
        command.arg(text(mark));
    }
    command
}

/// Sets a key and adds it to its tags' sets where the fence lets it. The value and its lifetime are for the caller to add, then [`end`].
pub(super) fn begin_write(key: &str, mark: &Mark<'_>, sets: &[String], sent: &mut Sent) -> Cmd {
    let fence = fence(key.as_bytes(), &mark.version.family);
    let keys: Vec<&[u8]> = [key.as_bytes(), &fence].into_iter().chain(sets.iter().map(String::as_bytes)).collect();
    WRITE_FENCED.call(sent, keys.into_iter())
}

/// What the arguments of a fenced write end with.
pub(super) fn end(command: &mut Cmd, mark: &Mark<'_>, ttl_ms: i64) {
    command.arg(text(mark)).arg(ttl_ms);
}

/// As `fence.lua` reads it.
fn text(Mark { version, tied }: &Mark<'_>) -> String {
    if *tied { format!("{}::", version.digits) } else { format!("{}:{:016x}:{}", version.digits, version.event, version.place) }
}
