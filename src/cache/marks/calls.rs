//! What workers and commands say to the marks, and learn from them.

use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};

use redis::{Cmd, Pipeline, Value};

use super::super::address::Address;
use super::super::failure::{self, CommandError, Outage};
use super::super::script::{HEAL_SEAL, MARK_ENTER, MARK_HOLD, MARK_SEAL, MARK_TICK, Script, Sent};
use super::super::workers::text_pairs;
use super::super::{Cache, Redis, lifetime};
use super::chain::{Draft, Mode, Seal, State};
use super::{DEAD_KEPT, Entered, FRESH, HEAL_LOCK, Marks, Tick, read_answer, unexpected};

impl Cache {
    /// What this process is known by among workers and marks: other than any other process.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What is to stand behind commands that are sent now. It must leave before any other seal does: nothing may be awaited before its pipeline is sent.
    pub(in crate::cache) fn seal(&self, sent: &mut Sent) -> Option<(Seal, Cmd)> {
        self.seal_with(0, sent)
    }

    /// As [`seal`](Self::seal), by one of several marks.
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

    /// What `begin` sends leaves in one go, with the seal that it makes, before what anybody else sends with a seal.
    pub(in crate::cache) async fn in_order<F: Future>(&self, begin: impl FnOnce() -> F) -> F::Output {
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
    pub(in crate::cache) async fn call_sealed(&self, name: &str, command: Cmd) -> Result<Value, CommandError> {
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
            self.sealed(seal, &answers.next().unwrap_or(Value::Nil)).inspect_err(|outage| link.give_up(&live, outage))?;
        }
        answer
    }

    /// A seal behind what was sent without one.
    pub(in crate::cache) async fn seal_alone(&self) -> Result<(), Outage> {
        match self.call_sealed("TIME", redis::cmd("TIME")).await {
            Err(CommandError::Outage(outage)) => Err(outage),
            _ => Ok(()),
        }
    }

    /// What a seal's answer means for what stood before it.
    pub(in crate::cache) fn sealed(&self, seal: Seal, answer: &Value) -> Result<(), Outage> {
        match answer {
            Value::Int(1) => {
                self.chain.change(|state| state.sealed(seal));
                Ok(())
            }
            Value::ServerError(error) => Err(match failure::classify("marks", error) {
                CommandError::Outage(outage) => outage,
                CommandError::Refused(cause) | CommandError::Failed(cause) => Outage::no_marks(&cause),
            }),
            _ => Err(Outage::broke_checkpoint()),
        }
    }

    /// Finds out whether the checkpoint is as it must be, right now.
    ///
    /// # Errors
    /// An outage; the checkpoint is broken, which is nobody's fault that is known.
    pub async fn confirm_checkpoint(&self) -> Result<(), Outage> {
        if !self.chain.seals() {
            return Ok(());
        }
        self.seal_alone().await.map_err(|outage| outage.for_others())
    }

    /// Takes up this worker's marks, or takes them up again after an outage, unless Redis went back meanwhile. From then on batches are sealed.
    /// `low_ms`: the earliest arrival of anything that is not applied yet.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn enter(&self, low_ms: u64) -> Result<Entered, CommandError> {
        let mut numbers = Vec::new();
        let (answers, homes) = self
            .ask_marks(|state| {
                state.mode = Mode::Off;
                state.low_ms = low_ms;
                (0..state.marks.len())
                    .map(|place| {
                        let mark = &mut state.marks[place];
                        let greatest = mark.sent;
                        mark.sent += 1;
                        numbers.push(mark.sent);
                        let (least, known_at) = mark.confirmed.map_or((String::new(), 0), |(number, at)| (number.to_string(), at));
                        let mut command = self.mark_call(&MARK_ENTER, place);
                        command.arg(&self.id).arg(least).arg(greatest).arg(known_at).arg(mark.sent).arg(low_ms);
                        command.arg(lifetime::millis(FRESH));
                        command
                    })
                    .collect()
            })
            .await?;
        let (good, doubt) = self.chain.change(|state| {
            for ((place, (word, marks)), number) in answers.iter().enumerate().zip(&numbers) {
                if *word == 1 {
                    state.marks[place].confirmed = Some((*number, marks.now_ms));
                }
            }
            let good = answers.iter().all(|(word, _)| *word == 1);
            let doubt = if good { state.doubtful(&homes) } else { None };
            if good && doubt.is_none() {
                state.mode = Mode::Worker;
                state.all_moved_on(homes);
            }
            (good, doubt)
        });
        let marks = Marks::together(answers.into_iter().map(|(_, marks)| marks));
        if let Some(place) = doubt {
            // For whoever heals.
            let mut command = redis::cmd("HSET");
            command.arg(&self.marks[place]).arg("wanted").arg(marks.now_ms);
            self.call("marks", command).await?;
        }
        Ok(if good && doubt.is_none() { Entered::Good(marks) } else { Entered::ToHeal(marks) })
    }

    /// Moves this worker's marks on.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn tick(&self, low_ms: u64) -> Result<Tick, CommandError> {
        let mut numbers = Vec::new();
        let (answers, homes) = self
            .ask_marks(|state| {
                state.low_ms = low_ms;
                if state.mode != Mode::Worker {
                    return Vec::new();
                }
                let places = 0..state.marks.len();
                places
                    .filter_map(|place| {
                        let Draft { seal, expected, .. } = state.draft(place)?;
                        numbers.push(seal.number);
                        let mut command = self.mark_call(&MARK_TICK, place);
                        command.arg(&self.id).arg(expected).arg(seal.number).arg(low_ms).arg(lifetime::millis(DEAD_KEPT));
                        Some(command)
                    })
                    .collect()
            })
            .await?;
        if answers.is_empty() {
            return Ok(Tick::NotEntered);
        }
        let words = || answers.iter().map(|(word, _)| *word);
        if words().any(|word| ![1, 2].contains(&word)) {
            return Ok(Tick::WentBack);
        }
        if words().any(|word| word == 2) {
            return Ok(Tick::ToHeal);
        }
        self.chain.change(|state| {
            for (place, ((_, marks), number)) in answers.iter().zip(&numbers).enumerate() {
                state.moved_on(place, *number, marks.now_ms);
            }
            state.all_moved_on(homes);
        });
        Ok(Tick::Good(Marks::together(answers.into_iter().map(|(_, marks)| marks))))
    }

    /// Says how far back lies what a command of a person's is applying: a Redis that goes back meanwhile, or for an hour after, is healed from there.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn hold_mark(&self, command_name: &str, low_ms: u64) -> Result<(), CommandError> {
        let field = format!("{command_name}:{}", self.id);
        let hold = |place: usize| {
            let mut command = self.mark_call(&MARK_HOLD, place);
            command.arg(&field).arg(low_ms);
            command
        };
        self.ask_all(|_| (0..self.marks.len()).map(hold).collect()).await.map(drop)
    }

    /// Takes back what [`hold_mark`](Self::hold_mark) said.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn release_mark(&self, command_name: &str) -> Result<(), CommandError> {
        let field = format!("{command_name}:{}", self.id);
        self.ask_all(|_| self.marks.iter().map(|marks| super::arguments("HDEL", &[marks, &field])).collect()).await.map(drop)
    }

    /// What all marks say. Changes nothing.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn read_marks(&self) -> Result<Marks, CommandError> {
        let now_ms = self.time_ms().await?;
        let (answers, _) = self.ask_all(|_| self.marks.iter().map(|marks| super::arguments("HGETALL", &[marks])).collect()).await?;
        let fields: Option<Vec<_>> = answers.iter().map(text_pairs).collect();
        Ok(Marks { now_ms, fields: fields.ok_or_else(unexpected)?.concat() })
    }

    /// A script's call on one of the hashes.
    pub(super) fn mark_call(&self, script: &Script, place: usize) -> Cmd {
        let mut sent = if matches!(self.redis, Redis::Cluster(_)) { Sent::all() } else { Sent::default() };
        script.call(&mut sent, [self.marks[place].as_bytes()].into_iter())
    }

    /// Asks marks by scripts; in a cluster also who serves each of the hashes.
    pub(super) async fn ask_marks(
        &self,
        ask: impl FnOnce(&mut State) -> Vec<Cmd>,
    ) -> Result<(Vec<(i64, Marks)>, Vec<Address>), CommandError> {
        let (answers, homes) = self.ask_all(ask).await?;
        Ok((answers.iter().map(read_answer).collect::<Result<_, _>>()?, homes))
    }

    /// As [`ask_marks`](Self::ask_marks), by any commands. The numbers in them are drawn, and they are sent, while no other seal is on its way.
    async fn ask_all(&self, ask: impl FnOnce(&mut State) -> Vec<Cmd>) -> Result<(Vec<Value>, Vec<Address>), CommandError> {
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
                let answers = asked.0.into_iter().map(|answer| failure::of_answer("marks", Some(answer))).collect::<Result<Vec<_>, _>>();
                if let Err(CommandError::Outage(outage)) = &answers {
                    self.give_up(outage);
                }
                Ok((answers?, asked.1))
            }
        }
    }
}
