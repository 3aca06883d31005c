//! Redis' clock is set ahead: what expires by it protects nothing any more. No stale value remains
//! readable, as long as a fence outlives the step.

use std::time::Duration;

use unstale::cache::{Cache, FillOutcome, Grant, new_token};
use unstale::registry::{Action, Expiry};

use super::{HOUR, apply, at, cache, effect, run, write};
use crate::support::{Redis, wait_until};

const SOON: Duration = Duration::from_secs(20);

async fn set_ahead(server: &Redis, cache: &Cache, hours: i32) {
    server.restore_at(hours, &server.snapshot().await).await;
    wait_until(SOON, "Redis answers", async || cache.probe().await.is_ok()).await;
}

/// A generation ends only after every lease that was granted before it.
#[tokio::test]
async fn no_lease_outlives_the_generation_that_voids_it() {
    for hours in [1, 3] {
        let server = Redis::start().await;
        let (cache, token) = (cache(&server.url(), "q").await, new_token());
        let longest = Duration::from_secs(360);
        let granted = cache.grant_lease("k", &token, longest).await.unwrap();
        let Grant::Granted { since } = granted else { panic!("{granted:?}") };
        apply(&cache, &[effect(0, "t", Action::InvalidateTag)]).await;
        set_ahead(&server, &cache, hours).await;
        let tags = ["t".to_owned()];
        let filled = cache.fill("k", &token, since, b"old", HOUR, &tags).await.unwrap();
        assert_eq!(filled, FillOutcome::Refused, "{hours} hours");
    }
}

/// The value has no end, and its fence one of 24 hours.
#[tokio::test]
async fn an_older_write_is_refused_after_three_hours_at_once() {
    let server = Redis::start().await;
    let cache = cache(&server.url(), "q").await;
    let version = |digits: &str, event: u64| {
        let write = effect(0, "k", write(&format!("v{digits}"), Expiry::Never, &[]));
        at(("post", digits), (event, 1), write)
    };
    apply(&cache, &[version("2", 2)]).await;
    set_ahead(&server, &cache, 3).await;
    apply(&cache, &[version("1", 1)]).await;
    assert_eq!(run::<String>(&mut server.connection().await, &["GET", "k"]).await, "v2");
}
