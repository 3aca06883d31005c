//! Looks at the rule files every second, and reloads the registry when they change. If the changed
//! registry does not load, the worker keeps the last good one.
//!
//! `looks` decides when the files are read. `problems` are the reasons why they are not in use.
//!
//! The file system's change notifications are not used: a `ConfigMap`'s symlink swap, bind mounts
//! and network file systems do not all send them.

mod looks;
mod problems;

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::live::{CurrentRegistry, Live};
use crate::config::RegistryConfig;
use crate::registry::{
    self, Diagnostics, FileList, LoadOptions, LoadedRegistry, Registry, run_examples,
};
use crate::telemetry::{Metrics, mentioned_after};
use looks::{Judgement, Looks};
use problems::Problems;

const INTERVAL: Duration = Duration::from_secs(1);

/// Time after which a look that has not ended is reported. A network file system whose server is
/// away may block it for good.
const LOOK_MAX: Duration = Duration::from_secs(30);

/// Watches the rule files until `stop`.
pub(super) async fn watch(
    current: &CurrentRegistry,
    config: &RegistryConfig,
    metrics: &Metrics,
    stop: CancellationToken,
) {
    let digest_judged = current.load().registry.digest().to_owned();
    let mut reload = Reload { current, metrics, digest_judged, reported: None };
    let mut looks = Looks::new();
    let mut unread = None;
    while stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
        let options = LoadOptions::for_run(config);
        let listed = options.clone();
        let look = reload.look(move || registry::list_files(&listed)).await;
        if reload.reported.is_some() && look.is_ok() {
            looks.judge_again();
        }
        let judgement = looks.judge(look);
        note_restless(current, &looks);
        match (judgement, looks.problems()) {
            (Judgement::Read, _) => match reload.read(options).await {
                Ok(()) => unread = None,
                Err(problems) => {
                    // The file system's fault, or a file that is being replaced.
                    if unread.as_ref() == Some(&problems) {
                        reload.report(&problems);
                    }
                    unread = Some(problems);
                    looks.judge_again();
                }
            },
            (Judgement::Report, Some(problems)) => reload.report(problems),
            _ => {}
        }
    }
}

/// One worker's reloads.
struct Reload<'w> {
    current: &'w CurrentRegistry,
    metrics: &'w Metrics,
    /// Digest of the rule files that were last loaded or refused.
    digest_judged: String,
    /// Reported problems of reading the files, until they can be read again.
    reported: Option<Problems>,
}

impl Reload<'_> {
    /// Runs a look at the files. Reports once if it does not end.
    async fn look<T: Send + 'static>(
        &mut self,
        look: impl FnOnce() -> Result<T, Diagnostics> + Send + 'static,
    ) -> Result<T, Problems> {
        let looking = tokio::task::spawn_blocking(look);
        let looked =
            mentioned_after(LOOK_MAX, looking, || self.report(&Problems::NoAnswer(LOOK_MAX))).await;
        problems::of_task(looked)
    }

    /// Reads the files, and loads them if their contents are new.
    async fn read(&mut self, options: LoadOptions) -> Result<(), Problems> {
        let read = options.clone();
        let digest = self.look(move || registry::digest_of(&read)).await?;
        self.reported = None;
        if digest == self.digest_judged {
            return Ok(());
        }
        self.digest_judged = digest;
        let loaded = tokio::task::spawn_blocking(move || load(&options)).await;
        match problems::of_task(loaded) {
            Ok(loaded) => self.take(loaded),
            // A file became unreadable since its digest.
            Err(problems) if problems.is_unreadable_file() => {
                self.digest_judged.clear();
                return Err(problems);
            }
            Err(problems) => {
                error!(digest = %self.digest_judged, "the changed registry does not load, the last good one stays");
                self.refuse(&problems);
            }
        }
        Ok(())
    }

    /// Reports that the files cannot be read, once for the same problems.
    fn report(&mut self, problems: &Problems) {
        if self.reported.as_ref() == Some(problems) {
            return;
        }
        error!("the changed registry cannot be read, the last good one stays");
        self.refuse(problems);
        self.reported = Some(problems.clone());
        // The registry is loaded once it can be read again, even if it is unchanged.
        self.digest_judged.clear();
    }

    fn take(&self, loaded: LoadedRegistry) {
        let Self { current, metrics, .. } = self;
        let loaders = match current.load().loaders.reload(loaded.registry.loaders()) {
            Ok(loaders) => loaders,
            Err(problems) => {
                error!("the changed registry's loaders cannot be used, the last good one stays");
                return self.refuse(&Problems::OfLoaders(problems.to_string()));
            }
        };
        for warning in &loaded.warnings {
            problems::log(warning);
        }
        info!(digest = loaded.registry.digest(), "registry reloaded");
        let settings_digest = current.load().settings_digest.clone();
        current.replace(Live::new(loaded.registry, loaders, metrics, settings_digest));
    }

    /// Logs all problems, and keeps the first error for `unstale status`.
    fn refuse(&self, problems: &Problems) {
        problems.log();
        self.metrics.reload_failed();
        self.current.refuse(problems.cause());
    }
}

/// Loads a registry whose examples all pass. The next start would refuse any other.
fn load(options: &LoadOptions) -> Result<LoadedRegistry, Diagnostics> {
    let loaded = Registry::load(options)?;
    let failing = run_examples(&loaded);
    if failing.is_empty() { Ok(loaded) } else { Err(Diagnostics(failing)) }
}

/// Logs when files begin to change all the time and when they cease, and notes the name of one.
fn note_restless(current: &CurrentRegistry, looks: &Looks<FileList, Problems>) {
    match (looks.is_restless(), current.changing().is_some()) {
        (true, false) => {
            let file = looks.last_lists().and_then(|[before, now]| now.first_change(before));
            let file = file.unwrap_or("the directory").to_owned();
            warn!(
                file,
                "rule files change all the time: the worker reads them every 10 s, and may read a half-written one"
            );
            current.set_changing(Some(file));
        }
        (false, true) => {
            info!("the rule files no longer change all the time");
            current.set_changing(None);
        }
        _ => {}
    }
}
