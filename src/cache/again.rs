//! Second passes (`again: 500ms`): what was deleted is deleted once more a while later, for readers
//! that take no part and stored what they had loaded before. Scheduled in Redis with the first pass
//! and taken out only after the second, so that any worker does them, whoever died.

use std::time::Duration;

use redis::{Cmd, Value};

use tokio_util::sync::CancellationToken;

use super::failure::CommandError;
use super::script::{DONE_AGAIN, DUE_AGAIN, SCHEDULE_AGAIN, Sent};
use super::side_keys::{Kind, side_key};
use super::{Cache, lifetime};
use crate::plan::{Batch, EffectOutcome, EffectRef};
use crate::registry::{Action, Effect, RuleId};

/// Targets scheduled, and done, by one call.
pub(super) const TARGETS_PER_CALL: usize = 200;

/// Who does second passes goes on with them; another one follows so long after its last look.
const LOCK_TTL: Duration = Duration::from_secs(2);

/// A second pass that Redis does not do for a reason that may pass is due again so long after.
const RETRY_AFTER: Duration = Duration::from_secs(10);

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
    /// What is to be deleted; `None` where another version of this program wrote what this one
    /// cannot read.
    pub fn target(&self) -> Option<Again<'_>> {
        match self.member.split_at_checked(1)? {
            ("k", key) => Some(Again::Key(key)),
            ("t", tag) => Some(Again::Tag(tag)),
            _ => None,
        }
    }
}

/// What a round of second passes came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SecondPasses {
    /// What was due.
    pub due: Vec<Due>,
    /// Why some of it was not done: rules and codes, never keys.
    pub failed: Vec<String>,
    /// As [`Drained::lost`](super::Drained::lost).
    pub lost: u64,
}

/// Schedules second passes, each so long from now.
pub(super) fn schedule<'t>(
    set: &str,
    targets: impl Iterator<Item = (Again<'t>, Duration)>,
    sent: &mut Sent,
) -> Cmd {
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
    /// Does the second passes of this queue that are due, as many as one call of Redis tells; none
    /// while another worker is at it.
    ///
    /// # Errors
    /// An outage, or Redis refuses to tell: what was due stays so.
    pub async fn pass_again(&self, token: &str) -> Result<SecondPasses, CommandError> {
        let due = self.due_again(token).await?;
        let mut passes = SecondPasses { due, ..SecondPasses::default() };
        let effects: Vec<Effect> =
            passes.due.iter().filter_map(Due::target).map(second_pass).collect();
        let mut batch = Batch::new(&self.tag_prefix, effects.len());
        for (position, effect) in (0_u32..).zip(&effects) {
            batch.push(EffectRef { event: 0, position }, effect);
        }
        let mut later = Vec::new();
        for (slot, outcome) in self.apply(&batch.finish()).await?.unsettled {
            let effect = &effects[slot.position as usize];
            let outcome = match outcome {
                EffectOutcome::Slow => {
                    match self.drain_tag(&effect.target, &CancellationToken::new(), |_, _| {}).await
                    {
                        Ok(drained) => {
                            passes.lost += drained.lost;
                            continue;
                        }
                        Err(error) => error.into_outcome()?,
                    }
                }
                outcome => outcome,
            };
            match outcome {
                // The first pass met the same, and its event says so.
                EffectOutcome::Dead { message, .. } => passes.failed.push(message),
                EffectOutcome::Retry { message, .. } | EffectOutcome::NotTried { message, .. } => {
                    later.push(target(effect));
                    passes.failed.push(message);
                }
                EffectOutcome::Slow => {}
            }
        }
        for part in later.chunks(TARGETS_PER_CALL) {
            let targets = part.iter().map(|target| (*target, RETRY_AFTER));
            self.call("again", schedule(&self.again, targets, &mut Sent::default())).await?;
        }
        if !passes.due.is_empty() {
            self.done_again(&passes.due).await?;
        }
        Ok(passes)
    }

    /// The second passes of this queue that are due, as many as one call does; none while another
    /// worker is at it. They stay scheduled until [`done_again`](Self::done_again).
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn due_again(&self, token: &str) -> Result<Vec<Due>, CommandError> {
        let lock = side_key(Kind::Lease, self.again.as_bytes());
        let mut command =
            DUE_AGAIN.call(&mut Sent::default(), [self.again.as_bytes(), &lock].into_iter());
        command.arg(TARGETS_PER_CALL).arg(token).arg(lifetime::millis(LOCK_TTL));
        let Value::Array(answer) = self.call("again", command).await? else {
            return Err(unexpected());
        };
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
        let mut command =
            DONE_AGAIN.call(&mut Sent::default(), [self.again.as_bytes()].into_iter());
        for Due { member, at } in done {
            command.arg(member).arg(at);
        }
        self.call("again", command).await.map(drop)
    }
}

fn second_pass(target: Again<'_>) -> Effect {
    let (target, action) = match target {
        Again::Key(key) => (key, Action::Delete),
        Again::Tag(tag) => (tag, Action::InvalidateTag),
    };
    // Of no rule: nothing is counted.
    Effect { rule: RuleId(0), target: target.to_owned(), action, version: None, again: None }
}

fn target(effect: &Effect) -> Again<'_> {
    if effect.action == Action::InvalidateTag {
        Again::Tag(&effect.target)
    } else {
        Again::Key(&effect.target)
    }
}

fn unexpected() -> CommandError {
    CommandError::Failed("again: an answer of another shape than expected".into())
}
