//! The filters by which `unstale dlq` commands select letters, and the columns by which they count
//! them.

use clap::Args;
use clap::builder::PossibleValuesParser;
use jiff::Timestamp;

use crate::ops::dead_letters::{Filter, GroupBy, since};
use crate::reason::Reason;
use crate::registry::Pattern;

/// The filters of a command. Without any, all letters match.
#[derive(Debug, Args)]
pub(super) struct Selection {
    /// Only dead letters of this reason; repeatable
    #[arg(long, value_name = "REASON", value_parser = PossibleValuesParser::new(Reason::ALL.map(Reason::as_str)))]
    reason: Vec<String>,
    /// Only events whose type matches this topic pattern, such as user.updated or 'user.*';
    /// repeatable
    #[arg(long = "type", value_name = "PATTERN")]
    types: Vec<String>,
    /// Only dead letters that failed in this rule, such as 'user.yaml#user.updated/0', or in any
    /// rule of this event definition, file or folder; repeatable
    #[arg(long)]
    rule: Vec<String>,
    /// Only dead letters whose error contains this text, in upper or lower case; repeatable
    #[arg(long, value_name = "TEXT")]
    error: Vec<String>,
    /// Only events dead-lettered at or after this time: a duration ago, such as 2h, or RFC 3339
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Only events dead-lettered before this time: a duration ago, such as 2h, or RFC 3339
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// Only events with this id, or with this beginning if it ends in '…'; repeatable
    #[arg(long)]
    id: Vec<String>,
    /// Only the N oldest dead letters
    #[arg(long, value_name = "N", value_parser = count)]
    limit: Option<u32>,
}

impl Selection {
    /// Returns the filter. A letter without a time matches `--since` and `--until`. `drop` changes
    /// that, because in doubt it must not drop a letter.
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

    /// Returns true if there is a limit.
    pub(super) fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    pub(super) fn limit(&self) -> usize {
        self.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
    }
}

/// The columns by which letters are counted.
#[derive(Debug, Args)]
pub(super) struct Grouping {
    /// Columns by which dead letters are counted, separated by commas [default: reason,type]
    #[arg(long, value_name = "COLUMN", value_delimiter = ',',
          value_parser = PossibleValuesParser::new(GroupBy::ALL.map(GroupBy::as_str)))]
    group_by: Vec<String>,
}

impl Grouping {
    /// Returns whether columns were given.
    pub(super) fn is_given(&self) -> bool {
        !self.group_by.is_empty()
    }

    /// Returns the columns that were given, or the defaults.
    pub(super) fn by(&self, defaults: &[GroupBy]) -> Vec<GroupBy> {
        if self.group_by.is_empty() {
            return defaults.to_vec();
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
