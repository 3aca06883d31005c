//! Reads the JSON bytes from a message's body, and explains bodies that are not JSON.
//!
//! AMQP 1.0 sections are removed. Compressed bodies, character sets other than UTF-8, and binary
//! formats are not read: the error names them.

use std::borrow::Cow;

use super::amqp10;
use super::decoded::Malformed;
use super::message::Message;

/// Returns the body as the publisher wrote it.
///
/// # Errors
/// AMQP 1.0 sections that contain neither bytes nor text.
pub(super) fn of<'a>(message: &'a Message<'a>) -> Result<Cow<'a, [u8]>, Malformed> {
    if amqp10::is_of_sections(message.properties.event_type)
        && let Some(payload) = amqp10::payload(message.body)
    {
        return payload;
    }
    Ok(Cow::Borrowed(message.body))
}

/// Formats recognised by the first bytes of a body, with the text for the error.
const MAGIC: [(&[u8], &str); 9] = [
    (b"\x1f\x8b", "compressed with gzip: publish it uncompressed"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: publish it uncompressed"),
    (b"\x78\x01", "compressed with zlib (deflate): publish it uncompressed"),
    (b"\x78\x9c", "compressed with zlib (deflate): publish it uncompressed"),
    (b"\x78\xda", "compressed with zlib (deflate): publish it uncompressed"),
    (b"\xff\xfe", "UTF-16 or UTF-32: publish it in UTF-8"),
    (b"\xfe\xff", "UTF-16: publish it in UTF-8"),
    (b"\x00\x00\xfe\xff", "UTF-32: publish it in UTF-8"),
    (b"\xac\xed\x00\x05", "a serialized Java object: publish JSON"),
];

const ENCODINGS: [(&str, &str); 8] = [
    ("gzip", "compressed (content encoding gzip): publish it uncompressed"),
    ("x-gzip", "compressed (content encoding x-gzip): publish it uncompressed"),
    ("deflate", "compressed (content encoding deflate): publish it uncompressed"),
    ("zstd", "compressed (content encoding zstd): publish it uncompressed"),
    ("br", "compressed (content encoding br): publish it uncompressed"),
    ("compress", "compressed (content encoding compress): publish it uncompressed"),
    ("lz4", "compressed (content encoding lz4): publish it uncompressed"),
    ("base64", "encoded (content encoding base64): publish the JSON itself"),
];

/// Formats recognised by a part of the content type's subtype, with the text for the error.
const CONTENT_TYPES: [(&str, &str); 11] = [
    ("protobuf", "Protocol Buffers (by its content type): publish JSON"),
    ("avro", "Avro (by its content type): publish JSON"),
    ("msgpack", "MessagePack (by its content type): publish JSON"),
    ("messagepack", "MessagePack (by its content type): publish JSON"),
    ("cbor", "CBOR (by its content type): publish JSON"),
    ("bson", "BSON (by its content type): publish JSON"),
    ("python-serialize", "a Python pickle (by its content type): publish JSON"),
    ("java-serialized-object", "a serialized Java object (by its content type): publish JSON"),
    ("php-serialized", "serialized PHP (by its content type): publish JSON"),
    ("yaml", "YAML (by its content type): publish JSON"),
    ("xml", "XML (by its content type): publish JSON"),
];

/// Names of UTF-8 and its subsets, as content types and encodings write them.
const UTF_8: [&str; 4] = ["utf-8", "utf8", "us-ascii", "ascii"];

/// Returns the error for a body that is not JSON in UTF-8. It names the format if the message shows
/// which one it is, and is `problem` otherwise.
pub(super) fn unreadable(message: &Message<'_>, body: &[u8], problem: Malformed) -> Malformed {
    match format_of(message, body) {
        Some(words) => super::decoded::malformed(format!("the body is {words}")),
        None => problem,
    }
}

fn format_of(message: &Message<'_>, body: &[u8]) -> Option<&'static str> {
    let known = |table: &[(&str, &'static str)], text: Option<&str>| {
        let text = text?.trim();
        table.iter().find(|(name, _)| text.eq_ignore_ascii_case(name)).map(|(_, words)| *words)
    };
    let content_type = message.properties.content_type.unwrap_or_default();
    let (essence, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
    let subtype = essence.split_once('/').map_or("", |(_, subtype)| subtype).trim();
    known(&ENCODINGS, message.properties.content_encoding)
        .or_else(|| {
            MAGIC.iter().find(|(magic, _)| body.starts_with(magic)).map(|(_, words)| *words)
        })
        .or_else(|| {
            essence.split(['/', '.', '+', '-']).find_map(|part| known(&CONTENT_TYPES, Some(part)))
        })
        .or_else(|| known(&CONTENT_TYPES, Some(subtype.strip_prefix("x-").unwrap_or(subtype))))
        .or_else(|| {
            let charset = charset(parameters)?;
            let is_utf_8 = UTF_8.iter().any(|name| charset.eq_ignore_ascii_case(name));
            (!is_utf_8).then_some(
                "in another character set than UTF-8 (by its content type): publish it in UTF-8",
            )
        })
}

/// Returns the parameter `charset` of a content type.
fn charset(parameters: &str) -> Option<&str> {
    parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use super::super::Properties;
    use super::*;

    fn words(content_type: Option<&str>, content_encoding: Option<&str>, body: &[u8]) -> String {
        let message = Message {
            properties: Properties { content_type, content_encoding, ..Properties::default() },
            body,
            ..Message::default()
        };
        unreadable(
            &message,
            body,
            super::super::decoded::malformed("the body is not JSON".to_owned()),
        )
        .to_string()
    }

    #[test]
    fn an_unsupported_body_format_is_named() {
        for (content_type, content_encoding, body, part) in [
            (None, Some("gzip"), &b"\x1f\x8b"[..], "content encoding gzip"),
            (None, Some(" GZip"), b"x", "content encoding gzip"),
            (None, Some("zstd"), b"x", "content encoding zstd"),
            (None, Some("base64"), b"eyJ9", "content encoding base64"),
            (None, None, b"\x1f\x8b\x08", "compressed with gzip"),
            (None, None, b"\x28\xb5\x2f\xfd\x00", "compressed with zstd"),
            (None, None, b"\x78\x9c", "zlib"),
            (None, None, b"\xff\xfe{\0}\0", "UTF-16"),
            (Some("application/json; charset=UTF-16LE"), None, b"{\0}\0", "character set"),
            (
                Some("application/json;charset=\"iso-8859-1\""),
                None,
                b"{\"a\":\"\xe4\"}",
                "character set",
            ),
            (Some("application/x-protobuf"), None, b"\x08\x01", "Protocol Buffers"),
            (Some("application/vnd.google.protobuf"), None, b"\x08\x01", "Protocol Buffers"),
            (Some("application/x-python-serialize"), None, b"\x80\x04", "pickle"),
            (Some("application/x-java-serialized-object"), None, b"\xac\xed", "Java"),
            (Some("application/msgpack"), None, b"\x80", "MessagePack"),
            (Some("application/soap+xml"), None, b"<a/>", "XML"),
            (Some("avro/binary"), None, b"\x00", "Avro"),
            (Some("application/avro"), None, b"\x00", "Avro"),
            (Some("application/json; charset=utf-8"), Some("utf-8"), b"x", "not JSON"),
            (Some("text/plain"), None, b"x", "not JSON"),
            (None, None, b"x", "not JSON"),
        ] {
            let words = words(content_type, content_encoding, body);
            assert!(words.contains(part), "{content_type:?} {content_encoding:?}: {words}");
        }
    }
}
