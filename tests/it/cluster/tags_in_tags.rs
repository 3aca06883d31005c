//! The tests of [`crate::cache::tags_in_tags`], with the members on three nodes.

use super::cache;
use crate::cache::tags_in_tags::tags_stay;
use crate::support;

#[tokio::test]
async fn a_member_of_a_tag_is_never_the_set_of_a_tag_in_a_cluster() {
    let cluster = support::redis_cluster().await;
    tags_stay(&cache(cluster, "tags in tags").await, &mut cluster.client().await).await;
}
