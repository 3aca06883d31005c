//! The registry's files, looked at every second: what loads replaces what is in use, what does not changes nothing.
//!
//! Looking is what works everywhere: a `ConfigMap`'s symlink swap, bind mounts and network file systems do not all tell of their changes.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Live, Shared};
use crate::registry::{self, LoadOptions, Loaded, Problems, Registry, run_examples};

const INTERVAL: Duration = Duration::from_secs(1);

/// Of what is told of a registry that was not taken.
const CAUSE_MAX_CHARS: usize = 400;

/// Watches until `stop`.
pub(super) async fn watch(shared: Arc<Shared>, stop: CancellationToken) {
    let mut judged = shared.live.load().registry.digest().to_owned();
    let mut seen = judged.clone();
    while stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
        let options = LoadOptions::for_run(&shared.config.registry);
        let looked_at = options.clone();
        // A tree that cannot be read now (a swap under way) is looked at again.
        let Ok(Ok(digest)) = tokio::task::spawn_blocking(move || registry::digest_of(&looked_at)).await else { continue };
        // Twice the same: nobody is in the midst of writing.
        let settled = digest == seen;
        seen.clone_from(&digest);
        if !settled || digest == judged {
            continue;
        }
        judged = digest;
        let loaded = tokio::task::spawn_blocking(move || load(&options)).await;
        match loaded {
            Ok(Ok(loaded)) => take(&shared, loaded),
            Ok(Err(problems)) => {
                error!(digest = %judged, "the changed registry does not load, the last good one stays");
                log_lines(&problems);
                refuse(&shared, &problems);
            }
            Err(panicked) => {
                error!(digest = %judged, error = %panicked, "loading the changed registry panicked, the last good one stays");
                refuse(&shared, &panicked);
            }
        }
    }
}

/// A registry whose examples hold: the next start would refuse any other.
fn load(options: &LoadOptions) -> Result<Loaded, Problems> {
    let loaded = Registry::load(options)?;
    let failing = run_examples(&loaded);
    if failing.is_empty() { Ok(loaded) } else { Err(Problems(failing)) }
}

fn take(shared: &Shared, loaded: Loaded) {
    let loaders = match shared.live.load().loaders.reload(loaded.registry.loaders()) {
        Ok(loaders) => loaders,
        Err(problems) => {
            error!("the changed registry's loaders cannot be used, the last good one stays");
            log_lines(&problems);
            return refuse(shared, &problems);
        }
    };
    for warning in &loaded.warnings {
        warning.to_string().lines().for_each(|line| warn!("{line}"));
    }
    info!(digest = loaded.registry.digest(), "registry reloaded");
    shared.live.store(Arc::new(Live::new(loaded.registry, loaders, &shared.metrics)));
    shared.refused_registry.store(None);
    // Without a session nobody binds now: the next one binds all.
    shared.reloaded.notify_one();
}

/// Logs each line of what is wrong as a record of its own.
fn log_lines(problems: &impl Display) {
    problems.to_string().lines().for_each(|line| error!("{line}"));
}

/// For whoever asks how things stand: the first of the problems, whose first line says where and what. The log has all of it.
fn refuse(shared: &Shared, problems: &impl Display) {
    shared.metrics.reload_failed();
    let first: String = problems.to_string().lines().next().unwrap_or_default().chars().take(CAUSE_MAX_CHARS).collect();
    shared.refused_registry.store(Some(Arc::new(first)));
}
