//! Tag maintenance: `unstale tags gc`, the worker's own part, and the warning about a Redis that
//! evicts.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;

use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Redis, wait_until};

const RULES: &str = r#"events: { pages.imported: { effects: [ { invalidate_tags: "pages" } ] } }"#;

/// Fills a tag with keys that exist and keys that do not.
async fn fill(redis: &mut MultiplexedConnection, tag: &str, live: usize, gone: usize) {
    let mut pipeline = redis::pipe();
    for n in 0..live {
        pipeline.set(format!("{tag}:{n}"), "v").ignore();
    }
    for n in 0..live + gone {
        pipeline.sadd(format!("cache_tag:{tag}"), format!("{tag}:{n}")).ignore();
    }
    pipeline.exec_async(redis).await.unwrap();
}

async fn ask<T: redis::FromRedisValue>(redis: &mut MultiplexedConnection, command: &[&str]) -> T {
    let mut cmd = redis::cmd(command[0]);
    cmd.arg(&command[1..]);
    cmd.query_async(redis).await.unwrap()
}

async fn gc(server: &Redis, args: &[&str]) -> (i32, String, String) {
    gc_with(server, args, &[]).await
}

async fn gc_with(
    server: &Redis,
    args: &[&str],
    settings: &[(&str, &str)],
) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unstale"));
    command
        .args(["tags", "gc"])
        .args(args)
        .env_clear()
        .env("UNSTALE_REDIS_URL", server.url())
        .env("UNSTALE_LOG", "warn");
    command.envs(settings.iter().copied());
    command.stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn gc_removes_only_members_whose_keys_are_gone() {
    let server = Redis::start().await;
    let mut redis = server.connection().await;
    fill(&mut redis, "clean", 3, 0).await;
    fill(&mut redis, "small", 2, 5).await;
    fill(&mut redis, "big", 1_500, 2_500).await;
    fill(&mut redis, "dead", 0, 4).await;
    let _: u64 = ask(&mut redis, &["SADD", "their:set", "no key"]).await;
    let _: u64 = ask(&mut redis, &["LPUSH", "cache_tag:list", "no key"]).await;
    let keys = async || {
        ask::<Vec<String>>(&mut server.connection().await, &["KEYS", "*"])
            .await
            .iter()
            .filter(|key| !key.starts_with("unstale:"))
            .count()
    };
    let before = keys().await;

    let (code, out, err) = gc(&server, &["--dry-run"]).await;
    assert_eq!(
        (code, err.as_str()),
        (0, "would remove 2509 of 4014 members from 4 tags\n"),
        "{out}"
    );
    assert_eq!(ask::<u64>(&mut redis, &["SCARD", "cache_tag:big"]).await, 4_000);

    let (code, out, err) = gc(&server, &["--json"]).await;
    assert_eq!((code, err.as_str()), (0, "removed 2509 of 4014 members from 4 tags\n"));
    let mut lines: Vec<&str> = out.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            r#"{"tag":"big","members":4000,"gone":2500}"#,
            r#"{"tag":"dead","members":4,"gone":4}"#,
            r#"{"tag":"small","members":7,"gone":5}"#
        ]
    );
    for (set, members) in [("clean", 3), ("small", 2), ("big", 1_500), ("dead", 0)] {
        assert_eq!(
            ask::<u64>(&mut redis, &["SCARD", &format!("cache_tag:{set}")]).await,
            members,
            "{set}"
        );
    }
    assert_eq!(ask::<u64>(&mut redis, &["SCARD", "their:set"]).await, 1);
    assert_eq!(keys().await, before - 1, "no key but the empty set is gone");
    assert_eq!(
        gc(&server, &[]).await,
        (0, String::new(), "removed 0 of 1505 members from 3 tags\n".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn gc_keeps_its_rate_and_reports_failures() {
    let server = Redis::start().await;
    fill(&mut server.connection().await, "t", 500, 1_500).await;
    let start = Instant::now();
    // At least 2,000 members and one step of the scan. The test does not wait for the last step.
    assert_eq!(gc(&server, &["--rate", "2000/s"]).await.0, 0);
    assert!(start.elapsed() > Duration::from_millis(900), "{:?}", start.elapsed());
    server.kill();
    let (code, _, err) = gc(&server, &[]).await;
    assert_eq!(code, 69);
    let expected = format!("Redis cannot be reached at {}: connection refused", server.addr());
    assert!(err.contains(&expected), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tag_maintenance_passes_from_one_worker_to_the_next() {
    let stage = Stage::new(&[("pages.yaml", RULES)]).await;
    let mut redis = stage.connection().await;
    fill(&mut redis, "t", 10, 10).await;
    let (one, two) = (stage.worker(&[]).await, stage.worker(&[]).await);
    wait_until(SOON, "the tag is pruned", async || {
        ask::<u64>(&mut stage.connection().await, &["SCARD", "cache_tag:t"]).await == 10
    })
    .await;
    let pruned = async |worker: &crate::support::Worker| {
        worker.metrics().await.sum("unstale_pruned_members_total", &[])
    };
    let (by_one, by_two) = (pruned(&one).await, pruned(&two).await);
    assert_eq!((by_one.max(by_two), by_one.min(by_two)), (10.0, 0.0));
    let (pruner, other) = if by_one > by_two { (one, two) } else { (two, one) };
    pruner.kill();
    fill(&mut redis, "u", 10, 10).await;
    wait_until(SOON, "the other one prunes", async || pruned(&other).await == 10.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_drain_is_finished_by_the_next_worker_that_starts() {
    let stage = Stage::new(&[("pages.yaml", RULES)]).await;
    let mut redis = stage.connection().await;
    fill(&mut redis, "pages", 2_000, 0).await;
    // State left by a worker whose event was deleted by hand in the middle of it.
    for command in [
        ["RENAME", "cache_tag:pages", "unstale:drain/{cache_tag:pages}:7"],
        ["SADD", "unstale:drain/{cache_tag:pages}", "7"],
        ["SADD", "unstale:drains", "cache_tag:pages"],
    ] {
        let _: redis::Value = ask(&mut redis, &command).await;
    }
    let worker = stage.worker(&[]).await;
    wait_until(SOON, "the keys are gone", async || {
        ask::<Vec<String>>(&mut stage.connection().await, &["KEYS", "pages:*"]).await.is_empty()
    })
    .await;
    wait_until(SOON, "it is reported", async || {
        worker.stderr().contains("an earlier invalidation had left over")
    })
    .await;
    assert_eq!(ask::<Vec<String>>(&mut redis, &["KEYS", "unstale:drain*"]).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_may_evict_needed_keys_is_reported() {
    for (arguments, warned) in [
        (&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"][..], true),
        (&["--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru"], true),
        (&["--maxmemory", "100mb", "--maxmemory-policy", "noeviction"], false),
        (&["--maxmemory-policy", "allkeys-lru"], false),
        // If INFO reports nothing, CONFIG does.
        (
            &[
                "--maxmemory",
                "100mb",
                "--maxmemory-policy",
                "allkeys-lru",
                "--rename-command",
                "INFO",
                "",
            ],
            true,
        ),
    ] {
        let stage = Stage::with(
            &crate::support::rabbitmq().await.url(),
            Redis::start_with(arguments).await,
            &[("pages.yaml", RULES)],
        )
        .await;
        let mut redis = stage.connection().await;
        fill(&mut redis, "t", 1, 1).await;
        let worker = stage.worker(&[]).await;
        // The check of the policy comes before the first removal of members.
        wait_until(SOON, "the tag is pruned", async || {
            ask::<u64>(&mut stage.connection().await, &["SCARD", "cache_tag:t"]).await == 1
        })
        .await;
        let log = worker.stderr();
        assert_eq!(log.contains("Set maxmemory-policy noeviction"), warned, "{arguments:?}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_hides_its_policy_is_usable() {
    let server =
        Redis::start_with(&["--rename-command", "INFO", "", "--rename-command", "CONFIG", ""])
            .await;
    let stage =
        Stage::with(&crate::support::rabbitmq().await.url(), server, &[("pages.yaml", RULES)])
            .await;
    let worker = stage.worker(&[]).await;
    wait_until(SOON, "it says so", async || {
        worker.stderr().contains("does not show its maxmemory-policy")
    })
    .await;
}

/// Sets under a foreign prefix may hold anything.
#[tokio::test(flavor = "multi_thread")]
async fn tag_maintenance_ignores_sets_under_another_prefix() {
    let stage = Stage::new(&[("pages.yaml", RULES)]).await;
    let mut redis = stage.connection().await;
    let _: u64 = ask(&mut redis, &["SADD", "tagged:online-users", "17", "42", "99"]).await;
    let _: u64 = ask(&mut redis, &["SADD", "tagged:user:42", "user:42"]).await;
    let _: () = ask(&mut redis, &["SET", "app:user:42", "v"]).await;
    let worker = stage.worker(&[("UNSTALE_TAG_PREFIX", "tagged:")]).await;
    wait_until(SOON, "it says so", async || worker.stderr().contains("tag maintenance is off"))
        .await;
    // In the time that another worker takes to check its tags twice, this one would have too.
    for tag in ["t", "u"] {
        fill(&mut redis, tag, 1, 1).await;
        let _other = stage.worker(&[]).await;
        wait_until(SOON, "the other worker prunes", async || {
            ask::<u64>(&mut stage.connection().await, &["SCARD", &format!("cache_tag:{tag}")]).await
                == 1
        })
        .await;
    }
    assert_eq!(ask::<u64>(&mut redis, &["SCARD", "tagged:online-users"]).await, 3);
    assert_eq!(ask::<u64>(&mut redis, &["SCARD", "tagged:user:42"]).await, 1);
    assert_eq!(worker.metrics().await.sum("unstale_pruned_members_total", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tag_maintenance_follows_its_setting() {
    let stage = Stage::new(&[("pages.yaml", RULES)]).await;
    let mut redis = stage.connection().await;
    fill(&mut redis, "off", 1, 1).await;
    let off = stage.worker(&[("UNSTALE_TAG_MAINTENANCE", "off")]).await;
    wait_until(SOON, "it says so", async || off.stderr().contains("tag maintenance is off")).await;
    let _: u64 = ask(&mut redis, &["SADD", "tagged:t", "no key"]).await;
    let on =
        stage.worker(&[("UNSTALE_TAG_PREFIX", "tagged:"), ("UNSTALE_TAG_MAINTENANCE", "on")]).await;
    wait_until(SOON, "it is pruned", async || {
        ask::<u64>(&mut stage.connection().await, &["SCARD", "tagged:t"]).await == 0
    })
    .await;
    assert!(!on.stderr().contains("tag maintenance is off"), "{}", on.stderr());
    assert_eq!(ask::<u64>(&mut redis, &["SCARD", "cache_tag:off"]).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn gc_ignores_sets_under_another_prefix_unless_an_option_names_it() {
    let server = Redis::start().await;
    let mut redis = server.connection().await;
    let _: u64 = ask(&mut redis, &["SADD", "tagged:online-users", "17", "42"]).await;
    let prefix = ("UNSTALE_TAG_PREFIX", "tagged:");
    let (code, _, err) = gc_with(&server, &[], &[prefix]).await;
    assert_eq!(code, 64);
    assert!(err.contains("UNSTALE_TAG_MAINTENANCE=on"), "{err}");
    assert_eq!(
        gc_with(&server, &["--dry-run"], &[prefix]).await.2,
        "would remove 2 of 2 members from 1 tag\n"
    );
    assert_eq!(ask::<u64>(&mut redis, &["SCARD", "tagged:online-users"]).await, 2);
    let on = ("UNSTALE_TAG_MAINTENANCE", "on");
    assert_eq!(gc_with(&server, &[], &[prefix, on]).await.2, "removed 2 of 2 members from 1 tag\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_may_evict_is_refused_if_the_setting_says_so() {
    let evicts =
        Redis::start_with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]).await;
    let stage =
        Stage::with(&crate::support::rabbitmq().await.url(), evicts, &[("pages.yaml", RULES)])
            .await;
    let mut worker = stage.start_worker(&[("UNSTALE_REDIS_EVICTION", "refuse")]);
    assert_eq!(worker.wait_exit(SOON).await.code(), Some(69));
    let log = worker.stderr();
    assert!(log.contains("UNSTALE_REDIS_EVICTION=refuse: maxmemory-policy allkeys-lru"), "{log}");
    let _: () =
        ask(&mut stage.connection().await, &["CONFIG", "SET", "maxmemory-policy", "noeviction"])
            .await;
    stage.worker(&[("UNSTALE_REDIS_EVICTION", "refuse")]).await;
}
