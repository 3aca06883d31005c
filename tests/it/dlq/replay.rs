//! `unstale dlq replay`: every letter is applied, even if the command is interrupted or killed.

use std::process::Child;
use std::time::Duration;

use redis::AsyncCommands as _;

use super::{GIVEN, Given, LONG_AGO, command, declare, dlq, publish_given, publish_letters};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{full_runs, rabbitmq, unique, wait_for, wait_until};

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

/// Letters in flight at a time.
const IN_FLIGHT: u32 = 250;

/// Replays that are killed, one after the other.
const KILLS: u32 = 3;

async fn set_all(stage: &Stage, count: u32) {
    let pairs: Vec<(String, &str)> = (0..count).map(|id| (format!("user:{id}"), "old")).collect();
    let _: () = stage.connection().await.mset(&pairs).await.unwrap();
}

async fn users(stage: &Stage) -> Vec<String> {
    stage.connection().await.keys("user:*").await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn dlq_replay_applies_the_letters_that_match_its_filters() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    publish_letters(&stage, 0..10).await;
    set_all(&stage, 10).await;
    let (code, out, err) = dlq(&stage, &["replay", "--dry-run", "--limit", "4"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(
        out.contains("4  loader_refused  user.updated")
            && err.contains("would replay 4 dead letters"),
        "{out}{err}"
    );
    assert_eq!(
        (stage.ready("").await, stage.ready(".dead").await),
        (0, 10),
        "a dry run changes nothing"
    );
    let worker = stage.worker(&[]).await;
    let (code, _, err) = dlq(&stage, &["replay", "--id", "e3", "--id", "e7"]).await;
    assert!(code == 0 && err.contains("replayed 2 dead letters"), "{err}");
    stage.wait_gone("user:3").await;
    stage.wait_gone("user:7").await;
    let (code, _, err) = dlq(&stage, &["replay", "--limit", "5", "--rate", "100/s"]).await;
    assert!(code == 0 && err.contains("replayed 5 dead letters"), "{err}");
    wait_until(SOON, "seven are applied", async || users(&stage).await.len() == 3).await;
    assert_eq!(stage.ready(".dead").await, 3);
    assert_eq!(dlq(&stage, &["replay"]).await.0, 0);
    wait_until(SOON, "all are applied", async || users(&stage).await.is_empty()).await;
    let (code, _, err) = dlq(&stage, &["replay"]).await;
    assert!(code == 0 && err.contains("replayed 0 dead letters"), "{err}");
    assert!(worker.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_letter_that_fails_again_keeps_its_earlier_reasons() {
    let stage = Stage::new(&[(
        "user.yaml",
        r#"events: { user.updated: { effects: [ { delete: "user:{nothing}" } ] } }"#,
    )])
    .await;
    let _worker = stage.worker(&[]).await;
    publish_letters(&stage, 0..1).await;
    for _ in 0..2 {
        assert_eq!(dlq(&stage, &["replay"]).await.0, 0);
        wait_until(SOON, "it has failed again", async || stage.ready(".dead").await == 1).await;
    }
    let (_, shown, _) = dlq(&stage, &["show"]).await;
    assert!(
        shown.contains(&format!("dead before    loader_refused@{LONG_AGO}, unresolvable@")),
        "{shown}"
    );
    let letter = stage.dead_letters(1).await.pop().unwrap();
    assert_eq!(letter.header("unstale-first-time").as_deref(), Some(LONG_AGO));
    assert_eq!(letter.header("unstale-reason").as_deref(), Some("unresolvable"));
    assert_eq!(letter.header("unstale-attempt").as_deref(), Some("1"), "attempts began at 0");
    let earlier = letter.header("unstale-earlier-reasons").unwrap();
    assert!(earlier.starts_with(&format!("loader_refused@{LONG_AGO},unresolvable@")), "{earlier}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dlq_replay_goes_on_without_a_history() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let _worker = stage.worker(&[("UNSTALE_HISTORY", "off")]).await;
    for (history, warns) in [("off", false), ("on", true)] {
        publish_letters(&stage, 0..2).await;
        set_all(&stage, 2).await;
        let mut command = command(&stage, &["replay"]);
        command.env("UNSTALE_HISTORY", history);
        let output = command.output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && err.contains("replayed 2 dead letters"), "{err}");
        let warning = format!("warning: stream `{}.history` does not exist", stage.queue);
        assert_eq!(err.matches(&warning).count(), usize::from(warns), "{err}");
        wait_until(SOON, "both are applied", async || users(&stage).await.is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dlq_replay_applies_an_event_that_the_broker_dead_lettered() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    stage.set("user:1", "old").await;
    let properties = lapin::BasicProperties::default().with_expiration("1".into());
    stage.publish_with("user.updated", properties, br#"{"id":1}"#).await;
    wait_until(SOON, "it has expired", async || stage.ready(".dead").await == 1).await;
    let _worker = stage.worker(&[]).await;
    let (code, _, err) =
        dlq(&stage, &["replay", "--reason", "expired", "--type", "user.updated"]).await;
    assert!(code == 0 && err.contains("replayed 1 dead letter "), "{err}");
    stage.wait_gone("user:1").await;
    assert_eq!(stage.ready(".dead").await, 0);
}

/// Returns the number of letters of a replay that ends in the middle.
fn letters() -> u32 {
    if full_runs() { 100_000 } else { 4_000 }
}

/// Starts a replay by filter that is slow enough to be ended in the middle, and waits until it is
/// there.
async fn half_way(stage: &Stage) -> Child {
    declare(stage).await;
    publish_letters(stage, 0..letters()).await;
    set_all(stage, letters()).await;
    let child =
        command(stage, &["replay", "--type", "user.*", "--rate", &format!("{}/s", letters() / 4)])
            .spawn()
            .unwrap();
    wait_until(SOON, "it is in the middle", async || stage.ready("").await >= letters() / 4).await;
    child
}

async fn all_given_back(stage: &Stage) -> (u32, u32) {
    wait_for(SOON, "what was not replayed is back", async || {
        let (main, dead) = (stage.ready("").await, stage.ready(".dead").await);
        (main + dead >= letters()).then_some((main, dead))
    })
    .await
}

async fn replay_the_rest(stage: &Stage) {
    let (code, _, err) = dlq(stage, &["replay"]).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(stage.ready(".dead").await, 0, "none is left behind");
    let worker = stage.worker(&[]).await;
    wait_until(SOON, "each is applied", async || users(stage).await.is_empty()).await;
    stage.wait_settled(&[&worker]).await;
    assert_eq!(stage.ready(".dead").await, 0);
}

/// Returns the number of letters of a replay that is killed at full speed.
fn many() -> u32 {
    if full_runs() { 100_000 } else { 20_000 }
}

/// Kills several replays, each in the middle. Then replays the rest of the `meant` letters that
/// match the filter, and checks how many went twice.
async fn kill_and_replay(stage: &Stage, filter: &[&str], meant: u32) {
    let args = [&["replay"], filter].concat();
    for _ in 0..KILLS {
        let enough = stage.ready("").await + meant / 20;
        let mut child = command(stage, &args).spawn().unwrap();
        wait_until(SOON, "it is in the middle", async || stage.ready("").await >= enough).await;
        assert!(child.try_wait().unwrap().is_none(), "it has ended before it could be killed");
        child.kill().unwrap();
        child.wait().unwrap();
        // Some are in both queues, so that their number alone does not show it.
        wait_until(SOON, "what was not replayed is back", async || {
            stage.consumers(&format!("{}.dead", stage.queue)).await == 0
                && stage.ready(".dead").await + stage.ready("").await >= many()
        })
        .await;
    }
    let (code, _, err) = dlq(stage, &args).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(stage.ready(".dead").await, many() - meant, "none is lost, none is left behind");
    let doubled = stage.ready("").await.checked_sub(meant).expect("none is lost");
    assert!(doubled <= KILLS * IN_FLIGHT, "{doubled} went twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_half_way_it_loses_none_and_doubles_few() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    publish_letters(&stage, 0..many()).await;
    set_all(&stage, many()).await;
    kill_and_replay(&stage, &["--type", "user.*"], many()).await;
    let worker = stage.worker(&[]).await;
    wait_until(SOON, "each is applied", async || users(&stage).await.is_empty()).await;
    stage.wait_settled(&[&worker]).await;
    assert_eq!(stage.ready(".dead").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_letters_that_stay_it_doubles_few() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    let ids: Vec<String> = (0..many()).map(|id| format!("e{id}")).collect();
    let reason = |at: usize| if at.is_multiple_of(2) { "loader_refused" } else { "expired" };
    let given: Vec<Given<'_>> =
        ids.iter().enumerate().map(|(at, id)| Given { id, reason: reason(at), ..GIVEN }).collect();
    publish_given(&stage, &given).await;
    kill_and_replay(&stage, &["--reason", "expired"], many() / 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dlq_replay_interrupted_half_way_loses_and_doubles_none() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let child = half_way(&stage).await;
    let signalled = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(signalled.success());
    let output =
        tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("error: interrupted\nhelp: nothing is lost"), "{err}");
    let (main, dead) = all_given_back(&stage).await;
    assert!(
        dead > 0 && main + dead == letters(),
        "{main} replayed and {dead} left of {}",
        letters()
    );
    assert!(err.contains(&format!("replayed {main} dead letters")), "{err}");
    replay_the_rest(&stage).await;
}

/// RabbitMQ 4.2.6 and later refuse such a user even a look at the queue.
#[tokio::test(flavor = "multi_thread")]
async fn dlq_replay_needs_no_permission_on_the_queue_of_events() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    publish_letters(&stage, 0..3).await;
    let (broker, user) = (rabbitmq().await, unique("operator"));
    broker.add_stranger(&user, "secret").await;
    let read = format!(r"^{}\.dead$", stage.queue);
    broker.permit(&user, "/", ["^$", r"^amq\.default$", &read]).await;
    for (args, count) in
        [(&["replay", "--limit", "1"][..], "1 dead letter "), (&["replay"], "2 dead letters ")]
    {
        let mut command = command(&stage, args);
        command.env("UNSTALE_AMQP_URL", broker.url_as(&user, "secret", "/"));
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && err.contains(&format!("replayed {count}")), "{err}");
    }
    assert_eq!((stage.ready("").await, stage.ready(".dead").await), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn dlq_replay_keeps_to_its_rate() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    publish_letters(&stage, 0..60).await;
    let start = std::time::Instant::now();
    let (code, _, err) = dlq(&stage, &["replay", "--rate", "40/s"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(start.elapsed() >= Duration::from_millis(1300), "{:?}", start.elapsed());
    assert_eq!(stage.ready("").await, 60);
}
