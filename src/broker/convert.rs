//! Conversion between lapin's deliveries, properties and tables and our own types.

use std::borrow::Cow;
use std::fmt;
use std::hash::BuildHasher;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::failure::PublishError;
use super::tag::Tag;
use crate::event::json::JsonKind;
use crate::event::{
    HeaderValue, Headers, Json, Message, Origin, OwnedMessage, OwnedValue, Properties, header,
};

/// Header with the number of failed deliveries from a quorum queue; absent the first time.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// Header with the number of earlier deliveries, failed or not: RabbitMQ 4.3 and later.
const ACQUIRED_COUNT: &str = "x-acquired-count";

/// One message, as a queue delivered it.
#[derive(Clone)]
pub struct Delivery {
    tag: Tag,
    exchange: ShortString,
    routing_key: ShortString,
    redelivered: bool,
    /// Earlier deliveries that are no sign of poison: see [`Delivery::forgive`].
    forgiven: u64,
    properties: BasicProperties,
    body: Vec<u8>,
    origin: Origin,
    was_moved: bool,
}

impl Delivery {
    pub(super) fn new(epoch: u64, delivery: lapin::message::Delivery) -> Self {
        Self {
            tag: Tag { epoch, number: delivery.delivery_tag },
            exchange: delivery.exchange,
            routing_key: delivery.routing_key,
            redelivered: delivery.redelivered,
            forgiven: 0,
            properties: delivery.properties,
            body: delivery.data,
            origin: Origin::Publisher,
            was_moved: false,
        }
    }

    /// Returns a delivery that never was on a broker.
    #[cfg(test)]
    pub(crate) fn of(exchange: &str, routing_key: &str, body: &[u8]) -> Self {
        tests::delivery(exchange, routing_key, BasicProperties::default(), body)
    }

    /// Returns the tag to acknowledge it with.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// Returns the exchange it came through last; empty for the default exchange.
    pub fn exchange(&self) -> &str {
        self.exchange.as_str()
    }

    /// Returns the routing key it came with last.
    pub fn routing_key(&self) -> &str {
        self.routing_key.as_str()
    }

    /// Returns whether it was delivered before, to any consumer.
    pub fn redelivered(&self) -> bool {
        self.redelivered
    }

    /// Returns the number of earlier failed deliveries, as the delivery limit counts them.
    ///
    /// A publisher can set the same headers. The broker overwrites `x-delivery-count` on every
    /// redelivery up to version 4.2. Since 4.3 it overwrites `x-acquired-count`, which is never the
    /// lower one.
    pub fn delivery_count(&self) -> u64 {
        if !self.redelivered {
            return 0;
        }
        let count =
            |name| self.header(name).and_then(integer).and_then(|count| u64::try_from(count).ok());
        let failed = count(DELIVERY_COUNT).unwrap_or(0);
        count(ACQUIRED_COUNT).map_or(failed, |acquired| failed.min(acquired))
    }

    /// Returns how often it was redelivered without an acknowledgement, less the forgiven
    /// deliveries; `None` the first time.
    pub fn counted_redeliveries(&self) -> Option<u64> {
        self.redelivery_count().map(|count| count.saturating_sub(self.forgiven))
    }

    /// Returns the redelivery count, which includes the count of a republished message; `None` the
    /// first time.
    pub fn redelivery_count(&self) -> Option<u64> {
        if !self.redelivered && !self.origin.is_republished() {
            return None;
        }
        let before = if self.origin.is_republished() { self.redelivered_before() } else { 0 };
        (self.redelivered || before > 0).then(|| self.delivery_count().saturating_add(before))
    }

    /// Returns the count that a republished message carries.
    fn redelivered_before(&self) -> u64 {
        let count = self.header(header::REDELIVERED).and_then(integer);
        count.and_then(|count| u64::try_from(count).ok()).unwrap_or(0)
    }

    /// Excludes that many deliveries from [`counted_redeliveries`](Self::counted_redeliveries).
    ///
    /// The process that received them is alive, so they ended no worker.
    pub fn forgive(&mut self, deliveries: u64) {
        self.forgiven = deliveries;
    }

    /// Returns a number that identifies this message across its deliveries.
    pub fn fingerprint(&self, hasher: &impl BuildHasher) -> u64 {
        let properties = &self.properties;
        let id = properties.message_id().as_ref().map(ShortString::as_str);
        hasher.hash_one((
            self.exchange(),
            self.routing_key(),
            id,
            properties.timestamp(),
            &self.body,
        ))
    }

    /// Returns the body, byte for byte.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Returns the message as the event decoder reads it, without copying the body.
    pub fn message(&self) -> Message<'_> {
        let headers = self.properties.headers().as_ref().map_or_else(Vec::new, |table| {
            table
                .inner()
                .iter()
                .map(|(name, value)| (Cow::Borrowed(name.as_str()), header_value(value)))
                .collect()
        });
        Message {
            exchange: self.exchange(),
            routing_key: self.routing_key(),
            properties: Properties {
                content_type: text(self.properties.content_type().as_ref()),
                content_encoding: text(self.properties.content_encoding().as_ref()),
                message_id: text(self.properties.message_id().as_ref()),
                event_type: text(self.properties.kind().as_ref()),
                timestamp_s: *self.properties.timestamp(),
            },
            headers: Headers(headers),
            body: &self.body,
            origin: self.origin,
        }
    }

    /// Returns the origin, as far as it is certain.
    pub(super) fn origin(&self) -> Origin {
        self.origin
    }

    pub(super) fn set_origin(&mut self, origin: Origin) {
        self.origin = origin;
    }

    /// Returns whether a publisher's message came straight from its own exchange.
    ///
    /// Such a message is no older than the queue's backlog.
    pub fn is_first_publication(&self) -> bool {
        self.origin == Origin::Publisher && !self.was_moved && !self.exchange.as_str().is_empty()
    }

    /// Sets the exchange and routing key of the first arrival, after the broker has moved the
    /// message.
    ///
    /// A name beyond AMQP's 255 bytes cannot have come over the wire.
    pub(super) fn arrived_by(&mut self, exchange: &str, routing_key: &str) {
        self.was_moved = true;
        if let (Some(exchange), Some(routing_key)) = (short(exchange), short(routing_key)) {
            (self.exchange, self.routing_key) = (exchange, routing_key);
        }
    }

    /// Returns the same delivery, as it comes after a failed delivery.
    #[cfg(test)]
    pub(crate) fn redelivered_once(self) -> Self {
        Self { redelivered: true, ..self }
    }

    pub(super) fn properties(&self) -> &BasicProperties {
        &self.properties
    }

    pub(super) fn header(&self, name: &str) -> Option<&AMQPValue> {
        self.properties.headers().as_ref().and_then(|table| table.inner().get(name))
    }
}

fn text(property: Option<&ShortString>) -> Option<&str> {
    property.map(ShortString::as_str)
}

/// Shows neither headers nor body, so that payload values never reach a log.
impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("tag", &self.tag)
            .field("routing_key", &self.routing_key)
            .finish_non_exhaustive()
    }
}

/// Converts the value, as far as events use it.
fn header_value(value: &AMQPValue) -> HeaderValue<'_> {
    let bytes = match value {
        AMQPValue::LongString(text) => text.as_bytes(),
        AMQPValue::ShortString(text) => text.as_str().as_bytes(),
        AMQPValue::ByteArray(bytes) => bytes.as_slice(),
        AMQPValue::Boolean(value) => return HeaderValue::Bool(*value),
        AMQPValue::Float(value) => return HeaderValue::Double(f64::from(*value)),
        AMQPValue::Double(value) => return HeaderValue::Double(*value),
        AMQPValue::Timestamp(seconds) => return HeaderValue::Timestamp(*seconds),
        other => return integer(other).map_or(HeaderValue::Opaque, HeaderValue::Integer),
    };
    std::str::from_utf8(bytes)
        .map_or(HeaderValue::Opaque, |text| HeaderValue::Text(Cow::Borrowed(text)))
}

fn integer(value: &AMQPValue) -> Option<i128> {
    Some(match value {
        AMQPValue::ShortShortInt(value) => i128::from(*value),
        AMQPValue::ShortShortUInt(value) => i128::from(*value),
        AMQPValue::ShortInt(value) => i128::from(*value),
        AMQPValue::ShortUInt(value) => i128::from(*value),
        AMQPValue::LongInt(value) => i128::from(*value),
        AMQPValue::LongUInt(value) => i128::from(*value),
        AMQPValue::LongLongInt(value) => i128::from(*value),
        _ => return None,
    })
}

/// Returns a short string; `None` beyond the 255 bytes that AMQP allows.
///
/// lapin would send a longer one broken.
pub(super) fn short(text: &str) -> Option<ShortString> {
    ShortString::try_new(text).ok()
}

pub(super) fn long(text: impl Into<Vec<u8>>) -> AMQPValue {
    AMQPValue::LongString(text.into().into())
}

/// Returns the properties for a republished message: other headers, and without properties that
/// would harm it.
///
/// `BasicProperties` has no way to clear a property.
pub(super) fn for_copy(from: &BasicProperties, headers: FieldTable) -> BasicProperties {
    let mut to = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
    macro_rules! keep {
        ($($read:ident => $write:ident),*) => { $(if let Some(value) = from.$read() { to = to.$write(value.clone()); })* };
    }
    keep!(content_type => with_content_type, content_encoding => with_content_encoding, priority => with_priority,
        correlation_id => with_correlation_id, reply_to => with_reply_to, message_id => with_message_id, timestamp => with_timestamp,
        kind => with_type, app_id => with_app_id, cluster_id => with_cluster_id);
    to
}

/// Returns the properties to publish a message with.
pub(super) fn properties_of(message: &OwnedMessage) -> Result<BasicProperties, PublishError> {
    let checked = |what: &str, text: &str| {
        short(text).ok_or_else(|| {
            PublishError::Unsendable(format!(
                "{what} is longer than the 255 bytes that AMQP allows"
            ))
        })
    };
    let from = &message.properties;
    let mut to = BasicProperties::default().with_delivery_mode(from.delivery_mode.unwrap_or(2));
    macro_rules! write {
        ($($field:ident => $write:ident, $what:literal;)*) => {
            $(if let Some(text) = &from.$field { to = to.$write(checked($what, text)?); })*
        };
    }
    write! {
        content_type => with_content_type, "`content_type`";
        content_encoding => with_content_encoding, "`content_encoding`";
        correlation_id => with_correlation_id, "`correlation_id`";
        reply_to => with_reply_to, "`reply_to`";
        expiration => with_expiration, "`expiration`";
        message_id => with_message_id, "`message_id`";
        event_type => with_type, "the property `type`";
        user_id => with_user_id, "`user_id`";
        app_id => with_app_id, "`app_id`";
        cluster_id => with_cluster_id, "`cluster_id`";
    }
    if let Some(priority) = from.priority {
        to = to.with_priority(priority);
    }
    if let Some(seconds) = from.timestamp_s {
        to = to.with_timestamp(seconds);
    }
    if !message.headers.is_empty() {
        let mut table = FieldTable::default();
        for (name, value) in &message.headers {
            table.insert(checked("a header's name", name)?, owned_value(value)?);
        }
        to = to.with_headers(table);
    }
    Ok(to)
}

fn owned_value(value: &OwnedValue) -> Result<AMQPValue, PublishError> {
    Ok(match value {
        OwnedValue::Text(text) => long(text.as_str()),
        OwnedValue::Integer(integer) => AMQPValue::LongLongInt(*integer),
        OwnedValue::Double(double) => AMQPValue::Double(*double),
        OwnedValue::Bool(value) => AMQPValue::Boolean(*value),
        OwnedValue::Timestamp(seconds) => AMQPValue::Timestamp(*seconds),
        OwnedValue::Null => AMQPValue::Void,
        OwnedValue::Bytes(bytes) => long(bytes.clone()),
        OwnedValue::Json(text) => json_value(
            Json::parse(text)
                .map_err(|error| PublishError::Unsendable(format!("a header is {error}")))?,
        )?,
    })
}

fn json_value(json: Json<'_>) -> Result<AMQPValue, PublishError> {
    let unsendable = |what: &str| PublishError::Unsendable(format!("a header {what}"));
    Ok(match json.kind() {
        JsonKind::Null => AMQPValue::Void,
        JsonKind::Bool => AMQPValue::Boolean(json.as_bool() == Some(true)),
        JsonKind::String => long(json.as_str().unwrap_or_default().as_ref()),
        JsonKind::Number => match (json.text().parse(), json.text().parse()) {
            (Ok(integer), _) => AMQPValue::LongLongInt(integer),
            (_, Ok(double)) => AMQPValue::Double(double),
            _ => return Err(unsendable("holds a number that AMQP cannot")),
        },
        JsonKind::Array => AMQPValue::FieldArray(
            json.elements().into_iter().map(json_value).collect::<Result<Vec<_>, _>>()?.into(),
        ),
        JsonKind::Object => {
            let mut table = FieldTable::default();
            for (name, value) in json.members() {
                let name = short(&name).ok_or_else(|| {
                    unsendable("holds a name longer than the 255 bytes that AMQP allows")
                })?;
                table.insert(name, json_value(value)?);
            }
            AMQPValue::FieldTable(table)
        }
    })
}

#[cfg(test)]
pub(super) mod tests;
