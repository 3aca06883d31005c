//! Loaders against real HTTP servers: each class of answer, the limits, and the contents of a
//! request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use unstale::causes::chain;
use unstale::config::WarmConfig;
use unstale::loader::{LoadContext, LoadError, LoadOutcome, LoaderProblem, Loaders};
use unstale::quantity::Rate;
use unstale::registry::{Expiry, Loader, LoaderHeaders, LoaderId, Only, Stale, Warm};

const CONFIG: WarmConfig =
    WarmConfig { concurrency: 16, timeout: Duration::from_secs(5), rate: None, max_bytes: 1 << 20 };
const CONTEXT: LoadContext<'static> = LoadContext { event_id: "e-1", traceparent: None };

fn loader(name: &str, url: &str) -> Loader {
    Loader {
        name: name.to_owned(),
        url: url.to_owned(),
        headers: LoaderHeaders::default(),
        timeout: None,
        concurrency: None,
        rate: None,
        max_bytes: None,
    }
}

fn warm(loader: u32, url: String) -> Warm {
    Warm {
        loader: LoaderId(loader),
        url,
        expiry: Expiry::Never,
        tags: Vec::new(),
        stale: Stale::Drop,
        only: Only::Always,
    }
}

async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

/// A server that reads a request, sends `pieces` with a pause before each, then holds the
/// connection open or closes it.
async fn drip(pieces: &'static [&'static str], pause: Duration, hold: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = socket.read(&mut request).await;
                for piece in pieces {
                    tokio::time::sleep(pause).await;
                    if socket.write_all(piece.as_bytes()).await.is_err() {
                        return;
                    }
                }
                if hold {
                    let _ = socket.read(&mut request).await;
                }
            });
        }
    });
    address
}

async fn load_from(
    address: SocketAddr,
    config: WarmConfig,
    path: &str,
) -> Result<LoadOutcome, LoadError> {
    let base = format!("http://{address}");
    let loaders = Loaders::new(&config, &[loader("catalogue", &base)]).unwrap();
    loaders.load(&warm(0, format!("{base}{path}")), &CONTEXT).await
}

fn retry(result: Result<LoadOutcome, LoadError>) -> (Option<Duration>, String) {
    match result {
        Err(LoadError::Retry { after, cause }) => (after, chain(&cause).to_string()),
        other => panic!("not to be retried: {other:?}"),
    }
}

fn refused(result: Result<LoadOutcome, LoadError>) -> String {
    match result {
        Err(LoadError::Refused { cause }) => cause.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

async fn answer(Path(code): Path<u16>) -> impl IntoResponse {
    let status = StatusCode::from_u16(code).unwrap();
    let body = if matches!(code, 204 | 304) { "" } else { "a value" };
    (status, [("retry-after", "7"), ("location", "/status/200")], body)
}

#[tokio::test]
async fn each_http_status_gives_a_value_absence_a_retry_or_a_refusal() {
    let server = serve(Router::new().route("/status/{code}", get(answer))).await;
    let load =
        async |code: u16| load_from(server, CONFIG, &format!("/status/{code}?secret=1")).await;
    for code in [200, 201, 203, 299] {
        assert_eq!(load(code).await.unwrap(), LoadOutcome::Value(b"a value".to_vec()), "{code}");
    }
    for code in [204, 404, 410] {
        assert_eq!(load(code).await.unwrap(), LoadOutcome::Absent, "{code}");
    }
    for code in [408, 429, 500, 502, 503, 504, 599] {
        let (after, message) = retry(load(code).await);
        assert_eq!(after, Some(Duration::from_secs(7)), "{code}");
        assert_eq!(message, format!("loader `catalogue` answered {code}"));
    }
    for code in
        [202, 206, 207, 208, 226, 301, 302, 303, 304, 307, 308, 400, 401, 403, 405, 409, 418, 451]
    {
        let message = refused(load(code).await);
        assert!(message.starts_with(&format!("loader `catalogue` answered {code}")), "{message}");
        assert!(!message.contains("secret") && !message.contains("/status"), "{message}");
    }
}

#[tokio::test]
async fn loaded_bodies_arrive_byte_for_byte_and_empty_ones_are_absent() {
    let bytes: Vec<u8> = (0..=255u8).cycle().take(700_000).collect();
    let body = bytes.clone();
    let app = Router::new()
        .route("/bytes", get(move || async move { body }))
        .route("/empty", get(|| async { "" }));
    let server = serve(app).await;
    assert_eq!(load_from(server, CONFIG, "/bytes").await.unwrap(), LoadOutcome::Value(bytes));
    assert_eq!(load_from(server, CONFIG, "/empty").await.unwrap(), LoadOutcome::Absent);
}

#[tokio::test]
async fn an_encoded_body_and_a_partial_body_are_refused() {
    for head in [
        "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nbody",
        "HTTP/1.1 200 OK\r\nContent-Encoding: identity, br\r\ncontent-length: 4\r\n\r\nbody",
        "HTTP/1.1 200 OK\r\ncontent-encoding: identity\r\ncontent-encoding: x-mine\r\ncontent-length: 4\r\n\r\nbody",
        "HTTP/1.1 200 OK\r\ncontent-range: bytes 0-3/10\r\ncontent-length: 4\r\n\r\nbody",
        "HTTP/1.1 206 Partial Content\r\ncontent-length: 4\r\n\r\nbody",
    ] {
        let pieces: &'static [&'static str] = Box::leak(Box::new([head]));
        let server = drip(pieces, Duration::ZERO, false).await;
        let message = refused(load_from(server, CONFIG, "/?secret=1").await);
        assert!(
            message.starts_with("loader `catalogue` answered 20") && !message.contains("secret"),
            "{message}"
        );
    }
    let plain = "HTTP/1.1 200 OK\r\ncontent-encoding: Identity\r\ncontent-type: text/html; charset=latin-1\r\ncontent-length: 4\r\n\r\nbody";
    let server = drip(Box::leak(Box::new([plain])), Duration::ZERO, false).await;
    assert_eq!(load_from(server, CONFIG, "/").await.unwrap(), LoadOutcome::Value(b"body".to_vec()));
}

#[tokio::test]
async fn one_resource_that_always_fails_does_not_open_the_loaders_breaker() {
    let app = Router::new().route(
        "/{id}",
        get(|Path(id): Path<u32>| async move {
            if id == 13 { Err(StatusCode::INTERNAL_SERVER_ERROR) } else { Ok("a value") }
        }),
    );
    let base = format!("http://{}", serve(app).await);
    let loaders = Loaders::new(&CONFIG, &[loader("catalogue", &base)]).unwrap();
    for _ in 0..30 {
        let (_, message) = retry(loaders.load(&warm(0, format!("{base}/13")), &CONTEXT).await);
        assert_eq!(message, "loader `catalogue` answered 500");
    }
    assert_eq!(
        loaders.load(&warm(0, format!("{base}/1")), &CONTEXT).await.unwrap(),
        LoadOutcome::Value(b"a value".to_vec())
    );
}

#[tokio::test]
async fn loaded_bodies_beyond_max_bytes_are_refused() {
    let server = serve(
        Router::new().route("/{length}", get(|Path(n): Path<usize>| async move { vec![b'x'; n] })),
    )
    .await;
    let config = WarmConfig { max_bytes: 1024, ..CONFIG };
    assert_eq!(
        load_from(server, config, "/1024").await.unwrap(),
        LoadOutcome::Value(vec![b'x'; 1024])
    );
    let message = refused(load_from(server, config, "/1025").await);
    assert!(message.contains("more than 1KiB"), "{message}");

    // A body without a length and without an end: only the limit stops it.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endless = listener.local_addr().unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let _ = socket.read(&mut [0; 4096]).await;
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let chunk = format!("1000\r\n{}\r\n", "x".repeat(4096));
        while socket.write_all(chunk.as_bytes()).await.is_ok() {
            counter.fetch_add(4096, Ordering::Relaxed);
        }
    });
    refused(load_from(endless, WarmConfig { max_bytes: 64 << 10, ..CONFIG }, "/").await);
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent < 32 << 20, "the sockets' buffers and no more: {sent}");
    let own = Loader { max_bytes: Some(10), ..loader("catalogue", &format!("http://{server}")) };
    refused(
        Loaders::new(&CONFIG, &[own])
            .unwrap()
            .load(&warm(0, format!("http://{server}/11")), &CONTEXT)
            .await,
    );
}

#[tokio::test]
async fn the_timeout_of_a_load_covers_the_whole_answer() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n";
    let config = WarmConfig { timeout: Duration::from_millis(200), ..CONFIG };
    let silent = drip(&[], Duration::ZERO, true).await;
    let stuck = drip(&[HEAD, "x"], Duration::ZERO, true).await;
    let slow = drip(
        &[HEAD, "x", "x", "x", "x", "x", "x", "x", "x", "x", "x"],
        Duration::from_millis(60),
        true,
    )
    .await;
    for server in [silent, stuck, slow] {
        let begun = Instant::now();
        let (after, message) = retry(load_from(server, config, "/").await);
        assert_eq!(
            (after, message.as_str()),
            (None, "loader `catalogue` did not finish its answer within 200ms")
        );
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
    let own = Loader {
        timeout: Some(Duration::from_millis(50)),
        ..loader("own", &format!("http://{silent}"))
    };
    let loaders = Loaders::new(&CONFIG, &[own]).unwrap();
    let (_, message) = retry(loaders.load(&warm(0, format!("http://{silent}/")), &CONTEXT).await);
    assert!(message.ends_with("within 50ms"), "{message}");
}

#[tokio::test]
async fn incomplete_answers_and_refused_connections_are_retried() {
    let short =
        drip(&["HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"], Duration::ZERO, false).await;
    let nothing = drip(&[], Duration::ZERO, false).await;
    let nonsense = drip(&["this is not HTTP\r\n\r\n"], Duration::ZERO, false).await;
    for server in [short, nothing, nonsense] {
        let (_, message) = retry(load_from(server, CONFIG, "/?secret=1").await);
        let what = "loader `catalogue` closed the connection before the end of its answer: ";
        assert!(message.starts_with(what) && !message.contains("secret"), "{message}");
    }
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (_, message) = retry(load_from(closed, CONFIG, "/?secret=1").await);
    assert!(
        message.contains("no connection: Connection refused") && !message.contains("secret"),
        "{message}"
    );
}

#[tokio::test]
async fn a_url_outside_its_loader_is_never_requested() {
    let hits = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&hits);
    let app = Router::new()
        .fallback(get(move || async move { counter.fetch_add(1, Ordering::Relaxed).to_string() }));
    let server = serve(app).await;
    let loaders =
        Loaders::new(&CONFIG, &[loader("catalogue", &format!("http://{server}/api"))]).unwrap();
    for url in [
        format!("http://{server}/admin"),
        format!("http://{server}/api/../admin"),
        "http://127.0.0.1:1/api/x".to_owned(),
        "x".to_owned(),
    ] {
        refused(loaders.load(&warm(0, url), &CONTEXT).await);
    }
    retry(loaders.load(&warm(9, format!("http://{server}/api/x")), &CONTEXT).await);
    assert_eq!(hits.load(Ordering::Relaxed), 0);
    assert!(loaders.load(&warm(0, format!("http://{server}/api/x")), &CONTEXT).await.is_ok());
}

#[tokio::test]
async fn requests_carry_the_event_id_the_trace_and_the_loaders_headers() {
    let app = Router::new().fallback(get(|headers: HeaderMap| async move {
        let mut lines: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
            .collect();
        lines.sort();
        lines.join("\n")
    }));
    let base = format!("http://{}", serve(app).await);
    let headers = LoaderHeaders(vec![
        ("Authorization".into(), "Bearer t0ken".into()),
        ("X-Team".into(), "shop".into()),
    ]);
    let loaders = Loaders::new(
        &CONFIG,
        &[Loader { headers, ..loader("catalogue", &base) }, loader("plain", &base)],
    )
    .unwrap();
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let seen = async |id: u32, context: LoadContext<'static>| match loaders
        .load(&warm(id, format!("{base}/p")), &context)
        .await
    {
        Ok(LoadOutcome::Value(body)) => String::from_utf8(body).unwrap(),
        other => panic!("{other:?}"),
    };

    let all = seen(0, LoadContext { event_id: "order 7\n", traceparent: Some(traceparent) }).await;
    for line in [
        "accept-encoding: identity",
        "authorization: Bearer t0ken",
        "unstale-event-id: order 7%0A",
        concat!("user-agent: unstale/", env!("CARGO_PKG_VERSION")),
        "x-team: shop",
    ] {
        assert!(all.lines().any(|seen| seen == line), "{line} is not in\n{all}");
    }
    assert!(all.contains(&format!("traceparent: {traceparent}")), "{all}");

    let plain = seen(1, LoadContext { event_id: "e", traceparent: Some("nonsense") }).await;
    assert!(
        !plain.contains("traceparent")
            && !plain.contains("authorization")
            && !plain.contains("cookie"),
        "{plain}"
    );
}

/// Numbers of requests that a server saw: at the moment, at most, and in all.
#[derive(Default)]
struct Seen {
    now: AtomicUsize,
    most: AtomicUsize,
    all: AtomicUsize,
}

async fn take_a_while(State(seen): State<Arc<Seen>>) -> &'static str {
    let now = seen.now.fetch_add(1, Ordering::SeqCst) + 1;
    seen.most.fetch_max(now, Ordering::SeqCst);
    seen.all.fetch_add(1, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(20)).await;
    seen.now.fetch_sub(1, Ordering::SeqCst);
    "x"
}

#[tokio::test]
async fn servers_never_see_more_requests_at_once_than_the_limits() {
    let (one, other) = (Arc::new(Seen::default()), Arc::new(Seen::default()));
    let start = async |seen: &Arc<Seen>| {
        let app = Router::new().fallback(get(take_a_while)).with_state(Arc::clone(seen));
        format!("http://{}", serve(app).await)
    };
    let bases = [start(&one).await, start(&other).await];
    let config = WarmConfig { concurrency: 4, ..CONFIG };
    let limited = Loader { concurrency: Some(2), ..loader("limited", &bases[0]) };
    let loaders = Loaders::new(&config, &[limited, loader("free", &bases[1])]).unwrap();
    // Loads of the reloaded registry share the limits with those of the old one.
    let same = Loader { concurrency: Some(2), ..loader("limited", &bases[0]) };
    let reloaded = loaders.reload(&[same, loader("free", &bases[1])]).unwrap();
    let loads = (0..60).map(|n: usize| {
        let (loaders, to) = (if n.is_multiple_of(3) { &reloaded } else { &loaders }, n % 2);
        let warm = warm(u32::try_from(to).unwrap(), format!("{}/{n}", bases[to]));
        async move { loaders.load(&warm, &CONTEXT).await }
    });
    assert!(join_all(loads).await.iter().all(Result::is_ok));
    assert_eq!((one.all.load(Ordering::SeqCst), other.all.load(Ordering::SeqCst)), (30, 30));
    assert_eq!(one.most.load(Ordering::SeqCst), 2, "the loader's own limit, reached and kept");
    let most = other.most.load(Ordering::SeqCst);
    assert!((2..=4).contains(&most), "{most}");
}

#[tokio::test]
async fn loads_start_no_faster_than_the_rate() {
    let server = serve(Router::new().fallback(get(|| async { "x" }))).await;
    let base = format!("http://{server}");
    let rate = Rate::parse("100/s").ok();
    let own = Loader { rate, ..loader("own", &base) };
    for (config, loader) in
        [(WarmConfig { rate, ..CONFIG }, loader("common", &base)), (CONFIG, own)]
    {
        let loaders = Loaders::new(&config, &[loader]).unwrap();
        let begun = Instant::now();
        let answers = join_all((0..31).map(|n| {
            let (loaders, warm) = (&loaders, warm(0, format!("{base}/{n}")));
            async move { loaders.load(&warm, &CONTEXT).await }
        }))
        .await;
        let took = begun.elapsed();
        assert!(answers.iter().all(Result::is_ok));
        assert!(
            took >= Duration::from_millis(290),
            "30 intervals of 10 ms, less what may be caught up: {took:?}"
        );
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
}

#[tokio::test]
async fn an_aborted_load_frees_its_place() {
    let silent = drip(&[], Duration::ZERO, true).await;
    let base = format!("http://{silent}");
    let loaders =
        Loaders::new(&WarmConfig { concurrency: 1, ..CONFIG }, &[loader("catalogue", &base)])
            .unwrap();
    let warm = warm(0, format!("{base}/"));
    assert!(
        tokio::time::timeout(Duration::from_millis(100), loaders.load(&warm, &CONTEXT))
            .await
            .is_err()
    );
    let admitted = tokio::time::timeout(Duration::from_secs(5), loaders.admit(&warm))
        .await
        .expect("the place is free again")
        .unwrap();
    assert_eq!(admitted.timeout(), CONFIG.timeout);
}

#[tokio::test]
async fn every_unusable_loader_is_reported_at_once() {
    let headers = LoaderHeaders(vec![("X-Key".into(), "a\nb".into())]);
    let loaders = [
        loader("one", "not a url"),
        Loader { headers, ..loader("two", "http://shop.test") },
        loader("three", "redis://shop.test"),
    ];
    let problems = Loaders::new(&CONFIG, &loaders).unwrap_err();
    let is_url = |problem: &LoaderProblem, name: &str| matches!(problem, LoaderProblem::Url { loader } if loader == name);
    let [one, two, three] = problems.0.as_slice() else { panic!("{problems:?}") };
    assert!(is_url(one, "one") && is_url(three, "three"), "{problems:?}");
    assert!(
        matches!(two, LoaderProblem::Header { loader, header } if loader == "two" && header == "X-Key"),
        "{problems:?}"
    );
    assert_eq!(problems.to_string().lines().count(), 3);
    assert!(Loaders::new(&CONFIG, &[loader("tls", "https://shop.test")]).is_ok());
}
