//! Commands at which Redis closes the connection, since they exceed a limit of its own or of a
//! proxy.

use std::time::Duration;

use redis::cluster_async::ClusterConnection;

use crate::dlq::dlq;
use crate::end_to_end::catalogue::Catalogue;
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Redis, RedisCluster, Worker, rabbitmq, wait_until};

const RULES: &str = r#"
defaults: { ttl: 1h }
events:
  user.updated: { effects: [ { delete: "user:{id}" } ] }
  big.updated: { version: "{id}", effects: [ { write: "big:{id}", value: "{text}{text}" } ] }
"#;

const SOME: u32 = 20;

/// Maximum time until the event that loses connections is found, and all others are applied.
const FOUND: Duration = Duration::from_secs(60);

/// Maximum time until several such events are found, one after the other.
const ALL_FOUND: Duration = Duration::from_secs(180);

/// Makes Redis close the connection at larger values.
pub(crate) async fn limit_values(stage: &Stage, bytes: u32) {
    redis::cmd("CONFIG")
        .arg(&["SET", "proto-max-bulk-len", &bytes.to_string()])
        .exec_async(&mut stage.connection().await)
        .await
        .unwrap();
}

/// Publishes an event with a value of 1.4 MB between others.
async fn publish_big_between(stage: &Stage) {
    let text = "x".repeat(700_000);
    for id in 0..SOME {
        stage.set(&format!("user:{id}"), "old").await;
    }
    for id in 0..SOME {
        if id == SOME / 2 {
            stage.publish("big.updated", &format!(r#"{{"id":1,"text":"{text}"}}"#)).await;
        }
        stage.publish("user.updated", &format!(r#"{{"id":{id}}}"#)).await;
    }
}

async fn wait_users_gone(stage: &Stage, worker: &Worker) {
    wait_until(FOUND, "the other events are applied", async || {
        for id in 0..SOME {
            if stage.exists(&format!("user:{id}")).await {
                return false;
            }
        }
        worker.metrics().await.sum("unstale_paused", &[]) == 0.0
    })
    .await;
}

/// The event that loses the connection becomes a dead letter, and its neighbours are applied.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_at_which_redis_closes_the_connection_is_dead_lettered() {
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    limit_values(&stage, 1 << 20).await;
    publish_big_between(&stage).await;
    wait_users_gone(&stage, &worker).await;
    wait_until(SOON, "one dead letter", async || stage.ready(".dead").await == 1).await;
    let letters = stage.dead_letters(1).await;
    let error = letters[0].header("unstale-error").unwrap();
    assert!(error.contains("14000") && error.contains("proto-max-bulk-len"), "{error}");
    assert_eq!(letters[0].header("unstale-reason").as_deref(), Some("redis_refused"));
    stage.wait_settled(&[&worker]).await;
}

/// Restarts of Redis lose connections too. No event becomes a dead letter for them.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_not_blamed_for_restarts_of_redis() {
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    for round in 0..8 {
        stage.redis.restart().await;
        stage.publish("user.updated", &format!(r#"{{"id":{round}}}"#)).await;
    }
    stage.wait_settled(&[&worker]).await;
    assert_eq!(stage.ready(".dead").await, 0, "{}", worker.stderr());
}

/// A replay leaves such an event out, and names it.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_leaves_out_the_event_at_which_redis_closes_the_connection() {
    let redis = Redis::start_with(&["--proto-max-bulk-len", "1mb"]).await;
    let stage = Stage::with(&rabbitmq().await.url(), redis, &[("rules.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    publish_big_between(&stage).await;
    wait_users_gone(&stage, &worker).await;
    wait_until(SOON, "one dead letter", async || stage.ready(".dead").await == 1).await;
    stage.set("user:1", "old").await;
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_unstale"));
    command
        .args(["replay", "--since", "offset:0"])
        .env_clear()
        .envs(stage.broker_settings())
        .env("UNSTALE_REDIS_URL", stage.redis.url())
        .env("UNSTALE_SCHEMAS", stage.schemas.path());
    let output = tokio::time::timeout(FOUND, command.output()).await.expect("it ends").unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("the first at offset:10"), "{text}");
    assert!(!stage.exists("user:1").await, "{text}");
}

/// Maximum time until a key with a TTL of 100 ms has expired.
const EXPIRED: Duration = Duration::from_secs(2);

/// One event for each way in which a value reaches a key, and one with all other verbs beside it.
const EACH_VERB: &str = r#"
defaults: { ttl: 1h }
loaders: { catalogue: { url: "{vars.CATALOGUE_URL}", timeout: 30s, max_bytes: 4MiB } }
events:
  plain.updated: { effects: [ { write: "big:plain", value: "{text}{text}" } ] }
  tagged.updated: { effects: [ { write: "big:tagged", value: "{text}{text}", tags: [t] } ] }
  versioned.updated: { version: "{rev}", effects: [ { write: "big:versioned", value: "{text}{text}" } ] }
  both.updated: { version: "{rev}", effects: [ { write: "big:both", value: "{text}{text}", tags: [t] } ] }
  served.changed: { effects: [ { warm: "big:served", from: "catalogue:/7", stale: serve } ] }
  dropped.changed: { effects: [ { warm: "big:dropped", from: "catalogue:/7" } ] }
  mixed.updated:
    version: "{rev}"
    effects:
      - delete: "page:1"
      - write: "big:mixed"
        value: "{text}{text}"
      - write: "page:2"
        value: "new"
      - invalidate_tags: "pages"
      - bump_version: "counter"
      - expire: "page:4"
        ttl: 100ms
"#;

/// Keys of values that Redis does not take, and of others that the events remove.
const OLD: [&str; 11] = [
    "big:plain",
    "big:tagged",
    "big:versioned",
    "big:both",
    "big:served",
    "big:dropped",
    "big:mixed",
    "page:1",
    "page:2",
    "page:3",
    "page:4",
];

/// A worker with a Redis that takes no values above 1 MiB, and an application's connection.
struct Limited {
    stage: Stage,
    worker: Worker,
    catalogue: Catalogue,
    cluster: Option<(RedisCluster, ClusterConnection)>,
}

impl Limited {
    async fn new(is_cluster: bool) -> Self {
        let stage = Stage::new(&[("rules.yaml", EACH_VERB)]).await;
        let catalogue = Catalogue::open(0).await;
        let mut settings = vec![("UNSTALE_VAR_CATALOGUE_URL", catalogue.url.clone())];
        let mut cluster = None;
        if is_cluster {
            let servers = RedisCluster::start().await;
            settings.push(("UNSTALE_REDIS_MODE", "cluster".to_owned()));
            settings.push(("UNSTALE_REDIS_URL", servers.urls()));
            let client = servers.client().await;
            cluster = Some((servers, client));
        }
        let settings: Vec<(&str, &str)> =
            settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let worker = stage.worker(&settings).await;
        let limited = Self { stage, worker, catalogue, cluster };
        limited.limit("1048576").await;
        limited
    }

    async fn limit(&self, bytes: &str) {
        let command = ["CONFIG", "SET", "proto-max-bulk-len", bytes];
        match &self.cluster {
            None => redis::cmd(command[0])
                .arg(&command[1..])
                .exec_async(&mut self.stage.connection().await)
                .await
                .unwrap(),
            Some((servers, _)) => {
                for node in 0..servers.nodes.len() {
                    servers.ask::<()>(node, &command).await;
                }
            }
        }
    }

    async fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let mut cmd = redis::cmd(command[0]);
        cmd.arg(&command[1..]);
        match &self.cluster {
            None => cmd.query_async(&mut self.stage.connection().await).await.unwrap(),
            Some((_, client)) => cmd.query_async(&mut client.clone()).await.unwrap(),
        }
    }

    /// Returns the keys that still have the value `old`.
    async fn old(&self) -> Vec<&'static str> {
        let mut old = Vec::new();
        for key in OLD {
            if self.ask::<Option<String>>(&["GET", key]).await.as_deref() == Some("old") {
                old.push(key);
            }
        }
        old
    }

    /// Waits until no key has the value `old`. One of them expires after a moment.
    async fn wait_nothing_old(&self) {
        wait_until(EXPIRED, "no old value is left", async || self.old().await.is_empty()).await;
    }

    async fn seed(&self) {
        self.ask::<()>(&["SET", "page:2", "old"]).await;
        self.seed_again().await;
    }

    /// Seeds all keys that an event removes each time that it is applied.
    async fn seed_again(&self) {
        for key in OLD.into_iter().filter(|key| *key != "page:2") {
            self.ask::<()>(&["SET", key, "old"]).await;
        }
        self.ask::<()>(&["SADD", "cache_tag:pages", "page:3"]).await;
    }

    /// Removes the checkpoints, which looks like a loss of all writes.
    async fn lose_checkpoints(&self) {
        match &self.cluster {
            None => {
                let marks = format!("unstale:mark:{}", self.stage.queue);
                self.ask::<()>(&["DEL", &marks]).await;
            }
            Some((servers, _)) => {
                for node in 0..3 {
                    for mark in servers.ask::<Vec<String>>(node, &["KEYS", "unstale:mark:*"]).await
                    {
                        servers.ask::<()>(node, &["DEL", &mark]).await;
                    }
                }
            }
        }
    }

    /// Runs `unstale replay` over the whole history. Returns its exit code, and what it reports.
    async fn replay(&self) -> (Option<i32>, String) {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_unstale"));
        command
            .args(["replay", "--since", "offset:0"])
            .env_clear()
            .envs(self.stage.broker_settings())
            .env("UNSTALE_VAR_CATALOGUE_URL", &self.catalogue.url)
            .env("UNSTALE_REDIS_URL", self.stage.redis.url())
            .env("UNSTALE_SCHEMAS", self.stage.schemas.path());
        if let Some((servers, _)) = &self.cluster {
            command.env("UNSTALE_REDIS_MODE", "cluster").env("UNSTALE_REDIS_URL", servers.urls());
        }
        let output =
            tokio::time::timeout(ALL_FOUND, command.output()).await.expect("it ends").unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }

    async fn publish_all(&self) {
        let text = "x".repeat(700_000);
        self.catalogue.set("7", &"x".repeat(1_400_000));
        for event in ["plain", "tagged", "versioned", "both", "mixed"] {
            let body = format!(r#"{{"rev":5,"text":"{text}"}}"#);
            self.stage.publish(&format!("{event}.updated"), &body).await;
        }
        for event in ["served", "dropped"] {
            self.stage.publish(&format!("{event}.changed"), "{}").await;
        }
    }
}

/// Each such event becomes a dead letter, leaves no old value, and does all else that it asks for.
/// The letters take effect once Redis takes the values.
async fn values_that_redis_does_not_take(is_cluster: bool) {
    let limited = Limited::new(is_cluster).await;
    limited.seed().await;
    limited.publish_all().await;
    let stage = &limited.stage;
    wait_until(ALL_FOUND, "seven dead letters", async || stage.ready(".dead").await == 7).await;
    stage.wait_settled(&[&limited.worker]).await;
    limited.wait_nothing_old().await;
    // A number may be skipped.
    assert!(limited.ask::<u32>(&["GET", "counter"]).await >= 2);
    let new: Option<String> = limited.ask(&["GET", "page:2"]).await;
    assert_eq!(new.as_deref(), Some(r#""new""#));
    let (_, shown, err) = dlq(&limited.stage, &["list", "--json"]).await;
    assert_eq!(shown.matches(r#""reason":"redis_refused""#).count(), 7, "{shown}{err}");

    limited.seed_again().await;
    limited.lose_checkpoints().await;
    wait_until(ALL_FOUND, "the heal ends", async || {
        limited.worker.metrics().await.sum("unstale_heals_total", &[]) == 1.0
    })
    .await;
    limited.wait_nothing_old().await;

    limited.seed_again().await;
    let (code, err) = limited.replay().await;
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("the key is deleted instead"), "{err}");
    limited.wait_nothing_old().await;

    limited.limit("536870912").await;
    let counter: u64 = limited.ask(&["GET", "counter"]).await;
    let (code, _, err) = dlq(&limited.stage, &["replay"]).await;
    assert!(code == 0 && err.contains("replayed 7 dead letters"), "{err}");
    limited.stage.wait_settled(&[&limited.worker]).await;
    for key in OLD.into_iter().filter(|key| key.starts_with("big:")) {
        wait_until(SOON, "the value is there", async || {
            limited.ask::<usize>(&["STRLEN", key]).await >= 1_400_000
        })
        .await;
    }
    // Only the effects of the dead letters are applied. In a cluster, a heal beside them may apply
    // the whole events once more.
    let after: u64 = limited.ask(&["GET", "counter"]).await;
    assert!(after == counter || is_cluster && after > counter, "{counter} {after}: {shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_redis_does_not_take_leaves_no_old_one() {
    values_that_redis_does_not_take(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_a_cluster_does_not_take_leaves_no_old_one() {
    values_that_redis_does_not_take(true).await;
}
