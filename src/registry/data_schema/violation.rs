//! Finds the place of a payload that violates its schema, and names it without a value of the
//! payload.

use std::borrow::Cow;
use std::fmt::Write as _;

use jsonschema::error::ValidationErrorKind;

use super::super::budget::Budget;
use super::super::payload_json::{Meter, PayloadNode};
use super::{DataSchema, number, references};
use crate::event::Json;
use crate::event::json::JsonKind;
use crate::printable::printable;

/// Units of work for the search. Beyond it, the message names no place.
const SEARCH_WORK: u64 = 1_000_000;

/// Maximum bytes of the payload that are scanned to name a place, summed over its levels.
const MAX_SCANNED_BYTES: u64 = 8 * 1024 * 1024;

/// Maximum length of a place, and of a keyword's path, in bytes.
const MAX_PATH_BYTES: usize = 512;

impl DataSchema {
    /// Returns a message with the place and the keyword that an invalid payload violates.
    ///
    /// The search has a small budget of its own.
    pub(in super::super) fn violation<'a>(
        &self,
        data: Json<'a>,
        members: &'a [(Cow<'a, str>, Json<'a>)],
    ) -> String {
        let budget = Budget::with_limits(SEARCH_WORK, 0);
        let meter = Meter::of_search(&budget, self.costs);
        let generic = || "the payload violates its schema".to_owned();
        if self.costs.backtracking_names > 0 {
            // For an unfinished match, the library looks up the value in a tree that does not exist
            // here.
            return generic();
        }
        let found = meter.search(|| {
            let error = self.validator.validate(PayloadNode::of(data, members, &meter)).err()?;
            let keyword = number::as_written(&references::as_written(
                error.schema_path().as_str(),
                &self.borrowed,
            ));
            let missing = match error.kind() {
                ValidationErrorKind::Required { property } => property.as_str().map(str::to_owned),
                _ => None,
            };
            Some((keyword, missing))
        });
        let at = match meter.failing().and_then(|address| self.place(data, address)) {
            Some(place) if !place.is_empty() => format!(" at `{place}`"),
            _ => String::new(),
        };
        match found {
            Some(Some((keyword, missing))) => {
                let mut message = format!("the payload{at} violates `{}`", shown(&keyword));
                if let Some(missing) = missing {
                    let _ = write!(message, ": {} is missing", shown(&missing));
                }
                message
            }
            None if meter.failing().is_some() => {
                format!("the payload{at} violates {} of its schema", self.branching)
            }
            Some(None) | None => generic(),
        }
    }

    /// Returns the JSON pointer of the value that begins at that address. Names that the schema
    /// does not mention are `*`.
    fn place(&self, data: Json<'_>, address: usize) -> Option<String> {
        let mut path = String::new();
        let mut json = data;
        let mut bytes_left = MAX_SCANNED_BYTES;
        let includes = |json: Json<'_>| {
            let start = json.text().as_ptr().addr();
            (start..start + json.text().len()).contains(&address)
        };
        while json.text().as_ptr().addr() != address {
            bytes_left = bytes_left.checked_sub(json.text().len() as u64)?;
            match json.kind() {
                JsonKind::Object => {
                    let (name, value) =
                        json.members().into_iter().find(|(_, value)| includes(*value))?;
                    path.push('/');
                    match self.names.contains(&*name) {
                        true => path.push_str(&name.replace('~', "~0").replace('/', "~1")),
                        false => path.push('*'),
                    }
                    json = value;
                }
                JsonKind::Array => {
                    let (index, element) = json
                        .elements()
                        .into_iter()
                        .enumerate()
                        .find(|(_, element)| includes(*element))?;
                    let _ = write!(path, "/{index}");
                    json = element;
                }
                JsonKind::Null | JsonKind::Bool | JsonKind::Number | JsonKind::String => {
                    return None;
                }
            }
        }
        Some(shown(&path))
    }
}

/// Returns a text of a schema in the form that messages show: short, and without control
/// characters.
fn shown(text: &str) -> String {
    let end = text.char_indices().map(|(byte, _)| byte).find(|byte| *byte > MAX_PATH_BYTES);
    end.map_or_else(|| printable(text).into_owned(), |end| format!("{}…", printable(&text[..end])))
}
