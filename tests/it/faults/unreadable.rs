//! A message that the AMQP library cannot parse: it ends the connection, and must not affect other
//! messages.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::load::{Kinds, Pages, SETTINGS, stage};
use crate::end_to_end::stage::SOON;
use crate::support::{rabbitmq, wait_until};

const EVENTS: u32 = 400;

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_message_ends_in_the_dead_letter_queue_and_harms_no_neighbour() {
    let broker = rabbitmq().await;
    let mut stage = stage(&broker.url()).await;
    let pages = Pages::serve().await;
    let settings: Vec<(&str, &str)> =
        SETTINGS.iter().copied().chain([("UNSTALE_VAR_PAGES_URL", pages.as_str())]).collect();
    Kinds::MIXED.seed(&stage, 0..EVENTS).await;
    assert_eq!(stage.worker(&settings).await.terminate().await.code(), Some(0));
    Kinds::MIXED.publish(&mut stage, 0..EVENTS / 2, Duration::ZERO).await;
    publish_unreadable(&broker.addr(), &stage.exchange, "user.updated").await;
    Kinds::MIXED.publish(&mut stage, EVENTS / 2..EVENTS, Duration::ZERO).await;
    let workers = [stage.worker(&settings).await, stage.worker(&settings).await];
    wait_until(Duration::from_secs(45), "it is dead-lettered", async || {
        stage.ready(".dead").await > 0
    })
    .await;
    Kinds::MIXED.settled(&stage, &[&workers[0], &workers[1]], 0..EVENTS).await;
    assert_eq!(stage.ready(".dead").await, 1, "nothing else is:\n{}", workers[0].stderr());
    for worker in &workers {
        wait_until(SOON, "it consumes", async || {
            matches!(worker.get("/readyz").await, Some((200, _)))
        })
        .await;
    }
}

/// A prefetched load is redelivered while an unreadable message ends one session after the other.
#[tokio::test(flavor = "multi_thread")]
async fn loads_in_hand_are_not_counted_out_by_an_unreadable_message() {
    let broker = rabbitmq().await;
    let rules = r#"
defaults: { ttl: 1h }
loaders: { slow: { url: "{vars.SLOW_URL}", timeout: 30s } }
events:
  page.changed: { effects: [ { warm: "page:{id}", from: "slow:/{id}" } ] }
  user.updated: { effects: [ { delete: "user:{id}" } ] }
"#;
    let stage = crate::end_to_end::stage::Stage::new(&[("pages.yaml", rules)]).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let worker = stage.worker(&[("UNSTALE_VAR_SLOW_URL", &url)]).await;
    for id in 0..10 {
        stage.publish("page.changed", &format!(r#"{{"id":{id}}}"#)).await;
    }
    let (_loading, _) = silent.accept().await.unwrap();
    publish_unreadable(&broker.addr(), &stage.exchange, "user.updated").await;
    wait_until(Duration::from_secs(45), "it is dead-lettered", async || {
        stage.ready(".dead").await > 0
    })
    .await;
    assert_eq!(stage.ready(".dead").await, 1, "{}", worker.stderr());
    worker.kill();
    let slow = format!("{}.slow", stage.queue);
    wait_until(Duration::from_secs(10), "the loads are back", async || {
        stage.ready(".slow").await == 10
    })
    .await;
    let count = stage.highest_delivery_count(&slow).await;
    assert!(count <= 4, "a load was delivered {count} times in vain");
}

/// Publishes a message whose `message_id` is not UTF-8, byte by byte, because no library permits
/// it.
async fn publish_unreadable(addr: &str, exchange: &str, routing_key: &str) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"AMQP\x00\x00\x09\x01").await.unwrap();
    expect(&mut stream, 10, 10).await;
    let mut start_ok = vec![0, 0, 0, 0];
    short(&mut start_ok, b"PLAIN");
    long(&mut start_ok, b"\0guest\0guest");
    short(&mut start_ok, b"en_US");
    method(&mut stream, 0, 10, 11, &start_ok).await;
    expect(&mut stream, 10, 30).await;
    method(&mut stream, 0, 10, 31, &[0, 10, 0, 2, 0, 0, 0, 0]).await;
    let mut open = Vec::new();
    short(&mut open, b"/");
    open.extend([0, 0]);
    method(&mut stream, 0, 10, 40, &open).await;
    expect(&mut stream, 10, 41).await;
    method(&mut stream, 1, 20, 10, &[0]).await;
    expect(&mut stream, 20, 11).await;
    method(&mut stream, 1, 85, 10, &[0]).await;
    expect(&mut stream, 85, 11).await;
    let mut publish = vec![0, 0];
    short(&mut publish, exchange.as_bytes());
    short(&mut publish, routing_key.as_bytes());
    publish.push(0);
    method(&mut stream, 1, 60, 40, &publish).await;
    let body = b"{\"id\":0}";
    let mut header = vec![0, 60, 0, 0];
    header.extend(u64::try_from(body.len()).unwrap().to_be_bytes());
    // Flags of delivery_mode and message_id.
    header.extend([0x10, 0x80, 2]);
    short(&mut header, b"no\xff\xfeUTF-8");
    frame(&mut stream, 2, 1, &header).await;
    frame(&mut stream, 3, 1, body).await;
    // The broker's confirm.
    expect(&mut stream, 60, 80).await;
}

fn short(to: &mut Vec<u8>, text: &[u8]) {
    to.push(u8::try_from(text.len()).unwrap());
    to.extend(text);
}

fn long(to: &mut Vec<u8>, text: &[u8]) {
    to.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
    to.extend(text);
}

async fn method(stream: &mut TcpStream, channel: u16, class: u16, method: u16, arguments: &[u8]) {
    let payload = [&class.to_be_bytes(), &method.to_be_bytes(), arguments].concat();
    frame(stream, 1, channel, &payload).await;
}

async fn frame(stream: &mut TcpStream, kind: u8, channel: u16, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap();
    let bytes =
        [&[kind], channel.to_be_bytes().as_slice(), &length.to_be_bytes(), payload, &[0xCE]]
            .concat();
    stream.write_all(&bytes).await.unwrap();
}

/// Reads frames up to the expected method.
async fn expect(stream: &mut TcpStream, class: u16, method: u16) {
    loop {
        let mut head = [0; 7];
        tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut head))
            .await
            .expect("an answer")
            .unwrap();
        let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
        let mut payload = vec![0; length as usize + 1];
        stream.read_exact(&mut payload).await.unwrap();
        if head[0] == 1
            && payload.starts_with(&[class.to_be_bytes(), method.to_be_bytes()].concat())
        {
            return;
        }
    }
}
