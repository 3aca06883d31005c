//! Health and metrics, asked over a bare socket.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use unstale::http::{self, Readiness};
use unstale::telemetry::Metrics;

struct Server {
    addr: SocketAddr,
    readiness: Readiness,
    metrics: Metrics,
    shutdown: CancellationToken,
    serving: JoinHandle<std::io::Result<()>>,
}

async fn start() -> Server {
    let listener = http::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (readiness, metrics, shutdown) = (Readiness::new(), Metrics::new(), CancellationToken::new());
    let serving = tokio::spawn(http::serve(listener, readiness.clone(), metrics.clone(), shutdown.clone()));
    Server { addr, readiness, metrics, shutdown, serving }
}

async fn get(addr: SocketAddr, path: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn readiness_names_each_cause_until_there_is_none() {
    let server = start().await;
    assert!(get(server.addr, "/livez", "").await.starts_with("HTTP/1.1 200"), "alive, though not ready");
    let answer = get(server.addr, "/readyz", "").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    for part in ["consuming: ", "redis: ", "healed: "] {
        assert!(answer.contains(part), "{answer}");
    }
    server.readiness.set_consuming(Ok(()));
    server.readiness.set_healed(Ok(()));
    server.readiness.set_redis(Err("LOADING".into()));
    let answer = get(server.addr, "/readyz", "").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("not ready\nredis: LOADING\n"), "{answer}");
    server.readiness.set_redis(Ok(()));
    server.readiness.ready().await;
    let answer = get(server.addr, "/readyz", "").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ready\n"), "{answer}");
    assert!(get(server.addr, "/other", "").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn metrics_are_served_in_the_format_asked_for() {
    let server = start().await;
    server.metrics.retried();
    let plain = get(server.addr, "/metrics", "").await;
    assert!(plain.contains("content-type: text/plain; version=0.0.4"), "{plain}");
    assert!(plain.contains("\nunstale_retries_total 1\n") && !plain.contains("# EOF"), "{plain}");
    let open = get(server.addr, "/metrics", "accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n").await;
    assert!(open.contains("content-type: application/openmetrics-text; version=1.0.0"), "{open}");
    assert!(open.ends_with("# EOF\n"), "{open}");
}

#[tokio::test]
async fn a_client_that_never_finishes_does_not_hold_up_the_end() {
    let server = start().await;
    let mut unfinished = TcpStream::connect(server.addr).await.unwrap();
    unfinished.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
    assert!(get(server.addr, "/livez", "").await.ends_with("ok\n"));
    server.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(10), server.serving).await.expect("stops").unwrap().unwrap();
    assert!(TcpStream::connect(server.addr).await.is_err(), "no longer listening");
}

#[tokio::test]
async fn a_taken_address_names_its_setting() {
    let server = start().await;
    let message = http::bind(server.addr).await.unwrap_err().to_string();
    assert!(message.starts_with("UNSTALE_HTTP_ADDR: cannot listen on 127.0.0.1:"), "{message}");
}
