//! Conversations to tokens and labels, against transformers.

mod by_hand;
mod real_templates;
mod real_tokenizers;
mod spelt_out;
mod templates;

use asft::data::{DataOptions, IGNORE, load};
use asft::tokenizer::Tokenizer;
use indicatif::ProgressBar;
use serde_json::Value;

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Ids and labels of one record, through a dataset file.
fn sample(tokenizer: &Tokenizer, record: &Value, options: &DataOptions) -> anyhow::Result<(Vec<u32>, Vec<i64>)> {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("data.jsonl");
    std::fs::write(&path, record.to_string()).unwrap();
    let example = load(&path, options, tokenizer, &ProgressBar::hidden())?.example(0)?;
    Ok((example.input_ids, example.labels))
}

/// The text of each run of labels.
fn labelled(tokenizer: &Tokenizer, labels: &[i64]) -> Vec<String> {
    let runs = labels.split(|label| *label == IGNORE).filter(|run| !run.is_empty());
    let text = |run: &[i64]| tokenizer.decode(&run.iter().map(|&id| id as u32).collect::<Vec<_>>(), false).unwrap();
    runs.map(text).collect()
}
