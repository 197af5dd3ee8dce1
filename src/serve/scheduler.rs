//! Decoding for everybody at once. The sequences of one model, which share its decoder, take each step together; one joins as
//! soon as there is a free slot and leaves as soon as it has ended, whatever the others do.

use super::limits::Limits;
use super::refusal::Refusal;
use super::sequence::{Event, Sequence};
use crate::model::{Decoder, End, ModelSpec, Slots, Step};
use crate::stop::StopRequest;
use anyhow::{Context, Result};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How often an idle scheduler looks for a signal.
const TICK: Duration = Duration::from_millis(50);
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
    /// When answers that still run are cut, once a signal has come.
    stopping: Option<Instant>,
}

impl<'a> Scheduler<'a> {
    /// `decoders`: all of one spec.
    pub fn new(spec: ModelSpec, decoders: Vec<Decoder>, limits: &'a Limits, arriving: Receiver<Sequence>) -> Self {
        let running = (0..limits.batch_size).map(|_| None).collect();
        let slots = Slots::new(&spec, limits.batch_size, limits.context);
        Self { spec, decoders, limits, slots, running, waiting: VecDeque::new(), arriving, stopping: None }
    }

    /// Answers until a signal comes and what runs has ended, or the grace is over. `on_stop` is called when it comes.
    pub fn run(mut self, stop: &StopRequest, on_stop: impl FnOnce()) {
        let mut on_stop = Some(on_stop);
        while self.receive() {
            if self.stopping.is_none() && stop.received().is_some() {
                self.stopping = Some(Instant::now() + self.limits.grace);
                on_stop.take().into_iter().for_each(|on_stop| on_stop());
            }
            if let Some(end) = self.stopping {
                self.waiting.drain(..).for_each(|sequence| sequence.tell(Event::Failed(Refusal::stopping())));
                if self.is_idle() || Instant::now() >= end {
                    break;
                }
            }
            self.drop_unwanted();
            self.admit();
            for model in 0..self.decoders.len() {
                self.step(model);
            }
        }
        let cut = self.running.iter_mut().filter_map(Option::take).map(|(sequence, _)| sequence);
        cut.chain(self.arriving.try_iter()).for_each(|sequence| sequence.tell(Event::Failed(Refusal::stopping())));
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
        let (now, seconds) = (Instant::now(), self.limits.request.as_secs());
        let goes_on = |sequence: &Sequence| {
            if now >= sequence.deadline {
                let message = format!("the request took longer than the {seconds} seconds that one may take");
                sequence.tell(Event::Failed(Refusal::new(504, "timeout", message)));
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
            Ok(steps) => steps,
            Err(error) => return self.begin_anew(&error),
        };
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

    /// After a step that failed halfway: what the cache holds of any sequence may be wrong.
    fn begin_anew(&mut self, error: &anyhow::Error) {
        let refusal = Refusal::failure(error);
        let running = self.running.iter_mut().filter_map(Option::take);
        running.for_each(|(sequence, _)| sequence.tell(Event::Failed(refusal.clone())));
        self.slots = Slots::new(&self.spec, self.limits.batch_size, self.limits.context);
    }
}

/// Tells what a step brought; `chosen` counts the tokens. Returns why the answer ended, if it did.
fn take_step(sequence: &mut Sequence, chosen: &mut usize, step: Step) -> Result<Option<End>> {
    let told = sequence.draft.scored.is_some();
    if *chosen == 0
        && let Some(part) = sequence.draft.answer.prompt(&sequence.draft.prompt, step.prompt, told)?
    {
        sequence.tell(Event::Part(part));
    }
    let Some(token) = step.token else { return Ok(step.end) };
    *chosen += 1;
    let answer = &mut sequence.draft.answer;
    let (part, end) = match step.end {
        Some(End::Stop) => (answer.finish(step.score.map(|score| (token, score)))?, Some(End::Stop)),
        end => {
            let (mut part, stopped) = answer.push(token, step.score)?;
            if end.is_some() && !stopped {
                let rest = answer.finish(None).context("at the end of an answer")?;
                part.text.push_str(&rest.text);
                part.tokens.extend(rest.tokens);
            }
            (part, if stopped { Some(End::Stop) } else { end })
        }
    };
    if !part.text.is_empty() || !part.tokens.is_empty() {
        sequence.tell(Event::Part(part));
    }
    Ok(end)
}
