//! Events in plain JSON: the type in a header of ours, in the body, or wherever a bare payload has it.

use std::borrow::Cow;

use super::cloudevents::utc;
use super::decode::{Arrival, Draft};
use super::json::JsonKind;
use super::object::Object;
use super::{Decoded, Form, HeaderValue, Malformed, time};

/// The type stands in the header `unstale-event-type`, the body is the data; id and time are the message's, as for a bare payload.
pub(super) fn header<'a>(arrival: &Arrival<'a>, event_type: &'a HeaderValue<'a>, body: &Object<'a>) -> Result<Decoded<'a>, Malformed> {
    let event_type = match event_type {
        HeaderValue::Text(text) if !text.is_empty() => Cow::Borrowed(text.as_ref()),
        _ => return Err(Malformed(Cow::Borrowed("the header `unstale-event-type` is not text or empty: name what happened there"))),
    };
    payload(Form::Header, arrival, event_type, body)
}

/// The type and the data stand in the body; `None` when they do not.
pub(super) fn envelope<'a>(arrival: &Arrival<'a>, body: &Object<'a>) -> Result<Option<Decoded<'a>>, Malformed> {
    let (Some(event_type), Some(data)) = (body.get("type"), body.get("data")) else { return Ok(None) };
    let Some(event_type) = event_type.as_str().filter(|_| data.kind() == JsonKind::Object) else { return Ok(None) };
    if event_type.is_empty() {
        return Err(Malformed(Cow::Borrowed("the body's `type` is empty: name what happened there")));
    }
    let mut draft = Draft::new(Form::Envelope, event_type, Cow::Borrowed(data.text()));
    draft.previous_text = body.object("previous")?.map(|previous| Cow::Borrowed(previous.text()));
    draft.id = body.scalar("id");
    draft.time = body.scalar("time").and_then(utc);
    draft.source = body.scalar("source");
    draft.subject = body.scalar("subject");
    draft.traceparent = body.scalar("traceparent");
    draft.finish(arrival).map(Some)
}

/// The body is the data and nothing else.
pub(super) fn bare<'a>(arrival: &Arrival<'a>, body: &Object<'a>) -> Result<Decoded<'a>, Malformed> {
    let property = arrival.message.properties.event_type.filter(|event_type| !event_type.is_empty());
    payload(Form::Bare, arrival, Cow::Borrowed(property.unwrap_or(arrival.routing_key)), body)
}

fn payload<'a>(form: Form, arrival: &Arrival<'a>, event_type: Cow<'a, str>, body: &Object<'a>) -> Result<Decoded<'a>, Malformed> {
    let properties = &arrival.message.properties;
    let mut draft = Draft::new(form, event_type, Cow::Borrowed(body.text()));
    draft.id = properties.message_id.map(Cow::Borrowed);
    draft.time = properties.timestamp_s.and_then(time::from_unix_s).map(Cow::Owned);
    draft.finish(arrival)
}
