//! Debezium change events: bare, under `payload` (`schemas.enable`), or inside a CloudEvent.
//!
//! The event type is the topic name of the connector followed by a word for the operation. Columns
//! whose values Debezium did not know are removed from the rows.

use std::borrow::Cow;

use super::attributes::Attributes;
use super::decoded::{Attribute, Decoded, Malformed, malformed};
use super::draft::{Arrival, Draft};
use super::form::Form;
use super::json::{Json, JsonKind, write_string};
use super::object::{Object, is_object_text};
use super::time;

/// Default of Debezium's `unavailable.value.placeholder`. It replaces a large column that an update
/// did not change. Its other forms below follow `UnchangedToastedPlaceholder` of the Postgres
/// connector.
const UNAVAILABLE: &str = "__debezium_unavailable_value";

/// The placeholder in a column of bytes. The form depends on `binary.handling.mode`.
const UNAVAILABLE_BASE64: &str = "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==";
const UNAVAILABLE_HEX: &str = "5f5f646562657a69756d5f756e617661696c61626c655f76616c7565";

/// Forms of the placeholder as a single value, or as the only element of an array.
const UNAVAILABLE_TEXTS: [&str; 3] = [UNAVAILABLE, UNAVAILABLE_BASE64, UNAVAILABLE_HEX];

/// The placeholder in an array of integers: its bytes, as Debezium's JSON converter writes them.
const UNAVAILABLE_BYTES: &str = "95,95,100,101,98,101,122,105,117,109,95,117,110,97,118,97,105,108,97,98,108,101,95,118,97,108,117,101";

/// The placeholder in an array of UUIDs: its name-based UUID.
const UNAVAILABLE_UUID: &str = "b68a35a7-17ad-35b3-af2a-ae46edb4545a";

/// Returns whether a body is a tombstone, which follows a deletion. It is empty, or has the value
/// of `null.value` of Debezium Server's RabbitMQ sink, by default `default`.
pub(super) fn is_tombstone(body: &[u8]) -> bool {
    body.is_empty() || body == b"default"
}

/// Prefix that Debezium's CloudEvents put before the members of `source` in extension attributes.
const EXTENSION_PREFIX: &str = "iodebezium";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Created,
    Updated,
    Deleted,
    Read,
    Truncated,
    /// `pg_logical_emit_message`, which concerns no row.
    Message,
}

impl Operation {
    fn from_code(code: &str) -> Option<Self> {
        Some(match code {
            // Cassandra writes insertions as `c` or `i`.
            "c" | "i" => Self::Created,
            "u" => Self::Updated,
            "d" => Self::Deleted,
            "r" => Self::Read,
            "t" => Self::Truncated,
            "m" => Self::Message,
            _ => return None,
        })
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
            Self::Read => "read",
            Self::Truncated => "truncated",
            Self::Message => "message",
        }
    }
}

/// Attributes of the CloudEvent that contains a change.
#[derive(Debug, Default)]
pub(super) struct CloudEventContext<'a> {
    pub(super) id: Option<Cow<'a, str>>,
    pub(super) time: Option<Cow<'a, str>>,
    pub(super) traceparent: Option<Cow<'a, str>>,
}

/// One change of one row.
#[derive(Debug)]
pub(super) struct Change<'m, 'a> {
    operation: Operation,
    before: Option<Json<'a>>,
    after: Option<Json<'a>>,
    source: Source<'m, 'a>,
}

/// The place that describes where a change comes from.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack")]
enum Source<'m, 'a> {
    Object(Object<'a>),
    /// Extension attributes of Debezium's CloudEvents. They are the members of `source`, with the
    /// prefix `iodebezium` and without `_`.
    Attributes(Attributes<'m, 'a>),
}

impl<'a> Source<'_, 'a> {
    fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        let text = match self {
            Self::Object(object) => object.scalar(name),
            Self::Attributes(attributes) => attributes.text(match name {
                "name" => "iodebeziumname",
                "cluster" => "iodebeziumcluster",
                "connector" => "iodebeziumconnector",
                "keyspace" => "iodebeziumkeyspace",
                "schema" => "iodebeziumschema",
                "db" => "iodebeziumdb",
                "collection" => "iodebeziumcollection",
                "table" => "iodebeziumtable",
                "ts_ms" => "iodebeziumtsms",
                "lsn" => "iodebeziumlsn",
                "file" => "iodebeziumfile",
                "pos" => "iodebeziumpos",
                _ => return None,
            }),
        };
        text.filter(|text| !text.is_empty())
    }

    /// Returns the first of these members that exists. Connectors use different names for one
    /// thing.
    fn any(&self, names: &[&str]) -> Option<Cow<'a, str>> {
        names.iter().find_map(|name| self.text(name))
    }

    /// Returns the event type of the change, and the source's name.
    ///
    /// The type begins like the connector's topic name. The schema or the database is left out if
    /// the connector has none. SQL Server has both, since one connector reads several databases.
    fn event_type(&self, operation: Operation) -> Result<(String, Cow<'a, str>), Malformed> {
        let missing = |names: &str| {
            malformed(format!("the Debezium change event has no {names}, which names the event"))
        };
        // Cassandra has a cluster instead of a name.
        let name = self.any(&["name", "cluster"]).ok_or_else(|| missing("`source.name`"))?;
        let table = self.any(&["table", "collection"]).ok_or_else(|| missing("`source.table`"))?;
        let mut event_type = name.clone().into_owned();
        let mut push = |word: &str| {
            event_type.push('.');
            event_type.push_str(word);
        };
        if self.text("connector").is_some_and(|connector| connector == "sqlserver")
            && let (Some(database), Some(_)) = (self.text("db"), self.text("schema"))
        {
            push(&database);
        }
        if let Some(schema) = self.any(&["schema", "keyspace", "db"]) {
            push(&schema);
        }
        push(&table);
        push(operation.word());
        Ok((event_type, name))
    }

    /// Returns the members of the source as attributes that rules can read.
    fn members(&self) -> Vec<Attribute<'a>> {
        match self {
            Self::Object(object) => {
                let members = object.members().iter().rev();
                members.filter_map(|(name, value)| Some((name.clone(), value.scalar()?))).collect()
            }
            Self::Attributes(attributes) => {
                let mut members = attributes.extensions();
                for (name, _) in &mut members {
                    if let Some(bare) = name.strip_prefix(EXTENSION_PREFIX) {
                        *name = Cow::Owned(bare.to_owned());
                    }
                }
                members
            }
        }
    }

    /// Returns a number that orders the source's changes. In Postgres it is the LSN, in MySQL and
    /// MariaDB the position in the binary log.
    fn position(&self) -> Option<u64> {
        if let Some(lsn) = self.text("lsn") {
            return lsn.parse().ok();
        }
        let file = self.text("file")?;
        let (_, number) = file.rsplit_once('.')?;
        let number: u32 = number.parse().ok()?;
        let position: u32 = self.text("pos")?.parse().ok()?;
        Some(u64::from(number) << 32 | u64::from(position))
    }
}

impl<'m, 'a> Change<'m, 'a> {
    /// Reads a change from a body, bare or under `payload`.
    pub(super) fn in_body(body: &Object<'a>) -> Option<Self> {
        Self::bare(body).or_else(|| Self::bare(&Object::of(body.get("payload")?)?))
    }

    fn bare(object: &Object<'a>) -> Option<Self> {
        let operation = operation_of(object)?;
        let source = Source::Object(Object::of(object.get("source")?)?);
        // A logical message needs a connector or a name. Otherwise an application's own body with
        // such members would be dropped as a tombstone.
        if operation == Operation::Message
            && source.text("connector").is_none()
            && source.text("name").is_none()
        {
            return None;
        }
        Some(Self { operation, before: object.get("before"), after: object.get("after"), source })
    }

    /// Reads a change from a CloudEvent's data.
    ///
    /// The data has `op` itself, or only the row's states. In the second form, written by
    /// Debezium's own converter, `op` and `source` are among the attributes.
    pub(super) fn in_cloud_event(
        event_type: &str,
        attributes: Attributes<'m, 'a>,
        data: &Object<'a>,
    ) -> Option<Self> {
        if !event_type.starts_with("io.debezium.") {
            return None;
        }
        let change_in = |object: &Object<'a>| {
            let has_states = object.contains("before") || object.contains("after");
            let operation = operation_of(object).or_else(|| {
                Operation::from_code(&attributes.text("iodebeziumop")?).filter(|_| has_states)
            })?;
            let source = object
                .get("source")
                .and_then(Object::of)
                .map_or(Source::Attributes(attributes), Source::Object);
            Some(Self {
                operation,
                before: object.get("before"),
                after: object.get("after"),
                source,
            })
        };
        change_in(data).or_else(|| change_in(&Object::of(data.get("payload")?)?))
    }

    pub(super) fn decode(
        self,
        arrival: &Arrival<'a>,
        context: CloudEventContext<'a>,
    ) -> Result<Decoded<'a>, Malformed> {
        let Self { operation, before, after, source } = self;
        if operation == Operation::Message {
            return Ok(Decoded::Tombstone);
        }
        let (event_type, name) = source.event_type(operation)?;
        let before = before.map(|before| row(before, "before")).transpose()?;
        let data = match operation {
            // Cassandra puts the deleted row into `after`.
            Operation::Deleted if before.is_some() => before.clone(),
            Operation::Truncated => None,
            _ => after.map(|after| row(after, "after")).transpose()?,
        };
        let mut draft =
            Draft::new(Form::Debezium, Cow::Owned(event_type), data.unwrap_or(Cow::Borrowed("{}")));
        draft.previous_text = before.filter(|_| operation != Operation::Truncated);
        draft.id = context.id;
        // Connectors that do not know the time write 0.
        let changed_ms =
            source.text("ts_ms").and_then(|ms| ms.parse().ok()).filter(|ms: &i64| *ms > 0);
        draft.time = changed_ms.and_then(time::from_unix_ms).map(Cow::Owned).or(context.time);
        draft.position = source.position();
        draft.attributes = source.members();
        draft.source = Some(name);
        draft.traceparent = context.traceparent;
        draft.finish(arrival)
    }
}

fn operation_of(object: &Object<'_>) -> Option<Operation> {
    Operation::from_code(&object.get("op")?.as_str()?)
}

/// Returns a row without the columns whose values Debezium did not know.
fn row<'a>(row: Json<'a>, name: &str) -> Result<Cow<'a, str>, Malformed> {
    let Some(object) = Object::of(row) else {
        // MongoDB's documents are JSON text.
        if let Some(text) = row.as_str().filter(|text| is_object_text(text)) {
            let document =
                Object::parse(text.as_bytes(), "a document of the Debezium change event")?;
            return Ok(Cow::Owned(document.text().to_owned()));
        }
        return Err(malformed(format!(
            "the Debezium change event's `{name}` is {}: only rows, as objects, are read",
            row.kind()
        )));
    };
    if !may_hold_unavailable(row.text()) {
        return Ok(Cow::Borrowed(row.text()));
    }
    let mut kept = String::with_capacity(row.text().len());
    kept.push('{');
    for (column, value) in object.members() {
        if is_unavailable(*value) {
            continue;
        }
        if kept.len() > 1 {
            kept.push(',');
        }
        write_string(column, &mut kept);
        kept.push(':');
        kept.push_str(value.text());
    }
    kept.push('}');
    Ok(Cow::Owned(kept))
}

fn may_hold_unavailable(row: &str) -> bool {
    [UNAVAILABLE, UNAVAILABLE_BASE64, UNAVAILABLE_HEX, UNAVAILABLE_UUID, UNAVAILABLE_BYTES]
        .into_iter()
        .any(|needle| memchr::memmem::find(row.as_bytes(), needle.as_bytes()).is_some())
}

fn is_unavailable(value: Json<'_>) -> bool {
    let is = |value: Json<'_>, texts: &[&str]| {
        value.as_str().is_some_and(|text| texts.contains(&text.as_ref()))
    };
    match value.kind() {
        JsonKind::String => {
            is(value, &UNAVAILABLE_TEXTS) || value.as_str().is_some_and(|text| is_pair(&text))
        }
        JsonKind::Array => {
            value.text().trim_matches(['[', ']']) == UNAVAILABLE_BYTES
                || matches!(value.elements().as_slice(), [only] if is(*only, &UNAVAILABLE_TEXTS) || is(*only, &[UNAVAILABLE_UUID]))
        }
        // An hstore column as a map: name and value are both the placeholder.
        JsonKind::Object => {
            matches!(value.members().as_slice(), [(name, named)] if name == UNAVAILABLE && is(*named, &[UNAVAILABLE]))
        }
        JsonKind::Null | JsonKind::Bool | JsonKind::Number => false,
    }
}

/// Returns whether a text is an hstore column as JSON text whose name and value are both the
/// placeholder.
fn is_pair(text: &str) -> bool {
    let Some(inner) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) else {
        return false;
    };
    let mut halves = inner.splitn(2, ':').map(|half| half.trim().trim_matches('"') == UNAVAILABLE);
    halves.next() == Some(true) && halves.next() == Some(true)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;

    fn kept(text: &str) -> Cow<'_, str> {
        row(Json::parse(text).unwrap(), "after").unwrap()
    }

    #[test]
    fn forms_of_the_debezium_placeholder_are_computed_correctly() {
        assert_eq!(
            base64::engine::general_purpose::STANDARD.encode(UNAVAILABLE),
            UNAVAILABLE_BASE64
        );
        assert_eq!(
            UNAVAILABLE.bytes().map(|byte| format!("{byte:02x}")).collect::<String>(),
            UNAVAILABLE_HEX
        );
        assert_eq!(
            UNAVAILABLE.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(","),
            UNAVAILABLE_BYTES
        );
    }

    #[test]
    fn unavailable_debezium_columns_are_removed() {
        for unavailable in [
            format!("\"{UNAVAILABLE}\""),
            format!("\"{UNAVAILABLE_BASE64}\""),
            format!("\"{UNAVAILABLE_HEX}\""),
            format!("[\"{UNAVAILABLE}\"]"),
            format!("[ \"{UNAVAILABLE_UUID}\" ]"),
            format!("[{UNAVAILABLE_BYTES}]"),
            format!("{{\"{UNAVAILABLE}\":\"{UNAVAILABLE}\"}}"),
            format!("\"{{\\\"{UNAVAILABLE}\\\":\\\"{UNAVAILABLE}\\\"}}\""),
        ] {
            assert_eq!(
                kept(&format!("{{\"id\":7, \"x\":{unavailable}, \"n\":1.50}}")),
                "{\"id\":7,\"n\":1.50}",
                "{unavailable}"
            );
            assert_eq!(kept(&format!("{{\"x\":{unavailable}}}")), "{}");
        }
    }

    #[test]
    fn text_that_mentions_the_debezium_placeholder_is_kept() {
        for text in [
            format!("{{\"x\":\"about {UNAVAILABLE}\"}}"),
            format!("{{\"x\":[\"{UNAVAILABLE}\",\"y\"]}}"),
            format!("{{\"{UNAVAILABLE}\":1}}"),
            format!("{{\"x\":\"{UNAVAILABLE_UUID}\"}}"),
        ] {
            assert_eq!(kept(&text), text);
        }
        assert!(matches!(kept("{\"x\": 1}"), Cow::Borrowed("{\"x\": 1}")));
    }

    #[test]
    fn debezium_positions_order_the_events_of_a_source() {
        let position =
            |text: &str| Source::Object(Object::of(Json::parse(text).unwrap()).unwrap()).position();
        assert_eq!(position(r#"{"lsn":29274832}"#), Some(29_274_832));
        assert_eq!(position(r#"{"lsn":"29274832"}"#), Some(29_274_832));
        assert_eq!(position(r#"{"file":"mysql-bin.000003","pos":154}"#), Some((3 << 32) | 154));
        assert_eq!(
            position(r#"{"file":"a.b.000012","pos":4294967295}"#),
            Some((12 << 32) | 0xFFFF_FFFF)
        );
        for none in [
            r#"{}"#,
            r#"{"lsn":null}"#,
            r#"{"file":"","pos":0}"#,
            r#"{"file":"mysql-bin","pos":4}"#,
            r#"{"file":"b.1","pos":4294967296}"#,
        ] {
            assert_eq!(position(none), None, "{none}");
        }
    }
}
