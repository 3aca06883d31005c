//! Generates JSON Schemas that check one place again and again.

use fastrand::Rng;
use serde_json::{Value, json};

const PATTERNS: [&str; 8] = [
    "^[a-z]+$",
    "(?<!a)b+c",
    r"^(a+)+\1$",
    "^(a|aa)+$",
    "(.*)(.*)x",
    r"^\p{L}{1,50}$",
    "^(?=.*b)(?=.*c).*$",
    "b{1,200}c",
];

/// Returns a schema of an object, with three definitions that refer to each other.
pub(crate) fn object(rng: &mut Rng) -> Value {
    let definitions: serde_json::Map<String, Value> =
        (0..3).map(|n| (format!("n{n}"), node(rng, 3))).collect();
    let mut properties = serde_json::Map::new();
    for name in ["t", "u", "xs", "ys", "ts", "os", "zs", "root", "m"] {
        if rng.u8(..3) > 0 {
            let depth = rng.usize(..4);
            properties.insert(name.to_owned(), node(rng, depth));
        }
    }
    let mut schema = json!({ "$defs": definitions, "type": "object", "properties": properties });
    let more = node(rng, 2);
    match rng.u8(..7) {
        0 => schema["additionalProperties"] = more,
        1 => schema["unevaluatedProperties"] = more,
        2 => schema["patternProperties"] = json!({ PATTERNS[rng.usize(..PATTERNS.len())]: more }),
        3 => schema["propertyNames"] = json!({ "pattern": PATTERNS[rng.usize(..PATTERNS.len())] }),
        4 => schema["dependentSchemas"] = json!({ "t": more }),
        _ => {}
    }
    schema
}

fn node(rng: &mut Rng, depth: usize) -> Value {
    let reference = json!({ "$ref": format!("#/$defs/n{}", rng.u8(..3)) });
    if depth == 0 {
        return match rng.u8(..9) {
            0 => {
                json!({ "type": (["integer", "string", "array", "object", "null", "number"][rng.usize(..6)]) })
            }
            1 => json!({ "const": "d" }),
            2 => json!({ "pattern": PATTERNS[rng.usize(..PATTERNS.len())] }),
            3 => {
                json!({ "format": (["email", "uri", "ipv6", "hostname", "regex", "date-time", "uuid", "json-pointer"][rng.usize(..8)]) })
            }
            4 => json!({ "enum": [1, "a", { "a": [1, 2] }, [1, 2, 3], null] }),
            5 => json!({ "uniqueItems": true }),
            6 => json!({ "multipleOf": 0.01, "maxLength": 70_000 }),
            7 => json!(rng.bool()),
            _ => reference,
        };
    }
    let parts = |rng: &mut Rng, depth| -> Vec<Value> {
        (0..rng.usize(1..=4)).map(|_| branch(rng, depth)).collect()
    };
    match rng.u8(..12) {
        0 | 1 => json!({ "oneOf": parts(rng, depth - 1) }),
        2 | 3 => json!({ "anyOf": parts(rng, depth - 1) }),
        4 => json!({ "allOf": parts(rng, depth - 1) }),
        5 => json!({ "not": node(rng, depth - 1) }),
        6 => {
            json!({ "if": node(rng, depth - 1), "then": node(rng, depth - 1), "else": node(rng, depth - 1) })
        }
        7 => json!({ "type": "array", "items": node(rng, depth - 1), "uniqueItems": rng.bool() }),
        8 => {
            json!({ "contains": node(rng, depth - 1), "minContains": rng.u8(..3), "maxContains": rng.u8(3..) })
        }
        9 => {
            json!({ "prefixItems": parts(rng, depth - 1), "unevaluatedItems": node(rng, depth - 1) })
        }
        10 => json!({ "additionalProperties": node(rng, depth - 1), "maxProperties": 50_000 }),
        _ => reference,
    }
}

/// Returns one branch of a common kind of tree: recursive, and distinguished by a constant.
fn branch(rng: &mut Rng, depth: usize) -> Value {
    if rng.bool() {
        return node(rng, depth);
    }
    json!({
        "properties": {
            "type": { "const": (["a", "b", "c", "d"][rng.usize(..4)]) },
            "children": { "type": "array", "items": { "$ref": format!("#/$defs/n{}", rng.u8(..3)) } },
        },
        "required": (if rng.bool() { json!(["type"]) } else { json!(["type", "children"]) }),
    })
}
