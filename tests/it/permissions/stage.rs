//! Names and users of one test, and what it does as them.

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, ExchangeKind};
use redis::AsyncCommands;

use super::{documented_acl, documented_permissions};
use crate::support::{self, RabbitMq, Redis, Worker, unique, wait_until};

pub(super) const SOON: Duration = Duration::from_secs(30);

const RULES: &str = r#"
defaults: { key_prefix: "shop:", ttl: 1h }
loaders: { catalogue: { url: "{vars.CATALOGUE}" } }
events:
  all.verbs:
    effects:
      - delete: "deleted"
      - invalidate_tags: ["small", "big"]
      - bump_version: "version"
      - expire: "expiring"
        ttl: 30s
      - write: "written"
        value: "{data}"
        tags: ["written"]
      - warm: "page"
        from: "catalogue:/page"
        tags: ["pages"]
  loader.broken:
    effects: [ { warm: "broken", from: "catalogue:/broken" } ]
  foreign.key:
    effects: [ { delete: "key", prefix: "other:" } ]
"#;

/// Names and users of one test on the shared broker, and a Redis of its own.
pub(super) struct Case {
    pub(super) broker: &'static RabbitMq,
    pub(super) redis: Redis,
    pub(super) user: String,
    pub(super) exchange: String,
    pub(super) queue: String,
    pub(super) schemas: tempfile::TempDir,
    pub(super) catalogue: String,
}

impl Case {
    pub(super) async fn new() -> Self {
        let broker = support::rabbitmq().await;
        let schemas = tempfile::tempdir().unwrap();
        std::fs::write(schemas.path().join("shop.yaml"), RULES).unwrap();
        let case = Self {
            broker,
            redis: Redis::start().await,
            user: unique("worker"),
            exchange: unique("events"),
            queue: unique("queue"),
            schemas,
            catalogue: catalogue().await,
        };
        broker.add_stranger(&case.user, "secret").await;
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg("unstale").arg("reset").arg(documented_acl("secret", "shop:"));
        command.exec_async(&mut case.redis.connection().await).await.unwrap();
        case
    }

    /// Takes names that no object has, so that earlier declarations do not count.
    pub(super) fn take_new_names(&mut self) {
        (self.exchange, self.queue) = (unique("events"), unique("queue"));
    }

    /// Returns a documented expression with this case's names instead of the default ones.
    pub(super) fn named(&self, expression: &str) -> String {
        expression.replace("unstale", &self.queue).replace("events", &self.exchange)
    }

    pub(super) async fn permit(&self, user: &str, permissions: [&str; 3]) {
        let [configure, write, read] = permissions.map(|expression| self.named(expression));
        self.broker.permit(user, "/", [&configure, &write, &read]).await;
    }

    /// Starts a worker as the case's own user, which has only the permitted rights.
    pub(super) fn start(&self, declare: &str) -> Worker {
        self.start_at(&self.broker.url_as(&self.user, "secret", "/"), declare)
    }

    pub(super) fn start_at(&self, amqp_url: &str, declare: &str) -> Worker {
        Worker::start(&[
            ("UNSTALE_AMQP_URL", amqp_url),
            ("UNSTALE_REDIS_URL", &format!("redis://unstale:secret@{}/0", self.redis.addr())),
            ("UNSTALE_SCHEMAS", self.schemas.path().to_str().unwrap()),
            ("UNSTALE_EXCHANGE", &self.exchange),
            ("UNSTALE_QUEUE", &self.queue),
            ("UNSTALE_DECLARE", declare),
            ("UNSTALE_RETRY_DELAYS", "100ms,200ms"),
            ("UNSTALE_VAR_CATALOGUE", &self.catalogue),
        ])
    }

    pub(super) async fn declare_exchange(&self) {
        let channel = self.broker.connection().await.create_channel().await.unwrap();
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        channel
            .exchange_declare(
                self.exchange.as_str().into(),
                ExchangeKind::Topic,
                options,
                FieldTable::default(),
            )
            .await
            .unwrap();
    }

    /// Runs a worker with all permissions until it has declared everything.
    pub(super) async fn declare_everything(&self) {
        let mut worker = self.start_at(&self.broker.url(), "all");
        worker.wait_ready().await;
        assert!(worker.terminate().await.success());
    }

    /// Returns the URL of a publisher with the documented permissions.
    pub(super) async fn publisher_url(&self) -> String {
        let user = unique("publisher");
        self.broker.add_stranger(&user, "secret").await;
        self.permit(&user, documented_permissions("# a publisher")).await;
        self.broker.url_as(&user, "secret", "/")
    }

    /// Opens a channel of the publisher.
    pub(super) async fn publisher(&self) -> Channel {
        let url = self.publisher_url().await;
        let connection =
            lapin::Connection::connect(&url, lapin::ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        channel
    }

    pub(super) async fn publish(&self, channel: &Channel, routing_key: &str, body: &str) {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let sent = channel.basic_publish(
            self.exchange.as_str().into(),
            routing_key.into(),
            options,
            body.as_bytes(),
            BasicProperties::default(),
        );
        let confirm = sent.await.unwrap().await.unwrap();
        assert!(matches!(confirm, Confirmation::Ack(None)), "{routing_key}: {confirm:?}");
    }

    /// Runs `unstale publish` with a publisher's permissions.
    pub(super) async fn publish_by_command(&self, event_type: &str) {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_unstale"));
        command.args(["publish", event_type, "{}"]).env_clear();
        command
            .env("UNSTALE_AMQP_URL", self.publisher_url().await)
            .env("UNSTALE_EXCHANGE", &self.exchange);
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub(super) async fn depth(&self, suffix: &str) -> u32 {
        let channel = self.broker.connection().await.create_channel().await.unwrap();
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = format!("{}{suffix}", self.queue);
        channel
            .queue_declare(queue.into(), options, FieldTable::default())
            .await
            .unwrap()
            .message_count()
    }

    /// Uses every verb, both lanes, the retry schedule and the dead-letter queue.
    pub(super) async fn do_everything(&self, worker: &Worker) {
        let mut redis = self.redis.connection().await;
        let members: Vec<String> = (0..600).map(|n| format!("shop:member:{n}")).collect();
        let _: () = redis.sadd("cache_tag:big", &members).await.unwrap();
        let _: () = redis.sadd("cache_tag:small", "shop:listed").await.unwrap();
        for key in ["shop:deleted", "shop:listed", "shop:member:599", "shop:expiring", "shop:page"]
        {
            let _: () = redis.set(key, "old").await.unwrap();
        }
        let publisher = self.publisher().await;
        self.publish(&publisher, "all.verbs", r#"{"n":1}"#).await;
        self.publish(&publisher, "all.verbs", "not JSON").await;
        self.publish(&publisher, "loader.broken", "{}").await;
        self.publish(&publisher, "foreign.key", "{}").await;

        for key in
            ["shop:deleted", "shop:listed", "shop:member:599", "cache_tag:small", "cache_tag:big"]
        {
            wait_until(SOON, &format!("{key} is gone"), async || {
                let exists: bool = self.redis.connection().await.exists(key).await.unwrap();
                !exists
            })
            .await;
        }
        for (key, value) in
            [("shop:version", "2"), ("shop:written", r#"{"n":1}"#), ("shop:page", "fresh")]
        {
            wait_until(SOON, &format!("{key} is {value}"), async || {
                let found: Option<String> = self.redis.connection().await.get(key).await.unwrap();
                found.as_deref() == Some(value)
            })
            .await;
        }
        let ttl: i64 = redis.ttl("shop:expiring").await.unwrap();
        assert!((1..=30).contains(&ttl), "{ttl}");
        wait_until(SOON, "three dead letters", async || self.depth(".dead").await == 3).await;
        // A dead letter is counted once it is confirmed, a moment after it is visible.
        for reason in ["malformed", "attempts_exhausted", "redis_refused"] {
            wait_until(SOON, &format!("a dead letter is counted as {reason}"), async || {
                (worker.metrics().await.sum("unstale_dead_total", &[("reason", reason)]) - 1.0)
                    .abs()
                    < 0.1
            })
            .await;
        }
    }

    /// Runs another command of the program to its end, as that user. Returns code, stdout and
    /// stderr.
    pub(super) async fn run(&self, user: &str, args: &[&str]) -> (i32, String, String) {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_unstale"));
        command.args(args).env_clear().stdin(std::process::Stdio::null());
        command.env("UNSTALE_AMQP_URL", self.broker.url_as(user, "secret", "/"));
        command.env("UNSTALE_REDIS_URL", format!("redis://unstale:secret@{}/0", self.redis.addr()));
        command
            .env("UNSTALE_SCHEMAS", self.schemas.path())
            .env("UNSTALE_VAR_CATALOGUE", &self.catalogue);
        command.env("UNSTALE_EXCHANGE", &self.exchange).env("UNSTALE_QUEUE", &self.queue);
        command.env("UNSTALE_RETRY_DELAYS", "100ms,200ms").env("UNSTALE_LOG", "error");
        let output = command.output().await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// Checks that the worker ends with 69 and names the missing permission.
    pub(super) async fn assert_refused(&self, declare: &str, permissions: [&str; 3], named: &str) {
        self.permit(&self.user, permissions).await;
        let mut worker = self.start(declare);
        let status = worker.wait_exit(SOON).await;
        let told = worker.stderr();
        assert_eq!(status.code(), Some(69), "with {permissions:?}:\n{told}");
        let named = self.named(named);
        assert!(
            told.contains("ACCESS_REFUSED") && told.contains(&named),
            "with {permissions:?} {named} is not named:\n{told}"
        );
        assert!(told.contains(ADVICE), "{told}");
    }
}

/// Advice in every refusal of a permission: the page that lists the permissions.
pub(super) const ADVICE: &str = "docs/reference/rabbitmq-permissions.md";

pub(super) async fn catalogue() -> String {
    let app = Router::new()
        .route("/page", get(|| async { "fresh" }))
        .route("/broken", get(|| async { axum::http::StatusCode::SERVICE_UNAVAILABLE }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}
