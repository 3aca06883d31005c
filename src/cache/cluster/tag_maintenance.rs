//! Tag maintenance in a cluster. Checking a key and removing it from a set are two steps here, and
//! the key may be set between them.
//!
//! So the second look at members set aside ([`aside`](super::super::aside)) is needed even where a
//! key joins its tag's set in one step with its value. By the second look, a reader's fill still
//! has its lease or will be refused. A plan's write is long done, and its key joins the set once
//! more afterwards.

use redis::{Cmd, Pipeline, Value};

use super::super::address::Address;
use super::super::answer::slice;
use super::super::context::Context;
use super::super::failure::{self, CommandError, Outage};
use super::super::lifetime;
use super::super::script::{COME_BACK, LOOK_ASIDE, SET_ASIDE, Sent};
use super::super::side_keys::{Kind, aside, side_key};
use super::super::slot;
use super::super::tag_maintenance::{CURSOR_BITS, SCAN_STEP, TagSets, TagSlice};
use super::super::tags::unexpected;
use super::Cluster;
use super::nodes::Node;

impl Cluster {
    /// The list would be in one slot, and a set in another.
    pub(in crate::cache) fn lists_members_aside(&self) -> bool {
        false
    }

    /// See `Cache::tag_sets`. Scans one primary after another.
    pub(in crate::cache) async fn tag_sets(
        &self,
        scan: Cmd,
        cursor: u64,
    ) -> Result<TagSets, CommandError> {
        let nodes = self.connection.live()?;
        let primaries = nodes.read(|nodes, owners| {
            let mut places: Vec<u16> = owners.to_vec();
            places.sort_unstable();
            places.dedup();
            let mut primaries: Vec<_> =
                places.iter().filter_map(|place| nodes.get(usize::from(*place))).cloned().collect();
            primaries.sort_by_key(|node| order(&node.address));
            primaries
        });
        let place = cursor >> CURSOR_BITS;
        let Some(node) = usize::try_from(place).ok().and_then(|place| primaries.get(place)) else {
            return Ok(TagSets { next: 0, sets: Vec::new() });
        };
        let answer = failure::of_answer(
            "SCAN",
            Some(ask(node, scan).await.inspect_err(|outage| self.give_up(outage))?),
        )?;
        let (next, sets) = slice(answer).ok_or_else(unexpected)?;
        let next = match next {
            0 if place + 1 < primaries.len() as u64 => (place + 1) << CURSOR_BITS,
            0 => 0,
            next => place << CURSOR_BITS | next,
        };
        Ok(TagSets { next, sets })
    }

    /// See `Cache::maintain_slice`. Dead members are set aside.
    pub(in crate::cache) async fn maintain_slice(
        &self,
        context: &Context,
        set: &[u8],
        cursor: u64,
        only_count: bool,
    ) -> Result<TagSlice, CommandError> {
        let (next, members) = self.scan_members(set, cursor, SCAN_STEP).await?;
        let looked = members.len() as u64;
        let (_, gone) = self.there_and_gone(members).await?;
        if !only_count && !gone.is_empty() {
            let keys = aside(set);
            let [first, second, third, fourth] = &keys;
            let mut command =
                SET_ASIDE.call(&mut Sent::all(), [set, first, second, third, fourth].into_iter());
            command.arg(lifetime::millis(context.aside_filled_for)).arg(&gone);
            self.call("maintenance", command).await?;
        }
        Ok(TagSlice { next, looked, gone: gone.len() as u64 })
    }

    /// See `Cache::take_second_look`.
    pub(in crate::cache) async fn take_second_look(
        &self,
        context: &Context,
        set: &[u8],
    ) -> Result<bool, CommandError> {
        let keys = aside(set);
        let mut look = LOOK_ASIDE.call(&mut Sent::all(), keys.iter().map(Vec::as_slice));
        look.arg(lifetime::millis(context.aside_filled_for)).arg(SCAN_STEP).arg(fastrand::u32(..));
        let Value::Array(found) = self.call("maintenance", look).await? else {
            return Err(unexpected());
        };
        let [Value::Int(place), members @ ..] = found.as_slice() else { return Ok(false) };
        let filled = usize::try_from(*place)
            .ok()
            .and_then(|place| keys.get(place))
            .ok_or_else(unexpected)?;
        let members = members.iter().filter_map(|member| {
            if let Value::BulkString(key) = member { Some(key.clone()) } else { None }
        });
        let (there, gone) = self.there_and_gone(members.collect()).await?;
        let mut command = COME_BACK.call(&mut Sent::all(), [filled.as_slice(), set].into_iter());
        command.arg(there.len()).arg(gone.len()).arg(&there).arg(&gone);
        self.call("maintenance", command).await?;
        Ok(true)
    }

    /// Splits members into those to keep and those that are gone. A member stays if its key or
    /// lease exists, or if we may not ask.
    async fn there_and_gone(
        &self,
        members: Vec<Vec<u8>>,
    ) -> Result<(Vec<Vec<u8>>, Vec<Vec<u8>>), CommandError> {
        let exists = |member: &Vec<u8>| {
            let mut command = redis::cmd("EXISTS");
            command.arg(member);
            if slot::has_side_keys(member) {
                command.arg(side_key(Kind::Lease, member));
            }
            command
        };
        let answers = self.run_alone(&members.iter().map(exists).collect::<Vec<_>>()).await?;
        let (mut there, mut gone) = (Vec::new(), Vec::new());
        for (member, answer) in members.into_iter().zip(answers) {
            if let Err(CommandError::Outage(outage)) =
                failure::of_answer("EXISTS", Some(answer.clone()))
            {
                self.give_up(&outage);
                return Err(outage.into());
            }
            if answer == Value::Int(0) { gone.push(member) } else { there.push(member) }
        }
        Ok((there, gone))
    }
}

/// Returns a sort key that keeps the order of primaries the same in all looks.
fn order(address: &Address) -> (String, u16) {
    (address.host.clone(), address.port)
}

async fn ask(node: &Node, command: Cmd) -> Result<Value, Outage> {
    let mut pipeline = Pipeline::with_capacity(1);
    pipeline.add_command(command);
    Ok(node.socket.send(&pipeline).await?.pop().unwrap_or(Value::Nil))
}
