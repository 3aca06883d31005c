//! Publishing that is known to have arrived: mandatory, confirmed one by one, and not returned.

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
use super::failure::{BrokerError, PublishError, Refusal, SessionEnded};
use super::link::{ANSWER_TIMEOUT, EndSignal, Link, answered};
use super::wire::content_header_bytes;
use crate::config::AmqpConfig;
use crate::event::OwnedMessage;

/// Messages without their confirm at a time: lapin looks through all of them at every confirm.
const MAX_IN_FLIGHT: usize = 500;

/// Bytes of bodies without their confirm at a time: lapin queues a copy of each.
const MAX_IN_FLIGHT_BYTES: usize = 16 * 1024 * 1024;

/// A message to publish.
pub struct Outgoing<'a> {
    exchange: &'a str,
    routing_key: &'a str,
    properties: BasicProperties,
    body: &'a [u8],
}

/// Neither headers nor body: payload values never reach a log.
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

    /// A message as any application would publish it; persistent unless it says otherwise.
    ///
    /// # Errors
    /// [`PublishError::Unsendable`] when a property or a header's name is beyond AMQP's 255 bytes.
    pub fn of(message: &'a OwnedMessage) -> Result<Self, PublishError> {
        let properties = properties_of(message)?;
        Ok(Self {
            exchange: &message.exchange,
            routing_key: &message.routing_key,
            properties,
            body: &message.body,
        })
    }

    /// Where it goes.
    pub fn exchange(&self) -> &str {
        self.exchange
    }

    /// Where it goes from there: the queue, where the exchange is the default one.
    pub fn routing_key(&self) -> &str {
        self.routing_key
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        self.body
    }

    #[cfg(test)]
    pub(super) fn properties(&self) -> &BasicProperties {
        &self.properties
    }
}

/// One channel in confirm mode, with one owner: what two tasks publish on one channel gets its
/// confirms mixed up in lapin.
#[derive(Debug)]
pub struct Publisher {
    channel: Channel,
    frame_max_bytes: u32,
    blocked: watch::Receiver<bool>,
    signal: EndSignal,
    /// A publisher outside a session has its connection to itself, and may open a channel anew.
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

    /// A publisher with a connection of its own, outside any session: declares nothing.
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

    /// The largest frame, which the headers of one message have to fit.
    pub fn frame_max_bytes(&self) -> u32 {
        self.frame_max_bytes
    }

    /// Whether the broker takes nothing at the moment.
    pub fn is_blocked(&self) -> bool {
        *self.blocked.borrow()
    }

    /// Waits until the broker takes messages, or is gone.
    pub async fn unblocked(&self) {
        // An error means that the connection is gone: publishing will say so.
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

    /// Publishes messages, and waits until each is confirmed or has failed; the results are in the
    /// same order.
    ///
    /// Within a session an alarm of the broker's is waited out, however long: a new session would
    /// meet it too, and each costs the deliveries in hand one of those that the delivery limit
    /// allows.
    ///
    /// After [`PublishError::Ended`] a message may have arrived or not, and the session is over. To
    /// be awaited to its end: dropped half-way, it leaves messages whose fate nobody knows, and the
    /// publisher is not to be used again.
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
                        Err(error) => Err(self.failed(&error)),
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

    /// The next confirm, within [`ANSWER_TIMEOUT`]. An alarm of the broker stops that clock: the
    /// broker tells a connection that it is blocked only once it publishes, keeps what was sent,
    /// and confirms it when the alarm is over. To give up instead would count a redelivery against
    /// everything in hand, over and over.
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
                // Its clock starts anew.
                Ok(()) = blocked.changed() => {}
                // Outside a session somebody waits for an answer.
                () = sleep(ANSWER_TIMEOUT), if !is_blocked || self.own.is_some() => return Err(Silent),
                else => return Err(Silent),
            }
        }
    }

    /// Goes on with another channel. One that was opened while a quorum queue had no leader may be
    /// told for ever that the queue cannot store anything, though it has a leader again: seen with
    /// RabbitMQ 3.10 in a cluster that lost a node. To be called with nothing under way.
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
        // A refusal to close is no news.
        let _ = answered(old.close(200, "bye".into())).await;
        Ok(())
    }

    /// Closes a connection of its own properly.
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

    fn failed(&self, error: &lapin::Error) -> PublishError {
        match Refusal::from(error) {
            // Outside a session a refused message ends its channel alone.
            Refusal::Missing(words) | Refusal::Differs(words) | Refusal::Forbidden(words)
                if self.own.is_some() =>
            {
                PublishError::Refused(words)
            }
            _ => self.over(SessionEnded::from(error.clone())),
        }
    }

    fn over(&self, ended: SessionEnded) -> PublishError {
        PublishError::Ended(self.signal.end(ended))
    }
}

/// No confirm came.
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

/// Finds which messages were returned. lapin hands a returned message to whichever confirm comes
/// next, so the confirm that carried it says nothing; but each return comes before its own confirm,
/// so that once all of a call's confirms are in, all of its returns are, and no other's. Messages
/// alike in every byte stand for each other. Where none is alike (a NaN in a header), all of that
/// destination count as returned.
fn attribute(
    returned: &[BasicReturnMessage],
    messages: &[Outgoing<'_>],
    results: &mut [Option<Result<(), PublishError>>],
) {
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
        let exact =
            (0..messages.len()).find(|&at| results[at] == Some(Ok(())) && alike(&messages[at]));
        match exact {
            Some(at) => results[at] = Some(Err(error)),
            None => {
                for at in (0..messages.len()).filter(|&at| same_way(&messages[at])) {
                    if results[at] == Some(Ok(())) {
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
