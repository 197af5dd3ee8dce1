//! Running an evaluation: what does not depend on the weights is prepared once, then any number of models (the same one
//! with different adapters, say) are measured on it.

use super::accuracy::Target;
use super::alpaca_eval::instructions;
use super::answers::Encoder;
use super::choice::{self, Choices};
use super::judge::Judge;
use super::options::{Evaluation, Match, Metric};
use super::outcome::Outcome;
use super::reference::{targets, told};
use super::refusal::Phrases;
use super::run::{Questions, Run, question};
use crate::console::{bytes_bar, progress_bar};
use crate::data::{Before, DataOptions, Dataset, Format, PROMPT_FIELDS, Prompt, Reading, Template, load_prompts};
use crate::ensure_valid;
use crate::error::joined;
use crate::hub::{self, Resolved, ResolvedData, Split};
use crate::model::{Decoder, ModelSpec};
use crate::stop;
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use indicatif::ProgressBar;
use regex::Regex;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What a comparison puts around prompts, beside what their evaluation says.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Framing {
    /// The system message, unless the evaluation has one.
    pub system: String,
    /// After the evaluation's own, before the prompt.
    pub prefix: String,
    /// After the prompt and the evaluation's own, where harm is measured.
    pub suffix: String,
    /// What each answer begins with where harm is measured, unless the evaluation says that.
    pub prefill: String,
}

/// An evaluation, and where its samples are.
#[derive(Clone)]
pub struct Located {
    evaluation: Evaluation,
    path: PathBuf,
}

impl Located {
    /// The same, with more around each prompt. The loss asks none.
    pub fn framed(mut self, framing: &Framing) -> Self {
        let own = &mut self.evaluation;
        let fill = |own: &mut String, given: &String| {
            if own.is_empty() {
                own.clone_from(given);
            }
        };
        if own.metric() != Metric::Loss {
            own.prefix.push_str(&framing.prefix);
            fill(&mut own.system, &framing.system);
        }
        if matches!(own.metric(), Metric::Refusal | Metric::Judge) {
            own.suffix.push_str(&framing.suffix);
            fill(&mut own.prefill, &framing.prefill);
        }
        self
    }

    /// The moderation model that it needs, a folder or id.
    pub fn judge(&self) -> Option<&str> {
        self.evaluation.judge.as_deref()
    }

    /// Which of its records belong together: those for which `pattern`, or all of it, finds the same in `field`; a record without that
    /// stands for itself. `None` for the loss, which does not count records.
    ///
    /// # Errors
    /// Records that cannot be read.
    pub fn clusters(&self, field: Option<&str>, pattern: Option<&Regex>) -> Result<Option<Clustered>> {
        if self.evaluation.metric() == Metric::Loss {
            return Ok(None);
        }
        let found = |text: &str| match pattern {
            None => Some(text.to_string()),
            Some(pattern) => {
                let found = pattern.captures(text)?;
                found.get(1).or(found.get(0)).map(|found| found.as_str().to_string())
            }
        };
        let cluster = |prompt: &Prompt| {
            let text = match prompt.record.get(field?)? {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            found(&text)
        };
        let clusters: Vec<Option<String>> = load_questions(&self.evaluation, &self.path)?.iter().map(cluster).collect();
        let named = clusters.iter().flatten().count();
        let alone = |(i, cluster): (usize, Option<String>)| cluster.unwrap_or_else(|| format!("\0{i}"));
        let of_records = clusters.into_iter().enumerate().map(alone).collect();
        Ok(Some(Clustered { title: self.evaluation.title(), of_records, named }))
    }

    /// What each of its records asks, as AlpacaEval's files have it.
    ///
    /// # Errors
    /// Records that cannot be read; those that are not one message of the user's.
    pub fn instructions(&self) -> Result<Vec<String>> {
        instructions(&load_questions(&self.evaluation, &self.path)?, &self.path)
    }

    /// The name of its sample file in the suite, and where it is.
    pub fn samples(&self) -> (&str, &Path) {
        (&self.evaluation.data, &self.path)
    }

    /// The same of all its files: samples, template and phrases.
    pub fn files(&self) -> impl Iterator<Item = (&str, &Path)> {
        let others = Template::file(self.evaluation.template()).into_iter().chain(self.evaluation.phrases.as_deref());
        [self.samples()].into_iter().chain(others.map(|name| (name, Path::new(name))))
    }
}

/// Which records of an evaluation belong together.
pub struct Clustered {
    /// Of the evaluation.
    pub title: String,
    /// A name for each record.
    pub of_records: Vec<String>,
    /// Records whose name is one that the records themselves have.
    pub named: usize,
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
    Judge(Questions, Judge),
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
        let prefill = evaluation.prefill.clone();
        let encoder = Encoder { tokenizer: tokenizer.clone(), template: Some(template), spec: spec.clone(), prefill };
        let mut prompts = load_questions(evaluation, path)?;
        let asked = prompts.iter().map(question).collect();
        frame(evaluation, &mut prompts);
        check_framing(evaluation, &prompts, &encoder)?;
        let ids = encoder.encode_all(&prompts, path)?;
        let questions = Questions { prompts, asked, ids };
        let prompts = &questions.prompts;
        Ok(match evaluation.metric() {
            Metric::Accuracy if evaluation.matching() == Match::Choice => {
                let choices = choice::load(evaluation, prompts, &encoder, path)?;
                Self::Choice(questions, choices)
            }
            Metric::Accuracy => {
                let targets = targets(evaluation, prompts, path)?;
                Self::Accuracy(questions, targets)
            }
            Metric::Refusal | Metric::OverRefusal => {
                let phrases = evaluation.phrases.as_deref().map(|file| Phrases::load(Path::new(file)));
                let told = prompts.iter().map(|prompt| told(evaluation, prompt)).collect::<Result<_>>()?;
                Self::Refusal(questions, phrases.transpose()?.unwrap_or_default(), told)
            }
            Metric::Judge => Self::Judge(questions, Judge::open(evaluation, device, dtype)?),
            Metric::Loss => bail!("the loss is prepared above"),
        })
    }
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
    let (before, vocab_size) = (Before::default(), spec.vocab_size);
    let reading = Reading { options: &options, before, tokenizer, vocab_size, cache: None };
    let mut dataset = reading.load_file(path, &bytes_bar("tokenising"))?;
    dataset.truncate(evaluation.limit.unwrap_or(usize::MAX));
    Ok(dataset)
}

fn load_questions(evaluation: &Evaluation, path: &Path) -> Result<Vec<Prompt>> {
    let problem = evaluation.columns.problem(&PROMPT_FIELDS);
    ensure_valid!(problem.is_none(), "columns: {}", problem.unwrap_or_default());
    let mut prompts = load_prompts(path, &evaluation.columns)?;
    prompts.truncate(evaluation.limit.unwrap_or(usize::MAX));
    Ok(prompts)
}

/// Puts around the prompts what the evaluation says.
fn frame(evaluation: &Evaluation, prompts: &mut [Prompt]) {
    for prompt in prompts {
        if !evaluation.prefix.is_empty() {
            prompt.put_before(&evaluation.prefix);
        }
        if !evaluation.suffix.is_empty() {
            prompt.put_after(&evaluation.suffix);
        }
        if !evaluation.system.is_empty() {
            prompt.put_system(&evaluation.system);
        }
    }
}

/// Whether what is put around the prompts reaches the model: a template may leave it out. (What it refuses, and prompts without a
/// message to put it in, are found with their places.)
///
/// # Errors
/// A part that the first prompt's text does not hold.
fn check_framing(evaluation: &Evaluation, prompts: &[Prompt], encoder: &Encoder) -> Result<()> {
    let Some(first) = prompts.first() else { return Ok(()) };
    let Ok((text, _)) = encoder.text(&first.messages, &first.variables) else { return Ok(()) };
    for (name, part) in [("system", &evaluation.system), ("prefix", &evaluation.prefix), ("suffix", &evaluation.suffix)]
    {
        ensure_valid!(
            text.contains(part.trim()),
            "`{name}` would have no effect: the template {} leaves it out of the prompt's text",
            evaluation.template()
        );
    }
    Ok(())
}
