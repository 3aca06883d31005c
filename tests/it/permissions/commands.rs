//! Documented RabbitMQ permissions of a person, for each command.

use redis::AsyncCommands;

use super::documented_permissions;
use super::stage::{ADVICE, Case, SOON};
use crate::support::{servers, unique, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn a_person_with_dlq_and_status_may_look_replay_and_drop() {
    let case = Case::new().await;
    let operator = unique("operator");
    case.broker.add_stranger(&operator, "secret").await;
    let permissions = documented_permissions("# a person with `unstale dlq`");
    let [configure, write, read] = permissions;
    case.permit(&operator, permissions).await;
    let mut worker = case.start_at(&case.broker.url(), "all");
    worker.wait_ready().await;
    wait_until(SOON, "status is healthy", async || case.run(&operator, &["status"]).await.0 == 0)
        .await;

    // A missing read permission shows on an empty queue, too.
    case.permit(&operator, [configure, write, &read.replace("dead|", "")]).await;
    for args in
        [&["dlq", "list"][..], &["dlq", "show"], &["dlq", "replay"], &["dlq", "drop", "--yes"]]
    {
        let (code, out, err) = case.run(&operator, args).await;
        assert_eq!((code, out.as_str()), (69, ""), "{args:?}: {err}");
        assert!(
            err.contains(&case.named("queue `unstale.dead`: ACCESS_REFUSED"))
                && err.contains(ADVICE),
            "{args:?}: {err}"
        );
    }
    case.permit(&operator, permissions).await;
    let (code, out, err) = case.run(&operator, &["dlq", "list"]).await;
    assert_eq!((code, out), (0, case.named("0 dead letters in `unstale.dead`\n")), "{err}");

    let publisher = case.publisher().await;
    for _ in 0..2 {
        case.publish(&publisher, "all.verbs", "not JSON").await;
    }
    wait_until(SOON, "two dead letters", async || case.depth(".dead").await == 2).await;
    let (code, out, _) = case.run(&operator, &["status"]).await;
    assert!(code == 1 && out.starts_with("1 problem:\n"), "{out}");
    let (code, out, err) = case.run(&operator, &["dlq", "show"]).await;
    assert!(code == 0 && out.contains("not JSON"), "{out}{err}");

    let without_default = write.replace(r"amq\.default|", "");
    case.permit(&operator, [configure, &without_default, read]).await;
    let (code, _, err) = case.run(&operator, &["dlq", "replay"]).await;
    assert!(code != 0 && err.contains("amq.default") && err.contains(ADVICE), "{code}: {err}");
    assert_eq!(case.depth(".dead").await, 2, "nothing is lost by it");
    case.permit(&operator, permissions).await;
    let (code, _, err) = case.run(&operator, &["dlq", "replay"]).await;
    assert!(code == 0 && err.contains("replayed 2 dead letters"), "{code}: {err}");
    wait_until(SOON, "they are dead letters again", async || case.depth(".dead").await == 2).await;
    let (code, _, err) = case.run(&operator, &["dlq", "drop", "--yes"]).await;
    assert_eq!(code, 0, "{err}");
    wait_until(SOON, "status is healthy", async || case.run(&operator, &["status"]).await.0 == 0)
        .await;

    // `status` names what it may not see.
    case.permit(&operator, [configure, write, &read.replace("|history", "")]).await;
    let (code, out, _) = case.run(&operator, &["status"]).await;
    assert!(
        code == 1 && out.contains("the user may not read the history") && out.contains(ADVICE),
        "{out}"
    );
    case.permit(&operator, [configure, "^$", read]).await;
    let (code, out, _) = case.run(&operator, &["status"]).await;
    let unseen = case.named("cannot read the queue `unstale.slow`");
    assert_eq!(
        (code == 1, out.contains(&unseen)),
        if servers().a_look_needs_a_permission() { (true, true) } else { (false, false) },
        "{out}"
    );
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_with_replay_needs_the_history_and_records_the_replay_there() {
    let case = Case::new().await;
    let replayer = unique("replayer");
    case.broker.add_stranger(&replayer, "secret").await;
    case.declare_everything().await;
    let publisher = case.publisher().await;
    case.publish(&publisher, "all.verbs", r#"{"n":1}"#).await;
    let [configure, write, read] = documented_permissions("# a person with `unstale replay`");
    case.permit(&replayer, [configure, write, "^$"]).await;
    let (code, _, err) = case.run(&replayer, &["replay", "--since", "1h"]).await;
    assert!(
        code == 69 && err.contains(&case.named("unstale.history")) && err.contains(ADVICE),
        "{code}: {err}"
    );
    let _: () = case.redis.connection().await.set("shop:deleted", "old").await.unwrap();
    case.permit(&replayer, [configure, "^$", read]).await;
    let (code, out, err) = case.run(&replayer, &["replay", "--since", "1h"]).await;
    let warning = "warning: the replay is not recorded in the history";
    assert!(code == 0 && err.contains(warning) && err.contains(ADVICE), "{code}: {out}{err}");
    let _: () = case.redis.connection().await.set("shop:deleted", "old").await.unwrap();
    case.permit(&replayer, [configure, write, read]).await;
    let (code, out, err) = case.run(&replayer, &["replay", "--since", "1h"]).await;
    assert!(code == 0 && !err.contains(warning), "{code}: {out}{err}");
    let exists: bool = case.redis.connection().await.exists("shop:deleted").await.unwrap();
    assert!(!exists, "{out}{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_any_permission_is_sent_to_the_page() {
    let case = Case::new().await;
    let nobody = unique("nobody");
    case.broker.add_stranger(&nobody, "secret").await;
    for args in
        [&["dlq", "list"][..], &["replay", "--since", "1h"], &["publish", "all.verbs", "{}"]]
    {
        let (code, _, err) = case.run(&nobody, args).await;
        assert!(code == 69 && err.contains(ADVICE), "{args:?}: {code}: {err}");
    }
    case.declare_exchange().await;
    case.permit(&nobody, ["^$"; 3]).await;
    let (code, _, err) = case.run(&nobody, &["publish", "all.verbs", "{}"]).await;
    assert!(code != 0 && err.contains("ACCESS_REFUSED") && err.contains(ADVICE), "{code}: {err}");
}
