//! Counts the schemas that apply to one value. The library's work for them is not always an access
//! to the payload, so the budget cannot bound it.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::references::decoded;
use super::walk;

/// Maximum number of nested schemas that apply to one value.
const MAX_CHAIN: usize = 128;

/// Maximum number of schemas that apply to one value.
const MAX_SCHEMAS_PER_VALUE: u64 = 10_000;

/// Returns the largest number of schemas that apply to one value.
///
/// # Errors
/// Too many schemas apply to one value.
pub(super) fn schemas_per_value(root: &Value) -> Result<u64, String> {
    let mut anchors: HashMap<&str, Vec<&Map<String, Value>>> = HashMap::new();
    let mut schemas = Vec::new();
    walk::each(root, &mut |schema| {
        schemas.push(schema);
        for keyword in ["$anchor", "$dynamicAnchor", "$id"] {
            if let Some(name) = schema.get(keyword).and_then(Value::as_str) {
                anchors.entry(name).or_default().push(schema);
            }
        }
    });
    let mut counter = Counter { root, anchors, known: HashMap::new() };
    schemas
        .into_iter()
        .try_fold(1, |most, schema| counter.count(schema, 0).map(|count| most.max(count.schemas)))
}

struct Counter<'v> {
    root: &'v Value,
    anchors: HashMap<&'v str, Vec<&'v Map<String, Value>>>,
    /// Counts by address of the schema. `None` while a schema is being counted.
    known: HashMap<usize, Option<Count>>,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    schemas: u64,
    chain: usize,
}

impl<'v> Counter<'v> {
    fn count(&mut self, schema: &'v Map<String, Value>, above: usize) -> Result<Count, String> {
        let address = std::ptr::from_ref(schema).addr();
        match self.known.get(&address) {
            Some(Some(count)) => return Ok(*count),
            // The library ends a cycle at the same value.
            Some(None) => return Ok(Count { schemas: 0, chain: 0 }),
            None => {}
        }
        if above > MAX_CHAIN {
            return Err(format!("more than {MAX_CHAIN} nested schemas apply to one value"));
        }
        self.known.insert(address, None);
        let mut count = Count { schemas: 1, chain: 1 };
        for inner in self.in_place(schema) {
            let inner = self.count(inner, above + 1)?;
            count.schemas = count.schemas.saturating_add(inner.schemas);
            count.chain = count.chain.max(inner.chain + 1);
        }
        if count.chain > MAX_CHAIN {
            return Err(format!("more than {MAX_CHAIN} nested schemas apply to one value"));
        }
        if count.schemas > MAX_SCHEMAS_PER_VALUE {
            return Err(format!(
                "more than {MAX_SCHEMAS_PER_VALUE} schemas apply to one value: `allOf`, `anyOf` and `$ref` multiply"
            ));
        }
        self.known.insert(address, Some(count));
        Ok(count)
    }

    /// Returns the schemas that apply to the same value as this one.
    fn in_place(&self, schema: &'v Map<String, Value>) -> Vec<&'v Map<String, Value>> {
        let mut inner = Vec::new();
        for (keyword, value) in schema {
            if walk::is_in_place(keyword) {
                walk::each_of(keyword, value, &mut |value| inner.extend(value.as_object()));
            } else if matches!(&**keyword, "$ref" | "$dynamicRef")
                && let Some(target) = value.as_str()
            {
                inner.extend(self.targets(target));
            }
        }
        inner
    }

    fn targets(&self, target: &'v str) -> Vec<&'v Map<String, Value>> {
        let fragment = target.strip_prefix('#');
        match fragment {
            Some(pointer) if pointer.is_empty() || pointer.starts_with('/') => self
                .root
                .pointer(&decoded(pointer))
                .and_then(Value::as_object)
                .into_iter()
                .collect(),
            _ => self.anchors.get(fragment.unwrap_or(target)).cloned().unwrap_or_default(),
        }
    }
}
