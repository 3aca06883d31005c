//! Second deletes by a worker, for readers that store late what they loaded earlier.

use std::time::Duration;

use redis::AsyncCommands;

use super::stage::{SOON, Stage};
use crate::support::{self, Redis, wait_until};

const RULES: &str = r#"
events:
  user.updated:
    effects:
      - delete: "user:{id}"
        again: 5s
      - invalidate_tags: "team:{team}"
        again: 5s
"#;

impl Stage {
    async fn scheduled(&self) -> u64 {
        self.connection().await.zcard(format!("unstale:again:{}", self.queue)).await.unwrap()
    }

    /// Stores as readers that loaded earlier: one by key, one by key and tag. The second delete is
    /// still to come.
    async fn store_late(&self) {
        self.set("user:7", "stale").await;
        self.set("list:red", "stale").await;
        let _: () = self.connection().await.sadd("cache_tag:team:red", "list:red").await.unwrap();
        assert_eq!(
            self.scheduled().await,
            2,
            "the second delete came before the readers: this machine is too slow for the test"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_fill_is_deleted_by_the_second_pass() {
    let stage = Stage::new(&[("users.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    stage.publish("user.updated", r#"{"id": 7, "team": "red"}"#).await;
    wait_until(SOON, "the first pass", async || stage.scheduled().await == 2).await;
    stage.wait_settled(&[&worker]).await;
    stage.store_late().await;
    stage.wait_gone("user:7").await;
    stage.wait_gone("list:red").await;
    wait_until(SOON, "nothing is left", async || stage.scheduled().await == 0).await;
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_delete_outlives_the_worker_that_scheduled_it() {
    let stage = Stage::new(&[("users.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    stage.publish("user.updated", r#"{"id": 7, "team": "red"}"#).await;
    wait_until(SOON, "the first pass", async || stage.scheduled().await == 2).await;
    stage.wait_settled(&[&worker]).await;
    worker.kill();
    stage.store_late().await;
    let worker = stage.worker(&[]).await;
    stage.wait_gone("user:7").await;
    stage.wait_gone("list:red").await;
    wait_until(SOON, "nothing is left", async || stage.scheduled().await == 0).await;
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_delete_that_is_due_during_an_outage_is_done_after_it() {
    let redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let stage =
        Stage::with(&support::rabbitmq().await.url(), redis, &[("users.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    stage.publish("user.updated", r#"{"id": 7, "team": "red"}"#).await;
    wait_until(SOON, "the first pass", async || stage.scheduled().await == 2).await;
    stage.wait_settled(&[&worker]).await;
    stage.store_late().await;
    stage.redis.kill();
    // The test waits for the time itself.
    tokio::time::sleep(Duration::from_millis(5_500)).await;
    stage.redis.restart().await;
    stage.wait_gone("user:7").await;
    stage.wait_gone("list:red").await;
    wait_until(SOON, "nothing is left", async || stage.scheduled().await == 0).await;
    assert!(worker.terminate().await.success());
}
