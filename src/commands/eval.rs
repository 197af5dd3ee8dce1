//! `asft eval`

use super::{load_model, print};
use crate::cli::{EvalArgs, FormatArg};
use crate::data::{self, Columns, DataOptions, Format};
use crate::ensure_valid;
use crate::eval::mean_loss;
use crate::hub::{self, Split};
use crate::report::progress_bar;
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result, bail};
use serde_json::json;

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Alpaca => Self::Alpaca,
            FormatArg::Chat => Self::Chat,
            FormatArg::Sharegpt => Self::Sharegpt,
            FormatArg::PromptCompletion => Self::PromptCompletion,
            FormatArg::Text => Self::Text,
            FormatArg::Tokenized => Self::Tokenized,
        }
    }
}

pub fn run(args: EvalArgs) -> Result<()> {
    ensure_valid!(args.batch_size > 0, "--batch-size should be at least 1");
    let format = Format::from(args.format);
    let columns = Columns::parse(&args.column, format.fields())?;
    let data = hub::resolve_dataset(&args.data, Split::Any, false).context("--data")?;
    let (model, dir) = load_model(&args.model)?;
    let options = DataOptions {
        format,
        columns,
        template: args.template,
        max_length: args.max_length,
        allow_empty_labels: true,
        ..Default::default()
    };
    let progress = progress_bar(0, "tokenising");
    let dataset = match options.format {
        Format::Tokenized => data::load_tokenized(&data.path, &options, model.spec().vocab_size, &progress)?,
        _ => data::load(&data.path, &options, &Tokenizer::load(&dir)?, &progress)?,
    };
    progress.finish_and_clear();
    data::check_ids(&dataset, model.spec().vocab_size)?;
    let progress = progress_bar(0, "evaluating");
    let mean = mean_loss(&model, &dataset.examples, args.batch_size, &progress)?;
    progress.finish_and_clear();
    // JSON has no NaN, and a table of losses should not get one unnoticed.
    if !mean.loss.is_finite() {
        model.refuse_damaged_weights()?;
        bail!("the loss is {}", mean.loss);
    }
    if args.json {
        let report = json!({
            "loss": mean.loss,
            "perplexity": mean.perplexity(),
            "label_tokens": mean.label_tokens,
            "samples": dataset.examples.len(),
            "truncated": dataset.counts.truncated,
            "dropped_without_labels": dataset.counts.dropped_without_labels,
        });
        print(&format!("{report}\n"))
    } else {
        eprintln!("{}: {}", data.source, dataset.counts);
        let (loss, perplexity) = (mean.loss, mean.perplexity());
        print(&format!("loss {loss:.6}  perplexity {perplexity:.4}  label tokens {}\n", mean.label_tokens))
    }
}
