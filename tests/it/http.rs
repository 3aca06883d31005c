//! Health and metrics over HTTP, requested over a bare socket.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use unstale::causes::Explain;
use unstale::http::{self, Readiness};
use unstale::telemetry::Metrics;

use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Proxy, Worker, wait_until};

struct Server {
    addr: SocketAddr,
    readiness: Readiness,
    metrics: Metrics,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

async fn start() -> Server {
    let listener = http::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (readiness, metrics, shutdown) =
        (Readiness::new(), Metrics::new(), CancellationToken::new());
    let serving =
        tokio::spawn(http::serve(listener, readiness.clone(), metrics.clone(), shutdown.clone()));
    Server { addr, readiness, metrics, shutdown, serving }
}

async fn get(addr: SocketAddr, path: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream
        .write_all(
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n")
                .as_bytes(),
        )
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn readyz_names_each_cause_until_the_worker_is_ready() {
    let server = start().await;
    assert!(
        get(server.addr, "/livez", "").await.starts_with("HTTP/1.1 200"),
        "alive, though not ready"
    );
    let answer = get(server.addr, "/readyz", "").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    for part in ["consuming: ", "redis: ", "healed: "] {
        assert!(answer.contains(part), "{answer}");
    }
    server.readiness.set_consuming(Ok(()));
    server.readiness.set_healed(Ok(()));
    server.readiness.set_redis(Err("LOADING".into()));
    let answer = get(server.addr, "/readyz", "").await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.ends_with("not ready\nredis: LOADING\n"),
        "{answer}"
    );
    server.readiness.set_redis(Ok(()));
    server.readiness.ready().await;
    let answer = get(server.addr, "/readyz", "").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ready\n"), "{answer}");
    assert!(get(server.addr, "/other", "").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn metrics_are_served_in_the_requested_format() {
    let server = start().await;
    server.metrics.retried();
    let plain = get(server.addr, "/metrics", "").await;
    assert!(plain.contains("content-type: text/plain; version=0.0.4"), "{plain}");
    assert!(plain.contains("\nunstale_retries_total 1\n") && !plain.contains("# EOF"), "{plain}");
    let open = get(
        server.addr,
        "/metrics",
        "accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n",
    )
    .await;
    assert!(open.contains("content-type: application/openmetrics-text; version=1.0.0"), "{open}");
    assert!(open.ends_with("# EOF\n"), "{open}");
}

#[tokio::test]
async fn a_client_that_never_finishes_does_not_delay_the_end_of_the_http_server() {
    let server = start().await;
    let mut unfinished = TcpStream::connect(server.addr).await.unwrap();
    unfinished.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
    assert!(get(server.addr, "/livez", "").await.ends_with("ok\n"));
    server.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(10), server.serving).await.expect("stops").unwrap();
    assert!(TcpStream::connect(server.addr).await.is_err(), "no longer listening");
}

#[tokio::test]
async fn an_http_address_in_use_is_an_error_that_names_its_setting() {
    let server = start().await;
    let message = http::bind(server.addr).await.unwrap_err().in_full();
    assert!(message.starts_with("UNSTALE_HTTP_ADDR: cannot listen on 127.0.0.1:"), "{message}");
}

/// Opens connections that send half a request and then nothing.
async fn half_open(addr: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut open = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        // The worker may have had to make room already.
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n").await;
        open.push(stream);
    }
    open
}

#[tokio::test]
async fn half_open_http_connections_do_not_block_other_clients() {
    let server = start().await;
    let held = half_open(server.addr, 1_000).await;
    for _ in 0..20 {
        let asked = Instant::now();
        assert!(get(server.addr, "/livez", "").await.ends_with("ok\n"));
        assert!(asked.elapsed() < Duration::from_secs(5), "answered after {:?}", asked.elapsed());
    }
    drop(held);
}

#[tokio::test]
async fn an_http_connection_without_a_whole_request_is_closed() {
    let server = start().await;
    let mut silent = TcpStream::connect(server.addr).await.unwrap();
    let mut half = TcpStream::connect(server.addr).await.unwrap();
    half.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n").await.unwrap();
    for stream in [&mut silent, &mut half] {
        let mut answer = String::new();
        // The worker closed it, with 408 or without an answer.
        let read =
            tokio::time::timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await;
        read.expect("the server closes the connection").unwrap();
        assert!(!answer.contains(" 200 "), "{answer}");
    }
}

#[tokio::test]
async fn an_http_request_with_a_large_head_is_refused() {
    let server = start().await;
    let answer = get(server.addr, "/livez", &format!("x: {}\r\n", "y".repeat(100_000))).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
}

fn descriptors(worker: &Worker) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", worker.pid())).unwrap().count()
}

/// The flood is one of connections that send half a request, and of connections that never read
/// their answer. The process has few descriptors.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_reconnects_to_both_servers_while_a_thousand_half_open_connections_are_held() {
    const SCHEMA: &str = "events: { user.updated: { effects: [ { delete: \"user:{id}\" } ] } }";
    let stage = Stage::new(&[("user.yaml", SCHEMA)]).await;
    let amqp_addr =
        stage.amqp_url().rsplit('@').next().unwrap().split('/').next().unwrap().to_owned();
    let (amqp, redis) = (Proxy::start(&amqp_addr).await, Proxy::start(&stage.redis.addr()).await);
    let amqp_url = stage.amqp_url().replace(&amqp_addr, &amqp.addr());
    let redis_url = stage.redis.url().replace(&stage.redis.addr(), &redis.addr());
    let worker =
        stage.worker(&[("UNSTALE_AMQP_URL", &amqp_url), ("UNSTALE_REDIS_URL", &redis_url)]).await;
    let before = descriptors(&worker);
    // Enough for 64 connections and the worker's own, but not for a thousand.
    let limit = Command::new("prlimit")
        .args(["--pid", &worker.pid().to_string(), "--nofile=200:200"])
        .status()
        .unwrap();
    assert!(limit.success());

    let addr = worker.http_addr();
    let held = half_open(addr, 1_000).await;
    let mut unread = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
        unread.push(stream);
    }
    assert!(descriptors(&worker) < 200);
    assert_eq!(worker.get("/livez").await.map(|(status, _)| status), Some(200));
    tokio::join!(amqp.cut(), redis.cut());
    stage.set("user:1", "old").await;
    stage.publish("user.updated", r#"{"id":1}"#).await;
    stage.wait_gone("user:1").await;
    wait_until(SOON, "it is ready", async || matches!(worker.get("/readyz").await, Some((200, _))))
        .await;

    drop((held, unread));
    wait_until(SOON, "nothing is left of them", async || descriptors(&worker) <= before + 4).await;
    assert_eq!(worker.terminate().await.code(), Some(0));
}

#[tokio::test]
async fn a_worker_warns_of_too_few_file_descriptors() {
    let mut worker = Command::new("prlimit")
        .args(["--nofile=100:100", env!("CARGO_BIN_EXE_unstale"), "run"])
        .env_clear()
        .envs([("UNSTALE_SCHEMAS", "/nowhere"), ("PATH", "/usr/bin:/bin")])
        .output()
        .unwrap();
    let log = String::from_utf8(std::mem::take(&mut worker.stderr)).unwrap();
    assert!(log.contains("the process may open 100 files and needs up to"), "{log}");
}
