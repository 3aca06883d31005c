//! CloudEvents 1.0, in binary mode (attributes in headers) or structured mode (attributes in the
//! body).

use std::borrow::Cow;

use base64::Engine as _;

use super::attributes::{Attributes, strip_prefix_ignore_case};
use super::debezium;
use super::decoded::{Decoded, Malformed, malformed};
use super::draft::{Arrival, Draft};
use super::form::Form;
use super::object::{Object, is_object_text};
use super::time::to_utc;

/// The CloudEvents format that a content type names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MediaType {
    /// `application/cloudevents+json`
    Structured,
    /// `application/cloudevents-batch+…`
    Batch,
    /// `application/cloudevents+…`, not JSON.
    OtherFormat,
    /// No CloudEvents format.
    None,
}

impl MediaType {
    pub(super) fn of(content_type: Option<&str>) -> Self {
        let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        let Some(rest) = strip_prefix_ignore_case(essence, "application/cloudevents") else {
            return Self::None;
        };
        if rest.eq_ignore_ascii_case("+json") {
            Self::Structured
        } else if strip_prefix_ignore_case(rest, "-batch").is_some() {
            Self::Batch
        } else if rest.starts_with('+') {
            Self::OtherFormat
        } else {
            Self::None
        }
    }
}

/// Decodes binary mode: the body is the data.
pub(super) fn binary<'a>(
    arrival: &Arrival<'a>,
    attributes: Attributes<'_, 'a>,
    body: &Object<'a>,
    only: Option<Form>,
) -> Result<Option<Decoded<'a>>, Malformed> {
    read(arrival, attributes, body, Form::Binary, only)
}

/// Decodes structured mode: the body is the event.
pub(super) fn structured<'a>(
    arrival: &Arrival<'a>,
    body: &Object<'a>,
    only: Option<Form>,
) -> Result<Option<Decoded<'a>>, Malformed> {
    let attributes = Attributes::Members(body);
    if let Some(data) = body.get("data") {
        if let Some(text) = data.as_str().filter(|text| is_object_text(text)) {
            let data = Object::parse(text.as_bytes(), "the CloudEvent's `data`, which is text,")?;
            let attributes = body.reborrowed();
            return Ok(read(
                arrival,
                Attributes::Members(&attributes),
                &data,
                Form::Structured,
                only,
            )?
            .map(Decoded::into_owned));
        }
        let data = Object::of(data).ok_or_else(|| {
            malformed(format!("the CloudEvent's `data` is {}: publish a JSON object, with datacontenttype application/json", data.kind()))
        })?;
        return read(arrival, attributes, &data, Form::Structured, only);
    }
    let Some(encoded) = body.get("data_base64") else {
        return read(arrival, attributes, &Object::empty(), Form::Structured, only);
    };
    let bytes = encoded
        .as_str()
        .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text.as_bytes()).ok());
    let bytes = bytes.ok_or(Malformed(Cow::Borrowed(
        "the CloudEvent's `data_base64` is not a string of padded standard base64",
    )))?;
    let data = if bytes.is_empty() {
        Object::empty()
    } else {
        Object::parse(&bytes, "the CloudEvent's `data_base64`, decoded,")?
    };
    let attributes = body.reborrowed();
    Ok(read(arrival, Attributes::Members(&attributes), &data, Form::Structured, only)?
        .map(Decoded::into_owned))
}

fn read<'a>(
    arrival: &Arrival<'a>,
    attributes: Attributes<'_, 'a>,
    data: &Object<'a>,
    form: Form,
    only: Option<Form>,
) -> Result<Option<Decoded<'a>>, Malformed> {
    let own_type = attributes.text("type");
    if own_type.is_none() && attributes.contains("type") {
        return Err(Malformed(Cow::Borrowed("the CloudEvents attribute `type` is not text")));
    }
    let lost_type = || if form == Form::Binary { arrival.type_at_first_arrival() } else { None };
    let Some(event_type) = own_type.or_else(lost_type).filter(|event_type| !event_type.is_empty())
    else {
        return Err(Malformed(Cow::Borrowed(
            "the CloudEvents attribute `type` is missing or empty: set it to the event type, such as user.updated",
        )));
    };
    let event_time = attributes.text("time").and_then(to_utc);
    if only != Some(form)
        && let Some(change) = debezium::Change::in_cloud_event(&event_type, attributes, data)
    {
        let context = debezium::CloudEventContext {
            id: attributes.text("id"),
            time: event_time,
            traceparent: attributes.text("traceparent"),
        };
        return change.decode(arrival, context).map(Some);
    }
    if only.is_some_and(|only| only != form) {
        return Ok(None);
    }
    let mut draft = Draft::new(form, event_type, Cow::Borrowed(data.text()));
    draft.previous_text = attributes.previous()?;
    draft.id = attributes.text("id");
    draft.time = event_time;
    draft.source = attributes.text("source");
    draft.subject = attributes.text("subject");
    draft.traceparent = attributes.text("traceparent");
    draft.attributes = attributes.extensions();
    draft.finish(arrival).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cloudevents_media_types_are_distinguished() {
        for (content_type, media_type) in [
            ("application/cloudevents+json", MediaType::Structured),
            ("Application/CloudEvents+JSON ; charset=utf-8", MediaType::Structured),
            ("application/cloudevents-batch+json", MediaType::Batch),
            ("application/cloudevents-batch+json; charset=utf-8", MediaType::Batch),
            ("application/cloudevents+avro", MediaType::OtherFormat),
            ("application/cloudevents", MediaType::None),
            ("application/cloudeventsx", MediaType::None),
            ("application/json", MediaType::None),
            ("", MediaType::None),
        ] {
            assert_eq!(MediaType::of(Some(content_type)), media_type, "{content_type}");
        }
        assert_eq!(MediaType::of(None), MediaType::None);
    }
}
