//! The shop's catalogue service, from which `warm` rules load.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Maximum size of a request's head. Usual ones have a few hundred bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;

pub(crate) struct Catalogue {
    loads: Arc<AtomicUsize>,
}

impl Catalogue {
    /// Serves at the host and port of `url` until the program ends.
    pub(crate) async fn serve(url: &str) -> anyhow::Result<Self> {
        let parsed = url::Url::parse(url).context("UNSTALE_VAR_CATALOGUE_URL")?;
        let addr = parsed.socket_addrs(|| None).context("UNSTALE_VAR_CATALOGUE_URL")?;
        let listener = TcpListener::bind(&addr[..])
            .await
            .with_context(|| format!("the catalogue cannot listen at {url}"))?;
        let loads = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&loads);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let counter = Arc::clone(&counter);
                tokio::spawn(async move { answer(stream, &counter).await });
            }
        });
        Ok(Self { loads })
    }

    /// Returns the number of pages served.
    pub(crate) fn loads(&self) -> usize {
        self.loads.load(Ordering::Relaxed)
    }
}

async fn answer(mut stream: TcpStream, loads: &AtomicUsize) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > MAX_HEAD_BYTES || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split(' ').nth(1).unwrap_or_default();
    let authorized =
        head.lines().any(|line| line.to_ascii_lowercase().starts_with("authorization: bearer "));
    let (status, body) = match page(path) {
        _ if !authorized => ("401 Unauthorized", ""),
        Some(body) => {
            loads.fetch_add(1, Ordering::Relaxed);
            ("200 OK", body)
        }
        None => ("404 Not Found", ""),
    };
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

fn page(path: &str) -> Option<&'static str> {
    match path {
        "/products/7" => Some(crate::steps::PRODUCT_PAGE),
        "/rankings/toys" => Some(crate::steps::RANKING),
        _ => None,
    }
}
