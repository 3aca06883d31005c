//! `unstale replay`: after any end, the printed command does the rest, and so does the same
//! command.

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::{Replayed, command, declare, publish_users, replay, run, users, wait_recorded};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::proxy::{Flow, Tap, Way};
use crate::support::rabbitmq::url_at;
use crate::support::{Proxy, Redis, rabbitmq, wait_until};

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" }, { bump_version: "users:version" } ] } }"#;

const USERS: u32 = 4_000;

async fn recorded() -> Stage {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    publish_users(&stage, 0..USERS).await;
    wait_recorded(&stage, USERS.into()).await;
    set_users(&stage).await;
    stage
}

async fn set_users(stage: &Stage) {
    let pairs: Vec<(String, &str)> = (0..USERS).map(|id| (format!("user:{id}"), "old")).collect();
    let _: () = redis::AsyncCommands::mset(&mut stage.connection().await, &pairs).await.unwrap();
}

/// Starts a replay that is slow enough to be ended in the middle, and waits until it is there. At
/// 200/s a busy machine has 20 s to be in time.
async fn half_way(stage: &Stage, rate: &str) -> Child {
    let child = command(stage, &["--since", "1h", "--rate", rate]).spawn().unwrap();
    wait_until(SOON, "it is in the middle", async || users(stage).await < USERS as usize).await;
    child
}

async fn ended(child: Child) -> Replayed {
    let output =
        tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Replayed {
        code: output.status.code().unwrap_or(-1),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_it_says_how_to_go_on() {
    let stage = recorded().await;
    let child = half_way(&stage, "200/s").await;
    assert!(
        std::process::Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    let interrupted = ended(child).await;
    assert_eq!(interrupted.code, 1, "{}", interrupted.err);
    let left = users(&stage).await;
    assert!(left > 0, "it was interrupted too late to show anything");
    let (_, rest) = interrupted
        .err
        .split_once("error: interrupted\nhelp: nothing is lost; continue with: unstale replay ")
        .expect(&interrupted.err);
    let args: Vec<&str> = rest.split_whitespace().collect();
    assert!(
        args[1].starts_with("offset:") && args[1] != "offset:0" && args[2..] == ["--rate", "200/s"],
        "{args:?}"
    );
    let again = replay(&stage, &[&args[..2], &["--json"]].concat()).await.clean().json();
    assert_eq!(users(&stage).await, 0, "the rest is done: {again}");
    assert!(again["events"].as_u64().unwrap() < u64::from(USERS), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_the_same_once_more_does_it() {
    let stage = recorded().await;
    let mut child = half_way(&stage, "200/s").await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(users(&stage).await > 0, "it was killed too late to show anything");
    replay(&stage, &["--since", "1h"]).await.clean();
    assert_eq!(users(&stage).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_away_in_the_middle_is_waited_for() {
    let mut stage = recorded().await;
    stage.redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    set_users(&stage).await;
    let mut child = half_way(&stage, "1000/s").await;
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    stage.redis.kill();
    let waits = tokio::task::spawn_blocking(move || said.any(|line| line.contains("waiting: ")));
    assert!(
        tokio::time::timeout(SOON, waits).await.expect("it says something").unwrap(),
        "it says that it waits"
    );
    stage.redis.restart().await;
    ended(child).await.clean();
    assert_eq!(users(&stage).await, 0, "nothing is lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_away_in_the_middle_is_waited_for() {
    const MANY: u32 = 20_000;
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    publish_users(&stage, 0..MANY).await;
    wait_recorded(&stage, MANY.into()).await;
    // The connection that reads stalls in the middle of the history.
    let (came, held) = (Mutex::new((0, None)), Arc::new(Notify::new()));
    let holds = Arc::clone(&held);
    let tap = Tap::new(move |connection, way, bytes| {
        let (came, halted) = &mut *came.lock().unwrap();
        if way == Way::ToClient {
            *came += bytes.len();
        }
        if *came < 1 << 20 || *halted.get_or_insert(connection) != connection {
            return Flow::Pass;
        }
        holds.notify_one();
        Flow::Halt
    });
    let proxy = Proxy::start_tapped(&rabbitmq().await.addr(), tap).await;
    let mut command = command(&stage, &["--since", "1h", "--json"]);
    command.env("UNSTALE_AMQP_URL", url_at(&proxy.addr(), "guest", "guest", "/"));
    let replaying = tokio::spawn(run(command));
    tokio::time::timeout(SOON, held.notified()).await.expect("it reads");
    proxy.cut().await;
    let done = replaying.await.unwrap().clean();
    assert!(done.err.contains("waiting: RabbitMQ cannot be reached"), "{}", done.err);
    let json = done.json();
    assert_eq!(
        (&json["events"], &json["sent"], &json["missing"]),
        (&MANY.into(), &(MANY + 1).into(), &0.into()),
        "{json}"
    );
}
