//! What the worker costs beside the two servers that it connects, and beside its peers: `make bench`, read with docs/bench/README.md.
//!
//! `cargo bench --bench compare -- a f --rounds 3 --out FOLDER`: these workloads, so many rounds, the report into that folder.

#[path = "../../tests/support/mod.rs"]
mod support;

mod arguments;
mod bare;
mod contender;
mod events;
mod figures;
mod peers;
mod process;
mod report;
mod results;
mod stage;
mod workloads;

use std::process::ExitCode;

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

#[expect(clippy::print_stderr, reason = "progress, for whoever waits")]
async fn measure(Arguments { workloads, rounds, out }: &Arguments) -> ExitCode {
    let load_average_before = std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned();
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
    for &workload in workloads {
        eprintln!("workload {workload}");
        workloads::run(workload, &stage, *rounds, &mut results).await;
    }
    if workloads.contains(&'a') {
        conditions.peers = peers::versions();
    }
    match report::write(out, &conditions, &results, &figures::figures(&results)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&format!("the report cannot be written to {}: {error}", out.display())),
    }
}

#[expect(clippy::print_stderr, reason = "what went wrong")]
fn refuse(problem: &str) -> ExitCode {
    eprintln!("{problem}");
    ExitCode::from(64)
}
