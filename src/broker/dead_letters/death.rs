//! The broker's own record of a dead-lettered message: the header `x-death`.

use lapin::types::{AMQPValue, FieldTable};

use crate::broker::convert::Delivery;
use crate::broker::names::Names;
use crate::broker::origin::{deaths, text_of};

/// Reason and time of the broker's dead-lettering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// Reason: `delivery_limit`, `expired`, or another of the broker's words.
    pub reason: String,
    /// Time, in seconds since the Unix epoch.
    pub time_s: Option<u64>,
}

/// Dead letter; if the broker dead-lettered it, as it was at first arrival.
#[derive(Debug)]
pub struct DeadLetter {
    /// Message; a publisher's has the exchange and the routing key of its first arrival.
    pub delivery: Delivery,
    /// The broker's entry, if the broker dead-lettered it.
    pub death: Option<Death>,
}

/// Reads the newest entry whose queue is ours.
pub(super) fn read(delivery: Delivery, names: &Names) -> DeadLetter {
    let newest =
        delivery.properties().headers().as_ref().and_then(|headers| newest(headers, names));
    let death = newest.map(|newest| Death {
        reason: text_of(newest, "reason").unwrap_or_default().to_owned(),
        time_s: match newest.inner().get("time") {
            Some(AMQPValue::Timestamp(seconds)) => Some(*seconds),
            _ => None,
        },
    });
    DeadLetter { delivery, death }
}

fn newest<'a>(headers: &'a FieldTable, names: &Names) -> Option<&'a FieldTable> {
    deaths(headers).find(|death| text_of(death, "queue").is_some_and(|queue| is_ours(queue, names)))
}

/// Returns whether the queue is ours, which includes retry queues of an earlier schedule.
fn is_ours(queue: &str, names: &Names) -> bool {
    let retry_step = queue.strip_prefix(&names.main).and_then(|rest| rest.strip_prefix(".retry."));
    queue == names.main || queue == names.slow || retry_step.is_some()
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;

    use super::*;
    use crate::broker::convert::long;
    use crate::broker::convert::tests::{delivery, table};

    fn death(queue: &str, reason: &str) -> AMQPValue {
        AMQPValue::FieldTable(table(&[
            ("queue", long(queue)),
            ("reason", long(reason)),
            ("time", AMQPValue::Timestamp(99)),
        ]))
    }

    fn letter(deaths: Vec<AMQPValue>) -> Option<Death> {
        let headers = table(&[("x-death", AMQPValue::FieldArray(deaths.into()))]);
        let properties = BasicProperties::default().with_headers(headers);
        read(delivery("", "shop.dead", properties, b"{}"), &Names::new("shop", &[])).death
    }

    #[test]
    fn the_newest_death_in_a_queue_of_ours_says_why_and_when() {
        let deaths = vec![
            death("theirs", "rejected"),
            death("shop", "delivery_limit"),
            death("shop.retry.1s", "expired"),
        ];
        assert_eq!(
            letter(deaths),
            Some(Death { reason: "delivery_limit".into(), time_s: Some(99) })
        );
        assert_eq!(letter(vec![death("theirs", "expired")]), None);
        assert_eq!(letter(vec![AMQPValue::Void]), None);
    }
}
