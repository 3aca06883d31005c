//! The compiled registry: rules that are ready to resolve events.

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
    /// SHA-256 in hex over the files, this build's version and the variables.
    ///
    /// Two workers with the same digest resolve every event alike.
    pub digest: String,
    /// Definitions in the order in which their effects are added together: exact names, then
    /// patterns, each in byte order of name and file.
    pub definitions: Vec<EventDefinition>,
    /// Indices of definitions with an exact name, in order.
    pub by_name: foldhash::HashMap<String, Vec<u32>>,
    /// Indices of definitions with a pattern, in order.
    pub patterns: Vec<(Pattern, u32)>,
    /// Names of rules, by [`RuleId`].
    pub rules: Vec<RuleName>,
    /// Loaders, by [`LoaderId`].
    pub loaders: Vec<Loader>,
    /// Routing keys to bind, without duplicates, in byte order. Retired definitions bind nothing.
    pub routing_keys: Vec<String>,
    /// Routing keys that are bound for events of other types: the tables of Debezium.
    pub tables: Vec<Pattern>,
    /// `UNSTALE_MAX_KEYS_PER_EVENT`
    pub max_keys_per_event: usize,
    /// `UNSTALE_TAG_PREFIX`
    pub tag_prefix: String,
}

/// Rules of one file for one event type or topic pattern.
#[derive(Debug)]
pub struct EventDefinition {
    /// The event type or the topic pattern, as written.
    pub name: String,
    /// The file's path below the registry's directory, with `/`.
    pub file: String,
    /// The event is retired: nothing is done for it.
    pub retired: bool,
    /// JSON Schema of the payload.
    pub schema: Option<DataSchema>,
    /// Effect of a payload that violates the schema.
    pub validate: Validate,
    /// Order of the writes of one entity.
    pub version: Option<VersionRule>,
    /// Named expressions, in the order written.
    pub lets: Vec<(String, Expression)>,
    /// Rules in the order written.
    pub rules: Vec<Rule>,
    /// Maximum number of targets of an event through this definition.
    pub max_keys: Option<usize>,
}

/// Effect of a payload that violates `data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Validate {
    /// No effect of the definition is applied, and the event is dead-lettered.
    #[default]
    Enforce,
    /// The event is counted, logged and applied.
    Warn,
}

/// A topic pattern: words between dots. `*` matches one word, `#` any number of words (AMQP 0-9-1,
/// section 3.1.3.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// The words, in order.
    pub words: Vec<String>,
}

/// One element of an event definition's `effects`.
#[derive(Debug)]
pub struct Rule {
    /// Index in [`Registry::rules`].
    pub id: RuleId,
    /// List over whose elements the rule runs, each as `item`.
    pub each: Option<Expression>,
    /// Condition, evaluated for each element.
    pub when: Option<Expression>,
    /// Prefix of every key of the rule: `UNSTALE_KEY_PREFIX`, then the prefix of the rule or of its
    /// file. Tags have none.
    pub key_prefix: String,
    /// Templates of keys or tags.
    pub targets: Vec<Template>,
    /// The verb and its options.
    pub body: RuleBody,
    /// Shapes of this rule's keys that a versioned rule may write, for a `delete` or `warm` with a
    /// `version`.
    ///
    /// The deletion of such a key carries the version of its event, so that an older `write` does
    /// not restore the key.
    pub written: Vec<KeyShape>,
    /// Delay of the second delete of a `delete` or `invalidate_tags`.
    pub again: Option<Duration>,
}

/// Verb of a rule, with its options.
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
        /// Value of the key.
        value: ValueTemplate,
        /// Conversion of the value to bytes.
        encoding: Encoding,
        /// Time to live.
        expiry: ExpiryRule,
        /// Tags to which the key is added.
        tags: Vec<Template>,
        /// The rule's own version, else that of the definition.
        version: Option<VersionRule>,
    },
    /// See [`Verb::Warm`].
    Warm {
        /// The loader whose limits apply.
        loader: LoaderId,
        /// Path and query of the URL.
        url: UrlTemplate,
        /// Time to live.
        expiry: ExpiryRule,
        /// Tags to which the key is added.
        tags: Vec<Template>,
        /// Reply to readers during the load.
        stale: Stale,
        /// Keys that are loaded.
        only: Only,
    },
}

impl RuleBody {
    /// Returns the verb of the body.
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

/// Conversion of a `write`'s value to bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// Compact JSON in UTF-8. Keys keep their order, numbers their text.
    #[default]
    Json,
    /// A string as it is. The value is a [`ValueTemplate::Text`].
    Raw,
}

/// Time to live of a value, before the event is known.
#[derive(Debug)]
pub enum ExpiryRule {
    /// `ttl`, reduced at random by up to `jitter`.
    After {
        /// Maximum time to live.
        ttl: Duration,
        /// Part of the ttl that may be subtracted, from 0 to 1.
        jitter: f64,
    },
    /// `at`: RFC 3339 text, or an integer of Unix seconds.
    At(Template),
    /// `ttl: none`.
    Never,
}

/// Order of the writes of one entity.
#[derive(Debug)]
pub struct VersionRule {
    /// The version: an integer from 0 to 2^63-1, or an RFC 3339 time.
    pub of: Template,
    /// The entity.
    pub family: Family,
}

/// The entity whose writes a version orders.
#[derive(Debug)]
pub enum Family {
    /// The event's type without its last word.
    EventType,
    /// An entity that the rule names.
    Entity(Template),
}

/// Name of a rule, as in `plan`, metrics and dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleName {
    /// `<file>#<event>/<index in effects>`, such as `user.yaml#user.updated/0`.
    pub name: String,
    /// Verb of the rule.
    pub verb: Verb,
    /// Index of the definition in [`Registry::definitions`].
    pub definition: u32,
}

/// A source of values. The URL and headers have their `{vars.…}` filled in.
#[derive(Debug)]
pub struct Loader {
    /// Name in the file, or the origin of an absolute URL.
    pub name: String,
    /// Base URL before the rule's path.
    pub url: String,
    /// Headers of every request. May hold secrets.
    pub headers: LoaderHeaders,
    /// Timeout, instead of `UNSTALE_WARM_TIMEOUT`.
    pub timeout: Option<Duration>,
    /// Maximum number of concurrent loads, within `UNSTALE_WARM_CONCURRENCY`.
    pub concurrency: Option<usize>,
    /// Maximum rate, within `UNSTALE_WARM_RATE`.
    pub rate: Option<Rate>,
    /// Maximum size of a response in bytes, instead of `UNSTALE_WARM_MAX_BYTES`.
    pub max_bytes: Option<usize>,
}

/// Names and values of headers. `Debug` shows names only.
#[derive(Clone, Default)]
pub struct LoaderHeaders(pub Vec<(String, String)>);

impl std::fmt::Debug for LoaderHeaders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}
