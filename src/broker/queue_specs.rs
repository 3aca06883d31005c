//! Queues of the contract, and the arguments that they are declared with.

use std::time::Duration;

use lapin::types::{AMQPValue, FieldTable};

use super::convert::long;
use super::names::Names;
use super::reply_text::{Difference, Precondition, precondition_failed};
use crate::config::HistoryConfig;

/// Failed deliveries after which the broker dead-letters a message: RabbitMQ's own default since
/// 4.0.
pub(super) const DELIVERY_LIMIT: u32 = 20;

/// Deliveries without an acknowledgement after which a worker dead-letters a message itself.
///
/// The worker does this before the broker does. Up to RabbitMQ 3.13 a header of the publisher can
/// break the broker's dead-lettering.
pub const DELIVERIES_AT_MOST: u64 = DELIVERY_LIMIT as u64 - 1;

/// Delivery limit of the dead-letter queue, in effect without limit: reading a dead letter counts
/// as a delivery.
const DEAD_DELIVERY_LIMIT: i64 = 1_000_000_000;

/// Kind of an object of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Exchange,
    Main,
    Slow,
    Retry,
    Dead,
    History,
}

/// Queue of the contract, and the arguments that it is declared with.
#[derive(Debug, Clone)]
pub(super) struct QueueSpec {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) arguments: FieldTable,
}

impl QueueSpec {
    fn new(kind: Kind, name: &str, arguments: Vec<(&str, AMQPValue)>) -> Self {
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert(name.into(), value);
        }
        Self { kind, name: name.to_owned(), arguments: table }
    }

    /// Adopts the broker's value of an argument that may differ, if the broker's reply names one.
    ///
    /// An adopted argument no longer differs, so each is adopted once.
    pub(super) fn adopt(&mut self, reply: &str) -> bool {
        let may_differ: &[&str] = match self.kind {
            Kind::History => &["x-max-age", "x-max-length-bytes"],
            // An earlier version declared none.
            Kind::Dead => &["x-overflow"],
            Kind::Exchange | Kind::Main | Kind::Slow | Kind::Retry => &[],
        };
        match precondition_failed(reply) {
            Precondition::OtherArgument(difference)
                if may_differ.contains(&difference.argument) =>
            {
                adopt(difference, &mut self.arguments)
            }
            _ => false,
        }
    }
}

/// Returns the queues except the history.
pub(super) fn queue_specs(names: &Names) -> Vec<QueueSpec> {
    let quorum = ("x-queue-type", long("quorum"));
    let reject_publish = ("x-overflow", long("reject-publish"));
    // At-least-once needs all of these together: with another overflow the broker falls back to
    // at-most-once.
    let dead_lettering_to = |queue: &str| {
        vec![
            quorum.clone(),
            reject_publish.clone(),
            ("x-dead-letter-strategy", long("at-least-once")),
            ("x-dead-letter-exchange", long("")),
            ("x-dead-letter-routing-key", long(queue)),
        ]
    };
    let limit = |count| ("x-delivery-limit", AMQPValue::LongLongInt(count));
    let mut events = dead_lettering_to(&names.dead);
    events.push(limit(DELIVERY_LIMIT.into()));
    let mut specs = vec![
        QueueSpec::new(
            Kind::Dead,
            &names.dead,
            vec![quorum.clone(), reject_publish.clone(), limit(DEAD_DELIVERY_LIMIT)],
        ),
        QueueSpec::new(Kind::Main, &names.main, events.clone()),
        QueueSpec::new(Kind::Slow, &names.slow, events),
    ];
    for (delay, name) in &names.retry {
        let mut arguments = dead_lettering_to(&names.main);
        arguments.push((
            "x-message-ttl",
            AMQPValue::LongLongInt(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)),
        ));
        specs.push(QueueSpec::new(Kind::Retry, name, arguments));
    }
    specs
}

/// Returns the stream that keeps every event.
pub(super) fn history_spec(names: &Names, history: HistoryConfig) -> QueueSpec {
    let bytes = AMQPValue::LongLongInt(i64::try_from(history.max_bytes).unwrap_or(i64::MAX));
    let arguments = vec![
        ("x-queue-type", long("stream")),
        ("x-max-age", long(stream_age(history.max_age))),
        ("x-max-length-bytes", bytes),
    ];
    QueueSpec::new(Kind::History, &names.history, arguments)
}

/// Returns the age, always in seconds.
///
/// To the broker `7D` and `604800s` are two different arguments, and all programs that declare the
/// stream must agree.
fn stream_age(age: Duration) -> String {
    format!("{}s", age.as_secs().max(1))
}

fn adopt(difference: Difference<'_>, arguments: &mut FieldTable) -> bool {
    let mut table = arguments.inner().clone();
    let before = table.remove(difference.argument);
    if let Some(value) = difference.current {
        let value = match difference.argument {
            "x-max-length-bytes" => value.parse().ok().map(AMQPValue::LongLongInt),
            _ => Some(long(value)),
        };
        let Some(value) = value.filter(|value| Some(value) != before.as_ref()) else {
            return false;
        };
        table.insert(difference.argument.into(), value);
    }
    *arguments = FieldTable::from(table);
    before.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(specs: &[QueueSpec], name: &str) -> Vec<String> {
        let spec = specs.iter().find(|spec| spec.name == name).unwrap();
        let shown = |value: &AMQPValue| match value {
            AMQPValue::LongString(text) => text.to_string(),
            AMQPValue::LongLongInt(number) => number.to_string(),
            other => format!("{other:?}"),
        };
        spec.arguments
            .inner()
            .iter()
            .map(|(name, value)| format!("{name}={}", shown(value)))
            .collect()
    }

    #[test]
    fn queues_are_as_the_contract_says() {
        let names = Names::new("q", &[Duration::from_secs(1), Duration::from_secs(60)]);
        let history =
            HistoryConfig { max_age: Duration::from_secs(7 * 86_400), max_bytes: 10 << 30 };
        let mut specs = queue_specs(&names);
        specs.push(history_spec(&names, history));
        let events = [
            "x-dead-letter-exchange=",
            "x-dead-letter-routing-key=q.dead",
            "x-dead-letter-strategy=at-least-once",
            "x-delivery-limit=20",
            "x-overflow=reject-publish",
            "x-queue-type=quorum",
        ];
        assert_eq!(arguments(&specs, "q"), events);
        assert_eq!(arguments(&specs, "q.slow"), events);
        assert_eq!(
            arguments(&specs, "q.dead"),
            ["x-delivery-limit=1000000000", "x-overflow=reject-publish", "x-queue-type=quorum"]
        );
        let retry = [
            "x-dead-letter-exchange=",
            "x-dead-letter-routing-key=q",
            "x-dead-letter-strategy=at-least-once",
            "x-message-ttl=60000",
            "x-overflow=reject-publish",
            "x-queue-type=quorum",
        ];
        assert_eq!(arguments(&specs, "q.retry.1m"), retry);
        assert_eq!(
            arguments(&specs, "q.history"),
            ["x-max-age=604800s", "x-max-length-bytes=10737418240", "x-queue-type=stream"]
        );
    }

    #[test]
    fn a_retention_is_taken_over_once() {
        let words = |current: &str| {
            format!(
                "PRECONDITION_FAILED - inequivalent arg 'x-max-age' for queue 'q': received '1D' but current is {current}"
            )
        };
        let mut spec = QueueSpec::new(Kind::History, "q", vec![("x-max-age", long("1D"))]);
        assert!(spec.adopt(&words("the value '7D' of type 'longstr'")));
        assert_eq!(spec.arguments.inner().get("x-max-age"), Some(&long("7D")));
        assert!(!spec.adopt(&words("the value '7D' of type 'longstr'")), "no endless asking");
        assert!(spec.adopt(&words("none")));
        assert!(!spec.adopt(&words("none")));
        assert!(!spec.adopt("inequivalent arg 'x-queue-type' but current is none"));
        let mut main = QueueSpec::new(Kind::Main, "q", vec![("x-max-age", long("1D"))]);
        assert!(!main.adopt(&words("none")), "only what may differ");
    }

    #[test]
    fn a_dead_letter_queue_of_an_earlier_version_is_used_as_it_is() {
        let names = Names::new("q", &[]);
        let mut dead =
            queue_specs(&names).into_iter().find(|spec| spec.kind == Kind::Dead).unwrap();
        let words = "PRECONDITION_FAILED - inequivalent arg 'x-overflow' for queue 'q.dead': received the value 'reject-publish' of type \
                     'longstr' but current is none";
        assert!(dead.adopt(words));
        assert!(!dead.arguments.contains_key("x-overflow") && !dead.adopt(words));
    }

    #[test]
    fn a_streams_age_is_written_in_seconds() {
        for (millis, text) in
            [(500, "1s"), (90_000, "90s"), (7_200_000, "7200s"), (604_800_000, "604800s")]
        {
            assert_eq!(stream_age(Duration::from_millis(millis)), text);
        }
    }
}
