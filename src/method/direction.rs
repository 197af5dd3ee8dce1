//! `asft direction`: V = W_aligned − W_unaligned per targeted module, from two checkpoints to a direction file.
//!
//! The models are never loaded whole. Modules are processed in batches whose planned memory stays below four times the
//! largest targeted matrix in f32, plus an allowance, however large the models are. Large modules go first, one at a
//! time, with all threads; small ones follow, side by side.

use super::direction_file::{self, Header, Identity};
use super::likeness::Pair;
use super::spectral::{Direction, Keep, Setting, factorize, useful_bytes};
use super::summary::{ModuleReport, Summary};
use crate::checkpoint::sketch::sketch;
use crate::checkpoint::{Checkpoint, StreamWriter, all_finite, combined_hash, weight_hash};
use crate::error::listing;
use crate::hub::Resolved;
use crate::model::ModelSpec;
use crate::names::{Targets, block_linears, resolve_targets, sort_naturally};
use crate::ranks::Ranks;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use faer::Par;
use indicatif::ProgressBar;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

/// What the work may take beyond four times the largest matrix: the promised 200 MB, less the program itself, its panels
/// and the GEMM's packing buffers.
const ALLOWANCE_BYTES: usize = 120_000_000;

/// What to compute, and where to put it.
pub struct DirectionRequest {
    pub aligned: Resolved,
    pub unaligned: Resolved,
    pub out: PathBuf,
    pub targets: Targets,
    pub keep: Keep,
    /// Go on with the comparable modules where the pair's names or shapes differ.
    pub allow_missing: bool,
    /// Go on where the models are equal in all modules, so that V = 0: for a run that only measures by its direction.
    pub allow_equal: bool,
    /// Go on where weights are quantised, so that V is mostly the error of quantisation.
    pub allow_quantised: bool,
}

/// A module to work on.
struct Task {
    module: String,
    shape: (usize, usize),
    /// Planned peak bytes.
    bytes: usize,
}

/// What one rank tells the others about a module: the report and the hashes of its two weights.
#[derive(Serialize, Deserialize)]
struct Told {
    report: ModuleReport,
    hashes: (String, String),
}

/// What one side of a direction is known by.
#[derive(Default)]
struct Mark {
    hash: String,
    sketch: Vec<f32>,
}

/// What is written about a module, and what is told.
struct Done {
    direction: Direction,
    sketches: Pair,
    told: Told,
}

/// Checks that [`compute`] has something to work with: from the headers of both checkpoints, and from their weights up to
/// the first module that differs, which is usually the first of all.
///
/// # Errors
/// Those of [`compute`], except for weights that are not finite.
pub fn check(request: &DirectionRequest) -> Result<()> {
    let (aligned, unaligned) = (Checkpoint::open(&request.aligned.place)?, Checkpoint::open(&request.unaligned.place)?);
    let (shapes, _) = comparable(request, &aligned, &unaligned)?;
    for (module, _) in &shapes {
        let name = format!("{module}.weight");
        if aligned.read_f32(&name)? != unaligned.read_f32(&name)? {
            return Ok(());
        }
    }
    refuse_equal(request, shapes.len())
}

/// The error for a pair without any difference in `count` modules, unless the request goes on with that.
fn refuse_equal(request: &DirectionRequest, count: usize) -> Result<()> {
    let name = |model: &Resolved| model.id.clone().unwrap_or_else(|| model.place.display().to_string());
    ensure_valid!(
        request.allow_equal,
        "the unaligned model ({}) is equal to the aligned model ({}) in all {count} targeted modules: V = 0, which is no \
         direction; the unaligned model must be the base that the aligned one was tuned from (asft.penalize = \"all\" \
         needs none)",
        name(&request.unaligned),
        name(&request.aligned)
    );
    Ok(())
}

/// Computes and writes a direction file. Several ranks divide the modules among themselves; the first writes the file, which
/// is the same as one process would write. It also returns the summary of all modules, the others that of their own.
///
/// # Errors
/// A target that matches nothing; a pair whose names or shapes differ (every difference listed, unless
/// `allow_missing`); a pair that is equal in all modules (unless `allow_equal`); quantised weights (unless
/// `allow_quantised`); a weight that is not finite. Nothing is written in any of these cases.
pub fn compute(request: &DirectionRequest, progress: &ProgressBar) -> Result<Summary> {
    let started = Instant::now();
    let aligned = Checkpoint::open(&request.aligned.place)?;
    let unaligned = Checkpoint::open(&request.unaligned.place)?;
    let (shapes, skipped) = comparable(request, &aligned, &unaligned)?;
    let largest = shapes.iter().map(|(_, (d_out, d_in))| 4 * d_out * d_in).max().unwrap_or(0);
    let limit = 4 * largest + ALLOWANCE_BYTES;
    let task = |(module, shape): Shaped| {
        let bytes = useful_bytes(shape.0, shape.1, request.keep).min(limit);
        Task { module, shape, bytes }
    };
    let tasks: Vec<Task> = shapes.into_iter().map(task).collect();
    let ranks = Ranks::here();
    let own = own_tasks(&tasks, ranks);
    progress.set_length(own.len() as u64);
    let computed = run_tasks(own, request, limit, (&aligned, &unaligned), progress);
    let (mut writer, mut told) = ranks.agree(computed)?;
    writer.gather(ranks)?;
    for of_other in ranks.gather(serde_json::to_vec(&told)?).into_iter().skip(1) {
        told.extend(serde_json::from_slice::<Vec<Told>>(&of_other)?);
    }
    let (mut reports, mut hashes) = (vec![], (BTreeMap::new(), BTreeMap::new()));
    for Told { report, hashes: (aligned, unaligned) } in told {
        hashes.0.insert(report.module.clone(), aligned);
        hashes.1.insert(report.module.clone(), unaligned);
        reports.push(report);
    }
    reports.sort_by_key(|report: &ModuleReport| order(&tasks, &report.module));
    let identity = |source: &Resolved, hashes: &BTreeMap<String, String>| Identity {
        id: source.id.clone().unwrap_or_else(|| source.place.display().to_string()),
        revision: source.revision.clone(),
        hash: combined_hash(hashes),
    };
    let header = Header {
        aligned: identity(&request.aligned, &hashes.0),
        unaligned: identity(&request.unaligned, &hashes.1),
        modules: tasks.into_iter().map(|task| task.module).collect(),
        kept: match request.keep {
            Keep::Tolerance(tolerance) => ("tolerance".to_string(), tolerance.to_string()),
            Keep::Rank(rank) => ("rank".to_string(), rank.to_string()),
        },
        module_hashes: hashes.0,
    };
    ranks.on_first(|| {
        if reports.iter().all(|report| report.rank == 0) {
            refuse_equal(request, reports.len())?;
        }
        writer.finish(&header.to_metadata()?)
    })?;
    progress.finish_and_clear();
    Ok(Summary { out: request.out.clone(), modules: reports, skipped, seconds: started.elapsed().as_secs_f64() })
}

/// A module and the shape of its weight.
type Shaped = (String, (usize, usize));

/// The targeted modules that both checkpoints hold in the same shape, in natural order, and the reasons for the others.
fn comparable(
    request: &DirectionRequest,
    aligned: &Checkpoint,
    unaligned: &Checkpoint,
) -> Result<(Vec<Shaped>, Vec<String>)> {
    let sides = (block_linears(aligned.matrices()), block_linears(unaligned.matrices()));
    let mut all: Vec<String> = sides.0.iter().chain(&sides.1).cloned().collect();
    sort_naturally(&mut all);
    all.dedup();
    // Stored by some, and used by no layer. A model that asft does not serve can have a direction, too.
    if let Ok(spec) = ModelSpec::load(&request.aligned.place) {
        all.retain(|module| !spec.is_replaced(&format!("{module}.weight")));
    }
    let targeted = resolve_targets(&request.targets, &all)?;
    let shape = |checkpoint: &Checkpoint, module: &str| {
        let info = checkpoint.info(&format!("{module}.weight"))?;
        Some((*info.shape.first()?, *info.shape.get(1)?))
    };
    refuse_quantised(request, [aligned, unaligned], &targeted)?;
    let (mut shapes, mut problems) = (vec![], vec![]);
    for module in targeted {
        match (shape(aligned, &module), shape(unaligned, &module)) {
            (Some(a), Some(u)) if a == u => shapes.push((module, a)),
            (Some(a), Some(u)) => {
                problems.push(format!("{module}: aligned [{}, {}], unaligned [{}, {}]", a.0, a.1, u.0, u.1))
            }
            (Some(_), None) => problems.push(format!("{module}: not in the unaligned model")),
            _ => problems.push(format!("{module}: not in the aligned model")),
        }
    }
    ensure_valid!(
        !shapes.is_empty(),
        "the two models have no targeted matrix in common, so neither is the base of the other: {}",
        listing(&problems, 2)
    );
    ensure_valid!(
        problems.is_empty() || request.allow_missing,
        "the two models differ in {} of the targeted modules; is one the base of the other? (--allow-missing uses the \
         {} that are comparable)\n  {}",
        problems.len(),
        shapes.len(),
        problems.join("\n  ")
    );
    Ok((shapes, problems))
}

fn refuse_quantised(request: &DirectionRequest, pair: [&Checkpoint; 2], modules: &[String]) -> Result<()> {
    for (checkpoint, source) in pair.into_iter().zip([&request.aligned, &request.unaligned]) {
        let stored = modules.iter().filter_map(|module| Some(checkpoint.info(&format!("{module}.weight"))?.stored));
        let kind = stored.into_iter().find(|stored| stored.is_quantised());
        ensure_valid!(
            request.allow_quantised || kind.is_none(),
            "the weights of {} are quantised ({}): V = W_aligned − W_unaligned would be mostly the error of that; compute \
             the direction from the full-precision models with `asft direction`, which is then accepted for their quantised \
             forms (asft.direction), or say --allow-quantised there",
            source.place.display(),
            kind.map_or(String::new(), |kind| kind.to_string())
        );
    }
    Ok(())
}

/// The index of a module among the tasks.
fn order(tasks: &[Task], module: &str) -> Option<usize> {
    tasks.iter().position(|task| task.module == module)
}

/// This rank's share of the tasks. They are dealt out from the most costly down, each to the rank with the least to do.
fn own_tasks(tasks: &[Task], ranks: Ranks) -> Vec<&Task> {
    let cost = |task: &Task| task.shape.0 as u128 * task.shape.1 as u128 * task.shape.0.min(task.shape.1) as u128;
    let mut by_cost: Vec<(usize, &Task)> = tasks.iter().enumerate().collect();
    by_cost.sort_by_key(|(_, task)| std::cmp::Reverse(cost(task)));
    let (mut loads, mut owners) = (vec![0; ranks.size()], vec![0; tasks.len()]);
    for (i, task) in by_cost {
        let least = (0..loads.len()).min_by_key(|&rank| loads[rank]).unwrap_or(0);
        loads[least] += cost(task);
        owners[i] = least;
    }
    tasks.iter().zip(owners).filter(|(_, owner)| *owner == ranks.rank()).map(|(task, _)| task).collect()
}

/// Computes the modules' directions into a file that still has to be finished.
fn run_tasks(
    tasks: Vec<&Task>,
    request: &DirectionRequest,
    limit: usize,
    pair: (&Checkpoint, &Checkpoint),
    progress: &ProgressBar,
) -> Result<(StreamWriter, Vec<Told>)> {
    let mut writer = StreamWriter::create(&request.out)?;
    let mut all = vec![];
    for batch in batches(tasks, limit) {
        for Done { direction, sketches, told } in run_batch(&batch, request.keep, limit, pair, progress)? {
            direction_file::write(&direction, &told.report.module, &mut writer)?;
            direction_file::write_sketches(&sketches, &told.report.module, &mut writer)?;
            all.push(told);
        }
    }
    Ok((writer, all))
}

/// Groups of tasks that fit into memory together: a large one alone, with all threads, or a few small ones per thread.
fn batches(tasks: Vec<&Task>, limit: usize) -> Vec<Vec<&Task>> {
    let threads = rayon::current_num_threads();
    let (large, small): (Vec<&Task>, Vec<&Task>) = tasks.into_iter().partition(|task| task.bytes * threads > limit);
    let mut out: Vec<Vec<&Task>> = large.into_iter().map(|task| vec![task]).collect();
    let mut room = 0;
    for task in small {
        match out.last_mut() {
            Some(batch) if room >= task.bytes && batch.len() < 4 * threads => batch.push(task),
            _ => {
                out.push(vec![task]);
                room = limit;
            }
        }
        room -= task.bytes;
    }
    out
}

fn run_batch(
    batch: &[&Task],
    keep: Keep,
    limit: usize,
    pair: (&Checkpoint, &Checkpoint),
    progress: &ProgressBar,
) -> Result<Vec<Done>> {
    let run = |task: &Task, setting: &Setting| {
        let done = run_task(task, setting, pair).with_context(|| format!("module {}", task.module));
        progress.inc(1);
        done
    };
    if let [task] = batch {
        return Ok(vec![run(task, &Setting { keep, memory: limit, par: Par::rayon(0) })?]);
    }
    let setting = |task: &Task| Setting { keep, memory: task.bytes, par: Par::Seq };
    batch.par_iter().map(|task| run(task, &setting(task))).collect()
}

fn run_task(task: &Task, setting: &Setting, pair: (&Checkpoint, &Checkpoint)) -> Result<Done> {
    let started = Instant::now();
    let name = format!("{}.weight", task.module);
    let seen: RefCell<Option<[Mark; 2]>> = RefCell::new(None);
    // Called again when memory is short, but hashes and checks only the first time.
    let load = || -> Result<Vec<f32>> {
        let first = seen.borrow().is_none();
        let shape = [task.shape.0, task.shape.1];
        let read = |checkpoint: &Checkpoint, side: &str| -> Result<(Vec<f32>, Mark)> {
            let values = checkpoint.read_f32(&name)?;
            if !first {
                return Ok((values, Mark::default()));
            }
            ensure_valid!(all_finite(&values), "tensor {name} of the {side} model holds a value that is not finite");
            let mark = Mark { hash: weight_hash(&shape, &values), sketch: sketch(&values) };
            Ok((values, mark))
        };
        let sides = rayon::join(|| read(pair.0, "aligned"), || read(pair.1, "unaligned"));
        let ((mut v, aligned), (other, unaligned)) = (sides.0?, sides.1?);
        for (difference, other) in v.iter_mut().zip(&other) {
            *difference -= other;
        }
        if first {
            *seen.borrow_mut() = Some([aligned, unaligned]);
        }
        Ok(v)
    };
    let (direction, phases) = factorize(&load, task.shape, setting)?;
    let report = ModuleReport {
        module: task.module.clone(),
        d_out: task.shape.0,
        d_in: task.shape.1,
        rank: direction.rank(),
        v_norm: direction.v_norm,
        largest: direction.eigenvalues.first().copied().unwrap_or(0.0),
        residual: direction.residual,
        seconds: started.elapsed().as_secs_f64(),
        phases,
    };
    let [aligned, unaligned] = seen.into_inner().ok_or_else(|| invalid!("tensor {name} was never read"))?;
    let told = Told { report, hashes: (aligned.hash, unaligned.hash) };
    let sketches = Pair { aligned: aligned.sketch, unaligned: unaligned.sketch };
    Ok(Done { direction, sketches, told })
}
