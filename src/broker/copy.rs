//! Copies: what we publish in place of a delivery, to try it later, elsewhere, or never again.
//!
//! A copy is the delivery, byte for byte, but for what would make the broker lose it, double it or
//! refuse it: a kept `x-death` makes dead-letter cycles vanish, an `expiration` expires it, a
//! foreign `user_id` closes the channel (406), `CC` routes it elsewhere too, and headers larger
//! than a frame close the connection (501).

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

/// The longest `unstale-error`.
const ERROR_MAX_BYTES: usize = 1024;

/// What the broker may add to a copy's headers on its way (`x-death` with its queue and routing
/// key, `x-first-death-*`, `x-delivery-count`) without making it too large to be delivered.
const BROKER_RESERVE_BYTES: usize = 4096;

/// A name or id beyond this gives way before the publisher's headers do.
const NAME_MAX_BYTES: usize = 512;

/// What the broker itself put on the message, and `CC`, by which it would route the copy elsewhere
/// too.
const DROPPED: [&str; 6] =
    ["x-death", "x-delivery-count", "x-acquired-count", "x-stream-offset", "CC", "BCC"];

/// As above: `-queue`, `-reason` and `-exchange` each.
const DROPPED_PREFIXES: [&str; 2] = ["x-first-death-", "x-last-death-"];

/// Where the first copy kept what it had to clear, and a replayed one its history; later copies
/// keep that.
const KEPT: [&str; 5] = [
    header::EXPIRATION,
    header::USER_ID,
    header::CC,
    header::HEADERS_DROPPED,
    header::EARLIER_REASONS,
];

/// What the headers of a copy say. What is `None` is not written, but for the event's type, id and
/// form, which are then those of the earlier copy. The exchange, the routing key and the time of
/// the first arrival are taken from the delivery, or from the earlier copy that it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyHeaders<'a> {
    /// Attempts made so far: 1 on the first retry copy.
    pub attempt: u32,
    /// Why it stands in the dead-letter queue, or waits.
    pub reason: Option<Reason>,
    /// The reason in words: paths and rules, never payload values. Cut after 1 KiB.
    pub error: Option<&'a str>,
    /// The event's type.
    pub event_type: Option<&'a str>,
    /// The event's id, where it has none of its own.
    pub event_id: Option<&'a str>,
    /// How the event was read.
    pub form: Option<Form>,
    /// Positions of the effects still to do, where not all.
    pub effects: Option<&'a [u32]>,
    /// The reasons of earlier dead letters, on a replayed one; `None` keeps those of the earlier
    /// copy.
    pub earlier_reasons: Option<&'a str>,
    /// How often it was delivered in vain by then, where it was.
    pub redelivered: Option<u64>,
    /// The registry's digest.
    pub registry: &'a str,
    /// A time before which the event did not arrive, RFC 3339, unless an earlier copy has it.
    pub arrived_after: Option<&'a str>,
    /// An offset of the history before which it does not hold the event, where that is known.
    pub arrived_offset: Option<u64>,
    /// Now: RFC 3339.
    pub time: &'a str,
}

/// A copy of `delivery` for `queue`, with headers that fit a frame of `frame_max_bytes`
/// ([`Publisher::frame_max_bytes`]); the body is not copied. The signer signs our headers.
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
    // The first that fits. Ours give way first, and come back where the publisher's are gone.
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
    /// Nor long names and ids, nor a long list of effects: without it all are done.
    Short,
}

/// The table without what the broker put there and without what only looks like ours.
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
    // A signature must not vouch for more of an unsigned message than how its event is read.
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

/// The text up to [`ERROR_MAX_BYTES`], ending on a whole character.
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
