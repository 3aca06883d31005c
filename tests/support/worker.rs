//! Runs the real worker: the binary that users run.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::process::{ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::guard::Guarded;
use super::{port, wait_for, wait_until};

/// A process of `unstale run`, with only the environment that the test sets. Dropping it kills the
/// process.
#[derive(Debug)]
pub(crate) struct Worker {
    process: Guarded,
    http_port: u16,
    stderr: Arc<Mutex<String>>,
    /// Ends with the last line of the log.
    listener: JoinHandle<()>,
    /// Kept open if the log is not read.
    _unread: Option<ChildStderr>,
}

impl Worker {
    /// Starts the worker without waiting for anything. `UNSTALE_HTTP_ADDR` is a free port unless
    /// the test sets it.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_with(Self::command(&[]), settings, true)
    }

    /// Starts the worker as [`start`](Self::start) does. Permissions of files hold for it, also if
    /// the tests run as root.
    pub(crate) fn start_without_override(settings: &[(&str, &str)]) -> Self {
        // Only root has a capability to give up.
        let is_root = std::fs::metadata("/proc/self").is_ok_and(|of_self| of_self.uid() == 0);
        let dropped = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"];
        Self::start_with(Self::command(if is_root { &dropped[..] } else { &[] }), settings, true)
    }

    /// Starts the worker as [`start`](Self::start) does, but does not read its log. It stalls once
    /// it has logged about 64 KiB.
    pub(crate) fn start_unread(settings: &[(&str, &str)]) -> Self {
        Self::start_with(Self::command(&[]), settings, false)
    }

    /// Returns the command that runs the program, through the wrapper if there is one.
    fn command(wrapper: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_unstale");
        let Some((first, rest)) = wrapper.split_first() else { return Command::new(program) };
        let mut command = Command::new(first);
        command.args(rest).arg(program);
        command
    }

    fn start_with(mut command: Command, settings: &[(&str, &str)], is_read: bool) -> Self {
        let http_port = port::free();
        command
            .arg("run")
            .env_clear()
            .env("UNSTALE_HTTP_ADDR", format!("127.0.0.1:{http_port}"))
            .envs(settings.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = Guarded::spawn(command, None);
        let pipe = process.child().stderr.take().expect("stderr is piped");
        let (pipe, unread) = if is_read { (Some(pipe), None) } else { (None, Some(pipe)) };
        let stderr = Arc::new(Mutex::new(String::new()));
        let buffer = Arc::clone(&stderr);
        let listener = std::thread::spawn(move || {
            for line in
                pipe.into_iter().flat_map(|pipe| BufReader::new(pipe).lines().map_while(Result::ok))
            {
                let mut buffer = buffer.lock().unwrap();
                buffer.push_str(&line);
                buffer.push('\n');
            }
        });
        Self { process, http_port, stderr, listener, _unread: unread }
    }

    /// Starts the worker and waits until it is ready.
    pub(crate) async fn start_ready(settings: &[(&str, &str)]) -> Self {
        let mut worker = Self::start(settings);
        worker.wait_ready().await;
        worker
    }

    /// Waits until `/readyz` returns 200. Panics with the log if the worker ends, or is not ready
    /// within 30 s.
    pub(crate) async fn wait_ready(&mut self) {
        let stderr = Arc::clone(&self.stderr);
        let start = std::time::Instant::now();
        wait_until(Duration::from_secs(40), "the worker is ready", async || {
            if let Some(status) = self.process.exited() {
                panic!("the worker ended with {status}:\n{}", stderr.lock().unwrap());
            }
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "the worker is not ready after 30 s:\n{}",
                stderr.lock().unwrap()
            );
            matches!(self.get("/readyz").await, Some((200, _)))
        })
        .await;
    }

    /// Returns the log so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    pub(crate) fn http_addr(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.http_port).into()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns status and body of a path at its HTTP address. Returns `None` if there is no answer.
    pub(crate) async fn get(&self, path: &str) -> Option<(u16, String)> {
        http_get(&format!("127.0.0.1:{}", self.http_port), path).await
    }

    pub(crate) async fn metrics(&self) -> Metrics {
        let (status, body) = self
            .get("/metrics")
            .await
            .unwrap_or_else(|| panic!("/metrics does not answer:\n{}", self.stderr()));
        assert_eq!(status, 200, "/metrics: {body}");
        Metrics::parse(&body)
    }

    /// Sends SIGTERM and waits for the end. Panics if it takes longer than 40 s.
    pub(crate) async fn terminate(mut self) -> ExitStatus {
        self.process.signal("TERM");
        self.wait_exit(Duration::from_secs(40)).await
    }

    pub(crate) fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Waits for the worker to end by itself. Afterwards `stderr` returns the whole log.
    pub(crate) async fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        let status = wait_for(deadline, "the worker ends", async || self.process.exited()).await;
        wait_until(deadline, "its last line is read", async || self.listener.is_finished()).await;
        status
    }

    /// Sends `kill -9`, and waits for the end.
    pub(crate) fn kill(mut self) {
        self.process.kill();
    }
}

/// The output of `/metrics`: each series as written (`name{label="value"}`), and its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Metrics(pub(crate) BTreeMap<String, f64>);

impl Metrics {
    pub(crate) fn parse(text: &str) -> Self {
        let series = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self(series.collect())
    }

    /// Returns the sum of the series of this name that have all these labels, or 0 if there are
    /// none.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let matching = self.0.iter().filter(|(series, _)| {
            let (series_name, series_labels) = series.split_once('{').unwrap_or((series, ""));
            series_name == name && wanted.iter().all(|label| series_labels.contains(label.as_str()))
        });
        matching.map(|(_, value)| value).sum()
    }
}

/// Sends a plain HTTP/1.1 GET, and returns status and body.
pub(crate) async fn http_get(addr: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = tokio::net::TcpStream::connect(addr).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
