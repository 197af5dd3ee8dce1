//! From settings to the model's spec, its tokenizer and the samples: the one place where these come together, for a
//! run, for its forecast and for showing its data.

use super::problems::Problems;
use crate::adapter::{ModuleSize, module_shape};
use crate::config::Settings;
use crate::console::bytes_bar;
use crate::data::{
    Before, CacheFolder, DataOptions, Dataset, Files, Loading, SetFiles, Sets, Template, prompt_samples,
};
use crate::ensure_valid;
use crate::eval::{Encoder, Located, Suite, locate};
use crate::hub::{self, Resolved, Split};
use crate::model::ModelSpec;
use crate::tokenizer::Tokenizer;
use crate::train::defence::{self, Defence, OwnSamples, Records};
use crate::train::plan::Pool;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// How a model is found: [`hub::resolve`], or [`hub::resolve_without_weights`] if weights are not read.
pub type FindModel = fn(&str, bool) -> Result<Resolved>;

/// Every file that a run's inputs are read from, on this machine. What was not found is among the problems.
pub struct Sources {
    pub base: Option<Resolved>,
    pub data: Option<SetFiles>,
    /// The defence's own samples.
    pub own: Option<(OwnSamples, Files)>,
}

/// What a run trains on and is measured with, fully read.
pub struct Inputs {
    /// `None` if the samples are already tokenized.
    pub tokenizer: Option<Tokenizer>,
    pub train: Arc<Dataset>,
    pub validation: Option<Dataset>,
    /// The defence's own samples.
    pub own: Option<Arc<Dataset>>,
}

impl Sources {
    /// Finds all of them, fetching what is not on this machine; once a problem is known, nothing more is downloaded.
    pub fn find(settings: &Settings, find_model: FindModel, problems: &mut Problems) -> Self {
        let Settings { data, model, defence, .. } = settings;
        let wanted = problems.0.is_empty() || data.sources().iter().all(|listed| hub::is_local(&listed.source.path));
        let data = wanted.then(|| problems.note_all(SetFiles::resolve(data, false))).flatten();
        let find = |own: OwnSamples| {
            let file = hub::resolve_dataset(&own.file, Split::Train, false).context(own.key);
            Some((own, Files::new(problems.note(file)?)))
        };
        let own = defence::of(defence).needs().samples.and_then(find);
        let base = model_place(&model.aligned, "model.aligned", find_model, problems).and_then(|base| {
            let base = base.with_tokenizer(model.tokenizer.as_deref(), false).context("model.tokenizer");
            problems.note(base)
        });
        Self { base, data, own }
    }

    /// The base model's spec, from config.json.
    pub fn spec(&self, problems: &mut Problems) -> Option<ModelSpec> {
        problems.note(ModelSpec::load(&self.base.as_ref()?.place))
    }

    /// Reads the tokenizer and all samples.
    pub fn read(&self, settings: &Settings, spec: &ModelSpec, problems: &mut Problems) -> Option<Inputs> {
        let (files, base) = (self.data.as_ref()?, self.base.as_ref()?);
        let (options, vocab_size) = (&settings.data, spec.vocab_size);
        let tokenizer = match options.is_tokenized() {
            true => None,
            false => Some(problems.note(tokenizer(base, vocab_size))?),
        };
        let cache = CacheFolder::new(&options.cache, Path::new(&settings.output.dir));
        let loading = Loading {
            tokenizer: tokenizer.as_ref(),
            vocab_size,
            cache: cache.as_ref(),
            progress: &|| bytes_bar("tokenising"),
        };
        let sets = problems.note_all(loading.all(files, options, settings.train.seed));
        let own = self.own.as_ref().map(|(own, files)| {
            let set = match (own.records, &tokenizer) {
                (Records::Prompts, Some(tokenizer)) => prompts(files, options, tokenizer, spec),
                _ => loading.one(files, &options.whole(), Before::default()),
            };
            set.map(Arc::new).context(own.key)
        });
        let own = problems.note(own.transpose())?;
        let Sets { train, validation } = sets?;
        Some(Inputs { tokenizer, train: Arc::new(train), validation, own })
    }
}

impl Inputs {
    /// The training samples in their order, and the defence, with its own samples.
    ///
    /// # Errors
    /// Samples that the settings cannot make steps of.
    pub fn planned(&self, settings: &Settings) -> Result<(Pool, Box<dyn Defence>)> {
        let train = Pool::new(Arc::clone(&self.train), &settings.train, &settings.data)?;
        let mut defence = defence::of(&settings.defence);
        defence.prepare(self.own.clone(), settings, train.plan.total_steps)?;
        Ok((train, defence))
    }
}

/// The evaluations of `eval.suite`, and where their samples are, fetched if necessary; none without a suite.
pub fn evaluations(settings: &Settings, problems: &mut Problems) -> Vec<Located> {
    let Some(file) = &settings.eval.suite else { return vec![] };
    let suite = problems.note(Suite::load(Path::new(file)).context("eval.suite"));
    let mut found = vec![];
    for evaluation in suite.into_iter().flat_map(|suite| suite.eval) {
        let wanted = problems.0.is_empty() || hub::is_local(&evaluation.data);
        let located = wanted.then(|| problems.note(locate(vec![evaluation]).context("eval.suite"))).flatten();
        found.extend(located.into_iter().flatten());
    }
    found
}

/// Where a model is; `key`: the setting that names it.
pub fn model_place(
    source: &str,
    key: &'static str,
    find_model: FindModel,
    problems: &mut Problems,
) -> Option<Resolved> {
    let wanted = problems.0.is_empty() || hub::is_local(source);
    wanted.then(|| problems.note(find_model(source, false).context(key)))?
}

/// The targeted modules, each with its (d_out, d_in).
pub fn target_shapes(spec: &ModelSpec, targets: &[String]) -> Vec<(String, (usize, usize))> {
    targets.iter().filter_map(|module| Some((module.clone(), module_shape(spec, module)?))).collect()
}

/// Refuses a rank that exceeds every side of the targeted weights.
pub fn check_ranks(spec: &ModelSpec, sizes: &BTreeMap<String, ModuleSize>) -> Result<()> {
    let shapes = sizes.keys().filter_map(|module| module_shape(spec, module));
    let largest = shapes.map(|(d_out, d_in)| d_out.max(d_in)).max().unwrap_or(0);
    let rank = sizes.values().map(|size| size.rank).max().unwrap_or(0);
    ensure_valid!(
        rank <= largest,
        "lora.rank or lora.rank_pattern asks for {rank}, beyond the largest side of any targeted weight ({largest})"
    );
    Ok(())
}

/// Prompts as an answer would be generated to them: through the template that the training samples go through, up to
/// where the answer begins, or verbatim if these have none.
fn prompts(files: &Files, options: &DataOptions, tokenizer: &Tokenizer, spec: &ModelSpec) -> Result<Dataset> {
    let template = options.format.has_turns();
    let template = template.then(|| Template::load(&options.template, &options.template_variables, tokenizer));
    let encoder = Encoder {
        tokenizer: tokenizer.clone(),
        template: template.transpose()?,
        spec: spec.clone(),
        prefill: String::new(),
    };
    prompt_samples(files, &options.columns, |prompt| {
        let ids = encoder.encode(&prompt.messages, &prompt.variables)?;
        let (count, limit) = (ids.len(), options.max_length);
        ensure_valid!(
            count <= limit,
            "the prompt has {count} tokens, more than data.max_length = {limit}; shorten it or raise that"
        );
        Ok(ids)
    })
}

/// The base model's tokenizer. The ids of the samples are checked with the samples; the end-of-text id, which may occur
/// in none, is checked here.
fn tokenizer(base: &Resolved, vocab_size: usize) -> Result<Tokenizer> {
    let tokenizer = base.load_tokenizer()?;
    if let Some(id) = tokenizer.eos_id() {
        ensure_valid!(
            (id as usize) < vocab_size,
            "the tokenizer's eos token has id {id}, beyond the model's vocab_size of {vocab_size}; tokenizer and model \
             do not belong together"
        );
    }
    Ok(tokenizer)
}
