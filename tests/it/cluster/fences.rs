//! An older write neither replaces a newer one nor revives a value that a newer event deleted. The
//! fence is in its key's slot.

use redis::AsyncCommands as _;
use unstale::registry::Action;

use super::{cache, get};
use crate::cache::{HOUR, Names, apply, at, effect, write};
use crate::support;

/// The writer died before it added the key to its set the second time. Another worker had emptied
/// the set meanwhile, so an invalidation found no member.
#[tokio::test]
async fn a_value_outside_its_tags_set_is_deleted_by_the_repeated_event() {
    let (names, cluster) = (Names::new(), support::redis_cluster().await);
    let (cache, mut redis) = (cache(cluster, &names.of("q")).await, cluster.client().await);
    let (tag, key, untagged) = (names.of("t"), names.of("k"), names.of("u"));
    let wrote = |key: &str, tags: &[&str]| {
        at(("post", "9"), (9, 1), effect(0, key, write("9", HOUR, tags)))
    };
    let first = [wrote(&key, &[&tag]), wrote(&untagged, &[])];
    apply(&cache, &first).await;
    let _: () = redis.srem(format!("cache_tag:{tag}"), &key).await.unwrap();
    apply(&cache, &[effect(1, &tag, Action::InvalidateTag)]).await;
    assert_eq!(get(&mut redis, &key).await.as_deref(), Some("9"), "nobody could know of it");
    apply(&cache, &first).await;
    assert_eq!(get(&mut redis, &key).await, None);
    assert_eq!(
        get(&mut redis, &untagged).await.as_deref(),
        Some("9"),
        "it has no tag that could have missed it"
    );
}
