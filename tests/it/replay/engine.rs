//! The engine of replays, as heals call it: with small limits, and asked to stop.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;
use unstale::broker::{Found, History, Place, Survey};
use unstale::cache::Cache;
use unstale::config::{Config, Scope, UnknownPolicy};
use unstale::ops::replay::{Died, Observer, Replay, Span, Step, TakenOver};
use unstale::plan::FoldLimits;
use unstale::registry::{LoadOptions, Registry};

use super::{declare, publish_users, users, wait_recorded};
use crate::end_to_end::stage::Stage;
use crate::support::{Proxy, rabbitmq};

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

fn replay(limits: FoldLimits) -> Replay {
    Replay {
        span: Span { since: Place::Offset(0), until: None },
        gives_way: true,
        records_before: None,
        types: Vec::new(),
        only_rules: Vec::new(),
        rate: None,
        tag_prefix: "cache_tag:".into(),
        reading: unstale::event::Reading::default(),
        unknown: UnknownPolicy::Retry,
        fence_ttl: Duration::from_secs(86_400),
        limits,
        apply_every: None,
        patience: None,
        taken_over: TakenOver::default(),
    }
}

pub(crate) fn config(stage: &Stage) -> Config {
    config_at(stage, stage.broker_settings()[0].1)
}

fn config_at(stage: &Stage, amqp_url: &str) -> Config {
    let (redis, schemas) = (stage.redis.url(), stage.schemas.path().to_str().unwrap().to_owned());
    let own = [
        ("UNSTALE_REDIS_URL", redis.as_str()),
        ("UNSTALE_SCHEMAS", &schemas),
        ("UNSTALE_AMQP_URL", amqp_url),
    ];
    let pairs = own.into_iter().chain(stage.broker_settings().into_iter().skip(1));
    let pairs = pairs.map(|(name, value)| (name.into(), value.into()));
    Config::from_pairs(pairs, |_| unreachable!(), Scope::All).unwrap().0
}

/// Stops the replay after a number of applied effects.
struct StopsAfter<'s>(u64, &'s CancellationToken);

impl Observer for StopsAfter<'_> {
    fn applied(&mut self, _done: u64, _of: u64) {
        self.0 -= 1;
        if self.0 == 0 {
            self.1.cancel();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_with_small_limits_applies_before_it_reads_on() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    for _ in 0..2 {
        publish_users(&stage, 0..3_000).await;
    }
    wait_recorded(&stage, 6_000).await;
    let pairs: Vec<(String, &str)> = (0..3_000).map(|id| (format!("user:{id}"), "old")).collect();
    let _: () = redis::AsyncCommands::mset(&mut stage.connection().await, &pairs).await.unwrap();
    let config = config(&stage);
    let registry =
        Arc::new(Registry::load(&LoadOptions::for_run(&config.registry)).unwrap().registry);
    let cache = Cache::connect(&config.redis, &config.amqp.queue).unwrap();
    cache.probe().await.unwrap();
    let mut history = History::connect(&config.amqp).await.unwrap();
    let limits = FoldLimits { targets: 1_000, bytes: 1 << 20 };
    let stop = CancellationToken::new();
    let report = replay(limits)
        .run(&mut history, &registry, Some(&cache), &mut StopsAfter(2, &stop), &stop)
        .await
        .unwrap();
    let rest = report.rest.unwrap();
    assert!(
        (1_000..6_000).contains(&rest.since),
        "what was applied before it read on is not left: {rest:?}"
    );
    let goes_on =
        Replay { span: Span { since: Place::Offset(rest.since), until: None }, ..replay(limits) };
    let report = goes_on
        .run(&mut history, &registry, Some(&cache), &mut (), &CancellationToken::new())
        .await
        .unwrap();
    assert!(report.is_whole() && report.sent() >= 3_000, "{report:?}");
    assert_eq!(users(&stage).await, 0);
    history.close().await;
}

/// RabbitMQ may send a message before it confirms the consumer, if the channel has another
/// consumer. The client then has no consumer to pass the message to, and the place would count as
/// one after the end.
#[tokio::test(flavor = "multi_thread")]
async fn every_one_of_many_places_in_time_is_found() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    publish_users(&stage, 0..1).await;
    wait_recorded(&stage, 1).await;
    let mut history = History::connect(&config(&stage).amqp).await.unwrap();
    let an_hour_ago = Timestamp::now() - SignedDuration::from_hours(1);
    let survey = history.survey(&[Place::Time(an_hour_ago); 200]).await.unwrap();
    history.close().await;
    assert_eq!(survey, Survey { first: 0, end: 1, known_end: 1, places: vec![Found::at(0); 200] });
}

/// Dies like a process, without any cleanup, when the range of offsets in work contains `at`.
struct DiesAt {
    at: u64,
    notes: Vec<Step>,
}

impl Observer for DiesAt {
    async fn note(&mut self, step: Step) -> Result<(), String> {
        let dies = step.in_work.contains(&self.at);
        self.notes.push(step);
        if dies { Err("dead".to_owned()) } else { Ok(()) }
    }
}

/// Disconnects the broker before anything is read.
struct TakesAway(Proxy);

impl Observer for TakesAway {
    async fn note(&mut self, _step: Step) -> Result<(), String> {
        self.0.down().await;
        Ok(())
    }
}

/// A heal must end: its caller finds out what is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_with_a_time_limit_stops_waiting_for_a_silent_broker() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    publish_users(&stage, 0..10).await;
    wait_recorded(&stage, 10).await;
    let proxy = Proxy::start(&rabbitmq().await.addr()).await;
    let config = config_at(
        &stage,
        &stage.broker_settings()[0].1.replace(&rabbitmq().await.addr(), &proxy.addr()),
    );
    let registry =
        Arc::new(Registry::load(&LoadOptions::for_run(&config.registry)).unwrap().registry);
    let mut history = History::connect(&config.amqp).await.unwrap();
    let patience = Duration::from_millis(500);
    let replay = Replay { patience: Some(patience), ..replay(FoldLimits::default()) };
    let (begun, stop, mut away) =
        (std::time::Instant::now(), CancellationToken::new(), TakesAway(proxy));
    let run = replay.run(&mut history, &registry, None, &mut away, &stop);
    let report =
        tokio::time::timeout(Duration::from_secs(30), run).await.expect("it ends").unwrap();
    assert!(begun.elapsed() >= patience);
    assert_eq!(report.rest.map(|rest| rest.since), Some(0), "nothing was applied");
}

/// Returns the state that the next replay takes over, as heals keep it in Redis.
fn taken_over(before: &TakenOver, last: &Step) -> TakenOver {
    let range = last.in_work.clone();
    let within = before
        .died
        .as_ref()
        .filter(|died| died.range.start <= range.start && range.end <= died.range.end);
    let deaths = within.map_or(0, |died| died.deaths) + 1;
    let (passed_over, undone) = (last.passed_over.clone(), last.undone.clone());
    TakenOver {
        applied_to: Some(last.applied_to),
        end: Some(last.end),
        died: Some(Died { range, deaths }),
        passed_over,
        undone,
        refused: last.refused.clone(),
    }
}

/// An event that a replay could not resolve, and that it did not get past, is tried again by the
/// next replay.
#[tokio::test(flavor = "multi_thread")]
async fn an_undone_event_that_the_next_replay_reads_again_is_not_skipped() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    publish_users(&stage, 0..10).await;
    wait_recorded(&stage, 10).await;
    let config = config(&stage);
    let registry =
        Arc::new(Registry::load(&LoadOptions::for_run(&config.registry)).unwrap().registry);
    let taken_over = TakenOver {
        applied_to: Some(5),
        end: Some(10),
        undone: vec![2, 7],
        ..TakenOver::default()
    };
    let goes_on = Replay { taken_over, ..replay(FoldLimits::default()) };
    let mut history = History::connect(&config.amqp).await.unwrap();
    let mut notes = DiesAt { at: u64::MAX, notes: Vec::new() };
    let report = goes_on
        .run(&mut history, &registry, None, &mut notes, &CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(
        (report.rest.as_ref(), report.from, report.left_out()),
        (None, 5, vec![2]),
        "{report:?}"
    );
    assert!(notes.notes.iter().all(|step| step.undone == [2]), "{:?}", notes.notes);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_at_which_three_died_is_passed_over() {
    const USERS: u32 = 3_000;
    const AT: u64 = 1_234;
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    publish_users(&stage, 0..USERS).await;
    wait_recorded(&stage, USERS.into()).await;
    let pairs: Vec<(String, &str)> = (0..USERS).map(|id| (format!("user:{id}"), "old")).collect();
    let _: () = redis::AsyncCommands::mset(&mut stage.connection().await, &pairs).await.unwrap();
    let config = config(&stage);
    let registry =
        Arc::new(Registry::load(&LoadOptions::for_run(&config.registry)).unwrap().registry);
    let cache = Cache::connect(&config.redis, &config.amqp.queue).unwrap();
    cache.probe().await.unwrap();
    let mut before = TakenOver::default();
    for death in 1..=3 {
        let mut history = History::connect(&config.amqp).await.unwrap();
        let mut dies = DiesAt { at: AT, notes: Vec::new() };
        let replay = Replay { taken_over: before.clone(), ..replay(FoldLimits::default()) };
        let report = replay
            .run(&mut history, &registry, Some(&cache), &mut dies, &CancellationToken::new())
            .await
            .unwrap();
        assert_eq!(report.rest.unwrap().cause, "dead");
        before = taken_over(&before, dies.notes.last().unwrap());
        let died = before.died.clone().unwrap();
        assert_eq!((died.deaths, died.range.contains(&AT)), (death, true), "{died:?}");
        assert_eq!(died.range.end - died.range.start == 1, death > 1, "{died:?}");
        if death > 1 {
            assert_eq!(before.applied_to, Some(AT), "all that came before is applied");
        }
    }
    let mut history = History::connect(&config.amqp).await.unwrap();
    let mut dies = DiesAt { at: AT, notes: Vec::new() };
    let passes_over = Replay { taken_over: before.clone(), ..replay(FoldLimits::default()) };
    let report = passes_over
        .run(&mut history, &registry, Some(&cache), &mut dies, &CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(
        (report.rest.as_ref(), &report.passed_over[..], report.from),
        (None, &[AT][..], AT),
        "{report:?}"
    );
    assert!(!report.is_complete());
    assert_eq!(users(&stage).await, 1, "all but that one");
    assert!(stage.exists(&format!("user:{AT}")).await);

    // A stream that ends before is another one: nothing of it is known to kill.
    let of_another_stream = TakenOver { end: Some(u64::from(USERS) + 1), ..before };
    let tries_all = Replay { taken_over: of_another_stream, ..replay(FoldLimits::default()) };
    let report = tries_all
        .run(&mut history, &registry, Some(&cache), &mut (), &CancellationToken::new())
        .await
        .unwrap();
    assert_eq!((report.from, report.is_whole(), users(&stage).await), (0, true, 0), "{report:?}");
}
