//! The fields that all forms have in common: a message at its first arrival, and an event in the
//! making.
//!
//! A form's module reads an [`Arrival`] and fills a [`Draft`]. [`Draft::finish`] checks the type,
//! and adds the id, the routing key and the trace context.

use std::borrow::Cow;

use super::place::name_in;
use super::{
    Attribute, Decoded, Event, EventId, Form, HeaderValue, Malformed, Message, Parsed, TypeFrom,
    amqp10, header, provenance,
};

/// Maximum length of an event type in bytes: that of a routing key, a short string of AMQP 0-9-1
/// (section 4.2.5.3). It bounds the cost of comparing the type with each pattern of the registry.
const LONGEST_TYPE: usize = 255;

/// A message as it was at its first arrival.
#[derive(Debug)]
pub(super) struct Arrival<'a> {
    pub(super) message: &'a Message<'a>,
    type_from: TypeFrom,
    /// The type at the place that `UNSTALE_TYPE_FROM` names.
    pub(super) placed_type: Option<Cow<'a, str>>,
    pub(super) exchange: &'a str,
    pub(super) routing_key: &'a str,
    /// Republished messages only: the form at first arrival.
    pub(super) form: Option<Form>,
    /// Republished messages only: the type at first arrival.
    pub(super) event_type: Option<&'a str>,
    /// Republished messages only: the id that a worker made for the event.
    event_id: Option<&'a str>,
    /// The publisher set the header `unstale-event-type`. On a republished message the worker wrote
    /// it, unless the message was malformed: then there is no form, and the publisher's header
    /// remains.
    has_publisher_type: bool,
}

impl<'a> Arrival<'a> {
    pub(super) fn of(message: &'a Message<'a>, type_from: TypeFrom) -> Self {
        let Some(routing_key) = provenance::routing_key(message) else {
            return Self {
                message,
                type_from,
                placed_type: type_from.in_headers(&message.headers),
                exchange: message.exchange,
                routing_key: message.routing_key,
                form: None,
                event_type: None,
                event_id: None,
                has_publisher_type: true,
            };
        };
        let headers = &message.headers;
        let form = headers.get(header::FORM);
        Self {
            message,
            type_from,
            placed_type: type_from.in_headers(headers),
            exchange: headers.text(header::EXCHANGE).unwrap_or_default(),
            routing_key,
            form: headers.text(header::FORM).and_then(Form::from_name),
            event_type: headers
                .text(header::EVENT_TYPE)
                .filter(|event_type| !event_type.is_empty()),
            event_id: headers.text(header::EVENT_ID).filter(|id| !id.is_empty()),
            has_publisher_type: form.is_none(),
        }
    }

    /// Returns the type in the AMQP property `type`, if the publisher set it.
    pub(super) fn property_type(&self) -> Option<&'a str> {
        let property =
            self.message.properties.event_type.filter(|event_type| !amqp10::is_mark(event_type));
        property.map(name_in).filter(|name| !name.is_empty())
    }

    pub(super) fn header_type(&self) -> Option<&'a HeaderValue<'a>> {
        if !self.has_publisher_type && self.form != Some(Form::Header) {
            return None;
        }
        self.message.headers.get(header::EVENT_TYPE)
    }

    /// Returns the `traceparent` that instrumented publishers set as a header.
    fn traceparent(&self) -> Option<Cow<'a, str>> {
        self.message.headers.text("traceparent").map(Cow::Borrowed)
    }

    /// Returns the type at first arrival, for a form whose own type was lost.
    pub(super) fn type_at_first_arrival(&self) -> Option<Cow<'a, str>> {
        self.event_type.map(Cow::Borrowed)
    }
}

/// An event without the fields that all forms have in common.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub(super) form: Form,
    pub(super) event_type: Cow<'a, str>,
    pub(super) data_text: Cow<'a, str>,
    pub(super) previous_text: Option<Cow<'a, str>>,
    pub(super) id: Option<Cow<'a, str>>,
    pub(super) time: Option<Cow<'a, str>>,
    pub(super) source: Option<Cow<'a, str>>,
    pub(super) subject: Option<Cow<'a, str>>,
    pub(super) position: Option<u64>,
    pub(super) traceparent: Option<Cow<'a, str>>,
    pub(super) attributes: Vec<Attribute<'a>>,
    pub(super) parsed: Parsed<'a>,
}

impl<'a> Draft<'a> {
    pub(super) const fn new(form: Form, event_type: Cow<'a, str>, data_text: Cow<'a, str>) -> Self {
        Self {
            form,
            event_type,
            data_text,
            previous_text: None,
            id: None,
            time: None,
            source: None,
            subject: None,
            position: None,
            traceparent: None,
            attributes: Vec::new(),
            parsed: Parsed::NOTHING,
        }
    }

    pub(super) fn finish(self, arrival: &Arrival<'a>) -> Result<Decoded<'a>, Malformed> {
        let event_type = match arrival.type_from {
            TypeFrom::Any => self.event_type,
            TypeFrom::RoutingKey => Cow::Borrowed(arrival.routing_key),
            TypeFrom::Header(_) | TypeFrom::Body(_) => match &arrival.placed_type {
                Some(placed_type) => placed_type.clone(),
                // A republished message may have lost the publisher's headers.
                None => arrival.type_at_first_arrival().unwrap_or(self.event_type),
            },
        };
        if event_type.is_empty() {
            return Err(Malformed(Cow::Borrowed(match arrival.type_from {
                TypeFrom::Any | TypeFrom::Header(_) | TypeFrom::Body(_) => {
                    "the event has no type: publish with the type as routing key, or as AMQP property `type`, or with `type` and `data` in \
                     the body, or name its place in UNSTALE_TYPE_FROM"
                }
                TypeFrom::RoutingKey => {
                    "the event has no type: UNSTALE_TYPE_FROM=routing_key takes it from the routing key alone, which is empty: publish with \
                     the type as routing key"
                }
            })));
        }
        if event_type.len() > LONGEST_TYPE {
            return Err(Malformed(Cow::Owned(format!(
                "the type has {} bytes, more than the {LONGEST_TYPE} of a routing key: publish it with a shorter one",
                event_type.len()
            ))));
        }
        if event_type.starts_with("unstale.") {
            return Err(Malformed(Cow::Borrowed(
                "types under `unstale.` are reserved: choose another name for the event",
            )));
        }
        let id = self
            .id
            .filter(|id| !id.is_empty())
            .or(arrival.event_id.map(Cow::Borrowed))
            .map_or_else(|| EventId::of(arrival.message, arrival.routing_key), EventId::from);
        Ok(Decoded::Event(Event {
            id,
            event_type,
            data_text: self.data_text,
            previous_text: self.previous_text,
            time: self.time,
            source: self.source,
            subject: self.subject,
            position: self.position,
            traceparent: self
                .traceparent
                .filter(is_traceparent)
                .or_else(|| arrival.traceparent().filter(is_traceparent)),
            form: self.form,
            exchange: Cow::Borrowed(arrival.exchange),
            routing_key: Cow::Borrowed(arrival.routing_key),
            attributes: self.attributes,
            parsed: self.parsed,
        }))
    }
}

/// Returns whether loaders may receive a `traceparent`.
///
/// W3C Trace Context, section 3.2, requires `version-trace_id-parent_id-flags` in lower-case hex.
/// Later versions add fields after another dash.
#[expect(clippy::ptr_arg, reason = "a predicate for Option<Cow<str>>")]
fn is_traceparent(text: &Cow<'_, str>) -> bool {
    let bytes = text.as_bytes();
    let Some((known, later)) = bytes.split_at_checked(55) else { return false };
    let shaped = known.iter().zip(b"00-00000000000000000000000000000000-0000000000000000-00").all(
        |(byte, shape)| match shape {
            b'-' => *byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        },
    );
    shaped
        && (later.is_empty()
            || (later[0] == b'-' && later.len() <= 200 && later.iter().all(u8::is_ascii_graphic)))
}
