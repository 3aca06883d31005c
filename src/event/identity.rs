//! The id of an event that was published without one.

use sha2::{Digest, Sha256};

use super::Message;

/// SHA-256, in lower-case hex, over routing key, `type`, `content_type`, `timestamp` (decimal digits) and body: each preceded by its length in
/// bytes as a big-endian 64-bit integer, so that no two lists of fields run together. An absent property has length 0.
pub(super) fn event_id(message: &Message<'_>, routing_key: &str) -> String {
    let timestamp_s = message.properties.timestamp_s.map(|seconds| seconds.to_string()).unwrap_or_default();
    let fields: [&[u8]; 5] = [
        routing_key.as_bytes(),
        message.properties.event_type.unwrap_or_default().as_bytes(),
        message.properties.content_type.unwrap_or_default().as_bytes(),
        timestamp_s.as_bytes(),
        message.body,
    ];
    let mut hasher = Sha256::new();
    for field in fields {
        hasher.update((field.len() as u64).to_be_bytes());
        hasher.update(field);
    }
    let mut hex = String::with_capacity(64);
    for byte in hasher.finalize() {
        for nibble in [byte >> 4, byte & 15] {
            hex.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
        }
    }
    hex
}

#[cfg(test)]
mod tests {
    use super::super::Properties;
    use super::*;

    #[test]
    fn the_definition_holds() {
        let message = Message { body: b"{}", ..Message::default() };
        // printf '\0\0\0\0\0\0\0\1k' and three empty fields, then '\0\0\0\0\0\0\0\2{}', through sha256sum.
        assert_eq!(event_id(&message, "k"), "a613037e9329add0296bdc05dfc25f3ab80cf7990f119f9c08fdd38e65344fb8");
        let properties = Properties { event_type: Some("t"), content_type: Some("c"), timestamp_s: Some(12), ..Properties::default() };
        assert_eq!(event_id(&Message { properties, ..message }, "k"), "4104b267b0109d521f7c1cce9693aff333b61c40915c58121202e120bffa43a1");
    }

    #[test]
    fn what_moves_between_fields_changes_the_id() {
        let id = |routing_key, body| event_id(&Message { body, ..Message::default() }, routing_key);
        assert_ne!(id("ab", b"c"), id("a", b"bc"));
        assert_eq!(id("ab", b"c"), id("ab", b"c"));
    }
}
