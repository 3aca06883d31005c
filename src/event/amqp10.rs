//! Bodies of AMQP 1.0 publishers, as RabbitMQ hands them to AMQP 0-9-1 consumers.
//!
//! A single data section arrives as plain bytes. Any other body arrives as its encoded sections,
//! with `amqp-1.0` as the AMQP property `type`. The encoding is that of the AMQP 1.0 specification,
//! part 1 (types) and section 3.2 (sections). Maps, lists, numbers and `amqp-sequence` sections are
//! not read.

use std::borrow::Cow;

use super::decoded::Malformed;

/// The property `type` that RabbitMQ sets for a body of encoded sections.
const SECTIONS: &str = "amqp-1.0";

/// The property `type` that the plugin of RabbitMQ 3.x sets for a single data section
/// (`rabbit_amqp1_0_message.erl`).
const SINGLE_DATA: &str = "binary";

/// Returns whether a property `type` says that a body is encoded sections.
pub(super) fn is_of_sections(property: Option<&str>) -> bool {
    property == Some(SECTIONS)
}

/// Returns whether RabbitMQ set a property `type` itself. Such a mark is not an event type.
pub(super) fn is_mark(property: &str) -> bool {
    [SECTIONS, SINGLE_DATA].contains(&property)
}

/// Section descriptor codes (AMQP 1.0, section 3.2).
const DATA: u64 = 0x75;
const SEQUENCE: u64 = 0x76;
const VALUE: u64 = 0x77;
/// Sections beside the payload: header, annotations, properties, application properties and, with
/// code 0x78, the footer.
const BESIDE: [u64; 6] = [0x70, 0x71, 0x72, 0x73, 0x74, 0x78];

/// Returns the bytes or the text in the sections of a body. `None` if the body is not AMQP 1.0.
///
/// # Errors
/// The sections contain something else, or are cut off.
pub(super) fn payload(body: &[u8]) -> Option<Result<Cow<'_, [u8]>, Malformed>> {
    (body.first() == Some(&0)).then(|| read(body))
}

fn read(body: &[u8]) -> Result<Cow<'_, [u8]>, Malformed> {
    let mut rest = body;
    let mut payload: Option<Cow<'_, [u8]>> = None;
    while !rest.is_empty() {
        let (code, after) = descriptor(rest).ok_or_else(cut_off)?;
        let (value, after) = value(after).ok_or_else(cut_off)?;
        rest = after;
        match (code, value) {
            (code, _) if BESIDE.contains(&code) => {}
            (DATA | VALUE, Value::Bytes(bytes)) => match &mut payload {
                None => payload = Some(Cow::Borrowed(bytes)),
                Some(payload) => payload.to_mut().extend_from_slice(bytes),
            },
            (VALUE, Value::Null) => payload = payload.or(Some(Cow::Borrowed(b""))),
            (VALUE, Value::Other(kind)) => return Err(not_read("amqp-value", kind)),
            (SEQUENCE, _) => return Err(not_read("amqp-sequence", "a list")),
            _ => return Err(cut_off()),
        }
    }
    Ok(payload.unwrap_or_default())
}

fn cut_off() -> Malformed {
    Malformed(Cow::Borrowed(
        "the AMQP 1.0 sections of the body cannot be read: publish the JSON in one data section",
    ))
}

fn not_read(section: &str, kind: &str) -> Malformed {
    super::decoded::malformed(format!(
        "the AMQP 1.0 body is an {section} section with {kind}: publish the JSON in a data section, or as text"
    ))
}

/// A section's value, as far as an event needs it.
enum Value<'a> {
    Bytes(&'a [u8]),
    Null,
    Other(&'static str),
}

/// Splits off the descriptor of a section: a zero byte, then a number. RabbitMQ and all clients
/// write this form.
fn descriptor(bytes: &[u8]) -> Option<(u64, &[u8])> {
    match bytes {
        [0x00, 0x53, code, rest @ ..] => Some((u64::from(*code), rest)),
        [0x00, 0x80, rest @ ..] => {
            let (code, rest) = rest.split_first_chunk::<8>()?;
            Some((u64::from_be_bytes(*code), rest))
        }
        _ => None,
    }
}

/// Splits off a value. Its constructor byte defines its length (part 1, section 1.2).
fn value(bytes: &[u8]) -> Option<(Value<'_>, &[u8])> {
    let (&constructor, rest) = bytes.split_first()?;
    let length = match constructor >> 4 {
        0x4 => 0,
        0x5 => 1,
        0x6 => 2,
        0x7 => 4,
        0x8 => 8,
        0x9 => 16,
        0xA | 0xC | 0xE => 1 + usize::from(*rest.first()?),
        0xB | 0xD | 0xF => {
            4 + usize::try_from(u32::from_be_bytes(*rest.first_chunk::<4>()?)).ok()?
        }
        _ => return None,
    };
    let (value, after) = rest.split_at_checked(length)?;
    let value = match constructor {
        0xA0 | 0xA1 | 0xA3 => Value::Bytes(&value[1..]),
        0xB0 | 0xB1 | 0xB3 => Value::Bytes(&value[4..]),
        0x40 => Value::Null,
        0xC1 | 0xD1 => Value::Other("a map"),
        0x45 | 0xC0 | 0xD0 | 0xE0 | 0xF0 => Value::Other("a list"),
        _ => Value::Other("a number or another simple value"),
    };
    Some((value, after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text_of(body: &[u8]) -> String {
        match payload(body) {
            None => "no AMQP 1.0".to_owned(),
            Some(Ok(bytes)) => String::from_utf8(bytes.into_owned()).unwrap(),
            Some(Err(problem)) => problem.to_string(),
        }
    }

    #[test]
    fn text_and_bytes_are_read_from_value_and_data_sections() {
        for (body, text) in [
            (&b"\x00\x53\x77\xa1\x02{}"[..], "{}"),
            (b"\x00\x53\x77\xb1\x00\x00\x00\x02{}", "{}"),
            (b"\x00\x53\x77\xa0\x02{}", "{}"),
            (b"\x00\x53\x77\xb0\x00\x00\x00\x02{}", "{}"),
            (b"\x00\x53\x77\xa3\x02{}", "{}"),
            (b"\x00\x53\x75\xa0\x02{}", "{}"),
            (b"\x00\x80\x00\x00\x00\x00\x00\x00\x00\x77\xa1\x02{}", "{}"),
            (b"\x00\x53\x75\xa0\x01{\x00\x53\x75\xb0\x00\x00\x00\x01}", "{}"),
            (b"\x00\x53\x70\xc0\x02\x01\x41\x00\x53\x73\x45\x00\x53\x77\xa1\x02{}\x00\x53\x78\xc1\x01\x00", "{}"),
            (b"\x00\x53\x77\x40", ""),
            (b"{}", "no AMQP 1.0"),
            (b"", "no AMQP 1.0"),
        ] {
            assert_eq!(text_of(body), text, "{body:x?}");
        }
    }

    #[test]
    fn unsupported_amqp_1_0_sections_are_named() {
        for (body, part) in [
            (&b"\x00\x53\x77\xc1\x01\x00"[..], "amqp-value section with a map"),
            (b"\x00\x53\x77\x45", "amqp-value section with a list"),
            (b"\x00\x53\x77\xc0\x01\x00", "amqp-value section with a list"),
            (b"\x00\x53\x77\x53\x07", "amqp-value section with a number"),
            (b"\x00\x53\x76\x45", "amqp-sequence section"),
            (b"\x00\x53\x77\xa1\x03{}", "cannot be read"),
            (b"\x00\x53\x77\xb1\xff\xff\xff\xff{}", "cannot be read"),
            (b"\x00\x53\x75\x40", "cannot be read"),
            (b"\x00\x53\x21\xa1\x02{}", "cannot be read"),
            (b"\x00\xa3\x01x\xa1\x02{}", "cannot be read"),
            (b"\x00", "cannot be read"),
            (b"\x00\x53\x77", "cannot be read"),
            (b"\x00\x53\x77\x00", "cannot be read"),
        ] {
            let text = text_of(body);
            assert!(text.contains(part), "{body:x?}: {text}");
        }
    }

    proptest! {
        #[test]
        fn no_amqp_1_0_body_panics(body in prop::collection::vec(any::<u8>(), 0..40), has_section: bool) {
            let with_section = [&b"\x00\x53\x77"[..], &body].concat();
            let _ = payload(if has_section { &with_section } else { &body });
        }
    }
}
