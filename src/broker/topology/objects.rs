//! One object of the contract after another: asked for, declared, bound, or reported with advice.

use std::borrow::Cow;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, ExchangeKind};
use tokio::time::timeout;

use super::super::convert::short;
use super::super::deletion::{Declaring, DeletionSeen, Depth};
use super::super::failure::{BrokerError, ContractObject, GRANT, TopologyProblem};
use super::super::link::{ANSWER_TIMEOUT, Link, no_answer};
use super::super::queue_specs::{Kind, QueueSpec};
use super::super::refusal::{AmqpError, Refusal};
use super::super::reply_text::{Precondition, precondition_failed};
use crate::causes::Cause;
use crate::config::DeclarePolicy;

/// Number of bindings that are asked for before the first answer, so that a registry of many types
/// needs few round trips.
const BINDINGS_AT_ONCE: usize = 256;

/// Outcome for all objects.
#[derive(Debug, Default)]
pub(in super::super) struct Ensured {
    /// Warnings that stop nothing.
    pub(in super::super) warnings: Vec<String>,
    /// Objects that were missing and are declared now.
    pub(in super::super) declared: Vec<Declared>,
    /// Problems of retry queues. A running worker goes on without such a queue.
    pub(in super::super) of_steps: Vec<TopologyProblem>,
}

/// Object that was missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Declared {
    pub(in super::super) kind: Kind,
    pub(in super::super) object: ContractObject,
}

/// Asks the broker about one object after another.
///
/// A refusal closes its channel. The next question then opens a new one.
pub(super) struct Objects<'a> {
    link: &'a Link,
    policy: DeclarePolicy,
    depth: Depth,
    /// Maximum time for one question and its answer.
    pub(super) answers_within: Duration,
    channel: Option<Channel>,
    pub(super) problems: Vec<TopologyProblem>,
    pub(super) ensured: Ensured,
    seen: &'a DeletionSeen,
    pub(super) is_first: bool,
}

impl<'l> Objects<'l> {
    pub(super) fn new(
        link: &'l Link,
        policy: DeclarePolicy,
        depth: Depth,
        seen: &'l DeletionSeen,
    ) -> Self {
        Self {
            link,
            policy,
            depth,
            answers_within: ANSWER_TIMEOUT,
            channel: None,
            problems: Vec::new(),
            ensured: Ensured::default(),
            seen,
            is_first: false,
        }
    }

    pub(super) fn ensured(mut self) -> Result<Ensured, BrokerError> {
        if self.problems.is_empty() {
            Ok(self.ensured)
        } else {
            self.problems.append(&mut self.ensured.of_steps);
            Err(BrokerError::Topology(self.problems))
        }
    }

    pub(super) async fn exchange(
        &mut self,
        name: &str,
        routing_keys: &[String],
    ) -> Result<(), BrokerError> {
        let object = ContractObject::Exchange(name.to_owned());
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
                if let Err(Refusal::Differs(error)) =
                    self.ask(async |channel| declare(channel, false).await).await?
                {
                    self.warn_of_type(&object, &error, routing_keys);
                }
                Ok(())
            }
            (found, _) => found,
        };
        self.note_existence(Kind::Exchange, &object, &outcome);
        match outcome {
            Ok(()) => Ok(()),
            Err(Refusal::Missing(error)) => {
                self.problem(
                    object,
                    error,
                    "declare it (topic, durable), or let unstale do so with UNSTALE_DECLARE=all",
                );
                Ok(())
            }
            Err(Refusal::Forbidden(error)) if self.policy == DeclarePolicy::None => {
                self.unseen(&object, &error)
            }
            Err(refusal) => self.refused(object, refusal, "UNSTALE_EXCHANGE"),
        }
    }

    fn warn_of_type(
        &mut self,
        object: &ContractObject,
        error: &AmqpError,
        routing_keys: &[String],
    ) {
        let is_pattern = |key: &&String| key.split('.').any(|word| word == "*" || word == "#");
        let Precondition::OtherArgument(difference) = precondition_failed(error.text()) else {
            return;
        };
        let ignored = match difference.current {
            Some("direct") => routing_keys.iter().find(is_pattern),
            Some("headers") => routing_keys.first(),
            _ => None,
        };
        if let Some(key) = ignored {
            self.ensured.warnings.push(format!(
                "{object} is no topic exchange ({error}): it ignores patterns, so that a binding such as `{key}` brings no event; publish to a \
                 topic exchange, and name that in UNSTALE_EXCHANGE"
            ));
        }
    }

    pub(super) async fn queue(&mut self, mut spec: QueueSpec) -> Result<(), BrokerError> {
        let object = ContractObject::Queue(spec.name.clone());
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
                    Err(Refusal::Differs(error)) if spec.adopt(error.text()) => adopted.push(error),
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
                self.ensured.warnings.push(adopted_words(spec.kind, &object, &adopted));
            }
        }
        self.note_existence(spec.kind, &object, &outcome);
        let is_history = spec.kind == Kind::History;
        match outcome {
            Ok(()) => Ok(()),
            Err(Refusal::Missing(error)) => {
                let off =
                    if is_history { ", or do without it with UNSTALE_HISTORY=off" } else { "" };
                self.problem(
                    object,
                    error,
                    format!("declare it, or let unstale do so with UNSTALE_DECLARE=queues{off}"),
                );
                Ok(())
            }
            Err(Refusal::Forbidden(error)) if self.policy == DeclarePolicy::None => {
                self.unseen(&object, &error)
            }
            Err(Refusal::Differs(error))
                if is_history
                    && !matches!(
                        precondition_failed(error.text()),
                        Precondition::OtherArgument(_)
                    ) =>
            {
                self.no_streams(object, error)
            }
            Err(Refusal::Unsupported(error)) if is_history => self.no_streams(object, error),
            Err(refusal) => self.refused(object, refusal, "UNSTALE_QUEUE"),
        }
    }

    /// Warns that an object cannot be checked.
    ///
    /// Since 4.2.6 RabbitMQ requires a permission for a passive declaration. Using the object needs
    /// other permissions, and is refused at that time if they are missing.
    fn unseen(&mut self, object: &ContractObject, error: &AmqpError) -> Result<(), BrokerError> {
        if self.depth == Depth::Arguments {
            self.ensured
                .warnings
                .push(format!("{object} cannot be looked at: {error}; it is taken to exist"));
        }
        Ok(())
    }

    /// Notes whether the object exists.
    ///
    /// If this worker declares nothing, another program may declare the object between two checks.
    /// Then a missing object is the only evidence.
    fn note_existence(&self, kind: Kind, object: &ContractObject, outcome: &Result<(), Refusal>) {
        let exists = match outcome {
            Ok(()) => true,
            Err(Refusal::Missing(_)) => false,
            Err(_) => return,
        };
        if self.depth == Depth::Existence {
            self.seen.looked_at(kind, &object.to_string(), exists);
        }
    }

    fn declared(&mut self, kind: Kind, object: &ContractObject) {
        self.ensured.declared.push(Declared { kind, object: object.clone() });
    }

    pub(super) async fn bind(
        &mut self,
        queue: &str,
        exchange: &str,
        routing_keys: &[String],
    ) -> Result<(), BrokerError> {
        if self.policy == DeclarePolicy::None {
            return Ok(());
        }
        let object = |key: &str| ContractObject::Binding { queue: queue.into(), key: key.into() };
        let (Some(short_queue), Some(exchange)) = (short(queue), short(exchange)) else {
            return routing_keys.first().map_or(Ok(()), |key| self.too_long(object(key)));
        };
        let mut names = Vec::with_capacity(routing_keys.len());
        for key in routing_keys {
            match short(key) {
                Some(name) => names.push(name),
                None => self.too_long(object(key))?,
            }
        }
        for names in names.chunks(BINDINGS_AT_ONCE) {
            let mut refused = None;
            let bound = self
                .ask(async |channel| {
                    // The broker answers in this order.
                    let asked = names.iter().map(|name| {
                        let (options, arguments) = Default::default();
                        channel.queue_bind(
                            short_queue.clone(),
                            exchange.clone(),
                            name.clone(),
                            options,
                            arguments,
                        )
                    });
                    let mut asked: FuturesOrdered<_> = asked.collect();
                    let mut at = 0;
                    while let Some(answer) = asked.next().await {
                        answer.inspect_err(|_| refused = names.get(at))?;
                        at += 1;
                    }
                    Ok(())
                })
                .await?;
            if let Err(refusal) = bound {
                // The next binding would be refused for the same reason.
                let key = refused.map_or("", |name| name.as_str());
                return self.refused(object(key), refusal, "UNSTALE_QUEUE");
            }
        }
        Ok(())
    }

    /// Asks on an open channel.
    ///
    /// Failures that only a retry can solve become [`BrokerError::Unreachable`].
    pub(super) async fn ask<T>(
        &mut self,
        question: impl AsyncFnOnce(Channel) -> lapin::Result<T>,
    ) -> Result<Result<T, Refusal>, BrokerError> {
        let channel = match self.channel.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => self.link.channel().await?,
        };
        self.channel = Some(channel.clone());
        let within = self.answers_within;
        let answer = timeout(within, question(channel)).await;
        let answer = answer.map_err(|_| BrokerError::Unreachable(no_answer(within)))?;
        match answer.map_err(Refusal::from) {
            Err(Refusal::Passing(error)) => Err(BrokerError::Unreachable(error.into())),
            Err(refusal) => {
                self.channel = None;
                Ok(Err(refusal))
            }
            Ok(answer) => Ok(Ok(answer)),
        }
    }

    fn problem(
        &mut self,
        object: ContractObject,
        cause: impl Into<Cause>,
        advice: impl Into<Cow<'static, str>>,
    ) {
        self.problems.push(TopologyProblem { object, cause: cause.into(), advice: advice.into() });
    }

    fn refused(
        &mut self,
        object: ContractObject,
        refusal: Refusal,
        setting: &str,
    ) -> Result<(), BrokerError> {
        match refusal {
            Refusal::Missing(error) => {
                self.problem(object, error, "declare what is missing, or set UNSTALE_DECLARE=all")
            }
            Refusal::Differs(error) => {
                let advice = match precondition_failed(error.text()) {
                    Precondition::OtherArgument(_) => format!(
                        "nothing was changed, because the object may hold messages: move them and delete it by hand, or set {setting} to another name"
                    ),
                    _ => "the broker cannot declare it as unstale needs it: check the version, the feature flags and the policies of RabbitMQ".to_owned(),
                };
                self.problem(object, error, advice);
            }
            Refusal::Locked(error) => {
                let advice = format!(
                    "another program declared it as exclusive: close that connection, or set {setting} to another name"
                );
                self.problem(object, error, advice);
            }
            Refusal::AtLimit(error) => self.problem(
                object,
                error,
                "raise that limit (of the virtual host: max-queues in `rabbitmqctl set_vhost_limits`), or remove other queues; a running \
                 worker then declares it by itself",
            ),
            Refusal::Forbidden(error) if error.is_reserved_name() => {
                let advice = format!("set {setting} to a name that does not begin with `amq.`");
                self.problem(object, error, advice);
            }
            Refusal::Forbidden(error) => {
                self.problem(
                    object,
                    error,
                    format!("{GRANT}; or declare it by other means and set UNSTALE_DECLARE=none"),
                );
            }
            Refusal::Unsupported(error) => {
                self.problem(
                    object,
                    error,
                    "unstale needs RabbitMQ 3.10 or later with quorum queues",
                );
                return Err(BrokerError::Topology(std::mem::take(&mut self.problems)));
            }
            Refusal::Passing(error) => return Err(BrokerError::Unreachable(error.into())),
        }
        Ok(())
    }

    /// Reports that the broker has no streams.
    ///
    /// An unsupported queue type may close the whole connection, so nothing more can be asked.
    fn no_streams(&mut self, object: ContractObject, error: AmqpError) -> Result<(), BrokerError> {
        self.problem(
            object,
            error,
            "this broker has no streams (feature flag `stream_queue`, RabbitMQ 3.9 or later): set UNSTALE_HISTORY=off",
        );
        Err(BrokerError::Topology(std::mem::take(&mut self.problems)))
    }

    fn too_long(&mut self, object: ContractObject) -> Result<(), BrokerError> {
        self.problem(
            object,
            "the name is longer than the 255 bytes that AMQP allows",
            "choose a shorter one",
        );
        Ok(())
    }
}

fn adopted_words(kind: Kind, object: &ContractObject, differences: &[AmqpError]) -> String {
    let words: Vec<String> = differences.iter().map(ToString::to_string).collect();
    let words = words.join("; ");
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
