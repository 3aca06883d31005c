//! Origin of messages from the default exchange: a worker, or a publisher whose message the broker
//! moved.

use std::sync::Arc;

use lapin::types::{AMQPValue, FieldTable};

use super::convert::Delivery;
use super::names::Names;
use super::signature::Signer;
use crate::event::{Origin, header};

/// Header with the broker's records of a dead-lettered message, newest first.
const X_DEATH: &str = "x-death";

/// Finds the origin of deliveries.
#[derive(Debug, Clone)]
pub(super) struct Origins {
    signer: Signer,
    main: Arc<str>,
    slow: Arc<str>,
}

impl Origins {
    pub(super) fn new(signer: &Signer, names: &Names) -> Self {
        Self {
            signer: signer.clone(),
            main: names.main.as_str().into(),
            slow: names.slow.as_str().into(),
        }
    }

    pub(super) fn signer(&self) -> &Signer {
        &self.signer
    }

    /// Sets the origin of a delivery.
    ///
    /// A message from another exchange is a publisher's, and needs no check here.
    pub(super) fn establish(&self, delivery: &mut Delivery) {
        if delivery.exchange().is_empty() {
            self.establish_republished(delivery);
        }
    }

    fn establish_republished(&self, delivery: &mut Delivery) {
        let Some(headers) = delivery.properties().headers() else { return };
        if self.signer.has_signed(headers, delivery.body()) {
            delivery.set_origin(Origin::Worker);
        } else if let Some((exchange, routing_key)) = self.first_arrival(headers) {
            // The broker's record counts more than headers that any publisher may have written.
            delivery.arrived_by(&exchange, &routing_key);
        } else if is_text(headers, header::ROUTING_KEY) {
            delivery.set_origin(Origin::Unsigned);
        }
    }

    /// Returns the exchange and the routing key of a publisher's message at its arrival in our
    /// queue.
    ///
    /// They are known if the broker has dead-lettered the message from there.
    fn first_arrival(&self, headers: &FieldTable) -> Option<(String, String)> {
        deaths(headers).find_map(|death| {
            let queue = text_of(death, "queue")?;
            let exchange = text_of(death, "exchange").filter(|exchange| !exchange.is_empty())?;
            let routing_key =
                routing_key_of(death).filter(|_| queue == &*self.main || queue == &*self.slow)?;
            Some((exchange.to_owned(), routing_key.to_owned()))
        })
    }
}

/// Sets the origin of a message of the history, where `dlq replay` records its letters.
///
/// Their headers define how the event is read, and nothing else: the stream drops headers that the
/// signature covers.
pub(super) fn establish_in_history(delivery: &mut Delivery) {
    let headers = delivery.properties().headers().as_ref();
    let is_letter = delivery.exchange().is_empty()
        && headers.is_some_and(|headers| is_text(headers, header::ROUTING_KEY));
    if is_letter {
        delivery.set_origin(Origin::Unsigned);
    }
}

/// Returns the entries of `x-death`, newest first.
pub(super) fn deaths(headers: &FieldTable) -> impl Iterator<Item = &FieldTable> {
    let deaths = match headers.inner().get(X_DEATH) {
        Some(AMQPValue::FieldArray(deaths)) => deaths.as_slice(),
        _ => &[],
    };
    deaths.iter().filter_map(|death| match death {
        AMQPValue::FieldTable(death) => Some(death),
        _ => None,
    })
}

fn routing_key_of(death: &FieldTable) -> Option<&str> {
    match death.inner().get("routing-keys") {
        Some(AMQPValue::FieldArray(keys)) => keys.as_slice().first().and_then(as_text),
        _ => None,
    }
}

fn is_text(headers: &FieldTable, name: &str) -> bool {
    headers.inner().get(name).and_then(as_text).is_some()
}

pub(super) fn text_of<'a>(table: &'a FieldTable, name: &str) -> Option<&'a str> {
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

    use super::super::convert::long;
    use super::super::convert::tests::{delivery, table};
    use super::*;

    fn death(queue: &str, exchange: &str, routing_key: &str) -> AMQPValue {
        AMQPValue::FieldTable(table(&[
            ("queue", long(queue)),
            ("reason", long("expired")),
            ("exchange", long(exchange)),
            ("routing-keys", AMQPValue::FieldArray(vec![long(routing_key)].into())),
        ]))
    }

    #[test]
    fn a_moved_message_may_be_older_than_the_backlog() {
        let deaths = AMQPValue::FieldArray(vec![death("shop", "events", "user.updated")].into());
        let origins = Origins::new(&Signer::default(), &Names::new("shop", &[]));
        let came = |exchange: &str, headers: &[(&str, AMQPValue)]| {
            let properties = BasicProperties::default().with_headers(table(headers));
            let mut came = delivery(exchange, "shop", properties, b"{}");
            origins.establish(&mut came);
            came
        };
        assert!(came("events", &[]).is_first_publication());
        assert!(!came("", &[(X_DEATH, deaths)]).is_first_publication());
        assert!(!came("", &[]).is_first_publication());
    }

    fn established(
        exchange: &str,
        headers: &[(&str, AMQPValue)],
        signer: &Signer,
    ) -> (Origin, String, String) {
        let properties = BasicProperties::default().with_headers(table(headers));
        let mut found = delivery(exchange, "shop", properties, b"{}");
        Origins::new(signer, &Names::new("shop", &[])).establish(&mut found);
        (found.origin(), found.exchange().to_owned(), found.routing_key().to_owned())
    }

    fn found(origin: Origin, exchange: &str, routing_key: &str) -> (Origin, String, String) {
        (origin, exchange.to_owned(), routing_key.to_owned())
    }

    #[test]
    fn only_a_signature_makes_a_message_ours() {
        let signer = Signer::with_secret("secret");
        let ours = [(header::ROUTING_KEY, long("user.updated")), (header::EFFECTS, long("0"))];
        let mut signed = table(&ours);
        signer.sign(&mut signed, b"{}");
        let signed: Vec<(&str, AMQPValue)> =
            signed.inner().iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        assert_eq!(established("", &signed, &signer), found(Origin::Worker, "", "shop"));
        assert_eq!(
            established("events", &signed, &signer).0,
            Origin::Publisher,
            "a publisher has copied it"
        );
        assert_eq!(established("", &ours, &signer).0, Origin::Unsigned);
        assert_eq!(
            established("", &signed, &Signer::default()).0,
            Origin::Unsigned,
            "Redis has lost the secret"
        );
        assert_eq!(established("", &[], &signer).0, Origin::Publisher, "sent to the queue by name");
    }

    #[test]
    fn only_a_letter_in_the_history_says_how_to_read_it() {
        let origin_of = |exchange: &str, headers: &[(&str, AMQPValue)]| {
            let properties = BasicProperties::default().with_headers(table(headers));
            let mut recorded = delivery(exchange, "user.updated", properties, b"{}");
            establish_in_history(&mut recorded);
            recorded.origin()
        };
        let ours = [(header::ROUTING_KEY, long("user.updated"))];
        assert_eq!(origin_of("", &ours), Origin::Unsigned);
        assert_eq!(origin_of("events", &ours), Origin::Publisher);
        assert_eq!(origin_of("", &[]), Origin::Publisher);
    }

    #[test]
    fn the_brokers_word_counts_more_than_unsigned_headers() {
        let signer = Signer::with_secret("secret");
        let with = |deaths: Vec<AMQPValue>| {
            established(
                "",
                &[
                    (X_DEATH, AMQPValue::FieldArray(deaths.into())),
                    (header::ROUTING_KEY, long("forged")),
                ],
                &signer,
            )
        };
        let by_user = found(Origin::Publisher, "events", "user.updated");
        assert_eq!(with(vec![death("shop", "events", "user.updated")]), by_user);
        assert_eq!(
            with(vec![
                death("theirs", "x", "y"),
                death("shop", "events", "user.updated"),
                death("shop", "x", "z")
            ]),
            by_user
        );
        let unsigned = found(Origin::Unsigned, "", "shop");
        assert_eq!(with(vec![death("theirs", "x", "y")]), unsigned, "not a queue of ours");
        assert_eq!(
            with(vec![death("shop.retry.1s", "", "shop.retry.1s")]),
            unsigned,
            "an older worker's retry message"
        );
        assert_eq!(
            with(vec![
                AMQPValue::Void,
                long("x"),
                AMQPValue::FieldTable(table(&[("queue", AMQPValue::LongInt(5))]))
            ]),
            unsigned
        );
    }
}
