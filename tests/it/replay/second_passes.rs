//! `unstale replay`: second deletes, which follow only if their delay has not passed since the
//! event.

use std::time::Duration;

use super::{declare, replay, run, wait_recorded};
use crate::end_to_end::stage::Stage;

const RULES: &str = r#"
events:
  user.updated:
    effects:
      - delete: "user:{id}"
        again: 10m
      - invalidate_tags: "team:{team}"
        again: 10m
      - delete: "page:{id}"
        again: 1ms
"#;

#[tokio::test(flavor = "multi_thread")]
async fn replay_schedules_a_second_delete_unless_its_delay_has_passed() {
    let stage = Stage::new(&[("users.yaml", RULES)]).await;
    declare(&stage).await;
    for id in [7, 8, 7] {
        stage.publish("user.updated", &format!(r#"{{"id": {id}, "team": "red"}}"#)).await;
    }
    wait_recorded(&stage, 3).await;
    let mut redis = stage.connection().await;
    let scheduled = format!("unstale:again:{}", stage.queue);
    replay(&stage, &["--since", "1h", "--dry-run"]).await.clean();
    assert!(!stage.exists(&scheduled).await, "a dry run schedules nothing");
    replay(&stage, &["--since", "1h"]).await.clean();
    let mut targets: Vec<String> =
        crate::cache::run(&mut redis, &["ZRANGE", &scheduled, "0", "-1"]).await;
    targets.sort();
    // When the pages' turn came a reader of 1 ms had stored what it had loaded before the event:
    // the replay's own pass was the second.
    assert_eq!(targets, ["kuser:7", "kuser:8", "tteam:red"]);
    let now: Vec<u64> = crate::cache::run(&mut redis, &["TIME"]).await;
    let due: u64 = crate::cache::run(&mut redis, &["ZSCORE", &scheduled, "kuser:7"]).await;
    assert!(due <= (now[0] + 600) * 1_000 + 999, "counted from when the replay began: {due}");
}

/// A reader without leases stores after the replay a value that it loaded before the event.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_does_the_second_deletes_of_a_replay() {
    let stage = Stage::new(&[("users.yaml", &RULES.replace("10m", "8s"))]).await;
    let worker = stage.worker(&[]).await;
    stage.publish("user.updated", r#"{"id": 7, "team": "red"}"#).await;
    wait_recorded(&stage, 1).await;
    stage.wait_settled(&[&worker]).await;
    // As if nothing of it had ever reached Redis.
    crate::cache::run::<()>(
        &mut stage.connection().await,
        &["DEL", &format!("unstale:again:{}", stage.queue)],
    )
    .await;
    run(super::command(&stage, &["--since", "1h"])).await.clean();
    stage.set("user:7", "stale").await;
    assert!(
        stage.exists(&format!("unstale:again:{}", stage.queue)).await,
        "this machine is too slow for the test"
    );
    tokio::time::timeout(Duration::from_secs(60), stage.wait_gone("user:7")).await.unwrap();
    assert!(worker.terminate().await.success());
}
