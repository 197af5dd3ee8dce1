//! `asft landscape`

use super::load_model;
use crate::checkpoint::{Checkpoint, publish, stage, write_atomic};
use crate::cli::LandscapeArgs;
use crate::data::{self, Columns, DataOptions, Format};
use crate::ensure_valid;
use crate::eval::landscape::{Gauge, Landscape, LossGauge, Plan, explore};
use crate::hub::{self, Split};
use crate::method::direction_file::Directions;
use crate::method::perturb::Perturbation;
use crate::model::ModelSpec;
use crate::plot::{self, Picture};
use crate::report::{log, progress_bar};
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Where a dataset is, and what it is called.
struct Labelled {
    label: String,
    path: PathBuf,
}

pub fn run(args: LandscapeArgs) -> Result<()> {
    check(&args)?;
    let format = Format::from(args.format);
    let options = DataOptions {
        format,
        columns: Columns::parse(&args.column, format.fields())?,
        template: args.template.clone(),
        max_length: args.max_length,
        allow_empty_labels: true,
        ..Default::default()
    };
    let datasets: Vec<Labelled> = args.data.iter().map(|text| locate(text)).collect::<Result<_>>().context("--data")?;
    let directions = Directions::open(&args.direction)?;
    // Everything that can be wrong is looked at before weights are loaded.
    let base = hub::resolve(&args.model.base.model, false)?;
    let checkpoint = Checkpoint::open(&base.dir)?;
    let shapes = directions.modules().iter().filter_map(|name| {
        let (d_out, d_in, _) = directions.shape(name)?;
        Some((name.clone(), (d_out, d_in)))
    });
    directions.check_against(&shapes.collect::<Vec<_>>(), &checkpoint)?;
    let gauges = gauges(&args, &datasets, &options, &base.dir)?;
    let (mut model, _) = load_model(&args.model)?;
    let perturbation = Perturbation::new(&checkpoint, &directions, args.seed);
    ensure_valid!(
        !perturbation.modules().is_empty(),
        "V = 0 in every module of the direction: there is no way along it"
    );
    let plan = Plan { range: args.range, points: args.points, repeats: args.repeats, grid: args.grid };
    let progress = progress_bar(0, "measuring");
    let landscape = explore(&mut model, &perturbation, &gauges, &plan, &progress)?;
    progress.finish_and_clear();
    save(&args, &landscape, &perturbation)?;
    log::info(&format!("wrote {}", args.out.display()), json!({"out": args.out}));
    Ok(())
}

fn check(args: &LandscapeArgs) -> Result<()> {
    let odd = |n: usize| n % 2 == 1 && n > 1;
    ensure_valid!(args.range > 0.0 && args.range.is_finite(), "--range should be above 0, got {}", args.range);
    ensure_valid!(odd(args.points), "--points should be odd and at least 3, got {}", args.points);
    ensure_valid!(odd(args.grid) || args.grid == 0, "--grid should be odd and at least 3, or 0, got {}", args.grid);
    ensure_valid!(args.repeats > 0, "--repeats should be at least 1");
    ensure_valid!(args.batch_size > 0, "--batch-size should be at least 1");
    ensure_valid!(args.samples != Some(0), "--samples should be at least 1");
    ensure_valid!(!args.out.exists(), "{} already exists; choose another output folder", args.out.display());
    Ok(())
}

/// `LABEL=FILE`, or a file or dataset, which is then called by its name.
fn locate(text: &str) -> Result<Labelled> {
    let labelled = text.split_once('=').filter(|(label, _)| {
        !label.is_empty() && label.chars().all(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
    });
    let (label, place) = match labelled {
        Some((label, place)) => (label.to_string(), place),
        None => (Path::new(text).file_stem().unwrap_or_default().to_string_lossy().into_owned(), text),
    };
    Ok(Labelled { label, path: hub::resolve_dataset(place, Split::Any, false)?.path })
}

fn gauges(
    args: &LandscapeArgs,
    datasets: &[Labelled],
    options: &DataOptions,
    dir: &Path,
) -> Result<Vec<Box<dyn Gauge>>> {
    let vocab_size = ModelSpec::load(dir)?.vocab_size;
    let mut gauges: Vec<Box<dyn Gauge>> = vec![];
    for Labelled { label, path } in datasets {
        let progress = progress_bar(0, "tokenising");
        let mut dataset = match options.format {
            Format::Tokenized => data::load_tokenized(path, options, vocab_size, &progress)?,
            _ => data::load(path, options, &Tokenizer::load(dir)?, &progress)?,
        };
        progress.finish_and_clear();
        data::check_ids(&dataset, vocab_size)?;
        dataset.examples.truncate(args.samples.unwrap_or(usize::MAX));
        let examples = dataset.examples;
        gauges.push(Box::new(LossGauge { label: label.clone(), examples, batch_size: args.batch_size }));
    }
    Ok(gauges)
}

/// Writes the folder, whole or not at all.
fn save(args: &LandscapeArgs, landscape: &Landscape, perturbation: &Perturbation) -> Result<()> {
    let (nearest, median, farthest) = perturbation.unaligned_at()?;
    let subject = match &args.model.adapter {
        Some(adapter) => format!("{} + {}", short(&args.model.base.model), short(&adapter.to_string_lossy())),
        None => short(&args.model.base.model),
    };
    let staging = stage(&args.out)?;
    let write = |name: &str, bytes: &[u8]| write_atomic(&staging.path().join(name), |file| Ok(file.write_all(bytes)?));
    let both = |name: &str, picture: Picture| {
        write(&format!("{name}.svg"), picture.svg.as_bytes())?;
        write(&format!("{name}.png"), &picture.png)
    };
    both("curves", plot::curves(landscape, &subject, median)?)?;
    if let Some(grid) = &landscape.grid {
        both("grid", plot::grid(landscape, grid, &subject, median)?)?;
    }
    let record = json!({
        "asft_version": env!("CARGO_PKG_VERSION"),
        "model": args.model.base.model,
        "adapter": args.model.adapter,
        "direction": args.direction,
        "data": args.data,
        "samples": args.samples,
        "seed": args.seed,
        "modules": perturbation.modules(),
        "step_unit": "norm of each module's weight",
        "unaligned_at": {"nearest": nearest, "median": median, "farthest": farthest},
        "landscape": landscape,
    });
    write("landscape.json", (serde_json::to_string_pretty(&record)? + "\n").as_bytes())?;
    publish(staging, &args.out)
}

/// The last part of a path or id.
fn short(place: &str) -> String {
    Path::new(place).file_name().map_or(place.to_string(), |name| name.to_string_lossy().into_owned())
}
