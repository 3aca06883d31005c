//! Tests of the test support itself.

use std::process::{Command, Stdio};
use std::time::Duration;

use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use redis::AsyncCommands;

use crate::support::guard::Guarded;
use crate::support::servers::version_of;
use crate::support::{self, Proxy, RabbitMq, Redis, unique, wait_until};

const SOON: Duration = Duration::from_secs(10);

fn alive(pid: u32) -> bool {
    // A zombie is dead. `kill -0` would report it as alive until its parent waits for it.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn a_child_and_its_folder_go_when_the_watchdogs_pipe_closes() {
    let folder = tempfile::tempdir().unwrap().keep();
    let mut sleeper = Command::new("sleep");
    sleeper.arg("600").stdout(Stdio::null());
    let mut guarded = Guarded::spawn(sleeper, Some(&folder));
    let pid = guarded.pid();
    assert!(alive(pid));
    guarded.lose_pipe();
    wait_until(SOON, "the watchdog ends the child", async || !alive(pid)).await;
    wait_until(SOON, "the watchdog removes the folder", async || !folder.exists()).await;
}

#[test]
fn a_port_is_given_to_one_process() {
    let port = support::port::free();
    let elsewhere = std::fs::File::open(support::port::lock_path(port)).unwrap();
    assert!(elsewhere.try_lock().is_err(), "another process would be given {port}");
}

#[tokio::test]
async fn a_dropped_redis_is_gone() {
    let server = Redis::start().await;
    let pid = server.pid().unwrap();
    assert!(alive(pid));
    drop(server);
    assert!(!alive(pid));
}

#[tokio::test]
async fn a_restarted_redis_keeps_what_it_persisted() {
    let server = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let _: () = server.connection().await.set("kept", 1).await.unwrap();
    let port = server.port();
    server.restart().await;
    assert_eq!(server.port(), port);
    assert_eq!(server.connection().await.get::<_, i64>("kept").await.unwrap(), 1);
}

#[tokio::test]
async fn a_restarted_broker_keeps_confirmed_messages() {
    let node = RabbitMq::start().await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    {
        let connection = node.connection().await;
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        channel.queue_declare("kept".into(), options, arguments).await.unwrap();
        node.flush_declarations().await;
        let properties = lapin::BasicProperties::default().with_delivery_mode(2);
        let publish = channel.basic_publish(
            "".into(),
            "kept".into(),
            BasicPublishOptions::default(),
            b"body",
            properties,
        );
        publish.await.unwrap().await.unwrap();
    }
    node.restart().await;
    let connection = node.connection().await;
    // The queue's leader is elected a moment after the listener opens. A get before that closes its
    // channel.
    wait_until(Duration::from_secs(30), "the message is there after the restart", async || {
        let channel = connection.create_channel().await.unwrap();
        let got = channel.basic_get("kept".into(), BasicGetOptions { no_ack: false }).await;
        matches!(got, Ok(Some(message)) if message.data == b"body")
    })
    .await;
}

#[tokio::test]
async fn the_servers_that_run_are_those_that_were_asked_for() {
    let (servers, node, redis) =
        (support::servers(), support::rabbitmq().await, support::redis().await);
    let running = node.ctl(&["eval", "io:format(rabbit_misc:version()), io:nl()."]).await;
    assert_eq!(version_of(&running), servers.rabbitmq, "{running}");
    let info: String =
        redis::cmd("INFO").arg("server").query_async(&mut redis.connection().await).await.unwrap();
    let value =
        |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let running = value("valkey_version")
        .map_or(("Redis", value("redis_version")), |version| ("Valkey", Some(version)));
    assert_eq!(running.0, servers.redis_software);
    assert_eq!(version_of(running.1.unwrap()), servers.redis);
    let asked = std::env::var("UNSTALE_TEST_REDIS").unwrap_or_else(|_| "redis".to_owned());
    assert_eq!(servers.redis_software.to_lowercase(), asked);
}

#[tokio::test]
async fn rabbitmqctl_reaches_the_shared_node_and_no_other() {
    let node = support::rabbitmq().await;
    let vhost = unique("vhost");
    let url = node.add_vhost(&vhost).await;
    assert!(node.ctl(&["list_vhosts"]).await.contains(&vhost));
    support::rabbitmq::connect(&url).await.unwrap();
}

#[tokio::test]
async fn the_proxy_cuts_refuses_stalls_and_delays() {
    let server = support::redis().await;
    let proxy = Proxy::start(&server.addr()).await;
    let client = redis::Client::open(format!("redis://{}/", proxy.addr())).unwrap();
    let ping = async || {
        let mut connection = support::redis::connect(&client).await?;
        redis::cmd("PING").query_async::<String>(&mut connection).await
    };
    ping().await.unwrap();

    let mut standing = support::redis::connect(&client).await.unwrap();
    proxy.cut().await;
    assert_eq!(proxy.connections(), 0);
    redis::cmd("PING").query_async::<String>(&mut standing).await.unwrap_err();
    ping().await.expect("a cut closes only the connections that stood");

    proxy.refuse().await;
    let refused = tokio::net::TcpStream::connect(proxy.addr()).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    proxy.resume().await;

    let mut standing = support::redis::connect(&client).await.unwrap();
    proxy.stall();
    let mut held =
        tokio::spawn(async move { redis::cmd("PING").query_async::<String>(&mut standing).await });
    tokio::time::timeout(Duration::from_millis(200), &mut held)
        .await
        .expect_err("nothing is passed on while it stalls");
    proxy.resume().await;
    tokio::time::timeout(SOON, held)
        .await
        .expect("what was held back is passed on")
        .unwrap()
        .unwrap();

    let mut standing = support::redis::connect(&client).await.unwrap();
    proxy.delay(Duration::from_millis(60));
    let start = std::time::Instant::now();
    redis::cmd("PING").query_async::<String>(&mut standing).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(120), "{:?}: 60 ms each way", start.elapsed());
}

#[tokio::test]
#[should_panic(expected = "the moon is blue")]
async fn a_wait_names_what_it_waited_for() {
    wait_until(Duration::from_millis(30), "the moon is blue", async || false).await;
}

#[test]
fn metrics_are_summed_by_label() {
    let text = "# TYPE x counter\nx_total{type=\"a\",outcome=\"applied\"} 2\nx_total{type=\"b\",outcome=\"applied\"} 3\nx_total{type=\"b\",outcome=\"dead\"} 5\ny 7\n";
    let metrics = crate::support::worker::Metrics::parse(text);
    assert_eq!(metrics.sum("x_total", &[("outcome", "applied")]), 5.0);
    assert_eq!(metrics.sum("x_total", &[]), 10.0);
    assert_eq!(metrics.sum("y", &[]), 7.0);
}
