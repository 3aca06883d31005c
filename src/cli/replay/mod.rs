//! The command `unstale replay`. `args` has its arguments and `text` its output; the work is in
//! `ops::replay`.

mod args;
mod text;

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::configure::configure;
pub(super) use args::ReplayArgs;

use super::reach::{reach, reach_redis};
use super::signal::stop_on_signal;
use super::{CliError, Exit};
use crate::broker::{History, Place, PublishError, Publisher, replay_record};
use crate::cache::{Cache, LowWatermark};
use crate::causes::Explain;
use crate::config::{Config, Scope};
use crate::ops::CommandCheckpoint;
use crate::ops::replay::{Observer, Replay, ReplayReport, Span, Step, TakenOver};
use crate::plan::FoldLimits;
use crate::printable::{printable, printable_json, printable_lines};
use crate::registry::{LoadOptions, Pattern, Registry};

pub(super) fn run(args: &ReplayArgs) -> Result<Exit, CliError> {
    let config = configure(Scope::All)?;
    let span = Span { since: args.since, until: args.until };
    if span.is_reversed() {
        return Err(CliError::usage("--until is before --since, so the span is empty"));
    }
    let loaded =
        Registry::load(&LoadOptions::for_run(&config.registry)).map_err(CliError::rule_files)?;
    for warning in &loaded.warnings {
        writeln!(io::stderr(), "{}", printable_lines(&warning.to_string()))?;
    }
    // lapin and redis-rs run tasks of their own beside the one that reads and folds.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(CliError::of(Exit::Internal))?;
    let ended = runtime.block_on(replay(args, &config, &Arc::new(loaded.registry), span));
    runtime.shutdown_background();
    ended
}

async fn replay(
    args: &ReplayArgs,
    config: &Config,
    registry: &Arc<Registry>,
    span: Span,
) -> Result<Exit, CliError> {
    if let Some(pattern) = args.types.iter().find(|pattern| {
        pattern.split('.').any(|word| word.is_empty() || word.contains(char::is_whitespace))
    }) {
        return Err(CliError::usage(format!("--type {pattern:?} matches no event"))
            .help("a pattern is words between single dots, such as 'user.*'"));
    }
    let stop = stop_on_signal()?;
    let replay = Replay {
        span,
        gives_way: true,
        records_before: None,
        types: args.types.iter().map(|pattern| Pattern::parse(pattern)).collect(),
        only_rules: Vec::new(),
        rate: args.rate,
        tag_prefix: config.redis.tag_prefix.clone(),
        reading: config.reading,
        unknown: config.unknown,
        fence_ttl: config.redis.fence_ttl,
        limits: FoldLimits::default(),
        apply_every: None,
        patience: None,
        taken_over: TakenOver::default(),
    };
    let cache = if args.dry_run {
        if args.rate.is_some() {
            writeln!(io::stderr(), "warning: --dry-run ignores --rate")?;
        }
        None
    } else {
        Some(Cache::connect(&config.redis, &config.amqp.queue).map_err(CliError::of(Exit::Usage))?)
    };
    if let Some(cache) = &cache {
        reach_redis(cache).await?;
    }
    let mut history = reach(async || History::connect(&config.amqp).await).await?;
    let is_recorded = !args.dry_run && config.heals() && config.amqp.history.is_some();
    let publisher = match is_recorded {
        true => Some(reach(async || Publisher::connect(&config.amqp).await).await?),
        false => None,
    };
    let mut progress =
        Progress::new(publisher.map(|publisher| (publisher, history.queue().to_owned())));
    // If Redis loses writes meanwhile, a heal begins no later than this replay does.
    let mut checkpoint = cache
        .as_ref()
        .filter(|_| config.heals())
        .map(|cache| CommandCheckpoint::new(cache, "replay"));
    if let Some(checkpoint) = &mut checkpoint {
        checkpoint.hold(earliest(span.since)).await.map_err(CliError::of(Exit::Unavailable))?;
    }
    let kept = async {
        match &checkpoint {
            Some(checkpoint) => checkpoint.keep().await,
            None => std::future::pending().await,
        }
    };
    let report = tokio::select! {
        report = replay.run(&mut history, registry, cache.as_ref(), &mut progress, &stop) => report,
        never = kept => match never {},
    };
    progress.bar.finish_and_clear();
    if let Some(checkpoint) = checkpoint {
        // A checkpoint that is not released expires in an hour.
        let _ = checkpoint.release().await;
    }
    let report = report.map_err(CliError::of(Exit::Unavailable))?;
    history.close().await;
    print_report(args, registry, &report)
}

/// Returns a lower bound of the span.
fn earliest(since: Place) -> LowWatermark {
    match since {
        Place::Time(time) => u64::try_from(time.as_millisecond()).unwrap_or(0).into(),
        Place::Offset(offset) => LowWatermark::at_offset(offset),
    }
}

/// Prints the report, and returns the exit code.
fn print_report(
    args: &ReplayArgs,
    registry: &Registry,
    report: &ReplayReport,
) -> Result<Exit, CliError> {
    let mut stderr = io::stderr();
    if args.json {
        writeln!(
            io::stdout(),
            "{}",
            printable_json(&text::json(registry, report, args.dry_run).to_string())
        )?;
    } else if args.dry_run {
        text::write_rules(registry, report, &mut io::stdout().lock())?;
    }
    for warning in text::warnings(args.since, report) {
        writeln!(stderr, "{warning}")?;
    }
    for problem in text::problems(report) {
        writeln!(stderr, "{}", printable(&problem))?;
    }
    writeln!(stderr, "{}", text::summary(report, args.dry_run))?;
    if let Some(rest) = &report.rest {
        let command = text::resume(args, report, rest);
        return Err(CliError::stopped(rest.cause.clone())
            .help(format_args!("nothing is lost; continue with: {command}")));
    }
    Ok(if report.is_whole() { Exit::Clean } else { Exit::No })
}

/// Progress of a replay. The bar is shown on a terminal only, and waits for servers are always
/// printed.
struct Progress {
    /// The publisher that records the replay in the history, until it has.
    recorder: Option<(Publisher, String)>,
    bar: ProgressBar,
    is_applying: bool,
    waiting_for: String,
}

impl Progress {
    fn new(recorder: Option<(Publisher, String)>) -> Self {
        let bar = ProgressBar::new(0).with_style(style("read"));
        // The next message may arrive late. The spinner shows that the command still runs.
        if io::stderr().is_terminal() {
            bar.enable_steady_tick(Duration::from_millis(500));
        }
        Self { recorder, bar, is_applying: false, waiting_for: String::new() }
    }

    /// Prints why the replay is not recorded.
    fn is_not_recorded(&self, problem: &PublishError) {
        self.bar.suspend(|| {
            let _ = writeln!(
                io::stderr(),
                "warning: the replay is not recorded in the history: {}. If Redis goes back to before it, run it again",
                printable(&problem.in_full())
            );
        });
    }

    fn show(&mut self, done: u64, of: u64, is_applying: bool) {
        if self.is_applying != is_applying {
            self.is_applying = is_applying;
            self.bar.reset();
            self.bar.set_style(style(if is_applying { "applied" } else { "read" }));
        }
        self.bar.set_length(of);
        self.bar.set_position(done);
        self.waiting_for.clear();
    }
}

impl Observer for Progress {
    /// Records where the replay begins, before anything is applied. If Redis loses the replay, a
    /// heal begins there.
    async fn note(&mut self, step: Step) -> Result<(), String> {
        if let Some((mut publisher, history)) = self.recorder.take() {
            let record = replay_record(&history, step.first);
            if let Some(Err(problem)) = publisher.publish_all(&[record]).await.pop() {
                self.is_not_recorded(&problem);
            }
            publisher.close().await;
        }
        Ok(())
    }

    fn read(&mut self, done: u64, of: u64) {
        self.show(done, of, false);
    }

    fn applied(&mut self, done: u64, of: u64) {
        self.show(done, of, true);
    }

    fn waiting(&mut self, cause: &str) {
        if self.waiting_for != cause {
            cause.clone_into(&mut self.waiting_for);
            self.bar.suspend(|| {
                let _ = writeln!(io::stderr(), "waiting: {}", printable(cause));
            });
        }
    }
}

fn style(verb: &str) -> ProgressStyle {
    let template = format!("{verb} {{pos}} of {{len}} {{wide_bar}} {{per_sec}}, {{eta}} left");
    ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
