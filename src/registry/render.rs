//! Fills templates: as text, as JSON and as URLs, once for each element of the arrays that they
//! name.

use percent_encoding::utf8_percent_encode;

use super::budget::Spent;
use super::fault::Fault;
use super::functions::ENCODED;
use super::number::integer_digits;
use super::path::{Path, PathStep};
use super::scope::{Binding, Found, Scope};
use super::template::{Piece, Template};
use super::url_template::{UrlTemplate, has_dot_segment};
use super::value_template::ValueTemplate;
use crate::event::Json;
use crate::event::json::{JsonKind, MAX_DEPTH, write_string};

/// Reason why a template has no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Miss {
    /// `{path?}` without a value: the result is dropped on purpose.
    Dropped,
    /// A value is missing or unusable. Names paths, never values.
    Unresolvable(String),
}

impl From<Fault> for Miss {
    fn from(fault: Fault) -> Self {
        Self::Unresolvable(fault.message)
    }
}

/// Function that receives each combination of elements, and each array that does not exist.
type Expanded<'f, 't> = dyn FnMut(Result<&[Binding<'t>], Miss>) -> Result<(), Stop> + 'f;

/// Reason why an expansion ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// More targets than the limit.
    TooMany,
    /// The event's budget is spent.
    Spent,
}

impl From<Spent> for Stop {
    fn from(_: Spent) -> Self {
        Self::Spent
    }
}

/// Callers check the budget themselves.
impl From<Spent> for Miss {
    fn from(spent: Spent) -> Self {
        Self::Unresolvable(spent.to_string())
    }
}

/// Units of work for one combination of elements.
const WORK_PER_COMBINATION: u64 = 8;

impl Template {
    /// Appends the text. A miss leaves the text before it in `out`.
    pub(super) fn render(
        &self,
        scope: &Scope<'_, '_>,
        bindings: &[Binding<'_>],
        out: &mut String,
    ) -> Result<(), Miss> {
        self.render_with(scope, bindings, out, |text, out| out.push_str(text))
    }

    fn render_with(
        &self,
        scope: &Scope<'_, '_>,
        bindings: &[Binding<'_>],
        out: &mut String,
        push: fn(&str, &mut String),
    ) -> Result<(), Miss> {
        let mut miss = None;
        for (at, piece) in self.pieces.iter().enumerate() {
            match piece {
                Piece::Literal(text) => {
                    scope.event.budget.bytes(text.len())?;
                    out.push_str(text);
                }
                Piece::Path(path) => {
                    match interpolate(path, self.end_of(at), scope, bindings, out, push) {
                        Ok(()) => {}
                        Err(Miss::Dropped) => return Err(Miss::Dropped),
                        // A later `{path?}` may still drop the result.
                        Err(unresolvable) => miss = miss.or(Some(unresolvable)),
                    }
                }
            }
        }
        miss.map_or(Ok(()), Err)
    }

    /// Calls `each` for every combination of elements of the arrays that `bindings` does not bind
    /// yet.
    ///
    /// Also calls it for every array that does not exist.
    pub(super) fn expand<'t>(
        &'t self,
        scope: &Scope<'_, '_>,
        bindings: &mut Vec<Binding<'t>>,
        each: &mut Expanded<'_, 't>,
    ) -> Result<(), Stop> {
        let next = self.paths().find_map(|path| {
            let end = (1..=path.steps().len()).find(|&end| {
                path.steps()[end - 1] == PathStep::Each
                    && !bindings.iter().any(|bound| {
                        bound.start == path.start && *bound.steps == path.steps()[..end]
                    })
            })?;
            Some((path, &path.steps()[..end]))
        });
        let Some((path, steps)) = next else { return each(Ok(bindings)) };
        match scope.length(path, &steps[..steps.len() - 1], bindings) {
            Err(fault) => each(Err(fault.into())),
            Ok(None) => {
                let uses_it = |other: &Path| {
                    other.is_optional()
                        && other.start == path.start
                        && other.steps().starts_with(steps)
                };
                let is_dropped = self.paths().any(uses_it);
                each(Err(if is_dropped {
                    Miss::Dropped
                } else {
                    Miss::Unresolvable(format!("`{path}`: there is no array"))
                }))
            }
            Ok(Some(length)) => {
                for at in 0..length {
                    scope.event.budget.work(WORK_PER_COMBINATION)?;
                    bindings.push(Binding { start: path.start, steps, at });
                    let done = self.expand(scope, bindings, each);
                    bindings.pop();
                    done?;
                }
                Ok(())
            }
        }
    }
}

fn interpolate(
    path: &Path,
    end: Option<&str>,
    scope: &Scope<'_, '_>,
    bindings: &[Binding<'_>],
    out: &mut String,
    push: fn(&str, &mut String),
) -> Result<(), Miss> {
    let unusable = |what: &str| Miss::Unresolvable(format!("`{path}` {what}"));
    let mut push_text = |text: &str| {
        scope.event.budget.bytes(text.len())?;
        if text.is_empty() {
            return Err(unusable("is an empty string"));
        }
        if text.chars().any(char::is_control) {
            return Err(unusable("holds a control character"));
        }
        push(text, out);
        Ok(())
    };
    let push_value = |text: &str, push_text: &mut dyn FnMut(&str) -> Result<(), Miss>| match end {
        Some(end) if holds_end(text, end) => Err(Miss::Unresolvable(format!(
            "`{path}` holds `{end}`, which follows it, so the name is ambiguous: limit it in `data`, or write {{{path}|raw}}"
        ))),
        _ => push_text(text),
    };
    match scope.read(path, bindings)? {
        None if path.is_optional() => Err(Miss::Dropped),
        None => Err(unusable("is absent")),
        Some(Found::Text(text)) => push_value(text, &mut push_text),
        Some(Found::Integer(integer)) => push_text(&integer.to_string()),
        Some(Found::Json(json)) => match json.kind() {
            JsonKind::Number | JsonKind::String => {
                scope.event.budget.work(1 + json.text().len() as u64 / 16)?;
                match json.as_str() {
                    Some(text) => push_value(&text, &mut push_text),
                    None => push_text(
                        &integer_digits(json.text())
                            .ok_or_else(|| unusable("is a number but not an integer"))?,
                    ),
                }
            }
            JsonKind::Bool => push_text(json.text()),
            JsonKind::Null if path.is_optional() => Err(Miss::Dropped),
            JsonKind::Null => Err(unusable("is null")),
            JsonKind::Array => Err(unusable("is an array")),
            JsonKind::Object => Err(unusable("is an object")),
        },
    }
}

/// Returns whether the delimiter, searched in the value and the delimiter after it, begins before
/// the value's end.
fn holds_end(value: &str, delimiter: &str) -> bool {
    let (value, delimiter) = (value.as_bytes(), delimiter.as_bytes());
    let begins_before = |length: usize| {
        value.ends_with(&delimiter[..length]) && delimiter.starts_with(&delimiter[length..])
    };
    memchr::memmem::find(value, delimiter).is_some() || (1..delimiter.len()).any(begins_before)
}

impl UrlTemplate {
    /// Returns the URL: the loader's base, then path and query.
    pub(super) fn render(
        &self,
        base: &str,
        scope: &Scope<'_, '_>,
        bindings: &[Binding<'_>],
    ) -> Result<String, Miss> {
        let mut url = String::from(base.trim_end_matches('/'));
        let base_ends = url.len();
        let budget = scope.event.budget;
        budget.bytes(url.len())?;
        let before = budget.spent_bytes();
        self.template.render_with(scope, bindings, &mut url, |text, out| {
            out.extend(utf8_percent_encode(text, ENCODED))
        })?;
        // A byte becomes three, one of which is charged already. Dots are searched in the text
        // decoded four times.
        budget.bytes(2 * usize::try_from(budget.spent_bytes() - before).unwrap_or(usize::MAX))?;
        budget.work(url.len() as u64 * 4)?;
        if has_dot_segment(&url[base_ends..]) {
            return Err(Miss::Unresolvable("the URL would have a `.` or `..` segment".to_owned()));
        }
        Ok(url)
    }
}

impl ValueTemplate {
    /// Appends the value as compact JSON.
    pub(super) fn render_json(
        &self,
        scope: &Scope<'_, '_>,
        bindings: &[Binding<'_>],
        out: &mut String,
    ) -> Result<(), Miss> {
        scope.event.budget.work(2)?;
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(bool) => out.push_str(if *bool { "true" } else { "false" }),
            Self::Number(text) => out.push_str(text),
            Self::Text(template) => return render_text(template, scope, bindings, out),
            Self::Array(elements) => {
                out.push('[');
                let first = out.len();
                for element in elements {
                    let before = out.len();
                    if before > first {
                        out.push(',');
                    }
                    keep_or_drop(element.render_json(scope, bindings, out), before, out)?;
                }
                out.push(']');
            }
            Self::Object(members) => {
                out.push('{');
                let first = out.len();
                for (name, value) in members {
                    let before = out.len();
                    if before > first {
                        out.push(',');
                    }
                    write_string(name, out);
                    out.push(':');
                    keep_or_drop(value.render_json(scope, bindings, out), before, out)?;
                }
                out.push('}');
            }
        }
        Ok(())
    }

    /// Appends the value, a string, as it is.
    pub(super) fn render_raw(
        &self,
        scope: &Scope<'_, '_>,
        bindings: &[Binding<'_>],
        out: &mut String,
    ) -> Result<(), Miss> {
        let Self::Text(template) = self else {
            return Err(Miss::Unresolvable("a raw value must be a string".to_owned()));
        };
        if let Some(path) = template.single_path() {
            match scope.read(path, bindings)? {
                Some(Found::Text(text)) => {
                    scope.event.budget.bytes(text.len())?;
                    out.push_str(text);
                    return Ok(());
                }
                Some(Found::Json(json)) if json.kind() == JsonKind::String => {
                    scope.event.budget.bytes(json.text().len())?;
                    out.push_str(&json.as_str().unwrap_or_default());
                    return Ok(());
                }
                _ => {}
            }
        }
        template.render(scope, bindings, out)
    }
}

fn keep_or_drop(rendered: Result<(), Miss>, before: usize, out: &mut String) -> Result<(), Miss> {
    match rendered {
        Err(Miss::Dropped) => {
            out.truncate(before);
            Ok(())
        }
        other => other,
    }
}

fn render_text(
    template: &Template,
    scope: &Scope<'_, '_>,
    bindings: &[Binding<'_>],
    out: &mut String,
) -> Result<(), Miss> {
    let Some(path) = template.single_path() else {
        let mut text = String::new();
        template.render(scope, bindings, &mut text)?;
        // Without control characters, a byte becomes at most two.
        scope.event.budget.bytes(2 * text.len())?;
        write_string(&text, out);
        return Ok(());
    };
    match scope.read(path, bindings)? {
        None if path.is_optional() => return Err(Miss::Dropped),
        None => return Err(Miss::Unresolvable(format!("`{path}` is absent"))),
        Some(Found::Json(json)) if json.is_null() && path.is_optional() => {
            return Err(Miss::Dropped);
        }
        Some(Found::Json(json)) => {
            let length = json.text().len();
            scope.event.budget.bytes(length)?;
            scope.event.budget.work(length as u64 / 2)?;
            if !json.write_unique(out) {
                scope.event.budget.work(length as u64 * depth_of(json))?;
                json.write_last(out);
            }
        }
        Some(Found::Text(text)) => {
            scope.event.budget.bytes(6 * text.len())?;
            write_string(text, out);
        }
        Some(Found::Integer(integer)) => out.push_str(&integer.to_string()),
    }
    Ok(())
}

/// Returns the maximum number of levels of a value. Each level is read once more than the one above
/// it.
fn depth_of(json: Json<'_>) -> u64 {
    let (mut depth, mut deepest) = (0_i64, 0_i64);
    for byte in json.text().bytes() {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    u64::try_from(deepest).unwrap_or(0).clamp(1, MAX_DEPTH as u64)
}
