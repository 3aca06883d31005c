//! The cache against real Redis: the six verbs, the batch law, tags, leases, refusals and outages.

mod big_tags;
mod clock_ahead;
mod conformance;
mod outages;
mod refusals;
mod second_delete_clock;
pub(crate) mod tags_in_tags;
mod tls;
mod verbs;

use std::time::Duration;

use redis::aio::ConnectionLike;
use unstale::cache::{Applied, Cache};
use unstale::config::{RedisConfig, RedisMode, SecretUrl, TlsConfig};
use unstale::plan::{Batch, EffectRef};
use unstale::registry::{Action, Effect, Expiry, RuleId, Version, Write};

pub(crate) const HOUR: Expiry = Expiry::After { ttl: Duration::from_secs(3_600), jitter: 0.0 };

pub(crate) fn config(url: &str) -> RedisConfig {
    RedisConfig {
        urls: vec![SecretUrl::new(url.parse().unwrap())],
        mode: RedisMode::Single,
        tls: TlsConfig::default(),
        tag_prefix: "cache_tag:".into(),
        fence_ttl: Duration::from_secs(86_400),
    }
}

/// A connected cache.
pub(crate) async fn cache(url: &str, queue: &str) -> Cache {
    let cache = Cache::connect(&config(url), queue).unwrap();
    cache.probe().await.unwrap();
    cache
}

/// Separates tests that share a server.
pub(crate) struct Names(String);

impl Names {
    pub(crate) fn new() -> Self {
        Self(crate::support::unique("cache"))
    }

    pub(crate) fn of(&self, name: &str) -> String {
        format!("{}:{name}", self.0)
    }
}

pub(crate) fn effect(rule: u32, target: impl Into<String>, action: Action) -> Effect {
    Effect { rule: RuleId(rule), target: target.into(), action, version: None, again: None }
}

pub(crate) fn write(value: &str, expiry: Expiry, tags: &[&str]) -> Action {
    Action::Write(Box::new(Write {
        value: value.into(),
        expiry,
        tags: tags.iter().map(|&tag| tag.into()).collect(),
    }))
}

/// The effect at a version: `(family, digits)` of the event and at the place `(event, place)`.
pub(crate) fn at(
    (family, digits): (&str, &str),
    (event, place): (u64, u32),
    effect: Effect,
) -> Effect {
    let version = Version { family: family.into(), digits: digits.into(), event, place };
    Effect { version: Some(Box::new(version)), ..effect }
}

pub(crate) fn slot(position: usize) -> EffectRef {
    EffectRef { event: 0, position: u32::try_from(position).unwrap() }
}

/// Applies effects together: each one's slot is its place.
pub(crate) async fn apply(cache: &Cache, effects: &[Effect]) -> Applied {
    try_apply(cache, effects).await.unwrap()
}

pub(crate) async fn try_apply(
    cache: &Cache,
    effects: &[Effect],
) -> Result<Applied, unstale::cache::Outage> {
    let mut batch = Batch::new(cache.tag_prefix(), effects.len());
    for (position, effect) in effects.iter().enumerate() {
        batch.push(slot(position), effect);
    }
    cache.apply(&batch.finish()).await
}

pub(crate) async fn run<T: redis::FromRedisValue>(
    connection: &mut (impl ConnectionLike + Send),
    command: &[&str],
) -> T {
    try_run(connection, command).await.unwrap()
}

async fn try_run<T: redis::FromRedisValue>(
    connection: &mut (impl ConnectionLike + Send),
    command: &[&str],
) -> redis::RedisResult<T> {
    let mut cmd = redis::cmd(command[0]);
    for argument in &command[1..] {
        cmd.arg(argument);
    }
    cmd.query_async(connection).await
}
