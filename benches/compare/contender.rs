//! Programs that drain a queue: the worker, its peers, and bare loops for comparison.

use std::io::{BufRead, BufReader};
use std::process::{ChildStdout, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::peers;
use crate::process;
use crate::support::guard::Guarded;
use crate::support::{Worker, wait_until};

/// The place where a contender finds its work.
pub(crate) struct Target {
    amqp_url: String,
    redis_url: String,
    queue: String,
    schemas: TempDir,
    more: Vec<(&'static str, String)>,
}

impl Target {
    /// `more` are settings of the worker that differ from the defaults.
    pub(crate) fn new(
        amqp_url: String,
        redis_url: String,
        queue: String,
        schemas: TempDir,
        more: Vec<(&'static str, String)>,
    ) -> Self {
        Self { amqp_url, redis_url, queue, schemas, more }
    }

    /// Returns the target with other addresses: those of proxies.
    pub(crate) fn by_way_of(mut self, amqp_url: String, redis_url: String) -> Self {
        (self.amqp_url, self.redis_url) = (amqp_url, redis_url);
        self
    }

    pub(crate) fn queue(&self) -> &str {
        &self.queue
    }

    /// Returns the exchange to which the queue is bound.
    pub(crate) fn exchange(&self) -> &str {
        &self.queue
    }

    /// Returns the worker's environment. All other settings have their defaults.
    pub(crate) fn settings(&self) -> Vec<(&str, &str)> {
        let schemas = self.schemas.path().to_str().expect("a temporary folder's name is text");
        let own = [
            ("UNSTALE_AMQP_URL", self.amqp_url.as_str()),
            ("UNSTALE_REDIS_URL", &self.redis_url),
            ("UNSTALE_SCHEMAS", schemas),
            ("UNSTALE_QUEUE", &self.queue),
            ("UNSTALE_EXCHANGE", &self.queue),
        ];
        own.into_iter()
            .chain(self.more.iter().map(|(name, value)| (*name, value.as_str())))
            .collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    /// lapin with prefetch 1,000, which acknowledges 250 at a time and does nothing else.
    Bare,
    /// The same with the prefetch of a worker with a backlog: 6,000, and a short consumer tag.
    BareWide,
    /// Like the first, with one variadic UNLINK and one acknowledgement for all that has arrived.
    Sketch,
    /// `unstale run`
    Unstale,
    /// amqplib and ioredis.
    Node,
    /// aio-pika and redis.asyncio.
    AioPika,
    /// FastStream and redis.asyncio.
    FastStream,
}

impl Contender {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare lapin drain",
            Self::BareWide => "bare lapin drain, prefetch 6,000",
            Self::Sketch => "bare loop with one UNLINK",
            Self::Unstale => "unstale run",
            Self::Node => "Node, amqplib + ioredis",
            Self::AioPika => "Python, aio-pika",
            Self::FastStream => "Python, FastStream",
        }
    }

    /// Starts the contender, which consumes as soon as it can. The bare drain ends after `events`.
    pub(crate) fn start(self, target: &Target, events: u64) -> Running {
        if self == Self::Unstale {
            return Running::Worker(Worker::start(&target.settings()));
        }
        let mut command = match self {
            Self::Bare | Self::BareWide | Self::Sketch => {
                let mut command =
                    Command::new(std::env::current_exe().expect("this program has a file"));
                command.arg(if self == Self::Sketch {
                    crate::bare::SKETCH
                } else {
                    crate::bare::DRAIN
                });
                // With an empty tag, the broker generates one.
                let (prefetch, tag) =
                    if self == Self::BareWide { ("6000", "1") } else { ("1000", "") };
                command.env("PREFETCH", prefetch).env("TAG", tag);
                command
            }
            Self::Node => peers::node(),
            Self::AioPika => peers::python("aio_pika_worker.py"),
            Self::FastStream => peers::python("faststream_worker.py"),
            Self::Unstale => unreachable!("started above"),
        };
        command
            .env("AMQP_URL", &target.amqp_url)
            .env("REDIS_URL", &target.redis_url)
            .env("QUEUE", &target.queue)
            .env("EVENTS", events.to_string())
            .stdout(Stdio::piped());
        let mut process = Guarded::spawn(command, None);
        let stdout = process.child().stdout.take().expect("stdout is piped");
        Running::Process(process, Some(stdout))
    }
}

/// A running contender. Dropping it kills the processes.
pub(crate) enum Running {
    Worker(Worker),
    Process(Guarded, Option<ChildStdout>),
}

impl Running {
    fn pid(&self) -> u32 {
        match self {
            Self::Worker(worker) => worker.pid(),
            Self::Process(process, _) => process.pid(),
        }
    }

    /// Returns the CPU time used so far.
    pub(crate) fn cpu(&self) -> Duration {
        process::cpu(self.pid())
    }

    /// Returns the maximum of its resident memory so far, in MiB.
    pub(crate) fn peak_resident_mib(&self) -> f64 {
        process::peak_resident_mib(self.pid())
    }

    /// Returns whether the worker reports that it is ready. `false` for other contenders.
    pub(crate) async fn is_ready(&self) -> bool {
        match self {
            Self::Worker(worker) => matches!(worker.get("/readyz").await, Some((200, _))),
            Self::Process(..) => false,
        }
    }

    /// Returns the worker's own count of events of a type with an outcome.
    pub(crate) async fn counted(&self, event_type: &str, outcome: &str) -> u64 {
        let Self::Worker(worker) = self else { return 0 };
        if worker.get("/livez").await.is_none() {
            return 0;
        }
        let counted = worker
            .metrics()
            .await
            .sum("unstale_events_total", &[("outcome", outcome), ("type", event_type)]);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let counted = counted as u64;
        counted
    }

    /// Returns the line that the bare drain prints at its end.
    pub(crate) async fn last_line(&mut self) -> String {
        let Self::Process(_, stdout) = self else { return String::new() };
        let stdout = stdout.take().expect("read once");
        let read =
            move || BufReader::new(stdout).lines().map_while(Result::ok).last().unwrap_or_default();
        tokio::task::spawn_blocking(read).await.expect("no panic")
    }

    /// Asks it to end, and waits for its end.
    pub(crate) async fn stop(self) {
        match self {
            Self::Worker(worker) => drop(worker.terminate().await),
            Self::Process(mut process, _) => {
                if process.exited().is_none() {
                    process.signal("TERM");
                    let ends = async || process.exited().is_some();
                    wait_until(Duration::from_secs(20), "the contender ends", ends).await;
                }
            }
        }
    }
}
