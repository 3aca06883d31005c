//! Documented RabbitMQ permissions of a worker, for each `UNSTALE_DECLARE`.
//!
//! The real worker does everything with them, and with a Redis user that has the documented ACL.

use redis::AsyncCommands;

use super::stage::{Case, SOON};
use super::{documented_acl, documented_permissions};
use crate::support::{servers, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn with_all_the_worker_declares_everything_and_does_everything() {
    let mut case = Case::new().await;
    let permissions = documented_permissions("# UNSTALE_DECLARE=all");
    let [configure, write, read] = permissions;

    // One step less, on a broker that has none of the objects yet.
    let without_events = documented_permissions("# UNSTALE_DECLARE=queues")[0];
    let without_default = write.replace(r"amq\.default|", "");
    let without_history = write.replace("history|", "");
    let without_binding = read.replace("events|", "");
    for (less, named) in [
        ([without_events, write, read], "exchange `events`"),
        ([configure, &without_default, read], "exchange 'amq.default'"),
        ([configure, &without_history, read], "queue 'unstale.history'"),
        ([configure, write, &without_binding], "exchange 'events'"),
    ] {
        assert_ne!(less, permissions);
        case.take_new_names();
        case.assert_refused("all", less, named).await;
    }

    case.take_new_names();
    case.permit(&case.user, permissions).await;
    let mut worker = case.start("all");
    worker.wait_ready().await;
    case.do_everything(&worker).await;
    for suffix in ["", ".slow", ".retry.100ms"] {
        wait_until(SOON, "the queues have marks", async || {
            let marks = format!("unstale:mark:{}", case.queue);
            let field = format!("queue_mark:{}{suffix}", case.queue);
            case.redis.connection().await.hexists(marks, field).await.unwrap()
        })
        .await;
    }

    // The running worker binds the keys of a changed registry.
    std::fs::write(
        case.schemas.path().join("new.yaml"),
        "events: { brand.new: { effects: [ { delete: 'shop:new' } ] } }",
    )
    .unwrap();
    let _: () = case.redis.connection().await.set("shop:new", "old").await.unwrap();
    wait_until(SOON, "the new key is bound", async || worker.stderr().contains("brand.new")).await;
    case.publish_by_command("brand.new").await;
    wait_until(SOON, "the new rule holds", async || {
        let exists: bool = case.redis.connection().await.exists("shop:new").await.unwrap();
        !exists
    })
    .await;
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_queues_the_exchange_is_somebody_elses() {
    let case = Case::new().await;
    let permissions = documented_permissions("# UNSTALE_DECLARE=queues");
    let [configure, write, read] = permissions;

    case.permit(&case.user, permissions).await;
    let mut worker = case.start("queues");
    assert_eq!(worker.wait_exit(SOON).await.code(), Some(69));
    assert!(worker.stderr().contains(&case.named("exchange `events`")), "{}", worker.stderr());

    case.declare_exchange().await;
    let without_ladder = configure.replace(r"(\..*)?", r"(\.(slow|dead|history))?");
    case.assert_refused("queues", [&without_ladder, write, read], "queue 'unstale.retry.100ms'")
        .await;
    case.permit(&case.user, permissions).await;
    let mut worker = case.start("queues");
    worker.wait_ready().await;
    case.do_everything(&worker).await;
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_none_the_worker_only_consumes_and_copies() {
    let case = Case::new().await;
    let permissions = documented_permissions("# UNSTALE_DECLARE=none:");
    let [configure, write, read] = permissions;

    case.permit(&case.user, permissions).await;
    let mut worker = case.start("none");
    assert_eq!(worker.wait_exit(SOON).await.code(), Some(69));
    for missing in [
        "exchange `events`",
        "queue `unstale`",
        "queue `unstale.retry.200ms`",
        "queue `unstale.history`",
    ] {
        assert!(
            worker.stderr().contains(&case.named(missing)),
            "{missing} is not named:\n{}",
            worker.stderr()
        );
    }

    case.declare_everything().await;
    // Nothing is declared, so the worker checks at the start what it uses later.
    let all_but = |queue: &str| {
        read.replace(r"(\..*)?", &r"(\.(slow|dead|history|retry\..*))?".replace(queue, "~"))
    };
    for (less, named) in [
        ([configure, write, &all_but("slow")], "queue 'unstale.slow'"),
        ([configure, write, "^events$"], "queue 'unstale'"),
        ([configure, "^$", read], "exchange 'amq.default'"),
    ] {
        case.assert_refused("none", less, named).await;
    }

    // Redis holds no checkpoint, so it may have gone back.
    let _: () =
        case.redis.connection().await.del(format!("unstale:mark:{}", case.queue)).await.unwrap();
    case.permit(&case.user, [configure, write, &all_but("history")]).await;
    let mut worker = case.start("none");
    // The heal is owed, and invalidation continues without it.
    worker.wait_ready().await;
    assert!(worker.stderr().contains(&case.named("unstale.history")), "{}", worker.stderr());
    assert!(worker.terminate().await.success());

    case.permit(&case.user, permissions).await;
    let mut worker = case.start("none");
    worker.wait_ready().await;
    case.do_everything(&worker).await;
    assert!(!worker.stderr().contains("cannot be looked at"), "{}", worker.stderr());
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_smallest_set_is_enough_and_a_warning_names_what_cannot_be_looked_at() {
    let case = Case::new().await;
    case.declare_everything().await;
    let permissions = documented_permissions("# UNSTALE_DECLARE=none, the smallest set");
    let [configure, write, read] = permissions;
    for (less, named) in [
        ([configure, write, &read.replace("slow|", "")], "queue 'unstale.slow'"),
        ([configure, write, "^$"], "queue 'unstale'"),
        ([configure, "^$", read], "exchange 'amq.default'"),
    ] {
        case.assert_refused("none", less, named).await;
    }
    case.permit(&case.user, permissions).await;
    let mut worker = case.start("none");
    worker.wait_ready().await;
    case.do_everything(&worker).await;
    for unseen in ["exchange `events`", "queue `unstale.dead`", "queue `unstale.retry.100ms`"] {
        let warning = format!("{} cannot be looked at", case.named(unseen));
        let warned = worker.stderr().contains(&warning);
        assert_eq!(
            warned,
            servers().a_look_needs_a_permission(),
            "{warning}:\n{}",
            worker.stderr()
        );
    }
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_user_with_less_is_refused_at_start() {
    let case = Case::new().await;
    for (less, told) in [
        ("~unstale:*", "the ACL of our user needs ~unstale:*"),
        (">secret", "refuses the credentials"),
    ] {
        let rules: Vec<String> =
            documented_acl("secret", "shop:").into_iter().filter(|rule| rule != less).collect();
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg("unstale").arg("reset").arg(rules);
        command.exec_async(&mut case.redis.connection().await).await.unwrap();
        let mut worker = case.start_at(&case.broker.url(), "all");
        assert_eq!(
            worker.wait_exit(SOON).await.code(),
            Some(69),
            "without {less}:\n{}",
            worker.stderr()
        );
        assert!(worker.stderr().contains(told), "without {less}:\n{}", worker.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_republished_message_is_reported_and_its_event_kept() {
    let case = Case::new().await;
    case.declare_everything().await;
    let permissions = documented_permissions("# UNSTALE_DECLARE=none:");
    let [configure, _, read] = permissions;
    case.permit(&case.user, permissions).await;
    let mut worker = case.start("none");
    worker.wait_ready().await;
    // A permission that existed at the start is removed later.
    case.permit(&case.user, [configure, "^$", read]).await;
    let publisher = case.publisher().await;
    case.publish(&publisher, "all.verbs", "not JSON").await;
    wait_until(SOON, "the refusal is logged", async || {
        worker.stderr().contains("access to exchange 'amq.default'")
    })
    .await;
    worker.kill();
    wait_until(SOON, "the event is back", async || {
        case.depth("").await + case.depth(".dead").await == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_is_refused_heals_nothing_first() {
    let case = Case::new().await;
    case.declare_everything().await;
    let mut redis = case.redis.connection().await;
    let marks = format!("unstale:mark:{}", case.queue);
    let _: () = redis.del(&marks).await.unwrap();
    let _: () = redis.set("shop:deleted", "old").await.unwrap();
    let publisher = case.publisher().await;
    case.publish(&publisher, "all.verbs", r#"{"n":1}"#).await;
    let [configure, _, read] = documented_permissions("# UNSTALE_DECLARE=none:");
    case.assert_refused("none", [configure, "^$", read], "exchange 'amq.default'").await;
    let stands: bool = redis.exists("shop:deleted").await.unwrap();
    let entered: bool = redis.exists(&marks).await.unwrap();
    assert!(stands && !entered, "nothing was done in Redis");
}
