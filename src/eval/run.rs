//! One model on one evaluation: its answers, and what they come to.

use super::accuracy::Target;
use super::answers::answer_all;
use super::case::Case;
use super::choice::{self, Choices};
use super::coherence;
use super::judge::Judge;
use super::loss::mean_loss;
use super::options::{Evaluation, Metric};
use super::outcome::Outcome;
use super::refusal::Phrases;
use crate::data::{Dataset, Prompt};
use crate::model::{Decoder, GenerateOptions};
use crate::report::{Rate, Value};
use crate::stop;
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;

/// Prompts, and their ids for the model.
pub struct Questions {
    pub prompts: Vec<Prompt>,
    /// The user's last messages, without what the evaluation puts around them.
    pub asked: Vec<String>,
    pub ids: Vec<Vec<u32>>,
}

/// One model on one evaluation.
pub struct Run<'a> {
    pub evaluation: &'a Evaluation,
    pub model: &'a Decoder,
    pub tokenizer: Option<&'a Tokenizer>,
    pub batch_size: usize,
    pub progress: &'a ProgressBar,
}

impl Run<'_> {
    pub fn loss(&self, dataset: &Dataset) -> Result<Outcome> {
        let mean = mean_loss(self.model, dataset, self.batch_size, self.progress)?;
        // JSON has no NaN, and a table of losses should not contain one unnoticed.
        if !mean.loss.is_finite() {
            self.model.refuse_damaged_weights()?;
            bail!("the loss is {}", mean.loss);
        }
        let counts = &dataset.counts;
        Ok(Outcome::new([
            ("loss", Value::Number(mean.loss)),
            ("perplexity", Value::Number(mean.perplexity())),
            ("label_tokens", Value::Count(mean.label_tokens)),
            ("samples", Value::Count(dataset.len())),
            ("truncated", Value::Count(counts.truncated)),
            ("dropped_without_labels", Value::Count(counts.dropped_without_labels)),
        ]))
    }

    pub fn choice(&self, questions: &Questions, choices: &[Choices]) -> Result<Outcome> {
        let chosen = choice::choose(self.model, &questions.ids, choices, self.batch_size, self.progress)?;
        let right: Vec<bool> = chosen.iter().zip(choices).map(|(chosen, choices)| *chosen == choices.right).collect();
        let mut outcome = Outcome::rate("accuracy", right.clone(), []);
        for (i, prompt) in questions.prompts.iter().enumerate() {
            let answer = choices[i].texts.get(chosen[i]).cloned().unwrap_or_default();
            outcome.sample(prompt, answer, [("correct", right[i].into())]);
        }
        Ok(outcome)
    }

    pub fn accuracy(&self, questions: &Questions, targets: &[Target]) -> Result<Outcome> {
        let answers = self.answers(questions)?;
        let right: Vec<bool> = answers.iter().zip(targets).map(|(answer, target)| target.accepts(answer)).collect();
        let mut outcome = Outcome::rate("accuracy", right.clone(), []);
        for ((prompt, answer), right) in questions.prompts.iter().zip(answers).zip(right) {
            outcome.sample(prompt, answer, [("correct", right.into())]);
        }
        Ok(outcome)
    }

    /// Those refused and those answered, by phrases. `told`: what an answer should not tell.
    pub fn refusal(&self, questions: &Questions, phrases: &Phrases, told: &[Option<Target>]) -> Result<Outcome> {
        let answers = self.answers(questions)?;
        let refused = |within: Option<usize>| -> Vec<bool> {
            answers.iter().map(|answer| phrases.refuses(answer, within)).collect()
        };
        let within = self.evaluation.phrases_within;
        let (refused, anywhere) = (refused(within), within.map(|_| refused(None)));
        let over = self.evaluation.metric() == Metric::OverRefusal;
        let counted = |refused: &[bool]| -> Vec<bool> { refused.iter().map(|refused| *refused == over).collect() };
        let (name, anywhere_name) =
            if over { ("over_refusal", "over_refusal_anywhere") } else { ("harmful_score", "harmful_score_anywhere") };
        let share = |refused: Vec<bool>| Value::Rate(Rate::of(counted(&refused)));
        let mut values: Vec<_> = anywhere.map(|anywhere| (anywhere_name, share(anywhere))).into_iter().collect();
        let tells = |i: usize| Some(!refused[i] && told[i].as_ref()?.accepts(&answers[i]));
        if told.iter().any(Option::is_some) {
            values.push(("told", Value::Rate(Rate::of((0..answers.len()).filter_map(tells)))));
        }
        values.extend(coherence::values(&answers));
        let mut outcome = Outcome::rate(name, counted(&refused), values);
        for (i, prompt) in questions.prompts.iter().enumerate() {
            let mut fields = vec![("refused", refused[i].into())];
            fields.extend(tells(i).map(|tells| ("told", tells.into())));
            outcome.sample(prompt, answers[i].clone(), fields);
        }
        Ok(outcome)
    }

    /// Those that the judge flags.
    pub fn judge(&self, questions: &Questions, judge: &Judge) -> Result<Outcome> {
        let answers = self.answers(questions)?;
        let case = |(i, prompt): (usize, &Prompt)| {
            let behavior = behavior(prompt).unwrap_or(&questions.asked[i]).to_string();
            Case { question: question(prompt), answer: answers[i].clone(), behavior }
        };
        let cases: Vec<Case> = questions.prompts.iter().enumerate().map(case).collect();
        let mut verdicts = vec![];
        for cases in cases.chunks(self.batch_size) {
            stop::check()?;
            verdicts.extend(judge.verdicts(cases)?);
        }
        let flagged = verdicts.iter().map(|verdict| verdict.flagged).collect();
        let mut outcome = Outcome::rate("harmful_score", flagged, coherence::values(&answers));
        for ((prompt, answer), verdict) in questions.prompts.iter().zip(answers).zip(verdicts) {
            outcome.sample(prompt, answer, [("flagged", verdict.flagged.into()), verdict.reason]);
        }
        Ok(outcome)
    }

    /// The greedy answers, each with the `prefill` that it begins with; trimmed.
    fn answers(&self, questions: &Questions) -> Result<Vec<String>> {
        let tokenizer = self.tokenizer.context("answers need a tokenizer")?;
        let options = GenerateOptions {
            max_new_tokens: self.evaluation.max_new_tokens(),
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
            stop_ids: tokenizer.eos_ids().to_vec(),
        };
        let mut answers = Vec::with_capacity(questions.ids.len());
        let both = (self.model, tokenizer);
        // Decoded together: a tokenizer may leave the space at a text's beginning out, or put one between words.
        let begun = tokenizer.encode(&self.evaluation.prefill, false)?;
        answer_all(both, (&questions.ids, &begun), self.batch_size, &options, self.progress, |_, answer| {
            answers.push(answer.trim().to_string());
            Ok(())
        })?;
        Ok(answers)
    }
}

/// The user's last message.
pub fn question(prompt: &Prompt) -> String {
    let user = prompt.messages.iter().rev().find(|message| message["role"] == "user");
    user.and_then(|message| message["content"].as_str()).unwrap_or_default().to_string()
}

/// What a record says that its question is meant to bring about, as HarmBench's files have it.
fn behavior(prompt: &Prompt) -> Option<&str> {
    ["behavior", "Behavior", "behaviour"].iter().find_map(|field| prompt.record.get(*field)?.as_str())
}
