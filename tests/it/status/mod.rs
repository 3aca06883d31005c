//! `unstale status`: the program, on real servers.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Proxy, servers, wait_until};

const USERS: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

/// The 10 s of the contract, and some more for a machine that runs many tests at once.
const ANSWERS_WITHIN: Duration = Duration::from_secs(13);

async fn status(stage: &Stage, args: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unstale"));
    command
        .arg("status")
        .args(args)
        .env_clear()
        .envs(stage.broker_settings())
        .env("UNSTALE_REDIS_URL", stage.redis.url())
        .env("UNSTALE_LOG", "error")
        .envs(settings.iter().copied())
        .stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

pub(crate) async fn json(stage: &Stage, settings: &[(&str, &str)]) -> (i32, Value) {
    let output = status(stage, &["--json"], settings).await;
    let text = String::from_utf8_lossy(&output.stdout);
    let value = serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr))
    });
    (output.status.code().unwrap(), value)
}

async fn text(stage: &Stage) -> (i32, String) {
    let output = status(stage, &[], &[]).await;
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

fn queue<'v>(status: &'v Value, name: &str) -> Option<&'v Value> {
    status["rabbitmq"]["queues"].as_array()?.iter().find(|queue| queue["name"] == name)
}

fn texts<'v>(status: &'v Value, kind: &str) -> Vec<&'v str> {
    status[kind]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["what"].as_str().unwrap())
        .collect()
}

/// Waits until that number of workers has reported.
async fn wait_reported(stage: &Stage, workers: usize) {
    wait_until(SOON, "the workers report", async || {
        json(stage, &[]).await.1["redis"]["workers"].as_array().unwrap().len() == workers
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_healthy_if_the_system_works() {
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    let (code, before) = json(&stage, &[]).await;
    assert_eq!((code, texts(&before, "problems").len()), (1, 1), "{before:#}");
    assert_eq!(before["problems"][0]["code"], "queue.none", "{before:#}");
    let worker = stage.worker(&[]).await;
    wait_reported(&stage, 1).await;
    let (code, status) = json(&stage, &[]).await;
    assert_eq!((code, &status["ok"]), (0, &true.into()), "{status:#}");
    assert_eq!(queue(&status, &stage.queue).unwrap()["consumers"], 1);
    assert_eq!(queue(&status, &format!("{}.retry.10m", stage.queue)).unwrap()["exists"], true);
    assert_eq!(
        (&status["redis"]["role"], &status["redis"]["workers"][0]["not_ready"]),
        (&"master".into(), &Value::Array(vec![]))
    );
    let (software, (major, minor, patch)) = (servers().redis_software, servers().redis);
    assert_eq!(status["redis"]["software"], software);
    assert_eq!(status["redis"]["version"], format!("{major}.{minor}.{patch}"));
    let (code, shown) = text(&stage).await;
    assert!(
        code == 0
            && shown.starts_with("healthy\n")
            && shown.contains(&format!(":{}", worker.pid())),
        "{shown}"
    );
    assert!(worker.terminate().await.success());
    let (_, status) = json(&stage, &[]).await;
    assert_eq!(status["redis"]["workers"], Value::Array(vec![]), "it removed its report");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_dead_letters_and_missing_workers_first() {
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    let worker = stage.worker(&[]).await;
    for body in ["no JSON", "neither"] {
        stage.publish("user.updated", body).await;
    }
    wait_until(SOON, "both are dead letters", async || stage.ready(".dead").await == 2).await;
    assert!(worker.terminate().await.success());
    stage.publish("user.updated", r#"{"id":1}"#).await;
    let (code, shown) = text(&stage).await;
    assert_eq!(code, 1, "{shown}");
    assert!(shown.starts_with("3 problems:\n"), "{shown}");
    assert!(
        shown.contains(&format!(
            "no worker consumes `{}`, 1 event waiting [queue.unconsumed]",
            stage.queue
        )),
        "{shown}"
    );
    assert!(
        shown.contains(&format!("2 dead letters in `{}.dead`, the oldest", stage.queue))
            && shown.contains("malformed"),
        "{shown}"
    );
    assert_eq!(stage.ready(".dead").await, 2, "looked at, not taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_reports_servers_that_are_away_within_ten_seconds() {
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    let began = Instant::now();
    let (code, away) = json(
        &stage,
        &[
            ("UNSTALE_AMQP_URL", "amqp://me:hunter2@127.0.0.1:1"),
            ("UNSTALE_REDIS_URL", "redis://127.0.0.1:1"),
        ],
    )
    .await;
    assert_eq!((code, texts(&away, "problems").len()), (1, 2), "{away:#}");
    assert!(
        !away.to_string().contains("hunter2") && away["rabbitmq"]["error"].is_string(),
        "{away:#}"
    );
    assert!(began.elapsed() < ANSWERS_WITHIN);

    // These servers accept connections and send nothing.
    let broker = crate::support::rabbitmq().await;
    let (amqp, redis) =
        (Proxy::start(&broker.addr()).await, Proxy::start(&stage.redis.addr()).await);
    amqp.stall();
    redis.stall();
    let urls =
        (broker.url().replace(&broker.addr(), &amqp.addr()), format!("redis://{}/0", redis.addr()));
    let began = Instant::now();
    let (code, silent) =
        json(&stage, &[("UNSTALE_AMQP_URL", &urls.0), ("UNSTALE_REDIS_URL", &urls.1)]).await;
    assert_eq!((code, texts(&silent, "problems").len()), (1, 2), "{silent:#}");
    assert!(began.elapsed() < ANSWERS_WITHIN, "{:?}", began.elapsed());

    // A node that does not answer does not hide the one that answers.
    let nodes = format!("{},{}", urls.0, broker.url());
    let (_, status) = json(&stage, &[("UNSTALE_AMQP_URL", &nodes)]).await;
    assert!(status["rabbitmq"]["queues"].is_array(), "{status:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_reports_a_replica_of_redis() {
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    let _: () = redis::cmd("REPLICAOF")
        .arg("127.0.0.1")
        .arg("1")
        .query_async(&mut stage.connection().await)
        .await
        .unwrap();
    let (code, status) = json(&stage, &[]).await;
    assert_eq!(code, 1);
    assert_eq!(status["problems"][0]["code"], "redis.unavailable", "{status:#}");
    assert!(texts(&status, "problems")[0].contains("replica"), "{status:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_retry_queues_of_an_older_schedule() {
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    let old = stage.worker(&[("UNSTALE_RETRY_DELAYS", "1s,7s")]).await;
    wait_reported(&stage, 1).await;
    // The older schedule has a step that the newer one does not have.
    let new = stage.worker(&[("UNSTALE_RETRY_DELAYS", "1s,9s")]).await;
    wait_reported(&stage, 2).await;
    let left = format!("{}.retry.7s", stage.queue);
    let here = [("UNSTALE_RETRY_DELAYS", "1s,9s")];
    let (code, status) = json(&stage, &here).await;
    assert_eq!(
        (code, &queue(&status, &left).unwrap()["kind"]),
        (0, &"left_rung".into()),
        "{status:#}"
    );
    assert!(old.terminate().await.success());
    // The new worker reports every five seconds. It has seen the schedule of the old one by now, or
    // never will.
    wait_until(SOON, "only the new one reports, and it remembers", async || {
        let (_, status) = json(&stage, &here).await;
        status["redis"]["workers"].as_array().unwrap().len() == 1 && queue(&status, &left).is_some()
    })
    .await;
    assert!(new.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn different_rule_files_of_workers_are_a_note_and_not_a_problem() {
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    let _one = stage.worker(&[]).await;
    let others = tempfile::tempdir().unwrap();
    std::fs::write(others.path().join("users.yaml"), USERS.replace("user:", "member:")).unwrap();
    let _other = stage.worker(&[("UNSTALE_SCHEMAS", others.path().to_str().unwrap())]).await;
    wait_reported(&stage, 2).await;
    let (code, status) = json(&stage, &[]).await;
    assert_eq!(code, 0, "{status:#}");
    assert!(
        texts(&status, "notes")[0].starts_with("workers use different rule files: "),
        "{status:#}"
    );
    assert_eq!(status["notes"][0]["code"], "worker.different-rules");
}

/// Returns the reports of workers in Redis.
async fn reports(stage: &Stage) -> Vec<String> {
    redis::cmd("HVALS")
        .arg(format!("unstale:workers:{}", stage.queue))
        .query_async(&mut stage.connection().await)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_reports_a_rule_file_that_does_not_load_at_once() {
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    let worker = stage.worker(&[]).await;
    wait_reported(&stage, 1).await;
    for _ in 0..2 {
        stage.write_schema("users.yaml", "events: { user.updated: { efects: [] } }");
        wait_until(SOON, "it is refused", async || worker.stderr().contains("does not load")).await;
        let at_once = Duration::from_secs(2);
        wait_until(at_once, "that is reported", async || {
            reports(&stage).await.iter().any(|report| report.contains("efects"))
        })
        .await;
        stage.write_schema("users.yaml", USERS);
        wait_until(SOON, "it is taken again", async || {
            reports(&stage).await.iter().all(|report| !report.contains("efects"))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_cut_off_at_shutdown_removes_its_report() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let rules = format!(
        "loaders: {{ silent: {{ url: \"http://{}\", timeout: 30s }} }}
events: {{ page.changed: {{ effects: [ {{ warm: \"page\", from: \"silent:/\", ttl: 1h }} ] }} }}",
        silent.local_addr().unwrap()
    );
    let stage = Stage::new(&[("pages.yaml", &rules)]).await;
    let mut worker = stage.worker(&[("UNSTALE_SHUTDOWN_GRACE", "1s")]).await;
    stage.publish("page.changed", "{}").await;
    wait_until(SOON, "it loads", async || {
        worker.metrics().await.sum("unstale_in_flight", &[]) > 0.0
    })
    .await;
    wait_reported(&stage, 1).await;
    worker.signal("TERM");
    assert_eq!(worker.wait_exit(SOON).await.code(), Some(75), "{}", worker.stderr());
    assert_eq!(reports(&stage).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_a_killed_worker_as_silent() {
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    let worker = stage.worker(&[]).await;
    wait_reported(&stage, 1).await;
    worker.kill();
    wait_until(SOON, "it is silent", async || text(&stage).await.1.contains("s ago  silent")).await;
    let (code, shown) = text(&stage).await;
    assert!(code == 1 && shown.contains("has not reported for 1"), "{shown}");
}
