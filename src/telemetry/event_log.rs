//! Logs events that could not be applied at once, and at `debug` each effect.
//!
//! The events are dead letters, unknown events and retries. An event that is applied at once costs
//! nothing here, unless the level is `debug`.

use std::convert::Infallible;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{Level, debug, enabled, warn};

use super::repeats::{Due, Repeats};
use crate::quantity::format_duration;
use crate::reason::{Reason, rule_of};
use crate::registry::{Action, Effect};

/// Time between two checks for counts that are due.
const LOOKS: Duration = Duration::from_secs(1);

/// Length of a digest in the log, in characters.
const DIGEST_CHARS: usize = 12;

/// Logs events that cannot be applied at once: the first of a kind, then one count a minute.
#[derive(Debug, Default)]
pub struct EventLog {
    lines: Mutex<Repeats<Line>>,
}

/// The kind of a line. Lines of one kind are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Line {
    Dead { reason: Reason, rule: Option<String> },
    Unknown { event_type: String },
    Waits { rule: Option<String>, error: String },
}

/// An event that is republished.
#[derive(Debug, Clone, Copy)]
pub struct Republished<'e> {
    /// Its type. For a message that is not an event, the routing key.
    pub event_type: &'e str,
    /// Its id, if it has one.
    pub id: Option<&'e str>,
    /// The error.
    pub error: Option<&'e str>,
    /// Number of attempts made so far.
    pub attempt: u32,
}

impl Republished<'_> {
    fn rule(&self) -> Option<&str> {
        self.error.and_then(rule_of)
    }

    /// Returns the error without the rule's name.
    fn cause(&self) -> &str {
        let error = self.error.unwrap_or_default();
        self.rule().map_or(error, |rule| error[rule.len()..].trim_start_matches(": "))
    }
}

impl EventLog {
    /// Logs that an event has become a dead letter.
    pub fn dead(&self, reason: Reason, event: Republished<'_>) {
        let rule = event.rule();
        if self.is_first(Line::Dead { reason, rule: rule.map(str::to_owned) }) {
            warn!(
                reason = reason.as_str(),
                rule,
                event_type = event.event_type,
                id = event.id,
                cause = event.cause(),
                look = Look { reason, rule, id: event.id }.to_string(),
                "dead letter"
            );
        }
    }

    /// Logs that no event definition matches the event's type. `nearest` returns a known type that
    /// is similar.
    pub fn unknown(&self, event: Republished<'_>, nearest: impl FnOnce() -> Option<String>) {
        if self.is_first(Line::Unknown { event_type: event.event_type.to_owned() }) {
            warn!(
                event_type = event.event_type,
                id = event.id,
                did_you_mean = nearest(),
                "unknown event"
            );
        }
    }

    /// Logs that an event waits for its next attempt.
    pub fn waits(&self, event: Republished<'_>, delay: Duration) {
        let (rule, cause) = (event.rule(), event.cause());
        // If the rule is known, its errors may differ for each event.
        let error = if rule.is_some() { String::new() } else { cause.to_owned() };
        if self.is_first(Line::Waits { rule: rule.map(str::to_owned), error }) {
            warn!(
                rule, event_type = event.event_type, id = event.id, cause, attempt = event.attempt, retry_in = %format_duration(delay),
                "retry scheduled"
            );
        }
    }

    /// Logs counts when they are due. Never returns.
    pub async fn keep(&self) -> Infallible {
        loop {
            tokio::time::sleep(LOOKS).await;
            let due = self.lines().due(Instant::now());
            log_counts(due);
        }
    }

    /// Logs the remaining counts.
    pub fn finish(&self) {
        let rest = self.lines().rest();
        log_counts(rest);
    }

    fn is_first(&self, line: Line) -> bool {
        self.lines().is_first(line, Instant::now())
    }

    fn lines(&self) -> MutexGuard<'_, Repeats<Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log_counts(due: Due<Line>) {
    for (line, more) in due.kinds {
        match line {
            Line::Dead { reason, rule } => {
                let look = Look { reason, rule: rule.as_deref(), id: None };
                warn!(
                    reason = reason.as_str(),
                    rule,
                    more,
                    look = look.to_string(),
                    "more dead letters"
                );
            }
            Line::Unknown { event_type } => {
                warn!(event_type, more, "more unknown events")
            }
            Line::Waits { rule, error } => {
                let cause = (!error.is_empty()).then_some(error);
                warn!(rule, cause, more, "more retries");
            }
        }
    }
    if due.others > 0 {
        warn!(more = due.others, "more failed events");
    }
}

/// The command that shows a dead letter, or similar ones.
struct Look<'l> {
    reason: Reason,
    rule: Option<&'l str>,
    id: Option<&'l str>,
}

impl fmt::Display for Look<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(id) = self.id {
            // A value that begins with a hyphen would be read as an option.
            let separator = if id.starts_with('-') { '=' } else { ' ' };
            return write!(f, "unstale dlq show --id{separator}{}", Quoted(id));
        }
        write!(f, "unstale dlq list --reason {}", self.reason)?;
        match self.rule {
            Some(rule) => write!(f, " --rule {}", Quoted(rule)),
            None => Ok(()),
        }
    }
}

/// A word, quoted for a shell if necessary.
struct Quoted<'t>(&'t str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_plain = |c: char| {
            c.is_ascii_alphanumeric()
                || matches!(c, '_' | '-' | '.' | ':' | '/' | '@' | '+' | ',' | '=' | '%')
        };
        if !self.0.is_empty() && self.0.chars().all(is_plain) {
            return f.write_str(self.0);
        }
        write!(f, "'{}'", self.0.replace('\'', "'\\''"))
    }
}

/// Logs each applied effect on a line, if the level is `debug`.
#[derive(Debug)]
pub struct EffectLog<'d> {
    digest: &'d str,
}

impl<'d> EffectLog<'d> {
    /// Returns the log for effects of that registry. `None` if the level is not `debug`.
    pub fn get(digest: &'d str) -> Option<Self> {
        enabled!(Level::DEBUG)
            .then(|| Self { digest: digest.get(..DIGEST_CHARS).unwrap_or(digest) })
    }

    /// Logs one applied effect.
    pub fn took_effect(&self, effect: &Effect, rule: &str, event_id: Option<&str>) {
        let target = Some(effect.target.as_str());
        let is_tag = matches!(effect.action, Action::InvalidateTag);
        let (key, tag) = if is_tag { (None, target) } else { (target, None) };
        debug!(
            verb = effect.action.verb().as_str(),
            key,
            tag,
            rule,
            digest = self.digest,
            event = event_id,
            "effect"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logged_dlq_command_can_be_pasted_into_a_shell() {
        let look = |rule, id| Look { reason: Reason::InvalidData, rule, id }.to_string();
        assert_eq!(look(None, Some("e-1")), "unstale dlq show --id e-1");
        assert_eq!(look(None, Some("it's $(x)")), r"unstale dlq show --id 'it'\''s $(x)'");
        assert_eq!(look(None, Some("-x")), "unstale dlq show --id=-x");
        assert_eq!(
            look(Some("a.yaml#a.*/0"), None),
            "unstale dlq list --reason invalid_data --rule 'a.yaml#a.*/0'"
        );
        assert_eq!(look(None, None), "unstale dlq list --reason invalid_data");
    }

    #[test]
    fn the_logged_cause_does_not_repeat_the_rule() {
        let event = |error| Republished { event_type: "a", id: None, error, attempt: 1 };
        assert_eq!(event(Some("a.yaml#a/0: no value")).cause(), "no value");
        assert_eq!(event(Some("not JSON: x")).cause(), "not JSON: x");
        assert_eq!(event(None).cause(), "");
    }
}
