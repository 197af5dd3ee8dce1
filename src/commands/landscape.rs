//! `asft landscape`

use super::{find_model, load_model, print, short};
use crate::checkpoint::{Checkpoint, publish, replace, stage, write_atomic};
use crate::cli::LandscapeArgs;
use crate::console::{log, progress_bar};
use crate::ensure_valid;
use crate::eval::basin;
use crate::eval::landscape::{EvalGauge, Gauge, Landscape, Plan, explore};
use crate::eval::{Evaluation, Located, Metric, Prepared, Suite, locate};
use crate::method::direction_file::Directions;
use crate::method::perturb::{Axis, Perturbation, Unit};
use crate::model::ModelSpec;
use crate::outputs::Outputs;
use crate::plot::{self, Frame, Harm, Picture};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// The numbers behind the pictures.
const RECORD: &str = "landscape.json";

pub fn run(args: LandscapeArgs) -> Result<()> {
    check(&args)?;
    let evaluations = evaluations(&args)?;
    let read = Outputs::new(args.overwrite).reads("--model", [&args.model.base.model]);
    let read = read.reads("--tokenizer", &args.model.base.tokenizer);
    let read = read.reads("--adapter", &args.model.adapter).reads("--direction", [&args.direction]);
    let read = read.reads("--harm", &args.harm);
    let read =
        evaluations.iter().fold(read.reads("--suite", &args.suite), |read, evaluation| evaluation.declare_inputs(read));
    read.folder("--out", &args.out, RECORD).check()?;
    let located = locate(evaluations.clone())?;
    let directions = Directions::open(&args.direction)?;
    let harm = args.harm.as_deref().map(|file| Directions::open(file).context("--harm")).transpose()?;
    // Everything that can be wrong is checked before weights are loaded.
    let base = find_model(&args.model.base)?;
    let checkpoint = Checkpoint::open(&base.place)?;
    for directions in [Some(&directions), harm.as_ref()].into_iter().flatten() {
        directions.check_against(&directions.shapes(), Some(&checkpoint))?;
    }
    let perturbation = Perturbation::new(&checkpoint, &directions, harm.as_ref(), (args.unit, args.seed))?;
    ensure_valid!(
        !perturbation.modules().is_empty(),
        "V = 0 in every module of the direction: there is no way along it"
    );
    let compute = &args.model.base;
    let (spec, device) = (ModelSpec::load(&base.place)?, compute.device.open_for(compute.dtype.into())?);
    let gauge = |located: &Located| -> Result<Box<dyn Gauge>> {
        let compute = (&device, args.model.base.dtype.into());
        let prepared = Prepared::new(std::slice::from_ref(located), &base, &spec, compute)?;
        Ok(Box::new(EvalGauge { prepared, batch_size: args.batch_size }))
    };
    let gauges: Vec<Box<dyn Gauge>> = located.iter().map(gauge).collect::<Result<_>>()?;
    let mut model = load_model(&args.model, &base)?;
    let (points, repeats, grid) = (args.points, args.repeats, args.grid);
    let plan = Plan { range: range(&args), points, repeats, grid, harm: harm.is_some() };
    let progress = progress_bar(0, "measuring");
    let landscape = explore(&mut model, &perturbation, &gauges, &plan, &progress)?;
    progress.finish_and_clear();
    replace(&args.out, |out| save(&args, &evaluations, &landscape, &perturbation, out))?;
    log::info(&format!("wrote {}", args.out.display()), json!({"out": args.out}));
    basin::table(&landscape).map_or(Ok(()), |table| print(&table.on_screen()))
}

fn check(args: &LandscapeArgs) -> Result<()> {
    let odd = |n: usize| n % 2 == 1 && n > 1;
    let range = range(args);
    ensure_valid!(range > 0.0 && range.is_finite(), "--range should be above 0, got {range}");
    ensure_valid!(odd(args.points), "--points should be odd and at least 3, got {}", args.points);
    ensure_valid!(odd(args.grid) || args.grid == 0, "--grid should be odd and at least 3, or 0, got {}", args.grid);
    ensure_valid!(args.repeats > 0, "--repeats should be at least 1");
    ensure_valid!(args.batch_size > 0, "--batch-size should be at least 1");
    ensure_valid!(
        args.model.base.quantize.is_none(),
        "--quantize is not for landscapes: they move the weights themselves, which stay in --dtype"
    );
    Ok(())
}

fn range(args: &LandscapeArgs) -> f64 {
    args.range.unwrap_or(match args.unit {
        Unit::Weight => 0.5,
        Unit::Direction => 3.0,
    })
}

/// The suite's evaluations, and a loss for each `--data`.
fn evaluations(args: &LandscapeArgs) -> Result<Vec<Evaluation>> {
    let mut evaluations =
        args.suite.as_deref().map_or(Ok(vec![]), |suite| Suite::load(suite).map(|suite| suite.eval))?;
    for text in &args.data {
        let (name, data) = labelled(text);
        let evaluation = Evaluation {
            name,
            data,
            metric: Some(Metric::Loss),
            format: args.format,
            limit: args.limit,
            max_length: args.max_length,
            ..Default::default()
        };
        evaluation.validate()?;
        let title = evaluation.title();
        let unique = evaluations.iter().all(|other| other.title() != title);
        ensure_valid!(unique, "two evaluations are called \"{title}\"; give one a label: --data LABEL=FILE");
        evaluations.push(evaluation);
    }
    Ok(evaluations)
}

/// `LABEL=FILE`, or a file or dataset, which then is its own label by its name.
fn labelled(text: &str) -> (String, String) {
    let split = text.split_once('=').filter(|(label, _)| {
        !label.is_empty() && label.chars().all(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
    });
    match split {
        Some((label, place)) => (label.to_string(), place.to_string()),
        None => (Path::new(text).file_stem().unwrap_or_default().to_string_lossy().into_owned(), text.to_string()),
    }
}

/// Writes the folder, completely or not at all.
fn save(
    args: &LandscapeArgs,
    evaluations: &[Evaluation],
    landscape: &Landscape,
    perturbation: &Perturbation,
    out: &Path,
) -> Result<()> {
    let unaligned = perturbation.reached_at(Axis::Aligned)?;
    let harm = args.harm.as_ref().map(|_| perturbation.reached_at(Axis::Harm)).transpose()?;
    let cosine = perturbation.harm_cosine()?;
    let frame = |subject| Frame {
        subject,
        unit: args.unit,
        unaligned_at: unaligned.1,
        harm: harm.zip(cosine).map(|((_, at, _), cosine)| Harm { at, cosine }),
    };
    let subject = match &args.model.adapter {
        Some(adapter) => format!("{} + {}", short(&args.model.base.model), short(&adapter.to_string_lossy())),
        None => short(&args.model.base.model),
    };
    let staging = stage(out)?;
    let write = |name: &str, bytes: &[u8]| write_atomic(&staging.path().join(name), |file| Ok(file.write_all(bytes)?));
    let both = |name: &str, picture: Picture| {
        write(&format!("{name}.svg"), picture.svg.as_bytes())?;
        write(&format!("{name}.png"), &picture.png)
    };
    both("curves", plot::curves(landscape, &frame(&subject))?)?;
    if let Some(grid) = &landscape.grid {
        both("grid", plot::grid(landscape, grid, &frame(&subject))?)?;
    }
    let record = json!({
        "asft_version": env!("CARGO_PKG_VERSION"),
        "model": args.model.base.model,
        "adapter": args.model.adapter,
        "direction": args.direction,
        "harm": args.harm,
        "evaluations": evaluations,
        "seed": args.seed,
        "modules": perturbation.modules(),
        "unit": args.unit,
        "unaligned_at": places(unaligned),
        "harm_at": harm.map(places),
        "harm_cosine": cosine,
        "landscape": landscape,
    });
    write(RECORD, (serde_json::to_string_pretty(&record)? + "\n").as_bytes())?;
    publish(staging, out)
}

/// Where the modules reach another model's weights.
fn places((nearest, median, farthest): (f64, f64, f64)) -> Value {
    json!({"nearest": nearest, "median": median, "farthest": farthest})
}
