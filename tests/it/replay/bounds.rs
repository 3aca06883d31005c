//! `unstale replay`: bounded memory and safe output for any contents of the history.

use std::ops::Range;
use std::process::{Command, Stdio};

use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};

use super::{command, declare, run, wait_recorded};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::full_runs;

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

/// Publishes large bodies to the history alone, and waits until the last one can be read. It sends
/// many at once, so that they share chunks.
pub(crate) async fn record_large(
    stage: &Stage,
    ids: Range<u32>,
    body_bytes: usize,
    at_once: usize,
) {
    declare(stage).await;
    // The main queue would only take room.
    let channel = stage.new_channel().await;
    channel
        .queue_unbind(
            stage.queue.as_str().into(),
            stage.exchange.as_str().into(),
            "user.updated".into(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    let padding = "x".repeat(body_bytes - 64);
    let last = ids.end - 1;
    let mut confirms = Vec::new();
    for id in ids {
        let body = format!(r#"{{"id":{id},"text":"{padding}"}}"#);
        confirms.push(
            stage
                .send(&stage.exchange, "user.updated", BasicProperties::default(), body.as_bytes())
                .await,
        );
        if confirms.len() == at_once {
            for confirm in confirms.drain(..) {
                confirm.await.unwrap();
            }
        }
    }
    for confirm in confirms {
        confirm.await.unwrap();
    }
    wait_readable(stage, last).await;
}

/// Waits until the history shows the event of that id, which is the last one. Offsets do not say
/// how many messages there are: the stream takes one for itself at each segment of 500 MB.
async fn wait_readable(stage: &Stage, id: u32) {
    let channel = stage.new_channel().await;
    channel.basic_qos(u16::MAX, BasicQosOptions::default()).await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-stream-offset".into(), AMQPValue::LongString("last".into()));
    let queue = format!("{}.history", stage.queue);
    let mut consumer = channel
        .basic_consume(queue.as_str().into(), "".into(), BasicConsumeOptions::default(), arguments)
        .await
        .unwrap();
    let begins = format!(r#"{{"id":{id},"#);
    while !tokio::time::timeout(SOON, consumer.next())
        .await
        .expect("it comes")
        .unwrap()
        .unwrap()
        .data
        .starts_with(begins.as_bytes())
    {}
    channel.close(200, "".into()).await.unwrap();
}

/// The same command, with that much memory for data.
fn limited(command: &Command, mib: u32) -> Command {
    let mut limited = Command::new("sh");
    limited
        .args(["-c", &format!("ulimit -d {}; exec \"$0\" \"$@\"", mib * 1024)])
        .arg(command.get_program())
        .args(command.get_args());
    limited.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    limited.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    limited
}

#[tokio::test(flavor = "multi_thread")]
async fn many_large_bodies_are_replayed_in_little_memory() {
    let count: u32 = if full_runs() { 10_000 } else { 300 };
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    record_large(&stage, 0..count, 1 << 20, 100).await;
    stage.set("user:7", "old").await;
    let json =
        run(limited(&command(&stage, &["--since", "1h", "--json"]), 200)).await.clean().json();
    assert_eq!((&json["events"], &json["missing"]), (&count.into(), &0.into()), "{json}");
    assert!(!stage.exists("user:7").await);
}

/// Values that rules write are kept until they are applied, and may be large.
#[tokio::test(flavor = "multi_thread")]
async fn large_values_are_applied_before_they_fill_the_memory() {
    const COUNT: u32 = 500;
    const NOTES: &str = r##"
defaults: { ttl: 1h }
events: { user.updated: { version: "{rev}", effects: [ { write: "note:{id}", value: "{text}", encoding: raw } ] } }
"##;
    let stage = Stage::new(&[("notes.yaml", NOTES)]).await;
    declare(&stage).await;
    let channel = stage.new_channel().await;
    channel
        .queue_unbind(
            stage.queue.as_str().into(),
            stage.exchange.as_str().into(),
            "user.updated".into(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    let text = "x".repeat(900_000);
    for id in 0..COUNT {
        let body = format!(r#"{{"id":{id},"rev":1,"text":"{text}"}}"#);
        stage
            .send(&stage.exchange, "user.updated", BasicProperties::default(), body.as_bytes())
            .await
            .await
            .unwrap();
    }
    wait_recorded(&stage, COUNT.into()).await;
    let json =
        run(limited(&command(&stage, &["--since", "1h", "--json"]), 300)).await.clean().json();
    assert_eq!((&json["events"], &json["sent"]), (&COUNT.into(), &COUNT.into()), "{json}");
}

/// The broker's own words: it ends the connection wherever it is to send something that is no AMQP
/// 1.0.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_cannot_read_is_left_out_and_said() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    stage.publish("user.updated", r#"{"id":1}"#).await;
    wait_recorded(&stage, 1).await;
    let write = format!(
        "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{}.history\">>)), \
         #{{leader_pid := Pid}} = amqqueue:get_type_state(Q), [osiris:write(Pid, undefined, N, <<\"no AMQP 1.0\">>) || N <- lists:seq(1, 2)], ok.",
        stage.queue
    );
    crate::support::rabbitmq().await.eval(&write).await;
    for (id, key) in [(1, "user:1"), (2, "user:2")] {
        stage.set(key, "old").await;
        if id == 2 {
            stage.publish("user.updated", r#"{"id":2}"#).await;
        }
    }
    let json = tokio::time::timeout(SOON * 2, async {
        loop {
            let replayed = run(command(&stage, &["--since", "1h", "--json"])).await;
            let json = replayed.json();
            // A stream shows messages a moment after their confirm.
            if json["events"] == 2 {
                assert_eq!(replayed.code, 1, "something was left out: {}", replayed.err);
                assert!(
                    replayed.err.contains("RabbitMQ cannot read offset:1 to offset:2"),
                    "{}",
                    replayed.err
                );
                return json;
            }
        }
    });
    let json = json.await.expect("it gets behind them");
    assert_eq!(
        (&json["missing"], &json["unreadable"]),
        (&2.into(), &serde_json::json!([[1, 2 + 1]])),
        "{json}"
    );
    assert!(!stage.exists("user:1").await && !stage.exists("user:2").await);
}

/// Names of a payload's members come into messages.
#[tokio::test(flavor = "multi_thread")]
async fn replay_escapes_names_of_payloads_in_its_output() {
    const STRICT: &str = r#"
events:
  user.updated:
    data: { type: object, additionalProperties: { type: integer } }
    effects: [ { delete: "user:{id}" } ]
"#;
    let stage = Stage::new(&[("user.yaml", STRICT)]).await;
    declare(&stage).await;
    stage.publish("user.updated", r#"{"id":1,"\u001b[31m\nERROR forged":"x"}"#).await;
    wait_recorded(&stage, 1).await;
    let replayed = run(command(&stage, &["--since", "1h"])).await;
    assert_eq!(replayed.code, 1, "{}", replayed.err);
    assert!(replayed.err.contains("not replayed: 1"), "{}", replayed.err);
    assert!(
        !replayed.err.contains('\u{1b}')
            && !replayed.err.lines().any(|line| line.starts_with("ERROR")),
        "{:?}",
        replayed.err
    );
}
