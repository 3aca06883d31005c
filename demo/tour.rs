//! A tour of the patterns, for `make demo`. It is a separate client that knows only unstale's
//! public contract.
//!
//! For each pattern it fills the cache as an application would, and publishes one event over plain
//! AMQP. Then it waits for the expected effects, and shows the keys before and after. It ends with
//! 1 if a result is not as expected.
//!
//! It reads `UNSTALE_AMQP_URL`, `UNSTALE_REDIS_URL` and `UNSTALE_VAR_CATALOGUE_URL`, the address at
//! which it serves the worker's loads. `tour catalogue` serves them without a tour, for `make run`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a program that talks to a person, and reads what `make demo` sets"
)]

mod cache;
mod catalogue;
mod publisher;
mod steps;
mod table;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use cache::{Cache, Snapshot};
use publisher::Publisher;
use steps::Step;
use table::Paint;

/// Maximum time of an effect. Usually it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(5);

#[tokio::main]
async fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("catalogue") {
        return match serve_catalogue().await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("The catalogue cannot be served: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    match tour().await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("The tour cannot go on: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Serves the worker's loads, without a tour, until the end of the standard input.
async fn serve_catalogue() -> anyhow::Result<()> {
    let _catalogue = catalogue::Catalogue::serve(&setting("UNSTALE_VAR_CATALOGUE_URL")?).await?;
    tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await?;
    Ok(())
}

/// Returns the number of steps whose result was not as expected.
async fn tour() -> anyhow::Result<usize> {
    let paint = Paint::for_stdout();
    let redis_url = setting("UNSTALE_REDIS_URL")?;
    let amqp_url = setting("UNSTALE_AMQP_URL")?;
    let catalogue = catalogue::Catalogue::serve(&setting("UNSTALE_VAR_CATALOGUE_URL")?).await?;
    let mut cache = Cache::connect(&redis_url).await?;
    let publisher = Publisher::connect(&amqp_url).await?;

    let steps = steps::all();
    let mut failed = Vec::new();
    let mut took = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        table::title(&paint, number + 1, steps.len(), step);
        let loads = catalogue.loads();
        let (before, after, elapsed) = play(step, &mut cache, &publisher).await?;
        let loaded = catalogue.loads() - loads;
        let mut problems = step.problems(&before, &after);
        if step.loads && loaded == 0 {
            problems.push("the worker never asked the catalogue".to_owned());
        }
        table::show(&paint, step, &before, &after);
        cache.clear(step).await?;
        match problems.is_empty() {
            true => println!(
                "  {} as expected, {elapsed:.1?} after the broker confirmed the event\n",
                paint.good("✓")
            ),
            false => {
                for problem in &problems {
                    println!("  {} {problem}", paint.bad("✗"));
                }
                println!();
                failed.push(step.pattern);
            }
        }
        took.push(elapsed);
    }
    publisher.close().await;
    table::summary(&paint, &steps, &took, &failed);
    Ok(failed.len())
}

async fn play(
    step: &Step,
    cache: &mut Cache,
    publisher: &Publisher,
) -> anyhow::Result<(Snapshot, Snapshot, Duration)> {
    cache.seed(step).await?;
    let before = cache.look(step).await?;
    publisher.publish(step).await?;
    let start = Instant::now();
    loop {
        let after = cache.look(step).await?;
        if step.problems(&before, &after).is_empty() || start.elapsed() > PATIENCE {
            return Ok((before, after, start.elapsed()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn setting(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set: `make demo` sets it"))
}
