//! Redis refuses effects of a heal, since its ACL was narrowed together with the loss. ACLs are
//! neither replicated nor part of a snapshot.

use std::time::Duration;

use redis::AsyncCommands;

use super::beside::status;
use super::{SOON, USERS, heals, on, publish, readable, seed, wait_gone, wait_marks};
use crate::end_to_end::stage::Stage;
use crate::support::{Redis, Worker, rabbitmq, wait_until};

const SOME: u32 = 20;

const WIDE: &str = "~unstale:* ~cache_tag:* ~user:*";
const NARROW: &str = "~unstale:* ~cache_tag:*";

/// Maximum time until refused effects are tried again.
const TRIED_AGAIN: Duration = Duration::from_secs(60);

/// An ACL file, which a restart of Redis reads.
struct AclFile(tempfile::TempDir);

impl AclFile {
    fn new() -> Self {
        let file = Self(tempfile::tempdir().unwrap());
        file.permit(WIDE);
        file
    }

    fn path(&self) -> String {
        self.0.path().join("users.acl").to_str().unwrap().to_owned()
    }

    fn permit(&self, keys: &str) {
        let users =
            format!("user default on nopass ~* &* +@all\nuser worker on >secret {keys} &* +@all\n");
        std::fs::write(self.path(), users).unwrap();
    }

    async fn permit_now(&self, stage: &Stage, keys: &str) {
        self.permit(keys);
        redis::cmd("ACL").arg("LOAD").exec_async(&mut stage.connection().await).await.unwrap();
    }
}

/// Returns a stage where Redis lost deletes, and came back with a narrower ACL.
async fn lost_with_narrow_acl() -> (Stage, AclFile, Worker, String) {
    let acl = AclFile::new();
    let stage = on(Redis::start_with(&["--aclfile", &acl.path()]).await).await;
    let url = stage.redis.url().replace("redis://", "redis://worker:secret@");
    let worker = stage.worker(&[("UNSTALE_REDIS_URL", &url)]).await;
    wait_marks(&stage, 1).await;
    seed(&stage.redis, SOME).await;
    let snapshot = stage.redis.snapshot().await;
    publish(&stage, SOME).await;
    wait_gone(&stage.redis, SOON).await;
    stage.wait_settled(&[&worker]).await;
    acl.permit(NARROW);
    stage.redis.restore(&snapshot).await;
    wait_until(SOON, "the worker heals", async || heals(&worker).await == 1.0).await;
    assert_eq!(readable(&stage.redis).await, Some(SOME as usize), "{}", worker.stderr());
    (stage, acl, worker, url)
}

async fn is_owed(worker: &Worker) -> bool {
    worker.metrics().await.sum("unstale_heal_owed", &[]) == 1.0
}

/// The refused effects are owed, and applied once Redis permits them. Keys that the heal has
/// deleted are not deleted again.
#[tokio::test(flavor = "multi_thread")]
async fn refused_effects_are_owed_until_redis_permits_them() {
    let (stage, acl, worker, _) = lost_with_narrow_acl().await;
    wait_until(SOON, "effects are owed", async || is_owed(&worker).await).await;
    let told = status(&stage).await;
    assert!(
        told.contains("Redis refused 20 effects, the first at offset 0: UNLINK: NOPERM"),
        "{told}"
    );
    assert!(!told.contains("nothing is left to do"), "{told}");
    acl.permit_now(&stage, WIDE).await;
    wait_gone(&stage.redis, TRIED_AGAIN).await;
    wait_until(SOON, "nothing is owed", async || !is_owed(&worker).await).await;
    assert!(status(&stage).await.contains("nothing is left to do"), "{}", status(&stage).await);
}

/// The refused effects stay owed after the death of the worker that recorded them.
#[tokio::test(flavor = "multi_thread")]
async fn refused_effects_are_applied_by_the_next_worker() {
    let (stage, acl, worker, url) = lost_with_narrow_acl().await;
    worker.kill();
    acl.permit_now(&stage, WIDE).await;
    let next = stage.worker(&[("UNSTALE_REDIS_URL", &url)]).await;
    wait_gone(&stage.redis, TRIED_AGAIN).await;
    wait_until(SOON, "nothing is owed", async || !is_owed(&next).await).await;
}

const PAGES: &str = r#"events: { pages.imported: { effects: [ { invalidate_tags: "pages" } ] } }"#;

/// Number of members of a tag that is drained in slices.
const MANY: u32 = 600;

/// A drain that Redis refuses does not keep the heal from its end. It is owed as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_drain_is_owed_until_redis_permits_it() {
    let acl = AclFile::new();
    let redis = Redis::start_with(&["--aclfile", &acl.path()]).await;
    let rules = [("users.yaml", USERS), ("pages.yaml", PAGES)];
    let stage = Stage::with(&rabbitmq().await.url(), redis, &rules).await;
    let url = stage.redis.url().replace("redis://", "redis://worker:secret@");
    let worker = stage.worker(&[("UNSTALE_REDIS_URL", &url)]).await;
    wait_marks(&stage, 1).await;
    let mut connection = stage.connection().await;
    let pages: Vec<String> = (0..MANY).map(|page| format!("page:{page}")).collect();
    let values: Vec<(&str, &str)> = pages.iter().map(|page| (page.as_str(), "old")).collect();
    let _: () = connection.mset(&values).await.unwrap();
    let _: () = connection.sadd("cache_tag:pages", &pages).await.unwrap();
    stage.publish("pages.imported", "{}").await;
    wait_until(SOON, "the drain is refused", async || stage.ready(".dead").await == 1).await;
    let _: () = connection.del(format!("unstale:mark:{}", stage.queue)).await.unwrap();
    wait_until(SOON, "the worker heals", async || heals(&worker).await == 1.0).await;
    wait_until(SOON, "the drain is owed", async || is_owed(&worker).await).await;
    let shown = status(&stage).await;
    assert!(shown.contains("Redis refused") && !shown.contains("nothing is left to do"), "{shown}");
    acl.permit_now(&stage, &format!("{WIDE} ~page:*")).await;
    wait_until(TRIED_AGAIN, "no page is left, and nothing is owed", async || {
        let pages: Vec<String> = stage.connection().await.keys("page:*").await.unwrap();
        pages.is_empty() && !is_owed(&worker).await
    })
    .await;
    assert!(status(&stage).await.contains("nothing is left to do"), "{}", status(&stage).await);
}
