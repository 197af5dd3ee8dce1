//! Decoding for everybody at once. The sequences of one model, which share its decoder, take each step together; one joins as
//! soon as there is a free slot and leaves as soon as it has ended, whatever the others do.

use super::echo::Echoed;
use super::limits::Limits;
use super::refusal::Refusal;
use super::sequence::{Event, Sequence};
use crate::console::log;
use crate::model::{Chosen, Decoder, End, ModelSpec, Slots};
use crate::stop::StopRequest;
use anyhow::{Context, Result};
use serde_json::json;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How often an idle scheduler looks for a signal.
const TICK: Duration = Duration::from_millis(50);
/// Steps that may fail one after another: then the device, say, will not work again in this process.
const MOST_FAILURES: usize = 8;
/// Prompts join a step up to that many tokens, so that running answers do not wait for many prompts at once; one always may.
const PROMPT_TOKENS: usize = 2048;

pub struct Scheduler<'a> {
    spec: ModelSpec,
    decoders: Vec<Decoder>,
    limits: &'a Limits,
    slots: Slots,
    /// By slot, with the number of tokens that were chosen.
    running: Vec<Option<(Sequence, usize)>>,
    waiting: VecDeque<Sequence>,
    arriving: Receiver<Sequence>,
    /// Steps that failed since the last that did not.
    failures: usize,
    /// By model: whether its weights were looked at, as an answer failed.
    examined: Vec<bool>,
    /// When answers that still run are cut, once a signal has come.
    stopping: Option<Instant>,
}

impl<'a> Scheduler<'a> {
    /// `decoders`: all of one spec.
    pub fn new(spec: ModelSpec, decoders: Vec<Decoder>, limits: &'a Limits, arriving: Receiver<Sequence>) -> Self {
        let running = (0..limits.batch_size).map(|_| None).collect();
        let slots = Slots::new(&spec, limits.batch_size, limits.context);
        let (waiting, examined) = (VecDeque::new(), vec![false; decoders.len()]);
        Self { spec, decoders, limits, slots, running, waiting, arriving, failures: 0, examined, stopping: None }
    }

    /// Answers until a signal comes and what runs has ended, or the grace is over. `on_stop` is called when it comes.
    ///
    /// # Errors
    /// Nothing can arrive any more although no signal came; one step after another fails.
    pub fn run(mut self, stop: &StopRequest, on_stop: impl FnOnce()) -> Result<()> {
        let answered = self.answer(stop, on_stop);
        let cut = self.running.iter_mut().filter_map(Option::take).map(|(sequence, _)| sequence);
        let all = cut.chain(self.waiting.drain(..)).chain(self.arriving.try_iter());
        all.for_each(|sequence| sequence.tell(Event::Failed(Refusal::stopping())));
        answered
    }

    fn answer(&mut self, stop: &StopRequest, on_stop: impl FnOnce()) -> Result<()> {
        let mut on_stop = Some(on_stop);
        loop {
            let arrives = self.receive();
            if self.stopping.is_none() && stop.received().is_some() {
                self.stopping = Some(Instant::now() + self.limits.grace);
                on_stop.take().into_iter().for_each(|on_stop| on_stop());
            }
            if let Some(end) = self.stopping {
                self.waiting.drain(..).for_each(|sequence| sequence.tell(Event::Failed(Refusal::stopping())));
                if self.is_idle() || Instant::now() >= end {
                    return Ok(());
                }
            }
            anyhow::ensure!(arrives || self.stopping.is_some(), "the thread of the connections has ended");
            anyhow::ensure!(
                self.failures < MOST_FAILURES,
                "{MOST_FAILURES} steps failed one after another; the warnings before say why"
            );
            self.drop_unwanted();
            self.admit();
            for model in 0..self.decoders.len() {
                self.step(model);
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.iter().all(Option::is_none)
    }

    /// Takes in what has arrived, and waits a moment for it if there is nothing else to do; false once nothing can arrive.
    fn receive(&mut self) -> bool {
        if self.is_idle() && self.stopping.is_none() {
            match self.arriving.recv_timeout(TICK) {
                Ok(sequence) => self.waiting.push_back(sequence),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        self.waiting.extend(self.arriving.try_iter());
        true
    }

    /// Ends sequences that nobody waits for, or that nobody may wait for any longer.
    fn drop_unwanted(&mut self) {
        let (now, limit) = (Instant::now(), self.limits.request);
        let goes_on = |sequence: &Sequence| {
            if now >= sequence.deadline {
                sequence.tell(Event::Failed(Refusal::late(limit)));
            }
            sequence.is_wanted() && now < sequence.deadline
        };
        self.waiting.retain(goes_on);
        for (slot, running) in self.running.iter_mut().enumerate() {
            if running.as_ref().is_some_and(|(sequence, _)| !goes_on(sequence)) {
                *running = None;
                self.slots.end(slot);
            }
        }
    }

    /// Gives free slots to those that wait, in the order in which they came.
    fn admit(&mut self) {
        let mut tokens = 0;
        while let Some(slot) = self.slots.free()
            && let Some(next) = self.waiting.front()
        {
            tokens += next.draft.prompt.len();
            if tokens > PROMPT_TOKENS && tokens > next.draft.prompt.len() {
                return;
            }
            let Some(sequence) = self.waiting.pop_front() else { return };
            let draft = &sequence.draft;
            match self.slots.begin(slot, &draft.prompt, &draft.options, draft.scored) {
                Ok(()) => self.running[slot] = Some((sequence, 0)),
                Err(error) => sequence.tell(Event::Failed(Refusal::failure(&error))),
            }
        }
    }

    /// Continues the sequences of one model by a token.
    fn step(&mut self, model: usize) {
        let own = |(slot, running): (usize, &Option<(Sequence, usize)>)| {
            running.as_ref().filter(|(sequence, _)| sequence.model == model).map(|_| slot)
        };
        let slots: Vec<usize> = self.running.iter().enumerate().filter_map(own).collect();
        if slots.is_empty() {
            return;
        }
        let steps = match self.slots.step(&self.decoders[model], &slots) {
            Ok(steps) => {
                self.failures = 0;
                steps
            }
            Err(error) => return self.begin_anew(&error),
        };
        if steps.iter().any(|(_, step)| step.is_err()) {
            self.examine(model);
        }
        for (slot, step) in steps {
            let Some((sequence, chosen)) = self.running.get_mut(slot).and_then(Option::as_mut) else { continue };
            let ended = match step.and_then(|step| take_step(sequence, chosen, step)) {
                Ok(end) => end.map(|end| Event::End(end, *chosen)),
                Err(error) => Some(Event::Failed(Refusal::failure(&error))),
            };
            if let Some(event) = ended {
                sequence.tell(event);
                self.running[slot] = None;
                self.slots.end(slot);
            }
        }
    }

    /// Says which weights are damaged, if any are: once, as all of them are read for it.
    fn examine(&mut self, model: usize) {
        if std::mem::replace(&mut self.examined[model], true) {
            return;
        }
        if let Err(error) = self.decoders[model].refuse_damaged_weights() {
            log::warn(&format!("{error:#}"), json!({}));
        }
    }

    /// After a step that failed halfway: what the cache holds of any sequence may be wrong.
    fn begin_anew(&mut self, error: &anyhow::Error) {
        self.failures += 1;
        let refusal = Refusal::failure(error);
        let running = self.running.iter_mut().filter_map(Option::take);
        running.for_each(|(sequence, _)| sequence.tell(Event::Failed(refusal.clone())));
        self.slots = Slots::new(&self.spec, self.limits.batch_size, self.limits.context);
    }
}

/// Tells what a step brought; `chosen` counts the tokens. Returns why the answer ended, if it did.
fn take_step(sequence: &mut Sequence, chosen: &mut usize, step: Chosen) -> Result<Option<End>> {
    if let Some(echo) = sequence.draft.echo.take() {
        let scores = sequence.draft.scored.is_some().then_some(step.prompt);
        sequence.tell(Event::Echo(Echoed { echo, scores }));
    }
    let Some(token) = step.token else { return Ok(step.end) };
    *chosen += 1;
    let answer = &mut sequence.draft.answer;
    let (fragment, end) = match step.end {
        Some(End::Stop) => (answer.finish(step.score.map(|score| (token, score)))?, Some(End::Stop)),
        end => {
            let (mut fragment, stopped) = answer.push(token, step.score)?;
            if end.is_some() && !stopped {
                let rest = answer.finish(None).context("at the end of an answer")?;
                fragment.append(rest);
            }
            (fragment, if stopped { Some(End::Stop) } else { end })
        }
    };
    if !fragment.text.is_empty() || !fragment.tokens.is_empty() {
        sequence.tell(Event::Text(fragment));
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::sync::mpsc::channel;

    /// How a scheduler without decoders ends after so many failed steps.
    fn end(failures: usize, arriving: Receiver<Sequence>) -> String {
        let spec = ModelSpec::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tiny/aligned")).unwrap();
        let time = Duration::from_secs(1);
        let limits = Limits { body_bytes: 1, context: 16, batch_size: 1, queue: 1, request: time, grace: time };
        let mut scheduler = Scheduler::new(spec, vec![], &limits, arriving);
        (0..failures).for_each(|_| scheduler.begin_anew(&anyhow::anyhow!("on purpose")));
        let stop = StopRequest::listen(log::notice).unwrap();
        scheduler.run(&stop, || ()).unwrap_err().to_string()
    }

    #[test]
    fn a_server_that_can_answer_nothing_ends_with_an_error() {
        let (_sender, arriving) = channel();
        assert!(end(MOST_FAILURES, arriving).contains("failed one after another"));
        let (sender, arriving) = channel();
        drop(sender);
        assert!(end(MOST_FAILURES - 1, arriving).contains("connections has ended"));
    }
}
