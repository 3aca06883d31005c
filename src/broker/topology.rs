//! Objects of the contract: found, declared and bound, or reported as missing.
//!
//! This module never deletes or changes an object.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, ExchangeKind};
use tokio::time::timeout;

use super::convert::short;
use super::deletion::{Declaring, DeletionSeen, Depth};
use super::failure::{BrokerError, GRANT, Refusal, TopologyProblem};
use super::link::{ANSWER_TIMEOUT, Link};
use super::names::Names;
use super::queue_specs::{Kind, QueueSpec, history_spec, queue_specs};
use super::reply_text;
use crate::config::{AmqpConfig, DeclarePolicy, HistoryConfig};

/// Outcome for all objects.
#[derive(Debug, Default)]
pub(super) struct Ensured {
    /// Warnings that stop nothing.
    pub(super) warnings: Vec<String>,
    /// Objects that were missing and are declared now.
    pub(super) declared: Vec<Declared>,
}

/// Object that was missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Declared {
    pub(super) kind: Kind,
    /// Such as ``queue `unstale.dead` ``.
    pub(super) object: String,
}

/// Finds or declares the exchange and every queue except the history, and binds the main queue to
/// `routing_keys`.
///
/// Notes in `seen`, whatever the outcome, each deleted object that it declared again. `is_first`:
/// the first session found no history, so a missing object may never have existed.
///
/// # Errors
/// [`BrokerError::Topology`] with all problems; [`BrokerError::Unreachable`].
pub(super) async fn ensure(
    link: &Link,
    config: &AmqpConfig,
    names: &Names,
    routing_keys: &[String],
    depth: Depth,
    (seen, is_first): (&DeletionSeen, bool),
) -> Result<Ensured, BrokerError> {
    let mut broker = Objects { is_first, ..Objects::new(link, config.declare, depth, seen) };
    broker.exchange(&config.exchange, routing_keys).await?;
    for spec in queue_specs(names) {
        broker.queue(spec).await?;
    }
    // A missing queue cannot be bound. Reporting both would repeat the problem.
    if broker.problems.is_empty() {
        broker.bind(&names.main, &config.exchange, routing_keys).await?;
    }
    broker.ensured()
}

/// Finds or declares the history, and binds it to `routing_keys`.
///
/// A history that is broken at the broker may end the connection.
///
/// # Errors
/// As for [`ensure`].
pub(super) async fn ensure_history(
    link: &Link,
    config: &AmqpConfig,
    (names, history): (&Names, HistoryConfig),
    routing_keys: &[String],
    (depth, seen): (Depth, &DeletionSeen),
) -> Result<Ensured, BrokerError> {
    let mut broker = Objects::new(link, config.declare, depth, seen);
    broker.queue(history_spec(names, history)).await?;
    if broker.problems.is_empty() {
        broker.bind(&names.history, &config.exchange, routing_keys).await?;
    }
    broker.ensured()
}

/// Returns whether no queue has that name.
///
/// # Errors
/// [`BrokerError::Unreachable`]
pub(super) async fn is_missing(link: &Link, queue: &str) -> Result<bool, BrokerError> {
    let Some(name) = short(queue) else { return Ok(true) };
    let seen = DeletionSeen::default();
    let mut broker = Objects::new(link, DeclarePolicy::None, Depth::Existence, &seen);
    let options =
        QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
    let found = broker
        .ask(async |channel| {
            channel.queue_declare(name.clone(), options, FieldTable::default()).await.map(drop)
        })
        .await?;
    Ok(matches!(found, Err(Refusal::Missing(_))))
}

/// Binds a queue to more routing keys.
///
/// # Errors
/// As for [`ensure`].
pub(super) async fn bind(
    link: &Link,
    config: &AmqpConfig,
    queue: &str,
    routing_keys: &[String],
) -> Result<(), BrokerError> {
    let seen = DeletionSeen::default();
    let mut broker = Objects::new(link, config.declare, Depth::Existence, &seen);
    broker.bind(queue, &config.exchange, routing_keys).await?;
    broker.ensured().map(drop)
}

/// Asks the broker about one object after another.
///
/// A refusal closes its channel. The next question then opens a new one.
struct Objects<'a> {
    link: &'a Link,
    policy: DeclarePolicy,
    depth: Depth,
    channel: Option<Channel>,
    problems: Vec<TopologyProblem>,
    ensured: Ensured,
    seen: &'a DeletionSeen,
    is_first: bool,
}

impl<'l> Objects<'l> {
    fn new(link: &'l Link, policy: DeclarePolicy, depth: Depth, seen: &'l DeletionSeen) -> Self {
        Self {
            link,
            policy,
            depth,
            channel: None,
            problems: Vec::new(),
            ensured: Ensured::default(),
            seen,
            is_first: false,
        }
    }

    fn ensured(self) -> Result<Ensured, BrokerError> {
        if self.problems.is_empty() {
            Ok(self.ensured)
        } else {
            Err(BrokerError::Topology(self.problems))
        }
    }

    async fn exchange(&mut self, name: &str, routing_keys: &[String]) -> Result<(), BrokerError> {
        let object = format!("exchange `{name}`");
        let Some(short_name) = short(name) else { return self.too_long(object) };
        let declare = async |channel: Channel, passive: bool| {
            let options = ExchangeDeclareOptions {
                passive,
                durable: true,
                ..ExchangeDeclareOptions::default()
            };
            channel
                .exchange_declare(
                    short_name.clone(),
                    ExchangeKind::Topic,
                    options,
                    FieldTable::default(),
                )
                .await
        };
        let found = self.ask(async |channel| declare(channel, true).await).await?;
        let outcome = match (found, self.policy) {
            (Err(Refusal::Missing(_)), DeclarePolicy::All) => {
                let declaring =
                    Declaring::new(self.seen, self.is_first, Kind::Exchange, self.depth);
                let declared = self.ask(async |channel| declare(channel, false).await).await?;
                if declared.is_ok() {
                    self.declared(Kind::Exchange, &object);
                } else {
                    declaring.refused();
                }
                declared
            }
            (Ok(()), DeclarePolicy::All) if self.depth == Depth::Arguments => {
                // Any type of exchange is accepted. Only its effect on our routing keys matters.
                if let Err(Refusal::Differs(words)) =
                    self.ask(async |channel| declare(channel, false).await).await?
                {
                    self.warn_of_type(&object, &words, routing_keys);
                }
                Ok(())
            }
            (found, _) => found,
        };
        self.note_existence(Kind::Exchange, &object, &outcome);
        match outcome {
            Ok(()) => Ok(()),
            Err(Refusal::Missing(words)) => {
                self.problem(
                    object,
                    words,
                    "declare it (topic, durable), or let unstale do so with UNSTALE_DECLARE=all",
                );
                Ok(())
            }
            Err(Refusal::Forbidden(words)) if self.policy == DeclarePolicy::None => {
                self.unseen(&object, &words)
            }
            Err(refusal) => self.refused(object, refusal, "UNSTALE_EXCHANGE"),
        }
    }

    fn warn_of_type(&mut self, object: &str, words: &str, routing_keys: &[String]) {
        let is_pattern = |key: &&String| key.split('.').any(|word| word == "*" || word == "#");
        let ignored = match words
            .split_once("but current is ")
            .and_then(|(_, current)| current.split('\'').nth(1))
        {
            Some("direct") => routing_keys.iter().find(is_pattern),
            Some("headers") => routing_keys.first(),
            _ => None,
        };
        if let Some(key) = ignored {
            self.ensured.warnings.push(format!(
                "{object} is no topic exchange ({words}): it ignores patterns, so that a binding such as `{key}` brings no event; publish to a \
                 topic exchange, and name that in UNSTALE_EXCHANGE"
            ));
        }
    }

    async fn queue(&mut self, mut spec: QueueSpec) -> Result<(), BrokerError> {
        let object = format!("queue `{}`", spec.name);
        let Some(name) = short(&spec.name) else { return self.too_long(object) };
        let declare = async |channel: Channel, passive: bool, arguments: FieldTable| {
            let options =
                QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
            channel.queue_declare(name.clone(), options, arguments).await.map(drop)
        };
        // A declaration does not show if the queue existed before.
        let found =
            self.ask(async |channel| declare(channel, true, FieldTable::default()).await).await?;
        let is_missing = matches!(found, Err(Refusal::Missing(_)));
        let declares = self.policy != DeclarePolicy::None
            && (is_missing || found.is_err() || self.depth == Depth::Arguments);
        let mut adopted = Vec::new();
        let mut outcome = found;
        if declares {
            let declaring =
                is_missing.then(|| Declaring::new(self.seen, self.is_first, spec.kind, self.depth));
            outcome = loop {
                match self
                    .ask(async |channel| declare(channel, false, spec.arguments.clone()).await)
                    .await?
                {
                    // The broker names only the first difference. A worse one may follow, such as
                    // another type of queue.
                    Err(Refusal::Differs(words)) if spec.adopt(&words) => adopted.push(words),
                    outcome => break outcome,
                }
            };
            if outcome.is_err()
                && let Some(declaring) = declaring
            {
                declaring.refused();
            }
        }
        if outcome.is_ok() {
            if is_missing {
                self.declared(spec.kind, &object);
            }
            if !adopted.is_empty() {
                self.ensured.warnings.push(adopted_words(spec.kind, &object, &adopted.join("; ")));
            }
        }
        self.note_existence(spec.kind, &object, &outcome);
        let is_history = spec.kind == Kind::History;
        match outcome {
            Ok(()) => Ok(()),
            Err(Refusal::Missing(words)) => {
                let off =
                    if is_history { ", or do without it with UNSTALE_HISTORY=off" } else { "" };
                self.problem(
                    object,
                    words,
                    format!("declare it, or let unstale do so with UNSTALE_DECLARE=queues{off}"),
                );
                Ok(())
            }
            Err(Refusal::Forbidden(words)) if self.policy == DeclarePolicy::None => {
                self.unseen(&object, &words)
            }
            Err(Refusal::Differs(words))
                if is_history && !reply_text::has_other_arguments(&words) =>
            {
                self.no_streams(object, words)
            }
            Err(Refusal::Unsupported(words)) if is_history => self.no_streams(object, words),
            Err(refusal) => self.refused(object, refusal, "UNSTALE_QUEUE"),
        }
    }

    /// Warns that an object cannot be checked.
    ///
    /// Since 4.2.6 RabbitMQ requires a permission for a passive declaration. Using the object needs
    /// other permissions, and is refused at that time if they are missing.
    fn unseen(&mut self, object: &str, words: &str) -> Result<(), BrokerError> {
        if self.depth == Depth::Arguments {
            self.ensured
                .warnings
                .push(format!("{object} cannot be looked at: {words}; it is taken to exist"));
        }
        Ok(())
    }

    /// Notes whether the object exists.
    ///
    /// If this worker declares nothing, another program may declare the object between two checks.
    /// Then a missing object is the only evidence.
    fn note_existence(&self, kind: Kind, object: &str, outcome: &Result<(), Refusal>) {
        let exists = match outcome {
            Ok(()) => true,
            Err(Refusal::Missing(_)) => false,
            Err(_) => return,
        };
        if self.depth == Depth::Existence {
            self.seen.looked_at(kind, object, exists);
        }
    }

    fn declared(&mut self, kind: Kind, object: &str) {
        self.ensured.declared.push(Declared { kind, object: object.to_owned() });
    }

    async fn bind(
        &mut self,
        queue: &str,
        exchange: &str,
        routing_keys: &[String],
    ) -> Result<(), BrokerError> {
        if self.policy == DeclarePolicy::None {
            return Ok(());
        }
        for key in routing_keys {
            let object = format!("binding of queue `{queue}` to `{key}`");
            let (Some(queue), Some(exchange), Some(key)) =
                (short(queue), short(exchange), short(key))
            else {
                self.too_long(object)?;
                continue;
            };
            let bound = self
                .ask(async |channel| {
                    channel
                        .queue_bind(
                            queue.clone(),
                            exchange.clone(),
                            key.clone(),
                            QueueBindOptions::default(),
                            FieldTable::default(),
                        )
                        .await
                })
                .await?;
            if let Err(refusal) = bound {
                // The next binding would be refused for the same reason.
                return self.refused(object, refusal, "UNSTALE_QUEUE");
            }
        }
        Ok(())
    }

    /// Asks on an open channel.
    ///
    /// Failures that only a retry can solve become [`BrokerError::Unreachable`].
    async fn ask<T>(
        &mut self,
        question: impl AsyncFnOnce(Channel) -> lapin::Result<T>,
    ) -> Result<Result<T, Refusal>, BrokerError> {
        let channel = match self.channel.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => self.link.channel().await?,
        };
        self.channel = Some(channel.clone());
        let answer = timeout(ANSWER_TIMEOUT, question(channel)).await;
        let answer = answer.map_err(|_| {
            BrokerError::Unreachable(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))
        })?;
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

    fn refused(
        &mut self,
        object: String,
        refusal: Refusal,
        setting: &str,
    ) -> Result<(), BrokerError> {
        match refusal {
            Refusal::Missing(words) => {
                self.problem(object, words, "declare what is missing, or set UNSTALE_DECLARE=all")
            }
            Refusal::Differs(words) => {
                let advice = format!(
                    "nothing was changed: what stands there may hold messages. Move them and delete it by hand, or set {setting} to another name"
                );
                self.problem(object, words, advice);
            }
            Refusal::Forbidden(words) => {
                self.problem(
                    object,
                    words,
                    format!("{GRANT}; or declare it by other means and set UNSTALE_DECLARE=none"),
                );
            }
            Refusal::Unsupported(words) => {
                self.problem(
                    object,
                    words,
                    "unstale needs RabbitMQ 3.10 or later with quorum queues",
                );
                return Err(BrokerError::Topology(std::mem::take(&mut self.problems)));
            }
            Refusal::Passing(words) => return Err(BrokerError::Unreachable(words)),
        }
        Ok(())
    }

    /// Reports that the broker has no streams.
    ///
    /// An unsupported queue type may close the whole connection, so nothing more can be asked.
    fn no_streams(&mut self, object: String, words: String) -> Result<(), BrokerError> {
        self.problem(
            object,
            words,
            "this broker has no streams (feature flag `stream_queue`, RabbitMQ 3.9 or later): set UNSTALE_HISTORY=off",
        );
        Err(BrokerError::Topology(std::mem::take(&mut self.problems)))
    }

    fn too_long(&mut self, object: String) -> Result<(), BrokerError> {
        self.problem(
            object,
            "the name is longer than the 255 bytes that AMQP allows".into(),
            "choose a shorter one",
        );
        Ok(())
    }
}

fn adopted_words(kind: Kind, object: &str, words: &str) -> String {
    if kind == Kind::Dead {
        format!(
            "{object} was declared by an earlier version without `x-overflow: reject-publish`: {words}; it is used as it is. A policy with a \
             max-length that matches it drops dead letters: keep such policies off it, or delete it once it is empty, and a worker declares it anew"
        )
    } else {
        format!(
            "{object} keeps another span than UNSTALE_HISTORY_MAX_AGE and _MAX_BYTES ask for: {words}; it is used as it is (a policy changes \
             the retention of a stream that exists)"
        )
    }
}
