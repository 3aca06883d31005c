//! Reads the values of Redis' answers: numbers, texts and pairs of texts.

use redis::Value;

/// Reads whole numbers from a script's answer.
pub(super) fn integers<const N: usize>(value: &Value) -> Option<[u64; N]> {
    let Value::Array(items) = value else { return None };
    let mut numbers = [0; N];
    for (number, item) in numbers.iter_mut().zip(items) {
        *number = match item {
            Value::Int(int) => u64::try_from(*int).ok()?,
            Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?.parse().ok()?,
            _ => return None,
        };
    }
    (items.len() == N).then_some(numbers)
}

/// Returns a text.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::VerbatimString { text, .. } | Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// Returns a text of the answer's own.
pub(super) fn text_of(value: &Value) -> Option<String> {
    text(value).map(str::to_owned)
}

/// Reads a hash: an array in RESP2, a map in RESP3.
pub(super) fn text_pairs(value: &Value) -> Option<Vec<(String, String)>> {
    match value {
        Value::Array(items) => {
            let (pairs, _) = items.as_chunks::<2>();
            pairs.iter().map(|[field, value]| Some((text_of(field)?, text_of(value)?))).collect()
        }
        Value::Map(pairs) => {
            pairs.iter().map(|(field, value)| Some((text_of(field)?, text_of(value)?))).collect()
        }
        _ => None,
    }
}

/// Returns the bytes of the members of an answer, which need not be text.
pub(super) fn members(values: Vec<Value>) -> Vec<Vec<u8>> {
    let bytes = |value| if let Value::BulkString(bytes) = value { Some(bytes) } else { None };
    values.into_iter().filter_map(bytes).collect()
}

/// Reads an answer to `SCAN` or `SSCAN`: the next cursor, and some keys or members.
pub(super) fn slice(answer: Value) -> Option<(u64, Vec<Vec<u8>>)> {
    let Value::Array(parts) = answer else { return None };
    let Ok([Value::BulkString(cursor), Value::Array(found)]) = <[Value; 2]>::try_from(parts) else {
        return None;
    };
    Some((std::str::from_utf8(&cursor).ok()?.parse().ok()?, members(found)))
}
