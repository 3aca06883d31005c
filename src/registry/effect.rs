//! What an event does to the cache: the language between the registry and everything behind it.

use std::fmt;
use std::time::Duration;

use crate::reason::Reason;

/// One of the six verbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    /// UNLINK the key.
    Delete,
    /// Delete every key of the tag, and the tag's set.
    InvalidateTags,
    /// Add one to a counter that readers build keys from.
    BumpVersion,
    /// Shorten the key's time to live.
    Expire,
    /// Set the key to a value made from the event.
    Write,
    /// Delete the key and fill it from a loader.
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

    /// The name in schema files, `plan` and metrics.
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

/// A rule of one registry: its place in `Registry::rules`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(pub u32);

/// A loader of one registry: its place in `Registry::loaders`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LoaderId(pub u32);

/// One verb on one key or tag. An event's effects are numbered from 0 in the order in which `plan
/// --json` lists them.
#[derive(Debug, Clone, PartialEq)]
pub struct Effect {
    /// The rule it came from.
    pub rule: RuleId,
    /// The whole key, prefixes included; for `invalidate_tags` the tag's name without
    /// `UNSTALE_TAG_PREFIX`.
    pub target: String,
    /// What to do with it.
    pub action: Action,
    /// Its place among the writes and deletions of its entity: of a versioned `write`, and of a
    /// `delete` or `warm` whose key some versioned rule may write.
    pub version: Option<Box<Version>>,
    /// Of a `delete` or `invalidate_tags`: once more after so long, for readers that take no part.
    pub again: Option<Duration>,
}

/// What to do with a target.
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

impl Action {
    /// The verb it belongs to.
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

/// How long a value may live.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Expiry {
    /// Drawn anew from `[(1 - jitter) * ttl, ttl]` whenever it is applied.
    After {
        /// The longest.
        ttl: Duration,
        /// 0 to 1.
        jitter: f64,
    },
    /// At that moment exactly: milliseconds since the Unix epoch, the past included.
    At(i64),
    /// `ttl: none`.
    Never,
}

/// What orders the writes of one entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The entity that the version orders: those of other families are not compared.
    pub family: String,
    /// Decimal digits without leading zeros; RFC 3339 times are nanoseconds since the Unix epoch.
    pub digits: String,
    /// A hash of the event's id and source: of equal versions, those of one event are one event
    /// come again.
    pub event: u64,
    /// The place among the event's effects, from 1: effects of one event take hold in the order
    /// written.
    pub place: u32,
}

/// A `write`'s value and what goes with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// What the key is set to, byte for byte.
    pub value: String,
    /// For how long.
    pub expiry: Expiry,
    /// The tags the key is added to, without `UNSTALE_TAG_PREFIX`.
    pub tags: Vec<String>,
}

/// Where a `warm` loads from, and what goes with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Warm {
    /// The loader that limits it.
    pub loader: LoaderId,
    /// The whole URL, placeholders percent-encoded.
    pub url: String,
    /// For how long the value may live.
    pub expiry: Expiry,
    /// The tags the key is added to, without `UNSTALE_TAG_PREFIX`.
    pub tags: Vec<String>,
    /// What readers get meanwhile.
    pub stale: Stale,
    /// Which keys are loaded.
    pub only: Only,
}

/// What readers of a key get while it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stale {
    /// A miss: the key is deleted first.
    #[default]
    Drop,
    /// The old value, until the new one is there or loading has failed for good.
    Serve,
}

/// Which keys are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Only {
    /// All.
    #[default]
    Always,
    /// Those that had a value.
    Present,
}

/// Why an event, or a part of it, would be dead-lettered, found without asking a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The reason of the first failing effect.
    pub reason: Reason,
    /// Paths and rules, never payload values.
    pub message: String,
    /// How many effects of the resolution stand before the first failing one.
    pub at: u32,
}

/// What an event does, as today's registry has it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Resolution {
    /// Who knows the event.
    pub matched: Matched,
    /// What to apply, in order; what failed is not among them.
    pub effects: Vec<Effect>,
    /// What cannot be applied, if anything.
    pub failure: Option<Failure>,
    /// How many entries with `validate: warn` the payload violates.
    pub violations: u32,
}

/// Who knows an event. The entry's place in `Registry::entries` gives metrics their `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Matched {
    /// At least one entry; the first of them, exact names before patterns.
    Entry(u32),
    /// An entry that says the event is retired.
    Retired(u32),
    /// None.
    #[default]
    Unknown,
}
