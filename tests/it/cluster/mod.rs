//! Redis Cluster: keys, tags and leases in all slots, slots that move, primaries that die.

mod failover;
mod fences;
mod moves;
mod outages;
mod permissions;
mod readers;
mod second_deletes;
mod tag_maintenance;
pub(crate) mod traffic;
mod verbs;
mod worker;

use redis::AsyncCommands;
use redis::cluster_async::ClusterConnection;
use unstale::cache::Cache;
use unstale::config::{RedisConfig, RedisMode, SecretUrl};

use crate::support::RedisCluster;

pub(crate) fn config(cluster: &RedisCluster) -> RedisConfig {
    // Two of six: the others are found.
    let urls = cluster.nodes[1..3]
        .iter()
        .map(|node| SecretUrl::new(format!("redis://{}", node.addr()).parse().unwrap()))
        .collect();
    RedisConfig { urls, mode: RedisMode::Cluster, ..crate::cache::config("redis://h/") }
}

/// A connected cache.
pub(crate) async fn cache(cluster: &RedisCluster, queue: &str) -> Cache {
    let cache = Cache::connect(&config(cluster), queue).unwrap();
    cache.probe().await.unwrap();
    cache
}

async fn get(redis: &mut ClusterConnection, key: &str) -> Option<String> {
    redis.get(key).await.unwrap()
}

async fn members(redis: &mut ClusterConnection, tag: &str) -> Vec<String> {
    let mut members: Vec<String> = redis.smembers(format!("cache_tag:{tag}")).await.unwrap();
    members.sort();
    members
}
