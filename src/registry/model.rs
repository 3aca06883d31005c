//! The compiled registry: what the files say, ready to resolve events with.

use std::time::Duration;

use super::data_schema::DataSchema;
use super::effect::{LoaderId, Only, RuleId, Stale, Verb};
use super::expression::Expression;
use super::key_shape::KeyShape;
use super::template::Template;
use super::url_template::UrlTemplate;
use super::value_template::ValueTemplate;
use crate::quantity::Rate;

/// Every rule of a directory of rule files.
///
/// ```
/// use unstale::event::Event;
/// use unstale::registry::{Action, LoadOptions, MissingVars, Registry};
///
/// let folder = tempfile::tempdir()?;
/// std::fs::write(
///     folder.path().join("user.yaml"),
///     r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#,
/// )?;
/// let options = LoadOptions {
///     schemas: folder.path().to_owned(),
///     key_prefix: "shop:".to_owned(),
///     tag_prefix: "cache_tag:".to_owned(),
///     vars: Default::default(),
///     max_keys_per_event: 10_000,
///     missing_vars: MissingVars::Refuse,
/// };
/// let registry = Registry::load(&options)?.registry;
/// assert_eq!(registry.routing_keys(), ["user.updated"]);
///
/// let event = Event {
///     event_type: "user.updated".into(),
///     data_text: r#"{"id":42}"#.into(),
///     ..Event::default()
/// };
/// let resolution = registry.resolve(&event);
/// assert_eq!(resolution.effects[0].target, "shop:user:42");
/// assert_eq!(resolution.effects[0].action, Action::Delete);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Registry {
    /// SHA-256 in hex over every file's path and bytes, this build's version and the variables: two
    /// workers with the same digest decide alike.
    pub digest: String,
    /// Exact names first, then patterns, each in byte order of name and file: the order in which
    /// effects add up.
    pub entries: Vec<Entry>,
    /// The entries of an exact name, in order.
    pub by_name: foldhash::HashMap<String, Vec<u32>>,
    /// The entries of patterns, in order.
    pub patterns: Vec<(Pattern, u32)>,
    /// The name of each rule, by [`RuleId`].
    pub rules: Vec<RuleName>,
    /// By [`LoaderId`].
    pub loaders: Vec<Loader>,
    /// What to bind, without duplicates, in byte order; retired entries bind nothing.
    pub routing_keys: Vec<String>,
    /// Routing keys that are bound for events of other types: the tables of Debezium.
    pub tables: Vec<Pattern>,
    /// `UNSTALE_MAX_KEYS_PER_EVENT`
    pub max_keys_per_event: usize,
    /// `UNSTALE_TAG_PREFIX`
    pub tag_prefix: String,
}

/// What one file says of one event or pattern.
#[derive(Debug)]
pub struct Entry {
    /// The event type or the topic pattern, as written.
    pub name: String,
    /// The file's path below the registry's directory, with `/`.
    pub file: String,
    /// Nothing is done any more.
    pub retired: bool,
    /// JSON Schema of the payload.
    pub schema: Option<DataSchema>,
    /// What a violation of it means.
    pub validate: Validate,
    /// Orders the writes of one entity.
    pub version: Option<VersionRule>,
    /// Named expressions, in the order written.
    pub lets: Vec<(String, Expression)>,
    /// In the order written.
    pub rules: Vec<Rule>,
    /// This entry's own limit of targets an event.
    pub max_keys: Option<usize>,
}

/// What a violation of an entry's `data` schema means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Validate {
    /// None of the entry's effects is applied; the event is dead-lettered.
    #[default]
    Enforce,
    /// Counted and logged.
    Warn,
}

/// A topic pattern: words between dots, `*` for one word, `#` for any number (AMQP 0-9-1, section
/// 3.1.3.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// The words, in order.
    pub words: Vec<String>,
}

/// One element of an entry's `effects`.
#[derive(Debug)]
pub struct Rule {
    /// Its place in [`Registry::rules`].
    pub id: RuleId,
    /// Once per element, as `item`.
    pub each: Option<Expression>,
    /// Asked per element.
    pub when: Option<Expression>,
    /// Before every key of the rule: `UNSTALE_KEY_PREFIX`, then the file's `key_prefix` unless the
    /// rule takes it off. Not before tags' names.
    pub key_prefix: String,
    /// The keys or tags.
    pub targets: Vec<Template>,
    /// What to do with them.
    pub body: RuleBody,
    /// Of a `delete` or `warm` in an entry with a `version`: what versioned rules write that these
    /// keys may be. Such a key's deletion has the version of its event, so that an older `write`
    /// does not revive what it deleted.
    pub written: Vec<KeyShape>,
    /// Of a `delete` or `invalidate_tags`: a second pass after so long.
    pub again: Option<Duration>,
}

/// A rule's verb and what goes with it.
#[derive(Debug)]
pub enum RuleBody {
    /// See [`Verb::Delete`].
    Delete,
    /// See [`Verb::InvalidateTags`].
    InvalidateTags,
    /// See [`Verb::BumpVersion`].
    BumpVersion,
    /// See [`Verb::Expire`].
    Expire(ExpiryRule),
    /// See [`Verb::Write`].
    Write {
        /// What the key is set to.
        value: ValueTemplate,
        /// How the value becomes bytes.
        encoding: Encoding,
        /// For how long.
        expiry: ExpiryRule,
        /// The tags the key is added to.
        tags: Vec<Template>,
        /// The rule's own version, else the entry's.
        version: Option<VersionRule>,
    },
    /// See [`Verb::Warm`].
    Warm {
        /// Who limits the load.
        loader: LoaderId,
        /// Where from.
        url: UrlTemplate,
        /// For how long.
        expiry: ExpiryRule,
        /// The tags the key is added to.
        tags: Vec<Template>,
        /// What readers get meanwhile.
        stale: Stale,
        /// Which keys are loaded.
        only: Only,
    },
}

impl RuleBody {
    /// The verb it belongs to.
    pub const fn verb(&self) -> Verb {
        match self {
            Self::Delete => Verb::Delete,
            Self::InvalidateTags => Verb::InvalidateTags,
            Self::BumpVersion => Verb::BumpVersion,
            Self::Expire(_) => Verb::Expire,
            Self::Write { .. } => Verb::Write,
            Self::Warm { .. } => Verb::Warm,
        }
    }
}

/// How a `write`'s value becomes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// Compact JSON in UTF-8, key order and number text as published.
    #[default]
    Json,
    /// A string, as is: the value is one [`ValueTemplate::Text`].
    Raw,
}

/// How long a value may live, before the event is known.
#[derive(Debug)]
pub enum ExpiryRule {
    /// `ttl`, spread by `jitter` (0 to 1).
    After {
        /// The longest.
        ttl: Duration,
        /// The part of it that chance may take off.
        jitter: f64,
    },
    /// `at`: RFC 3339 text, or an integer of Unix seconds.
    At(Template),
    /// `ttl: none`.
    Never,
}

/// Orders the writes of one entity.
#[derive(Debug)]
pub struct VersionRule {
    /// An integer 0..2^63-1 or RFC 3339.
    pub of: Template,
    /// The entity that the version orders.
    pub family: Family,
}

/// The entity that a version orders.
#[derive(Debug)]
pub enum Family {
    /// The event's type without its last word.
    EventType,
    /// Named by the rule.
    Entity(Template),
}

/// Which rule of which file: what `plan`, metrics and dead letters name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleName {
    /// `<file>#<entry>/<place in effects, from 0>`, such as `user.yaml#user.updated/0`.
    pub name: String,
    /// Its verb.
    pub verb: Verb,
    /// The entry's place in [`Registry::entries`].
    pub entry: u32,
}

/// Where values are loaded from. Its URL and headers have their `{vars.…}` filled in.
#[derive(Debug)]
pub struct Loader {
    /// As in the file.
    pub name: String,
    /// Before the rule's path; for an absolute URL in `from`, scheme and host of that.
    pub url: String,
    /// Sent with every request. May hold secrets.
    pub headers: LoaderHeaders,
    /// Instead of `UNSTALE_WARM_TIMEOUT`.
    pub timeout: Option<Duration>,
    /// Within `UNSTALE_WARM_CONCURRENCY`.
    pub concurrency: Option<usize>,
    /// Within `UNSTALE_WARM_RATE`.
    pub rate: Option<Rate>,
    /// Instead of `UNSTALE_WARM_MAX_BYTES`.
    pub max_bytes: Option<usize>,
}

/// Names and values of headers: `Debug` shows names alone.
#[derive(Clone, Default)]
pub struct LoaderHeaders(pub Vec<(String, String)>);

impl std::fmt::Debug for LoaderHeaders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}
