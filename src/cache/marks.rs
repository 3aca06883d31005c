//! Marks, by which workers notice that Redis went back: a restore from an old snapshot, or the promotion of a replica that missed writes.
//!
//! Snapshots and replication keep a prefix of the writes. Each worker has a field in one hash whose number it moves on, from the very number that it knows,
//! behind each batch and each second. What Redis lost of a batch that it had confirmed, it lost of that field too; and a script that finds another number
//! than it must writes nothing, so that the evidence stays. Beside the number stands how far back lies what the worker has not applied yet (see
//! `worker/low.rs`): it came back with the rest, and tells from where the history is to be applied again.

use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use redis::{Cmd, Pipeline, Value};

use super::failure::{self, CommandError, Outage};
use super::script::{FORWARD_SEQUENCE, HEAL_FINISH, HEAL_SEAL, HEAL_TAKE, MARK_ENTER, MARK_HOLD, MARK_SEAL, MARK_TICK, Script, Sent};
use super::side_keys::SEQUENCE;
use super::workers::text_pairs;
use super::{Cache, Redis, lifetime};

/// Whoever remembers nothing takes a mark of another worker for fresh that is no older. An older one may mean that Redis went back, or that nobody ran.
const FRESH: Duration = Duration::from_secs(10);

/// The lock of a heal, unless it is renewed: each batch of the heal does.
const HEAL_LOCK: Duration = Duration::from_secs(10);

/// The fields of workers that are gone are kept for so long: what they had in hand may have come to nobody yet.
const DEAD_KEPT: Duration = Duration::from_secs(3_600);

/// Where this process stands among the marks.
#[derive(Debug, Default)]
pub(super) struct Chain {
    state: Mutex<State>,
    /// Held while a seal is made and sent with what it stands behind.
    order: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    mode: Mode,
    /// The number sent last for our field.
    sent: u64,
    /// The number confirmed last for our field, and Redis' clock when it last said the time; nothing before the first.
    confirmed: Option<(u64, u64)>,
    /// As in the last tick, for the seals until the next.
    low_ms: u64,
    /// The number sent last for the lock.
    lock: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mode {
    /// Commands of people have no field, and their batches no seals.
    #[default]
    Off,
    Worker,
    Healer,
}

/// What stands behind a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seal {
    mode: Mode,
    number: u64,
}

/// Whether a worker may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entered {
    /// It may: Redis holds all that it confirmed. What all marks say, as they were before ours.
    Good(Marks),
    /// Redis went back, or may have: the history is to be applied again first.
    ToHeal(Marks),
}

/// What a tick found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tick {
    /// Our mark does not stand, since the gate is closed.
    NotEntered,
    /// Redis holds all that it confirmed. What all marks say.
    Good(Marks),
    /// It does not.
    WentBack,
    /// Another worker found that it does not.
    ToHeal,
}

/// Whose turn it is to heal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// Ours. What all marks say, as they came back.
    Ours(Marks),
    /// Another's; it holds the lock.
    Anothers,
    /// Nobody's: it is done.
    Done,
}

/// The hash of marks as it was at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Marks {
    /// Redis' clock, in milliseconds since the Unix epoch.
    pub now_ms: u64,
    fields: Vec<(String, String)>,
}

/// The last heal that was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealRecord {
    /// When it began and ended, by Redis' clock; milliseconds since the Unix epoch.
    pub began_ms: u64,
    /// See above.
    pub ended_ms: u64,
    /// From when on the history was applied again, by the worker's clock.
    pub from_ms: u64,
    /// How many there have been.
    pub count: u64,
    /// Whether the history reached back so far.
    pub complete: bool,
}

impl Marks {
    /// The earliest arrival of anything that had not been applied yet, as far as anybody says.
    pub fn lowest_ms(&self) -> Option<u64> {
        self.fields
            .iter()
            .filter(|(field, _)| !["wanted", "lock", "heal"].contains(&field.as_str()))
            .filter_map(|(_, mark)| low_of(mark))
            .min()
    }

    /// Whether a heal is wanted, or under way.
    pub fn is_wanted(&self) -> bool {
        self.value("wanted").is_some()
    }

    /// The last heal.
    pub fn last_heal(&self) -> Option<HealRecord> {
        let parts: Vec<u64> = self.value("heal")?.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
        let [began_ms, ended_ms, from_ms, count, complete] = parts[..] else { return None };
        Some(HealRecord { began_ms, ended_ms, from_ms, count, complete: complete == 1 })
    }

    fn value(&self, field: &str) -> Option<&str> {
        self.fields.iter().find(|(name, _)| name == field).map(|(_, value)| value.as_str())
    }
}

/// The second number of `number:low:at`.
fn low_of(mark: &str) -> Option<u64> {
    let mut parts = mark.split(':');
    let (Some(_), Some(low), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else { return None };
    low.parse().ok()
}

impl Chain {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Cache {
    /// What this process is known by among workers and marks: other than any other process.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What is to stand behind commands that are sent now. It must leave before any other seal does: nothing may be awaited before its pipeline is sent.
    pub(super) fn seal(&self, sent: &mut Sent) -> Option<(Seal, Cmd)> {
        let (mode, expected, number, low_ms) = self.chain.change(|state| {
            let last = match state.mode {
                Mode::Off => return None,
                Mode::Worker => &mut state.sent,
                Mode::Healer => &mut state.lock,
            };
            let expected = *last;
            *last += 1;
            Some((state.mode, expected, *last, state.low_ms))
        })?;
        let script = if mode == Mode::Healer { &HEAL_SEAL } else { &MARK_SEAL };
        let mut command = script.call(sent, [self.marks.as_bytes()].into_iter());
        command.arg(&self.id).arg(expected).arg(number);
        match mode {
            Mode::Healer => command.arg(lifetime::millis(HEAL_LOCK)),
            Mode::Off | Mode::Worker => command.arg(low_ms),
        };
        Some((Seal { mode, number }, command))
    }

    /// What `begin` sends leaves in one go, with the seal that it makes, before what anybody else sends with a seal.
    pub(super) async fn in_order<F: Future>(&self, begin: impl FnOnce() -> F) -> F::Output {
        let (sending, begun) = {
            let _order = self.chain.order.lock().unwrap_or_else(PoisonError::into_inner);
            let mut sending = Box::pin(begin());
            // Polled once, it is on its way. Whoever awaits it polls it again at once.
            let begun = sending.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            (sending, begun)
        };
        match begun {
            Poll::Ready(output) => output,
            Poll::Pending => sending.await,
        }
    }

    /// One command by itself, outside any batch, whose effect is not to be lost unnoticed.
    pub(super) async fn call_sealed(&self, name: &str, command: Cmd) -> Result<Value, CommandError> {
        let Redis::Primary(link) = &self.redis else { return self.call(name, command).await };
        let live = link.live()?;
        let (mut pipeline, mut seal) = (Pipeline::with_capacity(2), None);
        pipeline.add_command(command);
        let (sealed, made) = (&mut pipeline, &mut seal);
        let sending = self.in_order(|| {
            if let Some((seal, command)) = self.seal(&mut Sent::default()) {
                *made = Some(seal);
                sealed.add_command(command);
            }
            link.send(&live, sealed)
        });
        let mut answers = sending.await?.into_iter();
        let answer = failure::of_answer(name, answers.next());
        if let Err(CommandError::Outage(outage)) = &answer {
            link.give_up(&live, outage);
        }
        if let Some(seal) = seal {
            self.sealed(seal, &answers.next().unwrap_or(Value::Nil)).inspect_err(|outage| link.give_up(&live, outage))?;
        }
        answer
    }

    /// A seal behind what was sent without one.
    pub(super) async fn seal_alone(&self) -> Result<(), Outage> {
        match self.call_sealed("TIME", redis::cmd("TIME")).await {
            Err(CommandError::Outage(outage)) => Err(outage),
            _ => Ok(()),
        }
    }

    /// What a seal's answer means for what stood before it.
    pub(super) fn sealed(&self, seal: Seal, answer: &Value) -> Result<(), Outage> {
        match answer {
            Value::Int(1) => {
                self.chain.change(|state| {
                    if let (Some((confirmed, _)), Mode::Worker) = (&mut state.confirmed, seal.mode) {
                        *confirmed = (*confirmed).max(seal.number);
                    }
                });
                Ok(())
            }
            Value::ServerError(error) => Err(match failure::classify("marks", error) {
                CommandError::Outage(outage) => outage,
                CommandError::Refused(cause) | CommandError::Failed(cause) => Outage::no_marks(&cause),
            }),
            _ => Err(Outage::went_back()),
        }
    }

    /// Takes up this worker's mark, or takes it up again after an outage, unless Redis went back meanwhile. From then on batches are sealed.
    /// `low_ms`: the earliest arrival of anything that is not applied yet.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn enter(&self, low_ms: u64) -> Result<Entered, CommandError> {
        let (confirmed, greatest, next) = self.chain.change(|state| {
            state.mode = Mode::Off;
            state.low_ms = low_ms;
            let greatest = state.sent;
            state.sent += 1;
            (state.confirmed, greatest, state.sent)
        });
        let (least, known_at) = confirmed.map_or((String::new(), 0), |(number, at)| (number.to_string(), at));
        let mut command = self.marks_call(&MARK_ENTER);
        command.arg(&self.id).arg(least).arg(greatest).arg(known_at).arg(next).arg(low_ms).arg(lifetime::millis(FRESH));
        let (answer, marks) = self.ask_marks(command).await?;
        if answer != 1 {
            return Ok(Entered::ToHeal(marks));
        }
        self.chain.change(|state| {
            state.mode = Mode::Worker;
            state.confirmed = Some((next, marks.now_ms));
        });
        Ok(Entered::Good(marks))
    }

    /// Moves this worker's mark on.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn tick(&self, low_ms: u64) -> Result<Tick, CommandError> {
        let step = self.chain.change(|state| {
            state.low_ms = low_ms;
            (state.mode == Mode::Worker).then(|| {
                state.sent += 1;
                (state.sent - 1, state.sent)
            })
        });
        let Some((expected, next)) = step else { return Ok(Tick::NotEntered) };
        let mut command = self.marks_call(&MARK_TICK);
        command.arg(&self.id).arg(expected).arg(next).arg(low_ms).arg(lifetime::millis(DEAD_KEPT));
        let (answer, marks) = self.ask_marks(command).await?;
        match answer {
            1 => {
                self.chain.change(|state| {
                    let number = state.confirmed.map_or(next, |(confirmed, _)| confirmed.max(next));
                    state.confirmed = Some((number, marks.now_ms));
                });
                Ok(Tick::Good(marks))
            }
            2 => Ok(Tick::ToHeal),
            _ => Ok(Tick::WentBack),
        }
    }

    /// Asks for the turn to heal. Once it is ours, batches are sealed on the lock, and renew it.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn take_heal(&self) -> Result<Turn, CommandError> {
        let number = self.chain.change(|state| {
            state.mode = Mode::Off;
            state.lock += 1;
            state.lock
        });
        let mut command = self.marks_call(&HEAL_TAKE);
        command.arg(&self.id).arg(number).arg(lifetime::millis(HEAL_LOCK));
        let (answer, marks) = self.ask_marks(command).await?;
        Ok(match answer {
            1 => {
                self.chain.change(|state| state.mode = Mode::Healer);
                Turn::Ours(marks)
            }
            2 => Turn::Done,
            _ => Turn::Anothers,
        })
    }

    /// Keeps the lock of the heal, and finds out whether it still is ours and Redis has not gone back since.
    ///
    /// # Errors
    /// An outage (also when it is not ours), or Redis refuses.
    pub async fn renew_heal(&self) -> Result<(), Outage> {
        self.seal_alone().await
    }

    /// Ends the heal: this worker's mark stands again, and nobody is to heal. Without a record there was nothing to do; `ended_ms` is Redis' to say. False where Redis went back meanwhile, or the lock was lost.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn finish_heal(&self, record: Option<HealRecord>, low_ms: u64) -> Result<bool, CommandError> {
        let (lock, next) = self.chain.change(|state| {
            state.mode = Mode::Off;
            state.low_ms = low_ms;
            state.sent += 1;
            (state.lock, state.sent)
        });
        let mut command = self.marks_call(&HEAL_FINISH);
        command.arg(&self.id).arg(lock).arg(next).arg(low_ms);
        match record {
            Some(HealRecord { began_ms, from_ms, count, complete, .. }) => {
                command.arg(began_ms).arg(format!("{from_ms}:{count}:{}", u8::from(complete)))
            }
            None => command.arg("").arg(""),
        };
        let (answer, marks) = self.ask_marks(command).await?;
        if answer == 1 {
            self.chain.change(|state| {
                state.mode = Mode::Worker;
                state.confirmed = Some((next, marks.now_ms));
            });
        }
        Ok(answer == 1)
    }

    /// Says how far back lies what a command of a person's is applying: a Redis that goes back meanwhile, or for an hour after, is healed from there.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn hold_mark(&self, command_name: &str, low_ms: u64) -> Result<(), CommandError> {
        let mut command = self.marks_call(&MARK_HOLD);
        command.arg(format!("{command_name}:{}", self.id)).arg(low_ms);
        self.call("marks", command).await.map(drop)
    }

    /// Takes back what [`hold_mark`](Self::hold_mark) said.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn release_mark(&self, command_name: &str) -> Result<(), CommandError> {
        let mut command = redis::cmd("HDEL");
        command.arg(&self.marks).arg(format!("{command_name}:{}", self.id));
        self.call("marks", command).await.map(drop)
    }

    /// What all marks say. Changes nothing.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn read_marks(&self) -> Result<Marks, CommandError> {
        let now_ms = self.time_ms().await?;
        let mut command = redis::cmd("HGETALL");
        command.arg(&self.marks);
        let fields = text_pairs(&self.call("HGETALL", command).await?).ok_or_else(unexpected)?;
        Ok(Marks { now_ms, fields })
    }

    /// Has the sequence that orders leases and invalidations of tags run ahead of all that was given out before Redis went back.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn forward_sequence(&self) -> Result<(), CommandError> {
        self.call("sequence", FORWARD_SEQUENCE.call(&mut Sent::default(), [SEQUENCE].into_iter())).await.map(drop)
    }

    fn marks_call(&self, script: &Script) -> Cmd {
        script.call(&mut Sent::default(), [self.marks.as_bytes()].into_iter())
    }

    /// A script's word, Redis' clock and, where there are any, all fields.
    async fn ask_marks(&self, command: Cmd) -> Result<(i64, Marks), CommandError> {
        let Value::Array(answer) = self.call("marks", command).await? else { return Err(unexpected()) };
        let (Some(Value::Int(word)), Some(Value::Int(now_ms))) = (answer.first(), answer.get(1)) else { return Err(unexpected()) };
        let fields = answer.get(2).map_or(Some(Vec::new()), text_pairs).ok_or_else(unexpected)?;
        Ok((*word, Marks { now_ms: u64::try_from(*now_ms).unwrap_or(0), fields }))
    }
}

fn unexpected() -> CommandError {
    CommandError::Failed("marks: an answer of another shape than expected".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_far_as_they_are_marks() {
        let fields = [
            ("a", "7:300:9"),
            ("b", "8:200:9"),
            ("replay:x", "0:100:9"),
            ("wanted", "5"),
            ("lock", "1:2:3"),
            ("heal", "1:2:3:4:1"),
            ("c", "odd"),
        ];
        let fields = fields.map(|(field, value)| (field.to_owned(), value.to_owned())).to_vec();
        let marks = Marks { now_ms: 9, fields };
        assert_eq!((marks.lowest_ms(), marks.is_wanted()), (Some(100), true));
        let heal = HealRecord { began_ms: 1, ended_ms: 2, from_ms: 3, count: 4, complete: true };
        assert_eq!(marks.last_heal(), Some(heal));
        assert_eq!((Marks::default().lowest_ms(), Marks::default().last_heal()), (None, None));
    }
}
