//! Reads a user through the cache: `cargo run --package unstale-reader --example read [ID]`
#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program that talks to a person, and reads its own settings"
)]

use std::convert::Infallible;
use std::error::Error;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use unstale_reader::redis::{Client, aio::ConnectionManagerConfig};
use unstale_reader::{Options, Outcome, Reader};

/// Stands for a query of the primary database.
async fn load_user(id: &str) -> Result<Option<Value>, Infallible> {
    tokio::time::sleep(Duration::from_millis(100)).await;
    let loaded = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Ok(Some(json!({ "id": id, "team": "blue", "loaded": loaded })))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let id = std::env::args().nth(1).unwrap_or_else(|| "42".into());
    let url = std::env::var("UNSTALE_REDIS_URL").unwrap_or("redis://127.0.0.1:6379/0".into());
    let connection =
        Client::open(url)?.get_connection_manager_lazy(ConnectionManagerConfig::new())?;
    let outcome = Arc::new(OnceLock::<Outcome>::new());
    let seen = outcome.clone();
    let observe = move |outcome| _ = seen.set(outcome);
    let cache =
        Reader::new(connection, Options { observe: Some(Arc::new(observe)), ..Options::default() });

    let (key, ttl) = (format!("user:{id}"), Duration::from_secs(3600));
    let tags = |user: &Value| vec![format!("team:{}", user["team"].as_str().unwrap_or_default())];
    let user = cache.get_or_load_json(&key, || load_user(&id), ttl, tags).await?;
    if let (Some(outcome), Some(user)) = (outcome.get(), user) {
        println!("{outcome} {user}");
    }
    Ok(())
}
