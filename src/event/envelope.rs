//! Events in plain JSON: with a header for the type, in an envelope, or as a bare payload.
//!
//! Envelopes of MassTransit and NestJS are read too.

use std::borrow::Cow;

use super::decoded::{Decoded, Malformed};
use super::draft::{Arrival, Draft};
use super::form::Form;
use super::json::{Json, JsonKind};
use super::message::HeaderValue;
use super::object::{Object, is_object_text};
use super::place::{self, URN};
use super::time::{self, to_utc};

/// Decodes a message whose type is in the header `unstale-event-type` and whose body is the data.
/// Id and time are those of the message, as for a bare payload.
pub(super) fn header<'a>(
    arrival: &Arrival<'a>,
    event_type: &'a HeaderValue<'a>,
    body: &Object<'a>,
) -> Result<Decoded<'a>, Malformed> {
    let event_type = match event_type {
        HeaderValue::Text(text) if !text.is_empty() => Cow::Borrowed(text.as_ref()),
        _ => {
            return Err(Malformed(Cow::Borrowed(
                "the header `unstale-event-type` is empty or not text: set it to the event type, such as user.updated",
            )));
        }
    };
    payload(Form::Header, arrival, event_type, body)
}

/// Decodes an envelope, with the type and the data in the body. `None` if one of them is absent.
pub(super) fn envelope<'a>(
    arrival: &Arrival<'a>,
    body: &Object<'a>,
) -> Result<Option<Decoded<'a>>, Malformed> {
    let (Some(event_type), Some(data)) = (body.get("type"), body.get("data")) else {
        return Ok(None);
    };
    let (Some(event_type), Some(data)) = (event_type.as_str(), object_text(data)) else {
        return Ok(None);
    };
    if event_type.is_empty() {
        return Err(Malformed(Cow::Borrowed(
            "the body's `type` is empty: set it to the event type, such as user.updated",
        )));
    }
    let mut draft = Draft::new(Form::Envelope, event_type, data);
    draft.previous_text = body.object("previous")?.map(|previous| Cow::Borrowed(previous.text()));
    draft.id = body.scalar("id");
    draft.time = body.scalar("time").and_then(to_utc);
    draft.source = body.scalar("source");
    draft.subject = body.scalar("subject");
    draft.traceparent = body.scalar("traceparent");
    draft.finish(arrival).map(Some)
}

/// Decodes the envelope of MassTransit. The type is the name in the first URN of `messageType`, and
/// the whole body is the data.
pub(super) fn masstransit<'a>(
    arrival: &Arrival<'a>,
    body: &Object<'a>,
) -> Result<Option<Decoded<'a>>, Malformed> {
    let is_one = body.get("message").is_some_and(|message| message.kind() == JsonKind::Object);
    let Some(types) =
        body.get("messageType").filter(|types| is_one && types.kind() == JsonKind::Array)
    else {
        return Ok(None);
    };
    let first = types.elements().into_iter().next().and_then(Json::as_str);
    let Some(urn) = first.filter(|urn| urn.starts_with(URN)) else { return Ok(None) };
    let mut draft = Draft::new(Form::Envelope, place::type_name(urn), Cow::Borrowed(body.text()));
    draft.id = body.scalar("messageId");
    draft.time = body.scalar("sentTime").and_then(to_utc);
    draft.source = body.scalar("sourceAddress");
    draft.finish(arrival).map(Some)
}

/// Decodes the envelope of NestJS: `pattern` is the type, `data` the data.
///
/// NestJS publishes to a queue, or with the pattern as the routing key. Under any other routing
/// key, an application may use these names for members of its own.
pub(super) fn nest<'a>(
    arrival: &Arrival<'a>,
    body: &Object<'a>,
) -> Result<Option<Decoded<'a>>, Malformed> {
    let (Some(pattern), Some(data)) = (body.get("pattern"), body.get("data")) else {
        return Ok(None);
    };
    let pattern = pattern.as_str().or_else(|| Object::of(pattern)?.get("cmd")?.as_str());
    let (Some(pattern), Some(data)) =
        (pattern.filter(|pattern| !pattern.is_empty()), object_text(data))
    else {
        return Ok(None);
    };
    let names_no_type = arrival.exchange.is_empty()
        || arrival.routing_key.is_empty()
        || arrival.routing_key == pattern;
    if !names_no_type || arrival.property_type().is_some() {
        return Ok(None);
    }
    let mut draft = Draft::new(Form::Envelope, pattern, data);
    draft.id = body.scalar("id");
    draft.finish(arrival).map(Some)
}

/// Returns the text of an object, or of an object in JSON text.
fn object_text(json: Json<'_>) -> Option<Cow<'_, str>> {
    match json.kind() {
        JsonKind::Object => Some(Cow::Borrowed(json.text())),
        JsonKind::String => {
            let text = json.as_str().filter(|text| is_object_text(text))?;
            let object = Json::parse(&text).ok().filter(|json| json.kind() == JsonKind::Object)?;
            Some(Cow::Owned(object.text().to_owned()))
        }
        _ => None,
    }
}

/// Decodes a bare payload: the body is the data and nothing else.
pub(super) fn bare<'a>(arrival: &Arrival<'a>, body: &Object<'a>) -> Result<Decoded<'a>, Malformed> {
    let event_type = arrival.property_type().unwrap_or(arrival.routing_key);
    payload(Form::Bare, arrival, Cow::Borrowed(event_type), body)
}

fn payload<'a>(
    form: Form,
    arrival: &Arrival<'a>,
    event_type: Cow<'a, str>,
    body: &Object<'a>,
) -> Result<Decoded<'a>, Malformed> {
    let properties = &arrival.message.properties;
    let mut draft = Draft::new(form, event_type, Cow::Borrowed(body.text()));
    draft.id = properties.message_id.map(Cow::Borrowed);
    draft.time = properties.timestamp_s.and_then(time::from_unix_s).map(Cow::Owned);
    draft.finish(arrival)
}
