//! Tag maintenance on a single server: one script looks at a slice of a set, and one takes the
//! second look.

use redis::{Cmd, Value};

use super::super::answer::{integers, slice};
use super::super::context::Context;
use super::super::failure::CommandError;
use super::super::lifetime;
use super::super::script::{MAINTAIN_SLICE, Sent, TAKE_SECOND_LOOK};
use super::super::side_keys::{ASIDES, aside};
use super::super::tag_maintenance::{SCAN_STEP, TagSets, TagSlice};
use super::super::tags::unexpected;
use super::Single;

impl Single {
    pub(in crate::cache) fn lists_members_aside(&self) -> bool {
        true
    }

    /// See `Cache::tag_sets`. The position is the server's own cursor.
    pub(in crate::cache) async fn tag_sets(
        &self,
        scan: Cmd,
        _cursor: u64,
    ) -> Result<TagSets, CommandError> {
        let (next, sets) = slice(self.call("SCAN", scan).await?).ok_or_else(unexpected)?;
        Ok(TagSets { next, sets })
    }

    /// See `Cache::maintain_slice`.
    pub(in crate::cache) async fn maintain_slice(
        &self,
        context: &Context,
        set: &[u8],
        cursor: u64,
        only_count: bool,
    ) -> Result<TagSlice, CommandError> {
        let mut command =
            MAINTAIN_SLICE.call(&mut Sent::default(), with_asides(set, &aside(set)).into_iter());
        command
            .arg(cursor)
            .arg(SCAN_STEP)
            .arg(u8::from(!only_count))
            .arg(lifetime::millis(context.aside_filled_for));
        let [next, looked, gone] =
            integers(&self.call("maintenance", command).await?).ok_or_else(unexpected)?;
        Ok(TagSlice { next, looked, gone })
    }

    /// See `Cache::take_second_look`.
    pub(in crate::cache) async fn take_second_look(
        &self,
        context: &Context,
        set: &[u8],
    ) -> Result<bool, CommandError> {
        let mut command =
            TAKE_SECOND_LOOK.call(&mut Sent::default(), with_asides(set, &aside(set)).into_iter());
        command
            .arg(lifetime::millis(context.aside_filled_for))
            .arg(SCAN_STEP)
            .arg(fastrand::u32(..));
        Ok(self.call("maintenance", command).await? == Value::Int(1))
    }
}

/// Returns the keys of the scripts for members set aside.
fn with_asides<'k>(set: &'k [u8], asides: &'k [Vec<u8>; 4]) -> [&'k [u8]; 6] {
    let [first, second, third, fourth] = asides;
    [set, first, second, third, fourth, ASIDES]
}
