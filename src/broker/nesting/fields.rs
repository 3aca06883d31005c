//! Layout of the frames with short texts: fields of methods, and properties of a message.

/// Maximum nesting of tables and arrays in headers.
pub(in super::super) const LEVELS_MAX: usize = 64;

/// Types of the frames with a method and with a message's properties.
pub(super) const METHOD: u8 = 1;
pub(super) const CONTENT_HEADER: u8 = 2;

/// Bytes that name a method: its class and its number.
pub(super) const METHOD_HEAD_BYTES: usize = 4;

/// Bytes of a frame's head: type, channel, size of the payload.
pub(super) const FRAME_HEAD_BYTES: usize = 7;

/// Bytes before the properties: class, weight, size of the body. The flags follow.
pub(super) const CONTENT_HEAD_BYTES: usize = 12;

/// Part of a method, or a property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    /// Field of that many bytes.
    Fixed(u8),
    /// Short text.
    Text,
    /// Headers.
    Headers,
}

/// Properties of a message, from the highest bit of the flags on.
pub(super) const PROPERTIES: [Field; 14] = [
    Field::Text,     // content type
    Field::Text,     // content encoding
    Field::Headers,  // headers
    Field::Fixed(1), // delivery mode
    Field::Fixed(1), // priority
    Field::Text,     // correlation id
    Field::Text,     // reply to
    Field::Text,     // expiration
    Field::Text,     // message id
    Field::Fixed(8), // timestamp
    Field::Text,     // type
    Field::Text,     // user id
    Field::Text,     // app id
    Field::Text,     // cluster id
];

/// Returns the fields of a method, up to the last text that other programs may write.
pub(super) fn fields_of(method: u32) -> &'static [Field] {
    const DELIVERED: [Field; 4] = [Field::Text, Field::Fixed(9), Field::Text, Field::Text];
    const RETURNED: [Field; 4] = [Field::Fixed(2), Field::Text, Field::Text, Field::Text];
    match (method >> 16, method & 0xffff) {
        // basic.deliver: consumer tag; delivery tag and whether redelivered; exchange; routing key.
        (60, 60) => &DELIVERED,
        // basic.get-ok: the same without the consumer tag.
        (60, 71) => &DELIVERED[1..],
        // basic.return: code; words; exchange; routing key.
        (60, 50) => &RETURNED,
        // connection.close and channel.close: code; words, which the broker cuts at 255 bytes.
        (10, 50) | (20, 40) => &RETURNED[..2],
        _ => &[],
    }
}
