//! Support for integration tests: real servers on private ports, a proxy that injects faults, and
//! the real worker.
//!
//! In reading order:
//! - Processes: `guard`, `port`, `wait`, `limits`, `clock`.
//! - Servers: `programs`, `servers`, `redis`, `sentinels`, `redis_cluster`, `rabbitmq`,
//!   `amqp10`, `proxy`.
//! - The program under test: `worker`.
//!
//! When the owner of a server is dropped, the server ends and its folder is removed. The same
//! happens when the test process dies in any way (see [`guard`]). All tests of one process share
//! `redis()` and `rabbitmq()`, and keep apart by [`unique`] names. A test that kills, restarts or
//! fills a server starts its own. There are no mocks.
#![allow(dead_code, unused_imports, reason = "each test file uses a part")]

pub(crate) mod amqp10;
pub(crate) mod clock;
pub(crate) mod guard;
#[cfg(target_os = "linux")]
pub(crate) mod limits;
pub(crate) mod port;
pub(crate) mod programs;
pub(crate) mod proxy;
pub(crate) mod rabbitmq;
pub(crate) mod redis;
pub(crate) mod redis_cluster;
pub(crate) mod sentinels;
pub(crate) mod servers;
pub(crate) mod wait;
pub(crate) mod worker;

use tokio::sync::OnceCell;

pub(crate) use proxy::{Flow, Proxy, Tap, Way};
pub(crate) use rabbitmq::RabbitMq;
pub(crate) use redis::Redis;
pub(crate) use redis_cluster::RedisCluster;
pub(crate) use sentinels::Sentinels;
pub(crate) use servers::servers;
pub(crate) use wait::{wait_for, wait_until};
pub(crate) use worker::Worker;

/// Returns the Redis that the tests of this process share.
pub(crate) async fn redis() -> &'static Redis {
    static SHARED: OnceCell<Redis> = OnceCell::const_new();
    SHARED.get_or_init(Redis::start).await
}

/// Returns the Redis Cluster that the tests of this process share. No test kills its nodes, and
/// each test returns the slots that it moves.
pub(crate) async fn redis_cluster() -> &'static RedisCluster {
    static SHARED: OnceCell<RedisCluster> = OnceCell::const_new();
    SHARED.get_or_init(RedisCluster::start).await
}

/// Returns the RabbitMQ node that the tests of this process share. The first caller waits some
/// seconds for it.
pub(crate) async fn rabbitmq() -> &'static RabbitMq {
    static SHARED: OnceCell<RabbitMq> = OnceCell::const_new();
    SHARED.get_or_init(RabbitMq::start).await
}

/// Returns a name that no other test uses, for queues, exchanges and key prefixes on the shared
/// servers.
pub(crate) fn unique(what: &str) -> String {
    format!("{what}-{:08x}{:08x}", std::process::id(), fastrand::u32(..))
}

/// Returns true in `make soak`. Tests with a small and a full size then take the full one, which
/// runs for minutes or longer.
pub(crate) fn full_runs() -> bool {
    std::env::var_os("UNSTALE_FULL_RUNS").is_some_and(|value| value == "1")
}
