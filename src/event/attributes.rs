//! Attributes of a CloudEvent, in headers or in the body.
//!
//! AMQP 0-9-1 has no CloudEvents binding, so the names of three other bindings are accepted:
//!
//! - `cloudEvents:` and `cloudEvents_` of the AMQP 1.0 binding (cloudevents/spec,
//!   amqp-protocol-binding.md, section 3.1.3.1). RabbitMQ turns its application properties into
//!   headers.
//! - `ce-` of Knative's RabbitMQ binding.
//! - No prefix, as in the MQTT binding (mqtt-protocol-binding.md, section 3.1.3.1). Its user
//!   properties become headers with the names of the attributes.

use std::borrow::Cow;

use super::decoded::{Attribute, Malformed, malformed};
use super::json::{Json, JsonKind};
use super::message::{HeaderValue, Headers};
use super::object::Object;
use super::time;

const PREFIXES: [&str; 4] = ["cloudEvents:", "cloudEvents_", "ce-", "ce_"];

/// Names that are not extension attributes: attributes with an own field in an event, and members
/// of the envelope.
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

/// The attributes of a CloudEvent, in the place where the message has them.
#[derive(Debug, Clone, Copy)]
pub(super) enum Attributes<'m, 'a> {
    /// In headers with one of the prefixes. Upper and lower case are equal.
    Headers(&'a Headers<'a>),
    /// In headers without a prefix, where MQTT's user properties arrive.
    PlainHeaders(&'a Headers<'a>),
    /// In members beside the data.
    Members(&'m Object<'a>),
}

impl<'a> Attributes<'_, 'a> {
    /// Returns the attributes in binary mode. `None` if the headers name no type.
    pub(super) fn in_headers(headers: &'a Headers<'a>) -> Option<Self> {
        if header(headers, "type").is_some() {
            return Some(Self::Headers(headers));
        }
        let is_plain = headers.get("specversion").is_some() && headers.get("type").is_some();
        is_plain.then_some(Self::PlainHeaders(headers))
    }

    /// Returns whether the attribute is present, with any value.
    pub(super) fn contains(self, name: &str) -> bool {
        match self {
            Self::Headers(headers) => header(headers, name).is_some(),
            Self::PlainHeaders(headers) => headers.get(name).is_some(),
            Self::Members(members) => members.contains(name),
        }
    }

    /// Returns the attribute in its canonical text form (CloudEvents 1.0, section "Type System").
    pub(super) fn text(self, name: &str) -> Option<Cow<'a, str>> {
        match self {
            Self::Headers(headers) => canonical(header(headers, name)?),
            Self::PlainHeaders(headers) => canonical(headers.get(name)?),
            Self::Members(members) => members.scalar(name),
        }
    }

    /// Returns each extension attribute once, with its name in lower case.
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
            // Other headers may be among them. Names with a dash are excluded, since our headers
            // and the broker's have one.
            Self::PlainHeaders(headers) => {
                let named = headers.0.iter().filter(|(name, _)| {
                    is_extension(name) && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
                });
                named
                    .filter_map(|(name, value)| Some((Cow::Borrowed(&**name), canonical(value)?)))
                    .collect()
            }
            // Among several members of one name the last counts.
            Self::Members(members) => {
                let named = members.members().iter().rev().filter(|(name, _)| is_extension(name));
                named.filter_map(|(name, value)| Some((name.clone(), value.scalar()?))).collect()
            }
        }
    }

    /// Returns the extension attribute `previous`. In a header it is the text of a JSON object.
    pub(super) fn previous(self) -> Result<Option<Cow<'a, str>>, Malformed> {
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

fn header<'a>(headers: &'a Headers<'a>, attribute: &str) -> Option<&'a HeaderValue<'a>> {
    headers.0.iter().find(|(name, _)| is_attribute(name, attribute)).map(|(_, value)| value)
}

fn is_attribute(header: &str, attribute: &str) -> bool {
    without_prefix(header).is_some_and(|name| name.eq_ignore_ascii_case(attribute))
}

/// Returns the rest of a header name after one of the prefixes.
fn without_prefix(header: &str) -> Option<&str> {
    // A cheap test first: every prefix starts with this letter, and most headers do not.
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

pub(super) fn strip_prefix_ignore_case<'t>(text: &'t str, prefix: &str) -> Option<&'t str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attribute_prefix_is_accepted_in_any_case() {
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
    fn header_values_become_attribute_text() {
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
