//! The end of the history is found with any size of its last chunk, and with a slow broker.

use jiff::{SignedDuration, Timestamp};
use unstale::broker::{BrokerError, History, Place};
use unstale::causes::Explain;

use super::bounds::record_large;
use super::engine::config;
use super::{declare, publish_users};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{rabbitmq, wait_until};

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

/// More than a connection reads ahead, in bodies of 1 MiB.
const LARGE_CHUNK: u64 = 17;

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_behind_a_last_chunk_that_is_larger_than_what_is_read_ahead() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let count = record_in_a_large_chunk(&stage).await;
    assert_eq!(span(&stage).await, (0, count));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_large_chunks_is_found_beside_what_the_broker_cannot_read() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let count = record_in_a_large_chunk(&stage).await;
    write_unreadable(&stage).await;
    assert_eq!(span(&stage).await, (0, count + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_slow_to_send_is_not_taken_for_an_empty_one() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    publish_users(&stage, 0..7).await;
    slow_down(&stage).await;
    assert_eq!(span(&stage).await, (0, 7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_stream_is_not_taken_for_an_empty_one_beside_what_the_broker_cannot_read() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    publish_users(&stage, 0..7).await;
    write_unreadable(&stage).await;
    slow_down(&stage).await;
    // RabbitMQ 4 attaches consumers while the stream's process is busy: an error, and a heal tries
    // again.
    wait_until(SOON * 2, "the end is found", async || match try_span(&stage).await {
        Ok(span) => {
            assert_eq!(span, (0, 8));
            true
        }
        Err(error) => {
            assert!(error.in_full().contains("the history holds messages"), "{error}");
            false
        }
    })
    .await;
}

/// A consumer that attaches at a time to come gets the next message, which arrives before the end
/// is known.
#[tokio::test(flavor = "multi_thread")]
async fn a_place_in_the_future_is_not_reached_while_events_are_published() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    publish_users(&stage, 0..7).await;
    let mut history = History::connect(&config(&stage).amqp).await.unwrap();
    let now = Timestamp::now();
    let [hour, year] = [1, 365 * 24].map(SignedDuration::from_hours);
    let places = [now - hour, now + hour, now + year].map(Place::Time);
    let surveys = async {
        let mut arrived = 0;
        // Until a message arrived between a consumer and the end, as it does in most surveys.
        while arrived == 0 {
            let survey = history.survey(&places).await.unwrap();
            let reached = survey.places.iter().map(|place| survey.reaches(*place));
            assert_eq!(reached.collect::<Vec<_>>(), [true, false, false], "{survey:?}");
            arrived += survey.end - survey.places[1].earliest;
        }
    };
    let publisher = async {
        for id in 7.. {
            publish_users(&stage, id..id + 1).await;
        }
    };
    tokio::select! {
        () = publisher => {}
        surveyed = tokio::time::timeout(SOON, surveys) => surveyed.unwrap(),
    }
    history.close().await;
}

/// The first offset and the end, as a survey finds them.
async fn span(stage: &Stage) -> (u64, u64) {
    try_span(stage).await.unwrap()
}

async fn try_span(stage: &Stage) -> Result<(u64, u64), BrokerError> {
    let mut history = History::connect(&config(stage).amqp).await?;
    let survey = history.survey(&[]).await?;
    history.close().await;
    Ok((survey.first, survey.end))
}

/// Fills the history until its last chunk is large: how many messages a chunk takes is the broker's
/// business. Returns how many it holds, which are all in one segment.
async fn record_in_a_large_chunk(stage: &Stage) -> u64 {
    for burst in 0..5 {
        record_large(stage, burst * 80..(burst + 1) * 80, 1 << 20, 80).await;
        let end = u64::from(burst + 1) * 80;
        let mut history = History::connect(&config(stage).amqp).await.unwrap();
        if history.last_chunk().await.unwrap().is_some_and(|first| first + LARGE_CHUNK <= end) {
            return end;
        }
    }
    panic!("no chunk is large");
}

/// Has the broker do something with the process of the history's stream, `Pid`.
async fn eval(stage: &Stage, expressions: &str) {
    let queue = format!("rabbit_misc:r(<<\"/\">>, queue, <<\"{}.history\">>)", stage.queue);
    let find = format!(
        "{{ok, Q}} = rabbit_amqqueue:lookup({queue}), #{{leader_pid := Pid}} = amqqueue:get_type_state(Q)"
    );
    rabbitmq().await.eval(&format!("{find}, {expressions}, ok.")).await;
}

async fn write_unreadable(stage: &Stage) {
    eval(stage, r#"osiris:write(Pid, undefined, 1, <<"no AMQP 1.0">>)"#).await;
}

/// Makes the stream's process busy for 1.5 s after each message that it sends, for half a minute.
/// An answer to a consumer that attaches counts as well. Channels answer at once meanwhile.
async fn slow_down(stage: &Stage) {
    wait_until(SOON, "the broker counts its messages", async || stage.ready(".history").await > 0)
        .await;
    let slow = "Forget = fun Forget() -> receive _ -> Forget() after 0 -> ok end end, \
                Rest = fun() -> erlang:suspend_process(Pid), timer:sleep(1500), Forget(), erlang:resume_process(Pid), \
                                receive _ -> ok after 100 -> ok end end, \
                spawn(fun() -> erlang:trace(Pid, true, [send]), [Rest() || _ <- lists:seq(1, 20)] end)";
    eval(stage, slow).await;
}
