//! Why an event, or a part of it, stands in the dead-letter queue.

use std::fmt;

/// The reason of a dead letter; its text is the header `unstale-reason` and the label of
/// `unstale_dead_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The message is no event: not JSON, not an object, too large, too deep.
    Malformed,
    /// The payload does not satisfy the entry's `data` schema.
    InvalidData,
    /// A template, an expression or a version had no usable value.
    Unresolvable,
    /// No entry of the registry knows the event, after the whole ladder.
    UnknownEvent,
    /// Every rung of the retry ladder was climbed.
    AttemptsExhausted,
    /// The loader's answer will not change by asking again.
    LoaderRefused,
    /// More targets than the limit.
    BlastRadius,
    /// Redis refuses this one command for good.
    RedisRefused,
    /// The broker's: the message outlived its time in a queue of ours.
    Expired,
    /// The broker's: redelivered too often.
    DeliveryLimit,
    /// Decoding or resolving the event panicked.
    Panicked,
}

impl Reason {
    /// Every reason, in the order of the documentation.
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

    /// The name in headers, labels and `expect_error`.
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

    /// The reason of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Returns the rule that an error of an event names first: `user.yaml#user.updated/0`, or the event
/// definition where it is about all of it.
pub fn rule_of(error: &str) -> Option<&str> {
    let (rule, _) = error.split_once(": ")?;
    let (file, _) = rule.split_once('#')?;
    [".yaml", ".yml", ".json"].iter().any(|extension| file.ends_with(extension)).then_some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_is_what_an_error_begins_with() {
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
