//! As [`crate::cache::foreign_content`], with keys, generations and the sequence on three nodes.

use super::cache;
use crate::cache::foreign_content::{fences, generations, leases, sequences};
use crate::support::{self, RedisCluster};

#[tokio::test]
async fn leases_generations_and_fences_of_a_cluster_may_have_any_content() {
    let cluster = support::redis_cluster().await;
    let (cache, mut redis) = (cache(cluster, "foreign content").await, cluster.client().await);
    leases(&cache, &mut redis).await;
    generations(&cache, &mut redis).await;
    fences(&cache, &mut redis).await;
}

#[tokio::test]
async fn the_sequence_of_a_cluster_may_have_any_content() {
    let cluster = RedisCluster::start().await;
    let (cache, mut redis) = (cache(&cluster, "q").await, cluster.client().await);
    sequences(&cache, &mut redis).await;
}
