//! Second passes (`again: 500ms`): what was deleted is deleted once more a while later, for readers that take no part and stored what they had
//! loaded before. Scheduled in Redis with the first pass and taken out only after the second, so that any worker does them, whoever died.

use std::time::Duration;

use redis::{Cmd, Value};

use super::failure::CommandError;
use super::script::{DONE_AGAIN, DUE_AGAIN, SCHEDULE_AGAIN, Sent};
use super::side_keys::{Kind, side_key};
use super::{Cache, lifetime};

/// Targets scheduled, and done, by one call.
pub(super) const TARGETS_PER_CALL: usize = 200;

/// Who does second passes goes on with them; another one follows so long after its last look.
const LOCK_TTL: Duration = Duration::from_secs(2);

/// What a second pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again<'t> {
    /// The whole key.
    Key(&'t str),
    /// The tag's name without its prefix.
    Tag(&'t str),
}

/// A second pass whose time has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// `k` or `t`, then the target.
    member: String,
    at: Vec<u8>,
}

impl Due {
    /// What is to be deleted; `None` where another version of this program wrote what this one cannot read.
    pub fn target(&self) -> Option<Again<'_>> {
        match self.member.split_at_checked(1)? {
            ("k", key) => Some(Again::Key(key)),
            ("t", tag) => Some(Again::Tag(tag)),
            _ => None,
        }
    }
}

/// Schedules second passes, each so long from now.
pub(super) fn schedule<'t>(set: &str, targets: impl Iterator<Item = (Again<'t>, Duration)>, sent: &mut Sent) -> Cmd {
    let mut command = SCHEDULE_AGAIN.call(sent, [set.as_bytes()].into_iter());
    for (target, after) in targets {
        let (kind, name) = match target {
            Again::Key(key) => ("k", key),
            Again::Tag(tag) => ("t", tag),
        };
        command.arg(lifetime::millis(after)).arg([kind, name].concat());
    }
    command
}

impl Cache {
    /// The second passes of this queue that are due, as many as one call does; none while another worker is at it. They stay scheduled until
    /// [`done_again`](Self::done_again).
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn due_again(&self, token: &str) -> Result<Vec<Due>, CommandError> {
        let lock = side_key(Kind::Lease, self.again.as_bytes());
        let mut command = DUE_AGAIN.call(&mut Sent::default(), [self.again.as_bytes(), &lock].into_iter());
        command.arg(TARGETS_PER_CALL).arg(token).arg(lifetime::millis(LOCK_TTL));
        let Value::Array(answer) = self.call("again", command).await? else { return Err(unexpected()) };
        let due = answer.chunks_exact(2).map(|pair| match pair {
            [Value::BulkString(member), Value::BulkString(at)] => {
                Some(Due { member: String::from_utf8_lossy(member).into_owned(), at: at.clone() })
            }
            _ => None,
        });
        due.collect::<Option<_>>().ok_or_else(unexpected)
    }

    /// Takes out second passes that are done; one that was scheduled anew meanwhile stays.
    ///
    /// # Errors
    /// An outage, or Redis refuses: they are done once more.
    pub async fn done_again(&self, done: &[Due]) -> Result<(), CommandError> {
        let mut command = DONE_AGAIN.call(&mut Sent::default(), [self.again.as_bytes()].into_iter());
        for Due { member, at } in done {
            command.arg(member).arg(at);
        }
        self.call("again", command).await.map(drop)
    }
}

fn unexpected() -> CommandError {
    CommandError::Failed("again: an answer of another shape than expected".into())
}
