//! Reasons for which an event, or a part of it, becomes a dead letter.

use std::fmt;

/// Reason of a dead letter. Its name is the header `unstale-reason` and the label of
/// `unstale_dead_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The message is not an event: not JSON, not an object, too large, or too deep.
    Malformed,
    /// The payload violates the `data` schema of the event definition.
    InvalidData,
    /// A template, an expression or a version had no usable value.
    Unresolvable,
    /// No event definition matches the event, after all retry steps.
    UnknownEvent,
    /// The event failed in every retry step.
    AttemptsExhausted,
    /// The loader's answer will not change in another attempt.
    LoaderRefused,
    /// The event has more targets than the limit.
    BlastRadius,
    /// Redis refuses this command permanently.
    RedisRefused,
    /// Set by the broker: the message expired in one of our queues.
    Expired,
    /// Set by the broker: the message was redelivered too often.
    DeliveryLimit,
    /// Decoding or resolving the event panicked.
    Panicked,
}

impl Reason {
    /// All reasons, in the order of the documentation.
    pub const ALL: [Self; 11] = [
        Self::Malformed,
        Self::InvalidData,
        Self::Unresolvable,
        Self::UnknownEvent,
        Self::AttemptsExhausted,
        Self::LoaderRefused,
        Self::BlastRadius,
        Self::RedisRefused,
        Self::Expired,
        Self::DeliveryLimit,
        Self::Panicked,
    ];

    /// Returns the name in headers, labels and `expect_error`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::InvalidData => "invalid_data",
            Self::Unresolvable => "unresolvable",
            Self::UnknownEvent => "unknown_event",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::LoaderRefused => "loader_refused",
            Self::BlastRadius => "blast_radius",
            Self::RedisRefused => "redis_refused",
            Self::Expired => "expired",
            Self::DeliveryLimit => "delivery_limit",
            Self::Panicked => "panicked",
        }
    }

    /// Returns the reason of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Returns the rule at the beginning of an event's error, such as `user.yaml#user.updated/0`. For
/// an error of the whole event it is the event definition.
pub fn rule_of(error: &str) -> Option<&str> {
    let (rule, _) = error.split_once(": ")?;
    let (file, _) = rule.split_once('#')?;
    [".yaml", ".yml", ".json"].iter().any(|extension| file.ends_with(extension)).then_some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_begins_with_its_rule() {
        for (error, rule) in [
            ("user.yaml#user.updated/0: no value", Some("user.yaml#user.updated/0")),
            (
                "team/a b.json#order.*: the payload violates `/required`",
                Some("team/a b.json#order.*"),
            ),
            ("the loader answered 404", None),
            ("not JSON: expected `,` at #3", None),
            ("a#b: c", None),
            ("user.yaml#user.updated/0", None),
        ] {
            assert_eq!(rule_of(error), rule, "{error}");
        }
    }
}
