//! What the broker says of a message that it dead-lettered itself: the header `x-death`, newest first.

use lapin::types::{AMQPValue, FieldTable};

use super::DeadLetter;
use crate::broker::convert::Delivery;
use crate::broker::names::Names;
use crate::event::header;

const X_DEATH: &str = "x-death";

/// Why and when the broker dead-lettered a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// `delivery_limit`, `expired`, or another of the broker's words.
    pub reason: String,
    /// When, in seconds since the Unix epoch.
    pub time_s: Option<u64>,
}

/// Reads the newest entry whose queue is ours; it says where the message came from, unless the message is a copy of ours, which says so itself.
pub(super) fn read(mut delivery: Delivery, names: &Names) -> DeadLetter {
    let Some(newest) = newest(&delivery, names) else { return DeadLetter { delivery, death: None } };
    let exchange = text(newest, "exchange").unwrap_or_default().to_owned();
    let routing_key = match newest.inner().get("routing-keys") {
        Some(AMQPValue::FieldArray(keys)) => keys.as_slice().first().and_then(as_text).map(str::to_owned),
        _ => None,
    };
    let death = Death {
        reason: text(newest, "reason").unwrap_or_default().to_owned(),
        time_s: match newest.inner().get("time") {
            Some(AMQPValue::Timestamp(seconds)) => Some(*seconds),
            _ => None,
        },
    };
    // Through another exchange anybody may have sent headers with our names.
    let is_copy = exchange.is_empty() && delivery.header(header::ROUTING_KEY).is_some();
    if !is_copy && let Some(routing_key) = routing_key {
        delivery.arrived_by(&exchange, &routing_key);
    }
    DeadLetter { delivery, death: Some(death) }
}

fn newest<'a>(delivery: &'a Delivery, names: &Names) -> Option<&'a FieldTable> {
    let Some(AMQPValue::FieldArray(deaths)) = delivery.header(X_DEATH) else { return None };
    deaths.as_slice().iter().find_map(|death| match death {
        AMQPValue::FieldTable(death) if text(death, "queue").is_some_and(|queue| is_ours(queue, names)) => Some(death),
        _ => None,
    })
}

/// Rungs of an earlier ladder are ours too.
fn is_ours(queue: &str, names: &Names) -> bool {
    let rung = queue.strip_prefix(&names.main).and_then(|rest| rest.strip_prefix(".retry."));
    queue == names.main || queue == names.slow || rung.is_some()
}

fn text<'a>(table: &'a FieldTable, name: &str) -> Option<&'a str> {
    table.inner().get(name).and_then(as_text)
}

fn as_text(value: &AMQPValue) -> Option<&str> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;

    use super::*;
    use crate::broker::convert::long;
    use crate::broker::convert::tests::{delivery, table};

    fn death(queue: &str, reason: &str, exchange: &str, routing_key: &str) -> AMQPValue {
        AMQPValue::FieldTable(table(&[
            ("queue", long(queue)),
            ("reason", long(reason)),
            ("exchange", long(exchange)),
            ("routing-keys", AMQPValue::FieldArray(vec![long(routing_key)].into())),
            ("time", AMQPValue::Timestamp(99)),
        ]))
    }

    fn letter(deaths: Vec<AMQPValue>, others: &[(&str, AMQPValue)]) -> DeadLetter {
        let mut headers = others.to_vec();
        headers.push((X_DEATH, AMQPValue::FieldArray(deaths.into())));
        let properties = BasicProperties::default().with_headers(table(&headers));
        read(delivery("", "shop.dead", properties, b"{}"), &Names::new("shop", &[]))
    }

    #[test]
    fn the_newest_death_in_a_queue_of_ours_says_where_it_came_from() {
        let deaths = vec![
            death("theirs", "rejected", "x", "y"),
            death("shop", "delivery_limit", "events", "user.updated"),
            death("shop.retry.1s", "expired", "", "shop.retry.1s"),
        ];
        let read = letter(deaths, &[]);
        assert_eq!(read.death, Some(Death { reason: "delivery_limit".into(), time_s: Some(99) }));
        assert_eq!((read.delivery.exchange(), read.delivery.routing_key()), ("events", "user.updated"));
    }

    #[test]
    fn a_copy_of_ours_says_so_itself() {
        let read = letter(vec![death("shop", "delivery_limit", "", "shop")], &[(header::ROUTING_KEY, long("user.updated"))]);
        assert_eq!((read.delivery.exchange(), read.delivery.routing_key()), ("", "shop.dead"));
        assert_eq!(read.death.unwrap().reason, "delivery_limit");
    }

    #[test]
    fn a_publisher_who_claims_to_be_us_is_not_believed() {
        let read = letter(vec![death("shop", "expired", "events", "user.updated")], &[(header::ROUTING_KEY, long("admin.deleted"))]);
        assert_eq!((read.delivery.exchange(), read.delivery.routing_key()), ("events", "user.updated"));
    }

    #[test]
    fn without_a_death_of_ours_nothing_is_changed() {
        let read = letter(vec![death("theirs", "expired", "x", "y")], &[]);
        assert_eq!((read.death, read.delivery.exchange(), read.delivery.routing_key()), (None, "", "shop.dead"));
    }
}
