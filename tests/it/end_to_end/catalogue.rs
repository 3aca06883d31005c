//! Server for a loader: its values, the requests it got, and how many at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use tokio::sync::Semaphore;

use super::stage::SOON;
use crate::support::wait_until;

#[derive(Default)]
struct Inner {
    values: HashMap<String, String>,
    /// Loads by id: total, running, and most at once.
    loads: HashMap<String, [usize; 3]>,
    failing_with: Option<u16>,
    longest_ms: u64,
}

/// Server that answers `/{id}` with the value at the time of the request, even if the value changes
/// until the answer.
#[derive(Clone)]
pub(crate) struct Catalogue {
    pub(crate) url: String,
    inner: Arc<Mutex<Inner>>,
    gate: Arc<Semaphore>,
}

/// Running load, which ends when this is dropped.
struct UnderWay(Arc<Mutex<Inner>>, String);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.lock().unwrap().loads.get_mut(&self.1).unwrap()[1] -= 1;
    }
}

impl Catalogue {
    /// Starts a server whose requests wait until [`answer`](Self::answer) lets them through.
    pub(crate) async fn gated() -> Self {
        Self::start(Semaphore::new(0)).await
    }

    /// Starts a server that answers each request by itself, after a random time up to that limit.
    pub(crate) async fn open(longest_ms: u64) -> Self {
        let catalogue = Self::start(Semaphore::new(Semaphore::MAX_PERMITS)).await;
        catalogue.inner.lock().unwrap().longest_ms = longest_ms;
        catalogue
    }

    async fn start(gate: Semaphore) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let catalogue = Self { url, inner: Arc::default(), gate: Arc::new(gate) };
        let app = Router::new().route("/{id}", get(Self::load)).with_state(catalogue.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        catalogue
    }

    async fn load(State(catalogue): State<Self>, Path(id): Path<String>) -> (StatusCode, String) {
        let (value, failing_with, delay_ms) = {
            let mut inner = catalogue.inner.lock().unwrap();
            let [so_far, under_way, most] = inner.loads.entry(id.clone()).or_default();
            *so_far += 1;
            *under_way += 1;
            *most = (*most).max(*under_way);
            (
                inner.values.get(&id).cloned(),
                inner.failing_with,
                fastrand::u64(0..=inner.longest_ms),
            )
        };
        let _under_way = UnderWay(Arc::clone(&catalogue.inner), id);
        if let Some(code) = failing_with {
            return (StatusCode::from_u16(code).unwrap(), String::new());
        }
        catalogue.gate.acquire().await.unwrap().forget();
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        value.map_or((StatusCode::NOT_FOUND, String::new()), |value| (StatusCode::OK, value))
    }

    pub(crate) fn set(&self, id: &str, value: &str) {
        self.inner.lock().unwrap().values.insert(id.to_owned(), value.to_owned());
    }

    pub(crate) fn remove(&self, id: &str) {
        self.inner.lock().unwrap().values.remove(id);
    }

    /// Sets the status with which each request is answered at once, or unsets it.
    pub(crate) fn fail_with(&self, code: impl Into<Option<u16>>) {
        self.inner.lock().unwrap().failing_with = code.into();
    }

    /// Lets that many requests through, including later ones.
    pub(crate) fn answer(&self, requests: usize) {
        self.gate.add_permits(requests);
    }

    pub(crate) fn loads(&self, id: &str) -> usize {
        self.inner.lock().unwrap().loads.get(id).map_or(0, |[so_far, ..]| *so_far)
    }

    pub(crate) fn all_loads(&self) -> usize {
        self.inner.lock().unwrap().loads.values().map(|[so_far, ..]| so_far).sum()
    }

    /// Returns the maximum number of concurrent loads of one id.
    pub(crate) fn most_at_once(&self, id: &str) -> usize {
        self.inner.lock().unwrap().loads.get(id).map_or(0, |[_, _, most]| *most)
    }

    pub(crate) async fn wait_asked(&self, id: &str, times: usize) {
        wait_until(SOON, &format!("{id} is asked for {times} times"), async || {
            self.loads(id) >= times
        })
        .await;
    }
}
