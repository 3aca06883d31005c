//! Commands that wait for a server: they report it, and end at once when asked to.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Server that accepts connections and never answers.
struct Silent {
    listener: TcpListener,
}

impl Silent {
    fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.listener.local_addr().unwrap())
    }
}

#[test]
fn a_command_that_waits_says_for_what_and_ends_at_once_on_a_signal() {
    let silent = Silent::start();
    let (amqp, redis) = (silent.url("amqp"), silent.url("redis"));
    let schemas = tempfile::tempdir().unwrap();
    std::fs::write(
        schemas.path().join("a.yaml"),
        "events: { a.b: { effects: [ { delete: k } ] } }",
    )
    .unwrap();
    for (arguments, server) in [
        (&["publish", "user.updated", "{}"][..], "RabbitMQ"),
        (&["dlq", "list"], "RabbitMQ"),
        (&["dlq", "replay"], "Redis"),
        (&["replay", "--since", "1h"], "Redis"),
        (&["replay", "--since", "1h", "--dry-run"], "RabbitMQ"),
        (&["tags", "gc"], "Redis"),
    ] {
        for signal in ["INT", "TERM"] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_unstale"))
                .args(arguments)
                .env_clear()
                .env("UNSTALE_AMQP_URL", &amqp)
                .env("UNSTALE_REDIS_URL", &redis)
                .env("UNSTALE_SCHEMAS", schemas.path())
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let begun = Instant::now();
            let mut stderr = BufReader::new(command.stderr.take().unwrap());
            let notice = format!("waiting for {server}");
            let mut told = String::new();
            while !told.contains(&notice) {
                assert!(
                    stderr.read_line(&mut told).unwrap() > 0,
                    "{arguments:?} ended without a notice: {told}"
                );
            }
            assert!(
                begun.elapsed() < Duration::from_secs(8),
                "{arguments:?}: the notice comes before the wait ends"
            );
            let asked = Instant::now();
            let killed = Command::new("kill")
                .args([&format!("-{signal}"), &command.id().to_string()])
                .status()
                .unwrap();
            assert!(killed.success());
            let status = command.wait().unwrap();
            stderr.read_to_string(&mut told).unwrap();
            assert!(
                asked.elapsed() < Duration::from_secs(3),
                "{arguments:?}: {:?}",
                asked.elapsed()
            );
            assert_eq!(status.code(), Some(1), "{arguments:?} {signal}: {told}");
            assert!(told.contains("error: interrupted before anything was done"), "{told}");
        }
    }
}
