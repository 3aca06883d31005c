//! Documented RabbitMQ permissions, for each `UNSTALE_DECLARE`.
//!
//! The real worker does everything with them, and with a Redis user that has the documented ACL.

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
use crate::support::{self, RabbitMq, Redis, Worker, servers, unique, wait_until};

const SOON: Duration = Duration::from_secs(30);

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
struct Case {
    broker: &'static RabbitMq,
    redis: Redis,
    user: String,
    exchange: String,
    queue: String,
    schemas: tempfile::TempDir,
    catalogue: String,
}

impl Case {
    async fn new() -> Self {
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
        broker.ctl(&["add_user", &case.user, "secret"]).await;
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg("unstale").arg("reset").arg(documented_acl("secret", "shop:"));
        command.exec_async(&mut case.redis.connection().await).await.unwrap();
        case
    }

    /// Takes names that no object has, so that earlier declarations do not count.
    fn take_new_names(&mut self) {
        (self.exchange, self.queue) = (unique("events"), unique("queue"));
    }

    /// Returns a documented expression with this case's names instead of the default ones.
    fn named(&self, expression: &str) -> String {
        expression.replace("unstale", &self.queue).replace("events", &self.exchange)
    }

    async fn permit(&self, user: &str, permissions: [&str; 3]) {
        let [configure, write, read] = permissions.map(|expression| self.named(expression));
        self.broker.ctl(&["set_permissions", user, &configure, &write, &read]).await;
    }

    /// Starts a worker as the case's own user, which has only the permitted rights.
    fn start(&self, declare: &str) -> Worker {
        self.start_at(&self.broker.url_as(&self.user, "secret", "/"), declare)
    }

    fn start_at(&self, amqp_url: &str, declare: &str) -> Worker {
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

    async fn declare_exchange(&self) {
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
    async fn declare_everything(&self) {
        let mut worker = self.start_at(&self.broker.url(), "all");
        worker.wait_ready().await;
        assert!(worker.terminate().await.success());
    }

    /// Returns the URL of a publisher with the documented permissions.
    async fn publisher_url(&self) -> String {
        let user = unique("publisher");
        self.broker.ctl(&["add_user", &user, "secret"]).await;
        self.permit(&user, documented_permissions("# a publisher")).await;
        self.broker.url_as(&user, "secret", "/")
    }

    /// Opens a channel of the publisher.
    async fn publisher(&self) -> Channel {
        let url = self.publisher_url().await;
        let connection =
            lapin::Connection::connect(&url, lapin::ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        channel
    }

    async fn publish(&self, channel: &Channel, routing_key: &str, body: &str) {
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
    async fn publish_by_command(&self, event_type: &str) {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_unstale"));
        command.args(["publish", event_type, "{}"]).env_clear();
        command
            .env("UNSTALE_AMQP_URL", self.publisher_url().await)
            .env("UNSTALE_EXCHANGE", &self.exchange);
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    async fn depth(&self, suffix: &str) -> u32 {
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
    async fn do_everything(&self, worker: &Worker) {
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
    async fn run(&self, user: &str, args: &[&str]) -> (i32, String, String) {
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
    async fn assert_refused(&self, declare: &str, permissions: [&str; 3], named: &str) {
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
const ADVICE: &str = "docs/reference/rabbitmq-permissions.md";

async fn catalogue() -> String {
    let app = Router::new()
        .route("/page", get(|| async { "fresh" }))
        .route("/broken", get(|| async { axum::http::StatusCode::SERVICE_UNAVAILABLE }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn with_all_the_worker_declares_everything_and_does_everything() {
    let mut case = Case::new().await;
    let permissions = documented_permissions("# UNSTALE_DECLARE=all");
    let [configure, write, read] = permissions;

    // One step less, on a broker that has none of the objects yet.
    let without_events = documented_permissions("# UNSTALE_DECLARE=queues")[0];
    let without_default = write.replace(r"amq\.default|", "");
    let without_history = write.replace(r"(\.history)?", "");
    let without_binding = read.replace("events|", "");
    for (less, named) in [
        ([without_events, write, read], "exchange `events`"),
        ([configure, &without_default, read], "exchange 'amq.default'"),
        ([configure, &without_history, read], "queue 'unstale.history'"),
        ([configure, write, &without_binding], "exchange 'events'"),
    ] {
        assert_ne!(less, permissions);
        case.take_new_names();
        case.assert_refused("all", less, named).await;
    }

    case.take_new_names();
    case.permit(&case.user, permissions).await;
    let mut worker = case.start("all");
    worker.wait_ready().await;
    case.do_everything(&worker).await;

    // The running worker binds the keys of a changed registry.
    std::fs::write(
        case.schemas.path().join("new.yaml"),
        "events: { brand.new: { effects: [ { delete: 'shop:new' } ] } }",
    )
    .unwrap();
    let _: () = case.redis.connection().await.set("shop:new", "old").await.unwrap();
    wait_until(SOON, "the new key is bound", async || worker.stderr().contains("brand.new")).await;
    case.publish_by_command("brand.new").await;
    wait_until(SOON, "the new rule holds", async || {
        let exists: bool = case.redis.connection().await.exists("shop:new").await.unwrap();
        !exists
    })
    .await;
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_queues_the_exchange_is_somebody_elses() {
    let case = Case::new().await;
    let permissions = documented_permissions("# UNSTALE_DECLARE=queues");
    let [configure, write, read] = permissions;

    case.permit(&case.user, permissions).await;
    let mut worker = case.start("queues");
    assert_eq!(worker.wait_exit(SOON).await.code(), Some(69));
    assert!(worker.stderr().contains(&case.named("exchange `events`")), "{}", worker.stderr());

    case.declare_exchange().await;
    let without_ladder = configure.replace(r"(\..*)?", r"(\.(slow|dead|history))?");
    case.assert_refused("queues", [&without_ladder, write, read], "queue 'unstale.retry.100ms'")
        .await;
    case.permit(&case.user, permissions).await;
    let mut worker = case.start("queues");
    worker.wait_ready().await;
    case.do_everything(&worker).await;
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_none_the_worker_only_consumes_and_copies() {
    let case = Case::new().await;
    let permissions = documented_permissions("# UNSTALE_DECLARE=none:");
    let [configure, write, read] = permissions;

    case.permit(&case.user, permissions).await;
    let mut worker = case.start("none");
    assert_eq!(worker.wait_exit(SOON).await.code(), Some(69));
    for missing in [
        "exchange `events`",
        "queue `unstale`",
        "queue `unstale.retry.200ms`",
        "queue `unstale.history`",
    ] {
        assert!(
            worker.stderr().contains(&case.named(missing)),
            "{missing} is not named:\n{}",
            worker.stderr()
        );
    }

    case.declare_everything().await;
    // Nothing is declared, so the worker checks at the start what it uses later.
    let all_but = |queue: &str| {
        read.replace(r"(\..*)?", &r"(\.(slow|dead|history|retry\..*))?".replace(queue, "~"))
    };
    for (less, named) in [
        ([configure, write, &all_but("slow")], "queue 'unstale.slow'"),
        ([configure, write, "^events$"], "queue 'unstale'"),
        ([configure, "^$", read], "exchange 'amq.default'"),
    ] {
        case.assert_refused("none", less, named).await;
    }

    // Redis holds no checkpoint, so it may have gone back.
    let _: () =
        case.redis.connection().await.del(format!("unstale:mark:{}", case.queue)).await.unwrap();
    case.permit(&case.user, [configure, write, &all_but("history")]).await;
    let mut worker = case.start("none");
    // The heal is owed, and invalidation continues without it.
    worker.wait_ready().await;
    assert!(worker.stderr().contains(&case.named("unstale.history")), "{}", worker.stderr());
    assert!(worker.terminate().await.success());

    case.permit(&case.user, permissions).await;
    let mut worker = case.start("none");
    worker.wait_ready().await;
    case.do_everything(&worker).await;
    assert!(!worker.stderr().contains("cannot be looked at"), "{}", worker.stderr());
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_smallest_set_is_enough_and_a_warning_names_what_cannot_be_looked_at() {
    let case = Case::new().await;
    case.declare_everything().await;
    let permissions = documented_permissions("# UNSTALE_DECLARE=none, the smallest set");
    let [configure, write, read] = permissions;
    for (less, named) in [
        ([configure, write, &read.replace("slow|", "")], "queue 'unstale.slow'"),
        ([configure, write, "^$"], "queue 'unstale'"),
        ([configure, "^$", read], "exchange 'amq.default'"),
    ] {
        case.assert_refused("none", less, named).await;
    }
    case.permit(&case.user, permissions).await;
    let mut worker = case.start("none");
    worker.wait_ready().await;
    case.do_everything(&worker).await;
    for unseen in ["exchange `events`", "queue `unstale.dead`", "queue `unstale.retry.100ms`"] {
        let warning = format!("{} cannot be looked at", case.named(unseen));
        let warned = worker.stderr().contains(&warning);
        assert_eq!(
            warned,
            servers().a_look_needs_a_permission(),
            "{warning}:\n{}",
            worker.stderr()
        );
    }
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_user_with_less_is_refused_at_start() {
    let case = Case::new().await;
    for (less, told) in [
        ("~unstale:*", "the ACL of our user needs ~unstale:*"),
        (">secret", "refuses the credentials"),
    ] {
        let rules: Vec<String> =
            documented_acl("secret", "shop:").into_iter().filter(|rule| rule != less).collect();
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg("unstale").arg("reset").arg(rules);
        command.exec_async(&mut case.redis.connection().await).await.unwrap();
        let mut worker = case.start_at(&case.broker.url(), "all");
        assert_eq!(
            worker.wait_exit(SOON).await.code(),
            Some(69),
            "without {less}:\n{}",
            worker.stderr()
        );
        assert!(worker.stderr().contains(told), "without {less}:\n{}", worker.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_may_not_be_published_is_told_and_its_event_kept() {
    let case = Case::new().await;
    case.declare_everything().await;
    let permissions = documented_permissions("# UNSTALE_DECLARE=none:");
    let [configure, _, read] = permissions;
    case.permit(&case.user, permissions).await;
    let mut worker = case.start("none");
    worker.wait_ready().await;
    // A permission that existed at the start is removed later.
    case.permit(&case.user, [configure, "^$", read]).await;
    let publisher = case.publisher().await;
    case.publish(&publisher, "all.verbs", "not JSON").await;
    wait_until(SOON, "the refusal is told", async || {
        worker.stderr().contains("access to exchange 'amq.default'")
    })
    .await;
    worker.kill();
    wait_until(SOON, "the event is back", async || {
        case.depth("").await + case.depth(".dead").await == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_is_refused_heals_nothing_first() {
    let case = Case::new().await;
    case.declare_everything().await;
    let mut redis = case.redis.connection().await;
    let marks = format!("unstale:mark:{}", case.queue);
    let _: () = redis.del(&marks).await.unwrap();
    let _: () = redis.set("shop:deleted", "old").await.unwrap();
    let publisher = case.publisher().await;
    case.publish(&publisher, "all.verbs", r#"{"n":1}"#).await;
    let [configure, _, read] = documented_permissions("# UNSTALE_DECLARE=none:");
    case.assert_refused("none", [configure, "^$", read], "exchange 'amq.default'").await;
    let stands: bool = redis.exists("shop:deleted").await.unwrap();
    let entered: bool = redis.exists(&marks).await.unwrap();
    assert!(stands && !entered, "nothing was done in Redis");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_with_dlq_and_status_may_look_replay_and_drop() {
    let case = Case::new().await;
    let operator = unique("operator");
    case.broker.ctl(&["add_user", &operator, "secret"]).await;
    let permissions = documented_permissions("# a person with `unstale dlq`");
    let [configure, write, read] = permissions;
    case.permit(&operator, permissions).await;
    let mut worker = case.start_at(&case.broker.url(), "all");
    worker.wait_ready().await;
    wait_until(SOON, "status is healthy", async || case.run(&operator, &["status"]).await.0 == 0)
        .await;

    // A missing read permission shows on an empty queue, too.
    case.permit(&operator, [configure, write, &read.replace("dead|", "")]).await;
    for args in
        [&["dlq", "list"][..], &["dlq", "show"], &["dlq", "replay"], &["dlq", "drop", "--yes"]]
    {
        let (code, out, err) = case.run(&operator, args).await;
        assert_eq!((code, out.as_str()), (69, ""), "{args:?}: {err}");
        assert!(
            err.contains(&case.named("queue `unstale.dead`: ACCESS_REFUSED"))
                && err.contains(ADVICE),
            "{args:?}: {err}"
        );
    }
    case.permit(&operator, permissions).await;
    let (code, out, err) = case.run(&operator, &["dlq", "list"]).await;
    assert_eq!((code, out), (0, case.named("0 dead letters in `unstale.dead`\n")), "{err}");

    let publisher = case.publisher().await;
    for _ in 0..2 {
        case.publish(&publisher, "all.verbs", "not JSON").await;
    }
    wait_until(SOON, "two dead letters", async || case.depth(".dead").await == 2).await;
    let (code, out, _) = case.run(&operator, &["status"]).await;
    assert!(code == 1 && out.starts_with("1 problem:\n"), "{out}");
    let (code, out, err) = case.run(&operator, &["dlq", "show"]).await;
    assert!(code == 0 && out.contains("not JSON"), "{out}{err}");

    let without_default = write.replace(r"amq\.default|", "");
    case.permit(&operator, [configure, &without_default, read]).await;
    let (code, _, err) = case.run(&operator, &["dlq", "replay"]).await;
    assert!(code != 0 && err.contains("amq.default") && err.contains(ADVICE), "{code}: {err}");
    assert_eq!(case.depth(".dead").await, 2, "nothing is lost by it");
    case.permit(&operator, permissions).await;
    let (code, _, err) = case.run(&operator, &["dlq", "replay"]).await;
    assert!(code == 0 && err.contains("replayed 2 dead letters"), "{code}: {err}");
    wait_until(SOON, "they are dead letters again", async || case.depth(".dead").await == 2).await;
    let (code, _, err) = case.run(&operator, &["dlq", "drop", "--yes"]).await;
    assert_eq!(code, 0, "{err}");
    wait_until(SOON, "status is healthy", async || case.run(&operator, &["status"]).await.0 == 0)
        .await;

    // `status` names what it may not see.
    case.permit(&operator, [configure, write, &read.replace("|history", "")]).await;
    let (code, out, _) = case.run(&operator, &["status"]).await;
    assert!(
        code == 1 && out.contains("the user may not read the history") && out.contains(ADVICE),
        "{out}"
    );
    case.permit(&operator, [configure, "^$", read]).await;
    let (code, out, _) = case.run(&operator, &["status"]).await;
    let unseen = case.named("cannot read the queue `unstale.slow`");
    assert_eq!(
        (code == 1, out.contains(&unseen)),
        if servers().a_look_needs_a_permission() { (true, true) } else { (false, false) },
        "{out}"
    );
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_with_replay_needs_the_history_and_records_the_replay_there() {
    let case = Case::new().await;
    let replayer = unique("replayer");
    case.broker.ctl(&["add_user", &replayer, "secret"]).await;
    case.declare_everything().await;
    let publisher = case.publisher().await;
    case.publish(&publisher, "all.verbs", r#"{"n":1}"#).await;
    let [configure, write, read] = documented_permissions("# a person with `unstale replay`");
    case.permit(&replayer, [configure, write, "^$"]).await;
    let (code, _, err) = case.run(&replayer, &["replay", "--since", "1h"]).await;
    assert!(
        code == 69 && err.contains(&case.named("unstale.history")) && err.contains(ADVICE),
        "{code}: {err}"
    );
    let _: () = case.redis.connection().await.set("shop:deleted", "old").await.unwrap();
    case.permit(&replayer, [configure, "^$", read]).await;
    let (code, out, err) = case.run(&replayer, &["replay", "--since", "1h"]).await;
    let warning = "warning: the replay is not recorded in the history";
    assert!(code == 0 && err.contains(warning) && err.contains(ADVICE), "{code}: {out}{err}");
    let _: () = case.redis.connection().await.set("shop:deleted", "old").await.unwrap();
    case.permit(&replayer, [configure, write, read]).await;
    let (code, out, err) = case.run(&replayer, &["replay", "--since", "1h"]).await;
    assert!(code == 0 && !err.contains(warning), "{code}: {out}{err}");
    let exists: bool = case.redis.connection().await.exists("shop:deleted").await.unwrap();
    assert!(!exists, "{out}{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_any_permission_is_sent_to_the_page() {
    let case = Case::new().await;
    let nobody = unique("nobody");
    case.broker.ctl(&["add_user", &nobody, "secret"]).await;
    for args in
        [&["dlq", "list"][..], &["replay", "--since", "1h"], &["publish", "all.verbs", "{}"]]
    {
        let (code, _, err) = case.run(&nobody, args).await;
        assert!(code == 69 && err.contains(ADVICE), "{args:?}: {code}: {err}");
    }
    case.declare_exchange().await;
    case.permit(&nobody, ["^$"; 3]).await;
    let (code, _, err) = case.run(&nobody, &["publish", "all.verbs", "{}"]).await;
    assert!(code != 0 && err.contains("ACCESS_REFUSED") && err.contains(ADVICE), "{code}: {err}");
}
