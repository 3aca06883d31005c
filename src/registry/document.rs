//! What a schema file says, before it is compiled: every option typed and in its place. The JSON
//! Schema of the files is made from these types.

mod effect;
mod fields;
mod read;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::diagnostic::Pos;
use super::effect::{Only, Stale, Verb};
use super::model::{Encoding, Validate};
use super::tree::Node;
use crate::quantity::Rate;
use crate::reason::Reason;

pub(crate) use read::read;

/// The format that this build reads.
pub(crate) const FORMAT: u32 = 1;

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct At<T> {
    pub(crate) at: Pos,
    pub(crate) value: T,
}

/// A text and its place.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    pub(crate) at: Pos,
    pub(crate) text: String,
    /// Where its first character stands, if it stands in the file character for character.
    pub(crate) verbatim_from: Option<Pos>,
}

impl Text {
    /// Where the character at that byte of the text stands.
    pub(crate) fn place_of(&self, byte: usize) -> Pos {
        let Some(from) = self.verbatim_from else { return self.at };
        let before = self.text.get(..byte).unwrap_or(&self.text).chars().count();
        Pos { line: from.line, column: from.column + u32::try_from(before).unwrap_or(0) }
    }

    /// The part of it from that byte on.
    pub(crate) fn tail(&self, byte: usize) -> Self {
        let verbatim_from = self.verbatim_from.map(|_| self.place_of(byte));
        Self {
            at: self.at,
            text: self.text.get(byte..).unwrap_or_default().to_owned(),
            verbatim_from,
        }
    }
}

/// Rules that say which cache keys and tags each event makes stale.
#[derive(Debug, Default, JsonSchema)]
#[schemars(rename = "SchemaFile", deny_unknown_fields, extend("patternProperties" = {"^x-": true}))]
pub(crate) struct Document {
    /// Where the JSON Schema of this file stands, for editors.
    #[schemars(rename = "$schema", with = "Option<String>")]
    pub(crate) _schema: (),
    /// The format of this file.
    #[schemars(rename = "format", with = "Option<FormatNumber>")]
    pub(crate) _format: (),
    /// What holds for every rule of this file that does not say otherwise.
    pub(crate) defaults: Option<Defaults>,
    /// Where `warm` loads values from, by name.
    #[schemars(with = "Option<BTreeMap<String, LoaderDocument>>")]
    pub(crate) loaders: Vec<(Text, LoaderDocument)>,
    /// What happens on each event, by event type or topic pattern.
    #[schemars(with = "Option<BTreeMap<String, EntryDocument>>")]
    pub(crate) events: Vec<(Text, EntryDocument)>,
}

/// What holds for every rule of this file that does not say otherwise.
#[derive(Debug, Default, JsonSchema)]
#[schemars(deny_unknown_fields, extend("patternProperties" = {"^x-": true}))]
pub(crate) struct Defaults {
    /// Put before every key of the file; `prefix: ""` on an effect takes it off.
    pub(crate) key_prefix: Option<Text>,
    /// How long written and warmed values live; `none` persists.
    pub(crate) ttl: Option<At<Ttl>>,
    /// Every ttl is spread over [(1 - jitter) * ttl, ttl]. Default: 0.1.
    pub(crate) jitter: Option<At<Jitter>>,
}

/// Where `warm` loads values from.
#[derive(Debug, Default, JsonSchema)]
#[schemars(rename = "Loader", deny_unknown_fields, extend("patternProperties" = {"^x-": true}, "required" = ["url"]))]
pub(crate) struct LoaderDocument {
    /// Stands before the path in a rule's `from`; `{vars.NAME}` reads `UNSTALE_VAR_NAME`.
    pub(crate) url: Option<Text>,
    /// Sent with every request; `{vars.NAME}` reads `UNSTALE_VAR_NAME`.
    #[schemars(with = "Option<BTreeMap<String, Text>>")]
    pub(crate) headers: Vec<(Text, Text)>,
    /// How long one load may take, instead of `UNSTALE_WARM_TIMEOUT`.
    #[schemars(with = "Option<DurationText>")]
    pub(crate) timeout: Option<Duration>,
    /// How many loads at once, within `UNSTALE_WARM_CONCURRENCY`.
    #[schemars(with = "Option<Positive>")]
    pub(crate) concurrency: Option<usize>,
    /// How many loads a second, minute or hour, within `UNSTALE_WARM_RATE`.
    #[schemars(with = "Option<RateText>")]
    pub(crate) rate: Option<Rate>,
    /// The largest answer, instead of `UNSTALE_WARM_MAX_BYTES`.
    #[schemars(with = "Option<SizeText>")]
    pub(crate) max_bytes: Option<usize>,
}

/// What happens on one event, or on every event that a topic pattern matches.
#[derive(Debug, Default, JsonSchema)]
#[schemars(rename = "Entry", deny_unknown_fields, extend("patternProperties" = {"^x-": true}))]
pub(crate) struct EntryDocument {
    /// What the event means.
    #[schemars(rename = "description", with = "Option<String>")]
    pub(crate) _description: (),
    /// The routing keys to bind. Default: the event's own name.
    #[schemars(with = "Option<OneOrMany>")]
    pub(crate) bind: Option<Vec<Text>>,
    /// JSON Schema 2020-12 of the payload. Default: any object.
    #[schemars(with = "Option<JsonSchemaObject>")]
    pub(crate) data: Option<Node>,
    /// What a violation of `data` means: `enforce` dead-letters the event, `warn` counts it and
    /// goes on.
    #[schemars(with = "Option<ValidateName>")]
    pub(crate) validate: Option<At<Validate>>,
    /// Orders the writes of one entity: an integer from 0 to 2^63-1, or an RFC 3339 time.
    pub(crate) version: Option<VersionDocument>,
    /// Named CEL expressions, computed once and on demand: `{let.name}` in templates, `lets.name`
    /// in expressions.
    #[schemars(rename = "let", with = "Option<BTreeMap<String, Text>>")]
    pub(crate) lets: Vec<(Text, Text)>,
    /// What to do, in this order.
    #[schemars(with = "Option<Vec<EffectDocument>>")]
    pub(crate) effects: Vec<EffectDocument>,
    /// Tests of these rules, run by `unstale check`.
    #[schemars(with = "Option<Vec<ExampleDocument>>")]
    pub(crate) examples: Vec<ExampleDocument>,
    /// The most keys and tags that one event may reach by this entry.
    #[schemars(with = "Option<Positive>")]
    pub(crate) max_keys: Option<usize>,
    /// The event is no more: unbound; what still arrives is acknowledged and counted.
    #[schemars(with = "Option<bool>")]
    pub(crate) retired: bool,
}

/// One verb, what it acts on, and its options.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "Effect", deny_unknown_fields, extend("patternProperties" = {"^x-": true}, "oneOf" = [
    {"required": ["delete"]}, {"required": ["invalidate_tags"]}, {"required": ["bump_version"]},
    {"required": ["expire"]}, {"required": ["write"]}, {"required": ["warm"]}
]))]
pub(crate) struct EffectDocument {
    #[schemars(skip)]
    pub(crate) at: Pos,
    #[schemars(skip)]
    pub(crate) verb: Verb,
    /// The templates of keys or tags.
    #[schemars(skip)]
    pub(crate) targets: Vec<Text>,
    /// Removes the keys.
    #[schemars(rename = "delete", with = "Option<Targets>")]
    pub(crate) _delete: (),
    /// Removes every key of the tags, and the tags.
    #[schemars(rename = "invalidate_tags", with = "Option<Targets>")]
    pub(crate) _invalidate_tags: (),
    /// Adds one to counters that readers build their keys from.
    #[schemars(rename = "bump_version", with = "Option<Targets>")]
    pub(crate) _bump_version: (),
    /// Shortens the keys' time to live to `ttl`, or to the time `at`; never lengthens it.
    #[schemars(rename = "expire", with = "Option<Targets>")]
    pub(crate) _expire: (),
    /// Sets the keys to `value`.
    #[schemars(rename = "write", with = "Option<Targets>")]
    pub(crate) _write: (),
    /// Removes the keys, then fills them with what `from` answers.
    #[schemars(rename = "warm", with = "Option<Targets>")]
    pub(crate) _warm: (),
    /// A CEL expression that yields a list: the rule is done once per element, as `item`.
    pub(crate) each: Option<Text>,
    /// A CEL condition. Where it fails, the safe side holds: invalidations take place, writes and
    /// warms delete their key.
    pub(crate) when: Option<Text>,
    /// Stands before the rule's keys instead of the file's `key_prefix`.
    pub(crate) prefix: Option<Text>,
    /// How long the value lives, or, for `expire`, may still live; `none` persists.
    pub(crate) ttl: Option<At<Ttl>>,
    /// The ttl is spread over [(1 - jitter) * ttl, ttl]. Default: 0.1.
    pub(crate) jitter: Option<At<Jitter>>,
    /// The moment at which the value expires: RFC 3339, or Unix seconds.
    #[schemars(rename = "at")]
    pub(crate) expires_at: Option<Text>,
    /// The tags that the key is added to.
    #[schemars(with = "Option<OneOrMany>")]
    pub(crate) tags: Vec<Text>,
    /// What `write` sets the key to: any JSON with templates in it; `"{data}"` is the whole
    /// payload.
    #[schemars(with = "Option<serde_json::Value>")]
    pub(crate) value: Option<Node>,
    /// `json` (compact, the default) or `raw` (a string, as is).
    #[schemars(with = "Option<EncodingName>")]
    pub(crate) encoding: Option<At<Encoding>>,
    /// Orders the writes of one entity, instead of the entry's `version`.
    pub(crate) version: Option<VersionDocument>,
    /// Where `warm` loads from: `loader:/path`, or an absolute URL.
    pub(crate) from: Option<Text>,
    /// Keep the old value readable while `warm` loads, or not.
    #[schemars(with = "Option<StaleName>")]
    pub(crate) stale: Option<At<Stale>>,
    /// Warm just what was cached, or always.
    #[schemars(with = "Option<OnlyName>")]
    pub(crate) only: Option<At<Only>>,
    /// A second pass after so long, for readers that take no part; at most `1h`.
    #[schemars(with = "Option<DurationText>")]
    pub(crate) again: Option<Duration>,
}

/// What orders the writes of one entity.
#[derive(Debug)]
pub(crate) struct VersionDocument {
    /// The version itself.
    pub(crate) of: Text,
    /// The entity that it orders.
    pub(crate) entity: Option<Text>,
}

/// A test of an entry's rules.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "Example", deny_unknown_fields, extend("patternProperties" = {"^x-": true}))]
pub(crate) struct ExampleDocument {
    #[schemars(skip)]
    pub(crate) at: Pos,
    /// What the example shows.
    #[schemars(rename = "description", with = "Option<String>")]
    pub(crate) _description: (),
    /// The event's type, where the entry's name is a pattern.
    #[schemars(rename = "type")]
    pub(crate) event_type: Option<Text>,
    /// The payload. Default: `{}`.
    #[schemars(with = "Option<JsonObject>")]
    pub(crate) data: Option<Node>,
    /// The state before.
    #[schemars(with = "Option<JsonObject>")]
    pub(crate) previous: Option<Node>,
    /// What is known of the event beside its payload.
    #[schemars(with = "Option<ExampleEvent>")]
    pub(crate) event: ExampleEvent,
    /// `verb target` for every key and tag, in any order; absent: it must merely resolve.
    #[schemars(with = "Option<Vec<Text>>")]
    pub(crate) expect: Option<At<Vec<Text>>>,
    /// The reason for which the event must be dead-lettered.
    #[schemars(with = "Option<ReasonName>")]
    pub(crate) expect_error: Option<At<Reason>>,
}

/// What is known of an example's event beside its payload.
#[derive(Debug, Default, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct ExampleEvent {
    /// The event's id.
    pub(crate) id: Option<Text>,
    /// When it happened: RFC 3339.
    pub(crate) time: Option<Text>,
    /// Who said so.
    pub(crate) source: Option<Text>,
    /// What it is about.
    pub(crate) subject: Option<Text>,
    /// An integer that orders the source's events.
    #[schemars(with = "Option<u64>")]
    pub(crate) position: Option<u64>,
    /// The exchange that it was published to.
    pub(crate) exchange: Option<Text>,
    /// The routing key that it was published with. Default: empty.
    pub(crate) routing_key: Option<Text>,
    /// What else the publisher says of it: extension attributes of a CloudEvent, members of
    /// Debezium's `source`.
    #[schemars(with = "Option<BTreeMap<String, Text>>")]
    pub(crate) attributes: Vec<(Text, Text)>,
}

/// A time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ttl {
    /// So long.
    For(Duration),
    /// `none`
    Never,
}

/// The part of a ttl that chance may take off, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Jitter(pub(crate) f64);

/// Where a type is in JSON Schema what it is in the file, and no more.
macro_rules! schema_of {
    ($($type:ident: $schema:tt,)*) => {
        $(impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        })*
    };
}

macro_rules! described {
    ($($name:ident),*) => { $(#[derive(Debug)] struct $name;)* };
}

described!(
    FormatNumber,
    Targets,
    DurationText,
    RateText,
    SizeText,
    Positive,
    OneOrMany,
    JsonObject,
    JsonSchemaObject,
    ValidateName,
    EncodingName,
    StaleName,
    OnlyName,
    ReasonName
);

schema_of! {
    Text: {"type": ["string", "number", "boolean"]},
    Targets: {"anyOf": [{"type": ["string", "number", "boolean"]}, {"type": "array", "minItems": 1, "items": {"type": ["string", "number", "boolean"]}}]},
    OneOrMany: {"anyOf": [{"type": ["string", "number", "boolean"]}, {"type": "array", "items": {"type": ["string", "number", "boolean"]}}]},
    FormatNumber: {"const": 1},
    Jitter: {"type": "number", "minimum": 0, "maximum": 1},
    Ttl: {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d)|none)$", "examples": ["30s", "1h", "7d", "none"]},
    DurationText: {"type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$", "examples": ["500ms", "30s", "1h"]},
    RateText: {"type": "string", "pattern": "^[0-9]+/(s|m|h)$", "examples": ["50/s"]},
    SizeText: {"type": "string", "pattern": "^[0-9]+(B|KiB|MiB|GiB)$", "examples": ["1MiB"]},
    Positive: {"type": "integer", "minimum": 1},
    JsonObject: {"type": "object"},
    JsonSchemaObject: {"anyOf": [{"type": "boolean"}, {"$ref": "https://json-schema.org/draft/2020-12/schema"}]},
    ValidateName: {"enum": ["enforce", "warn"]},
    EncodingName: {"enum": ["json", "raw"]},
    StaleName: {"enum": ["serve", "drop"]},
    OnlyName: {"enum": ["present", "always"]},
    VersionDocument: {"anyOf": [
        {"type": ["string", "number"]},
        {
            "type": "object",
            "properties": {"of": {"type": "string", "description": "The version itself."}, "entity": {"type": "string", "description": "The entity that the version orders. Default: the event type without its last word."}},
            "required": ["of"],
            "additionalProperties": false,
            "patternProperties": {"^x-": true}
        }
    ]},
}

impl JsonSchema for ReasonName {
    fn schema_name() -> Cow<'static, str> {
        "Reason".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        json_schema!({"enum": names})
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// Every kind of mapping, and the keys that are read of it.
#[cfg(test)]
pub(crate) fn known_keys() -> Vec<(&'static str, Vec<&'static str>)> {
    vec![
        ("SchemaFile", read::DOCUMENT_KEYS.to_vec()),
        ("Defaults", read::DEFAULTS_KEYS.to_vec()),
        ("Loader", read::LOADER_KEYS.to_vec()),
        ("Entry", read::ENTRY_KEYS.to_vec()),
        ("Effect", effect::known_keys().collect()),
        ("Example", read::EXAMPLE_KEYS.to_vec()),
        ("ExampleEvent", read::EXAMPLE_EVENT_KEYS.to_vec()),
    ]
}
