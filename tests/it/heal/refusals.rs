//! Redis refuses effects of a heal, since its ACL was narrowed together with the loss. ACLs are
//! neither replicated nor part of a snapshot.

use std::time::Duration;

use super::beside::status;
use super::{SOON, heals, on, publish, readable, seed, wait_gone, wait_marks};
use crate::end_to_end::stage::Stage;
use crate::support::{Redis, Worker, wait_until};

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
