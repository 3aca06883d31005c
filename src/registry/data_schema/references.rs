//! Resolves `$ref` within the schema, or from the root of its file.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};
use url::Url;

use super::super::code::Code;
use super::super::diagnostic::Report;
use super::super::tree::{Allowance, Content, Node, ScalarKind};
use super::walk::{self, Holds, holds};

/// One file, as the target of `$ref`.
pub(in super::super) struct FileRoot<'n> {
    node: &'n Node,
    json: OnceCell<Value>,
}

impl<'n> FileRoot<'n> {
    pub(in super::super) fn new(node: &'n Node) -> Self {
        Self { node, json: OnceCell::new() }
    }

    pub(super) fn json(&self) -> &Value {
        self.json.get_or_init(|| self.node.to_json())
    }
}

/// Reports references to other files, references to nothing, and schemas of another draft.
pub(super) fn check(node: &Node, own: &Value, file: &FileRoot<'_>, report: &mut Report<'_>) {
    let ids = Ids::of(own);
    check_schema(
        node,
        &|pointer| own.pointer(pointer).is_some() || file.json().pointer(pointer).is_some(),
        &ids,
        report,
    );
}

fn check_schema(node: &Node, exists: &impl Fn(&str) -> bool, ids: &Ids, report: &mut Report<'_>) {
    let members = match &node.content {
        Content::Scalar(_) => return,
        Content::Array(items) => {
            return items.iter().for_each(|item| check_schema(item, exists, ids, report));
        }
        Content::Object(members) => members,
    };
    for member in members.iter() {
        let text = member
            .value
            .as_scalar()
            .filter(|scalar| scalar.kind == ScalarKind::Text)
            .map(|scalar| scalar.text.as_str());
        match (member.key.as_str(), text) {
            ("$ref" | "$dynamicRef", Some(target)) => match target.strip_prefix('#') {
                None if ids.include(target) => {}
                None => report.error_with_help(
                    Code::SchemaReference,
                    member.value.at,
                    format!("`{target}` is outside this file"),
                    "refer to \"#/$defs/name\" of this schema, or to \"#/x-name\" of this file",
                ),
                Some(pointer) if pointer.starts_with('/') && !exists(&decoded(pointer)) => {
                    report.error(
                        Code::SchemaReference,
                        member.value.at,
                        format!("`{target}` is neither in this schema nor in this file"),
                    );
                }
                Some(_) => {}
            },
            ("$schema", Some(draft))
                if draft.trim_end_matches('#')
                    != "https://json-schema.org/draft/2020-12/schema" =>
            {
                report.error_with_help(
                    Code::SchemaDraft,
                    member.value.at,
                    "`data` must be JSON Schema 2020-12",
                    "remove `$schema`, and check the schema against that draft",
                );
            }
            (keyword, _) => match (holds(keyword), &member.value.content) {
                (Holds::Data, _) => {}
                (Holds::NamedSchemas, Content::Object(named)) => {
                    named.iter().for_each(|named| check_schema(&named.value, exists, ids, report));
                }
                _ => check_schema(&member.value, exists, ids, report),
            },
        }
    }
}

/// Schemas of a bundle: those with an `$id`.
struct Ids {
    base: Option<Url>,
    ids: HashSet<String>,
}

impl Ids {
    fn of(schema: &Value) -> Self {
        let mut written = Vec::new();
        walk::each(schema, &mut |schema| written.extend(schema.get("$id").and_then(Value::as_str)));
        let base = schema.get("$id").and_then(Value::as_str).and_then(|id| Url::parse(id).ok());
        let mut ids = Self { base, ids: HashSet::new() };
        ids.ids = written.into_iter().filter_map(|id| ids.resolved(id)).collect();
        ids
    }

    fn include(&self, target: &str) -> bool {
        !self.ids.is_empty()
            && self.resolved(target).is_some_and(|target| self.ids.contains(&target))
    }

    /// Returns the absolute URL without its fragment.
    fn resolved(&self, reference: &str) -> Option<String> {
        let mut url = match &self.base {
            Some(base) => base.join(reference).ok()?,
            None => Url::parse(reference).ok()?,
        };
        url.set_fragment(None);
        Some(url.into())
    }
}

/// Copies schemas from the file into `$defs`, and points references at the copies.
///
/// Returns the JSON pointers of the copied schemas, in order. Returns `None` if the copies exceed
/// what the allowance has left.
pub(super) fn take_in(
    schema: &mut Value,
    file: &FileRoot<'_>,
    copies: &mut Allowance,
) -> Option<Vec<String>> {
    let mut outside = HashSet::new();
    walk::each(schema, &mut |object| {
        outside.extend(
            pointer_of(object)
                .filter(|pointer| schema.pointer(&decoded(pointer)).is_none())
                .map(str::to_owned),
        );
    });
    if outside.is_empty() {
        return Some(Vec::new());
    }
    let own = schema.clone();
    let mut borrowed = Borrowed::default();
    borrowed.point_into(schema, &own);
    let mut done = 0;
    let mut definitions = Vec::new();
    while let Some(pointer) = borrowed.pointers.get(done) {
        let copy = file.json().pointer(&decoded(pointer)).unwrap_or(&Value::Null);
        let (values, bytes) = size(copy);
        if !copies.spend_copy(values, bytes) {
            return None;
        }
        let mut copy = copy.clone();
        borrowed.point_into(&mut copy, &own);
        definitions.push((name(done), copy));
        done += 1;
    }
    if let Some(schema) = schema.as_object_mut()
        && let Some(all) =
            schema.entry("$defs").or_insert_with(|| Value::Object(Map::new())).as_object_mut()
    {
        all.extend(definitions);
    }
    Some(borrowed.pointers)
}

#[derive(Default)]
struct Borrowed {
    pointers: Vec<String>,
    places: HashMap<String, usize>,
}

impl Borrowed {
    fn point_into(&mut self, value: &mut Value, own: &Value) {
        walk::each_mut(value, &mut |schema| {
            let Some(pointer) =
                pointer_of(schema).filter(|pointer| own.pointer(&decoded(pointer)).is_none())
            else {
                return;
            };
            let place = match self.places.get(pointer) {
                Some(place) => *place,
                None => {
                    self.pointers.push(pointer.to_owned());
                    self.places.insert(pointer.to_owned(), self.pointers.len() - 1);
                    self.pointers.len() - 1
                }
            };
            schema.insert("$ref".to_owned(), format!("#/$defs/{}", name(place)).into());
        });
    }
}

fn pointer_of(schema: &Map<String, Value>) -> Option<&str> {
    schema.get("$ref")?.as_str()?.strip_prefix('#').filter(|pointer| pointer.starts_with('/'))
}

const NAME_PREFIX: &str = "unstale-file-";

fn name(place: usize) -> String {
    format!("{NAME_PREFIX}{place}")
}

/// Returns a place in a schema as the user wrote it: for a copied schema, the place in the file.
pub(super) fn as_written(schema_path: &str, borrowed: &[String]) -> String {
    let copy = || {
        let (place, rest) =
            schema_path.strip_prefix("/$defs/")?.strip_prefix(NAME_PREFIX)?.split_once('/')?;
        Some(format!("#{}/{rest}", borrowed.get(place.parse::<usize>().ok()?)?))
    };
    copy().unwrap_or_else(|| schema_path.to_owned())
}

/// Returns the number of values within a value, itself included, and the bytes of their texts.
fn size(value: &Value) -> (usize, usize) {
    let add = |(values, bytes): (usize, usize), (more, more_bytes): (usize, usize)| {
        (values + more, bytes + more_bytes)
    };
    match value {
        Value::Array(items) => items.iter().map(size).fold((1, 0), add),
        Value::Object(members) => {
            members.iter().map(|(name, value)| add(size(value), (0, name.len()))).fold((1, 0), add)
        }
        Value::String(text) => (1, text.len()),
        Value::Null | Value::Bool(_) | Value::Number(_) => (1, 0),
    }
}

/// Decodes a JSON pointer in a URI fragment, which is percent-encoded (RFC 6901, section 6).
pub(in super::super) fn decoded(fragment: &str) -> String {
    percent_encoding::percent_decode_str(fragment).decode_utf8_lossy().into_owned()
}
