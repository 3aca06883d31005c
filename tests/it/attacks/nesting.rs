//! Messages that no library would publish, from a client that writes AMQP by hand.
//!
//! Their headers are nested as deep as a frame permits, or their short texts are not UTF-8.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Victim;
use crate::support::rabbitmq;

/// Largest frame that both sides allow.
const FRAME_BYTES: usize = 131_072;

/// Publisher's connection with one channel.
struct Raw(TcpStream);

impl Raw {
    async fn connect(address: &str) -> Self {
        let mut raw =
            Self(TcpStream::connect(address).await.expect("the broker takes a connection"));
        raw.0.write_all(b"AMQP\0\0\x09\x01").await.unwrap();
        raw.answer().await;
        raw.method(
            0,
            [10, 11],
            &[long(b""), short("PLAIN"), long(b"\0guest\0guest"), short("en_US")].concat(),
        )
        .await;
        let tune = raw.answer().await;
        raw.method(0, [10, 31], &[&tune[4..10], &[0, 0]].concat()).await;
        raw.method(0, [10, 40], &[short("/"), short(""), vec![0]].concat()).await;
        raw.answer().await;
        raw.method(1, [20, 10], &short("")).await;
        raw.answer().await;
        raw
    }

    async fn publish(&mut self, exchange: &str, routing_key: &str, headers: &[u8], body: &[u8]) {
        let properties = [&(1_u16 << 13).to_be_bytes()[..], &long(headers)].concat();
        self.publish_with(exchange, routing_key, &properties, body).await;
    }

    /// Publishes a message; `properties` holds the flags and the properties that they announce.
    async fn publish_with(
        &mut self,
        exchange: &str,
        routing_key: impl AsRef<[u8]>,
        properties: &[u8],
        body: &[u8],
    ) {
        self.method(
            1,
            [60, 40],
            &[vec![0, 0], short(exchange), short(routing_key), vec![0]].concat(),
        )
        .await;
        let size = (body.len() as u64).to_be_bytes();
        let content = [&[0, 60, 0, 0][..], &size, properties].concat();
        self.frame(2, 1, &content).await;
        self.frame(3, 1, body).await;
        // The broker answers the close of a channel after all earlier frames.
        self.method(1, [20, 40], &[0, 200, 0, 0, 0, 0, 0]).await;
        let answer = self.answer().await;
        assert_eq!(&answer[..4], [0, 20, 0, 41], "the broker takes the message");
    }

    async fn method(&mut self, channel: u8, [class, method]: [u8; 2], arguments: &[u8]) {
        self.frame(1, channel, &[&[0, class, 0, method], arguments].concat()).await;
    }

    async fn frame(&mut self, kind: u8, channel: u8, payload: &[u8]) {
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        self.0
            .write_all(&[&[kind, 0, channel], &size[..], payload, &[0xce]].concat())
            .await
            .unwrap();
    }

    /// Returns the payload of the broker's next frame.
    async fn answer(&mut self) -> Vec<u8> {
        let mut head = [0; 7];
        self.0.read_exact(&mut head).await.expect("the broker answers");
        let mut payload = vec![0; u32::from_be_bytes(head[3..].try_into().unwrap()) as usize + 1];
        self.0.read_exact(&mut payload).await.unwrap();
        payload
    }
}

fn short(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// Returns a member `x` with that many levels of arrays or tables, as far as they fit.
fn nested(kind: u8, levels: usize) -> Vec<u8> {
    let name: &[u8] = if kind == b'F' { b"\x01k" } else { b"" };
    // The innermost value is a boolean.
    let mut value_bytes = 2;
    let mut lengths = Vec::with_capacity(levels);
    for _ in 0..levels {
        let length = name.len() + value_bytes;
        lengths.push(u32::try_from(length).unwrap().to_be_bytes());
        value_bytes = 1 + 4 + length;
    }
    let heads = lengths.iter().rev().flat_map(|length| [&[kind][..], length, name].concat());
    let mut member = short("x");
    member.extend(heads);
    member.extend(b"t\x01");
    member
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_nested_as_deep_as_a_frame_allows_end_no_worker() {
    let victim = Victim::new(
        &[(
            "rules.yaml",
            r#"events: { nested.changed: { effects: [ { delete: "nested:{id}" } ] } }"#,
        )],
        &[],
    )
    .await;
    let address = rabbitmq().await.addr();
    for (kind, levels) in [
        (b'A', 200),
        (b'A', 3_000),
        (b'F', 3_000),
        (b'A', (FRAME_BYTES - 200) / 5),
        (b'F', (FRAME_BYTES - 200) / 7),
    ] {
        let name = format!("{levels} levels of {}", kind as char);
        victim.stage.set("nested:7", "old").await;
        // One event is applied, and one becomes a dead letter with the same headers.
        for (routing_key, body) in
            [("nested.changed", &b"{\"id\":7}"[..]), ("innocent.changed", b"not JSON")]
        {
            Raw::connect(&address)
                .await
                .publish(&victim.stage.exchange, routing_key, &nested(kind, levels), body)
                .await;
            victim.passes_harmless(&name).await;
        }
        assert!(!victim.stage.exists("nested:7").await, "{name}: the event is applied");
    }
    commands_end(&victim).await;
    victim.survived().await;
}

/// Returns messages whose short texts are not UTF-8, with the name of the fault.
fn texts_that_are_not_utf_8() -> Vec<(&'static str, &'static [u8], Vec<u8>)> {
    const BAD: &[u8] = b"\xff\xc3";
    let property = |bit: u32| [&(1_u16 << bit).to_be_bytes()[..], &short(BAD)].concat();
    let headers = |headers: &[u8]| [&(1_u16 << 13).to_be_bytes()[..], &long(headers)].concat();
    let member = [&short(BAD)[..], b"t\x01"].concat();
    let mut rows: Vec<(&str, &[u8], Vec<u8>)> = [
        ("the content type", 15),
        ("the content encoding", 14),
        ("the correlation id", 10),
        ("the message id", 7),
        ("the app id", 3),
        ("the cluster id", 2),
    ]
    .map(|(what, bit)| (what, &b"bytes.changed"[..], property(bit)))
    .into();
    rows.push(("a header's name", b"bytes.changed", headers(&member)));
    let within = [&short("t")[..], b"F", &long(&member)].concat();
    rows.push(("the name of a header's member", b"bytes.changed", headers(&within)));
    rows.push(("the routing key", b"bytes.\xff\xc3", vec![0, 0]));
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn short_texts_that_are_not_utf_8_end_no_session() {
    let victim = Victim::new(
        &[("rules.yaml", r#"events: { "bytes.*": { effects: [ { delete: "bytes:{id}" } ] } }"#)],
        &[],
    )
    .await;
    let address = rabbitmq().await.addr();
    for (what, routing_key, properties) in texts_that_are_not_utf_8() {
        victim.stage.set("bytes:7", "old").await;
        // One event is applied, and one becomes a dead letter with the same texts.
        for body in [&b"{\"id\":7}"[..], b"not JSON"] {
            Raw::connect(&address)
                .await
                .publish_with(&victim.stage.exchange, routing_key, &properties, body)
                .await;
            victim.passes_harmless(what).await;
        }
        assert!(!victim.stage.exists("bytes:7").await, "{what}: the event is applied");
    }
    commands_end(&victim).await;
    victim.survived().await;
}

/// Checks that the commands that read the dead letters and the history end.
async fn commands_end(victim: &Victim) {
    for command in [
        &["dlq", "list", "--json"][..],
        &["dlq", "show", "--json"],
        &["replay", "--since", "1h", "--dry-run"],
    ] {
        let mut unstale = tokio::process::Command::new(env!("CARGO_BIN_EXE_unstale"));
        let settings = victim.stage.broker_settings();
        let redis_url = victim.stage.redis.url();
        unstale
            .args(command)
            .envs(settings)
            .env("UNSTALE_REDIS_URL", redis_url)
            .env("UNSTALE_SCHEMAS", victim.stage.schemas.path());
        let ended = unstale.output().await.expect("unstale runs");
        assert!(ended.status.code().is_some_and(|code| code < 2), "{command:?}: {ended:?}");
    }
}
