//! Claims: one worker loads a key, one waits for it, and the others need not load.

use std::time::Duration;

use unstale::cache::{Cache, Claim, Grant, LoadToken, new_token};
use unstale::registry::Action;

use super::deployment::Deployment;
use crate::cache::{HOUR, apply, effect, write};
use crate::support::wait_until;

super::on_both! {
    shared:
        one_worker_loads_one_waits_and_the_others_are_covered,
        a_load_of_another_kind_covers_nothing_and_the_newest_waits,
        a_waiter_is_covered_by_a_load_that_ends_before_it_asks_again,
        a_waiter_is_covered_by_a_value_newer_than_its_own_deletion,
        a_redelivered_event_is_not_covered_by_its_own_load,
        a_renewed_claim_outlives_its_ttl_and_a_void_lease_is_not_renewed;
}

const TTL: Duration = Duration::from_secs(30);

/// What is loaded, and for which event.
fn token(what: u64, event: u64) -> LoadToken {
    LoadToken::new(what, event, &new_token())
}

async fn claim(cache: &Cache, key: &str, token: &LoadToken, first: bool) -> Claim {
    cache.claim_load(key, token, TTL, first).await.unwrap()
}

async fn take_lease(cache: &Cache, key: &str, token: &LoadToken) {
    assert!(matches!(
        cache.grant_lease(key, token.as_str(), TTL).await.unwrap(),
        Grant::Granted { .. }
    ));
}

async fn one_worker_loads_one_waits_and_the_others_are_covered(on: &Deployment) {
    let (names, cache, _) = on.scene().await;
    for key in on.usable(&["k", "{k}", "a}b"]) {
        let key = names.of(key);
        let (a, b, c, d) = (token(1, 1), token(1, 2), token(1, 3), token(1, 4));
        assert_eq!(claim(&cache, &key, &a, true).await, Claim::Load);
        take_lease(&cache, &key, &a).await;
        assert_eq!(
            claim(&cache, &key, &b, true).await,
            Claim::Covered,
            "its load began after b's deletion"
        );

        apply(&cache, &[effect(0, &key, Action::Delete)]).await;
        assert_eq!(
            claim(&cache, &key, &b, true).await,
            Claim::Wait,
            "its load is void, and it may not know yet"
        );
        assert_eq!(claim(&cache, &key, &c, true).await, Claim::Covered, "b loads later");
        assert_eq!(claim(&cache, &key, &b, false).await, Claim::Wait);
        take_lease(&cache, &key, &a).await;
        assert_eq!(claim(&cache, &key, &b, false).await, Claim::Covered, "it loads anew");
        assert_eq!(claim(&cache, &key, &d, true).await, Claim::Covered);

        cache.end_load(&key, &a, None).await.unwrap();
        assert!(!cache.lease_is_held(&key).await.unwrap());
        assert_eq!(claim(&cache, &key, &d, true).await, Claim::Load, "nobody is left in its place");
        cache.end_load(&key, &d, None).await.unwrap();
    }
}

async fn a_load_of_another_kind_covers_nothing_and_the_newest_waits(on: &Deployment) {
    let (names, cache, _) = on.scene().await;
    let key = names.of("k");
    let (a, b, c) = (token(1, 1), token(2, 2), token(3, 3));
    assert_eq!(claim(&cache, &key, &a, true).await, Claim::Load);
    take_lease(&cache, &key, &a).await;
    assert_eq!(claim(&cache, &key, &b, true).await, Claim::Wait);
    assert_eq!(claim(&cache, &key, &c, true).await, Claim::Wait);
    assert_eq!(claim(&cache, &key, &b, false).await, Claim::Covered, "c came later");
    cache.end_load(&key, &a, None).await.unwrap();
    assert_eq!(claim(&cache, &key, &c, false).await, Claim::Load);
}

async fn a_waiter_is_covered_by_a_load_that_ends_before_it_asks_again(on: &Deployment) {
    let (names, cache, _) = on.scene().await;
    let key = names.of("k");
    let (a, b, c, d) = (token(1, 1), token(1, 2), token(1, 3), token(1, 4));
    assert_eq!(claim(&cache, &key, &a, true).await, Claim::Load);
    assert_eq!(claim(&cache, &key, &b, true).await, Claim::Wait);
    take_lease(&cache, &key, &a).await;
    cache.keep_load(&key, &a, TTL).await.unwrap();
    cache.end_load(&key, &a, None).await.unwrap();
    // A new claim may follow a later invalidation.
    assert_eq!(claim(&cache, &key, &c, true).await, Claim::Load);
    assert_eq!(claim(&cache, &key, &d, true).await, Claim::Wait, "what covers b says nothing of d");
    assert_eq!(claim(&cache, &key, &b, false).await, Claim::Covered);
}

/// A reader's load, which a worker waited for.
async fn a_waiter_is_covered_by_a_value_newer_than_its_own_deletion(on: &Deployment) {
    let (names, cache, _) = on.scene().await;
    let write_value =
        async |key: &str| apply(&cache, &[effect(0, key, write("v", HOUR, &[]))]).await;
    for (what, is_there, expected) in
        [(1, true, Claim::Covered), (1, false, Claim::Load), (2, true, Claim::Load)]
    {
        let key = names.of(&format!("{what}:{is_there}"));
        let (a, b) = (token(1, 1), token(what, 2));
        assert_eq!(claim(&cache, &key, &a, true).await, Claim::Load);
        write_value(&key).await;
        apply(&cache, &[effect(0, &key, Action::Delete)]).await;
        assert_eq!(claim(&cache, &key, &b, true).await, Claim::Wait);
        if is_there {
            write_value(&key).await;
        }
        cache.end_load(&key, &a, Some(TTL)).await.unwrap();
        assert_eq!(claim(&cache, &key, &b, false).await, expected, "of {what}, {is_there}");
        // A new claim may follow a later invalidation.
        let c = token(1, 3);
        let found = if expected == Claim::Covered { Claim::Load } else { Claim::Wait };
        assert_eq!(claim(&cache, &key, &c, true).await, found, "of {what}, {is_there}");
    }
}

/// The claim of a killed worker stays for a while, and its event is redelivered: it must not count as
/// a load in progress.
async fn a_redelivered_event_is_not_covered_by_its_own_load(on: &Deployment) {
    let (names, cache, _) = on.scene().await;
    let key = names.of("k");
    let (dead, again, other) = (token(1, 1), token(1, 1), token(1, 2));
    assert_eq!(
        cache.claim_load(&key, &dead, Duration::from_millis(300), true).await.unwrap(),
        Claim::Load
    );
    cache.grant_lease(&key, dead.as_str(), Duration::from_millis(300)).await.unwrap();
    assert_eq!(claim(&cache, &key, &again, true).await, Claim::Wait);
    assert_eq!(
        claim(&cache, &key, &other, true).await,
        Claim::Covered,
        "by the event that comes again"
    );
    wait_until(Duration::from_secs(10), "it is over", async || {
        claim(&cache, &key, &again, false).await == Claim::Load
    })
    .await;
}

async fn a_renewed_claim_outlives_its_ttl_and_a_void_lease_is_not_renewed(on: &Deployment) {
    let (names, cache, _) = on.scene().await;
    let key = names.of("k");
    let (a, b) = (token(1, 1), token(2, 2));
    let short = Duration::from_secs(1);
    cache.claim_load(&key, &a, short, true).await.unwrap();
    cache.grant_lease(&key, a.as_str(), short).await.unwrap();
    cache.keep_load(&key, &a, TTL).await.unwrap();
    // Taken later for as long, and not kept.
    let other = names.of("other");
    cache.grant_lease(&other, b.as_str(), short).await.unwrap();
    wait_until(Duration::from_secs(10), "the other one is over", async || {
        !cache.lease_is_held(&other).await.unwrap()
    })
    .await;
    assert_eq!(claim(&cache, &key, &b, true).await, Claim::Wait);
    assert!(cache.lease_is_held(&key).await.unwrap());
    apply(&cache, &[effect(0, &key, Action::Delete)]).await;
    cache.keep_load(&key, &a, TTL).await.unwrap();
    assert!(!cache.lease_is_held(&key).await.unwrap());
}
