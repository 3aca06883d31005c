//! Looks at the rule files every second, and reloads the registry when they change. If the changed
//! registry does not load, the worker keeps the last good one.
//!
//! The file system's change notifications are not used: a `ConfigMap`'s symlink swap, bind mounts
//! and network file systems do not all send them.

use std::fmt::Display;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::live::{CurrentRegistry, Live};
use crate::causes::Explain;
use crate::config::RegistryConfig;
use crate::registry::{self, Diagnostics, LoadOptions, LoadedRegistry, Registry, run_examples};
use crate::telemetry::Metrics;

const INTERVAL: Duration = Duration::from_secs(1);

/// Maximum length of the reported cause why a registry was not loaded.
const CAUSE_MAX_CHARS: usize = 400;

/// Number of looks after which the contents are read even if no file seems to have changed. On a
/// network file system with times in whole seconds, a changed file may look unchanged.
const LOOKS_PER_READ: u64 = 60;

/// The result of one look at the files. Problems are a result like any other, so that they are
/// reported once and not after each look.
type Look = Result<registry::FileList, Diagnostics>;

/// Watches the rule files until `stop`.
pub(super) async fn watch(
    current: &CurrentRegistry,
    config: &RegistryConfig,
    metrics: &Metrics,
    stop: CancellationToken,
) {
    let mut digest_judged = current.load().registry.digest().to_owned();
    let mut judged: Option<Look> = None;
    let mut seen: Option<Look> = None;
    let mut looks: u64 = 0;
    while stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
        let options = LoadOptions::for_run(config);
        let looked_at = options.clone();
        let Ok(look) = tokio::task::spawn_blocking(move || registry::list_files(&looked_at)).await
        else {
            continue;
        };
        looks += 1;
        // After two equal looks, no swap is in progress and no file is half-written.
        let is_settled = seen.as_ref() == Some(&look);
        let is_known = judged.as_ref() == Some(&look);
        seen = Some(look);
        if !is_settled || is_known && !looks.is_multiple_of(LOOKS_PER_READ) {
            continue;
        }
        judged.clone_from(&seen);
        if let Some(Err(problems)) = &seen {
            if !is_known {
                error!("the changed registry cannot be read, the last good one stays:\n{problems}");
                refuse(current, metrics, problems);
                // The registry is loaded once it can be read again, even if it is unchanged.
                digest_judged.clear();
            }
            continue;
        }
        let looked_at = options.clone();
        let Ok(Ok(digest)) =
            tokio::task::spawn_blocking(move || registry::digest_of(&looked_at)).await
        else {
            judged = None;
            continue;
        };
        if digest == digest_judged {
            continue;
        }
        digest_judged = digest;
        let loaded = tokio::task::spawn_blocking(move || load(&options)).await;
        match loaded {
            Ok(Ok(loaded)) => take(current, metrics, loaded),
            Ok(Err(problems)) => {
                error!(digest = %digest_judged, "the changed registry does not load, the last good one stays");
                log_lines(&problems);
                refuse(current, metrics, &problems);
            }
            Err(panicked) => {
                error!(digest = %digest_judged, error = panicked.in_full(), "loading the changed registry panicked, the last good one stays");
                refuse(current, metrics, &panicked);
            }
        }
    }
}

/// Loads a registry whose examples all pass. The next start would refuse any other.
fn load(options: &LoadOptions) -> Result<LoadedRegistry, Diagnostics> {
    let loaded = Registry::load(options)?;
    let failing = run_examples(&loaded);
    if failing.is_empty() { Ok(loaded) } else { Err(Diagnostics(failing)) }
}

fn take(current: &CurrentRegistry, metrics: &Metrics, loaded: LoadedRegistry) {
    let loaders = match current.load().loaders.reload(loaded.registry.loaders()) {
        Ok(loaders) => loaders,
        Err(problems) => {
            error!("the changed registry's loaders cannot be used, the last good one stays");
            log_lines(&problems);
            return refuse(current, metrics, &problems);
        }
    };
    for warning in &loaded.warnings {
        warning.to_string().lines().for_each(|line| warn!("{line}"));
    }
    info!(digest = loaded.registry.digest(), "registry reloaded");
    let settings_digest = current.load().settings_digest.clone();
    current.replace(Live::new(loaded.registry, loaders, metrics, settings_digest));
}

/// Logs each line of the problems as a separate record.
fn log_lines(problems: &impl Display) {
    problems.to_string().lines().for_each(|line| error!("{line}"));
}

/// Keeps the first line of the first problem for `unstale status`, with its location and cause. The
/// log has all problems.
fn refuse(current: &CurrentRegistry, metrics: &Metrics, problems: &impl Display) {
    metrics.reload_failed();
    let first: String = problems
        .to_string()
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(CAUSE_MAX_CHARS)
        .collect();
    current.refuse(first);
}
