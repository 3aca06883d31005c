//! Both servers, and their preparation before, between and after measurements.

use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::{BasicPublishOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection};
use redis::aio::MultiplexedConnection;

use crate::contender::Target;
use crate::support::{RabbitMq, Redis, Worker, unique, wait_until};

/// Number of messages that are given to the connection at once.
const AT_ONCE: u64 = 500;

/// Number of keys that one command sets.
const KEYS_AT_ONCE: usize = 1_000;

/// Both servers of one run of the benchmark.
pub(crate) struct Stage {
    pub(crate) broker: RabbitMq,
    pub(crate) redis: Redis,
    pub(crate) cache: MultiplexedConnection,
    connection: Connection,
}

impl Stage {
    pub(crate) async fn start() -> Self {
        let broker = RabbitMq::start().await;
        // Setting a million keys takes longer than the default timeout of redis-rs.
        let redis = Redis::start().await;
        let config =
            redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(60)));
        let cache = redis
            .client()
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .expect("Redis takes a connection");
        let connection = broker.connection().await;
        Self { broker, redis, cache, connection }
    }

    pub(crate) async fn channel(&self) -> Channel {
        self.connection.create_channel().await.expect("the broker gives a channel")
    }

    /// Creates a registry in a folder of its own and a queue of a new name. The worker declares the
    /// queue as usual.
    pub(crate) async fn target(&self, what: &str, rules: &str) -> Target {
        self.target_with(what, rules, Vec::new()).await
    }

    /// Does the same with settings of the worker that differ from the defaults.
    pub(crate) async fn target_with(
        &self,
        what: &str,
        rules: &str,
        more: Vec<(&'static str, String)>,
    ) -> Target {
        let schemas = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(schemas.path().join("bench.yaml"), rules).expect("the folder is ours");
        let target = Target::new(self.broker.url(), self.redis.url(), unique(what), schemas, more);
        Worker::start_ready(&target.settings()).await.terminate().await;
        target
    }

    /// Publishes to the exchange of a target, as applications do.
    pub(crate) async fn publish(
        &self,
        channel: &Channel,
        target: &Target,
        routing_key: &str,
        body: &str,
    ) {
        let options = BasicPublishOptions::default();
        let exchange = target.exchange().into();
        channel
            .basic_publish(exchange, routing_key.into(), options, body.as_bytes(), persistent())
            .await
            .expect("the broker takes it");
    }

    /// Publishes events directly to a target's queue, and waits until all of them are there.
    pub(crate) async fn fill(&self, target: &Target, events: u64, body: impl Fn(u64) -> String) {
        self.begin_new_log().await;
        let channel = self.channel().await;
        let before = self.ready(target).await;
        let mut next = 0;
        while next < events {
            let end = events.min(next + AT_ONCE);
            let bodies: Vec<String> = (next..end).map(&body).collect();
            let publish = bodies.iter().map(|body| {
                let options = BasicPublishOptions::default();
                channel.basic_publish(
                    "".into(),
                    target.queue().into(),
                    options,
                    body.as_bytes(),
                    persistent(),
                )
            });
            join_all(publish)
                .await
                .into_iter()
                .for_each(|sent| drop(sent.expect("the broker takes it")));
            next = end;
        }
        wait_until(Duration::from_secs(180), "the backlog is complete", async || {
            self.ready(target).await >= before + events
        })
        .await;
        let _ = channel.close(200, "".into()).await;
        // Writes to the queue's disk that still go on belong to the publisher.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    /// Makes the log of quorum queues begin a new file.
    ///
    /// By default this happens every 512 MiB, in about every fourth fill. Some drains were then
    /// slower by a third, with any contender. Since each fill begins a new file, none is. A likely
    /// cause is that such a drain reads from disk, which was not examined.
    pub(crate) async fn begin_new_log(&self) {
        self.broker.ctl(&["eval", "ra_log_wal:force_roll_over(ra_log_wal)."]).await;
    }

    /// Returns the number of messages in a target's queue that wait for a consumer.
    pub(crate) async fn ready(&self, target: &Target) -> u64 {
        self.ready_in(target.queue()).await
    }

    pub(crate) async fn ready_in(&self, queue: &str) -> u64 {
        let channel = self.channel().await;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = channel
            .queue_declare(queue.into(), options, FieldTable::default())
            .await
            .expect("the queue is there");
        let ready = queue.message_count().into();
        let _ = channel.close(200, "".into()).await;
        ready
    }

    /// Removes all messages that a contender left in the queue, and every key.
    pub(crate) async fn clear(&self, target: &Target) {
        let channel = self.channel().await;
        // Requeued messages of an ended contender may take a moment to reach the queue.
        wait_until(Duration::from_secs(60), "the queue is empty", async || {
            let _ = channel.queue_purge(target.queue().into(), QueuePurgeOptions::default()).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            self.ready(target).await == 0
        })
        .await;
        let _ = channel.close(200, "".into()).await;
        self.flush().await;
    }

    pub(crate) async fn flush(&self) {
        self.query::<()>(redis::cmd("FLUSHALL").arg("SYNC")).await;
    }

    /// Sets keys to a value.
    pub(crate) async fn seed(&self, keys: impl Iterator<Item = String>) {
        let keys: Vec<String> = keys.collect();
        for keys in keys.chunks(KEYS_AT_ONCE) {
            let mut command = redis::cmd("MSET");
            for key in keys {
                command.arg(key).arg("a value that some reader has cached");
            }
            self.query::<()>(&command).await;
        }
    }

    /// Sets keys to a value and makes them members of a tag.
    pub(crate) async fn seed_tag(&self, tag: &str, members: impl Iterator<Item = String>) {
        let members: Vec<String> = members.collect();
        // Keys first, since a running worker removes members without keys from their sets.
        self.seed(members.iter().cloned()).await;
        for members in members.chunks(KEYS_AT_ONCE) {
            self.query::<()>(redis::cmd("SADD").arg(format!("cache_tag:{tag}")).arg(members)).await;
        }
    }

    /// Makes each key, with a value, the only member of its tag.
    pub(crate) async fn seed_small_tags(&self, tags: impl Iterator<Item = (String, String)>) {
        let tags: Vec<(String, String)> = tags.collect();
        self.seed(tags.iter().map(|(_, member)| member.clone())).await;
        for tags in tags.chunks(KEYS_AT_ONCE) {
            let mut pipeline = redis::Pipeline::with_capacity(tags.len());
            for (tag, member) in tags {
                pipeline.cmd("SADD").arg(format!("cache_tag:{tag}")).arg(member).ignore();
            }
            pipeline.query_async::<()>(&mut self.cache.clone()).await.expect("Redis answers");
        }
    }

    /// Returns the number of keys in Redis.
    pub(crate) async fn keys(&self) -> u64 {
        self.query(&redis::cmd("DBSIZE")).await
    }

    /// Returns the number of commands that Redis has processed since its start.
    ///
    /// The second number excludes `HGET` and `HSET`. Only the script of checkpoint writes calls
    /// them, after each batch.
    pub(crate) async fn commands(&self) -> (u64, u64) {
        let info: String = self.query(redis::cmd("INFO").arg("commandstats")).await;
        let calls = |line: &str| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((name.to_owned(), rest.split(',').next()?.parse::<u64>().ok()?))
        };
        let calls: Vec<(String, u64)> = info.lines().filter_map(calls).collect();
        let sum = |counts: &dyn Fn(&str) -> bool| {
            calls.iter().filter(|(name, _)| counts(name)).map(|(_, calls)| calls).sum()
        };
        (sum(&|_| true), sum(&|name| name != "hget" && name != "hset"))
    }

    pub(crate) async fn query<T: redis::FromRedisValue>(&self, command: &redis::Cmd) -> T {
        command.query_async(&mut self.cache.clone()).await.expect("Redis answers")
    }

    /// Returns the versions of both servers.
    pub(crate) async fn versions(&self) -> String {
        let info: String = self.query(redis::cmd("INFO").arg("server")).await;
        let redis = info
            .lines()
            .find_map(|line| line.strip_prefix("redis_version:"))
            .unwrap_or("?")
            .trim()
            .to_owned();
        let rabbitmq = self.broker.ctl(&["version"]).await;
        format!("RabbitMQ {}, Redis {redis}", rabbitmq.trim())
    }
}

fn persistent() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(2)
}
