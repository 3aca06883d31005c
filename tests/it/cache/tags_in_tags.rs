//! A tag's set as the member of another tag: an application may add it, and the first tag must not
//! forget its keys for that.

use redis::AsyncCommands;
use redis::aio::ConnectionLike;
use tokio_util::sync::CancellationToken;
use unstale::cache::Cache;
use unstale::registry::Action;

use super::{Names, apply, cache, effect};
use crate::support;

/// Invalidates tags of all sizes with such a member, in a batch and by themselves.
pub(crate) async fn tags_stay<C: ConnectionLike + Send + Sync>(cache: &Cache, redis: &mut C) {
    let names = Names::new();
    let prices = format!("cache_tag:{}", names.of("prices"));
    let _: () = redis.sadd(&prices, names.of("price")).await.unwrap();
    for size in [0, 3, 1_200] {
        for is_alone in [false, true] {
            let tag = names.of(&format!("{size}{is_alone}"));
            let set = format!("cache_tag:{tag}");
            let keys: Vec<String> = (0..size).map(|n| format!("{tag}:{n}")).collect();
            for key in &keys {
                let _: () = redis.set(key, "old").await.unwrap();
            }
            let _: () = redis
                .sadd(&set, [&keys[..], std::slice::from_ref(&prices)].concat())
                .await
                .unwrap();
            if is_alone {
                cache.invalidate_tag(&tag).await.unwrap();
            } else {
                apply(cache, &[effect(0, &tag, Action::InvalidateTag)]).await;
            }
            cache.drain_tag(&tag, &CancellationToken::new(), |_, _| {}).await.unwrap();
            assert!(redis.exists::<_, bool>(&prices).await.unwrap(), "deleted by {tag}");
            for key in keys.iter().chain([&set]) {
                assert!(!redis.exists::<_, bool>(key).await.unwrap(), "{key} is left");
            }
        }
    }
}

#[tokio::test]
async fn a_member_of_a_tag_is_never_the_set_of_a_tag() {
    let server = support::redis().await;
    let cache = cache(&server.url(), "tags in tags").await;
    tags_stay(&cache, &mut server.connection().await).await;
}
