//! Members of a payload on their way from decoding to resolving.

use std::borrow::Cow;

use super::json::Json;

/// Maximum number of members that an event takes along. A larger payload is parsed again.
const PARSED_MAX: usize = 8;

/// Members of an event's payload that decoding has parsed, so that resolving need not parse them
/// again.
///
/// It is no part of the event's value: any two are equal.
#[derive(Debug, Clone, Copy)]
pub struct Parsed<'a> {
    payload: Json<'a>,
    members: [(&'a str, Json<'a>); PARSED_MAX],
    count: usize,
}

impl<'a> Parsed<'a> {
    /// An object without members, which is true of itself.
    pub(super) const NOTHING: Self = Self {
        payload: Json::EMPTY_OBJECT,
        members: [("", Json::EMPTY_OBJECT); PARSED_MAX],
        count: 0,
    };

    /// Takes the members of a payload along, if they are few and no name is escaped.
    pub(super) fn of(payload: Json<'a>, members: &[(Cow<'a, str>, Json<'a>)]) -> Self {
        let mut parsed = Self { payload, ..Self::NOTHING };
        if members.len() > PARSED_MAX {
            return Self::NOTHING;
        }
        for (place, (name, value)) in parsed.members.iter_mut().zip(members) {
            let Cow::Borrowed(name) = name else { return Self::NOTHING };
            *place = (name, *value);
        }
        parsed.count = members.len();
        parsed
    }

    /// Returns the members in order if this is the payload. The place in memory decides, so the
    /// answer is right even if the event got another payload.
    pub(crate) fn members_of(&self, payload: Json<'_>) -> Option<&[(&'a str, Json<'a>)]> {
        let is_it = std::ptr::eq(self.payload.text(), payload.text());
        self.members.get(..self.count).filter(|_| is_it)
    }
}

impl Default for Parsed<'_> {
    fn default() -> Self {
        Self::NOTHING
    }
}

impl PartialEq for Parsed<'_> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Parsed<'_> {}
