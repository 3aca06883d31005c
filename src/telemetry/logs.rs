//! Logs to stderr: one line at the start and one for each change of state. At `info` and quieter
//! levels, no line reports an applied event.
//!
//! Text from payloads, rule files and servers is escaped here. A record is one line, and no
//! terminal interprets it.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal as _};
use std::panic::PanicHookInfo;

use tracing::field::Field;
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::filter::{EnvFilter, FilterExt, FilterFn, ParseError, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::causes::Explain;
use crate::config::LogFormat;
use crate::printable::{Printable, printable_json};

/// Crates whose `info`, `debug` and `trace` lines concern only their authors. They are limited to
/// `warn` unless a directive names them.
const NOISY: [&str; 7] = ["redis", "hyper", "hyper_util", "h2", "reqwest", "rustls", "mio"];

/// Crates that are silenced at every level, since they log whole messages with bodies and headers.
///
/// lapin logs each returned message at `warn` and each frame at `trace`. It also logs an error if a
/// passive declaration finds no object. unstale logs the relevant events itself.
const INDISCREET: [&str; 2] = ["lapin", "amq_protocol"];

/// The only field of a panic whose value may have several lines.
const BACKTRACE: &str = "backtrace";

/// Reason why logging could not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogsError {
    /// The directives are invalid.
    #[error(transparent)]
    Directives(#[from] ParseError),
    /// Logging was started before.
    #[error(transparent)]
    Started(#[from] TryInitError),
}

impl Explain for LogsError {}

/// Starts logging, for panics too.
///
/// # Errors
/// [`LogsError`] if the directives are invalid, or logging was started before.
pub(crate) fn init(directives: &str, format: LogFormat) -> Result<(), LogsError> {
    tracing_subscriber::registry()
        .with(layer(filter(directives)?, format, std::io::stderr))
        .try_init()?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

fn layer<S, W>(filter: EnvFilter, format: LogFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer();
    let filter = filter.and(discreet());
    match format {
        LogFormat::Text => {
            let fields = debug_fn(write_field).delimited(" ");
            layer
                .with_writer(writer)
                .fmt_fields(fields)
                .with_ansi(io::stderr().is_terminal())
                .with_filter(filter)
                .boxed()
        }
        LogFormat::Json => {
            let writer = PrintableJson(writer);
            layer
                .with_writer(writer)
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_filter(filter)
                .boxed()
        }
    }
}

/// Writes a field as `name=value`, and the message without a name.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let name = field.name();
    match name {
        "message" => {}
        name if name.starts_with("log.") => return Ok(()),
        name if writer.has_ansi_escapes() => write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?,
        name => write!(writer, "{name}=")?,
    }
    // A backtrace has only names of functions and files, one on each line.
    if name == BACKTRACE {
        write!(writer, "{value:?}")
    } else {
        write!(Printable(writer), "{value:?}")
    }
}

/// Writes JSON without characters that a terminal interprets. `serde_json` escapes fewer.
struct PrintableJson<M>(M);

impl<'w, M: MakeWriter<'w>> MakeWriter<'w> for PrintableJson<M> {
    type Writer = PrintableJson<M::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        PrintableJson(self.0.make_writer())
    }
}

impl<W: io::Write> io::Write for PrintableJson<W> {
    /// Writes a record. The formatter passes each one whole.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(record) {
            Ok(text) => self.0.write_all(printable_json(text).as_bytes())?,
            Err(_) => self.0.write_all(record)?,
        }
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Returns a filter that drops all lines of [`INDISCREET`] crates.
fn discreet() -> FilterFn<fn(&Metadata<'_>) -> bool> {
    filter_fn(|metadata| !INDISCREET.iter().any(|name| metadata.target().starts_with(name)))
}

/// Returns a filter of the limits for noisy crates and the given directives. The last directive for
/// a target wins. A longer target wins over a shorter one.
fn filter(directives: &str) -> Result<EnvFilter, ParseError> {
    let overall = directives
        .split(',')
        .filter_map(|directive| directive.trim().parse::<LevelFilter>().ok())
        .next_back();
    let caps = if overall.is_some_and(|level| level > LevelFilter::WARN) {
        NOISY.map(|target| format!("{target}=warn,")).concat()
    } else {
        String::new()
    };
    EnvFilter::builder().parse(format!("{caps}{directives}"))
}

/// Logs the place of a panic. The message is logged only if it is a constant, since a formatted
/// message may quote a payload.
fn log_panic(info: &PanicHookInfo<'_>) {
    let message = info
        .payload()
        .downcast_ref::<&'static str>()
        .copied()
        .unwrap_or("(message withheld: it may quote a payload)");
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let backtrace = std::backtrace::Backtrace::capture();
    tracing::error!(location, message = format_args!("panicked: {message}"), ?backtrace);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn library_lines_about_messages_are_never_logged() {
        for directives in [
            "trace",
            "error,lapin=trace,amq_protocol=trace",
            "error,lapin::returned_messages=warn",
            "warn",
        ] {
            for format in [LogFormat::Text, LogFormat::Json] {
                let written = Written::default();
                let writer = written.clone();
                let layer = layer(filter(directives).unwrap(), format, move || writer.clone());
                tracing::subscriber::with_default(
                    tracing_subscriber::registry().with(layer),
                    || {
                        tracing::warn!(target: "lapin::returned_messages", message = "a payload");
                        tracing::trace!(target: "lapin::channels", frame = "a payload");
                        tracing::debug!(target: "amq_protocol::frame", "a payload");
                        tracing::error!(target: "lapin::io_loop", "a payload");
                        tracing::error!("an error of ours");
                    },
                );
                let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
                assert!(!text.contains("payload"), "{directives}: {text}");
                assert!(text.contains("an error of ours"), "{directives}: {text}");
            }
        }
    }

    #[test]
    fn no_logged_value_breaks_a_line_or_controls_a_terminal() {
        const HOSTILE: &str =
            "a\n2026-01-01T00:00:00Z ERROR forged\r\x1b[2J\u{9b}2J\u{7f}\u{2028}\u{202e}b";
        #[derive(Debug, thiserror::Error)]
        #[error("{HOSTILE}")]
        struct Hostile;
        for format in [LogFormat::Text, LogFormat::Json] {
            let written = Written::default();
            let writer = written.clone();
            let layer = layer(filter("debug").unwrap(), format, move || writer.clone());
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
                let error: &dyn std::error::Error = &Hostile;
                tracing::debug!(id = %HOSTILE, name = HOSTILE, debug = ?HOSTILE, error, "message {HOSTILE}");
                tracing::warn!("{HOSTILE}");
            });
            let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
            assert_eq!(text.lines().count(), 2, "a record is a line: {text:?}");
            assert!(text.ends_with('\n'));
            let active =
                |c: char| c != '\n' && (c.is_control() || matches!(c, '\u{2028}' | '\u{202e}'));
            assert!(!text.contains(active), "{text:?}");
            for line in text.lines() {
                match format {
                    LogFormat::Text => assert!(
                        line.contains(r"a\n2026-01-01T00:00:00Z ERROR forged\r\u{1b}[2J\u{9b}2J"),
                        "{line}"
                    ),
                    LogFormat::Json => {
                        let record: serde_json::Value = serde_json::from_str(line).unwrap();
                        assert!(record["message"].as_str().unwrap().contains(HOSTILE), "{line}");
                    }
                }
            }
        }
    }

    #[test]
    fn libraries_log_warnings_only_unless_a_directive_names_them() {
        for (directives, expected) in [
            ("info", "redis=warn"),
            ("debug,redis=debug", "redis=debug"),
            ("debug,redis::aio=trace", "redis::aio=trace"),
        ] {
            assert!(
                filter(directives).unwrap().to_string().split(',').any(|d| d == expected),
                "{directives}"
            );
        }
        for directives in ["error", "off", "warn", "unstale=debug"] {
            assert_eq!(
                filter(directives).unwrap().to_string(),
                directives,
                "no library is louder than all else"
            );
        }
    }
}
