//! The headers of a republished message: its first arrival, and the work done so far.

use super::form::Form;
use super::header;
use super::message::{HeaderValue, Message};

/// The content of a republished message's headers.
///
/// A publisher's headers can reach the default exchange too: through the broker's dead-lettering, a
/// shovel or the management UI. Therefore the signature decides which headers count:
/// [`Origin`](super::Origin).
///
/// Without a signature, only the headers that define how the event is read count, since messages of
/// an older worker are unsigned. The others count as absent, so all effects are done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance<'a> {
    /// The exchange of the first arrival; empty for the default exchange.
    pub exchange: &'a str,
    /// The routing key of the first arrival.
    pub routing_key: &'a str,
    /// Number of attempts made so far. 0 if the header is absent or not a count.
    pub attempt: u32,
    /// Time when the event was first handled, in RFC 3339.
    pub first_time: Option<&'a str>,
    /// A time before the event's arrival, in RFC 3339.
    pub arrived_after: Option<&'a str>,
    /// A stream offset before the event's place in the history.
    pub arrived_offset: Option<u64>,
    /// Time when the message was republished, in RFC 3339.
    pub time: Option<&'a str>,
    /// Positions of the effects that are still to do, in ascending order. `None` for all of them,
    /// and for an invalid list. See [`Provenance::effects_by`].
    pub effects: Option<Vec<u32>>,
    /// Digest of the registry to which `effects` refers.
    pub registry: Option<&'a str>,
    /// The event's type at first arrival.
    pub event_type: Option<&'a str>,
    /// The id that a worker made for an event without an id.
    pub event_id: Option<&'a str>,
    /// The form in which the event was read.
    pub form: Option<Form>,
    /// Name of the [`Reason`](crate::reason::Reason) for which it was republished. Another version
    /// may have written an unknown name.
    pub reason: Option<&'a str>,
    /// The reason in words.
    pub error: Option<&'a str>,
}

impl<'a> Provenance<'a> {
    /// Reads the headers of a republished message. `None` for any other message.
    pub fn of(message: &'a Message<'a>) -> Option<Self> {
        let routing_key = routing_key(message)?;
        let headers = &message.headers;
        let is_signed = message.origin.is_republished();
        let signed = |name| headers.text(name).filter(|_| is_signed);
        Some(Self {
            exchange: headers.text(header::EXCHANGE).unwrap_or_default(),
            routing_key,
            attempt: headers
                .get(header::ATTEMPT)
                .filter(|_| is_signed)
                .and_then(count)
                .unwrap_or(0),
            first_time: signed(header::FIRST_TIME),
            arrived_after: signed(header::ARRIVED_AFTER),
            arrived_offset: signed(header::ARRIVED_OFFSET).and_then(|offset| offset.parse().ok()),
            time: headers.text(header::TIME),
            effects: signed(header::EFFECTS).and_then(positions),
            registry: signed(header::REGISTRY),
            event_type: headers.text(header::EVENT_TYPE),
            event_id: headers.text(header::EVENT_ID),
            form: headers.text(header::FORM).and_then(Form::from_name),
            reason: headers.text(header::REASON),
            error: headers.text(header::ERROR),
        })
    }

    /// Returns the positions that are still to do under that registry, whose rules yield this
    /// number of effects. `None` means all of them: the list counts only if it refers to this
    /// registry and all its positions exist.
    pub fn effects_by(self, registry_digest: &str, effects: usize) -> Option<Vec<u32>> {
        let positions = self.effects.filter(|_| self.registry == Some(registry_digest))?;
        positions.iter().all(|position| (*position as usize) < effects).then_some(positions)
    }
}

/// Returns the routing key of the first arrival if the message is a republished one.
pub(super) fn routing_key<'a>(message: &'a Message<'a>) -> Option<&'a str> {
    if !message.origin.says_how_to_read() || !message.exchange.is_empty() {
        return None;
    }
    message.headers.text(header::ROUTING_KEY)
}

fn count(value: &HeaderValue<'_>) -> Option<u32> {
    match value {
        HeaderValue::Integer(count) => u32::try_from(*count).ok(),
        HeaderValue::Text(digits) => digits.parse().ok(),
        _ => None,
    }
}

/// Reads a list of positions. An empty list counts as invalid, since no worker republishes a
/// message without an effect.
fn positions(list: &str) -> Option<Vec<u32>> {
    let mut positions = list
        .split(',')
        .map(|position| position.trim().parse().ok())
        .collect::<Option<Vec<u32>>>()?;
    positions.sort_unstable();
    positions.dedup();
    Some(positions)
}

#[cfg(test)]
mod tests {
    use super::super::{Headers, Origin};
    use super::*;

    fn message<'a>(exchange: &'a str, headers: &[(&'a str, HeaderValue<'a>)]) -> Message<'a> {
        Message {
            exchange,
            routing_key: "unstale",
            headers: Headers(
                headers.iter().map(|(name, value)| ((*name).into(), value.clone())).collect(),
            ),
            origin: Origin::Worker,
            ..Message::default()
        }
    }

    #[test]
    fn headers_of_a_republished_message_describe_its_first_arrival() {
        let message = message(
            "",
            &[
                (header::EXCHANGE, HeaderValue::Text("events".into())),
                (header::ROUTING_KEY, HeaderValue::Text("user.updated".into())),
                (header::ATTEMPT, HeaderValue::Integer(3)),
                (header::EFFECTS, HeaderValue::Text("4,1, 1".into())),
                (header::REGISTRY, HeaderValue::Text("abc".into())),
                (header::FORM, HeaderValue::Text("envelope".into())),
                (header::REASON, HeaderValue::Text("redis_refused".into())),
            ],
        );
        let provenance = Provenance::of(&message).unwrap();
        assert_eq!((provenance.exchange, provenance.routing_key), ("events", "user.updated"));
        assert_eq!(provenance.attempt, 3);
        assert_eq!(provenance.form, Some(Form::Envelope));
        assert_eq!(provenance.reason, Some("redis_refused"));
        assert_eq!(provenance.clone().effects_by("abc", 5), Some(vec![1, 4]));
        assert_eq!(
            provenance.clone().effects_by("abc", 4),
            None,
            "a position beyond the effects: all are done"
        );
        assert_eq!(
            provenance.effects_by("def", 5),
            None,
            "another registry counts otherwise: all are done"
        );
    }

    #[test]
    fn without_a_signature_all_effects_of_a_republished_message_are_done() {
        let text = |text: &'static str| HeaderValue::Text(text.into());
        let headers = [
            (header::EXCHANGE, text("events")),
            (header::ROUTING_KEY, text("user.updated")),
            (header::EVENT_TYPE, text("user.updated")),
            (header::FORM, text("envelope")),
            (header::ATTEMPT, HeaderValue::Integer(9)),
            (header::EFFECTS, text("1")),
            (header::REGISTRY, text("abc")),
            (header::FIRST_TIME, text("2026-01-02T03:04:05Z")),
            (header::ARRIVED_AFTER, text("2026-01-02T03:04:05Z")),
        ];
        let unsigned = Message { origin: Origin::Unsigned, ..message("", &headers) };
        let provenance = Provenance::of(&unsigned).unwrap();
        assert_eq!((provenance.exchange, provenance.routing_key), ("events", "user.updated"));
        assert_eq!(
            (provenance.event_type, provenance.form),
            (Some("user.updated"), Some(Form::Envelope))
        );
        assert_eq!(
            (provenance.attempt, provenance.effects.as_deref(), provenance.registry),
            (0, None, None)
        );
        assert_eq!((provenance.first_time, provenance.arrived_after), (None, None));
        let publishers = Message { origin: Origin::Publisher, ..message("", &headers) };
        assert!(Provenance::of(&publishers).is_none());
    }

    #[test]
    fn only_messages_of_the_default_exchange_count_as_republished() {
        let headers = [(header::ROUTING_KEY, HeaderValue::Text("user.updated".into()))];
        assert!(Provenance::of(&message("events", &headers)).is_none());
        assert!(Provenance::of(&message("", &[])).is_none());
        assert!(
            Provenance::of(&message("", &[(header::ROUTING_KEY, HeaderValue::Integer(1))]))
                .is_none()
        );
    }

    #[test]
    fn invalid_provenance_headers_mean_all_effects_and_no_attempt() {
        for list in ["", ",", "1,", "-1", "1;2", "x", "99999999999"] {
            assert_eq!(positions(list), None, "{list:?}");
        }
        for attempt in
            [HeaderValue::Integer(-1), HeaderValue::Bool(true), HeaderValue::Text("many".into())]
        {
            let message = message(
                "",
                &[(header::ROUTING_KEY, HeaderValue::Text("k".into())), (header::ATTEMPT, attempt)],
            );
            assert_eq!(Provenance::of(&message).unwrap().attempt, 0);
        }
    }
}
