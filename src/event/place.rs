//! The setting `UNSTALE_TYPE_FROM`: the header or the member of the body that has the event's type.

use std::borrow::Cow;
use std::fmt;

use super::json::{Json, JsonKind};
use super::message::{HeaderValue, Headers};
use super::object::Object;

/// Prefix of MassTransit's types.
pub(super) const URN: &str = "urn:message:";

/// Place of an event's type.
///
/// Names live as long as the process, since settings are read once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TypeFrom {
    /// The place that the message's form defines: a header, the body or a property, else the
    /// routing key.
    #[default]
    Any,
    /// The routing key alone. The broker's topic permissions then apply to event types.
    RoutingKey,
    /// The header of that name. A message without it is read as with `Any`.
    Header(&'static str),
    /// The member of the body at that path, with dots between names. A message without it is read
    /// as with `Any`.
    Body(&'static str),
}

impl TypeFrom {
    /// Parses the setting's value.
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once(':') {
            None if text == "any" => Some(Self::Any),
            None if text == "routing_key" => Some(Self::RoutingKey),
            Some(("header", name)) if !name.is_empty() && name.len() <= 255 => {
                Some(Self::Header(kept(name)))
            }
            Some(("body", path)) if path.split('.').all(|name| !name.is_empty()) => {
                Some(Self::Body(kept(path)))
            }
            _ => None,
        }
    }

    /// Returns the type in the header that the setting names.
    pub(super) fn in_headers<'a>(self, headers: &'a Headers<'a>) -> Option<Cow<'a, str>> {
        let Self::Header(name) = self else { return None };
        match headers.get(name)? {
            HeaderValue::Text(text) => {
                Some(type_name(Cow::Borrowed(text))).filter(|name| !name.is_empty())
            }
            _ => None,
        }
    }

    /// Returns the type in the member of the body that the setting names.
    pub(super) fn in_body<'a>(self, body: &Object<'a>) -> Option<Cow<'a, str>> {
        let Self::Body(path) = self else { return None };
        let mut names = path.split('.');
        let found = names.by_ref().next().and_then(|name| body.get(name))?;
        let found = names.try_fold(found, Json::get)?;
        let name = match found.kind() {
            JsonKind::Array => found.elements().into_iter().next()?.as_str()?,
            _ => found.as_str()?,
        };
        Some(type_name(name)).filter(|name| !name.is_empty())
    }
}

impl fmt::Display for TypeFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::RoutingKey => f.write_str("routing_key"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Body(path) => write!(f, "body:{path}"),
        }
    }
}

fn kept(name: &str) -> &'static str {
    Box::leak(name.into())
}

/// Returns the name in a type as frameworks write it.
///
/// `urn:message:Acme.Contracts:ProductUpdated` becomes `ProductUpdated`. Assembly names and further
/// types, which follow a comma or a semicolon, are left out.
pub(super) fn type_name(text: Cow<'_, str>) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(name_in(text)),
        Cow::Owned(text) => {
            let name = name_in(&text);
            Cow::Owned(if name.len() == text.len() { text } else { name.to_owned() })
        }
    }
}

/// Works like [`type_name`] on a borrowed text.
pub(super) fn name_in(text: &str) -> &str {
    let Some(urn) = text.strip_prefix(URN) else {
        return text.split([',', ';']).next().unwrap_or_default().trim();
    };
    let without_arguments = urn.split("[[").next().unwrap_or_default();
    without_arguments.rsplit(':').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_from_settings_parse_and_print_alike() {
        for text in [
            "any",
            "routing_key",
            "header:rbs2-msg-type",
            "header:a:b",
            "body:pattern",
            "body:meta.event.name",
        ] {
            assert_eq!(TypeFrom::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "",
            "body",
            "header",
            "header:",
            "body:",
            "body:a..b",
            "body:.a",
            "Any",
            "property:type",
        ] {
            assert_eq!(TypeFrom::parse(text), None, "{text}");
        }
    }

    #[test]
    fn type_names_of_frameworks_are_shortened() {
        for (text, name) in [
            ("urn:message:Acme.Contracts:ProductUpdated", "ProductUpdated"),
            ("urn:message:ProductUpdated", "ProductUpdated"),
            ("urn:message:MassTransit:Fault[[Acme.Contracts:ProductUpdated]]", "Fault"),
            (
                "Acme.Contracts.ProductUpdated, Acme.Contracts, Version=1.0.0.0",
                "Acme.Contracts.ProductUpdated",
            ),
            ("Acme.A;Acme.B", "Acme.A"),
            ("App\\Message\\ProductUpdated", "App\\Message\\ProductUpdated"),
            ("user.updated", "user.updated"),
            ("", ""),
        ] {
            assert_eq!(type_name(Cow::Borrowed(text)), name);
            assert_eq!(type_name(Cow::Owned(text.to_owned())), name);
        }
    }

    #[test]
    fn a_body_member_can_name_the_event_type() {
        let body = Object::parse(
            br#"{"a":{"b":"x.y","n":1},"list":["urn:message:N:T","other"],"e":"","none":[]}"#,
            "it",
        )
        .unwrap();
        let named = |path| TypeFrom::parse(&format!("body:{path}")).unwrap().in_body(&body);
        assert_eq!(named("a.b").as_deref(), Some("x.y"));
        assert_eq!(named("list").as_deref(), Some("T"));
        for path in ["a", "a.n", "a.b.c", "e", "none", "missing", "a.missing"] {
            assert_eq!(named(path), None, "{path}");
        }
    }
}
