//! An older write neither replaces a newer one nor revives a value that a newer event deleted. The
//! fence is in its key's slot.

use redis::AsyncCommands as _;
use unstale::registry::{Action, Effect};

use super::{cache, get, members};
use crate::cache::{HOUR, Names, apply, at, effect, write};
use crate::support;

#[tokio::test]
async fn an_older_version_is_refused_even_after_the_newer_value_is_gone() {
    let (names, cluster) = (Names::new(), support::redis_cluster().await);
    let (cache, mut redis) = (cache(cluster, &names.of("q")).await, cluster.client().await);
    let tag = names.of("t");
    for key in ["k", "{k}", "x:{u:{42}:p}"].map(|key| names.of(key)) {
        let wrote = |version: u64, tags: &[&str]| {
            at(
                ("post", &version.to_string()),
                (version, 1),
                effect(0, &key, write(&version.to_string(), HOUR, tags)),
            )
        };
        let deleted = |version: u64| {
            at(("post", &version.to_string()), (version, 1), effect(0, &key, Action::Delete))
        };
        let invalidated = effect(1, &tag, Action::InvalidateTag);
        let steps: [(Vec<Effect>, Option<&str>); 8] = [
            (vec![wrote(9, &[&tag])], Some("9")),
            (vec![wrote(8, &[])], Some("9")),
            (vec![wrote(10, &[&tag]), wrote(9, &[])], Some("10")),
            (vec![deleted(12)], None),
            (vec![wrote(11, &[&tag])], None),
            // Nobody ever sees it: its version counts all the same.
            (vec![wrote(20, &[&tag]), invalidated.clone()], None),
            (vec![wrote(19, &[&tag])], None),
            (vec![invalidated, wrote(21, &[&tag])], Some("21")),
        ];
        for (place, (effects, expected)) in steps.into_iter().enumerate() {
            assert_eq!(apply(&cache, &effects).await.unsettled, [], "{key} {place}");
            assert_eq!(get(&mut redis, &key).await.as_deref(), expected, "{key} {place}");
        }
        assert!(members(&mut redis, &tag).await.contains(&key));
    }
}

/// The writer died before the key was in its set once more, another worker had emptied that
/// meanwhile, and an invalidation found nothing in it.
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
