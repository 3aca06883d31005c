//! The outermost level of a body, parsed once.

use std::borrow::Cow;

use super::decoded::{Malformed, malformed};
use super::json::{Json, JsonError, JsonKind, MemberList};

/// A JSON object and its members.
#[derive(Debug)]
pub(super) struct Object<'a> {
    json: Json<'a>,
    members: MemberList<'a>,
}

/// Some writers put it before UTF-8 text. RFC 8259, section 8.1, lets readers ignore it.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

impl<'a> Object<'a> {
    /// Returns `{}`.
    pub(super) const fn empty() -> Self {
        Self { json: Json::EMPTY_OBJECT, members: MemberList::new_const() }
    }

    /// Parses the bytes of a body.
    pub(super) fn parse(body: &'a [u8], subject: &str) -> Result<Self, Malformed> {
        let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
        let text = std::str::from_utf8(body).map_err(|error| {
            malformed(format!(
                "{subject} is not UTF-8 from byte {} on: publish one JSON object in UTF-8",
                error.valid_up_to()
            ))
        })?;
        let (json, members) = Json::parse_members(text).map_err(|error| {
            let most = if error == JsonError::TooDeep {
                "publish less nesting"
            } else {
                "publish one JSON object a message"
            };
            malformed(format!("{subject} is {error}: {most}"))
        })?;
        if json.kind() != JsonKind::Object {
            return Err(malformed(format!(
                "{subject} is {}: publish one JSON object a message",
                json.kind()
            )));
        }
        Ok(Self { json, members })
    }

    /// Returns the members of a value if it is an object.
    pub(super) fn of(json: Json<'a>) -> Option<Self> {
        (json.kind() == JsonKind::Object).then(|| Self { json, members: json.members() })
    }

    /// Returns the same object with a shorter lifetime.
    pub(super) fn reborrowed(&self) -> Object<'_> {
        let members = self.members.iter().map(|(name, value)| (Cow::Borrowed(&**name), *value));
        Object { json: self.json, members: members.collect() }
    }

    /// Returns the text of the whole object.
    pub(super) fn text(&self) -> &'a str {
        self.json.text()
    }

    /// Returns the members in order, with duplicate names and nulls.
    pub(super) fn members(&self) -> &[(Cow<'a, str>, Json<'a>)] {
        &self.members
    }

    /// Returns whether a member of that name exists, null included.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.members.iter().any(|(key, _)| key == name)
    }

    /// Returns the member of that name. Among several the last counts, and null counts as absent.
    pub(super) fn get(&self, name: &str) -> Option<Json<'a>> {
        self.members
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, value)| *value)
            .filter(|value| !value.is_null())
    }

    /// Returns the member as text: a string, or a number or boolean in its published text.
    pub(super) fn scalar(&self, name: &str) -> Option<Cow<'a, str>> {
        self.get(name)?.scalar()
    }

    /// Returns the member if it is an object; `None` if it is absent or null.
    ///
    /// # Errors
    /// The member is of any other kind.
    pub(super) fn object(&self, name: &str) -> Result<Option<Json<'a>>, Malformed> {
        match self.get(name) {
            Some(value) if value.kind() != JsonKind::Object => Err(malformed(format!(
                "`{name}` is {}: it must be a JSON object or absent",
                value.kind()
            ))),
            value => Ok(value),
        }
    }
}

/// Returns whether a text can only be the JSON of an object.
pub(super) fn is_object_text(text: &str) -> bool {
    text.trim_start().starts_with('{')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_not_an_object_is_named_by_its_kind() {
        for (body, message) in [
            (&b"[1]"[..], "the body is an array: publish one JSON object a message"),
            (b"\"x\"", "the body is a string: publish one JSON object a message"),
            (b"null", "the body is null: publish one JSON object a message"),
            (
                b"{\"a\":}",
                "the body is not JSON: syntax error at line 1, column 6: publish one JSON object a message",
            ),
            (
                b"{\"a\":\xff}",
                "the body is not UTF-8 from byte 5 on: publish one JSON object in UTF-8",
            ),
        ] {
            assert_eq!(Object::parse(body, "the body").unwrap_err().to_string(), message);
        }
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(100), "]".repeat(100));
        let error = Object::parse(deep.as_bytes(), "the body").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the body is nested deeper than 100 levels: publish less nesting"
        );
    }

    #[test]
    fn object_members_are_found_and_null_counts_as_absent() {
        let object =
            Object::parse(b"\xEF\xBB\xBF {\"a\":1,\"a\":true,\"n\":null,\"o\":{}}\n", "the body")
                .unwrap();
        assert_eq!(object.scalar("a").as_deref(), Some("true"));
        assert!(object.contains("n") && object.get("n").is_none());
        assert!(object.object("o").unwrap().is_some() && object.object("n").unwrap().is_none());
        assert!(object.object("a").is_err());
        assert_eq!(object.text(), "{\"a\":1,\"a\":true,\"n\":null,\"o\":{}}");
    }
}
