//! Effects at which Redis closes the connection, since a value exceeds a limit of Redis or of a
//! proxy.
//!
//! Ever smaller parts of a batch are applied alone, until one effect is left. It becomes a dead
//! letter. Its key must not keep an older value, so it is deleted.

pub(super) mod given_up;

use super::intake::Request;
use crate::registry::{Action, Effect};

/// Number of lost connections after which a part of a batch is applied in smaller parts. After as
/// many in a row at one effect that is applied alone, it is given up. A failed probe in between
/// starts the count anew: then the server was away.
const LOST_CONNECTIONS_MAX: u32 = 3;

/// The same number for an effect without a value. It is hardly the cause, since names are short.
/// Another lane may close the connection that both share, until its own effect is found.
const LOST_WITHOUT_VALUE_MAX: u32 = 4 * LOST_CONNECTIONS_MAX;

/// A part of a batch that is applied alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Index of the event in the batch.
    pub(super) event: usize,
    /// Position of the effect; `None` for all effects of the event.
    pub(super) position: Option<u32>,
}

/// The connections that a batch has lost, without a failed probe in between.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LostConnections {
    by_batch: u32,
    /// The part at which the last one was lost, and how many it has lost in a row.
    by_part: Option<(Part, u32)>,
}

impl LostConnections {
    /// Notes that the batch lost a connection.
    pub(super) fn add(&mut self) {
        self.by_batch += 1;
    }

    /// Returns true if the batch must be applied in parts.
    pub(super) fn is_suspicious(self) -> bool {
        self.by_batch >= LOST_CONNECTIONS_MAX
    }

    /// Notes that a part of the batch lost a connection. Returns true if it has lost that many in a
    /// row, so that it is the cause.
    pub(super) fn is_caused_by(&mut self, part: Part, lost_max: u32) -> bool {
        let times = match self.by_part {
            Some((before, times)) if before == part => times + 1,
            _ => 1,
        };
        self.by_part = (times < lost_max).then_some((part, times));
        self.by_part.is_none()
    }
}

impl Request {
    /// Returns how many connections this part of the event loses in a row if it is the cause.
    pub(super) fn lost_connections_max(&self, position: Option<u32>) -> u32 {
        let position = position.or_else(|| self.only_effect());
        let effect = position.and_then(|position| self.resolution.effects.get(position as usize));
        match effect {
            Some(effect) if !effect.has_value() => LOST_WITHOUT_VALUE_MAX,
            _ => LOST_CONNECTIONS_MAX,
        }
    }

    /// Returns the position of the effect that is asked for, if it is the only one.
    fn only_effect(&self) -> Option<u32> {
        let mut asked = (0..)
            .zip(&self.resolution.effects)
            .map(|(position, _)| position)
            .filter(|position| self.asks_for(*position));
        asked.next().filter(|_| asked.next().is_none())
    }

    /// Notes that Redis closes the connection at this part of the event. Returns the size of the
    /// effect's command if that gives an effect up.
    pub(super) fn closes_at(&mut self, position: Option<u32>) -> Option<usize> {
        self.closers.get_or_insert_default();
        let position = position.or_else(|| self.only_effect())?;
        let effect = self.resolution.effects.get_mut(position as usize)?;
        let bytes = command_bytes(effect);
        let deletion = effect.without_value();
        let is_left_out = deletion.is_none();
        if let Some(deletion) = deletion {
            *effect = deletion;
        }
        Some(self.closers.get_or_insert_default().give_up(position, bytes, is_left_out))
    }
}

fn command_bytes(effect: &Effect) -> usize {
    match &effect.action {
        Action::Write(write) => effect.target.len() + write.value.len(),
        _ => effect.target.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::EffectOutcome;
    use crate::registry::{Expiry, RuleId, Version, Write};

    fn write(target: &str) -> Effect {
        let write = Write { value: "12345".into(), expiry: Expiry::Never, tags: Vec::new() };
        let action = Action::Write(Box::new(write));
        Effect { rule: RuleId(0), target: target.into(), action, version: None, again: None }
    }

    fn delete(target: &str) -> Effect {
        Effect { action: Action::Delete, ..write(target) }
    }

    fn request(effects: Vec<Effect>) -> Request {
        let mut request = Request::default();
        request.resolution.effects = effects;
        request
    }

    #[test]
    fn only_three_losses_in_a_row_at_one_part_are_its_fault() {
        let part = |event, position| Part { event, position };
        let mut lost = LostConnections::default();
        assert!(!lost.is_caused_by(part(0, None), 3));
        assert!(!lost.is_caused_by(part(0, None), 3));
        assert!(!lost.is_caused_by(part(0, Some(1)), 3), "another part");
        assert!(!lost.is_caused_by(part(0, None), 3));
        assert!(!lost.is_caused_by(part(0, None), 3));
        assert!(lost.is_caused_by(part(0, None), 3));
        assert!(!lost.is_caused_by(part(0, None), 3), "the count begins anew");
    }

    #[test]
    fn the_write_of_an_event_becomes_a_delete_and_then_nothing() {
        let mut request = request(vec![write("k")]);
        assert_eq!(request.closes_at(None), Some(6));
        assert_eq!(request.resolution.effects, [delete("k")]);
        let closers = request.closers.as_ref().unwrap();
        assert!(!closers.leaves_out(0));
        assert_eq!(request.closes_at(Some(0)), Some(6), "the size of the write, not of the delete");
        assert!(request.closers.unwrap().leaves_out(0));
    }

    #[test]
    fn the_delete_in_place_of_a_write_permits_the_write_later() {
        let version = Version { family: "f".into(), digits: "5".into(), event: 1, place: 2 };
        let effect = Effect { version: Some(Box::new(version.clone())), ..write("k") };
        let deletion = effect.without_value().unwrap();
        assert_eq!(deletion.version.as_deref(), Some(&Version { place: 1, ..version }));
    }

    #[test]
    fn the_effects_of_one_event_are_kept_apart() {
        let mut request = request(vec![delete("a"), write("b")]);
        assert_eq!(request.closes_at(None), None, "first all are applied one by one");
        assert_eq!(request.closes_at(Some(1)), Some(6));
        assert_eq!(request.resolution.effects, [delete("a"), delete("b")]);
        let closers = request.closers.unwrap();
        let retry =
            EffectOutcome::NotTried { message: "full".into(), after: std::time::Duration::ZERO };
        let mut not_deleted = vec![(1, retry.clone())];
        closers.add_outcomes(&mut not_deleted, |_, outcome| outcome);
        assert_eq!(not_deleted, [(1, retry)], "the old value stays, so the event is tried again");
        let mut rest = vec![(0, EffectOutcome::Slow), (1, EffectOutcome::Slow)];
        closers.add_outcomes(&mut rest, |_, outcome| outcome);
        assert_eq!(rest[0], (0, EffectOutcome::Slow));
        assert!(
            matches!(&rest[1], (1, EffectOutcome::Dead { message, .. }) if message.contains("deleted instead"))
        );
    }

    #[test]
    fn an_effect_without_a_value_is_hardly_the_cause() {
        let request = request(vec![delete("a"), write("b")]);
        assert_eq!(request.lost_connections_max(Some(0)), LOST_WITHOUT_VALUE_MAX);
        assert_eq!(request.lost_connections_max(Some(1)), LOST_CONNECTIONS_MAX);
        assert_eq!(request.lost_connections_max(None), LOST_CONNECTIONS_MAX, "it is only split");
    }

    #[test]
    fn an_event_that_asks_for_one_effect_is_not_split() {
        let mut request = request(vec![delete("a"), write("b")]);
        request.only = Some(vec![1]);
        assert_eq!(request.closes_at(None), Some(6));
        assert_eq!(request.resolution.effects[1], delete("b"));
    }
}
