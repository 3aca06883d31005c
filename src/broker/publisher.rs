//! Publishing with proof of arrival: mandatory, confirmed one by one, and not returned.

use std::fmt;
use std::sync::{Arc, Weak};

use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::watch;
use tokio::time::sleep;

use super::convert::{properties_of, short};
use super::failure::{BrokerError, PublishError, SessionEnded};
use super::link::{ANSWER_TIMEOUT, EndSignal, Link, answered};
use super::refusal::{AmqpError, Refusal};
use super::wire::content_header_bytes;
use crate::config::AmqpConfig;
use crate::event::OwnedMessage;

/// Maximum number of unconfirmed messages. lapin searches all of them at every confirm.
const MAX_IN_FLIGHT: usize = 500;

/// Maximum size of the bodies of unconfirmed messages. lapin queues a copy of each.
const MAX_IN_FLIGHT_BYTES: usize = 16 * 1024 * 1024;

/// Message to publish.
pub struct Outgoing<'a> {
    exchange: &'a str,
    routing_key: &'a str,
    properties: BasicProperties,
    body: &'a [u8],
}

/// Shows neither headers nor body, so that payload values never reach a log.
impl fmt::Debug for Outgoing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (exchange, routing_key) = (self.exchange, self.routing_key);
        f.debug_struct("Outgoing")
            .field("exchange", &exchange)
            .field("routing_key", &routing_key)
            .finish_non_exhaustive()
    }
}

impl<'a> Outgoing<'a> {
    pub(super) fn new(
        exchange: &'a str,
        routing_key: &'a str,
        properties: BasicProperties,
        body: &'a [u8],
    ) -> Self {
        Self { exchange, routing_key, properties, body }
    }

    /// Returns a message as any application would publish it; persistent unless it sets another
    /// mode.
    ///
    /// # Errors
    /// [`PublishError::Unsendable`] when a property or a header's name exceeds AMQP's 255 bytes.
    pub fn of(message: &'a OwnedMessage) -> Result<Self, PublishError> {
        let properties = properties_of(message)?;
        Ok(Self {
            exchange: &message.exchange,
            routing_key: &message.routing_key,
            properties,
            body: &message.body,
        })
    }

    /// Returns the same message for another queue, through the default exchange.
    #[must_use]
    pub fn to_queue(&self, queue: &'a str) -> Self {
        Self { exchange: "", routing_key: queue, properties: self.properties.clone(), ..*self }
    }

    /// Returns the exchange.
    pub fn exchange(&self) -> &str {
        self.exchange
    }

    /// Returns the routing key: with the default exchange, the queue.
    pub fn routing_key(&self) -> &str {
        self.routing_key
    }

    /// Returns the body.
    pub fn body(&self) -> &[u8] {
        self.body
    }

    #[cfg(test)]
    pub(super) fn properties(&self) -> &BasicProperties {
        &self.properties
    }
}

/// One channel in confirm mode, with one owner.
///
/// lapin mixes up the confirms of two tasks that publish on one channel.
#[derive(Debug)]
pub struct Publisher {
    channel: Channel,
    frame_max_bytes: u32,
    blocked: watch::Receiver<bool>,
    signal: EndSignal,
    /// Connection of a publisher outside a session, which may open another channel on it.
    own: Option<Arc<Link>>,
    link: Weak<Link>,
}

impl Publisher {
    pub(super) async fn on(
        link: &Arc<Link>,
        blocked: watch::Receiver<bool>,
        signal: &EndSignal,
    ) -> Result<Self, SessionEnded> {
        let channel = confirming(link).await?;
        Ok(Self {
            channel,
            frame_max_bytes: link.frame_max_bytes(),
            blocked,
            signal: signal.clone(),
            own: None,
            link: Arc::downgrade(link),
        })
    }

    /// Connects a publisher of its own, outside any session. Declares nothing.
    ///
    /// # Errors
    /// [`BrokerError`], as for a session.
    pub async fn connect(config: &AmqpConfig) -> Result<Self, BrokerError> {
        let signal = EndSignal::new();
        let blocked = Arc::new(watch::Sender::new(false));
        let link = Arc::new(Link::connect(config, " publish", &signal, &blocked).await?);
        let mut publisher = Self::on(&link, blocked.subscribe(), &signal).await?;
        publisher.own = Some(link);
        Ok(publisher)
    }

    /// Returns the largest frame, which the headers of one message must fit.
    pub fn frame_max_bytes(&self) -> u32 {
        self.frame_max_bytes
    }

    /// Returns whether the broker blocks publishing at the moment.
    pub fn is_blocked(&self) -> bool {
        *self.blocked.borrow()
    }

    /// Waits until the broker accepts messages, or the connection is gone.
    pub async fn unblocked(&self) {
        // An error means that the connection is gone. The next publish reports it.
        let _ = self.blocked.clone().wait_for(|blocked| !blocked).await;
    }

    /// Publishes a message, and waits until a queue has it.
    ///
    /// # Errors
    /// [`PublishError`]
    pub async fn publish(&mut self, message: &OwnedMessage) -> Result<(), PublishError> {
        let message = Outgoing::of(message)?;
        self.publish_all(&[message]).await.pop().unwrap_or(Ok(()))
    }

    /// Publishes messages, and waits until each is confirmed or has failed. The results are in the
    /// same order.
    ///
    /// Within a session, this waits for the end of a broker alarm, however long. A new session
    /// would meet the alarm too. Each new session also redelivers the deliveries in flight, which
    /// uses up their delivery limit.
    ///
    /// After [`PublishError::Ended`], a message may or may not have arrived, and the session is
    /// over. Await this future to its end. If it is dropped earlier, the fate of its messages is
    /// unknown, and the publisher must not be used again.
    pub async fn publish_all(
        &mut self,
        messages: &[Outgoing<'_>],
    ) -> Vec<Result<(), PublishError>> {
        if let Some(error) = self.unusable().await {
            return vec![Err(error); messages.len()];
        }
        let mut results: Vec<Option<Result<(), PublishError>>> =
            messages.iter().map(|message| self.unsendable(message).map(Err)).collect();
        let mut waiting: Vec<usize> =
            (0..messages.len()).rev().filter(|&at| results[at].is_none()).collect();
        let mut returned = Vec::new();
        let mut in_flight = FuturesUnordered::new();
        let mut in_flight_bytes = 0;
        loop {
            while in_flight.len() < MAX_IN_FLIGHT
                && (in_flight.is_empty() || in_flight_bytes < MAX_IN_FLIGHT_BYTES)
            {
                let Some(at) = waiting.pop() else { break };
                in_flight_bytes += messages[at].body.len();
                in_flight.push(publish_one(self.channel.clone(), at, &messages[at]));
            }
            if in_flight.is_empty() {
                break;
            }
            match self.next_confirm(&mut in_flight).await {
                Ok(Some((at, confirmation))) => {
                    in_flight_bytes -= messages[at].body.len();
                    results[at] = Some(match confirmation {
                        Ok(Confirmation::Ack(carried)) => {
                            returned.extend(carried);
                            Ok(())
                        }
                        Ok(Confirmation::Nack(carried)) => {
                            returned.extend(carried);
                            Err(PublishError::Nacked)
                        }
                        Ok(Confirmation::NotRequested) => {
                            Err(self.over(SessionEnded::new("the channel is not in confirm mode")))
                        }
                        Err(error) => Err(self.failed(error)),
                    });
                }
                Ok(None) => break,
                Err(Silent) => {
                    self.over(SessionEnded::new(format!(
                        "no publisher confirm within {} s",
                        ANSWER_TIMEOUT.as_secs()
                    )));
                    break;
                }
            }
        }
        drop(in_flight);
        attribute(&returned, messages, &mut results);
        let lost =
            self.signal.cause().unwrap_or_else(|| SessionEnded::new("the channel is closed"));
        results
            .into_iter()
            .map(|result| result.unwrap_or_else(|| Err(PublishError::Ended(lost.clone()))))
            .collect()
    }

    /// Returns the next confirm, within [`ANSWER_TIMEOUT`].
    ///
    /// An alarm of the broker stops that clock. The broker announces the alarm only once a
    /// connection publishes. It keeps what was sent, and confirms it after the alarm. Ending the
    /// session instead would count a redelivery for everything in flight, again and again.
    async fn next_confirm<C: Stream + Unpin>(
        &self,
        in_flight: &mut C,
    ) -> Result<Option<C::Item>, Silent> {
        let mut blocked = self.blocked.clone();
        loop {
            let is_blocked = *blocked.borrow_and_update();
            tokio::select! {
                biased;
                confirm = in_flight.next() => return Ok(confirm),
                // The timeout starts again.
                Ok(()) = blocked.changed() => {}
                // Outside a session a person waits for an answer.
                () = sleep(ANSWER_TIMEOUT), if !is_blocked || self.own.is_some() => return Err(Silent),
                else => return Err(Silent),
            }
        }
    }

    /// Replaces the channel. Call this only with no message in flight.
    ///
    /// A channel opened while a quorum queue had no leader may report for ever that the queue
    /// cannot store anything. RabbitMQ 3.10 does so in a cluster that lost a node, even after the
    /// queue has a leader again.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn renew(&mut self) -> Result<(), SessionEnded> {
        let renewed = match self.link.upgrade() {
            Some(link) => confirming(&link).await,
            None => Err(SessionEnded::new("dropped by us")),
        };
        let old =
            std::mem::replace(&mut self.channel, renewed.map_err(|ended| self.signal.end(ended))?);
        // A failed close changes nothing.
        let _ = answered(old.close(200, "bye".into())).await;
        Ok(())
    }

    /// Closes a connection of its own cleanly.
    pub async fn close(self) {
        if let Some(link) = self.own.and_then(Arc::into_inner) {
            link.close().await;
        }
    }

    async fn unusable(&mut self) -> Option<PublishError> {
        if self.is_blocked() {
            return Some(PublishError::Blocked);
        }
        if let Some(link) = &self.own
            && link.is_connected()
            && !self.channel.status().connected()
        {
            match confirming(link).await {
                Ok(channel) => self.channel = channel,
                Err(ended) => return Some(PublishError::Ended(ended)),
            }
        }
        self.signal.cause().map(PublishError::Ended)
    }

    fn unsendable(&self, message: &Outgoing<'_>) -> Option<PublishError> {
        if short(message.routing_key).is_none() || short(message.exchange).is_none() {
            return Some(PublishError::Unsendable(
                "the routing key or the exchange is longer than the 255 bytes that AMQP allows"
                    .into(),
            ));
        }
        // RabbitMQ would close the whole connection.
        (content_header_bytes(&message.properties) > self.frame_max_bytes as usize).then(|| {
            PublishError::Unsendable(format!(
                "the headers do not fit a frame of {} bytes",
                self.frame_max_bytes
            ))
        })
    }

    fn failed(&self, error: lapin::Error) -> PublishError {
        match Refusal::from(error) {
            // Outside a session a refused message ends its channel only.
            Refusal::Missing(error)
            | Refusal::Differs(error)
            | Refusal::Locked(error)
            | Refusal::Forbidden(error)
                if self.own.is_some() =>
            {
                PublishError::Refused(error)
            }
            refusal => self.over(SessionEnded::from(AmqpError::from(refusal))),
        }
    }

    fn over(&self, ended: SessionEnded) -> PublishError {
        PublishError::Ended(self.signal.end(ended))
    }
}

/// No confirm came in time.
struct Silent;

async fn confirming(link: &Link) -> Result<Channel, SessionEnded> {
    let channel = link.channel().await?;
    answered(channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok(channel)
}

async fn publish_one(
    channel: Channel,
    at: usize,
    message: &Outgoing<'_>,
) -> (usize, lapin::Result<Confirmation>) {
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let (exchange, routing_key) = (message.exchange.into(), message.routing_key.into());
    let sent = channel
        .basic_publish(exchange, routing_key, options, message.body, message.properties.clone())
        .await;
    let confirmation = match sent {
        Ok(confirm) => confirm.await,
        Err(error) => Err(error),
    };
    (at, confirmation)
}

/// Finds the messages that were returned.
///
/// lapin attaches a returned message to the next confirm, so the carrying confirm identifies
/// nothing. But each return comes before its own confirm. Once all confirms of a call are in, all
/// of its returns are in, and no others.
///
/// Messages with the same bytes are interchangeable. If no message matches (a NaN in a header), all
/// messages for that destination count as returned.
fn attribute(
    returned: &[BasicReturnMessage],
    messages: &[Outgoing<'_>],
    results: &mut [Option<Result<(), PublishError>>],
) {
    let arrived = |result: &Option<Result<(), PublishError>>| matches!(result, Some(Ok(())));
    for back in returned {
        let same_way = |message: &Outgoing<'_>| {
            message.exchange == back.exchange.as_str()
                && message.routing_key == back.routing_key.as_str()
        };
        let alike = |message: &Outgoing<'_>| {
            same_way(message) && message.body == back.data && message.properties == back.properties
        };
        let error = PublishError::Returned(format!(
            "{} ({} `{}`)",
            back.reply_text,
            way(back),
            back.routing_key
        ));
        let exact = (0..messages.len()).find(|&at| arrived(&results[at]) && alike(&messages[at]));
        match exact {
            Some(at) => results[at] = Some(Err(error)),
            None => {
                for at in (0..messages.len()).filter(|&at| same_way(&messages[at])) {
                    if arrived(&results[at]) {
                        results[at] = Some(Err(error.clone()));
                    }
                }
            }
        }
    }
}

fn way(back: &BasicReturnMessage) -> String {
    if back.exchange.as_str().is_empty() {
        "queue".to_owned()
    } else {
        format!("exchange `{}`, routing key", back.exchange)
    }
}
