//! `asft generate`

use super::load_model;
use crate::checkpoint::{check_writable_file, save_tensors};
use crate::cli::GenerateArgs;
use crate::data::{Columns, PROMPT_FIELDS, Template, load_prompts};
use crate::ensure_valid;
use crate::hub::{self, Split};
use crate::model::{Decoder, GenerateOptions};
use crate::report::progress_bar;
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

pub fn run(args: GenerateArgs) -> Result<()> {
    // Below that the scaled logits leave f32; 0 says what is meant.
    let possible = args.temperature == 0.0 || (args.temperature >= 0.01 && args.temperature.is_finite());
    ensure_valid!(
        possible,
        "--temperature should be 0 (the likeliest token), or 0.01 or more, got {}",
        args.temperature
    );
    ensure_valid!(args.top_p > 0.0 && args.top_p <= 1.0, "--top-p should be above 0 and at most 1");
    let columns = Columns::parse(&args.column, &PROMPT_FIELDS)?;
    args.logits.as_deref().map_or(Ok(()), check_writable_file).context("--logits")?;
    let data = args.data.as_deref().map(|data| hub::resolve_dataset(data, Split::Any, false)).transpose();
    let data = data.context("--data")?;
    let (model, dir) = load_model(&args.model)?;
    let tokenizer = Tokenizer::load(&dir)?;
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
        stop_ids: tokenizer.eos_ids().to_vec(),
    };
    let template = if args.raw { None } else { Some(Template::load(&args.template, &tokenizer)?) };
    let answerer = Answerer { model: &model, tokenizer: &tokenizer, template, options };
    match (&args.prompt, &data) {
        (_, Some(data)) => answerer.answer_file(&data.path, &columns),
        (Some(prompt), None) => {
            let prompt = if prompt == "-" { read_stdin()? } else { prompt.clone() };
            let ids = answerer.encode(&[json!({"role": "user", "content": prompt})], &Map::new())?;
            if let Some(path) = &args.logits {
                save_logits(&model, &ids, path)?;
            }
            answerer.answer_aloud(&ids)
        }
        (None, None) => unreachable!("clap requires one of --prompt and --data"),
    }
}

struct Answerer<'a> {
    model: &'a Decoder,
    tokenizer: &'a Tokenizer,
    /// `None`: prompts are continued as they stand.
    template: Option<Template>,
    options: GenerateOptions,
}

impl Answerer<'_> {
    /// The prompt's ids: through the chat template, or as plain text with the tokenizer's own special tokens.
    fn encode(&self, messages: &[Value], variables: &Map<String, Value>) -> Result<Vec<u32>> {
        let ids = match &self.template {
            Some(template) => self.tokenizer.encode(&template.render(messages, true, variables)?, false)?,
            None => {
                let text: Vec<&str> = messages.iter().filter_map(|message| message["content"].as_str()).collect();
                self.tokenizer.encode(&text.join("\n"), true)?
            }
        };
        let vocab_size = self.model.spec().vocab_size;
        let fits = ids.iter().all(|&id| (id as usize) < vocab_size);
        ensure_valid!(fits, "the tokenizer gives ids beyond the model's vocab_size of {vocab_size}");
        Ok(ids)
    }

    /// Prints the answer while it comes.
    fn answer_aloud(&self, ids: &[u32]) -> Result<()> {
        let mut out = std::io::stdout().lock();
        let (mut tokens, mut shown) = (vec![], 0);
        self.model.generate(ids, &self.options, |token| {
            tokens.push(token);
            let text = self.tokenizer.decode(&tokens, true)?;
            // A token may end inside a character; its replacement mark is not final.
            if let Some(fresh) = text.get(shown..).filter(|fresh| !fresh.ends_with('\u{fffd}')) {
                write!(out, "{fresh}")?;
                out.flush()?;
                shown = text.len();
            }
            Ok(())
        })?;
        let text = self.tokenizer.decode(&tokens, true)?;
        writeln!(out, "{}", text.get(shown..).unwrap_or_default())?;
        Ok(())
    }

    /// Prints each record with its `answer`, one JSON object a line.
    fn answer_file(&self, path: &Path, columns: &Columns) -> Result<()> {
        let prompts = load_prompts(path, columns)?;
        let progress = progress_bar(prompts.len(), "generating");
        let mut out = std::io::stdout().lock();
        for prompt in prompts {
            let ids = self.encode(&prompt.messages, &prompt.variables)?;
            let answer = self.model.generate(&ids, &self.options, |_| Ok(()))?;
            let mut record = prompt.record;
            record.insert("answer".into(), self.tokenizer.decode(&answer, true)?.into());
            writeln!(out, "{}", Value::Object(record))?;
            progress.inc(1);
        }
        progress.finish_and_clear();
        Ok(())
    }
}

fn read_stdin() -> Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("reading the prompt from standard input")?;
    Ok(text.trim_end_matches('\n').to_string())
}

/// `input_ids` i64 [n] and `logits` f32 [n, vocab_size] of the prompt.
fn save_logits(model: &Decoder, ids: &[u32], path: &Path) -> Result<()> {
    let logits = model.logits(ids, &[ids.len()])?.to_device(&Device::Cpu)?;
    let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let count = ids.len();
    let ids = Tensor::from_vec(ids, count, &Device::Cpu)?;
    save_tensors(path, &BTreeMap::from([("input_ids".to_string(), ids), ("logits".to_string(), logits)]))
}
