//! Commands that apply events again have a checkpoint of their own.

use super::{mark_fields, publish, stage};
use crate::end_to_end::stage::SOON;
use crate::support::wait_until;

#[tokio::test(flavor = "multi_thread")]
async fn replays_hold_a_mark_while_they_run() {
    let stage = stage().await;
    let worker = stage.worker(&[]).await;
    stage.publish("user.updated", "no JSON").await;
    publish(&stage, 2_000).await;
    wait_until(SOON, "a dead letter", async || stage.ready(".dead").await == 1).await;
    stage.wait_settled(&[&worker]).await;
    let run = |args: &'static [&'static str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_unstale"));
        command
            .args(args)
            .env_clear()
            .envs(stage.broker_settings())
            .env("UNSTALE_REDIS_URL", stage.redis.url());
        command
            .env("UNSTALE_SCHEMAS", stage.schemas.path())
            .env("UNSTALE_LOG", "error")
            .kill_on_drop(true);
        command.spawn().unwrap()
    };
    let low_of = async |kind: &str| {
        let fields = mark_fields(&stage).await;
        fields
            .into_iter()
            .find(|(field, _)| field.starts_with(kind))
            .map(|(_, mark)| mark.split(':').nth(1).unwrap().parse::<u64>().unwrap())
    };
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()
            as u64;

    let mut replay = run(&["replay", "--since", "1h", "--rate", "200/s"]);
    wait_until(SOON, "the replay has a mark", async || low_of("replay:").await.is_some()).await;
    let low = low_of("replay:").await.unwrap();
    assert!(low.abs_diff(now - 3_600_000) < 60_000, "from where it begins: {low}");
    replay.kill().await.unwrap();
    assert!(low_of("replay:").await.is_some(), "killed, its mark stays for an hour");
    // A command that ends removes its checkpoint, and reports what it could not apply.
    assert_eq!(run(&["replay", "--since", "1h"]).wait().await.unwrap().code(), Some(1));
    let left =
        mark_fields(&stage).await.iter().filter(|(field, _)| field.starts_with("replay:")).count();
    assert_eq!(left, 1, "that of the one that was killed");

    // The workers apply its dead letters some time later.
    let mut replay = run(&["dlq", "replay"]);
    assert!(replay.wait().await.unwrap().success());
    assert!(low_of("dlq:").await.is_some());
}
