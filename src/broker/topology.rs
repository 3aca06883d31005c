//! The objects of the contract: found, declared, or named as missing. Never deleted, never changed.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use tokio::time::timeout;

use super::convert::{long, short};
use super::failure::{BrokerError, Refusal, TopologyProblem};
use super::link::{ANSWER_TIMEOUT, Link};
use super::names::Names;
use crate::config::{AmqpConfig, DeclarePolicy, HistoryConfig};

/// How often a message may be redelivered before the broker dead-letters it: RabbitMQ's own default since 4.0.
const DELIVERY_LIMIT: u32 = 20;

/// Deliveries without an acknowledgement after which a worker dead-letters a message itself: before the broker does. Up to
/// RabbitMQ 3.13 a header of the publisher can break the broker's dead-lettering.
pub const DELIVERIES_AT_MOST: u64 = DELIVERY_LIMIT as u64 - 1;

/// Looking at a dead letter counts as a delivery: in effect without limit.
const DEAD_DELIVERY_LIMIT: i64 = 1_000_000_000;

/// A queue of the contract, and the arguments it is declared with.
#[derive(Debug, Clone)]
struct QueueSpec {
    name: String,
    arguments: FieldTable,
    is_history: bool,
}

/// Finds or declares every object, and binds the queues of events to `routing_keys`. Gives warnings.
pub(super) async fn ensure(link: &Link, config: &AmqpConfig, names: &Names, routing_keys: &[String]) -> Result<Vec<String>, BrokerError> {
    let mut broker = Objects { link, policy: config.declare, channel: None, problems: Vec::new(), warnings: Vec::new() };
    broker.exchange(&config.exchange).await?;
    for spec in queue_specs(names, config.history) {
        broker.queue(&spec).await?;
    }
    // What is missing cannot be bound, and would be told twice.
    if broker.problems.is_empty() {
        broker.bind(config, names, routing_keys).await?;
    }
    if broker.problems.is_empty() { Ok(broker.warnings) } else { Err(BrokerError::Topology(broker.problems)) }
}

/// Binds the queues of events to more routing keys.
pub(super) async fn bind(link: &Link, config: &AmqpConfig, names: &Names, routing_keys: &[String]) -> Result<(), BrokerError> {
    let mut broker = Objects { link, policy: config.declare, channel: None, problems: Vec::new(), warnings: Vec::new() };
    broker.bind(config, names, routing_keys).await?;
    if broker.problems.is_empty() { Ok(()) } else { Err(BrokerError::Topology(broker.problems)) }
}

fn queue_specs(names: &Names, history: Option<HistoryConfig>) -> Vec<QueueSpec> {
    let spec = |name: &str, arguments: Vec<(&str, AMQPValue)>| {
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert(name.into(), value);
        }
        QueueSpec { name: name.to_owned(), arguments: table, is_history: false }
    };
    let quorum = ("x-queue-type", long("quorum"));
    // At least once needs all of these together: with another overflow the broker falls back to at most once.
    let dead_lettering_to = |queue: &str| {
        vec![
            quorum.clone(),
            ("x-dead-letter-strategy", long("at-least-once")),
            ("x-overflow", long("reject-publish")),
            ("x-dead-letter-exchange", long("")),
            ("x-dead-letter-routing-key", long(queue)),
        ]
    };
    let limit = |count| ("x-delivery-limit", AMQPValue::LongLongInt(count));
    let mut events = dead_lettering_to(&names.dead);
    events.push(limit(DELIVERY_LIMIT.into()));
    let mut specs = vec![
        spec(&names.dead, vec![quorum.clone(), limit(DEAD_DELIVERY_LIMIT)]),
        spec(&names.main, events.clone()),
        spec(&names.slow, events),
    ];
    for (delay, name) in &names.retry {
        let mut arguments = dead_lettering_to(&names.main);
        arguments.push(("x-message-ttl", AMQPValue::LongLongInt(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX))));
        specs.push(spec(name, arguments));
    }
    if let Some(history) = history {
        let bytes = AMQPValue::LongLongInt(i64::try_from(history.max_bytes).unwrap_or(i64::MAX));
        let arguments =
            vec![("x-queue-type", long("stream")), ("x-max-age", long(stream_age(history.max_age))), ("x-max-length-bytes", bytes)];
        specs.push(QueueSpec { is_history: true, ..spec(&names.history, arguments) });
    }
    specs
}

/// Always in seconds: to the broker `7D` and `604800s` are two different arguments, and whoever else declares the stream must agree with us.
fn stream_age(age: Duration) -> String {
    format!("{}s", age.as_secs().max(1))
}

/// Asks the broker about one object after another. A refusal closes the channel it is given on: then the next question gets a new one.
struct Objects<'a> {
    link: &'a Link,
    policy: DeclarePolicy,
    channel: Option<Channel>,
    problems: Vec<TopologyProblem>,
    warnings: Vec<String>,
}

impl Objects<'_> {
    async fn exchange(&mut self, name: &str) -> Result<(), BrokerError> {
        let object = format!("exchange `{name}`");
        let Some(short_name) = short(name) else { return self.too_long(object) };
        let declare = async |channel: Channel, passive: bool| {
            let options = ExchangeDeclareOptions { passive, durable: true, ..ExchangeDeclareOptions::default() };
            channel.exchange_declare(short_name.clone(), ExchangeKind::Topic, options, FieldTable::default()).await
        };
        let found = self.ask(async |channel| declare(channel, true).await).await?;
        let outcome = match (found, self.policy) {
            (Err(Refusal::Missing(_)), DeclarePolicy::All) => self.ask(async |channel| declare(channel, false).await).await?,
            (found, _) => found,
        };
        match outcome {
            Ok(()) => Ok(()),
            Err(Refusal::Missing(words)) => {
                self.problem(object, words, "declare it (topic, durable), or let unstale do so with UNSTALE_DECLARE=all");
                Ok(())
            }
            Err(refusal) => self.refused(object, refusal, "UNSTALE_EXCHANGE"),
        }
    }

    async fn queue(&mut self, spec: &QueueSpec) -> Result<(), BrokerError> {
        let object = format!("queue `{}`", spec.name);
        let Some(name) = short(&spec.name) else { return self.too_long(object) };
        let passive = self.policy == DeclarePolicy::None;
        let options = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
        let mut arguments = spec.arguments.clone();
        let mut retention = Vec::new();
        let outcome = loop {
            let declared =
                self.ask(async |channel| channel.queue_declare(name.clone(), options, arguments.clone()).await.map(drop)).await?;
            match declared {
                // The broker names the first difference only: behind the retention there may be a worse one, such as another type of queue.
                Err(Refusal::Differs(words)) if spec.is_history && adopt_retention(&words, &mut arguments) => retention.push(words),
                declared => break declared,
            }
        };
        if outcome.is_ok() && !retention.is_empty() {
            self.warnings.push(format!(
                "{object} keeps another span than UNSTALE_HISTORY_MAX_AGE and _MAX_BYTES ask for: {}; it is used as it is (a policy changes \
                 the retention of a stream that exists)",
                retention.join("; ")
            ));
        }
        match outcome {
            Ok(()) => Ok(()),
            Err(Refusal::Missing(words)) => {
                let off = if spec.is_history { ", or do without it with UNSTALE_HISTORY=off" } else { "" };
                self.problem(object, words, format!("declare it, or let unstale do so with UNSTALE_DECLARE=queues{off}"));
                Ok(())
            }
            Err(Refusal::Differs(words)) if spec.is_history && !words.contains("inequivalent") => self.no_streams(object, words),
            Err(Refusal::Unsupported(words)) if spec.is_history => self.no_streams(object, words),
            Err(refusal) => self.refused(object, refusal, "UNSTALE_QUEUE"),
        }
    }

    async fn bind(&mut self, config: &AmqpConfig, names: &Names, routing_keys: &[String]) -> Result<(), BrokerError> {
        if self.policy == DeclarePolicy::None {
            return Ok(());
        }
        let queues = [Some(&names.main), config.history.map(|_| &names.history)];
        for queue in queues.into_iter().flatten() {
            for key in routing_keys {
                let object = format!("binding of queue `{queue}` to `{key}`");
                let (Some(queue), Some(exchange), Some(key)) = (short(queue), short(&config.exchange), short(key)) else {
                    self.too_long(object)?;
                    continue;
                };
                let bound = self
                    .ask(async |channel| {
                        channel
                            .queue_bind(queue.clone(), exchange.clone(), key.clone(), QueueBindOptions::default(), FieldTable::default())
                            .await
                    })
                    .await?;
                if let Err(refusal) = bound {
                    self.refused(object, refusal, "UNSTALE_QUEUE")?;
                    // The next would be refused for the same reason.
                    break;
                }
            }
        }
        Ok(())
    }

    /// Asks on a channel that stands. What only trying again can mend comes as [`BrokerError::Unreachable`].
    async fn ask<T>(&mut self, question: impl AsyncFnOnce(Channel) -> lapin::Result<T>) -> Result<Result<T, Refusal>, BrokerError> {
        let channel = match self.channel.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => self.link.channel().await?,
        };
        self.channel = Some(channel.clone());
        let answer = timeout(ANSWER_TIMEOUT, question(channel)).await;
        let answer = answer.map_err(|_| BrokerError::Unreachable(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())))?;
        match answer.as_ref().map_err(Refusal::from) {
            Err(Refusal::Passing(words)) => Err(BrokerError::Unreachable(words)),
            Err(refusal) => {
                self.channel = None;
                Ok(Err(refusal))
            }
            Ok(_) => Ok(answer.map_err(|error| Refusal::from(&error))),
        }
    }

    fn problem(&mut self, object: String, what: String, advice: impl Into<String>) {
        self.problems.push(TopologyProblem { object, what, advice: advice.into() });
    }

    fn refused(&mut self, object: String, refusal: Refusal, setting: &str) -> Result<(), BrokerError> {
        match refusal {
            Refusal::Missing(words) => self.problem(object, words, "declare what is missing, or set UNSTALE_DECLARE=all"),
            Refusal::Differs(words) => {
                let advice = format!(
                    "nothing was changed: what stands there may hold messages. Move them and delete it by hand, or set {setting} to another name"
                );
                self.problem(object, words, advice);
            }
            Refusal::Forbidden(words) => {
                self.problem(object, words, "grant the permission, or declare it by other means and set UNSTALE_DECLARE=none");
            }
            Refusal::Unsupported(words) => {
                self.problem(object, words, "unstale needs RabbitMQ 3.10 or later with quorum queues");
                return Err(BrokerError::Topology(std::mem::take(&mut self.problems)));
            }
            Refusal::Passing(words) => return Err(BrokerError::Unreachable(words)),
        }
        Ok(())
    }

    /// An unsupported queue type may close the whole connection: nothing more can be asked.
    fn no_streams(&mut self, object: String, words: String) -> Result<(), BrokerError> {
        self.problem(
            object,
            words,
            "this broker has no streams (feature flag `stream_queue`, RabbitMQ 3.9 or later): set UNSTALE_HISTORY=off",
        );
        Err(BrokerError::Topology(std::mem::take(&mut self.problems)))
    }

    fn too_long(&mut self, object: String) -> Result<(), BrokerError> {
        self.problem(object, "the name is longer than the 255 bytes that AMQP allows".into(), "choose a shorter one");
        Ok(())
    }
}

/// Takes over what the broker has for `x-max-age` or `x-max-length-bytes`, where its words say that this differs. Each is asked for once: taken
/// over, it no longer differs.
fn adopt_retention(words: &str, arguments: &mut FieldTable) -> bool {
    let argument = ["x-max-age", "x-max-length-bytes"].into_iter().find(|name| words.contains(&format!("inequivalent arg '{name}'")));
    let (Some(argument), Some((_, current))) = (argument, words.split_once("but current is ")) else { return false };
    let mut table = arguments.inner().clone();
    let before = table.remove(argument);
    // Written as `'1m'`, as `the value '1m' of type 'longstr'`, or `none`.
    if let Some(value) = current.split('\'').nth(1) {
        let value = if argument == "x-max-age" { Some(long(value)) } else { value.parse().ok().map(AMQPValue::LongLongInt) };
        let Some(value) = value.filter(|value| Some(value) != before.as_ref()) else { return false };
        table.insert(argument.into(), value);
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
        spec.arguments.inner().iter().map(|(name, value)| format!("{name}={}", shown(value))).collect()
    }

    #[test]
    fn queues_are_as_the_contract_says() {
        let names = Names::new("q", &[Duration::from_secs(1), Duration::from_secs(60)]);
        let history = HistoryConfig { max_age: Duration::from_secs(7 * 86_400), max_bytes: 10 << 30 };
        let specs = queue_specs(&names, Some(history));
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
        assert_eq!(arguments(&specs, "q.dead"), ["x-delivery-limit=1000000000", "x-queue-type=quorum"]);
        let retry = [
            "x-dead-letter-exchange=",
            "x-dead-letter-routing-key=q",
            "x-dead-letter-strategy=at-least-once",
            "x-message-ttl=60000",
            "x-overflow=reject-publish",
            "x-queue-type=quorum",
        ];
        assert_eq!(arguments(&specs, "q.retry.1m"), retry);
        assert_eq!(arguments(&specs, "q.history"), ["x-max-age=604800s", "x-max-length-bytes=10737418240", "x-queue-type=stream"]);
        assert_eq!(queue_specs(&names, None).len(), specs.len() - 1);
    }

    #[test]
    fn a_retention_is_taken_over_once() {
        let words = |current: &str| {
            format!("PRECONDITION_FAILED - inequivalent arg 'x-max-age' for queue 'q': received '1D' but current is {current}")
        };
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-age".into(), long("1D"));
        assert!(adopt_retention(&words("the value '7D' of type 'longstr'"), &mut arguments));
        assert_eq!(arguments.inner().get("x-max-age"), Some(&long("7D")));
        assert!(!adopt_retention(&words("the value '7D' of type 'longstr'"), &mut arguments), "no endless asking");
        assert!(adopt_retention(&words("none"), &mut arguments));
        assert!(!adopt_retention(&words("none"), &mut arguments));
        assert!(!adopt_retention("inequivalent arg 'x-queue-type' but current is none", &mut arguments));
    }

    #[test]
    fn a_streams_age_is_written_in_seconds() {
        for (millis, text) in [(500, "1s"), (90_000, "90s"), (7_200_000, "7200s"), (604_800_000, "604800s")] {
            assert_eq!(stream_age(Duration::from_millis(millis)), text);
        }
    }
}
