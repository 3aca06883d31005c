//! What is wrong with the environment, and what is merely odd. Names and expectations alone: a
//! value may be a secret in the wrong place.

use std::fmt;

/// One setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The variable, as it is to be set.
    pub setting: String,
    /// What is wrong, what is expected, and what to do.
    pub message: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.message)
    }
}

/// Every setting that cannot be used: never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigProblems {
    /// Settings that cannot be used.
    pub problems: Vec<ConfigProblem>,
    /// Variables that change nothing: one may be meant for what is missing.
    pub ignored: Vec<Warning>,
}

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

/// A variable that changes nothing, and surely was meant to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The variable.
    pub setting: String,
    /// Why it changes nothing, and what to do.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.message)
    }
}
