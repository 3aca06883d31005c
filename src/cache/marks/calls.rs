//! Calls with which workers and commands enter, advance, read and leave checkpoints.

use std::collections::{BTreeSet, HashSet};
use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};

use redis::{Cmd, Pipeline, Value};

use super::super::address::Address;
use super::super::failure::{self, CommandError, Outage};
use super::super::script::{
    HEAL_SEAL, MARK_ENTER, MARK_HOLD, MARK_LEAVE, MARK_SEAL, MARK_TAKE_OVER, MARK_TICK, Script,
    Sent,
};
use super::super::workers::{text_of, text_pairs};
use super::super::{Cache, Redis, lifetime};
use super::chain::{Draft, Mode, Seal, State};
use super::{
    DEAD_KEPT, Entered, FRESH, HEAL_LOCK, Hash, LowWatermark, Marks, Tick, read_answer, unexpected,
};

/// Answer of a script if another server wrote the checkpoints last.
const REPLACED: i64 = 3;

/// Answers of the hashes to a worker that enters its checkpoints.
struct Entering {
    answers: Vec<(i64, Marks)>,
    homes: Vec<Address>,
    numbers: Vec<u64>,
}

impl Cache {
    /// Returns the id of this process among workers and checkpoints, unique among processes.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns whether this process has the turn to heal after a loss.
    pub fn heals(&self) -> bool {
        self.chain.heals()
    }

    /// Makes the checkpoint write behind commands that are sent now. It must be sent before any
    /// other one: the caller must not await anything until then.
    pub(in crate::cache) fn seal(&self, sent: &mut Sent) -> Option<(Seal, Cmd)> {
        self.seal_with(0, sent)
    }

    /// Makes a write as [`checkpoint_write`](Self::checkpoint_write) does, of one of several
    /// checkpoints.
    pub(in crate::cache) fn seal_with(&self, mark: usize, sent: &mut Sent) -> Option<(Seal, Cmd)> {
        let Draft { seal, expected, low_ms } = self.chain.change(|state| state.draft(mark))?;
        let script = if seal.mode == Mode::Healer { &HEAL_SEAL } else { &MARK_SEAL };
        let mut command = script.call(sent, [self.marks[mark].as_bytes()].into_iter());
        command.arg(&self.id).arg(expected).arg(seal.number);
        match seal.mode {
            Mode::Healer => command.arg(lifetime::millis(HEAL_LOCK)),
            Mode::Off | Mode::Worker => command.arg(low_ms),
        };
        Some((seal, command))
    }

    /// Sends what `begin` makes, with its checkpoint write, in one go. No other checkpoint write is
    /// sent in between.
    pub(in crate::cache) async fn in_order<F: Future>(
        &self,
        begin: impl FnOnce() -> F,
    ) -> F::Output {
        let (sending, begun) = {
            let _order = self.chain.order.lock().unwrap_or_else(PoisonError::into_inner);
            let mut sending = Box::pin(begin());
            // The first poll sends it. The caller that awaits it polls it again at once.
            let begun = sending.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            (sending, begun)
        };
        match begun {
            Poll::Ready(output) => output,
            Poll::Pending => sending.await,
        }
    }

    /// Runs one command outside any batch, with a checkpoint write behind it, so that a loss of its
    /// effect is noticed.
    pub(in crate::cache) async fn call_sealed(
        &self,
        name: &str,
        command: Cmd,
    ) -> Result<Value, CommandError> {
        let link = match &self.redis {
            Redis::Primary(link) => link,
            Redis::Cluster(cluster) => {
                let answer = cluster.run_sealed(self, &[command]).await?.pop();
                let answer = failure::of_answer(name, answer);
                if let Err(CommandError::Outage(outage)) = &answer {
                    self.give_up(outage);
                }
                return answer;
            }
        };
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
            self.sealed(seal, &answers.next().unwrap_or(Value::Nil))
                .inspect_err(|outage| link.give_up(&live, outage))?;
        }
        answer
    }

    /// Writes a checkpoint behind commands that were sent without one.
    pub(in crate::cache) async fn seal_alone(&self) -> Result<(), Outage> {
        match self.call_sealed("TIME", redis::cmd("TIME")).await {
            Err(CommandError::Outage(outage)) => Err(outage),
            _ => Ok(()),
        }
    }

    /// Notes the answer to a checkpoint write. Fails if the commands before it are not known to
    /// last.
    pub(in crate::cache) fn sealed(&self, seal: Seal, answer: &Value) -> Result<(), Outage> {
        match answer {
            Value::Int(1) => {
                self.chain.change(|state| state.sealed(seal));
                Ok(())
            }
            Value::ServerError(error) => Err(match failure::classify("marks", error) {
                CommandError::Outage(outage) => outage,
                CommandError::Refused(cause) | CommandError::Failed(cause) => {
                    Outage::no_marks(&cause)
                }
            }),
            _ => Err(Outage::broke_checkpoint()),
        }
    }

    /// Checks that the checkpoint is intact at this moment.
    ///
    /// # Errors
    /// An outage, or the checkpoint is broken. Then no batch is known to be the cause.
    pub async fn confirm_checkpoint(&self) -> Result<(), Outage> {
        if !self.chain.seals() {
            return Ok(());
        }
        self.seal_alone().await.map_err(|outage| outage.for_others())
    }

    /// Enters this worker's checkpoints, for the first time or after an outage, unless Redis lost
    /// writes or was replaced. Later batches write checkpoints.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn enter(&self, low: impl Into<LowWatermark>) -> Result<Entered, CommandError> {
        let low = low.into();
        let mut entering = self.ask_to_enter(low, &[]).await?;
        let mut doubt = None;
        if let Some(place) = entering.answers.iter().position(|(word, _)| *word == REPLACED) {
            match self.moved_slots(&entering.answers).await {
                Some(moved) => entering = self.ask_to_enter(low, &moved).await?,
                None => doubt = Some((place, "replaced")),
            }
        }
        let Entering { answers, homes, numbers } = entering;
        let good = doubt.is_none() && answers.iter().all(|(word, _)| *word == 1);
        self.chain.change(|state| {
            for ((place, (word, marks)), number) in answers.iter().enumerate().zip(&numbers) {
                if *word == 1 {
                    state.marks[place].confirmed = Some((*number, marks.now_ms));
                }
            }
            if good {
                doubt = state.doubtful(&homes).map(|place| (place, "unknown"));
            }
            if good && doubt.is_none() {
                state.mode = Mode::Worker;
                state.all_moved_on(homes);
            }
        });
        let marks = Marks::together(answers.into_iter().map(|(_, marks)| marks));
        if let Some((place, why)) = doubt {
            // The worker that heals reads it.
            let mut command = redis::cmd("HSET");
            command.arg(&self.marks[place]).arg("wanted").arg(marks.now_ms).arg("why").arg(why);
            self.call("marks", command).await?;
        }
        Ok(if good && doubt.is_none() { Entered::Good(marks) } else { Entered::ToHeal(marks) })
    }

    /// Sends one call for each hash. `moved` are identities of servers that wrote checkpoints which
    /// other servers have now, and that still serve.
    async fn ask_to_enter(
        &self,
        low: LowWatermark,
        moved: &[String],
    ) -> Result<Entering, CommandError> {
        let mut numbers = Vec::new();
        let may_move = matches!(self.redis, Redis::Cluster(_)) && moved.is_empty();
        let (answers, homes) = self
            .ask_marks(|state| {
                state.mode = Mode::Off;
                state.low = low;
                (0..state.marks.len())
                    .map(|place| {
                        let mark = &mut state.marks[place];
                        let greatest = mark.sent;
                        mark.sent += 1;
                        numbers.push(mark.sent);
                        let (least, known_at) = mark
                            .confirmed
                            .map_or((String::new(), 0), |(number, at)| (number.to_string(), at));
                        let mut command = self.mark_call(&MARK_ENTER, place);
                        command
                            .arg(&self.id)
                            .arg(least)
                            .arg(greatest)
                            .arg(known_at)
                            .arg(mark.sent)
                            .arg(low.time_ms);
                        command
                            .arg(lifetime::millis(FRESH))
                            .arg(offset(low))
                            .arg(if may_move { "ask" } else { "" })
                            .arg(moved);
                        command
                    })
                    .collect()
            })
            .await?;
        Ok(Entering { answers, homes, numbers })
    }

    /// Advances this worker's checkpoints.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn tick(&self, low: impl Into<LowWatermark>) -> Result<Tick, CommandError> {
        let low = low.into();
        let mut numbers = Vec::new();
        let (answers, homes) = self
            .ask_marks(|state| {
                state.low = low;
                if state.mode != Mode::Worker {
                    return Vec::new();
                }
                let places = 0..state.marks.len();
                places
                    .filter_map(|place| {
                        let Draft { seal, expected, .. } = state.draft(place)?;
                        numbers.push(seal.number);
                        let mut command = self.mark_call(&MARK_TICK, place);
                        command
                            .arg(&self.id)
                            .arg(expected)
                            .arg(seal.number)
                            .arg(low.time_ms)
                            .arg(lifetime::millis(DEAD_KEPT));
                        command.arg(offset(low));
                        Some(command)
                    })
                    .collect()
            })
            .await?;
        if answers.is_empty() {
            return Ok(Tick::NotEntered);
        }
        let words = || answers.iter().map(|(word, _)| *word);
        if words().any(|word| ![1, 2, REPLACED].contains(&word)) {
            return Ok(Tick::WentBack);
        }
        if words().any(|word| word == 2) {
            return Ok(Tick::ToHeal);
        }
        self.chain.change(|state| {
            for (place, ((_, marks), number)) in answers.iter().zip(&numbers).enumerate() {
                state.moved_on(place, *number, marks.now_ms);
            }
        });
        if words().any(|word| word == REPLACED) {
            if self.moved_slots(&answers).await.is_none() {
                return Ok(Tick::Replaced);
            }
            self.note_new_homes(&answers).await?;
        }
        self.chain.change(|state| state.all_moved_on(homes));
        Ok(Tick::Good(Marks::together(answers.into_iter().map(|(_, marks)| marks))))
    }

    /// Returns the identities of the servers that wrote checkpoints which others have now, if all
    /// of them still serve: then slots have moved. `None` means that one was restarted, or replaced
    /// by a replica.
    async fn moved_slots(&self, answers: &[(i64, Marks)]) -> Option<Vec<String>> {
        let Redis::Cluster(cluster) = &self.redis else { return None };
        let answering = answers
            .iter()
            .flat_map(|(_, marks)| &marks.hashes)
            .map(|hash| hash.server.clone())
            .collect();
        let moved = moved_slots(answers, &answering);
        if moved.is_some() {
            return moved;
        }
        // A primary that all checkpoints have left may still serve.
        let all: HashSet<String> = cluster
            .infos()
            .await
            .iter()
            .filter_map(text_of)
            .filter_map(|info| identity(&info))
            .collect();
        moved_slots(answers, &all)
    }

    /// Notes the servers that have checkpoints of moved slots now.
    async fn note_new_homes(&self, answers: &[(i64, Marks)]) -> Result<(), CommandError> {
        let moved = answers.iter().zip(&self.marks).filter(|((word, _), _)| *word == REPLACED);
        let commands = moved.filter_map(|((_, marks), name)| {
            let server = marks.hashes.first()?.server.as_str();
            Some(super::arguments("HSET", &[name, "server", server]))
        });
        let commands: Vec<Cmd> = commands.collect();
        self.ask_all(|_| commands).await.map(drop)
    }

    /// Removes this worker's field from the checkpoints, as its last action. `low` covers the
    /// events that it let go of. `is_all_settled` means that none of them is left, except those
    /// that wait in the queue.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn leave(
        &self,
        low: impl Into<LowWatermark>,
        is_all_settled: bool,
    ) -> Result<(), CommandError> {
        let low = low.into();
        self.ask_all(|state| {
            if std::mem::take(&mut state.mode) != Mode::Worker {
                return Vec::new();
            }
            let leave = |place: usize| {
                let mark = &state.marks[place];
                let (least, _) = mark.confirmed?;
                let mut command = self.mark_call(&MARK_LEAVE, place);
                command.arg(&self.id).arg(least).arg(mark.sent).arg(low.time_ms).arg(offset(low));
                command.arg(u8::from(is_all_settled)).arg(lifetime::millis(FRESH));
                Some(command)
            };
            (0..state.marks.len()).filter_map(leave).collect()
        })
        .await
        .map(drop)
    }

    /// Takes over what these fields of workers that are [`gone`](Checkpoints::gone) cover. Our own
    /// field must cover it already.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn take_over(&self, gone: &[String]) -> Result<(), CommandError> {
        let take_over = |place: usize| {
            let mut command = self.mark_call(&MARK_TAKE_OVER, place);
            command.arg(lifetime::millis(FRESH)).arg(gone);
            command
        };
        self.ask_all(|_| (0..self.marks.len()).map(take_over).collect()).await.map(drop)
    }

    /// Stores the low watermark of an operator's command. If Redis loses writes during the command
    /// or within an hour after it, the heal begins there.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn hold_mark(
        &self,
        command_name: &str,
        low: impl Into<LowWatermark>,
    ) -> Result<(), CommandError> {
        let (low, field) = (low.into(), format!("{command_name}:{}", self.id));
        let hold = |place: usize| {
            let mut command = self.mark_call(&MARK_HOLD, place);
            command.arg(&field).arg(low.time_ms).arg(offset(low));
            command
        };
        self.ask_all(|_| (0..self.marks.len()).map(hold).collect()).await.map(drop)
    }

    /// Removes the field of [`hold_checkpoint`](Self::hold_checkpoint).
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn release_mark(&self, command_name: &str) -> Result<(), CommandError> {
        let field = format!("{command_name}:{}", self.id);
        let offset = format!("offset:{field}");
        self.ask_all(|_| {
            self.marks
                .iter()
                .map(|marks| super::arguments("HDEL", &[marks, &field, &offset]))
                .collect()
        })
        .await
        .map(drop)
    }

    /// Returns all checkpoints. Changes nothing.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn read_marks(&self) -> Result<Marks, CommandError> {
        let now_ms = self.time_ms().await?;
        let (answers, _) = self
            .ask_all(|_| {
                self.marks.iter().map(|marks| super::arguments("HGETALL", &[marks])).collect()
            })
            .await?;
        let fields =
            answers.iter().map(text_pairs).collect::<Option<Vec<_>>>().ok_or_else(unexpected)?;
        Ok(Marks::together(
            fields.into_iter().map(|fields| Marks::of(now_ms, String::new(), fields)),
        ))
    }

    /// Returns a script's call on one of the hashes.
    pub(super) fn mark_call(&self, script: &Script, place: usize) -> Cmd {
        let mut sent =
            if matches!(self.redis, Redis::Cluster(_)) { Sent::all() } else { Sent::default() };
        script.call(&mut sent, [self.marks[place].as_bytes()].into_iter())
    }

    /// Asks checkpoints by scripts. In a cluster, also returns the node that serves each of the
    /// hashes.
    pub(super) async fn ask_marks(
        &self,
        ask: impl FnOnce(&mut State) -> Vec<Cmd>,
    ) -> Result<(Vec<(i64, Marks)>, Vec<Address>), CommandError> {
        let (answers, homes) = self.ask_all(ask).await?;
        Ok((answers.iter().map(read_answer).collect::<Result<_, _>>()?, homes))
    }

    /// Asks checkpoints as [`ask_checkpoints`](Self::ask_checkpoints) does, by any commands. Their
    /// numbers are drawn, and they are sent, while no checkpoint write is in flight.
    pub(super) async fn ask_all(
        &self,
        ask: impl FnOnce(&mut State) -> Vec<Cmd>,
    ) -> Result<(Vec<Value>, Vec<Address>), CommandError> {
        match &self.redis {
            Redis::Primary(_) => {
                let mut answers = Vec::new();
                for command in self.chain.change(ask) {
                    answers.push(self.call("marks", command).await?);
                }
                Ok((answers, Vec::new()))
            }
            Redis::Cluster(cluster) => {
                let asked = cluster.ask_marks(self.marks.len(), || self.chain.change(ask)).await?;
                let answers = asked
                    .0
                    .into_iter()
                    .map(|answer| failure::of_answer("marks", Some(answer)))
                    .collect::<Result<Vec<_>, _>>();
                if let Err(CommandError::Outage(outage)) = &answers {
                    self.give_up(outage);
                }
                Ok((answers?, asked.1))
            }
        }
    }
}

/// Returns the identities of the servers that wrote checkpoints which others have now, if all of
/// them are among `serving`.
fn moved_slots(answers: &[(i64, Marks)], serving: &HashSet<String>) -> Option<Vec<String>> {
    let replaced =
        answers.iter().filter(|(word, _)| *word == REPLACED).flat_map(|(_, marks)| &marks.hashes);
    let writers: BTreeSet<&str> = replaced.filter_map(Hash::written_on).collect();
    writers
        .iter()
        .all(|writer| serving.contains(*writer))
        .then(|| writers.into_iter().map(str::to_owned).collect())
}

/// Reads the identity of a primary, as `lua/checkpoint.lua` does. A demoted one keeps its
/// replication id for a moment.
fn identity(info: &str) -> Option<String> {
    let value =
        |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    if value("role").map(str::trim) != Some("master") {
        return None;
    }
    let [run, replication] = ["run_id", "master_replid"].map(|name| value(name).map(str::trim));
    Some(format!("{}:{}", run?, replication?))
}

/// Returns the offset as an argument of a script: empty if it is not known.
fn offset(low: LowWatermark) -> String {
    low.offset.map_or_else(String::new, |offset| offset.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(word: i64, written_on: &str, server: &str) -> (i64, Marks) {
        (word, Marks::of(1, server.to_owned(), vec![("server".to_owned(), written_on.to_owned())]))
    }

    #[test]
    fn slots_have_moved_where_their_writers_serve_on() {
        let serving = ["a:1", "b:1"].map(str::to_owned).into_iter().collect();
        let moved =
            [answer(1, "a:1", "a:1"), answer(REPLACED, "a:1", "b:1"), answer(1, "b:1", "b:1")];
        assert_eq!(moved_slots(&moved, &serving), Some(vec!["a:1".to_owned()]));
        let restarted = [answer(REPLACED, "c:1", "a:1"), answer(1, "b:1", "b:1")];
        assert_eq!(moved_slots(&restarted, &serving), None);
    }

    #[test]
    fn an_identity_is_read_as_scripts_read_it() {
        let info = "# Server\r\nrun_id:ab12\r\n# Replication\r\nrole:master\r\nmaster_replid:cd\r\nmaster_replid2:00\r\n";
        assert_eq!(identity(info).as_deref(), Some("ab12:cd"));
        assert_eq!(identity(&info.replace("role:master", "role:slave")), None);
        assert_eq!(identity("run_id:ab12\r\n"), None);
    }
}
