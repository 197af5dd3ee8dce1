//! `asft eval`

use super::load_model;
use crate::cli::{EvalArgs, FormatArg};
use crate::data::{self, Columns, DataOptions, Format};
use crate::ensure_valid;
use crate::eval::mean_loss;
use crate::report::progress_bar;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
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
    let (dataset, pad_id) = match options.format {
        Format::Tokenized => (data::load_tokenized(&args.data, &options, model.spec().vocab_size, &progress)?, 0),
        _ => {
            let tokenizer = Tokenizer::load(&dir)?;
            (data::load(&args.data, &options, &tokenizer, &progress)?, tokenizer.pad_id())
        }
    };
    progress.finish_and_clear();
    data::check_ids(&dataset, model.spec().vocab_size)?;
    let pad_id = pad_id.min(model.spec().vocab_size as u32 - 1);
    let progress = progress_bar(0, "evaluating");
    let mean = mean_loss(&model, &dataset.examples, args.batch_size, pad_id, &progress)?;
    progress.finish_and_clear();
    if args.json {
        let report = json!({
            "loss": mean.loss,
            "perplexity": mean.perplexity(),
            "label_tokens": mean.label_tokens,
            "samples": dataset.examples.len(),
            "truncated": dataset.counts.truncated,
            "dropped_without_labels": dataset.counts.dropped_without_labels,
        });
        println!("{report}");
    } else {
        eprintln!("{}: {}", args.data.display(), dataset.counts);
        println!("loss {:.6}  perplexity {:.4}  label tokens {}", mean.loss, mean.perplexity(), mean.label_tokens);
    }
    Ok(())
}
