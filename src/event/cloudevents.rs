//! CloudEvents 1.0, in headers (binary mode) or in the body (structured mode).
//!
//! AMQP 0-9-1 has no binding of its own. `cloudEvents:` and `cloudEvents_` come from the AMQP 1.0
//! binding (cloudevents/spec, amqp-protocol-binding.md, section 3.1.3.1), whose application
//! properties RabbitMQ turns into headers; `ce-` from Knative's RabbitMQ binding. The MQTT binding
//! (mqtt-protocol-binding.md, section 3.1.3.1) has no prefix: its user properties are headers named
//! like the attributes.

use std::borrow::Cow;

use base64::Engine as _;

use super::decode::{Arrival, Draft};
use super::json::{Json, JsonKind};
use super::object::{Object, is_object_text};
use super::{Attribute, Decoded, Form, HeaderValue, Headers, Malformed, debezium, malformed, time};

const PREFIXES: [&str; 4] = ["cloudEvents:", "cloudEvents_", "ce-", "ce_"];

/// Attributes that an event has fields for, and members that are none.
const CORE: [&str; 12] = [
    "specversion",
    "id",
    "type",
    "source",
    "subject",
    "time",
    "datacontenttype",
    "dataschema",
    "data",
    "data_base64",
    "previous",
    "traceparent",
];

/// What a content type says of CloudEvents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MediaType {
    /// `application/cloudevents+json`
    Structured,
    /// `application/cloudevents-batch+…`
    Batch,
    /// `application/cloudevents+…`, not JSON.
    OtherFormat,
    /// Nothing.
    None,
}

impl MediaType {
    pub(super) fn of(content_type: Option<&str>) -> Self {
        let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        let Some(rest) = strip_prefix_ignore_case(essence, "application/cloudevents") else {
            return Self::None;
        };
        if rest.eq_ignore_ascii_case("+json") {
            Self::Structured
        } else if strip_prefix_ignore_case(rest, "-batch").is_some() {
            Self::Batch
        } else if rest.starts_with('+') {
            Self::OtherFormat
        } else {
            Self::None
        }
    }
}

/// Where the attributes of a CloudEvent stand.
#[derive(Debug, Clone, Copy)]
pub(super) enum Attributes<'m, 'a> {
    /// In headers, behind one of the prefixes; names in any case.
    Headers(&'a Headers<'a>),
    /// In headers without a prefix, as MQTT's user properties arrive.
    PlainHeaders(&'a Headers<'a>),
    /// Beside the data.
    Members(&'m Object<'a>),
}

impl<'a> Attributes<'_, 'a> {
    /// Returns those of a CloudEvent in binary mode; `None` if the headers name no type.
    pub(super) fn in_headers(headers: &'a Headers<'a>) -> Option<Self> {
        if header(headers, "type").is_some() {
            return Some(Self::Headers(headers));
        }
        let is_plain = headers.get("specversion").is_some() && headers.get("type").is_some();
        is_plain.then_some(Self::PlainHeaders(headers))
    }

    /// Whether the attribute is there, whatever its value.
    pub(super) fn contains(self, name: &str) -> bool {
        match self {
            Self::Headers(headers) => header(headers, name).is_some(),
            Self::PlainHeaders(headers) => headers.get(name).is_some(),
            Self::Members(members) => members.contains(name),
        }
    }

    /// The attribute in its canonical text form (CloudEvents 1.0, section "Type System").
    pub(super) fn text(self, name: &str) -> Option<Cow<'a, str>> {
        match self {
            Self::Headers(headers) => canonical(header(headers, name)?),
            Self::PlainHeaders(headers) => canonical(headers.get(name)?),
            Self::Members(members) => members.scalar(name),
        }
    }

    /// Returns the extension attributes, each once, under their names in lower case.
    pub(super) fn extensions(self) -> Vec<Attribute<'a>> {
        let is_extension = |name: &str| !CORE.contains(&name);
        match self {
            Self::Headers(headers) => {
                let named = headers
                    .0
                    .iter()
                    .filter_map(|(name, value)| Some((lower_case(without_prefix(name)?), value)));
                named
                    .filter(|(name, _)| is_extension(name))
                    .filter_map(|(name, value)| Some((name, canonical(value)?)))
                    .collect()
            }
            // Headers of others may be among them, but no names with a dash, as ours and the
            // broker's have.
            Self::PlainHeaders(headers) => {
                let named = headers.0.iter().filter(|(name, _)| {
                    is_extension(name) && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
                });
                named
                    .filter_map(|(name, value)| Some((Cow::Borrowed(&**name), canonical(value)?)))
                    .collect()
            }
            // Of several members of one name the last counts.
            Self::Members(members) => {
                let named = members.members().iter().rev().filter(|(name, _)| is_extension(name));
                named.filter_map(|(name, value)| Some((name.clone(), value.scalar()?))).collect()
            }
        }
    }

    /// The extension attribute `previous`: in a header the text of a JSON object.
    fn previous(self) -> Result<Option<Cow<'a, str>>, Malformed> {
        match self {
            Self::Headers(headers) | Self::PlainHeaders(headers) => {
                match self.header_named(headers, "previous") {
                    None => Ok(None),
                    Some(HeaderValue::Text(text)) => match Json::parse(text) {
                        Ok(json) if json.is_null() => Ok(None),
                        Ok(json) if json.kind() == JsonKind::Object => {
                            Ok(Some(Cow::Borrowed(json.text())))
                        }
                        Ok(json) => Err(malformed(format!(
                            "the CloudEvents header `previous` is {}: it must be a JSON object or absent",
                            json.kind()
                        ))),
                        Err(error) => {
                            Err(malformed(format!("the CloudEvents header `previous` is {error}")))
                        }
                    },
                    Some(_) => Err(Malformed(Cow::Borrowed(
                        "the CloudEvents header `previous` is not text: it must be a JSON object or absent",
                    ))),
                }
            }
            Self::Members(members) => {
                Ok(members.object("previous")?.map(|previous| Cow::Borrowed(previous.text())))
            }
        }
    }

    fn header_named(self, headers: &'a Headers<'a>, name: &str) -> Option<&'a HeaderValue<'a>> {
        if matches!(self, Self::PlainHeaders(_)) {
            headers.get(name)
        } else {
            header(headers, name)
        }
    }
}

/// Returns a header's value in its canonical text form (CloudEvents 1.0, section "Type System").
fn canonical<'a>(value: &'a HeaderValue<'a>) -> Option<Cow<'a, str>> {
    match value {
        HeaderValue::Text(text) => Some(Cow::Borrowed(text)),
        HeaderValue::Integer(integer) => Some(Cow::Owned(integer.to_string())),
        HeaderValue::Double(double) => Some(Cow::Owned(double.to_string())),
        HeaderValue::Bool(bool) => Some(Cow::Borrowed(if *bool { "true" } else { "false" })),
        HeaderValue::Timestamp(seconds) => time::from_unix_s(*seconds).map(Cow::Owned),
        HeaderValue::Opaque => None,
    }
}

/// Binary mode: the body is the data.
pub(super) fn binary<'a>(
    arrival: &Arrival<'a>,
    attributes: Attributes<'_, 'a>,
    body: &Object<'a>,
    only: Option<Form>,
) -> Result<Option<Decoded<'a>>, Malformed> {
    read(arrival, attributes, body, Form::Binary, only)
}

/// Structured mode: the body is the event.
pub(super) fn structured<'a>(
    arrival: &Arrival<'a>,
    body: &Object<'a>,
    only: Option<Form>,
) -> Result<Option<Decoded<'a>>, Malformed> {
    let attributes = Attributes::Members(body);
    if let Some(data) = body.get("data") {
        if let Some(text) = data.as_str().filter(|text| is_object_text(text)) {
            let data = Object::parse(text.as_bytes(), "the CloudEvent's `data`, which is text,")?;
            let attributes = body.reborrowed();
            return Ok(read(
                arrival,
                Attributes::Members(&attributes),
                &data,
                Form::Structured,
                only,
            )?
            .map(Decoded::into_owned));
        }
        let data = Object::of(data).ok_or_else(|| {
            malformed(format!("the CloudEvent's `data` is {}: publish a JSON object, with datacontenttype application/json", data.kind()))
        })?;
        return read(arrival, attributes, &data, Form::Structured, only);
    }
    let Some(encoded) = body.get("data_base64") else {
        return read(arrival, attributes, &Object::empty(), Form::Structured, only);
    };
    let bytes = encoded
        .as_str()
        .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text.as_bytes()).ok());
    let bytes = bytes.ok_or(Malformed(Cow::Borrowed(
        "the CloudEvent's `data_base64` is not a string of padded standard base64",
    )))?;
    let data = if bytes.is_empty() {
        Object::empty()
    } else {
        Object::parse(&bytes, "the CloudEvent's `data_base64`, decoded,")?
    };
    let attributes = body.reborrowed();
    Ok(read(arrival, Attributes::Members(&attributes), &data, Form::Structured, only)?
        .map(Decoded::into_owned))
}

fn read<'a>(
    arrival: &Arrival<'a>,
    attributes: Attributes<'_, 'a>,
    data: &Object<'a>,
    form: Form,
    only: Option<Form>,
) -> Result<Option<Decoded<'a>>, Malformed> {
    let own_type = attributes.text("type");
    if own_type.is_none() && attributes.contains("type") {
        return Err(Malformed(Cow::Borrowed("the CloudEvents attribute `type` is not text")));
    }
    let lost_type = || if form == Form::Binary { arrival.type_on_copy() } else { None };
    let Some(event_type) = own_type.or_else(lost_type).filter(|event_type| !event_type.is_empty())
    else {
        return Err(Malformed(Cow::Borrowed(
            "the CloudEvents attribute `type` is missing or empty: name what happened there",
        )));
    };
    let event_time = attributes.text("time").and_then(utc);
    if only != Some(form)
        && let Some(change) = debezium::Change::in_cloud_event(&event_type, attributes, data)
    {
        let around = debezium::Around {
            id: attributes.text("id"),
            time: event_time,
            traceparent: attributes.text("traceparent"),
        };
        return change.decode(arrival, around).map(Some);
    }
    if only.is_some_and(|only| only != form) {
        return Ok(None);
    }
    let mut draft = Draft::new(form, event_type, Cow::Borrowed(data.text()));
    draft.previous_text = attributes.previous()?;
    draft.id = attributes.text("id");
    draft.time = event_time;
    draft.source = attributes.text("source");
    draft.subject = attributes.text("subject");
    draft.traceparent = attributes.text("traceparent");
    draft.attributes = attributes.extensions();
    draft.finish(arrival).map(Some)
}

/// An unreadable time is as good as none: it must not cost the event.
pub(super) fn utc(text: Cow<'_, str>) -> Option<Cow<'_, str>> {
    match text {
        Cow::Borrowed(text) => time::from_text(text),
        Cow::Owned(text) => time::from_text(&text).map(|time| Cow::Owned(time.into_owned())),
    }
}

fn header<'a>(headers: &'a Headers<'a>, attribute: &str) -> Option<&'a HeaderValue<'a>> {
    headers.0.iter().find(|(name, _)| is_attribute(name, attribute)).map(|(_, value)| value)
}

fn is_attribute(header: &str, attribute: &str) -> bool {
    without_prefix(header).is_some_and(|name| name.eq_ignore_ascii_case(attribute))
}

/// Returns the name behind one of the prefixes.
fn without_prefix(header: &str) -> Option<&str> {
    // Every prefix starts with this letter, and most headers do not.
    if !header.as_bytes().first()?.eq_ignore_ascii_case(&b'c') {
        return None;
    }
    PREFIXES.into_iter().find_map(|prefix| strip_prefix_ignore_case(header, prefix))
}

fn lower_case(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

fn strip_prefix_ignore_case<'t>(text: &'t str, prefix: &str) -> Option<&'t str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_are_told_apart() {
        for (content_type, media_type) in [
            ("application/cloudevents+json", MediaType::Structured),
            ("Application/CloudEvents+JSON ; charset=utf-8", MediaType::Structured),
            ("application/cloudevents-batch+json", MediaType::Batch),
            ("application/cloudevents-batch+json; charset=utf-8", MediaType::Batch),
            ("application/cloudevents+avro", MediaType::OtherFormat),
            ("application/cloudevents", MediaType::None),
            ("application/cloudeventsx", MediaType::None),
            ("application/json", MediaType::None),
            ("", MediaType::None),
        ] {
            assert_eq!(MediaType::of(Some(content_type)), media_type, "{content_type}");
        }
        assert_eq!(MediaType::of(None), MediaType::None);
    }

    #[test]
    fn each_prefix_is_known_in_any_case() {
        for name in [
            "cloudEvents:type",
            "cloudEvents_type",
            "ce-type",
            "ce_type",
            "CE-Type",
            "CLOUDEVENTS:TYPE",
            "Ce_tYpE",
        ] {
            assert!(is_attribute(name, "type"), "{name}");
        }
        for name in [
            "type",
            "ce",
            "ce-",
            "ce:type",
            "cetype",
            "cloudEvents-type",
            "ce-typed",
            "xce-type",
            "ç-type",
            "",
        ] {
            assert!(!is_attribute(name, "type"), "{name}");
        }
    }

    #[test]
    fn header_values_are_text() {
        let headers = Headers(vec![
            ("ce-a".into(), HeaderValue::Integer(-7)),
            ("ce-b".into(), HeaderValue::Bool(true)),
            ("ce-c".into(), HeaderValue::Timestamp(0)),
            ("ce-d".into(), HeaderValue::Opaque),
            ("ce-e".into(), HeaderValue::Text("x".into())),
        ]);
        let attributes = Attributes::Headers(&headers);
        assert_eq!(attributes.text("a").as_deref(), Some("-7"));
        assert_eq!(attributes.text("b").as_deref(), Some("true"));
        assert_eq!(attributes.text("c").as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(attributes.text("d"), None);
        assert_eq!(attributes.text("E").as_deref(), Some("x"));
        assert!(attributes.contains("d") && !attributes.contains("f"));
    }
}
