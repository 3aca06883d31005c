//! The set of a tag whose keys come and expire stays within bounds, as long as a worker looks after
//! it.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redis::AsyncCommands;

use super::deployment::Deployment;
use crate::cache::run;
use crate::end_to_end::stage::Stage;

super::on_both! {
    threads:
        a_churned_tag_stays_within_1_2_times_its_live_members;
}

const RULES: &str = r#"events: { pages.imported: { effects: [ { invalidate_tags: "pages" } ] } }"#;

/// An hour of adds and expiries, compressed: members live 4 s instead of 10 min.
async fn a_churned_tag_stays_within_1_2_times_its_live_members(on: &Deployment) {
    const LIFETIME: Duration = Duration::from_secs(4);
    const ADDS_PER_TICK: u64 = 5;
    let stage = Stage::new(&[("pages.yaml", RULES)]).await;
    let settings = on.settings();
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let worker = stage.worker(&settings).await;
    let (redis, mut servers) = (on.client().await, on.servers().await);
    let add = async |n: u64| {
        let mut redis = redis.clone();
        let key = format!("page:{n}");
        // A member whose key does not exist yet may be set aside for a minute.
        let _: () = redis.pset_ex(&key, "v", LIFETIME.as_millis() as u64).await.unwrap();
        let _: () = redis.sadd("cache_tag:pages", &key).await.unwrap();
    };
    let start = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    let (mut added, mut samples) = (0, Vec::new());
    while start.elapsed() < LIFETIME * 6 {
        ticks.tick().await;
        join_all((added..added + ADDS_PER_TICK).map(add)).await;
        added += ADDS_PER_TICK;
        // After three lifetimes, the worker has found how often to check.
        if start.elapsed() > LIFETIME * 3 {
            let members: u64 = redis.clone().scard("cache_tag:pages").await.unwrap();
            let mut live = 0;
            for server in &mut servers {
                live += run::<Vec<String>>(server, &["KEYS", "page:*"]).await.len();
            }
            samples.push(members as f64 / live as f64);
        }
    }
    // One sample in four may follow a moment in which a busy machine allowed no check.
    samples.sort_by(f64::total_cmp);
    let most = samples[samples.len() * 3 / 4];
    assert!(
        samples.len() > 50 && (0.9..=1.2).contains(&most),
        "{most} times its live members, {} samples, {added} were added",
        samples.len()
    );
    let pruned = worker.metrics().await.sum("unstale_pruned_members_total", &[]);
    assert!(pruned > 1_000.0, "{pruned}");
    // No live member was lost, of those that live long enough to be asked.
    let is_kept = async |n: u64| {
        let (mut redis, key) = (redis.clone(), format!("page:{n}"));
        redis.sismember::<_, _, bool>("cache_tag:pages", &key).await.unwrap()
            || !redis.exists::<_, bool>(&key).await.unwrap()
    };
    assert!(join_all((added - 400..added).map(is_kept)).await.into_iter().all(|kept| kept));
}
