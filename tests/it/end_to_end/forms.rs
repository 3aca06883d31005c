//! One event of each form, published by another program, changes exactly the keys that `unstale
//! plan` prints.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use redis::AsyncCommands;

use super::stage::{SOON, Stage};
use crate::support::wait_until;

const RULES: &str = r#"
events:
  user.updated:
    effects:
      - delete: ["user:{id}", "user:{id}:profile"]
      - delete: "email:{previous.email?}"
  db.public.users.updated:
    bind: ["db.public.users"]
    effects: [ { delete: ["row:{id}", "row:{previous.email?}"] } ]
"#;

struct Sample {
    name: &'static str,
    routing_key: &'static str,
    content_type: Option<&'static str>,
    event_type: Option<&'static str>,
    headers: &'static [(&'static str, &'static str)],
    body: &'static str,
}

const SAMPLES: [Sample; 9] = [
    Sample {
        name: "CloudEvents, binary, cloudEvents:",
        routing_key: "user.updated",
        content_type: Some("application/json"),
        event_type: None,
        headers: &[
            ("cloudEvents:specversion", "1.0"),
            ("cloudEvents:type", "user.updated"),
            ("cloudEvents:id", "1"),
            ("cloudEvents:source", "/users"),
        ],
        body: r#"{"id":1}"#,
    },
    Sample {
        name: "CloudEvents, binary, cloudEvents_",
        routing_key: "user.updated",
        content_type: None,
        event_type: None,
        headers: &[
            ("cloudEvents_specversion", "1.0"),
            ("cloudEvents_type", "user.updated"),
            ("cloudEvents_id", "1"),
            ("cloudEvents_source", "/users"),
        ],
        body: r#"{"id":2}"#,
    },
    Sample {
        name: "CloudEvents, binary, ce-",
        routing_key: "user.updated",
        content_type: None,
        event_type: None,
        headers: &[
            ("CE-SpecVersion", "1.0"),
            ("Ce-Type", "user.updated"),
            ("ce-id", "1"),
            ("ce-source", "/users"),
        ],
        body: r#"{"id":3}"#,
    },
    Sample {
        name: "CloudEvents, structured",
        routing_key: "user.updated",
        content_type: Some("application/cloudevents+json; charset=utf-8"),
        event_type: None,
        headers: &[],
        body: r#"{"specversion":"1.0","type":"user.updated","id":"1","source":"/users","data":{"id":4},"previous":{"email":"old@example.org"}}"#,
    },
    Sample {
        name: "Debezium",
        routing_key: "db.public.users",
        content_type: None,
        event_type: None,
        headers: &[],
        body: r#"{"before":{"id":5,"email":"b@example.org"},"after":{"id":5,"email":"a@example.org"},"source":{"name":"db","db":"shop","schema":"public","table":"users","lsn":7},"op":"u","ts_ms":1}"#,
    },
    Sample {
        name: "the type in our header",
        routing_key: "user.updated",
        content_type: None,
        event_type: None,
        headers: &[("unstale-event-type", "user.updated")],
        body: r#"{"id":6}"#,
    },
    Sample {
        name: "an envelope",
        routing_key: "user.updated",
        content_type: None,
        event_type: None,
        headers: &[],
        body: r#"{"type":"user.updated","data":{"id":7},"previous":{"email":"seven@example.org"}}"#,
    },
    Sample {
        name: "bare, the type as a property",
        routing_key: "db.public.users",
        content_type: None,
        event_type: Some("user.updated"),
        headers: &[],
        body: r#"{"id":8}"#,
    },
    Sample {
        name: "bare, the type as routing key",
        routing_key: "user.updated",
        content_type: None,
        event_type: None,
        headers: &[],
        body: r#"{"id":9}"#,
    },
];

/// Returns the keys that `unstale plan --json` prints.
fn planned_keys(stage: &Stage, sample: &Sample) -> BTreeSet<String> {
    let line = serde_json::json!({
        "exchange": stage.exchange,
        "routing_key": sample.routing_key,
        "headers": sample.headers.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
        "properties": {
            "content_type": sample.content_type,
            "type": sample.event_type,
        },
        "body": sample.body,
    });
    let mut plan = Command::new(env!("CARGO_BIN_EXE_unstale"))
        .args(["plan", "--json"])
        .env_clear()
        .env("UNSTALE_SCHEMAS", stage.schemas.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    plan.stdin.take().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    let output = plan.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", sample.name);
    let planned: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let effects = planned["effects"].as_array().unwrap();
    assert!(!effects.is_empty(), "{}: {planned}", sample.name);
    effects.iter().map(|effect| effect["target"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_form_changes_exactly_what_plan_prints() {
    let stage = Stage::new(&[("users.yaml", RULES)]).await;
    let _worker = stage.worker(&[]).await;
    let mut redis = stage.connection().await;
    let all: BTreeSet<String> = SAMPLES
        .iter()
        .flat_map(|sample| planned_keys(&stage, sample))
        .chain(["bystander".to_owned()])
        .collect();
    for sample in &SAMPLES {
        let planned = planned_keys(&stage, sample);
        for key in &all {
            let _: () = redis.set(key, "old").await.unwrap();
        }
        let mut headers = FieldTable::default();
        for (name, value) in sample.headers {
            headers.insert((*name).into(), AMQPValue::LongString((*value).into()));
        }
        let mut properties = BasicProperties::default().with_headers(headers);
        if let Some(content_type) = sample.content_type {
            properties = properties.with_content_type(content_type.into());
        }
        if let Some(event_type) = sample.event_type {
            properties = properties.with_type(event_type.into());
        }
        stage.publish_with(sample.routing_key, properties, sample.body.as_bytes()).await;
        wait_until(SOON, sample.name, async || {
            let left: Vec<String> = stage.connection().await.keys("*").await.unwrap();
            let left: BTreeSet<String> =
                left.into_iter().filter(|key| !key.starts_with("unstale:")).collect();
            left == all.difference(&planned).cloned().collect()
        })
        .await;
    }
    assert_eq!(stage.ready(".dead").await, 0);
}
