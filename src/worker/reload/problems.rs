//! Reasons why the current rule files are not in use.

use std::time::Duration;

use tokio::task::JoinError;
use tracing::{error, warn};

use crate::causes::Explain;
use crate::registry::{Code, Diagnostic, Diagnostics, Severity};

/// Maximum length of the reported cause why a registry was not loaded.
const CAUSE_MAX_CHARS: usize = 400;

/// Reasons why the current rule files are not in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Problems {
    /// Problems of the files.
    OfFiles(Diagnostics),
    /// The loaders cannot be used, for this reason.
    OfLoaders(String),
    /// The file system has not answered for this time.
    NoAnswer(Duration),
    /// The program failed, for this reason.
    Panicked(String),
}

impl Problems {
    /// Returns whether a file cannot be read, which its contents do not show.
    pub(super) fn is_unreadable_file(&self) -> bool {
        let Self::OfFiles(Diagnostics(all)) = self else { return false };
        all.iter().any(|problem| problem.code == Code::FileUnreadable)
    }

    /// Logs each line of the problems as a separate record.
    pub(super) fn log(&self) {
        match self {
            Self::OfFiles(Diagnostics(all)) => all.iter().for_each(log),
            Self::OfLoaders(text) => text.lines().for_each(|line| error!("{line}")),
            Self::NoAnswer(_) | Self::Panicked(_) => error!("{}", self.cause()),
        }
    }

    /// Returns the first line of the first error, with its location, for `unstale status`. The log
    /// has all problems.
    pub(super) fn cause(&self) -> String {
        let text = match self {
            Self::OfFiles(Diagnostics(all)) => {
                let error = all.iter().find(|problem| problem.severity == Severity::Error);
                error.or(all.first()).map(ToString::to_string).unwrap_or_default()
            }
            Self::OfLoaders(text) => text.clone(),
            Self::NoAnswer(after) => format!(
                "the file system of the rule files has not answered for {} s; check its mount",
                after.as_secs()
            ),
            Self::Panicked(error) => format!("the program panicked on the rule files: {error}"),
        };
        text.lines().next().unwrap_or_default().chars().take(CAUSE_MAX_CHARS).collect()
    }
}

/// Logs each line of a problem as a separate record, at the level of its severity.
pub(super) fn log(problem: &Diagnostic) {
    let text = problem.to_string();
    match problem.severity {
        Severity::Error => text.lines().for_each(|line| error!("{line}")),
        Severity::Warning => text.lines().for_each(|line| warn!("{line}")),
    }
}

/// Returns the result of a blocking task that may have panicked.
pub(super) fn of_task<T>(done: Result<Result<T, Diagnostics>, JoinError>) -> Result<T, Problems> {
    match done {
        Ok(result) => result.map_err(Problems::OfFiles),
        Err(panicked) => Err(Problems::Panicked(panicked.in_full())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{LoadOptions, MissingVars, Registry};

    #[test]
    fn the_cause_is_the_first_line_of_the_first_error() {
        let folder = tempfile::tempdir().unwrap();
        let rules = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;
        std::fs::write(folder.path().join("a.yaml"), rules).unwrap();
        std::fs::write(folder.path().join("b.yaml"), rules.replace("effects", "efects")).unwrap();
        let options = LoadOptions {
            schemas: folder.path().to_owned(),
            key_prefix: String::new(),
            tag_prefix: "tag:".to_owned(),
            vars: crate::config::Vars::default(),
            max_keys_per_event: 100,
            missing_vars: MissingVars::Refuse,
        };
        let problems = Registry::load(&options).unwrap_err();
        assert_eq!(problems.0[0].severity, Severity::Warning, "{problems}");
        let cause = Problems::OfFiles(problems).cause();
        assert!(cause.contains("b.yaml") && cause.contains(": error["), "{cause}");
        assert!(!cause.contains('\n'), "{cause}");
    }
}
