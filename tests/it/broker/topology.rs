//! Objects that are found, declared, bound, or reported as missing.

use std::time::Duration;

use lapin::ExchangeKind;
use lapin::options::{
    BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use unstale::broker::{BrokerError, DeletionSeen, LaneName, Mended, Session, Signer, Start};
use unstale::causes::Explain;
use unstale::config::{AmqpConfig, DeclarePolicy, HistoryConfig};

use super::{
    SOON, config, declare_exchange, declare_queue, depth, keys, next, open, other, publish,
    with_headers,
};
use crate::support::{rabbitmq, unique, wait_until};

fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    table
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn problems(error: BrokerError) -> String {
    assert!(error.is_final(), "{error}");
    assert!(matches!(error, BrokerError::Topology(_)), "{error:?}");
    error.in_full()
}

#[tokio::test]
async fn everything_is_declared_bound_and_found_again() {
    let rabbitmq = rabbitmq().await;
    let mut config = config(&rabbitmq.url());
    config.history =
        Some(HistoryConfig { max_age: Duration::from_secs(3_600), max_bytes: 1 << 30 });
    config.bind = keys(&["by.hand"]);
    let session =
        Session::open(&config, &keys(&["user.*"]), &Signer::default(), Start::First).await.unwrap();
    assert!(session.warnings().is_empty());
    for key in ["user.updated", "by.hand"] {
        publish(&session, &config, key, b"{}").await;
    }
    let channel = other(rabbitmq).await;
    let names = session.names().clone();
    assert_eq!(depth(&channel, &names.main).await, 2);
    for queue in [&names.slow, &names.dead, &names.retry[0].1, &names.retry[1].1] {
        assert_eq!(depth(&channel, queue).await, 0, "{queue}");
    }
    // The history has them too.
    channel.basic_qos(10, BasicQosOptions::default()).await.unwrap();
    let from_first = table(&[("x-stream-offset", text("first"))]);
    let history = channel
        .basic_consume(
            names.history.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            from_first,
        )
        .await
        .unwrap();
    let read: Vec<_> = tokio::time::timeout(
        SOON,
        futures_util::StreamExt::collect(futures_util::StreamExt::take(history, 2)),
    )
    .await
    .unwrap();
    assert!(read.iter().all(Result::is_ok));

    // A second worker, with any `UNSTALE_DECLARE`, finds the objects as they are.
    for policy in [DeclarePolicy::All, DeclarePolicy::Queues, DeclarePolicy::None] {
        config.declare = policy;
        let second = Session::open(&config, &keys(&["user.*"]), &Signer::default(), Start::First)
            .await
            .unwrap();
        assert!(second.warnings().is_empty(), "{policy:?}");
        second.close().await;
    }
    session.close().await;
}

#[tokio::test]
async fn a_changed_registry_is_bound_and_nothing_is_unbound() {
    let rabbitmq = rabbitmq().await;
    let config = config(&rabbitmq.url());
    let session =
        Session::open(&config, &keys(&["a", "b"]), &Signer::default(), Start::First).await.unwrap();
    let rebound = session.bind(&keys(&["b", "c"])).await.unwrap();
    assert_eq!((rebound.added, rebound.left_bound), (keys(&["c"]), keys(&["a"])));
    for key in ["a", "b", "c"] {
        publish(&session, &config, key, b"{}").await;
    }
    assert_eq!(depth(&other(rabbitmq).await, &config.queue).await, 3);
}

#[tokio::test]
async fn what_is_missing_and_may_not_be_declared_is_named() {
    let rabbitmq = rabbitmq().await;
    let mut config = config(&rabbitmq.url());
    config.declare = DeclarePolicy::None;
    config.history = Some(HistoryConfig { max_age: Duration::from_secs(60), max_bytes: 1 << 30 });
    let told = problems(
        Session::open(&config, &keys(&["a"]), &Signer::default(), Start::First).await.unwrap_err(),
    );
    let queue = &config.queue;
    for name in [
        config.exchange.clone(),
        queue.clone(),
        format!("{queue}.slow"),
        format!("{queue}.retry.200ms"),
        format!("{queue}.retry.10m"),
        format!("{queue}.dead"),
        format!("{queue}.history"),
    ] {
        assert!(told.contains(&format!("`{name}`: ")), "{name} in {told}");
    }
    assert_eq!(told.lines().count(), 7, "{told}");
    assert!(told.contains("UNSTALE_HISTORY=off"));

    config.declare = DeclarePolicy::Queues;
    let told = problems(
        Session::open(&config, &keys(&["a"]), &Signer::default(), Start::First).await.unwrap_err(),
    );
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains(&config.exchange) && told.contains("UNSTALE_DECLARE=all"), "{told}");
    declare_exchange(&other(rabbitmq).await, &config.exchange).await;
    let session =
        Session::open(&config, &keys(&["a"]), &Signer::default(), Start::First).await.unwrap();
    publish(&session, &config, "a", b"{}").await;
}

#[tokio::test]
async fn a_queue_with_other_arguments_is_reported_in_the_brokers_words_and_left_alone() {
    let rabbitmq = rabbitmq().await;
    let channel = other(rabbitmq).await;
    let config = config(&rabbitmq.url());
    let quorum = ("x-queue-type", text("quorum"));
    declare_queue(&channel, &config.queue, table(&[])).await;
    declare_queue(
        &channel,
        &format!("{}.slow", config.queue),
        table(std::slice::from_ref(&quorum)),
    )
    .await;
    declare_queue(
        &channel,
        &format!("{}.dead", config.queue),
        table(&[quorum, ("x-delivery-limit", AMQPValue::LongLongInt(5))]),
    )
    .await;
    channel
        .basic_publish(
            "".into(),
            config.queue.as_str().into(),
            Default::default(),
            b"kept",
            with_headers(table(&[])),
        )
        .await
        .unwrap();
    let told = problems(
        Session::open(&config, &keys(&["a"]), &Signer::default(), Start::First).await.unwrap_err(),
    );
    assert_eq!(told.lines().count(), 3, "each of them: {told}");
    for (object, argument) in
        [("", "x-dead-letter"), (".slow", "x-dead-letter"), (".dead", "x-delivery-limit")]
    {
        let line = told
            .lines()
            .find(|line| line.starts_with(&format!("queue `{}{object}`", config.queue)))
            .unwrap();
        assert!(
            line.contains("PRECONDITION_FAILED - inequivalent arg") && line.contains(argument),
            "{line}"
        );
        assert!(line.contains("nothing was changed") && line.contains("UNSTALE_QUEUE"), "{line}");
    }
    let kept = other(rabbitmq).await;
    wait_until(SOON, "the message is still there", async || depth(&kept, &config.queue).await == 1)
        .await;
}

#[tokio::test]
async fn each_kind_of_refusal_of_a_declaration_has_its_own_advice() {
    let rabbitmq = rabbitmq().await;
    let refused = async |config: &AmqpConfig| {
        problems(
            Session::open(config, &keys(&["a"]), &Signer::default(), Start::First)
                .await
                .unwrap_err(),
        )
    };
    let vhost = unique("limit");
    let mut limited = config(&rabbitmq.add_vhost(&vhost).await);
    limited.history =
        Some(HistoryConfig { max_age: Duration::from_secs(3_600), max_bytes: 1 << 30 });
    rabbitmq.ctl(&["set_vhost_limits", "-p", &vhost, r#"{"max-queues":0}"#]).await;
    let shown = refused(&limited).await;
    assert!(shown.lines().count() > 4, "each queue: {shown}");
    assert!(shown.lines().any(|line| line.contains(".history")), "{shown}");
    for line in shown.lines() {
        assert!(line.contains("queue limit in vhost") && line.contains("max-queues"), "{line}");
        for wrong in ["delete it", "UNSTALE_QUEUE", "UNSTALE_HISTORY=off"] {
            assert!(!line.contains(wrong), "{line}");
        }
    }

    let taken = config(&rabbitmq.url());
    let owner = rabbitmq.connection().await;
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let name = format!("{}.slow", taken.queue);
    owner
        .create_channel()
        .await
        .unwrap()
        .queue_declare(name.as_str().into(), exclusive, table(&[]))
        .await
        .unwrap();
    let shown = refused(&taken).await;
    assert!(
        shown.contains("RESOURCE_LOCKED") && shown.contains("close that connection"),
        "{shown}"
    );
    assert!(!shown.contains("delete it"), "{shown}");

    let mut reserved = config(&rabbitmq.url());
    reserved.queue = unique("amq.unstale");
    let shown = refused(&reserved).await;
    assert!(shown.contains("reserved prefix") && shown.contains("UNSTALE_QUEUE"), "{shown}");
    assert!(!shown.contains("grant"), "{shown}");
}

#[tokio::test]
async fn a_limit_of_connections_has_its_own_advice() {
    let rabbitmq = rabbitmq().await;
    let vhost = unique("limit");
    let config = config(&rabbitmq.add_vhost(&vhost).await);
    rabbitmq.ctl(&["set_vhost_limits", "-p", &vhost, r#"{"max-connections":0}"#]).await;
    let refused =
        Session::open(&config, &keys(&["a"]), &Signer::default(), Start::First).await.unwrap_err();
    assert!(!refused.is_final(), "{refused:?}");
    let shown = refused.in_full();
    assert!(shown.contains("connection limit") && shown.contains("raise that limit"), "{shown}");
}

#[tokio::test]
async fn another_retention_of_the_history_is_a_warning() {
    let rabbitmq = rabbitmq().await;
    let mut config = config(&rabbitmq.url());
    config.history = Some(HistoryConfig { max_age: Duration::from_secs(60), max_bytes: 1 << 30 });
    open(&config).await.close().await;
    for (max_age, max_bytes) in [(120, 1 << 30), (60, 2 << 30)] {
        config.history = Some(HistoryConfig { max_age: Duration::from_secs(max_age), max_bytes });
        let session = open(&config).await;
        let [warning] = session.warnings() else { panic!("one warning: {:?}", session.warnings()) };
        assert!(warning.contains(".history") && warning.contains("inequivalent arg"), "{warning}");
        session.close().await;
    }
    // A history that is not a stream is not a matter of retention.
    let mut classic = super::config(&rabbitmq.url());
    classic.history = config.history;
    declare_queue(&other(rabbitmq).await, &format!("{}.history", classic.queue), table(&[])).await;
    let told = problems(
        Session::open(&classic, &keys(&["a"]), &Signer::default(), Start::First).await.unwrap_err(),
    );
    assert!(told.contains("PRECONDITION_FAILED") && told.contains(".history"), "{told}");
}

#[tokio::test]
async fn a_dead_letter_queue_of_an_earlier_version_is_used_as_it_is() {
    let rabbitmq = rabbitmq().await;
    let config = config(&rabbitmq.url());
    let limit = ("x-delivery-limit", AMQPValue::LongLongInt(1_000_000_000));
    declare_queue(
        &other(rabbitmq).await,
        &format!("{}.dead", config.queue),
        table(&[("x-queue-type", text("quorum")), limit]),
    )
    .await;
    let session = open(&config).await;
    let [warning] = session.warnings() else { panic!("one warning: {:?}", session.warnings()) };
    assert!(warning.contains(".dead") && warning.contains("x-overflow"), "{warning}");
}

#[tokio::test]
async fn an_exchange_that_ignores_patterns_is_a_warning() {
    let rabbitmq = rabbitmq().await;
    for (kind, routing_key, warned) in [
        (ExchangeKind::Direct, "order.#", true),
        (ExchangeKind::Direct, "order.made", false),
        (ExchangeKind::Fanout, "order.#", false),
    ] {
        let config = config(&rabbitmq.url());
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let channel = other(rabbitmq).await;
        channel
            .exchange_declare(
                config.exchange.as_str().into(),
                kind.clone(),
                options,
                FieldTable::default(),
            )
            .await
            .unwrap();
        let session =
            Session::open(&config, &keys(&[routing_key]), &Signer::default(), Start::First)
                .await
                .unwrap();
        let warnings = session.warnings().join("\n");
        assert_eq!(
            warnings.contains("ignores patterns"),
            warned,
            "{kind:?} {routing_key}: {warnings}"
        );
    }
}

#[tokio::test]
async fn deleted_objects_are_declared_and_reported() {
    let rabbitmq = rabbitmq().await;
    let mut config = config(&rabbitmq.url());
    config.history =
        Some(HistoryConfig { max_age: Duration::from_secs(3_600), max_bytes: 1 << 30 });
    let session = open(&config).await;
    assert!(session.is_first_ever() && session.main_was_missing() && !session.owes_heal());
    assert_eq!(session.mend().await.unwrap(), Mended::default(), "all is there");
    let delete = async |queue: &str| {
        other(rabbitmq)
            .await
            .queue_delete(queue.into(), QueueDeleteOptions::default())
            .await
            .unwrap();
    };
    let names = session.names().clone();
    for (queue, owes_heal) in [
        (&names.retry[0].1, true),
        (&names.dead, false),
        (&names.slow, true),
        (&names.history, false),
    ] {
        delete(queue).await;
        let mended = session.mend().await.unwrap();
        assert_eq!(
            (mended.declared, session.deletion_seen().take()),
            (vec![format!("queue `{queue}`")], owes_heal)
        );
    }
    other(rabbitmq)
        .await
        .exchange_delete(config.exchange.as_str().into(), Default::default())
        .await
        .unwrap();
    let mended = session.mend().await.unwrap();
    assert_eq!(
        (mended.declared, session.deletion_seen().take()),
        (vec![format!("exchange `{}`", config.exchange)], true)
    );
    publish(&session, &config, "user.updated", b"{}").await;
    assert_eq!(depth(&other(rabbitmq).await, &names.main).await, 1, "it is bound again");

    // Another session finds what was deleted before it began.
    delete(&names.main).await;
    let second = open(&config).await;
    assert!(second.main_was_missing() && second.owes_heal() && !second.is_first_ever());
    let third = open(&config).await;
    assert!(!third.owes_heal() && third.declared().is_empty());

    // A worker that may not declare reports what is missing.
    config.declare = DeclarePolicy::None;
    let fourth = open(&config).await;
    delete(&names.retry[0].1).await;
    delete(&names.history).await;
    let mended = fourth.mend().await.unwrap();
    assert!(
        mended.problems.len() == 1 && mended.problems[0].contains(&names.retry[0].1),
        "{mended:?}"
    );
    assert!(mended.history_fault.is_some_and(|words| words.contains(".history")));
}

#[tokio::test]
async fn a_deletion_is_noted_even_where_the_session_cannot_begin() {
    let rabbitmq = rabbitmq().await;
    let mut config = config(&rabbitmq.url());
    config.history =
        Some(HistoryConfig { max_age: Duration::from_secs(3_600), max_bytes: 1 << 30 });
    let seen = DeletionSeen::default();
    let open = async |start| {
        Session::open_noting(&config, &keys(&["a"]), &Signer::default(), start, &seen).await
    };
    let again = async || open(Start::Again).await;
    let session = open(Start::First).await.unwrap();
    let names = session.names().clone();
    assert!(!seen.is_noted() && seen.neither_existed(), "nothing existed before");
    assert!(seen.take_declared_history());
    seen.objects_exist();

    // The main queue is gone, and another object keeps the next session from beginning.
    let channel = other(rabbitmq).await;
    for queue in [&names.main, &names.dead] {
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    }
    declare_queue(&channel, &names.dead, table(&[("x-queue-type", text("classic"))])).await;
    problems(again().await.unwrap_err());
    assert!(seen.take(), "a session that cannot begin");
    problems(again().await.unwrap_err());
    assert!(!seen.is_noted(), "what is refused was not declared");

    // The history is gone too. A later session knows that both existed.
    for queue in [&names.main, &names.history] {
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    }
    problems(again().await.unwrap_err());
    assert!(seen.take() && seen.take_declared_history() && !seen.neither_existed());
}

#[tokio::test]
async fn a_refusal_names_the_missing_permissions() {
    let rabbitmq = rabbitmq().await;
    let mut config = config(&rabbitmq.url());
    let url = rabbitmq.add_user(&config.queue, "secret-password", "/", ["^$", "^$", "^$"]).await;
    config.urls = super::config(&url).urls;
    let told = problems(
        Session::open(&config, &keys(&["a"]), &Signer::default(), Start::First).await.unwrap_err(),
    );
    assert!(told.contains("ACCESS_REFUSED") || told.contains("access to"), "{told}");
    assert!(!told.contains("secret-password"));
}

#[tokio::test]
async fn a_retry_queue_returns_its_messages_after_its_delay() {
    let rabbitmq = rabbitmq().await;
    let config = config(&rabbitmq.url());
    let session = open(&config).await;
    let mut lane = session.lane(LaneName::Main).await.unwrap();
    lane.consume(10).await.unwrap();
    let channel = other(rabbitmq).await;
    let retry_queue = session.names().retry_queue(1).unwrap();
    channel
        .basic_publish(
            "".into(),
            retry_queue.into(),
            Default::default(),
            b"again",
            with_headers(table(&[])),
        )
        .await
        .unwrap();
    let back = next(&mut lane).await;
    assert_eq!(
        (back.body(), back.exchange(), back.routing_key()),
        (&b"again"[..], "", config.queue.as_str())
    );
    lane.ack_through(back.tag()).unwrap();
    wait_until(SOON, "the retry queue is empty", async || depth(&channel, retry_queue).await == 0)
        .await;
}
