//! Logs to stderr: one line at start, one per state change, none per event above debug.

use std::io::IsTerminal as _;
use std::panic::PanicHookInfo;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::LogFormat;

/// Crates that say at `info` and below what interests their authors: capped at `warn` unless asked for by name.
const NOISY: [&str; 10] = ["lapin", "amq_protocol", "redis", "hyper", "hyper_util", "h2", "reqwest", "rustls", "notify", "mio"];

/// Shows returned messages whole, bodies included, at `warn`; what was returned is told by us.
const QUOTES_PAYLOADS: &str = "lapin::returned_messages";

/// Starts logging, and logs panics from then on.
///
/// # Errors
/// Where the directives cannot be read, or logging has been started before.
pub fn init(directives: &str, format: LogFormat) -> anyhow::Result<()> {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(directives)?).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!(error))?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// The directives as asked for, behind the caps: the last of two for one target counts, and the longer target before the shorter.
fn filter(directives: &str) -> Result<EnvFilter, ParseError> {
    let overall = directives.split(',').filter_map(|directive| directive.trim().parse::<LevelFilter>().ok()).next_back();
    let caps = if overall.is_some_and(|level| level > LevelFilter::WARN) {
        NOISY.map(|target| format!("{target}=warn,")).concat()
    } else {
        String::new()
    };
    EnvFilter::builder().parse(format!("{QUOTES_PAYLOADS}=off,{caps}{directives}"))
}

/// Where it panicked; what it said only where that is fixed text, since a formatted message may quote a payload.
fn log_panic(info: &PanicHookInfo<'_>) {
    let message = info.payload().downcast_ref::<&'static str>().copied().unwrap_or("(message withheld: it may quote a payload)");
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let backtrace = std::backtrace::Backtrace::capture();
    tracing::error!(location, message = format_args!("panicked: {message}"), ?backtrace);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_quiet_unless_asked_for() {
        for (directives, expected) in
            [("info", "lapin=warn"), ("debug,lapin=debug", "lapin=debug"), ("debug,lapin::channel=trace", "lapin::channel=trace")]
        {
            assert!(filter(directives).unwrap().to_string().split(',').any(|d| d == expected), "{directives}");
        }
        for directives in ["error", "off", "warn", "unstale=debug"] {
            let filter = filter(directives).unwrap().to_string();
            let mut parts: Vec<&str> = filter.split(',').collect();
            parts.retain(|part| *part != "lapin::returned_messages=off");
            assert_eq!(parts, [directives], "no library is louder than all else");
        }
    }

    #[test]
    fn returned_messages_are_never_shown_unless_asked_for_by_their_full_name() {
        for directives in ["info", "warn", "debug", "debug,lapin=debug", "lapin=warn"] {
            let filter = filter(directives).unwrap().to_string();
            assert!(filter.split(',').any(|part| part == "lapin::returned_messages=off"), "{directives}: {filter}");
        }
    }
}
