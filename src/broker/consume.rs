//! Start of every consumer.

use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};

/// Begins to consume, as the channel's consumer of that number. A prefetch counts for consumers
/// that begin after it.
///
/// The number makes the consumer's tag, after a letter. To a quorum queue a `basic.get` is a
/// consumer too, and its tag is the delivery's number (`quorum_ctag` in RabbitMQ's
/// rabbit_quorum_queue.erl).
///
/// The tag is short because the broker sends it with every message. The broker writes to its socket
/// whenever 1,414 bytes have gathered (`FLUSH_THRESHOLD` in its rabbit_writer.erl). The tags that
/// the broker makes up have 31 bytes. They cost 4 % of a drain of small events: 161,500 events/s,
/// and 168,700 with tags of one byte (8 rounds in turn).
///
/// # Errors
/// The broker's refusal, or the end of the channel.
pub(super) async fn consume(
    channel: &Channel,
    number: u32,
    queue: ShortString,
    prefetch: u16,
    arguments: FieldTable,
) -> lapin::Result<Consumer> {
    channel.basic_qos(prefetch, BasicQosOptions { global: false }).await?;
    channel
        .basic_consume(
            queue,
            format!("c{number}").into(),
            BasicConsumeOptions::default(),
            arguments,
        )
        .await
}
