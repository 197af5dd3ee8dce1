//! From data files to samples: read piece by piece, encode in parallel, cut or drop what is too long, count everything that
//! is left out.

use super::batch::predicted_labels;
use super::cache::{CacheFolder, Sink, Told, Warning, in_memory};
use super::choice::Choice;
use super::control::ControlTokens;
use super::examples::{Encoder, tokenized};
use super::fields::Fields;
use super::files::Files;
use super::records::BadRecords;
use super::records::{Place, Reader, Record, Unread, Unusable, extension};
use super::samples::Samples;
use super::shards::Shards;
use super::template::Template;
use super::{Before, DataOptions, Dataset, Example, Format, Origin, Overlong};
use crate::console::log;
use crate::hub::ResolvedData;
use crate::tokenizer::Tokenizer;
use crate::untrusted::{GivenUp, run_each};
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use indicatif::ProgressBar;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Records encoded at a time, and the bytes of text that end such a chunk early.
const CHUNK: usize = 4096;
const CHUNK_BYTES: usize = 16 << 20;
/// Records that a thread gets at once.
const GROUP: usize = 64;
/// Time that may be spent on bad records to tell how many there are.
const PATIENCE_MILLISECONDS: u64 = 5000;
/// Changes with what files of samples hold and with how records become samples.
const RULES: u32 = 2;

/// How the files of a source become samples.
pub struct Reading<'a> {
    pub options: &'a DataOptions,
    /// Put before each sample.
    pub before: Before<'a>,
    /// Not needed for samples that are tokenized already.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Bound of the ids: rows of the model's embedding.
    pub vocab_size: usize,
    /// Where the samples may be kept.
    pub cache: Option<&'a CacheFolder>,
}

/// Loads the samples of `path` as `options` says, at most the first `max_samples`.
///
/// # Errors
/// As [`Reading::load`].
pub fn load(path: &Path, options: &DataOptions, tokenizer: &Tokenizer, progress: &ProgressBar) -> Result<Dataset> {
    let (before, vocab_size) = (Before::default(), tokenizer.vocab_size());
    let reading = Reading { options, before, tokenizer: Some(tokenizer), vocab_size, cache: None };
    reading.load_file(path, progress)
}

impl Reading<'_> {
    /// As [`Reading::load`] for a single file.
    ///
    /// # Errors
    /// As [`Reading::load`].
    pub fn load_file(&self, path: &Path, progress: &ProgressBar) -> Result<Dataset> {
        let (paths, source) = (vec![path.to_path_buf()], path.display().to_string());
        self.load(&Files::new(ResolvedData { paths, source }), progress)
    }

    /// The samples of `files`, at most those of the first `max_samples` records.
    ///
    /// # Errors
    /// An unreadable, malformed or empty file; a record that does not fit the format; a sample without label tokens
    /// (unless allowed), or without a user message or prompt to put the prefix before; an id beyond the vocabulary; nothing
    /// left; files whose columns differ. The error names the first bad records of a file in file order and counts all.
    pub fn load(&self, files: &Files, progress: &ProgressBar) -> Result<Dataset> {
        let Self { options, tokenizer, vocab_size, .. } = *self;
        let limit = options.max_length;
        ensure_valid!(limit >= 2, "data.max_length is {limit}, expected at least 2");
        let encoder = match tokenizer.filter(|_| options.format != Format::Tokenized) {
            None => None,
            Some(tokenizer) => Some(Arc::new(self.encoder(tokenizer)?)),
        };
        let encode: Box<Encode> = match encoder.clone() {
            Some(encoder) => Box::new(move |record| within(vocab_size, encoder.encode(record)?)),
            None => {
                let columns = options.columns.clone();
                Box::new(move |record| tokenized(&Fields::new(record, &columns), vocab_size))
            }
        };
        let loaded = self.samples(files, encoder.as_deref(), progress, |sink| {
            let before = encoder.as_ref().and_then(|encoder| encoder.warning());
            self.read(files, progress, encode, before, || encoder.as_ref()?.control.report(), sink)
        });
        let (samples, told) = loaded?;
        progress.finish_and_clear();
        for Warning { file, text, fields } in told.warnings {
            let path = file.and_then(|file| files.data.paths.get(file));
            log::warn(&path.map_or(text.clone(), |path| format!("{}: {text}", path.display())), fields);
        }
        Ok(Dataset::whole(files.name(), files.data.paths.clone(), samples, told.counts))
    }

    /// Why the parts of the record at `origin` are trained on or not, in words.
    ///
    /// # Errors
    /// The record is not there any more, or cannot be read as it was.
    pub fn explain(&self, files: &Files, origin: Origin) -> Result<Vec<String>> {
        let Some(tokenizer) = self.tokenizer.filter(|_| self.options.format != Format::Tokenized) else {
            return Ok(vec![]);
        };
        let path = files.data.paths.get(origin.file).context("a sample of no file")?;
        for unread in Reader::open(path)? {
            let unread = unread?;
            if unread.place() == origin.place {
                let record = unread.record().map_err(|unusable| unusable.at(path))?;
                let lines = self.encoder(tokenizer)?.explain(&record, self.options.max_length);
                return lines.with_context(|| format!("{}{}", path.display(), origin.place));
            }
        }
        Err(invalid!("{}{} is not there any more", path.display(), origin.place))
    }

    fn encoder(&self, tokenizer: &Tokenizer) -> Result<Encoder> {
        let options = self.options;
        let template = match options.format.has_turns() {
            true => Some(Template::load(&options.template, &options.template_variables, tokenizer)?),
            false => None,
        };
        let control = ControlTokens::new(options.special_tokens_in_content, tokenizer, template.as_ref())?;
        Ok(Encoder {
            format: options.format,
            columns: options.columns.clone(),
            prefix: self.before.prefix.to_string(),
            system: self.before.system.to_string(),
            tokenizer: tokenizer.clone(),
            template,
            choice: Choice::new(options),
            allow_empty: options.allow_empty_labels,
            control,
        })
    }

    /// The samples that `read` gives, in memory, or from a file that is made if necessary.
    fn samples(
        &self,
        files: &Files,
        encoder: Option<&Encoder>,
        progress: &ProgressBar,
        read: impl FnOnce(&mut Sink) -> Result<Told>,
    ) -> Result<(Samples, Told)> {
        let state = files.state();
        let bytes = state.iter().map(|(bytes, _)| bytes).sum();
        let is_whole = state.len() == files.data.paths.len();
        let Some(folder) = self.cache.filter(|folder| is_whole && folder.is_for(bytes)) else {
            return in_memory(read);
        };
        let made_of = self.made_of(files, encoder)?;
        folder.samples(&made_of, progress, |sink| {
            let told = read(sink)?;
            ensure_valid!(files.state() == state, "{} changed while it was read", files.name().display());
            Ok(told)
        })
    }

    /// All that determines the samples.
    fn made_of(&self, files: &Files, encoder: Option<&Encoder>) -> Result<Value> {
        let kinds: Vec<Option<String>> = files.data.paths.iter().map(|path| extension(path)).collect();
        let Value::Object(mut options) = serde_json::to_value(self.options)? else {
            anyhow::bail!("options that are no table");
        };
        // What says where samples come from and how they are put together, not what they are.
        for key in ["train", "mix", "validation", "packing", "shuffle", "drop_last", "cache", "template"] {
            options.remove(key);
        }
        let mut made_of = json!({
            "rules": RULES,
            "asft": env!("CARGO_PKG_VERSION"),
            "files": files.hash()?,
            "kinds": kinds,
            "prefix": self.before.prefix,
            "system": self.before.system,
            "vocab_size": self.vocab_size,
        });
        if let Some(encoder) = encoder {
            made_of["tokenizer"] = encoder.tokenizer.fingerprint()?.into();
            let template = encoder.template.as_ref();
            made_of["template"] = template.map(|template| template.fingerprint()).into();
        }
        if let Some(made_of) = made_of.as_object_mut() {
            made_of.append(&mut options);
        }
        Ok(made_of)
    }

    /// Gives all samples of `files` to `sink`. `after`: what is to be told of each file that was read.
    fn read(
        &self,
        files: &Files,
        progress: &ProgressBar,
        encode: Box<Encode>,
        before: Option<(String, Value)>,
        after: impl Fn() -> Option<(String, Value)>,
        sink: &mut Sink,
    ) -> Result<Told> {
        let options = self.options;
        progress.inc_length(files.state().iter().map(|(bytes, _)| bytes).sum());
        let (mut told, several) = (Told::default(), files.data.paths.len() > 1);
        let warning = |file| move |(text, fields)| Warning { file, text, fields };
        told.warnings.extend(before.map(warning(None)));
        let shards = several.then(Shards::default);
        let mut pass = Pass { options, encode: Arc::new(encode), progress, told, shards, sink };
        for (number, path) in files.data.paths.iter().enumerate() {
            let left = options.max_samples.map_or(usize::MAX, |all| all.saturating_sub(pass.told.counts.records));
            if left == 0 {
                break;
            }
            pass.file(number, path, left)?;
            pass.told.warnings.extend(after().map(warning(Some(number))));
        }
        let counts = pass.told.counts;
        ensure_valid!(
            counts.kept() > 0,
            "dataset {}: no sample is left ({counts}); raise data.max_length (now {})",
            files.name().display(),
            options.max_length
        );
        Ok(pass.told)
    }
}

/// Refuses ids that the embedding has no row for: a tokenizer may know more tokens than its model.
fn within(vocab_size: usize, example: Example) -> Result<Example> {
    ensure_valid!(
        example.input_ids.iter().all(|&id| (id as usize) < vocab_size),
        "a token id is beyond the model's vocab_size of {vocab_size}; tokenizer and model do not belong together"
    );
    Ok(example)
}

/// The sample of a record.
type Encode = dyn Fn(&Record) -> Result<Example> + Send + Sync;

/// One way through the files of a source.
struct Pass<'a, 's> {
    options: &'a DataOptions,
    encode: Arc<Box<Encode>>,
    progress: &'a ProgressBar,
    told: Told,
    /// If there are several files.
    shards: Option<Shards>,
    sink: &'a mut Sink<'s>,
}

/// What became of a record.
struct Outcome {
    example: Result<Example, Unusable>,
    /// Of its record; none if there is no other file to compare them with.
    columns: Vec<String>,
}

impl Pass<'_, '_> {
    /// Reads at most `left` records of a file.
    fn file(&mut self, number: usize, path: &Path, mut left: usize) -> Result<()> {
        let mut reader = Reader::open(path)?;
        let before = self.progress.position();
        let (mut bad, mut tried, mut count) = (BadRecords::default(), 0, 0);
        let spent = Arc::new(AtomicU64::new(0));
        let encoding = self.encoding(Arc::clone(&spent));
        loop {
            let chunk = chunk(&mut reader, left)?;
            if chunk.is_empty() {
                break;
            }
            if bad.is_hopeless(tried) {
                return bad.give_up(path, tried);
            }
            (left, count) = (left - chunk.len(), count + chunk.len());
            for (place, outcome) in encoded(chunk, &encoding, &spent) {
                let Some(Outcome { example, columns }) = outcome else { continue };
                tried += 1;
                if let Some(shards) = &mut self.shards {
                    shards.note(columns, place);
                }
                let origin = Origin { file: number, place };
                let unusable = |error| Unusable { place, error, hint: None };
                if let Err(error) = example.and_then(|example| self.keep(example, origin).map_err(unusable)) {
                    bad.note_unusable(path, error)?;
                }
            }
            self.progress.set_position(before + reader.taken());
        }
        self.told.counts.records += count;
        self.shards.as_mut().map_or(Ok(()), |shards| shards.end_of(path))?;
        bad.refuse(path, tried, count)
    }

    /// What happens to each record of a file, on whatever thread; nothing any more once bad ones have taken long: with a
    /// template that never ends each takes seconds.
    fn encoding(&self, spent: Arc<AtomicU64>) -> Arc<impl Fn(Unread) -> Option<Outcome> + Send + Sync + 'static> {
        let (encode, has_shards) = (Arc::clone(&self.encode), self.shards.is_some());
        Arc::new(move |unread: Unread| {
            if spent.load(Ordering::Relaxed) >= PATIENCE_MILLISECONDS {
                return None;
            }
            let (place, began) = (unread.place(), Instant::now());
            let outcome = match unread.record() {
                Ok(record) => {
                    let example = encode(&record).map_err(|error| Unusable { place, error, hint: None });
                    let columns = record.fields.into_iter().filter(|_| has_shards).map(|(name, _)| name).collect();
                    Outcome { example, columns }
                }
                Err(unusable) => Outcome { example: Err(unusable), columns: vec![] },
            };
            if outcome.example.is_err() {
                spent.fetch_add(began.elapsed().as_millis() as u64, Ordering::Relaxed);
            }
            Some(outcome)
        })
    }

    /// Adds a sample, cutting it or leaving it out as `options` says.
    fn keep(&mut self, mut example: Example, origin: Origin) -> Result<()> {
        let (options, counts) = (self.options, &mut self.told.counts);
        let (length, limit) = (example.input_ids.len(), options.max_length);
        let whole_labels = predicted_labels(&example.labels);
        if length > limit {
            if options.overlong == Overlong::Drop {
                counts.dropped_overlong += 1;
                return Ok(());
            }
            counts.truncated += 1;
            example.input_ids.truncate(limit);
            example.labels.truncate(limit);
        }
        let label_tokens = predicted_labels(&example.labels);
        if label_tokens == 0 {
            ensure_valid!(
                options.allow_empty_labels,
                "no token of this sample is a label{}, or set data.allow_empty_labels = true to leave such samples out",
                if whole_labels > 0 {
                    format!(" once its {length} tokens are cut to data.max_length = {limit}; raise that")
                } else {
                    " (an empty response, or no response at all); correct or remove the record".to_string()
                }
            );
            // Counted once: a sample left out for lack of labels is not also a truncated one.
            counts.truncated -= usize::from(length > limit);
            counts.dropped_without_labels += 1;
            return Ok(());
        }
        counts.tokens += example.input_ids.len();
        counts.label_tokens += label_tokens;
        (self.sink)(&example, origin).context("data.cache")
    }
}

/// What becomes of each record of a chunk, in order; `None` of those that nobody looks at.
fn encoded(
    chunk: Vec<Unread>,
    encoding: &Arc<impl Fn(Unread) -> Option<Outcome> + Send + Sync + 'static>,
    spent: &AtomicU64,
) -> Vec<(Place, Option<Outcome>)> {
    let places: Vec<Place> = chunk.iter().map(Unread::place).collect();
    let (mut groups, mut chunk) = (vec![], chunk.into_iter().peekable());
    while chunk.peek().is_some() {
        groups.push(chunk.by_ref().take(GROUP).collect::<Vec<_>>());
    }
    let given_up = || {
        spent.fetch_add(PATIENCE_MILLISECONDS, Ordering::Relaxed);
    };
    let each = |group: Vec<Unread>| run_each(group, encoding, given_up);
    let outcomes: Vec<Vec<_>> = groups.into_par_iter().map(each).collect();
    let told = |(place, outcome): (Place, Result<Option<Outcome>, GivenUp>)| {
        let given_up = |why: GivenUp| {
            let error = why.error("the chat template or the tokenizer");
            Some(Outcome { example: Err(Unusable { place, error, hint: None }), columns: vec![] })
        };
        (place, outcome.unwrap_or_else(given_up))
    };
    places.into_iter().zip(outcomes.into_iter().flatten()).map(told).collect()
}

/// The next records of a file, at most `left`; none at its end.
fn chunk(reader: &mut Reader, left: usize) -> Result<Vec<Unread>> {
    let (mut chunk, mut bytes) = (vec![], 0);
    while chunk.len() < left.min(CHUNK) && bytes < CHUNK_BYTES {
        let Some(unread) = reader.next().transpose()? else { break };
        bytes += unread.bytes();
        chunk.push(unread);
    }
    Ok(chunk)
}

#[cfg(test)]
mod tests;
