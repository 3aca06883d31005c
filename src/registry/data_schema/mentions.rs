//! Words of a schema that messages may repeat.

use std::collections::HashSet;

use serde_json::Value;

use super::walk;

/// Returns the keywords of a schema at which the search ends, because their errors consist of other
/// errors.
pub(super) fn branching(schema: &Value) -> String {
    let mut found = Vec::new();
    walk::each(schema, &mut |schema| {
        for keyword in ["anyOf", "oneOf", "unevaluatedItems"] {
            if schema.contains_key(keyword) && !found.contains(&keyword) {
                found.push(keyword);
            }
        }
    });
    found.sort_unstable();
    let names: Vec<String> = found.iter().map(|keyword| format!("`{keyword}`")).collect();
    names.join(" or ")
}

/// Returns the names of members that a schema mentions.
pub(super) fn names(schema: &Value) -> HashSet<Box<str>> {
    let mut names = HashSet::new();
    walk::each(schema, &mut |schema| {
        for keyword in ["properties", "dependentSchemas", "dependentRequired"] {
            names.extend(
                schema
                    .get(keyword)
                    .and_then(Value::as_object)
                    .into_iter()
                    .flatten()
                    .map(|(name, _)| Box::from(name.as_str())),
            );
        }
        let required = schema.get("required").and_then(Value::as_array);
        names.extend(required.into_iter().flatten().filter_map(Value::as_str).map(Box::from));
    });
    names
}
