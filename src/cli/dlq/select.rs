//! Which letters a command is about.

use clap::Args;
use clap::builder::PossibleValuesParser;
use jiff::Timestamp;

use crate::ops::dead_letters::{Filter, GroupBy, since};
use crate::reason::Reason;
use crate::registry::Pattern;

/// Which letters; all where nothing is said.
#[derive(Debug, Args)]
pub(super) struct Selection {
    /// Only letters of this reason; may be given more than once
    #[arg(long, value_name = "REASON", value_parser = PossibleValuesParser::new(Reason::ALL.map(Reason::as_str)))]
    reason: Vec<String>,
    /// Only events of this type, or of types that match this topic pattern, such as 'user.*'
    #[arg(long = "type", value_name = "PATTERN")]
    types: Vec<String>,
    /// Only letters that failed by this rule, such as 'user.yaml#user.updated/0', or by one of this
    /// event definition or file
    #[arg(long)]
    rule: Vec<String>,
    /// Only letters whose error has this text, whatever its case; may be given more than once
    #[arg(long, value_name = "TEXT")]
    error: Vec<String>,
    /// Only letters dead-lettered since then: a duration, such as 2h, or an RFC 3339 time
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    since: Option<Timestamp>,
    /// Only letters dead-lettered before then: a duration, such as 2h, or an RFC 3339 time
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    until: Option<Timestamp>,
    /// Only the event of this id, or of one that begins so where it ends in '…'; may be given more
    /// than once
    #[arg(long)]
    id: Vec<String>,
    /// Only so many, the oldest first
    #[arg(long, value_name = "N", value_parser = count)]
    limit: Option<u32>,
}

impl Selection {
    /// Returns the filter. A letter without a time satisfies `--since` and `--until`, but for
    /// `drop`: in doubt nothing is thrown away.
    pub(super) fn filter(&self) -> Filter {
        Filter {
            timeless: true,
            reasons: self.reason.clone(),
            types: self.types.iter().map(|pattern| Pattern::parse(pattern)).collect(),
            rules: self.rule.clone(),
            errors: self.error.clone(),
            since: self.since,
            until: self.until,
            ids: self.id.clone(),
        }
    }

    /// Returns whether a limit is given.
    pub(super) fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    pub(super) fn limit(&self) -> usize {
        self.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
    }
}

/// What letters are counted by.
#[derive(Debug, Args)]
pub(super) struct Grouping {
    /// Count letters by these, between commas; reason,type where nothing is said
    #[arg(long, value_name = "WHAT", value_delimiter = ',',
          value_parser = PossibleValuesParser::new(GroupBy::ALL.map(GroupBy::as_str)))]
    group_by: Vec<String>,
}

impl Grouping {
    /// Returns what was asked for, or that.
    pub(super) fn by(&self, otherwise: &[GroupBy]) -> Vec<GroupBy> {
        if self.group_by.is_empty() {
            return otherwise.to_vec();
        }
        self.group_by.iter().filter_map(|name| GroupBy::from_name(name)).collect()
    }
}

pub(super) fn count(text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|count| *count > 0)
        .ok_or_else(|| format!("expected a whole number from 1 to {}", u32::MAX))
}

fn moment(text: &str) -> Result<Timestamp, String> {
    since(text, Timestamp::now())
}
