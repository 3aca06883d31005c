//! Effects of an event on the cache: the types that the registry passes to the modules after it.

use std::fmt;
use std::time::Duration;

use crate::reason::Reason;

/// One of the six verbs of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    /// Deletes the key with UNLINK.
    Delete,
    /// Deletes every key of the tag, and the tag's set.
    InvalidateTags,
    /// Adds one to a counter from which readers build keys.
    BumpVersion,
    /// Shortens the key's time to live.
    Expire,
    /// Sets the key to a value made from the event.
    Write,
    /// Deletes the key and fills it from a loader.
    Warm,
}

impl Verb {
    /// Every verb, in the order of the documentation.
    pub const ALL: [Self; 6] = [
        Self::Delete,
        Self::InvalidateTags,
        Self::BumpVersion,
        Self::Expire,
        Self::Write,
        Self::Warm,
    ];

    /// Returns the name in rule files, `plan` and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::InvalidateTags => "invalidate_tags",
            Self::BumpVersion => "bump_version",
            Self::Expire => "expire",
            Self::Write => "write",
            Self::Warm => "warm",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Identifier of a rule: its index in `Registry::rules`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(pub u32);

/// Identifier of a loader: its index in `Registry::loaders`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LoaderId(pub u32);

/// One verb on one key or tag.
///
/// The effects of an event are numbered from 0, in the order in which `plan --json` lists them.
#[derive(Debug, Clone, PartialEq)]
pub struct Effect {
    /// The rule that produced the effect.
    pub rule: RuleId,
    /// The key with its prefixes. For `invalidate_tags`, the tag's name without
    /// `UNSTALE_TAG_PREFIX`.
    pub target: String,
    /// Action on the target.
    pub action: Action,
    /// Order among the writes and deletions of the entity.
    ///
    /// Set for a versioned `write`, and for a `delete` or `warm` whose key a versioned rule may
    /// write.
    pub version: Option<Box<Version>>,
    /// Delay of the second delete of a `delete` or `invalidate_tags`, for readers without leases.
    pub again: Option<Duration>,
}

/// Action on a target.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// See [`Verb::Delete`].
    Delete,
    /// See [`Verb::InvalidateTags`].
    InvalidateTag,
    /// See [`Verb::BumpVersion`].
    BumpVersion,
    /// See [`Verb::Expire`]. Never [`Expiry::Never`].
    Expire(Expiry),
    /// See [`Verb::Write`].
    Write(Box<Write>),
    /// See [`Verb::Warm`].
    Warm(Box<Warm>),
}

impl Effect {
    /// Returns true if the effect stores a value.
    pub fn has_value(&self) -> bool {
        matches!(self.action, Action::Write(_) | Action::Warm(_))
    }

    /// Returns the deletion that replaces a `write` or `warm` whose value cannot be stored, or
    /// `None` for other verbs. Its version is just below that of the effect: the event may still
    /// write the key later, and older ones may not.
    pub fn without_value(&self) -> Option<Self> {
        if !self.has_value() {
            return None;
        }
        let version = self.version.as_deref().map(|version| {
            Box::new(Version { place: version.place.saturating_sub(1), ..version.clone() })
        });
        Some(Self {
            rule: self.rule,
            target: self.target.clone(),
            action: Action::Delete,
            version,
            again: None,
        })
    }
}

impl Action {
    /// Returns the verb of the action.
    pub const fn verb(&self) -> Verb {
        match self {
            Self::Delete => Verb::Delete,
            Self::InvalidateTag => Verb::InvalidateTags,
            Self::BumpVersion => Verb::BumpVersion,
            Self::Expire(_) => Verb::Expire,
            Self::Write(_) => Verb::Write,
            Self::Warm(_) => Verb::Warm,
        }
    }
}

/// Time to live of a value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Expiry {
    /// A random time from `[(1 - jitter) * ttl, ttl]`, drawn whenever the effect is applied.
    After {
        /// Maximum time to live.
        ttl: Duration,
        /// Part of the ttl that may be subtracted, from 0 to 1.
        jitter: f64,
    },
    /// A fixed time in milliseconds since the Unix epoch. It may be in the past.
    At(i64),
    /// `ttl: none`.
    Never,
}

/// Order of the writes of one entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The entity. Versions of different entities are not compared.
    pub family: String,
    /// Decimal digits without leading zeros. An RFC 3339 time becomes nanoseconds since the Unix
    /// epoch.
    pub digits: String,
    /// Hash of the event's id and source. Effects with equal versions and hashes come from one
    /// event, delivered twice.
    pub event: u64,
    /// Position among the event's effects, from 1. Effects of one event take effect in the order
    /// written.
    pub place: u32,
}

/// Value of a `write`, with its options.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// Value of the key, byte for byte.
    pub value: String,
    /// Time to live of the value.
    pub expiry: Expiry,
    /// Tags to which the key is added, without `UNSTALE_TAG_PREFIX`.
    pub tags: Vec<String>,
}

/// Source of a `warm`, with its options.
#[derive(Debug, Clone, PartialEq)]
pub struct Warm {
    /// The loader whose limits apply.
    pub loader: LoaderId,
    /// The URL, with percent-encoded placeholders.
    pub url: String,
    /// Time to live of the value.
    pub expiry: Expiry,
    /// Tags to which the key is added, without `UNSTALE_TAG_PREFIX`.
    pub tags: Vec<String>,
    /// Reply to readers during the load.
    pub stale: Stale,
    /// Keys that are loaded.
    pub only: Only,
}

/// Reply to readers of a key during a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stale {
    /// A miss: the key is deleted first.
    #[default]
    Drop,
    /// The old value, until the new one is stored or the load has finally failed.
    Serve,
}

/// Keys that are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Only {
    /// All keys.
    #[default]
    Always,
    /// Keys that had a value.
    Present,
}

/// Reason for which an event, or a part of it, is dead-lettered. Found without a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The reason of the first failing effect.
    pub reason: Reason,
    /// Names of paths and rules, never values of the payload.
    pub message: String,
    /// Number of effects that precede the first failing one.
    pub at: u32,
}

/// Effects of an event, according to one registry.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Resolution {
    /// The definition that matched.
    pub matched: Matched,
    /// Effects to apply, in order. Those that failed are not included.
    pub effects: Vec<Effect>,
    /// Failure of the effects that cannot be applied.
    pub failure: Option<Failure>,
    /// Number of definitions with `validate: warn` whose schema the payload violates.
    pub violations: u32,
}

/// Match of an event's type. The index in `Registry::definitions` gives metrics their `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Matched {
    /// The first matching definition. Exact names precede patterns.
    Definition(u32),
    /// A definition that retires the event.
    Retired(u32),
    /// No definition.
    #[default]
    Unknown,
}
