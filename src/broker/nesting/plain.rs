//! Recognizes frames that need no repair, in one pass without a record of its progress.
//!
//! A frame is plain if it arrived whole, its short texts are UTF-8, and no header is a table or an
//! array. Where this is not certain, the frame counts as not plain, and the full scan decides.

use super::fields::{
    CONTENT_HEAD_BYTES, CONTENT_HEADER, FRAME_HEAD_BYTES, Field, LEVELS_MAX, METHOD,
    METHOD_HEAD_BYTES, PROPERTIES, fields_of,
};

/// Minimum size of a table or array within another: its type and its length.
const LEVEL_BYTES: usize = 5;

/// Returns the size of the plain frames at the beginning of the bytes.
pub(super) fn frames(bytes: &[u8]) -> usize {
    let mut left = bytes;
    while let Some((&[kind, _, _, s0, s1, s2, s3], after)) =
        left.split_first_chunk::<FRAME_HEAD_BYTES>()
    {
        let size = u32::from_be_bytes([s0, s1, s2, s3]) as usize;
        let Some((payload, [_end, later @ ..])) = after.split_at_checked(size) else { break };
        let is_plain = match kind {
            METHOD => method(payload).is_some(),
            CONTENT_HEADER => content_header(payload).is_some(),
            _ => true,
        };
        if !is_plain {
            break;
        }
        left = later;
    }
    bytes.len() - left.len()
}

/// Returns `Some` if a method is plain.
fn method(payload: &[u8]) -> Option<()> {
    let (method, mut left) = payload.split_first_chunk::<METHOD_HEAD_BYTES>()?;
    for field in fields_of(u32::from_be_bytes(*method)) {
        left = after_field(*field, left)?;
        // ASCII is UTF-8 wherever a text begins.
        if matches!(field, Field::Fixed(_)) && left.is_ascii() {
            break;
        }
    }
    Some(())
}

/// Returns `Some` if a content header is plain.
fn content_header(payload: &[u8]) -> Option<()> {
    let (flags, mut left) = payload.get(CONTENT_HEAD_BYTES..)?.split_first_chunk()?;
    // Too few bytes cannot be nested too deep.
    if left.len() < LEVEL_BYTES * LEVELS_MAX && left.is_ascii() {
        return Some(());
    }
    let flags = u16::from_be_bytes(*flags);
    for (at, field) in PROPERTIES.into_iter().enumerate() {
        if flags & 1 << 15 >> at != 0 {
            left = after_field(field, left)?;
        }
    }
    Some(())
}

/// Returns the bytes after a field; `None` if it is not plain.
fn after_field(field: Field, bytes: &[u8]) -> Option<&[u8]> {
    match field {
        Field::Fixed(size) => bytes.get(usize::from(size)..),
        Field::Text => after_text(bytes),
        Field::Headers => after_headers(bytes),
    }
}

/// Returns the bytes after a short text; `None` if it is not UTF-8.
fn after_text(bytes: &[u8]) -> Option<&[u8]> {
    let (&size, bytes) = bytes.split_first()?;
    let (text, after) = bytes.split_at_checked(usize::from(size))?;
    (text.is_ascii() || std::str::from_utf8(text).is_ok()).then_some(after)
}

/// Returns the bytes after the headers; `None` if one of them is not plain.
fn after_headers(bytes: &[u8]) -> Option<&[u8]> {
    let (mut headers, after) = split_sized(bytes)?;
    while !headers.is_empty() {
        let (&value_type, value) = after_text(headers)?.split_first()?;
        let fixed = match value_type {
            b'V' => 0,
            b't' | b'b' | b'B' => 1,
            b's' | b'U' | b'u' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'L' | b'l' | b'd' | b'T' => 8,
            b'S' | b'x' => {
                headers = split_sized(value)?.1;
                continue;
            }
            _ => return None,
        };
        headers = value.get(fixed..)?;
    }
    Some(after)
}

/// Splits the bytes after as many as their first four state.
fn split_sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (size, bytes) = bytes.split_first_chunk()?;
    bytes.split_at_checked(u32::from_be_bytes(*size) as usize)
}
