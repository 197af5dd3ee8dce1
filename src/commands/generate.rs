//! `asft generate`

use super::{find_model, generator, load_model, standard_output};
use crate::checkpoint::{save_tensors, write_atomic};
use crate::cli::GenerateArgs;
use crate::console::progress_bar;
use crate::data::{Columns, PROMPT_FIELDS, Template, TemplateVariables, load_prompts, restored};
use crate::eval::alpaca_eval::{self, Answer};
use crate::eval::{Encoder, answer_all};
use crate::hub::{self, ResolvedData, Split};
use crate::model::{Decoder, GenerateOptions, check_temperature, check_top_p};
use crate::outputs::Outputs;
use crate::tokenizer::Tokenizer;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

pub fn run(args: GenerateArgs) -> Result<()> {
    check_temperature(args.temperature).map_err(|why| invalid!("--temperature {why}"))?;
    check_top_p(args.top_p).map_err(|why| invalid!("--top-p {why}"))?;
    ensure_valid!(args.max_new_tokens > 0, "--max-new-tokens should be at least 1");
    ensure_valid!(args.batch_size > 0, "--batch-size should be at least 1");
    let columns = Columns::parse(&args.column, &PROMPT_FIELDS)?;
    let read = Outputs::new(args.overwrite).reads("--model", [&args.model.base.model]);
    let read = read.reads("--tokenizer", &args.model.base.tokenizer);
    let read = read.reads("--adapter", &args.model.adapter).reads("--data", &args.data);
    let read = read.reads("--template", [&args.template]).file("--logits", &args.logits);
    read.file("--alpaca-eval", &args.alpaca_eval).check()?;
    let data = args.data.as_deref().map(|data| hub::resolve_dataset(data, Split::Any, false)).transpose();
    let data = data.and_then(|data| data.map(ResolvedData::only).transpose()).context("--data")?;
    let found = find_model(&args.model.base)?;
    let tokenizer = found.load_tokenizer()?;
    let model = load_model(&args.model, &found)?;
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
        stop_ids: tokenizer.eos_ids().to_vec(),
    };
    let variables = TemplateVariables::parse(&args.template_variable)?;
    let template = if args.raw { None } else { Some(Template::load(&args.template, &variables, &tokenizer)?) };
    let encoder =
        Encoder { tokenizer: tokenizer.clone(), template, spec: model.spec().clone(), prefill: String::new() };
    match (&args.prompt, &data) {
        (_, Some(data)) => {
            let answers = answer_file(&model, &encoder, &options, (data, &columns, args.batch_size), &args)?;
            let Some(path) = &args.alpaca_eval else { return Ok(()) };
            let text = alpaca_eval::file(&answers)?;
            write_atomic(path, |file| Ok(file.write_all(text.as_bytes())?)).context("--alpaca-eval")
        }
        (Some(prompt), None) => {
            let prompt = if prompt == "-" { read_stdin()? } else { prompt.clone() };
            let ids = encoder.encode(&[json!({"role": "user", "content": prompt})], &Map::new())?;
            if let Some(path) = &args.logits {
                save_logits(&model, &ids, path)?;
            }
            answer_aloud(&model, &tokenizer, &options, &ids)
        }
        (None, None) => unreachable!("clap requires one of --prompt and --data"),
    }
}

/// Prints the answer as it is generated.
fn answer_aloud(model: &Decoder, tokenizer: &Tokenizer, options: &GenerateOptions, ids: &[u32]) -> Result<()> {
    let mut out = standard_output();
    let (mut tokens, mut shown) = (vec![], 0);
    model.generate(ids, options, |token| {
        tokens.push(token);
        let text = tokenizer.decode(&tokens, true)?;
        // A token may end inside a character; its replacement mark is not final.
        if let Some(fresh) = text.get(shown..).filter(|fresh| !fresh.ends_with('\u{fffd}')) {
            write!(out, "{fresh}")?;
            out.flush()?;
            shown = text.len();
        }
        Ok(())
    })?;
    let text = tokenizer.decode(&tokens, true)?;
    writeln!(out, "{}", text.get(shown..).unwrap_or_default())?;
    Ok(())
}

/// Prints each record with its `answer`, one JSON object per line. Returns the answers as AlpacaEval has them, if they are wanted.
fn answer_file(
    model: &Decoder,
    encoder: &Encoder,
    options: &GenerateOptions,
    (path, columns, batch_size): (&Path, &Columns, usize),
    args: &GenerateArgs,
) -> Result<Vec<Answer>> {
    let mut prompts = load_prompts(path, columns)?;
    let instructions = match &args.alpaca_eval {
        Some(_) => alpaca_eval::instructions(&prompts, path).context("--alpaca-eval")?,
        None => vec![],
    };
    let model_name = || generator(&args.model.base.model, args.model.adapter.as_deref());
    let (generator, mut answers) = (args.generator.clone().unwrap_or_else(model_name), vec![]);
    let dataset = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let ids = encoder.encode_all(&prompts, path)?;
    let progress = progress_bar(prompts.len(), "generating");
    let mut out = standard_output();
    answer_all((model, &encoder.tokenizer), (&ids, &[]), batch_size, options, &progress, |index, text| {
        let mut record = std::mem::take(&mut prompts[index].record);
        if let Some(instruction) = instructions.get(index) {
            answers.push(Answer::new(&record, (instruction, text.trim()), (&generator, &dataset)));
        }
        record.insert("answer".into(), text.into());
        Ok(writeln!(out, "{}", restored(&Value::Object(record).to_string()))?)
    })?;
    progress.finish_and_clear();
    Ok(answers)
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
