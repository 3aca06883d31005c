//! Republished messages: retry messages, slow-lane messages and dead letters.
//!
//! A republished message is the delivery byte for byte, without the parts that would make the
//! broker lose, double or refuse it:
//! - A kept `x-death` makes dead-letter cycles vanish.
//! - An `expiration` expires the message.
//! - A foreign `user_id` closes the channel (406).
//! - `CC` routes the message to further queues.
//! - Headers larger than a frame close the connection (501).

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::convert::{Delivery, for_copy, long};
use super::publisher::Outgoing;
use super::signature::Signer;
use super::wire::content_header_bytes;
use crate::event::{Form, header};
use crate::printable::printable;
use crate::reason::Reason;

/// Maximum size of `unstale-error`, in bytes.
const ERROR_MAX_BYTES: usize = 1024;

/// Bytes that the broker may add to the headers without making the message too large to deliver.
///
/// It adds `x-death` with its queue and routing key, `x-first-death-*` and `x-delivery-count`.
const BROKER_RESERVE_BYTES: usize = 4096;

/// Maximum size of a name or id. Longer ones are dropped before the publisher's headers are.
const NAME_MAX_BYTES: usize = 512;

/// Headers that the broker itself set, and `CC` and `BCC`, which would route the message to further
/// queues.
const DROPPED: [&str; 6] =
    ["x-death", "x-delivery-count", "x-acquired-count", "x-stream-offset", "CC", "BCC"];

/// Prefixes of further such headers, each with `-queue`, `-reason` and `-exchange`.
const DROPPED_PREFIXES: [&str; 2] = ["x-first-death-", "x-last-death-"];

/// Headers that every later republished message keeps.
///
/// The first one stores here what it had to clear. A replayed one stores its history.
const KEPT: [&str; 5] = [
    header::EXPIRATION,
    header::USER_ID,
    header::CC,
    header::HEADERS_DROPPED,
    header::EARLIER_REASONS,
];

/// Contents of our headers on a republished message.
///
/// A field that is `None` is not written. The event's type, id and form are exceptions: they are
/// then taken from the earlier republished message. The exchange, the routing key and the time of
/// the first arrival come from the delivery, or from the earlier republished message that it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyHeaders<'a> {
    /// Attempts made so far: 1 on the first retry message.
    pub attempt: u32,
    /// Reason why it is in the dead-letter queue, or waits.
    pub reason: Option<Reason>,
    /// The reason in words: paths and rules, never payload values. Cut after 1 KiB.
    pub error: Option<&'a str>,
    /// The event's type.
    pub event_type: Option<&'a str>,
    /// The event's id, if the message has none of its own.
    pub event_id: Option<&'a str>,
    /// Form in which the event was read.
    pub form: Option<Form>,
    /// Positions of the effects still to do, if some are done.
    pub effects: Option<&'a [u32]>,
    /// Reasons of earlier dead letters, on a replayed one; `None` keeps those of the earlier
    /// message.
    pub earlier_reasons: Option<&'a str>,
    /// Redelivery count by then, if it was redelivered.
    pub redelivered: Option<u64>,
    /// The registry's digest.
    pub registry: &'a str,
    /// Time (RFC 3339) before which the event did not arrive, unless an earlier republished message
    /// has it.
    pub arrived_after: Option<&'a str>,
    /// Offset of the history before which it does not hold the event, if that is known.
    pub arrived_offset: Option<u64>,
    /// Current time, RFC 3339.
    pub time: &'a str,
}

/// Republishes `delivery` to `queue`, with headers that fit a frame of `frame_max_bytes`
/// ([`Publisher::frame_max_bytes`]).
///
/// The body is not copied. The signer signs our headers.
///
/// [`Publisher::frame_max_bytes`]: super::Publisher::frame_max_bytes
pub fn copy_to<'a>(
    queue: &'a str,
    delivery: &'a Delivery,
    headers: &CopyHeaders<'_>,
    frame_max_bytes: u32,
    signer: &Signer,
) -> Outgoing<'a> {
    Outgoing::new(
        "",
        queue,
        properties(delivery, headers, frame_max_bytes, signer),
        delivery.body(),
    )
}

fn properties(
    delivery: &Delivery,
    headers: &CopyHeaders<'_>,
    frame_max_bytes: u32,
    signer: &Signer,
) -> BasicProperties {
    let frame = frame_max_bytes as usize;
    let limit = frame.saturating_sub(BROKER_RESERVE_BYTES).max(frame / 2);
    let publishers = publishers_headers(delivery);
    // The first attempt that fits is used. Our headers are shortened first, and are whole again
    // once the publisher's are dropped.
    let attempts = [
        (Ours::Whole, true),
        (Ours::WithoutError, true),
        (Ours::Short, true),
        (Ours::Whole, false),
        (Ours::Short, false),
    ];
    let mut made = BasicProperties::default();
    for (ours, with_publishers) in attempts {
        let mut table = if with_publishers { publishers.clone() } else { BTreeMap::new() };
        if !with_publishers {
            table.insert(header::HEADERS_DROPPED.into(), true.into());
        }
        write_ours(&mut table, delivery, headers, ours);
        let mut table = FieldTable::from(table);
        signer.sign(&mut table, delivery.body());
        made = for_copy(delivery.properties(), table);
        if content_header_bytes(&made) <= limit {
            break;
        }
    }
    made
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ours {
    Whole,
    WithoutError,
    /// Without long names and ids, and without a long list of effects: a missing list means all
    /// effects.
    Short,
}

/// Returns the headers without those set by the broker and those that only look like ours.
fn publishers_headers(delivery: &Delivery) -> BTreeMap<ShortString, AMQPValue> {
    let is_copy = delivery.origin().is_republished();
    let table = delivery.properties().headers().as_ref().map(FieldTable::inner);
    let mut kept: BTreeMap<ShortString, AMQPValue> = table
        .into_iter()
        .flatten()
        .filter(|(name, _)| {
            let name = name.as_str();
            let is_ours = name.starts_with(header::PREFIX)
                && !(is_copy && KEPT.contains(&name))
                && name != header::EVENT_TYPE;
            !is_ours
                && !DROPPED.contains(&name)
                && !DROPPED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        })
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if let Some(cc) = delivery.header("CC") {
        kept.insert(header::CC.into(), cc.clone());
    }
    kept
}

fn write_ours(
    table: &mut BTreeMap<ShortString, AMQPValue>,
    delivery: &Delivery,
    headers: &CopyHeaders<'_>,
    ours: Ours,
) {
    let fits = |text: &&str| ours != Ours::Short || text.len() <= NAME_MAX_BYTES;
    let signed = |name: &str| text(delivery, name).filter(|_| delivery.origin().is_republished());
    // From an unsigned message, a signature may cover only how its event is read.
    let earlier =
        |name: &str| text(delivery, name).filter(|_| delivery.origin().says_how_to_read());
    let mut write = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            table.insert(name.into(), long(value));
        }
    };
    let (exchange, routing_key) = match earlier(header::ROUTING_KEY) {
        Some(routing_key) => (earlier(header::EXCHANGE).unwrap_or_default(), routing_key),
        None => (delivery.exchange(), delivery.routing_key()),
    };
    write(header::EXCHANGE, Some(exchange).filter(fits));
    write(header::ROUTING_KEY, Some(routing_key).filter(fits).or(Some("")));
    write(header::FIRST_TIME, signed(header::FIRST_TIME).filter(fits).or(Some(headers.time)));
    write(
        header::ARRIVED_AFTER,
        signed(header::ARRIVED_AFTER).or(headers.arrived_after).filter(fits),
    );
    let arrived_offset = headers.arrived_offset.map(|offset| offset.to_string());
    write(
        header::ARRIVED_OFFSET,
        signed(header::ARRIVED_OFFSET).or(arrived_offset.as_deref()).filter(fits),
    );
    write(header::TIME, Some(headers.time));
    write(header::REGISTRY, Some(headers.registry).filter(|digest| !digest.is_empty()));
    write(header::EARLIER_REASONS, headers.earlier_reasons.filter(fits));
    write(header::REASON, headers.reason.map(Reason::as_str));
    write(
        header::FORM,
        headers.form.map(Form::as_str).or_else(|| earlier(header::FORM)).filter(fits),
    );
    write(
        header::EVENT_TYPE,
        headers.event_type.or_else(|| earlier(header::EVENT_TYPE)).filter(fits),
    );
    write(header::EVENT_ID, headers.event_id.or_else(|| earlier(header::EVENT_ID)).filter(fits));
    let error = headers.error.filter(|_| ours == Ours::Whole);
    let error = error.map(printable);
    write(header::ERROR, error.as_deref().map(cut_error));
    let effects = headers
        .effects
        .map(|positions| positions.iter().map(u32::to_string).collect::<Vec<_>>().join(","));
    write(header::EFFECTS, effects.as_deref().filter(fits));
    let properties = delivery.properties();
    write(
        header::EXPIRATION,
        properties
            .expiration()
            .as_ref()
            .map(ShortString::as_str)
            .or_else(|| signed(header::EXPIRATION))
            .filter(fits),
    );
    write(
        header::USER_ID,
        properties
            .user_id()
            .as_ref()
            .map(ShortString::as_str)
            .or_else(|| signed(header::USER_ID))
            .filter(fits),
    );
    if let Some(redelivered) = headers.redelivered {
        table.insert(
            header::REDELIVERED.into(),
            AMQPValue::LongLongInt(i64::try_from(redelivered).unwrap_or(i64::MAX)),
        );
    }
    table.insert(
        header::ATTEMPT.into(),
        AMQPValue::LongInt(i32::try_from(headers.attempt).unwrap_or(i32::MAX)),
    );
}

/// Returns the text up to [`ERROR_MAX_BYTES`], ending on a whole character.
fn cut_error(error: &str) -> &str {
    let end = (0..=error.len().min(ERROR_MAX_BYTES)).rev().find(|&at| error.is_char_boundary(at));
    &error[..end.unwrap_or(0)]
}

fn text<'a>(delivery: &'a Delivery, name: &str) -> Option<&'a str> {
    match delivery.header(name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
