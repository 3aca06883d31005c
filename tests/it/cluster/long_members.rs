//! As [`crate::cache::long_members`], with the members' keys on three nodes.

use unstale::cache::Cache;

use super::{cache, config};
use crate::cache::long_members::{FILLED_FOR, drains, maintenance, many_tags};
use crate::support::{self, RedisCluster};

#[tokio::test]
async fn a_cluster_reads_few_long_members_of_a_tag_at_once() {
    // A cluster of its own: other tests drain whatever tags drain.
    let cluster = RedisCluster::start().await;
    let (cache, mut redis) = (cache(&cluster, "long members").await, cluster.client().await);
    drains(&cache, &mut redis).await;
    many_tags(&cache, &mut redis).await;
}

#[tokio::test]
async fn maintenance_of_a_cluster_looks_at_few_long_members_at_once() {
    let cluster = support::redis_cluster().await;
    let cache = Cache::connect(&config(cluster), "long members looked after")
        .unwrap()
        .setting_aside_for(FILLED_FOR);
    cache.probe().await.unwrap();
    maintenance(&cache, &mut cluster.client().await).await;
}
