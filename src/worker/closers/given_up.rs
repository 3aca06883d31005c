//! The effects of one event that are given up, since Redis closes the connection at them.

use std::collections::BTreeMap;

use crate::plan::EffectOutcome;
use crate::reason::Reason;

/// The effects of one event at which Redis closes the connection, as far as they are known. All
/// effects of the event are applied one by one.
#[derive(Debug, Default)]
pub(in crate::worker) struct Closers {
    given_up: BTreeMap<u32, GivenUp>,
}

#[derive(Debug)]
struct GivenUp {
    bytes: usize,
    /// True if not even a deletion takes its place.
    is_left_out: bool,
}

impl Closers {
    /// Gives up the effect at that position. `bytes` is the size of its command, and
    /// `is_left_out` is true if not even a deletion takes its place. Returns the size when it was
    /// given up first.
    pub(super) fn give_up(&mut self, position: u32, bytes: usize, is_left_out: bool) -> usize {
        let given_up = self.given_up.entry(position).or_insert(GivenUp { bytes, is_left_out });
        given_up.is_left_out = is_left_out;
        given_up.bytes
    }

    /// Returns true if nothing is applied for the effect at that position.
    pub(in crate::worker) fn leaves_out(&self, position: u32) -> bool {
        self.given_up.get(&position).is_some_and(|given_up| given_up.is_left_out)
    }

    /// Replaces the outcomes of the effects that were given up, and sorts all by position. `named`
    /// adds the name of the effect's rule to a message.
    pub(in crate::worker) fn add_outcomes(
        &self,
        rest: &mut Vec<(u32, EffectOutcome)>,
        named: impl Fn(u32, EffectOutcome) -> EffectOutcome,
    ) {
        for (position, given_up) in &self.given_up {
            // The deletion in its place has failed, or is tried again with the whole effect.
            if rest.iter().any(|(other, outcome)| {
                other == position && !matches!(outcome, EffectOutcome::Slow)
            }) {
                continue;
            }
            rest.retain(|(other, _)| other != position);
            rest.push((*position, named(*position, given_up.outcome())));
        }
        rest.sort_unstable_by_key(|(position, _)| *position);
    }
}

impl GivenUp {
    fn outcome(&self) -> EffectOutcome {
        let Self { bytes, is_left_out } = self;
        let instead = if *is_left_out { "" } else { "; the key is deleted instead" };
        let message = format!(
            "applied alone, the effect loses the connection to Redis each time: its command has {bytes} bytes, without a loaded value; \
             compare with `proto-max-bulk-len` and `client-query-buffer-limit` of Redis, and with the limits of a proxy{instead}"
        );
        EffectOutcome::Dead { reason: Reason::RedisRefused, message, may_be_permitted: false }
    }
}
