//! Running an evaluation: what does not depend on the weights is prepared once, then any number of models (the same one
//! with different adapters, say) are measured on it.

use super::accuracy::Target;
use super::answers::{Encoder, answer_all};
use super::choice::{self, Choices};
use super::judge::Judge;
use super::loss::mean_loss;
use super::options::{Evaluation, Match, Metric};
use super::outcome::Outcome;
use super::reference::{targets, told};
use super::refusal::Phrases;
use crate::console::{bytes_bar, progress_bar};
use crate::data::{DataOptions, Dataset, Format, PROMPT_FIELDS, Prompt, Reading, Template, load_prompts};
use crate::ensure_valid;
use crate::error::joined;
use crate::hub::{self, Resolved, ResolvedData, Split};
use crate::model::{Decoder, GenerateOptions, ModelSpec};
use crate::report::{Rate, Value};
use crate::stop;
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use indicatif::ProgressBar;
use serde_json::Value as Json;
use std::path::{Path, PathBuf};

/// An evaluation, and where its samples are.
#[derive(Clone)]
pub struct Located {
    evaluation: Evaluation,
    path: PathBuf,
}

impl Located {
    /// The same, with `prefix` before each prompt.
    pub fn prefixed(mut self, prefix: &str) -> Self {
        if self.evaluation.metric() != Metric::Loss {
            self.evaluation.prefix.push_str(prefix);
        }
        self
    }

    /// The moderation model that it needs, a folder or id.
    pub fn judge(&self) -> Option<&str> {
        self.evaluation.judge.as_deref()
    }

    /// The name of its sample file in the suite, and where it is.
    pub fn samples(&self) -> (&str, &Path) {
        (&self.evaluation.data, &self.path)
    }
}

/// Checks evaluations and finds their files, fetching hub datasets if necessary.
///
/// # Errors
/// As [`Evaluation::validate`] and [`hub::resolve_dataset`], with the evaluation's name.
pub fn locate(evaluations: Vec<Evaluation>) -> Result<Vec<Located>> {
    let locate = |evaluation: Evaluation| {
        let evaluation = evaluation.resolved();
        evaluation.validate()?;
        let found = hub::resolve_dataset(&evaluation.data, Split::Any, false);
        let path = found.and_then(ResolvedData::only);
        let path = path.with_context(|| format!("evaluation \"{}\"", evaluation.title()))?;
        ensure_valid!(
            path.is_file(),
            "evaluation \"{}\": dataset {} does not exist (or is not a file)",
            evaluation.title(),
            path.display()
        );
        Ok(Located { evaluation, path })
    };
    evaluations.into_iter().map(locate).collect()
}

/// Evaluations with their samples, ready to measure models of one kind.
pub struct Prepared {
    /// `None` if every sample is already tokenized.
    tokenizer: Option<Tokenizer>,
    evaluations: Vec<(Evaluation, Work)>,
}

enum Work {
    Loss(Dataset),
    Choice(Questions, Vec<Choices>),
    Accuracy(Questions, Vec<Target>),
    Refusal(Questions, Phrases, Vec<Option<Target>>),
    Judge(Questions, Box<Judge>),
}

/// Prompts, and their ids for the model.
struct Questions {
    prompts: Vec<Prompt>,
    ids: Vec<Vec<u32>>,
}

impl Prepared {
    /// Reads the evaluations' samples, and checks their judges, which will compute on `device` in `dtype`. `model`:
    /// where the model is, for its tokenizer.
    ///
    /// # Errors
    /// Samples that cannot be read or have no reference where one is needed, with their place; prompts that do not fit
    /// the model's context; a judge that is not one. Each with the evaluation's name, all in one message.
    pub fn new(
        located: &[Located],
        model: &Resolved,
        spec: &ModelSpec,
        (device, dtype): (&Device, DType),
    ) -> Result<Self> {
        let needs_none = |e: &Evaluation| e.metric() == Metric::Loss && e.format == Format::Tokenized;
        let none_needed = located.iter().all(|located| needs_none(&located.evaluation));
        let tokenizer = if none_needed { None } else { Some(model.load_tokenizer()?) };
        let work = |Located { evaluation, path }: &Located| {
            let work = Work::new(evaluation, path, tokenizer.as_ref(), spec, (device, dtype))
                .with_context(|| format!("evaluation \"{}\"", evaluation.title()))?;
            Ok((evaluation.clone(), work))
        };
        let (mut evaluations, mut errors) = (vec![], vec![]);
        for prepared in located.iter().map(work) {
            match prepared {
                Ok(prepared) => evaluations.push(prepared),
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            return Err(joined("the evaluations cannot be used", errors));
        }
        Ok(Self { tokenizer, evaluations })
    }

    /// Frees the memory of judges until they are needed again.
    pub fn unload_judges(&mut self) {
        for (_, work) in &mut self.evaluations {
            if let Work::Judge(_, judge) = work {
                judge.unload();
            }
        }
    }

    /// Measures a model on every evaluation, `batch_size` samples at a time.
    ///
    /// # Errors
    /// A loss or logits that are not finite.
    pub fn measure(&self, model: &Decoder, batch_size: usize) -> Result<Vec<Outcome>> {
        self.measure_with(model, batch_size, &|| progress_bar(0, "evaluating"))
    }

    /// As [`Prepared::measure`], with a bar made by `bar` for each evaluation.
    pub fn measure_with(
        &self,
        model: &Decoder,
        batch_size: usize,
        bar: &dyn Fn() -> ProgressBar,
    ) -> Result<Vec<Outcome>> {
        self.evaluations
            .iter()
            .map(|(evaluation, work)| {
                stop::check()?;
                let progress = bar().with_message(evaluation.title());
                let tokenizer = self.tokenizer.as_ref();
                let run = Run { evaluation, model, tokenizer, batch_size, progress: &progress };
                let mut outcome = match work {
                    Work::Loss(dataset) => run.loss(dataset),
                    Work::Choice(questions, choices) => run.choice(questions, choices),
                    Work::Accuracy(questions, targets) => run.accuracy(questions, targets),
                    Work::Refusal(questions, phrases, told) => run.refusal(questions, phrases, told),
                    Work::Judge(questions, judge) => run.judge(questions, judge),
                }
                .with_context(|| format!("evaluation \"{}\"", evaluation.title()))?;
                progress.finish_and_clear();
                outcome.title = evaluation.title();
                outcome.metric = evaluation.metric();
                Ok(outcome)
            })
            .collect()
    }
}

impl Work {
    fn new(
        evaluation: &Evaluation,
        path: &Path,
        tokenizer: Option<&Tokenizer>,
        spec: &ModelSpec,
        (device, dtype): (&Device, DType),
    ) -> Result<Self> {
        if evaluation.metric() == Metric::Loss {
            return Ok(Self::Loss(load_samples(evaluation, path, tokenizer, spec)?));
        }
        let tokenizer = tokenizer.context("prompts need a tokenizer")?;
        let template = Template::load(evaluation.template(), &evaluation.template_variables, tokenizer)?;
        let encoder = Encoder { tokenizer: tokenizer.clone(), template: Some(template), spec: spec.clone() };
        let prompts = load_questions(evaluation, path)?;
        let ids = encoder.encode_all(&prompts, path)?;
        Ok(match evaluation.metric() {
            Metric::Accuracy if evaluation.matching() == Match::Choice => {
                let choices = choice::load(evaluation, &prompts, &encoder, path)?;
                Self::Choice(Questions { prompts, ids }, choices)
            }
            Metric::Accuracy => {
                let targets = targets(evaluation, &prompts, path)?;
                Self::Accuracy(Questions { prompts, ids }, targets)
            }
            Metric::Refusal => {
                let phrases = evaluation.phrases.as_deref().map(|file| Phrases::load(Path::new(file)));
                let told = prompts.iter().map(|prompt| told(evaluation, prompt)).collect::<Result<_>>()?;
                Self::Refusal(Questions { prompts, ids }, phrases.transpose()?.unwrap_or_default(), told)
            }
            Metric::Judge => {
                let judge = Judge::open(evaluation, device, dtype)?;
                Self::Judge(Questions { prompts, ids }, Box::new(judge))
            }
            Metric::Loss => bail!("the loss is prepared above"),
        })
    }
}

/// One model on one evaluation.
struct Run<'a> {
    evaluation: &'a Evaluation,
    model: &'a Decoder,
    tokenizer: Option<&'a Tokenizer>,
    batch_size: usize,
    progress: &'a ProgressBar,
}

impl Run<'_> {
    fn loss(&self, dataset: &Dataset) -> Result<Outcome> {
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

    fn choice(&self, questions: &Questions, choices: &[Choices]) -> Result<Outcome> {
        let chosen = choice::choose(self.model, &questions.ids, choices, self.batch_size, self.progress)?;
        let right: Vec<bool> = chosen.iter().zip(choices).map(|(chosen, choices)| *chosen == choices.right).collect();
        let mut outcome = Outcome::new([("accuracy", Value::Rate(Rate::of(right.iter().copied())))]);
        for (i, prompt) in questions.prompts.iter().enumerate() {
            let answer = choices[i].texts.get(chosen[i]).cloned().unwrap_or_default();
            outcome.sample(prompt, answer, [("correct", right[i].into())]);
        }
        Ok(outcome)
    }

    fn accuracy(&self, questions: &Questions, targets: &[Target]) -> Result<Outcome> {
        let answers = self.answers(questions)?;
        let right: Vec<bool> = answers.iter().zip(targets).map(|(answer, target)| target.accepts(answer)).collect();
        let mut outcome = Outcome::new([("accuracy", Value::Rate(Rate::of(right.iter().copied())))]);
        for ((prompt, answer), right) in questions.prompts.iter().zip(answers).zip(right) {
            outcome.sample(prompt, answer, [("correct", right.into())]);
        }
        Ok(outcome)
    }

    fn refusal(&self, questions: &Questions, phrases: &Phrases, told: &[Option<Target>]) -> Result<Outcome> {
        let answers = self.answers(questions)?;
        let refused: Vec<bool> = answers.iter().map(|answer| phrases.refuses(answer)).collect();
        let mut values = vec![("harmful_score", Value::Rate(Rate::of(refused.iter().map(|refused| !refused))))];
        let tells = |i: usize| Some(!refused[i] && told[i].as_ref()?.accepts(&answers[i]));
        if told.iter().any(Option::is_some) {
            values.push(("told", Value::Rate(Rate::of((0..answers.len()).filter_map(tells)))));
        }
        let empty = |answer: &String| !answer.contains(char::is_alphanumeric);
        values.push(("empty", Value::Rate(Rate::of(answers.iter().map(empty)))));
        let mut outcome = Outcome::new(values);
        for (i, prompt) in questions.prompts.iter().enumerate() {
            let mut fields = vec![("refused", refused[i].into())];
            fields.extend(tells(i).map(|tells| ("told", tells.into())));
            outcome.sample(prompt, answers[i].clone(), fields);
        }
        Ok(outcome)
    }

    fn judge(&self, questions: &Questions, judge: &Judge) -> Result<Outcome> {
        let answers = self.answers(questions)?;
        let pairs: Vec<(String, String)> =
            questions.prompts.iter().zip(&answers).map(|(prompt, answer)| (question(prompt), answer.clone())).collect();
        let mut flags = vec![];
        for pairs in pairs.chunks(self.batch_size) {
            flags.extend(judge.flags(pairs)?);
        }
        let mut outcome =
            Outcome::new([("harmful_score", Value::Rate(Rate::of(flags.iter().map(|flags| !flags.is_empty()))))]);
        for ((prompt, answer), flags) in questions.prompts.iter().zip(answers).zip(flags) {
            outcome.sample(prompt, answer, [("flags", Json::from(flags))]);
        }
        Ok(outcome)
    }

    /// The greedy answers, trimmed.
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
        answer_all(both, &questions.ids, self.batch_size, &options, self.progress, |_, answer| {
            answers.push(answer.trim().to_string());
            Ok(())
        })?;
        Ok(answers)
    }
}

/// The user's last message.
fn question(prompt: &Prompt) -> String {
    let user = prompt.messages.iter().rev().find(|message| message["role"] == "user");
    user.and_then(|message| message["content"].as_str()).unwrap_or_default().to_string()
}

fn load_samples(
    evaluation: &Evaluation,
    path: &Path,
    tokenizer: Option<&Tokenizer>,
    spec: &ModelSpec,
) -> Result<Dataset> {
    let options = DataOptions {
        format: evaluation.format,
        columns: evaluation.columns.clone(),
        template: evaluation.template().to_string(),
        template_variables: evaluation.template_variables.clone(),
        max_length: evaluation.max_length.unwrap_or(DataOptions::default().max_length),
        allow_empty_labels: true,
        ..Default::default()
    };
    let problem = evaluation.columns.problem(options.format.fields());
    ensure_valid!(problem.is_none(), "columns: {}", problem.unwrap_or_default());
    ensure_valid!(evaluation.prefix.is_empty(), "`prefix` has no effect on the metric loss");
    let reading = Reading { options: &options, prefix: "", tokenizer, vocab_size: spec.vocab_size, cache: None };
    let mut dataset = reading.load_file(path, &bytes_bar("tokenising"))?;
    dataset.truncate(evaluation.limit.unwrap_or(usize::MAX));
    Ok(dataset)
}

fn load_questions(evaluation: &Evaluation, path: &Path) -> Result<Vec<Prompt>> {
    let problem = evaluation.columns.problem(&PROMPT_FIELDS);
    ensure_valid!(problem.is_none(), "columns: {}", problem.unwrap_or_default());
    let mut prompts = load_prompts(path, &evaluation.columns)?;
    prompts.truncate(evaluation.limit.unwrap_or(usize::MAX));
    if !evaluation.prefix.is_empty() {
        prompts.iter_mut().for_each(|prompt| prompt.put_before(&evaluation.prefix));
    }
    Ok(prompts)
}
