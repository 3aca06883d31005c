//! A single server or a cluster that a test talks to, and a client for either.

use std::ops::Deref;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::{AsyncCommands, Cmd, Pipeline, RedisFuture, Value};
use unstale::cache::Cache;
use unstale::config::RedisConfig;

use crate::cache::{Names, config};
use crate::support::{self, Redis, RedisCluster};

/// Kind of a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Single,
    Cluster,
}

/// Servers of one kind, shared with other tests or the test's own.
pub(super) enum Deployment {
    Single(Servers<Redis>),
    Cluster(Servers<RedisCluster>),
}

pub(super) enum Servers<T: 'static> {
    Shared(&'static T),
    Own(T),
}

impl<T> Deref for Servers<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Shared(servers) => servers,
            Self::Own(servers) => servers,
        }
    }
}

impl Deployment {
    pub(super) async fn shared(kind: Kind) -> Self {
        match kind {
            Kind::Single => Self::Single(Servers::Shared(support::redis().await)),
            Kind::Cluster => Self::Cluster(Servers::Shared(support::redis_cluster().await)),
        }
    }

    pub(super) async fn own(kind: Kind) -> Self {
        match kind {
            Kind::Single => Self::Single(Servers::Own(Redis::start().await)),
            Kind::Cluster => Self::Cluster(Servers::Own(RedisCluster::start().await)),
        }
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Single(_) => Kind::Single,
            Self::Cluster(_) => Kind::Cluster,
        }
    }

    pub(super) fn config(&self) -> RedisConfig {
        match self {
            Self::Single(server) => config(&server.url()),
            Self::Cluster(cluster) => crate::cluster::config(cluster),
        }
    }

    /// The settings of a worker.
    pub(super) fn settings(&self) -> [(&'static str, String); 2] {
        let (mode, url) = match self {
            Self::Single(server) => ("single", server.url()),
            Self::Cluster(cluster) => ("cluster", cluster.urls()),
        };
        [("UNSTALE_REDIS_MODE", mode.to_owned()), ("UNSTALE_REDIS_URL", url)]
    }

    /// A connected cache.
    pub(super) async fn cache(&self, queue: &str) -> Cache {
        self.cache_with(queue, |cache| cache).await
    }

    /// A connected cache with other settings.
    pub(super) async fn cache_with(&self, queue: &str, set: impl FnOnce(Cache) -> Cache) -> Cache {
        let cache = set(Cache::connect(&self.config(), queue).unwrap());
        cache.probe().await.unwrap();
        cache
    }

    pub(super) async fn client(&self) -> Client {
        match self {
            Self::Single(server) => Client::Single(server.connection().await),
            Self::Cluster(cluster) => Client::Cluster(cluster.client().await),
        }
    }

    /// Names of the test's own, a cache of one queue, and a client.
    pub(super) async fn scene(&self) -> (Names, Cache, Client) {
        let names = Names::new();
        let cache = self.cache(&names.of("q")).await;
        (names, cache, self.client().await)
    }

    /// Connections to each server that takes writes.
    pub(super) async fn servers(&self) -> Vec<MultiplexedConnection> {
        match self {
            Self::Single(server) => vec![server.connection().await],
            Self::Cluster(cluster) => {
                let mut nodes = Vec::new();
                for node in 0..3 {
                    nodes.push(cluster.connection(node).await);
                }
                nodes
            }
        }
    }

    /// Those of the names whose side keys are in their slots. A single server takes any name.
    pub(super) fn usable<'n>(&self, names: &[&'n str]) -> Vec<&'n str> {
        let is_apart = |name: &str| ["a}b", "{}{x}", "{}"].contains(&name);
        let is_usable = |name: &&&str| self.kind() == Kind::Single || !is_apart(name);
        names.iter().filter(is_usable).copied().collect()
    }
}

/// A client that knows nothing of unstale.
#[derive(Clone)]
pub(super) enum Client {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Client {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

impl Client {
    /// The text of a key.
    pub(super) async fn text(&mut self, key: &str) -> Option<String> {
        self.get(key).await.unwrap()
    }

    /// The members of a tag, in order.
    pub(super) async fn members(&mut self, tag: &str) -> Vec<String> {
        let mut members: Vec<String> = self.smembers(format!("cache_tag:{tag}")).await.unwrap();
        members.sort();
        members
    }

    /// How many of the keys exist.
    pub(super) async fn count(&mut self, keys: &[&str]) -> usize {
        let mut count = 0;
        for key in keys {
            count += usize::from(self.exists::<_, bool>(key).await.unwrap());
        }
        count
    }

    /// Sets keys, and adds all of them to a tag's set.
    pub(super) async fn fill_tag(&mut self, tag: &str, keys: &[String]) {
        for key in keys {
            let _: () = self.set(key, "old").await.unwrap();
        }
        let _: () = self.sadd(format!("cache_tag:{tag}"), keys).await.unwrap();
    }
}
