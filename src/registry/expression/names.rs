//! The functions, methods and types that expressions may name.

use super::super::diagnostic::nearest;
use super::super::functions;

/// CEL's standard functions that are called on a value.
pub(in super::super) const METHODS: [&str; 15] = [
    "contains",
    "endsWith",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getFullYear",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getSeconds",
    "matches",
    "size",
    "startsWith",
];

/// CEL's standard functions that are called by name.
pub(super) const FUNCTIONS: [&str; 12] = [
    "bool",
    "bytes",
    "double",
    "duration",
    "dyn",
    "int",
    "matches",
    "size",
    "string",
    "timestamp",
    "type",
    "uint",
];

/// CEL's names of types, as in `type(x) == int`.
pub(super) const TYPES: [&str; 10] =
    ["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"];

/// CEL's macros over a list.
const MACROS: [&str; 5] = ["all", "exists", "exists_one", "filter", "map"];

/// Returns the help for an unknown function.
pub(super) fn functions_help(name: &str) -> String {
    if MACROS.contains(&name) {
        return format!(
            "`{name}` takes a variable and what is computed for it, such as data.xs.{name}(x, x.id > 0)"
        );
    }
    let known = functions::NAMES.iter().chain(&FUNCTIONS).chain(&METHODS).chain(&MACROS);
    if let Some(meant) = nearest(name, known.copied()) {
        let is_method = METHODS.contains(&meant) || MACROS.contains(&meant);
        return format!(
            "did you mean {}?",
            if is_method { format!("x.{meant}(…)") } else { format!("{meant}(x)") }
        );
    }
    format!(
        "functions are {}, {}; methods on a value are {}",
        functions::NAMES.join(", "),
        FUNCTIONS.join(", "),
        METHODS.join(", ")
    )
}
