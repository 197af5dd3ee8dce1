//! `asft serve`

use super::{find_model, load_base, print};
use crate::cli::{DEFAULT_CONTEXT, LimitArgs, ServeArgs};
use crate::console::log;
use crate::data::{Template, TemplateVariables};
use crate::eval::Encoder;
use crate::hub::Resolved;
use crate::model::ModelSpec;
use crate::serve::{Catalogue, Limits, Server};
use crate::tokenizer::Tokenizer;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// Of --timeout and --grace.
const MOST_SECONDS: u64 = 7 * 24 * 3600;
/// Of --batch-size and --queue.
const MOST_SEQUENCES: usize = 1 << 14;

pub fn run(args: ServeArgs) -> Result<()> {
    let variables = TemplateVariables::parse(&args.template_variable)?;
    let key = args.api_key_file.as_deref().map(read_key).transpose().context("--api-key-file")?;
    // Before weights are loaded, which takes longer than to be told that the port is taken.
    let server = Server::bind(&args.host, args.port).context("--host and --port")?;
    if !server.address.ip().is_loopback() && key.is_none() {
        let address = server.address;
        let message =
            format!("whoever reaches {address} may ask the model: give --api-key-file, or listen on 127.0.0.1");
        log::warn(&message, json!({"address": address.to_string()}));
    }
    let found = find_model(&args.base)?;
    let spec = ModelSpec::load(&found.place)?;
    let limits = limits(&args.limits, &spec)?;
    let tokenizer = found.load_tokenizer()?;
    let template = template(&args.template, &variables, &tokenizer)?;
    let adapters: Vec<&Path> = args.adapter.iter().map(|(_, dir)| dir.as_path()).collect();
    let base = load_base(&args.base, &found, &adapters)?;
    let encoder = Encoder { tokenizer, template, spec, prefill: String::new() };
    let models = Catalogue::new(name(&found), &base, &args.adapter, encoder)?;
    let names = models.names().join(", ");
    let Limits { context, batch_size, .. } = limits;
    log::info(
        &format!("serving {names}; up to {batch_size} sequences of {context} tokens at once"),
        json!({"models": models.names(), "batch_size": batch_size, "context": context}),
    );
    server.run(models, limits, key.as_deref(), |address| print(&format!("http://{address}/v1\n")))
}

fn limits(args: &LimitArgs, spec: &ModelSpec) -> Result<Limits> {
    let longest = spec.context();
    let context = args.context.unwrap_or(DEFAULT_CONTEXT.min(longest));
    ensure_valid!(
        (2..=longest).contains(&context),
        "--context should be from 2 to {longest}, the model's own, got {context}"
    );
    check("--batch-size", args.batch_size as u64, 1, MOST_SEQUENCES as u64)?;
    check("--queue", args.queue as u64, 0, MOST_SEQUENCES as u64)?;
    check("--timeout", args.timeout, 1, MOST_SECONDS)?;
    check("--grace", args.grace, 0, MOST_SECONDS)?;
    ensure_valid!(args.max_body_bytes > 0, "--max-body-bytes should be at least 1");
    Ok(Limits {
        body_bytes: args.max_body_bytes,
        context,
        batch_size: args.batch_size,
        queue: args.queue,
        request: Duration::from_secs(args.timeout),
        grace: Duration::from_secs(args.grace),
    })
}

fn check(option: &str, value: u64, least: u64, most: u64) -> Result<()> {
    ensure_valid!((least..=most).contains(&value), "{option} should be from {least} to {most}, got {value}");
    Ok(())
}

/// The chat template, unless none was asked for and the tokenizer has none: then only completions are served.
fn template(choice: &str, variables: &TemplateVariables, tokenizer: &Tokenizer) -> Result<Option<Template>> {
    if choice == "tokenizer" && tokenizer.chat_template().is_none() {
        log::warn(
            "the tokenizer has no chat template: only /v1/completions is served; --template gives one",
            json!({}),
        );
        return Ok(None);
    }
    Template::load(choice, variables, tokenizer).map(Some)
}

/// What requests call the base: its hub id, or the name of its folder or file.
fn name(found: &Resolved) -> String {
    let place = found.place.canonicalize().unwrap_or_else(|_| found.place.clone());
    let last = || place.file_name().map_or("model".to_string(), |name| name.to_string_lossy().into_owned());
    found.id.clone().unwrap_or_else(last)
}

fn read_key(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).map_err(|why| invalid!("cannot read {}: {why}", path.display()))?;
    let key = text.trim();
    let fits = !key.is_empty() && key.chars().all(|c| c.is_ascii_graphic());
    ensure_valid!(fits, "{} should hold one key: visible ASCII characters without spaces", path.display());
    Ok(key.to_string())
}
