//! The record of a replay, at the end of the history.
//!
//! The events that a replay applies are far before the end of the history. If Redis goes back to
//! before the replay, the command's checkpoint goes back too. Then only this record shows a heal
//! where to begin.

use lapin::BasicProperties;
use lapin::types::FieldTable;

use super::convert::{Delivery, long};
use super::origin::text_of;
use super::publisher::Outgoing;
use crate::event::header;

/// Returns the record of a replay that begins at the offset `from`.
///
/// It has no body, so that workers of earlier versions read it as a tombstone.
pub fn replay_record(history: &str, from: u64) -> Outgoing<'_> {
    let mut headers = FieldTable::default();
    headers.insert(header::REPLAYED_FROM.into(), long(from.to_string()));
    let properties = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
    Outgoing::new("", history, properties, b"")
}

impl Delivery {
    /// Returns the offset at which a replay began, if this message of the history is the record of
    /// that replay.
    pub fn replayed_from(&self) -> Option<u64> {
        if !self.exchange().is_empty() {
            return None;
        }
        let headers = self.properties().headers().as_ref()?;
        text_of(headers, header::REPLAYED_FROM)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::convert::tests::delivery;
    use super::*;
    use crate::event::{Decoded, Reading, decode};

    #[test]
    fn only_a_record_names_an_offset() {
        let record = replay_record("unstale.history", 42);
        let read = |exchange: &str, properties: &BasicProperties| {
            delivery(exchange, "unstale.history", properties.clone(), b"")
        };
        let recorded = read("", record.properties());
        assert_eq!(recorded.replayed_from(), Some(42));
        assert!(matches!(
            decode(&recorded.message(), Reading::default()),
            Ok(Decoded::Tombstone | Decoded::Bodiless(_))
        ));
        assert_eq!(read("events", record.properties()).replayed_from(), None, "a publisher's");
        assert_eq!(read("", &BasicProperties::default()).replayed_from(), None);
    }
}
