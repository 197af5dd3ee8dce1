//! A dataset file to samples: encode in parallel, cut or drop what is too long, count everything that is left out.

use super::batch::predicted_labels;
use super::examples::{Encoder, tokenized};
use super::records::{self, Place, Record};
use super::template::Template;
use super::{DataOptions, Example, Format, Overlong, epoch_order};
use crate::ensure_valid;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use indicatif::ProgressBar;
use rayon::prelude::*;
use std::fmt;
use std::path::{Path, PathBuf};

/// Records encoded between two looks at errors, so that a bad first line does not wait for the last.
const CHUNK: usize = 4096;

/// What became of the records of a dataset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records read.
    pub records: usize,
    /// Samples cut to `max_length`.
    pub truncated: usize,
    /// Samples left out for being longer than `max_length`.
    pub dropped_overlong: usize,
    /// Samples left out because no token of theirs is a label.
    pub dropped_without_labels: usize,
    /// Tokens of the samples kept.
    pub tokens: usize,
    /// Tokens of the samples kept that the loss counts.
    pub label_tokens: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.records - self.dropped_overlong - self.dropped_without_labels;
        write!(
            f,
            "{} records: {kept} samples, {} tokens ({} labels); {} truncated, {} dropped as too long, {} without labels",
            self.records,
            self.tokens,
            self.label_tokens,
            self.truncated,
            self.dropped_overlong,
            self.dropped_without_labels
        )
    }
}

/// The samples of a file, in file order.
#[derive(Clone, Debug)]
pub struct Dataset {
    pub path: PathBuf,
    pub examples: Vec<Example>,
    /// Where each sample stands in the file.
    pub places: Vec<Place>,
    pub counts: Counts,
}

impl Dataset {
    /// `FILE:line` of a sample, for messages.
    pub fn origin(&self, index: usize) -> String {
        let place = self.places.get(index).map(Place::to_string).unwrap_or_default();
        format!("{}{place}", self.path.display())
    }
}

/// Loads the samples of `path` as `options` says.
///
/// # Errors
/// An unreadable, malformed or empty file; a record that does not fit the format; a sample without label tokens
/// (unless allowed); nothing left. The error is that of the first bad record in file order.
pub fn load(path: &Path, options: &DataOptions, tokenizer: &Tokenizer, progress: &ProgressBar) -> Result<Dataset> {
    let template = match options.format {
        Format::Alpaca | Format::Chat => Some(Template::load(&options.template, tokenizer)?),
        Format::PromptCompletion | Format::Text | Format::Tokenized => None,
    };
    let encoder = Encoder { format: options.format, tokenizer, template };
    load_with(path, options, progress, |record| encoder.encode(record))
}

/// Loads `tokenized` samples, which need no tokenizer. `vocab_size`: bound of their ids, e.g. rows of the embedding.
///
/// # Errors
/// As [`load`].
pub fn load_tokenized(
    path: &Path,
    options: &DataOptions,
    vocab_size: usize,
    progress: &ProgressBar,
) -> Result<Dataset> {
    load_with(path, options, progress, |record| tokenized(record, vocab_size))
}

fn load_with(
    path: &Path,
    options: &DataOptions,
    progress: &ProgressBar,
    encode: impl Fn(&Record) -> Result<Example> + Sync,
) -> Result<Dataset> {
    ensure_valid!(options.max_length >= 2, "data.max_length is {}, expected at least 2", options.max_length);
    let records = records::read(path)?;
    progress.set_length(records.len() as u64);
    let counts = Counts { records: records.len(), ..Counts::default() };
    let mut dataset = Dataset { path: path.to_path_buf(), examples: vec![], places: vec![], counts };
    for chunk in records.chunks(CHUNK) {
        let encoded: Vec<Result<Example>> =
            chunk.par_iter().map(|record| encode(record).inspect(|_| progress.inc(1))).collect();
        for (record, example) in chunk.iter().zip(encoded) {
            let at = |e: anyhow::Error| e.context(format!("{}{}", path.display(), record.place));
            keep(&mut dataset, example.map_err(at)?, record.place, options)?;
        }
    }
    ensure_valid!(
        !dataset.examples.is_empty(),
        "dataset {}: no sample is left ({}); raise data.max_length (now {})",
        path.display(),
        dataset.counts,
        options.max_length
    );
    Ok(dataset)
}

/// Adds a sample, cut or left out as `options` says.
fn keep(dataset: &mut Dataset, mut example: Example, place: Place, options: &DataOptions) -> Result<()> {
    let (length, limit) = (example.input_ids.len(), options.max_length);
    let whole_labels = predicted_labels(&example.labels);
    if length > limit {
        if options.overlong == Overlong::Drop {
            dataset.counts.dropped_overlong += 1;
            return Ok(());
        }
        dataset.counts.truncated += 1;
        example.input_ids.truncate(limit);
        example.labels.truncate(limit);
    }
    let label_tokens = predicted_labels(&example.labels);
    if label_tokens == 0 {
        ensure_valid!(
            options.allow_empty_labels,
            "{}{place}: no token of this sample is a label{}, or set data.allow_empty_labels = true to leave such \
             samples out",
            dataset.path.display(),
            if whole_labels > 0 {
                format!(" once its {length} tokens are cut to data.max_length = {limit}; raise that")
            } else {
                " (an empty response, or no response at all); correct or remove the record".to_string()
            }
        );
        // Counted once: what is left out for want of labels is not also a truncated sample.
        dataset.counts.truncated -= usize::from(length > limit);
        dataset.counts.dropped_without_labels += 1;
        return Ok(());
    }
    dataset.counts.tokens += example.input_ids.len();
    dataset.counts.label_tokens += label_tokens;
    dataset.examples.push(example);
    dataset.places.push(place);
    Ok(())
}

/// Holds out `share` (between 0 and 1) of the samples, at least one, chosen by `seed`: (training, validation), both in
/// file order. What was truncated or left out stays counted with the training part.
///
/// # Errors
/// A share outside (0, 1); too few samples to give both parts one.
pub fn split_validation(dataset: Dataset, share: f64, seed: u64) -> Result<(Dataset, Dataset)> {
    ensure_valid!(
        share > 0.0 && share < 1.0,
        "data.validation is {share}, expected a share between 0 and 1, or a file"
    );
    let count = dataset.examples.len();
    ensure_valid!(
        count >= 2,
        "dataset {} has {count} sample(s), too few to hold out a share; remove data.validation or name a file",
        dataset.path.display()
    );
    let held_out = ((share * count as f64).round() as usize).clamp(1, count - 1);
    let mut is_held_out = vec![false; count];
    for index in epoch_order(count, seed, VALIDATION_STREAM, true).into_iter().take(held_out) {
        if let Some(flag) = is_held_out.get_mut(index) {
            *flag = true;
        }
    }
    let part = || Dataset { path: dataset.path.clone(), examples: vec![], places: vec![], counts: Counts::default() };
    let (mut train, mut validation) = (part(), part());
    for ((example, place), held_out) in dataset.examples.into_iter().zip(dataset.places).zip(is_held_out) {
        let part = if held_out { &mut validation } else { &mut train };
        part.counts.tokens += example.input_ids.len();
        part.counts.label_tokens += predicted_labels(&example.labels);
        part.examples.push(example);
        part.places.push(place);
    }
    validation.counts.records = validation.examples.len();
    let Counts { tokens, label_tokens, .. } = train.counts;
    train.counts =
        Counts { records: dataset.counts.records - validation.counts.records, tokens, label_tokens, ..dataset.counts };
    Ok((train, validation))
}

/// Stream of the seed that no epoch uses.
const VALIDATION_STREAM: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::IGNORE;
    use serde_json::{Value, json};
    use std::fs::write;

    const VOCAB: [&str; 16] =
        ["<unk>", "<s>", "</s>", "<t>", "user", "assistant", "a", "b", "c", "d", "e", "f", "g", "h", "i", "system"];

    /// Words a to i; a turn is "<t> role words </s>". The tokenizer adds <s> on request.
    fn tokenizer(dir: &Path) -> Tokenizer {
        let vocab: serde_json::Map<String, Value> =
            VOCAB.iter().enumerate().map(|(id, word)| (word.to_string(), json!(id))).collect();
        let special = |id: usize| {
            json!({"id": id, "content": VOCAB[id], "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        };
        let tokenizer = json!({
            "version": "1.0", "normalizer": null, "decoder": null, "post_processor": null, "truncation": null,
            "padding": null, "added_tokens": [special(1), special(2), special(3)],
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": vocab}
        });
        let template = "{% for m in messages %}{{ '<t> ' + m.role + ' ' + m.content + ' </s>\n' }}{% endfor %}\
                        {% if add_generation_prompt %}{{ '<t> assistant ' }}{% endif %}";
        let config = json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true, "chat_template": template});
        write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
        Tokenizer::load(dir).unwrap()
    }

    fn load_text(text: &str, options: &DataOptions) -> Result<Dataset> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        write(&path, text).unwrap();
        load(&path, options, &tokenizer(dir.path()), &ProgressBar::hidden())
    }

    fn options(format: Format) -> DataOptions {
        DataOptions { format, ..DataOptions::default() }
    }

    fn one(record: Value, format: Format) -> (String, String) {
        let dataset = load_text(&record.to_string(), &options(format)).unwrap();
        let example = &dataset.examples[0];
        let words = |ids: Vec<usize>| ids.iter().map(|&id| VOCAB[id]).collect::<Vec<_>>().join(" ");
        let labels = example.labels.iter().filter(|label| **label != IGNORE).map(|&label| label as usize).collect();
        (words(example.input_ids.iter().map(|&id| id as usize).collect()), words(labels))
    }

    fn error(text: &str, options: &DataOptions) -> String {
        let error = load_text(text, options).unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 2);
        format!("{error:#}")
    }

    #[test]
    fn every_format() {
        let (ids, labels) = one(json!({"instruction": "a", "input": "b", "output": "c d"}), Format::Alpaca);
        assert_eq!((&*ids, &*labels), ("<t> user a b </s> <t> assistant c d </s>", "c d </s>"));
        let (ids, _) = one(json!({"instruction": "a", "input": "", "output": "c"}), Format::Alpaca);
        assert_eq!(ids, "<t> user a </s> <t> assistant c </s>");
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        let messages = json!([turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")]);
        assert_eq!(one(json!({ "messages": messages }), Format::Chat).1, "b </s> d </s>");
        let (ids, labels) = one(json!({"prompt": "a b", "completion": " c"}), Format::PromptCompletion);
        assert_eq!((&*ids, &*labels), ("<s> a b c </s>", "c </s>"));
        assert_eq!(one(json!({"prompt": "a", "completion": ""}), Format::PromptCompletion).1, "</s>");
        assert_eq!(one(json!({"prompt": "", "completion": "a"}), Format::PromptCompletion).1, "a </s>");
        let (ids, labels) = one(json!({"text": "a b"}), Format::Text);
        assert_eq!((&*ids, &*labels), ("<s> a b </s>", "<s> a b </s>"));
        assert_eq!(one(json!({"text": "a </s>"}), Format::Text).0, "<s> a </s>");
        assert_eq!(one(json!({"input_ids": [6, 7], "labels": [-100, 7]}), Format::Tokenized).1, "b");
    }

    #[test]
    fn bad_records_name_field_and_line() {
        let alpaca = options(Format::Alpaca);
        let good = r#"{"instruction": "a", "output": "b"}"#;
        let text = format!("{good}\n\n{{\"instruction\": \"a\", \"response\": \"b\"}}\n{{}}");
        let message = error(&text, &alpaca);
        assert!(
            message.contains("data.jsonl:3: field `output` is missing") && message.contains("instruction, response")
        );
        let chat = options(Format::Chat);
        for (record, expected) in [
            (json!({"messages": "a"}), "`messages` is a string, expected a list"),
            (json!({"messages": []}), "`messages` is empty"),
            (json!({"messages": ["a"]}), "message 1: expected an object"),
            (json!({"messages": [{"role": "user", "content": null}]}), "message 1: `content` is null"),
            (json!({"messages": [{"role": "user"}]}), "message 1: `content` is missing"),
            (json!({"messages": [{"content": "a"}]}), "message 1: `role` is missing"),
            (json!({"messages": [{"role": "user", "content": "a"}]}), "no token of this sample is a label (an empty"),
        ] {
            let message = error(&record.to_string(), &chat);
            assert!(message.contains(expected) && message.contains("data.jsonl:1"), "{message}");
        }
        for (ids, labels, expected) in [
            (json!([6, 99]), json!([6, 7]), "input_ids[1] is 99, expected a token id below the vocabulary's 16"),
            (json!([6, -1]), json!([6, 7]), "input_ids[1] is -1"),
            (json!([6, 7]), json!([6, -5]), "labels[1] is -5"),
            (json!([6, 7]), json!([7]), "holds 2 values and labels 1"),
            (json!([6, 1.5]), json!([7, 7]), "input_ids[1] is 1.5"),
            (json!([]), json!([]), "input_ids is empty"),
        ] {
            let message = error(&json!({"input_ids": ids, "labels": labels}).to_string(), &options(Format::Tokenized));
            assert!(message.contains(expected), "{message}");
        }
        let message = error(good, &DataOptions { template: "no.jinja".to_string(), ..alpaca });
        assert!(message.contains("no.jinja does not exist"));
    }

    #[test]
    fn long_samples_are_cut_or_dropped_and_counted() {
        let text = "{\"text\": \"a b c d e\"}\n{\"text\": \"a\"}";
        let cut = DataOptions { max_length: 4, ..options(Format::Text) };
        let dataset = load_text(text, &cut).unwrap();
        assert_eq!(dataset.examples[0].input_ids, [1, 6, 7, 8]);
        assert_eq!(
            dataset.counts,
            Counts { records: 2, truncated: 1, tokens: 7, label_tokens: 5, ..Counts::default() }
        );
        assert!(dataset.origin(1).ends_with("data.jsonl:2"));
        let drop = DataOptions { overlong: Overlong::Drop, ..cut.clone() };
        let dataset = load_text(text, &drop).unwrap();
        assert_eq!((dataset.examples.len(), dataset.counts.dropped_overlong), (1, 1));
        assert!(dataset.counts.to_string().starts_with("2 records: 1 samples, 3 tokens (2 labels); 0 truncated, 1"));
        let nothing = DataOptions { max_length: 2, ..drop };
        assert!(error(text, &nothing).contains("no sample is left"));
    }

    #[test]
    fn samples_without_labels_are_refused_unless_allowed() {
        let text = "{\"prompt\": \"a b c\", \"completion\": \" d\"}\n{\"prompt\": \"a\", \"completion\": \" d\"}";
        let cut = DataOptions { max_length: 4, ..options(Format::PromptCompletion) };
        let message = error(text, &cut);
        assert!(message.contains("data.jsonl:1: no token") && message.contains("max_length = 4"), "{message}");
        let dataset = load_text(text, &DataOptions { allow_empty_labels: true, ..cut }).unwrap();
        assert_eq!((dataset.counts.dropped_without_labels, dataset.counts.truncated), (1, 0));
        assert_eq!(dataset.places, [Place::Line(2)]);
        // A label at position 0 is never predicted.
        let first_only = r#"{"input_ids": [6, 7], "labels": [6, -100]}"#;
        assert!(error(first_only, &options(Format::Tokenized)).contains("no token of this sample is a label"));
    }

    #[test]
    fn a_share_is_held_out() {
        let lines: Vec<String> = (0..10).map(|i| format!("{{\"text\": \"{}\"}}", VOCAB[6 + i % 9])).collect();
        let dataset = load_text(&lines.join("\n"), &options(Format::Text)).unwrap();
        let (train, validation) = split_validation(dataset.clone(), 0.2, 42).unwrap();
        assert_eq!((train.examples.len(), validation.examples.len()), (8, 2));
        assert_eq!(train.counts.tokens + validation.counts.tokens, dataset.counts.tokens);
        assert_eq!((train.counts.records, validation.counts.records), (8, 2));
        let mut places: Vec<_> = train.places.iter().chain(&validation.places).map(Place::to_string).collect();
        places.sort();
        places.dedup();
        assert_eq!(places.len(), 10);
        assert_eq!(split_validation(dataset.clone(), 0.2, 42).unwrap().1.places, validation.places);
        assert!(split_validation(dataset.clone(), 1.0, 42).is_err());
        let one = load_text("{\"text\": \"a b\"}", &options(Format::Text)).unwrap();
        assert!(split_validation(one, 0.5, 1).unwrap_err().to_string().contains("too few"));
    }
}
