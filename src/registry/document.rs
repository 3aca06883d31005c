//! Content of a rule file before it is compiled: every option with its type and its place.
//!
//! The JSON Schema of rule files is made from these types, so their comments are shown in editors.
//! `read` reads a file, `effect` one element of `effects`, and `fields` single values.

mod effect;
mod fields;
pub(super) mod read;

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

pub(crate) use effect::MAX_SECOND_DELETE_DELAY;

/// Format of rule files that this build reads.
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
    /// Place of the first character, if the text is in the file character for character.
    pub(crate) verbatim_from: Option<Pos>,
}

impl Text {
    /// Returns the place of the character at that byte of the text.
    pub(crate) fn place_of(&self, byte: usize) -> Pos {
        let Some(from) = self.verbatim_from else { return self.at };
        let before = self.text.get(..byte).unwrap_or(&self.text).chars().count();
        Pos { line: from.line, column: from.column + u32::try_from(before).unwrap_or(0) }
    }

    /// Returns the part of the text from that byte on.
    pub(crate) fn tail(&self, byte: usize) -> Self {
        let verbatim_from = self.verbatim_from.map(|_| self.place_of(byte));
        Self {
            at: self.at,
            text: self.text.get(byte..).unwrap_or_default().to_owned(),
            verbatim_from,
        }
    }
}

/// Rules that name the cache keys and tags that each event makes stale.
#[derive(Debug, Default, JsonSchema)]
#[schemars(rename = "RuleFile", deny_unknown_fields, extend("patternProperties" = {"^x-": true}))]
pub(crate) struct Document {
    /// URL or path of the JSON Schema of this file, for editors.
    #[schemars(rename = "$schema", with = "Option<String>")]
    pub(crate) _schema: (),
    /// The format of this file.
    #[schemars(rename = "format", with = "Option<FormatNumber>")]
    pub(crate) _format: (),
    /// Defaults for every rule of this file.
    pub(crate) defaults: Option<Defaults>,
    /// Sources from which `warm` loads values, by name.
    #[schemars(with = "Option<BTreeMap<String, LoaderDocument>>")]
    pub(crate) loaders: Vec<(Text, LoaderDocument)>,
    /// Rules for each event, by event type or topic pattern.
    #[schemars(with = "Option<BTreeMap<String, EventDocument>>")]
    pub(crate) events: Vec<(Text, EventDocument)>,
}

/// Defaults for every rule of this file.
#[derive(Debug, Default, JsonSchema)]
#[schemars(deny_unknown_fields, extend("patternProperties" = {"^x-": true}))]
pub(crate) struct Defaults {
    /// Prefix of every key of the file. `prefix: ""` on an effect removes it.
    pub(crate) key_prefix: Option<Text>,
    /// Time to live of written and warmed values. `none` persists.
    pub(crate) ttl: Option<At<Ttl>>,
    /// Every ttl is drawn from [(1 - jitter) * ttl, ttl]. Default: 0.1.
    pub(crate) jitter: Option<At<Jitter>>,
}

/// A source from which `warm` loads values.
#[derive(Debug, Default, JsonSchema)]
#[schemars(rename = "Loader", deny_unknown_fields, extend("patternProperties" = {"^x-": true}, "required" = ["url"]))]
pub(crate) struct LoaderDocument {
    /// Base URL before the path in a rule's `from`. `{vars.NAME}` reads `UNSTALE_VAR_NAME`.
    pub(crate) url: Option<Text>,
    /// Headers of every request. `{vars.NAME}` reads `UNSTALE_VAR_NAME`.
    #[schemars(with = "Option<BTreeMap<String, Text>>")]
    pub(crate) headers: Vec<(Text, Text)>,
    /// Timeout of one load, instead of `UNSTALE_WARM_TIMEOUT`.
    #[schemars(with = "Option<DurationText>")]
    pub(crate) timeout: Option<Duration>,
    /// Maximum number of concurrent loads, within `UNSTALE_WARM_CONCURRENCY`.
    #[schemars(with = "Option<Positive>")]
    pub(crate) concurrency: Option<usize>,
    /// Maximum rate of loads per second, minute or hour, within `UNSTALE_WARM_RATE`.
    #[schemars(with = "Option<RateText>")]
    pub(crate) rate: Option<Rate>,
    /// Maximum size of a response, instead of `UNSTALE_WARM_MAX_BYTES`.
    #[schemars(with = "Option<SizeText>")]
    pub(crate) max_bytes: Option<usize>,
}

/// Rules for one event, or for every event that a topic pattern matches.
#[derive(Debug, Default, JsonSchema)]
#[schemars(rename = "EventDefinition", deny_unknown_fields, extend("patternProperties" = {"^x-": true}))]
pub(crate) struct EventDocument {
    /// Description of the event.
    #[schemars(rename = "description", with = "Option<String>")]
    pub(crate) _description: (),
    /// Routing keys to bind. Default: the event's own name.
    #[schemars(with = "Option<OneOrMany>")]
    pub(crate) bind: Option<Vec<Text>>,
    /// JSON Schema 2020-12 of the payload. Default: any object.
    #[schemars(with = "Option<JsonSchemaObject>")]
    pub(crate) data: Option<Node>,
    /// Handling of a payload that violates `data`. `enforce` dead-letters the event; `warn` counts
    /// it and continues.
    #[schemars(with = "Option<ValidateName>")]
    pub(crate) validate: Option<At<Validate>>,
    /// Orders the writes of one entity: an integer from 0 to 2^63-1, or an RFC 3339 time.
    pub(crate) version: Option<VersionDocument>,
    /// Named CEL expressions, computed once and on demand. Templates read `{let.name}`, expressions
    /// `lets.name`.
    #[schemars(rename = "let", with = "Option<BTreeMap<String, Text>>")]
    pub(crate) lets: Vec<(Text, Text)>,
    /// Effects of the event, in this order.
    #[schemars(with = "Option<Vec<EffectDocument>>")]
    pub(crate) effects: Vec<EffectDocument>,
    /// Tests of these rules, run by `unstale check`.
    #[schemars(with = "Option<Vec<ExampleDocument>>")]
    pub(crate) examples: Vec<ExampleDocument>,
    /// Maximum number of keys and tags that one event may reach through this definition.
    #[schemars(with = "Option<Positive>")]
    pub(crate) max_keys: Option<usize>,
    /// The event no longer exists. Its queue binding is removed; events that still arrive are
    /// acknowledged and counted.
    #[schemars(with = "Option<bool>")]
    pub(crate) retired: bool,
}

/// One verb, its keys or tags, and its options.
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
    /// Templates of keys or tags.
    #[schemars(skip)]
    pub(crate) targets: Vec<Text>,
    /// Removes the keys.
    #[schemars(rename = "delete", with = "Option<Targets>")]
    pub(crate) _delete: (),
    /// Removes every key of the tags, and the tags.
    #[schemars(rename = "invalidate_tags", with = "Option<Targets>")]
    pub(crate) _invalidate_tags: (),
    /// Adds one to counters from which readers build their keys.
    #[schemars(rename = "bump_version", with = "Option<Targets>")]
    pub(crate) _bump_version: (),
    /// Shortens the time to live of the keys to `ttl`, or to the time `at`. Never lengthens it.
    #[schemars(rename = "expire", with = "Option<Targets>")]
    pub(crate) _expire: (),
    /// Sets the keys to `value`.
    #[schemars(rename = "write", with = "Option<Targets>")]
    pub(crate) _write: (),
    /// Removes the keys, then fills them with the response of `from`.
    #[schemars(rename = "warm", with = "Option<Targets>")]
    pub(crate) _warm: (),
    /// CEL expression that yields a list. The rule runs once per element, which is `item`.
    pub(crate) each: Option<Text>,
    /// CEL condition. If it fails, invalidations take place, and writes and warms delete their key.
    pub(crate) when: Option<Text>,
    /// Prefix of the rule's keys, instead of the file's `key_prefix`.
    pub(crate) prefix: Option<Text>,
    /// Time to live of the value, or for `expire` its maximum from now on. `none` persists.
    pub(crate) ttl: Option<At<Ttl>>,
    /// The ttl is drawn from [(1 - jitter) * ttl, ttl]. Default: 0.1.
    pub(crate) jitter: Option<At<Jitter>>,
    /// Time at which the value expires: RFC 3339, or Unix seconds.
    #[schemars(rename = "at")]
    pub(crate) expires_at: Option<Text>,
    /// Tags to which the key is added.
    #[schemars(with = "Option<OneOrMany>")]
    pub(crate) tags: Vec<Text>,
    /// Value that `write` stores: any JSON with templates. `"{data}"` is the whole payload.
    #[schemars(with = "Option<serde_json::Value>")]
    pub(crate) value: Option<Node>,
    /// `json` (compact, the default) or `raw` (a string as it is).
    #[schemars(with = "Option<EncodingName>")]
    pub(crate) encoding: Option<At<Encoding>>,
    /// Orders the writes of one entity, instead of the event's `version`.
    pub(crate) version: Option<VersionDocument>,
    /// Source from which `warm` loads: `loader:/path`, or an absolute URL.
    pub(crate) from: Option<Text>,
    /// Old value while `warm` loads: `drop` (the default) or `serve`.
    #[schemars(with = "Option<StaleName>")]
    pub(crate) stale: Option<At<Stale>>,
    /// Keys that `warm` loads: `always` (the default), or `present` for those that were cached.
    #[schemars(with = "Option<OnlyName>")]
    pub(crate) only: Option<At<Only>>,
    /// Delay of a second delete, for readers without leases. Maximum: `1h`.
    #[schemars(with = "Option<DurationText>")]
    pub(crate) again: Option<Duration>,
}

/// Order of the writes of one entity.
#[derive(Debug)]
pub(crate) struct VersionDocument {
    /// The version.
    pub(crate) of: Text,
    /// The entity whose writes it orders.
    pub(crate) entity: Option<Text>,
}

/// A test of the event's rules.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "Example", deny_unknown_fields, extend("patternProperties" = {"^x-": true}))]
pub(crate) struct ExampleDocument {
    #[schemars(skip)]
    pub(crate) at: Pos,
    /// Description of the example.
    #[schemars(rename = "description", with = "Option<String>")]
    pub(crate) _description: (),
    /// The event's type. Required if the definition's name is a pattern.
    #[schemars(rename = "type")]
    pub(crate) event_type: Option<Text>,
    /// The payload. Default: `{}`.
    #[schemars(with = "Option<JsonObject>")]
    pub(crate) data: Option<Node>,
    /// The previous state.
    #[schemars(with = "Option<JsonObject>")]
    pub(crate) previous: Option<Node>,
    /// Properties of the event beside its payload.
    #[schemars(with = "Option<ExampleEvent>")]
    pub(crate) event: ExampleEvent,
    /// `verb target` for every key and tag, in any order. Without it, the event must only resolve.
    #[schemars(with = "Option<Vec<Text>>")]
    pub(crate) expect: Option<At<Vec<Text>>>,
    /// Reason with which the event must be dead-lettered.
    #[schemars(with = "Option<ReasonName>")]
    pub(crate) expect_error: Option<At<Reason>>,
}

/// Properties of an example's event beside its payload.
#[derive(Debug, Default, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct ExampleEvent {
    /// The event's id.
    pub(crate) id: Option<Text>,
    /// Time of the event: RFC 3339.
    pub(crate) time: Option<Text>,
    /// Source of the event.
    pub(crate) source: Option<Text>,
    /// Subject of the event.
    pub(crate) subject: Option<Text>,
    /// Integer that orders the events of the source.
    #[schemars(with = "Option<u64>")]
    pub(crate) position: Option<u64>,
    /// Exchange to which the event was published.
    pub(crate) exchange: Option<Text>,
    /// Routing key with which the event was published. Default: empty.
    pub(crate) routing_key: Option<Text>,
    /// Other properties: extension attributes of a CloudEvent, or members of Debezium's `source`.
    #[schemars(with = "Option<BTreeMap<String, Text>>")]
    pub(crate) attributes: Vec<(Text, Text)>,
}

/// A time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ttl {
    /// Lives that long.
    For(Duration),
    /// `none`
    Never,
}

/// Part of a ttl that may be subtracted at random, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Jitter(pub(crate) f64);

/// Implements `JsonSchema` for types whose schema is written out here.
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
            "properties": {"of": {"type": "string", "description": "The version."}, "entity": {"type": "string", "description": "The entity whose writes the version orders. Default: the event type without its last word."}},
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
