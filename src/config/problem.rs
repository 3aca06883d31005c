//! Errors and warnings about the environment.
//!
//! They contain names and expectations only, since a value may be a secret in the wrong variable.

use crate::causes::Explain;
use std::fmt;

/// One setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The variable's name.
    pub setting: String,
    /// The problem, the expected value, and the fix.
    pub message: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.message)
    }
}

/// All settings that cannot be used. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigProblems {
    /// Settings that cannot be used.
    pub problems: Vec<ConfigProblem>,
    /// Variables without effect. One of them may be a misspelt name of a missing setting.
    pub ignored: Vec<Warning>,
}

impl Explain for ConfigProblems {}

impl fmt::Display for ConfigProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.len() {
            1 => write!(f, "1 setting cannot be used:")?,
            n => write!(f, "{n} settings cannot be used:")?,
        }
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))?;
        self.ignored
            .iter()
            .try_for_each(|Warning { setting, message }| write!(f, "\n  {setting}: {message}"))
    }
}

/// A variable without effect that was probably meant to have one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The variable.
    pub setting: String,
    /// The reason, and the fix.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.message)
    }
}
