//! Errors with their causes: how an error keeps its cause, and how both are shown.
//!
//! The `Display` of an error names only what failed at its own level. [`chain`] adds the causes,
//! and [`Explain::in_full`] adds the causes and the advice. Every log line, report or message that
//! shows an error uses one of the two.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// Returns an error and its causes as one text: `what failed: its cause: the cause of that`.
///
/// Some libraries repeat the text of a cause in the error above it. Such a cause is left out.
pub fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl fmt::Display + use<'e> {
    Chain(error)
}

struct Chain<'e>(&'e (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut above = self.0.to_string();
        f.write_str(&above)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            if !above.ends_with(&text) {
                write!(f, ": {text}")?;
                above = text;
            }
            next = cause.source();
        }
        Ok(())
    }
}

/// An error that may know what an operator can do about it.
pub trait Explain: Error + 'static {
    /// Returns what an operator can do, if the error knows it.
    fn advice(&self) -> Option<Cow<'static, str>> {
        None
    }

    /// Returns the error, its causes and the advice in one line, for logs and reports.
    fn in_full(&self) -> String
    where
        Self: Sized,
    {
        let causes = chain(self);
        match self.advice() {
            Some(advice) => format!("{causes}; {advice}"),
            None => causes.to_string(),
        }
    }
}

impl Explain for std::io::Error {}

impl Explain for tokio::task::JoinError {}

/// Cause of an error: an error of a library or of another module, or a fact that this program
/// found.
///
/// Its text and its causes are those of the error that it holds.
#[derive(Debug, Clone)]
pub struct Cause(Arc<dyn Error + Send + Sync>);

impl Cause {
    /// Returns the error as a cause.
    pub fn new(error: impl Error + Send + Sync + 'static) -> Self {
        Self(Arc::new(error))
    }

    /// Returns the error that it holds, if that error is of type `E`.
    pub fn get<E: Error + 'static>(&self) -> Option<&E> {
        self.0.downcast_ref()
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// A fact that this program found, with no error beneath it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Fact(Cow<'static, str>);

impl From<&'static str> for Cause {
    fn from(fact: &'static str) -> Self {
        Self::new(Fact(Cow::Borrowed(fact)))
    }
}

impl From<String> for Cause {
    fn from(fact: String) -> Self {
        Self::new(Fact(Cow::Owned(fact)))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{what}")]
    struct Level {
        what: &'static str,
        #[source]
        cause: Option<Cause>,
    }

    impl Explain for Level {
        fn advice(&self) -> Option<Cow<'static, str>> {
            (self.what == "outer").then_some("try again".into())
        }
    }

    #[test]
    fn each_text_of_a_chain_is_shown_once() {
        let leaf = || Cause::new(io::Error::other("no route"));
        let level = |what, cause: Cause| Level { what, cause: Some(cause) };
        for (error, shown) in [
            (Level { what: "alone", cause: None }, "alone"),
            (level("outer", leaf()), "outer: no route"),
            (level("outer", "a fact".into()), "outer: a fact"),
            (level("outer", Cause::new(level("inner", leaf()))), "outer: inner: no route"),
            // An error that repeats its cause, and one that is shown as its cause.
            (level("outer: no route", leaf()), "outer: no route"),
            (level("outer", Cause::new(io::Error::other(leaf()))), "outer: no route"),
        ] {
            assert_eq!(chain(&error).to_string(), shown);
        }
    }

    #[test]
    fn advice_follows_the_causes() {
        let outer = Level { what: "outer", cause: Some("a fact".into()) };
        assert_eq!(outer.in_full(), "outer: a fact; try again");
        let other = Level { what: "other", cause: Some("a fact".into()) };
        assert_eq!(other.in_full(), "other: a fact");
    }

    #[test]
    fn a_cause_keeps_the_error_that_it_was_made_of() {
        let cause = Cause::new(io::Error::from(io::ErrorKind::TimedOut));
        assert_eq!(cause.get::<io::Error>().map(io::Error::kind), Some(io::ErrorKind::TimedOut));
        assert!(Cause::from("a fact").get::<io::Error>().is_none());
    }
}
