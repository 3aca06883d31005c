//! A correct publisher: messages are mandatory, so that an event without a queue is returned, and
//! confirmed.

use anyhow::{Context as _, bail};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

use crate::steps::{Form, Step};

const EXCHANGE: &str = "events";
/// AMQP's `delivery_mode` for messages that survive a restart of the broker.
const PERSISTENT: u8 = 2;

pub(crate) struct Publisher {
    connection: Connection,
    channel: Channel,
}

impl Publisher {
    pub(crate) async fn connect(url: &str) -> anyhow::Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .context("RabbitMQ does not take a connection")?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { connection, channel })
    }

    pub(crate) async fn publish(&self, step: &Step) -> anyhow::Result<()> {
        let mut properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(PERSISTENT);
        if step.form == Form::CloudEvent {
            let mut headers = FieldTable::default();
            for (name, value) in [
                ("specversion", "1.0"),
                ("id", "tour-1"),
                ("source", "/shop"),
                ("type", step.event_type),
            ] {
                headers.insert(
                    format!("cloudEvents:{name}").into(),
                    AMQPValue::LongString(value.into()),
                );
            }
            properties = properties.with_headers(headers);
        }
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let sent = self
            .channel
            .basic_publish(
                EXCHANGE.into(),
                step.event_type.into(),
                options,
                step.body.as_bytes(),
                properties,
            )
            .await?;
        match sent.await.context("the exchange `events` is not there: is a worker running?")? {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) => {
                bail!("{} came back: no queue is bound to it", step.event_type)
            }
            other => bail!("RabbitMQ did not confirm {}: {other:?}", step.event_type),
        }
    }

    pub(crate) async fn close(self) {
        // The tour is over with or without an error here.
        let _ = self.connection.close(200, "the tour is over".into()).await;
    }
}
