//! Measures the cost of the worker beside its two servers and beside its peers. `make bench` runs
//! it, and docs/bench/README.md explains the results.
//!
//! `cargo bench --bench compare -- a f --rounds 3 --out FOLDER` runs these workloads for this many
//! rounds, and writes the report into that folder.

#![allow(clippy::disallowed_methods, reason = "a program apart, which reads what its stage sets")]

#[path = "../../tests/support/mod.rs"]
mod support;

mod arguments;
mod bare;
mod contender;
mod events;
mod figures;
mod peers;
mod process;
mod recording;
mod report;
mod results;
mod stage;
mod workloads;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

use futures_util::FutureExt;

use arguments::Arguments;
use report::Conditions;
use results::Results;
use stage::Stage;

#[tokio::main]
async fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(bare::DRAIN) => bare::drain().await,
        Some(bare::SKETCH) => bare::unlink().await,
        _ => match Arguments::parse(std::env::args().skip(1)) {
            Ok(arguments) => return measure(&arguments).await,
            Err(problem) => return refuse(&problem),
        },
    }
    ExitCode::SUCCESS
}

#[expect(clippy::print_stderr, clippy::print_stdout, reason = "progress and the report")]
async fn measure(Arguments { workloads, rounds, out }: &Arguments) -> ExitCode {
    let load_average_before =
        std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned();
    eprintln!("starting RabbitMQ and Redis");
    let stage = Stage::start().await;
    let mut results = Results::default();
    let mut conditions = Conditions {
        machine: process::machine(),
        servers: stage.versions().await,
        peers: String::new(),
        rounds: *rounds,
        time: jiff::Timestamp::now().to_string(),
        load_average_before,
    };
    let (mut failed, mut table) = (Vec::new(), String::new());
    for &workload in workloads {
        eprintln!("workload {workload}");
        stage.flush().await;
        // A failed workload must not lose the results of the others.
        if AssertUnwindSafe(workloads::run(workload, &stage, *rounds, &mut results))
            .catch_unwind()
            .await
            .is_err()
        {
            failed.push(workload);
        }
        if workload == 'a' {
            conditions.peers = peers::versions();
        }
        match report::write(out, &conditions, &results) {
            Ok(written) => table = written,
            Err(error) => {
                return refuse(&format!(
                    "the report cannot be written to {}: {error}",
                    out.display()
                ));
            }
        }
    }
    println!(
        "{table}\nwritten: results.json, results.md, events.svg and figures.svg in {}",
        out.display()
    );
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("not measured to the end, for the reasons above: {failed:?}");
    ExitCode::FAILURE
}

#[expect(clippy::print_stderr, reason = "the error")]
fn refuse(problem: &str) -> ExitCode {
    eprintln!("{problem}");
    ExitCode::from(64)
}
