//! Tags on a single server: one script invalidates a tag, and one deletes a slice of a drain.

use super::super::answer::integers;
use super::super::context::Context;
use super::super::failure::CommandError;
use super::super::script::{DRAIN_SLICE, Sent};
use super::super::side_keys::{DRAINING_TAGS, Kind, detached, side_key};
use super::super::tags::{
    INVALIDATE, Invalidated, Invalidations, MEMBERS_PER_CALL, SLICE, unexpected,
    warn_of_long_members, warn_of_own_members,
};
use super::Single;

impl Single {
    /// See `Cache::invalidate_tag`.
    pub(in crate::cache) async fn invalidate_tag(
        &self,
        context: &Context,
        tag: &str,
    ) -> Result<Invalidated, CommandError> {
        let value = self
            .call_with_checkpoint(
                context,
                INVALIDATE,
                context.invalidation(&[tag], MEMBERS_PER_CALL, &mut Sent::default()),
            )
            .await?;
        let mut done = Invalidations::read(&value)?;
        if !done.own.is_empty() {
            warn_of_own_members(&context.tag_set(tag));
        }
        if !done.long.is_empty() {
            warn_of_long_members(&context.tag_set(tag));
        }
        match done.refused.pop() {
            Some((_, error)) => Err(error),
            None => Ok(Invalidated {
                existed: done.existed,
                gone: done.gone,
                draining: !done.draining.is_empty(),
            }),
        }
    }

    /// Deletes a slice of detached members. Returns the numbers of `drain_slice.lua`.
    pub(in crate::cache) async fn drain_slice(
        &self,
        context: &Context,
        set: &[u8],
        number: &[u8],
        cursor: u64,
    ) -> Result<[u64; 7], CommandError> {
        let (detached, record) = (detached(set, number), side_key(Kind::Drain, set));
        let keys = [detached.as_slice(), &record, DRAINING_TAGS];
        let mut command = DRAIN_SLICE.call(&mut Sent::default(), keys.into_iter());
        command.arg(cursor).arg(SLICE).arg(number).arg(set).arg(&context.tag_prefix);
        integers(&self.call_with_checkpoint(context, "drain", command).await?)
            .ok_or_else(unexpected)
    }
}
