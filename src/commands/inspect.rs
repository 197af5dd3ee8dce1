//! `asft inspect`

use super::print;
use crate::adapter;
use crate::checkpoint::{Checkpoint, all_finite, write_atomic};
use crate::cli::InspectArgs;
use crate::console::progress_bar;
use crate::ensure_valid;
use crate::hub;
use crate::method::direction_file::Directions;
use crate::method::inspect::{Inspection, ModuleShares};
use crate::method::shares::Products;
use crate::outputs::Outputs;
use crate::plot;
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use std::io::Write;
use std::path::Path;

pub fn run(args: InspectArgs) -> Result<()> {
    let read = Outputs::new(args.overwrite).reads("--adapter", &args.adapter).reads("--model", &args.model);
    let read = read.reads("--base", &args.base).reads("--direction", [&args.direction]);
    read.file("--svg", &args.svg).check()?;
    let directions = Directions::open(&args.direction)?;
    let (modules, subject) = match (&args.adapter, &args.model, &args.base) {
        (Some(dir), ..) => (of_adapter(dir, &directions)?, dir.display().to_string()),
        (None, Some(model), Some(base)) => (of_model(model, base, &directions)?, model.clone()),
        _ => return Err(crate::invalid!("give --adapter, or --model with --base")),
    };
    let mut inspection = Inspection::new(modules);
    if let Some(path) = &args.svg {
        let svg = plot::heat_map(&inspection.modules, &subject)?;
        write_atomic(path, |file| Ok(file.write_all(svg.as_bytes())?))?;
    }
    inspection.sort(args.sort);
    if args.json {
        return print(&format!("{}\n", serde_json::to_string_pretty(&inspection)?));
    }
    print(&inspection.to_string())
}

fn of_adapter(dir: &Path, directions: &Directions) -> Result<Vec<ModuleShares>> {
    let adapter = adapter::load_among(dir, directions.modules(), &Device::Cpu)?;
    directions.check_adapter(dir, &adapter)?;
    let keep = directions.header().keep()?;
    let adapted = directions.modules().iter().filter_map(|name| Some((name, adapter.modules.get(name)?)));
    adapted
        .map(|(name, module)| {
            let direction = directions.read(name)?;
            let products = Products::lora(Some(&direction), &module.a, &module.b, adapter.scale(module))?;
            ModuleShares::new(name, (&direction, keep), products, module.rank())
        })
        .collect()
}

fn of_model(model: &str, base: &str, directions: &Directions) -> Result<Vec<ModuleShares>> {
    let base = Checkpoint::open(&hub::resolve(base, false).context("--base")?.place)?;
    let model = Checkpoint::open(&hub::resolve(model, false).context("--model")?.place)?;
    let shapes = directions.shapes();
    let mut problems = vec![];
    for (name, (d_out, d_in)) in &shapes {
        for (side, checkpoint) in [("--base", &base), ("--model", &model)] {
            match checkpoint.info(&format!("{name}.weight")) {
                None => problems.push(format!("{name} is not in {side}")),
                Some(info) if info.shape != [*d_out, *d_in] => {
                    problems.push(format!("{name} is {:?} in {side}, [{d_out}, {d_in}] in the direction", info.shape))
                }
                Some(_) => {}
            }
        }
    }
    ensure_valid!(
        problems.is_empty(),
        "the direction does not fit the models: {}",
        crate::error::listing(&problems, 8)
    );
    directions.check_against(&shapes, Some(&base)).context("--base")?;
    let progress = progress_bar(shapes.len(), "inspecting");
    let keep = directions.header().keep()?;
    let mut out = vec![];
    for (name, (d_out, d_in)) in shapes {
        let tensor = format!("{name}.weight");
        let (mut delta, other) = (model.read_f32(&tensor)?, base.read_f32(&tensor)?);
        delta.iter_mut().zip(&other).for_each(|(delta, other)| *delta -= other);
        ensure_valid!(all_finite(&delta), "tensor {tensor} of --model holds values that are not finite");
        let direction = directions.read(&name)?;
        let products = Products::full_wide(Some(&direction), &Tensor::from_vec(delta, (d_out, d_in), &Device::Cpu)?)?;
        out.push(ModuleShares::new(&name, (&direction, keep), products, d_out.min(d_in))?);
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(out)
}
